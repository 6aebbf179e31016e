"""The runs of the paper on the sharpest directions (Jastrzebski et al. 2019, arXiv 1807.05031), in three sizes.

quick and standard: the networks and data of `protocols`, points along the whole run. paper: CIFAR-10, plain SGD without
weight decay; SimpleCNN with the learning rates 0.001, 0.01, 0.1 at batch size 128, the batch sizes 32, 128, 1024 at 0.05, each
for 200 epochs; ResNet-32 without BatchNorm for the cut (specification E2, E3, E5-E8, E12).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sgdscope.contracts import Evidence
from sgdscope.evidence.protocols import SIZES, described, path_of

Description = dict[str, Any]
Presets = Mapping[str, Callable[[int], list[Description]]]

SEEDS = 5
CIFAR = 45000  # training examples, 5,000 are kept for validation
EPOCHS = 200  # E2, E3
CUT = 5  # the learning rate is cut after this fraction of the run: 40 of 200 epochs in E12
STEPS = 1000  # updates of an arm in E8; a quarter of a shorter run
SIMPLE, RESNET = {"name": "simplecnn"}, {"name": "resnet", "depth": 32, "batchnorm": False}
ARMS: Mapping[str, Mapping[str, Any]] = {
    "normal": {},
    "onlytop": {"variant": "dom", "every": 1},
    "constanttop": {"variant": "dom", "every": "once"},
    "removetop": {"variant": "bulk", "every": 1},
    "topscaled0.25": {"gamma": 0.25, "every": 1},
    "topscaled4": {"gamma": 4.0, "every": 1},
}  # E8; "bottomscaled" is topscaled by 1 / f at another learning rate


def _paper(seed: int, lr: float, batch: int, model: Mapping[str, Any]) -> Description:
    """One run of the released scripts, with points along it."""
    told = described("paper", seed, lr, batch, at="path", weight_decay=0.0)
    updates = EPOCHS * (CIFAR // batch)
    told["phases"][0]["updates"] = updates
    told["record"]["snapshots"]["at"] = path_of(updates)
    return told | {"name": f"paper-{model['name']}-lr{lr:g}-batch{batch}-seed{seed}", "model": dict(model)}


def _base(preset: str, seed: int) -> Description:
    """The run at the middle of the grid of learning rates."""
    if preset == "paper":
        return _paper(seed, 0.01, 128, SIMPLE)
    return described(preset, seed, SIZES[preset]["lr"], SIZES[preset]["batch_size"], at="path")


def _by_lr(preset: str, seed: int) -> list[Description]:
    if preset == "paper":
        return [_paper(seed, lr, 128, SIMPLE) for lr in (0.001, 0.01, 0.1)]
    size = SIZES[preset]
    return [described(preset, seed, f * size["lr"], size["batch_size"], at="path") for f in (0.25, 1.0, 4.0)]


def _by_batch(preset: str, seed: int) -> list[Description]:
    if preset == "paper":
        return [_paper(seed, 0.05, batch, SIMPLE) for batch in (32, 128, 1024)]
    size = SIZES[preset]
    return [described(preset, seed, size["lr"], round(f * size["batch_size"]), at="path") for f in (0.25, 1.0, 4.0)]


def _cut(preset: str, seed: int) -> list[Description]:
    """A run, and its twin whose learning rate is divided by ten early."""
    twin = _paper(seed, 0.1, 128, RESNET) if preset == "paper" else _base(preset, seed)
    phase = twin["phases"][0]
    first = phase["updates"] // CUT
    phases = [phase | {"updates": first}, phase | {"updates": phase["updates"] - first, "lr": phase["lr"] / 10}]
    return [twin, twin | {"name": f"{twin['name']}-cut", "phases": phases}]


def _arms(preset: str, seed: int) -> list[Description]:
    """From one point on: plain SGD, and each change of its step along the sharpest direction, measured anew at every update."""
    base = _paper(seed, 0.005, 128, SIMPLE) if preset == "paper" else _base(preset, seed)
    phase = base["phases"][0]
    total = phase["updates"]
    begun, steps = (5 * (CIFAR // 128), STEPS) if preset == "paper" else (total // 8, min(STEPS, total // 4))
    points = {"kind": "bursts", "length": 1, "at": [begun, begun + steps]}
    told = []
    for arm, options in ARMS.items():
        walker: Description = {"walker": "nudged", "base": "sgd", "k": 1, **options} if options else {}
        phases = [phase | {"updates": begun}, phase | {"updates": steps + 1} | walker]
        recorded = {"snapshots": points, "mode": "snapshots"}
        told.append(base | {"name": f"{base['name']}-{arm}", "phases": phases, "record": recorded})
    return told


def arm_of(run: Evidence) -> str | None:
    """Which arm of E8 a run is, by the options of its second phase.

    Args:
        run: the evidence, with the description in its settings.

    Returns:
        A key of `ARMS`; None for any other run.
    """
    phases = run.settings.get("experiment", {}).get("phases", [])
    if len(phases) != 2:
        return None
    second = {"variant": "nudge"} | phases[1]
    if second.get("walker") == "sgd":
        return "normal"
    if second.get("walker") != "nudged" or second.get("k") != 1:
        return None
    asked = {arm: {"variant": "nudge", **options} for arm, options in ARMS.items() if options}
    return next((arm for arm, options in asked.items() if options.items() <= second.items()), None)


def _of(make: Callable[[str, int], Any]) -> Presets:
    def of(preset: str) -> Callable[[int], list[Description]]:
        def runs(seed: int) -> list[Description]:
            made = [make(preset, 1000 * seed + s) for s in range(SEEDS)]
            return [d for one in made for d in (one if isinstance(one, list) else [one])]

        return runs

    return {preset: of(preset) for preset in SIZES}


BASE, BY_LR, BY_BATCH, CUTS, BRANCHES = _of(_base), _of(_by_lr), _of(_by_batch), _of(_cut), _of(_arms)
