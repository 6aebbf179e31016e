"""The claims S1-S5, S17 and S18: the curvature along the path of SGD (Jastrzebski et al. 2019).

Thresholds were written before any run. Where the paper gives no number they are this project's, said on their line.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log, nan
from typing import Any

import numpy as np

from sgdscope import statistics
from sgdscope.contracts import Answer, Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence import shapes
from sgdscope.evidence.parts import RUNS, Part, joint
from sgdscope.evidence.shapes import (
    REACHED,
    SHAPED,
    curve,
    drawn,
    growth,
    half_eta,
    length,
    long_enough,
    reached,
    seeds_of,
    varied,
)
from sgdscope.evidence.sharp_runs import BASE, BY_BATCH, BY_LR, CUTS
from sgdscope.evidence.sharpness import POINTS, Path, path, place
from sgdscope.evidence.steps import FAR
from sgdscope.evidence.windows import LOSS_SHARE

PAPER = "Jastrzebski et al. 2019 (arXiv 1807.05031)"
HALF = 0.5  # S1: the peak is in the first half of the run
PAIRS = 5  # S17: paired seeds where two settings are compared
QUANTITIES: Mapping[str, Mapping[str, Any]] = {"curvature": {"k": 5}}


def _none(claim_id: str, answer: Answer, found: Sequence[Path], reason: str) -> Verdict:
    return Verdict(claim_id, answer, nan, (nan, nan), len(found), 0.0, reason, place(found))


def _base(seed: int, lambda_1: Any, count: int = 5, others: Any = None) -> list[Evidence]:
    """Runs of one setting with a known curve."""
    settings = [{"lr": 0.1, "batch_size": 64, "seed": s} for s in seeds_of(seed, count)]
    return [drawn(told, lambda_1, others=others) for told in settings]


@claim(
    "S1",
    sentence="Along SGD the largest eigenvalue of the Hessian first grows, peaks early, and then falls or stays.",
    source=Source(PAPER, "abstract and introduction"),
    scope="sweep",
    statistic=(
        "factor from the start to the peak, read at the time at which the other seeds peak; "
        f"share of the run after which {REACHED:.0%} of the peak is reached"
    ),
    threshold=f"> 1 and < {HALF}, over at least {RUNS} seeds",
    quantities=QUANTITIES,
    experiments=BASE,
    controls=Controls(
        lambda seed: _base(seed, curve(2.0, 12.0, 50.0)),
        lambda seed: _base(seed, curve(12.0, 12.0, 1.0, fall=0.5)),
        lambda seed: _base(seed, curve(2.0, 12.0, 50.0), 2),
        lambda seed: _base(seed, curve(30.0, 60.0, 50.0)),
    ),
)
def grows_and_peaks(runs: Sequence[Evidence]) -> Verdict:
    """Judge S1. The largest of noisy values lies above the first one even without growth, hence the time of the other seeds.

    A run that starts above the edge, lr lambda_1 / 2 > 1, has no room to grow: out of regime. That the end is not above the
    peak says nothing, as the peak is the largest value; that it is reached early does.

    Args:
        runs: of at least three seeds.

    Returns:
        The verdict.
    """
    found = long_enough(runs)
    kept = [p for p in found if not p.lr * p.values[0] / 2 >= 1]
    if len(kept) < RUNS <= len(found):
        reason = f"{len(found) - len(kept)} of {len(found)} runs start above the edge, where lambda_1 has no room to grow"
        return _none("S1", "not in regime", found, reason)
    if len({p.seed for p in kept}) < RUNS:
        return _none("S1", "undecided", found, f"{len(kept)} runs with a path are at hand, {RUNS} seeds are needed")
    up, down = growth(kept)
    shares = [reached(p) / length(p) for p in kept]
    parts = [
        Part("lambda_1 grows by a factor of", up.tolist(), logs=True),
        Part("share of the run to its peak", shares, HALF, above=False),
    ]
    details = {
        "peak_over_first": [float(p.values.max() / p.values[0]) for p in kept],
        "last_over_peak": np.exp(down).tolist(),
        "peak_at": [int(p.steps[p.peak]) for p in kept],
        "half_eta_sharpness_at_peak": [half_eta(p) for p in kept],
    }
    after = f"then changes by a factor of {float(np.exp(down.mean())):.3g} to the end; "
    return joint("S1", parts, place=place(kept), lead=after, details=details)


@claim(
    "S2",
    sentence="Several of the largest eigenvalues rise and fall together with the largest one.",
    source=Source(PAPER, 'abstract: "the largest eigenvalues"'),
    scope="sweep",
    statistic="rank correlation of lambda_1(t) with lambda_i(t), i = 2..5, mean over seeds: the smallest",
    threshold=f"> 0 for each, over at least {RUNS} seeds",
    quantities=QUANTITIES,
    experiments=BASE,
    controls=Controls(
        lambda seed: _base(seed, curve(2.0, 12.0, 50.0)),
        lambda seed: _base(seed, curve(2.0, 12.0, 50.0), others=3.0 / curve(2.0, 12.0, 50.0)),
        lambda seed: _base(seed, curve(2.0, 12.0, 50.0), 2),
        lambda seed: [drawn(dict(r.settings), curve(5.0, 5.0, 5.0, fall=0.0), scatter=0.02) for r in _base(seed, curve(2, 3, 9))],
    ),
)
def move_together(runs: Sequence[Evidence]) -> Verdict:
    """Judge S2, a weak claim: ordered eigenvalues of pure noise correlate too. It fails where some go the other way.

    Args:
        runs: of at least three seeds, with several eigenvalues.

    Returns:
        The verdict.
    """
    found = long_enough(runs)
    kept = [p for p in found if p.values.max() >= SHAPED * p.values.min()]
    if len(kept) < RUNS <= len(found):
        reason = f"in {len(found) - len(kept)} of {len(found)} runs lambda_1 changes by less than a factor of {SHAPED:g}"
        return _none("S2", "not in regime", found, reason)
    ranks = min((p.run.measured["curvature"].sizes.get("rank", 1) for p in kept), default=1)
    if len({p.seed for p in kept}) < RUNS or ranks < 2:
        reason = f"{len(kept)} runs with {ranks} eigenvalue(s) are at hand, {RUNS} seeds with at least 2 are needed"
        return _none("S2", "undecided", found, reason)
    parts = [Part(f"rank correlation of lambda_{i + 1}", [_correlation(p, i) for p in kept]) for i in range(1, ranks)]
    return joint("S2", parts, place=place(kept))


def _correlation(first: Path, rank: int) -> float:
    """Spearman's rank correlation of lambda_1 with another eigenvalue at the points where both converged."""
    other = path(first.run, "eigenvalue", rank=rank)
    common = np.intersect1d(first.steps, other.steps)
    if len(common) < POINTS:
        return nan
    return statistics.spearman(first.values[np.isin(first.steps, common)], other.values[np.isin(other.steps, common)])[0]


