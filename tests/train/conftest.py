"""A model and clips so small that a step of training takes a moment, children that may be killed, and a data set."""

import json
import os
import socket
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from diffusers import AutoencoderKL, ControlNetModel
from transformers import CLIPImageProcessorPil, CLIPTextModel, CLIPVisionModelWithProjection
from xdyna_model import tiny
from xdyna_model.detectors import Person
from xdyna_model.image_tokens import ImageProjection
from xdyna_model.pipeline import XDynaPipeline
from xdyna_model.sampling import released_scheduler
from xdyna_model.unet import XDynaUNet
from xdyna_train.clips import Example, Kind
from xdyna_train.config import EVERYTHING, Config, Stage
from xdyna_train.journal import METRICS
from xdyna_train.train import fit

sys.path.insert(0, str(Path(__file__).parent))
import suit_films

pytest.register_assert_rewrite("stored_puppets")

SIZE = 32
BACKBONE: dict[str, Any] = {"block_out_channels": (32, 32), "layers_per_block": 1, "norm_num_groups": 8}
CONTROL: dict[str, Any] = {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "conditioning_embedding_out_channels": (4, 8, 8),
    "attention_head_dim": 2,
    "cross_attention_dim": tiny.WIDTH,
}


class Waves:
    """Clips of drifting waves; a person is a handful of random points. All of it is drawn from the rng."""

    def draw(self, kind: Kind, num_frames: int, rng: np.random.Generator) -> Example:
        reference, *frames = _waves(num_frames + 1, rng)
        someone = _person(rng)
        persons = (someone if kind == "human" else None,) * num_frames
        masks = np.zeros((num_frames, SIZE, SIZE), bool)
        masks[:, 8:, 8:24] = kind == "human"
        return Example(
            name=f"waves-{rng.integers(10**9)}",
            kind=kind,
            reference=reference,
            frames=np.stack(frames),
            persons=persons,
            masks=masks,
            face_frames=np.stack(_waves(num_frames, rng)),
            face_persons=persons,
        )


def _waves(num_frames: int, rng: np.random.Generator) -> list[np.ndarray]:
    y, x = np.mgrid[:SIZE, :SIZE] / SIZE
    kx, ky, phase, speed = rng.uniform(-9, 9, (4, 3))
    return [
        (127.5 + 127 * np.sin(x[..., None] * kx + y[..., None] * ky + phase + t * speed / 9)).astype(np.uint8)
        for t in range(num_frames)
    ]


def _person(rng: np.random.Generator) -> Person:
    def points(*shape: int, spread: float) -> np.ndarray:
        places = rng.uniform(SIZE / 2 - spread, SIZE / 2 + spread, (*shape, 2))
        return np.concatenate([places, np.ones((*shape, 1))], axis=-1).astype(np.float32)

    return Person(points(14, spread=12), points(2, 21, spread=12), points(68, spread=6))


def small_pipeline() -> XDynaPipeline:
    """All parts of the tiny model, most of them smaller still."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipeline = XDynaPipeline(
            vae=AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 3,
                up_block_types=("UpDecoderBlock2D",) * 3,
                block_out_channels=(4, 8, 8),
                norm_num_groups=4,
            ),
            text_encoder=CLIPTextModel(tiny.text_config(8)),
            tokenizer=tiny.tokenizer(8),
            unet=XDynaUNet(
                sample_size=(8, 8),
                down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
                up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
                num_attention_heads=2,
                motion_num_attention_heads=2,
                cross_attention_dim=tiny.WIDTH,
                **BACKBONE,
            ),
            controlnet=ControlNetModel(conditioning_channels=3, **CONTROL, **BACKBONE),
            controlnet_face=ControlNetModel(conditioning_channels=6, **CONTROL, **BACKBONE),
            image_encoder=CLIPVisionModelWithProjection(tiny.vision_config()),
            feature_extractor=CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}),
            image_projection=ImageProjection(
                embed_dims=tiny.WIDTH, output_dims=tiny.WIDTH, hidden_dims=16, depth=1, dim_head=8, heads=2
            ),
            scheduler=released_scheduler(),
        )
        tiny.start_from_scratch(pipeline)
    return pipeline


SMALL = Config(
    stages=(
        Stage("fusion", ("adapter", "motion", "controlnet"), frames=2, batch=2, human_share=0.5, steps=4),
        Stage("face", ("controlnet_face",), frames=2, batch=2, human_share=1.0, steps=3),
    ),
    height=SIZE,
    width=SIZE,
    learning_rate=1e-3,
    ema_decay=0.9,
    workers=0,
    checkpoint_every=2,
)


@pytest.fixture(scope="session")
def config() -> Config:
    """Four steps of the first stage, three of the second; checkpoints after 2, 4, 6 and 7."""
    return SMALL


@pytest.fixture(scope="session")
def waves() -> Waves:
    """Where clips come from."""
    return Waves()


@pytest.fixture(scope="session")
def new_pipeline() -> Callable[[], XDynaPipeline]:
    """Makes the same small model again and again."""
    return small_pipeline


@pytest.fixture(scope="session")
def steps() -> Callable[..., Config]:
    """Makes a config of one stage: everything learns, for a number of steps of four clips."""

    def make(steps: int, **numbers: Any) -> Config:
        stage = Stage("all", EVERYTHING, frames=2, batch=4, human_share=0.5, steps=steps)
        return replace(SMALL, stages=(stage,), **numbers)

    return make


@pytest.fixture(scope="session")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a whole run, with the checkpoint of every step."""
    out = tmp_path_factory.mktemp("uninterrupted")
    fit(small_pipeline(), Waves(), replace(SMALL, checkpoint_every=1, keep_checkpoints=99), out)
    return out


