"""Other batch sizes: the rules against exact moments and simulated walks; averages of workers; schedules exchanged."""

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar

from sgdscope import theory
from sgdscope.errors import ArgumentError


def test_sgd_keeps_its_moments_an_example_and_not_by_the_root():
    base = {"lr": 1e-4, "batch_size": 6, "momentum": 0.0, "steps": 8000}
    new = theory.rescale(base, 4).settings
    assert new == {"lr": 4e-4, "batch_size": 24, "momentum": 0.0, "steps": 2000}

    def moments(s):
        variance = theory.transient_variance(1.3, 2.0, s["steps"], lr=s["lr"], batch_size=s["batch_size"])[0]
        return np.array([(1 - 1.3 * s["lr"]) ** s["steps"], variance])

    assert moments(new) == pytest.approx(moments(base), rel=1e-3)
    assert abs(moments(new | {"lr": 2e-4}) / moments(base) - 1).min() > 0.3  # lr by sqrt(kappa)


def test_heavy_ball_keeps_its_variance():
    base = {"lr": 1e-4, "batch_size": 6, "momentum": 0.8, "weight_decay": 0.01}
    new = theory.rescale(base, 3).settings
    assert (new["momentum"], new["weight_decay"]) == (0.8, 0.01)
    variances = [theory.stationary_variance(1.3, 2.0, **{k: s[k] for k in ("lr", "batch_size", "momentum")}) for s in (base, new)]
    assert variances[1][0] == pytest.approx(variances[0][0], rel=1e-3)


def adam(settings, *, steps, decoupled=0.0, seed=0, chains=20_000):
    """Moments of Adam on h = 1 with noise of unit variance an example, as PyTorch updates, from 0.05."""
    random, (beta1, beta2) = np.random.default_rng(seed), settings["betas"]
    theta, m, v = np.full(chains, 0.05), np.zeros(chains), np.zeros(chains)
    lr, eps, sd = settings["lr"], settings["eps"], settings["batch_size"] ** -0.5
    for t in range(1, steps + 1):
        g = theta + sd * random.normal(size=chains)
        theta = theta * (1 - lr * decoupled)
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g**2
        theta = theta - lr * (m / (1 - beta1**t)) / (np.sqrt(v / (1 - beta2**t)) + eps)
    return np.array([theta.mean(), theta.std()])


BASE = {"lr": 0.002, "batch_size": 4, "betas": (0.99, 0.996), "eps": 0.3}


