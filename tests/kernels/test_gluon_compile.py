"""The Gluon kernels compiled for sm_90, which need not be here, and held to limits: see gluon_ahead_of_time.py."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from xdyna_kernels import gluon_ahead_of_time, gluon_keys_kernel, gluon_projection_kernel, gluon_queries_kernel
from xdyna_kernels.gluon_ahead_of_time import TABLES, compile_kernel, faults, read_golden, unordered

sys.path.insert(0, str(Path(__file__).parent))
from gluon_on_cpu import edited_kernel

GOLDEN = read_golden(Path(__file__).parent / "golden" / "gluon.json")
D40 = GOLDEN["attend"][40]
ORDERS = {
    # The scores' product is waited for with the values' two still under way, and those only after the softmax.
    "attend": "QK barrier PV wait(2) exp barrier wait(0)",
    # The weights' derivatives are under way while the exponentials run, and two sums while the scores' are made.
    "keys": "barrier QK wait(2) exp PV wait(2) PV wait(0)",
    # The scores are waited for with four products under way, the others only after most of the exponentials.
    "queries": "QK PV wait(4) exp barrier wait(0) exp",
}


def products(kernel, D):
    """Matrix instructions of a step by their shape: 32 + 16, 64 + 16 or 128 + 32 channels, 16 of a summed axis each."""
    tile = TABLES[kernel][D]
    if kernel == "project":
        first = 1 << (tile.columns.bit_length() - 1)
        parts = [n for n in (first, tile.columns - first) if n]
        return {f"64x{n}x16": tile.rows // 64 * tile.depth // 16 for n in parts}
    held, walked = (tile.keys, tile.queries) if kernel == "keys" else (tile.queries, tile.keys)
    first = 1 << (D.bit_length() - 1)
    rest = max(16, D - first)
    of_scores, of_sums = [walked] * ((first + rest) // 16), [first, rest] * (walked // 16)
    with_derivatives = {"attend": (1, 1), "keys": (2, 2), "queries": (2, 1)}  # products of the scores' kind, and sums
    widths = of_scores * with_derivatives[kernel][0] + of_sums * with_derivatives[kernel][1]
    return {f"64x{n}x16": held // 64 * widths.count(n) for n in widths}


@pytest.mark.parametrize("kernel", TABLES)
def test_every_head_is_recorded_without_a_fault(kernel):
    assert list(GOLDEN[kernel]) == list(TABLES[kernel])
    for D, found in GOLDEN[kernel].items():
        assert faults(found, found) == []
        assert found.order == ORDERS.get(kernel, f"barrier QK wait({len(found.products)})")
        assert found.products == products(kernel, D)


@pytest.mark.parametrize(
    ("kernel", "D", "dtype"),
    [
        ("attend", 40, torch.bfloat16),
        ("attend", 80, torch.float16),
        ("attend", 160, torch.bfloat16),
        ("keys", 40, torch.bfloat16),
        ("keys", 40, torch.float16),
        ("keys", 80, torch.bfloat16),
        ("keys", 80, torch.float16),
        ("queries", 40, torch.bfloat16),
        ("queries", 40, torch.float16),
        ("queries", 80, torch.bfloat16),
        ("queries", 80, torch.float16),
        ("project", 320, torch.bfloat16),
        ("project", 320, torch.float16),
        ("project", 640, torch.bfloat16),
        ("project", 1280, torch.float16),
    ],
)
def test_the_kernel_keeps_to_what_is_recorded(kernel, D, dtype):
    found = compile_kernel(kernel, D, dtype)
    assert len(found) == TABLES[kernel][D].warpgroups  # a loop for each
    assert [faults(loop, GOLDEN[kernel][D]) for loop in found] == [[]] * len(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spills": 2}, "spills: 2 LDL/STL, 0 bytes of stack"),
        ({"stack": 16}, "spills: 0 LDL/STL, 16 bytes of stack"),
        ({"shared": 232_449}, "shared memory: 232449 bytes, sm_90 has 232448"),
        ({"products": {"64x128x16": 3, "64x64x16": 8}}, "matrix instructions: "),
        ({"unordered": 1}, "warps are told what to run without a barrier: 1"),
        ({"order": "QK barrier PV wait(2) wait(0) exp barrier"}, "order: "),
        ({"instructions": D40.instructions + 9}, f"instructions: {D40.instructions + 9}, recorded"),
    ],
)
def test_bad_kernels_do_not_pass(change, message):
    (line,) = faults(replace(D40, **change), D40)
    assert line.startswith(message)


def test_a_softmax_that_idles_the_tensor_cores_does_not_pass(tmp_path, monkeypatch):
    """With the keys' barrier at the loop's head, the compiler waits for the values before the softmax."""
    issue = "        issued = _issue_scores(q, k_ring, step, zeros, D0, D1, STAGES)\n"
    edits = {
        "        _wait_full(k_ring, step + 1, STAGES, step + 1 < end)\n": "",
        "    _wait_full(k_ring, first + 1, STAGES, first + 1 < end)\n": "",
        issue: "        _wait_full(k_ring, step, STAGES)\n" + issue,
    }
    edited = edited_kernel(tmp_path, edits)
    monkeypatch.setitem(gluon_ahead_of_time.KERNELS, "attend", edited.attend_kernel)
    found = compile_kernel("attend", 40)[0]
    assert faults(found, D40) == [f"order: barrier QK barrier PV wait(2) wait(0) exp, recorded {ORDERS['attend']}"]


def test_exponentials_that_idle_the_tensor_cores_do_not_pass(tmp_path, monkeypatch):
    """With both products of the scores waited for at once."""
    right = "scores = warpgroup_mma_wait(2, deps=(issued,))"
    edited = edited_kernel(tmp_path, {right: right.replace("2", "0")}, gluon_keys_kernel)
    monkeypatch.setitem(gluon_ahead_of_time.KERNELS, "keys", edited.keys_kernel)
    (line,) = faults(compile_kernel("keys", 40)[0], GOLDEN["keys"][40])
    assert line == f"order: barrier QK wait(0) exp PV wait(2) PV wait(0), recorded {ORDERS['keys']}"


def test_sums_that_idle_the_tensor_cores_do_not_pass(tmp_path, monkeypatch):
    """With the barrier of the next keys at the loop's head, the compiler waits for the sums amid the exponentials."""
    issue = "        issued, d_issued = _issue_step(q, d, ring, step, zeros, D0, D1, STAGES)\n"
    edits = {
        "        _wait_full(ring, step + 1, STAGES, step + 1 < steps)\n": "",
        "    _wait_full(ring, 1, STAGES, steps > 1)\n": "",
        issue: "        _wait_full(ring, step, STAGES)\n" + issue,
    }
    edited = edited_kernel(tmp_path, edits, gluon_queries_kernel)
    monkeypatch.setitem(gluon_ahead_of_time.KERNELS, "queries", edited.queries_kernel)
    wrong = faults(compile_kernel("queries", 40)[0], GOLDEN["queries"][40])
    assert wrong == [f"order: barrier QK PV wait(4) exp wait(0) exp, recorded {ORDERS['queries']}"]


