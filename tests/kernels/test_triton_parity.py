"""The Triton kernels against the plain formula: on a GPU, or in the interpreter, started by test_triton_backend.py."""

import contextlib
import functools
import os
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from xdyna_kernels import reference_attention

ON_GPU = torch.cuda.is_available()
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("test_triton_backend.py runs these in Triton's interpreter", allow_module_level=True)

from xdyna_kernels import triton_forward, triton_projection  # noqa: E402
from xdyna_kernels.triton_forward import attend, readable  # noqa: E402
from xdyna_kernels.triton_projection import project  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
import invariants  # noqa: E402
from invariants import NAMES  # noqa: E402

# Triton 3.6's interpreter does this; numpy 2.3 warns and 2.4 refuses.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
DEVICE = "cuda" if ON_GPU else "cpu"
# The interpreter multiplies the raw bits of bfloat16.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ON_GPU else [])]


def inputs(B=1, F=2, N=5, H=2, D=8, M=7, C=12, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, F, N, H, D)] * 4 + [(B, M, H, D)] * 2 + [(C, H * D), (C,), (C, H * D), (C,), (B, F, N, C)]
    return [torch.randn(shape, generator=generator).to(DEVICE, dtype) for shape in shapes]


@contextlib.contextmanager
def poisoned():
    """Fresh memory holds NaN, so that an element that no program writes shows."""
    torch.use_deterministic_algorithms(True)
    try:
        assert torch.empty(1).isnan()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def with_gradients(tensors, backend, dtype):
    """The result in `dtype`, and the derivatives of a random weighting of it."""
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_() for t in tensors]
    with poisoned() if backend == "triton" else contextlib.nullcontext():
        out = reference_attention(*leaves, backend=backend)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return [out, *torch.autograd.grad((out * weights).sum(), [t for t in leaves if t is not None])]


def errors(found, exact):
    """Root mean square error of each tensor, relative to the tensor, or to 1 where that is less."""
    size = ((b.numel() ** 0.5, b.norm().item()) for b in exact)
    return [((a.double() - b).norm().item() / max(s)) for a, b, s in zip(found, exact, size, strict=True)]


def good_enough(found, plain, exact):
    """No tensor more than twice as far from float64 as the plain formula in the same dtype, but for a small slack.

    In half precision the slack is half an ulp. In float32 it is 2e-6: a dozen roundings, which twice nothing is not.
    """
    slack = max(torch.finfo(found[0].dtype).eps / 2, 2e-6)
    pairs = zip(errors(found, exact), errors(plain, exact), strict=True)
    return all(mine <= 2 * theirs + slack for mine, theirs in pairs)


# Each program of the interpreter takes about 10 ms a step: with these the largest case takes about a second.
SIZES = st.fixed_dictionaries(
    {"B": st.integers(1, 2), "F": st.integers(1, 2), "N": st.sampled_from([2, 17, 32, 63]), "H": st.integers(1, 2)}
    | {"D": st.sampled_from([8, 16, 24, 40, 80, 160]), "M": st.sampled_from([2, 32, 63, 64, 111])}
    | {"C": st.sampled_from([1, 12, 64, 72])}
)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=10, phases=[Phase.reuse, Phase.generate])  # shrinking would take minutes
@given(sizes=SIZES, absent=st.sets(st.sampled_from(["b_out", "b_ref", "residual"])), seed=st.integers(0, 99))
def test_parity(dtype, sizes, absent, seed):
    """Forward and every derivative, over sizes that tiles do not divide, with biases and residual missing."""
    tensors = [
        None if name in absent else tensor
        for name, tensor in zip(NAMES, inputs(**sizes, dtype=dtype, seed=seed), strict=True)
    ]
    exact = with_gradients(tensors, "eager", torch.float64)
    plain = with_gradients(tensors, "eager", dtype)
    assert good_enough(with_gradients(tensors, "triton", dtype), plain, exact)


def test_several_blocks_of_queries_and_keys():
    tensors = inputs(F=1, N=111, H=1, D=40, M=145, C=40)
    exact = with_gradients(tensors, "eager", torch.float64)
    plain = with_gradients(tensors, "eager", torch.float32)
    assert good_enough(with_gradients(tensors, "triton", torch.float32), plain, exact)


