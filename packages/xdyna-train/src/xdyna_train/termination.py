"""SIGTERM as a wish: what a scheduler sends before it kills."""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def noted_termination() -> Iterator[Callable[[], bool]]:
    """For the time of a block SIGTERM ends nothing, and what this gives tells whether it has come.

    A process forked meanwhile passes the first over, which may have gone to the whole group; the second, by which its
    parent ends one that hangs, ends it. Outside the main thread, where Python lets nobody handle signals, SIGTERM ends
    the process as ever.
    """
    come = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield come.is_set
        return
    owner = os.getpid()

    def note(number: int, _frame: object) -> None:
        if come.is_set() and os.getpid() != owner:
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        come.set()

    before = signal.signal(signal.SIGTERM, note)
    try:
        yield come.is_set
    finally:
        signal.signal(signal.SIGTERM, before)
