"""The contract of reference attention: mathematics, shapes, the operator, and the choice of backend.

For frame f of a clip whose frame 0 is the reference R (X-Dyna, Section 3.2):

    out_f = softmax(q_f k_f^T / sqrt D) v_f  Wo^T + bo  +  softmax(q'_f k_R^T / sqrt D) v_R  Wr^T + br  +  residual_f

"eager" and "sdpa" are composites of PyTorch operations: autograd, fake tensors, `torch.compile` and `torch.export` see
what is inside, so they have the derivatives of their parts, of any order. "triton" is an operator of its own. Its
backward computes the forward again as "sdpa" and takes that one's derivatives: it keeps only the inputs in memory, and
costs a second forward.
"""

import importlib.util
import logging
import os
from typing import Any

import torch
from torch import Tensor

from . import tiles
from .eager import reference_attention_eager
from .sdpa import reference_attention_sdpa

logger = logging.getLogger(__name__)

# What PyTorch alone computes, on any device. The third backend, "triton", needs a GPU (or Triton's interpreter).
BACKENDS = {"eager": reference_attention_eager, "sdpa": reference_attention_sdpa}
NAMES = (*BACKENDS, "triton")
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
_TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as Triton does: before the kernels are imported

torch.library.define(
    "xdyna::reference_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor q_ref, Tensor k_ref, Tensor v_ref, Tensor w_out, Tensor? b_out,"
    " Tensor w_ref, Tensor? b_ref, Tensor? residual, str backend) -> Tensor",
)


@torch.library.impl("xdyna::reference_attention", "CompositeImplicitAutograd")
def _reference_attention(q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual, backend):
    if backend == "triton":
        tensors = (q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual)
        return torch.ops.xdyna.reference_attention_triton(*tensors)[0]
    return BACKENDS[backend](q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual)


@torch.library.custom_op("xdyna::reference_attention_triton", mutates_args=())
def _triton(
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
) -> tuple[Tensor, Tensor]:
    """The result [B, F, N, C]; log of the sum of exp of the scores [B*F, 2*H, N], own heads, then reference heads."""
    from .triton_forward import attend, project  # imports triton, which a CPU may not have

    both, lse = attend(q, k, v, q_ref, k_ref, v_ref, scale=q.shape[-1] ** -0.5)
    out = project(both, w_out, b_out, w_ref, b_ref, residual)
    return out.view(*q.shape[:3], w_out.shape[0]), lse


@_triton.register_fake
def _(q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual):
    B, F, N, H, _ = q.shape
    return q.new_empty(B, F, N, w_out.shape[0]), q.new_empty(B * F, 2 * H, N, dtype=torch.float32)


def _keep_inputs(ctx, inputs, output):
    ctx.save_for_backward(*inputs)
    ctx.mark_non_differentiable(output[1])


def _recompute(ctx, grad, _):
    """Derivatives of the "sdpa" backend at the saved inputs."""
    with torch.enable_grad():
        # Aliases are nodes of their own: k_ref may be a view of k, whose derivative must not count that path twice.
        inputs: list[Any] = [None if x is None else x.view_as(x) for x in ctx.saved_tensors]
        out = reference_attention_sdpa(*inputs)
    wanted = [x for x, needed in zip(inputs, ctx.needs_input_grad, strict=True) if needed]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=torch.is_grad_enabled()))
    return tuple(next(found) if needed else None for needed in ctx.needs_input_grad)


_triton.register_autograd(_recompute, setup_context=_keep_inputs)


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
        backend: "eager" (the mathematics line by line), "sdpa" (frames folded into the query axis), "triton" (two
            kernels; float16, bfloat16 or float32, D a multiple of 8 up to 256, an Ampere, Hopper or Blackwell data
            centre GPU; tensors whose strides are no multiples of 8 are copied first), or None: "triton" where it can
            run and has been proven on the chip (`tiles.PROVEN`, empty so far), else "sdpa".

    Returns:
        [B, F, N, C] in the inputs' dtype.

    Raises:
        ValueError: a shape, dtype, device or backend does not fit; the message names the argument.
    """
    if backend not in (*NAMES, None):
        raise ValueError(f"backend is {backend!r}, expected one of {sorted(NAMES)} or None")
    _check(q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual)
    if backend in ("triton", None):
        backend = _choose(backend, q)
    return torch.ops.xdyna.reference_attention(
        q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual, backend
    )


def _choose(backend: str | None, q: Tensor) -> str:
    """ "triton" if it can run on tensors like `q`; else "sdpa", or ValueError if "triton" was asked for."""
    interpreted = backend == "triton" and q.device.type == "cpu" and _TRITON_INTERPRETED
    reason = _why_not_triton(q, interpreted)
    if (
        reason is None
        and backend is None
        and tiles.CHIPS[torch.cuda.get_device_capability(q.device)] not in tiles.PROVEN
    ):
        reason = "has not been proven on this chip; it can be asked for by name"
    if reason is None:
        return "triton"
    if backend == "triton":
        raise ValueError(f"backend 'triton' {reason}")
    if not torch.compiler.is_compiling() and reason not in _said:
        _said.add(reason)
        logger.debug("reference attention takes 'sdpa': 'triton' %s", reason)
    return "sdpa"


_said: set[str] = set()


def _why_not_triton(q: Tensor, interpreted: bool) -> str | None:
    D = q.shape[-1]
    if not _TRITON_INSTALLED:
        return "needs the package triton, which is not installed"
    if q.dtype not in tiles.DTYPES:
        return f"needs float16, bfloat16 or float32, q is {q.dtype}"
    if D % 8 or D > tiles.MAX_HEAD_DIM:
        return f"needs heads of a multiple of 8 channels up to {tiles.MAX_HEAD_DIM}, q is {list(q.shape)}"
    if interpreted:
        return None
    if q.device.type != "cuda" or torch.version.hip:
        return f"needs an NVIDIA GPU, q is on {q.device}"
    capability = torch.cuda.get_device_capability(q.device)
    return None if capability in tiles.CHIPS else f"has no tiles for compute capability {capability}"


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
