"""How far the batch can grow: noise scales, the learning rate and the steps they imply, and when an SDE stands for SGD."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from sgdscope.errors import ArgumentError
from sgdscope.theory.inputs import above, array, covariance, fraction, symmetric
from sgdscope.theory.prediction import Prediction
from sgdscope.theory.stability import stability_threshold

SMALL = 0.1  # of the threshold of stability, or of the data in a batch: beyond it the limit is off by about as much


def noise_scale(gradient: Any, noise: Any, hessian: Any = None) -> float:
    """Batch size at which noise and gradient weigh the same.

    Tr C / |G|^2 without a Hessian (B_simple), Tr(H C) / (G^T H G) with one (B_noise).

    Args:
        gradient: G [d], of the full data.
        noise: C [d, d], of one example.
        hessian: H [d, d].

    Returns:
        The scale, in examples; infinite where the gradient vanishes.

    Raises:
        ArgumentError: shapes that do not fit, or G^T H G < 0, where the quadratic model has no best step.

    Source: McCandlish et al. 2018 (1812.06162), section 2 (derived anew: `optimal_lr`).

    Example:
        >>> noise_scale([3.0, 4.0], np.diag([20.0, 30.0])), noise_scale([3.0, 4.0], np.diag([20.0, 30.0]), np.diag([2.0, 1.0]))
        (2.0, 2.0588235294117645)
    """
    g, c = array("gradient", gradient), covariance("noise", noise)
    h = np.eye(len(g)) if hessian is None else symmetric("hessian", hessian)
    if not c.shape == h.shape == (len(g), len(g)):
        raise ArgumentError(f"noise, hessian: expected [{len(g)}, {len(g)}] as gradient has, got {c.shape} and {h.shape}")
    along = float(g @ h @ g)
    if along < 0:
        raise ArgumentError(f"hessian: expected G^T H G >= 0, got {along:.6g}; along this gradient the loss curves down")
    return float(np.sum(h * c)) / along if along > 0 else math.inf


def optimal_lr(batch_size: float, *, largest: float, scale: float) -> float:
    """Learning rate that lowers a quadratic loss most in one update, largest / (1 + B_noise / B).

    From E[L(theta - lr g)] = L - lr |G|^2 + lr^2 / 2 (G^T H G + Tr(H C) / B); largest = |G|^2 / (G^T H G).

    Args:
        batch_size: B > 0.
        largest: the best learning rate without noise, > 0.
        scale: B_noise >= 0, `noise_scale` with the Hessian.

    Returns:
        The learning rate.

    Raises:
        ArgumentError: out of range.

    Source: McCandlish et al. 2018 (1812.06162), equation 2.6 (derived anew, tested on the quadratic).

    Example:
        >>> round(optimal_lr(64, largest=0.5, scale=192), 9)
        0.125
    """
    above(batch_size=batch_size, largest=largest)
    _scale(scale)
    return largest / (1 + scale / batch_size)


def steps_and_examples(batch_size: float, *, least_steps: float, least_examples: float) -> tuple[float, float]:
    """Updates and examples to reach a loss: S = S_min (1 + B_c / B), E = E_min (1 + B / B_c), B_c = E_min / S_min.

    Hence (S / S_min - 1)(E / E_min - 1) = 1, if every update has its best learning rate and B_noise does not change.

    Args:
        batch_size: B > 0.
        least_steps: S_min > 0, as B grows without bound.
        least_examples: E_min > 0, as B goes to 0.

    Returns:
        (updates, examples).

    Raises:
        ArgumentError: out of range.

    Source: McCandlish et al. 2018 (1812.06162), equation 2.11 (follows from `optimal_lr`).

    Example:
        >>> steps_and_examples(250, least_steps=400, least_examples=200_000)
        (1200.0, 300000.0)
    """
    above(batch_size=batch_size, least_steps=least_steps, least_examples=least_examples)
    critical = least_examples / least_steps
    return least_steps * (1 + critical / batch_size), least_examples * (1 + batch_size / critical)


def two_batch_moments(batches: tuple[int, int], squares: tuple[float, float]) -> tuple[float, float]:
    """Squared gradient and trace of the noise from mean squared norms of gradients over batches of two sizes.

    |G|^2 = (B_b q_b - B_s q_s) / (B_b - B_s), Tr C = (q_s - q_b) / (1 / B_s - 1 / B_b). Both are unbiased, their ratio is not:
    average each over updates first, divide last.

    Args:
        batches: (small, big), small < big.
        squares: mean of |g|^2 at the two sizes, in that order.

    Returns:
        (|G|^2, Tr C); either may be negative by chance.

    Raises:
        ArgumentError: sizes out of order.

    Source: McCandlish et al. 2018 (1812.06162), appendix A.1.

    Example:
        >>> two_batch_moments((4, 16), (5.0, 3.5))
        (3.0, 8.0)
    """
    small, big = batches
    if not 0 < small < big:
        raise ArgumentError(f"batches: expected 0 < small < big, got {batches}")
    low, high = squares
    return (big * high - small * low) / (big - small), (low - high) / (1 / small - 1 / big)


def largest_rescaling(noise_to_signal: float) -> Prediction:
    """Factor of batch and learning rate at which linear scaling breaks, by the ratio of noise to signal at the base setting.

    1 + NSR, NSR = Tr Cov(g_S) / E|G|^2 at the stationary law. On a quadratic with one curvature 1 + NSR = 2 / (lr lambda)
    exactly, so that this is the edge of stability; with several curvatures it lies beyond the edge of the sharpest. Stay
    far below.

    Args:
        noise_to_signal: NSR >= 0, of the gradient of one batch, in equilibrium.

    Returns:
        The factor, an upper bound; flagged below 2, where the base setting itself is no SDE.

    Raises:
        ArgumentError: out of range.

    Source: Li, Malladi, Arora 2021 (2102.12470) for the condition NSR >> kappa, recalled; derived here on the quadratic.

    Example:
        >>> largest_rescaling(19.0).value
        20.0
    """
    if not (math.isfinite(noise_to_signal) and noise_to_signal >= 0):
        raise ArgumentError(f"noise_to_signal: expected a finite number >= 0, got {noise_to_signal}")
    value = 1 + noise_to_signal
    if value >= 2:
        return Prediction(value, "upper bound")
    return Prediction(value, "upper bound", (f"1 + NSR = {value:.3g}: already the base setting is not described by an SDE",))


def svag_weights(level: int) -> tuple[float, float]:
    """Weights of two independent batch gradients that keep the mean and multiply the covariance by l.

    (1 +- sqrt(2 l - 1)) / 2; with learning rate lr / l and l times as many updates the walk tends to its SDE as l grows.

    Args:
        level: l >= 1; 1 is SGD.

    Returns:
        The two weights.

    Raises:
        ArgumentError: level < 1.

    Source: Li, Malladi, Arora 2021 (2102.12470), recalled; mean and covariance tested.

    Example:
        >>> svag_weights(5)
        (2.0, -1.0)
    """
    if level < 1:
        raise ArgumentError(f"level: expected >= 1, got {level}")
    root = math.sqrt(2 * level - 1)
    return (1 + root) / 2, (1 - root) / 2


def sde_reasons(
    *,
    lr: float,
    curvature: float,
    momentum: float = 0.0,
    batch_size: int | None = None,
    examples: int | None = None,
    noise_to_signal: float | None = None,
) -> tuple[str, ...]:
    """What speaks against describing SGD by a stochastic differential equation here; nothing where it may.

    lr lambda_1 above a tenth of the threshold of stability; a batch above a tenth of the data (1 - S / N, central limit); a
    ratio of noise to signal below 10.

    Args:
        lr: learning rate, > 0.
        curvature: lambda_1, of any sign.
        momentum: 0 <= mu < 1.
        batch_size: S.
        examples: N, with ``batch_size``.
        noise_to_signal: of one batch's gradient.

    Returns:
        The reasons.

    Raises:
        ArgumentError: out of range.

    Source: sharpest directions, sections 5.3, 6 and 7.

    Example:
        >>> sde_reasons(lr=0.1, curvature=4.0)
        ('lr lambda_1 = 0.4 is 0.2 of the threshold of stability: predictions of the SDE are off by about that share',)
    """
    above(lr=lr)
    fraction(momentum=momentum)
    reasons: tuple[str, ...] = ()
    edge = curvature / stability_threshold("sgd", lr, momentum=momentum)[0]
    if edge > SMALL:
        reasons += (
            f"lr lambda_1 = {lr * curvature:.3g} is {edge:.3g} of the threshold of stability: "
            "predictions of the SDE are off by about that share",
        )
    if batch_size is not None and examples is not None and batch_size / examples > SMALL:
        reasons += (f"a batch is {batch_size / examples:.3g} of the data: its noise is smaller by 1 - S / N",)
    if noise_to_signal is not None and noise_to_signal < 1 / SMALL:
        reasons += (f"noise to signal is {noise_to_signal:.3g}: the gradient is not dominated by its noise",)
    return reasons


def _scale(scale: float) -> None:
    if not scale >= 0:
        raise ArgumentError(f"scale: expected >= 0, got {scale}")
