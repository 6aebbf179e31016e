"""Two points of one loss held against each other: the loss between and beyond them, their width, the noise that prefers one."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import inf, isfinite, log, nan
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from sgdscope import spectra, theory
from sgdscope.contracts import declare, measurement
from sgdscope.directions import private
from sgdscope.errors import ArgumentError
from sgdscope.files import plain
from sgdscope.notation import number, with_error
from sgdscope.records import Line, Surface

Array = NDArray[np.float64]
State = tuple[Tensor, Mapping[str, Tensor]]
ROUNDING = 4.0  # units of eps |L| allowed to one mean loss
EXAMPLES = 512  # from which the covariance of the gradients is estimated
FILTER_STEP = 0.05  # of the filter-normalised slices, in units of the norm of each filter
_FILTERS, _PROBES = 11, 12  # purposes of private generators

_SLICE = declare(
    """
loss; alpha; loss; bound; slice; ; L((1 - alpha) theta_a + alpha theta_b)
held_out_loss; alpha; loss; bound; slice; held_out; the same on held-out examples
accuracy; alpha; 1; exact; slice; accuracy; share of training examples that are classified rightly
held_out_accuracy; alpha; 1; exact; slice; accuracy; share of held-out examples that are classified rightly
distance; ; theta; exact; slice; ; |theta_b - theta_a|
barrier; ; loss; bound; slice; ; largest loss at 0 <= alpha <= 1 minus the larger of its ends
curvature; end; loss/theta^2; bound; slice; ; second difference of the loss along the unit vector from a to b, at a and at b
""",
    sources={"slice": "Goodfellow et al. 2015; Jastrzebski et al. 2017 (1711.04623), figures 2 and 3"},
    reasons={"held_out": "no held-out surface was given", "accuracy": "no function for the accuracy was given"},
)

Accuracy = Callable[[Tensor, Mapping[str, Tensor]], float]


def _checked(surface: Surface, point: Tensor, name: str) -> Tensor:
    size = len(surface.theta())
    if not isinstance(point, Tensor) or point.shape != (size,) or not point.is_floating_point():
        came = tuple(point.shape) if isinstance(point, Tensor) else type(point).__name__
        raise ArgumentError(f"{name}: expected a vector of {size} parameters, as the surface has, got {came}")
    if not bool(torch.isfinite(point).all()):
        raise ArgumentError(f"{name}: expected finite parameters; pass a point before the run diverged")
    return point.double()


def _grid(alphas: Sequence[float] | None) -> Array:
    """The alphas, 0 and 1 among them with a neighbour on both sides each."""
    grid: Array = np.round(np.linspace(-1, 2, 31) if alphas is None else np.asarray(alphas, np.float64), 12)
    inside = grid.ndim == 1 and len(grid) >= 5 and bool((np.diff(grid) > 0).all()) and bool(np.isfinite(grid).all())
    if not inside or not {0.0, 1.0} <= set(grid[1:-1].tolist()):
        raise ArgumentError(
            f"alphas: expected at least 5 ascending numbers with 0 and 1 inside, such as linspace(-1, 2, 31); got {alphas!r}"
        )
    return grid


def _second(grid: Array, values: Array, at: float, width: int = 1) -> float:
    """The second derivative of the parabola through a point of the grid and its neighbours `width` away; NaN at the rim."""
    i = int(np.flatnonzero(grid == at)[0])
    if i < width or i + width >= len(grid):
        return nan
    x, y = grid[[i - width, i, i + width]], values[[i - width, i, i + width]]
    return float(2 * ((y[2] - y[1]) / (x[2] - x[1]) - (y[1] - y[0]) / (x[1] - x[0])) / (x[2] - x[0]))


def _ends(grid: Array, values: Array, length: float, eps: float) -> tuple[Array, Array]:
    """Curvature at a and b, and its bound: the change from twice the step, and rounding."""
    found, bounds = np.zeros(2), np.zeros(2)
    for i, at in enumerate((0.0, 1.0)):
        place = int(np.flatnonzero(grid == at)[0])
        found[i] = _second(grid, values, at)
        wider = _second(grid, values, at, 2)
        step = float(np.diff(grid)[place - 1 : place + 1].min())
        rounding = 4 * ROUNDING * eps * float(np.abs(values[place - 1 : place + 2]).max()) / step**2
        bounds[i] = rounding + (abs(wider - found[i]) if isfinite(wider) else abs(found[i]))
    return found / length**2, bounds / length**2


def _barrier(grid: Array, values: Array, eps: float) -> tuple[float, float]:
    """The barrier on the grid, and its bound: how far the secants on both sides let a concave curve rise between two points."""
    first, last = (int(np.flatnonzero(grid == at)[0]) for at in (0.0, 1.0))
    height = float(values[first : last + 1].max())
    slopes = np.diff(values) / np.diff(grid)
    highest = height
    for i in range(first, last):
        if i + 2 < len(grid) and i > 0 and slopes[i - 1] > 0 > slopes[i + 1]:
            left, right = slopes[i - 1], slopes[i + 1]
            where = (values[i + 1] - values[i] + left * grid[i] - right * grid[i + 1]) / (left - right)
            if grid[i] < where < grid[i + 1]:
                highest = max(highest, float(values[i] + left * (where - grid[i])))
    rounding = 2 * ROUNDING * eps * float(np.abs(values).max())
    return height - float(max(values[first], values[last])), highest - height + rounding


def _accuracies(accuracy: Accuracy | None, a: State, b: State, grid: Array) -> Array:
    if accuracy is None:
        return np.full(len(grid), nan)
    between = []
    for alpha in grid.tolist():
        share = min(max(alpha, 0.0), 1.0)
        near = b[1] if share >= 0.5 else a[1]
        mixed = {n: torch.lerp(v, b[1][n].to(v), share) if v.is_floating_point() else near[n] for n, v in a[1].items()}
        between.append(accuracy(torch.lerp(a[0], b[0], alpha), mixed))
    return np.array(between)


def interpolate(
    surface: Surface,
    a: State | Tensor,
    b: State | Tensor,
    *,
    alphas: Sequence[float] | None = None,
    held_out: Surface | None = None,
    accuracy: Accuracy | None = None,
    held_out_accuracy: Accuracy | None = None,
) -> xr.Dataset:
    """Evaluate loss and accuracy along the straight line through two points, and beyond them.

    phi(alpha) = L((1 - alpha) theta_a + alpha theta_b). barrier = max_{0 <= alpha <= 1} phi - max(phi(0), phi(1)) on the
    grid, >= 0; its bound holds where the loss is concave around its top. curvature at an end =
    phi'' / |theta_b - theta_a|^2 by the second difference; its bound is the change when the step is doubled. BatchNorm is
    as the surface says: with ``batchnorm="eval"`` buffers are interpolated within [0, 1] and kept beyond, which makes
    barriers of its own; choose ``"recalibrate"`` to estimate them anew at each alpha.

    Args:
        surface: of the training examples.
        a: theta_a [P], or (theta_a, its buffers) as `Trajectory.theta` and `buffers` give them.
        b: theta_b likewise.
        alphas: [A] ascending, with 0 and 1 inside; ``linspace(-1, 2, 31)`` if None.
        held_out: surface of held-out examples, for `held_out_loss`.
        accuracy: (theta, buffers) -> share of training examples classified rightly.
        held_out_accuracy: the same of held-out examples.

    Returns:
        Dataset over `alpha` and `end` (``"a"``, ``"b"``), as declared; distance in units of theta.

    Raises:
        ArgumentError: points that do not fit the surface, equal points, or alphas without 0 and 1 inside.

    Cost: A passes over each data set (2 A with ``"recalibrate"``).

    Source: Jastrzebski et al. 2017 (1711.04623), figure 2: alpha in [-1, 2], loss and accuracy.

    Example:
        >>> from sgdscope import landscapes
        >>> well = landscapes.DoubleWell(0.3, 2.0)
        >>> round(float(interpolate(well, well.well(-1), well.well(1))["barrier"]), 6)
        0.3
    """
    first, last = _state(surface, a, "a"), _state(surface, b, "b")
    length = float((last[0] - first[0]).norm())
    if length == 0:
        raise ArgumentError("b: the two points are the same; pass two different ones")
    grid = _grid(alphas)
    pair = (first[1], last[1]) if first[1] or last[1] else None
    line = surface.along(first[0], last[0] - first[0], grid.tolist(), pair)
    eps = float(torch.finfo(surface.theta().dtype).eps)
    height, missed = _barrier(grid, line.values, eps)
    bends, bounds = _ends(grid, line.values, length, eps)
    outside = None if held_out is None else held_out.along(first[0], last[0] - first[0], grid.tolist(), pair)
    values: dict[str, Any] = {"loss": line.values, "distance": length, "barrier": height, "curvature": bends}
    values |= _optional(outside, len(grid)) | _both(accuracy, held_out_accuracy, first, last, grid)
    values |= {f"{name}_outcome": np.where(np.isfinite(values[name]), 0, 2) for name, v in _SLICE.items() if v.reason}
    coords = {
        "alpha": ("alpha", grid, "place on the line, 0 at a and 1 at b"),
        "end": ("end", np.array(["a", "b"]), "which of the two points"),
    }
    told = measurement(_SLICE, values, coords)
    return told.assign_attrs(barrier_bound=missed, curvature_bound=bounds.tolist(), surface=str(surface.fingerprint()))


def _state(surface: Surface, point: State | Tensor, name: str) -> State:
    theta, buffers = point if isinstance(point, tuple) else (point, {})
    return _checked(surface, theta, name), buffers


def _optional(line: Line | None, count: int) -> dict[str, Array]:
    return {"held_out_loss": np.full(count, nan) if line is None else line.values}


def _both(accuracy: Accuracy | None, outside: Accuracy | None, a: State, b: State, grid: Array) -> dict[str, Array]:
    return {"accuracy": _accuracies(accuracy, a, b, grid), "held_out_accuracy": _accuracies(outside, a, b, grid)}


# --- the width of two minima ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Point:
    """What is measured at one of two points.

    Attributes:
        loss: L.
        gradient_norm: |grad L|, in loss/theta; 0 at a minimum.
        eigenvalues: [k] the algebraically largest of the Hessian, descending, in loss/theta^2.
        residuals: [k] |H v - lambda v|.
        trace: Tr H and its standard error.
        frobenius: |H|_F and its standard error.
        filter_curvature: mean second difference of the loss along random filter-normalised directions, in loss; does not
            change when filters are rescaled.
        variance: sigma^2 = Tr C / P of the gradient of one example and its standard error; NaN where no example has one.
    """

    loss: float
    gradient_norm: float
    eigenvalues: Array
    residuals: Array
    trace: tuple[float, float]
    frobenius: tuple[float, float]
    filter_curvature: tuple[float, float]
    variance: tuple[float, float]

    def retained(self, damping: float) -> Array:
        """The eigenvalues that are above the damping and known to be, value - residual > damping."""
        return self.eigenvalues[self.eigenvalues - self.residuals > damping]


@dataclass(frozen=True)
class Comparison:
    """Two points held against each other.

    Attributes:
        a: one point.
        b: the other.
        line: from `interpolate`.
        damping: delta; eigenvalues up to it are left out of log det.
        directions: how many eigenvalues of each point are in it.
        half_log_det: 1/2 log det of these, of a and of b.
        noise: n = lr sigma^2 / (2 S (1 - mu)) at the mean sigma^2 of the two; NaN where it is not known.
        threshold: of the noise, above which the higher point is preferred (`theory.noise_threshold`).
        reasons: why the law of Gibbs should not be read here; empty where nothing was seen against it.
        sentence: all of it in words.
    """

    a: Point
    b: Point
    line: xr.Dataset
    damping: float
    directions: int
    half_log_det: tuple[float, float]
    noise: float
    threshold: theory.Prediction
    reasons: tuple[str, ...]
    sentence: str

    def __repr__(self) -> str:
        """The sentence, and a line on each point."""
        lines = [f"Comparison: {self.sentence}"]
        for name, point in (("a", self.a), ("b", self.b)):
            top = number(point.eigenvalues[0]) if point.eigenvalues.size else "not known"
            lines.append(
                f"  {name}: loss {number(point.loss)}, |gradient| {number(point.gradient_norm)}, largest eigenvalue {top}, "
                f"trace {with_error(*point.trace)}"
            )
        return "\n".join(lines)

    def to_json(self) -> dict[str, Any]:
        """All numbers as JSON types; those that JSON has not (NaN, infinity) are None."""
        line = {name: self.line[name].values.tolist() for name in ("loss", "held_out_loss", "curvature")}
        line |= {name: float(self.line[name]) for name in ("distance", "barrier")} | {"alpha": self.line["alpha"].values.tolist()}
        told: dict[str, Any] = {"sentence": self.sentence, "a": asdict(self.a), "b": asdict(self.b), "line": line}
        told |= {"damping": self.damping, "directions": self.directions, "half_log_det": self.half_log_det}
        told |= {"noise": self.noise, "threshold": self.threshold.value, "reasons": list(self.reasons)}
        return {name: plain(value) for name, value in told.items()}


def filter_normalised(surface: Surface, theta: Tensor, generator: torch.Generator) -> Tensor:
    """Draw a random direction whose filters have the norms of theta's.

    d_f <- d_f |theta_f| / |d_f| for each filter f (a row of a tensor of two or more dimensions); 0 in vectors and scalars
    (biases, scales of a norm). Where the surface has no layout, theta is one filter.

    Args:
        surface: with the layout.
        theta: [P].
        generator: of the draw.

    Returns:
        d [P], float64.

    Source: Li et al. 2018 (1712.09913), section 4.
    """
    raw = torch.randn(len(theta), dtype=torch.float64, generator=generator)
    layout = getattr(surface, "layout", None)
    if layout is None:
        scaled: Tensor = raw * (theta.double().norm() / raw.norm())
        return scaled
    result = torch.zeros_like(raw)
    for where, shape in zip(layout.slices, layout.shapes, strict=True):
        if len(shape) >= 2:
            rows, norms = raw[where].view(shape[0], -1), theta[where].double().view(shape[0], -1).norm(dim=1, keepdim=True)
            result[where] = (rows * norms / rows.norm(dim=1, keepdim=True)).reshape(-1)
    return result


def _filter_curvature(surface: Surface, state: State, directions: int, seed: int) -> tuple[float, float]:
    h, found = FILTER_STEP, []
    for index in range(directions):
        d = filter_normalised(surface, state[0], private(seed, _FILTERS, index))
        values = surface.along(state[0], d, [-h, 0.0, h], (state[1], state[1]) if state[1] else None).values
        found.append(float(values[0] - 2 * values[1] + values[2]) / h**2)
    return float(np.mean(found)), float(np.std(found, ddof=1) / np.sqrt(directions)) if directions > 1 else nan


def _variance(surface: Surface, state: State, seed: int) -> tuple[float, float]:
    """Tr C / P over the examples' gradients about their mean (n - 1), and its standard error over the examples."""
    told = surface.fingerprint()
    count = told.get("examples")
    if not count or count < 2 or told.get("batchnorm") == "batch":  # in batch mode no example has a gradient of its own
        return nan, nan
    chosen = torch.randperm(count, generator=private(seed, _PROBES))[: min(count, EXAMPLES)].sort().values
    total = torch.zeros(len(state[0]), dtype=torch.float64)
    for rows in surface.gradient_chunks(state[0], chosen, state[1] or None):
        total += rows.double().sum(0)
    mean, squares = total / len(chosen), []
    for rows in surface.gradient_chunks(state[0], chosen, state[1] or None):
        squares.append((rows.double() - mean).square().sum(1))
    own = torch.cat(squares) / len(mean)
    n = len(own)
    return float(own.sum()) / (n - 1), float(own.std()) / n**0.5


