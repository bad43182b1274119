"""From a folder of videos to a data set: what is kept, what is dropped and why, and that a killed run loses nothing."""

import json
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from ray import cloudpickle
from xdyna_model.detectors import Person
from xdyna_model.errors import InputError
from xdyna_model.video import crop_and_resize, write_video
from xdyna_train.cli import main
from xdyna_train.prepare import find_videos, prepare
from xdyna_train.prepare_options import PrepareOptions
from xdyna_train.prepare_video import MOST_TRIES
from xdyna_train.puppets import sample_clip
from xdyna_train.shards import ShardReader

OPTIONS = PrepareOptions(height=128, width=64, max_enlargement=4.0, max_seconds=2.0, min_quality=0.1)
FPS = 8
HEIGHT, WIDTH = 144, 240
SUIT = np.array((255, 0, 255))


class SuitFinder:
    """Finds whoever wears a suit of pure magenta: fourteen joints on the sides of the suit, and the suit as mask."""

    def __init__(self) -> None:
        self.frames = 0

    def restart(self) -> None:
        self.frames = 0

    def person(self, frame: np.ndarray) -> Person | None:
        self.frames += 1
        rows, columns = np.nonzero(self.mask(frame))
        if len(rows) < 30:
            return None
        body = np.ones((14, 3), np.float32)
        body[:, 0] = np.linspace(columns.min(), columns.max(), 14)
        body[:, 1] = np.linspace(rows.min(), rows.max(), 14)
        return Person(body, np.zeros((2, 21, 3), np.float32), np.zeros((68, 3), np.float32))

    def mask(self, frame: np.ndarray) -> np.ndarray:
        return np.abs(frame.astype(int) - SUIT).max(-1) < 90


def make_finder(options: PrepareOptions) -> SuitFinder:
    return SuitFinder()


def run(source: Path, out: Path, options: PrepareOptions = OPTIONS, **more):
    return prepare(source, out, options, workers=0, clips_per_shard=2, make_finder=make_finder, **more)


def place(kind: str, num_frames: int, seed: int = 1) -> np.ndarray:
    frames = sample_clip(np.random.default_rng(seed), num_frames, HEIGHT, WIDTH, kind, people=False)
    return np.stack([frame.rgb for frame in frames])


