"""Descriptions of the runs that claims need, in three sizes; validated by `Experiment` when they are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from sgdscope.errors import ArgumentError

SIZES: Mapping[str, dict[str, Any]] = {
    "quick": {"data": {"dataset": "digits", "label_noise": 0.3}, "model": {"name": "mlp", "hidden": [100, 100]}}
    | {"updates": 240, "at": (180,), "spread": (30, 105, 180), "length": 60, "decay": 0.0, "lr": 0.15, "batch_size": 64},
    "standard": {"data": {"dataset": "mnist", "label_noise": 0.3}, "model": {"name": "mlp", "hidden": [500, 350]}}
    | {"updates": 2400, "at": (2340,), "spread": (24, 240, 1200, 2340), "length": 60, "decay": 0.0, "lr": 0.15, "batch_size": 64},
    "paper": {"data": {"dataset": "cifar10", "train": 45000}, "model": {"name": "vgg11", "batchnorm": True}}
    | {"updates": 45000, "at": (44550,), "spread": (0, 4050, 10800, 44550), "length": 450, "decay": 1e-4}
    | {"lr": 0.1, "batch_size": 100},
}  # paper: the authors' code: epochs 1, 10, 25 and 100 of 450 updates, weight decay 1e-4, momentum 0


BATCHES = {"batch_size", "noise_batch_size"}  # keys of a phase that count examples of a batch


def path_of(updates: int, points: int = 24) -> list[int]:
    """Updates at which a quantity is followed along a whole run: dense at first, then even; the last update among them.

    They are at least two apart, so that each is a window of its own and is measured.

    Args:
        updates: of the run.
        points: how many, about; half of them in the first tenth.

    Returns:
        Ascending, distinct.
    """
    early = np.geomspace(1, max(1, updates // 10), points // 2).round().astype(int) - 1
    late = np.linspace(updates // 10, updates - 1, points - points // 2).round().astype(int)
    apart: list[int] = []
    for step in sorted({*early.tolist(), *late.tolist()}, reverse=True):
        if not apart or step <= apart[-1] - 2:
            apart.append(step)
    return sorted({0, *(step for step in apart if step > 1)})


def described(
    preset: str, seed: int, lr: float, batch: Any, *, at: str = "at", drop: float = 1.0, **further: Any
) -> dict[str, Any]:
    """Describe one run of plain SGD, or of another walker.

    Args:
        preset: quick, standard or paper.
        seed: of the run.
        lr: learning rate.
        batch: batch size or ``"full"``.
        at: which bursts: ``"at"`` the end only, ``"spread"`` over the training, or ``"path"``: single updates along all of it.
        drop: the learning rate is divided by it before the last burst.
        **further: of every phase, such as ``walker="nudged"`` and its options; ``model={...}`` and ``data={...}`` replace
            options of the network and the data.

    Returns:
        The description, see `Experiment`.
    """
    size = SIZES[preset]
    phase = {"walker": "sgd", "lr": lr, "batch_size": batch, "momentum": 0.0, "weight_decay": size["decay"]}
    phase |= {key: value for key, value in further.items() if key not in {"model", "data"}}
    first = size["at"][0]
    lengths = [(lr, size["updates"])] if drop == 1 else [(lr, first), (lr / drop, size["updates"] - first)]
    told = [
        f"-{value}" if not isinstance(value, dict) else "-" + "-".join(map(str, value.values())) for value in further.values()
    ]
    words = "".join(told).replace(" ", "").translate({ord(c): None for c in "[](){}',"})
    length = 1 if at == "path" else size["length"]
    chosen = path_of(size["updates"]) if at == "path" else list(size[at])
    return {
        "name": f"{preset}-lr{lr:g}-batch{batch}-seed{seed}" + (f"-drop{drop:g}" if drop != 1 else "") + words + f"-{at}",
        "seed": seed,
        "data": dict(size["data"]) | further.get("data", {}),
        "model": dict(size["model"]) | further.get("model", {}),
        "loss": "cross_entropy",
        "phases": [phase | {"lr": rate, "updates": updates} for rate, updates in lengths],
        "record": {"snapshots": {"kind": "bursts", "length": length, "at": chosen}},
    }


Chosen = tuple[float, float, int, dict[str, Any]]  # factor on the learning rate, on the batch size, seed, further options
GRID: list[Chosen] = [(lr, batch, s, {}) for lr in (0.25, 1.0, 4.0) for batch in (0.25, 1.0, 4.0) for s in range(5)]


def presets(chosen: Sequence[Chosen]) -> dict[str, Callable[[int], list[dict[str, Any]]]]:
    """Make the runs of a claim in each preset; the same settings give the same description, so that claims share runs.

    Args:
        chosen: factors on the preset's learning rate and batch size (infinite: full batch), seed, further options.

    Returns:
        Preset -> seed -> descriptions.
    """

    def of(preset: str) -> Callable[[int], list[dict[str, Any]]]:
        def runs(seed: int) -> list[dict[str, Any]]:
            lr, size = SIZES[preset]["lr"], SIZES[preset]["batch_size"]
            batches = ["full" if b == np.inf else max(1, round(size * b)) for _, b, _, _ in chosen]
            together = zip(chosen, batches, strict=True)
            return [described(preset, 1000 * seed + s, lr * f, batch, **more) for (f, _, s, more), batch in together]

        return runs

    return {preset: of(preset) for preset in SIZES}


PATHS: list[Chosen] = [(lr, batch, s, more | {"at": "path"}) for lr, batch, s, more in GRID]
ONE_RUN = presets([(1.0, 1.0, 0, {"at": "spread"}), (4.0, 1.0, 0, {"at": "spread"})])
SWEEP = presets(GRID)
PATH_SWEEP = presets(PATHS)


def transfer(description: Mapping[str, Any], own: Mapping[str, Any], preset: str) -> dict[str, Any]:
    """Carry a claim's run over to a user's experiment.

    Data, model, loss, walker and its options are the user's. Learning rate and batch size keep their ratio to the
    preset's: lr = own lr x (described lr / preset lr), likewise the batch sizes, rounded; a full batch stays full; a walker
    that wraps another, such as "nudged", is put around the user's. Where the
    user gives the number of updates, phases and bursts are stretched to it (a burst keeps its length).

    Args:
        description: of a run of the preset.
        own: the user's experiment, described.
        preset: of the run.

    Returns:
        The description to be run.

    Raises:
        ArgumentError: the user's batch is the full set, so that no other batch size has a ratio to it.
    """
    size, first = SIZES[preset], own["phases"][0]
    total = sum(phase.get("updates") or 0 for phase in own["phases"])
    stretch = total / size["updates"] if total and not any("epochs" in phase for phase in own["phases"]) else 1.0
    length = description["record"]["snapshots"]["length"]
    last = max(0, round(sum(p["updates"] for p in description["phases"]) * stretch) - length)
    moved = {a: min(round(a * stretch), last) for a in description["record"]["snapshots"]["at"]}
    phases, begun, placed = [], 0, 0
    for phase in description["phases"]:
        begun += phase["updates"]
        end = moved.get(begun, round(begun * stretch))
        changed = {"lr": first["lr"] * phase["lr"] / size["lr"], "updates": end - placed}
        drawn = {"replacement": phase["replacement"]} if "replacement" in phase else {}
        kept = {k: v for k, v in first.items() if k not in {"epochs", "schedule"}}
        phases.append(kept | drawn | _wrapped(phase, first) | changed)
        for key in phase.keys() & BATCHES:
            phases[-1][key] = _batch(phase[key], first["batch_size"], size["batch_size"])
        placed = end
    kept = {k: v for k, v in own.items() if k not in {"grid", "start", "name"}}
    record = dict(own.get("record", {})) | {"snapshots": {"kind": "bursts", "length": length, "at": sorted(set(moved.values()))}}
    changed = {"name": f"{own['name']}-{description['name']}", "seed": description["seed"], "phases": phases, "record": record}
    return kept | changed


def _wrapped(phase: Mapping[str, Any], own: Mapping[str, Any]) -> dict[str, Any]:
    """The walker of a described phase that wraps another, with its own options, around the user's walker."""
    if phase["walker"] == "sgd":
        return {}
    plain = {"lr", "batch_size", "updates", "momentum", "weight_decay", "replacement"}
    told = {key: value for key, value in phase.items() if key not in plain}
    return told | ({"base": own.get("walker", "sgd")} if "base" in told or own.get("walker", "sgd") != "sgd" else {})


def fitted(description: Mapping[str, Any], examples: int, preset: str) -> dict[str, Any]:
    """Halve all batch sizes alike until the largest of `GRID` is at most half of the examples, so that their ratios stay.

    Args:
        description: of a run of the preset.
        examples: of the training set.
        preset: of the run.

    Returns:
        The description; unchanged where the batches fit.
    """
    largest, divisor = max(b for _, b, _, _ in GRID) * SIZES[preset]["batch_size"], 1
    while 2 * largest > divisor * examples:
        divisor *= 2
    counted = [{key: n for key in BATCHES if not isinstance(n := p.get(key, ""), str)} for p in description["phases"]]
    smaller = [{key: max(1, n // divisor) for key, n in sizes.items()} for sizes in counted]
    return dict(description) | {"phases": [p | own for p, own in zip(description["phases"], smaller, strict=True)]}


def _batch(described: int | str, own: int | str, reference: int) -> int | str:
    if isinstance(described, str):
        return described
    if isinstance(own, str):
        raise ArgumentError("phases[0].batch_size: the claims vary it, so the experiment needs a number in place of 'full'")
    return max(1, round(own * described / reference))
