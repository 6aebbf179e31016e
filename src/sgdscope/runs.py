"""open_trajectory: a stored run, and the rebuilding of replayed ones."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sgdscope.errors import ArgumentError, CorruptRunError
from sgdscope.experiment import Experiment, Replayer, points
from sgdscope.records import Snapshot, Trajectory
from sgdscope.stores.zarr import ZarrStore


def open_trajectory(path: str | Path, *, data_dir: str | Path | None = None) -> Trajectory:
    """Open a recorded run.

    A run of an `Experiment` in mode "replay" gives theta and buffers of every step: those between the stored ones are rebuilt
    from the key frame before them, update by update, and held against the recorded hash; `snapshot_steps` are the points that
    its schedule names. Every run of an `Experiment` gives the batch of every update.

    Args:
        path: the run directory.
        data_dir: folder of the real data files, where the experiment needs them to be rebuilt.

    Returns:
        The trajectory. Asking it for a point raises `ReplayError` where this machine cannot give the recorded bits.

    Raises:
        StoreError: there is no run here.
        CorruptRunError: the run's description of its experiment is not valid.

    Cost: a point costs the updates from the key frame before it (or from the point that was read last, if it lies between);
    points in ascending order are replayed once.
    """
    stored = ZarrStore.read(path)
    described = stored.settings.get("experiment")
    if described is None:
        return replace(stored, read_preconditioner=lambda step: _kept_scale(path, step))
    try:
        experiment = Experiment(**described)
    except (ArgumentError, TypeError) as error:
        raise CorruptRunError(f"{path}: the settings hold no valid experiment: {error}") from error
    replayer = Replayer(replace(stored, path=Path(path)), experiment, data_dir)
    if experiment.record.mode == "snapshots":
        return replace(stored, read_batch=replayer.batch, read_preconditioner=replayer.preconditioner)
    at_hand = frozenset(stored.snapshot_steps.tolist())

    def read_snapshot(step: int) -> Snapshot:
        return stored.read_snapshot(step) if step in at_hand else replayer.snapshot(step)

    reached = len(stored.steps["step"])
    asked = points(experiment, reached, complete=reached in at_hand)
    return replace(
        stored,
        snapshot_steps=np.array(asked, np.int64),
        read_snapshot=read_snapshot,
        read_batch=replayer.batch,
        read_preconditioner=replayer.preconditioner,
    )


def _kept_scale(path: str | Path, step: int) -> Tensor:
    """The second moments that a recorder kept at its last point."""
    return torch.from_numpy(ZarrStore.read_record(path, "preconditioner", step)[0]["scale"])
