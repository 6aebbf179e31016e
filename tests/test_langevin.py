"""The Langevin walker: its noise, its stationary law and its temperature, against closed forms."""

import copy
import io
import math

import pytest
import torch
from scipy import stats
from torch import nn

from sgdscope.errors import ArgumentError
from sgdscope.experiment import Experiment, run
from sgdscope.runs import open_trajectory
from sgdscope.walkers.langevin import SGLD

LR, T = 0.3, 0.07


def point(values):
    return nn.Parameter(torch.as_tensor(values, dtype=torch.float64).clone())


def sgld(parameters, seed=4, **options):
    return SGLD(parameters, **({"lr": LR, "temperature": T, "generator": torch.Generator().manual_seed(seed)} | options))


def descend(walker, p, curvature, updates, centre=1.7):
    """Updates in sum_i h_i (theta_i - centre)^2 / 2; gives the points after each."""
    points = []
    for _ in range(updates):
        p.grad = curvature * (p.detach() - centre)
        walker.step()
        points.append(p.detach().clone())
    return torch.stack(points)


def test_the_noise_of_an_update_is_normal_with_variance_two_lr_t():
    """Kolmogorov-Smirnov on 6000 draws of each of two updates; the seed is fixed, below 1 % the test would fail by chance."""
    p = point(torch.zeros(6000))
    walker = sgld([p])
    moved = descend(walker, p, torch.zeros(()), 2)
    draws = torch.stack([moved[0], moved[1] - moved[0]]) / math.sqrt(2 * LR * T)
    for update in draws:
        assert stats.kstest(update.numpy(), "norm").pvalue > 0.01
    assert abs(float(torch.corrcoef(draws)[0, 1])) < 0.045  # 3.5 standard errors
    twin = point(torch.zeros(6000))
    assert not torch.equal(descend(sgld([twin], seed=5), twin, torch.zeros(()), 1)[0], moved[0])


@pytest.mark.parametrize("curvature", [0.5, 3.0, 5.5])
def test_the_stationary_variance_is_that_of_the_finite_learning_rate(curvature):
    """20000 coordinates, after the transient: the mean over 6 points has a relative error below 1 % (one standard error)."""
    h = torch.full((20000,), curvature, dtype=torch.float64)
    p = point(torch.full((20000,), 1.7))
    late = descend(sgld([p]), p, h, 46)[-6:] - 1.7
    expected = 2 * T / (curvature * (2 - LR * curvature))
    assert float((late**2).mean()) == pytest.approx(expected, rel=0.035)
    assert expected > 1.08 * T / curvature  # that of continuous time is told apart


def test_the_mean_descends_as_gradient_descent_and_the_variance_grows_as_its_transient():
    p = point(torch.full((40000,), 4.7))
    walked = descend(sgld([p]), p, torch.full((40000,), 2.0, dtype=torch.float64), 3)
    rate = 1 - LR * 2.0
    for t, now in enumerate(walked, 1):
        variance = 2 * T / (2.0 * (2 - LR * 2.0)) * (1 - rate ** (2 * t))
        assert float(now.mean()) == pytest.approx(1.7 + 3.0 * rate**t, abs=4 * math.sqrt(variance / 40000))
        assert float(now.var()) == pytest.approx(variance, rel=0.03)  # 4 standard errors


def test_a_temperature_of_zero_is_sgd_with_weight_decay_bit_for_bit():
    start = torch.linspace(-1.3, 2.2, 9)
    p, q = point(start), point(start)
    walker, plain = sgld([p], temperature=0.0, weight_decay=0.2), torch.optim.SGD([q], lr=LR, weight_decay=0.2)
    descend(walker, p, torch.full((9,), 0.7, dtype=torch.float64), 5)
    descend(plain, q, torch.full((9,), 0.7, dtype=torch.float64), 5)
    assert torch.equal(p, q)
    assert not torch.equal(p.detach(), start.double())


def test_weight_decay_is_a_stronger_curvature_about_zero():
    p = point(torch.zeros(20000))
    late = descend(sgld([p], weight_decay=1.0), p, torch.full((20000,), 2.0, dtype=torch.float64), 46)[-6:]
    assert float(late.mean()) == pytest.approx(1.7 * 2 / 3, abs=0.01)
    assert float(late.var(1).mean()) == pytest.approx(2 * T / (3.0 * (2 - LR * 3.0)), rel=0.035)


