"""The covariance of the examples' gradients as a sum of squares of their deviations; never as a matrix [P, P]."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from sgdscope.errors import ArgumentError

Array = NDArray[np.float64]
Estimated = tuple[float, float]  # value, standard error

BLOCK = 2**16  # columns of the deviations that are widened to float64 at a time
GROUPS = 20  # of the jackknife over the examples


def _inner(rows: Tensor) -> Array:
    return np.asarray((rows.T @ rows).cpu())


class Covariance:
    """C = (1/f) sum_i d_i d_i' from deviations d_i [m, P] of gradients from their mean.

    From known mean: d_i = g_i - g with g the mean over all N examples, m of them drawn without replacement, f = m: each entry
    is unbiased for C = (1/N) sum over all N, and exact where m = N. Standard errors of means over the examples are
    s / sqrt(m) sqrt(1 - m / N). From a mean that was estimated from the same m: f = m - 1, N unlimited.

    Args:
        deviations: d [m, P], m >= 2; kept, not copied.
        population: N >= m; None for unlimited.
        mean_known: whether the mean that was taken off is that of the population.

    Attributes:
        deviations: d [m, P].
        count: m.

    Raises:
        ArgumentError: fewer than two rows, or more than N.

    Memory: min(m, P)^2 + 2 m min(m, P) numbers beside the deviations.
    """

    def __init__(self, deviations: Tensor, *, population: int | None = None, mean_known: bool = True) -> None:
        self.deviations, self.count = deviations, len(deviations)
        if deviations.ndim != 2 or self.count < 2:
            raise ArgumentError(f"deviations: expected [m, P] with m >= 2 examples, got shape {tuple(deviations.shape)}")
        if population is not None and population < self.count:
            raise ArgumentError(f"population: expected at least the {self.count} examples at hand, got {population}")
        self.population = population
        self.factor = 1.0 if mean_known else self.count / (self.count - 1)
        self.shrink = 1.0 if population is None else max(0.0, 1 - self.count / population)

    @cached_property
    def norms(self) -> Array:
        """|d_i|^2, [m]."""
        parts = [columns.double().square().sum(1) for columns in torch.split(self.deviations, BLOCK, dim=1)]
        return np.asarray(torch.stack(parts).sum(0).cpu())

    @cached_property
    def spectrum(self) -> tuple[Array, Array]:
        """Eigenvalues of C that can be above zero, largest first, and their unit eigenvectors in the space of the examples.

        Returns:
            (mu [r], U [m, r]) with r = min(m, P): D D' = U (f mu) U'; from D D' or D'D, whichever is smaller.
        """
        scale = self.factor / self.count
        if self.count <= self.deviations.shape[1]:
            gram = sum(_inner(columns.double().T) for columns in torch.split(self.deviations, BLOCK, dim=1))
            values, vectors = np.linalg.eigh(np.asarray(gram))
            return np.maximum(values[::-1], 0.0) * scale, vectors[:, ::-1].copy()
        wide = self.deviations.double()
        values, vectors = np.linalg.eigh(_inner(wide))
        values, columns = (
            np.maximum(values[::-1], 0.0),
            np.asarray((wide @ torch.from_numpy(vectors[:, ::-1].copy()).to(wide)).cpu()),
        )
        return values * scale, columns / np.sqrt(np.maximum(values, np.finfo(float).tiny))

    @cached_property
    def embedding(self) -> Array:
        """x_i with x_i . x_j = d_i . d_j, [m, r]: the deviations without the directions in which there are none."""
        values, vectors = self.spectrum
        return vectors * np.sqrt(values * self.count / self.factor)

    def mean(self, values: Array) -> tuple[Array, Array]:
        """Mean over the examples (times m / (m - 1) where the mean was estimated) and its standard error.

        Args:
            values: [m, ...], a number an example such as (v'd_i)^2.

        Returns:
            (v'Cv, standard error) [...].
        """
        spread = values.std(0, ddof=1) * math.sqrt(self.shrink / self.count)
        return self.factor * values.mean(0), self.factor * spread

    def trace(self) -> Estimated:
        """Tr C = mean |d_i|^2, with its standard error."""
        value, error = self.mean(self.norms)
        return float(value), float(error)

    def frobenius(self) -> float:
        """|C|_F from products of different examples, so that its square is unbiased; exact where m = N."""
        whole = float(((self.spectrum[0] * self.count / self.factor) ** 2).sum())
        own = float((self.norms**2).mean())
        pairs = (whole - own * self.count) / (self.count * (self.count - 1))
        weight = 0.0 if self.population is None else 1 / self.population
        return self.factor * math.sqrt((1 - weight) * pairs + weight * own)

    def eigenvalues(self, k: int) -> tuple[Array, Array]:
        """The largest eigenvalues, with the standard error of u'Cu at fixed u; from few examples they are too large.

        Args:
            k: how many.

        Returns:
            (values [k], standard errors [k]); NaN beyond min(m, P).
        """
        found = min(k, self.count, self.deviations.shape[1])
        values, vectors = self.spectrum
        scores = vectors[:, :found] ** 2 * values[:found] * self.count / self.factor
        result, errors = np.full(k, np.nan), np.full(k, np.nan)
        result[:found], errors[:found] = values[:found], self.mean(scores)[1]
        return result, errors

    def eigenvectors(self, k: int) -> Tensor:
        """The eigenvectors of the k largest eigenvalues that are above rounding.

        Args:
            k: how many.

        Returns:
            [P, k or fewer], unit columns in the dtype of the deviations.
        """
        values, vectors = self.spectrum
        kept = int((values[:k] > 1e-12 * values[0]).sum()) if values[0] > 0 else 0
        rotation = torch.from_numpy(vectors[:, :kept]).to(self.deviations)
        columns = self.deviations.T @ rotation
        norms: Tensor = columns.norm(dim=0)
        return columns / norms

    def project(self, vectors: Tensor) -> Array:
        """The deviations along directions.

        Args:
            vectors: V [P, k].

        Returns:
            d_i . v_j, [m, k].
        """
        return np.asarray((self.deviations @ vectors.to(self.deviations)).double().cpu())

    def shares(self, projections: Array) -> tuple[Array, Array]:
        """Tr(E_i'C E_i) / Tr C with E_i the first i directions, a ratio of means over the examples with the delta method's error.

        Args:
            projections: d_i . v_j on orthonormal directions, [m, k].

        Returns:
            (shares [k], standard errors [k]); NaN without noise.
        """
        inside, norms = np.cumsum(projections**2, 1), self.norms
        if not norms.mean() > 0:
            return np.full(projections.shape[1], np.nan), np.full(projections.shape[1], np.nan)
        ratio = inside.mean(0) / norms.mean()
        spread = (inside - ratio * norms[:, None]).std(0, ddof=1) * math.sqrt(self.shrink / self.count)
        return ratio, spread / norms.mean()

    def product_trace(
        self, matvec: Callable[[Tensor], Tensor], *, pairs: int, probes: int, generator: torch.Generator
    ) -> Estimated:
        """Estimate Tr(A C) of a symmetric A: exactly on the top eigenvectors of C, by random signs on the rest.

        sum_{j <= k} mu_j u_j'A u_j + mean over probes of w'A w, w = D'(I - U U') e / sqrt(f), e random signs [m], U the top
        eigenvectors in the space of the examples: E w w' is the rest of C.

        Args:
            matvec: v [P] -> A v [P].
            pairs: k, of the top eigenvectors.
            probes: for the rest, at least 2.
            generator: draws the signs; advanced.

        Returns:
            (Tr(A C), standard error of the probes; 0 where the pairs are all).

        Cost: k + probes products.
        """
        values, vectors = self.spectrum
        columns = self.eigenvectors(pairs)
        known = columns.shape[1]
        total = sum(float(mu) * float(u.double() @ matvec(u).double()) for mu, u in zip(values, columns.T, strict=False))
        if values[known:].sum() <= 1e-12 * values.sum():
            return total, 0.0
        top, forms = vectors[:, :known], []
        for _ in range(probes):
            signs = 2.0 * torch.randint(0, 2, (self.count,), generator=generator).double().numpy() - 1.0
            rest = (signs - top @ (top.T @ signs)) * math.sqrt(self.factor / self.count)
            w = self.deviations.T @ torch.from_numpy(rest).to(self.deviations)
            forms.append(float(w.double() @ matvec(w).double()))
        return total + float(np.mean(forms)), float(np.std(forms, ddof=1)) / math.sqrt(probes)

    def jackknife(self, statistic: Callable[[Array], Array], projections: Array) -> tuple[Array, Array]:
        """A statistic of V'CV, with the standard error of a jackknife over groups of the examples.

        sqrt((G - 1) / G sum_g (s_(g) - mean)^2) sqrt(1 - m / N), s_(g) without group g.

        Args:
            statistic: V'CV [k, k] -> numbers [n].
            projections: d_i . v_j, [m, k].

        Returns:
            (statistic, standard error), [n] each; the error is 0 where m = N.
        """
        groups = min(GROUPS, self.count)
        member = np.arange(self.count) % groups
        parts = np.stack([projections[member == g].T @ projections[member == g] for g in range(groups)])
        counts = np.bincount(member, minlength=groups)
        whole = parts.sum(0)
        value = statistic(self.factor * whole / self.count)
        if not self.shrink > 0:
            return value, np.zeros_like(value)
        without = np.stack([statistic(self.factor * (whole - p) / (self.count - n)) for p, n in zip(parts, counts, strict=True)])
        scatter = ((without - without.mean(0)) ** 2).sum(0) * (groups - 1) / groups
        return value, np.sqrt(scatter * self.shrink)


def fieller(
    numerators: Array, denominators: Array, confidence: float = 0.95, *, positive: bool = False
) -> tuple[float, float, float]:
    """Ratio of two means with Fieller's interval: all r for which mean(a - r b) = 0 is not refused by Student's t test.

    Args:
        numerators: a [n], independent pairs (a_i, b_i), n >= 2.
        denominators: b [n].
        confidence: in (0, 1).
        positive: whether the ratio is known to be > 0.

    Returns:
        (ratio of the means, low, high); where the mean of b is not separated from zero the r that are left are not bounded, and
        the interval is (-inf, inf), or of those > 0 the shortest one that holds them, (low, inf) or (0, inf).

    Raises:
        ArgumentError: fewer than two pairs, or unequal lengths.

    Source: Fieller 1954.

    Example:
        >>> ratio, low, high = fieller(np.array([1.0, 2.0, 3.0]), np.array([2.0, 2.0, 2.0]))
        >>> round(ratio, 3), round(low, 3), round(high, 3)
        (1.0, -0.242, 2.242)
    """
    if numerators.shape != denominators.shape or numerators.ndim != 1 or len(numerators) < 2:
        raise ArgumentError(
            f"numerators, denominators: expected two vectors of one length >= 2, got {numerators.shape}, {denominators.shape}"
        )
    n = len(numerators)
    a, b = float(numerators.mean()), float(denominators.mean())
    quantile = float(stats.t.ppf((1 + confidence) / 2, n - 1)) ** 2 / n
    (first, cross), (_, second) = (quantile * np.cov(numerators, denominators)).tolist()
    lead, half, last = b * b - second, a * b - cross, a * a - first
    root = half * half - lead * last
    ratio = a / b if b else math.nan
    if lead > 0 and root >= 0:
        return ratio, (half - math.sqrt(root)) / lead, (half + math.sqrt(root)) / lead
    if not positive:
        return ratio, -math.inf, math.inf
    if lead < 0 and root >= 0:  # all r but those between the two ends
        low, high = (half + math.sqrt(root)) / lead, (half - math.sqrt(root)) / lead
        return ratio, (high if low < 0 < high else 0.0), math.inf
    return ratio, 0.0, math.inf
