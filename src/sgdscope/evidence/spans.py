"""Runs of equal lr / batch size at equal spans of lr x updates: the loss along a span, its turns, curvature, distance of laws."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from scipy import stats

from sgdscope.contracts import Evidence
from sgdscope.evidence.sharpness import Path, path
from sgdscope.records import Surface, Trajectory

Array = NDArray[np.float64]
SPANS = 15  # a burst; a span is one update of the run with the larger batch, and as many of the other as its batches fit in
MEASURES = ("floor", "cosine", "sharpness", "loss")


def spans(trajectory: Trajectory, surface: Surface, data_dir: Any = None) -> Mapping[str, Any]:  # ruff: ignore[unused-function-argument] - one signature for all observations
    """Measure a walk over spans of updates: a burst of recorded updates is cut into `SPANS` of equal length.

    Of a span from a to b: the loss at a, the floor alpha* = -a1 / (2 a2) of the parabola through the loss at 0, 1/2 and 1 of
    the line from a to b, and the cosine of b - a with the span before in the same burst. A span of one update has the
    alpha* of the quantity valley.

    Args:
        trajectory: a run whose bursts have a multiple of `SPANS` updates.
        surface: L.
        data_dir: not used.

    Returns:
        ``{"spans": {"updates": of a span, "first": [n], "loss": [n], "floor": [n], "cosine": [n], "distance": [n]}}``; NaN
        where the parabola has no floor and at the first span of a burst.

    Cost: 2 passes over the data a span.
    """
    told: dict[str, Any] = {"updates": 0, "first": [], "loss": [], "floor": [], "cosine": [], "distance": []}
    steps = np.asarray(trajectory.snapshot_steps)
    for burst in np.split(steps, np.flatnonzero(np.diff(steps) != 1) + 1):
        size = (len(burst) - 1) // SPANS
        if size < 1:
            continue
        before = None
        for first in burst[: SPANS * size : size].tolist():
            a, b = (trajectory.theta(t).double() for t in (first, first + size))
            ends = trajectory.buffers(first), trajectory.buffers(first + size)
            y = surface.along(a, b - a, [0.0, 0.5, 1.0], ends if ends[0] else None).values
            turned = nan if before is None else float((b - a) @ before / ((b - a).norm() * before.norm()))
            slope, half = -3 * y[0] + 4 * y[1] - y[2], 2 * y[0] - 4 * y[1] + 2 * y[2]
            floor = float(-slope / (2 * half)) if half > 0 else nan
            row = {"first": first, "loss": float(y[0]), "floor": floor, "cosine": turned, "distance": float((b - a).norm())}
            for name, value in row.items():
                told[name].append(value)
            told["updates"], before = size, b - a
    return {"spans": told}


def values(run: Evidence, name: str) -> Array:
    """The finite values of a measure over a run.

    Args:
        run: observed by `spans`, with the quantity curvature.
        name: one of `MEASURES`.

    Returns:
        [n].
    """
    found = path(run).values if name == "sharpness" else np.asarray((run.extra.get("spans") or {}).get(name, ()), np.float64)
    return np.asarray(found[np.isfinite(found)], np.float64)


def excess(base: Sequence[Array], other: Sequence[Array]) -> float:
    """How much further the laws of two settings lie apart than the laws of two seeds of the one.

    Mean over pairs of different seeds of the Kolmogorov-Smirnov distance of base and other, less that of base and base. It is
    0 on average if the settings have one law, whatever the seeds differ in and however the values of a run hang together.

    Args:
        base: seeds -> values of the one setting.
        other: the same seeds of the other.

    Returns:
        The excess, -1..1; NaN with fewer than two seeds or an empty run.
    """
    n = len(base)
    if n < 2 or min(map(len, (*base, *other))) == 0:
        return nan
    pairs = [(i, j) for i in range(n) for j in range(n) if i != j]
    apart = [
        float(stats.ks_2samp(base[i], other[j]).statistic) - float(stats.ks_2samp(base[i], base[j]).statistic) for i, j in pairs
    ]
    return float(np.mean(apart))


def pseudovalues(base: Mapping[str, Sequence[Array]], other: Mapping[str, Sequence[Array]]) -> dict[str, list[float]]:
    """The excess of each measure in a form in which seeds are units: jackknife, n x - (n - 1) x without the seed.

    Args:
        base: measure -> seeds -> values.
        other: likewise.

    Returns:
        Measure -> [seeds]; their mean is the excess corrected for bias. Under the key ``"mean"`` the mean over the measures
        that are known.
    """
    told = {}
    for name in base:
        n, whole = len(base[name]), excess(base[name], other[name])
        left = [excess(*([v for j, v in enumerate(side[name]) if j != i] for side in (base, other))) for i in range(n)]
        told[name] = [n * whole - (n - 1) * x for x in left]
    known = [own for own in told.values() if own and all(map(isfinite, own))]
    return told | {"mean": np.mean(known, axis=0).tolist() if known else []}


# --- runs made of numbers ----------------------------------------------------------------------------------------------------


def drawn(settings: Mapping[str, Any], random: np.random.Generator, shift: float = 0.0, loss: float = 0.9) -> Evidence:
    """A run whose measures are drawn: normal, with means moved by `shift` standard deviations.

    Args:
        settings: lr, batch_size and seed.
        random: of the draws.
        shift: of all measures.
        loss: mean training loss, of 2.3 at the start.

    Returns:
        The evidence.
    """
    n = 4 * SPANS
    own = random.standard_normal(4)[:, None] * 0.2 + random.standard_normal((4, n)) + shift
    floor, cosine, top, low = own * np.array([0.2, 0.1, 0.5, 0.05])[:, None] + np.array([0.5, -0.2, 6.0, loss])[:, None]
    steps = np.arange(20) * 10
    paces = settings["lr"] * top[:20] / 2
    columns = {"sharpness": ("step", top[:20]), "loss": ("step", low[:20]), "half_eta_sharpness": ("step", paces)}
    scalars = xr.Dataset({"loss": ("step", np.r_[2.3, low[1:20]])}, {"step": steps})
    told = {"updates": 1, "first": list(range(n)), "floor": floor.tolist(), "cosine": cosine.tolist(), "loss": low.tolist()}
    return Evidence(dict(settings), scalars, {"curvature": xr.Dataset(columns, {"step": steps})}, {"spans": told})


def ends(runs: Sequence[Evidence]) -> list[Path]:
    """The paths of lambda_1 of runs, for their place on the map."""
    return [path(run) for run in runs]
