"""Landscapes against finite differences and closed forms; walks against exact solutions."""

import json

import numpy as np
import pytest
import torch

from sgdscope import landscapes
from sgdscope.errors import ArgumentError, NotAvailableError
from sgdscope.records import STEP_VARIABLES, windows

F64 = torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rotation(size, seed=3):
    return torch.linalg.qr(torch.randn(size, size, dtype=F64, generator=generator(seed)))[0]


def spd(size, seed):
    root = torch.randn(size, size + 2, dtype=F64, generator=generator(seed))
    return root @ root.T / size


def noisy(size=3, examples=40, seed=5, own=False):
    centres = torch.randn(examples, size, dtype=F64, generator=generator(seed)) + 0.7
    hessian = torch.stack([spd(size, seed + i) for i in range(examples)]) if own else spd(size, seed)
    return landscapes.NoisyQuadratic(hessian, centres, offset=-0.3)


def plain():
    saddle = rotation(4) @ torch.diag(torch.tensor([-5.0, 3.0, 3.0, 0.0], dtype=F64)) @ rotation(4).T
    return {
        "quadratic": landscapes.Quadratic((saddle + saddle.T) / 2, [0.3, -1.0, 2.0, 0.5], 1.7),
        "ravine": landscapes.Ravine(19.0, 0.5, angle=0.6, centre=[1.5, -2.0], offset=0.4),
        "river": landscapes.River(sharp=7.0, slope=0.3),
        "parabola river": landscapes.River(lambda x: 0.4 * x * x - 0.2 * x, sharp=3.0, slope=0.2),
        "straight river": landscapes.River(lambda x: 0.5 * x + 1.0, sharp=3.0),
        "level river": landscapes.River(lambda x: torch.tensor(2.0, dtype=F64), sharp=3.0),
        "double well": landscapes.DoubleWell(2.5, 0.8, walls=[4.0, 1.5]),
        "styblinski-tang": landscapes.StyblinskiTang(3),
    }


def stochastic():
    well = landscapes.DoubleWell(2.5, 0.8, walls=[4.0])
    pulls = torch.randn(12, 2, dtype=F64, generator=generator(8)) + 0.5
    return {"noisy quadratic": noisy(), "own hessians": noisy(own=True), "noisy well": landscapes.Noisy(well, pulls)}


def moved():
    everything = plain() | stochastic()
    return {
        f"moved {name}": landscapes.Moved(s, rotation=rotation(s.size), shift=torch.linspace(-1.0, 2.0, s.size), scale=3.7)
        for name, s in everything.items()
    }


ALL = plain() | stochastic() | moved()


@pytest.mark.parametrize("name", ALL)
def test_gradient_and_hessian_agree_with_finite_differences(name):
    surface = ALL[name]
    theta = surface.theta() + 0.3 * torch.randn(surface.size, dtype=F64, generator=generator(1))
    value, gradient = surface.value_and_grad(theta)
    step, eye = 1e-5, torch.eye(surface.size, dtype=F64)
    slopes = torch.tensor(
        [(surface.value(theta + step * e) - surface.value(theta - step * e)) / (2 * step) for e in eye], dtype=F64
    )
    curves = torch.stack(
        [(surface.value_and_grad(theta + step * e)[1] - surface.value_and_grad(theta - step * e)[1]) / (2 * step) for e in eye]
    )
    scale = float(curves.abs().max())
    torch.testing.assert_close(gradient, slopes, rtol=1e-7, atol=1e-8 * scale)
    torch.testing.assert_close(surface.hessian(theta), curves, rtol=1e-7, atol=1e-8 * scale)
    torch.testing.assert_close(surface.hvp(theta, eye[:, :2]), surface.hessian(theta)[:, :2], rtol=0, atol=0)
    assert float(surface.losses(theta).mean()) == pytest.approx(value, rel=1e-12)
    assert gradient.dtype == F64


@pytest.mark.parametrize("name", [n for n in ALL if ALL[n].stochastic])
def test_batches_are_means_over_their_examples(name):
    surface = ALL[name]
    theta = surface.theta() + 0.3
    batch = torch.tensor([7, 2, 7, 0])
    value, gradient = surface.on_batch(batch).value_and_grad(theta)
    assert value == pytest.approx(float(surface.losses(theta)[batch].mean()), rel=1e-12)
    torch.testing.assert_close(gradient, surface.per_example_grads(theta, batch).mean(0), rtol=1e-12, atol=1e-13)
    whole = surface.on_batch(torch.arange(surface.examples)).value_and_grad(theta)
    torch.testing.assert_close(whole[1], surface.value_and_grad(theta)[1], rtol=1e-12, atol=1e-13)
    assert surface.on_batch(batch).examples == 4
    assert surface.examples > 4
    assert surface.on_batch(batch).fingerprint()["data"] != surface.fingerprint()["data"]


