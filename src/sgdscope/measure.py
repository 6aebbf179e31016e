"""Quantities over a trajectory, offline; the same functions live, window by window, while the loop runs."""

from __future__ import annotations

import inspect
import json
import platform
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal, overload

import numpy as np
import torch
import xarray as xr

from sgdscope import __version__
from sgdscope.contracts import QuantityEntry, quantities, stores
from sgdscope.errors import ArgumentError, NotAvailableError, unknown
from sgdscope.quantities.averages import Averages
from sgdscope.records import Header, Record, Snapshot, StepBlock, Surface, Trajectory, join_blocks, steps_dataset, unpack_batch
from sgdscope.surface import LossSurface

GROWING = ("step", "step_curve", "window")
WINDOW = 60


def measure(
    trajectory: Trajectory, surface: Surface | None, names: str | Sequence[str], *, reuse: bool = False, **options: Any
) -> xr.DataTree:
    """Measure quantities over a recorded walk.

    Args:
        trajectory: the walk, from `open_trajectory` or a memory store.
        surface: the loss surface; None where no named quantity needs one.
        names: of quantities, such as ``["valley", "motion"]``.
        reuse: take what is kept with the run where options, surface, recorded steps and versions are the same.
        **options: of the quantities. ``valley={"curve": False}`` goes to one, ``window=60`` to each that takes it.

    Returns:
        One group a quantity. The group's attributes hold the options and the fingerprint of the surface. A trajectory
        that lies in a run directory keeps the measurement there; measured again = replaced.

    Raises:
        ArgumentError: an option that no named quantity takes; a surface that is missing or whose parameters have
            other names or shapes than the trajectory's.
        UnknownNameError: a quantity that does not exist.
    """
    wanted = [names] if isinstance(names, str) else list(names)
    chosen = {name: quantities[name] for name in wanted}
    given = _share_options(chosen, options)
    for name, entry in chosen.items():
        _check_surface(name, entry, surface, trajectory.header)
    kept = stores["zarr"].cls.measurements(trajectory.path) if reuse and trajectory.path is not None else {}
    groups = {}
    for name, entry in chosen.items():
        signature = _signature(surface, given[name]) | _extent(trajectory)
        if name in kept and signature.items() <= kept[name].attrs.items():
            groups[name] = kept[name].to_dataset()
            continue
        with torch.random.fork_rng(devices=[]), _undisturbed(surface):
            groups[name] = entry.measure(trajectory, surface, **given[name]).assign_attrs(signature)
        if trajectory.path is not None:
            stores["zarr"].cls.write_measurement(trajectory.path, name, groups[name])
    return xr.DataTree.from_dict(groups)


@overload
def live(name: Literal["averages"], surface: None = None, **options: Any) -> Averages: ...


@overload
def live(name: str, surface: Surface | None = None, **options: Any) -> LiveQuantity: ...


def live(name: str, surface: Surface | None = None, **options: Any) -> LiveQuantity | Averages:
    """Make a sink that measures one quantity while the loop runs, with the same numbers as `measure` afterwards.

    ``live("averages")`` sums every iterate instead (`Averages`), for the forecast of annealing.

    Args:
        name: of the quantity, or ``"averages"``.
        surface: the loss surface; None where the quantity needs none.
        **options: of the quantity; `blocks` and `width` of the averages.

    Returns:
        To be passed in ``Recorder(live=[...])``; its attribute `measured` holds what is known so far.

    Raises:
        ArgumentError: an option that the quantity does not take, or a missing surface.
        UnknownNameError: a quantity that does not exist.
    """
    if name == "averages":
        if foreign := sorted(set(options) - {"blocks", "width"}):
            raise ArgumentError(str(unknown("option of averages", foreign[0], ["blocks", "width"])))
        return Averages(**options)
    entry = quantities[name]
    given = _share_options({name: entry}, options)[name]
    if "surface" in entry.needs and surface is None:
        raise ArgumentError(f"surface: quantity '{name}' needs a loss surface, got None; make one with sgdscope.LossSurface")
    return LiveQuantity(name, entry, surface, given)


