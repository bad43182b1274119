"""`xdyna-train puppets`: the same seed, the same bytes; clips with their truth; one clear line for a mistake."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from xdyna_model.errors import InputError
from xdyna_train import cli, puppet_clips
from xdyna_train.puppet_clips import PuppetSet, write_puppets
from xdyna_train.puppets import KINDS
from xdyna_train.shards import ShardReader

SMALL = PuppetSet(num_clips=10, seed=3, height=48, width=32, num_frames=3, scene_share=0.3)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def run(capfd: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as exit_info:
        cli.main(["puppets", *argv])
    out, err = capfd.readouterr()
    return int(exit_info.value.code or 0), out, err


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_workers(tmp_path: Path) -> None:
    counts: list[int] = []
    records = write_puppets(SMALL, tmp_path / "one", 1, counts.append)
    assert counts == list(range(1, 11))
    assert write_puppets(SMALL, tmp_path / "two", 2) == records
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    for index in (0, 7):
        other = PuppetSet(20, 4, 48, 32, 3).clip(index)
        assert other.files["mp4"] != SMALL.clip(index).files["mp4"]


def test_a_longer_set_begins_with_the_shorter_one() -> None:
    longer = PuppetSet(500, 3, 48, 32, 3)
    assert all(SMALL.clip(index).files == longer.clip(index).files for index in (0, 9))


def test_the_clips_carry_their_truth(tmp_path: Path) -> None:
    records = write_puppets(SMALL, tmp_path / "set")
    assert sum(record.kind == "scene" for record in records) == 3
    reader = ShardReader(tmp_path / "set")
    assert len({record.name for record in reader.records}) == 10
    for record in reader.records:
        clip = reader.read(record, 0, 3)
        notes = record.facts.notes
        assert notes["scene"] in KINDS
        assert clip.frames.shape == (3, 48, 32, 3)
        if record.kind == "scene":
            assert clip.persons == (None,) * 3
            assert not clip.masks.any()
            assert "expressions" not in notes
            continue
        assert len(notes["expressions"]) == 3
        assert {"mouth", "smile", "eyes", "gaze", "brow"} == set(notes["expressions"][0])
        for person, mask in zip(clip.persons, clip.masks, strict=True):
            assert person is not None
            x, y = np.floor(person.body[1, :2]).astype(int)  # the neck
            assert mask[y, x]


@pytest.mark.parametrize(("share", "scenes"), [(0.0, 0), (0.25, 5), (1.0, 20)])
def test_scenes_have_the_share_asked_for(share: float, scenes: int) -> None:
    puppet_set = PuppetSet(20, 0, 16, 16, 1, share)
    assert sum(puppet_set.clip(index).facts.kind == "scene" for index in range(20)) == scenes


def test_the_command_writes_a_data_set(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "set"
    code, told, _ = run(capfd, "--out", str(out), "--clips", "4", "--seed", "7", "--size", "32x48", "--frames", "2")
    assert code == 0
    assert told == f"Wrote {out}: 4 clips, 3 with a puppet, 1 of a scene alone\n"
    assert [(record.height, record.width, record.num_frames) for record in ShardReader(out).records] == [
        (32, 48, 2)
    ] * 4


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--clips", "0"], "0 clips"),
        (["--clips", "2", "--frames", "0"], "0 frames"),
        (["--clips", "2", "--size", "8x64"], "16 to 4096"),
        (["--clips", "2", "--size", "64"], "HEIGHTxWIDTH"),
        (["--clips", "2", "--scenes", "1.5"], "0 to 1"),
        (["--clips", "2", "--seed", "-1"], "0 or more"),
        (["--clips", "2", "--workers", "0"], "at least one"),
    ],
)
def test_a_mistake_is_one_clear_line_and_nothing_is_written(
    argv: list[str], message: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run(capfd, "--out", str(tmp_path / "set"), *argv)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1
    assert message in err
    assert not list(tmp_path.iterdir())


def test_what_is_there_already_is_left_alone(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    photos, missing = tmp_path / "photos", tmp_path / "missing" / "set"
    photos.mkdir()
    (photos / "holiday.jpg").write_bytes(b"precious")
    code, _, err = run(capfd, "--out", str(photos), "--clips", "2")
    assert (code, err.count("\n")) == (2, 1)
    assert "is there already" in err
    assert contents(photos) == {"holiday.jpg": b"precious"}
    code, _, err = run(capfd, "--out", str(missing), "--clips", "2")
    assert (code, err.count("\n")) == (2, 1)
    assert "does not exist" in err


def test_a_process_that_is_killed_is_not_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by a machine that has no memory left: one that is to draw clips dies before its first."""
    monkeypatch.setattr(puppet_clips.PuppetSet, "__reduce__", lambda self: (os.abort, ()))
    with pytest.raises(InputError, match="a process that draws ended early"):
        write_puppets(PuppetSet(8, 0, 64, 64, 2, 0.0), tmp_path / "set", workers=2)
    assert list(tmp_path.iterdir()) == []


def test_a_script_without_a_main_guard_is_told(tmp_path: Path) -> None:
    """Each process that draws runs it again."""
    script = tmp_path / "script.py"
    script.write_text(
        "from xdyna_train.puppet_clips import PuppetSet, write_puppets\n"
        "write_puppets(PuppetSet(8, 0, 16, 16, 1), 'set', workers=2)\n"
    )
    done = subprocess.run([sys.executable, script], cwd=tmp_path, check=False, capture_output=True, text=True)
    assert "InputError: a process that draws ended early" in done.stderr
    assert "a script needs `if __name__ == '__main__'`" in done.stderr
    assert list(tmp_path.iterdir()) == [script]


def test_processes_that_draw_do_not_outlive_a_killed_run(tmp_path: Path) -> None:
    """They hold its output as it does: that is at its end once all are gone."""
    command = [sys.executable, "-m", "xdyna_train", "puppets", "--clips", "4000", "--workers", "2", "--out", "set"]
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, start_new_session=True) as drawing:
        try:
            while not list(tmp_path.glob(".set.*/*shard*")):
                assert drawing.poll() is None
                time.sleep(0.1)
            drawing.kill()
            drawing.communicate(timeout=20)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(drawing.pid, signal.SIGKILL)


def test_few_clips_are_asked_for_before_they_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or a large set fills the memory, and Ctrl-C waits for it."""
    asked, ahead = [], []

    class Counted(ThreadPoolExecutor):
        def __init__(self, workers: int, *_: object) -> None:
            super().__init__(workers)

        def submit(self, fn: Callable, /, *args: Any, **named: Any) -> Future:
            asked.append(args)
            return super().submit(fn, *args, **named)

    monkeypatch.setattr(puppet_clips, "ProcessPoolExecutor", Counted)
    write_puppets(PuppetSet(30, 0, 16, 16, 1), tmp_path / "set", 2, lambda taken: ahead.append(len(asked) - taken))
    assert max(ahead) == 4
    assert len(asked) == 30


def test_an_interrupted_set_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(drawn: int) -> None:
        if drawn == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        puppet_clips.write_puppets(SMALL, tmp_path / "set", 1, interrupt)
    assert not list(tmp_path.iterdir())
