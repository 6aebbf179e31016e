"""Arms of Nudged-SGD and plain SGD: their runs in three sizes, which run belongs to which, and arms made of numbers.

paper: specification E9, E9b, E10: ResNet-32 without BatchNorm on CIFAR-10, batch size 128, no momentum and no weight decay;
nudged runs at the learning rate 0.01 along 5 directions measured once an epoch on 2560 examples, plain runs at six learning
rates; 200 epochs here, where the released scripts stop by the validation accuracy. quick and standard: the networks and data
of `protocols`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import nan
from typing import Any

import numpy as np

from sgdscope.contracts import Evidence
from sgdscope.evidence.endpoints import Shape, best, run_made
from sgdscope.evidence.protocols import SIZES, described, path_of
from sgdscope.evidence.sharpness import Path, path, paths

SEEDS = 5
LRS: Mapping[str, tuple[float, ...]] = {
    "quick": (0.25, 0.5, 1.0, 2.0, 4.0),
    "standard": (0.25, 0.5, 1.0, 2.0, 4.0),
    "paper": (0.5, 1.0, 5.0, 10.0, 20.0, 30.0),
}  # of plain SGD, over that of the nudged runs
EVERY: Mapping[str, int | str] = {"quick": "epoch", "standard": 100, "paper": "epoch"}  # standard: it has 2.6 epochs
RESNET = {"name": "resnet", "depth": 32, "batchnorm": False}
UPDATES = 200 * (45000 // 128)  # of the paper's runs
Group = tuple[float, int, float, float]  # gamma, K, learning rate, batch size; plain SGD has gamma 1 and K 0
Arms = dict[Group, dict[int, Path]]
Pair = tuple[Path, Path]  # nudged, plain
Ends = Mapping[float, tuple[float, float]]  # learning rate or gamma -> lambda_1 and held-out accuracy at the end


# --- runs --------------------------------------------------------------------------------------------------------------------


def _run(preset: str, seed: int, factor: float = 1.0, **walker: Any) -> dict[str, Any]:
    """One run, with points along the whole of it; `factor` is on the learning rate."""
    if preset != "paper":
        size = SIZES[preset]
        return described(preset, seed, size["lr"] * factor, size["batch_size"], at="path", **walker)
    told = described(preset, seed, 0.01 * factor, 128, at="path", weight_decay=0.0, model=RESNET, **walker)
    record = {"snapshots": told["record"]["snapshots"] | {"at": path_of(UPDATES)}}
    return told | {"phases": [phase | {"updates": UPDATES} for phase in told["phases"]], "record": record}


def runs_of(arms: Sequence[Mapping[str, Any]], *, plain: bool = True) -> dict[str, Callable[[int], list[dict[str, Any]]]]:
    """Make nudged runs and plain SGD at several learning rates, `SEEDS` seeds of each, in each preset.

    Args:
        arms: options of the walker "nudged", an arm each.
        plain: whether to make the runs of plain SGD.

    Returns:
        Preset -> seed -> descriptions.
    """

    def of(preset: str) -> Callable[[int], list[dict[str, Any]]]:
        settings: list[dict[str, Any]] = [{"factor": f} for f in LRS[preset]] if plain else []
        settings += [{"walker": "nudged", "every": EVERY[preset], **arm} for arm in arms]
        return lambda seed: [_run(preset, 1000 * seed + s, **one) for one in settings for s in range(SEEDS)]

    return {preset: of(preset) for preset in SIZES}


# --- arms and pairs ----------------------------------------------------------------------------------------------------------


def _told(run: Evidence) -> dict[str, Any]:
    """The settings, with the options of the first phase that are not among them."""
    phases = run.settings.get("experiment", {}).get("phases") or [{}]
    return {**phases[0], **run.settings}


def group_of(found: Path) -> Group | None:
    """Which arm a run belongs to.

    Args:
        found: a path of the run; `gamma`, `k` and `walker` stand in its settings or in the first phase of its experiment.

    Returns:
        gamma, K, learning rate, batch size; None if it is neither plain SGD nor nudged along the sharpest directions.
    """
    told = _told(found.run)
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


def random_of(runs: Sequence[Evidence]) -> dict[int, Path]:
    """The runs nudged along random directions instead, by seed; the last of each seed, if there are several arms."""
    found = [p for p in paths(runs) if p.run.settings.get("walker") == "nudged" and group_of(p) is None]
    return {p.seed: p for p in found if _told(p.run).get("variant") == "random"}


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
