"""Currents of a walk: whether its covariance at lag one is symmetric, as it is for a walk that looks the same backwards."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from sgdscope.errors import ArgumentError

Array = NDArray[np.float64]


def lag_asymmetry(points: Array, *, block: int, flips: int, seed: int) -> tuple[float, float, float]:
    """Asymmetry of the covariance at lag one, with its level by chance.

    A = mean_t x_{t+1} x_t' of the centred points; |A - A'|_F / |A + A'|_F. Backwards in time A becomes A', so a stationary walk
    without currents has A = A' up to chance. Chance: the antisymmetric part is a sum over blocks of updates; each block's sign
    is flipped at random, as if the block had been walked backwards.

    Args:
        points: x [T + 1, k], k >= 2.
        block: updates a block, >= 1; longer than the memory of the walk.
        flips: draws of all signs, >= 1.
        seed: of the flips.

    Returns:
        (asymmetry, its mean by chance, p = (1 + draws at least as large) / (flips + 1)); NaN without two blocks or spread.

    Raises:
        ArgumentError: an argument is out of range.

    Source: Chaudhari & Soatto 2018 (1710.11029), stationary currents; the sign test is ours.
    """
    if points.ndim != 2 or points.shape[1] < 2:
        raise ArgumentError(f"points: expected [T + 1, k] with k >= 2, got shape {points.shape}")
    if block < 1 or flips < 1:
        raise ArgumentError(f"block, flips: expected integers >= 1, got {block}, {flips}")
    x = points - points.mean(0)
    products = x[1:, :, None] * x[:-1, None, :]
    turns = products - products.transpose(0, 2, 1)
    size = float(np.linalg.norm((products + products.transpose(0, 2, 1)).sum(0)))
    ends = np.arange(0, len(turns), block)
    if len(ends) < 2 or not size > 0:
        return math.nan, math.nan, math.nan
    parts = np.add.reduceat(turns, ends).reshape(len(ends), -1)
    signs = np.random.default_rng(seed).choice([-1.0, 1.0], (flips, len(ends)))
    drawn, found = np.linalg.norm(signs @ parts, axis=1), float(np.linalg.norm(parts.sum(0)))
    larger = int((drawn >= found * (1 - 1e-9)).sum())
    return found / size, float(drawn.mean()) / size, (1 + larger) / (flips + 1)
