"""How the scene moves: direction and size of its flow, how much of the truth's motion it shows, its energy, and flicker
where nothing moves."""

import numpy as np
from einops import reduce

_REACH = 0.1  # the largest flow looked for along each axis, in heights a frame
_LEAST_OVERLAP = 0.1  # of the most pixels that any shift compares; with fewer a shift is not considered


def apart(truth: np.ndarray, background: np.ndarray, margin: int = 2) -> np.ndarray:
    """Where neither the figure nor its shadow is within `margin` pixels.

    truth, background: [F, H, W, 3], with and without the figure at the same times. Returns [F, H, W] bool.
    """
    taken = (truth != background).any(-1)
    padded = np.pad(taken, ((0, 0), (margin, margin), (margin, margin)))
    side = 2 * margin + 1
    windows = np.lib.stride_tricks.sliding_window_view(padded, (1, side, side))
    return np.logical_not(windows.any((-1, -2, -3)))


def flowing(truth: np.ndarray, background: np.ndarray, margin: int = 2) -> np.ndarray:
    """Where the scene moves, `apart` from the figure. The same arguments, [F, H, W] bool."""
    return apart(truth, background, margin) & (background != background[:1]).any((0, -1))


def measure_flow(frames: np.ndarray, free: np.ndarray) -> tuple[float, float]:
    """The one shift from frame to frame that fits all pairs of neighbours best: (right, down) in pixels.

    What stands still is taken off as each pixel's mean over the clip. The shift is where the normalised correlation
    of neighbouring frames peaks (masked, by FFT: Padfield, "Masked object registration in the Fourier domain", 2012),
    refined by a parabola along each axis. (0, 0) where nothing changes.

    frames: [F, H, W, 3] float32 in [0, 1]. free: [F, H, W] bool, the pixels to look at.
    """
    moving = _moving(frames, free)
    if np.abs(moving).max() < 1e-6:
        return 0.0, 0.0
    height, width = moving.shape[1:]
    size = (2 * height, 2 * width)
    value, square, mask = (np.fft.rfft2(part, size) for part in (moving, moving**2, free.astype(np.float64)))

    def correlate(first: np.ndarray, second: np.ndarray) -> np.ndarray:
        return np.fft.irfft2((np.conj(first[:-1]) * second[1:]).sum(0), size)

    overlap = correlate(mask, mask)
    before, after = correlate(square, mask), correlate(mask, square)
    energy = np.sqrt(np.maximum(before, 0) * np.maximum(after, 0))
    enough = (overlap > _LEAST_OVERLAP * overlap.max()) & (energy > 1e-6 * energy.max())
    fit = np.where(enough, correlate(value, value) / np.where(enough, energy, 1.0), -1.0)
    reach = round(_REACH * frames.shape[1]) + 1
    near = np.roll(fit, (reach, reach), (0, 1))[: 2 * reach + 1, : 2 * reach + 1]
    inner = near[1:-1, 1:-1]
    row, column = (int(i) + 1 for i in np.unravel_index(inner.argmax(), inner.shape))
    right = column + _parabola(near[row, column - 1 : column + 2]) - reach
    down = row + _parabola(near[row - 1 : row + 2, column]) - reach
    return right, down


def motion_energy(frames: np.ndarray, where: np.ndarray) -> float:
    """Mean absolute difference of neighbouring frames, 0 to 1, over the pixels that `where` has in both.

    frames: [F, H, W, 3] float32 in [0, 1]. where: [F, H, W] bool. NaN where it has none.
    """
    both = where[1:] & where[:-1]
    return float(np.abs(np.diff(frames, axis=0)).mean(-1)[both].mean()) if both.any() else float("nan")


def motion_followed(frames: np.ndarray, truth: np.ndarray, where: np.ndarray) -> float:
    """How much of the truth's motion the frames show: 1 for all of it, about 0 for none or for another.

    The slope of what changes in the frames, each pixel less its mean over the times that `where` has it, on what
    changes in the truth. A faint drift of the right speed has a small slope, where `measure_flow` reads it as whole;
    flicker beside it, which misleads `measure_flow`, changes it on average by nothing. Above 1 where contrasts are
    larger than the truth's.

    frames, truth: [F, H, W, 3] float32 in [0, 1]. where: [F, H, W] bool. NaN where the truth does not change.
    """
    shown, true = (_about_mean(part.astype(np.float64), where) for part in (frames, truth))
    size = (true**2).sum()
    return float((shown * true).sum() / size) if size > 1e-9 else float("nan")  # less is rounding


def flicker(frames: np.ndarray, truth: np.ndarray) -> float:
    """Mean absolute difference of neighbouring frames, 0 to 1, where the truth's neighbours are the same.

    frames, truth: [F, H, W, 3] float32 in [0, 1]. NaN where the truth changes everywhere.
    """
    still = (np.diff(truth, axis=0) == 0).all(-1)
    return float(np.abs(np.diff(frames, axis=0)).mean(-1)[still].mean()) if still.any() else float("nan")


def _moving(frames: np.ndarray, free: np.ndarray) -> np.ndarray:
    """Brightness less its mean over the times a pixel is free, a little smoothed: the peaks of thin streaks fall
    between pixels otherwise. 0 where a pixel is not free. [F, H, W] float64."""
    grey = reduce(frames.astype(np.float64), "f h w c -> f h w 1", "mean")
    weight = free.astype(np.float64)
    return free * _smooth(_about_mean(grey, free)[..., 0]) / np.maximum(_smooth(weight), 1e-9)


def _about_mean(frames: np.ndarray, where: np.ndarray) -> np.ndarray:
    """[F, H, W, C] less its mean over the times that `where` [F, H, W] has, 0 where it does not."""
    weight = where[..., None]
    return weight * (frames - (frames * weight).sum(0) / np.maximum(weight.sum(0), 1))


def _smooth(pictures: np.ndarray) -> np.ndarray:
    """Binomial, about one pixel wide. [F, H, W]."""
    for axis in (1, 2):
        edge = [(0, 0)] * 3
        edge[axis] = (1, 1)
        first, middle, last = (
            np.take(np.pad(pictures, edge), np.arange(start, start + pictures.shape[axis]), axis) for start in range(3)
        )
        pictures = (first + 2 * middle + last) / 4
    return pictures


def _parabola(values: np.ndarray) -> float:
    """Where the parabola through three neighbouring values peaks, from the middle one, in [-0.5, 0.5]."""
    low, middle, high = values.tolist()
    bend = low - 2 * middle + high
    return float(np.clip(0.5 * (low - high) / bend, -0.5, 0.5)) if bend < 0 else 0.0
