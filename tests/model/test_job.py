"""A job: the size that it comes to, what the built-in example fills in, and what can be seen to be wrong with it."""

from pathlib import Path

import pytest
from xdyna_model import job
from xdyna_model.detectors.dwpose import DWPOSE_FILES
from xdyna_model.errors import InputError
from xdyna_model.job import Job, check_job, choose_size


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


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ((), "finds people in a driving video; give one, or leave --dwpose out"),
        (("pose",), "finds people in a driving video; give one, or leave --dwpose out"),
        (job.VIDEOS, "has nothing to find, as the pose and both faces are ready-made; leave one of the four out"),
    ],
)
def test_dwpose_where_nothing_is_detected(tmp_path: Path, given: tuple[str, ...], says: str) -> None:
    videos = {name: job.EXAMPLE / f"{name}.mp4" for name in given}
    with pytest.raises(InputError, match=f"^--dwpose weights: {says}$"):
        check_job(Job(**videos, dwpose=Path("weights"), out=tmp_path / "out.mp4"))


def test_dwpose_files_are_looked_for_before_the_work(tmp_path: Path) -> None:
    folder, (boxes, pose) = tmp_path / "weights", DWPOSE_FILES
    task = Job(driving=job.EXAMPLE / "driving.mp4", dwpose=folder, out=tmp_path / "out.mp4")
    with pytest.raises(InputError, match=f"weights: no such folder; give the one that holds {boxes} and {pose}"):
        check_job(task)
    folder.mkdir()
    (folder / boxes).write_bytes(b"1")
    with pytest.raises(InputError, match=f"{pose}: no such file; check the name of the DWPose model"):
        check_job(task)
    (folder / pose).touch()
    with pytest.raises(InputError, match=f"{pose}: is an empty file"):
        check_job(task)
    (folder / pose).write_bytes(b"1")
    check_job(task)
