"""Volumes of convex bodies by annealing, with projected Langevin or with hit-and-run inside; and volumes that are known.

The scheme of Cousins and Vempala: Gaussians exp(-|x - c|^2 / (2 s_i)) on K, the first so narrow that K holds it, each wider by
a factor a = 1 + 1 / sqrt(d); Z_{i+1} / Z_i is the mean over samples of the i-th of exp(|x - c|^2 (1/s_i - 1/s_{i+1}) / 2), and
the last ratio leads to the uniform law, whose Z is the volume.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from scipy import integrate, special, stats
from torch import Tensor

from sgdscope.bodies import Ball, Body, Box, BoxBall
from sgdscope.chains import chains
from sgdscope.contracts import Evidence
from sgdscope.directions import private
from sgdscope.errors import ArgumentError

MISSED = 1e-6  # mass of the first Gaussian that may lie outside of the ball inside of K; relative error of its Z
SPREAD = 0.1  # the last s is sqrt(0.1 d) inner^2: over [-1, 1]^d the log of the last weight then has a deviation of 1/2
SAMPLES = 4  # points of a chain that are used of each phase, over its second half
Walk = Callable[[Tensor, float, torch.Generator], Tensor]


@dataclass(frozen=True)
class Volume:
    """A volume found by annealing.

    Attributes:
        log_volume: natural logarithm.
        stderr: of the logarithm, from the chains of each phase as independent units.
        phases: Gaussians passed through.
        seconds: of the processor.
    """

    log_volume: float
    stderr: float
    phases: int
    seconds: float


def body_of(kind: str, d: int) -> Body:
    """The paper's two bodies.

    Args:
        kind: ``"box"``, [-1, 1]^d; ``"box_and_ball"``, the same and the ball of radius sqrt(d) / 2 round 0.
        d: dimension.

    Returns:
        The body.

    Raises:
        ArgumentError: another kind.
    """
    box = Box(-1.0, 1.0, size=d)
    if kind not in {"box", "box_and_ball"}:
        raise ArgumentError(f"kind: expected box or box_and_ball, got {kind!r}")
    return box if kind == "box" else BoxBall(box, Ball(math.sqrt(d) / 2, size=d))


def known(kind: str, d: int) -> float:
    """The log volume: d log 2 of the box; of box and ball that times P(U_1^2 + ... + U_d^2 <= d / 4), U uniform on [-1, 1].

    The probability is 1/2 - int_0^inf Im(e^{-i t d / 4} phi(t)^d) / (pi t) dt, phi(t) = sqrt(pi) erf(z) / (2 z), z = sqrt(-i t).

    Args:
        kind: see `body_of`.
        d: dimension, >= 3 for box and ball.

    Returns:
        The natural logarithm, to 1e-7.

    Source: Gil-Pelaez 1951.
    """
    if kind == "box":
        return d * math.log(2)

    def integrand(t: float) -> float:
        z = np.sqrt(-1j * t)
        phi = math.sqrt(math.pi) * special.erf(z) / (2 * z)
        return float((np.exp(-0.25j * t * d) * phi**d).imag / t)

    total = sum(integrate.quad(integrand, a, a + 20, limit=400)[0] for a in np.arange(1e-12, 2000, 20))
    return d * math.log(2) + math.log(0.5 - total / math.pi)


def schedule(body: Body) -> list[float]:
    """The squared widths s_i of the Gaussians.

    Args:
        body: with a ball inside round its centre.

    Returns:
        Ascending, each 1 + 1 / sqrt(d) times the one before; in proportion to the square of the body's size.
    """
    square, factor = body.inner**2, 1 + 1 / math.sqrt(body.size)
    widths = [square / float(stats.chi2.isf(MISSED, body.size))]
    while widths[-1] < square * math.sqrt(SPREAD * body.size):
        widths.append(widths[-1] * factor)
    return widths


def annealed(body: Body, walk: Walk, *, start: int, generator: torch.Generator) -> Volume:
    """The volume of a body.

    Args:
        body: K.
        walk: (points [chains, d], s, generator) -> [samples, chains, d]; the last go on into the next phase.
        start: number of chains, which start from the first Gaussian, projected.
        generator: of all draws.

    Returns:
        The volume.
    """
    began, widths = time.process_time(), schedule(body)
    centre = body.centre.double()
    points = body.project(centre + math.sqrt(widths[0]) * torch.randn(start, body.size, generator=generator, dtype=torch.float64))
    total, variance = 0.5 * body.size * math.log(2 * math.pi * widths[0]), 0.0
    for s, wider in zip(widths, [*widths[1:], math.inf], strict=True):
        samples = walk(points, s, generator)
        logs = ((samples - centre) ** 2).sum(-1) * (1 / s - 1 / wider) / 2
        top = float(logs.max())
        each = torch.exp(logs - top).mean(0)
        total += top + math.log(float(each.mean()))
        variance += float(each.var() / each.mean() ** 2) / start
        points = samples[-1]
    return Volume(total, math.sqrt(variance), len(widths), time.process_time() - began)


def langevin(body: Body, *, steps: int, step: float = 1.0, edge: str = "project") -> Walk:
    """Projected Langevin inside a phase, lr = step s / d^2: the paper's 1 / (beta n^2) with step = 1, as recalled.

    Args:
        body: K.
        steps: a phase.
        step: factor on the paper's lr.
        edge: ``"project"`` or ``"reflect"``.

    Returns:
        The walk.
    """
    own: Any = edge

    def walk(points: Tensor, s: float, generator: torch.Generator) -> Tensor:
        walked = chains(
            lambda x: (x - body.centre.to(x)) / s,
            body,
            lr=step * s / body.size**2,
            steps=steps,
            start=points,
            generator=generator,
            edge=own,
            every=max(1, steps // (2 * SAMPLES)),
        )
        return walked.points[-SAMPLES:]

    return walk


def hit_and_run(body: Body, *, steps: int) -> Walk:
    """Hit-and-run inside a phase, as a reference: to a point of the Gaussian on the chord in a uniform direction.

    Args:
        body: K, with chords.
        steps: a phase.

    Returns:
        The walk; its law is exact at any number of steps once it has mixed.

    Source: Smith 1984; Lovasz & Vempala 2006.
    """

    def walk(points: Tensor, s: float, generator: torch.Generator) -> Tensor:
        x, kept, width = points.clone(), [], math.sqrt(s)
        for number in range(1, steps + 1):
            direction = torch.nn.functional.normalize(torch.randn(x.shape, generator=generator, dtype=x.dtype), dim=1)
            low, high = body.chord(x, direction)
            middle = -((x - body.centre.to(x)) * direction).sum(1)
            a, b = (torch.special.ndtr((end - middle) / width) for end in (low, high))
            share = a + (b - a) * torch.rand(len(x), generator=generator, dtype=x.dtype)
            move = middle + width * torch.special.ndtri(share.clamp(1e-300, 1 - 1e-16))
            x = x + torch.minimum(torch.maximum(move, low), high)[:, None] * direction
            if number % max(1, steps // (2 * SAMPLES)) == 0:
                kept.append(x)
        return torch.stack(kept[-SAMPLES:])

    return walk


def study(description: Mapping[str, Any], folder: Path, data_dir: Any = None) -> Evidence:  # ruff: ignore[unused-function-argument] - one signature for all studies
    """Find one volume with one sampler.

    Args:
        description: body, d, sampler (``langevin``, ``reflected`` or ``hit_and_run``), chains, steps in units of d^2, seed.
        folder: not used.
        data_dir: not used.

    Returns:
        Evidence with log_volume, stderr, known, phases and seconds.
    """
    kind, d, sampler = description["body"], description["d"], description["sampler"]
    body, steps = body_of(kind, d), max(2 * SAMPLES, round(description["steps"] * d * d))
    edge = "reflect" if sampler == "reflected" else "project"
    walk = hit_and_run(body, steps=steps) if sampler == "hit_and_run" else langevin(body, steps=steps, edge=edge)
    seeds = (description["seed"], d, int(kind == "box"), ("langevin", "reflected", "hit_and_run").index(sampler))
    found = annealed(body, walk, start=description["chains"], generator=private(*seeds))
    told = {"log_volume": found.log_volume, "stderr": found.stderr, "phases": found.phases, "seconds": found.seconds}
    return Evidence(dict(description), xr.Dataset(), {}, told | {"known": known(kind, d)})
