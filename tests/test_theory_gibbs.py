"""The law of Gibbs against exact integrals and against walks; Langevin at finite step against transition matrices and walks."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.integrate import quad
from scipy.special import erf

from sgdscope import theory
from sgdscope.errors import ArgumentError
from sgdscope.theory import Basin

FLAT, SHARP = Basin(0.05, 4.0), Basin(0.0, 36.0)


def crossing():
    """Where .05 + 2 (x + .5)^2 = 18 (x - .5)^2 between the basins."""
    return float(np.roots([16.0, -20.0, 4.0 - 0.05])[1])


def losses(x):
    return np.stack([0.05 + 2 * (x + 0.5) ** 2, 18 * (x - 0.5) ** 2])


def soft_gradient(x, tau=0.01):
    parts = losses(x)
    weight = np.exp(-(parts - parts.min(0)) / tau)
    slopes = np.stack([4 * (x + 0.5), 36 * (x - 0.5)])
    return (weight * slopes).sum(0) / weight.sum(0)


@pytest.mark.parametrize(("n", "ratio"), [(0.25, 2.455), (0.02, 0.246)])
def test_odds_of_the_fourth_oracle(n, ratio):
    cut = crossing()
    law = theory.zero_flux_law(soft_gradient, 2.0, (-3.0, 2.0), lr=n * 3, batch_size=3, breaks=[cut])  # n = lr sigma^2 / 2 S
    exact = law.mass(cut) / (1 - law.mass(cut))
    assert exact == pytest.approx(ratio, rel=0.015)
    predicted = theory.log_odds(FLAT, SHARP, temperatures=n)
    assert math.exp(predicted.value) == pytest.approx(ratio, rel=2e-3)
    assert predicted.valid
    assert theory.log_odds(SHARP, FLAT, temperatures=n).value == pytest.approx(-predicted.value)


def test_threshold_of_the_fourth_oracle():
    found = theory.noise_threshold(FLAT, SHARP)
    assert found.value == pytest.approx(0.0455, abs=2e-5)
    assert theory.noise_threshold(SHARP, FLAT).value == pytest.approx(found.value)
    assert theory.log_odds(FLAT, SHARP, temperatures=found.value).value == pytest.approx(0, abs=1e-12)
    assert theory.log_odds(FLAT, SHARP, temperatures=1.01 * found.value).value > 0
    ratio = theory.critical_ratio(found.value, 3.0)
    assert theory.temperature(3.0, lr=0.7 * ratio, batch_size=0.7) == pytest.approx(found.value)
    never = theory.noise_threshold(Basin(0.3, [4.0, 5.0]), Basin(0.1, [4.0, 4.0]))
    assert never.value == math.inf
    assert never.reasons == ("the higher basin is not flatter: no noise prefers it",)
    assert theory.noise_threshold(Basin(0.3, 4.0), Basin(0.3, 5.0)).value == 0


def test_odds_with_own_temperatures_are_those_of_two_gaussians():
    a, b = Basin(0.3, [2.0, 5.0, 7.0]), Basin(0.1, [1.0, 6.0, 9.0])
    found = theory.log_odds(a, b, temperatures=(0.2, 0.05))

    def mass(basin, n):
        return np.prod([quad(lambda x, h=h: math.exp(-h * x * x / 2 / n), -9, 9)[0] for h in basin.curvatures]) * math.exp(
            -basin.loss / n
        )

    assert found.value == pytest.approx(math.log(mass(a, 0.2) / mass(b, 0.05)), rel=1e-7)
    assert "where the loss is zero" in found.reasons[0]


def test_odds_are_refused_or_flagged():
    with pytest.raises(ArgumentError, match=r"ratio: expected 0 <= ratio < 1"):
        theory.log_odds(FLAT, SHARP, temperatures=0.1, ratio=1.2)
    assert theory.log_odds(FLAT, SHARP, temperatures=0.1, crossings=4).reasons == ("only 4 crossings: the walk has not mixed",)
    assert theory.log_odds(FLAT, SHARP, temperatures=0.1, crossings=400).valid
    with pytest.raises(ArgumentError, match="expected 2 curvatures as basin a"):
        theory.log_odds(Basin(0.1, [1.0, 2.0]), SHARP, temperatures=0.1)
    with pytest.raises(ArgumentError, match="flat direction"):
        Basin(0.1, [1.0, 0.0])


def test_temperature_is_that_of_the_quadratic():
    """Equipartition: h Var = n, with heavy ball too, in the limit of small learning rates."""
    variance = theory.stationary_variance(0.7, 2.5, lr=1e-5, batch_size=6, momentum=0.6)[0]
    assert theory.temperature(2.5, lr=1e-5, batch_size=6, momentum=0.6) == pytest.approx(0.7 * variance, rel=1e-5)


def test_ratio_of_neglected_to_kept():
    found = theory.isotropy_ratio(
        torch.tensor([0.375, -0.5], dtype=torch.bfloat16, requires_grad=True), [6.0, 8.0], lr=0.2, batch_size=8
    )
    assert found.value == pytest.approx(0.2 * 10 / (2 * 8 * 0.625))
    assert found.valid
    near = theory.isotropy_ratio([0.003, -0.004], [6.0, 8.0], lr=0.2, batch_size=8)
    assert "r = 25 >= 1" in near.reasons[0]
    assert theory.isotropy_ratio([0.0, 0.0], [6.0, 8.0], lr=0.2, batch_size=8).value == math.inf
    assert theory.isotropy_ratio([0.0, 0.0], [0.0, 0.0], lr=0.2, batch_size=8).value == 0


@pytest.mark.parametrize(("convention", "shift"), [("ito", 1.0), ("stratonovich", 0.5), ("isothermal", 0.0)])
def test_zero_flux_law_of_growing_noise_is_student(convention, shift):
    """g = h x, sigma^2 = 1 + x^2: P ~ (1 + x^2)^-(S h / lr + shift), of second moment 1 / (2 p - 3)."""
    law = theory.zero_flux_law(
        lambda x: 1.5 * x, lambda x: 1 + x**2, (-40.0, 40.0), lr=0.9, batch_size=3, convention=convention, breaks=[0.8]
    )
    power = 3 * 1.5 / 0.9 + shift
    student = stats.t(df=2 * power - 1, scale=1 / math.sqrt(2 * power - 1))
    assert law.mean(lambda x: x**2) == pytest.approx(1 / (2 * power - 3), rel=1e-7)
    assert law.mass(0.8) == pytest.approx(student.cdf(0.8), rel=1e-8)
    with pytest.raises(ArgumentError, match="cut: expected one of the breaks"):
        law.mass(0.7123)


def test_zero_flux_law_simulated():
    """20000 walks of SGD with noise growing with x, small steps: a second moment of 2 % standard error."""
    random, x = np.random.default_rng(3), np.zeros(20_000)
    lr, h, batch = 0.02, 1.0, 0.05
    for _ in range(500):
        x = x - lr * (h * x + np.sqrt((1 + x**2) / batch) * random.normal(size=x.shape))
    law = theory.zero_flux_law(lambda u: h * u, lambda u: 1 + u**2, (-40.0, 40.0), lr=lr, batch_size=batch)
    found = law.mean(lambda u: np.minimum(u**2, 1.0))
    assert np.minimum(x**2, 1.0).mean() == pytest.approx(found, rel=0.03)
    other = theory.zero_flux_law(
        lambda u: h * u, lambda u: 1 + u**2, (-40.0, 40.0), lr=lr, batch_size=batch, convention="isothermal"
    )
    assert other.mean(lambda u: np.minimum(u**2, 1.0)) > 1.1 * found


def test_mixing_counts_completed_crossings():
    walk = [0.0, -1.0, -0.2, 0.3, -0.4, 1.0, 0.0, 0.7, -0.6, 0.1, 0.2]
    found = theory.mixing(walk, -0.5, 0.5)
    assert (found.crossings, found.mixed) == (2, False)
    assert found.below == pytest.approx(8 / 11)  # the start counts with the first basin seen
    back_and_forth = np.tile([-1.0, 1.0], 20)
    assert theory.mixing(back_and_forth, -0.5, 0.5).mixed
    with pytest.raises(ArgumentError, match="at least once"):
        theory.mixing([0.0, 0.1], -0.5, 0.5)


def test_wrong_arguments_of_the_laws():
    with pytest.raises(ArgumentError, match="variance: expected > 0 everywhere"):
        theory.zero_flux_law(lambda x: x, lambda x: x, (-1.0, 1.0), lr=0.1)
    with pytest.raises(ArgumentError, match="ends: expected two finite numbers"):
        theory.zero_flux_law(lambda x: x, 1.0, (1.0, -1.0), lr=0.1)
    with pytest.raises(ArgumentError, match="variance_gradient: expected the shape"):
        theory.isotropy_ratio([1.0], [1.0, 2.0], lr=0.1, batch_size=1)


def test_langevin_variance_by_recursion():
    assert theory.langevin_variance(1.3, lr=0.4) == pytest.approx(0.8841732979664, abs=5e-14)
    variance = 0.0
    for _ in range(400):
        variance = (1 - 0.3 * 2.2 / 2) ** 2 * variance + 0.3 * 0.6
    assert theory.langevin_variance(2.2, lr=0.3, temperature=0.6) == pytest.approx(variance, rel=1e-12)
    with pytest.raises(ArgumentError, match="from where the walk diverges"):
        theory.langevin_variance(2.0, lr=2.0)


@pytest.mark.parametrize(
    ("lr", "atom", "formula", "variance"),
    [
        (0.1, 0.188820, 0.18882, 0.4439),
        (0.03, 0.111248, 0.11125, 0.3968),
        (0.01, 0.066818, 0.06682, 0.3709),
        (0.003, 0.037532, 0.03753, 0.3542),
        (0.001, 0.021956, 0.02196, 0.3455),
    ],
)
def test_atoms_of_the_uniform_law_on_an_interval(lr, atom, formula, variance):
    law = theory.interval_law(np.zeros_like, 1.0, lr=lr)
    assert sum(law.atoms) == pytest.approx(atom, abs=6e-7)
    assert law.distance == pytest.approx(atom, abs=6e-7)
    assert law.variance == pytest.approx(variance, abs=6e-5)
    assert theory.interval_atom(1.0, lr=lr).value == pytest.approx(formula, abs=6e-6)
    wide = theory.interval_law(np.zeros_like, 2.5, lr=lr * 2.5**2)
    assert sum(wide.atoms) == pytest.approx(sum(law.atoms), rel=1e-9)
    assert theory.interval_atom(2.5, lr=lr * 2.5**2).value == pytest.approx(formula, abs=6e-6)


@pytest.mark.parametrize(
    ("lr", "distance", "leading", "variance"),
    [(0.02, 0.01976, 0.0226, 0.2090), (0.005, 0.01045, 0.0113, 0.2010), (0.00125, 0.00542, 0.0057, 0.1972)],
)
def test_atoms_of_the_truncated_gaussian(lr, distance, leading, variance):
    law = theory.interval_law(lambda x: 4 * x, 1.0, lr=lr)
    assert law.distance == pytest.approx(distance, abs=6e-6)
    assert law.variance == pytest.approx(variance, abs=6e-5)
    assert theory.truncated_gaussian_mass(4.0, 1.0, lr=lr).value == pytest.approx(leading, abs=6e-5)
    assert sum(law.atoms) == pytest.approx(leading, rel=0.15)
    exact = 0.25 - math.exp(-2) / (2 * math.sqrt(2 * math.pi) / 2 * erf(math.sqrt(2)))
    assert law.weights @ (law.target * law.positions**2) == pytest.approx(exact, rel=1e-9)
    assert exact == pytest.approx(0.19344, abs=5e-6)


def test_interval_law_simulated_off_centre():
    """20000 chains: an atom of 0.3 has a standard error of 0.0033."""
    random, x = np.random.default_rng(5), np.zeros(20_000)
    for _ in range(300):
        x = np.clip(x - 0.02 * (1.5 + x) + 0.2 * random.normal(size=x.shape), -0.7, 0.7)
    law = theory.interval_law(lambda u: 1.5 + u, 0.7, lr=0.04)
    assert law.atoms[0] == pytest.approx((x <= -0.7).mean(), abs=0.013)
    assert law.atoms[1] == pytest.approx((x >= 0.7).mean(), abs=0.006)
    assert law.atoms[0] > 3 * law.atoms[1]
    assert law.mean == pytest.approx(x.mean(), abs=0.013)
    assert law.variance == pytest.approx(x.var(), rel=0.04)


@pytest.mark.parametrize(
    ("dims", "lr", "measured", "formula"),
    [
        (2, 0.004, 0.0845, 0.0833),
        (2, 0.001, 0.0440, 0.0431),
        (3, 0.004, 0.1245, 0.1208),
        (3, 0.001, 0.0647, 0.0636),
        (5, 0.004, 0.1999, 0.1888),
        (5, 0.001, 0.1056, 0.1024),
    ],
)
def test_mass_on_the_sphere(dims, lr, measured, formula):
    found = theory.ball_mass(dims, lr=lr)
    assert found.value == pytest.approx(formula, abs=6e-5)
    assert found.value == pytest.approx(measured, rel=0.06)
    assert theory.ball_mass(dims, lr=lr * 9, radius=3.0).value == pytest.approx(found.value)


def test_steps_asked_scale_as_recalled():
    uniform = theory.steps_asked(3, 0.2, radius=2.0)
    assert uniform.value == pytest.approx(2**6 * 3**7 / 0.2**8)
    assert uniform.recalled
    assert "not known" in uniform.reasons[0]
    assert theory.steps_asked(3, 0.2, radius=2.0, smoothness=4.0).value == pytest.approx(2**6 * 8**12 / 0.2**12)
    with pytest.raises(ArgumentError, match="R >= 1"):
        theory.steps_asked(3, 0.2, radius=0.5)


def test_wide_steps_and_small_ones():
    assert "as wide as the body" in theory.interval_atom(0.5, lr=0.1).reasons[0]
    with pytest.raises(ArgumentError, match="lr: expected lr >="):
        theory.interval_law(np.zeros_like, 1.0, lr=1e-6)
    with pytest.raises(ArgumentError, match="gradient: expected finite"):
        theory.interval_law(lambda x: np.where(x > 0, np.nan, x), 1.0, lr=0.1)


@pytest.mark.parametrize("dims", [0, 0.5, 2.5])
def test_a_number_of_dimensions_is_whole_and_at_least_one(dims):
    for refused in (
        lambda: theory.ball_mass(dims, lr=0.01),
        lambda: theory.steps_asked(dims, 0.2, radius=2.0),
        lambda: theory.power_law_exponent(2.0, lr=0.1, batch_size=1, dims=dims),
    ):
        with pytest.raises(ArgumentError, match="dims: expected a whole number >= 1"):
            refused()
