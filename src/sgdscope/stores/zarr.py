"""The default store: a run directory of zarr v3 arrays and JSON, which a kill -9 cannot rob of what was acknowledged.

The directory holds ``run.json`` (the header, written last: without it there is no run), ``steps/<column>`` (chunks of
1024 rows), ``snapshots/theta`` and ``buffers`` (a snapshot a row), ``records/<kind>/<step>``, ``measurements/<name>`` and
the writer's lock. Data are written first, then ``step``, which is the commit record: a row is there when its step is.
Attributes of ``step`` name the columns and the rows that must be there at least, so that a lost file cannot pass for NaN.
"""

from __future__ import annotations

import shutil
from collections.abc import Generator, Mapping
from contextlib import ExitStack, contextmanager
from math import ceil
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.contracts import store
from sgdscope.errors import ArgumentError, DataError, NotAvailableError, SgdscopeError, StoreError
from sgdscope.files import DTYPES, GROUP, ROWS, Array, Run, array_node, chunk_width, escape, locked, sealed, stored_dtype, to_json
from sgdscope.records import (
    SCHEMA_VERSION,
    STEP_VARIABLES,
    Header,
    Record,
    Snapshot,
    StepBlock,
    Trajectory,
    check_block,
    steps_dataset,
    unpack_batch,
)
from sgdscope.vector import Layout

GROWTH = 4096  # rows by which arrays grow: DESIGN, "Store"
OURS = {"writer.lock", "measurements.lock", "zarr.json", "steps", "snapshots"}  # what a killed start may have left


