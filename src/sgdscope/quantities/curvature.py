"""The curvature along the walk: sharpest directions, trace, spectrum, and how near the edge of stability the walk is."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from sgdscope import spectra, theory
from sgdscope.contracts import Source, columns, declare, ends, measurement, quantity, scalars
from sgdscope.directions import finite_product, private
from sgdscope.errors import ArgumentError, DataError, NotAvailableError, Outcome, SurfaceError
from sgdscope.ranges import choice, positive, whole
from sgdscope.records import Linearization, Surface, Trajectory, windows
from sgdscope.statistics import slope
from sgdscope.vector import Layout

Array = NDArray[np.float64]
Row = dict[str, Any]

BINS = 200  # of the density
WIDTH = 0.01  # of its Gaussians, in units of the range of the nodes
MODES = ("track", "cold", "ritz")

SHARP, EDGE = "Jastrzebski et al. 2019 (1807.05031)", "Cohen et al. 2021 (2103.00065), 2022 (2207.14484)"
_SOURCES = {
    "surface": "value and gradient of the surface",
    "lanczos": f"{SHARP}, spectral norm and top K; Lanczos, residual |H e - l e|",
    "probes": "Hutchinson off the eigenpairs; |H|_F = sqrt(E |H v|^2), v random signs",
    "ratio": "Jastrzebski et al. 2018, SGD Smooths the Sharpest Directions: conditioning",
    "edge": EDGE,
    "density": "stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017)",
    "volume": "Jastrzebski et al. 2017 (1711.04623), eq. 3: 1/2 log det H, cut at the damping",
    "subset": f"{SHARP}, eigenvectors from a subset of the data; Gur-Ari et al. 2018 (1812.04754), overlap",
    "invariant": "Kwon et al. 2021 (2102.11600); Petzka et al. 2021 (2001.00939): |theta| H |theta|",
    "layer": "parts of the vectors and of the probes; largest eigenvalue of the diagonal block",
    "count": "counted",
}
_REASONS = {
    "pairs": "P < rank, the products ended (not_converged), or the point or its Hessian is not finite",
    "asked": "not asked for, or the point is not finite",
    "bottom": "not asked for (bottom=True), or not converged",
    "ratio": "a number that it needs was not asked for, did not converge, or is not positive",
    "edge": "lr, method or (Adam) second moments (a replayed run has them) are not recorded; Adam needs batchnorm='batch'",
    "volume": "not asked for, or lambda_1 is not positive",
    "halves": "not asked for, or the data cannot be taken apart into examples",
    "first": "the first measured point of a window has none before it",
    "rate": "fewer than three points in the window",
}
# name; dims; units; error; source; reason; long name
_TABLE = """
loss; step; loss; exact; surface; ; L(theta_t)
gradient_norm; step; loss/theta; exact; surface; ; |grad L(theta_t)|
eigenvalue; step rank; loss/theta^2; bound; lanczos; pairs; lambda_i of the Hessian, algebraically largest first
eigenvalue_residual; step rank; loss/theta^2; bound; lanczos; ; |H e_i - lambda_i e_i|
sharpness; step; loss/theta^2; bound; lanczos; pairs; lambda_1, the largest eigenvalue
lowest_eigenvalue; step; loss/theta^2; bound; lanczos; bottom; smallest eigenvalue
spectral_norm; step; loss/theta^2; bound; lanczos; bottom; largest |eigenvalue|
top_frobenius; step; loss/theta^2; bound; lanczos; pairs; sqrt of the sum of lambda_i^2 over the K largest
trace; step; loss/theta^2; stderr; probes; asked; Tr H
frobenius; step; loss/theta^2; stderr; probes; asked; |H|_F
conditioning; step; 1; bound; ratio; ratio; lambda_1 / lambda_K
outlier_ratio; step; 1; stderr; ratio; ratio; lambda_1 / (Tr H / P)
effective_rank; step; 1; stderr; ratio; ratio; (Tr H)^2 / |H|_F^2
negative_ratio; step; 1; bound; ratio; ratio; -lambda_min / lambda_1
half_eta_sharpness; step; 1; bound; edge; edge; lr lambda_1 / 2, 1 at the edge of plain descent
edge; step; 1; bound; edge; edge; lambda_1 / threshold of the method; Adam: of the preconditioned Hessian
edge_directions; step; 1; exact; edge; edge; how many of the K lambda_i lie above the threshold (not Adam)
preconditioned_sharpness; step; 1/lr; bound; edge; edge; largest eigenvalue of D^(-1/2) H D^(-1/2), D = sqrt(v) + eps of Adam
half_overlap; step; 1; exact; subset; halves; overlap of the top-K subspaces of two halves of the data; chance K / P
basis_overlap; step; 1; exact; subset; first; overlap of the top-K subspace with that of the point measured before
invariant_sharpness; step; loss; bound; invariant; asked; largest eigenvalue of |theta| H |theta|
invariant_trace; step; loss; stderr; invariant; asked; sum theta_j^2 H_jj
layer_share; step rank layer; 1; exact; layer; pairs; share of |e_i|^2 in the parameters of one layer
layer_trace; step layer; loss/theta^2; stderr; layer; asked; trace of the layer's diagonal block
layer_sharpness; step layer; loss/theta^2; bound; layer; asked; largest eigenvalue of the layer's diagonal block
density; step bin; theta^2/loss; bound; density; asked; density of the eigenvalues, smoothed
density_at; step bin; loss/theta^2; exact; density; asked; where the density is given
log_volume; step; 1; stderr; volume; volume; 1/2 sum of log(lambda / damping) over the eigenvalues above the damping
damping; step; loss/theta^2; exact; volume; asked; the damping, a share of lambda_1
directions_above; step; 1; bound; volume; asked; eigenvalues above the damping
products; step; 1; exact; count; ; Hessian products on the full data
sharpening_rate; window; loss/theta^2; stderr; edge; rate; slope of lambda_1 over updates
"""
_VARIABLES = declare(_TABLE, sources=_SOURCES, reasons=_REASONS)
_POWERS = {"loss": 1.0, "loss/theta": 1.0, "loss/theta^2": 1.0, "theta^2/loss": -1.0, "1/lr": 1.0}
_FREE = {"preconditioned_sharpness": 0.0}


@dataclass(frozen=True)
class _Wish:
    """What is asked for; see the options of `curvature`."""

    k: int
    mode: str
    cold: int
    tolerance: float
    budget: int | None
    bottom: bool
    probes: int
    density: int
    steps: int
    damping: float
    halves: bool
    invariant: bool
    layers: bool
    vectors: bool
    seed: int


@quantity(
    "curvature",
    needs=["surface", "snapshots"],
    sources=[Source(SHARP, "spectral norm, top K"), Source(EDGE, "thresholds"), Source("Gur-Ari et al. 2018 (1812.04754)")],
    scales={name: _FREE.get(name, _POWERS.get(v.units, 0.0)) for name, v in _VARIABLES.items()},
)
def curvature(
    trajectory: Trajectory,
    surface: Surface | None,
    *,
    window: int = 60,
    points: int = 1,
    k: int = 10,
    mode: str = "track",
    cold: int = 10,
    tolerance: float = 1e-3,
    budget: int | None = None,
    bottom: bool = False,
    probes: int = 0,
    density: int = 0,
    steps: int = 80,
    damping: float = 1e-3,
    halves: bool = False,
    invariant: bool = False,
    layers: bool = False,
    vectors: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Curvature of L at points of each window: the K sharpest directions, and what else is asked for.

    Eigenpairs: Lanczos from the gradient with a random part, until |H e - l e| <= tolerance max(|l|, 0.01 max |l|).
    Within a window the next point starts from the pairs of the one before (`spectra.track`: one product tests them all,
    then refinement or Lanczos from their sum); each `cold`-th point starts from nothing, so that an outlier that came from
    elsewhere is not missed for long. mode="ritz" takes the best pairs within the span of the last vectors: K products, and a
    residual that says how good they are (not_converged where it misses the tolerance).

    Edge: lr lambda_1 / 2, and lambda_1 over `theory.stability_threshold` of the recorded method: 2 (1 + momentum) / lr for
    SGD. For Adam the matrix is D^(-1/2) H D^(-1/2) and the threshold (2 + 2 beta1) / ((1 - beta1) lr).

    Trace and Frobenius norm share `probes` products off the eigenpairs. Per layer: tr_l(H) = E sum_{j in l} v_j (H v)_j + the
    part of the eigenpairs; the block's largest eigenvalue (layers=True) costs a Lanczos run a layer.

    Reparametrisation: where scaling weights up in one layer and down in the next leaves a ReLU network as it is, lambda_1
    changes and the largest eigenvalue of diag|theta| H diag|theta| does not.

    Args:
        trajectory: the walk.
        surface: L; required.
        window: updates a window, >= 1.
        points: how many points of a window, spread from its first to its last; 1: the first alone.
        k: eigenpairs, >= 1.
        mode: ``"track"``, ``"cold"`` (each point from nothing) or ``"ritz"`` (K products a point after the window's first).
        cold: each so many points of a window start from nothing, >= 1.
        tolerance: relative residual, > 0.
        budget: products for the eigenpairs of one point; None for 500 + 50 k.
        bottom: find the smallest eigenvalue too.
        probes: products for trace and Frobenius norm, 0 or >= 2.
        density: probes of the density (10 do), 0 for none.
        steps: Lanczos steps a probe of the density.
        damping: of `log_volume`, as a share of lambda_1.
        halves: find the K pairs of both halves of the data too, and their overlap.
        invariant: measure `invariant_sharpness` and (with probes) `invariant_trace`.
        layers: measure `layer_sharpness`.
        vectors: keep the eigenvectors, `eigenvector` over step, rank and parameter.
        seed: of the probes.

    Returns:
        Measurement over `step` (measured points), `rank`, `layer`, `bin`, `window`; empty without two consecutive snapshots.

    Raises:
        ArgumentError: no surface, or an option out of range.

    Cost: about 20 products a point for 10 pairs, a product 1.5 to 2.5 gradients; plus what is asked for (`products`).
    """
    if surface is None:
        raise ArgumentError("surface: curvature is measured on a loss surface, got None; make one with sgdscope.LossSurface")
    wish = _Wish(
        k, mode, cold, tolerance, budget, bottom, probes, density, steps, damping, halves, invariant, layers, vectors, seed
    )
    _check(wish, window, points)
    spans = windows(trajectory.snapshot_steps, window)
    layout = trajectory.header.layout
    groups = _layers(layout)
    rows: list[Row] = []
    spanned: list[Row] = []
    for first, last in spans:
        chosen = sorted({*np.linspace(first, last, points).round().astype(int).tolist()})
        found = _window(trajectory, surface, wish, (chosen, last), groups)
        rows += found
        spanned.append(_rate(found))
    coords: dict[str, tuple[str, Any, str]] = {
        "step": ("step", np.array([r["step"] for r in rows], np.int64), "the point before update t"),
        "rank": ("rank", np.arange(1, k + 1), "1 is the sharpest direction"),
        "layer": ("layer", np.array(list(groups), dtype=np.str_), "prefix of the parameters' names"),
        "bin": ("bin", np.arange(BINS if density else 0), "position in the density"),
        **ends(spans),
    }
    shapes = {"rank": k, "layer": len(groups), "bin": BINS if density else 0}
    measured = measurement(_VARIABLES, columns(_VARIABLES, rows, spanned=spanned, sizes=shapes), coords)
    return measured.assign(eigenvector=_vectors(rows, k, layout)) if vectors else measured


