"""The covariance at a point of a walk: from the gradients of examples, or of recorded batches where examples have none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.covariance.matrix import Covariance
from sgdscope.errors import NotAvailableError, SurfaceError
from sgdscope.records import Surface, Trajectory

ROOM = 2**29  # bytes of kept gradients; fewer examples are taken where they would not fit
RECORDED = 32  # recorded batches behind the covariance


@dataclass(frozen=True)
class Gathered:
    """Deviations at a point, and which examples they belong to.

    Attributes:
        covariance: None where there are none: fewer than two, or not finite.
        chosen: which examples; None for all.
        batchwise: whether the deviations are sqrt(B) times those of recorded batches.
        mean: of the gradients of the recorded batches [P], from which their deviations were taken.
    """

    covariance: Covariance | None
    chosen: Tensor | None = None
    batchwise: bool = False
    mean: Tensor | None = None


def gather(
    surface: Surface, theta: Tensor, buffers: Mapping[str, Tensor] | None, gradient: Tensor, *, most: int, order: torch.Generator
) -> Gathered:
    """Take the gradients of examples and their deviations from the mean over all.

    Args:
        surface: of the data.
        theta: [P].
        buffers: of the point.
        gradient: g [P], the mean over all examples.
        most: m, examples at most; fewer where their gradients would take more than 512 MiB.
        order: draws them without replacement; a generator of the same seed gives the same at every point.

    Returns:
        The deviations.

    Raises:
        SurfaceError: no example has a gradient of its own.

    Cost: m gradients; memory m P numbers.
    """
    n = surface.fingerprint().get("examples")
    fitting = min(most, ROOM // (8 * len(theta)), most if n is None else int(n))
    if n is not None and fitting < 2:
        return Gathered(None)
    chosen = None if n is None or fitting == n else torch.randperm(int(n), generator=order)[:fitting].sort().values
    rows = surface.per_example_grads(theta, chosen, buffers)
    found = Covariance(rows.sub_(gradient.to(rows)), population=n)
    return Gathered(found if np.isfinite(found.norms).all() else None, chosen)


def gather_recorded(
    trajectory: Trajectory, surface: Surface, step: int, *, span: tuple[int, int], sizes: NDArray[np.float64], size: int | None
) -> Gathered:
    """Take the gradients at theta_t of recorded batches of one size: those of the span from t on, then those before it.

    Args:
        trajectory: the walk, with batches.
        surface: its `on_batch` is used.
        step: t.
        span: first and last point; its updates are first..last - 1.
        sizes: of the batches of these updates.
        size: B, those that are taken.

    Returns:
        sqrt(B) (g_b - mean), with 1 / (M - 1), and that mean; at most 32 batches. Their covariance is C for batches drawn with
        replacement, C N / (N - 1) for those of one epoch: Cov g_b = C (N - B) / (B (N - 1)), and -C / (N - 1) between two.

    Cost: a gradient of each batch.
    """
    first, last = span
    theta, buffers, found = trajectory.theta(step).double(), trajectory.buffers(step) or None, list[Tensor]()
    for t in [*range(step, last), *range(first, min(step, last))]:
        if len(found) < RECORDED and sizes[t - first] == size:
            try:
                batch: Any = trajectory.batch(t)
            except NotAvailableError:
                continue
            found.append(surface.on_batch(batch).value_and_grad(theta, buffers)[1].cpu())
    rows = torch.stack(found) if len(found) > 1 else None
    if rows is None or not size or not bool(torch.isfinite(rows).all()):
        return Gathered(None, batchwise=True)
    mean = rows.mean(0)
    return Gathered(Covariance((rows - mean).mul_(math.sqrt(size)), mean_known=False), batchwise=True, mean=mean.double())


def second_moment(
    surface: Any,
    theta: Tensor,
    buffers: Mapping[str, Tensor] | None,
    chosen: Tensor | None,
    *,
    labels: torch.Generator,
    decay: float,
) -> Covariance | None:
    """The true Fisher matrix as second moment of gradients whose labels the model drew, the weight decay left out.

    Args:
        surface: a `LossSurface` with its `relabelled`; others have none.
        theta: [P].
        buffers: of the point.
        chosen: which examples; None for all.
        labels: draws them; advanced.
        decay: weight decay that is in the gradients.

    Returns:
        The second moment, its errors those of independent draws; None where labels cannot be drawn.
    """
    if not hasattr(surface, "relabelled"):
        return None
    try:
        rows = surface.relabelled(theta, labels, buffers).per_example_grads(theta, chosen, buffers)
    except SurfaceError:
        return None
    return Covariance(rows.sub_((decay * theta).to(rows)))
