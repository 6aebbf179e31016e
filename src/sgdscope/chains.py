"""Many chains of projected Langevin Monte Carlo at once, in low dimensions."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sgdscope.bodies import Body
from sgdscope.errors import ArgumentError
from sgdscope.ranges import positive, whole
from sgdscope.theory.langevin import steps_asked
from sgdscope.theory.prediction import Prediction

Gradient = Callable[[Tensor], Tensor]
Edge = Literal["project", "reflect"]


@dataclass(frozen=True)
class Chains:
    """Where the chains were.

    Attributes:
        points: [kept, chains, d], the points after the updates `steps`.
        steps: [kept], number of updates made.
        boundary: [kept, chains] bool, whether the point is an atom: it lies on the surface of the body.
        moved: [chains], how far outside of the body the starts lay before they were projected.
        edge: what was done at the surface.
    """

    points: Tensor
    steps: Tensor
    boundary: Tensor
    moved: Tensor
    edge: str

    @property
    def boundary_share(self) -> float:
        """Share of the kept points that lie on the surface."""
        return float(self.boundary.double().mean())

    @property
    def inside(self) -> Tensor:
        """The kept points without the atoms, [n, d]: their law is another one than the chain's, see `told`."""
        return self.points[~self.boundary]

    @property
    def told(self) -> str:
        """What the points are samples of, for a report."""
        moved = int((self.moved > 0).sum())
        start = f"; {moved} of {len(self.moved)} starts lay outside and were projected" if moved else ""
        if self.edge == "reflect":
            return f"reflected at the surface, not projected as in the paper: no atoms{start}"
        share = f"{self.boundary_share:.3g} of the points are atoms on the surface, which the target does not have"
        return f"projected; {share}; `inside` leaves them out, which does not restore what is missing beside the surface{start}"


def chains(
    gradient: Gradient | None,
    body: Body,
    *,
    lr: float,
    steps: int,
    start: Tensor,
    generator: torch.Generator,
    temperature: float = 1.0,
    edge: Edge = "project",
    every: int | None = None,
) -> Chains:
    """Walk chains X' = P_K(X - (lr / 2) grad f(X) + sqrt(lr T) xi), xi ~ N(0, I), all at once.

    Args:
        gradient: [chains, d] -> [chains, d], the gradient of f; None for a uniform target.
        body: K.
        lr: > 0.
        steps: updates, >= 1.
        start: [chains, d] float64 or float32, copied; those outside are projected, and told.
        generator: of the noise, on the device of `start`.
        temperature: T > 0; the target is exp(-f / T) on K.
        edge: ``"project"``, or ``"reflect"`` to mirror at the surface.
        every: keep the points of every so many updates, >= 1; None for the last ones alone.

    Returns:
        The points.

    Raises:
        ArgumentError: a number out of range, starts of another dimension, a first gradient of another shape or not finite, or
            points that are not finite.

    Cost: an update a normal number and a projection a coordinate; nothing is kept between the points that are asked for.
    Source: Bubeck, Eldan & Lehec 2018 (1507.02564), section 1.

    Example:
        >>> from sgdscope.bodies import Box
        >>> start, generator = torch.zeros(1000, 2), torch.Generator().manual_seed(0)
        >>> walked = chains(None, Box(-1.0, 1.0, size=2), lr=0.01, steps=300, start=start, generator=generator)
        >>> 0.08 < walked.boundary_share < 0.18
        True
    """
    for name, value in (("lr", lr), ("temperature", temperature)):
        positive(name, value)
    whole("steps", steps, 1)
    keep = steps if every is None else every
    whole("every", keep, 1)
    if keep > steps:
        raise ArgumentError(f"every: expected at most steps = {steps}, got {keep}; no point would be kept")
    if edge not in {"project", "reflect"}:
        raise ArgumentError(f"edge: expected project or reflect, got {edge!r}")
    if not isinstance(body, Body):
        raise ArgumentError(f"body: expected a Body, such as Box or Ball, got {body!r}")
    if start.ndim != 2 or start.shape[1] != body.size or not len(start) or not start.is_floating_point():
        raise ArgumentError(f"start: expected [chains, {body.size}] of floats, got {tuple(start.shape)} {start.dtype}")
    x = body.project(start.detach()).clone()
    moved = torch.linalg.vector_norm(x - start, dim=1)
    scale, move, noise = math.sqrt(lr * temperature), body.project if edge == "project" else body.reflect, torch.empty_like(x)
    kept = []
    for step in range(1, steps + 1):
        if gradient is not None:
            x = x.add(_checked(gradient(x), x) if step == 1 else gradient(x), alpha=-lr / 2)
        x = move(x.add(noise.normal_(generator=generator), alpha=scale))
        if step % keep == 0:
            kept.append(x)
    points = torch.stack(kept)
    if not bool(points.isfinite().all()):
        raise ArgumentError("gradient, start: the walk is not finite; expected both to be finite on the body")
    return Chains(points, torch.arange(keep, steps + 1, keep), body.boundary(points), moved, edge)


def _checked(slope: Tensor, x: Tensor) -> Tensor:
    """The first gradient: of another shape it would be spread over the coordinates, an infinite one ends in a corner."""
    if slope.shape != x.shape or not bool(slope.isfinite().all()):
        raise ArgumentError(f"gradient: expected finite numbers [chains, d] = {[*x.shape]}, got {tuple(slope.shape)}: {slope}")
    return slope


def asked(body: Body, tolerance: float, *, lipschitz: float = 0.0, smoothness: float = 0.0) -> tuple[Prediction, float]:
    """How many steps of which length the theorem asks for on a body, up to constants and logarithms.

    The body is shrunk by r, the radius of a ball inside of it, as the theorem wants a unit ball in it: R / r, r L and r^2 beta
    take the places of R, L and beta in `theory.steps_asked`; the step is lr = R^2 / N, in the body's own units.

    Args:
        body: K; chains start at its centre.
        tolerance: in total variation, 0 < eps < 1.
        lipschitz: of f on the body, >= 0; 0 for a uniform target.
        smoothness: of f, >= 0.

    Returns:
        (N, lr).

    Raises:
        ArgumentError: out of range.

    Source: Bubeck, Eldan & Lehec 2018, Theorem 1, as recalled.
    """
    r = body.inner
    ratio = max(1.0, body.radius / r)
    steps = steps_asked(body.size, tolerance, radius=ratio, lipschitz=r * lipschitz, smoothness=r * r * smoothness)
    return steps, body.radius**2 / steps.value
