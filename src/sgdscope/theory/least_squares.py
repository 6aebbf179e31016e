"""SGD on least squares over finite data: mean and second moment exactly, the part of the noise that grows with theta included."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgdscope.errors import ArgumentError
from sgdscope.theory.inputs import Array, above, array
from sgdscope.theory.stationary import replacement_factor

LARGEST = 64  # parameters: the recursion is a matrix of size d^2, 134 MB at 64


@dataclass(frozen=True)
class Moments:
    """Mean and second moment of SGD on least squares, about the minimum.

    Attributes:
        minimum: theta* [d].
        mean: E[theta - theta*] [d].
        moment: E[(theta - theta*)(theta - theta*)^T] [d, d], the mean not taken off.
        excess: E[L] - L* = Tr(A moment) / 2, A = X^T X / N.
        radius: of the recursion of the second moment; it settles only below 1.
        additive: [d, d], the stationary covariance if the noise stayed what it is at theta*; NaN where that has none.
    """

    minimum: Array
    mean: Array
    moment: Array
    excess: float
    radius: float
    additive: Array


def least_squares_moments(
    features: Any,
    targets: Any,
    *,
    lr: float,
    batch_size: int,
    replacement: bool = False,
    steps: int | None = None,
    start: Any = None,
) -> Moments:
    """Exact first and second moment of plain SGD on L = (1 / 2N) sum_i (x_i . theta - y_i)^2.

    With e = theta - theta*, residuals r_i = y_i - x_i . theta* and the factor f of `replacement_factor`:
    E' = (I - lr A) E, and for the second moment, linear in M and E,
    M' = (I - lr A) M (I - lr A) + lr^2 f (mean_i a_i M a_i - A M A) - lr^2 f mean_i (a_i E b_i^T + b_i E^T a_i)
    + lr^2 f mean_i b_i b_i^T, with a_i = x_i x_i^T, b_i = x_i r_i, A = mean_i a_i. The second term is the multiplicative
    noise, which a constant covariance leaves out. Batches are drawn anew at every update.

    Args:
        features: x [N, d], d <= 64, of full column rank.
        targets: y [N].
        lr: learning rate, > 0.
        batch_size: B.
        replacement: drawn with replacement within a batch.
        steps: updates from ``start``; None for the stationary law.
        start: theta_0 [d], needed with ``steps``.

    Returns:
        The moments about theta*.

    Raises:
        ArgumentError: a wrong shape or range, no unique minimum, or (stationary) a second moment that diverges.

    Cost: a dense matrix of d^2 x d^2; its eigenvalues d^6 operations.

    Source: diffusion specification S6.

    Example:
        >>> found = least_squares_moments([[1.0], [3.0], [2.0]], [2.0, 3.0, 1.0], lr=0.1, batch_size=1)
        >>> round(float(found.moment[0, 0]), 6), round(float(found.additive[0, 0]), 6)
        (0.024725, 0.020963)
    """
    x, y = array("features", features, (2,)), array("targets", targets)
    if len(x) != len(y) or x.shape[1] > LARGEST:
        raise ArgumentError(f"features: expected [N, d] with N = {len(y)} targets and d <= {LARGEST}, got {x.shape}")
    above(lr=lr)
    factor = replacement_factor(batch_size, len(x), replacement=replacement)
    solved = np.linalg.lstsq(x, y)
    minimum, rank = np.asarray(solved[0], dtype=np.float64), int(solved[2])
    if rank < x.shape[1]:
        raise ArgumentError(f"features: expected full column rank {x.shape[1]}, got {rank}; the minimum is not unique")
    matrix = x.T @ x / len(x)
    pulls = x * (y - x @ minimum)[:, None]
    noise = pulls.T @ pulls / len(x)
    moves = _recursion(x, matrix, lr, factor)
    radius = float(np.abs(np.linalg.eigvalsh(moves)).max())  # M -> E[(I - lr A_B) M (I - lr A_B)] is self-adjoint
    if steps is None:
        mean, moment = np.zeros(len(matrix)), _settled(moves, radius, lr**2 * factor * noise)
    else:
        mean, moment = _moved(moves, steps, _offset(start, minimum), (x, pulls, matrix, lr, factor))
    return Moments(minimum, mean, moment, float(np.sum(matrix * moment)) / 2, radius, _additive(matrix, noise, lr, factor))


def _recursion(x: Array, matrix: Array, lr: float, factor: float) -> Array:
    """The linear map of vec(M), [d^2, d^2]."""
    size = len(matrix)
    mean = np.eye(size) - lr * matrix
    pairs = np.einsum("na,nb->nab", x, x).reshape(len(x), size * size)
    spread = pairs.T @ pairs / len(x)  # entry (ab),(cd) = mean x_a x_b x_c x_d
    multiplicative = spread.reshape(size, size, size, size).transpose(0, 2, 1, 3).reshape(size * size, size * size)
    return np.asarray(np.kron(mean, mean) + lr**2 * factor * (multiplicative - np.kron(matrix, matrix)))


def _settled(moves: Array, radius: float, constant: Array) -> Array:
    if radius >= 1:
        raise ArgumentError(
            f"lr: the second moment diverges (radius {radius:.6g} >= 1), though the mean may converge; "
            "lower it or take larger batches"
        )
    size = len(constant)
    moment = np.linalg.solve(np.eye(size * size) - moves, constant.reshape(-1)).reshape(size, size)
    return np.asarray((moment + moment.T) / 2)


def _offset(start: Any, minimum: Array) -> Array:
    found = array("start", start)
    if found.shape != minimum.shape:
        raise ArgumentError(f"start: expected theta_0 of shape {minimum.shape}, got {found.shape}")
    return found - minimum


def _moved(moves: Array, steps: int, mean: Array, parts: tuple[Array, Array, Array, float, float]) -> tuple[Array, Array]:
    x, pulls, matrix, lr, factor = parts
    if steps < 0:
        raise ArgumentError(f"steps: expected >= 0, got {steps}")
    constant = lr**2 * factor * pulls.T @ pulls / len(x)
    moment = np.outer(mean, mean)
    for _ in range(steps):
        cross = (x * (x @ mean)[:, None]).T @ pulls / len(x)  # mean_i a_i E b_i^T
        moment = (moves @ moment.reshape(-1)).reshape(moment.shape) - lr**2 * factor * (cross + cross.T) + constant
        mean = mean - lr * matrix @ mean
    return mean, moment


def _additive(matrix: Array, noise: Array, lr: float, factor: float) -> Array:
    values, vectors = np.linalg.eigh(matrix)
    if lr * values[-1] >= 2:
        return np.full_like(matrix, math.nan)
    kept = 1 - lr * values
    return np.asarray(vectors @ (lr**2 * factor * (vectors.T @ noise @ vectors) / (1 - np.outer(kept, kept))) @ vectors.T)
