"""Estimates under their names, as the columns of a measurement: value, standard error, outcome."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.covariance.batches import DrawnBatches, pair_values
from sgdscope.covariance.matrix import Covariance, Estimated, fieller
from sgdscope.covariance.tails import isotropic_test, power_law, power_law_test, ranks_within
from sgdscope.errors import Outcome

Array = NDArray[np.float64]
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
    ends, row = found.pop("interval"), Row()
    for key, estimated in found.items():
        row |= estimate(f"{prefix}_{key}", *estimated)
    return row | _interval(f"{prefix}_noise_scale", ends)


def _interval(name: str, ends: tuple[float, float]) -> Row:
    """The ends of an interval and its outcome, not_converged where it is not bounded."""
    outcome = int(Outcome.ok if all(map(math.isfinite, ends)) else Outcome.not_converged)
    row: Row = {f"{name}_outcome": outcome}
    for end, value in zip(("_low", "_high"), ends, strict=True):
        row |= {f"{name}{end}": value, f"{name}{end}_outcome": outcome}
    return row


def curved_scale(
    covariance: Covariance, matvec: Callable[[Tensor], Tensor], gradient: Tensor, *, forms: Array, product: Estimated
) -> Row:
    """Tr(H C) / (G'H G) of the population that was sampled, from pairs of examples, with the errors of both of its parts.

    G'HG = mean over i != j of g_i'H g_j and Tr(HC) = mean g_i'H g_i - G'HG, unbiased, from d_i = g_i - g: their jackknife values
    and Fieller's interval, as of the simple scale; H is taken as known. d_i'H d_i is scattered by the form that is given and
    has the mean that is given.

    Args:
        covariance: of m examples, their mean known.
        matvec: v [P] -> H v [P].
        gradient: g [P], from which the deviations were taken.
        forms: d_i'H d_i [m], or the part of it that varies.
        product: mean d_i'H d_i, and its error that does not come from the examples.

    Returns:
        ``population_curved_noise_scale`` with its standard error, ``_low`` and ``_high``: not_converged where G'HG is not
        separated from zero. Empty below three examples.

    Cost: one product, two where m < N.
    """
    m, d = covariance.count, covariance.deviations
    if m < 3:
        return {}
    image, total = matvec(gradient.to(d)).double().cpu(), d.sum(0)
    bend = float(gradient.double().cpu() @ image)
    along = covariance.project(image[:, None])[:, 0]
    between = covariance.project(matvec(total)[:, None])[:, 0] if covariance.shrink > 0 else np.zeros(m)
    own = forms + (product[0] - forms.mean()) + 2 * along + bend
    traces, squares = pair_values(own, between + m * (along + bend) + along.sum(), 1)
    probes = product[1] ** 2 * np.outer([m, -1], [m, -1]) / (m - 1) ** 2
    value, *ends = fieller(traces, squares, beside=probes)
    (first, cross), (_, second) = (np.cov(traces, squares) / m + probes).tolist()
    error = math.sqrt(max(first - 2 * value * cross + value**2 * second, 0.0)) / abs(float(squares.mean()))
    name = "population_curved_noise_scale"
    return estimate(name, value, error) | _interval(name, (ends[0], ends[1]))


def frobenius(covariance: Covariance) -> Row:
    """|C|_F.

    Args:
        covariance: of gradients.

    Returns:
        ``covariance_frobenius``; not_converged where the unbiased square of few batches does not tell it.
    """
    value, error = covariance.frobenius()
    row = estimate("covariance_frobenius", value, error)
    if math.isfinite(covariance.square[0]) and not math.isfinite(error):
        row["covariance_frobenius_outcome"] = int(Outcome.not_converged)
    return row


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
