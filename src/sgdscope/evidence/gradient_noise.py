"""Runs whose gradient noise is looked at at the start and at the end, and what the claims about noise observe there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from math import nan
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from sgdscope import spectra, statistics
from sgdscope.contracts import Evidence, scalars
from sgdscope.covariance import Covariance, DrawnBatches
from sgdscope.covariance.gathering import gather
from sgdscope.directions import private
from sgdscope.errors import DataError, Outcome, SurfaceError
from sgdscope.evidence.protocols import SIZES, described
from sgdscope.records import Surface, Trajectory, windows

Array = NDArray[np.float64]
SEEDS = 5
BATCH_SIZES = (4, 16, 64, 256)
DRAWN = 48  # batches of each size whose gradients are evaluated
RESAMPLED = 2000  # batches of each size drawn from kept gradients, for fourth moments
EXAMPLES, DIRECTIONS, TAIL = 1024, 10, 0.05


def _ends(preset: str) -> Callable[[int], list[dict[str, Any]]]:
    def runs(seed: int) -> list[dict[str, Any]]:
        size, found = SIZES[preset], []
        for s in range(1000 * seed, 1000 * seed + SEEDS):
            told = described(preset, s, size["lr"], size["batch_size"], data={"label_noise": 0.0})
            told["record"] = {"snapshots": {"kind": "bursts", "length": size["length"], "at": [0, size["at"][0]]}}
            found.append(told | {"name": f"{told['name']}-ends"})
        return found

    return runs


ENDS = {preset: _ends(preset) for preset in SIZES}  # true labels: where a part is random the model is not well specified


def at_end(run: Evidence, name: str, place: int = -1) -> float:
    """A variable of the quantity noise at the last measured point.

    Args:
        run: the evidence.
        name: over `step`.
        place: 0 for the first point.

    Returns:
        The value; NaN if it was not measured or its outcome is not ok.
    """
    data = run.measured.get("noise", xr.Dataset())
    if name not in data or data[name].size < 2:
        return nan
    fine = f"{name}_outcome" not in data or int(data[f"{name}_outcome"].values[place]) == Outcome.ok
    return float(data[name].values[place]) if fine else nan


def batches_and_steps(trajectory: Trajectory, surface: Surface, data_dir: Any = None) -> Mapping[str, Any]:  # ruff: ignore[unused-function-argument] - one signature for all observations
    """Look at the noise of batches and at the updates of the last window, at its first point.

    Args:
        trajectory: the walk.
        surface: L.
        data_dir: not used.

    Returns:
        ``{"gradient_noise": {...}}``: batch_size [b], trace [b] (of gradients of drawn batches, without replacement), examples;
        kurtosis [b] (median over the top eigenvectors of C), parameter_kurtosis, parameter_tail_index; eigenvalue [k],
        variance [k] (of updates along e_i), share (of their variance in the first 10), parameters. Empty without a window or
        without single examples.

    Cost: 192 gradients of batches, those of 1024 examples, about 40 Hessian products.
    """
    spans = windows(trajectory.snapshot_steps)
    examples = surface.fingerprint().get("examples")
    if not spans or not examples:
        return {}
    first, last = spans[-1]
    theta, buffers = trajectory.theta(first).double(), trajectory.buffers(first) or None
    sizes = [b for b in BATCH_SIZES if b <= examples / 2]
    try:
        mean = surface.value_and_grad(theta, buffers)[1].double().cpu()
        traces = [_trace(surface, theta, buffers, b, random=private(first, b)) for b in sizes]
        found = gather(surface, theta, buffers, mean, most=EXAMPLES, order=private(first, 1)).covariance
    except (SurfaceError, DataError):
        return {}
    told = {"batch_size": sizes, "trace": traces, "examples": int(examples), "parameters": len(theta)}
    told |= _tails(found, sizes, first, int(scalars(trajectory.steps, "batch_size", first, first + 1)[0])) if found else {}
    return {"gradient_noise": told | _updates(trajectory, surface, (first, last))}


def _trace(surface: Surface, theta: torch.Tensor, buffers: Any, size: int, *, random: torch.Generator) -> float:
    """Tr of the covariance of gradients of batches without replacement, from `DRAWN` of them."""
    examples = int(surface.fingerprint()["examples"])
    total, squares = torch.zeros_like(theta), 0.0
    for _ in range(DRAWN):
        rows = torch.randperm(examples, generator=random)[:size]
        g = surface.on_batch(surface.rows(rows)).value_and_grad(theta, buffers)[1].double().cpu()
        total += g
        squares += float(g.square().sum())
    return (squares - float(total.square().sum()) / DRAWN) / (DRAWN - 1)


def _tails(found: Covariance, sizes: list[int], step: int, recorded: int) -> dict[str, Any]:
    """Fourth moments of the noise of batches, and the tails over the parameters at the recorded batch size."""
    drawn = {b: DrawnBatches.draw(found, count=RESAMPLED, size=b, generator=private(step, b, 2)) for b in sizes}
    told = {b: one.tails(DIRECTIONS, TAIL) for b, one in drawn.items()}
    own = DrawnBatches.draw(found, count=8, size=recorded, generator=private(step, 3)).tails(1, TAIL)
    over = {name: float(own[f"parameter_{name}"][0]) for name in ("kurtosis", "tail_index")}
    return {"kurtosis": [float(np.nanmedian(t["batch_kurtosis"])) for t in told.values()]} | {
        f"parameter_{name}": value for name, value in over.items()
    }


def _updates(trajectory: Trajectory, surface: Surface, span: tuple[int, int]) -> dict[str, Any]:
    """Variance of the updates of a window along the top eigenvectors of H at its first point."""
    points = torch.stack([trajectory.theta(t).double() for t in range(span[0], span[1] + 1)])
    steps = points.diff(dim=0)
    steps = steps - steps.mean(0)
    with surface.linearized(points[0], trajectory.buffers(span[0]) or None) as h:
        g = h.gradient
        place: dict[str, Any] = {"dtype": g.dtype, "device": g.device, "generator": private(span[0], 4)}
        pairs = spectra.eigenpairs(h.hvp, len(g), DIRECTIONS, tolerance=1e-2, start=g if float(g.norm()) > 0 else None, **place)
    if pairs.outcome != Outcome.ok or len(pairs.values) < DIRECTIONS:
        return {}
    along = (steps @ pairs.vectors.double().cpu()).square().sum(0) / (len(steps) - 1)
    total = float(steps.square().sum()) / (len(steps) - 1)
    share = float(along.sum()) / total if total > 0 else nan
    return {"eigenvalue": pairs.values.tolist(), "variance": along.tolist(), "share": share}


def power(x: Any, y: Any) -> float:
    """Slope of log y over log x where both are positive; NaN with fewer than three."""
    xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
    good = (xs > 0) & (ys > 0) if xs.shape == ys.shape else np.zeros(len(xs), bool)
    return statistics.slope(np.log(xs[good]), np.log(ys[good]))[0] if good.sum() >= 3 else nan


def seen(run: Evidence, name: str) -> Any:
    """What `batches_and_steps` observed under a name; NaN if nothing."""
    return (run.extra.get("gradient_noise") or {}).get(name, nan)


def made(
    seed: int,
    *,
    seeds: int = SEEDS,
    start: float = 0.85,
    end: float = 0.97,
    scale: float = 300.0,
    batch: float = -1.0,
    kurtosis: float = 20.0,
    falls: float = 1.0,
    tail: float = 2.0,
    share: float = 0.8,
    follows: float = 1.0,
) -> list[Evidence]:
    """Evidence made of numbers with scatter from seed to seed, for controls.

    Args:
        seed: of the scatter.
        seeds: how many runs.
        start: correlation of C with H at the start.
        end: at the end.
        scale: noise scale at the end, in examples.
        batch: power of the batch size with which the trace goes, apart from the factor without replacement.
        kurtosis: excess at batches of 4.
        falls: power of the inverse batch size with which it falls.
        tail: Hill's index over the parameters.
        share: of the updates' variance within the sharpest directions.
        follows: power of the eigenvalue with which the variance goes.

    Returns:
        The runs.
    """
    found = []
    for s in range(100 * seed, 100 * seed + seeds):
        random = np.random.default_rng(s)
        columns: dict[str, Any] = {"correlation": [start, end] + 0.01 * random.standard_normal(2)}
        columns |= {"slope": [0.6, 0.9] + 0.05 * random.standard_normal(2), "trace": np.array([8.0, 3.0])}
        columns |= {"noise_scale": [60.0, scale] * np.exp(0.1 * random.standard_normal(2)), "loss": np.array([2.3, 0.3])}
        noise = xr.Dataset({name: ("step", np.asarray(v)) for name, v in columns.items()}, {"step": [0, 180]})
        sizes, n = np.array(BATCH_SIZES), 1437
        jitter = np.exp(0.05 * random.standard_normal((3, len(sizes))))
        values = 10.0 ** np.linspace(1, -0.5, DIRECTIONS)
        told = {"batch_size": sizes.tolist(), "examples": n, "parameters": 17000}
        told["trace"] = (3.0 * sizes**batch * (n - sizes) / (n - 1) * jitter[0]).tolist()
        told["kurtosis"] = (3 + kurtosis * (sizes / 4) ** -falls * jitter[1]).tolist()
        told |= {"parameter_kurtosis": 30 * jitter[2, 0], "parameter_tail_index": tail * jitter[2, 1]}
        scatter = np.exp(0.3 * random.standard_normal(DIRECTIONS))
        told |= {"eigenvalue": values.tolist(), "variance": (1e-4 * values**follows * scatter).tolist()}
        told["share"] = share + 0.03 * random.standard_normal()
        steps = xr.Dataset({"loss": ("step", [2.3, 0.3])}, {"step": [0, 180]})
        settings = {"lr": 0.15, "batch_size": 64, "seed": s}
        found.append(Evidence(settings, steps, {"noise": noise}, {"gradient_noise": told}))
    return found
