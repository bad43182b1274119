"""The Triton kernels as operators of PyTorch: fake tensors, autograd and `torch.compile` see them through these.

The backward is chosen with the forward, since it decides what is kept for it:

- "triton" keeps what attention computed, `both` [B*F, N, 2*H*D], and the log of the sum of exp of its scores.
- "gluon" keeps the same and is the same, but that Gluon kernels compute the derivatives by queries, and by keys and
  values, where they can.
- "recompute" keeps the inputs alone, and costs a second forward: it computes the "sdpa" backend and takes that one's
  derivatives. So do second derivatives, whichever was chosen: only PyTorch's own operations have them.

So where nothing needs a derivative, "recompute" is what costs nothing: no log is written, and nothing is returned for
later.
"""

from typing import Any

import torch
from torch import Tensor

from .sdpa import reference_attention_sdpa


@torch.library.custom_op("xdyna::reference_attention_triton", mutates_args=())
def forward(
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
    backward: str,  # one of BACKWARDS
    kernel: str = "triton",  # or "gluon": whose attention; or "gluon_all": and projection
) -> tuple[Tensor, Tensor, Tensor]:
    """The result [B, F, N, C]; and for the backward, both [0] under "recompute": own and reference attention side by
    side [B*F, N, 2*H*D]; log of the sum of exp of the scores [B*F, 2*H, N], own heads, then reference heads."""
    from .triton_forward import attend  # imports triton, which a CPU may not have
    from .triton_projection import project

    if kernel != "triton":
        from .gluon_forward import attend
    if kernel == "gluon_all":
        from .gluon_projection import project
    kept = backward != "recompute"
    both, lse = attend(q, k, v, q_ref, k_ref, v_ref, q.shape[-1] ** -0.5, keep_lse=kept)
    out = project(both, w_out, b_out, w_ref, b_ref, residual)
    return out.view(*q.shape[:3], w_out.shape[0]), both if kept else both.new_empty(0), lse


@forward.register_fake
def _(q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual, backward, kernel="triton"):
    B, F, N, H, D = q.shape
    kept = backward != "recompute"
    both = q.new_empty((B * F, N, 2 * H * D) if kept else 0)
    lse = q.new_empty((B * F, 2 * H, N) if kept else 0, dtype=torch.float32)
    return q.new_empty(B, F, N, w_out.shape[0]), both, lse


@torch.library.custom_op("xdyna::reference_attention_triton_backward", mutates_args=())
def attention_backward(
    grad: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    q_ref: Tensor,
    k_ref: Tensor,
    v_ref: Tensor,
    w_out: Tensor,
    w_ref: Tensor,
    both: Tensor,
    lse: Tensor,
    needed: list[bool],
    kernel: str = "triton",  # or "gluon": whose derivatives, where it serves such tensors
) -> list[Tensor]:
    """Derivatives by the six tensors of attention; an empty tensor for each that is not needed."""
    from .triton_backward import attend_backward, launch_keys, launch_queries

    if kernel == "gluon":
        from . import gluon_backward

        if gluon_backward.serves_keys(q):
            launch_keys = gluon_backward.launch_keys
        if gluon_backward.serves_queries(q):
            launch_queries = gluon_backward.launch_queries
    attention, scale = (q, k, v, q_ref, k_ref, v_ref), q.shape[-1] ** -0.5
    return attend_backward(grad, *attention, w_out, w_ref, both, lse, scale, needed, launch_keys, launch_queries)


@attention_backward.register_fake
def _(grad, q, k, v, q_ref, k_ref, v_ref, w_out, w_ref, both, lse, needed, kernel="triton"):
    tensors = (q, k, v, q_ref, k_ref, v_ref)
    return [q.new_empty(x.shape if wanted else 0) for x, wanted in zip(tensors, needed, strict=True)]


def _keep(ctx, inputs, output):
    *tensors, ctx.backward, _ = inputs
    _, both, lse = output
    ctx.save_for_backward(*tensors, *(() if ctx.backward == "recompute" else (both, lse)))
    ctx.mark_non_differentiable(both, lse)


def _differentiate(ctx, grad, *_):
    saved = ctx.saved_tensors  # asked for once: under gradient checkpointing, twice is an error
    inputs, rest = saved[:11], saved[11:]
    needed = ctx.needs_input_grad[:11]
    # Autocast, where this is called in it, is not that of the forward: no other derivative follows it.
    with torch.autocast(grad.device.type, enabled=False):
        # With gradients of gradients asked for, PyTorch enables them here.
        if ctx.backward == "recompute" or torch.is_grad_enabled():
            return *_recompute(inputs, needed, grad), None, None
        return *_from_log_sum_exp(ctx.backward, inputs, needed, grad, *rest), None, None


forward.register_autograd(_differentiate, setup_context=_keep)


def _recompute(saved, needed, grad) -> list[Tensor | None]:
    """Derivatives of the "sdpa" backend at the saved inputs."""
    with torch.enable_grad():
        # Aliases are nodes of their own: k_ref may be a view of k, whose derivative must not count that path twice.
        inputs: list[Any] = [None if x is None else x.view_as(x) for x in saved]
        out = reference_attention_sdpa(*inputs)
    wanted = [x for x, is_needed in zip(inputs, needed, strict=True) if is_needed]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=torch.is_grad_enabled()))
    return [next(found) if is_needed else None for is_needed in needed]


def _from_log_sum_exp(kernel, inputs, needed, grad, both, lse) -> list[Tensor | None]:
    """Derivatives from what the forward kept; those of the projection are plain matrix products and sums."""
    w_out, w_ref = inputs[6], inputs[8]
    found: list[Tensor | None] = [None] * len(inputs)
    if any(needed[:6]):
        of_attention = attention_backward(grad, *inputs[:6], w_out, w_ref, both, lse, needed[:6], kernel)
        found[:6] = [x if wanted else None for x, wanted in zip(of_attention, needed[:6], strict=True)]
    rows = grad.flatten(0, 2)  # [B*F*N, C]
    for weight, half in zip((6, 8), both.flatten(0, 1).chunk(2, dim=1), strict=True):  # w_out, w_ref
        found[weight] = rows.mT @ half if needed[weight] else None  # [C, H*D]
    sums = rows.sum(0) if needed[7] or needed[9] else None  # [C]
    found[7] = sums if needed[7] else None  # b_out
    if sums is not None and needed[9]:  # b_ref, in memory of its own: a caller may change one in place
        found[9] = sums.clone() if needed[7] else sums
    found[10] = grad if needed[10] else None  # residual
    return found
