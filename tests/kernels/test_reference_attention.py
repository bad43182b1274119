"""Reference attention: both backends against each other, against what must hold, and under torch's own checks."""

import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xdyna_kernels import BACKENDS, reference_attention

sys.path.insert(0, str(Path(__file__).parent))
import invariants
from invariants import NAMES


def inputs(B=2, F=3, N=5, H=2, D=8, M=7, C=12, dtype=torch.float64, seed=0, grad=False):
    generator = torch.Generator().manual_seed(seed)
    shapes = [(B, F, N, H, D)] * 4 + [(B, M, H, D)] * 2 + [(C, H * D), (C,), (C, H * D), (C,), (B, F, N, C)]
    return [torch.randn(shape, generator=generator, dtype=dtype).requires_grad_(grad) for shape in shapes]


def by_hand(q, k, v, q_ref, k_ref, v_ref, w_out, b_out, w_ref, b_ref, residual):
    """One query at a time, straight from the formula."""
    B, F, N, H, D = q.shape
    out = residual.clone()
    for b in range(B):
        for f in range(F):
            for n in range(N):
                own, ref = [], []
                for h in range(H):
                    weights = torch.softmax(k[b, f, :, h] @ q[b, f, n, h] / D**0.5, 0)
                    own.append(weights @ v[b, f, :, h])
                    weights = torch.softmax(k_ref[b, :, h] @ q_ref[b, f, n, h] / D**0.5, 0)
                    ref.append(weights @ v_ref[b, :, h])
                out[b, f, n] += w_out @ torch.cat(own) + b_out + w_ref @ torch.cat(ref) + b_ref
    return out


@pytest.fixture(params=BACKENDS)
def backend(request):
    return request.param


def test_formula(backend):
    tensors = inputs()
    torch.testing.assert_close(reference_attention(*tensors, backend=backend), by_hand(*tensors), rtol=0, atol=1e-12)


