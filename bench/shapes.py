"""Shapes of the attention bench: the levels of the model, their inputs, and the least work that each asks for."""

from dataclasses import asdict, dataclass

import torch
from torch import Tensor

NAMES = ("q", "k", "v", "q_ref", "k_ref", "v_ref", "w_out", "b_out", "w_ref", "b_ref", "residual")
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
DIRECTIONS = ("forward", "forward+backward")


@dataclass(frozen=True)
class Shape:
    """B clips of F frames (the reference first) of N tokens, H heads of D channels; M = N, C = H*D."""

    B: int
    F: int
    N: int
    H: int
    D: int

    @property
    def C(self) -> int:
        return self.H * self.D

    def __str__(self) -> str:
        return f"N={self.N} D={self.D} ({self.B}x{self.F} frames, {self.H} heads)"

    def as_dict(self) -> dict[str, int]:
        return asdict(self)


MODEL = (2, 17, 8)  # B, F and H of its denoiser: two clips under guidance, 16 frames and the reference
# Tokens and head channels of the four levels, and how many layers of the denoiser have each.
LEVELS = {(7168, 40): 5, (1792, 80): 5, (448, 160): 5, (112, 160): 1}  # 896x512
SMALL_LEVELS = ((256, 40), (64, 80), (16, 160))  # what a CPU times in half a minute
MIDDLE_LEVELS = ((576, 40), (144, 80), (36, 160))  # in a minute; the baselines of CPUs have these


@dataclass(frozen=True)
class Work:
    """The least that a shape asks for, whatever the way: operations, bytes moved and exponentials."""

    flops: float
    bytes: float
    exps: float


def work(shape: Shape, direction: str, itemsize: int) -> Work:
    """Exact counts. A score costs 2D for q k^T and 2D for its share of p v. The gradient is counted as published
    attention benchmarks do: five such products where the forward has two, the scores computed anew, not stored."""
    queries = shape.B * shape.F * shape.N
    scores = queries * shape.H * 2 * shape.N  # of both branches
    attention = 4 * shape.D * scores
    projections = 2 * 2 * queries * shape.C * shape.C
    clip = queries * shape.C * itemsize
    shared = (2 * shape.B * shape.N * shape.C + 2 * shape.C * (shape.C + 1)) * itemsize
    inputs = 5 * clip + shared  # q, k, v, q_ref and the residual; the reference's keys and values; the weights
    if direction == "forward":
        return Work(attention + projections, inputs + clip, scores)
    # The gradient reads the inputs (but the residual) and the result's gradient, and writes one for every input.
    return Work(3.5 * attention + 3 * projections, 3 * inputs + clip, 2 * scores)


def draw(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> tuple[list[Tensor], Tensor]:
    """The eleven tensors in the order of `NAMES`, and the gradient of the result, [B, F, N, C].

    The queries are wide (logits of deviation 3), so that a query looks at few keys, as trained attention does. Flat
    attention over thousands of keys averages to nothing beside the residual, and its errors could not be seen.
    """
    generator = torch.Generator(device).manual_seed(seed)
    B, F, N, H, D, C = shape.B, shape.F, shape.N, shape.H, shape.D, shape.C

    def normal(*size: int, scale: float = 1.0) -> Tensor:
        return (torch.randn(size, generator=generator, device=device) * scale).to(dtype)

    q, k, v, q_ref = (normal(B, F, N, H, D, scale=scale) for scale in (3, 1, 1, 3))
    k_ref, v_ref = normal(B, N, H, D), normal(B, N, H, D)
    w_out, w_ref = normal(C, C, scale=C**-0.5), normal(C, C, scale=C**-0.5)
    b_out, b_ref, residual = normal(C, scale=0.1), normal(C, scale=0.1), normal(B, F, N, C, scale=0.5)
    tensors = [q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual]
    return tensors, normal(B, F, N, C)
