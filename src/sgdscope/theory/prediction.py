"""What a closed form says: a number, the convention it is in, and why it may not hold here."""

from __future__ import annotations

import math
from dataclasses import dataclass

from sgdscope.theory.inputs import above


@dataclass(frozen=True)
class Prediction:
    """A predicted number.

    Attributes:
        value: the number, in the unit that the function names.
        convention: how the formula reads where there are several readings.
        reasons: why the formula does not hold here; empty where it does.
        recalled: the formula was recalled and could not be checked against its source.
    """

    value: float
    convention: str = ""
    reasons: tuple[str, ...] = ()
    recalled: bool = False

    @property
    def valid(self) -> bool:
        """Nothing speaks against the formula here.

        Returns:
            Whether there are no reasons.
        """
        return not self.reasons


@dataclass(frozen=True)
class Time:
    """A predicted mean time, kept as its logarithm: a barrier makes it larger than floats are.

    Attributes:
        log: natural logarithm of the mean time, in units of learning rate x updates.
        convention: how the noise and the detection are read.
        reasons: why the formula does not hold here; empty where it does.
        recalled: the formula was recalled and could not be checked against its source.
    """

    log: float
    convention: str = ""
    reasons: tuple[str, ...] = ()
    recalled: bool = False

    @property
    def value(self) -> float:
        """The mean time.

        Returns:
            exp(log), in units of learning rate x updates; infinite where that overflows.
        """
        return math.exp(self.log) if self.log < 709.0 else math.inf

    @property
    def valid(self) -> bool:
        """Nothing speaks against the formula here.

        Returns:
            Whether there are no reasons.
        """
        return not self.reasons

    def updates(self, lr: float) -> float:
        """The mean number of updates, time / lr.

        Args:
            lr: learning rate, > 0.

        Returns:
            exp(log) / lr, in updates.

        Raises:
            ArgumentError: lr is out of range.

        Example:
            >>> round(Time(log=2.0).updates(0.1), 3)
            73.891
        """
        above(lr=lr)
        return self.value / lr
