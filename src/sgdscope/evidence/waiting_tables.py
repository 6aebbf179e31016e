"""A table of one's own in the escape claims: how it is read, and the noise at which a network on it is left in time."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

import torch

from sgdscope import escapes
from sgdscope.datasets import load
from sgdscope.errors import ArgumentError
from sgdscope.evidence.waiting import generator_of, potential_of, valley_of
from sgdscope.evidence.waiting_runs import DIFFUSION, LR, MODELS, Setting, described

ROWS = 1000  # of a table in ``quick``: white noise takes the gradient over all of them
GROSS, CLIP = 10.0, 5.0  # standard deviations beyond which a value is an outlier, and to which all are cut then; chosen here
SETTLE = 2000  # updates of the descent to the minimum, as of the other tables
FIRST = 0.02  # lr lambda_1 of the first trial: 0.016 and 0.019 were found on two tables
STABLE = 0.5  # lr lambda_1 up to which is searched: the sweeps go to four times the learning rate, and descent is stable below 2
SMOOTH = 0.35  # lr lambda_1 of white noise at the largest k, as of the analytic potentials
SHARPEST = 2.0  # that k


def tabled(descriptions: Sequence[Mapping[str, Any]]) -> bool:
    """Whether a table is among what the experiments walk on, so that another can take its place."""
    return any(_network(description) for description in descriptions)


def _network(description: Mapping[str, Any]) -> bool:
    potential = description.get("potential")
    return isinstance(potential, Mapping) and potential.get("kind") == "network"


def on_table(descriptions: Sequence[Mapping[str, Any]], dataset: str, data_dir: Any, preset: str) -> list[Setting]:
    """Put a table in the place of those of a claim's networks; what walks on no table is left out.

    Each kind of network and noise is asked once. Its sweep keeps its ratios: learning rates are multiplied by what `sought`
    finds over the unit of the old table, temperatures likewise. What was found is in ``search`` of each description.

    Args:
        descriptions: of the preset.
        dataset: see `datasets.load`.
        data_dir: folder of the real data.
        preset: quick, standard or paper.

    Returns:
        Descriptions.

    Raises:
        ArgumentError: the table cannot be used, or a network on it is not left in 100 to 2000 updates at any noise.
    """
    first: dict[str, str] = {}
    found = []
    for description in filter(_network, descriptions):
        potential = description["potential"]
        kind = json.dumps([potential["model"], potential.get("decay"), description["noise"]["kind"]], sort_keys=True)
        if first.setdefault(kind, potential["dataset"]) == potential["dataset"]:
            found.append(_moved(description, (dataset, data_dir), preset))
    return found


def _moved(description: Mapping[str, Any], table: tuple[str, Any], preset: str) -> Setting:
    """One description on another table."""
    old, noise = dict(description["potential"]), dict(description["noise"])
    read = _read(table[0], _folder(table[1]), ROWS if preset == "quick" else None)
    kept = {name: value for name, value in old.items() if name not in {"dataset", "train", "clip"}}
    potential = kept | {k: v for k, v in read.items() if k != "constant_features"}
    valley = json.dumps(description["valley"], sort_keys=True)
    search = _sought(json.dumps(potential, sort_keys=True), valley, noise["kind"], _folder(table[1]))
    if noise["kind"] == "white":
        lr, noise["diffusion"] = search["lr"], noise["diffusion"] / DIFFUSION[old["dataset"]][0] * search["found"]
    else:
        lr = description["lr"] / LR[old["dataset"], _model(old)] * search["found"]
    told = {name: value for name, value in description.items() if name not in {"name", "seed"}}
    told |= {"potential": potential, "noise": noise, "lr": lr, "search": {**search, "constant": read["constant_features"]}}
    return described(preset, description["seed"], told)


def _model(potential: Mapping[str, Any]) -> str:
    return next(name for name, model in MODELS.items() if model == potential["model"])


def _folder(data_dir: Any) -> str | None:
    return None if data_dir is None else str(data_dir)


@lru_cache(maxsize=16)
def _read(dataset: str, data_dir: str | None, rows: int | None) -> Mapping[str, Any]:
    """How the table is read: options of `load`, the learning rate of the descent to a minimum, and the constant features."""
    data = load(dataset, data_dir)
    if not data.x.is_floating_point():
        raise ArgumentError(f"dataset: '{dataset}' is a text; escapes ask for a table or images with one label each")
    told: dict[str, Any] = {"dataset": dataset}
    if rows is not None and len(data.x) > rows:
        told["train"] = rows
    if float(data.info.get("largest", {}).get("value", 0.0)) > GROSS:
        told["clip"] = CLIP
    data = load(dataset, data_dir, **{k: v for k, v in told.items() if k != "dataset"})
    x = data.x.flatten(1).double()
    if not bool((x != x[0]).any()):
        raise ArgumentError(f"dataset: every feature of '{dataset}' is constant; nothing tells its classes apart")
    if bool((data.y == data.y[0]).all()):
        raise ArgumentError(
            f"dataset: all {len(x)} labels of '{dataset}' are alike; expected two classes. Is the label the last column?"
        )
    steepest = float(torch.linalg.matrix_norm(torch.cat([x, torch.ones(len(x), 1)], 1), 2)) ** 2 / (2 * len(x))
    told["settle"] = {"updates": SETTLE, "lr": min(0.1, 1 / steepest)}  # logistic regression has lambda_1 <= steepest everywhere
    return told | {"constant_features": list(data.info.get("constant_features", []))}


@lru_cache(maxsize=16)
def _sought(potential: str, valley: str, noise: str, data_dir: str | None) -> Mapping[str, Any]:
    return sought({"potential": json.loads(potential), "valley": json.loads(valley), "noise": {"kind": noise}}, data_dir)


def sought(description: Mapping[str, Any], data_dir: Any = None) -> dict[str, Any]:
    """The noise at which half of 60 walkers leave a network's valley after 100 to 2000 updates, by `escapes.bisect`.

    Batches of one example: the learning rate, at most 0.5 / lambda_1. White noise: its learning rate only sets the unit of
    time and is 0.5, or less so that lr lambda_1 <= 0.35 at twice the sharpness; the temperature is sought. Only the median at
    this one setting is looked at, k = 1 and seed 0, none of what a claim judges.

    Args:
        description: potential, valley, and noise with its kind.
        data_dir: folder of the real data.

    Returns:
        knob (what was sought), found, lr, median (updates) and trials.

    Raises:
        ArgumentError: no such value was found.

    Cost: settling, and at most 16 walks of 2000 updates.
    """
    potential = potential_of(dict(description) | {"seed": 0}, data_dir)
    valley, sharpness = valley_of(description, potential), potential.sharpness()
    generator = generator_of(description)
    if not sharpness > 0:
        raise ArgumentError(
            f"dataset: lambda_1 = {sharpness:.3g} where the descent ended, which is no minimum; settle for longer"
        )

    def median(lr: float, noise: escapes.Minibatch | escapes.White) -> float:
        return escapes.median_wait(potential, valley, noise, lr=lr, generator=generator)

    if description["noise"]["kind"] == "white":
        lr = min(0.5, SMOOTH / (SHARPEST * sharpness))
        found = escapes.bisect(lambda d: median(lr, escapes.White(d)), DIFFUSION["banknote"][0], name="diffusion")
        return {"knob": "diffusion", "found": found.value, "lr": lr, "median": found.median, "trials": found.trials}
    one = escapes.Minibatch(1)
    found = escapes.bisect(lambda lr: median(lr, one), FIRST / sharpness, name="lr", most=STABLE / sharpness)
    return {"knob": "lr", "found": found.value, "lr": found.value, "median": found.median, "trials": found.trials}
