"""`xdyna` on the command line: what it writes, and one clear line with nothing written for what it cannot do."""

import errno
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from xdyna_model import animate, cli, driving, job, model_folder, video
from xdyna_model.detectors import Person
from xdyna_model.errors import InputError
from xdyna_model.job import Job, choose_size
from xdyna_model.video import read_frames, write_video

FRAMES = 10


class Pipeline:
    """Stands in for the model: mixes what it is given with a little noise, and keeps the arguments."""

    default_height, default_width = 128, 64
    default_steps, default_guidance = 25, 7.5
    fault: BaseException | None = None

    def __call__(self, photo, conditions, *, num_inference_steps, generator, callback_on_step_end, **options):
        self.photo, self.conditions, self.options = photo, conditions, options | {"steps": num_inference_steps}
        for step in range(num_inference_steps):
            callback_on_step_end(self, step, 0, {})
        if self.fault is not None:
            raise self.fault
        noise = torch.rand(conditions.pose.shape, generator=generator)
        return ((torch.from_numpy(conditions.pose)[None] / 255 + noise) / 2,)

    def iter_decoded(self, latents: torch.Tensor) -> Iterator[torch.Tensor]:
        """[1, F, H, W, 3] to [3, H, W] each."""
        return iter(latents[0].permute(0, 3, 1, 2))


class Detector:
    """Stands in for mediapipe: somebody stands in the middle, except in the frames that are named."""

    absent: tuple[int, ...] = ()

    def __init__(self) -> None:
        self.seen = 0

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def __call__(self, frame: np.ndarray) -> Person | None:
        self.seen += 1
        if self.seen - 1 in self.absent:
            return None
        height, width = frame.shape[:2]
        assert min(height, width) >= 512
        body = np.stack([np.full(14, width / 2), np.linspace(0.1, 0.9, 14) * height, np.ones(14)], -1)
        return Person(body.astype(np.float32), np.zeros((2, 21, 3), np.float32), np.zeros((68, 3), np.float32))


@pytest.fixture
def pipeline(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    stand_in = Pipeline()
    monkeypatch.setattr(animate, "load", lambda *_: stand_in)
    return stand_in


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a photo and videos in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "quiet", lambda: None)
    monkeypatch.setattr(driving, "MediapipeDetector", Detector)
    Image.new("RGB", (80, 100), (90, 120, 60)).save("photo.png")
    ramp = np.linspace(0, 255, FRAMES)[:, None, None, None]
    for index, name in enumerate(["dance", "pose", "local", "global"]):
        write_video(f"{name}.mp4", np.broadcast_to(ramp / (index + 1), (FRAMES, 128, 64, 3)).astype(np.uint8), fps=8)
    return tmp_path


def run(*options: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(["animate", *options])
    return int(ended.value.code or 0)


def listing() -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in Path().iterdir() if path.is_file()}


def refused(capsys: pytest.CaptureFixture[str], code: int) -> str:
    """The one line that says what was wrong."""
    error = capsys.readouterr().err
    assert code == 2
    assert error.startswith("xdyna: error: ")
    assert error.count("\n") == 1
    return error


GIVEN = ("--reference", "photo.png", "--driving", "dance.mp4")


# What it does


def test_result_and_previews(pipeline: Pipeline, capsys: pytest.CaptureFixture[str]) -> None:
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


def test_options_reach_the_pipeline(pipeline: Pipeline) -> None:
    options = "--steps 3 --guidance 2 --no-loop --frames 4 --height 256 --fps 5 --no-preview --out a.mp4"
    before = set(listing())
    assert run(*GIVEN, *options.split()) == 0
    assert pipeline.options["steps"] == 3
    assert pipeline.options["guidance_scale"] == 2
    assert pipeline.options["wrap"] is False
    assert pipeline.photo.shape == (100, 80, 3)  # uncropped: the image tokens see all of it
    assert pipeline.conditions.pose.shape == (4, 256, 128, 3)
    assert set(listing()) - before == {"a.mp4"}
    assert read_frames("a.mp4").fps == 5


def test_most_steps(pipeline: Pipeline) -> None:
    assert run(*GIVEN, "--steps", "250") == 0
    assert pipeline.options["steps"] == 250


def test_seed_decides_the_bytes(pipeline: Pipeline) -> None:
    written = []
    for seed in ("7", "7", "8"):
        assert run(*GIVEN, "--seed", seed) == 0
        written.append({name: data for name, data in listing().items() if name.startswith("xdyna")})
    assert written[0] == written[1]
    assert written[0]["xdyna.mp4"] != written[2]["xdyna.mp4"]


