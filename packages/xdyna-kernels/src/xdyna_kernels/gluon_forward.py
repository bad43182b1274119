"""Attention over both branches by the Gluon kernel: as `triton_forward.attend`, for Hopper and D = 40, 80 and 160.

Compiled for sm_90 and held to its machine code, and run on CPU tensors through a stand-in for Gluon's operations. On an
H100 it has passed parity with float64, and been timed, as bench/baselines tells.

compute-sanitizer's racecheck reported hazards there (an H200, three programs taking tiles in turn): none in the tiles
of queries, keys or values, all between what Triton's `warp_specialize` writes to tell its warps what to run and their
reads of it. It says the same of a kernel whose warps share only a barrier (bench/racecheck.py), and the machine code
has a barrier of the program between them.
"""

import math
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .gluon_kernel import attend_kernel
from .gluon_tiles import REGISTERS, TILES, Tile
from .triton_forward import LOG2_E, readable

LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=5)  # of a block in shared memory


def parts(D: int) -> tuple[int, int]:
    """Powers of two that a head's channels are multiplied in, together D or a little more."""
    D0 = 1 << (D.bit_length() - 1)
    return D0, max(16, D - D0)


def part_layout(width: int) -> gl.NVMMASharedLayout:
    """Of a block of so many channels in shared memory."""
    return gl.NVMMASharedLayout(swizzle_byte_width=min(128, 2 * width), element_bitwidth=16, rank=5)


def tile_constants(D: int, tile: Tile) -> dict[str, int]:
    """The compile-time arguments of a Gluon kernel."""
    D0, D1 = parts(D)
    registers, producer = REGISTERS[tile.warpgroups]
    sizes = {"D": D, "D0": D0, "D1": D1, "WARPGROUPS": tile.warpgroups}
    sizes |= {"QUERIES": tile.queries, "KEYS": tile.keys, "STAGES": tile.stages}
    return sizes | {"REGISTERS": registers, "PRODUCER_REGISTERS": producer}


def block(rows: int, D: int) -> list[int]:
    """What one copy brings of a [B, F, H, rows, D]; past D and past the last row it brings zeros."""
    return [1, 1, 1, rows, 1 << (D - 1).bit_length()]


def describe(x: Tensor, rows: int) -> TensorDescriptor:
    """`x` [B, F, N, H, D] for copies of `rows` tokens of a head; `x` is copied first if it cannot be read in place."""
    if 0 in x.stride():
        x = x.clone(memory_format=torch.contiguous_format)
    x = readable(x).transpose(2, 3)
    return TensorDescriptor(x, list(x.shape), list(x.stride()), block(rows, x.shape[-1]), LAYOUT)


def describe_parts(x: Tensor, rows: int) -> list[TensorDescriptor]:
    """As `describe`, for copies of the first of `parts` and of the second."""
    whole = describe(x, rows)
    return [
        TensorDescriptor(whole.base, whole.shape, whole.strides, block(rows, width), part_layout(width))
        for width in parts(x.shape[-1])
    ]


def attend(
    q: Tensor,  # [B, F, N, H, D]
    k: Tensor,  # [B, F, N, H, D]
    v: Tensor,  # [B, F, N, H, D]
    q_ref: Tensor,  # [B, F, N, H, D]
    k_ref: Tensor,  # [B, M, H, D]
    v_ref: Tensor,  # [B, M, H, D]
    scale: float,
    keep_lse: bool = True,
) -> tuple[Tensor, Tensor]:  # [B*F, N, 2*H*D] own | reference; [B*F, 2*H, N] natural log of sum of exp, float32
    """softmax(scale q k^T) v of both branches, side by side. A log that no backward will read is not kept: [0] then."""
    B, F, N, H, D = q.shape
    tile = TILES[D]
    own = [(q, tile.queries), (k, tile.keys), (v, tile.keys)]
    ref = [(q_ref, tile.queries), (k_ref[:, None], tile.keys), (v_ref[:, None], tile.keys)]
    tensors = [part for x, rows in own + ref for part in describe_parts(x, rows)]
    both = q.new_empty(B * F, N, 2 * H * D)
    lse = q.new_empty((B * F, 2 * H, N) if keep_lse else 0, dtype=torch.float32)
    tiles = math.ceil(N / (tile.warpgroups * tile.queries)) * 2 * H * B * F
    programs = min(tiles, multiprocessors(q)) if tile.persistent else tiles
    sizes = (scale * LOG2_E, F, N, k_ref.shape[1], H, N if keep_lse else 0, tiles)
    launch(attend_kernel, programs, q, *tensors, both, lse, *sizes, **tile_constants(D, tile))
    return both, lse


def multiprocessors(on: Tensor) -> int:
    """Of the device of `on`. Each has room for one program of these kernels: their registers are nearly all it has."""
    return torch.cuda.get_device_properties(on.device).multi_processor_count


def launch(kernel: Any, programs: int, on: Tensor, *arguments, **constants) -> None:
    """Runs a Gluon kernel on the device of `on`."""
    with torch.cuda.device_of(on):  # Triton launches on the current device, which may be another
        kernel[(programs,)](*arguments, **constants, num_warps=4)
