"""The Gluon kernel of the keys' and values' derivatives on CPU tensors, by the stand-in of gluon_on_cpu.py; that of
the queries' is in test_gluon_queries.py."""

import sys
from pathlib import Path

import pytest
import torch
from xdyna_kernels import reference_attention

pytest.importorskip("triton")

from xdyna_kernels import gluon_backward, gluon_keys_kernel, gluon_queries_kernel, gluon_tiles, triton_backward
from xdyna_kernels.triton_forward import readable

sys.path.insert(0, str(Path(__file__).parent))
from gluon_on_cpu import OnCPU, edited_kernel
from gluon_program import ANY, STUCK, TOO_EARLY, TOO_LATE, UNFINISHED, KernelError

DTYPES = [torch.float16, torch.bfloat16]
OWN, REF = ("k", "v"), ("k_ref", "v_ref")
NAMES = ("q", *OWN, "q_ref", *REF)


def inputs(B=1, F=1, N=68, H=1, D=80, M=70, C=24, dtype=torch.bfloat16):
    """q, k, v, q_ref, k_ref, v_ref, w_out, w_ref, and the derivative by the result."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(B, F, N, H, D)] * 4 + [(B, M, H, D)] * 2 + [(C, H * D)] * 2 + [(B, F, N, C)]
    tensors = [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]
    tensors[-1] /= C**0.5
    return tensors


def eager(tensors, dtype=torch.float64):
    """By name, the derivatives of the plain formula in `dtype`."""
    *attention, w_out, w_ref, grad = (t.detach().to(dtype) for t in tensors)
    leaves = [t.requires_grad_() for t in attention]
    out = reference_attention(*leaves, w_out, None, w_ref, None, backend="eager")
    return dict(zip(NAMES, torch.autograd.grad(out, leaves, grad), strict=True))


def forward(tensors):
    """What the forward keeps, from float64: `both` in the tensors' dtype, `lse` in float32."""
    q, k, v, q_ref, k_ref, v_ref = (t.double() for t in tensors[:6])
    parts, sums = [], []
    for queries, keys, values in ((q, k, v), (q_ref, k_ref[:, None], v_ref[:, None])):
        keys, values = (x.expand(*q.shape[:2], -1, -1, -1) for x in (keys, values))
        scores = torch.einsum("bfnhd, bfmhd -> bfhnm", queries, keys) / q.shape[-1] ** 0.5
        parts.append(torch.einsum("bfhnm, bfmhd -> bfnhd", scores.softmax(-1), values))
        sums.append(scores.logsumexp(-1))
    both = torch.cat(parts, 3).flatten(3).flatten(0, 1)
    return both.to(tensors[0].dtype), torch.cat(sums, 2).flatten(0, 1).float()


def delta(d_both, both, lse, H, first_head, heads):
    """As triton_backward._delta, whose kernel needs a GPU: NaN where it writes nothing."""
    sums = (d_both.float() * both.float()).unflatten(2, (2 * H, -1)).sum(3).mT
    found = torch.full_like(lse, float("nan"))
    found[:, first_head : first_head + heads] = sums[:, first_head : first_head + heads]
    return found


