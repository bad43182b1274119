"""Scenes are looked at again from close by: who is small in them is found, who is imagined is not."""

import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdyna_model.detectors import Person
from xdyna_model.video import write_video
from xdyna_train.person_finder import PersonFinder, _tiles
from xdyna_train.prepare import prepare
from xdyna_train.prepare_options import PrepareOptions

sys.path.insert(0, str(Path(__file__).parent))
from suit_films import FPS, HEIGHT, OPTIONS, WIDTH, SuitFinder, place, walk


class ShortSighted(SuitFinder):
    """Like BlazePose, it misses whoever is smaller than a third of the longer side of what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.looks: list[tuple[int, int]] = []

    def person(self, frame: np.ndarray) -> Person | None:
        self.looks.append(frame.shape[:2])
        rows = np.flatnonzero(self.mask(frame).any(axis=1))
        return super().person(frame) if len(rows) and np.ptp(rows) >= max(frame.shape[:2]) / 3 else None


class Imaginative(SuitFinder):
    """It sees somebody in whatever is small: a few joints, or a whole person if the light comes from the left."""

    def __init__(self, all_of: bool) -> None:
        super().__init__()
        self.all_of = all_of
        self.tracks = False
        self.imagined = 0

    def restart(self) -> None:
        self.tracks = False

    def person(self, frame: np.ndarray) -> Person | None:
        assert not self.tracks, "looks where somebody was in another picture"
        left, right = np.array_split(frame.mean(axis=(0, 2)), 2)
        if max(frame.shape[:2]) > HEIGHT / 2 or (self.all_of and left.mean() <= right.mean()):
            return None
        self.tracks = True
        self.imagined += 1
        body = np.zeros((14, 3), np.float32)
        body[: 14 if self.all_of else 5, 2] = 1
        return Person(body, np.zeros((2, 21, 3), np.float32), np.zeros((68, 3), np.float32))


def look_through(folder: Path, frames: np.ndarray, finder: PersonFinder, **more: float) -> dict[str, int]:
    """Returns how many pieces of a video became what."""
    write_video(folder / "film.mp4", frames, FPS, crf=8)
    (folder / "list.txt").write_text("film.mp4")
    options = PrepareOptions(**{**vars(OPTIONS), **more})
    report = prepare(folder / "list.txt", folder / "set", options, workers=0, make_finder=lambda _: finder)
    return {"human": report.humans, "scene": report.scenes, **report.dropped}


# The middle window is 72 of 240 pixels wide, from 84 on. The suits are 28 % of it high, or stay just below a third of
# the frame's longer side.
@pytest.mark.parametrize("height", [40, 75])
def test_somebody_small_is_no_scene(tmp_path: Path, height: int) -> None:
    frames = walk(place("grass", 12), 100, 1, height)
    assert look_through(tmp_path, frames, ShortSighted()) == {"human": 0, "scene": 0, "unclear": 1}
    assert "somebody small is seen from close by, as in frame 3" in (tmp_path / "set" / "dropped.jsonl").read_text()


def test_somebody_small_who_comes_late_is_no_scene(tmp_path: Path) -> None:
    grass = place("grass", 16)
    frames = np.concatenate([grass[:10], walk(grass[10:], 100, 1, 40)])
    assert look_through(tmp_path, frames, ShortSighted()) == {"human": 0, "scene": 0, "unclear": 1}
    assert "as in frame 12" in (tmp_path / "set" / "dropped.jsonl").read_text()


def test_somebody_small_outside_the_clip_does_not_matter(tmp_path: Path) -> None:
    frames = walk(place("grass", 12), 10, 1, 40)
    assert look_through(tmp_path, frames, ShortSighted()) == {"human": 0, "scene": 1}


@pytest.mark.parametrize("all_of", [False, True])
def test_somebody_imagined_in_a_part_of_a_scene_is_nobody(tmp_path: Path, all_of: bool) -> None:
    finder = Imaginative(all_of)
    assert look_through(tmp_path, place("grass", 12), finder) == {"human": 0, "scene": 1}
    assert finder.imagined > 0


@pytest.mark.parametrize(("num_frames", "looks"), [(8, 1), (9, 2), (40, 5), (200, 8)])
def test_closer_looks_are_few(tmp_path: Path, num_frames: int, looks: int) -> None:
    """One a second, at most eight; each at the window and its tiles."""
    finder = ShortSighted()
    frames = np.resize(place("ocean", 8), (num_frames, HEIGHT, WIDTH, 3))
    assert look_through(tmp_path, frames, finder, max_seconds=60) == {"human": 0, "scene": 1}
    window = 144, 72
    closer = [shape for shape in finder.looks if shape != (HEIGHT, WIDTH)]
    assert closer == [window, *[(72, 72)] * 3] * looks


@given(st.integers(64, 200), st.integers(64, 200), st.data())
@settings(max_examples=50, deadline=None)
def test_whoever_fills_a_quarter_is_whole_in_some_tile(height: int, width: int, data: st.DataObject) -> None:
    side = max(height, width) // 4
    top, left = data.draw(st.integers(0, height - side)), data.draw(st.integers(0, width - side))
    picture = np.zeros((height, width), bool)
    picture[top : top + side, left : left + side] = True
    tiles = list(_tiles(picture))
    assert len(tiles) <= 9
    assert max(tile.sum() for tile in tiles) == side**2
    assert max(max(tile.shape) for tile in tiles) <= -(-max(height, width) // 2)
