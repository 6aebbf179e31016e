"""Where multiplying learning rate and batch size together breaks down: the first factor that costs accuracy, its predictors."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from math import exp, inf, isfinite, log, nan, sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from sgdscope import statistics
from sgdscope.contracts import Evidence
from sgdscope.errors import SurfaceError
from sgdscope.evidence.accuracy import accuracy
from sgdscope.evidence.endpoints import Shape, last_accuracy, run_made
from sgdscope.evidence.rescaling import ACCURACY, CLOSE, MARGIN, MEASURES, Rescaled, Setting, numbers, rescaled, seen
from sgdscope.evidence.sharpness import place
from sgdscope.evidence.windows import mean_finite
from sgdscope.records import Surface, Trajectory

Array = NDArray[np.float64]
EXAMPLES = 512  # whose gradients tell the noise scale
PREDICTORS = ("lr lambda_1", "batch / examples", "noise scale / batch", "updates an epoch")


def observed(trajectory: Trajectory, surface: Surface, data_dir: Any = None) -> Mapping[str, Any]:
    """Measure accuracy along a run and the simple noise scale at its middle.

    B = Tr C / |G|^2 with both unbiased over m examples: |G|^2 = sum_{i != j} g_i . g_j / (m (m - 1)),
    Tr C = sum_i |g_i - mean|^2 / (m - 1).

    Args:
        trajectory: a run of an experiment.
        surface: of its training examples.
        data_dir: folder of the real data files.

    Returns:
        What `evidence.accuracy` gives, and ``{"noise_scale": {"step": t, "examples": m, "value": B}}``; B is NaN where the
        gradients of single examples cannot be had (BatchNorm in batch mode) or |G|^2 is not positive.

    Cost: up to 512 gradients of single examples beside the accuracies.

    Source: McCandlish et al. 2018, equation 2.9.
    """
    points = trajectory.snapshot_steps
    step = int(points[np.abs(points - points[-1] / 2).argmin()])
    told: dict[str, Any] = {"step": step, "examples": 0, "value": nan}
    with suppress(SurfaceError):
        told |= _scale(trajectory, surface, step)
    return {**accuracy(trajectory, surface, data_dir), "noise_scale": told}


def _scale(trajectory: Trajectory, surface: Surface, step: int) -> dict[str, Any]:
    chosen = torch.arange(min(EXAMPLES, int(surface.fingerprint()["examples"])))
    total, squares, m = torch.zeros(len(surface.theta()), dtype=torch.float64), 0.0, len(chosen)
    for rows in surface.gradient_chunks(trajectory.theta(step).double(), chosen, trajectory.buffers(step) or None):
        total += rows.double().sum(0)
        squares += float(rows.double().square().sum())
    together = float(total @ total)
    signal, noise = (together - squares) / (m * (m - 1)), (squares - together / m) / (m - 1)
    return {"examples": m, "value": noise / signal if signal > 0 else nan}


# --- the factor at which it breaks -------------------------------------------------------------------------------------------


def breaking(curve: Mapping[float, float], level: float) -> float:
    """The first factor at which a number falls below a level, on straight lines in log beta.

    Args:
        curve: beta -> number, at least one.
        level: of the number.

    Returns:
        beta; the least one if the number begins below, infinity if it never falls below.
    """
    betas = sorted(curve)
    if curve[betas[0]] < level:
        return betas[0]
    for a, b in pairwise(betas):
        if curve[b] < level:
            return exp(log(a) + (curve[a] - level) / (curve[a] - curve[b]) * log(b / a))
    return inf


@dataclass(frozen=True)
class Ladder:
    """Runs of (beta lr, beta batch size) on a training set of one size, at equal epochs.

    Attributes:
        examples: N.
        found: the settings.
        accuracies: beta -> seed -> held-out accuracy at the end; beta = 1 is the base.
    """

    examples: int
    found: Rescaled
    accuracies: Mapping[float, Mapping[int, float]]

    @property
    def seeds(self) -> list[int]:
        """Of which every factor has been run."""
        return sorted(set.intersection(*(set(own) for own in self.accuracies.values())))

    @property
    def level(self) -> float:
        """Mean accuracy of the base less max(0.01, 2 standard deviations of its seeds); infinite if these are unknown."""
        base = list(self.accuracies[1.0].values())
        return float(np.mean(base)) - max(ACCURACY, MARGIN * float(np.std(base, ddof=1))) if len(base) > 1 else inf

    def star(self, seed: int | None = None) -> float:
        """The first factor that falls below `level`: of one seed, or of the means over seeds.

        Args:
            seed: of the curve; None for the means.

        Returns:
            beta*; infinity if no factor does.
        """
        seeds = self.seeds if seed is None else [seed]
        return breaking({beta: float(np.mean([own[s] for s in seeds])) for beta, own in self.accuracies.items()}, self.level)

    def predictors(self) -> dict[str, float]:
        """What might tell beta* beforehand, at beta = 1, means over seeds."""
        base = list(self.found.table[self.found.base].values())
        size = self.found.base[1]
        scales = [float((p.run.extra.get("noise_scale") or {}).get("value", nan)) for p in base]
        told = (float(place(base)["eta_sharpness"]), size / self.examples, mean_finite(scales) / size, self.examples / size)
        return dict(zip(PREDICTORS, told, strict=True))


def ladders(runs: Sequence[Evidence]) -> list[Ladder]:
    """Order runs by the size of their training set, and find the settings of equal lr / batch size in each.

    Args:
        runs: with `examples` in their settings.

    Returns:
        By size; those with at least two factors above 1.
    """
    sizes = sorted({int(run.settings["examples"]) for run in runs if "examples" in run.settings})
    told = []
    for size in sizes:
        found = rescaled([run for run in runs if run.settings.get("examples") == size])
        if found is not None and len(found.factors) >= 2:
            settings = {1.0: found.base} | dict(found.factors)
            ends = {beta: {s: last_accuracy(p.run) for s, p in found.table[at].items()} for beta, at in settings.items()}
            told.append(Ladder(size, found, ends))
    return told


def predicted(found: Sequence[Ladder], stars: Mapping[tuple[int, int], float]) -> dict[str, dict[str, float]]:
    """Fit log beta* = a + b log predictor over training sets and seeds, for each predictor alone.

    Args:
        found: the training sets.
        stars: (examples, seed) -> beta*, finite.

    Returns:
        Predictor -> its power, the ends of the 95 % interval (as if the seeds were independent), and r2; none where it does
        not vary.
    """
    told = {}
    for name in PREDICTORS:
        known = {ladder.examples: ladder.predictors()[name] for ladder in found}
        rows = np.array([(log(known[n]), log(star)) for (n, _), star in stars.items() if known[n] > 0])
        if len(rows) > 2 and np.ptp(rows[:, 0]) > 0:
            power, _, (low, high), r2 = statistics.slope(*rows.T)
            told[name] = {"power": power, "low": low, "high": high, "r2": r2}
    return told


# --- two rules held against each other ---------------------------------------------------------------------------------------


def rooted(found: Rescaled) -> dict[float, Setting]:
    """The settings of (sqrt(beta) lr, beta batch size) at the epochs of the base, beta > 1."""
    lr, batch = found.base
    base = seen(next(iter(found.table[found.base].values())))
    return {
        b / batch: (a, b)
        for a, b in sorted(found.table)
        if b > batch
        and abs(a / lr / sqrt(b / batch) - 1) < CLOSE
        and all(abs(seen(p) / base - 1) < CLOSE for p in found.table[a, b].values())
    }


def dispersions(found: Rescaled, settings: Sequence[Setting]) -> dict[int, dict[str, float]]:
    """How far the runs of one seed lie apart over settings, measure by measure.

    Standard deviation (n - 1) over the base and the settings, in standard deviations of the base over its seeds (of the
    accuracy at least half of `ACCURACY`).

    Args:
        found: with the runs.
        settings: beside the base.

    Returns:
        Seed -> measure -> dispersion, of the seeds that have all settings; measures that are not known are left out.
    """
    chosen = [found.base, *settings]
    table = {s: [numbers(found.table[at][s]) for at in chosen] for s in found.seeds if all(s in found.table[at] for at in chosen)}
    base = [numbers(p) for p in found.table[found.base].values()]
    told: dict[int, dict[str, float]] = {s: {} for s in table}
    for name in MEASURES:
        spread = float(np.std([own[name] for own in base], ddof=1)) if len(base) > 1 else nan
        unit = max(spread, ACCURACY / MARGIN if name == MEASURES[-1] else 1e-12)
        values = {s: float(np.std([row[name] for row in rows], ddof=1)) / unit for s, rows in table.items()}
        if isfinite(spread) and all(map(isfinite, values.values())):
            for s, value in values.items():
                told[s][name] = value
    return told


# --- runs made of numbers ----------------------------------------------------------------------------------------------------


def ladder(stars: Mapping[int, float], *, seeds: int = 5, known: bool = True) -> Callable[[int], list[Evidence]]:
    """Control: runs of (0.05 beta, 8 beta), beta = 1 .. 32, whose accuracy falls by 0.05 a doubling from a factor on.

    Args:
        stars: size of the training set -> the factor.
        seeds: how many.
        known: whether there are held-out data.

    Returns:
        Seed -> evidence.
    """

    def runs(seed: int) -> list[Evidence]:
        random, found = np.random.default_rng(seed), []
        for n, star in stars.items():
            for beta in (1, 2, 4, 8, 16, 32):
                for s in range(100 * seed, 100 * seed + seeds):
                    right = 0.85 - 0.05 * max(0.0, np.log2(beta / star))
                    shape = Shape(4.0, 1.0, 0.6, right if known else None, round(20 * n / (8 * beta)))
                    told = {"lr": 0.05 * beta, "batch_size": 8 * beta, "seed": s, "examples": n}
                    found.append(run_made(told, shape, random, 0.03))
        return found

    return runs


def rules(linear: float, root: float, *, sharp: float = 3.0, seeds: int = 5) -> Callable[[int], list[Evidence]]:
    """Control: runs under lr ~ batch size and lr ~ sqrt(batch size), whose curvature and speed follow powers of beta.

    Args:
        linear: the power under lr ~ batch size.
        root: under lr ~ sqrt(batch size).
        sharp: lambda_1 at the end of the base.
        seeds: how many.

    Returns:
        Seed -> evidence.
    """

    def runs(seed: int) -> list[Evidence]:
        random, found = np.random.default_rng(seed), []
        rows = [(0.1 * b, 8 * b, b**linear) for b in (1, 2, 4)] + [(0.1 * sqrt(b), 8 * b, b**root) for b in (2, 4)]
        for s in range(100 * seed, 100 * seed + seeds):
            own, speed, right = random.normal(size=3) * (0.1, 0.05, 0.005)
            for lr, batch, factor in rows:
                shape = Shape(sharp * factor * exp(own), exp(speed) / factor, 0.6, 0.85 + right, round(11520 / batch))
                found.append(run_made({"lr": lr, "batch_size": batch, "seed": s}, shape, random, 0.03))
        return found

    return runs
