"""The noise of the gradient along the walk: covariance of the examples' gradients, how it lies to H, and what it does."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from sgdscope import spectra
from sgdscope.contracts import Source, columns, declare, ends, measurement, quantity, scalars
from sgdscope.covariance import Covariance, DrawnBatches, alignment, lag_asymmetry
from sgdscope.covariance.estimates import curved_scale, estimate, frobenius, quotient, spectrum, two_sizes
from sgdscope.covariance.gathering import Gathered, gather, gather_recorded, second_moment
from sgdscope.directions import private
from sgdscope.errors import ArgumentError, Outcome, SurfaceError
from sgdscope.records import Linearization, Surface, Trajectory, windows
from sgdscope.theory.stability import MOMENTS

Array = NDArray[np.float64]
Row = dict[str, Any]
Buffers = Mapping[str, Tensor] | None

DRAWINGS = ("with", "without")  # replacement
PURPOSES = {"examples": 1, "start": 2, "probes": 3, "rest": 4, "batches": 5, "labels": 6, "power": 7, "flips": 8}

FACTORS, DIFFUSION = "Jastrzebski et al. 2017 (1711.04623)", "Xie, Sato & Sugiyama 2021 (2002.03495)"
SCALE, STRUCTURE = "McCandlish et al. 2018 (1812.06162)", "Xie, Tang, Sun & Li 2023 (2212.02083)"
_SOURCES = {
    "surface": "value and gradient of the surface",
    "covariance": f"{FACTORS}: C = mean_i (g_i - g)(g_i - g)' over the examples of the surface (1/N), g their mean gradient",
    "norm": "products of different examples, of recorded batches Chen, Zhang & Zhong 2010, eq. 2.2; jackknife",
    "gram": "C from the Gram matrix of m examples; standard error at fixed direction",
    "batch": f"{DIFFUSION}: Tr C / B with replacement, Tr C (N - B) / (B (N - 1)) without",
    "scale": f"{SCALE}, eq. 2.9 and 2.8",
    "sizes": f"{SCALE}, appendix A.1: two batch sizes, B (or 1) and all; means before the ratio; jackknife, Fieller",
    "bends": f"{SCALE}, eq. 2.8: Tr(HC) and G'HG from pairs of examples, with the errors of both; jackknife, Fieller",
    "temperature": f"{FACTORS}, n = lr s^2 / (2 B), s^2 = Tr C / P; lr / (1 - momentum)",
    "implicit": "Smith et al. 2021 (2101.12176): lr / 4 |grad L|^2 + lr / (4 m) sum_k |grad L_k - grad L|^2, mean over shuffles",
    "lanczos": "Lanczos on the full surface, residual |H e - l e|",
    "align": f"{DIFFUSION}, fig. 2: C against H in the top eigenbasis of H; jackknife over the examples",
    "share": "Song et al. 2024 (2405.16002): signal and noise within the top eigenvectors of H",
    "probes": "Hutchinson off the eigenpairs; Tr(HC) exactly on the top eigenvectors of C, random signs on the rest",
    "cosine": "as the product and the two norms; error jointly over the examples, in the eigenbasis of H, and that of the probes",
    "fisher": "Kunstner et al. 2019 (1905.12558): true Fisher with labels drawn from the model, empirical with those observed",
    "power": f"{STRUCTURE}: mu_r = mu_1 r^-s over a window of ranks; p by a parametric bootstrap",
    "tails": f"{DIFFUSION}, fig. 1: the noise of batches along the eigenvectors of C, and one batch's noise over the parameters",
    "currents": "Chaudhari & Soatto 2018 (1710.11029): |A - A'| / |A + A'| of the lag-1 covariance in the top eigenbasis of H",
    "count": "counted",
}
_REASONS = {
    "point": "the point or the gradient is not finite",
    "noise": "no gradients of single examples, and fewer than two recorded batches of one size: make the surface of a Dataset or "
    "tensors with batchnorm='eval' or 'recalibrate', or record with batches='bursts'; or two take over 512 MiB, or not finite",
    "norm": "as the trace, or fewer than four recorded batches; not_converged: its square is not above 0, or has no error",
    "examples": "no gradients of single examples, as of data given in batches or of BatchNorm in batch mode, or not finite",
    "rank": "as the trace, or rank > the number of examples or P",
    "size": "as the trace, or the batch size is not known, or no gradient or no noise is left",
    "lr": "as the trace, or the batch size or the learning rate is not known, or is that of a method such as Adam",
    "regular": "the learning rate is not known or is that of a method such as Adam, or the point is not finite",
    "unbiased": "no gradients of single examples; not_converged: |G|^2 is not separated from zero at 95 %",
    "sizes": "as the trace, or the batch size is not known; not_converged: |G|^2 is not separated from zero at 95 %",
    "hessian": "not asked for (hessian=True), as the trace or temperature, rank > P, or the products ended (not_converged)",
    "pair": "as the elements, or fewer than two eigenpairs or no spread",
    "curved": "as the elements, or no positive curvature",
    "bend": "as the elements, or no gradients of single examples; not_converged: G'HG is not separated from zero at 95 %",
    "fisher": "not asked for (fisher=True), or the loss is not known to be a cross-entropy of the model's output",
    "power": "as the trace, or fewer positive eigenvalues than the window has ranks",
    "p": "as the fit, or not asked for (resamples)",
    "tails": "as the trace, or the batch size is not known, or too few values or no spread",
    "currents": "not asked for (currents=True), no eigenbasis of two directions, or fewer than two blocks of updates",
}
# name; dims; units; error; source; reason; long name
_TABLE = """
loss; step; loss; exact; surface; point; L(theta_t)
gradient_square; step; loss^2/theta^2; exact; surface; point; |g|^2, g = grad L(theta_t)
examples; step; 1; exact; count; ; gradients behind the covariance: of examples, or of recorded batches (see batchwise)
batchwise; step; 1; exact; count; ; 1 where the covariance comes from recorded batches, 0 where from examples
trace; step; loss^2/theta^2; stderr; covariance; noise; Tr C
covariance_frobenius; step; loss^2/theta^2; stderr; norm; norm; |C|_F, its square unbiased
covariance_eigenvalue; step rank; loss^2/theta^2; stderr; gram; rank; mu_r of C, largest first; too large where m is not >> r
batch_trace; step drawing; loss^2/theta^2; stderr; batch; size; trace of the covariance of a batch's gradient
noise_to_signal; step drawing; 1; stderr; batch; size; batch_trace / |g|^2
signal_to_noise; step drawing; 1; stderr; batch; size; |g|^2 / batch_trace
noise_scale; step; 1; stderr; scale; size; simple noise scale Tr C / |g|^2, in examples, of the data as they are
population_trace; step; loss^2/theta^2; stderr; sizes; unbiased; Tr of the covariance of the population that was sampled
population_gradient_square; step; loss^2/theta^2; stderr; sizes; unbiased; |G|^2 of that population, mean over i != j of g_i . g_j
population_noise_scale; step; 1; stderr; sizes; unbiased; ratio of the two, in examples
population_noise_scale_low; step; 1; bound; sizes; unbiased; lower end of its 95 % interval
population_noise_scale_high; step; 1; bound; sizes; unbiased; upper end of its 95 % interval
two_size_trace; step; loss^2/theta^2; stderr; sizes; size; trace of the examples' covariance from two batch sizes
two_size_gradient_square; step; loss^2/theta^2; stderr; sizes; size; |G|^2 from two batch sizes
two_size_noise_scale; step; 1; stderr; sizes; sizes; ratio of the two means, in examples
two_size_noise_scale_low; step; 1; bound; sizes; sizes; lower end of its 95 % interval
two_size_noise_scale_high; step; 1; bound; sizes; sizes; upper end of its 95 % interval
learning_ratio; step; lr; exact; temperature; lr; lr (1 - dampening) / (B (1 - momentum))
temperature; step; loss; stderr; temperature; lr; learning_ratio Tr C / (2 P)
direction_temperature; step rank; loss; stderr; temperature; hessian; learning_ratio e_i'C e_i / 2
regulariser_gradient; step; loss; exact; implicit; regular; lr |g|^2 / 4
regulariser_noise; step; loss; stderr; implicit; lr; lr / 4 of batch_trace without replacement
curvature_eigenvalue; step rank; loss/theta^2; bound; lanczos; hessian; lambda_i of the Hessian, algebraically largest first
curvature_eigenvalue_residual; step rank; loss/theta^2; bound; lanczos; ; |H e_i - lambda_i e_i|
element; step rank other; loss^2/theta^2; stderr; align; hessian; e_i'C e_j
slope; step; loss; stderr; align; pair; sum e_i'C e_i lambda_i / sum lambda_i^2: C against H through the origin
correlation; step; 1; stderr; align; pair; Pearson's of e_i'C e_j with e_i'H e_j over all i, j
diagonal_correlation; step; 1; stderr; align; pair; Pearson's of e_i'C e_i with lambda_i
off_diagonal; step; 1; stderr; align; pair; sum over i != j of (e_i'C e_j)^2, as a share of the sum over all
noise_share; step rank; 1; stderr; share; hessian; Tr(E_i'C E_i) / Tr C, E_i the first i eigenvectors
signal_share; step rank; 1; exact; share; hessian; |E_i'g|^2 / |g|^2
hessian_trace; step; loss/theta^2; stderr; probes; hessian; Tr H
hessian_frobenius; step; loss/theta^2; stderr; probes; hessian; |H|_F
product_trace; step; loss^3/theta^4; stderr; probes; hessian; Tr(H C)
matrix_cosine; step; 1; stderr; cosine; hessian; Tr(H C) / (|H|_F |C|_F)
trace_ratio; step; loss; stderr; probes; curved; Tr C / Tr H
curved_noise_scale; step; 1; stderr; scale; curved; Hessian-weighted noise scale Tr(H C) / (g'H g), in examples
population_curved_noise_scale; step; 1; stderr; bends; bend; the same of the population that was sampled, in examples
population_curved_noise_scale_low; step; 1; bound; bends; bend; lower end of its 95 % interval
population_curved_noise_scale_high; step; 1; bound; bends; bend; upper end of its 95 % interval
empirical_fisher_trace; step; loss^2/theta^2; stderr; fisher; examples; Tr of mean_i g_i g_i', without weight decay
empirical_fisher_slope; step; loss; stderr; fisher; pair; as slope, of the empirical Fisher matrix
empirical_fisher_correlation; step; 1; stderr; fisher; pair; as correlation, of the empirical Fisher matrix
fisher_trace; step; loss^2/theta^2; stderr; fisher; fisher; Tr F, F = mean_i E_y g_i(y) g_i(y)', labels drawn from the model
fisher_eigenvalue; step rank; loss^2/theta^2; stderr; fisher; fisher; of F, largest first
fisher_slope; step; loss; stderr; fisher; fisher; as slope, of F
fisher_correlation; step; 1; stderr; fisher; fisher; as correlation, of F
spectrum_exponent; step; 1; exact; power; power; s of the measured eigenvalues of C within the ranks
spectrum_prefactor; step; loss^2/theta^2; exact; power; power; mu at rank 1 of the fitted line
spectrum_distance; step; 1; exact; power; power; largest gap of the cumulated shares from the fit
spectrum_p; step; 1; exact; power; p; that a power law with Gaussian gradients gives as large a distance
spectrum_isotropic_p; step; 1; exact; power; p; that isotropic Gaussian noise gives as large an exponent
batch_kurtosis; step rank; 1; exact; tails; tails; over batches: kurtosis along eigenvector r of C; 3 for a Gaussian
batch_anderson; step rank; 1; exact; tails; tails; over batches: Anderson-Darling along eigenvector r of C; 5 % point 0.752
batch_tail_index; step; 1; stderr; tails; tails; over batches: Hill's index of |g_B - g|
parameter_kurtosis; step; 1; stderr; tails; tails; over parameters: kurtosis of one batch's g_B - g, mean over batches
parameter_anderson; step; 1; stderr; tails; tails; over parameters: Anderson-Darling of one batch's g_B - g, mean over batches
parameter_tail_index; step; 1; stderr; tails; tails; over parameters: Hill's index of one batch's g_B - g, mean over batches
products; step; 1; exact; count; ; Hessian products on the full data
lag_asymmetry; window; 1; exact; currents; currents; |A - A'|_F / |A + A'|_F over the window
lag_asymmetry_chance; window; 1; exact; currents; currents; its mean when each block's sign is drawn
lag_asymmetry_p; window; 1; exact; currents; currents; share of drawn signs with at least as much
"""
_VARIABLES = declare(_TABLE, sources=_SOURCES, reasons=_REASONS)
_POWERS = {"loss": 1.0, "loss^2/theta^2": 2.0, "loss/theta^2": 1.0, "loss^3/theta^4": 3.0, "lr": -1.0}


@dataclass(frozen=True)
class _Wish:
    """What is asked for; see the options of `noise`."""

    k: int
    examples: int
    batches: int
    batch_size: int | None
    hessian: bool
    probes: int
    tolerance: float
    budget: int | None
    fisher: bool
    ranks: tuple[int, int]
    resamples: int
    tail: float
    currents: bool
    block: int
    seed: int


@quantity(
    "noise",
    needs=["surface", "snapshots", "scalars"],
    sources=[Source(FACTORS, "theorem 1"), Source(DIFFUSION, "fig. 1, 2"), Source(SCALE, "2.9"), Source(STRUCTURE)],
    scales={name: _POWERS.get(v.units, 0.0) for name, v in _VARIABLES.items()},
)
def noise(
    trajectory: Trajectory,
    surface: Surface | None,
    *,
    window: int = 60,
    points: int = 1,
    k: int = 10,
    examples: int = 512,
    batches: int = 200,
    batch_size: int | None = None,
    hessian: bool = True,
    probes: int = 8,
    tolerance: float = 1e-2,
    budget: int | None = None,
    fisher: bool = False,
    ranks: tuple[int, int] = (1, 50),
    resamples: int = 0,
    tail: float = 0.05,
    currents: bool = False,
    block: int = 6,
    seed: int = 0,
) -> xr.Dataset:
    """Gradient noise at points of each window: C, its spectrum and tails, how it lies to H, noise scales and temperature.

    C = (1/N) sum_i (g_i - g)(g_i - g)' over the N examples of the surface, from the gradients of m of them (the same at each
    point) and the exact mean g: each entry is unbiased, and exact where m = N. A batch of B: C / B with replacement,
    C (N - B) / (B (N - 1)) without. Where no example has a gradient of its own (BatchNorm on batches, data given in batches) up
    to 32 recorded batches of the window give sqrt(B) (g_b - mean) in place of the deviations, with 1 / (M - 1) (`batchwise`);
    |C|_F then takes four, see `covariance.unbiased_square`.

    The examples as a sample: |G|^2 = mean over i != j of g_i . g_j and Tr C = mean |g_i|^2 - |G|^2 (`population_...`), unbiased.
    Batches, for tails and for the estimator of two sizes, are drawn with replacement from the m examples, moved to the mean of
    all N (recorded ones where batchwise): the mean of g_b . g_c over b != c is unbiased for |g|^2, B (mean |g_b|^2 - |g|^2) for
    Tr C. Their interval is that of the draw of the batches, not of the m examples.

    In the K top eigenvectors of H the matrix of H is diagonal to the residual; e_i'C e_j are `element`. Tr(HC) takes K + `probes`
    products, Tr H and |H|_F `probes` off the eigenpairs.

    The ranks of the power law end at the rank of C or at m where that is lower and at least four are left.

    Args:
        trajectory: the walk.
        surface: L; required.
        window: updates a window, >= 1.
        points: how many points of a window, spread from its first to its last; 1: the first alone.
        k: eigenpairs of C and of H, >= 1.
        examples: m, >= 2; fewer where their gradients would take more than 512 MiB.
        batches: M, drawn at each point, >= 2.
        batch_size: B; None for the recorded one.
        hessian: compare with the Hessian.
        probes: products for each of Tr(HC) and Tr H, >= 2.
        tolerance: relative residual of the eigenpairs of H, > 0.
        budget: products for them; None for 500 + 50 k.
        fisher: measure the true Fisher matrix, with one drawn label an example.
        ranks: first and last rank of the power law.
        resamples: of the test of the power law, 0 for none; 199 give p to 0.005.
        tail: share of values in the tail for Hill's index, in (0, 1).
        currents: measure the asymmetry of the lag-1 covariance over each window.
        block: updates whose sign is flipped together.
        seed: of all draws.

    Returns:
        Measurement over `step` (measured points), `rank`, `other`, `drawing`, `window`; empty without two consecutive snapshots.

    Raises:
        ArgumentError: no surface, or an option out of range.

    Cost: m gradients (2 passes over them by vmap), an m x m eigenproblem; with the Hessian 20 to 60 products on the full data;
    memory m P numbers.
    """
    if surface is None:
        raise ArgumentError("surface: noise is measured on a loss surface, got None; make one with sgdscope.LossSurface")
    args = (k, examples, batches, batch_size, hessian, probes, tolerance, budget, fisher, ranks, resamples, tail, currents, block)
    wish = _Wish(*args, seed)
    _check(wish, window, points)
    spans = windows(trajectory.snapshot_steps, window)
    rows: list[Row] = []
    spanned: list[Row] = []
    for span in spans:
        found, bases = [], []
        for step in sorted({*np.linspace(*span, points).round().astype(int).tolist()}):
            point = _Point(trajectory, surface, wish, step, span)
            found.append(point.row())
            bases.append(point.basis)
        rows += found
        spanned.append(_currents(trajectory, span, bases[0], wish))
    coords: dict[str, tuple[str, Any, str]] = {
        "step": ("step", np.array([r["step"] for r in rows], np.int64), "the point before update t"),
        "rank": ("rank", np.arange(1, k + 1), "1 is the largest"),
        "other": ("other", np.arange(1, k + 1), "rank of the second direction"),
        "drawing": ("drawing", np.array(DRAWINGS, dtype=np.str_), "batches with or without replacement"),
        **ends(spans),
    }
    return measurement(
        _VARIABLES, columns(_VARIABLES, rows, spanned=spanned, sizes={"rank": k, "other": k, "drawing": 2}), coords
    )


def _check(wish: _Wish, window: int, points: int) -> None:
    least = {"window": (window, 1), "points": (points, 1), "k": (wish.k, 1), "examples": (wish.examples, 2)}
    least |= {"batches": (wish.batches, 2), "probes": (wish.probes, 2), "resamples": (wish.resamples, 0)}
    least |= {"block": (wish.block, 1), "seed": (wish.seed, 0)}
    least["batch_size"] = (1 if wish.batch_size is None else wish.batch_size, 1)
    for name, (value, smallest) in least.items():
        if isinstance(value, bool) or not isinstance(value, Real) or not value >= smallest or value != int(value):
            raise ArgumentError(f"{name}: expected an integer >= {smallest}, got {value!r}")
    for name, value in {"hessian": wish.hessian, "fisher": wish.fisher, "currents": wish.currents}.items():
        if not isinstance(value, bool):
            raise ArgumentError(f"{name}: expected true or false, got {value!r}")
    if not (isinstance(wish.tolerance, Real) and wish.tolerance > 0 and math.isfinite(wish.tolerance)):
        raise ArgumentError(f"tolerance: expected a finite number > 0, got {wish.tolerance!r}")
    if not (isinstance(wish.tail, Real) and 0 < wish.tail < 1):
        raise ArgumentError(f"tail: expected a share in (0, 1), got {wish.tail!r}")
    whole = isinstance(wish.ranks, tuple | list) and len(wish.ranks) == 2 and all(isinstance(r, Integral) for r in wish.ranks)
    if not whole or not 1 <= wish.ranks[0] <= wish.ranks[1] - 3:
        raise ArgumentError(f"ranks: expected first and last of at least four ranks, got {wish.ranks!r}")


# --- one point --------------------------------------------------------------------------------------------------------------


class _Point:
    """The noise at one point.

    Attributes:
        basis: the top eigenvectors of H [P, k], None where they were not found.
    """

    def __init__(self, trajectory: Trajectory, surface: Surface, wish: _Wish, step: int, span: tuple[int, int]) -> None:
        self.trajectory, self.surface, self.wish, self.step, self.span = trajectory, surface, wish, step, span
        self.theta, self.buffers = trajectory.theta(step).double(), trajectory.buffers(step) or None
        self.value, gradient = surface.value_and_grad(self.theta, self.buffers)
        self.gradient = gradient.double().cpu()
        self.square = float(self.gradient.square().sum())
        mark = surface.fingerprint()
        self.examples, self.decay = mark.get("examples"), float(mark.get("weight_decay") or 0.0)
        update = min(step, span[1] - 1)
        self.lr, recorded = (float(scalars(trajectory.steps, name, update, update + 1)[0]) for name in ("lr", "batch_size"))
        self.told: Mapping[str, Any] = (trajectory.settings.get("optimizers") or [{}])[0]
        if str(trajectory.settings.get("walker") or self.told.get("class", "sgd")).lower() in MOMENTS:
            self.lr = math.nan  # theirs is divided by the root of a second moment: lr / B says nothing of their noise
        self.recorded_size = int(recorded) if recorded >= 1 else None
        self.size = wish.batch_size or self.recorded_size
        self.basis: Tensor | None = None
        self.curvatures = np.full(wish.k, np.nan)
        self.gathered = Gathered(None)

    def random(self, purpose: str) -> torch.Generator:
        return private(self.wish.seed, self.step, PURPOSES[purpose])

    def row(self) -> Row:
        """All numbers of the point."""
        row: Row = {"step": self.step, "loss": self.value, "gradient_square": self.square, "products": 0.0}
        finite = math.isfinite(self.value) and math.isfinite(self.square)
        self.gathered = self._gather() if finite else Gathered(None)
        found = self.gathered.covariance
        row |= {"examples": found.count if found else 0, "batchwise": float(self.gathered.batchwise)}
        row |= {"regulariser_gradient": self.lr * self.square / 4 if finite else math.nan}
        if found is None:
            return row
        self.covariance = found
        self.trace, self.trace_error = found.trace()
        row |= estimate("trace", self.trace, self.trace_error) | frobenius(found)
        row |= estimate("covariance_eigenvalue", *found.eigenvalues(self.wish.k))
        seed = self.random("power").initial_seed()
        row |= spectrum(found, self.wish.ranks, resamples=self.wish.resamples, seed=seed)
        row |= self._scales() | (self._batches() if self.size else {})
        if self.wish.hessian:
            with self.surface.linearized(self.theta, self.buffers) as h:
                row |= self._curved(h) | {"products": h.products}
        return row if self.gathered.batchwise else row | self._empirical() | (self._fisher() if self.wish.fisher else {})

    def _gather(self) -> Gathered:
        try:
            order = private(self.wish.seed, PURPOSES["examples"])
            options: dict[str, Any] = {"most": self.wish.examples, "order": order}
            return gather(self.surface, self.theta, self.buffers, self.gradient, **options)
        except SurfaceError:
            sizes = scalars(self.trajectory.steps, "batch_size", *self.span)
            options = {"span": self.span, "sizes": sizes, "size": self.recorded_size}
            return gather_recorded(self.trajectory, self.surface, self.step, **options)

    # --- what follows from the trace ------------------------------------------------------------------------------------------

    def _scales(self) -> Row:
        trace, error, n = self.trace, self.trace_error, self.examples
        row = quotient("noise_scale", (trace, error), (self.square, 0.0))
        if not self.gathered.batchwise:
            row |= two_sizes("population", DrawnBatches.single(self.covariance), self.gradient)
        if not self.size:
            return row
        size = self.size
        shares = np.array([1 / size, (n - size) / (size * (n - 1)) if n and 1 < n >= size else np.nan])
        row |= estimate("batch_trace", trace * shares, error * shares)
        with np.errstate(divide="ignore", invalid="ignore"):
            noise = trace * shares / self.square if self.square > 0 else shares * np.nan
            signal = np.where(noise > 0, 1 / noise, np.nan)
        relative = error / trace if trace > 0 else 0.0
        row |= estimate("noise_to_signal", noise, noise * relative) | estimate("signal_to_noise", signal, signal * relative)
        momentum = float(self.told.get("momentum") or self.trajectory.settings.get("momentum") or 0.0)
        self.learning = self.lr * (1 - float(self.told.get("dampening") or 0.0)) / (size * (1 - momentum))
        each = self.learning / (2 * len(self.theta))
        row |= {"learning_ratio": self.learning} | estimate("temperature", each * trace, each * error)
        return row | estimate("regulariser_noise", self.lr / 4 * trace * shares[1], self.lr / 4 * error * shares[1])

    # --- batches --------------------------------------------------------------------------------------------------------------

    def _batches(self) -> Row:
        wish, found, size = self.wish, self.covariance, int(self.size or 1)
        if self.gathered.batchwise:
            drawn = DrawnBatches.recorded(found, int(self.recorded_size or 1))
        else:
            drawn = DrawnBatches.draw(found, count=wish.batches, size=size, generator=self.random("batches"))
        row: Row = {}
        for name, values in drawn.tails(wish.k, wish.tail).items():
            row |= {name: values} if name in {"batch_kurtosis", "batch_anderson"} else estimate(name, *values)
        return row | two_sizes("two_size", drawn, self.gradient if self.gathered.mean is None else self.gathered.mean)

    # --- against the Hessian ----------------------------------------------------------------------------------------------------

    def _curved(self, h: Linearization) -> Row:
        wish, g = self.wish, h.gradient
        place: dict[str, Any] = {"dtype": g.dtype, "device": g.device}
        start = g if float(g.norm()) > 0 else None
        options: dict[str, Any] = {"tolerance": wish.tolerance, "budget": wish.budget, "start": start}
        pairs = spectra.eigenpairs(h.hvp, len(g), wish.k, generator=self.random("start"), **options, **place)
        found = len(pairs.values)
        if not found:
            return {}
        self.basis = pairs.vectors.cpu()
        residuals = np.full(wish.k, np.nan)
        self.curvatures[:found], residuals[:found] = pairs.values.numpy(), pairs.residuals.numpy()
        limits = wish.tolerance * np.maximum(np.abs(self.curvatures), 0.01 * np.nanmax(np.abs(self.curvatures)))
        missing = int(Outcome.not_applicable if len(g) < wish.k else Outcome.not_converged)
        met = np.where(residuals <= limits, int(Outcome.ok), int(Outcome.not_converged))
        outcome = np.where(np.isnan(residuals), missing, met)
        row: Row = {"curvature_eigenvalue": self.curvatures, "curvature_eigenvalue_residual": residuals}
        row |= {"curvature_eigenvalue_outcome": outcome}
        return row | self._elements() | self._traces(h, pairs)

    def _elements(self) -> Row:
        """C in the eigenbasis of H."""
        assert self.basis is not None
        z, k, found = self.covariance.project(self.basis), self.wish.k, self.basis.shape[1]
        value, error = np.full((k, k), np.nan), np.full((k, k), np.nan)
        value[:found, :found], error[:found, :found] = self.covariance.mean(z[:, :, None] * z[:, None, :])
        row = estimate("element", value, error) | self._alignment("", self.covariance, z)
        if self.size:
            row |= estimate("direction_temperature", self.learning / 2 * np.diag(value), self.learning / 2 * np.diag(error))
        shares, spread, signal = (np.full(k, np.nan) for _ in range(3))
        shares[:found], spread[:found] = self.covariance.shares(z)
        if self.square > 0:
            signal[:found] = np.cumsum((self.basis.double().T @ self.gradient).numpy() ** 2) / self.square
        return row | estimate("noise_share", shares, spread) | {"signal_share": signal}

    def _alignment(self, prefix: str, matrix: Covariance, projections: Array) -> Row:
        known = self.curvatures[: projections.shape[1]]
        row, found = Row(), zip(*matrix.jackknife(lambda elements: alignment(elements, known), projections), strict=True)
        for name, (value, error) in zip(("slope", "correlation", "diagonal_correlation", "off_diagonal"), found, strict=True):
            row |= estimate(f"{prefix}{name}", value, error)
        return row

    def _traces(self, h: Linearization, pairs: spectra.Eigenpairs) -> Row:
        wish, g, found = self.wish, h.gradient, self.covariance
        place: dict[str, Any] = {"dtype": g.dtype, "device": g.device, "generator": self.random("probes")}
        trace, norm, _ = spectra.moments(h.hvp, len(g), products=wish.probes, known=pairs, **place)
        exact = len(g) <= len(pairs.values)
        errors = (0.0, 0.0) if exact else (trace.stderr, norm.stderr)
        row = estimate("hessian_trace", trace.value, errors[0]) | estimate("hessian_frobenius", norm.value, errors[1])
        rest = {"pairs": wish.k, "probes": wish.probes}
        value, probed = found.product_trace(lambda v: h.hvp(v.to(g)).to(v), generator=self.random("rest"), **rest)
        forms = (found.project(pairs.vectors) ** 2) @ self.curvatures[: len(pairs.values)]
        error = math.hypot(probed, float(found.mean(forms)[1]))
        bend = float(self.gradient @ h.hvp(g).double().cpu())
        if not self.gathered.batchwise:
            known: dict[str, Any] = {"forms": forms, "product": (value, probed)}
            row |= curved_scale(found, lambda v: h.hvp(v.to(g)).to(v), self.gradient, **known)
        row |= estimate("product_trace", value, error)
        row |= estimate("matrix_cosine", *found.cosine((value, probed), forms, (norm.value, errors[1])))
        row |= quotient("trace_ratio", (self.trace, self.trace_error), (trace.value, errors[0]))
        return row | quotient("curved_noise_scale", (value, error), (bend, 0.0))

    # --- Fisher matrices --------------------------------------------------------------------------------------------------------

    def _empirical(self) -> Row:
        """Second moment of the gradients with the labels observed, from the deviations: g_i g_i' = (d_i + g)(d_i + g)'."""
        found, pull = self.covariance, self.gradient - self.decay * self.theta
        along = np.asarray((found.deviations @ pull.to(found.deviations)).double().cpu())
        row = estimate("empirical_fisher_trace", *found.mean(found.norms + 2 * along + float(pull.square().sum())))
        if self.basis is None:
            return row
        projections = found.project(self.basis) + (self.basis.double().T @ pull).numpy()
        return row | self._alignment("empirical_fisher_", found, projections)

    def _fisher(self) -> Row:
        options: dict[str, Any] = {"labels": self.random("labels"), "decay": self.decay}
        found = second_moment(self.surface, self.theta, self.buffers, self.gathered.chosen, **options)
        if found is None:
            return {}
        row = estimate("fisher_trace", *found.trace()) | estimate("fisher_eigenvalue", *found.eigenvalues(self.wish.k))
        return row if self.basis is None else row | self._alignment("fisher_", found, found.project(self.basis))


# --- a window ---------------------------------------------------------------------------------------------------------------


def _currents(trajectory: Trajectory, span: tuple[int, int], basis: Tensor | None, wish: _Wish) -> Row:
    """The asymmetry of the lag-1 covariance in the eigenbasis at the window's first measured point."""
    if not wish.currents or basis is None or basis.shape[1] < 2:
        return {}
    points = np.stack([(basis.double().T @ trajectory.theta(t).double()).numpy() for t in range(span[0], span[1] + 1)])
    if not np.isfinite(points).all():
        return {}
    seed = private(wish.seed, span[0], PURPOSES["flips"]).initial_seed()
    found = lag_asymmetry(points, block=wish.block, flips=999, seed=seed)
    return dict(zip(("lag_asymmetry", "lag_asymmetry_chance", "lag_asymmetry_p"), found, strict=True))
