"""The Gluon kernel of the queries' derivatives on CPU tensors, by the stand-in of gluon_on_cpu.py."""

import sys
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from xdyna_kernels import gluon_backward, gluon_queries_kernel, gluon_tiles
from xdyna_kernels.triton_forward import readable

sys.path.insert(0, str(Path(__file__).parent))
import test_gluon_backward
from gluon_on_cpu import edited_kernel
from gluon_program import ANY, STUCK, TOO_EARLY, UNFINISHED, KernelError
from test_gluon_backward import DTYPES, beyond, forward, inputs

BOTH = ("q", "q_ref")


def derivatives(tensors, wanted=BOTH, **rest):
    return test_gluon_backward.derivatives(tensors, wanted, **rest)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", gluon_tiles.QUERIES)
@pytest.mark.parametrize(("N", "M"), [(2, 3), (63, 129), (130, 64), (256, 100), (70, 900)])
def test_parity(D, N, M, dtype):
    """One block and many, tails and none, more steps than stages, a warpgroup without a query, any number of tokens."""
    tensors = inputs(F=2, N=N, M=M, D=D, dtype=dtype)
    assert beyond(tensors, derivatives(tensors)) == set()


@pytest.mark.parametrize("D", gluon_tiles.QUERIES)
def test_clips_frames_and_heads(D):
    tensors = inputs(B=2, F=3, N=20, H=2, M=35, D=D)
    assert beyond(tensors, derivatives(tensors)) == set()


@pytest.mark.parametrize("D", gluon_tiles.QUERIES)
def test_all_derivatives_at_once(D):
    tensors = inputs(F=2, N=68, M=70, D=D)
    names = test_gluon_backward.NAMES
    assert beyond(tensors, derivatives(tensors, names)) == set()


@pytest.mark.parametrize("wanted", [("q",), ("q_ref",)])
def test_a_branch_that_is_not_wanted_is_not_computed(wanted, monkeypatch):
    """It has no programs, and what is read of it would be NaN."""
    programs = []
    launch = gluon_backward.launch
    monkeypatch.setattr(
        gluon_backward, "launch", lambda kernel, n, *rest, **kw: (programs.append(n), launch(kernel, n, *rest, **kw))
    )
    tile = gluon_tiles.QUERIES[80]
    tensors = inputs(B=2, F=3, N=tile.warpgroups * tile.queries + 20, H=2, M=20)  # two blocks of queries
    assert beyond(tensors, derivatives(tensors, wanted)) == set()
    assert programs == [2 * 3 * 2 * 2]


@pytest.mark.parametrize("D", gluon_tiles.QUERIES)
def test_weights_that_overflow_past_the_last_key(D):
    """Logits far below zero: of the scores 0 that a key of zeros would have, the weights are infinite."""
    tensors = inputs(N=41, M=150, D=D, dtype=torch.float16)
    for i in (0, 1, 3, 4):  # queries positive, keys negative
        tensors[i] = (tensors[i].abs() + 4) * (1 if i in (0, 3) else -1)
    assert forward(tensors)[1].max() < -90
    assert beyond(tensors, derivatives(tensors)) == set()


def test_packed_projection_is_read_in_place():
    """q, k, v, q' out of one tensor, keys and values of frame 0: the way the model calls it. No copies."""
    packed = torch.randn(2, 2, 12, 4, 2, 40).to(torch.bfloat16)
    q, k, v, q_ref = packed.unbind(3)
    views = [q, k, v, q_ref, k[:, 0], v[:, 0]]
    assert all(readable(x) is x for x in views)
    rest = inputs(B=2, F=2, N=12, H=2, D=40)[6:]
    found, dense = (derivatives([*six, *rest]) for six in (views, [x.contiguous() for x in views]))
    torch.testing.assert_close(found, dense, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("sizes", "served"),
    [({}, True), ({"N": 67}, True), ({"D": 160}, False), ({"D": 48}, False), ({"dtype": torch.float32}, False)],
)
def test_what_it_serves(sizes, served):
    assert gluon_backward.serves_queries(inputs(**sizes)[0]) == served


