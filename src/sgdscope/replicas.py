"""Replicas of one start that made different numbers of updates: their weights, the contraction of an update, their average.

Cheng, Li & Zhang (arXiv 1708.04801; JPDC 145, 2020). Only the abstract could be read; the geometric weights are as recalled
from the body, and held against the exact mean squared error of a quadratic (`theory.averaging`) in the tests.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy.optimize import minimize_scalar
from torch import Tensor

from sgdscope.errors import ArgumentError, NotAvailableError, Outcome, unknown

Scheme = Literal["geometric", "proportional", "equal", "fastest", "optimal"]
SCHEMES: tuple[Scheme, ...] = get_args(Scheme)
ROUNDING = 1e-12  # relative: 0.29 a second in 100 seconds are 29 updates, not 28.999999999999996
BLOCK = 1 << 20  # elements summed at a time: the block of the sum stays in the cache while each replica is read once


# --- weights ---------------------------------------------------------------------------------------------------------


def weights(
    workloads: ArrayLike,
    scheme: Scheme = "geometric",
    *,
    rate: float | None = None,
    distance: float | None = None,
    variance: float | None = None,
) -> Tensor:
    """Weights of replicas that made different numbers of updates from one start.

    With T_i updates of replica i, T = max_i T_i and contraction c = 1 - rate of an update (rate = lambda eta on a quadratic):
    geometric omega_i ~ c^(T - T_i); proportional ~ T_i; equal ~ 1; fastest: the first one with T_i = T
    alone; optimal: the minimum of (sum_i omega_i b_i)^2 + sum_i omega_i^2 v_i over sum_i omega_i = 1 with
    b_i = distance c^T_i and v_i = variance (1 - c^(2 T_i)), the mean squared error of the average on a quadratic; some can be
    negative.
    Limits: geometric with rate 0 is equal, with rate 1 the mean of those with T_i = T.

    Args:
        workloads: T_i [k] >= 0, not all 0.
        scheme: which.
        rate: 0 <= rate <= 1; for geometric and optimal.
        distance: |theta_0 - minimum| > 0; for optimal.
        variance: stationary E|theta - minimum|^2 of a replica, > 0; for optimal.

    Returns:
        omega [k] float64, of sum 1.

    Raises:
        ArgumentError: no workload, a negative or not finite one, or a sum of 0; an option out of range or missing.
        UnknownNameError: an unknown scheme.

    Source: section 3 of the paper, as recalled; optimal: the specification's exact test, (b b' + diag v)^-1 1.

    Example:
        >>> weights([30, 30, 10], rate=0.05).tolist()  # 0.95 ** 20 = 0.358...
        [0.4240..., 0.4240..., 0.1519...]
    """
    counts = _workloads(workloads)
    delays = counts.max() - counts
    if scheme == "equal":
        raw = torch.ones_like(counts)
    elif scheme == "proportional":
        raw = counts
    elif scheme == "fastest":
        raw = torch.nn.functional.one_hot(delays.argmin(), len(counts)).double()
    elif scheme == "geometric":
        raw = (1 - check_rate(rate, scheme)) ** delays
    elif scheme == "optimal":
        raw = _optimal(
            counts, 1 - check_rate(rate, scheme), check_positive("distance", distance), check_positive("variance", variance)
        )
    else:
        error = unknown("scheme", str(scheme), SCHEMES)
        raise error
    return raw / raw.sum()


def _workloads(workloads: ArrayLike) -> Tensor:
    counts = torch.as_tensor(np.asarray(workloads, np.float64))
    if counts.ndim != 1 or not len(counts):
        raise ArgumentError(f"workloads: expected the updates of at least one worker [k], got shape {tuple(counts.shape)}")
    if not bool(torch.isfinite(counts).all()) or bool((counts < 0).any()):
        raise ArgumentError(f"workloads: expected finite numbers >= 0, got {counts.tolist()}")
    if not bool(counts.any()):
        raise ArgumentError("workloads: they sum to zero, so no worker has made an update; give a later deadline")
    return counts


def check_rate(rate: float | None, scheme: str) -> float:
    """Check the contraction of an update, 0 <= rate <= 1, that a scheme needs."""
    if rate is None:
        raise ArgumentError(f"rate: the scheme '{scheme}' needs the contraction of an update, 0 <= rate <= 1; see fit_rate")
    if not 0 <= rate <= 1:
        raise ArgumentError(f"rate: expected 0 <= rate <= 1, got {rate!r}")
    return float(rate)


def check_positive(name: str, value: float | None) -> float:
    """Check a number > 0 that the scheme 'optimal' needs."""
    if value is None or not (value > 0 and math.isfinite(value)):
        raise ArgumentError(f"{name}: the scheme 'optimal' needs a finite number > 0, got {value!r}")
    return float(value)


def _optimal(counts: Tensor, contraction: float, distance: float, variance: float) -> Tensor:
    """The minimum under sum 1, by its normal equations; the shortest one where workers without updates make several."""
    k = len(counts)
    bias, noise = distance * contraction**counts, variance * (1 - contraction ** (2 * counts))
    system = torch.ones(k + 1, k + 1, dtype=torch.float64)
    system[:k, :k] = torch.outer(bias, bias) + torch.diag(noise)
    system[k, k] = 0
    wanted = torch.zeros(k + 1, 1, dtype=torch.float64)
    wanted[k] = 1
    found: Tensor = torch.linalg.lstsq(system, wanted, driver="gelsd").solution[:k, 0]
    return found


def finished(
    speeds: ArrayLike,
    deadline: float,
    *,
    scatter: float = 0.0,
    straggling: float = 0.0,
    slowdown: float = 10.0,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Updates that simulated workers have finished at a deadline.

    T_i = floor(s_i deadline f_i), f_i = exp(scatter z_i - scatter^2 / 2) with z_i standard normal (mean 1), divided by
    `slowdown` with probability `straggling`.

    Args:
        speeds: s_i [k] >= 0, updates a unit of time; 0 for a worker that is dead.
        deadline: > 0, in the same unit of time.
        scatter: standard deviation of the logarithm of a speed, >= 0.
        straggling: probability of a straggler, 0 to 1.
        slowdown: by which a straggler is slower, >= 1.
        generator: draws; not needed without scatter and stragglers.

    Returns:
        T_i, whole numbers.

    Raises:
        ArgumentError: a number is out of its range, or there is nothing to draw from.

    Example:
        >>> finished([10.0, 2.5], 30)
        [300, 75]
    """
    rates = torch.as_tensor(np.asarray(speeds, np.float64))
    inside = rates.ndim == 1 and len(rates) and bool((torch.isfinite(rates) & (rates >= 0)).all())
    if not inside:
        raise ArgumentError(f"speeds: expected finite numbers >= 0, one a worker, got {speeds!r}")
    if not (deadline > 0 and math.isfinite(deadline)):
        raise ArgumentError(f"deadline: expected a finite number > 0, got {deadline!r}")
    if not scatter >= 0 or not 0 <= straggling <= 1 or not slowdown >= 1:
        got = f"{scatter!r}, {straggling!r} and {slowdown!r}"
        raise ArgumentError(f"scatter, straggling, slowdown: expected >= 0, 0 to 1 and >= 1, got {got}")
    if scatter or straggling:
        if generator is None:
            raise ArgumentError("generator: scatter and stragglers are drawn; give a torch.Generator with a seed")
        normal = torch.randn(len(rates), dtype=torch.float64, generator=generator)
        late = torch.rand(len(rates), dtype=torch.float64, generator=generator) < straggling
        rates = rates * torch.exp(scatter * normal - scatter**2 / 2) / torch.where(late, slowdown, 1.0)
    return [math.floor(n * (1 + ROUNDING)) for n in (rates * deadline).tolist()]


