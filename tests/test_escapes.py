"""Escape experiments against quadratures, closed forms and the numbers of the specification's solvable cases."""

import numpy as np
import pytest
import torch
from torch import nn

from sgdscope import landscapes
from sgdscope.datasets import load
from sgdscope.errors import ArgumentError, DataError
from sgdscope.escapes import (
    Box,
    LossLevel,
    Minibatch,
    Network,
    Point,
    Prescribed,
    Raised,
    Rescaled,
    Shaped,
    Tang,
    Threshold,
    Trough,
    Waiting,
    Wells,
    White,
    escape,
    hessian_noise,
    hypotheses,
    largest_against_rest,
    line,
    occupation,
    scaling,
)
from sgdscope.escapes.run import _Walkers, occupied
from sgdscope.statistics import exponential_rate, exponentiality
from sgdscope.theory.passage import mean_passage_time

F64 = torch.float64
GRADIENT, PAST = (lambda x: x**3 - x), Threshold(1.0)
KINK = (-(3**-0.5), 3**-0.5)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def points(d, n=7, seed=3):
    return 1.7 * torch.randn(n, d, generator=seeded(seed), dtype=F64) + 0.3


def left(potential, valley, noise, *, seed=1, **options):
    return escape(potential, valley, noise, generator=seeded(seed), **({"walkers": 1000, "enough": 0.9} | options))


def piecewise(b_over_lr):
    return lambda x: np.where(np.abs(x) > 3**-0.5, 2.0, 1.0) / (2 * b_over_lr)


# --- potentials ---------------------------------------------------------------------------------------------------------------

POTENTIALS = {
    "wells": Wells(3, barrier=0.7, stretch=1.6),
    "trough": Trough(3.0, 0.4),
    "tang": Tang(4),
    "raised": Raised(Wells(2, barrier=0.4), 1.3),
    "rescaled": Rescaled(Tang(3), 2.3),
}


@pytest.mark.parametrize("name", POTENTIALS)
def test_gradients_are_those_of_the_values(name):
    potential = POTENTIALS[name]
    thetas = points(potential.size).requires_grad_()
    (wanted,) = torch.autograd.grad(potential.value(thetas).sum(), thetas)
    assert torch.allclose(potential.gradient(thetas.detach()), wanted, rtol=1e-12, atol=1e-12)
    assert potential.gradient(potential.start()[None]).abs().max() < 1e-5
    assert len(potential.start()) == potential.size


def test_wells_and_tang_are_the_landscapes():
    wells, tang = landscapes.DoubleWell(barrier=0.7), landscapes.StyblinskiTang(3)
    for x in points(1):
        assert float(Wells(barrier=0.7).value(x[None])) == pytest.approx(wells.value(x), rel=1e-12)
    for x in points(3):
        assert float(Tang(3).value(x[None])) == pytest.approx(tang.value(x), rel=1e-12)
    assert torch.allclose(Tang(3).start(), tang.minimum)
    assert Tang().barrier == pytest.approx(39.36178, abs=1e-5)
    assert (Tang(population=True).minimum, Tang(population=True).saddle) == pytest.approx((-2.35191, 0.25325), abs=1e-5)


@pytest.mark.parametrize("potential", [Wells(2, barrier=0.6, stretch=1.5), Tang(2), Rescaled(Wells(2), 1.9)])
def test_smooth_curvature_is_the_second_derivative(potential):
    thetas = points(2).requires_grad_()
    gradient = potential.gradient(thetas)
    (wanted,) = torch.autograd.grad(gradient.sum(), thetas)
    found = potential.curvature(thetas.detach(), 0.03)
    share = 1.9 if isinstance(potential, Rescaled) else 1.0
    assert torch.allclose(found, wanted.abs() + 0.03 * share, rtol=1e-9)


def test_piecewise_curvature_is_that_of_minimum_and_saddle():
    x = torch.tensor([[-1.3], [-0.6], [-0.5], [0.3], [0.4], [0.9]], dtype=F64)
    assert Wells(barrier=0.5, stretch=1.5).curvature(x).flatten().tolist() == [4, 4, 2, 4.5, 9, 9]
    assert Tang(1).curvature(torch.tensor([[-1.7], [-1.6]], dtype=F64)).flatten().tolist() == pytest.approx([34.5831, 15.8526])
    assert Rescaled(Wells(), 3.0).sharpness() == pytest.approx(6.0)
    assert Rescaled(Tang(), 2.0).sharpness() == pytest.approx(2 * 34.5831, abs=1e-3)
    assert Tang(population=True).sharpness() == pytest.approx(6 * 2.35191**2 - 10, abs=1e-3)


