"""How far a figure would move with other people."""

from collections.abc import Callable, Sequence

import numpy as np


def bootstrap(
    statistics: Callable[[np.ndarray], Sequence[float]], count: int, seed: int, resamples: int = 1000
) -> np.ndarray:
    """The 95 % percentile intervals of some statistics over resampled cases (Efron, 1979).

    statistics: K numbers of [count] indices of cases, with repetitions; NaN where they hold none that it needs, which
    is left out. Returns [K, 2] (low, high), NaN where nothing is left.
    """
    rng = np.random.default_rng(seed)
    values = np.array([statistics(rng.integers(count, size=count)) for _ in range(resamples)])  # [R, K]
    intervals = np.full((values.shape[1], 2), np.nan)
    for k, column in enumerate(values.T):
        known = column[np.isfinite(column)]
        if len(known):
            intervals[k] = np.quantile(known, (0.025, 0.975))
    return intervals


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's, -1 to 1, of two arrays of one shape taken as lists; 0 where one of them does not vary."""
    a, b = first.ravel() - first.mean(), second.ravel() - second.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 1e-12 else 0.0
