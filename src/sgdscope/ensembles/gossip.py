"""The single random walk as an ensemble: a model that goes from node to node and learns from the record of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgdscope.contracts import Source, ensemble
from sgdscope.directions import private
from sgdscope.errors import ArgumentError
from sgdscope.gossip import LIMIT, Faults, Graph, Trace, random_out, ring, simulate

GRAPHS = ("random", "ring")
PATIENT = 100.0  # cycles an update of the walk may take on average before it is given up


@dataclass(frozen=True)
class Furthest:
    """What the walks have to say together: the point of the one that has come furthest.

    Attributes:
        theta: [P], a copy.
        member: its number, the first of equals.
        updates: that it has made.
    """

    theta: Tensor
    member: int
    updates: int


@dataclass(frozen=True)
class Visit:
    """Where a walk is when it makes an update.

    Attributes:
        node: number of the node, and of its record.
        hop: how many visits its line has before this one.
        walk: number of the walk; another one after each restart.
        cycle: time of the visit.
        use: the how-many-th use of the record this is, lost and duplicate visits counted.
    """

    node: int
    hop: int
    walk: int
    cycle: float
    use: int


class Line:
    """The visits that made the model of a walk that has come furthest, in order, and what was lost between them.

    Args:
        trace: of the walk service.
    """

    def __init__(self, trace: Trace) -> None:
        self.trace, self._uses = trace, trace.uses()
        self._line: list[int] = trace.lineage().tolist()

    def __len__(self) -> int:
        """The number of visits."""
        return len(self._line)

    def visit(self, hop: int) -> Visit:
        """Where the walk makes an update.

        Args:
            hop: number of the update.

        Returns:
            The visit.
        """
        v, trace = self._line[hop], self.trace
        return Visit(int(trace.node[v]), hop, int(trace.walk[v]), float(trace.time[v]), int(self._uses[v]))

    def lost(self, hop: int) -> list[int]:
        """The nodes at which visits between the update before and this one used a record, and whose model was lost or ended.

        Args:
            hop: number of the update.

        Returns:
            Nodes, in the order of time.
        """
        before = self._line[hop - 1] if hop else -1
        nodes: list[int] = self.trace.node[before + 1 : self._line[hop]].tolist()
        return nodes


def charge_lost(walker: torch.optim.Optimizer, line: Line, hop: int) -> None:
    """Charge the records of lost visits to a walker that keeps a ledger; one without pays nothing.

    Args:
        walker: with the attributes ``use`` and ``ledger``, or any other.
        line: of its visits.
        hop: number of the update that it is about to make.
    """
    if hasattr(walker, "use"):
        ledger: Any = walker.ledger  # type: ignore[attr-defined]  # has use
        for node in line.lost(hop):
            if ledger.left([node]):
                ledger.charge([node])


@ensemble(
    "gossip",
    source=Source("Hegedus, Berta & Jelasity 2016 (JoWUA 7(2))", "single random walk service, as in the authors' code"),
    ranges={
        "nodes": "> degree",
        "graph": "random or ring",
        "degree": ">= 1, neighbours that each node draws; of a ring even, all its neighbours",
        "updates": ">= 1, length of a walk",
        "survive": "0 < survive <= 1, of a message",
        "delay": "[least, largest] > 0, cycles of a message",
        "online": "0 < online <= 1, share of the time",
        "session": "> 0, mean cycles online",
        "limit": "> 0, cycles without news after which a walk counts as lost",
    },
    limit=({}, "sgd", {}),
)
class GossipWalk:
    """Walks of a model over nodes that hold a record each, kept alive by gossip; usually a single one.

    Each member is one walk service of its own on one graph, simulated beforehand (`gossip.simulate`): `visits` says at whose
    record the next gradient of each member is to be taken, `step` makes the update and goes on to the next node. What a member
    walks is the line of visits that survived; visits whose model was lost or ended as a duplicate move no member, but a walker
    that keeps a ledger (``use`` and ``ledger``) is charged for them, since they have used the record.

    Args:
        members: one walker a walk.
        nodes: number of records.
        graph: "random": each node draws neighbours; "ring": the nearest on a ring.
        degree: neighbours that each node draws at random, or has on the ring.
        updates: length of each walk.
        survive: probability that a message arrives.
        delay: least and largest time of a message, cycles.
        online: share of the time that a node is online.
        session: mean time online, cycles.
        limit: of the service, cycles.
        generator: from which a seed is taken, once; None for seed 0.

    Raises:
        ArgumentError: an option is out of range, there are no members, or the service cannot keep a walk alive so long.

    Cost: the simulation, see `gossip.simulate`; an update costs what the walker's does.

    Example:
        >>> point = torch.tensor([4.0], requires_grad=True)
        >>> walk = GossipWalk([torch.optim.SGD([point], lr=0.5)], nodes=6, degree=3, updates=5)
        >>> for _ in range(2):
        ...     point.grad = point.detach().clone()
        ...     walk.step()
        >>> walk.combine().theta, walk.visits[0].hop
        (tensor([1.]), 2)
    """

    def __init__(
        self,
        members: Sequence[torch.optim.Optimizer],
        *,
        nodes: int = 50,
        graph: str = "random",
        degree: int = 10,
        updates: int = 100,
        survive: float = 1.0,
        delay: Sequence[float] = (0.1, 1.0),
        online: float = 1.0,
        session: float = 50.0,
        limit: float = LIMIT,
        generator: torch.Generator | None = None,
    ) -> None:
        if not members:
            raise ArgumentError("members: expected at least one walker, got none")
        self.members = list(members)
        _check_numbers({"survive": survive, "online": online, "session": session, "limit": limit}, delay)
        if graph not in GRAPHS:
            raise ArgumentError(f"graph: expected 'random' or 'ring', got {graph!r}")
        faults = Faults(survive=survive, delay=(delay[0], delay[1]), online=online, session=session)
        self._told: dict[str, Any] = {"nodes": nodes, "degree": degree, "updates": updates, "limit": limit, "faults": faults}
        self._told["graph"] = graph
        seed = 0 if generator is None else int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        self._walk_from(seed)
        self._made = [0] * len(self.members)

    def _graph(self) -> Graph:
        told = self._told
        if told["graph"] == "ring":
            return ring(told["nodes"], told["degree"])
        return random_out(told["nodes"], told["degree"], private(self._seed, 0))

    def _walk_from(self, seed: int) -> None:
        told, self._seed = self._told, seed
        graph = self._graph()
        asked = {name: told[name] for name in ("updates", "faults", "limit")} | {"cycles": PATIENT * told["updates"]}
        self.lines = [Line(simulate(graph, private(seed, 1 + i), **asked)) for i in range(len(self.members))]
        for i, line in enumerate(self.lines):
            if len(line) < told["updates"]:
                raise ArgumentError(
                    f"limit: walk {i} made {len(line)} of {told['updates']} updates in {asked['cycles']:g} cycles; "
                    "the nodes are away or messages lost too often for it: raise survive or online"
                )

    @property
    def traces(self) -> list[Trace]:
        """What the service of each member did."""
        return [line.trace for line in self.lines]

    @property
    def visits(self) -> list[Visit]:
        """Where each member makes its next update.

        Raises:
            ArgumentError: a walk has made all its updates.
        """
        return [self._visit(i) for i in range(len(self.members))]

    def _visit(self, member: int) -> Visit:
        hop, line = self._made[member], self.lines[member]
        if hop >= len(line):
            raise ArgumentError(f"updates: walk {member} has made all its {hop}; ask for a longer one")
        return line.visit(hop)

    def step(self, active: Sequence[int] | None = None) -> None:
        """One update of some members, from the gradients that lie in their parameters, and one hop.

        Args:
            active: numbers of the members; all if None.

        Raises:
            ArgumentError: there is no such member, or its walk has made all its updates.
            BudgetError: the record of the node has spent its privacy budget.
        """
        chosen = range(len(self.members)) if active is None else active
        if odd := [i for i in chosen if not 0 <= i < len(self.members)]:
            raise ArgumentError(f"active: expected members 0..{len(self.members) - 1}, got {odd[0]}")
        for i in chosen:
            visit = self._visit(i)
            if (use := getattr(self.members[i], "use", None)) is not None:
                charge_lost(self.members[i], self.lines[i], self._made[i])
                use([visit.node])
            self.members[i].step()
            self._made[i] += 1

    def combine(self) -> Furthest:
        """The point of the member that has made most updates.

        Returns:
            A copy of it.
        """
        best = int(np.argmax(self._made))
        parameters = [p for group in self.members[best].param_groups for p in group["params"]]
        theta = torch.cat([p.detach().reshape(-1) for p in parameters]).clone()
        return Furthest(theta, best, self._made[best])

    def state_dict(self) -> dict[str, Any]:
        """Seed of the service, updates made and the state of each walker."""
        return {"seed": self._seed, "made": list(self._made), "members": [m.state_dict() for m in self.members]}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken; the parameters are the caller's to put back.

        Args:
            state: not changed.

        Raises:
            ArgumentError: it is of another number of members.
        """
        if len(state["members"]) != len(self.members):
            raise ArgumentError(f"state: expected {len(self.members)} members, got {len(state['members'])}")
        self._walk_from(int(state["seed"]))
        self._made = [int(n) for n in state["made"]]
        for member, own in zip(self.members, state["members"], strict=True):
            member.load_state_dict(own)

    def remaining(self) -> int:
        """How many updates the members have left, of the one with the least."""
        return min(len(line) - made for line, made in zip(self.lines, self._made, strict=True))


def _check_numbers(named: Mapping[str, Any], delay: Any) -> None:
    """Refuse what is no number; the ranges are checked where the numbers are used."""
    for name, value in named.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ArgumentError(f"{name}: expected a number, got {value!r}")
    if not named["limit"] > 0:
        raise ArgumentError(f"limit: expected a number of cycles > 0, got {named['limit']!r}")
    pair = isinstance(delay, list | tuple) and len(delay) == 2
    if not pair or not all(isinstance(value, int | float) and not isinstance(value, bool) for value in delay):
        raise ArgumentError(f"delay: expected two numbers, the least and the largest time of a message in cycles, got {delay!r}")