def test_batches_of_tang_have_the_mean_of_the_specification():
    theta = torch.tensor([[-2.3, 0.7]], dtype=F64)
    found = Tang(2).minibatch(theta.repeat(20000, 1), 3, seeded())
    wanted = 2 * theta**3 - 10 * theta + 2.5  # not f', which has -16 theta
    assert torch.allclose(found.mean(0), wanted[0], atol=5 * float(found.std(0).max()) / 20000**0.5)
    ratio = Tang(2).minibatch(theta.repeat(20000, 1), 1, seeded()).var(0) / found.var(0)
    assert ratio.tolist() == pytest.approx([3, 3], rel=0.05)


@pytest.mark.parametrize(
    ("noise", "potential"),
    [
        (Shaped(1.4), Wells(2)),
        (Minibatch(2), Tang(2)),
        (White(0.11), Wells(2)),
        (Shaped(2.0, of_loss=True), Raised(Wells(2), 0.2)),
    ],
)
def test_curvature_and_learning_rate_are_one_knob(noise, potential):
    # theta' = sqrt(k) theta: a walk on L_k with lr is the walk on L with k lr, noise of batches and white noise of one D alike
    k, lr = 1.7, 0.012 if isinstance(potential, Tang) else 0.13
    valley = Threshold(0.3)
    sharper = left(Rescaled(potential, k), valley.scaled(k), noise, lr=lr, walkers=60)
    faster = left(potential, valley, noise, lr=k * lr, walkers=60)
    assert (sharper.times == faster.times).mean() > 0.9  # rounding may tip a walker; the factors 1 and k^2 leave none in common
    assert np.median(sharper.times) > 5


# --- valleys ------------------------------------------------------------------------------------------------------------------


def test_insides():
    thetas = torch.tensor([[0.4, 2.0], [0.61, 2.0], [0.5, 1.89], [float("nan"), 2.0]], dtype=F64)
    value = Wells(2).value
    box = Box(torch.tensor([0.5, 2.0], dtype=F64), 0.1)
    assert box.inside(thetas, value).tolist() == [True, False, False, False]
    assert Threshold(0.55).inside(thetas[:, :1], value).tolist() == [True, False, True, False]
    assert Threshold(1.95, 1).inside(thetas, value).tolist() == [False, False, True, False]
    assert Threshold(0.45, above=True).inside(thetas, value).tolist() == [False, True, True, False]
    level = float(value(thetas[2:3]))
    assert LossLevel(level).inside(thetas, value).tolist() == [False, False, True, False]
    scaled = box.scaled(4.0)
    assert (scaled.centre.tolist(), scaled.radius) == ([0.25, 1.0], 0.05)
    assert Threshold(3.0, 1, True).scaled(9.0) == Threshold(1.0, 1, True)
    assert LossLevel(0.3).scaled(5.0) == LossLevel(0.3)


# --- waiting times against exact ones -----------------------------------------------------------------------------------------


def test_white_noise_takes_the_exact_time_and_half_of_it_to_the_saddle():
    # S1, D = 0.1: 66.27 to the other well, 30.82 to the saddle (Kramers 54.1); errors 2 %, of the learning rate some 2 %
    exact = mean_passage_time(GRADIENT, 0.1, -1.0, 1.0, wall=-3.0).value
    assert exact == pytest.approx(66.2686, abs=1e-3)
    found = left(Wells(), PAST, White(0.1), lr=0.02, walkers=3000)
    assert found.tau * found.lr == pytest.approx(exact, rel=0.07)
    half = left(Wells(), Threshold(0.0), White(0.1), lr=0.01, walkers=3000)
    assert half.tau * half.lr == pytest.approx(30.8213, rel=0.1)  # late by O(sqrt(lr D)), as the specification says
    low, high = (1 / rate * found.lr for rate in found.interval[::-1])
    assert high / low == pytest.approx(1 + 4 * found.log_stderr, rel=0.1)


def test_noise_of_the_hessian_is_simulated_as_ito():
    # S2 at B / lr = 10: Ito exp(5.2214), isothermal exp(5.8131), Theorem 2 exp(5.7268)
    exact = mean_passage_time(GRADIENT, piecewise(10.0), -1.0, 1.0, wall=-3.0, breaks=KINK).value
    assert np.log(exact) == pytest.approx(5.2214, abs=2e-4)
    found = left(Wells(), PAST, Shaped(0.2), lr=0.02)
    assert found.tau * found.lr == pytest.approx(exact, rel=0.1)


