"""The loss after a decay of the learning rate, from the losses at three consecutive averages of the iterates: pure functions.

Source: this project, `docs/annealing.md`. Decaying over N steps with frozen updates gives exactly the uniform average of the last
N iterates, so the loss at the average over (T - N, T] is that of the decay which should have begun N steps ago, the average
before it that of 2N ago; "now" is one more window along the same curve.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from sgdscope.errors import ArgumentError

Array = NDArray[np.float64]

LAWS = ("linear", "exponential", "log_time", "power")
SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda f: 1 - f,
    "sqrt": lambda f: 1 - math.sqrt(f),
    "cosine": lambda f: (1 + math.cos(math.pi * f)) / 2,
    "hold": lambda f: 0.0,  # ruff: ignore[unused-lambda-argument] (a shape)
}
NODES = 4096  # of the midpoint rule: error below 1e-5 for a square root
SOFTNESS = 0.001  # of the last loss, below which errors of the hindcast count as equal; spec, "Recommended estimator"


@dataclass(frozen=True)
class Decay:
    """What a decay of the learning rate comes to.

    Attributes:
        area: S, the mean of LR / LR_now over the decay.
        end: LR / LR_now at its end; 0 for a decay to zero.
    """

    area: float
    end: float


def decay(shape: str | Callable[[float], float] = "linear", *, floor: float = 0.0) -> Decay:
    """Reduce a decay of any shape to its area and its end.

    S = integral_0^1 (floor + (1 - floor) s(f)) df by the midpoint rule, f the share of the decay that is done.

    Args:
        shape: ``"linear"``, ``"cosine"`` (S = 1/2), ``"sqrt"`` (1 - sqrt f, S = 1/3), ``"hold"`` (S = floor),
            or s: f -> share above the floor in 0..1.
        floor: LR / LR_now that is left in the end, 0 <= floor < 1.

    Returns:
        Area and end.

    Raises:
        ArgumentError: the shape is not known or leaves 0..1, or the floor is out of range.

    Example:
        >>> round(decay("sqrt").area, 4), round(decay("linear", floor=0.1).area, 4), decay("hold", floor=0.1)
        (0.3333, 0.55, Decay(area=0.1, end=0.1))
    """
    if not (math.isfinite(floor) and 0 <= floor < 1):
        raise ArgumentError(f"floor: expected the share of the learning rate that is left, 0 <= floor < 1, got {floor}")
    if isinstance(shape, str) and shape not in SHAPES:
        raise ArgumentError(f"shape: expected one of {', '.join(SHAPES)} or a function of the share that is done, got '{shape}'")
    share = SHAPES[shape] if isinstance(shape, str) else shape
    values = np.array([share((k + 0.5) / NODES) for k in range(NODES)])
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
        raise ArgumentError(f"shape: expected values from 0 to 1, got {values.min():.3g} to {values.max():.3g}")
    last = 0.0 if isinstance(shape, str) else float(share(1.0))
    return Decay(float(floor + (1 - floor) * values.mean()), float(floor + (1 - floor) * last))


def extrapolate(before: ArrayLike, last: ArrayLike, *, times: tuple[float, float], target: float) -> Array:
    """Continue a loss beyond two values of it, by four laws.

    With x = (t* - t_B) / (t_B - t_A) and y = ln(t* / t_B) / ln(t_B / t_A), A before, B last: linear B + (B - A) x,
    exponential B (B / A)^x, log_time B + (B - A) y, power B (B / A)^y.

    Args:
        before: A [...], loss.
        last: B [...], loss.
        times: (t_A, t_B), steps since the start of the run, t_A < t_B.
        target: t* >= t_B.

    Returns:
        [..., 4] in the order of `LAWS`; NaN for exponential and power where a loss is not positive, for the laws in ln t
        where a time is not.

    Raises:
        ArgumentError: the times do not ascend.

    Example:
        >>> extrapolate(1.2, 1.0, times=(150.0, 250.0), target=350.0).round(4).tolist()
        [0.8, 0.8333, 0.8683, 0.8868]
    """
    first, second = times
    if not first < second <= target:
        raise ArgumentError(f"times, target: expected t_A < t_B <= t*, got {first}, {second}, {target}")
    a, b = (np.asarray(values, np.float64) for values in (before, last))
    ahead = (target - second) / (second - first)
    later = math.log(target / second) / math.log(second / first) if first > 0 else math.nan
    positive = (a > 0) & (b > 0)
    ratio = np.where(positive, b, np.nan) / np.where(positive, a, 1.0)
    return np.stack([b + (b - a) * ahead, b * ratio**ahead, b + (b - a) * later, b * ratio**later], axis=-1)


@dataclass(frozen=True)
class Prediction:
    """What a decay that begins now would give; arrays [...], the shape of what went in.

    Attributes:
        annealed: the loss at the end of the decay.
        laws: [..., 4], the loss by each law of `LAWS`.
        weights: [..., 4], with which they were averaged; 0 where a law does not exist.
        hindcast: the loss at the last average as the two before it predict it, with the same weights.
        height: loss now - loss at the last average: what settling onto the floor gives.
        progress: loss at the last average - annealed (decay to zero): what the walk along the floor gives meanwhile.
        drop: loss now - annealed.
        half_width: of the 90 % interval of `annealed`, see `predict`.
    """

    annealed: Array
    laws: Array
    weights: Array
    hindcast: Array
    height: Array
    progress: Array
    drop: Array
    half_width: Array


def predict(losses: ArrayLike, now: ArrayLike, *, step: float, width: float, decay: Decay = Decay(0.5, 0.0)) -> Prediction:
    """Predict the loss after a decay over the next `width` steps, the law of extrapolation chosen by hindcast.

    C, B_1 = A and B_0 = B are the losses at the averages over (T - 3N, T - 2N], (T - 2N, T - N] and (T - N, T], centres t_C, t_A,
    t_B = T - N/2, target t* = T + S N. e_i = |law_i(C, A at t_B) - B|, w_i = 1 / (e_i^2 + (0.001 B)^2),
    floor = sum w_i law_i(A, B at t*) / sum w_i, annealed = floor + r (now - B) with r the share of the learning rate
    that is left in the end.

    Args:
        losses: [..., 3], loss at the three averages, the oldest first.
        now: [...], loss at theta_T.
        step: T, steps since the start of the run.
        width: N, steps of the decay and of each window.
        decay: area and end.

    Returns:
        The prediction. NaN where no law exists.

    Raises:
        ArgumentError: N is not in 1..T/3, or the losses are not three.

    Source: this project, `docs/annealing.md`.
    """
    values, present = np.asarray(losses, np.float64), np.asarray(now, np.float64)
    if values.ndim < 1 or values.shape[-1] != 3:
        raise ArgumentError(f"losses: expected three along the last axis, the oldest first, got shape {values.shape}")
    if not 1 <= width <= step / 3:
        raise ArgumentError(f"width: expected 1 to step / 3 = {step / 3:.4g} steps, got {width}; three windows must fit")
    c, a, b = values[..., 0], values[..., 1], values[..., 2]
    centres = [step - (k + 0.5) * width for k in (2, 1, 0)]
    back = extrapolate(c, a, times=(centres[0], centres[1]), target=centres[2])
    laws = extrapolate(a, b, times=(centres[1], centres[2]), target=step + decay.area * width)
    known = np.isfinite(back) & np.isfinite(laws)
    weights = np.where(known, 1 / (np.where(known, back - b[..., None], 1.0) ** 2 + (SOFTNESS * b[..., None]) ** 2), 0.0)
    floor, hindcast = _weighted(laws, weights), _weighted(back, weights)
    height = present - b
    annealed = floor + decay.end * height
    half = half_width(laws, weights, error=np.abs(hindcast - b), drop=present - annealed)
    return Prediction(annealed, laws, _shares(weights), hindcast, height, b - floor, present - annealed, half)


def _shares(weights: Array) -> Array:
    total = weights.sum(-1, keepdims=True)
    shares: Array = np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)
    return shares


def _weighted(values: Array, weights: Array) -> Array:
    shares = _shares(weights)
    mean: Array = np.where(shares > 0, values * shares, 0.0).sum(-1)
    return np.where(shares.sum(-1) > 0, mean, np.nan)


Z90 = 1.6448536269514722  # two-sided 90 % of the normal distribution
MISMATCH = 0.12  # of the drop: average against real decay at the same place, .05-.12 of it by the specification's check


def half_width(laws: Array, weights: Array, *, error: ArrayLike, drop: ArrayLike) -> Array:
    """How far the truth may lie from the prediction: 90 % of the time within this.

    1.645 sqrt(spread^2 + error^2 + (0.12 drop)^2): spread^2 the mean over the laws of (law - annealed)^2 with the roots of their
    weights, error that of the hindcast, 0.12 drop for what an average and a real decay differ by.

    Args:
        laws: [..., 4], loss.
        weights: [..., 4]; 0 where a law does not exist.
        error: [...], |hindcast - B|, loss.
        drop: [...], predicted, loss.

    Returns:
        [...], loss.
    """
    away = np.where(weights > 0, laws - _weighted(laws, weights)[..., None], 0.0)
    wide: Array = Z90 * np.sqrt(
        _weighted(away**2, np.sqrt(weights)) + np.asarray(error, np.float64) ** 2 + (MISMATCH * np.asarray(drop, np.float64)) ** 2
    )
    return wide
