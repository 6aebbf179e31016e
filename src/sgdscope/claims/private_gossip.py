"""The claims H1-H5 of the decentralised private SGD of Hegedus and Jelasity (2016).

Of the papers the abstracts were read; thresholds were written before any run and are this project's, said on their line. A
learner's parameters (uses of a record, strength lam) are always those that are best on the other seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from math import nan
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgdscope import statistics
from sgdscope.contracts import Answer, Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence.endpoints import Part, decisive, equivalent
from sgdscope.evidence.gossip import learning, service, walked
from sgdscope.evidence.private import LEVELS, Tables, falling, learning_runs, made, service_runs, walked_runs, walks_made
from sgdscope.evidence.windows import decide

STUDY = "Hegedus & Jelasity 2016, Distributed Differentially Private SGD: An Empirical Study (PDP)"
ROBUST = "Hegedus, Berta & Jelasity 2016, Robust Decentralized Differentially Private SGD (JoWUA 7(2))"
SEEDS = 5  # paired, over which a number is compared with a threshold
CLOSE = 0.03  # H1: held-out error above that without noise which still counts as closely approximated
SINGLE = 0.25  # H4: how far the mean number of walks may be from 1 and still count as about one
PLATEAU = 0.03  # H5: held-out errors that differ by less count as the same plateau
LEARNED = 0.4  # H1-H3: an error without noise above this says that the model cannot learn the data at all

Array = NDArray[np.float64]


def _silent(claim_id: str, verdict: Answer, threshold: float, reason: str, regime: Mapping[str, float | str]) -> Verdict:
    return Verdict(claim_id, verdict, nan, (nan, nan), 0, threshold, reason, dict(regime))


def _below(name: str, values: Array, threshold: float) -> Part:
    mean, _, interval = statistics.mean_interval(values)
    return Part(name, mean, interval, decide(interval, threshold, above=False), len(values))


# --- H1-H3: learners ---------------------------------------------------------------------------------------------------------


def _tables(claim_id: str, runs: Sequence[Evidence], kinds: Sequence[str], threshold: float) -> Verdict | Tables:
    """The errors, or the verdict that says why they do not suffice."""
    found = Tables(runs)
    regime = _of(found)
    budgets = {kind: found.budgets(kind) for kind in kinds}
    whole = [found.chosen("free"), *(found.chosen(kind, eps) for kind in kinds for eps in budgets[kind])]
    if len(found.seeds) < SEEDS or any(len(own) < 3 for own in budgets.values()) or not all(np.isfinite(v).all() for v in whole):
        reason = f"{len(found.seeds)} seeds with all learners and 3 budgets are at hand, {SEEDS} are needed"
        return _silent(claim_id, "undecided", threshold, reason, regime)
    if whole[0].mean() > LEARNED:
        reason = f"without noise the held-out error is {whole[0].mean():.2f}: the model cannot learn these data"
        return _silent(claim_id, "not in regime", threshold, reason, regime)
    return found


def _of(found: Tables) -> dict[str, float | str]:
    """Where the experiment lies on the map."""
    free, budgets = found.chosen("free"), found.budgets("fixed") or [nan]
    return {
        "seeds": float(len(found.seeds)),
        "error_without_noise": float(free.mean()) if len(free) else nan,
        "least_eps": budgets[0],
        "largest_eps": budgets[-1],
    }


@claim(
    "H1",
    sentence="With the right number of uses private SGD comes close to SGD without noise, the closer the larger the budget.",
    source=Source(STUDY, "abstract"),
    scope="sweep",
    statistic="gap in held-out error to SGD without noise at the largest budget; slope of the gap over log10 of the budget",
    threshold=f"gap within {CLOSE} by two one-sided tests; slope < 0, also by the rank test over budgets",
    quantities={},
    experiments=learning_runs(),
    controls=Controls(
        made({"fixed": falling}), made({"fixed": lambda _: 0.2}), made({"fixed": falling}, seeds=3),
        made({"fixed": falling}, free=0.45),
    ),
    study=learning,
)  # fmt: skip
def close_to_free(runs: Sequence[Evidence]) -> Verdict:
    """Judge H1; whether the error over uses has a minimum inside (a U) is told beside, for each budget.

    Args:
        runs: errors of learners.

    Returns:
        The verdict.
    """
    found = _tables("H1", runs, ["fixed"], CLOSE)
    if isinstance(found, Verdict):
        return found
    budgets, free = found.budgets("fixed"), found.chosen("free")
    gaps = np.array([found.chosen("fixed", eps) - free for eps in budgets])
    x = np.log10(budgets)
    slopes = np.array([statistics.slope(x, own)[0] for own in gaps.T])
    slope = _below("slope", slopes, 0.0)
    _, falls, smallest = statistics.jonckheere(list(gaps[::-1]))
    if slope.answer == "supported" and falls >= 0.05:
        slope = Part(slope.name, slope.statistic, slope.interval, "undecided", slope.n)
    close = equivalent("gap", gaps[-1], CLOSE)
    verdict, least = decisive([close, slope], lambda p: 1 - abs(p.statistic) / CLOSE if p is close else -p.statistic)
    told = ", ".join(f"{gap.mean():+.3f} at {eps:g}" for eps, gap in zip(budgets, gaps, strict=True))
    reason = f"error without noise {free.mean():.3f}; gaps with uses chosen on other seeds: {told}; decisive: {least.name}"
    details = {
        "gap": close.told, "slope": slope.told, "rank_test_p": falls,
        "error_over_uses": {f"{eps:g}": found.mean("fixed", eps) for eps in budgets} | {"inf": found.mean("free")},
        "minimum_inside": {f"{eps:g}": _u_shaped(found.mean("fixed", eps)) for eps in budgets},
    }  # fmt: skip
    threshold = CLOSE if least.name == "gap" else 0.0
    return Verdict("H1", verdict, least.statistic, least.interval, least.n, threshold, reason, _of(found), smallest, details)


def _u_shaped(errors: Mapping[str, float]) -> bool:
    """Whether the least mean error lies at neither the fewest nor the most uses."""
    values = [errors[key] for key in sorted(errors, key=int)]
    return 0 < int(np.argmin(values)) < len(values) - 1


def _worse(claim_id: str, runs: Sequence[Evidence], kind: str, words: str) -> Verdict:
    """Judge that a kind of learner ends at a higher error than a fixed number of uses, on the mean over the budgets."""
    found = _tables(claim_id, runs, ["fixed", kind], 0.0)
    if isinstance(found, Verdict):
        return found
    budgets = [eps for eps in found.budgets("fixed") if eps in found.budgets(kind)]
    each = np.array([found.chosen(kind, eps) - found.chosen("fixed", eps) for eps in budgets])
    mean, interval, p, smallest = statistics.paired(each.mean(0), np.zeros(each.shape[1]))
    kinds = [k for k in ("fixed", "halving", "l1", "input") if set(budgets) <= set(found.budgets(k))]
    means = {k: float(np.mean([found.chosen(k, eps).mean() for eps in budgets])) for k in kinds}
    order = " < ".join(f"{k} {means[k]:.3f}" for k in sorted(kinds, key=means.__getitem__))
    reason = f"{words} {mean:+.3f} in held-out error over budgets {budgets[0]:g} to {budgets[-1]:g}; mean errors: {order}"
    parts = [_below(f"{eps:g}", d, 0.0) for eps, d in zip(budgets, each, strict=True)]
    details: dict[str, Any] = {
        "each_budget": {part.name: part.told for part in parts},
        "sign_test_p": p, "means": means, "free": float(found.chosen("free").mean()),
        "error_over_uses": {k: {f"{eps:g}": found.mean(k, eps) for eps in budgets} for k in kinds},
    }  # fmt: skip
    n = each.shape[1]
    return Verdict(claim_id, decide(interval, 0.0), mean, interval, n, 0.0, reason, _of(found), smallest, details)


@claim(
    "H2",
    sentence="At equal budget a good fixed number of uses ends at a lower held-out error than uses of half the budget left each.",
    source=Source(STUDY, "budget schedules of the authors' code"),
    scope="sweep",
    statistic="difference of held-out error, halving - fixed, mean over the budgets, each at its own number of uses",
    threshold="> 0",
    quantities={},
    experiments=learning_runs(),
    controls=Controls(
        made({"fixed": falling, "halving": lambda e: falling(e) + 0.05}),
        made({"fixed": lambda e: falling(e) + 0.05, "halving": falling}),
        made({"fixed": falling, "halving": lambda e: falling(e) + 0.05}, seeds=3),
        made({"fixed": falling, "halving": lambda e: falling(e) + 0.05}, free=0.45),
    ),
    study=learning,
)
def fixed_beats_halving(runs: Sequence[Evidence]) -> Verdict:
    """Judge H2; halving is stopped after its best number of passes, which it would not do by itself."""
    return _worse("H2", runs, "halving", "halving - fixed")


@claim(
    "H3",
    sentence="At equal budget noise on each record, once, ends at a higher held-out error than noise on its gradients.",
    source=Source(STUDY, "variants of the authors' code; the order is an expectation of the specification"),
    scope="sweep",
    statistic="difference of held-out error, noisy inputs - noisy gradients, mean over the budgets, each at its own passes",
    threshold="> 0; the order of all designs is told",
    quantities={},
    experiments=learning_runs(),
    controls=Controls(
        made({"fixed": falling, "input": lambda e: falling(e) + 0.05}),
        made({"fixed": lambda e: falling(e) + 0.05, "input": falling}),
        made({"fixed": falling, "input": lambda e: falling(e) + 0.05}, seeds=3),
        made({"fixed": falling, "input": lambda e: falling(e) + 0.05}, free=0.45),
    ),
    study=learning,
)
def gradients_beat_inputs(runs: Sequence[Evidence]) -> Verdict:
    """Judge H3."""
    return _worse("H3", runs, "input", "noisy inputs - noisy gradients")


# --- H4: the service ---------------------------------------------------------------------------------------------------------


def _simulated(count: int, **more: Any) -> Callable[[int], list[Evidence]]:
    """Small services, really simulated; what holds by construction is the rule that is on or off."""
    level = "churn and loss"
    told = {"nodes": 30, "degree": 10, "cycles": 500.0, "limit": 8.0, "level": level, **LEVELS[level], **more}
    return partial(_services, count, told)


def _services(count: int, told: Mapping[str, Any], seed: int) -> list[Evidence]:
    return [service({**told, "name": f"control-{s}", "seed": 1000 * seed + s}, Path(), None) for s in range(count)]


@claim(
    "H4",
    sentence="Under churn and message loss the walk service keeps about one walk, restores it within limit and spread of news, "
    "and ends duplicates sooner than that limit.",
    source=Source(ROBUST, "abstract; protocol as in the authors' code"),
    scope="sweep",
    statistic="at each level of faults: mean number of live walks - 1; mean time without a walk; mean time with several",
    threshold=f"within {SINGLE} by two one-sided tests; < limit + log2(nodes) cycles; < limit cycles",
    quantities={},
    experiments=service_runs(),
    controls=Controls(
        _simulated(6, survive=0.995), _simulated(6, restart=False), _simulated(3), _simulated(6, survive=1.0, online=1.0)
    ),
    study=service,
)
def one_walk(runs: Sequence[Evidence]) -> Verdict:
    """Judge H4: every level of faults with at least `SEEDS` seeds; times of levels where nothing was lost are not tested.

    Args:
        runs: simulated services.

    Returns:
        The verdict.
    """
    faulty = [run for run in runs if run.settings["survive"] < 1 or run.settings["online"] < 1]
    regime = _where(runs) | {"faulty": float(len(faulty))}
    if runs and not faulty:
        reason = "no message was lost and no node away, so that nothing was to be kept"
        return _silent("H4", "not in regime", SINGLE, reason, regime)
    names = sorted({run.settings["level"] for run in faulty})
    levels = {name: [run for run in faulty if run.settings["level"] == name] for name in names}
    if not levels or min(len(own) for own in levels.values()) < SEEDS:
        return _silent("H4", "undecided", SINGLE, f"each level of faults needs {SEEDS} seeds", regime)
    parts = [part for level, own in levels.items() for part in _kept(level, own)]
    limit = float(faulty[0].settings["limit"])
    verdict, least = decisive(parts, lambda p: 1 - abs(p.statistic) / SINGLE if "walks" in p.name else -p.statistic / limit)
    means = {level: float(np.mean([r.extra["mean_live"] for r in own])) for level, own in levels.items()}
    told = ", ".join(f"{mean:.2f} under {level}" for level, mean in means.items())
    reason = f"mean number of live walks {told}; decisive: {least.name} ({least.statistic:+.2f})"
    details: dict[str, Any] = {part.name: part.told for part in parts} | {"mean_live": means, "lengths": _lengths(levels)}
    threshold = SINGLE if "walks" in least.name else 0.0
    return Verdict("H4", verdict, least.statistic, least.interval, least.n, threshold, reason, regime, None, details)


def _where(runs: Sequence[Evidence]) -> dict[str, float | str]:
    """Where studies of the service lie on the map."""
    return {"runs": float(len(runs)), "levels": ", ".join(sorted({run.settings["level"] for run in runs}))}


def _kept(level: str, own: Sequence[Evidence]) -> list[Part]:
    """Number of walks, recoveries and duplicates at one level; lengths as differences to their bounds, in cycles."""
    parts = [equivalent(f"walks - 1 under {level}", np.array([r.extra["mean_live"] - 1 for r in own]), SINGLE)]
    for name, key in (("recovery", "recoveries"), ("duplicates", "duplicates")):
        bounds = [r.extra["bound"] if key == "recoveries" else r.settings["limit"] for r in own]
        over = [np.mean(r.extra[key]) - bound for r, bound in zip(own, bounds, strict=True) if r.extra[key]]
        if len(over) >= SEEDS:
            parts.append(_below(f"{name} - bound under {level}", np.array(over), 0.0))
    return parts


def _lengths(levels: Mapping[str, Sequence[Evidence]]) -> dict[str, dict[str, float]]:
    """Means over all recoveries and duplicates of a level, cycles, and how many there were."""
    told: dict[str, dict[str, float]] = {}
    for level, own in levels.items():
        told[level] = {}
        for key in ("recoveries", "duplicates"):
            lengths = [x for r in own for x in r.extra[key]]
            told[level] |= {key: float(len(lengths)), f"mean_{key}": float(np.mean(lengths)) if lengths else nan}
    return told


# --- H5: learning under faults -----------------------------------------------------------------------------------------------


@claim(
    "H5",
    sentence="Faults of nodes and messages slow the learning walk, but it reaches the same held-out error.",
    source=Source(ROBUST, "abstract"),
    scope="sweep",
    statistic="plateau of held-out error with faults - without, with and without private noise; log ratio of updates a cycle",
    threshold=f"within {PLATEAU} by two one-sided tests, both; < 0",
    quantities={},
    experiments=walked_runs(),
    controls=Controls(
        walks_made({"free": 0.0, "private": 0.0}), walks_made({"free": 0.08, "private": 0.1}),
        walks_made({"free": 0.0, "private": 0.0}, seeds=3), walks_made({"free": 0.0, "private": 0.0}, level="none"),
    ),
    study=walked,
)  # fmt: skip
def same_plateau(runs: Sequence[Evidence]) -> Verdict:
    """Judge H5 over pairs of walks of one seed, after equal numbers of updates.

    Args:
        runs: walks without and with faults.

    Returns:
        The verdict.
    """
    arms: dict[str, dict[int, Evidence]] = {}
    for run in runs:
        arms.setdefault(run.settings["level"], {})[int(run.settings["seed"])] = run
    regime = _where(runs)
    if runs:
        regime |= {"records": float(runs[0].settings["train"]), "eps": float(runs[0].settings["eps"])}
    if runs and set(arms) == {"none"}:
        return _silent("H5", "not in regime", PLATEAU, "all walks are without faults", regime)
    pairs = sorted(set(arms.get("none", {})) & set(arms.get("faulty", {})))
    if len(pairs) < SEEDS:
        return _silent("H5", "undecided", PLATEAU, f"{len(pairs)} pairs of walks are at hand, {SEEDS} are needed", regime)
    both = [(arms["none"][s].extra, arms["faulty"][s].extra) for s in pairs]
    ends = {arm: np.array([[e["plateau"][arm] for e in pair] for pair in both]) for arm in ("free", "private")}
    plateaus = [equivalent(arm, own[:, 1] - own[:, 0], PLATEAU) for arm, own in ends.items()]
    ratio = np.array([np.log(b["updates_a_cycle"] / a["updates_a_cycle"]) for a, b in both])
    slower = _below("slower", ratio, 0.0)
    verdict, least = decisive([*plateaus, slower], lambda p: -p.statistic if p is slower else 1 - abs(p.statistic) / PLATEAU)
    means = {arm: own.mean(0).tolist() for arm, own in ends.items()}
    told = ", ".join(f"{arm} {a:.3f} -> {b:.3f}" for arm, (a, b) in means.items())
    speed = f"{np.exp(ratio.mean()):.2f} of the updates a cycle"
    reason = f"held-out error without -> with faults: {told}; {speed}; decisive: {least.name}"
    details = {p.name: p.told for p in (*plateaus, slower)} | {"plateaus": means}
    threshold = 0.0 if least is slower else PLATEAU
    return Verdict("H5", verdict, least.statistic, least.interval, least.n, threshold, reason, regime, 0.5 ** len(pairs), details)
