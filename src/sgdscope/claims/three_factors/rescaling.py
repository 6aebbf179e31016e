"""The claims T9 and T13 of "Three Factors Influencing Minima in SGD" (Jastrzebski et al. 2017): how far rescaling reaches.

Thresholds were written before any run. beta* is the first factor on learning rate and batch size whose held-out accuracy falls
below that of the base by more than max(0.01, 2 standard deviations of its seeds) (specification, section 5.3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import inf, isfinite, log, nan, sqrt
from typing import Any

import numpy as np

from sgdscope.contracts import Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence import breakdown
from sgdscope.evidence.accuracy import accuracy
from sgdscope.evidence.breakdown import Ladder, dispersions, ladders, observed, predicted, rooted
from sgdscope.evidence.endpoints import at_equal_epochs, of_epochs, silent
from sgdscope.evidence.parts import Part, joint
from sgdscope.evidence.rescaling import Rescaled, rescaled, settings_of
from sgdscope.evidence.sharpness import Path, place
from sgdscope.evidence.windows import trend

PAPER = "Jastrzebski et al. 2017 (1711.04623)"
SEEDS, PAIRS = 3, 5  # of an ordered trend; of two settings compared
SIZES = 3  # training sets of a trend
EDGE = 2.0  # beta lr lambda_1 from which on the equation in continuous time says nothing (specification, section 5.3)
QUANTITIES: Mapping[str, Mapping[str, Any]] = {"curvature": {"k": 5, "probes": 16}}

BETAS = (1, 2, 4, 8, 16, 32)
SHARES = {"quick": (1.0, 0.5, 0.25), "standard": (1.0, 0.5, 0.25), "paper": (1.0, 0.5, 12000 / 45000)}  # figure 6


def _ladders(preset: str) -> Callable[[int], list[dict[str, Any]]]:
    """(beta lr, beta batch) on heads of the training set; on the whole set they are the runs of F5."""
    return lambda seed: [
        of_epochs(preset, 1000 * seed + s, 0.25 * beta, 0.125 * beta, share=share)
        for share in SHARES[preset] for beta in BETAS for s in range(PAIRS)
    ]  # fmt: skip


RULES = at_equal_epochs(
    [(0.25 * lr, 0.125 * beta, s, {}) for beta in (1, 2, 4) for lr in sorted({beta, sqrt(beta)}) for s in range(PAIRS)]
)


# --- T9: the limit and the size of the training set --------------------------------------------------------------------------


@claim(
    "T9",
    sentence="Multiplying learning rate and batch size together keeps the held-out accuracy up to a factor beta*, and beta* is "
    "smaller on a smaller training set.",
    source=Source(PAPER, "figure 6"),
    scope="sweep",
    statistic="power of the size of the training set that beta* follows, within seeds",
    threshold="> 0, by interval and by Jonckheere's test",
    quantities=QUANTITIES,
    experiments={preset: _ladders(preset) for preset in SHARES},
    controls=Controls(
        breakdown.ladder({400: 3, 800: 6, 1600: 12}), breakdown.ladder({400: 12, 800: 6, 1600: 3}),
        breakdown.ladder({400: 3, 800: 6, 1600: 12}, seeds=2), breakdown.ladder({400: 3, 800: 6, 1600: 12}, known=False),
    ),
    observe=observed,
)  # fmt: skip
def smaller_set_breaks_earlier(runs: Sequence[Evidence]) -> Verdict:
    """Judge T9; beta* of a seed is between the factors, its level the same for all seeds of a training set.

    A seed that never falls on the largest set counts with the largest factor, which makes its power smaller than it is; on a
    smaller set it is left out.

    Args:
        runs: of (beta lr, beta batch size) on training sets of several sizes, at equal epochs.

    Returns:
        The verdict; fits of log beta* over each predictor in the details.
    """
    found = ladders(runs)
    every = [p for ladder in found for own in ladder.found.table.values() for p in own.values()]
    if every and not any(isfinite(a) for ladder in found for own in ladder.accuracies.values() for a in own.values()):
        return silent("T9", "not in regime", 0.0, "no held-out accuracy is known of these runs", every)
    stars = _stars(found)
    rank = trend({(float(n), 0.0, s): star for (n, s), star in stars.items()}) if len(found) >= SIZES else None
    if rank is None:
        reason = f"beta* is needed on {SIZES} sizes of the training set with {SEEDS} seeds each, the same on all; "
        reason += (
            "known of " + (", ".join(_counts(found, stars)) or "none") + "; the other seeds are fine up to the largest factor"
        )
        return replace(silent("T9", "undecided", 0.0, reason, every), details=_told(found))
    means = {ladder.examples: ladder.star() for ladder in found}
    told = ", ".join(f"{star:.3g} of {n} examples" if star < inf else f"none of {n} examples" for n, star in means.items())
    reason = f"beta* by the mean accuracies is {told}; within seeds it follows the power {rank.slope:+.2f} of the size"
    details = _told(found) | {"fits": predicted(found, stars)}
    where = place([p for ladder in found for p in ladder.found.table[ladder.found.base].values()])
    return Verdict("T9", rank.answer, rank.slope, rank.interval, rank.seeds, 0.0, reason, where, rank.smallest_p, details)


def _stars(found: Sequence[Ladder]) -> dict[tuple[int, int], float]:
    """(examples, seed) -> beta*, as far as it is known."""
    stars = {}
    for ladder in found:
        least = ladder is not found[-1]
        for s in ladder.seeds:
            star = ladder.star(s) if isfinite(ladder.level) else nan
            if isfinite(star) or not (least or np.isnan(star)):
                stars[ladder.examples, s] = min(star, max(ladder.accuracies))
    return stars


def _counts(found: Sequence[Ladder], stars: Mapping[tuple[int, int], float]) -> list[str]:
    return [f"{sum(n == ladder.examples for n, _ in stars)} seeds with {ladder.examples} examples" for ladder in found]


def _told(found: Sequence[Ladder]) -> dict[str, Any]:
    """beta*, accuracies and predictors of each training set."""
    sizes = {}
    for ladder in found:
        means = {f"{beta:g}": float(np.mean(list(own.values()))) for beta, own in ladder.accuracies.items()}
        stars = [ladder.star(s) for s in ladder.seeds]
        sizes[str(ladder.examples)] = {
            "beta_star": ladder.star(), "of_each_seed": stars, "accuracy": means, "level": ladder.level,
            "predictors": ladder.predictors(),
        }  # fmt: skip
    return {"training_sets": sizes}


# --- T13: lr ~ sqrt(batch size) ----------------------------------------------------------------------------------------------


@claim(
    "T13",
    sentence="What lr ~ batch size leaves as it is lies closer together than what lr ~ sqrt(batch size) leaves: curves and ends "
    "at equal epochs disperse less over the same batch sizes.",
    source=Source(PAPER, "section 3: lr / batch size against lr / sqrt(batch size) of Hoffer et al."),
    scope="sweep",
    statistic="ratio within seeds of the dispersions over batch sizes of training curve, |H|_F and accuracy, linear over root",
    threshold="< 1",
    quantities=QUANTITIES,
    experiments=RULES,
    controls=Controls(
        breakdown.rules(0.05, 0.5), breakdown.rules(0.5, 0.05), breakdown.rules(0.05, 0.5, seeds=3),
        breakdown.rules(0.05, 0.5, sharp=30.0),
    ),
    observe=accuracy,
)  # fmt: skip
def linear_rule_disperses_less(runs: Sequence[Evidence]) -> Verdict:
    """Judge T13 below the edge and below beta*; root mean square over the measures, each in deviations of the base's seeds.

    Args:
        runs: a base, and settings by both rules of the same batch sizes, at equal epochs.

    Returns:
        The verdict.
    """
    found = rescaled(runs)
    every = [p for own in settings_of(runs).values() for p in own.values()]
    root = rooted(found) if found else {}
    betas = [b for b in (found.factors if found else {}) if b in root]
    if found is None or not betas or len(found.seeds) < PAIRS:
        reason = f"a base and settings by both rules at equal epochs are needed, with {PAIRS} seeds of each"
        return silent("T13", "undecided", 1.0, reason, every)
    if (outside := _beyond(found, max(betas))) is not None:
        return silent("T13", "not in regime", 1.0, outside, every)
    both = [dispersions(found, [settings[b] for b in betas]) for settings in (found.factors, root)]
    seeds = sorted(set(both[0]) & set(both[1]))
    logs = [_log_ratio(*(own[s] for own in both)) for s in seeds]
    names = sorted({name for own in both[0].values() for name in own})
    beside = {
        name: {rule: float(np.mean([own[s][name] for s in seeds])) for rule, own in zip(("linear", "root"), both, strict=True)}
        for name in names
    }
    part = Part("dispersion under lr ~ batch over that under lr ~ sqrt(batch)", logs, 0.0, above=False, logs=True, least=PAIRS)
    lead = f"over batch sizes times {', '.join(f'{b:g}' for b in [1, *betas])} (linear, root: "
    lead += ", ".join(f"{name} {own['linear']:.2g}, {own['root']:.2g}" for name, own in beside.items()) + "): "
    return joint("T13", [part], place=place(every), lead=lead, details={"dispersions": beside}, smallest_p=0.5 ** len(seeds))


def _log_ratio(linear: Mapping[str, float], root: Mapping[str, float]) -> float:
    means = [float(np.mean(np.square(list(own.values())))) if own else nan for own in (linear, root)]
    return 0.5 * log(means[0] / means[1]) if min(means) > 0 else nan


def _beyond(found: Rescaled, beta: float) -> str | None:
    """Why the largest factor lies beyond the limit of the linear rule, or None."""
    base: list[Path] = list(found.table[found.base].values())
    pace = beta * float(place(base)["eta_sharpness"])
    if pace >= EDGE:
        return f"beta lr lambda_1 is {pace:.2f} at beta {beta:g}, beyond the edge"
    own = ladders([_sized(p.run) for at in (found.base, *found.factors.values()) for p in found.table[at].values()])
    if own and own[0].star() <= beta:
        return f"the linear rule keeps the held-out accuracy up to beta* = {own[0].star():.3g} only"
    return None


def _sized(run: Evidence) -> Evidence:
    return Evidence({"examples": 1} | dict(run.settings), run.steps, run.measured, run.extra)
