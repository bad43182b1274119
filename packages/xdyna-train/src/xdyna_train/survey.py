"""Looking through a video once, a frame at a time: where it cuts, who is seen now and then, and how it looks.

From that it is decided what becomes of each piece, before the costly work on every frame.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
from xdyna_model.detectors import Person
from xdyna_model.errors import InputError
from xdyna_model.images import MIN_SIDE
from xdyna_model.video import frame_rate, iter_frames

from xdyna_train.clips import Kind
from xdyna_train.cropping import Window, body_box, middle_window, track_window
from xdyna_train.person_finder import PersonFinder, is_whole
from xdyna_train.prepare_options import Dropped, PrepareOptions, Reason, VideoRefused
from xdyna_train.quality import QualityModel
from xdyna_train.scene_cuts import distance, find_cuts, signature

_LOOKS_PER_SECOND = 2
# Closer looks at a scene: one a second, but no more than these, of some seven pictures each. They cost about what the
# looks at all of half a minute cost.
_CLOSE_LOOKS = 8
# Signatures further apart than this may well show two scenes: the detector is not to look for who was in the first.
_ELSEWHERE = 0.15
# Of a frame: so far from a whole number, seconds times frames a second are a whole number that floats have missed.
_MISSED = 1e-6


@dataclass(frozen=True, eq=False)
class Survey:
    """fps: frames per second. size: (height, width) of the frames in pixels. signatures: [F, 384].
    people: who is seen, of some frames. quality: the score, of some frames.
    """

    video: str
    fps: float
    size: tuple[int, int]
    signatures: np.ndarray
    people: dict[int, Person | None]
    quality: dict[int, float]


@dataclass(frozen=True)
class Piece:
    """A clip to be: the frames from `first` to before `last`, and what of them it shows.

    close_looks: of what may be a scene, the frames that must show nobody in a closer look (`shows_somebody`).
    """

    first: int
    last: int
    kind: Kind
    window: Window
    quality: float
    close_looks: tuple[int, ...]


def survey(video: str, path: Path, options: PrepareOptions, finder: PersonFinder, quality: QualityModel) -> Survey:
    """Raises VideoRefused: no video that can be read to its end, frames of several sizes, or below `MIN_SIDE`."""
    fps = read_rate(path)
    look_every = max(1, int(fps / _LOOKS_PER_SECOND))
    score_every = max(1, int(fps * min(1.0, options.min_seconds)))
    signatures: list[np.ndarray] = []
    people: dict[int, Person | None] = {}
    scores: dict[int, float] = {}
    size = (0, 0)
    for index, frame in enumerate(read(path)):
        if index > 0 and frame.shape[:2] != size:
            raise VideoRefused("unreadable", f"changes its size after {index} frames; re-encode it")
        size = frame.shape[:2]
        if min(size) < MIN_SIDE:
            raise VideoRefused("too small", f"{size[1]}x{size[0]} pixels")
        signatures.append(signature(frame))
        if index % look_every == 0:
            if index == 0 or distance(signatures[index], signatures[index - look_every]) > _ELSEWHERE:
                finder.restart()
            people[index] = finder.person(frame)
        if index % score_every == 0:
            scores[index] = quality(frame)
    return Survey(video, fps, size, np.stack(signatures), people, scores)


def read(path: Path) -> Iterator[np.ndarray]:
    """`iter_frames`, with its errors as VideoRefused."""
    try:
        yield from iter_frames(path)
    except InputError as error:
        raise VideoRefused("unreadable", str(error).removeprefix(f"{path}: ")) from error


def read_rate(path: Path) -> float:
    """`frame_rate`, with its errors as VideoRefused."""
    try:
        return frame_rate(path)
    except InputError as error:
        raise VideoRefused("unreadable", str(error).removeprefix(f"{path}: ")) from error


def judge(survey: Survey, options: PrepareOptions) -> Iterator[Piece | Dropped]:
    """What becomes of each piece of a video, in order."""
    num_frames = len(survey.signatures)
    # One more than there are is enough, and too large a float is no int.
    least = math.ceil(min(options.min_seconds * survey.fps, num_frames + 1) - _MISSED)
    longest = max(math.floor(min(options.max_seconds * survey.fps, num_frames + 1) + _MISSED), least)
    bounds = [0, *find_cuts(survey.signatures, survey.fps), num_frames]
    for start, end in pairwise(bounds):
        for first, last in pairwise(_edges(start, end, least, longest)):
            yield _judge(survey, first, last, least, options)


def _edges(start: int, end: int, least: int, longest: int) -> list[int]:
    """Where a scene is cut so that most of it is in clips of `least` to `longest` frames: into equal parts; where
    these would be too short, into the longest, and what is left over is too short for one more."""
    parts = math.ceil((end - start) / longest)
    if (end - start) // parts < least:
        return [*range(start, end, longest), end]
    return [start + (end - start) * part // parts for part in range(parts + 1)]


def _judge(survey: Survey, first: int, last: int, least: int, options: PrepareOptions) -> Piece | Dropped:
    def drop(reason: Reason, detail: str) -> Dropped:
        return Dropped(survey.video, first, last, reason, detail)

    if last - first < least:
        return drop("too short", f"{(last - first) / survey.fps:.2f} seconds")
    quality = float(np.mean([score for index, score in survey.quality.items() if first <= index < last]))
    if quality < options.min_quality:
        return drop("low quality", f"a score of {quality:.3f}")
    people = [person for index, person in survey.people.items() if first <= index < last]
    whole = [person for person in people if is_whole(person)]
    whole_rate, any_rate = len(whole) / len(people), sum(person is not None for person in people) / len(people)
    size = options.height, options.width
    if any_rate <= options.scene_rate:
        kind, window = "scene", middle_window(survey.size, size)
    elif whole_rate >= options.human_rate:
        boxes = [body_box(person) for person in whole if person is not None]
        kind, window = "human", track_window(boxes, survey.size, size)
        fitting = np.mean([window.holds(box) for box in boxes])
        if fitting < options.human_rate:
            return drop("does not fit", f"the largest window holds the person {100 * fitting:.0f} % of the time")
    else:
        return drop(
            "unclear", f"of {len(people)} looks, {100 * any_rate:.0f} % show somebody, {100 * whole_rate:.0f} % all of"
        )
    enlargement = options.height / window.height
    if enlargement > options.max_enlargement:
        return drop("too small", f"{window.width}x{window.height} pixels, to be enlarged {enlargement:.1f} times")
    looks = _close_looks(first, last, survey.fps) if kind == "scene" else ()
    return Piece(first, last, kind, window, quality, looks)


def _close_looks(first: int, last: int, fps: float) -> tuple[int, ...]:
    """The middles of equal parts of a piece."""
    length = last - first
    count = min(_CLOSE_LOOKS, math.ceil(length / fps))
    return tuple(first + (2 * look + 1) * length // (2 * count) for look in range(count))
