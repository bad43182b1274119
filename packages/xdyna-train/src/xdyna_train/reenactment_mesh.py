"""A triangle mesh over a face and its surroundings, hung on the 68 points of iBUG.

The triangles are the same for every face, so that closed eyes and a closed mouth, whose points fall together, keep
their lids and lips apart. They are Delaunay's (cv2.Subdiv2D) over a face with open eyes and an open mouth.
"""

from functools import cache

import cv2
import numpy as np

# The half of a frontal face at the picture's right, eyes' middles 50 apart, (right, down); the other half mirrors it.
_JAW = ((54, -22), (53, -11), (53, 0), (51, 12), (47, 24), (42, 34), (29, 46), (17, 55), (0, 58))
_BROW = ((11, -41), (22, -44), (31, -44), (39, -41), (44, -36))
_BRIDGE = ((0, -27), (0, -16), (0, -6), (0, 2))
_NOSTRILS = ((0, 11), (6, 10), (13, 9))
_EYE = ((14, -23), (22, -29), (30, -28), (36, -24), (29, -19), (21, -20))  # points 42 to 47
_LIPS_OUTER = ((0, 20), (6, 19), (11, 21), (19, 27), (12, 35), (6, 38), (0, 40))  # 51 to 57
_LIPS_INNER = ((0, 25), (8, 25), (15, 27), (8, 32), (0, 34))  # 62 to 66
# The rim: how far outside the jaw it runs, and how high above the ends of the jaw, in distances from there to the nose.
_RIM_WIDTH, _RIM_RISE = 1.2, 2.2
_ARC = np.linspace(0, np.pi, 9)[1:-1, None]  # from the end of the jaw at the picture's right over the top


def face_mesh(landmarks: np.ndarray) -> np.ndarray:
    """The corners of the mesh on a face. landmarks: [68, 2]. Returns [84, 2] float64: these, then the rim."""
    points = landmarks.astype(np.float64)
    middle = (points[0] + points[16]) / 2
    below = middle + _RIM_WIDTH * (points[0:17:2] - middle)
    across = _RIM_WIDTH * (points[16] - points[0]) / 2
    # Upright over the jaw: a turned head takes the nose aside, not its top.
    up = _RIM_RISE * (middle - points[33])
    up -= across * (up @ across) / max(across @ across, 1e-9)
    above = middle + np.cos(_ARC) * across + np.sin(_ARC) * up
    return np.concatenate([points, below, above])


@cache
def triangles() -> np.ndarray:
    """The corners of every triangle of the mesh as indices into `face_mesh`, clockwise in the picture, [T, 3]."""
    corners = face_mesh(_template()).astype(np.float32)
    plane = cv2.Subdiv2D((-200, -200, 400, 400))
    plane.insert(corners.tolist())
    found = np.asarray(plane.getTriangleList()).reshape(-1, 3, 2)  # [T, 3, 2]; some have a corner of the plane's own
    distance = np.linalg.norm(found[:, :, None] - corners, axis=-1)  # [T, 3, 84]
    mesh = distance.argmin(-1)[(distance.min(-1) < 1e-3).all(-1)]
    return np.where(doubled_area(corners[mesh])[:, None] > 0, mesh, mesh[:, ::-1])


def doubled_area(shape: np.ndarray) -> np.ndarray:
    """shape: [..., 3, 2] triangles. Returns [...], positive where the corners run clockwise in the picture."""
    first, second = shape[..., 1, :] - shape[..., 0, :], shape[..., 2, :] - shape[..., 0, :]
    return first[..., 0] * second[..., 1] - first[..., 1] * second[..., 0]


def warp(picture: np.ndarray, source: np.ndarray, target: np.ndarray, height: int, width: int) -> np.ndarray:
    """Moves what is inside a mesh.

    picture: [h, w, 3] uint8. source, target: [84, 2], the mesh in `picture` and in the result, in pixels, where the
    middle of the first pixel is (0.5, 0.5). Triangles that show their back in the result are left out.
    Returns [height, width, 3] uint8, zero outside the mesh and where `picture` ends.
    """
    origin = np.full((height, width, 2), -2.0, np.float32)  # where each pixel comes from; -2 is outside `picture`
    corners = target[triangles()]  # [T, 3, 2]
    for inside, shape in zip(source[triangles()], corners, strict=True):
        _map_triangle(origin, inside, shape)
    x, y = np.moveaxis(origin - 0.5, -1, 0)
    return cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_CONSTANT)


def _map_triangle(origin: np.ndarray, source: np.ndarray, target: np.ndarray) -> None:
    """Fills in where the pixels in the triangle `target` [3, 2] come from, in the triangle `source`."""
    area = doubled_area(target)
    if area < 1e-9:
        return
    height, width, _ = origin.shape
    left, top = np.clip(np.floor(target.min(0) - 0.5), 0, (width, height)).astype(int)
    right, bottom = np.clip(np.ceil(target.max(0) + 0.5), 0, (width, height)).astype(int)
    y, x = np.mgrid[top:bottom, left:right] + 0.5
    sides = np.roll(target, -1, 0) - target  # [3, 2], from each corner to the next
    # Barycentric weight of the corner opposite to each side.
    weight = np.stack(
        [(dx * (y - cy) - dy * (x - cx)) / area for (dx, dy), (cx, cy) in zip(sides, target, strict=True)], -1
    )
    within = (weight >= -1e-9).all(-1)
    origin[top:bottom, left:right][within] = weight[within] @ np.roll(source, -2, 0)


def _template() -> np.ndarray:
    """The 68 points of the face that the mesh is made on, [68, 2]."""

    def mirrored(points: tuple[tuple[int, int], ...]) -> list[tuple[int, int]]:
        return [(-x, y) for x, y in points]

    jaw = mirrored(_JAW)[:-1] + list(_JAW[::-1])
    brows = mirrored(_BROW)[::-1] + list(_BROW)
    nose = [*_BRIDGE, *mirrored(_NOSTRILS)[:0:-1], *_NOSTRILS]
    left = mirrored(_EYE)
    eyes = [left[k] for k in (3, 2, 1, 0, 5, 4)] + list(_EYE)
    outer = mirrored(_LIPS_OUTER)[3:0:-1] + list(_LIPS_OUTER) + mirrored(_LIPS_OUTER)[5:3:-1]
    inner = mirrored(_LIPS_INNER)[2:0:-1] + list(_LIPS_INNER) + mirrored(_LIPS_INNER)[3:2:-1]
    return np.array([*jaw, *brows, *nose, *eyes, *outer, *inner], float)
