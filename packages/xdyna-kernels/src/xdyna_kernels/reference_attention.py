"""The contract of reference attention: mathematics, shapes, the operator, and the choice of backend.

For frame f of a clip whose frame 0 is the reference R (X-Dyna, Section 3.2):

    out_f = softmax(q_f k_f^T / sqrt D) v_f  Wo^T + bo  +  softmax(q'_f k_R^T / sqrt D) v_R  Wr^T + br  +  residual_f

"eager" and "sdpa" are composites of PyTorch operations: autograd, fake tensors, `torch.compile` and `torch.export` see
what is inside, so they have the derivatives of their parts: "eager" of any order, "sdpa" second ones only where
PyTorch's attention has them (`sdpa_kernel(SDPBackend.MATH)`). "triton" and "gluon" are an operator of
their own, with a choice of backward (see triton_operator.py). They have no forward-mode derivatives, and none by
`torch.func`; gradients in a batch (`is_grads_batched`) only with the backward "recompute". Each of these raises.
"""

import importlib.util
import logging
import os

import torch
from torch import Tensor
from torch._functorch.pyfunctorch import JvpInterpreter, retrieve_all_functorch_interpreters
from torch.autograd import forward_ad

from . import gluon_tiles, tiles, triton_operator
from .eager import reference_attention_eager
from .sdpa import reference_attention_sdpa

logger = logging.getLogger(__name__)

# What PyTorch alone computes, on any device. The others need a GPU (or, "triton", Triton's interpreter).
BACKENDS = {"eager": reference_attention_eager, "sdpa": reference_attention_sdpa}
NAMES = (*BACKENDS, "triton", "gluon", "gluon_all")
TENSORS = ("q", "k", "v", "q_ref", "k_ref", "v_ref", "w_out", "b_out", "w_ref", "b_ref", "residual")
OPTIONAL = ("b_out", "b_ref", "residual")
DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
BACKWARDS = ("triton", "gluon", "recompute")  # of the backends that are kernels
_TRITON_INSTALLED = importlib.util.find_spec("triton") is not None
_TRITON_INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"  # as Triton does: before the kernels are imported

torch.library.define(
    "xdyna::reference_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor q_ref, Tensor k_ref, Tensor v_ref, Tensor w_out, Tensor? b_out,"
    " Tensor w_ref, Tensor? b_ref, Tensor? residual, str backend, str backward) -> Tensor",
)


@torch.library.impl("xdyna::reference_attention", "CompositeImplicitAutograd")
def _reference_attention(q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual, backend, backward):
    tensors = (q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual)
    _check(*tensors)
    if backend not in NAMES or backward not in BACKWARDS:
        raise ValueError(f"backend is {backend!r}, expected one of {NAMES}; backward is {backward!r}, of {BACKWARDS}")
    return _compute(*tensors, backend, backward)


def _compute(q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual, backend, backward) -> Tensor:
    """By a backend that can, of tensors that fit."""
    tensors = (q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual)
    if backend in BACKENDS:
        return BACKENDS[backend](*tensors)
    # An operator without a rule for them would drop them in silence.
    if _within_jvp() or any(x is not None and forward_ad.unpack_dual(x).tangent is not None for x in tensors):
        raise ValueError(f"backend {backend!r} has no forward-mode derivatives; backend='eager' has")
    attention_and_weights = (*tensors[:7], w_ref)
    if not (torch.is_grad_enabled() and any(x.requires_grad for x in attention_and_weights)):
        backward = "recompute"  # which writes nothing for later: derivatives by biases and residual need nothing
    return triton_operator.forward(*tensors, backward, backend)[0]


