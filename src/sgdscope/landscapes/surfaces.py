"""Surfaces without noise whose answers are known, in float64."""

# ruff: file-ignore[unused-method-argument] -- the signatures are those of the protocol `records.Surface`
from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xxhash
from torch import Tensor

from sgdscope.errors import ArgumentError, SurfaceError
from sgdscope.ranges import positive
from sgdscope.records import Line
from sgdscope.vector import whole_indices

Buffers = Mapping[str, Tensor] | None


def vector(values: Any, name: str, size: int | None = None) -> Tensor:
    """A float64 copy [P] of a vector; its length is checked."""
    vector = torch.as_tensor(values, dtype=torch.float64).detach().clone()
    if vector.ndim != 1 or vector.numel() == 0 or (size is not None and vector.numel() != size):
        raise ArgumentError(f"{name}: expected a vector of length {size or 'at least 1'}, got shape {tuple(vector.shape)}")
    return vector


def symmetric(values: Any, name: str, size: int | None = None) -> Tensor:
    """A float64 copy [P, P] (or [N, P, P]) of symmetric matrices; shape and symmetry are checked."""
    matrix = torch.as_tensor(values, dtype=torch.float64).detach().clone()
    if matrix.ndim not in {2, 3} or matrix.shape[-1] != matrix.shape[-2] or (size is not None and matrix.shape[-1] != size):
        raise ArgumentError(f"{name}: expected square matrices of side {size or 'P'}, got shape {tuple(matrix.shape)}")
    if not torch.allclose(matrix, matrix.mT, rtol=1e-12, atol=1e-12 * float(matrix.abs().max())):
        raise ArgumentError(f"{name}: expected a symmetric matrix, got one that differs from its transpose")
    return matrix


class Dense:
    """The exact Hessian of a landscape at one point; satisfies `records.Linearization`.

    Attributes:
        value: the loss.
        gradient: [P].
        hessian: [P, P].
        products: products so far.
    """

    def __init__(self, value: float, gradient: Tensor, hessian: Tensor) -> None:
        self.value, self.gradient, self.hessian, self.products = value, gradient, hessian, 0

    def hvp(self, vectors: Tensor) -> Tensor:
        """The Hessian times vectors [P] or [P, k]."""
        self.products += 1 if vectors.ndim == 1 else vectors.shape[1]
        return self.hessian @ vectors.to(torch.float64)

    def gauss_newton(self, vectors: Tensor) -> Tensor:
        """A landscape has no outputs: raises SurfaceError."""
        raise SurfaceError("Gauss-Newton: a landscape is no function of a network's outputs; use Hessian products")

    def close(self) -> None:
        """Nothing is held."""

    def __enter__(self) -> Dense:
        """Itself."""
        return self

    def __exit__(self, *error: Any) -> None:
        """Nothing to free."""


