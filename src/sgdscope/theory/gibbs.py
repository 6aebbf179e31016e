"""Where SGD spends its time under isotropic noise: the law of Gibbs, its temperature, its limits, its exact form in 1-D."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgdscope.errors import ArgumentError
from sgdscope.ranges import choice
from sgdscope.theory.inputs import Array, above, array, fraction
from sgdscope.theory.passage import READINGS
from sgdscope.theory.prediction import Prediction
from sgdscope.theory.quadrature import Function, climb, panels

CROSSINGS = 30  # between two basins, from which the odds have a relative standard error of about sqrt(4 / 30) = 0.37 or less


@dataclass(frozen=True)
class Basin:
    """A minimum by its loss and its curvatures.

    Attributes:
        loss: L at the minimum.
        curvatures: eigenvalues of H [d], all > 0; the same number for basins that are compared.
    """

    loss: float
    curvatures: Any

    def __post_init__(self) -> None:
        found = np.atleast_1d(array("curvatures", self.curvatures, (0, 1)))
        if found.min() <= 0:
            raise ArgumentError(
                f"curvatures: expected > 0, got {found.min():.6g}; a flat direction has no Gaussian volume: leave it out of both"
            )
        if not math.isfinite(self.loss):
            raise ArgumentError(f"loss: expected a finite number, got {self.loss}")
        object.__setattr__(self, "curvatures", found)

    @property
    def half_log_det(self) -> float:
        """Half the logarithm of det H, large for a sharp basin.

        Returns:
            1/2 sum log lambda_i.
        """
        return float(np.log(self.curvatures).sum()) / 2


def temperature(variance: float, *, lr: float, batch_size: float, momentum: float = 0.0) -> float:
    """Noise level n = lr sigma^2 / (2 S (1 - mu)) of isotropic gradient noise; the loss takes the law exp(-L / n).

    Args:
        variance: sigma^2 > 0 of one component of one example's gradient, Tr C / q.
        lr: learning rate, > 0.
        batch_size: S > 0.
        momentum: 0 <= mu < 1, of heavy ball; the limit of small learning rates.

    Returns:
        n, in units of loss.

    Raises:
        ArgumentError: out of range.

    Source: Jastrzebski et al. 2017 (1711.04623) theorem 1; its later n_A lacks the factor 1/2.

    Example:
        >>> round(temperature(3.0, lr=0.1, batch_size=8, momentum=0.5), 6)
        0.0375
    """
    above(variance=variance, lr=lr, batch_size=batch_size)
    fraction(momentum=momentum)
    return lr * variance / (2 * batch_size * (1 - momentum))


def isotropy_ratio(gradient: Any, variance_gradient: Any, *, lr: float, batch_size: float) -> Prediction:
    """What the law of Gibbs neglects over what it keeps, r = lr |grad sigma^2| / (2 S |g|).

    It holds only where r is well below 1. Near a minimum g -> 0, so r -> infinity unless sigma^2 is stationary there too.

    Args:
        gradient: g [q] of the loss.
        variance_gradient: gradient of sigma^2 [q].
        lr: learning rate, > 0.
        batch_size: S > 0.

    Returns:
        r, flagged where it is 1 or more; infinite where g = 0 and sigma^2 changes.

    Raises:
        ArgumentError: shapes that differ, or out of range.

    Source: Jastrzebski et al. 2017 (1711.04623) theorem 1; its printed condition has lr on the wrong side (specification 4.1a).

    Example:
        >>> round(isotropy_ratio([3.0, 4.0], [0.6, 0.8], lr=0.5, batch_size=4).value, 6)
        0.0125
    """
    g, change = array("gradient", gradient), array("variance_gradient", variance_gradient)
    if g.shape != change.shape:
        raise ArgumentError(f"variance_gradient: expected the shape of gradient, {g.shape}, got {change.shape}")
    above(lr=lr, batch_size=batch_size)
    size, slope = float(np.linalg.norm(change)), float(np.linalg.norm(g))
    if size == 0:
        return Prediction(0.0)
    value = math.inf if slope == 0 else lr * size / (2 * batch_size * slope)
    if value < 1:
        return Prediction(value)
    return Prediction(value, reasons=(f"the noise changes faster than the loss (r = {value:.3g} >= 1): no law of Gibbs here",))


def log_odds(
    a: Basin, b: Basin, *, temperatures: float | Sequence[float], ratio: float = 0.0, crossings: int | None = None
) -> Prediction:
    """Logarithm of the odds of basin a against basin b under the law of Gibbs, each with its own temperature.

    (q / 2) log(n_a / n_b) + 1/2 log(det H_b / det H_a) + L_b / n_b - L_a / n_a.

    Args:
        a: one basin.
        b: the other, with as many curvatures.
        temperatures: n > 0, one for both or (n_a, n_b).
        ratio: the largest `isotropy_ratio` on the way; 1 or more is refused.
        crossings: between the basins that were seen (`mixing`), where odds were measured; flagged below 30.

    Returns:
        The log-odds; flagged for unequal temperatures, where the zero of the loss matters, and without mixing.

    Raises:
        ArgumentError: basins of different dimension, a temperature out of range, or a ratio of 1 or more.

    Source: Jastrzebski et al. 2017 (1711.04623) theorem 2, equation 3.

    Example:
        >>> round(math.exp(log_odds(Basin(0.05, 4.0), Basin(0.0, 36.0), temperatures=0.25).value), 3)
        2.456
    """
    _same_dimension(a, b)
    n_a, n_b = (temperatures, temperatures) if isinstance(temperatures, (int, float)) else tuple(temperatures)
    above(temperatures=n_a)
    above(temperatures=n_b)
    if not 0 <= ratio < 1:
        raise ArgumentError(f"ratio: expected 0 <= ratio < 1, got {ratio}; where noise changes so fast there is no law of Gibbs")
    reasons: tuple[str, ...] = ()
    if n_a != n_b:
        reasons += ("the temperatures differ: the odds depend on where the loss is zero",)
    if crossings is not None and crossings < CROSSINGS:
        reasons += (f"only {crossings} crossings: the walk has not mixed",)
    value = len(a.curvatures) / 2 * math.log(n_a / n_b) + b.half_log_det - a.half_log_det + b.loss / n_b - a.loss / n_a
    return Prediction(value, "isotropic noise", reasons)


def noise_threshold(a: Basin, b: Basin) -> Prediction:
    """Temperature above which the higher of two basins is preferred for being flatter.

    n* = (L_a - L_b) / (1/2 log(det H_b / det H_a)) with a the higher one. `critical_ratio` turns it into lr / S.

    Args:
        a: one basin.
        b: the other, with as many curvatures.

    Returns:
        n*, in units of loss; infinite, with the reason, where the higher basin is not flatter; 0 where the losses are equal.

    Raises:
        ArgumentError: basins of different dimension.

    Source: Jastrzebski et al. 2017 (1711.04623) equation 4.

    Example:
        >>> round(noise_threshold(Basin(0.05, 4.0), Basin(0.0, 36.0)).value, 4)
        0.0455
    """
    _same_dimension(a, b)
    high, low = (a, b) if a.loss >= b.loss else (b, a)
    gap, wider = high.loss - low.loss, low.half_log_det - high.half_log_det
    if gap == 0:
        return Prediction(0.0, "equal losses: the flatter basin is preferred at any noise")
    if wider <= 0:
        return Prediction(math.inf, "isotropic noise", ("the higher basin is not flatter: no noise prefers it",))
    return Prediction(gap / wider, "isotropic noise; the higher basin is preferred above")


def critical_ratio(threshold: float, variance: float) -> float:
    """The ratio lr / S at a temperature, (lr / S)* = 2 n* / sigma^2.

    Args:
        threshold: n* >= 0, from `noise_threshold`.
        variance: sigma^2 > 0 of one component of one example's gradient.

    Returns:
        lr / S, without momentum; times (1 - mu) with.

    Raises:
        ArgumentError: out of range.

    Source: Jastrzebski et al. 2017 (1711.04623) equation 4, in the user's numbers.

    Example:
        >>> round(critical_ratio(0.0455, 2.5), 4)
        0.0364
    """
    above(variance=variance)
    if not threshold >= 0:
        raise ArgumentError(f"threshold: expected >= 0, got {threshold}")
    return 2 * threshold / variance


@dataclass(frozen=True)
class Law:
    """A probability law on an interval, as a density at Gauss points.

    Attributes:
        positions: [n], increasing.
        weights: of the quadrature [n].
        density: [n], normalised.
        edges: between which the panels lie.
    """

    positions: Array
    weights: Array
    density: Array
    edges: Array

    def mass(self, cut: float) -> float:
        """Probability below a cut.

        Args:
            cut: one of the ``breaks`` with which the law was made.

        Returns:
            The probability.

        Raises:
            ArgumentError: the cut is no edge of the panels.
        """
        if np.abs(self.edges - cut).min() > 1e-12 * max(1.0, abs(cut)):
            raise ArgumentError(f"cut: expected one of the breaks of this law, got {cut}; make it with breaks=[{cut}]")
        below = self.positions < cut
        return float(self.weights[below] @ self.density[below])

    def mean(self, function: Function) -> float:
        """Expectation of a function.

        Args:
            function: of arrays.

        Returns:
            E[f(x)].
        """
        return float((self.weights * self.density) @ np.asarray(function(self.positions)))


def zero_flux_law(
    gradient: Function,
    variance: float | Function,
    ends: tuple[float, float],
    *,
    lr: float,
    batch_size: float = 1,
    convention: str = "ito",
    breaks: Sequence[float] = (),
) -> Law:
    """The exact stationary law in one dimension for noise that depends on theta, in the limit of small steps.

    P ~ sigma^-2 exp(-(2 S / lr) int g / sigma^2) between two reflecting ends (Ito); isothermal: without sigma^-2;
    Stratonovich: 1 / sigma. For constant sigma^2 this is exp(-L / n).

    Args:
        gradient: g(x), of arrays.
        variance: sigma^2(x) > 0 of one example's gradient, of arrays or a number.
        ends: (low, high), far out where there is no wall.
        lr: learning rate, > 0.
        batch_size: S > 0.
        convention: ``ito`` (a loop of SGD), ``stratonovich`` or ``isothermal``.
        breaks: where g or sigma^2 jumps, and where `Law.mass` shall cut.

    Returns:
        The law.

    Raises:
        ArgumentError: out of range, or sigma^2 <= 0 somewhere.

    Source: sharpest directions, section 4.1a (derived: no flux).

    Example:
        >>> law = zero_flux_law(lambda x: 2 * x, lambda x: 1 + x**2, (-60.0, 60.0), lr=0.5, batch_size=1)
        >>> round(law.mean(lambda x: x**2), 4)
        0.1429
    """
    above(lr=lr, batch_size=batch_size)
    alpha = READINGS[choice("convention", convention, tuple(READINGS))]
    low, high = float(ends[0]), float(ends[1])
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ArgumentError(f"ends: expected two finite numbers low < high, got {ends}")

    def noise(x: Array) -> Array:
        found = variance(x) if callable(variance) else variance
        found = np.broadcast_to(np.asarray(found, dtype=np.float64), x.shape)
        if not (found > 0).all():
            raise ArgumentError(f"variance: expected > 0 everywhere, got {found.min()} in [{x.min():.6g}, {x.max():.6g}]")
        return found

    def slope(x: Array) -> Array:
        return np.asarray(2 * batch_size / lr * np.asarray(gradient(x), dtype=np.float64) / noise(x))

    edges = panels(slope, (low, high), breaks)
    positions, weights, height = (part.ravel() for part in climb(slope, edges))
    log = -height - (1 - alpha) * np.log(noise(positions))
    shape = np.exp(log - log.max())
    return Law(positions, weights, shape / (weights @ shape), edges)


@dataclass(frozen=True)
class Mixing:
    """How often a walk went from one basin to the other.

    Attributes:
        crossings: from below ``low`` to above ``high`` or back.
        below: share of the points nearer to the lower basin, those between counted with the basin visited last.
        mixed: at least 30 crossings.
    """

    crossings: int
    below: float
    mixed: bool


def mixing(positions: Any, low: float, high: float) -> Mixing:
    """Count the crossings between two basins, and the share of the time in the lower one.

    A crossing is complete when the walk, last seen below ``low``, is seen above ``high``, or the other way round, so that
    trembling on the pass is none. Both stretches between crossings are about exponential, so that the odds of m crossings have
    a relative standard error of about sqrt(4 / m).

    Args:
        positions: [n], the walk along the line between the basins, every update or thinned.
        low: end of the lower basin.
        high: start of the upper one, > low.

    Returns:
        The count; a test of the law of Gibbs without mixing says nothing.

    Raises:
        ArgumentError: no positions, low >= high, or a walk that is in neither basin.

    Source: sharpest directions, section 0, oracle 4.

    Example:
        >>> mixing([-1.0, 0.1, -0.1, 0.9, 1.1, -0.7, 0.8], -0.5, 0.5)
        Mixing(crossings=3, below=0.5714285714285714, mixed=False)
    """
    x = array("positions", positions)
    if not low < high:
        raise ArgumentError(f"low: expected low < high, got {low} and {high}")
    side = np.where(x < low, -1, np.where(x > high, 1, 0))
    seen = np.flatnonzero(side)
    if not len(seen):
        raise ArgumentError(f"positions: expected a walk that is below {low} or above {high} at least once")
    last = np.maximum.accumulate(np.where(side != 0, np.arange(len(x)), seen[0]))
    state = side[last]
    crossings = int((np.diff(state[seen]) != 0).sum())
    return Mixing(crossings, float((state < 0).mean()), crossings >= CROSSINGS)


def _same_dimension(a: Basin, b: Basin) -> None:
    if len(a.curvatures) != len(b.curvatures):
        raise ArgumentError(f"b: expected {len(a.curvatures)} curvatures as basin a has, got {len(b.curvatures)}")
