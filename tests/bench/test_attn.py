"""bench/attn.py as a command, on small shapes: what it prints and records, and the flags that it refuses."""

import builtins
import importlib
import json
import re
from dataclasses import replace

import pytest
import torch
from small_run import SMALL


def test_record_holds_what_readers_need(attn, tmp_path, capsys):
    path, picture = tmp_path / "rows.json", tmp_path / "roof.png"
    pytest.importorskip("matplotlib", reason="for --plot")
    assert attn.main([*SMALL, "--only", "sdpa,released", "--json", str(path), "--plot", str(picture)]) == 0
    record = json.loads(path.read_text())
    assert {"device", "commit", "versions", "date"} <= record["machine"].keys()
    assert record["seed"] == 0
    assert len(record["rows"]) == 4
    for row in record["rows"]:
        assert row["shape"] == {"B": 1, "F": 3, "N": 20, "H": 2, "D": 8}
        assert row["ms_p20"] <= row["ms"] * 1.001 <= row["ms_p80"] * 1.002
        assert row["error"] <= row["limit"]
        assert len(row["samples_ms"]) == 3
        assert row["backend"] != "released" or row["ratio"] == 1.0
    assert picture.read_bytes().startswith(b"\x89PNG")
    compare = importlib.import_module("compare")
    assert compare.main([str(path), str(path)]) == 0


def test_parity_only_and_spent_budgets_time_nothing(attn, tmp_path, capsys):
    path = tmp_path / "rows.json"
    for arguments, code in ((["--parity-only"], 0), (["--budget", "0"], 1)):
        assert attn.main([*SMALL, *arguments, "--only", "sdpa,released", "--json", str(path)]) == code
        assert "not timed" in capsys.readouterr().out
        assert all(row["ms"] is None for row in json.loads(path.read_text())["rows"])


def test_plot_without_matplotlib_says_so(attn, monkeypatch, tmp_path, capsys):
    real = builtins.__import__

    def no_matplotlib(name, *arguments, **more):
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", no_matplotlib)
    assert attn.main([*SMALL, "--only", "sdpa", "--direction", "forward", "--plot", str(tmp_path / "p.png")]) == 0
    assert "matplotlib is not installed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--only", "sdpa,nobody"], "nobody"),
        (["--shape", "20"], "7168x40"),
        (["--shape", "0x8"], "positive"),
        (["--repeats", "-1"], "positive"),
        (["--frames", "-1"], "positive"),
        (["--json", "nowhere/rows.json"], "nowhere"),
        (["--json", "."], "is a folder"),
        (["--plot", "."], "is a folder"),
        (["--seed", "99999999999999999999999"], "--seed"),
        (["--seed", str(2**64)], "--seed"),
    ],
)
def test_flags_that_make_no_sense(attn, capsys, arguments, words):
    with pytest.raises(SystemExit, match="2"):
        attn.main([*SMALL, *arguments])
    captured = capsys.readouterr()
    assert words in captured.err.splitlines()[-1]
    assert captured.out == "", "it has begun"


def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_runs(attn, tmp_path, capsys):
    pytest.importorskip("matplotlib", reason="it knows what it draws")
    for name, reason in (("x.foo", "draws no .foo"), ("x", "give it a name like x.png")):
        with pytest.raises(SystemExit, match="2"):
            attn.main([*SMALL, "--plot", str(tmp_path / name)])
        captured = capsys.readouterr()
        assert reason in captured.err.splitlines()[-1]
        assert captured.out == ""


def test_a_shape_named_twice_is_run_once(attn):
    _, plan = attn.parse("", ["--device", "cpu", *(f"--shape={shape}" for shape in ("20x8", "12x8", "020x8", "20x8"))])
    assert [(shape.N, shape.D) for shape in plan.shapes] == [(20, 8), (12, 8)]


@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_seeds_that_torch_takes_are_taken(attn, seed):
    _, plan = attn.parse("", ["--device", "cpu", "--seed", str(seed)])
    torch.Generator().manual_seed(plan.seed)


def test_shapes_that_only_a_gpu_could_time_are_shown_as_not_timed(attn, monkeypatch, tmp_path, capsys):
    flags = importlib.import_module("attn_flags")
    monkeypatch.setattr(flags, "SMALL_LEVELS", ((20, 8),))
    path = tmp_path / "rows.json"
    arguments = ["--device", "cpu", "--frames", "1", "--repeats", "1", "--no-compile-report", "--json", str(path)]
    assert attn.main(arguments) == 0
    text, record = capsys.readouterr().out, json.loads(path.read_text())
    shapes, names = importlib.import_module("shapes"), (*attn.opponents.own_backends(), *attn.opponents.OPPONENTS)
    absent = [row for row in record["rows"] if row["status"] == "not timed"]
    levels = {(row["shape"]["N"], row["shape"]["D"], row["direction"], row["backend"]) for row in absent}
    rows = {(x, name) for x in shapes.DIRECTIONS for name in names if attn.opponents.runs_in(name, x)}
    assert levels == {(*level, *row) for level in shapes.LEVELS for row in rows}
    assert all(row["ms"] is row["error"] is row["ratio"] is None for row in absent)
    assert text.count("not timed, there is no GPU") == len(shapes.LEVELS) * len(shapes.DIRECTIONS)
    assert "16 layers of a step, forward: not timed" in text
    assert {made["ms"] for made in record["step"]} == {None}
    compare = importlib.import_module("compare")
    assert compare.main([str(path), str(path), "--ratio-to", "released"]) == 0


