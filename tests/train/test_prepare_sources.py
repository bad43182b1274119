"""Which videos a folder or a list names, whatever their names are made of, and that these come through to the set."""

import hashlib
import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from xdyna_model.errors import InputError
from xdyna_train.cli import main
from xdyna_train.prepare_sources import find_videos
from xdyna_train.shards import ShardReader

sys.path.insert(0, str(Path(__file__).parent))
from suit_films import SuitFinder, run

LATIN = os.fsdecode(b"caf\xe9.mp4")  # as older systems write é: no UTF-8


def test_a_list_of_videos(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"# two\nlong.mp4\n\n  deep/cut.mp4\r\ncaf\xe9.mp4\n/nowhere.mp4\n")
    assert find_videos(tmp_path / "list.txt") == {
        "/nowhere.mp4": Path("/nowhere.mp4"),
        LATIN: tmp_path / LATIN,
        "deep/cut.mp4": tmp_path / "deep/cut.mp4",
        "long.mp4": tmp_path / "long.mp4",
    }


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


def test_links_to_folders_are_followed_once(tmp_path: Path) -> None:
    """What has a name without links keeps it: a link that is made later must not make a video another one."""
    source, disk = tmp_path / "source", tmp_path / "disk"
    for folder in (source / "films", disk / "deep"):
        folder.mkdir(parents=True)
        (folder / "film.mp4").touch()
    (source / "zoo").symlink_to(disk)
    (source / "disk").symlink_to(disk)
    (source / "also").symlink_to(source / "films")
    (source / "film.MP4").symlink_to(disk / "deep" / "film.mp4")
    (disk / "back").symlink_to(source)
    (disk / "nowhere").symlink_to(tmp_path / "gone")
    (disk / "round").symlink_to("round")
    names = ["disk/deep/film.mp4", "film.MP4", "films/film.mp4"]
    assert find_videos(source) == {name: source / name for name in names}
    (tmp_path / "link").symlink_to(source)
    assert list(find_videos(tmp_path / "link")) == names


# Names that are not UTF-8


@pytest.fixture
def latin(videos: Path, tmp_path: Path) -> Path:
    """A folder with one video, of three clips."""
    (tmp_path / "videos").mkdir()
    (tmp_path / "videos" / LATIN).write_bytes((videos / "long.mp4").read_bytes())
    return tmp_path / "videos"


def test_a_name_that_is_not_utf_8_is_as_good_as_another(latin: Path, tmp_path: Path) -> None:
    (latin / os.fsdecode(b"\xe9.mkv")).write_text("no video")
    done: list[tuple[int, int]] = []
    for _ in range(2):
        report = run(latin, tmp_path / "set", on_video=lambda *numbers: done.append(numbers))
        assert (report.scenes, report.dropped, report.stale) == (3, {"unreadable": 1}, 0)
    assert done == [(1, 2), (2, 2), (2, 2)]  # what cannot be read is tried again
    reader = ShardReader(tmp_path / "set")
    names = [record.name for record in reader.records]
    assert names == [f"{LATIN}:{frames}" for frames in ("0-13", "13-26", "26-40")]
    assert reader.read(reader.records[0], 0, 13).name == names[0]
    dropped = json.loads((tmp_path / "set" / "dropped.jsonl").read_text())
    assert os.fsencode(dropped["video"]) == b"\xe9.mkv"


def test_parts_are_called_as_ever(videos: Path, tmp_path: Path) -> None:
    """Of other names, nothing that is finished would be found again."""
    (tmp_path / "list.txt").write_text("café.mp4", encoding="utf-8")
    run(tmp_path / "list.txt", tmp_path / "set")
    (part,) = (tmp_path / "set" / "parts").iterdir()
    assert part.name == f"caf-mp4-{hashlib.sha256('café.mp4'.encode()).hexdigest()[:12]}"


def test_a_folder_that_is_not_utf_8_can_be_written_and_named(
    latin: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("xdyna_train.prepare.EmbeddedFinder", lambda dwpose: SuitFinder())
    out = tmp_path / os.fsdecode(b"set-\xe9")
    with pytest.raises(SystemExit, match="0"):
        main(["prepare", str(latin), "--out", str(out), "--workers", "0", "--height", "128", "--width", "64"])
    assert r"set-\udce9; what was dropped" in capsys.readouterr().out
    assert ShardReader(out).records
