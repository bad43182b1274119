"""How much the ControlNets add to the denoiser, also where they are shown nothing (X-Dyna, Section 3.4).

On clips of scenes both are given blank maps. What they add there is what training has to make harmless.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops import rearrange
from torch import Tensor
from xdyna_model.controlnets import control_residuals
from xdyna_model.pipeline import XDynaPipeline

from xdyna_train.encoding import Encoders
from xdyna_train.fusion import Batch
from xdyna_train.loss import add_noise

Influence = dict[str, dict[str, float]]  # "pose", "face" -> "real", "blank" -> share


@torch.no_grad()
def control_influence(pipeline: XDynaPipeline, batch: Batch) -> Influence:
    """Mean absolute residual of each ControlNet, on the maps of a batch and on blank ones, as a share of the mean
    absolute feature that it is added to; the mean over all skip connections and the middle of the denoiser."""
    encoded = Encoders(pipeline)(batch)
    noisy = add_noise(pipeline.scheduler, encoded.frames, encoded.noise, batch.timesteps)
    clip = torch.cat([encoded.reference, noisy], dim=2)  # [B, C, 1+F, h, w]
    tokens = pipeline.image_projection(encoded.image_features)
    with _features(pipeline) as features:
        pipeline.unet(clip, batch.timesteps, encoded.text, tokens)
    sizes = [_size(feature, len(clip)) for feature in features]
    pose, face = batch.maps()
    nets = {"pose": (pipeline.controlnet, pose), "face": (pipeline.controlnet_face, face)}
    found: Influence = {}
    for name, (net, maps) in nets.items():
        for shown, given in (("real", maps), ("blank", torch.zeros_like(maps))):
            down, mid = control_residuals([(net, given)], clip, batch.timesteps, encoded.text)
            shares = [_size(r, len(clip)) / size for r, size in zip([*down, mid], sizes, strict=True)]
            found.setdefault(name, {})[shown] = float(torch.stack(shares).mean())
    return found


def _size(folded: Tensor, batch: int) -> Tensor:
    """Mean absolute value over all frames but the reference; folded: [B*F, C, h, w]."""
    return rearrange(folded, "(b f) c h w -> b f c h w", b=batch)[:, 1:].abs().mean()


@contextmanager
def _features(pipeline: XDynaPipeline) -> Iterator[list[Tensor]]:
    """Fills a list with what the denoiser's next call carries over its skip connections and through its middle."""
    unet, seen = pipeline.unet, []
    hooks = [
        unet.conv_in.register_forward_hook(lambda _net, _args, out: seen.append(out)),
        *(block.register_forward_hook(lambda _net, _args, out: seen.extend(out[1])) for block in unet.down_blocks),
        unet.mid_block.register_forward_hook(lambda _net, _args, out: seen.append(out)),
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()
