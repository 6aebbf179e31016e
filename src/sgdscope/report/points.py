"""Numbers at the measured points of a run: the last one that is known, and a table over the points."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sgdscope.report.page import number, with_error

Array = NDArray[np.float64]
MOST_ROWS = 12


def along(data: xr.Dataset, name: str, dim: str = "step", **at: Any) -> Array:
    """A variable over the points, at one label of each further dimension; NaN where there is none of it."""
    found = np.full(data.sizes.get(dim, 0), np.nan)
    if name not in data or dim not in data[name].dims:
        return found
    values = data[name]
    for other, label in at.items():
        hit = np.flatnonzero(data[other].values == label) if other in data.coords else np.zeros(0, int)
        if other not in values.dims or not len(hit):
            return found
        values = values.isel({other: int(hit[0])})
    return np.array(values.values, float) if values.dims == (dim,) else found


def last(values: Array) -> int | None:
    """The position of the last finite value."""
    known = np.flatnonzero(np.isfinite(values))
    return int(known[-1]) if len(known) else None


def told(data: xr.Dataset, name: str, index: int, dim: str = "step", **at: Any) -> str:
    """The value at one point with its standard error, in words; a dash where it is not known."""
    value, error = (along(data, key, dim, **at)[index] for key in (name, f"{name}_stderr"))
    return with_error(float(value), float(error))


def percent(value: float, error: float = float("nan")) -> str:
    """A signed change in per cent with its standard error."""
    return ("+" if value > 0 else "") + with_error(100 * value, 100 * error) + " %"


def rows_shown(count: int) -> list[int]:
    """All rows of a table, or twelve spread from the first to the last."""
    if count <= MOST_ROWS:
        return list(range(count))
    return [int(place) for place in np.linspace(0, count - 1, MOST_ROWS).round().astype(int)]


def point_table(data: xr.Dataset, columns: Mapping[str, Array | tuple[Array, Array]]) -> str:
    """A table with one row a measured point; columns without any finite number are left out."""
    pairs = {label: v if isinstance(v, tuple) else (v, np.full(len(v), np.nan)) for label, v in columns.items()}
    kept = {label: pair for label, pair in pairs.items() if np.isfinite(pair[0]).any()}
    steps: Sequence[int] = [int(step) for step in data["step"].values]
    if not kept or not steps:
        return ""
    head = "".join(f'<th class="n">{label}</th>' for label in kept)
    shown = rows_shown(len(steps))
    body = ""
    for index in shown:
        cells = "".join(f'<td class="n">{with_error(float(v[index]), float(e[index]))}</td>' for v, e in kept.values())
        body += f"<tr><td>{number(steps[index])}</td>{cells}</tr>"
    thinned = f'<p class="soft">{len(shown)} of {len(steps)} measured points.</p>' if len(shown) < len(steps) else ""
    table = f"<table><thead><tr><th>update</th>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>{thinned}'