OVER = "        d_weights, dq0, dq1 = warpgroup_mma_wait(0, deps=(d_issued, sums0, sums1))\n"
LEFT = "        mbarrier.arrive(ring[3].index(step % STAGES))  # of this step's values and the last one's keys\n"
FIRST_LEFT = "    mbarrier.arrive(ring[3].index(0))  # of these values; of the keys before the first, there are none\n"
# An edit of the kernel, and what the stand-in says of it; "" where only parity can tell.
FAULTS = {
    "queries not waited for": ("    mbarrier.wait(rows_full, 0)\n", "", TOO_EARLY),
    "first keys not waited for": ("    _wait_full(ring, 0, STAGES)\n", "", TOO_EARLY),
    "second keys not waited for": ("    _wait_full(ring, 1, STAGES, steps > 1)\n", "", ANY),
    "keys not waited for": ("        _wait_full(ring, step + 1, STAGES, step + 1 < steps)\n", "", ANY),
    "keys waited for past the last": ("step + 1 < steps", "step < steps", STUCK),
    "wrong phase": ("(step // STAGES) & 1", "(step // STAGES + 1) & 1", ANY),
    "wrong phase of the producer": ("(step // STAGES + 1) & 1", "(step // STAGES) & 1", STUCK),
    "stage filled while it is read": (
        "mbarrier.wait(free.index(step % STAGES), (step // STAGES + 1) & 1)",
        "pass",
        ANY,
    ),
    "stage left before its products are over": (OVER + LEFT, LEFT + OVER, ANY),
    "stage left by all but one warpgroup": ("count=WARPGROUPS", "count=WARPGROUPS - 1", ANY),
    "stage never left": (LEFT, "", STUCK),
    "first stage never left": (FIRST_LEFT, "", STUCK),
    "scores used too early": ("scores = warpgroup_mma_wait(4,", "scores = warpgroup_mma_wait(5,", UNFINISHED),
    "their derivatives used too early": (
        "d_weights, dq0, dq1 = warpgroup_mma_wait(0,",
        "d_weights, dq0, dq1 = warpgroup_mma_wait(1,",
        UNFINISHED,
    ),
    "too few bytes of queries expected": ("2 * WARPGROUPS * q.block", "WARPGROUPS * q.block", ANY),
    "too few bytes of keys expected": ("2 * k.block_type.nbytes", "k.block_type.nbytes", ANY),
    "too many bytes of keys expected": ("2 * k.block_type.nbytes", "3 * k.block_type.nbytes", STUCK),
    "a copy of the keys that is still read is overwritten": (
        "k_tiles.index(step % (STAGES + 1))",
        "k_tiles.index(step % STAGES)",
        ANY,
    ),
    "no mask": ("keys < n_keys", "keys < keys + 1", ""),
    "keys of the wrong rows": ("key = (steps - 1 - step) * KEYS", "key = step * KEYS", ""),
    "keys of the last step": ("ring, step - 1, dq0", "ring, step, dq0", ""),
    "last keys left out": ("ring, steps - 1, dq0", "ring, steps - 2, dq0", ""),
    "derivatives of the own branch": (
        "[b, f, head_of_both, row, 0], rows_full",
        "[b, f, h, row, 0], rows_full",
        "",
    ),
    "queries of another warpgroup": ("row = first_row + group * QUERIES", "row = first_row", ""),
    "reference keys in the own branch": ("if own:", "if not own:", ""),
    "rows' sums of the own branch": ("2 * H + head_of_both) * N", "2 * H + h) * N", ""),
    "rows' sums of another warpgroup": ("rows = first_row + gl", "rows = first_row % 64 + gl", ""),
    "no scale": ("dq1 * scale", "dq1", ""),
    "powers of e": ("weights = gl.exp2(scores * score_scale", "weights = gl.exp2(scores * scale", ""),
    "log of the sum in powers of e": ("other=0.0) * 1.4426950408889634", "other=0.0)", ""),
    "no row sums": ("(weights * (d_weights - row_delta))", "(weights * d_weights)", ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_show(fault, tmp_path):
    right, wrong, message = FAULTS[fault]
    edited = edited_kernel(tmp_path, {right: wrong}, gluon_queries_kernel)
    tensors = inputs(F=2, N=260, M=700)
    if fault == "no mask":
        tensors[3], tensors[4] = tensors[3].abs() + 4, -tensors[4].abs() - 4
    if message:
        with pytest.raises(KernelError, match=message):
            derivatives(tensors, queries_kernel=edited)
    else:
        assert beyond(tensors, derivatives(tensors, queries_kernel=edited))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_scale_does_not_pass(dtype):
    tensors = inputs(dtype=dtype)
    assert beyond(tensors, derivatives(tensors, scale=1.02 * 80**-0.5)) == set(BOTH)
