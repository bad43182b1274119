"""What a race checker is asked beside the Gluon kernel: a warp-specialised kernel whose warps share nothing.

Hazards that it reports here, too, are of how Triton hands out work to warps, or of how the checker sees that.
"""

# A type checker does not see what Gluon's decorator makes of a function.
# pyright: reportIndexIssue=false, reportCallIssue=false

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl

PROGRAMS, COUNT = 8, 128


@gluon.jit
def _write(out, first, COUNT: gl.constexpr):
    places = first + gl.arange(0, COUNT, gl.BlockedLayout([1], [32], [4], [0]))
    gl.store(out + places, places)


@gluon.jit
def apart(out, COUNT: gl.constexpr):
    """Two warpgroups each write their own half of the program's numbers."""
    first = gl.program_id(0) * 2 * COUNT
    gl.warp_specialize([(_write, (out, first, COUNT)), (_write, (out, first + COUNT, COUNT))], [4], [64])


def main() -> None:
    out = torch.zeros(PROGRAMS * 2 * COUNT, dtype=torch.int32, device="cuda")
    apart[(PROGRAMS,)](out, COUNT, num_warps=4)
    assert torch.equal(out, torch.arange(len(out), dtype=torch.int32, device="cuda"))


if __name__ == "__main__":
    main()
