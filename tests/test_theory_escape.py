"""Escape times against exact quadrature, the spectrum of the Klein-Kramers equation and simulated walks."""

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.integrate import quad
from scipy.sparse.linalg import eigs

from sgdscope import theory
from sgdscope.errors import ArgumentError
from sgdscope.theory import Barrier, Time

WELL = Barrier(0.25, 2.0, -1.0)  # L = (x^2 - 1)^2 / 4
C = 1 / math.sqrt(3)  # its inflection


def pull(x):
    return x**3 - x


def piecewise(ratio):
    """Noise of the Hessian, lr |H| / (2 B) with that of the minimum outside the inflections."""
    return lambda x: np.where(np.abs(x) > C, 2.0, 1.0) / (2 * ratio)


@pytest.mark.parametrize(
    ("diffusion", "over", "to_saddle", "kramers", "over_ratio", "saddle_ratio"),
    [
        (0.10, 66.2686, 30.8213, 54.1254, 1.2244, 0.5694),
        (0.05, 729.671, 361.904, 659.382, 1.1066, 0.5489),
        (0.03, 19485.8, 9739.57, 18483.6, 1.0542, 0.5269),
        (0.02, 1232135, 616063.8, 1192191, 1.0335, 0.5167),
        (0.01, 3.24958e11, 1.62479e11, 3.19909e11, 1.0158, 0.5079),
    ],
)
def test_double_well_of_the_first_table(diffusion, over, to_saddle, kramers, over_ratio, saddle_ratio):
    exact = theory.mean_passage_time(pull, diffusion, -1.0, 1.0, wall=-3.0).value
    half = theory.mean_passage_time(pull, diffusion, -1.0, 0.0, wall=-3.0).value
    predicted = theory.kramers_time(WELL, diffusion)
    assert (exact, half) == pytest.approx((over, to_saddle), rel=2e-6)
    assert predicted.value == pytest.approx(kramers, rel=4e-6)
    assert (exact / predicted.value, half / predicted.value) == pytest.approx((over_ratio, saddle_ratio), abs=1e-4)
    at_saddle = theory.kramers_time(WELL, diffusion, detect="saddle")
    assert at_saddle.value == pytest.approx(predicted.value / 2)
    assert at_saddle.convention == "white noise; detected at the saddle"
    assert predicted.valid == (diffusion < 0.09)


def test_next_order_of_the_double_well():
    correction = theory.kramers_correction((2.0, -6.0, 6.0), (-1.0, 0.0, 6.0))
    assert correction == pytest.approx(1.5)
    for diffusion in (0.02, 0.01, 0.005):
        ratio = theory.mean_passage_time(pull, diffusion, -1.0, 1.0, wall=-3.0).log - theory.kramers_time(WELL, diffusion).log
        assert math.exp(ratio) == pytest.approx(1 + correction * diffusion, abs=9 * diffusion**2)


def test_next_order_where_both_ends_have_a_third_derivative():
    def force(x):  # L = x^4 / 4 - a x^3 / 3 - x^2 / 2, saddle at 0
        return x**3 - 0.6 * x**2 - x

    low = (0.6 - math.sqrt(4.36)) / 2
    height = -(low**4 / 4 - 0.2 * low**3 - low**2 / 2)
    barrier = Barrier(height, 3 * low**2 - 1.2 * low - 1, -1.0)
    correction = theory.kramers_correction((barrier.uphill, 6 * low - 1.2, 6.0), (-1.0, -1.2, 6.0))
    for diffusion in (0.004, 0.002):
        ratio = theory.mean_passage_time(force, diffusion, low, 1.0, wall=-2.5).log - theory.kramers_time(barrier, diffusion).log
        assert math.exp(ratio) - 1 == pytest.approx(correction * diffusion, rel=0.05)


