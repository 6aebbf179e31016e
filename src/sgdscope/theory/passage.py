"""Mean first-passage times in one dimension, exactly, by quadrature on a log scale."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from sgdscope.errors import ArgumentError
from sgdscope.ranges import choice
from sgdscope.theory.inputs import Array
from sgdscope.theory.prediction import Time
from sgdscope.theory.quadrature import Function, gauss, panels

READINGS = {"ito": 0.0, "stratonovich": 0.5, "isothermal": 1.0}  # where in a step the noise is taken: its start, middle, end


def mean_passage_time(
    gradient: Function,
    diffusion: float | Function,
    start: float,
    end: float,
    *,
    wall: float,
    convention: str = "ito",
    breaks: Sequence[float] = (),
) -> Time:
    """Mean time of d x = -L'(x) dt + sqrt(2 D(x)) dW from a start to an end, with a reflecting wall behind the start.

    Phi' = L' / D; Ito: tau = int_start^end e^Phi int_wall^y e^-Phi / D dz dy; isothermal (Haenggi-Klimontovich):
    tau = int e^Phi / D int e^-Phi; Stratonovich: 1 / sqrt(D) in both. A loop of SGD with prescribed noise simulates Ito
    in the limit of small steps. Panels of equal change of Phi, 8 Gauss points each, all sums of logarithms.

    Args:
        gradient: L'(x), of arrays.
        diffusion: D > 0, or D(x) of arrays; lr C / (2 S) for SGD.
        start: where the walk starts.
        end: where it is absorbed; on either side of the start.
        wall: where it is reflected; the start lies between wall and end. Far out where there is none.
        convention: ``ito``, ``stratonovich`` or ``isothermal``; all the same where D is constant.
        breaks: where D or L' jumps.

    Returns:
        The time, in units of learning rate x updates.

    Raises:
        ArgumentError: the points are out of order, D <= 0 or not finite somewhere, or Phi changes too fast.

    Cost: 16 evaluations of L' and D a unit of the variation of Phi between wall and end.

    Source: diffusion specification S1, S2 (Gardiner, Stochastic Methods, section 5.5, for the Ito form).

    Example:
        >>> time = mean_passage_time(lambda x: x**3 - x, 0.01, -1.0, 1.0, wall=-2.5)
        >>> f"{time.value:.5e}"
        '3.24958e+11'
    """
    alpha = READINGS[choice("convention", convention, tuple(READINGS))]
    side = 1.0 if end > start else -1.0
    points = [side * float(p) for p in (wall, start, end)]
    if not (all(map(math.isfinite, points)) and points[0] <= points[1] < points[2]):
        raise ArgumentError(f"start: expected a start between wall and end, got wall {wall}, start {start}, end {end}")

    def slopes(u: Array) -> tuple[Array, Array]:
        noise = diffusion(side * u) if callable(diffusion) else diffusion
        noise = np.broadcast_to(np.asarray(noise, dtype=np.float64), u.shape)
        pull = side * np.broadcast_to(np.asarray(gradient(side * u), dtype=np.float64), u.shape)
        _usable(side * u, noise, pull)
        return pull / noise, np.log(noise)

    edges = panels(lambda u: slopes(u)[0], points, [side * float(b) for b in breaks])
    return Time(_log_time(slopes, edges, points[1], alpha), convention)


def _usable(x: Array, noise: Array, pull: Array) -> None:
    if bad := np.flatnonzero(~((noise > 0) & np.isfinite(noise) & np.isfinite(pull))).tolist():
        first = np.unravel_index(bad[0], x.shape)
        raise ArgumentError(
            f"diffusion: expected D > 0 and a finite gradient, got D = {noise[first]} and {pull[first]} at {x[first]:.6g}; "
            "add a floor to D"
        )


def _log_time(slopes: Callable[[Array], tuple[Array, Array]], edges: Array, start: float, alpha: float) -> float:
    nodes, weights, running = gauss()
    half = np.diff(edges)[:, None] / 2
    steep, log_noise = slopes(edges[:-1, None] + half * (nodes + 1))
    climbed = half * (steep @ running.T)  # Phi at the nodes less Phi at the left edge of the panel
    left = np.concatenate([[0.0], np.cumsum((half * steep) @ weights)])[:-1, None]
    inside = np.exp(-climbed - (1 - alpha) * log_noise)
    whole = np.log((half * inside) @ weights) - left[:, 0]
    before = np.concatenate([[-np.inf], np.logaddexp.accumulate(whole)])[:-1, None]
    inner = np.logaddexp(before, np.log(half * (inside @ running.T)) - left)
    outer = climbed + left + inner - alpha * log_noise + np.log(half * weights)
    return float(np.logaddexp.reduce(outer[edges[:-1] >= start].ravel()))