@pytest.mark.parametrize("name", ALL)
def test_lines_give_the_values_of_their_points(name):
    surface = ALL[name]
    theta, direction = surface.theta(), torch.linspace(-0.5, 0.4, surface.size, dtype=F64)
    line = surface.along(theta, direction, [0.0, 0.35, 1.0, -2.0])
    expected = [surface.value(theta + a * direction) for a in (0.0, 0.35, 1.0, -2.0)]
    np.testing.assert_allclose(line.values, expected, rtol=1e-12, atol=1e-13)
    assert line.evaluations == 4
    assert (line.samples is not None) == surface.stochastic
    if line.samples is not None:
        assert line.samples.shape == (4, surface.examples)
        assert line.unit == "example"
        np.testing.assert_allclose(line.samples @ line.weights, line.values, rtol=1e-12)


@pytest.mark.parametrize("name", ALL)
def test_fingerprints_are_json_and_tell_surfaces_apart(name):
    own = ALL[name].fingerprint()
    assert json.loads(json.dumps(own)) == own
    assert sum(other.fingerprint()["data"] == own["data"] for other in ALL.values()) == 1


def test_what_a_surface_hands_out_is_a_copy():
    surface = landscapes.Ravine(3.0, 1.0)
    surface.theta().zero_()
    surface.hessian(surface.theta()).zero_()
    assert surface.theta().tolist() == [1.0, 1.0]
    assert surface.hessian(surface.theta()).diagonal().tolist() == [3.0, 1.0]


# --- known answers of the surfaces -----------------------------------------------------------------------------------


def test_ravine_has_its_curvatures_in_rotated_coordinates():
    ravine = landscapes.Ravine(19.0, 0.5, angle=0.6, centre=[1.5, -2.0], offset=0.4)
    assert torch.linalg.eigvalsh(ravine.hessian(ravine.theta())).tolist() == pytest.approx([0.5, 19.0], rel=1e-12)
    theta = ravine.centre + ravine.rotation @ torch.tensor([0.3, -2.0], dtype=F64)
    assert ravine.value(theta) == pytest.approx(0.4 + 0.5 * (19.0 * 0.09 + 0.5 * 4.0), rel=1e-12)
    assert ravine.coordinates(theta).tolist() == pytest.approx([0.3, -2.0], rel=1e-12)


def test_double_well_barrier_and_curvatures():
    well = landscapes.DoubleWell(2.5, 0.8, walls=[4.0])
    assert well.value(well.well(-1)) == well.value(well.well(1)) == pytest.approx(0.0, abs=1e-15)
    assert well.value(torch.zeros(2, dtype=F64)) == pytest.approx(2.5)
    assert well.hessian(well.well(1))[0, 0] == pytest.approx(8 * 2.5 / 0.64, rel=1e-12)
    assert well.hessian(torch.zeros(2, dtype=F64))[0, 0] == pytest.approx(-4 * 2.5 / 0.64, rel=1e-12)
    line = well.along(well.well(-1), well.well(1) - well.well(-1), np.linspace(0, 1, 21))
    assert line.values.max() - line.values[[0, -1]].max() == pytest.approx(2.5, rel=1e-12)


def test_one_step_across_the_hump_meets_a_barrier():
    # from x0 below the inner inflection, lr chosen so that one step lands on the mirror image -x0: equal ends, hump between
    well = landscapes.DoubleWell(2.5, 0.8)
    x0 = torch.tensor([-0.3], dtype=F64)
    gradient = well.value_and_grad(torch.tensor([-1.1], dtype=F64))[1]
    lr = -1.8 / float(gradient[0])  # from -1.1 to 0.7
    walked = landscapes.walk(well, lr=lr, updates=1, start=[-1.1])
    assert float(walked.theta(1)[0]) == pytest.approx(0.7, rel=1e-12)
    values = well.along(walked.theta(0), walked.theta(1) - walked.theta(0), np.linspace(0, 1, 181)).values
    inside = values[90:]
    assert inside.max() - inside[-1] == pytest.approx(2.5 - well.value(walked.theta(1)), rel=1e-3)
    assert well.hessian(x0)[0, 0] < 0