def test_mirrored_moved_and_unwalled_passages_agree():
    there = theory.mean_passage_time(pull, 0.07, -1.0, 0.8, wall=-3.0)
    back = theory.mean_passage_time(lambda x: pull(x - 5), 0.07, 6.0, 4.2, wall=9.0)
    assert back.log == pytest.approx(there.log, abs=1e-10)
    assert theory.mean_passage_time(pull, 0.07, -1.0, 0.8, wall=-2.4).log == pytest.approx(there.log, abs=1e-9)
    assert theory.mean_passage_time(pull, 0.07, -1.0, 0.8, wall=-1.0).log < there.log - 0.3  # a wall at the bottom halves it


def test_passage_of_free_diffusion_and_of_drift():
    assert theory.mean_passage_time(np.zeros_like, 0.4, 0.5, 2.0, wall=-1.0).value == pytest.approx((9 - 2.25) / 0.8, rel=1e-12)
    drift = theory.mean_passage_time(lambda x: np.full_like(x, -3.0), 0.4, 0.0, 2.0, wall=-9.0)
    assert drift.value == pytest.approx(2 / 3, rel=1e-10)


def integral(function, ends, tolerance):
    return sum(quad(function, a, b, epsabs=0, epsrel=tolerance)[0] for a, b in pairwise(ends))


def _nested(ratio, alpha):
    """Mean passage time by nested adaptive quadrature with Phi written out."""
    d_out, d_in = 1 / ratio, 1 / (2 * ratio)

    def loss(x):
        return (x * x - 1) ** 2 / 4

    inside = (loss(C) - loss(-C)) / d_in

    def phi(x):
        if x < -C:
            return (loss(x) - loss(-C)) / d_out
        return (loss(x) - loss(-C)) / d_in if x < C else inside + (loss(x) - loss(C)) / d_out

    def noise(x):
        return d_out if abs(x) > C else d_in

    def inner(y):
        ends = [-2.5, *(p for p in (-1.0, -C, C) if p < y), y]
        return integral(lambda z: math.exp(-phi(z)) * noise(z) ** (alpha - 1), ends, 1e-9)

    ends = [-1, -C, -0.2, 0.2, C, 1]
    pieces = pairwise(ends)
    return sum(
        quad(lambda y: math.exp(phi(y)) * noise(y) ** -alpha * inner(y), a, b, epsabs=0, epsrel=1e-7)[0] for a, b in pieces
    )


@pytest.mark.parametrize(("convention", "alpha"), [("ito", 0.0), ("stratonovich", 0.5), ("isothermal", 1.0)])
def test_passage_with_jumping_noise_in_every_reading(convention, alpha):
    found = theory.mean_passage_time(pull, piecewise(20), -1.0, 1.0, wall=-2.5, convention=convention, breaks=[-C, C])
    assert found.value == pytest.approx(_nested(20, alpha), rel=1e-6)


@pytest.mark.parametrize(
    ("ratio", "theorem", "isothermal", "ito"),
    [
        (10, 5.7268, 5.8131, 5.2214),
        (20, 9.6157, 9.6680, 8.9940),
        (40, 17.3934, 17.4232, 16.7314),
        (80, 32.9490, 32.9638, 32.2706),
    ],
)
def test_hessian_noise_of_the_second_table(ratio, theorem, isothermal, ito):
    """The last table entry is 1.1e-4 above nested adaptive quadrature; hence 1.3e-4."""
    weight = theory.escape_share(1 / 9, 0.0, 1 / 4)
    assert weight == pytest.approx(4 / 9)
    predicted = theory.hessian_noise_time(WELL, lr=0.1, batch_size=0.1 * ratio, share=weight)
    after_ito = theory.hessian_noise_time(WELL, lr=0.1, batch_size=0.1 * ratio, share=weight, convention="ito")
    assert predicted.log == pytest.approx(theorem, abs=6e-5)
    assert after_ito.log == pytest.approx(theorem - math.log(2), abs=6e-5)  # |H_be| / H_ae = 1 / 2
    for convention, value, formula in (("isothermal", isothermal, predicted), ("ito", ito, after_ito)):
        exact = theory.mean_passage_time(pull, piecewise(ratio), -1.0, 1.0, wall=-3.0, convention=convention, breaks=[-C, C])
        assert exact.log == pytest.approx(value, abs=1.3e-4)
        assert exact.log - formula.log == pytest.approx(0, abs=2.2 / ratio)


