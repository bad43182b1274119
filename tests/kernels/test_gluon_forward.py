"""The Gluon kernel on CPU tensors, by the stand-in of gluon_on_cpu.py: numbers, barriers, and faults that must show."""

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from xdyna_kernels import gluon_forward, gluon_kernel

sys.path.insert(0, str(Path(__file__).parent))
from gluon_on_cpu import OnCPU, edited_kernel
from gluon_program import ANY, STUCK, TOO_EARLY, TOO_LATE, UNFINISHED, KernelError

DTYPES = [torch.float16, torch.bfloat16]


def inputs(B=1, F=1, N=70, H=1, D=80, M=300, dtype=torch.bfloat16, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, F, N, H, D)] * 4 + [(B, M, H, D)] * 2
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


def attend(tensors, kernel=gluon_kernel, scale=None, programs=None, **options):
    """Both results of gluon_forward.attend, whose fresh memory holds NaN; by so many programs, or one for each tile."""
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(gluon_forward, "attend_kernel", OnCPU(kernel))
            D = tensors[0].shape[-1]
            patch.setitem(gluon_forward.TILES, D, gluon_forward.TILES[D]._replace(persistent=programs is not None))
            patch.setattr(gluon_forward, "multiprocessors", lambda on: programs)
            return gluon_forward.attend(*tensors, scale or tensors[0].shape[-1] ** -0.5, **options)
    finally:
        torch.use_deterministic_algorithms(False)


def plain(tensors, dtype=torch.float64):
    """Both attentions line by line in `dtype`, side by side, and the log of the sum of exp in float64."""
    q, k, v, q_ref, k_ref, v_ref = (t.to(dtype) for t in tensors)
    parts, sums = [], []
    for queries, keys, values in ((q, k, v), (q_ref, k_ref[:, None], v_ref[:, None])):
        scores = (
            torch.einsum("bfnhd, bfmhd -> bfhnm", queries, keys.expand(*q.shape[:2], -1, -1, -1)) / q.shape[-1] ** 0.5
        )
        weights = scores.softmax(-1, dtype=torch.promote_types(dtype, torch.float32)).to(dtype)
        parts.append(torch.einsum("bfhnm, bfmhd -> bfnhd", weights, values.expand(*q.shape[:2], -1, -1, -1)))
        sums.append(scores.double().logsumexp(-1))
    return torch.cat(parts, 3).flatten(3).flatten(0, 1), torch.cat(sums, 2).flatten(0, 1)


def error(found: Tensor, exact: Tensor) -> float:
    return ((found.double() - exact).norm() / exact.norm()).item()


