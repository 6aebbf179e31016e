"""Intervals, block bootstrap, slope and rank tests, an equivalence test and the rate of censored exponential times.

Pure numpy and scipy. Arrays in, small tuples out. Non-finite values are an error: who has missing values drops them
and says so. An interval that the data cannot bound is (-inf, inf), never a guess.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, comb, inf, isfinite, nan, prod, sqrt
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sgdscope.errors import ArgumentError

Array = NDArray[np.float64]


class Interval(NamedTuple):
    """A two-sided confidence interval."""

    low: float
    high: float


UNBOUNDED = Interval(-inf, inf)


def _finite(name: str, values: ArrayLike, least: int = 1, dims: tuple[int, ...] = (1,)) -> Array:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim not in dims:
        raise ArgumentError(f"{name}: expected an array of {' or '.join(map(str, dims))} dimension(s), got shape {array.shape}")
    if len(array) < least:
        raise ArgumentError(f"{name}: expected at least {least} value(s), got {len(array)}")
    if bad := int((~np.isfinite(array)).sum()):
        raise ArgumentError(f"{name}: {bad} of {array.size} values are NaN or infinite; drop them first and say so")
    return array


def _same_length(x_name: str, x: Array, y_name: str, y: Array) -> None:
    if x.shape != y.shape:
        raise ArgumentError(f"{x_name}, {y_name}: expected equal lengths, got {len(x)} and {len(y)}")


def _probability(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ArgumentError(f"{name}: expected a number between 0 and 1, got {value}")
    return value


def mean_interval(x: ArrayLike, confidence: float = 0.95) -> tuple[float, float, Interval]:
    """Mean of independent values, with Student's interval.

    mean = sum x_i / n, stderr = sqrt(sum (x_i - mean)^2 / (n - 1) / n), interval = mean -+ t_{n-1} stderr.

    Args:
        x: [n], independent.
        confidence: of the interval, in (0, 1).

    Returns:
        (mean, stderr, interval); with n = 1 the stderr is NaN and the interval unbounded.

    Raises:
        ArgumentError: empty, not a vector, or not finite.

    Example:
        >>> mean, stderr, (low, high) = mean_interval([1.0, 2.0, 3.0, 6.0])
        >>> round(mean, 3), round(stderr, 3), round(low, 3), round(high, 3)
        (3.0, 1.08, -0.437, 6.437)
    """
    values, _ = _finite("x", x), _probability("confidence", confidence)
    mean, n = float(values.mean()), len(values)
    if n < 2:
        return mean, nan, UNBOUNDED
    stderr = float(values.std(ddof=1)) / sqrt(n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1)) * stderr
    return mean, stderr, Interval(mean - half, mean + half)


def block_length(n: int) -> int:
    """Length of bootstrap blocks for n updates: n^(1/3) rounded up (Kuensch 1989: the order that is best for a mean).

    Args:
        n: length of the series.

    Returns:
        At least 1.
    """
    return max(1, ceil(round(float(np.cbrt(n)), 9)))


def block_bootstrap(
    x: ArrayLike,
    statistic: Callable[[Any], Any] = np.mean,
    block: int | None = None,
    resamples: int = 999,
    seed: int = 0,
    confidence: float = 0.95,
) -> tuple[float, float, Interval]:
    """Statistic of a dependent series, with the circular block bootstrap over its first axis.

    Blocks of consecutive rows start anywhere with equal probability and wrap round the end; ceil(n / block) of them are
    joined and cut to n rows. stderr = standard deviation over the resamples, interval = their percentiles.

    Args:
        x: [n] or [n, k]; rows stay together.
        statistic: array like x -> number.
        block: length of a block in 1..n; `block_length(n)` if None.
        resamples: how many, at least 2.
        seed: of the resampling; the same seed gives the same numbers.
        confidence: of the interval, in (0, 1).

    Returns:
        (statistic of x, stderr, interval); with n = 1 the stderr is NaN and the interval unbounded. Resamples on which
        the statistic is not finite are left out.

    Raises:
        ArgumentError: empty, not finite, or an option out of range.

    Cost: `resamples` calls of the statistic.
    Source: Politis & Romano 1992 (circular block bootstrap).
    """
    values = _finite("x", x, dims=(1, 2))
    n, length = len(values), block_length(len(values)) if block is None else block
    if not 1 <= length <= n:
        raise ArgumentError(f"block: expected a length from 1 to {n}, got {length}")
    if resamples < 2:
        raise ArgumentError(f"resamples: expected at least 2, got {resamples}")
    _probability("confidence", confidence)
    value = float(statistic(values))
    if n < 2:
        return value, nan, UNBOUNDED
    starts = np.random.default_rng(seed).integers(0, n, size=(resamples, ceil(n / length)))
    rows = ((starts[:, :, None] + np.arange(length)) % n).reshape(resamples, -1)[:, :n]
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may have no finite statistic; it is left out
        drawn = np.array([float(statistic(values[row])) for row in rows])
    drawn = drawn[np.isfinite(drawn)]
    if len(drawn) < 2:
        return value, nan, UNBOUNDED
    low, high = np.quantile(drawn, [(1 - confidence) / 2, (1 + confidence) / 2])
    return value, float(drawn.std(ddof=1)), Interval(float(low), float(high))


def wilson(successes: int, n: int, confidence: float = 0.95) -> Interval:
    """Score interval of a share of independent trials.

    Centre (p + z^2/2n) / (1 + z^2/n), half-width z sqrt(p(1-p)/n + z^2/4n^2) / (1 + z^2/n), p = successes / n.

    Args:
        successes: 0..n.
        n: number of trials, at least 1.
        confidence: in (0, 1).

    Returns:
        The interval, within [0, 1].

    Raises:
        ArgumentError: out of range.

    Source: Wilson 1927.
    """
    if n < 1 or not 0 <= successes <= n:
        raise ArgumentError(f"successes, n: expected 0 <= successes <= n with n >= 1, got {successes} of {n}")
    z = float(stats.norm.ppf((1 + _probability("confidence", confidence)) / 2))
    p, scale = successes / n, 1 + z * z / n
    centre, half = (p + z * z / (2 * n)) / scale, z * sqrt(p * (1 - p) / n + z * z / (4 * n * n)) / scale
    low = 0.0 if successes == 0 else max(0.0, centre - half)
    return Interval(low, 1.0 if successes == n else min(1.0, centre + half))


def share_interval(flags: ArrayLike, confidence: float = 0.95, seed: int = 0) -> tuple[float, Interval]:
    """Share of true flags in a series of updates.

    Block bootstrap over the updates; where all flags are equal it has no spread, and Wilson's interval is taken, as for
    n independent updates.

    Args:
        flags: [n] of zeros and ones.
        confidence: in (0, 1).
        seed: of the bootstrap.

    Returns:
        (share, interval).

    Raises:
        ArgumentError: empty, or values other than 0 and 1.
    """
    values = _finite("flags", flags)
    if not np.isin(values, (0.0, 1.0)).all():
        raise ArgumentError("flags: expected zeros and ones")
    share, n = float(values.mean()), len(values)
    if share in (0.0, 1.0):
        return share, wilson(n if share else 0, n, confidence)
    return share, block_bootstrap(values, seed=seed, confidence=confidence)[2]


def slope(x: ArrayLike, y: ArrayLike, confidence: float = 0.95) -> tuple[float, float, Interval, float]:
    """Least-squares slope of y over x, with an intercept.

    b = Sxy / Sxx, stderr = sqrt(RSS / (n - 2) / Sxx), interval = b -+ t_{n-2} stderr, r2 = 1 - RSS / Syy.
    The interval holds for independent errors; over the points of one walk it is too narrow: say so, or use seeds.

    Args:
        x: [n], n >= 2, not all equal.
        y: [n].
        confidence: in (0, 1).

    Returns:
        (slope, stderr, interval, r2); with n = 2 the stderr is NaN and the interval unbounded; r2 is NaN if y is constant.

    Raises:
        ArgumentError: too short, unequal lengths, not finite, or x constant.
    """
    xs, ys = _finite("x", x, 2), _finite("y", y, 2)
    _same_length("x", xs, "y", ys)
    _probability("confidence", confidence)
    dx, dy, n = xs - xs.mean(), ys - ys.mean(), len(xs)
    sxx = float(dx @ dx)
    if sxx == 0:
        raise ArgumentError(f"x: all {n} values are {xs[0]}; a slope needs at least two different ones")
    b = float(dx @ dy) / sxx
    rss, syy = float(((dy - b * dx) ** 2).sum()), float(dy @ dy)
    r2 = 1 - rss / syy if syy > 0 else nan
    if n < 3:
        return b, nan, UNBOUNDED, r2
    stderr = sqrt(rss / (n - 2) / sxx)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 2)) * stderr
    return b, stderr, Interval(b - half, b + half), r2


def jonckheere(groups: Sequence[ArrayLike]) -> tuple[float, float, float]:
    """Jonckheere-Terpstra test for an increasing trend over ordered groups.

    J = number of pairs (one value of an earlier, one of a later group) that increase, ties count 1/2.
    z = (J - E J) / sqrt(Var J) with the tie-corrected variance. p is exact where no two values are equal (the
    distribution of J is a Gaussian multinomial coefficient) and from z otherwise.

    Args:
        groups: at least two, each with at least one value, in the order in which they should increase.

    Returns:
        (z, p for an increasing trend, smallest p that groups of these sizes can attain).

    Raises:
        ArgumentError: fewer than two groups, or an empty one.

    Source: Jonckheere 1954; variance with ties: Hollander & Wolfe, Nonparametric Statistical Methods, section 6.2.
    """
    if len(groups) < 2:
        raise ArgumentError(f"groups: expected at least two ordered groups, got {len(groups)}")
    values = [_finite(f"groups[{i}]", g) for i, g in enumerate(groups)]
    sizes = [len(g) for g in values]
    later = [(a, b) for i, a in enumerate(values) for b in values[i + 1 :]]
    j = float(sum((np.sign(b[None, :] - a[:, None]) + 1).sum() / 2 for a, b in later))
    ties = np.unique(np.concatenate(values), return_counts=True)[1]
    mean, variance = (sum(sizes) ** 2 - sum(s * s for s in sizes)) / 4, _jonckheere_variance(sizes, ties)
    z = (j - mean) / sqrt(variance) if variance > 0 else 0.0
    arrangements = prod(comb(sum(sizes[: i + 1]), s) for i, s in enumerate(sizes))
    if (ties > 1).any():
        return z, float(stats.norm.sf(z)), 1 / arrangements
    counts = _jonckheere_counts(sizes)
    return z, float(sum(counts[round(j) :]) / arrangements), 1 / arrangements


def _jonckheere_variance(sizes: Sequence[int], ties: NDArray[np.int64]) -> float:
    n, g, t = float(sum(sizes)), np.asarray(sizes, float), np.asarray(ties, float)
    first = n * (n - 1) * (2 * n + 5) - (g * (g - 1) * (2 * g + 5)).sum() - (t * (t - 1) * (2 * t + 5)).sum()
    variance = first / 72 + (g * (g - 1)).sum() * (t * (t - 1)).sum() / (8 * n * (n - 1))
    if n > 2:
        variance += (g * (g - 1) * (g - 2)).sum() * (t * (t - 1) * (t - 2)).sum() / (36 * n * (n - 1) * (n - 2))
    return float(variance)


def _jonckheere_counts(sizes: Sequence[int]) -> list[int]:
    """Number of arrangements for each J: product over groups of the Gaussian binomial [n_1+..+n_i choose n_i]_q."""
    counts, total = [1], sizes[0]
    for size in sizes[1:]:
        for k in range(1, size + 1):  # times (1 - q^(total + k)) / (1 - q^k), a polynomial again once k = size
            power = total + k
            counts = [c - (counts[i - power] if i >= power else 0) for i, c in enumerate(counts + [0] * power)]
            for i in range(k, len(counts)):
                counts[i] += counts[i - k]
        total += size
        while counts[-1] == 0:
            counts.pop()
    return counts


def spearman(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Rank correlation.

    rho = Pearson's correlation of the mid-ranks; p two-sided from t = rho sqrt((n - 2) / (1 - rho^2)).

    Args:
        x: [n], n >= 3.
        y: [n].

    Returns:
        (rho, p); (NaN, NaN) if one of them is constant.

    Raises:
        ArgumentError: too short, unequal lengths, or not finite.
    """
    xs, ys = _finite("x", x, 3), _finite("y", y, 3)
    _same_length("x", xs, "y", ys)
    rx, ry = stats.rankdata(xs), stats.rankdata(ys)
    rx, ry = rx - rx.mean(), ry - ry.mean()
    scale = sqrt(float(rx @ rx) * float(ry @ ry))
    if scale == 0:
        return nan, nan
    rho = min(1.0, max(-1.0, float(rx @ ry) / scale))
    if abs(rho) == 1:
        return rho, 0.0
    return rho, float(2 * stats.t.sf(abs(rho) * sqrt((len(xs) - 2) / (1 - rho * rho)), len(xs) - 2))


