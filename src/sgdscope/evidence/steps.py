"""The step of SGD against the sharpest directions, as the claims need it: which points count, and the numbers at them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, nan
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sgdscope.contracts import Evidence
from sgdscope.errors import Outcome
from sgdscope.evidence.windows import LOSS_SHARE, fingerprint, initial_loss

Array = NDArray[np.float64]
EARLY = 0.1  # of the updates: "the earliest phase" and "early"; chosen before any run, half of the points of a path lie in it
FAR = 0.05  # of the edge: below lr lambda_1 / 2 = 0.05 the step is far too short for these claims; chosen before any run
GROUP = "sharpest"


def total(run: Evidence) -> int:
    """The number of updates of a run.

    Args:
        run: the evidence.

    Returns:
        One past the last recorded update; 0 if none was.
    """
    recorded = run.steps["step"].values if "step" in run.steps.coords else np.zeros(0)
    return int(recorded[-1]) + 1 if len(recorded) else 0


@dataclass(frozen=True)
class Stage:
    """The measured points of one run in a part of its training.

    Attributes:
        run: the evidence.
        kept: [n] which of the points of the quantity `sharpest` lie in it.
    """

    run: Evidence
    kept: NDArray[np.bool_]

    @property
    def data(self) -> xr.Dataset:
        """What was measured."""
        return self.run.measured[GROUP]

    def of(self, name: str, **chosen: Any) -> Array:
        """The values of a variable at the points, in order; NaN where it is not known.

        Args:
            name: of the variable.
            **chosen: dimension -> label, such as ``arm="e1"``.

        Returns:
            [n].
        """
        if name not in self.data or any(label not in self.data[dim].values for dim, label in chosen.items()):
            return np.full(int(self.kept.sum()), nan)
        values = np.asarray(self.data[name].sel(chosen).values, np.float64)
        if f"{name}_outcome" in self.data:
            outcome = np.asarray(self.data[f"{name}_outcome"].sel(chosen).values)
            values = np.where(outcome == Outcome.ok, values, nan)
        return np.asarray(values[self.kept], np.float64)

    def effect(self, arm: str, alpha: float = 1.0) -> Array:
        """L(theta - alpha lr v) / L(theta) - 1 along one arm, averaged over the mini-batches."""
        return self.of("effect", arm=arm, alpha=alpha)

    @property
    def half_eta_sharpness(self) -> Array:
        """The learning rate times lambda_1 / 2: 1 at the edge of plain descent."""
        return self.of("lr") * self.of("eigenvalue", rank=1) / 2


def stage(run: Evidence, first: float = 0.0, last: float = 1.0) -> Stage:
    """Choose the points of a run in [first, last) of its updates at which the training loss has not vanished.

    A point whose sharpest direction did not converge is left out.

    Args:
        run: the evidence.
        first: share of the updates.
        last: share of the updates; 1 keeps the last point.

    Returns:
        The points; none if the quantity was not measured.
    """
    data = run.measured.get(GROUP)
    if data is None or not data["step"].size:
        return Stage(run, np.zeros(0, np.bool_))
    steps, loss = np.asarray(data["step"].values), np.asarray(data["loss"].values, np.float64)
    updates, initial = max(total(run), int(steps[-1]) + 1), initial_loss(run)
    inside = (steps >= first * updates) & ((steps < last * updates) | (last >= 1))
    alive = loss >= LOSS_SHARE * (initial if isfinite(initial) else loss[0])
    known = np.asarray(data["eigenvalue_outcome"].sel(rank=1).values) == Outcome.ok
    return Stage(run, np.asarray(inside & alive & known))


def average(values: Sequence[Array]) -> float:
    """The mean over all points of several stages where a number is known.

    Args:
        values: [n_i] of each stage; NaN is left out.

    Returns:
        The mean, each point with equal weight; NaN if none is known.
    """
    joined = np.concatenate([np.zeros(0), *values])
    return float(joined[np.isfinite(joined)].mean()) if np.isfinite(joined).any() else nan


def place(found: Sequence[Stage]) -> dict[str, float | str]:
    """Where the points lie on the map: means over them.

    Args:
        found: stages of runs.

    Returns:
        The keys of `windows.regime`, with eta_sharpness (lr lambda_1); NaN where it is not known.
    """
    found = [s for s in found if s.kept.any()]
    losses = [s.of("loss") for s in found]
    shares = [loss / initial_loss(s.run) for s, loss in zip(found, losses, strict=True) if initial_loss(s.run) > 0]
    mode = str(fingerprint(found[0].run).get("batchnorm", "none")) if found else "none"
    told: dict[str, float | str] = {"eta_gni": nan, "eta_batch_sharpness": nan, "training_loss": average(losses)}
    told |= {"loss_share": average(shares), "height_over_noise": nan, "batchnorm": mode}
    return told | {"eta_sharpness": 2 * average([s.half_eta_sharpness for s in found])}


def stepped(settings: Mapping[str, Any], steps: Sequence[int], losses: Sequence[float], **values: Any) -> Evidence:
    """Evidence made of numbers, for controls: a run whose steps against the sharpest directions were written down.

    Args:
        settings: of the run: lr, seed, updates.
        steps: [n] measured points.
        losses: [n] training losses there.
        **values: effect (arm, alpha) -> [n]; rise (cross, side) -> [n], relative rise of the loss one step s_i to the left
            (-1) or right (1); alignment, share: [n] mean alignment and share of the batches within the directions, as
            multiples of chance; alpha_star, eigenvalue: [n]; size: number of parameters.

    Returns:
        The evidence, with the variables of the quantity `sharpest` that the claims read; k = 5.
    """
    n, loss = len(steps), np.asarray(losses, np.float64)
    size, effects, rises = values.get("size", 10000), values.get("effect", {}), values.get("rise", {})
    arms = ["e1", "e2", "e3", "e4", "e5", "random", "dominant", "bulk", "full"]
    alphas, cross, positions = [0.25, 0.33, 0.5, 1.0, 2.0, 3.0, 4.0], [1, 3, 5], [-1.0, 0.0, 1.0]
    effect = np.full((n, len(arms), len(alphas)), nan)
    for (arm, alpha), numbers in effects.items():
        effect[:, arms.index(arm), alphas.index(alpha)] = numbers
    section = np.tile(loss[:, None, None], (1, len(cross), len(positions)))
    for (rank, side), numbers in rises.items():
        section[:, cross.index(rank), positions.index(side)] *= 1 + np.asarray(numbers)
    ranks, chance = np.arange(1, 6), (2 / (np.pi * size)) ** 0.5
    eigenvalue = np.asarray(values.get("eigenvalue", np.full(n, 10.0)))[:, None] * 0.7 ** (ranks - 1)
    share = np.asarray(values.get("share", np.ones(n)))[:, None] * (ranks / size)
    star = np.full((n, len(arms)), nan)
    star[:, 0] = values.get("alpha_star", np.full(n, 1.0))
    variables = {
        "loss": ("step", loss),
        "subset_loss": ("step", loss),
        "lr": ("step", np.full(n, float(settings["lr"]))),
        "eigenvalue": (("step", "rank"), eigenvalue),
        "effect": (("step", "arm", "alpha"), effect),
        "alpha_star": (("step", "arm"), star),
        "section": (("step", "cross", "position"), section),
        "mean_alignment": ("step", chance * np.asarray(values.get("alignment", np.ones(n)))),
        "alignment_chance": ((), chance),
        "batch_share": (("step", "rank"), share),
        "share_chance": ("rank", np.minimum(ranks / size, 1)),
    }
    known = np.zeros(eigenvalue.shape, np.int8)
    coords = {"step": np.asarray(steps, np.int64), "rank": ranks, "arm": arms, "alpha": alphas}
    coords |= {"cross": cross, "position": positions}
    data = xr.Dataset(variables | {"eigenvalue_outcome": (("step", "rank"), known)}, coords)
    updates = int(settings.get("updates", steps[-1] + 1))
    scalars = xr.Dataset({"loss": ("step", np.full(updates, loss[0]))}, {"step": np.arange(updates)})
    return Evidence(dict(settings), scalars, {GROUP: data})
