"""The step of SGD against the sharpest directions: alignment, effect of a step along each, cross-sections, widths."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from sgdscope import spectra
from sgdscope.contracts import Source, columns, declare, ends, measurement, quantity, scalars
from sgdscope.curves import ROUNDING, vertex, widths
from sgdscope.directions import (
    Basis,
    Buffers,
    Probe,
    chance_cosine,
    finite_product,
    minibatches,
    noise_share,
    over_batches,
    private,
)
from sgdscope.errors import ArgumentError, DataError, Outcome, SurfaceError
from sgdscope.ranges import number, positive, whole
from sgdscope.records import Linearization, Surface, Trajectory, windows

Array = NDArray[np.float64]
Row = dict[str, Any]
ALPHAS = (0.25, 0.33, 0.5, 1.0, 2.0, 3.0, 4.0)  # those of the released code
POSITIONS = (-16.0, -8.0, -4.0, -2.0, -1.0, -0.5, -0.25, 0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)
OTHERS = ("random", "dominant", "bulk", "full")  # arms after e_1..e_K
SIDES, PARTS = ("left", "right", "min"), ("dominant", "bulk")
FITTED = 2.0  # alphas up to here make the parabola
PLOTTED = 5  # directions in the mean alignment
COUNTS = ("products", "evaluations", "passes", "batch_passes")

SHARP = "Jastrzebski et al. 2019 (1807.05031)"
_SOURCES = {
    "surface": "value and gradient of the surface",
    "lanczos": f"{SHARP}; Lanczos on the full surface, residual |H e - l e|",
    "align": f"{SHARP}, alignment; mini-batches drawn at theta_t",
    "share": "Gur-Ari et al. 2018 (1812.04754); Song et al. 2024 (2405.16002)",
    "chance": "a direction uniform on the sphere of P dimensions",
    "effect": f"{SHARP}, loss after a step along e_i; released code",
    "fit": "least-squares parabola; jackknife over the batches",
    "section": f"{SHARP}, cross-sections; released code",
    "taylor": "g.d + d'H d / 2",
    "critical": "Kalra et al. 2026 (2601.16979), critical sharpness; line search along the gradient",
    "count": "counted",
}
_REASONS = {
    "point": "the point or the gradient is not finite",
    "pairs": "P < rank, the products ended (not_converged), or the point or its Hessian is not finite",
    "batches": "no mini-batches (no batch size known, or data that cannot be taken apart, and no recorded batch), or rank > P",
    "noise": "fewer than two different mini-batches, or rank > P",
    "vector": "the point is not finite, the vector has no length, or rank > P",
    "effect": "not asked for, lr not known, no mini-batches, rank > P, or L is not a finite number > 0",
    "floor": "as the effect; or the parabola bends up by no more than rounding",
    "section": "not asked for, lr not known, no mini-batches, rank > P, or a loss is not finite",
    "bend": "as the section; or within rounding",
    "width": "as the section; L is not > 0, or the height is not reached within the positions",
    "before": "the first measured point of a window has none before it",
    "critical": "not asked for, the gradient is zero or not finite, or the loss does not rise",
}
# name; dims; units; error; source; reason; long name
_TABLE = """
loss; step; loss; exact; surface; point; L(theta_t)
gradient_norm; step; loss/theta; exact; surface; point; |g|, g = grad L(theta_t)
eigenvalue; step rank; loss/theta^2; bound; lanczos; pairs; lambda_i of the Hessian, algebraically largest first
eigenvalue_residual; step rank; loss/theta^2; bound; lanczos; ; |H e_i - lambda_i e_i|
eigenvalue_change; step rank; 1; bound; lanczos; before; lambda_i / lambda_i at the measured point before - 1
staleness; step; 1; bound; share; before; 1 - |E'E_before|_F^2 / K against the measured point before
coefficient; step rank batch; loss/theta; exact; align; batches; <g_b, e_i>
batch_norm; step batch; loss/theta; exact; align; batches; |g_b|
cosine; step rank; 1; stderr; align; batches; E_b cos(g_b, e_i)
cosine_spread; step rank; 1; exact; align; batches; standard deviation of cos(g_b, e_i) over the batches
alignment; step rank; 1; stderr; align; batches; E_b |cos(g_b, e_i)|
mean_alignment; step; 1; stderr; align; batches; mean of the alignment over the (at most 5) sharpest directions
alignment_chance; ; 1; exact; chance; ; E |cos| of a random direction with any other, sqrt(2 / (pi P)) for large P
gradient_cosine; step rank; 1; exact; align; vector; cos(g, e_i), >= 0 by the sign of e_i
batch_cosine; step; 1; stderr; align; batches; E_b cos(g_b, g)
batch_share; step rank; 1; stderr; share; batches; E_b |E_i'g_b|^2 / |g_b|^2, E_i the first i directions
noise_share; step rank; 1; stderr; share; noise; E_b |E_i'(g_b - g)|^2 / E_b |g_b - g|^2, g the mean of the g_b
gradient_share; step rank; 1; exact; share; vector; |E_i'g|^2 / |g|^2
update_share; step rank; 1; exact; share; vector; |E_i'd_t|^2 / |d_t|^2, d_t = theta_{t+1} - theta_t
displacement_share; window rank; 1; exact; share; vector; the same of last - first point, E at the first
share_chance; rank; 1; exact; chance; ; i / P
gradient_part; step part; loss/theta; exact; share; vector; |E E'g| and |g - E E'g|
batch_part; step part; loss/theta; stderr; share; batches; E_b of the same for g_b
update_part; step part; theta; exact; share; vector; the same for d_t
displacement_part; window part; theta; exact; share; vector; the same for last - first point of the window
update_predicted; step part; loss; exact; taylor; vector; loss change predicted for each part of d_t
update_change; step; loss; exact; surface; point; L(theta_{t+1}) - L(theta_t)
lr; step; lr; exact; count; effect; learning rate taken for the steps
subset_loss; step; loss; exact; surface; point; L(theta_t) on the fixed subset, the loss of effects and sections
effect; step arm alpha; 1; stderr; effect; effect; E_b L(theta - alpha lr v) / L(theta) - 1, v = <g_b, e_i> e_i, ...
effect_batch; step arm alpha batch; 1; bound; effect; effect; the same of each batch
effect_error; step arm; 1; bound; effect; effect; estimated error of the interpolation, 0 where each step was evaluated
alpha_star; step arm; 1; stderr; fit; floor; lowest point of the parabola through the effects at alpha <= 2 and 0
crosses; step arm; 1; exact; fit; floor; the step crosses the minimum, alpha* < 1
step_length; step rank; theta; stderr; section; section; s_i = E_b lr |<g_b, e_i>|
section; step cross position; loss; exact; section; section; L(theta + k s_i e_i)
section_bend; step cross; loss; exact; section; bend; quadratic coefficient, (L(+1) - 2 L(0) + L(-1)) / 2
width; step cross level side; 1; bound; section; width; smallest |k| with L >= level x L(theta), in steps s_i
width_distance; step cross level side; theta; bound; section; width; the same in parameter distance
critical_lr; step; lr; bound; critical; critical; lr at which L(theta - lr g) comes to exceed L(theta), to 1 %
critical_sharpness; step; loss/theta^2; bound; critical; critical; 2 / critical_lr, g'H g / |g|^2 where L is quadratic
critical_batch_sharpness; step; loss/theta^2; stderr; critical; critical; E_b of the same on the loss of the batch, along g_b
products; step; 1; exact; count; ; Hessian products on the full data
evaluations; step; 1; exact; count; ; losses on the fixed subset
passes; step; 1; exact; count; ; losses and gradients on the full data, products aside
batch_passes; step; 1; exact; count; ; losses and gradients of mini-batches
"""
_FLAGS = {"crosses": "no yes"}
_VARIABLES = declare(_TABLE, sources=_SOURCES, reasons=_REASONS, flags=_FLAGS)
_POWERS = {"loss": 1.0, "loss/theta": 1.0, "loss/theta^2": 1.0, "lr": -1.0}


@dataclass(frozen=True)
class _Wish:
    """What is asked for; see the options of `sharpest`."""

    k: int
    batches: int
    batch_size: int | None
    examples: int
    alphas: tuple[float, ...]
    positions: tuple[float, ...]
    cross: tuple[int, ...]
    levels: tuple[float, ...]
    tolerance: float
    interpolation: float
    budget: int | None
    seed: int
    lr: float | None
    effects: bool
    sections: bool
    critical: bool


@quantity(
    "sharpest",
    needs=["surface", "snapshots"],
    sources=[Source(SHARP, "SGD step length along the sharpest directions"), Source("Gur-Ari et al. 2018 (1812.04754)")],
    scales={name: _POWERS.get(v.units, 0.0) for name, v in _VARIABLES.items()},
)
def sharpest(
    trajectory: Trajectory,
    surface: Surface | None,
    *,
    window: int = 60,
    points: int = 1,
    k: int = 5,
    batches: int = 10,
    batch_size: int | None = None,
    examples: int = 2560,
    alphas: Sequence[float] = ALPHAS,
    positions: Sequence[float] = POSITIONS,
    cross: Sequence[int] = (1, 3, 5),
    levels: Sequence[float] = (1.01, 1.1, 1.5, 2.0),
    tolerance: float = 1e-3,
    interpolation: float = 1e-3,
    budget: int | None = None,
    seed: int = 0,
    lr: float | None = None,
    effects: bool = True,
    sections: bool = True,
    critical: bool = True,
) -> xr.Dataset:
    """The step of SGD against the K sharpest directions e_i of the Hessian, at points of each window.

    Eigenpairs: the algebraically largest of the Hessian of the full surface, by Lanczos from the gradient, until
    |H e - l e| <= tolerance max(|l|, 0.01 max |l|); the sign of e_i is that of <g, e_i> > 0, g the gradient of the full surface.

    Mini-batches: M drawn from the data at theta_t, each without replacement, of the recorded batch size; g_b their gradients
    in training mode. Where the data came in batches, up to M recorded batches of the window instead, from update t on, then those
    before it. A batch of all examples is the only one. Standard errors: s / sqrt(M) over the batches.

    Alignment: cos(g_b, e_i), and |E_i'g_b|^2 / |g_b|^2 over the first i directions; the mean of cosines says less than the share.

    Effect of a step: L(theta - alpha lr v) / L(theta) - 1 on a fixed subset of the data in the surface's BatchNorm mode, its mean
    over the batches, v = <g_b, e_i> e_i; <g_b, r> r with r uniform on the sphere, fresh for each batch; the part of g_b
    within the K directions (dominant) and outside of them (bulk); g_b (full). Momentum and other groups' learning rates are
    not in it. Along e_i the loss depends on alpha lr <g_b, e_i> alone: a polynomial through 9 Chebyshev points of the
    steps' range serves all batches if its estimated error (`curves.fit`, with the losses of at least 30 examples) is at
    most interpolation x the range of the loss; else each step is evaluated. alpha* = -b / (2 a) of the least-squares parabola
    c + b alpha + a alpha^2 of the mean effect at 0 and all alpha <= 2; stderr by the jackknife over the batches.

    Cross-sections: L(theta + k s_i e_i), s_i = E_b lr |<g_b, e_i>|, on the same subset. Width at a level: the first crossing of
    level x L(theta) outward from 0, by the parabola through three positions (`curves.widths`); left, right, and the smaller one.

    Parts of the update: d = E E'd + rest; predicted change of the loss g.p + p'H p / 2 of each part p.
    `critical_sharpness` is g'H g / |g|^2 where L is quadratic, not lambda_1; it costs no products.

    Args:
        trajectory: the walk.
        surface: L; required.
        window: updates a window, >= 1.
        points: how many updates t of a window, spread from its first to its last; 1: the first alone.
        k: directions, >= 1.
        batches: M >= 1.
        batch_size: of the mini-batches; None for that of update t.
        examples: of the subset, spread evenly over the data, >= 2; all where there are no more, or they came in batches.
        alphas: [A] ascending, > 0, at least two of them <= 2.
        positions: k, distinct, with -1, 0 and 1.
        cross: ranks with a cross-section, each >= 1; those above k are left out.
        levels: each > 1.
        tolerance: of the eigenpairs, > 0.
        interpolation: error allowed along e_i, >= 0; 0 evaluates every step.
        budget: products for the eigenpairs of one point; None for 500 + 50 k.
        seed: of batches and random directions, >= 0.
        lr: of the steps, > 0; None for that of update t (of the first parameter group).
        effects: measure effects and alpha*.
        sections: measure cross-sections and widths.
        critical: measure critical_lr and the critical sharpness.

    Returns:
        Measurement over `step` (measured t), `rank`, `arm` ("e1", ..., "random", "dominant", "bulk", "full"), `alpha`, `batch`,
        `cross`, `position`, `level`, `side`, `part`, `window`; empty without two consecutive snapshots.

    Raises:
        ArgumentError: no surface, or an option out of range.

    Cost: a point takes about 20 products and 2 gradients of the full data, M gradients of batches, 4 M A + 9 k losses of the
        subset for the effects (4 M A + k M A where the interpolation does not serve), 15 a cross-section, and about 15 losses
        of the full data and of each batch for the critical learning rates; memory (products + 2 M) P.

    Source: Jastrzebski et al. 2019 (1807.05031) and their released code, but for its width, which sees the right side only.
    """
    if surface is None:
        raise ArgumentError("surface: directions are those of a loss surface, got None; make one with sgdscope.LossSurface")
    given: dict[str, Any] = locals() | {"alphas": _grid("alphas", alphas, 0.0), "positions": _grid("positions", positions)}
    given |= {"levels": _grid("levels", levels, 1.0), "cross": tuple(whole("cross", i, 1) for i in cross if not i > k)}
    for name, least in {"window": 1, "points": 1, "k": 1, "batches": 1, "examples": 2, "seed": 0}.items():
        whole(name, given[name], least)
    whole("batch_size", 1 if batch_size is None else batch_size, 1)
    positive("tolerance", tolerance)
    number("interpolation", interpolation, ">= 0", lambda x: x >= 0)
    positive("lr", 1.0 if lr is None else lr)
    wish = _Wish(**{f.name: given[f.name] for f in fields(_Wish)})
    if sum(a <= FITTED for a in wish.alphas) < 2 or not {-1.0, 0.0, 1.0} <= set(wish.positions):
        raise ArgumentError(f"alphas, positions: expected two alphas <= 2 and the positions -1, 0, 1, got {alphas}, {positions}")
    spans, looker = windows(trajectory.snapshot_steps, window), _Looker(trajectory, surface, wish)
    rows: list[Row] = []
    spanned: list[Row] = []
    for first, last in spans:
        steps = sorted(set(np.linspace(first, last - 1, points).round().astype(int).tolist()))
        with np.errstate(all="ignore"):  # a walk that diverged gives NaN, said by the outcomes
            found, over = looker.window((first, last), steps)
        rows, spanned = rows + found, [*spanned, over]
    size = trajectory.header.layout.size
    return measurement(_VARIABLES, _columns(rows, spanned, wish, size), _coords(rows, spans, wish))


def _grid(name: str, values: Sequence[float], above: float = -np.inf) -> tuple[float, ...]:
    grid = tuple(float(v) for v in values)
    if not np.isfinite(grid).all() or not all(a < b for a, b in itertools.pairwise((above, *grid))):
        limit = f" > {above:g}" if np.isfinite(above) else ""
        raise ArgumentError(f"{name}: expected ascending finite numbers{limit}, got {values!r}")
    return grid


class _Looker:
    """The walk, the surface, the fixed subset of its examples, and what is asked for."""

    def __init__(self, trajectory: Trajectory, surface: Surface, wish: _Wish) -> None:
        self.trajectory, self.surface, self.subset, self.wish = trajectory, surface, surface, wish
        told = surface.fingerprint()
        self.eps = max(torch.finfo(getattr(torch, name)).eps for name in str(told.get("dtype", "float64")).split("+"))
        if (told.get("examples") or 0) > wish.examples:
            rows = torch.linspace(0, told["examples"] - 1, wish.examples, dtype=torch.float64).round().long()
            with contextlib.suppress(DataError):
                self.subset = surface.subset(rows)

    def window(self, span: tuple[int, int], steps: Sequence[int]) -> tuple[list[Row], Row]:
        """Measure at points of one window, and its displacement in the directions of its first point."""
        rows: list[Row] = []
        over: Row = {}
        before: spectra.Eigenpairs | None = None
        moved = self.trajectory.theta(span[1]).double() - self.trajectory.theta(span[0]).double()
        for step in steps:
            theta, buffers = self.trajectory.theta(step).double(), self.trajectory.buffers(step) or None
            rows.append({"step": step} | dict.fromkeys(COUNTS, 0.0))
            if not bool(torch.isfinite(theta).all()):
                continue
            with self.surface.linearized(theta, buffers) as h:
                rows[-1] |= {"passes": 2.0, "loss": h.value, "gradient_norm": float(h.gradient.double().norm())}
                if np.isfinite(h.value) and np.isfinite(rows[-1]["gradient_norm"]):
                    try:
                        point = _Point(self, h, step, theta.to(h.gradient.device), buffers)
                    except SurfaceError:  # its Hessian is not finite
                        continue
                    rows[-1] |= point.measure(before, self.batches(step, span))
                    over = point.split("displacement_", moved) if step == span[0] else over
                    before = point.pairs
        return rows, over

    def batches(self, step: int, span: tuple[int, int]) -> list[Surface]:
        recorded = scalars(self.trajectory.steps, "batch_size", step, step + 1)[0]
        size = self.wish.batch_size or (int(recorded) if recorded >= 1 else None)
        generator = _random(self.wish.seed, step, "batches")
        return minibatches(
            self.trajectory, self.surface, step, span=span, count=self.wish.batches, size=size, generator=generator
        )


def _random(seed: int, step: int, purpose: str) -> torch.Generator:
    return private(seed, step, ("start", "batches", "directions").index(purpose))


class _Point:
    """One measured point: its directions, and the numbers that it gives."""

    def __init__(self, looker: _Looker, h: Linearization, step: int, theta: Tensor, buffers: Buffers) -> None:
        self.looker, self.wish, self.h, self.step = looker, looker.wish, h, step
        self.theta, self.gradient = theta, h.gradient.double()
        self.length, self.k = float(self.gradient.norm()), self.wish.k
        self.full, self.subset = (self._probe(s, buffers) for s in (looker.surface, looker.subset))
        recorded = scalars(looker.trajectory.steps, "lr", step, step + 1)[0] if self.wish.lr is None else self.wish.lr
        self.lr = float(recorded) if recorded > 0 else np.nan
        self.pairs = self._pairs()
        self.basis = Basis(self.pairs.vectors, self.gradient)
        self.found = len(self.basis)

    def _probe(self, surface: Surface, buffers: Buffers) -> Probe:
        return Probe(surface, self.theta, buffers, eps=self.looker.eps)

    def _pairs(self) -> spectra.Eigenpairs:
        g, wish = self.h.gradient, self.wish
        place: dict[str, Any] = {"dtype": g.dtype, "device": g.device, "generator": _random(wish.seed, self.step, "start")}
        start = g if self.length > 0 else None
        place |= {"tolerance": wish.tolerance, "start": start, "budget": wish.budget}
        return spectra.eigenpairs(finite_product(self.h.hvp), len(g), wish.k, **place)

    def measure(self, before: spectra.Eigenpairs | None, batches: Sequence[Surface]) -> Row:
        """All numbers of the point."""
        probes = [self._probe(s, self.full.buffers) for s in batches]
        self.batches = [p if not b or p.surface is not batches[b - 1] else probes[0] for b, p in enumerate(probes)]
        start = float(self.subset.losses(self.gradient, [0.0])[0])
        row: Row = {"loss": self.h.value, "gradient_norm": self.length, "lr": self.lr, "subset_loss": start}
        row |= self._spectrum(before) | self._alignment() | self._update() | self.split("gradient_", self.gradient)
        if np.isfinite(self.lr) and self.batches:
            row |= self._effects(start) if self.wish.effects else {}
            row |= self._sections(start) if self.wish.sections else {}
        row |= self._critical() if self.wish.critical and self.length > 0 else {}
        spent = sum(p.evaluations for p in set(self.batches)) + len(set(self.batches))
        row |= {"products": self.h.products, "evaluations": self.subset.evaluations, "batch_passes": spent}
        return row | {"passes": 2 + self.full.evaluations + int("update_change" in row)}

    def _spectrum(self, before: spectra.Eigenpairs | None) -> Row:
        values, residuals = self._ranks(self.pairs.values.numpy()), self._ranks(self.pairs.residuals.numpy())
        limits = self.wish.tolerance * np.maximum(np.abs(values), 0.01 * np.nanmax(np.abs(values)))
        missing = int(Outcome.not_applicable if len(self.theta) < self.k else Outcome.not_converged)
        met = (residuals <= limits) | (self.pairs.outcome == Outcome.ok)
        outcome = np.where(met, int(Outcome.ok), int(Outcome.not_converged))
        outcome = np.where(np.isnan(values), missing, outcome)
        row: Row = {"eigenvalue": values, "eigenvalue_residual": residuals, "eigenvalue_outcome": outcome}
        if before is None:
            return row
        change = values / self._ranks(before.values.numpy()) - 1
        return row | {"staleness": 1 - spectra.overlap(before.vectors, self.pairs.vectors), "eigenvalue_change": change}

    def _ranks(self, values: Array) -> Array:
        """Fill up the ranks that were not found with NaN; the rank is the first axis."""
        filled = np.full((self.k, *values.shape[1:]), np.nan)
        filled[: len(values)] = values
        return filled

    def split(self, prefix: str, vector: Tensor) -> Row:
        found = self.basis.split(vector.to(self.theta))
        return {prefix + name: values if name == "part" else self._ranks(values) for name, values in found.items()}

    def _alignment(self) -> Row:
        """Alignment of the mini-batches' gradients, which are kept."""
        made = {p: p.surface.value_and_grad(self.theta, p.buffers)[1].double() for p in dict.fromkeys(self.batches)}
        self.gradients = [made[p] for p in self.batches]
        if not self.gradients:
            return {}
        splits = [self.split("", g) for g in self.gradients]
        norms = np.array([float(g.norm()) for g in self.gradients])
        over = {name: np.stack([s[name] for s in splits], -1) for name in splits[0]}
        self.coefficients, cosines = over["coefficient"][: self.found], over["cosine"]
        full = np.array([float(g @ self.gradient) for g in self.gradients]) / (norms * self.length)
        row = {"coefficient": self._batch(over["coefficient"]), "batch_norm": self._batch(norms)}
        plotted = np.abs(cosines[: min(PLOTTED, self.found)]).mean(0)
        row |= over_batches(cosine=cosines, alignment=np.abs(cosines), mean_alignment=plotted, batch_cosine=full)
        row |= over_batches(batch_share=over["share"], batch_part=over["part"])
        row["cosine_spread"] = cosines.std(-1, ddof=1) if len(norms) > 1 else cosines[..., 0] * np.nan
        ratio, error = noise_share(self.coefficients, self.gradients)
        return row | {"noise_share": self._ranks(ratio), "noise_share_stderr": self._ranks(error)}

    def _batch(self, values: Array) -> Array:
        """Fill up the batches that were not there with NaN; the batch is the last axis."""
        filled = np.full((*values.shape[:-1], self.wish.batches), np.nan)
        filled[..., : values.shape[-1]] = values
        return filled

    def _update(self) -> Row:
        """The recorded update: its parts, and what they do to the loss."""
        run, following = self.looker.trajectory, self.step + 1
        end = run.theta(following).double().to(self.theta)
        moved = end - self.theta
        row, inside = self.split("update_", moved), self.basis.inside(moved)
        images = [self.h.hvp(p.to(self.h.gradient)).double() for p in (inside, moved - inside)]
        predicted = [float(self.gradient @ p + p @ hp / 2) for p, hp in zip((inside, moved - inside), images, strict=True)]
        row["update_predicted"] = np.array(predicted)
        if bool(torch.isfinite(end).all()):
            row["update_change"] = self.looker.surface.value(end, run.buffers(following) or None) - self.h.value
        return row

    # --- losses after steps -------------------------------------------------------------------------------------------------

    def _effects(self, start: float) -> Row:
        """Loss after steps of each arm, and the step that would have been best."""
        wish, k, alphas = self.wish, self.k, np.array(self.wish.alphas)
        losses, error = np.full((k + len(OTHERS), len(alphas), len(self.gradients)), np.nan), np.full(k + len(OTHERS), np.nan)
        for i, coefficients in enumerate(self.coefficients):
            steps = -self.lr * np.multiply.outer(alphas, coefficients)
            losses[i], error[i] = self.subset.along(self.basis.vectors[:, i], steps, tolerance=wish.interpolation)
        random = _random(wish.seed, self.step, "directions")
        for b, g in enumerate(self.gradients):
            same = b > 0 and g is self.gradients[b - 1]
            for a, direction in enumerate(self.basis.arms(g, random), k):
                known = same and a > k
                losses[a, :, b] = losses[a, :, b - 1] if known else self.subset.losses(direction, -self.lr * alphas)
        error[k:] = 0.0
        scale = start if start > 0 else np.nan
        effect, fitted = losses / scale - 1, int((alphas <= FITTED).sum())
        rounding = ROUNDING * self.looker.eps * (1 + float(np.nanmax(np.abs(effect[:, :fitted]), initial=0)))
        best, spread = np.array([vertex(wish.alphas[:fitted], e[:fitted], rounding) for e in effect]).T
        crosses = np.where(np.isfinite(best), int(Outcome.ok), int(Outcome.not_applicable))
        row = {"effect_batch": self._batch(effect), "effect_error": error / scale} | over_batches(effect=effect)
        return row | {"alpha_star": best, "alpha_star_stderr": spread, "crosses": best < 1, "crosses_outcome": crosses}

    def _sections(self, start: float) -> Row:
        """Cross-sections in units of a step, and the widths at the levels."""
        wish, positions = self.wish, np.array(self.wish.positions)
        row = over_batches(step_length=self._ranks(self.lr * np.abs(self.coefficients)))
        lengths = np.array([row["step_length"][i - 1] for i in wish.cross])
        curves = np.full((len(wish.cross), len(positions)), np.nan)
        for n, i in enumerate(wish.cross):
            if i <= self.found and lengths[n] > 0:
                curves[n] = self.subset.losses(self.basis.vectors[:, i - 1], positions * lengths[n])
        heights = np.array(wish.levels) * (start if start > 0 else np.nan)
        width = np.array([widths(positions, c, h) for c in curves for h in heights]).reshape(len(curves), len(heights), 3)
        low, middle, high = (curves[:, wish.positions.index(p)] for p in (-1.0, 0.0, 1.0))
        bend = (high - 2 * middle + low) / 2
        bend[~(np.abs(bend) > ROUNDING * self.looker.eps * (np.abs(high) + 2 * np.abs(middle) + np.abs(low)) / 2)] = np.nan
        row |= {"section": curves, "section_bend": bend, "width": width}
        return row | {"width_distance": width * lengths.reshape(-1, 1, 1)}

    def _critical(self) -> Row:
        """Learning rates at which the loss begins to rise, along g on L, and along each g_b on the loss of its batch."""
        start = self.lr if np.isfinite(self.lr) else float(self.pairs.values.abs().max().reciprocal())
        lr = self.full.first_rise(-self.gradient, start)
        own = dict(zip(self.batches, self.gradients, strict=True))  # equal batches are one
        made = {p: 2 / p.first_rise(-g, start) for p, g in own.items()}
        row: Row = {"critical_lr": lr, "critical_sharpness": 2 / lr}
        return row | (over_batches(critical_batch_sharpness=np.array([made[p] for p in self.batches])) if made else {})


