"""bench/attn.py --tune without a GPU, from its flags to the tables that it writes, and all that may cut it short.

The operator is stood in for by the CPU's, which looks at the tile that it would have been launched with, and the
clock by one that knows how long each tile takes: see tune_stand_in.py.
"""

import copy
import importlib
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import xdyna_kernels
from tune_stand_in import BROKEN, CHIP, CRASHES, FAST, GRID, MIDDLE, SLOW, TOO_LARGE, WRONG, plan, read
from xdyna_kernels import gluon_tiles, tiles

pytest.importorskip("triton", reason="candidates are compiled by triton")


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
