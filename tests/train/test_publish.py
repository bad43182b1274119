"""A model made ready to ship: half the bytes, the same model, nothing of the machine it was trained on."""

import json
from pathlib import Path

import pytest
import torch
from xdyna_model.model_folder import load_pipeline
from xdyna_train import publish
from xdyna_train.config import PRESETS
from xdyna_train.starts import StartFiles, starting_pipeline


def test_halved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    trained = starting_pipeline(PRESETS["smoke"].model, StartFiles(), seed=0)
    trained.save_pretrained(tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["publish", str(tmp_path / "run"), str(tmp_path / "out")])
    publish.main()
    assert capsys.readouterr().out.startswith(f"{tmp_path / 'out'} ")
    shipped = load_pipeline(tmp_path / "out", dtype=torch.float16)
    ours, theirs = trained.unet.state_dict(), shipped.unet.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name].half(), theirs[name]) for name in ours)
    whole, halved = ((tmp_path / name / "unet").glob("*.safetensors") for name in ("run", "out"))
    assert sum(path.stat().st_size for path in halved) < 0.6 * sum(path.stat().st_size for path in whole)
    texts = [path.read_text() for path in (tmp_path / "out").rglob("*.json")]
    assert texts
    assert not any(str(tmp_path) in text or "_name_or_path" in json.loads(text) for text in texts)


@pytest.mark.parametrize(("out", "says"), [("no/out", "no does not exist"), ("o" * 300, "file name too long")])
def test_where_nothing_can_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], out: str, says: str
) -> None:
    starting_pipeline(PRESETS["smoke"].model, StartFiles(), seed=0).save_pretrained(tmp_path / "run")
    monkeypatch.setattr("sys.argv", ["publish", str(tmp_path / "run"), str(tmp_path / out)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as caught:
        publish.main()
    line = capsys.readouterr().err
    assert caught.value.code == 2
    assert says in line
    assert line.count("\n") == 1
