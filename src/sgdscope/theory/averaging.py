"""What averaging the parameters of unequal workers gives, exactly on a quadratic: bias, variance, error."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgdscope.errors import ArgumentError
from sgdscope.theory.inputs import Array, array


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
