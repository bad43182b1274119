"""The pose map against OpenCV's drawing, and what must hold for any person."""

import colorsys
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from xdyna_model.detectors import BODY, Person
from xdyna_model.pose_map import BONES, COLOURS, HAND_DOT, LIMBS, bone_colour, draw_pose, limb_colour

STANDING = np.array(
    [
        (200, 100),
        (200, 180),
        (150, 182),
        (120, 260),
        (100, 330),
        (250, 178),
        (283, 262),
        (300, 340),
        (170, 360),
        (165, 500),
        (160, 640),
        (230, 362),
        (236, 502),
        (242, 644),
    ],
    np.float32,
)
NO_HANDS = np.zeros((2, 21, 3), np.float32)
NO_FACE = np.zeros((68, 3), np.float32)


def person(body: np.ndarray = STANDING, hands: np.ndarray = NO_HANDS) -> Person:
    if body.shape[1] == 2:
        body = np.concatenate([body, np.ones((14, 1))], axis=1).astype(np.float32)
    return Person(body=body, hands=hands, face=NO_FACE)


def open_hand(wrist: tuple[float, float]) -> np.ndarray:
    hand = np.ones((21, 3), np.float32)
    hand[0, :2] = wrist
    for finger in range(5):
        for k in range(1, 5):
            angle = math.radians(200 + 35 * finger)
            hand[4 * finger + k, :2] = np.add(wrist, 15 * k * np.array([math.cos(angle), math.sin(angle)]))
    return hand


def coloured(picture: np.ndarray, colour: tuple[int, int, int]) -> np.ndarray:
    return (picture == colour).all(axis=2)


def overlap(a: np.ndarray, b: np.ndarray) -> float:
    return float((a & b).sum() / (a | b).sum())


