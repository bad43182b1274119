"""What training sees: clips with what is known of them, and the examples drawn from clips."""

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from xdyna_model.detectors import Person

Kind = Literal["human", "scene"]


@dataclass(frozen=True, eq=False)
class Clip:
    """A video, cut and cropped, and what is known of its frames.

    name: unique in its set; names the clip in messages.
    kind: "human", or "scene" where nobody is seen.
    fps: frames per second.
    frames: [F, H, W, 3] uint8 RGB.
    persons: F entries, the joints, hands and face points in pixels; None where nobody is seen.
    masks: [F, H, W] bool, where the person is.
    """

    name: str
    kind: Kind
    fps: float
    frames: np.ndarray
    persons: tuple[Person | None, ...]
    masks: np.ndarray


@dataclass(frozen=True, eq=False)
class Example:
    """One clip as the model is trained on it: a reference picture, and the F frames to be made from it.

    reference: [H, W, 3] uint8 RGB, another moment of the same clip.
    frames, persons, masks: as in `Clip`, F of each.
    face_frames: [F, H, W, 3] uint8 RGB, another identity with the face and head of `frames` (X-Dyna, Section 3.3);
        face maps are cut from these. `face_persons` are the face points in them.
    drift: [2, H, W, 2] float32, how what the scene shows at each pixel drifts, in heights a frame (right, down), and
        what is seen through it; None where nobody knows.
    """

    name: str
    kind: Kind
    reference: np.ndarray
    frames: np.ndarray
    persons: tuple[Person | None, ...]
    masks: np.ndarray
    face_frames: np.ndarray
    face_persons: tuple[Person | None, ...]
    drift: np.ndarray | None = None


class ExampleSource(Protocol):
    """Where examples come from. The same `rng` state gives the same example, whoever asks and in whatever order."""

    def draw(self, kind: Kind, num_frames: int, rng: np.random.Generator) -> Example:
        """An example of `kind` with `num_frames` frames besides the reference."""
        ...
