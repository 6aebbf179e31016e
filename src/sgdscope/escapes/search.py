"""The strength of the noise at which a valley is left in a wanted number of updates, by bisection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import inf, log, sqrt

import torch

from sgdscope.errors import ArgumentError
from sgdscope.escapes.noises import Minibatch, White
from sgdscope.escapes.potentials import Potential, above, count
from sgdscope.escapes.run import escape
from sgdscope.escapes.valleys import Valley

WITHIN = (100.0, 2000.0)  # updates, wanted of the median waiting time
NEAR = 1.5  # factor within which the geometric mean of these two is met; a sweep then stays within them; chosen here
STRIDE = 2.0  # factor between two trials until one is too short and one too long


@dataclass(frozen=True)
class Found:
    """What a search ended with.

    Attributes:
        value: of what was varied.
        median: waiting time there, in updates.
        trials: how many values were tried.
    """

    value: float
    median: float
    trials: int


def median_wait(
    potential: Potential,
    valley: Valley,
    noise: Minibatch | White,
    *,
    lr: float,
    walkers: int = 60,
    max_updates: int = 2000,
    generator: torch.Generator | None = None,
) -> float:
    """The number of updates after which half of the walkers have left a valley.

    Args:
        potential: see `escape`.
        valley: see `escape`.
        noise: see `escape`.
        lr: learning rate > 0.
        walkers: at least 2.
        max_updates: after which the walk ends.
        generator: of all noise; it is advanced.

    Returns:
        Updates; infinite where fewer had left at the end, and 0 where a walker diverged, which is a noise too strong.

    Raises:
        ArgumentError: see `escape`.

    Cost: that of `escape`, at most walkers x max_updates gradients.
    """
    count("walkers", walkers, 2)
    found = escape(
        potential, valley, noise, lr=lr, walkers=walkers, max_updates=max_updates, enough=0.5, generator=generator
    )  # fmt: skip
    if found.diverged:
        return 0.0
    return float(found.times.max()) if found.escapes >= round(0.5 * walkers) else inf


def bisect(
    median: Callable[[float], float],
    first: float,
    *,
    name: str,
    most: float = inf,
    within: tuple[float, float] = WITHIN,
    trials: int = 16,
) -> Found:
    """Find the value at which a median waiting time, which falls with it, lies within two numbers of updates.

    Strides of a factor 2 from `first` until one value is too short and one too long, then bisection of the logarithm; it
    ends within a factor 1.5 of the geometric mean sqrt(low high), or after `trials` with the value nearest to that.

    Args:
        median: value -> updates; infinite where half of the walkers never left, 0 where one diverged.
        first: where to begin, > 0.
        name: of what is varied, for the message.
        most: above which nothing is tried.
        within: low and high, updates.
        trials: how many values, at least 1.

    Returns:
        The value with its median.

    Raises:
        ArgumentError: no value that was tried has its median within the two, or an argument is out of range.

    Cost: `trials` medians.

    Example:
        >>> found = bisect(lambda lr: 45 / lr, 1.0, name="lr")
        >>> found.trials, 300 < found.median < 670
        (4, True)
    """
    (low, high), value = within, min(above("first", first), most)
    aim = sqrt(above("within", low, most=high) * high)
    short, long = inf, 0.0  # the least value that is left too soon, the largest that is left too late
    seen: dict[float, float] = {}
    for _ in range(count("trials", trials)):
        seen[value] = now = median(value)
        if aim / NEAR <= now <= aim * NEAR:
            break
        short, long = (min(short, value), long) if now < aim else (short, max(long, value))
        if long >= most:
            break
        value = sqrt(short * long) if long and short < inf else min(value * STRIDE, most) if long else value / STRIDE
    best = min(seen, key=lambda v: abs(log(seen[v] / aim)) if 0 < seen[v] < inf else inf)
    if not low <= seen[best] <= high:
        tried = ", ".join(f"{v:.3g}: {m:g}" for v, m in sorted(seen.items()))
        text = f"{name}: at none of {len(seen)} values do half of the walkers leave after {low:g} to {high:g} updates"
        raise ArgumentError(f"{text} (value: median; inf is censored, 0 diverged): {tried}; change the valley or the data")
    return Found(best, seen[best], len(seen))
