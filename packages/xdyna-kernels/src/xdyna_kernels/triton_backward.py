"""Derivatives of reference attention as three Triton kernels, from the log of the sum of exp that the forward saved.

With P = softmax(scale q k^T), O = P v and dO the derivative by O (Dao et al. 2022, FlashAttention, Appendix B.2):

    dv = P^T dO    dS = P * (dO v^T - delta)    dq = scale dS k    dk = scale dS^T q    delta = sum of dO * O by rows

P is built anew from the scores, block by block. One kernel walks over keys and holds dq, one walks over queries and
holds dk and dv; no sum is shared between programs, so the result is the same in every run. The reference branch is the
own branch with the queries of all frames in one row: its dk and dv sum over the frames by themselves. Which branch a
program works on is decided by its place in the grid, and a branch that nothing asks for has no place in it.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from . import tiles
from .triton_forward import ALIGNMENT, STRIDES, attend_constants, chip, launch, load, readable, store


@triton.jit(do_not_specialize=["N", "H", "first_head", "heads"])
def delta_kernel(
    d_both,  # [B*F, N, 2*H*D]
    both,  # [B*F, N, 2*H*D]
    delta,  # [B*F, 2*H, N]
    N,
    H,
    first_head,
    heads,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,  # a power of two from D on
    ROWS: tl.constexpr,
):
    """delta of one block of tokens of one head out of `heads` from `first_head` on, of the 2*H of both branches."""
    blocks = tl.cdiv(N, ROWS)
    rows = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    head = first_head + (tl.program_id(0) // blocks) % heads
    frame = (tl.program_id(0) // blocks // heads).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    row = 2 * H * D
    at = frame * N * row + head * D
    x = load(both + at, rows, N, row, columns, D, False, COLUMNS == D).to(tl.float32)
    dx = load(d_both + at, rows, N, row, columns, D, False, COLUMNS == D).to(tl.float32)
    tl.store(delta + (frame * 2 * H + head) * N + rows, tl.sum(x * dx, 1), mask=rows < N)


@triton.jit(do_not_specialize=["F", "N", "M", "H", "first_head", "heads", *STRIDES])
def queries_kernel(
    q,  # [B, F, N, H, D]
    k,  # [B, F, N, H, D]
    v,  # [B, F, N, H, D]
    qr,  # [B, F, N, H, D]
    kr,  # [B, M, H, D]
    vr,  # [B, M, H, D]
    d_both,  # [B*F, N, 2*H*D]
    lse,  # [B*F, 2*H, N]
    delta,  # [B*F, 2*H, N]
    dq,  # [B*F, N, H*D]
    dqr,  # [B*F, N, H*D]
    scale,
    F,
    N,
    M,
    H,
    first_head,
    heads,
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
    D0: tl.constexpr,
    D1: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    EVEN: tl.constexpr,  # KEYS divides N and M
    PRECISION: tl.constexpr,
):
    """dq of one block of queries of one head of one frame, in one branch. Arguments as in `attend_kernel`."""
    blocks = tl.cdiv(N, QUERIES)
    block = tl.program_id(0) % blocks
    head_of_both = first_head + (tl.program_id(0) // blocks) % heads
    frame_of_all = (tl.program_id(0) // blocks // heads).to(tl.int64)
    h = (head_of_both % H).to(tl.int64)
    b = frame_of_all // F
    f = frame_of_all % F

    if head_of_both < H:
        q_base = q + (b * q_b + f * q_f + h * q_h) * 8
        k_base = k + (b * k_b + f * k_f + h * k_h) * 8
        v_base = v + (b * v_b + f * v_f + h * v_h) * 8
        dq_base = dq + (frame_of_all * N * H + h) * D
        q_row, k_row, v_row, n_keys = q_n * 8, k_n * 8, v_n * 8, N
    else:
        q_base = qr + (b * qr_b + f * qr_f + h * qr_h) * 8
        k_base = kr + (b * kr_b + h * kr_h) * 8
        v_base = vr + (b * vr_b + h * vr_h) * 8
        dq_base = dqr + (frame_of_all * N * H + h) * D
        q_row, k_row, v_row, n_keys = qr_n * 8, kr_n * 8, vr_n * 8, M
    d_row = 2 * H * D
    d_base = d_both + frame_of_all * N * d_row + head_of_both * D
    of_query = (frame_of_all * 2 * H + head_of_both) * N

    queries = block * QUERIES + tl.arange(0, QUERIES)
    c0 = tl.arange(0, D0)
    q0 = load(q_base, queries, N, q_row, c0, D, False, D0 <= D)
    d0 = load(d_base, queries, N, d_row, c0, D, False, D0 <= D)
    sum0 = tl.zeros([QUERIES, D0], tl.float32)
    if D1 > 0:
        c1 = D0 + tl.arange(0, D1)
        q1 = load(q_base, queries, N, q_row, c1, D, False, D0 + D1 <= D)
        d1 = load(d_base, queries, N, d_row, c1, D, False, D0 + D1 <= D)
        sum1 = tl.zeros([QUERIES, D1], tl.float32)
    row_lse = tl.load(lse + of_query + queries, mask=queries < N, other=0.0) * 1.4426950408889634
    row_delta = tl.load(delta + of_query + queries, mask=queries < N, other=0.0)
    for start in tl.range(0, n_keys, KEYS):
        keys = start + tl.arange(0, KEYS)
        k0 = load(k_base, keys, n_keys, k_row, c0, D, EVEN, D0 <= D)
        v0 = load(v_base, keys, n_keys, v_row, c0, D, EVEN, D0 <= D)
        scores = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
        d_weights = tl.dot(d0, tl.trans(v0), input_precision=PRECISION)
        if D1 > 0:
            k1 = load(k_base, keys, n_keys, k_row, c1, D, EVEN, D0 + D1 <= D)
            v1 = load(v_base, keys, n_keys, v_row, c1, D, EVEN, D0 + D1 <= D)
            scores = tl.dot(q1, tl.trans(k1), scores, input_precision=PRECISION)
            d_weights = tl.dot(d1, tl.trans(v1), d_weights, input_precision=PRECISION)
        if not EVEN:
            scores = tl.where((keys < n_keys)[None, :], scores, float("-inf"))
        weights = tl.math.exp2(scores * (scale * 1.4426950408889634) - row_lse[:, None])
        d_scores = (weights * (d_weights - row_delta[:, None])).to(q0.dtype)
        sum0 = tl.dot(d_scores, k0, sum0, input_precision=PRECISION)
        if D1 > 0:
            sum1 = tl.dot(d_scores, k1, sum1, input_precision=PRECISION)

    store(dq_base, sum0 * scale, queries, N, H * D, c0, D)
    if D1 > 0:
        store(dq_base, sum1 * scale, queries, N, H * D, c1, D)


@triton.jit(do_not_specialize=["F", "N", "M", "H", "reference_programs", *STRIDES])
def keys_kernel(
    q,  # [B, F, N, H, D]
    k,  # [B, F, N, H, D]
    v,  # [B, F, N, H, D]
    qr,  # [B, F, N, H, D]
    kr,  # [B, M, H, D]
    vr,  # [B, M, H, D]
    d_both,  # [B*F, N, 2*H*D]
    lse,  # [B*F, 2*H, N]
    delta,  # [B*F, 2*H, N]
    dk,  # [B*F, N, H*D]
    dv,  # [B*F, N, H*D]
    dkr,  # [B, M, H*D]
    dvr,  # [B, M, H*D]
    scale,
    F,
    N,
    M,
    H,
    reference_programs,
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
    D0: tl.constexpr,
    D1: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    EVEN: tl.constexpr,  # QUERIES divides N
    PRECISION: tl.constexpr,
):
    """dk and dv of one block of keys of one head: of the reference, over all frames, or of one frame's own."""
    # The reference's programs come first: they are F times as long, so none is left to run alone at the end.
    if tl.program_id(0) < reference_programs:
        blocks = tl.cdiv(M, KEYS)
        block = tl.program_id(0) % blocks
        h = ((tl.program_id(0) // blocks) % H).to(tl.int64)
        b = (tl.program_id(0) // blocks // H).to(tl.int64)
        frame_of_all, frames, n_keys, head_of_both = b * F, F, M, H + h
        q_base = qr + (b * qr_b + h * qr_h) * 8
        k_base = kr + (b * kr_b + h * kr_h) * 8
        v_base = vr + (b * vr_b + h * vr_h) * 8
        dk_base = dkr + (b * M * H + h) * D
        dv_base = dvr + (b * M * H + h) * D
        q_frame, q_row, k_row, v_row = qr_f, qr_n * 8, kr_n * 8, vr_n * 8
    else:
        blocks = tl.cdiv(N, KEYS)
        own = tl.program_id(0) - reference_programs
        block = own % blocks
        h = ((own // blocks) % H).to(tl.int64)
        frame_of_all = (own // blocks // H).to(tl.int64)
        b = frame_of_all // F
        f = frame_of_all % F
        frames, n_keys, head_of_both = 1, N, h
        q_base = q + (b * q_b + f * q_f + h * q_h) * 8
        k_base = k + (b * k_b + f * k_f + h * k_h) * 8
        v_base = v + (b * v_b + f * v_f + h * v_h) * 8
        dk_base = dk + (frame_of_all * N * H + h) * D
        dv_base = dv + (frame_of_all * N * H + h) * D
        q_frame, q_row, k_row, v_row = q_f, q_n * 8, k_n * 8, v_n * 8
    d_row = 2 * H * D
    d_base = d_both + frame_of_all * N * d_row + head_of_both * D
    of_query = (frame_of_all * 2 * H + head_of_both) * N

    keys = block * KEYS + tl.arange(0, KEYS)
    c0 = tl.arange(0, D0)
    k0 = load(k_base, keys, n_keys, k_row, c0, D, False, D0 <= D)
    v0 = load(v_base, keys, n_keys, v_row, c0, D, False, D0 <= D)
    dk0 = tl.zeros([KEYS, D0], tl.float32)
    dv0 = tl.zeros([KEYS, D0], tl.float32)
    if D1 > 0:
        c1 = D0 + tl.arange(0, D1)
        k1 = load(k_base, keys, n_keys, k_row, c1, D, False, D0 + D1 <= D)
        v1 = load(v_base, keys, n_keys, v_row, c1, D, False, D0 + D1 <= D)
        dk1 = tl.zeros([KEYS, D1], tl.float32)
        dv1 = tl.zeros([KEYS, D1], tl.float32)
    blocks_of_frame = tl.cdiv(N, QUERIES)
    for step in tl.range(0, frames * blocks_of_frame):
        f = (step // blocks_of_frame).to(tl.int64)
        queries = (step % blocks_of_frame) * QUERIES + tl.arange(0, QUERIES)
        q_at = q_base + f * q_frame * 8
        d_at = d_base + f * N * d_row
        of_step = of_query + f * 2 * H * N
        q0 = load(q_at, queries, N, q_row, c0, D, EVEN, D0 <= D)
        d0 = load(d_at, queries, N, d_row, c0, D, EVEN, D0 <= D)
        scores = tl.dot(k0, tl.trans(q0), input_precision=PRECISION)
        d_weights = tl.dot(v0, tl.trans(d0), input_precision=PRECISION)
        if D1 > 0:
            q1 = load(q_at, queries, N, q_row, c1, D, EVEN, D0 + D1 <= D)
            d1 = load(d_at, queries, N, d_row, c1, D, EVEN, D0 + D1 <= D)
            scores = tl.dot(k1, tl.trans(q1), scores, input_precision=PRECISION)
            d_weights = tl.dot(v1, tl.trans(d1), d_weights, input_precision=PRECISION)
        if EVEN:
            row_lse = tl.load(lse + of_step + queries)
            row_delta = tl.load(delta + of_step + queries)
        else:
            # Past the last token the sum is infinite, so that every weight is zero.
            row_lse = tl.load(lse + of_step + queries, mask=queries < N, other=float("inf"))
            row_delta = tl.load(delta + of_step + queries, mask=queries < N, other=0.0)
        weights = tl.math.exp2(scores * (scale * 1.4426950408889634) - (row_lse * 1.4426950408889634)[None, :])
        rounded = weights.to(k0.dtype)
        dv0 = tl.dot(rounded, d0, dv0, input_precision=PRECISION)
        d_scores = (weights * (d_weights - row_delta[None, :])).to(k0.dtype)
        dk0 = tl.dot(d_scores, q0, dk0, input_precision=PRECISION)
        if D1 > 0:
            dv1 = tl.dot(rounded, d1, dv1, input_precision=PRECISION)
            dk1 = tl.dot(d_scores, q1, dk1, input_precision=PRECISION)

    store(dk_base, dk0 * scale, keys, n_keys, H * D, c0, D)
    store(dv_base, dv0, keys, n_keys, H * D, c0, D)
    if D1 > 0:
        store(dk_base, dk1 * scale, keys, n_keys, H * D, c1, D)
        store(dv_base, dv1, keys, n_keys, H * D, c1, D)


def attend_backward(
    grad: Tensor,  # [B, F, N, C]
    q: Tensor,  # [B, F, N, H, D]
    k: Tensor,  # [B, F, N, H, D]
    v: Tensor,  # [B, F, N, H, D]
    q_ref: Tensor,  # [B, F, N, H, D]
    k_ref: Tensor,  # [B, M, H, D]
    v_ref: Tensor,  # [B, M, H, D]
    w_out: Tensor,  # [C, H*D]
    w_ref: Tensor,  # [C, H*D]
    both: Tensor,  # [B*F, N, 2*H*D] as `attend` made it
    lse: Tensor,  # [B*F, 2*H, N] as `attend` made it
    scale: float,
    needed: Sequence[bool],  # of the six tensors of attention, in their order
) -> list[Tensor]:
    """Derivatives by q, k, v, q_ref, k_ref, v_ref, each like its tensor; empty [0] where it is not needed.

    Keys and values of a branch come as a pair, from one kernel: there, one that is needed computes both.
    """
    B, F, N, H, D = q.shape
    M = k_ref.shape[1]
    tensors = [readable(x) for x in (q, k, v, q_ref, k_ref, v_ref)]
    own_pair, ref_pair = needed[1] or needed[2], needed[4] or needed[5]
    computed = (needed[0], own_pair, own_pair, needed[3], ref_pair, ref_pair)
    found = [q.new_empty(x.shape if wanted else 0) for x, wanted in zip(tensors, computed, strict=True)]
    dq, dk, dv, dqr, dkr, dvr = found

    first_head, heads = _heads(H, needed[0] or own_pair, needed[3] or ref_pair)
    d_both = _d_both(grad, w_out, w_ref, slice(first_head * D, (first_head + heads) * D)).view_as(both)
    delta = torch.empty_like(lse)
    constants = delta_constants(D)
    programs = math.ceil(N / constants["ROWS"]) * heads * B * F
    launch(delta_kernel, programs, tiles.DELTA, d_both, both, delta, N, H, first_head, heads, **constants)

    arithmetic = "ieee" if q.dtype == torch.float32 else "half"  # also where tf32 is allowed: see tiles
    strides = [s // ALIGNMENT for x in tensors for s in x.stride()[:-1]]
    common = (*tensors, d_both, lse, delta)
    if needed[0] or needed[3]:
        tile = tiles.queries_tile(chip(q), arithmetic, D)
        first_head, heads = _heads(H, needed[0], needed[3])
        sizes = (scale, F, N, M, H, first_head, heads)
        programs = math.ceil(N / tile.queries) * heads * B * F
        constants = attend_constants(tile, arithmetic, D, even=N % tile.keys == 0 and M % tile.keys == 0)
        launch(queries_kernel, programs, tile, *common, dq, dqr, *sizes, *strides, **constants)
    if own_pair or ref_pair:
        tile = tiles.keys_tile(chip(q), arithmetic, D)
        of_reference = math.ceil(M / tile.keys) * H * B if ref_pair else 0
        programs = of_reference + (math.ceil(N / tile.keys) * H * B * F if own_pair else 0)
        sizes = (scale, F, N, M, H, of_reference)
        constants = attend_constants(tile, arithmetic, D, even=N % tile.queries == 0)
        launch(keys_kernel, programs, tile, *common, dk, dv, dkr, dvr, *sizes, *strides, **constants)
    return [x if wanted else x.new_empty(0) for x, wanted in zip(found, needed, strict=True)]


def _heads(H: int, own: bool, ref: bool) -> tuple[int, int]:
    """First and number of the heads to work on, of the 2*H of both branches."""
    return 0 if own else H, H * (own + ref)


def _d_both(grad: Tensor, w_out: Tensor, w_ref: Tensor, columns: slice) -> Tensor:  # [B*F*N, 2*H*D]
    """Derivatives by what the projection projected, own | reference; nothing is written outside `columns`."""
    # A plain matrix product with nothing to fuse: no kernel of ours would beat cuBLAS. One product reads `grad` once.
    weights = torch.cat([w_out, w_ref], 1)  # [C, 2*H*D]
    rows = grad.flatten(0, 2)  # [B*F*N, C]
    d_both = rows.new_empty(rows.shape[0], weights.shape[1])
    torch.mm(rows, weights[:, columns], out=d_both[:, columns])
    return d_both


def delta_constants(D: int) -> dict[str, Any]:
    """The compile-time arguments of `delta_kernel`."""
    return {"D": D, "COLUMNS": triton.next_power_of_2(D), "ROWS": tiles.DELTA.rows}
