"""The shipped example is what the code draws."""

from importlib import resources
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from xdyna_model.driving import MAPS
from xdyna_model.nano import nano_pipeline
from xdyna_model.video import read_frames
from xdyna_train import example

SHIPPED = Path(str(resources.files("xdyna_model"))) / "example"


def test_the_example_is_small() -> None:
    assert sum(path.stat().st_size for path in SHIPPED.iterdir()) < 3e6


def test_the_reference_is_the_drawn_one() -> None:
    with Image.open(SHIPPED / "reference.png") as picture:
        assert picture.mode == "RGB"
        shipped = np.array(picture)
    assert shipped.shape == (448, 256, 3)
    # Not compared by the byte: another build of numpy may round a corner to the next pixel.
    assert np.abs(shipped.astype(int) - example.reference().rgb).mean() < 0.1


def test_the_driving_video_is_the_drawn_one() -> None:
    clip = read_frames(SHIPPED / "driving.mp4")
    assert clip.fps == 8
    assert clip.frames.shape == (32, 448, 256, 3)
    drawn = np.stack([frame.rgb for frame in example.driving()])
    error = np.abs(clip.frames.astype(int) - drawn)
    assert error.mean() < 3.5  # half the colour resolution costs most of it, at the edges
    moved = np.abs(np.roll(drawn, 1, 0).astype(int) - drawn)
    assert error.mean() < 0.75 * moved.mean()  # each frame is itself and not its neighbour


@pytest.mark.parametrize("name", MAPS)
def test_a_map_is_the_drawn_one(name: str) -> None:
    clip = read_frames(SHIPPED / f"{name}.mp4")
    assert clip.fps == 8
    assert clip.frames.shape == (32, example.MAP_HEIGHT, example.MAP_WIDTH, 3)
    drawn = example.conditions(example.driving(example.MAP_HEIGHT, example.MAP_WIDTH))[name]
    assert np.abs(clip.frames.astype(int) - drawn).max() <= 4  # what the way to YUV and back rounds


def test_the_maps_have_the_size_of_the_nano_model() -> None:
    pipeline = nano_pipeline()
    assert (pipeline.default_height, pipeline.default_width) == (example.MAP_HEIGHT, example.MAP_WIDTH)


def test_the_dancer_has_the_build_of_the_reference() -> None:
    reference, frames = example.reference(), example.driving()
    assert reference.person is not None
    assert reference.mask[:, 20:-20].sum() > 0.95 * reference.mask.sum()  # stands in the middle
    for frame in frames:
        assert frame.person is not None
        for hand_or_body in (frame.person.body, frame.person.hands[0], frame.person.hands[1]):
            assert ((hand_or_body[:, 0] > -8) & (hand_or_body[:, 0] < 264)).all()
        gap = np.abs(frame.person.body[:2, :2] - reference.person.body[:2, :2])
        assert gap.max() < 45  # nose and neck
        ankles = frame.person.body[[10, 13], 1] - reference.person.body[[10, 13], 1]
        assert np.abs(ankles).max() < 30


def test_building_writes_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = example.driving(112, 64)[:2]
    monkeypatch.setattr(example, "driving", lambda *_: frames)
    monkeypatch.setattr("sys.argv", ["example", str(tmp_path / "new")])
    example.main()
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"reference.png", "driving.mp4", "pose.mp4", "face_local.mp4", "face_global.mp4"}
    assert len(capsys.readouterr().out.splitlines()) == 5
    monkeypatch.setattr("sys.argv", ["example"])
    with pytest.raises(SystemExit, match="OUT_DIR"):
        example.main()
    (tmp_path / "file").touch()
    monkeypatch.setattr("sys.argv", ["example", str(tmp_path / "file")])
    with pytest.raises(SystemExit, match="2"):
        example.main()
    assert capsys.readouterr().err == f"example: error: {tmp_path / 'file'}: file exists\n"
