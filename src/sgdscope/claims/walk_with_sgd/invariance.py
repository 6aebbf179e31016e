"""The claim W15 of "A Walk with SGD" (Xing et al. 2018): lr / batch size alone does not make the walk.

Thresholds were written before any run. A pair has the same lr / batch size, and is compared over equal spans of lr x updates:
the cosine of consecutive gradients itself depends on the batch size however small lr is, and is told beside.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import nan
from typing import Any

import numpy as np

from sgdscope.contracts import Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence.endpoints import of_epochs
from sgdscope.evidence.parts import Part, joint
from sgdscope.evidence.sharpness import place
from sgdscope.evidence.spans import MEASURES, SPANS, drawn, ends, pseudovalues, spans, values
from sgdscope.evidence.windows import LOSS_SHARE, initial_loss

PAPER = "Xing et al. 2018 (arXiv 1802.08770)"
PAIRS = 5  # seeds of two settings compared
APART = 0.1  # Kolmogorov-Smirnov distance beyond that of two seeds from which on laws differ; chosen here
CLOSE = 0.05  # relative difference of ratios that rounding may make
FACTOR = 4  # within a pair
QUANTITIES: Mapping[str, Mapping[str, Any]] = {"curvature": {"k": 5, "points": 5}}
LEVELS = {"small": (0.25, 0.125), "large": (2.0, 1.0)}  # factors on lr and batch size of the first of a pair; one ratio
PLACES = (0.1, 0.35, 0.6, 0.85)  # shares of the run at which bursts begin


def _run(preset: str, seed: int, lr: float, batch: float, updates: int) -> dict[str, Any]:
    """One run, recorded in bursts of `SPANS` spans of `updates` updates."""
    told = of_epochs(preset, seed, lr, batch)
    whole, length = told["phases"][0]["updates"], SPANS * updates
    at = sorted({min(updates * round(whole * share / updates), whole - length) for share in PLACES})
    record = {"snapshots": {"kind": "bursts", "length": length, "at": at}, "mode": "snapshots" if preset == "quick" else "replay"}
    return told | {"name": f"{told['name']}-spans{updates}", "record": record}


def _runs(preset: str) -> Callable[[int], list[dict[str, Any]]]:
    return lambda seed: [
        _run(preset, 1000 * seed + s, lr * f, batch * f, FACTOR // f)
        for lr, batch in LEVELS.values() for f in (1, FACTOR) for s in range(PAIRS)
    ]  # fmt: skip


# --- pairs -------------------------------------------------------------------------------------------------------------------

Table = dict[tuple[float, float], dict[int, Evidence]]


def _pairs(runs: Sequence[Evidence]) -> list[tuple[Table, float]]:
    """The pairs of settings of equal lr / batch size and spans of equal lr x updates, with the smaller lr, ascending."""
    table: Table = {}
    for run in runs:
        told = run.settings
        if (run.extra.get("spans") or {}).get("first"):
            table.setdefault((float(told["lr"]), float(told["batch_size"])), {})[int(told["seed"])] = run
    settings = sorted(table)
    if len(settings) != 4:
        return []
    found = []
    for a, b in (settings[:2], settings[2:]):
        if abs(b[0] * a[1] / (b[1] * a[0]) - 1) < CLOSE:
            both = set(table[a]) & set(table[b])
            found.append(({at: {s: table[at][s] for s in sorted(both)} for at in (a, b)}, a[0]))
    return found


def _alive(run: Evidence) -> bool:
    """Whether the mean training loss of the last burst has not vanished."""
    return bool(np.mean(run.extra["spans"]["loss"][-SPANS:]) >= LOSS_SHARE * initial_loss(run))


def _cosines(run: Evidence) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Cosines of consecutive gradients, update by update."""
    found = run.steps["gradient_cosine"].values if "gradient_cosine" in run.steps else np.zeros(0)
    return np.asarray(found[np.isfinite(found)], np.float64)


