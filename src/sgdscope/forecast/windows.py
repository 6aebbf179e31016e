"""Averages over three consecutive windows of a recorded run, and the losses there."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.errors import NotAvailableError, ReplayError
from sgdscope.quantities.averages import KIND, Averages, Block, average, blocks_of
from sgdscope.records import Record, Surface, Trajectory
from sgdscope.stores.zarr import ZarrStore
from sgdscope.surface import LossSurface
from sgdscope.surface.statistics import recalibrated

Array = NDArray[np.float64]
BLOCKS = 60  # of a rebuilt history


def kept_blocks(trajectory: Trajectory) -> list[Block]:
    """Read the sums that a live `Averages` kept with a run.

    Args:
        trajectory: the run.

    Returns:
        Ascending blocks; none where the run lies in no directory or none were kept.
    """
    if trajectory.path is None:
        return []
    path = trajectory.path
    steps = ZarrStore.record_steps(path, KIND)
    if not steps:
        return []
    most = int(ZarrStore.read_record(path, KIND, steps[-1])[1]["blocks"])
    return blocks_of((Record(KIND, step, *ZarrStore.read_record(path, KIND, step)) for step in steps), most)


def rebuilt_blocks(trajectory: Trajectory, after: int, last: int) -> list[Block]:
    """Sum the iterates of a run whose points can all be read or rebuilt: every snapshot kept, or a replayed run.

    Args:
        trajectory: the run.
        after: the iterate before the first one.
        last: the last iterate.

    Returns:
        Ascending blocks, about 60.

    Raises:
        NotAvailableError: a point was neither kept nor can it be rebuilt.

    Cost: a replayed run makes the updates from the key frame before `after` on once more.
    """
    averages = Averages(blocks=2 * BLOCKS, width=max(1, (last - after) // BLOCKS))
    try:
        for step in range(after + 1, last + 1):
            averages.write_iterate(step, trajectory.theta(step))
    except ReplayError as error:
        raise NotAvailableError(f"iterates were not summed, and the run cannot be rebuilt here: {error}") from error
    return averages.blocks


@dataclass(frozen=True)
class Losses:
    """The losses of points on one set of data.

    Attributes:
        values: [points], the mean loss.
        samples: [points, n], of examples or batches; None where only means exist.
        weights: [n], summing to 1; None likewise.
    """

    values: Array
    samples: Array | None
    weights: Array | None

    def take(self, places: Sequence[int]) -> Losses:
        """Some of the points."""
        chosen = list(places)
        return Losses(self.values[chosen], None if self.samples is None else self.samples[chosen], self.weights)

    def stderr(self, slopes: Array) -> float:
        """Standard error of a function of the means, over the examples: the paired delta method.

        sqrt(n / (n - 1) sum_i w_i^2 u_i^2), u_i = sum_k slope_k (l_ki - mean l_k).

        Args:
            slopes: [points], derivative of the function with respect to each mean.

        Returns:
            In units of the function; NaN where there are no examples.
        """
        if self.samples is None or self.weights is None or self.samples.shape[1] < 2:
            return float("nan")
        count = self.samples.shape[1]
        away = slopes @ (self.samples - self.values[:, None])
        return float(np.sqrt(count / (count - 1) * ((self.weights * away) ** 2).sum()))


def losses_at(surfaces: Sequence[Surface], points: Iterable[tuple[Tensor, Mapping[str, Tensor] | None]]) -> list[Losses]:
    """Evaluate points on several sets of data; statistics of BatchNorm are estimated anew on the first one at each point.

    Args:
        surfaces: the training data first.
        points: theta [P] and the buffers that are not statistics.

    Returns:
        One for each surface.

    Cost: a pass over each surface a point, and one more over the first with BatchNorm.
    """
    lines = []
    for theta, buffers in points:
        first = surfaces[0]
        state = recalibrated(first, theta, buffers) if isinstance(first, LossSurface) else buffers
        pair = None if not state else (state, state)
        lines.append([one.along(theta, torch.zeros_like(theta), [0.0], buffers=pair) for one in surfaces])
    found = []
    for column in zip(*lines, strict=True):
        samples = [line.samples[0] for line in column if line.samples is not None]
        whole = np.stack(samples) if len(samples) == len(column) else None
        found.append(Losses(np.array([line.values[0] for line in column]), whole, column[0].weights))
    return found


def window_means(blocks: Sequence[Block], last: float, width: float, like: Tensor) -> tuple[list[Tensor], float]:
    """The averages over (T - 3N, T - 2N], (T - 2N, T - N] and (T - N, T].

    Args:
        blocks: ascending.
        last: T.
        width: N.
        like: the averages get its dtype.

    Returns:
        Three vectors [P], the oldest first, and the smallest share of a window's iterates that were seen.

    Raises:
        NotAvailableError: a window holds no iterate that was seen.
    """
    pairs = [average(blocks, last - (k + 1) * width, last - k * width) for k in (2, 1, 0)]
    return [mean.to(like) for mean, _ in pairs], min(seen for _, seen in pairs)


def constant_since(steps: xr.Dataset, last: int) -> int | None:
    """The first update from which on all learning rates were as they were in the end.

    Args:
        steps: `Trajectory.steps`.
        last: T; updates from T on do not count.

    Returns:
        t; None where no learning rate was recorded.
    """
    inside = steps["step"].values < last
    columns = [steps[name].values[inside] for name in steps if str(name) == "lr" or str(name).startswith("lr_")]
    columns = [values for values in columns if len(values) and np.isfinite(values[-1])]
    if not columns:
        return None
    recorded = steps["step"].values[inside]
    first = int(recorded[0])
    for values in columns:
        changed = np.flatnonzero(~np.isclose(values, values[-1], rtol=1e-9, atol=0.0))
        if len(changed):
            first = max(first, int(recorded[changed[-1]]) + 1)
    return first