def measured(surface: Surface, point: State | Tensor, *, k: int = 10, probes: int = 30, seed: int = 0) -> Point:
    """Measure loss, gradient, curvature and noise at one point.

    Args:
        surface: of the training examples.
        point: theta [P], or (theta, buffers).
        k: eigenvalues, at most P.
        probes: Hessian products for trace and Frobenius norm.
        seed: of all random probes.

    Returns:
        The numbers, see `Point`.

    Raises:
        ArgumentError: a point that does not fit the surface.

    Cost: about 3 k Hessian products and `probes` more, 12 passes for the slices, two gradients of up to 512 examples.
    """
    theta, buffers = _state(surface, point, "point")
    with surface.linearized(theta, buffers or None) as h:
        loss, gradient, size = h.value, h.gradient, len(theta)
        options: dict[str, Any] = {"dtype": gradient.dtype, "device": gradient.device}
        start = gradient if bool(gradient.any()) else None
        pairs = spectra.eigenpairs(h.hvp, size, min(k, size), start=start, generator=private(seed, 0), **options)
        trace, norm, _ = spectra.moments(h.hvp, size, products=probes, known=pairs, generator=private(seed, 1), **options)
    state = theta, buffers
    return Point(
        float(loss), float(gradient.norm()), pairs.values.numpy(), pairs.residuals.numpy(), (trace.value, trace.stderr),
        (norm.value, norm.stderr), _filter_curvature(surface, state, 4, seed), _variance(surface, state, seed),
    )  # fmt: skip


