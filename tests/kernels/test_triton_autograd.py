"""The Triton backward as a part of autograd: on a GPU, or in the interpreter (see test_triton_backend.py)."""

import functools
import itertools
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import checkpoint
from xdyna_kernels import reference_attention

if not torch.cuda.is_available() and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("test_triton_backend.py runs these in Triton's interpreter", allow_module_level=True)

sys.path.insert(0, str(Path(__file__).parent))
from test_triton_gradients import DEVICE, NAMES, _poisoned, gradients, inputs

assert _poisoned  # a fixture of this module, too
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")


@pytest.mark.parametrize("backward", ["triton", "recompute"])
def test_autocast_around_the_backward_changes_nothing(backward):
    found = []
    for enabled in (False, True):
        leaves = [x.requires_grad_() for x in inputs().values()]
        loss = reference_attention(*leaves, backend="triton", backward=backward).square().sum()
        with torch.autocast(DEVICE, torch.bfloat16, enabled=enabled):
            found.append(torch.autograd.grad(loss, leaves))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def peak_memory(call) -> int:
    """Bytes that a call has from PyTorch at once, beside what was there before."""
    if DEVICE == "cuda":
        call()
        before = torch.cuda.memory_stats()["requested_bytes.all.current"]
        torch.cuda.reset_peak_memory_stats()
        call()
        return torch.cuda.memory_stats()["requested_bytes.all.peak"] - before
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        call()
    results: Any = profile.profiler and profile.profiler.kineto_results
    events = results.events()
    return max(itertools.accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events:UserWarning")
def test_memory_of_all_derivatives():
    """What has to be there at once: the result, which the caller holds; both attentions and their derivatives, which
    become those of the queries; derivatives of keys and values; two numbers a row. No zeros for what has none."""
    B, F, N, H, D = 1, 17, 64, 2, 8
    leaves = [x.requires_grad_() for x in inputs(B, F, N, H, D, M=N, C=H * D).values()]
    grad = torch.ones(B, F, N, H * D, device=DEVICE)
    peak = peak_memory(
        lambda: torch.autograd.grad(reference_attention(*leaves, backend="triton", backward="triton"), leaves, grad)
    )
    clip, reference, rows = grad.nbytes, grad[:, 0].nbytes, 2 * H * 4 * B * F * N
    expected = clip * (1 + 2 + 2 + 2) + 2 * reference + 2 * rows
    assert expected <= peak < 1.02 * expected  # derivatives of weights and biases


@pytest.mark.parametrize("backward", ["triton", "recompute"])
def test_under_gradient_checkpointing(backward):
    """Which computes the forward again, and hands out what was saved once."""
    leaves = [t.requires_grad_() for t in inputs().values()]
    call = functools.partial(reference_attention, backend="triton", backward=backward)
    again: Any = checkpoint(call, *leaves, use_reentrant=False)
    plain, found = (torch.autograd.grad(out.square().sum(), leaves) for out in (call(*leaves), again))
    torch.testing.assert_close(found, plain, rtol=0, atol=0)


# PyTorch's own rules for them are scripts.
@pytest.mark.filterwarnings("ignore:`torch.jit.script` is deprecated:DeprecationWarning")
def test_forward_mode_derivatives_are_refused_and_not_dropped():
    """An operator has no rule for them: without a word they would be zero."""
    tensors = inputs()
    call = functools.partial(reference_attention, backend="triton")
    tangents = tuple(torch.ones_like(x) for x in tensors.values())
    with pytest.raises(ValueError, match="backend 'triton' has no forward-mode derivatives; backend='eager' has"):
        torch.func.jvp(call, tuple(tensors.values()), tangents)
    with forward_ad.dual_level():
        duals = [forward_ad.make_dual(x, dx) for x, dx in zip(tensors.values(), tangents, strict=True)]
        with pytest.raises(ValueError, match="no forward-mode derivatives"):
            call(*duals)
        found = forward_ad.unpack_dual(reference_attention(*duals, backend="eager")).tangent
    assert found is not None
    assert found.abs().max() > 1


@pytest.mark.parametrize("inner", ["jvp", "grad"])
def test_forward_mode_around_another_derivative_is_refused_too(inner):
    """The tensors show only the innermost."""
    q, *others = inputs().values()
    one = torch.ones(())

    def within(backend):
        def scaled(x, z):
            return reference_attention(x, *others, backend=backend) * z

        if inner == "grad":
            return lambda x: torch.func.grad(lambda z: scaled(x, z).sum())(one)
        return lambda x: torch.func.jvp(lambda z: scaled(x, z), (one,), (one,))[1]

    assert torch.func.jvp(within("eager"), (q,), (torch.ones_like(q),))[1].abs().max() > 1
    with pytest.raises(ValueError, match="no forward-mode derivatives"):
        torch.func.jvp(within("triton"), (q,), (torch.ones_like(q),))


class _Without(torch.autograd.Function):
    """The same, of which nothing has a derivative."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, *grads):
        return None


def test_of_a_result_without_a_derivative_there_is_none():
    leaves = [x.requires_grad_() for x in inputs().values()]
    out: Any = _Without.apply(reference_attention(*leaves, backend="triton", backward="triton"))
    assert torch.autograd.grad(out.sum(), leaves, allow_unused=True) == (None,) * len(leaves)


def test_no_two_derivatives_share_memory():
    """Or what is done to all in place, such as scaling them, is done to one twice."""
    found = gradients(inputs(), backend="triton", backward="triton")
    before = {name: x.clone() for name, x in found.items()}
    for x in found.values():
        x.mul_(2)
    torch.testing.assert_close(found, {name: 2 * x for name, x in before.items()}, rtol=0, atol=0)


@pytest.mark.parametrize("backward", ["triton", "recompute"])
def test_second_derivatives_are_those_of_sdpa(backward):
    """Also where the reference is a view of the keys, so that they count once by each of the two ways."""
    results = []
    for options in ({"backend": "eager"}, {"backend": "triton", "backward": backward}):
        q, k, v, q_ref, _, _, *rest = (t.requires_grad_() for t in inputs(D=16).values())
        with sdpa_kernel(SDPBackend.MATH):
            out = reference_attention(q, k, v, q_ref, k[:, 0], v[:, 0], *rest, **options)
            first = torch.autograd.grad(out.square().sum(), [q, k, v, q_ref, *rest], create_graph=True)
            second = torch.autograd.grad(sum(x.square().sum() for x in first[:4]), [q, k, v, q_ref])
        results.append([*first, *second])
    for found, exact in zip(*reversed(results), strict=True):
        assert (found - exact).norm() < 2e-6 * max(exact.norm(), exact.numel() ** 0.5)


@pytest.mark.parametrize("backward", ["triton", "recompute"])
def test_what_is_kept_for_the_backward(backward):
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)), lambda x: x):
        leaves = [t.requires_grad_() for t in inputs().values()]
        reference_attention(*leaves, backend="triton", backward=backward)
    read = [tuple(t.shape) for t, name in zip(leaves, NAMES, strict=True) if name not in ("b_out", "b_ref", "residual")]
    beside = [(2, 5, 32), (2, 4, 5)]  # both, lse
    assert kept == read + (beside if backward == "triton" else [])


@pytest.mark.parametrize(("backend", "backward"), [("triton", "triton"), ("triton", "recompute"), ("eager", None)])
def test_what_goes_in_and_comes_out_may_be_changed_in_place(backend, backward):
    """The result, and of what is given all that no derivative reads."""
    tensors = inputs()
    leaves = [t.requires_grad_() for t in tensors.values()]
    *attention, w_out, b_out, w_ref, b_ref, residual = leaves
    added = [b_out * 1, b_ref * 1, residual * 1]
    out = reference_attention(
        *attention, w_out, added[0], w_ref, added[1], added[2], backend=backend, backward=backward
    )
    for x in (*added, out):
        x += 1
    found = torch.autograd.grad(out.square().sum(), leaves)
    exact = torch.autograd.grad((reference_attention(*leaves, backend="eager") + 1).square().sum(), leaves)
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("wanted", ["b_out", "b_ref", "residual"])
def test_a_bias_alone_can_be_trained(wanted):
    tensors = inputs()
    tensors[wanted].requires_grad_()
    out, exact = (reference_attention(*tensors.values(), backend=name).square().sum() for name in ("triton", "eager"))
    (exact,) = torch.autograd.grad(exact, tensors[wanted])
    tensors["q"] += 1  # which its derivative does not read
    (found,) = torch.autograd.grad(out, tensors[wanted])
    torch.testing.assert_close(found, exact, rtol=1e-4, atol=1e-3)


def test_gradients_in_a_batch():
    leaves = [t.requires_grad_() for t in inputs().values()]
    of_each = []
    for options in ({"backend": "triton", "backward": "recompute"}, {"backend": "eager"}):
        out = reference_attention(*leaves, **options)
        grads = torch.stack([torch.ones_like(out), out.detach()])
        of_each.append(torch.autograd.grad(out, leaves, grads, is_grads_batched=True))
    torch.testing.assert_close(*of_each, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("backward", ["triton", "recompute"])
def test_operator_registration(backward):
    tensors = [t.requires_grad_() for t in inputs(F=1, H=1).values()]
    operator = torch.ops.xdyna.reference_attention_triton.default
    report = torch.library.opcheck(operator, (*tensors[:7], None, *tensors[8:], backward))
    assert set(report.values()) == {"SUCCESS"}


class Module(torch.nn.Module):
    def forward(self, *tensors):
        return reference_attention(*tensors, backend="triton", backward="triton")


@pytest.mark.parametrize("compiler", ["aot_eager", "inductor"])
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:TensorFloat32 tensor cores:UserWarning")
def test_compile(compiler, tmp_path, monkeypatch):
    if compiler == "inductor" and DEVICE == "cpu" and shutil.which(os.environ.get("CXX", "g++")) is None:
        pytest.skip("Inductor needs a C++ compiler")
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    tensors = [t.requires_grad_() for t in inputs().values()]
    compiled = torch.compile(Module(), fullgraph=True, backend=compiler)
    found, plain = compiled(*tensors), reference_attention(*tensors, backend="eager")
    torch.testing.assert_close(found, plain, rtol=1e-4, atol=1e-4)
    of_each = [torch.autograd.grad(out.square().sum(), tensors) for out in (found, plain)]
    torch.testing.assert_close(*of_each, rtol=1e-4, atol=1e-3)
