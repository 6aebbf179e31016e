"""What it means to be inside a valley: a box, a threshold past the saddle, or a level of the loss."""

# ruff: file-ignore[unused-method-argument] -- every valley is asked with the loss, also one that needs none
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import isfinite, sqrt
from typing import Protocol

from torch import Tensor

from sgdscope.errors import ArgumentError

Value = Callable[[Tensor], Tensor]


class Valley(Protocol):
    """A region of parameters; a walker that is not finite is outside of every one."""

    def inside(self, thetas: Tensor, value: Value) -> Tensor:
        """Which rows of thetas [W, d] lie inside, bool [W]; `value` gives the losses [W] of rows."""

    def scaled(self, k: float) -> Valley:
        """The same valley of L(sqrt(k) theta): lengths over sqrt(k), losses as they are."""


@dataclass(frozen=True)
class Box:
    """Every coordinate within `radius` of the centre: |theta_i - centre_i| <= radius.

    Attributes:
        centre: [d].
        radius: > 0.
    """

    centre: Tensor
    radius: float = 0.05  # specification 1.3 [M]: the paper's box for networks

    def __post_init__(self) -> None:
        """The radius is checked."""
        if not (isfinite(self.radius) and self.radius > 0):
            raise ArgumentError(f"radius: expected a finite number > 0, got {self.radius}")

    def inside(self, thetas: Tensor, value: Value) -> Tensor:
        """Which rows lie in the box, bool [W]."""
        return ((thetas - self.centre).abs() <= self.radius).all(-1)

    def scaled(self, k: float) -> Box:
        """Centre and radius over sqrt(k)."""
        return Box(self.centre / sqrt(k), self.radius / sqrt(k))


@dataclass(frozen=True)
class Threshold:
    """A coordinate on one side of a number: theta_i < at (> at where `above`); without a coordinate all of them.

    Put it past the saddle: detection at the saddle takes half of the Kramers time, and is late by O(sqrt(lr D)).

    Attributes:
        at: the number.
        coordinate: i; None asks it of every coordinate, so that the first one to pass ends the stay.
        above: whether inside means above.
    """

    at: float
    coordinate: int | None = None
    above: bool = False

    def __post_init__(self) -> None:
        """The number is checked."""
        if not isfinite(self.at):
            raise ArgumentError(f"at: expected a finite number, got {self.at}")

    def inside(self, thetas: Tensor, value: Value) -> Tensor:
        """Which rows lie on the valley's side, bool [W]."""
        one = self.coordinate is not None or thetas.shape[-1] == 1
        side = thetas[..., self.coordinate or 0] if one else thetas
        within = side > self.at if self.above else side < self.at
        return within if one else within.all(-1)

    def scaled(self, k: float) -> Threshold:
        """The number over sqrt(k)."""
        return Threshold(self.at / sqrt(k), self.coordinate, self.above)


@dataclass(frozen=True)
class LossLevel:
    """A loss of at most `level`: the valley up to that height. It costs a loss a walker and update.

    Attributes:
        level: of the loss over all examples.
    """

    level: float

    def __post_init__(self) -> None:
        """The level is checked."""
        if not isfinite(self.level):
            raise ArgumentError(f"level: expected a finite number, got {self.level}")

    def inside(self, thetas: Tensor, value: Value) -> Tensor:
        """Which rows have a loss of at most `level`, bool [W]."""
        return value(thetas) <= self.level

    def scaled(self, k: float) -> LossLevel:
        """Itself: losses do not change."""
        return self


def outside(valley: Valley, theta: Tensor, value: Value) -> bool:
    """Whether one point [d] lies outside."""
    return not bool(valley.inside(theta.reshape(1, -1), value)[0])
