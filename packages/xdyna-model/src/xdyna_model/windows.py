"""Overlapping windows over a long clip: which frames are denoised together."""

import math


def uniform(
    num_frames: int,
    size: int = 16,
    overlap: int = 4,
    stride: int = 1,
    wrap: bool = True,
    offset: int = 0,
    *,
    step: int = 0,
) -> list[list[int]]:
    """The released schedule: windows that go round the clip, rotated by `offset`.

    Indices are taken modulo `num_frames`, so with an offset or a last window that runs over the end the first and
    last frames are denoised together: right for a clip that loops. `wrap=False` only leaves out the windows that
    begin within `overlap` of the end (the released `closed_loop=False`). For a clip whose end must not touch its
    start, see `sliding`.

    Args:
        num_frames: frames of the clip, without the reference; up to `size` of them make a single window.
        size, overlap: frames of a window, and how many of them the next one shares; 0 <= overlap < size.
        stride: windows of every 1st, 2nd, 4th ... frame are added, `stride` kinds at most.
        offset: rotation of all windows, in frames.
        step: AnimateDiff's bit-reversed phase by denoising step. X-Dyna leaves it at 0 and draws an offset.

    Returns:
        Windows as lists of frame indices; together they cover the clip.

    Raises:
        ValueError: a number is out of its range.
    """
    _check(num_frames, size, overlap)
    if stride < 1:
        raise ValueError(f"stride is {stride}, expected at least 1")
    if num_frames <= size:
        return [list(range(num_frames))]
    kinds = min(stride, math.ceil(math.log2(num_frames / size)) + 1)
    phase = _bit_reversed(step)
    pad = round(num_frames * phase)
    windows = []
    for every in (1 << k for k in range(kinds)):
        first, last = int(phase * every) + pad, num_frames + pad - (0 if wrap else overlap)
        starts = range(first, last, size * every - overlap)
        windows += [[(i + offset) % num_frames for i in range(s, s + size * every, every)] for s in starts]
    return windows


def sliding(num_frames: int, size: int = 16, overlap: int = 4, offset: int = 0) -> list[list[int]]:
    """Windows that never join the end of the clip to its start.

    They begin every `size - overlap` frames, shifted by `offset`; those that would stick out at either end are
    pushed inside, so they overlap more there. Arguments, result and errors as in `uniform`.
    """
    _check(num_frames, size, overlap)
    if num_frames <= size:
        return [list(range(num_frames))]
    advance, last = size - overlap, num_frames - size
    starts = range(offset % advance - advance, last + advance, advance)
    return [list(range(start, start + size)) for start in sorted({min(max(s, 0), last) for s in starts})]


def _check(num_frames: int, size: int, overlap: int) -> None:
    if num_frames < 1:
        raise ValueError(f"num_frames is {num_frames}, expected at least 1")
    if not 0 <= overlap < size:
        raise ValueError(f"overlap is {overlap}, expected 0 <= overlap < size = {size}")


def _bit_reversed(step: int) -> float:
    """The step's 64 bits in reverse order, as a fraction of 2^64: 0, 1/2, 1/4, 3/4, 1/8 ..."""
    return int(f"{step:064b}"[::-1], 2) / (1 << 64)
