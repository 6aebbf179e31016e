"""The claims T1-T3 of "Three Factors Influencing Minima in SGD" (Jastrzebski et al. 2017): ends over a grid of lr / batch size.

Thresholds were written before any run; the paper gives no numbers of its Figure 1. Runs end after equal epochs, and those that
have not converged are left out, as in the paper's figure of the accuracy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, log, nan
from typing import Any

import numpy as np

from sgdscope.contracts import Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence import rescaling
from sgdscope.evidence.accuracy import accuracy
from sgdscope.evidence.endpoints import at_equal_epochs, last_accuracy, of_epochs, silent, vanished
from sgdscope.evidence.partial import partial
from sgdscope.evidence.parts import Part, joint
from sgdscope.evidence.protocols import Chosen
from sgdscope.evidence.sharpness import Path, path, paths, place

PAPER = "Jastrzebski et al. 2017 (1711.04623)"
NORMS = ("frobenius", "sharpness", "trace")  # the paper's is the Hessian norm by finite differences, which is the first
SEEDS = 3  # of an ordered trend
CELLS = 5  # converged settings of a seed below which a rank correlation says nothing
POINTS = 4  # measured points that tell whether a run has converged
LATE, SETTLED = 0.75, 0.1  # converged: at most a tenth of the fall of the loss lies in the last quarter of the run; chosen here
QUANTITIES: Mapping[str, Mapping[str, Any]] = {"curvature": {"k": 5, "probes": 16}}

LEVELS = (0.25, 0.5, 1.0)
GRID: list[Chosen] = [(2 * lr, batch, s, {}) for lr in LEVELS for batch in LEVELS for s in range(5)]  # the runs of F1-F4

OTHER: Mapping[str, dict[str, Any]] = {
    "quick": {"model": {"hidden": [50] * 5}, "longer": 2, "stops": 10},
    "standard": {"model": {"name": "mlp", "hidden": [50] * 5}, "longer": 2, "stops": 10},
    "paper": {"model": {"name": "resnet", "depth": 56}, "stops": 10},
}  # the framework's first weights have a sixth of He's variance: the signal falls by 2.4 a layer, and 20 layers learn nothing


def _others(preset: str) -> Callable[[int], list[dict[str, Any]]]:
    """The other network on the same grid, at learning rates twice as large where its signal is weak."""
    lrs = (2.0, 1.0, 0.5) if preset == "paper" else (4.0, 2.0, 1.0)
    return lambda seed: [
        of_epochs(preset, 1000 * seed + s, lr, batch, **OTHER[preset]) for lr in lrs for batch in LEVELS for s in range(SEEDS)
    ]


# --- the settings that have converged ------------------------------------------------------------------------------------------


def converged(found: Path) -> bool:
    """Whether at most `SETTLED` of the fall of the training loss lies in the last quarter of the run.

    Args:
        found: a path of the run; between its points the loss is straight.

    Returns:
        True if so; False for a loss that has not fallen.
    """
    late = float(np.interp(found.steps[0] + LATE * (found.steps[-1] - found.steps[0]), found.steps, found.losses))
    end = float(found.losses[-1])
    return late - end <= SETTLED * (found.initial - end) and end < found.initial


def _ranks(found: Sequence[Path], value: Callable[[Path], float]) -> dict[int, float]:
    """Seed -> rank correlation of a number at the end with lr / batch size, over at least `CELLS` settings."""
    ranks = {}
    for seed in sorted({p.seed for p in found}):
        pairs = np.array([(log(p.lr / p.batch_size), value(p)) for p in found if p.seed == seed])
        pairs = pairs[np.isfinite(pairs).all(1)]
        if len(pairs) >= CELLS and isfinite(rho := partial(*pairs.T)):
            ranks[seed] = rho
    return ranks


def _given_loss(found: Sequence[Path], value: Callable[[Path], float]) -> list[float]:
    """The same with the training loss at the end held fixed, a number a seed."""
    told = []
    for seed in sorted({p.seed for p in found}):
        rows = np.array([(log(p.lr / p.batch_size), value(p), p.losses[-1]) for p in found if p.seed == seed])
        rows = rows[np.isfinite(rows).all(1)]
        told.append(partial(*rows.T) if len(rows) >= CELLS else nan)
    return told


def _norm(name: str) -> Callable[[Path], float]:
    """The last value of a norm, NaN where it is not known at the last measured point."""

    def value(found: Path) -> float:
        own = path(found.run, name)
        return float(own.values[-1]) if len(own.steps) and own.steps[-1] == found.steps[-1] else nan

    return value


def _accuracy(found: Path) -> float:
    return last_accuracy(found.run)


def _chosen(claim_id: str, runs: Sequence[Evidence]) -> tuple[list[Path], Verdict | None]:
    """The converged runs whose loss has not vanished, or the verdict that says why there are too few."""
    every = [p for p in paths(runs, NORMS[0], least=POINTS) if isfinite(p.batch_size)]
    gone = [p for p in every if vanished(p)]
    kept = [p for p in every if not any(p is q for q in gone) and converged(p)]
    enough = _whole(kept)
    if len(enough) >= SEEDS:
        return kept, None
    told = (
        f"{len(every)} runs, of {len(gone)} the training loss has vanished, {len(every) - len(gone) - len(kept)} others have not"
    )
    told += f" converged; {len(enough)} seeds have {CELLS} settings left, {SEEDS} are needed"
    outside = len(_whole([*kept, *gone])) >= SEEDS
    return every, silent(claim_id, "not in regime" if outside else "undecided", 0.0, told, every)


def _whole(found: Sequence[Path]) -> list[int]:
    """The seeds that have enough settings."""
    seeds = [p.seed for p in found]
    return sorted(s for s in set(seeds) if seeds.count(s) >= CELLS)


def _details(found: Sequence[Path], runs: Sequence[Evidence]) -> dict[str, Any]:
    """What is told beside: the other norms, the correlations given the training loss, how many runs were left out."""
    told: dict[str, Any] = {"converged": len(found), "runs": len(runs)}
    names = {name: _norm(name) for name in NORMS} | {"accuracy": _accuracy, "training loss": lambda p: float(p.losses[-1])}
    told["rank_correlations"] = {name: list(_ranks(found, value).values()) for name, value in names.items()}
    told["given_the_training_loss"] = {name: _given_loss(found, names[name]) for name in (*NORMS, "accuracy")}
    return told


def _judged(claim_id: str, runs: Sequence[Evidence], asked: Mapping[str, tuple[Callable[[Path], float], bool]]) -> Verdict:
    """Hold mean rank correlations with lr / batch size against 0; `asked`: words -> number at the end, whether it should rise."""
    found, early = _chosen(claim_id, runs)
    if early is not None:
        return early
    if any(value is _accuracy for value, _ in asked.values()) and not any(isfinite(_accuracy(p)) for p in found):
        return silent(claim_id, "not in regime", 0.0, "no held-out accuracy is known of these runs", found)
    parts = [
        Part(f"rank correlation of {text} with lr / batch size", list(_ranks(found, value).values()), above=rises, least=SEEDS)
        for text, (value, rises) in asked.items()
    ]
    lead = f"{len(found)} of {len(runs)} runs have converged; "
    return joint(claim_id, parts, place=place(found), lead=lead, details=_details(found, runs))


# --- the claims --------------------------------------------------------------------------------------------------------------


@claim(
    "T1",
    sentence="The larger lr / batch size, the smaller the norm of the Hessian at the end.",
    source=Source(PAPER, "figure 1a"),
    scope="sweep",
    statistic="Spearman's correlation of |H|_F at the end with lr / batch size, over the converged runs of a grid; mean of seeds",
    threshold="< 0",
    quantities=QUANTITIES,
    experiments=at_equal_epochs(GRID),
    controls=Controls(
        rescaling.grid(-0.5, 0.5), rescaling.grid(0.5, -0.5), rescaling.grid(-0.5, 0.5, seeds=2),
        rescaling.grid(-0.5, 0.5, floor=0.01),
    ),
    observe=accuracy,
)  # fmt: skip
def norm_falls(runs: Sequence[Evidence]) -> Verdict:
    """Judge T1; whether lr and batch size act through their ratio alone is F3, equal training loss F1 and F2."""
    return _judged("T1", runs, {"|H|_F": (_norm("frobenius"), False)})


@claim(
    "T2",
    sentence="The larger lr / batch size, the better the held-out accuracy at the end of runs that have converged.",
    source=Source(PAPER, "figure 1b"),
    scope="sweep",
    statistic="Spearman's correlation of the held-out accuracy at the end with lr / batch size, over the converged runs of a "
    "grid; mean of seeds",
    threshold="> 0",
    quantities=QUANTITIES,
    experiments=at_equal_epochs(GRID),
    controls=Controls(
        rescaling.grid(-0.5, 0.5), rescaling.grid(-0.5, 0.5, -0.05), rescaling.grid(-0.5, 0.5, seeds=2),
        rescaling.grid(-0.5, 0.5, known=False),
    ),
    observe=accuracy,
)  # fmt: skip
def accuracy_rises(runs: Sequence[Evidence]) -> Verdict:
    """Judge T2; the correlation given the training loss is told beside."""
    return _judged("T2", runs, {"held-out accuracy": (_accuracy, True)})


@claim(
    "T3",
    sentence="In another network too, deep and badly initialised or residual, the norm of the Hessian at the end falls and the "
    "held-out accuracy rises with lr / batch size.",
    source=Source(PAPER, "appendix, as the text tells it; not read"),
    scope="sweep",
    statistic="the correlations of T1 and T2 over the converged runs of a grid, means over seeds; the one that holds least",
    threshold="< 0 and > 0",
    quantities=QUANTITIES,
    experiments={preset: _others(preset) for preset in OTHER},
    controls=Controls(
        rescaling.grid(-0.5, 0.5), rescaling.grid(0.5, -0.5, -0.05), rescaling.grid(-0.5, 0.5, seeds=2),
        rescaling.grid(-0.5, 0.5, floor=0.01),
    ),
    observe=accuracy,
)  # fmt: skip
def other_network(runs: Sequence[Evidence]) -> Verdict:
    """Judge T3: five hidden layers of 50 from the framework's weights on small data, ResNet-56 in the paper's size."""
    return _judged("T3", runs, {"|H|_F": (_norm("frobenius"), False), "held-out accuracy": (_accuracy, True)})
