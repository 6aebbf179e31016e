"""Polynomials through points of a curve: the parabola of a step, and how far a polynomial may lie from the curve."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

Array = NDArray[np.float64]

START, _, END = np.eye(3)
SLOPE, BEND = np.array([-3.0, 4.0, -1.0]), np.array([2.0, -4.0, 2.0])  # a1, a2 from phi(0), phi(1/2), phi(1)
ROUNDING = 4.0  # units of eps |phi| allowed to one mean loss; sums of losses get it times the sum of their |coefficients|
PARTS = 30  # summands from which the scatter of their coefficients tells the kinks of the sum
KINKS = {4: 2.0, 8: 5.0}  # error / scatter of the last coefficients; ReLU networks: median 0.8 and 2.4, at most 2.0 and 6.2


def parabola(phi: Array, eps: float, samples: Array | None = None, weights: Array | None = None) -> dict[str, float]:
    """Coefficients, floor and heights; errors by the gradient of each in (phi(0), phi(1/2), phi(1)).

    The formulas are in the docstring of the quantity "valley".

    Args:
        phi: [3].
        eps: of the precision in which phi was computed.
        samples: [3, M] the loss of each example; None where not known.
        weights: [M], summing to 1, phi = samples @ weights.

    Returns:
        Name -> number, `<name>_stderr`, `interior` and `rounding`; NaN where a loss is not finite.
    """
    finite = bool(np.isfinite(phi).all())
    phi = phi if finite else phi * np.nan
    rounding = ROUNDING * eps * float(np.abs(phi).max())
    a1, a2 = float(SLOPE @ phi), float(BEND @ phi)
    ok = a2 > 8 * rounding
    alpha = -a1 / (2 * a2) if ok else np.nan
    inside = min(max(alpha, 0.0), 1.0) if ok else float(phi[2] < phi[0])
    to_floor = -alpha * SLOPE - alpha**2 * BEND  # gradient of h0; that of h1 is larger by a1 + a2
    rows = {
        "loss_start": (phi[0], START),
        "loss_end": (phi[2], END),
        "a1": (a1, SLOPE),
        "a2": (a2, BEND),
        "alpha_star": (alpha, -(SLOPE + 2 * alpha * BEND) / (2 * a2 if ok else np.nan)),
        "height_start": (a2 * alpha**2, to_floor),
        "height_end": (a2 * (1 - alpha) ** 2, to_floor + SLOPE + BEND),
        "height": (a2 * (alpha**2 + (1 - alpha) ** 2) / 2, to_floor + (SLOPE + BEND) / 2),
        "height_within": (a1 * (0.5 - inside) + a2 * (0.5 - inside**2), (0.5 - inside) * SLOPE + (0.5 - inside**2) * BEND),
        "height_average": (a2 / 4, BEND / 4),
    }
    row = {"interior": float(ok and 0 < alpha < 1), "rounding": rounding}
    errors = np.full(len(rows), np.nan)
    if finite and samples is not None and weights is not None:
        influence = np.stack([g for _, g in rows.values()]) @ samples
        influence -= (influence @ weights)[:, None]
        errors[:] = np.sqrt(len(weights) / (len(weights) - 1) * (influence**2 @ weights**2))
    row |= {name: float(value) for name, (value, _) in rows.items()}
    return row | {f"{name}_stderr": float(error) for name, error in zip(rows, errors, strict=True)}


class Fit(NamedTuple):
    """A polynomial at the points asked for.

    Attributes:
        values: [A].
        decay: error estimated from the decay of the coefficients; infinite where they do not decay.
        scatter: error estimated from the coefficients of the summands; NaN where they are not known or too few.
    """

    values: Array
    decay: float
    scatter: float


def lobatto(low: float, high: float, n: int) -> Array:
    """Chebyshev points with both ends, (low + high) / 2 - (high - low) / 2 cos(j pi / n), j = 0..n.

    Args:
        low: first point.
        high: last point.
        n: degree, >= 1.

    Returns:
        [n + 1] ascending, rounded to 12 decimals.
    """
    return np.round((low + high) / 2 - (high - low) / 2 * np.cos(np.arange(n + 1) * np.pi / n), 12)


@lru_cache(maxsize=64)
def _matrices(n: int, alphas: tuple[float, ...]) -> tuple[Array, Array]:
    """Coefficients from the values at the nodes, and values at the alphas from those at the nodes."""
    low, high = alphas[0], alphas[-1]
    inverse = np.asarray(np.linalg.inv(chebyshev.chebvander(lobatto(-1, 1, n), n)), np.float64)
    return inverse, chebyshev.chebvander((2 * np.array(alphas) - low - high) / (high - low), n) @ inverse


def fit(alphas: tuple[float, ...], values: Array, floor: float, parts: Array | None = None, weights: Array | None = None) -> Fit:
    """Lay the polynomial of degree n through the Chebyshev points of [first alpha, last alpha].

    With Chebyshev coefficients c_0..c_n: decay = E q / (1 - q), E = max(|c_{n-1}|, |c_n|), q = E / max(|c_{n-3}|, |c_{n-2}|);
    0 for E <= 2 floor, infinite for q >= 1/2. Kinks (ReLU) at a different place in each summand m do not show in the
    coefficients of the sum: scatter = K sqrt(sum_m w_m^2 (c_{n-1,m}^2 + c_{n,m}^2)), K = 2 (n = 4), 5 (n = 8).

    Args:
        alphas: [A] ascending, where the polynomial is wanted.
        values: [n + 1] of the curve at `lobatto(alphas[0], alphas[-1], n)`, finite, n = 4 or 8.
        floor: rounding allowed to one value.
        parts: [n + 1, M] the summands, values = parts @ weights; used from M = 30.
        weights: [M].

    Returns:
        Values and error estimates.
    """
    n = len(values) - 1
    inverse, at = _matrices(n, alphas)
    coefficients = np.abs(inverse @ values)
    tail, before = float(coefficients[-2:].max()), float(coefficients[-4:-2].max())
    decay = 0.0 if tail <= 2 * floor else tail * tail / (before - tail) if before > 2 * tail else np.inf
    scatter = np.nan
    if parts is not None and weights is not None and len(weights) >= PARTS:
        scatter = KINKS[n] * float(np.linalg.norm((inverse[-2:] @ parts) * weights))
    return Fit(at @ values, decay, scatter)


def bends(alphas: Array, values: Array) -> Array:
    """Twice the chord of the neighbours minus the value: the second difference on an even grid.

    Args:
        alphas: [A] ascending.
        values: [A].

    Returns:
        [A - 2].
    """
    left = (alphas[2:] - alphas[1:-1]) / (alphas[2:] - alphas[:-2])
    return np.asarray(2 * (left * values[:-2] + (1 - left) * values[2:] - values[1:-1]))


@lru_cache(maxsize=64)
def _least_squares(alphas: tuple[float, ...]) -> tuple[Array, Array]:
    """Orthonormal basis of the parabolas, and what gives the alpha^3 coefficient of the least-squares cubic."""
    grid = np.array(alphas)
    half = (grid[-1] - grid[0]) / 2
    powers = np.vander((grid - grid[0]) / half - 1, 4)
    basis: Array = np.linalg.qr(powers[:, 1:])[0]
    return basis, np.linalg.pinv(powers)[0] / half**3


def squares(alphas: tuple[float, ...], values: Array) -> tuple[float, float]:
    """Least-squares parabola and cubic through a curve.

    Args:
        alphas: [A] ascending.
        values: [A], finite.

    Returns:
        (R^2 of the parabola = 1 - RSS / TSS, coefficient of alpha^3 of the cubic); the cubic is NaN for A < 4.
    """
    basis, cubic = _least_squares(alphas)
    centred = values - values.mean()
    rest = centred - basis @ (basis.T @ centred)
    total = float(centred @ centred)
    return (1 - float(rest @ rest) / total if total > 0 else np.nan), (float(cubic @ values) if len(alphas) > 3 else np.nan)


def vertex(alphas: tuple[float, ...], values: Array, rounding: float) -> tuple[float, float]:
    """Lowest point of the least-squares parabola through (0, 0) and the mean of several curves.

    p(alpha) = c + b alpha + a alpha^2 by least squares over 0 and the alphas, all of one weight; alpha* = -b / (2 a). It is
    taken where a exceeds what `rounding` can make of it, rounding x sum of its |coefficients|.

    Args:
        alphas: [A] > 0, A >= 2.
        values: [A, M] of each curve, 0 at alpha = 0.
        rounding: allowed to one value.

    Returns:
        (alpha*, its standard error by the jackknife over the curves); (NaN, NaN) without a lowest point; the error is NaN
        for M < 2 or where leaving out one curve leaves none.
    """
    inverse = np.linalg.pinv(np.vander(np.array((0.0, *alphas)), 3))[:, 1:]
    bends, slopes = inverse[:2] @ values
    least, m = rounding * float(np.abs(inverse[0]).sum()), values.shape[1]
    if not bends.mean() > least:
        return np.nan, np.nan
    alpha = float(-slopes.mean() / (2 * bends.mean()))
    if m < 2:
        return alpha, np.nan
    left = (bends.sum() - bends) / (m - 1)
    if not (left > least).all():
        return alpha, np.nan
    drawn = -(slopes.sum() - slopes) / (m - 1) / (2 * left)
    return alpha, float(np.sqrt((m - 1) * drawn.var()))


def widths(positions: Array, values: Array, height: float) -> tuple[float, float, float]:
    """How far from 0 a curve first reaches a height, to the left and to the right.

    From 0 outward to the first position whose value is >= height; the crossing before it is that of the parabola
    through this position, the one before and the one before that (across 0, where need be), a line where there is none.
    Exact for parabolas; what happens between two positions is not seen.

    Args:
        positions: [A] ascending, with a 0.
        values: [A], below the height at 0.
        height: to be reached.

    Returns:
        (left, right, the smaller one), > 0; NaN where it is not reached, or the value there is not finite. Where one side is not
        reached the other is the smaller one if it is no longer than the reach of the positions on that side.
    """
    zero = int(np.flatnonzero(positions == 0)[0])
    left = _reach(-positions[::-1], values[::-1], len(positions) - 1 - zero, height)
    right = _reach(positions, values, zero, height)
    least = min(left if left > 0 else -positions[0], right if right > 0 else positions[-1])
    return left, right, float(least) if least in {left, right} else np.nan


def _reach(x: Array, y: Array, zero: int, height: float) -> float:
    reached = np.flatnonzero(y[zero:] >= height)
    if not len(reached) or reached[0] == 0:
        return np.nan
    j = zero + int(reached[0])
    if not np.isfinite(y[j - 1 : j + 1]).all():
        return np.nan
    width, low, high = x[j] - x[j - 1], y[j - 1] - height, y[j] - height
    bend = 0.0
    if j > 1 and np.isfinite(y[j - 2]):
        u = (x[j - 2] - x[j - 1]) / width
        bend = ((y[j - 2] - y[j - 1]) - u * (high - low)) / (u * u - u)
    slope = high - low - bend  # low + slope u + bend u^2 has one root in (0, 1]
    return float(x[j - 1] + width * -2 * low / (slope + np.sqrt(max(slope * slope - 4 * bend * low, 0.0))))


def first_rise(loss: Callable[[float], float], start: float) -> float:
    """Find a step at which the loss comes to lie above where it began, by doubling or halving, then bisection.

    The loss is taken to lie below its beginning before that step and above it after; where it crosses more often, one of the
    crossings is found. A loss that is not finite counts as above.

    Args:
        loss: step -> loss; at 0 it is where it began.
        start: first step tried, > 0.

    Returns:
        The middle of a bracket 1 % of its upper end wide; NaN where 60 doublings or halvings found none.
    """
    begin = loss(0.0)

    def above(step: float) -> bool:
        return not loss(step) <= begin

    low, high = (0.0, start) if above(start) else (start, np.inf)
    for _ in range(60):
        if low > 0 and high < np.inf:
            break
        trial = high / 2 if low == 0 else 2 * low
        low, high = (low, trial) if above(trial) else (trial, high)
    if not (low > 0 and high < np.inf):
        return np.nan
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if above(middle) else (middle, high)
    return (low + high) / 2