def _within_jvp() -> bool:
    """Whether any of the transforms of `torch.func` around this call is a forward-mode derivative: the tensors show
    only what the innermost does."""
    return any(isinstance(transform, JvpInterpreter) for transform in retrieve_all_functorch_interpreters())


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
    backward: str | None = None,
) -> Tensor:
    """Self-attention of every frame plus its attention to one shared reference, both projected and summed.

    Args:
        q, k, v, q_ref: [B, F, N, H, D], dense. All tensors share a device and a dtype, one of DTYPES.
        k_ref, v_ref: [B, M, H, D], usually a view of frame 0 of `k` and `v`; never expanded over the frames.
        w_out, w_ref: [C, H*D] output projections, laid out as `nn.Linear.weight`.
        b_out, b_ref: [C] or None.
        residual: [B, F, N, C] or None, added to the result.
        backend: "eager" (the mathematics line by line), "sdpa" (frames folded into the query axis), "triton" (two
            kernels; float16, bfloat16 or float32, D a multiple of 8 up to 256, an Ampere, Hopper or Blackwell data
            centre GPU; tensors whose strides are no multiples of 8 are copied first), "gluon" (the same, with its
            attention scheduled by hand for Hopper; float16 or bfloat16, D of 40, 80 or 160), "gluon_all" (its
            projection, too, C a multiple of 8: compiled, but not yet run on a GPU), or None: what was the fastest of
            these when timed (`tiles.PROVEN`). On Hopper in bfloat16 that is "gluon" at 448 tokens and more, and
            "triton" below at D of 160; elsewhere "sdpa".
        backward: of the kernels, "eager" and "sdpa" have their own. "triton" (three kernels; deterministic; no work
            for what needs no derivative; keeps 2*H*D channels per token beside the inputs, which it keeps whichever
            derivatives are asked for; float32 without tf32),
            "gluon" (the same on Hopper, but with kernels scheduled by hand where they can serve: float16 or bfloat16, D
            of 40 or 80, and for keys and values N a multiple of 4), "recompute" (keeps only the inputs, and computes
            "sdpa" once more), or None: that of the backend's name where it has been proven on the chip and in the dtype
            and PyTorch would not use tf32, else "recompute". Second derivatives are those of "sdpa" whichever it is,
            where that has any. Of the first two, derivatives by q and q_ref are views of one tensor.

    Returns:
        [B, F, N, C] in the inputs' dtype; under autocast, in what that makes of a backend's products.

    Raises:
        ValueError: a shape, dtype, device, backend or backward does not fit; the message names the argument. (Under
            `torch.compile(fullgraph=True)` PyTorch wraps it in an error of its own.)
    """
    if backend not in (*NAMES, None):
        raise ValueError(f"backend is {backend!r}, expected one of {sorted(NAMES)} or None")
    if backward not in (*BACKWARDS, None):
        raise ValueError(f"backward is {backward!r}, expected one of {sorted(BACKWARDS)} or None")
    _check(q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual)
    if backend is None:
        backend = _fastest(q)
    elif backend == "triton" and (reason := _why_not_triton(q, q.device.type == "cpu" and _TRITON_INTERPRETED)):
        raise ValueError(f"backend 'triton' {reason}")
    elif backend in ("gluon", "gluon_all") and (reason := _why_not_gluon(q)) is not None:
        raise ValueError(f"backend {backend!r} {reason}")
    elif backend == "gluon_all" and w_out.shape[0] % 8:
        raise ValueError(f"backend 'gluon_all' needs a multiple of 8 output channels, w_out is {list(w_out.shape)}")
    if backward == "gluon" and (reason := _why_not_hopper(q)) is not None:
        raise ValueError(f"backward 'gluon' {reason}")
    if backward is None:
        proven = backend not in BACKENDS and _proven(q) and tiles.arithmetic(q.dtype) != "tf32"
        backward = backend.removesuffix("_all") if proven else "recompute"
    # The operator is for programs; called by it, all that is not the work itself takes the host twice as long.
    compute = torch.ops.xdyna.reference_attention if torch.compiler.is_compiling() else _compute
    return compute(q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual, backend, backward)


def _fastest(q: Tensor) -> str:
    """What was the fastest, when timed, on tensors like `q`, of the backends that can run on them."""
    reason = _why_not_triton(q, interpreted=False)
    if reason is None:
        if _proven(q) and q.shape[2] >= tiles.GLUON_TOKENS and _why_not_gluon(q) is None:
            return "gluon"
        if _proven(q) and q.shape[-1] in tiles.PROVEN[_chip_and_dtype(q)]:
            return "triton"
        reason = "has not been proven faster on this GPU, in this dtype and head dimension; it can be asked for by name"
    if not torch.compiler.is_compiling() and reason not in _said:
        _said.add(reason)
        logger.debug("reference attention takes 'sdpa': 'triton' %s", reason)
    return "sdpa"


