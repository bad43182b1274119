"""Windows: the recorded schedules exactly, and what must hold for any clip."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st
from xdyna_model import windows

NUMBERS = st.tuples(st.integers(1, 200), st.integers(2, 24), st.integers(0, 23), st.integers(0, 40)).filter(
    lambda n: n[2] < n[1]
)


def test_recorded_schedules(oracle_json):
    rows = oracle_json("windows")["rows"]
    assert len(rows) == 600
    for step, num_frames, size, stride, overlap, loop, offset, expected in rows:
        found = windows.uniform(num_frames, size, overlap, stride, wrap=loop, offset=offset, step=step)
        assert found == expected


@given(NUMBERS)
def test_uniform_covers_the_clip(numbers):
    num_frames, size, overlap, offset = numbers
    found = windows.uniform(num_frames, size, overlap, offset=offset)
    assert {i for window in found for i in window} == set(range(num_frames))
    assert all(len(set(window)) == len(window) == min(size, num_frames) for window in found)


@given(NUMBERS)
def test_sliding_covers_the_clip_and_never_joins_its_ends(numbers):
    num_frames, size, overlap, offset = numbers
    found = windows.sliding(num_frames, size, overlap, offset)
    assert {i for window in found for i in window} == set(range(num_frames))
    for window in found:
        assert window == list(range(window[0], window[0] + min(size, num_frames)))
    for before, after in itertools.pairwise(found):
        assert before[-1] - after[0] + 1 >= overlap


@pytest.mark.parametrize("schedule", [windows.uniform, windows.sliding])
@pytest.mark.parametrize("numbers", [(0, 16, 4), (10, 4, 4), (10, 4, -1)])
def test_impossible_numbers_are_refused(schedule, numbers):
    with pytest.raises(ValueError, match="expected"):
        schedule(*numbers)
