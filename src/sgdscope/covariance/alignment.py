"""How one symmetric matrix lies to another whose eigenvalues are known, in the eigenbasis of that one."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


def alignment(elements: Array, values: Array) -> Array:
    """Compare e_i'C e_j with e_i'H e_j = lambda_i (i = j) or 0.

    * slope: sum_i C_ii lambda_i / sum lambda_i^2, of the line through the origin over all elements;
    * correlation: Pearson's over all k^2 elements, mean over the free signs of the eigenvectors: off-diagonal elements enter the
      means as 0 and the squares as they are;
    * diagonal correlation: Pearson's over the k diagonal ones;
    * off-diagonal: sum_{i != j} C_ij^2 / sum C_ij^2.

    Args:
        elements: V'CV [k, k] in the eigenvectors of H.
        values: lambda [k].

    Returns:
        The four numbers; NaN where there is no spread. Correlations need k >= 2.

    Example:
        >>> alignment(np.diag([1.2, 0.6]), np.array([4.0, 2.0])).round(9).tolist()
        [0.3, 1.0, 1.0, 0.0]
    """
    diagonal, square = np.diag(elements), float((elements**2).sum())
    scale = float(values @ values)
    off = (square - float(diagonal @ diagonal)) / square if square > 0 else np.nan
    slope = float(diagonal @ values) / scale if scale > 0 else np.nan
    return np.array([slope, _elementwise(elements, values), _pearson(diagonal, values), max(off, 0.0)])


def _elementwise(elements: Array, values: Array) -> float:
    diagonal, k = np.diag(elements), len(values)
    means = float(diagonal.sum()) * float(values.sum()) / k**2
    spread = float((elements**2).sum()) - float(diagonal.sum()) ** 2 / k**2
    scale = float(np.sqrt(max(spread, 0.0) * (values @ values - values.sum() ** 2 / k**2)))
    return (float(diagonal @ values) - means) / scale if k > 1 and scale > 0 else np.nan


def _pearson(x: Array, y: Array) -> float:
    dx, dy = x - x.mean(), y - y.mean()
    scale = float(np.sqrt((dx @ dx) * (dy @ dy)))
    floor = 1e-12 * float(np.sqrt((x @ x) * (y @ y)))
    return float(dx @ dy) / scale if len(x) > 1 and scale > floor else np.nan