def test_smooth_noise_takes_the_exact_time_too_and_far_longer_than_piecewise():
    noise = lambda x: (np.abs(3 * x**2 - 1) + 0.3) / (2 * 6.0)  # ruff: ignore[lambda-assignment]
    exact = mean_passage_time(GRADIENT, noise, -1.0, 1.0, wall=-3.0).value
    found = left(Wells(), PAST, Shaped(0.12, smooth=0.3), lr=0.02)
    assert found.tau * found.lr == pytest.approx(exact, rel=0.12)
    plain = mean_passage_time(GRADIENT, piecewise(6.0), -1.0, 1.0, wall=-3.0, breaks=KINK).value
    assert abs(np.log(exact / plain)) > 0.3  # the exponents differ: 0.686 against 0.389 a unit of B / lr, at B / lr = 6


def test_noise_of_the_loss_takes_its_exact_time():
    noise = lambda x: piecewise(0.8)(x) * 2 * (0.25 * (x * x - 1) ** 2 + 0.05)  # ruff: ignore[lambda-assignment]
    exact = mean_passage_time(GRADIENT, noise, -1.0, 1.0, wall=-3.0, breaks=KINK).value
    found = left(Raised(Wells(), 0.05), PAST, Shaped(0.016, of_loss=True), lr=0.02)
    assert found.tau * found.lr == pytest.approx(exact, rel=0.12)


def test_rates_add_over_directions():
    # S8: D = 0.05 gives 731.5, 360.3 and 183.9 for 1, 2 and 4 directions
    four = left(Wells(4), PAST, White(0.05), lr=0.05)
    assert four.tau * four.lr == pytest.approx(183.9, rel=0.1)


def test_walls_that_widen_or_narrow_at_the_saddle():
    # S9 at D = 0.07: 1.50 and 0.60 times the one-dimensional time; the bands are the specification's
    plain = left(Trough(1.0, 1.0), Threshold(1.0, 0), White(0.07), lr=0.05, seed=5).tau
    narrow = left(Trough(1.0, 4.0), Threshold(1.0, 0), White(0.07), lr=0.05, seed=6).tau
    wide = left(Trough(2.0, 0.5), Threshold(1.0, 0), White(0.07), lr=0.05, seed=7).tau
    assert 1.3 < narrow / plain < 2.1
    assert 0.45 < wide / plain < 0.7


def test_tang_in_the_set_up_of_the_paper():
    # S10: log of updates over 1 / lr 0.0558 for batches of one, 108 updates at lr 0.01 (60 walkers, 13 %);
    # 38.4 over 1 / D under white noise, of a barrier 39.36
    valley, rates, heats = Threshold(0.156731), (0.007, 0.01, 0.014, 0.02), (7.0, 8.5, 10.5)
    batches = [left(Tang(), valley, Minibatch(1), lr=lr, walkers=400) for lr in rates]
    slope = np.polyfit([1 / lr for lr in rates], np.log([b.tau for b in batches]), 1)[0]
    assert slope == pytest.approx(0.0558, rel=0.12)  # 0.045 if lr tau were meant
    assert batches[1].tau == pytest.approx(108, rel=0.3)
    whites = [left(Tang(), Threshold(0.4567), White(d), lr=0.002, walkers=300) for d in heats]
    fit = scaling(
        [Point(np.log(w.tau), w.log_stderr, lr=w.lr, diffusion=d) for w, d in zip(whites, heats, strict=True)], "temperature"
    )
    assert fit.slope == pytest.approx(39.36, rel=0.12)
    assert fit.r > 0.99


def test_momentum_raises_rate_and_temperature():
    # heavy ball, small steps: lr / (1 - beta) and D / (1 - beta); the limit beta = 0 is the plain walk, bit for bit
    exact = mean_passage_time(GRADIENT, 0.1, -1.0, 1.0, wall=-3.0).value
    found = left(Wells(), PAST, White(0.05), lr=0.01, momentum=0.5)
    assert found.tau * found.lr / 0.5 == pytest.approx(exact, rel=0.12)
    plain = [left(Wells(), PAST, White(0.1), lr=0.1, walkers=40, **more).times for more in ({}, {"momentum": 0.0})]
    assert (plain[0] == plain[1]).all()


