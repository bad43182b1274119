"""`xdyna animate` where it cannot do what is asked: one clear line, and nothing written."""

import errno
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, LCMScheduler
from PIL import Image
from xdyna_model import animate, cli, driving, model_folder, video
from xdyna_model.detectors.dwpose import DWPOSE_FILES
from xdyna_model.tiny import tiny_pipeline
from xdyna_model.video import write_video

sys.path.insert(0, str(Path(__file__).parent))
from cli_stand_ins import FRAMES, GIVEN, Detector, Pipeline, listing, refused, run

pytestmark = pytest.mark.usefixtures("current_folder")


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ("--reference no.png", "no.png: no such file"),
        ("--reference dance.mp4", "dance.mp4: is not a picture"),
        ("--reference tiny.png", "tiny.png: is only 20x30 pixels"),
        ("--driving photo.png", "photo.png: holds no video"),
        ("--driving empty.mp4", "empty.mp4: is an empty file"),
        ("--driving cut.mp4", "cut.mp4: "),
        ("--pose short.mp4", "short.mp4: has 3 frames, 10 are needed"),
        ("--frames 11", "dance.mp4: has 10 frames, 11 are needed; ask for at most 10"),
        ("--width 500", "--width 500: must be a multiple of 8 pixels; the nearest are 496 and 504"),
        ("--height 8", "--height 8: must be at least 64"),
        ("--width 4000000000", "--width 4000000000: must be at most 16384 pixels"),
        (f"--out {'o' * 300}.mp4", "file name too long"),
        (f"--driving {'d' * 300}.mp4", "file name too long"),
        (f"--dwpose {'d' * 300}", "file name too long"),
        ("--face-local local.mp4", "--face-local and --face-global go together"),
        ("--steps 251", "--steps 251: must be at most 250; more divide the model's 1000 timesteps"),
        ("--guidance nan", "--guidance nan: must be"),
        ("--guidance -1", "--guidance -1.0: must be"),
        ("--fps 0", "--fps 0.0: must lie between"),
        ("--out there/xdyna.mp4", "the folder there does not exist"),
        ("--out result.gif", "result.gif: the result is an MP4 file"),
        ("--out dance.mp4", "dance.mp4: is an input and would be overwritten"),
        ("--device cuda", "no usable CUDA GPU"),
        ("--device cuda:99999999999", "no usable CUDA GPU"),
        ("--device tpu", "--device tpu: is unknown"),
    ],
)
def test_bad_input(stand_in: Pipeline, capsys, monkeypatch, options: str, says: str) -> None:
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


@pytest.mark.parametrize(
    ("scheduler", "steps", "says"),
    [
        (DDIMScheduler(num_train_timesteps=100), 120, "--steps 120: the model's DDIMScheduler has at most 100"),
        (LCMScheduler(), 60, "--steps 60: the model's LCMScheduler cannot do that many (The combination of"),
    ],
)
def test_more_steps_than_the_model_has(capsys, monkeypatch, scheduler: Any, steps: int, says: str) -> None:
    pipeline = tiny_pipeline()
    monkeypatch.setattr(pipeline, "scheduler", scheduler)
    monkeypatch.setattr(model_folder, "load_pipeline", lambda *_: pipeline)
    monkeypatch.setattr(driving, "MediapipeDetector", None)  # must not be asked
    before = listing()
    assert says in refused(capsys, run(*GIVEN, "--steps", str(steps)))
    assert listing() == before


@pytest.mark.parametrize(
    ("arguments", "before"),
    [(["animate", "--out", ""], "--out"), (["animate", "--model="], "--model"), (["convert", "--sd15", ""], "--sd15")],
)
def test_nothing_is_not_taken_for_the_current_folder(capsys, arguments: list[str], before: str) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(arguments)
    told = "is followed by an empty argument, as of a shell variable that is not set; give a value"
    assert capsys.readouterr().err == f"xdyna: error: {before}: {told}\n"


def test_a_map_that_is_too_short_is_told_before_the_work(stand_in: Pipeline, capsys, monkeypatch) -> None:
    monkeypatch.setattr(driving, "MediapipeDetector", None)  # must not be asked
    write_video("short.mp4", np.zeros((3, 64, 64, 3), np.uint8), fps=8)
    line = refused(capsys, run(*GIVEN, "--pose", "short.mp4"))
    assert "short.mp4: has 3 frames, 10 are needed; ask for at most 3 frames" in line


def test_gpu_that_is_not_there(stand_in: Pipeline, capsys, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert "GPUs are cuda:0 to cuda:1" in refused(capsys, run(*GIVEN, "--device", "cuda:2"))


def test_dwpose_takes_the_place_of_mediapipe(stand_in: Pipeline, capsys, monkeypatch) -> None:
    assert "yolox_l.onnx" in refused(capsys, run(*GIVEN, "--dwpose", "."))  # not there
    Path("weights").mkdir()
    for name in DWPOSE_FILES:
        (Path("weights") / name).write_bytes(b"1")
    given = []
    monkeypatch.setattr(driving, "DWPoseDetector", lambda *paths: given.extend(paths) or Detector())
    monkeypatch.setattr(driving, "MediapipeDetector", None)  # must not be asked
    assert run(*GIVEN, "--dwpose", "weights") == 0
    assert given == [Path("weights/yolox_l.onnx"), Path("weights/dw-ll_ucoco_384.onnx")]


def test_nobody_in_the_video(stand_in: Pipeline, capsys, monkeypatch) -> None:
    before = listing()
    monkeypatch.setattr(Detector, "absent", tuple(range(FRAMES)))
    assert "dance.mp4: the driving video shows no person" in refused(capsys, run(*GIVEN))
    assert listing() == before


def test_result_that_is_not_a_number(stand_in: Pipeline, capsys, monkeypatch) -> None:
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
def test_out_of_memory(stand_in: Pipeline, capsys, fault: BaseException) -> None:
    before = listing()
    stand_in.fault = fault
    line = refused(capsys, run(*GIVEN))
    assert "lower --width and --height, or --frames, or use --dtype" in line
    assert listing() == before


def test_a_defect_is_not_hidden(stand_in: Pipeline) -> None:
    stand_in.fault = RuntimeError("shapes do not match")
    with pytest.raises(RuntimeError, match="shapes do not match"):
        cli.main(["animate", *GIVEN])


@pytest.mark.parametrize("where", ["computing", "result", "preview", "sheet"])
@pytest.mark.parametrize("fault", [KeyboardInterrupt(), OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))])
def test_interrupted_or_full(stand_in: Pipeline, capsys, monkeypatch, where: str, fault: BaseException) -> None:
    Path("xdyna.mp4").write_bytes(b"an earlier result")
    before = listing()

    def fail(*_):
        raise fault

    def half_way(*_):
        yield np.zeros((64, 64, 3), np.uint8)
        fail()

    encode = video.encode_video
    if where == "computing":
        stand_in.fault = KeyboardInterrupt()
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
def test_usage_errors(stand_in: Pipeline, options: str) -> None:
    before = listing()
    assert run(*GIVEN, *options.split()) == 2
    assert listing() == before
