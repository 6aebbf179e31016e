"""Accuracy on corrupted and clean training labels and on held-out examples along a run, and what it was at equal memorisation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log, nan
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sgdscope import statistics
from sgdscope.contracts import Evidence
from sgdscope.evidence.accuracy import judged, standing
from sgdscope.evidence.endpoints import kendall
from sgdscope.evidence.schedule_exchange import Size, staged
from sgdscope.evidence.sharpness import made
from sgdscope.experiment import Experiment, parts
from sgdscope.records import Surface, Trajectory

Array = NDArray[np.float64]
LEVELS = tuple(round(0.2 + 0.1 * i, 1) for i in range(8))  # of memorised accuracy; 0.1 is chance with ten classes
CELLS = 4  # settings that reach a level, below which it is left out
ONSET = 0.2  # memorised accuracy at which memorisation has begun: what the paper's slow runs never pass


def memorised(trajectory: Trajectory, surface: Surface, data_dir: Any = None) -> Mapping[str, Any]:  # ruff: ignore[unused-function-argument] - one signature for all observations
    """Measure the accuracies at the first point of each stretch of snapshots and at the last point.

    Args:
        trajectory: a run of an experiment; for others the corrupted labels are not known, and the result is empty.
        surface: not used.
        data_dir: folder of the real data files.

    Returns:
        ``{"memorised": {"step", "corrupted", "clean", "test": [...], "convention", "wrong": share of labels that are wrong}}``;
        "corrupted": the share of the labels drawn anew that the network gives back, NaN without any; "clean": of the others.
    """
    described = trajectory.settings.get("experiment")
    if described is None:
        return {}
    model, _, data = parts(Experiment(**described), data_dir)
    drawn_anew = np.isin(np.arange(len(data.y)), data.noisy.numpy())
    points = trajectory.snapshot_steps.tolist()
    chosen = [p for i, p in enumerate(points) if i == 0 or p != points[i - 1] + 1 or i + 1 == len(points)]
    told: dict[str, Any] = {"step": chosen, "corrupted": [], "clean": [], "test": []}
    for step in chosen:
        standing(trajectory, step, model)
        for name, rows in (("corrupted", drawn_anew), ("clean", ~drawn_anew)):
            told[name].append(judged(model, data.x[rows], data.y[rows])[0] if rows.any() else nan)
        told["test"].append(judged(model, data.x_test, data.y_test)[0])
    return {"memorised": told | {"convention": data.info["label_convention"], "wrong": data.info["wrong_labels"]}}


# --- runs --------------------------------------------------------------------------------------------------------------------

NOISES = (0.25, 0.5)
RATES = ((0.1, 0.0), (0.2, 0.0), (0.4, 0.0), (0.02, 0.9))  # (lr, momentum); with momentum no more than 0.02, as the paper
PAPER_RATES = ((0.05, 0.0), (0.1, 0.0), (0.2, 0.0), (0.01, 0.9), (0.02, 0.9))
BATCHES: Mapping[str, tuple[int, ...]] = {"quick": (25, 50), "standard": (50, 100, 200), "paper": (50, 100, 200, 400, 800)}
GRIDS: Mapping[str, Size] = {
    "quick": Size({"dataset": "digits", "train": 650}, {"name": "mlp", "hidden": [256]}, (0, 0), 0, 100, (4, 4)),
    "standard": Size({"dataset": "mnist", "train": 6000}, {"name": "mlp", "hidden": [256]}, (0, 0), 0, 150, (5, 5)),
    "paper": Size({"dataset": "mnist", "train": 60000}, {"name": "mlp", "hidden": [256]}, (0, 0), 0, 300, (5, 5)),
}  # quick: at lr / batch size of the paper's grid digits are not memorised in 100 epochs, so the noise is higher


def grid(seeds: int) -> dict[str, Callable[[int], list[dict[str, Any]]]]:
    """Make the runs: shares of corrupted labels by lr and momentum by batch size, the same epochs in each preset.

    Args:
        seeds: how many.

    Returns:
        Preset -> seed -> descriptions.
    """

    def of(preset: str) -> Callable[[int], list[dict[str, Any]]]:
        size, rates = GRIDS[preset], RATES if preset == "quick" else PAPER_RATES
        cells = [(r, lr, mu, b) for r in NOISES for lr, mu in rates for b in BATCHES[preset]]

        def runs(seed: int) -> list[dict[str, Any]]:
            numbers = range(1000 * seed, 1000 * seed + seeds)
            return [_described(size, preset, cell, s) for cell in cells for s in numbers]

        return runs

    return {preset: of(preset) for preset in GRIDS}


def _described(size: Size, label: str, cell: tuple[float, float, float, int], seed: int) -> dict[str, Any]:
    share, lr, momentum, batch = cell
    name = f"{label}-noise{share:g}-lr{lr:g}-momentum{momentum:g}-batch{batch}-seed{seed}"
    noisy = replace(size, data=dict(size.data) | {"label_noise": share})
    return staged(noisy, name, seed, [(lr, batch, size.epochs)], every=size.stages[0], momentum=momentum)


# --- reading -----------------------------------------------------------------------------------------------------------------


def noise_of(run: Evidence) -> float:
    """Log lr / (S (1 - momentum)) of a run; NaN where the batch has no number."""
    s = run.settings
    batch = s.get("batch_size")
    if not isinstance(batch, int | float):
        return nan
    return log(float(s["lr"]) / (float(batch) * (1 - float(s.get("momentum", 0.0)))))


def held_out_at(run: Evidence, level: float) -> float:
    """Held-out accuracy where the memorised accuracy first reaches a level, on a straight line between measured points.

    Args:
        run: observed by `memorised`.
        level: of the accuracy on corrupted labels.

    Returns:
        The accuracy; NaN if the level is never reached, or at the first point already.
    """
    told = run.extra["memorised"]
    corrupted, test = np.asarray(told["corrupted"], np.float64), np.asarray(told["test"], np.float64)
    reached = np.flatnonzero(corrupted >= level)
    if not reached.size or reached[0] == 0:
        return nan
    a, b = reached[0] - 1, reached[0]
    share = (level - corrupted[a]) / (corrupted[b] - corrupted[a])
    return float(test[a] + share * (test[b] - test[a]))


def slopes(runs: Sequence[Evidence]) -> dict[float, float]:
    """Slope of held-out accuracy over log lr / (S (1 - momentum)) at each level of memorised accuracy, of one seed.

    Args:
        runs: of one seed and one share of corrupted labels.

    Returns:
        Level -> slope, for the levels that at least `CELLS` different noises reach.
    """
    found = {}
    for level in LEVELS:
        pairs = np.array([(noise_of(run), held_out_at(run, level)) for run in runs]).reshape(-1, 2)
        known = pairs[np.isfinite(pairs).all(1)]
        if len(known) >= CELLS and len(np.unique(known[:, 0].round(9))) >= CELLS:
            found[level] = statistics.slope(known[:, 0], known[:, 1])[0]
    return found


def peak_and_onset(run: Evidence) -> tuple[float, float]:
    """The updates at which held-out accuracy is best, and at which memorised accuracy first reaches `ONSET` (NaN if never)."""
    told = run.extra["memorised"]
    steps, corrupted = np.asarray(told["step"], np.float64), np.asarray(told["corrupted"], np.float64)
    peak = float(steps[int(np.argmax(told["test"]))])
    reached = np.flatnonzero(corrupted >= ONSET)
    return peak, float(steps[reached[0]]) if reached.size else nan


def order(runs: Sequence[Evidence]) -> tuple[float, float]:
    """Whether memorisation begins after the best held-out accuracy.

    Args:
        runs: of one seed and share.

    Returns:
        (share of the runs that memorise whose peak is not later than the onset, Kendall's tau of peak and onset).
    """
    pairs = np.array([peak_and_onset(run) for run in runs]).reshape(-1, 2)
    known = pairs[np.isfinite(pairs).all(1)]
    if len(known) < 2:
        return nan, nan
    return float(np.mean(known[:, 0] <= known[:, 1])), kendall(known[:, 0], known[:, 1])


# --- runs made of numbers ----------------------------------------------------------------------------------------------------


def memorising(gain: float = 0.02, *, seeds: int = 4, shares: Sequence[float] = NOISES) -> Callable[[int], list[Evidence]]:
    """Control: held-out accuracy at equal memorisation is written down: 0.9 - 0.2 m + gain x (log noise + 6), with scatter.

    Memorised accuracy m rises from 0.1 to 0.1 + 0.9 (1 - exp(-t)), t up to 1 to 3 with the noise. Scatter: 0.01 of a run,
    0.005 of a point.

    Args:
        gain: accuracy that a factor e of lr / (S (1 - momentum)) brings.
        seeds: how many.
        shares: of corrupted labels.

    Returns:
        Seed -> evidence.
    """
    size = GRIDS["quick"]

    def run(cell: tuple[float, float, float, int], seed: int, random: np.random.Generator) -> Evidence:
        share, lr, momentum, batch = cell
        described = _described(size, "made", cell, seed)
        steps = described["record"]["snapshots"]["at"]
        settings = {"lr": lr, "momentum": momentum, "batch_size": batch, "seed": seed, "label_noise": share}
        empty = made(settings, steps, np.ones(len(steps)), np.linspace(2.0, 1.0, len(steps)).tolist())
        noise = noise_of(empty)
        m = 0.1 + 0.9 * (1 - np.exp(-(noise + 8.5) / 1.5 * np.linspace(0.0, 1.0, len(steps))))
        test = 0.9 - 0.2 * m + gain * (noise + 6) + 0.01 * random.normal() + 0.005 * random.normal(size=len(steps))
        told = {"step": steps, "corrupted": (m if share else np.full(len(steps), nan)).tolist(), "clean": test.tolist()}
        told |= {"test": test.tolist(), "convention": "uniform", "wrong": 0.9 * share}
        return replace(empty, extra={"memorised": told}, measured={"motion": xr.Dataset()})

    def runs(seed: int) -> list[Evidence]:
        random = np.random.default_rng(seed)
        cells = [(r, lr, mu, b) for r in shares for lr, mu in RATES for b in BATCHES["quick"]]
        return [run(cell, s, random) for cell in cells for s in range(100 * seed, 100 * seed + seeds)]

    return runs