def test_river_floor_and_height():
    river = landscapes.River(lambda x: 0.4 * x * x, sharp=7.0, slope=0.3)
    floor = river.floor(1.5)
    assert floor.tolist() == pytest.approx([1.5, 0.9], rel=1e-12)
    assert river.value(floor) == pytest.approx(-0.45, rel=1e-12)
    assert river.height(floor) == pytest.approx(0.0, abs=1e-15)
    above = floor + torch.tensor([0.0, 0.2], dtype=F64)
    assert river.height(above) == pytest.approx(0.14, rel=1e-12)
    assert river.value(above) - river.value(floor) == pytest.approx(0.14, rel=1e-12)
    top = torch.linalg.eigvalsh(river.hessian(floor))[-1]
    assert float(top) == pytest.approx(7.0 * (1 + 1.2**2), rel=1e-12)


def test_gradient_flow_on_the_river_falls_to_the_floor_and_follows_it():
    # a small learning rate kills the height and leaves the lag behind the floor, which is O(slope^2 / sharp)
    river = landscapes.River(sharp=40.0, slope=0.5)
    walked = landscapes.walk(river, lr=0.005, updates=2000, start=[0.0, 0.8], snapshots=[0, 300, 2000])
    assert river.height(walked.theta(0)) == pytest.approx(12.8)
    assert river.height(walked.theta(2000)) < 0.5 * 0.5**2 / 40.0
    assert float(walked.theta(2000)[0]) > float(walked.theta(300)[0]) > 0.1


def test_styblinski_tang_minimum():
    surface = landscapes.StyblinskiTang(3)
    assert surface.minimum.tolist() == pytest.approx([-2.903534027771177] * 3, rel=1e-12)
    assert surface.value(surface.minimum) == pytest.approx(-39.16616570377142 * 3, rel=1e-12)
    for root in (surface.deep, surface.hump, surface.shallow):
        gradient = landscapes.StyblinskiTang(1).value_and_grad(torch.tensor([root], dtype=F64))[1]
        assert abs(float(gradient[0])) < 1e-12
    assert (surface.hump, surface.shallow) == pytest.approx((0.156731, 2.746803), abs=1e-6)


def test_noisy_quadratic_covariance_of_gradients():
    surface = noisy()
    centred = surface.centres - surface.centres.mean(0)
    hessian = surface.hessian(surface.theta())
    exact = hessian @ (centred.T @ centred / surface.examples) @ hessian
    for theta in (surface.theta(), surface.theta() - 3.0):
        torch.testing.assert_close(surface.gradient_covariance(theta), exact, rtol=1e-11, atol=1e-12)
    torch.testing.assert_close(surface.gradient_covariance(theta, batch_size=5), exact / 5, rtol=1e-11, atol=1e-12)
    assert float(surface.value_and_grad(surface.minimum)[1].norm()) < 1e-12
    own = noisy(own=True)
    assert float(own.value_and_grad(own.minimum)[1].norm()) < 1e-12
    assert not torch.allclose(own.gradient_covariance(own.minimum), own.gradient_covariance(own.minimum + 2.0), rtol=0.1)


def test_covariance_without_replacement_by_enumerating_all_batches():
    import itertools

    surface = noisy(size=2, examples=6)
    theta = surface.theta()
    batches = [torch.tensor(b) for b in itertools.combinations(range(6), 2)]
    gradients = torch.stack([surface.on_batch(b).value_and_grad(theta)[1] for b in batches])
    gradients = gradients - gradients.mean(0)
    exact = gradients.T @ gradients / len(batches)
    torch.testing.assert_close(surface.gradient_covariance(theta, batch_size=2, replacement=False), exact, rtol=1e-11, atol=1e-12)