def _peak(p: Path) -> float:
    return float(p.values.max())


def _count(p: Path) -> float:
    """Updates until the peak is reached, counted from 1."""
    return float(reached(p) + 1)


@claim(
    "S3",
    sentence="The peak of the largest eigenvalue is lower for a larger learning rate.",
    source=Source(PAPER, "abstract"),
    scope="sweep",
    statistic="slope of log lambda_peak over log lr at fixed batch size, within seeds; Jonckheere's test",
    threshold="< 0",
    quantities=QUANTITIES,
    experiments=BY_LR,
    controls=Controls(
        lambda seed: shapes.grid(seed, "lr", lambda x: curve(2.0, 12.0 * x**-0.5, 50.0)),
        lambda seed: shapes.grid(seed, "lr", lambda x: curve(2.0, 12.0 * x**0.5, 50.0)),
        lambda seed: shapes.grid(seed, "lr", lambda x: curve(2.0, 12.0 * x**-0.5, 50.0), 2),
        lambda seed: shapes.grid(seed, "lr", lambda x: curve(2.0 / x**0.3, 2.0 / x**0.3, 5.0)),
    ),
)
def lower_for_larger_lr(runs: Sequence[Evidence]) -> Verdict:
    """Judge S3. Full-batch descent at its edge gives the power -1."""
    return varied("S3", runs, by="lr", rising=False, value=_peak, text="the peak of lambda_1")


