"""Cross-identity face patches (X-Dyna, Section 3.3): somebody else's face with the driving expression and head pose.

A face ControlNet that is trained on the driving face itself learns to copy its looks. Trained on another identity's
face that does the same, it can only learn what the face does. Inference needs none of this.
"""

from typing import Protocol

import cv2
import numpy as np
from xdyna_model.detectors import Person
from xdyna_model.face_map import has_face

from xdyna_train.reenactment_mesh import face_mesh, warp

# iBUG's points around what opens, and pairs of them, above and below.
_MOUTH = (slice(60, 68), ((61, 67), (62, 66), (63, 65)))
_EYES = ((slice(36, 42), ((37, 41), (38, 40))), (slice(42, 48), ((43, 47), (44, 46))))
_OUTER_EYE_CORNERS = [36, 45]
# An opening below this part of the distance between the eyes' outer corners is shut.
_SHUT = 0.03
# A face whose points spread less than so many pixels, or in one direction less than this part of the other's, is none.
_SMALLEST, _FLATTEST = 1.0, 0.05
_FARTHEST = 1.5  # sides of the picture; no face that reaches into it has points farther from its corner
_TURN = np.linspace(0, 2 * np.pi, 16, endpoint=False)
_CIRCLE = np.stack([np.cos(_TURN), np.sin(_TURN)], -1)  # [16, 2]


class Reenactor(Protocol):
    """Makes one face do what another does."""

    def __call__(
        self, source: np.ndarray, source_person: Person, driving: np.ndarray, driving_person: Person
    ) -> np.ndarray:
        """source: [h, w, 3] uint8 RGB, the identity to show. driving: [H, W, 3] uint8 RGB, the face to follow. The
        persons' face points are in pixels of their own picture.

        Returns [H, W, 3] uint8 RGB: the source's face with the driving expression and head pose, where the driving
        face is, and zero around it; zero everywhere where either face is not seen.
        """
        ...


class LandmarkWarp:
    """The `Reenactor` that needs no model: pulls the source's face over the driving landmarks, triangle by triangle.

    Colours, hair line and skin are the source's; the landmarks, and with them the shape of the face, the driving
    one's. A source that looks far aside shows half a face, and gives none. Where the driving mouth or an eye is open
    and the source's is shut, nothing is there to be pulled: the opening is painted, in a darker colour of the lips or
    as a plain eye.
    """

    def __call__(
        self, source: np.ndarray, source_person: Person, driving: np.ndarray, driving_person: Person
    ) -> np.ndarray:
        height, width, _ = driving.shape
        usable = is_usable(source_person, *source.shape[:2]) and is_usable(driving_person, height, width)
        if not usable or _looks_aside(source_person):
            return np.zeros((height, width, 3), np.uint8)
        target = driving_person.face[:, :2].astype(np.float64)
        source, landmarks = _shrunk(source, source_person.face[:, :2].astype(np.float64), target)
        picture = warp(source, face_mesh(landmarks), face_mesh(target), height, width)
        return _open(picture, source, landmarks, target)


def is_usable(person: Person, height: int, width: int) -> bool:
    """Whether the face was seen, reaches into the picture, and its points are neither one spot nor a line."""
    if not has_face(person):
        return False
    points = person.face[:, :2].astype(np.float64)
    place = points / (width, height)
    if not ((place >= 0) & (place < 1)).all(1).any() or np.abs(place).max() > _FARTHEST:
        return False
    spread = np.linalg.svd(points - points.mean(0), compute_uv=False) / np.sqrt(len(points))
    return bool(spread[0] >= _SMALLEST and spread[1] >= _FLATTEST * spread[0])


def _looks_aside(person: Person) -> bool:
    """Whether the tip of the nose is beyond the middle half of the way from one end of the jaw to the other."""
    points = person.face[:, :2].astype(np.float64)
    across = points[16] - points[0]
    return abs((points[30] - points[0]) @ across - across @ across / 2) > across @ across / 4


def _shrunk(picture: np.ndarray, points: np.ndarray, target: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """A picture and the face points in it, no larger than the face in the result, lest small results alias."""
    ratio = float(np.ptp(target, axis=0).max() / np.ptp(points, axis=0).max())
    if ratio >= 1:
        return picture, points
    height, width, _ = picture.shape
    size = max(1, round(width * ratio)), max(1, round(height * ratio))
    return cv2.resize(picture, size, interpolation=cv2.INTER_AREA), points * size / (width, height)


def _open(picture: np.ndarray, source: np.ndarray, landmarks: np.ndarray, target: np.ndarray) -> np.ndarray:
    """Paints the openings of mouth and eyes as far as the source does not show them."""
    lips = _colour(source, landmarks[[[51, 62], [57, 66]]].mean(1))
    skin = _colour(source, landmarks[[28, 29]])
    ring, pairs = _MOUTH
    picture = _painted(picture, target[ring], 0.35 * lips, _missing(landmarks, target, pairs))
    for ring, pairs in _EYES:
        eye, missing = target[ring], _missing(landmarks, target, pairs)
        iris = eye.mean(0) + 0.3 * np.linalg.norm(eye[3] - eye[0]) * _CIRCLE
        picture = _painted(picture, eye, 0.4 * skin + 0.6 * 245, missing)
        picture = _painted(picture, iris, np.full(3, 45.0), missing, within=eye)
    return picture


def _missing(landmarks: np.ndarray, target: np.ndarray, pairs: tuple[tuple[int, int], ...]) -> float:
    """0 where the source's opening is at least half the driving one's, 1 where it is a quarter or less."""
    opening, wanted = (_opening(points, pairs) for points in (landmarks, target))
    return float(np.clip(2 - 4 * opening / wanted, 0, 1)) if wanted > _SHUT else 0.0


def _opening(points: np.ndarray, pairs: tuple[tuple[int, int], ...]) -> float:
    """How far the pairs are apart, as a part of the distance between the eyes' outer corners."""
    across = max(float(np.linalg.norm(np.subtract(*points[_OUTER_EYE_CORNERS]))), 1e-6)
    return float(np.mean([np.linalg.norm(points[above] - points[below]) for above, below in pairs])) / across


def _colour(picture: np.ndarray, places: np.ndarray) -> np.ndarray:
    """The mean colour at some places (pixels), [3]; at the border for a place outside."""
    height, width, _ = picture.shape
    x, y = np.clip(np.floor(places), 0, (width - 1, height - 1)).astype(int).T
    return picture[y, x].astype(np.float64).mean(0)


def _painted(
    picture: np.ndarray, shape: np.ndarray, colour: np.ndarray, amount: float, within: np.ndarray | None = None
) -> np.ndarray:
    """Lays a colour over the inside of a shape [N, 2], also cut to `within`, with smooth edges."""
    if amount == 0:
        return picture
    cover = _coverage(picture.shape[:2], shape)
    if within is not None:
        cover = np.minimum(cover, _coverage(picture.shape[:2], within))
    painted = picture + amount * cover[..., None] * (colour - picture)
    return np.rint(painted).astype(np.uint8)


def _coverage(size: tuple[int, int], shape: np.ndarray) -> np.ndarray:
    """How much of each pixel lies in the shape: [H, W] in [0, 1]."""
    cover = np.zeros(size, np.uint8)
    cv2.fillPoly(cover, [np.rint((shape - 0.5) * 16).astype(np.int32)], 255, cv2.LINE_AA, shift=4)
    return cover / 255
