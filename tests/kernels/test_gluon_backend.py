"""Where the Gluon backend refuses to run, and its way through the operator, on CPU tensors."""

import importlib
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from xdyna_kernels import reference_attention

pytest.importorskip("triton")

from xdyna_kernels import gluon_forward, gluon_kernel, triton_projection

sys.path.insert(0, str(Path(__file__).parent))
import invariants
from gluon_on_cpu import OnCPU

contract = importlib.import_module("xdyna_kernels.reference_attention")  # as an attribute, it is the function


def inputs(D=40, dtype=torch.bfloat16):
    shapes = [(1, 2, 35, 2, D)] * 4 + [(1, 50, 2, D)] * 2 + [(12, 2 * D), (12,), (12, 2 * D), (12,), (1, 2, 35, 12)]
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (inputs(), "backend 'gluon' needs an NVIDIA GPU, q is on cpu"),
        (inputs(dtype=torch.float32), "backend 'gluon' needs float16 or bfloat16, q is torch.float32"),
        (inputs(D=48), "backend 'gluon' needs heads of 40, 80 or 160 channels, q has 48"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_where_it_cannot_run_it_says_why(tensors, message, compiled):
    call = torch.compile(reference_attention, backend="eager") if compiled else reference_attention
    with pytest.raises(ValueError, match=message):
        call(*tensors, backend="gluon")


@pytest.mark.parametrize("capability", [(8, 0), (10, 0), (12, 0)])
def test_other_chips_are_named(capability, monkeypatch):
    monkeypatch.setattr(contract, "_why_not_triton", lambda q, interpreted: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    message = rf"backend 'gluon' needs compute capability \(9, 0\), cpu has \({capability[0]}, 0\)"
    with pytest.raises(ValueError, match=message):
        reference_attention(*inputs(), backend="gluon")


@pytest.mark.parametrize(
    ("N", "D", "taken"),
    [
        (448, 40, "gluon"),
        (447, 40, None),
        (7168, 160, "gluon"),
        (112, 160, "triton"),
        (448, 88, None),  # never timed, as all that follow
        (7168, 128, None),
        (5, 80, None),
        (5, 72, None),
    ],
)
def test_default_backend_is_what_was_timed_fastest(N, D, taken, monkeypatch):
    """As on an H100; None is an answer of PyTorch's own."""
    launched = []

    def forward(q, *rest):
        launched.append(rest[-1])
        return (q.new_empty(1),)

    monkeypatch.setattr(contract, "_why_not_triton", lambda q, interpreted: None)
    monkeypatch.setattr(contract, "_proven", lambda q: True)
    monkeypatch.setattr(contract, "_chip_and_dtype", lambda q: ("sm_90", torch.bfloat16))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(contract.triton_operator, "forward", forward)
    q, w = torch.zeros(1, 1, N, 1, D, dtype=torch.bfloat16), torch.zeros(8, D, dtype=torch.bfloat16)
    reference_attention(q, q, q, q, q[:, 0], q[:, 0], w, None, w, None)
    assert launched == ([] if taken is None else [taken])


@pytest.mark.parametrize("backend", ["gluon", "sdpa", None])
def test_the_backward_alone_is_refused_where_it_cannot_run(backend, monkeypatch):
    monkeypatch.setattr(contract, "_why_not_gluon", lambda q: None)
    with pytest.raises(ValueError, match="backward 'gluon' needs an NVIDIA GPU, q is on cpu"):
        reference_attention(*inputs(), backend=backend, backward="gluon")


def project(both, w_out, b_out, w_ref, b_ref, residual):
    """As triton_projection.project, whose kernel needs a GPU."""
    own, ref = both.flatten(0, 1).chunk(2, dim=1)  # [B*F*N, H*D]
    return (own @ w_out.mT + ref @ w_ref.mT + b_out + b_ref + residual.flatten(0, 2)).contiguous()


@pytest.fixture
def on_cpu(monkeypatch):
    monkeypatch.setattr(contract, "_why_not_gluon", lambda q: None)
    monkeypatch.setattr(gluon_forward, "attend_kernel", OnCPU(gluon_kernel))
    monkeypatch.setattr(gluon_forward, "multiprocessors", lambda on: 3)
    monkeypatch.setattr(triton_projection, "project", project)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.usefixtures("on_cpu")
def test_result_and_derivatives(dtype):
    """At most twice the plain formula's error in the same dtype; recomputed derivatives are those of "sdpa" itself."""
    results = {}
    for name, precision in (("gluon", dtype), ("eager", dtype), ("sdpa", dtype), ("exact", torch.float64)):
        leaves = [t.to(precision).requires_grad_() for t in inputs(dtype=dtype)]
        out = reference_attention(*leaves, backend="eager" if name == "exact" else name)
        results[name] = [out, *torch.autograd.grad(out, leaves, torch.ones_like(out))]
    exact = results["exact"][0]
    found, plain = ((results[name][0].double() - exact).norm() for name in ("gluon", "eager"))
    assert found <= 2 * plain
    for a, b in zip(results["gluon"][1:], results["sdpa"][1:], strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


@pytest.mark.parametrize("holds", invariants.ALL)
@pytest.mark.usefixtures("on_cpu")
def test_invariants(holds):
    shapes = [(2, 3, 5, 1, 40)] * 4 + [(2, 7, 1, 40)] * 2 + [(12, 40), (12,), (12, 40), (12,), (2, 3, 5, 12)]
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(shape, generator=generator).half() for shape in shapes]
    holds(partial(reference_attention, backend="gluon"), tensors, rtol=1e-2, atol=1e-2)


@pytest.mark.usefixtures("on_cpu")
def test_fake_tensors_need_no_kernel():
    with torch._subclasses.FakeTensorMode():
        out = reference_attention(*(torch.empty_like(t) for t in inputs()), backend="gluon")
    assert (out.shape, out.dtype) == ((1, 2, 35, 12), torch.bfloat16)
