"""The pose map: the skeleton of one person on black, in the style of the skeletons published with X-Dyna.

That style is DWPose's (Yang et al. 2023, after OpenPose) without eyes, ears and face: fourteen joints and two
hands. The published videos are 896 pixels high: limbs are ellipses nine pixels wide, joints discs of radius 4,
finger bones lines three pixels wide. At other heights these sizes scale with the height.
"""

import colorsys
from functools import lru_cache

import numpy as np

from xdyna_model.detectors import Person

# Below this a joint is left out, and with it every limb that touches it. DWPose draws above 0.3.
MIN_CONFIDENCE = 0.3
# The height at which the published skeletons have the sizes below.
PUBLISHED_HEIGHT = 896
JOINT_RADIUS = 4.0
LIMB_HALF_WIDTH = 4.5
BONE_HALF_WIDTH = 1.42
# Limbs are painted first and dimmed, so that the joints stand out on top of them.
LIMB_DIM = 0.6

# OpenPose's colour circle. Joint i of `BODY` has colour i, limb i has colour i dimmed.
COLOURS = (
    (255, 0, 0),
    (255, 85, 0),
    (255, 170, 0),
    (255, 255, 0),
    (170, 255, 0),
    (85, 255, 0),
    (0, 255, 0),
    (0, 255, 85),
    (0, 255, 170),
    (0, 255, 255),
    (0, 170, 255),
    (0, 85, 255),
    (0, 0, 255),
    (85, 0, 255),
)
# Pairs of indices into `BODY`, in OpenPose's order of painting: shoulders, arms, legs, head.
LIMBS = ((1, 2), (1, 5), (2, 3), (3, 4), (5, 6), (6, 7), (1, 8), (8, 9), (9, 10), (1, 11), (11, 12), (12, 13), (1, 0))
HAND_DOT = (0, 0, 255)
# Every finger starts at the wrist: (0, 1), (1, 2), (2, 3), (3, 4), (0, 5), (5, 6), ...
BONES = tuple((0 if k == 0 else 4 * finger + k, 4 * finger + k + 1) for finger in range(5) for k in range(4))


def limb_colour(limb: int) -> tuple[int, int, int]:
    """The colour of `LIMBS[limb]`, RGB in 0..255."""
    red, green, blue = COLOURS[limb]
    return int(red * LIMB_DIM), int(green * LIMB_DIM), int(blue * LIMB_DIM)


def bone_colour(bone: int) -> tuple[int, int, int]:
    """The colour of `BONES[bone]`: the colour circle in twenty steps, RGB in 0..255."""
    red, green, blue = colorsys.hsv_to_rgb(bone / len(BONES), 1.0, 1.0)
    return int(255 * red), int(255 * green), int(255 * blue)


def draw_pose(person: Person | None, height: int, width: int) -> np.ndarray:
    """Paints the skeleton of `person`.

    Returns [height, width, 3] uint8 RGB, all zero for None. Points are moved to the pixel that holds them; what
    lies outside the picture is cut off. Joints below `MIN_CONFIDENCE` are left out. Raises ValueError unless
    height and width are positive.
    """
    if height < 1 or width < 1:
        raise ValueError(f"a pose map needs a positive size, not {height} x {width}")
    picture = np.zeros((height, width, 3), np.uint8)  # [H, W, 3]
    if person is None:
        return picture
    scale = height / PUBLISHED_HEIGHT
    radius = max(1.0, JOINT_RADIUS * scale)

    body = _pixels(person.body)
    for limb, (a, b) in enumerate(LIMBS):
        if a in body and b in body:
            _fill_ellipse(picture, body[a], body[b], max(1.0, LIMB_HALF_WIDTH * scale), limb_colour(limb))
    for joint, at in body.items():
        _fill_disc(picture, at, radius, COLOURS[joint])

    for hand in person.hands:
        points = _pixels(hand)
        for bone, (a, b) in enumerate(BONES):
            if a in points and b in points:
                _fill_line(picture, points[a], points[b], max(0.5, BONE_HALF_WIDTH * scale), bone_colour(bone))
        for at in points.values():
            _fill_disc(picture, at, radius, HAND_DOT)
    return picture


def _pixels(points: np.ndarray) -> dict[int, tuple[float, float]]:
    """The whole pixels of the points that were found, by index."""
    found = np.isfinite(points).all(axis=1) & (points[:, 2] >= MIN_CONFIDENCE)
    whole = np.floor(points[found, :2].astype(np.float64)).tolist()
    return {index: (x, y) for index, (x, y) in zip(np.flatnonzero(found).tolist(), whole, strict=True)}


# A figure is a hundred small shapes, so their cost is that of the calls: plain numbers and few arrays.
def _window(
    picture: np.ndarray, a: tuple[float, float], b: tuple[float, float], margin: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The part of the picture around a and b, as a view, with the x and the y of its pixels."""
    height, width, _ = picture.shape
    x0, x1 = _within(min(a[0], b[0]) - margin, width), _within(max(a[0], b[0]) + margin + 1, width)
    y0, y1 = _within(min(a[1], b[1]) - margin, height), _within(max(a[1], b[1]) + margin + 1, height)
    return picture[y0:y1, x0:x1], np.arange(x0, x1), np.arange(y0, y1)[:, None]


def _within(value: float, size: int) -> int:
    return int(min(max(value, 0.0), size))


@lru_cache(maxsize=8)
def _disc(reach: int, radius: float) -> np.ndarray:
    """[2 reach + 1, 2 reach + 1] bool: what lies within radius of the middle."""
    offset = np.arange(-reach, reach + 1)
    return offset**2 + offset[:, None] ** 2 <= radius**2


def _fill_disc(picture: np.ndarray, centre: tuple[float, float], radius: float, colour: tuple[int, int, int]) -> None:
    reach = int(radius)
    view, x, y = _window(picture, centre, centre, reach)
    if view.size:
        left, top = int(x[0] - centre[0]) + reach, int(y[0, 0] - centre[1]) + reach
        view[_disc(reach, radius)[top : top + len(y), left : left + len(x)]] = colour


def _fill_ellipse(
    picture: np.ndarray, a: tuple[float, float], b: tuple[float, float], half_width: float, colour: tuple[int, int, int]
) -> None:
    """The ellipse whose long axis runs from a to b."""
    view, x, y = _window(picture, a, b, half_width)
    centre_x, centre_y = (a[0] + b[0]) / 2, (a[1] + b[1]) / 2
    axis_x, axis_y = b[0] - a[0], b[1] - a[1]
    half_length = max(float(np.hypot(axis_x, axis_y)) / 2, 1.0)
    along_x, along_y = axis_x / (2 * half_length), axis_y / (2 * half_length)
    u = (x - centre_x) * along_x + (y - centre_y) * along_y
    v = (y - centre_y) * along_x - (x - centre_x) * along_y
    view[(u / half_length) ** 2 + (v / half_width) ** 2 <= 1] = colour


def _fill_line(
    picture: np.ndarray, a: tuple[float, float], b: tuple[float, float], half_width: float, colour: tuple[int, int, int]
) -> None:
    """All that lies within half_width of the segment from a to b."""
    view, x, y = _window(picture, a, b, half_width)
    axis_x, axis_y = b[0] - a[0], b[1] - a[1]
    t = ((x - a[0]) * axis_x + (y - a[1]) * axis_y) / max(axis_x * axis_x + axis_y * axis_y, 1.0)
    t = np.minimum(np.maximum(t, 0), 1)
    view[(x - a[0] - t * axis_x) ** 2 + (y - a[1] - t * axis_y) ** 2 <= half_width**2] = colour
