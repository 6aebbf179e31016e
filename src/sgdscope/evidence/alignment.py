"""How much of a mini-batch gradient lies in the sharpest directions, against the batch size, at the same points of a walk."""

from __future__ import annotations

from collections.abc import Mapping
from math import nan
from typing import Any

import numpy as np

from sgdscope.contracts import quantities, scalars
from sgdscope.errors import Outcome
from sgdscope.records import Surface, Trajectory

FACTORS = (0.25, 1.0, 4.0, 16.0)  # on the recorded batch size; those above half of the data are left out
DIRECTIONS, BATCHES = 10, 40  # the specification's k = 10, which is the number of classes too; mini-batches of each size


def alignment(trajectory: Trajectory, surface: Surface, data_dir: Any = None) -> Mapping[str, Any]:  # ruff: ignore[unused-function-argument] - one signature for all observations
    """Measure chi_k = E_b |E_k' g_b|^2 / |g_b|^2, k = 1 .. `DIRECTIONS`, for several batch sizes at the first point of a window.

    Args:
        trajectory: the walk.
        surface: L, whose data can be taken apart into examples.
        data_dir: not used.

    Returns:
        ``{"alignment": {"step": [n], "loss": [n], "batch_size": [b], "share": [n][b][k], "full": [n][k]}}``, with `full` the
        share of the full gradient; NaN where the directions did not converge. Empty where the data cannot be taken apart.

    Cost: for each batch size about 30 Hessian products and `BATCHES` gradients of mini-batches a window.
    """
    examples = surface.fingerprint().get("examples")
    recorded = scalars(trajectory.steps, "batch_size", 0, int(trajectory.snapshot_steps[-1]) or 1)
    usual = float(np.nanmedian(recorded)) if np.isfinite(recorded).any() else nan
    if not examples or not usual >= 1:
        return {}
    sizes = sorted({s for f in FACTORS if 1 <= (s := round(f * usual)) <= examples / 2})
    if not sizes:
        return {}
    told: dict[str, Any] = {"batch_size": sizes}
    shares = []
    for size in sizes:
        options = {"k": DIRECTIONS, "batches": BATCHES, "batch_size": size, "cross": ()}
        options |= {"effects": False, "sections": False, "critical": False}
        seen = quantities["sharpest"].measure(trajectory, surface, **options)  # not kept with the run, in place of the user's
        good = (seen["eigenvalue_outcome"].values == Outcome.ok).all(1, keepdims=True)
        shares.append(np.where(good, seen["batch_share"].values, nan))
        told |= {"step": seen["step"].values.tolist(), "loss": seen["loss"].values.tolist()}
        told["full"] = np.where(good, seen["gradient_share"].values, nan).tolist()
    return {"alignment": told | {"share": np.stack(shares, 1).tolist()}}
