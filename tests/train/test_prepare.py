"""From a folder of videos to a data set: what is kept, what is dropped and why, and what is refused from the start."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from xdyna_model.detectors import Person
from xdyna_model.errors import InputError
from xdyna_model.video import crop_and_resize
from xdyna_train.cli import main
from xdyna_train.prepare import prepare
from xdyna_train.prepare_options import PrepareOptions
from xdyna_train.shards import ShardReader

sys.path.insert(0, str(Path(__file__).parent))
from suit_films import FPS, OPTIONS, SUIT, SuitFinder, place, run


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


# What is given


def test_a_video_that_is_not_there_costs_itself(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("nowhere.mp4")
    report = run(tmp_path / "list.txt", tmp_path / "set")
    assert report.dropped == {"unreadable": 1}
    assert ShardReader(tmp_path / "set").records == ()


def test_a_path_that_cannot_be_looked_at_costs_one_video(videos: Path, tmp_path: Path) -> None:
    """As of a line of prose in the list, too long for a file's name; a folder without permission is alike."""
    (tmp_path / "list.txt").write_text(f"{videos / 'long.mp4'}\n{300 * 'x'}.mp4\n")
    report = run(tmp_path / "list.txt", tmp_path / "set")
    assert report.dropped == {"unreadable": 1}
    assert (report.scenes, report.stale) == (3, 0)
    assert json.loads((tmp_path / "set" / "report.json").read_text())["scenes"] == 3


@pytest.mark.parametrize("in_the_way", ["set", "set/.lock/folder"])
def test_a_place_that_cannot_be_written_to(videos: Path, tmp_path: Path, in_the_way: str) -> None:
    (tmp_path / in_the_way).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / in_the_way).touch()
    with pytest.raises(InputError, match=r"set: cannot be written to \("):
        run(videos, tmp_path / "set")


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
