"""SGD in one dimension at the learning rate that is used, against exact variances, limits and simulated walks."""

import math

import numpy as np
import pytest
from scipy import stats

from sgdscope import theory
from sgdscope.errors import ArgumentError


def pull(x):
    return x**3 - x


def two_basins(x, tau=0.01):
    """L_A = .05 + 2 (x + .5)^2 and L_B = 18 (x - .5)^2, joined by a soft minimum."""
    losses = np.stack([0.05 + 2 * (x + 0.5) ** 2, 18 * (x - 0.5) ** 2])
    weight = np.exp(-(losses - losses.min(0)) / tau)
    return (weight * np.stack([4 * (x + 0.5), 36 * (x - 0.5)])).sum(0) / weight.sum(0)


CUT = (20 - math.sqrt(400 - 4 * 16 * 3.95)) / 32


def odds(n, lr, ends):
    mass = theory.chain_law(two_basins, 2 * n / lr, ends, lr=lr, breaks=[CUT]).mass(CUT)
    return mass / (1 - mass)


@pytest.mark.parametrize(
    ("lr", "simulated", "ends"), [(0.005, None, (-2.7, 1.7)), (0.01, 3.9, (-3.0, 2.0)), (0.05, 73, (-4.0, 3.0))]
)
def test_odds_of_the_fourth_oracle_at_finite_learning_rates(lr, simulated, ends):
    """Simulated there at n = .25; the law of Gibbs has 2.455, and large steps favour the flat basin beyond it."""
    found = odds(0.25, lr, ends)
    assert found > 2.455 * (1 + 10 * lr)
    if simulated:
        assert found == pytest.approx(simulated, rel=0.04)


def test_odds_at_low_noise_are_moved_most():
    """At n = .05 Gibbs has 3 exp(-1) = 1.10; the height of a barrier multiplies what lr does to it. By a uniform grid."""
    grid = np.linspace(-1.6, 1.2, 1201)
    moves = stats.norm.pdf(grid, (grid - 0.01 * two_basins(grid))[:, None], math.sqrt(2 * 0.05 * 0.01))
    moves /= moves.sum(1, keepdims=True)
    system = np.vstack([moves.T - np.eye(1201), np.ones(1201)])
    masses = np.linalg.lstsq(system, np.eye(1202)[-1])[0]
    truth = masses[grid < CUT].sum() / masses[grid > CUT].sum()
    assert truth > 15
    assert odds(0.05, 0.01, (-1.6, 1.2)) == pytest.approx(truth, rel=0.02)
    gibbs = math.exp(theory.log_odds(theory.Basin(0.05, 4.0), theory.Basin(0.0, 36.0), temperatures=0.05).value)
    assert gibbs == pytest.approx(1.104, abs=0.001)


@pytest.mark.parametrize("lr", [0.1, 0.9])
def test_law_of_a_quadratic(lr):
    h, c, batch = 1.3, 2.4, 3
    law = theory.chain_law(lambda x: h * (x - 0.4), c, (0.4 - 13 * lr**0.5, 0.4 + 13 * lr**0.5), lr=lr, batch_size=batch)
    variance = theory.stationary_variance(h, c, lr=lr, batch_size=batch)[0]
    assert law.mean(lambda x: x) == pytest.approx(0.4, abs=1e-9)
    assert law.mean(lambda x: (x - 0.4) ** 2) == pytest.approx(variance, rel=1e-9)
    assert law.mean(lambda x: (x - 0.4) ** 4) == pytest.approx(3 * variance**2, rel=1e-8)


