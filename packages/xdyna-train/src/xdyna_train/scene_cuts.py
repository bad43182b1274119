"""Where a video cuts from one scene to the next.

Each frame leaves a signature: the colours in each sixteenth of the picture. Between two frames it tells another place
from the same place with something moving in it. A cut is where no frame just before is like any frame just after.
That asks for more than two unlike neighbours, so a flash is no cut: what follows it is like what came before. Slow
dissolves and fades are not found: there, neighbours are always alike.
"""

import numpy as np
from einops import rearrange
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image

_CELLS = 4
_CELL_PIXELS = 8
_BINS = 8
# A cut is at least this far, and so many times further than neighbours are in the seconds around it: pans, strobes and
# fast dances pass. Neighbours among puppets, eight frames a second, are at most 0.09 apart.
_LEAST = 0.12
_TIMES = 4.0
_AROUND_SECONDS = 1.0
# How long before and after a cut is looked at. A flash of a camera lasts a frame or two, lightning somewhat longer.
_LOOK_SECONDS = 0.2
# Frames whose signatures are compared at once: a video of hours takes hardly more memory for it than one of minutes.
_BLOCK = 4096


def signature(frame: np.ndarray) -> np.ndarray:
    """frame: [H, W, 3] uint8 RGB. Returns [384] float16: for 4 x 4 cells and three colours, a histogram of 8 bins.

    A pixel counts for its two nearest bins, in shares, so that a little more light changes a little.
    """
    side = _CELLS * _CELL_PIXELS
    small = np.asarray(Image.fromarray(frame).resize((side, side), Image.Resampling.BOX), np.float32)
    cells = rearrange(small, "(y p) (x q) c -> (y x c) (p q)", y=_CELLS, x=_CELLS)  # [48, 64]
    place = cells / 255 * (_BINS - 1)
    shares = np.maximum(0, 1 - np.abs(place[..., None] - np.arange(_BINS)))  # [48, 64, 8]
    return shares.mean(1).astype(np.float16).ravel()


def distance(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How unlike signatures [..., 384] are: [...] float32, 0 (the same) to 1 (no colour in common anywhere)."""
    return np.abs(a.astype(np.float32) - b).sum(-1) / (2 * a.shape[-1] / _BINS)


def find_cuts(signatures: np.ndarray, fps: float) -> list[int]:
    """signatures: [F, 384]. Returns the indices, ascending, of the frames that begin a new scene (never 0).

    Of cuts within the time of a flash, the clearest counts.
    """
    if len(signatures) < 2:
        return []
    look = max(2, round(fps * _LOOK_SECONDS))
    apart = _closest_across(signatures, look)  # [F]
    cuts = apart > np.maximum(_LEAST, _TIMES * _usual(signatures, max(1, round(fps * _AROUND_SECONDS))))
    clearest = _windows(apart, look).max(1)
    return [int(index) for index in np.flatnonzero(cuts & (apart == clearest))]


def _closest_across(signatures: np.ndarray, look: int) -> np.ndarray:
    """[F]: for each frame, the least distance between one of `look` frames before it and one of `look` from it on."""
    closest = np.full(len(signatures), np.inf, np.float32)
    for gap in range(1, min(2 * look, len(signatures))):
        apart = _apart(signatures, gap)  # [F - gap], of frames s and s + gap
        for after in range(max(0, gap - look), min(gap, look)):
            first = gap - after  # the pair s, s + gap lies around frame s + first
            around = closest[first : first + len(apart)]
            np.minimum(around, apart, out=around)
    closest[0] = 0
    return closest


def _usual(signatures: np.ndarray, reach: int) -> np.ndarray:
    """[F]: the median of how far neighbours are apart, within `reach` frames."""
    neighbours = _apart(signatures, 1)
    windows = _windows(np.concatenate([neighbours[:1], neighbours]), reach)  # [F, 2 * reach + 1]
    return np.concatenate([np.median(windows[at : at + _BLOCK], axis=1) for at in range(0, len(windows), _BLOCK)])


def _apart(signatures: np.ndarray, gap: int) -> np.ndarray:
    """[F - gap]: how far apart the frames s and s + gap are, for each s."""
    earlier, later = signatures[:-gap], signatures[gap:]
    blocks = [slice(at, at + _BLOCK) for at in range(0, len(earlier), _BLOCK)]
    return np.concatenate([distance(later[block], earlier[block]) for block in blocks])


def _windows(values: np.ndarray, reach: int) -> np.ndarray:
    """[F] -> [F, 2 * reach + 1], a view: the values around each, mirrored at the ends."""
    return sliding_window_view(np.pad(values, reach, mode="symmetric"), 2 * reach + 1)
