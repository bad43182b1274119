"""The Gluon kernel of the derivatives by keys and values, for Hopper: what the Triton one computes, scheduled by hand.

A program takes a block of keys of one head for each of its warpgroups, and a producer warp copies queries, the
derivatives by what attention made of them, and the rows' two sums into a ring that the warpgroups share (TMA). No
element is masked in the loop: past the last query a copy brings zeros, which add nothing, and what is computed for keys
past the last one is not stored.
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

from .gluon_kernel import _store


@gluon.jit
def _produce(
    k, v, q, d_both, lse, delta, k_tiles, v_tiles, kv_full, ring, b, f_keys, first_frame, frames, F, h, head_of_both, H,
    first_key, N, WARPGROUPS: gl.constexpr, KEYS: gl.constexpr, QUERIES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    mbarrier.expect(kv_full, 2 * WARPGROUPS * k.block_type.nbytes)
    for group in gl.static_range(WARPGROUPS):
        tma.async_copy_global_to_shared(k, [b, f_keys, h, first_key + group * KEYS, 0], kv_full, k_tiles.index(group))
        tma.async_copy_global_to_shared(v, [b, f_keys, h, first_key + group * KEYS, 0], kv_full, v_tiles.index(group))
    q_tiles, d_tiles, lse_tiles, delta_tiles, full, free = ring
    step = 0
    for f in range(first_frame, first_frame + frames):
        of_row = (b * F + f) * 2 * H + head_of_both
        for row in range(0, N, QUERIES):
            stage = step % STAGES
            filled = full.index(stage)
            mbarrier.wait(free.index(stage), (step // STAGES + 1) & 1)  # of a stage never filled, that phase is over
            mbarrier.expect(filled, 2 * q.block_type.nbytes + 2 * lse.block_type.nbytes)
            tma.async_copy_global_to_shared(q, [b, f, h, row, 0], filled, q_tiles.index(stage))
            tma.async_copy_global_to_shared(lse, [of_row, row], filled, lse_tiles.index(stage))
            tma.async_copy_global_to_shared(d_both, [b, f, head_of_both, row, 0], filled, d_tiles.index(stage))
            tma.async_copy_global_to_shared(delta, [of_row, row], filled, delta_tiles.index(stage))
            step += 1


@gluon.jit
def _produce_own_or_reference(
    own, q, k, v, qr, kr, vr, d_both, lse, delta, k_tiles, v_tiles, kv_full, ring, b, f, F, h, H, first_key, N,
    WARPGROUPS: gl.constexpr, KEYS: gl.constexpr, QUERIES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    if own:
        _produce(
            k, v, q, d_both, lse, delta, k_tiles, v_tiles, kv_full, ring, b, f, f, 1, F, h, h, H, first_key, N,
            WARPGROUPS, KEYS, QUERIES, STAGES,
        )  # fmt: skip
    else:
        _produce(
            kr, vr, qr, d_both, lse, delta, k_tiles, v_tiles, kv_full, ring, b, 0, 0, F, F, h, H + h, H, first_key, N,
            WARPGROUPS, KEYS, QUERIES, STAGES,
        )  # fmt: skip


@gluon.jit
def _issue_scores(left, right, zeros, D0: gl.constexpr, D1: gl.constexpr):
    """left right^T, not waited for."""
    right = right.permute((1, 0))
    product = warpgroup_mma(left.slice(0, D0, 1), right.slice(0, D0, 0), zeros, use_acc=False, is_async=True)
    return warpgroup_mma(left.slice(D0, D1, 1), right.slice(D0, D1, 0), product, is_async=True)


@gluon.jit
def _issue_sums(left, right, sums0, sums1, layout0: gl.constexpr, layout1: gl.constexpr):
    """sums + left right, not waited for."""
    D0: gl.constexpr = sums0.shape[1]
    D1: gl.constexpr = sums1.shape[1]
    left0 = gl.convert_layout(left, gl.DotOperandLayout(0, layout0, 2))
    sums0 = warpgroup_mma(left0, right.slice(0, D0, 1), sums0, is_async=True)
    left1 = gl.convert_layout(left, gl.DotOperandLayout(0, layout1, 2))
    sums1 = warpgroup_mma(left1, right.slice(D0, D1, 1), sums1, is_async=True)
    return sums0, sums1


@gluon.jit
def _consume(
    k, v, kv_full, ring, dk, dv, scale, score_scale, first_key, n_keys, row, steps,
    D: gl.constexpr, D0: gl.constexpr, D1: gl.constexpr,
    KEYS: gl.constexpr, QUERIES: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """One warpgroup: its keys over all queries."""
    q_tiles, d_tiles, lse_tiles, delta_tiles, full, free = ring
    of_scores: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, QUERIES, 16])
    of_sums0: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D0, 16])
    of_sums1: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D1, 16])
    of_queries: gl.constexpr = gl.SliceLayout(0, of_scores)
    WIDTH: gl.constexpr = k.shape[1]
    zeros = gl.zeros([KEYS, QUERIES], gl.float32, of_scores)
    dk0 = gl.zeros([KEYS, D0], gl.float32, of_sums0)
    dk1 = gl.zeros([KEYS, D1], gl.float32, of_sums1)
    dv0 = gl.zeros([KEYS, D0], gl.float32, of_sums0)
    dv1 = gl.zeros([KEYS, D1], gl.float32, of_sums1)

    mbarrier.wait(kv_full, 0)
    for step in range(steps):
        stage = step % STAGES
        mbarrier.wait(full.index(stage), (step // STAGES) & 1)
        q = q_tiles.index(stage).reshape([QUERIES, WIDTH])
        d = d_tiles.index(stage).reshape([QUERIES, WIDTH])
        issued = _issue_scores(k, q, zeros, D0, D1)
        d_issued = _issue_scores(v, d, zeros, D0, D1)
        row_lse = lse_tiles.index(stage).reshape([QUERIES]).load(of_queries)
        row_delta = delta_tiles.index(stage).reshape([QUERIES]).load(of_queries)
        scores = warpgroup_mma_wait(2, deps=(issued,))
        weights = gl.exp2(scores * score_scale - gl.expand_dims(row_lse, 0))
        dv0, dv1 = _issue_sums(weights.to(k.dtype), d, dv0, dv1, of_sums0, of_sums1)
        d_weights = warpgroup_mma_wait(2, deps=(d_issued,))
        d_scores = weights * (d_weights - gl.expand_dims(row_delta, 0))
        dk0, dk1 = _issue_sums(d_scores.to(k.dtype), q, dk0, dk1, of_sums0, of_sums1)
        dk0, dk1, dv0, dv1 = warpgroup_mma_wait(0, deps=(dk0, dk1, dv0, dv1))
        mbarrier.arrive(free.index(stage))

    _store(dk, dk0 * scale, first_key, n_keys, row, 0, D, of_sums0)
    _store(dk, dk1 * scale, first_key, n_keys, row, D0, D, of_sums1)
    _store(dv, dv0, first_key, n_keys, row, 0, D, of_sums0)
    _store(dv, dv1, first_key, n_keys, row, D0, D, of_sums1)


@gluon.jit(do_not_specialize=["F", "N", "M", "H", "reference_programs"])
def keys_kernel(
    q,  # descriptors of [B, F, H, N, D]
    k,
    v,
    qr,
    kr,  # [B, 1, H, M, D]
    vr,
    d_both,  # [B, F, 2*H, N, D]
    lse,  # [B*F*2*H, N], times log2 e
    delta,  # [B*F*2*H, N]
    dk,  # [B*F, N, H*D]
    dv,  # [B*F, N, H*D]
    dkr,  # [B, M, H*D]
    dvr,  # [B, M, H*D]
    scale,
    score_scale,  # times log2 e, rounded as the forward's: weights are made from its log of the sum
    F,
    N,
    M,
    H,
    reference_programs,
    D: gl.constexpr,
    D0: gl.constexpr,  # D0 + D1 >= D, powers of two
    D1: gl.constexpr,
    WARPGROUPS: gl.constexpr,  # 2 or 3
    QUERIES: gl.constexpr,
    KEYS: gl.constexpr,  # of a warpgroup
    STAGES: gl.constexpr,
    REGISTERS: gl.constexpr,  # of a thread of the warpgroups
    PRODUCER_REGISTERS: gl.constexpr,
):
    """dk and dv of a block of keys for each warpgroup: of the reference, over all frames, or of one frame's own."""
    # The reference's programs come first: they are F times as long, so none is left to run alone at the end.
    own = gl.program_id(0) >= reference_programs
    place = gl.where(own, gl.program_id(0) - reference_programs, gl.program_id(0))
    n_keys = gl.where(own, N, M)
    blocks = (n_keys + WARPGROUPS * KEYS - 1) // (WARPGROUPS * KEYS)
    first_key = place % blocks * (WARPGROUPS * KEYS)
    h = place // blocks % H
    outer = place // blocks // H  # a frame of all clips, or a clip
    b = gl.where(own, outer // F, outer)
    f = gl.where(own, outer % F, 0)
    steps = gl.where(own, 1, F) * ((N + QUERIES - 1) // QUERIES)
    row = H * D
    to_head = outer.to(gl.int64) * n_keys * row + h * D
    dk = gl.where(own, dk, dkr) + to_head
    dv = gl.where(own, dv, dvr) + to_head

    WIDTH: gl.constexpr = q.block_shape[4]
    barriers: gl.constexpr = mbarrier.MBarrierLayout()
    GROUPS: gl.constexpr = 2 if WARPGROUPS == 2 else 4  # a power of two
    k_tiles = gl.allocate_shared_memory(q.dtype, [GROUPS, 1, 1, 1, KEYS, WIDTH], k.layout)
    v_tiles = gl.allocate_shared_memory(q.dtype, [GROUPS, 1, 1, 1, KEYS, WIDTH], k.layout)
    q_tiles = gl.allocate_shared_memory(q.dtype, [STAGES, 1, 1, 1, QUERIES, WIDTH], q.layout)
    d_tiles = gl.allocate_shared_memory(q.dtype, [STAGES, 1, 1, 1, QUERIES, WIDTH], q.layout)
    lse_tiles = gl.allocate_shared_memory(gl.float32, [STAGES, 1, QUERIES], lse.layout)
    delta_tiles = gl.allocate_shared_memory(gl.float32, [STAGES, 1, QUERIES], lse.layout)
    kv_full = gl.allocate_shared_memory(gl.int64, [1], barriers)
    full = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    free = gl.allocate_shared_memory(gl.int64, [STAGES, 1], barriers)
    mbarrier.init(kv_full, count=1)
    for stage in gl.static_range(STAGES):
        mbarrier.init(full.index(stage), count=1)
        mbarrier.init(free.index(stage), count=WARPGROUPS)
    fence_async_shared()
    ring = (q_tiles, d_tiles, lse_tiles, delta_tiles, full, free)

    k0 = k_tiles.index(0).reshape([KEYS, WIDTH])
    v0 = v_tiles.index(0).reshape([KEYS, WIDTH])
    k1 = k_tiles.index(1).reshape([KEYS, WIDTH])
    v1 = v_tiles.index(1).reshape([KEYS, WIDTH])
    # The first takes the program's own warps; the others' warps and registers follow.
    if WARPGROUPS == 2:
        gl.warp_specialize(
            [
                (_consume, (k0, v0, kv_full, ring, dk, dv, scale, score_scale, first_key, n_keys, row, steps,
                            D, D0, D1, KEYS, QUERIES, STAGES)),
                (_consume, (k1, v1, kv_full, ring, dk, dv, scale, score_scale, first_key + KEYS, n_keys, row, steps,
                            D, D0, D1, KEYS, QUERIES, STAGES)),
                (_produce_own_or_reference, (own, q, k, v, qr, kr, vr, d_both, lse, delta, k_tiles, v_tiles, kv_full,
                                             ring, b, f, F, h, H, first_key, N, WARPGROUPS, KEYS, QUERIES, STAGES)),
            ],
            [4, 1],
            [REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
    else:
        k2 = k_tiles.index(2).reshape([KEYS, WIDTH])
        v2 = v_tiles.index(2).reshape([KEYS, WIDTH])
        gl.warp_specialize(
            [
                (_consume, (k0, v0, kv_full, ring, dk, dv, scale, score_scale, first_key, n_keys, row, steps,
                            D, D0, D1, KEYS, QUERIES, STAGES)),
                (_consume, (k1, v1, kv_full, ring, dk, dv, scale, score_scale, first_key + KEYS, n_keys, row, steps,
                            D, D0, D1, KEYS, QUERIES, STAGES)),
                (_consume, (k2, v2, kv_full, ring, dk, dv, scale, score_scale, first_key + 2 * KEYS, n_keys, row, steps,
                            D, D0, D1, KEYS, QUERIES, STAGES)),
                (_produce_own_or_reference, (own, q, k, v, qr, kr, vr, d_both, lse, delta, k_tiles, v_tiles, kv_full,
                                             ring, b, f, F, h, H, first_key, N, WARPGROUPS, KEYS, QUERIES, STAGES)),
            ],
            [4, 4, 1],
            [REGISTERS, REGISTERS, PRODUCER_REGISTERS],
        )  # fmt: skip