def test_each_group_has_its_temperature_and_parameters_without_gradient_get_noise_too():
    hot, cold, still = (point(torch.zeros(5000)) for _ in range(3))
    walker = sgld([{"params": [hot], "temperature": 0.4}, {"params": [cold], "lr": 0.1}])
    walker.add_param_group({"params": [still], "temperature": 0.0})
    walker.step()
    assert float(hot.detach().var()) == pytest.approx(2 * LR * 0.4, rel=0.08)  # 4 standard errors
    assert float(cold.detach().var()) == pytest.approx(2 * 0.1 * T, rel=0.08)
    assert not still.any()
    assert float(torch.corrcoef(torch.stack([hot.detach(), cold.detach()]))[0, 1]) == pytest.approx(0, abs=0.05)


def test_the_walk_resumes_from_a_file_and_takes_the_state_of_sgd():
    h = torch.full((7,), 0.8, dtype=torch.float64)
    whole = point(torch.ones(7))
    expected = descend(sgld([whole]), whole, h, 6)[-1]
    p = point(torch.ones(7))
    walker = sgld([p])
    descend(walker, p, h, 3)
    file = io.BytesIO()
    torch.save(walker.state_dict(), file)
    file.seek(0)
    resumed = point(p.detach())
    fresh = sgld([resumed], seed=8, temperature=0.9)
    fresh.load_state_dict(torch.load(file))
    assert torch.equal(descend(fresh, resumed, h, 3)[-1], expected)
    other = copy.deepcopy(walker)
    assert torch.equal(descend(other, other.param_groups[0]["params"][0], h, 3)[-1], expected)
    plain = torch.optim.SGD([point(torch.ones(7))], lr=0.05)
    third = sgld([resumed])
    third.load_state_dict(plain.state_dict())
    assert (third.param_groups[0]["lr"], third.param_groups[0]["temperature"]) == (0.05, T)
    third.step()


def test_a_closure_passes_through():
    p = point(torch.ones(3))

    def closure():
        loss = (p**2).sum() * 0.7
        p.grad = None
        loss.backward()
        return loss

    assert sgld([p]).step(closure).item() == pytest.approx(2.1)


def test_a_recorded_run_is_rebuilt_bit_for_bit(tmp_path):
    phase = {"walker": "sgld", "lr": 0.2, "batch_size": 16, "temperature": 1e-4}
    phases = [phase | {"updates": 8}, phase | {"updates": 9, "temperature": 1e-3}]
    data = {"dataset": "digits", "train": 150}
    told = {"name": "x", "seed": 5, "data": data, "model": {"name": "mlp", "hidden": [16]}, "phases": phases}
    record = {"snapshots": {"kind": "every", "n": 1}, "keyframes": 5}
    replayed, stored = (
        open_trajectory(run(Experiment(**told, record=record | {"mode": mode}), tmp_path / mode))
        for mode in ("replay", "snapshots")
    )
    assert stored.snapshot_steps.tolist() == list(range(18))
    for step in (7, 3, 17, 11, 0):
        assert torch.equal(replayed.theta(step), stored.theta(step)), step
    hotter = [float((stored.theta(t + 1) - stored.theta(t)).norm()) for t in (7, 8)]
    assert hotter[1] > 2 * hotter[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature: expected a finite number >= 0, got -0.1"),
        ({"temperature": math.inf}, "temperature: expected a finite number >= 0, got inf"),
        ({"temperature": "hot"}, "temperature: expected a finite number >= 0, got 'hot'"),
        ({"weight_decay": -1}, "weight_decay: expected a finite number >= 0, got -1"),
        ({"lr": True}, "lr: expected a finite number > 0, got True"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        sgld([point([1.0])], **options)


def test_a_group_with_a_number_out_of_range_is_refused():
    with pytest.raises(ArgumentError, match="temperature: expected a finite number >= 0, got -1"):
        sgld([{"params": [point([1.0])], "temperature": -1}])
    with pytest.raises(ArgumentError, match="temperature: expected a finite number >= 0, got nan"):
        sgld([point([1.0])]).add_param_group({"params": [point([2.0])], "temperature": math.nan})
    with pytest.raises(ArgumentError, match=r"lr: expected a finite number > 0, got -0\.1"):
        sgld([{"params": [point([1.0])], "lr": -0.1}])