def _check(wish: _Wish, window: int, points: int) -> None:
    least = {"window": (window, 1), "points": (points, 1), "k": (wish.k, 1), "cold": (wish.cold, 1), "steps": (wish.steps, 1)}
    least |= {"probes": (wish.probes, 0), "density": (wish.density, 0), "seed": (wish.seed, 0)}
    for name, (value, smallest) in least.items():
        whole(name, value, smallest)
    choice("mode", wish.mode, MODES)
    if wish.probes == 1:
        raise ArgumentError("probes: expected 0, or at least 2 for a standard error, got 1")
    positive("tolerance", wish.tolerance)
    positive("damping", wish.damping)


def _layers(layout: Layout) -> dict[str, list[slice]]:
    groups: dict[str, list[slice]] = {}
    for name, where in zip(layout.names, layout.slices, strict=True):
        groups.setdefault(name.rpartition(".")[0] or name, []).append(where)
    return groups


# --- one window, one point ------------------------------------------------------------------------------------------------


def _window(
    trajectory: Trajectory, surface: Surface, wish: _Wish, at: tuple[list[int], int], groups: Mapping[str, list[slice]]
) -> list[Row]:
    rows: list[Row] = []
    before: spectra.Eigenpairs | None = None
    own = surface.fingerprint().get("batchnorm") not in {"eval", "recalibrate"}
    for number, step in enumerate(at[0]):
        theta, buffers = trajectory.theta(step).double(), trajectory.buffers(step) or None
        with surface.linearized(theta, buffers) as h:
            point = _Point(h, wish, step, groups, theta.to(h.gradient))
            row = {"step": step, "loss": h.value, "gradient_norm": float(h.gradient.double().norm())}
            pairs = point.pairs(None if number % wish.cold == 0 or wish.mode == "cold" else before) if point.finite else None
            if pairs is not None:
                row |= point.row(pairs) | _edge(trajectory, (step, min(step, at[1] - 1)), pairs, point, own)
                row |= _halves(surface, theta, buffers, wish) if wish.halves else {}
                row["basis_overlap"] = np.nan if before is None else spectra.overlap(before.vectors, pairs.vectors)
                before = pairs
            rows.append(row | {"products": h.products})
    return rows