def good_enough(tensors, found) -> bool:
    """At most twice the plain formula's error in the same dtype, and half a rounding; lse as precise as float32 is."""
    dtype = tensors[0].dtype
    both, lse = plain(tensors)
    limit = 2 * error(plain(tensors, dtype)[0], both) + torch.finfo(dtype).eps / 2
    return error(found[0], both) <= limit and torch.allclose(found[1].double(), lse, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", [40, 80, 160])
@pytest.mark.parametrize(("N", "M"), [(1, 1), (63, 129), (130, 64), (256, 100), (70, 1100)])
def test_parity(D, N, M, dtype):
    """One block and many, tails and none, more steps than stages, a warpgroup without a query."""
    tensors = inputs(N=N, M=M, D=D, dtype=dtype)
    assert good_enough(tensors, attend(tensors))


@pytest.mark.parametrize("D", [40, 80, 160])
def test_a_log_that_is_not_kept(D):
    tensors = inputs(N=130, M=70, D=D)
    (both, lse), (expected, _) = (attend(tensors, keep_lse=kept) for kept in (False, True))
    assert lse.shape == (0,)
    torch.testing.assert_close(both, expected, rtol=0, atol=0)


def test_clips_frames_and_heads():
    tensors = inputs(B=2, F=3, N=20, H=2, M=35)
    assert good_enough(tensors, attend(tensors))


@pytest.mark.parametrize("D", [40, 80, 160])
@pytest.mark.parametrize(("N", "M"), [(1, 1), (63, 129), (260, 100), (200, 520)])
@pytest.mark.parametrize("programs", [1, 3])
def test_a_program_takes_many_tiles(D, N, M, programs):
    """Own and reference tiles of unequal lengths, frames and heads in one program; unequal numbers of tiles. One step a
    tile and many, so that tiles begin at any stage and in any phase of the rings."""
    tensors = inputs(F=2, N=N, H=2, M=M, D=D)
    found = attend(tensors, programs=programs)
    assert good_enough(tensors, found)
    for a, b in zip(found, attend(tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_there_are_never_more_programs_than_tiles():
    tensors = inputs(N=20, M=30)
    assert good_enough(tensors, attend(tensors, programs=132))


@pytest.mark.parametrize("D", [40, 80, 160])
@pytest.mark.parametrize("logits", ["far below zero", "huge"])
def test_extreme_logits(D, logits):
    tensors = inputs(N=40, M=150, D=D, dtype=torch.float16)
    for i, x in enumerate(tensors):
        if logits == "huge":
            tensors[i] = 100 * x if i in (0, 3) else x
        elif i not in (2, 5):  # queries positive, keys negative
            tensors[i] = (x.abs() + 4) * (1 if i in (0, 3) else -1)
    exact, lse = plain(tensors)
    assert lse.max() < -80 if logits == "far below zero" else lse.max() > 300
    found = attend(tensors)
    torch.testing.assert_close(found[0].double(), exact, rtol=0, atol=4e-3)
    torch.testing.assert_close(found[1].double(), lse, rtol=1e-5, atol=1e-5)


def test_packed_projection_is_read_in_place():
    """q, k, v, q' out of one tensor, keys and values of frame 0: the way the model calls it. No copies."""
    packed = torch.randn(2, 2, 9, 4, 2, 40).to(torch.bfloat16)
    q, k, v, q_ref = packed.unbind(3)
    views = [q, k, v, q_ref, k[:, 0], v[:, 0]]
    described = [gluon_forward.describe(x, 64) for x in views[:4]]
    assert all(d.base.data_ptr() == x.data_ptr() for d, x in zip(described, views[:4], strict=True))
    for a, b in zip(attend(views), attend([x.contiguous() for x in views]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize(
    "layout",
    {
        "channels not last": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
        "not aligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
        "odd row": lambda x: torch.nn.functional.pad(x, (0, 3))[..., :-3],
        "one row for all": lambda x: x[:, :1].expand(x.shape),
        "heads first": lambda x: x.transpose(-2, -3).contiguous().transpose(-2, -3),
    }.items(),
    ids=lambda item: item[0],
)
def test_any_strides(layout):
    tensors = [layout[1](x) for x in inputs(B=2, N=9, D=40, M=9)]
    for a, b in zip(attend(tensors), attend([x.contiguous() for x in tensors]), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


# An edit of the kernel, and what the stand-in says of it; "" where only parity can tell.
FAULTS = {
    "queries not waited for": ("    mbarrier.wait(q_full, phase)\n", "", TOO_EARLY),
    "first keys not waited for": ("    _wait_full(k_ring, first, STAGES)\n", "", TOO_EARLY),
    "keys not waited for": (
        "        _wait_full(k_ring, step + 1, STAGES, step + 1 < end)\n",
        "",
        ANY,
    ),
    "values not waited for": ("        _wait_full(v_ring, last, STAGES)\n", "", ANY),
    "wrong phase": ("(step // STAGES) & 1, pred", "(step // STAGES + 1) & 1, pred", ANY),
    "wrong phase of the producer": ("(step // STAGES + 1) & 1", "(step // STAGES) & 1", STUCK),
    "stage filled while it is read": ("    _wait_free(ring, step, STAGES)\n", "", ANY),
    "values left before their product is over": (
        "        out0, out1 = warpgroup_mma_wait(0, deps=(sums0, sums1))\n"
        "        mbarrier.arrive(v_ring[3].index(last % STAGES))\n",
        "        mbarrier.arrive(v_ring[3].index(last % STAGES))\n"
        "        out0, out1 = warpgroup_mma_wait(0, deps=(sums0, sums1))\n",
        TOO_LATE,
    ),
    "keys left by all but one warpgroup": (
        "k_free.index(stage), count=WARPGROUPS",
        "k_free.index(stage), count=WARPGROUPS - 1",
        ANY,
    ),
    "values left by all but one warpgroup": (
        "v_free.index(stage), count=WARPGROUPS",
        "v_free.index(stage), count=WARPGROUPS - 1",
        ANY,
    ),
    "keys never left": ("        mbarrier.arrive(k_ring[3].index(step % STAGES))\n", "", STUCK),
    "scores used too early": ("warpgroup_mma_wait(2,", "warpgroup_mma_wait(3,", UNFINISHED),
    "too few bytes expected": ("WARPGROUPS * (q[0].block_type.nbytes", "(q[0].block_type.nbytes", ANY),
    "too many bytes expected": (
        "WARPGROUPS * (q[0].block_type.nbytes",
        "(WARPGROUPS + 1) * (q[0].block_type.nbytes",
        STUCK,
    ),
    "no mask": ("keys < n_keys", "keys < keys + 1", ""),
    "keys of the wrong rows": (
        "_fill(k, b, f_keys, h, (end - 1 - step) * KEYS",
        "_fill(k, b, f_keys, h, (step - first) * KEYS",
        "",
    ),
    "reference keys in the own branch": ("own, frame % F, q_tiles", "ref, frame % F, q_tiles", ""),
    "half of the channels": ("warpgroup_mma(q[1], k1, scores, is_async=True)", "scores", ""),
    "sum that does not shrink": ("total * shrink", "total", ""),
    "values that do not shrink": ("        out1 = _times_rows(out1, shrink, of_out1)\n", "", ""),
}


# Those that only a program's second tile shows.
PERSISTENT_FAULTS = {
    "queries overwritten while they are read": ("    _wait_free(k_ring, first - 1 + STAGES, STAGES)\n", "", ANY),
    "queries overwritten under the last scores": ("first - 1 + STAGES, STAGES", "first - 2 + STAGES, STAGES", ANY),
    "wait for keys that are not yet there": ("first - 1 + STAGES, STAGES", "first + STAGES, STAGES", STUCK),
    "wrong phase of the queries": ("mbarrier.wait(q_full, phase)", "mbarrier.wait(q_full, 0)", ANY),
    "last values never left": ("    mbarrier.arrive(v_ring[3].index((end - 1) % STAGES))\n", "", STUCK),
    "first keys never left": ("    mbarrier.arrive(k_ring[3].index(first % STAGES))\n", "", STUCK),
    "last values left before their product is over": (
        "    out0, out1 = warpgroup_mma_wait(0, deps=(sums0, sums1))\n"
        "    mbarrier.arrive(v_ring[3].index((end - 1) % STAGES))\n",
        "    mbarrier.arrive(v_ring[3].index((end - 1) % STAGES))\n"
        "    out0, out1 = warpgroup_mma_wait(0, deps=(sums0, sums1))\n",
        TOO_LATE,
    ),
    "steps counted anew": ("        first = end\n        phase ^= 1\n", "        phase ^= 1\n", ANY),
}


@pytest.mark.parametrize(
    ("fault", "programs"),
    [*[(fault, n) for fault in FAULTS for n in (None, 2)], *[(fault, 2) for fault in PERSISTENT_FAULTS]],
)
def test_faults_show(fault, programs, tmp_path):
    right, wrong, message = (FAULTS | PERSISTENT_FAULTS)[fault]
    edited = edited_kernel(tmp_path, {right: wrong})
    tensors = inputs(N=260, M=700)
    if message:
        with pytest.raises(KernelError, match=message):
            attend(tensors, edited, programs=programs)
    else:
        assert not good_enough(tensors, attend(tensors, edited, programs=programs))


def test_a_wrong_scale_does_not_pass():
    tensors = inputs()
    assert good_enough(tensors, attend(tensors))
    assert not good_enough(tensors, attend(tensors, scale=1.02 * 80**-0.5))
