"""bench/attn.py --tune without a GPU: a stand-in for its clock decides, and the table that comes of it is read back.

The operator is stood in for by the CPU's, which looks at the tile that it would have been launched with.
"""

import ast
import copy
import importlib
import json
import re
from concurrent.futures import Future
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import xdyna_kernels
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from xdyna_kernels import gluon_tiles, tiles

pytest.importorskip("triton", reason="candidates are compiled by triton")

ROOT = Path(__file__).parents[2]
CHIP = "sm_90"
SLOW, FAST, MIDDLE, WRONG, CRASHES, TOO_LARGE, BROKEN = (tiles.Attention(16, 16, 2**i, 1) for i in range(7))
MS = {SLOW: 9.0, MIDDLE: 2.0, FAST: 1.0, WRONG: 0.2, CRASHES: 0.1, TOO_LARGE: 0.1, BROKEN: 0.1}
GRID = [TOO_LARGE, SLOW, WRONG, BROKEN, FAST, CRASHES, MIDDLE]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    """Imports from bench/. The tables of this process are as they were when the test ends."""
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    table = importlib.import_module("tile_table")
    for name in table.sources()["tiles.py"]:
        monkeypatch.setattr(tiles, name, copy.deepcopy(getattr(tiles, name)))
    for rows in (
        gluon_tiles.TILES,
        gluon_tiles.KEYS,
        gluon_tiles.QUERIES,
    ):  # the tables that others have imported themselves
        for D, tile in rows.items():
            monkeypatch.setitem(rows, D, tile)
    return importlib.import_module


class Pool:
    """Stands in for the compiler's processes: does at once, and here, what it is asked for."""

    def submit(self, function, *arguments) -> Future:
        future: Future = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, cancel_futures):
        pass


