"""Errors against float64: no contender is timed before it has passed.

Each tensor's error is max |x - truth| / max |truth|, and may be twice that of the eager backend in the same dtype
(or one unit in the last place of the largest element where eager happens to be luckier than that, and never less
than 64 units of float32: kernels that store a log-sum-exp build weights anew from logits of about 16, which costs so
much in torch's own float32 gradients; tf32, a missing key or a wrong scale cost a hundred times more).

The truth is computed frame by frame on slices, so that it fits beside the inputs at any size: some query rows of all
frames for the result, some heads for the gradients. Heads meet only in the sum of the projection, so the gradients
of one head's tensors follow exactly from that head alone and the gradient of the result.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from shapes import NAMES
from torch import Tensor
from xdyna_kernels import BACKENDS

_ELEMENTS = 2**26  # scores held at a time, half a gigabyte in float64


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
    """The float64 results for one set of tensors, and how far eager in their own dtype is from them."""

    def __init__(self, tensors: list[Tensor], grad: Tensor | None):
        """`grad` [B, F, N, C] is the gradient of the result; None leaves the gradients out."""
        q, k_ref = tensors[0], tensors[4]
        (B, F, N, H, _), M, dtype = q.shape, k_ref.shape[1], q.dtype
        self._rows = _spread(N, _ELEMENTS // (H * (N + M)), q.device)
        self._heads = _spread(H, max(2, _ELEMENTS // (B * F * N * (N + M))), q.device)
        self._tensors, self._grad = tensors, grad
        self._truth = self._compute(torch.float64)
        eager = self._compute(dtype)
        least = max(torch.finfo(dtype).eps, 64 * torch.finfo(torch.float32).eps)
        self.limits = {name: max(2 * error, least) for name, error in self._errors(eager).items()}

    def judge(self, contender: Callable[..., Tensor]) -> Verdict:
        """Runs the contender on the whole tensors and compares what the truth covers."""
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
        return {name: _relative(x, self._truth[name]) for name, x in results.items()}

    def _compute(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """Eager in `dtype`, frame by frame; sums over frames in float64, so eager is at its best."""
        frames = list(self._frames())
        out = [self._forward(b, f, dtype).double() for b, f in frames]
        results = {"out": torch.cat(out).unflatten(0, self._tensors[0].shape[:2])}
        if self._grad is None:
            return results
        inputs = {n: self._some_heads(n, t) for n, t in zip(NAMES, self._tensors, strict=True)}
        totals = {n: torch.zeros(t.shape, dtype=torch.float64, device=t.device) for n, t in inputs.items()}
        for b, f in frames:
            leaves = [_frame(n, t, b, f).to(dtype).detach().requires_grad_() for n, t in inputs.items()]
            grad = self._grad[b : b + 1, f : f + 1].to(dtype)
            for name, g in zip(NAMES, torch.autograd.grad(BACKENDS["eager"](*leaves), leaves, grad), strict=True):
                _frame(name, totals[name], b, f).add_(g)
        return results | {f"d {n}": total for n, total in totals.items()}

    def _frames(self) -> Iterator[tuple[int, int]]:
        B, F = self._tensors[0].shape[:2]
        return ((b, f) for b in range(B) for f in range(F))

    @torch.no_grad()
    def _forward(self, b: int, f: int, dtype: torch.dtype) -> Tensor:  # [1, rows, C]
        frame = {n: _frame(n, t, b, f).to(dtype) for n, t in zip(NAMES, self._tensors, strict=True)}
        for name in ("q", "q_ref", "residual"):
            frame[name] = frame[name][:, :, self._rows]
        return BACKENDS["eager"](*frame.values())[0]

    def _some_heads(self, name: str, tensor: Tensor) -> Tensor:
        """The slice of an input, or of its gradient, that belongs to the chosen heads."""
        if name in ("w_out", "w_ref"):  # [C, H*D]
            return tensor.unflatten(1, self._tensors[0].shape[3:])[:, self._heads].flatten(1)
        return tensor if name in ("b_out", "b_ref", "residual") else tensor[..., self._heads, :]


def _frame(name: str, tensor: Tensor, b: int, f: int) -> Tensor:
    """What frame f of clip b sees of an input: a view."""
    if name in ("k_ref", "v_ref"):
        return tensor[b : b + 1]
    return tensor if tensor.ndim < 4 else tensor[b : b + 1, f : f + 1]


def _spread(count: int, at_most: int, device: torch.device) -> Tensor:
    """Indices [n] over `count`, first and last among them, all of them if they are not too many."""
    return torch.linspace(0, count - 1, min(count, max(2, at_most)), device=device).round().long().unique()


def _relative(x: Tensor, truth: Tensor) -> float:
    return ((x.double() - truth).abs().max() / truth.abs().max()).item()
