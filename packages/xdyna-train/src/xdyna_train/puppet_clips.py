"""A data set of puppets on disk, for those who want files: the same seed, the same bytes."""

import multiprocessing
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from xdyna_model.errors import InputError
from xdyna_model.outputs import staged_folder

from xdyna_train.clip_files import PackedClip, pack_moments
from xdyna_train.puppets import KINDS, Identity, Motion, PuppetFrame, Scene, render_frame
from xdyna_train.shards import ClipRecord, write_manifest, write_packed

FPS = 8.0
# Clips that are asked of a process before the first of them is taken: enough to keep it busy, few in memory.
_AHEAD = 2


@dataclass(frozen=True)
class PuppetSet:
    """What to draw. num_clips clips of num_frames frames of height x width pixels; scene_share of them, 0 to 1, show
    nobody. Clip k is a function of (seed, k) and the sizes: a longer set begins with the shorter one.

    Raises InputError for sizes that cannot be drawn.
    """

    num_clips: int
    seed: int
    height: int = 112
    width: int = 64
    num_frames: int = 16
    scene_share: float = 0.3

    def __post_init__(self) -> None:
        if self.num_clips < 1 or self.num_frames < 1:
            raise InputError(f"{self.num_clips} clips of {self.num_frames} frames: both must be 1 or more")
        if self.seed < 0:
            raise InputError(f"seed {self.seed}: give a number of 0 or more")
        if min(self.height, self.width) < 16 or max(self.height, self.width) > 4096:
            raise InputError(f"size {self.height}x{self.width}: each side must be 16 to 4096 pixels")
        if not 0 <= self.scene_share <= 1:
            raise InputError(f"scenes {self.scene_share}: give the share of clips without people, 0 to 1")

    def clip(self, index: int) -> PackedClip:
        """Draws clip `index`. Its notes: scene (one of `KINDS`), velocity (pixels a frame, right and down, of what
        drifts), and expressions, one a frame, of clips that show someone."""
        rng = np.random.default_rng((self.seed, index))
        # Spread evenly over the set, not by chance: of any stretch of clips, the share that was asked for.
        empty = np.floor((index + 1) * self.scene_share) > np.floor(index * self.scene_share)
        scene = Scene.sample(KINDS[rng.integers(len(KINDS))], rng)
        who = (None, None) if empty else (Identity.sample(rng), Motion.sample(rng))
        start = float(rng.uniform(0, 40))
        times = [start + k for k in range(self.num_frames)]
        frames = [render_frame(scene, *who, t, self.height, self.width) for t in times]
        moments = ((frame.rgb, frame.person, frame.mask) for frame in frames)
        name = f"puppet-{self.seed}-{index:07d}"
        return pack_moments(name, "scene" if empty else "human", FPS, moments, _notes(scene, frames, self.height))


def write_puppets(
    puppets: PuppetSet, folder: str | Path, workers: int = 1, progress: Callable[[int], None] | None = None
) -> tuple[ClipRecord, ...]:
    """Writes the set as shards with a manifest (see `shards`), whole or not at all.

    workers: processes that draw; their number changes no byte. progress: called with the number of clips drawn.
    Returns the records in order. Raises InputError where `folder` is there already or cannot be written, for
    workers below 1, or where one of them ended early.
    """
    if workers < 1:
        raise InputError(f"{workers} workers: at least one must draw")
    indices = range(puppets.num_clips)
    with staged_folder(folder) as draft, ExitStack() as stack:
        clips = map(puppets.clip, indices)
        if workers > 1:
            # Not forked: the encoder's threads would not survive it.
            pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _end_with_parent)
            stack.callback(pool.shutdown, cancel_futures=True)
            clips = _drawn(puppets, pool, _AHEAD * workers)
        records = tuple(write_packed(_counted(clips, progress), draft))
        write_manifest(draft, records)
    return records


def _drawn(puppets: PuppetSet, pool: ProcessPoolExecutor, ahead: int) -> Iterator[PackedClip]:
    """The clips in order, drawn by processes, no more than `ahead` at a time. Raises InputError where one of them
    ended early: killed by a machine without memory, or at its start by a script that it would have run again."""
    rest = iter(range(puppets.num_clips))
    try:
        asked = deque(pool.submit(puppets.clip, index) for index in islice(rest, ahead))
        while asked:
            clip = asked.popleft().result()
            asked.extend(pool.submit(puppets.clip, index) for index in islice(rest, 1))
            yield clip
    except BrokenProcessPool as error:
        raise InputError(
            "a process that draws ended early (no memory? a script needs `if __name__ == '__main__'`); "
            "draw with fewer workers"
        ) from error


def _end_with_parent() -> None:
    """Ends this process as soon as the one that started it is gone; by itself it would wait for work for ever."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _counted(clips: Iterable[PackedClip], progress: Callable[[int], None] | None) -> Iterator[PackedClip]:
    for number, clip in enumerate(clips, 1):
        yield clip
        if progress is not None:
            progress(number)


def _notes(scene: Scene, frames: list[PuppetFrame], height: int) -> dict[str, Any]:
    notes: dict[str, Any] = {"scene": scene.kind, "velocity": np.round(scene.flow(height), 4).tolist()}
    if frames[0].expression is None:
        return notes
    faces = [asdict(frame.expression) for frame in frames if frame.expression is not None]
    return notes | {"expressions": [{name: np.round(value, 4).tolist() for name, value in f.items()} for f in faces]}
