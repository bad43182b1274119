"""Two processes do what one does, started as torchrun starts them: on this machine, over gloo."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from xdyna_model.errors import InputError
from xdyna_train.config import Config
from xdyna_train.fusion import Batch, FusionDataset, Place
from xdyna_train.train import TrainingStopped, check, fit

Steps = Callable[..., Config]


def test_accumulation_is_one_big_batch(
    tmp_path: Path, alone: Path, same_curve: Callable, new_pipeline: Callable, waves: Any, steps: Steps
) -> None:
    fit(new_pipeline(), waves, steps(4, learning_rate=1e-4, accumulate=2), tmp_path)
    same_curve(tmp_path, alone)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_processes_are_one(
    accumulate: int,
    tmp_path: Path,
    alone: Path,
    same_curve: Callable,
    run_two: Callable,
    new_pipeline: Callable,
    waves: Any,
    steps: Steps,
) -> None:
    config = steps(4, learning_rate=1e-4, accumulate=accumulate)
    assert run_two(lambda: fit(new_pipeline(), waves, config, tmp_path / "run")) == [0, 0]
    same_curve(tmp_path / "run", alone)


def test_two_processes_go_through_stages_and_are_resumed(
    tmp_path: Path,
    uninterrupted: Path,
    lines: Callable,
    run_two: Callable,
    new_pipeline: Callable,
    waves: Any,
    config: Config,
) -> None:
    def whole() -> None:
        fit(new_pipeline(), waves, replace(config, checkpoint_every=5), tmp_path / "run")

    def resumed() -> None:
        fit(new_pipeline(), waves, config, tmp_path / "run", resume=True)

    assert run_two(whole) == [0, 0]
    before = lines(tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000007")
    assert run_two(resumed) == [0, 0]
    assert lines(tmp_path / "run") == before
    assert [line["loss"] for line in before] == pytest.approx([x["loss"] for x in lines(uninterrupted)], abs=1e-5)


def test_a_loss_that_is_not_a_number_stops_both(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    run_two: Callable,
    new_pipeline: Callable,
    waves: Any,
    steps: Steps,
) -> None:
    real = FusionDataset.__getitem__

    def planted(self: FusionDataset, place: Place) -> Batch:
        batch = real(self, place)
        if place == Place(0, 1, 3):  # of the second process
            batch.importance[:] = torch.nan
        return batch

    monkeypatch.setattr(FusionDataset, "__getitem__", planted)

    def stopped() -> None:
        with pytest.raises(TrainingStopped, match="the loss of step 2 is not a number"):
            fit(new_pipeline(), waves, steps(3), tmp_path / "run")

    assert run_two(stopped) == [0, 0]
    saved = [torch.load(tmp_path / "run" / f"stopped-at-2-process-{rank}.pt") for rank in range(2)]
    assert [bool(torch.cat([b["importance"] for b in batches]).isnan().any()) for batches in saved] == [False, True]


def test_clips_skipped_by_the_second_process_are_told(
    tmp_path: Path, lines: Callable, run_two: Callable, new_pipeline: Callable, waves: Any, steps: Steps
) -> None:
    class Broken:
        """Two clips of three cannot be read, by chance."""

        def draw(self, kind: Any, num_frames: int, rng: Any) -> Any:
            if rng.random() < 2 / 3:
                raise InputError(f"clip {rng.integers(10**9)} is broken")
            return waves.draw(kind, num_frames, rng)

    fit(new_pipeline(), Broken(), steps(2), tmp_path / "one")
    assert run_two(lambda: fit(new_pipeline(), Broken(), steps(2), tmp_path / "two")) == [0, 0]
    one, two = ([sorted(line.get("skipped", [])) for line in lines(tmp_path / name)] for name in ("one", "two"))
    assert one == two
    assert sum(map(len, one)) > 3


def test_a_batch_that_cannot_be_shared_is_refused(steps: Steps) -> None:
    with pytest.raises(InputError, match="a batch of 4 clips cannot be shared by 3 processes in 1 parts each"):
        check(steps(1), processes=3)