class _Point:
    """The Hessian at one point, and what is asked of it."""

    def __init__(self, h: Linearization, wish: _Wish, step: int, groups: Mapping[str, list[slice]], theta: Tensor) -> None:
        self.h, self.wish, self.groups, self.theta = h, wish, groups, theta
        self.size = len(theta)
        self.random = private(wish.seed, step)
        self.finite = bool(np.isfinite(h.value) and torch.isfinite(h.gradient).all())

    def solve(self, matvec: Callable[[Tensor], Tensor], k: int, start: Tensor, which: str = "top") -> spectra.Eigenpairs:
        begin = start if float(start.norm()) > 0 else None
        place: dict[str, Any] = {"dtype": start.dtype, "device": start.device, "generator": self.random}
        wish = self.wish
        return spectra.eigenpairs(
            matvec, len(start), k, which=which, tolerance=wish.tolerance, start=begin, budget=wish.budget, **place
        )

    def pairs(self, before: spectra.Eigenpairs | None) -> spectra.Eigenpairs | None:
        """The K sharpest directions, from those of the point before where there are any; None where H is not finite."""
        product = finite_product(self.h.hvp)
        try:
            if before is None or before.vectors.shape[1] < min(self.wish.k, self.size):
                return self.solve(product, self.wish.k, self.h.gradient)
            if self.wish.mode == "ritz":
                return spectra.rayleigh_ritz(product, before.vectors)
            options: dict[str, Any] = {"tolerance": self.wish.tolerance, "budget": self.wish.budget, "generator": self.random}
            return spectra.track(product, before, **options)
        except SurfaceError:
            return None

    def row(self, pairs: spectra.Eigenpairs) -> Row:
        """The numbers that need nothing but the point."""
        row = self._of_pairs(pairs)
        if self.wish.bottom:
            row |= self._bottom(row["sharpness"])
        if self.wish.probes:
            row |= self._probed(pairs)
        if self.wish.invariant:
            row |= self._invariant()
        if self.wish.density:
            row |= self._density(pairs)
        if self.wish.layers:
            row["layer_sharpness"] = [self._block(places) for places in self.groups.values()]
        return row

    def _of_pairs(self, pairs: spectra.Eigenpairs) -> Row:
        values, residuals = (np.full(self.wish.k, np.nan) for _ in range(2))
        found = len(pairs.values)
        values[:found], residuals[:found] = pairs.values.numpy(), pairs.residuals.numpy()
        limits = self.wish.tolerance * np.maximum(np.abs(values), 0.01 * np.nanmax(np.abs(values)))
        missing = int(Outcome.not_applicable if self.size < self.wish.k else Outcome.not_converged)
        met = (residuals <= limits) | (self.wish.mode != "ritz" and pairs.outcome == Outcome.ok)
        outcome = np.where(np.isnan(values), missing, np.where(met, int(Outcome.ok), int(Outcome.not_converged)))
        shares = [
            [sum(float(v[w].square().sum()) for w in places) for places in self.groups.values()] for v in pairs.vectors.T.double()
        ]
        share = np.full((self.wish.k, len(self.groups)), np.nan)
        share[:found] = np.array(shares).reshape(found, -1)
        positive = values[found - 1] > 0
        return {
            "eigenvalue": values,
            "eigenvalue_residual": residuals,
            "eigenvalue_outcome": outcome,
            "sharpness": values[0],
            "sharpness_outcome": outcome[0],
            "top_frobenius": float(np.sqrt(np.nansum(values**2))),
            "conditioning": values[0] / values[found - 1] if positive else np.nan,
            "layer_share": share,
            "vectors": pairs.vectors if self.wish.vectors else None,
        }

    def _bottom(self, top: float) -> Row:
        found = self.solve(self.h.hvp, 1, -self.h.gradient, "bottom")
        lowest = float(found.values[0]) if len(found.values) else np.nan
        row: Row = {"lowest_eigenvalue": lowest, "lowest_eigenvalue_outcome": int(found.outcome)}
        row |= {"spectral_norm": max(abs(lowest), abs(top)), "spectral_norm_outcome": int(found.outcome)}
        return row | {"negative_ratio": -lowest / top if top > 0 else np.nan}

    def _probed(self, pairs: spectra.Eigenpairs) -> Row:
        """Trace, Frobenius norm and the layers' traces from the same products."""
        seen: list[list[float]] = []

        def watched(vector: Tensor) -> Tensor:
            image = self.h.hvp(vector)
            forms = (vector * image).double()
            seen.append([sum(float(forms[w].sum()) for w in places) for places in self.groups.values()])
            return image

        place: dict[str, Any] = {"dtype": pairs.vectors.dtype, "device": pairs.vectors.device, "generator": self.random}
        exact = self.size <= len(pairs.values)
        trace, frobenius, rank = spectra.moments(watched, self.size, products=self.wish.probes, known=pairs, **place)
        row: Row = {"trace": trace.value, "trace_stderr": 0.0 if exact else trace.stderr, "trace_outcome": int(trace.outcome)}
        row |= {"frobenius": frobenius.value, "frobenius_stderr": 0.0 if exact else frobenius.stderr}
        shares = pairs.vectors.double().square()
        weighted = (shares * pairs.values.to(shares)).sum(1)
        known = np.array([sum(float(weighted[w].sum()) for w in places) for places in self.groups.values()])
        rest = np.array(seen or [[0.0] * len(self.groups)])
        row["layer_trace"] = known + rest.mean(0)
        row["layer_trace_stderr"] = rest.std(0, ddof=1) / np.sqrt(len(rest)) if len(rest) > 1 else np.zeros(len(self.groups))
        row |= {"effective_rank": rank.value, "effective_rank_stderr": 0.0 if exact else rank.stderr}
        if not trace.value > 0:
            return row
        ratio = float(pairs.values[0]) * self.size / trace.value
        return row | {"outlier_ratio": ratio, "outlier_ratio_stderr": abs(ratio) * row["trace_stderr"] / trace.value}

    def _invariant(self) -> Row:
        size = self.theta.abs()

        def scaled(vector: Tensor) -> Tensor:
            return size * self.h.hvp(size * vector)

        found = self.solve(scaled, 1, size * self.h.gradient)
        value = float(found.values[0]) if len(found.values) else np.nan
        row: Row = {"invariant_sharpness": value, "invariant_sharpness_outcome": int(found.outcome)}
        if self.wish.probes and len(found.values):
            place: dict[str, Any] = {"dtype": size.dtype, "device": size.device, "generator": self.random}
            trace = spectra.trace(scaled, self.size, products=self.wish.probes, known=found, method="hutchinson", **place)
            exact = self.size <= len(found.values)
            row |= {"invariant_trace": trace.value, "invariant_trace_stderr": 0.0 if exact else trace.stderr}
        return row

    def _density(self, pairs: spectra.Eigenpairs) -> Row:
        place: dict[str, Any] = {"dtype": pairs.vectors.dtype, "device": pairs.vectors.device, "generator": self.random}
        found = spectra.density(self.h.hvp, self.size, probes=self.wish.density, steps=self.wish.steps, known=pairs, **place)
        ends = np.concatenate([found.nodes[found.weights > 0], found.atoms])
        low, high = float(ends.min()), float(ends.max())
        grid = np.linspace(low, high, BINS)
        damping = self.wish.damping * float(pairs.values[0])
        row: Row = {"density_at": grid, "density": found.on(grid, WIDTH * (high - low)) if high > low else np.full(BINS, np.nan)}
        if damping > 0:
            volume = found.mean(lambda x: np.log(np.maximum(x / damping, 1.0)) / 2)
            row |= {"log_volume": self.size * volume.value, "log_volume_stderr": self.size * volume.stderr, "damping": damping}
            row["directions_above"] = self.size * found.share(damping, np.inf).value
        return row

    def _block(self, places: Sequence[slice]) -> float:
        """The largest eigenvalue of a layer's diagonal block."""
        index = torch.cat([torch.arange(w.start, w.stop, device=self.theta.device) for w in places])

        def matvec(vector: Tensor) -> Tensor:
            whole = torch.zeros_like(self.h.gradient)
            whole[index] = vector
            return self.h.hvp(whole)[index]

        found = self.solve(matvec, 1, self.h.gradient[index])
        return float(found.values[0]) if found.outcome == Outcome.ok else np.nan


