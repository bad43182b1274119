"""The Triton backward against derivatives in float64: on a GPU, or in the interpreter (see test_triton_backend.py)."""

import math
import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from xdyna_kernels import reference_attention

ON_GPU = torch.cuda.is_available()
if not ON_GPU and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("test_triton_backend.py runs these in Triton's interpreter", allow_module_level=True)

from xdyna_kernels import triton_backward, triton_forward  # noqa: E402
from xdyna_kernels.triton_forward import attend  # noqa: E402

sys.path.insert(0, str(Path(__file__).parent))
from invariants import NAMES  # noqa: E402

# Triton 3.6's interpreter does this; numpy 2.3 warns and 2.4 refuses.
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")
DEVICE = "cuda" if ON_GPU else "cpu"
# The interpreter multiplies the raw bits of bfloat16.
DTYPES = [torch.float32, torch.float16, *([torch.bfloat16] if ON_GPU else [])]


def inputs(B=1, F=2, N=5, H=2, D=8, M=7, C=12, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, F, N, H, D)] * 4 + [(B, M, H, D)] * 2 + [(C, H * D), (C,), (C, H * D), (C,), (B, F, N, C)]
    return dict(zip(NAMES, (torch.randn(s, generator=generator).to(DEVICE, dtype) for s in shapes), strict=True))