@store("zarr", capabilities=["persistent", "measurements"])
class ZarrStore:
    """A run in a directory that zarr and xarray open too.

    Cost on one core: a block of 64 rows rewrites one 8 kB chunk a column; a snapshot costs its bytes, written once.

    Args:
        path: the run directory; must not exist or be empty unless `resume` is "append".
        resume: ``"error"``, or ``"append"``: go on with the run that is there, or begin one.
        start_step: appending drops steps, snapshots and records from this step on (measurements stay); None goes on
            after the last committed update.
        fsync: make each acknowledged write survive a power loss too; a kill it survives anyway.

    Raises:
        ArgumentError: `resume` is neither.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        resume: Literal["error", "append"] = "error",
        start_step: int | None = None,
        fsync: bool = False,
    ) -> None:
        if resume not in ("error", "append"):
            raise ArgumentError(f"resume: expected 'error' or 'append', got {resume!r}")
        self.path, self._resume, self._start = Path(path), resume, start_step
        self._files = Run(self.path, fsync=fsync)
        self._held, self._open = ExitStack(), False
        self._nodes: dict[str, dict[str, Any]] = {}  # zarr.json of each array of steps and snapshots
        self._tails: dict[str, NDArray[Any]] = {}  # the last chunk of each scalar
        self._rows = {"steps": 0, "snapshots": 0}
        self._last = {"steps": -1, "snapshots": -1}  # and the last step of each kind of record, as records/<kind>
        self._header: Header

    # --- a sink ------------------------------------------------------------------------------------------------------

    def begin(self, header: Header) -> None:
        """Create the run, or open it for appending.

        Args:
            header: names, shapes and settings; when appending, the stored settings stay.

        Raises:
            StoreError: the directory is taken, cannot be written, has another writer, or names or shapes differ.
            ArgumentError: the settings are not JSON types.
        """
        if self._open:
            raise StoreError(f"{self.path}: begin was called already; a store writes one run")
        layouts = {"layout": header.layout.to_json(), "buffer_layout": header.buffer_layout.to_json()}
        text = to_json({"schema_version": SCHEMA_VERSION, **layouts, "settings": dict(header.settings)}, "settings")
        with self._named():
            self._refuse_occupied()
            self._files.real.mkdir(parents=True, exist_ok=True)
            with ExitStack() as held:
                held.enter_context(locked(self._files.real / "writer.lock", wait=False))
                self._refuse_occupied()
                partial = [n for n in self._files.listing("") if n.endswith(".partial") and not n.startswith("measurements")]
                for name in partial:
                    self._files.remove(name)
                if "run.json" in self._files.listing(""):
                    self._go_on(header)
                else:
                    self._create(header)
                    self._files.write("run.json", text)
                self._held = held.pop_all()
        self._open = True

    def _refuse_occupied(self) -> None:
        entries = set(self._files.listing(""))
        if "run.json" in entries:
            if self._resume == "error":
                raise StoreError(f"{self.path}: holds a run already; choose another path, or resume='append' to go on with it")
            return
        if "writer.lock" in entries:
            entries = {name for name in entries - OURS if not name.endswith(".partial")}
        if entries:
            raise StoreError(f"{self.path}: holds other files ({', '.join(sorted(entries)[:4])}) and no run; choose another path")

    def _create(self, header: Header) -> None:
        for name in ("steps", "snapshots"):
            self._files.remove(name)
            self._files.write(f"{name}/zarr.json", to_json(GROUP, "group"))
            about = {"committed": 0, "columns": [], "units": "1", "long_name": "update t"}
            self._set_node(f"{name}/step", array_node([0], [ROWS], "int64", ["step"], about))
        for name, layout in (("theta", header.layout), ("buffers", header.buffer_layout)):
            if size := layout.size:
                node = array_node([0, size], [1, chunk_width(size)], stored_dtype(layout), ["step", f"{name}_index"], {})
                self._set_node(f"snapshots/{name}", node)
        self._files.write("zarr.json", to_json(GROUP, "group"))
        self._header = header

    def _go_on(self, header: Header) -> None:
        files, kept = self._files, self._files.header()
        for ours, theirs, what in (
            (kept.layout, header.layout, "parameters"),
            (kept.buffer_layout, header.buffer_layout, "buffers"),
        ):
            if (ours.names, ours.shapes, ours.storage_dtype) != (theirs.names, theirs.shapes, theirs.storage_dtype):
                stored, came = (dict(zip(x.names, x.shapes, strict=True)) for x in (ours, theirs))
                raise StoreError(
                    f"{self.path}: the run has the {what} {stored} in {ours.storage_dtype}, the model has {came} in "
                    f"{theirs.storage_dtype}; go on with the same model, or choose another path"
                )
        self._header, self._last = kept, {}
        steps, columns = files.committed("steps")
        points, _ = files.committed("snapshots")
        files.write("zarr.json", to_json(GROUP, "group"))
        for relative in ("steps/step", "snapshots/step"):
            self._nodes[relative] = files.node(relative, ["int64"], [ROWS])
        for name in columns:
            self._nodes[f"steps/{escape(name)}"] = files.node(f"steps/{escape(name)}", ["float64"], [ROWS])
        for name, layout in (("theta", kept.layout), ("buffers", kept.buffer_layout)):
            if layout.size:
                relative = f"snapshots/{name}"
                self._nodes[relative] = files.node(relative, [stored_dtype(layout)], [1, chunk_width(layout.size)])
        start = self._start
        if start is None:
            start = int(steps[-1]) + 1 if len(steps) else int(points[0]) if len(points) else 0
        for group, there in (("steps", steps), ("snapshots", points)):
            rows = int(np.searchsorted(there, start))
            self._rows[group], self._last[group] = rows, int(there[rows - 1]) if rows else -1
            self._trim(group)
        for kind in files.listing("records"):
            for step in files.record_steps(unquote(kind)):
                if step >= start:
                    files.move(f"records/{kind}/{step}", "record.partial")
                    files.remove("record.partial")
                else:
                    self._last[f"records/{kind}"] = step

    def write_steps(self, block: StepBlock) -> None:
        """Append the scalars of updates; they are acknowledged when this returns.

        Args:
            block: its steps follow the last one; columns that it lacks are NaN, new ones are NaN before.
        """
        with self._writing():
            check_block(block, self._last["steps"])
            if not len(block.steps):
                return
            steps, names = np.asarray(block.steps, np.int64), self._nodes["steps/step"]["attributes"]["columns"]
            if late := [name for name in block.columns if name not in names]:
                self._add_columns(late)
            self._grow("steps", len(steps))
            missing, tails = np.full(len(steps), np.nan), {}
            for name in self._nodes["steps/step"]["attributes"]["columns"]:
                relative, values = f"steps/{escape(name)}", np.asarray(block.columns.get(name, missing), np.float64)
                tails[relative] = self._extend(relative, values)
            tails["steps/step"] = self._extend("steps/step", steps)
            self._commit("steps", tails, len(steps), int(steps[-1]))

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Append a point; it is acknowledged when this returns.

        Args:
            snapshot: its step follows the last one.

        Raises:
            ArgumentError: the step does not follow, or a length is not that of the header.
        """
        with self._writing():
            step, parts = int(snapshot.step), {"theta": snapshot.theta, "buffers": snapshot.buffers}
            layouts = {"theta": self._header.layout, "buffers": self._header.buffer_layout}
            if step <= self._last["snapshots"]:
                raise ArgumentError(f"snapshot: step {step} does not follow {self._last['snapshots']}; steps must increase")
            for name, part in parts.items():
                if part.shape != (layouts[name].size,):
                    raise ArgumentError(f"snapshot: {name} has shape {tuple(part.shape)}, expected ({layouts[name].size},)")
            self._grow("snapshots", 1)
            for name, part in parts.items():
                self._put_vector(f"snapshots/{name}/c/{self._rows['snapshots']}", layouts[name], part)
            tail = self._extend("snapshots/step", np.array([step], np.int64))
            self._commit("snapshots", {"snapshots/step": tail}, 1, step)

    def _put_vector(self, relative: str, layout: Layout, vector: Tensor) -> None:
        values = vector.detach().to("cpu", layout.storage_dtype).contiguous().numpy()
        width = chunk_width(layout.size) if layout.size else 1
        for k, first in enumerate(range(0, layout.size, width)):
            part = values[first : first + width]
            if len(part) < width:
                part = np.concatenate([part, np.zeros(width - len(part), part.dtype)])
            self._files.write(f"{relative}/{k}", *sealed(part))

    def write_record(self, record: Record) -> None:
        """Append the named arrays of one step; they are there whole or not at all.

        Args:
            record: its step follows the last one of its kind.

        Raises:
            ArgumentError: the step does not follow, or an array is not of a plain numeric dtype.
        """
        with self._writing():
            folder = f"records/{escape(record.kind)}"
            if record.step <= (last := self._last.get(folder, -1)):
                raise ArgumentError(f"record: step {record.step} of '{record.kind}' does not follow {last}; steps must increase")
            arrays: dict[str, Array] = {name: (np.asarray(array), None, {}) for name, array in record.arrays.items()}
            for name, (array, _, _) in arrays.items():
                if array.dtype.newbyteorder("=").name not in DTYPES:
                    raise ArgumentError(f"record: '{name}' has dtype {array.dtype}; expected one of {', '.join(DTYPES)}")
            self._files.write_folder("record.partial", arrays, {}, record.meta)
            self._files.move("record.partial", f"{folder}/{int(record.step)}")
            self._last[folder] = int(record.step)

    def flush(self) -> None:
        """Return at once: each write is safe when it returns."""

    def close(self) -> None:
        """Cut the arrays to what was committed, consolidate the metadata and release the run; idempotent."""
        if not self._open:
            return
        self._open = False
        with self._held, self._named():
            self._trim("steps")
            self._trim("snapshots")
            inner = GROUP | {"consolidated_metadata": {"kind": "inline", "must_understand": False, "metadata": {}}}
            below = {"steps": inner, "snapshots": inner} | dict(sorted(self._nodes.items()))  # zarr needs a group's keys together
            inline = {"kind": "inline", "must_understand": False, "metadata": below}
            self._files.write("zarr.json", to_json(GROUP | {"consolidated_metadata": inline}, "group"))

    # --- how it writes -----------------------------------------------------------------------------------------------

    @contextmanager
    def _writing(self) -> Generator[None]:
        if not self._open:
            raise StoreError(f"{self.path}: is not open for writing; call begin first, and write before close")
        with self._named():
            yield

    @contextmanager
    def _named(self) -> Generator[None]:
        """Give errors of the system the name of the run, and say what is safe."""
        try:
            yield
        except SgdscopeError:
            raise
        except OSError as error:
            kept = f"{self._rows['steps']} updates and {self._rows['snapshots']} snapshots are kept and read back"
            why = f"{error.strerror or error} ({error.filename or self.path})"
            raise StoreError(f"{self.path}: cannot be written: {why}; {kept}; free the disk or choose another path") from error

    def _set_node(self, relative: str, node: dict[str, Any]) -> None:
        self._files.write(f"{relative}/zarr.json", to_json(node, "attributes"))
        self._nodes[relative] = node

    def _arrays(self, group: str) -> list[str]:
        """The arrays of a group, `step` last."""
        names = [relative for relative in self._nodes if relative.startswith(f"{group}/") and relative != f"{group}/step"]
        return [*names, f"{group}/step"]

    def _add_columns(self, names: list[str]) -> None:
        commit, rows = self._nodes["steps/step"], self._rows["steps"]
        for name in names:
            relative, empty = f"steps/{escape(name)}", np.full(ROWS, np.nan)
            for k in range(ceil(rows / ROWS)):
                self._files.write(f"{relative}/c/{k}", *sealed(empty))
            units, long_name = STEP_VARIABLES.get(name, ("1", name))
            about = {"units": units, "long_name": long_name}
            self._set_node(relative, array_node(commit["shape"], [ROWS], "float64", ["step"], about))
            self._tails[relative] = empty
        columns = [*commit["attributes"]["columns"], *names]
        self._set_node("steps/step", commit | {"attributes": commit["attributes"] | {"columns": columns}})

    def _grow(self, group: str, more: int) -> None:
        rows = self._rows[group] + more
        if self._nodes[f"{group}/step"]["shape"][0] >= rows:
            return
        for relative in self._arrays(group):
            node = self._nodes[relative]
            self._set_node(relative, node | {"shape": [ceil(rows / GROWTH) * GROWTH, *node["shape"][1:]]})

    def _extend(self, relative: str, values: NDArray[Any]) -> NDArray[Any]:
        """Write values after the committed rows of a scalar; the committed ones are written again with them."""
        rows = self._rows[relative.partition("/")[0]]
        tail = self._tails.get(relative, values)
        while True:
            number, offset = divmod(rows, ROWS)
            part = values[: ROWS - offset]
            chunk = np.full(ROWS, -1 if values.dtype.kind == "i" else np.nan, values.dtype)
            chunk[:offset] = tail[:offset]
            chunk[offset : offset + len(part)] = part
            self._files.write(f"{relative}/c/{number}", *sealed(chunk))
            values, rows, tail = values[len(part) :], rows + len(part), chunk
            if not len(values):
                return chunk

    def _commit(self, group: str, tails: Mapping[str, NDArray[Any]], more: int, last: int) -> None:
        self._tails.update(tails)
        self._rows[group] += more
        self._last[group] = last

    def _trim(self, group: str) -> None:
        """Cut all arrays of a group to the committed rows: `step` first, so that no reader looks for what goes."""
        rows = self._rows[group]
        for relative in reversed(self._arrays(group)):
            node = self._nodes[relative]
            about = node["attributes"] | ({"committed": rows} if relative == f"{group}/step" else {})
            self._set_node(relative, node | {"shape": [rows, *node["shape"][1:]], "attributes": about})
        for relative in reversed(self._arrays(group)):
            scalar = len(self._nodes[relative]["shape"]) == 1
            keep = ceil(rows / ROWS) if scalar else rows
            there = sorted((int(k) for k in self._files.listing(f"{relative}/c") if k.isdecimal()), reverse=True)
            for number in (k for k in there if k >= keep):
                self._files.remove(f"{relative}/c/{number}")
            if scalar and rows % ROWS:
                dtype = np.dtype(self._nodes[relative]["data_type"])
                tail = self._files.unseal(f"{relative}/c/{rows // ROWS}", ROWS * 8).view(dtype)
                tail[rows % ROWS :] = -1 if dtype.kind == "i" else np.nan
                self._files.write(f"{relative}/c/{rows // ROWS}", *sealed(tail))
                self._tails[relative] = tail

    # --- reading -----------------------------------------------------------------------------------------------------

    @property
    def stored_steps(self) -> int:
        """How many updates are acknowledged: they survive a kill."""
        return self._rows["steps"]

    @classmethod
    def read(cls, path: str | Path) -> Trajectory:
        """Open a run for reading, also while it is written; its snapshots are those committed by now.

        Args:
            path: the run directory.

        Returns:
            The trajectory; arrays are read when asked for, and checked then.

        Raises:
            NotAvailableError: from the trajectory, where a step was not recorded.
            CorruptRunError: here or from the trajectory, where a committed row does not read back.
        """
        run = Run(Path(path))
        header, (points, _) = run.header(), run.committed("snapshots")

        def read_steps() -> xr.Dataset:
            steps, columns = run.committed("steps")
            return steps_dataset(steps, {name: run.column(name, steps) for name in columns})

        def read_snapshot(step: int) -> Snapshot:
            row = int(np.searchsorted(points, step))
            if row == len(points) or points[row] != step:
                near = f"the nearest is {points[np.argmin(np.abs(points - step))]}" if len(points) else "there are none"
                raise NotAvailableError(f"run {path}: no snapshot of step {step} was recorded ({near}); see snapshot_steps")
            return run.snapshot(header, row, step)

        def read_batch(step: int) -> Any:
            arrays, meta = cls.read_record(path, "batches", step)
            try:
                return unpack_batch(arrays, meta["spec"])
            except (DataError, KeyError) as error:
                raise run.corrupt(f"records/batches/{step}/meta.json", f"does not describe a batch ({error})", step) from error

        return Trajectory(header, read_steps, points, read_snapshot, read_batch, Path(path))

    @classmethod
    def read_record(cls, path: str | Path, kind: str, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read the named arrays of one step.

        Args:
            path: the run directory.
            kind: such as ``"batches"``.
            step: t.

        Returns:
            (name -> array, meta).

        Raises:
            NotAvailableError: there is none.
        """
        run, relative = Run(Path(path)), f"records/{escape(kind)}/{int(step)}"
        if not run.inside(relative).exists():
            run.header()
            raise NotAvailableError(f"run {path}: no record '{kind}' of step {step} was written; record_steps says which were")
        arrays, _, meta = run.folder(relative)
        return {name: values for name, (values, _, _) in arrays.items()}, meta

    @classmethod
    def record_steps(cls, path: str | Path, kind: str) -> list[int]:
        """The steps that have a whole record of this kind.

        Args:
            path: the run directory.
            kind: such as ``"batches"``.

        Returns:
            Ascending.
        """
        run = Run(Path(path))
        run.header()
        return run.record_steps(kind)

    @classmethod
    def write_measurement(cls, path: str | Path, name: str, measured: xr.Dataset) -> None:
        """Keep a measurement with its run; measured again = replaced, and never half.

        Args:
            path: the run directory.
            name: of its group.
            measured: numbers and strings; attributes of JSON types.

        Raises:
            ArgumentError: a variable or an attribute is something else.
            StoreError: the directory cannot be written.
            SgdscopeError: either of them.
        """
        run, arrays = Run(Path(path), partial="measurements.partial"), {}
        run.header()
        for key, variable in measured.variables.items():
            values = np.asarray(variable.values)
            text = values.dtype.kind in "UOT" and all(isinstance(v, str) for v in values.reshape(-1))
            if not isinstance(key, str) or not (text or values.dtype.name in DTYPES):
                raise ArgumentError(f"measured: the variable '{key}' has dtype {values.dtype}; expected numbers or strings")
            arrays[key] = (values, [str(d) for d in variable.dims], variable.attrs)
        extra = [str(key) for key in measured.coords if key not in measured.dims]
        if any(len(key.split()) != 1 for key in extra):
            raise ArgumentError(f"measured: a coordinate's name has a space in it ({extra}); rename it")
        attrs = measured.attrs | ({"coordinates": " ".join(extra)} if extra else {})
        target = f"measurements/{escape(name)}"
        try:
            with locked(run.real / "measurements.lock", wait=True):
                if "zarr.json" not in run.listing("measurements"):
                    run.write("measurements/zarr.json", to_json(GROUP, "group"))
                run.write_folder(f"{target}.partial", arrays, attrs, {})
                if run.inside(target).exists():
                    run.remove(f"{target}.old")
                    run.move(target, f"{target}.old")
                run.move(f"{target}.partial", target)
                run.remove(f"{target}.old")
        except SgdscopeError:
            raise
        except (OSError, shutil.Error) as error:
            raise StoreError(
                f"{path}: the measurement '{name}' cannot be kept: {error}; free the disk or check access"
            ) from error

    @classmethod
    def measurements(cls, path: str | Path) -> xr.DataTree:
        """All kept measurements, loaded.

        Args:
            path: the run directory.

        Returns:
            One group a quantity; a measurement whose replacement was killed is there in its old form.
        """
        run = Run(Path(path))
        run.header()
        names = {n.removesuffix(".old") for n in run.listing("measurements") if not n.endswith((".json", ".partial"))}
        return xr.DataTree.from_dict({unquote(name): run.measurement(name) for name in sorted(names)})
