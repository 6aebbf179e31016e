"""The motion against walks whose displacement, cosines and fits are known exactly."""

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov

from sgdscope.errors import ArgumentError, NotAvailableError, Outcome
from sgdscope.landscapes import NoisyQuadratic, Quadratic, Ravine, walk
from sgdscope.quantities import motion as module
from sgdscope.quantities.motion import motion
from sgdscope.records import Header, Snapshot, Trajectory, steps_dataset
from sgdscope.vector import Layout

F64 = torch.float64


def made(points, columns=None, kept=None, begin=0):
    """A trajectory through chosen points with two layers: a (2 + 1 coordinates) and b (the rest)."""
    size = points.shape[1]
    layout = Layout(("a.weight", "a.bias", "b.weight"), ((2,), (1,), (size - 3,)), ("float64",) * 3)
    kept = np.arange(len(points)) if kept is None else np.asarray(kept)
    columns = columns or {}
    count = len(next(iter(columns.values()))) if columns else len(points) - 1

    def read(step):
        if step not in kept:
            raise NotAvailableError("not kept")
        return Snapshot(step, points[step].clone(), torch.zeros(0))

    steps = begin + np.arange(count)
    return Trajectory(Header(layout, Layout((), (), ()), {}), lambda: steps_dataset(steps, columns), kept, read)


@pytest.mark.parametrize("product", [0.5, 1.5, 2.0, 2.2])
def test_cosines_of_gradient_descent_on_a_parabola(product):
    surface = Quadratic([[3.7]], [1.3])
    found = motion(walk(surface, lr=product / 3.7, updates=12, start=[2.9]), surface)
    assert float(found["gradient_cosine"][0]) == pytest.approx(np.sign(1 - product), abs=1e-12)
    assert found["update_cosine"].values[1:] == pytest.approx(np.sign(1 - product), abs=1e-9)
    assert np.isnan(found["update_cosine"].values[0])
    assert int(found["update_cosine_outcome"][0]) == Outcome.not_applicable
    assert bool(found["gradient_cosine_negative"][0]) == (product > 1)
    assert found["oscillating"].values == pytest.approx(1.6 * product * abs(1 - product) ** np.arange(12) / 2, rel=1e-9)
    drift = 1.6 * product * abs(1 - product) ** np.arange(11) * abs(2 - product) / 2
    assert found["drifting"].values[:-1] == pytest.approx(drift, rel=1e-7, abs=1e-7)
    full = found["gradient_cosine_predicted"].values[0]
    assert full == pytest.approx(-1, abs=0.35 if product != 2 else 1e-9)


def test_ravine_drift_is_exact():
    surface = Ravine(40.0, 0.08, angle=0.4, centre=[1.0, -2.0])
    start, lr = surface.centre + surface.rotation @ torch.tensor([1.0, 20.0], dtype=F64), 1.9 / 40
    trajectory = walk(surface, lr=lr, updates=400, start=start)
    found = motion(trajectory, surface)
    t = np.arange(400)
    exact = np.hypot(1 - (-0.9) ** t, 20 * (1 - (1 - lr * 0.08) ** t))
    assert found["distance"].values == pytest.approx(exact, rel=1e-9, abs=1e-9)
    assert found["distance_layer"].values[:, 0] == pytest.approx(exact, rel=1e-9, abs=1e-9)
    assert float(found["oscillating_share"][0]) > 0.97
    assert float(found["oscillating_share"][-1]) < 0.01
    assert float(found["gradient_cosine"][-1]) > 0.99


def test_a_straight_line_and_a_pendulum():
    direction = torch.tensor([0.6, -0.3, 0.2, 0.9], dtype=F64)
    line = 1.7 + torch.arange(41, dtype=F64)[:, None] * direction
    found = motion(made(line), window=40)
    speed = float(direction.norm())
    lags = found["lag"].values
    assert lags.tolist() == [1, 2, 3, 4, 6, 8]
    assert found["msd"].values[0] == pytest.approx((lags * speed) ** 2, rel=1e-10)
    assert float(found["msd_exponent"][0]) == pytest.approx(2, rel=1e-9)
    assert float(found["efficiency"][0]) == pytest.approx(1, rel=1e-12)
    assert float(found["path_length"][0]) == pytest.approx(40 * speed, rel=1e-12)
    assert float(found["oscillating_share"][0]) == pytest.approx(0, abs=1e-12)
    assert found["layer"].values.tolist() == ["a", "b"]
    t = np.arange(40)
    assert found["distance_layer"].values[:, 0] == pytest.approx(t * float(direction[:3].norm()), rel=1e-10, abs=1e-12)
    assert found["distance_layer"].values[:, 1] == pytest.approx(t * 0.9, rel=1e-10, abs=1e-12)

    swing = 1.7 + (torch.arange(41) % 2)[:, None] * direction
    found = motion(made(swing), window=20)
    assert found["oscillating_share"].values == pytest.approx([1, 1], abs=1e-12)
    assert found["net"].values == pytest.approx([0, 0], abs=1e-7)
    assert found["update_cosine"].values[1] == pytest.approx(-1, abs=1e-12)
    assert np.isnan(found["update_cosine"].values[20])
    assert found["msd"].values[0][:3] == pytest.approx([speed**2, 0, speed**2], abs=1e-12)