class Landscape(ABC):
    """A loss with a known gradient and Hessian; satisfies `records.Surface`.

    Args:
        start: [P], what `theta` returns.
        constants: every number that defines the surface; they are hashed in the fingerprint.
        examples: N, 1 for a surface without noise.
    """

    def __init__(self, start: Tensor, constants: Mapping[str, Any], examples: int = 1) -> None:
        self._start = vector(start, "start")
        self._constants = dict(constants)
        self.examples = examples

    @property
    def size(self) -> int:
        """P."""
        return self._start.numel()

    @property
    def stochastic(self) -> bool:
        """Whether examples differ, so that batches mean something."""
        return False

    def theta(self) -> Tensor:
        """The point at which the surface was made, [P], a copy."""
        return self._start.clone()

    def _point(self, theta: Tensor) -> Tensor:
        if theta.shape != self._start.shape:
            raise ArgumentError(f"theta: expected shape ({self.size},), got {tuple(theta.shape)}")
        return theta.detach().to("cpu", torch.float64)

    @abstractmethod
    def value_and_grad(self, theta: Tensor, buffers: Buffers = None) -> tuple[float, Tensor]:
        """The mean loss and its gradient [P]."""

    @abstractmethod
    def hessian(self, theta: Tensor) -> Tensor:
        """The exact Hessian of the mean loss, [P, P]."""

    def value(self, theta: Tensor, buffers: Buffers = None) -> float:
        """The mean loss at theta."""
        return self.value_and_grad(theta, buffers)[0]

    def losses(self, theta: Tensor, buffers: Buffers = None) -> Tensor:
        """The loss of each example, [N]; one number where there is no noise."""
        return torch.tensor([self.value(theta, buffers)], dtype=torch.float64)

    def hvp(self, theta: Tensor, vectors: Tensor, buffers: Buffers = None) -> Tensor:
        """The Hessian at theta times vectors [P] or [P, k]."""
        return self.hessian(theta) @ vectors.to(torch.float64)

    def linearized(self, theta: Tensor, buffers: Buffers = None) -> Dense:
        """The exact Hessian at theta, for many products."""
        value, gradient = self.value_and_grad(theta, buffers)
        return Dense(value, gradient, self.hessian(theta))

    def _gradients(self, theta: Tensor) -> Tensor:
        """The gradient of each example, [N, P]; one row where there is no noise."""
        return self.value_and_grad(theta)[1][None]

    def per_example_grads(self, theta: Tensor, indices: Sequence[int] | Tensor | None = None, buffers: Buffers = None) -> Tensor:
        """The gradient of each example, or of those named in their order, [n, P]; one row where there is no noise."""
        if indices is None:
            return self._gradients(theta)
        chosen = self.rows(indices)
        return self.on_batch(chosen)._gradients(theta).expand(len(chosen), -1).clone()

    def gradient_chunks(
        self, theta: Tensor, indices: Sequence[int] | Tensor | None = None, buffers: Buffers = None
    ) -> Iterator[Tensor]:
        """The rows of `per_example_grads`, at most 1024 at a time."""
        yield from torch.split(self.per_example_grads(theta, indices), 1024)

    def weighted_grad(
        self, theta: Tensor, weights: Tensor, indices: Sequence[int] | Tensor | None = None, buffers: Buffers = None
    ) -> Tensor:
        """Sum the gradients of the examples, or of those named, with weights [n] of any sign: [P]."""
        rows, values = self.per_example_grads(theta, indices), torch.as_tensor(weights).detach().to("cpu", torch.float64)
        if values.shape != rows.shape[:1] or not bool(torch.isfinite(values).all()):
            raise ArgumentError(
                f"weights: expected {len(rows)} finite numbers, one for each example, got shape {tuple(values.shape)}"
            )
        return values @ rows

    def along(
        self,
        theta: Tensor,
        direction: Tensor,
        alphas: Sequence[float],
        buffers: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None = None,
    ) -> Line:
        """Evaluate the loss at theta + alpha direction.

        Args:
            theta: [P].
            direction: [P].
            alphas: [A], any reals.
            buffers: not used; landscapes have none.

        Returns:
            The line, with the losses of all examples where the surface is stochastic.
        """
        origin, step = self._point(theta), self._point(direction)
        steps = np.asarray(alphas, np.float64)
        samples = torch.stack([self.losses(origin + float(a) * step) for a in steps]).numpy()
        weights = np.full(samples.shape[1], 1.0 / samples.shape[1])
        if not self.stochastic:
            return Line(steps, samples[:, 0], evaluations=len(steps))
        return Line(steps, samples @ weights, samples, weights, "example", len(steps))

    def on_batch(self, batch: Any) -> Landscape:
        """The mean loss over the named examples; the surface itself where there is no noise."""
        return self

    def rows(self, indices: Sequence[int] | Tensor) -> Tensor:
        """Some of the examples as a batch: their indices, int64."""
        return whole_indices(indices, self.examples)

    def subset(self, indices: Sequence[int] | Tensor) -> Landscape:
        """The mean loss over some of the examples; the surface itself where there is no noise."""
        return self.on_batch(self.rows(indices))

    def fingerprint(self) -> dict[str, Any]:
        """JSON types: class, examples N, hash of the constants, dtype."""
        digest = xxhash.xxh3_64()
        for name, value in sorted(self._constants.items()):
            digest.update(name.encode())
            digest.update(value.numpy(force=True).tobytes() if isinstance(value, Tensor) else repr(value).encode())
        kind = type(self).__name__
        return {"surface": kind, "examples": self.examples, "data": digest.hexdigest(), "batchnorm": "none", "dtype": "float64"}


class Quadratic(Landscape):
    """The quadratic bowl (or saddle) L(theta) = offset + 1/2 (theta - c)' H (theta - c).

    Exact: gradient H (theta - c); along d: a1 = g.d, a2 = 1/2 d'Hd, alpha* = -a1 / (2 a2). Gradient descent with
    learning rate eta: theta_t - c = (I - eta H)^t (theta_0 - c); for P = 1: alpha* = 1/(eta lambda),
    cos(g_{t-1}, g_t) = sign(1 - eta lambda).

    Args:
        hessian: H [P, P], symmetric; eigenvalues of any sign.
        centre: c [P]; zero if None.
        offset: the loss at c.
        start: [P], what `theta` returns; c + 1 if None.
    """

    def __init__(self, hessian: Any, centre: Any = None, offset: float = 0.0, *, start: Any = None) -> None:
        matrix = symmetric(hessian, "hessian")
        if matrix.ndim != 2:
            raise ArgumentError(f"hessian: expected one matrix [P, P], got shape {tuple(matrix.shape)}")
        size = matrix.shape[0]
        self.centre = torch.zeros(size, dtype=torch.float64) if centre is None else vector(centre, "centre", size)
        self.matrix, self.offset = matrix, float(offset)
        origin = self.centre + 1.0 if start is None else vector(start, "start", size)
        super().__init__(origin, {"hessian": matrix, "centre": self.centre, "offset": self.offset})

    def value_and_grad(self, theta: Tensor, buffers: Buffers = None) -> tuple[float, Tensor]:
        """The loss and its gradient H (theta - c)."""
        away = self._point(theta) - self.centre
        gradient = self.matrix @ away
        return self.offset + 0.5 * float(away @ gradient), gradient

    def hessian(self, theta: Tensor) -> Tensor:
        """H, a copy."""
        return self.matrix.clone()


