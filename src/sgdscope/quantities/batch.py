"""The step on its own batch: where it lands in the batch's valley, the batch's curvature, and how noisy its gradient is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from sgdscope import spectra
from sgdscope.contracts import Source, declare, measurement, quantity, scalars
from sgdscope.directions import private
from sgdscope.errors import ArgumentError, DataError, NotAvailableError, Outcome
from sgdscope.records import Surface, Trajectory, windows
from sgdscope.statistics import block_bootstrap

Array = NDArray[np.float64]
Row = dict[str, Any]

AGREES = 1e-4  # relative: recorded loss and slope against the own batch, at the first update of a window
RESAMPLES = 400  # of the bootstrap behind standard errors: their own error is 4 %

COCKPIT, EDGE = "Schneider, Dangel & Hennig 2021 (2102.06604)", "Andreyev & Beneventano 2024 (2412.20553)"
_SOURCES = {
    "line": f"{COCKPIT}, alpha; parabola through phi_B(0), phi_B'(0) = g.d and phi_B(1)",
    "lanczos": f"{COCKPIT}, HessMaxEV and HessTrace, of the step's own batch",
    "noise": "McCandlish et al. 2018 (1812.06162), simple noise scale, eq. 2.9; parts of one batch as the small batches",
    "edge": f"{EDGE}, by Hessian products",
    "count": "counted",
}
_REASONS = {
    "own": "no recorded batch or loss, not finite, or loss and slope are not those of the own batch (see own_batch)",
    "bend": "as loss_end, or the bend is not above its rounding error",
    "curved": "not asked for, no recorded batch, or not finite",
    "parts": "not asked for, no recorded batch, or a batch smaller than the parts",
    "ratio": "not asked for, or the mean squared gradient is not positive",
    "edge": "not asked for, no recorded batch, or a gradient of zero",
}
# name; dims; units; error; source; reason; long name
_TABLE = """
loss_end; step; loss; exact; line; own; phi_B(1), loss of the update's batch at theta_{t+1}
slope; step; loss; exact; line; own; phi_B'(0) = g_t . d_t, as recorded
bend; step; loss; exact; line; own; a2 = phi_B(1) - phi_B(0) - phi_B'(0), half the curvature along the update
alpha_star; step; 1; exact; line; bend; -slope / (2 bend): where on the update the batch's loss is smallest, 1 at its end
alpha_cockpit; step; 1; exact; line; own; 1 / alpha* - 1, -1 where the bend is not positive: 0 at the floor, 1 on the other wall
own_batch; step; 1; exact; line; ; whether recorded loss and slope are those of the own batch
eigenvalue; step; loss/theta^2; bound; lanczos; curved; largest eigenvalue of the Hessian of the batch at theta_t
eigenvalue_residual; step; loss/theta^2; bound; lanczos; ; |H_B e - lambda e|
trace; step; loss/theta^2; stderr; lanczos; curved; trace of the Hessian of the batch
step_sharpness; step; 1/lr; exact; edge; curved; g_B'H_B g_B / |g_B|^2
noise_trace; step; loss^2/theta^2; exact; noise; parts; unbiased estimate of the trace of the examples' gradient covariance
gradient_square; step; loss^2/theta^2; exact; noise; parts; unbiased estimate of |grad L|^2
noise_scale; window; 1; stderr; noise; ratio; mean noise_trace / mean gradient_square, in examples
gni; window; 1/lr; stderr; edge; edge; mean g_B'H g_B / mean |grad L|^2 over `gni` updates
batch_sharpness; window; 1/lr; stderr; edge; edge; mean of step_sharpness
batch_updates; window; 1; exact; count; ; updates behind batch_sharpness
products; window; 1; exact; count; ; Hessian products on single batches
"""
_FLAGS = {"own_batch": "met no_batch no_loss loss_differs slope_differs"}
_VARIABLES = declare(_TABLE, sources=_SOURCES, reasons=_REASONS, flags=_FLAGS)
_POWERS = {"loss": 1.0, "loss/theta^2": 1.0, "1/lr": 1.0, "loss^2/theta^2": 2.0}


@quantity(
    "batch",
    needs=["surface", "snapshots", "scalars"],
    sources=[Source(COCKPIT, "instruments"), Source(EDGE, "batch sharpness"), Source("McCandlish et al. 2018 (1812.06162)")],
    scales={name: _POWERS.get(v.units, 0.0) for name, v in _VARIABLES.items()},
)
def batch(
    trajectory: Trajectory,
    surface: Surface | None,
    *,
    window: int = 60,
    eigenvalue: bool = False,
    tolerance: float = 1e-2,
    probes: int = 0,
    parts: int = 0,
    sharpness: bool = False,
    gni: int = 0,
    seed: int = 0,
) -> xr.Dataset:
    """Each update on its own batch: one forward pass gives alpha; curvature and noise scale where asked for.

    phi_B(alpha) = loss of batch t at theta_t + alpha d_t in training mode. phi_B(0) is the recorded loss, phi_B'(0) the
    recorded g.d, phi_B(1) one evaluation: a2 = phi_B(1) - phi_B(0) - phi_B'(0), alpha* = -phi_B'(0) / (2 a2). At the
    first update of a window both are held against the own batch (to 1e-4): dropout, clipped gradients or several batches an
    update make them differ, and the window is not_applicable.

    Noise scale: the gradients g_j of m = `parts` equal parts of the batch of B examples, S = sum |g_j - g|^2 / (m - 1):
    tr(Sigma) = S B / m, |grad L|^2 = |g|^2 - S / m, both unbiased; noise_scale is the ratio of their means over the window.

    By products: step_sharpness = g'H_B g / |g|^2 at each update (sharpness=True), batch_sharpness its mean; gni = mean g'H g /
    mean |grad L|^2 on the full surface for `gni` updates spread over the window. The secant forms of `valley` approach them as
    the step gets shorter.

    Args:
        trajectory: the walk, with batches.
        surface: L; its `on_batch` is used.
        window: updates a window, >= 1.
        eigenvalue: find the largest eigenvalue of each batch's Hessian, from the gradient.
        tolerance: its relative residual, > 0.
        probes: Hutchinson probes for the trace, 0 or >= 2.
        parts: of the batch, for the noise scale, 0 or >= 2.
        sharpness: measure step_sharpness.
        gni: updates of a window, >= 0.
        seed: of the probes.

    Returns:
        Measurement over `step` and `window`; empty without two consecutive snapshots.

    Raises:
        ArgumentError: no surface, or an option out of range.

    Cost: a forward pass on the batch an update; eigenvalue 3-8 products on the batch, trace one a probe, noise scale one
    gradient, step_sharpness one product; gni a product and a gradient on the full data.
    """
    if surface is None:
        raise ArgumentError("surface: the batches are evaluated on a loss surface, got None; make one with sgdscope.LossSurface")
    _check(window, tolerance, probes=probes, parts=parts, gni=gni, seed=seed)
    spans = windows(trajectory.snapshot_steps, window)
    work = _Work(trajectory, surface, tolerance if eigenvalue else 0.0, probes, parts, sharpness or gni > 0, seed)
    rows: list[Row] = []
    spanned: list[Row] = []
    for first, last in spans:
        found = work.window(first, last)
        rows += found
        spanned.append(_summary(found, first) | work.interaction(first, last, gni))
    coords = {
        "step": ("step", np.array([r["step"] for r in rows], np.int64), "update t"),
        "window_first": ("window", np.array([a for a, _ in spans], np.int64), "first point of the window"),
        "window_last": ("window", np.array([b for _, b in spans], np.int64), "last point of the window"),
    }
    return measurement(_VARIABLES, _columns(rows, spanned), coords)


def _check(window: int, tolerance: float, **counts: int) -> None:
    for name, value in {"window": window, **counts}.items():
        least = 1 if name == "window" else 0
        if isinstance(value, bool) or not value >= least or value != int(value):
            raise ArgumentError(f"{name}: expected an integer >= {least}, got {value!r}")
    for name in ("probes", "parts"):
        if counts[name] == 1:
            raise ArgumentError(f"{name}: expected 0, or at least 2, got 1")
    if not (tolerance > 0 and np.isfinite(tolerance)):
        raise ArgumentError(f"tolerance: expected a finite number > 0, got {tolerance!r}")


class _Work:
    """Measures windows; the options are fixed."""

    def __init__(
        self, trajectory: Trajectory, surface: Surface, tolerance: float, probes: int, parts: int, sharpness: bool, seed: int
    ) -> None:
        self.trajectory, self.surface, self.tolerance, self.probes, self.parts = trajectory, surface, tolerance, probes, parts
        self.sharpness, self.seed = sharpness, seed
        self.table = trajectory.steps
        names = str(surface.fingerprint().get("dtype", "float64")).split("+")
        self.eps = max(torch.finfo(getattr(torch, name.removeprefix("torch."))).eps for name in names)

    def window(self, first: int, last: int) -> list[Row]:
        losses, slopes = (scalars(self.table, name, first, last) for name in ("loss", "gradient_dot_update"))
        point, fault, rows = self._point(first), 0.0, []
        for t in range(first, last):
            following = self._point(t + 1)
            row: Row = {"step": t, "own_batch": 1.0, "products": 0.0}
            try:
                own = self.surface.on_batch(self.trajectory.batch(t))
            except NotAvailableError:
                rows.append(row)
                point = following
                continue
            loss, slope = float(losses[t - first]), float(slopes[t - first])
            if t == first:
                fault = self._fault(own, point, following[0], (loss, slope))
            row["own_batch"] = 2.0 if not np.isfinite(loss + slope) else fault
            if not row["own_batch"]:
                row |= self._line(own, following, loss, slope)
            if self.tolerance or self.probes or self.sharpness:
                row |= self._curved(own, point, t)
            if self.parts:
                row |= self._noise(t, point)
            rows.append(row)
            point = following
        return rows

    def _point(self, step: int) -> tuple[Tensor, Mapping[str, Tensor] | None]:
        return self.trajectory.theta(step), self.trajectory.buffers(step) or None

    def _fault(self, own: Surface, point: tuple[Tensor, Any], following: Tensor, told: tuple[float, float]) -> float:
        """Which of the recorded loss and slope is not that of the own batch."""
        value, gradient = own.value_and_grad(*point)
        d = following.double() - point[0].double()
        slope, scale = float(gradient.double() @ d.to(gradient.device)), float(gradient.double().norm() * d.norm())
        if not abs(value - told[0]) <= AGREES * abs(value):
            return 3.0
        return 0.0 if abs(slope - told[1]) <= AGREES * max(abs(slope), 0.1 * scale) else 4.0

    def _line(self, own: Surface, following: tuple[Tensor, Any], loss: float, slope: float) -> Row:
        end = own.value(*following)
        bend = end - loss - slope
        row: Row = {"loss_end": end, "slope": slope, "bend": bend}
        clear = bend > 8 * 4 * self.eps * max(abs(end), abs(loss))
        row["alpha_star"] = -slope / (2 * bend) if clear else np.nan
        row["alpha_cockpit"] = -1.0 if bend <= 0 else np.nan if slope == 0 else -2 * bend / slope - 1
        return row if np.isfinite(end) else dict.fromkeys(row, np.nan)

    def _curved(self, own: Surface, point: tuple[Tensor, Any], step: int) -> Row:
        row: Row = {}
        with own.linearized(*point) as h:
            g = h.gradient
            if not (np.isfinite(h.value) and torch.isfinite(g).all()):
                return row
            place: dict[str, Any] = {"dtype": g.dtype, "device": g.device}
            place["generator"] = private(self.seed, step)
            squared = float(g.double().square().sum())
            pairs = None
            if self.tolerance:
                begin = g if squared > 0 else None
                pairs = spectra.eigenpairs(h.hvp, len(g), 1, tolerance=self.tolerance, start=begin, **place)
                row |= {"eigenvalue": float(pairs.values[0]), "eigenvalue_residual": float(pairs.residuals[0])}
                row["eigenvalue_outcome"] = int(pairs.outcome)
            if self.probes:
                found = spectra.trace(h.hvp, len(g), products=self.probes, known=pairs, method="hutchinson", **place)
                exact = pairs is not None and len(g) <= len(pairs.values)
                row |= {"trace": found.value, "trace_stderr": 0.0 if exact else found.stderr}
            if self.sharpness and squared > 0:
                row["step_sharpness"] = float(g.double() @ h.hvp(g).double()) / squared
            return row | {"products": float(h.products)}

    def _noise(self, step: int, point: tuple[Tensor, Any]) -> Row:
        """Unbiased trace of the covariance and squared gradient, from the gradients of equal parts of the batch."""
        try:
            pieces = _parts(self.trajectory.batch(step), self.parts)
        except DataError:
            return {}
        size = sum(n for _, n in pieces)
        gradients = [self.surface.on_batch(piece).value_and_grad(*point)[1].double() for piece, _ in pieces]
        mean = torch.stack(gradients).mean(0)
        scatter = sum(float((g - mean).square().sum()) for g in gradients) / (len(gradients) - 1)
        return {
            "noise_trace": scatter * size / len(gradients),
            "gradient_square": float(mean.square().sum()) - scatter / len(gradients),
        }

    def interaction(self, first: int, last: int, updates: int) -> Row:
        """g_B'H g_B and |grad L|^2 on the full surface, for some updates of a window."""
        pairs = []
        for t in sorted({*np.linspace(first, last - 1, updates).round().astype(int).tolist()}):
            point = self._point(t)
            try:
                g = self.surface.on_batch(self.trajectory.batch(t)).value_and_grad(*point)[1]
            except NotAvailableError:
                continue
            with self.surface.linearized(*point) as h:
                pairs.append((float(g.double() @ h.hvp(g).double()), float(h.gradient.double().square().sum())))
        table = np.array(pairs).reshape(-1, 2)
        if not len(table) or not np.isfinite(table).all() or not table[:, 1].sum() > 0:
            return {}
        return _ratio("gni", table)


