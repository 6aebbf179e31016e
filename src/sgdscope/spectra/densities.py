"""The density of eigenvalues by stochastic Lanczos quadrature, and what follows from it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from sgdscope.errors import ArgumentError, Outcome
from sgdscope.spectra.products import Array, Eigenpairs, Estimate, Matvec, Products, clear, known_rows, normal, positive, private

BREAKDOWN = 10.0  # eps times the largest |A v| seen: below it the Krylov space is whole


@dataclass(frozen=True, eq=False)
class Density:
    """The spectrum as weighted points, one set from each probe, and exact atoms of weight 1 / P.

    Attributes:
        nodes: [probes, steps].
        weights: [probes, steps] >= 0, each row sums to 1 - k / P.
        atoms: [k] known eigenvalues.
        size: P.
        products: products with A that were spent.
    """

    nodes: Array
    weights: Array
    atoms: Array
    size: int
    products: int

    def mean(self, function: Callable[[Array], Array], reason: str = "") -> Estimate:
        """Estimate the mean of f over the eigenvalues, (1 / P) sum f(l_i).

        Args:
            function: [...] -> [...], elementwise.
            reason: goes into the estimate.

        Returns:
            Mean over the probes, with the standard error of their scatter; the error of the quadrature itself (steps) is not
            in it. Polynomials of degree < 2 steps have none.
        """
        samples = (self.weights * function(self.nodes)).sum(1) + function(self.atoms).sum() / self.size
        n = len(samples)
        stderr = float(samples.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan
        return Estimate(float(samples.mean()), stderr, self.products, Outcome.ok, reason or f"{n} probes", n)

    def on(self, grid: ArrayLike, width: float) -> Array:
        """Evaluate the density smoothed with Gaussians, sum_j w_j exp(-(x - l_j)^2 / (2 width^2)) / (width sqrt(2 pi)).

        Args:
            grid: [G] where.
            width: standard deviation of the Gaussians, > 0, in units of the eigenvalues.

        Returns:
            [G]; integrates to 1 over the line.

        Raises:
            ArgumentError: the width is not a finite number > 0.
        """
        positive("width", width, whole=False)
        points = np.asarray(grid, np.float64)
        nodes = np.concatenate([self.nodes.ravel(), self.atoms])
        weights = np.concatenate([self.weights.ravel() / len(self.weights), np.full(len(self.atoms), 1 / self.size)])
        bells = np.exp(-0.5 * ((points[:, None] - nodes) / width) ** 2)
        return np.asarray(bells @ weights / (width * math.sqrt(2 * math.pi)))

    def moment(self, n: int) -> Estimate:
        """Estimate the mean n-th power of the eigenvalues, Tr A^n / P.

        Args:
            n: >= 1; n < 2 steps has no quadrature error.

        Returns:
            The estimate.

        Raises:
            ArgumentError: n is no integer >= 1.
        """
        positive("n", n)
        return self.mean(lambda x: np.asarray(x**n))

    def share(self, low: float, high: float) -> Estimate:
        """Estimate the share of eigenvalues in [low, high).

        Args:
            low: may be -inf.
            high: > low, may be inf.

        Returns:
            The estimate, in [0, 1]; where an edge lies among close eigenvalues, it is off by up to the weight of a node there.

        Raises:
            ArgumentError: low < high does not hold.
        """
        if not low < high:
            raise ArgumentError(f"low, high: expected low < high, got {low} and {high}")
        return self.mean(lambda x: np.asarray((x >= low) & (x < high), np.float64))

    def logdet(self, damping: float) -> Estimate:
        """Estimate log det(A + damping I) = P times the mean of log(l + damping).

        A Hessian of a network is singular: the number depends on the damping, which the reason states, with the
        number of eigenvalues above it.

        Args:
            damping: > 0, in units of the eigenvalues.

        Returns:
            The estimate; NaN and not_applicable where A + damping I is not positive definite at a node.

        Raises:
            ArgumentError: the damping is not a finite number > 0.
        """
        positive("damping", damping, whole=False)
        lowest = min(float(self.nodes[self.weights > 0].min(initial=math.inf)), float(self.atoms.min(initial=math.inf)))
        above = self.size * self.share(damping, math.inf).value
        said = f"damping {damping:.3g}, {above:.0f} of {self.size} eigenvalues above it, {len(self.nodes)} probes"
        if lowest + damping <= 0:
            reason = f"A + damping I is not positive definite: an eigenvalue lies near {lowest:.3g}; {said}"
            return Estimate(math.nan, math.nan, self.products, Outcome.not_applicable, reason, len(self.nodes))
        found = self.mean(lambda x: np.log(np.maximum(x + damping, np.finfo(np.float64).tiny)), said)
        return Estimate(
            self.size * found.value, self.size * found.stderr, found.products, found.outcome, found.reason, found.probes
        )

    def width(self, damping: float) -> Estimate:
        """Estimate 1/2 log det(A + damping I) - P/2 log damping: the log-volume lost against a flat minimum, 0 for A = 0.

        Args:
            damping: as in `logdet`.

        Returns:
            The estimate, or not_applicable as in `logdet`.

        Raises:
            ArgumentError: the damping is not a finite number > 0.
        """
        found = self.logdet(damping)
        value = (found.value - self.size * math.log(damping)) / 2
        return Estimate(value, found.stderr / 2, found.products, found.outcome, found.reason, found.probes)


def _quadrature(products: Products, basis: Tensor, known: int, steps: int) -> tuple[Array, Array]:
    """Nodes and weights (summing to 1) of Lanczos from the unit vector in row `known`; the rows before it are projected off."""
    diagonal: list[float] = []
    below: list[float] = []
    norm = 0.0
    for row in range(known, known + steps):
        image = products(basis[row])
        norm = max(norm, products.norm)
        diagonal.append(float(torch.dot(basis[row], image)))
        rest = clear(image, basis[: row + 1])
        beta = float(torch.linalg.vector_norm(rest))
        if row + 1 == known + steps or beta <= BREAKDOWN * products.eps * norm:
            break
        below.append(beta)
        torch.div(rest, beta, out=basis[row + 1])
    nodes, vectors = eigh_tridiagonal(np.array(diagonal), np.array(below))
    return nodes.astype(np.float64), vectors[0] ** 2


def density(
    matvec: Matvec,
    size: int,
    *,
    probes: int = 10,
    steps: int = 80,
    known: Eigenpairs | None = None,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Density:
    """Estimate the density of eigenvalues of a symmetric matrix by stochastic Lanczos quadrature.

    From each random unit vector v, m steps of Lanczos with full reorthogonalisation (twice) give T; its eigenvalues are
    the nodes, the squared first components of its eigenvectors the weights of the measure of v. Known pairs X are exact atoms of
    weight 1 / P, and v and the Krylov space stay orthogonal to X, with weights that sum to 1 - k / P.

    Args:
        matvec: v [P] -> A v [P], symmetric.
        size: P.
        probes: random vectors.
        steps: of Lanczos a probe, at most P - k.
        known: eigenpairs of A that are at hand.
        generator: None for a private one of a fixed seed.
        dtype: of the products.
        device: of the products.

    Returns:
        The density. Cost: probes x steps products and a fifth on top for 17,000 parameters; memory (steps + k) P. Without known
        pairs ten probes place the outliers well and weigh them badly (by half); with them the outliers are exact.

    Raises:
        ArgumentError: an argument is out of range, or a product is not finite.

    Source: Golub and Meurant (2010); Ghorbani, Krishnan and Xiao (2019), arXiv 1901.10159.

    Example:
        >>> diagonal = torch.tensor([3.0, -7.0, 1.0, 1.0])
        >>> found = density(lambda v: diagonal * v, 4, probes=3, steps=4)
        >>> sorted({round(float(x), 4) for x in found.nodes.ravel()})
        [-7.0, 1.0, 3.0]
    """
    positive("probes", probes)
    positive("steps", steps)
    products = Products(matvec, size, dtype=dtype, device=device)
    rows = known_rows(known, products)
    k, generator = len(rows), private(generator)
    atoms = np.zeros(0) if known is None else known.values.cpu().numpy().astype(np.float64)
    steps = min(steps, size - k)
    nodes, weights = np.zeros((probes, steps)), np.zeros((probes, steps))
    basis = torch.empty(k + steps, size, dtype=products.dtype, device=products.home)
    basis[:k] = rows
    for probe in range(probes if steps else 0):
        first = clear(normal(products, generator), rows)
        basis[k] = first / torch.linalg.vector_norm(first)
        found, shares = _quadrature(products, basis, k, steps)
        nodes[probe, : len(found)], nodes[probe, len(found) :] = found, found[-1]
        weights[probe, : len(found)] = shares * (1 - k / size)
    return Density(nodes, weights, atoms, size, products.count)


def overlap(a: Tensor, b: Tensor) -> float:
    """Overlap of two subspaces, |A'B|_F^2 / min(k, m) of orthonormal columns: 1 if one holds the other, 0 if orthogonal.

    Args:
        a: [P, k] of full rank; orthonormalised here.
        b: [P, m] of full rank.

    Returns:
        In [0, 1]; min(k, m) random directions among P would give about max(k, m) / P.

    Raises:
        ArgumentError: not two matrices of the same height, finite and no wider than high.

    Example:
        >>> overlap(torch.eye(4)[:, :2], torch.eye(4)[:, 1:])
        0.5
    """
    for name, part in (("a", a), ("b", b)):
        if part.ndim != 2 or not 1 <= part.shape[1] <= part.shape[0] or not bool(torch.isfinite(part).all()):
            raise ArgumentError(f"{name}: expected finite numbers of shape [P, k], 1 <= k <= P, got shape {tuple(part.shape)}")
    if a.shape[0] != b.shape[0]:
        raise ArgumentError(f"a, b: expected the same P, got {a.shape[0]} and {b.shape[0]}")
    left, right = (torch.linalg.qr(part.detach().cpu().double())[0] for part in (a, b))
    return min(1.0, float((left.T @ right).square().sum()) / min(a.shape[1], b.shape[1]))
