"""Runs from one start held against each other along the straight lines between their ends: a study of several walks a seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from math import isfinite, log, nan
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from torch import Tensor, nn

from sgdscope.comparison import Accuracy, interpolate, measured
from sgdscope.contracts import Evidence
from sgdscope.datasets import Dataset
from sgdscope.evidence.accuracy import accuracy, judged, placed
from sgdscope.evidence.windows import LOSS_SHARE, mean_finite
from sgdscope.experiment import Experiment, parts, run, surface_of
from sgdscope.records import Trajectory
from sgdscope.runs import open_trajectory
from sgdscope.surface import LossSurface
from sgdscope.vector import Layout

BESIDE = 0.05  # points this far from both ends, from which the curvature of a slice is taken
ALPHAS = sorted({*np.round(np.linspace(-1, 2, 31), 2).tolist(), -BESIDE, BESIDE, 1 - BESIDE, 1 + BESIDE})
PROBES = 30

State = tuple[Tensor, Mapping[str, Tensor]]


def study(description: Mapping[str, Any], folder: Path, data_dir: Any) -> Evidence:
    """Walk several arms from one start, and evaluate the loss on the lines between their ends.

    Args:
        description: name, seed, ``arms``: name -> experiment of the same network, data and seed; ``pairs``: of arms;
            ``stop``: ``"best"`` for the measured point of the best held-out accuracy of each arm, ``"last"`` for its last one.
        folder: of the runs and the result, which is read back if it is there.
        data_dir: folder of the real data.

    Returns:
        Evidence whose extra has ``arms``: name -> numbers at the end, and ``slices``: ``"a|b"`` -> numbers of the line.

    Cost: the walks; `PROBES` + 15 Hessian products an arm; for each pair 35 passes over training and held-out data.
    """
    path = folder / "slices.json"
    if not path.is_file():
        told = json.dumps(_walked(description, folder, data_dir))
        path.write_text(told)
    return Evidence(dict(description), xr.Dataset(), {}, json.loads(path.read_text()))


def _walked(description: Mapping[str, Any], folder: Path, data_dir: Any) -> dict[str, Any]:
    ends: dict[str, State] = {}
    arms: dict[str, Any] = {}
    experiments = {name: Experiment(**told) for name, told in description["arms"].items()}
    first = next(iter(experiments.values()))
    batchnorm = description.get("batchnorm", "eval")
    surface = surface_of(first, data_dir, batchnorm=batchnorm)
    model, loss, data = parts(first, data_dir)
    outside = LossSurface(model, loss, (data.x_test, data.y_test), batchnorm=batchnorm)
    for name, experiment in experiments.items():
        trajectory = open_trajectory(run(experiment, folder / name, data_dir=data_dir), data_dir=data_dir)
        ends[name], arms[name] = _end(trajectory, surface, description["stop"], data_dir)
    slices = {}
    own = _accuracies(model, trajectory.header.layout, data)
    for a, b in description["pairs"]:
        line = interpolate(surface, ends[a], ends[b], alphas=ALPHAS, held_out=outside, **own)
        told = {name: line[name].values.tolist() for name in ("loss", "held_out_loss", "accuracy", "held_out_accuracy")}
        told |= {"alpha": ALPHAS, "barrier": float(line["barrier"]), "distance": float(line["distance"])}
        slices[f"{a}|{b}"] = told | {"curvature": line["curvature"].values.tolist(), "bound": line.attrs["curvature_bound"]}
    return {"arms": arms, "slices": slices}


def _end(trajectory: Trajectory, surface: LossSurface, stop: str, data_dir: Any) -> tuple[State, dict[str, Any]]:
    """The point at which an arm stops, and its numbers."""
    told = accuracy(trajectory, surface, data_dir)["accuracy"]
    at = int(np.argmax(told["test"])) if stop == "best" else -1
    step, start = int(told["step"][at]), int(trajectory.snapshot_steps[0])
    state = trajectory.theta(step).double(), trajectory.buffers(step)
    point = measured(surface, state, k=5, probes=PROBES, seed=int(trajectory.settings["seed"]))
    return state, {
        "lr": float(trajectory.settings["lr"]), "batch_size": int(trajectory.settings["batch_size"]), "step": step,
        "loss": point.loss, "initial": surface.value(trajectory.theta(start).double(), trajectory.buffers(start) or None),
        "accuracy": told["test"][at], "sharpness": float(point.eigenvalues[0]), "trace": point.trace[0],
        "trace_stderr": point.trace[1], "frobenius": point.frobenius[0], "filter_curvature": point.filter_curvature[0],
    }  # fmt: skip


def _accuracies(model: nn.Module, layout: Layout, data: Dataset) -> dict[str, Accuracy]:
    """Accuracy of a point on the training examples, with the labels as trained, and on the held-out ones."""

    def of(x: Tensor, y: Tensor) -> Accuracy:
        return lambda theta, buffers: judged(placed(model, layout, theta, buffers), x, y)[0]

    return {"accuracy": of(data.x, data.y), "held_out_accuracy": of(data.x_test, data.y_test)}


# --- reading -----------------------------------------------------------------------------------------------------------------


def by_seed(runs: Sequence[Evidence], arms: Sequence[str]) -> dict[int, Mapping[str, Any]]:
    """The studies that have all of some arms.

    Args:
        runs: of `study`.
        arms: their names.

    Returns:
        Seed -> extra.
    """
    return {int(r.settings["seed"]): r.extra for r in runs if set(arms) <= set(r.extra.get("arms", {}))}


def lost(extra: Mapping[str, Any]) -> bool:
    """Whether the training loss has vanished at the end of an arm, where cross entropy takes the curvature with it."""
    return any(arm["loss"] < LOSS_SHARE * arm["initial"] for arm in extra["arms"].values())


def bent(extra: Mapping[str, Any], a: str, b: str) -> float:
    """How much more the loss curves at the end of one arm than at that of another, along the line between them.

    Args:
        extra: of a study.
        a: one arm.
        b: the other.

    Returns:
        log(curvature at b / curvature at a); NaN where one is not positive by more than its bound.
    """
    turned = f"{a}|{b}" not in extra["slices"]
    told = extra["slices"][f"{b}|{a}" if turned else f"{a}|{b}"]
    if any(not value > bound for value, bound in zip(told["curvature"], told["bound"], strict=True)):
        return nan
    first, last = told["curvature"][::-1] if turned else told["curvature"]
    return log(last / first)


def place(extras: Sequence[Mapping[str, Any]]) -> dict[str, float | str]:
    """Where studies lie on the map: means over arms and seeds.

    Args:
        extras: of studies.

    Returns:
        eta_sharpness (lr lambda_1), training_loss, loss_share, and the range of lr / batch size.
    """
    arms = [arm for extra in extras for arm in extra.get("arms", {}).values()]
    ratios = [arm["lr"] / arm["batch_size"] for arm in arms]
    return {
        "eta_sharpness": mean_finite([arm["lr"] * arm["sharpness"] for arm in arms]),
        "training_loss": mean_finite([arm["loss"] for arm in arms]),
        "loss_share": mean_finite([arm["loss"] / arm["initial"] for arm in arms]),
        "least_lr_over_batch": min(ratios, default=nan),
        "largest_lr_over_batch": max(ratios, default=nan),
    }


def beside(extras: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    """What is told beside the curvature at the ends: means over seeds of each arm and of each line.

    Args:
        extras: seed -> extra.

    Returns:
        ``{"arms": ..., "slices": ...}``; the barrier also over training loss at its higher end.
    """
    arms: dict[str, Any] = {}
    slices: dict[str, Any] = {}
    for extra in extras.values():
        for name, arm in extra["arms"].items():
            for key, value in arm.items():
                arms.setdefault(name, {}).setdefault(key, []).append(value)
        for name, line in extra["slices"].items():
            own = slices.setdefault(name, {})
            ends = [line["loss"][line["alpha"].index(at)] for at in (0, 1)] if line.get("loss") else [nan, nan]
            middle = line["loss"][line["alpha"].index(0.5)] if line.get("loss") else nan
            for key, value in (("barrier", line["barrier"]), ("distance", line["distance"]), ("middle", middle)):
                own.setdefault(key, []).append(value)
            for key, value in zip(("curvature_a", "curvature_b"), line["curvature"], strict=True):
                own.setdefault(key, []).append(value)
            own.setdefault("barrier_over_loss", []).append(line["barrier"] / max(ends) if isfinite(ends[0]) else nan)
    return {"arms": _means(arms), "slices": _means(slices)}


def _means(table: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, dict[str, float]]:
    return {name: {key: mean_finite(values) for key, values in own.items()} for name, own in table.items()}


# --- studies made of numbers -------------------------------------------------------------------------------------------------

COMMON = 0.2
Numbers = tuple[float, int, float, float]  # lr, batch size, curvature, training loss


def made(
    arms: Mapping[str, Numbers], pairs: Sequence[tuple[str, str]], *, seeds: int = 5, scatter: float = 0.05
) -> Callable[[int], list[Evidence]]:
    """Control: studies of which everything is known, with log-normal scatter of curvature and loss.

    Args:
        arms: name -> lr, batch size, lambda_1 at the end (Tr H is four times that, the slice curves half as much), loss.
        pairs: of arms.
        seeds: how many.
        scatter: standard deviation of the logs of each arm; `COMMON` is that of what the arms of a seed share.

    Returns:
        Seed -> evidence.
    """

    def runs(seed: int) -> list[Evidence]:
        random, found = np.random.default_rng(seed), []
        for s in range(100 * seed, 100 * seed + seeds):
            common, told = COMMON * random.standard_normal(2), {}
            for name, (lr, batch, sharp, loss) in arms.items():
                top, low = np.exp(common + scatter * random.standard_normal(2)) * (sharp, loss)
                told[name] = {"lr": lr, "batch_size": batch, "sharpness": float(top), "trace": 4 * float(top)}
                told[name] |= {"loss": float(low), "initial": 2.3, "accuracy": 0.85}
            slices = {f"{a}|{b}": _line(told[a], told[b]) for a, b in pairs}
            found.append(Evidence({"seed": s, "name": f"made-{s}"}, xr.Dataset(), {}, {"arms": told, "slices": slices}))
        return found

    return runs


def _line(a: Mapping[str, float], b: Mapping[str, float]) -> dict[str, Any]:
    bends = [0.5 * a["sharpness"], 0.5 * b["sharpness"]]
    return {"barrier": 0.2, "distance": 3.0, "curvature": bends, "bound": [0.05 * bend for bend in bends]}