def test_with_noise_gives_the_wanted_covariance_exactly():
    hessian, wanted = spd(3, 1), spd(3, 2)
    surface = landscapes.NoisyQuadratic.with_noise(hessian, wanted, examples=17, generator=generator(4), centre=[1.0, 2.0, -3.0])
    torch.testing.assert_close(surface.gradient_covariance(surface.theta()), wanted, rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(surface.minimum, torch.tensor([1.0, 2.0, -3.0], dtype=F64), rtol=1e-10, atol=1e-10)


def test_noisy_pulls_leave_the_mean_alone():
    well = landscapes.DoubleWell(2.5, 0.8, walls=[4.0])
    pulls = torch.randn(12, 2, dtype=F64, generator=generator(8)) + 0.5
    surface, theta = landscapes.Noisy(well, pulls), torch.tensor([0.3, -0.4], dtype=F64)
    assert surface.value(theta) == pytest.approx(well.value(theta), rel=1e-12)
    gradients = surface.per_example_grads(theta)
    torch.testing.assert_close(torch.cov(gradients.T, correction=0), torch.cov(pulls.T, correction=0), rtol=1e-11, atol=1e-12)


# --- walks -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("product", [0.5, 1.0, 1.5, 2.0, 2.2])
def test_gradient_descent_on_a_parabola_is_exact(product):
    lam, x0, centre = 3.0, 0.7, 1.3
    lr, factor = product / lam, 1 - product
    surface = landscapes.Quadratic([[lam]], [centre], 0.2)
    walked = landscapes.walk(surface, lr=lr, updates=8, start=[centre + x0])
    x = np.array([float(walked.theta(t)[0]) - centre for t in range(9)])
    steps = walked.steps
    np.testing.assert_allclose(x, x0 * factor ** np.arange(9), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(steps["loss"], 0.2 + 0.5 * lam * x[:-1] ** 2, rtol=1e-12)
    np.testing.assert_allclose(steps["gradient_norm"], lam * abs(x[:-1]), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(steps["gradient_dot_update"], -lr * (lam * x[:-1]) ** 2, rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(steps["update_norm"], lr * lam * abs(x[:-1]), rtol=1e-9, atol=1e-14)
    np.testing.assert_allclose(steps["distance"], abs(x[:-1] - x0), rtol=1e-9, atol=1e-14)
    assert np.isnan(steps["gradient_cosine"][0])
    if abs(factor) > 1e-9:  # at eta lambda = 1 the second gradient is zero
        np.testing.assert_allclose(steps["gradient_cosine"][1:], np.sign(factor), rtol=1e-12)
        assert float(steps["descent_residual"].max()) < 1e-12
    values = surface.along(walked.theta(0), walked.theta(1) - walked.theta(0), [0.0, 0.5, 1.0]).values - 0.2
    a2 = 2 * (values[0] - 2 * values[1] + values[2])
    a1 = values[2] - values[0] - a2
    assert -a1 / (2 * a2) == pytest.approx(1 / product, rel=1e-10)
    assert values[0] == pytest.approx(0.5 * lam * x0**2, rel=1e-10)
    assert values[2] == pytest.approx(0.5 * lam * factor**2 * x0**2, abs=1e-12)


def test_ravine_bounces_across_then_drifts_along():
    sharp, flat, lr = 19.0, 0.05, 0.1
    ravine = landscapes.Ravine(sharp, flat, angle=0.6, centre=[1.5, -2.0])
    start = ravine.centre + ravine.rotation @ torch.tensor([1.0, 3.0], dtype=F64)
    walked = landscapes.walk(ravine, lr=lr, updates=200, start=start)
    places = torch.stack([ravine.coordinates(walked.theta(t)) for t in range(201)]).numpy()
    times = np.arange(201)
    np.testing.assert_allclose(places[:, 0], (1 - lr * sharp) ** times, atol=1e-13)
    np.testing.assert_allclose(places[:, 1], 3.0 * (1 - lr * flat) ** times, rtol=1e-12)
    cosine = walked.steps["gradient_cosine"].to_numpy()
    assert (cosine[1:10] < -0.99).all()
    assert (cosine[150:] > 0.99).all()
    gradients = places[:-1] * np.array([sharp, flat])
    alpha = (gradients**2).sum(1) / (lr * (gradients**2 @ np.array([sharp, flat])))  # alpha* = g'g / (eta g'Hg)
    assert ((alpha[:10] > 0) & (alpha[:10] < 1)).all()
    assert (alpha[150:] > 100).all()


def test_stationary_covariance_of_the_noisy_quadratic():
    """Four standard errors of the mean over 40 blocks, three entries: fails by chance below 1 in 1000."""
    hessian = torch.tensor([[2.0, 0.4], [0.4, 1.0]], dtype=F64)
    noise = torch.tensor([[1.5, -0.6], [-0.6, 0.8]], dtype=F64)
    lr, batch, updates, burn, blocks = 0.5, 4, 24_200, 200, 40
    surface = landscapes.NoisyQuadratic.with_noise(hessian, noise, examples=50, generator=generator(1), centre=[3.0, -1.0])
    walked = landscapes.walk(surface, lr=lr, updates=updates, start=surface.minimum, batch_size=batch, generator=generator(2))
    away = torch.stack([walked.theta(t) for t in range(burn, updates)]) - surface.minimum
    products = (away[:, :, None] * away[:, None, :]).reshape(blocks, -1, 4).mean(1)
    mean, stderr = products.mean(0), products.std(0) / blocks**0.5
    eye = torch.eye(2, dtype=F64)
    keep = eye - lr * hessian
    exact = torch.linalg.solve(torch.kron(eye, eye) - torch.kron(keep, keep), lr**2 * (noise / batch).reshape(-1))
    assert bool(((mean - exact).abs() < 4 * stderr).all()), (mean, exact, stderr)
    assert float((stderr / exact.abs()).max()) < 0.12
    diffusion = torch.linalg.solve(torch.kron(hessian, eye) + torch.kron(eye, hessian), lr * (noise / batch).reshape(-1))
    assert float(((mean - diffusion).abs() / stderr)[0]) > 6  # the limit of small learning rates is told apart
    heights = torch.tensor([surface.value(walked.theta(t)) - surface.value(surface.minimum) for t in range(burn, updates, 3)])
    assert float(heights.mean()) == pytest.approx(0.5 * float(torch.trace(hessian @ exact.reshape(2, 2))), rel=0.08)


def test_walk_equals_the_torch_optimizer():
    surface = noisy()
    lrs = np.linspace(0.02, 0.01, 30)
    walked = landscapes.walk(
        surface, lr=0.02, lrs=lrs, updates=30, start=surface.theta(), batch_size=4, momentum=0.6, generator=generator(9)
    )
    parameter = torch.nn.Parameter(surface.theta())
    optimizer = torch.optim.SGD([parameter], lr=0.02, momentum=0.6)
    for t in range(30):
        value, parameter.grad = surface.on_batch(walked.batch(t)).value_and_grad(parameter.detach())
        assert value == pytest.approx(float(walked.steps["loss"][t]), rel=1e-12)
        before = parameter.detach().clone()
        optimizer.param_groups[0]["lr"] = lrs[t]
        optimizer.step()
        torch.testing.assert_close(walked.theta(t + 1), parameter.detach(), rtol=1e-13, atol=1e-14)
        moved = parameter.detach() - before
        residual = float((moved + lrs[t] * parameter.grad).norm() / moved.norm())
        assert float(walked.steps["descent_residual"][t]) == pytest.approx(residual, rel=1e-6, abs=1e-12)
    assert float(walked.steps["descent_residual"][5:].min()) > 0.01
    np.testing.assert_array_equal(walked.steps["lr"], lrs)


def test_walk_fills_every_scalar_and_reads_back():
    surface = noisy()
    walked = landscapes.walk(
        surface,
        lr=0.1,
        updates=7,
        start=surface.theta(),
        batch_size=4,
        generator=generator(11),
        settings={"seed": 3, "name": "a"},
    )
    assert set(STEP_VARIABLES) == set(walked.steps.data_vars)
    assert walked.steps["flags"].dtype == np.int8
    assert int(walked.steps["flags"].sum()) == 0
    assert windows(walked.snapshot_steps) == [(0, 7)]
    assert {k: walked.settings[k] for k in ("lr", "batch_size", "seed", "name", "momentum")} == {
        "lr": 0.1, "batch_size": 4, "seed": 3, "name": "a", "momentum": 0.0
    }  # fmt: skip
    assert json.loads(json.dumps(walked.settings)) == dict(walked.settings)
    walked.theta(3).zero_()
    assert float(walked.theta(3).norm()) > 0
    assert walked.buffers(3) == {}
    assert walked.batch(6).shape == (4,)
    with pytest.raises(NotAvailableError, match="no update 7"):
        walked.batch(7)
    part = landscapes.walk(surface, lr=0.1, updates=7, start=surface.theta(), snapshots=[2, 3, 7])
    assert part.snapshot_steps.tolist() == [2, 3, 7]
    assert part.batch(2).tolist() == list(range(40))
    assert part.settings["batch_size"] == 40
    with pytest.raises(NotAvailableError, match="before update 4 was not kept"):
        part.theta(4)


def test_walks_repeat_with_their_generator_and_leave_the_global_one_alone():
    surface, before = noisy(), torch.get_rng_state()
    walks = [
        landscapes.walk(surface, lr=0.1, updates=20, start=surface.theta(), batch_size=4, generator=generator(s))
        for s in (1, 1, 2)
    ]
    assert torch.equal(walks[0].theta(20), walks[1].theta(20))
    assert not torch.equal(walks[0].theta(20), walks[2].theta(20))
    assert walks[2].settings["seed"] == 2
    assert torch.equal(torch.get_rng_state(), before)


def test_epochs_without_replacement_see_every_example_once():
    surface = noisy(examples=22)
    walked = landscapes.walk(
        surface, lr=0.01, updates=11, start=surface.theta(), batch_size=4, generator=generator(1), replacement=False
    )
    first = torch.cat([walked.batch(t) for t in range(5)])
    assert len(set(first.tolist())) == 20  # two of 22 are left out in each epoch
    second = torch.cat([walked.batch(t) for t in range(5, 10)])
    assert len(set(second.tolist())) == 20
    assert not torch.equal(first, second)


def test_divergence_is_flagged():
    walked = landscapes.walk(landscapes.DoubleWell(), lr=5.0, updates=12, start=[3.0])
    flags = walked.steps["flags"].to_numpy()
    assert flags[0] == 0
    assert flags[-1] == 2


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: landscapes.Quadratic([[1.0, 2.0], [0.0, 1.0]]), "hessian: expected a symmetric"),
        (lambda: landscapes.Quadratic([[1.0, 2.0]]), "hessian: expected square"),
        (lambda: landscapes.Quadratic([[1.0]], [1.0, 2.0]), r"centre: expected a vector of length 1, got shape \(2,\)"),
        (lambda: landscapes.Ravine(-1.0, 1.0), "sharp: expected a finite number > 0, got -1.0"),
        (lambda: landscapes.River(slope=-1.0), "slope: expected"),
        (lambda: landscapes.DoubleWell(0.0), "barrier: expected"),
        (lambda: landscapes.StyblinskiTang(0), "d: expected at least 1"),
        (lambda: landscapes.NoisyQuadratic([[1.0]], [[1.0]]), "centres: expected"),
        (lambda: landscapes.NoisyQuadratic(torch.ones(3, 1, 1), torch.ones(2, 1)), "one matrix or 2"),
        (
            lambda: landscapes.NoisyQuadratic.with_noise([[1.0]], [[-1.0]], examples=5, generator=generator()),
            "noise: expected a pos",
        ),
        (
            lambda: landscapes.NoisyQuadratic.with_noise([[1.0]], [[1.0]], examples=1, generator=generator()),
            "examples: expected more",
        ),
        (lambda: landscapes.Noisy(noisy(), torch.ones(3, 3)), "surface: expected one without noise"),
        (lambda: landscapes.Noisy(landscapes.DoubleWell(), torch.ones(3, 2)), r"pulls: expected \[N, 1\]"),
        (lambda: landscapes.Moved(landscapes.Ravine(2.0, 1.0), rotation=2 * torch.eye(2)), "rotation: expected an orthogonal"),
        (lambda: landscapes.Ravine(2.0, 1.0).value(torch.ones(3)), r"theta: expected shape \(2,\), got \(3,\)"),
        (lambda: landscapes.walk(noisy(), lr=0.0, updates=3, start=[0.0] * 3), "lr: expected"),
        (lambda: landscapes.walk(noisy(), lr=0.1, updates=0, start=[0.0] * 3), "updates: expected"),
        (lambda: landscapes.walk(noisy(), lr=0.1, updates=3, start=[0.0] * 2), "start: expected"),
        (lambda: landscapes.walk(noisy(), lr=0.1, updates=3, start=[0.0] * 3, lrs=[0.1]), "lrs: expected one learning rate"),
        (lambda: landscapes.walk(noisy(), lr=0.1, updates=3, start=[0.0] * 3, momentum=1.0), "momentum: expected"),
        (lambda: landscapes.walk(noisy(), lr=0.1, updates=3, start=[0.0] * 3, batch_size=0), "batch_size: expected 1 to 40"),
        (
            lambda: landscapes.walk(noisy(), lr=0.1, updates=3, start=[0.0] * 3, batch_size=41, replacement=False),
            "batch_size: expected 1 to 40 examples, got 41",
        ),
        (lambda: landscapes.walk(landscapes.DoubleWell(), lr=0.1, updates=3, start=[0.1], batch_size=2), "no examples to draw"),
        (
            lambda: landscapes.walk(noisy(), lr=0.1, updates=3, start=[0.0] * 3, snapshots=[4]),
            "snapshots: expected points 0 to 3",
        ),
    ],
)
def test_wrong_arguments_are_named(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()
