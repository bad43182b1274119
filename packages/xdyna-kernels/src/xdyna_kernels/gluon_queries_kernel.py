"""The Gluon kernel of the derivatives by queries, for Hopper: what the Triton one computes, scheduled by hand.

A program takes a block of queries of one head in one branch for each of its warpgroups, and a producer warp copies keys
and values, which they share, into a ring (TMA). Each warpgroup issues the next scores and derivatives of the weights
before the last keys' sums are waited for: the tensor cores work under the exponentials.

Blocks of keys come last first. The one that may be short is masked, outside the loop. The zeros that a copy brings past
the last key would not do: exp(0 - lse) may be infinite, and infinity times a key of zeros is not zero.
"""

# A type checker sees neither Gluon's hidden arguments nor that its constexprs are values.
# pyright: reportArgumentType=false, reportAssignmentType=false, reportCallIssue=false, reportGeneralTypeIssues=false
# pyright: reportOperatorIssue=false

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma_wait

from .gluon_kernel import _store
from .gluon_keys_kernel import _issue_scores, _issue_sums


@gluon.jit
def _produce(
    q, k, v, d_both, f_keys, q_tiles, d_tiles, rows_full, ring, b, f, h, head_of_both, first_row, n_keys,
    WARPGROUPS: gl.constexpr, QUERIES: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    mbarrier.expect(rows_full, 2 * WARPGROUPS * q.block_type.nbytes)
    for group in gl.static_range(WARPGROUPS):
        row = first_row + group * QUERIES
        tma.async_copy_global_to_shared(q, [b, f, h, row, 0], rows_full, q_tiles.index(group))
        tma.async_copy_global_to_shared(d_both, [b, f, head_of_both, row, 0], rows_full, d_tiles.index(group))
    k_tiles, v_tiles, full, free = ring
    steps = (n_keys + KEYS - 1) // KEYS
    for step in range(steps):
        filled = full.index(step % STAGES)
        key = (steps - 1 - step) * KEYS
        mbarrier.wait(free.index(step % STAGES), (step // STAGES + 1) & 1)  # at first, the phase before is over
        mbarrier.expect(filled, 2 * k.block_type.nbytes)
        tma.async_copy_global_to_shared(k, [b, f_keys, h, key, 0], filled, k_tiles.index(step % (STAGES + 1)))
        tma.async_copy_global_to_shared(v, [b, f_keys, h, key, 0], filled, v_tiles.index(step % STAGES))


@gluon.jit
def _produce_own_or_reference(
    own, q, k, v, qr, kr, vr, d_both, q_tiles, d_tiles, rows_full, ring, b, f, h, head_of_both, first_row, n_keys,
    WARPGROUPS: gl.constexpr, QUERIES: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    if own:
        _produce(
            q, k, v, d_both, f, q_tiles, d_tiles, rows_full, ring, b, f, h, head_of_both, first_row, n_keys,
            WARPGROUPS, QUERIES, KEYS, STAGES,
        )  # fmt: skip
    else:
        _produce(
            qr, kr, vr, d_both, 0, q_tiles, d_tiles, rows_full, ring, b, f, h, head_of_both, first_row, n_keys,
            WARPGROUPS, QUERIES, KEYS, STAGES,
        )  # fmt: skip


@gluon.jit
def _wait_full(ring, step, STAGES: gl.constexpr, pred=True):
    mbarrier.wait(ring[2].index(step % STAGES), (step // STAGES) & 1, pred=pred)


@gluon.jit
def _issue_step(q, d, ring, step, zeros, D0: gl.constexpr, D1: gl.constexpr, STAGES: gl.constexpr):
    """Scores of this step's keys and the derivatives of their weights, neither waited for."""
    k = ring[0].index(step % (STAGES + 1)).reshape([zeros.shape[1], q.shape[1]])
    v = ring[1].index(step % STAGES).reshape([zeros.shape[1], q.shape[1]])
    return _issue_scores(q, k, zeros, D0, D1), _issue_scores(d, v, zeros, D0, D1)


@gluon.jit
def _issue_last(
    d_scores, ring, step, dq0, dq1,
    layout0: gl.constexpr, layout1: gl.constexpr, WIDTH: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """dq + d_scores k of this step's keys, not waited for."""
    k = ring[0].index(step % (STAGES + 1)).reshape([d_scores.shape[1], WIDTH])
    return _issue_sums(d_scores, k, dq0, dq1, layout0, layout1)


@gluon.jit
def _consume(
    q, d, rows_full, ring, dq, lse, delta, scale, score_scale, first_row, N, n_keys, row,
    D: gl.constexpr, D0: gl.constexpr, D1: gl.constexpr,
    QUERIES: gl.constexpr, KEYS: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """One warpgroup: its queries over all keys."""
    of_scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    of_sums0: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D0, 16])
    of_sums1: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D1, 16])
    of_rows: gl.constexpr = gl.SliceLayout(1, of_scores)
    WIDTH: gl.constexpr = q.shape[1]
    zeros = gl.zeros([QUERIES, KEYS], gl.float32, of_scores)
    dq0 = gl.zeros([QUERIES, D0], gl.float32, of_sums0)
    dq1 = gl.zeros([QUERIES, D1], gl.float32, of_sums1)
    rows = first_row + gl.arange(0, QUERIES, of_rows)
    row_lse = gl.expand_dims(gl.load(lse + rows, mask=rows < N, other=0.0) * 1.4426950408889634, 1)
    row_delta = gl.expand_dims(gl.load(delta + rows, mask=rows < N, other=0.0), 1)
    steps = (n_keys + KEYS - 1) // KEYS

    mbarrier.wait(rows_full, 0)
    _wait_full(ring, 0, STAGES)
    issued, d_issued = _issue_step(q, d, ring, 0, zeros, D0, D1, STAGES)
    scores, d_weights = warpgroup_mma_wait(0, deps=(issued, d_issued))
    mbarrier.arrive(ring[3].index(0))  # of these values; of the keys before the first, there are none
    keys = (steps - 1) * KEYS + gl.arange(0, KEYS, gl.SliceLayout(0, of_scores))
    scores = gl.where(gl.expand_dims(keys < n_keys, 0), scores, float("-inf"))
    d_scores = (gl.exp2(scores * score_scale - row_lse) * (d_weights - row_delta)).to(q.dtype)
    _wait_full(ring, 1, STAGES, steps > 1)

    for step in range(1, steps):
        issued, d_issued = _issue_step(q, d, ring, step, zeros, D0, D1, STAGES)
        sums0, sums1 = _issue_last(d_scores, ring, step - 1, dq0, dq1, of_sums0, of_sums1, WIDTH, STAGES)
        scores = warpgroup_mma_wait(4, deps=(issued,))
        weights = gl.exp2(scores * score_scale - row_lse)
        # Here and not at the loop's head: past this loop of its own, ptxas cannot move the wait below before the exps.
        _wait_full(ring, step + 1, STAGES, step + 1 < steps)
        d_weights, dq0, dq1 = warpgroup_mma_wait(0, deps=(d_issued, sums0, sums1))
        mbarrier.arrive(ring[3].index(step % STAGES))  # of this step's values and the last one's keys
        d_scores = (weights * (d_weights - row_delta)).to(q.dtype)

    sums0, sums1 = _issue_last(d_scores, ring, steps - 1, dq0, dq1, of_sums0, of_sums1, WIDTH, STAGES)
    dq0, dq1 = warpgroup_mma_wait(0, deps=(sums0, sums1))
    _store(dq, dq0 * scale, first_row, N, row, 0, D, of_sums0)
    _store(dq, dq1 * scale, first_row, N, row, D0, D, of_sums1)


@gluon.jit(do_not_specialize=["F", "N", "M", "H", "first_head", "heads"])
def queries_kernel(
    q,  # descriptors of [B, F, H, N, D]
    k,
    v,
    qr,
    kr,  # [B, 1, H, M, D]
    vr,
    d_both,  # [B, F, 2*H, N, D]
    lse,  # [B*F, 2*H, N]
    delta,  # [B*F, 2*H, N]
    dq,  # [B*F, N, 2*H*D], the memory of d_both: a program writes where it alone has read
    scale,
    score_scale,  # times log2 e, rounded as the forward's: weights are made from its log of the sum
    F,
    N,
    M,
    H,
    first_head,
    heads,
    D: gl.constexpr,
    D0: gl.constexpr,  # D0 + D1 >= D, powers of two
    D1: gl.constexpr,
    WARPGROUPS: gl.constexpr,  # 2 or 3
    QUERIES: gl.constexpr,  # of a warpgroup
    KEYS: gl.constexpr,
    STAGES: gl.constexpr,  # from 2 on
    REGISTERS: gl.constexpr,  # of a thread of the warpgroups
    PRODUCER_REGISTERS: gl.constexpr,
):
    """dq of a block of queries for each warpgroup, of one head of one frame, in one branch. The heads are `heads` from
    `first_head` on, of the 2*H of both branches."""
    blocks = (N + WARPGROUPS * QUERIES - 1) // (WARPGROUPS * QUERIES)
    first_row = gl.program_id(0) % blocks * (WARPGROUPS * QUERIES)
    head_of_both = first_head + gl.program_id(0) // blocks % heads
    frame_of_all = gl.program_id(0) // blocks // heads
    b, f, h = frame_of_all // F, frame_of_all % F, head_of_both % H
    own = head_of_both < H
    n_keys = gl.where(own, N, M)
    row = 2 * H * D
    dq += frame_of_all.to(gl.int64) * N * row + head_of_both * D
    of_query = (frame_of_all.to(gl.int64) * 2 * H + head_of_both) * N
    lse += of_query
    delta += of_query

    WIDTH: gl.constexpr = q.block_shape[4]
    barriers: gl.constexpr = mbarrier.MBarrierLayout()
    q_tiles = gl.allocate_shared_memory(q.dtype, [WARPGROUPS, 1, 1, 1, QUERIES, WIDTH], q.layout)
    d_tiles = gl.allocate_shared_memory(q.dtype, [WARPGROUPS, 1, 1, 1, QUERIES, WIDTH], q.layout)
    # The last step's keys are read while this step's are: of them there is one tile more.
    k_tiles = gl.allocate_shared_memory(q.dtype, [STAGES + 1, 1, 1, 1, KEYS, WIDTH], k.layout)
    v_tiles = gl.allocate_shared_memory(q.dtype, [STAGES, 1, 1, 1, KEYS, WIDTH], k.layout)
    rows_full = gl.allocate_shared_memory(gl.int64, [1], barriers)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    mbarrier.init(rows_full, count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(free.index(stage), count=WARPGROUPS)
    fence_async_shared()
    ring = (k_tiles, v_tiles, full, free)

    q0 = q_tiles.index(0).reshape([QUERIES, WIDTH])
    d0 = d_tiles.index(0).reshape([QUERIES, WIDTH])
    q1 = q_tiles.index(1).reshape([QUERIES, WIDTH])
    d1 = d_tiles.index(1).reshape([QUERIES, WIDTH])
    # The first takes the program's own warps; the others' warps and registers follow.
    if WARPGROUPS == 2:
        gl.warp_specialize(
            [
                (_consume, (q0, d0, rows_full, ring, dq, lse, delta, scale, score_scale, first_row, N, n_keys, row,
                            D, D0, D1, QUERIES, KEYS, STAGES)),
                (_consume, (q1, d1, rows_full, ring, dq, lse, delta, scale, score_scale, first_row + QUERIES, N,
                            n_keys, row, D, D0, D1, QUERIES, KEYS, STAGES)),
                (_produce_own_or_reference, (own, q, k, v, qr, kr, vr, d_both, q_tiles, d_tiles, rows_full, ring,
                                             b, f, h, head_of_both, first_row, n_keys,
                                             WARPGROUPS, QUERIES, KEYS, STAGES)),
            ],
            [4, 1],
            [REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        q2 = q_tiles.index(2).reshape([QUERIES, WIDTH])
        d2 = d_tiles.index(2).reshape([QUERIES, WIDTH])
        gl.warp_specialize(
            [
                (_consume, (q0, d0, rows_full, ring, dq, lse, delta, scale, score_scale, first_row, N, n_keys, row,
                            D, D0, D1, QUERIES, KEYS, STAGES)),
                (_consume, (q1, d1, rows_full, ring, dq, lse, delta, scale, score_scale, first_row + QUERIES, N,
                            n_keys, row, D, D0, D1, QUERIES, KEYS, STAGES)),
                (_consume, (q2, d2, rows_full, ring, dq, lse, delta, scale, score_scale, first_row + 2 * QUERIES, N,
                            n_keys, row, D, D0, D1, QUERIES, KEYS, STAGES)),
                (_produce_own_or_reference, (own, q, k, v, qr, kr, vr, d_both, q_tiles, d_tiles, rows_full, ring,
                                             b, f, h, head_of_both, first_row, n_keys,
                                             WARPGROUPS, QUERIES, KEYS, STAGES)),
            ],
            [4, 4, 1],
            [REGISTERS, REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