def test_a_random_walk_is_diffusive():
    """The exponent is within four of its standard errors of 1; fails by chance about once in 10^3 seeds."""
    steps = torch.randn(1200, 30, generator=torch.Generator().manual_seed(3), dtype=F64)
    points = torch.cat([torch.zeros(1, 30, dtype=F64), steps.cumsum(0)])
    columns = {"distance": points[:-1].norm(dim=1).numpy()}
    found = motion(made(points, columns), window=600)
    for w in range(2):
        error = float(found["msd_exponent_stderr"][w])
        assert abs(float(found["msd_exponent"][w]) - 1) < 4 * error < 0.6
        assert float(found["msd_exponent_low"][w]) < 1.15
        assert float(found["msd"][w, 0]) == pytest.approx(30, rel=0.05)
        assert float(found["oscillating_share"][w]) == pytest.approx(0.5, abs=0.02)
    assert float(found["distance_exponent"]) == pytest.approx(1, abs=0.15)
    assert float(found["distance_exponent_low"]) < float(found["distance_exponent"]) < float(found["distance_exponent_high"])


def test_run_level_fits_are_exact_where_their_law_holds():
    t = np.arange(500.0)
    points = torch.zeros(501, 4, dtype=F64)
    power = motion(made(points, {"distance": 0.7 * t**0.31}, kept=[]))
    assert float(power["distance_exponent"]) == pytest.approx(0.62, rel=1e-9)
    assert float(power["distance_r2"]) == pytest.approx(1, rel=1e-9)
    assert float(power["distance_exponent_stderr"]) < 1e-9
    logarithmic = motion(made(points, {"distance": 0.4 + 0.23 * np.log(np.maximum(t, 1))}, kept=[]))
    assert float(logarithmic["log_slope"]) == pytest.approx(0.23, rel=1e-9)
    assert float(logarithmic["log_r2"]) == pytest.approx(1, rel=1e-9)
    assert float(logarithmic["distance_r2"]) < 0.999


def test_means_of_recorded_cosines():
    cosines = np.array([np.nan, -0.5, 0.0, 0.1, -0.9, 0.3, -0.2])
    found = motion(made(torch.randn(8, 4, dtype=F64, generator=torch.Generator().manual_seed(1)), {"gradient_cosine": cosines}))
    for name in ("gradient_cosine", "mean_gradient_cosine"):
        assert float(np.ravel(found[name])[0]) == pytest.approx(-0.2)  # of six values; their median is -0.1
        assert float(np.ravel(found[f"{name}_low"])[0]) < -0.2 < float(np.ravel(found[f"{name}_high"])[0])
    assert float(found["gradient_cosine_negative"][0]) == pytest.approx(0.5)  # 0 is not negative


def test_time_of_the_fits_counts_from_the_first_row():
    t = np.arange(300.0)
    found = motion(made(torch.zeros(301, 4, dtype=F64), {"distance": 0.7 * t**0.31}, kept=[], begin=70))
    assert float(found["distance_exponent"]) == pytest.approx(0.62, rel=1e-9)


def test_error_of_the_displacement_sees_that_pairs_overlap():
    """Neighbouring |x_{i+4} - x_i|^2 share three of four steps: their mean is about 1.6 times as uncertain as counted apart."""
    steps = torch.randn(800, 1, generator=torch.Generator().manual_seed(3), dtype=F64).repeat(1, 3)
    points = torch.cat([torch.zeros(1, 3, dtype=F64), steps.cumsum(0)])
    found = motion(made(torch.cat([points, points[:, :1] * 0], 1)), window=800)
    place = found["lag"].values.tolist().index(4)
    squares = ((points[4:] - points[:-4]) ** 2).sum(1).numpy()
    assert float(found["msd"][0, place]) == pytest.approx(squares.mean(), rel=1e-9)
    assert float(found["msd_stderr"][0, place]) > 1.3 * squares.std() / np.sqrt(len(squares))