def test_prescribed_noise_is_white_noise_where_it_is_isotropic():
    # covariance 2 D / lr of the gradient is diffusion D; of the same trace, isotropic noise has half of it in each of two axes
    lr, factor = 0.05, torch.tensor([[(2 * 0.1 / 0.05) ** 0.5], [0.0]], dtype=F64)
    exact = mean_passage_time(GRADIENT, 0.1, -1.0, 1.0, wall=-3.0).value
    one = left(Wells(2), Threshold(1.0), Prescribed(2**0.5 * factor, 2.0), lr=lr)
    assert one.tau * lr == pytest.approx(exact, rel=0.1)
    even = Prescribed(factor, 1.5).isotropic()
    assert float(even.factor.square().sum()) == pytest.approx(float(factor.square().sum()))
    assert torch.allclose(even.factor, float(even.factor[0, 0]) * torch.eye(2, dtype=F64))
    assert even.batch_size == pytest.approx(1.5)


# --- estimates ----------------------------------------------------------------------------------------------------------------


def test_the_estimate_is_the_censored_maximum_likelihood():
    times, censored = np.array([3.0, 10.0, 10.0, 7.0]), np.array([False, True, True, False])
    found = Waiting(times, censored, torch.zeros(4, 1), 0.2)
    assert (found.escapes, found.at_risk, found.tau) == (2, 30.0, 15.0)
    assert found.log_stderr == pytest.approx(2**-0.5)
    assert found.interval == exponential_rate(times, censored)[1]
    second = Waiting(times, censored, torch.zeros(4, 1), 0.2, by_count=True)
    assert second.interval == pytest.approx(tuple(np.array([0.48441857, 11.14328678]) / 60))  # chi2_4 at 2.5 and 97.5 %


def test_ending_early_changes_nothing_but_the_precision():
    whole = left(Wells(), PAST, White(0.1), lr=0.1, enough=1.0, walkers=2000)
    most = left(Wells(), PAST, White(0.1), lr=0.1, enough=0.5, walkers=2000)
    assert most.escapes == pytest.approx(1000, abs=3)
    assert (np.sort(most.times)[:900] == np.sort(whole.times)[:900]).all() or most.times.max() < np.quantile(whole.times, 0.55)
    assert np.log(most.tau / whole.tau) == pytest.approx(0.0, abs=0.12)
    assert most.times.max() == most.times[most.censored].min()


def test_walkers_that_never_leave_are_censored_and_said():
    found = left(Wells(), PAST, White(1e-4), lr=0.1, walkers=20, max_updates=130)
    assert (found.escapes, found.tau, found.rate) == (0, float("inf"), 0.0)
    assert found.at_risk == 20 * 130
    assert found.interval.low == 0
    assert found.interval.high == pytest.approx(7.377759 / (2 * 2600))  # chi2_2 at 97.5 %
    assert "none of 20 walkers left within 130 updates" in found.flags[0]
    assert found.told()["tau"] is None


def test_divergence_is_no_escape():
    found = left(Tang(2), Threshold(0.5), White(1.0), lr=0.2, walkers=20, max_updates=500)
    assert found.diverged == 20
    assert any("diverged" in flag for flag in found.flags)
    loud = left(Wells(), PAST, White(50.0), lr=0.1, walkers=200)
    assert any("not rare" in flag for flag in loud.flags)


def test_the_chunk_is_no_part_of_the_result(monkeypatch):
    from sgdscope.escapes import run

    asked = {"lr": 0.1, "walkers": 1, "max_updates": 900}
    whole = left(Wells(), PAST, White(0.1), **asked)
    monkeypatch.setattr(run, "CHUNK", 7)
    assert left(Wells(), PAST, White(0.1), **asked).times == whole.times


def test_exponentiality_holds_its_level_and_rejects_others():
    rng, low = np.random.default_rng(2), 0
    for seed in range(120):
        times = np.ceil(rng.exponential(60, 80))
        censored = times > 100
        low += exponentiality(np.minimum(times, 100), censored, resolution=1.0, resamples=99, seed=seed)[1] < 0.1
    assert 3 <= low <= 24  # binomial(120, 0.1): p < 5e-4 outside
    assert exponentiality(rng.gamma(3, 20, 100), np.zeros(100, bool))[1] < 0.01
    bounded = np.minimum(rng.gamma(3, 20, 100), 50)
    assert exponentiality(bounded, bounded == 50)[1] < 0.05
    assert np.isnan(exponentiality([1.0, 2.0, 5.0], [False, False, True])).all()
    with pytest.raises(ArgumentError, match="expected one common end"):
        exponentiality([1.0, 3.0, 2.0], [False, False, True])


