"""The motion of the walk: how it turns, how far it gets, what of it oscillates and what drifts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from sgdscope.contracts import Source, declare, ends, measurement, quantity, scalars
from sgdscope.errors import NotAvailableError, Outcome
from sgdscope.ranges import whole
from sgdscope.records import Surface, Trajectory, windows
from sgdscope.statistics import UNBOUNDED, Interval, block_bootstrap, slope

Array = NDArray[np.float64]
Row = dict[str, Any]

RESAMPLES = 400  # of the bootstrap behind standard errors: their own error is 4 %
CHUNK = 2**27  # numbers of a window held at a time, 1 GB in float64
FIT_POINTS = 100  # log-spaced updates of the run-level fits, so that late updates do not outweigh early ones

WALK = "Xing et al. 2018 (1802.08770)"
_SOURCES = {
    "walk": WALK,
    "law": "walk_with_sgd, identity 3: E g_t.g_{t+1} = |grad L|^2 - lr E g_B'H g_B = -|grad L|^2 where the loss stands still",
    "msd": "Chen, Qu & Gong 2020; Kunin et al. 2021: mean squared displacement",
    "log": "Hoffer et al. 2017 (1705.08741): |theta_t - theta_0| ~ log t",
    "rod": "Rod Flow 2026; Central Flows 2024: two-step average and half-difference",
    "interval": "95 % interval, circular block bootstrap over updates",
}
_REASONS = {
    "cosine": "no update with a recorded gradient cosine",
    "law": "no surface, gradient_points = 0, or no recorded gradient norm",
    "first": "the first update of a window has no predecessor in it, an update did not move, or a point is not finite",
    "last": "the last update of a window has no successor in it, or a point is not finite",
    "origin": "theta_0 was not recorded, or a point is not finite",
    "distance": "not recorded",
    "short": "the window is shorter than the lag, or a point is not finite",
    "lags": "fewer than three lags with motion in the window",
    "still": "the walk did not move in the window, or has one update",
    "finite": "a point is not finite",
    "fit": "fewer than three updates with a recorded distance > 0",
}
# name; dims; units; error; source; reason; long name
_TABLE = """
gradient_cosine; window; 1; stderr; walk; cosine; mean cos(g_{t-1}, g_t)
gradient_cosine_low; window; 1; bound; interval; ; lower end of the 95 % interval of gradient_cosine
gradient_cosine_high; window; 1; bound; interval; ; upper end of the 95 % interval of gradient_cosine
gradient_cosine_negative; window; 1; stderr; walk; cosine; share of updates with cos(g_{t-1}, g_t) < 0
gradient_cosine_predicted; window; 1; stderr; law; law; -|grad L|^2 / E |g_B|^2
update_cosine; step; 1; exact; walk; first; cos(d_{t-1}, d_t)
distance; step_scalar; theta; exact; walk; distance; |theta_t - theta_0|
distance_layer; step layer; theta; exact; walk; origin; |theta_t - theta_0| of one layer's parameters
msd; window lag; theta^2; stderr; msd; short; mean of |theta_{i+lag} - theta_i|^2 over all pairs in the window
msd_exponent; window; 1; stderr; msd; lags; slope of log msd over log lag; 1 diffusive, 2 straight, 0 confined
msd_exponent_low; window; 1; bound; interval; ; lower end of the 95 % interval of msd_exponent
msd_exponent_high; window; 1; bound; interval; ; upper end of the 95 % interval of msd_exponent
path_length; window; theta; exact; walk; finite; sum of |d_t|
net; window; theta; exact; walk; finite; |theta_last - theta_first|
efficiency; window; 1; exact; walk; still; net / path_length
oscillating; step; theta; exact; rod; finite; |d_t| / 2, half the way from wall to wall
drifting; step; theta; exact; rod; last; |w_{t+1} - w_t|, w_t = (theta_t + theta_{t+1}) / 2
oscillating_share; window; 1; exact; rod; still; share of |d_t|^2 + |d_{t+1}|^2 in d_{t+1} - d_t rather than d_{t+1} + d_t
mean_gradient_cosine; ; 1; stderr; walk; cosine; mean cos(g_{t-1}, g_t) over the run
mean_gradient_cosine_low; ; 1; bound; interval; ; lower end of the 95 % interval of mean_gradient_cosine
mean_gradient_cosine_high; ; 1; bound; interval; ; upper end of the 95 % interval of mean_gradient_cosine
distance_exponent; ; 1; stderr; msd; fit; c of |theta_t - theta_0|^2 ~ t^c
distance_exponent_low; ; 1; bound; interval; ; lower end of the 95 % interval of distance_exponent
distance_exponent_high; ; 1; bound; interval; ; upper end of the 95 % interval of distance_exponent
distance_r2; ; 1; exact; msd; fit; R^2 of log |theta_t - theta_0|^2 over log t
log_slope; ; theta; stderr; log; fit; b of |theta_t - theta_0| = a + b ln t
log_slope_low; ; theta; bound; interval; ; lower end of the 95 % interval of log_slope
log_slope_high; ; theta; bound; interval; ; upper end of the 95 % interval of log_slope
log_r2; ; 1; exact; log; fit; R^2 of |theta_t - theta_0| over ln t
"""
_VARIABLES = declare(_TABLE, sources=_SOURCES, reasons=_REASONS)


@quantity(
    "motion",
    needs=["snapshots", "scalars"],
    sources=[Source(WALK, "cosine and distance panels"), Source("Hoffer et al. 2017 (1705.08741)", "log t")],
    scales=dict.fromkeys(_VARIABLES, 0.0),
)
def motion(trajectory: Trajectory, surface: Surface | None = None, *, window: int = 60, gradient_points: int = 10) -> xr.Dataset:
    """How the walk turns and how far it gets: cosines, distances, mean squared displacement, oscillation and drift.

    g_t the gradient that the optimizer received, d_t = theta_{t+1} - theta_t, theta_0 the point at which recording began.

    Cosines: cos(g_{t-1}, g_t) and |g_t| are the recorded scalars. Predicted: -G / Q, G = mean of |grad L|^2 at
    `gradient_points` points spread evenly over the window (first included), Q = mean of |g_t|^2 over its updates; it holds
    for fresh batches, updates -lr g and a mean loss that stands still. stderr: sqrt(s_G^2 / n_G + (G/Q)^2 s_Q^2 / n_Q) / Q,
    G and Q taken as independent; points of one window are not quite, so it is a lower limit.

    Displacement: from the Gram matrix of the updates in float64. msd(lag) = mean over i of
    |theta_{i+lag} - theta_i|^2, lags 1, 2, 3, 4, 6, 8, ... up to window / 4. Exponent: least squares of log msd over log lag.
    Standard errors and intervals: circular block bootstrap over i with blocks of the largest lag,
    at most a quarter of the rows (few blocks: wide).

    Oscillation: w_t = (theta_t + theta_{t+1}) / 2, half-difference r_t = d_t / 2. oscillating = |r_t|,
    drifting = |w_{t+1} - w_t| = |d_t + d_{t+1}| / 2. oscillating_share = sum |r_{t+1} - r_t|^2 /
    (sum |r_{t+1} - r_t|^2 + sum |w_{t+1} - w_t|^2): 1 from wall to wall, 1/2 for independent updates, 0 on a straight line.

    Run-level, from the recorded |theta_t - theta_0|, t counted from the first row: least squares at up to 100 log-spaced
    t >= 1. Their points depend on each other, so that errors come from the block bootstrap over these points: they say how
    straight the line of this run is, not how another seed would run. mean_gradient_cosine: block bootstrap over updates.

    Args:
        trajectory: the walk.
        surface: L; only for the predicted cosine.
        window: updates a window, >= 1.
        gradient_points: gradients of L a window, >= 0.

    Returns:
        Measurement over `step`, `window`, `lag`, `layer` (parameters with the same prefix) and `step_scalar`.

    Raises:
        ArgumentError: an option out of range.

    Cost: `gradient_points` gradients of L a window; window^2 P multiplications; one GB at most beside two snapshots.
    """
    whole("window", window, 1)
    whole("gradient_points", gradient_points, 0)
    lags = _lags(window)
    layers = _layers(trajectory.header.layout.names)
    table, spans = trajectory.steps, windows(trajectory.snapshot_steps, window)
    with np.errstate(over="ignore", invalid="ignore"):  # a walk that diverged gives NaN, said by the outcomes
        rows = [_window(trajectory, table, surface, span, (lags, list(layers.values()), gradient_points)) for span in spans]
    recorded = table["step"].values if "step" in table.coords else np.zeros(0, np.int64)
    values = _collect(rows, len(lags), len(layers)) | _run(table, recorded)
    coords: dict[str, tuple[str, Any, str]] = {
        "step": ("step", np.concatenate([np.zeros(0, np.int64), *(np.arange(a, b) for a, b in spans)]), "update t"),
        "step_scalar": ("step_scalar", recorded, "update t"),
        **ends(spans),
        "lag": ("lag", lags, "updates between two points"),
        "layer": ("layer", np.array(list(layers), dtype=np.str_), "prefix of the parameters' names"),
    }
    return measurement(_VARIABLES, _dress(values), coords)


def _lags(window: int) -> NDArray[np.int64]:
    """1, 2, 3, 4, 6, 8, 12, ... up to a quarter of the window (at least 1)."""
    steps = {int(2**k * f) for k in range(window.bit_length() + 1) for f in (1, 1.5)}
    return np.array(sorted(s for s in steps if s <= max(1, window // 4)), np.int64)


def _layers(names: Sequence[str]) -> dict[str, list[int]]:
    layers: dict[str, list[int]] = {}
    for index, name in enumerate(names):
        layers.setdefault(name.rpartition(".")[0] or name, []).append(index)
    return layers


def _outcome(values: Any) -> NDArray[np.int8]:
    return np.where(np.isfinite(values), int(Outcome.ok), int(Outcome.not_applicable)).astype(np.int8)


def _gram(trajectory: Trajectory, first: int, last: int) -> Array:
    """d_s . d_t of the updates first..last - 1, [n, n]; read in pieces where P is large."""
    n, size = last - first, trajectory.header.layout.size
    width = max(1, CHUNK // (n + 1))
    gram = torch.zeros(n, n, dtype=torch.float64)
    for begin in range(0, size, width):
        points = torch.stack([trajectory.theta(s)[begin : begin + width].double() for s in range(first, last + 1)])
        moves = points.diff(dim=0)
        gram += moves @ moves.T
    return gram.numpy()


def _cosine(table: xr.Dataset, first: int, last: int) -> Row:
    cosines = scalars(table, "gradient_cosine", first, last)
    cosines = cosines[np.isfinite(cosines)]
    return _bootstrap("gradient_cosine", cosines) | _bootstrap("gradient_cosine_negative", (cosines < 0).astype(float))


def _bootstrap(name: str, rows: Array, statistic: Any = np.mean, block: int | None = None) -> Row:
    """Value, standard error and interval under the names of the declaration; NaN where there are no rows."""
    value, error, interval = np.nan, np.nan, Interval(np.nan, np.nan)
    if len(rows):
        value, error, interval = block_bootstrap(rows, statistic, block=block, resamples=RESAMPLES)
    interval = Interval(np.nan, np.nan) if interval == UNBOUNDED else interval
    return {name: value, f"{name}_stderr": error, f"{name}_low": interval.low, f"{name}_high": interval.high}


def _predicted(trajectory: Trajectory, surface: Surface | None, table: xr.Dataset, span: tuple[int, int], points: int) -> Row:
    first, last = span
    squares = scalars(table, "gradient_norm", first, last) ** 2
    squares = squares[np.isfinite(squares)]
    value, error = np.nan, np.nan
    if surface is not None and points and len(squares) and squares.mean() > 0:
        at = [first + (last - first) * k // points for k in range(min(points, last - first))]
        gradients = [surface.value_and_grad(trajectory.theta(s), trajectory.buffers(s) or None)[1] for s in at]
        full = np.array([float(g.double().square().sum()) for g in gradients])
        value = -full.mean() / squares.mean()
        if len(full) > 1 and len(squares) > 1:
            noise = squares.var(ddof=1) / len(squares) * value**2
            error = float(np.sqrt(full.var(ddof=1) / len(full) + noise) / squares.mean())
    return {"gradient_cosine_predicted": value, "gradient_cosine_predicted_stderr": error}


def _displacement(gram: Array, lags: NDArray[np.int64]) -> Row:
    """Mean squared displacement and its exponent."""
    n = len(gram)
    norms = np.diag(gram)
    squares = np.full((n - 1, len(lags)), np.nan)
    for column, lag in enumerate(lags[lags < n].tolist()):
        i = np.arange(n - lag)
        squares[: n - lag, column] = np.maximum(norms[i + lag] + norms[i] - 2 * gram[i + lag, i], 0)
    known = np.isfinite(squares)
    counted, summed = known.astype(float), np.where(known, squares, 0.0)
    row: Row = {"msd": np.full(len(lags), np.nan), "msd_stderr": np.full(len(lags), np.nan)}
    block = min(int(lags[-1]), max(1, (n - 1) // 4))
    for column in np.flatnonzero(known.any(0)).tolist():
        own = squares[known[:, column], column]
        width = min(block, max(1, len(own) // 4))
        row["msd"][column], row["msd_stderr"][column], _ = block_bootstrap(own, block=width, resamples=RESAMPLES)
    used = np.flatnonzero(np.isfinite(row["msd"]) & (row["msd"] > 0))
    log_lags = np.log(lags[used])

    def exponent(rows: Array) -> float:
        total = rows[:, : len(used)].sum(0)
        count = rows[:, len(used) :].sum(0)
        if (total <= 0).any() or (count <= 0).any():
            return np.nan
        return float(np.polyfit(log_lags, np.log(total / count), 1)[0])

    both = np.hstack([summed[:, used], counted[:, used]]) if len(used) > 2 else np.zeros((0, 1))
    return row | _bootstrap("msd_exponent", both, exponent, block)


def _window(
    trajectory: Trajectory,
    table: xr.Dataset,
    surface: Surface | None,
    span: tuple[int, int],
    shared: tuple[NDArray[np.int64], list[list[int]], int],
) -> Row:
    lags, layers, points = shared
    first, last = span
    moves = _gram(trajectory, first, last)
    sums = np.tri(len(moves) + 1, len(moves), -1)
    gram = sums @ moves @ sums.T  # of the points as seen from the first
    lengths = np.sqrt(np.maximum(np.diag(moves), 0))
    inner = np.diag(moves, 1)
    turned, drifted = np.full(len(moves), np.nan), np.full(len(moves), np.nan)
    moved = (lengths[:-1] > 0) & (lengths[1:] > 0)
    turned[1:][moved] = np.clip(inner[moved] / (lengths[:-1] * lengths[1:])[moved], -1, 1)
    pairs = lengths[:-1] ** 2 + lengths[1:] ** 2
    drifted[:-1] = np.sqrt(np.maximum(pairs + 2 * inner, 0)) / 2
    path, net = float(lengths.sum()), float(np.sqrt(max(gram[-1, -1], 0.0)))
    return {
        "update_cosine": turned,
        "oscillating": lengths / 2,
        "drifting": drifted,
        "path_length": path,
        "net": net,
        "efficiency": net / path if path > 0 else np.nan,
        "oscillating_share": 0.5 - inner.sum() / pairs.sum() if pairs.sum() > 0 else np.nan,
        "distance_layer": _by_layer(trajectory, table, span, layers),
        **_displacement(gram, lags),
        **_cosine(table, first, last),
        **_predicted(trajectory, surface, table, span, points),
    }


def _by_layer(trajectory: Trajectory, table: xr.Dataset, span: tuple[int, int], layers: list[list[int]]) -> Array:
    """|theta_t - theta_0| of each layer, [updates, layers]."""
    first, last = span
    distances = np.full((last - first, len(layers)), np.nan)
    start = int(table["step"].values[0]) if table.sizes.get("step") else 0
    try:
        origin = trajectory.theta(start).double()
    except NotAvailableError:
        return distances
    parts = trajectory.header.layout.slices
    for row, step in enumerate(range(first, last)):
        away = trajectory.theta(step).double() - origin
        squares = np.array([float(away[part].square().sum()) for part in parts])
        distances[row] = [np.sqrt(squares[layer].sum()) for layer in layers]
    return distances


def _run(table: xr.Dataset, recorded: NDArray[np.int64]) -> Row:
    """Numbers of the whole run, from its scalars."""
    empty = np.full(len(recorded), np.nan)
    distance = table["distance"].values.astype(float) if "distance" in table else empty
    cosines = table["gradient_cosine"].values.astype(float) if "gradient_cosine" in table else empty
    row = _bootstrap("mean_gradient_cosine", cosines[np.isfinite(cosines)])
    row |= {"distance": distance}
    since = (recorded - recorded[0]).astype(float) if len(recorded) else empty
    far = np.flatnonzero((since >= 1) & np.isfinite(distance) & (distance > 0))
    wanted = np.geomspace(1, max(len(far), 1), FIT_POINTS).round().astype(int) - 1
    chosen = far[np.unique(wanted)] if len(far) > 2 else far[:0]
    t, d = np.log(since[chosen]), distance[chosen]
    row |= _line("distance_exponent", "distance_r2", t, 2 * np.log(d))
    return row | _line("log_slope", "log_r2", t, d)


def _line(name: str, r2: str, x: Array, y: Array) -> Row:
    def fit(rows: Array) -> float:
        return slope(rows[:, 0], rows[:, 1])[0] if np.ptp(rows[:, 0]) > 0 else np.nan

    row = _bootstrap(name, np.stack([x, y], axis=1), fit)
    return row | {r2: slope(x, y)[3] if len(x) else np.nan}


def _collect(rows: list[Row], lags: int, layers: int) -> Row:
    """Columns of all windows."""
    values: Row = {}
    for name, v in _VARIABLES.items():
        if "window" not in v.dims and "step" not in v.dims:
            continue
        tail = {"lag": (lags,), "layer": (layers,)}.get(v.dims[-1], ())
        for key in (name, f"{name}_stderr") if v.error == "stderr" else (name,):
            parts = [np.asarray(row[key], np.float64) for row in rows]
            joined = np.stack(parts) if v.dims[0] == "window" and parts else np.concatenate(parts) if parts else np.zeros(0)
            values[key] = joined.reshape(-1, *tail)
    return values


def _dress(values: Mapping[str, Any]) -> Row:
    """Add the outcomes that follow from the values."""
    return dict(values) | {f"{name}_outcome": _outcome(values[name]) for name, v in _VARIABLES.items() if v.reason}
