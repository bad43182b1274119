"""How far a figure would move with other people."""

from collections.abc import Callable

import numpy as np


def bootstrap(
    statistic: Callable[[np.ndarray], float], count: int, seed: int, resamples: int = 1000, level: float = 0.95
) -> tuple[float, float]:
    """The percentile interval of a statistic over resampled cases (Efron, 1979).

    statistic: of [count] indices of cases, with repetitions; NaN where they hold none that it needs, which is left
    out. Returns (low, high), NaN where nothing is left.
    """
    rng = np.random.default_rng(seed)
    values = np.array([statistic(rng.integers(count, size=count)) for _ in range(resamples)])
    values = values[np.isfinite(values)]
    if not len(values):
        return float("nan"), float("nan")
    low, high = np.quantile(values, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's, -1 to 1, of two arrays of one shape taken as lists; 0 where one of them does not vary."""
    a, b = first.ravel() - first.mean(), second.ravel() - second.mean()
    size = np.sqrt((a @ a) * (b @ b))
    return float(a @ b / size) if size > 1e-12 else 0.0
