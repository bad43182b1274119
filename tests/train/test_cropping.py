"""Windows hold the person, have the ratio asked for and lie in the frame."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from xdyna_model.detectors import Person
from xdyna_train.cropping import Window, body_box, cut_out, middle_window, track_window

SIZE = (896, 512)
sides = st.integers(64, 2200)


@settings(deadline=None, max_examples=60)
@given(sides, sides, st.lists(st.tuples(*[st.floats(0, 1)] * 4), min_size=1, max_size=9))
def test_any_track_gives_a_window_in_the_frame(height: int, width: int, corners: list[tuple[float, ...]]) -> None:
    boxes = [
        np.array([min(x, u) * width, min(y, v) * height, max(x, u) * width, max(y, v) * height])
        for x, y, u, v in corners
    ]
    window = track_window(boxes, (height, width), SIZE)
    assert window.left >= 0
    assert window.top >= 0
    assert window.right <= width
    assert window.bottom <= height
    # To the nearest pixel, the ratio is right.
    assert abs(window.width - window.height * SIZE[1] / SIZE[0]) <= 1
    # Where the frame has room for it with all its margins, the whole track is held.
    left, top, right, bottom = boxes[0]
    needed = max(1.25 * (bottom - top), (right - left + 0.2 * (bottom - top)) * SIZE[0] / SIZE[1])
    if len(boxes) == 1 and needed < min(height, width * SIZE[0] / SIZE[1]) - 2:
        assert window.holds(boxes[0] + np.array([1, 1, -1, -1]))


def test_the_person_has_room_around() -> None:
    window = track_window([np.array([900.0, 300.0, 1000.0, 700.0])], (1080, 1920), SIZE)
    assert window == Window(left=807, top=240, right=1093, bottom=740)


def test_one_mistaken_joint_does_not_move_the_window() -> None:
    boxes = [np.array([900.0, 300.0, 1000.0, 700.0])] * 99
    astray = [*boxes, np.array([0.0, 0.0, 1900.0, 1000.0])]
    assert track_window(astray, (1080, 1920), SIZE) == track_window(boxes, (1080, 1920), SIZE)


@pytest.mark.parametrize("frame", [(1080, 1920), (1920, 1080), (896, 512), (65, 64)])
def test_scenes_are_cut_from_the_middle(frame: tuple[int, int]) -> None:
    window = middle_window(frame, SIZE)
    assert abs(window.left - (frame[1] - window.right)) <= 1
    assert abs(window.top - (frame[0] - window.bottom)) <= 1
    assert window.height == frame[0] or window.width == frame[1]


def test_what_is_cut_out_is_the_window() -> None:
    frame = np.zeros((1080, 1920, 3), np.uint8)
    window = Window(807, 240, 1093, 740)
    frame[240:740, 807:1093] = (200, 100, 50)
    cropped = cut_out(frame, window, *SIZE)
    assert cropped.shape == (896, 512, 3)
    assert (cropped == (200, 100, 50)).all()


def test_only_joints_that_were_found_count() -> None:
    body = np.full((14, 3), (5000, 5000, 0.1), np.float32)
    body[3], body[7] = (10, 20, 0.9), (30, 90, 0.4)
    person = Person(body, np.zeros((2, 21, 3), np.float32), np.zeros((68, 3), np.float32))
    np.testing.assert_array_equal(body_box(person), [10, 20, 30, 90])