def derivatives(tensors, wanted=OWN + REF, scale=None, **edited):
    """By name, those wanted, from fresh memory that holds NaN. `edited` are modules in place of a kernel's own."""
    kernels = {"keys_kernel": gluon_keys_kernel, "queries_kernel": gluon_queries_kernel, **edited}
    torch.use_deterministic_algorithms(True)
    try:
        with pytest.MonkeyPatch.context() as patch:
            for name, module in kernels.items():
                patch.setattr(gluon_backward, name, OnCPU(module, name))
            patch.setattr(triton_backward, "_delta", delta)
            *attention, w_out, w_ref, grad = tensors
            of_queries, dk, dv, dkr, dvr = triton_backward.attend_backward(
                grad, *attention, w_out, w_ref, *forward(tensors), scale or tensors[0].shape[-1] ** -0.5,
                [name in wanted for name in NAMES], gluon_backward.launch_keys, gluon_backward.launch_queries,
            )  # fmt: skip
    finally:
        torch.use_deterministic_algorithms(False)
    dq, dqr = of_queries.unbind(3) if of_queries.numel() else (of_queries, of_queries)
    found = [dq, dk, dv, dqr, dkr, dvr]
    of_pairs = [(x, name) for x, name in zip(found, NAMES, strict=True) if name not in ("q", "q_ref")]
    assert [x.numel() > 0 for x, _ in of_pairs] == [name in wanted for _, name in of_pairs]
    assert bool(of_queries.numel()) == bool({"q", "q_ref"} & set(wanted))
    return {name: x for name, x in zip(NAMES, found, strict=True) if name in wanted}


def beyond(tensors, found):
    """Names of derivatives more than twice as far from float64 as those of the plain formula, and half a rounding."""
    exact, plain = eager(tensors), eager(tensors, tensors[0].dtype)
    slack = torch.finfo(tensors[0].dtype).eps / 2

    def error(name, x):
        return (x.double() - exact[name]).norm().item() / exact[name].norm().item()

    return {name for name, x in found.items() if not error(name, x) <= 2 * error(name, plain[name]) + slack}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("D", gluon_tiles.KEYS)
@pytest.mark.parametrize(("N", "M"), [(4, 2), (64, 129), (132, 64), (256, 100), (68, 420)])
def test_parity(D, N, M, dtype):
    """One block and many, tails and none, more steps than stages, a warpgroup without a key."""
    tensors = inputs(F=2, N=N, M=M, D=D, dtype=dtype)
    assert beyond(tensors, derivatives(tensors)) == set()


@pytest.mark.parametrize("D", gluon_tiles.KEYS)
def test_clips_frames_and_heads(D):
    tensors = inputs(B=2, F=3, N=20, H=2, M=35, D=D)
    assert beyond(tensors, derivatives(tensors)) == set()


@pytest.mark.parametrize("wanted", [OWN, REF, ("v",), ("k_ref",), ("k", "v_ref")])
def test_a_branch_that_is_not_wanted_is_not_computed(wanted, monkeypatch):
    """It has no programs, and what is read of it would be NaN."""
    programs = []
    launch = gluon_backward.launch
    monkeypatch.setattr(
        gluon_backward, "launch", lambda kernel, n, *rest, **kw: (programs.append(n), launch(kernel, n, *rest, **kw))
    )
    tensors = inputs(B=2, F=3, N=20, H=2, M=150)
    assert beyond(tensors, derivatives(tensors, wanted=wanted)) == set()
    own, ref = any(n in wanted for n in OWN), any(n in wanted for n in REF)
    assert programs == [own * 2 * 3 * 2 + ref * 2 * 2 * 2]  # 20 keys are one block, 150 are two


def test_weights_that_underflow():
    """Logits far below zero: the sum of exp is 0 in float32, its log is not."""
    tensors = inputs(N=40, M=150, D=40, dtype=torch.float16)
    for i in (0, 1, 3, 4):  # queries positive, keys negative
        tensors[i] = (tensors[i].abs() + 4) * (1 if i in (0, 3) else -1)
    assert forward(tensors)[1].max() < -80
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


def test_any_strides():
    tensors = inputs(B=2, N=12, M=12, D=40)
    tensors[0] = torch.nn.functional.pad(tensors[0], (0, 3))[..., :-3]
    tensors[1] = tensors[1].transpose(-1, -2).contiguous().transpose(-1, -2)
    tensors[2] = tensors[2][:, :, :1].expand(tensors[2].shape)  # of its strides, one is 0
    dense = derivatives([x.contiguous() for x in tensors])
    torch.testing.assert_close(derivatives(tensors), dense, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("sizes", "served"),
    [({}, True), ({"N": 66}, False), ({"D": 160}, False), ({"D": 48}, False), ({"dtype": torch.float32}, False)],
)
def test_what_it_serves(sizes, served):
    assert gluon_backward.serves_keys(inputs(**sizes)[0]) == served


