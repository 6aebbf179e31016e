"""How long a recorded walk stays in valleys, given by a box, a threshold or a level of the loss, and the rate of leaving."""

from __future__ import annotations

from collections.abc import Mapping
from math import isfinite
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sgdscope.contracts import Source, declare, ends, measurement, quantity
from sgdscope.errors import ArgumentError, Outcome
from sgdscope.ranges import choice, whole
from sgdscope.records import Surface, Trajectory, windows
from sgdscope.statistics import exponential_rate, exponentiality

Array = NDArray[np.float64]
Row = dict[str, Any]

VALLEYS = ("box", "threshold", "loss")
XIE = "Xie et al. 2021 (2002.03495)"
_SOURCES = {
    "xie": XIE,
    "mle": "escapes over updates at risk: maximum likelihood of censored exponential stays (Epstein & Sobel 1953)",
    "interval": "95 % interval, 2 rate x updates at risk ~ chi^2",
    "ks": "Kolmogorov-Smirnov distance of a fitted rate, parametric bootstrap (statistics.exponentiality)",
}
_REASONS = {
    "finite": "a point of the window is not finite, or the loss valley was asked for without a surface",
    "box": "the valley is no box, or a point is not finite",
    "risk": "no update of the window began inside, or a point is not finite",
    "none": "nothing left in the window, or a point is not finite",
    "few": "fewer than five escapes in the window, or stays that ended at different times of observation",
}
# name; dims; units; error; source; reason; long name
_TABLE = """
inside; step; 1; exact; xie; finite; 1 where the point before the update lies in a valley
left; step; 1; exact; xie; finite; 1 where the update leaves it
extent; step; 1; exact; xie; box; largest |theta_{t+1} - centre| over the radius; above 1 outside
at_risk; window; update; exact; mle; finite; updates that began inside
escapes; window; 1; exact; mle; finite; updates that left
stays; window; 1; exact; mle; finite; stays that were seen, the censored last one among them
escape_rate; window; 1/update; bound; mle; risk; escapes / at_risk
escape_rate_low; window; 1/update; bound; interval; ; lower end of the 95 % interval of escape_rate
escape_rate_high; window; 1/update; bound; interval; ; upper end of the 95 % interval of escape_rate
waiting_time; window; update; bound; mle; none; at_risk / escapes
exponential_p; window; 1; bound; ks; few; p of stays drawn from one exponential law
"""
_VARIABLES = declare(_TABLE, sources=_SOURCES, reasons=_REASONS)


@quantity(
    "escape",
    needs=["snapshots"],
    sources=[Source(XIE, "section 5, valley by a box"), Source("Epstein & Sobel 1953", "censored exponential")],
    scales=dict.fromkeys(_VARIABLES, 0.0),
)
def escape(
    trajectory: Trajectory,
    surface: Surface | None = None,
    *,
    window: int = 60,
    valley: str = "box",
    radius: float = 0.05,
    at: float = 0.0,
    coordinate: int = 0,
    above: bool = False,
    level: float | None = None,
) -> xr.Dataset:
    """Stays of the walk in valleys, and the rate at which it leaves them.

    box: |theta_i - centre_i| <= radius for every i. The centre is the first point of the window and, after each escape, the
    point to which it led, so that a window holds as many stays as fit. threshold: theta_coordinate < at (> at where
    `above`). loss: L(theta) <= level. A stay begins at the first point inside and is over with the update to a point
    outside; the last one of a window is censored, the next window begins anew. rate = escapes / updates at risk, interval
    from 2 rate at_risk ~ chi^2; both assume that an escape is as likely at each update, which `exponential_p` tests.

    One walk through a changing landscape has no one rate: this describes how fast it moves from place to place. To measure a
    valley, let many walkers start in it: `sgdscope.escapes.escape`.

    Args:
        trajectory: the walk.
        surface: L; for the loss valley only.
        window: updates a window, >= 1.
        valley: "box", "threshold" or "loss".
        radius: of the box, in units of theta, > 0.
        at: threshold.
        coordinate: of the threshold, index into theta [P].
        above: inside is above the threshold.
        level: of the loss valley.

    Returns:
        Measurement over `step` and `window`. Rates of several windows are added up as sum of escapes over sum of at_risk.

    Raises:
        ArgumentError: an option is out of range.

    Cost: the snapshots once; for the loss valley one loss a snapshot.
    Source: Xie et al. 2021; specification 1.3.
    """
    _check(trajectory, window, valley, radius, at, coordinate, level)
    options = {"valley": valley, "radius": radius, "at": at, "coordinate": coordinate, "above": above, "level": level}
    spans = windows(trajectory.snapshot_steps, window)
    rows = [_window(trajectory, surface, span, options) for span in spans]
    coords: dict[str, tuple[str, Any, str]] = {
        "step": ("step", np.concatenate([np.zeros(0, np.int64), *(np.arange(a, b) for a, b in spans)]), "update t"),
        **ends(spans),
    }
    return measurement(_VARIABLES, _joined(rows), coords)


