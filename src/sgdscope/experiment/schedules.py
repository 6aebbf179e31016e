"""What a phase does at each of its updates: the learning rate, the batch size and the examples; pure functions of the update.

Nothing of this is stored with a run: the batch of any update is known from the description alone.
"""

from __future__ import annotations

import bisect
import math
from typing import Annotated, Literal

import numpy as np
import torch
import xxhash
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt, model_validator
from torch import Tensor


class Part(BaseModel):
    """A table of an experiment's description: unknown keys and wrong types are errors, nothing is converted."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


def triangle(update: int, period: int) -> float:
    """The symmetric triangular wave 0 -> 1 -> 0.

    Args:
        update: t >= 0.
        period: updates a cycle.

    Returns:
        2p for p <= 1/2, else 2 (1 - p), with p = (t mod period) / period.

    Example:
        >>> [triangle(t, 4) for t in range(5)]
        [0.0, 0.5, 1.0, 0.5, 0.0]
    """
    p = (update % period) / period
    return 2 * p if 2 * p <= 1 else 2 * (1 - p)


class Constant(Part):
    """The learning rate of the phase, unchanged."""

    kind: Literal["constant"] = "constant"

    def lr(self, update: int, base: float, length: int) -> float:  # ruff: ignore[unused-method-argument] - one signature for all schedules
        """The learning rate of an update of the phase."""
        return base


class Cyclic(Part):
    """The triangular schedule: low -> high in the first half of a period, high -> end (default low) in the second.

    Source: Smith 2017 (1506.01186); Xing et al. 2018 (1802.08770), Figure 6 (0.1 -> 1.0 -> 0.01 in 20 epochs).
    """

    kind: Literal["cyclic"]
    low: PositiveFloat
    high: PositiveFloat
    period: Annotated[int, Field(ge=2)]
    end: PositiveFloat | None = None

    def lr(self, update: int, base: float, length: int) -> float:  # ruff: ignore[unused-method-argument] - one signature for all schedules
        """The learning rate of an update of the phase; the phase's own `lr` is not used."""
        rising = 2 * (update % self.period) <= self.period
        foot = self.low if rising or self.end is None else self.end
        return foot + (self.high - foot) * triangle(update, self.period)


class Step(Part):
    """The phase's learning rate until at[0], then values[0] until at[1], and so on (values[i] holds from update at[i] on)."""

    kind: Literal["step"]
    at: list[PositiveInt]
    values: list[PositiveFloat]

    @model_validator(mode="after")
    def _fit(self) -> Step:
        if len(self.at) != len(self.values):
            raise ValueError(f"expected as many values as entries in 'at' ({len(self.at)}), got {len(self.values)}")
        if self.at != sorted(set(self.at)):
            raise ValueError(f"expected 'at' to increase, got {self.at}")
        return self

    def lr(self, update: int, base: float, length: int) -> float:  # ruff: ignore[unused-method-argument] - one signature for all schedules
        """The learning rate of an update of the phase."""
        passed = bisect.bisect_right(self.at, update)
        return self.values[passed - 1] if passed else base


class Trapezoid(Part):
    """Rise from `start` to the phase's learning rate in `rise` updates, hold, then decay linearly to `end` in `decay` updates.

    `hold` is what is left of the phase if it is not given; after the decay the rate stays at `end`.
    Source: Xing et al. 2018 (1802.08770), Figure 6 (0.1 -> 1.0 in 10 epochs, held to 30, -> 0.01 at 40).
    """

    kind: Literal["trapezoid"]
    start: PositiveFloat
    end: PositiveFloat
    rise: Annotated[int, Field(ge=0)]
    decay: Annotated[int, Field(ge=0)]
    hold: Annotated[int, Field(ge=0)] | None = None

    def lr(self, update: int, base: float, length: int) -> float:
        """The learning rate of an update of the phase."""
        if update < self.rise:
            return self.start + (base - self.start) * update / self.rise
        hold = max(0, length - self.rise - self.decay) if self.hold is None else self.hold
        late = update - self.rise - hold
        if late < 0:
            return base
        return self.end if late >= self.decay else base + (self.end - base) * late / self.decay


