"""Evidence made of numbers with scatter from seed to seed: controls of the claims about noise, units and flatness."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sgdscope.contracts import Evidence
from sgdscope.evidence.sharpness import made
from sgdscope.evidence.units import made as made_units

Array = NDArray[np.float64]
LRS, BATCHES = (0.05, 0.15, 0.45), (16, 64, 256)
POINTS = 15
STEPS = range(0, 10 * POINTS, 10)
START, END = 2.3, 0.8  # training losses of the runs that come to an end


def _seeds(seed: int, count: int) -> range:
    return range(100 * seed, 100 * seed + count)


def _random(*key: int) -> np.random.Generator:
    return np.random.default_rng(key)


def _progress(speed: float) -> Array:
    """0 at the start, towards 1 at the end of the descent."""
    return 1 - np.exp(-speed * np.arange(POINTS) / 4)


def _with(run: Evidence, **columns: Any) -> Evidence:
    """Further variables of the curvature over `step`."""
    data = run.measured["curvature"].assign({name: ("step", np.asarray(values)) for name, values in columns.items()})
    return replace(run, measured=dict(run.measured) | {"curvature": data})


def grid(seed: int, *, lr: float = 0.4, batch: float = 0.4, seeds: int = 3, speed: float = 1.0) -> list[Evidence]:
    """A grid of runs whose curvature at equal loss falls with lr^lr and batch^-batch, times a scatter of 5 %.

    The descent is as fast as lr^0.5, so that at equal updates the curvature also follows the loss; it grows sevenfold as
    the loss falls. All measures of flatness and of conditioning go with it, each with a scatter of its own.

    Args:
        seed: of the scatter.
        lr: power of the learning rate with which the curvature falls; negative for the opposite.
        batch: power of the inverse batch size.
        seeds: how many.
        speed: of the descent; small for runs that stay at their start.

    Returns:
        The runs.
    """
    found = []
    for s in _seeds(seed, seeds):
        for rate in LRS:
            for size in BATCHES:
                random = _random(s, int(1000 * rate), size)
                done = _progress(speed * (rate / 0.15) ** 0.5)
                noise = -(lr * np.log(rate / 0.15) - batch * np.log(size / 64)) * done
                base = 0.1 * _random(s).standard_normal()
                scatter = 0.05 * random.standard_normal((6, POINTS))
                flat = np.exp(base + noise + scatter)
                top = (1 + 6 * done) * flat[0]
                settings = {"lr": rate, "batch_size": size, "seed": s}
                run = made(settings, STEPS, np.stack([top, 0.5 * top], 1), (START - (START - END) * done).tolist())
                ratios = {"conditioning": 2 * flat[1], "outlier_ratio": 900 * flat[2], "effective_rank": 30 / flat[3]}
                found.append(_with(run, trace=50 * flat[4] * (1 + done), invariant_sharpness=0.1 * flat[5], **ratios))
    return found


def generalising(seed: int, gain: float = -1.0, seeds: int = 5) -> list[Evidence]:
    """The grid with a held-out accuracy that follows log lambda_1 with `gain`, and the training loss too, with scatter."""
    found = []
    for run in grid(seed, seeds=seeds):
        end = run.measured["curvature"].isel(step=-1)
        random = _random(int(run.settings["seed"]), int(1000 * run.settings["lr"]), int(run.settings["batch_size"]), 1)
        told = 0.9 - 0.1 * float(end["loss"]) + 0.02 * gain * np.log(float(end["sharpness"])) + 0.004 * random.standard_normal()
        found.append(replace(run, extra={"accuracy": {"step": [0, 140], "test": [0.1, told]}}))
    return found


def aligned(seed: int, power: float = 0.2, seeds: int = 5, loss: float = 1.0) -> list[Evidence]:
    """Runs whose gradients lie in the sharpest directions with the power `power` of the batch size; three points each."""
    found = []
    for s in _seeds(seed, seeds):
        random, sizes = _random(s), (16, 64, 256, 1024)
        base = 0.1 * np.exp(0.1 * random.standard_normal())
        scatter = np.exp(0.05 * random.standard_normal((3, len(sizes), 3)))
        share = base * (np.array(sizes) / 64)[None, :, None] ** power * np.array([1.0, 1.5, 2.0]) * scatter
        told = {"step": [30, 105, 180], "loss": [loss] * 3, "batch_size": list(sizes), "share": share.tolist()}
        extra = {"alignment": told | {"full": (4 * share[:, -1]).tolist()}}
        steps = xr.Dataset({"loss": ("step", [START, *[loss] * 5])}, {"step": np.arange(6)})
        found.append(Evidence({"lr": 0.15, "batch_size": 64, "seed": s}, steps, {}, extra))
    return found


def _columns(random: np.random.Generator, *, units: float) -> dict[str, Array]:
    """Columns of 20 points: log lambda_1 follows the units' saturation, and the softmax's goes its own way."""
    falls = 0.08 * np.exp(0.3 * random.standard_normal(19))
    sure = 0.1 * falls + 0.01 * random.standard_normal(19)
    rises = 0.01 * random.standard_normal(19)
    logs = 100 * units * rises + falls + 0.2 * random.standard_normal(19)
    summed = {
        name: np.r_[0.0, np.cumsum(v)] for name, v in {"loss": -falls, "units": rises, "softmax": sure, "log": logs}.items()
    }
    found = {"loss": START + summed["loss"], "saturation": 0.5 + summed["units"], "softmax_saturation": 0.05 + summed["softmax"]}
    return found | {"eigenvalue": np.exp(summed["log"]), "slope_square": 0.5 - summed["units"]}


def saturating(seed: int, sharp: float = 1.0, seeds: int = 5, *, units: bool = True) -> list[Evidence]:
    """Runs whose units saturate by `sharp` x 4e-4 one step along e_1, with scatter, and by a tenth along random directions."""
    found = []
    for s in _seeds(seed, seeds):
        random = _random(s)
        columns = _columns(random, units=-1.0)
        n, changes = len(columns["loss"]), {}
        for name, size in (("sharp", sharp), ("random", 0.1)):
            changes[name] = {j: 4e-4 * (-size * j + random.standard_normal(n)) for j in (-2.0, -1.0, 1.0, 2.0)}
        if not units:
            columns |= {name: np.full(n, np.nan) for name in ("saturation", "slope_square")}
            changes = {name: {j: np.full(n, np.nan) for j in own} for name, own in changes.items()}
        found.append(made_units({"lr": 0.15, "batch_size": 64, "seed": s}, columns, changes))
    return found


def mediated(seed: int, units: float = -0.3, seeds: int = 5) -> list[Evidence]:
    """Runs whose lambda_1 follows the saturation of the units and not that of the softmax, with scatter."""
    return [
        made_units({"lr": 0.15, "batch_size": 64, "seed": s}, _columns(_random(s), units=units), {}) for s in _seeds(seed, seeds)
    ]


def causal(seed: int, *, relu: float = 1.2, projected: float = 0.0, seeds: int = 5) -> list[Evidence]:
    """The arms of N5: log lambda_1 at equal loss is lowered by these amounts against full-batch descent, with scatter.

    By 0.2 in a linear network, and by 0.1 by white noise.

    Args:
        seed: of the scatter.
        relu: by mini-batch noise, in leaky ReLU by as much as in ReLU.
        projected: by noise off the sharpest directions.
        seeds: how many.

    Returns:
        The runs.
    """
    noise = {"white": {"walker": "nudged", "where": "noise", "variant": "white"}}
    noise["projected"] = {"walker": "nudged", "where": "noise", "variant": "nudge"}
    arms: Mapping[str, tuple[str, Any, dict[str, Any], float]] = {
        **{f"{name}-full": (name, "full", {}, 0.0) for name in ("relu", "identity", "leaky_relu")},
        **{name: (name, 16, {}, drop) for name, drop in (("relu", relu), ("identity", 0.2), ("leaky_relu", relu))},
        **{name: ("relu", 16, noise[name], drop) for name, drop in (("white", 0.1), ("projected", projected))},
    }
    found = []
    for s in _seeds(seed, seeds):
        base = 0.2 * _random(s).standard_normal()
        for number, (activation, size, own, drop) in enumerate(arms.values()):
            random = _random(s, number)
            done = _progress(1.0 + 0.2 * random.standard_normal())
            top = (1 + 6 * done) * np.exp(base - drop - 0.1 * random.standard_normal() + 0.05 * random.standard_normal(POINTS))
            described = {"model": {"name": "mlp", "activation": activation}, "phases": [{"walker": "sgd"} | own]}
            settings = {"lr": 0.15, "batch_size": size, "seed": s, "experiment": described}
            found.append(made(settings, STEPS, top, (START - (START - END) * done).tolist()))
    return found
