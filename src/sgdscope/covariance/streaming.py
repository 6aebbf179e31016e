"""Trace and noise scale from gradients that are not kept: a pass over the examples a chunk at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.covariance.batches import pair_values, ratio_of_sizes
from sgdscope.covariance.matrix import Sample
from sgdscope.records import Surface
from sgdscope.surface.rows import squares

Array = NDArray[np.float64]


class StreamedSample(Sample):
    """What a pass leaves of the deviations d_i = g_i - g, g the mean over all N: three numbers an example.

    The trace and the population's noise scale are those of `Covariance` and of `DrawnBatches.single`. The centre g is known
    before the pass and taken off before squaring: nothing cancels, however large |g| is beside the noise.

    Args:
        norms: |d_i|^2 [m].
        along: d_i . g [m].
        between: d_i . sum_j d_j [m].
        square: |g|^2.
        population: N >= m; None for unlimited.

    Raises:
        ArgumentError: fewer than two examples, or more than N.
    """

    def __init__(self, norms: Array, along: Array, between: Array, *, square: float, population: int | None = None) -> None:
        super().__init__(len(norms), population)
        self._norms, self.along, self.between, self.square = norms, along, between, square

    @property
    def norms(self) -> Array:
        """|d_i|^2, [m]."""
        return self._norms

    def population_estimates(self) -> dict[str, tuple[float, float]]:
        """Tr C, |G|^2 and their ratio of the population that was sampled, from pairs of examples.

        |G|^2 = mean over i != j of g_i . g_j, Tr C = mean |g_i|^2 - |G|^2, with g_i . sum_j g_j =
        d_i . sum_j d_j + m (d_i . g + |g|^2) + sum_j d_j . g.

        Returns:
            As `DrawnBatches.two_size_estimates`; empty below three examples.
        """
        if self.count < 3:
            return {}
        sums = self.between + self.count * (self.along + self.square) + self.along.sum()
        return ratio_of_sizes(*pair_values(self.norms + 2 * self.along + self.square, sums, 1))


def stream(
    surface: Surface,
    theta: Tensor,
    gradient: Tensor,
    chosen: Tensor | None = None,
    *,
    buffers: Mapping[str, Tensor] | None = None,
) -> StreamedSample | None:
    """Take the trace and the noise scale from the gradients of examples without keeping them.

    Args:
        surface: of the data.
        theta: [P].
        gradient: g [P], the mean over all examples of the surface.
        chosen: which examples, each once, at least two; None for all.
        buffers: of the point.

    Returns:
        The sample; None where it is not finite.

    Raises:
        ArgumentError: fewer than two examples.
        SurfaceError: no example has a gradient of its own.

    Cost: m gradients (with `chosen` m more, in one backward pass: sum_j d_j is known before); memory that of a chunk, 64 MiB
    (1 GiB on CUDA), and a few times P numbers.
    """
    n = surface.fingerprint().get("examples")
    g = gradient.to(theta.device, torch.float64)
    if chosen is None or len(chosen) == n:
        axes = g[:, None]  # all the deviations add up to nothing
    else:
        total = surface.weighted_grad(theta, torch.ones(len(chosen), dtype=torch.float64), chosen, buffers).double()
        axes = torch.stack([g, total.to(g) - len(chosen) * g], 1)
    norms, products = (np.asarray(found.cpu()) for found in _reduced(surface, (theta, g, axes), chosen, buffers))
    if not (np.isfinite(norms).all() and np.isfinite(products).all()):
        return None
    between = products[:, 1] if products.shape[1] > 1 else np.zeros_like(norms)
    return StreamedSample(norms, products[:, 0], between, square=float(g.square().sum()), population=n)


def _reduced(
    surface: Any, at: tuple[Tensor, Tensor, Tensor], chosen: Tensor | None, buffers: Mapping[str, Tensor] | None
) -> tuple[Tensor, Tensor]:
    """|g_i - g|^2 [m] and (g_i - g) . v_j [m, k]; at: theta, g, V."""
    theta, centre, axes = at
    if hasattr(surface, "gradient_norms"):
        found: tuple[Tensor, Tensor] = surface.gradient_norms(theta, centre, chosen, buffers, along=axes)
        return found
    norms, products = [], []
    for rows in surface.gradient_chunks(theta, chosen, buffers):
        deviations = rows - centre.to(rows)
        norms.append(squares(deviations))
        products.append((deviations @ axes.to(rows)).double())
    return torch.cat(norms), torch.cat(products)