# --- the contraction of an update --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Contraction:
    """What loss curves say of the contraction of an update.

    Attributes:
        rate: 1 - c, fitted.
        stderr: jackknife over the curves; NaN for one curve.
        floor: the loss towards which they go.
        drop: how much the loss was above it at the start.
        outcome: not_converged where the curves show no decay with an end, so that the rate is not known.
    """

    rate: float
    stderr: float
    floor: float
    drop: float
    outcome: Outcome


def fit_rate(curves: Sequence[ArrayLike]) -> Contraction:
    """Fit the contraction of an update to the loss curves of workers that walk from one start.

    L(t) = floor + drop (1 - rate)^(2 t), the expected loss of SGD on a quadratic with one curvature; least squares over all
    curves together, linear in (floor, drop), bounded search over log rate between 1 / (20 T) and 1.

    Args:
        curves: the loss before update t = 0, 1, ... of each worker, [T_i]; those of workers without updates may be empty.

    Returns:
        The rate with its error. It is not_converged where drop <= 0 or below 3 standard errors, or the rate lies within 5 % of a
        bound of the search.

    Raises:
        ArgumentError: fewer than 8 losses in the longest curve, or a loss that is not finite.

    Cost: no pass over the data.

    Source: the expectation of the loss on a quadratic; for other losses the rate is that of the fit.
    """
    series = [np.asarray(curve, np.float64).reshape(-1) for curve in curves]
    longest = max((len(s) for s in series), default=0)
    if longest < 8:
        raise ArgumentError(f"curves: expected one of at least 8 losses, the longest has {longest}; give rate= in its place")
    if not all(np.isfinite(s).all() for s in series):
        raise ArgumentError("curves: expected finite losses; a worker has diverged, leave it out")
    rate, floor, drop, seen = _fitted(series)
    kept = [s for s in series if len(s)]
    spread = math.nan
    if len(kept) > 1:
        left = np.log([_fitted(kept[:i] + kept[i + 1 :])[0] for i in range(len(kept))])
        spread = float(rate * np.sqrt((len(kept) - 1) * left.var()))
    inside = 1.05 / (20 * longest) < rate < 0.95
    outcome = Outcome.ok if drop > 0 and seen and inside else Outcome.not_converged
    return Contraction(rate, spread, floor, drop, outcome)


