"""Rank correlation with other numbers held fixed, and its mean over seeds."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan, tanh

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import rankdata

from sgdscope import statistics

LARGEST = 0.999  # correlations beyond count as this one, where Fisher's transform would be infinite


def partial(x: ArrayLike, y: ArrayLike, *given: ArrayLike) -> float:
    """Rank correlation of x and y with other numbers held fixed.

    Pearson's correlation of what is left of the mid-ranks of x and of y after least squares on 1 and the mid-ranks of the
    given numbers; without any it is Spearman's.

    Args:
        x: [n], finite.
        y: [n], finite.
        *given: each [n], finite.

    Returns:
        The correlation; NaN with fewer than 4 + len(given) values, or where the given numbers leave nothing of x or of y.

    Source: Kendall 1942 for ranks; least squares on ranks: Conover & Iman 1981.
    """
    ranks = [rankdata(np.asarray(values, np.float64)) for values in (x, y, *given)]
    n = len(ranks[0])
    if n < 4 + len(given):
        return nan
    basis = np.linalg.qr(np.stack([np.ones(n), *ranks[2:]], 1))[0]
    a, b = (_rest(r, basis) for r in ranks[:2])
    least = 1e-9 * n * np.sqrt(n)  # of rounding, where ranks are as large as n
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    return float(a @ b / (lengths[0] * lengths[1])) if min(lengths) > least else nan


def _rest(ranks: NDArray[np.float64], basis: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(ranks - basis @ (basis.T @ ranks), np.float64)


def pooled(correlations: Sequence[float]) -> tuple[float, statistics.Interval]:
    """The mean correlation over seeds, with Student's interval, both through Fisher's z = artanh r.

    Args:
        correlations: one a seed, finite, at least one.

    Returns:
        (mean, interval); unbounded with one seed.
    """
    z = np.arctanh(np.clip(correlations, -LARGEST, LARGEST))
    mean, _, interval = statistics.mean_interval(z)
    if not isfinite(interval.low):
        return tanh(mean), interval
    return tanh(mean), statistics.Interval(tanh(interval.low), tanh(interval.high))
