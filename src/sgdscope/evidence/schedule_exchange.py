"""Runs whose learning rate and batch size change in stages: made at equal lr / batch size, read back, and held side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf, isfinite, nan, sqrt
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sgdscope import statistics, theory
from sgdscope.contracts import Answer, Evidence
from sgdscope.evidence.endpoints import Part
from sgdscope.evidence.sharpness import made, path
from sgdscope.theory.schedules import MISMATCH

Array = NDArray[np.float64]
Table = dict["Arm", dict[int, Evidence]]
PIECES = ("first half", "second half", "end")


@dataclass(frozen=True)
class Size:
    """How large the runs of a preset are.

    Attributes:
        data: of the description; as many examples as all batches divide.
        model: of the description.
        lr: low and high learning rate, in the ratio of the batch sizes.
        batch_size: that goes with a moving learning rate.
        epochs: of a run.
        stages: epochs of a short and of a long stage.
    """

    data: Mapping[str, Any]
    model: Mapping[str, Any]
    lr: tuple[float, float]
    batch_size: int
    epochs: int
    stages: tuple[int, int]

    @property
    def examples(self) -> int:
        """Of the training set."""
        return int(self.data["train"])


SIZES: Mapping[str, Size] = {
    "quick": Size(
        {"dataset": "digits", "train": 1280, "label_noise": 0.3},
        {"name": "mlp", "hidden": [100, 100]}, (0.06, 0.3), 32, 24, (2, 6)
    ),
    "standard": Size(
        {"dataset": "mnist", "train": 57600, "label_noise": 0.3},
        {"name": "mlp", "hidden": [500, 350]}, (0.06, 0.3), 128, 24, (2, 6)
    ),
    "paper": Size(
        {"dataset": "cifar10", "train": 44800}, {"name": "vgg11", "batchnorm": True}, (0.001, 0.005), 128, 240, (4, 15)
    ),
}  # fmt: skip
# paper: (lr, batch) and stages of sections 4.4, 4.5; square wave and BatchNorm as the third-party reproduction; its number of
# epochs was not read; the training set is cut to a multiple of 640
CLEAN: Mapping[str, Size] = {
    "quick": replace(SIZES["quick"], data={"dataset": "digits", "train": 320}, batch_size=8),
    "standard": replace(SIZES["standard"], data={"dataset": "mnist", "train": 3840}, batch_size=8),
}
# the paper's labels are clean. On 1280 digits accuracy ends at .99, where nothing is left to tell schedules apart; a quarter of
# the examples and of the batch size keeps S / N and the updates of an epoch (MNIST: a fifteenth and 8 of 128). The size was
# chosen by the accuracy of `low` alone, .94 to .97 on three seeds that are not used


def staged(
    size: Size, name: str, seed: int, stages: Sequence[tuple[float, int, int]], *, every: int = 1, momentum: float = 0.0
) -> dict[str, Any]:
    """Describe a run of plain SGD in stages.

    Args:
        size: data and model.
        name: of the run.
        seed: of the run.
        stages: (lr, batch size, epochs) of each; an epoch has floor(N / batch size) updates.
        every: epochs between two measured points, each at the last update of an epoch.
        momentum: of all stages.

    Returns:
        The description, see `Experiment`.
    """
    phases, ends = [], []
    for lr, batch, epochs in stages:
        updates = size.examples // batch
        phases.append({"walker": "sgd", "lr": lr, "batch_size": batch, "updates": epochs * updates, "momentum": momentum})
        ends += [updates] * epochs
    at = (np.cumsum(ends)[every - 1 :: every] - 1).tolist()
    return {
        "name": name,
        "seed": seed,
        "data": dict(size.data),
        "model": dict(size.model),
        "phases": phases,
        "record": {"mode": "snapshots", "snapshots": {"kind": "bursts", "length": 1, "at": at}},
    }


def arms(size: Size) -> dict[str, list[tuple[float, int, int]]]:
    """The stages of the exchange of schedules (specification, section 5.2), all of equal epochs.

    Cyclic lr and cyclic batch in a square wave, high noise first, with short and with long stages; constants at the ends of
    the waves: ``low`` and ``low-large`` of the lower lr / batch size, ``high`` of the higher.

    Args:
        size: of the runs.

    Returns:
        Name -> (lr, batch size, epochs) of each stage; lr / batch size of a cyclic pair is equal within 1 %.
    """
    low, high = size.lr
    found: dict[str, list[tuple[float, int, int]]] = {}
    for word, stage in zip(("short", "long"), size.stages, strict=True):
        wave = theory.square_wave(low, high, stage=1, length=size.epochs // stage)
        moved = theory.exchange(wave, size.batch_size, to="batch_size")
        found[f"lr-{word}"] = [(float(lr), size.batch_size, stage) for lr in wave]
        found[f"batch-{word}"] = [(high, int(b), stage) for b in moved.batch_size]
    large = int(theory.exchange([low, high], size.batch_size, to="batch_size").batch_size[0])
    ends = {"low": (low, size.batch_size), "low-large": (high, large), "high": (high, size.batch_size)}
    return found | {name: [(*both, size.epochs)] for name, both in ends.items()}


def exchanged(names: Sequence[str], seeds: int) -> dict[str, Callable[[int], list[dict[str, Any]]]]:
    """Make the runs of some arms in each preset, without and with corrupted labels; claims share runs of equal arms.

    Args:
        names: of `arms`.
        seeds: how many.

    Returns:
        Preset -> seed -> descriptions; the paper's size has clean labels alone.
    """

    def of(preset: str) -> Callable[[int], list[dict[str, Any]]]:
        sizes = {preset: SIZES[preset]} | ({f"{preset}-clean": CLEAN[preset]} if preset in CLEAN else {})

        def runs(seed: int) -> list[dict[str, Any]]:
            numbers, found = range(1000 * seed, 1000 * seed + seeds), []
            for label, size in sizes.items():
                chosen = {name: stages for name, stages in arms(size).items() if name in names}
                told = [(f"{label}-{name}-seed{s}", s, stages) for name, stages in chosen.items() for s in numbers]
                found += [staged(size, *one, every=size.stages[0]) for one in told]
            return found

        return runs

    return {preset: of(preset) for preset in SIZES}


# --- reading ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Arm:
    """The staircase of lr and batch size of a run.

    Attributes:
        lr: of each stage.
        batch_size: of each stage.
        epochs: of each stage, as examples seen over N.
    """

    lr: tuple[float, ...]
    batch_size: tuple[float, ...]
    epochs: tuple[float, ...]

    @property
    def moves(self) -> str:
        """What changes: ``lr``, ``batch``, ``both`` or ``nothing``."""
        lr, batch = len(set(self.lr)) > 1, len(set(self.batch_size)) > 1
        return {(True, False): "lr", (False, True): "batch", (True, True): "both", (False, False): "nothing"}[lr, batch]

    @property
    def ratio(self) -> Array:
        """Lr over batch size of each stage."""
        return np.asarray(np.array(self.lr) / np.array(self.batch_size), np.float64)

    @property
    def ends(self) -> Array:
        """Epochs at which the stages end."""
        return np.asarray(np.cumsum(self.epochs), np.float64)

    def mismatch(self, other: Arm) -> float:
        """The largest relative difference of lr / batch size at equal epochs; infinite if the runs differ in length by 1 %.

        Args:
            other: another staircase; boundaries within half a stage count as one.

        Returns:
            max |ratio_other / ratio - 1|.
        """
        if abs(self.ends[-1] / other.ends[-1] - 1) > MISMATCH:
            return inf
        ends = np.sort(np.concatenate([self.ends, other.ends]))
        starts = np.concatenate([[0.0], ends[:-1]])
        middles = (starts + ends)[ends - starts > 0.5 * min(*self.epochs, *other.epochs)] / 2
        mine, theirs = (a.ratio[np.searchsorted(a.ends, middles).clip(max=len(a.lr) - 1)] for a in (self, other))
        return float(np.abs(theirs / mine - 1).max())

    def __str__(self) -> str:
        """Such as "lr 0.06..0.3, batch 32, stages of 2"."""
        lr, batch = (f"{min(v):g}" if len(set(v)) == 1 else f"{min(v):g}..{max(v):g}" for v in (self.lr, self.batch_size))
        return f"lr {lr}, batch {batch}" + (f", stages of {self.epochs[0]:.3g}" if self.moves != "nothing" else "")


def arm_of(run: Evidence) -> Arm | None:
    """The staircase of a run; None for one without stages in its settings, or of a full batch."""
    phases = run.settings.get("experiment", {}).get("phases", ())
    if not phases or any("schedule" in p and p["schedule"].get("kind", "constant") != "constant" for p in phases):
        return None
    if any(isinstance(p["batch_size"], str) or not p.get("updates") for p in phases):
        return None
    examples = float(run.settings.get("examples", nan))
    epochs = tuple(round(p["updates"] * p["batch_size"] / examples, 6) for p in phases)
    return Arm(tuple(p["lr"] for p in phases), tuple(float(p["batch_size"]) for p in phases), epochs)


def tables_of(runs: Sequence[Evidence]) -> dict[str, Table]:
    """The runs in stages with known held-out accuracy, by what they learn, staircase and seed.

    Args:
        runs: the evidence.

    Returns:
        Group in words -> table. Runs of one group have one share of labels drawn anew, and one number of epochs within 1 %: an
        experiment of one's own takes the place of both data sets, and their batch sizes then differ by 4.
    """
    groups: dict[tuple[float, float], Table] = {}
    for run in runs:
        own = arm_of(run)
        if own is None or not (run.extra.get("accuracy") or {}).get("test"):
            continue
        share, length = float(run.settings.get("label_noise") or 0.0), float(own.ends[-1])
        alike = [k for k in groups if k[0] == share and abs(k[1] / length - 1) <= MISMATCH]
        groups.setdefault(alike[0] if alike else (share, length), {}).setdefault(own, {})[int(run.settings.get("seed", 0))] = run
    shares = [share for share, _ in groups]
    return {
        (f"{share:g} of the labels drawn anew" if share else "labels as they are")
        + (f", {length:.3g} epochs" if shares.count(share) > 1 else ""): table
        for (share, length), table in sorted(groups.items(), key=lambda item: item[0])
    }


def fall(run: Evidence) -> tuple[float, float]:
    """Training loss at the start and at the end: on all examples where the curvature was measured, else of the batches.

    Args:
        run: the evidence.

    Returns:
        (first, last); the last of batches is a mean over the last tenth of the updates; NaN where nothing is known.
    """
    found = path(run)
    if len(found.steps):
        bad = not np.isfinite(found.losses).all()
        return found.initial, nan if bad else float(found.losses[-1])
    losses = np.asarray(run.steps["loss"].values, np.float64) if "loss" in run.steps else np.zeros(0)
    return (float(losses[0]), float(losses[-max(1, len(losses) // 10) :].mean())) if len(losses) else (nan, nan)


def curve(run: Evidence) -> Array:
    """Held-out accuracy at the measured points of a run after its start, [n]."""
    told = run.extra["accuracy"]
    return np.asarray(told["test"], np.float64)[np.asarray(told["step"]) > 0]


def ending(run: Evidence) -> float:
    """Held-out accuracy at the last point of a run."""
    return float(curve(run)[-1])


def _pieces(values: Array) -> Array:
    """[seeds, points] -> [seeds, 3]: mean over the first half, over the second half, and the last point."""
    half = values.shape[1] // 2
    return np.stack([values[:, :half].mean(1), values[:, half:].mean(1), values[:, -1]], 1)


def compared(a: Mapping[int, Evidence], b: Mapping[int, Evidence]) -> list[Part]:
    """Hold the held-out accuracy of two arms against each other over the seeds that both have.

    Difference a - b of the mean accuracy over the first and the second half of the measured points and at the end, in units
    of the standard deviation that one measured accuracy has over seeds: root mean square over both arms and the points of
    the piece. Equal: both one-sided t tests at 5 % say within 1; different: the 95 % interval lies outside of 1.

    Args:
        a: seed -> run.
        b: seed -> run, measured at as many points.

    Returns:
        One part for each of `PIECES`; none with fewer than two seeds or different numbers of points.
    """
    both = sorted(set(a) & set(b))
    curves = [np.array([curve(arm[s]) for s in both]) for arm in (a, b)] if _alike(a, b, both) else []
    if len(both) < 2 or not curves:
        return []
    half = curves[0].shape[1] // 2
    variance = np.mean([c.var(0, ddof=1) for c in curves], 0)
    margins = np.sqrt([variance[:half].mean(), variance[half:].mean(), variance[-1]])
    units = (_pieces(curves[0]) - _pieces(curves[1])) / np.maximum(margins, 1e-12)
    return [_equal(name, units[:, i]) for i, name in enumerate(PIECES)]


def _alike(a: Mapping[int, Evidence], b: Mapping[int, Evidence], seeds: Sequence[int]) -> bool:
    return len({len(curve(arm[s])) for arm in (a, b) for s in seeds}) == 1 and len(curve(a[seeds[0]])) > 1


def _equal(name: str, units: Array) -> Part:
    mean, _, interval = statistics.mean_interval(units)
    answer: Answer = "supported" if statistics.tost(units, 1.0) < 0.05 else "undecided"
    if interval[0] > 1 or interval[1] < -1:
        answer = "contradicted"
    return Part(name, mean, interval, answer, len(units))


def farthest(a: Mapping[int, Evidence], b: Mapping[int, Evidence]) -> float:
    """The largest difference of the mean accuracy curves at one point, in accuracy; NaN where they cannot be compared."""
    both = sorted(set(a) & set(b))
    if not both or not _alike(a, b, both):
        return nan
    return float(np.abs(np.mean([curve(a[s]) - curve(b[s]) for s in both], 0)).max())


def alternation(run: Evidence, name: str) -> float:
    """How far the logarithm of a variable of the curvature lies higher in the stages of high lr / batch size.

    Stage ends i with a stage before and after: +-(y_i - (y_{i-1} + y_{i+1}) / 2), + where the noise is high; the mean over
    them. A straight trend of training drops out.

    Args:
        run: in stages.
        name: of the variable.

    Returns:
        Mean difference of logarithms; NaN with fewer than three stages or where a value is not known or not positive.
    """
    own, found = arm_of(run), path(run, name)
    if own is None or len(own.lr) < 3:
        return nan
    ends = np.cumsum([p["updates"] for p in run.settings["experiment"]["phases"]]) - 1
    values = dict(zip(found.steps.tolist(), found.values.tolist(), strict=True))
    y = np.array([values.get(int(t), nan) for t in ends])
    if not (y > 0).all():
        return nan
    y, high = np.log(y), own.ratio > sqrt(own.ratio.min() * own.ratio.max())
    inside = y[1:-1] - (y[:-2] + y[2:]) / 2
    return float(np.mean(np.where(high[1:-1], inside, -inside)))


def superior(name: str, differences: Sequence[float]) -> Part:
    """A mean over seeds that is claimed to be above 0."""
    kept = [d for d in differences if isfinite(d)]
    if len(kept) < 2:
        return Part(name, float(np.mean(kept)) if kept else nan, (nan, nan), "undecided", len(kept))
    mean, _, interval = statistics.mean_interval(kept)
    answer: Answer = "supported" if interval[0] > 0 else "contradicted" if interval[1] < 0 else "undecided"
    return Part(name, mean, interval, answer, len(kept))


# --- runs made of numbers ----------------------------------------------------------------------------------------------------


def made_run(description: Mapping[str, Any], examples: int, numbers: Mapping[str, Any]) -> Evidence:
    """A run in stages of which everything is known, for controls.

    Args:
        description: of `staged`.
        examples: N.
        numbers: [n] each, at the measured points: ``test``, ``sharpness``, ``loss``.

    Returns:
        The evidence.
    """
    at = description["record"]["snapshots"]["at"]
    first = description["phases"][0]
    settings = {"experiment": dict(description), "examples": examples, "seed": description["seed"]}
    settings |= {"lr": first["lr"], "batch_size": first["batch_size"], "momentum": first.get("momentum", 0.0)}
    test = [*np.asarray(numbers["test"], float).tolist()]
    extra = {"accuracy": {"step": list(at), "train": test, "test": test}}
    found = made(settings, at, numbers["sharpness"], np.asarray(numbers["loss"], float).tolist())
    initial = xr.Dataset({"loss": ("step", np.array([2.3]))}, {"step": [0]})
    return replace(found, steps=initial, extra=extra)


def schedules_made(
    *,
    batch: float = 0.0,
    noise: float = 0.04,
    cyclic: float = 0.03,
    long: float = 0.02,
    wave: float = 0.5,
    seeds: int = 16,
    learned: bool = True,
) -> Callable[[int], list[Evidence]]:
    """Control: all arms of the quick preset, their accuracy, sharpness and loss written down, with scatter of the seeds.

    Runs of one group. Accuracy rises to 0.85; in units of accuracy: +`cyclic` under a wave and +`long` more with long stages,
    -`noise` at the constant of higher lr / batch size, +`batch` where the batch moves or is the larger one. Seeds scatter by
    0.01, alike in all arms, runs by 0.004, points by 0.005. In high stages log lambda_1 is lower and log loss higher by `wave`,
    scatter 0.05.

    Args:
        batch: what is not exchanged.
        noise: what lr / batch size does.
        cyclic: what a wave brings.
        long: what long stages bring.
        wave: phase-locked difference.
        seeds: how many.
        learned: whether the loss falls.

    Returns:
        Seed -> evidence.
    """
    size = SIZES["quick"]

    def run(name: str, stages: list[tuple[float, int, int]], seed: int, random: np.random.Generator) -> Evidence:
        description = staged(size, name, seed, stages, every=size.stages[0])
        n = len(description["record"]["snapshots"]["at"])
        shift = (batch if name.startswith("batch") or name == "low-large" else 0.0) - (noise if name == "high" else 0.0)
        shift += (cyclic if len(stages) > 1 else 0.0) + (long if name.endswith("long") else 0.0)
        rise = 1 - np.exp(-4 * (np.arange(n) + 1) / n)
        own = 0.01 * np.random.default_rng(seed).normal() + 0.004 * random.normal()
        test = (0.85 + shift + own) * rise + 0.005 * random.normal(size=n)
        lr = np.concatenate([[a / b] * (e // size.stages[0]) for a, b, e in stages])
        high = np.where(lr > np.sqrt(lr.min() * lr.max()), wave, 0.0)
        sharp = np.exp(2 - high + 0.05 * random.normal(size=n))
        loss = np.exp((-0.5 if learned else 1.0) * rise + high + 0.05 * random.normal(size=n))
        return made_run(description, size.examples, {"test": test, "sharpness": sharp, "loss": loss})

    def runs(seed: int) -> list[Evidence]:
        random = np.random.default_rng(seed)
        numbers = range(100 * seed, 100 * seed + seeds)
        return [run(name, stages, s, random) for name, stages in arms(size).items() for s in numbers]

    return runs
