"""The contract of reference attention: mathematics, shapes, the operator, and the choice of backend.

For frame f of a clip whose frame 0 is the reference R (X-Dyna, Section 3.2):

    out_f = softmax(q_f k_f^T / sqrt D) v_f  Wo^T + bo  +  softmax(q'_f k_R^T / sqrt D) v_R  Wr^T + br  +  residual_f

The backends are composite operators: autograd, fake tensors, `torch.compile` and `torch.export` see the PyTorch
operations inside, so each has the derivatives of its parts, of any order.
"""

import torch
from torch import Tensor

from .eager import reference_attention_eager
from .sdpa import reference_attention_sdpa

BACKENDS = {"eager": reference_attention_eager, "sdpa": reference_attention_sdpa}

torch.library.define(
    "xdyna::reference_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor q_ref, Tensor k_ref, Tensor v_ref, Tensor w_out, Tensor? b_out,"
    " Tensor w_ref, Tensor? b_ref, Tensor? residual, str backend) -> Tensor",
)


@torch.library.impl("xdyna::reference_attention", "CompositeImplicitAutograd")
def _reference_attention(q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual, backend):
    return BACKENDS[backend](q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual)


def reference_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_ref: Tensor,
    k_ref: Tensor,
    v_ref: Tensor,
    w_out: Tensor,
    b_out: Tensor | None,
    w_ref: Tensor,
    b_ref: Tensor | None,
    residual: Tensor | None = None,
    *,
    backend: str | None = None,
) -> Tensor:
    """Self-attention of every frame plus its attention to one shared reference, both projected and summed.

    Args:
        q, k, v, q_ref: [B, F, N, H, D], one floating dtype and device for all tensors.
        k_ref, v_ref: [B, M, H, D], usually a view of frame 0 of `k` and `v`; never expanded over the frames.
        w_out, w_ref: [C, H*D] output projections, laid out as `nn.Linear.weight`.
        b_out, b_ref: [C] or None.
        residual: [B, F, N, C] or None, added to the result.
        backend: "eager" (the mathematics line by line), "sdpa" (frames folded into the query axis), or None for
            the best one for device and dtype.

    Returns:
        [B, F, N, C] in the inputs' dtype.

    Raises:
        ValueError: a shape, dtype, device or backend does not fit; the message names the argument.
    """
    backend = "sdpa" if backend is None else backend
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, expected one of {sorted(BACKENDS)} or None")
    _check(q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual)
    return torch.ops.xdyna.reference_attention(
        q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual, backend
    )


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_ref: Tensor,
    k_ref: Tensor,
    v_ref: Tensor,
    w_out: Tensor,
    b_out: Tensor | None,
    w_ref: Tensor,
    b_ref: Tensor | None,
    residual: Tensor | None,
) -> None:
    if q.ndim != 5 or not q.is_floating_point() or 0 in q.shape:
        raise ValueError(f"q is {list(q.shape)} {q.dtype}, expected a non-empty floating [B, F, N, H, D]")
    if k_ref.ndim != 4 or 0 in k_ref.shape:
        raise ValueError(f"k_ref is {list(k_ref.shape)}, expected a non-empty [B, M, H, D]")
    if w_out.ndim != 2 or 0 in w_out.shape:
        raise ValueError(f"w_out is {list(w_out.shape)}, expected a non-empty [C, H*D]")
    B, F, N, H, D = q.shape
    M, C = k_ref.shape[1], w_out.shape[0]
    for name, tensor, shape in (
        ("k", k, (B, F, N, H, D)),
        ("v", v, (B, F, N, H, D)),
        ("q_ref", q_ref, (B, F, N, H, D)),
        ("k_ref", k_ref, (B, M, H, D)),
        ("v_ref", v_ref, (B, M, H, D)),
        ("w_out", w_out, (C, H * D)),
        ("b_out", b_out, (C,)),
        ("w_ref", w_ref, (C, H * D)),
        ("b_ref", b_ref, (C,)),
        ("residual", residual, (B, F, N, C)),
    ):
        if tensor is None:
            continue
        if tuple(tensor.shape) != shape:
            raise ValueError(f"{name} is {list(tensor.shape)}, expected {list(shape)} beside q {list(q.shape)}")
        if tensor.dtype != q.dtype or tensor.device != q.device:
            raise ValueError(f"{name} is {tensor.dtype} on {tensor.device}, q is {q.dtype} on {q.device}")
