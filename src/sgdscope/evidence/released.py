"""The protocol of the code that the authors of "A Walk with SGD" released, for comparison."""

from __future__ import annotations

from math import nan
from typing import Any

import numpy as np
import torch
import xarray as xr

from sgdscope.errors import ArgumentError
from sgdscope.records import Surface, Trajectory, windows


def xing2018(trajectory: Trajectory, surface: Surface, *, batch: int = 100) -> xr.Dataset:
    """Measure a walk exactly as the authors' released code does, its quirks included; for comparison only.

    loss(t, alpha) = sum over the K batches of their mean loss at (1 - alpha) state_t + alpha state_{t+1}, divided by
    K - 1 (not K); alpha = 0, 0.1, ..., 0.9; the state is parameters and buffers. With G_t = (theta_t - theta_{t+1}) / lr_t,
    the gradient with weight decay: cosine_t = G_{t-1}.G_t / (sqrt(|G_{t-1}|^2 |G_t|^2) + 1e-6), 1 by construction at the
    first update of the run and NaN where the update before was not recorded; gradient_norm_squared = |G_t|^2;
    distance_t = |theta_{t+1} - theta_0| over the parameters. The code saves no state before an epoch's first update and
    misses that one; here each recorded update is covered. Their evaluation is in training mode on augmented data: choose
    ``batchnorm="batch"`` for the surface.

    Args:
        trajectory: a walk by plain SGD, without momentum.
        surface: the loss on the training set.
        batch: examples a batch of the evaluation; not used if the surface itself gives the losses of batches.

    Returns:
        loss [step, alpha], cosine, gradient_norm_squared and distance [step].

    Raises:
        ArgumentError: the surface gives the mean loss only, or has fewer than two batches.

    Cost: 10 passes over the data an update.
    Source: LynetteXing1991/walk_with_sgd, interpolation.py and sgd.py.
    """
    table = trajectory.steps
    rates = dict(zip(table["step"].values.tolist(), np.asarray(table["lr"].values, np.float64).tolist(), strict=True))
    start, rows, before = trajectory.theta(int(trajectory.snapshot_steps[0])).double(), [], (-2, torch.zeros(1))
    alphas = np.arange(0, 1, 0.1)
    for first, last in windows(trajectory.snapshot_steps):
        for t in range(first, last):
            a, b = trajectory.theta(t).double(), trajectory.theta(t + 1).double()
            pair = (trajectory.buffers(t), trajectory.buffers(t + 1))
            line = surface.along(a, b - a, alphas.tolist(), pair if pair[0] else None)
            if line.samples is None:
                raise ArgumentError("surface: it gives only the mean loss; the protocol needs the losses of examples or batches")
            parts = range(0, line.samples.shape[1], 1 if line.unit == "batch" else batch)
            means = np.stack([line.samples[:, i : i + parts.step].mean(1) for i in parts], 1)
            if means.shape[1] < 2:
                raise ArgumentError(f"batch: {batch} leaves one batch, and the protocol divides by their number less one")
            g = (a - b) / rates[t]
            squared = float(g @ g)
            cosine = 1.0 if t == int(trajectory.snapshot_steps[0]) else nan
            if before[0] == t - 1:
                cosine = float(before[1] @ g) / ((float(before[1] @ before[1]) * squared) ** 0.5 + 1e-6)
            rows.append((t, means.sum(1) / (means.shape[1] - 1), cosine, squared, float((b - start).norm())))
            before = (t, g)
    steps, losses, *rest = zip(*rows, strict=True) if rows else ((), np.zeros((0, len(alphas))), (), (), ())
    names = ("cosine", "gradient_norm_squared", "distance")
    columns = {name: ("step", np.asarray(values, np.float64)) for name, values in zip(names, rest, strict=True)}
    return xr.Dataset(
        {"loss": (("step", "alpha"), np.asarray(losses, np.float64).reshape(-1, len(alphas)))} | columns,
        coords={"step": np.asarray(steps, np.int64), "alpha": alphas},
        attrs={"compat": "xing2018"},
    )


def series(trajectory: Trajectory, surface: Surface) -> dict[str, Any]:
    """`xing2018` as JSON types, with what its figures are read for.

    Args:
        trajectory: a walk by plain SGD.
        surface: the loss on the training set, with batches of 100 and batch statistics.

    Returns:
        ``{"xing2018": {...}}``: the series step, alpha, loss, cosine, gradient_norm_squared and distance;
        interior_share (lowest of the 10 points not at alpha = 0; the grid has no alpha = 1, so that a floor at the end counts)
        and mean_cosine without the first, which is 1 by construction.
    """
    found = xing2018(trajectory, surface)
    told: dict[str, Any] = {str(name): v.values.tolist() for name, v in found.variables.items()}
    cosines, lowest = found["cosine"].values[1:], found["loss"].values.argmin(1)
    known = cosines[np.isfinite(cosines)]
    told["interior_share"] = float((lowest > 0).mean()) if len(lowest) else nan
    told["mean_cosine"] = float(known.mean()) if len(known) else nan
    return {"xing2018": told}
