"""Weighted parallel SGD: weights against the exact error, fitted rates, averages, the three modes, wrong use."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sgdscope.ensembles.parallel import WeightedParallelSGD
from sgdscope.errors import ArgumentError, NotAvailableError, Outcome, UnknownNameError
from sgdscope.replicas import average, combined, finished, fit_rate, weights
from sgdscope.walkers.descent import SGD

WORKLOADS = [300] * 7 + [100, 50, 10]
TABLE = {"equal": 1.8612, "proportional": 0.1645, "geometric": 0.14288, "fastest": 1.0005, "optimal": 0.12519}
TOLD = {"rate": 0.02, "distance": 10.0, "variance": 1.0}


def exact_error(omega, workloads, c=0.98, distance=10.0, variance=1.0):
    """(sum omega b)^2 + sum omega^2 v in plain Python."""
    bias = sum(w * distance * c**t for w, t in zip(omega, workloads, strict=True))
    return bias**2 + sum(w * w * variance * (1 - c ** (2 * t)) for w, t in zip(omega, workloads, strict=True))


@pytest.mark.parametrize(("scheme", "error"), TABLE.items())
def test_weights_have_the_errors_of_the_table(scheme, error):
    omega = weights(WORKLOADS, scheme, **TOLD)
    assert float(omega.sum()) == pytest.approx(1, abs=1e-12)
    assert exact_error(omega.tolist(), WORKLOADS) == pytest.approx(error, rel=3e-4)


def test_optimal_weights_solve_the_stated_system():
    workloads, c = [170, 90, 30, 5], 0.97
    bias = np.array([3.0 * c**t for t in workloads])
    noise = np.array([0.7 * (1 - c ** (2 * t)) for t in workloads])
    raw = np.linalg.solve(np.outer(bias, bias) + np.diag(noise), np.ones(4))
    omega = weights(workloads, "optimal", rate=0.03, distance=3.0, variance=0.7)
    np.testing.assert_allclose(omega, raw / raw.sum(), rtol=1e-9)


def test_optimal_weights_of_workers_without_updates_are_finite_and_alike():
    omega = weights([200, 0, 0], "optimal", rate=0.05, distance=2.0, variance=0.3)
    assert float(omega.sum()) == pytest.approx(1)
    assert float(omega[1]) == pytest.approx(float(omega[2]))
    best = min(exact_error([1 - 2 * w, w, w], [200, 0, 0], 0.95, 2.0, 0.3) for w in np.linspace(-0.3, 0.3, 60001))
    assert exact_error(omega.tolist(), [200, 0, 0], 0.95, 2.0, 0.3) == pytest.approx(best, rel=1e-6)


@given(st.lists(st.integers(0, 400), min_size=1, max_size=8).filter(any), st.floats(0.001, 0.6))
@settings(max_examples=60, deadline=None)
def test_properties_of_the_weights(workloads, rate):
    for scheme in ("geometric", "proportional", "equal", "fastest"):
        omega = weights(workloads, scheme, rate=rate)
        assert float(omega.sum()) == pytest.approx(1, abs=1e-12)
        order = np.argsort(workloads)
        assert (np.diff(omega.numpy()[order]) >= 0).all() or scheme == "fastest"
    assert weights(workloads, rate=0.0).tolist() == weights(workloads, "equal").tolist()
    later = [t + 37 for t in workloads]
    np.testing.assert_allclose(weights(later, rate=rate), weights(workloads, rate=rate), rtol=1e-12)


def test_geometric_weights_by_hand():
    omega = weights([7, 4], rate=0.2)
    assert omega.tolist() == pytest.approx([1 / 1.512, 0.512 / 1.512], rel=1e-12)
    assert weights([9, 9, 3], rate=1.0).tolist() == [0.5, 0.5, 0]
    assert weights([3, 9, 9], "fastest").tolist() == [0, 1, 0]


@pytest.mark.parametrize(
    ("workloads", "options", "message"),
    [
        ([0, 0], {"rate": 0.1}, "workloads: they sum to zero"),
        ([], {"rate": 0.1}, "workloads: expected the updates of at least one worker"),
        ([[3, 4]], {"rate": 0.1}, r"got shape \(1, 2\)"),
        ([3, -1], {"rate": 0.1}, "workloads: expected finite numbers >= 0"),
        ([3, math.nan], {"rate": 0.1}, "workloads: expected finite numbers >= 0"),
        ([3, 4], {}, "rate: the scheme 'geometric' needs"),
        ([3, 4], {"rate": 1.1}, "rate: expected 0 <= rate <= 1, got 1.1"),
        ([3, 4], {"rate": math.nan}, "rate: expected 0 <= rate <= 1"),
        ([3, 4], {"scheme": "optimal", "rate": 0.1, "variance": 2.0}, "distance: the scheme 'optimal' needs"),
        ([3, 4], {"scheme": "optimal", "rate": 0.1, "distance": 2.0, "variance": 0.0}, "variance: the scheme 'optimal' needs"),
    ],
)
def test_weights_refuse(workloads, options, message):
    with pytest.raises(ArgumentError, match=message):
        weights(workloads, **options)


def test_an_unknown_scheme_is_named():
    with pytest.raises(UnknownNameError, match="no scheme is called 'geometrc'; did you mean 'geometric'"):
        weights([3], "geometrc")


# --- who finishes what ---------------------------------------------------------------------------------------------------


def test_finished_updates():
    assert finished([10, 2.5, 0], 30.3) == [303, 75, 0]
    assert finished([0.29, 0.57, 1.1], 100) == [29, 57, 110]  # 0.29 * 100 = 28.999999999999996
    assert finished([0.2999], 10) == [2]
    drawn = finished([1e5] * 4000, 2, scatter=0.5, generator=torch.Generator().manual_seed(4))
    logs = np.log(np.array(drawn) / 2e5)
    assert logs.std() == pytest.approx(0.5, abs=0.025)  # 4.5 standard errors
    assert logs.mean() == pytest.approx(-0.125, abs=0.035)
    late = finished([1e5] * 4000, 2, straggling=0.3, slowdown=4, generator=torch.Generator().manual_seed(4))
    assert set(late) == {200000, 50000}
    assert np.mean(np.array(late) == 50000) == pytest.approx(0.3, abs=0.033)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        (([1, -2], 3), {}, "speeds: expected finite numbers >= 0"),
        (([], 3), {}, "speeds"),
        (([1], 0), {}, "deadline: expected a finite number > 0, got 0"),
        (([1], 3), {"straggling": 1.2}, "scatter, straggling, slowdown"),
        (([1], 3), {"scatter": 0.1}, "generator: scatter and stragglers are drawn"),
    ],
)
def test_finished_refuses(arguments, options, message):
    with pytest.raises(ArgumentError, match=message):
        finished(*arguments, **options)


# --- the rate --------------------------------------------------------------------------------------------------------------


def test_the_rate_of_an_exact_decay_is_found():
    curves = [0.37 + 5.3 * 0.973 ** (2 * np.arange(n)) for n in (160, 90, 20, 0)]
    found = fit_rate(curves)
    assert found.outcome is Outcome.ok
    assert found.rate == pytest.approx(0.027, rel=1e-4)  # 0.0535 if the loss were taken to shrink as c^t
    assert (found.floor, found.drop) == (pytest.approx(0.37, abs=1e-4), pytest.approx(5.3, rel=1e-4))


def test_the_error_of_the_rate_is_that_of_repetitions():
    generator, fits = np.random.default_rng(7), []
    for _ in range(40):
        curves = [0.5 + 4 * 0.95 ** (2 * np.arange(120)) + 0.3 * generator.standard_normal(120) for _ in range(6)]
        fits.append(fit_rate(curves))
    assert all(f.outcome is Outcome.ok for f in fits)
    scatter = np.std([f.rate for f in fits], ddof=1)
    assert np.mean([f.rate for f in fits]) == pytest.approx(0.05, abs=4 * scatter / 40**0.5)
    assert np.median([f.stderr for f in fits]) == pytest.approx(scatter, rel=0.45)


def test_no_decay_is_not_converged():
    flat = 0.5 + 0.1 * np.random.default_rng(3).standard_normal((4, 100))
    assert fit_rate(list(flat)).outcome is Outcome.not_converged
    rising = [0.5 - 0.3 * 0.9 ** np.arange(50)]
    assert fit_rate(rising).outcome is Outcome.not_converged
    line = [5.0 - 0.01 * np.arange(100)]  # no end in sight
    assert fit_rate(line).outcome is Outcome.not_converged
    assert math.isnan(fit_rate(line).stderr)


def test_fit_rate_refuses():
    with pytest.raises(ArgumentError, match="curves: expected one of at least 8 losses, the longest has 3"):
        fit_rate([[3.0, 2.0, 1.0]])
    with pytest.raises(ArgumentError, match="curves: expected finite losses"):
        fit_rate([[3.0] * 9 + [math.inf]])


# --- the average -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [7, 1 << 20])
def test_the_average_is_the_weighted_sum(block, monkeypatch):
    monkeypatch.setattr("sgdscope.replicas.BLOCK", block)
    generator = torch.Generator().manual_seed(2)
    shapes = [(3, 5), (4,), (1,)]
    replicas = [[torch.randn(s, generator=generator, dtype=torch.float64) + 2 for s in shapes] for _ in range(3)]
    omega = torch.tensor([0.7, -0.2, 0.5], dtype=torch.float64)
    expected = sum(w * torch.cat([t.reshape(-1) for t in r]) for w, r in zip(omega.tolist(), replicas, strict=True))
    torch.testing.assert_close(average(replicas, omega), expected, rtol=1e-14, atol=1e-15)


def test_the_average_of_half_precision_is_summed_in_float32():
    replicas = [[torch.full((3,), x, dtype=torch.bfloat16)] for x in (1.0, 1.0078125)]
    found = average(replicas, torch.tensor([0.5, 0.5]))
    assert found.dtype == torch.float32
    assert found.tolist() == [1.00390625] * 3  # between two bfloat16 numbers


def test_average_refuses():
    one = [torch.ones(3)]
    with pytest.raises(ArgumentError, match="weights: expected one a replica, got 2 for 1 replicas"):
        average([one], torch.ones(2))
    with pytest.raises(ArgumentError, match="replicas: expected the shapes of replica 0"):
        average([one, [torch.ones(4)]], torch.ones(2))
    with pytest.raises(ArgumentError, match=r"weights: expected finite numbers, got \[nan, 0\.5\]"):
        average([one, one], torch.tensor([math.nan, 0.5]))
    with pytest.raises(ArgumentError, match="replicas: expected tensors of at least one number"):
        average([[], []], torch.ones(2))


def test_weights_of_zero_and_in_a_list():
    assert average([[torch.ones(3)]] * 2, torch.zeros(2)).tolist() == [0, 0, 0]
    assert average([[torch.ones(3)], [torch.full((3,), 3.0)]], [0.25, 0.75]).tolist() == [2.5] * 3


def test_a_lost_worker_has_no_weight_and_it_is_said():
    replicas = [[torch.tensor([2.0])], None, [torch.tensor([5.0])]]
    found = combined(replicas, [4, 9, 3], rate=0.5)
    assert found.weights == pytest.approx((2 / 3, 0, 1 / 3))
    assert float(found.theta) == pytest.approx(3.0)
    assert found.lost == (1,)
    assert "over 2 of 3 members" in found.sentence
    assert "lost: 1, the result is the weighted average of the others" in found.sentence


def test_all_workers_dead():
    with pytest.raises(ArgumentError, match="replicas: all 2 workers are lost"):
        combined([None, None], [3, 4], rate=0.1)
    with pytest.raises(ArgumentError, match="workloads: expected one a replica, got 1 for 2"):
        combined([[torch.ones(2)], None], [3], rate=0.1)


# --- the ensemble ------------------------------------------------------------------------------------------------------------


def points(count, start, lr=0.5, **options):
    theta = [torch.tensor(start, dtype=torch.float64, requires_grad=True) for _ in range(count)]
    return theta, WeightedParallelSGD([SGD([p], lr=lr) for p in theta], **options)


@torch.no_grad()
def pull(theta, curvature=1.0, noise=None):
    for i, p in enumerate(theta):
        p.grad = curvature * p.detach() + (0 if noise is None else noise[i])


@pytest.mark.parametrize("scheme", ["equal", "proportional", "geometric"])
def test_monte_carlo_of_the_ensemble_meets_the_exact_error(scheme):
    # 6000 independent 1-D quadratics as coordinates of one vector; lambda = 0.2, eta = 0.1, so c = 0.98; the noise of the
    # gradient makes the stationary variance eta s^2 / (lambda (2 - eta lambda)) = 1. The mean of squares has a relative standard
    # error of at most sqrt(2 / 6000) = 1.8 %: 4.5 of them fail by chance with p < 1e-5; the seed is fixed.
    count, lr, curvature = 6000, 0.1, 0.2
    deviation = (curvature * (2 - lr * curvature) / lr) ** 0.5
    theta, ensemble = points(len(WORKLOADS), [10.0] * count, lr, scheme=scheme, rate=0.02)
    generator = torch.Generator().manual_seed(31)
    for t in range(max(WORKLOADS)):
        active = [i for i, n in enumerate(WORKLOADS) if t < n]
        for i in active:
            noise = deviation * torch.randn(count, generator=generator, dtype=torch.float64)
            theta[i].grad = curvature * theta[i].detach() + noise
        ensemble.step(active)
    assert ensemble.workloads == WORKLOADS
    found = float((ensemble.combine().theta ** 2).mean())
    assert found == pytest.approx(TABLE[scheme], rel=0.085)
    assert sum(found == pytest.approx(other, rel=0.085) for other in TABLE.values()) == 1


def test_balanced_workloads_give_the_plain_average_whatever_the_rate():
    theta, ensemble = points(3, [4.0, 1.0], rate=0.3)
    for t in range(4):
        pull(theta, 0.7, [torch.tensor([0.1 * (t + i), 0.3]) for i in range(3)])
        ensemble.step()
    found = ensemble.combine()
    assert found.weights == (1 / 3, 1 / 3, 1 / 3)
    torch.testing.assert_close(found.theta, torch.stack([p.detach() for p in theta]).mean(0), rtol=1e-15, atol=0)
    unknown_rate = combined([[p] for p in theta], [4, 4, 4])
    assert unknown_rate.weights == pytest.approx((1 / 3,) * 3)


def test_the_rate_is_fitted_to_the_losses_of_the_members():
    theta, ensemble = points(2, [3.0], lr=0.1)
    for t in range(60):
        active = [0, 1] if t % 3 == 0 else [0]
        pull(theta, 0.5)
        ensemble.step(active, losses=[0.25 * float(theta[i].detach() ** 2) for i in active])
    found = ensemble.combine()
    assert found.fitted.outcome is Outcome.ok
    assert found.rate == pytest.approx(0.05, rel=1e-3)
    assert found.weights == pytest.approx((1 / (1 + 0.95**40), 0.95**40 / (1 + 0.95**40)), rel=1e-2)
    assert "fitted" in found.sentence


def test_a_rate_that_cannot_be_fitted_is_said():
    theta, ensemble = points(2, [3.0])
    for _ in range(12):
        pull(theta)
        ensemble.step([0], losses=[1.7])
    with pytest.raises(NotAvailableError, match="no contraction can be fitted; give rate=, or the scheme 'proportional'"):
        ensemble.combine()
    theta, ensemble = points(2, [3.0])
    pull(theta)
    ensemble.step([0])
    with pytest.raises(ArgumentError, match="rate: expected 0 <= rate <= 1, or losses"):
        ensemble.combine()


def test_local_sgd_averages_every_period_of_the_fastest():
    theta, ensemble = points(2, [8.0], mode="local", rate=0.5, period=2)
    for active in ([0, 1], [0], [0]):
        pull(theta)
        ensemble.step(active)
    # after two updates of member 0: 2 and 4 with weights 2/3 and 1/3 -> 8/3 for both; then member 0 halves it
    assert theta[0].item() == pytest.approx(4 / 3)
    assert theta[1].item() == pytest.approx(8 / 3)
    found = ensemble.combine()
    assert found.weights == pytest.approx((2 / 3, 1 / 3))  # 1 update since against 0
    assert found.workloads == (3, 1)
    assert float(found.theta) == pytest.approx(2 / 3 * 4 / 3 + 1 / 3 * 8 / 3)
    assert ensemble.workloads == [3, 1]
    ensemble.synchronise()
    assert [p.item() for p in theta] == pytest.approx([16 / 9] * 2)
    assert float(ensemble.combine().theta) == pytest.approx(16 / 9)


@pytest.mark.parametrize(("scheme", "weight"), [("geometric", 0.7**2), ("proportional", 1 / 3), ("equal", 1.0), ("fastest", 0.0)])
def test_asynchronous_updates_count_by_their_staleness(scheme, weight):
    theta, ensemble = points(2, [8.0], mode="asynchronous", scheme=scheme, rate=0.3)
    for active in ([0], [0], [1]):
        pull(theta)
        ensemble.step(active)
    # member 0 halves the centre twice, 8 -> 4 -> 2; member 1 saw 8 two updates ago and brings -4
    assert float(ensemble.combine().theta) == pytest.approx(2 - 4 * weight)
    assert theta[1].item() == pytest.approx(2 - 4 * weight)
    assert theta[0].tolist() == [2.0]
    assert ensemble.combine().weights == pytest.approx((2 / 3, 1 / 3))


def test_asynchronous_updates_by_hand():
    # a straight retelling: each member keeps the centre that it fetched and how many updates had been made by then
    generator, rate, lr = np.random.default_rng(5), 0.2, 0.3
    theta, ensemble = points(3, [8.0, -3.0], lr, mode="asynchronous", rate=rate)
    centre, fetched, versions = np.array([8.0, -3.0]), [np.array([8.0, -3.0])] * 3, [0] * 3
    for made in range(40):
        i = int(generator.integers(3))
        pull(theta, 0.6)
        ensemble.step([i])
        centre = centre + (1 - rate) ** (made - versions[i]) * -lr * 0.6 * fetched[i]
        fetched[i], versions[i] = centre, made + 1
        assert theta[i].tolist() == pytest.approx(centre.tolist(), rel=1e-12)
    assert ensemble.combine().theta.tolist() == pytest.approx(centre.tolist(), rel=1e-12)
    assert sum(ensemble.workloads) == 40


def test_state_dict_keeps_who_is_lost_and_the_losses():
    theta, ensemble = points(3, [3.0], lr=0.1)
    for t in range(60):
        active = [0, 1] if t % 3 == 0 else [0]
        pull(theta, 0.5)
        ensemble.step(active, losses=[0.25 * float(theta[i].detach() ** 2) for i in active])
    ensemble.lose(2)
    again, resumed = points(3, [0.0], lr=0.1)
    for p, q in zip(again, theta, strict=True):
        p.data.copy_(q)
    resumed.load_state_dict(ensemble.state_dict())
    assert resumed.combine().rate == ensemble.combine().rate == pytest.approx(0.05, rel=1e-3)
    assert resumed.combine().lost == (2,)
    pull(again, 0.5)
    resumed.step([0, 1], losses=[1.0, 1.0])
    assert ensemble.workloads == [60, 20, 0]  # the state shares no list with either
    assert len(ensemble.state_dict()["losses"][0]) == 60


def test_state_dict_resumes_local_and_asynchronous_walks():
    for options in ({"mode": "local", "period": 3}, {"mode": "asynchronous"}):
        ends = []
        for cut in (None, 5):
            theta, ensemble = points(3, [8.0, -3.0], 0.2, rate=0.1, **options)
            for t in range(11):
                if t == cut:
                    state, values = ensemble.state_dict(), [p.detach().clone() for p in theta]
                    theta, ensemble = points(3, [0.0, 0.0], 0.2, rate=0.1, **options)
                    for p, value in zip(theta, values, strict=True):
                        p.data.copy_(value)
                    ensemble.load_state_dict(state)
                pull(theta, 0.9, [0.1 * i + 0.01 * t for i in range(3)])
                ensemble.step([i for i in range(3) if (t + i) % (i + 1) == 0])
            ends.append(ensemble.combine().theta)
        assert torch.equal(*ends), options


def test_a_member_lost_in_the_middle():
    theta, ensemble = points(3, [8.0], rate=0.5)
    pull(theta)
    ensemble.step()
    ensemble.lose(2)
    pull(theta)
    ensemble.step()
    found = ensemble.combine()
    assert (found.lost, found.weights, ensemble.workloads) == ((2,), (0.5, 0.5, 0.0), [2, 2, 1])
    with pytest.raises(ArgumentError, match="active: member 2 is lost"):
        ensemble.step([2])
    left = theta[2].item()
    ensemble.synchronise()
    assert [p.item() for p in theta] == [2.0, 2.0, left]  # the lost one stays where it was: 4
    ensemble.lose(0)
    ensemble.lose(1)
    with pytest.raises(ArgumentError, match="all 3 workers are lost"):
        ensemble.combine()
    with pytest.raises(ArgumentError, match="active: all 3 members are lost, none is left that could step"):
        ensemble.step()


def test_what_a_lost_member_gave_to_an_asynchronous_centre_stays_and_that_is_said():
    theta, ensemble = points(2, [8.0], mode="asynchronous", rate=0.5)
    for active in ([0], [1]):
        pull(theta)
        ensemble.step(active)
    ensemble.lose(1)
    found = ensemble.combine()
    assert (found.lost, found.weights) == ((1,), (0.5, 0.5))
    assert float(found.theta) == pytest.approx(4 - 0.5 * 4)
    assert found.sentence.endswith("lost: 1, what they had added stays")


def test_the_rate_is_fitted_to_those_that_are_left():
    curves = [0.2 + 3 * 0.9 ** np.arange(60), 0.2 + 3 * 0.96 ** (2 * np.arange(60)), 0.2 + 3 * 0.96 ** (2 * np.arange(20))]
    replicas = [None, [torch.tensor([1.0])], [torch.tensor([2.0])]]
    found = combined(replicas, [60, 60, 20], losses=curves)
    assert found.rate == pytest.approx(0.04, rel=1e-3)
    assert found.workloads == (60, 60, 20)


def test_a_worker_that_has_diverged_is_named():
    replicas = [[torch.ones(2)], [torch.tensor([1.0, math.inf])], None]
    with pytest.raises(ArgumentError, match="replicas: worker 1 has parameters that are not finite; leave it out as one that is"):
        combined(replicas, [4, 3, 5], rate=0.1)
    assert combined(replicas, [4, 3, 5], scheme="fastest").theta.tolist() == [1.0, 1.0]  # it has no weight


def test_optimal_weights_of_equal_workloads_need_no_rate():
    replicas = [[torch.tensor([1.0])], [torch.tensor([4.0])]]
    found = combined(replicas, [30, 30], scheme="optimal", distance=2.0, variance=0.3)
    assert found.weights == pytest.approx(weights([30, 30], "optimal", rate=0.04, distance=2.0, variance=0.3).tolist())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": 1.5}, "rate: expected 0 <= rate <= 1"),
        ({"mode": "local", "rate": 0.1}, "period: expected a whole number >= 1 in mode 'local', got None"),
        ({"mode": "local", "period": 0, "rate": 0.1}, "period: expected a whole number"),
        ({"mode": "local", "period": 3}, "rate: the mode 'local' needs it"),
        ({"period": 3, "rate": 0.1}, "period: expected none in mode 'simuparallel'"),
        ({"scheme": "optimal", "rate": 0.1, "distance": -1.0, "variance": 1.0}, "distance"),
        ({"scheme": "optimal", "mode": "asynchronous", "rate": 0.1}, "scheme: there are no optimal weights of stale updates"),
    ],
)
def test_the_ensemble_refuses(options, message):
    with pytest.raises(ArgumentError, match=message):
        points(2, [1.0], **options)


def test_members_must_fit():
    p, q = (torch.ones(n, requires_grad=True) for n in (2, 3))
    with pytest.raises(ArgumentError, match="members: expected at least one walker"):
        WeightedParallelSGD([], rate=0.1)
    with pytest.raises(ArgumentError, match="member 1 moves a parameter of another one"):
        WeightedParallelSGD([SGD([p], lr=0.1), SGD([p], lr=0.1)], rate=0.1)
    with pytest.raises(ArgumentError, match="member 1 have other shapes"):
        WeightedParallelSGD([SGD([p], lr=0.1), SGD([q], lr=0.1)], rate=0.1)
    apart = WeightedParallelSGD([SGD([p], lr=0.1), SGD([torch.zeros(2, requires_grad=True)], lr=0.1)], rate=0.1)
    with pytest.raises(ArgumentError, match="member 1 does not start where member 0 does"):
        apart.step()
    with pytest.raises(UnknownNameError, match="no mode is called 'sync'"):
        points(2, [1.0], mode="sync")
    theta, ensemble = points(2, [1.0], rate=0.1)
    pull(theta)
    with pytest.raises(ArgumentError, match="losses: expected one a member that steps, got 1 for 2"):
        ensemble.step(losses=[1.0])
    with pytest.raises(ArgumentError, match=r"active: expected each member once, .* got \[0, 0\]"):
        ensemble.step([0, 0])
    assert ensemble.workloads == [0, 0]
    with pytest.raises(ArgumentError, match="state: expected what state_dict gives, base"):
        ensemble.load_state_dict({})
    with pytest.raises(ArgumentError, match="state: expected 2 members, got 3"):
        ensemble.load_state_dict(points(3, [1.0], rate=0.1)[1].state_dict())
    with pytest.raises(ArgumentError, match=r"member: expected 0\.\.1, got 2"):
        ensemble.lose(2)