@settings(deadline=None, max_examples=25)
@given(
    sizes=st.fixed_dictionaries(
        {"B": st.integers(1, 3), "F": st.integers(1, 4), "N": st.integers(1, 70), "H": st.integers(1, 3)}
        | {"D": st.sampled_from([4, 8, 40]), "M": st.integers(1, 70), "C": st.integers(1, 24)}
    ),
    absent=st.sets(st.sampled_from(["b_out", "b_ref", "residual"])),
    seed=st.integers(0, 99),
)
def test_backends_agree_forward_and_backward(sizes, absent, seed):
    # In float64: where N is 1 a derivative is exactly 0, and float32 would leave noise of any relative size.
    results = {}
    for name in BACKENDS:
        tensors = [
            None if n in absent else t
            for n, t in zip(NAMES, inputs(**sizes, dtype=torch.float64, seed=seed, grad=True), strict=True)
        ]
        out = reference_attention(*tensors, backend=name)
        given = [t for t in tensors if t is not None]
        results[name] = [out, *torch.autograd.grad(out.square().sum(), given)]
    for a, b in zip(results["eager"], results["sdpa"], strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_as_good_as_eager(backend, dtype):
    """Error against float64 at most twice what the plain formula makes in the same dtype."""
    exact = inputs(N=33, D=40, M=33, seed=3)
    rounded = [t.to(dtype) for t in exact]
    truth = by_hand(*(t.double() for t in rounded))
    error = (reference_attention(*rounded, backend=backend).double() - truth).abs().max()
    plain = (reference_attention(*rounded, backend="eager").double() - truth).abs().max()
    assert error <= 2 * plain


@pytest.mark.parametrize("holds", invariants.ALL)
def test_invariants(backend, holds):
    holds(partial(reference_attention, backend=backend), inputs(B=3, F=4))


def test_views_of_one_packed_projection(backend):
    """Keys and values of frame 0 as views, q k v q' out of one strided tensor: the way a model calls it."""
    packed = torch.randn(2, 3, 5, 4, 2, 8, dtype=torch.float64)
    q, k, v, q_ref = packed.unbind(3)
    weights = inputs()[6:]
    out = reference_attention(q, k, v, q_ref, k[:, 0], v[:, 0], *weights, backend=backend)
    copies = (x.contiguous() for x in (q, k, v, q_ref, k[:, 0], v[:, 0]))
    torch.testing.assert_close(out, reference_attention(*copies, *weights, backend=backend))


def test_gradients(backend):
    tensors = inputs(B=1, F=2, N=3, H=2, D=4, M=3, C=5, grad=True)
    assert torch.autograd.gradcheck(lambda *t: reference_attention(*t, backend=backend), tensors)


def test_operator_registration(backend):
    operator = torch.ops.xdyna.reference_attention.default
    tensors = inputs(dtype=torch.float32, grad=True)
    report = torch.library.opcheck(operator, (*tensors, backend, "recompute"))
    assert set(report.values()) == {"SUCCESS"}
    report = torch.library.opcheck(operator, (*tensors[:7], None, tensors[8], None, None, backend, "recompute"))
    assert set(report.values()) == {"SUCCESS"}


class Module(torch.nn.Module):
    def __init__(self, backend):
        super().__init__()
        self.backend = backend

    def forward(self, *tensors):
        return reference_attention(*tensors, backend=self.backend)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_compile(backend):
    tensors = inputs(dtype=torch.float32, grad=True)
    compiled = torch.compile(Module(backend), fullgraph=True)
    out, plain = compiled(*tensors), reference_attention(*tensors, backend=backend)
    torch.testing.assert_close(out, plain, rtol=0, atol=1e-5)
    found = torch.autograd.grad(out.square().sum(), tensors)
    for a, b in zip(found, torch.autograd.grad(plain.square().sum(), tensors), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_export(backend):
    tensors = tuple(inputs(dtype=torch.float32))
    program = torch.export.export(Module(backend), tensors).run_decompositions()
    torch.testing.assert_close(program.module()(*tensors), reference_attention(*tensors, backend=backend))


def test_fake_tensors(backend):
    with torch._subclasses.FakeTensorMode():
        out = reference_attention(*(t.to(torch.float16) for t in inputs()), backend=backend)
    assert out.shape == (2, 3, 5, 12)
    assert out.dtype == torch.float16


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("q", lambda t: t[0], r"q is \[3, 5, 2, 8\]"),
        ("q", lambda t: t[:, :0], r"q is \[2, 0, 5, 2, 8\]"),
        ("q", lambda t: t[:, :, :0], r"q is \[2, 3, 0, 2, 8\]"),
        ("q", lambda t: t[..., :0], r"q is \[2, 3, 5, 2, 0\]"),
        ("q", lambda t: t.long(), "q is .* torch.int64"),
        ("q", lambda t: t.to(torch.complex64), "q is .* torch.complex64"),
        ("q", lambda t: t.to(torch.float8_e4m3fn), "q is .* torch.float8_e4m3fn"),
        ("q", lambda t: t.to("meta"), "k is torch.float64 on cpu, q is torch.float64 on meta"),
        ("v", lambda t: t.to_sparse(), "v is torch.sparse_coo, expected a dense tensor"),
        ("k", lambda t: t.to("meta"), "k is torch.float64 on meta, q is torch.float64 on cpu"),
        ("q_ref", lambda t: t[..., :-1], r"q_ref is \[2, 3, 5, 2, 7\], expected \[2, 3, 5, 2, 8\]"),
        ("v", lambda t: t[:, :, :-1], r"v is \[2, 3, 4, 2, 8\], expected \[2, 3, 5, 2, 8\]"),
        ("k_ref", lambda t: t[:, :0], r"k_ref is \[2, 0, 2, 8\]"),
        ("k_ref", lambda t: t[:1], r"k_ref is \[1, 7, 2, 8\], expected \[2, 7, 2, 8\]"),
        ("k_ref", lambda t: t[:, None], "k_ref is .*, expected a non-empty"),
        ("v_ref", lambda t: t[:, :-1], "v_ref is"),
        ("w_out", lambda t: t[:0], r"w_out is \[0, 16\], expected a non-empty"),
        ("w_out", lambda t: t[0], r"w_out is \[16\], expected a non-empty"),
        ("b_out", lambda t: t[:, None], r"b_out is \[12, 1\], expected \[12\]"),
        ("w_out", lambda t: t[:, :-1], "w_out is"),
        ("w_ref", lambda t: t.float(), "w_ref is torch.float32 on cpu, q is torch.float64"),
        ("b_ref", lambda t: t[:-1], "b_ref is"),
        ("residual", lambda t: t.to("meta"), "residual is torch.float64 on meta"),
        ("k", lambda t: [1], "k is list, expected a tensor"),
        ("b_out", lambda t: 0.0, "b_out is float, expected a tensor"),
        ("residual", lambda t: "a", "residual is str, expected a tensor"),
        ("k", lambda t: torch.nested.nested_tensor(list(t)), "k is nested, expected a dense tensor"),
        ("q", lambda t: None, "q is None, expected a tensor"),
        ("v_ref", lambda t: None, "v_ref is None, expected a tensor"),
        ("w_ref", lambda t: None, "w_ref is None, expected a tensor"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning")
def test_what_does_not_fit_is_named(name, change, message, compiled):
    tensors = dict(zip(NAMES, inputs(), strict=True))
    tensors[name] = change(tensors[name])
    call = torch.compile(reference_attention, backend="eager") if compiled else reference_attention
    with pytest.raises(ValueError, match=message):
        call(**tensors)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("v_ref", lambda t: t[:, :-2], r"v_ref is \[2, 5, 2, 8\], expected \[2, 7, 2, 8\]"),
        ("k", lambda t: t[:, :, 1:], "k is"),
        ("b_out", lambda t: t[1:], r"b_out is \[11\], expected \[12\]"),
        ("residual", lambda t: t[:1], "residual is"),
        ("backend", lambda _: "cuda", "backend is 'cuda', expected one of"),
        ("backward", lambda _: "none", "backward is 'none', of"),
    ],
)
def test_the_operator_checks_by_itself(name, change, message):
    """Programs call it, too; a kernel would read past what is too short."""
    given = dict(zip(NAMES, inputs(), strict=True)) | {"backend": "eager", "backward": "recompute"}
    with pytest.raises(ValueError, match=message):
        torch.ops.xdyna.reference_attention(**(given | {name: change(given[name])}))


def test_unknown_backend():
    with pytest.raises(ValueError, match="backend is 'cuda', expected one of"):
        reference_attention(*inputs(), backend="cuda")


TF32 = """
import torch
from xdyna_kernels import reference_attention, tiles
assert tiles.arithmetic(torch.float32) == "ieee"
torch.backends.fp32_precision = "tf32"
assert tiles.arithmetic(torch.float32) == "tf32"
frames, reference, weight = torch.ones(1, 1, 3, 2, 8), torch.ones(1, 3, 2, 8), torch.ones(4, 16)
reference_attention(*[frames] * 4, reference, reference, weight, None, weight, None)
"""


def test_the_newer_way_to_ask_for_tf32():
    """In a process of its own: PyTorch lets nobody go back to the older one, `allow_tf32`."""
    subprocess.run([sys.executable, "-c", TF32], check=True)
