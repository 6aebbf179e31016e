"""Weighted parallel SGD on quadratics, where everything is known, and on networks: what the claims WP1-WP5 are judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from sgdscope.contracts import Evidence
from sgdscope.ensembles.parallel import WeightedParallelSGD
from sgdscope.experiment import Experiment, read_ensemble, run_ensemble, surface_of
from sgdscope.records import Trajectory
from sgdscope.replicas import Combination, Scheme, combined
from sgdscope.runs import open_trajectory
from sgdscope.walkers.descent import SGD

RATIOS = (1.0, 1 / 2, 1 / 3, 1 / 6, 1 / 30)  # T_min / T_max on the quadratic; those of the specification's table, and 1/2
NETWORK_RATIOS = (1.0, 1 / 4)
SIZES: Mapping[str, dict[str, Any]] = {
    "quick": {"repeats": 1000, "updates": 200, "batch_size": 32, "lr": 0.1, "data": {"dataset": "digits"}}
    | {"model": {"name": "mlp", "hidden": [50]}},
    "standard": {"repeats": 10000, "updates": 2000, "batch_size": 64, "lr": 0.1, "data": {"dataset": "mnist"}}
    | {"model": {"name": "mlp", "hidden": [500, 350]}},
    "paper": {"repeats": 10000, "updates": 20000, "batch_size": 100, "lr": 0.1, "data": {"dataset": "cifar10"}}
    | {"model": {"name": "vgg11", "batchnorm": True}},
}  # paper: its networks are not known (the body could not be read); those of the project's other claims stand in
QUADRATIC: Mapping[str, float] = {"lr": 0.1, "curvature": 0.2, "distance": 10.0, "variance": 1.0}  # c = 0.98


# --- descriptions ----------------------------------------------------------------------------------------------------------


def quadratic(seed: int, workloads: Sequence[int], repeats: int, **further: Any) -> dict[str, Any]:
    """Describe an ensemble on a quadratic.

    Args:
        seed: of the noise.
        workloads: updates of each member.
        repeats: independent repetitions, the coordinates of one walk.
        **further: in place of `QUADRATIC`; ``shared=True`` gives all members the same noise.

    Returns:
        The description.
    """
    counts = "-".join(f"{list(workloads).count(n)}x{n}" for n in sorted(set(workloads), reverse=True))
    words = "".join(f"-{key}{value:g}" for key, value in further.items())
    name = f"quadratic-{counts}{words}-repeats{repeats}-seed{seed}"
    return {"name": name, "seed": seed, "kind": "quadratic", "workloads": list(workloads), "repeats": repeats} | further


def network(preset: str, seed: int, workloads: Sequence[float], *, convex: bool, own_start: bool = False) -> dict[str, Any]:
    """Describe an ensemble of networks.

    Args:
        preset: quick, standard or paper.
        seed: of the ensemble.
        workloads: updates of each member, as shares of the preset's.
        convex: logistic regression in place of the preset's network.
        own_start: members start apart.

    Returns:
        The description.
    """
    size = SIZES[preset]
    counts = [round(size["updates"] * share) for share in workloads]
    model = {"name": "logistic"} if convex else dict(size["model"])
    words = "-".join(map(str, counts)) + ("-apart" if own_start else "")
    experiment = {
        "name": f"{preset}-{model['name']}-{words}-seed{seed}",
        "seed": seed,
        "data": dict(size["data"]),
        "model": model,
        "phases": [{"lr": size["lr"], "batch_size": size["batch_size"], "updates": size["updates"]}],
        "record": {"snapshots": {"kind": "bursts", "length": 1, "at": [0]}},
        "ensemble": {"members": len(counts), "workloads": counts, "scheme": "proportional", "own_start": own_start},
    }
    told = {"name": experiment["name"], "seed": seed, "kind": "network", "convex": convex, "own_start": own_start}
    return told | {"workloads": counts, "experiment": experiment}


# --- the study -------------------------------------------------------------------------------------------------------------


def study(description: Mapping[str, Any], folder: Path, data_dir: Any) -> Evidence:
    """Walk a described ensemble and combine it with each scheme, with and without its slowest member.

    Args:
        description: of `quadratic` or `network`.
        folder: for the runs of a network.
        data_dir: folder of the real data files.

    Returns:
        Evidence whose `extra` has ``loss`` (scheme -> loss of the average; on a quadratic the mean squared distance from the
        minimum), ``loss_without`` (the same without the last member), ``apart`` (scheme -> distance of the average from the
        equal one, relative to the way from the start), ``decay`` c^T, ``barrier`` between the members (networks), ``variance``
        (quadratics: groups of 1, 2, 4, ... members -> variance of their equal average) and ``losses``.
    """
    if description["kind"] == "quadratic":
        return _evidence(description, _quadratic(description))
    return _evidence(description, _network(description, folder, data_dir))


def _evidence(description: Mapping[str, Any], extra: Mapping[str, Any]) -> Evidence:
    return Evidence(dict(description), xr.Dataset(), {}, dict(extra))


def _quadratic(description: Mapping[str, Any]) -> dict[str, Any]:
    told = {**QUADRATIC, **description}
    workloads, rate = description["workloads"], told["lr"] * told["curvature"]
    start = torch.full((description["repeats"],), told["distance"], dtype=torch.float64)
    points = [start.clone().requires_grad_() for _ in workloads]
    ensemble = WeightedParallelSGD([SGD([p], lr=told["lr"]) for p in points], rate=rate)
    generator = torch.Generator().manual_seed(description["seed"])
    deviation = (told["variance"] * told["curvature"] * (2 - rate) / told["lr"]) ** 0.5
    for t in range(max(workloads)):
        active = [i for i, n in enumerate(workloads) if t < n]
        rows = 1 if told.get("shared") else len(active)
        noise = deviation * torch.randn(rows, len(start), dtype=torch.float64, generator=generator)
        for row, i in enumerate(active):
            points[i].grad = told["curvature"] * points[i].detach() + noise[row % rows]
        ensemble.step(active)
    ends = [p.detach() for p in points]

    def loss(theta: Tensor) -> float:
        return float((theta**2).mean())

    found = _schemes(ends, workloads, start, loss, rate)
    return found | {"decay": (1 - rate) ** max(workloads), "variance": _variances(ends), "barrier": None}


def _variances(ends: Sequence[Tensor]) -> dict[str, float]:
    """Variance over the repetitions of the equal average of groups of 1, 2, 4, ... members that share none."""
    found, first, size = {}, 0, 1
    while first + size <= len(ends):
        found[str(size)] = float(torch.stack(list(ends[first : first + size])).mean(0).var())
        first, size = first + size, 2 * size
    return found


def _network(description: Mapping[str, Any], folder: Path, data_dir: Any) -> dict[str, Any]:
    experiment = Experiment(**description["experiment"])
    out = run_ensemble(experiment, folder, data_dir=data_dir)
    told = read_ensemble(out) or {}
    runs = {m["run"]: open_trajectory(out / m["run"], data_dir=data_dir) for m in told["members"] if m["updates"]}
    start = runs["member-0"].theta(0)
    ends = [runs[m["run"]].theta(m["updates"]) if m["updates"] else start for m in told["members"]]
    curves = [_curve(runs.get(m["run"])) for m in told["members"]]
    plain = Experiment(**{k: v for k, v in description["experiment"].items() if k != "ensemble"})
    surface = surface_of(plain, data_dir, batchnorm="recalibrate")  # averages come without statistics of their own
    rate = combined([[e] for e in ends], _apart(description["workloads"]), losses=curves).rate
    found = _schemes(ends, description["workloads"], start, surface.value, rate)
    members = [m["loss"] for m in told["members"]]
    decay = (1 - (rate or 0.0)) ** max(description["workloads"])
    return found | {"decay": decay, "rate": rate, "barrier": told["barrier"], "losses": members, "initial": surface.value(start)}


def _apart(workloads: Sequence[int]) -> list[int]:
    """Workloads that differ, so that the rate is fitted also where all members made as many updates."""
    return [*workloads[:-1], workloads[-1] + 1] if len(set(workloads)) == 1 else list(workloads)


def _curve(run: Trajectory | None) -> np.ndarray[Any, np.dtype[np.float64]]:
    return np.zeros(0) if run is None else np.asarray(run.steps["loss"].values, np.float64)


def _schemes(ends: Sequence[Tensor], workloads: Sequence[int], start: Tensor, loss: Any, rate: float | None) -> dict[str, Any]:
    """Losses of the averages of all members and of all but the last, and how far each lies from the equal one."""

    def average(members: int, scheme: Scheme) -> Combination:
        return combined([[e] for e in ends[:members]], workloads[:members], scheme=scheme, rate=rate)

    schemes: tuple[Scheme, ...] = ("geometric", "proportional", "equal", "fastest")
    k = len(ends)
    points = {scheme: average(k, scheme) for scheme in schemes}
    without = {scheme: average(k - 1, scheme) for scheme in schemes if k > 1 and any(workloads[: k - 1])}
    way = float((points["equal"].theta - start).norm())
    return {
        "weights": {scheme: list(found.weights) for scheme, found in points.items()},
        "loss": {scheme: loss(found.theta) for scheme, found in points.items()},
        "loss_without": {scheme: loss(found.theta) for scheme, found in without.items()},
        "apart": {s: float((found.theta - points["equal"].theta).norm()) / way if way else nan for s, found in points.items()},
    }


def place(runs: Sequence[Evidence]) -> dict[str, float | str]:
    """Where ensembles lie on the map.

    Args:
        runs: the evidence.

    Returns:
        decay: c^T of the fastest, mean; imbalance: the least T_min / T_max; barrier: the largest; problems: their names.
    """
    ratios = [min(r.settings["workloads"]) / max(r.settings["workloads"]) for r in runs]
    decays = [d for r in runs if isfinite(d := float(r.extra.get("decay", nan)))]
    barriers = [float(b) for r in runs if (b := r.extra.get("barrier")) is not None]
    return {
        "decay": float(np.mean(decays)) if decays else nan,
        "imbalance": min(ratios, default=nan),
        "barrier": max(barriers, default=nan),
        "problems": ", ".join(sorted({problem(r) for r in runs})) or "none",
    }


def problem(run: Evidence) -> str:
    """The problem of an ensemble: quadratic, convex network or network."""
    if run.settings["kind"] == "quadratic":
        return "quadratic"
    return "logistic regression" if run.settings["convex"] else "network"


# --- ensembles with known answers ------------------------------------------------------------------------------------------


def walked(chosen: Sequence[Sequence[int]], seed: int, *, seeds: int = 5, **further: Any) -> list[Evidence]:
    """Real ensembles on quadratics.

    Args:
        chosen: workloads of each.
        seed: from which theirs are made.
        seeds: how many.
        **further: of `quadratic`.

    Returns:
        The evidence of each, of each seed.
    """
    own = range(100 * seed, 100 * seed + seeds)
    return [study(quadratic(s, workloads, 400, **further), Path(), None) for s in own for workloads in chosen]


def drawn(chosen: Mapping[str, Any], seed: int, *, seeds: int = 5, scatter: float = 0.25, **extra: float) -> list[Evidence]:
    """Networks made of numbers: each number of `extra` times 1 + a normal scatter from seed to seed.

    Args:
        chosen: settings of all, added to those of two networks that start apart.
        seed: from which theirs are made.
        seeds: how many.
        scatter: standard deviation, relative.
        **extra: numbers; those of a scheme, such as ``loss_geometric``, go where `study` puts them.

    Returns:
        One piece of evidence a seed.
    """
    found = []
    for s in range(100 * seed, 100 * seed + seeds):
        settings = {"kind": "network", "convex": False, "own_start": True, "workloads": [200, 200], "seed": s, **chosen}
        random = np.random.default_rng((s, len(extra)))
        told: dict[str, Any] = {"losses": [0.3, 0.31], "decay": 1e-3, "initial": 2.3}
        for name, value in extra.items():
            noisy = value * (1 + scatter * float(random.standard_normal()))
            group, _, scheme = name.partition("_to_")
            told[group] = {**told.get(group, {}), scheme: noisy} if scheme else noisy
        found.append(_evidence(settings, told))
    return found