def test_one_token_and_one_key():
    """Derivatives of a softmax over one key are zero, so their relative error says nothing: compared as they are."""
    tensors = inputs(N=1, M=1, D=24)
    exact, found = with_gradients(tensors, "eager", torch.float64), with_gradients(tensors, "triton", torch.float32)
    torch.testing.assert_close(found, [x.float() for x in exact], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_scale_does_not_pass(dtype):
    tensors = inputs(N=33, D=40, dtype=dtype)[:6]
    exact, plain = side_by_side(tensors, torch.float64), side_by_side(tensors, dtype)
    slightly = 1.0001 if dtype == torch.float32 else 1.02
    right, wrong = (attend(*tensors, scale)[0] for scale in (40**-0.5, 40**-0.5 * slightly))
    assert good_enough([right], [plain], [exact])
    assert not good_enough([wrong], [plain], [exact])


def side_by_side(tensors, dtype):
    """Both attentions in plain PyTorch, [B*F, N, 2*H*D], through projections that are identities."""
    B, F, N, H, D = tensors[0].shape
    eye = torch.eye(H * D, device=DEVICE, dtype=dtype)
    on, off = (eye, None), (torch.zeros_like(eye), None)
    tensors = [t.to(dtype) for t in tensors]
    parts = [reference_attention(*tensors, *w, backend="eager") for w in ((*on, *off), (*off, *on))]
    return torch.cat(parts, -1).view(B * F, N, 2 * H * D)


@pytest.mark.parametrize("D", [16, 40])  # at 40 the matrix product sums the weights
@pytest.mark.parametrize("logits", ["usual", "far below zero", "huge"])
def test_log_sum_exp(D, logits):
    q, k, v, q_ref, k_ref, v_ref = inputs(N=37, M=35, D=D)[:6]
    if logits == "far below zero":  # every one below -100, where exp is 0 in float16
        q, q_ref, k, k_ref = 4 * q.abs() + 4, 4 * q_ref.abs() + 4, -4 * k.abs() - 4, -4 * k_ref.abs() - 4
    elif logits == "huge":
        q, q_ref = 1e4 * q, 1e4 * q_ref
    with poisoned():
        both, lse = attend(q, k, v, q_ref, k_ref, v_ref, 0.25)
    own = 0.25 * torch.einsum("bfnhd, bfmhd -> bfhnm", q, k)
    ref = 0.25 * torch.einsum("bfnhd, bmhd -> bfhnm", q_ref, k_ref)
    assert logits != "far below zero" or max(own.max(), ref.max()) < -100
    torch.testing.assert_close(lse, torch.cat([x.logsumexp(-1) for x in (own, ref)], 2).flatten(0, 1))  # [B*F, 2*H, N]
    own = torch.einsum("bfhnm, bfmhd -> bfnhd", own.softmax(-1), v)
    ref = torch.einsum("bfhnm, bmhd -> bfnhd", ref.softmax(-1), v_ref)
    expected = torch.cat([own, ref], 3).flatten(3).flatten(0, 1)  # [B*F, N, 2*H*D]
    torch.testing.assert_close(both, expected, rtol=1e-4, atol=1e-5 if logits == "usual" else 1e-3)


def test_packed_projection_is_read_in_place():
    """q, k, v, q' out of one tensor, keys and values of frame 0: the way the model calls it. No copies."""
    packed = torch.randn(2, 2, 9, 4, 2, 40, device=DEVICE)
    q, k, v, q_ref = packed.unbind(3)
    views = [q, k, v, q_ref, k[:, 0], v[:, 0]]
    assert all(readable(x) is x for x in views)
    with poisoned():
        found, expected = (attend(*tensors, 0.2) for tensors in (views, [x.contiguous() for x in views]))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    "layout",
    {
        "channels not last": lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
        "channels 8 apart": lambda x: x[..., None].repeat_interleave(8, -1)[..., 0],
        "not aligned": lambda x: torch.cat([x.new_zeros(1), x.flatten()])[1:].view(x.shape),
        "odd row": lambda x: torch.nn.functional.pad(x, (0, 3))[..., :-3],
        "one row for all": lambda x: x[:, :1].expand(x.shape),
        "tokens first": lambda x: x.transpose(0, -3).contiguous().transpose(0, -3),
    }.items(),
    ids=lambda item: item[0],
)
def test_any_strides(layout):
    tensors = [layout[1](x) for x in inputs(B=2, N=9, D=8, C=8)[:6]]
    with poisoned():
        found = attend(*tensors, 0.3)[0]
    expected = attend(*(x.clone(memory_format=torch.contiguous_format) for x in tensors), 0.3)[0]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize(("frames", "tokens"), [(2**31, 16), (64, 2**30), (64, 2**31)])