LEFT = "        mbarrier.arrive(free.index(stage))\n"
OVER = "        dk0, dk1, dv0, dv1 = warpgroup_mma_wait(0, deps=(dk0, dk1, dv0, dv1))\n"
# An edit of the kernel, and what the stand-in says of it; "" where only parity can tell.
FAULTS = {
    "keys not waited for": ("    mbarrier.wait(kv_full, 0)\n", "", TOO_EARLY),
    "queries not waited for": ("        mbarrier.wait(full.index(stage), (step // STAGES) & 1)\n", "", ANY),
    "wrong phase": ("(step // STAGES) & 1", "(step // STAGES + 1) & 1", ANY),
    "wrong phase of the producer": ("(step // STAGES + 1) & 1", "(step // STAGES) & 1", STUCK),
    "stage filled while it is read": ("mbarrier.wait(free.index(stage), (step // STAGES + 1) & 1)", "pass", ANY),
    "stage left before its products are over": (OVER + LEFT, LEFT + OVER, TOO_LATE),
    "stage left by all but one warpgroup": ("count=WARPGROUPS", "count=WARPGROUPS - 1", ANY),
    "stage never left": (LEFT, "", STUCK),
    "scores used too early": ("scores = warpgroup_mma_wait(2,", "scores = warpgroup_mma_wait(3,", UNFINISHED),
    "their derivatives used too early": ("d_weights = warpgroup_mma_wait(2,", "d_weights = warpgroup_mma_wait(3,", ANY),
    "too few bytes of keys expected": ("2 * WARPGROUPS * k.block", "WARPGROUPS * k.block", ANY),
    "too few bytes of queries expected": ("2 * q.block_type.nbytes", "q.block_type.nbytes", ANY),
    "too many bytes of queries expected": ("2 * q.block_type.nbytes", "3 * q.block_type.nbytes", STUCK),
    "one frame short": ("0, 0, F, F, h", "0, 0, F - 1, F, h", STUCK),
    "rows' sums of the first frame": ("(b * F + f) * 2 * H", "(b * F + first_frame) * 2 * H", ""),
    "derivatives of the own branch": ("F, F, h, H + h, H", "F, F, h, h, H", ""),
    "reference keys in the own branch": ("if own:", "if not own:", ANY),
    "half of the channels": ("right.slice(D0, D1, 0)", "right.slice(0, D1, 0)", ""),
    "half of the sums' channels": ("right.slice(D0, D1, 1)", "right.slice(0, D1, 1)", ""),
    "keys of another warpgroup": (
        "first_key + group * KEYS, 0], kv_full, v_tiles",
        "first_key, 0], kv_full, v_tiles",
        "",
    ),
    "no scale": ("dk1 * scale", "dk1", ""),
    "powers of e": ("weights = gl.exp2(scores * score_scale", "weights = gl.exp2(scores * scale", ""),
    "no row sums": ("d_weights - gl.expand_dims(row_delta, 0)", "d_weights", ""),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_show(fault, tmp_path):
    right, wrong, message = FAULTS[fault]
    edited = edited_kernel(tmp_path, {right: wrong}, gluon_keys_kernel)
    tensors = inputs(F=2, N=260, M=150)
    if message:
        with pytest.raises(KernelError, match=message):
            derivatives(tensors, keys_kernel=edited)
    else:
        assert beyond(tensors, derivatives(tensors, keys_kernel=edited))


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_scale_does_not_pass(dtype):
    tensors = inputs(dtype=dtype)
    assert beyond(tensors, derivatives(tensors, scale=1.02 * 80**-0.5)) == {*OWN, *REF}