@claim(
    "S4",
    sentence="The peak of the largest eigenvalue is lower for a smaller batch.",
    source=Source(PAPER, "abstract"),
    scope="sweep",
    statistic="slope of log lambda_peak over log batch size at fixed lr, within seeds; Jonckheere's test",
    threshold="> 0",
    quantities=QUANTITIES,
    experiments=BY_BATCH,
    controls=Controls(
        lambda seed: shapes.grid(seed, "batch_size", lambda x: curve(2.0, 12.0 * x**0.4, 50.0)),
        lambda seed: shapes.grid(seed, "batch_size", lambda x: curve(2.0, 12.0 * x**-0.4, 50.0)),
        lambda seed: shapes.grid(seed, "batch_size", lambda x: curve(2.0, 12.0 * x**0.4, 50.0), 2),
        lambda seed: shapes.grid(seed, "batch_size", lambda x: curve(2.0, 12.0 * x**0.4, 50.0), factor=1e-3),
    ),
)
def lower_for_smaller_batch(runs: Sequence[Evidence]) -> Verdict:
    """Judge S4, at equal updates (quick, standard) or equal epochs (paper)."""
    return varied("S4", runs, by="batch_size", rising=True, value=_peak, text="the peak of lambda_1")


@claim(
    "S5",
    sentence="The peak is reached after fewer updates with a larger learning rate.",
    source=Source(PAPER, "as recalled; not in the texts read"),
    scope="sweep",
    statistic=f"slope of the log of the update at which {REACHED:.0%} of the peak is reached over log lr, within seeds",
    threshold="< 0",
    quantities=QUANTITIES,
    experiments=BY_LR,
    controls=Controls(
        lambda seed: shapes.grid(seed, "lr", lambda x: curve(2.0, 12.0, 50.0 / x**0.8)),
        lambda seed: shapes.grid(seed, "lr", lambda x: curve(2.0, 12.0, 30.0 * x**0.8, fall=0.6)),
        lambda seed: shapes.grid(seed, "lr", lambda x: curve(2.0, 12.0, 50.0 / x**0.8), 2),
        lambda seed: shapes.grid(seed, "lr", lambda _: curve(2.0, 2.0, 5.0)),
    ),
)
def earlier_for_larger_lr(runs: Sequence[Evidence]) -> Verdict:
    """Judge S5. A peak at equal progress lr x updates would give the power -1 for that reason alone; only the sign is judged."""
    return varied("S5", runs, by="lr", rising=False, value=_count, text="the update at which the peak is reached")


@claim(
    "S18",
    sentence="A larger learning rate leads to a wider region already early in training.",
    source=Source(PAPER, "abstract of version 1"),
    scope="sweep",
    statistic="slope of the log of lambda_1, averaged over the first tenth of the updates, over log lr, within seeds",
    threshold="< 0",
    quantities=QUANTITIES,
    experiments=BY_LR,
    controls=Controls(
        lambda seed: shapes.grid(seed, "lr", lambda x: curve(2.0, 12.0 * x**-0.6, 20.0)),
        lambda seed: shapes.grid(seed, "lr", lambda x: curve(2.0, 12.0, 50.0 / x**0.8)),
        lambda seed: shapes.grid(seed, "lr", lambda x: curve(2.0, 12.0 * x**-0.6, 20.0), 2),
        lambda seed: shapes.grid(seed, "lr", lambda x: curve(2.0, 12.0 * x**-0.6, 20.0), factor=1e-3),
    ),
)
def wider_early(runs: Sequence[Evidence]) -> Verdict:
    """Judge S18, at equal updates: a larger learning rate has made more progress by then, which may raise lambda_1."""
    return varied("S18", runs, by="lr", rising=False, value=shapes.early, text="the early mean of lambda_1", peak=False)


# --- S17 ---------------------------------------------------------------------------------------------------------------------


def _cut_at(run: Evidence) -> int | None:
    """The first update at a smaller learning rate than the first one; None where there is none."""
    rates = np.asarray(run.steps["lr"].values, np.float64) if "lr" in run.steps else np.zeros(0)
    lower = np.flatnonzero(rates < 0.99 * rates[0]) if len(rates) else rates
    return int(run.steps["step"].values[lower[0]]) if len(lower) else None


