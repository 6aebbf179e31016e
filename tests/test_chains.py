"""Chains of projected Langevin against exact laws: the transition matrix on an interval, closed forms, tables."""

import math

import numpy as np
import pytest
import torch

from sgdscope.bodies import Ball, Box, BoxBall
from sgdscope.chains import asked, chains
from sgdscope.errors import ArgumentError
from sgdscope.theory.langevin import ball_mass, interval_law, langevin_variance


def uniform(n, d=1, seed=3):
    return torch.rand(n, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2 - 1


def noise(seed=5):
    return torch.Generator().manual_seed(seed)


def four_errors(p, n):
    """Four standard errors of a share: exceeded by chance with probability 6e-5."""
    return 4 * math.sqrt(p * (1 - p) / n)


@pytest.mark.parametrize(("lr", "atom", "variance"), [(0.1, 0.188820, 0.4439), (0.03, 0.111248, 0.3968)])
def test_uniform_on_an_interval_has_the_exact_atoms(lr, atom, variance):
    n, centre, radius = 60_000, 3.0, 2.0  # R = 2 away from 0 takes lr R^2
    body = Box([centre - radius], [centre + radius])
    walked = chains(None, body, lr=lr * radius**2, steps=round(6 / lr), start=centre + radius * uniform(n), generator=noise())
    assert walked.boundary_share == pytest.approx(atom, abs=four_errors(atom, n))
    assert float((walked.points - centre).var()) / radius**2 == pytest.approx(variance, abs=4 * variance * math.sqrt(1.5 / n))
    assert sum(interval_law(np.zeros_like, 1.0, lr=lr).atoms) == pytest.approx(atom, abs=1e-6)
    assert len(walked.inside) == round(n * (1 - walked.boundary_share))


@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_truncated_gaussian_has_the_exact_law(temperature):
    # f = T 2 x^2 at temperature T with lr / T is the table's own chain
    n, lr = 60_000, 0.02
    body, exact = Box([-1.0], [1.0]), interval_law(lambda x: 4 * x, 1.0, lr=lr)
    walked = chains(
        lambda x: temperature * 4 * x, body, lr=lr / temperature, steps=200, start=uniform(n) / 2, generator=noise(),
        temperature=temperature,
    )  # fmt: skip
    assert exact.distance == pytest.approx(0.01976, abs=1e-5)
    assert walked.boundary_share == pytest.approx(0.01976, abs=four_errors(0.02, n))
    assert float(walked.points.var()) == pytest.approx(0.2090, abs=4 * 0.209 * math.sqrt(2 / n))
    assert exact.variance == pytest.approx(0.2090, abs=5e-5)


def test_without_a_surface_in_reach_the_variance_is_that_of_the_finite_step():
    n, body = 200_000, Box([40.0], [80.0])
    walked = chains(lambda x: 1.3 * (x - 60), body, lr=0.4, steps=60, start=60 + uniform(n), generator=noise())
    expected = langevin_variance(1.3, lr=0.4)
    assert expected == pytest.approx(0.8841732979664)
    assert float(walked.points.var()) == pytest.approx(expected, rel=4 * math.sqrt(2 / n))
    assert walked.boundary_share == 0


@pytest.mark.parametrize(("d", "share"), [(2, 0.0845), (3, 0.1245), (5, 0.1999)])
def test_mass_on_a_sphere(d, share):
    n, radius = 12_000, 1.5
    direction = torch.nn.functional.normalize(torch.randn(n, d, generator=noise(1), dtype=torch.float64), dim=1)
    start = 0.7 + radius * direction * torch.rand(n, 1, generator=noise(2), dtype=torch.float64) ** (1 / d)
    body = Ball(radius, centre=0.7, size=d)
    walked = chains(None, body, lr=0.004 * radius**2, steps=300, start=start, generator=noise())
    assert walked.boundary_share == pytest.approx(share, abs=four_errors(share, n) + 0.0005)
    assert ball_mass(d, lr=0.004).value == pytest.approx(share, rel=0.07)


def test_reflection_keeps_a_uniform_law_on_a_box():
    n = 60_000
    walked = chains(None, Box(-1.0, 1.0, size=2), lr=0.1, steps=20, start=uniform(n, 2), generator=noise(), edge="reflect")
    assert walked.boundary_share == 0
    assert float((walked.points**2).mean()) == pytest.approx(1 / 3, abs=4 * 0.298 / math.sqrt(2 * n))
    assert walked.told.startswith("reflected at the surface, not projected as in the paper")


def test_kept_points_and_what_is_told():
    start = torch.tensor([[4.0, 0.0], [0.1, -0.2], [0.0, 3.0]], dtype=torch.float64)
    before = start.clone()
    body = BoxBall(Box(-1.0, 1.0, size=2), Ball(1.2, size=2))
    walked = chains(None, body, lr=0.01, steps=12, start=start, generator=noise(), every=5)
    assert walked.steps.tolist() == [5, 10]
    assert walked.points.shape == (2, 3, 2)
    assert walked.moved.tolist() == pytest.approx([3.0, 0.0, 2.0])
    assert "2 of 3 starts lay outside and were projected" in walked.told
    assert torch.equal(start, before)
    again = chains(None, body, lr=0.01, steps=10, start=start, generator=noise())
    assert torch.equal(again.points[0], walked.points[1])
    assert bool(body.contains(walked.points).all())


def test_the_theorem_asks_for_steps_in_the_bodys_own_units():
    steps, lr = asked(Ball(3.0, size=4), 0.5)
    assert steps.value == pytest.approx(4**7 * 2**8)  # R / r = 1
    assert lr == pytest.approx(9 / steps.value)
    wide, _ = asked(Box(-1.0, 1.0, size=4), 0.5)
    assert wide.value == pytest.approx(2**6 * 4**7 * 2**8)  # R / r = sqrt(4)
    steep, _ = asked(Ball(3.0, size=4), 0.5, lipschitz=2.0, smoothness=1.0)
    assert steep.value == pytest.approx(9**12 * 2**12)  # max(n, R L / r^0, r^2 beta) = max(4, 6, 9)
    assert steps.recalled


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "lr: expected a finite number > 0"),
        ({"temperature": -1.0}, "temperature: expected a finite number > 0"),
        ({"steps": 0}, "steps: expected a whole number >= 1"),
        ({"every": 0}, "every: expected a whole number >= 1"),
        ({"every": 9}, "every: expected at most steps = 5, got 9"),
        ({"edge": "stick"}, "edge: expected project or reflect, got 'stick'"),
        ({"start": torch.zeros(3, 1)}, r"start: expected \[chains, 2\] of floats"),
        ({"start": torch.zeros(3, 2, dtype=torch.int64)}, r"start: expected \[chains, 2\] of floats"),
        ({"gradient": lambda x: x / 0.0}, r"gradient: expected finite numbers \[chains, d\] = \[3, 2\]"),
        ({"gradient": lambda x: torch.full_like(x, math.inf)}, "gradient: expected finite numbers"),
        ({"gradient": lambda x: x[:, :1]}, r"gradient: expected finite numbers \[chains, d\] = \[3, 2\], got \(3, 1\)"),
        ({"gradient": lambda x: torch.where(x.abs() < 0.01, x, torch.nan)}, "gradient, start: the walk is not finite"),
        ({"start": torch.full((3, 2), math.nan)}, "gradient, start: the walk is not finite"),
        ({"body": "box"}, "body: expected a Body, such as Box or Ball, got 'box'"),
    ],
)
def test_wrong_use(options, message):
    told = {"gradient": None, "body": Box(-1.0, 1.0, size=2), "lr": 0.1, "steps": 5, "start": torch.zeros(3, 2)} | options
    with pytest.raises(ArgumentError, match=message):
        chains(told.pop("gradient"), told.pop("body"), generator=noise(), **told)