# --- occupation ---------------------------------------------------------------------------------------------------------------


def test_occupation_is_the_zero_flux_law():
    r = 2.0
    wells = Wells(stretch=r**0.5)
    starts = (wells.start(), -wells.start() / r**0.5)
    found = occupation(wells, Threshold(0.0), White(0.12), lr=0.05, starts=starts, walkers=200, updates=8000, generator=seeded(1))
    assert found.mixed
    assert found.log_odds == pytest.approx(0.5 * np.log(r), abs=0.12)  # not 0, and not log r

    def weight(x, b_over_lr=6.0):  # Ito: P = exp(-Phi) / D; the right half has r times the noise at u = stretch x
        u, scale = np.where(x > 0, r**0.5 * x, x), np.where(x > 0, r, 1.0)
        noise = piecewise(b_over_lr)(u) * scale
        grid = np.concatenate([[0.0], np.cumsum(np.diff(x) * ((np.where(x > 0, r**0.5, 1) * (u**3 - u)) / noise)[:-1])])
        return np.exp(-grid) / noise

    x = np.linspace(-2.5, 2.5, 400_001)
    p = weight(x)
    shaped = occupation(
        wells, Threshold(0.0), Shaped(0.3), lr=0.05, starts=starts, walkers=200, updates=12000, generator=seeded(2)
    )
    assert shaped.log_odds == pytest.approx(np.log(p[x < 0].sum() / p[x > 0].sum()), abs=0.15)
    few = occupation(wells, Threshold(0.0), White(0.02), lr=0.05, starts=starts, walkers=10, updates=100)
    assert not few.mixed


def test_odds_of_the_walkers_shares_by_hand():
    found = occupied(np.array([0.1, 0.3, 0.2, 0.4]), 7.0)
    assert found.log_odds == pytest.approx(np.log(1 / 3))
    assert found.stderr == pytest.approx(np.sqrt(0.05 / 3) / 2 / (0.25 * 0.75))
    assert found.crossings == pytest.approx(7.0)
    halves = (0.1 / (0.2 * 0.8), 0.1 / (0.3 * 0.7))  # 0.2 +- 0.1 and 0.3 +- 0.1
    assert found.apart == pytest.approx((np.log(1 / 4) - np.log(3 / 7)) / np.hypot(*halves))


# --- fits ---------------------------------------------------------------------------------------------------------------------


def test_a_line_by_hand():
    fit = line([1.0, 2.0, 4.0], [3.0, 5.0, 8.0], [0.5, 1.0, 0.5])
    w, x, y = np.array([4, 1, 4.0]), np.array([1, 2, 4.0]), np.array([3, 5, 8.0])
    design = np.stack([np.ones(3), x], 1) * np.sqrt(w)[:, None]
    wanted, rest, *_ = np.linalg.lstsq(design, y * np.sqrt(w), rcond=None)
    assert (fit.intercept, fit.slope) == pytest.approx(tuple(wanted))
    assert fit.chi2 == pytest.approx(rest[0])
    assert fit.stderr == pytest.approx(np.linalg.inv(design.T @ design)[1, 1] ** 0.5)  # chi2 < 1: not narrowed
    loud = line([1.0, 2.0, 4.0], [3.0, 9.0, 8.0], [0.5, 1.0, 0.5])
    assert loud.stderr == pytest.approx(fit.stderr * loud.chi2**0.5)
    assert 0 < loud.p < 0.05 < fit.p


def test_laws_move_the_prefactors_to_the_left():
    def at(k, b, lr):
        return Point(0.7 * b / (lr * k) - np.log(k) - np.log(lr) + 2.0, 0.1, k=k, batch_size=b, lr=lr, diffusion=lr / b)

    assert scaling([at(k, 3.0, 0.4) for k in (1.0, 1.7, 3.0)], "sharpness").slope == pytest.approx(0.7 * 3 / 0.4)
    assert scaling([at(1.3, 3.0, lr) for lr in (0.2, 0.3, 0.5)], "lr").slope == pytest.approx(0.7 * 3 / 1.3)
    assert scaling([at(1.3, b, 0.4) for b in (1.0, 2.0, 5.0)], "batch_size").slope == pytest.approx(0.7 / 0.4 / 1.3)
    power = [Point(2.0 - 1.4 * np.log(k) - np.log(0.3), 0.1, k=k, lr=0.3) for k in (1.0, 2.0, 5.0)]
    assert scaling(power, "polynomial").slope == pytest.approx(-1.4)