class LiveQuantity:
    """A quantity as a sink: measures each window of consecutive updates as soon as it is complete.

    Holds the scalars of the whole run, theta_0 and the snapshots and batches of one window:
    8 bytes x scalars x updates + 4 x P x (window + 2) bytes.

    Args:
        name: of the quantity.
        entry: its entry in the catalogue.
        surface: the loss surface.
        options: checked options.
    """

    def __init__(self, name: str, entry: QuantityEntry, surface: Surface | None, options: Mapping[str, Any]) -> None:
        self.name = name
        self._entry, self._surface, self._options = entry, surface, dict(options)
        self._length = int(options.get("window", WINDOW))
        self._header: Header | None = None
        self._blocks: list[StepBlock] = []
        self._snapshots: dict[int, Snapshot] = {}
        self._batches: dict[int, Record] = {}
        self._origin: Snapshot | None = None
        self._pieces: list[xr.Dataset] = []
        self._closed = False

    @property
    def measured(self) -> xr.Dataset:
        """What has been measured so far; complete after `close`."""
        pieces = self._pieces if self._closed else [*self._pieces, self._measure([])]
        return _join(pieces).assign_attrs(_signature(self._surface, self._options))

    def begin(self, header: Header) -> None:
        """Hold the names and shapes of the run against the surface's.

        Args:
            header: of the run.

        Raises:
            ArgumentError: they differ.
        """
        _check_surface(self.name, self._entry, self._surface, header)
        self._header = header

    def write_steps(self, block: StepBlock) -> None:
        """Keep the scalars."""
        self._blocks.append(block)

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Take a point; a window that it completes is measured now."""
        self._origin = self._origin or snapshot
        if self._snapshots and snapshot.step != max(self._snapshots) + 1:
            self._finish([])
        self._snapshots[snapshot.step] = snapshot
        if len(self._snapshots) == self._length + 1:
            self._finish([snapshot])

    def write_record(self, record: Record) -> None:
        """Keep the batch of an update of this window."""
        if record.kind == "batches":
            self._batches[record.step] = record

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Measure what is left, then the numbers of the whole run."""
        if self._closed:
            return
        if self._header is not None:
            self._finish([])
            self._pieces.append(self._measure([]))
        self._closed = True

    def _finish(self, carry: list[Snapshot]) -> None:
        if len(self._snapshots) > 1:
            self._pieces.append(self._measure(sorted(self._snapshots)))
        self._snapshots = {s.step: s for s in carry}
        self._batches = {step: record for step, record in self._batches.items() if step in self._snapshots}

    def _measure(self, points: list[int]) -> xr.Dataset:
        window = Trajectory(
            header=self._header or _no_header(),
            read_steps=self._steps,
            snapshot_steps=np.array(points, np.int64),
            read_snapshot=self._snapshot,
            read_batch=self._batch,
        )
        with _undisturbed(self._surface):
            return self._entry.measure(window, self._surface, **self._options)

    def _steps(self) -> xr.Dataset:
        if not self._blocks:
            return steps_dataset(np.zeros(0, np.int64), {})
        self._blocks = [join_blocks(self._blocks)]  # once, so that the next window has few to join
        return steps_dataset(self._blocks[0].steps, self._blocks[0].columns)

    def _snapshot(self, step: int) -> Snapshot:
        if step in self._snapshots:
            return self._snapshots[step]
        if self._origin is not None and step == self._origin.step:
            return self._origin
        raise NotAvailableError(f"step {step} is outside of the window that is measured live")

    def _batch(self, step: int) -> Any:
        if step not in self._batches:
            raise NotAvailableError(f"the batch of step {step} was not recorded; record with batches='bursts'")
        return unpack_batch(self._batches[step].arrays, self._batches[step].meta["spec"])


