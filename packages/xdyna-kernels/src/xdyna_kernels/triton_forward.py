"""Attention over both branches as a Triton kernel, the first of two: `triton_projection` has the second.

`attend` writes own and reference attention side by side, [B*F, N, 2*H*D]; `project` multiplies that by Wo and Wr and
adds both biases and the residual. Between them they move 2*H*D channels per token through memory: keeping the
projection inside the attention program spills registers at every tile.

A head dimension is split into at most two powers of two (40 = 32 + 8 of 16) instead of padded to one, which saves a
third of the matrix work at D = 40, 80 and 160. Where columns are left over (8 of 48 at D = 40), the values' are read as
ones, so that the matrix product also sums the weights: an eighth fewer instructions in each step. Integers are never
specialised, so that the kernel that runs is the kernel that was compiled and checked ahead of time.

Left out: maxima over the bits of the scores as integers, which loses rows whose scores are all negative; and one launch
of both kernels, which has not been built. By count it would save at most the way of `both` through memory, .2 of 13.0
ms at 7168 tokens and .1 of 1.40 at 1792 at the bandwidth that an H100 was measured to have.
"""

import math
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles

ALIGNMENT = 8  # every stride is a multiple of it, so that a row of half-precision channels loads as 16 bytes
LOG2_E = 1.4426950408889634
STRIDES = [f"{t}_{axis}" for t in ("q", "k", "v", "qr") for axis in "bfnh"] + [
    f"{t}_{axis}" for t in ("kr", "vr") for axis in "bnh"
]


@triton.jit
def load(base, rows, row_limit, stride, columns, column_limit, EVEN_ROWS: tl.constexpr, EVEN_COLUMNS: tl.constexpr):
    """[rows, columns] of a matrix; zero past the limits, which an axis that is even never reaches."""
    at = base + rows[:, None].to(tl.int64) * stride + columns[None, :]
    # A mask that is always true still costs instructions in every step.
    if EVEN_ROWS and EVEN_COLUMNS:
        return tl.load(at)
    elif EVEN_ROWS:
        return tl.load(at, mask=(columns < column_limit)[None, :], other=0.0)
    elif EVEN_COLUMNS:
        return tl.load(at, mask=(rows < row_limit)[:, None], other=0.0)
    else:
        return tl.load(at, mask=(rows < row_limit)[:, None] & (columns < column_limit)[None, :], other=0.0)


@triton.jit
def load_beside_ones(base, rows, row_limit, stride, columns, D, ones, EVEN_ROWS: tl.constexpr):
    """[rows, columns] of a matrix of D columns, with ones to the right of it; zero past the row limit."""
    # From memory, since what is selected after the load cannot go into shared memory asynchronously.
    at = base + rows[:, None].to(tl.int64) * stride + columns[None, :]
    at = tl.where((columns < D)[None, :], at, (ones + columns % 8)[None, :])
    if EVEN_ROWS:
        return tl.load(at)
    else:
        return tl.load(at, mask=(rows < row_limit)[:, None], other=0.0)


@triton.jit
def store(base, values, rows, row_limit, stride, columns, column_limit):
    at = base + rows[:, None].to(tl.int64) * stride + columns[None, :]
    tl.store(at, values.to(base.dtype.element_ty), mask=(rows < row_limit)[:, None] & (columns < column_limit)[None, :])


