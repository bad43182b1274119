"""The derivatives by the Gluon kernels: as `triton_backward.launch_keys` and `launch_queries`, for Hopper, D = 40 and
80.

Compiled for sm_90 and held to their machine code, and run on CPU tensors through a stand-in for Gluon's operations. On
an H100 the operator with both has passed parity with float64, in float16 at odd numbers of tokens, too.
"""

import math
from collections.abc import Sequence

from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .gluon_forward import describe, launch, tile_constants
from .gluon_keys_kernel import keys_kernel
from .gluon_queries_kernel import queries_kernel
from .gluon_tiles import DTYPES, KEYS, QUERIES, Tile
from .triton_backward import heads_of
from .triton_forward import LOG2_E, chip

ROW_LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=2)  # of a row's numbers, likewise


def serves_keys(q: Tensor) -> bool:
    """Whether `launch_keys` can take a `q` [B, F, N, H, D] and what is beside it: the rows that the kernel copies, of
    which one has N numbers of 4 bytes, start at multiples of 16 bytes."""
    return q.dtype in DTYPES and q.shape[-1] in KEYS and q.shape[2] % 4 == 0 and chip(q) == "sm_90"


def serves_queries(q: Tensor) -> bool:
    """Whether `launch_queries` can take a `q` [B, F, N, H, D] and what is beside it."""
    return q.dtype in DTYPES and q.shape[-1] in QUERIES and chip(q) == "sm_90"


def launch_keys(
    tensors: Sequence[Tensor],  # q, k, v, q_ref [B, F, N, H, D]; k_ref, v_ref [B, M, H, D]
    d_both: Tensor,  # [B*F, N, 2*H*D]
    lse: Tensor,  # [B*F, 2*H, N]
    delta: Tensor,  # [B*F, 2*H, N]
    into: Sequence[Tensor],  # dk, dv, dk_ref, dv_ref, each like its tensor and dense; empty [0] where not wanted
    scale: float,
    own: bool,  # whether dk and dv are wanted
    ref: bool,  # whether dk_ref and dv_ref are
) -> None:
    """Writes dk and dv of the branches that are wanted. Of the other, d_both, lse and delta are not read."""
    q = tensors[0]
    (B, F, N, H, D), M = q.shape, tensors[4].shape[1]
    tile = KEYS[D]
    rows = [_describe_rows(x, tile.queries) for x in (lse * LOG2_E, delta)]
    keys_of_program = tile.warpgroups * tile.keys
    of_reference = math.ceil(M / keys_of_program) * H * B if ref else 0
    programs = of_reference + (math.ceil(N / keys_of_program) * H * B * F if own else 0)
    sizes = (scale, scale * LOG2_E, F, N, M, H, of_reference)
    described = _describe_all(tensors, d_both, tile)
    launch(keys_kernel, programs, q, *described, *rows, *into, *sizes, **tile_constants(D, tile))


def launch_queries(
    tensors: Sequence[Tensor],  # q, k, v, q_ref [B, F, N, H, D]; k_ref, v_ref [B, M, H, D]
    d_both: Tensor,  # [B*F, N, 2*H*D]
    lse: Tensor,  # [B*F, 2*H, N]
    delta: Tensor,  # [B*F, 2*H, N]
    scale: float,
    own: bool,  # whether dq is wanted
    ref: bool,  # whether dq_ref is
) -> None:
    """Writes dq of the branches that are wanted over their d_both. Of the other nothing is read or written."""
    q = tensors[0]
    (B, F, N, H, D), M = q.shape, tensors[4].shape[1]
    tile = QUERIES[D]
    first_head, heads = heads_of(H, own, ref)
    programs = math.ceil(N / (tile.warpgroups * tile.queries)) * heads * B * F
    sizes = (scale, scale * LOG2_E, F, N, M, H, first_head, heads)
    described = _describe_all(tensors, d_both, tile)
    launch(queries_kernel, programs, q, *described, lse, delta, d_both, *sizes, **tile_constants(D, tile))


def row_block(queries: int) -> list[int]:
    """What one copy brings of a [B*F*2*H, N]."""
    return [1, queries]


def _describe_all(tensors: Sequence[Tensor], d_both: Tensor, tile: Tile) -> list[TensorDescriptor]:
    """The six tensors of attention and d_both, in the order in which the kernels take them."""
    q, k, v, q_ref, k_ref, v_ref = tensors
    B, F, N, H, D = q.shape
    queries = [describe(x, tile.queries) for x in (q, q_ref, d_both.view(B, F, N, 2 * H, D))]
    keys = [describe(x, tile.keys) for x in (k, v, k_ref[:, None], v_ref[:, None])]
    return [queries[0], *keys[:2], queries[1], *keys[2:], queries[2]]


def _describe_rows(x: Tensor, queries: int) -> TensorDescriptor:
    """A number for each query, [B*F, 2*H, N]."""
    x = x.view(-1, x.shape[-1])
    return TensorDescriptor(x, list(x.shape), list(x.stride()), row_block(queries), ROW_LAYOUT)
