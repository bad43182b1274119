"""The Gluon kernel of attention over both branches, for Hopper: what the Triton kernel computes, scheduled by hand.

A tile is a block of queries of one head in one branch for each of a program's two or three warpgroups. A producer warp
copies keys and values, which they share, into shared memory (TMA). Each runs as FlashAttention-3 does within a
warpgroup (Shah et al. 2024, Section 3.2): the next scores are issued before the last values are waited for, so that the
tensor cores work under the softmax. Unlike it, a head of 40, 80 or 160 channels is not padded: 32 + 16, 64 + 16 or
128 + 32 are copied and multiplied.

A program takes every n-th tile, where n is how many programs there are: as many as tiles, or fewer ("persistent"). Then
the producer copies the next tile's queries and first keys while the warpgroups finish the last one and store it. Steps
over the keys are counted on from tile to tile.

Channels lie in shared memory in two parts, the first D0 and the rest: together they would be padded to a power of two.
A `ring` is (tiles0, tiles1, full, free): stages of such, and a barrier for each that it has been filled, or left.
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
def _place(tile, N, H, ROWS: gl.constexpr):
    """First row, head of both and frame of all. Tiles of one head run together: they share keys."""
    blocks = (N + ROWS - 1) // ROWS
    return tile % blocks * ROWS, tile // blocks % (2 * H), tile // blocks // (2 * H)


@gluon.jit
def _wait_free(ring, step, STAGES: gl.constexpr):
    """Waits until the last readers of the stage of this step have left it, those of `step - STAGES`."""
    # Of a stage never filled, the phase before is over.
    mbarrier.wait(ring[3].index(step % STAGES), (step // STAGES + 1) & 1)


@gluon.jit
def _wait_full(ring, step, STAGES: gl.constexpr, pred=True):
    mbarrier.wait(ring[2].index(step % STAGES), (step // STAGES) & 1, pred=pred)


@gluon.jit
def _copy(source, b, f, h, row, full, tile0, tile1):
    """Copies a block of rows of `source`, the first channels into one tile and the rest into another."""
    tma.async_copy_global_to_shared(source[0], [b, f, h, row, 0], full, tile0)
    tma.async_copy_global_to_shared(source[1], [b, f, h, row, source[0].block_shape[4]], full, tile1)


@gluon.jit
def _fill(source, b, f, h, row, ring, step, STAGES: gl.constexpr):
    """Copies a block of rows of `source` into the stage of this step."""
    tiles0, tiles1, full, _ = ring
    stage = step % STAGES
    _wait_free(ring, step, STAGES)
    mbarrier.expect(full.index(stage), source[0].block_type.nbytes + source[1].block_type.nbytes)
    _copy(source, b, f, h, row, full.index(stage), tiles0.index(stage), tiles1.index(stage))


@gluon.jit
def _produce_tile(
    source, f_keys, q_tiles, q_full, k_ring, v_ring, b, f, h, first_row, first, end,
    WARPGROUPS: gl.constexpr, QUERIES: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    q, k, v = source
    _fill(k, b, f_keys, h, (end - 1 - first) * KEYS, k_ring, first, STAGES)
    # Who has left the last keys of the tile before is also done with its queries.
    _wait_free(k_ring, first - 1 + STAGES, STAGES)
    mbarrier.expect(q_full, WARPGROUPS * (q[0].block_type.nbytes + q[1].block_type.nbytes))
    for group in gl.static_range(WARPGROUPS):
        row = first_row + group * QUERIES
        _copy(q, b, f, h, row, q_full, q_tiles[0].index(group), q_tiles[1].index(group))
    _fill(v, b, f_keys, h, (end - 1 - first) * KEYS, v_ring, first, STAGES)
    for step in range(first + 1, end):
        _fill(k, b, f_keys, h, (end - 1 - step) * KEYS, k_ring, step, STAGES)
        _fill(v, b, f_keys, h, (end - 1 - step) * KEYS, v_ring, step, STAGES)


@gluon.jit
def _produce(
    own, ref, q_tiles, q_full, k_ring, v_ring, F, N, M, H, tiles,
    WARPGROUPS: gl.constexpr, QUERIES: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    first = 0
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        first_row, head, frame = _place(tile, N, H, WARPGROUPS * QUERIES)
        if head < H:
            end = first + (N + KEYS - 1) // KEYS
            _produce_tile(
                own, frame % F, q_tiles, q_full, k_ring, v_ring, frame // F, frame % F, head, first_row, first, end,
                WARPGROUPS, QUERIES, KEYS, STAGES,
            )  # fmt: skip
        else:
            end = first + (M + KEYS - 1) // KEYS
            _produce_tile(
                ref, 0, q_tiles, q_full, k_ring, v_ring, frame // F, frame % F, head - H, first_row, first, end,
                WARPGROUPS, QUERIES, KEYS, STAGES,
            )  # fmt: skip
        first = end


@gluon.jit
def _issue_scores(q, k_ring, step, zeros, D0: gl.constexpr, D1: gl.constexpr, STAGES: gl.constexpr):
    """q k^T of this step's keys, not waited for."""
    k0 = k_ring[0].index(step % STAGES).reshape([zeros.shape[1], D0]).permute((1, 0))
    k1 = k_ring[1].index(step % STAGES).reshape([zeros.shape[1], D1]).permute((1, 0))
    scores = warpgroup_mma(q[0], k0, zeros, use_acc=False, is_async=True)
    return warpgroup_mma(q[1], k1, scores, is_async=True)


