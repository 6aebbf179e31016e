"""The shape of the curvature along runs: growth, peak and its time, early width, what a cut does; and runs with known shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import nan
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sgdscope.contracts import Evidence, Verdict
from sgdscope.evidence.parts import RUNS
from sgdscope.evidence.sharpness import POINTS, Path, made, paths, place
from sgdscope.evidence.steps import EARLY, FAR, total
from sgdscope.evidence.windows import Trend, trend

Array = NDArray[np.float64]
REACHED = 0.9  # of the peak: reached there, so that a plateau is not late by its last wiggle; chosen before any run
SHAPED = 1.25  # lambda_1 changes by less than this factor: no sharpening to speak of; chosen before any run
PEAKED = 0.9  # of the updates: a peak after it may be the end of the run rather than a peak; chosen before any run


def reached(p: Path) -> int:
    """The update at whose point a run first has `REACHED` of its largest value.

    Args:
        p: a path.

    Returns:
        The update t; 0 is the start of the run.
    """
    return int(p.steps[np.flatnonzero(p.values >= REACHED * p.values[p.peak])[0]])


def length(p: Path) -> int:
    """The number of updates of a path's run; at least one past its last point."""
    return max(total(p.run), int(p.steps[-1]) + 1)


def half_eta(p: Path) -> float:
    """The learning rate times lambda_1 / 2 at the largest lambda_1 of a run."""
    return p.lr * float(p.values.max()) / 2


def together(found: Sequence[Path]) -> tuple[NDArray[np.int64], Array]:
    """The values of several runs at the points that all of them have, as logarithms; points where one is not > 0 are left out.

    Args:
        found: paths, at least one.

    Returns:
        ([m] steps, [runs, m] logarithms).
    """
    common = sorted(set.intersection(*(set(p.steps[p.values > 0].tolist()) for p in found)))
    rows = [np.log(p.values[np.isin(p.steps, common)]) for p in found]
    return np.array(common, np.int64), np.array(rows, np.float64).reshape(len(found), len(common))


def growth(found: Sequence[Path]) -> tuple[Array, Array]:
    """Logarithms of growth to the peak and of what becomes of it, where the peak was chosen by the other runs.

    The largest of noisy values is above the first one even where nothing grows. So run s is read at the point after the
    first at which the mean of log lambda over the other runs is largest: without growth its mean excess is then zero.

    Args:
        found: paths, at least two, with at least two points in common.

    Returns:
        (log lambda(peak) - log lambda(first), log lambda(last) - log lambda(peak)), [runs] each.
    """
    _, rows = together(found)
    up, down = [], []
    for s, row in enumerate(rows):
        peak = 1 + int(np.delete(rows, s, axis=0).mean(0)[1:].argmax())
        up.append(row[peak] - row[0])
        down.append(row[-1] - row[peak])
    return np.array(up), np.array(down)


def early(p: Path) -> float:
    """The mean of lambda over time in the first `EARLY` of the updates, by the trapezoid rule between measured points.

    Args:
        p: a path.

    Returns:
        The mean; NaN with fewer than three points there.
    """
    inside = p.steps <= EARLY * length(p)
    if inside.sum() < 3:
        return nan
    t = p.steps[inside]
    return float(np.trapezoid(p.values[inside], t) / (t[-1] - t[0]))


# --- one setting varied ------------------------------------------------------------------------------------------------------


def varied(
    claim: str,
    runs: Sequence[Evidence],
    *,
    by: Literal["lr", "batch_size"],
    rising: bool,
    value: Callable[[Path], float],
    text: str,
    peak: bool = True,
) -> Verdict:
    """Judge how a number of the path follows the learning rate or the batch size, the other one held fixed, over seeds.

    At the calm end (the smallest learning rate, the largest batch) the walk is limited least. Not in regime: no sharpening
    there (`peak`), or the sharpest walk stays below `FAR` of the edge. A peak that lies in the last part of its run
    (`PEAKED`) may not be one: at the calm end the true number lies farther on the claim's side, so that only the opposite
    answer is put out of regime; at another setting the claim is.

    Args:
        claim: its id.
        runs: of at least 3 settings with at least 3 seeds each.
        by: the setting.
        rising: whether the number is claimed to rise with it.
        value: path -> positive number.
        text: of the number, in words.
        peak: whether the number is about the peak.

    Returns:
        The verdict; the statistic is the power of the setting.
    """
    found = [p for p in paths(runs) if np.isfinite(getattr(p, by))]
    fixed = "batch_size" if by == "lr" else "lr"
    settings = sorted({getattr(p, by) for p in found})
    regime = place(found)
    table = {(getattr(p, by), getattr(p, fixed), p.seed): value(p) for p in found}
    power = trend(table)
    if power is None:
        reason = f"{len(settings)} settings of {by} with a path are at hand, 3 with {RUNS} seeds each are needed"
        return Verdict(claim, "undecided", nan, (nan, nan), len(found), 0.0, reason, regime)
    calm = settings[0] if by == "lr" else settings[-1]
    if why := _outside([p for p in found if getattr(p, by) == calm], found, peak=peak):
        return Verdict(claim, "not in regime", nan, (nan, nan), len(found), 0.0, why, regime)
    flipped = {"supported": "contradicted", "contradicted": "supported"}
    answer = power.answer if rising else flipped.get(power.answer, "undecided")
    late = sorted({getattr(p, by) for p in found if peak and p.steps[p.peak] >= PEAKED * length(p)})
    open_end = bool(set(late) - {calm}) or (bool(late) and answer == "contradicted")
    reason = _reason(text, by, power, {x: [value(p) for p in found if getattr(p, by) == x] for x in settings})
    if late:
        told = ", ".join(f"{x:g}" for x in late)
        reason += f"; at {by} {told} a peak lies in the last {1 - PEAKED:.0%} of its run and may not be one"
    final: Any = "not in regime" if open_end else answer
    edge = {f"{x:g}": _median([half_eta(p) for p in found if getattr(p, by) == x]) for x in settings}
    details: dict[str, Any] = {"values": [[*key, v] for key, v in table.items()], "not_peaked": late, "half_eta_sharpness": edge}
    details |= {"p": [power.p_rising, power.p_falling], "at_equal_loss": _at_equal_loss(found, by)}
    return Verdict(claim, final, power.slope, power.interval, power.seeds, 0.0, reason, regime, power.smallest_p, details)


