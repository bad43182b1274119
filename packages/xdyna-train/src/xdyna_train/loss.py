"""What the denoiser is taught: its target, and how much each timestep, frame and pixel counts."""

from typing import cast

import torch
import torch.nn.functional as F
from diffusers import DDIMScheduler
from torch import Tensor


def add_noise(scheduler: DDIMScheduler, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """sqrt(abar_t) clean + sqrt(1 - abar_t) noise. clean, noise: [B, C, F, h, w]; timesteps: [B] integers."""
    abar = signal(scheduler, timesteps)
    return abar.sqrt() * clean + (1 - abar).sqrt() * noise


def target(scheduler: DDIMScheduler, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """What the scheduler takes the prediction for: noise, clean clip ("sample") or velocity, [B, C, F, h, w]."""
    kind = scheduler.config["prediction_type"]
    if kind == "epsilon":
        return noise
    if kind == "sample":
        return clean
    abar = signal(scheduler, timesteps)
    return abar.sqrt() * noise - (1 - abar).sqrt() * clean  # Salimans and Ho 2022, appendix D


def timestep_weights(scheduler: DDIMScheduler, timesteps: Tensor, gamma: float | None) -> Tensor:
    """[B, 1, 1, 1, 1], the weight of each clip's squared error: 1, or Min-SNR (Hang et al. 2023) where gamma is given.

    In terms of the clean clip's error Min-SNR counts min(SNR, gamma) where noise is predicted. A velocity already
    counts SNR + 1 there, and a predicted clean clip is given the same, so that both still learn without any signal:
    min(SNR + 1, gamma).
    """
    abar = signal(scheduler, timesteps)
    if gamma is None:
        return torch.ones_like(abar)
    snr = abar / (1 - abar)
    match scheduler.config["prediction_type"]:
        case "epsilon":
            return snr.clamp(max=gamma) / snr.clamp(min=1e-8)
        case "sample":
            return (snr + 1).clamp(max=gamma)
        case _:
            return (snr + 1).clamp(max=gamma) / (snr + 1)


def denoising_loss(
    prediction: Tensor, goal: Tensor, weights: Tensor, importance: Tensor, temporal_weight: float = 0.0
) -> Tensor:
    """Mean weighted squared error of the denoised frames, a scalar in float32.

    Args:
        prediction, goal: [B, C, F, h, w], the reference frame not among them.
        weights: [B, 1, 1, 1, 1], of `timestep_weights`.
        importance: [B, 1, F, H, W], what each pixel counts; averaged over each latent's pixels.
        temporal_weight: weight of the squared change of the error from frame to frame, which is flicker.
    """
    error = prediction.float() - goal.float()
    importance = F.adaptive_avg_pool3d(importance.float(), (error.shape[2], error.shape[3], error.shape[4]))
    loss = (weights * importance * error.square()).mean()
    if temporal_weight and error.shape[2] > 1:
        change = error[:, :, 1:] - error[:, :, :-1]
        loss = loss + temporal_weight * (weights * importance[:, :, 1:] * change.square()).mean()
    return loss


def drift_loss(guesses: Tensor, drift: Tensor, size: tuple[int, int]) -> Tensor:
    """Cross-entropy of what tokens guess of how what they show drifts, a scalar in float32: the mean, but that what
    drifts counts twice, as more tokens stand still.

    Args:
        guesses: [A, B, F, N, heads, D] logits, of A adapters.
        drift: [B, 2, F, H, W] of `Batch`, below D. A token drifts where at least half of its pixels do. The first half
            of the heads is taught what is seen, the rest what is seen through it.
        size: (height, width) in tokens.
    """
    num_heads, num_drifts = guesses.shape[-2:]
    chances = F.one_hot(drift.long(), num_drifts).permute(0, 1, 5, 2, 3, 4).flatten(0, 2).float()
    shares = F.adaptive_avg_pool2d(chances, size).unflatten(0, (*drift.shape[:2], num_drifts))  # [B, 2, D, F, h, w]
    still, drifting = shares[:, :, 0], shares[:, :, 1:]
    taught = torch.where(still <= 0.5, 1 + drifting.argmax(2), 0).flatten(-2)  # [B, 2, F, N]
    heads = (torch.arange(num_heads, device=drift.device) * 2) // num_heads
    taught = taught[:, heads].permute(0, 2, 3, 1).expand(guesses.shape[:-1])
    loss = F.cross_entropy(guesses.float().flatten(0, -2), taught.flatten(), reduction="none")
    return (loss * torch.where(taught.flatten() > 0, 2.0, 1.0)).mean()


def signal(scheduler: DDIMScheduler, timesteps: Tensor) -> Tensor:
    """abar of each timestep, [B, 1, 1, 1, 1] float32."""
    abar = cast(Tensor, scheduler.alphas_cumprod).to(timesteps.device, torch.float32)
    return abar[timesteps].view(-1, 1, 1, 1, 1)
