"""What the closed forms accept: vectors, symmetric matrices and ranges, checked before anything is computed."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sgdscope.errors import ArgumentError

Array = NDArray[np.float64]
SYMMETRY = 1e-9  # relative to the largest entry: rounding of a product of matrices, not a mistake
NEGATIVE = 1e-9  # the same for the eigenvalues of a covariance


def array(name: str, values: Any, dims: tuple[int, ...] = (1,)) -> Array:
    """A finite float64 copy of what came: numpy, torch, a number or a list.

    Args:
        name: of the argument, for the message.
        values: what came.
        dims: the numbers of dimensions allowed.

    Returns:
        float64, of one of the allowed numbers of dimensions, not empty.

    Raises:
        ArgumentError: another shape, empty, or not finite.
    """
    if isinstance(values, torch.Tensor):
        values = values.detach().to("cpu", torch.float64).numpy()
    found = np.array(values, dtype=np.float64)
    if found.ndim not in dims or found.size == 0:
        expected = " or ".join(map(str, dims))
        raise ArgumentError(f"{name}: expected a non-empty array of {expected} dimension(s), got shape {found.shape}")
    if bad := int((~np.isfinite(found)).sum()):
        raise ArgumentError(f"{name}: {bad} of {found.size} values are NaN or infinite; pass finite ones")
    return found


def symmetric(name: str, values: Any) -> Array:
    """A finite symmetric matrix, rounding removed.

    Args:
        name: of the argument, for the message.
        values: [d, d], or a number for d = 1.

    Returns:
        [d, d], exactly symmetric.

    Raises:
        ArgumentError: not square, not finite, or not symmetric.
    """
    found = np.atleast_2d(array(name, values, (0, 2)))
    if found.shape[0] != found.shape[1]:
        raise ArgumentError(f"{name}: expected a square matrix [d, d], got shape {found.shape}; a spectrum goes in as np.diag")
    if np.abs(found - found.T).max() > SYMMETRY * max(np.abs(found).max(), np.finfo(float).tiny):
        raise ArgumentError(f"{name}: expected a symmetric matrix, got one that differs from its transpose; pass (M + M.T) / 2")
    return (found + found.T) / 2


def covariance(name: str, values: Any) -> Array:
    """A covariance: symmetric and with no negative eigenvalue.

    Args:
        name: of the argument, for the message.
        values: [d, d], or a number for d = 1.

    Returns:
        [d, d], symmetric.

    Raises:
        ArgumentError: not a symmetric matrix, or a negative eigenvalue.
    """
    found = symmetric(name, values)
    spectrum = np.linalg.eigvalsh(found)
    if spectrum[0] < -NEGATIVE * max(abs(spectrum[-1]), np.finfo(float).tiny):
        raise ArgumentError(f"{name}: expected a covariance, got a matrix with the negative eigenvalue {spectrum[0]:.6g}")
    return found


def above(**numbers: float) -> None:
    """Refuse numbers that are not finite and > 0.

    Args:
        **numbers: by the names of the arguments.

    Raises:
        ArgumentError: one of them is not finite and > 0.
    """
    for name, value in numbers.items():
        if not (math.isfinite(value) and value > 0):
            raise ArgumentError(f"{name}: expected a finite number > 0, got {value}")


def fraction(**numbers: float) -> None:
    """Refuse numbers outside [0, 1), such as a momentum.

    Args:
        **numbers: by the names of the arguments.

    Raises:
        ArgumentError: one of them is outside.
    """
    for name, value in numbers.items():
        if not 0 <= value < 1:
            raise ArgumentError(f"{name}: expected 0 <= {name} < 1, got {value}")