@pytest.fixture(scope="session")
def lines() -> Callable[[Path], list[dict[str, Any]]]:
    """Reads metrics.jsonl of a run, without what depends on the clock."""

    def read(out: Path) -> list[dict[str, Any]]:
        metrics = [json.loads(line) for line in (out / METRICS).read_text().splitlines()]
        return [{k: v for k, v in line.items() if k not in ("seconds", "waited")} for line in metrics]

    return read


@pytest.fixture(scope="session")
def start_child() -> Callable[..., int]:
    """See `start`."""
    return start


@pytest.fixture(scope="session")
def end_child() -> Callable[[int], int]:
    """See `end`."""
    return end


@pytest.fixture
def run_two(start_child: Callable[..., int], end_child: Callable[[int], int]) -> Callable[[Callable[[], None]], list]:
    """Runs a function in two processes; gives their exit statuses."""

    def run(function: Callable[[], None]) -> list[int]:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in ("0", "1")]
        return [end_child(child) for child in [start_child(function, **shared, **rank) for rank in ranks]]

    return run


@pytest.fixture(scope="session")
def alone(tmp_path_factory: pytest.TempPathFactory, steps: Callable[..., Config]) -> Path:
    """The folder of a run of four steps by one process."""
    out = tmp_path_factory.mktemp("alone")
    fit(small_pipeline(), Waves(), steps(4, learning_rate=1e-4), out)
    return out


@pytest.fixture(scope="session")
def same_curve() -> Callable[[Path, Path], None]:
    """Asserts that two runs went alike."""

    def same_curve(out: Path, other: Path) -> None:
        ours, theirs = (
            [json.loads(line) for line in (f / "metrics.jsonl").read_text().splitlines()] for f in (out, other)
        )
        assert [line["step"] for line in ours] == [line["step"] for line in theirs]
        for name in ("loss", "grad_norm"):
            assert [line[name] for line in ours] == pytest.approx([line[name] for line in theirs], abs=1e-5)
        assert len({round(line["loss"], 4) for line in ours}) == len(ours)  # a curve, not a constant
        assert [line["clips"] for line in ours] == [line["clips"] for line in theirs]

    return same_curve


@pytest.fixture(scope="session")
def at_work() -> Callable[[Path], AbstractContextManager[None]]:
    """See `hold`."""
    return hold


@pytest.fixture(scope="session")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of what `suit_films.film` makes: nothing in it is to be changed, no video to be added."""
    folder = tmp_path_factory.mktemp("videos")
    suit_films.film(folder)
    return folder


@pytest.fixture(scope="session")
def prepared(videos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data set of `videos`: not to be changed."""
    out = tmp_path_factory.mktemp("out") / "set"
    suit_films.run(videos, out)
    return out


def start(function: Callable[[], None], **environment: str) -> int:
    """Runs a function in a child process; returns its process id."""
    with warnings.catch_warnings(action="ignore"):  # Python 3.12 warns where there are threads; none holds a lock here
        child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.environ.update(environment)
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        PartialState._reset_state()
        os.environ.setdefault("OMP_NUM_THREADS", "1")  # as torchrun does; accelerate warns where it is not set
        function()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(status)


def end(child: int) -> int:
    """Waits for a child: its exit status, or minus the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@contextmanager
def hold(out: Path) -> Iterator[None]:
    """Another process holds the folder, as a run does."""
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'w'); fcntl.lockf(f, fcntl.LOCK_EX); print(1, flush=True); input()"
    )
    command = [sys.executable, "-c", script, str(out / ".lock")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        other.stdout.readline()
        yield
        other.stdin.close()
