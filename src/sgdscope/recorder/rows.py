"""Rows: what is known of an update on the host, joined with the table of the device to a block of named columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.recorder.scalars import (
    CONSECUTIVE,
    DISTANCE,
    FOUND_INF,
    GRADIENT,
    GRADIENT_UPDATE,
    LOSS,
    RESIDUAL,
    UPDATE,
)
from sgdscope.records import NO_GRADIENT, NO_LOSS, NONFINITE, SKIPPED, StepBlock


@dataclass
class Row:
    """One update as the host knows it.

    Attributes:
        step: t.
        lrs: learning rate of each parameter group; NaN where a group has none.
        batch_size: examples, NaN if unknown.
        has_loss: whether the loop asked the recorder for the loss.
        has_gradient: whether any parameter had a gradient.
        logged: the user's own series.
    """

    step: int
    lrs: tuple[float, ...]
    batch_size: float = math.nan
    has_loss: bool = False
    has_gradient: bool = True
    logged: dict[str, float | Tensor] = field(default_factory=dict)


def block_of(rows: Sequence[Row], table: NDArray[np.float64], before: float) -> tuple[StepBlock, float]:
    """Turn squares and products into the scalars of `STEP_VARIABLES`.

    |g| = sqrt(g.g), cos(g_{t-1}, g_t) = g_{t-1}.g_t / (|g_{t-1}| |g_t|), |d + lr g| / |d| = sqrt(r.r / d.d); a quotient
    whose denominator is 0 or not finite is NaN. The flag `nonfinite` is set by the loss, |theta_t - theta_0| and |d_t|.

    Args:
        rows: [n], of consecutive updates.
        table: [n, columns], see `Scalars`.
        before: g.g of the update before the first row, NaN if there was none.

    Returns:
        The block, and g.g of its last row.
    """
    absent = np.array([not row.has_gradient for row in rows])
    table = np.array(table)
    table[absent[:, None] & np.isin(np.arange(table.shape[1]), (GRADIENT_UPDATE, RESIDUAL, GRADIENT, CONSECUTIVE))] = np.nan
    gradient, update = table[:, GRADIENT], table[:, UPDATE]
    previous = np.concatenate([[before], gradient[:-1]])
    no_loss = np.array([not row.has_loss for row in rows])
    with np.errstate(all="ignore"):
        columns = {
            "loss": np.where(no_loss, np.nan, table[:, LOSS]),
            "batch_size": np.array([row.batch_size for row in rows]),
            "gradient_norm": np.sqrt(gradient),
            "gradient_dot_update": table[:, GRADIENT_UPDATE],
            "gradient_cosine": _quotient(table[:, CONSECUTIVE], np.sqrt(gradient) * np.sqrt(previous)),
            "update_norm": np.sqrt(update),
            "distance": np.sqrt(table[:, DISTANCE]),
            "descent_residual": np.sqrt(_quotient(table[:, RESIDUAL], update)),
        }
    broken = (~np.isfinite(columns["loss"]) & ~no_loss) | ~np.isfinite(columns["distance"]) | ~np.isfinite(columns["update_norm"])
    flags = SKIPPED * (table[:, FOUND_INF] > 0) + NONFINITE * broken + NO_LOSS * no_loss + NO_GRADIENT * absent
    columns["flags"] = flags.astype(np.float64)
    for group in range(max(len(row.lrs) for row in rows)):
        values = [row.lrs[group] if group < len(row.lrs) else math.nan for row in rows]
        columns["lr" if group == 0 else f"lr_{group}"] = np.array(values, np.float64)
    for name in dict.fromkeys(name for row in rows for name in row.logged):
        columns[name] = np.array([float(row.logged.get(name, math.nan)) for row in rows])
    return StepBlock(np.array([row.step for row in rows], np.int64), columns), float(gradient[-1])


def _quotient(above: NDArray[np.float64], below: NDArray[np.float64]) -> NDArray[np.float64]:
    usable = np.isfinite(below) & (below > 0)
    return np.where(usable, above / np.where(usable, below, 1.0), np.nan)
