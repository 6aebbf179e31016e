"""What averaging the parameters of unequal workers gives, exactly on a quadratic: bias, variance and the weights that help."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgdscope.errors import ArgumentError
from sgdscope.theory.inputs import Array, above, array, choice

WEIGHTS = ("geometric", "proportional", "equal", "fastest", "optimal")


def worker_moments(steps: Any, *, contraction: float, start: float, variance: float) -> tuple[Array, Array]:
    """Bias and variance of SGD on a quadratic after T_i updates of each worker, all from one start.

    b_i = c^T_i d_0 and v_i = v (1 - c^(2 T_i)), c = 1 - lr lambda.

    Args:
        steps: T_i >= 0 [k].
        contraction: c, 0 < c < 1.
        start: d_0, distance of the common start from the minimum.
        variance: v >= 0, the stationary one (`stationary_variance`).

    Returns:
        (bias [k], variance [k]).

    Raises:
        ArgumentError: out of range.

    Source: Cheng et al. 2017 (1708.04801), its quadratic case (derived, specification section 5).

    Example:
        >>> bias, spread = worker_moments([10, 0], contraction=0.9, start=2.0, variance=0.5)
        >>> bias.round(4).tolist(), spread.round(4).tolist()
        ([0.6974, 2.0], [0.4392, 0.0])
    """
    counts = array("steps", steps)
    if counts.min() < 0 or not 0 < contraction < 1 or variance < 0:
        raise ArgumentError(
            "steps, contraction, variance: expected >= 0, between 0 and 1, and >= 0; "
            f"got {counts.min()}, {contraction}, {variance}"
        )
    return contraction**counts * start, variance * -np.expm1(2 * counts * np.log(contraction))


def averaging_error(weights: Any, bias: Any, variance: Any) -> float:
    """Mean squared error of a weighted average of independent workers, (sum w b)^2 + sum w^2 v.

    Args:
        weights: w [k], adding up to 1.
        bias: b [k].
        variance: v [k] >= 0.

    Returns:
        The error, theta^2.

    Raises:
        ArgumentError: arrays that do not fit, or weights that do not add up to 1.

    Example:
        >>> round(averaging_error([0.25, 0.75], [0.4, -0.2], [1.0, 2.0]), 6)
        1.19
    """
    w, b, v = array("weights", weights), array("bias", bias), array("variance", variance)
    if not w.shape == b.shape == v.shape or (v < 0).any():
        raise ArgumentError(
            f"weights, bias, variance: expected three arrays [k], variances >= 0; got {w.shape}, {b.shape}, {v.shape}"
        )
    if abs(w.sum() - 1) > 1e-9:
        raise ArgumentError(f"weights: expected a sum of 1, got {w.sum():.9g}; divide by it")
    return float((w @ b) ** 2 + w**2 @ v)


def averaging_weights(kind: str, steps: Any, *, contraction: float = 0.0, start: float = 0.0, variance: float = 0.0) -> Array:
    """Weights of workers that made different numbers of updates.

    ``geometric`` (WP-SGD): c^(T - T_i) over their sum, T the largest; ``proportional``: T_i; ``equal``: 1 / k; ``fastest``: all
    on the largest T (shared among equals); ``optimal``: (b b^T + diag v)^-1 1, scaled to add up to 1, the least error there
    is for the moments of `worker_moments`; entries may be negative.

    Args:
        kind: one of these.
        steps: T_i >= 0 [k], not all 0.
        contraction: c, 0 < c < 1, for ``geometric`` and ``optimal``.
        start: d_0, for ``optimal``.
        variance: v > 0, for ``optimal``; there T_i > 0.

    Returns:
        [k], adding up to 1.

    Raises:
        ArgumentError: another kind, or out of range.

    Source: Cheng et al. 2017 (1708.04801), recalled for ``geometric``; ``optimal`` derived.

    Example:
        >>> averaging_weights("geometric", [3, 1], contraction=0.5).tolist()
        [0.8, 0.2]
    """
    choice("kind", kind, WEIGHTS)
    counts = array("steps", steps)
    if counts.min() < 0 or counts.max() == 0:
        raise ArgumentError(f"steps: expected numbers >= 0, not all 0, got {counts.tolist()}")
    if kind == "equal":
        raw = np.ones_like(counts)
    elif kind == "proportional":
        raw = counts
    elif kind == "fastest":
        raw = (counts == counts.max()).astype(np.float64)
    elif kind == "optimal":
        raw = _optimal(counts, contraction, start, variance)
    else:
        if not 0 < contraction < 1:
            raise ArgumentError(f"contraction: expected 0 < c < 1, got {contraction}; it is 1 - lr times the curvature")
        raw = contraction ** (counts.max() - counts)
    return np.asarray(raw / raw.sum())


def _optimal(counts: Array, contraction: float, start: float, variance: float) -> Array:
    above(variance=variance)
    if counts.min() == 0:
        raise ArgumentError("steps: expected > 0 for optimal weights; leave workers out that made no update")
    bias, spread = worker_moments(counts, contraction=contraction, start=start, variance=variance)
    return np.asarray(np.linalg.solve(np.outer(bias, bias) + np.diag(spread), np.ones_like(bias)))
