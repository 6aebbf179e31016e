"""The claims T4 and T5 of "Three Factors Influencing Minima in SGD" (Jastrzebski et al. 2017): the loss between two ends.

Thresholds were written before any run; the paper says "visibly sharper" and "similar", so that margins are this project's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from math import exp, isfinite, log
from typing import Any

import numpy as np

from sgdscope.contracts import Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence import interpolation
from sgdscope.evidence.endpoints import of_epochs
from sgdscope.evidence.interpolation import bent, beside, by_seed, lost, place, study
from sgdscope.evidence.parts import Part, joint
from sgdscope.evidence.rescaling import MARGIN

PAPER = "Jastrzebski et al. 2017 (1711.04623)"
PAIRS = 5  # seeds of two settings compared
SIMILAR = 1.5  # T4: curvatures within this factor count as similar; lr / batch size differs by 10 / 8 itself; chosen here
EDGE = 2.0  # T5: beta lr lambda_1 from which on the equation in continuous time says nothing (specification, section 5.3)

# factors on lr and batch size; the paper's are (.1, 128), (.1, 1024), (.01, 128), and (.1 beta, 50 beta), beta = .25, 1, 4
NOISES = {"high": (2.0, 0.5), "large batch": (2.0, 4.0), "small lr": (0.2, 0.5)}
SCALES = {"quarter": (1 / 12, 1 / 16), "one": (1 / 3, 1 / 4), "four": (4 / 3, 1.0), "alone": (4 / 3, 1 / 4)}
OWN = {
    "high": (1.0, 1.28), "large batch": (1.0, 10.24), "small lr": (0.1, 1.28),
    "quarter": (0.25, 0.12), "one": (1.0, 0.48), "four": (4.0, 1.92), "alone": (4.0, 0.48),
}  # fmt: skip
# of the preset "paper": (.1, 128), (.1, 1024), (.01, 128); (.025, 12), (.1, 48), (.4, 192), in place of batches of 12.5, 50, 200
THREE = ("quarter", "one", "four")


def _studies(
    preset: str, arms: Mapping[str, tuple[float, float]], stop: str, **more: Any
) -> Callable[[int], list[dict[str, Any]]]:
    """A study a seed: its arms from one start, and all pairs of them but those with the arm of the learning rate alone."""
    pairs = [list(pair) for pair in combinations([name for name in arms if name != "alone"], 2)]
    factors = {name: OWN[name] if preset == "paper" else own for name, own in arms.items()}
    if preset == "paper" and stop == "best":
        more |= {"model": {"name": "resnet", "depth": 56}}

    def one(seed: int) -> dict[str, Any]:
        walks = {name: _kept(of_epochs(preset, seed, *own, **more)) for name, own in factors.items()}
        told = {"name": f"{preset}-lines-{stop}-seed{seed}", "seed": seed, "arms": walks, "pairs": pairs, "stop": stop}
        return told | ({"batchnorm": "recalibrate"} if preset == "paper" else {})

    return lambda seed: [one(1000 * seed + s) for s in range(PAIRS)]


def _kept(walk: dict[str, Any]) -> dict[str, Any]:
    """A few points are kept as they are, which costs less than walking to them again."""
    return walk | {"record": walk["record"] | {"mode": "snapshots"}}


def _gone(claim_id: str, threshold: float, found: Mapping[int, Mapping[str, Any]]) -> Verdict | None:
    """Not in regime if too few seeds are left of those whose loss has not vanished."""
    kept = sum(not lost(extra) for extra in found.values())
    if len(found) < PAIRS or kept >= PAIRS:
        return None
    reason = f"in {len(found) - kept} of {len(found)} seeds the training loss of an end has vanished, and the curvature with it"
    return _silent(claim_id, "not in regime", threshold, reason, found)


def _silent(claim_id: str, verdict: Any, threshold: float, reason: str, found: Mapping[int, Mapping[str, Any]]) -> Verdict:
    nothing = float("nan")
    return Verdict(
        claim_id, verdict, nothing, (nothing, nothing), len(found), threshold, reason, place([*found.values()] or [{}])
    )


# --- T4 ----------------------------------------------------------------------------------------------------------------------

CONTRASTS = tuple(combinations(NOISES, 2))
SHARPER = {"high": (0.3, 32, 4.0, 0.8), "large batch": (0.3, 256, 9.0, 0.8), "small lr": (0.03, 32, 8.0, 0.8)}


@claim(
    "T4",
    sentence="On the line between two early-stopped ends the loss curves more at the end of the smaller lr / batch size, and "
    "alike where lr / batch size is alike.",
    source=Source(PAPER, "figure 2"),
    scope="sweep",
    statistic="ratios of the second differences of the loss along the line at its two ends, of three pairs of settings; the one "
    "that holds least",
    threshold=f"> 1 for a batch 8 times as large and for lr 10 times as small; within 1 / {SIMILAR}..{SIMILAR} between these two",
    quantities={},
    experiments={preset: _studies(preset, NOISES, "best", longer=2) for preset in ("quick", "standard", "paper")},
    controls=Controls(
        interpolation.made(SHARPER, CONTRASTS),
        interpolation.made(SHARPER | {"small lr": (0.03, 32, 4.0, 0.8)}, CONTRASTS),
        interpolation.made(SHARPER, CONTRASTS, seeds=3),
        interpolation.made(SHARPER | {"high": (0.3, 32, 4.0, 0.02)}, CONTRASTS),
    ),
    study=study,
)  # fmt: skip
def smaller_ratio_is_sharper(runs: Sequence[Evidence]) -> Verdict:
    """Judge T4; each arm stops where its held-out accuracy was best. Barriers, distances and losses are told beside.

    Args:
        runs: studies of (lr, batch), (lr, 8 batch) and (lr / 10, batch) from one start.

    Returns:
        The verdict.
    """
    found = by_seed(runs, tuple(NOISES))
    if not found:
        return _silent("T4", "undecided", 1.0, "no study with the three settings is at hand", found)
    if (early := _gone("T4", 1.0, found)) is not None:
        return early
    kept = {s: extra for s, extra in found.items() if not lost(extra)}
    logs = {pair: [bent(extra, *pair) for extra in kept.values()] for pair in CONTRASTS}
    parts = [
        Part(f"curvature at {low} over that at high", logs["high", low], logs=True, least=PAIRS)
        for low in ("large batch", "small lr")
    ]
    alike = f"curvature at {CONTRASTS[2][1]} over that at {CONTRASTS[2][0]}"
    parts += [
        Part(f"{alike}, from below", logs[CONTRASTS[2]], -log(SIMILAR), logs=True, least=PAIRS),
        Part(f"{alike}, from above", logs[CONTRASTS[2]], log(SIMILAR), above=False, logs=True, least=PAIRS),
    ]
    return joint("T4", parts, place=place([*kept.values()]), details=beside(kept), smallest_p=0.5 ** len(kept))


# --- T5 ----------------------------------------------------------------------------------------------------------------------

SAME = {"quarter": (0.025, 12, 4.0, 0.8), "one": (0.1, 48, 4.0, 0.8), "four": (0.4, 192, 4.0, 0.8), "alone": (0.4, 48, 1.6, 0.4)}
LINES = tuple(combinations(THREE, 2))


def _units(found: Mapping[int, Mapping[str, Any]], a: str, b: str, measure: str) -> list[float]:
    """Differences of the logs over seeds, in units of `MARGIN` standard deviations of beta = 1 over its seeds."""
    tables = [np.log([extra["arms"][name][measure] for extra in found.values()]) for name in ("one", a, b)]
    unit = MARGIN * float(np.std(tables[0], ddof=1)) if len(found) > 1 else 0.0
    return [float(d) for d in (tables[2] - tables[1]) / unit] if unit > 0 else []


def _same(found: Mapping[int, Mapping[str, Any]], a: str, b: str) -> list[Part]:
    """Tr H and training loss at two ends are equal within the scatter of the seeds: two one-sided tests at 2.5 % each."""
    told = []
    for measure in ("trace", "loss"):
        units = _units(found, a, b, measure)
        told.append(Part(f"{measure}, {b} against {a}, from below", units, -1.0, least=PAIRS))
        told.append(Part(f"{measure}, {b} against {a}, from above", units, 1.0, above=False, least=PAIRS))
    return told


@claim(
    "T5",
    sentence="Runs of (beta lr, beta batch size) end in minima of the same width and depth for beta = 1/4, 1 and 4, where the "
    "learning rate alone makes a difference.",
    source=Source(PAPER, "figure 3"),
    scope="sweep",
    statistic=f"differences of log Tr H and of log training loss at the ends, pair by pair, over {MARGIN:g} standard deviations "
    "of the seeds; the one that holds least",
    threshold="within -1..1 in each; learning rate times 4 alone outside of it in one",
    quantities={},
    experiments={preset: _studies(preset, SCALES, "last") for preset in ("quick", "standard", "paper")},
    controls=Controls(
        interpolation.made(SAME, LINES, scatter=0.03),
        interpolation.made(SAME | {"four": (0.4, 192, 1.6, 0.8)}, LINES, scatter=0.03),
        interpolation.made(SAME, LINES, seeds=3, scatter=0.03),
        interpolation.made({name: (lr, b, 4 * sharp, loss) for name, (lr, b, sharp, loss) in SAME.items()}, LINES),
    ),
    study=study,
)  # fmt: skip
def same_ends(runs: Sequence[Evidence]) -> Verdict:
    """Judge T5; the curvature of the lines at their ends and the barriers between are told beside.

    Args:
        runs: studies of beta = 1/4, 1, 4 and of the largest learning rate at the batch size of beta = 1, from one start.

    Returns:
        The verdict.
    """
    found = by_seed(runs, tuple(SCALES))
    if not found:
        return _silent("T5", "undecided", 1.0, "no study with the three factors and the learning rate alone is at hand", found)
    if (early := _gone("T5", 1.0, found)) is not None:
        return early
    kept = {s: extra for s, extra in found.items() if not lost(extra)}
    pace = float(np.mean([extra["arms"]["four"]["lr"] * extra["arms"]["one"]["sharpness"] for extra in kept.values()] or [0.0]))
    if pace >= EDGE:
        reason = f"4 lr lambda_1 is {pace:.2f}: beyond the edge there is no limit of continuous time to keep to"
        return _silent("T5", "not in regime", 1.0, reason, kept)
    parts = [part for pair in LINES for part in _same(kept, *pair)]
    alone = [part.held() for part in _same(kept, "one", "alone")]
    seen = any(held.answer == "contradicted" for held in alone)
    bends = {f"{a}|{b}": [bent(extra, a, b) for extra in kept.values()] for a, b in LINES}
    ratios = {pair: exp(np.mean(logs)) if all(map(isfinite, logs)) else None for pair, logs in bends.items()}
    details = beside(kept) | {"slice_curvature_ratios": ratios, "alone": {h.part.text: [h.mean, *h.interval] for h in alone}}
    lead = f"lr alone {'differs' if seen else 'is not shown to differ'}; in margins "
    verdict = joint("T5", parts, place=place([*kept.values()]), lead=lead, details=details, smallest_p=0.5 ** len(kept))
    return replace(verdict, verdict="undecided") if verdict.verdict == "supported" and not seen else verdict
