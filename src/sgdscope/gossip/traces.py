"""What a walk service did: its visits as a tree, how many walks were alive when, and the line of visits that survived."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from sgdscope.errors import ArgumentError

Array = NDArray[np.float64]
Indices = NDArray[np.int64]


@dataclass(frozen=True)
class Life:
    """One walk from its start or restart to its end.

    Attributes:
        start: time.
        end: time; the end of the trace for a walk that is alive there.
        cause: ``"alive"``, ``"lost"`` (a message or its holder vanished) or ``"duplicate"`` (a node ended it).
    """

    start: float
    end: float
    cause: str


@dataclass(frozen=True)
class Trace:
    """A simulated or real walk service.

    Attributes:
        nodes: how many.
        duration: cycles.
        time: [visits], ascending, cycles.
        node: [visits].
        step: [visits], updates that the walk has made with this one.
        walk: [visits], number of the walk.
        parent: [visits], the visit whose model was updated; -1 for the first.
        lives: of each walk, by its number.
        counts: messages sent and lost, exchanges of summaries, triggers.
    """

    nodes: int
    duration: float
    time: Array
    node: Indices
    step: Indices
    walk: Indices
    parent: Indices
    lives: tuple[Life, ...]
    counts: Mapping[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        """The number of visits, those of duplicates included."""
        return len(self.time)

    def uses(self) -> Indices:
        """The how-many-th use of its node's record each visit is, from 1, duplicates counted: they spend privacy too."""
        seen = np.zeros(self.nodes, np.int64)
        told = np.empty(len(self), np.int64)
        for i, node in enumerate(self.node.tolist()):
            seen[node] += 1
            told[i] = seen[node]
        return told

    def lineage(self) -> Indices:
        """The visits that made the model of the highest step, the latest of equals, in order; the others are lost or duplicate.

        Returns:
            Indices of visits, ascending.
        """
        if not len(self):
            return np.zeros(0, np.int64)
        best = int(np.flatnonzero(self.step == self.step.max())[-1])
        line = []
        while best >= 0:
            line.append(best)
            best = int(self.parent[best])
        return np.array(line[::-1], np.int64)

    def live(self) -> tuple[Array, Indices]:
        """How many walks are alive: a step function of time.

        Returns:
            (times at which the number changes, the first 0; the number from there on).
        """
        births, deaths = ([x for life in self.lives for x in [(life.start, 1)]], [(life.end, -1) for life in self.lives])
        ends = [d for life, d in zip(self.lives, deaths, strict=True) if life.cause != "alive"]
        changes: dict[float, int] = {0.0: 0}
        for time, by in births + ends:
            changes[time] = changes.get(time, 0) + by
        times = np.array(sorted(changes))
        return times, np.cumsum([changes[t] for t in times.tolist()])

    def mean_live(self, start: float = 0.0) -> float:
        """The mean over time of the number of walks alive.

        Args:
            start: from when on.

        Returns:
            The mean.

        Raises:
            ArgumentError: nothing is left after the start.
        """
        if not 0 <= start < self.duration:
            raise ArgumentError(f"start: expected a time in [0, {self.duration:g}), got {start}")
        inside = sum(max(0.0, min(life.end, self.duration) - max(life.start, start)) for life in self.lives)
        return inside / (self.duration - start)

    def spells(self, *, least: int, most: int | None = None) -> list[float]:
        """How long the number of walks alive stays within bounds: none (0, 0) is a recovery, (2, None) a time of duplicates.

        Args:
            least: the smallest number.
            most: the largest; None for any.

        Returns:
            Lengths of whole spells, cycles; one that lasts to the end of the trace is left out.
        """
        times, number = self.live()
        inside = (number >= least) & (number <= (np.inf if most is None else most))
        found, since = [], None
        for time, now in zip(times.tolist(), inside.tolist(), strict=True):
            if now and since is None:
                since = time
            elif not now and since is not None:
                found.append(time - since)
                since = None
        return [length for length in found if length > 0]

    def until(self, time: float) -> Trace:
        """The trace as it stood at a time; lives that go on are told as alive.

        Args:
            time: > 0.

        Returns:
            The trace.
        """
        n = int(np.searchsorted(self.time, time, "right"))
        lives = [life if life.end <= time else Life(life.start, time, "alive") for life in self.lives if life.start <= time]
        cut = (self.time[:n], self.node[:n], self.step[:n], self.walk[:n], self.parent[:n])
        return Trace(self.nodes, min(time, self.duration), *cut, tuple(lives), self.counts)