@gluon.jit
def _issue_values(weights, v_ring, step, out0, out1, layout1: gl.constexpr, STAGES: gl.constexpr):
    """out + weights v of this step's values, not waited for."""
    v0 = v_ring[0].index(step % STAGES).reshape([weights.shape[1], out0.shape[1]])
    v1 = v_ring[1].index(step % STAGES).reshape([weights.shape[1], out1.shape[1]])
    out0 = warpgroup_mma(weights, v0, out0, is_async=True)
    weights = gl.convert_layout(weights, gl.DotOperandLayout(0, layout1, 2))
    out1 = warpgroup_mma(weights, v1, out1, is_async=True)
    return out0, out1


@gluon.jit
def _softmax(scores, top, total, scale):
    """The weights of a block of keys; running maximum and sum with it; what older sums shrink by."""
    new_top = gl.maximum(top, gl.max(scores, 1) * scale)
    weights = gl.exp2(scores * scale - gl.expand_dims(new_top, 1))
    shrink = gl.exp2(top - new_top)
    return weights, new_top, total * shrink + gl.sum(weights, 1), shrink


@gluon.jit
def _times_rows(values, factors, layout: gl.constexpr):
    return values * gl.expand_dims(gl.convert_layout(factors, gl.SliceLayout(1, layout)), 1)


@gluon.jit
def _store(base, values, first_row, n_rows, row, first_column, n_columns, layout: gl.constexpr):
    rows = gl.expand_dims(first_row + gl.arange(0, values.shape[0], gl.SliceLayout(1, layout)), 1)
    columns = gl.expand_dims(first_column + gl.arange(0, values.shape[1], gl.SliceLayout(0, layout)), 0)
    at = base + rows.to(gl.int64) * row + columns
    gl.store(at, values.to(base.dtype.element_ty), mask=(rows < n_rows) & (columns < n_columns))


