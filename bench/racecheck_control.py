"""What a race checker is asked beside the Gluon kernels: a kernel whose warps share one barrier and nothing else.

compute-sanitizer's racecheck reports hazards in it: between the bytes by which Triton tells warps what to run, written
before a barrier of the whole program, and the warps that read them behind it. Without the barrier in shared memory it
reports none, with the same bytes written and read.
"""

# A type checker does not see what Gluon's decorator makes of a function.
# pyright: reportIndexIssue=false, reportCallIssue=false, reportArgumentType=false

import torch
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier

PROGRAMS, COUNT = 8, 128


@gluon.jit
def _write(out, first, COUNT: gl.constexpr):
    places = first + gl.arange(0, COUNT, gl.BlockedLayout([1], [32], [4], [0]))
    gl.store(out + places, places)


@gluon.jit
def _write_and_arrive(out, first, barrier, COUNT: gl.constexpr):
    _write(out, first, COUNT)
    mbarrier.arrive(barrier)


@gluon.jit
def _wait_and_write(out, first, barrier, COUNT: gl.constexpr):
    mbarrier.wait(barrier, 0)
    _write(out, first, COUNT)


@gluon.jit
def apart(out, COUNT: gl.constexpr):
    """Two warpgroups each write their own half of the program's numbers, one after the other."""
    first = gl.program_id(0) * 2 * COUNT
    barrier = gl.allocate_shared_memory(gl.int64, [1], mbarrier.MBarrierLayout())
    mbarrier.init(barrier, count=1)
    fence_async_shared()
    gl.warp_specialize(
        [(_write_and_arrive, (out, first, barrier, COUNT)), (_wait_and_write, (out, first + COUNT, barrier, COUNT))],
        [4],
        [64],
    )


def main() -> None:
    out = torch.zeros(PROGRAMS * 2 * COUNT, dtype=torch.int32, device="cuda")
    apart[(PROGRAMS,)](out, COUNT, num_warps=4)
    assert torch.equal(out, torch.arange(len(out), dtype=torch.int32, device="cuda"))


if __name__ == "__main__":
    main()
