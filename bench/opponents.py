"""Who runs in the attention bench: the package's backends, and the other ways to compute the same thing.

Every contender is a function of the eleven tensors of `shapes.NAMES` with the result [B, F, N, C].
"""

import importlib
from collections.abc import Callable
from types import ModuleType

import torch
import torch.nn.functional as F
import xdyna_kernels
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

Contender = Callable[..., Tensor]
Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q [B, H, N, D]; k, v [B, H, M, D] -> [B, H, N, D]

SDPA = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
RELEASED = "released"
OPPONENTS = (RELEASED, *(f"folded-{name}" for name in SDPA), *(f"folded-{name}-compiled" for name in SDPA), "flex")
CPU_OPPONENTS = (RELEASED, "folded-flash")  # compiling takes longer than the rest of a run there; --only has them


def own_backends() -> tuple[str, ...]:
    """The package's backends, whichever it has, those that this device lacks among them. Its kernels run with the
    backward of their name; the one that has no backend makes a contender of its own, "triton-recompute"."""
    contract = _contract()
    names = tuple(getattr(contract, "NAMES", contract.BACKENDS))
    return (*names, *(f"triton-{backward}" for backward in _backwards() if backward not in names))


def _contract() -> ModuleType:
    return importlib.import_module("xdyna_kernels.reference_attention")  # as an attribute, it is the function


def _backwards() -> tuple[str, ...]:
    return getattr(_contract(), "BACKWARDS", ())  # bench/ci.py runs this on older kernels, too


def runs_in(name: str, direction: str) -> bool:
    """Whether a contender has a row in this direction: a choice of backward says nothing of the forward."""
    return direction != "forward" or name not in own_backends() or "-" not in name


def kernels() -> tuple[str, ...]:
    """Those of them that are kernels of the package's own."""
    return tuple(name for name in own_backends() if name not in xdyna_kernels.BACKENDS)


def build(name: str) -> Contender:
    """The contender of that name. Compiled ones compile when first called."""
    if name in own_backends():
        backend, _, backward = name.partition("-")
        # An older "gluon" has the backward "triton" alone.
        of_own = backend.removesuffix("_all")
        backward = backward or (of_own if of_own in _backwards() else "triton")
        options = {"backward": backward} if backend in kernels() and _backwards() else {}
        return lambda *tensors: xdyna_kernels.reference_attention(*tensors, backend=backend, **options)
    if name == RELEASED:
        return released
    if name == "flex":
        return torch.compile(folded(_flex()), dynamic=False, fullgraph=True)
    _, kernel, *compiled = name.split("-")
    contender = folded(_sdpa(SDPA[kernel]))
    # fullgraph: a compiler that gives up then raises, where it would otherwise time plain PyTorch under its name.
    return torch.compile(contender, dynamic=False, fullgraph=True) if compiled else contender


def caller(contender: Contender, direction: str, tensors: list[Tensor], grad: Tensor) -> Callable[[], object]:
    """What is timed: the forward, or the forward and the gradients of all tensors."""
    if direction == "forward":
        return torch.no_grad()(lambda: contender(*tensors))
    leaves = [tensor.detach().requires_grad_() for tensor in tensors]
    return lambda: torch.autograd.grad(contender(*leaves), leaves, grad)


def released(q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual) -> Tensor:
    """The released code's way: the reference's keys and values are repeated for every frame."""
    frames = q.shape[:3]  # B, F, N
    own = F.scaled_dot_product_attention(_heads(q), _heads(k), _heads(v))
    k_ref, v_ref = (x.repeat_interleave(frames[1], dim=0).transpose(1, 2) for x in (k_ref, v_ref))  # [B*F, H, M, D]
    ref = F.scaled_dot_product_attention(_heads(q_ref), k_ref, v_ref)
    own, ref = (x.transpose(1, 2).reshape(*frames, -1) for x in (own, ref))  # [B, F, N, H*D]
    return F.linear(own, w_out, b_out) + F.linear(ref, w_ref, b_ref) + residual


def folded(attend: Attend) -> Contender:
    """The honest way: frames folded into the query axis, so that the reference is read once, over `attend`."""

    def contender(q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual) -> Tensor:
        frames = q.shape[:3]  # B, F, N
        own = attend(_heads(q), _heads(k), _heads(v))
        ref = attend(q_ref.flatten(1, 2).transpose(1, 2), k_ref.transpose(1, 2), v_ref.transpose(1, 2))
        own, ref = (x.transpose(1, 2).reshape(*frames, -1) for x in (own, ref))  # [B, F, N, H*D]
        return F.linear(own, w_out, b_out) + F.linear(ref, w_ref, b_ref) + residual

    return contender


def _heads(x: Tensor) -> Tensor:  # [B, F, N, H, D] -> [B*F, H, N, D]
    return x.flatten(0, 1).transpose(1, 2)


def _sdpa(kernel: SDPBackend) -> Attend:
    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with sdpa_kernel(kernel):
            return F.scaled_dot_product_attention(q, k, v)

    return attend


def _flex() -> Attend:
    from torch.nn.attention.flex_attention import flex_attention

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        out = flex_attention(q, k, v)
        assert isinstance(out, Tensor)
        return out

    return attend
