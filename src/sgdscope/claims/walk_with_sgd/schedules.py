"""The claim W17 of "A Walk with SGD" (Xing et al. 2018): a learning rate that rises, stays high and is annealed at the end.

The shapes are those read from Figure 6 (single runs): per epoch, in units of the highest learning rate.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import nan
from typing import Any

import numpy as np

from sgdscope import statistics
from sgdscope.contracts import Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence.accuracy import accuracy
from sgdscope.evidence.parts import Part, joint
from sgdscope.evidence.schedule_exchange import Size, arm_of, ending, made_run, staged
from sgdscope.evidence.sharpness import path, place

PAPER = "Xing et al. 2018 (arXiv 1802.08770)"
PAIRS = 5  # seeds of two settings that are compared
SEEDS = 12  # of the runs
CLOSE = 0.01  # relative difference of the examples seen that rounding may make
SHAPES = ("trapezoid", "cyclic", "step")
DROPS = ((0.0, 0.5), (0.25, 0.25), (0.5, 0.05), (0.6, 0.025), (0.7, 0.012), (0.8, 0.006))  # share of the run, lr: Figure 6

SIZES: Mapping[str, Size] = {
    "quick": Size(
        {"dataset": "digits", "train": 1408, "label_noise": 0.3},
        {"name": "mlp", "hidden": [100, 100]}, (0.06, 0.6), 64, 40, (1, 1)
    ),
    "standard": Size(
        {"dataset": "mnist", "train": 60000, "label_noise": 0.3},
        {"name": "mlp", "hidden": [500, 350]}, (0.06, 0.6), 64, 40, (1, 1)
    ),
    "paper": Size({"dataset": "cifar10", "train": 45000}, {"name": "vgg11", "batchnorm": True}, (0.1, 1.0), 100, 40, (1, 1)),
}  # fmt: skip
# quick and standard run without and with corrupted labels: the paper has none, and with them ends at equal epochs also tell how
# fast they are memorised. The highest lr is the 4 x 0.15 of this paper's sweeps; network and data of Figure 6 are not on it


def shape(name: str, epochs: int) -> list[float]:
    """The learning rate of each epoch over the highest one; the ramps are taken at the ends of the epochs.

    Args:
        name: ``trapezoid`` (0.1 -> 1 in a quarter, held for a half, -> 0.01), ``cyclic`` (0.1 -> 1 -> 0.01, twice) or ``step``
            (`DROPS`).
        epochs: of the run.

    Returns:
        [epochs].

    Example:
        >>> [round(x, 3) for x in shape("trapezoid", 8)]
        [0.55, 1.0, 1.0, 1.0, 1.0, 1.0, 0.505, 0.01]
    """
    x = (np.arange(epochs) + 1) / epochs
    if name == "trapezoid":
        return [float(v) for v in np.interp(x, [0, 0.25, 0.75, 1], [0.1, 1, 1, 0.01])]
    if name == "cyclic":
        again = 1 - (1 - x) * 2 % 1  # in (0, 1], 1 at the end of each of two cycles
        return [float(v) for v in np.interp(again, [0, 0.5, 1], [0.1, 1, 0.01])]
    starts, values = zip(*DROPS, strict=True)
    return [values[int(np.searchsorted(starts, e / epochs, side="right")) - 1] for e in range(epochs)]


def _described(size: Size, name: str, label: str, seed: int) -> dict[str, Any]:
    stages = [(float(size.lr[1] * factor), size.batch_size, 1) for factor in shape(name, size.epochs)]
    return staged(size, f"{label}-{name}-seed{seed}", seed, stages, every=size.epochs)


def _experiments() -> dict[str, Callable[[int], list[dict[str, Any]]]]:
    def of(preset: str) -> Callable[[int], list[dict[str, Any]]]:
        size = SIZES[preset]
        clean = {key: value for key, value in size.data.items() if key != "label_noise"}
        sizes = {f"{preset}-clean": replace(size, data=clean)} | ({preset: size} if "label_noise" in size.data else {})
        arms = [(own, name, label, s) for label, own in sizes.items() for name in SHAPES for s in range(SEEDS)]
        return lambda seed: [_described(own, name, label, 1000 * seed + s) for own, name, label, s in arms]

    return {preset: of(preset) for preset in SIZES}


def shape_of(run: Evidence) -> str | None:
    """Which of the shapes the learning rate of a run has.

    Args:
        run: in stages.

    Returns:
        ``step`` if it only falls, ``trapezoid`` if it rises before it falls, ``cyclic`` if it rises again; None if it does not
        change, or the batch size does.
    """
    arm = arm_of(run)
    if arm is None or arm.moves != "lr":
        return None
    turns = np.sign(np.diff(arm.lr))
    turns = turns[turns != 0]
    rises = int(np.sum((turns > 0) & (np.concatenate([[-1], turns[:-1]]) < 0)))
    return {0: "step", 1: "trapezoid"}.get(rises, "cyclic")


def _made(gains: Mapping[str, float], *, seeds: int = 12, learned: bool = True) -> Callable[[int], list[Evidence]]:
    """Control: accuracies at the end that are written down, with scatter of 0.01 of a seed and 0.005 of a run."""

    def run(name: str, seed: int, random: np.random.Generator) -> Evidence:
        own = 0.01 * np.random.default_rng(seed).normal() + 0.005 * random.normal()
        told = {"test": [0.85 + gains[name] + own], "sharpness": [8.0], "loss": [1.2 if learned else 2.4]}
        return made_run(_described(SIZES["quick"], name, "made", seed), 1408, told)

    def runs(seed: int) -> list[Evidence]:
        random = np.random.default_rng(seed)
        return [run(name, s, random) for name in SHAPES for s in range(100 * seed, 100 * seed + seeds)]

    return runs


_HOLDS = {"trapezoid": 0.02, "cyclic": 0.0, "step": -0.01}


@claim(
    "W17",
    sentence="At equal epochs a learning rate that rises, stays high and is annealed at the end (trapezoid) ends with better "
    "held-out accuracy than cyclic and stepwise falling learning rates.",
    source=Source(PAPER, "Figure 6; design of schedules left to future work"),
    scope="sweep",
    statistic="held-out accuracy at the end, trapezoid - cyclic and trapezoid - step, paired over seeds; the smaller",
    threshold="> 0 for both, without and with corrupted labels",
    quantities={"curvature": {"k": 1}},
    experiments=_experiments(),
    controls=Controls(
        _made(_HOLDS), _made({"trapezoid": 0.0, "cyclic": 0.02, "step": -0.01}), _made(_HOLDS, seeds=4),
        _made(_HOLDS, learned=False),
    ),
    observe=accuracy,
)  # fmt: skip
def trapezoid_is_best(runs: Sequence[Evidence]) -> Verdict:
    """Judge W17; whether raising the learning rate at all helps (cyclic - step) is told beside.

    Args:
        runs: of the three shapes, equal data and batch size.

    Returns:
        The verdict.
    """
    regime = place([path(run) for run in runs])
    known = [run for run in runs if (run.extra.get("accuracy") or {}).get("test")]
    lost = [p for run in runs if len((p := path(run)).steps) and not p.losses[-1] < p.initial]
    if lost or (runs and not known):
        reason = f"{len(lost)} runs did not learn" if lost else "no held-out examples are known"
        return Verdict("W17", "not in regime", nan, (nan, nan), len(runs), 0.0, reason, regime)
    groups: dict[float, list[Evidence]] = {}
    for run in known:
        groups.setdefault(float(run.settings.get("label_noise", 0.0)), []).append(run)
    found = {share: _ends(own) for share, own in sorted(groups.items())}
    if not found or any(ends is None for ends in found.values()):
        reason = f"{PAIRS} seeds with all of {', '.join(SHAPES)} at equal epochs are needed"
        return Verdict("W17", "undecided", nan, (nan, nan), len(runs), 0.0, reason, regime)
    parts, details, words = [], {}, []
    for share, ends in ((share, ends) for share, ends in found.items() if ends is not None):
        where = f"{share:g} of the labels drawn anew"
        parts += [
            Part(f"{where}: trapezoid - {other}", (ends["trapezoid"] - ends[other]).tolist(), least=PAIRS) for other in SHAPES[1:]
        ]
        mean, interval, chance, _ = statistics.paired(ends["cyclic"], ends["step"])
        told: dict[str, Any] = {"accuracy": {name: float(v.mean()) for name, v in ends.items()}}
        details[f"label_noise {share:g}"] = told | {"cyclic_minus_step": [mean, *interval, chance]}
        words.append(f"{where}, accuracy at the end " + ", ".join(f"{name} {v.mean():.4f}" for name, v in ends.items()))
    smallest = 0.5 ** min(len(ends["step"]) for ends in found.values() if ends is not None)
    return joint("W17", parts, place=regime, lead="; ".join(words) + "; ", details=details, smallest_p=smallest)


def _ends(runs: Sequence[Evidence]) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]] | None:
    """Accuracy at the end by shape over the seeds that have all; None with too few, or with unequal epochs."""
    table: dict[str, dict[int, Evidence]] = {name: {} for name in SHAPES}
    for run in runs:
        if (name := shape_of(run)) is not None:
            table[name][int(run.settings.get("seed", 0))] = run
    both = sorted(set.intersection(*(set(own) for own in table.values())))
    lengths = [arm.ends[-1] for own in table.values() for run in own.values() if (arm := arm_of(run)) is not None]
    if len(both) < PAIRS or max(lengths) > (1 + CLOSE) * min(lengths):
        return None
    return {name: np.array([ending(own[s]) for s in both]) for name, own in table.items()}