def test_a_projection_that_idles_the_tensor_cores_does_not_pass(tmp_path, monkeypatch):
    """With each step's products waited for before the next ones are issued."""
    edited = edited_kernel(tmp_path, {"warpgroup_mma_wait(1,": "warpgroup_mma_wait(0,"}, gluon_projection_kernel)
    monkeypatch.setitem(gluon_ahead_of_time.KERNELS, "project", edited.project_kernel)
    (line,) = faults(compile_kernel("project", 640)[0], GOLDEN["project"][640])
    assert line == "order: barrier QK wait(0), recorded barrier QK wait(1)"


def test_a_residual_added_at_the_end_of_a_tile_does_not_pass(tmp_path, monkeypatch):
    """Beside the sums, it does not fit into the registers."""
    add = "    sums += _start(b_out, b_ref, residual, row, column, R, C, sums.shape[0], sums.shape[1], layout)\n"
    edits = {
        "        sums0 = _start(b_out, b_ref, residual, row, column, R, C, ROWS, C0, of_sums0)\n": (
            "        sums0 = gl.zeros([ROWS, C0], gl.float32, of_sums0)\n"
        ),
        "def _store(out, sums, row": "def _store(b_out, b_ref, residual, out, sums, row",
        "    gl.store(at, sums": add + "    gl.store(at, sums",
        "_store(out, sums0": "_store(b_out, b_ref, residual, out, sums0",
        "_store(out, sums1": "_store(b_out, b_ref, residual, out, sums1",
    }
    edited = edited_kernel(tmp_path, edits, gluon_projection_kernel)
    monkeypatch.setitem(gluon_ahead_of_time.KERNELS, "project", edited.project_kernel)
    assert faults(compile_kernel("project", 640)[0], GOLDEN["project"][640])[0].startswith("spills: ")


HANDED_OUT = """
st.shared.v2.b32 \t[global_smem+131512], {0, 16843009};
add.s32 \t%r2031, %r2014, 106496;
st.shared.v2.b32 \t[global_smem+131072], {%r2031, 0};
barrier.sync \t1;
setmaxnreg.dec.sync.aligned.u32 \t160;
$L__BB0_4:
barrier.sync \t1;
add.s32 \t%r169, %r168, %r2;
ld.shared.b8 \t%r167, [%r169+131508];
"""


@pytest.mark.parametrize(
    ("gone", "count"), [("", 0), ("};\nbarrier.sync \t1;", 2), ("4:\nbarrier.sync \t1;", 1), ("barrier.sync \t1;\n", 3)]
)
def test_a_hand_out_of_work_without_its_barrier_is_counted(gone, count):
    """Cut down from what attention compiles to."""
    kept = gone.replace("barrier.sync \t1;", "")
    assert unordered(HANDED_OUT.replace(gone, kept) if gone else HANDED_OUT) == count
