"""What the world knows of drifts, and what tokens are taught of them."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from xdyna_model.nano import nano_pipeline
from xdyna_model.positional_encoding import DRIFTS
from xdyna_model.positional_unet import DriftingAdapter
from xdyna_train.config import EVERYTHING, PRESETS, Stage
from xdyna_train.fusion import Batch, FusionDataset, Place, collate, nearest_drift
from xdyna_train.loss import drift_loss
from xdyna_train.puppet_source import PuppetSource
from xdyna_train.puppets import DRIFTING, KINDS, Scene, render_clip
from xdyna_train.train import fit
from xdyna_train.trainee import Trainee

SIZE = (112, 64)


@pytest.fixture
def batch_of() -> Callable[..., Batch]:
    stage = Stage("one", ("adapter",), frames=2, batch=4, human_share=0.5, steps=1)
    config = replace(PRESETS["nano"], stages=(stage,))
    data = FusionDataset(PuppetSource(*SIZE), config, 0, lambda _: torch.zeros(3, 8, 8))
    return lambda clip: data[Place(0, 0, clip)]


# In the others, blades sway, rings spread on puddles, or nothing drifts one way.
@pytest.mark.parametrize("kind", ["waterfall", "clouds", "snow", "ocean", "stars", "room"])
@pytest.mark.parametrize("seed", range(3))
def test_what_is_said_to_stand_still_does(kind: str, seed: int) -> None:
    scene = Scene.sample(kind, np.random.default_rng(seed))
    frames = np.stack([frame.rgb for frame in render_clip(scene, None, None, range(0, 40, 2), *SIZE)]).astype(int)
    change = np.abs(frames - frames[0]).max((0, -1))
    drifts = scene.drift(*SIZE)[0].any(-1)
    assert drifts.any() == (kind != "room")
    # At the edges of what stands in front, at most half of a pixel shows what drifts.
    assert change[~drifts].max(initial=0) < 128
    assert (change[~drifts] > 40).sum() < 0.01 * drifts.size
    assert not drifts.any() or (change[drifts] > 40).mean() > 0.3


@pytest.mark.parametrize("kind", KINDS)
def test_only_rain_and_snow_are_seen_through(kind: str) -> None:
    scene = Scene.sample(kind, np.random.default_rng(0))
    seen, behind = scene.drift(*SIZE)
    assert seen.any() == (kind in DRIFTING)
    assert not behind.any() if kind in ("rain", "snow") else np.array_equal(seen, behind)
    assert {tuple(v) for v in seen.reshape(-1, 2).tolist()} <= {(0.0, 0.0), tuple(np.float32(scene.velocity).tolist())}


@pytest.mark.parametrize("kind", DRIFTING)
def test_a_kind_is_taught_its_drift(kind: str) -> None:
    scene, masks = Scene.sample(kind, np.random.default_rng(1)), np.zeros((3, *SIZE), bool)
    masks[1, 20:60, 10:50] = True
    drift = nearest_drift(scene.drift(*SIZE), masks)
    assert scene.velocity in DRIFTS
    assert drift.shape == (1, 2, 3, *SIZE)
    assert set(drift[0, 0, 0].flatten().tolist()) - {0} == {DRIFTS.index(scene.velocity)}
    assert not drift[0, :, 1][:, masks[1]].any()
    assert torch.equal(drift[0, :, 0], drift[0, :, 2])


def test_clips_of_which_nobody_knows_it_are_not_taught(batch_of: Callable[..., Batch]) -> None:
    known, unknown = batch_of(0), replace(batch_of(1), drift=None)
    assert collate([known, unknown]).drift is None
    both = collate([known, batch_of(1)]).drift
    assert both is not None
    assert both.shape[0] == 2


def test_the_loss_by_hand() -> None:
    """Two heads: one for what is seen, one for what is seen through it. Half of a token's pixels are enough."""
    generator = torch.Generator().manual_seed(0)
    guesses = torch.randn(3, 1, 2, 4, 2, len(DRIFTS), generator=generator)
    drift = torch.zeros(1, 2, 2, 4, 4, dtype=torch.int8)
    drift[0, 0, 0, :2, :2] = 3  # the first token, whole
    drift[0, 0, 1, 2:, 1] = 5  # half of the third
    drift[0, 1, 1, 3, 3] = 2  # a quarter of the fourth: stands still
    taught = torch.zeros(2, 4, 2, dtype=torch.long)  # of frames, tokens, heads
    taught[0, 0, 0], taught[1, 2, 0] = 3, 5
    total = 0.0
    for layer in guesses[:, 0]:
        for frame, token, head in np.ndindex(2, 4, 2):
            right = int(taught[frame, token, head])
            total -= (2 if right else 1) * float(layer[frame, token, head].log_softmax(-1)[right])
    assert float(drift_loss(guesses, drift, (2, 2))) == pytest.approx(total / (3 * 2 * 4 * 2), rel=1e-5)


