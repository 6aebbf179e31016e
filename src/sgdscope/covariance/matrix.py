"""The covariance of the examples' gradients as a sum of squares of their deviations; never as a matrix [P, P]."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor

from sgdscope.errors import ArgumentError
from sgdscope.surface.rows import squares

Array = NDArray[np.float64]
Estimated = tuple[float, float]  # value, standard error

BLOCK = 2**16  # columns of the deviations that are widened to float64 at a time
GROUPS = 20  # of the jackknife over the examples


def _inner(rows: Tensor) -> Array:
    return np.asarray((rows.T @ rows).cpu())


class Sample(ABC):
    """Means over the examples at hand, and what they say about all.

    Args:
        count: m >= 2.
        population: N >= m; None for unlimited.
        mean_known: whether the mean that was taken off is that of the population.

    Raises:
        ArgumentError: fewer than two examples, or more than N.
    """

    def __init__(self, count: int, population: int | None, *, mean_known: bool = True) -> None:
        if count < 2:
            raise ArgumentError(f"count: expected at least two examples, got {count}")
        if population is not None and population < count:
            raise ArgumentError(f"population: expected at least the {count} examples at hand, got {population}")
        self.count, self.population = count, population
        self.factor = 1.0 if mean_known else count / (count - 1)
        self.shrink = 1.0 if population is None else max(0.0, 1 - count / population)

    @property
    @abstractmethod
    def norms(self) -> Array:
        """|d_i|^2, [m]."""

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


class Covariance(Sample):
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
        if deviations.ndim != 2 or len(deviations) < 2:
            raise ArgumentError(f"deviations: expected [m, P] with m >= 2 examples, got shape {tuple(deviations.shape)}")
        super().__init__(len(deviations), population, mean_known=mean_known)
        self.deviations = deviations

    @cached_property
    def norms(self) -> Array:
        """|d_i|^2, [m]."""
        return np.asarray(squares(self.deviations).cpu())

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

    @cached_property
    def square(self) -> tuple[float, Array]:
        """|C|_F^2 from products of different gradients, unbiased, and its jackknife values of each.

        From known mean: (1 - 1/N) mean_{i != j} (d_i . d_j)^2 + (1/N) mean |d_i|^4, exact where m = N. From a mean that was
        estimated: `unbiased_square`, of four or more.

        Returns:
            (s, values [m]): m s - (m - 1) s_(i), s_(i) without i; NaN where too few are left.
        """
        u, m = self.spectrum[1], self.count
        values = self.spectrum[0] * m / self.factor
        if self.factor > 1:
            return unbiased_square((u * values) @ u.T)
        own, rows = self.norms**2, u**2 @ values**2
        weight, total = (0.0 if self.population is None else 1 / self.population), float((rows - own).sum())
        value = (1 - weight) * total / (m * (m - 1)) + weight * float(own.mean())
        if m < 3:
            return value, np.full(m, np.nan)
        without = (1 - weight) * (total - 2 * (rows - own)) / ((m - 1) * (m - 2)) + weight * (own.sum() - own) / (m - 1)
        return value, m * value - (m - 1) * without

    def frobenius(self) -> Estimated:
        """|C|_F, the root of an unbiased square, with the standard error of the jackknife over the gradients.

        Returns:
            (value, standard error); NaN where the square is not above 0, or the mean was estimated from fewer than four. The
            error is 0 where m = N.
        """
        value, parts = self.square
        if not value > 0:
            return math.nan, math.nan
        spread = float(parts.std(ddof=1)) * math.sqrt(self.shrink / self.count) if self.shrink > 0 else 0.0
        return math.sqrt(value), spread / (2 * math.sqrt(value))

    def cosine(self, product: Estimated, forms: Array, norm: Estimated) -> Estimated:
        """Tr(A C) / (|A|_F |C|_F) of a symmetric A, both of C's from the same gradients.

        Var = r^2 (v / m (1 - m / N) + (e / Tr(A C))^2 + (f / |A|_F)^2) with v the variance over the gradients of
        a_i / Tr(A C) - q_i / (2 |C|_F^2), q_i the jackknife values of |C|_F^2: the two rise and fall together, and errors added
        as if independent would be too large. At a ratio near 1 this first order vanishes and covers less (83 % at 0.999).

        Args:
            product: Tr(A C), and e that does not come from the choice of the gradients, such as that of probes.
            forms: a_i = d_i'A d_i [m], or the part of it that varies.
            norm: |A|_F and its standard error f, independent.

        Returns:
            (r, standard error); NaN where |A|_F or |C|_F is not above 0.
        """
        value, parts = self.square
        if not (value > 0 and norm[0] > 0):
            return math.nan, math.nan
        scale = norm[0] * math.sqrt(value)
        ratio, sampled = product[0] / scale, 0.0
        if self.shrink > 0:
            own = self.factor * forms / scale - ratio * parts / (2 * value)
            sampled = float(own.std(ddof=1)) * math.sqrt(self.shrink / self.count)
        return ratio, math.hypot(sampled, product[1] / scale, ratio * norm[1] / norm[0])

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

    def product(self, vectors: Tensor, *, batch_size: int = 1, replacement: bool = True) -> Tensor:
        """Multiply the covariance of a batch's gradient with vectors, without forming it.

        c D'(D V) / f with f = m, or m - 1 where the mean was estimated; c = 1 / B with replacement, which for one example is C
        itself, (N - B) / (B (N - 1)) without (1 / B where N is unlimited).

        Args:
            vectors: V, [P] or [P, k].
            batch_size: B >= 1; without replacement at most N.
            replacement: how the batch is drawn.

        Returns:
            [P] or [P, k] float64, on the device of the deviations.

        Raises:
            ArgumentError: the vectors have not P rows, or the batch size is out of range.

        Cost: 4 m P k operations, in float64 over blocks of rows; memory 2 P k numbers beside the deviations.

        Source: Jastrzebski et al. 2017 (1711.04623), theorem 1; Xie, Sato & Sugiyama 2021 (2002.03495).

        Example:
            >>> d = torch.tensor([[1.0, 0.0], [-1.0, 2.0], [0.0, -2.0]], dtype=torch.float64)
            >>> Covariance(d, population=3).product(torch.tensor([3.0, 6.0]), batch_size=2, replacement=False).tolist()
            [-0.5, 3.5]
        """
        size, n = self.deviations.shape[1], self.population
        if vectors.ndim not in (1, 2) or len(vectors) != size:
            raise ArgumentError(f"vectors: expected [{size}] or [{size}, k], as the deviations, got shape {tuple(vectors.shape)}")
        if batch_size < 1 or (not replacement and n is not None and batch_size > n):
            most = "" if replacement or n is None else f" and at most the {n} examples"
            raise ArgumentError(f"batch_size: expected an integer >= 1{most}, got {batch_size}; or draw with replacement")
        wide = vectors.to(self.deviations.device, torch.float64)
        total = torch.zeros_like(wide)
        for rows in torch.split(self.deviations, max(1, BLOCK // size)):
            few = rows.double()
            total += few.T @ (few @ wide)
        left = 1.0 if replacement or n is None else (n - batch_size) / (n - 1)
        return total * (self.factor / self.count * left / batch_size)

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


def unbiased_square(products: Array) -> tuple[float, Array]:
    """Tr(S^2) of the covariance S of rows x_i whose mean is not known, without bias, from their inner products.

    The mean over all distinct i, j, k, l of ((x_i - x_j) . (x_k - x_l))^2 / 4, whatever the distribution:
    Q / (m)_2 - 2 T / (m)_3 + F / (m)_4, (m)_r = m (m - 1) ... (m - r + 1), with K_ij = x_i . x_j, r_i = sum_{j != i} K_ij,
    Q = sum_{i != j} K_ij^2, T = sum r_i^2 - Q, F = (sum r_i)^2 - 4 T - 2 Q. Any point may be taken off all x_i.

    Of sqrt(B) times gradients of batches of B: drawn with replacement, S = C with 1/N. Drawn without replacement in one epoch
    their products are correlated so that the mean over all epochs is the same form over the N single examples, exactly: unbiased
    for the population from which the examples were taken, |C|_F^2 up to terms of (Tr C)^2 / N.

    Args:
        products: K [m, m].

    Returns:
        (estimate, its jackknife values [m]); NaN below four rows, the values below five. It may be negative.

    Cost: m^3.

    Source: Chen, Zhang & Zhong 2010 (JASA 105), equation 2.2; the law of an epoch is ours.
    """

    def estimate(k: Array) -> float:
        m = len(k)
        if m < 4:
            return math.nan
        apart = k - np.diag(np.diag(k))
        rows, q = apart.sum(1), float((apart**2).sum())
        t = float(rows @ rows) - q
        f = float(rows.sum()) ** 2 - 4 * t - 2 * q
        return q / (m * (m - 1)) - 2 * t / (m * (m - 1) * (m - 2)) + f / (m * (m - 1) * (m - 2) * (m - 3))

    m, value = len(products), estimate(products)
    without = np.array([estimate(np.delete(np.delete(products, i, 0), i, 1)) for i in range(m)])
    return value, m * value - (m - 1) * without


def fieller(
    numerators: Array, denominators: Array, confidence: float = 0.95, *, positive: bool = False, beside: Array | None = None
) -> tuple[float, float, float]:
    """Ratio of two means with Fieller's interval: all r for which mean(a - r b) = 0 is not refused by Student's t test.

    Args:
        numerators: a [n], independent pairs (a_i, b_i), n >= 2.
        denominators: b [n].
        confidence: in (0, 1).
        positive: whether the ratio is known to be > 0.
        beside: covariance [2, 2] of errors of the two means that the pairs do not show, such as those of probes; None for none.

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
    quantile = float(stats.t.ppf((1 + confidence) / 2, n - 1)) ** 2
    spread = np.cov(numerators, denominators) / n + (0.0 if beside is None else beside)
    (first, cross), (_, second) = (quantile * spread).tolist()
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