def test_the_barrier_that_sets_the_time_is_found():
    # wells of one curvature and several heights, lifted by an offset: with noise 2 L |H| the log barrier sets the exact time,
    # with noise |H| the barrier does
    plain, ratio = [], []
    for barrier, offset in ((0.2, 0.02), (0.2, 0.06), (0.35, 0.02), (0.35, 0.1), (0.25, 0.2)):
        w = (4 * barrier) ** 0.5

        def gradient(x, w=w):
            return x * ((x / w) ** 2 - 1)

        def of_loss(x, w=w, b=barrier, o=offset):
            return piecewise(1.5)(x / w) * 2 * (b * ((x / w) ** 2 - 1) ** 2 + o)

        def of_curvature(x, w=w):
            return piecewise(8.0)(x / w)

        told = {"barrier": barrier, "log_barrier": np.log((barrier + offset) / offset)}
        for found, noise in ((plain, of_curvature), (ratio, of_loss)):
            breaks = (-w * 3**-0.5, w * 3**-0.5)
            exact = mean_passage_time(gradient, noise, -w, w, wall=-2.0 * w, breaks=breaks).value
            found.append(Point(float(np.log(exact)), 0.07, **told))
    assert hypotheses(plain).winner == "barrier"
    assert hypotheses(ratio).winner == "log barrier"
    assert hypotheses(plain).difference < -10 < 10 < hypotheses(ratio).difference
    noisy = [Point(p.log_tau, 5.0, barrier=p.barrier, log_barrier=p.log_barrier) for p in plain]
    assert hypotheses(noisy).winner == "neither"


def test_scatter_that_neither_line_bears_out_is_no_evidence():
    barriers, ratios, kicks = np.arange(1.0, 7.0), np.arange(1.0, 7.0) ** 2, np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])
    points = [Point(b + 0.3 * kick, 0.05, barrier=b, log_barrier=r) for b, r, kick in zip(barriers, ratios, kicks, strict=True)]
    found = hypotheses(points)
    assert found.barrier.chi2 > 4 * 10
    assert found.log_barrier.chi2 - found.barrier.chi2 > 10  # with the errors as they were given one would win
    assert found.difference == pytest.approx(4 * (1 - found.log_barrier.chi2 / found.barrier.chi2))
    assert found.winner == "neither"


# --- networks -----------------------------------------------------------------------------------------------------------------


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


@pytest.fixture(scope="module")
def net():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        x = torch.randn(30, 3)
        y = (x[:, 0] + 0.7 * torch.randn(30) > 0).long()
    return model, (x, y), Network(model, cross_entropy, (x, y))


def dense(model, data, theta):
    """Loss and gradient of one replica by plain autograd, in float64."""
    import copy

    own = copy.deepcopy(model).double()
    with torch.no_grad():
        nn.utils.vector_to_parameters(theta, own.parameters())
    loss = nn.functional.cross_entropy(own(data[0].double()), data[1])
    return float(loss.detach()), torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(own.parameters()))])


def test_replicas_are_the_network(net):
    model, data, potential = net
    before = [p.clone() for p in model.parameters()]
    thetas = potential.start() + 0.3 * points(potential.size, 4)
    wanted = [dense(model, data, theta) for theta in thetas]
    assert potential.value(thetas).tolist() == pytest.approx([v for v, _ in wanted], rel=1e-12)
    assert torch.allclose(potential.gradient(thetas), torch.stack([g for _, g in wanted]), rtol=1e-10, atol=1e-13)
    chosen = torch.randint(30, (4, 5), generator=seeded(9))
    batches = [dense(model, (data[0][rows], data[1][rows]), theta)[1] for rows, theta in zip(chosen, thetas, strict=True)]
    assert torch.allclose(potential.minibatch(thetas, 5, seeded(9)), torch.stack(batches), rtol=1e-10, atol=1e-13)
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


