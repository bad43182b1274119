"""Where `bench/attn.py --tune` tries tiles: the compiler first, then this GPU."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from typing import TYPE_CHECKING

import opponents
import torch
from attn_flags import Plan
from parity import Truth
from shapes import LEVELS, Shape, draw
from tile_table import Entry, Tile
from timing import Call, interleaved

if TYPE_CHECKING:  # it imports triton
    from xdyna_kernels.ahead_of_time import Case, Figures

REPEATS = 15


class GpuStand:
    """Compiles tiles ahead of time, then judges and times them by the whole operator on the plan's shapes."""

    def __init__(self, plan: Plan, dtype: torch.dtype):
        self._device, self._seed = plan.device, plan.seed
        self._contender = opponents.build("triton")
        self._inputs = {shape: draw(shape, dtype, plan.device, plan.seed) for shape in plan.shapes}
        self._truths: dict[tuple[Shape, str], Truth] = {}

    def gate(self, entry: Entry, candidates: list[Tile]) -> list[str]:
        """What the compiler says of every candidate, in all cases that its entry serves."""
        from xdyna_kernels import ahead_of_time  # imports triton

        cases = []
        for index, tile in enumerate(candidates):
            mine = tile._replace()  # a new object, which no other entry holds
            with entry.trying(mine):
                cases += [(index, case) for case in ahead_of_time.table_cases() if case.tile is mine]
        notes = [""] * len(candidates)
        for (index, case), found in zip(cases, compile_all([case for _, case in cases]), strict=True):
            why = found if isinstance(found, str) else "; ".join(ahead_of_time.faults(case, found, found))
            notes[index] = notes[index] or why
        return notes

    def judge(self, entry: Entry, tile: Tile) -> str:
        for shape in self._served(entry):
            truth = self._truth(shape, entry.direction)
            try:
                with entry.trying(tile):
                    verdict = truth.judge(self._contender)
            except Exception as error:  # the compiler and the launcher raise classes of their own
                return f"{shape}: {one_line(error)}"
            if verdict.failed:
                return f"{shape}: relative error {verdict.worst:.2g}"
        return ""

    def clock(self, entry: Entry, candidates: list[Tile]) -> list[float]:
        totals = [0.0] * len(candidates)
        for shape in self._served(entry):
            calls = {str(i): self._call(entry, tile, shape) for i, tile in enumerate(candidates)}
            times = interleaved(calls, self._device, REPEATS, self._seed)
            layers = LEVELS.get((shape.N, shape.D), 1)
            totals = [total + layers * times[str(i)].median for i, total in enumerate(totals)]
        return totals

    def _served(self, entry: Entry) -> list[Shape]:
        return [shape for shape in self._inputs if entry.serves(shape)]

    def _truth(self, shape: Shape, direction: str) -> Truth:
        if (shape, direction) not in self._truths:
            tensors, grad = self._inputs[shape]
            self._truths[shape, direction] = Truth(tensors, None if direction == "forward" else grad)
        return self._truths[shape, direction]

    def _call(self, entry: Entry, tile: Tile, shape: Shape) -> Call:
        run = opponents.caller(self._contender, entry.direction, *self._inputs[shape])

        def call() -> None:
            with entry.trying(tile):
                run()

        return call


def compile_all(cases: list["Case"]) -> list["Figures | str"]:
    """What each case compiles to, or why it does not; in processes of their own."""
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        return list(pool.map(_compile, cases))


def _compile(case: "Case") -> "Figures | str":
    from xdyna_kernels.ahead_of_time import compile_case

    try:
        return compile_case(case)
    except Exception as error:  # every pass of the compiler raises classes of its own
        return f"{case.size}: {one_line(error)}"


def one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160] or type(error).__name__
