"""A data set made again, after a kill or by Ray, is the same; nothing is done twice, what is others' is left alone."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import ray
from ray import cloudpickle
from xdyna_model.errors import InputError
from xdyna_train.prepare import prepare
from xdyna_train.prepare_options import PrepareOptions
from xdyna_train.prepare_video import MOST_TRIES
from xdyna_train.shards import ShardReader

sys.path.insert(0, str(Path(__file__).parent))
from suit_films import OPTIONS, SuitFinder, run


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
    import suit_films

    countdown = int(sys.argv[1])

    class Mortal(suit_films.SuitFinder):
        def restart(self):
            global countdown
            countdown -= 1
            if countdown == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            super().restart()

    suit_films.make_finder = lambda options: Mortal()
    suit_films.run(Path(sys.argv[2]), Path(sys.argv[3]))
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


def test_clips_of_videos_that_are_gone_or_new_are_counted(videos: Path, tmp_path: Path) -> None:
    """They stay in their shards; whoever thinks a withdrawn video is out of the set must be told."""
    (tmp_path / "films").mkdir()
    films = [tmp_path / "films" / f"{name}.mp4" for name in ("changed", "gone", "same")]
    for film in films:
        film.write_bytes((videos / "deep/cut.mp4").read_bytes())
    first = run(tmp_path / "films", tmp_path / "set")
    assert first.stale == 0
    assert not any("they stay" in line for line in first.lines())
    one = (first.humans + first.scenes) // 3
    films[1].unlink()
    os.utime(films[0], (time.time() + 60, time.time() + 60))
    second = run(tmp_path / "films", tmp_path / "set")
    assert second.stale == 2 * one > 0
    assert f"{2 * one} of the clips are of videos that are gone, or have changed since" in "".join(second.lines())


# Ray


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("auto", "Could not find any running Ray instance"),
        ("http://127.0.0.1:8265", "Invalid Ray address: 'http://127.0.0.1:8265'"),
    ],
)
def test_a_cluster_that_is_not_there_is_named(
    address: str, reason: str, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    told = re.escape(f"RAY_ADDRESS {address}: Ray cannot be reached there ({reason}); correct it, or unset it")
    with pytest.raises(InputError, match=told):
        prepare(videos, tmp_path / "set", OPTIONS)


@pytest.mark.parametrize("address", ["", "local"])
def test_without_a_cluster_ray_is_reachable_from_this_machine_alone(
    address: str, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, object] = {}

    def init(**options: object) -> None:
        asked.update(options)
        raise RuntimeError("enough is known")

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setenv("RAY_ADDRESS", address)
    with pytest.raises(InputError, match=r"Ray did not start here \(enough is known\)"):
        prepare(videos, tmp_path / "set", OPTIONS)
    assert asked["address"] == "local"  # whatever the environment says, and whatever else runs on this machine
    assert str(asked["_node_ip_address"]).startswith("127.")


@pytest.fixture
def in_child(start_child: Callable[..., int], end_child: Callable[[int], int]) -> Callable[[Callable[[], None]], int]:
    """Runs a function in a process of its own; gives its exit status. Other tests fork this one, which a process with
    Ray's threads may not survive."""
    return lambda function: end_child(start_child(function))


def with_ray(source: Path, out: Path, finder: Callable[[PrepareOptions], SuitFinder]) -> None:
    pickle_by_value = sys.modules[SuitFinder.__module__]
    cloudpickle.register_pickle_by_value(pickle_by_value)  # the workers cannot import it
    try:
        prepare(source, out, OPTIONS, workers=1, clips_per_shard=2, make_finder=finder)
    except InputError as error:
        if "Ray did not start" in str(error):
            pytest.skip(str(error))
        raise
    finally:
        cloudpickle.unregister_pickle_by_value(pickle_by_value)


def test_ray_makes_the_same_set(videos: Path, prepared: Path, tmp_path: Path, in_child: Callable) -> None:
    def suited(_: PrepareOptions) -> SuitFinder:
        return SuitFinder()

    assert in_child(lambda: with_ray(videos, tmp_path / "set", suited)) == 0
    assert contents(tmp_path / "set") == contents(prepared)


def test_ray_outlives_a_video_that_kills_its_workers(videos: Path, tmp_path: Path, in_child: Callable) -> None:
    class Mortal(SuitFinder):
        def restart(self) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

    def mortal(_: PrepareOptions) -> SuitFinder:
        return Mortal()

    # The other's name is not UTF-8, so to Arrow it is no text.
    (tmp_path / "list.txt").write_bytes(os.fsencode(videos / "deep/cut.mp4") + b"\ncaf\xe9.mkv\n")
    assert in_child(lambda: with_ray(tmp_path / "list.txt", tmp_path / "set", mortal)) == 0
    dropped = (tmp_path / "set" / "dropped.jsonl").read_text()
    assert "3 processes died over it" in dropped
    assert r"caf\udce9.mkv" in dropped
