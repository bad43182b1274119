"""Where `bench/attn.py --tune` tries the tiles that the compiler has passed: on this GPU."""

import opponents
import torch
from attn_flags import Plan
from gate import one_line
from parity import Truth
from shapes import LEVELS, Shape, draw
from tile_table import Entry, Tile
from timing import Call, interleaved


class GpuStand:
    """Judges and times tiles by the whole operator on the plan's shapes. What float64 says is computed once a shape and
    direction, for all tiles."""

    def __init__(self, plan: Plan, dtype: torch.dtype):
        self._device, self._seed = plan.device, plan.seed
        self._contenders = {name: opponents.build(name) for name in ("triton", "gluon", "gluon_all")}
        self._inputs = {shape: draw(shape, dtype, plan.device, plan.seed) for shape in plan.shapes}
        self._truths: dict[tuple[Shape, str], Truth] = {}

    def judge(self, entry: Entry, tile: Tile) -> str:
        for shape in self._served(entry):
            truth = self._truth(shape, entry.direction)
            try:
                with entry.trying(tile):
                    verdict = truth.judge(self._contenders[entry.backend], poisoned=True)
            except Exception as error:  # the compiler and the launcher raise classes of their own
                return f"{shape}: {one_line(error)}"
            if verdict.failed:
                return f"{shape}: relative error {verdict.worst:.2g}"
        return ""

    def clock(self, entry: Entry, candidates: list[Tile], rounds: int) -> list[float]:
        totals = [0.0] * len(candidates)
        for shape in self._served(entry):
            calls = {str(i): self._call(entry, tile, shape) for i, tile in enumerate(candidates)}
            times = interleaved(calls, self._device, rounds, self._seed)
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
        run = opponents.caller(self._contenders[entry.backend], entry.direction, *self._inputs[shape])

        def call() -> None:
            with entry.trying(tile):
                run()

        return call
