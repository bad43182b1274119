"""The Triton kernels compiled for chips that are not here, and held to limits: see xdyna_kernels.ahead_of_time."""

import ast
from dataclasses import replace
from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton
from xdyna_kernels import tiles, triton_backward_kernels, triton_forward, triton_projection
from xdyna_kernels.ahead_of_time import (
    attention_case,
    backward_case,
    compile_cases,
    delta_case,
    digest,
    faults,
    projection_case,
    read_digest,
    read_golden,
    table_cases,
)

RECORD = Path(__file__).parent / "golden" / "compile.json"
GOLDEN = read_golden(RECORD)
# bench/compile_report.py compiles the whole table, and must have since anything of it changed. Here every tile of
# Hopper's forward in half precision, and a sample of the rest.
SAMPLE = [attention_case("sm_90", "half", D, even) for D in (40, 80, 160) for even in (True, False)]
SAMPLE += [attention_case("sm_90", "half", 256, even=False)]
SAMPLE += [projection_case("sm_90", "half", 320, even=True), projection_case("sm_90", "half", 72, even=False)]
for chip in ("sm_80", "sm_100"):
    SAMPLE += [attention_case(chip, "half", 40, even=True), attention_case(chip, "half", 160, even=False)]
    SAMPLE += [projection_case(chip, "half", 320, even=True)]
SAMPLE += [attention_case("sm_90", "tf32", 80, even=False), attention_case("sm_90", "ieee", 80, even=False)]
SAMPLE += [backward_case("sm_90", "half", "queries", D, even=D == 80) for D in (40, 80, 160)]
SAMPLE += [backward_case("sm_90", "half", "keys", D, even=D == 80) for D in (40, 80, 160)]
SAMPLE += [
    backward_case("sm_80", "half", "keys", 160, even=True),
    backward_case("sm_100", "half", "keys", 40, even=True),
]
SAMPLE += [delta_case("sm_90", "half", 256)]
SPILLING = backward_case("sm_90", "half", "keys", 160, even=False, tile=tiles.Attention(64, 128, 8, 2))
PADDED = attention_case("sm_90", "half", 160, even=True, tile=tiles.Attention(128, 64, 8, 3))
PADDED = replace(PADDED, constants=PADDED.constants | {"D0": 256, "D1": 0})
IDLE = attention_case("sm_90", "ieee", 80, even=False)  # no tensor cores


@pytest.fixture(scope="module")
def compiled():
    """Figures by case name. One call, since each starts processes of its own."""
    cases = {"spilling": SPILLING, "padded": PADDED} | {case.name: case for case in SAMPLE}
    return dict(zip(cases, compile_cases(cases.values()), strict=True))


def test_every_tile_is_recorded_without_a_fault():
    cases = {case.name: case for case in table_cases()}
    assert list(cases) == list(GOLDEN)
    assert {name: faults(cases[name], found, found) for name, found in GOLDEN.items()} == {name: [] for name in GOLDEN}


def test_the_record_is_of_these_kernels():
    assert read_digest(RECORD) == digest(), "the kernels, tiles or Triton changed: run bench/compile_report.py --update"


@pytest.mark.parametrize("module", [triton_forward, triton_projection, triton_backward_kernels])
def test_a_change_that_no_sample_shows_needs_a_new_record(module, monkeypatch):
    """Of a function that kernels call, say."""
    before = digest()
    functions = [value for value in vars(module).values() if isinstance(value, triton.JITFunction)]
    function = next(value for value in functions if value.fn.__module__ == module.__name__)
    changed = function.parse()
    changed.body[0].body.append(ast.parse("pass").body[0])
    monkeypatch.setattr(function, "parse", lambda: changed)
    assert digest() != before


def test_how_a_kernel_is_specialised_is_of_the_record(monkeypatch):
    before = digest()
    monkeypatch.setattr(triton_forward.attend_kernel, "do_not_specialize", [])
    assert digest() != before


def test_compiled_kernels_keep_to_what_is_recorded(compiled):
    wrong = {case.name: faults(case, compiled[case.name], GOLDEN[case.name]) for case in SAMPLE}
    assert wrong == {case.name: [] for case in SAMPLE}


def test_bad_kernels_do_not_pass(compiled):
    spilling, padded, idle = compiled["spilling"], compiled["padded"], compiled[IDLE.name]
    assert [line.split(":")[0] for line in faults(SPILLING, spilling, spilling)] == ["spills"]
    assert "shared memory: 262144 bytes, sm_90 has 232448" in faults(PADDED, padded, padded)
    assert faults(replace(IDLE, arithmetic="half"), idle, idle) == ["tensor cores: no HGMMA"]


@pytest.mark.parametrize(("more", "passes"), [(8, True), (9, False)])
def test_registers_may_grow_by_eight(more, passes):
    case = attention_case("sm_90", "half", 40, even=True)
    before = GOLDEN[case.name]
    lines = faults(case, replace(before, registers=before.registers + more), before)
    assert (lines == []) == passes


@pytest.mark.parametrize("more", [-2, 2])
def test_a_product_more_or_beside_the_tensor_cores_does_not_pass(more):
    case = attention_case("sm_90", "half", 40, even=True)
    before = GOLDEN[case.name]
    found = replace(before, tensor_core=before.tensor_core + more)
    assert [line.split(":")[0] for line in faults(case, found, before)] == ["tensor cores"]


def test_an_unrecorded_tile_does_not_pass():
    case = attention_case("sm_90", "half", 40, even=True)
    assert faults(case, GOLDEN[case.name], None) == ["not recorded: run bench/compile_report.py --update"]
