"""Directions at a point of a surface: what of a vector lies within them, the loss after steps along them, mini-batches there."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.curves import ROUNDING, first_rise, fit, lobatto
from sgdscope.errors import DataError, NotAvailableError, SurfaceError
from sgdscope.records import Surface, Trajectory

Array = NDArray[np.float64]
Buffers = Mapping[str, Tensor] | None

NODES = 8  # degree of the polynomial along a direction
ROUNDED = 1e-11  # of the range of the loss: `lobatto` rounds its points to 12 decimals, up to 64 / 2 times as steep


def finite_product(product: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """A Hessian product that says when it is not finite, as where the loss has no second derivative.

    Args:
        product: v [P] -> H v [P].

    Returns:
        The same product; `SurfaceError` where it holds NaN or infinity.
    """

    def matvec(vector: Tensor) -> Tensor:
        image = product(vector)
        if not torch.isfinite(image).all():
            raise SurfaceError("the Hessian is not finite at this point")
        return image

    return matvec


def private(*numbers: int) -> torch.Generator:
    """A generator of its own for each seed, step and purpose, so that no draw moves another.

    Args:
        *numbers: each >= 0, such as (seed, step, purpose); torch uses 32 bits of a seed, so they are hashed together.

    Returns:
        On the CPU.
    """
    return torch.Generator().manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


class Basis:
    """Orthonormal directions, and the parts of vectors within and outside of them.

    Args:
        vectors: [P, k], unit columns.
        along: [P]; each column is turned so that its product with it is >= 0.
    """

    def __init__(self, vectors: Tensor, along: Tensor) -> None:
        columns, along = vectors.double(), along.double()
        self.vectors = columns * torch.where(columns.T @ along < 0, -1.0, 1.0)

    def __len__(self) -> int:
        """How many directions."""
        return self.vectors.shape[1]

    def inside(self, vector: Tensor) -> Tensor:
        """The part of a vector [P] within the directions."""
        return self.vectors @ (self.vectors.T @ vector)

    def split(self, vector: Tensor) -> dict[str, Array]:
        """Take a vector apart.

        Args:
            vector: v [P], float64.

        Returns:
            ``coefficient`` e_i'v [k], ``cosine`` e_i'v / |v| [k], ``share`` sum_{j <= i} (e_j'v)^2 / |v|^2 [k], ``part``: length
            within and outside of all k, [2]. Cosines and shares of a zero vector are NaN.
        """
        inside = self.vectors.T @ vector
        coefficients, norm = inside.cpu().numpy(), float(vector.norm()) or np.nan
        rest = float((vector - self.vectors @ inside).norm())
        cosines = coefficients / norm
        part = np.array([np.linalg.norm(coefficients), rest])
        return {"coefficient": coefficients, "cosine": cosines, "share": np.cumsum(cosines**2), "part": part}

    def arms(self, gradient: Tensor, random: torch.Generator) -> Iterator[Tensor]:
        """Directions of steps that are held against those along each e_i.

        Args:
            gradient: g [P], float64.
            random: draws r, uniform on the sphere; advanced.

        Yields:
            (r'g) r; the part of g within the directions; the part outside; g.
        """
        r = torch.randn(len(gradient), generator=random, dtype=torch.float64).to(gradient)
        inside = self.inside(gradient)
        yield from (r * (float(r @ gradient) / float(r @ r)), inside, gradient - inside, gradient)


class Probe:
    """The loss at steps from one point, each evaluation counted.

    Args:
        surface: the loss.
        theta: the point [P], float64.
        buffers: as `Trajectory.buffers` gives them, or None.
        eps: of the precision in which the loss is computed.

    Attributes:
        evaluations: passes over the surface's data so far.
    """

    def __init__(self, surface: Surface, theta: Tensor, buffers: Buffers, *, eps: float) -> None:
        self.surface, self.theta, self.buffers, self.eps = surface, theta, buffers, eps
        self.evaluations = 0

    def losses(self, direction: Tensor, steps: Sequence[float] | Array) -> Array:
        """Evaluate L(theta + s direction).

        Args:
            direction: [P], float64.
            steps: s [n].

        Returns:
            [n].
        """
        self.evaluations += len(steps)
        return np.array([self.surface.value(self.theta + float(s) * direction, self.buffers) for s in steps])

    def along(self, direction: Tensor, steps: Array, *, tolerance: float) -> tuple[Array, float]:
        """Evaluate L(theta + s direction) at many s, through 9 Chebyshev points of their range (with 0) where that does.

        The polynomial serves if its estimated error (`curves.fit`, from its coefficients and from those of at least 30 examples)
        is at most tolerance x the range of the loss at the nodes, or rounding; else each distinct s is evaluated.

        Args:
            direction: [P], float64.
            steps: s, any shape.
            tolerance: >= 0; 0 evaluates each.

        Returns:
            (losses in the shape of steps, estimated error; 0 where each was evaluated).
        """
        wanted, back = np.unique(steps, return_inverse=True)
        scale = float(np.abs(wanted).max(initial=0))
        if tolerance and 0 < scale < np.inf and len(wanted) > NODES + 1:
            grid = np.unique(np.array([0.0, *(wanted / scale)]))
            pair = (self.buffers, self.buffers) if self.buffers else None
            nodes = lobatto(grid[0], grid[-1], NODES).tolist()
            line = self.surface.along(self.theta, scale * direction, nodes, pair)
            self.evaluations += line.evaluations or len(nodes)
            if line.samples is not None and np.isfinite(line.values).all():
                spread = float(np.ptp(line.values))
                floor = ROUNDING * self.eps * float(np.abs(line.values).max()) + ROUNDED * spread
                found = fit(tuple(grid.tolist()), line.values, floor, line.samples, line.weights)
                error = float(max(2 * floor, found.decay, found.scatter))
                if not np.isnan(found.scatter) and error <= max(tolerance * spread, 2 * floor):
                    return found.values[np.searchsorted(grid, wanted / scale)][back].reshape(steps.shape), error
        return self.losses(direction, wanted)[back].reshape(steps.shape), 0.0

    def first_rise(self, direction: Tensor, start: float) -> float:
        """Find the step along a direction at which the loss comes to exceed L(theta), to 1 % (`curves.first_rise`).

        Args:
            direction: [P], float64.
            start: first step tried, > 0.

        Returns:
            The step, > 0; NaN where the loss does not rise.
        """
        return first_rise(lambda s: float(self.losses(direction, [s])[0]), start)


def minibatches(
    trajectory: Trajectory,
    surface: Surface,
    step: int,
    *,
    span: tuple[int, int],
    count: int,
    size: int | None,
    generator: torch.Generator,
) -> list[Surface]:
    """Make the surfaces of mini-batches in training mode: drawn from the data, else those that were recorded.

    Each batch is drawn without replacement, independently of the others; a batch of all examples is made once and repeated.
    Where the data came in batches, or no size is known: up to `count` recorded batches of the span, from `step` on, then those
    before it.

    Args:
        trajectory: the walk, for its batches.
        surface: the data.
        step: t.
        span: first and last point of the window; its updates are first..last - 1.
        count: M, how many.
        size: B, examples a batch; None if not known.
        generator: advanced.

    Returns:
        The surfaces, M or fewer; empty where batches can neither be drawn nor were recorded.
    """
    examples: Any = surface.fingerprint().get("examples")
    try:
        if size and examples and size >= examples:
            return [surface.on_batch(surface.rows(torch.arange(examples)))] * count
        if size and examples:
            drawn = (torch.randperm(examples, generator=generator)[:size] for _ in range(count))
            return [surface.on_batch(surface.rows(rows)) for rows in drawn]
    except DataError:
        pass  # the data came in batches
    try:
        return [surface.on_batch(trajectory.batch(t)) for t in [*range(step, span[1]), *range(span[0], step)][:count]]
    except NotAvailableError:
        return []


def noise_share(coefficients: Array, gradients: Sequence[Tensor]) -> tuple[Array, Array]:
    """Share of the gradient noise within the first i directions.

    sum_b |E_i'(g_b - g)|^2 / sum_b |g_b - g|^2, g the mean of the g_b: a ratio of means over the batches, with the error of the
    delta method, sqrt(M / (M - 1) sum_b (a_b - ratio n_b)^2) / sum_b n_b.

    Args:
        coefficients: e_i'g_b [k, M].
        gradients: g_b, M of [P].

    Returns:
        (share [k], its standard error [k]); NaN where the batches do not differ.
    """
    mean, m = torch.stack(list(gradients)).mean(0), len(gradients)
    noise = np.array([float((g - mean).square().sum()) for g in gradients])
    total = float(noise.sum())
    if not total > 1e-24 * sum(float(g.square().sum()) for g in gradients):
        return np.full(len(coefficients), np.nan), np.full(len(coefficients), np.nan)
    inside = np.cumsum((coefficients - coefficients.mean(1, keepdims=True)) ** 2, 0)
    ratio = inside.sum(1) / total
    return ratio, np.sqrt(((inside - ratio[:, None] * noise) ** 2).sum(1) * m / (m - 1)) / total


def over_batches(**values: Array) -> dict[str, Array]:
    """Means over the batches and their standard errors s / sqrt(M), s with M - 1.

    Args:
        **values: name -> [..., M].

    Returns:
        `name` and `<name>_stderr` [...] of each; the error is NaN for one batch.
    """
    means = {name: v.mean(-1) for name, v in values.items()}
    spreads = {name: v.std(-1, ddof=1) if v.shape[-1] > 1 else v[..., 0] * np.nan for name, v in values.items()}
    return means | {f"{name}_stderr": s / math.sqrt(values[name].shape[-1]) for name, s in spreads.items()}


def chance_cosine(size: int) -> float:
    """Mean |cos| of a random direction in P dimensions with any other, Gamma(P / 2) / (sqrt(pi) Gamma((P + 1) / 2)).

    Args:
        size: P.

    Returns:
        The mean; sqrt(2 / (pi P)) for large P.

    Example:
        >>> round(chance_cosine(3), 12), round(chance_cosine(10_000) * math.sqrt(5_000 * math.pi), 4)
        (0.5, 1.0)
    """
    return math.exp(math.lgamma(size / 2) - math.lgamma((size + 1) / 2)) / math.sqrt(math.pi)
