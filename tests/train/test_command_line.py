"""What holds for every command of `xdyna-train`."""

from pathlib import Path

import pytest
from xdyna_train.cli import main


@pytest.mark.parametrize(
    ("arguments", "before"),
    [
        (["puppets", "--clips", "1", "--out", ""], "--out"),
        (["prepare", "", "--out", "set"], "prepare"),
        (["prepare", ".", "--out", ""], "--out"),
        (["fit", "--preset", "smoke", "--steps", "1", "--out", ""], "--out"),
        (["fit", "--preset", "smoke", "--steps", "1", "--out="], "--out"),
        (["fit", "--preset", "smoke", "--steps", "1", "--out", "run", "--init", ""], "--init"),
        (["fit", "--preset", "smoke", "--steps", "1", "--out", "run", "--data", ".", "--data", ""], "--data"),
        (["evaluate", "--model", ""], "--model"),
        (["prepare", "--out", "set", "--", ""], "--"),
    ],
)
def test_nothing_is_not_taken_for_the_current_folder(
    arguments: list[str],
    before: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    told = "is followed by an empty argument, as of a shell variable that is not set; give a value"
    assert capsys.readouterr().err == f"xdyna-train: error: {before}: {told}\n"
    assert not any(tmp_path.iterdir())
