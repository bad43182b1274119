"""A crop around a box in, points out, as RTMPose's SimCC heads have them (Li et al. 2022, Jiang et al. 2023)."""

import numpy as np
from PIL import Image

# The box grows by this before it is cropped.
_PADDING = 1.25
# Bins per pixel of the input.
BINS = 2


def crop_affine(box: np.ndarray, height: int, width: int) -> np.ndarray:
    """The map from a crop of height x width to the frame, [2, 3]: frame = affine[:, :2] @ crop + affine[:, 2].

    The crop holds `box` (left, top, right, bottom), padded, in its middle; the shorter side is widened to fit.
    """
    centre = (box[:2] + box[2:]) / 2
    box_width, box_height = (box[2:] - box[:2]) * _PADDING
    scale = max(box_width / width, box_height / height)
    linear = np.eye(2) * scale
    return np.concatenate([linear, (centre - linear @ [width / 2, height / 2])[:, None]], axis=1)


def warp(frame: np.ndarray, affine: np.ndarray, height: int, width: int) -> np.ndarray:
    """frame [H, W, 3] uint8 -> [height, width, 3] uint8, bilinear, black outside the frame."""
    (a, b, c), (d, e, f) = affine
    # Pillow takes pixel centres at half coordinates; the model's training, at whole ones.
    c, f = c - (a + b - 1) / 2, f - (d + e - 1) / 2
    picture = Image.fromarray(frame).transform(
        (width, height), Image.Transform.AFFINE, (a, b, c, d, e, f), Image.Resampling.BILINEAR
    )
    return np.asarray(picture)


def decode_simcc(simcc_x: np.ndarray, simcc_y: np.ndarray) -> np.ndarray:
    """simcc_x: [K, 2 * width], simcc_y: [K, 2 * height], one peak in each row.

    Returns [K, 3] float64: x and y in pixels of the crop, and the lower of the two peaks cut to [0, 1].
    """
    peak = np.minimum(simcc_x.max(axis=1), simcc_y.max(axis=1)).clip(0, 1)
    return np.stack([simcc_x.argmax(axis=1) / BINS, simcc_y.argmax(axis=1) / BINS, peak], axis=1)