@pytest.fixture(autouse=True, scope="module")
def _poisoned():
    """Fresh memory holds NaN, so that an element that no program writes shows, and one that should not be read."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(1).isnan()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def _untouched(monkeypatch):
    """Fresh memory stays as it is: what is never used then costs nothing."""
    monkeypatch.setattr(torch.utils.deterministic, "fill_uninitialized_memory", False)


def gradients(tensors, wanted=NAMES, dtype=None, **options):
    """Derivatives of a random weighting of the result, by name."""
    leaves: dict = {n: None if t is None else t.detach().to(dtype or t.dtype) for n, t in tensors.items()}
    wanted = [n for n in wanted if leaves[n] is not None]
    for name in wanted:
        leaves[name].requires_grad_()
    out = reference_attention(**leaves, **options)
    weights = torch.randn(out.shape, generator=torch.Generator().manual_seed(1)).to(out)
    return dict(zip(wanted, torch.autograd.grad((out * weights).sum(), [leaves[n] for n in wanted]), strict=True))


def beyond(tensors, wanted=NAMES, slack=2e-6, **options):
    """Names of derivatives more than twice as far from float64 as those of the plain formula, but for a small slack.

    The error is root mean square, relative to the tensor, or to 1 where that is less. The slack is half an ulp in
    half precision; in float32 it is 2e-6, unless told: a dozen roundings, which twice nothing is not.
    """
    exact = gradients(tensors, wanted, torch.float64, backend="eager")
    plain = gradients(tensors, wanted, backend="eager")
    found = gradients(tensors, wanted, **{"backend": "triton", "backward": "triton"} | options)
    slack = max(torch.finfo(tensors["q"].dtype).eps / 2, slack)

    def error(name, x):
        return (x.double() - exact[name]).norm().item() / max(exact[name].norm().item(), x.numel() ** 0.5)

    return {n for n, x in found.items() if not error(n, x) <= 2 * error(n, plain[n]) + slack}  # NaN is beyond


# A program of the interpreter takes about 10 ms a step: with these the largest case takes about a second.
SIZES = st.fixed_dictionaries(
    {"B": st.integers(1, 2), "F": st.integers(1, 3), "N": st.sampled_from([2, 17, 32, 47]), "H": st.integers(1, 2)}
    | {"D": st.sampled_from([8, 16, 24, 40, 80, 160]), "M": st.sampled_from([2, 31, 32, 64])}
    | {"C": st.sampled_from([1, 12, 64, 72])}
)


@pytest.mark.parametrize("dtype", DTYPES)
@settings(deadline=None, max_examples=6, phases=[Phase.reuse, Phase.generate])  # shrinking would take minutes
@given(
    sizes=SIZES,
    absent=st.sets(st.sampled_from(["b_out", "b_ref", "residual"])),
    wanted=st.one_of(st.just(set(NAMES)), st.sets(st.sampled_from(NAMES[:9]), min_size=1)),
    seed=st.integers(0, 99),
)
def test_parity(dtype, sizes, absent, wanted, seed):
    """Over sizes that tiles do not divide, with biases and residual missing, for all inputs or some."""
    tensors = inputs(**sizes, dtype=dtype, seed=seed)
    wanted = (wanted - absent) or {"q"}
    assert not beyond(tensors | dict.fromkeys(absent), [n for n in NAMES if n in wanted])


@pytest.mark.parametrize("sizes", [{"N": 128, "M": 64, "D": 80}, {"N": 111, "M": 145, "D": 40}])
def test_several_blocks(sizes):
    assert not beyond(inputs(F=1, H=1, C=40, **sizes))


def test_one_token_and_one_key():
    """Derivatives of a softmax over one key are zero, so their relative error says nothing: compared as they are."""
    tensors = inputs(N=1, M=1, D=24)
    exact = gradients(tensors, dtype=torch.float64, backend="eager")
    found = gradients(tensors, backend="triton", backward="triton")
    torch.testing.assert_close(found, {n: x.float() for n, x in exact.items()}, rtol=1e-5, atol=1e-5)


# Rows past the last key, which nobody stores, overflow in the interpreter as on a GPU; only numpy says so.
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning", "ignore:invalid value:RuntimeWarning")
def test_weights_that_underflow():
    """Logits some hundred apart, and all of them far below zero: the sum of exp is 0 in float32, its log is not.

    A stored log of about -1000 is good to half a unit in its last place, 3e-5, in base 2 and times ln 2 as well; the
    weights made from it are off by as much, of which the plain formula, which stores none, knows nothing.
    """
    tensors = inputs(N=17, M=33, D=40)
    tensors |= {"q": 4 * tensors["q"].abs() + 9, "k": -4 * tensors["k"].abs() - 9}
    tensors |= {"q_ref": 30 * tensors["q_ref"]}
    logits = torch.einsum("bfnhd, bfmhd -> bfhnm", tensors["q"], tensors["k"]) / 40**0.5
    assert -1500 < logits.min() < logits.max() < -500
    assert not beyond(tensors, slack=-logits.min().item() * torch.finfo(torch.float32).eps)


def test_the_backward_has_the_forwards_scale(monkeypatch):
    """Rounded first and then multiplied by log2 e, D = 40 has another one, and logits of 1000 weights 6e-5 off."""
    scales = {}

    def spy(kernel, programs, tile, *arguments, **constants):
        scales[kernel.__name__] = dict(zip(kernel.arg_names[: len(arguments)], arguments, strict=True))
        return launch(kernel, programs, tile, *arguments, **constants)

    launch = triton_forward.launch
    for module in (triton_forward, triton_backward):
        monkeypatch.setattr(module, "launch", spy)
    gradients(inputs(D=40), backend="triton", backward="triton")
    expected = scales["attend_kernel"]["scale"]
    assert expected == pytest.approx(math.log2(math.e) / 40**0.5)
    assert [scales[kernel]["score_scale"] for kernel in ("queries_kernel", "keys_kernel")] == [expected] * 2


@pytest.fixture
def launched(monkeypatch):
    """Names and program counts of the kernels that the backward launches."""
    found, launch = [], triton_backward.launch

    def spy(kernel, programs, *rest, **constants):
        found.append((kernel.__name__.removesuffix("_kernel"), programs))
        return launch(kernel, programs, *rest, **constants)

    monkeypatch.setattr(triton_backward, "launch", spy)
    return found


# For 2 heads of 3 frames, whose tokens are one block.
LAUNCHES = {
    ("q",): {"delta": 6, "queries": 6},
    ("q_ref",): {"delta": 6, "queries": 6},  # all that is left where the reference's features are frozen
    ("v",): {"delta": 6, "keys": 6},
    ("k_ref", "v_ref"): {"delta": 6, "keys": 2},
    ("q", "v_ref"): {"delta": 12, "queries": 6, "keys": 2},
    ("w_out", "b_out", "w_ref", "b_ref", "residual"): {},
    NAMES: {"delta": 12, "queries": 12, "keys": 8},
}


@pytest.mark.parametrize("wanted", LAUNCHES)
def test_no_program_runs_for_what_needs_no_derivative(wanted, launched):
    gradients(inputs(F=3), wanted, backend="triton", backward="triton")
    assert dict(launched) == LAUNCHES[wanted]


@pytest.mark.parametrize(("proven", "tf32", "taken"), [(False, False, False), (True, False, True), (True, True, False)])
def test_default_is_what_has_been_proven(proven, tf32, taken, launched, monkeypatch):
    monkeypatch.setattr(sys.modules["xdyna_kernels.reference_attention"], "_proven", lambda q: proven)
    monkeypatch.setattr(torch.backends.cuda, "matmul", SimpleNamespace(fp32_precision="tf32" if tf32 else "ieee"))
    gradients(inputs(), backend="triton")
    assert bool(launched) == taken


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_wrong_scale_does_not_pass(dtype, monkeypatch):
    tensors = inputs(N=33, D=40, dtype=dtype)
    right = triton_backward.attend_backward
    slightly = 1.0001 if dtype == torch.float32 else 1.02

    def wrong(*arguments):
        *rest, scale, needed, by_keys, by_queries = arguments
        return right(*rest, scale * slightly, needed, by_keys, by_queries)

    monkeypatch.setattr(triton_backward, "attend_backward", wrong)
    assert beyond(tensors) >= {"q", "k", "q_ref", "k_ref"}


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_dropped_frame_does_not_pass(dtype, monkeypatch):
    """The last frame's queries left out of what the reference's keys and values sum."""
    tensors = inputs(F=3, N=33, D=40, dtype=dtype)
    right = triton_backward.attend_backward

    def wrong(grad, *rest):
        dropped = grad.clone()
        dropped[:, -1] = 0
        return [*right(grad, *rest)[:3], *right(dropped, *rest)[3:]]

    monkeypatch.setattr(triton_backward, "attend_backward", wrong)
    assert beyond(tensors) == {"k_ref", "v_ref"}


def test_views_of_one_packed_projection():
    """q, k, v, q' out of one tensor, keys and values of frame 0: its derivative gathers those of all six."""
    found = []
    packed = torch.randn(2, 3, 9, 4, 2, 40, device=DEVICE)
    rest = list(inputs(B=2, F=3, N=9, D=40).values())[6:]
    for options in ({"backend": "eager"}, {"backend": "triton", "backward": "triton"}):
        leaf = packed.clone().requires_grad_()
        q, k, v, q_ref = leaf.unbind(3)
        out = reference_attention(q, k, v, q_ref, k[:, 0], v[:, 0], *rest, **options)
        found.append(torch.autograd.grad(out.square().sum(), leaf)[0])
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_strides_that_are_copied():
    tensors = inputs(B=2, N=9, M=9)
    gapped = {n: torch.nn.functional.pad(t, (0, 3))[..., :-3] for n, t in tensors.items() if t.ndim > 3}
    gapped["v"] = tensors["v"][:, :1].expand(tensors["v"].shape)  # of its strides, one is 0
    tensors["v"] = gapped["v"].contiguous()
    options = {"backend": "triton", "backward": "triton"}
    torch.testing.assert_close(gradients(tensors | gapped, **options), gradients(tensors, **options), rtol=0, atol=0)


