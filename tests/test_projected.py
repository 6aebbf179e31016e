"""Projected Langevin as an optimizer: its law, its limits, its state, and a network kept in a ball from end to end."""

import logging
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sgdscope as ss
from sgdscope.bodies import Ball, Box, Simplex
from sgdscope.contracts import walkers
from sgdscope.errors import ArgumentError
from sgdscope.experiment import Experiment, load_toml, run, surface_of
from sgdscope.theory.langevin import interval_atom, langevin_variance
from sgdscope.walkers.projected import ProjectedLangevin


def parameter(values, dtype=torch.float64):
    return nn.Parameter(torch.as_tensor(values, dtype=dtype))


def generator(seed=4):
    return torch.Generator().manual_seed(seed)


def walk(optimizer, p, steps, gradient=lambda x: torch.zeros_like(x)):
    for _ in range(steps):
        p.grad = gradient(p.detach())
        optimizer.step()
    return p.detach()


def test_coordinates_in_a_box_are_chains_on_an_interval():
    n, lr, radius = 40_000, 0.03 * 4, 2.0
    p = parameter(1.5 + torch.zeros(n, dtype=torch.float64))
    walker = ProjectedLangevin([p], lr, body="box", radius=radius, generator=generator())
    end = walk(walker, p, 260)
    atom = interval_atom(radius, lr=lr).value
    on_edge = ((end - 1.5).abs() == radius).double().mean()
    assert float(on_edge) == pytest.approx(atom, abs=4 * math.sqrt(atom / n))
    assert atom == pytest.approx(0.11125, abs=1e-5)
    assert 250 < walker.hits <= walker.updates == 260  # of so many coordinates one leaves at nearly every update


def test_the_drift_is_half_and_the_temperature_that_of_the_loss():
    n, lam, lr, temperature = 100_000, 1.3, 0.4, 0.7
    p = parameter(torch.zeros(n))
    walker = ProjectedLangevin([p], lr, body="space", temperature=temperature, generator=generator())
    end = walk(walker, p, 60, lambda x: lam * (x - 2.0))
    expected = langevin_variance(lam, lr=lr, temperature=temperature)
    assert float(end.var()) == pytest.approx(expected, rel=4 * math.sqrt(2 / n))
    assert float(end.mean()) == pytest.approx(2.0, abs=4 * math.sqrt(expected / n))
    assert walker.hits == 0


@pytest.mark.parametrize("name", ["ball", "space", "box"])
def test_cold_and_wide_it_is_sgd_of_half_the_rate_bit_for_bit(name):
    p, q = parameter([0.3, -1.7, 2.9], torch.float32), parameter([0.3, -1.7, 2.9], torch.float32)
    one = ProjectedLangevin([p], 0.06, temperature=0.0, body=name, radius=1e6)
    other = walkers["sgd"].cls([q], 0.03)
    slope = lambda x: torch.sin(3 * x) + 0.3  # ruff: ignore[lambda-assignment]
    assert torch.equal(walk(one, p, 40, slope), walk(other, q, 40, slope))


