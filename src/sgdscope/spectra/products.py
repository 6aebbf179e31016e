"""What every file here starts from: a product that is counted and checked, random vectors, the two kinds of result."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.errors import ArgumentError, Outcome

Array = NDArray[np.float64]
Matvec = Callable[[Tensor], Tensor]

ASYMMETRY = 1e-3  # of the projected matrix, Frobenius; float32 networks: at most 4e-6 seen


@dataclass(frozen=True, eq=False)
class Eigenpairs:
    """Eigenvalues and unit vectors with their residuals.

    A residual bounds the distance to the nearest eigenvalue; that the pairs are the extreme ones it does not prove.

    Attributes:
        values: [k] float64 on the CPU, descending (by |value| for "magnitude").
        vectors: [P, k], unit columns, in the dtype and on the device of the products.
        residuals: [k] float64 on the CPU, |A x - value x|.
        products: products with A that were spent.
        outcome: ok, or not_converged when a residual misses its tolerance or pairs are missing.
        reason: in words what became of it.
        which: the end of the spectrum that was asked for.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    products: int
    outcome: Outcome = Outcome.ok
    reason: str = ""
    which: str = "top"


@dataclass(frozen=True)
class Estimate:
    """A number from random probes.

    Attributes:
        value: the estimate; NaN where it does not exist.
        stderr: its standard error, from the scatter of the probes; NaN from fewer than two.
        products: products with A that were spent.
        outcome: ok, not_converged (the tolerance was not met) or not_applicable.
        reason: in words what became of it.
        probes: independent probes behind the error: an interval takes Student's t of probes - 1 degrees of freedom.
    """

    value: float
    stderr: float
    products: int
    outcome: Outcome = Outcome.ok
    reason: str = ""
    probes: int = 0


class Products:
    """Count the products with a matrix, and refuse what is no vector of finite numbers.

    Args:
        matvec: v [P] -> A v [P]; it is given a copy of v.
        size: P >= 1.
        dtype: of the vectors, float32 or float64.
        device: of the vectors given to `matvec`.
        home: where the products are brought to; None for `device`.

    Raises:
        ArgumentError: an argument is out of range.
    """

    def __init__(
        self,
        matvec: Matvec,
        size: int,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
        home: torch.device | str | None = None,
    ) -> None:
        if not callable(matvec):
            raise ArgumentError(f"matvec: expected a callable v [P] -> A v [P], got {type(matvec).__name__}")
        positive("size", size)
        if dtype not in (torch.float32, torch.float64):
            raise ArgumentError(f"dtype: expected torch.float32 or torch.float64, got {dtype}")
        self.matvec, self.size, self.dtype = matvec, size, dtype
        self.device = torch.device(device)
        self.home = self.device if home is None else torch.device(home)
        self.eps = float(torch.finfo(dtype).eps)
        self.count = 0
        self.norm = 0.0

    def __call__(self, vector: Tensor) -> Tensor:
        """Multiply.

        Args:
            vector: [P].

        Returns:
            A v [P] at home; it may share memory with what `matvec` keeps. `norm` is |A v|.

        Raises:
            ArgumentError: the product has another shape, or is not finite.
        """
        self.count += 1
        result = self.matvec(vector.to(self.device, copy=True))
        if not isinstance(result, Tensor) or result.shape != (self.size,):
            got = tuple(result.shape) if isinstance(result, Tensor) else type(result).__name__
            raise ArgumentError(f"matvec: expected a tensor of shape [{self.size}], got {got} at product {self.count}")
        result = result.detach().to(self.home, self.dtype)
        self.norm = float(torch.linalg.vector_norm(result))
        if not math.isfinite(self.norm):
            raise ArgumentError(
                f"matvec: product {self.count} holds NaN or infinity, or overflows {self.dtype}; "
                "look at the loss and its gradient at this point first"
            )
        return result

    def on(self, rows: Tensor) -> Tensor:
        """Multiply each row.

        Args:
            rows: [k, P].

        Returns:
            [k, P] at home.
        """
        result = torch.empty_like(rows)
        for i in range(len(rows)):
            result[i] = self(rows[i])
        return result


