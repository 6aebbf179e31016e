"""Schedules of learning rate and batch size that exchange one for the other at equal lr / S, and their waves."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgdscope.errors import ArgumentError
from sgdscope.ranges import choice
from sgdscope.theory.inputs import Array, above, array

MISMATCH = 0.01  # of lr / S, by rounding the batch


@dataclass(frozen=True)
class Exchange:
    """A schedule in stages with the ratio lr / S of another one.

    Attributes:
        lr: of each stage [n].
        batch_size: of each stage [n].
        mismatch: the largest relative difference of lr / S that rounding the batch left.
    """

    lr: Array
    batch_size: NDArray[np.int64]
    mismatch: float

    def updates(self, examples: Any) -> Array:
        """Updates of each stage of so many examples, examples / S.

        Args:
            examples: of each stage, a number or [n].

        Returns:
            [n]; not rounded.
        """
        return np.asarray(np.asarray(examples, dtype=np.float64) / self.batch_size)

    def time(self, examples: Any) -> float:
        """Time of the SDE, the sum of lr over the updates: the same for both schedules at equal examples.

        Args:
            examples: of each stage, a number or [n].

        Returns:
            Sum over stages of lr examples / S.
        """
        return float(np.sum(self.lr * self.updates(examples)))


def exchange(lr: Any, batch_size: Any, *, to: str, fixed: float | None = None) -> Exchange:
    """The schedule with the same lr / S in every stage that moves the other of the two.

    To ``batch_size``: lr stays at ``fixed`` (by default the largest), S_i lr_fixed / lr_i, rounded: a decay of lr becomes a
    growth of the batch. To ``lr``: the batch stays at ``fixed`` (by default the smallest), lr_i S_fixed / S_i. Not lr / sqrt(S).

    Args:
        lr: of each stage [n] or a number, > 0.
        batch_size: of each stage [n] or a number, >= 1.
        to: ``batch_size`` or ``lr``: what shall change over the stages.
        fixed: the value of the other one.

    Returns:
        The schedule.

    Raises:
        ArgumentError: out of range, or a batch whose rounding changes lr / S by more than 1 %.

    Source: Jastrzebski et al. 2017 (1711.04623), section 4.4; Smith et al. 2018 (1711.00489).

    Example:
        >>> exchange([0.005, 0.001], 128, to="batch_size").batch_size.tolist()
        [128, 640]
    """
    choice("to", to, ("batch_size", "lr"))
    rates, batches = np.broadcast_arrays(
        np.atleast_1d(array("lr", lr, (0, 1))), np.atleast_1d(array("batch_size", batch_size, (0, 1)))
    )
    if rates.min() <= 0 or batches.min() < 1:
        raise ArgumentError(f"lr, batch_size: expected lr > 0 and batches >= 1, got {rates.min():.6g} and {batches.min():.6g}")
    if fixed is not None:
        above(fixed=fixed)
    ratio = rates / batches
    if to == "lr":
        kept = np.full(len(ratio), round(fixed if fixed is not None else batches.min()), dtype=np.int64)
        return Exchange(ratio * kept, kept, 0.0)
    constant = np.full(len(ratio), fixed if fixed is not None else rates.max())
    grown = np.maximum(np.rint(constant / ratio), 1).astype(np.int64)
    off = np.abs(constant / grown / ratio - 1)
    if off.max() > MISMATCH:
        stage = int(off.argmax())
        raise ArgumentError(
            f"batch_size: stage {stage} needs a batch of {constant[stage] / ratio[stage]:.4g}; rounding it changes lr / S by "
            f"{off[stage]:.2%}, more than 1 %; take larger batches"
        )
    return Exchange(constant, grown, float(off.max()))


def square_wave(low: float, high: float, *, stage: int, length: int) -> Array:
    """High for one stage, low for the next, and so on.

    Args:
        low: > 0.
        high: > low.
        stage: length of each, in epochs or updates, >= 1.
        length: of the whole, >= 1.

    Returns:
        [length].

    Raises:
        ArgumentError: out of range.

    Source: sharpest directions, section 5.2.

    Example:
        >>> square_wave(0.1, 0.5, stage=2, length=5).tolist()
        [0.5, 0.5, 0.1, 0.1, 0.5]
    """
    _wave(low, high, stage, length)
    return np.where(np.arange(length) // stage % 2 == 0, high, low)


def triangular_wave(low: float, high: float, *, stage: int, length: int) -> Array:
    """Linearly from low to high in one stage and back in the next: low + (high - low) max(0, 1 - x).

    cycle = floor(1 + i / (2 s)), x = |i / s - 2 cycle + 1|.

    Args:
        low: > 0.
        high: > low.
        stage: s, half a cycle, in updates, >= 1.
        length: of the whole, >= 1.

    Returns:
        [length].

    Raises:
        ArgumentError: out of range.

    Source: Smith 2017 (1506.01186); sharpest directions, section 4.2.

    Example:
        >>> triangular_wave(0.1, 0.5, stage=2, length=6).round(2).tolist()
        [0.1, 0.3, 0.5, 0.3, 0.1, 0.3]
    """
    _wave(low, high, stage, length)
    i = np.arange(length)
    x = np.abs(i / stage - 2 * np.floor(1 + i / (2 * stage)) + 1)
    return np.asarray(low + (high - low) * np.maximum(0, 1 - x))


def _wave(low: float, high: float, stage: int, length: int) -> None:
    above(low=low)
    if not high > low or stage < 1 or length < 1:
        raise ArgumentError(
            f"high, stage, length: expected high > low, stage >= 1 and length >= 1, got {high}, {stage}, {length}"
        )
