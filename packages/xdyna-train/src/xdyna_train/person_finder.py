"""Who is seen in a frame, and where: what preparing clips asks of detectors."""

from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from xdyna_model.detectors import Person
from xdyna_model.detectors.dwpose import DWPoseDetector, dwpose_files
from xdyna_model.detectors.mediapipe import MediapipeDetector
from xdyna_model.detectors.person_mask import PersonMask
from xdyna_model.pose_map import MIN_CONFIDENCE

# So many of the fourteen joints make a whole person: all of them down to the hips, or as many others.
_WHOLE = 10


class PersonFinder(Protocol):
    """A detector with masks, which serves one video after another."""

    def restart(self) -> None:
        """Forget the frames so far: what comes next is another scene. The same frames then give the same answers."""
        ...

    def person(self, frame: np.ndarray) -> Person | None:
        """frame: [H, W, 3] uint8 RGB. Returns None where nobody is seen."""
        ...

    def mask(self, frame: np.ndarray) -> np.ndarray:
        """frame: [H, W, 3] uint8 RGB. Returns [H, W] bool, where the person is."""
        ...


class EmbeddedFinder:
    """MediaPipe's models, whose weights its package carries; or DWPose for the points, where its files are given.

    dwpose: a folder with the two ONNX files. Raises InputError where a package or a file is missing.
    """

    def __init__(self, dwpose: Path | None = None) -> None:
        self._mask = PersonMask()
        self._detector = MediapipeDetector() if dwpose is None else DWPoseDetector(*dwpose_files(dwpose))

    def restart(self) -> None:
        if isinstance(self._detector, MediapipeDetector):
            self._detector.reset()

    def person(self, frame: np.ndarray) -> Person | None:
        return self._detector(frame)

    def mask(self, frame: np.ndarray) -> np.ndarray:
        return self._mask(frame)


def is_whole(person: Person | None) -> bool:
    """Whether enough of a person is seen to be cropped to."""
    return person is not None and int((person.body[:, 2] >= MIN_CONFIDENCE).sum()) >= _WHOLE


def shows_somebody(finder: PersonFinder, picture: np.ndarray) -> bool:
    """Whether all of somebody is seen in a picture or in one of its tiles, and in its mirror image as well.

    BlazePose misses people below a third of the longer side of what it is shown. Of 16 dancers pasted into places, this
    finds all down to 18 % of the picture's height and 12 at 14 %, where the picture alone shows 4 and 1.

    picture: [H, W, 3] uint8 RGB. finder: one that was restarted; it is left like one.
    """
    return any(_sees_all(finder, part) for part in (picture, *_tiles(picture)))


def _sees_all(finder: PersonFinder, part: np.ndarray) -> bool:
    # Of 56 cuts of photos of empty places, BlazePose imagines somebody in 15, all of them in 5, in the mirror too in 2.
    for view in (part, np.ascontiguousarray(part[:, ::-1])):
        person = finder.person(view)
        if person is not None:  # else there is nobody to forget: a restart takes MediaPipe ten times as long as a look
            finder.restart()
        if not is_whole(person):
            return False
    return True


def _tiles(picture: np.ndarray) -> Iterator[np.ndarray]:
    """At most nine squares, or what of them there is, of half the longer side, that overlap by half."""
    side = -(-max(picture.shape[:2]) // 2)
    for top in _starts(picture.shape[0], side):
        for left in _starts(picture.shape[1], side):
            yield np.ascontiguousarray(picture[top : top + side, left : left + side])


def _starts(length: int, side: int) -> list[int]:
    """Where stretches of `side` begin that cover `length`, evenly and overlapping by half or more."""
    if length <= side:
        return [0]
    steps = -(-2 * (length - side) // side)
    return [(length - side) * step // steps for step in range(steps + 1)]
