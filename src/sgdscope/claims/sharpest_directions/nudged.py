"""The claims S12-S16 on Nudged-SGD (Jastrzebski et al. 2019): ends sharper, trains faster, generalises as well, grows with K.

Thresholds were written before any run. The paper's tables were not at hand; where no number of it is read, the threshold is
this project's, said on its line. gamma < 1 shortens the step along the K sharpest directions; gamma = 1 is plain SGD, bit for
bit, so that plain SGD of the same learning rate, batch size and seed is the other of a pair.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import exp, isfinite, log, nan
from typing import Any

import numpy as np

from sgdscope import statistics
from sgdscope.contracts import Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence import nudging
from sgdscope.evidence.accuracy import accuracy
from sgdscope.evidence.endpoints import (
    Part,
    Shape,
    area,
    decisive,
    held_out,
    kendall,
    last_accuracy,
    reached,
    silent,
    vanished,
)
from sgdscope.evidence.nudging import Arms, Group, Pair
from sgdscope.evidence.sharpness import Path, place
from sgdscope.evidence.windows import decide, trend, weakest

PAPER = "Jastrzebski et al. 2019 (arXiv 1807.05031)"
PAIRS = 5  # paired seeds where two settings are compared
MARGIN = 0.01  # S14: one per cent of accuracy counts as "as well"; chosen here
EARLY = 0.5  # S13: the first half of the updates; the paper's table reads the validation accuracy at epoch 50 of 200 or more
STARTED = 0.9  # S13: below this share of its initial loss plain SGD trains at all; else there is nothing to be faster than
ORDER = -1 / 3  # S15: Kendall's tau at which two of three pairs have the sharper run as the worse one; chosen here
TENFOLD = 10.0  # S12, told only: v1 of the abstract says an order of magnitude
SETTINGS = 5  # S15: settings of a seed below which a rank correlation says nothing
PLACES = ("best", "last")  # the paper's table has the best checkpoint and the last epoch
NORMS = ("sharpness", "top_frobenius")
QUANTITIES: Mapping[str, Mapping[str, Any]] = {"curvature": {"k": 5}}


ARMS: Sequence[Mapping[str, Any]] = [{"gamma": g, "k": 5} for g in (0.01, 0.1)]
RANDOM: Mapping[str, Any] = {"gamma": 0.01, "k": 5, "variant": "random"}  # the control of the released code
NUDGED = nudging.runs_of(ARMS)
SHARPER = nudging.runs_of([*ARMS, RANDOM])
WIDER = nudging.runs_of([*ARMS, {"gamma": 5.0, "k": 5}])
ABLATION = nudging.runs_of([{"gamma": 0.01, "k": k} for k in (1, 5, 20)], plain=False)


# --- pairs ------------------------------------------------------------------------------------------------------------------


def _word(group: Group) -> str:
    return f"gamma {group[0]:g}, K {group[1]}"


def _short(claim_id: str, threshold: float, pairs: Mapping[Group, list[Pair]]) -> Verdict:
    least = min((len(found) for found in pairs.values()), default=0)
    reason = f"{least} pairs of a run with gamma < 1 and plain SGD alike in all else are at hand, {PAIRS} are needed"
    return silent(claim_id, "undecided", threshold, reason, [p for found in pairs.values() for pair in found for p in pair])


def _ratio(name: str, above: Sequence[float], below: Sequence[float], *, larger: bool = True) -> Part:
    """Factor between paired positive numbers, from the mean of the difference of logs."""
    kept = [(log(a), log(b)) for a, b in zip(above, below, strict=True) if isfinite(a) and isfinite(b) and min(a, b) > 0]
    if len(kept) < PAIRS:
        return Part(name, nan, (nan, nan), "undecided", len(kept))
    mean, (low, high), _, _ = statistics.paired([a for a, _ in kept], [b for _, b in kept])
    return Part(name, exp(mean), (exp(low), exp(high)), decide((low, high), 0.0, above=larger), len(kept))


# --- S12: sharper ----------------------------------------------------------------------------------------------------------


@claim(
    "S12",
    sentence="Nudged-SGD with gamma < 1 ends sharper than plain SGD.",
    source=Source(PAPER, "abstracts of v1 (an order of magnitude) and v6"),
    scope="sweep",
    statistic="factor of lambda_1 and of the top-K Frobenius norm over plain SGD, paired seeds, best checkpoint and last point",
    threshold="> 1 in each, for each gamma < 1",
    quantities=QUANTITIES,
    experiments=SHARPER,
    controls=Controls(
        nudging.two(Shape(sharp=90)), nudging.two(Shape(sharp=15)), nudging.two(Shape(sharp=90), seeds=3),
        nudging.two(Shape(sharp=90, floor=0.01, speed=2), Shape(floor=0.01, speed=2)),
    ),
    observe=accuracy,
)  # fmt: skip
def ends_sharper(runs: Sequence[Evidence]) -> Verdict:
    """Judge S12: all places and norms; without held-out data the last point alone. The peaks and the order of v1 are told."""
    pairs = nudging.pairs_of(nudging.arms_of(runs))
    if not pairs or min(map(len, pairs.values())) < PAIRS:
        return _short("S12", 1.0, pairs)
    kept = {g: [pair for pair in found if not any(map(vanished, pair))] for g, found in pairs.items()}
    every = [p for found in pairs.values() for pair in found for p in pair]
    if min(map(len, kept.values())) < PAIRS:
        reason = "the training loss has vanished in runs of more pairs than can be spared, and the curvature with it"
        return silent("S12", "not in regime", 1.0, reason, every)
    known = all(held_out(p.run) for p in every)
    parts: list[Part] = []
    details: dict[str, Any] = {}
    for group, found in kept.items():
        for where in (*PLACES, "peak"):
            for norm in NORMS:
                values = [[nudging.value(p, norm, where) for p in side] for side in zip(*found, strict=True)]
                part = _ratio(f"{norm} at the {where} point, {_word(group)}", *values)
                details[part.name] = part.told
                if where == "last" or (where == "best" and known):
                    parts.append(part)
    verdict, least = decisive(parts, lambda p: p.statistic)
    last = {_word(g): details[f"sharpness at the last point, {_word(g)}"][0] for g in kept}
    words = "; ".join(f"{word}: lambda_1 x {value:.3g} at the end" for word, value in last.items())
    reason = f"{words}; decisive: {least.name}, x {least.statistic:.3g}"
    ends = [details[f"{norm} at the last point, {_word(g)}"] for norm in NORMS for g in kept]
    order = [decide((low, high), TENFOLD) for _, low, high in ends]
    details |= _random(runs, pairs)
    told = {"factors": details, "an_order_of_magnitude": "supported" if "supported" in order else weakest(order)}
    return Verdict("S12", verdict, least.statistic, least.interval, least.n, 1.0, reason, place(every), 0.5**least.n, told)


def _random(runs: Sequence[Evidence], pairs: Mapping[Group, list[Pair]]) -> dict[str, list[float]]:
    """The same factors at the end for runs nudged along random directions, where there are any: 1 if the directions matter."""
    own, plain = nudging.random_of(runs), {q.seed: q for found in pairs.values() for _, q in found}
    both = [s for s in own if s in plain and own[s].lr == plain[s].lr]
    sides = {norm: [[nudging.value(t[s], norm, "last") for s in both] for t in (own, plain)] for norm in NORMS}
    return {f"{norm} at the last point, random directions": _ratio("", *values).told for norm, values in sides.items() if both}


# --- S13: faster -----------------------------------------------------------------------------------------------------------


def _best_plain(arms: Arms, group: Group, seeds: Sequence[int]) -> tuple[float, dict[int, float]]:
    """The learning rate of plain SGD with the least mean loss over the early part, and that loss by seed."""
    tables = {
        g[2]: {s: area(own[s], EARLY) for s in seeds}
        for g, own in arms.items()
        if g[:2] == (1.0, 0) and g[3] == group[3] and all(s in own for s in seeds)
    }
    return min(tables.items(), key=lambda item: float(np.mean(list(item[1].values()))))


@claim(
    "S13",
    sentence="Nudged-SGD with gamma < 1 trains faster early than plain SGD at the same learning rate.",
    source=Source(PAPER, "abstract of v6: can improve training speed"),
    scope="sweep",
    statistic="factor of the mean training loss over the first half of the updates, over plain SGD, paired seeds",
    threshold="< 1, for each gamma < 1; plain SGD at its best learning rate is told beside it",
    quantities=QUANTITIES,
    experiments=NUDGED,
    controls=Controls(
        nudging.two(Shape(speed=2)),
        nudging.two(Shape(speed=0.5)),
        nudging.two(Shape(speed=2), seeds=4),
        nudging.two(Shape(speed=0.01), Shape(speed=0.01)),
    ),
    observe=accuracy,
)
def trains_faster(runs: Sequence[Evidence]) -> Verdict:
    """Judge S13; a gain that a larger learning rate gives too is seen in the details, against plain SGD at its best."""
    arms = nudging.arms_of(runs)
    pairs = nudging.pairs_of(arms)
    if not pairs or min(map(len, pairs.values())) < PAIRS:
        return _short("S13", 1.0, pairs)
    every = [p for found in pairs.values() for pair in found for p in pair]
    if all(p.losses.min() > STARTED * p.initial for found in pairs.values() for _, p in found):
        reason = f"plain SGD does not fall below {STARTED:.0%} of its initial training loss: there is nothing to be faster than"
        return silent("S13", "not in regime", 1.0, reason, every)
    parts: list[Part] = []
    details: dict[str, Any] = {}
    for group, found in pairs.items():
        own, plain = ([area(p, EARLY) for p in side] for side in zip(*found, strict=True))
        parts.append(_ratio(_word(group), own, plain, larger=False))
        lr, top = _best_plain(arms, group, [p.seed for p, _ in found])
        against = _ratio("", own, [top[p.seed] for p, _ in found], larger=False)
        times = _ratio("", *_times(found), larger=False)
        details[_word(group)] = {
            "against_plain": parts[-1].told,
            "best_plain_lr": lr,
            "against_best_plain": against.told,
            "against_best_plain_answer": against.answer,
            "updates_to_target": times.told,
            "accuracy_gain_at_half": _gain([_accuracy_at_half(p) for p, _ in found], [_accuracy_at_half(q) for _, q in found]),
        }
    verdict, least = decisive(parts, lambda p: -p.statistic)
    top_told = details[least.name]
    reason = (
        f"over the first half the training loss is x {least.statistic:.3f} that of plain SGD ({least.name}); against plain SGD "
        f"at its best learning rate {top_told['best_plain_lr']:g} it is x {top_told['against_best_plain'][0]:.3f}"
    )
    return Verdict("S13", verdict, least.statistic, least.interval, least.n, 1.0, reason, place(every), 0.5**least.n, details)


def _times(found: Sequence[Pair]) -> tuple[list[float], list[float]]:
    """Updates until the loss that plain SGD has after the early part; NaN where it is not reached."""
    levels = [float(np.interp(q.steps[0] + EARLY * (q.steps[-1] - q.steps[0]), q.steps, q.losses)) for _, q in found]
    own, plain = ([reached(p, level) for p, level in zip(side, levels, strict=True)] for side in zip(*found, strict=True))
    return own, plain


def _accuracy_at_half(found: Path) -> float:
    known = held_out(found.run)
    return float(np.interp(EARLY * max(known), sorted(known), [known[t] for t in sorted(known)])) if known else nan


def _gain(own: Sequence[float], plain: Sequence[float]) -> list[float]:
    """Mean paired difference and its interval; NaN where one is missing."""
    difference = np.asarray(own) - np.asarray(plain)
    if not np.isfinite(difference).all():
        return [nan, nan, nan]
    mean, _, interval = statistics.mean_interval(difference)
    return [mean, *interval]


# --- S14: generalises ------------------------------------------------------------------------------------------------------


@claim(
    "S14",
    sentence="Nudged-SGD with gamma < 1 generalises as well as plain SGD, or better.",
    source=Source(PAPER, "abstracts of v1 (similar) and v6 (better)"),
    scope="sweep",
    statistic="held-out accuracy at the best checkpoint less that of plain SGD at the same learning rate, paired seeds",
    threshold=f"> -{MARGIN}, for each gamma < 1; superiority and equivalence are told beside it",
    quantities=QUANTITIES,
    experiments=NUDGED,
    controls=Controls(
        nudging.two(Shape(accuracy=0.94)), nudging.two(Shape(accuracy=0.85)), nudging.two(Shape(accuracy=0.94), seeds=3),
        nudging.two(Shape(accuracy=None), Shape(accuracy=None)),
    ),
    observe=accuracy,
)  # fmt: skip
def generalises(runs: Sequence[Evidence]) -> Verdict:
    """Judge S14: not inferior by more than the margin.

    Best checkpoint and score come from the same held-out examples, in both arms alike: each is a little too high.

    Args:
        runs: nudged runs and plain SGD.

    Returns:
        The verdict.
    """
    pairs = nudging.pairs_of(nudging.arms_of(runs))
    if not pairs or min(map(len, pairs.values())) < PAIRS:
        return _short("S14", -MARGIN, pairs)
    every = [p for found in pairs.values() for pair in found for p in pair]
    if not all(held_out(p.run) for p in every):
        return silent("S14", "not in regime", -MARGIN, "no held-out accuracy is known of these runs", every)
    parts: list[Part] = []
    details: dict[str, Any] = {}
    for group, found in pairs.items():
        own, plain = ([max(held_out(p.run).values()) for p in side] for side in zip(*found, strict=True))
        mean, interval, _, _ = statistics.paired(own, plain)
        parts.append(Part(_word(group), mean, interval, decide(interval, -MARGIN), len(found)))
        equal = statistics.tost(np.subtract(own, plain), MARGIN)
        details[_word(group)] = {
            "gain": parts[-1].told,
            "better": bool(interval[0] > 0),
            "equivalence_p": equal,
            "gain_at_the_end": _gain([last_accuracy(p.run) for p, _ in found], [last_accuracy(q.run) for _, q in found]),
        }
    verdict, least = decisive(parts, lambda p: p.statistic)
    told = details[least.name]
    reason = (
        f"the best held-out accuracy differs by {least.statistic:+.4f} from plain SGD ({least.name}; equal within {MARGIN}: p "
        f"{told['equivalence_p']:.2g}; {'better' if told['better'] else 'not shown to be better'})"
    )
    return Verdict("S14", verdict, least.statistic, least.interval, least.n, -MARGIN, reason, place(every), 0.5**least.n, details)


# --- S15: sharpness does not order -----------------------------------------------------------------------------------------


@claim(
    "S15",
    sentence="Across Nudged-SGD and plain SGD the sharpness of the end does not order generalisation: sharper is not worse.",
    source=Source(PAPER, "abstract of v1: the curvature of the endpoint is not predictive of its generalization"),
    scope="sweep",
    statistic="Kendall's tau of lambda_1 and held-out accuracy at the end over gammas and learning rates, mean over seeds",
    threshold=f"> {ORDER:.3f}: sharper is worse in less than two of three pairs",
    quantities=QUANTITIES,
    experiments=WIDER,
    controls=Controls(
        nudging.many(nudging.CROSSED),
        nudging.many(nudging.FALLING),
        nudging.many(nudging.CROSSED, seeds=3),
        nudging.many(nudging.CROSSED, known=False),
    ),
    observe=accuracy,
)
def does_not_order(runs: Sequence[Evidence]) -> Verdict:
    """Judge S15: an order weaker than the threshold must be shown, not only not be found. Within plain SGD is told beside."""
    arms = nudging.arms_of(runs)
    every = [p for own in arms.values() for p in own.values()]
    if every and not any(held_out(p.run) for p in every):
        return silent("S15", "not in regime", ORDER, "no held-out accuracy is known of these runs", every)
    whole = sorted(set.intersection(*(set(own) for own in arms.values()))) if arms else []
    if len(whole) < PAIRS or len(arms) < SETTINGS or not any(g[0] < 1 for g in arms):
        reason = f"{len(arms)} settings with {len(whole)} seeds are at hand; {SETTINGS} and {PAIRS} are needed, some gamma < 1"
        return silent("S15", "undecided", ORDER, reason, every)
    plain = {g: own for g, own in arms.items() if g[0] == 1}
    across, within, at_best = (
        [_tau(table, s, where) for s in whole] for table, where in ((arms, "last"), (plain, "last"), (arms, "best"))
    )
    known = [t for t in across if isfinite(t)]
    if len(known) < PAIRS:
        return silent("S15", "undecided", ORDER, "lambda_1 or the accuracy do not vary over the settings, or are missing", every)
    mean, _, interval = statistics.mean_interval(known)
    details: dict[str, Any] = {
        "taus": across,
        "within_plain": _told(within),
        "at_best_checkpoints": _told(at_best),
        "settings": len(arms),
    }
    reason = (
        f"tau of lambda_1 and held-out accuracy is {mean:+.2f} over {len(arms)} settings, "
        f"{details['within_plain'][0]:+.2f} within plain SGD ({len(plain)} learning rates)"
    )
    return Verdict("S15", decide(interval, ORDER), mean, interval, len(known), ORDER, reason, place(every), None, details)


def _tau(arms: Arms, seed: int, where: str) -> float:
    found = [own[seed] for own in arms.values() if seed in own]
    sharp = np.array([nudging.value(p, "sharpness", where) for p in found])
    right = np.array([max(held_out(p.run).values(), default=nan) if where == "best" else last_accuracy(p.run) for p in found])
    good = np.isfinite(sharp) & np.isfinite(right)
    return kendall(sharp[good], right[good]) if good.sum() >= 3 else nan


def _told(values: Sequence[float]) -> list[float]:
    """Mean and interval over the seeds that have a value; NaN if none has."""
    kept = [v for v in values if isfinite(v)]
    if not kept:
        return [nan, nan, nan]
    mean, _, interval = statistics.mean_interval(kept)
    return [mean, *interval]


# --- S16: grows with K -----------------------------------------------------------------------------------------------------


@claim(
    "S16",
    sentence="The effect of nudging grows with the number K of directions: sharper, and better in held-out accuracy.",
    source=Source(PAPER, "ablation of K in the authors' code"),
    scope="sweep",
    statistic="slopes of log top-K Frobenius norm at the end and of log best accuracy over log K, within seeds: the weaker",
    threshold="> 0 for both",
    quantities=QUANTITIES,
    experiments=ABLATION,
    controls=Controls(
        nudging.ladder(0.4, 0.3),
        nudging.ladder(-0.4, 0.3),
        nudging.ladder(0.4, 0.3, seeds=2),
        nudging.ladder(0.4, 0.3, floor=0.01, speed=2.0),
    ),
    observe=accuracy,
)
def grows_with_k(runs: Sequence[Evidence]) -> Verdict:
    """Judge S16: two ordered trends over K at one gamma < 1, the smallest at hand; the last step of the norm tells saturation.

    The norm is that of the eigenvalues measured (5), for each K.

    Args:
        runs: nudged runs of several K.

    Returns:
        The verdict.
    """
    arms = {g: own for g, own in nudging.arms_of(runs, "top_frobenius").items() if g[0] < 1}
    gamma = min((g[0] for g in arms), default=nan)
    found = {(float(g[1]), g[2], s): p for g, own in arms.items() if g[0] == gamma for s, p in own.items()}
    out = {s for (_, _, s), p in found.items() if vanished(p)}
    kept = {key: p for key, p in found.items() if key[2] not in out}
    if len({s for _, _, s in found} - out) < 3 <= len({s for _, _, s in found}):
        reason = f"in {len(out)} seeds the training loss has vanished, and the curvature with it"
        return silent("S16", "not in regime", 0.0, reason, list(found.values()))
    norm = trend({key: float(p.values[-1]) for key, p in kept.items()})
    right = trend({key: max(held_out(p.run).values(), default=nan) for key, p in kept.items()})
    if norm is None or right is None:
        reason = "an ordered trend needs 3 numbers of directions with 3 seeds each, and their held-out accuracy"
        return silent("S16", "undecided", 0.0, reason, list(found.values()))
    both = {"top_frobenius": norm, "held-out accuracy": right}
    parts = [Part(name, t.slope, t.interval, t.answer, t.seeds) for name, t in both.items()]
    verdict, least = decisive(parts, lambda p: p.statistic)
    ks = sorted({k for k, _, _ in kept})
    means = {f"{k:g}": float(np.mean([p.values[-1] for key, p in kept.items() if key[0] == k])) for k in ks}
    details = {p.name: p.told for p in parts} | {"norm_by_k": means, "gamma": gamma, "last_power": _last_power(means)}
    told = ", ".join(f"{value:.3g} at K {k}" for k, value in means.items())
    reason = f"with gamma {gamma:g} the norm at the end is {told} (power {norm.slope:+.2f} of K)"
    reason += f"; the best held-out accuracy follows the power {right.slope:+.4f}"
    return Verdict(
        "S16",
        verdict,
        least.statistic,
        least.interval,
        least.n,
        0.0,
        reason,
        place(list(kept.values())),
        norm.smallest_p,
        details,
    )


def _last_power(means: Mapping[str, float]) -> float:
    """The power of K between its two largest values: near 0 where the effect saturates."""
    (a, x), (b, y) = list(means.items())[-2:]
    return log(y / x) / log(float(b) / float(a))
