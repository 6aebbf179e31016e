"""Weighted parallel SGD for real: a process a member, a deadline in seconds, and whoever has not come by then is left out.

``torchrun --nproc_per_node 4 -m sgdscope.experiment.processes EXPERIMENT.toml OUT --deadline 30`` walks the members of the
experiment side by side. torchrun ends all processes when one is killed; started otherwise (with MASTER_ADDR, MASTER_PORT, RANK
and WORLD_SIZE), the others go on without it.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed

from sgdscope.ensembles.processes import POLL, collect
from sgdscope.errors import ArgumentError, StoreError
from sgdscope.experiment.description import Experiment, load_toml
from sgdscope.experiment.ensembles import members, start_of, tell
from sgdscope.experiment.running import recorded
from sgdscope.replicas import Combination
from sgdscope.stores.zarr import ZarrStore

log = logging.getLogger(__name__)
dist: Any = torch.distributed  # its types leave out most of what is used here
MEETING = 60.0  # seconds that processes wait for each other, before and after they have read their data


def walk(
    experiment: Experiment,
    out: str | Path,
    *,
    deadline: float,
    grace: float = 10.0,
    pause: float = 0.0,
    data_dir: str | Path | None = None,
) -> Combination | None:
    """Walk and record the member of this process until the deadline, then bring all together on rank 0.

    The updates of a member are those that its process has finished at the deadline, at most those of the phases. OUT/member-r is
    an ordinary run that stopped there; rank 0 writes OUT/average and OUT/ensemble.json, as `run_ensemble` does, and needs
    to read the runs of the others in OUT.

    Args:
        experiment: with an ensemble in mode simuparallel of as many members as processes; workloads and speeds are not used.
        out: folder of the ensemble.
        deadline: seconds from the moment at which all processes are there, > 0; they wait a minute for one that does not come.
        grace: seconds that rank 0 waits for the others after the deadline, > 0.
        pause: seconds of sleep after each update, to be slow.
        data_dir: folder of the real data files.

    Returns:
        The combination on rank 0, None on the others.

    Raises:
        ArgumentError: the experiment has another number of members or another mode, or a time is out of range.
        StoreError: a run lies there already.
    """
    if not deadline > 0 or not grace > 0 or not pause >= 0:
        raise ArgumentError(f"deadline, grace, pause: expected > 0, > 0 and >= 0 seconds, got {deadline}, {grace} and {pause}")
    store, rank, world = next(dist.rendezvous("env://", timeout=timedelta(seconds=MEETING)))
    whole = Experiment(**experiment.described() | {"ensemble": _all_updates(experiment, world)})
    made, path = members(whole, data_dir), Path(out)
    if (path / made[rank].name).exists():
        raise StoreError(f"{path / made[rank].name} is there already; a walk by the clock cannot go on, choose another folder")
    loop = start_of(made[rank], data_dir)
    _meet(store, world)
    end = time.monotonic() + deadline
    with loop.random.installed(loop.experiment.threads), closing(recorded(loop, path / made[rank].name)) as updates:
        for _ in updates:
            if time.monotonic() + pause >= end:
                break
            time.sleep(pause)
    losses = ZarrStore.read(path / made[rank].name).steps["loss"].values
    options = {k: v for k, v in (experiment.ensemble.options if experiment.ensemble else {}).items() if k != "mode"}
    theta = list(loop.parameters.values())
    found = collect(theta, loop.step, store=store, rank=rank, world=world, grace=grace, losses=losses, **options)
    if found is not None:
        counted = [replace(m, updates=n) for m, n in zip(made, found.workloads, strict=True)]
        tell(whole, counted, found, path, data_dir=data_dir)
    return found


def _all_updates(experiment: Experiment, world: int) -> dict[str, Any]:
    told = experiment.ensemble
    if told is None or told.members != world:
        came = "none" if told is None else told.members
        raise ArgumentError(f"ensemble.members: expected {world}, one a process, got {came}")
    if told.options.get("mode", "simuparallel") != "simuparallel":
        raise ArgumentError(f"ensemble.mode: expected 'simuparallel' over processes, got '{told.options['mode']}'")
    plain = {"workloads", "speeds", "deadline", "scatter", "straggling", "slowdown", "lost"}
    return told.model_dump(mode="json", exclude_none=True, exclude=plain)


def _meet(store: Any, world: int) -> None:
    """Wait until all processes are there, so that one clock is good for all; not for ever, one may have died on its way."""
    store.add("sgdscope/here", 1)
    end = time.monotonic() + MEETING
    while (here := store.add("sgdscope/here", 0)) < world:
        if time.monotonic() >= end:
            log.warning("%d of %d processes are there after %g seconds: they walk without the others", here, world, MEETING)
            return
        time.sleep(POLL)


def main(arguments: Sequence[str] | None = None) -> None:
    """Walk the member of this process; see the top of the file."""
    parser = argparse.ArgumentParser(
        prog="python -m sgdscope.experiment.processes", description=(__doc__ or "").split("\n", 1)[0]
    )
    parser.add_argument("experiment", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--deadline", type=float, required=True, help="seconds")
    parser.add_argument("--grace", type=float, default=10.0, help="seconds that rank 0 waits for the others")
    parser.add_argument("--pause", type=float, default=0.0, help="seconds of sleep after each update")
    parser.add_argument("--data-dir", type=Path, default=None)
    told = parser.parse_args(arguments)
    walk(load_toml(told.experiment), told.out, deadline=told.deadline, grace=told.grace, pause=told.pause, data_dir=told.data_dir)


if __name__ == "__main__":
    main()
