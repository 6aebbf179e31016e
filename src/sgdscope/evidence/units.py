"""The units of networks along measured runs, as the claims about saturation need them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import nan
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import ArrayLike, NDArray

from sgdscope.contracts import Evidence
from sgdscope.errors import Outcome
from sgdscope.evidence.windows import LOSS_SHARE, initial_loss

Array = NDArray[np.float64]
STEP = -1.0  # position that one step of SGD reaches along e_1
COLUMNS = ("loss", "saturation", "slope_square", "softmax_saturation", "gauss_newton_top")


def named(run: Evidence, name: str, **at: Any) -> Array:
    """A variable of the quantity neurons where its outcome is ok, NaN elsewhere.

    Args:
        run: the evidence.
        name: over `step` once the other dimensions are chosen.
        **at: dimension -> coordinate.

    Returns:
        [n] at the measured points; empty if it was not measured.
    """
    data = run.measured.get("neurons", xr.Dataset())
    if name not in data or any(value not in data[dim].values for dim, value in at.items()):
        return np.full(data.sizes.get("step", 0), nan)
    values = data[name].sel(at).values
    outcome = data[f"{name}_outcome"].sel(at).values if f"{name}_outcome" in data else np.zeros(len(values))
    return np.asarray(np.where(outcome == Outcome.ok, values, nan), np.float64)


def alive(run: Evidence) -> NDArray[np.bool_]:
    """At which measured points the training loss has not vanished: it is at least `LOSS_SHARE` of the initial one."""
    losses = named(run, "loss")
    initial = initial_loss(run)
    return np.asarray(losses >= LOSS_SHARE * (initial if np.isfinite(initial) else float(losses[:1].sum())))


def moved(run: Evidence, position: float = STEP, arm: str = "sharp", name: str = "saturation_change") -> float:
    """The mean change of a number along a direction over the measured points of a run whose loss has not vanished.

    Args:
        run: the evidence.
        position: j, in steps of SGD along e_1.
        arm: direction.
        name: of the change.

    Returns:
        The mean; NaN if there is none.
    """
    values = named(run, name, arm=arm, rank=1, position=position)[alive(run)]
    return float(values[np.isfinite(values)].mean()) if np.isfinite(values).any() else nan


@dataclass(frozen=True)
class Increments:
    """Changes of numbers between consecutive measured points of one run; all [n], finite, points with a missing number left out.

    Attributes:
        sharpness: of log lambda_1.
        loss: of the training loss.
        units: of the saturation of the units.
        slopes: of the mean squared slope of the units.
        softmax: of the saturation of the softmax.
        split: of log lambda_1 of the Gauss-Newton part G.
        outer: mean of lambda_1(G) / lambda_1.
    """

    sharpness: Array
    loss: Array
    units: Array
    slopes: Array
    softmax: Array
    split: Array
    outer: float


def increments(run: Evidence) -> Increments:
    """Take the changes along a run, where its training loss has not vanished.

    Args:
        run: the evidence, with the quantity neurons.

    Returns:
        The changes; of G all NaN where it was not measured.
    """
    loss, units, slopes, softmax, outer = (named(run, name) for name in COLUMNS)
    top = named(run, "eigenvalue", rank=1)
    numbers = np.array([top, loss, units, slopes, softmax])
    good = np.isfinite(numbers).all(0) & (top > 0)
    good &= alive(run) if len(good) else good
    with np.errstate(invalid="ignore", divide="ignore"):
        tables = (np.log(top), loss, units, slopes, softmax, np.log(outer))
        changes = [np.diff(values[good]) for values in tables]
        share = outer[good] / top[good]
    known = share[np.isfinite(share)]
    sharpness, falls, own, squares, sure, split = changes
    return Increments(sharpness, falls, own, squares, sure, split, float(known.mean()) if known.size else nan)


def made(settings: Mapping[str, Any], columns: Mapping[str, ArrayLike], changes: Mapping[str, Any]) -> Evidence:
    """Evidence made of numbers, for controls: a run whose units are known because they were written down.

    Args:
        settings: of the run: lr, batch_size, seed, ...
        columns: variables over `step`, [n] each, with `eigenvalue` and `loss`.
        changes: arm -> position -> [n] changes of the saturation; empty if none were measured.

    Returns:
        The evidence, with the quantity neurons.
    """
    n = len(np.asarray(columns["loss"]))
    steps = np.arange(n) * 10
    positions = sorted({j for own in changes.values() for j in own})
    table = np.array([[[own[j] for j in positions] for own in changes.values()]]).reshape(1, len(changes), len(positions), n)
    variables: dict[str, Any] = {name: ("step", np.asarray(v, np.float64)) for name, v in columns.items() if name != "eigenvalue"}
    variables["eigenvalue"] = (("step", "rank"), np.asarray(columns["eigenvalue"], np.float64)[:, None])
    variables["saturation_change"] = (("step", "arm", "rank", "position"), table.transpose(3, 1, 0, 2))
    coords = {"step": steps, "rank": [1], "arm": list(changes), "position": positions}
    scalars = xr.Dataset({"loss": ("step", np.asarray(columns["loss"], np.float64))}, {"step": steps})
    return Evidence(dict(settings), scalars, {"neurons": xr.Dataset(variables, coords)})
