"""Real videos, all the way: prepared as a user would, and ten steps of training on them."""

import json
import math
from pathlib import Path

import pytest
from xdyna_model.model_folder import load_pipeline
from xdyna_model.video import iter_frames, write_video
from xdyna_train.cli import main
from xdyna_train.shards import read_manifest

DRIVING = Path(__file__).parents[3] / "shared" / "assets" / "driving"
FRAMES = 36  # of each: to look at all of them takes minutes


def command(*arguments: str | Path) -> None:
    with pytest.raises(SystemExit) as end:
        main(list(map(str, arguments)))
    assert end.value.code in (0, None)


@pytest.mark.skipif(not DRIVING.is_dir(), reason="the driving videos are not part of the project")
def test_ten_steps_on_real_clips(tmp_path: Path) -> None:
    """Two people, each moved by the other's face."""
    (tmp_path / "videos").mkdir()
    for path in DRIVING.glob("*.mp4"):
        write_video(tmp_path / "videos" / path.name, iter_frames(path, FRAMES), fps=24)
    size = ("--height", "128", "--width", "64", "--min-quality", "0")
    command("prepare", tmp_path / "videos", "--out", tmp_path / "set", "--workers", "0", *size)
    assert {record.kind for record in read_manifest(tmp_path / "set")} == {"human"}
    run = ("--preset", "smoke", "--data", tmp_path / "set", "--out", tmp_path / "run", "--workers", "0")
    command("fit", *run, "--steps", "10")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 10
    assert all(math.isfinite(line["loss"]) and "skipped" not in line for line in lines)
    load_pipeline(tmp_path / "run" / "model")