def compare(
    surface: Surface,
    a: State | Tensor,
    b: State | Tensor,
    *,
    lr: float,
    batch_size: int,
    momentum: float = 0.0,
    k: int = 10,
    damping: float = 0.0,
    probes: int = 30,
    alphas: Sequence[float] | None = None,
    seed: int = 0,
) -> Comparison:
    """Hold two checkpoints against each other: height, width, the way between, and which of them SGD's noise would prefer.

    half_log_det = 1/2 sum_{i <= m} log lambda_i over the m largest eigenvalues, m the smaller count of eigenvalues above the
    damping of the two points, at most k: directions that are flat at both cancel only if they are equally flat, which is not
    known. The threshold is that of isotropic noise, n* = (L_high - L_low) / (half_log_det_low - half_log_det_high), held
    against n = lr sigma^2 / (2 S (1 - mu)).

    Args:
        surface: of the training examples.
        a: theta_a [P], or (theta_a, buffers).
        b: theta_b likewise.
        lr: of the SGD that is asked about, > 0.
        batch_size: of it, >= 1.
        momentum: of heavy ball, 0 <= mu < 1.
        k: eigenvalues at each point.
        damping: delta >= 0, in loss/theta^2.
        probes: Hessian products for trace and Frobenius norm.
        alphas: of the line, see `interpolate`.
        seed: of all random probes.

    Returns:
        The comparison, with the reasons against reading it as a law of Gibbs.

    Raises:
        ArgumentError: out of range, or points that do not fit the surface.

    Cost: per point about 3 k Hessian products and `probes` more, 12 passes for the slices, two gradients of up to 512
        examples; and the line.

    Source: Jastrzebski et al. 2017 (1711.04623), section 3 and equation 4; specification, section 5.4.
    """
    _check(lr, batch_size, momentum, k, damping)
    states = _state(surface, a, "a"), _state(surface, b, "b")
    line = interpolate(surface, *states, alphas=alphas)
    points = [measured(surface, state, k=k, probes=probes, seed=seed) for state in states]
    kept = [point.retained(damping) for point in points]
    m = min(len(values) for values in kept)
    widths = tuple(0.5 * sum(log(v) for v in values[:m]) for values in kept)
    variance = float(np.mean([point.variance[0] for point in points]))
    noise = theory.temperature(variance, lr=lr, batch_size=batch_size, momentum=momentum) if variance > 0 else nan
    basins = [theory.Basin(point.loss, values[:m]) for point, values in zip(points, kept, strict=True) if m]
    threshold = theory.noise_threshold(*basins) if m else theory.Prediction(inf, reasons=("no eigenvalue is above the damping",))
    reasons = (*threshold.reasons, *_against(points, lr))
    found = Comparison(points[0], points[1], line, damping, m, (widths[0], widths[1]), noise, threshold, reasons, "")
    return _with_sentence(found, lr, batch_size)