def paired(a: ArrayLike, b: ArrayLike, confidence: float = 0.95) -> tuple[float, Interval, float, float]:
    """Compare two settings over paired seeds: is a greater than b?

    Mean of a_i - b_i with Student's interval; exact one-sided sign test of a > b (equal pairs are left out).

    Args:
        a: [n].
        b: [n], the same seeds in the same order.
        confidence: of the interval, in (0, 1).

    Returns:
        (mean difference, interval, p for a > b, smallest p that n pairs can attain = 2^-n).

    Raises:
        ArgumentError: empty, unequal lengths, or not finite.
    """
    xs, ys = _finite("a", a), _finite("b", b)
    _same_length("a", xs, "b", ys)
    difference = xs - ys
    mean, _, interval = mean_interval(difference, confidence)
    positive, counted = int((difference > 0).sum()), int((difference != 0).sum())
    p = float(stats.binom.sf(positive - 1, counted, 0.5)) if counted else 1.0
    return mean, interval, p, 0.5 ** len(difference)


def tost(x: ArrayLike, bound: float) -> float:
    """Equivalence test: is the mean of x within -bound..bound?

    p = max of the two one-sided t tests of mean > -bound and mean < bound. A small p says "equal within the bound";
    a large one says nothing.

    Args:
        x: [n], independent, n >= 2.
        bound: half-width of what counts as equal, > 0.

    Returns:
        p.

    Raises:
        ArgumentError: too short, not finite, or bound not positive.

    Source: Schuirmann 1987 (two one-sided tests).
    """
    values = _finite("x", x, 2)
    if not bound > 0:
        raise ArgumentError(f"bound: expected a number > 0, got {bound}")
    mean, stderr, _ = mean_interval(values)
    if stderr == 0:
        return 0.0 if abs(mean) < bound else 1.0
    return float(max(stats.t.sf((mean + bound) / stderr, len(values) - 1), stats.t.sf((bound - mean) / stderr, len(values) - 1)))


