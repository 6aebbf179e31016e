"""A claim of several parts: each a number over independent units and a side of a threshold; all of them must hold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp, inf, nan
from typing import Any

import numpy as np

from sgdscope import statistics
from sgdscope.contracts import Answer, Verdict
from sgdscope.evidence.windows import decide, weakest
from sgdscope.notation import number, with_interval

RUNS = 3  # from so many runs on a run is the unit; below, its measured points are, by the block bootstrap
PAIRS = 5  # units over which a number is compared with a threshold
WITHIN = 4  # points below which a stretch of one run has no interval

_ORDER: tuple[Answer, ...] = ("supported", "not in regime", "undecided", "contradicted")


@dataclass(frozen=True)
class Part:
    """What must hold of a mean over units.

    Attributes:
        text: what the number is, in words.
        units: one entry a run: a number, or its values at the measured points in the order of time; NaN is left out.
        threshold: fixed beforehand.
        above: whether the claim says "above".
        logs: the numbers are logarithms; factors are told.
        least: units from which Student's interval over units is taken.
        within: points from which the block bootstrap over the points of fewer units is taken; 0 for never. Over so few its
            interval is too narrow, and it covers other points of these runs, not other seeds.
    """

    text: str
    units: Sequence[Any]
    threshold: float = 0.0
    above: bool = True
    logs: bool = False
    least: int = RUNS
    within: int = 0

    def held(self) -> Held:
        """Hold the mean against the threshold; undecided where the units are too few."""
        arrays = [np.atleast_1d(np.asarray(unit, np.float64)) for unit in self.units]
        kept = [finite for a in arrays if (finite := a[np.isfinite(a)]).size]
        points = np.concatenate([np.zeros(0), *kept])
        if len(kept) >= self.least:
            mean, _, interval = statistics.mean_interval([float(a.mean()) for a in kept])
            n = len(kept)
        elif self.within and len(points) >= self.within:
            mean, _, interval = statistics.block_bootstrap(points)
            n = len(points)
        else:
            mean = float(points.mean()) if len(points) else nan
            return Held(self, self._told(mean), (nan, nan), len(kept), "undecided", -inf)
        low, high = interval
        margin = (mean - self.threshold) / max(high - low, 1e-300)
        answer = decide((low, high), self.threshold, above=self.above)
        told = (self._told(low), self._told(high))
        return Held(self, self._told(mean), told, n, answer, margin if self.above else -margin)

    def _told(self, value: float) -> float:
        return exp(value) if self.logs else value


@dataclass(frozen=True)
class Held:
    """A part with its mean, interval and answer; `margin` is the distance to the threshold, on the claim's side, in intervals."""

    part: Part
    mean: float
    interval: tuple[float, float]
    n: int
    answer: Answer
    margin: float

    @property
    def threshold(self) -> float:
        """As told: a factor where the numbers are logarithms."""
        return exp(self.part.threshold) if self.part.logs else self.part.threshold

    def __str__(self) -> str:
        """The number with its interval, in words."""
        low, high = self.interval
        side = ">" if self.part.above else "<"
        return f"{self.part.text} {with_interval(self.mean, low, high)} (claimed {side} {number(self.threshold)})"


def equal(text: str, units: Sequence[Any], middle: float, margin: float, *, logs: bool = False) -> list[Part]:
    """What must hold of a mean that is claimed to equal a number within a margin: two one-sided tests at 2.5 %.

    middle - margin < mean and mean < middle + margin, both by the 95 % interval over at least `PAIRS` units.

    Args:
        text: what the number is, in words.
        units: see `Part`.
        middle: the number claimed.
        margin: > 0, fixed beforehand; with `logs` it and `middle` are logarithms too.
        logs: the numbers are logarithms; factors are told.

    Returns:
        The part from below and the part from above.
    """
    return [
        Part(f"{text}, from below", units, middle - margin, least=PAIRS, logs=logs),
        Part(f"{text}, from above", units, middle + margin, above=False, least=PAIRS, logs=logs),
    ]


def joint(
    claim: str,
    parts: Sequence[Part],
    *,
    place: Mapping[str, float | str],
    lead: str = "",
    details: Mapping[str, Any] | None = None,
    smallest_p: float | None = None,
) -> Verdict:
    """Judge a claim all of whose parts must hold; the statistic is that of the part that holds least.

    Args:
        claim: its id.
        parts: at least one.
        place: where the runs lie on the map.
        lead: put in front of the reason.
        details: further numbers.
        smallest_p: see `Verdict`.

    Returns:
        Contradicted if a part is, else undecided if a part is, else supported.
    """
    held = [part.held() for part in parts]
    least = max(held, key=lambda h: (_ORDER.index(h.answer), -h.margin))
    told = {h.part.text: {"mean": h.mean, "interval": list(h.interval), "n": h.n, "answer": h.answer} for h in held}
    reason = lead + "; ".join(str(h) for h in held)
    return Verdict(
        claim,
        weakest(h.answer for h in held),
        least.mean,
        least.interval,
        least.n,
        least.threshold,
        reason,
        place,
        smallest_p,
        dict(details or {}) | {"parts": told},
    )