def test_pose_video_replaces_detection(pipeline: Pipeline) -> None:
    assert run(*GIVEN, "--pose", "pose.mp4") == 0
    np.testing.assert_array_equal(pipeline.conditions.pose, read_frames("pose.mp4").frames)


def test_pose_video_alone_has_no_face(pipeline: Pipeline) -> None:
    assert run("--reference", "photo.png", "--pose", "pose.mp4") == 0
    assert pipeline.conditions.pose.any()
    assert not pipeline.conditions.face_local.any()
    assert not pipeline.conditions.face_global.any()


def test_all_ready_made(pipeline: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driving, "MediapipeDetector", None)  # must not be asked
    ready = ["--pose", "pose.mp4", "--face-local", "local.mp4", "--face-global", "global.mp4"]
    assert run(*GIVEN, *ready) == 0
    np.testing.assert_array_equal(pipeline.conditions.face_local, read_frames("local.mp4").frames)
    np.testing.assert_array_equal(pipeline.conditions.face_global, read_frames("global.mp4").frames)


def test_person_leaves_half_way(pipeline: Pipeline, capsys: pytest.CaptureFixture[str], monkeypatch) -> None:
    monkeypatch.setattr(Detector, "absent", tuple(range(6, FRAMES)))
    assert run(*GIVEN) == 0
    assert capsys.readouterr().out.count("nobody was seen in 4 of 10 frames (6-9)") == 1
    assert pipeline.conditions.pose[:6].any((1, 2, 3)).all()
    assert not pipeline.conditions.pose[6:].any()


def alpha(path: str) -> None:
    Image.new("RGBA", (80, 100), (10, 200, 30, 0)).save(path)


def sixteen_bits(path: str) -> None:
    Image.fromarray(np.full((100, 80), 65535, np.uint16)).save(path)


def rotated(path: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (100, 80), "white").save(path, exif=exif)


@pytest.mark.parametrize("save", [alpha, sixteen_bits, rotated, lambda path: Image.new("L", (80, 100), 255).save(path)])
def test_odd_photos(pipeline: Pipeline, save: Callable[[str], None]) -> None:
    save("odd.png")
    assert run("--reference", "odd.png", "--driving", "dance.mp4") == 0
    np.testing.assert_array_equal(pipeline.photo, np.full((100, 80, 3), 255))


# What it refuses


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--reference no.png", "no.png: no such file"),
        ("--reference dance.mp4", "dance.mp4: is not a picture"),
        ("--reference tiny.png", "tiny.png: is only 20x30 pixels"),
        ("--driving photo.png", "photo.png: holds no video"),
        ("--driving empty.mp4", "empty.mp4: is an empty file"),
        ("--driving cut.mp4", "cut.mp4: "),
        ("--pose short.mp4", "short.mp4: has 3 frames, 10 were asked for"),
        ("--frames 11", "dance.mp4: has 10 frames, 11 were asked for; ask for at most 10"),
        ("--width 500", "--width 500: must be a multiple of 8 pixels; the nearest are 496 and 504"),
        ("--height 8", "--height 8: must be at least 64"),
        ("--face-local local.mp4", "--face-local and --face-global go together"),
        ("--steps 251", "--steps 251: must be at most 250; more divide the model's 1000 timesteps"),
        ("--guidance nan", "--guidance nan: must be"),
        ("--guidance -1", "--guidance -1.0: must be"),
        ("--fps 0", "--fps 0.0: must lie between"),
        ("--out there/xdyna.mp4", "the folder there does not exist"),
        ("--out result.gif", "result.gif: the result is an MP4 file"),
        ("--out dance.mp4", "dance.mp4: is an input and would be overwritten"),
        ("--device cuda", "no usable CUDA GPU"),
        ("--device tpu", "--device tpu: is unknown"),
    ],
)
def test_bad_input(pipeline: Pipeline, capsys, monkeypatch, options: str, says: str) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    Image.new("RGB", (20, 30)).save("tiny.png")
    Path("empty.mp4").touch()
    Path("cut.mp4").write_bytes(Path("dance.mp4").read_bytes()[:400])
    write_video("short.mp4", np.zeros((3, 64, 64, 3), np.uint8), fps=8)
    before = listing()
    given = dict(zip(GIVEN[::2], GIVEN[1::2], strict=True)) | dict([options.split()])
    code = run(*[word for pair in given.items() for word in pair])
    assert says in refused(capsys, code)
    assert listing() == before