def exponential_rate(times: ArrayLike, censored: ArrayLike, confidence: float = 0.95) -> tuple[float, Interval]:
    """Rate of exponential waiting times, some of which ended before the event.

    rate = d / T, d = number of events, T = sum of all times. Interval [chi2_{2d}(a/2), chi2_{2d+2}(1-a/2)] / 2T, which
    covers at least the confidence for a fixed end of observation; without censoring 2d in both, which is exact.

    Args:
        times: [n], > 0, until the event or until observation ended.
        censored: [n], true where observation ended first.
        confidence: in (0, 1).

    Returns:
        (rate, interval); without events the rate is 0 and the interval starts at 0.

    Raises:
        ArgumentError: empty, unequal lengths, or a time that is not positive.

    Source: Epstein & Sobel 1953; Garwood 1936 for the upper end under censoring.
    """
    values, ends = _finite("times", times), _finite("censored", np.asarray(censored, bool))
    _same_length("times", values, "censored", ends)
    if (values <= 0).any():
        raise ArgumentError(f"times: expected positive times, got a smallest of {values.min()}")
    tail, total = (1 - _probability("confidence", confidence)) / 2, float(values.sum())
    events = int((ends == 0).sum())
    above = 2 * events + (2 if events < len(values) else 0)
    low = float(stats.chi2.ppf(tail, 2 * events)) / (2 * total) if events else 0.0
    return events / total, Interval(low, float(stats.chi2.ppf(1 - tail, above)) / (2 * total))


