"""When the Triton backend is taken, what it says where it cannot run, and its kernels in Triton's interpreter."""

import os
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from xdyna_kernels import reference_attention


def inputs(D=8, dtype=torch.float32):
    shapes = [(1, 2, 5, 2, D)] * 4 + [(1, 7, 2, D)] * 2 + [(12, 2 * D), (12,), (12, 2 * D), (12,)]
    return [torch.randn(shape, dtype=dtype) for shape in shapes]


def run(command, **environment):
    done = subprocess.run(command, env=os.environ | environment, capture_output=True, text=True, timeout=1200)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def python(*arguments):
    return run([sys.executable, *arguments])


@pytest.mark.skipif(torch.cuda.is_available(), reason="the files themselves run on the GPU")
def test_parity_in_the_interpreter():
    """TRITON_INTERPRET is read when the kernels are imported, hence processes of their own; slow, hence all at once."""
    pytest.importorskip("triton")
    files = [f"test_{name}.py" for name in ("triton_parity", "triton_gradients", "triton_autograd", "gluon_gradients")]
    commands = [[sys.executable, "-m", "pytest", "-n0", "-q", str(Path(__file__).parent / file)] for file in files]
    with ThreadPoolExecutor() as pool:
        outputs = list(pool.map(lambda command: run(command, TRITON_INTERPRET="1"), commands))
    for out in outputs:
        assert "passed" in out
        assert "skipped" not in out or shutil.which(os.environ.get("CXX", "g++")) is None


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (inputs(), "backend 'triton' needs an NVIDIA GPU, q is on cpu"),
        (inputs(dtype=torch.float64), "backend 'triton' needs float16, bfloat16 or float32, q is torch.float64"),
        (inputs(D=12), "backend 'triton' needs heads of a multiple of 8 channels up to 256, q has 12"),
        (inputs(D=264), "backend 'triton' needs heads of a multiple of 8 channels up to 256, q has 264"),
    ],
)
@pytest.mark.parametrize("compiled", [False, True])
def test_where_it_cannot_run_it_says_why(tensors, message, compiled):
    call = torch.compile(reference_attention, backend="eager") if compiled else reference_attention
    with pytest.raises(ValueError, match=message):
        call(*tensors, backend="triton")


def test_default_on_a_cpu_is_sdpa_and_says_so_once():
    code = (
        "import logging, torch; logging.basicConfig(level='DEBUG', format='%(name)s %(message)s')\n"
        "from xdyna_kernels import reference_attention\n"
        "x, r, w = torch.ones(1, 1, 2, 1, 8), torch.ones(1, 3, 1, 8), torch.ones(4, 8)\n"
        "for _ in range(3): reference_attention(x, x, x, x, r, r, w, None, w, None)\n"
        "for n in range(1, 4):\n"
        "    x, r, w = torch.ones(1, 1, n, 1, 4), torch.ones(1, 3, 1, 4), torch.ones(4, 4)\n"
        "    reference_attention(x, x, x, x, r, r, w, None, w, None)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    said = [line for line in run.stderr.splitlines() if line.startswith("xdyna_kernels")]
    takes = "xdyna_kernels.reference_attention reference attention takes 'sdpa': 'triton' needs"
    heads = "heads of a multiple of 8 channels up to 256, q has 4"
    assert said == [f"{takes} an NVIDIA GPU, q is on cpu", f"{takes} {heads}"]


def test_default_compiles_into_one_graph():
    tensors = inputs()
    compiled = torch.compile(reference_attention, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(*tensors), reference_attention(*tensors, backend="sdpa"))


@pytest.mark.parametrize("installed", [True, False])
def test_triton_is_imported_only_when_it_is_used(installed):
    hide = "" if installed else "sys.modules['triton'] = None\n"
    python(
        "-c",
        f"import sys, torch\n{hide}from xdyna_kernels import reference_attention\n"
        "x, r, w = torch.ones(1, 1, 2, 1, 8), torch.ones(1, 3, 1, 8), torch.ones(4, 8)\n"
        "assert reference_attention(x, x, x, x, r, r, w, None, w, None).shape == (1, 1, 2, 4)\n"
        "assert sys.modules.get('triton') is None\n"
        "try: reference_attention(x, x, x, x, r, r, w, None, w, None, backend='triton')\n"
        f"except ValueError as e: assert ('not installed' in str(e)) == {not installed}\n"
        "else: sys.exit('no error')\n",
    )


def test_fake_tensors_of_a_gpu_that_is_elsewhere(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with torch._subclasses.FakeTensorMode():
        tensors = [torch.empty(t.shape, device="cuda") for t in inputs()]
        out = reference_attention(*tensors)
        with pytest.raises(ValueError, match="backend 'triton' needs an NVIDIA GPU, and finds none"):
            reference_attention(*tensors, backend="triton")
    assert (out.shape, out.device.type) == ((1, 2, 5, 12), "cuda")


def test_fake_tensors_need_no_kernel():
    with torch._subclasses.FakeTensorMode():
        tensors = [t.to(torch.float16) for t in inputs()]
        out, both, lse = torch.ops.xdyna.reference_attention_triton(*tensors, None, "triton")
        attention, weights = tensors[:6], tensors[6::2]
        found = torch.ops.xdyna.reference_attention_triton_backward(
            out, *attention, *weights, both, lse, [True] * 5 + [False]
        )
        _, *nothing = torch.ops.xdyna.reference_attention_triton(*tensors, None, "recompute")
    assert [(x.shape, x.dtype) for x in nothing] == [((0,), torch.float16), ((0,), torch.float32)]
    assert (out.shape, out.dtype) == ((1, 2, 5, 12), torch.float16)
    assert (both.shape, both.dtype) == ((2, 5, 32), torch.float16)
    assert (lse.shape, lse.dtype) == ((2, 4, 5), torch.float32)
    # Queries of both branches side by side, keys and values, and nothing for the one that is not needed.
    assert [x.shape for x in found] == [(1, 2, 5, 2, 2, 8), *(attention[i].shape for i in (1, 2, 4)), (0,)]


def test_unknown_backward():
    with pytest.raises(ValueError, match="backward is 'fast', expected one of"):
        reference_attention(*inputs(), backward="fast")
