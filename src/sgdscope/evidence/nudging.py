"""Arms of Nudged-SGD and plain SGD: which run belongs to which, pairs, and arms made of numbers as controls."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import nan
from typing import Any

import numpy as np

from sgdscope.contracts import Evidence
from sgdscope.evidence.endpoints import Shape, best, run_made
from sgdscope.evidence.sharpness import Path, path, paths

SEEDS = 5  # of a made arm
Group = tuple[float, int, float, float]  # gamma, K, learning rate, batch size; plain SGD has gamma 1 and K 0
Arms = dict[Group, dict[int, Path]]
Pair = tuple[Path, Path]  # nudged, plain
Ends = Mapping[float, tuple[float, float]]  # learning rate or gamma -> lambda_1 and held-out accuracy at the end


def group_of(found: Path) -> Group | None:
    """Which arm a run belongs to.

    Args:
        found: a path of the run; `gamma`, `k` and `walker` stand in its settings or in the first phase of its experiment.

    Returns:
        gamma, K, learning rate, batch size; None if it is neither plain SGD nor nudged along the sharpest directions.
    """
    settings = found.run.settings
    phases = settings.get("experiment", {}).get("phases") or [{}]
    told = {**phases[0], **settings}
    walker = told.get("walker", "sgd")
    if walker not in {"sgd", "nudged"} or told.get("variant", "nudge") != "nudge":
        return None
    gamma, k = (float(told.get("gamma", 0.1)), int(told.get("k", 5))) if walker == "nudged" else (1.0, 0)
    return gamma, k, found.lr, found.batch_size


def arms_of(runs: Sequence[Evidence], name: str = "sharpness") -> Arms:
    """The runs by arm and seed.

    Args:
        runs: the evidence.
        name: the variable of the paths.

    Returns:
        Arm -> seed -> path; runs with fewer than `POINTS` measured points are left out.
    """
    arms: Arms = {}
    for p in paths(runs, name):
        if (group := group_of(p)) is not None:
            arms.setdefault(group, {})[p.seed] = p
    return arms


def pairs_of(arms: Arms) -> dict[Group, list[Pair]]:
    """For each arm of gamma < 1 its runs with plain SGD of the same learning rate, batch size, seed and length.

    Args:
        arms: the runs.

    Returns:
        Arm -> pairs, in the order of the seeds.
    """
    found = {}
    for group, own in sorted(arms.items()):
        if group[0] < 1:
            plain = arms.get((1.0, 0, *group[2:]), {})
            found[group] = [(own[s], plain[s]) for s in sorted(own) if s in plain and own[s].steps[-1] == plain[s].steps[-1]]
    return found


def value(found: Path, name: str, where: str) -> float:
    """A number of the curvature at one place of a run.

    Args:
        found: a path of the run.
        name: of the variable.
        where: ``"best"`` checkpoint by held-out accuracy, ``"last"`` point, or ``"peak"`` of the variable.

    Returns:
        The number; NaN where the variable or the place is not known.
    """
    own = path(found.run, name)
    if not len(own.steps):
        return nan
    index = best(own) if where == "best" else (own.peak if where == "peak" else -1)
    return nan if index is None else float(own.values[index])


# --- arms made of numbers ---------------------------------------------------------------------------------------------------


def arm(
    random: np.random.Generator, seeds: range, settings: Mapping[str, Any], shape: Shape, scatter: float = 0.1
) -> list[Evidence]:
    """Runs of one setting, a seed each, of known shape before scatter."""
    return [run_made({"lr": 0.1, "batch_size": 64, "seed": s, **settings}, shape, random, scatter) for s in seeds]


def two(nudged: Shape, plain: Shape | None = None, *, seeds: int = SEEDS) -> Callable[[int], list[Evidence]]:
    """Control: an arm of gamma 0.1 and plain SGD, of known shapes."""

    def runs(seed: int) -> list[Evidence]:
        random, own = np.random.default_rng(seed), range(100 * seed, 100 * seed + seeds)
        told = {"walker": "nudged", "gamma": 0.1, "k": 5}
        return [*arm(random, own, told, nudged), *arm(random, own, {"walker": "sgd"}, plain or Shape())]

    return runs


CROSSED: tuple[Ends, Ends] = (
    {0.03: (50, 0.85), 0.1: (30, 0.88), 0.3: (15, 0.90)},
    {5.0: (10, 0.86), 0.1: (90, 0.91), 0.01: (120, 0.92)},
)  # nudged: sharp and good
FALLING: tuple[Ends, Ends] = (
    {0.03: (50, 0.85), 0.1: (30, 0.88), 0.3: (15, 0.90)},
    {5.0: (10, 0.92), 0.1: (90, 0.82), 0.01: (120, 0.80)},
)  # sharper is worse


def many(told: tuple[Ends, Ends], *, seeds: int = SEEDS, known: bool = True) -> Callable[[int], list[Evidence]]:
    """Control: plain SGD at learning rates, nudged runs at gammas, of known sharpness and accuracy at the end."""

    def runs(seed: int) -> list[Evidence]:
        random, own = np.random.default_rng(seed), range(100 * seed, 100 * seed + seeds)
        found: list[Evidence] = []
        for table, key, walker in ((told[0], "lr", "sgd"), (told[1], "gamma", "nudged")):
            for number, (sharp, right) in table.items():
                shape = Shape(sharp=sharp, accuracy=right if known else None)
                found += arm(random, own, {"walker": walker, "k": 5, key: number}, shape)
        return found

    return runs


def ladder(sharper: float, better: float, *, seeds: int = SEEDS, **shape: Any) -> Callable[[int], list[Evidence]]:
    """Control: gamma 0.01 with K = 1, 5, 20; sharpness and distance of the accuracy from 0.75 follow powers of K."""

    def runs(seed: int) -> list[Evidence]:
        random, own = np.random.default_rng(seed), range(100 * seed, 100 * seed + seeds)
        found: list[Evidence] = []
        for k in (1, 5, 20):
            made = Shape(sharp=30 * k**sharper, accuracy=0.75 + 0.05 * k**better, **shape)
            found += arm(random, own, {"walker": "nudged", "gamma": 0.01, "k": k}, made, 0.05)
        return found

    return runs
