"""The claims T6, T7 and T10 of "Three Factors Influencing Minima in SGD": schedules of equal lr / batch size, and their stages.

Thresholds were written before any run. A square wave moves either the learning rate or the batch size; both schedules have
the same lr / batch size at every epoch, and so the same time of the stochastic differential equation.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    farthest,
    schedules_made,
    superior,
    table_of,
)
from sgdscope.evidence.sharpness import path, place
from sgdscope.evidence.windows import weakest
from sgdscope.theory.schedules import MISMATCH

PAPER = "Jastrzebski et al. 2017 (1711.04623)"
PAIRS = 5  # seeds of two settings that are compared
SEEDS = 16  # of the runs; with scatter of its own in each arm, 8 (as the paper has) rarely show equality within one deviation
QUANTITIES: Mapping[str, Mapping[str, Any]] = {"curvature": {"k": 1}}

Pair = tuple[Arm, Arm]


def _regime(runs: Sequence[Evidence]) -> dict[str, float | str]:
    return place([path(run) for run in runs])


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
    """Whether a run has a training loss that is not finite, or no network got better than chance."""
    known = [p for run in runs if len((p := path(run)).steps)]
    return any(not np.isfinite(p.losses).all() for p in known) or (bool(known) and all(p.losses[-1] >= p.initial for p in known))


def _needs(table: Table, pair: Pair) -> bool:
    return len(set(table[pair[0]]) & set(table[pair[1]])) >= PAIRS


def _sensitive(table: Table, ends: Sequence[Pair]) -> list[Part]:
    """How far constants of different lr / batch size are apart, in the same units."""
    return [part for a, b in ends for part in compared(table[a], table[b])]


def _judged(
    claim_id: str, runs: Sequence[Evidence], parts: Sequence[tuple[str, Part, float]], details: Mapping[str, Any]
) -> Verdict:
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


def _exchangeable(
    claim_id: str, runs: Sequence[Evidence], pairs: Sequence[Pair], more: Sequence[tuple[str, Part, float]]
) -> Verdict:
    """Pairs of equal lr / batch size have equal accuracy, where another lr / batch size has not."""
    table = table_of(runs)
    if runs and not table and any(run.extra for run in runs):
        return _silent(claim_id, runs, "no held-out examples are known", foreign=True)
    if len(runs) >= PAIRS and _diverged(runs):
        return _silent(claim_id, runs, "a run diverged, or none learned anything", foreign=True)
    _, ends = _constants(table)
    if not pairs or not all(_needs(table, pair) for pair in (*pairs, *ends)):
        reason = f"two schedules of one lr / batch size within {MISMATCH:.0%} with {PAIRS} seeds each are needed"
        return _silent(claim_id, runs, reason)
    parts = [(f"{a} against {b}", part, 1.0) for a, b in pairs for part in compared(table[a], table[b])]
    apart = _sensitive(table, ends)
    details: dict[str, Any] = {"mismatch": max(a.mismatch(b) for a, b in pairs)}
    details["accuracy_at_the_end"] = {str(a): float(np.mean([ending(r) for r in own.values()])) for a, own in table.items()}
    details["farthest"] = {f"{a} against {b}": farthest(table[a], table[b]) for a, b in pairs}
    details["another_ratio"] = {part.name: part.told for part in apart}
    found = _judged(claim_id, runs, [*parts, *more], details)
    if found.verdict == "supported" and not any(p.answer == "contradicted" for p in apart):
        reason = "accuracies are equal, but constants of another lr / batch size do not differ either: nothing was exchanged"
        return _silent(claim_id, runs, reason)
    return found


@claim(
    "T6",
    sentence="A cyclic batch size in place of a cyclic learning rate, at the same lr / batch size at all times, gives the same "
    "held-out accuracy along training.",
    source=Source(PAPER, "section 4.4, Figure 4 left"),
    scope="sweep",
    statistic="paired difference of held-out accuracy, cyclic lr - cyclic batch, over both halves of training and at the end, "
    "in standard deviations of an accuracy over seeds; the part that decides",
    threshold="within 1, by two one-sided tests, where constants of another lr / batch size differ by more than 1",
    quantities=QUANTITIES,
    experiments=exchanged(("lr-short", "batch-short", "low", "high"), SEEDS),
    controls=Controls(
        schedules_made(), lambda seed: schedules_made(batch=0.03)(seed), lambda seed: schedules_made(seeds=4)(seed),
        lambda seed: schedules_made(learned=False)(seed),
    ),
    observe=accuracy,
)  # fmt: skip
def cyclic_exchange(runs: Sequence[Evidence]) -> Verdict:
    """Judge T6: each pair of cyclic schedules of equal stages."""
    return _exchangeable("T6", runs, _equal_ratio(table_of(runs), "lr", "batch"), ())


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
    "the end; the part that decides",
    threshold="within 1 standard deviation by two one-sided tests, where another ratio differs by more; > 0",
    quantities=QUANTITIES,
    experiments=exchanged(("lr-short", "batch-short", "low", "low-large", "high"), SEEDS),
    controls=Controls(
        schedules_made(), lambda seed: schedules_made(batch=0.03)(seed), lambda seed: schedules_made(seeds=4)(seed),
        lambda seed: schedules_made(learned=False)(seed),
    ),
    observe=accuracy,
)  # fmt: skip
def constant_exchange(runs: Sequence[Evidence]) -> Verdict:
    """Judge T7: the constants at the lower end of the waves, and the waves of the shorter stages against them."""
    table = table_of(runs)
    same, _ = _constants(table)
    moving = [arm for pair in _equal_ratio(table, "lr", "batch") for arm in pair]
    shortest = min((arm.epochs[0] for arm in moving), default=nan)
    cyclic = [arm for arm in moving if arm.epochs[0] <= shortest * (1 + MISMATCH)]
    more = [("cyclic - constant", _better(table, cyclic, [a for pair in same[:1] for a in pair]), 0.0)]
    return _exchangeable("T7", runs, same[:1], more)


def _stages(table: Table) -> list[tuple[str, Part, float]]:
    """For each cyclic arm: sharpness falls and loss rises with the noise."""
    parts = []
    for arm, own in table.items():
        for name, sign, words in (("sharpness", -1, "sharper"), ("loss", 1, "deeper")):
            values = [alternation(own[s], name) for s in sorted(own)]
            parts.append((str(arm), superior(f"{words} at low noise, log {name}", [sign * v for v in values]), 0.0))
    return parts


@claim(
    "T10",
    sentence="Under a cyclic schedule the walk alternates between sharp and deep, where lr / batch size is low, and flat and "
    "high, where it is high; longer stages end with better held-out accuracy.",
    source=Source(PAPER, "section 4.5, Figure 13"),
    scope="sweep",
    statistic="phase-locked differences of log lambda_1 and log training loss between stage ends of low and high noise, without "
    "their trend; accuracy at the end of long - short stages, paired; the part that decides",
    threshold="> 0 for each cyclic schedule",
    quantities=QUANTITIES,
    experiments=exchanged(("lr-short", "batch-short", "lr-long", "batch-long"), SEEDS),
    controls=Controls(
        schedules_made(), lambda seed: schedules_made(wave=-0.5)(seed), lambda seed: schedules_made(seeds=4)(seed),
        lambda seed: schedules_made(learned=False)(seed),
    ),
    observe=accuracy,
)  # fmt: skip
def alternates(runs: Sequence[Evidence]) -> Verdict:
    """Judge T10 over all cyclic arms of the runs; sharpness is of the training loss, corrupted labels included.

    Args:
        runs: cyclic schedules of short and long stages.

    Returns:
        The verdict.
    """
    table = {arm: own for arm, own in table_of(runs).items() if arm.moves in {"lr", "batch"}}
    if len(runs) >= PAIRS and _diverged(runs):
        return _silent("T10", runs, "a run diverged, or none learned anything", foreign=True)
    kinds = {moves: sorted((a for a in table if a.moves == moves), key=lambda a: a.epochs[0]) for moves in ("lr", "batch")}
    pairs = [(own[-1], own[0]) for own in kinds.values() if len(own) > 1]
    if len(pairs) < 2 or not all(_needs(table, pair) for pair in pairs):
        reason = f"cyclic lr and cyclic batch, each with short and long stages and {PAIRS} seeds, are needed"
        return _silent("T10", runs, reason)
    parts = _stages(table)
    parts += [(f"{a} - stages of {b.epochs[0]:.3g}", _better(table, [a], [b]), 0.0) for a, b in pairs]
    if not all(isfinite(part.statistic) for _, part, _ in parts):
        return _silent("T10", runs, "the curvature at the ends of stages is not known of enough seeds")
    ends = {str(a): float(np.mean([ending(r) for r in own.values()])) for a, own in table.items()}
    return _judged("T10", runs, parts, {"accuracy_at_the_end": ends})
