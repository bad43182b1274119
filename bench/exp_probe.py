"""How many exponentials a GPU makes in a second. torch.exp cannot tell: it waits for memory."""

from collections.abc import Callable
from typing import Any

import torch
import triton
import triton.language as tl

BLOCK = 1024
UNROLLED = 32


@triton.jit
def exp_kernel(x_ptr, out_ptr, rounds, BLOCK: tl.constexpr, UNROLLED: tl.constexpr):
    """x = 2^-x, again and again, in registers. It settles at 0.64, so no round can be left out or overflow."""
    offsets = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + offsets)
    for _ in range(rounds):
        for _ in tl.static_range(UNROLLED):  # pyright: ignore[reportGeneralTypeIssues]
            x = tl.exp2(-x)
    tl.store(out_ptr + offsets, x)


def probe(device: torch.device, programs: int, rounds: int) -> tuple[Callable[[], object], int]:
    """A call, and the number of exponentials that it makes."""
    x = torch.rand(programs * BLOCK, device=device)
    out = torch.empty_like(x)
    kernel: Any = exp_kernel[(programs,)]
    return lambda: kernel(x, out, rounds, BLOCK=BLOCK, UNROLLED=UNROLLED), programs * BLOCK * rounds * UNROLLED