class Ravine(Quadratic):
    """The two-dimensional ravine 1/2 (sharp x^2 + flat y^2) in rotated and shifted coordinates.

    (x, y) = R(angle)' (theta - c), with R(angle) = [[cos, -sin], [sin, cos]]. Exact for gradient descent:
    x_t = (1 - eta sharp)^t x_0, y_t = (1 - eta flat)^t y_0; H = R diag(sharp, flat) R'.

    Args:
        sharp: curvature across the ravine, > 0.
        flat: curvature along its floor, > 0.
        angle: of the sharp direction, in radians.
        centre: c [2]; zero if None.
        offset: the loss at c.
        start: [2], what `theta` returns; c + 1 if None.
    """

    def __init__(
        self, sharp: float, flat: float, *, angle: float = 0.0, centre: Any = None, offset: float = 0.0, start: Any = None
    ) -> None:
        curvatures = torch.tensor([positive("sharp", sharp), positive("flat", flat)], dtype=torch.float64)
        c, s = np.cos(angle), np.sin(angle)
        self.rotation = torch.tensor([[c, -s], [s, c]], dtype=torch.float64)
        matrix = self.rotation @ torch.diag(curvatures) @ self.rotation.T
        super().__init__(0.5 * (matrix + matrix.T), centre, offset, start=start)

    def coordinates(self, theta: Tensor) -> Tensor:
        """The place across (x) and along (y) the ravine, [2]."""
        return self.rotation.T @ (self._point(theta) - self.centre)


def _sine(x: Tensor) -> Tensor:
    return torch.sin(x)


class River(Landscape):
    """A curved river with steep walls: L(x, y) = 1/2 sharp (y - f(x))^2 - slope x.

    Exact: the floor is y = f(x), where L = -slope x; the height above the floor at the same x is
    1/2 sharp (y - f(x))^2; with r = y - f(x), H = [[sharp (f'^2 - r f''), -sharp f'], [-sharp f', sharp]].
    The largest curvature on the floor is sharp (1 + f'(x)^2). The loss falls without end towards x -> infinity.

    Args:
        curve: f, made of torch operations on a float64 tensor of one element; sin if None. Differentiated by autograd.
        sharp: curvature across the river, > 0.
        slope: fall per unit of x, >= 0.
        start: [2], what `theta` returns; one above the floor at x = 0 if None.
    """

    def __init__(
        self, curve: Callable[[Tensor], Tensor] | None = None, *, sharp: float = 10.0, slope: float = 0.1, start: Any = None
    ) -> None:
        if not (np.isfinite(slope) and slope >= 0):
            raise ArgumentError(f"slope: expected a finite number >= 0, got {slope}")
        self.sharp, self.slope, self._curve = positive("sharp", sharp), float(slope), curve or _sine
        samples = torch.tensor([self._derivatives(float(x)) for x in np.linspace(-3, 3, 13)], dtype=torch.float64)
        origin = self.floor(0.0) + torch.tensor([0.0, 1.0], dtype=torch.float64) if start is None else vector(start, "start", 2)
        super().__init__(origin, {"sharp": self.sharp, "slope": self.slope, "curve": samples})

    def _derivatives(self, x: float) -> tuple[float, float, float]:
        """f, f' and f'' at x."""
        with torch.enable_grad():
            place = torch.tensor(x, dtype=torch.float64, requires_grad=True)
            value = self._curve(place)
            if not value.requires_grad:
                return float(value), 0.0, 0.0
            (first,) = torch.autograd.grad(value, place, create_graph=True)
            if not first.requires_grad:
                return float(value.detach()), float(first), 0.0
            (second,) = torch.autograd.grad(first, place, allow_unused=True)
        return float(value.detach()), float(first.detach()), 0.0 if second is None else float(second)

    def floor(self, x: float) -> Tensor:
        """The floor point (x, f(x))."""
        return torch.tensor([x, self._derivatives(x)[0]], dtype=torch.float64)

    def height(self, theta: Tensor) -> float:
        """The loss above the floor point with the same x, 1/2 sharp (y - f(x))^2."""
        x, y = self._point(theta).tolist()
        rest: float = y - self._derivatives(x)[0]
        return 0.5 * self.sharp * rest * rest

    def value_and_grad(self, theta: Tensor, buffers: Buffers = None) -> tuple[float, Tensor]:
        """The loss and its gradient."""
        x, y = self._point(theta).tolist()
        f, first, _ = self._derivatives(x)
        rest = y - f
        gradient = torch.tensor([-self.sharp * rest * first - self.slope, self.sharp * rest], dtype=torch.float64)
        return 0.5 * self.sharp * rest * rest - self.slope * x, gradient

    def hessian(self, theta: Tensor) -> Tensor:
        """The exact Hessian [2, 2]."""
        x, y = self._point(theta).tolist()
        f, first, second = self._derivatives(x)
        across = self.sharp * (first * first - (y - f) * second)
        return torch.tensor([[across, -self.sharp * first], [-self.sharp * first, self.sharp]], dtype=torch.float64)


