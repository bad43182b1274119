"""The Gluon kernel compiled for sm_90, which need not be here, and held to limits: see gluon_ahead_of_time.py."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

pytest.importorskip("triton")

from xdyna_kernels import gluon_ahead_of_time
from xdyna_kernels.gluon_ahead_of_time import compile_forward, faults, read_golden
from xdyna_kernels.gluon_tiles import TILES

sys.path.insert(0, str(Path(__file__).parent))
from gluon_on_cpu import edited_kernel

GOLDEN = read_golden(Path(__file__).parent / "golden" / "gluon.json")
D40 = GOLDEN[40]
# The scores' product is waited for with the values' two still under way, and those only after the softmax.
ORDER = "QK barrier PV wait(2) exp barrier wait(0)"


def test_every_head_is_recorded_without_a_fault():
    assert list(GOLDEN) == list(TILES)
    for D, found in GOLDEN.items():
        assert faults(found, found) == []
        assert found.order == ORDER
        keys, blocks = TILES[D].keys, TILES[D].queries // 64  # of the queries that one instruction takes
        first = 1 << (D.bit_length() - 1)  # 32 + 16, 64 + 16 or 128 + 32 channels, 16 of the summed axis at a time
        rest = max(16, D - first)
        widths = [keys] * ((first + rest) // 16) + [first] * (keys // 16) + [rest] * (keys // 16)
        assert found.products == {f"64x{n}x16": blocks * widths.count(n) for n in widths}


@pytest.mark.parametrize(("D", "dtype"), [(40, torch.bfloat16), (80, torch.float16), (160, torch.bfloat16)])
def test_the_kernel_keeps_to_what_is_recorded(D, dtype):
    found = compile_forward(D, dtype)
    assert len(found) == TILES[D].warpgroups  # a loop for each
    assert [faults(loop, GOLDEN[D]) for loop in found] == [[]] * len(found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"spills": 2}, "spills: 2 LDL/STL, 0 bytes of stack"),
        ({"stack": 16}, "spills: 0 LDL/STL, 16 bytes of stack"),
        ({"shared": 232_449}, "shared memory: 232449 bytes, sm_90 has 232448"),
        ({"products": {"64x128x16": 3, "64x64x16": 8}}, "matrix instructions: "),
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
        "        _wait_full(k_ring, step + 1, STAGES, step + 1 < steps)\n": "",
        "    _wait_full(k_ring, 1, STAGES, steps > 1)\n": "",
        issue: "        _wait_full(k_ring, step, STAGES)\n" + issue,
    }
    edited = edited_kernel(tmp_path, edits)
    monkeypatch.setattr(gluon_ahead_of_time, "attend_kernel", edited.attend_kernel)
    found = compile_forward(40)[0]
    assert faults(found, D40) == [f"order: barrier QK barrier PV wait(2) wait(0) exp, recorded {ORDER}"]
