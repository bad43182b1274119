"""The same frames give the same bytes, and a video, like every other output, is written whole or not at all."""

import errno
import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import SafetensorError
from xdyna_model.errors import InputError
from xdyna_model.outputs import check_output, staged, staged_folder
from xdyna_model.video import read_frames, write_video

sys.path.insert(0, str(Path(__file__).parent))
from moving_pictures import noise


def test_same_frames_same_bytes(tmp_path: Path) -> None:
    """Whatever the memory held before: with x264's own settings every one of these came out different."""
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 128, (10, 128, 64, 3), dtype=np.uint8)
    for index, frame in enumerate(frames):  # somebody who lifts a bar
        frame[10:115, 30:34] += 127
        frame[40 + index : 44 + index, 10:50] = 200
    frames = np.tile(frames, (3, 1, 1, 1))
    written = set()
    for _ in range(6):
        _ = [rng.random(rng.integers(100, 200_000)) for _ in range(20)]
        write_video(tmp_path / "a.mp4", frames, fps=8)
        written.add((tmp_path / "a.mp4").read_bytes())
    assert len(written) == 1
    write_video(tmp_path / "a.mp4", 255 - frames, fps=8)
    assert (tmp_path / "a.mp4").read_bytes() not in written


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    count=st.integers(1, 5),
    height=st.integers(16, 64),
    width=st.integers(16, 64),
    colour=st.tuples(*[st.integers(0, 255)] * 3),
)
def test_what_is_written_is_read(tmp_path: Path, count: int, height: int, width: int, colour: tuple) -> None:
    frames = np.full((count, height, width, 3), colour, np.uint8)
    write_video(tmp_path / "plain.mp4", frames, fps=8)
    seen = read_frames(tmp_path / "plain.mp4").frames
    assert seen.shape == (count, height + height % 2, width + width % 2, 3)  # 4:2:0 has even sides only
    assert np.abs(seen.mean((0, 1, 2)) - colour).max() < 5


@pytest.mark.parametrize("fps", [0, -1, 1e-4, 241, float("nan"), float("inf")])
def test_a_rate_that_no_video_has(tmp_path: Path, fps: float) -> None:
    with pytest.raises(ValueError, match=r"frames per second; expected 0\.01 to 240"):
        write_video(tmp_path / "a.mp4", noise(1), fps=fps)
    assert not list(tmp_path.iterdir())


def test_frames_of_two_sizes(tmp_path: Path) -> None:
    frames = [np.zeros((32, 32, 3), np.uint8), np.zeros((16, 16, 3), np.uint8)]
    with pytest.raises(ValueError, match=r"frame 1 is \[16, 16, 3\] but frame 0 is \[32, 32, 3\]"):
        write_video(tmp_path / "a.mp4", frames, fps=8)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("fault", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), KeyboardInterrupt(), ValueError()])
@pytest.mark.parametrize("there_before", [False, True])
def test_a_fault_half_way_leaves_nothing(tmp_path: Path, fault: BaseException, there_before: bool) -> None:
    path = tmp_path / "out.mp4"
    if there_before:
        path.write_bytes(b"precious")

    def frames():
        yield from noise(10)
        raise fault

    with pytest.raises(InputError if isinstance(fault, OSError) else type(fault)) as error:
        write_video(path, frames(), fps=8)
    if isinstance(fault, OSError):
        assert str(error.value).startswith(f"{path}: cannot be written (no space left on device)")
    assert [p.name for p in tmp_path.iterdir()] == (["out.mp4"] if there_before else [])
    assert not there_before or path.read_bytes() == b"precious"


def test_the_system_refuses_half_way(tmp_path: Path) -> None:
    """A real fault in the encoder's own writing: a limit on the size of files, for want of a small disk."""
    path = tmp_path / "out.mp4"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(InputError, match="cannot be written"):
            write_video(path, noise(60), fps=8)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    assert not list(tmp_path.iterdir())


def test_no_frames(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one frame"):
        write_video(tmp_path / "out.mp4", [], fps=8)
    assert not list(tmp_path.iterdir())


# Outputs


def test_check_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_output(tmp_path / "new.mp4")
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="does not exist"):
        check_output(tmp_path / "missing" / "new.mp4")
    with pytest.raises(InputError, match="is a folder"):
        check_output(tmp_path)
    with pytest.raises(InputError, match="not a plain file"):
        check_output("/dev/null")

    def refuse(*_):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    monkeypatch.setattr(os, "open", refuse)  # the superuser, who runs tests in containers, may write anywhere
    with pytest.raises(InputError, match="permission denied"):
        check_output(tmp_path / "new.mp4")


def test_staged_files_appear_together(tmp_path: Path) -> None:
    one, two, link = tmp_path / "one.mp4", tmp_path / "two.png", tmp_path / "link.png"
    link.symlink_to(two)
    with staged(one, link) as drafts:
        for draft in drafts:
            draft.write_bytes(b"new")
        assert not one.exists()
        assert [draft.suffix for draft in drafts] == [".mp4", ".png"]
    assert one.read_bytes() == two.read_bytes() == b"new"
    assert link.is_symlink()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["link.png", "one.mp4", "two.png"]


def test_staged_folder(tmp_path: Path) -> None:
    with staged_folder(tmp_path / "model") as draft:
        (draft / "weights").write_bytes(b"1")
    assert (tmp_path / "model" / "weights").read_bytes() == b"1"
    with pytest.raises(InputError, match="is there already"), staged_folder(tmp_path / "model"):
        pass
    (tmp_path / "model" / "weights").unlink()
    with staged_folder(tmp_path / "model") as draft:  # an empty one makes way
        (draft / "weights").write_bytes(b"2")
    assert (tmp_path / "model" / "weights").read_bytes() == b"2"

    def interrupted() -> None:
        with staged_folder(tmp_path / "other") as draft:
            (draft / "weights").write_bytes(b"1")
            raise KeyboardInterrupt

    def full() -> None:
        with staged_folder(tmp_path / "other"):
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    with pytest.raises(InputError, match=r"other: cannot be written \(no space left on device\)"):
        full()
    assert [p.name for p in tmp_path.iterdir()] == ["model"]