@triton.jit(do_not_specialize=["F", "N", "M", "H", "lse_rows", *STRIDES])
def attend_kernel(
    q,  # [B, F, N, H, D]
    k,  # [B, F, N, H, D]
    v,  # [B, F, N, H, D]
    qr,  # [B, F, N, H, D]
    kr,  # [B, M, H, D]
    vr,  # [B, M, H, D]
    ones,  # [8]
    both,  # [B*F, N, 2*H*D]
    lse,  # [B*F, 2*H, N], or anything if none of it is kept
    scale,  # of the scores, times log2 e
    F,
    N,
    M,
    H,
    lse_rows,  # N, or 0: none is kept. Not compiled apart, which costs registers: 134 for 125 at D = 40 on sm_90
    q_b,
    q_f,
    q_n,
    q_h,
    k_b,
    k_f,
    k_n,
    k_h,
    v_b,
    v_f,
    v_n,
    v_h,
    qr_b,
    qr_f,
    qr_n,
    qr_h,
    kr_b,
    kr_n,
    kr_h,
    vr_b,
    vr_n,
    vr_h,
    D: tl.constexpr,
    D0: tl.constexpr,  # D0 + D1 >= D, powers of two; D1 may be 0
    D1: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    EVEN: tl.constexpr,  # KEYS divides N and M
    PRECISION: tl.constexpr,
):
    """One block of queries of one head of one frame, in one branch: own or reference. Strides in units of 8."""
    # Blocks run fastest: neighbours read the same keys. One grid axis, since the others end at 65535.
    blocks = tl.cdiv(N, QUERIES)
    block = tl.program_id(0) % blocks
    head_of_both = (tl.program_id(0) // blocks) % (2 * H)
    frame_of_all = tl.program_id(0) // blocks // (2 * H)
    h = (head_of_both % H).to(tl.int64)
    b = (frame_of_all // F).to(tl.int64)
    f = (frame_of_all % F).to(tl.int64)

    if head_of_both < H:
        q_base = q + (b * q_b + f * q_f + h * q_h) * 8
        k_base = k + (b * k_b + f * k_f + h * k_h) * 8
        v_base = v + (b * v_b + f * v_f + h * v_h) * 8
        q_row, k_row, v_row, n_keys = q_n * 8, k_n * 8, v_n * 8, N
    else:
        q_base = qr + (b * qr_b + f * qr_f + h * qr_h) * 8
        k_base = kr + (b * kr_b + h * kr_h) * 8
        v_base = vr + (b * vr_b + h * vr_h) * 8
        q_row, k_row, v_row, n_keys = qr_n * 8, kr_n * 8, vr_n * 8, M

    queries = block * QUERIES + tl.arange(0, QUERIES)
    c0 = tl.arange(0, D0)
    q0 = load(q_base, queries, N, q_row, c0, D, False, D0 <= D)
    out0 = tl.zeros([QUERIES, D0], tl.float32)
    if D1 > 0:
        c1 = D0 + tl.arange(0, D1)
        q1 = load(q_base, queries, N, q_row, c1, D, False, D0 + D1 <= D)
        out1 = tl.zeros([QUERIES, D1], tl.float32)
    # The weights are summed in column D of out1, if it has one.
    SPARE: tl.constexpr = D1 > 0 and D0 + D1 > D
    top = tl.full([QUERIES], float("-inf"), tl.float32)
    total = tl.zeros([QUERIES], tl.float32)
    for start in tl.range(0, n_keys, KEYS):
        keys = start + tl.arange(0, KEYS)
        k0 = load(k_base, keys, n_keys, k_row, c0, D, EVEN, D0 <= D)
        scores = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
        if D1 > 0:
            k1 = load(k_base, keys, n_keys, k_row, c1, D, EVEN, D0 + D1 <= D)
            scores = tl.dot(q1, tl.trans(k1), scores, input_precision=PRECISION)
        if not EVEN:
            scores = tl.where((keys < n_keys)[None, :], scores, float("-inf"))

        new_top = tl.maximum(top, tl.max(scores, 1) * scale)
        weights = tl.math.exp2(scores * scale - new_top[:, None])
        shrink = tl.math.exp2(top - new_top)
        if not SPARE:
            total = total * shrink + tl.sum(weights, 1)
        top = new_top
        weights = weights.to(q0.dtype)

        v0 = load(v_base, keys, n_keys, v_row, c0, D, EVEN, D0 <= D)
        out0 = tl.dot(weights, v0, out0 * shrink[:, None], input_precision=PRECISION)
        if D1 > 0:
            if SPARE:
                v1 = load_beside_ones(v_base, keys, n_keys, v_row, c1, D, ones, EVEN)
            else:
                v1 = load(v_base, keys, n_keys, v_row, c1, D, EVEN, True)
            out1 = tl.dot(weights, v1, out1 * shrink[:, None], input_precision=PRECISION)

    if SPARE:
        total = tl.sum(tl.where((c1 == D)[None, :], out1, 0.0), 1)
    both_row = 2 * H * D
    both_base = both + frame_of_all.to(tl.int64) * N * both_row + head_of_both * D
    store(both_base, out0 / total[:, None], queries, N, both_row, c0, D)
    if D1 > 0:
        store(both_base, out1 / total[:, None], queries, N, both_row, c1, D)
    lse_base = lse + (frame_of_all.to(tl.int64) * 2 * H + head_of_both) * N
    tl.store(lse_base + queries, (top + tl.math.log2(total)) * 0.6931471805599453, mask=queries < lse_rows)


def attend_constants(tile: tiles.Attention, arithmetic: str, D: int, even: bool) -> dict[str, Any]:
    """The compile-time arguments of `attend_kernel`."""
    # The largest power of two, then one that holds the rest; 16 is the narrowest that tensor cores take.
    D0 = max(16, 1 << (D.bit_length() - 1))
    D1 = max(16, triton.next_power_of_2(D - D0)) if D > D0 else 0
    sizes = {"D": D, "D0": D0, "D1": D1, "QUERIES": tile.queries, "KEYS": tile.keys}
    return sizes | {"EVEN": even, "PRECISION": "tf32" if arithmetic == "tf32" else "ieee"}


def readable(x: Tensor) -> Tensor:
    """`x` itself if the kernel can read it in place, else a copy: strides that are no multiples of 8, say."""
    *outer, channel = x.stride()
    in_place = channel == 1 and x.data_ptr() % 16 == 0 and not any(s % ALIGNMENT for s in outer)
    # The kernel's strides are 32 bits wide, its products are not; that of tokens it takes times 8.
    in_place = in_place and outer[-2] < 2**31 and max(outer) < ALIGNMENT * 2**31
    return x if in_place else x.clone(memory_format=torch.contiguous_format)


def chip(x: Tensor) -> str:
    """The row of the tile table. Triton's interpreter (CPU tensors) takes that of sm_90."""
    return tiles.CHIPS[torch.cuda.get_device_capability(x.device)] if x.is_cuda else "sm_90"


def launch(kernel: Any, programs: int, tile: tiles.Tile, first: Tensor, *rest, **constants):
    with torch.cuda.device_of(first):  # Triton launches on the current device, which may be another
        kernel[(programs,)](first, *rest, **constants, num_warps=tile.warps, num_stages=tile.stages)


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
    M = k_ref.shape[1]
    arithmetic = tiles.arithmetic(q.dtype)
    tile = tiles.attention_tile(chip(q), arithmetic, D)
    tensors = [readable(x) for x in (q, k, v, q_ref, k_ref, v_ref)]
    strides = [s // ALIGNMENT for x in tensors for s in x.stride()[:-1]]
    both = q.new_empty(B * F, N, 2 * H * D)
    lse = q.new_empty((B * F, 2 * H, N) if keep_lse else 0, dtype=torch.float32)
    even = N % tile.keys == 0 and M % tile.keys == 0
    ones = q.new_ones(ALIGNMENT)
    sizes = (scale * LOG2_E, F, N, M, H, N if keep_lse else 0)
    programs = math.ceil(N / tile.queries) * 2 * H * B * F
    constants = attend_constants(tile, arithmetic, D, even)
    launch(attend_kernel, programs, tile, *tensors, ones, both, lse, *sizes, *strides, **constants)
    return both, lse