def _compared(pair: Table) -> dict[str, list[float]]:
    """Pseudovalues of each measure, of their mean, and of the cosine of consecutive gradients."""
    base, other = ([*own.values()] for own in pair.values())
    sides = [{name: [values(run, name) for run in side] for name in MEASURES} for side in (base, other)]
    beside = [{"gradient cosine": [_cosines(run) for run in side]} for side in (base, other)]
    return pseudovalues(*sides) | {"gradient cosine": pseudovalues(*beside)["gradient cosine"]}


# --- the claim ---------------------------------------------------------------------------------------------------------------


def _made(seed: int, *, small: float = 0.0, large: float = 1.5, seeds: int = PAIRS, loss: float = 0.9) -> list[Evidence]:
    """Control: two pairs of settings, within which all measures differ by so many standard deviations."""
    random, found = np.random.default_rng(seed), []
    for s in range(100 * seed, 100 * seed + seeds):
        for lr, batch, shift in ((0.0375, 8, 0.0), (0.15, 32, small), (0.3, 64, 0.0), (1.2, 256, large)):
            found.append(drawn({"lr": lr, "batch_size": batch, "seed": s}, random, shift, loss))
    return found


@claim(
    "W15",
    sentence="Lr / batch size alone does not make the walk: pairs of equal ratio walk alike at a small learning rate and apart "
    "at a large one.",
    source=Source(PAPER, "introduction"),
    scope="sweep",
    statistic="Kolmogorov-Smirnov distance of the pair beyond that of two seeds, mean of floor alpha* and cosine of spans "
    "of equal lr x updates, lambda_1 and the training loss; at the small and at the large learning rate",
    threshold=f"within -{APART}..{APART} at the small learning rate, > {APART} at the large one",
    quantities=QUANTITIES,
    experiments={preset: _runs(preset) for preset in ("quick", "standard", "paper")},
    controls=Controls(
        lambda seed: _made(seed), lambda seed: _made(seed, small=1.5, large=0.0), lambda seed: _made(seed, seeds=3),
        lambda seed: _made(seed, loss=0.02),
    ),
    observe=spans,
)  # fmt: skip
def ratio_is_not_all(runs: Sequence[Evidence]) -> Verdict:
    """Judge W15; each measure alone is told beside.

    Args:
        runs: two pairs of settings with one lr / batch size, in bursts of spans of equal lr x updates.

    Returns:
        The verdict.
    """
    pairs = _pairs(runs)
    least = min((len(own) for pair, _ in pairs for own in pair.values()), default=0)
    if len(pairs) < 2 or least < PAIRS:
        reason = f"two pairs of equal lr / batch size with {PAIRS} seeds each are needed"
        return Verdict("W15", "undecided", nan, (nan, nan), len(runs), APART, reason, place(ends(runs)))
    dead = [run for pair, _ in pairs for own in pair.values() for run in own.values() if not _alive(run)]
    if len(dead) > len(runs) // 10:
        reason = f"in {len(dead)} of {len(runs)} runs the training loss has vanished, where all walks are alike"
        return Verdict("W15", "not in regime", nan, (nan, nan), len(runs), APART, reason, place(ends(runs)))
    small, large = (_compared(pair) for pair, _ in pairs)
    parts = [
        Part(f"distance beyond that of seeds at lr {pairs[0][1]:g}, from below", small["mean"], -APART, least=PAIRS),
        Part(f"distance beyond that of seeds at lr {pairs[0][1]:g}, from above", small["mean"], APART, above=False, least=PAIRS),
        Part(f"distance beyond that of seeds at lr {pairs[1][1]:g}", large["mean"], APART, least=PAIRS),
    ]
    details: dict[str, Any] = {
        where: {name: [held.mean, *held.interval] for name, own in found.items() if (held := Part(name, own).held())}
        for where, found in (("small", small), ("large", large))
    }
    details["paces"] = {where: place(ends([r for own in pair.values() for r in own.values()]))["eta_sharpness"]
                        for where, (pair, _) in zip(("small", "large"), pairs, strict=True)}  # fmt: skip
    return joint("W15", parts, place=place(ends(runs)), details=details)
