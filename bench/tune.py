"""Tiles chosen by timing, for `bench/attn.py --tune`.

For every entry of the tables that this GPU's chip has, a grid of tiles is compiled first, those of all entries at once,
and held to the limits of xdyna_kernels.ahead_of_time and gluon_ahead_of_time: a tile that spills, needs too much shared
memory or lets the tensor cores idle is not tried. The others must launch and agree with float64 on every shape of the
entry. Those that do are timed in one run, in turns: all of them a few times, then the fast ones. The fastest is taken
that also compiles within limits for all else that its entry serves. The tables are written once, when all entries are
decided: what ends a run early leaves the old ones whole.
"""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Protocol

import machine
import tile_table
import torch
from attn_flags import Plan
from gate import Gate
from gpu_stand import GpuStand
from shapes import DTYPES, Shape
from tile_table import Entry, Tile
from xdyna_kernels import gluon_tiles, tiles

KEEP = 0.01  # the present tile stays unless another one is faster by more: noise would rewrite the table every time
SIFTING, ROUNDS = 3, 15  # how often each is timed: every right tile at first, then those that are near the fastest
NEAR = 1.15  # a tile that took longer by more in the first rounds is not the fastest
COMPILING = 0.5  # the share of the budget in which the compiler may run, so that what it passed is also timed
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
    ("GLUON", True): [
        gluon_tiles.Tile(*sizes) for sizes in product((2, 3), (64, 128), (32, 64, 128), (2, 3, 4), (False, True))
    ],
    ("GLUON_PROJECTION", True): [
        gluon_tiles.Projection(*sizes) for sizes in product((64, 128), (128, 160, 256), (64,), (3, 4, 5, 6))
    ],
    ("GLUON_KEYS", True): [gluon_tiles.Tile(*sizes) for sizes in product((2, 3), (32, 64, 128), (64,), (2, 3, 4))],
    ("GLUON_QUERIES", True): [
        gluon_tiles.Tile(*sizes) for sizes in product((2, 3), (64, 128), (32, 64, 128), (2, 3, 4))
    ],
}


class TuneError(Exception):
    """Tuning cannot go on; the message is one line."""


@dataclass(frozen=True)
class Trial:
    """What became of a tile: milliseconds of all layers of a step that the entry serves (of SIFTING rounds if they are
    beyond NEAR), and why it cannot be used."""

    tile: Tile
    ms: float | None
    note: str = ""


class Compiler(Protocol):
    """What is asked before a tile is launched; `Gate` is the real one."""

    def compile(self, grids: dict[Entry, list[Tile]], seconds: float) -> dict[Entry, dict[Tile, str]]:
        """For every tile the reason why it is not tried, "" if it is. Leaves out entries for lack of time."""
        ...

    def vet(self, entry: Entry, tile: Tile) -> str:
        """The reason why the tile cannot serve all that its entry does, "" if it can."""
        ...


class Stand(Protocol):
    """Where tiles are tried; `GpuStand` is the real one."""

    def judge(self, entry: Entry, tile: Tile) -> str:
        """The reason why the tile cannot be used, "" if it can."""
        ...

    def clock(self, entry: Entry, candidates: list[Tile], rounds: int) -> list[float]:
        """Milliseconds of each, taken in one run."""
        ...


def candidates(entry: Entry) -> list[Tile]:
    """The present tile and the grid's."""
    return list(dict.fromkeys([entry.get(), *GRIDS[entry.table, entry.arithmetic == "half"]]))


