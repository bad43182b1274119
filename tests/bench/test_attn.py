"""bench/attn.py on small shapes: what it counts, that it catches wrong results, and what it writes.

What needs a GPU is run here against stand-ins for it, as far as that goes.
"""

import builtins
import importlib
import json
import re
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch
import xdyna_kernels

ROOT = Path(__file__).parents[2]
SMALL = ["--device", "cpu", "--shape", "20x8", "--heads", "2", "--frames", "2", "--repeats", "3", "--no-compile-report"]


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(str(ROOT / "bench"))
    return importlib.import_module


@pytest.fixture
def attn(load, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # The probes are large: the roof of this machine is not what is tested.
    roofline = load("roofline")

    class Probes(roofline.Probes):
        def __init__(self, device, dtype):
            self.calls = {"probe matmul": lambda: None, "probe copy": lambda: None}
            self._amounts = {"probe matmul": 1000, "probe copy": 1000}

    monkeypatch.setattr(roofline, "Probes", Probes)
    return load("attn")


def test_work_is_counted_exactly(load):
    shapes = load("shapes")
    shape = shapes.Shape(2, 17, 7168, 8, 40)
    products = 2 * 2 * 17 * 8 * 2 * 7168 * 7168 * 2 * 40 / 2  # 2 branches x (q k^T and p v) x 2 per multiply-add
    linears = 2 * 2 * 17 * 7168 * 2 * 320 * 320
    work = shapes.work(shape, "forward", 2)
    assert work.flops == 2 * products + linears
    assert work.exps == 2 * 2 * 17 * 8 * 7168 * 7168
    clip, weights = 2 * 17 * 7168 * 320 * 2, 2 * 320 * 321 * 2
    assert work.bytes == 6 * clip + 2 * 2 * 7168 * 320 * 2 + weights
    both = shapes.work(shape, "forward+backward", 2)
    assert both.flops == 3.5 * 2 * products + 3 * linears


def test_flops_agree_with_torchs_counter(load):
    from torch.utils.flop_counter import FlopCounterMode

    shapes = load("shapes")
    shape = shapes.Shape(2, 3, 12, 2, 8)
    tensors, _ = shapes.draw(shape, torch.float32, torch.device("cpu"), 0)
    with FlopCounterMode(display=False) as counter:
        xdyna_kernels.reference_attention(*tensors, backend="eager")
    assert counter.get_total_flops() == shapes.work(shape, "forward", 4).flops


def test_bound_is_the_slowest_part(load):
    roofline, shapes = load("roofline"), load("shapes")
    work = shapes.Work(flops=100, bytes=10, exps=50)
    assert roofline.Roofline(100, 100, None).bound(work) == (1000, "matmul")
    assert roofline.Roofline(1000, 5, 100).bound(work) == (2000, "memory")
    assert roofline.Roofline(1000, 100, 10).bound(work) == (5000, "exp")


@pytest.mark.parametrize("heads_and_rows", ["all", "some"])
def test_truth_on_slices_is_the_whole_truth(load, monkeypatch, heads_and_rows):
    parity, shapes = load("parity"), load("shapes")
    if heads_and_rows == "some":
        monkeypatch.setattr(parity, "_ELEMENTS", 1)
    tensors, grad = shapes.draw(shapes.Shape(2, 3, 11, 4, 8), torch.float64, torch.device("cpu"), 0)
    for gradient in (None, grad):
        truth = parity.Truth(tensors, gradient)
        truth.limits = dict.fromkeys(truth.limits, 1e-12)
        verdict = truth.judge(lambda *t: xdyna_kernels.reference_attention(*t, backend="eager"))
        assert verdict.failed == []
        assert len(verdict.errors) == (1 if gradient is None else 12)


def right(*tensors):
    return xdyna_kernels.reference_attention(*tensors, backend="sdpa")


def wrong_scale(q, *rest):
    """Of heads padded from 40 to 64 channels."""
    return right(q * (40 / 64) ** 0.5, *rest)


def missing_key(q, k, v, q_ref, k_ref, v_ref, *rest):
    return right(q, k, v, q_ref, k_ref[:, :-1], v_ref[:, :-1], *rest)


def nan(*tensors):
    return right(*tensors) * float("nan")


def half_gradient(*tensors):
    out = right(*tensors)
    return out / 2 + out.detach() / 2


def raises(*tensors):
    raise RuntimeError("a kernel that cannot run")


def plant(attn: ModuleType, monkeypatch: pytest.MonkeyPatch, name: str, contender):
    """A backend of the package's own, for as long as the test runs."""
    build, names = attn.opponents.build, (*attn.opponents.own_backends(), name)
    monkeypatch.setattr(attn.opponents, "build", lambda wanted: contender if wanted == name else build(wanted))
    monkeypatch.setattr(attn.opponents, "own_backends", lambda: names)


@pytest.mark.parametrize("wrong", [wrong_scale, missing_key, nan, half_gradient, raises])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_wrong_results_fail_and_are_not_timed(attn, monkeypatch, tmp_path, capsys, wrong, dtype):
    plant(attn, monkeypatch, "wrong", wrong)
    path = tmp_path / "rows.json"
    assert attn.main([*SMALL, "--only", "wrong,sdpa,released", "--dtype", dtype, "--json", str(path)]) == 1
    assert "FAIL" in capsys.readouterr().out
    rows = json.loads(path.read_text())["rows"]
    failed = [row for row in rows if row["status"] == "FAIL"]
    assert {row["backend"] for row in failed} == {"wrong"}
    assert all(row["ms"] is None for row in failed)
    assert {row["direction"] for row in failed} >= {"forward+backward"}
    assert all(row["ms"] > 0 for row in rows if row["backend"] != "wrong")


def two_percent(opponents: ModuleType):
    """Scores a fiftieth too large."""

    def attend(q, k, v):
        return torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=1.02 * q.shape[-1] ** -0.5)

    return opponents.folded(attend)


