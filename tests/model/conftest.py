"""Recorded tensors of the released code, with their weights rebuilt."""

import json
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

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