def _check(
    trajectory: Trajectory, window: int, valley: str, radius: float, at: float, coordinate: int, level: float | None
) -> None:
    whole("window", window, 1)
    choice("valley", valley, VALLEYS)
    for name, value in {"radius": radius, "at": at, "level": 0.0 if level is None else level}.items():
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ArgumentError(f"{name}: expected a number, got {value!r}")
    if isinstance(coordinate, bool) or not isinstance(coordinate, int):
        raise ArgumentError(f"coordinate: expected a whole number, got {coordinate!r}")
    if not (isfinite(radius) and radius > 0):
        raise ArgumentError(f"radius: expected a finite number > 0, got {radius}")
    if not isfinite(at) or not 0 <= coordinate < trajectory.header.layout.size:
        size = trajectory.header.layout.size
        raise ArgumentError(f"at, coordinate: expected a finite number and an index below {size}, got {at} and {coordinate}")
    if valley == "loss" and (level is None or not isfinite(level)):
        raise ArgumentError(f"level: the loss valley needs a finite level of the loss, got {level}")


def _window(trajectory: Trajectory, surface: Surface | None, span: tuple[int, int], options: Mapping[str, Any]) -> Row:
    first, last = span
    n = last - first
    nothing = {"inside": np.full(n, np.nan), "left": np.full(n, np.nan), "extent": np.full(n, np.nan)}
    if options["valley"] == "box":
        walked = _boxes(trajectory, span, options["radius"])
    else:
        inside = np.array([_side(trajectory, surface, t, options) for t in range(first, last + 1)])
        walked = None if np.isnan(inside).any() else {"inside": inside[:-1], "left": inside[:-1] * (1 - inside[1:])}
    return nothing | (walked or {}) | _rates(walked)


def _boxes(trajectory: Trajectory, span: tuple[int, int], radius: float) -> Row | None:
    """Every point is in a box: that of its stay. None where a point is not finite."""
    first, last = span
    centre = trajectory.theta(first).double()
    extent = np.empty(last - first)
    for i, t in enumerate(range(first + 1, last + 1)):
        point = trajectory.theta(t).double()
        extent[i] = float((point - centre).abs().max()) / radius
        if not np.isfinite(extent[i]):
            return None
        if extent[i] > 1:
            centre = point
    return {"inside": np.ones(len(extent)), "left": (extent > 1).astype(float), "extent": extent}


def _side(trajectory: Trajectory, surface: Surface | None, step: int, options: Mapping[str, Any]) -> float:
    """1 inside, 0 outside; NaN where it cannot be told."""
    theta = trajectory.theta(step)
    if options["valley"] == "loss":
        value = float("nan") if surface is None else surface.value(theta, trajectory.buffers(step))
        return float(value <= options["level"]) if isfinite(value) else float("nan")
    place = float(theta[options["coordinate"]])
    within = place > options["at"] if options["above"] else place < options["at"]
    return float(within) if isfinite(place) else float("nan")


def _rates(walked: Row | None) -> Row:
    """The estimates of a window from its stays."""
    row: Row = dict.fromkeys(("at_risk", "escapes", "stays", "escape_rate", "waiting_time", "exponential_p"), np.nan)
    row |= {"escape_rate_low": np.nan, "escape_rate_high": np.nan}
    if walked is None:
        return row
    lengths, censored = stays(walked["inside"], walked["left"])
    row |= {"at_risk": float(lengths.sum()), "escapes": float((~censored).sum()), "stays": float(len(lengths))}
    if not len(lengths):
        return row
    rate, (low, high) = exponential_rate(lengths, censored)
    row |= {"escape_rate": rate, "escape_rate_low": low, "escape_rate_high": high}
    if rate > 0:
        row["waiting_time"] = 1 / rate
    whole = lengths[~censored]
    if len(whole) >= 5:  # the censored last stay says little and ended elsewhere: the whole ones are tested
        row["exponential_p"] = exponentiality(whole, np.zeros(len(whole), bool), resolution=1.0, resamples=199)[1]
    return row


def stays(inside: Array, left: Array) -> tuple[Array, NDArray[np.bool_]]:
    """Lengths of the stays of one window.

    Args:
        inside: [n], 1 where an update began inside.
        left: [n], 1 where it left.

    Returns:
        Updates of each stay, and whether it was censored by the end of the window.
    """
    lengths: list[float] = []
    censored: list[bool] = []
    length = 0
    for within, out in zip(inside > 0, left > 0, strict=True):
        length += int(within)
        if out:
            lengths.append(float(length))
            censored.append(False)
            length = 0
    if length:
        lengths.append(float(length))
        censored.append(True)
    return np.array(lengths), np.array(censored, bool)


def _joined(rows: list[Row]) -> Row:
    """Columns of all windows with their outcomes."""
    values: Row = {}
    for name, v in _VARIABLES.items():
        parts = [np.atleast_1d(np.asarray(row[name], np.float64)) for row in rows]
        values[name] = np.concatenate([np.zeros(0), *parts])
        if v.reason:
            ok = np.isfinite(values[name])
            values[f"{name}_outcome"] = np.where(ok, int(Outcome.ok), int(Outcome.not_applicable)).astype(np.int8)
    return values