def test_slope_of_the_second_table():
    logs = [theory.hessian_noise_time(WELL, lr=0.05, batch_size=0.05 * r, share=4 / 9).log for r in (30, 50)]
    assert (logs[1] - logs[0]) / 20 == pytest.approx(0.388889, abs=1e-6)


@pytest.mark.parametrize(
    ("floor", "value", "weight"),
    [(0.3, 0.686, -0.7), (0.1, 1.106, None), (0.03, 1.614, None), (0.01, 2.094, None), (0.003, 2.626, -8.5)],
)
def test_smooth_noise_of_the_third_table(floor, value, weight):
    x = np.linspace(-1, 0, 200_001)
    found = theory.path_exponent(x, pull(x), 3 * x**2 - 1, floor=floor)
    assert found.value == pytest.approx(value, abs=6e-4)
    assert found.valid
    if weight is not None:
        assert theory.equivalent_share(found.value, WELL) == pytest.approx(weight, abs=0.05)


def test_path_that_does_not_resolve_the_inflection_is_flagged():
    x = np.linspace(-1, 0, 40)
    assert "take more points" in theory.path_exponent(x, pull(x), 3 * x**2 - 1, floor=0.003).reasons[0]
    with pytest.raises(ArgumentError, match="floor: expected a finite number > 0"):
        theory.path_exponent(x, pull(x), 3 * x**2 - 1, floor=0.0)
    with pytest.raises(ArgumentError, match="increasing arc length"):
        theory.path_exponent(x[::-1], pull(x), 3 * x**2 - 1, floor=0.1)
    with pytest.raises(ArgumentError, match="does not depend on s"):
        theory.equivalent_share(1.0, Barrier(0.25, 2.0, -2.0))


def test_rates_add_as_in_independent_wells():
    """Simulated by others at D = 0.05 (specification S8): 731.5 +- 11.4, 360.3 and 183.9 for 1, 2 and 4 coordinates."""
    one = theory.mean_passage_time(pull, 0.05, -1.0, 1.0, wall=-3.0)
    for copies, measured in ((1, 731.5), (2, 360.3), (4, 183.9)):
        assert theory.parallel_time([one] * copies).value == pytest.approx(measured, rel=0.04)
    mixed = theory.parallel_time([Time(2.0, "a"), Time(3.0, "a", ("why",), recalled=True)])
    assert mixed.value == pytest.approx(1 / (math.exp(-2) + math.exp(-3)))
    assert (mixed.reasons, mixed.recalled) == (("why",), True)
    with pytest.raises(ArgumentError, match="one convention"):
        theory.parallel_time([Time(2.0, "a"), Time(3.0, "b")])


def test_determinants_of_valley_and_pass():
    plain = theory.kramers_time(WELL, 0.05).value
    for across, ratio in (((1.0, 4.0), 2.0), ((2.0, 0.5), 0.5)):
        wide = Barrier(0.25, [2.0, across[0]], [across[1], -1.0], along=2.0)
        assert theory.kramers_time(wide, 0.05).value / plain == pytest.approx(ratio)
    turn = np.linalg.qr(np.random.default_rng(2).normal(size=(3, 3)))[0]
    made = Barrier.between(0.25, turn @ np.diag([2.0, 1.0, 5.0]) @ turn.T, turn @ np.diag([-1.0, 4.0, 5.0]) @ turn.T)
    assert (made.uphill, made.downhill) == pytest.approx((2.0, 1.0))
    assert theory.kramers_time(made, 0.05).value / plain == pytest.approx(2.0)
    assert "more than one dimension" in theory.hessian_noise_time(made, lr=0.01, batch_size=1, share=0.5).reasons[0]