# --- the edge, halves, batches -----------------------------------------------------------------------------------------------


def _edge(trajectory: Trajectory, at: tuple[int, int], pairs: spectra.Eigenpairs, point: _Point, own: bool) -> Row:
    """How near the edge of stability of the recorded method; `at` is the point, and the update whose learning rate counts."""
    step, update = at
    lr = float(scalars(trajectory.steps, "lr", update, update + 1)[0])
    told = _method(trajectory.settings, update)
    if not lr > 0 or not len(pairs.values):
        return {}
    row: Row = {"half_eta_sharpness": lr * float(pairs.values[0]) / 2}
    betas = told.get("betas") or (told.get("beta1", 0.9), 0.999)
    momentum, nesterov = float(told.get("momentum") or 0.0), bool(told.get("nesterov"))
    try:
        limit, matrix = theory.stability_threshold(
            told["walker"], lr, momentum=momentum, nesterov=nesterov, beta1=float(betas[0])
        )
        if matrix == "hessian":
            return row | {"edge": float(pairs.values[0]) / limit, "edge_directions": float((pairs.values > limit).sum())}
        if not own:  # a bias before BatchNorm has v = 0; on fixed statistics the loss depends on it all the same
            return row
        root = trajectory.preconditioner(step).to(point.theta).rsqrt()
    except (ArgumentError, NotAvailableError):
        return row
    found = point.solve(lambda v: root * point.h.hvp(root * v), 1, root * point.h.gradient)
    value = float(found.values[0]) if len(found.values) else np.nan
    return row | {"preconditioned_sharpness": value, "edge": value / limit}


