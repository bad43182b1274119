"""The operator with the backward "gluon" against derivatives in float64: on a Hopper GPU with the kernels themselves,
else with Triton's in its interpreter (see test_triton_backend.py) and Gluon's in the stand-in of gluon_on_cpu.py."""

import os
import sys
from pathlib import Path

import pytest
import torch

ON_GPU = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
if not ON_GPU and (torch.cuda.is_available() or os.environ.get("TRITON_INTERPRET") != "1"):
    pytest.skip("test_triton_backend.py runs these in Triton's interpreter", allow_module_level=True)

from xdyna_kernels import (  # noqa: E402
    gluon_backward,
    gluon_forward,
    gluon_kernel,
    gluon_keys_kernel,
    gluon_queries_kernel,
)

sys.path.insert(0, str(Path(__file__).parent))
from gluon_on_cpu import OnCPU  # noqa: E402
from test_triton_gradients import DTYPES, NAMES, _poisoned, beyond, gradients, inputs  # noqa: E402

assert _poisoned  # a fixture of this module, too
HALF = [dtype for dtype in DTYPES if dtype != torch.float32]
GLUON = {"backend": "gluon", "backward": "gluon"}
pytestmark = pytest.mark.filterwarnings("ignore:Conversion of an array with ndim > 0:DeprecationWarning")


@pytest.fixture(autouse=True)
def served(monkeypatch):
    """Numbers of programs of the Gluon kernels of the backward, by launch: that of the queries comes first."""
    programs, launch = [], gluon_backward.launch
    monkeypatch.setattr(
        gluon_backward, "launch", lambda k, n, *rest, **kw: (programs.append(n), launch(k, n, *rest, **kw))
    )
    if not ON_GPU:
        contract = sys.modules["xdyna_kernels.reference_attention"]
        monkeypatch.setattr(contract, "_why_not_triton", lambda q, interpreted: None)
        monkeypatch.setattr(contract, "_why_not_hopper", lambda q: None)
        monkeypatch.setattr(gluon_forward, "attend_kernel", OnCPU(gluon_kernel))
        monkeypatch.setattr(gluon_forward, "multiprocessors", lambda on: 3)
        monkeypatch.setattr(gluon_backward, "keys_kernel", OnCPU(gluon_keys_kernel, "keys_kernel"))
        monkeypatch.setattr(gluon_backward, "queries_kernel", OnCPU(gluon_queries_kernel, "queries_kernel"))
    return programs


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize("backend", ["triton", "gluon"])
@pytest.mark.parametrize("sizes", [{"D": 40, "N": 36, "M": 70}, {"D": 80, "N": 132, "M": 20, "F": 1}])
def test_parity(sizes, backend, dtype, served):
    tensors = inputs(**sizes, B=2, dtype=dtype)
    assert not beyond(tensors, backend=backend, backward="gluon")
    assert len(served) == 2


@pytest.mark.parametrize("dtype", HALF)
@pytest.mark.parametrize(
    ("wanted", "programs"),
    [
        (("v",), [6]),
        (("k", "v"), [6]),
        (("k_ref", "v_ref"), [2]),
        (("q", "v_ref"), [2, 6]),
        (("q_ref",), [6]),
        (("q", "q_ref"), [12]),
        (NAMES[6:], []),
    ],
)
def test_no_program_runs_for_what_needs_no_derivative(wanted, programs, dtype, served):
    """For 2 heads of 3 frames, whose tokens are one block."""
    assert not beyond(inputs(F=3, N=20, D=40, dtype=dtype), wanted, **GLUON)
    assert served == programs


@pytest.mark.parametrize(
    ("sizes", "left"), [({"N": 5, "D": 40}, ("k", "v", "k_ref", "v_ref")), ({"N": 20, "D": 160}, NAMES)]
)
def test_what_it_does_not_serve_is_left_to_triton(sizes, left, served):
    tensors = inputs(**sizes, dtype=torch.float16)
    assert not beyond(tensors, **GLUON)
    assert bool(served) == (left != NAMES)
    served.clear()
    found, triton = (gradients(tensors, left, backend="gluon", backward=name) for name in ("gluon", "triton"))
    torch.testing.assert_close(found, triton, rtol=0, atol=0)
    assert served == []


@pytest.mark.parametrize(("launcher", "names"), [("launch_keys", {"k", "k_ref"}), ("launch_queries", {"q", "q_ref"})])
def test_a_wrong_scale_does_not_pass(launcher, names, monkeypatch):
    right = getattr(gluon_backward, launcher)

    def wrong(*arguments):
        *rest, scale, own, ref = arguments
        right(*rest, 1.02 * scale, own, ref)

    monkeypatch.setattr(gluon_backward, launcher, wrong)
    assert beyond(inputs(N=36, D=40, dtype=torch.float16), **GLUON) >= names


def test_same_in_every_run():
    tensors = inputs(F=3, N=36, M=40, D=40, dtype=torch.float16)
    torch.testing.assert_close(gradients(tensors, **GLUON), gradients(tensors, **GLUON), rtol=0, atol=0)


@pytest.mark.parametrize(("backend", "chosen"), [("gluon", True), ("triton", False)])
def test_default_is_that_of_the_backend(backend, chosen, served, monkeypatch):
    monkeypatch.setattr(sys.modules["xdyna_kernels.reference_attention"], "_proven", lambda q: True)
    gradients(inputs(N=20, D=40, dtype=torch.float16), backend=backend)
    assert bool(served) == chosen


def test_what_is_kept_and_registered():
    leaves = [t.requires_grad_() for t in inputs(F=1, H=1, N=4, D=40, dtype=torch.float16).values()]
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(tuple(x.shape)), lambda x: x):
        torch.ops.xdyna.reference_attention_triton(*leaves, "gluon", "gluon")
    assert kept == [tuple(t.shape) for t in (*leaves[:7], leaves[8])] + [(1, 4, 80), (1, 2, 4)]  # both, lse
    operator = torch.ops.xdyna.reference_attention_triton.default
    assert set(torch.library.opcheck(operator, (*leaves, "gluon", "gluon")).values()) == {"SUCCESS"}
