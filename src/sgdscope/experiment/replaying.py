"""Rebuild any point of a recorded experiment: from the key frame before it, update by update, held against its hash."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
import xxhash
from torch import Tensor

from sgdscope.errors import NotAvailableError, ReplayError
from sgdscope.experiment.description import Experiment, Phase
from sgdscope.experiment.loop import Loop
from sgdscope.records import Record, Snapshot, Trajectory
from sgdscope.stores.zarr import ZarrStore

HASH_COLUMNS = ("theta_hash_high", "theta_hash_low")
KEY_FRAMES = "keyframes"


def fingerprint(experiment: Experiment, data: str) -> dict[str, Any]:
    """What the bits of a run depend on beside its description.

    Args:
        experiment: the description.
        data: fingerprint of the data.

    Returns:
        JSON types: torch, threads, cpu_capability, device, data.
    """
    device = experiment.device if experiment.device == "cpu" else torch.cuda.get_device_name(experiment.device)
    return {
        "torch": str(torch.__version__),
        "threads": experiment.threads,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "device": device,
        "data": data,
    }


_REMEDIES = {
    "torch": "install that version of torch",
    "threads": "give the experiment that number of threads",
    "cpu_capability": "replay on a CPU of that capability, or start python with ATEN_CPU_CAPABILITY set to it",
    "device": "replay on that device",
    "data": "point data_dir to the files of the run",
}


def check_fingerprint(stored: Mapping[str, Any], here: Mapping[str, Any]) -> None:
    """Hold this machine against the one that recorded.

    Args:
        stored: fingerprint in the run's settings.
        here: fingerprint of this machine.

    Raises:
        ReplayError: some part differs; each is named with what to do.
    """
    different = [
        f"{part} was {stored.get(part)!r} and is {value!r} here: {_REMEDIES[part]}"
        for part, value in here.items()
        if stored.get(part) != value
    ]
    if different:
        raise ReplayError(
            "this run cannot be rebuilt bit for bit here; "
            + "; ".join(different)
            + "; or record it again with mode = 'snapshots'"
        )


def split_hash(value: int) -> tuple[float, float]:
    """The upper and lower 32 bits of a 64-bit hash as numbers that float64 holds exactly."""
    return float(value >> 32), float(value & 0xFFFFFFFF)


class Replayer:
    """Stands at some update of a recorded experiment and goes on from there; reading in order replays once.

    The model, its data and its random state are the replayer's own; the global generators and the number of threads are
    left as they were. Nothing is loaded before the first point is asked for.

    Args:
        stored: the run as the store reads it.
        experiment: its description.
        data_dir: folder of the real data files.

    Attributes:
        updates: how many updates were replayed so far.
    """

    def __init__(self, stored: Trajectory, experiment: Experiment, data_dir: str | Path | None = None) -> None:
        if stored.path is None:
            raise NotAvailableError("only a run that lies in a directory can be rebuilt; this one is in memory")
        self.path: Path = stored.path
        self.experiment, self.data_dir, self.updates = experiment, data_dir, 0
        self._stored = stored
        self._loop: Loop | None = None
        self._checked = False
        self._frames: list[int] | None = None
        self._steps: xr.Dataset | None = None

    @property
    def loop(self) -> Loop:
        """The machine, built at first use."""
        if self._loop is None:
            self._loop = Loop(self.experiment, self.data_dir)
        return self._loop

    def batch(self, step: int) -> Any:
        """The batch of an update.

        Args:
            step: t.

        Returns:
            (x, y) as the loop saw them.

        Raises:
            NotAvailableError: the experiment has no such update.
        """
        if not 0 <= step < self.loop.total:
            raise NotAvailableError(f"there is no update {step}; the experiment has the updates 0..{self.loop.total - 1}")
        x, y = self.loop.batch(step)
        return x.clone(), y.clone()

    def seek(self, step: int) -> Loop:
        """Stand before update `step`.

        Args:
            step: t.

        Returns:
            The machine.

        Raises:
            ReplayError: this machine cannot give the bits of the run, or there is no key frame before the step.
        """
        loop = self.loop
        if not self._checked:
            check_fingerprint(self._stored.settings.get("fingerprint", {}), fingerprint(self.experiment, loop.data.fingerprint))
        if self._frames is None:
            self._frames = ZarrStore.record_steps(self.path, KEY_FRAMES)
        before = [frame for frame in self._frames if frame <= step]
        if not before:
            raise ReplayError(f"{self.path}: there is no key frame at or before step {step}; the run cannot be rebuilt from it")
        if not (self._checked and before[-1] <= loop.step <= step):
            loop.restore(before[-1], *ZarrStore.read_record(self.path, KEY_FRAMES, before[-1]))
        self._checked = True
        with loop.random.installed(self.experiment.threads):
            while loop.step < step:
                loop.advance()
                self.updates += 1
        return loop

    def snapshot(self, step: int) -> Snapshot:
        """Rebuild a point.

        Args:
            step: t.

        Returns:
            theta_t, and the buffers as the recorder keeps them (after the forward pass of update t); copies.

        Raises:
            NotAvailableError: the run did not get there.
            ReplayError: what was rebuilt is not what was recorded.
        """
        loop = self._verified(step)
        with loop.random.installed(self.experiment.threads):
            return loop.snapshot_in_update()

    def _verified(self, step: int) -> Loop:
        """The machine at a step, held against its hash."""
        expected = self._hash(step)
        loop = self.seek(step)
        if (found := loop.theta_hash()) != expected:
            self._checked = False
            raise ReplayError(
                f"{self.path}: theta of step {step} was rebuilt with hash {found:016x}, recorded was {expected:016x}; the model "
                "or the loop has changed since the recording: use the version of sgdscope in the run's settings "
                f"({self._stored.settings.get('sgdscope')}), or record again with mode = 'snapshots'"
            )
        return loop

    def key_frame(self, step: int) -> Record:
        """The whole state at a step, rebuilt and held against its hash.

        Args:
            step: t.

        Returns:
            A record of kind ``"keyframes"``.
        """
        self._verified(step)
        with self.loop.random.installed(self.experiment.threads):
            return self.loop.key_frame()

    def phase_at(self, step: int) -> Phase:
        """The phase of the update before a step (the first phase at step 0)."""
        return self.experiment.phases[self.loop.place(max(step - 1, 0))[0]]

    def preconditioner(self, step: int) -> Tensor:
        """What Adam and its family divide an update by, rebuilt; see `Trajectory.preconditioner`.

        Args:
            step: t >= 1.

        Returns:
            D [P], float64.

        Raises:
            NotAvailableError: the walker keeps no second moments.
        """
        loop, parts = self._verified(step), []
        for group in loop.optimizer.param_groups:
            for parameter in group["params"]:
                state = loop.optimizer.state.get(parameter, {})
                if "exp_avg_sq" not in state:
                    raise NotAvailableError(f"the walker keeps no second moments at step {step}; only Adam and its family do")
                unbiased = state["exp_avg_sq"].double() / (1 - group["betas"][1] ** float(state["step"]))
                parts.append((unbiased.sqrt() + group["eps"]).reshape(-1))
        return torch.cat(parts)

    def _hash(self, step: int) -> int:
        if self._steps is None:
            self._steps = self._stored.steps
        rows = self._steps["step"].values
        row = int(np.searchsorted(rows, step))
        if row < len(rows) and rows[row] == step and all(name in self._steps for name in HASH_COLUMNS):
            high, low = (int(self._steps[name].values[row]) for name in HASH_COLUMNS)
            return high << 32 | low
        if step in self._stored.snapshot_steps:
            return xxhash.xxh3_64_intdigest(self._stored.theta(step).numpy().data)
        raise NotAvailableError(f"{self.path}: step {step} was not recorded; the run has {len(rows)} updates")
