"""`xdyna` on the command line: what it writes, how it starts, and what `xdyna convert` passes on."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from xdyna_model import cli, driving, model_folder
from xdyna_model.video import read_frames

sys.path.insert(0, str(Path(__file__).parent))
from cli_stand_ins import FRAMES, GIVEN, Detector, Pipeline, listing, refused, run

pytestmark = pytest.mark.usefixtures("current_folder")


def test_result_and_previews(stand_in: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
    before = set(listing())
    assert run(*GIVEN) == 0
    assert set(listing()) - before == {"xdyna.mp4", "xdyna.preview.mp4", "xdyna.preview.png"}
    result = read_frames("xdyna.mp4")
    assert result.frames.shape == (FRAMES, 128, 64, 3)
    assert result.fps == 8
    assert len(read_frames("xdyna.preview.mp4").frames) == FRAMES
    said = capsys.readouterr()
    assert "photo.png with dance.mp4: 10 frames of 64x128, 25 steps, guidance 7.5, seed 42, float32 on cpu" in said.out
    assert "Wrote xdyna.mp4, xdyna.preview.png, xdyna.preview.mp4" in said.out
    assert (
        said.err == "dance.mp4: no face was seen in 10 of the 10 with a person: their maps are blank.\n" or not said.err
    )


def test_options_reach_the_pipeline(stand_in: Pipeline) -> None:
    options = "--steps 3 --guidance 2 --no-loop --frames 4 --height 256 --fps 5 --no-preview --out a.mp4"
    before = set(listing())
    assert run(*GIVEN, *options.split()) == 0
    assert stand_in.options["steps"] == 3
    assert stand_in.options["guidance_scale"] == 2
    assert stand_in.options["wrap"] is False
    assert stand_in.photo.shape == (100, 80, 3)  # uncropped: the image tokens see all of it
    assert stand_in.conditions.pose.shape == (4, 256, 128, 3)
    assert set(listing()) - before == {"a.mp4"}
    assert read_frames("a.mp4").fps == 5


def test_most_steps(stand_in: Pipeline) -> None:
    assert run(*GIVEN, "--steps", "250") == 0
    assert stand_in.options["steps"] == 250


def test_seed_decides_the_bytes(stand_in: Pipeline) -> None:
    written = []
    for seed in ("7", "7", "8"):
        assert run(*GIVEN, "--seed", seed) == 0
        written.append({name: data for name, data in listing().items() if name.startswith("xdyna")})
    assert written[0] == written[1]
    assert written[0]["xdyna.mp4"] != written[2]["xdyna.mp4"]


def test_pose_video_replaces_detection(stand_in: Pipeline) -> None:
    assert run(*GIVEN, "--pose", "pose.mp4") == 0
    np.testing.assert_array_equal(stand_in.conditions.pose, read_frames("pose.mp4").frames)


def test_pose_video_alone_has_no_face(stand_in: Pipeline) -> None:
    assert run("--reference", "photo.png", "--pose", "pose.mp4") == 0
    assert stand_in.conditions.pose.any()
    assert not stand_in.conditions.face_local.any()
    assert not stand_in.conditions.face_global.any()


def test_all_ready_made(stand_in: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "MediapipeDetector", None)  # must not be asked
    ready = ["--pose", "pose.mp4", "--face-local", "local.mp4", "--face-global", "global.mp4"]
    assert run(*GIVEN, *ready) == 0
    np.testing.assert_array_equal(stand_in.conditions.face_local, read_frames("local.mp4").frames)
    np.testing.assert_array_equal(stand_in.conditions.face_global, read_frames("global.mp4").frames)


def test_person_leaves_half_way(stand_in: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(Detector, "absent", tuple(range(6, FRAMES)))
    assert run(*GIVEN) == 0
    assert capsys.readouterr().out.count("nobody was seen in 4 of 10 frames (6-9)") == 1
    assert stand_in.conditions.pose[:6].any((1, 2, 3)).all()
    assert not stand_in.conditions.pose[6:].any()


def alpha(path: str) -> None:
    Image.new("RGBA", (80, 100), (10, 200, 30, 0)).save(path)


def sixteen_bits(path: str) -> None:
    Image.fromarray(np.full((100, 80), 65535, np.uint16)).save(path)


def rotated(path: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 80), "white").save(path, exif=exif)


@pytest.mark.parametrize("save", [alpha, sixteen_bits, rotated, lambda path: Image.new("L", (80, 100), 255).save(path)])
def test_odd_photos(stand_in: Pipeline, save: Callable[[str], None]) -> None:
    save("odd.png")
    assert run("--reference", "odd.png", "--driving", "dance.mp4") == 0
    np.testing.assert_array_equal(stand_in.photo, np.full((100, 80, 3), 255))


# The program itself


def test_starts_without_the_heavy_libraries() -> None:
    code = "import sys, xdyna_model.cli; print(sorted({'torch', 'diffusers', 'mediapipe', 'av'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_as_a_process() -> None:
    code = "from xdyna_model.cli import main; main()"
    command = [sys.executable, "-c", code, "animate", "--reference", "no.png"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "xdyna: error: no.png: no such file; check the name of the picture\n"


# convert

FILES = ("sd15", "unet", "pose", "face", "image-encoder", "ip-adapter")


def convert(*options: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["convert", *[word for name in FILES for word in (f"--{name}", f"my/{name}")], *options])
    return int(ended.value.code or 0)


def test_convert_passes_everything_on(monkeypatch, capsys) -> None:
    seen: list[Path] = []
    monkeypatch.setattr(model_folder, "convert", lambda *paths: seen.extend(paths))
    assert convert("--out", "model") == 0
    assert seen == [*[Path("my") / name for name in FILES], Path("model")]
    assert capsys.readouterr().out == "Wrote model; use it with: xdyna animate --model model\n"


def test_convert_of_files_that_are_not_there(capsys) -> None:
    before = sorted(Path().iterdir())
    assert "my/" in refused(capsys, convert("--out", "model"))
    assert sorted(Path().iterdir()) == before


def test_convert_into_the_current_folder(monkeypatch, capsys) -> None:
    Path("empty").mkdir()
    monkeypatch.chdir("empty")
    for out in (".", str(Path.cwd())):
        assert f"error: {out}: is the current folder" in refused(capsys, convert("--out", out))
    assert Path.cwd().is_dir()


def test_convert_needs_every_file() -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["convert", "--out", "model"])