def _at_equal_loss(found: Sequence[Path], by: str) -> list[float] | None:
    """Power of lambda_1 at the lowest training loss that all runs reach, with its interval: what remains without progress."""
    level = max(float(np.nanmin(p.losses)) if np.isfinite(p.losses).any() else nan for p in found)
    fixed = "batch_size" if by == "lr" else "lr"
    power = trend({(getattr(p, by), getattr(p, fixed), p.seed): p.at_loss(level) for p in found})
    return None if power is None else [power.slope, *power.interval]


def _reason(text: str, by: str, power: Trend, values: Mapping[float, Sequence[float]]) -> str:
    told = ", ".join(f"{float(np.mean(v)):.3g} at {x:g}" for x, v in values.items())
    ends = f"[{power.interval.low:.2f}, {power.interval.high:.2f}]"
    return f"{text} is {told}; it goes with the power {power.slope:.2f} {ends} of {by}"


def _outside(calm: Sequence[Path], found: Sequence[Path], *, peak: bool) -> str:
    """Why a sweep tells nothing; empty if it does."""
    rise = _median([float(p.values.max() / p.values[0]) for p in calm if p.values[0] > 0])
    if peak and not rise >= SHAPED:
        return f"where the walk is limited least lambda_1 grows by a factor of {rise:.3g}, below {SHAPED:g}: no sharpening"
    cells = {(p.lr, p.batch_size) for p in found}
    nearest = max(_median([half_eta(p) for p in found if (p.lr, p.batch_size) == x]) for x in cells)
    if not nearest >= FAR:
        return f"the sharpest setting has lr lambda_1 / 2 = {nearest:.3g}, below {FAR:g}: the learning rate limits nothing"
    return ""


def _median(values: Sequence[float]) -> float:
    return float(np.median(values)) if len(values) else nan


# --- runs with known shapes ---------------------------------------------------------------------------------------------------

TIMES = (0, 2, 5, 12, 24, 44, 63, 83, 102, 122, 141, 161, 180, 200, 219, 239)


def curve(first: float, peak: float, when: float, *, fall: float = 0.3) -> Array:
    """lambda_1 at `TIMES`: from `first` along an exponential to `peak` at update `when`, then down with the power `fall`."""
    t = np.asarray(TIMES, np.float64)
    up = first * (peak / first) ** np.minimum(1.0, t / when)
    return np.asarray(up * np.maximum(1.0, t / when) ** -fall)


def drawn(settings: Mapping[str, Any], lambda_1: Array, *, others: Array | None = None, scatter: float = 0.08) -> Evidence:
    """A run whose lambda_1 is a given curve, with lognormal scatter of the run and of each point, and k = 5 eigenvalues.

    Args:
        settings: lr, batch_size, seed.
        lambda_1: at `TIMES`.
        others: what the second eigenvalue follows in place of lambda_1 / 2.
        scatter: standard deviation of the logarithms.

    Returns:
        The evidence.
    """
    random = np.random.default_rng([int(settings["seed"]), round(1e6 * settings["lr"]), int(settings["batch_size"])])
    run = np.exp(scatter * random.standard_normal())
    second = lambda_1 / 2 if others is None else others
    rows = np.stack([lambda_1, *(second * 0.8**i for i in range(4))], 1)
    rows = rows * run * np.exp(scatter * random.standard_normal(rows.shape))
    losses = (2.3 * np.exp(-np.asarray(TIMES) / 150)).tolist()
    return made(settings, TIMES, rows, losses)


def seeds_of(seed: int, count: int) -> range:
    """Distinct seeds of runs for one seed of a control."""
    return range(100 * seed, 100 * seed + count)


def grid(seed: int, by: str, shape: Callable[[float], Array], count: int = 5, factor: float = 1.0) -> list[Evidence]:
    """Runs at three learning rates or batch sizes; shape(x) is lambda_1 where the setting is x times the middle one."""
    told = []
    for s in seeds_of(seed, count):
        for x in (0.25, 1.0, 4.0):
            settings: dict[str, Any] = {"lr": 0.1 * factor, "batch_size": 64, "seed": s}
            settings[by] *= x
            told.append(drawn(settings, shape(x)))
    return told


def long_enough(runs: Sequence[Evidence]) -> list[Path]:
    """The paths of runs with at least `POINTS` positive values of lambda_1."""
    return [p for p in paths(runs) if int((p.values > 0).sum()) >= POINTS]
