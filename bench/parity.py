"""Errors against float64: no contender is timed before it has passed.

Each tensor's error is max |x - truth| / max |truth|. In float32 it may be twice that of the eager backend.

In bfloat16 and float16 eager rounds its scores, which costs up to five times what a kernel's own rounding does. So
the measure is there a twin that keeps scores and softmax in float32 and rounds what SDPA and linear layers hand on
(`_rounding`). The result may have twice its error, a gradient five times: on a CPU, SDPA adds the gradients of keys
and values up in the dtype, block by block, and was up to 3.2 times as far off as the twin. With that, a scale 2 % off
and b_out a fifth off fail forward from about forty tokens on; in bfloat16, a scale 1 % off may pass. Eager itself has
no limit there, and is no contender.

No limit is below one unit in the last place of the largest element, nor below 64 units of float32: kernels that store
a log-sum-exp build weights anew from logits of about 16, which costs so much in torch's own float32 gradients; tf32,
a missing key or a wrong scale cost a hundred times more.

The truth is computed frame by frame on slices, so that it fits beside the inputs at any size: some query rows of all
frames for the result, some heads for the gradients. Heads meet only in the sum of the projection, so the gradients
of one head's tensors follow exactly from that head alone and the gradient of the result.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from shapes import NAMES
from torch import Tensor
from torch.nn.functional import linear
from xdyna_kernels import BACKENDS

_ELEMENTS = 2**26  # scores held at a time, half a gigabyte in float64
_HALF = (torch.bfloat16, torch.float16)
_ROOM, _ROOM_HALF_GRADIENTS = 2, 5  # the limit, in errors of the one that it is taken from
_FLOOR = 1 / 64  # of the terms that cancel: one unit of float32 of these is then the least limit in float32


@dataclass(frozen=True)
class Verdict:
    """Relative error of every tensor, the limit of each, and the names of those beyond it."""

    errors: dict[str, float]
    limits: dict[str, float]

    @property
    def failed(self) -> list[str]:
        return [name for name, error in self.errors.items() if not error <= self.limits[name]]  # NaN fails

    @property
    def worst(self) -> float:
        """The largest error, NaN if any is."""
        return torch.tensor(list(self.errors.values()), dtype=torch.float64).max().item()


class Truth:
    """The float64 results for one set of tensors, and the limits that follow from rounding to their own dtype."""

    def __init__(self, tensors: list[Tensor], grad: Tensor | None):
        """`grad` [B, F, N, C] is the gradient of the result; None leaves the gradients out."""
        q, k_ref = tensors[0], tensors[4]
        (B, F, N, H, _), M, dtype = q.shape, k_ref.shape[1], q.dtype
        self._rows = _spread(N, _ELEMENTS // (H * (N + M)), q.device)
        self._heads = _spread(H, max(2, _ELEMENTS // (B * F * N * (N + M))), q.device)
        self._tensors, self._grad = tensors, grad
        self._truth = self._compute(torch.float64, BACKENDS["eager"])
        self._floors = {} if grad is None else self._cancelling(grad)
        self.half = dtype in _HALF
        nearby = self._errors(self._compute(dtype, _rounding if self.half else BACKENDS["eager"]))
        least = max(torch.finfo(dtype).eps, 64 * torch.finfo(torch.float32).eps)
        room = {name: _ROOM_HALF_GRADIENTS if self.half and name != "out" else _ROOM for name in nearby}
        self.limits = {name: max(room[name] * error, least) for name, error in nearby.items()}

    def judge(self, contender: Callable[..., Tensor], poisoned: bool = False) -> Verdict:
        """Runs the contender on the whole tensors and compares what the truth covers. `poisoned`: in fresh memory that
        holds NaN, where the right result of the contender before may lie otherwise."""
        if poisoned:
            with _poison():
                return self.judge(contender)
        if self._grad is None:
            with torch.no_grad():
                results = {"out": contender(*self._tensors)[:, :, self._rows]}
        else:
            leaves = [t.detach().requires_grad_() for t in self._tensors]
            out = contender(*leaves)
            grads = torch.autograd.grad(out, leaves, self._grad)
            results = {"out": out.detach()[:, :, self._rows]}
            results |= {f"d {n}": self._some_heads(n, g) for n, g in zip(NAMES, grads, strict=True)}
        return Verdict(self._errors(results), self.limits)

    def _errors(self, results: dict[str, Tensor]) -> dict[str, float]:
        return {name: _relative(x, self._truth[name], self._floors.get(name, 0.0)) for name, x in results.items()}

    def _cancelling(self, grad: Tensor) -> dict[str, float]:
        """The least that errors of the gradients of queries and keys are held against.

        d q = P (dP - sum P dP) k / sqrt D, and where a query sees one key (N = 1) the two in the brackets are the same:
        the truth is zero, and a right result is the rounding of its terms. From twenty tokens on, truth is twice this.
        """
        found = {}
        for branch, weight in (("", "w_out"), ("_ref", "w_ref")):
            q, k, v, w = (self._input(name).double() for name in (f"q{branch}", f"k{branch}", f"v{branch}", weight))
            attended = (grad.double() @ w).unflatten(-1, q.shape[3:])  # gradient of the attention's result
            scores = attended.norm(dim=-1).max() * v.norm(dim=-1).max() / q.shape[-1] ** 0.5
            found |= {f"d q{branch}": (_FLOOR * scores * k.abs().max()).item()}
            found |= {f"d k{branch}": (_FLOOR * scores * q.abs().max()).item()}
        return found

    def _compute(self, dtype: torch.dtype, operator: Callable[..., Tensor]) -> dict[str, Tensor]:
        """The operator in `dtype`, frame by frame; sums over frames in float64, so it is at its best."""
        frames = list(self._frames())
        out = [self._forward(b, f, dtype, operator).double() for b, f in frames]
        results = {"out": torch.cat(out).unflatten(0, self._tensors[0].shape[:2])}
        if self._grad is None:
            return results
        inputs = {n: self._input(n) for n in NAMES}
        totals = {n: torch.zeros(t.shape, dtype=torch.float64, device=t.device) for n, t in inputs.items()}
        for b, f in frames:
            leaves = [_frame(n, t, b, f).to(dtype).detach().requires_grad_() for n, t in inputs.items()]
            grad = self._grad[b : b + 1, f : f + 1].to(dtype)
            for name, g in zip(NAMES, torch.autograd.grad(operator(*leaves), leaves, grad), strict=True):
                _frame(name, totals[name], b, f).add_(g)
        return results | {f"d {n}": total for n, total in totals.items()}

    def _frames(self) -> Iterator[tuple[int, int]]:
        B, F = self._tensors[0].shape[:2]
        return ((b, f) for b in range(B) for f in range(F))

    @torch.no_grad()
    def _forward(self, b: int, f: int, dtype: torch.dtype, operator: Callable[..., Tensor]) -> Tensor:  # [1, rows, C]
        frame = {n: _frame(n, t, b, f).to(dtype) for n, t in zip(NAMES, self._tensors, strict=True)}
        for name in ("q", "q_ref", "residual"):
            frame[name] = frame[name][:, :, self._rows]
        return operator(*frame.values())[0]

    def _input(self, name: str) -> Tensor:
        """What the chosen heads see of an input."""
        return self._some_heads(name, self._tensors[NAMES.index(name)])

    def _some_heads(self, name: str, tensor: Tensor) -> Tensor:
        """The slice of an input, or of its gradient, that belongs to the chosen heads."""
        if name in ("w_out", "w_ref"):  # [C, H*D]
            return tensor.unflatten(1, self._tensors[0].shape[3:])[:, self._heads].flatten(1)
        return tensor if name in ("b_out", "b_ref", "residual") else tensor[..., self._heads, :]


@contextmanager
def _poison() -> Iterator[None]:
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)  # what PyTorch fills fresh memory under
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])


def _frame(name: str, tensor: Tensor, b: int, f: int) -> Tensor:
    """What frame f of clip b sees of an input: a view."""
    if name in ("k_ref", "v_ref"):
        return tensor[b : b + 1]
    return tensor if tensor.ndim < 4 else tensor[b : b + 1, f : f + 1]


def _spread(count: int, at_most: int, device: torch.device) -> Tensor:
    """Indices [n] over `count`, first and last among them, all of them if they are not too many."""
    return torch.linspace(0, count - 1, min(count, max(2, at_most)), device=device).round().long().unique()


def _rounding(
    q: Tensor,  # [B, 1, N, H, D]: one frame
    k: Tensor,  # [B, 1, M, H, D]
    v: Tensor,  # [B, 1, M, H, D]
    q_ref: Tensor,  # [B, 1, N, H, D]
    k_ref: Tensor,  # [B, M, H, D]
    v_ref: Tensor,  # [B, M, H, D]
    w_out: Tensor,  # [C, H*D]
    b_out: Tensor,  # [C]
    w_ref: Tensor,  # [C, H*D]
    b_ref: Tensor,  # [C]
    residual: Tensor,  # [B, 1, N, C]
) -> Tensor:  # [B, 1, N, C]
    """The operator in float32, with all rounded to the inputs' dtype that SDPA and linear layers round: weights,
    attention, both projected parts and their sums; of gradients, those of the same and of the scores."""

    def rounded(x: Tensor) -> Tensor:
        return x.to(q.dtype).float()

    def attend(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # [B, 1, N, H*D]
        scores = torch.einsum("bfnhd,bfmhd->bfhnm", q.float(), k.float()) / q.shape[-1] ** 0.5
        if scores.requires_grad:
            scores.register_hook(rounded)  # kernels multiply it with keys and queries in the dtype
        return rounded(torch.einsum("bfhnm,bfmhd->bfnhd", rounded(scores.softmax(-1)), v.float())).flatten(3)

    own = rounded(linear(attend(q, k, v), w_out.float(), b_out.float()))
    ref = rounded(linear(attend(q_ref, k_ref[:, None], v_ref[:, None]), w_ref.float(), b_ref.float()))
    return (rounded(own + ref) + residual.float()).to(q.dtype)


def _relative(x: Tensor, truth: Tensor, floor: float) -> float:
    return ((x.double() - truth).abs().max() / truth.abs().max().clamp(min=floor)).item()
