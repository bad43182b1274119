"""Derivatives of reference attention as three Triton kernels, from the log of the sum of exp that the forward saved.

With P = softmax(scale q k^T), O = P v and dO the derivative by O (Dao et al. 2022, FlashAttention, Appendix B.2):

    dv = P^T dO    dS = P * (dO v^T - delta)    dq = scale dS k    dk = scale dS^T q    delta = sum of dO * O by rows

P is built anew from the scores, block by block. One kernel walks over keys and holds dq, one walks over queries and
holds dk and dv; no sum is shared between programs, so the result is the same in every run. The reference branch is the
own branch with the queries of all frames in one row: its dk and dv sum over the frames by themselves. Which branch a
program works on is decided by its place in the grid, and a branch that nothing asks for has no place in it.

dq is written over dO: so keys and values come first, and 2*H*D channels per token less are there at once. Of a row of a
head one program reads dO and writes dq, which depends on all of that row; so no warp of it is too early.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
import triton
from torch import Tensor

from . import tiles
from .triton_backward_kernels import delta_kernel, keys_kernel, queries_kernel
from .triton_forward import ALIGNMENT, LOG2_E, attend_constants, chip, launch, readable


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
    by_keys: Callable[..., None] | None = None,  # `launch_keys`, or another that does the same
    by_queries: Callable[..., None] | None = None,  # and `launch_queries`
) -> list[Tensor]:
    """Derivatives by q and q_ref side by side, [B, F, N, 2, H, D], of which the half that is not needed holds anything;
    and by k, v, k_ref, v_ref, each like its tensor. Empty [0] where nothing is needed.

    Keys and values of a branch come as a pair, from one kernel: there, one that is needed computes both.
    """
    B, F, N, H, D = q.shape
    tensors = [readable(x) for x in (q, k, v, q_ref, k_ref, v_ref)]
    own_pair, ref_pair = needed[1] or needed[2], needed[4] or needed[5]
    first_head, heads = heads_of(H, needed[0] or own_pair, needed[3] or ref_pair)
    d_both = _d_both(grad, w_out, w_ref, slice(first_head * D, (first_head + heads) * D)).view_as(both)
    given = (tensors, d_both, lse, _delta(d_both, both, lse, H, first_head, heads))

    pairs = ((own_pair, k), (own_pair, v), (ref_pair, k_ref), (ref_pair, v_ref))
    found = [q.new_empty(x.shape if computed else 0) for computed, x in pairs]
    if own_pair or ref_pair:
        (by_keys or launch_keys)(*given, found, scale, own_pair, ref_pair)
    wanted = (*needed[1:3], *needed[4:6])
    found = [x if is_wanted else x.new_empty(0) for x, is_wanted in zip(found, wanted, strict=True)]

    # Last: they take the place of d_both.
    if not (needed[0] or needed[3]):
        return [q.new_empty(0), *found]
    (by_queries or launch_queries)(*given, scale, needed[0], needed[3])
    return [d_both.view(B, F, N, 2, H, D), *found]


def _delta(d_both: Tensor, both: Tensor, lse: Tensor, H: int, first_head: int, heads: int) -> Tensor:  # like lse
    """Row sums of d_both * both, of those heads alone."""
    frames, N, _ = both.shape
    delta = torch.empty_like(lse)
    constants = delta_constants(both.shape[-1] // (2 * H))
    programs = math.ceil(N / constants["ROWS"]) * heads * frames
    launch(delta_kernel, programs, tiles.DELTA, d_both, both, delta, N, H, first_head, heads, **constants)
    return delta


def launch_queries(
    tensors: Sequence[Tensor],  # q, k, v, q_ref [B, F, N, H, D]; k_ref, v_ref [B, M, H, D]; all `readable`
    d_both: Tensor,  # [B*F, N, 2*H*D]
    lse: Tensor,  # [B*F, 2*H, N]
    delta: Tensor,  # [B*F, 2*H, N]
    scale: float,
    own: bool,  # whether dq is wanted
    ref: bool,  # whether dq_ref is
) -> None:
    """Writes dq of the branches that are wanted over their d_both. Of the other nothing is read or written."""
    (B, F, N, H, D), M = tensors[0].shape, tensors[4].shape[1]
    arithmetic = _arithmetic(tensors[0])
    tile = tiles.queries_tile(chip(tensors[0]), arithmetic, D)
    first_head, heads = heads_of(H, own, ref)
    sizes = (scale, scale * LOG2_E, F, N, M, H, first_head, heads, *_strides(tensors))
    programs = math.ceil(N / tile.queries) * heads * B * F
    constants = attend_constants(tile, arithmetic, D, even=N % tile.keys == 0 and M % tile.keys == 0)
    launch(queries_kernel, programs, tile, *tensors, d_both, lse, delta, d_both, 2 * H, *sizes, **constants)


def launch_keys(
    tensors: Sequence[Tensor],  # q, k, v, q_ref [B, F, N, H, D]; k_ref, v_ref [B, M, H, D]; all `readable`
    d_both: Tensor,  # [B*F, N, 2*H*D]
    lse: Tensor,  # [B*F, 2*H, N]
    delta: Tensor,  # [B*F, 2*H, N]
    into: Sequence[Tensor],  # dk, dv, dk_ref, dv_ref, each like its tensor and dense; empty [0] where not wanted
    scale: float,
    own: bool,  # whether dk and dv are wanted
    ref: bool,  # whether dk_ref and dv_ref are
) -> None:
    """Writes dk and dv of the branches that are wanted. Of the other, d_both, lse and delta are not read."""
    (B, F, N, H, D), M = tensors[0].shape, tensors[4].shape[1]
    arithmetic = _arithmetic(tensors[0])
    tile = tiles.keys_tile(chip(tensors[0]), arithmetic, D)
    of_reference = math.ceil(M / tile.keys) * H * B if ref else 0
    programs = of_reference + (math.ceil(N / tile.keys) * H * B * F if own else 0)
    sizes = (scale, scale * LOG2_E, F, N, M, H, of_reference, *_strides(tensors))
    constants = attend_constants(tile, arithmetic, D, even=N % tile.queries == 0)
    launch(keys_kernel, programs, tile, *tensors, d_both, lse, delta, *into, *sizes, **constants)


def _arithmetic(x: Tensor) -> str:
    return "ieee" if x.dtype == torch.float32 else "half"  # also where tf32 is allowed: see tiles


def _strides(tensors: Sequence[Tensor]) -> list[int]:
    return [s // ALIGNMENT for x in tensors for s in x.stride()[:-1]]


def heads_of(H: int, own: bool, ref: bool) -> tuple[int, int]:
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