class Decay(Part):
    """From the phase's learning rate down to `floor` over `length` updates (default: the phase): a decay branch.

    With f = t / length: linear 1 - f, sqrt 1 - sqrt(f), cosine (1 + cos(pi f)) / 2 of the way above the floor.
    Source: Hägele et al. 2024 (2405.18392) for 1 - sqrt; Loshchilov & Hutter 2017 (1608.03983) for cosine.
    """

    kind: Literal["decay"]
    shape: Literal["linear", "sqrt", "cosine"] = "linear"
    floor: Annotated[float, Field(ge=0)] = 0.0
    length: PositiveInt | None = None

    def lr(self, update: int, base: float, length: int) -> float:
        """The learning rate of an update of the phase."""
        f = min(1.0, update / (self.length or length))
        left = {"linear": 1 - f, "sqrt": 1 - math.sqrt(f), "cosine": (1 + math.cos(math.pi * f)) / 2}[self.shape]
        return self.floor + (base - self.floor) * left


class CyclicBatch(Part):
    """The learning rate stays; the batch size is round(low + (high - low) triangle(t)), in place of the phase's own.

    Source: Jastrzębski et al. 2017 (1711.04623), section 4: cycling the batch size in place of the learning rate.
    """

    kind: Literal["cyclic_batch"]
    low: PositiveInt
    high: PositiveInt
    period: Annotated[int, Field(ge=2)]

    def lr(self, update: int, base: float, length: int) -> float:  # ruff: ignore[unused-method-argument] - one signature for all schedules
        """The learning rate of an update of the phase."""
        return base

    def batch_size(self, update: int) -> int:
        """The batch size of an update of the phase."""
        return round(self.low + (self.high - self.low) * triangle(update, self.period))


Schedule = Annotated[Constant | Cyclic | Step | Trapezoid | Decay | CyclicBatch, Field(discriminator="kind")]


def derived_seed(*parts: object) -> int:
    """A seed that depends on all the parts and on nothing else, on every machine.

    Args:
        *parts: such as the experiment's seed, a purpose and a number.

    Returns:
        xxh3-64 of their texts, 63 bits of it.

    Example:
        >>> derived_seed(3, "order", 0) == derived_seed(3, "order", 0) != derived_seed(3, "order", 1)
        True
    """
    return xxhash.xxh3_64_intdigest("/".join(map(str, parts)).encode()) & (2**63 - 1)


class Order:
    """Which examples each update of a phase sees.

    Without replacement, epoch e goes through randperm(N) drawn from the seed of (seed, phase, e); an epoch ends when it holds
    fewer examples than the next batch needs, and these are left out, so that every batch has its full size. With replacement,
    update t draws randint(N) from the seed of (seed, phase, t). A full batch is all examples in their own order.

    Args:
        examples: N.
        batch_sizes: of each update of the phase, or one number for all.
        seed: of the experiment.
        phase: its number.
        replacement: draw with replacement.
    """

    def __init__(self, examples: int, batch_sizes: int | list[int], *, seed: int, phase: int, replacement: bool = False) -> None:
        self.examples, self.seed, self.phase, self.replacement = examples, seed, phase, replacement
        self._sizes = batch_sizes
        self._permutation: tuple[int, Tensor] = (-1, torch.empty(0))
        self._starts = None if isinstance(batch_sizes, int) else self._scan(batch_sizes)

    def _scan(self, sizes: list[int]) -> np.ndarray[tuple[int, int], np.dtype[np.int64]]:
        """(epoch, first position in it) of each update."""
        epoch, used, starts = 0, 0, []
        for size in sizes:
            if used + size > self.examples:
                epoch, used = epoch + 1, 0
            starts.append((epoch, used))
            used += size
        return np.array(starts, np.int64).reshape(-1, 2)

    def batch_size(self, update: int) -> int:
        """The number of examples of an update."""
        return self._sizes if isinstance(self._sizes, int) else self._sizes[update]

    def epoch(self, update: int) -> int:
        """The epoch (from 0) to which an update belongs."""
        return self._place(update)[0]

    def _place(self, update: int) -> tuple[int, int]:
        if self._starts is not None:
            return int(self._starts[update, 0]), int(self._starts[update, 1])
        size = self.batch_size(update)
        epoch, batch = divmod(update, self.examples // size)
        return epoch, batch * size

    def indices(self, update: int) -> Tensor:
        """The examples of an update.

        Args:
            update: of the phase, from 0.

        Returns:
            int64 [B].
        """
        size = self.batch_size(update)
        if self.replacement:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "draw", self.phase, update))
            return torch.randint(self.examples, (size,), generator=generator)
        if size == self.examples:
            return torch.arange(size)
        epoch, first = self._place(update)
        if self._permutation[0] != epoch:
            generator = torch.Generator().manual_seed(derived_seed(self.seed, "order", self.phase, epoch))
            self._permutation = (epoch, torch.randperm(self.examples, generator=generator))
        return self._permutation[1][first : first + size].clone()