_said: set[str] = set()


def _proven(q: Tensor) -> bool:
    """Whether the kernels have passed parity on the chip that `q` lies on, in its dtype; never in the interpreter."""
    return q.is_cuda and _chip_and_dtype(q) in tiles.PROVEN


def _chip_and_dtype(q: Tensor) -> tuple[str, torch.dtype]:
    return tiles.CHIPS[torch.cuda.get_device_capability(q.device)], q.dtype


def _why_not_triton(q: Tensor, interpreted: bool) -> str | None:
    D = q.shape[-1]
    if not _TRITON_INSTALLED:
        return "needs the package triton, which is not installed"
    if q.dtype not in tiles.DTYPES:
        return f"needs float16, bfloat16 or float32, q is {q.dtype}"
    if D % 8 or D > tiles.MAX_HEAD_DIM:
        return f"needs heads of a multiple of 8 channels up to {tiles.MAX_HEAD_DIM}, q has {D}"
    if interpreted:
        return None
    if q.device.type != "cuda" or torch.version.hip:
        return f"needs an NVIDIA GPU, q is on {q.device}"
    if not torch.cuda.is_available():  # q is one of `torch.export`'s or `FakeTensorMode`'s, of a GPU elsewhere
        return "needs an NVIDIA GPU, and finds none to read the compute capability of"
    capability = torch.cuda.get_device_capability(q.device)
    return None if capability in tiles.CHIPS else f"has no tiles for compute capability {capability}"


def _why_not_gluon(q: Tensor) -> str | None:
    if q.dtype not in gluon_tiles.DTYPES:
        return f"needs float16 or bfloat16, q is {q.dtype}"
    if q.shape[-1] not in gluon_tiles.TILES:
        return f"needs heads of 40, 80 or 160 channels, q has {q.shape[-1]}"
    return _why_not_hopper(q)


def _why_not_hopper(q: Tensor) -> str | None:
    if (reason := _why_not_triton(q, interpreted=False)) is not None:
        return reason
    capability = torch.cuda.get_device_capability(q.device)
    return None if capability == (9, 0) else f"needs compute capability (9, 0), {q.device} has {capability}"


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
    """Raises ValueError for tensors that do not fit each other. Called once by the function, before anything is chosen
    by them, and once by the operator, which programs may call by themselves."""
    given = (q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual)
    for name, x in zip(TENSORS, given, strict=True):
        if x is None and name in OPTIONAL:
            continue
        if not isinstance(x, Tensor):
            raise ValueError(f"{name} is {'None' if x is None else type(x).__name__}, expected a tensor")
        if x.is_nested or x.layout != torch.strided:
            raise ValueError(f"{name} is {'nested' if x.is_nested else x.layout}, expected a dense tensor")
    if q.ndim != 5 or q.dtype not in DTYPES or 0 in q.shape:
        raise ValueError(f"q is {list(q.shape)} {q.dtype}, expected a non-empty floating [B, F, N, H, D]")
    if k_ref.ndim != 4 or 0 in k_ref.shape:
        raise ValueError(f"k_ref is {list(k_ref.shape)}, expected a non-empty [B, M, H, D]")
    if w_out.ndim != 2 or 0 in w_out.shape:
        raise ValueError(f"w_out is {list(w_out.shape)}, expected a non-empty [C, H*D]")
    B, F, N, H, D = q.shape
    M, C = k_ref.shape[1], w_out.shape[0]
    queries, keys, weight = (B, F, N, H, D), (B, M, H, D), (C, H * D)
    shapes = (queries, queries, queries, queries, keys, keys, weight, (C,), weight, (C,), (B, F, N, C))
    dtype, device = q.dtype, q.device
    for name, x, shape in zip(TENSORS, given, shapes, strict=True):
        if x is None:
            continue
        if x.shape != shape:
            raise ValueError(f"{name} is {list(x.shape)}, expected {list(shape)} beside q {list(q.shape)}")
        if x.dtype != dtype or x.device != device:
            raise ValueError(f"{name} is {x.dtype} on {x.device}, q is {dtype} on {device}")