def walk(frames: np.ndarray, start: float, step: float, height: int = 80) -> np.ndarray:
    """Somebody in a suit walks through, its left side from `start` on, `step` pixels a frame."""
    walked = frames.copy()
    for index, frame in enumerate(walked):
        left = round(start + step * index)
        frame[40 : 40 + height, left : left + height // 3] = SUIT
    return walked


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("videos")
    (folder / "deep").mkdir()
    grass, ocean = place("grass", 12), place("ocean", 40)
    films = {
        "deep/cut.mp4": [*walk(grass, 60, 1), *place("room", 5), *place("stars", 12)],  # a human, too short, a scene
        "long.mp4": ocean,  # three pieces
        "comes-late.mp4": [*grass[:6], *walk(grass[6:], 60, 1)],
        "far-away.mp4": walk(grass, 60, 0, height=18),
        "runs-off.mp4": walk(grass, 10, 18),
        "blurred.mp4": [np.full_like(grass[0], 90)] * 10,
    }
    for name, frames in films.items():
        write_video(folder / name, frames, FPS, crf=8)
    whole = (folder / "long.mp4").read_bytes()
    (folder / "cut-off.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "text.mkv").write_text("no video")
    (folder / "notes.txt").write_text("not even called one")
    return folder


@pytest.fixture(scope="module")
def prepared(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "set"
    run(videos, out)
    return out


def dropped(out: Path) -> dict[tuple[str, int | None, int | None], str]:
    entries = [json.loads(line) for line in (out / "dropped.jsonl").read_text().splitlines()]
    assert all(entry["detail"] for entry in entries)
    return {(entry["video"], entry["first"], entry["last"]): entry["reason"] for entry in entries}


def test_every_frame_is_kept_or_dropped_for_the_right_reason(prepared: Path) -> None:
    kept = {record.name: record.kind for record in ShardReader(prepared).records}
    assert kept == {
        "deep/cut.mp4:0-12": "human",
        "deep/cut.mp4:17-29": "scene",
        "long.mp4:0-13": "scene",
        "long.mp4:13-26": "scene",
        "long.mp4:26-40": "scene",
    }
    assert list(kept) == sorted(kept)
    assert dropped(prepared) == {
        ("blurred.mp4", 0, 10): "low quality",
        ("comes-late.mp4", 0, 12): "unclear",
        ("cut-off.mp4", None, None): "unreadable",
        ("deep/cut.mp4", 12, 17): "too short",
        ("far-away.mp4", 0, 12): "too small",
        ("runs-off.mp4", 0, 12): "does not fit",
        ("text.mkv", None, None): "unreadable",
    }


def test_the_person_is_where_the_clip_says(prepared: Path) -> None:
    reader = ShardReader(prepared)
    clip = reader.read(reader.records[0], 0, 12)
    assert clip.frames.shape == (12, 128, 64, 3)
    assert clip.fps == FPS
    height = clip.masks.any(axis=2).sum(axis=1)
    assert (height == height[0]).all()
    assert height[0] > 60  # cropped to: 80 of 144 rows before
    for frame, person, mask in zip(clip.frames, clip.persons, clip.masks, strict=True):
        assert person is not None
        rows, columns = np.nonzero(np.abs(frame.astype(int) - SUIT).max(-1) < 90)
        # Found in a picture eight times as large, whose last pixel of the suit lies up to two small ones further.
        np.testing.assert_allclose(person.body[[0, -1], 0], (columns.min(), columns.max()), atol=2)
        np.testing.assert_allclose(person.body[[0, -1], 1], (rows.min(), rows.max()), atol=2)
        assert mask[rows, columns].mean() > 0.95
        assert mask.sum() < 1.05 * len(rows)


def test_scenes_are_the_middle_of_their_frames(prepared: Path) -> None:
    reader = ShardReader(prepared)
    record = reader.records[-1]
    clip = reader.read(record, 0, record.num_frames)
    assert clip.persons == (None,) * record.num_frames
    assert not clip.masks.any()
    middle = crop_and_resize(place("ocean", 40)[26:], 128, 64)
    assert np.abs(clip.frames.astype(int) - middle).mean() < 8


def test_the_report_adds_up(prepared: Path) -> None:
    report = json.loads((prepared / "report.json").read_text())
    assert (report["videos"], report["refused"]) == (8, 2)
    assert (report["humans"], report["scenes"]) == (1, 4)
    assert report["dropped"] == {
        "unreadable": 2,
        "low quality": 1,
        "unclear": 1,
        "too short": 1,
        "too small": 1,
        "does not fit": 1,
    }
    assert report["frames"] == 29 + 40 + 12 + 12 + 12 + 10
    assert report["source_hours"] == pytest.approx(report["frames"] / FPS / 3600)
    assert report["kept_hours"] == pytest.approx((12 + 12 + 40) / FPS / 3600)
    assert 0 < report["core_hours"] < 1


# Restarting


def contents(out: Path) -> dict[str, bytes]:
    """Everything that does not tell of time."""
    files = {path.relative_to(out).as_posix(): path for path in out.rglob("*") if path.is_file()}
    return {
        name: path.read_bytes() for name, path in files.items() if not name.endswith(("report.json", "result.json"))
    }


KILLED = """
    import os, signal, sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    import test_prepare

    countdown = int(sys.argv[1])

    class Mortal(test_prepare.SuitFinder):
        def restart(self):
            global countdown
            countdown -= 1
            if countdown == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            super().restart()

    test_prepare.make_finder = lambda options: Mortal()
    test_prepare.run(Path(sys.argv[2]), Path(sys.argv[3]))
"""


def test_a_killed_run_is_taken_up(videos: Path, prepared: Path, tmp_path: Path) -> None:
    moment = 5  # in the second video that shows somebody
    script = textwrap.dedent(KILLED).format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, str(moment), str(videos), str(tmp_path / "set")]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    with pytest.raises(InputError, match="is no data set"):
        ShardReader(tmp_path / "set")
    run(videos, tmp_path / "set")
    assert contents(tmp_path / "set") == contents(prepared)


def test_a_video_that_kills_its_process_is_left_out_in_the_end(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(f"{videos / 'deep/cut.mp4'}\n{videos / 'text.mkv'}\n")
    script = textwrap.dedent(KILLED).format(tests=str(Path(__file__).parent))
    command = [sys.executable, "-c", script, "1", str(tmp_path / "list.txt"), str(tmp_path / "set")]
    for _ in range(MOST_TRIES):
        assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
    assert subprocess.run(command, check=False).returncode == 0
    assert "3 processes died over it" in (tmp_path / "set" / "dropped.jsonl").read_text()
    # A newer decoder may have come: the next run tries again.
    assert run(tmp_path / "list.txt", tmp_path / "set").humans > 0


def test_a_run_killed_while_merging_is_taken_up(
    videos: Path, prepared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    out = tmp_path / "set"
    with monkeypatch.context() as patch:
        patch.setattr("xdyna_train.prepare.write_manifest", killed)
        with pytest.raises(KeyboardInterrupt):
            run(videos, out)
    (out / ".shard-00001.0123abcd.tar").write_bytes(b"a draft")
    (out / ".manifest.0123abcd.jsonl").write_bytes(b"another")
    (out / "shard-00007.tar").write_bytes(b"of an earlier list of videos")
    run(videos, out)
    assert contents(out) == contents(prepared)


def test_a_second_run_does_only_what_is_missing(videos: Path, prepared: Path, tmp_path: Path) -> None:
    for path in videos.rglob("*.*"):
        if path.name not in ("long.mp4", "text.mkv"):
            (tmp_path / "videos" / path.relative_to(videos)).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "videos" / path.relative_to(videos)).write_bytes(path.read_bytes())
    out = tmp_path / "set"
    run(tmp_path / "videos", out)
    first = contents(out)
    done: list[tuple[int, int]] = []
    run(tmp_path / "videos", out, on_video=lambda *numbers: done.append(numbers))
    assert done == [(6, 6)]  # cut-off.mp4: what could not be read may have arrived
    assert contents(out) == first
    done.clear()
    (tmp_path / "videos" / "long.mp4").write_bytes((videos / "long.mp4").read_bytes())
    run(tmp_path / "videos", out, on_video=lambda *numbers: done.append(numbers))
    assert done == [(6, 7), (7, 7)]
    reader = ShardReader(out)
    assert {r.name for r in reader.records} == {r.name for r in ShardReader(prepared).records}
    assert all(len(reader.read(record, 0, record.num_frames).frames) for record in reader.records)
    assert (out / "shard-00000.tar").read_bytes() == first["shard-00000.tar"]


def test_other_options_are_refused(videos: Path, prepared: Path) -> None:
    with pytest.raises(InputError, match=r"other options \(min_quality 0.1\)"):
        run(videos, prepared, PrepareOptions(**{**vars(OPTIONS), "min_quality": 0.5}))


def test_other_videos_are_refused(videos: Path, prepared: Path, tmp_path: Path) -> None:
    """Their parts have the same names where their files have."""
    (tmp_path / "long.mp4").write_bytes((videos / "deep/cut.mp4").read_bytes())
    with pytest.raises(InputError, match=rf"other options \(source {videos}\)"):
        run(tmp_path, prepared)


def test_shards_of_others_are_left_alone(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "train-shard-0007.tar").write_bytes(b"somebody's")
    with pytest.raises(InputError, match="holds another data set"):
        run(videos, tmp_path)
    assert (tmp_path / "train-shard-0007.tar").read_bytes() == b"somebody's"


def test_two_runs_do_not_share_a_folder(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text(str(videos / "deep/cut.mp4"))
    refused: list[str] = []

    def again(*_: int) -> None:
        with pytest.raises(InputError, match="another run is at work") as caught:
            run(tmp_path / "list.txt", tmp_path / "set")
        refused.append(str(caught.value))

    run(tmp_path / "list.txt", tmp_path / "set", on_video=again)
    assert len(refused) == 1


def test_a_video_that_was_away_is_tried_again(videos: Path, tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("cut.mp4")
    assert run(tmp_path / "list.txt", tmp_path / "set").dropped == {"unreadable": 1}
    (tmp_path / "cut.mp4").write_bytes((videos / "deep/cut.mp4").read_bytes())
    report = run(tmp_path / "list.txt", tmp_path / "set")
    assert "unreadable" not in report.dropped
    assert len(ShardReader(tmp_path / "set").records) == report.humans + report.scenes > 0


# What is given


def test_a_list_of_videos(videos: Path, tmp_path: Path) -> None:
    (videos / "list.txt").write_text("# two\nlong.mp4\n\n  deep/cut.mp4\nnowhere.mp4\n")
    assert find_videos(videos / "list.txt") == {
        "deep/cut.mp4": videos / "deep/cut.mp4",
        "long.mp4": videos / "long.mp4",
        "nowhere.mp4": videos / "nowhere.mp4",
    }
    (tmp_path / "list.txt").write_text("nowhere.mp4")
    report = run(tmp_path / "list.txt", tmp_path / "set")
    assert report.dropped == {"unreadable": 1}
    assert ShardReader(tmp_path / "set").records == ()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: path, "no such folder or list"),
        (lambda path: (path.mkdir(), path)[1], "holds no videos"),
        (lambda path: (path.write_text("# nothing\n"), path)[1], "names no videos"),
        (lambda path: (path.write_bytes(b"\xff\xfe\x00"), path)[1], "neither a folder nor a text file"),
    ],
)
def test_what_is_no_source(tmp_path: Path, make: Callable[[Path], Path], message: str) -> None:
    with pytest.raises(InputError, match=message):
        run(make(tmp_path / "source"), tmp_path / "set")


@pytest.mark.parametrize(
    "wrong",
    [{"height": 100}, {"width": 56}, {"min_seconds": 0.1}, {"max_seconds": 0.9}, {"min_quality": 1.5},
     {"scene_rate": 0.95}, {"max_enlargement": 0}],
)  # fmt: skip
def test_options_that_contradict_themselves(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError):
        PrepareOptions(**wrong)


@pytest.mark.parametrize("value", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize(
    "name", ["min_seconds", "max_seconds", "min_quality", "human_rate", "scene_rate", "max_enlargement"]
)
def test_options_are_finite(name: str, value: float) -> None:
    with pytest.raises(InputError, match=rf"^--{name.replace('_', '-')} {value}: must be a finite number$"):
        PrepareOptions(**{name: value})


def test_clips_may_be_as_long_as_they_like(videos: Path, tmp_path: Path) -> None:
    """1e308 seconds are infinitely many frames, for a float."""
    (tmp_path / "list.txt").write_text(str(videos / "long.mp4"))
    report = run(tmp_path / "list.txt", tmp_path / "set", PrepareOptions(**{**vars(OPTIONS), "max_seconds": 1e308}))
    assert (report.scenes, report.dropped) == (1, {})


def test_an_unexpected_error_costs_one_video(videos: Path, tmp_path: Path) -> None:
    class Broken(SuitFinder):
        def person(self, frame: np.ndarray) -> Person | None:
            raise ZeroDivisionError("what a detector does")

    (tmp_path / "list.txt").write_text(f"{videos / 'long.mp4'}\n{videos / 'text.mkv'}\n")
    report = prepare(tmp_path / "list.txt", tmp_path / "set", OPTIONS, workers=0, make_finder=lambda _: Broken())
    assert report.dropped == {"failed": 1, "unreadable": 1}
    assert "ZeroDivisionError: what a detector does" in (tmp_path / "set" / "dropped.jsonl").read_text()


# The command


def command(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as end:
        main(["prepare", *map(str, arguments)])
    return int(end.value.code)


def test_the_command_says_what_it_made(
    videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("xdyna_train.prepare.EmbeddedFinder", lambda dwpose: SuitFinder())
    (tmp_path / "list.txt").write_text(f"{videos / 'runs-off.mp4'}\n{videos / 'text.mkv'}\n")
    size = ("--height", "128", "--width", "64")
    assert command(tmp_path / "list.txt", "--out", tmp_path / "set", "--workers", "0", *size) == 0
    out = capsys.readouterr().out
    assert "2 videos" in out
    assert "kept 0 human and 0 scene clips" in out
    assert "1 does not fit" in out
    assert "1 unreadable" in out


@pytest.mark.parametrize(
    "wrong",
    [("--height", "100"), ("--max-seconds", "inf"), ("--dwpose", "nowhere"), ("--quality-model", "nowhere.onnx")],
)
def test_the_command_refuses_in_one_line(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], wrong: tuple[str, str]
) -> None:
    assert command(videos, "--out", tmp_path / "set", "--workers", "0", *wrong) == 2
    error = capsys.readouterr().err
    assert error.startswith("xdyna-train: error: ")
    assert error.count("\n") == 1


# Ray


def with_ray(source: Path, out: Path, finder: Callable[[PrepareOptions], SuitFinder]) -> None:
    pickle_by_value = sys.modules[__name__]
    cloudpickle.register_pickle_by_value(pickle_by_value)  # the workers cannot import a test
    try:
        prepare(source, out, OPTIONS, workers=1, clips_per_shard=2, make_finder=finder)
    except InputError as error:
        if "Ray did not start" in str(error):
            pytest.skip(str(error))
        raise
    finally:
        cloudpickle.unregister_pickle_by_value(pickle_by_value)


def test_ray_makes_the_same_set(videos: Path, prepared: Path, tmp_path: Path) -> None:
    def suited(_: PrepareOptions) -> SuitFinder:
        return SuitFinder()

    with_ray(videos, tmp_path / "set", suited)
    assert contents(tmp_path / "set") == contents(prepared)


def test_ray_outlives_a_video_that_kills_its_workers(videos: Path, tmp_path: Path) -> None:
    class Mortal(SuitFinder):
        def restart(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    def mortal(_: PrepareOptions) -> SuitFinder:
        return Mortal()

    (tmp_path / "list.txt").write_text(f"{videos / 'deep/cut.mp4'}\n{videos / 'text.mkv'}\n")
    with_ray(tmp_path / "list.txt", tmp_path / "set", mortal)
    assert "3 processes died over it" in (tmp_path / "set" / "dropped.jsonl").read_text()