def _fitted(series: Sequence[NDArray[np.float64]]) -> tuple[float, float, float, bool]:
    """(rate, floor, drop, whether the drop is 3 standard errors) by least squares."""
    times = np.concatenate([np.arange(len(s)) for s in series])
    losses = np.concatenate(series)

    def solved(log_rate: float) -> tuple[float, NDArray[np.float64], NDArray[np.float64]]:
        decay = np.exp(2 * times * np.log1p(-min(np.exp(log_rate), 1 - 1e-12)))
        design = np.stack([np.ones_like(decay), decay], 1)
        found = np.linalg.lstsq(design, losses, rcond=None)[0]
        rest = losses - design @ found
        return float(rest @ rest), found, design

    low, high = math.log(1 / (20 * (times.max() + 1))), 0.0
    grid = np.linspace(low, high, 60)
    best = int(np.argmin([solved(x)[0] for x in grid]))
    around = (grid[max(best - 1, 0)], grid[min(best + 1, 59)])
    at = float(minimize_scalar(lambda x: solved(x)[0], bounds=around, method="bounded", options={"xatol": 1e-6}).x)
    rest, found, design = solved(at)
    error = math.sqrt(max(rest, 0.0) / max(len(losses) - 3, 1) * float(np.linalg.pinv(design.T @ design)[1, 1]))
    return float(np.exp(at)), float(found[0]), float(found[1]), bool(found[1] > 3 * error)


# --- the average -------------------------------------------------------------------------------------------------------


def average(replicas: Sequence[Sequence[Tensor]], weights: Tensor) -> Tensor:
    """Weighted average of replicas, sum_i omega_i theta_i, as one vector.

    Args:
        replicas: of each the tensors of theta, in one order and of one shape over the replicas.
        weights: omega [k], finite.

    Returns:
        [P], at least float32; a replica with all the weight is copied bit for bit.

    Raises:
        ArgumentError: as many weights as replicas, finite, and replicas of one shape, not empty, were expected.

    Cost: each replica is read once; no copy of the replicas.
    """
    omega = torch.as_tensor(weights, dtype=torch.float64).tolist()
    if len(omega) != len(replicas) or not omega:
        raise ArgumentError(f"weights: expected one a replica, got {len(omega)} for {len(replicas)} replicas")
    if not all(map(math.isfinite, omega)):
        raise ArgumentError(f"weights: expected finite numbers, got {omega}")
    if not any(t.numel() for t in replicas[0]):
        raise ArgumentError("replicas: expected tensors of at least one number, replica 0 has none")
    shapes = [[tuple(t.shape) for t in replica] for replica in replicas]
    if odd := next((i for i, own in enumerate(shapes) if own != shapes[0]), 0):
        raise ArgumentError(f"replicas: expected the shapes of replica 0, {shapes[0]}, got {shapes[odd]} in replica {odd}")
    kinds = [torch.promote_types(t.dtype, torch.float32) for t in replicas[0]]
    size = sum(t.numel() for t in replicas[0])
    total = torch.empty(size, dtype=max(kinds, key=lambda d: torch.finfo(d).bits), device=replicas[0][0].device)
    kept = [(w, replica) for w, replica in zip(omega, replicas, strict=True) if w] or [(0.0, replicas[0])]
    place = 0
    with torch.no_grad():
        for n, tensor in enumerate(replicas[0]):
            flat = [(w, replica[n].detach().reshape(-1)) for w, replica in kept]
            for first in range(0, tensor.numel(), BLOCK):
                last = min(first + BLOCK, tensor.numel())
                _add_up(total[place + first : place + last], [(w, values[first:last]) for w, values in flat])
            place += tensor.numel()
    return total


def _add_up(block: Tensor, parts: Sequence[tuple[float, Tensor]]) -> None:
    (first, values), others = parts[0], parts[1:]
    if first == 1:
        block.copy_(values)
    else:
        torch.mul(values, first, out=block)
    for w, more in others:
        block.add_(more, alpha=w)


