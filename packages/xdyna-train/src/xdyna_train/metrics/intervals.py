"""How far a figure would move with other people."""

from collections.abc import Callable, Sequence

import numpy as np


def bootstrap(
    statistics: Callable[[np.ndarray], Sequence[float]], count: int, seed: int, resamples: int = 1000
) -> np.ndarray:
    """The 95 % percentile intervals of some statistics over resampled cases (Efron, 1979).

    count: of cases, at least 2. statistics: K numbers of some indices of cases, with repetitions; NaN where they hold
    none that it needs, which is left out. Returns [K, 2] (low, high), NaN where a number hangs on one case, without
    which it would be NaN: how far it would move cannot be told from that one.
    """
    rng = np.random.default_rng(seed)
    values = np.array([statistics(rng.integers(count, size=count)) for _ in range(resamples)])  # [R, K]
    without = np.array([statistics(np.delete(np.arange(count), case)) for case in range(count)])  # [count, K]
    intervals = np.full((values.shape[1], 2), np.nan)
    for k in np.flatnonzero(np.isfinite(without).all(0)):
        column = values[:, k]
        intervals[k] = np.quantile(column[np.isfinite(column)], (0.025, 0.975))
    return intervals


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's, -1 to 1, of two arrays of one shape taken as lists; 0 where one of them does not vary."""
    a, b = first.ravel() - first.mean(), second.ravel() - second.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 1e-12 else 0.0
