"""The part of the frame that a clip shows: one steady window around the person's track, or the middle of a scene.

DisCo (Wang et al. 2023) crops its dancers to the whole body and scales them to 256 pixels; so is it done here, larger.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from xdyna_model.detectors import Person
from xdyna_model.images import fit
from xdyna_model.pose_map import MIN_CONFIDENCE

# Room around the joints, in heights of their box: the crown is above the nose, the toes below the ankles.
_ABOVE, _BELOW, _BESIDE = 0.15, 0.10, 0.10
# Joints that are once mistaken must not move the window: this share of the boxes may reach out of it at each side.
_OUTLIERS = 0.02


@dataclass(frozen=True)
class Window:
    """A part of a frame, in whole pixels; right and bottom lie outside it."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def height(self) -> int:
        return self.bottom - self.top

    @property
    def width(self) -> int:
        return self.right - self.left

    def holds(self, box: np.ndarray) -> bool:
        """box: [4] left, top, right, bottom."""
        inside = box[:2] >= (self.left, self.top), box[2:] <= (self.right, self.bottom)
        return bool(np.all(inside))


def body_box(person: Person) -> np.ndarray:
    """[4] float64: left, top, right, bottom around the joints that were found. Raises ValueError where none was."""
    joints = person.body[person.body[:, 2] >= MIN_CONFIDENCE, :2].astype(np.float64)
    return np.concatenate([joints.min(0), joints.max(0)])


def track_window(boxes: Sequence[np.ndarray], frame: tuple[int, int], size: tuple[int, int]) -> Window:
    """The least window with the ratio of `size` around a track, or the largest that the frame has room for.

    boxes: the person's `body_box` in one frame or more. frame, size: (height, width) in pixels.
    """
    low, high = np.quantile(boxes, [_OUTLIERS, 1 - _OUTLIERS], axis=0)  # [4] each
    left, top, right, bottom = *low[:2], *high[2:]
    length = bottom - top
    left, right = left - _BESIDE * length, right + _BESIDE * length
    top, bottom = top - _ABOVE * length, bottom + _BELOW * length
    ratio = size[1] / size[0]
    height = max(bottom - top, (right - left) / ratio, 2.0)
    return _window(((left + right) / 2, (top + bottom) / 2), height, ratio, frame)


def middle_window(frame: tuple[int, int], size: tuple[int, int]) -> Window:
    """The largest window with the ratio of `size` in the middle of the frame; both (height, width) in pixels."""
    return _window((frame[1] / 2, frame[0] / 2), float(frame[0]), size[1] / size[0], frame)


def cut_out(frame: np.ndarray, window: Window, height: int, width: int) -> np.ndarray:
    """frame: [H, W, 3] uint8. Returns the window of it, scaled: [height, width, 3] uint8."""
    return fit(frame[window.top : window.bottom, window.left : window.right], height, width)


def _window(centre: tuple[float, float], height: float, ratio: float, frame: tuple[int, int]) -> Window:
    """Of that height, or as high as there is room for, and moved into the frame."""
    high = max(1, round(min(height, frame[0], frame[1] / ratio)))
    wide = min(max(1, round(high * ratio)), frame[1])
    left = int(np.clip(round(centre[0] - wide / 2), 0, frame[1] - wide))
    top = int(np.clip(round(centre[1] - high / 2), 0, frame[0] - high))
    return Window(left, top, left + wide, top + high)
