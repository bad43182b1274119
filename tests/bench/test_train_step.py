"""The measure of a training step."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from xdyna_model.tiny import tiny_pipeline

ROOT = Path(__file__).parents[2]


def test_a_tiny_step_is_measured(tmp_path: Path):
    """As a program, with processes of its own: the loop stops by itself, before a checkpoint is written."""
    command = [sys.executable, "bench/train_step.py", "--size", "tiny", "--steps", "3", "--workers", "1"]
    done = subprocess.run([*command, "--json", tmp_path / "step.json"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "step.json").read_text())
    assert [line["step"] for line in found["steps"]] == [2, 3]
    assert 0 < found["medians"]["seconds"] < 60
    assert 0 <= found["medians"]["waiting_share"] < 1
    assert "training step, tiny, 1 x 4 frames of 64x64" in done.stdout


def test_full_size_is_the_released_size(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    import train_step  # pyright: ignore[reportMissingImports]

    pipeline = train_step.full_size(torch.device("meta"))
    assert pipeline.components.keys() == tiny_pipeline().components.keys()
    # The denoiser's tensors are held to the released names and shapes in tests/model.
    assert sum(p.numel() for p in pipeline.controlnet.parameters()) == 361_279_120  # of every ControlNet for SD 1.5
    assert pipeline.image_encoder.config.hidden_size == 1280
