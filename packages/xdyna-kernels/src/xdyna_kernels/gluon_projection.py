"""The projection by the Gluon kernel: as `triton_projection.project`, for Hopper, float16 and bfloat16.

Compiled for sm_90 and held to its machine code, and run on CPU tensors through a stand-in for Gluon's operations. No
GPU has run it yet.
"""

import math

from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from . import gluon_forward
from .gluon_projection_kernel import project_kernel
from .gluon_tiles import PROJECTION, REGISTERS, Projection
from .triton_projection import dense

# Of a block in shared memory, whose rows are 128 bytes.
X_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=3)
W_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
UNIT = 8  # of output channels


def projection_tile(channels: int) -> Projection:
    """The tile for so many output channels."""
    return PROJECTION[min((limit for limit in PROJECTION if channels <= limit), default=max(PROJECTION))]


def project_constants(tile: Projection) -> dict[str, int]:
    """The compile-time arguments of `project_kernel`."""
    C0 = 1 << (tile.columns.bit_length() - 1)
    registers, producer = REGISTERS[tile.warpgroups]
    sizes = {"ROWS": tile.rows, "C0": C0, "C1": tile.columns - C0, "DEPTH": tile.depth, "STAGES": tile.stages}
    return sizes | {"REGISTERS": registers, "PRODUCER_REGISTERS": producer}


def blocks(tile: Projection) -> dict[str, list[int]]:
    """What one copy brings, by the kernel's names for the first part of the weights and for the rest: past the last
    row, and the last channel of a branch, it brings zeros."""
    sizes = project_constants(tile)
    rest = sizes["C1"] or sizes["C0"]  # where there is none, nobody copies it
    return {"x": [1, tile.rows, tile.depth], "w0": [sizes["C0"], tile.depth], "w1": [rest, tile.depth]}


def project(
    both: Tensor,  # [B*F, N, 2*H*D], dense
    w_out: Tensor,  # [C, H*D], C a multiple of UNIT
    b_out: Tensor | None,  # [C]
    w_ref: Tensor,  # [C, H*D]
    b_ref: Tensor | None,  # [C]
    residual: Tensor | None,  # [B, F, N, C]
) -> Tensor:  # [B*F*N, C]
    """Own part times Wo^T plus reference part times Wr^T plus biases plus residual, summed in float32."""
    C, K = w_out.shape
    R = both.shape[0] * both.shape[1]
    tile = projection_tile(C)
    copied = blocks(tile)
    x = _describe(both.view(R, 2, K).transpose(0, 1), copied["x"], X_LAYOUT)
    weights = [_describe(dense(w), copied[part], W_LAYOUT) for w in (w_out, w_ref) for part in ("w0", "w1")]
    terms = [None if term is None else dense(term) for term in (b_out, b_ref, residual)]
    out = both.new_empty(R, C)
    of_channels = math.ceil(C / tile.columns)
    tiles = math.ceil(R / tile.rows) * of_channels
    programs = min(tiles, gluon_forward.multiprocessors(both))
    sizes = (R, C // UNIT, of_channels, math.ceil(K / tile.depth), tiles)
    gluon_forward.launch(project_kernel, programs, both, x, *weights, *terms, out, *sizes, **project_constants(tile))
    return out


def _describe(x: Tensor, block: list[int], layout: gl.NVMMASharedLayout) -> TensorDescriptor:
    return TensorDescriptor(x, list(x.shape), list(x.stride()), block, layout)