def exponentiality(
    times: ArrayLike, censored: ArrayLike, *, resolution: float = 0.0, resamples: int = 499, seed: int = 0
) -> tuple[float, float]:
    """Kolmogorov-Smirnov test of exponential waiting times whose rate was fitted, all censored at one common time or none.

    D = sup over t below the censoring time of |F_n(t) - (1 - exp(-rate t))|, rate the censored maximum likelihood. p by
    parametric bootstrap: exponential samples of the fitted rate, censored alike and fitted anew (tables of the
    Kolmogorov-Smirnov test do not hold for a fitted rate). Times counted in whole units are compared with samples rounded up
    to the same units.

    Args:
        times: [n], > 0.
        censored: [n], true where observation ended first.
        resolution: unit in which the times are counted; 0 for a continuum.
        resamples: of the bootstrap, at least 19.
        seed: of the bootstrap.

    Returns:
        (D, p), p = (1 + number of samples with a D at least as large) / (resamples + 1); (NaN, NaN) with fewer than five
        events, which can show nothing.

    Raises:
        ArgumentError: see `exponential_rate`; also a negative resolution, too few resamples, or times beyond the censoring.

    Source: Lilliefors 1969 for the fitted rate; the censored form and the bootstrap are ours.
    """
    if resolution < 0 or resamples < 19:
        raise ArgumentError(f"resolution, resamples: expected >= 0 and >= 19, got {resolution} and {resamples}")
    rate, _ = exponential_rate(times, censored)
    values, open_ended = np.asarray(times, np.float64), np.asarray(censored, bool)
    end = float(values[open_ended].min()) if open_ended.any() else inf
    if (values[~open_ended] > end).any():
        raise ArgumentError(f"times: one event came after {end:g}, where another observation ended; expected one common end")
    if (~open_ended).sum() < 5:
        return nan, nan
    found = _distance(np.sort(values[~open_ended]), len(values), end)
    rng, above = np.random.default_rng(seed), 0
    for _ in range(resamples):
        drawn = rng.exponential(1 / rate, len(values))
        drawn = np.ceil(drawn / resolution) * resolution if resolution else drawn
        above += _distance(np.sort(drawn[drawn <= end]), len(values), end) >= found
    return found, (1 + above) / (resamples + 1)


def _distance(events: Array, n: int, end: float) -> float:
    """Sup |F_n - F| over t < end of n times of which these ended in an event, ascending; F of the rate that they fit."""
    if not len(events):
        return 0.0
    rate = len(events) / (float(events.sum()) + (n - len(events)) * (end if len(events) < n else 0.0))
    fitted = -np.expm1(-rate * events)
    steps = np.arange(1, len(events) + 1) / n
    tail = abs(len(events) / n + np.expm1(-rate * end)) if isfinite(end) else 0.0
    return float(max((steps - fitted).max(), (fitted - steps + 1 / n).max(), tail))