def _undisturbed(surface: Surface | None) -> AbstractContextManager[None]:
    """Save the random states once for all evaluations of a measurement; landscapes draw nothing."""
    return surface.undisturbed() if isinstance(surface, LossSurface) else nullcontext()


def _no_header() -> Header:
    raise ArgumentError("live: nothing has been recorded yet; pass the sink to Recorder(live=[...]) first")


def _join(pieces: Sequence[xr.Dataset]) -> xr.Dataset:
    """Concatenate windows: variables over a growing dimension are joined, the others are the last piece's."""
    last = pieces[-1]
    joined: dict[str, xr.DataArray] = {}
    for name, variable in last.variables.items():
        grows = next((d for d in GROWING if d in variable.dims), None)
        if grows is not None and name not in last.coords:
            parts = [piece[name] for piece in pieces if piece.sizes[grows]] or [last[name]]
            joined[str(name)] = xr.concat(
                parts, grows, join="outer", coords="different", compat="equals", combine_attrs="override"
            )
    rest = last.drop_vars(joined).drop_dims([d for d in GROWING if d in last.dims], errors="ignore")
    along = {str(n): d for n, c in last.coords.items() for d in GROWING if d in c.dims}
    grown = {name: (dim, np.concatenate([p[name].values for p in pieces]), last[name].attrs) for name, dim in along.items()}
    return rest.assign(joined).assign_coords(grown)


def _share_options(chosen: Mapping[str, QuantityEntry], options: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Give each quantity the options that it takes, and refuse the rest."""
    accepted = {name: _accepted(entry) for name, entry in chosen.items()}
    shared: dict[str, dict[str, Any]] = {name: {} for name in chosen}
    for key, value in options.items():
        takers = [name for name in chosen if key in accepted[name]]
        if key in chosen and isinstance(value, Mapping):
            for own in value:
                if own not in accepted[key]:
                    raise ArgumentError(str(unknown(f"option of quantity {key}", own, accepted[key])))
            shared[key] |= dict(value)
        elif takers:
            for name in takers:
                shared[name].setdefault(key, value)
        else:
            known = set[str]().union(*accepted.values())
            raise ArgumentError(str(unknown(f"option of {', '.join(chosen)}", key, known)))
    return shared


def _accepted(entry: QuantityEntry) -> set[str]:
    parameters = inspect.signature(entry.measure).parameters.values()
    return {p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


def _check_surface(name: str, entry: QuantityEntry, surface: Surface | None, header: Header) -> None:
    if "surface" not in entry.needs:
        return
    if surface is None:
        raise ArgumentError(f"surface: quantity '{name}' needs a loss surface, got None; make one with sgdscope.LossSurface")
    layout = getattr(surface, "layout", None)
    if layout is None:
        return
    own = dict(zip(layout.names, layout.shapes, strict=True))
    recorded = dict(zip(header.layout.names, header.layout.shapes, strict=True))
    if own != recorded:
        differing = sorted(n for n in own.keys() | recorded.keys() if own.get(n) != recorded.get(n))
        first = differing[0] if differing else "the order of the parameters"
        raise ArgumentError(
            f"surface: its model does not fit the trajectory, first at '{first}': "
            f"recorded {recorded.get(first, 'nothing')}, model {own.get(first, 'nothing')}; "
            "pass the model that was recorded, and the same parameters="
        )


def _signature(surface: Surface | None, options: Mapping[str, Any]) -> dict[str, Any]:
    """What was measured on, how, and by which versions."""
    return {
        "options": json.dumps(dict(options), default=str, sort_keys=True),
        "surface": json.dumps({} if surface is None else surface.fingerprint(), default=str, sort_keys=True),
        "sgdscope": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _extent(trajectory: Trajectory) -> dict[str, Any]:
    """How much of the walk there was."""
    return {"updates": trajectory.steps.sizes["step"], "snapshots": len(trajectory.snapshot_steps)}
