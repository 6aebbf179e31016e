"""Bringing the replicas of processes together over torch.distributed: who has not come in time is left out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed
from numpy.typing import ArrayLike
from torch import Tensor

from sgdscope.errors import ArgumentError
from sgdscope.replicas import Combination, Scheme, combined

log = logging.getLogger(__name__)
dist: Any = torch.distributed  # its types leave out most of what is used here
POLL = 0.05  # seconds between two looks at who has come
LATE = "late"  # in place of a turn


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
    are there, one pair of processes at a time, so that a process that dies, even while it sends, has diverged, or brings a
    replica of another size costs nothing but itself.

    Args:
        theta: tensors of this process's replica; they travel through the memory of the CPU.
        workload: its updates.
        store: that all processes reach, such as that of ``torch.distributed.rendezvous``.
        rank: of this process, 0 <= rank < world; 0 combines.
        world: number of processes.
        grace: seconds > 0 that rank 0 waits for the others, and again for each that dies while it sends.
        losses: loss before each update of this process, from which the rate is fitted.
        scheme: of the weights.
        rate: contraction of an update; None to fit it.
        distance: see `replicas.weights`.
        variance: see `replicas.weights`.

    Returns:
        On rank 0 the combination; a process that did not come is lost in it, and that is said. None on the others.

    Raises:
        ArgumentError: rank or grace is out of range, or see `replicas.combined`.
        NotAvailableError: the rate is to be fitted and the losses show none.

    Cost: each replica crosses the network once.
    """
    if not 0 <= rank < world or not grace > 0:
        raise ArgumentError(f"rank, grace: expected 0 <= rank < world = {world} and grace > 0 seconds, got {rank} and {grace}")
    own = dist.PrefixStore("sgdscope/parallel", store)
    curve = [float(x) for x in torch.as_tensor(losses, dtype=torch.float64).tolist()]
    flat = torch.cat([t.detach().reshape(-1) for t in theta]).cpu()
    told = json.dumps({"workload": int(workload), "losses": curve, "size": _size(flat)})
    if rank:
        _send(own, rank, told, flat, grace)
        return None
    came = {0: json.loads(told)} | _fitting(_wait(own, world, grace), _size(flat))
    for late in {*range(1, world)} - {*came}:
        own.set(f"turn/{late}", LATE)
    replicas: list[list[Tensor] | None] = [_finite(0, flat)]
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


def _size(flat: Tensor) -> str:
    return f"{len(flat)} numbers of {flat.dtype}"


def _fitting(came: Mapping[int, dict[str, Any]], size: str) -> dict[int, dict[str, Any]]:
    """Those whose replica has the size of rank 0's: gloo would end the process at a longer one, and leave a rest at a shorter."""
    for r, told in came.items():
        if told["size"] != size:
            log.warning("process %d is left out: its replica has %s, that of process 0 has %s", r, told["size"], size)
    return {r: told for r, told in came.items() if told["size"] == size}


def _receive(store: Any, rank: int, like: Tensor, grace: float) -> list[Tensor] | None:
    """Theta of a process; None if it is gone or has diverged."""
    values = torch.empty_like(like)
    try:
        store.set(f"turn/{rank}", "now")
        pair = dist.ProcessGroupGloo(dist.PrefixStore(f"pair/{rank}", store), 0, 2, timedelta(seconds=grace))
        pair.recv([values], 1, 0).wait(timedelta(seconds=grace))
    except (RuntimeError, ValueError) as error:
        log.warning("process %d is lost while it sends: %s", rank, error)
        return None
    return _finite(rank, values)


def _finite(rank: int, flat: Tensor) -> list[Tensor] | None:
    if bool(flat.isfinite().all()):
        return [flat]
    log.warning("process %d is left out: its replica is not finite, it has diverged", rank)
    return None


def _send(store: Any, rank: int, told: str, flat: Tensor, grace: float) -> None:
    """Announce, wait for the turn, send, or be told that it is too late."""
    store.set(f"done/{rank}", told)
    try:
        store.wait([f"turn/{rank}"], timedelta(seconds=4 * grace + 60))
        if store.get(f"turn/{rank}").decode() == LATE:
            log.warning("process %d came too late, or its replica does not fit: it is left out", rank)
            return
        pair = dist.ProcessGroupGloo(dist.PrefixStore(f"pair/{rank}", store), 1, 2, timedelta(seconds=grace))
        pair.send([flat], 0, 0).wait(timedelta(seconds=grace))
    except (RuntimeError, ValueError) as error:
        log.warning("process %d did not get its replica across, rank 0 may be gone: %s", rank, error)
