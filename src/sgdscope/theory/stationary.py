"""The covariance of SGD around a minimum, exact for a quadratic at any learning rate, with momentum and any noise."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from sgdscope.errors import ArgumentError
from sgdscope.ranges import choice
from sgdscope.theory.inputs import Array, above, array, covariance, fraction, symmetric
from sgdscope.theory.stability import stability_threshold

METHODS = ("heavy_ball", "nesterov")
NEAR = 0.9  # of the threshold of stability: beyond it a change of the curvature by a tenth decides, so the answer is flagged
APART = 0.05  # relative difference from which a limit is flagged against the exact value


@dataclass(frozen=True)
class Stationary:
    """The law of second order that SGD settles in.

    Attributes:
        covariance: [d, d] of theta - theta*, positive semi-definite.
        joint: [2d, 2d] of the pair (theta - theta*, v), v the velocity as PyTorch keeps it.
        matrix: [2d, 2d], one update of the mean of the pair.
        excess: E[L] - L* = Tr(H Sigma) / 2.
        sharpness: lr times the largest curvature.
        edge: the largest curvature over the threshold of stability of the method; < 1.
        reasons: why the answer is not to be relied on; empty where it is.
    """

    covariance: Array
    joint: Array
    matrix: Array
    excess: float
    sharpness: float
    edge: float
    reasons: tuple[str, ...]

    def lag(self, steps: int) -> Array:
        """Autocovariance E[(theta_{t+k} - theta*) (theta_t - theta*)^T] at k updates.

        The upper left block of A^k Sigma_joint; (I - lr H)^k Sigma without momentum.

        Args:
            steps: k >= 0.

        Returns:
            [d, d]; symmetric only where the noise commutes with H.

        Raises:
            ArgumentError: steps < 0.
        """
        if steps < 0:
            raise ArgumentError(f"steps: expected >= 0, got {steps}; the lag -k is the transpose of the lag k")
        size = len(self.covariance)
        moved = np.linalg.matrix_power(self.matrix, steps) @ self.joint
        return np.asarray(moved[:size, :size])


def stationary_covariance(
    hessian: Any, noise: Any, *, lr: float, batch_size: float = 1, momentum: float = 0.0, method: str = "heavy_ball"
) -> Stationary:
    """Covariance of SGD on a quadratic, for any noise that does not depend on theta.

    v <- mu v + g, theta <- theta - lr v (heavy ball) or theta <- theta - lr (g + mu v) (Nesterov, as PyTorch), with
    g = H (theta - theta*) + xi, Cov xi = C / S, independent over updates. The pair (theta, v) is linear,
    z' = A z + G xi, so that Sigma = A Sigma A^T + G (C/S) G^T (discrete Lyapunov); in the eigenbasis of H this is one
    4 x 4 system for each pair of directions. Without momentum: H Sigma + Sigma H - lr H Sigma H = lr C / S.

    Args:
        hessian: H [d, d], positive definite, loss/theta^2.
        noise: C [d, d], covariance of one example's gradient, (loss/theta)^2.
        lr: learning rate, > 0, with lr lambda_1 below the threshold of stability.
        batch_size: S > 0; 1 / `replacement_factor` where batches are drawn without replacement.
        momentum: 0 <= mu < 1.
        method: ``heavy_ball`` or ``nesterov``.

    Returns:
        The covariances; flagged where the largest curvature exceeds 0.9 of the threshold.

    Raises:
        ArgumentError: a wrong shape or range, a curvature <= 0 (no stationary law), or one at or beyond the threshold.

    Cost: one eigendecomposition of H and d^2 systems of 4 x 4; 300 d^2 bytes.

    Source: diffusion specification S4, S5; sharpest directions, section 0, oracle 1 (own derivation, checked by simulation).

    Example:
        >>> found = stationary_covariance(1.7, 0.9, lr=0.2, momentum=0.8)
        >>> round(float(found.covariance[0, 0]), 10)
        0.2923132443
    """
    curvature, noises = _pair(hessian, noise)
    choice("method", method, METHODS)
    above(lr=lr, batch_size=batch_size)
    fraction(momentum=momentum)
    values, vectors = np.linalg.eigh(curvature)
    edge = _edge(values, lr, momentum, method == "nesterov")
    steps, push = _update(values, lr, momentum, method)
    turned = vectors.T @ noises @ vectors / batch_size
    blocks = _blocks(steps, push, turned)  # [d, d, 2, 2]
    turn = np.kron(np.eye(2), vectors)
    size = len(values)
    joint = _semidefinite(turn @ blocks.transpose(2, 0, 3, 1).reshape(2 * size, 2 * size) @ turn.T)
    matrix = turn @ np.einsum("iab,ij->aibj", steps, np.eye(size)).reshape(2 * size, 2 * size) @ turn.T
    theta = joint[:size, :size]
    reasons = _near(edge)
    return Stationary(theta, joint, matrix, float(np.sum(curvature * theta)) / 2, float(lr * values[-1]), edge, reasons)


def stationary_variance(curvature: Any, noise: Any, *, lr: float, batch_size: float = 1, momentum: float = 0.0) -> Array:
    """Variance along the eigenvectors of H, for heavy ball at finite learning rate; the noise may have any other entries.

    Var_i = (lr C_ii) / (S lambda_i) (1 + mu) / ((1 - mu) (2 (1 + mu) - lr lambda_i)). The off-diagonal entries of C do not
    enter. A nudged direction (its gradient times gamma) has the same with lr gamma for lr.

    Args:
        curvature: lambda [d], > 0.
        noise: C_ii [d], >= 0, of one example.
        lr: learning rate, > 0.
        batch_size: S > 0.
        momentum: 0 <= mu < 1.

    Returns:
        [d], theta^2.

    Raises:
        ArgumentError: out of range, or a curvature at or beyond 2 (1 + mu) / lr.

    Source: sharpest directions, section 0, oracles 1 and 3; diffusion specification S5.

    Example:
        >>> stationary_variance([1.7], [0.9], lr=0.2, momentum=0.8).round(10).tolist()
        [0.2923132443]
    """
    values, noises = _vectors(curvature, noise)
    above(lr=lr, batch_size=batch_size)
    fraction(momentum=momentum)
    _edge(np.sort(values), lr, momentum, False)
    return lr * noises * (1 + momentum) / (batch_size * values * (1 - momentum) * (2 * (1 + momentum) - lr * values))


def continuous_covariance(hessian: Any, noise: Any, *, lr: float, batch_size: float = 1, momentum: float = 0.0) -> Array:
    """The limit of small learning rates, H Sigma + Sigma H = lr C / (S (1 - mu)), of the Ornstein-Uhlenbeck process.

    In the eigenbasis of H: Sigma_ij = lr C_ij / (S (1 - mu) (lambda_i + lambda_j)); C = H gives lr / (2 S (1 - mu)) I.
    Off by a factor 2 (1 + mu) / (2 (1 + mu) - lr lambda) along an eigenvector; `stationary_covariance` is exact.

    Args:
        hessian: H [d, d], positive definite.
        noise: C [d, d], of one example.
        lr: learning rate, > 0.
        batch_size: S > 0.
        momentum: 0 <= mu < 1.

    Returns:
        [d, d], theta^2.

    Raises:
        ArgumentError: a wrong shape or range, or a curvature <= 0.

    Source: Jastrzebski et al. 2017 (1711.04623) v3; sharpest directions, section 4.1b (derived anew for any C).

    Example:
        >>> continuous_covariance(np.diag([3.0, 5.0]), np.diag([3.0, 5.0]), lr=0.4, batch_size=8, momentum=0.5).round(3).tolist()
        [[0.05, 0.0], [0.0, 0.05]]
    """
    curvature, noises = _pair(hessian, noise)
    above(lr=lr, batch_size=batch_size)
    fraction(momentum=momentum)
    values, vectors = np.linalg.eigh(curvature)
    _positive(values)
    turned = vectors.T @ noises @ vectors / (values[:, None] + values[None, :])
    return np.asarray(lr / (batch_size * (1 - momentum)) * vectors @ turned @ vectors.T)


def replacement_factor(batch_size: int, examples: int, *, replacement: bool = False, ddof: int = 0) -> float:
    """Covariance of a batch's mean gradient over the covariance of one example's.

    Without replacement (N - B) / (B (N - 1)) of the covariance with 1 / N, or 1 / B - 1 / N of the one with 1 / (N - 1); with
    replacement 1 / B, or (N - 1) / (N B). Of one batch: the batches of one shuffled epoch also depend on each other.

    Args:
        batch_size: B, 1 <= B (<= N without replacement).
        examples: N >= 2.
        replacement: drawn with replacement.
        ddof: 0 or 1: the covariance of one example has 1 / (N - ddof).

    Returns:
        The factor.

    Raises:
        ArgumentError: out of range.

    Source: diffusion specification S6 (checked by enumeration); sharpest directions, section 0, Q7.

    Example:
        >>> round(replacement_factor(5, 12), 7)
        0.1272727
    """
    if examples < 2 or ddof not in {0, 1}:
        raise ArgumentError(f"examples, ddof: expected examples >= 2 and ddof 0 or 1, got {examples} and {ddof}")
    if batch_size < 1 or (batch_size > examples and not replacement):
        raise ArgumentError(f"batch_size: expected 1 to {examples} (any with replacement=True), got {batch_size}")
    if replacement:
        return (examples - ddof) / (examples * batch_size)
    return (examples - batch_size) / (batch_size * (examples - (1 - ddof)))


def transient_variance(curvature: Any, noise: Any, steps: int, *, lr: float, batch_size: float = 1, start: float = 0.0) -> Array:
    """Variance after t updates of plain SGD, at a minimum, on a flat or at a saddle.

    q = (1 - lr h)^2; Var_t = start q^t + (lr^2 c / S) (1 + q + ... + q^(t-1)). For h > 0 this is s (1 - q^t) with s the
    stationary variance; for h < 0, lr c ((1 + lr |h|)^(2t) - 1) / (S |h| (2 + lr |h|)); for h = 0, t lr^2 c / S.

    Args:
        curvature: h [d] along eigenvectors of H, of any sign.
        noise: c [d] >= 0, of one example.
        steps: t >= 0.
        lr: learning rate, > 0.
        batch_size: S > 0.
        start: variance at t = 0, >= 0.

    Returns:
        [d], theta^2; exact for any lr, also beyond 2 / h where it grows.

    Raises:
        ArgumentError: out of range.

    Source: diffusion specification S4.

    Example:
        >>> transient_variance([2.0, -2.0], [3.0, 3.0], 7, lr=0.1, batch_size=4).round(6).tolist()
        [0.019917, 0.201804]
    """
    values, noises = _vectors(curvature, noise, negative=True)
    above(lr=lr, batch_size=batch_size)
    if steps < 0 or not (math.isfinite(start) and start >= 0):
        raise ArgumentError(f"steps, start: expected steps >= 0 and a finite start >= 0, got {steps} and {start}")
    q = (1 - lr * values) ** 2
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        small = lr * values < 0.5  # log1p keeps the digits of a curvature near 0, the difference those of one near 2 / lr
        root = np.where(small, np.log1p(np.where(small, -lr * values, 0.0)), np.log(np.abs(1 - lr * values)))
        grown = np.expm1(2 * steps * root) / (lr * values * (lr * values - 2))
    total = np.where(q == 1, float(steps), np.where(q == 0, float(min(steps, 1)), grown))
    with np.errstate(over="ignore"):
        return np.asarray(start * q**steps + lr**2 * noises / batch_size * total)


@dataclass(frozen=True)
class ExcessLoss:
    """How far above its minimum the loss settles, predicted exactly and by two limits, with what decides between them.

    Attributes:
        exact: Tr(H Sigma) / 2 at the given learning rate.
        sde: lr Tr(C) / (4 S (1 - mu)), the limit of small learning rates, whatever H is.
        three_factors: lr Tr(H) / (4 S (1 - mu)), right only where Tr C = Tr H.
        sharpness: lr lambda_1, to be read beside the limits.
        edge: lambda_1 over the threshold of stability.
        trace_ratio: Tr C / Tr H.
        cosine: Tr(H C) / (|H| |C|), Frobenius norms; NaN without noise.
        slope: of C_ii on lambda_i in the eigenbasis of H, with intercept; NaN where the curvatures are equal.
        reasons: which of the numbers do not hold, and why.
    """

    exact: float
    sde: float
    three_factors: float
    sharpness: float
    edge: float
    trace_ratio: float
    cosine: float
    slope: float
    reasons: tuple[str, ...]

    def __str__(self) -> str:
        numbers = f"exact {self.exact:.4g}, SDE {self.sde:.4g}, by Tr H {self.three_factors:.4g}"
        return "; ".join((f"E[L] - L*: {numbers} (lr lambda_1 = {self.sharpness:.3g})", *self.reasons))


def excess_loss(
    hessian: Any, noise: Any, *, lr: float, batch_size: float = 1, momentum: float = 0.0, method: str = "heavy_ball"
) -> ExcessLoss:
    """The loss above the minimum in which SGD settles on a quadratic, exactly and by the two limits.

    Args:
        hessian: H [d, d], positive definite.
        noise: C [d, d], of one example.
        lr: learning rate, > 0.
        batch_size: S > 0.
        momentum: 0 <= mu < 1.
        method: ``heavy_ball`` or ``nesterov``, of the exact value.

    Returns:
        The three predictions, lr lambda_1, and how far C is from H; flagged where a limit is more than 5 % off.

    Raises:
        ArgumentError: as `stationary_covariance`.

    Source: Jastrzebski et al. 2017 (1711.04623) v3 for Tr H; sharpest directions, section 4.1b and oracles 1, 2.

    Example:
        >>> print(excess_loss(np.diag([8.0, 2.0]), np.diag([8.0, 2.0]), lr=0.2, batch_size=16))
        E[L] - L*: exact 0.1328, SDE 0.03125, by Tr H 0.03125 (lr lambda_1 = 1.6); the SDE value is 4.25 times too small
    """
    found = stationary_covariance(hessian, noise, lr=lr, batch_size=batch_size, momentum=momentum, method=method)
    curvature, noises = _pair(hessian, noise)
    scale = lr / (4 * batch_size * (1 - momentum))
    sde, three = scale * float(np.trace(noises)), scale * float(np.trace(curvature))
    ratio = float(np.trace(noises) / np.trace(curvature))
    norms = float(np.linalg.norm(curvature) * np.linalg.norm(noises))
    reasons = list(found.reasons)
    if sde > 0 and abs(found.excess / sde - 1) > APART:
        factor = found.excess / sde
        reasons.append(f"the SDE value is {max(factor, 1 / factor):.3g} times too {'small' if factor > 1 else 'large'}")
    if abs(ratio - 1) > APART:
        reasons.append(f"the value by Tr H does not hold: Tr C / Tr H = {ratio:.3g}")
    cosine = float(np.sum(curvature * noises)) / norms if norms else math.nan
    return ExcessLoss(
        found.excess, sde, three, found.sharpness, found.edge, ratio, cosine, _slope(curvature, noises), tuple(reasons)
    )


def _slope(curvature: Array, noises: Array) -> float:
    values, vectors = np.linalg.eigh(curvature)
    along = np.einsum("ij,ij->j", vectors, noises @ vectors)
    spread = values - values.mean()
    if spread @ spread <= np.finfo(float).eps * (values @ values):
        return math.nan
    return float(spread @ along / (spread @ spread))


def _pair(hessian: Any, noise: Any) -> tuple[Array, Array]:
    curvature, noises = symmetric("hessian", hessian), covariance("noise", noise)
    if curvature.shape != noises.shape:
        raise ArgumentError(f"noise: expected the shape of hessian, {curvature.shape}, got {noises.shape}")
    return curvature, noises


def _vectors(curvature: Any, noise: Any, negative: bool = False) -> tuple[Array, Array]:
    values, noises = np.atleast_1d(array("curvature", curvature, (0, 1))), np.atleast_1d(array("noise", noise, (0, 1)))
    if values.shape != noises.shape:
        raise ArgumentError(f"noise: expected one variance a curvature, {values.shape}, got {noises.shape}")
    if (noises < 0).any():
        raise ArgumentError(f"noise: expected variances >= 0, got {noises.min():.6g}")
    if not negative:
        _positive(np.sort(values))
    return values, noises


def _positive(values: Array) -> None:
    if values[0] <= 0:
        raise ArgumentError(
            f"hessian: expected curvatures > 0, got {values[0]:.6g}; along it SGD has no stationary law: "
            "pass the block of the curved directions, or ask `transient_variance`"
        )


def _edge(values: Array, lr: float, momentum: float, nesterov: bool) -> float:
    _positive(values)
    threshold, _ = stability_threshold("sgd", lr, momentum=momentum, nesterov=nesterov)
    if values[-1] >= threshold:
        limit = lr * threshold / values[-1]
        raise ArgumentError(
            f"lr: at curvature {values[-1]:.6g} and momentum {momentum} SGD diverges from {limit:.6g} on, got {lr}; lower it"
        )
    return float(values[-1] / threshold)


def _near(edge: float) -> tuple[str, ...]:
    if edge <= NEAR:
        return ()
    return (f"the largest curvature is {edge:.3g} of the threshold of stability: a small change of it changes the answer much",)


def _update(values: Array, lr: float, momentum: float, method: str) -> tuple[Array, Array]:
    """The update of (theta, v) along each eigenvector [d, 2, 2], and how the noise enters [2]."""
    ahead = (1 + momentum, momentum**2) if method == "nesterov" else (1.0, momentum)
    steps = np.empty((len(values), 2, 2))
    steps[:, 0, 0], steps[:, 0, 1] = 1 - lr * ahead[0] * values, -lr * ahead[1]
    steps[:, 1, 0], steps[:, 1, 1] = values, momentum
    return steps, np.array([-lr * ahead[0], 1.0])


def _blocks(steps: Array, push: Array, noises: Array) -> Array:
    """Solve X_ij = A_i X_ij A_j^T + c_ij G G^T for every pair of directions, [d, d, 2, 2]."""
    size = len(steps)
    pairs = np.einsum("iab,jcd->ijacbd", steps, steps).reshape(size, size, 4, 4)
    right = noises[:, :, None, None] * np.outer(push, push).reshape(4)[:, None]
    return np.asarray(np.linalg.solve(np.eye(4) - pairs, right).reshape(size, size, 2, 2))


def _semidefinite(matrix: Array) -> Array:
    """Nearest covariance: symmetric, eigenvalues that rounding made negative set to 0."""
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    if values[0] >= 0:
        return (matrix + matrix.T) / 2
    return np.asarray((vectors * np.maximum(values, 0)) @ vectors.T)
