"""The record of a run: one line a step in metrics.jsonl, tensorboard beside it, and a bar on the terminal."""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.utils.tensorboard import SummaryWriter
from xdyna_model.errors import InputError
from xdyna_model.outputs import staged

METRICS = "metrics.jsonl"


class Journal:
    """Lines of steps that are to be done again are dropped when a run is resumed. Only the main process writes."""

    def __init__(self, out: Path, total: int, start: int, active: bool) -> None:
        """start: how many of the `total` steps are done."""
        self._out, self._path, self._total, self._start, self._active = out, out / METRICS, total, start, active
        self._open = ExitStack()

    def __enter__(self) -> Self:
        if not self._active:
            return self
        self._out.mkdir(parents=True, exist_ok=True)
        if self._path.exists():
            kept = "".join(_lines_up_to(self._start, self._path))
            with staged(self._path) as [draft]:
                draft.write_text(kept)
        self._board = SummaryWriter(str(self._out / "tensorboard"), purge_step=self._start + 1)
        self._open.callback(self._close_board)
        console = Console(stderr=True)
        columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        self._bar = self._open.enter_context(Progress(*columns, console=console, disable=not console.is_terminal))
        self._task = self._bar.add_task("training", total=self._total, completed=self._start)
        return self

    def line(self, *, step: int, loss: float, clips: int, seconds: float, **facts: object) -> None:
        """Records a step: it is on the disk when this returns. Raises InputError where the disk is full."""
        if not self._active:
            return
        facts = {"loss": loss, "clips": clips, "seconds": seconds, **facts}
        try:
            with self._path.open("a") as file:  # opened anew, so that nothing is left over in a buffer
                file.write(json.dumps({"step": step, **facts}) + "\n")
                file.flush()
                os.fsync(file.fileno())
            for name, value in facts.items():
                if isinstance(value, float):
                    self._board.add_scalar(name, value, step)
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise InputError(f"{self._path}: cannot be written ({reason}); free some space, then resume") from error
        speed = f"{clips / seconds:.1f} clips/s" if seconds else ""
        self._bar.update(self._task, completed=step, description=f"loss {loss:.4f}, {speed}")

    def _close_board(self) -> None:
        with suppress(OSError):  # a disk that is full now has been, or will be, reported by what matters more
            self._board.close()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._open.close()


def _lines_up_to(step: int, path: Path) -> Iterator[str]:
    for line in path.read_text(errors="replace").splitlines(keepends=True):
        with suppress(ValueError, KeyError, TypeError):  # a line that was cut off
            if line.endswith("\n") and json.loads(line)["step"] <= step:
                yield line