@pytest.fixture
def tune(load, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """tune.py with the GPU stood in for: compiler, launches and clock, each by the tile that is in the table."""
    tune = load("tune")
    entry = attention(load)

    def contender(q, *rest):
        if entry.get() == CRASHES:
            raise RuntimeError("out of resource: shared memory, Required: 262144, Hardware limit: 232448")
        return xdyna_kernels.reference_attention(q * (0.8 if entry.get() == WRONG else 1), *rest, backend="sdpa")

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

    def compile_case(case):
        if case.tile == BROKEN:
            raise RuntimeError("PassManager::run failed")
        return large if case.tile == TOO_LARGE else fine

    stand = load("gpu_stand")
    monkeypatch.setattr(aot, "compile_case", compile_case)
    monkeypatch.setattr(load("gate"), "ProcessPoolExecutor", lambda **_: Pool())
    monkeypatch.setattr(stand, "interleaved", interleaved)
    monkeypatch.setattr(stand.opponents, "build", build)
    monkeypatch.setattr(tune, "GRIDS", {key: [] for key in tune.GRIDS} | {("ATTENTION", True): GRID})
    return tune


def attention(load, limit: int = 48):
    return load("tile_table").Entry("ATTENTION", CHIP, "half", limit)


def choose(load, entry, grid, stand):
    """As `tune` does for one entry."""
    tune = load("tune")
    with tune.Gate([load("shapes").Shape(1, 2, 20, 2, 8)]) as gate:
        notes = gate.compile({entry: [entry.get(), *grid]}, float("inf"))[entry]
        return tune.choose(entry, notes, gate, stand)


def plan(load, budget: float = float("inf"), tokens: tuple[int, ...] = (20,), D: int = 8, names=("triton", "gluon")):
    shape = load("shapes").Shape
    flags = load("attn_flags")
    return flags.Plan(
        device=torch.device("cpu"),
        dtype="bf16",
        shapes=[shape(1, 2, n, 2, D) for n in tokens],
        absent=[],
        directions=("forward",),
        names=names,
        repeats=1,
        seed=0,
        budget=budget,
    )


@pytest.fixture
def table(tmp_path: Path) -> Path:
    for module in (tiles, gluon_tiles):
        path = Path(module.__file__)
        (tmp_path / path.name).write_text(path.read_text())
    return tmp_path / "tiles.py"


def read(path: Path) -> dict:
    """What the program would read of the file."""
    found: dict = {"__name__": "tiles"}
    exec(compile(path.read_text(), path, "exec"), found)
    return found


def test_the_fastest_right_tile_is_written(load, tune, table, capsys):
    records: list[dict] = []
    before = {name: copy.deepcopy(getattr(tiles, name)) for name in load("tile_table").sources()["tiles.py"]}
    del before["TIMED"]
    gluon = (table.parent / "gluon_tiles.py").read_bytes()
    tune.tune(plan(load), CHIP, [("half", "bf16")], table.parent, lambda record: records.append(copy.deepcopy(record)))
    after = read(table)
    assert tuple(after["ATTENTION"][CHIP, "half"].pop(48)) == tuple(FAST)
    del before["ATTENTION"][CHIP, "half"][48]
    assert {name: after[name] for name in before} == before  # and nothing else has changed
    assert (table.parent / "gluon_tiles.py").read_bytes() == gluon
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
    assert stand.clock(attention(load), [FAST, SLOW], 1) == [6.0, 54.0]
    assert stand.clock(attention(load, 96), [FAST, SLOW], 1) == [0.0, 0.0]  # no head of this plan is so wide


def test_a_present_tile_stays_unless_beaten_beyond_noise(load, tune, table, monkeypatch):
    entry = attention(load)
    entry.put(MIDDLE)
    stand = tune.GpuStand(plan(load), torch.bfloat16)
    for ms, winner in ((1.99, MIDDLE), (1.9, FAST)):
        monkeypatch.setitem(MS, FAST, ms)
        assert choose(load, entry, GRID, stand)[0] == winner


@pytest.mark.parametrize("present", [WRONG, CRASHES, TOO_LARGE, BROKEN])
def test_a_present_tile_that_cannot_be_used_is_replaced(load, tune, present):
    entry = attention(load)
    entry.put(present)
    stand = tune.GpuStand(plan(load), torch.bfloat16)
    assert choose(load, entry, GRID, stand)[0] == FAST
    with pytest.raises(tune.TuneError, match=r"no tile of 4 can be used"):
        choose(load, entry, [WRONG, CRASHES, TOO_LARGE, BROKEN], stand)


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
    old = {path: path.read_bytes() for path in table.parent.iterdir()}
    with pytest.raises(tune.TuneError if moment == "nothing fits" else KeyboardInterrupt):
        tune.tune(plan(load), CHIP, [("half", "bf16")], table.parent, lambda record: None)
    assert {path: path.read_bytes() for path in table.parent.iterdir()} == old


def test_a_spent_budget_leaves_the_rest_as_it_was(load, tune, table, capsys):
    old = table.read_text()
    records: list[dict] = []
    tune.tune(plan(load, budget=-1), CHIP, [("half", "bf16"), ("ieee", "fp32")], table.parent, records.append)
    assert table.read_text() == old
    assert [entry["trials"] for entry in records[-1]["entries"]] == [[]] * len(records[-1]["entries"])
    assert capsys.readouterr().out.count(": not timed") == len(records[-1]["entries"]) >= 4


def test_half_the_budget_is_for_compiling_and_what_was_not_compiled_stays(load, tune, table, monkeypatch, capsys):
    asked, compile = [], tune.Gate.compile

    def only_first(self, grids, seconds):
        asked.append((len(grids), seconds))
        found = compile(self, grids, float("inf"))
        return dict(list(found.items())[:1])

    monkeypatch.setattr(tune.Gate, "compile", only_first)
    records: list[dict] = []
    tune.tune(plan(load, budget=100), CHIP, [("half", "bf16"), ("ieee", "fp32")], table.parent, records.append)
    entries = records[-1]["entries"]
    assert asked == [(len(entries), 50)]  # those of both arithmetics, in one call
    assert [bool(entry["trials"]) for entry in entries] == [True] + [False] * (len(entries) - 1)
    assert capsys.readouterr().out.count(": not timed") == len(entries) - 1


def test_the_grids_fit_the_table_and_hold_powers_of_two(load):
    tune, tile_table = load("tune"), load("tile_table")
    kinds = dict.fromkeys(tile_table.TABLES, tiles.Attention)
    kinds |= {"PROJECTION": tiles.Projection} | dict.fromkeys(tile_table.GLUON, gluon_tiles.Tile)
    assert {name for name, _ in tune.GRIDS} == set(tile_table.TABLES)
    for (name, _), grid in tune.GRIDS.items():
        assert len(set(grid)) == len(grid)
        assert (
            10 < len({tile[:4] if name in tile_table.GLUON else tile for tile in grid}) <= 50
        )  # compiled, each shape's
        for tile in grid:
            assert isinstance(tile, kinds[name])
            sizes = tile[:-1] if name not in tile_table.GLUON else (tile.queries, tile.keys)
            assert all(size & (size - 1) == 0 for size in sizes)
    for name in tile_table.GLUON:
        assert {tile.warpgroups for tile in tune.GRIDS[name, True]} == set(gluon_tiles.REGISTERS)


def test_a_fast_tile_that_does_not_compile_for_all_its_entry_serves_is_passed_over(load, tune, monkeypatch):
    """It is right and fast on the plan's shapes; with tails at 48 channels, say, it would spill."""
    entry, gate = attention(load), load("gate")
    monkeypatch.setattr(gate.Gate, "vet", lambda self, entry, tile: "spills" if tile == FAST else "")
    winner, trials = choose(load, entry, GRID, tune.GpuStand(plan(load), torch.bfloat16))
    assert winner == MIDDLE
    assert [(trial.ms, trial.note) for trial in trials if trial.tile == FAST] == [(1.0, "spills")]
    monkeypatch.setattr(gate.Gate, "vet", lambda self, entry, tile: "spills")
    with pytest.raises(tune.TuneError, match=r"can be used; of the present one: spills"):
        choose(load, entry, GRID, tune.GpuStand(plan(load), torch.bfloat16))


def test_slow_tiles_are_timed_less_often(load, tune, monkeypatch):
    asked = []

    def clock(self, entry, candidates, rounds):
        asked.append((rounds, candidates))
        return [MS.get(tile, 5.0) for tile in candidates]

    entry = attention(load)
    present = entry.get()
    monkeypatch.setattr(tune.GpuStand, "clock", clock)
    monkeypatch.setitem(MS, MIDDLE, 1.1)
    assert choose(load, entry, GRID, tune.GpuStand(plan(load), torch.bfloat16))[0] == FAST
    few, many = (set(candidates) for _, candidates in asked)
    assert asked[0][0] < asked[1][0]
    assert few == {present, SLOW, FAST, MIDDLE}
    assert many == {present, FAST, MIDDLE}  # the present one's place is to be known, slow as it may be


@pytest.mark.parametrize(("name", "rows"), [("GLUON", "TILES"), ("GLUON_KEYS", "KEYS"), ("GLUON_QUERIES", "QUERIES")])
def test_a_gluon_tile_is_tried_on_its_backend_and_written_to_its_table(load, tune, table, monkeypatch, name, rows):
    """Nothing but Gluon is asked for; the operator sees each tile where it takes its own from."""
    tried, entries = getattr(gluon_tiles, rows), load("tile_table").entries
    fast, slow, used = gluon_tiles.Tile(2, 64, 32, 2), gluon_tiles.Tile(2, 64, 64, 2), []

    def build(name):
        def contender(*tensors):
            used.append((name, tried[40]))
            return xdyna_kernels.reference_attention(*tensors, backend="sdpa")

        return contender

    def interleaved(calls, device, repeats, seed):
        times = {}
        for name, call in calls.items():
            call()
            times[name] = SimpleNamespace(median=1.0 if used[-1][1] == fast else 2.0)
        return times

    stand, aot = load("gpu_stand"), importlib.import_module("xdyna_kernels.gluon_ahead_of_time")
    figures = aot.Figures(spills=0, stack=0, shared=1, instructions=1, products={}, unordered=0, order="")

    def compile_kernel(kernel, D, dtype, tile):
        return [replace(figures, order=aot.PIPELINED[kernel])] * tile.warpgroups

    monkeypatch.setattr(aot, "compile_kernel", compile_kernel)
    monkeypatch.setattr(stand.opponents, "build", build)
    monkeypatch.setattr(stand, "interleaved", interleaved)
    monkeypatch.setitem(tune.GRIDS, (name, True), [slow, fast])
    monkeypatch.setattr(load("tile_table"), "entries", lambda *pair: [e for e in entries(*pair) if e.table == name])
    old, timed, records = table.read_text(), tiles.TIMED, []
    monkeypatch.setattr(tiles, "TIMED", dict(timed))
    only = plan(load, D=40, names=("gluon",))
    tune.tune(only, CHIP, [("half", "bf16"), ("ieee", "fp32")], table.parent, records.append)
    assert {name for name, _ in used} == {"gluon"}
    (entry,) = records[-1]["entries"]
    assert entry["after"] == fast._asdict()
    assert [trial["ms"] for trial in entry["trials"]] == [2.0, 2.0, 1.0]
    written = read(table.parent / "gluon_tiles.py")
    for table_name in ("TILES", "KEYS", "QUERIES"):
        assert {D: tuple(tile) for D, tile in written[table_name].items()} == getattr(gluon_tiles, table_name)
    assert tried[40] == fast
    assert written["REGISTERS"] == gluon_tiles.REGISTERS
    key = (name, CHIP, "half", 40)
    assert read(table)["TIMED"][key] == tiles.TIMED[key] != timed.get(key)
    assert old == load("tile_table").rewrite(table.read_text(), {"TIMED": timed})  # and nothing else has changed


def test_gluon_has_entries_for_hopper_in_half_precision_only(load):
    entries = load("tile_table").entries
    found = [(chip, kind) for chip in ("sm_80", "sm_90", "sm_100") for kind in ("half", "tf32", "ieee")]
    assert [pair for pair in found if any(e.backend == "gluon" for e in entries(*pair))] == [(CHIP, "half")]
    gluon = [entry for entry in entries(CHIP, "half") if entry.backend == "gluon"]
    assert {entry.table for entry in gluon} == {"GLUON", "GLUON_KEYS", "GLUON_QUERIES"}
    shape = load("shapes").Shape
    served = [
        [(N, D) for N in (18, 20) for D in (32, 40, 48, 80, 160) if e.serves(shape(1, 2, N, 2, D))] for e in gluon
    ]
    # Each its width of heads alone; of the keys', no tokens but in fours.
    any_number = [[(18, D), (20, D)] for D in (40, 80, 160)]
    assert served == [*any_number, [(20, 40)], [(20, 80)], *any_number[:2]]
    assert (str(gluon[0]), str(gluon[-1])) == ("sm_90 half gluon D = 40", "sm_90 half gluon queries D = 80")


def test_entries_of_the_backward_are_judged_by_gradients(load, tune, monkeypatch):
    """A tile whose result is right and whose gradients are not is never chosen."""
    entry = load("tile_table").Entry("BACKWARD_KEYS", CHIP, "half", 48)

    def build(name):
        def contender(*tensors):
            out = xdyna_kernels.reference_attention(*tensors, backend="sdpa")
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
    winner, trials = choose(load, entry, [WRONG, FAST], tune.GpuStand(plan(load), torch.bfloat16))
    assert winner == FAST
    assert {trial.tile: trial.ms for trial in trials} == {entry.get(): 2.0, WRONG: None, FAST: 1.0}


def test_the_table_is_written_as_it_stands(load):
    """A table that did not change is the same file, to the byte."""
    tile_table, folder = load("tile_table"), Path(tiles.__file__).parent
    for name, tables in tile_table.sources().items():
        source = (folder / name).read_text()
        assert tile_table.rewrite(source, tables) == source


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
