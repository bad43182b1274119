"""Tiles chosen by timing, for `bench/attn.py --tune`.

For every entry of the table that this GPU's chip has, a grid of tiles is compiled first and held to the limits of
xdyna_kernels.ahead_of_time: a tile that spills or needs too much shared memory is not tried. The others must launch
and agree with float64 on every shape of the entry. Those that do are timed in one run, in turns, and the fastest is
taken. tiles.py is written once, when all entries are decided: what ends a run early leaves the old table whole.
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol

import machine
import tile_table
import torch
from attn_flags import Plan
from gpu_stand import GpuStand
from shapes import DTYPES
from tile_table import Entry, Tile
from xdyna_kernels import tiles

KEEP = 0.01  # the present tile stays unless another one is faster by more: noise would rewrite the table every time
# What is tried, by the entry's table and whether its products are of half precision.
GRIDS: dict[tuple[str, bool], list[Tile]] = {
    ("ATTENTION", True): [tiles.Attention(*sizes) for sizes in product((64, 128), (32, 64, 128), (4, 8), (2, 3, 4))],
    ("ATTENTION", False): [tiles.Attention(*sizes) for sizes in product((32, 64, 128), (16, 32, 64), (4, 8), (2, 3))],
    ("PROJECTION", True): [
        tiles.Projection(*sizes) for sizes in product((64, 128), (64, 128, 256), (32, 64), (4, 8), (3, 4))
    ],
    ("PROJECTION", False): [
        tiles.Projection(*sizes) for sizes in product((32, 64, 128), (32, 64), (16, 32), (4, 8), (2, 3))
    ],
    ("BACKWARD_QUERIES", True): [
        tiles.Attention(*sizes) for sizes in product((64, 128), (32, 64, 128), (4, 8), (2, 3))
    ],
    ("BACKWARD_QUERIES", False): [tiles.Attention(*sizes) for sizes in product((32, 64), (16, 32, 64), (4, 8), (2, 3))],
    ("BACKWARD_KEYS", True): [
        tiles.Attention(*sizes) for sizes in product((16, 32, 64, 128), (64, 128), (4, 8), (2, 3))
    ],
    ("BACKWARD_KEYS", False): [tiles.Attention(*sizes) for sizes in product((16, 32, 64), (16, 32, 64), (4, 8), (2,))],
}


class TuneError(Exception):
    """Tuning cannot go on; the message is one line."""


@dataclass(frozen=True)
class Trial:
    """What became of a tile: milliseconds of all layers of a step that the entry serves, or why it was not timed."""

    tile: Tile
    ms: float | None
    note: str = ""


class Stand(Protocol):
    """Where tiles are tried; `GpuStand` is the real one."""

    def gate(self, entry: Entry, candidates: list[Tile]) -> list[str]:
        """For every candidate the reason why it is not tried, "" if it is."""
        ...

    def judge(self, entry: Entry, tile: Tile) -> str:
        """The reason why the tile cannot be used, "" if it can."""
        ...

    def clock(self, entry: Entry, candidates: list[Tile]) -> list[float]:
        """Milliseconds of each, taken in one run."""
        ...


def choose(entry: Entry, grid: Iterable[Tile], stand: Stand) -> tuple[Tile, list[Trial]]:
    """The fastest tile of the grid and the present one, and what became of each, the present one first.

    Raises:
        TuneError: none of them runs and is right.
    """
    present = entry.get()
    candidates = list(dict.fromkeys([present, *grid]))
    notes = dict(zip(candidates, stand.gate(entry, candidates), strict=True))
    for tile in candidates:
        notes[tile] = notes[tile] or stand.judge(entry, tile)
    passed = [tile for tile in candidates if not notes[tile]]
    if not passed:
        raise TuneError(f"{entry}: no tile of {len(candidates)} can be used; of the present one: {notes[present]}")
    times = dict(zip(passed, stand.clock(entry, passed), strict=True))
    best = min(passed, key=lambda tile: times[tile])
    if present in times and times[best] > (1 - KEEP) * times[present]:
        best = present
    return best, [Trial(tile, times.get(tile), notes[tile]) for tile in candidates]


def tune(
    plan: Plan,
    chip: str,
    dtypes: list[tuple[str, str]],
    path: Path,
    save: Callable[[dict], object],
    make_stand: Callable[[Plan, torch.dtype], Stand] = GpuStand,
) -> None:
    """Decides the tiles of the plan's shapes for `dtypes`, pairs of an arithmetic and a dtype to try it in, and writes
    them to `path`. Hands the record so far to `save`.

    Raises:
        TuneError: an entry has no tile that can be used. Nothing is written.
        OSError: `path` cannot be written.
    """
    started = time.monotonic()
    facts = machine.facts(plan.device)
    record = {"machine": facts, "samples": [machine.sample(plan.device)], "seed": plan.seed, "entries": []}
    record["written"] = False
    for arithmetic, dtype in dtypes:
        torch.backends.cuda.matmul.allow_tf32 = arithmetic == "tf32"
        stand = None
        for entry in tile_table.entries(chip, arithmetic):
            if not any(entry.serves(shape) for shape in plan.shapes):
                continue
            before, trials = entry.get(), []
            if time.monotonic() - started <= plan.budget:
                stand = stand or make_stand(plan, DTYPES[dtype])
                best, trials = choose(entry, GRIDS[entry.table, arithmetic == "half"], stand)
                entry.put(best)
                when = f"{facts['device']}, {facts['date'][:10]}, {facts['commit']}"
                tiles.TIMED[entry.table, chip, arithmetic, entry.limit] = when
            print(*lines(entry, before, trials), sep="\n", flush=True)
            record["entries"].append(as_dict(entry, before, trials))
            record["samples"].append(machine.sample(plan.device))
            save(record)
    tile_table.write(path)
    record["written"] = True
    save(record)


def lines(entry: Entry, before: Tile, trials: list[Trial]) -> list[str]:
    """What a person reads of an entry: the five fastest and the present tile."""
    timed = sorted((trial for trial in trials if trial.ms is not None), key=lambda trial: trial.ms or 0)
    if not trials:
        return [f"\n{entry}: not timed, the budget was spent"]
    found = [f"\n{entry}: {len(timed)} of {len(trials)} tiles were right and are timed (ms of a step)"]
    for trial in dict.fromkeys([*timed[:5], trials[0]]):
        ms = f"{trial.note:>12}" if trial.ms is None else f"{trial.ms:12.3f}"
        marks = ("  before" if trial.tile == before else "") + ("  now" if trial.tile == entry.get() else "")
        found.append(f"{ms}  {trial.tile}{marks}")
    return found


def as_dict(entry: Entry, before: Tile, trials: list[Trial]) -> dict:
    """An entry of the record."""
    made = {"table": entry.table, "chip": entry.chip, "arithmetic": entry.arithmetic, "limit": entry.limit}
    made |= {"before": before._asdict(), "after": entry.get()._asdict()}
    return made | {"trials": [{"tile": t.tile._asdict(), "ms": t.ms, "note": t.note} for t in trials]}
