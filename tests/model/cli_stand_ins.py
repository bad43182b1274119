"""`xdyna` on the command line without its model and its detector: what stands in for them, and what a run comes to."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from xdyna_model import cli
from xdyna_model.detectors import Person
from xdyna_model.sampling import released_scheduler

FRAMES = 10
GIVEN = ("--reference", "photo.png", "--driving", "dance.mp4")


class Pipeline:
    """Stands in for the model: mixes what it is given with a little noise, and keeps the arguments."""

    default_height, default_width = 128, 64
    default_steps, default_guidance = 25, 7.5
    scheduler = released_scheduler()
    fault: BaseException | None = None

    def __call__(self, photo, conditions, *, num_inference_steps, generator, callback_on_step_end, **options):
        self.photo, self.conditions, self.options = photo, conditions, options | {"steps": num_inference_steps}
        for step in range(num_inference_steps):
            callback_on_step_end(self, step, 0, {})
        if self.fault is not None:
            raise self.fault
        noise = torch.rand(conditions.pose.shape, generator=generator)
        return ((torch.from_numpy(conditions.pose)[None] / 255 + noise) / 2,)

    def iter_decoded(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """[1, F, H, W, 3] to [3, H, W] each."""
        return iter(latents[0].permute(0, 3, 1, 2))


class Detector:
    """Stands in for mediapipe: somebody stands in the middle, except in the frames that are named."""

    absent: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.seen = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __call__(self, frame: np.ndarray) -> Person | None:
        self.seen += 1
        if self.seen - 1 in self.absent:
            return None
        height, width = frame.shape[:2]
        assert min(height, width) >= 512
        body = np.stack([np.full(14, width / 2), np.linspace(0.1, 0.9, 14) * height, np.ones(14)], -1)
        return Person(body.astype(np.float32), np.zeros((2, 21, 3), np.float32), np.zeros((68, 3), np.float32))


def run(*options: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["animate", *options])
    return int(ended.value.code or 0)


def listing() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The one line that says what was wrong."""
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("xdyna: error: ")
    assert error.count("\n") == 1
    return error
