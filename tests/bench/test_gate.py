"""What --tune asks of the compiler before it launches a tile: in which order, how often, and of the right kernels.

What a launch would look up in Triton's cache is seen without a GPU: Triton is told that there is an H100, and stopped
where it would compile.
"""

import importlib
import pickle
from collections import defaultdict
from concurrent.futures import Future
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from xdyna_kernels import gluon_tiles, tiles

pytest.importorskip("triton", reason="candidates are compiled by triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

CHIP = "sm_90"


class Pool:
    """Stands in for the processes: answers at once, and after `patience` jobs no more."""

    def __init__(self, patience: float = float("inf")):
        self.jobs, self.patience, self.cancelled = [], patience, False

    def submit(self, function, job) -> Future:
        self.jobs.append(job)
        future: Future = Future()
        if len(self.jobs) <= self.patience:
            future.set_result(f"no {job.tile}" if job.tile.stages == 4 else "")
        return future

    def shutdown(self, cancel_futures):
        self.cancelled = cancel_futures


@pytest.fixture
def pool(load, monkeypatch: pytest.MonkeyPatch) -> Pool:
    pool = Pool()
    monkeypatch.setattr(load("gate"), "ProcessPoolExecutor", lambda **_: pool)
    return pool


def entry_of(load, table: str, limit: int, arithmetic: str = "half"):
    return load("tile_table").Entry(table, CHIP, arithmetic, limit)


def shape(load, N: int, D: int):
    return load("shapes").Shape(1, 2, N, 2, D)


def test_all_entries_are_compiled_at_once_each_tile_once_and_the_table_first(load, pool):
    shapes = [shape(load, 64, 40), shape(load, 128, 40), shape(load, 50, 40), shape(load, 64, 80)]
    grids = {
        entry_of(load, "ATTENTION", 48): [tiles.Attention(64, 64, 4, stages) for stages in (2, 3, 4)],
        entry_of(load, "GLUON", 80): [gluon_tiles.Tile(2, 64, 32, 2), gluon_tiles.Tile(2, 64, 32, 4)],
    }
    with load("gate").Gate(shapes) as gate:
        notes = gate.compile(grids, float("inf"))
        jobs = list(pool.jobs)
        assert gate.compile(grids, 0) == notes  # from memory
        assert pool.jobs == jobs
    assert pool.cancelled
    assert list(notes) == list(grids)
    assert [tile for of_entry in notes.values() for tile, note in of_entry.items() if note] == [
        tiles.Attention(64, 64, 4, 4),
        gluon_tiles.Tile(2, 64, 32, 4),
    ]
    # 64 and 128 tokens are the same kernel, 50 are not; of Gluon they all are.
    assert [job.tile for job in jobs] == [
        *[tiles.ATTENTION[CHIP, "half"][48]] * 2, gluon_tiles.TILES[80]._replace(persistent=False),
        *[tile for tile in grids[entry_of(load, "ATTENTION", 48)] for _ in range(2)],
        *grids[entry_of(load, "GLUON", 80)],
    ]  # fmt: skip
    assert len(set(map(repr, jobs))) == len(jobs)


def test_what_is_not_compiled_in_time_is_left_out_and_given_up(load, pool):
    grids = {
        entry_of(load, "ATTENTION", limit): [tiles.Attention(64, 64, 8, n) for n in (2, 3)] for limit in (48, 96, 160)
    }
    pool.patience = 3 + 3  # the table's three, the first entry's two, and one of the second's
    gate = load("gate").Gate([shape(load, 64, D) for D in (40, 80, 160)])
    assert list(gate.compile(grids, 0.01)) == [entry_of(load, "ATTENTION", 48)]
    asked = len(pool.jobs)
    pool.patience = float("inf")
    assert list(gate.compile(grids, 0.01)) == list(grids)  # what was given up is asked for anew
    assert len(pool.jobs) == asked + 3


def test_a_tile_is_vetted_for_all_that_its_entry_serves_and_no_other_tile(load, pool):
    entry = entry_of(load, "ATTENTION", 48)
    twin = tiles.ATTENTION[CHIP, "half"][96]  # the same sizes, but of another entry
    gate = load("gate").Gate([])
    assert gate.vet(entry, twin) == f"no {twin}"  # it has four stages
    assert gate.vet(entry, twin._replace(stages=3)) == ""
    assert {(job.kernel, job.chip, job.constants["D"]) for job in pool.jobs} == {("attend", CHIP, d) for d in (40, 48)}
    assert [job.tile for job in pool.jobs] == [twin] * 4 + [twin._replace(stages=3)] * 4
    pool.jobs.clear()
    assert gate.vet(entry_of(load, "GLUON", 160), gluon_tiles.Tile(2, 64, 32, 2)) == ""
    assert {(job.kernel, job.size) for job in pool.jobs} == {("attend", 160)}
    assert gate.vet(entry_of(load, "GLUON_KEYS", 80), gluon_tiles.Tile(2, 64, 32, 2)) == ""
    assert {(job.kernel, job.size) for job in pool.jobs[2:]} == {("keys", 80)}
    assert gate.vet(entry_of(load, "GLUON_QUERIES", 80), gluon_tiles.Tile(2, 64, 32, 2)) == ""
    assert {(job.kernel, job.size) for job in pool.jobs[4:]} == {("queries", 80)}
    assert [job.dtype for job in pool.jobs] == [torch.float16, torch.bfloat16] * 3


def test_what_does_not_compile_is_a_reason_and_not_an_error(load):
    """In this process, as one of the pool's: a kernel whose arguments are not all there, and one that is whole."""
    gate, aot = load("gate"), importlib.import_module("xdyna_kernels.ahead_of_time")
    case = aot.attention_case(CHIP, "half", 40, even=True)
    broken = replace(case, constants={**case.constants, "QUERIES": 48})  # no power of two
    assert "D=40 even: " in gate.compile_job(broken)
    function, job = pickle.loads(pickle.dumps((gate.compile_job, case)))
    assert function(job) == ""


@pytest.mark.parametrize(
    ("kernel", "tile", "message"),
    [
        # The compiler also waits for each product: an order of its own.
        ("attend", gluon_tiles.Tile(2, 128, 128, 2), "spills: "),
        ("attend", gluon_tiles.Tile(2, 64, 128, 6), "shared memory: 266896 bytes, sm_90 has 232448"),
        ("attend", gluon_tiles.Tile(2, 64, 48, 2), "torch.bfloat16: "),  # no power of two
        ("attend", gluon_tiles.Tile(2, 64, 32, 2), ""),
        ("keys", gluon_tiles.Tile(2, 128, 64, 2), "spills: "),
        ("keys", gluon_tiles.Tile(3, 32, 64, 4), ""),
        ("queries", gluon_tiles.Tile(2, 64, 64, 3), ""),
    ],
)
def test_gluon_tiles_are_held_to_their_limits(load, kernel, tile, message):
    gate = load("gate")
    function, job = pickle.loads(pickle.dumps((gate.compile_job, gate.GluonCase(kernel, 80, torch.bfloat16, tile))))
    reason = function(job)
    assert reason.startswith(message)
    assert bool(reason) == bool(message)
    assert ("order: " in reason) == (kernel == "attend" and message.startswith("spills"))


def test_a_gluon_tile_that_idles_the_tensor_cores_does_not_pass(load, monkeypatch):
    gate, aot = load("gate"), importlib.import_module("xdyna_kernels.gluon_ahead_of_time")
    order = "QK barrier PV wait(2) exp barrier wait(0)"
    fine = aot.Figures(spills=0, stack=0, shared=1000, instructions=400, products={}, unordered=0, order=order)
    idle = replace(fine, order="barrier QK barrier PV wait(2) wait(0) exp")
    job = gate.GluonCase("attend", 80, torch.bfloat16, gluon_tiles.Tile(2, 64, 32, 2))
    for loops, message in (
        ([fine, fine], ""),
        ([fine, idle], f"order: {idle.order}, recorded {order}"),
        ([fine], "a warpgroup's loop was not found"),
    ):
        monkeypatch.setattr(aot, "compile_kernel", lambda *_, loops=loops: loops)
        assert gate.compile_job(job) == message


class Stop(Exception):
    """Where Triton would compile."""


@pytest.fixture
def keys(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Of every kernel that is compiled, ahead of time or for a launch, what finds it in Triton's cache."""
    found: set[str] = set()
    compiler = importlib.import_module("triton.compiler.compiler")

    def compile(src, target, options):
        backend = compiler.make_backend(target)
        # `get_cache_key` without that of Triton's installation, which takes seconds and is the same for all.
        found.add(f"{src.hash()}-{backend.hash()}-{backend.parse_options(dict(options)).hash()}")
        if isinstance(options, dict) and "arch" not in options:  # ahead of time; a launch has all options there are
            raise Stop
        kernel = SimpleNamespace(function=None, packed_metadata=None, launch_metadata=lambda *_: None)
        kernel.run = lambda *_: None
        return kernel

    for module in (triton, triton.compiler, compiler):
        monkeypatch.setattr(module, "compile", compile)
    hopper = SimpleNamespace(
        get_current_device=lambda: 0,
        get_current_stream=lambda device: 0,
        get_current_target=lambda: GPUTarget("cuda", 90, 32),
    )
    monkeypatch.setattr(driver, "_active", hopper)
    triton_modules = ("triton_forward", "triton_projection", "triton_backward")
    gluon_modules = ("gluon_kernel", "gluon_projection_kernel", "gluon_keys_kernel", "gluon_queries_kernel")
    for module in (*triton_modules, *gluon_modules):
        for value in vars(importlib.import_module(f"xdyna_kernels.{module}")).values():
            if isinstance(value, triton.JITFunction):
                monkeypatch.setattr(value, "device_caches", defaultdict(value.create_binder))
    return found


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(("N", "D"), [(256, 40), (50, 40), (256, 80), (50, 160)])
@pytest.mark.parametrize("persistent", [False, True])
def test_a_launch_finds_what_the_gate_compiled(load, keys, dtype, N, D, persistent, monkeypatch):
    monkeypatch.setattr(importlib.import_module("xdyna_kernels.gluon_forward"), "multiprocessors", lambda on: 132)
    monkeypatch.setitem(gluon_tiles.TILES, D, gluon_tiles.TILES[D]._replace(persistent=persistent))
    gate, operator = load("gate"), importlib.import_module("xdyna_kernels.triton_operator")
    of = shape(load, N, D)
    tensors, grad = load("shapes").draw(of, dtype, torch.device("cpu"), 0)
    leaves = [tensor.requires_grad_() for tensor in tensors]
    of_hopper = [("gluon", "gluon"), ("gluon", "gluon_all")] if dtype == torch.bfloat16 else []
    for backward, kernel in [("triton", "triton"), *of_hopper]:
        torch.autograd.grad(operator.forward(*leaves, backward, kernel)[0], leaves, grad)
    launched = set(keys)

    arithmetic = tiles.arithmetic(dtype)
    entries = [entry for entry in load("tile_table").entries(CHIP, arithmetic) if entry.serves(of)]
    by_gluon = 2 + (N % 4 == 0 and D in gluon_tiles.KEYS) + (D in gluon_tiles.QUERIES)
    assert len(entries) == (4 + by_gluon if dtype == torch.bfloat16 else 4)  # one of every table
    for entry in entries:
        keys.clear()
        gate.compile_job(gate.launched(entry, entry.get(), of))
        assert len(keys) == 1
        assert keys <= launched, entry