def test_error_of_the_predicted_cosine_counts_both_means():
    norms = np.array([1.0, 3.0, 2.0, 4.0, 1.5, 2.5])
    surface = Quadratic(np.diag([2.0, 1.0, 0.5, 3.0]))
    points = torch.randn(7, 4, generator=torch.Generator().manual_seed(5), dtype=F64)
    found = motion(made(points, {"gradient_norm": norms}), surface, gradient_points=3)
    full = np.array([float(surface.value_and_grad(points[t])[1].square().sum()) for t in (0, 2, 4)])
    q, value = (norms**2).mean(), -full.mean() / (norms**2).mean()
    error = np.sqrt(full.var(ddof=1) / 3 + value**2 * (norms**2).var(ddof=1) / 6) / q
    assert float(found["gradient_cosine_predicted"][0]) == pytest.approx(value, rel=1e-12)
    assert float(found["gradient_cosine_predicted_stderr"][0]) == pytest.approx(error, rel=1e-12)


def test_cosine_law_on_a_noisy_quadratic():
    """At stationarity cos = -|grad L|^2 / E|g|^2 (ratio of means); each within four standard errors."""
    hessian, noise = np.array([[2.6, 0.7], [0.7, 1.1]]), np.array([[1.3, -0.4], [-0.4, 0.6]])
    generator = torch.Generator().manual_seed(11)
    surface = NoisyQuadratic.with_noise(hessian, noise, examples=400, generator=generator)
    lr, size = 0.4, 4
    trajectory = walk(surface, lr=lr, updates=2200, start=surface.minimum, batch_size=size, generator=generator)
    found = motion(trajectory.between(200, 2200), surface, window=2000, gradient_points=500)
    rest = np.eye(2) - lr * hessian
    covariance = solve_discrete_lyapunov(rest, lr**2 * noise / size)
    full = np.trace(hessian @ covariance @ hessian)
    exact = -full / (full + np.trace(noise) / size)
    error = float(found["gradient_cosine_predicted_stderr"][0])
    assert float(found["gradient_cosine_predicted"][0]) == pytest.approx(exact, abs=4 * error)
    assert error < 0.1 * abs(exact)
    steps = trajectory.steps.isel(step=slice(201, None))
    lengths = trajectory.steps["gradient_norm"].values
    products = steps["gradient_cosine"].values * lengths[201:] * lengths[200:-1]
    assert products.mean() / (lengths[200:] ** 2).mean() == pytest.approx(exact, abs=0.06)
    assert float(found["gradient_cosine"][0]) < -0.1


def test_reading_in_pieces_gives_the_same(monkeypatch):
    points = torch.randn(30, 11, generator=torch.Generator().manual_seed(8), dtype=F64) + 5
    whole = motion(made(points), window=9)
    monkeypatch.setattr(module, "CHUNK", 40)  # four coordinates of ten points at a time
    pieces = motion(made(points), window=9)
    for name in ("msd", "update_cosine", "drifting", "path_length"):
        np.testing.assert_allclose(pieces[name].values, whole[name].values, rtol=1e-9)
    net = [float((points[b] - points[a]).norm()) for a, b in ((0, 9), (9, 18), (18, 27), (27, 29))]
    assert whole["net"].values == pytest.approx(net, rel=1e-9)


def test_what_was_not_recorded_is_not_applicable():
    points = torch.randn(12, 4, generator=torch.Generator().manual_seed(8), dtype=F64)
    found = motion(made(points, kept=range(3, 9)))
    assert (found["distance_layer_outcome"] == Outcome.not_applicable).all()
    assert (found["gradient_cosine_outcome"] == Outcome.not_applicable).all()
    assert (found["gradient_cosine_predicted_outcome"] == Outcome.not_applicable).all()
    assert int(found["distance_exponent_outcome"]) == Outcome.not_applicable
    assert (found["msd_outcome"].values[0] == [0, 0, 0, 0, 2, 2, 2]).all()
    still = motion(made(torch.ones(5, 4, dtype=F64)))
    assert int(still["efficiency_outcome"][0]) == Outcome.not_applicable
    assert np.isnan(still["update_cosine"]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window: expected a whole number >= 1"),
        ({"gradient_points": -1}, "gradient_points: expected a whole number >= 0"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        motion(made(torch.ones(5, 4, dtype=F64)), **options)
