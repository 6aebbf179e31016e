"""Polynomials through points of a curve: the parabola of a step, and how far a polynomial may lie from the curve."""

from __future__ import annotations

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
