"""What the compiler says of tiles before `bench/attn.py --tune` launches them, asked in processes that stay.

All that may be launched is compiled at once and ahead of time, on as many cores as there are; Triton keeps it on disk,
where the launch finds it. (In bfloat16, as the table's figures are: float16 is compiled again when it is launched.)
"""

import math
import multiprocessing
from collections.abc import Iterable
from concurrent.futures import Future, ProcessPoolExecutor, wait
from dataclasses import replace
from typing import NamedTuple

import torch
from shapes import Shape
from tile_table import Entry, Tile
from xdyna_kernels import ahead_of_time, gluon_ahead_of_time, gluon_tiles, tiles
from xdyna_kernels.ahead_of_time import Case


class GluonCase(NamedTuple):
    """A Gluon kernel at one tile."""

    kernel: str  # of gluon_ahead_of_time.KERNELS
    size: int  # channels of a head, or output channels of the projection
    dtype: torch.dtype
    tile: gluon_tiles.Tile | gluon_tiles.Projection


Job = Case | GluonCase
# Whose tiles a table has.
GLUON_KERNELS = {"GLUON": "attend", "GLUON_PROJECTION": "project", "GLUON_KEYS": "keys", "GLUON_QUERIES": "queries"}


class Gate:
    """Compiles candidates, and keeps what it was told of each."""

    def __init__(self, shapes: list[Shape]):
        self._shapes = shapes
        self._pool = ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn"))
        self._asked: dict[str, Future[str]] = {}

    def __enter__(self) -> "Gate":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def compile(self, grids: dict[Entry, list[Tile]], seconds: float) -> dict[Entry, dict[Tile, str]]:
        """For every tile the reason why it is not tried, "" if it is. Entries, in their order, that `seconds` did not
        suffice for are left out. No compiler runs any more when this returns: the clock needs the cores quiet."""
        # First the tiles of the table: whichever tile is tried, the operator launches the others' kernels with it.
        for entry in grids:
            self._ask(self._launched(entry, entry.get()))
        asked = {
            entry: {tile: self._ask(self._launched(entry, tile)) for tile in candidates}
            for entry, candidates in grids.items()
        }
        everything = list(self._asked.values())
        wait(everything, None if math.isinf(seconds) else max(0, seconds))
        wait([future for future in everything if not future.cancel()])
        return {
            entry: {tile: _reason(answers) for tile, answers in of_entry.items()}
            for entry, of_entry in asked.items()
            if not any(answer.cancelled() for answers in of_entry.values() for answer in answers)
        }

    def vet(self, entry: Entry, tile: Tile) -> str:
        """The reason why the tile cannot serve all that its entry does, "" if it can: also what no shape launched."""
        return _reason(self._ask(served(entry, tile)))

    def _launched(self, entry: Entry, tile: Tile) -> Iterable[Job]:
        return [launched(entry, tile, shape) for shape in self._shapes if entry.serves(shape)]

    def _ask(self, jobs: Iterable[Job]) -> list[Future[str]]:
        """The answers to come, each asked for once."""
        named = {repr(job): job for job in jobs}
        for name, job in named.items():
            if name not in self._asked or self._asked[name].cancelled():
                self._asked[name] = self._pool.submit(compile_job, job)
        return [self._asked[name] for name in named]


def launched(entry: Entry, tile: Tile, shape: Shape) -> Job:
    """What the operator compiles of this tile when it runs on that shape."""
    if isinstance(tile, gluon_tiles.Tile | gluon_tiles.Projection):
        return _gluon_case(entry, torch.bfloat16, tile)
    if isinstance(tile, tiles.Projection):
        return ahead_of_time.projection_case(entry.chip, entry.arithmetic, shape.C, shape.C % tile.depth == 0, tile)
    if entry.table == "ATTENTION":
        return ahead_of_time.attention_case(entry.chip, entry.arithmetic, shape.D, shape.N % tile.keys == 0, tile)
    kernel, step = {"BACKWARD_QUERIES": ("queries", tile.keys), "BACKWARD_KEYS": ("keys", tile.queries)}[entry.table]
    return ahead_of_time.backward_case(entry.chip, entry.arithmetic, kernel, shape.D, shape.N % step == 0, tile)


def served(entry: Entry, tile: Tile) -> list[Job]:
    """All that the tests hold this tile to, once the entry has it."""
    if isinstance(tile, gluon_tiles.Tile | gluon_tiles.Projection):
        return [_gluon_case(entry, dtype, tile) for dtype in gluon_tiles.DTYPES]
    mine = tile._replace()  # a new object, which no other entry holds
    with entry.trying(mine):
        return [case for case in ahead_of_time.table_cases() if case.tile is mine]


def _gluon_case(entry: Entry, dtype: torch.dtype, tile: gluon_tiles.Tile | gluon_tiles.Projection) -> GluonCase:
    if isinstance(tile, gluon_tiles.Tile):
        tile = tile._replace(persistent=False)  # decided at the launch: one kernel
    return GluonCase(GLUON_KERNELS[entry.table], entry.limit, dtype, tile)


def compile_job(job: Job) -> str:
    """Why it cannot be used, "" if it can; in this process."""
    try:
        if isinstance(job, Case):
            found = ahead_of_time.compile_case(job)
            wrong = ahead_of_time.faults(job, found, found)
        else:
            loops = gluon_ahead_of_time.compile_kernel(*job)
            expected = [replace(loop, order=gluon_ahead_of_time.pipelined(job.kernel, job.tile)) for loop in loops]
            wrong = [line for pair in zip(loops, expected, strict=True) for line in gluon_ahead_of_time.faults(*pair)]
            wrong = wrong if len(loops) == job.tile.warpgroups else ["a warpgroup's loop was not found"]
    except Exception as error:  # every pass of the compiler raises classes of its own
        return f"{job.size if isinstance(job, Case) else job.dtype}: {one_line(error)}"
    return "; ".join(dict.fromkeys(wrong))  # of several loops, once


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__


def _reason(answers: list[Future[str]]) -> str:
    return next(filter(None, (answer.result() for answer in answers)), "")
