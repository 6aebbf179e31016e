"""Langevin Monte Carlo at finite step, free and projected on a convex body: variances, atoms, the exact law in 1-D.

The step is X' = P_K(X - (lr / 2) grad f(X) + sqrt(lr) xi), of target exp(-f) on K; a step of learning rate h in the usual form
theta - h grad f + sqrt(2 h) xi is lr = 2 h.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import log_ndtr

from sgdscope.errors import ArgumentError
from sgdscope.ranges import whole
from sgdscope.theory.inputs import Array, above
from sgdscope.theory.prediction import Prediction
from sgdscope.theory.quadrature import NODES, Function, climb

OVERSHOOT = 0.5825971579390107  # -zeta(1/2) / sqrt(2 pi): mean overshoot of a Gaussian random walk over its boundary
LARGEST = 4000  # states of the transition matrix, 128 MB


def langevin_variance(curvature: float, *, lr: float, temperature: float = 1.0) -> float:
    """Stationary variance of X' = X - (lr / 2) lambda X + sqrt(lr T) xi, T / (lambda (1 - lr lambda / 4)).

    The target has T / lambda: the bias of finite steps is the factor.

    Args:
        curvature: lambda > 0 of f.
        lr: step, 0 < lr lambda < 4.
        temperature: T > 0.

    Returns:
        The variance.

    Raises:
        ArgumentError: out of range, lr lambda >= 4 included.

    Source: diffusion specification, section 3.

    Example:
        >>> round(langevin_variance(1.3, lr=0.4), 13)
        0.8841732979664
    """
    above(curvature=curvature, lr=lr, temperature=temperature)
    if lr * curvature >= 4:
        raise ArgumentError(f"lr: expected lr < 4 / curvature = {4 / curvature:.6g}, from where the walk diverges, got {lr}")
    return temperature / (curvature * (1 - lr * curvature / 4))


def boundary_mass(edge_density: float, *, lr: float) -> Prediction:
    """Share of the samples of projected Langevin on the boundary of the body.

    p = sqrt(lr / 2) rho / (1 + 0.582597 sqrt(lr) rho), rho the target's density integrated over the boundary: 1 / R for the
    uniform law on [-R, R], d / R on a ball, |boundary| / |K| on any body. In one dimension this mass is the distance in
    total variation from the uniform law.

    Args:
        edge_density: rho > 0, 1 / length.
        lr: step, > 0.

    Returns:
        p; flagged where sqrt(lr) rho > 1/2, the walk being as wide as the body.

    Raises:
        ArgumentError: out of range.

    Source: diffusion specification, section 3 (derived; checked by transition matrices).

    Example:
        >>> round(boundary_mass(1 / 2.0, lr=0.04).value, 6)  # [-2, 2]
        0.066818
    """
    above(edge_density=edge_density, lr=lr)
    wide = math.sqrt(lr) * edge_density
    reasons = (f"sqrt(lr) rho = {wide:.3g}: the steps are as wide as the body",) if wide > 0.5 else ()
    return Prediction(wide / math.sqrt(2) / (1 + OVERSHOOT * wide), "projection", reasons)


def interval_atom(radius: float, *, lr: float) -> Prediction:
    """Mass of both atoms of projected Langevin on [-R, R], uniform target, (sqrt(lr / 2) / R) / (1 + 0.582597 sqrt(lr) / R).

    Args:
        radius: R > 0.
        lr: step, > 0.

    Returns:
        The mass of both, as `boundary_mass`.

    Raises:
        ArgumentError: out of range.

    Source: diffusion specification, section 3.

    Example:
        >>> round(interval_atom(1.0, lr=0.01).value, 5)
        0.06682
    """
    above(radius=radius)
    return boundary_mass(1 / radius, lr=lr)


def ball_mass(dims: int, *, lr: float, radius: float = 1.0) -> Prediction:
    """Mass on the sphere of projected Langevin with uniform target on a ball: `boundary_mass` with rho = d / R.

    Measured 1 to 6 % above it for d = 2 to 5 and lr = 0.004 to 0.001: the curvature of the sphere is left out.

    Args:
        dims: d >= 1.
        lr: step, > 0.
        radius: R > 0.

    Returns:
        The mass; linear in d while small.

    Raises:
        ArgumentError: out of range.

    Source: diffusion specification, section 3.

    Example:
        >>> round(ball_mass(3, lr=0.001).value, 4)
        0.0636
    """
    whole("dims", dims, 1)
    above(radius=radius)
    return boundary_mass(dims / radius, lr=lr)


def truncated_gaussian_mass(precision: float, radius: float, *, lr: float) -> Prediction:
    """Leading mass of the atoms for f = precision x^2 / 2 on [-R, R], 2 p(R) sqrt(lr / 2), p the density of the target.

    Args:
        precision: > 0.
        radius: R > 0.
        lr: step, > 0.

    Returns:
        The mass, without the next order.

    Raises:
        ArgumentError: out of range.

    Source: diffusion specification, section 3.

    Example:
        >>> round(truncated_gaussian_mass(4.0, 1.0, lr=0.02).value, 4)
        0.0226
    """
    above(precision=precision, radius=radius, lr=lr)
    root = math.sqrt(precision)
    total = math.sqrt(2 * math.pi) / root * math.erf(root * radius / math.sqrt(2))
    value = 2 * math.exp(-precision * radius**2 / 2) / total * math.sqrt(lr / 2)
    return Prediction(value, "projection, leading order")


@dataclass(frozen=True)
class IntervalLaw:
    """The stationary law of the discrete chain on [-R, R].

    Attributes:
        positions: [n] inside.
        weights: of the quadrature [n].
        density: of the continuous part [n].
        target: normalised exp(-f) [n].
        atoms: (at -R, at R).
        mean: of the chain.
        variance: of the chain.
        distance: total variation between chain and target.
    """

    positions: Array
    weights: Array
    density: Array
    target: Array
    atoms: tuple[float, float]
    mean: float
    variance: float
    distance: float


def interval_law(gradient: Function, radius: float, *, lr: float) -> IntervalLaw:
    """Exact stationary law of projected Langevin on [-R, R], by the transition matrix at Gauss points and the two atoms.

    From x the step lands at N(x - (lr / 2) f'(x), lr); what falls outside goes to the atoms. Panels of at most sqrt(lr), 8 points
    each, so that the quadrature of a Gaussian of that width is exact to 1e-9.

    Args:
        gradient: f'(x), of arrays; smooth.
        radius: R > 0.
        lr: step, > 0, with lr >= (R / 250)^2.

    Returns:
        The law, its atoms and its distance from the target.

    Raises:
        ArgumentError: out of range, or a step so small that the matrix would exceed 4000 states.

    Cost: one dense solve of 16 R / sqrt(lr) unknowns.

    Source: diffusion specification, section 3.

    Example:
        >>> law = interval_law(np.zeros_like, 1.0, lr=0.1)
        >>> round(sum(law.atoms), 6), round(law.variance, 4)
        (0.18882, 0.4439)
    """
    above(radius=radius, lr=lr)
    count = max(32, math.ceil(2 * radius / math.sqrt(lr)))
    if count * NODES > LARGEST:
        raise ArgumentError(f"lr: expected lr >= {(2 * radius * NODES / LARGEST) ** 2:.3g} for radius {radius}, got {lr}")
    edges = np.linspace(-radius, radius, count + 1)
    inside, weights, height = (part.ravel() for part in climb(lambda x: _slope(gradient, x), edges))
    states = np.concatenate([[-radius], inside, [radius]])
    landing = states - lr / 2 * _slope(gradient, states)
    moves = np.empty((len(states), len(states)))
    moves[:, 0] = np.exp(log_ndtr((-radius - landing) / math.sqrt(lr)))
    moves[:, -1] = np.exp(log_ndtr((landing - radius) / math.sqrt(lr)))
    moves[:, 1:-1] = weights * np.exp(-((inside - landing[:, None]) ** 2) / (2 * lr)) / math.sqrt(2 * math.pi * lr)
    masses = _stationary(moves)
    shape = np.exp(height.min() - height)
    target = shape / (weights @ shape)
    density = masses[1:-1] / weights
    mean = float(masses @ states)
    distance = (masses[0] + masses[-1] + float(weights @ np.abs(density - target))) / 2
    variance = float(masses @ (states - mean) ** 2)
    return IntervalLaw(inside, weights, density, target, (float(masses[0]), float(masses[-1])), mean, variance, float(distance))


def steps_asked(dims: int, tolerance: float, *, radius: float, lipschitz: float = 0.0, smoothness: float = 0.0) -> Prediction:
    """Steps that the theorem on projected Langevin asks for, up to a constant and logarithms, for total variation at most eps.

    N = R^6 n^7 / eps^8 for a uniform target, R^6 max(n, R L, R beta)^12 / eps^12 otherwise, with step R^2 / N. The body contains
    the unit ball. Constants are not known: only ratios of two settings mean something.

    Args:
        dims: n >= 1.
        tolerance: eps, 0 < eps < 1.
        radius: R >= 1, of a ball around the body.
        lipschitz: L >= 0 of f.
        smoothness: beta >= 0 of f; both 0 for the uniform target.

    Returns:
        N, marked as recalled.

    Raises:
        ArgumentError: out of range.

    Source: Bubeck, Eldan, Lehec 2015 (1507.02564) theorem 1, recalled.

    Example:
        >>> steps_asked(4, 0.5, radius=2.0).value / steps_asked(2, 0.5, radius=2.0).value
        128.0
    """
    whole("dims", dims, 1)
    above(radius=radius, tolerance=tolerance)
    if tolerance >= 1 or radius < 1 or lipschitz < 0 or smoothness < 0:
        raise ArgumentError(
            "tolerance, radius, lipschitz, smoothness: expected eps < 1, R >= 1, L >= 0 and beta >= 0, "
            f"got {tolerance}, {radius}, {lipschitz}, {smoothness}"
        )
    reasons = ("constants and logarithms are not known: compare two settings, do not run that many steps",)
    if lipschitz == smoothness == 0:
        return Prediction(radius**6 * dims**7 / tolerance**8, "uniform target", reasons, recalled=True)
    size = max(dims, radius * lipschitz, radius * smoothness)
    return Prediction(radius**6 * size**12 / tolerance**12, "log-concave target", reasons, recalled=True)


def _slope(gradient: Function, x: Array) -> Array:
    found = np.broadcast_to(np.asarray(gradient(x), dtype=np.float64), x.shape)
    if not np.isfinite(found).all():
        raise ArgumentError("gradient: expected finite values on the whole interval")
    return found


def _stationary(moves: Array) -> Array:
    system = moves.T - np.eye(len(moves))
    system[-1] = 1.0  # the equations add up to nothing: the last one becomes the sum of the masses
    right = np.zeros(len(moves))
    right[-1] = 1.0
    return np.asarray(np.linalg.solve(system, right))