def _parts(batch: Any, count: int) -> list[tuple[Any, int]]:
    """Cut a batch into equal parts of its leading dimension; what is left over is not used."""
    tensors = [batch] if isinstance(batch, Tensor) else list(batch.values()) if isinstance(batch, Mapping) else list(batch)
    sizes = {len(t) for t in tensors if isinstance(t, Tensor) and t.ndim}
    if len(sizes) != 1 or not all(isinstance(t, Tensor) and t.ndim for t in tensors) or min(sizes) < count:
        raise DataError(f"batch: expected tensors with one leading dimension of at least {count}, got sizes {sorted(sizes)}")
    n = min(sizes) // count

    def cut(i: int) -> Any:
        pieces = [t[i * n : (i + 1) * n] for t in tensors]
        if isinstance(batch, Tensor):
            return pieces[0]
        return dict(zip(batch, pieces, strict=True)) if isinstance(batch, Mapping) else type(batch)(pieces)

    return [(cut(i), n) for i in range(count)]


# --- columns ------------------------------------------------------------------------------------------------------------------


def _mean_ratio(rows: Array) -> float:
    above, below = rows.mean(0).tolist()
    return above / below if below > 0 else np.nan


def _ratio(name: str, table: Array) -> Row:
    """Ratio of means, with its bootstrap error over updates."""
    value, error = block_bootstrap(table, _mean_ratio, resamples=RESAMPLES)[:2]
    return {name: value, f"{name}_stderr": error}