@gluon.jit
def _consume_tile(
    q, q_full, phase, k_ring, v_ring, both, lse, scale, first_row, N, lse_rows, n_keys, both_row, first, end,
    D: gl.constexpr, D0: gl.constexpr, D1: gl.constexpr,
    QUERIES: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """One warpgroup: its queries over all keys, the program's steps from `first` to `end`."""
    of_scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    of_out0: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D0, 16])
    of_out1: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D1, 16])
    of_weights: gl.constexpr = gl.DotOperandLayout(0, of_out0, 2)
    of_rows: gl.constexpr = gl.SliceLayout(1, of_scores)
    zeros = gl.zeros([QUERIES, KEYS], gl.float32, of_scores)
    out0 = gl.zeros([QUERIES, D0], gl.float32, of_out0)
    out1 = gl.zeros([QUERIES, D1], gl.float32, of_out1)
    top = gl.full([QUERIES], float("-inf"), gl.float32, of_rows)
    total = gl.zeros([QUERIES], gl.float32, of_rows)

    mbarrier.wait(q_full, phase)
    _wait_full(k_ring, first, STAGES)
    scores = warpgroup_mma_wait(0, deps=(_issue_scores(q, k_ring, first, zeros, D0, D1, STAGES),))
    mbarrier.arrive(k_ring[3].index(first % STAGES))
    # Blocks of keys come last first: the one that may be short is masked here, outside the loop.
    keys = (end - 1 - first) * KEYS + gl.arange(0, KEYS, gl.SliceLayout(0, of_scores))
    scores = gl.where(gl.expand_dims(keys < n_keys, 0), scores, float("-inf"))
    weights, top, total, _ = _softmax(scores, top, total, scale)
    weights = gl.convert_layout(weights.to(q[0].dtype), of_weights)
    _wait_full(k_ring, first + 1, STAGES, first + 1 < end)

    for step in range(first + 1, end):
        gl.assume(step > 0)  # so stages are found without regard to the sign
        last = step - 1
        issued = _issue_scores(q, k_ring, step, zeros, D0, D1, STAGES)
        _wait_full(v_ring, last, STAGES)
        sums0, sums1 = _issue_values(weights, v_ring, last, out0, out1, of_out1, STAGES)
        scores = warpgroup_mma_wait(2, deps=(issued,))
        mbarrier.arrive(k_ring[3].index(step % STAGES))
        new_weights, top, total, shrink = _softmax(scores, top, total, scale)
        # Here and not at the loop's head: past this loop of its own, ptxas cannot move the wait below before the exps.
        _wait_full(k_ring, step + 1, STAGES, step + 1 < end)
        out0, out1 = warpgroup_mma_wait(0, deps=(sums0, sums1))
        mbarrier.arrive(v_ring[3].index(last % STAGES))
        weights = gl.convert_layout(new_weights.to(q[0].dtype), of_weights)
        out0 = _times_rows(out0, shrink, of_out0)
        out1 = _times_rows(out1, shrink, of_out1)

    _wait_full(v_ring, end - 1, STAGES)
    sums0, sums1 = _issue_values(weights, v_ring, end - 1, out0, out1, of_out1, STAGES)
    out0, out1 = warpgroup_mma_wait(0, deps=(sums0, sums1))
    mbarrier.arrive(v_ring[3].index((end - 1) % STAGES))
    _store(both, _times_rows(out0, 1 / total, of_out0), first_row, N, both_row, 0, D, of_out0)
    _store(both, _times_rows(out1, 1 / total, of_out1), first_row, N, both_row, D0, D, of_out1)
    rows = first_row + gl.arange(0, QUERIES, of_rows)
    gl.store(lse + rows, (top + gl.log2(total)) * 0.6931471805599453, mask=rows < lse_rows)


