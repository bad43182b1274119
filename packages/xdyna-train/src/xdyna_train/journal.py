"""The record of a run: one line a step in metrics.jsonl, tensorboard beside it, and a bar on the terminal."""

import json
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter
from xdyna_model.outputs import staged

METRICS = "metrics.jsonl"


class Journal:
    """Lines of steps that are to be done again are dropped when a run is resumed. Only the main process writes."""

    def __init__(self, out: Path, total: int, start: int, active: bool) -> None:
        """start: how many of the `total` steps are done."""
        self._out, self._total, self._start, self._active = out, total, start, active
        self._open = ExitStack()

    def __enter__(self) -> Self:
        if not self._active:
            return self
        self._out.mkdir(parents=True, exist_ok=True)
        path = self._out / METRICS
        if path.exists():
            lines = path.read_text().splitlines(keepends=True)
            kept = [line for line in lines[: self._start] if line.endswith("\n")]
            with staged(path) as [draft]:
                draft.write_text("".join(kept))
        self._file = self._open.enter_context(path.open("a"))
        self._board = SummaryWriter(str(self._out / "tensorboard"), purge_step=self._start + 1)
        self._open.callback(self._board.close)
        console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = self._open.enter_context(Progress(*columns, console=console, disable=not console.is_terminal))
        self._task = self._bar.add_task("training", total=self._total, completed=self._start)
        return self

    def line(self, *, step: int, loss: float, **facts: object) -> None:
        """Records a step."""
        if not self._active:
            return
        self._file.write(json.dumps({"step": step, "loss": loss, **facts}) + "\n")
        self._file.flush()
        for name, value in {"loss": loss, **facts}.items():
            if isinstance(value, float):
                self._board.add_scalar(name, value, step)
        rate = facts["clips"] / facts["seconds"] if facts.get("seconds") else 0.0  # pyright: ignore[reportOperatorIssue]
        self._bar.update(self._task, completed=step, description=f"loss {loss:.4f}, {rate:.1f} clips/s")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()
