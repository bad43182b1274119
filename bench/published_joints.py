"""Reads joints back out of a picture of a skeleton, for `pose_maps.py`."""

import numpy as np
from xdyna_model.detectors import BODY
from xdyna_model.pose_map import COLOURS, LIMBS, limb_colour

# Black, the joints, the limbs.
_PALETTE = np.array([(0, 0, 0), *COLOURS, *(limb_colour(limb) for limb in range(len(LIMBS)))], np.float32)
_FIRST_LIMB = 1 + len(COLOURS)
# Video compression moves colours, mostly at edges; neighbours in the palette are 85 apart.
_COLOUR_REACH = 70
_DARK = 60
# A joint is a disc of 49 pixels, of which so many must show. The middle of what shows is then off by 3 pixels at most.
_DISC = [(x, y) for x in range(-4, 5) for y in range(-4, 5) if x * x + y * y <= 16]
_DISC_SHOWN = 15
# The dots of the hands have a joint's colour, too, and some of their bones that of a limb: a joint has a limb beside
# it that ends there. Pixels of one limb: needed at least, and more than this make no joint any surer.
_LIMB_RADIUS, _LIMB_SHOWN, _LIMB_ENOUGH = 14, 6, 30


def read_joints(picture: np.ndarray) -> np.ndarray:
    """picture: [H, W, 3] uint8 RGB, one skeleton as published, 896 pixels high.

    Returns [14, 2] float64, x and y in the order of `BODY`, NaN for a joint that is not there or mostly covered.
    """
    y, x = np.nonzero(picture.max(axis=2) > _DARK)
    colours = picture[y, x].astype(np.float32)
    distance = ((colours[:, None] - _PALETTE) ** 2).sum(axis=2)  # [N, palette]
    labels = np.where(distance.min(axis=1) < _COLOUR_REACH**2, distance.argmin(axis=1), 0)  # [N]
    positions = np.stack([x, y], axis=1).astype(np.float64)  # [N, 2]

    joints = np.full((len(BODY), 2), np.nan)
    for joint in range(len(BODY)):
        limbs = [positions[labels == _FIRST_LIMB + i] for i, pair in enumerate(LIMBS) if joint in pair]
        joints[joint] = _find_disc(positions[labels == 1 + joint], limbs)
    return joints


def _find_disc(coloured: np.ndarray, limbs: list[np.ndarray]) -> np.ndarray:
    """The centre [2] of the disc among the pixels `coloured` [N, 2] that has `limbs` beside it, NaN if none."""
    shown = _shown(coloured)
    coloured, shown = coloured[shown >= _DISC_SHOWN], shown[shown >= _DISC_SHOWN]
    if len(coloured) == 0:
        return np.full(2, np.nan)
    beside = np.stack([_near(coloured, limb, _LIMB_RADIUS) for limb in limbs])  # [limbs, N]
    score = shown + beside.clip(max=_LIMB_ENOUGH).sum(axis=0)
    score[beside.max(axis=0) < _LIMB_SHOWN] = -1
    best = int(score.argmax())
    if score[best] < 0:
        return np.full(2, np.nan)
    disc = ((coloured - coloured[best]) ** 2).sum(axis=1) <= 30
    return coloured[disc].mean(axis=0)


def _shown(coloured: np.ndarray) -> np.ndarray:
    """For each of the pixels [N, 2], how many of them lie on the disc around it: [N]."""
    if len(coloured) == 0:
        return np.zeros(0, int)
    column, row = (coloured - coloured.min(axis=0)).astype(int).T + 4
    mask = np.zeros((row.max() + 5, column.max() + 5), bool)
    mask[row, column] = True
    return sum((mask[row + y, column + x].astype(int) for x, y in _DISC), np.zeros(len(coloured), int))


def _near(points: np.ndarray, others: np.ndarray, radius: float) -> np.ndarray:
    """How many of `others` [M, 2] lie within `radius` of each of `points` [N, 2]: [N]."""
    squares = ((points[:, None] - others[None]) ** 2).sum(axis=2)
    return (squares <= radius**2).sum(axis=1)
