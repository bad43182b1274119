"""Who is seen in a frame, and where: what preparing clips asks of detectors."""

from pathlib import Path
from typing import Protocol

import numpy as np
from xdyna_model.detectors import Person
from xdyna_model.detectors.dwpose import DWPOSE_FILES, DWPoseDetector
from xdyna_model.detectors.mediapipe import MediapipeDetector
from xdyna_model.detectors.person_mask import PersonMask


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
        if dwpose is None:
            self._detector = MediapipeDetector()
        else:
            boxes, pose = (dwpose / name for name in DWPOSE_FILES)
            self._detector = DWPoseDetector(boxes, pose)

    def restart(self) -> None:
        if isinstance(self._detector, MediapipeDetector):
            self._detector.reset()

    def person(self, frame: np.ndarray) -> Person | None:
        return self._detector(frame)

    def mask(self, frame: np.ndarray) -> np.ndarray:
        return self._mask(frame)