_OTHERS = "the result is the weighted average of the others"


@dataclass(frozen=True)
class Combination:
    """What the members of a parallel walk say together.

    Attributes:
        theta: [P], the weighted average.
        weights: one a member; 0 for those that are lost, or the share of the updates that an asynchronous centre has of them.
        workloads: updates of each member.
        lost: numbers of the members that are lost.
        scheme: of the weights.
        rate: contraction of an update; None where the weights need none.
        fitted: how the rate was fitted; None where it was given.
    """

    theta: Tensor
    weights: tuple[float, ...]
    workloads: tuple[int, ...]
    lost: tuple[int, ...]
    scheme: str
    rate: float | None
    fitted: Contraction | None = None

    @property
    def sentence(self) -> str:
        """What was averaged, in words."""
        k, kept = len(self.weights), len(self.weights) - len(self.lost)
        rest = "what they had added stays" if any(self.weights[i] for i in self.lost) else _OTHERS
        gone = f"; lost: {', '.join(map(str, self.lost))}, {rest}" if self.lost else ""
        how = "" if self.rate is None else f" (rate {self.rate:.3g}{', fitted' if self.fitted else ''})"
        counts = f"{min(self.workloads)} to {max(self.workloads)} updates"
        return f"{self.scheme} weights{how} over {kept} of {k} members with {counts}{gone}"


def combined(
    replicas: Sequence[Sequence[Tensor] | None],
    workloads: Sequence[int],
    *,
    scheme: Scheme = "geometric",
    rate: float | None = None,
    losses: Sequence[ArrayLike] | None = None,
    distance: float | None = None,
    variance: float | None = None,
) -> Combination:
    """Combine replicas, some of which may be lost.

    Args:
        replicas: the tensors of theta of each; None for a worker that is lost.
        workloads: updates of each.
        scheme: of `weights`.
        rate: contraction of an update; fitted to the losses if None and the scheme needs one.
        losses: the loss curve of each worker, from which the rate is fitted.
        distance: see `weights`.
        variance: see `weights`.

    Returns:
        The combination of those that are left; a lost one has weight 0.

    Raises:
        ArgumentError: all workers are lost, one of the others has diverged, or see `weights`.
        NotAvailableError: the rate is to be fitted and the losses show none.
    """
    if len(workloads) != len(replicas):
        raise ArgumentError(f"workloads: expected one a replica, got {len(workloads)} for {len(replicas)} replicas")
    left = [i for i, replica in enumerate(replicas) if replica is not None]
    if not left:
        raise ArgumentError(f"replicas: all {len(replicas)} workers are lost, there is nothing to average")
    counts, fitted = [workloads[i] for i in left], None
    if rate is None and scheme in {"geometric", "optimal"} and len(set(_workloads(counts).tolist())) > 1:
        fitted = _from_curves([losses[i] for i in left] if losses is not None else None)
        rate = fitted.rate
    even = rate is None and scheme in {"geometric", "optimal"}  # equal workloads: any rate gives equal weights
    omega = weights(counts, "equal" if even else scheme, rate=rate, distance=distance, variance=variance)
    every = [0.0] * len(replicas)
    for i, w in zip(left, omega.tolist(), strict=True):
        every[i] = w
    theta = average([r for r in replicas if r is not None], omega)
    if not bool(theta.isfinite().all()):
        error = _diverged(replicas)
        raise error
    lost = tuple(i for i in range(len(replicas)) if i not in left)
    told = rate if scheme in {"geometric", "optimal"} else None
    return Combination(theta, tuple(every), tuple(map(int, workloads)), lost, scheme, told, fitted)


def _diverged(replicas: Sequence[Sequence[Tensor] | None]) -> ArgumentError:
    odd = [i for i, r in enumerate(replicas) if r is not None and not all(bool(t.isfinite().all()) for t in r)]
    who = f"worker {odd[0]} has parameters that are not finite" if odd else "the average is not finite"
    return ArgumentError(f"replicas: {who}; leave it out as one that is lost, or walk with a smaller lr")


def _from_curves(losses: Sequence[ArrayLike] | None) -> Contraction:
    if losses is None:
        raise ArgumentError("rate: expected 0 <= rate <= 1, or losses from which it is fitted; got neither")
    fitted = fit_rate(losses)
    if fitted.outcome is not Outcome.ok:
        raise NotAvailableError(
            f"rate: the losses show no decay that ends (fit: rate {fitted.rate:.3g}, drop {fitted.drop:.3g}), so that no "
            "contraction can be fitted; give rate=, or the scheme 'proportional'"
        )
    return fitted