def test_sharper_valleys():
    """Theorem 2: log(tau k) falls as 1 / k; white noise: tau goes as 1 / k."""
    sharp = replace(WELL, minimum=2.5 * WELL.minimum, saddle=2.5 * WELL.saddle, along=2.5 * WELL.uphill)
    assert theory.kramers_time(sharp, 0.05).value == pytest.approx(theory.kramers_time(WELL, 0.05).value / 2.5)
    logs = [theory.hessian_noise_time(b, lr=0.02, batch_size=1, share=0.3).log for b in (WELL, sharp)]
    exponent = 2 * 0.25 / 0.02 * (0.3 / 2 + 0.7)
    assert logs[1] - logs[0] == pytest.approx(exponent / 2.5 - exponent - math.log(2.5))


def test_occupation_prefers_flat_valleys_exponentially_under_hessian_noise_only():
    flat, sharp = Barrier(0.3, 1.5, -1.0), Barrier(0.3, 6.0, -1.0)
    white = theory.occupation([theory.kramers_time(b, 0.02) for b in (flat, sharp)])
    assert white[0] / white[1] == pytest.approx(math.sqrt(6 / 1.5))
    shaped = theory.occupation([theory.hessian_noise_time(b, lr=0.1, batch_size=2, share=0.4) for b in (flat, sharp)])
    assert math.log(shaped[0] / shaped[1]) == pytest.approx(2 * 20 * 0.3 * 0.4 * (1 / 1.5 - 1 / 6))
    huge = theory.occupation([Time(2000.0), Time(2001.0), Time(1990.0)])
    assert huge.sum() == pytest.approx(1)
    assert huge[1] / huge[0] == pytest.approx(math.e)


def _klein_kramers_time(temperature, mass, rate, momenta=14):
    """2 / the smallest relaxation rate of (x, v) in the double well: Hermite in v, staggered differences in x."""
    x = np.linspace(-2.1, 2.1, 421)
    middle = (x[1:] + x[:-1]) / 2
    speed, n = math.sqrt(temperature / mass) / (x[1] - x[0]), len(x)

    def loss(u):
        return (u * u - 1) ** 2 / 4 / (2 * temperature)

    def difference(sign):
        left = speed * np.exp(sign * (loss(x[:-1]) - loss(middle)))
        right = speed * np.exp(sign * (loss(x[1:]) - loss(middle)))
        return sp.diags_array([-left, right], offsets=[0, 1], shape=(n - 1, n))

    up, down = difference(1.0), difference(-1.0)  # grid to middles
    blocks = [[None] * momenta for _ in range(momenta)]
    for k in range(momenta):
        blocks[k][k] = -k * rate * sp.eye_array(n - k % 2)
        if k > 0:
            blocks[k][k - 1] = -math.sqrt(k) * (up if k % 2 else -down.T)
        if k + 1 < momenta:
            blocks[k][k + 1] = -math.sqrt(k + 1) * (down if k % 2 else -up.T)
    found = eigs(
        sp.csc_array(sp.block_array(blocks)),
        k=2,
        sigma=1e-7,
        return_eigenvectors=False,
        v0=np.ones(sum(n - k % 2 for k in range(momenta))) + np.concatenate([np.arange(n - k % 2) / n for k in range(momenta)]),
    )
    relaxation = np.sort(-found.real)
    assert abs(relaxation[0]) < 1e-9  # the stationary law
    return 2 / relaxation[1]


