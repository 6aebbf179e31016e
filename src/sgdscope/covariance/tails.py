"""How a spectrum falls and how heavy tails are: power laws, Hill's index, kurtosis and the Anderson-Darling statistic."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sgdscope.errors import ArgumentError

Array = NDArray[np.float64]

ANDERSON_5 = 0.752  # of the corrected statistic, mean and variance estimated: D'Agostino & Stephens 1986, table 4.7, 5 %
SIMULATED = 256  # dimensions of the bootstrap's covariance, at least 4 times the last rank of the window


@dataclass(frozen=True)
class PowerLaw:
    """Eigenvalues mu_r = mu_1 r^-s over a window of ranks.

    Attributes:
        exponent: s, minus the least-squares slope of log mu over log rank.
        prefactor: mu at rank 1 of the fitted line.
        distance: Kolmogorov-Smirnov: largest gap between the cumulated shares of the window's sum, measured and fitted.
        window: first and last rank, 1 is the largest.
    """

    exponent: float
    prefactor: float
    distance: float
    window: tuple[int, int]


def power_law(values: Array, window: tuple[int, int]) -> PowerLaw:
    """Fit a power law to a spectrum.

    Args:
        values: eigenvalues, largest first; > 0 within the window.
        window: first and last rank, from 1.

    Returns:
        The fit.

    Raises:
        ArgumentError: fewer than four ranks, ranks beyond the spectrum, or a value that is not positive.

    Example:
        >>> fit = power_law(3.0 * np.arange(1.0, 41.0) ** -1.7, (2, 30))
        >>> round(fit.exponent, 9), round(fit.prefactor, 9), round(fit.distance, 9)
        (1.7, 3.0, 0.0)
    """
    first, last = window
    if not 1 <= first <= last - 3 or last > len(values):
        raise ArgumentError(f"window: expected at least four ranks within 1 to {len(values)}, got {first} to {last}")
    inside, ranks = values[first - 1 : last], np.arange(first, last + 1, dtype=np.float64)
    if not (inside > 0).all() or not np.isfinite(inside).all():
        raise ArgumentError(f"values: expected positive eigenvalues within the window, got a smallest of {inside.min()}")
    slope, intercept = np.polyfit(np.log(ranks), np.log(inside), 1)
    fitted = ranks**slope
    gap = np.cumsum(inside) / inside.sum() - np.cumsum(fitted) / fitted.sum()
    return PowerLaw(-float(slope), float(np.exp(intercept)), float(np.abs(gap).max()), (first, last))


def ranks_within(values: Array, window: tuple[int, int], most: int) -> tuple[int, int] | None:
    """Cut a window of ranks to the eigenvalues above rounding.

    Args:
        values: eigenvalues, largest first.
        window: first and last rank.
        most: ranks that there can be.

    Returns:
        The window, its end lowered where needed; None where fewer than four ranks are left.
    """
    positive = int((values > 1e-10 * values[0]).sum()) if values[0] > 0 else 0
    last = min(window[1], positive, most)
    return (window[0], last) if last >= window[0] + 3 else None


def power_law_test(
    values: Array, fit: PowerLaw, *, examples: int, dimensions: int, resamples: int, seed: int
) -> tuple[float, float]:
    """Test whether a spectrum of m examples can come from a covariance that is a power law, by a parametric bootstrap.

    Gaussian gradients of the fitted law are drawn (a Wishart matrix by Bartlett's factor, ranks before the window as measured,
    those after it on the fitted line), their spectrum is fitted in the same window, and the distances are compared: tables of
    Kolmogorov and Smirnov hold for a law that was not fitted. p = (1 + number of distances at least as large) / (resamples + 1).

    Args:
        values: eigenvalues of C, largest first.
        fit: of `power_law`.
        examples: m behind the spectrum.
        dimensions: P; at most max(256, 4 x the last rank) and m are simulated.
        resamples: >= 1.
        seed: of the draws.

    Returns:
        (p, the smallest p that can come out).

    Cost: a symmetric eigenproblem of the simulated dimensions a resample, 6 ms for 256.
    """
    first, last = fit.window
    size = min(dimensions, examples, max(SIMULATED, 4 * last))
    law = fit.prefactor * np.arange(1, size + 1, dtype=np.float64) ** -fit.exponent
    law[: first - 1] = values[: first - 1]
    generator, root, larger = np.random.default_rng(seed), np.sqrt(law), 0
    for _ in range(resamples):
        half = root[:, None] * _bartlett(generator, size, examples)
        drawn = np.linalg.eigvalsh(half @ half.T / examples)[::-1]
        larger += power_law(np.maximum(drawn, 1e-300), fit.window).distance >= fit.distance
    return (1 + larger) / (resamples + 1), 1 / (resamples + 1)


def isotropic_test(fit: PowerLaw, *, examples: int, dimensions: int, resamples: int, seed: int) -> tuple[float, float]:
    """Test whether the exponent of a fit is more than isotropic Gaussian noise of as many examples and dimensions gives.

    Isotropic noise is a power law with exponent 0, and few examples make its spectrum fall too; a power law is only told from
    it where p is small. p = (1 + number of exponents at least as large) / (resamples + 1).

    Args:
        fit: of `power_law`.
        examples: m behind the spectrum.
        dimensions: P.
        resamples: >= 1.
        seed: of the draws.

    Returns:
        (p, the smallest p that can come out).

    Cost: a symmetric eigenproblem of min(m, P) a resample, 40 ms for 512.
    """
    size, degrees = sorted((examples, dimensions))
    generator, larger = np.random.default_rng(seed), 0
    for _ in range(resamples):
        factor = _bartlett(generator, size, degrees)
        drawn = np.linalg.eigvalsh(factor @ factor.T)[::-1]
        larger += power_law(np.maximum(drawn, 1e-300), fit.window).exponent >= fit.exponent
    return (1 + larger) / (resamples + 1), 1 / (resamples + 1)


def _bartlett(generator: np.random.Generator, size: int, degrees: int) -> Array:
    """A lower triangular A with A A' a Wishart matrix of the identity."""
    factor = np.tril(generator.standard_normal((size, size)), -1)
    factor[np.diag_indices(size)] = np.sqrt(generator.chisquare(degrees - np.arange(size)))
    return factor