def _columns(rows: Sequence[Row], spanned: Sequence[Row], wish: _Wish, size: int) -> Row:
    """All columns, with those that random directions would give."""
    sizes = {name: len(values) for name, (_, values, _) in _coords(rows, [], wish).items()}
    chance: Row = {"alignment_chance": chance_cosine(size), "share_chance": np.minimum(np.arange(1, wish.k + 1) / size, 1)}
    measured = {name: v for name, v in _VARIABLES.items() if name not in chance}
    return chance | columns(measured, rows, spanned=spanned, sizes=sizes)


def _coords(rows: Sequence[Row], spans: Sequence[tuple[int, int]], wish: _Wish) -> dict[str, tuple[str, Any, str]]:
    arms = [*(f"e{i}" for i in range(1, wish.k + 1)), *OTHERS]
    coords: dict[str, tuple[str, Any, str]] = {
        "step": ("step", np.array([r["step"] for r in rows], np.int64), "update t, measured at its point theta_t"),
        "rank": ("rank", np.arange(1, wish.k + 1), "1 is the sharpest direction"),
        "batch": ("batch", np.arange(wish.batches), "number of the mini-batch"),
        "arm": ("arm", np.array(arms, dtype=np.str_), "direction of the step"),
        "alpha": ("alpha", np.array(wish.alphas), "length of the step in units of lr"),
        "cross": ("cross", np.array(wish.cross, np.int64), "rank of the direction of a cross-section"),
        "position": ("position", np.array(wish.positions), "k, in units of s_i"),
        "level": ("level", np.array(wish.levels), "multiple of L(theta)"),
        "side": ("side", np.array(SIDES, dtype=np.str_), "side of the cross-section, seen along e_i"),
        "part": ("part", np.array(PARTS, dtype=np.str_), "within the K directions, and outside"),
    }
    return coords | ends(spans)
