"""Square crops that may reach over the edge of a frame."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Crop:
    """pixels: [S, S, 3] uint8, black where the square lies outside the frame.
    origin: [2] float64, the x and y of its left upper corner in the frame.
    """

    pixels: np.ndarray
    origin: np.ndarray


def square(frame: np.ndarray, centre: np.ndarray, size: float) -> Crop | None:
    """The square of `size` pixels around `centre` (x, y) of frame [H, W, 3] uint8.

    None where the square misses the frame, or is below two pixels.
    """
    height, width, _ = frame.shape
    side = int(size)
    left, top = int(centre[0] - side / 2), int(centre[1] - side / 2)
    x0, y0, x1, y1 = max(left, 0), max(top, 0), min(left + side, width), min(top + side, height)
    if side < 2 or x0 >= x1 or y0 >= y1:
        return None
    pixels = np.zeros((side, side, 3), np.uint8)
    pixels[y0 - top : y1 - top, x0 - left : x1 - left] = frame[y0:y1, x0:x1]
    return Crop(pixels, np.array([left, top], np.float64))
