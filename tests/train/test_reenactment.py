"""Reenacted faces: the driving landmarks, the source's colours, nothing around them, and never a crash."""

import itertools
from dataclasses import replace
from functools import cache

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdyna_model.detectors import Person
from xdyna_train.puppets import Identity, Motion, PuppetFrame, Scene, render_frame
from xdyna_train.reenactment import LandmarkWarp, Reenactor
from xdyna_train.reenactment_mesh import doubled_area, face_mesh, triangles

SIZE = HEIGHT, WIDTH = 448, 256
WARP: Reenactor = LandmarkWarp()
PALE, DARK = 8, 9  # identities
SKINS = {PALE: (255, 222, 196), DARK: (104, 68, 50)}


@cache
def puppet(
    seed: int, mouth: float = 0.5, eyes: float = 1.0, turn: float = 0.0, lean: float = 0.0, smile: float = 0.3
) -> tuple[np.ndarray, Person]:
    """Somebody who makes a face: picture and points."""
    motion = replace(
        Motion.standing(),
        face_rest=(mouth, smile, eyes, 0.0, 0.0, 0.0),
        turn=turn,
        lean=lean,
        face_phase=(np.pi / 2,) * 6,
    )
    frame = drawn(seed, motion)
    assert frame.person is not None
    return frame.rgb, frame.person


def drawn(seed: int, motion: Motion) -> PuppetFrame:
    return render_frame(Scene("room", seed), identity(seed), motion, 0.0, *SIZE)


def identity(seed: int) -> Identity:
    looks = Identity.sample(np.random.default_rng(seed))
    return replace(looks, hair_style="short", skin=SKINS.get(seed, looks.skin))  # short hair leaves the face free


def with_face(person: Person, points: np.ndarray, confidence: float = 1.0) -> Person:
    face = np.concatenate([points, np.full((68, 1), confidence)], 1).astype(np.float32)
    return Person(person.body, person.hands, face)


