"""Runs of the same lr / batch size held against each other: training curves at equal epochs, ends, margins of the seeds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan

import numpy as np

from sgdscope import statistics
from sgdscope.contracts import Answer, Evidence
from sgdscope.evidence.endpoints import Part, Shape, last_accuracy, run_made
from sgdscope.evidence.sharpness import Path, paths
from sgdscope.evidence.windows import weakest

MARGIN = 2.0  # standard deviations of the seeds that count as equal (specification, section 5.3)
ACCURACY = 0.01  # and the least margin of the accuracy; section 5.3 leaves it open, chosen here
CLOSE = 0.05  # relative difference of ratios and of numbers of examples that rounding may make
GRID = np.linspace(0.025, 1, 40)  # shares of the run at which curves are compared
MEASURES = ("early curve", "late curve", "norm at the end", "accuracy at the end")

Setting = tuple[float, float]  # learning rate, batch size
Table = dict[Setting, dict[int, Path]]


def settings_of(runs: Sequence[Evidence], name: str = "frobenius") -> Table:
    """The runs by setting and seed.

    Args:
        runs: the evidence; full-batch runs are left out.
        name: the variable of the paths.

    Returns:
        (lr, batch size) -> seed -> path.
    """
    table: Table = {}
    for p in paths(runs, name):
        if isfinite(p.batch_size):
            table.setdefault((p.lr, p.batch_size), {})[p.seed] = p
    return table


def seen(found: Path) -> float:
    """Examples that a run has seen at its last measured point, one a place in a batch."""
    return float(found.steps[-1]) * found.batch_size


def numbers(found: Path) -> dict[str, float]:
    """What is compared of a run.

    Args:
        found: the path of its norm.

    Returns:
        Measure -> mean log training loss over the first and the second half of the run, log norm and held-out accuracy at
        the end; NaN where it is not known.
    """
    x = found.steps / found.steps[-1]
    curve = np.interp(GRID, x, np.log(np.maximum(found.losses, 1e-300)))
    norm = float(np.log(found.values[-1])) if found.values[-1] > 0 else nan
    parts = (curve[GRID <= 0.5].mean(), curve[GRID > 0.5].mean(), norm, last_accuracy(found.run))
    return dict(zip(MEASURES, map(float, parts), strict=True))


@dataclass(frozen=True)
class Rescaled:
    """A base setting and the settings that are compared with it, at equal epochs.

    Attributes:
        base: (lr, batch size), the least.
        factors: beta -> the setting of beta lr and beta batch size.
        alone: the setting of the least beta's lr at the base's batch size; None where there is none.
        table: the runs.
        seeds: that the base has.
    """

    base: Setting
    factors: Mapping[float, Setting]
    alone: Setting | None
    table: Table
    seeds: list[int]

    def compared(self, setting: Setting) -> list[Part]:
        """Hold a setting against the base, measure by measure, over the seeds that both have.

        Difference of each measure, in units of `MARGIN` standard deviations of the base over its seeds (of the accuracy at
        least `ACCURACY`). Equal: both one-sided t tests at 5 % say within 1; different: the 95 % interval lies outside of 1.

        Args:
            setting: learning rate and batch size.

        Returns:
            One part a measure that all of the seeds know.
        """
        own, base = self.table[setting], self.table[self.base]
        both = [s for s in self.seeds if s in own]
        table = {s: (numbers(own[s]), numbers(base[s])) for s in both}
        parts = []
        for name in MEASURES:
            spread = [numbers(base[s])[name] for s in self.seeds]
            difference = np.array([a[name] - b[name] for a, b in table.values()])
            if len(difference) < 2 or not (np.isfinite(spread).all() and np.isfinite(difference).all()):
                continue
            least = ACCURACY if name == MEASURES[-1] else 1e-12
            units = difference / max(MARGIN * float(np.std(spread, ddof=1)), least)
            mean, _, interval = statistics.mean_interval(units)
            parts.append(Part(name, mean, interval, _equal(units, interval), len(both)))
        return parts

    def answer(self, setting: Setting) -> Answer:
        """Supported if a setting equals the base in each measure, contradicted if it differs in one."""
        parts = self.compared(setting)
        return weakest(p.answer for p in parts) if parts else "undecided"


def _equal(units: np.ndarray[tuple[int, ...], np.dtype[np.float64]], interval: tuple[float, float]) -> Answer:
    if statistics.tost(units, 1.0) < 0.05:
        return "supported"
    return "contradicted" if interval[0] > 1 or interval[1] < -1 else "undecided"


def rescaled(runs: Sequence[Evidence]) -> Rescaled | None:
    """Find the settings of equal lr / batch size and equal epochs.

    Args:
        runs: of one network and data set.

    Returns:
        The comparison from the least learning rate and batch size on; None if no run has a path.
    """
    table = settings_of(runs)
    if not table:
        return None
    lr, batch = base = min(table, key=lambda s: (s[1], s[0]))
    near = {
        s
        for s, own in table.items()
        if all(abs(seen(p) / seen(q) - 1) < CLOSE for p in own.values() for q in table[base].values())
    }
    ratios = {b / batch: (a, b) for a, b in near if b > batch and abs(a / lr / (b / batch) - 1) < CLOSE}
    factors = dict(sorted(ratios.items()))
    alone = next((s for s in near if factors and s[1] == batch and abs(s[0] / factors[min(factors)][0] - 1) < CLOSE), None)
    return Rescaled(base, factors, alone, table, sorted(table[base]))


# --- runs made of numbers ----------------------------------------------------------------------------------------------------


def diagonal(*, sharp: float = 3.0, broken: float = 8.0, seeds: int = 5) -> Callable[[int], list[Evidence]]:
    """Control: runs of (0.1 beta, 8 beta), beta = 1, 2, 4, 8, alike but for scatter below `broken`, and the lr of beta = 2 alone.

    Args:
        sharp: lambda_1 at the end; from `broken` on and for the lr alone it is half, and the loss falls half as fast.
        broken: the factor from which on the runs differ.
        seeds: how many.

    Returns:
        Seed -> evidence.
    """

    def runs(seed: int) -> list[Evidence]:
        random, found = np.random.default_rng(seed), []
        for s in range(100 * seed, 100 * seed + seeds):
            own, speed, right = random.normal(size=3) * (0.1, 0.1, 0.01)
            for lr, batch in ((0.1, 8), (0.2, 16), (0.4, 32), (0.8, 64), (0.2, 8)):
                factor = 0.5 if batch >= 8 * broken or lr * 80 != batch else 1.0
                updates = round(20 * 1437 / batch)
                shape = Shape(factor * sharp * np.exp(own), factor * np.exp(speed), 0.6, 0.85 + right, updates)
                found.append(run_made({"lr": lr, "batch_size": batch, "seed": s}, shape, random, 0.02))
        return found

    return runs


def grid(
    lr_power: float, batch_power: float, worse: float = 0.05, *, seeds: int = 5, known: bool = True, floor: float = 0.6
) -> Callable[[int], list[Evidence]]:
    """Control: three learning rates by three batch sizes; curvature at the end follows powers of both, accuracy its logarithm.

    Args:
        lr_power: of the learning rate.
        batch_power: of the batch size.
        worse: accuracy lost by a factor e of the curvature.
        seeds: how many.
        known: whether there are held-out data.
        floor: training loss at the end, 0.6 for a loss that has not vanished.

    Returns:
        Seed -> evidence.
    """

    def runs(seed: int) -> list[Evidence]:
        random, found = np.random.default_rng(seed), []
        for lr in (0.05, 0.1, 0.2):
            for batch in (16, 32, 64):
                size = lr_power * np.log(lr / 0.1) + batch_power * np.log(batch / 32)
                right = 0.85 - worse * size if known else None
                shape = Shape(30 * np.exp(size), 1.5, floor, right, round(20 * 1437 / batch))
                told = {"lr": lr, "batch_size": batch}
                found += [run_made(told | {"seed": s}, shape, random, 0.05) for s in range(100 * seed, 100 * seed + seeds)]
        return found

    return runs