@pytest.mark.parametrize("layout", [lambda x: x[..., :1].expand(x.shape), lambda x: x.mT.contiguous().mT])
def test_any_strides_of_the_incoming_derivative(layout):
    tensors = [t.requires_grad_() for t in inputs().values()]
    out = reference_attention(*tensors, backend="triton", backward="triton")
    grad = layout(torch.randn(out.shape, device=DEVICE))
    found = [torch.autograd.grad(out, tensors, g, retain_graph=True) for g in (grad, grad.contiguous())]
    for name, one, other in zip(inputs(), *found, strict=True):
        # The kernels read the same numbers; the biases' are sums by PyTorch, whose order follows the strides.
        exact = {} if name in ("b_out", "b_ref") else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(one, other, **exact)


@pytest.mark.usefixtures("_untouched")
def test_offsets_past_32_bits():
    """Of 8 GiB, a few pages are used."""
    far = torch.empty(2**32 + 1024, dtype=torch.float16, device=DEVICE)
    x = far.as_strided((1, 2, 3, 1, 8), (8, 2**31, 16, 8, 1))
    x.copy_(torch.randn(x.shape))
    weights, grad = torch.eye(8, dtype=x.dtype, device=DEVICE), torch.randn(1, 2, 3, 8).to(x)
    far = (x, x, x, x, x[:, 0], x[:, 0])
    found = []
    for tensors in (far, [t.contiguous() for t in far]):
        both, lse = attend(*tensors, 0.3)
        found.append(triton_backward.attend_backward(grad, *tensors, weights, weights, both, lse, 0.3, [True] * 6))
    torch.testing.assert_close(*found, rtol=0, atol=0)


def test_same_in_every_run():
    tensors = inputs(F=3, N=33, M=40)
    options = {"backend": "triton", "backward": "triton"}
    torch.testing.assert_close(gradients(tensors, **options), gradients(tensors, **options), rtol=0, atol=0)