def _method(settings: Mapping[str, Any], update: int) -> Mapping[str, Any]:
    """Name ("walker") and options of the method that makes an update: of its phase, where an experiment has several."""
    phases = (settings.get("experiment") or {}).get("phases") or []
    if len(phases) < 2:
        told = (settings.get("optimizers") or [{}])[0]
        momentum = told.get("momentum") or settings.get("momentum")
        return {**told, "walker": str(settings.get("walker") or told.get("class", "sgd")), "momentum": momentum}
    ends = settings.get("phase_ends") or []
    if len(ends) != len(phases):
        return {"walker": "unknown"}
    return {"walker": "sgd", **phases[min(int(np.searchsorted(ends, update, side="right")), len(phases) - 1)]}


def _halves(surface: Surface, theta: Tensor, buffers: Mapping[str, Tensor] | None, wish: _Wish) -> Row:
    """The overlap of the top-K subspaces of the examples of even and of odd number."""
    examples = surface.fingerprint().get("examples")
    if not examples or examples < 4:
        return {}
    bases = []
    try:
        for begin in (0, 1):
            with surface.subset(list(range(begin, int(examples), 2))).linearized(theta, buffers) as h:
                point = _Point(h, wish, begin, {}, theta.to(h.gradient))
                if (pairs := point.pairs(None)) is None:
                    return {}
                bases.append(pairs.vectors)
    except DataError:
        return {}
    return {"half_overlap": spectra.overlap(*bases)}


def _rate(rows: Sequence[Row]) -> Row:
    """Slope of lambda_1 over updates."""
    known = [(r["step"], r["sharpness"]) for r in rows if np.isfinite(r.get("sharpness", np.nan))]
    if len(known) < 3:
        return {}
    steps, values = np.array(known, np.float64).T
    rate, error = slope(steps, values)[:2]
    return {"sharpening_rate": rate, "sharpening_rate_stderr": error}


# --- columns ------------------------------------------------------------------------------------------------------------------


def _vectors(rows: Sequence[Row], k: int, layout: Layout) -> xr.Variable:
    whole = np.full((len(rows), k, layout.size), np.nan, np.float32)
    for row, out in zip(rows, whole, strict=True):
        if row.get("vectors") is not None:
            out[: row["vectors"].shape[1]] = row["vectors"].T.cpu().numpy()
    attrs = {"units": "1", "long_name": "e_i, unit vectors", "source": _SOURCES["lanczos"], "error": "bound"}
    return xr.Variable(("step", "rank", "parameter"), whole, attrs)