@pytest.mark.parametrize(("steps", "decoupled"), [(320, 0.0), (160, 1.5)])
def test_adam_by_the_root_on_a_noisy_quadratic(steps, decoupled):
    """20000 walks at equal examples: moments to 0.7 % by chance, 2 to 4 % by the size of the steps; 6 % and more if wrong."""
    method = "adamw" if decoupled else "adam"
    new = theory.rescale(BASE | {"weight_decay": decoupled}, 4, method=method).settings
    assert new["lr"] == pytest.approx(0.004)
    assert new["betas"] == pytest.approx((0.96, 0.984))
    assert new["eps"] == pytest.approx(0.15)
    assert new["batch_size"] == 16
    before = adam(BASE, steps=steps, decoupled=decoupled)
    after = adam(new, steps=steps // 4, decoupled=new["weight_decay"], seed=1)
    assert after == pytest.approx(before, rel=0.05)
    wrong = [new | {"lr": 0.008}, new | {"eps": 0.3}, new | {"lr": 0.002}]
    if not decoupled:
        wrong.append(new | {"betas": BASE["betas"]})
    for settings in wrong:  # linear rule, eps, lr or betas kept
        moments = adam(settings, steps=steps // 4, decoupled=new["weight_decay"], seed=1)
        assert abs(moments / before - 1).max() > 0.09
    if decoupled:
        assert new["weight_decay"] == pytest.approx(3.0)
        assert abs(adam(new, steps=steps // 4, decoupled=1.5, seed=1) / before - 1).max() > 0.09


def test_coupled_weight_decay_of_adam_is_kept_and_eps_inside_the_root_is_divided_by_kappa():
    new = theory.rescale(BASE | {"weight_decay": 0.1}, 4, method="adam", eps_inside=True).settings
    assert (new["weight_decay"], new["eps"]) == (0.1, pytest.approx(0.075))
    variance = 0.7  # the size of v beside an eps inside the root stays what it was
    assert (variance / 4) / new["eps"] == pytest.approx(variance / BASE["eps"])


def test_rmsprop_and_averages():
    base = {"lr": 0.01, "batch_size": 8, "alpha": 0.98, "eps": 1e-6, "ema_decay": 0.999, "batchnorm_momentum": 0.1}
    new = theory.rescale(base, 5, method="rmsprop").settings
    assert new["alpha"] == pytest.approx(0.9)
    assert new["lr"] == pytest.approx(0.01 * math.sqrt(5))
    assert new["ema_decay"] ** 200 == pytest.approx(0.999**1000, rel=1e-12)
    assert (1 - new["batchnorm_momentum"]) ** 4 == pytest.approx(0.9**20, rel=1e-12)
    assert not theory.rescale(base | {"momentum": 0.9}, 5, method="rmsprop").valid
    smaller = theory.rescale({"lr": 0.01, "batch_size": 8, "alpha": 0.9}, 0.25, method="rmsprop").settings
    assert (smaller["alpha"], smaller["batch_size"], smaller["lr"]) == (pytest.approx(0.975), 2, pytest.approx(0.005))


def test_there_and_back_is_the_same():
    base = {
        "lr": 0.003,
        "batch_size": 40,
        "betas": (0.95, 0.99),
        "eps": 1e-8,
        "weight_decay": 0.1,
        "ema_decay": 0.99,
        "steps": 60,
    }
    there = theory.rescale(base, 3, method="adamw").settings
    back = theory.rescale(there, 1 / 3, method="adamw").settings
    for name, value in base.items():
        assert back[name] == pytest.approx(value, rel=1e-12)
        assert name == "betas" or there[name] != value


def test_lengths_divide_or_are_refused():
    new = theory.rescale({"lr": 0.1, "batch_size": 8, "warmup": 40, "milestones": [100, 300]}, 4).settings
    assert (new["warmup"], new["milestones"]) == (10, [25, 75])
    with pytest.raises(ArgumentError, match=r"kappa: warmup becomes 2\.5"):
        theory.rescale({"lr": 0.1, "batch_size": 8, "warmup": 10}, 4)
    with pytest.raises(ArgumentError, match=r"kappa: batch_size becomes 10\.4"):
        theory.rescale({"lr": 0.1, "batch_size": 8}, 1.3)


def test_rescaling_refuses_where_no_walk_is_the_same():
    with pytest.raises(ArgumentError, match=r"expected kappa \(1 - betas\[0\]\) < 1.*take kappa < 10"):
        theory.rescale({"lr": 0.1, "batch_size": 8, "betas": (0.9, 0.999)}, 10, method="adam")
    with pytest.raises(ArgumentError, match="at or beyond the threshold of stability"):
        theory.rescale({"lr": 0.1, "batch_size": 8}, 4, curvature=5.0)
    assert theory.rescale({"lr": 0.1, "batch_size": 8, "momentum": 0.5}, 4, curvature=5.0).reasons
    with pytest.raises(ArgumentError, match="a batch of 80 exceeds the 64 examples; take kappa <= 8"):
        theory.rescale({"lr": 0.1, "batch_size": 8}, 10, examples=64)
    with pytest.raises(ArgumentError, match="no rule for betas, foreach of sgd"):
        theory.rescale({"lr": 0.1, "batch_size": 8, "betas": (0.9, 0.9), "foreach": True}, 2)
    with pytest.raises(ArgumentError, match="expected 'batch_size' among them"):
        theory.rescale({"lr": 0.1}, 2)
    with pytest.raises(ArgumentError, match="method: expected one of"):
        theory.rescale({"lr": 0.1, "batch_size": 8}, 2, method="adagrad")


def test_rescaling_says_what_speaks_against_it():
    assert theory.rescale({"lr": 0.01, "batch_size": 8}, 2, curvature=5.0, examples=4000, noise_to_signal=50).valid
    assert "0.25 of the threshold" in theory.rescale({"lr": 0.05, "batch_size": 8}, 2, curvature=5.0).reasons[0]
    assert "0.4 of the data" in theory.rescale({"lr": 0.01, "batch_size": 8}, 2, curvature=5.0, examples=40).reasons[0]
    assert "ratio of noise to signal, 10" in theory.rescale({"lr": 0.01, "batch_size": 8}, 2, noise_to_signal=10).reasons[0]
    short = theory.rescale({"lr": 0.01, "batch_size": 8, "betas": (0.9, 0.99)}, 6, method="adam")
    assert short.reasons == ("betas[0] = 0.4: a memory of less than two updates, no SDE describes it",)


def problem():
    random = np.random.default_rng(4)
    root, turn = random.normal(size=(3, 3)), np.linalg.qr(random.normal(size=(3, 3)))[0]
    return np.array([0.7, -1.1, 0.4]), root @ root.T, turn @ np.diag([3.0, 1.0, 0.3]) @ turn.T


def test_best_learning_rate_of_a_noisy_step_by_minimising():
    g, c, h = problem()
    scale, largest = theory.noise_scale(g, c, h), g @ g / (g @ h @ g)
    for batch in (0.7, 5.0, 80.0):

        def loss(lr, batch=batch):
            return -lr * g @ g + lr**2 / 2 * (g @ h @ g + np.trace(h @ c) / batch)

        found = minimize_scalar(loss, bounds=(0, 5), method="bounded", options={"xatol": 1e-10})
        assert theory.optimal_lr(batch, largest=largest, scale=scale) == pytest.approx(found.x, rel=1e-6)
        assert found.fun == pytest.approx(-largest * (g @ g) / 2 / (1 + scale / batch), rel=1e-9)  # the model of the trade-off
    assert theory.noise_scale(g, c) == pytest.approx(np.trace(c) / (g @ g))


def test_trade_off_of_steps_and_examples():
    for batch in (30, 700):
        steps, examples = theory.steps_and_examples(batch, least_steps=50, least_examples=9000)
        assert (steps / 50 - 1) * (examples / 9000 - 1) == pytest.approx(1)
        assert examples == pytest.approx(batch * steps)
        assert steps == pytest.approx(50 * (1 + 180 / batch))


def test_noise_scale_from_two_batch_sizes():
    g, c, _ = problem()
    squares = tuple(g @ g + np.trace(c) / b for b in (8, 64))
    assert theory.two_batch_moments((8, 64), squares) == pytest.approx((g @ g, np.trace(c)))
    with pytest.raises(ArgumentError, match="expected 0 < small < big"):
        theory.two_batch_moments((64, 8), squares)


def test_largest_rescaling_is_the_edge_of_stability_on_a_quadratic():
    lr, h, c, batch = 0.03, 2.3, 1.7, 5
    variance = theory.stationary_variance(h, c, lr=lr, batch_size=batch)[0]
    found = theory.largest_rescaling(c / batch / (h**2 * variance))
    assert found.value == pytest.approx(2 / (lr * h))
    assert found.valid
    with pytest.raises(ArgumentError, match="diverges"):
        theory.stationary_variance(h, c, lr=1.0001 * lr * found.value, batch_size=batch)
    curvature, noise = np.array([4.0, 1.0, 0.2]), np.array([1.0, 2.0, 3.0])
    spread = theory.stationary_variance(curvature, noise, lr=lr, batch_size=batch)
    several = theory.largest_rescaling(noise.sum() / batch / (curvature**2 @ spread))
    assert several.value > 2 / (lr * 4.0)
    assert "already the base setting" in theory.largest_rescaling(0.4).reasons[0]


@pytest.mark.parametrize("level", [1, 2, 8])
def test_svag_keeps_the_mean_and_multiplies_the_covariance(level):
    a, b = theory.svag_weights(level)
    assert a + b == pytest.approx(1)
    assert a**2 + b**2 == pytest.approx(level)
    with pytest.raises(ArgumentError, match="level: expected >= 1"):
        theory.svag_weights(0)


def test_svag_tends_to_the_covariance_of_the_sde():
    h, c, lr = 2.5, 1.3, 0.3
    limit = theory.continuous_covariance(h, c, lr=lr, batch_size=4)[0, 0]
    off = [theory.stationary_variance(h, level * c, lr=lr / level, batch_size=4)[0] / limit - 1 for level in (1, 2, 8, 64)]
    assert off[0] == pytest.approx(0.6)
    assert off[3] < 0.007
    assert sorted(off, reverse=True) == off


def test_what_speaks_against_an_sde():
    assert theory.sde_reasons(lr=0.1, curvature=1.9, batch_size=10, examples=101, noise_to_signal=11) == ()
    assert len(theory.sde_reasons(lr=0.1, curvature=2.1, batch_size=11, examples=101, noise_to_signal=9)) == 3
    assert theory.sde_reasons(lr=0.1, curvature=3.0, momentum=0.6) == ()
    assert theory.sde_reasons(lr=0.1, curvature=-30.0) == ()


def test_noise_scale_refuses_downward_curvature():
    with pytest.raises(ArgumentError, match="loss curves down"):
        theory.noise_scale([1.0, 0.5], np.eye(2), np.diag([-1.0, 1.0]))
    assert theory.noise_scale([0.0, 0.0], np.eye(2)) == math.inf


STEPS = [300] * 7 + [100, 50, 10]


def test_errors_of_averages_of_the_specification():
    """c = .98, d_0 = 10, v = 1: the table."""
    moments = theory.worker_moments(STEPS, contraction=0.98, start=10.0, variance=1.0)
    geometric = 0.98 ** (300.0 - np.array(STEPS))
    bias, variance = moments
    optimal = np.linalg.solve(np.outer(bias, bias) + np.diag(variance), np.ones(10))
    expected = {1.8612: np.ones(10), 0.1645: np.array(STEPS, float), 0.14288: geometric, 1.0005: np.eye(10)[0], 0.12519: optimal}
    for value, weights in expected.items():
        error = theory.averaging_error(weights / weights.sum(), *moments)
        assert error == pytest.approx(value, abs=0.6 * 10.0 ** -len(str(value).partition(".")[2]))


def test_worker_moments_simulated():
    """20000 walks: variances to 1 %."""
    random, curvature, lr, noise = np.random.default_rng(9), 0.8, 0.1, 2.0
    stationary = theory.stationary_variance(curvature, noise, lr=lr)[0]
    bias, spread = theory.worker_moments([7, 30], contraction=1 - lr * curvature, start=3.0, variance=stationary)
    x = np.full(20_000, 3.0)
    for t in range(1, 31):
        x = x - lr * (curvature * x + math.sqrt(noise) * random.normal(size=x.shape))
        if t in {7, 30}:
            i = 0 if t == 7 else 1
            assert x.mean() == pytest.approx(bias[i], abs=0.015)
            assert x.var() == pytest.approx(spread[i], rel=0.045)


def test_weights_must_add_up_to_one():
    with pytest.raises(ArgumentError, match="expected a sum of 1"):
        theory.averaging_error([0.5, 0.6], [0.1, 0.2], [1.0, 1.0])


def test_cyclic_learning_rate_becomes_a_cyclic_batch():
    rates = theory.square_wave(0.001, 0.005, stage=4, length=16)
    found = theory.exchange(rates, 128, to="batch_size")
    assert found.batch_size.tolist() == ([128] * 4 + [640] * 4) * 2
    assert found.lr.tolist() == [0.005] * 16
    assert found.mismatch == 0
    plain = theory.Exchange(rates, np.full(16, 128), 0.0)
    assert found.time(45_000) == pytest.approx(plain.time(45_000), rel=1e-12)
    assert plain.updates(45_000).sum() / found.updates(45_000).sum() == pytest.approx(2 / 1.2)
    back = theory.exchange(found.lr, found.batch_size, to="lr")
    assert back.lr == pytest.approx(rates)
    assert back.batch_size.tolist() == [128] * 16


def test_decay_becomes_growth_with_rounding_below_one_percent():
    found = theory.exchange([0.1, 0.03, 0.007], [100, 100, 100], to="batch_size")
    assert found.batch_size.tolist() == [100, 333, 1429]
    ratio = np.array([0.1, 0.03, 0.007]) / 100
    assert np.abs(found.lr / found.batch_size / ratio - 1).max() == pytest.approx(found.mismatch)
    assert 0 < found.mismatch < 0.002
    with pytest.raises(ArgumentError, match=r"stage 1 needs a batch of 6\.667"):
        theory.exchange([0.1, 0.03], 2, to="batch_size")
    other = theory.exchange([0.1, 0.03], 100, to="batch_size", fixed=0.3)
    assert (other.lr.tolist(), other.batch_size.tolist()) == ([0.3, 0.3], [300, 1000])
    with pytest.raises(ArgumentError, match="to: expected one of batch_size, lr"):
        theory.exchange([0.1], 2, to="momentum")


def test_triangles():
    wave = theory.triangular_wave(0.01, 0.02, stage=5, length=21)
    assert wave[[0, 5, 10, 15, 20]] == pytest.approx([0.01, 0.02, 0.01, 0.02, 0.01])
    assert wave[[3, 12]] == pytest.approx([0.016, 0.014])
    with pytest.raises(ArgumentError, match="expected high > low"):
        theory.triangular_wave(0.02, 0.01, stage=5, length=21)
