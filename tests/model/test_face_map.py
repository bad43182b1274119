"""The face map: the released script's rule, worked out by hand, and what must hold for any face."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from xdyna_model.detectors import Person
from xdyna_model.face_map import draw_face, face_box, has_face

RNG = np.random.default_rng(0)
FRAME = RNG.integers(1, 256, (200, 160, 3), dtype=np.uint8)  # no zeros: what is black was not copied


def person(face: np.ndarray) -> Person:
    return Person(np.ones((14, 3), np.float32), np.zeros((2, 21, 3), np.float32), face.astype(np.float32))


def planted(x: float = 0.0, y: float = 0.0) -> np.ndarray:
    """A face 40 wide and 30 high whose left eye is at (90, 85), right eye at (75, 85), mouth at (80, 100), moved."""
    face = np.ones((68, 3))
    face[:, :2] = (80, 95)
    face[0, :2], face[16, :2] = (60, 80), (100, 110)
    face[42:48, :2], face[36:42, :2], face[48:68, :2] = (90, 85), (75, 85), (80, 100)
    # The released script leaves the first point of each group out. So these must not count.
    face[[42, 36, 48], :2] = (99, 81)
    return face + np.array([x, y, 0])


def test_the_released_rule_by_hand():
    face = person(planted())
    # centre (80, 95), longer side 40: 80 -+ 54, 95 - 50, 95 + 58
    assert face_box(face, 200, 160) == (26, 45, 134, 153)
    local_picture, global_picture = draw_face(FRAME, face)
    expected = np.zeros_like(FRAME)
    expected[45:153, 26:134] = FRAME[45:153, 26:134]
    np.testing.assert_array_equal(global_picture, expected)
    expected = np.zeros_like(FRAME)
    for x, y in ((90, 85), (75, 85), (80, 100)):  # half a patch: 108 * 64 / 512 = 13
        expected[y - 13 : y + 13, x - 13 : x + 13] = FRAME[y - 13 : y + 13, x - 13 : x + 13]
    np.testing.assert_array_equal(local_picture, expected)


@pytest.mark.parametrize("shift", [(-75, 0), (75, 0), (0, -85), (0, 95), (-90, -95)])
def test_patches_are_cut_off_at_the_border(shift: tuple[int, int]):
    face = person(planted(*shift))
    left, top, right, bottom = face_box(face, 200, 160)
    assert 0 <= left < right <= 160
    assert 0 <= top < bottom <= 200
    half_x, half_y = (right - left) * 64 // 512, (bottom - top) * 64 // 512
    expected = np.zeros((200, 160), bool)
    rows, columns = np.mgrid[:200, :160]
    for x, y in ((90, 85), (75, 85), (80, 100)):
        x, y = x + shift[0], y + shift[1]
        expected |= (x - half_x <= columns) & (columns < x + half_x) & (y - half_y <= rows) & (rows < y + half_y)
    local_picture, _ = draw_face(FRAME, face)
    np.testing.assert_array_equal(local_picture, FRAME * expected[..., None])


def test_blank_without_a_face():
    faint, outside, broken = planted(), planted(1000, 0), planted()
    faint[:, 2] = 0.2
    broken[3, 0] = np.nan
    for someone in (None, person(faint), person(outside), person(broken), person(np.zeros((68, 3)))):
        for picture in draw_face(FRAME, someone):
            assert picture.shape == FRAME.shape
            assert not picture.any()
    assert has_face(person(planted()))
    assert not has_face(None)
    assert not has_face(person(faint))


@settings(deadline=None)
@given(
    arrays.arrays(np.float32, (68, 2), elements=st.floats(-300, 500, width=32)),
    st.integers(1, 90),
    st.integers(1, 90),
)
def test_any_face_copies_pixels_in_place(points: np.ndarray, height: int, width: int):
    face = person(np.concatenate([points, np.ones((68, 1))], axis=1))
    frame = FRAME[:height, :width]
    left, top, right, bottom = face_box(face, height, width)
    for picture in draw_face(frame, face):
        assert picture.shape == frame.shape
        shown = picture.any(axis=2)
        np.testing.assert_array_equal(picture[shown], frame[shown])
    _, global_picture = draw_face(frame, face)
    area = max(right - left, 0) * max(bottom - top, 0)
    assert global_picture.any(axis=2).sum() == area


def test_a_frame_must_be_a_picture():
    with pytest.raises(ValueError, match="uint8"):
        draw_face(FRAME.astype(np.float32), None)
