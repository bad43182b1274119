"""The three Triton kernels of the backward of reference attention; what they compute is in triton_backward.py."""

import triton
import triton.language as tl

from .triton_forward import STRIDES, load, store


@triton.jit(do_not_specialize=["N", "H", "first_head", "heads"])
def delta_kernel(
    d_both,  # [B*F, N, 2*H*D]
    both,  # [B*F, N, 2*H*D]
    delta,  # [B*F, 2*H, N]
    N,
    H,
    first_head,
    heads,
    D: tl.constexpr,
    COLUMNS: tl.constexpr,  # a power of two from D on
    ROWS: tl.constexpr,
):
    """delta of one block of tokens of one head out of `heads` from `first_head` on, of the 2*H of both branches."""
    blocks = tl.cdiv(N, ROWS)
    rows = (tl.program_id(0) % blocks) * ROWS + tl.arange(0, ROWS)
    head = first_head + (tl.program_id(0) // blocks) % heads
    frame = (tl.program_id(0) // blocks // heads).to(tl.int64)
    columns = tl.arange(0, COLUMNS)
    row = 2 * H * D
    at = frame * N * row + head * D
    x = load(both + at, rows, N, row, columns, D, False, COLUMNS == D).to(tl.float32)
    dx = load(d_both + at, rows, N, row, columns, D, False, COLUMNS == D).to(tl.float32)
    tl.store(delta + (frame * 2 * H + head) * N + rows, tl.sum(x * dx, 1), mask=rows < N)


@triton.jit(do_not_specialize=["dq_heads", "F", "N", "M", "H", "first_head", "heads", *STRIDES])
def queries_kernel(
    q,  # [B, F, N, H, D]
    k,  # [B, F, N, H, D]
    v,  # [B, F, N, H, D]
    qr,  # [B, F, N, H, D]
    kr,  # [B, M, H, D]
    vr,  # [B, M, H, D]
    d_both,  # [B*F, N, 2*H*D]
    lse,  # [B*F, 2*H, N]
    delta,  # [B*F, 2*H, N]
    dq,  # the memory of d_both: a program writes where it alone has read
    dq_heads,  # 2*H. Not told apart from d_both's, offsets of its rows would be kept in registers for dq
    scale,
    score_scale,  # times log2 e, rounded as the forward's: weights are made from its log of the sum
    F,
    N,
    M,
    H,
    first_head,
    heads,
    q_b,
    q_f,
    q_n,
    q_h,
    k_b,
    k_f,
    k_n,
    k_h,
    v_b,
    v_f,
    v_n,
    v_h,
    qr_b,
    qr_f,
    qr_n,
    qr_h,
    kr_b,
    kr_n,
    kr_h,
    vr_b,
    vr_n,
    vr_h,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    EVEN: tl.constexpr,  # KEYS divides N and M
    PRECISION: tl.constexpr,
):
    """dq of one block of queries of one head of one frame, in one branch. Arguments as in `attend_kernel`."""
    blocks = tl.cdiv(N, QUERIES)
    block = tl.program_id(0) % blocks
    head_of_both = first_head + (tl.program_id(0) // blocks) % heads
    frame_of_all = (tl.program_id(0) // blocks // heads).to(tl.int64)
    h = (head_of_both % H).to(tl.int64)
    b = frame_of_all // F
    f = frame_of_all % F

    if head_of_both < H:
        q_base = q + (b * q_b + f * q_f + h * q_h) * 8
        k_base = k + (b * k_b + f * k_f + h * k_h) * 8
        v_base = v + (b * v_b + f * v_f + h * v_h) * 8
        q_row, k_row, v_row, n_keys = q_n * 8, k_n * 8, v_n * 8, N
    else:
        q_base = qr + (b * qr_b + f * qr_f + h * qr_h) * 8
        k_base = kr + (b * kr_b + h * kr_h) * 8
        v_base = vr + (b * vr_b + h * vr_h) * 8
        q_row, k_row, v_row, n_keys = qr_n * 8, kr_n * 8, vr_n * 8, M
    d_row = 2 * H * D
    d_base = d_both + frame_of_all * N * d_row + head_of_both * D
    dq_base = dq + (frame_of_all * N * dq_heads + head_of_both) * D
    of_query = (frame_of_all * 2 * H + head_of_both) * N

    queries = block * QUERIES + tl.arange(0, QUERIES)
    c0 = tl.arange(0, D0)
    q0 = load(q_base, queries, N, q_row, c0, D, False, D0 <= D)
    d0 = load(d_base, queries, N, d_row, c0, D, False, D0 <= D)
    sum0 = tl.zeros([QUERIES, D0], tl.float32)
    if D1 > 0:
        c1 = D0 + tl.arange(0, D1)
        q1 = load(q_base, queries, N, q_row, c1, D, False, D0 + D1 <= D)
        d1 = load(d_base, queries, N, d_row, c1, D, False, D0 + D1 <= D)
        sum1 = tl.zeros([QUERIES, D1], tl.float32)
    row_lse = tl.load(lse + of_query + queries, mask=queries < N, other=0.0) * 1.4426950408889634
    row_delta = tl.load(delta + of_query + queries, mask=queries < N, other=0.0)
    for start in tl.range(0, n_keys, KEYS):
        keys = start + tl.arange(0, KEYS)
        k0 = load(k_base, keys, n_keys, k_row, c0, D, EVEN, D0 <= D)
        v0 = load(v_base, keys, n_keys, v_row, c0, D, EVEN, D0 <= D)
        scores = tl.dot(q0, tl.trans(k0), input_precision=PRECISION)
        d_weights = tl.dot(d0, tl.trans(v0), input_precision=PRECISION)
        if D1 > 0:
            k1 = load(k_base, keys, n_keys, k_row, c1, D, EVEN, D0 + D1 <= D)
            v1 = load(v_base, keys, n_keys, v_row, c1, D, EVEN, D0 + D1 <= D)
            scores = tl.dot(q1, tl.trans(k1), scores, input_precision=PRECISION)
            d_weights = tl.dot(d1, tl.trans(v1), d_weights, input_precision=PRECISION)
        if not EVEN:
            scores = tl.where((keys < n_keys)[None, :], scores, float("-inf"))
        weights = tl.math.exp2(scores * score_scale - row_lse[:, None])
        d_scores = (weights * (d_weights - row_delta[:, None])).to(q0.dtype)
        sum0 = tl.dot(d_scores, k0, sum0, input_precision=PRECISION)
        if D1 > 0:
            sum1 = tl.dot(d_scores, k1, sum1, input_precision=PRECISION)

    store(dq_base, sum0 * scale, queries, N, dq_heads * D, c0, D)
    if D1 > 0:
        store(dq_base, sum1 * scale, queries, N, dq_heads * D, c1, D)


@triton.jit(do_not_specialize=["F", "N", "M", "H", "reference_programs", *STRIDES])
def keys_kernel(
    q,  # [B, F, N, H, D]
    k,  # [B, F, N, H, D]
    v,  # [B, F, N, H, D]
    qr,  # [B, F, N, H, D]
    kr,  # [B, M, H, D]
    vr,  # [B, M, H, D]
    d_both,  # [B*F, N, 2*H*D]
    lse,  # [B*F, 2*H, N]
    delta,  # [B*F, 2*H, N]
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
    q_b,
    q_f,
    q_n,
    q_h,
    k_b,
    k_f,
    k_n,
    k_h,
    v_b,
    v_f,
    v_n,
    v_h,
    qr_b,
    qr_f,
    qr_n,
    qr_h,
    kr_b,
    kr_n,
    kr_h,
    vr_b,
    vr_n,
    vr_h,
    D: tl.constexpr,
    D0: tl.constexpr,
    D1: tl.constexpr,
    QUERIES: tl.constexpr,
    KEYS: tl.constexpr,
    EVEN: tl.constexpr,  # QUERIES divides N
    PRECISION: tl.constexpr,
):
    """dk and dv of one block of keys of one head: of the reference, over all frames, or of one frame's own."""
    # The reference's programs come first: they are F times as long, so none is left to run alone at the end.
    if tl.program_id(0) < reference_programs:
        blocks = tl.cdiv(M, KEYS)
        block = tl.program_id(0) % blocks
        h = ((tl.program_id(0) // blocks) % H).to(tl.int64)
        b = (tl.program_id(0) // blocks // H).to(tl.int64)
        frame_of_all, frames, n_keys, head_of_both = b * F, F, M, H + h
        q_base = qr + (b * qr_b + h * qr_h) * 8
        k_base = kr + (b * kr_b + h * kr_h) * 8
        v_base = vr + (b * vr_b + h * vr_h) * 8
        dk_base = dkr + (b * M * H + h) * D
        dv_base = dvr + (b * M * H + h) * D
        q_frame, q_row, k_row, v_row = qr_f, qr_n * 8, kr_n * 8, vr_n * 8
    else:
        blocks = tl.cdiv(N, KEYS)
        own = tl.program_id(0) - reference_programs
        block = own % blocks
        h = ((own // blocks) % H).to(tl.int64)
        frame_of_all = (own // blocks // H).to(tl.int64)
        b = frame_of_all // F
        f = frame_of_all % F
        frames, n_keys, head_of_both = 1, N, h
        q_base = q + (b * q_b + f * q_f + h * q_h) * 8
        k_base = k + (b * k_b + f * k_f + h * k_h) * 8
        v_base = v + (b * v_b + f * v_f + h * v_h) * 8
        dk_base = dk + (frame_of_all * N * H + h) * D
        dv_base = dv + (frame_of_all * N * H + h) * D
        q_frame, q_row, k_row, v_row = q_f, q_n * 8, k_n * 8, v_n * 8
    d_row = 2 * H * D
    d_base = d_both + frame_of_all * N * d_row + head_of_both * D
    of_query = (frame_of_all * 2 * H + head_of_both) * N

    keys = block * KEYS + tl.arange(0, KEYS)
    c0 = tl.arange(0, D0)
    k0 = load(k_base, keys, n_keys, k_row, c0, D, False, D0 <= D)
    v0 = load(v_base, keys, n_keys, v_row, c0, D, False, D0 <= D)
    dk0 = tl.zeros([KEYS, D0], tl.float32)
    dv0 = tl.zeros([KEYS, D0], tl.float32)
    if D1 > 0:
        c1 = D0 + tl.arange(0, D1)
        k1 = load(k_base, keys, n_keys, k_row, c1, D, False, D0 + D1 <= D)
        v1 = load(v_base, keys, n_keys, v_row, c1, D, False, D0 + D1 <= D)
        dk1 = tl.zeros([KEYS, D1], tl.float32)
        dv1 = tl.zeros([KEYS, D1], tl.float32)
    blocks_of_frame = tl.cdiv(N, QUERIES)
    for step in tl.range(0, frames * blocks_of_frame):
        f = (step // blocks_of_frame).to(tl.int64)
        queries = (step % blocks_of_frame) * QUERIES + tl.arange(0, QUERIES)
        q_at = q_base + f * q_frame * 8
        d_at = d_base + f * N * d_row
        of_step = of_query + f * 2 * H * N
        q0 = load(q_at, queries, N, q_row, c0, D, EVEN, D0 <= D)
        d0 = load(d_at, queries, N, d_row, c0, D, EVEN, D0 <= D)
        scores = tl.dot(k0, tl.trans(q0), input_precision=PRECISION)
        d_weights = tl.dot(v0, tl.trans(d0), input_precision=PRECISION)
        if D1 > 0:
            q1 = load(q_at, queries, N, q_row, c1, D, EVEN, D0 + D1 <= D)
            d1 = load(d_at, queries, N, d_row, c1, D, EVEN, D0 + D1 <= D)
            scores = tl.dot(k1, tl.trans(q1), scores, input_precision=PRECISION)
            d_weights = tl.dot(v1, tl.trans(d1), d_weights, input_precision=PRECISION)
        if EVEN:
            row_lse = tl.load(lse + of_step + queries)
            row_delta = tl.load(delta + of_step + queries)
        else:
            # Past the last token the sum is infinite, so that every weight is zero.
            row_lse = tl.load(lse + of_step + queries, mask=queries < N, other=float("inf"))
            row_delta = tl.load(delta + of_step + queries, mask=queries < N, other=0.0)
        weights = tl.math.exp2(scores * score_scale - (row_lse * 1.4426950408889634)[None, :])
        rounded = weights.to(k0.dtype)
        dv0 = tl.dot(rounded, d0, dv0, input_precision=PRECISION)
        d_scores = (weights * (d_weights - row_delta[None, :])).to(k0.dtype)
        dk0 = tl.dot(d_scores, q0, dk0, input_precision=PRECISION)
        if D1 > 0:
            dv1 = tl.dot(rounded, d1, dv1, input_precision=PRECISION)
            dk1 = tl.dot(d_scores, q1, dk1, input_precision=PRECISION)

    store(dk_base, dk0 * scale, keys, n_keys, H * D, c0, D)
    store(dv_base, dv0, keys, n_keys, H * D, c0, D)
    if D1 > 0:
        store(dk_base, dk1 * scale, keys, n_keys, H * D, c1, D)
        store(dv_base, dv1, keys, n_keys, H * D, c1, D)
