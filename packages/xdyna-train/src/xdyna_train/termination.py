"""SIGTERM as a wish: what a scheduler sends before it kills."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def noted_termination() -> Iterator[Callable[[], bool]]:
    """For the time of a block SIGTERM ends nothing, and what this gives tells whether it has come.

    Outside the main thread, where Python lets nobody handle signals, SIGTERM ends the process as ever. `torchrun` kills
    what still runs 30 seconds after it has passed one on.
    """
    come = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield come.is_set
        return
    before = signal.signal(signal.SIGTERM, lambda _number, _frame: come.set())
    try:
        yield come.is_set
    finally:
        signal.signal(signal.SIGTERM, before)


def pass_over_first_termination(_worker: int = 0) -> None:
    """For a process that works for another, as `worker_init_fn` of a `DataLoader`, which ends its workers by SIGTERM
    itself: the first may have gone to the whole group, and the one who is worked for decides. The second ends it."""
    come = threading.Event()

    def note(number: int, _frame: object) -> None:
        if come.is_set():
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        come.set()

    signal.signal(signal.SIGTERM, note)