def test_a_network_settles_and_is_left(net):
    _, _, potential = net
    settled = potential.settle(400, lr=0.3)
    assert float(settled.gradient(settled.start()[None]).norm()) < 0.1 * float(potential.gradient(potential.start()[None]).norm())
    found = escape(settled, Box(settled.start(), 0.2), Minibatch(1), lr=1.0, walkers=20, max_updates=3000, generator=seeded())
    assert found.escapes == 20
    assert ((found.exits - settled.start()).abs().max(1).values > 0.2).all()
    sharper = Rescaled(settled, 2.5)
    assert sharper.sharpness() == pytest.approx(2.5 * settled.sharpness())


def test_hessian_noise_has_the_covariance_of_the_hessian(net):
    _, _, potential = net
    size = potential.size
    hessian = torch.stack([potential.hvp(e) for e in torch.eye(size, dtype=F64)])
    step = 1e-5 * torch.eye(size, dtype=F64)
    numeric = (potential.gradient(potential.start() + step) - potential.gradient(potential.start() - step)) / 2e-5
    assert torch.allclose(hessian, numeric, atol=1e-8)
    noise = hessian_noise(potential.hvp, size, rank=3, batch_size=4.0, generator=seeded(), tolerance=1e-8)
    values, vectors = torch.linalg.eigh(hessian)
    top = vectors[:, -3:] * values[-3:] @ vectors[:, -3:].T
    assert torch.allclose(noise.factor @ noise.factor.T, top, atol=1e-7)
    assert potential.sharpness() == pytest.approx(float(values[-1]), rel=1e-3)


def test_grouping_into_two_classes():
    y = torch.tensor([4, 0, 4, 2, 0, 4])
    assert largest_against_rest(y).tolist() == [1, 0, 1, 0, 0, 1]


# --- wrong use ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: escape(Wells(), Threshold(-1.5), White(0.1), lr=0.1), "valley: the start lies outside"),
        (lambda: escape(Wells(), PAST, White(0.1), lr=0.0), "lr: expected a finite number > 0"),
        (lambda: escape(Wells(), PAST, White(0.1), lr=0.1, momentum=1.0), "momentum: expected a number 0 <= momentum < 1"),
        (lambda: escape(Wells(), PAST, White(0.1), lr=0.1, walkers=0), "walkers: expected a whole number of at least 1"),
        (lambda: escape(Wells(), PAST, White(0.1), lr=0.1, enough=1.5), "enough: expected a share"),
        (lambda: escape(Wells(), PAST, White(0.1), lr=0.1, start=torch.zeros(2)), "start: expected a finite point of shape"),
        (lambda: White(-0.1), "diffusion: expected a finite number > 0"),
        (lambda: White(float("nan")), "diffusion: expected a finite number > 0"),
        (lambda: Minibatch(0), "batch_size: expected a whole number"),
        (lambda: Shaped(0.0), "batch_size: expected a finite number > 0"),
        (lambda: Box(torch.zeros(2), -0.1), "radius: expected a finite number > 0"),
        (lambda: Threshold(float("inf")), "at: expected a finite number"),
        (lambda: LossLevel(float("nan")), "level: expected a finite number"),
        (lambda: Prescribed(torch.ones(3)), "factor: expected a finite matrix"),
        (lambda: Rescaled(Wells(), 0.0), "k: expected a finite number > 0"),
        (lambda: escape(Wells(), PAST, Minibatch(2), lr=0.1), "Wells has no examples to draw batches of"),
        (lambda: escape(Trough(1.0, 2.0), PAST, Shaped(2.0), lr=0.1), "no .H. is known of Trough"),
        (lambda: escape(Wells(2), Threshold(1.0, coordinate=5), White(0.1), lr=0.1), "valley: Threshold does not fit d = 2"),
        (lambda: escape(Wells(2), Box(torch.zeros(3), 2.0), White(0.1), lr=0.1), "valley: Box does not fit d = 2"),
        (lambda: escape(Wells(2), PAST, Prescribed(torch.eye(3)), lr=0.1), "noise: Prescribed does not fit d = 2"),
        (lambda: line([1.0, 1.0], [2.0, 3.0], [0.1, 0.1]), "x: all 2 values are 1"),
        (lambda: line([1.0, 2.0], [2.0, float("inf")], [0.1, 0.1]), "drop settings from which nobody escaped"),
        (lambda: hypotheses([Point(1.0, 0.1)] * 2), "need at least 3 points"),
        (lambda: scaling([Point(1.0, 0.1)] * 2, "sharpnes"), "did you mean 'sharpness'"),
    ],
)  # fmt: skip
def test_wrong_use(make, message):
    with pytest.raises((ArgumentError, LookupError), match=message):
        make()


