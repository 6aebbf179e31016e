"""The valley floor under a walk: its points, and the barriers between them."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgdscope.records import Surface, Trajectory, windows

LENGTHS = (1, 10, 50)  # updates between two projected iterates (specification, section 9: 1, 10, 50, 200, 400)
PROJECTION = 150  # gradient steps of a projection (section 9)
EPSILON = 1e-2  # a projection ends when its next step would bring less than this share of the height found
ALPHAS = tuple(np.round(np.linspace(0, 1, 21), 12).tolist())
ROUNDING = 4.0  # units of eps |loss| allowed to one loss

State = tuple[Tensor, Mapping[str, Tensor]]


def _barrier(surface: Surface, a: State, b: State) -> tuple[float, float]:
    """(largest loss inside minus the larger of both ends, largest |loss|) on the straight segment."""
    pair = (a[1], b[1]) if a[1] else None
    values = surface.along(a[0], b[0] - a[0], ALPHAS, pair).values
    return float(values[1:-1].max() - max(values[0], values[-1])), float(np.abs(values).max())


def floor_point(surface: Surface, a: State, b: State) -> State:
    """The lowest point of the parabola through alpha = 0, 1/2, 1 of one update, within the update.

    Args:
        surface: the loss.
        a: point and buffers before the update.
        b: point and buffers after it.

    Returns:
        The point, with the buffers interpolated.
    """
    phi = surface.along(a[0], b[0] - a[0], (0.0, 0.5, 1.0), (a[1], b[1]) if a[1] else None).values
    slope, bend = -3 * phi[0] + 4 * phi[1] - phi[2], 2 * phi[0] - 4 * phi[1] + 2 * phi[2]
    alpha = float(np.clip(-slope / (2 * bend), 0, 1)) if bend > 0 else float(phi[2] < phi[0])
    mixed = {name: torch.lerp(v.double(), b[1][name].double(), alpha).to(v.dtype) for name, v in a[1].items()}
    return a[0] + alpha * (b[0] - a[0]), mixed


def project(surface: Surface, state: State, length: float) -> State:
    """Go down to the floor by gradient descent in small steps.

    theta <- theta - s grad L, s = length / |grad L| at first, halved until the loss falls by at least 3/4 s |grad L|^2;
    ends when s |grad L|^2 <= `EPSILON` x the height found, or after `PROJECTION` gradients.

    Args:
        surface: the loss.
        state: point and buffers; the buffers stay.
        length: of the first step, > 0.

    Returns:
        The floor point.
    """
    theta, buffers = state
    value, gradient = surface.value_and_grad(theta, buffers or None)
    top, squared = value, float(gradient.double().square().sum())
    size = length / squared**0.5 if squared > 0 else 0.0
    for _ in range(PROJECTION):
        fall = size * squared
        if fall <= EPSILON * (top - value) or fall == 0:
            break
        trial = theta - size * gradient.to(theta)
        new, following = surface.value_and_grad(trial, buffers or None)
        if new <= value - 0.75 * fall:
            theta, value, gradient, squared = trial, new, following, float(following.double().square().sum())
        else:
            size /= 2
    return theta, buffers


def floor_barriers(trajectory: Trajectory, surface: Surface, data_dir: Any = None) -> Mapping[str, Any]:  # ruff: ignore[unused-function-argument] - one signature for all observations
    """Measure barriers on the floor and, between the same iterates, at the height of the walk.

    Chain: floor points of consecutive updates, c_t = theta_t + alpha*_t d_t, joined by straight segments; against the
    updates themselves. Projected: two iterates k updates apart, each sent down to the floor; against the segment
    between the iterates. A segment's barrier is its largest loss inside minus the larger of its ends.

    Args:
        trajectory: the walk; the longest window of consecutive points is used, the last one of equals.
        surface: the loss.
        data_dir: not used.

    Returns:
        ``{"floor": {"floor": [...], "raw": [...], "length": [...], "noise_floor": ...}}``; length 0 is the chain.

    Cost: about 45 passes over the data an update of the window, and 4 projections of at most 150 gradients.
    """
    spans = windows(trajectory.snapshot_steps)
    if not spans:
        return {"floor": {"floor": [], "raw": [], "length": [], "noise_floor": 0.0}}
    first, last = max(spans, key=lambda span: (span[1] - span[0], span[0]))
    states: list[State] = [(trajectory.theta(t).double(), trajectory.buffers(t)) for t in range(first, last + 1)]
    chain = [floor_point(surface, a, b) for a, b in pairwise(states)]
    pairs = [(0, c, (a, b)) for c, a, b in zip(pairwise(chain), states[:-2], states[1:-1], strict=True)]
    near = max(1e-12, float((states[-1][0] - states[-2][0]).norm()))
    below = {k: project(surface, states[k], near) for k in (0, *LENGTHS) if k < len(states)}
    pairs += [(k, (below[0], below[k]), (states[0], states[k])) for k in LENGTHS if k in below]
    floor = [_barrier(surface, *on_floor) for _, on_floor, _ in pairs]
    raw = [_barrier(surface, *ends) for _, _, ends in pairs]
    names = str(surface.fingerprint().get("dtype", "float64")).split("+")
    eps = max(torch.finfo(getattr(torch, name.removeprefix("torch."))).eps for name in names)
    noise = ROUNDING * eps * max((size for _, size in floor + raw), default=0.0)
    return {
        "floor": {
            "floor": [b for b, _ in floor],
            "raw": [b for b, _ in raw],
            "length": [k for k, _, _ in pairs],
            "noise_floor": noise,
        }
    }
