"""A checkpoint is whole or passed over, whatever happens to the disk."""

import errno
import resource
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xdyna_model.errors import InputError
from xdyna_train.checkpoint import checkpoints, load_latest, save_checkpoint


def state(step: int) -> dict[str, Any]:
    return {"weights": {"a": torch.arange(50.0) * step}, "config": "{}", "count": step}


def loaded_step(folder: Path) -> int:
    found = load_latest(folder)
    assert found is not None
    step, loaded, _ = found
    assert loaded["count"] == step
    assert torch.equal(loaded["weights"]["a"], torch.arange(50.0) * step)
    return step


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    for step in (1, 2):
        save_checkpoint(folder, step, state(step), keep=2)
    return folder


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_any_flipped_bit_is_found(two: Path, data: st.DataObject) -> None:
    path = two / "step-00000002" / data.draw(st.sampled_from(["state.pt", "seal.json"]))
    whole = path.read_bytes()
    position, bit = data.draw(st.integers(0, len(whole) - 1)), data.draw(st.integers(0, 7))
    broken = bytearray(whole)
    broken[position] ^= 1 << bit
    path.write_bytes(broken)
    try:
        found = load_latest(two)
        assert found is not None
        assert (found[0], found[2]) == (1, [path.parent])
    finally:
        path.write_bytes(whole)
    assert loaded_step(two) == 2


@given(st.data())
@settings(max_examples=20, deadline=None)
def test_a_cut_off_or_missing_file_is_found(two: Path, data: st.DataObject) -> None:
    path = two / "step-00000002" / data.draw(st.sampled_from(["state.pt", "seal.json"]))
    whole = path.read_bytes()
    path.unlink()
    length = data.draw(st.one_of(st.none(), st.integers(0, len(whole) - 1)))
    if length is not None:
        path.write_bytes(whole[:length])
    try:
        assert loaded_step(two) == 1
    finally:
        path.write_bytes(whole)


def test_nothing_whole_is_told_in_one_line(two: Path, tmp_path: Path) -> None:
    shutil.copytree(two, tmp_path / "all")
    for seal in (tmp_path / "all").glob("*/seal.json"):
        seal.write_text("")
    with pytest.raises(
        InputError, match=r"^[^\n]*none of its 2 checkpoints is whole; remove the folder to start anew$"
    ):
        load_latest(tmp_path / "all")


def test_no_checkpoint_is_none(tmp_path: Path) -> None:
    assert load_latest(tmp_path / "missing") is None


@contextmanager
def refused(monkeypatch: pytest.MonkeyPatch, call: int) -> Iterator[list[str]]:
    """The disk is full at the nth time something is made, written, flushed or renamed."""
    calls: list[str] = []

    def counted(name: str, real: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            calls.append(name)
            if len(calls) == call:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*args, **kwargs)

        return wrapper

    class Watched:
        def __init__(self, file: Any) -> None:
            self._file = file
            self.write, self.flush = counted("write", file.write), counted("flush", file.flush)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

        def __enter__(self) -> "Watched":
            return self

        def __exit__(self, *_: Any) -> None:
            self._file.close()

    with monkeypatch.context() as patch:
        real_open = Path.open

        def opened(path: Path, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
            if "w" not in mode:
                return real_open(path, mode, *args, **kwargs)
            return Watched(counted("open", real_open)(path, mode, *args, **kwargs))

        patch.setattr(Path, "open", opened)
        patch.setattr(Path, "mkdir", counted("mkdir", Path.mkdir))
        patch.setattr(Path, "replace", counted("replace", Path.replace))
        patch.setattr("os.fsync", counted("fsync", lambda _: None))
        yield calls


def test_a_full_disk_at_any_call_leaves_the_checkpoint_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(tmp_path, 1, state(1), keep=1)
    told: list[str] = []
    seen: set[str] = set()
    call = 0
    for call in range(1, 1000):
        with refused(monkeypatch, call) as calls:
            try:
                save_checkpoint(tmp_path, 2, state(2), keep=1)
                break
            except InputError as error:
                told.append(str(error))
        seen |= set(calls)
        assert loaded_step(tmp_path) == 1
        assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]  # no draft is left
    assert {"mkdir", "write", "flush", "fsync", "replace"} <= seen
    assert len(told) == call - 1 > 10
    assert all("no space left on device" in line and "\n" not in line for line in told)
    assert loaded_step(tmp_path) == 2


def test_the_system_refusing_bytes_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, state(1), keep=1)
    size = (path / "state.pt").stat().st_size
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in range(0, size, size // 7):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(InputError, match=r"^[^\n]*cannot be written \(file too large\)[^\n]*$"):
                save_checkpoint(tmp_path, 2, state(2), keep=1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        assert loaded_step(tmp_path) == 1


def test_only_the_last_are_kept_and_what_is_out_of_date_goes(tmp_path: Path) -> None:
    for step in (1, 2, 3, 9):
        save_checkpoint(tmp_path, step, state(step), keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-00000003", "step-00000009"]
    (tmp_path / "step-00000009" / "seal.json").write_text("")
    (tmp_path / ".step-00000009.0123abcd").mkdir()  # a process was killed here
    save_checkpoint(tmp_path, 4, state(4), keep=1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000004"]
    assert loaded_step(tmp_path) == 4


def test_a_damaged_checkpoint_is_written_again(tmp_path: Path) -> None:
    path = save_checkpoint(tmp_path, 1, state(1), keep=2)
    (path / "state.pt").write_bytes(b"")
    assert save_checkpoint(tmp_path, 1, state(1), keep=2) == path
    assert loaded_step(tmp_path) == 1
