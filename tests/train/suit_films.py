"""Videos of people in suits of one colour, whoever finds these, and a data set made of them in no time."""

from pathlib import Path

import numpy as np
from xdyna_model.detectors import Person
from xdyna_model.video import write_video
from xdyna_train.prepare import prepare
from xdyna_train.prepare_options import PrepareOptions
from xdyna_train.puppets import sample_clip

OPTIONS = PrepareOptions(height=128, width=64, max_enlargement=4.0, max_seconds=2.0, min_quality=0.1)
FPS = 8
HEIGHT, WIDTH = 144, 240
SUIT = np.array((255, 0, 255))


class SuitFinder:
    """Finds whoever wears a suit of pure magenta: fourteen joints on the sides of the suit, and the suit as mask."""

    def __init__(self) -> None:
        self.frames = 0

    def restart(self) -> None:
        self.frames = 0

    def person(self, frame: np.ndarray) -> Person | None:
        self.frames += 1
        rows, columns = np.nonzero(self.mask(frame))
        if len(rows) < 30:
            return None
        body = np.ones((14, 3), np.float32)
        body[:, 0] = np.linspace(columns.min(), columns.max(), 14)
        body[:, 1] = np.linspace(rows.min(), rows.max(), 14)
        return Person(body, np.zeros((2, 21, 3), np.float32), np.zeros((68, 3), np.float32))

    def mask(self, frame: np.ndarray) -> np.ndarray:
        return np.abs(frame.astype(int) - SUIT).max(-1) < 90


def make_finder(options: PrepareOptions) -> SuitFinder:
    return SuitFinder()


def run(source: Path, out: Path, options: PrepareOptions = OPTIONS, **more):
    return prepare(source, out, options, workers=0, clips_per_shard=2, make_finder=make_finder, **more)


def place(kind: str, num_frames: int, seed: int = 1) -> np.ndarray:
    frames = sample_clip(np.random.default_rng(seed), num_frames, HEIGHT, WIDTH, kind, people=False)
    return np.stack([frame.rgb for frame in frames])


def walk(frames: np.ndarray, start: float, step: float, height: int = 80) -> np.ndarray:
    """Somebody in a suit walks through, its left side from `start` on, `step` pixels a frame."""
    walked = frames.copy()
    for index, frame in enumerate(walked):
        left = round(start + step * index)
        frame[40 : 40 + height, left : left + height // 3] = SUIT
    return walked


def film(folder: Path) -> None:
    """Videos of every fate, two that cannot be read, and a file that is none."""
    (folder / "deep").mkdir()
    grass, ocean = place("grass", 12), place("ocean", 40)
    films = {
        "deep/cut.mp4": [*walk(grass, 60, 1), *place("room", 5), *place("stars", 12)],  # a human, too short, a scene
        "long.mp4": ocean,  # three pieces
        "comes-late.mp4": [*grass[:6], *walk(grass[6:], 60, 1)],
        "far-away.mp4": walk(grass, 60, 0, height=18),
        "runs-off.mp4": walk(grass, 10, 18),
        "blurred.mp4": [np.full_like(grass[0], 90)] * 10,
    }
    for name, frames in films.items():
        write_video(folder / name, frames, FPS, crf=8)
    whole = (folder / "long.mp4").read_bytes()
    (folder / "cut-off.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mkv").write_text("no video")
    (folder / "notes.txt").write_text("not even called one")