def bias_of_four_fifths(opponents: ModuleType):
    return lambda *tensors: right(*tensors[:7], 0.8 * tensors[7], *tensors[8:])


@pytest.mark.parametrize("make", [two_percent, bias_of_four_fifths])
@pytest.mark.parametrize("dtype", ["fp32", "bf16", "fp16"])
def test_a_result_that_is_a_little_wrong_fails_forward(attn, monkeypatch, tmp_path, capsys, make, dtype):
    plant(attn, monkeypatch, "wrong", make(attn.opponents))
    path = tmp_path / "rows.json"
    arguments = ["--device", "cpu", "--shape", "256x40", "--frames", "1", "--direction", "forward", "--parity-only"]
    arguments += ["--only", "wrong,sdpa,released", "--dtype", dtype, "--no-compile-report", "--json", str(path)]
    assert attn.main(arguments) == 1
    assert [row["status"] for row in json.loads(path.read_text())["rows"]] == ["FAIL", "ok", "ok"]


def test_eager_is_no_contender_in_half_precision(attn, tmp_path, capsys):
    """Its scores are rounded, which the limits do not allow for."""
    path = tmp_path / "rows.json"
    for dtype, status in (("bf16", "not available"), ("fp16", "not available"), ("fp32", "ok")):
        assert attn.main([*SMALL, "--parity-only", "--only", "eager,sdpa", "--dtype", dtype, "--json", str(path)]) == 0
        rows = json.loads(path.read_text())["rows"]
        assert {row["backend"]: row["status"] for row in rows} == {"eager": status, "sdpa": "ok"}