def at(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    x, y = np.floor(points).astype(int).T
    return picture[y, x].astype(int)


FACES = [
    {"mouth": 0.0, "eyes": 0.9, "smile": 1.0},
    {"mouth": 1.0, "eyes": 0.6, "lean": 0.3},
    {"mouth": 0.4, "eyes": 1.0, "turn": 0.5},
    {"mouth": 0.7, "eyes": 0.1, "turn": -0.5, "lean": -0.3, "smile": -1.0},
]


@pytest.mark.parametrize("face", FACES)
def test_the_landmarks_are_the_driving_ones(face: dict[str, float]) -> None:
    """A picture whose colours are its own coordinates shows at each driving landmark where that came from."""
    _, source = puppet(1)
    driving_picture, driving = puppet(2, **face)
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    coordinates = np.stack([x, np.minimum(y, 255), np.full_like(x, 255)], -1).astype(np.uint8)
    result = WARP(coordinates, source, driving_picture, driving).astype(np.float32)
    places = driving.face[:, :2] - 0.5
    read = cv2.remap(result, places[:, :1].copy(), places[:, 1:].copy(), cv2.INTER_LINEAR)[:, 0]  # [68, 3]
    error = np.linalg.norm(read[:, :2] + 0.5 - source.face[:, :2], axis=-1)
    if face["mouth"] == 0:
        error = np.delete(error, [48, 54, *range(60, 68)])  # points of a shut mouth fall together
    assert read[:, 2].min() > 250
    assert error.max() < 0.022 * np.ptp(source.face[:, 0])
    assert np.median(error) < 0.7


@pytest.mark.parametrize("face", FACES)
def test_the_colours_are_the_sources(face: dict[str, float]) -> None:
    for mine, other in ((PALE, DARK), (DARK, PALE)):
        result = WARP(*puppet(mine), *puppet(other, **face))
        points = puppet(other, **face)[1].face[:, :2]
        between = [(27, 39), (27, 42), (31, 48), (35, 54), (21, 22), (8, 57)]
        colour = np.median([at(result, points[list(pair)].mean(0, keepdims=True))[0] for pair in between], 0)
        assert np.abs(colour - SKINS[mine]).max() < 25
        assert np.abs(colour - SKINS[other]).max() > 100


def test_a_face_on_itself_stays_as_it_is() -> None:
    picture, person = puppet(3)
    result = WARP(picture, person, picture, person)
    inside = result.any(-1)
    assert inside.sum() > 4000
    assert np.abs(result[inside].astype(int) - picture[inside]).max() <= 1


@pytest.mark.parametrize("face", FACES)
def test_all_around_the_face_is_zero(face: dict[str, float]) -> None:
    driving_picture, driving = puppet(2, **face)
    result = WARP(*puppet(1, mouth=0.0, eyes=0.0), driving_picture, driving)
    hull = cv2.convexHull(face_mesh(driving.face[:, :2]).astype(np.float32))
    outside = cv2.fillConvexPoly(np.zeros(SIZE, np.uint8), np.rint(hull - 0.5).astype(np.int32), 1) == 0
    assert not result[cv2.erode(outside.astype(np.uint8), np.ones((3, 3))) > 0].any()
    assert result.any(-1).sum() > 0.9 * (~outside).sum()


def test_a_shut_mouth_opens_dark() -> None:
    driving_picture, driving = puppet(2, mouth=1.0)
    result = WARP(*puppet(PALE, mouth=0.0), driving_picture, driving)
    inner = driving.face[60:68, :2].mean(0, keepdims=True)
    assert at(result, inner).mean() < 0.5 * np.mean(identity(PALE).skin)


def test_an_open_mouth_shuts() -> None:
    driving_picture, driving = puppet(2, mouth=0.0)
    result = WARP(*puppet(PALE, mouth=1.0), driving_picture, driving)
    lips = at(result, driving.face[[50, 51, 52, 56, 57, 58], :2])
    teeth = (lips.min(-1) > 235).sum()
    assert teeth == 0
    inner = np.ptp(driving.face[61:64, 1]), np.abs(driving.face[62, 1] - driving.face[66, 1])
    assert inner[1] < 1  # indeed shut


def test_eyes_shut_and_open() -> None:
    def white(source_eyes: float, driving_eyes: float) -> int:
        driving_picture, driving = puppet(2, eyes=driving_eyes)
        result = WARP(*puppet(DARK, eyes=source_eyes), driving_picture, driving)
        where = np.zeros(SIZE, np.uint8)
        for ring in (slice(36, 42), slice(42, 48)):
            cv2.fillPoly(where, [np.rint(driving.face[ring, :2]).astype(np.int32)], 1)
        where = cv2.dilate(where, np.ones((5, 5)))
        return int((result[where > 0].min(-1) > 150).sum())

    assert white(1.0, 1.0) > 40
    assert white(0.0, 1.0) > 40  # painted
    assert white(1.0, 0.0) < 0.1 * white(1.0, 1.0)
    assert white(0.0, 0.0) == 0


def test_a_large_source_does_not_alias() -> None:
    """A fine checkerboard of black and white, far finer than the result, becomes grey."""
    board = (np.indices(SIZE).sum(0) % 2 * 255).astype(np.uint8)
    picture = np.repeat(board[..., None], 3, -1)
    _, source = puppet(1)
    _, driving = puppet(2)
    small = with_face(driving, driving.face[:, :2] / 4)
    result = WARP(picture, source, np.zeros((112, 64, 3), np.uint8), small)
    inside = result[result.any(-1)].mean(-1)
    assert len(inside) > 200
    assert np.percentile(np.abs(inside - 127), 80) < 30


def test_a_source_that_looks_far_aside_gives_nothing() -> None:
    picture, person = puppet(1)
    points = person.face[:, :2].copy()
    points[17:, 0] += 0.3 * np.ptp(points[:, 0])
    assert not WARP(picture, with_face(person, points), *puppet(2)).any()
    assert WARP(*puppet(2), picture, with_face(person, points)).any()


DEGENERATE = {
    "on a line": lambda p: np.stack([p[:, 0], 100 + 0.5 * p[:, 0]], -1),
    "on one spot": lambda p: np.full_like(p, 100.0),
    "outside": lambda p: p + 1000,
    "above": lambda p: p - 2000,
    "not numbers": lambda p: np.where(p > 100, np.nan, p),
    "infinite": lambda p: np.where(p > 100, np.inf, p),
    "far away": lambda p: np.where(p > 100, 1e30, p),
}


@pytest.mark.parametrize("fault", DEGENERATE)
def test_degenerate_landmarks_give_a_blank(fault: str) -> None:
    picture, person = puppet(1)
    with np.errstate(all="ignore"):
        broken = with_face(person, DEGENERATE[fault](person.face[:, :2]))
    for arguments in ((picture, broken, *puppet(2)), (*puppet(2), picture, broken)):
        result = WARP(*arguments)
        assert result.shape == (*SIZE, 3)
        assert result.dtype == np.uint8
        assert not result.any()


def test_faces_that_were_not_found_give_a_blank() -> None:
    picture, person = puppet(1)
    unseen = with_face(person, person.face[:, :2], confidence=0.0)
    assert not WARP(picture, unseen, *puppet(2)).any()
    assert not WARP(*puppet(2), picture, unseen).any()


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0, 3), st.floats(-300, 300), st.floats(-300, 300))
def test_any_landmarks_give_a_picture(seed: int, spread: float, right: float, down: float) -> None:
    """Noise, folds and faces half out of the picture: pixels, and only at the driving face."""
    rng = np.random.default_rng(seed)
    picture, person = puppet(1)
    points = person.face[:, :2] + rng.normal(0, 10 * spread, (68, 2)) + (right, down)
    broken = with_face(person, points)
    for arguments in ((picture, broken, *puppet(2)), (*puppet(2), picture, broken)):
        result = WARP(*arguments)
        assert result.shape == (*SIZE, 3)
        mesh = face_mesh(arguments[3].face[:, :2])
        rows, columns = np.nonzero(result.any(-1))
        if len(rows):
            assert (mesh.min(0) - 2 <= (columns.min(), rows.min())).all()
            assert (mesh.max(0) + 2 >= (columns.max(), rows.max())).all()


def test_the_mesh_covers_the_face_once_and_keeps_lids_and_lips_apart() -> None:
    _, person = puppet(1)
    corners, mesh = face_mesh(person.face[:, :2]), triangles()
    hull = cv2.contourArea(cv2.convexHull(corners.astype(np.float32)))
    areas = doubled_area(corners[mesh]) / 2
    assert (areas > -1e-6).all()
    assert areas.sum() == pytest.approx(hull, rel=0.02)
    edges = {frozenset(pair) for corner in mesh.tolist() for pair in itertools.combinations(corner, 2)}
    for ring in (range(36, 42), range(42, 48), range(48, 60), range(60, 68)):
        points = list(ring)
        assert all(frozenset(pair) in edges for pair in zip(points, points[1:] + points[:1], strict=True))