def hill(values: Array, share: float) -> tuple[float, float]:
    """Hill's index of the tail of |x|: P(|x| > t) ~ t^-index. Small is heavy; a Gaussian gives large ones that grow with n.

    index = 1 / mean(log(x_(i) / x_(k+1))) over the k largest, k = share n; standard error index / sqrt(k).

    Args:
        values: [n].
        share: of the values that count as the tail, in (0, 1).

    Returns:
        (index, standard error); NaN where the tail has fewer than two values or no spread.

    Source: Hill 1975.
    """
    ordered = np.sort(np.abs(values))[::-1]
    k = int(share * len(ordered))
    if k < 2 or k >= len(ordered) or not ordered[k] > 0:
        return math.nan, math.nan
    excess = float(np.log(ordered[:k] / ordered[k]).mean())
    return (1 / excess, 1 / (excess * math.sqrt(k))) if excess > 0 else (math.nan, math.nan)


def kurtosis(values: Array) -> Array:
    """Fourth central moment over the squared variance; 3 for a Gaussian.

    Args:
        values: [n, ...].

    Returns:
        [...]; NaN where there is no spread.
    """
    centred = values - values.mean(0)
    second = (centred**2).mean(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.where(second > 0, (centred**4).mean(0) / second**2, np.nan))


def anderson_darling(values: Array) -> Array:
    """Anderson-Darling statistic against a Gaussian of estimated mean and variance, corrected for n.

    A^2 (1 + 0.75 / n + 2.25 / n^2); above 0.752 the Gaussian is refused at 5 %.

    Args:
        values: [n, ...], n >= 8.

    Returns:
        [...]; NaN where there is no spread, or below 8 values.

    Source: D'Agostino & Stephens 1986, table 4.7.
    """
    n = len(values)
    spread = values.std(0, ddof=1) if n >= 8 else np.full(values.shape[1:], np.nan)
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.sort((values - values.mean(0)) / np.where(spread > 0, spread, np.nan), axis=0)
    weights = (2 * np.arange(1, n + 1) - 1).reshape(-1, *[1] * (values.ndim - 1))
    terms = weights * (stats.norm.logcdf(z) + stats.norm.logsf(z[::-1]))
    return np.asarray((-n - terms.mean(0)) * (1 + 0.75 / n + 2.25 / n**2))
