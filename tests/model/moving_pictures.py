"""Frames to write to a video: some that can be foreseen, some that cannot."""

import numpy as np


def moving_square(count: int = 12, height: int = 48, width: int = 64) -> np.ndarray:
    """A white square that walks to the right over a coloured ground. [F, H, W, 3] uint8."""
    frames = np.full((count, height, width, 3), (40, 90, 160), np.uint8)
    for index, frame in enumerate(frames):
        frame[8:24, 2 * index : 2 * index + 16] = 255
    return frames


def noise(count: int, side: int = 128) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
