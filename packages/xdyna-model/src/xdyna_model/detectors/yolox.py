"""Pictures in, boxes out, as YOLOX (Ge et al. 2021) has them."""

import numpy as np
from PIL import Image

_STRIDES = (8, 16, 32)
_GREY = 114


def letterbox(frame: np.ndarray, height: int, width: int) -> tuple[np.ndarray, float]:
    """frame [H, W, 3] uint8 -> [height, width, 3] uint8 with the frame scaled into its left upper corner, and the
    scale."""
    scale = min(height / frame.shape[0], width / frame.shape[1])
    inner = max(1, int(frame.shape[1] * scale)), max(1, int(frame.shape[0] * scale))
    picture = np.full((height, width, 3), _GREY, np.uint8)
    picture[: inner[1], : inner[0]] = np.asarray(Image.fromarray(frame).resize(inner, Image.Resampling.BILINEAR))
    return picture, scale


def decode_yolox(raw: np.ndarray, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """raw: [A, 5 + C], for every cell of the grids of strides 8, 16, 32: centre relative to the cell and logarithm
    of the size, both in strides, then the scores of there being an object and of its classes.

    Returns boxes [A, 4] (left, top, right, bottom) in pixels of the height x width input, and scores [A, C].
    """
    cells, strides = [], []
    for stride in _STRIDES:
        y, x = np.mgrid[0 : height // stride, 0 : width // stride]
        cells.append(np.stack([x.ravel(), y.ravel()], axis=1))
        strides.append(np.full((x.size, 1), stride))
    stride = np.concatenate(strides).astype(np.float32)  # [A, 1]
    centre = (raw[:, :2] + np.concatenate(cells)) * stride
    half = np.exp(raw[:, 2:4]) * stride / 2
    return np.concatenate([centre - half, centre + half], axis=1), raw[:, 4:5] * raw[:, 5:]


def suppress(boxes: np.ndarray, scores: np.ndarray, overlap: float) -> np.ndarray:
    """Non-maximum suppression: indices of the boxes [N, 4] to keep, best score [N] first.

    A box goes when a better one that is kept overlaps it by more than `overlap` (intersection over union).
    """
    order = np.argsort(-scores)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while len(order):
        best, rest = order[0], order[1:]
        kept.append(best)
        sides = np.minimum(boxes[best, 2:], boxes[rest, 2:]) - np.maximum(boxes[best, :2], boxes[rest, :2])
        shared = sides.clip(min=0).prod(axis=1)
        order = rest[shared <= overlap * (area[best] + area[rest] - shared)]
    return np.array(kept, dtype=np.intp)
