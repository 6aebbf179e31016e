"""A minimum, the saddle over which a walk leaves it, and when the formulas of rare events hold for them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from sgdscope.errors import ArgumentError
from sgdscope.ranges import choice
from sgdscope.theory.inputs import above, array, symmetric
from sgdscope.theory.prediction import Time

DETECTIONS = ("well", "saddle")
HIGH = 3.0  # barrier over noise below which escape is no rare event, and the formulas of low noise are off by tens of percent


@dataclass(frozen=True)
class Barrier:
    """A minimum a, the saddle b over which a walk leaves it, and what the formulas need of both.

    Attributes:
        height: L(b) - L(a) > 0.
        minimum: eigenvalues of H_a [d], all > 0.
        saddle: eigenvalues of H_b [d], exactly one < 0, none 0.
        along: e^T H_a e, curvature of the minimum along the direction of escape e; by default that of d = 1.
    """

    height: float
    minimum: Any
    saddle: Any
    along: float | None = None

    def __post_init__(self) -> None:
        above(height=self.height)
        for name in ("minimum", "saddle"):
            object.__setattr__(self, name, np.sort(np.atleast_1d(array(name, getattr(self, name), (0, 1)))))
        if self.minimum[0] <= 0:
            raise ArgumentError(f"minimum: expected curvatures > 0, got {self.minimum[0]:.6g}; leave flat directions out of both")
        if (self.saddle < 0).sum() != 1 or (self.saddle == 0).any() or len(self.saddle) != len(self.minimum):
            raise ArgumentError(
                f"saddle: expected {len(self.minimum)} curvatures, one < 0 and the others > 0, got {self.saddle.tolist()}"
            )
        if self.along is None:
            if len(self.minimum) > 1:
                raise ArgumentError("along: expected the curvature of the minimum along the escape in more than one dimension")
            object.__setattr__(self, "along", float(self.minimum[0]))
        above(along=self.uphill)

    @classmethod
    def between(cls, height: float, hessian_minimum: Any, hessian_saddle: Any) -> Barrier:
        """The barrier by its two Hessians; the escape is along the eigenvector of the negative curvature of the saddle.

        Args:
            height: L(b) - L(a) > 0.
            hessian_minimum: H_a [d, d], positive definite.
            hessian_saddle: H_b [d, d], one negative eigenvalue.

        Returns:
            The barrier.

        Raises:
            ArgumentError: the Hessians do not fit each other, or are not those of a minimum and a saddle.
        """
        at, over = symmetric("hessian_minimum", hessian_minimum), symmetric("hessian_saddle", hessian_saddle)
        if at.shape != over.shape:
            raise ArgumentError(f"hessian_saddle: expected the shape of hessian_minimum, {at.shape}, got {over.shape}")
        values, vectors = np.linalg.eigh(over)
        return cls(height, np.linalg.eigvalsh(at), values, float(vectors[:, 0] @ at @ vectors[:, 0]))

    @property
    def uphill(self) -> float:
        """Curvature of the minimum along the escape.

        Returns:
            H_ae > 0, loss/theta^2.
        """
        return float(self.along or 0.0)

    @property
    def downhill(self) -> float:
        """Size of the negative curvature of the saddle.

        Returns:
            |H_be| > 0, loss/theta^2.
        """
        return float(-self.saddle[0])

    @property
    def widening(self) -> float:
        """Logarithm of sqrt(-det H_b / det H_a).

        Returns:
            The logarithm; negative where the pass is wider than the valley.
        """
        return float(np.log(np.abs(self.saddle)).sum() - np.log(self.minimum).sum()) / 2

    def mixed(self, weight: float, power: float = 1.0) -> float:
        """The curvatures as the path sees them, s / H_ae^p + (1 - s) / |H_be|^p.

        Args:
            weight: s, the share of the barrier that is climbed in the noise of the minimum, 0 <= s <= 1.
            power: p, 1 for SGD and 1/2 for Adam.

        Returns:
            The sum, in (loss/theta^2)^-p.

        Raises:
            ArgumentError: the weight is out of range.
        """
        if not 0 <= weight <= 1:
            raise ArgumentError(
                f"share: expected 0 <= s <= 1, got {weight}; outside, no piecewise noise has it (`path_exponent`)"
            )
        return float(weight / self.uphill**power + (1 - weight) / self.downhill**power)


def detected(time: Time, detect: str) -> Time:
    """The time as it is detected: in the next well, or half of it at the saddle.

    Args:
        time: to the next well.
        detect: ``well`` or ``saddle``.

    Returns:
        The time, its convention completed.

    Raises:
        ArgumentError: another word.
    """
    choice("detect", detect, DETECTIONS)
    half = math.log(2) if detect == "saddle" else 0.0
    return replace(time, log=time.log - half, convention=f"{time.convention}; detected at the {detect}")


def rare(exponent: float) -> tuple[str, ...]:
    """Whether escape is a rare event.

    Args:
        exponent: of the escape time.

    Returns:
        The reason why not, or nothing.
    """
    if exponent >= HIGH:
        return ()
    return (f"the barrier is only {exponent:.3g} times the noise: no rare event, the formula of low noise is off",)


def coarse(barrier: Barrier, lr: float) -> tuple[str, ...]:
    """Whether the steps are small beside the valley and the pass.

    Args:
        barrier: between the valleys.
        lr: learning rate.

    Returns:
        The reason why not, or nothing.
    """
    edge = lr * max(barrier.uphill, barrier.downhill)
    if edge < 0.5:
        return ()
    return (f"lr times the curvature is {edge:.3g}: steps are too coarse for a formula of continuous time",)