@gluon.jit
def _consume(
    q, q_full, k_ring, v_ring, both, lse, scale, N, M, H, lse_rows, tiles, GROUP: gl.constexpr,
    D: gl.constexpr, D0: gl.constexpr, D1: gl.constexpr, WARPGROUPS: gl.constexpr,
    QUERIES: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """One warpgroup: its queries of each of the program's tiles."""
    both_row = 2 * H * D
    first = 0
    phase = 0  # of the barrier of the queries
    for tile in range(gl.program_id(0), tiles, gl.num_programs(0)):
        first_row, head, frame = _place(tile, N, H, WARPGROUPS * QUERIES)
        n_keys = gl.where(head < H, N, M)
        end = first + (n_keys + KEYS - 1) // KEYS
        both_of_head = both + (gl.cast(frame, gl.int64) * N * both_row + head * D)
        lse_of_head = lse + (gl.cast(frame, gl.int64) * 2 * H + head) * N
        _consume_tile(
            q, q_full, phase, k_ring, v_ring, both_of_head, lse_of_head, scale, first_row + GROUP * QUERIES,
            N, lse_rows, n_keys, both_row, first, end, D, D0, D1, QUERIES, KEYS, STAGES,
        )  # fmt: skip
        first = end
        phase ^= 1


@gluon.jit(do_not_specialize=["F", "N", "M", "H", "lse_rows", "tiles"])
def attend_kernel(
    q0,  # descriptors of [B, F, H, N, D], of the first D0 channels and of the rest
    q1,
    k0,
    k1,
    v0,
    v1,
    qr0,
    qr1,
    kr0,  # [B, 1, H, M, D]
    kr1,
    vr0,
    vr1,
    both,  # [B*F, N, 2*H*D]
    lse,  # [B*F, 2*H, N], or anything if none of it is kept
    scale,  # of the scores, times log2 e
    F,
    N,
    M,
    H,
    lse_rows,  # N, or 0: none is kept
    tiles,  # of all programs
    D: gl.constexpr,
    D0: gl.constexpr,  # D0 + D1 >= D, powers of two
    D1: gl.constexpr,
    WARPGROUPS: gl.constexpr,  # 2 or 3
    QUERIES: gl.constexpr,  # of a warpgroup
    KEYS: gl.constexpr,
    STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,  # of a thread of the warpgroups
    PRODUCER_REGISTERS: gl.constexpr,
):
    """A tile is a block of queries for each warpgroup, of one head of one frame, in one branch: own or reference."""
    barriers: gl.constexpr = mbarrier.MBarrierLayout()
    # Beside three tiles a fourth lies idle: so it was timed.
    Q_TILES: gl.constexpr = 2 if WARPGROUPS == 2 else 4
    q_tiles0 = gl.allocate_shared_memory(q0.dtype, [Q_TILES, 1, 1, 1, QUERIES, D0], q0.layout)
    q_tiles1 = gl.allocate_shared_memory(q0.dtype, [Q_TILES, 1, 1, 1, QUERIES, D1], q1.layout)
    k_tiles0 = gl.allocate_shared_memory(q0.dtype, [STAGES, 1, 1, 1, KEYS, D0], k0.layout)
    k_tiles1 = gl.allocate_shared_memory(q0.dtype, [STAGES, 1, 1, 1, KEYS, D1], k1.layout)
    v_tiles0 = gl.allocate_shared_memory(q0.dtype, [STAGES, 1, 1, 1, KEYS, D0], k0.layout)
    v_tiles1 = gl.allocate_shared_memory(q0.dtype, [STAGES, 1, 1, 1, KEYS, D1], k1.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [1], barriers)
    k_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    k_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    v_full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    v_free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    mbarrier.init(q_full, count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(k_full.index(stage), count=1)
        mbarrier.init(v_full.index(stage), count=1)
        mbarrier.init(k_free.index(stage), count=WARPGROUPS)
        mbarrier.init(v_free.index(stage), count=WARPGROUPS)
    fence_async_shared()
    k_ring = (k_tiles0, k_tiles1, k_full, k_free)
    v_ring = (v_tiles0, v_tiles1, v_full, v_free)

    q_tiles = (q_tiles0, q_tiles1)
    first_q = (q_tiles0.index(0).reshape([QUERIES, D0]), q_tiles1.index(0).reshape([QUERIES, D1]))
    second_q = (q_tiles0.index(1).reshape([QUERIES, D0]), q_tiles1.index(1).reshape([QUERIES, D1]))
    own = ((q0, q1), (k0, k1), (v0, v1))
    ref = ((qr0, qr1), (kr0, kr1), (vr0, vr1))
    # The first takes the program's own warps; the others' warps and registers follow.
    if WARPGROUPS == 2:
        gl.warp_specialize(
            [
                (_consume, (first_q, q_full, k_ring, v_ring, both, lse, scale, N, M, H, lse_rows, tiles, 0,
                            D, D0, D1, WARPGROUPS, QUERIES, KEYS, STAGES)),
                (_consume, (second_q, q_full, k_ring, v_ring, both, lse, scale, N, M, H, lse_rows, tiles, 1,
                            D, D0, D1, WARPGROUPS, QUERIES, KEYS, STAGES)),
                (_produce, (own, ref, q_tiles, q_full, k_ring, v_ring, F, N, M, H, tiles,
                            WARPGROUPS, QUERIES, KEYS, STAGES)),
            ],
            [4, 1],
            [REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        third_q = (q_tiles0.index(2).reshape([QUERIES, D0]), q_tiles1.index(2).reshape([QUERIES, D1]))
        gl.warp_specialize(
            [
                (_consume, (first_q, q_full, k_ring, v_ring, both, lse, scale, N, M, H, lse_rows, tiles, 0,
                            D, D0, D1, WARPGROUPS, QUERIES, KEYS, STAGES)),
                (_consume, (second_q, q_full, k_ring, v_ring, both, lse, scale, N, M, H, lse_rows, tiles, 1,
                            D, D0, D1, WARPGROUPS, QUERIES, KEYS, STAGES)),
                (_consume, (third_q, q_full, k_ring, v_ring, both, lse, scale, N, M, H, lse_rows, tiles, 2,
                            D, D0, D1, WARPGROUPS, QUERIES, KEYS, STAGES)),
                (_produce, (own, ref, q_tiles, q_full, k_ring, v_ring, F, N, M, H, tiles,
                            WARPGROUPS, QUERIES, KEYS, STAGES)),
            ],
            [4, 4, 1],
            [REGISTERS, REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
