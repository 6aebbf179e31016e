"""Mean times of escape with momentum, adaptive inertia and Adam."""

from __future__ import annotations

import math

from sgdscope.theory.barrier import Barrier, coarse, detected, rare
from sgdscope.theory.inputs import above, fraction
from sgdscope.theory.prediction import Prediction, Time

ACTION = 7.2  # 36 / 5: action of the orbit at the top of a cubic barrier, in units of height / frequency


def heavy_ball_time(barrier: Barrier, diffusion: float, *, lr: float, momentum: float, detect: str = "well") -> Time:
    """Escape of SGD with heavy ball under white noise, for any friction that is not small.

    With v <- mu v + g the walk has mass lr and friction 1 - mu: tau = pi (1 - mu) (sqrt(1 + 4 lr |H_be| / (1 - mu)^2) + 1) /
    |H_be| sqrt(-det H_b / det H_a) exp((1 - mu) dL / D). For lr -> 0 this is `kramers_time` of lr / (1 - mu). The form of the
    paper, as recalled, lacks the factor 1 - mu, which is the unit of its time.

    Args:
        barrier: between the valleys.
        diffusion: D = lr c / 2 > 0 of the plain SGD with this lr, c the variance of the gradient.
        lr: learning rate, > 0.
        momentum: 0 <= mu < 1.
        detect: ``well`` or ``saddle``.

    Returns:
        The mean time; flagged where the barrier is low, the friction so low that energy decides, or lr too coarse.

    Raises:
        ArgumentError: out of range.

    Source: Kramers 1940, equation 25 (derived in these units; checked against the spectrum of the Klein-Kramers equation);
        Xie et al. 2022 (2006.15815).
    """
    above(diffusion=diffusion, lr=lr)
    fraction(momentum=momentum)
    friction, ratio = 1 - momentum, (1 - momentum) * barrier.height / diffusion
    log = _inertial(barrier, lr, friction) + barrier.widening + ratio
    rate, frequency = friction / lr, math.sqrt(barrier.uphill / lr)
    reasons = rare(ratio) + coarse(barrier, lr / (1 + momentum))
    if rate * ACTION / frequency * ratio < 1:
        reasons += ("the friction is so low that the walk leaves by slow gain of energy, which the formula leaves out",)
    return detected(Time(log, "white noise, heavy ball", reasons), detect)


def heavy_ball_hessian_time(
    barrier: Barrier, *, lr: float, batch_size: float, share: float, momentum: float, detect: str = "well"
) -> Time:
    """Escape of SGD with heavy ball under noise shaped like the Hessian.

    tau = pi (1 - mu) (sqrt(1 + 4 lr |H_be| / (1 - mu)^2) + 1) / |H_be| exp[(2 (1 - mu) B dL / lr) (s / H_ae + (1 - s) / |H_be|)];
    for adaptive inertia, with 1 - mu of the direction of escape. The exponent as recalled; the factor 1 - mu in front as
    in `heavy_ball_time`. Isothermal.

    Args:
        barrier: between the valleys.
        lr: learning rate, > 0.
        batch_size: B > 0.
        share: s, 0 to 1.
        momentum: 0 <= mu < 1.
        detect: ``well`` or ``saddle``.

    Returns:
        The mean time, marked as recalled.

    Raises:
        ArgumentError: out of range.

    Source: Xie et al. 2022 (2006.15815), recalled.
    """
    above(lr=lr, batch_size=batch_size)
    fraction(momentum=momentum)
    exponent = 2 * (1 - momentum) * batch_size * barrier.height / lr * barrier.mixed(share)
    reasons = rare(exponent) + coarse(barrier, lr / (1 + momentum))
    time = Time(_inertial(barrier, lr, 1 - momentum) + exponent, "isothermal, heavy ball", reasons, recalled=True)
    return detected(time, detect)


def adaptive_inertia_exponent(
    barrier: Barrier, *, lr: float, batch_size: float, mean_curvature: float, beta0: float = 0.1
) -> Prediction:
    """Exponent of log tau under adaptive inertia, 1 - beta1 = beta0 v / mean(v), where beta1 follows the local noise v = |H| / B.

    In the limit of high friction drift and noise are those of SGD with lr mean(v) / (beta0 v), so that the curvature cancels:
    2 beta0 B dL / (lr mean|H|). The paper, as recalled, says that it selects flat minima as SGD does; that is
    `heavy_ball_hessian_time` with one beta1 for the whole path. The two differ, and only an experiment decides.

    Args:
        barrier: between the valleys.
        lr: learning rate, > 0.
        batch_size: B > 0.
        mean_curvature: mean of |H_ii| over all parameters, > 0: that of v times B.
        beta0: > 0.

    Returns:
        The exponent, marked as recalled and flagged as contrary to what is recalled of the paper.

    Raises:
        ArgumentError: out of range.

    Source: Xie et al. 2022 (2006.15815) for the method (authors' code); the exponent derived here.
    """
    above(lr=lr, batch_size=batch_size, mean_curvature=mean_curvature, beta0=beta0)
    reasons = ("contrary to the paper as recalled, where the exponent has the curvature of SGD",)
    value = 2 * beta0 * batch_size * barrier.height / (lr * mean_curvature)
    return Prediction(value, "high friction, beta1 follows the local noise", reasons, recalled=True)


def adam_time(barrier: Barrier, *, lr: float, batch_size: float, share: float, detect: str = "well") -> Time:
    """Escape under Adam where its second moment follows the local noise, v = |H| / B, and noise outweighs the gradient.

    Drift L' sqrt(B / |H|) and D = lr / 2, hence tau = 2 pi / (sqrt(B) (H_ae |H_be|)^(1/4)) exp[(2 sqrt(B) dL / lr)
    (s / sqrt(H_ae) + (1 - s) / sqrt|H_be|)]: a weaker preference for flat valleys than SGD's. D is constant, so no reading of the
    noise enters. One dimension; beta1 changes time and noise alike and drops out while (1 - beta1) >> lr sqrt(B |H|).

    Args:
        barrier: between the valleys; only its curvatures along the escape are used.
        lr: learning rate, > 0.
        batch_size: B > 0.
        share: s, 0 to 1.
        detect: ``well`` or ``saddle``.

    Returns:
        The mean time, marked as recalled: the exponent is the paper's as recalled, the prefactor was derived.

    Raises:
        ArgumentError: out of range.

    Source: Xie et al. 2022 (2006.15815), recalled; confirmed for the walk described here by quadrature.
    """
    above(lr=lr, batch_size=batch_size)
    root = math.sqrt(batch_size)
    exponent = 2 * root * barrier.height / lr * barrier.mixed(share, 0.5)
    front = math.log(2 * math.pi / root) - math.log(barrier.uphill * barrier.downhill) / 4
    reasons = rare(exponent)
    if len(barrier.minimum) > 1:
        reasons += ("the prefactor holds in one dimension only",)
    return detected(Time(front + exponent, "v follows the local noise", reasons, recalled=True), detect)


def _inertial(barrier: Barrier, lr: float, friction: float) -> float:
    root = math.sqrt(1 + 4 * lr * barrier.downhill / friction**2)
    return math.log(math.pi * friction * (root + 1) / barrier.downhill)
