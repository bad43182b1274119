"""The figures that bench/attn.py is made of: work and bounds, the truth that results are held to, time, and sums.

What needs a GPU is run here against stand-ins for it, as far as that goes.
"""

import sys
import time
from types import SimpleNamespace

import pytest
import torch
import xdyna_kernels


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


def test_step_counts_layers_and_best_opponents(load):
    rows = [
        {"shape": {"B": 2, "F": 17, "N": n, "H": 8, "D": d}, "direction": "forward"}
        | {"backend": name, "opponent": name != "sdpa", "ms": ms}
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
    assert attn_rows.step([row | {"shape": row["shape"] | {"F": 2}} for row in rows]) == []  # no step of the model
    rows[0] |= {"ms": None}
    first, *others = attn_rows.step(rows)
    assert (first["backend"], first["ms"], first["ratio"]) == ("sdpa", None, None)
    assert all(made["ms"] for made in others)
    assert "not timed" in attn_rows.step_lines([first, *others])[1]


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
    memory = {"requested_bytes.all.current": 100, "requested_bytes.all.peak": 900}
    reset = {"requested_bytes.all.peak": 350}  # 900 was before
    monkeypatch.setattr(torch.cuda, "memory_stats", lambda: memory)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: memory.update(reset))
    times = timing.interleaved({"a": lambda: log.append("call")}, torch.device("cuda"), repeats=2, seed=0)
    one_round = ["flush", "event", "call", "event", "synchronize"]
    assert log[-10:] == one_round * 2
    assert times["a"].peak == 250
    assert len(times["a"].ms) == 2


def test_the_gpu_is_kept_busy_while_python_queues_a_call(load, monkeypatch):
    """One flush where the GPU takes longer than Python; else as many as last twice as long as Python takes."""
    timing, clock = load("timing"), [0.0]

    def wait(seconds):
        clock[0] += seconds

    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    assert timing.flushes(lambda: wait(2e-3)) == 1 + 40
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: wait(10e-3))
    assert timing.flushes(lambda: wait(2e-3)) == 1


def test_the_roof_is_no_single_fastest_run(load):
    roofline, timing = load("roofline"), load("timing")
    probes = roofline.Probes(torch.device("cpu"), torch.float32)
    times = {name: timing.Times([1e-6] + [2.0] * 9, None) for name in probes.calls}
    assert probes.read(times).flops == pytest.approx(1000 * 2 * 1024**3 / 2.0)


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