def _between(p: Path, first: float, last: float) -> float:
    """The mean of log lambda_1 at the points of [first, last]; NaN without one."""
    inside = (p.steps >= first) & (p.steps <= last) & (p.values > 0)
    return float(np.log(p.values[inside]).mean()) if inside.any() else nan


def _cut(seed: int, after: float, *, count: int = 5, lr: float = 0.1) -> list[Evidence]:
    """Twins at a plateau of 10 whose lambda_1 stays and, learning rate cut at update 48, goes with the factor `after`."""
    told = []
    for s in seeds_of(seed, count):
        for factor, cut in ((1.0, False), (after, True)):
            t = np.asarray(shapes.TIMES)
            lambda_1 = np.where(t > 48, 10.0 * factor ** np.minimum(1.0, (t - 48) / 60), curve(3.0, 10.0, 20.0, fall=0.0))
            run = drawn({"lr": lr, "batch_size": 64, "seed": s}, lambda_1)
            run.steps["lr"] = ("step", np.where(cut & (t >= 48), lr / 10, lr))
            told.append(run)
    return told


@claim(
    "S17",
    sentence="Cutting the learning rate lets lambda_1 rise: above its value before, and above the run without a cut.",
    source=Source(PAPER, "released schedule experiment (E12); the outcome is recalled"),
    scope="sweep",
    statistic="factors from lambda_1 before to after the cut, and from the twin without it: the one that holds least",
    threshold=f"both > 1, over {PAIRS} paired seeds",
    quantities=QUANTITIES,
    experiments=CUTS,
    controls=Controls(
        lambda seed: _cut(seed, 2.0),
        lambda seed: _cut(seed, 0.5),
        lambda seed: _cut(seed, 2.0, count=2),
        lambda seed: _cut(seed, 2.0, lr=1e-4),
    ),
)
def cut_sharpens(runs: Sequence[Evidence]) -> Verdict:
    """Judge S17. Before: the second half of the updates ahead of the cut; after: the second half of those behind it.

    Out of regime: seeds with lr lambda_1 / 2 below `FAR` before the cut (no high learning rate), or with a training loss that
    has vanished, where lambda_1 falls with it.

    Args:
        runs: pairs of a run with and one without a cut.

    Returns:
        The verdict.
    """
    found = long_enough(runs)
    pairs: dict[int, dict[bool, Path]] = {}
    for p in found:
        pairs.setdefault(p.seed, {})[_cut_at(p.run) is not None] = p
    twins = [(pair[True], pair[False]) for pair in pairs.values() if len(pair) == 2]
    if len(twins) < PAIRS:
        reason = f"{len(twins)} pairs of a run with and one without the cut are at hand, {PAIRS} are needed"
        return _none("S17", "undecided", found, reason)
    told = [row for cut, twin in twins if (row := _three(cut, twin)) is not None]
    if len(told) < PAIRS:
        reason = f"in {len(twins) - len(told)} of {len(twins)} seeds the learning rate is far below the edge or the loss vanished"
        return _none("S17", "not in regime", found, reason)
    before, after, without = np.array(told).T
    parts = [
        Part("factor from before the cut", (after - before).tolist(), logs=True, least=PAIRS),
        Part("factor from the twin without the cut", (after - without).tolist(), logs=True, least=PAIRS),
    ]
    details = {"before": np.exp(before).tolist(), "after": np.exp(after).tolist(), "without": np.exp(without).tolist()}
    return joint("S17", parts, place=place([cut for cut, _ in twins]), details=details, smallest_p=0.5 ** len(told))


def _three(cut: Path, twin: Path) -> tuple[float, float, float] | None:
    """Means of log lambda_1 before the cut, after it, and of the twin then; None out of regime."""
    at, end = _cut_at(cut.run) or 0, length(cut)
    before, late = _between(cut, at / 2, at), (at + end) / 2
    lost = any(p.losses[-1] < LOSS_SHARE * p.initial for p in (cut, twin))
    if lost or not before >= log(2 * FAR / cut.lr):
        return None
    return before, _between(cut, late, end), _between(twin, late, end)
