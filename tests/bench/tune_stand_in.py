"""What stands in for a GPU where --tune is tested: seven tiles, how long each would take or how it would fail, and a
plan, an entry and a choice to try them in. The fixture `tune` of conftest.py puts them in their place."""

from concurrent.futures import Future
from pathlib import Path

import torch
from xdyna_kernels import tiles

CHIP = "sm_90"
SLOW, FAST, MIDDLE, WRONG, CRASHES, TOO_LARGE, BROKEN = (tiles.Attention(16, 16, 2**i, 1) for i in range(7))
MS = {SLOW: 9.0, MIDDLE: 2.0, FAST: 1.0, WRONG: 0.2, CRASHES: 0.1, TOO_LARGE: 0.1, BROKEN: 0.1}
GRID = [TOO_LARGE, SLOW, WRONG, BROKEN, FAST, CRASHES, MIDDLE]


class Pool:
    """Stands in for the compiler's processes: does at once, and here, what it is asked for."""

    def submit(self, function, *arguments) -> Future:
        future: Future = Future()
        future.set_result(function(*arguments))
        return future

    def shutdown(self, cancel_futures):
        pass


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


def read(path: Path) -> dict:
    """What the program would read of the file."""
    found: dict = {"__name__": "tiles"}
    exec(compile(path.read_text(), path, "exec"), found)
    return found