@pytest.mark.parametrize(("lr", "momentum"), [(0.002, 0.8), (0.05, 0.7), (0.05, 0.9)])
def test_heavy_ball_against_the_spectrum_of_klein_kramers(lr, momentum):
    temperature = 0.04
    friction = 1 - momentum
    exact = _klein_kramers_time(temperature, lr, friction / lr)
    predicted = theory.heavy_ball_time(WELL, temperature * friction, lr=lr, momentum=momentum)
    assert predicted.valid
    assert exact / predicted.value == pytest.approx(1 + 1.5 * temperature, abs=0.05)
    if lr < 0.01:  # high friction: plain descent with lr / (1 - mu)
        assert predicted.updates(lr) == pytest.approx(theory.kramers_time(WELL, temperature).updates(lr / friction), rel=0.05)


def test_heavy_ball_simulated():
    """2000 walks of SGD with heavy ball and white noise: the mean time has a standard error of 2.2 %."""
    lr, momentum, temperature = 0.05, 0.8, 0.08
    random = np.random.default_rng(7)
    noise = math.sqrt(2 * temperature * (1 - momentum) / lr)  # D = lr c / 2 of plain SGD = temperature (1 - mu)
    x, v, updates = np.full(2000, -1.0), np.zeros(2000), np.zeros(2000)
    alive = np.arange(2000)
    for _ in range(12_000):
        v[alive] = momentum * v[alive] + pull(x[alive]) + noise * random.normal(size=len(alive))
        x[alive] -= lr * v[alive]
        updates[alive] += 1
        alive = alive[x[alive] < 1]
        if not len(alive):
            break
    assert len(alive) < 10
    predicted = theory.heavy_ball_time(WELL, temperature * (1 - momentum), lr=lr, momentum=momentum)
    assert updates.mean() / predicted.updates(lr) == pytest.approx(1.16, abs=0.09)


def test_low_friction_is_flagged():
    assert "slow gain of energy" in theory.heavy_ball_time(WELL, 2e-6, lr=1.0e-1, momentum=0.9999).reasons[-1]
    assert theory.heavy_ball_time(WELL, 0.005, lr=0.05, momentum=0.9).valid


def test_adam_by_quadrature_of_its_walk():
    lr, batch = 0.01, 3.0

    def drift(x):
        return pull(x) * np.sqrt(batch / np.where(np.abs(x) > C, 2.0, 1.0))

    predicted = theory.adam_time(WELL, lr=lr, batch_size=batch, share=4 / 9)
    exact = theory.mean_passage_time(drift, lr / 2, -1.0, 1.0, wall=-2.5, breaks=[-C, C])
    assert exact.log - predicted.log == pytest.approx(0, abs=0.02)
    assert predicted.recalled
    exponent = 2 * math.sqrt(3) * 0.25 / lr * (4 / 9 / math.sqrt(2) + 5 / 9)
    assert predicted.log == pytest.approx(exponent + math.log(2 * math.pi / math.sqrt(3) / 2**0.25))


def test_adaptive_inertia_by_quadrature_of_its_walk():
    lr, batch, mean = 0.01, 2.0, 1.3

    def gain(x):  # lr / (1 - beta1) over lr, with beta0 = 0.1
        return mean / (0.1 * np.where(np.abs(x) > C, 2.0, 1.0))

    logs, exponents = [], []
    for rate in (0.1 * lr, 0.05 * lr):
        exact = theory.mean_passage_time(
            lambda x: pull(x) * gain(x),
            lambda x, rate=rate: piecewise(batch / rate)(x) * gain(x) ** 2,
            -1.0,
            1.0,
            wall=-2.5,
            breaks=[-C, C],
        )
        found = theory.adaptive_inertia_exponent(WELL, lr=rate, batch_size=batch, mean_curvature=mean)
        logs.append(exact.log)
        exponents.append(found.value)
    assert logs[1] - logs[0] == pytest.approx(exponents[1] - exponents[0], rel=0.01)
    assert found.recalled
    assert "contrary" in found.reasons[0]


def test_heavy_ball_under_hessian_noise():
    plain = theory.hessian_noise_time(WELL, lr=1e-5 / 0.3, batch_size=2e-4, share=0.4)
    ball = theory.heavy_ball_hessian_time(WELL, lr=1e-5, batch_size=2e-4, share=0.4, momentum=0.7)
    assert ball.updates(1e-5) == pytest.approx(plain.updates(1e-5 / 0.3), rel=0.001)
    assert ball.recalled
    assert not plain.recalled


