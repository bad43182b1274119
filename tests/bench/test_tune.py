"""bench/attn.py --tune without a GPU: a stand-in for its clock decides, and the table that comes of it is read back.

The operator is stood in for by the CPU's, which looks at the tile that it would have been launched with.
"""

import ast
import copy
import dataclasses
import importlib
import json
import re
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import xdyna_kernels
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xdyna_kernels import tiles

pytest.importorskip("triton", reason="candidates are compiled by triton")

ROOT = Path(__file__).parents[2]
CHIP = "sm_90"
SLOW, FAST, MIDDLE, WRONG, CRASHES, TOO_LARGE, BROKEN = (tiles.Attention(16, 16, 2**i, 1) for i in range(7))
MS = {SLOW: 9.0, MIDDLE: 2.0, FAST: 1.0, WRONG: 0.2, CRASHES: 0.1, TOO_LARGE: 0.1, BROKEN: 0.1}
GRID = [TOO_LARGE, SLOW, WRONG, BROKEN, FAST, CRASHES, MIDDLE]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports from bench/. The table of this process is as it was when the test ends."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    table = importlib.import_module("tile_table")
    for name in (*table.TABLES, "TIMED"):
        monkeypatch.setattr(tiles, name, copy.deepcopy(getattr(tiles, name)))
    return importlib.import_module


