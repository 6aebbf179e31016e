"""The claims T6, T7 and T10 of "Three Factors Influencing Minima in SGD": schedules of equal lr / batch size, and their stages.

Thresholds were written before any run. A square wave moves either the learning rate or the batch size; both schedules have
the same lr / batch size at every epoch, and so the same time of the stochastic differential equation.

The paper's labels are clean. Runs whose labels are partly drawn anew also tell how fast these are memorised, so each claim is
judged in two groups, without and with corrupted labels, and must hold in each of those at hand: the clean group cannot save
a claim that fails on the other. It was added after the first verdicts on corrupted labels and before any run of its own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite, nan
from typing import Any

import numpy as np

from sgdscope.contracts import Answer, Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence.accuracy import accuracy
from sgdscope.evidence.endpoints import Part
from sgdscope.evidence.schedule_exchange import (
    Arm,
    Table,
    alternation,
    compared,
    ending,
    exchanged,
    fall,
    farthest,
    schedules_made,
    superior,
    tables_of,
)
from sgdscope.evidence.sharpness import path, place
from sgdscope.evidence.windows import LOSS_SHARE, mean_finite, weakest
from sgdscope.theory.schedules import MISMATCH

PAPER = "Jastrzebski et al. 2017 (1711.04623)"
PAIRS = 5  # seeds of two settings that are compared
SEEDS = 16  # of the runs; with scatter of its own in each arm, 8 (as the paper has) rarely show equality within one deviation
QUANTITIES: Mapping[str, Mapping[str, Any]] = {"curvature": {"k": 1}}
MOTION: Mapping[str, Mapping[str, Any]] = {"motion": {}}  # where held-out accuracies alone are compared
GROUPS = "; of each group of labels, as they are and with a share drawn anew"

Pair = tuple[Arm, Arm]
Row = tuple[str, Part, float]  # words, part, threshold


def _regime(runs: Sequence[Evidence]) -> dict[str, float | str]:
    falls = [fall(run) for run in runs]
    told = {"training_loss": mean_finite([last for _, last in falls])}
    told |= {"loss_share": mean_finite([last / first for first, last in falls if first > 0])}
    return place([path(run) for run in runs]) | told


def _silent(claim_id: str, runs: Sequence[Evidence], reason: str, *, foreign: bool = False) -> Verdict:
    answer: Answer = "not in regime" if foreign else "undecided"
    return Verdict(claim_id, answer, nan, (nan, nan), len(runs), 1.0, reason, _regime(runs))


def _equal_ratio(table: Table, first: str, second: str) -> list[Pair]:
    """Pairs of arms of the same lr / batch size at all times, of which one moves `first` and the other `second`."""
    return [
        (a, b) for a in table for b in table if a != b and (a.moves, b.moves) == (first, second) and a.mismatch(b) <= MISMATCH
    ]


def _constants(table: Table) -> tuple[list[Pair], list[Pair]]:
    """Pairs of constant arms: of equal lr / batch size, the larger batch second; and the lowest against the highest ratio."""
    still = sorted((a for a in table if a.moves == "nothing"), key=lambda a: (float(a.ratio[0]), a.batch_size))
    same = [(a, b) for a, b in _equal_ratio(table, "nothing", "nothing") if a.batch_size < b.batch_size]
    ends = [(still[0], still[-1])] if len(still) > 1 and still[0].mismatch(still[-1]) > MISMATCH else []
    return same, ends


def _diverged(runs: Sequence[Evidence]) -> bool:
    """Whether a run has a training loss that is not finite, or no network got better than where it began."""
    falls = [both for run in runs if isfinite((both := fall(run))[0])]
    return any(not isfinite(last) for _, last in falls) or (bool(falls) and all(last >= first for first, last in falls))


def _needs(table: Table, pair: Pair) -> bool:
    return len(set(table[pair[0]]) & set(table[pair[1]])) >= PAIRS


def _judged(claim_id: str, runs: Sequence[Evidence], parts: Sequence[Row], details: Mapping[str, Any]) -> Verdict:
    """All parts must hold; the first of those that decide is told."""
    answer = weakest(p.answer for _, p, _ in parts)
    name, part, threshold = next(row for row in parts if row[1].answer == answer)
    told = {f"{words}: {p.name}": [*p.told, p.answer] for words, p, _ in parts}
    held = sum(p.answer == "supported" for _, p, _ in parts)
    reason = f"{held} of {len(parts)} parts hold; decisive: {name}, {part.name} {part.statistic:+.3g} "
    reason += f"[{part.interval[0]:.3g}, {part.interval[1]:.3g}]"
    smallest = 0.5**part.n
    numbers = (part.statistic, part.interval, part.n, threshold)
    return Verdict(claim_id, answer, *numbers, reason, _regime(runs), smallest, {"parts": told} | dict(details))


def _early(claim_id: str, runs: Sequence[Evidence], groups: Mapping[str, Table]) -> Verdict | None:
    """What is said of runs of which nothing can be asked."""
    if runs and not groups and any(run.extra for run in runs):
        return _silent(claim_id, runs, "no held-out examples are known", foreign=True)
    if len(runs) >= PAIRS and _diverged(runs):
        return _silent(claim_id, runs, "a run diverged, or none learned anything", foreign=True)
    return None


def _alike(table: Table, pairs: Sequence[Pair]) -> tuple[list[Row], dict[str, Any]]:
    """The parts of pairs of equal lr / batch size, and what is told beside.

    Where all pairs are equal and no piece of the constants of the lowest and of the highest lr / batch size is shown to be
    apart, nothing was exchanged: a last row is undecided.

    Args:
        table: the runs of a group.
        pairs: of its arms, at least one.

    Returns:
        (rows, details).
    """
    _, ends = _constants(table)
    rows = [(f"{a} against {b}", part, 1.0) for a, b in pairs for part in compared(table[a], table[b])]
    apart = [part for a, b in ends for part in compared(table[a], table[b])]
    if all(p.answer == "supported" for _, p, _ in rows) and not any(p.answer == "contradicted" for p in apart):
        widest = max(apart, key=lambda p: abs(p.statistic), default=Part("nothing", nan, (nan, nan), "undecided", 0))
        rows.append(("nothing was exchanged: constants of another ratio do not differ", replace(widest, answer="undecided"), 1.0))
    told: dict[str, Any] = {"mismatch": max(a.mismatch(b) for a, b in pairs)}
    told["accuracy_at_the_end"] = {str(a): float(np.mean([ending(r) for r in own.values()])) for a, own in table.items()}
    told["farthest"] = {f"{a} against {b}": farthest(table[a], table[b]) for a, b in pairs}
    return rows, told | {"another_ratio": {part.name: part.told for part in apart}}


def _exchangeable(claim_id: str, runs: Sequence[Evidence], *, constants: bool) -> Verdict:
    """Judge T6 (cyclic pairs) or T7 (constants, and the gain of the waves) in each group."""
    groups = tables_of(runs)
    if (early := _early(claim_id, runs, groups)) is not None:
        return early
    rows: list[Row] = []
    details: dict[str, Any] = {}
    for words, table in groups.items():
        same, ends = _constants(table)
        pairs = same[:1] if constants else _equal_ratio(table, "lr", "batch")
        if not pairs or not all(_needs(table, pair) for pair in (*pairs, *ends)):
            rows = []
            break
        own, details[words] = _alike(table, pairs)
        own += [("cyclic - constant", _gain(table, same[0]), 0.0)] if constants else []
        rows += [(f"{words}: {name}", part, threshold) for name, part, threshold in own]
    if not rows:
        reason = f"two schedules of one lr / batch size within {MISMATCH:.0%} with {PAIRS} seeds each are needed in each group"
        return _silent(claim_id, runs, reason)
    return _judged(claim_id, runs, rows, details)


@claim(
    "T6",
    sentence="A cyclic batch size in place of a cyclic learning rate, at the same lr / batch size at all times, gives the same "
    "held-out accuracy along training.",
    source=Source(PAPER, "section 4.4, Figure 4 left"),
    scope="sweep",
    statistic="paired difference of held-out accuracy, cyclic lr - cyclic batch, over both halves of training and at the end, "
    f"in standard deviations of an accuracy over seeds; the part that decides{GROUPS}",
    threshold="within 1, by two one-sided tests, where constants of another lr / batch size differ by more than 1",
    quantities=MOTION,
    experiments=exchanged(("lr-short", "batch-short", "low", "high"), SEEDS),
    controls=Controls(
        schedules_made(), lambda seed: schedules_made(batch=0.03)(seed), lambda seed: schedules_made(seeds=4)(seed),
        lambda seed: schedules_made(learned=False)(seed),
    ),
    observe=accuracy,
)  # fmt: skip
def cyclic_exchange(runs: Sequence[Evidence]) -> Verdict:
    """Judge T6: each pair of cyclic schedules of equal stages, in each group of labels.

    Args:
        runs: cyclic schedules of equal stages, and constants of two ratios.

    Returns:
        The verdict: of the weakest part of all groups.
    """
    return _exchangeable("T6", runs, constants=False)


def _better(table: Table, cyclic: Sequence[Arm], still: Sequence[Arm]) -> Part:
    """Accuracy at the end of the cyclic schedules above that of the constants, over seeds."""
    arms = (*cyclic, *still)
    both = sorted(set.intersection(*(set(table[a]) for a in arms))) if cyclic and still else []
    means = [[float(np.mean([ending(table[a][s]) for a in group])) for s in both] for group in (cyclic, still)]
    return superior("accuracy at the end", [a - b for a, b in zip(*means, strict=True)])


@claim(
    "T7",
    sentence="Constant schedules of equal lr / batch size give the same held-out accuracy along training, and cyclic schedules "
    "that begin at a higher ratio end better than they.",
    source=Source(PAPER, "section 4.4, Figure 4 right against left"),
    scope="sweep",
    statistic="paired difference of held-out accuracy of the two constants as in T6; that of cyclic schedules - constants, at "
    f"the end; the part that decides{GROUPS}",
    threshold="within 1 standard deviation by two one-sided tests, where another ratio differs by more; > 0",
    quantities=MOTION,
    experiments=exchanged(("lr-short", "batch-short", "low", "low-large", "high"), SEEDS),
    controls=Controls(
        schedules_made(), lambda seed: schedules_made(batch=0.03)(seed), lambda seed: schedules_made(seeds=4)(seed),
        lambda seed: schedules_made(learned=False)(seed),
    ),
    observe=accuracy,
)  # fmt: skip
def constant_exchange(runs: Sequence[Evidence]) -> Verdict:
    """Judge T7 in each group of labels: the constants at the lower end of the waves, and the shorter waves against them.

    Args:
        runs: cyclic schedules of equal stages, constants of their lower ratio with two batch sizes, and one of the higher ratio.

    Returns:
        The verdict: of the weakest part of all groups.
    """
    return _exchangeable("T7", runs, constants=True)


def _gain(table: Table, same: Pair) -> Part:
    """Accuracy at the end of the waves of the shortest stages above that of the constants."""
    moving = [arm for pair in _equal_ratio(table, "lr", "batch") for arm in pair]
    shortest = min((arm.epochs[0] for arm in moving), default=nan)
    return _better(table, [arm for arm in moving if arm.epochs[0] <= shortest * (1 + MISMATCH)], same)


def _vanished(runs: Sequence[Evidence]) -> bool:
    """Whether the training loss of more than half of the runs ends below `LOSS_SHARE` of where it began."""
    return sum(last < LOSS_SHARE * first for first, last in map(fall, runs)) > len(runs) / 2


def _stages(table: Table) -> tuple[list[Row], dict[str, Any]]:
    """For each cyclic arm: sharpness falls and loss rises with the noise; not in regime where the loss has vanished."""
    rows: list[Row] = []
    ratios: dict[str, float] = {}
    for arm, own in table.items():
        logs = {name: [alternation(own[s], name) for s in sorted(own)] for name in ("sharpness", "loss")}
        ratios[str(arm)] = mean_finite([a - b for a, b in zip(logs["sharpness"], logs["loss"], strict=True)])
        for name, sign, words in (("sharpness", -1, "sharper"), ("loss", 1, "deeper")):
            part = superior(f"{words} at low noise, log {name}", [sign * v for v in logs[name]])
            rows.append((str(arm), replace(part, answer="not in regime") if _vanished([*own.values()]) else part, 0.0))
    return rows, {"log_sharpness_over_loss": ratios}


@claim(
    "T10",
    sentence="Under a cyclic schedule the walk alternates between sharp and deep, where lr / batch size is low, and flat and "
    "high, where it is high; longer stages end with better held-out accuracy.",
    source=Source(PAPER, "section 4.5, Figure 13"),
    scope="sweep",
    statistic="phase-locked differences of log lambda_1 and log training loss between stage ends of low and high noise, without "
    f"their trend; accuracy at the end of long - short stages, paired; the part that decides{GROUPS}",
    threshold=f"> 0 for each cyclic schedule; phases whose training loss ends below {LOSS_SHARE:.0%} of its start say nothing",
    quantities=QUANTITIES,
    experiments=exchanged(("lr-short", "batch-short", "lr-long", "batch-long"), SEEDS),
    controls=Controls(
        schedules_made(), lambda seed: schedules_made(wave=-0.5)(seed), lambda seed: schedules_made(seeds=4)(seed),
        lambda seed: schedules_made(learned=False)(seed),
    ),
    observe=accuracy,
)  # fmt: skip
def alternates(runs: Sequence[Evidence]) -> Verdict:
    """Judge T10 over the cyclic arms of each group of labels; sharpness is of the training loss, corrupted labels included.

    Where the training loss of an arm has vanished, cross entropy takes the curvature with it: its phases are told, and count as
    "not in regime", so that the claim is not supported; the accuracy at its end counts as any other.

    Args:
        runs: cyclic schedules of short and long stages.

    Returns:
        The verdict: of the weakest part of all groups.
    """
    groups = {w: {a: own for a, own in t.items() if a.moves in {"lr", "batch"}} for w, t in tables_of(runs).items()}
    if (early := _early("T10", runs, groups)) is not None:
        return early
    rows: list[Row] = []
    details: dict[str, Any] = {}
    for words, table in groups.items():
        kinds = {moves: sorted((a for a in table if a.moves == moves), key=lambda a: a.epochs[0]) for moves in ("lr", "batch")}
        pairs = [(own[-1], own[0]) for own in kinds.values() if len(own) > 1]
        if len(pairs) < 2 or not all(_needs(table, pair) for pair in pairs):
            rows = []
            break
        own, details[words] = _stages(table)
        own += [(f"{a} - stages of {b.epochs[0]:.3g}", _better(table, [a], [b]), 0.0) for a, b in pairs]
        ends = {str(a): float(np.mean([ending(r) for r in told.values()])) for a, told in table.items()}
        details[words]["accuracy_at_the_end"] = ends
        rows += [(f"{words}: {name}", part, threshold) for name, part, threshold in own]
    if not rows:
        reason = f"cyclic lr and cyclic batch, each with short and long stages and {PAIRS} seeds, are needed in each group"
        return _silent("T10", runs, reason)
    if not all(isfinite(part.statistic) for _, part, _ in rows):
        return _silent("T10", runs, "the curvature at the ends of stages is not known of enough seeds")
    return _judged("T10", runs, rows, details)
