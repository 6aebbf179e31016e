"""When to keep a point: schedules name updates, both ends of a named update are kept.

A schedule is any callable of the update's number t that says whether the update is named. Those of this file are
frozen dataclasses that print as a sentence and can count the points they ask for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from sgdscope.errors import ArgumentError

HORIZON = 100_000  # updates over which the default schedule spreads its bursts
MOST_BURSTS = 64  # of the default schedule; more would fill a budget that small models do not need
UNITS = {
    "": 1,
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
    "tib": 2**40,
}


@runtime_checkable
class Counting(Protocol):
    """A schedule that knows how many points it asks for."""

    def __call__(self, step: int) -> bool:
        """Whether update `step` is named."""

    def expected(self, total: int | None) -> int | None:
        """How many points are kept in `total` updates (None: however many come); None where it has no bound."""


@dataclass(frozen=True)
class Every:
    """Every n-th update, from update 0 on.

    Attributes:
        n: at least 1.
    """

    n: int

    def __call__(self, step: int) -> bool:
        """Whether update `step` is named."""
        return step % self.n == 0

    def __str__(self) -> str:
        """The schedule in words."""
        return "every update" if self.n == 1 else f"every {self.n} updates"

    def expected(self, total: int | None) -> int | None:
        """Count the points of `total` updates.

        Args:
            total: updates, or None.

        Returns:
            Points, both ends of each named update counted once; None without a total.
        """
        return None if total is None else _points(range(0, total, self.n))


@dataclass(frozen=True)
class Bursts:
    """Bursts of consecutive updates.

    Attributes:
        length: updates a burst.
        at: first updates of the bursts, ascending; None if they follow from `gap`.
        total: updates beyond which no burst starts; None for no end.
        gap: updates left out between two bursts, where `at` is None; None for starts that double: 0, 2, 4, 8, ... lengths.
    """

    length: int
    at: tuple[int, ...] | None = None
    total: int | None = None
    gap: int | None = None

    def __call__(self, step: int) -> bool:
        """Whether update `step` is named."""
        if self.at is not None:
            return any(start <= step < start + self.length for start in self.at)
        if self.total is not None and step >= self.total:
            return False
        if self.gap is not None:
            return step % (self.length + self.gap) < self.length
        unit = step // (2 * self.length)  # starts are 0 and 2 length times a power of two
        start = 0 if unit == 0 else 2 * self.length * 2 ** (unit.bit_length() - 1)
        return step < start + self.length

    def __str__(self) -> str:
        """The schedule in words."""
        if self.at is not None:
            shown = ", ".join(map(str, self.at[:8])) + (", ..." if len(self.at) > 8 else "")
            return f"{len(self.at)} bursts of {self.length} updates, from updates {shown}"
        how = f"{self.gap} updates apart" if self.gap is not None else "from updates 0 and 2, 4, 8, ... times their length"
        return f"bursts of {self.length} updates, {how}" + ("" if self.total is None else f", up to update {self.total}")

    def expected(self, total: int | None) -> int | None:
        """Count the points of `total` updates.

        Args:
            total: updates, or None.

        Returns:
            Points; None where neither a total nor the schedule bounds them.
        """
        end = min((t for t in (total, self.total) if t is not None), default=None)
        if self.at is not None:
            named = sorted({t for start in self.at for t in range(start, start + self.length) if end is None or t < end})
            return _points(named)
        return None if end is None else _points(t for t in range(end) if self(t))


@dataclass(frozen=True)
class Logarithmic:
    """Update 0 and the updates round(10^(k / per_decade)), k = 0, 1, 2, ...

    Attributes:
        per_decade: points in a factor of ten.
    """

    per_decade: int

    def __call__(self, step: int) -> bool:
        """Whether update `step` is named."""
        if step < 1:
            return step == 0
        k = self.per_decade * math.log10(step)
        return any(round(10 ** (j / self.per_decade)) == step for j in range(max(0, math.floor(k) - 1), math.ceil(k) + 2))

    def __str__(self) -> str:
        """The schedule in words."""
        return f"{self.per_decade} updates a decade, logarithmically spaced"

    def expected(self, total: int | None) -> int | None:
        """Count the points of `total` updates.

        Args:
            total: updates, or None.

        Returns:
            Points; None without a total.
        """
        if total is None:
            return None
        last = math.ceil(self.per_decade * math.log10(max(total, 1))) + 1
        named = {0, *(round(10 ** (k / self.per_decade)) for k in range(last + 1))}
        return _points(sorted(t for t in named if t < total))


def every(n: int = 1) -> Every:
    """Keep the points at both ends of every n-th update.

    Args:
        n: at least 1.

    Returns:
        The schedule.

    Raises:
        ArgumentError: n is no positive integer.

    Example:
        >>> [t for t in range(10) if every(4)(t)], every(4).expected(10)
        ([0, 4, 8], 6)
    """
    return Every(_positive("n", n))


def bursts(length: int = 60, *, at: Iterable[int] | None = None, total: int | None = None, gap: int | None = None) -> Bursts:
    """Keep every point of bursts of consecutive updates.

    Args:
        length: updates a burst, at least 1.
        at: first updates of the bursts.
        total: no burst goes on beyond this update.
        gap: updates left out between two bursts; with neither `at` nor `gap` the starts double.

    Returns:
        The schedule.

    Raises:
        ArgumentError: a number is out of range, or both `at` and `gap` are given.

    Example:
        >>> [t for t in range(40) if bursts(3)(t)]
        [0, 1, 2, 6, 7, 8, 12, 13, 14, 24, 25, 26]
    """
    if at is not None and gap is not None:
        raise ArgumentError("gap: expected either at= or gap=, got both; leave one out")
    starts = None if at is None else tuple(sorted(int(start) for start in at))
    if starts is not None and (not starts or starts[0] < 0):
        raise ArgumentError(f"at: expected at least one update, none below 0, got {starts}; pass for example at=[0, 500]")
    if gap is not None and gap < 0:
        raise ArgumentError(f"gap: expected at least 0 updates, got {gap}")
    return Bursts(_positive("length", length), starts, None if total is None else _positive("total", total), gap)


def logarithmic(per_decade: int = 10) -> Logarithmic:
    """Keep the points at both ends of logarithmically spaced updates.

    Args:
        per_decade: updates in a factor of ten, at least 1.

    Returns:
        The schedule.

    Raises:
        ArgumentError: per_decade is no positive integer.

    Example:
        >>> [t for t in range(101) if logarithmic(2)(t)]
        [0, 1, 3, 10, 32, 100]
    """
    return Logarithmic(_positive("per_decade", per_decade))


def within(budget: int, snapshot_bytes: int, length: int = 60) -> Callable[[int], bool]:
    """Build the default schedule: bursts with log-spaced starts whose points fit a budget.

    Starts are 0 and a geometric sequence from `length` to 100 000 updates, moved apart where they would overlap; at most
    64 bursts. Where the budget holds no whole burst, one shorter burst.

    Args:
        budget: bytes.
        snapshot_bytes: of one point.
        length: updates a burst.

    Returns:
        The schedule.
    """
    points = budget // max(snapshot_bytes, 1) - 2  # the first and the last point are always kept
    count = min(points // (length + 1), MOST_BURSTS)
    if count < 1:
        return Bursts(max(1, points - 1), (0,))
    starts = [0]
    for k in range(count - 1):
        wanted = round(length * (HORIZON / length) ** (k / max(count - 2, 1)))
        starts.append(max(wanted, starts[-1] + length))
    return Bursts(length, tuple(starts))


def in_words(schedule: Callable[[int], bool]) -> str:
    """Describe any schedule.

    Args:
        schedule: one of this file, or any callable.

    Returns:
        Its own sentence, or the name of the callable.
    """
    if isinstance(schedule, Counting):
        return str(schedule)
    return f"the callable {getattr(schedule, '__qualname__', type(schedule).__name__)}"


def parse_bytes(budget: str | int | float) -> int:
    """Read a number of bytes.

    Args:
        budget: such as ``"2 GB"``, ``"500 MiB"`` or a number.

    Returns:
        Bytes.

    Raises:
        ArgumentError: it is neither a number nor a number with a known unit, or not positive.

    Example:
        >>> parse_bytes("1.5 kB"), parse_bytes("2 MiB")
        (1500, 2097152)
    """
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[0-9]+)?)\s*([a-z]*)\s*", str(budget).lower())
    unit = UNITS.get(match[2]) if match else None
    if match is None or unit is None or float(match[1]) <= 0:
        raise ArgumentError(
            f"budget: expected a positive number of bytes such as '2 GB', got {budget!r}; units: B, kB, MB, GB, TB, KiB, ..."
        )
    return int(float(match[1]) * unit)


def _positive(name: str, value: int) -> int:
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise ArgumentError(f"{name}: expected an integer of at least 1, got {value!r}")
    return int(value)


def _points(named: Iterable[int]) -> int:
    """Both ends of ascending updates, a shared end counted once."""
    count, last = 0, -2
    for step in named:
        count += 1 if step == last + 1 else 2
        last = step
    return count