@pytest.fixture
def tune(load, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tune.py with the GPU stood in for: compiler, launches and clock, each by the tile that is in the table."""
    tune = load("tune")
    entry = attention(load)

    def contender(q, *rest):
        if entry.get() == CRASHES:
            raise RuntimeError("out of resource: shared memory, Required: 262144, Hardware limit: 232448")
        return xdyna_kernels.reference_attention(q * (0.8 if entry.get() == WRONG else 1), *rest, backend="eager")

    def interleaved(calls, device, repeats, seed):
        times = {}
        for name, call in calls.items():
            call()
            times[name] = SimpleNamespace(median=MS.get(seen.pop(), 5.0))
        return times

    seen = []

    def build(name):
        def watched(*tensors):
            seen.append(entry.get())
            return contender(*tensors)

        return watched

    aot = importlib.import_module("xdyna_kernels.ahead_of_time")
    fine = aot.Figures(registers=100, spills=0, stack=0, shared=1000, tensor_core=1)
    large = aot.Figures(registers=100, spills=0, stack=0, shared=2**20, tensor_core=1)
    answers = {TOO_LARGE: large, BROKEN: "PassManager::run failed"}
    stand = load("gpu_stand")
    monkeypatch.setattr(stand, "compile_all", lambda cases: [answers.get(tuple(case.tile), fine) for case in cases])
    monkeypatch.setattr(stand, "interleaved", interleaved)
    monkeypatch.setattr(stand.opponents, "build", build)
    monkeypatch.setattr(tune, "GRIDS", {key: [] for key in tune.GRIDS} | {("ATTENTION", True): GRID})
    return tune


def attention(load, limit: int = 48):
    return load("tile_table").Entry("ATTENTION", CHIP, "half", limit)


def plan(load, budget: float = float("inf"), tokens: tuple[int, ...] = (20,)):
    shape = load("shapes").Shape
    flags = load("attn_flags")
    return flags.Plan(
        device=torch.device("cpu"),
        dtype="bf16",
        shapes=[shape(1, 2, n, 2, 8) for n in tokens],
        absent=[],
        directions=("forward",),
        names=(),
        repeats=1,
        seed=0,
        budget=budget,
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "tiles.py"
    path.write_text(Path(tiles.__file__).read_text())
    return path


def read(path: Path) -> dict:
    """What the program would read of the file."""
    found: dict = {"__name__": "tiles"}
    exec(compile(path.read_text(), path, "exec"), found)
    return found


def test_the_fastest_right_tile_is_written(load, tune, table, capsys):
    records: list[dict] = []
    before = {name: copy.deepcopy(getattr(tiles, name)) for name in load("tile_table").TABLES}
    tune.tune(plan(load), CHIP, [("half", "bf16")], table, lambda record: records.append(copy.deepcopy(record)))
    after = read(table)
    assert tuple(after["ATTENTION"][CHIP, "half"].pop(48)) == tuple(FAST)
    del before["ATTENTION"][CHIP, "half"][48]
    assert {name: after[name] for name in before} == before  # and nothing else has changed
    assert set(after["TIMED"]) >= {("ATTENTION", CHIP, "half", 48), ("PROJECTION", CHIP, "half", 320)}
    assert "bf16" not in str(after["TIMED"])
    assert "now" in capsys.readouterr().out

    first = records[-1]["entries"][0]
    assert records[-1]["written"]
    assert not records[-2]["written"]
    assert first["after"] == FAST._asdict()
    notes = {tuple(trial["tile"].values()): (trial["ms"], trial["note"]) for trial in first["trials"]}
    assert {tile: notes[tile][0] for tile in GRID} == {
        SLOW: 9.0, FAST: 1.0, MIDDLE: 2.0, WRONG: None, CRASHES: None, TOO_LARGE: None, BROKEN: None
    }  # fmt: skip
    assert "shared memory: 1048576 bytes" in notes[TOO_LARGE][1]
    assert "PassManager" in notes[BROKEN][1]
    assert "Hardware limit" in notes[CRASHES][1]
    assert "relative error" in notes[WRONG][1]


def test_a_tile_serves_every_shape_of_its_entry_and_counts_as_often(load, tune, table, monkeypatch):
    monkeypatch.setattr(load("gpu_stand"), "LEVELS", {(20, 8): 5, (12, 8): 1})
    stand = tune.GpuStand(plan(load, tokens=(20, 12)), torch.bfloat16)
    assert stand.clock(attention(load), [FAST, SLOW]) == [6.0, 54.0]
    assert stand.clock(attention(load, 96), [FAST, SLOW]) == [0.0, 0.0]  # no head of this plan is so wide


def test_a_present_tile_stays_unless_beaten_beyond_noise(load, tune, table, monkeypatch):
    entry = attention(load)
    entry.put(MIDDLE)
    stand = tune.GpuStand(plan(load), torch.bfloat16)
    for ms, winner in ((1.99, MIDDLE), (1.9, FAST)):
        monkeypatch.setitem(MS, FAST, ms)
        assert tune.choose(entry, GRID, stand)[0] == winner


@pytest.mark.parametrize("present", [WRONG, CRASHES, TOO_LARGE, BROKEN])
def test_a_present_tile_that_cannot_be_used_is_replaced(load, tune, present):
    entry = attention(load)
    entry.put(present)
    stand = tune.GpuStand(plan(load), torch.bfloat16)
    assert tune.choose(entry, GRID, stand)[0] == FAST
    with pytest.raises(tune.TuneError, match=r"no tile of 4 can be used"):
        tune.choose(entry, [WRONG, CRASHES, TOO_LARGE, BROKEN], stand)


@pytest.mark.parametrize("moment", ["judge", "clock", "replace", "nothing fits"])
def test_an_early_end_leaves_the_old_table_whole(load, tune, table, monkeypatch, moment):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    if moment == "replace":
        monkeypatch.setattr(load("tile_table").os, "replace", interrupt)
    elif moment == "nothing fits":
        monkeypatch.setattr(tune.GpuStand, "judge", lambda *arguments: "it is wrong")
    else:
        monkeypatch.setattr(tune.GpuStand, moment, interrupt)
    old = table.read_bytes()
    with pytest.raises(tune.TuneError if moment == "nothing fits" else KeyboardInterrupt):
        tune.tune(plan(load), CHIP, [("half", "bf16")], table, lambda record: None)
    assert table.read_bytes() == old
    assert list(table.parent.iterdir()) == [table]


def test_a_spent_budget_leaves_the_rest_as_it_was(load, tune, table, capsys):
    old = table.read_text()
    records: list[dict] = []
    tune.tune(plan(load, budget=-1), CHIP, [("half", "bf16"), ("ieee", "fp32")], table, records.append)
    assert table.read_text() == old
    assert [entry["trials"] for entry in records[-1]["entries"]] == [[]] * len(records[-1]["entries"])
    assert capsys.readouterr().out.count(": not timed") == len(records[-1]["entries"]) >= 4


def test_the_grids_fit_the_table_and_hold_powers_of_two(load):
    tune, tile_table = load("tune"), load("tile_table")
    kinds = dict.fromkeys(tile_table.TABLES, tiles.Attention) | {"PROJECTION": tiles.Projection}
    assert {name for name, _ in tune.GRIDS} == set(tile_table.TABLES)
    for (name, _), grid in tune.GRIDS.items():
        assert 10 < len(set(grid)) == len(grid) <= 50  # bounded: each is compiled for four cases
        for tile in grid:
            assert isinstance(tile, kinds[name])
            assert all(size & (size - 1) == 0 for size in tile[:-1])


def test_the_gate_compiles_the_candidate_and_no_other_tile(load, monkeypatch):
    stand, aot = load("gpu_stand"), importlib.import_module("xdyna_kernels.ahead_of_time")
    asked = []

    def compile_all(cases):
        asked.extend(cases)
        return [aot.Figures(registers=0, spills=0, stack=0, shared=0, tensor_core=1)] * len(asked)

    monkeypatch.setattr(stand, "compile_all", compile_all)
    entry = attention(load)
    twin = tiles.ATTENTION[CHIP, "half"][96]  # the same sizes, but of another entry
    assert stand.GpuStand.gate(SimpleNamespace(), entry, [twin]) == [""]
    assert {(case.kernel, case.chip, case.constants["D"]) for case in asked} == {("attend", CHIP, d) for d in (40, 48)}
    assert {tuple(case.tile) for case in asked} == {tuple(twin)}


def test_what_does_not_compile_is_a_reason_and_not_an_error(load):
    """In this process, as one of the pool's: a kernel whose arguments are not all there, and one that is whole."""
    stand, aot = load("gpu_stand"), importlib.import_module("xdyna_kernels.ahead_of_time")
    case = aot.attention_case(CHIP, "half", 40, even=True)
    broken = dataclasses.replace(case, constants={**case.constants, "QUERIES": 48})  # no power of two
    assert "D=40 even: " in stand._compile(broken)
    assert isinstance(stand._compile(case), aot.Figures)


def test_entries_of_the_backward_are_judged_by_gradients(load, tune, monkeypatch):
    """A tile whose result is right and whose gradients are not is never chosen."""
    entry = load("tile_table").Entry("BACKWARD_KEYS", CHIP, "half", 48)

    def build(name):
        def contender(*tensors):
            out = xdyna_kernels.reference_attention(*tensors, backend="eager")
            return out / 2 + out.detach() / 2 if entry.get() == WRONG else out

        return contender

    def clock(calls, device, repeats, seed):
        assert len(calls) == 2
        for call in calls.values():
            call()
        return {name: SimpleNamespace(median=ms) for name, ms in zip(calls, (2.0, 1.0), strict=True)}

    stand = load("gpu_stand")
    monkeypatch.setattr(stand.opponents, "build", build)
    monkeypatch.setattr(stand, "interleaved", clock)
    winner, trials = tune.choose(entry, [WRONG, FAST], tune.GpuStand(plan(load), torch.bfloat16))
    assert winner == FAST
    assert {trial.tile: trial.ms for trial in trials} == {entry.get(): 2.0, WRONG: None, FAST: 1.0}


def test_the_table_is_written_as_it_stands(load):
    """A table that did not change is the same file, to the byte."""
    tile_table, source = load("tile_table"), Path(tiles.__file__).read_text()
    names = (*tile_table.TABLES, "TIMED")
    assert tile_table.rewrite(source, {name: getattr(tiles, name) for name in names}) == source


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.dictionaries(
        st.tuples(st.sampled_from(["sm_80", "sm_90"]), st.sampled_from(["half", "ieee"])),
        st.dictionaries(st.integers(8, 256), st.builds(tiles.Attention, *[st.integers(1, 256)] * 4), max_size=3),
    ),
    st.dictionaries(st.tuples(st.text(max_size=5), st.none() | st.integers()), st.text(max_size=20), max_size=3),
)
def test_any_table_reads_back_as_it_was_written(attention, timed):
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "bench"))
        rewrite = importlib.import_module("tile_table").rewrite
    source = "# before\nA: dict = {1: 2}\n# between\nB = {}\nC = 3  # after\n"
    text = rewrite(source, {"A": attention, "B": timed})
    found: dict = {"Attention": tiles.Attention}
    exec(text, found)
    assert (found["A"], found["B"], found["C"]) == (attention, timed, 3)
    assert re.findall(r"#.*", text)[0] == "# before"
    assert text.endswith("C = 3  # after\n")
    assert len(ast.parse(text).body) == 3