def _check(lr: float, batch_size: int, momentum: float, k: int, damping: float) -> None:
    for name, value, fine, wanted in (
        ("lr", lr, lr > 0, "> 0"),
        ("batch_size", batch_size, batch_size >= 1, ">= 1"),
        ("momentum", momentum, 0 <= momentum < 1, "0 <= momentum < 1"),
        ("k", k, k >= 1, "at least 1"),
        ("damping", damping, damping >= 0, ">= 0"),
    ):
        if not (fine and isfinite(value)):
            raise ArgumentError(f"{name}: expected {wanted}, got {value}")


def _against(points: Sequence[Point], lr: float) -> tuple[str, ...]:
    """What speaks against the law of Gibbs with one temperature at these points."""
    found = []
    gap = abs(points[0].loss - points[1].loss)
    for name, point in zip("ab", points, strict=True):
        if (drop := lr * point.gradient_norm**2) > gap:
            found.append(f"{name} is no minimum: a step of descent lowers the loss by {drop:.2g}, more than they differ")
        if point.eigenvalues.size and (edge := lr * float(point.eigenvalues[0])) > 1:
            found.append(f"lr lambda_1 is {edge:.2g} at {name}: the equation in continuous time does not hold")
    low, high = sorted(point.variance[0] for point in points)
    if isfinite(low) and high > 1.5 * low:
        found.append(f"the noise differs by the factor {high / low:.2g} between the two: there is no one temperature")
    return tuple(found)


