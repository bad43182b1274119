"""Where a bench cannot write to is said before it runs for minutes."""

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


def test_a_file_in_a_folder_that_is_there_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(BENCH))
    output_file = importlib.import_module("output_file").output_file
    assert output_file(str(tmp_path / "x.json")) == tmp_path / "x.json"
