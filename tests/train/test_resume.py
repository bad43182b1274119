"""A run that is ended anywhere, in any way, goes on as if it had not been."""

import os
import random
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from xdyna_model.errors import InputError
from xdyna_model.pipeline import XDynaPipeline
from xdyna_train.checkpoint import load_latest
from xdyna_train.config import Config
from xdyna_train.train import TrainingStopped, fit

Lines = Callable[[Path], list[dict[str, Any]]]
KILLS, KILLED = 20, -signal.SIGKILL


def same_end(out: Path, other: Path, lines: Lines) -> None:
    """Losses, weights, averages and the optimiser's state, number for number and bit for bit."""
    assert lines(out) == lines(other)
    ours, theirs = load_latest(out / "checkpoints"), load_latest(other / "checkpoints")
    assert ours is not None
    assert theirs is not None
    assert ours[0] == theirs[0]
    for part in ("weights", "ema", "optimizer"):
        torch.testing.assert_close(ours[1][part], theirs[1][part], rtol=0, atol=0)
    for file in sorted((other / "model").rglob("*.safetensors")):
        assert (out / "model" / file.relative_to(other / "model")).read_bytes() == file.read_bytes()


def test_a_run_that_is_asked_to_end_leaves_its_last_step(
    tmp_path: Path, config: Config, new_pipeline: Callable, waves: Any, lines: Lines, uninterrupted: Path
) -> None:
    """As a scheduler asks, in the middle of a stage and between two checkpoints; and it goes on where it ended."""

    def ask(_pipeline: XDynaPipeline, step: int) -> None:
        if step == 1:
            os.kill(os.getpid(), signal.SIGTERM)

    asked = replace(config, checkpoint_every=99, sample_every=1)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(TrainingStopped, match="ended by SIGTERM after step 2; go on with --resume auto"):
        fit(new_pipeline(), waves, asked, tmp_path, sampler=ask)
    assert signal.getsignal(signal.SIGTERM) == before
    found = load_latest(tmp_path / "checkpoints")
    assert found is not None
    assert found[0] == 2
    fit(new_pipeline(), waves, replace(asked, sample_every=config.sample_every), tmp_path, resume=True)
    same_end(tmp_path, uninterrupted, lines)


def kill_at(moment: int, out: Path) -> None:
    """Kills this process, without warning, the nth time it makes, opens, flushes, renames or removes a file."""
    left = moment

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        of_the_run = event in ("open", "os.mkdir", "os.rename", "os.scandir") and str(arguments[0]).startswith(str(out))
        if of_the_run or event in ("os.remove", "os.rmdir"):
            count()

    real = os.fsync

    def fsync(file: int) -> None:
        count()
        real(file)

    os.fsync = fsync
    sys.addaudithook(audit)


def test_killed_at_twenty_random_points(
    tmp_path: Path,
    uninterrupted: Path,
    lines: Lines,
    waves: Any,
    config: Config,
    new_pipeline: Callable[[], XDynaPipeline],
    start_child: Callable[..., int],
    end_child: Callable[[int], int],
) -> None:
    pipeline, moments, kills, runs = new_pipeline(), random.Random(0), 0, 0
    while kills < KILLS:
        out, status = tmp_path / str(runs), KILLED

        def life(moment: int, out: Path = out) -> None:
            torch.manual_seed(os.getpid())  # nothing may depend on it
            kill_at(moment, out)
            fit(pipeline, waves, config, out, resume=True)

        while status == KILLED:
            moment = moments.randint(1, 45) if kills < KILLS else 0
            status = end_child(start_child(partial(life, moment)))
            kills += status == KILLED
        assert status == 0
        same_end(out, uninterrupted, lines)
        runs += 1


def test_killed_from_outside(
    tmp_path: Path,
    uninterrupted: Path,
    lines: Lines,
    waves: Any,
    config: Config,
    new_pipeline: Callable[[], XDynaPipeline],
    start_child: Callable[..., int],
    end_child: Callable[[int], int],
) -> None:
    pipeline = new_pipeline()
    for seed in range(3):
        child = start_child(lambda: fit(pipeline, waves, config, tmp_path, resume=True))
        time.sleep(random.Random(seed).uniform(0, 2))
        os.kill(child, signal.SIGKILL)
        assert end_child(child) in (KILLED, 0)
    fit(pipeline, waves, config, tmp_path, resume=True)
    same_end(tmp_path, uninterrupted, lines)