def _with_sentence(c: Comparison, lr: float, batch_size: int) -> Comparison:
    gap, wider = c.a.loss - c.b.loss, c.half_log_det[1] - c.half_log_det[0]
    height = f"{'higher' if gap >= 0 else 'lower'} by {abs(gap):.3g}"
    width = (
        f"{'flatter' if wider >= 0 else 'sharper'} by {abs(wider):.3g} of 1/2 log det (top {c.directions}, delta = {c.damping:g})"
    )
    told = f"a is {height}, {width}, with a barrier of {float(c.line['barrier']):.3g} between"
    if not isfinite(c.noise):
        place = "the noise of SGD is not known here"
    elif c.threshold.value == inf:
        place = "no isotropic noise prefers the higher one"
    else:
        side = "above" if c.noise > c.threshold.value else "below"
        place = f"SGD at lr / batch size = {lr:g} / {batch_size} has n = {c.noise:.3g}, {side} the predicted crossover"
        place += f" {c.threshold.value:.3g}"
    doubts = f"; but {'; '.join(c.reasons)}" if c.reasons and c.threshold.value != inf else ""
    values = {name: getattr(c, name) for name in c.__dataclass_fields__ if name != "sentence"}
    return Comparison(**values, sentence=f"{told}; {place}{doubts}")
