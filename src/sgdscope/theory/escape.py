"""Mean times of escape over a barrier under white noise and noise shaped like the Hessian; rates add, valleys share.

Times are in units of learning rate x updates (`Time.updates` converts). "Well": detected in the next valley, past the saddle;
"saddle": detected at the saddle, from where half the walks fall back, so half the time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sgdscope.errors import ArgumentError
from sgdscope.ranges import choice, whole
from sgdscope.theory.barrier import Barrier, coarse, detected, rare
from sgdscope.theory.inputs import Array, above, array
from sgdscope.theory.prediction import Prediction, Time

READINGS = ("isothermal", "ito")


def kramers_time(barrier: Barrier, diffusion: float, *, detect: str = "well") -> Time:
    """Escape under white noise of one strength in all directions, as SGLD.

    tau = 2 pi sqrt(-det H_b / det H_a) / |H_be| exp(dL / D), of d theta = -grad L dt + sqrt(2 D) dW; the next order is a factor
    1 + D `kramers_correction`.

    Args:
        barrier: between the valleys.
        diffusion: D > 0, constant; all readings of the noise agree.
        detect: ``well`` or ``saddle``.

    Returns:
        The mean time; flagged where the barrier is less than 3 D.

    Raises:
        ArgumentError: out of range.

    Source: Kramers 1940; Eyring-Kramers; Xie et al. 2021 (2002.03495) theorem 1.

    Example:
        >>> round(kramers_time(Barrier(0.25, 2.0, -1.0), 0.05).value, 3)
        659.382
    """
    above(diffusion=diffusion)
    ratio = barrier.height / diffusion
    log = math.log(2 * math.pi / barrier.downhill) + barrier.widening + ratio
    return detected(Time(log, "white noise", rare(ratio)), detect)


def kramers_correction(minimum: Sequence[float], saddle: Sequence[float]) -> float:
    """The next order of `kramers_time` in one dimension: its time is multiplied by 1 + c D + O(D^2).

    c = m_a + m_b, m = 5 L'''^2 / (24 |L''|^3) - L'''' / (8 L''^2) at the minimum, with + L'''' at the saddle; from the two
    integrals of Laplace. Holds for detection in the next well.

    Args:
        minimum: (L'', L''', L'''') there, L'' > 0.
        saddle: the same there, L'' < 0.

    Returns:
        c, in 1 / D.

    Raises:
        ArgumentError: not three derivatives, or of the wrong sign.

    Source: diffusion specification S1 (derived; the double well there has c = 1.5).

    Example:
        >>> kramers_correction((2.0, -6.0, 6.0), (-1.0, 0.0, 6.0))
        1.5
    """
    total = 0.0
    for name, values, sign in (("minimum", minimum, 1.0), ("saddle", saddle, -1.0)):
        found = array(name, list(values))
        if len(found) != 3 or sign * found[0] <= 0:
            kind = "> 0" if sign > 0 else "< 0"
            raise ArgumentError(f"{name}: expected (L'', L''', L'''') with L'' {kind}, got {found.tolist()}")
        second, third, fourth = found
        total += 5 * third**2 / (24 * abs(second) ** 3) - sign * fourth / (8 * second**2)
    return float(total)


def hessian_noise_time(
    barrier: Barrier, *, lr: float, batch_size: float, share: float, convention: str = "isothermal", detect: str = "well"
) -> Time:
    """Escape under noise shaped like the Hessian, D = lr |H| / (2 B), as plain SGD near critical points.

    tau = P exp[(2 B dL / lr) (s / H_ae + (1 - s) / |H_be|)], with P = 2 pi / |H_be| where the noise is read isothermally, as the
    paper has it, and 2 pi / H_ae where it is read after Ito, which is what a loop with prescribed noise simulates. Exact at
    low noise in one dimension where D is that of the minimum up to one point and that of the saddle beyond.

    Args:
        barrier: between the valleys.
        lr: learning rate, > 0.
        batch_size: B > 0.
        share: s of the barrier climbed in the noise of the minimum, 0 to 1; `escape_share`.
        convention: ``isothermal`` or ``ito``.
        detect: ``well`` or ``saddle``.

    Returns:
        The mean time; flagged where the exponent is below 3, lr reaches past the quadratic, or in more than one dimension.

    Raises:
        ArgumentError: out of range.

    Source: Xie et al. 2021 (2002.03495) theorem 2 (recalled; confirmed in one dimension by quadrature, specification S2).

    Example:
        >>> round(hessian_noise_time(Barrier(0.25, 2.0, -1.0), lr=0.1, batch_size=2, share=4 / 9).log, 4)
        9.6157
    """
    above(lr=lr, batch_size=batch_size)
    choice("convention", convention, READINGS)
    exponent = 2 * batch_size * barrier.height / lr * barrier.mixed(share)
    front = barrier.downhill if convention == "isothermal" else barrier.uphill
    reasons = rare(exponent) + coarse(barrier, lr)
    if len(barrier.minimum) > 1:
        reasons += ("in more than one dimension the noise across the escape changes the barrier; the prefactor is not safe",)
    return detected(Time(math.log(2 * math.pi / front) + exponent, convention, reasons), detect)


def escape_share(loss_switch: float, loss_minimum: float, loss_saddle: float) -> float:
    """Share s of the barrier climbed before the noise changes from that of the minimum to that of the saddle.

    s = (L(c) - L(a)) / (L(b) - L(a)); exact for piecewise constant noise that switches at c.

    Args:
        loss_switch: L(c).
        loss_minimum: L(a).
        loss_saddle: L(b) > L(a).

    Returns:
        s, 0 to 1.

    Raises:
        ArgumentError: the losses are not in the order a, c, b.

    Source: diffusion specification 1.1 (derived; checked by quadrature).

    Example:
        >>> round(escape_share(1 / 9, 0.0, 1 / 4), 6)
        0.444444
    """
    if not (math.isfinite(loss_switch) and loss_minimum <= loss_switch <= loss_saddle and loss_minimum < loss_saddle < math.inf):
        raise ArgumentError(
            f"loss_switch: expected L(a) <= L(c) <= L(b) and L(a) < L(b), got a {loss_minimum}, c {loss_switch}, b {loss_saddle}"
        )
    return (loss_switch - loss_minimum) / (loss_saddle - loss_minimum)


def path_exponent(positions: Any, gradient: Any, curvature: Any, *, floor: float) -> Prediction:
    """Exponent of the escape time for smooth noise D = lr (|H| + floor) / (2 B) along a path, a unit of B / lr.

    2 int L' / (|H| + floor) ds from minimum to saddle, by the trapezoidal rule over the given points. H changes sign on the
    way, so that without a floor the integral diverges, as log(1 / floor): the share s of `hessian_noise_time` hides this.

    Args:
        positions: arc length [n] from minimum to saddle, increasing.
        gradient: L' along the path [n].
        curvature: second derivative along the path [n].
        floor: > 0, loss/theta^2.

    Returns:
        The exponent, to be multiplied by B / lr, in theta units of the path; flagged where the points do not resolve the dip
        of |H| + floor.

    Raises:
        ArgumentError: a wrong shape, points out of order, or floor <= 0.

    Source: diffusion specification S3 (derived).

    Example:
        >>> x = np.linspace(-1, 0, 20001)
        >>> round(path_exponent(x, x**3 - x, 3 * x**2 - 1, floor=0.1).value, 4)
        1.1055
    """
    s, pull, bend = (array(name, v) for name, v in (("positions", positions), ("gradient", gradient), ("curvature", curvature)))
    if not (s.shape == pull.shape == bend.shape and len(s) >= 2):
        raise ArgumentError(f"positions: expected three arrays [n] with n >= 2, got {s.shape}, {pull.shape}, {bend.shape}")
    if (np.diff(s) <= 0).any():
        raise ArgumentError("positions: expected increasing arc length from the minimum to the saddle")
    above(floor=floor)
    reasons: tuple[str, ...] = ()
    crossing = np.signbit(bend[1:]) != np.signbit(bend[:-1])
    if crossing.any() and (widest := float(np.abs(np.diff(bend))[crossing].max())) > floor:
        reasons = (f"the curvature jumps by {widest:.3g} where it changes sign, more than floor = {floor:.3g}: take more points",)
    return Prediction(2 * float(np.trapezoid(pull / (np.abs(bend) + floor), s)), "per B / lr", reasons)


def equivalent_share(exponent: float, barrier: Barrier) -> float:
    """The share s with which `hessian_noise_time` has an exponent that was integrated along a path.

    s = (E / (2 dL) - 1 / |H_be|) / (1 / H_ae - 1 / |H_be|); outside 0 to 1 no piecewise noise gives that exponent.

    Args:
        exponent: E, a unit of B / lr, from `path_exponent`.
        barrier: between the valleys, with H_ae other than |H_be|.

    Returns:
        s.

    Raises:
        ArgumentError: the two curvatures are equal, so that any s gives the same.

    Example:
        >>> round(equivalent_share(0.388889, Barrier(0.25, 2.0, -1.0)), 4)
        0.4444
    """
    at, over = 1 / barrier.uphill, 1 / barrier.downhill
    if at == over:
        raise ArgumentError("barrier: H_ae equals |H_be|, so that the exponent does not depend on s")
    return (exponent / (2 * barrier.height) - over) / (at - over)


def power_law_exponent(curvature: float, *, lr: float, batch_size: float, dims: int = 1) -> Prediction:
    """Exponent with which the escape time grows in L(b) / L(a) where the noise is 2 L H, as of the mean squared error.

    tau ~ (L(b) / L(a))^(B / (lr h) + 1 - n / 2): the barrier of the logarithm of the loss decides, not that of the loss.

    Args:
        curvature: h > 0 of the minimum along the escape.
        lr: learning rate, > 0.
        batch_size: B > 0.
        dims: n >= 1, number of curved directions.

    Returns:
        The exponent, marked as recalled; only ratios of times follow from it.

    Raises:
        ArgumentError: out of range.

    Source: Mori et al. 2022 (2105.09557), recalled; confirmed for n = 1 (Ito) by quadrature.

    Example:
        >>> power_law_exponent(2.0, lr=0.1, batch_size=1).value
        5.5
    """
    above(curvature=curvature, lr=lr, batch_size=batch_size)
    whole("dims", dims, 1)
    return Prediction(batch_size / (lr * curvature) + 1 - dims / 2, "Ito, noise 2 L H", recalled=True)


def saddle_variance(curvature: float, diffusion: float, time: float) -> float:
    """Variance along a direction of negative curvature after a time, in the limit of small steps.

    D / |H| (exp(2 |H| t) - 1); with D = lr |H| / (2 B), as SGD, the front does not depend on H, so flat directions are slow.
    `transient_variance` has the discrete form.

    Args:
        curvature: |H| > 0.
        diffusion: D > 0.
        time: t >= 0, learning rate x updates.

    Returns:
        The variance, theta^2.

    Raises:
        ArgumentError: out of range.

    Source: Xie et al. 2022 (2006.15815), derived here.

    Example:
        >>> round(saddle_variance(2.0, 0.3, 0.5), 6)
        0.958358
    """
    above(curvature=curvature, diffusion=diffusion)
    if not (math.isfinite(time) and time >= 0):
        raise ArgumentError(f"time: expected a finite number >= 0, got {time}")
    return diffusion / curvature * math.expm1(2 * curvature * time)


def parallel_time(times: Sequence[Time]) -> Time:
    """Escape over whichever of several saddles comes first: rates add, 1 / tau = sum 1 / tau_p.

    Args:
        times: over each saddle alone, at least one, all in one convention.

    Returns:
        The mean time, with all their reasons.

    Raises:
        ArgumentError: no times, or of several conventions.

    Source: Xie et al. 2021 (2002.03495) rule 1.

    Example:
        >>> round(parallel_time([Time(math.log(3.0)), Time(math.log(6.0))]).value, 9)
        2.0
    """
    conventions = {time.convention for time in times}
    if len(conventions) != 1:
        raise ArgumentError(f"times: expected times of one convention, got {len(times)} times of {sorted(conventions) or 'none'}")
    log = -float(np.logaddexp.reduce([-time.log for time in times]))
    reasons = tuple(dict.fromkeys(reason for time in times for reason in time.reasons))
    return Time(log, conventions.pop(), reasons, any(time.recalled for time in times))


def occupation(times: Sequence[Time]) -> Array:
    """Share of the time that a walk spends in each valley, by the mean times of leaving them.

    p_v = tau_v / sum_u tau_u: exact for two valleys, and for more where every valley leads to every other alike.

    Args:
        times: of leaving each valley, at least two.

    Returns:
        [valleys], adding up to 1.

    Raises:
        ArgumentError: fewer than two.

    Source: Xie et al. 2021 (2002.03495), valley occupation.

    Example:
        >>> occupation([Time(math.log(3.0)), Time(math.log(6.0))]).round(6).tolist()
        [0.333333, 0.666667]
    """
    if len(times) < 2:
        raise ArgumentError(f"times: expected the times of at least two valleys, got {len(times)}")
    logs = np.array([time.log for time in times])
    return np.asarray(np.exp(logs - np.logaddexp.reduce(logs)))
