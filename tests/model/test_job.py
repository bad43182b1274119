"""A job: the size that it comes to, and what the built-in example fills in."""

from pathlib import Path

import pytest
from xdyna_model import job
from xdyna_model.errors import InputError
from xdyna_model.job import Job, choose_size


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (None, None, (896, 512)),
        (256, None, (448, 256)),
        (None, 448, (448, 256)),
        (320, 320, (320, 320)),
        (72, None, (128, 72)),
    ],
)
def test_sizes(width: int | None, height: int | None, size: tuple[int, int]) -> None:
    assert choose_size(Job(width=width, height=height), 896, 512) == size


def test_a_side_that_follows_from_the_other_is_bounded_too() -> None:
    with pytest.raises(InputError, match="the width comes to 24576 pixels"):
        choose_size(Job(height=16384), 64, 96)


def test_size_of_a_model_that_is_odd() -> None:
    with pytest.raises(InputError, match="multiple of 8"):
        choose_size(Job(), 100, 64)


def test_example_fills_what_is_not_given() -> None:
    assert Job().photo.parent == Job().videos["driving"].parent == job.EXAMPLE
    assert Job().length == job.EXAMPLE_FRAMES
    assert Job(frames=3).length == 3
    assert Job(reference=Path("me.png")).length == job.EXAMPLE_FRAMES
    own = Job(driving=Path("me.mp4"))
    assert own.videos == {"driving": Path("me.mp4")}
    assert own.length is None
