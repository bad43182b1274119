"""The released schedule, and where denoising starts: noised copies of the reference that lost half their detail."""

import inspect
from typing import Any

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from einops import rearrange
from torch import Tensor

BLUR_KERNEL = 9
BLUR_SIGMA = 18.0


def released_scheduler() -> DDIMScheduler:
    """The scheduler of the released model: linear betas, unlike Stable Diffusion's own; first of 25 steps at 961."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="linear",
        steps_offset=1,
        clip_sample=False,
        # Its defaults, given all the same: `from_config` of another scheduler takes its own in place of defaults.
        timestep_spacing="leading",
        set_alpha_to_one=True,
        prediction_type="epsilon",
    )


def most_steps(scheduler: Any) -> int:
    """How many denoising steps a scheduler can be asked for."""
    return scheduler.config["num_train_timesteps"] - scheduler.config.get("steps_offset", 0)


def step_options(scheduler: Any, generator: torch.Generator | None) -> dict[str, Any]:
    """Keywords for `scheduler.step`: a tuple is to come back, and noise is drawn from the generator, where it is told
    of one."""
    draws = "generator" in inspect.signature(scheduler.step).parameters
    return {"return_dict": False} | ({"generator": generator} if draws else {})


def blur(image: Tensor) -> Tensor:
    """Gaussian blur, 9x9, sigma 18, mirrored borders. image: [B, C, h, w] with sides of at least 5."""
    x = torch.arange(BLUR_KERNEL, device=image.device, dtype=torch.float32) - BLUR_KERNEL // 2
    weights = torch.exp(-0.5 * (x / BLUR_SIGMA) ** 2)
    weights = (weights / weights.sum()).to(image.dtype)
    channels, pad = image.shape[1], BLUR_KERNEL // 2
    kernel = torch.outer(weights, weights).expand(channels, 1, -1, -1)
    return F.conv2d(F.pad(image, [pad] * 4, mode="reflect"), kernel, groups=channels)


def initial_latents(
    reference: Tensor, mask: Tensor, noise: Tensor, scheduler: DDIMScheduler, timestep: Tensor
) -> Tensor:
    """The reference repeated over the frames, a random half of its elements blurred, then noised.

    Args:
        reference: [B, C, 1, h, w] latent of the reference.
        mask: [B, C, F, h, w], 1 where an element stays sharp and 0 where it is replaced by the blurred one.
        noise: [B, C, F, h, w], unit Gaussian.
        timestep: the first timestep of the schedule.

    Returns:
        [B, C, F, h, w], the frames to denoise (the reference not among them).
    """
    blurred = rearrange(blur(reference[:, :, 0]), "b c h w -> b c 1 h w")
    degraded = reference * mask + blurred * (1 - mask)
    return scheduler.add_noise(degraded, noise, timestep.reshape(1))  # pyright: ignore[reportArgumentType]