def test_power_law_by_quadrature_after_ito():
    """Noise 2 L h / B of the gradient: D = lr L h / B, walked to the same L(b) from deeper and deeper minima."""
    h, ratio = 2.0, 10.0
    logs = []
    for least in (1e-3, 1e-4):

        def loss(x, least=least):
            return least + h * x**2 / 2

        end = math.sqrt(2 * (1.0 - least) / h)
        time = theory.mean_passage_time(lambda x: h * x, lambda x, loss=loss: loss(x) * h / ratio, 0.0, end, wall=-3.0)
        logs.append(time.log)
    predicted = theory.power_law_exponent(h, lr=0.1, batch_size=1.0)
    assert (logs[1] - logs[0]) / math.log(10) == pytest.approx(predicted.value, abs=0.01)
    assert predicted.recalled


def test_variance_at_a_saddle_is_the_limit_of_the_discrete_one():
    fine = theory.transient_variance(-1.4, 0.9, 10_000, lr=1e-4, batch_size=3)[0]
    assert theory.saddle_variance(1.4, 1e-4 * 0.9 / 6, 1.0) == pytest.approx(fine, rel=1e-3)


def test_low_barriers_and_coarse_steps_are_flagged():
    assert "only 2.5 times the noise" in theory.kramers_time(WELL, 0.1).reasons[0]
    coarse = theory.hessian_noise_time(WELL, lr=0.3, batch_size=10, share=0.5)
    assert coarse.reasons == ("lr times the curvature is 0.6: steps are too coarse for a formula of continuous time",)
    assert theory.hessian_noise_time(WELL, lr=0.2, batch_size=10, share=0.5).valid


def test_times_beyond_floats_keep_their_logarithm():
    time = theory.kramers_time(WELL, 1e-4)
    assert time.log == pytest.approx(2500 + math.log(2 * math.pi / math.sqrt(2)))
    assert time.value == math.inf


def test_wrong_arguments_of_the_escapes():
    with pytest.raises(ArgumentError, match="saddle: expected 2 curvatures, one < 0"):
        Barrier(0.2, [1.0, 2.0], [-1.0, -2.0], along=1.0)
    with pytest.raises(ArgumentError, match="along: expected"):
        Barrier(0.2, [1.0, 2.0], [-1.0, 2.0])
    with pytest.raises(ArgumentError, match="minimum: expected curvatures > 0"):
        Barrier(0.2, 0.0, -1.0)
    with pytest.raises(ArgumentError, match="share: expected 0 <= s <= 1"):
        theory.hessian_noise_time(WELL, lr=0.1, batch_size=1, share=-0.7)
    with pytest.raises(ArgumentError, match="convention: expected one of"):
        theory.hessian_noise_time(WELL, lr=0.1, batch_size=1, share=0.5, convention="stratonovich")
    with pytest.raises(ArgumentError, match="detect: expected one of well, saddle"):
        theory.kramers_time(WELL, 0.1, detect="end")
    with pytest.raises(ArgumentError, match=r"loss_switch: expected L\(a\) <= L\(c\)"):
        theory.escape_share(0.3, 0.0, 0.25)
    with pytest.raises(ArgumentError, match="between wall and end"):
        theory.mean_passage_time(pull, 0.1, -1.0, 1.0, wall=0.0)
    with pytest.raises(ArgumentError, match="expected D > 0 and a finite gradient"):
        theory.mean_passage_time(pull, lambda x: np.abs(x) - 0.5, -1.0, 1.0, wall=-3.0)
    with pytest.raises(ArgumentError, match="move the ends nearer"):
        theory.mean_passage_time(pull, 1e-6, -1.0, 1.0, wall=-9.0)
