"""Where SGD settles: against simulated chains, enumeration and an independent solver of the Lyapunov equation."""

import itertools

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov

from sgdscope import theory
from sgdscope.errors import ArgumentError

SPECTRUM = np.array([8, 3, 1, 0.5, 0.2, 0.1])


def rotation(size, seed=3):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(size, size)))[0]


def generic(size, seed=5):
    root = np.random.default_rng(seed).normal(size=(size, size))
    return root @ root.T / size


@pytest.mark.parametrize(("lr", "momentum", "excess"), [(0.02, 0.0, 0.00425), (0.2, 0.0, 0.14446), (0.02, 0.9, 0.04127)])
def test_excess_loss_of_the_first_oracle(lr, momentum, excess):
    turn = rotation(6)
    hessian = turn @ np.diag(SPECTRUM) @ turn.T
    found = theory.stationary_covariance(hessian, hessian, lr=lr, batch_size=16, momentum=momentum)
    assert found.excess == pytest.approx(excess, abs=5.1e-6)
    variances = theory.stationary_variance(SPECTRUM, SPECTRUM, lr=lr, batch_size=16, momentum=momentum)
    assert found.excess == pytest.approx(SPECTRUM @ variances / 2, rel=1e-12)
    assert np.allclose(turn.T @ found.covariance @ turn, np.diag(variances), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("method", ["heavy_ball", "nesterov"])
@pytest.mark.parametrize("momentum", [0.0, 0.8])
def test_covariance_for_any_noise_solves_the_joint_equation(method, momentum):
    turn, noise, lr, batch = rotation(5, 8), generic(5), 0.21, 7
    hessian = turn @ np.diag([4.1, 2.0, 2.0, 0.7, 0.05]) @ turn.T
    found = theory.stationary_covariance(
        torch.tensor(hessian), torch.tensor(noise), lr=lr, batch_size=batch, momentum=momentum, method=method
    )
    eye, zero = np.eye(5), np.zeros((5, 5))  # the update as PyTorch writes it: v <- mu v + g, then theta
    velocity = np.hstack([hessian, momentum * eye])
    ahead = np.hstack([hessian, zero]) + momentum * velocity if method == "nesterov" else velocity
    update = np.vstack([np.hstack([eye, zero]) - lr * ahead, velocity])
    push = np.vstack([-lr * (1 + momentum if method == "nesterov" else 1) * eye, eye])
    truth = solve_discrete_lyapunov(update, push @ noise @ push.T / batch)
    assert np.allclose(found.joint, truth, rtol=1e-8, atol=1e-10)
    assert np.allclose(found.matrix, update, atol=1e-13)
    assert found.covariance == pytest.approx(truth[:5, :5], rel=1e-7)
    assert np.linalg.eigvalsh(found.joint)[0] >= -1e-16


def test_plain_covariance_fulfils_the_equation_with_the_term_of_finite_lr():
    turn, noise, lr = rotation(4), generic(4), 0.3
    hessian = turn @ np.diag([3.0, 1.2, 0.6, 0.4]) @ turn.T
    sigma = theory.stationary_covariance(hessian, noise, lr=lr, batch_size=3).covariance
    assert hessian @ sigma + sigma @ hessian - lr * hessian @ sigma @ hessian == pytest.approx(lr * noise / 3, abs=1e-14)
    slow = theory.continuous_covariance(hessian, noise, lr=lr, batch_size=3)
    assert hessian @ slow + slow @ hessian == pytest.approx(lr * noise / 3, abs=1e-14)
    small = theory.stationary_covariance(hessian, noise, lr=1e-6, batch_size=3, momentum=0.6).covariance
    assert small == pytest.approx(theory.continuous_covariance(hessian, noise, lr=1e-6, batch_size=3, momentum=0.6), rel=1e-5)


def test_singular_noise_stays_semidefinite():
    direction = rotation(6)[:, :1]
    found = theory.stationary_covariance(np.diag(SPECTRUM), direction @ direction.T, lr=0.05, momentum=0.5)
    assert np.linalg.eigvalsh(found.covariance)[0] >= -1e-18
    assert found.covariance.trace() > 0.01


def test_heavy_ball_and_nudge_by_their_numbers():
    assert theory.stationary_variance(1.7, 0.9, lr=0.2, momentum=0.8)[0] == pytest.approx(0.2923132443, abs=1e-10)
    nudged = theory.stationary_variance([8.0], [8.0], lr=0.1 * 0.1, batch_size=4)  # lr gamma for lr
    assert nudged[0] == pytest.approx(0.00130, abs=5e-6)


def test_chain_of_heavy_ball_with_any_noise():
    """4000 chains from their stationary law, 400 updates: the error of a variance is 2 % by chance once in 10^4."""
    hessian, noise, lr, momentum = np.diag([2.5, 0.8]), np.array([[1.0, 0.5], [0.5, 0.7]]), 0.3, 0.6
    random = np.random.default_rng(11)
    root, theta, velocity = np.linalg.cholesky(noise / 5), np.zeros((4000, 2)), np.zeros((4000, 2))
    total, lagged, before = np.zeros((2, 2)), np.zeros((2, 2)), []
    for t in range(400):
        velocity = momentum * velocity + theta @ hessian + random.normal(size=theta.shape) @ root.T
        theta = theta - lr * velocity
        before.append(theta)
        if t >= 100:
            total, lagged = total + theta.T @ theta, lagged + theta.T @ before[t - 3]
    found = theory.stationary_covariance(hessian, noise, lr=lr, batch_size=5, momentum=momentum)
    assert total / 300 / 4000 == pytest.approx(found.covariance, rel=0.015)
    assert lagged / 300 / 4000 == pytest.approx(found.lag(3), rel=0.04, abs=0.02 * found.covariance[0, 0])


def test_lag_without_momentum_is_the_power_of_one_update():
    turn, noise = rotation(3), generic(3)
    hessian = turn @ np.diag([3.0, 1.2, 0.4]) @ turn.T
    found = theory.stationary_covariance(hessian, noise, lr=0.4, batch_size=2)
    expected = np.linalg.matrix_power(np.eye(3) - 0.4 * hessian, 5) @ found.covariance
    assert found.lag(5) == pytest.approx(expected, abs=1e-13)
    assert found.lag(0) == pytest.approx(found.covariance)
    with pytest.raises(ArgumentError, match="steps: expected >= 0"):
        found.lag(-1)


def test_expected_loss_two_ways_says_which_holds():
    wide = theory.excess_loss(np.diag(SPECTRUM), np.diag(SPECTRUM), lr=0.2, batch_size=16)
    assert (wide.sde, wide.three_factors) == pytest.approx((0.04, 0.04), rel=1e-12)
    assert wide.exact / wide.sde == pytest.approx(3.61, abs=0.01)
    assert wide.sharpness == pytest.approx(1.6)
    assert wide.cosine == pytest.approx(1)
    assert "lr lambda_1 = 1.6" in str(wide)
    assert wide.reasons == ("the SDE value is 3.61 times too small",)
    flat = theory.excess_loss(np.diag([4.0, 2.0]), np.diag([1.0, 2.0]), lr=1e-4, batch_size=5, momentum=0.5)
    assert flat.exact == pytest.approx(flat.sde, rel=1e-3)
    assert flat.sde == pytest.approx(1e-4 * 3 / (4 * 5 * 0.5), rel=1e-12)
    assert flat.three_factors == pytest.approx(2 * flat.sde)
    assert (flat.trace_ratio, flat.slope) == pytest.approx((0.5, -0.5))
    assert flat.cosine == pytest.approx(8 / (20**0.5 * 5**0.5))
    assert flat.reasons == ("the value by Tr H does not hold: Tr C / Tr H = 0.5",)


def test_near_the_edge_is_flagged_and_beyond_refused():
    near = theory.stationary_covariance(np.diag([9.5, 1.0]), np.eye(2), lr=0.2)
    assert near.edge == pytest.approx(0.95)
    assert "0.95 of the threshold" in near.reasons[0]
    assert theory.stationary_covariance(np.diag([8.9, 1.0]), np.eye(2), lr=0.2).reasons == ()
    assert theory.stationary_covariance(30.0, 1.0, lr=0.1, momentum=0.6).edge == pytest.approx(3.0 / 3.2)
    with pytest.raises(ArgumentError, match=r"curvature 10 and momentum 0\.0 SGD diverges from 0\.2 on"):
        theory.stationary_covariance(np.diag([10.0, 1.0]), np.eye(2), lr=0.2)
    with pytest.raises(ArgumentError, match="diverges"):
        theory.stationary_variance([33.0], [1.0], lr=0.1, momentum=0.6)
    with pytest.raises(ArgumentError, match="no stationary law"):
        theory.stationary_covariance(np.diag([1.0, 0.0]), np.eye(2), lr=0.2)


def test_nesterov_diverges_earlier():
    assert theory.stationary_covariance(20.0, 1.0, lr=0.1, momentum=0.5).edge == pytest.approx(2 / 3)
    with pytest.raises(ArgumentError, match=r"diverges from 0\.075 on"):
        theory.stationary_covariance(20.0, 1.0, lr=0.1, momentum=0.5, method="nesterov")


def test_wrong_arguments_of_the_covariances():
    with pytest.raises(ArgumentError, match="hessian: expected a symmetric matrix"):
        theory.stationary_covariance([[1.0, 0.2], [0.0, 1.0]], np.eye(2), lr=0.1)
    with pytest.raises(ArgumentError, match="noise: expected a covariance"):
        theory.stationary_covariance(np.eye(2), np.diag([1.0, -0.5]), lr=0.1)
    with pytest.raises(ArgumentError, match="noise: expected the shape"):
        theory.continuous_covariance(np.eye(2), np.eye(3), lr=0.1)
    with pytest.raises(ArgumentError, match="momentum"):
        theory.stationary_variance([1.0], [1.0], lr=0.1, momentum=1.0)
    with pytest.raises(ArgumentError, match="NaN or infinite"):
        theory.stationary_variance([np.nan], [1.0], lr=0.1)
    with pytest.raises(ArgumentError, match="method: expected one of heavy_ball, nesterov"):
        theory.stationary_covariance(np.eye(2), np.eye(2), lr=0.1, method="adam")


@pytest.mark.parametrize("replacement", [False, True])
@pytest.mark.parametrize("ddof", [0, 1])
def test_replacement_factor_by_enumeration(replacement, ddof):
    values = np.array([0.3, 1.1, -2.0, 4.0, 0.7])
    draws = itertools.product(values, repeat=3) if replacement else itertools.combinations(values, 3)
    truth = np.var([np.mean(draw) for draw in draws]) / np.var(values, ddof=ddof)
    assert theory.replacement_factor(3, 5, replacement=replacement, ddof=ddof) == pytest.approx(truth, rel=1e-12)


def test_replacement_factor_of_the_specification():
    assert theory.replacement_factor(5, 12) == pytest.approx(0.1272727, abs=1e-7)
    assert theory.replacement_factor(12, 12) == 0
    with pytest.raises(ArgumentError, match="batch_size: expected 1 to 12"):
        theory.replacement_factor(13, 12)


def test_transient_variance_by_recursion():
    curvature, noise, lr, batch = np.array([1.3, -0.7, 0.0, 1 / 0.3, 2 / 0.3, 8.0]), np.arange(1, 7) / 3, 0.3, 4
    variance = np.full(6, 0.2)
    for _ in range(9):
        variance = (1 - lr * curvature) ** 2 * variance + lr**2 * noise / batch
    assert theory.transient_variance(curvature, noise, 9, lr=lr, batch_size=batch, start=0.2) == pytest.approx(
        variance, rel=1e-11
    )
    settled = theory.stationary_variance(1.3, 1 / 3, lr=lr, batch_size=batch)
    assert theory.transient_variance(1.3, 1 / 3, 500, lr=lr, batch_size=batch) == pytest.approx(settled)
    assert theory.transient_variance(curvature, noise, 0, lr=lr, start=0.2) == pytest.approx(0.2)
    assert theory.transient_variance(1e-9, 2.0, 5, lr=0.1)[0] == pytest.approx(0.1, rel=1e-8)


def random_data(examples=6, size=2):
    random = np.random.default_rng(21)
    x = random.normal(size=(examples, size)) + 0.4
    return x, x @ np.array([1.0, -2.0]) + 0.5 * random.normal(size=examples)


@pytest.mark.parametrize("replacement", [False, True])
def test_least_squares_moments_by_enumerating_every_batch(replacement):
    x, y = random_data()
    draw = itertools.product(range(6), repeat=2) if replacement else itertools.combinations(range(6), 2)
    batches, lr, start = [list(b) for b in draw], 0.25, np.array([0.6, 0.9])
    minimum = np.linalg.lstsq(x, y)[0]
    moves = [(np.eye(2) - lr * x[b].T @ x[b] / 2, lr * x[b].T @ (y[b] - x[b] @ minimum) / 2) for b in batches]
    mean, moment = start - minimum, np.outer(start - minimum, start - minimum)
    for step in (4, 900):
        path_mean, path = mean, moment
        for _ in range(step):  # E over all batches, of the exact update of one
            path = sum(
                a @ path @ a.T + a @ np.outer(path_mean, b) + np.outer(b, path_mean) @ a.T + np.outer(b, b) for a, b in moves
            ) / len(moves)
            path_mean = sum(a @ path_mean + b for a, b in moves) / len(moves)
        found = theory.least_squares_moments(
            x, y, lr=lr, batch_size=2, replacement=replacement, steps=step, start=torch.tensor(start)
        )
        assert found.mean == pytest.approx(path_mean, rel=1e-9, abs=1e-14)
        assert found.moment == pytest.approx(path, rel=1e-9)
    settled = theory.least_squares_moments(x, y, lr=lr, batch_size=2, replacement=replacement)
    assert settled.moment == pytest.approx(path, rel=1e-7)
    assert settled.excess == pytest.approx(np.mean([(row @ path @ row) for row in x]) / 2, rel=1e-7)
    assert (settled.moment.trace() / settled.additive.trace()) > 1.15  # what the multiplicative part adds


def test_least_squares_without_multiplicative_noise_is_the_covariance():
    x = np.array([[1.0], [-1.0], [1.0], [-1.0]]) * 1.3  # x_i^2 equal: the noise does not depend on theta
    y = np.array([1.0, 0.2, -0.4, 2.0])
    found = theory.least_squares_moments(x, y, lr=0.4, batch_size=2)
    residual = y - x[:, 0] * found.minimum[0]
    noise = np.mean((x[:, 0] * residual) ** 2)
    truth = theory.stationary_variance(1.69, noise, lr=0.4, batch_size=1 / theory.replacement_factor(2, 4))
    assert found.moment[0] == pytest.approx(truth, rel=1e-12)
    assert found.additive[0] == pytest.approx(truth, rel=1e-12)


def test_least_squares_refuses_what_has_no_answer():
    x, y = random_data()
    top = np.linalg.eigvalsh(x.T @ x / 6)[-1]
    with pytest.raises(ArgumentError, match="second moment diverges"):
        theory.least_squares_moments(x, y, lr=1.6 / top, batch_size=1)
    with pytest.raises(ArgumentError, match="full column rank"):
        theory.least_squares_moments(np.ones((6, 2)), y, lr=0.1, batch_size=1)
    with pytest.raises(ArgumentError, match="start"):
        theory.least_squares_moments(x, y, lr=0.1, batch_size=1, steps=2, start=[1.0])
