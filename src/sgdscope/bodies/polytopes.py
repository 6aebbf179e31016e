"""Bodies whose projection is a quadratic programme: polytopes, and what several bodies have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import linprog, nnls
from torch import Tensor

from sgdscope.bodies.base import TOLERANCE, Body, leaving, numbers, vector
from sgdscope.bodies.simple import Ball
from sgdscope.errors import ArgumentError, SgdscopeError

Array = NDArray[np.float64]
ROUNDS = 64  # sweeps of Dykstra's method over the half-spaces before a point is handed to the active-set method
FEW = 64  # points that the active-set method has sooner than a few more sweeps have (0.1 ms each; a sweep of 15 rows 0.3)
EXACT = 1e-13  # residual at which it ends, of the radius
SWEEPS = 10_000  # over general bodies, where there is no other method
STEPS = 100  # of regula falsi; 7 to 12 are made


class Polytope(Body):
    """The polytope a x <= b.

    Projected by Dykstra's method on the half-spaces, all points at once, until the residual of the optimality conditions,
    max_i |min(multiplier_i, slack_i)| (rows of length 1), is 1e-13 radii; the last 64 of them, and points that take more than 64
    sweeps, by the active-set method, one by one. Checked at construction by linear programmes: the centre is the one of
    Chebyshev.

    Args:
        a: [m, d], no row of zeros.
        b: [m].

    Raises:
        ArgumentError: empty, unbounded, without inner points, or of the wrong shape.

    Cost: at construction 2 d + 1 linear programmes; a projection a few sweeps of m d numbers a point.
    Source: Dykstra 1983; Hildreth 1957; Lawson & Hanson 1974, chapter 23 (least distance by non-negative least squares).

    Example:
        >>> triangle = Polytope([[-1.0, 0.0], [0.0, -1.0], [1.0, 1.0]], [0.0, 0.0, 1.0])
        >>> triangle.project(torch.tensor([1.0, 1.0])).tolist()
        [0.5, 0.5]
    """

    def __init__(self, a: Any, b: Any) -> None:
        rows = numbers("a", a)
        if rows.ndim != 2 or not rows.numel() or not bool(rows.isfinite().all()):
            raise ArgumentError(f"a: expected [m, d], finite, got shape {tuple(rows.shape)}")
        bound, lengths = vector("b", b, len(rows)).double(), torch.linalg.vector_norm(rows, dim=1)
        if bool((lengths == 0).any()):
            raise ArgumentError(f"a: row {int((lengths == 0).nonzero()[0])} is zero and bounds nothing; leave it out")
        self.a, self.b = rows / lengths[:, None], bound / lengths
        self.centre, self.inner = _chebyshev(self.a.numpy(), self.b.numpy())
        low, high = _extent(self.a.numpy(), self.b.numpy())
        corner = np.maximum(high - self.centre.numpy(), self.centre.numpy() - low)
        self.radius = float(np.linalg.norm(corner))

    def _nearest(self, points: Tensor) -> Tensor:
        outside = self._depth(points) < 0
        if not bool(outside.any()):
            return points
        moved = points.clone()
        moved[outside] = self._dykstra(points[outside].double()).to(points)
        return moved

    def _dykstra(self, points: Tensor) -> Tensor:
        x, multipliers = points.clone(), points.new_zeros(len(points), len(self.a))
        late = torch.ones(len(points), dtype=torch.bool)
        for _ in range(ROUNDS if len(points) > FEW else 0):
            for i, (row, bound) in enumerate(zip(self.a, self.b, strict=True)):
                step = torch.maximum(x @ row - bound, -multipliers[:, i])
                multipliers[:, i] += step
                x -= step[:, None] * row
            residual = torch.minimum(multipliers, self.b - x @ self.a.T).abs().amax(1)
            late = residual > EXACT * self.radius
            if int(late.sum()) <= FEW:
                break
        for i in late.nonzero()[:, 0].tolist():
            x[i] = torch.from_numpy(_least_distance(points[i].numpy(), self.a.numpy(), self.b.numpy()))
        return x

    def _depth(self, points: Tensor) -> Tensor:
        slack: Tensor = self.b.to(points) - points @ self.a.to(points).T
        return slack.amin(-1)

    def chord(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """See `Body.chord`."""
        rows = self.a.to(points).T
        return leaving(self.b.to(points) - points @ rows, directions @ rows)


def _least_distance(point: Array, a: Array, b: Array) -> Array:
    """Minimise |x - point| under a x <= b, by non-negative least squares and one solve on its active rows."""
    short = a @ point - b
    scale = float(np.abs(short).max())
    weights, _ = nnls(np.vstack([-a.T, short / scale]), np.append(np.zeros(len(point)), 1.0))
    active = weights > 0
    shift, *_ = np.linalg.lstsq(a[active], -short[active], rcond=None)
    moved: Array = point + shift
    return moved


def _chebyshev(a: Array, b: Array) -> tuple[Tensor, float]:
    """Centre and radius of the largest ball in a x <= b, rows of length 1."""
    goal = np.append(np.zeros(a.shape[1]), -1.0)
    found = linprog(goal, A_ub=np.hstack([a, np.ones((len(a), 1))]), b_ub=b, bounds=[(None, None)] * a.shape[1] + [(0, None)])
    if found.status == 2:
        raise ArgumentError("a, b: the polytope is empty: no point satisfies a x <= b; take a larger b")
    if found.status == 3:
        raise ArgumentError("a, b: the polytope is unbounded; add rows that bound it, such as those of a box")
    if found.status != 0:
        raise ArgumentError(f"a, b: whether the polytope is empty cannot be told: {found.message}")
    solution = np.asarray(found.x, np.float64)
    if not solution[-1] > 1e-12 * (1 + np.abs(b).max()):
        raise ArgumentError("a, b: the polytope has no inner points, it lies in a plane; walk in the coordinates of that plane")
    return torch.from_numpy(solution[:-1].copy()), float(solution[-1])


def _extent(a: Array, b: Array) -> tuple[Array, Array]:
    """The box round a x <= b; refuses an unbounded one."""
    ends = np.zeros((2, a.shape[1]))
    for side, sign in enumerate((1.0, -1.0)):
        for i in range(a.shape[1]):
            goal = np.zeros(a.shape[1])
            goal[i] = sign
            found = linprog(goal, A_ub=a, b_ub=b, bounds=[(None, None)] * a.shape[1])
            if found.status != 0:
                way = "below" if side == 0 else "above"
                raise ArgumentError(f"a, b: the polytope is unbounded: nothing bounds coordinate {i} from {way}; add such a row")
            ends[side, i] = sign * float(np.asarray(found.fun))
    return ends[0], ends[1]


class Intersection(Body):
    """What several bodies have in common.

    With a ball round c the projection on a body K and the ball is P_K(c + s (y - c)), s <= 1 the root of |x - c| = radius,
    which rises with s: found by regula falsi. Other bodies take Dykstra's method: sweeps y -> x_1 -> ... -> x_k with a correction
    kept for each body, until no step after the first of a sweep is longer than `tolerance`; if none moves at all, x is the
    projection exactly (the corrections are then normals at x that add up to y - x), else it is at most of the order of the
    root of `tolerance` times |y - x| away. From points far outside it may stand still for thousands of sweeps.

    Args:
        bodies: at least two, of one dimension; boxes and polytopes are better joined as the rows of one `Polytope`.
        tolerance: > 0, of the smallest radius.
        sweeps: most sweeps of a projection.

    Raises:
        ArgumentError: the bodies have no common inner point, or differ in dimension.
        SgdscopeError: when projecting: not converged after `sweeps`.

    Cost: with a ball about ten projections on the other body; else a projection on each body a sweep.
    Source: Boyle & Dykstra 1986; Dowell & Jarratt 1971 (the Illinois method);
        for the ball the conditions of Karush, Kuhn and Tucker, s = 1 / (1 + multiplier).
    """

    def __init__(self, bodies: Sequence[Body], *, tolerance: float = 1e-12, sweeps: int = SWEEPS) -> None:
        self.bodies, self.sweeps = tuple(bodies), sweeps
        known = all(isinstance(body, Body) for body in self.bodies)
        if not known or len(self.bodies) < 2 or len({body.size for body in self.bodies}) != 1:
            raise ArgumentError(f"bodies: expected at least two of one dimension, got {[*self.bodies]}")
        if not tolerance > 0:
            raise ArgumentError(f"tolerance: expected a number > 0, got {tolerance!r}")
        self._ball = next((b for b in self.bodies if isinstance(b, Ball)), None) if len(self.bodies) == 2 else None
        self._other = next((b for b in self.bodies if b is not self._ball), self.bodies[0])
        self.radius = min(body.radius for body in self.bodies)
        self.tolerance = tolerance * self.radius
        self.centre = torch.stack([body.centre.double() for body in self.bodies]).mean(0)
        self.centre, self.inner = self._inside()
        self.radius = min(b.radius + float(torch.linalg.vector_norm(b.centre.double() - self.centre)) for b in self.bodies)

    def _inside(self) -> tuple[Tensor, float]:
        """The deepest of the centres, their mean, and the mean of the projections of points far away on all sides."""
        centres = torch.stack([*(body.centre.double() for body in self.bodies), self.centre])
        if float(self._depth(centres).max()) <= TOLERANCE[torch.float64] * self.radius:
            far = 2 * self.radius * torch.eye(self.size, dtype=torch.float64)
            try:
                sides = self._nearest(torch.cat([self.centre + far, self.centre - far]))
            except SgdscopeError as error:
                raise ArgumentError(f"bodies: they have no common point, or merely touch: {error}") from error
            centres = sides.mean(0, keepdim=True)
        depths = self._depth(centres)
        best = int(depths.argmax())
        if float(depths[best]) <= TOLERANCE[torch.float64] * self.radius:
            raise ArgumentError("bodies: what they have in common has no inner points; walk in a body that has")
        return centres[best], float(depths[best])

    def _nearest(self, points: Tensor) -> Tensor:
        outside = self._depth(points) < 0
        if not bool(outside.any()):
            return points
        moved = points.clone()
        far = points[outside].double()
        moved[outside] = (self._dykstra(far) if self._ball is None else self._on_ball(far, self._ball)).to(points)
        return moved

    def _on_ball(self, points: Tensor, ball: Ball) -> Tensor:
        centre, x = ball.centre.to(points), self._other._nearest(points).clone()

        def beyond(near: Tensor) -> Tensor:
            away: Tensor = torch.linalg.vector_norm(near - centre, dim=-1, keepdim=True)
            return away - ball.radius

        rows = (beyond(x)[:, 0] > 0).nonzero()[:, 0]
        inner = beyond(self._other._nearest(centre[None]))
        if len(rows) and float(inner) > self.tolerance:
            raise SgdscopeError(f"no point of {self._other!r} lies in {ball!r}: the nearest is {float(inner):.2g} outside")
        bracket = _Bracket(beyond(x[rows]), inner.clamp(max=0))
        for _ in range(STEPS):
            if not len(rows):
                break
            x[rows] = near = self._other._nearest(centre + bracket.middle * (points[rows] - centre))
            rows = rows[bracket.narrow(beyond(near), EXACT * ball.radius)]
        return x

    def _dykstra(self, points: Tensor) -> Tensor:
        result, rows, x = points.clone(), torch.arange(len(points)), points
        corrections, residual = [torch.zeros_like(points) for _ in self.bodies], torch.zeros(1)
        for _ in range(self.sweeps):
            steps = []
            for i, body in enumerate(self.bodies):
                asked = x + corrections[i]
                near = body._nearest(asked)
                corrections[i] = asked - near
                steps.append(torch.linalg.vector_norm(near - x, dim=-1))
                x = near
            residual = torch.stack(steps[1:]).amax(0)
            late = residual > self.tolerance
            result[rows[~late]] = x[~late]
            rows, x, corrections = rows[late], x[late], [c[late] for c in corrections]
            if not len(rows):
                return result
        raise SgdscopeError(
            f"the projection on {self!r} is not reached after {self.sweeps} sweeps: the last step {float(residual.max()):.2g}, "
            f"{self.tolerance:.2g} was asked; give more sweeps=, or a larger tolerance="
        )

    def _depth(self, points: Tensor) -> Tensor:
        return torch.stack([body._depth(points) for body in self.bodies]).amin(0)

    def chord(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """See `Body.chord`."""
        low, high = zip(*(body.chord(points, directions) for body in self.bodies), strict=True)
        return torch.stack(low).amax(0), torch.stack(high).amin(0)


class _Bracket:
    """Roots of rising functions on [0, 1], one a row, between values <= 0 and > 0: regula falsi, of Illinois.

    Args:
        high: [n, 1], values at 1.
        low: [1, 1], the value at 0.
    """

    def __init__(self, high: Tensor, low: Tensor) -> None:
        self._low, self._high = torch.zeros_like(high), torch.ones_like(high)
        self._below, self._above = low.expand_as(high), high
        self._last = torch.zeros_like(high)

    @property
    def middle(self) -> Tensor:
        """Where the chord crosses 0, [n, 1]."""
        return self._low + (self._high - self._low) * self._below / (self._below - self._above)

    def narrow(self, value: Tensor, exact: float) -> Tensor:
        """Take the values in the middle; which rows go on [n], bool: those off 0 whose bracket still has numbers inside."""
        middle, over = self.middle, value > 0
        again = self._last == value.sign()  # the same side twice: the value at the other one counts half
        self._low, self._high = torch.where(over, self._low, middle), torch.where(over, middle, self._high)
        self._below = torch.where(over, torch.where(again, self._below / 2, self._below), value)
        self._above = torch.where(over, value, torch.where(again, self._above / 2, self._above))
        self._last = value.sign()
        room = self._high - self._low > torch.finfo(middle.dtype).eps * self._high
        late = ((value.abs() > exact) & room)[:, 0]
        for name in ("_low", "_high", "_below", "_above", "_last"):
            setattr(self, name, getattr(self, name)[late])
        return late