def test_refusing_backends_are_not_available_with_the_reason(attn, monkeypatch, tmp_path, capsys):
    def refuses(*tensors):
        raise ValueError("q is on cpu, expected cuda")

    plant(attn, monkeypatch, "picky", refuses)
    path = tmp_path / "rows.json"
    only = "picky,sdpa,folded-cudnn"
    assert attn.main([*SMALL, "--only", only, "--direction", "forward", "--json", str(path)]) == 0
    assert "not available: q is on cpu, expected cuda" in capsys.readouterr().out
    picky, _, cudnn = json.loads(path.read_text())["rows"]
    assert picky["status"] == cudnn["status"] == "not available"
    assert cudnn["note"]


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
    with pytest.raises(SystemExit, match="2"):
        attn.main([*SMALL, "--plot", str(tmp_path / "x.foo")])
    captured = capsys.readouterr()
    assert "draws no .foo" in captured.err.splitlines()[-1]
    assert captured.out == ""


def test_a_shape_named_twice_is_run_once(attn):
    _, plan = attn.parse("", ["--device", "cpu", *(f"--shape={shape}" for shape in ("20x8", "12x8", "020x8", "20x8"))])
    assert [(shape.N, shape.D) for shape in plan.shapes] == [(20, 8), (12, 8)]


@pytest.mark.parametrize("seed", [-(2**63), 2**64 - 1])
def test_seeds_that_torch_takes_are_taken(attn, seed):
    _, plan = attn.parse("", ["--device", "cpu", "--seed", str(seed)])
    torch.Generator().manual_seed(plan.seed)


def test_step_counts_layers_and_best_opponents(load):
    rows = [
        {"shape": {"N": n, "D": d}, "direction": "forward", "backend": name, "opponent": name != "sdpa", "ms": ms}
        for n, d in load("shapes").LEVELS
        for name, ms in (("sdpa", 1.0), ("flex", 2.0 if n > 1000 else 4.0), ("released", 3.0))
    ]
    attn_rows = load("attn_rows")
    sums = {made["backend"]: (made["ms"], made["ratio"]) for made in attn_rows.step(rows)}
    best = 10 * 2 + 6 * 3
    flex = 10 * 2 + 6 * 4
    assert sums == {
        "sdpa": (16, best / 16),
        "flex": (flex, best / flex),
        "released": (48, best / 48),
        "best opponents": (best, 1),
    }
    assert attn_rows.step(rows[:-3]) == []  # a level is missing
    rows[0] |= {"ms": None}
    first, *others = attn_rows.step(rows)
    assert (first["backend"], first["ms"], first["ratio"]) == ("sdpa", None, None)
    assert all(made["ms"] for made in others)
    assert "not timed" in attn_rows.step_lines([first, *others])[1]


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


def test_a_compile_report_of_nothing_is_refused(load, capsys):
    pytest.importorskip("triton", reason="nothing can be compiled")
    with pytest.raises(SystemExit, match="2"):
        load("compile_report").main(["--only", "nonsense"])
    captured = capsys.readouterr()
    assert "no kernel's name contains nonsense" in captured.err.splitlines()[-1]
    assert captured.out == ""


def test_groups_name_the_packages_backends(attn, capsys):
    _, plan = attn.parse("", ["--device", "cpu", "--only", "kernels,released,own"])
    own, kernels = attn.opponents.own_backends(), attn.opponents.kernels()
    assert set(kernels) == set(own) - {"eager", "sdpa"}
    assert plan.names == tuple(dict.fromkeys([*kernels, "released", *own]))


def test_cuda_rounds_against_stand_ins(load, monkeypatch):
    """The order of flush, events and call, and the peak: with a clock of this machine in place of CUDA's."""
    timing, log = load("timing"), []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")
            self.at = time.perf_counter()

        def elapsed_time(self, end):
            return 1000 * (end.at - self.at)

    flush = SimpleNamespace(zero_=lambda: log.append("flush"))
    monkeypatch.setattr(torch, "empty", lambda *size, **options: flush)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("synchronize"))
    memory = SimpleNamespace(memory_allocated=100, max_memory_allocated=350, reset_peak_memory_stats=None)
    for name, value in vars(memory).items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    times = timing.interleaved({"a": lambda: log.append("call")}, torch.device("cuda"), repeats=2, seed=0)
    one_round = ["flush", "event", "call", "event", "synchronize"]
    assert log[-10:] == one_round * 2
    assert times["a"].peak == 250
    assert len(times["a"].ms) == 2


