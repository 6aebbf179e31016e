"""Bodies whose projection is a formula: box, ball, both together, and the simplex."""

from __future__ import annotations

from math import inf, sqrt
from typing import Any

import torch
from torch import Tensor

from sgdscope.bodies.base import COARSE, TOLERANCE, Body, leaving, numbers, vector
from sgdscope.errors import ArgumentError
from sgdscope.ranges import positive


class Box(Body):
    """The box low <= x <= high; the projection clips.

    Args:
        low: [d] or a number.
        high: [d] or a number, above low.
        size: d where both are numbers.

    Raises:
        ArgumentError: empty, unbounded or without inner points.

    Example:
        >>> Box(-1.0, 1.0, size=2).project(torch.tensor([3.0, 0.5])).tolist()
        [1.0, 0.5]
    """

    def __init__(self, low: Any, high: Any, *, size: int | None = None) -> None:
        sides = [numbers(name, v) for name, v in (("low", low), ("high", high))]
        known = next((len(v) for v in sides if v.ndim), None) if size is None else size
        self.low, self.high = vector("low", low, known), vector("high", high, known)
        if not bool((self.low < self.high).all()):
            at = int((self.low >= self.high).nonzero()[0])
            ends = f"low = {float(self.low[at]):g}, high = {float(self.high[at]):g}"
            raise ArgumentError(f"low, high: expected low < high in every coordinate, got {ends} in coordinate {at}: it is empty")
        self.centre = (self.low + self.high) / 2
        half = (self.high - self.low) / 2
        self.inner, self.radius = float(half.min()), float(torch.linalg.vector_norm(half.double()))

    @classmethod
    def around(cls, centre: Tensor, radius: float) -> Box:
        """The box |x_i - centre_i| <= radius.

        Args:
            centre: [d].
            radius: > 0, half the length of each side.

        Returns:
            The box.
        """
        half = positive("radius", radius)
        return cls(centre - half, centre + half)

    def _nearest(self, points: Tensor) -> Tensor:
        return torch.clamp(points, self.low.to(points), self.high.to(points))

    def _depth(self, points: Tensor) -> Tensor:
        return torch.minimum(points - self.low.to(points), self.high.to(points) - points).amin(-1)

    def reflect(self, points: Tensor) -> Tensor:
        """Points folded back at the faces, however far outside; a uniform law stays exactly uniform.

        Args:
            points: [..., d].

        Returns:
            The same shape; points of the box as they are.
        """
        self._checked(points)
        low, high = self.low.to(points), self.high.to(points)
        width = high - low
        offset = torch.remainder(points - low, 2 * width)
        folded = low + torch.minimum(offset, 2 * width - offset)
        return torch.where((points >= low) & (points <= high), points, torch.clamp(folded, low, high))

    def chord(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """See `Body.chord`."""
        low, high = self.low.to(points), self.high.to(points)
        return leaving(torch.cat([high - points, points - low], -1), torch.cat([directions, -directions], -1))


class Ball(Body):
    """The ball |x - centre| <= radius; the projection is radial.

    Args:
        radius: > 0.
        centre: [d], or a number.
        size: d where the centre is a number.

    Raises:
        ArgumentError: empty or unbounded.
    """

    def __init__(self, radius: float, *, centre: Any = 0.0, size: int | None = None) -> None:
        self.radius = self.inner = positive("radius", radius)
        self.centre = vector("centre", centre, size)

    def _nearest(self, points: Tensor) -> Tensor:
        offset = points - self.centre.to(points)
        length = torch.linalg.vector_norm(offset, dim=-1, keepdim=True)
        return torch.where(length > self.radius, offset.mul_(self.radius / length).add_(self.centre.to(points)), points)

    def _depth(self, points: Tensor) -> Tensor:
        away: Tensor = torch.linalg.vector_norm(points - self.centre.to(points), dim=-1)
        return self.radius - away

    def chord(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """See `Body.chord`."""
        offset = points - self.centre.to(points)
        a, b = (directions * directions).sum(-1), (directions * offset).sum(-1)
        inside = (self.radius**2 - (offset * offset).sum(-1)).clamp(min=0)
        root = (b * b + a * inside).sqrt()
        return (-b - root) / a, (-b + root) / a


class BoxBall(Body):
    """The points common to a box and a ball whose centre lies in the box, projected exactly.

    With y from the ball's centre and h_i the distance to the face on y_i's side, x_i = sign(y_i) min(s |y_i|, h_i) with the
    s <= 1 at which |x| is the radius (1 if it is never reached); found by sorting the s at which the coordinates meet their face.

    Args:
        box: the box.
        ball: its centre lies in the box.

    Raises:
        ArgumentError: the centre of the ball does not lie inside the box; `Intersection` takes any two bodies.
    """

    def __init__(self, box: Box, ball: Ball) -> None:
        if not isinstance(box, Box) or not isinstance(ball, Ball):
            raise ArgumentError(f"box, ball: expected a Box and a Ball, got {box!r} and {ball!r}; take Intersection of others")
        if box.size != ball.size:
            raise ArgumentError(f"box, ball: expected one dimension, got {box.size} and {ball.size}")
        room = float(box.depth(ball.centre))
        if room <= 0:
            raise ArgumentError(
                "ball: expected its centre inside the box; take Intersection of the two, which asks no such thing"
            )
        self.box, self.ball, self.centre = box, ball, ball.centre
        self.inner = min(room, ball.radius)
        corner = torch.maximum(box.high - ball.centre, ball.centre - box.low).double()
        self.radius = min(float(torch.linalg.vector_norm(corner)), ball.radius)

    def _nearest(self, points: Tensor) -> Tensor:
        clipped = self.box._nearest(points)
        outside = self.ball._depth(clipped) < 0
        if not bool(outside.any()):
            return clipped
        clipped = clipped.clone()
        clipped[outside] = self._on_both(points[outside])
        return clipped

    def _on_both(self, points: Tensor) -> Tensor:
        """For points [n, d] whose clipped ones lie outside of the ball."""
        y = points - self.centre.to(points)
        reach = torch.where(y > 0, self.box.high.to(y) - self.centre.to(y), self.centre.to(y) - self.box.low.to(y))
        when, order = (reach / y.abs()).sort(-1)  # the scale at which a coordinate meets its face; infinite where y is 0
        faces, free = reach.gather(-1, order) ** 2, y.gather(-1, order) ** 2
        met = torch.cumsum(faces, -1)
        left = free.sum(-1, keepdim=True) - torch.cumsum(free, -1)
        squared = met + torch.where(left > 0, when.clamp(max=torch.finfo(y.dtype).max ** 0.25) ** 2 * left, left)
        count = (squared <= self.ball.radius**2).sum(-1, keepdim=True)
        none = torch.zeros_like(met[..., :1])
        fixed = torch.cat([none, met], -1).gather(-1, count)
        loose = free.flip(-1).cumsum(-1).flip(-1)
        scale = ((self.ball.radius**2 - fixed).clamp(min=0) / torch.cat([loose, none], -1).gather(-1, count)).sqrt()
        return self.centre.to(y) + torch.minimum(torch.maximum(y * scale, -reach), reach)

    def _depth(self, points: Tensor) -> Tensor:
        return torch.minimum(self.box._depth(points), self.ball._depth(points))

    def chord(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """See `Body.chord`."""
        (a, b), (c, d) = self.box.chord(points, directions), self.ball.chord(points, directions)
        return torch.maximum(a, c), torch.minimum(b, d)


class Simplex(Body):
    """The simplex x >= 0, sum x = total, a body within its plane; the projection subtracts a level, found by sorting, and clips.

    Depth, boundary and radii are those within the plane: a chain is projected on the plane as well and walks d - 1 dimensions.

    Args:
        size: d >= 2.
        total: > 0.

    Raises:
        ArgumentError: a number out of range.

    Source: Held, Wolfe & Crowder 1974; Duchi et al. 2008, Figure 1.
    """

    def __init__(self, size: int, *, total: float = 1.0) -> None:
        if isinstance(size, bool) or not isinstance(size, int) or size < 2:
            raise ArgumentError(f"size: expected a whole number >= 2, got {size!r}")
        self.total = positive("total", total)
        self.centre = torch.full((size,), self.total / size, dtype=torch.float64)
        self.inner, self.radius = self.total / sqrt(size * (size - 1)), self.total * sqrt((size - 1) / size)

    def _nearest(self, points: Tensor) -> Tensor:
        falling = points.sort(-1, descending=True).values
        levels = (falling.cumsum(-1) - self.total) / torch.arange(1, self.size + 1, dtype=points.dtype, device=points.device)
        last = ((falling > levels).sum(-1, keepdim=True) - 1).clamp(min=0)  # below 0 for points that are not finite: NaN then
        moved = (points - levels.gather(-1, last)).clamp(min=0)
        return torch.where(self.contains(points, 0.0).unsqueeze(-1), points, moved)

    def _depth(self, points: Tensor) -> Tensor:
        off = (points.sum(-1) - self.total).abs() / sqrt(self.size)
        least = points.amin(-1)
        edge = torch.where(least > 0, least * sqrt(self.size / (self.size - 1)), least)
        return torch.where(off > TOLERANCE.get(points.dtype, COARSE) * self.total, torch.minimum(-off, edge), edge)

    def chord(self, points: Tensor, directions: Tensor) -> tuple[Tensor, Tensor]:
        """See `Body.chord`; a line that leaves the plane meets the simplex in its point alone."""
        low, high = leaving(points, -directions)
        off = directions.sum(-1).abs() > TOLERANCE.get(points.dtype, COARSE) * torch.linalg.vector_norm(directions, dim=-1)
        return low.masked_fill(off, 0.0), high.masked_fill(off, 0.0)


NAMED = ("ball", "box", "space")  # what can be put round a point by its name


def around(name: str, centre: Tensor, radius: float | None) -> Body | None:
    """Put a body round a point, such as the checkpoint of a network.

    Args:
        name: ``"ball"`` (|x - centre| <= radius), ``"box"`` (every |x_i - centre_i| <= radius) or ``"space"`` (no bound).
        centre: [d], copied.
        radius: > 0; not used in space.

    Returns:
        The body; None for the whole space.

    Raises:
        ArgumentError: an unknown name, or a radius out of range.
    """
    if name not in NAMED:
        raise ArgumentError(f"body: expected one of {', '.join(NAMED)} or a Body, got {name!r}")
    if name == "space":
        return None
    reach = positive("radius", inf if radius is None else radius)
    return Ball(reach, centre=centre) if name == "ball" else Box.around(centre, reach)