def test_the_compile_report_of_the_bench_is_compiled_here(attn, monkeypatch, capsys):
    pytest.importorskip("triton", reason="nothing can be compiled")
    report = importlib.import_module("compile_report")
    assert len([case for case in report.table_cases() if re.search(report.SUMMARY, case.name)]) >= 4
    monkeypatch.setattr(report, "SUMMARY", "sm_90 half attend D=40 even")
    assert attn.compiled() == 0
    assert re.search(r"sm_90 half attend D=40 even.* \d+ \(\d+\) +0 ", capsys.readouterr().out)


@pytest.mark.parametrize(("found", "code"), [([], 0), (["spills: 3"], 1)])
def test_a_fault_of_the_compile_report_fails_the_bench(attn, monkeypatch, capsys, found, code):
    pytest.importorskip("triton", reason="nothing can be compiled")
    report, aot = importlib.import_module("compile_report"), importlib.import_module("xdyna_kernels.ahead_of_time")
    figures = aot.Figures(registers=100, spills=0, stack=0, shared=1000, tensor_core=1)
    monkeypatch.setattr(report, "SUMMARY", "sm_90 half attend D=40 even")
    monkeypatch.setattr(report, "compile_case", lambda case: figures)
    monkeypatch.setattr(report, "faults", lambda *case: found)
    arguments = [argument for argument in SMALL if argument != "--no-compile-report"]
    assert attn.main([*arguments, "--only", "sdpa", "--parity-only"]) == code
    captured = capsys.readouterr()
    assert ("FAIL spills" in captured.out) == ("FAIL: " in captured.err) == (code == 1)


def test_the_compile_report_holds_gluon_kernels_to_their_record(load, monkeypatch, tmp_path, capsys):
    pytest.importorskip("triton", reason="nothing can be compiled")
    report = load("compile_report")
    assert report.main(["--only", "gluon project C=640"]) == 0
    assert re.search(r"sm_90 gluon project C=640 +60 \(60\) +0 +\d+ +8  barrier QK wait\(1\)", capsys.readouterr().out)
    record = tmp_path / "gluon.json"
    record.write_text(report.GLUON.read_text().replace('"instructions": 60', '"instructions": 50'))
    monkeypatch.setattr(report, "GLUON", record)
    assert report.main(["--only", "gluon project C=640"]) == 1
    assert "FAIL instructions: 60, recorded 50" in capsys.readouterr().out


def test_gluon_kernels_at_fault_are_not_recorded(load, monkeypatch, tmp_path, capsys):
    pytest.importorskip("triton", reason="nothing can be compiled")
    report, rows = load("compile_report"), [("project", 640)]
    monkeypatch.setattr(report, "GLUON", tmp_path / "gluon.json")
    assert report.gluon_report(rows, update=False, whole=False) == 1
    assert "FAIL not recorded" in capsys.readouterr().out
    monkeypatch.setattr(report.gluon, "pipelined", lambda kernel, tile: "barrier QK wait(0)")
    assert report.gluon_report(rows, update=True, whole=False) == 1
    assert "FAIL order: barrier QK wait(1), recorded barrier QK wait(0)" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


def test_every_warpgroups_loop_is_held_to_the_record(load, capsys):
    pytest.importorskip("triton", reason="nothing can be compiled")
    report = load("compile_report")
    recorded = report.gluon.read_golden(report.GLUON)
    good = recorded["project"][640]
    idle = replace(good, order="barrier QK wait(0)", instructions=good.instructions - 1)
    for loops, message in (([good], "FAIL loops: 1 were found, of 2 warpgroups"), ([good, idle], "FAIL order")):
        assert report.show_gluon([("project", 640)], [loops], recorded) == 1
        assert message in capsys.readouterr().out
    assert report.show_gluon([("project", 640)], [[good, good]], recorded) == 0


def test_a_compile_report_of_nothing_is_refused(load, capsys):
    pytest.importorskip("triton", reason="nothing can be compiled")
    with pytest.raises(SystemExit, match="2"):
        load("compile_report").main(["--only", "nonsense"])
    captured = capsys.readouterr()
    assert "no kernel's name contains nonsense" in captured.err.splitlines()[-1]
    assert captured.out == ""
