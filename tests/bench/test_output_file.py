"""Where a bench cannot write to is said before it runs for minutes."""

import argparse
import importlib
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"


@pytest.mark.parametrize(("path", "reason"), [(".", "is a folder"), ("nowhere/x.json", "there is no folder nowhere")])
@pytest.mark.parametrize(
    ("program", "flags"),
    [
        ("denoise", []),
        ("train_step", ["--size", "tiny"]),
        ("pose_maps", ["--driving", "a.mp4", "--published", "b.mp4"]),
    ],
)
def test_a_place_that_cannot_be_written_is_named_at_once(
    program: str,
    flags: list[str],
    path: str,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture,
):
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr(sys, "argv", [program, *flags, "--json", path])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(program).main()
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err


@pytest.fixture
def output_file(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("output_file").output_file


def test_a_file_in_a_folder_that_is_there_is_taken_and_left_as_it_was(tmp_path: Path, output_file):
    assert output_file(str(tmp_path / "x.json")) == tmp_path / "x.json"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "x.json").write_text("old")
    output_file(str(tmp_path / "x.json"))
    assert (tmp_path / "x.json").read_text() == "old"


def test_a_file_that_cannot_be_written_is_named(output_file):
    """A name too long, which stops the superuser as well."""
    with pytest.raises(argparse.ArgumentTypeError, match="cannot be written"):
        output_file("x" * 300)


@pytest.mark.parametrize(
    ("program", "flags", "reason"),
    [
        ("denoise", "--device nonsense", "--device nonsense: is unknown"),
        ("denoise", "--frames 40", "--frames: the motion modules know 24"),
        ("pose_maps", "--driving no.mp4 --published no.mp4", "no.mp4: no such file"),
        ("racecheck", "", "required: what"),
        ("racecheck", "judge no.log 0", "no.log: no such file"),
        ("racecheck", f"judge {__file__} zero", "an exit code"),
    ],
)
def test_flags_that_make_no_sense_end_in_one_line(program: str, flags: str, reason: str, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(BENCH))
    monkeypatch.setattr(sys, "argv", [program, *flags.split()])
    with pytest.raises(SystemExit) as stopped:
        importlib.import_module(program).main()
    assert stopped.value.code == 2
    assert reason in capsys.readouterr().err
