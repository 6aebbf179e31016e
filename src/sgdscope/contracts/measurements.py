"""The shape of a quantity: its declaration, and the measurement that it makes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sgdscope.contracts.catalogue import Catalogue, Source
from sgdscope.errors import OUTCOME_ATTRS, Outcome
from sgdscope.records import Surface, Trajectory


class Quantity(Protocol):
    """A map from a walk and a surface to a measurement.

    It is measured window by window (`records.windows`): variables over `step` or `window` are computed from the
    snapshots of the trajectory alone, variables over neither from its scalars alone; a trajectory without two
    consecutive snapshots gives empty dimensions. So a run measured live equals the run measured afterwards.
    """

    def __call__(self, trajectory: Trajectory, surface: Surface | None, **options: Any) -> xr.Dataset:
        """Measure."""


@dataclass(frozen=True)
class QuantityEntry:
    """A registered quantity.

    Attributes:
        measure: the function.
        needs: any of ``"surface"``, ``"snapshots"``, ``"scalars"``.
        sources: the papers.
        scales: variable -> power of c with which it grows when the loss is multiplied by c.
    """

    measure: Quantity
    needs: frozenset[str]
    sources: tuple[Source, ...]
    scales: Mapping[str, float]


quantities: Catalogue[QuantityEntry] = Catalogue("quantity", "quantities")


def quantity(
    name: str, *, needs: Sequence[str], sources: Sequence[Source], scales: Mapping[str, float]
) -> Callable[[Callable[..., xr.Dataset]], Callable[..., xr.Dataset]]:
    """Register a quantity.

    Args:
        name: under which it is found; also the name of its group.
        needs: any of ``"surface"``, ``"snapshots"``, ``"scalars"``.
        sources: the papers.
        scales: variable -> power of c with which it grows when the loss is multiplied by c.

    Returns:
        The decorator; the function stays as it is.
    """

    def decorate(function: Callable[..., xr.Dataset]) -> Callable[..., xr.Dataset]:
        quantities.add(name, QuantityEntry(function, frozenset(needs), tuple(sources), dict(scales)))
        return function

    return decorate


@dataclass(frozen=True)
class Variable:
    """What a quantity declares of one variable of its measurement.

    Attributes:
        dims: named dimensions.
        units: such as ``"loss"``, ``"theta"``, ``"1"``.
        long_name: what it is, in words.
        source: paper and equation, or how it is computed.
        error: ``"exact"`` (up to rounding), ``"stderr"`` (then `<name>_stderr` goes with it) or ``"bound"``.
        reason: when the outcome can be other than ok, why (then `<name>_outcome` goes with it); empty if it cannot.
        flags: meanings of the values 0, 1, ... of an int8 variable; empty for numbers.
    """

    dims: tuple[str, ...]
    units: str
    long_name: str
    source: str
    error: Literal["exact", "stderr", "bound"] = "exact"
    reason: str = ""
    flags: str = ""


def declare(
    table: str, *, sources: Mapping[str, str], reasons: Mapping[str, str], flags: Mapping[str, str] | None = None
) -> dict[str, Variable]:
    """Read the variables of a quantity from a table.

    Args:
        table: a line each, ``name; dims; units; error; source; reason; long name``; dims are separated by blanks.
        sources: key in the table -> source.
        reasons: key in the table -> reason; an empty key means that the outcome is always ok.
        flags: name of an int8 variable -> meanings of its values.

    Returns:
        Name -> what is declared of it.
    """
    declared = {}
    for line in table.strip().splitlines():
        name, dims, units, error, source, reason, text = line.split("; ", 6)
        kind: Any = error
        why, meanings = reasons[reason] if reason else "", (flags or {}).get(name, "")
        declared[name] = Variable(tuple(dims.split()), units, text, sources[source], kind, why, meanings)
    return declared


def columns(
    declared: Mapping[str, Variable],
    rows: Sequence[Mapping[str, Any]],
    *,
    spanned: Sequence[Mapping[str, Any]] = (),
    sizes: Mapping[str, int] | None = None,
) -> dict[str, Any]:
    """Join what was found point by point, and window by window, to one array a variable.

    Args:
        declared: name -> what is declared of it; the first dimension is `window`, or one along which the rows lie.
        rows: a point each, name -> number or array of the further dimensions; also `<name>_stderr` and `<name>_outcome`.
        spanned: the same for each window.
        sizes: lengths of the further dimensions.

    Returns:
        What `measurement` asks for: NaN (0 in a variable of flags) where a row has no such number, and then the outcome
        not_applicable; where it has one and tells no outcome, ok.
    """
    values: dict[str, Any] = {}
    for name, v in declared.items():
        source = spanned if v.dims[0] == "window" else rows
        shape = (len(source), *((sizes or {})[dim] for dim in v.dims[1:]))
        for key in (name, f"{name}_stderr") if v.error == "stderr" else (name,):
            values[key] = _stacked([row.get(key, np.nan) for row in source], shape, np.float64)
        if v.reason:
            plain = np.where(np.isfinite(values[name]), Outcome.ok, Outcome.not_applicable)
            told = [row.get(f"{name}_outcome", one) for row, one in zip(source, plain, strict=True)]
            values[f"{name}_outcome"] = _stacked(told, shape, np.int8)
        if v.flags:
            values[name] = np.nan_to_num(values[name])
    return values


def _stacked(parts: Sequence[Any], shape: tuple[int, ...], dtype: type[np.generic]) -> NDArray[Any]:
    return np.array([np.broadcast_to(part, shape[1:]) for part in parts], dtype).reshape(shape)


def ends(spans: Sequence[tuple[int, int]]) -> dict[str, tuple[str, Any, str]]:
    """The coordinates that say where windows lie.

    Args:
        spans: first and last point of each, as `records.windows` gives them.

    Returns:
        `window_first` and `window_last`, for `measurement`.
    """
    points = np.array(spans, np.int64).reshape(-1, 2).T
    return {f"window_{e}": ("window", p, f"{e} point of the window") for e, p in zip(("first", "last"), points, strict=True)}


def measurement(
    declared: Mapping[str, Variable], values: Mapping[str, Any], coords: Mapping[str, tuple[str, Any, str]]
) -> xr.Dataset:
    """Dress arrays as a measurement: units, names, sources, errors and outcomes as declared.

    Args:
        declared: name -> what is declared of it.
        values: name -> array of the declared dims; also `<name>_stderr` and `<name>_outcome` where declared.
        coords: name -> (dimension, values, long name), all in units of 1.

    Returns:
        The dataset.
    """
    variables: dict[str, xr.Variable] = {}
    for name, v in declared.items():
        attrs: dict[str, Any] = {"units": v.units, "long_name": v.long_name, "source": v.source, "error": v.error}
        if v.flags:
            attrs |= {"flag_values": list(range(len(v.flags.split()))), "flag_meanings": v.flags}
        if v.reason:
            attrs["reason"] = v.reason
        variables[name] = xr.Variable(v.dims, np.asarray(values[name], np.int8 if v.flags else np.float64), attrs)
        base = {"units": v.units, "source": v.source, "error": "bound"}
        if v.error == "stderr":
            named = base | {"long_name": f"standard error of: {v.long_name}"}
            variables[f"{name}_stderr"] = xr.Variable(v.dims, np.asarray(values[f"{name}_stderr"], np.float64), named)
        if v.reason:
            named = {"units": "1", "long_name": f"outcome of: {v.long_name}", "source": v.source, "error": "exact"}
            outcome = np.asarray(values[f"{name}_outcome"], np.int8)
            variables[f"{name}_outcome"] = xr.Variable(v.dims, outcome, named | {"reason": v.reason} | OUTCOME_ATTRS)
    axes = {name: (dim, np.asarray(v), {"units": "1", "long_name": text}) for name, (dim, v, text) in coords.items()}
    return xr.Dataset(variables, coords=axes)


def scalars(steps: xr.Dataset, name: str, first: int, last: int) -> NDArray[np.float64]:
    """Cut one column of scalars to the updates first..last - 1.

    Args:
        steps: `Trajectory.steps`.
        name: of the column.
        first: first update.
        last: one past the last update.

    Returns:
        [last - first]; NaN where the update or the column was not recorded.
    """
    column = np.full(last - first, np.nan)
    if name in steps:
        recorded = steps["step"].values
        inside = (recorded >= first) & (recorded < last)
        column[recorded[inside] - first] = steps[name].values[inside]
    return column