def test_bad_data():
    model, x = nn.Linear(2, 2), torch.randn(6, 2, generator=seeded())
    with pytest.raises(DataError, match="all 6 labels are of class 1"):
        Network(model, cross_entropy, (x, torch.ones(6, dtype=torch.int64)))
    with pytest.raises(DataError, match="inputs are NaN or infinite"):
        Network(model, cross_entropy, (x / 0, torch.tensor([0, 1, 0, 1, 0, 1])))
    with pytest.raises(ArgumentError, match="expected inputs and labels of one length"):
        Network(model, cross_entropy, (x, torch.tensor([0, 1])))
    lstm = nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5))
    assert Network(lstm, cross_entropy, (x, torch.tensor([0, 1, 0, 1, 0, 1]))).size == 6  # evaluation mode: no dropout


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_float_labels_of_one_class_are_refused_under_a_cross_entropy_alone(label):
    x, y = torch.randn(6, 2, generator=seeded()), torch.full((6, 1), label)
    mixed = torch.tensor([0.0, 1, 0, 1, 1, 0])[:, None]
    functional = nn.functional

    def logits(model, batch):
        return functional.binary_cross_entropy_with_logits(model(batch[0]), batch[1])

    def shares(model, batch):
        return functional.binary_cross_entropy(torch.sigmoid(model(batch[0])), batch[1], reduction="none").mean(1)

    torch.manual_seed(2)
    model = nn.Linear(2, 1)
    for loss in (logits, shares):
        with pytest.raises(DataError, match=f"all 6 labels are of class {label:.0f}; the loss of one class has no minimum"):
            Network(model, loss, (x, y))
        assert Network(model, loss, (x, mixed)).examples == 6
    with pytest.raises(DataError, match="all 6 labels are of class"):
        Network(model, logits, (x, y.double()))
    for loss in (functional.mse_loss, functional.l1_loss, functional.huber_loss):
        assert Network(model, lambda m, b, loss=loss: loss(m(b[0]), b[1]), (x, y)).examples == 6  # a constant target
    assert Network(model, lambda m, b: m(b[0]).square().mean(), (x, y)).examples == 6  # no labels in it
    wide = nn.Linear(2, 3)
    with pytest.raises(DataError, match=r"are of class \[0, 1, 0\]"):
        Network(wide, lambda m, b: functional.cross_entropy(m(b[0]), b[1]), (x, torch.tensor([0.0, 1, 0]).repeat(6, 1)))


def test_a_table_tells_constant_features_and_outliers(tmp_path):
    rows = ["a,flat,class"] + [f"{x},3.5,{'u' if x % 2 else 'v'}" for x in range(40)] + ["4000,3.5,u"] * 2
    (tmp_path / "t.csv").write_text("\n".join(rows))
    plain = load(f"csv:{tmp_path / 't.csv'}")
    assert plain.info["constant_features"] == ["flat"]
    assert plain.info["largest"]["feature"] == "a"
    assert plain.info["largest"]["value"] == pytest.approx(float(plain.x.abs().max()))
    clipped = load(f"csv:{tmp_path / 't.csv'}", clip=2.0)
    assert float(clipped.x.abs().max()) == pytest.approx(2.0)
    assert clipped.info["clipped"] == int((plain.x.abs() > 2).sum()) > 0
    assert torch.equal(clipped.x, plain.x.clamp(-2, 2))
    with pytest.raises(ArgumentError, match="clip: expected a number > 0, for the standardised features of a table"):
        load("digits", clip=2.0)
    with pytest.raises(ArgumentError, match="clip: expected a number > 0"):
        load("wine", clip=-1.0)


def test_walkers_that_go_on_keep_their_velocity():
    noise, start = Prescribed(torch.zeros(1, 1)), torch.tensor([[-0.4], [-0.2], [0.7]], dtype=F64)
    whole, parted = (_Walkers(Wells(), noise, start.clone(), (0.05, 0.8, seeded())) for _ in range(2))
    for t in range(9):
        if t == 4:
            parted.keep(torch.tensor([True, False, True]))
        whole.step()
        parted.step()
    assert torch.equal(whole.thetas[[0, 2]], parted.thetas)
    theta, v = -0.4, 0.0
    for _ in range(9):
        v = 0.8 * v + theta**3 - theta
        theta -= 0.05 * v
    assert float(parted.thetas[0]) == pytest.approx(theta, rel=1e-12)
