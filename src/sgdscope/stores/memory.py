"""The plain store: a run kept in lists, for live work and as the model that the other stores are held against."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sgdscope.contracts import store
from sgdscope.errors import ArgumentError, NotAvailableError, StoreError
from sgdscope.records import Header, Record, Snapshot, StepBlock, Trajectory, check_block, cpu_vector, steps_dataset, unpack_batch


@store("memory")
class MemoryStore:
    """A run in memory. It has no path: where other stores take one, this one takes the store itself.

    Args:
        path: a `MemoryStore` whose run is gone on with under ``resume="append"`` (the two then share it); None or a
            path, which is not used, for a new run.
        resume: ``"error"`` or ``"append"``.
        start_step: rows from this step on are dropped when appending; None goes on after the last update.
        fsync: taken for the contract's sake; memory knows no disk.

    Raises:
        ArgumentError: `resume` is neither.
    """

    def __init__(
        self,
        path: str | Path | MemoryStore | None = None,
        *,
        resume: Literal["error", "append"] = "error",
        start_step: int | None = None,
        fsync: bool = False,
    ) -> None:
        if resume not in ("error", "append"):
            raise ArgumentError(f"resume: expected 'error' or 'append', got {resume!r}")
        self._resume, self._start, self._fsync = resume, start_step, fsync
        self._header: Header | None = None
        self._steps: list[int] = []
        self._columns: dict[str, list[float]] = {}
        self._snapshots: dict[int, Snapshot] = {}
        self._records: dict[str, dict[int, Record]] = {}
        self._measured: dict[str, xr.Dataset] = {}
        self._open = False
        if isinstance(path, MemoryStore):
            self._header, self._steps, self._columns = path._header, path._steps, path._columns
            self._snapshots, self._records, self._measured = path._snapshots, path._records, path._measured

    # --- a sink ------------------------------------------------------------------------------------------------------

    def begin(self, header: Header) -> None:
        """Take the header, or hold it against the run that is gone on with.

        Args:
            header: names, shapes and settings; copied.

        Raises:
            StoreError: the store holds a run and `resume` is "error", or names or shapes differ.
        """
        if self._open or (self._header is not None and self._resume == "error"):
            raise StoreError("this MemoryStore already holds a run; take a new one, or resume='append'")
        if self._header is None:
            self._header = Header(header.layout, header.buffer_layout, copy.deepcopy(dict(header.settings)))
        elif (self._header.layout, self._header.buffer_layout) != (header.layout, header.buffer_layout):
            raise StoreError(f"the run to append to has {self._header.layout}, not {header.layout}; go on with the same model")
        else:
            self._truncate()
        self._open = True

    def _truncate(self) -> None:
        start = self._start
        if start is None:
            start = self._steps[-1] + 1 if self._steps else min(self._snapshots, default=0)
        rows = int(np.searchsorted(self._steps, start))
        del self._steps[rows:]
        for values in self._columns.values():
            del values[rows:]
        of_step: list[dict[int, Any]] = [self._snapshots, *self._records.values()]
        for kept in of_step:
            for step in [s for s in kept if s >= start]:
                del kept[step]

    def _writable(self) -> None:
        if not self._open:
            raise StoreError("this MemoryStore is not open for writing; call begin first, and write before close")

    def write_steps(self, block: StepBlock) -> None:
        """Append the scalars of updates.

        Args:
            block: its steps follow the last one.
        """
        self._writable()
        check_block(block, self._steps[-1] if self._steps else -1)
        for name in block.columns:
            self._columns.setdefault(name, [np.nan] * len(self._steps))
        missing = np.full(len(block.steps), np.nan)
        for name, values in self._columns.items():
            values.extend(np.asarray(block.columns.get(name, missing), np.float64).tolist())
        self._steps.extend(np.asarray(block.steps).tolist())

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Append a point.

        Args:
            snapshot: copied; its step follows the last one.

        Raises:
            ArgumentError: the step does not follow, or the lengths are not those of the header.
        """
        self._writable()
        header = self._header
        if snapshot.step <= (last := _last(self._snapshots)):
            raise ArgumentError(f"snapshot: step {snapshot.step} does not follow {last}; steps must increase")
        if header is None or (len(snapshot.theta), len(snapshot.buffers)) != (header.layout.size, header.buffer_layout.size):
            raise ArgumentError(f"snapshot: theta and buffers have shapes {snapshot.theta.shape} and {snapshot.buffers.shape}")
        theta = cpu_vector(snapshot.theta).to(header.layout.storage_dtype)
        buffers = cpu_vector(snapshot.buffers).to(header.buffer_layout.storage_dtype)
        self._snapshots[int(snapshot.step)] = Snapshot(int(snapshot.step), theta, buffers)

    def write_record(self, record: Record) -> None:
        """Append the named arrays of one step.

        Args:
            record: copied; its step follows the last one of its kind.

        Raises:
            ArgumentError: the step does not follow, or an array is not of a plain numeric dtype.
        """
        self._writable()
        kept = self._records.setdefault(record.kind, {})
        if record.step <= (last := _last(kept)):
            raise ArgumentError(f"record: step {record.step} of '{record.kind}' does not follow {last}")
        for name, array in record.arrays.items():
            if np.asarray(array).dtype.kind not in "biufc":
                raise ArgumentError(f"record: '{name}' has dtype {np.asarray(array).dtype}; expected a numeric dtype")
        arrays = {name: np.array(array) for name, array in record.arrays.items()}
        kept[int(record.step)] = Record(record.kind, int(record.step), arrays, copy.deepcopy(dict(record.meta)))

    def flush(self) -> None:
        """Return at once: what was taken is in memory."""

    def close(self) -> None:
        """Take no more."""
        self._open = False

    # --- reading -----------------------------------------------------------------------------------------------------

    @property
    def stored_steps(self) -> int:
        """How many updates are kept."""
        return len(self._steps)

    def trajectory(self) -> Trajectory:
        """The run as it is now.

        Returns:
            A trajectory without a path; what it gives are copies.

        Raises:
            StoreError: nothing was begun.
        """
        if self._header is None:
            raise StoreError("this MemoryStore holds no run; call begin first")
        header = Header(self._header.layout, self._header.buffer_layout, copy.deepcopy(dict(self._header.settings)))
        points = np.array(sorted(self._snapshots), np.int64)
        return Trajectory(header, self._dataset, points, self._snapshot, self._batch, None, self._preconditioner)

    def _dataset(self) -> xr.Dataset:
        columns = {name: np.array(values, np.float64) for name, values in self._columns.items()}
        return steps_dataset(np.array(self._steps, np.int64), columns)

    def _snapshot(self, step: int) -> Snapshot:
        if step not in self._snapshots:
            raise NotAvailableError(
                f"no snapshot of step {step} was recorded; there are {len(self._snapshots)}, see snapshot_steps"
            )
        kept = self._snapshots[step]
        return Snapshot(kept.step, kept.theta.clone(), kept.buffers.clone())

    def _preconditioner(self, step: int) -> Tensor:
        return torch.from_numpy(self.read_record(self, "preconditioner", step)[0]["scale"])

    def _batch(self, step: int) -> Any:
        arrays, meta = self.read_record(self, "batches", step)
        return unpack_batch(arrays, meta["spec"])

    @classmethod
    def read(cls, path: MemoryStore) -> Trajectory:
        """Open a run for reading.

        Args:
            path: the store itself.

        Returns:
            Its trajectory.
        """
        return path.trajectory()

    @classmethod
    def read_record(cls, path: MemoryStore, kind: str, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the named arrays of one step.

        Args:
            path: the store itself.
            kind: such as ``"batches"``.
            step: t.

        Returns:
            (name -> array, meta), both copies.

        Raises:
            NotAvailableError: there is none.
        """
        record = path._records.get(kind, {}).get(int(step))
        if record is None:
            raise NotAvailableError(f"no record '{kind}' of step {step} was written; record_steps says which were")
        return {name: np.array(array) for name, array in record.arrays.items()}, copy.deepcopy(dict(record.meta))

    @classmethod
    def record_steps(cls, path: MemoryStore, kind: str) -> list[int]:
        """The steps that have a record.

        Args:
            path: the store itself.
            kind: such as ``"batches"``.

        Returns:
            Ascending.
        """
        return sorted(path._records.get(kind, {}))

    @classmethod
    def write_measurement(cls, path: MemoryStore, name: str, measured: xr.Dataset) -> None:
        """Keep a measurement with its run; measured again = replaced.

        Args:
            path: the store itself.
            name: of its group.
            measured: copied.
        """
        path._measured[name] = measured.copy(deep=True)

    @classmethod
    def measurements(cls, path: MemoryStore) -> xr.DataTree:
        """All kept measurements.

        Args:
            path: the store itself.

        Returns:
            One group a quantity, copies.
        """
        kept: Mapping[str, xr.Dataset] = {name: data.copy(deep=True) for name, data in sorted(path._measured.items())}
        return xr.DataTree.from_dict(dict(kept))


def _last(kept: dict[int, Any]) -> int:
    """The largest step, which is the one that was written last; -1 if there is none."""
    return next(reversed(kept), -1)
