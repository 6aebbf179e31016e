"""The curvature along measured runs, as the claims about sharpness need it: paths, peaks, ends, equal training loss."""

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
from sgdscope.evidence.windows import full_batch, initial_loss

Array = NDArray[np.float64]
POINTS = 8  # measured points below which a path is too short to have a shape


@dataclass(frozen=True)
class Path:
    """A number along one run.

    Attributes:
        run: the evidence.
        steps: [n] updates, ascending.
        values: [n] finite.
        losses: [n] training loss at the same points.
    """

    run: Evidence
    steps: NDArray[np.int64]
    values: Array
    losses: Array

    @property
    def lr(self) -> float:
        """The learning rate in the settings of the run."""
        return float(self.run.settings.get("lr", nan))

    @property
    def batch_size(self) -> float:
        """The batch size in the settings; infinite for the full batch."""
        return float("inf") if full_batch(self.run) else float(self.run.settings.get("batch_size", nan))

    @property
    def seed(self) -> int:
        """The seed in the settings."""
        return int(self.run.settings.get("seed", 0))

    @property
    def peak(self) -> int:
        """Where the value is largest, an index."""
        return int(self.values.argmax())

    @property
    def initial(self) -> float:
        """Training loss at the start of the run."""
        return initial_loss(self.run) if np.isfinite(initial_loss(self.run)) else float(self.losses[0])

    def at_loss(self, level: float) -> float:
        """The value where the training loss first falls to a level, on a straight line between the points around it.

        Args:
            level: a loss.

        Returns:
            The value; NaN if the loss never falls to it, or begins below it.
        """
        below = np.flatnonzero(self.losses <= level)
        if not below.size or below[0] == 0:
            return nan
        a, b = below[0] - 1, below[0]
        share = (self.losses[a] - level) / (self.losses[a] - self.losses[b])
        return float(self.values[a] + share * (self.values[b] - self.values[a]))


def path(run: Evidence, name: str = "sharpness", group: str = "curvature", rank: int = 0) -> Path:
    """Cut one variable of the curvature out of a run, at the points where it converged.

    Args:
        run: the evidence.
        name: of a variable over `step`, or over step and rank.
        group: its quantity.
        rank: which column, where there are several.

    Returns:
        The path; empty if it was not measured.
    """
    data = run.measured.get(group)
    empty = Path(run, np.zeros(0, np.int64), np.zeros(0), np.zeros(0))
    if data is None or name not in data:
        return empty
    values = np.asarray(data[name].values, np.float64)
    outcome = np.asarray(data[f"{name}_outcome"].values) if f"{name}_outcome" in data else np.zeros(values.shape)
    values, outcome = (v.reshape(len(v), -1)[:, rank] if v.ndim > 1 else v for v in (values, outcome))
    losses = np.asarray(data["loss"].values, np.float64) if "loss" in data else np.full(len(values), nan)
    good = np.isfinite(values) & (outcome == Outcome.ok)
    return Path(run, np.asarray(data["step"].values, np.int64)[good], values[good], losses[good])


def paths(runs: Sequence[Evidence], name: str = "sharpness", *, least: int = POINTS) -> list[Path]:
    """The paths of those runs that have enough points, ordered by learning rate, batch size and seed.

    Args:
        runs: the evidence.
        name: of a variable over `step` of the quantity curvature.
        least: points asked for.

    Returns:
        One a run.
    """
    found = [p for p in (path(run, name) for run in runs) if len(p.steps) >= least]
    return sorted(found, key=lambda p: (p.lr, p.batch_size, p.seed))


def place(found: Sequence[Path]) -> dict[str, float | str]:
    """Where runs lie on the map, from the curvature: means over their last points.

    Args:
        found: paths of runs.

    Returns:
        The keys of `windows.regime`, with eta_sharpness (lr lambda_1) and edge besides; NaN where it is not known.
    """
    ends = [p.run.measured.get("curvature", xr.Dataset()) for p in found]

    def mean(values: Sequence[float]) -> float:
        kept = [v for v in values if isfinite(v)]
        return float(np.mean(kept)) if kept else nan

    def last(name: str) -> float:
        return mean([float(d[name].values[-1]) for d in ends if name in d and d[name].size])

    losses = [float(p.losses[-1]) for p in found if len(p.losses)]
    shares = [float(p.losses[-1]) / p.initial for p in found if len(p.losses) and p.initial > 0]
    told: dict[str, float | str] = {"eta_gni": nan, "eta_batch_sharpness": nan, "training_loss": mean(losses)}
    told |= {"loss_share": mean(shares), "height_over_noise": nan, "batchnorm": "none"}
    return told | {"eta_sharpness": 2 * last("half_eta_sharpness"), "edge": last("edge")}


def made(
    settings: Mapping[str, Any],
    steps: Sequence[int],
    eigenvalues: Any,
    losses: Sequence[float],
    **extra: Any,
) -> Evidence:
    """Evidence made of numbers, for controls: a run whose curvature is known because it was written down.

    Args:
        settings: of the run: lr, batch_size, seed, ...
        steps: [n] measured points.
        eigenvalues: [n] or [n, k], largest first.
        losses: [n] training losses there.
        **extra: what claims observe beside the quantities.

    Returns:
        The evidence, with the variables eigenvalue, sharpness, loss, half_eta_sharpness of the quantity curvature.
    """
    table = np.asarray(eigenvalues, np.float64).reshape(len(steps), -1)
    lr = float(settings.get("lr", nan))
    variables = {
        "eigenvalue": (("step", "rank"), table),
        "eigenvalue_outcome": (("step", "rank"), np.zeros(table.shape, np.int8)),
        "sharpness": ("step", table[:, 0]),
        "top_frobenius": ("step", np.sqrt((table**2).sum(1))),
        "half_eta_sharpness": ("step", lr * table[:, 0] / 2),
        "loss": ("step", np.asarray(losses, np.float64)),
    }
    coords = {"step": np.asarray(steps, np.int64), "rank": np.arange(1, table.shape[1] + 1)}
    scalars = xr.Dataset({"loss": ("step", np.asarray(losses, np.float64))}, {"step": coords["step"]})
    return Evidence(dict(settings), scalars, {"curvature": xr.Dataset(variables, coords)}, dict(extra))
