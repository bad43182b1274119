"""The projection of both branches' attention as a Triton kernel: two products, both biases and the residual in one."""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .triton_forward import ALIGNMENT, chip, launch, load, store


@triton.jit(do_not_specialize=["R", "K"])
def project_kernel(
    both,  # [R, 2*K]
    w_out,  # [C, K]
    b_out,  # [C] or None
    w_ref,  # [C, K]
    b_ref,  # [C] or None
    residual,  # [R, C] or None
    out,  # [R, C]
    R,
    K,  # in units of 8
    C: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    DEPTH: tl.constexpr,
    EVEN: tl.constexpr,  # DEPTH divides K
    PRECISION: tl.constexpr,
):
    """One tile of both[:, :K] @ w_out^T + both[:, K:] @ w_ref^T + b_out + b_ref + residual; rows are contiguous."""
    blocks = tl.cdiv(C, COLUMNS)
    rows = (tl.program_id(0) // blocks) * ROWS + tl.arange(0, ROWS)
    columns = (tl.program_id(0) % blocks) * COLUMNS + tl.arange(0, COLUMNS)
    # Not a compile-time K: a known number of steps is unrolled until it spills.
    K = K * 8
    sums = tl.zeros([ROWS, COLUMNS], tl.float32)
    for branch in tl.static_range(2):
        w = w_out if branch == 0 else w_ref
        for start in tl.range(0, K, DEPTH):
            depth = start + tl.arange(0, DEPTH)
            x_part = load(both + branch * K, rows, R, 2 * K, depth, K, False, EVEN)
            w_part = load(w, columns, C, K, depth, K, C % COLUMNS == 0, EVEN)
            sums = tl.dot(x_part, tl.trans(w_part), sums, input_precision=PRECISION)
    if b_out is not None:
        sums += tl.load(b_out + columns, mask=columns < C, other=0.0).to(tl.float32)[None, :]
    if b_ref is not None:
        sums += tl.load(b_ref + columns, mask=columns < C, other=0.0).to(tl.float32)[None, :]
    if residual is not None:
        sums += load(residual, rows, R, C, columns, C, False, C % COLUMNS == 0).to(tl.float32)
    store(out, sums, rows, R, C, columns, C)


def project_constants(tile: tiles.Projection, arithmetic: str, C: int, even: bool) -> dict[str, Any]:
    """The compile-time arguments of `project_kernel`."""
    sizes = {"C": C, "ROWS": tile.rows, "COLUMNS": tile.columns, "DEPTH": tile.depth}
    return sizes | {"EVEN": even, "PRECISION": "tf32" if arithmetic == "tf32" else "ieee"}


def dense(x: Tensor) -> Tensor:
    """`x` itself if it is contiguous and aligned, else a copy."""
    return x if x.is_contiguous() and x.data_ptr() % 16 == 0 else x.clone(memory_format=torch.contiguous_format)


def project(
    both: Tensor,  # [B*F, N, 2*H*D]
    w_out: Tensor,  # [C, H*D]
    b_out: Tensor | None,  # [C]
    w_ref: Tensor,  # [C, H*D]
    b_ref: Tensor | None,  # [C]
    residual: Tensor | None,  # [B, F, N, C]
) -> Tensor:  # [B*F*N, C]
    """Own part times Wo^T plus reference part times Wr^T plus biases plus residual, summed in float32."""
    C, K = w_out.shape
    R = both.shape[0] * both.shape[1]
    arithmetic = tiles.arithmetic(both.dtype)
    tile = tiles.projection_tile(chip(both), arithmetic, C)
    out = both.new_empty(R, C)
    rest = [None if x is None else dense(x) for x in (w_out, b_out, w_ref, b_ref, residual)]
    programs = math.ceil(R / tile.rows) * math.ceil(C / tile.columns)
    constants = project_constants(tile, arithmetic, C, even=K % tile.depth == 0)
    launch(project_kernel, programs, tile, both, *rest, out, R, K // ALIGNMENT, **constants)
    return out
