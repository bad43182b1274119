"""Tile sizes of the Triton kernels. This table decides them, nothing else does."""

from typing import NamedTuple

import torch


class Attention(NamedTuple):
    queries: int  # rows of one program
    keys: int  # rows of one step over the keys
    warps: int
    stages: int


class Rows(NamedTuple):
    rows: int  # of one program
    warps: int
    stages: int


class Projection(NamedTuple):
    rows: int  # tokens of one program
    columns: int  # output channels of one program
    depth: int  # input channels of one step
    warps: int
    stages: int


Tile = Attention | Projection | Rows
# By chip and arithmetic; within those, by the largest head dimension that the tile serves.
# Chosen by compiling ahead of time (no spills, see tests/kernels/golden), and by timing where TIMED says so.
ATTENTION = {
    ("sm_80", "half"): {
        48: Attention(128, 64, 4, 3),
        96: Attention(128, 64, 8, 3),
        160: Attention(128, 32, 8, 3),
        256: Attention(64, 32, 4, 2),
    },
    ("sm_90", "half"): {
        48: Attention(128, 32, 4, 3),
        96: Attention(128, 64, 4, 4),
        160: Attention(64, 64, 4, 2),
        256: Attention(128, 32, 8, 3),
    },
    ("sm_100", "half"): {
        48: Attention(128, 64, 8, 3),
        96: Attention(128, 64, 8, 3),
        160: Attention(128, 64, 8, 3),
        256: Attention(128, 32, 8, 3),
    },
    ("sm_80", "tf32"): {
        48: Attention(64, 32, 4, 2),
        96: Attention(64, 32, 4, 2),
        160: Attention(64, 16, 4, 2),
        256: Attention(32, 32, 4, 2),
    },
    ("sm_90", "tf32"): {
        48: Attention(64, 32, 4, 2),
        96: Attention(64, 32, 4, 2),
        160: Attention(64, 32, 4, 2),
        256: Attention(64, 16, 4, 2),
    },
    ("sm_100", "tf32"): {
        48: Attention(64, 32, 4, 2),
        96: Attention(64, 32, 4, 2),
        160: Attention(64, 32, 4, 2),
        256: Attention(64, 16, 4, 2),
    },
    ("sm_80", "ieee"): {
        48: Attention(32, 32, 8, 2),
        96: Attention(32, 32, 8, 2),
        160: Attention(32, 32, 8, 2),
        256: Attention(32, 16, 8, 2),
    },
    ("sm_90", "ieee"): {
        48: Attention(32, 32, 8, 2),
        96: Attention(32, 32, 8, 2),
        160: Attention(32, 32, 8, 2),
        256: Attention(32, 16, 8, 2),
    },
    ("sm_100", "ieee"): {
        48: Attention(32, 32, 8, 2),
        96: Attention(32, 32, 8, 2),
        160: Attention(32, 32, 8, 2),
        256: Attention(32, 16, 8, 2),
    },
}
# By the most output channels that a tile serves; the last serves all beyond, too.
PROJECTION = {
    ("sm_80", "half"): {
        320: Projection(128, 64, 64, 8, 3),
        640: Projection(128, 64, 64, 8, 3),
        1280: Projection(128, 64, 64, 8, 3),
    },
    ("sm_90", "half"): {
        320: Projection(128, 64, 64, 4, 3),
        640: Projection(128, 128, 64, 8, 3),
        1280: Projection(128, 128, 64, 8, 3),
    },
    ("sm_100", "half"): {
        320: Projection(128, 64, 64, 4, 3),
        640: Projection(128, 64, 64, 4, 3),
        1280: Projection(128, 64, 64, 4, 3),
    },
    ("sm_80", "tf32"): {
        1280: Projection(64, 64, 32, 4, 3),
    },
    ("sm_90", "tf32"): {
        1280: Projection(64, 64, 32, 4, 3),
    },
    ("sm_100", "tf32"): {
        1280: Projection(64, 64, 32, 4, 3),
    },
    ("sm_80", "ieee"): {
        1280: Projection(64, 32, 16, 4, 2),
    },
    ("sm_90", "ieee"): {
        1280: Projection(64, 32, 16, 4, 2),
    },
    ("sm_100", "ieee"): {
        1280: Projection(64, 32, 16, 4, 2),
    },
}
# Of the backward, likewise. It has no "tf32": at D = 160 on sm_80 and sm_90, every tile tried for the keys spills.
BACKWARD_QUERIES = {
    ("sm_80", "half"): {
        48: Attention(128, 64, 8, 2),
        96: Attention(128, 64, 8, 2),
        160: Attention(128, 32, 8, 2),
        256: Attention(64, 32, 8, 2),
    },
    ("sm_90", "half"): {
        48: Attention(128, 64, 8, 3),
        96: Attention(128, 32, 8, 3),
        160: Attention(64, 32, 4, 3),
        256: Attention(128, 32, 8, 2),
    },
    ("sm_100", "half"): {
        48: Attention(128, 64, 8, 3),
        96: Attention(128, 64, 8, 3),
        160: Attention(128, 64, 8, 2),
        256: Attention(64, 32, 4, 2),
    },
    ("sm_80", "ieee"): {
        48: Attention(32, 32, 8, 2),
        96: Attention(32, 32, 8, 2),
        160: Attention(32, 32, 8, 2),
        256: Attention(32, 16, 8, 2),
    },
    ("sm_90", "ieee"): {
        48: Attention(32, 32, 8, 2),
        96: Attention(32, 32, 8, 2),
        160: Attention(32, 32, 8, 2),
        256: Attention(32, 16, 8, 2),
    },
    ("sm_100", "ieee"): {
        48: Attention(32, 16, 8, 2),
        96: Attention(32, 32, 8, 2),
        160: Attention(32, 32, 8, 2),
        256: Attention(32, 16, 8, 2),
    },
}
# Here a program has a block of keys, and a step a block of queries.
BACKWARD_KEYS = {
    ("sm_80", "half"): {
        48: Attention(64, 128, 8, 2),
        96: Attention(16, 64, 8, 2),
        160: Attention(16, 64, 8, 2),
        256: Attention(32, 64, 8, 2),
    },
    ("sm_90", "half"): {
        48: Attention(32, 128, 4, 3),
        80: Attention(64, 64, 4, 3),
        96: Attention(64, 128, 8, 3),
        160: Attention(32, 128, 8, 2),
        256: Attention(32, 64, 8, 2),
    },
    ("sm_100", "half"): {
        48: Attention(64, 128, 8, 2),
        96: Attention(64, 128, 8, 2),
        160: Attention(64, 64, 8, 2),
        256: Attention(32, 64, 8, 2),
    },
    ("sm_80", "ieee"): {
        48: Attention(32, 16, 8, 2),
        96: Attention(16, 16, 8, 2),
        160: Attention(32, 16, 8, 2),
        256: Attention(16, 32, 8, 2),
    },
    ("sm_90", "ieee"): {
        48: Attention(32, 16, 8, 2),
        96: Attention(32, 16, 8, 2),
        160: Attention(32, 16, 8, 2),
        256: Attention(16, 16, 8, 2),
    },
    ("sm_100", "ieee"): {
        48: Attention(32, 16, 8, 2),
        96: Attention(32, 16, 8, 2),
        160: Attention(32, 16, 8, 2),
        256: Attention(16, 16, 8, 2),
    },
}
DELTA = Rows(64, 4, 1)
# Table, chip, arithmetic and limit of a tile: device, day and commit of the `bench/attn.py --tune` that chose it, or
# "the kernel alone" where it was chosen among the tiles without spills by timing that kernel at the model's sizes.
TIMED: dict[tuple[str, str, str, int], str] = {
    ("ATTENTION", "sm_90", "half", 48): "NVIDIA H200, 2026-11-26, 8d0469b44b51+",
    ("ATTENTION", "sm_90", "half", 96): "NVIDIA H200, 2026-11-26, 8d0469b44b51+",
    ("ATTENTION", "sm_90", "half", 160): "NVIDIA H200, 2026-11-26, 8d0469b44b51+",
    ("PROJECTION", "sm_90", "half", 320): "NVIDIA H100 80GB HBM3, 2026-11-26, the kernel alone",
    ("PROJECTION", "sm_90", "half", 640): "NVIDIA H100 80GB HBM3, 2026-11-26, the kernel alone",
    ("PROJECTION", "sm_90", "half", 1280): "NVIDIA H100 80GB HBM3, 2026-11-26, the kernel alone",
    ("BACKWARD_QUERIES", "sm_90", "half", 48): "NVIDIA H100 80GB HBM3, 2026-11-26, the kernel alone",
    ("BACKWARD_QUERIES", "sm_90", "half", 96): "NVIDIA H100 80GB HBM3, 2026-11-26, the kernel alone",
    ("BACKWARD_QUERIES", "sm_90", "half", 160): "NVIDIA H100 80GB HBM3, 2026-11-26, the kernel alone",
    ("BACKWARD_KEYS", "sm_90", "half", 48): "NVIDIA H100 80GB HBM3, 2026-11-26, the kernel alone",
    ("BACKWARD_KEYS", "sm_90", "half", 80): "NVIDIA H100 80GB HBM3, 2026-11-26, the kernel alone",
    ("BACKWARD_KEYS", "sm_90", "half", 160): "NVIDIA H100 80GB HBM3, 2026-11-26, the kernel alone",
    ("GLUON", "sm_90", "half", 40): "NVIDIA H100 80GB HBM3, 2026-11-26, the kernel alone",
    ("GLUON", "sm_90", "half", 80): "NVIDIA H100 80GB HBM3, 2026-11-26, the kernel alone",
    ("GLUON", "sm_90", "half", 160): "NVIDIA H100 80GB HBM3, 2026-11-26, the kernel alone",
    ("GLUON_KEYS", "sm_90", "half", 40): "NVIDIA H100 80GB HBM3, 2026-11-26, b7d14c89967a+",
    ("GLUON_KEYS", "sm_90", "half", 80): "NVIDIA H100 80GB HBM3, 2026-11-26, b7d14c89967a+",
    ("GLUON_QUERIES", "sm_90", "half", 40): "NVIDIA H100 80GB HBM3, 2026-11-26, b7d14c89967a+",
    ("GLUON_QUERIES", "sm_90", "half", 80): "NVIDIA H100 80GB HBM3, 2026-11-26, b7d14c89967a+",
}
MAX_HEAD_DIM = 256
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
CHIPS = {(8, 0): "sm_80", (9, 0): "sm_90", (10, 0): "sm_100"}
# Where forward and gradients have passed parity on a GPU, by chip and dtype, and the head dimensions at which "triton"
# is the default where "gluon" is not: there it was faster than "sdpa", forward and with gradients (bench/baselines, at
# 448 and 112 tokens). At D = 80 it was up to 2.5 % slower forward and 6 % with gradients; others were not timed.
PROVEN: dict[tuple[str, torch.dtype], tuple[int, ...]] = {("sm_90", torch.bfloat16): (160,)}
# Queries of a frame from which "gluon" is the default on a proven chip. It was the fastest of all there; a layer of 112
# waits for its launches.
GLUON_TOKENS = 448


