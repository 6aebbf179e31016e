"""Scaling laws of waiting times: log tau over 1/k, B, 1/lr or 1/D with the prefactor on the left; two barriers compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, log, nan, sqrt
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sgdscope.errors import ArgumentError, unknown
from sgdscope.statistics import Interval

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Point:
    """The waiting time of one setting.

    Attributes:
        log_tau: log of the mean waiting time in updates.
        stderr: its standard error, 1 / sqrt(escapes).
        k: factor on the curvature.
        batch_size: B; NaN where no batch is drawn.
        lr: learning rate.
        diffusion: D of white noise; NaN where there is none.
        barrier: L(b) - L(a); NaN where it is not known.
        log_barrier: log L(b)/L(a); NaN where it is not known.
    """

    log_tau: float
    stderr: float
    k: float = 1.0
    batch_size: float = nan
    lr: float = nan
    diffusion: float = nan
    barrier: float = nan
    log_barrier: float = nan


@dataclass(frozen=True)
class Law:
    """A prediction: y = intercept + slope x.

    Attributes:
        x: of a point.
        y: of a point: log tau with the prefactors that the theory knows.
        text: in words.
    """

    x: Callable[[Point], float]
    y: Callable[[Point], float]
    text: str


def _moved(point: Point) -> float:
    return point.log_tau + log(point.k) + (log(point.lr) if isfinite(point.lr) else 0.0)


LAWS: Mapping[str, Law] = {
    "sharpness": Law(lambda p: 1 / p.k, _moved, "log tau + log k + log lr over 1/k"),
    "batch_size": Law(lambda p: p.batch_size, _moved, "log tau + log k + log lr over B"),
    "lr": Law(lambda p: 1 / p.lr, _moved, "log tau + log k + log lr over 1/lr"),
    "temperature": Law(lambda p: 1 / p.diffusion, _moved, "log tau + log k + log lr over 1/D"),
    "polynomial": Law(lambda p: log(p.k), lambda p: _moved(p) - log(p.k), "log(lr tau) over log k"),
    "barrier": Law(lambda p: p.barrier, _moved, "log tau + log k + log lr over L(b) - L(a)"),
    "log_barrier": Law(lambda p: p.log_barrier, _moved, "log tau + log k + log lr over log L(b)/L(a)"),
}  # the prefactors: diffusion_langevin_distributed, section 1.2: log tau = A B / (lr k) - log k - log lr + constant


@dataclass(frozen=True)
class Fit:
    """A straight line through waiting times.

    Attributes:
        slope: of y over x.
        intercept: at x = 0.
        stderr: of the slope.
        interval: 95 %, of the slope.
        r: weighted Pearson correlation of x and y; NaN if one of them does not vary.
        chi2: sum of squared residuals over their variances: about n - 2 where the law holds.
        n: points.
    """

    slope: float
    intercept: float
    stderr: float
    interval: Interval
    r: float
    chi2: float
    n: int

    @property
    def p(self) -> float:
        """Probability of a chi2 this large if the law holds and the errors are those of exponential times."""
        return float(stats.chi2.sf(self.chi2, self.n - 2)) if self.n > 2 else nan


def line(x: ArrayLike, y: ArrayLike, stderr: ArrayLike) -> Fit:
    """Weighted least squares with known errors.

    w = 1 / stderr^2; slope = Sxy / Sxx over weighted means; stderr = sqrt(s / Sxx), s = max(1, chi2 / (n - 2)): errors that the
    residuals do not bear out widen the interval, t_{n-2} where they do so and normal where they do not.

    Args:
        x: [n], n >= 2, not all equal.
        y: [n].
        stderr: [n], > 0.

    Returns:
        The fit; with two points its interval rests on their errors alone.

    Raises:
        ArgumentError: fewer than two points, unequal lengths, not finite, or x constant.
    """
    xs, ys, errors = (np.asarray(v, np.float64) for v in (x, y, stderr))
    if not xs.shape == ys.shape == errors.shape or xs.ndim != 1 or len(xs) < 2:
        raise ArgumentError(
            f"x, y, stderr: expected three vectors of at least 2, got shapes {xs.shape}, {ys.shape}, {errors.shape}"
        )
    if not (np.isfinite([xs, ys, errors]).all() and (errors > 0).all()):
        raise ArgumentError("x, y, stderr: expected finite numbers and errors > 0; drop settings from which nobody escaped")
    weights = errors**-2
    dx, dy = (v - np.average(v, weights=weights) for v in (xs, ys))
    sxx, sxy, syy = (float((weights * a * b).sum()) for a, b in ((dx, dx), (dx, dy), (dy, dy)))
    if sxx <= 1e-24 * float((weights * xs * xs).sum()):
        raise ArgumentError(f"x: all {len(xs)} values are {xs[0]:g}; a slope needs at least two different ones")
    slope, n = sxy / sxx, len(xs)
    chi2 = float((weights * (dy - slope * dx) ** 2).sum())
    excess = chi2 / (n - 2) if n > 2 else 1.0
    error = sqrt(max(1.0, excess) / sxx)
    half = error * float(stats.t.ppf(0.975, n - 2) if excess > 1 else stats.norm.ppf(0.975))
    intercept = float(np.average(ys, weights=weights) - slope * np.average(xs, weights=weights))
    return Fit(slope, intercept, error, Interval(slope - half, slope + half), sxy / sqrt(sxx * syy) if syy > 0 else nan, chi2, n)


def scaling(points: Sequence[Point], law: str) -> Fit:
    """Fit one of the scaling laws to waiting times that differ in one setting.

    Args:
        points: at least two, of which somebody escaped.
        law: one of `LAWS`: sharpness, batch_size, lr, temperature, polynomial, barrier, log_barrier.

    Returns:
        The line.

    Raises:
        ArgumentError: too few points, or a law of a setting that they do not have or that does not vary.

    Source: diffusion_langevin_distributed, section 1.2, claims X5 to X10.

    Example:
        >>> points = [Point(2.0 * b / 0.5 - log(0.5) + 3, 0.1, batch_size=b, lr=0.5) for b in (1.0, 2.0, 3.0)]
        >>> fit = scaling(points, "batch_size")
        >>> round(fit.slope, 6), round(fit.intercept, 6), round(fit.r, 6)
        (4.0, 3.0, 1.0)
    """
    if law not in LAWS:
        error = unknown("law", law, LAWS)
        raise error
    chosen = LAWS[law]
    return line([chosen.x(p) for p in points], [chosen.y(p) for p in points], [p.stderr for p in points])


@dataclass(frozen=True)
class Hypotheses:
    """Which barrier sets the waiting time: the difference of losses, or the log of their ratio.

    Attributes:
        barrier: line over L(b) - L(a).
        log_barrier: line over log L(b)/L(a).
        difference: chi2 of the barrier minus chi2 of the log barrier, > 0 where the log barrier fits better; both lines have
            two numbers, so that it is also the difference of the AIC.
        winner: the better one if they differ by more than `TELL`, else neither.
    """

    barrier: Fit
    log_barrier: Fit
    difference: float
    winner: Literal["barrier", "log barrier", "neither"]


TELL = 10.0  # difference of AIC from which on the worse model has "essentially no support" (Burnham & Anderson 2002)


def hypotheses(points: Sequence[Point]) -> Hypotheses:
    """Hold the two barrier hypotheses against each other on valleys that differ in their barriers.

    Errors that neither line bears out are widened for both: chi2 is divided by that of the better line over n - 2, if above 1.

    Args:
        points: at least three, with barrier and log_barrier, at equal noise.

    Returns:
        Both fits and which of them wins.

    Raises:
        ArgumentError: fewer than three points, or a barrier that does not vary.

    Source: Xie et al. (2002.03495), Theorem 2, against Mori et al. 2022 (2105.09557); specification 1.4, counter-theories.
    """
    if len(points) < 3:
        raise ArgumentError(f"points: two hypotheses of two numbers each need at least 3 points, got {len(points)}")
    plain, ratio = scaling(points, "barrier"), scaling(points, "log_barrier")
    scale = max(1.0, min(plain.chi2, ratio.chi2) / (len(points) - 2))
    difference = (plain.chi2 - ratio.chi2) / scale
    winner: Literal["barrier", "log barrier", "neither"] = "neither"
    if abs(difference) > TELL:
        winner = "log barrier" if difference > 0 else "barrier"
    return Hypotheses(plain, ratio, difference, winner)
