"""The units along the walk: how far they are saturated, and whether they saturate along the sharpest directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.contracts import Source, columns, declare, ends, measurement, quantity, scalars
from sgdscope.directions import finite_product, private
from sgdscope.errors import ArgumentError, DataError, Outcome, SurfaceError
from sgdscope.ranges import positive, whole
from sgdscope.records import Linearization, Surface, Trajectory, windows
from sgdscope.spectra import Eigenpairs, eigenpairs
from sgdscope.surface.units import THRESHOLDS

Array = NDArray[np.float64]
Row = dict[str, Any]

POSITIONS = (-4.0, -2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0, 4.0)  # Jastrzebski et al. 2018, released code; the near half of them
ARMS = ("sharp", "random", "gradient", "bottom")
CHANGES = ("saturation_change", "slope_square_change", "softmax_change", "loss_change")

SMOOTHS = "Jastrzebski et al. 2018, SGD Smooths the Sharpest Directions (OpenReview BJ04JEJvG)"
_SOURCES = {
    "surface": "value and gradient of the surface",
    "units": f"{SMOOTHS}, abstract: neurons saturate their non-linearity; here 1 - |phi'(z)| / max |phi'|",
    "dead": "Jastrzebski et al. 2019 (1807.05031), released code: mean over the examples of |h| <= threshold",
    "softmax": "Hessian of cross-entropy in the logits: diag(p) - pp'",
    "lanczos": "Lanczos, residual |A e - l e|",
    "split": "H = G + R, G = J' H_z J (Gauss-Newton), R = sum_j (dL/dz_j) d2z_j; Lanczos",
    "steps": "Jastrzebski et al. 2019 (1807.05031), released code: s_i = mean over mini-batches of lr |<g_b, e_i>|",
    "along": f"{SMOOTHS}, abstract: saturation along the largest curvature directions; here differences along theta + j s_i e_i",
    "count": "counted",
}
_REASONS = {
    "units": "the surface has no network, the network no activation of this kind that is known, or the point is not finite",
    "softmax": "the loss takes no softmax of outputs [rows, classes], or the point is not finite",
    "pairs": "P < rank, the products ended (not_converged), or the point is not finite",
    "split": "not asked for (split), no outputs to split at (a landscape, a module called twice), or the products ended",
    "steps": "lr or batch size are not recorded, the data cannot be taken apart into examples, or there is no e_i",
    "along": "no s_i or no e_i (see reach and eigenvalue), nothing of this kind at theta, not asked for (bottom), or not finite",
}
# name; dims; units; error; source; reason; long name
_TABLE = """
loss; step; loss; exact; surface; ; L(theta_t)
gradient_norm; step; loss/theta; exact; surface; ; |grad L(theta_t)|
saturation; step; 1; exact; units; units; mean of 1 - |phi'(z)| / max |phi'| over all units and examples
inactive; step; 1; exact; units; units; share of (unit, example) with phi'(z) = 0, of units with a flat piece (z <= 0 of a ReLU)
smooth_saturation; step; 1; exact; units; units; mean of 1 - |phi'(z)| / max |phi'| over the units without a flat piece
slope_square; step; 1; exact; units; units; mean of phi'(z)^2 over all units and examples
dead; step threshold; 1; exact; dead; units; share of units with mean over the examples of |phi(z)| <= threshold
saturation_layer; step layer; 1; exact; units; units; saturation of one layer of units
slope_square_layer; step layer; 1; exact; units; units; mean of phi'(z)^2 of one layer of units
softmax_saturation; step; 1; exact; softmax; softmax; 1 - E[sum p (1 - p)] / (1 - 1/classes): 0 undecided, 1 certain outputs
softmax_curvature; step; 1; exact; softmax; softmax; E[sum p (1 - p)], mean trace of diag(p) - pp'
eigenvalue; step rank; loss/theta^2; bound; lanczos; pairs; lambda_i of the Hessian, algebraically largest first
eigenvalue_residual; step rank; loss/theta^2; bound; lanczos; pairs; |H e_i - lambda_i e_i|
gauss_newton_top; step; loss/theta^2; bound; split; split; largest eigenvalue of G
gauss_newton_top_residual; step; loss/theta^2; bound; split; split; residual of gauss_newton_top
rest_top; step; loss/theta^2; bound; split; split; algebraically largest eigenvalue of R = H - G
rest_top_residual; step; loss/theta^2; bound; split; split; residual of rest_top
rest_bottom; step; loss/theta^2; bound; split; split; most negative eigenvalue of R = H - G
rest_bottom_residual; step; loss/theta^2; bound; split; split; residual of rest_bottom
slope; step rank; loss/theta; bound; lanczos; pairs; <grad L, e_i>, >= 0 by the choice of the sign of e_i
reach; step rank; theta; stderr; steps; steps; s_i = mean over mini-batches of lr |<g_b, e_i>|
mean_step; step rank; theta; stderr; steps; steps; mean over mini-batches of lr <g_b, e_i>; the walk moves by minus it
downhill; step rank; 1; stderr; steps; steps; share of mini-batches whose step goes to the side -e_i
saturation_change; step arm rank position; 1; stderr; along; along; saturation at theta + j s_i d minus at theta
slope_square_change; step arm rank position; 1; stderr; along; along; slope_square at theta + j s_i d minus at theta
softmax_change; step arm rank position; 1; stderr; along; along; softmax_saturation at theta + j s_i d minus at theta
loss_change; step arm rank position; loss; stderr; along; along; L at theta + j s_i d minus at theta
products; step; 1; exact; count; ; Hessian and Gauss-Newton products
passes; step; 1; exact; count; ; passes over the data to look at units and loss
"""
_VARIABLES = declare(_TABLE, sources=_SOURCES, reasons=_REASONS)
_SCALES = {name: 1.0 if v.units.startswith("loss") else 0.0 for name, v in _VARIABLES.items()}


@dataclass(frozen=True)
class _Wish:
    """What is asked for; see the options of `neurons`."""

    k: int
    positions: tuple[float, ...]
    randoms: int
    batches: int
    batch_size: int | None
    lr: float | None
    tolerance: float
    split: bool
    bottom: bool
    examples: int | None
    seed: int

    def check(self, window: int, points: int) -> None:
        """Refuse what cannot be meant."""
        least = {"window": (window, 1), "points": (points, 1), "k": (self.k, 1), "randoms": (self.randoms, 2)}
        least |= {"batches": (self.batches, 2), "seed": (self.seed, 0)}
        least |= {} if self.batch_size is None else {"batch_size": (self.batch_size, 1)}
        least |= {} if self.examples is None else {"examples": (self.examples, 2)}
        for name, (value, smallest) in least.items():
            whole(name, value, smallest)
        positive("tolerance", self.tolerance)
        positive("lr", 1.0 if self.lr is None else self.lr)
        if not self.positions or not np.isfinite(self.positions).all() or len(set(self.positions)) < len(self.positions):
            raise ArgumentError(f"positions: expected distinct finite numbers, at least one, got {self.positions!r}")


@quantity(
    "neurons",
    needs=["surface", "snapshots"],
    sources=[Source(SMOOTHS, "abstract"), Source("Jastrzebski et al. 2019 (1807.05031)", "released code: dead units, s_i")],
    scales=_SCALES,
)
def neurons(
    trajectory: Trajectory,
    surface: Surface | None,
    *,
    window: int = 60,
    k: int = 5,
    points: int = 1,
    positions: Sequence[float] = POSITIONS,
    randoms: int = 5,
    batches: int = 10,
    batch_size: int | None = None,
    tolerance: float = 1e-2,
    seed: int = 0,
    split: bool = True,
    lr: float | None = None,
    bottom: bool = False,
    examples: int | None = None,
) -> xr.Dataset:
    """How far the units are saturated at points of the walk, and how that changes along the sharpest directions.

    Saturation of a unit on an example is 1 - |phi'(z)| / max |phi'|: whether it is inactive for a ReLU, 1 - phi' for tanh,
    1 - 4 phi' for a sigmoid. |phi'|, since GELU and SiLU fall a little left of 0. The softmax is kept apart.

    Along directions: x(theta + j s_i d) - x(theta) for x saturation, slope_square, softmax_saturation and L, j in `positions`.
    s_i = mean over `batches` mini-batches (training mode, drawn without replacement) of lr |<g_b, e_i>|, the step of plain SGD
    along e_i. Arms: sharp, d = e_i; random, mean and standard error over `randoms` unit directions; gradient, d = grad L /
    |grad L|; bottom (if asked for), d = the i-th eigenvector from the smallest eigenvalue up; all of the same length s_i. Each
    sign is such that <grad L, d> >= 0: **the side that SGD reaches is j < 0**, by one step at j = -1. stderr is 0 for single
    directions. The model's buffers stay those of theta_t.

    Split: H = G + R, G = J' H_z J through the outputs z of the network; eigenvalues of each by Lanczos.

    Args:
        trajectory: the walk.
        surface: L; required. Without a method `saturation` (a landscape) everything of units is not_applicable.
        window: updates a window, >= 1.
        k: sharpest directions K, >= 1.
        points: how many points of a window, spread from its first to its last update; 1: the first alone.
        positions: j, distinct.
        randoms: random directions, >= 2.
        batches: mini-batches behind s_i, >= 2.
        batch_size: of them; None for that recorded at update t.
        tolerance: relative residual of the eigenpairs, > 0.
        seed: of mini-batches and random directions, with t.
        split: measure the eigenvalues of G and R.
        lr: learning rate; None for that recorded at update t.
        bottom: measure along the K directions of smallest eigenvalues too.
        examples: look along directions on so many examples, drawn at random at each point (1280 in the released code of
            1807.05031); None for all. All other numbers are of all examples.

    Returns:
        Measurement over `step` (measured points), `rank`, `arm`, `position`, `layer` (of units), `threshold`, `window`; empty
        without two consecutive snapshots.

    Raises:
        ArgumentError: no surface, or an option out of range.
        DataError: `examples` where the data cannot be taken apart.

    Cost: a point: 15 to 30 Hessian products, 50 to 90 with the split; `batches` gradients of mini-batches; K x (positions
        - 1) x (randoms + 2) passes, 280 as it stands, over the data or `examples` of them, each 2 to 4 evaluations of L.
    """
    if surface is None:
        raise ArgumentError("surface: units are looked at on a loss surface, got None; make one with sgdscope.LossSurface")
    grid = tuple(float(j) for j in positions)
    wish = _Wish(k, grid, randoms, batches, batch_size, lr, tolerance, split, bottom, examples, seed)
    wish.check(window, points)
    look = getattr(surface, "saturation", None)
    layers: tuple[str, ...] = () if look is None else look(surface.theta(), thresholds=()).layers
    spans = windows(trajectory.snapshot_steps, window)
    rows = []
    for first, last in spans:
        for step in sorted({*np.linspace(first, last - 1, points).round().astype(int).tolist()}):
            point = _Point(trajectory.theta(step).double().cpu(), trajectory.buffers(step) or None, surface, wish, step)
            rows.append(point.measured(_settings(trajectory, wish, step), layers))
    coords: dict[str, tuple[str, Any, str]] = {
        "step": ("step", np.array([r["step"] for r in rows], np.int64), "the point before update t"),
        "rank": ("rank", np.arange(1, k + 1), "1 is the sharpest direction"),
        "arm": ("arm", np.array(ARMS), "direction d"),
        "position": ("position", np.array(grid), "j, in steps s_i of SGD; it reaches j < 0"),
        "layer": ("layer", np.array(layers, dtype=np.str_), "call of an activation"),
        "threshold": ("threshold", np.array(THRESHOLDS), "of dead units"),
        **ends(spans),
    }
    sizes = {"rank": k, "arm": len(ARMS), "position": len(grid), "layer": len(layers), "threshold": len(THRESHOLDS)}
    return measurement(_VARIABLES, columns(_VARIABLES, rows, sizes=sizes), coords)


def _settings(trajectory: Trajectory, wish: _Wish, step: int) -> tuple[float, float]:
    """Learning rate and batch size of an update; NaN where they are neither given nor recorded."""
    given = {"lr": wish.lr, "batch_size": wish.batch_size}
    table = trajectory.steps
    lr, size = (float(scalars(table, name, step, step + 1)[0] if option is None else option) for name, option in given.items())
    return lr, size


def _upward(directions: Tensor, gradient: Tensor) -> Tensor:
    """Unit columns with the sign of a rising loss."""
    units = directions.double().cpu()
    return units * torch.where(gradient @ units < 0, -1.0, 1.0).double()


@dataclass
class _Point:
    """One measured point."""

    theta: Tensor
    buffers: Any
    surface: Surface
    wish: _Wish
    step: int
    passes: int = 0
    row: Row = field(default_factory=dict)

    def measured(self, settings: tuple[float, float], layers: tuple[str, ...]) -> Row:
        """All numbers of this point; what is missing is NaN in the end."""
        self.row = {"step": self.step, "products": 0.0}
        self._baseline(layers)
        with np.errstate(invalid="ignore", over="ignore"):
            if np.isfinite(self.row["loss"]):
                with self.surface.linearized(self.theta, self.buffers) as h:
                    self._curved(h, settings)
                    self.row["products"] = float(h.products)
        return self.row | {"passes": float(self.passes)}

    def _baseline(self, layers: tuple[str, ...]) -> None:
        """Loss and units at the point itself."""
        value, gradient = self.surface.value_and_grad(self.theta, self.buffers)
        self.row |= {"loss": value, "gradient_norm": float(gradient.double().norm())}
        look = getattr(self.surface, "saturation", None)
        if look is None or not np.isfinite(value):
            return
        seen = look(self.theta, self.buffers, thresholds=THRESHOLDS)
        self.passes += 1
        places = {name: i for i, name in enumerate(seen.layers)}
        for name in ("saturation_layer", "slope_square_layer"):
            own = getattr(seen, name)
            self.row[name] = np.array([own[places[layer]] if layer in places else np.nan for layer in layers])
        self.row |= {"saturation": seen.saturation, "inactive": seen.inactive, "smooth_saturation": seen.smooth}
        self.row |= {"slope_square": seen.slope_square, "dead": seen.dead}
        self.row |= {"softmax_saturation": seen.softmax, "softmax_curvature": seen.softmax_curvature}

    # --- curvature ------------------------------------------------------------------------------------------------------

    def _curved(self, h: Linearization, settings: tuple[float, float]) -> None:
        """Eigenpairs, the split, and what happens along the eigenvectors."""
        gradient = h.gradient.double().cpu()
        pairs = self._pairs(h, h.hvp, self.wish.k, "top")
        if self.wish.split:
            self._split(h)
        if pairs is None or not torch.isfinite(gradient).all():
            return
        vectors, n = _upward(pairs.vectors, gradient), len(pairs.values)
        self._keep("eigenvalue", pairs.values.numpy(), pairs.outcome)
        self._keep("eigenvalue_residual", pairs.residuals.numpy(), pairs.outcome)
        self._keep("slope", (gradient @ vectors).numpy(), pairs.outcome)
        if not self._steps(vectors, settings, pairs.outcome):
            return
        lowest = self._pairs(h, h.hvp, self.wish.k, "bottom") if self.wish.bottom else None
        fresh = torch.randn(len(self.theta), self.wish.randoms, generator=private(self.wish.seed, self.step, 1)).double()
        arms = {"sharp": vectors.T[:, None], "random": _upward(fresh / fresh.norm(dim=0), gradient).T.expand(n, -1, -1)}
        if gradient.norm() > 0:
            arms["gradient"] = (gradient / gradient.norm()).expand(n, 1, -1)
        if lowest is not None:
            arms["bottom"] = _upward(lowest.vectors.flip(1), gradient).T[:, None]
        self._along(arms, max(pairs.outcome, Outcome.ok if lowest is None else lowest.outcome))

    def _keep(self, name: str, values: Array, outcome: Outcome) -> None:
        """Values of the ranks that exist, and their outcome."""
        padded = np.full(self.wish.k, np.nan)
        padded[: len(values)] = values
        self.row |= {name: padded, f"{name}_outcome": np.where(np.isfinite(padded), outcome, Outcome.not_applicable)}

    def _pairs(self, h: Linearization, product: Callable[[Tensor], Tensor], k: int, which: str) -> Eigenpairs | None:
        """Eigenpairs; None where they do not exist."""
        start = h.gradient if float(h.gradient.norm()) > 0 and bool(torch.isfinite(h.gradient).all()) else None
        generator = private(self.wish.seed, self.step, 2)
        try:
            return eigenpairs(
                finite_product(product),
                len(self.theta),
                k,
                which=which,
                tolerance=self.wish.tolerance,
                start=start,
                generator=generator,
                dtype=h.gradient.dtype,
                device=h.gradient.device,
            )
        except SurfaceError:
            return None

    def _split(self, h: Linearization) -> None:
        """Extreme eigenvalues of G and of R."""
        outer = self._pairs(h, h.gauss_newton, 1, "top")
        if outer is None:
            return
        rest = self._pairs(h, lambda v: h.hvp(v) - h.gauss_newton(v), 1, "both")
        for name, pairs, place in (("gauss_newton_top", outer, 0), ("rest_top", rest, 0), ("rest_bottom", rest, -1)):
            if pairs is not None:
                self.row |= {name: float(pairs.values[place]), f"{name}_outcome": pairs.outcome}
                self.row |= {f"{name}_residual": float(pairs.residuals[place]), f"{name}_residual_outcome": pairs.outcome}

    # --- along directions -----------------------------------------------------------------------------------------------

    def _steps(self, vectors: Tensor, settings: tuple[float, float], outcome: Outcome) -> bool:
        """The steps of SGD along the eigenvectors, over mini-batches; whether there are any."""
        lr, size = settings
        examples = self.surface.fingerprint().get("examples")
        if not (lr > 0 and size >= 1 and examples):
            return False
        generator, moves = private(self.wish.seed, self.step, 0), []
        for _ in range(self.wish.batches):
            try:
                batch = self.surface.rows(torch.randperm(examples, generator=generator)[: int(size)])
            except DataError:
                return False
            gradient = self.surface.on_batch(batch).value_and_grad(self.theta, self.buffers)[1]
            moves.append(lr * (gradient.double().cpu() @ vectors).numpy())
        for name, own in (("reach", np.abs(moves)), ("mean_step", np.array(moves)), ("downhill", np.array(moves) > 0)):
            self._keep(name, own.mean(0), outcome)
            self._keep(f"{name}_stderr", own.std(0, ddof=1) / np.sqrt(len(moves)), outcome)
        return bool(np.isfinite(moves).all())

    def _few(self) -> Surface:
        """The surface on the examples on which directions are looked along."""
        count, every = self.wish.examples, self.surface.fingerprint().get("examples") or 0
        if count is None or 0 < every <= count:
            return self.surface
        return self.surface.subset(torch.randperm(every, generator=private(self.wish.seed, self.step, 3))[:count])

    def _look(self, surface: Surface, theta: Tensor) -> Array:
        """Saturation, squared slope, softmax saturation and loss at a point."""
        look = getattr(surface, "saturation", None)
        self.passes += 1
        if look is None:
            return np.array([np.nan, np.nan, np.nan, surface.value(theta, self.buffers)])
        seen = look(theta, self.buffers, thresholds=())
        return np.array([seen.saturation, seen.slope_square, seen.softmax, seen.value])

    def _along(self, arms: Mapping[str, Tensor], outcome: Outcome) -> None:
        """Changes along the directions [ranks, directions, P] of each arm; mean and standard error over the directions."""
        surface, positions = self._few(), self.wish.positions
        base = self._look(surface, self.theta)
        shape = (len(CHANGES), len(ARMS), self.wish.k, len(positions))
        means, errors = np.full(shape, np.nan), np.full(shape, np.nan)
        for arm, lines in arms.items():
            for rank, directions in enumerate(lines):
                steps = directions * self.row["reach"][rank]
                there = [[self._look(surface, self.theta + j * step) if j else base for j in positions] for step in steps]
                seen = np.array(there) - base
                place = (slice(None), ARMS.index(arm), rank)
                means[place] = seen.mean(0).T
                errors[place] = seen.std(0, ddof=1).T / np.sqrt(len(seen)) if len(seen) > 1 else 0 * means[place]
        for name, mean, error in zip(CHANGES, means, errors, strict=True):
            known = np.where(np.isfinite(mean), outcome, Outcome.not_applicable)
            self.row |= {name: mean, f"{name}_stderr": error, f"{name}_outcome": known}
