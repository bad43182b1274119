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
    variant: str = "triton",  # or "gluon": whose attention; or "gluon_all": and projection
) -> tuple[Tensor, Tensor, Tensor]:
    """The result [B, F, N, C]; and for the backward, both [0] under "recompute": own and reference attention side by
    side [B*F, N, 2*H*D]; log of the sum of exp of the scores [B*F, 2*H, N], own heads, then reference heads."""
    from .triton_forward import attend  # imports triton, which a CPU may not have
    from .triton_projection import project

    if variant != "triton":
        from .gluon_forward import attend
    if variant == "gluon_all":
        from .gluon_projection import project
    kept = backward != "recompute"
    both, lse = attend(q, k, v, q_ref, k_ref, v_ref, q.shape[-1] ** -0.5, keep_lse=kept)
    out = project(both, w_out, b_out, w_ref, b_ref, residual)
    # Not a view, which of an operator's several results autograd lets nobody change in place.
    return out.resize_(*q.shape[:3], w_out.shape[0]), both if kept else both.new_empty(0), lse


@forward.register_fake
def _(q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual, backward, variant="triton"):
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
    variant: str = "triton",  # or "gluon": whose derivatives, where it serves such tensors
) -> list[Tensor]:
    """Derivatives by q and q_ref side by side, and by k, v, k_ref, v_ref, as `triton_backward.attend_backward` makes
    them. Side by side, since an operator's results may not share memory."""
    from .triton_backward import attend_backward, launch_keys, launch_queries

    if variant == "gluon":
        from . import gluon_backward

        if gluon_backward.serves_keys(q):
            launch_keys = gluon_backward.launch_keys
        if gluon_backward.serves_queries(q):
            launch_queries = gluon_backward.launch_queries
    attention, scale = (q, k, v, q_ref, k_ref, v_ref), q.shape[-1] ** -0.5
    return attend_backward(grad, *attention, w_out, w_ref, both, lse, scale, needed, launch_keys, launch_queries)


@attention_backward.register_fake
def _(grad, q, k, v, q_ref, k_ref, v_ref, w_out, w_ref, both, lse, needed, variant="triton"):
    B, F, N, H, D = q.shape
    of_queries = q.new_empty((B, F, N, 2, H, D) if needed[0] or needed[3] else 0)
    wanted = zip((k, v, k_ref, v_ref), (*needed[1:3], *needed[4:6]), strict=True)
    return [of_queries, *(q.new_empty(x.shape if is_wanted else 0) for x, is_wanted in wanted)]


# Of the operator's tensors, those that a derivative reads: attention's six and both weights. Of the rest, biases and
# residual, nothing is kept: who gave them may change them, or let their memory go.
_READ = (0, 1, 2, 3, 4, 5, 6, 8)
_B_OUT, _B_REF, _RESIDUAL = 7, 9, 10


def _keep(ctx, inputs, output):
    *tensors, ctx.backward, _ = inputs
    _, both, lse = output
    if any(ctx.needs_input_grad[i] for i in _READ):
        read = [tensors[i] for i in _READ]
        ctx.save_for_backward(*read, *(() if ctx.backward == "recompute" else (both, lse)))
    ctx.mark_non_differentiable(both, lse)
    ctx.set_materialize_grads(False)  # of zeros for them, as large as they are


def _differentiate(ctx, grad, *_):
    saved = ctx.saved_tensors  # asked for once: under gradient checkpointing, twice is an error
    read, kept = saved[: len(_READ)], saved[len(_READ) :]  # nothing, where nothing needs them
    needed = [ctx.needs_input_grad[i] for i in _READ]
    found: list[Tensor | None] = [None] * 13  # of all that the operator is given, its two words last
    if grad is None:  # nothing that is differentiated depends on the result
        return tuple(found)
    # Autocast, where this is called in it, is not that of the forward: no other derivative follows it.
    with torch.autocast(grad.device.type, enabled=False):
        # First: on a GPU this sum takes memory by the hundred MiB, when nothing else is there yet.
        if biases := [i for i in (_B_OUT, _B_REF) if ctx.needs_input_grad[i]]:
            sums = grad.sum((0, 1, 2))  # [C]
            for i in biases:  # each in memory of its own: a caller may change one in place
                found[i] = sums.clone()
        # With gradients of gradients asked for, PyTorch enables them here.
        if any(needed) and (ctx.backward == "recompute" or torch.is_grad_enabled()):
            of_read = _recompute(read, needed, grad)
        elif any(needed):
            of_read = _from_log_sum_exp(ctx.backward, read, needed, grad, *kept)
        else:
            of_read = [None] * len(_READ)
        for i, derivative in zip(_READ, of_read, strict=True):
            found[i] = derivative
        found[_RESIDUAL] = grad if ctx.needs_input_grad[_RESIDUAL] else None
    return tuple(found)


forward.register_autograd(_differentiate, setup_context=_keep)


def _recompute(read, needed, grad) -> list[Tensor | None]:
    """Derivatives of the "sdpa" backend by the saved inputs."""
    with torch.enable_grad():
        # Aliases are nodes of their own: k_ref may be a view of k, whose derivative must not count that path twice.
        inputs = [x.view_as(x) for x in read]
        without_the_rest: list[Any] = [*inputs[:7], None, inputs[7], None, None]
        out = reference_attention_sdpa(*without_the_rest)
    wanted = [x for x, is_needed in zip(inputs, needed, strict=True) if is_needed]
    found = iter(torch.autograd.grad(out, wanted, grad, create_graph=torch.is_grad_enabled()))
    return [next(found) if is_needed else None for is_needed in needed]


def _from_log_sum_exp(variant, read, needed, grad, both, lse) -> list[Tensor | None]:
    """Derivatives from what the forward kept; those of the weights are plain matrix products."""
    *attention, w_out, w_ref = read
    found: list[Tensor | None] = [None] * len(read)
    if any(needed[:6]):
        of_queries, dk, dv, dkr, dvr = attention_backward(
            grad, *attention, w_out, w_ref, both, lse, needed[:6], variant
        )
        dq, dqr = of_queries.unbind(3) if needed[0] or needed[3] else (None, None)
        of_attention = zip((dq, dk, dv, dqr, dkr, dvr), needed[:6], strict=True)
        found[:6] = [x if is_needed else None for x, is_needed in of_attention]
    rows = grad.flatten(0, 2)  # [B*F*N, C]
    for weight, half in zip((6, 7), both.flatten(0, 1).chunk(2, dim=1), strict=True):  # w_out, w_ref
        found[weight] = rows.mT @ half if needed[weight] else None  # [C, H*D]
    return found