def test_facts_of_a_gpu_against_stand_ins(load, monkeypatch):
    machine, cuda = load("machine"), torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: SimpleNamespace(uuid="1234"))

    class NVMLError(Exception):
        pass

    def handle(uuid):
        assert uuid == "GPU-1234"
        return "gpu"

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_CLOCK_SM=1,
        NVML_CLOCK_MEM=2,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetHandleByUUID=handle,
        nvmlDeviceGetName=lambda gpu: "a GPU",
        nvmlSystemGetDriverVersion=lambda: "580.1",
        nvmlDeviceGetClockInfo=lambda gpu, clock: 1000 * clock,
        nvmlDeviceGetMaxClockInfo=lambda gpu, clock: 1980,
        nvmlDeviceGetTemperature=lambda gpu, sensor: 40,
        nvmlDeviceGetPowerUsage=lambda gpu: 123000,
        nvmlDeviceGetEnforcedPowerLimit=lambda gpu: 700000,
        nvmlDeviceGetCurrentClocksThrottleReasons=lambda gpu: 4,
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    sample = machine.sample(cuda)
    assert sample.keys() == machine._SMI.keys()
    assert (sample["watts"], sample["sm_mhz"], sample["throttle_reasons"]) == (123.0, 1000, "0x4")

    def no_driver():
        raise NVMLError("no driver")

    nvml.nvmlInit = no_driver
    assert machine.sample(cuda) == {"unknown": "nvidia-ml-py: no driver"}

    monkeypatch.setitem(sys.modules, "pynvml", None)
    values = "a GPU, 580.1, 1000, 1980, 2000, 40, 123.00, 700.00, 0x4\n"
    monkeypatch.setattr(machine.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout=values))
    assert machine.sample(cuda)["throttle_reasons"] == "0x4"
    monkeypatch.setattr(machine.subprocess, "run", lambda *a, **k: SimpleNamespace(stdout="No devices\n"))
    assert "unknown" in machine.sample(cuda)


def test_every_backend_of_the_package_appears_by_itself(load, monkeypatch):
    """And a choice of backward is a contender of its own, in the direction that it is about."""
    opponents, seen = load("opponents"), []
    backwards = ("triton", "new", "recompute")
    contract = SimpleNamespace(BACKENDS=(), NAMES=("eager", "triton", "new"), BACKWARDS=backwards)
    monkeypatch.setattr(opponents, "_contract", lambda: contract)
    monkeypatch.setattr(xdyna_kernels, "reference_attention", lambda *tensors, **options: seen.append(options))
    assert opponents.own_backends() == ("eager", "triton", "new", "triton-recompute")
    assert opponents.kernels() == ("triton", "new", "triton-recompute")
    for name in opponents.own_backends():
        opponents.build(name)()
    assert seen == [
        {"backend": "eager"},
        {"backend": "triton", "backward": "triton"},
        {"backend": "new", "backward": "new"},
        {"backend": "triton", "backward": "recompute"},
    ]
    contract.BACKWARDS = ("triton", "recompute")  # as before "new" had its own
    opponents.build("new")()
    assert seen[-1] == {"backend": "new", "backward": "triton"}
    assert not opponents.runs_in("triton-recompute", "forward")
    assert opponents.runs_in("triton-recompute", "forward+backward")
    assert all(opponents.runs_in(name, "forward") for name in ("triton", "folded-flash", "released"))
    del contract.BACKWARDS  # as before there was a choice
    assert opponents.own_backends() == contract.NAMES
    opponents.build("triton")()
    assert seen[-1] == {"backend": "triton"}
