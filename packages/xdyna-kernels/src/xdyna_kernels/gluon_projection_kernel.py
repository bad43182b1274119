"""The Gluon kernel of the projection, for Hopper: what the Triton kernel computes, scheduled by hand.

A tile is a block of rows by a block of output channels, and one warpgroup's alone. A program's two warpgroups take its
tiles in turn: while one multiplies, the other stores its tile and fetches the next one's residual ("ping-pong", as
CUTLASS calls it), so that the tensor cores need not wait for memory. A producer warp copies inputs and weights into
shared memory (TMA), in the order of the tiles.

A barrier of `turn` for each warpgroup lets it begin when the other has seen the last of its own steps arrive. Without,
it would look at a stage two fills ahead, and the two phases of a barrier cannot tell that from none.

Biases and residual are what the products are added to: at the end of a tile, beside the sums, they would not fit into
the registers. A block of channels that is no power of two is multiplied in two parts, the first C0 and the rest.
Steps over the summed channels are counted on from tile to tile, those of the own branch first.

A `ring` is (inputs, weights0, weights1, full, free): stages of tiles, and a barrier for each that it has been filled,
or left.
"""

# A type checker sees neither Gluon's hidden arguments nor that its constexprs are values.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)


@gluon.jit
def _fill(x, w0, w1, branch, row, column, depth, ring, step, C0: gl.constexpr, C1: gl.constexpr, STAGES: gl.constexpr):
    """Copies a block of inputs and of weights into the stage of this step, once its last readers have left it."""
    x_tiles, w0_tiles, w1_tiles, full, free = ring
    stage = step % STAGES
    # Of a stage never filled, the phase before is over.
    mbarrier.wait(free.index(stage), (step // STAGES + 1) & 1)
    if C1 > 0:
        mbarrier.expect(full.index(stage), x.block_type.nbytes + w0.block_type.nbytes + w1.block_type.nbytes)
    else:
        mbarrier.expect(full.index(stage), x.block_type.nbytes + w0.block_type.nbytes)
    tma.async_copy_global_to_shared(x, [branch, row, depth], full.index(stage), x_tiles.index(stage))
    tma.async_copy_global_to_shared(w0, [column, depth], full.index(stage), w0_tiles.index(stage))
    if C1 > 0:
        tma.async_copy_global_to_shared(w1, [column + C0, depth], full.index(stage), w1_tiles.index(stage))


@gluon.jit
def _produce(
    x, w_out, w_ref, ring, blocks, steps, tiles,
    ROWS: gl.constexpr, C0: gl.constexpr, C1: gl.constexpr, DEPTH: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    first = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        row, column = tile // blocks * ROWS, tile % blocks * (C0 + C1)
        for step in range(steps):
            _fill(x, w_out[0], w_out[1], 0, row, column, step * DEPTH, ring, first + step, C0, C1, STAGES)
        first += steps
        for step in range(steps):
            _fill(x, w_ref[0], w_ref[1], 1, row, column, step * DEPTH, ring, first + step, C0, C1, STAGES)
        first += steps


@gluon.jit
def _issue(ring, step, sums0, sums1, C1: gl.constexpr, DEPTH: gl.constexpr, STAGES: gl.constexpr):
    """sums + x w^T of this step, still under way; the products before it are over."""
    stage = step % STAGES
    x = ring[0].index(stage).reshape([ring[0].shape[2], DEPTH])
    sums0 = warpgroup_mma(x, ring[1].index(stage).permute((1, 0)), sums0, is_async=True)
    if C1 > 0:
        sums1 = warpgroup_mma(x, ring[2].index(stage).permute((1, 0)), sums1, is_async=True)
        sums0, sums1 = warpgroup_mma_wait(2, deps=(sums0, sums1))
    else:
        sums0 = warpgroup_mma_wait(1, deps=(sums0,))
    return sums0, sums1


@gluon.jit
def _start(b_out, b_ref, residual, row, column, R, C, ROWS: gl.constexpr, WIDTH: gl.constexpr, layout: gl.constexpr):
    """Biases and residual, [ROWS, WIDTH] in float32: what the products are added to. At the end of a tile, beside the
    sums, they would not fit into the registers."""
    rows = gl.expand_dims(row + gl.arange(0, ROWS, gl.SliceLayout(1, layout)), 1)
    columns = gl.expand_dims(column + gl.arange(0, WIDTH, gl.SliceLayout(0, layout)), 0)
    sums = gl.zeros([ROWS, WIDTH], gl.float32, layout)
    if residual is not None:
        at = residual + rows.to(gl.int64) * C + columns
        sums += gl.load(at, mask=(rows < R) & (columns < C), other=0.0).to(gl.float32)
    if b_out is not None:
        sums += gl.load(b_out + columns, mask=columns < C, other=0.0).to(gl.float32)
    if b_ref is not None:
        sums += gl.load(b_ref + columns, mask=columns < C, other=0.0).to(gl.float32)
    return sums


@gluon.jit
def _store(out, sums, row, column, R, C, layout: gl.constexpr):
    rows = gl.expand_dims(row + gl.arange(0, sums.shape[0], gl.SliceLayout(1, layout)), 1)
    columns = gl.expand_dims(column + gl.arange(0, sums.shape[1], gl.SliceLayout(0, layout)), 0)
    at = out + rows.to(gl.int64) * C + columns
    gl.store(at, sums.to(out.dtype.element_ty), mask=(rows < R) & (columns < C))


@gluon.jit
def _consume(
    ring, turn, b_out, b_ref, residual, out, R, C, blocks, steps, tiles, GROUP: gl.constexpr,
    ROWS: gl.constexpr, C0: gl.constexpr, C1: gl.constexpr, DEPTH: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """One warpgroup: every second of the program's tiles."""
    of_sums0: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, C0, 16])
    of_sums1: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, C1 if C1 > 0 else C0, 16])
    first = GROUP * 2 * steps
    phase = 1 - GROUP  # of the own turn: the first warpgroup's first is not waited for
    for tile in range(gl.program_id(0) + GROUP * gl.num_programs(0), tiles, 2 * gl.num_programs(0)):
        row, column = tile // blocks * ROWS, tile % blocks * (C0 + C1)
        sums0 = _start(b_out, b_ref, residual, row, column, R, C, ROWS, C0, of_sums0)
        sums1 = sums0
        if C1 > 0:
            sums1 = _start(b_out, b_ref, residual, row, column + C0, R, C, ROWS, C1, of_sums1)
        mbarrier.wait(turn.index(GROUP), phase)
        phase ^= 1
        mbarrier.wait(ring[3].index(first % STAGES), (first // STAGES) & 1)
        sums0, sums1 = _issue(ring, first, sums0, sums1, C1, DEPTH, STAGES)
        for step in range(first + 1, first + 2 * steps):
            gl.assume(step > 0)  # so stages are found without regard to the sign
            mbarrier.wait(ring[3].index(step % STAGES), (step // STAGES) & 1)
            sums0, sums1 = _issue(ring, step, sums0, sums1, C1, DEPTH, STAGES)
            mbarrier.arrive(ring[4].index((step - 1) % STAGES))
        mbarrier.arrive(turn.index(1 - GROUP))
        if C1 > 0:
            sums0, sums1 = warpgroup_mma_wait(0, deps=(sums0, sums1))
        else:
            sums0 = warpgroup_mma_wait(0, deps=(sums0,))
        first += 2 * steps
        mbarrier.arrive(ring[4].index((first - 1) % STAGES))
        _store(out, sums0, row, column, R, C, of_sums0)
        if C1 > 0:
            _store(out, sums1, row, column + C0, R, C, of_sums1)
        first += 2 * steps  # those of the other warpgroup


@gluon.jit(do_not_specialize=["R", "C", "blocks", "steps", "tiles"])
def project_kernel(
    x,  # descriptor of both, [2, R, K]: own, then reference
    w0,  # descriptors of [C, K], for copies of the first C0 rows of a block and of the rest
    w1,
    wr0,
    wr1,
    b_out,  # [C] or None
    b_ref,  # [C] or None
    residual,  # [R, C] or None
    out,  # [R, C]
    R,
    C,  # in units of 8
    blocks,  # of output channels
    steps,  # over the channels of one branch
    tiles,  # of all programs
    ROWS: gl.constexpr,  # of a tile: 64 or 128
    C0: gl.constexpr,  # C0 + C1 output channels of a tile: a power of two and another one, or 0
    C1: gl.constexpr,
    DEPTH: gl.constexpr,  # channels of a step
    STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,  # of a thread of the warpgroups
    PRODUCER_REGISTERS: gl.constexpr,
):
    """both[:, :K] @ w_out^T + both[:, K:] @ w_ref^T + b_out + b_ref + residual; a program takes every n-th tile."""
    barriers: gl.constexpr = mbarrier.MBarrierLayout()
    x_tiles = gl.allocate_shared_memory(x.dtype, [STAGES, 1, ROWS, DEPTH], x.layout)
    w0_tiles = gl.allocate_shared_memory(x.dtype, [STAGES, C0, DEPTH], w0.layout)
    w1_tiles = w0_tiles
    if C1 > 0:
        w1_tiles = gl.allocate_shared_memory(x.dtype, [STAGES, C1, DEPTH], w1.layout)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    turn = gl.allocate_shared_memory(gl.int64, [2, 1], barriers)
    mbarrier.init(turn.index(0), count=1)
    mbarrier.init(turn.index(1), count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(free.index(stage), count=1)
    fence_async_shared()
    ring = (x_tiles, w0_tiles, w1_tiles, full, free)
    # The first takes the program's own warps; the others' warps and registers follow.
    gl.warp_specialize(
        [
            (_consume, (ring, turn, b_out, b_ref, residual, out, R, C * 8, blocks, steps, tiles, 0,
                        ROWS, C0, C1, DEPTH, STAGES)),
            (_consume, (ring, turn, b_out, b_ref, residual, out, R, C * 8, blocks, steps, tiles, 1,
                        ROWS, C0, C1, DEPTH, STAGES)),
            (_produce, (x, (w0, w1), (wr0, wr1), ring, blocks, steps, tiles, ROWS, C0, C1, DEPTH, STAGES)),
        ],
        [4, 1],
        [REGISTERS, PRODUCER_REGISTERS],
    )  # fmt: skip
