"""The single random walk service simulated: one queue of events in the order of their times, one generator for all draws."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from heapq import heappop, heappush
from typing import Any

import numpy as np
import torch

from sgdscope.errors import ArgumentError
from sgdscope.gossip.graphs import Graph
from sgdscope.gossip.protocol import LIMIT, Patience, Summary, goes_on, newer
from sgdscope.gossip.traces import Life, Trace

TICK, PUSH, PULL, ARRIVE, SEND, FLIP = range(6)
BLOCK = 4096  # uniform numbers drawn at a time


@dataclass(frozen=True)
class Faults:
    """What goes wrong between and at the nodes.

    Attributes:
        survive: probability in (0, 1] that a message arrives.
        delay: least and largest time of a message, cycles, uniform between them.
        online: share in (0, 1] of the time that a node is online.
        session: mean time online, cycles, exponential; nodes keep what they know while they are away.
        dead: nodes that are never online.

    Raises:
        ArgumentError: out of range.
    """

    survive: float = 1.0
    delay: tuple[float, float] = (0.1, 1.0)
    online: float = 1.0
    session: float = 50.0
    dead: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for name, value in (("survive", self.survive), ("online", self.online)):
            if not 0 < value <= 1:
                raise ArgumentError(f"{name}: expected a probability 0 < {name} <= 1, got {value!r}")
        low, high = self.delay
        if not 0 < low <= high < math.inf:
            raise ArgumentError(f"delay: expected two times 0 < least <= largest, in cycles, got {self.delay!r}")
        if not 0 < self.session < math.inf:
            raise ArgumentError(f"session: expected a mean time online > 0, in cycles, got {self.session!r}")


def simulate(
    graph: Graph,
    generator: torch.Generator,
    *,
    cycles: float,
    updates: int | None = None,
    faults: Faults | None = None,
    limit: float = LIMIT,
    start: int = 0,
    restart: bool = True,
    terminate: bool = True,
) -> Trace:
    """Let one walk wander over the nodes, kept alive and single by what the nodes tell each other.

    Once a cycle, at a time of its own, each node looks at the age of its news, restarts the walk if the rules of
    `gossip.protocol` say so, and exchanges summaries with one random neighbour that is online (push and pull). A walk that
    arrives makes its update, leaves its model and goes to a random neighbour that is online; one that went offline in the
    meantime is noticed when the connection times out, and another is tried. A lost message is noticed by nobody: its walk
    is gone. Models play no part in this; the trace says which visit updated whose model.

    Args:
        graph: who can send to whom.
        generator: on the CPU; the same one gives the same trace.
        cycles: length, > 0; a cycle is the time between two exchanges of a node.
        updates: stop as soon as a walk has made so many; None for never.
        faults: what goes wrong; nothing but delays if None.
        limit: age of the news, in cycles, from which a walk counts as lost.
        start: node of the first visit.
        restart: whether lost walks are restarted.
        terminate: whether duplicates are ended.

    Returns:
        The trace.

    Raises:
        ArgumentError: out of range, or all nodes are dead.

    Cost: three events a node and cycle, about 10 microseconds together; no model is copied.
    Source: Hegedus, Berta & Jelasity 2016, as in SoloWalkerProtocol of the authors' code (specification, section 4).
    """
    if not 0 < cycles < math.inf:
        raise ArgumentError(f"cycles: expected a number > 0, got {cycles!r}")
    if updates is not None and updates < 1:
        raise ArgumentError(f"updates: expected a whole number >= 1, got {updates!r}")
    service = _Service(graph, generator, faults or Faults(), limit)
    service.rules = (restart, terminate)
    return service.run(float(cycles), math.inf if updates is None else updates, start)


class _Service:
    """The state of all nodes, and the queue."""

    def __init__(self, graph: Graph, generator: torch.Generator, faults: Faults, limit: float) -> None:
        n = len(graph)
        self._generator, self._faults, self._limit = generator, faults, float(limit)
        self._neighbours: list[list[int]] = [own.tolist() for own in graph.neighbours]
        self._block, self._place = self._draws(), 0
        self.rules = (True, True)
        self._queue: list[tuple[float, int, int, int, Any]] = []
        self._number = 0
        dead = set(_nodes(faults.dead, n))
        if len(dead) == n:
            raise ArgumentError(f"dead: all {n} nodes are; expected at least two that live")
        self._online = [i not in dead and (faults.online == 1 or self._uniform() < faults.online) for i in range(n)]
        self._known = [Summary(0, 0.0, 0, 0)] * n
        self._patience = [Patience.of(self._limit) for _ in range(n)]
        self._stored: list[tuple[int, int] | None] = [None] * n  # step, visit
        self._visits: list[tuple[float, int, int, int, int]] = []
        self._lives: list[list[Any]] = []
        self._counts = dict.fromkeys(("sent", "lost", "retried", "exchanges", "triggers"), 0)
        self._dead, self._furthest = dead, 0

    def _draws(self) -> list[float]:
        drawn: list[float] = torch.rand(BLOCK, generator=self._generator, dtype=torch.float64).tolist()
        return drawn

    def _uniform(self) -> float:
        if self._place == BLOCK:
            self._block, self._place = self._draws(), 0
        self._place += 1
        return self._block[self._place - 1]

    def _at(self, time: float, kind: int, node: int, what: Any = None) -> None:
        self._number += 1
        heappush(self._queue, (time, self._number, kind, node, what))

    def _arrival(self, now: float) -> float:
        low, high = self._faults.delay
        return now + low + (high - low) * self._uniform()

    def _spell(self, online: bool) -> float:
        """How long a node stays as it is."""
        share = self._faults.online
        mean = self._faults.session if online else self._faults.session * (1 - share) / share
        return -mean * math.log1p(-self._uniform())

    def _neighbour(self, node: int) -> int | None:
        """A random neighbour that is online."""
        own, online = self._neighbours[node], self._online
        for _ in range(8):
            if online[other := own[int(self._uniform() * len(own))]]:
                return other
        left = [other for other in own if online[other]]
        return left[int(self._uniform() * len(left))] if left else None

    # --- the loop -----------------------------------------------------------------------------------------------------------

    def run(self, cycles: float, updates: float, start: int) -> Trace:
        """Work the queue off."""
        n = len(self._online)
        if start in self._dead or start not in range(n):
            raise ArgumentError(f"start: expected a living node 0..{n - 1}, got {start}")
        self._online[start] = True
        for i in range(n):
            if i not in self._dead:
                self._at(self._uniform(), TICK, i)
                if self._faults.online < 1:
                    self._at(self._spell(self._online[i]), FLIP, i)
        self._lives.append([0.0, cycles, "alive"])
        self._at(0.0, ARRIVE, start, (0, 0, -1, True, start))
        handlers = (self._tick, self._push, self._pull, self._arrive, self._send, self._flip)
        queue, now = self._queue, 0.0
        while queue and queue[0][0] < cycles and self._furthest < updates:
            now, _, kind, node, what = heappop(queue)
            handlers[kind](now, node, what)
        return self._trace(cycles if self._furthest < updates else now)

    def _trace(self, duration: float) -> Trace:
        lives = tuple(Life(a, min(b, duration), cause) for a, b, cause in self._lives)
        columns = list(zip(*self._visits, strict=True)) or [()] * 5
        time, node, step, walk, parent = (np.array(c, d) for c, d in zip(columns, (float, *[np.int64] * 4), strict=True))
        return Trace(len(self._online), duration, time, node, step, walk, parent, lives, dict(self._counts))

    def _tick(self, now: float, node: int, _: Any) -> None:
        """Once a cycle: look at the age of the news, and exchange summaries."""
        self._at(now + 1.0, TICK, node)
        if not self._online[node]:
            return
        known, patience, stored = self._known[node], self._patience[node], self._stored[node]
        if now - known.seen >= patience.wait or patience.depth > 1:
            depth = patience.depth
            close = patience.restarts(known, stored[0] if stored else None, now)
            self._counts["triggers"] += patience.depth > depth
            if close and stored is not None and self.rules[0]:
                self._lives.append([now, math.inf, "alive"])
                self._send(now, node, (stored[0], len(self._lives) - 1, stored[1], True))
        if (other := self._neighbour(node)) is not None:
            self._counts["exchanges"] += 1
            self._mail(now, other, PUSH, (known, node))

    def _mail(self, now: float, node: int, kind: int, what: Any) -> None:
        if self._faults.survive == 1 or self._uniform() < self._faults.survive:
            self._at(self._arrival(now), kind, node, what)

    def _push(self, now: float, node: int, what: tuple[Summary, int]) -> None:
        if self._online[node]:
            theirs, sender = what
            mine = self._known[node]
            self._mail(now, sender, PULL, mine)
            self._known[node] = newer(mine, theirs, now, self._limit)

    def _pull(self, now: float, node: int, theirs: Summary) -> None:
        if self._online[node]:
            self._known[node] = newer(self._known[node], theirs, now, self._limit)

    def _send(self, now: float, node: int, walk: tuple[int, int, int, bool]) -> None:
        """Hand a walk (step, number, visit, restarted) on to a random neighbour that is online."""
        if not self._online[node]:
            self._end(walk[1], now, "lost")
            return
        other = self._neighbour(node)
        if other is None:
            self._at(now + 1.0, SEND, node, walk)
            return
        self._counts["sent"] += 1
        arrival = self._arrival(now)
        if self._faults.survive == 1 or self._uniform() < self._faults.survive:
            self._at(arrival, ARRIVE, other, (*walk, node))
        else:
            self._counts["lost"] += 1
            self._end(walk[1], arrival, "lost")

    def _arrive(self, now: float, node: int, what: tuple[int, int, int, bool, int]) -> None:
        """Update, store, and go on or end."""
        step, number, parent, restarted, sender = what
        if not self._online[node]:  # the connection times out, and the sender tries another
            self._counts["retried"] += 1
            self._send(now, sender, (step, number, parent, restarted))
            return
        visit, step = len(self._visits), step + 1
        self._visits.append((now, node, step, number, parent))
        self._stored[node] = (step, visit)
        self._furthest = max(self._furthest, step)
        if self.rules[1] and not goes_on(step, self._known[node], now, self._limit, restarted=restarted):
            self._end(number, now, "duplicate")
            return
        self._known[node] = Summary(step, now, number, 0)
        self._send(now, node, (step, number, visit, False))

    def _end(self, number: int, now: float, cause: str) -> None:
        self._lives[number][1:] = [now, cause]

    def _flip(self, now: float, node: int, _: Any) -> None:
        self._online[node] = not self._online[node]
        self._at(now + self._spell(self._online[node]), FLIP, node)


def _nodes(given: Iterable[int], n: int) -> list[int]:
    nodes = [int(i) for i in given]
    if any(not 0 <= i < n for i in nodes):
        raise ArgumentError(f"dead: expected nodes 0..{n - 1}, got {nodes[:5]}")
    return nodes