def test_wide_pictures_and_more_heads() -> None:
    """Drifts are told in longer sides: in a picture twice as wide as high, half as many as heights."""
    velocity = np.zeros((2, 32, 64, 2), np.float32)
    velocity[..., 0] = 2 * DRIFTS[2][0]
    drift = nearest_drift(velocity, np.zeros((1, 32, 64), bool))
    assert (drift == 2).all()
    guesses = torch.zeros(1, 2, 1, 8, 4, len(DRIFTS))
    guesses[..., :2, 2] = guesses[..., 2:, 0] = 50  # half of the heads for what is seen through
    drift = torch.cat([drift, drift])
    drift[:, 1] = 0
    assert float(drift_loss(guesses, drift, (2, 4))) < 1e-6
    assert float(drift_loss(guesses.flip(-2), drift, (2, 4))) > 10


def test_what_is_taught_reaches_the_guesses() -> None:
    trainee = Trainee(nano_pipeline()).requires_grad_(True)
    clip, text, features = torch.randn(1, 48, 3, 16, 16), torch.zeros(1, 8, 32), torch.randn(1, 17, 32)
    maps = torch.zeros(1, 2, 3, 64, 64), torch.zeros(1, 2, 6, 64, 64)
    _, guesses = trainee(clip, torch.tensor([999]), text, features, *maps)
    assert guesses.shape[:4] == (2, 1, 2, 256)
    drift_loss(guesses, torch.ones(1, 2, 2, 64, 64, dtype=torch.int8), (16, 16)).backward()
    adapters = [part for part in trainee.modules() if isinstance(part, DriftingAdapter)]
    grads = [part.to_drift.weight.grad for part in adapters]
    assert all(grad is not None and grad.abs().sum() > 0 for grad in grads)
    with torch.no_grad():
        assert trainee(clip, torch.tensor([999]), text, features, *maps)[1].shape == (0,)


def test_two_processes_teach_it_as_one(tmp_path: Path, run_two: Callable, lines: Callable) -> None:
    stage = Stage("one", EVERYTHING, frames=2, batch=2, human_share=0.5, steps=2)
    config = replace(PRESETS["nano"], stages=(stage,), precision="no", workers=0, sample_every=9)
    fit(nano_pipeline(), PuppetSource(64, 64), config, tmp_path / "one")
    assert run_two(lambda: fit(nano_pipeline(), PuppetSource(64, 64), config, tmp_path / "two")) == [0, 0]
    one, two = ([line["loss"] for line in lines(tmp_path / name)] for name in ("one", "two"))
    assert two == pytest.approx(one, rel=1e-5)


def test_training_counts_it_by_its_weight(tmp_path: Path) -> None:
    stage = Stage("one", ("adapter",), frames=2, batch=2, human_share=0.5, steps=1)
    config = replace(PRESETS["nano"], stages=(stage,), precision="no", workers=0, sample_every=9)
    losses = []
    for weight in (0.0, 1.0, 2.0):
        fit(nano_pipeline(), PuppetSource(64, 64), replace(config, drift_weight=weight), tmp_path / str(weight))
        losses.append(json.loads((tmp_path / str(weight) / "metrics.jsonl").read_text().splitlines()[0])["loss"])
    assert losses[1] - losses[0] > 0.1
    assert losses[2] - losses[0] == pytest.approx(2 * (losses[1] - losses[0]), rel=1e-3)
