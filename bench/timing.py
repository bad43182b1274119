"""Times of several calls, taken in turns, so that a clock that drifts drifts for all of them alike."""

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch

Call = Callable[[], object]
WARM_UP = 3
# Written between two timed calls. It empties the L2 cache, and it takes the GPU a few tenths of a millisecond, in
# which Python queues the next call: the launches of small shapes then follow each other without gaps.
_FLUSH_BYTES = 2**30
_FLUSH_SECONDS = 1e-4  # that it takes at least, at ten terabytes a second


@dataclass(frozen=True)
class Times:
    """Milliseconds of every round, in order, and the memory in bytes that one call takes above its inputs."""

    ms: list[float]
    peak: int | None

    @property
    def median(self) -> float:
        return statistics.median(self.ms)

    def quantile(self, share: float) -> float:
        return torch.tensor(self.ms, dtype=torch.float64).quantile(share).item()


def interleaved(calls: dict[str, Call], device: torch.device, repeats: int, seed: int) -> dict[str, Times]:
    """Times every call `repeats` times: each round takes all of them once, in a new order."""
    peaks = {name: warm_up(call, device) for name, call in calls.items()}
    clock = cpu_round
    if device.type == "cuda":
        clock = partial(cuda_round, {name: flushes(call) for name, call in calls.items()})
    order, shuffle = list(calls), random.Random(seed)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        shuffle.shuffle(order)
        for name, ms in clock({name: calls[name] for name in order}).items():
            samples[name].append(ms)
    return {name: Times(ms, peaks[name]) for name, ms in samples.items()}


def warm_up(call: Call, device: torch.device) -> int | None:
    """Runs the call (on a GPU a few times); returns its peak memory in bytes, None where torch counts none."""
    if device.type != "cuda":
        call()
        return None
    for _ in range(WARM_UP - 1):
        call()
    torch.cuda.synchronize()
    # What was asked for: the allocator's blocks are up to 1 MiB larger, by how free memory happened to lie.
    before = torch.cuda.memory_stats()["requested_bytes.all.current"]
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    return torch.cuda.memory_stats()["requested_bytes.all.peak"] - before


def cpu_round(calls: dict[str, Call]) -> dict[str, float]:
    """Milliseconds of one run of each: on one thread of processor time, in which what else runs there hardly shows;
    on several of wall-clock time."""
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    times = {}
    for name, call in calls.items():
        start = clock()
        call()
        times[name] = 1000 * (clock() - start)
    return times


def flushes(call: Call) -> int:
    """How often to flush before a call, so that the GPU is at work for twice as long as Python takes to queue it: once,
    where the GPU takes longer over the call than Python does."""
    found = []
    for _ in range(3):
        torch.cuda.synchronize()
        start = time.perf_counter()
        call()
        queued = time.perf_counter() - start
        torch.cuda.synchronize()
        host_bound = time.perf_counter() - start < 2 * queued
        found.append(1 + int(2 * queued / _FLUSH_SECONDS) if host_bound else 1)
    return statistics.median_low(found)


def cuda_round(flushes: dict[str, int], calls: dict[str, Call]) -> dict[str, float]:
    """Milliseconds of one run of each on the GPU, between events in its own queue, on a cold L2 cache."""
    flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
    events = {}
    for name, call in calls.items():
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        for _ in range(flushes[name]):
            flush.zero_()
        start.record()
        call()
        end.record()
        events[name] = start, end
    torch.cuda.synchronize()
    return {name: start.elapsed_time(end) for name, (start, end) in events.items()}
