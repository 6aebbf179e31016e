"""Walk over nodes with one example each, recorded like any other walk: its hops stand in the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sgdscope.contracts import ensembles, walkers
from sgdscope.ensembles.gossip import Line, Visit
from sgdscope.errors import ArgumentError
from sgdscope.experiment.description import Service
from sgdscope.experiment.schedules import Order, derived_seed
from sgdscope.privacy import PrivacyLedger
from sgdscope.recorder import Recorder

Loss = Callable[[nn.Module, tuple[Tensor, Tensor]], Tensor]


def line_of(service: Service, nodes: int, updates: int, seed: int) -> Line:
    """The visits of the walk that an experiment describes, simulated beforehand.

    Args:
        service: its description.
        nodes: number of training examples.
        updates: of all phases.
        seed: of the experiment.

    Returns:
        One visit an update.

    Raises:
        ArgumentError: an option is out of range, or the service cannot keep a walk alive so long; with the key path.

    Cost: see `gossip.simulate`.
    """
    drawn = torch.Generator().manual_seed(derived_seed(seed, "gossip") if service.seed is None else service.seed)
    idle = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)  # the loop makes the updates
    asked = {"degree": min(10, nodes - 1)} | service.options
    try:
        walk = ensembles[service.name].cls([idle], nodes=nodes, updates=updates, generator=drawn, **asked)
    except ArgumentError as error:
        raise ArgumentError(f"ensemble.{error}") from error
    line: Line = walk.lines[0]
    return line


class Visits(Order):
    """The order of a phase of a walk over nodes: each update sees the example of the node.

    Args:
        line: of the whole walk.
        first: update of the walk with which the phase begins.
    """

    def __init__(self, line: Line, first: int) -> None:
        super().__init__(line.trace.nodes, 1, seed=0, phase=0)
        self._line, self._first = line, first

    def indices(self, update: int) -> Tensor:
        """The example of an update.

        Args:
            update: of the phase, from 0.

        Returns:
            int64 [1].
        """
        return torch.tensor([self._line.visit(self._first + update).node])


def most_spent(ledger: PrivacyLedger, records: list[int]) -> float:
    """The most privacy that any record will have spent when some of them have been used once more.

    Args:
        ledger: not changed.
        records: that are about to be used; those that have nothing left are not.

    Returns:
        In units of eps.
    """
    uses, state = int(ledger.left(records)), ledger.state_dict()
    counts = np.array(state["used"])
    counts[records] += uses
    after = PrivacyLedger(ledger.eps, spending=ledger.spending, uses=ledger.uses)
    after.load_state_dict(state | {"used": [int(counts.max())]})
    return after.spent(0)


def walk_service(
    out: str | Path | None,
    model: nn.Module,
    loss: Loss,
    data: tuple[Tensor, Tensor],
    *,
    lr: float | Callable[[int], float],
    updates: int,
    seed: int = 0,
    walker: str = "sgd",
    options: Mapping[str, Any] | None = None,
    service: Mapping[str, Any] | None = None,
    snapshots: Callable[[int], bool] | None = None,
    settings: Mapping[str, Any] | None = None,
) -> Recorder:
    """Let a model walk over nodes with one example each, recorded: the steps have node, hop, walk, cycle and use.

    Args:
        out: the run directory; None keeps the run in memory.
        model: changed in place, in training mode as it is.
        loss: (model, (x [1, ...], y [1])) -> mean loss.
        data: x [N, ...] and y [N]; node i holds example i.
        lr: learning rate, or what it is at an update.
        updates: length of the walk.
        seed: of graph, service and walker.
        walker: name of a walker that wraps none.
        options: of the walker.
        service: options of the ensemble "gossip" (degree, survive, online, session, limit).
        snapshots: schedule of the recorder.
        settings: further settings of the run.

    Returns:
        The recorder, closed; with `out` None its store holds the run.

    Raises:
        ArgumentError: the walker wraps another one, an option is out of range, or x and y do not fit.
        BudgetError: a record has spent its privacy budget, and the walker refuses.
    """
    x, y = data
    if len(x) != len(y) or len(x) < 2:
        raise ArgumentError(f"data: expected x and y of the same two or more examples, got {len(x)} and {len(y)}")
    if walkers[walker].wraps is not None:
        raise ArgumentError(f"walker: expected one that wraps none, such as 'sgd', got '{walker}'")
    rate = lr if callable(lr) else lambda _: lr
    own, asked = dict(options or {}), {"degree": min(10, len(x) - 1)} | dict(service or {})
    generators = [torch.Generator().manual_seed(derived_seed(seed, name)) for name in ("gossip", "walker")]
    optimizer = walkers[walker].cls(list(model.parameters()), lr=float(rate(0)), generator=generators[1], **own)
    walk = ensembles["gossip"].cls([optimizer], nodes=len(x), updates=updates, generator=generators[0], **asked)
    told = {"walker": walker, "lr": float(rate(0)), "batch_size": 1, "seed": seed, "examples": len(x), "updates": updates}
    told |= {"service": asked, "options": {k: str(v) for k, v in own.items()}, **(settings or {})}
    recorder = Recorder(
        out, model, optimizer, loss=loss, snapshots=snapshots, settings=told, store="memory" if out is None else "zarr"
    )
    with recorder:
        for t in range(updates):
            visit: Visit = walk.visits[0]
            for group in optimizer.param_groups:
                group["lr"] = float(rate(t))
            recorder.log(node=visit.node, hop=visit.hop, walk=visit.walk, cycle=visit.cycle, use=visit.use)
            optimizer.zero_grad()
            i = slice(visit.node, visit.node + 1)
            torch.autograd.backward(recorder.loss(model, (x[i], y[i])))
            walk.step()
    return recorder
