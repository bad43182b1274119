"""What the loop passes over, and when it stops."""

import errno
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from xdyna_model.errors import InputError
from xdyna_train import engine, train
from xdyna_train.checkpoint import load_latest
from xdyna_train.config import Config
from xdyna_train.fusion import Batch, FusionDataset, Place
from xdyna_train.train import TrainingStopped, fit

sys.path.insert(0, str(Path(__file__).parent))
from test_train import Lines, losses


def planted_at(monkeypatch: pytest.MonkeyPatch, at: Place, plant: Callable[[Batch], None]) -> list[str]:
    real, names = FusionDataset.__getitem__, []

    def planted(data: FusionDataset, place: Place) -> Batch:
        batch = real(data, place)
        if place == at:
            plant(batch)
            names.extend(batch.names)
        return batch

    monkeypatch.setattr(FusionDataset, "__getitem__", planted)
    return names


def test_a_loss_that_is_not_a_number_stops_and_keeps_the_batch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_pipeline: Callable, waves: Any, steps: Callable[..., Config]
) -> None:
    names = planted_at(monkeypatch, Place(0, 1, 2), lambda batch: batch.importance.fill_(torch.nan))
    with pytest.raises(
        TrainingStopped, match=r"^the loss of step 2 is not a number; its clips \(.*\) are saved"
    ) as stop:
        fit(new_pipeline(), waves, steps(3, checkpoint_every=1), tmp_path)
    (saved,) = torch.load(tmp_path / "stopped-at-2-process-0.pt")
    assert saved["names"][2:3] == names
    assert names[0] in str(stop.value)
    assert saved["importance"].isnan().any(dim=(1, 2, 3, 4)).tolist() == [False, False, True, False]
    assert len(losses(tmp_path)) == 1
    found = load_latest(tmp_path / "checkpoints")
    assert found is not None
    assert found[0] == 1


def test_a_gradient_that_is_not_a_number_stops_before_the_weights_take_it(
    tmp_path: Path, new_pipeline: Callable, waves: Any, steps: Callable[..., Config]
) -> None:
    pipeline = new_pipeline()
    weight = pipeline.unet.conv_in.weight
    weight.register_hook(lambda gradient: gradient * torch.nan)
    with pytest.raises(TrainingStopped, match="the gradient of step 1 is not a number"):
        fit(pipeline, waves, steps(2), tmp_path)
    assert weight.isfinite().all()


def test_frozen_weights_that_change_stop_before_a_checkpoint_takes_them(
    tmp_path: Path, new_pipeline: Callable, waves: Any, config: Config
) -> None:
    pipeline = new_pipeline()

    class Slipping:
        """Touches a weight of the VAE with its sixth clip, in step 3."""

        clips = 0

        def draw(self, *arguments: Any) -> Any:
            self.clips += 1
            if self.clips == 6:
                pipeline.vae.encoder.conv_in.weight.data[0, 0, 0, 0] += 1e-3
            return waves.draw(*arguments)

    with pytest.raises(TrainingStopped, match="frozen weights have changed by step 4"):
        fit(pipeline, Slipping(), config, tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step-00000002"]


class Unreadable:
    """Clips that cannot be read, by chance or always."""

    def __init__(self, source: Any, share: float) -> None:
        self._source, self._share = source, share

    def draw(self, kind: Any, num_frames: int, rng: np.random.Generator) -> Any:
        if rng.random() < self._share:
            raise InputError(f"clip-{rng.integers(10**6)}.mp4: cannot be read")
        return self._source.draw(kind, num_frames, rng)


def test_a_folder_where_a_run_is_at_work_is_left_alone(
    tmp_path: Path, at_work: Callable, new_pipeline: Callable, waves: Any, steps: Callable[..., Config]
) -> None:
    """Or two write to one record: a run that is put off and started again may find the first still ending."""
    with at_work(tmp_path):
        with pytest.raises(InputError, match="another run is at work there"):
            fit(new_pipeline(), waves, steps(1), tmp_path, resume=True)
        assert [path.name for path in tmp_path.iterdir()] == [".lock"]
    fit(new_pipeline(), waves, steps(1), tmp_path, resume=True)


def test_a_lock_that_may_not_be_opened_is_not_taken_for_another_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_pipeline: Callable, waves: Any, steps: Callable[..., Config]
) -> None:
    """As in a folder that is read only: whoever waits for a run that is not there waits for ever."""
    real = Path.open

    def opened(path: Path, *arguments: Any, **named: Any) -> Any:
        if path.name == ".lock":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        return real(path, *arguments, **named)

    monkeypatch.setattr(Path, "open", opened)
    with pytest.raises(InputError, match=r"cannot be locked for this run \(permission denied\)$"):
        fit(new_pipeline(), waves, steps(1), tmp_path)


