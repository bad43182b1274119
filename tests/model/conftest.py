"""Recorded tensors of the released code, with their weights rebuilt; a tiny model's folder; a place to animate in."""

import json
import shutil
import sys
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from torch import Tensor
from xdyna_model import animate, cli, driving
from xdyna_model.tiny import tiny_pipeline
from xdyna_model.video import write_video

sys.path.insert(0, str(Path(__file__).parent))
pytest.register_assert_rewrite("cli_stand_ins")
from cli_stand_ins import FRAMES, Detector, Pipeline  # noqa: E402
from moving_pictures import moving_square  # noqa: E402

ORACLES = Path(__file__).parent / "oracles"


@dataclass(frozen=True)
class Oracle:
    """tensors: `in.*` and `out*`. facts: what the recording says of itself. weights: by released name."""

    tensors: dict[str, Tensor]
    facts: dict
    weights: dict[str, Tensor]

    def __getitem__(self, name: str) -> Tensor:
        return self.tensors[name]


def rebuild(name: str, shape: list[int], seed: int) -> Tensor:
    """The recipe: values from the name alone, so that no two implementations can disagree about their order."""
    if name.endswith(".pe"):
        return sinusoid(shape[1], shape[2])
    random = np.random.RandomState((zlib.crc32(name.encode()) ^ seed) & 0xFFFFFFFF)
    z = random.standard_normal(shape)
    if len(shape) >= 4 or len(shape) == 2:
        z = z / np.sqrt(np.prod(shape[1:]))
    elif len(shape) == 3:
        z = z / np.sqrt(shape[-1])
    elif name.endswith(".weight"):
        z = 1 + 0.1 * z
    else:
        z = 0.1 * z
    return torch.from_numpy(z.astype(np.float16).astype(np.float32))


def sinusoid(length: int, channels: int) -> Tensor:
    """sin and cos of position / 10000^(2i / channels), alternating (Vaswani et al. 2017, Section 3.5)."""
    position = torch.arange(length).float()[:, None]
    frequency = 10000 ** (-torch.arange(0, channels, 2).float() / channels)
    return torch.stack([(position * frequency).sin(), (position * frequency).cos()], dim=-1).flatten(1)[None]


def load_oracle(name: str) -> Oracle:
    with safe_open(ORACLES / f"{name}.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118  not a dict
        facts = json.loads(file.metadata()["oracle"])
    weights = {}
    for key, shape in facts.pop("shapes").items():
        part, _, released = ("", "", key[2:]) if key.startswith("w.") else key.partition(".w.")
        seed = facts[f"wseed_{part}" if part else "wseed"]
        weights[f"{part}.{released}" if part else released] = rebuild(released, shape, seed)
    return Oracle(tensors, facts, weights)


@pytest.fixture(scope="session")
def oracle() -> Callable[[str], Oracle]:
    return load_oracle


@pytest.fixture(scope="session")
def oracle_json() -> Callable[[str], dict]:
    return lambda name: json.loads((ORACLES / f"{name}.json").read_text())


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """The tiny model, saved: not to be changed."""
    folder = tmp_path_factory.mktemp("tiny") / "model"
    tiny_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture
def folder(tiny_folder, tmp_path):
    """A copy of the tiny model to break."""
    return shutil.copytree(tiny_folder, tmp_path / "model")


@pytest.fixture
def video(tmp_path: Path) -> Path:
    """Twelve frames of a moving square, eight a second."""
    path = tmp_path / "dance.mp4"
    write_video(path, moving_square(), fps=8)
    return path


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Pipeline:
    """What `xdyna animate` gets for a model."""
    pipeline = Pipeline()
    monkeypatch.setattr(animate, "load", lambda *_: pipeline)
    return pipeline


@pytest.fixture
def current_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a photo and videos in it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(cli, "quiet", lambda: None)
    monkeypatch.setattr(driving, "MediapipeDetector", Detector)
    Image.new("RGB", (80, 100), (90, 120, 60)).save("photo.png")
    ramp = np.linspace(0, 255, FRAMES)[:, None, None, None]
    for index, name in enumerate(["dance", "pose", "local", "global"]):
        write_video(f"{name}.mp4", np.broadcast_to(ramp / (index + 1), (FRAMES, 128, 64, 3)).astype(np.uint8), fps=8)
    return tmp_path
