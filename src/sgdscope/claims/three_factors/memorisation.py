"""The claim T8 of "Three Factors Influencing Minima in SGD": noise lets a network generalise longer before it memorises.

Thresholds were written before any run. The networks see labels of which a share was drawn anew; runs are compared where they
have memorised equally much of it, not at equal times.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite, nan
from typing import Any

import numpy as np

from sgdscope.contracts import Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence.memorisation import CELLS, LEVELS, grid, memorised, memorising, order, slopes
from sgdscope.evidence.parts import Part, joint
from sgdscope.evidence.sharpness import path, place
from sgdscope.evidence.windows import mean_finite

PAPER = "Jastrzebski et al. 2017 (1711.04623)"
TREND = 3  # seeds of an ordered trend
SEEDS = 4  # of the runs


def _regime(runs: Sequence[Evidence]) -> dict[str, float | str]:
    losses = [float(run.steps["loss"].values[-1]) for run in runs if "loss" in run.steps and run.steps["loss"].size]
    return place([path(run) for run in runs]) | {"training_loss": mean_finite(losses)}


def _silent(runs: Sequence[Evidence], reason: str, *, foreign: bool = False) -> Verdict:
    return Verdict("T8", "not in regime" if foreign else "undecided", nan, (nan, nan), len(runs), 0.0, reason, _regime(runs))


def _groups(runs: Sequence[Evidence]) -> dict[float, dict[int, list[Evidence]]]:
    """Share of corrupted labels -> seed -> runs, of those that have any."""
    table: dict[float, dict[int, list[Evidence]]] = {}
    for run in runs:
        told = run.extra.get("memorised") or {}
        if np.isfinite(np.asarray(told.get("corrupted", ()), np.float64)).any():
            share = float(run.settings.get("label_noise", nan))
            table.setdefault(share, {}).setdefault(int(run.settings.get("seed", 0)), []).append(run)
    return table


@claim(
    "T8",
    sentence="At an equal share of memorised random labels, runs of higher lr / (batch size (1 - momentum)) have better held-out "
    "accuracy.",
    source=Source(PAPER, "section 4.3, Figure 5; specification section 5.1"),
    scope="sweep",
    statistic=f"slope of held-out accuracy over log lr / (S (1 - momentum)) at memorised accuracies {LEVELS[0]} to {LEVELS[-1]} "
    "that enough settings reach, mean over levels, of each seed and share of corrupted labels; the least",
    threshold="> 0 for each share",
    quantities={"motion": {}},
    experiments=grid(SEEDS),
    controls=Controls(
        memorising(), lambda seed: memorising(-0.02)(seed), lambda seed: memorising(seeds=2)(seed),
        lambda seed: memorising(shares=(0.0,))(seed),
    ),
    observe=memorised,
)  # fmt: skip
def noise_delays_memorisation(runs: Sequence[Evidence]) -> Verdict:
    """Judge T8; whether memorisation begins after the best held-out accuracy is told beside.

    Args:
        runs: shares of corrupted labels by settings, at equal epochs.

    Returns:
        The verdict.
    """
    table = _groups(runs)
    if runs and not table:
        return _silent(runs, "no training label was drawn anew, so there is nothing to memorise", foreign=True)
    found = {share: {s: slopes(own) for s, own in seeds.items()} for share, seeds in sorted(table.items())}
    known = {share: {s: levels for s, levels in seeds.items() if levels} for share, seeds in found.items()}
    if not known or min(len(seeds) for seeds in known.values()) < TREND:
        least = min((len(seeds) for seeds in known.values()), default=0)
        reason = (
            f"{TREND} seeds in which {CELLS} settings memorise {LEVELS[0]} of the random labels are needed, {least} are at hand"
        )
        return _silent(runs, reason)
    parts = [
        Part(
            f"slope with {share:g} of the labels drawn anew",
            [float(np.mean(list(v.values()))) for v in seeds.values()],
            least=TREND,
        )
        for share, seeds in known.items()
    ]
    details: dict[str, Any] = {"by_share": {f"{share:g}": _told(table[share], known[share]) for share in known}}
    one = next(iter(next(iter(table.values())).values()))[0].extra["memorised"]
    lead = f"labels drawn by the convention '{one['convention']}'; "
    smallest = 0.5 ** min(len(seeds) for seeds in known.values())
    return joint("T8", parts, place=_regime(runs), lead=lead, details=details, smallest_p=smallest)


def _told(seeds: dict[int, list[Evidence]], known: dict[int, dict[float, float]]) -> dict[str, Any]:
    """Slopes by level, how many runs reach each level, and the order of peak and onset."""
    every = [run for own in seeds.values() for run in own]
    orders = [order(own) for own in seeds.values()]
    at = {level: [levels[level] for levels in known.values() if level in levels] for level in LEVELS}
    reached = {f"{level:g}": sum(max(r.extra["memorised"]["corrupted"]) >= level for r in every) for level in LEVELS}
    return {
        "slope_at_level": {f"{level:g}": float(np.mean(v)) for level, v in at.items() if v},
        "runs": len(every),
        "runs_that_reach": reached,
        "peak_before_onset": mean_finite([share for share, _ in orders]),
        "tau_of_peak_and_onset": mean_finite([tau for _, tau in orders if isfinite(tau)]),
        "wrong_labels": float(every[0].extra["memorised"]["wrong"]),
    }
