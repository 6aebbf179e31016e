"""The walk service over real processes: torch.distributed with gloo, one node a process, the rules of `gossip.protocol`.

Start a few processes with torchrun, call ``torch.distributed.init_process_group("gloo")`` in each, then `serve`.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from torch import Tensor

from sgdscope.errors import ArgumentError, SgdscopeError
from sgdscope.gossip.protocol import LIMIT, Patience, Summary, goes_on, newer

PUSH, PULL, WALK, BYE = range(4)
HEAD = 6  # numbers before theta: kind, step, age, walk, hops, restarted
Update = Callable[[Tensor, int], Tensor]


class WorkersError(SgdscopeError, RuntimeError):
    """No other process is left to hand the walk to."""


@dataclass
class Served:
    """What one node did and knows at the end.

    Attributes:
        rank: of the process.
        visits: (cycle, step, walk) of each visit of the walk at this node.
        known: the last summary.
        theta: the model stored here, with its step; None if the walk never came.
        restarts: walks that this node restarted.
        ended: duplicates that it ended.
        gone: processes found dead.
    """

    rank: int
    visits: list[tuple[float, int, int]] = field(default_factory=list)
    known: Summary = field(default_factory=lambda: Summary(0, 0.0, 0, 0))
    theta: tuple[int, Tensor] | None = None
    restarts: int = 0
    ended: int = 0
    gone: list[int] = field(default_factory=list)


def serve(
    update: Update,
    theta: Tensor,
    *,
    cycles: float,
    cycle: float = 0.02,
    limit: float = LIMIT,
    survive: float = 1.0,
    hold: float = 0.25,
    start: int = 0,
    generator: torch.Generator | None = None,
) -> Served:
    """Be a node of the service for some time.

    Every process of the default group is a neighbour of every other. Messages hold ages, not times, so that clocks need not
    agree. A process that has died is noticed when a message to or from it fails; it is sent nothing more, and a walk that
    died with it is restarted by the others after the limit.

    Args:
        update: (theta [P], step) -> theta [P] after learning from this node's record; step counts from 0.
        theta: [P], the first model; the same shape in all processes.
        cycles: how long, > 0.
        cycle: seconds, > 0.
        limit: of the protocol, cycles.
        survive: probability that a message is sent at all, to try the service out; 1 in earnest.
        hold: cycles that the walk stays at a node after its update.
        start: rank of the first visit.
        generator: of the choice of neighbours; None for seed `rank`.

    Returns:
        What this node did.

    Raises:
        ArgumentError: torch.distributed is not initialised with at least two processes, or an option is out of range.
        WorkersError: all other processes are dead.

    Cost: a thread a process, each blocked in a receive; messages of 6 + P numbers.
    """
    _check(cycles, cycle, survive, start)
    node = _Node(update, theta, limit, survive, generator)
    node.pace = (cycle, hold)
    node.run(cycles, start)
    return node.served


def _check(cycles: float, cycle: float, survive: float, start: int) -> None:
    if not dist.is_initialized() or dist.get_world_size() < 2:
        raise ArgumentError('group: expected at least two processes; start them by torchrun and init_process_group("gloo")')
    for name, value in (("cycles", cycles), ("cycle", cycle)):
        if not value > 0:
            raise ArgumentError(f"{name}: expected a number > 0, got {value!r}")
    if not 0 < survive <= 1:
        raise ArgumentError(f"survive: expected a probability 0 < survive <= 1, got {survive!r}")
    if start not in range(dist.get_world_size()):
        raise ArgumentError(f"start: expected a rank 0..{dist.get_world_size() - 1}, got {start}")


class _Node:
    """The state of one node, its threads and its letters."""

    def __init__(self, update: Update, theta: Tensor, limit: float, survive: float, generator: torch.Generator | None) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._update, self._first, self._limit, self._survive = update, theta.detach().double().reshape(-1), limit, survive
        self._generator = torch.Generator().manual_seed(self.rank) if generator is None else generator
        self._patience = Patience.of(limit)
        self._living = [r for r in range(self.size) if r != self.rank]
        self._letters: queue.Queue[tuple[int, Tensor | None]] = queue.Queue()
        self._waiting: list[tuple[float, Tensor, int, int, bool]] = []  # when to hand on: theta, step, walk, restarted
        self._left: set[int] = set()
        self.served = Served(self.rank)
        self.pace = (0.02, 0.25)
        self._begin = 0.0

    def _now(self) -> float:
        return (time.monotonic() - self._begin) / self.pace[0]

    def _uniform(self) -> float:
        return float(torch.rand(1, generator=self._generator, dtype=torch.float64))

    # --- letters ------------------------------------------------------------------------------------------------------------

    def _listen(self, peer: int) -> None:
        """In a thread: receive what a process sends until it says goodbye or is gone."""
        while True:
            letter = torch.zeros(HEAD + len(self._first), dtype=torch.float64)
            try:
                dist.recv(letter, src=peer)
            except RuntimeError:
                self._letters.put((peer, None))
                return
            self._letters.put((peer, letter))
            if int(letter[0]) == BYE:
                return

    def _lose(self, peer: int) -> None:
        if peer in self._living:
            self._living.remove(peer)
            self.served.gone.append(peer)

    def _post(self, peer: int, head: Sequence[float], theta: Tensor | None = None) -> bool:
        """Send a letter; False if the process is gone."""
        if head[0] != BYE and self._survive < 1 and self._uniform() >= self._survive:
            return True  # lost, and nobody notices
        body = torch.zeros(len(self._first), dtype=torch.float64) if theta is None else theta
        try:
            dist.send(torch.cat([torch.tensor(head, dtype=torch.float64), body]), dst=peer)
        except RuntimeError:
            self._lose(peer)
            return False
        return True

    def _summary(self, kind: int) -> list[float]:
        known = self.served.known
        return [kind, known.step, self._now() - known.seen, known.walk, known.hops, 0.0]

    def _choice(self) -> int | None:
        return self._living[int(self._uniform() * len(self._living))] if self._living else None

    # --- the loop -----------------------------------------------------------------------------------------------------------

    def run(self, cycles: float, start: int) -> None:
        """Serve, then say goodbye to the others and wait for theirs."""
        dist.barrier()
        self._begin = time.monotonic()
        for peer in list(self._living):
            threading.Thread(target=self._listen, args=(peer,), daemon=True).start()
        if self.rank == start:
            self._arrive(self._first.clone(), 0, 0, restarted=True)
        tick = self._uniform()
        while (now := self._now()) < cycles:
            if not self._living:
                raise WorkersError(
                    f"all other {self.size - 1} processes are gone; the walk stood at step {self.served.known.step}"
                )
            if now >= tick:
                tick += 1.0
                self._tick(now)
            for due in [one for one in self._waiting if one[0] <= now]:
                self._waiting.remove(due)
                self._hand_on(*due[1:])
            following = min([tick, cycles, *(one[0] for one in self._waiting)])
            self._read(max(0.0, following - self._now()) * self.pace[0])
        for peer in list(self._living):
            self._post(peer, self._summary(BYE))
        end = time.monotonic() + 5.0
        while set(self._living) - self._left and time.monotonic() < end:
            self._read(0.05)

    def _read(self, seconds: float) -> None:
        """Wait for a letter, and act on it."""
        try:
            peer, letter = self._letters.get(timeout=max(seconds, 1e-4))
        except queue.Empty:
            return
        if letter is None:
            self._lose(peer)
            return
        kind, step, age, walk, hops, restarted = (float(v) for v in letter[:HEAD])
        if kind == WALK:
            self._arrive(letter[HEAD:].clone(), int(step), int(walk), restarted=bool(restarted))
            return
        if kind == BYE:
            self._left.add(peer)
        if kind == PUSH:
            self._post(peer, self._summary(PULL))
        theirs = Summary(int(step), self._now() - age, int(walk), int(hops))
        self.served.known = newer(self.served.known, theirs, self._now(), self._limit)

    def _tick(self, now: float) -> None:
        stored = self.served.theta
        if self._patience.restarts(self.served.known, stored[0] if stored else None, now) and stored is not None:
            self.served.restarts += 1
            number = self.rank + 1 + self.size * self.served.restarts
            self._hand_on(stored[1], stored[0], number, True)
        if (peer := self._choice()) is not None:
            self._post(peer, self._summary(PUSH))

    def _arrive(self, theta: Tensor, step: int, walk: int, *, restarted: bool) -> None:
        """Update, store, and hold the walk or end it."""
        now, theta = self._now(), self._update(theta, step)
        self.served.visits.append((now, step + 1, walk))
        self.served.theta = step + 1, theta
        if not goes_on(step + 1, self.served.known, now, self._limit, restarted=restarted):
            self.served.ended += 1
            return
        self.served.known = Summary(step + 1, now, walk, 0)
        self._waiting.append((now + self.pace[1], theta, step + 1, walk, False))

    def _hand_on(self, theta: Tensor, step: int, walk: int, restarted: bool) -> None:
        while (peer := self._choice()) is not None:
            if peer in self._left or self._post(peer, [WALK, step, 0.0, walk, 0.0, restarted], theta):
                return