def test_the_processes_of_a_killed_run_do_not_keep_its_folder(
    tmp_path: Path,
    new_pipeline: Callable,
    waves: Any,
    steps: Callable[..., Config],
    start_child: Callable[..., int],
    end_child: Callable[[int], int],
) -> None:
    """A loader's process looks only every five seconds for the one that it works for."""

    def killed(_pipeline: object, _step: int) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    config = steps(2, workers=1, sample_every=1)
    child = start_child(lambda: fit(new_pipeline(), waves, config, tmp_path, sampler=killed))
    assert end_child(child) == -signal.SIGKILL
    fit(new_pipeline(), waves, config, tmp_path, resume=True)
    assert len(losses(tmp_path)) == 2


def test_a_clip_that_cannot_be_read_is_passed_over_and_named(
    tmp_path: Path, new_pipeline: Callable, waves: Any, steps: Callable[..., Config], lines: Lines
) -> None:
    fit(new_pipeline(), Unreadable(waves, 0.4), steps(2), tmp_path)
    told = [reason for line in lines(tmp_path) for reason in line.get("skipped", [])]
    assert told
    assert all(reason.startswith("clip-") and reason.endswith(".mp4: cannot be read") for reason in told)
    assert [line["clips"] for line in lines(tmp_path)] == [4, 4]


@pytest.mark.parametrize("workers", [0, 1])
def test_clips_none_of_which_can_be_read_end_in_one_line(
    workers: int, tmp_path: Path, new_pipeline: Callable, waves: Any, steps: Callable[..., Config]
) -> None:
    before = set(multiprocessing.active_children())
    message = r"^20 clips in a row cannot be read, the last: clip-\d+.mp4: cannot be read$"
    with pytest.raises(InputError, match=message) as raised:
        fit(new_pipeline(), Unreadable(waves, 1.0), steps(1, workers=workers), tmp_path)
    # Though the error is kept, as an interactive session does. PyTorch gives them five seconds, then does not wait.
    assert raised
    assert not [child for child in multiprocessing.active_children() if child not in before and not ended(child)]


def ended(child: multiprocessing.Process) -> bool:
    child.join(60)
    return not child.is_alive()


def test_a_step_that_overflows_is_passed_over_and_the_scale_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_pipeline: Callable, waves: Any, steps: Callable[..., Config]
) -> None:
    """fp16's loss scale, on a CPU, where PyTorch has it too."""
    scalers: list[Any] = []

    def scaled(precision: Any) -> Any:
        accelerator = engine.new_accelerator(precision)
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1e38 if not scalers else 4.0)
        scalers.append(accelerator.scaler)
        return accelerator

    monkeypatch.setattr(train, "new_accelerator", scaled)
    fit(new_pipeline(), waves, steps(2), tmp_path)
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert metrics[0]["grad_norm"] is None
    assert scalers[0].get_scale() < 1e38
    fit(new_pipeline(), waves, steps(2), tmp_path, resume=True)
    assert scalers[1].get_scale() == scalers[0].get_scale()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_fp16_is_refused_without_a_gpu(
    tmp_path: Path, new_pipeline: Callable, waves: Any, steps: Callable[..., Config]
) -> None:
    with pytest.raises(InputError, match="precision fp16 needs a GPU"):
        fit(new_pipeline(), waves, steps(1, precision="fp16"), tmp_path)


def test_a_full_disk_under_the_metrics_is_told_in_one_line(
    tmp_path: Path, new_pipeline: Callable, waves: Any, steps: Callable[..., Config]
) -> None:
    class Filling:
        """Fills the disk as the first clip is drawn."""

        def draw(self, *arguments: Any) -> Any:
            if not (tmp_path / "metrics.jsonl").is_symlink():
                (tmp_path / "metrics.jsonl").symlink_to("/dev/full")
            return waves.draw(*arguments)

    with pytest.raises(InputError, match=r"^[^\n]*metrics.jsonl: cannot be written \(no space left on device\)[^\n]*$"):
        fit(new_pipeline(), Filling(), steps(1), tmp_path)