def positive(name: str, value: float, *, whole: bool = True) -> None:
    """Refuse what is no positive number.

    Args:
        name: of the argument.
        value: the number that came.
        whole: an integer is wanted.

    Raises:
        ArgumentError: it is not.
    """
    if isinstance(value, bool) or (whole and not isinstance(value, int)) or not (math.isfinite(value) and value > 0):
        raise ArgumentError(f"{name}: expected {'an integer >= 1' if whole else 'a finite number > 0'}, got {value!r}")


def private(generator: torch.Generator | None, seed: int = 0) -> torch.Generator:
    """Take the caller's generator, or make one of a fixed seed; the global one is never touched.

    Args:
        generator: the caller's, or None.
        seed: of the private one.

    Returns:
        A generator.
    """
    return torch.Generator().manual_seed(seed) if generator is None else generator


def normal(products: Products, generator: torch.Generator, rows: int | None = None) -> Tensor:
    """Draw standard normal vectors.

    Args:
        products: for size, dtype and place.
        generator: advanced.
        rows: how many; None for one vector.

    Returns:
        [P] or [rows, P].
    """
    shape = (products.size,) if rows is None else (rows, products.size)
    return torch.randn(shape, dtype=products.dtype, generator=generator, device=generator.device).to(products.home)


def signs(products: Products, generator: torch.Generator) -> Tensor:
    """Draw a vector of independent signs (Rademacher).

    Args:
        products: for size, dtype and place.
        generator: advanced.

    Returns:
        [P] of -1 and +1.
    """
    bits = torch.randint(0, 2, (products.size,), generator=generator, device=generator.device)
    return (2 * bits - 1).to(products.home, products.dtype)


def clear(vector: Tensor, rows: Tensor) -> Tensor:
    """Project a vector off orthonormal rows, twice, since once leaves what rounding leaves.

    Args:
        vector: [P]; left as it is.
        rows: [k, P] orthonormal.

    Returns:
        [P].
    """
    once = torch.addmv(vector, rows.T, rows @ vector, alpha=-1)
    return once.addmv_(rows.T, rows @ once, alpha=-1)


def known_rows(known: Eigenpairs | None, products: Products) -> Tensor:
    """Bring known vectors home as orthonormal rows.

    Args:
        known: pairs of the same matrix, or None.
        products: for size, dtype and place.

    Returns:
        [k, P]; k = 0 without known pairs.

    Raises:
        ArgumentError: the vectors have another length, or are not orthonormal to 1e-3.
    """
    if known is None:
        return torch.empty(0, products.size, dtype=products.dtype, device=products.home)
    if known.vectors.ndim != 2 or known.vectors.shape[0] != products.size:
        raise ArgumentError(f"known: expected vectors of shape [{products.size}, k], got {tuple(known.vectors.shape)}")
    rows = known.vectors.detach().to(products.home, products.dtype).T.contiguous()
    error = float((rows @ rows.T - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)).abs().max()) if len(rows) else 0.0
    if not error <= 1e-3:
        raise ArgumentError(f"known: expected orthonormal columns, got X'X - I up to {error:.1e}; take them from eigenpairs")
    return rows


def refuse_asymmetry(difference: float, scale: float) -> None:
    """Stop at a matrix that is not symmetric, as seen in its projection.

    Args:
        difference: Frobenius norm of the upper part of the projected matrix less its lower part.
        scale: size of the projected matrix.

    Raises:
        ArgumentError: difference > 1e-3 scale.
    """
    if difference > ASYMMETRY * scale:
        raise ArgumentError(
            f"matvec: expected a symmetric matrix, got one whose projection is asymmetric by {difference / scale:.1e} "
            "of its size; multiply with a Hessian or another symmetric matrix"
        )
