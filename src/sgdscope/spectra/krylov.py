"""A growing orthonormal basis with the matrix projected onto it: the state of Lanczos between two steps."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.spectra.products import Array, Products, normal, refuse_asymmetry

BREAKDOWN = 10.0  # eps times the largest |A v| seen: a remainder below this is rounding, the space is invariant
COLUMNS = 2**16  # of the basis turned at once, so that a restart needs no second basis


class Krylov:
    """Rows V [m + 1, P], orthonormal, with A V_i = sum_j T_ij V_j + b_i V_m + (something of length leak_i outside).

    The leading `locked` rows leak: a fresh vector took the place of V_m after they had been found (leak 0 elsewhere).

    Args:
        products: the matrix.
        keep: basis vectors held at most; one more row is allocated.
        generator: for fresh vectors after a breakdown.
    """

    def __init__(self, products: Products, keep: int, generator: torch.Generator) -> None:
        self.products, self.keep, self.generator = products, keep, generator
        self.length = self.locked = 0
        self.tridiagonal = True
        self._norm = self._asymmetry = 0.0
        self._rows = torch.empty(min(32, keep) + 1, products.size, dtype=products.dtype, device=products.home)
        self._matrix = np.zeros((len(self._rows), len(self._rows)))
        self._coupling = np.zeros(0)
        self._leak = np.zeros(0)

    def begin(self, vector: Tensor) -> None:
        """Set the first vector.

        Args:
            vector: [P], not zero.
        """
        self._rows[0] = vector / torch.linalg.vector_norm(vector)

    def matrix(self) -> Array:
        """The projected matrix.

        Returns:
            [m, m] a view.
        """
        return self._matrix[: self.length, : self.length]

    def diagonals(self) -> tuple[Array, Array]:
        """The diagonal and the one below it; all there is while `tridiagonal`.

        Returns:
            [m] and [m - 1].
        """
        return self.matrix().diagonal().copy(), self.matrix().diagonal(-1).copy()

    def residuals(self, rotation: Array) -> Array:
        """Residuals of Ritz vectors, sqrt((b s)^2 + sum_i (s_i leak_i)^2).

        Args:
            rotation: [m, k].

        Returns:
            [k].
        """
        inside: Array = self._coupling @ rotation
        return np.sqrt(inside**2 + self._leak**2 @ rotation**2)

    def step(self, product: Tensor | None = None) -> None:
        """Add the next vector.

        Args:
            product: A times the next vector, where it is known already.
        """
        m = self.length
        self._grow(m + 2)
        w = self.products(self._rows[m]) if product is None else product
        self._norm = max(self._norm, float(torch.linalg.vector_norm(w)))
        rest, coefficients = self._remove(w, m + 1)
        expected = np.append(self._coupling, coefficients[m])
        expected[: self.locked] = coefficients[: self.locked]  # what leaks there is not known beforehand
        self._matrix[: m + 1, m] = self._matrix[m, : m + 1] = expected
        self._asymmetry += float(((coefficients - expected) ** 2).sum())
        refuse_asymmetry(self._asymmetry**0.5, self._norm)
        self.length, self._leak = m + 1, np.append(self._leak, 0.0)
        self._coupling = np.zeros(m + 1)
        beta = float(torch.linalg.vector_norm(rest))
        if beta > BREAKDOWN * self.products.eps * self._norm:
            self._coupling[m] = beta
            torch.div(rest, beta, out=self._rows[m + 1])
        elif m + 1 < self.products.size:
            self._fresh()

    def restart(self, values: Array, rotations: Array, chosen: NDArray[np.intp]) -> None:
        """Keep only some Ritz vectors and the next vector (thick restart).

        Args:
            values: [m] of the projected matrix.
            rotations: [m, m] its eigenvectors.
            chosen: indices of those kept.
        """
        following, coupling = self._rows[self.length].clone(), self._coupling @ rotations[:, chosen]
        self._turn(values[chosen], rotations[:, chosen])
        self._rows[self.length], self._coupling = following, coupling
        self.locked = self.length if self.locked else 0

    def lock(self, values: Array, rotation: Array) -> None:
        """Keep only some Ritz vectors and go on from a fresh random vector; what their residuals were leaks from now on.

        Args:
            values: [k] of the projected matrix.
            rotation: [m, k].
        """
        leak = self.residuals(rotation)
        self._turn(values, rotation)
        self._leak, self._coupling, self.locked = leak, np.zeros(self.length), self.length
        self._fresh()

    def vectors(self, rotation: Array) -> Tensor:
        """Ritz vectors, normalised.

        Args:
            rotation: [m, k].

        Returns:
            [P, k] on the device of the products.
        """
        turn = torch.from_numpy(np.ascontiguousarray(rotation.T)).to(self._rows)
        rows = turn @ self._rows[: self.length]
        rows /= torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        return rows.to(self.products.device).T

    def _turn(self, values: Array, rotation: Array) -> None:
        """Replace the basis by V s and the projected matrix by the values."""
        turn = torch.from_numpy(np.ascontiguousarray(rotation.T)).to(self._rows)
        for first in range(0, self.products.size, COLUMNS):
            part = self._rows[: self.length, first : first + COLUMNS]
            part[: len(values)] = turn @ part
        self._leak = np.sqrt(self._leak**2 @ rotation**2)
        self.length, self.tridiagonal = len(values), False
        self._matrix[:] = 0.0
        np.fill_diagonal(self._matrix[: self.length, : self.length], values)

    def _remove(self, w: Tensor, rows: int) -> tuple[Tensor, Array]:
        """Take the leading rows out of w twice; the coefficients are those of both passes."""
        basis = self._rows[:rows]
        first = basis @ w
        rest = torch.addmv(w, basis.T, first, alpha=-1)
        second = basis @ rest
        rest.addmv_(basis.T, second, alpha=-1)
        return rest, (first.double() + second.double()).cpu().numpy()

    def _fresh(self) -> None:
        """A random vector orthogonal to all rows becomes the next."""
        vector, _ = self._remove(normal(self.products, self.generator), self.length)
        vector, _ = self._remove(vector / torch.linalg.vector_norm(vector), self.length)
        self._rows[self.length] = vector / torch.linalg.vector_norm(vector)

    def _grow(self, rows: int) -> None:
        """Make room, doubling up to the rows that may be held."""
        if rows <= len(self._rows):
            return
        old, size = self._rows, min(2 * rows, self.keep + 1)
        self._rows = old.new_empty(size, old.shape[1])
        self._rows[: len(old)] = old
        matrix, self._matrix = self._matrix, np.zeros((size, size))
        self._matrix[: len(matrix), : len(matrix)] = matrix
