"""Where runs end and where they were best: curvature and held-out accuracy there, speed, runs of equal epochs, made runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import nan, sqrt
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from sgdscope import statistics
from sgdscope.contracts import Answer, Evidence, Verdict
from sgdscope.evidence.protocols import SIZES, Chosen, described, path_of
from sgdscope.evidence.sharpness import Path, made, place
from sgdscope.evidence.windows import LOSS_SHARE, weakest

Array = NDArray[np.float64]

EPOCHS: Mapping[str, int] = {"quick": 20, "standard": 3, "paper": 100}  # paper: as many as `SIZES` has, 45000 updates of 100
EXAMPLES: Mapping[str, int] = {"quick": 1437, "standard": 60000, "paper": 45000}  # of the training sets that `SIZES` names
STOPS = 16  # measured points of a run of equal epochs, about


def at_equal_epochs(chosen: Sequence[Chosen]) -> dict[str, Callable[[int], list[dict[str, Any]]]]:
    """Make runs of plain SGD, without weight decay, that see the same number of examples, in each preset.

    The stochastic differential equation counts time in lr x updates, so that runs of equal lr / batch size are at equal times
    after equal epochs, not after equal updates (Three Factors specification, section 4.1b).

    Args:
        chosen: factors on the preset's learning rate and batch size, seed, further options.

    Returns:
        Preset -> seed -> descriptions.
    """

    def of(preset: str) -> Callable[[int], list[dict[str, Any]]]:
        return lambda seed: [of_epochs(preset, 1000 * seed + s, lr, batch, **more) for lr, batch, s, more in chosen]

    return {preset: of(preset) for preset in SIZES}


def of_epochs(
    preset: str, seed: int, lr: float, batch: float, *, longer: float = 1.0, share: float = 1.0, stops: int = STOPS, **more: Any
) -> dict[str, Any]:
    """Describe one run of plain SGD of a set number of epochs, without weight decay, followed along its whole path.

    Args:
        preset: quick, standard or paper.
        seed: of the run.
        lr: factor on the preset's learning rate.
        batch: factor on the preset's batch size.
        longer: factor on the number of epochs.
        share: of the training set, its head.
        stops: measured points, about.
        **more: see `protocols.described`.

    Returns:
        The description, see `Experiment`.
    """
    size, epochs = SIZES[preset], EPOCHS[preset] * longer
    examples, batch_size = round(EXAMPLES[preset] * share), max(1, round(size["batch_size"] * batch))
    if share != 1:
        more["data"] = more.get("data", {}) | {"train": examples}
    told = described(preset, seed, size["lr"] * lr, batch_size, at="path", **more)
    updates = round(epochs * examples / batch_size)
    record = {"snapshots": told["record"]["snapshots"] | {"at": path_of(updates, stops)}}
    phases = [phase | {"updates": updates, "weight_decay": 0.0} for phase in told["phases"]]
    return told | {"name": f"{told['name']}-epochs{epochs:g}", "phases": phases, "record": record}


# --- reading ---------------------------------------------------------------------------------------------------------------


def held_out(run: Evidence) -> dict[int, float]:
    """The held-out accuracy at the measured points of a run.

    Args:
        run: observed by `evidence.accuracy`.

    Returns:
        Step -> accuracy; empty where there are no held-out data.
    """
    told = run.extra.get("accuracy", {})
    return {int(t): float(a) for t, a in zip(told.get("step", ()), told.get("test", ()), strict=True) if np.isfinite(a)}


def best(found: Path) -> int | None:
    """Which measured point has the best held-out accuracy, the first of equals.

    Args:
        found: a path of the run.

    Returns:
        Its index in the path; None where no point has one. The choice looks at the held-out data, for all runs alike.
    """
    known = held_out(found.run)
    scores = np.array([known.get(int(t), -1.0) for t in found.steps])
    return int(scores.argmax()) if len(scores) and scores.max() >= 0 else None


def last_accuracy(run: Evidence) -> float:
    """The held-out accuracy at the last measured point; NaN if there is none."""
    known = held_out(run)
    return known[max(known)] if known else nan


def vanished(found: Path) -> bool:
    """Whether the training loss ends below `LOSS_SHARE` of its initial value, where cross entropy takes curvature with it."""
    return bool(len(found.losses)) and found.losses[-1] < LOSS_SHARE * found.initial


def area(found: Path, share: float) -> float:
    """Mean training loss over the first part of a run, by the trapezoidal rule over updates between the measured points.

    Args:
        found: the path; its last point counts as the end of the run.
        share: of the updates, in (0, 1].

    Returns:
        The mean loss; NaN with fewer than two points.
    """
    if len(found.steps) < 2:
        return nan
    end = found.steps[0] + share * (found.steps[-1] - found.steps[0])
    inside = found.steps < end
    t = np.append(found.steps[inside], end)
    y = np.append(found.losses[inside], np.interp(end, found.steps, found.losses))
    return float(np.trapezoid(y, t) / (end - found.steps[0]))


def reached(found: Path, level: float) -> float:
    """The update at which the training loss first falls to a level, between the measured points; NaN if it never does."""
    return replace(found, values=found.steps.astype(np.float64)).at_loss(level)


def kendall(x: ArrayLike, y: ArrayLike, given: ArrayLike | None = None) -> float:
    """Kendall's rank correlation, with a third number held fixed if there is one.

    tau_b; partial: (t_xy - t_xz t_yz) / sqrt((1 - t_xz^2) (1 - t_yz^2)).

    Args:
        x: [n], n >= 2.
        y: [n].
        given: z [n], or None.

    Returns:
        tau; NaN where one of them is constant, or z orders x or y completely.

    Source: Kendall 1942 (partial rank correlation).
    """
    if given is None:
        xs, ys = np.asarray(x, np.float64), np.asarray(y, np.float64)
        return float(stats.kendalltau(xs, ys).statistic) if min(np.ptp(xs), np.ptp(ys)) > 0 else nan
    xy, xz, yz = kendall(x, y), kendall(x, given), kendall(y, given)
    rest = (1 - xz**2) * (1 - yz**2)
    return (xy - xz * yz) / sqrt(rest) if rest > 1e-12 else nan


# --- verdicts --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Part:
    """One of several comparisons that a claim consists of.

    Attributes:
        name: of what.
        statistic: the number held against the threshold.
        interval: its own.
        answer: what it says alone.
        n: independent units.
    """

    name: str
    statistic: float
    interval: tuple[float, float]
    answer: Answer
    n: int

    @property
    def told(self) -> list[float]:
        """Statistic and interval, for details."""
        return [self.statistic, *self.interval]


def equivalent(name: str, values: ArrayLike, margin: float) -> Part:
    """One comparison: a mean equals 0 within a margin, as two one-sided tests show or an interval outside of it refutes.

    Args:
        name: of what.
        values: [n], independent, n >= 2.
        margin: > 0, fixed beforehand.

    Returns:
        Supported where `statistics.tost` gives p < 0.05, contradicted where the 95 % interval lies outside, else undecided.

    Raises:
        ArgumentError: a value is not finite, or the margin is not above 0.
    """
    array = np.asarray(values, np.float64)
    mean, _, interval = statistics.mean_interval(array)
    apart = interval.low > margin or interval.high < -margin
    answer: Answer = "supported" if statistics.tost(array, margin) < 0.05 else "contradicted" if apart else "undecided"
    return Part(name, mean, interval, answer, len(array))


def decisive(parts: Sequence[Part], distance: Callable[[Part], float]) -> tuple[Answer, Part]:
    """The verdict on parts that must all hold, and the part on which it rests.

    Args:
        parts: at least one.
        distance: how far a part's statistic lies on the side claimed.

    Returns:
        The weakest answer, and of the parts that gave it the one with the least distance.
    """
    verdict = weakest(p.answer for p in parts)
    return verdict, min((p for p in parts if p.answer == verdict), key=distance)


def silent(claim: str, verdict: Answer, threshold: float, reason: str, found: Sequence[Path] = ()) -> Verdict:
    """A verdict that rests on no statistic: undecided for want of data, or not in regime.

    Args:
        claim: its id.
        verdict: which of the two.
        threshold: that would have been used.
        reason: in one sentence.
        found: paths that were looked at.

    Returns:
        The verdict, with a NaN statistic.
    """
    return Verdict(claim, verdict, nan, (nan, nan), len(found), threshold, reason, place(found))


# --- evidence made of numbers ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """What a made run does, before scatter.

    Attributes:
        sharp: lambda_1 at its peak, a third of the run in, and until the end.
        speed: rate at which the training loss falls, in units of 4 a run.
        floor: training loss at which it ends.
        accuracy: held-out accuracy at which it ends; None for no held-out data.
        updates: of the run.
    """

    sharp: float = 30.0
    speed: float = 1.0
    floor: float = 0.6
    accuracy: float | None = 0.9
    updates: int = 240


def run_made(settings: Mapping[str, Any], shape: Shape, random: np.random.Generator, scatter: float = 0.1) -> Evidence:
    """Make a run of which everything is known: curvature with its trace and norm, training loss, held-out accuracy.

    lambda_1 rises from a tenth to its peak, then stays; Tr H = 4 lambda_1, |H|_F = 1.5 lambda_1; loss
    floor + (2.3 - floor) exp(-4 speed x), x the share of the run; accuracy a (1 - exp(-20 x)).

    Args:
        settings: of the run: lr, batch_size, seed, ...
        shape: its numbers.
        random: of the scatter: log-normal of the curvature (one factor a run, and a fifth of it a point) and of the speed,
            and a tenth of it, normal, of the accuracy.
        scatter: standard deviation of the logarithm.

    Returns:
        The evidence.
    """
    steps = np.array(path_of(shape.updates, 24))
    x = steps / steps[-1]
    own, speed, right = random.normal(size=3) * scatter
    rise = np.minimum(1.0, 0.1 + 2.7 * x) * np.exp(own + scatter / 5 * random.normal(size=len(x)))
    losses = shape.floor + (2.3 - shape.floor) * np.exp(-4 * shape.speed * np.exp(speed) * x)
    top = shape.sharp * rise
    found = made(settings, steps.tolist(), top[:, None] * np.array([1.0, 0.7, 0.5, 0.35, 0.25]), losses.tolist())
    curvature = found.measured["curvature"].assign(trace=("step", 4 * top), frobenius=("step", 1.5 * top))
    if shape.accuracy is None:
        return replace(found, measured={"curvature": curvature})
    share = np.clip((shape.accuracy + right / 10) * (1 - np.exp(-20 * x)), 0, 1)
    return replace(found, measured={"curvature": curvature}, extra={"accuracy": {"step": steps.tolist(), "test": share.tolist()}})
