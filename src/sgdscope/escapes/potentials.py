"""Losses for many walkers at once: wells and functions with known barriers, and any of them made sharper."""

# ruff: file-ignore[unused-method-argument] -- every potential takes the request, also one that cannot answer it
from __future__ import annotations

from abc import ABC, abstractmethod
from math import isfinite, sqrt

import numpy as np
import torch
from torch import Tensor

from sgdscope.errors import ArgumentError

F64 = torch.float64


def above(name: str, value: float, least: float = 0.0, most: float = float("inf")) -> float:
    """A finite number in (least, most)."""
    if isinstance(value, bool) or not isfinite(value) or not least < value < most:
        side = f"> {least:g}" if most == float("inf") else f"between {least:g} and {most:g}"
        raise ArgumentError(f"{name}: expected a finite number {side}, got {value!r}")
    return float(value)


def count(name: str, value: int, least: int = 1) -> int:
    """A whole number of at least `least`."""
    if isinstance(value, bool) or int(value) != value or value < least:
        raise ArgumentError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    return int(value)


class Potential(ABC):
    """A loss L over rows of parameters: each of W walkers has a row of thetas [W, d], float64.

    Args:
        start: [d], where walkers begin: a minimum.
    """

    def __init__(self, start: Tensor) -> None:
        self._start = start.detach().to(F64).clone()

    @property
    def size(self) -> int:
        """The number of parameters d."""
        return self._start.numel()

    def start(self) -> Tensor:
        """The minimum in which walkers begin, [d], a copy."""
        return self._start.clone()

    @abstractmethod
    def value(self, thetas: Tensor) -> Tensor:
        """The loss of each row, [W]."""

    @abstractmethod
    def gradient(self, thetas: Tensor) -> Tensor:
        """The gradient of each row, [W, d]."""

    def minibatch(self, thetas: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
        """The gradient of each row over its own fresh batch, [W, d]; a potential without examples refuses."""
        raise ArgumentError(f"noise: {type(self).__name__} has no examples to draw batches of; prescribe the noise instead")

    def sharpness(self) -> float:
        """The largest |H| along an axis at the start; one without a known |H| refuses."""
        return float(self.curvature(self._start[None]).max())

    def curvature(self, thetas: Tensor, smooth: float | None = None) -> Tensor:
        """|H| along each axis, [W, d]: piecewise constant, or |H(theta)| + `smooth`; one without a known |H| refuses."""
        raise ArgumentError(f"noise: no |H| is known of {type(self).__name__}; use Prescribed, Minibatch or White noise")


class Wells(Potential):
    """Independent double wells along each axis: L(x) = sum_i barrier ((u_i^2 - 1)^2), u = x for x < 0 and stretch x for x > 0.

    Exact: minima at -1 and 1/stretch with loss 0 and curvatures 8 barrier and 8 barrier stretch^2; saddle at 0 of height
    `barrier`, curvature -4 barrier on the left of it and -4 barrier stretch^2 on the right; inflections at |u| = 1/sqrt 3,
    where 4/9 of the barrier are climbed. barrier = 1/4 and stretch = 1 is the well of S1 and S2.

    Args:
        d: number of independent wells.
        barrier: height of the saddles, > 0.
        stretch: how much narrower the wells on the right are, > 0; they are stretch^2 times as sharp and equally deep.

    Source: diffusion_langevin_distributed, sections S1, S2 and S8; the stretched half is ours, for X11.
    """

    SHARE = 4 / 9  # (L(c) - L(a)) / barrier at the inflection c

    def __init__(self, d: int = 1, *, barrier: float = 0.25, stretch: float = 1.0) -> None:
        self.barrier, self.stretch = above("barrier", barrier), above("stretch", stretch)
        self._even = stretch == 1
        super().__init__(torch.full((count("d", d),), -1.0, dtype=F64))

    def _unstretched(self, thetas: Tensor) -> tuple[Tensor, Tensor | float]:
        if self._even:
            return thetas, 1.0
        factor = torch.where(thetas > 0, self.stretch, 1.0).to(F64)
        return factor * thetas, factor

    def value(self, thetas: Tensor) -> Tensor:
        """The loss of each row, [W]."""
        u, _ = self._unstretched(thetas)
        return self.barrier * ((u * u - 1.0) ** 2).sum(-1)

    def gradient(self, thetas: Tensor) -> Tensor:
        """4 barrier u (u^2 - 1) du/dx, [W, d]."""
        u, factor = self._unstretched(thetas)
        return (4.0 * self.barrier * factor) * u * (u * u - 1.0)

    def curvature(self, thetas: Tensor, smooth: float | None = None) -> Tensor:
        """|H|: 8 barrier beyond the inflection and 4 barrier inside (x stretch^2 on the right), or |H(x)| + smooth."""
        u, factor = self._unstretched(thetas)
        square = u * u
        if smooth is not None:
            return (4.0 * self.barrier * factor * factor) * (3.0 * square - 1.0).abs() + smooth
        scale = 4.0 * self.barrier * factor * factor
        return scale * torch.where(square > 1 / 3, 2.0, 1.0)


class Trough(Potential):
    """A double well along x with a wall in y that changes: L = (x^2 - 1)^2 / 4 + kappa(x) y^2 / 2.

    kappa(x) = saddle + (well - saddle) min(x^2, 1). For white noise the n-dimensional Kramers time is sqrt(saddle / well)
    times that of one dimension, as D -> 0.

    Args:
        well: kappa at the minima, > 0.
        saddle: kappa at the saddle, > 0.

    Source: diffusion_langevin_distributed, section S9.
    """

    def __init__(self, well: float, saddle: float) -> None:
        self.well, self.saddle = above("well", well), above("saddle", saddle)
        super().__init__(torch.tensor([-1.0, 0.0], dtype=F64))

    def value(self, thetas: Tensor) -> Tensor:
        """The loss of each row, [W]."""
        x, y = thetas.unbind(-1)
        kappa = self.saddle + (self.well - self.saddle) * (x * x).clamp(max=1.0)
        return (x * x - 1.0) ** 2 / 4 + 0.5 * kappa * y * y

    def gradient(self, thetas: Tensor) -> Tensor:
        """The gradient of each row, [W, 2]."""
        x, y = thetas.unbind(-1)
        square = x * x
        change = self.well - self.saddle
        kappa = self.saddle + change * square.clamp(max=1.0)
        along = x * (square - 1.0) + torch.where(square < 1.0, change * x, 0.0) * y * y
        return torch.stack([along, kappa * y], -1)


class Tang(Potential):
    """The Styblinski-Tang function f(x) = 1/2 sum_i (x_i^4 - 16 x_i^2 + 5 x_i); a batch is the mean of f(theta - z), z ~ N(0, I).

    Exact in each coordinate: minimum -2.903534 (curvature 34.5831), saddle 0.156731 (-15.8526), barrier 39.36178,
    inflections +-1.632993. Minibatch gradients are those of the paper's per-sample loss; their mean is not f' but
    2 theta^3 - 10 theta + 2.5, with minimum -2.35191 and saddle 0.25325 (specification 1.3).


    Args:
        d: number of coordinates.
        population: start at the minimum of the mean of the per-sample losses rather than at that of f.

    Source: diffusion_langevin_distributed, sections 1.3 and S10.
    """

    def __init__(self, d: int = 10, *, population: bool = False) -> None:
        roots = np.sort(np.roots([4.0, 0.0, -20.0 if population else -32.0, 5.0]).real)
        self.minimum, self.saddle = float(roots[0]), float(roots[1])
        self._sharpness = 6.0 * self.minimum**2 - (10.0 if population else 16.0)
        super().__init__(torch.full((count("d", d),), self.minimum, dtype=F64))

    def sharpness(self) -> float:
        """The curvature at the start: of f, or of the mean of the per-sample losses."""
        return self._sharpness

    @property
    def barrier(self) -> float:
        """f(saddle) - f(minimum) of one coordinate of f itself."""
        a, b = (0.5 * (x**4 - 16 * x * x + 5 * x) for x in (self.minimum, self.saddle))
        return b - a

    def value(self, thetas: Tensor) -> Tensor:
        """F of each row, [W]."""
        square = thetas * thetas
        return 0.5 * (square * square - 16.0 * square + 5.0 * thetas).sum(-1)

    def gradient(self, thetas: Tensor) -> Tensor:
        """2 theta^3 - 16 theta + 5/2, [W, d]."""
        return (2.0 * thetas * thetas - 16.0) * thetas + 2.5

    def minibatch(self, thetas: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
        """The mean of f'(theta - z) over B draws of z for each row, [W, d]."""
        draws = torch.randn(batch_size, *thetas.shape, generator=generator, dtype=F64)
        return self.gradient(thetas - draws).mean(0)

    def curvature(self, thetas: Tensor, smooth: float | None = None) -> Tensor:
        """|H|: that of the minimum beyond the inflection and that of the saddle inside it, or |6 theta^2 - 16| + smooth."""
        square = thetas * thetas
        if smooth is not None:
            return (6.0 * square - 16.0).abs() + smooth
        return torch.where(square > 8 / 3, 34.5831, 15.8526).to(F64)


class Raised(Potential):
    """Another potential, lifted by a constant: L + offset; the barrier stays, the log barrier log L(b)/L(a) does not.

    Args:
        inner: the potential.
        offset: loss added everywhere.
    """

    def __init__(self, inner: Potential, offset: float) -> None:
        self.inner, self.offset = inner, float(offset)
        super().__init__(inner.start())

    def value(self, thetas: Tensor) -> Tensor:
        """L + offset, [W]."""
        return self.inner.value(thetas) + self.offset

    def gradient(self, thetas: Tensor) -> Tensor:
        """That of L, [W, d]."""
        return self.inner.gradient(thetas)

    def minibatch(self, thetas: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
        """That of L, [W, d]."""
        return self.inner.minibatch(thetas, batch_size, generator)

    def sharpness(self) -> float:
        """That of L."""
        return self.inner.sharpness()

    def curvature(self, thetas: Tensor, smooth: float | None = None) -> Tensor:
        """That of L, [W, d]."""
        return self.inner.curvature(thetas, smooth)


class Rescaled(Potential):
    """Another potential made k times as sharp at the same barriers: L_k(theta) = L(sqrt(k) theta).

    The minimum moves to theta* / sqrt(k), the Hessian is k times as large everywhere, losses are unchanged. Valleys are
    scaled along: `valley.scaled(k)`.

    Args:
        inner: any potential, a network's too.
        k: factor on the curvature, > 0.

    Source: diffusion_langevin_distributed, section 1.2.
    """

    def __init__(self, inner: Potential, k: float) -> None:
        self.inner, self.k, self._root = inner, above("k", k), sqrt(above("k", k))
        super().__init__(inner.start() / self._root)

    def value(self, thetas: Tensor) -> Tensor:
        """L(sqrt(k) theta), [W]."""
        return self.inner.value(self._root * thetas)

    def gradient(self, thetas: Tensor) -> Tensor:
        """sqrt(k) grad L(sqrt(k) theta), [W, d]."""
        return self._root * self.inner.gradient(self._root * thetas)

    def minibatch(self, thetas: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
        """sqrt(k) times the batch gradient at sqrt(k) theta, [W, d]."""
        return self._root * self.inner.minibatch(self._root * thetas, batch_size, generator)

    def sharpness(self) -> float:
        """That of L, k times as large."""
        return self.k * self.inner.sharpness()

    def curvature(self, thetas: Tensor, smooth: float | None = None) -> Tensor:
        """That of L at sqrt(k) theta, k times as large, [W, d]."""
        return self.k * self.inner.curvature(self._root * thetas, smooth)
