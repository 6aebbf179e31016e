"""The valley under the walk: the loss along each update, its floor, its walls and the height above the floor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.contracts import Source, declare, ends, measurement, quantity, scalars
from sgdscope.curves import ROUNDING, bends, fit, lobatto, parabola, squares
from sgdscope.errors import ArgumentError, NotAvailableError, Outcome
from sgdscope.records import Surface, Trajectory, windows
from sgdscope.statistics import block_bootstrap, share_interval

Array = NDArray[np.float64]
Row = dict[str, float]

THREE = (0.0, 0.5, 1.0)
DESCENT = 1e-6  # largest |d + lr g| / |d| at which an update counts as d = -lr g, beside rounding (DESIGN, "Lines")
NINE = 2.5  # largest error / tolerance of 5 nodes at which 9 are tried: they bring a factor of about 3 on kinks
RESAMPLES = 400  # of the bootstrap behind the window's standard errors: their own error is 4 %

WALK, EDGE = "Xing et al. 2018 (1802.08770)", "Andreyev & Beneventano 2024 (2412.20553)"
_SOURCES = {
    "line": f"{WALK}, interpolation; parabola through alpha = 0, 1/2, 1",
    "curve": f"{WALK}, interpolation; Chebyshev points where the estimated error allows, else every alpha",
    "walk": WALK,
    "edge": EDGE,
    "interval": "circular block bootstrap over updates; Wilson where all are equal",
    "descent": "Wen et al. 2024 (2410.05192), height above the river",
    "even": "Jastrzebski et al. 2020 (2002.09572), break-even",
    "count": "counted",
}
_REASONS = {
    "flat": "a2 is not above its rounding error (no floor along this line), or a loss is not finite",
    "finite": "a loss is not finite",
    "own": "the own batch does not meet the conditions of the identities (see own_batch), or a2 is not above rounding",
    "gni": "an update is not -lr g, or <a1> is not negative, or (gni) lr varies",
    "sharp": "no update with a1_batch < 0 that meets the conditions (see own_batch), or (batch_sharpness) lr varies",
    "slide": "not asked for, a loss is not finite; or the budget ended before the residual met epsilon x height",
    "branch": "not asked for, lr not recorded, or a loss on the branch is not finite",
    "shape": "a loss is not finite; r2: flat within rounding; cubic: < 4 alphas, a2 in rounding; barrier: none in (0, 1)",
    "even": "not asked for, phi(0) not positive, or not reached",
}
# name; dims; units; error; source; reason; long name
_TABLE = """
loss_start; step; loss; stderr; line; finite; phi(0), loss at theta_t
loss_end; step; loss; stderr; line; finite; phi(1), loss at theta_{t+1}
a1; step; loss; stderr; line; finite; -3 phi(0) + 4 phi(1/2) - phi(1), slope at theta_t
a2; step; loss; stderr; line; finite; 2 phi(0) - 4 phi(1/2) + 2 phi(1), half the curvature
alpha_star; step; 1; stderr; line; flat; floor of the parabola, -a1 / (2 a2), any real number
height_start; step; loss; stderr; line; flat; h0 = a1^2 / (4 a2), phi(0) above the floor of the parabola
height_end; step; loss; stderr; line; flat; h1 = a2 (1 - alpha*)^2, phi(1) above the floor of the parabola
height; step; loss; stderr; line; flat; (h0 + h1) / 2
height_within; step; loss; stderr; line; finite; (phi(0) + phi(1)) / 2 - minimum of the parabola over [0, 1]
height_average; step; loss; stderr; line; finite; (phi(0) + phi(1)) / 2 - loss at the two-step average = a2 / 4
interior; step; 1; exact; line; ; a2 above rounding and 0 < alpha* < 1
a1_batch; step; loss; exact; line; own; a1 on the update's own batch
a2_batch; step; loss; exact; line; own; a2 on the update's own batch
alpha_star_batch; step; 1; exact; line; own; -a1 / (2 a2) on the update's own batch
own_batch; step; 1; exact; line; ; whether the own batch meets the conditions of the identities
interior_share; window; 1; stderr; walk; finite; share of updates with the floor inside
interior_share_low; window; 1; bound; interval; ; lower end of the 95 % interval of interior_share
interior_share_high; window; 1; bound; interval; ; upper end of the 95 % interval of interior_share
mean_height; window; loss; stderr; walk; finite; mean of height_within
noise_floor; window; loss; bound; line; ; rounding allowed to one loss, 4 eps max |phi|
eta_gni; window; 1; stderr; edge; gni; lr x gradient-noise interaction, -2 <a2> / <a1>
gni; window; 1/lr; stderr; edge; gni; E g_B'H g_B / |grad L|^2 = eta_gni / lr
eta_batch_sharpness; window; 1; stderr; edge; sharp; lr x batch sharpness, mean of -2 a2_batch / a1_batch
batch_sharpness; window; 1/lr; stderr; edge; sharp; E g_B'H_B g_B / |g_B|^2 = eta_batch_sharpness / lr
batch_updates; window; 1; exact; count; ; updates behind eta_batch_sharpness
height_projection; window; loss; bound; descent; slide; L(theta) - L(its floor), theta the window's last point
height_projection_residual; window; loss; bound; descent; ; what the next step of the projection would bring, s |grad L|^2
height_decay; window; loss; exact; descent; branch; L(theta) - L(end of gradient descent with lr -> 0)
evaluations; window; 1; exact; count; ; passes over the data (a gradient counts as one)
curve; step_curve alpha; loss; bound; curve; ; phi(alpha)
curve_error; step_curve; loss; bound; curve; ; estimated error between the nodes, 0 where each alpha was evaluated
curve_points; step_curve; 1; exact; count; ; points of the line at which the loss was evaluated
r2; step_curve; 1; bound; curve; shape; R^2 of the least-squares parabola on the curve
cubic; step_curve; loss; bound; curve; shape; coefficient of alpha^3 in the least-squares cubic
cubic_ratio; step_curve; 1; bound; curve; shape; cubic / a2
convex; step_curve; 1; exact; curve; ; all second differences >= -4 (rounding + curve_error)
barrier; step_curve; loss; bound; curve; shape; largest phi at 0 < alpha < 1 - larger of phi(0), phi(1)
curve_argmin; step_curve; 1; bound; curve; shape; alpha of the lowest point of the curve, to the spacing of alpha
alpha_20; step_curve; 1; bound; even; even; smallest alpha found with phi(alpha) >= 1.2 phi(0)
"""
_FLAGS = {"own_batch": "met not_asked not_minus_lr_g no_loss no_batch loss_differs", "interior": "no yes", "convex": "no yes"}
_VARIABLES = declare(_TABLE, sources=_SOURCES, reasons=_REASONS, flags=_FLAGS)


@quantity(
    "valley",
    needs=["surface", "snapshots"],
    sources=[Source(WALK, "interpolation between iterates"), Source(EDGE, "GNI, batch sharpness")],
    scales={name: float(v.units in {"loss", "1/lr"}) for name, v in _VARIABLES.items()},
)
def valley(
    trajectory: Trajectory,
    surface: Surface | None,
    *,
    window: int = 60,
    curve: bool | int | str = True,
    alphas: Sequence[float] | None = None,
    tolerance: float = 1e-3,
    break_even: bool | int = False,
    own_batch: bool = True,
    projection: bool | int = False,
    epsilon: float = 1e-2,
    decay: bool | int = False,
) -> xr.Dataset:
    """Loss along each update d_t = theta_{t+1} - theta_t with both ends recorded: floor, heights, curvature, barrier.

    Parabola, phi(alpha) = L(theta_t + alpha d_t) at 0, 1/2, 1 (phi(1) is the next update's phi(0)):
    a1 = -3 phi(0) + 4 phi(1/2) - phi(1), a2 = 2 phi(0) - 4 phi(1/2) + 2 phi(1), alpha* = -a1 / (2 a2),
    h0 = a1^2 / (4 a2), h1 = a2 (1 - alpha*)^2. It has no residual: R^2 and the cubic term come from the curve.
    alpha*, h0, h1 are not_applicable where a2 <= 8 r, r = 4 eps max |phi| the rounding allowed to one loss; where alpha*
    lies off [0, 1] they extrapolate. `height_within` takes the minimum over [0, 1] and is what `mean_height` averages.

    Standard errors: delta method over the examples (batches, where only their means are known), the same ones at each
    alpha: stderr^2 = M / (M - 1) sum_m w_m^2 (z_m - z)^2, z_m the influence of m. They say how far the number may lie from
    that of the population behind the examples; on the surface itself it is exact up to rounding. Errors of windows:
    circular block bootstrap over updates. NaN where nothing is known.

    Curve: polynomial through (low + high) / 2 - (high - low) / 2 cos(j pi / n), j = 0..n, n = 4, then 8, with Chebyshev
    coefficients c_0..c_n. Error e = max(decay, kinks): decay = E q / (1 - q), E = max(|c_{n-1}|, |c_n|), q = E / max(|c_{n-3}|,
    |c_{n-2}|), infinite for q >= 1/2. Kinks (ReLU) do not show in it: K sqrt(sum_m w_m^2 (c_{n-1,m}^2 + c_{n,m}^2)) over the
    curves of M >= 30 examples (batches), K = 2 (n = 4), 5 (n = 8); without them 2 x the residual at one further alpha (in
    turn) of each fit, or 0.8 of the one before. Accepted if e <= tolerance x range (or 2 r), and neither the sign of the
    barrier nor convexity hangs on e; else each alpha is evaluated and e = 0, at once for the next 1, 3, 7, 15 updates of
    the window after 1, 2, 3, 4 failures in a row. A feature narrower than the spacing and absent from all nodes is seen only
    where one looks: tolerance=0 evaluates each alpha everywhere.

    Own batch: the parabola on `surface.on_batch(batch)`, training mode. -2 a2_B / a1_B = lr g'H_B g / |g|^2 in its secant
    form, if |d + lr g| / |d| <= 1e-6 + eps |theta| / |d| (rounding of theta) and phi_B(0) is the recorded loss to 1e-5
    (1e-9 in float64).

    Projection: theta <- theta - s grad L from the window's last point, s = |d| / |grad L| of the last update, halved until
    L falls by >= 3/4 s |grad L|^2 (s x curvature <= 1/2); ends when s |grad L|^2 <= epsilon x height found. Decay branch:
    k steps of gradient descent on the full surface (not SGD) with lr (1 - i / k), i = 0..k-1.

    Args:
        trajectory: the walk.
        surface: L; required.
        window: updates a window, >= 1.
        curve: True or ``"bursts"``: each recorded update; n: the first n updates of each window; False: none.
        alphas: [A] ascending, >= 3 points; a pair means steps of 0.1, as (-0.5, 2.5); default 0, 0.1, ..., 1.
        tolerance: of the curve, relative to its range, >= 0.
        break_even: search `alpha_20` on updates with a curve: doubled from 1 to this maximum (True: 64), bisected to 1 %.
        own_batch: measure on the own batch where it is at hand.
        projection: measure `height_projection` in at most so many gradients (True: 100).
        epsilon: of the projection, in (0, 1).
        decay: measure `height_decay` with k steps (True: 30).

    Returns:
        Measurement over `step`, `window`, `step_curve`, `alpha`; empty dimensions without two consecutive snapshots.

    Raises:
        ArgumentError: no surface, or an option out of range.

    Cost: 2 + 1/window passes over the data an update; 4 + 1/window with the curve on [0, 1] where 5 nodes do (5 + 1/window
        without the losses of examples), up to the number of alphas where not; 3 passes over the own batch; projection and
        decay: one gradient a step and window.
    """
    if surface is None:
        raise ArgumentError("surface: the valley is measured on a loss surface, got None; make one with sgdscope.LossSurface")
    grid = _grid(alphas)
    if not (tolerance >= 0 and 0 < epsilon < 1):
        raise ArgumentError(f"tolerance, epsilon: expected >= 0 and in (0, 1), got {tolerance!r}, {epsilon!r}")
    window, slide, branch = _count("window", window, 0), _count("projection", projection, 100), _count("decay", decay, 30)
    spans = windows(trajectory.snapshot_steps, window)
    curves, highest = _count("curve", curve, window), _count("break_even", break_even, 64)
    work = _Work(trajectory, surface, grid, tolerance, highest, own_batch, curves)
    for first, last in spans:
        work.window(first, last)
        work.descend(last, slide, epsilon, branch)
    coords = {
        "step": ("step", np.array([r["step"] for r in work.rows], np.int64), "update t"),
        "step_curve": ("step_curve", np.array([s["step"] for s in work.shapes], np.int64), "update t with a curve"),
        "alpha": ("alpha", grid, "position along the update: theta_t + alpha d_t"),
        **ends(spans),
    }
    return measurement(_VARIABLES, work.values(), coords)


def _count(name: str, option: Any, default: int) -> int:
    """Read an option that is a number, True (or "bursts") for its default, or False for none."""
    count = default if option is True or option == "bursts" else option
    if isinstance(count, str) or not count >= (name == "window") or count != int(count):
        raise ArgumentError(f"{name}: expected an integer >= {int(name == 'window')}, True or False, got {option!r}")
    return int(count)


def _grid(alphas: Sequence[float] | None) -> Array:
    grid = np.linspace(0, 1, 11) if alphas is None else np.asarray(alphas, np.float64)
    if grid.shape == (2,) and grid[0] < grid[1]:
        grid = np.linspace(grid[0], grid[1], max(3, round(10 * (grid[1] - grid[0])) + 1))
    if grid.ndim != 1 or len(grid) < 3 or not np.isfinite(grid).all() or (np.diff(grid) <= 0).any():
        raise ArgumentError(f"alphas: expected at least 3 ascending finite numbers or a pair (low, high), got {alphas!r}")
    return np.round(grid, 12)


def _eps(name: object) -> float:
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    return float(torch.finfo(dtype if isinstance(dtype, torch.dtype) and dtype.is_floating_point else torch.float32).eps)


@dataclass
class _Segment:
    """The loss along one update; each point is evaluated once."""

    surface: Surface
    theta: Tensor
    direction: Tensor
    buffers: Any
    values: dict[float, float] = field(default_factory=dict)
    samples: dict[float, Array] = field(default_factory=dict)
    weights: Array | None = None
    evaluations: int = 0

    def ask(self, alphas: Iterable[float]) -> Array:
        wanted = [float(a) for a in alphas]
        if missing := [a for a in dict.fromkeys(wanted) if a not in self.values]:
            line = self.surface.along(self.theta, self.direction, missing, self.buffers)
            self.evaluations += line.evaluations or len(missing)
            self.values |= dict(zip(missing, map(float, line.values), strict=True))
            if line.samples is not None and line.weights is not None and line.samples.shape[1] > 1:
                self.samples |= dict(zip(missing, line.samples, strict=True))
                self.weights = line.weights
        return np.array([self.values[a] for a in wanted])

    def end(self, following: _Segment) -> None:
        self.values[1.0] = following.values[0.0]
        if 0.0 in following.samples:
            self.samples[1.0] = following.samples[0.0]

    def parabola(self, eps: float) -> Row:
        phi = self.ask(THREE)
        known = np.stack([self.samples[a] for a in THREE]) if self.weights is not None else None
        return parabola(phi, eps, known, self.weights)


def _barrier(segment: _Segment, alphas: Array, values: Array) -> float:
    inside = values[(alphas > 0) & (alphas < 1)]
    return float(inside.max() - segment.ask([0.0, 1.0]).max()) if len(inside) else np.nan


@dataclass
class _Look:
    """What the curves of a window have shown so far: residuals measured without per-example losses, and failed fits."""

    residuals: dict[int, float] = field(default_factory=dict)
    failed: int = 0
    wait: int = 0

    def done(self, accepted: bool) -> None:
        self.failed = 0 if accepted else min(self.failed + 1, 4)
        self.wait = 2**self.failed - 1


def _curve(segment: _Segment, alphas: Array, tolerance: float, turn: int, look: _Look, floor: float) -> tuple[Array, float]:
    """The curve and its error: through 5 nodes, through 9, or evaluated everywhere."""
    key = tuple(map(float, alphas))
    if tolerance == 0 or len(key) < 6 or all(a in segment.values for a in key):
        return segment.ask(key), 0.0
    for n in (4, 8) if len(key) > 9 else (4,):
        nodes = lobatto(key[0], key[-1], n).tolist()
        if not np.isfinite(at_nodes := segment.ask(nodes)).all():
            break
        parts = np.stack([segment.samples[a] for a in nodes]) if segment.weights is not None else None
        found, spread = fit(key, at_nodes, floor, parts, segment.weights), float(np.ptp(at_nodes))
        error = max(2 * floor, found.decay, found.scatter)
        spare = [i for i, a in enumerate(key) if a not in segment.values]
        if np.isnan(found.scatter):  # kinks show at a further alpha only
            error = max(2 * floor, found.decay)
            if error <= max(tolerance * spread, 2 * floor) and spare and spread > 0:
                place = spare[turn * 3 % len(spare)]
                miss = abs(found.values[place] - segment.ask([key[place]])[0]) / spread
                look.residuals[n] = max(miss, 0.8 * look.residuals.get(n, 0.0))
                error = max(error, 2 * spread * look.residuals[n])
        if error > max(tolerance * spread, 2 * floor):
            if error > NINE * tolerance * spread and not np.isnan(found.scatter):
                break  # nine nodes would not do
            continue
        values = np.array([segment.values.get(a, v) for a, v in zip(key, found.values, strict=True)])
        bend = bends(alphas, values).min()
        if abs(_barrier(segment, alphas, values)) <= error or -4 * (floor + error) <= bend < -4 * floor:
            break  # the answer hangs on the error: look
        look.done(True)
        return values, float(error)
    look.done(False)
    return segment.ask(key), 0.0


def _shape(segment: _Segment, alphas: Array, row: Row, tolerance: float, turn: int, look: _Look) -> dict[str, Any]:
    floor = row["rounding"]
    values, error = _curve(segment, alphas, tolerance, turn, look, floor)
    result: dict[str, Any] = {"curve": values, "curve_error": error, "curve_points": len(segment.values), "convex": 0.0}
    result |= dict.fromkeys(("r2", "cubic", "cubic_ratio", "barrier", "curve_argmin"), np.nan)
    if not np.isfinite(values).all():
        return result
    r2, result["cubic"] = squares(tuple(map(float, alphas)), values)
    if float(((values - values.mean()) ** 2).sum()) > len(values) * (2 * floor) ** 2:
        result["r2"] = r2
    result["cubic_ratio"] = result["cubic"] / row["a2"] if row["a2"] > 8 * floor else np.nan
    result["convex"] = float((bends(alphas, values) >= -4 * (floor + error)).all())
    return result | {"barrier": _barrier(segment, alphas, values), "curve_argmin": float(alphas[values.argmin()])}


def _break_even(segment: _Segment, maximum: float) -> float:
    low, high, level = 0.0, 1.0, 1.2 * segment.values[0.0]
    if not (maximum and level > 0):
        return np.nan
    while not segment.ask([high])[0] >= level:
        low, high = high, 2 * high
        if high > maximum:
            return np.nan
    while high - low > 0.01 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if segment.ask([middle])[0] >= level else (middle, high)
    return high


@dataclass
class _Work:
    """Collects the numbers of each window; the options are fixed."""

    trajectory: Trajectory
    surface: Surface
    alphas: Array
    tolerance: float
    break_even: float
    own: bool
    curves: int
    rows: list[Row] = field(default_factory=list)
    shapes: list[dict[str, Any]] = field(default_factory=list)
    spans: list[Row] = field(default_factory=list)
    length: float = 0.0

    def __post_init__(self) -> None:
        self.table = self.trajectory.steps
        self.surface_eps = max(_eps(name) for name in str(self.surface.fingerprint().get("dtype", "float64")).split("+"))
        self.eps = max([_eps(name) for name in self.trajectory.header.layout.dtypes], default=self.surface_eps)
        nodes = lobatto(self.alphas[0], self.alphas[-1], 4) if self.tolerance and len(self.alphas) > 5 else self.alphas
        self.every, self.nodes = ([float(a) for a in grid if abs(a - 1) > 1e-12] for grid in (self.alphas, nodes))

    def window(self, first: int, last: int) -> None:
        """Measure the updates first..last - 1; three points are held at a time."""
        begin, used, self.look = len(self.rows), 0, _Look()
        self.columns = {name: scalars(self.table, name, first, last) for name in ("descent_residual", "loss")}
        before, (point, buffers) = None, self._point(first)
        for t in range(first, last):
            following, following_buffers = self._point(t + 1)
            segment = _Segment(self.surface, point, following - point, (buffers, following_buffers) if buffers else None)
            wanted = [0.0, 0.5, 1.0] if t + 1 == last else [0.0, 0.5]
            if t - first < self.curves:
                wanted += self.every if self.look.wait else self.nodes
                self.look.wait = max(0, self.look.wait - 1)
            segment.ask(wanted)
            if before is not None:
                before.end(segment)
                used += self._finish(before, t - 1, first)
            before, point, buffers = segment, following, following_buffers
        if before is not None:
            used += self._finish(before, last - 1, first)
            self.length = float(before.direction.norm())
        self.spans.append(self._summary(self.rows[begin:], first, last) | {"evaluations": float(used)})

    def _point(self, step: int) -> tuple[Tensor, dict[str, Tensor]]:
        return self.trajectory.theta(step).double(), self.trajectory.buffers(step)

    def _finish(self, segment: _Segment, step: int, first: int) -> int:
        row = segment.parabola(self.surface_eps)
        if step - first < self.curves:
            shape = _shape(segment, self.alphas, row, self.tolerance, step - first, self.look)
            self.shapes.append(shape | {"step": step, "alpha_20": _break_even(segment, self.break_even)})
        self.rows.append(row | self._own_batch(segment, step, first) | {"step": step})
        return segment.evaluations

    def _own_batch(self, segment: _Segment, step: int, first: int) -> Row:
        """Parabola on the step's own batch, if the update is -lr g and the batch gives the recorded loss."""
        row: Row = dict.fromkeys(("a1_batch", "a2_batch", "alpha_star_batch"), np.nan)
        residual, loss = (float(self.columns[name][step - first]) for name in ("descent_residual", "loss"))
        moved = float(segment.direction.norm()) if np.isfinite(residual) else 0.0
        allowed = DESCENT + (self.eps * float(segment.theta.norm()) / moved if moved else 0.0)
        row["descent"] = float(moved > 0 and residual <= allowed)
        row["own_batch"] = 2.0 if not row["descent"] else 3.0 if not np.isfinite(loss) else 1.0 if not self.own else 0.0
        if row["own_batch"]:
            return row
        try:
            surface = self.surface.on_batch(self.trajectory.batch(step))
        except NotAvailableError:
            return row | {"own_batch": 4.0}
        own = _Segment(surface, segment.theta, segment.direction, segment.buffers)
        own.ask(THREE)
        if not abs(own.values[0.0] - loss) <= (1e-9 if max(self.eps, self.surface_eps) < 1e-15 else 1e-5) * abs(loss):
            return row | {"own_batch": 5.0}
        found = own.parabola(self.surface_eps)
        return row | {f"{name}_batch": found[name] for name in ("a1", "a2", "alpha_star")}

    def _summary(self, rows: list[Row], first: int, last: int) -> Row:
        finite = [r for r in rows if np.isfinite(r["a2"])]
        lrs = scalars(self.table, "lr", first, last)
        lr = float(lrs[0]) if (lrs == lrs[0]).all() and lrs[0] > 0 else np.nan
        row: Row = {"noise_floor": max((r["rounding"] for r in finite), default=np.nan)}
        flags = [r["interior"] for r in finite]
        low, high = share_interval(flags)[1] if flags else (np.nan, np.nan)
        row |= _estimate("interior_share", flags) | {"interior_share_low": low, "interior_share_high": high}
        row |= _estimate("mean_height", [r["height_within"] for r in finite])
        sums = np.array([[r["a1"], r["a2"]] for r in finite if r["descent"]]).reshape(-1, 2)
        holds = len(sums) == len(rows) and sums[:, 0].mean() < 0
        row |= _estimate("eta_gni", sums if holds else [], _interaction)
        ratios = [-2 * r["a2_batch"] / r["a1_batch"] for r in finite if r["a1_batch"] < 0]
        row |= _estimate("eta_batch_sharpness", ratios) | {"batch_updates": float(len(ratios))}
        for name in ("gni", "batch_sharpness"):
            value, error = row[f"eta_{name}"] / lr, row[f"eta_{name}_stderr"] / lr
            row |= {name: value, f"{name}_stderr": error, f"{name}_outcome": _outcome(value)}
        return row

    def descend(self, last: int, projection: int, epsilon: float, decay: int) -> None:
        """Heights of the window's last point by descent on the surface."""
        row = self.spans[-1]
        row |= {"height_projection": np.nan, "height_projection_residual": np.nan, "height_decay": np.nan}
        if projection:
            self._slide(last, projection, epsilon, row)
        lr = float(scalars(self.table, "lr", last - 1, last)[0])
        if decay and np.isfinite(lr):
            theta, buffers = self._point(last)
            start = self.surface.value(theta, buffers or None)
            for i in range(decay):
                theta -= lr * (1 - i / decay) * self.surface.value_and_grad(theta, buffers or None)[1].to(theta)
            row["height_decay"] = start - self.surface.value(theta, buffers or None)
            row["evaluations"] += decay + 2

    def _slide(self, last: int, budget: int, epsilon: float, row: Row) -> None:
        """Descend in steps of s x curvature <= 1/2 until a step brings little."""
        theta, buffers = self._point(last)
        value, gradient = self.surface.value_and_grad(theta, buffers or None)
        start, squared, used, converged = value, float(gradient.double().square().sum()), 1, False
        size = self.length / squared**0.5 if squared > 0 else 0.0
        while np.isfinite(value):
            converged = size * squared <= max(epsilon * (start - value), ROUNDING * self.surface_eps * abs(value))
            if converged or used > budget:
                break
            trial = theta - size * gradient.to(theta)
            new, new_gradient = self.surface.value_and_grad(trial, buffers or None)
            used += 1
            if new <= value - 0.75 * size * squared:
                theta, value, gradient = trial, new, new_gradient
                squared = float(gradient.double().square().sum())
            else:
                size /= 2
        row |= {"height_projection": start - value, "height_projection_residual": size * squared}
        row["evaluations"] += used
        if np.isfinite(start - value):
            row["height_projection_outcome"] = Outcome.ok if converged else Outcome.not_converged

    def values(self) -> Mapping[str, Any]:
        """All columns, with the outcomes that follow from the values."""
        columns: dict[str, Any] = {}
        for name, v in _VARIABLES.items():
            rows = {"step": self.rows, "window": self.spans, "step_curve": self.shapes}[v.dims[0]]
            for key in (name, f"{name}_stderr") if v.error == "stderr" else (name,):
                columns[key] = np.array([r[key] for r in rows], np.float64)
            if v.reason:
                columns[f"{name}_outcome"] = np.array([r.get(f"{name}_outcome", _outcome(r[name])) for r in rows], np.int8)
        columns["curve"] = np.array([s["curve"] for s in self.shapes], np.float64).reshape(-1, len(self.alphas))
        return columns


def _outcome(value: float) -> Outcome:
    return Outcome.ok if np.isfinite(value) else Outcome.not_applicable


def _mean(x: Array) -> float:
    """np.mean bit by bit, without its overhead: the bootstrap calls it hundreds of times a window."""
    return float(np.add.reduce(x)) / len(x)


def _interaction(x: Array) -> float:
    """-2 <a2> / <a1> of rows (a1, a2)."""
    slope, bend = np.add.reduce(x, 0).tolist()
    return -2 * bend / slope if slope else np.nan


def _estimate(name: str, values: Any, statistic: Any = _mean) -> Row:
    """Value, standard error over updates and outcome of a window's number; not_applicable where nothing went in."""
    value, error = block_bootstrap(values, statistic, resamples=RESAMPLES)[:2] if len(values) else (np.nan, np.nan)
    return {name: value, f"{name}_stderr": error, f"{name}_outcome": _outcome(value)}