class Interrupted:
    """Ctrl-C at the nth clip."""

    def __init__(self, source: Any, clips: int) -> None:
        self._source, self._left = source, clips

    def draw(self, *arguments: Any) -> Any:
        self._left -= 1
        if self._left < 0:
            raise KeyboardInterrupt
        return self._source.draw(*arguments)


@pytest.fixture(scope="module")
def halved(
    tmp_path_factory: pytest.TempPathFactory, waves: Any, config: Config, new_pipeline: Callable[[], XDynaPipeline]
) -> Path:
    """A run ended by Ctrl-C in step 6, one step after its last checkpoint, the first of stage 2."""
    out = tmp_path_factory.mktemp("halved")
    with pytest.raises(KeyboardInterrupt):
        fit(new_pipeline(), Interrupted(waves, 13), replace(config, checkpoint_every=5), out)
    return out


@pytest.fixture
def half(halved: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    shutil.copytree(halved, tmp_path / "half")
    return tmp_path / "half"


def test_ctrl_c_in_the_middle_of_the_second_stage(
    half: Path, uninterrupted: Path, lines: Lines, waves: Any, config: Config, new_pipeline: Callable
) -> None:
    assert [line["step"] for line in lines(half)] == [1, 2, 3, 4, 5, 6]
    with (half / "metrics.jsonl").open("a") as file:
        file.write('{"step": 7, "lo')
    fit(new_pipeline(), waves, config, half, resume=True)
    same_end(half, uninterrupted, lines)
    board = EventAccumulator(str(half / "tensorboard")).Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4, 5, 6, 7]


def test_a_damaged_last_checkpoint_falls_back_exactly_to_the_end_of_the_stage(
    half: Path,
    uninterrupted: Path,
    lines: Lines,
    waves: Any,
    config: Config,
    new_pipeline: Callable,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert [path.name for path in sorted((half / "checkpoints").iterdir())] == ["step-00000004", "step-00000005"]
    (half / "checkpoints" / "step-00000005" / "seal.json").write_text("")
    fit(new_pipeline(), waves, config, half, resume=True)
    assert "passed over as damaged: " in (told := capsys.readouterr().err)
    assert "step-00000005" in told
    same_end(half, uninterrupted, lines)


def test_other_numbers_or_another_seed_are_refused(
    half: Path, waves: Any, config: Config, new_pipeline: Callable
) -> None:
    with pytest.raises(InputError, match="was trained with another learning_rate"):
        fit(new_pipeline(), waves, replace(config, learning_rate=1e-4), half, resume=True)
    with pytest.raises(InputError, match="was trained with another seed"):
        fit(new_pipeline(), waves, config, half, seed=1, resume=True)


def test_a_run_begun_from_another_model_is_refused(
    half: Path, waves: Any, config: Config, new_pipeline: Callable
) -> None:
    """What is not trained is not in the checkpoint: --init, or another Stable Diffusion, was forgotten."""
    pipeline = new_pipeline()
    next(pipeline.vae.parameters()).data.add_(1e-3)
    with pytest.raises(InputError, match="was begun from another model"):
        fit(pipeline, waves, config, half, resume=True)


def test_a_run_of_a_model_with_other_weights_is_refused(
    half: Path, waves: Any, config: Config, new_pipeline: Callable
) -> None:
    """As a later version's model may have."""
    pipeline = new_pipeline()
    pipeline.unet.more = torch.nn.Linear(1, 1)
    with pytest.raises(InputError, match="its model has other weights"):
        fit(pipeline, waves, config, half, resume=True)


def test_a_folder_with_a_run_is_refused_where_it_is_not_to_be_resumed(
    half: Path, waves: Any, config: Config, new_pipeline: Callable
) -> None:
    before = (half / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="holds a training run; resume it"):
        fit(new_pipeline(), waves, config, half)
    assert (half / "metrics.jsonl").read_bytes() == before


def test_a_finished_run_that_is_resumed_is_left_as_it_was(
    tmp_path: Path, uninterrupted: Path, lines: Lines, waves: Any, config: Config, new_pipeline: Callable
) -> None:
    shutil.copytree(uninterrupted, tmp_path / "done")
    (tmp_path / "done" / "model" / "unet" / "diffusion_pytorch_model.safetensors").write_bytes(b"")
    fit(new_pipeline(), waves, config, tmp_path / "done", resume=True)
    same_end(tmp_path / "done", uninterrupted, lines)