class DoubleWell(Landscape):
    """A quartic double well with quadratic walls: L(x, y) = barrier ((x/width)^2 - 1)^2 + 1/2 sum_i walls_i y_i^2.

    Exact: minima with loss 0 at x = -width and x = +width; the saddle between them at x = 0 has loss `barrier`;
    curvature along x is 8 barrier/width^2 in the wells and -4 barrier/width^2 on the saddle.

    Args:
        barrier: height of the saddle, > 0.
        width: half the distance of the wells, > 0.
        walls: curvatures of the further coordinates, any number of them, each > 0.
        start: [1 + len(walls)], what `theta` returns; the left well if None.
    """

    def __init__(self, barrier: float = 1.0, width: float = 1.0, *, walls: Sequence[float] = (), start: Any = None) -> None:
        self.barrier, self.width = positive("barrier", barrier), positive("width", width)
        self.walls = torch.tensor([positive("walls", w) for w in walls], dtype=torch.float64)
        size = 1 + len(self.walls)
        origin = self.well(-1) if start is None else vector(start, "start", size)
        super().__init__(origin, {"barrier": self.barrier, "width": self.width, "walls": self.walls})

    def well(self, side: int) -> Tensor:
        """The minimum on the left (side = -1) or on the right (side = 1)."""
        place = torch.zeros(1 + len(self.walls), dtype=torch.float64)
        place[0] = side * self.width
        return place

    def value_and_grad(self, theta: Tensor, buffers: Buffers = None) -> tuple[float, Tensor]:
        """The loss and its gradient."""
        point = self._point(theta)
        x, rest = float(point[0]) / self.width, point[1:]
        gradient = torch.cat([point[:1] * (4.0 * self.barrier * (x * x - 1.0) / self.width**2), self.walls * rest])
        height = self.barrier * (x * x - 1.0) * (x * x - 1.0)
        return height + 0.5 * float(self.walls @ (rest * rest)), gradient

    def hessian(self, theta: Tensor) -> Tensor:
        """The exact Hessian, diagonal."""
        x = self._point(theta)[:1] / self.width
        return torch.diag(torch.cat([4.0 * self.barrier * (3.0 * x * x - 1.0) / self.width**2, self.walls]))


class StyblinskiTang(Landscape):
    """The Styblinski-Tang function L(theta) = 1/2 sum_i (x_i^4 - 16 x_i^2 + 5 x_i), with 2^d minima.

    Exact: stationary coordinates are the roots of 4 x^3 - 32 x + 5 = 0: the deep minimum -2.903534, the hump 0.156731
    and the shallow minimum 2.746803; the lowest loss is -39.16617 d; curvature 6 x^2 - 16 in each coordinate.

    Args:
        d: number of coordinates, at least 1.
        start: [d], what `theta` returns; zero if None.
    """

    def __init__(self, d: int = 2, *, start: Any = None) -> None:
        if d < 1:
            raise ArgumentError(f"d: expected at least 1, got {d}")
        roots = np.sort(np.roots([4.0, 0.0, -32.0, 5.0]).real)
        self.deep, self.hump, self.shallow = (float(r) for r in roots)
        super().__init__(torch.zeros(d, dtype=torch.float64) if start is None else vector(start, "start", d), {"d": d})

    @property
    def minimum(self) -> Tensor:
        """The place of the lowest loss, [d]."""
        return torch.full((self.size,), self.deep, dtype=torch.float64)

    def value_and_grad(self, theta: Tensor, buffers: Buffers = None) -> tuple[float, Tensor]:
        """The loss and its gradient."""
        x = self._point(theta)
        return 0.5 * float((x**4 - 16.0 * x**2 + 5.0 * x).sum()), 2.0 * x**3 - 16.0 * x + 2.5

    def hessian(self, theta: Tensor) -> Tensor:
        """The exact Hessian, diagonal with 6 x^2 - 16."""
        return torch.diag(6.0 * self._point(theta) ** 2 - 16.0)
