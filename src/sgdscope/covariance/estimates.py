"""Estimates under their names, as the columns of a measurement: value, standard error, outcome."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from sgdscope.covariance.batches import DrawnBatches
from sgdscope.covariance.matrix import Covariance
from sgdscope.covariance.tails import isotropic_test, power_law, power_law_test, ranks_within
from sgdscope.errors import Outcome

Row = dict[str, Any]

ISOTROPIC = 39  # resamples of isotropic noise at most


def estimate(name: str, value: Any, error: Any) -> Row:
    """A value and its standard error.

    Args:
        name: of the variable.
        value: a number or an array.
        error: of the same shape.

    Returns:
        ``name`` and ``<name>_stderr``.
    """
    return {name: value, f"{name}_stderr": error}


def ratio(above: float, below: float) -> float:
    """Above / below, NaN unless below > 0."""
    return above / below if below > 0 else math.nan


def quotient(name: str, above: tuple[float, float], below: tuple[float, float]) -> Row:
    """A ratio of two independent estimates, whose errors add in quadrature; of the same examples see `Covariance.cosine`.

    Args:
        name: of the variable.
        above: (value, standard error).
        below: likewise; the ratio is NaN unless its value is > 0.

    Returns:
        As `estimate`.

    Example:
        >>> found = quotient("r", (6.0, 0.3), (2.0, 0.2))
        >>> found["r"], round(found["r_stderr"], 6)  # 3 sqrt((0.3 / 6)^2 + (0.2 / 2)^2)
        (3.0, 0.33541)
    """
    value = ratio(above[0], below[0])
    return estimate(name, value, math.hypot(ratio(above[1], below[0]), value * ratio(below[1], below[0])))


def two_sizes(prefix: str, drawn: DrawnBatches, gradient: Tensor) -> Row:
    """Trace, squared gradient and noise scale from products of different batches, with the interval of the ratio.

    Args:
        prefix: of the names.
        drawn: the batches.
        gradient: g [P].

    Returns:
        ``<prefix>_trace``, ``_gradient_square``, ``_noise_scale`` with standard errors, ``_noise_scale_low`` and ``_high``; the
        ratio is not_converged where its interval is not bounded. Empty below three batches.
    """
    found = drawn.two_size_estimates(gradient)
    if not found:
        return {}
    row, name, ends = Row(), f"{prefix}_noise_scale", found.pop("interval")
    outcome = int(Outcome.ok if all(map(math.isfinite, ends)) else Outcome.not_converged)
    for end, value in zip(("_low", "_high"), ends, strict=True):
        row |= {f"{name}{end}": value, f"{name}{end}_outcome": outcome}
    for key, estimated in found.items():
        row |= estimate(f"{prefix}_{key}", *estimated)
    return row | {f"{name}_outcome": outcome}


def spectrum(covariance: Covariance, ranks: tuple[int, int], *, resamples: int, seed: int) -> Row:
    """The power law of the eigenvalues and, with resamples, its tests.

    Args:
        covariance: of m deviations of P parameters.
        ranks: first and last; the end is lowered to the rank of C.
        resamples: of the test of the power law; at most 39 of the one of isotropic noise, whose exponent hardly scatters.
        seed: of the draws.

    Returns:
        ``spectrum_exponent``, ``spectrum_prefactor``, ``spectrum_distance``, ``spectrum_p``, ``spectrum_isotropic_p``;
        empty where fewer than four ranks are left.
    """
    values, parameters = covariance.spectrum[0], covariance.deviations.shape[1]
    window = ranks_within(values, ranks, parameters)
    if window is None:
        return {}
    fit = power_law(values, window)
    row: Row = {"spectrum_exponent": fit.exponent, "spectrum_prefactor": fit.prefactor, "spectrum_distance": fit.distance}
    if not resamples:
        return row
    draws: dict[str, int] = {"seed": seed, "dimensions": parameters, "examples": covariance.count - int(covariance.factor > 1)}
    row["spectrum_p"] = power_law_test(values, fit, resamples=resamples, **draws)[0]
    return row | {"spectrum_isotropic_p": isotropic_test(fit, resamples=min(resamples, ISOTROPIC), **draws)[0]}
