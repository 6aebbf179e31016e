"""SGD with Gaussian noise in one dimension at the learning rate that is used: its law and its times of passage, exactly.

One update is x' = x - lr g(x) + lr sigma(x) / sqrt(S) xi. Where the steps are not small, the law of Gibbs and the formulas of
Kramers are off; these show by how much.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy.special import log_ndtr

from sgdscope.errors import ArgumentError
from sgdscope.theory.gibbs import Law
from sgdscope.theory.inputs import Array, above
from sgdscope.theory.prediction import Prediction
from sgdscope.theory.quadrature import NODES, Function, gauss

LARGEST = 4000  # states of the transition matrix, 128 MB
WIDTH = 0.7  # of a panel, in spreads of one update: 1e-9 where g is smooth, 0.5 % where it bends within a spread
HUGE = 1e150
LEAK = 1e-6  # probability of leaving the ends in one update of the law, above which they are too near


def chain_law(
    gradient: Function,
    variance: float | Function,
    ends: tuple[float, float],
    *,
    lr: float,
    batch_size: float = 1,
    breaks: Sequence[float] = (),
) -> Law:
    """Stationary law of SGD with Gaussian noise at finite learning rate.

    The fixed point of p(y) = int p(x) N(y; x - lr g(x), lr^2 sigma^2(x) / S) dx, at 8 Gauss points a panel, panels of 0.7
    of the smallest spread of an update. For lr -> 0 it tends to `zero_flux_law` read after Ito.

    Args:
        gradient: g(x), of arrays.
        variance: sigma^2(x) > 0 of one example's gradient, of arrays or a number.
        ends: (low, high), so far out that the walk does not reach them.
        lr: learning rate, > 0.
        batch_size: S > 0.
        breaks: where g or sigma^2 jumps, and where `Law.mass` shall cut.

    Returns:
        The law.

    Raises:
        ArgumentError: out of range, ends that the walk reaches, or steps so small that the matrix would exceed 4000 states.

    Cost: one elimination of the states, without subtractions, so that basins that hardly exchange are weighed correctly;
        a second for 1000 states.

    Source: derived (elimination of Grassmann, Taksar and Heyman 1985); sharpest directions, section 0, oracle 4 has the
        sizes by simulation.

    Example:
        >>> law = chain_law(lambda x: 2 * x, 3.0, (-9.0, 9.0), lr=0.4, batch_size=2)
        >>> round(law.mean(lambda x: x**2), 6)  # lr sigma^2 / (S h (2 - lr h))
        0.25
    """
    above(lr=lr, batch_size=batch_size)
    low, high = float(ends[0]), float(ends[1])
    edges = _edges(low, high, breaks, _narrowest(variance, (low, high), lr, batch_size))
    inside, weights = _points(edges)
    landing, spread = _update(gradient, variance, inside, lr=lr, batch_size=batch_size)
    moves = _density(landing, spread, inside) * weights
    masses = _stationary(moves)
    lost = float(masses @ np.abs(1 - moves.sum(axis=1)))
    if not lost < LEAK:
        raise ArgumentError(f"ends: the walk leaves {ends} with probability {lost:.3g} an update; take them farther out")
    return Law(inside, weights, masses / weights, edges)


def chain_passage(
    gradient: Function,
    variance: float | Function,
    start: float,
    end: float,
    *,
    wall: float,
    lr: float,
    batch_size: float = 1,
    breaks: Sequence[float] = (),
) -> Prediction:
    """Mean number of updates of SGD with Gaussian noise until it is first seen at or beyond an end.

    tau(x) = 1 + int k(x, y) tau(y) dy up to the end; a step behind the wall stays on it. For lr -> 0 it tends to
    `mean_passage_time` after Ito over lr, from above by order sqrt(lr): the walk may pass the end between two updates.

    Args:
        gradient: g(x), of arrays.
        variance: sigma^2(x) > 0 of one example's gradient, of arrays or a number.
        start: where the walk starts.
        end: where it is absorbed, on either side of the start.
        wall: behind the start; far out where there is none.
        lr: learning rate, > 0.
        batch_size: S > 0.
        breaks: where g or sigma^2 jumps.

    Returns:
        The mean number of updates; flagged where it exceeds 1e12, beyond which rounding of the matrix decides.

    Raises:
        ArgumentError: out of range, the points out of order, or steps so small that the matrix would exceed 4000 states.

    Cost: one dense solve.

    Source: derived; diffusion specification S1 has two settings by simulation.

    Example:
        >>> found = chain_passage(lambda x: x**3 - x, 2 * 0.07 / 0.1, -1.0, 0.0, wall=-2.5, lr=0.1)
        >>> round(found.value * 0.1, 1)  # in units of learning rate x updates; the limit of small steps is 89.2
        102.8
    """
    above(lr=lr, batch_size=batch_size)
    side = 1.0 if end > start else -1.0
    low, begin, high = side * wall, side * start, side * end
    if not low <= begin < high:
        raise ArgumentError(f"start: expected a start between wall and end, got wall {wall}, start {start}, end {end}")

    def pull(u: Array) -> Array:
        return side * np.asarray(gradient(side * u), dtype=np.float64)

    noise = (lambda u: variance(side * u)) if callable(variance) else variance
    edges = _edges(low, high, [side * b for b in breaks], _narrowest(noise, (low, high), lr, batch_size))
    inside, weights = _points(edges)
    states = np.concatenate([[low], inside, [begin]])
    landing, spread = _update(pull, noise, states, lr=lr, batch_size=batch_size)
    moves = np.empty((len(states), len(states)))
    moves[:, 0] = np.exp(log_ndtr((low - landing) / spread))
    moves[:, 1:-1] = _density(landing, spread, inside) * weights
    moves[:, -1] = 0.0  # no mass sits exactly at the start; its equation only reads the others
    times = np.linalg.solve(np.eye(len(states)) - moves, np.ones(len(states)))
    value = float(times[-1])
    if 0 < value < 1e12:
        return Prediction(value, "Ito, updates")
    return Prediction(value, "Ito, updates", ("more than 1e12 updates: rounding decides; use `mean_passage_time`",))


def _stationary(moves: Array) -> Array:
    """Left fixed vector of a positive matrix with rows that add up to about 1; no subtraction, so no cancellation."""
    left = moves.copy()
    for k in range(len(left) - 1, 0, -1):
        row, column = int((left[k, :k] > 0).argmax()), int((left[:k, k] > 0).argmax())  # beyond 38 spreads all is 0
        left[column:k, k] /= left[k, row:k].sum()
        left[column:k, row:k] += np.outer(left[column:k, k], left[k, row:k])
    masses = np.ones(len(left))
    for k in range(1, len(left)):
        masses[k] = masses[:k] @ left[:k, k]
        if masses[k] > HUGE:  # the first state may be one that is hardly ever visited
            masses[: k + 1] /= masses[k]
    return np.asarray(masses / masses.sum())


def _points(edges: Array) -> tuple[Array, Array]:
    nodes, weights, _ = gauss()
    half = np.diff(edges)[:, None] / 2
    return (edges[:-1, None] + half * (nodes + 1)).ravel(), (half * weights).ravel()


def _edges(low: float, high: float, breaks: Sequence[float], width: float) -> Array:
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ArgumentError(f"ends: expected finite ends in order, got {low} and {high}")
    cuts = sorted({low, high, *(b for b in breaks if low < b < high)})
    counts = [max(4, math.ceil((b - a) / width)) for a, b in pairwise(cuts)]
    if sum(counts) * NODES > LARGEST:
        raise ArgumentError(
            f"lr: an update spreads by {width / WIDTH:.3g} only, {high - low:.3g} wide ends need {sum(counts) * NODES} states of "
            f"{LARGEST}; bring the ends nearer, or use the laws of continuous time"
        )
    pieces = [np.linspace(a, b, count + 1)[:-1] for (a, b), count in zip(pairwise(cuts), counts, strict=True)]
    return np.concatenate([*pieces, [high]])


def _narrowest(variance: float | Function, ends: tuple[float, float], lr: float, batch_size: float) -> float:
    return WIDTH * float(_spread(variance, np.linspace(*ends, 2001), lr, batch_size).min())


def _spread(variance: float | Function, x: Array, lr: float, batch_size: float) -> Array:
    found = np.broadcast_to(np.asarray(variance(x) if callable(variance) else variance, dtype=np.float64), x.shape)
    if not (found > 0).all():
        raise ArgumentError(f"variance: expected > 0 everywhere, got {found.min()}")
    return np.asarray(lr * np.sqrt(found / batch_size))


def _update(gradient: Function, variance: float | Function, x: Array, *, lr: float, batch_size: float) -> tuple[Array, Array]:
    pull = np.broadcast_to(np.asarray(gradient(x), dtype=np.float64), x.shape)
    if not np.isfinite(pull).all():
        raise ArgumentError("gradient: expected finite values between the ends")
    return x - lr * pull, _spread(variance, x, lr, batch_size)


def _density(landing: Array, spread: Array, at: Array) -> Array:
    off = (at - landing[:, None]) / spread[:, None]
    return np.asarray(np.exp(-(off**2) / 2) / (math.sqrt(2 * math.pi) * spread[:, None]))