def choose(entry: Entry, notes: dict[Tile, str], compiler: Compiler, stand: Stand) -> tuple[Tile, list[Trial]]:
    """The fastest tile that can be used, and what became of each. `notes` are the compiler's, by tile, the present one
    first.

    Raises:
        TuneError: none of them runs and is right.
    """
    present = entry.get()
    notes = {tile: note or stand.judge(entry, tile) for tile, note in notes.items()}
    times = _timed(entry, [tile for tile in notes if not notes[tile]], stand)
    for tile in sorted(times, key=lambda tile: times[tile] * (1 - KEEP if tile == present else 1)):
        notes[tile] = compiler.vet(entry, tile)
        if not notes[tile]:
            return tile, [Trial(tile, times.get(tile), note) for tile, note in notes.items()]
    raise TuneError(f"{entry}: no tile of {len(notes)} can be used; of the present one: {notes[present]}")


def _timed(entry: Entry, passed: list[Tile], stand: Stand) -> dict[Tile, float]:
    """Milliseconds of each; the slow ones' are of a few rounds only."""
    times = dict(zip(passed, stand.clock(entry, passed, SIFTING), strict=True))
    near = [tile for tile in passed if times[tile] <= NEAR * min(times.values()) or tile == entry.get()]
    return times | dict(zip(near, stand.clock(entry, near, ROUNDS), strict=True))


def tune(
    plan: Plan,
    chip: str,
    dtypes: list[tuple[str, str]],
    folder: Path,
    save: Callable[[dict], object],
    make_compiler: Callable[[list[Shape]], AbstractContextManager[Compiler]] = Gate,
    make_stand: Callable[[Plan, torch.dtype], Stand] = GpuStand,
) -> None:
    """Decides the tiles of the plan's shapes and backends for `dtypes`, pairs of an arithmetic and a dtype to try it
    in, and writes them to the tables in `folder`. Hands the record so far to `save`.

    Raises:
        TuneError: an entry has no tile that can be used. Nothing is written.
        OSError: a table cannot be written.
    """
    started = time.monotonic()
    facts = machine.facts(plan.device)
    record = {"machine": facts, "samples": [machine.sample(plan.device)], "seed": plan.seed, "entries": []}
    record["written"] = False
    found = [entry for arithmetic, _ in dtypes for entry in tile_table.entries(chip, arithmetic)]
    found = [e for e in found if e.backend in plan.names and any(e.serves(shape) for shape in plan.shapes)]
    with make_compiler(plan.shapes) as compiler:
        compiled = compiler.compile({entry: candidates(entry) for entry in found}, COMPILING * plan.budget)
        record["compile_seconds"] = time.monotonic() - started
        for arithmetic, dtype in dtypes:
            torch.backends.cuda.matmul.allow_tf32 = arithmetic == "tf32"
            stand = None
            for entry in (entry for entry in found if entry.arithmetic == arithmetic):
                before, trials = entry.get(), []
                if entry in compiled and time.monotonic() - started <= plan.budget:
                    stand = stand or make_stand(plan, DTYPES[dtype])
                    best, trials = choose(entry, compiled[entry], compiler, stand)
                    entry.put(best)
                    when = f"{facts['device']}, {facts['date'][:10]}, {facts['commit']}"
                    tiles.TIMED[entry.table, chip, arithmetic, entry.limit] = when
                print(*lines(entry, before, trials), sep="\n", flush=True)
                record["entries"].append(as_dict(entry, before, trials))
                record["samples"].append(machine.sample(plan.device))
                save(record)
    tile_table.write(folder)
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
        why = f"  {trial.note}" if trial.ms is not None and trial.note else ""
        marks = why + ("  before" if trial.tile == before else "") + ("  now" if trial.tile == entry.get() else "")
        found.append(f"{ms}  {trial.tile}{marks}")
    return found


def as_dict(entry: Entry, before: Tile, trials: list[Trial]) -> dict:
    """An entry of the record."""
    made = {"table": entry.table, "chip": entry.chip, "arithmetic": entry.arithmetic, "limit": entry.limit}
    made |= {"before": before._asdict(), "after": entry.get()._asdict()}
    return made | {"trials": [{"tile": t.tile._asdict(), "ms": t.ms, "note": t.note} for t in trials]}