def arithmetic(dtype: torch.dtype) -> str:
    """What the matrix products of a dtype in DTYPES are made in; "tf32" only where PyTorch's own may be."""
    if dtype != torch.float32:
        return "half"
    # Not `allow_tf32`, which raises where the newer of PyTorch's two settings is in use.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"


def attention_tile(chip: str, arithmetic: str, head_dim: int) -> Attention:
    """The tile for heads of `head_dim` channels, at most MAX_HEAD_DIM, on a chip named in CHIPS."""
    return _by_head(ATTENTION, chip, arithmetic, head_dim)


def queries_tile(chip: str, arithmetic: str, head_dim: int) -> Attention:
    """As `attention_tile`, of the backward kernel that holds a block of queries."""
    return _by_head(BACKWARD_QUERIES, chip, arithmetic, head_dim)


def keys_tile(chip: str, arithmetic: str, head_dim: int) -> Attention:
    """As `attention_tile`, of the backward kernel that holds a block of keys and walks over the queries."""
    return _by_head(BACKWARD_KEYS, chip, arithmetic, head_dim)


def _by_head(table: dict, chip: str, arithmetic: str, head_dim: int) -> Attention:
    rows = table[chip, arithmetic]
    return rows[min(limit for limit in rows if head_dim <= limit)]


def projection_tile(chip: str, arithmetic: str, channels: int) -> Projection:
    """The tile for so many output channels."""
    rows = PROJECTION[chip, arithmetic]
    return rows[min((limit for limit in rows if channels <= limit), default=max(rows))]
