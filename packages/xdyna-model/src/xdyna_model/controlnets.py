"""The pose and the face ControlNet: what they add to the denoiser."""

import torch
from diffusers import ControlNetModel
from einops import rearrange
from torch import Tensor


def control_residuals(
    nets: list[tuple[ControlNetModel, Tensor]],
    sample: Tensor,
    timestep: Tensor,
    encoder_hidden_states: Tensor,
    scale: float = 1.0,
) -> tuple[tuple[Tensor, ...], Tensor]:
    """Sum of the residuals of several ControlNets; the reference frame gets zeros.

    Args:
        nets: each with its condition maps in [0, 1]: [F-1, c, H, W], shared by the whole batch, or
            [B, F-1, c, H, W].
        sample: [B, C, F, h, w] latents, frame 0 the reference, which the ControlNets do not see.
        timestep: a scalar, or [B].
        encoder_hidden_states: [B, T, E] text tokens; image tokens are not for ControlNets.
        scale: weight of all residuals.

    Returns:
        Residuals for the down blocks and the mid block, each [B*F, C, h', w'], as `XDynaUNet` takes them.
    """
    batch, _, frames, _, _ = sample.shape
    moving = rearrange(sample[:, :, 1:], "b c f h w -> (b f) c h w")
    text = encoder_hidden_states.repeat_interleave(frames - 1, dim=0)
    timesteps = timestep.expand(batch).repeat_interleave(frames - 1)
    total: list[Tensor] = []
    for net, maps in nets:
        cond = rearrange(maps.expand(batch, *maps.shape[-4:]), "b f c h w -> (b f) c h w")
        down, mid = net(moving, timesteps, text, cond, conditioning_scale=scale, return_dict=False)
        total = [a + b for a, b in zip(total, [*down, mid], strict=True)] if total else [*down, mid]
    *down, mid = (_zero_for_reference(residual, batch) for residual in total)
    return tuple(down), mid


def _zero_for_reference(residual: Tensor, batch: int) -> Tensor:  # [B*(F-1), C, h, w] -> [B*F, C, h, w]
    clip = rearrange(residual, "(b f) c h w -> b f c h w", b=batch)
    return rearrange(torch.cat([torch.zeros_like(clip[:, :1]), clip], dim=1), "b f c h w -> (b f) c h w")