def test_gpu_that_is_not_there(pipeline: Pipeline, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "GPUs are cuda:0 to cuda:1" in refused(capsys, run(*GIVEN, "--device", "cuda:2"))


def test_dwpose_takes_the_place_of_mediapipe(pipeline: Pipeline, capsys, monkeypatch) -> None:
    assert "yolox_l.onnx" in refused(capsys, run(*GIVEN, "--dwpose", "."))  # not there
    given = []
    monkeypatch.setattr(driving, "DWPoseDetector", lambda *paths: given.extend(paths) or Detector())
    monkeypatch.setattr(driving, "MediapipeDetector", None)  # must not be asked
    assert run(*GIVEN, "--dwpose", "weights") == 0
    assert given == [Path("weights/yolox_l.onnx"), Path("weights/dw-ll_ucoco_384.onnx")]


def test_nobody_in_the_video(pipeline: Pipeline, capsys, monkeypatch) -> None:
    before = listing()
    monkeypatch.setattr(Detector, "absent", tuple(range(FRAMES)))
    assert "dance.mp4: the driving video shows no person" in refused(capsys, run(*GIVEN))
    assert listing() == before


def test_result_that_is_not_a_number(pipeline: Pipeline, capsys, monkeypatch) -> None:
    before = listing()
    monkeypatch.setattr(torch, "rand", lambda shape, generator: torch.full(shape, float("nan")))
    assert "--dtype fp32" in refused(capsys, run(*GIVEN))
    assert listing() == before


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:121] DefaultCPUAllocator: can't allocate memory"),
    ],
)
def test_out_of_memory(pipeline: Pipeline, capsys, fault: BaseException) -> None:
    before = listing()
    pipeline.fault = fault
    line = refused(capsys, run(*GIVEN))
    assert "lower --width and --height, or --frames, or use --dtype" in line
    assert listing() == before


def test_a_defect_is_not_hidden(pipeline: Pipeline) -> None:
    pipeline.fault = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        cli.main(["animate", *GIVEN])


@pytest.mark.parametrize("where", ["computing", "result", "preview", "sheet"])
@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_interrupted_or_full(pipeline: Pipeline, capsys, monkeypatch, where: str, fault: BaseException) -> None:
    Path("xdyna.mp4").write_bytes(b"an earlier result")
    before = listing()

    def fail(*_):
        raise fault

    def half_way(*_):
        yield np.zeros((64, 64, 3), np.uint8)
        fail()

    encode = video.encode_video
    if where == "computing":
        pipeline.fault = KeyboardInterrupt()
    elif where == "result":
        monkeypatch.setattr(animate, "encode_video", lambda path, frames, fps: encode(path, half_way(), fps))
    elif where == "preview":
        monkeypatch.setattr(animate, "side_by_side", half_way)
    else:
        monkeypatch.setattr(Image.Image, "save", fail)
    code = run(*GIVEN)
    if where == "computing" or isinstance(fault, KeyboardInterrupt):
        assert code == 130
    else:
        assert "xdyna.preview.mp4: cannot be written (no space left on device)" in refused(capsys, code)
    assert listing() == before


@pytest.mark.parametrize("options", ["--frames 0", "--steps 0", "--dtype fp8", "--seed -1", "--colour red"])
def test_usage_errors(pipeline: Pipeline, options: str) -> None:
    before = listing()
    assert run(*GIVEN, *options.split()) == 2
    assert listing() == before


# Sizes


@pytest.mark.parametrize(
    ("width", "height", "size"),
    [
        (None, None, (896, 512)),
        (256, None, (448, 256)),
        (None, 448, (448, 256)),
        (320, 320, (320, 320)),
        (72, None, (128, 72)),
    ],
)
def test_sizes(width: int | None, height: int | None, size: tuple[int, int]) -> None:
    assert choose_size(Job(width=width, height=height), 896, 512) == size


def test_size_of_a_model_that_is_odd() -> None:
    with pytest.raises(InputError, match="multiple of 8"):
        choose_size(Job(), 100, 64)


def test_example_fills_what_is_not_given() -> None:
    assert Job().photo.parent == Job().videos["driving"].parent == job.EXAMPLE
    assert Job().length == job.EXAMPLE_FRAMES
    assert Job(frames=3).length == 3
    assert Job(reference=Path("me.png")).length == job.EXAMPLE_FRAMES
    own = Job(driving=Path("me.mp4"))
    assert own.videos == {"driving": Path("me.mp4")}
    assert own.length is None


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
