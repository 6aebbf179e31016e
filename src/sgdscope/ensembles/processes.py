"""Bringing the replicas of processes together over torch.distributed: who has not come in time is left out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from numpy.typing import ArrayLike
from torch import Tensor

from sgdscope.replicas import Combination, Scheme, combined

log = logging.getLogger(__name__)
dist: Any = torch.distributed  # its types leave out most of what is used here
POLL = 0.05  # seconds between two looks at who has come


def collect(
    theta: Sequence[Tensor],
    workload: int,
    *,
    store: Any,
    rank: int,
    world: int,
    grace: float = 10.0,
    losses: ArrayLike = (),
    scheme: Scheme = "geometric",
    rate: float | None = None,
    distance: float | None = None,
    variance: float | None = None,
) -> Combination | None:
    """Bring the replicas of processes together on rank 0 and average those that come in time.

    Each process announces itself in the store; `grace` seconds after its own call rank 0 takes theta over gloo from those that
    are there, one pair of processes at a time, so that a process that dies, even while it sends, costs nothing but itself.

    Args:
        theta: tensors of this process's replica, on the CPU.
        workload: its updates.
        store: that all processes reach, such as that of ``torch.distributed.rendezvous``.
        rank: of this process; 0 combines.
        world: number of processes.
        grace: seconds that rank 0 waits for the others.
        losses: loss before each update of this process, from which the rate is fitted.
        scheme: of the weights.
        rate: contraction of an update; None to fit it.
        distance: see `replicas.weights`.
        variance: see `replicas.weights`.

    Returns:
        On rank 0 the combination; a process that did not come is lost in it, and that is said. None on the others.

    Raises:
        ArgumentError: no process came, or see `replicas.combined`.
        NotAvailableError: the rate is to be fitted and the losses show none.

    Cost: each replica crosses the network once.
    """
    own = dist.PrefixStore("sgdscope/parallel", store)
    curve = [float(x) for x in torch.as_tensor(losses, dtype=torch.float64).tolist()]
    told = json.dumps({"workload": int(workload), "losses": curve})
    flat = torch.cat([t.detach().reshape(-1) for t in theta])
    if rank:
        _send(own, rank, told, flat, grace)
        return None
    came = {0: json.loads(told)} | _wait(own, world, grace)
    replicas: list[list[Tensor] | None] = [[flat]]
    replicas += [_receive(own, r, flat, grace) if r in came else None for r in range(1, world)]
    workloads = [came[r]["workload"] if r in came else 0 for r in range(world)]
    curves = [came[r]["losses"] if r in came else [] for r in range(world)]
    found = combined(replicas, workloads, scheme=scheme, rate=rate, losses=curves, distance=distance, variance=variance)
    log.info("%s", found.sentence)
    return found


def _wait(store: Any, world: int, grace: float) -> dict[int, dict[str, Any]]:
    """Who announces itself before the time is up."""
    end, came = time.monotonic() + grace, dict[int, dict[str, Any]]()
    while True:
        for r in range(1, world):
            if r not in came and store.check([f"done/{r}"]):
                came[r] = json.loads(store.get(f"done/{r}"))
        if len(came) == world - 1 or time.monotonic() >= end:
            return came
        time.sleep(POLL)


def _receive(store: Any, rank: int, like: Tensor, grace: float) -> list[Tensor] | None:
    """Theta of a process; None if it is gone."""
    values = torch.empty_like(like)
    try:
        store.set(f"turn/{rank}", "now")
        pair = dist.ProcessGroupGloo(dist.PrefixStore(f"pair/{rank}", store), 0, 2, timedelta(seconds=grace))
        pair.recv([values], 1, 0).wait(timedelta(seconds=grace))
    except (RuntimeError, ValueError) as error:
        log.warning("process %d is lost while it sends: %s", rank, error)
        return None
    return [values]


def _send(store: Any, rank: int, told: str, flat: Tensor, grace: float) -> None:
    """Announce, wait for the turn, send; a process that comes too late is told nothing more."""
    store.set(f"done/{rank}", told)
    try:
        store.wait([f"turn/{rank}"], timedelta(seconds=4 * grace + 60))
        pair = dist.ProcessGroupGloo(dist.PrefixStore(f"pair/{rank}", store), 1, 2, timedelta(seconds=grace))
        pair.send([flat], 0, 0).wait(timedelta(seconds=grace))
    except (RuntimeError, ValueError) as error:
        log.warning("process %d came too late, or rank 0 is gone: %s", rank, error)
