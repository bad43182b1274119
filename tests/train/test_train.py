"""What the loop learns, and what it leaves alone."""

import json
import multiprocessing
import random
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from xdyna_train import train
from xdyna_train.config import Config
from xdyna_train.encoding import Encoders
from xdyna_train.fusion import Batch
from xdyna_train.loss import signal
from xdyna_train.train import fit, learning_rate
from xdyna_train.trainee import Trainee

GOLDEN = Path(__file__).parent / "golden" / "losses.json"
# In float32, and over seven steps, another CPU or another build of its libraries moves a loss by some 1e-6; a pixel
# of a clip that is rounded the other way, by 1e-5. A wrong step shows in the third digit.
TOLERANCE = 3e-4
Lines = Callable[[Path], list[dict[str, Any]]]


def losses(out: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (out / "metrics.jsonl").read_text().splitlines()]


def off(out: Path) -> float:
    """How far a curve is from the golden one, as a share of it."""
    golden = np.array(json.loads(GOLDEN.read_text()))
    curve = np.array(losses(out))
    return float(np.abs(curve / golden[: len(curve)] - 1).max())


def test_the_loss_curve_is_the_golden_one(uninterrupted: Path) -> None:
    assert len(losses(uninterrupted)) == len(json.loads(GOLDEN.read_text())) == 7
    assert off(uninterrupted) < TOLERANCE


def velocity(scheduler: Any, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    abar = signal(scheduler, timesteps)
    return abar.sqrt() * noise - (1 - abar).sqrt() * clean


def without_reference(encoders: Encoders, batch: Batch) -> Any:
    encoded = REAL_ENCODING(encoders, batch)
    encoded.reference = torch.zeros_like(encoded.reference)
    return encoded


REAL_ENCODING = Encoders.__call__
FAULTS: dict[str, tuple[Any, str, Any]] = {
    "learning rate": (train, "learning_rate", lambda config, step: 1.1 * learning_rate(config, step)),
    "target": (train, "target", velocity),
    "reference": (Encoders, "__call__", without_reference),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_leaves_the_golden_curve(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_pipeline: Callable, waves: Any, config: Config
) -> None:
    monkeypatch.setattr(*FAULTS[fault])
    fit(new_pipeline(), waves, replace(config, stages=config.stages[:1], checkpoint_every=99), tmp_path)
    assert off(tmp_path) > 3 * TOLERANCE


def weights_after(out: Path, step: int) -> dict[str, Tensor]:
    path = out / "checkpoints" / f"step-{step:08d}" / "state.pt"
    return torch.load(path, weights_only=True)["weights"]


def part(name: str) -> str:
    if name.startswith(("controlnet.", "controlnet_face.", "image_projection.")):
        return name.partition(".")[0]
    if ".to_q_ref." in name or ".to_out_ref." in name:
        return "adapter"
    return "motion" if ".motion_modules." in name else "backbone"


def test_epsilon_stops_what_has_small_gradients(tmp_path: Path, steps: Callable, new_pipeline: Callable, waves: Any):
    """So large that it stops everything but the weights' decay."""
    before = [weight.detach() for weight in new_pipeline().unet.parameters()]
    moved = []
    for epsilon in (1e-8, 1e6):
        pipeline = new_pipeline()
        fit(pipeline, waves, steps(1, epsilon=epsilon, weight_decay=0.0), tmp_path / str(epsilon))
        moved.append(max(float((a - b).abs().max()) for a, b in zip(before, pipeline.unet.parameters(), strict=True)))
    assert moved[0] > 1e4 * moved[1]


def test_each_stage_changes_its_parts_and_nothing_else(uninterrupted: Path, new_pipeline: Callable) -> None:
    start = Trainee(new_pipeline()).state_dict()
    steps = [start, *(weights_after(uninterrupted, step) for step in range(1, 8))]
    changed = [{part(n) for n in a if not torch.equal(a[n], b[n])} for a, b in pairwise(steps)]
    assert changed[:4] == [{"adapter", "motion", "controlnet"}] * 4
    assert changed[5:] == [{"controlnet_face"}] * 2
    # The first stage's parts take their averages as the second begins, and stay so to the end.
    assert changed[4] == {"adapter", "motion", "controlnet", "controlnet_face"}


def test_the_model_holds_the_averages(uninterrupted: Path, config: Config, new_pipeline: Callable) -> None:
    steps = [weights_after(uninterrupted, step) for step in range(1, 8)]
    expected = dict(Trainee(new_pipeline()).state_dict())
    for first, last, parts in ((0, 4, ("adapter", "motion", "controlnet")), (4, 7, ("controlnet_face",))):
        for name in (name for name in expected if part(name) in parts):
            average = steps[first][name]
            for count, step in enumerate(steps[first + 1 : last], start=1):
                decay = min(config.ema_decay, (1 + count) / (10 + count))
                average = decay * average + (1 - decay) * step[name]
            expected[name] = average
    for net in ("unet", "controlnet", "controlnet_face", "image_projection"):
        (file,) = (uninterrupted / "model" / net).glob("*.safetensors")
        for name, weight in load_file(file).items():
            torch.testing.assert_close(weight, expected[f"{net}.{name}"], rtol=1e-5, atol=1e-6)


def test_two_workers_give_the_same_curve_whatever_the_global_generators_hold(
    tmp_path: Path, uninterrupted: Path, lines: Lines, new_pipeline: Callable, waves: Any, config: Config
) -> None:
    torch.manual_seed(1234)
    np.random.seed(1234)  # noqa: NPY002
    random.seed(1234)
    fit(new_pipeline(), waves, replace(config, workers=2, gradient_checkpointing=True, checkpoint_every=99), tmp_path)
    # PyTorch gives its workers five seconds, then ends them and does not wait.
    assert not [child for child in multiprocessing.active_children() if child.join(60) or child.is_alive()]
    assert lines(tmp_path) == lines(uninterrupted)


def test_a_sampler_sees_the_averages_and_may_fail(
    tmp_path: Path,
    uninterrupted: Path,
    lines: Lines,
    new_pipeline: Callable,
    waves: Any,
    config: Config,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pipeline, seen = new_pipeline(), {}

    def sampler(given: Any, step: int) -> None:
        seen[step] = {name: weight.clone() for name, weight in given.controlnet_face.state_dict().items()}
        assert given is pipeline
        assert not given.unet.training
        if step == 6:
            raise RuntimeError("no codec")

    fit(pipeline, waves, replace(config, sample_every=1), tmp_path, sampler=sampler)
    assert lines(tmp_path) == lines(uninterrupted)
    assert "no sample of step 6; training goes on" in (told := capsys.readouterr().err)
    assert "RuntimeError: no codec" in told
    assert sorted(seen) == [1, 2, 3, 4, 5, 6, 7]
    for name, weight in pipeline.controlnet_face.state_dict().items():
        assert torch.equal(seen[7][name], weight)
    assert any(not torch.equal(w, weights_after(uninterrupted, 7)[f"controlnet_face.{n}"]) for n, w in seen[7].items())


def test_the_rate_rises_and_falls(config: Config) -> None:
    plain = replace(config, learning_rate=2.0)
    assert [learning_rate(plain, step) for step in range(3)] == [2.0, 2.0, 2.0]
    assert [learning_rate(replace(plain, warmup=4), step) for step in range(5)] == [0.5, 1.0, 1.5, 2.0, 2.0]
    cosine = [learning_rate(replace(plain, cosine=True), step) for step in range(8)]
    assert cosine == sorted(cosine, reverse=True)
    assert cosine[0] == 2.0
    assert cosine[7] == pytest.approx(0.04)