@pytest.mark.parametrize("edge", ["project", "reflect"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_it_stays_in_the_ball_round_the_first_point(edge, dtype):
    parts = [parameter(torch.full((4, 3), 2.0), dtype), parameter(torch.full((5,), -1.0), dtype)]
    walker = ProjectedLangevin(parts, 0.002, radius=0.25, edge=edge, generator=generator())
    start, radii = [p.detach().clone() for p in parts], []
    for _ in range(30):
        walker.step()
        radii.append(math.sqrt(sum(float(((p.detach() - a) ** 2).sum()) for p, a in zip(parts, start, strict=True))))
    on_it = sum(radius == pytest.approx(0.25, rel=1e-6) for radius in radii)
    assert max(radii) <= 0.25 * (1 + 1e-6)
    assert 10 < walker.hits < 30
    assert on_it == (walker.hits if edge == "project" else 0)
    assert isinstance(walker.body, Ball)


def test_the_centre_is_the_point_before_the_first_update_and_goes_with_the_state():
    p = parameter([0.0, 0.0])
    walker = ProjectedLangevin([p], 0.5, radius=0.3, generator=generator())
    with torch.no_grad():
        p.copy_(torch.tensor([5.0, 6.0]))  # a checkpoint that is loaded after the walker was built
    walk(walker, p, 7)
    assert float((p.detach() - torch.tensor([5.0, 6.0])).norm()) == pytest.approx(0.3)
    state = walker.state_dict()
    q = parameter(p.detach().clone())
    resumed = ProjectedLangevin([q], 0.1, radius=9.0, generator=generator(77))
    resumed.load_state_dict(state)
    assert torch.equal(walk(resumed, q, 9), walk(walker, p, 9))
    assert 7 < resumed.hits == walker.hits <= 16
    assert float((q.detach() - torch.tensor([5.0, 6.0])).norm()) <= 0.3 + 1e-12


def test_a_state_brings_its_centre_to_a_walker_that_has_one():
    far, here = parameter([5.0, 6.0]), parameter([0.0, 1.0])
    one, other = (ProjectedLangevin([p], 0.5, radius=0.3, generator=generator()) for p in (far, here))
    walk(one, far, 4)
    walk(other, here, 4)
    other.load_state_dict(one.state_dict())
    here.data.copy_(far)
    assert torch.equal(walk(other, here, 3), walk(one, far, 3))
    assert float((here.detach() - torch.tensor([5.0, 6.0])).norm()) <= 0.3 + 1e-12


def test_a_radius_that_changes_keeps_the_centre():
    p = parameter([1.0, 2.0])
    walker = ProjectedLangevin([p], 0.5, radius=0.3, generator=generator())
    walk(walker, p, 3)
    walker.param_groups[0]["radius"] = 0.1
    walk(walker, p, 3)
    assert float((p.detach() - torch.tensor([1.0, 2.0])).norm()) == pytest.approx(0.1)


def test_a_given_body_takes_an_outer_start_and_says_so(caplog):
    p = parameter([3.0, 0.5])
    with caplog.at_level(logging.WARNING):
        walker = ProjectedLangevin([p], 0.01, body=Box(-1.0, 1.0, size=2), generator=generator())
    assert p.tolist() == [1.0, 0.5]
    assert walker.moved == pytest.approx(2.0)
    assert "the start lies 2 outside of Box(d=2, radius 1.414) and was projected" in caplog.text
    state = walker.state_dict()
    with pytest.raises(ArgumentError, match=r"state_dict: it was walked in Box\(d=2, radius 1.414\), this walker has ball"):
        ProjectedLangevin([p], 0.01).load_state_dict(state)
    again = ProjectedLangevin([p], 0.01, body=Box(-1.0, 1.0, size=2))
    again.load_state_dict(state)
    simplex = ProjectedLangevin([p], 0.01, body=Simplex(2), generator=generator())
    walk(simplex, p, 5)
    assert float(p.detach().sum()) == pytest.approx(1.0)


def test_groups_have_their_own_rate_and_temperature_and_closures_pass():
    p, q = parameter([1.0]), parameter([1.0])
    walker = ProjectedLangevin([{"params": [p]}, {"params": [q], "lr": 0.5}], 0.1, temperature=0.0, radius=50.0)

    def closure():
        walker.zero_grad()
        value = 3 * p.sum() + 3 * q.sum()
        value.backward()
        return value

    assert walker.step(closure).item() == pytest.approx(6.0)
    assert (p.item(), q.item()) == (pytest.approx(0.85), pytest.approx(0.25))
    with pytest.raises(ArgumentError, match="param_group: the body's dimension is fixed"):
        walker.add_param_group({"params": [parameter([1.0])]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": -0.1}, "temperature: expected a finite number >= 0, got -0.1"),
        ({"radius": 0.0}, "radius: expected a finite number > 0, got 0.0"),
        ({"radius": math.inf}, "radius: expected a finite number > 0"),
        ({"body": "cube"}, "body: expected one of ball, box, space or a Body, got 'cube'"),
        ({"body": Ball(1.0, size=3)}, "body: expected one of 2 dimensions, as many as parameters"),
        ({"edge": "stick"}, "edge: expected one of project, reflect, got 'stick'"),
    ],
)
def test_wrong_use(options, message):
    with pytest.raises(ArgumentError, match=message):
        ProjectedLangevin([parameter([0.1, 0.2])], 0.1, **options)


def short_example():
    described = load_toml(Path(__file__).parents[1] / "examples" / "digits_ball.toml").expand()[0].described()
    phases = [phase | {"updates": 40} for phase in described["phases"]]
    record = described["record"] | {"keyframes": 30, "snapshots": {"kind": "bursts", "length": 10, "at": [0, 40, 70]}}
    return described | {"phases": phases, "record": record, "data": described["data"] | {"train": 256}, "name": "ball"}


def test_a_network_kept_in_a_ball_from_end_to_end(tmp_path):
    described = short_example()
    path = run(Experiment(**described), tmp_path / "ball")
    trajectory = ss.open_trajectory(path)
    checkpoint = trajectory.theta(40)
    away = [float((trajectory.theta(t) - checkpoint).norm()) for t in range(41, 51)]
    assert max(away) <= 0.5 * (1 + 1e-5)
    assert max(away) > 0.05
    assert float((trajectory.theta(0) - checkpoint).norm()) > 0.5  # SGD had come farther
    assert np.isnan(trajectory.steps["loss"].values).sum() == 0
    measured = ss.measure(trajectory, surface_of(Experiment(**described)), ["motion", "valley"])
    assert measured["motion"].sizes["step"] == 30
    page = ss.report(path, tmp_path / "ball.html")
    assert "projected" in page.read_text()


def test_a_run_tells_how_many_of_its_points_lie_on_the_boundary(tmp_path):
    described = short_example()
    described["phases"] = [phase | {"updates": 12} for phase in described["phases"]]
    described["phases"][1]["radius"] = 0.1
    described["record"]["snapshots"] = {"kind": "every", "n": 1}
    path = run(Experiment(**described), tmp_path / "ball")
    trajectory = ss.open_trajectory(path)
    away = np.array([float((trajectory.theta(t) - trajectory.theta(12)).norm()) for t in range(12, 24)])
    hits = trajectory.steps["hits"].values
    assert np.isnan(hits[:12]).all()
    assert hits[12:].tolist() == np.cumsum(abs(away - 0.1) < 1e-6).tolist()
    assert 2 < hits[-1] < 11
    page = ss.report(path, tmp_path / "ball.html")
    assert f"{hits[-1]:.0f} of 11 projected updates left the body and were brought back" in page.read_text()


def test_a_run_that_starts_at_a_checkpoint_stays_round_it(tmp_path):
    described = short_example()
    first = described | {"phases": described["phases"][:1], "name": "first"}
    path = run(Experiment(**first), tmp_path / "first")
    second = described | {"phases": described["phases"][1:], "start": {"run": str(path), "step": 40}, "name": "second"}
    trajectory = ss.open_trajectory(run(Experiment(**second), tmp_path / "second"))
    start = ss.open_trajectory(path).theta(40)
    assert torch.equal(trajectory.theta(0), start)
    assert 0.05 < max(float((trajectory.theta(t) - start).norm()) for t in range(1, 11)) <= 0.5 * (1 + 1e-5)


def test_a_phase_with_a_wrong_option_is_refused(tmp_path):
    described = short_example()
    phases = [described["phases"][0], described["phases"][1] | {"radius": -1.0}]
    with pytest.raises(ArgumentError, match=r"phases\[1\]\.radius: expected a finite number > 0, got -1"):
        run(Experiment(**(described | {"phases": phases})), tmp_path / "run")