def test_without_a_gpu_it_says_in_one_line_that_it_needs_one(load, monkeypatch, capsys, tmp_path):
    attn, old = load("attn"), Path(tiles.__file__).read_bytes()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments in (["--tune"], ["--tune", "--device", "cpu"], ["--tune", "--device", "cuda"]):
        with pytest.raises(SystemExit) as ended:
            attn.main(arguments)
        assert ended.value.code == 1
        captured = capsys.readouterr()
        assert captured.out == ""
        assert len(captured.err.splitlines()) == 1
        assert "needs a GPU" in captured.err
    assert Path(tiles.__file__).read_bytes() == old


def test_the_command_writes_table_and_record(load, tune, table, monkeypatch, tmp_path, capsys):
    """`attn.py --tune` on a GPU that is not there: its first steps see one, its tensors are on the CPU."""
    attn = load("attn")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    monkeypatch.setattr(tiles, "__file__", str(table))
    real = attn.parse

    def parse(*arguments):
        options, _ = real(*arguments)
        return options, plan(load)

    monkeypatch.setattr(attn, "parse", parse)
    record = tmp_path / "tune.json"
    assert attn.main(["--tune", "--dtype", "bf16", "--json", str(record)]) == 0
    assert tuple(read(table)["ATTENTION"][CHIP, "half"][48]) == tuple(FAST)
    assert json.loads(record.read_text())["entries"][0]["after"] == FAST._asdict()

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (12, 0))
    assert attn.main(["--tune"]) == 1
    assert "no row of this chip" in capsys.readouterr().err
