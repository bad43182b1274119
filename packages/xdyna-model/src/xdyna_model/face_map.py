"""The face map: what the face ControlNet sees of the driving video.

Two pictures on black. Global: the frame inside a box around the face. Local: the frame inside three patches, at
the eyes and the mouth. Box, centres and patch sizes follow the released X-Dyna inference script, with two
differences: patches are cut off at the border of the frame, where the released script fails, and every frame
stands alone, where the released script keeps the box while the face stays inside it and repeats the last box
when it sees no face.
"""

import numpy as np

from xdyna_model.detectors import Person

# Below this mean confidence of its points, a face counts as not seen.
MIN_CONFIDENCE = 0.3
# How far the box reaches from the centre of the landmarks, in lengths of their longer side.
_REACH_LEFT, _REACH_TOP, _REACH_RIGHT, _REACH_BOTTOM = 1.35, 1.25, 1.35, 1.45
# Half a patch is 64 where the box is 512.
_PATCH = 64 / 512
# Landmarks whose mean is the middle of a patch. The first of each group (42, 36, 48) is missing in the released
# script, and the released weights were trained that way.
_PATCH_LANDMARKS = {"left eye": slice(43, 48), "right eye": slice(37, 42), "mouth": slice(49, 68)}


def has_face(person: Person | None) -> bool:
    """Whether `draw_face` would draw anything of this person."""
    if person is None or not np.isfinite(person.face).all():
        return False
    return float(person.face[:, 2].mean()) >= MIN_CONFIDENCE


def face_box(person: Person, height: int, width: int) -> tuple[int, int, int, int]:
    """The global box in a frame of this size: left, top, right, bottom in pixels, right and bottom outside it.

    It is cut off at the borders of the frame, and empty (left >= right or top >= bottom) for a face beyond them.
    """
    landmarks = person.face[:, :2].astype(np.float64)  # [68, 2]
    low, high = landmarks.min(0), landmarks.max(0)
    x, y = (low + high) / 2
    length = (high - low).max()
    left, top = int(x - _REACH_LEFT * length), int(y - _REACH_TOP * length)
    right, bottom = int(x + _REACH_RIGHT * length), int(y + _REACH_BOTTOM * length)
    return max(left, 0), max(top, 0), min(right, width), min(bottom, height)


def draw_face(frame: np.ndarray, person: Person | None) -> tuple[np.ndarray, np.ndarray]:
    """Cuts the face of `person` out of `frame`.

    frame: [H, W, 3] uint8 RGB. Returns local and global, both [H, W, 3] uint8, all zero where nobody or no face
    is seen. Raises ValueError for a frame of another shape or dtype.
    """
    if frame.ndim != 3 or frame.shape[2] != 3 or frame.dtype != np.uint8:
        raise ValueError(f"a frame is [H, W, 3] uint8, not {list(frame.shape)} {frame.dtype}")
    local_picture, global_picture = np.zeros_like(frame), np.zeros_like(frame)  # [H, W, 3]
    if person is None or not has_face(person):
        return local_picture, global_picture
    height, width, _ = frame.shape
    left, top, right, bottom = face_box(person, height, width)
    if left >= right or top >= bottom:
        return local_picture, global_picture
    _copy(frame, global_picture, left, top, right, bottom)

    half_x, half_y = int((right - left) * _PATCH), int((bottom - top) * _PATCH)
    for landmarks in _PATCH_LANDMARKS.values():
        x, y = np.round(person.face[landmarks, :2].astype(np.float64).mean(0)).astype(int)
        _copy(frame, local_picture, x - half_x, y - half_y, x + half_x, y + half_y)
    return local_picture, global_picture


def _copy(source: np.ndarray, target: np.ndarray, left: int, top: int, right: int, bottom: int) -> None:
    """Copies the part of the rectangle that lies in the picture; negative indices would count from its end."""
    rows, columns = slice(max(top, 0), max(bottom, 0)), slice(max(left, 0), max(right, 0))
    target[rows, columns] = source[rows, columns]