def test_law_with_growing_noise_by_its_second_moment_and_its_limit():
    """sigma^2 = 1 + x^2, g = h x: E x^2 (1 - (1 - lr h)^2 - lr^2 / S) = lr^2 / S exactly."""
    h, lr, batch = 1.2, 0.5, 4
    law = theory.chain_law(lambda x: h * x, lambda x: 1 + x**2, (-8.0, 8.0), lr=lr, batch_size=batch)
    truth = lr**2 / batch / (1 - (1 - lr * h) ** 2 - lr**2 / batch)
    assert law.mean(lambda x: x**2) == pytest.approx(truth, rel=1e-6)
    slow = theory.chain_law(lambda x: h * x, lambda x: 1 + x**2, (-6.0, 6.0), lr=0.04, batch_size=0.1)
    ito = theory.zero_flux_law(lambda x: h * x, lambda x: 1 + x**2, (-6.0, 6.0), lr=0.04, batch_size=0.1)
    capped = [law.mean(lambda x: np.minimum(x**2, 1)) for law in (slow, ito)]
    assert capped[0] == pytest.approx(capped[1], rel=0.03)


@pytest.mark.parametrize(
    ("lr", "end", "simulated", "error"),
    [(0.02, 1.0, 182.4, 2.8), (0.1, 1.0, 178.8, 2.7), (0.02, 0.0, 93.5, 1.4), (0.1, 0.0, 103.8, 1.7)],
)
def test_passage_of_the_double_well_at_finite_learning_rates(lr, end, simulated, error):
    """Simulated at D = .07 with 4000 walks (specification S1), within 2.5 of their standard errors."""
    found = theory.chain_passage(pull, 2 * 0.07 / lr, -1.0, end, wall=-2.5, lr=lr)
    assert found.valid
    assert found.value * lr == pytest.approx(simulated, abs=2.5 * error)


def test_passage_at_the_saddle_is_late_by_the_root_of_the_step_and_past_it_is_not():
    """The walk overshoots as if the end lay 0.5826 steps farther: Chernoff's correction, to 10 % of the delay."""
    exact = [theory.mean_passage_time(pull, 0.07, -1.0, end, wall=-2.5).value for end in (0.0, 1.0)]
    for lr in (0.02, 0.005):
        times = [theory.chain_passage(pull, 2 * 0.07 / lr, -1.0, end, wall=-2.2, lr=lr).value * lr for end in (0.0, 1.0)]
        later = theory.mean_passage_time(pull, 0.07, -1.0, 0.5826 * math.sqrt(2 * 0.07 * lr), wall=-2.5).value
        assert times[0] - exact[0] == pytest.approx(later - exact[0], rel=0.1)
        assert later > 1.03 * exact[0]
        assert abs(times[1] / exact[1] - 1) < 0.006


def test_passage_simulated_with_growing_noise_to_the_left():
    """10000 walks: 1 % standard error."""
    lr, batch, random = 0.2, 2.0, np.random.default_rng(8)
    x, updates = np.full(10_000, 0.3), 0.0
    for _ in range(2000):
        x = x - lr * (x + np.sqrt((1 + x**2) / batch) * random.normal(size=x.shape))
        updates += len(x)
        x = x[x > -0.6]
    found = theory.chain_passage(lambda u: u, lambda u: 1 + u**2, 0.3, -0.6, wall=4.0, lr=lr, batch_size=batch)
    assert found.value == pytest.approx(updates / 10_000, rel=0.045)
    assert len(x) < 10


def test_chains_refuse_what_they_cannot_answer():
    with pytest.raises(ArgumentError, match=r"ends: the walk leaves .* with probability"):
        theory.chain_law(lambda x: x, 1.0, (-0.4, 0.4), lr=0.5)
    with pytest.raises(ArgumentError, match="bring the ends nearer"):
        theory.chain_law(lambda x: x, 1.0, (-9.0, 9.0), lr=1e-3)
    with pytest.raises(ArgumentError, match="between wall and end"):
        theory.chain_passage(pull, 1.0, -1.0, 1.0, wall=0.0, lr=0.1)
    with pytest.raises(ArgumentError, match="variance: expected > 0"):
        theory.chain_law(lambda x: x, lambda x: x, (-9.0, 9.0), lr=0.5)
    far = theory.chain_passage(pull, 2 * 0.008 / 0.1, -1.0, 1.0, wall=-1.7, lr=0.1)
    assert "rounding decides" in far.reasons[0]
