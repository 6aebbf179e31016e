"""Batches as weighted sums of kept deviations: their noise along directions, its size, and the estimator of two batch sizes."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.covariance.matrix import Covariance, fieller
from sgdscope.covariance.tails import anderson_darling, hill, kurtosis

Array = NDArray[np.float64]

VECTORS = 8  # batches whose noise is looked at parameter by parameter


class DrawnBatches:
    """Gradients g_b = g + W_b D of M batches.

    Args:
        covariance: holds the deviations D [m, P].
        weights: W [M, m], or c for c times the unit matrix: each deviation is that of a batch.
        size: B, examples a batch.
    """

    def __init__(self, covariance: Covariance, weights: Array | float, size: int) -> None:
        self.covariance, self.weights, self.size = covariance, weights, size

    @property
    def count(self) -> int:
        """M."""
        return self.covariance.count if isinstance(self.weights, float) else len(self.weights)

    @classmethod
    def draw(cls, covariance: Covariance, *, count: int, size: int, generator: torch.Generator) -> DrawnBatches:
        """Draw batches with replacement from the examples at hand, and give them the mean and covariance of all N examples.

        W_b = sqrt(m / (m - 1) (N - 1) / N) (counts / B - 1 / m): the deviations of m < N examples do not add up to zero, and what
        is left, of square Tr C / m, would pass for signal. Over the draws E g_b = g exactly; over the m too Cov g_b = C / B.

        Args:
            covariance: of the examples.
            count: M.
            size: B.
            generator: advanced.

        Returns:
            The batches.
        """
        m, n = covariance.count, covariance.population or math.inf
        weights = np.empty((count, m))
        for row in weights:
            rows = torch.randint(m, (size,), generator=generator).numpy()
            row[:] = np.bincount(rows, minlength=m) / size
        return cls(covariance, (weights - 1 / m) * math.sqrt(m / (m - 1) * (1 - 1 / n)), size)

    @classmethod
    def single(cls, covariance: Covariance) -> DrawnBatches:
        """Take each example as a batch of one, for the estimate from pairs of examples.

        Args:
            covariance: of the examples.

        Returns:
            The batches.
        """
        return cls(covariance, 1.0, 1)

    @classmethod
    def recorded(cls, covariance: Covariance, size: int) -> DrawnBatches:
        """Take each deviation, which is sqrt(B) times that of one recorded batch, as a batch.

        Args:
            covariance: of the recorded batches.
            size: B.

        Returns:
            The batches.
        """
        return cls(covariance, 1 / math.sqrt(size), size)

    def along(self, projections: Array) -> Array:
        """The noise of each batch along directions, from d_i . v_j [m, k]: [M, k]."""
        noise: Array = self.weights * projections if isinstance(self.weights, float) else self.weights @ projections
        return noise

    def lengths(self) -> Array:
        """|g_b - g| of each batch, [M]."""
        if isinstance(self.weights, float):
            return self.weights * np.sqrt(self.covariance.norms)
        noise: Array = np.linalg.norm(self.weights @ self.covariance.embedding, axis=1)
        return noise

    def vectors(self, count: int) -> Array:
        """g_b - g of the first batches, parameter by parameter, [count or fewer, P]."""
        deviations = self.covariance.deviations
        if isinstance(self.weights, float):
            return np.asarray((self.weights * deviations[:count]).double().cpu())
        chosen = torch.from_numpy(self.weights[:count]).to(deviations)
        return np.asarray((chosen @ deviations).double().cpu())

    def tails(self, k: int, share: float) -> dict[str, Array]:
        """Kurtosis, Anderson-Darling and Hill's index, over the batches and over the parameters.

        Args:
            k: eigenvectors of C, along which the batches are looked at.
            share: of the values that count as the tail.

        Returns:
            ``batch_kurtosis`` and ``batch_anderson`` [k] (NaN beyond the rank), ``batch_tail_index`` (value, standard error);
            ``parameter_kurtosis``, ``parameter_anderson``, ``parameter_tail_index`` (mean over 8 batches, standard error).
        """
        along = np.full((self.count, k), np.nan)
        vectors = self.covariance.eigenvectors(k)
        along[:, : vectors.shape[1]] = self.along(self.covariance.project(vectors))
        found = {"batch_kurtosis": kurtosis(along), "batch_anderson": anderson_darling(along)}
        found["batch_tail_index"] = np.array(hill(self.lengths(), share))
        noises = self.vectors(VECTORS)
        over = {"kurtosis": kurtosis(noises.T), "anderson": anderson_darling(noises.T)}
        over["tail_index"] = np.array([hill(v, share)[0] for v in noises])
        for name, values in over.items():
            error = values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else np.nan
            found[f"parameter_{name}"] = np.array([values.mean(), error])
        return found

    def two_sizes(self, gradient: Tensor) -> tuple[Array, Array]:
        """Tr C and |G|^2 from batches of B and of all M B examples, as jackknife values of the batches.

        |G|^2 = mean over b != c of g_b . g_c and Tr C = B (mean |g_b|^2 - |G|^2), which are (M B |G_big|^2 - B |G_small|^2) /
        (M B - B) and (|G_small|^2 - |G_big|^2) / (1 / B - 1 / (M B)), each mean taken before the ratio. The value of batch b is
        M s - (M - 1) s_(b), s_(b) without it; their mean is s.

        Args:
            gradient: g [P], from which the deviations were taken; of recorded batches their own mean.

        Returns:
            (values for Tr C [M], values for |G|^2 [M]).
        """
        deviations = self.covariance.deviations
        along = self.along(np.asarray((deviations @ gradient.to(deviations)).double().cpu()))
        square, noises = float(gradient.double().square().sum()), self.lengths() ** 2
        if isinstance(self.weights, float):
            between = self.weights**2 * np.asarray((deviations @ deviations.sum(0)).double().cpu())
        else:
            mixed = self.weights @ self.covariance.embedding
            between = mixed @ mixed.sum(0)
        sums = between + self.count * (along + square) + along.sum()
        return pair_values(noises + 2 * along + square, sums, self.size)

    def two_size_estimates(self, gradient: Tensor) -> dict[str, tuple[float, float]]:
        """Tr C, |G|^2 and their ratio, the simple noise scale, from two batch sizes.

        Args:
            gradient: g [P], as in `two_sizes`.

        Returns:
            ``trace``, ``gradient_square``, ``noise_scale``: (value, standard error of the jackknife); ``interval``: Fieller's
            95 % interval of the ratio, which is positive; not bounded where |G|^2 is not separated from zero. Empty below three
            batches.
        """
        return ratio_of_sizes(*self.two_sizes(gradient)) if self.count > 2 else {}


def pair_values(own: Array, sums: Array, size: int) -> tuple[Array, Array]:
    """The jackknife values of `DrawnBatches.two_sizes`, without the products of all pairs.

    Args:
        own: |g_b|^2 [M], M >= 3.
        sums: g_b . sum_c g_c [M].
        size: B.

    Returns:
        (values for Tr C [M], values for |G|^2 [M]).

    Example:
        >>> g = np.array([[1.0, 2.0], [3.0, -1.0], [0.5, 1.0]])
        >>> traces, squares = pair_values((g**2).sum(1), g @ g.sum(0), 1)
        >>> round(float(squares.mean()), 9)  # (1 + 2.5 + 0.5) / 3, the mean over the pairs
        1.333333333
    """
    m, total = len(own), float(sums.sum())
    cross = (total - own.sum()) / (m * (m - 1))
    without = (total - 2 * sums + own - (own.sum() - own)) / ((m - 1) * (m - 2))
    squares = m * cross - (m - 1) * without
    traces = size * (m * own.mean() - (m - 1) * ((own.sum() - own) / (m - 1)) - squares)
    return traces, squares


def ratio_of_sizes(traces: Array, squares: Array) -> dict[str, tuple[float, float]]:
    """Means of jackknife values and their ratio, see `DrawnBatches.two_size_estimates`.

    Args:
        traces: values for Tr C [M].
        squares: values for |G|^2 [M].

    Returns:
        ``trace``, ``gradient_square``, ``noise_scale``, ``interval``.
    """
    ratio, low, high = fieller(traces, squares, positive=True)
    parts = {"trace": traces, "gradient_square": squares, "noise_scale": (traces - ratio * squares) / abs(squares.mean())}
    errors = {name: float(v.std(ddof=1)) / math.sqrt(len(v)) for name, v in parts.items()}
    values = {"trace": float(traces.mean()), "gradient_square": float(squares.mean()), "noise_scale": ratio}
    return {name: (values[name], errors[name]) for name in values} | {"interval": (low, high)}