def _summary(rows: list[Row], first: int) -> Row:
    """The numbers of a window."""
    row: Row = {"products": float(sum(r["products"] for r in rows)), "batch_updates": 0.0}
    noise = np.array([(r["noise_trace"], r["gradient_square"]) for r in rows if "noise_trace" in r]).reshape(-1, 2)
    if len(noise) and np.isfinite(noise).all() and noise[:, 1].mean() > 0:
        row |= _ratio("noise_scale", noise)
    sharp = np.array([r["step_sharpness"] for r in rows if np.isfinite(r.get("step_sharpness", np.nan))])
    if len(sharp):
        value, error = block_bootstrap(sharp, resamples=RESAMPLES)[:2]
        row |= {"batch_sharpness": value, "batch_sharpness_stderr": error, "batch_updates": float(len(sharp))}
    return row | {"first": first}


def _columns(rows: list[Row], spanned: list[Row]) -> Row:
    """All columns, with the outcomes that follow from the values."""
    values: Row = {}
    for name, v in _VARIABLES.items():
        source = spanned if v.dims[0] == "window" else rows
        for key in (name, f"{name}_stderr") if v.error == "stderr" else (name,):
            values[key] = np.array([row.get(key, np.nan) for row in source], np.float64)
        if v.reason:
            plain = np.where(np.isfinite(values[name]), int(Outcome.ok), int(Outcome.not_applicable)).tolist()
            values[f"{name}_outcome"] = np.array(
                [r.get(f"{name}_outcome", p) for r, p in zip(source, plain, strict=True)], np.int8
            )
    return values