def test_offsets_past_32_bits(frames, tokens):
    """Memory that is never touched costs nothing: of 8 GiB, a few pages are used."""
    far = torch.empty(2 * max(frames, tokens) + 1024, dtype=torch.float16, device=DEVICE)
    x = far.as_strided((1, 2, 3, 1, 8), (8, frames, tokens, 8, 1))[:, :, : 2 if tokens == 2**31 else 3]
    x.copy_(torch.randn(x.shape))
    keys = x[:, 0]
    found = attend(x, x, x, x, keys, keys, 0.3)
    x = x.contiguous()
    torch.testing.assert_close(found, attend(x, x, x, x, x[:, 0], x[:, 0], 0.3), rtol=0, atol=0)


def test_derivatives_where_the_reference_is_a_view_of_the_keys():
    """They count once by each of the two ways; the second derivatives are those of SDPA's plain form."""
    results = []
    for backend in ("eager", "triton"):
        q, k, v, q_ref, _, _, *rest = (t.requires_grad_() for t in inputs(D=16))
        with sdpa_kernel(SDPBackend.MATH):
            out = reference_attention(q, k, v, q_ref, k[:, 0], v[:, 0], *rest, backend=backend)
            first = torch.autograd.grad(out.square().sum(), [q, k, v, q_ref, *rest], create_graph=True)
            second = torch.autograd.grad(sum(x.square().sum() for x in first[:4]), [q, k, v, q_ref])
        results.append([*first, *second])
    assert max(errors(results[1], [x.double() for x in results[0]])) < 2e-6


class Module(torch.nn.Module):
    def forward(self, *tensors):
        return reference_attention(*tensors, backend="triton", backward="triton")


@pytest.mark.parametrize("holds", invariants.ALL)
def test_invariants(holds):
    holds(functools.partial(reference_attention, backend="triton"), inputs(B=2, F=3), rtol=1e-5, atol=1e-5)


def test_a_log_that_is_not_kept():
    tensors = inputs(N=37, M=35, D=40)[:6]
    with poisoned():
        (both, lse), (expected, _) = (attend(*tensors, 0.3, keep_lse=kept) for kept in (False, True))
    assert lse.shape == (0,)
    torch.testing.assert_close(both, expected, rtol=0, atol=0)


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    ("mode", "required", "kept"),
    [
        (torch.enable_grad, "w_ref", True),  # one of them is enough
        (torch.enable_grad, "residual", False),  # its derivative reads nothing
        (torch.enable_grad, None, False),
        (torch.no_grad, "q", False),
        (torch.inference_mode, "q", False),
    ],
)
def test_the_log_is_kept_where_a_derivative_may_be_asked_for(mode, required, kept, compiled, monkeypatch):
    found, right = [], triton_forward.attend
    monkeypatch.setattr(
        triton_forward, "attend", lambda *args, keep_lse: (found.append(keep_lse), right(*args, keep_lse))[1]
    )
    tensors = inputs()
    if required:
        tensors[NAMES.index(required)].requires_grad_()
    call = torch.compile(Module(), fullgraph=True, backend="aot_eager") if compiled else Module()
    with mode():
        out = call(*tensors)
    assert found == [kept]
    assert out.requires_grad == (mode is torch.enable_grad and required is not None)
    torch.testing.assert_close(out, reference_attention(*tensors, backend="eager"), rtol=1e-4, atol=1e-4)


class Allocations(TorchDispatchMode):
    """Shapes of what is allocated."""

    def __init__(self):
        super().__init__()
        self.shapes = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        out = function(*args, **(kwargs or {}))
        if not function.is_view:
            self.shapes.append(tuple(out.shape))
        return out


def test_nothing_is_allocated_beside_attention_and_the_result(monkeypatch):
    """Above all no copy of inputs, weights or biases; but for eight ones."""
    for module in (triton_forward, triton_projection):
        monkeypatch.setattr(module, "launch", lambda *arguments, **constants: None)
    *attention, w_out, b_out, w_ref, b_ref, residual = inputs(B=1, F=2, N=16, H=2, D=40, M=16, C=24)
    with Allocations() as found:
        both, _ = attend(*attention, 0.3, keep_lse=False)
        project(both, w_out, b_out, w_ref, b_ref, residual)
    assert found.shapes == [(2, 16, 160), (0,), (8,), (32, 24)]
