"""What is seen of a person in a frame, and the protocol that every detector follows."""

from dataclasses import dataclass
from typing import Protocol

import numpy as np

_DETECTION_SIDE = 512  # pixels

# Order of `Person.body`: the first fourteen keypoints of OpenPose's eighteen. "right" is the person's own right.
BODY = (
    "nose",
    "neck",
    "right_shoulder",
    "right_elbow",
    "right_wrist",
    "left_shoulder",
    "left_elbow",
    "left_wrist",
    "right_hip",
    "right_knee",
    "right_ankle",
    "left_hip",
    "left_knee",
    "left_ankle",
)


@dataclass(frozen=True)
class Person:
    """One person in one frame. Points are rows of (x, y, confidence): pixels from the left and the top of the
    frame (they may lie outside it), confidence in [0, 1]; a point that was not found has confidence 0.

    body: [14, 3] float32 in the order of `BODY`.
    hands: [2, 21, 3] float32, left hand then right, each wrist, thumb, index, middle, ring, little (OpenPose's order).
    face: [68, 3] float32 in the order of iBUG 68 (jaw 0-16, brows 17-26, nose 27-35, eyes 36-47, mouth 48-67),
        all of confidence 0 where no face was found.
    """

    body: np.ndarray
    hands: np.ndarray
    face: np.ndarray

    def scaled(self, factor: float) -> "Person":
        """The person as in a frame whose sides are `factor` times as long."""
        by = np.array([factor, factor, 1], np.float32)  # x, y, confidence
        return Person(self.body * by, self.hands * by, self.face * by)


def detection_scale(height: int, width: int) -> int:
    """How many times as large as height x width a frame should be for a detector to see it: the shorter side has 512
    pixels at least then. At the nano model's size detectors find no faces."""
    return -(-_DETECTION_SIDE // min(height, width))


class Detector(Protocol):
    """Finds the main person of a frame. Frames of one video come in order, so a detector may track."""

    def __call__(self, frame: np.ndarray) -> Person | None:
        """frame: [H, W, 3] uint8 RGB. Returns None where nobody is seen."""
        ...
