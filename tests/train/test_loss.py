"""Targets and weights against diffusers' own sampler and against the formulas by hand."""

from typing import cast

import pytest
import torch
from diffusers import DDIMScheduler
from xdyna_model.nano import nano_scheduler
from xdyna_model.sampling import released_scheduler
from xdyna_train.loss import add_noise, denoising_loss, target, timestep_weights

SHAPE = (3, 4, 2, 5, 6)
KINDS = ("epsilon", "sample", "v_prediction")


def scheduler(kind: str) -> DDIMScheduler:
    return cast(DDIMScheduler, DDIMScheduler.from_config(released_scheduler().config, prediction_type=kind))


def draw(seed: int) -> torch.Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("kind", KINDS)
def test_the_exact_prediction_lets_the_sampler_find_the_clip(kind: str) -> None:
    sampler, clean, noise = scheduler(kind), draw(0), draw(1)
    sampler.set_timesteps(10)
    for timestep in sampler.timesteps:
        t = timestep.expand(len(clean))
        noisy = add_noise(sampler, clean, noise, t)
        torch.testing.assert_close(noisy, sampler.add_noise(clean, noise, t))
        found = sampler.step(target(sampler, clean, noise, t), timestep, noisy).pred_original_sample
        torch.testing.assert_close(found, clean, rtol=1e-3, atol=1e-3)


def test_min_snr_by_hand() -> None:
    t = torch.tensor([0, 300, 999])
    abar = released_scheduler().alphas_cumprod[t]
    snr = abar / (1 - abar)
    low = torch.minimum(snr, torch.tensor(5.0))
    one_more = torch.minimum(snr + 1, torch.tensor(5.0))
    for kind, wanted in zip(KINDS, (low / snr, one_more, one_more / (snr + 1)), strict=True):
        found = timestep_weights(scheduler(kind), t, 5.0)
        assert found.shape == (3, 1, 1, 1, 1)
        torch.testing.assert_close(found.flatten(), wanted)
        assert (timestep_weights(scheduler(kind), t, None) == 1).all()


def test_without_any_signal_the_nano_model_still_learns() -> None:
    assert timestep_weights(nano_scheduler(), torch.tensor([999]), 3.0).item() == pytest.approx(1.0, abs=1e-3)


def test_importance_and_flicker_by_hand() -> None:
    goal = draw(0)
    error = torch.zeros(SHAPE)
    error[0, :, 1, 0, 0] = 2.0  # one latent of one frame
    weights = torch.tensor([3.0, 1.0, 1.0]).view(-1, 1, 1, 1, 1)
    importance = torch.ones(3, 1, 2, 10, 12)
    importance[0, :, 1, 0, 0] = 5.0  # one of the latent's four pixels: its mean is 2
    mean = 4 * 3.0 * 2.0 * 2.0**2 / goal.numel()
    found = denoising_loss(goal + error, goal, weights, importance)
    assert found.item() == pytest.approx(mean, rel=1e-5)
    # One change from frame to frame in half as many places.
    both = denoising_loss(goal + error, goal, weights, importance, temporal_weight=0.5)
    assert both.item() == pytest.approx(mean + 0.5 * 2 * mean, rel=1e-5)


def test_a_constant_error_does_not_flicker() -> None:
    goal, ones = draw(0), torch.ones(3, 1, 2, 5, 6)
    weights = torch.ones(3, 1, 1, 1, 1)
    plain = denoising_loss(goal + 1, goal, weights, ones)
    torch.testing.assert_close(denoising_loss(goal + 1, goal, weights, ones, temporal_weight=9.0), plain)
