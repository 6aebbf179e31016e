"""The claims WP1-WP5 on "WP-SGD: Weighted parallel SGD" (Cheng, Li & Zhang 2020).

Thresholds were written before any run. Only the abstract of the paper could be read: its data sets and speed-ups are not known,
the geometric weights are as recalled from its body. On quadratics the contraction of an update is known, on networks fitted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import isfinite, log, nan
from typing import Any

import numpy as np

from sgdscope import statistics
from sgdscope.contracts import Answer, Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence.parallel import NETWORK_RATIOS, RATIOS, SIZES, drawn, network, place, problem, quadratic, study, walked
from sgdscope.evidence.windows import decide, weakest

PAPER = "Cheng, Li & Zhang 2020 (arXiv 1708.04801)"
SEEDS = 5
BARRIER = 0.01  # of the initial loss: from here on a barrier lies between members, and their average is not judged
ROUNDING = 1e-6  # of the way from the start: averages that differ by less are the same
HARM = 0.01  # of the loss: what a slow member may cost
SETTLED = 0.01  # c^T up to which the fastest member has forgotten the start
POWER = 0.1  # distance of the power of the variance in k from -1 that counts as none

Describe = Callable[[str, int], list[dict[str, Any]]]


def _presets(describe: Describe) -> dict[str, Callable[[int], list[dict[str, Any]]]]:
    """Preset -> seed -> descriptions, five seeds each."""

    def of(preset: str) -> Callable[[int], list[dict[str, Any]]]:
        return lambda seed: [one for s in range(SEEDS) for one in describe(preset, 1000 * seed + s)]

    return {preset: of(preset) for preset in SIZES}


def _unequal(preset: str, seed: int, ratios: Sequence[float] = RATIOS, shares: Sequence[float] = NETWORK_RATIOS) -> list[Any]:
    """7 members of 300 updates and 3 slower ones on a quadratic; 2 fast and 2 slow networks, convex and not."""
    found = [quadratic(seed, [300] * 7 + [round(300 * r)] * 3, SIZES[preset]["repeats"]) for r in ratios]
    return found + [network(preset, seed, [1, 1, r, r], convex=convex) for r in shares for convex in (True, False)]


def _balanced(preset: str, seed: int) -> list[dict[str, Any]]:
    return _unequal(preset, seed, (1.0,), (1.0,))


def _with_slow(preset: str, seed: int) -> list[dict[str, Any]]:
    """A last member that made no update, or next to none."""
    found = [quadratic(seed, [300] * 7 + [n], SIZES[preset]["repeats"]) for n in (0, 10)]
    return found + [network(preset, seed, [1, 1, 1, 0], convex=convex) for convex in (True, False)]


def _many(preset: str, seed: int) -> list[dict[str, Any]]:
    """31 equal members near stationarity: groups of 1, 2, 4, 8 and 16 that share none."""
    return [quadratic(seed, [400] * 31, SIZES[preset]["repeats"])]


def _pairs(preset: str, seed: int) -> list[dict[str, Any]]:
    """Two networks that start apart, and two from one start."""
    return [network(preset, seed, [1, 1], convex=False, own_start=apart) for apart in (True, False)]


def _grouped(runs: Sequence[Evidence], key: Callable[[Evidence], Any]) -> dict[Any, list[Evidence]]:
    found: dict[Any, list[Evidence]] = {}
    for run in runs:
        found.setdefault(key(run), []).append(run)
    return found


def _ratio(run: Evidence) -> float:
    return float(min(run.settings["workloads"]) / max(run.settings["workloads"]))


def _apart(run: Evidence) -> bool:
    """Whether a barrier lies between the members."""
    barrier = run.extra.get("barrier")
    return barrier is not None and not barrier <= BARRIER * run.extra["initial"]


def _few(claim_id: str, runs: Sequence[Evidence], threshold: float, what: str) -> Verdict:
    reason = f"{len({r.settings['seed'] for r in runs})} seeds of {what} are at hand, {SEEDS} are needed"
    return Verdict(claim_id, "undecided", nan, (nan, nan), len(runs), threshold, reason, place(runs))


def _out(claim_id: str, runs: Sequence[Evidence], threshold: float, reason: str) -> Verdict:
    return Verdict(claim_id, "not in regime", nan, (nan, nan), len(runs), threshold, reason, place(runs))


def _costs(runs: Sequence[Evidence], top: tuple[str, str], base: tuple[str, str]) -> list[float]:
    """Relative differences of two losses, finite ones."""
    pairs = [(r.extra[top[0]][top[1]], r.extra[base[0]][base[1]]) for r in runs]
    return [c for a, b in pairs if isfinite(c := (a - b) / b)]


def _said(mean: float, interval: tuple[float, float]) -> str:
    return f"{mean:+.3g} ({interval[0]:+.3g} to {interval[1]:+.3g})"


# --- WP1 -----------------------------------------------------------------------------------------------------------------


@claim(
    "WP1",
    sentence="Whenever workers made different numbers of updates, the geometrically weighted average of their parameters has a "
    "lower loss than the plain average.",
    source=Source(PAPER, "abstract: outperforms the traditional parallel SGD on unbalanced workload"),
    scope="sweep",
    statistic="(loss of the weighted average - loss of the plain one) / the latter, paired within seeds, at each T_min / T_max "
    "< 1 and problem (on a quadratic the loss above the minimum); the largest mean",
    threshold="< 0 at all",
    quantities={},
    experiments=_presets(_unequal),
    controls=Controls(
        lambda seed: walked([[60] * 5, [60, 60, 60, 30, 30], [60, 60, 60, 10, 10]], seed),
        lambda seed: walked([[60] * 5, [60, 60, 60, 30, 30], [60, 60, 60, 10, 10]], seed, distance=0.0),
        lambda seed: walked([[60, 60, 60, 10, 10]], seed, seeds=2),
        lambda seed: drawn({"workloads": [200, 50]}, seed, barrier=1.4, loss_to_geometric=1.0, loss_to_equal=1.9),
    ),
    study=study,
)  # fmt: skip
def weighted_beats_plain(runs: Sequence[Evidence]) -> Verdict:
    """Judge WP1, only where no barrier lies between the members; the fastest one alone is told beside."""
    unequal = [r for r in runs if _ratio(r) < 1]
    near = [r for r in unequal if not _apart(r)]
    if unequal and not near:
        return _out("WP1", runs, 0.0, f"a barrier lies between the members of all {len(unequal)} unequal ensembles")
    cells: dict[str, list[float]] = {}
    alone: dict[str, list[float]] = {}
    for (name, ratio), own in sorted(_grouped(near, lambda r: (problem(r), round(_ratio(r), 3))).items()):
        found = _costs(own, ("loss", "geometric"), ("loss", "equal"))
        if len({r.settings["seed"] for r in own}) < SEEDS or len(found) < SEEDS:
            return _few("WP1", own[: len(found)], 0.0, f"{name} at T_min / T_max = {ratio:.2g}, with a finite loss,")
        mean, _, interval = statistics.mean_interval(found)
        cells[f"{name}, {ratio:.2g}"] = [mean, *interval]
        if beside := _costs([r for r in own if "fastest" in r.extra["loss"]], ("loss", "geometric"), ("loss", "fastest")):
            alone[f"{name}, {ratio:.2g}"] = [statistics.mean_interval(beside)[0], *statistics.mean_interval(beside)[2]]
    if not cells:
        return _few("WP1", near, 0.0, "ensembles of unequal workloads")
    answers: list[Answer] = [decide((low, high), 0.0, above=False) for _, low, high in cells.values()]
    worst = max(cells, key=lambda name: cells[name][0])
    reason = "relative to the plain average's, the loss of the weighted one changes by " + "; ".join(
        f"{_said(mean, (low, high))} at {name}" for name, (mean, low, high) in cells.items()
    )
    if alone:
        reason += "; relative to the fastest worker alone by " + "; ".join(f"{alone[name][0]:+.2g} at {name}" for name in alone)
    mean, low, high = cells[worst]
    n = len({r.settings["seed"] for r in near})
    details = {"relative_to_plain": cells, "relative_to_fastest_alone": alone, "barriers_left_out": len(unequal) - len(near)}
    return Verdict("WP1", weakest(answers), mean, (low, high), n, 0.0, reason, place(near), 0.5**n, details)


# --- WP2 -----------------------------------------------------------------------------------------------------------------


@claim(
    "WP2",
    sentence="With equal numbers of updates weighted parallel SGD is SimuParallel SGD: the same weights, the same average.",
    source=Source(PAPER, "WP-SGD is based on SimuParallel SGD (Zinkevich et al. 2010)"),
    scope="sweep",
    statistic="distance of the weighted average from the plain one over the plain one's way from the start, the larger of "
    "geometric and proportional weights; mean over balanced ensembles, equivalence test",
    threshold=f"within {ROUNDING:g}, two one-sided tests at 5 %",
    quantities={},
    experiments=_presets(_balanced),
    controls=Controls(
        lambda seed: walked([[40] * 5], seed),
        lambda seed: drawn({}, seed, apart_to_geometric=0.1, apart_to_proportional=0.05),
        lambda seed: walked([[40] * 5], seed, seeds=2),
        lambda seed: walked([[40, 10]], seed),
    ),
    study=study,
)  # fmt: skip
def balanced_is_plain(runs: Sequence[Evidence]) -> Verdict:
    """Judge WP2."""
    balanced = [r for r in runs if _ratio(r) == 1]
    if runs and not balanced:
        return _out("WP2", runs, ROUNDING, "no ensemble has equal workloads")
    seeds = len({r.settings["seed"] for r in balanced})
    if seeds < SEEDS:
        return _few("WP2", balanced, ROUNDING, "balanced ensembles")
    found = [max(r.extra["apart"]["geometric"], r.extra["apart"]["proportional"]) for r in balanced]
    mean, _, interval = statistics.mean_interval(found)
    p = statistics.tost(found, ROUNDING)
    same: Answer = "supported" if p < 0.05 else "contradicted" if interval[0] > ROUNDING else "undecided"
    reason = (
        f"over {len(found)} balanced ensembles the averages lie {mean:.2g} of their way from the start apart "
        f"(at most {max(found):.2g}; p of the equivalence {p:.2g})"
    )
    details = {"largest": max(found), "p": p}
    return Verdict("WP2", same, mean, interval, len(found), ROUNDING, reason, place(balanced), None, details)


# --- WP3 -----------------------------------------------------------------------------------------------------------------


@claim(
    "WP3",
    sentence="A worker that has hardly begun is harmless: with geometric weights it raises the loss of the average by less "
    "than 1 %, once the fastest worker has forgotten the start.",
    source=Source(PAPER, "abstract: does not require that all nodes consume equal quantities of data"),
    scope="sweep",
    statistic="(loss of the average with the slow member - loss without it) / the latter, paired within seeds, on each problem "
    "and slow workload; the largest mean",
    threshold=f"< {HARM:g} at all",
    quantities={},
    experiments=_presets(_with_slow),
    controls=Controls(
        lambda seed: walked([[300, 300, 300, 0], [300, 300, 300, 10]], seed),
        lambda seed: walked([[300, 300, 300, 0]], seed, distance=1e4),
        lambda seed: walked([[300, 300, 300, 0]], seed, seeds=2),
        lambda seed: walked([[60, 60, 60, 0]], seed),
    ),
    study=study,
)  # fmt: skip
def slow_member_is_harmless(runs: Sequence[Evidence]) -> Verdict:
    """Judge WP3 where c^T <= SETTLED and no barrier lies between members; what the slow one does to the plain average beside."""
    kept = [r for r in runs if float(r.extra["decay"]) <= SETTLED and not _apart(r)]
    if runs and not kept:
        least = min(float(r.extra["decay"]) for r in runs)
        return _out("WP3", runs, HARM, f"the fastest member has not forgotten the start: c^T >= {least:.2g} in all ensembles")
    cells: dict[str, list[float]] = {}
    plain: dict[str, list[float]] = {}
    for (name, slow), every in sorted(_grouped(runs, lambda r: (problem(r), r.settings["workloads"][-1])).items()):
        own, label = [r for r in every if any(r is one for one in kept)], f"{name}, {slow} updates"
        found = _costs(own, ("loss", "geometric"), ("loss_without", "geometric"))
        if len(every) < SEEDS:
            return _few("WP3", every, HARM, label)
        if len(own) < SEEDS:
            continue  # out of regime
        if len(found) < SEEDS:
            return _few("WP3", own[: len(found)], HARM, f"{label} with a finite loss")
        cells[label] = [statistics.mean_interval(found)[0], *statistics.mean_interval(found)[2]]
        beside = _costs(own, ("loss", "equal"), ("loss_without", "equal"))
        plain[label] = [statistics.mean_interval(beside)[0], *statistics.mean_interval(beside)[2]]
    if not cells:
        return _few("WP3", kept, HARM, "ensembles with a slow member")
    answers: list[Answer] = [decide((low, high), HARM, above=False) for _, low, high in cells.values()]
    mean, low, high = cells[max(cells, key=lambda name: cells[name][0])]
    reason = "the slow member changes the loss of the weighted average by " + "; ".join(
        f"{_said(m, (a, b))} on {name} (of the plain one by {plain[name][0]:+.2g})" for name, (m, a, b) in cells.items()
    )
    if len(kept) < len(runs):
        reason += f"; {len(runs) - len(kept)} of {len(runs)} ensembles are left out: c^T > {SETTLED:g}, or a barrier"
    n = len({r.settings["seed"] for r in kept})
    details = {"weighted": cells, "plain": plain}
    return Verdict("WP3", weakest(answers), mean, (low, high), n, HARM, reason, place(kept), 0.5**n, details)


# --- WP4 -----------------------------------------------------------------------------------------------------------------


@claim(
    "WP4",
    sentence="At stationarity the variance of the average of k equal workers falls as 1 / k.",
    source=Source(PAPER, "abstract: the reduction in standard deviation"),
    scope="sweep",
    statistic="slope of log variance of the average over log k within seeds, groups of members that share none; its mean + 1, "
    "equivalence test",
    threshold=f"within {POWER:g}, two one-sided tests at 5 %",
    quantities={},
    experiments=_presets(_many),
    controls=Controls(
        lambda seed: walked([[300] * 15], seed),
        lambda seed: walked([[300] * 15], seed, shared=True),
        lambda seed: walked([[300] * 15], seed, seeds=2),
        lambda seed: walked([[20] * 15], seed),
    ),
    study=study,
)  # fmt: skip
def variance_falls(runs: Sequence[Evidence]) -> Verdict:
    """Judge WP4; the ratio of the variances of one member and of the largest group is told beside."""
    settled = [r for r in runs if float(r.extra["decay"]) ** 2 <= SETTLED and len(r.extra.get("variance") or {}) >= 3]
    if runs and not settled:
        return _out("WP4", runs, -1.0, "no ensemble of 7 members or more is near stationarity")
    if len({r.settings["seed"] for r in settled}) < SEEDS:
        return _few("WP4", settled, -1.0, "equal workers near stationarity")
    slopes, gains, largest = [], [], 1
    for run in settled:
        variances = {int(k): float(v) for k, v in run.extra["variance"].items()}
        largest = max(variances)
        slopes.append(statistics.slope([log(k) for k in variances], [log(v) for v in variances.values()])[0])
        gains.append(variances[1] / variances[largest])
    mean, _, interval = statistics.mean_interval(slopes)
    p = statistics.tost(np.array(slopes) + 1, POWER)
    far = interval[0] > -1 + POWER or interval[1] < -1 - POWER
    answer: Answer = "supported" if p < 0.05 else "contradicted" if far else "undecided"
    gain, _, around = statistics.mean_interval(gains)
    reason = (
        f"the variance goes as k^{mean:.3f} ({interval[0]:.3f} to {interval[1]:.3f}; p of the equivalence with -1 {p:.2g}); "
        f"{largest} members have 1 / {gain:.3g} of the variance of one"
    )
    details = {"gain": [gain, *around], "k": largest, "p": p, "slopes": slopes}
    return Verdict("WP4", answer, mean, interval, len(slopes), -1.0, reason, place(settled), None, details)


# --- WP5 -----------------------------------------------------------------------------------------------------------------


@claim(
    "WP5",
    sentence="Between replicas of a network that started at different points lies a barrier: averaging them raises the loss.",
    source=Source("specification of the project, section 5", "WP5; cf. Frankle et al. 2020 (1912.05671)"),
    scope="sweep",
    statistic="max over 0 < alpha < 1 of the training loss on the segment between two replicas that started apart, minus the "
    "larger of their losses; mean over seeds",
    threshold="> 0",
    quantities={},
    experiments=_presets(_pairs),
    controls=Controls(
        lambda seed: drawn({}, seed, barrier=1.5, loss_to_equal=1.7),
        lambda seed: drawn({}, seed, barrier=-0.02, loss_to_equal=0.29),
        lambda seed: drawn({}, seed, seeds=2, barrier=1.5, loss_to_equal=1.7),
        lambda seed: drawn({"convex": True}, seed, barrier=-0.02, loss_to_equal=0.29),
    ),
    study=study,
)  # fmt: skip
def distant_replicas_have_a_barrier(runs: Sequence[Evidence]) -> Verdict:
    """Judge WP5; the barrier between replicas of one start is told beside, it says where WP1 may be asked."""
    curved = [r for r in runs if problem(r) == "network"]
    if runs and not curved:
        return _out("WP5", runs, 0.0, "all losses are convex, where no barrier can lie between two points")
    apart = [r for r in curved if r.settings["own_start"]]
    if len({r.settings["seed"] for r in apart}) < SEEDS:
        return _few("WP5", apart, 0.0, "replicas that started apart")
    barriers = [float(r.extra["barrier"]) for r in apart]
    mean, _, interval = statistics.mean_interval(barriers)
    averages = float(np.mean([r.extra["loss"]["equal"] for r in apart]))
    ends = float(np.mean([max(r.extra["losses"]) for r in apart]))
    near = [float(r.extra["barrier"]) for r in curved if not r.settings["own_start"]]
    beside = statistics.mean_interval(near) if len(near) >= SEEDS else None
    reason = (
        f"between replicas that started apart the loss rises by {_said(mean, interval)} above the worse one "
        f"(average {averages:.3g}, worse replica {ends:.3g})"
    ) + (f"; between replicas of one start by {_said(beside[0], beside[2])}" if beside else "")
    details = {"barriers": barriers, "barriers_one_start": near, "loss_average": averages, "loss_worse": ends}
    n = len(barriers)
    return Verdict("WP5", decide(interval, 0.0), mean, interval, n, 0.0, reason, place(apart), 0.5**n, details)