def paint_with_opencv(body: np.ndarray, hand: np.ndarray) -> np.ndarray:
    """DWPose's drawing in OpenCV's own primitives, for a picture 896 high."""
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV, from xdyna-model[detect]")
    picture = np.zeros((896, 512, 3), np.uint8)
    points = [tuple(map(int, point)) for point in body]
    for limb, (a, b) in enumerate(LIMBS):
        (ax, ay), (bx, by) = points[a], points[b]
        half, angle = int(math.hypot(ax - bx, ay - by) / 2), int(math.degrees(math.atan2(ay - by, ax - bx)))
        outline = cv2.ellipse2Poly(((ax + bx) // 2, (ay + by) // 2), (half, 4), angle, 0, 360, 1)
        cv2.fillConvexPoly(picture, outline, COLOURS[limb])
    picture = (picture * 0.6).astype(np.uint8)
    for joint, point in enumerate(points):
        cv2.circle(picture, point, 4, COLOURS[joint], thickness=-1)
    knuckles = [tuple(map(int, point)) for point in hand[:, :2]]
    for bone, (a, b) in enumerate(BONES):
        cv2.line(picture, knuckles[a], knuckles[b], bone_colour(bone), thickness=2)
    for point in knuckles:
        cv2.circle(picture, point, 4, (0, 0, 255), thickness=-1)
    return picture


def test_the_published_colours_and_limbs():
    """The fourteen joints are twenty degrees apart on the colour circle; limbs as they are in the published videos."""
    circle = [tuple(round(255 * part) for part in colorsys.hsv_to_rgb(i / 18, 1, 1)) for i in range(14)]
    assert list(COLOURS) == circle
    limbs = [f"{BODY[a]}-{BODY[b]}" for a, b in LIMBS]
    assert limbs == [
        "neck-right_shoulder",
        "neck-left_shoulder",
        "right_shoulder-right_elbow",
        "right_elbow-right_wrist",
        "left_shoulder-left_elbow",
        "left_elbow-left_wrist",
        "neck-right_hip",
        "right_hip-right_knee",
        "right_knee-right_ankle",
        "neck-left_hip",
        "left_hip-left_knee",
        "left_knee-left_ankle",
        "neck-nose",
    ]


def test_drawn_as_opencv_draws():
    hand = open_hand((400, 400))
    theirs = paint_with_opencv(STANDING, hand)
    ours = draw_pose(person(hands=np.stack([hand, NO_HANDS[0]])), 896, 512)
    for joint, colour in enumerate(COLOURS):
        if colour != HAND_DOT:
            # Left of the hand, some of whose bones have the colours of joints.
            np.testing.assert_array_equal(
                coloured(ours[:, :320], colour), coloured(theirs[:, :320], colour), err_msg=BODY[joint]
            )
    assert overlap(coloured(ours, HAND_DOT), coloured(theirs, HAND_DOT)) > 0.95
    for limb in range(len(LIMBS)):
        assert overlap(coloured(ours, limb_colour(limb)), coloured(theirs, limb_colour(limb))) > 0.8, LIMBS[limb]
    assert overlap(ours.max(axis=2) > 0, theirs.max(axis=2) > 0) > 0.9
    assert (ours != theirs).any(axis=2).sum() < 0.15 * theirs.any(axis=2).sum()


def test_nobody_is_black():
    assert not draw_pose(None, 40, 30).any()
    assert draw_pose(None, 40, 30).shape == (40, 30, 3)
    assert not draw_pose(person(np.zeros((14, 3), np.float32)), 40, 30).any()


@pytest.mark.parametrize("joint", range(14))
def test_a_joint_that_was_not_found_takes_its_limbs_along(joint: int):
    body = np.concatenate([STANDING, np.ones((14, 1))], axis=1).astype(np.float32)
    body[joint, 2] = 0.29
    picture = draw_pose(person(body), 896, 512)
    for other, colour in enumerate(COLOURS):
        assert coloured(picture, colour).any() == (other != joint), BODY[other]
    for limb, pair in enumerate(LIMBS):
        assert coloured(picture, limb_colour(limb)).any() == (joint not in pair), pair


@settings(deadline=None, max_examples=30)
@given(st.integers(-40, 150), st.integers(-80, 200))
def test_moving_the_person_moves_the_drawing(dx: int, dy: int):
    still = draw_pose(person(STANDING + 0.25), 896, 512)
    moved = draw_pose(person(STANDING + 0.25 + np.array([dx, dy], np.float32)), 896, 512)
    np.testing.assert_array_equal(moved, np.roll(still, (dy, dx), axis=(0, 1)))


@settings(deadline=None)
@given(arrays.arrays(np.float32, (14, 2), elements=st.floats(-100, 700, width=32)))
def test_joints_have_their_colour_where_they_are(body: np.ndarray):
    picture = draw_pose(person(body), 896, 512)
    pixels = np.floor(body).astype(int)
    for joint, (x, y) in enumerate(pixels):
        later = pixels[joint + 1 :]
        hidden = len(later) and (((later - (x, y)) ** 2).sum(axis=1) <= 16).any()
        if 0 <= x < 512 and 0 <= y < 896 and not hidden:
            assert tuple(picture[y, x]) == COLOURS[joint]


@settings(deadline=None)
@given(
    arrays.arrays(np.float32, (14, 3), elements=st.floats(width=32)),
    arrays.arrays(np.float32, (2, 21, 3), elements=st.floats(width=32)),
    st.integers(1, 70),
    st.integers(1, 70),
)
def test_no_points_break_it(body: np.ndarray, hands: np.ndarray, height: int, width: int):
    picture = draw_pose(Person(body, hands, NO_FACE), height, width)
    assert picture.shape == (height, width, 3)
    assert picture.dtype == np.uint8


def test_sizes_follow_the_height():
    areas = [
        coloured(draw_pose(person(STANDING * height / 896), height, height), COLOURS[0]).sum()
        for height in (224, 448, 896, 1792)
    ]
    assert areas == [5, 13, 49, 197]


def test_size_must_be_positive():
    with pytest.raises(ValueError, match="positive size"):
        draw_pose(None, 0, 5)
