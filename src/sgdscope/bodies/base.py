"""What a convex body offers: the nearest of its points, how deep a point lies in it, and where a line crosses it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor

from sgdscope.errors import ArgumentError

TOLERANCE = {torch.float64: 1e-9}  # of the radius: how near the surface counts as on it; projections are at least as exact
COARSE = 1e-5  # the same in float32


class Body(ABC):
    """A convex, closed and bounded set with inner points.

    Points are [..., d]; every method takes any number of them at once and changes none. Results have the points' dtype.

    Attributes:
        centre: [d], an inner point.
        inner: radius of a ball round the centre that lies in the body, > 0.
        radius: radius of a ball round the centre that holds the body.
    """

    centre: Tensor
    inner: float
    radius: float

    @property
    def size(self) -> int:
        """The dimension d of the space."""
        return len(self.centre)

    @abstractmethod
    def _nearest(self, points: Tensor) -> Tensor:
        """The nearest points of the body, to points [n, d] of which none need lie outside."""

    @abstractmethod
    def _depth(self, points: Tensor) -> Tensor:
        """See `depth`, of checked points."""

    def project(self, points: Tensor) -> Tensor:
        """The Euclidean projection P_K(y) = argmin over x in K of |x - y|.

        Args:
            points: [..., d].

        Returns:
            The same shape; points that lie in the body come back bit for bit.

        Raises:
            ArgumentError: no tensor of floats, or its last dimension is not d.
        """
        return self._nearest(self._checked(points))

    def reflect(self, points: Tensor) -> Tensor:
        """Points outside mirrored at the tangent plane of their projection, P_K(2 P_K(y) - y); no point stays on the surface.

        Args:
            points: [..., d].

        Returns:
            The same shape; points of the body as they are. The last projection is for overshoots as large as the body.
        """
        near = self.project(points)
        return self._nearest(2 * near - points)

    def depth(self, points: Tensor) -> Tensor:
        """The radius of the largest ball round a point that lies in the body; negative outside.

        Args:
            points: [..., d].

        Returns:
            [...]; exact inside, outside no less than minus the distance.
        """
        return self._depth(self._checked(points))

    def contains(self, points: Tensor, tolerance: float | None = None) -> Tensor:
        """Which points lie in the body.

        Args:
            points: [..., d].
            tolerance: how far outside still counts; None for rounding of the points' dtype.

        Returns:
            [...] bool.
        """
        return self.depth(points) >= -self._within(points, tolerance)

    def boundary(self, points: Tensor, tolerance: float | None = None) -> Tensor:
        """Which points lie on the surface: the atoms of a projected chain.

        Args:
            points: [..., d].
            tolerance: how far from it still counts; None for rounding of the points' dtype.

        Returns:
            [...] bool.
        """
        return self.depth(points).abs() <= self._within(points, tolerance)

    @abstractmethod
    def chord(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """Where the line x + s u leaves the body: it is in for low <= s <= high.

        Args:
            points: [..., d], in the body.
            directions: [..., d], not zero.

        Returns:
            (low [...], high [...]), low <= 0 <= high.
        """

    def _within(self, points: Tensor, tolerance: float | None) -> float:
        return TOLERANCE.get(points.dtype, COARSE) * self.radius if tolerance is None else tolerance

    def _checked(self, points: Tensor) -> Tensor:
        if not isinstance(points, Tensor) or not points.is_floating_point():
            came = points.dtype if isinstance(points, Tensor) else type(points).__name__
            raise ArgumentError(f"points: expected a tensor of floats [..., {self.size}], got {came}")
        if points.shape[-1:] != self.centre.shape:
            raise ArgumentError(f"points: expected [..., {self.size}], the dimension of {self!r}, got {tuple(points.shape)}")
        return points

    def __repr__(self) -> str:
        """Kind, dimension and radius."""
        return f"{type(self).__name__}(d={self.size}, radius {self.radius:.4g})"


def vector(name: str, values: Any, size: int | None = None) -> Tensor:
    """Read a vector of finite numbers; a single number is repeated `size` times.

    Args:
        name: of the argument.
        values: [d], or a number.
        size: d, needed for a number.

    Returns:
        [d], a copy; a float32 tensor stays that, everything else becomes float64.

    Raises:
        ArgumentError: not a vector of finite numbers, or of another length.
    """
    single = isinstance(values, Tensor) and values.dtype == torch.float32
    read = numbers(name, values, torch.float32 if single else torch.float64)
    if read.ndim == 0:
        if size is None:
            raise ArgumentError(f"{name}: a single number needs size=, the dimension; or pass one number a coordinate")
        read = read.expand(size).clone()
    if read.ndim != 1 or not len(read) or (size is not None and len(read) != size):
        raise ArgumentError(f"{name}: expected [{size or 'd'}], got shape {tuple(read.shape)}")
    if bad := int((~read.isfinite()).sum()):
        raise ArgumentError(f"{name}: expected finite numbers, as a body is bounded; {bad} are not")
    return read


def numbers(name: str, values: Any, dtype: torch.dtype = torch.float64) -> Tensor:
    """Read numbers of any shape.

    Args:
        name: of the argument.
        values: a tensor, an array, lists of one length, or a number.
        dtype: of the result.

    Returns:
        A copy.

    Raises:
        ArgumentError: they are none.
    """
    try:
        return torch.as_tensor(values, dtype=dtype).detach().clone()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ArgumentError(f"{name}: expected numbers, got {values!r}: {error}") from error


def leaving(slack: Tensor, rate: Tensor) -> tuple[Tensor, Tensor]:
    """The stretch of s in which slack - s rate >= 0 holds in every column.

    Args:
        slack: [..., m], >= 0.
        rate: [..., m].

    Returns:
        (low [...], high [...]).
    """
    reach = slack.clamp(min=0) / rate
    infinite = torch.full_like(reach, torch.inf)
    return torch.where(rate < 0, reach, -infinite).amax(-1), torch.where(rate > 0, reach, infinite).amin(-1)
