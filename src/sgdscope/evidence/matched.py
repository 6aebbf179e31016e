"""Runs compared at equal training loss: the losses that they share, their values there, and trends over lr and batch size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgdscope.contracts import Evidence, Verdict
from sgdscope.evidence.sharpness import Path, path, paths, place
from sgdscope.evidence.windows import LOSS_SHARE, Trend, trend, weakest
from sgdscope.statistics import spearman

Array = NDArray[np.float64]
Table = dict[tuple[float, float, int], float]  # (lr, batch size, seed) -> number

WHOLE = (0.0, 0.2, 0.4, 0.6, 0.8)  # along the path: shares of the range of common losses, 0 the lowest
LOWEST = (0.0,)
COMMON = 0.1  # runs are comparable if they share a range of losses of at least this share of the initial one
SEEDS = 3


def common_losses(found: Sequence[Path], shares: Sequence[float]) -> Array | None:
    """Training losses that all of some runs pass through.

    From the largest of the runs' lowest losses (but not below `LOSS_SHARE` of the initial loss, where that of cross entropy
    takes the curvature with it) to the smallest of their first ones.

    Args:
        found: paths of the runs, none empty.
        shares: of the range, 0 the lowest loss.

    Returns:
        [shares]; None if the range is smaller than `COMMON` of the initial loss.
    """
    high, initial = min(float(p.losses[0]) for p in found), max(p.initial for p in found)
    low = max(max(float(p.losses.min()) for p in found), LOSS_SHARE * initial)
    return low + np.asarray(shares) * (high - low) if high - low >= COMMON * initial else None


def at_levels(found: Path, levels: Array) -> float:
    """The geometric mean of a path's values where its loss first falls to each level.

    Between measured points the logarithm is straight in the loss: lambda_1 grows manifold while the loss falls.

    Args:
        found: the path.
        levels: training losses.

    Returns:
        The mean; NaN if a level is not reached, or a value beside it not positive.
    """
    logs = replace(found, values=np.log(np.where(found.values > 0, found.values, nan)))
    return float(np.exp(np.mean([logs.at_loss(float(level)) for level in levels])))


@dataclass(frozen=True)
class Matched:
    """A grid of runs at equal training loss.

    Attributes:
        tables: variable -> its values.
        levels: seed -> training losses of the comparison, of the seeds that share some.
        grid: the paths of the first variable.
    """

    tables: Mapping[str, Table]
    levels: Mapping[int, Array]
    grid: list[Path]

    @property
    def seeds(self) -> set[int]:
        """Of all runs."""
        return {p.seed for p in self.grid}


def matched(runs: Sequence[Evidence], names: Sequence[str], shares: Sequence[float] = WHOLE) -> Matched:
    """Take variables of the curvature of a grid of runs at the losses that the runs of each seed share.

    Args:
        runs: the evidence; full-batch runs are left out, having no batch size on the grid.
        names: variables over `step`; the first one decides which runs have a path.
        shares: of the range of common losses.

    Returns:
        The grid.
    """
    grid = [p for p in paths(runs, names[0]) if np.isfinite(p.batch_size)]
    levels: dict[int, Array] = {}
    for seed in sorted({p.seed for p in grid}):
        common = common_losses([p for p in grid if p.seed == seed], shares)
        if common is not None:
            levels[seed] = common
    kept = [p for p in grid if p.seed in levels]
    tables = {name: {(p.lr, p.batch_size, p.seed): at_levels(path(p.run, name), levels[p.seed]) for p in kept} for name in names}
    return Matched(tables, levels, grid)


def powers(table: Mapping[tuple[float, float, int], float], sign: float = 1.0) -> dict[str, Trend | None]:
    """How a number follows lr and 1 / batch size, the other one held fixed.

    Args:
        table: the numbers.
        sign: -1 to follow the inverse, which rises where the number falls.

    Returns:
        ``{"lr": ..., "inverse_batch": ...}``, each None if the grid or the seeds do not suffice.
    """
    turned = {key: v**sign if v > 0 else nan for key, v in table.items()}
    return {"lr": trend(turned), "inverse_batch": trend({(1 / b, lr, s): v for (lr, b, s), v in turned.items()})}


def with_noise(claim: str, runs: Sequence[Evidence], signs: Mapping[str, float], shares: Sequence[float] = WHOLE) -> Verdict:
    """Judge that variables of the curvature follow the noise, at equal training loss.

    Each variable must follow both the learning rate and the inverse batch size, in the direction of its sign.

    Args:
        claim: its id.
        runs: a grid of learning rates, batch sizes and seeds.
        signs: variable -> 1 if it should rise with the noise, -1 if it should fall.
        shares: of the range of common losses.

    Returns:
        The verdict; the statistic is the least of the powers, each counted in the direction claimed.
    """
    found = matched(runs, tuple(signs), shares)
    regime = place(found.grid)
    if len(found.seeds) >= SEEDS > len(found.levels):
        apart = len(found.seeds) - len(found.levels)
        reason = f"in {apart} of {len(found.seeds)} seeds the runs share less than {COMMON:.0%} of the initial training loss"
        return Verdict(claim, "not in regime", nan, (nan, nan), len(found.grid), 0.0, reason, regime)
    trends = {name: powers(found.tables[name], sign) for name, sign in signs.items()}
    parts = [t for both in trends.values() for t in both.values() if t is not None]
    if len(parts) < 2 * len(signs):
        reason = f"an ordered trend needs 3 learning rates and 3 batch sizes with {SEEDS} seeds each, at a training loss that "
        reason += f"they share and with numbers that converged; {len(found.levels)} seeds are at hand"
        return Verdict(claim, "undecided", nan, (nan, nan), len(found.grid), 0.0, reason, regime)
    least = min(parts, key=lambda t: t.slope)
    told = {name: {by: _told(t, signs[name]) for by, t in both.items()} for name, both in trends.items()}
    words = [f"{name} ~ lr^{told[name]['lr'][0]:+.2f} batch^{-told[name]['inverse_batch'][0]:+.2f}" for name in signs]
    losses = np.concatenate(list(found.levels.values()))
    reason = f"at equal training loss ({losses.min():.3g} to {losses.max():.3g}, {least.seeds} seeds) {', '.join(words)}"
    details: dict[str, Any] = {
        "powers": told,
        "at_equal_updates": _at_the_end(found.grid, signs),
        "levels": _each_level(found, signs, shares),
    }
    details["losses"] = {str(seed): levels.tolist() for seed, levels in found.levels.items()}
    details["rank_correlation_with_distance"] = _with_distance(found, next(iter(signs)))
    verdict = weakest(t.answer for t in parts)
    return Verdict(claim, verdict, least.slope, least.interval, least.seeds, 0.0, reason, regime, least.smallest_p, details)


def _told(found: Trend | None, sign: float) -> list[float]:
    """Power of the variable itself, and its interval."""
    if found is None:
        return [nan, nan, nan]
    return [sign * found.slope, *sorted(sign * end for end in found.interval)]


def _at_the_end(grid: Sequence[Path], signs: Mapping[str, float]) -> dict[str, Any]:
    """The same powers at equal updates: the last points of the paths."""
    told = {}
    for name, sign in signs.items():
        ends = [path(p.run, name) for p in grid]
        both = powers({(p.lr, p.batch_size, p.seed): float(p.values[-1]) for p in ends if len(p.values)}, sign)
        told[name] = {by: _told(t, sign) for by, t in both.items()}
    return told


def _each_level(found: Matched, signs: Mapping[str, float], shares: Sequence[float]) -> list[dict[str, Any]]:
    """The powers of the first variable at each level alone."""
    sign = next(iter(signs.values()))
    told = []
    for i, share in enumerate(shares):
        table = {
            (p.lr, p.batch_size, p.seed): at_levels(p, found.levels[p.seed][[i]]) for p in found.grid if p.seed in found.levels
        }
        told.append({"share": share} | {by: _told(t, sign) for by, t in powers(table, sign).items()})
    return told


def _with_distance(found: Matched, name: str) -> float:
    """Mean over seeds of the rank correlation of a variable with |theta_t - theta_0|, over the runs at equal loss."""
    told = []
    for seed, levels in found.levels.items():
        pairs = []
        for p in (p for p in found.grid if p.seed == seed and "distance" in p.run.steps):
            distances = np.asarray(p.run.steps["distance"].values, np.float64)
            moved = replace(p, values=distances[np.searchsorted(p.run.steps["step"].values, p.steps)])
            pairs.append((found.tables[name][p.lr, p.batch_size, seed], moved.at_loss(float(levels[0]))))
        finite = np.array([pair for pair in pairs if np.isfinite(pair).all()])
        if len(finite) >= 3:
            told.append(spearman(*finite.T)[0])
    kept = [r for r in told if np.isfinite(r)]
    return float(np.mean(kept)) if kept else nan
