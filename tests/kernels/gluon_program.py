"""One program of a Gluon kernel on a CPU: its threads, barriers, tiles in shared memory and products under way.

What a thread has seen happen is followed through the barriers. So whether a copy could still be under way when its tile
is read, or a read when its tile is overwritten, does not depend on how the threads happened to run, and when every
thread waits, that is a deadlock at once.
"""

import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

TOO_EARLY = "a tile is read whose copy was not waited for"
TOO_LATE = "a tile is overwritten that may still be in use"
UNFINISHED = "a product is used that was not waited for"
STUCK = "deadlock"
ANY = "."  # of these and others, as a pattern: which comes first may depend on the threads


class KernelError(AssertionError):
    """A program that would hang, race or read what is not there yet."""


class Program:
    """One program's threads: a lock, and for each thread the events (copies and reads that are over) it has seen."""

    def __init__(self):
        self.changed = threading.Condition()
        self.running, self.failure = 0, None
        self.waiting: list[Callable[[], bool]] = []
        self.seen: dict[int, set[int]] = {threading.get_ident(): set()}
        self.pending: dict[int, list[Product]] = {threading.get_ident(): []}
        self.events = 0
        self.copies: set[int] = set()

    def event(self) -> int:
        self.events += 1
        return self.events

    def mine(self) -> set[int]:
        return self.seen[threading.get_ident()]

    def products(self) -> "list[Product]":
        return self.pending[threading.get_ident()]

    def wait_for(self, condition: Callable[[], bool]) -> None:
        """Blocks until `condition` holds; called with the lock held, as is all that may make it hold."""
        self.waiting.append(condition)
        self.fail_if(self.stuck(), f"{STUCK}: every partition waits")
        self.changed.wait_for(lambda: condition() or self.failure is not None, timeout=60)
        self.waiting.remove(condition)
        self.fail_if(not condition(), f"{STUCK}: waited for a minute")

    def stuck(self) -> bool:
        return 0 < self.running == len(self.waiting) and not any(condition() for condition in self.waiting)

    def fail_if(self, wrong: bool, message: str) -> None:
        if wrong and self.failure is None:
            self.failure = KernelError(message)
            self.changed.notify_all()
        if self.failure is not None:
            raise self.failure

    def specialize(self, functions_and_args, warps, registers) -> None:
        assert len(warps) == len(registers) == len(functions_and_args) - 1
        before = set(self.mine())
        threads = [threading.Thread(target=self._partition, args=(*item, before)) for item in functions_and_args]
        self.running = len(threads)
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if self.failure is not None:
            raise self.failure
        self.fail_if(not self.copies <= set().union(*self.seen.values()), "a copy is still under way at the end")

    def _partition(self, function, args, seen) -> None:
        try:
            with self.changed:
                self.seen[threading.get_ident()] = set(seen)
                self.pending[threading.get_ident()] = []
            with torch.no_grad():  # a setting of each thread
                function(*args)
            with self.changed:
                self.fail_if(bool(self.products()), "a matrix product is never waited for")
        except BaseException as error:
            self.failure = self.failure or error
        with self.changed:
            self.running -= 1
            if self.stuck():
                self.failure = self.failure or KernelError(f"{STUCK}: every partition waits")
            self.changed.notify_all()


class Barrier:
    def __init__(self, program: Program):
        self.program, self.count = program, 0

    def init(self, count: int) -> None:
        self.count = self.missing = count
        self.bytes = 0
        self.arriving: set[int] = set()  # events that this phase's arrivals have seen
        self.ends: list[tuple[int, set[int]]] = []  # of each phase that is over: an event, and what had been seen by it

    def arrive(self, bytes: int = 0) -> None:
        with self.program.changed:
            self.missing -= 1
            self.bytes += bytes
            self.program.fail_if(self.missing < 0, "more arrivals at a barrier than it counts")
            self.arriving |= self.program.mine()
            self._finish()

    def copied(self, bytes: int, event: int) -> None:
        self.bytes -= bytes
        self.arriving.add(event)
        self._finish()

    def _finish(self) -> None:
        if self.missing == 0 and self.bytes == 0:
            self.ends.append((self.program.event(), self.arriving))
            self.missing, self.arriving = self.count, set()
            self.program.changed.notify_all()

    def wait(self, parity: int) -> None:
        """The parity is all that a barrier is told: which phase is meant follows from how many ends of phases the
        thread has seen, here or through others. Of two possible phases, one it knows to be over."""
        with self.program.changed:
            seen = self.program.mine()
            phase = sum(event in seen for event, _ in self.ends)
            if parity == phase & 1:
                self.program.wait_for(lambda: len(self.ends) > phase)
                self.program.fail_if(len(self.ends) > phase + 1, "a barrier is two phases ahead of who waits for it")
                event, before = self.ends[phase]
                seen.update(before, {event})


class Shared:
    """A tensor in shared memory, or a view of one. `uses` is shared by all views of one tile."""

    def __init__(self, program: Program, data: Tensor, uses: SimpleNamespace | None = None):
        self.program, self.data, self.dtype, self.shape = program, data, data.dtype, data.shape
        self.uses = uses or SimpleNamespace(copy=None, reads=set())
        self._tiles: dict[int, Shared] = {}

    def index(self, i: int) -> "Shared":
        return self._tiles.setdefault(int(i), Shared(self.program, self.data[int(i)]))

    def slice(self, start: int, length: int, dim: int = 0) -> "Shared":
        return Shared(self.program, self.data.narrow(dim, start, length), self.uses)

    def reshape(self, shape: list[int]) -> "Shared":
        return Shared(self.program, self.data.view(shape), self.uses)

    def permute(self, order: tuple[int, ...]) -> "Shared":
        return Shared(self.program, self.data.permute(order), self.uses)

    def read(self) -> int:
        """The event of a read that begins; called with the lock held."""
        copied = self.uses.copy in self.program.mine()
        self.program.fail_if(not copied, TOO_EARLY)
        event = self.program.event()
        self.uses.reads.add(event)
        return event

    def load(self, layout: None) -> Tensor:
        with self.program.changed:
            self.program.mine().add(self.read())  # over when it returns
            return self.data.clone()


class Barriers:
    def __init__(self, program: Program, count: int):
        self.barriers = [Barrier(program) for _ in range(count)]

    def index(self, i: int) -> Barrier:
        return self.barriers[int(i)]


class Product:
    """A matrix product that was issued: others may be added to it, but until it is over it may not be used."""

    def __init__(self, value: Tensor, reads: set[int]):
        self.value, self.reads, self.over = value, reads, False

    def _used(self, *_: object, **__: object) -> Any:
        raise KernelError(UNFINISHED)

    __getattr__ = __add__ = __radd__ = __sub__ = __rsub__ = __mul__ = __rmul__ = __torch_function__ = _used
