"""Walkers that start in a valley, and the updates that each of them needs to leave it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from math import inf, isfinite, log, sqrt
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.errors import ArgumentError
from sgdscope.escapes.noises import Noise
from sgdscope.escapes.potentials import F64, Potential, above, count
from sgdscope.escapes.valleys import Valley, outside
from sgdscope.statistics import Interval, exponential_rate, exponentiality

SETTLING = 16  # updates without noise after which a walker that left must not be higher than where it left
CHUNK = 64  # updates between two looks at who is still inside; they change nothing but the cost
RARE = 10.0  # median waiting time, in updates, below which a rate says nothing of a valley; chosen here
LEAST, FAR = 0.01, 0.05  # p and distance from the exponential law from which on it is said, both needed: of thousands of
# walkers any filling of the valley is significant; chosen here


@dataclass(frozen=True)
class Waiting:
    """Waiting times of walkers in a valley.

    Attributes:
        times: [W], updates until the walker was first outside, or until the observation ended.
        censored: [W], whether it ended first.
        exits: [W, d], the first point outside; of a censored walker the point at which it was last looked at.
        lr: learning rate: a waiting time in continuous time is lr x times.
        diverged: walkers whose first point outside was not finite, or from where descent without noise at this lr climbs.
        momentum: of the walk.
        by_count: whether the observation ended with an escape, at a share of walkers that was chosen beforehand.
    """

    times: NDArray[np.float64]
    censored: NDArray[np.bool_]
    exits: Tensor
    lr: float
    diverged: int = 0
    momentum: float = 0.0
    by_count: bool = False

    @property
    def escapes(self) -> int:
        """Walkers that left."""
        return int((~self.censored).sum())

    @property
    def at_risk(self) -> float:
        """Updates that all walkers spent inside, together."""
        return float(self.times.sum())

    @property
    def rate(self) -> float:
        """Escapes an update: escapes / at_risk, the maximum likelihood for censored exponential times."""
        return self.escapes / self.at_risk

    @property
    def interval(self) -> Interval:
        """95 % interval of the rate from 2 rate at_risk ~ chi^2; exact where the observation ended with an escape."""
        if self.by_count and self.escapes:
            whole = np.zeros(self.escapes, bool)
            return exponential_rate(np.full(self.escapes, self.at_risk / self.escapes), whole)[1]
        return exponential_rate(self.times, self.censored)[1]

    @property
    def tau(self) -> float:
        """Mean waiting time in updates, 1 / rate; infinite where nobody left."""
        return 1 / self.rate if self.escapes else inf

    @property
    def log_stderr(self) -> float:
        """Standard error of log tau, 1 / sqrt(escapes)."""
        return 1 / sqrt(self.escapes) if self.escapes else inf

    @cached_property
    def exponential(self) -> tuple[float, float]:
        """Distance from the fitted exponential law and p, see `statistics.exponentiality`; NaN with fewer than five escapes."""
        return exponentiality(self.times, self.censored, resolution=1.0)

    @property
    def flags(self) -> tuple[str, ...]:
        """What must be known before the rate is believed, in sentences."""
        found = []
        n, (distance, p) = len(self.times), self.exponential
        if not self.escapes:
            found.append(f"none of {n} walkers left within {self.times.max():g} updates: the rate is only bounded from above")
        elif self.escapes < n:
            found.append(f"{n - self.escapes} of {n} walkers had not left when the observation ended and count as censored")
        if self.diverged:
            found.append(f"{self.diverged} of {n} walkers diverged, which is no escape over a barrier; lower lr or the noise")
        if self.escapes and np.median(self.times) < RARE:
            found.append(f"half of the walkers left within {np.median(self.times):g} updates: escapes are not rare events")
        if p < LEAST and distance > FAR:
            words = f"the times are not exponential (distance {distance:.2g}, p = {p:.2g}): one rate does not describe them"
            found.append(words)
        return tuple(found)

    def told(self) -> dict[str, Any]:
        """The numbers as JSON types."""
        distance, p = self.exponential
        return {
            "tau": self.tau if self.escapes else None,
            "rate": self.rate,
            "rate_low": self.interval.low,
            "rate_high": self.interval.high,
            "escapes": self.escapes,
            "at_risk": self.at_risk,
            "walkers": len(self.times),
            "lr": self.lr,
            "diverged": self.diverged,
            "exponential_distance": distance if isfinite(distance) else None,
            "exponential_p": p if isfinite(p) else None,
            "flags": list(self.flags),
        }


class _Walkers:
    """Rows that walk together: theta <- theta - lr v, v <- momentum v + noisy gradient."""

    def __init__(self, potential: Potential, noise: Noise, thetas: Tensor, walk: tuple[float, float, torch.Generator]) -> None:
        self.potential, self.noise, self.thetas = potential, noise, thetas
        self.lr, self.momentum, self.generator = walk
        self.velocity = torch.zeros_like(thetas) if self.momentum else None

    def step(self) -> Tensor:
        """One update; the new rows."""
        gradient = self.noise.gradient(self.potential, self.thetas, self.lr, self.generator)
        if self.velocity is not None:
            gradient = self.velocity = self.momentum * self.velocity + gradient
        self.thetas = torch.add(self.thetas, gradient, alpha=-self.lr)
        return self.thetas

    def keep(self, rows: Tensor) -> None:
        """Go on with some of the rows."""
        self.thetas = self.thetas[rows]
        self.velocity = None if self.velocity is None else self.velocity[rows]


def escape(
    potential: Potential,
    valley: Valley,
    noise: Noise,
    *,
    lr: float,
    walkers: int = 100,
    max_updates: int = 100_000,
    momentum: float = 0.0,
    enough: float = 1.0,
    start: Tensor | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[float], None] | None = None,
) -> Waiting:
    """How many updates it takes to leave a valley: walkers start in its minimum, and each walks until it is outside.

    v <- momentum v + g, theta <- theta - lr v, with g the noisy gradient of `noise`. The waiting time is the number of the
    first update after which the walker is outside. Rates come from escapes / updates at risk, so that walkers that have not
    left count with the time for which they were watched. All walkers start at one point: the time that they take to fill
    the valley is part of the waiting time, and short times are seen not to be exponential.

    Args:
        potential: the loss: `Wells`, `Trough`, `Tang`, `Network`, or one of them `Rescaled` or `Raised`.
        valley: `Box`, `Threshold` (put it past the saddle) or `LossLevel`.
        noise: `Minibatch`, `White`, `Shaped` or `Prescribed`.
        lr: learning rate > 0.
        walkers: W, at least 1; a hundred give log tau to 0.1.
        max_updates: after which those that are left are censored.
        momentum: 0 <= momentum < 1.
        enough: share of the walkers, 0 < enough <= 1, after whose escape the others are censored: 0.9 costs 2.3 tau, not
            5 tau, and loses 5 % of the precision.
        start: [d] in place of the potential's minimum.
        generator: of all noise; a fresh one with seed 0 if None. It is advanced.
        progress: called with the share of walkers that have left.

    Returns:
        The waiting times; `flags` says what is wrong with them: censored, diverged, not rare, not exponential.

    Raises:
        ArgumentError: an argument is out of range, the start lies outside of the valley, or it is no finite point.

    Cost: a gradient (and with `LossLevel` a loss) a walker and update, up to the `enough`-quantile of the waiting times; 16
    full gradients a walker at the end.

    Source: Xie et al. (2002.03495), section 5; diffusion_langevin_distributed, 1.3 and warnings 3 and 4.

    Example:
        >>> from sgdscope.escapes import Threshold, Wells, White
        >>> wells, past = Wells(), Threshold(1.0)
        >>> found = escape(wells, past, White(0.1), lr=0.1, walkers=50)
        >>> found.escapes, 400 < found.tau < 1100  # 663 in continuous time, with a standard error of 14 %
        (50, True)
    """
    lr, momentum = above("lr", lr), _share("momentum", momentum)
    if not 0 < enough <= 1:
        raise ArgumentError(f"enough: expected a share 0 < enough <= 1, got {enough}")
    count("max_updates", max_updates)
    origin = _origin(potential, valley, start)
    _fitting("noise", noise, origin.numel(), lambda: noise.gradient(potential, origin[None], lr, torch.Generator()))
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    group = _Walkers(potential, noise, origin.repeat(count("walkers", walkers), 1), (lr, momentum, generator))
    return _watch(group, valley, (max_updates, max(1, round(enough * walkers))), progress)


def _share(name: str, value: float) -> float:
    if isinstance(value, bool) or not 0.0 <= value < 1.0:
        raise ArgumentError(f"{name}: expected a number 0 <= {name} < 1, got {value!r}")
    return float(value)


def _origin(potential: Potential, valley: Valley, start: Tensor | None) -> Tensor:
    origin = potential.start() if start is None else torch.as_tensor(start).detach().to(F64)
    if origin.shape != (potential.size,) or not torch.isfinite(origin).all():
        raise ArgumentError(f"start: expected a finite point of shape ({potential.size},), got shape {tuple(origin.shape)}")
    if _fitting("valley", valley, potential.size, lambda: outside(valley, origin, potential.value)):
        raise ArgumentError(f"valley: the start lies outside of {valley!r}; nothing can leave it. Move the valley or the start")
    return origin


def _fitting(name: str, given: Any, size: int, ask: Callable[[], Any]) -> Any:
    """What a valley or a noise says at the start; one that is made for another number of parameters is refused."""
    try:
        return ask()
    except (IndexError, RuntimeError, TypeError) as error:
        kind = type(given).__name__
        raise ArgumentError(f"{name}: {kind} does not fit d = {size} parameters ({error}); check coordinate or shapes") from error


def _watch(group: _Walkers, valley: Valley, until: tuple[int, int], progress: Callable[[float], None] | None) -> Waiting:
    """Walk until as many have left as are enough; walkers that left are dropped every `CHUNK` updates."""
    max_updates, wanted = until
    total, now = len(group.thetas), 0
    times, exits = torch.zeros(total, dtype=F64), group.thetas.clone()
    left, rows = torch.zeros(total, dtype=torch.bool), torch.arange(total)
    while now < max_updates and int(left.sum()) < wanted:
        alive = torch.ones(len(rows), dtype=torch.bool)
        stayed, last = torch.zeros(len(rows), dtype=F64), exits[rows]
        for _ in range(min(CHUNK, max_updates - now)):
            points = group.step()
            stayed += alive
            last = torch.where(alive[:, None], points, last)
            alive = alive & valley.inside(points, group.potential.value)
            now += 1
        times[rows] += stayed
        exits[rows], left[rows] = last, ~alive
        group.keep(alive)
        rows = rows[alive]
        if progress is not None:
            progress(float(left.sum()) / total)
    ended = int(left.sum()) >= wanted and wanted < total
    if ended:  # watched up to the escape that was enough, so that the interval is exact
        end = float(times[left].sort().values[wanted - 1])
        left = left & (times <= end)
        times = times.clamp(max=end)
    diverged = int(_unsettled(group.potential, exits[left], group.lr).sum())
    return Waiting(times.numpy(), ~left.numpy(), exits, group.lr, diverged, group.momentum, ended)


def _unsettled(potential: Potential, exits: Tensor, lr: float) -> Tensor:
    """Which of the points where walkers left are not finite, or from where plain descent at this lr climbs, bool."""
    points = exits
    for _ in range(SETTLING if len(exits) else 0):
        points = points - lr * potential.gradient(points)
    before, after = (potential.value(p) if len(exits) else torch.zeros(0) for p in (exits, points))
    return ~(after <= before + 1e-9 * before.abs())


@dataclass(frozen=True)
class Occupation:
    """How walkers that move between two valleys are divided.

    Attributes:
        log_odds: log of the time spent inside the valley over the time spent outside.
        stderr: its standard error, from the scatter between walkers.
        crossings: passages between the two, a walker, in the counted half: with few of them the walk has not mixed.
        apart: log odds of the walkers that began inside minus those of the others, over its standard error; beyond 3 the
            start is not forgotten.
    """

    log_odds: float
    stderr: float
    crossings: float
    apart: float

    @property
    def mixed(self) -> bool:
        """At least 5 passages a walker, and the start forgotten within 3 standard errors."""
        return self.crossings >= 5 and abs(self.apart) < 3


def occupation(
    potential: Potential,
    valley: Valley,
    noise: Noise,
    *,
    lr: float,
    starts: tuple[Tensor, Tensor],
    walkers: int = 100,
    updates: int = 10_000,
    generator: torch.Generator | None = None,
) -> Occupation:
    """How much of their time walkers spend in one of two valleys, in the second half of their walk.

    Half of them begin in each. log odds = log(share inside / share outside), the share being the mean over walkers.

    Args:
        potential: the loss.
        valley: the one of which the time is counted; its complement is the other.
        noise: see `escape`.
        lr: learning rate > 0.
        starts: a point [d] inside and one outside.
        walkers: at least 4; an odd one is left out.
        updates: of each walker, at least 2; several times the longer waiting time.
        generator: of all noise; a fresh one with seed 0 if None.

    Returns:
        The occupation; not finite where one valley was never visited.

    Raises:
        ArgumentError: an argument is out of range, or the starts are not on both sides.

    Source: Xie et al. (2002.03495): P(theta in V) = tau_V / sum tau; measured here rather than derived from waiting times.
    """
    inside, beyond = (torch.as_tensor(s).detach().to(F64) for s in starts)
    if outside(valley, inside, potential.value) or not outside(valley, beyond, potential.value):
        raise ArgumentError("starts: expected a point inside of the valley and one outside of it")
    half, generator = count("walkers", walkers, 4) // 2, torch.Generator().manual_seed(0) if generator is None else generator
    rows = torch.cat([inside.repeat(half, 1), beyond.repeat(half, 1)])
    group = _Walkers(potential, noise, rows, (above("lr", lr), 0.0, generator))
    within, crossings = torch.zeros(2 * half, dtype=F64), torch.zeros(2 * half, dtype=F64)
    before, burnt = None, count("updates", updates, 2) // 2
    for t in range(updates):
        now = valley.inside(group.step(), potential.value)
        if t >= burnt:
            within += now
            crossings += now != before if before is not None else 0
            before = now
    if not torch.isfinite(group.thetas).all():
        raise ArgumentError(f"lr: a walker diverged at lr = {lr:g}; lower it or the noise")
    return occupied(within.numpy() / (updates - burnt), float(crossings.mean()))


def occupied(shares: NDArray[np.float64], crossings: float) -> Occupation:
    """From the share of its time that each walker spent inside to the log odds, with the delta method.

    log odds = log(p / (1 - p)) with p the mean share, stderr = std(shares) / sqrt(W) / (p (1 - p)) with n - 1 in std;
    apart = (log odds of the first half - those of the second) / sqrt(stderr_1^2 + stderr_2^2).

    Args:
        shares: [W], in [0, 1], W >= 4; the first half are the walkers that began inside, the second the others.
        crossings: passages a walker.

    Returns:
        The occupation; infinite log odds and error where one side was never visited, `apart` where its error is 0 or infinite.
    """
    half = len(shares) // 2

    def odds(part: NDArray[np.float64]) -> tuple[float, float]:
        p = float(part.mean())
        if not 0 < p < 1:
            return (inf if p else -inf), inf
        return log(p / (1 - p)), float(part.std(ddof=1)) / sqrt(len(part)) / (p * (1 - p))

    value, stderr = odds(shares)
    (a, error_a), (b, error_b) = odds(shares[:half]), odds(shares[half:])
    scale = sqrt(error_a**2 + error_b**2)
    return Occupation(value, stderr, crossings, (a - b) / scale if isfinite(scale) and scale > 0 else inf)
