"""The valley against exact quadratics, wells and rivers, and against slow independent routes."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov

from sgdscope.errors import ArgumentError, NotAvailableError, Outcome
from sgdscope.landscapes import DoubleWell, Noisy, NoisyQuadratic, Quadratic, Ravine, River, walk
from sgdscope.quantities.valley import valley
from sgdscope.recorder import Recorder, every
from sgdscope.records import Header, Line, Snapshot, Trajectory, steps_dataset
from sgdscope.surface import LossSurface
from sgdscope.vector import Layout

F64 = torch.float64


def vector(*values):
    return torch.tensor(values, dtype=F64)


def through(*points):
    """A trajectory through points that were chosen by hand; it has no scalars."""
    header = Header(Layout(("theta",), (tuple(points[0].shape),), ("float64",)), Layout((), (), ()), {})
    return Trajectory(
        header,
        lambda: steps_dataset(np.zeros(0, np.int64), {}),
        np.arange(len(points)),
        lambda step: Snapshot(step, points[step].clone(), torch.zeros(0)),
    )


class Function:
    """A loss of one coordinate, for shapes that no landscape has."""

    def __init__(self, function, examples=None):
        self.function, self.examples, self.calls = function, examples, 0

    def along(self, theta, direction, alphas, buffers=None):
        self.calls += len(alphas)
        values = np.array([float(self.function(theta + a * direction)) for a in alphas])
        return Line(np.asarray(alphas), values, evaluations=len(alphas))

    def value(self, theta, buffers=None):
        return float(self.function(theta))

    def fingerprint(self):
        return {"dtype": "float64"}


@pytest.mark.parametrize("product", [0.5, 1.0, 1.5, 2.0, 2.2])
def test_gradient_descent_on_a_parabola_is_exact(product):
    curvature, centre, start = 3.7, 1.3, 2.9
    surface = Quadratic([[curvature]], [centre], offset=0.8)
    found = valley(walk(surface, lr=product / curvature, updates=1, start=[start]), surface)
    x = start - centre
    assert float(found["alpha_star"][0]) == pytest.approx(1 / product, rel=1e-10)
    assert float(found["height_start"][0]) == pytest.approx(0.5 * curvature * x**2, rel=1e-10)
    assert float(found["height_end"][0]) == pytest.approx(0.5 * curvature * (1 - product) ** 2 * x**2, rel=1e-10, abs=1e-13)
    assert float(found["height"][0]) == pytest.approx(0.25 * curvature * (1 + (1 - product) ** 2) * x**2, rel=1e-10)
    assert float(found["a1"][0]) == pytest.approx(-product * curvature * x**2, rel=1e-12)
    assert float(found["a2"][0]) == pytest.approx(0.5 * product**2 * curvature * x**2, rel=1e-12)
    assert float(found["height_average"][0]) == pytest.approx(float(found["a2"][0]) / 4, rel=1e-12)
    assert float(found["loss_start"][0]) == pytest.approx(0.8 + 0.5 * curvature * x**2, rel=1e-12)
    if product != 1:  # at exactly 1 rounding decides
        assert bool(found["interior"][0]) == (product > 1)
        assert bool(found["interior_share"][0]) == (product > 1)
    assert float(found["eta_batch_sharpness"][0]) == pytest.approx(product, rel=1e-9)
    assert float(found["eta_gni"][0]) == pytest.approx(product, rel=1e-9)
    assert float(found["gni"][0]) == pytest.approx(curvature, rel=1e-9)


def test_height_within_takes_the_floor_of_the_segment():
    surface = Quadratic([[2.0]], [0.5])
    found = valley(through(vector(3.0), vector(2.0), vector(-0.4), vector(-0.9)), surface)
    ends = [(6.25, 2.25), (2.25, 0.81), (0.81, 1.96)]
    lowest = [2.25, 0.0, 0.81]
    for t in range(3):
        assert float(found["height_within"][t]) == pytest.approx(sum(ends[t]) / 2 - lowest[t], rel=1e-9)
    assert found["alpha_star"].values == pytest.approx([2.5, 1.5 / 2.4, -1.8], rel=1e-9)
    assert found["interior"].values.tolist() == [0, 1, 0]
    assert float(found["mean_height"][0]) == pytest.approx(np.mean([2.0, 1.53, 0.575]), rel=1e-9)


def test_ravine_turns_from_bouncing_to_sliding():
    surface = Ravine(40.0, 0.08, angle=0.4, centre=[1.0, -2.0])
    start = surface.centre + surface.rotation @ vector(1.0, 20.0)
    found = valley(walk(surface, lr=1.9 / 40, updates=300, start=start), surface, curve=False, window=30)
    assert found["interior_share"].values[0] == 1
    assert found["interior_share"].values[-1] == 0
    assert found["alpha_star"].values[0] == pytest.approx(1 / 1.9, rel=0.02)
    assert found["alpha_star"].values[-1] == pytest.approx(1 / (1.9 / 40 * 0.08), rel=0.05)


def stationary(hessian, noise, lr):
    """Slow route: S = (I - lr H) S (I - lr H) + lr^2 C."""
    rest = np.eye(len(hessian)) - lr * hessian
    return solve_discrete_lyapunov(rest, lr**2 * noise)


def test_noisy_quadratic_gni_is_two_and_height_is_half_the_trace():
    """The statistics are within four of their standard errors; each fails by chance about once in 10^4 seeds."""
    hessian = np.array([[2.6, 0.7], [0.7, 1.1]])
    noise = np.array([[1.3, -0.4], [-0.4, 0.6]])
    generator = torch.Generator().manual_seed(5)
    surface = NoisyQuadratic.with_noise(hessian, noise, examples=300, generator=generator, centre=vector(3.0, -1.0))
    lr, size = 0.3, 8
    trajectory = walk(surface, lr=lr, updates=2600, start=surface.centres.mean(0), batch_size=size, generator=generator)
    found = valley(trajectory.between(200, 2600), surface, curve=False, window=2400)
    assert float(found["eta_gni"][0]) == pytest.approx(2, abs=4 * float(found["eta_gni_stderr"][0]))
    assert 0.01 < float(found["eta_gni_stderr"][0]) < 0.2
    covariance = stationary(hessian, noise / size, lr)
    floor = surface.value(surface.minimum)
    above = found["loss_start"].values - floor
    assert above.mean() == pytest.approx(0.5 * np.trace(hessian @ covariance), rel=0.12)
    exact = (
        0.5 * lr * np.trace(hessian @ (hessian @ covariance @ hessian + noise / size)) / np.trace(hessian @ covariance @ hessian)
    )
    assert exact == pytest.approx(1, rel=1e-9)  # the same statement from the Lyapunov equation: GNI = 2 / lr


def test_batch_sharpness_is_the_curvature_where_it_is_the_same_for_all():
    generator = torch.Generator().manual_seed(2)
    centres = torch.randn(50, 4, generator=generator, dtype=F64)
    surface = NoisyQuadratic(1.7 * torch.eye(4, dtype=F64), centres)
    trajectory = walk(surface, lr=0.45, updates=70, start=vector(2.0, 1.0, -3.0, 0.4), batch_size=3, generator=generator)
    found = valley(trajectory, surface, curve=False)
    assert found["eta_batch_sharpness"].values == pytest.approx([0.45 * 1.7] * 2, rel=1e-8)
    assert found["batch_sharpness"].values == pytest.approx([1.7] * 2, rel=1e-8)
    assert found["alpha_star_batch"].values == pytest.approx(1 / (0.45 * 1.7), rel=1e-7)
    assert (found["own_batch"] == 0).all()
    assert found["batch_updates"].values.tolist() == [60, 10]


def test_secant_gap_shrinks_with_the_step():
    """One update each from one point with one batch: the gap to Hessian products falls in proportion to the step."""
    pulls = torch.randn(20, 2, generator=torch.Generator().manual_seed(1), dtype=F64)
    surface = Noisy(DoubleWell(1.4, 1.2, walls=[2.5]), pulls)
    start = vector(2.3, 0.8)
    gaps, gni_gaps = [], []
    for lr in (0.04, 0.02, 0.01):
        trajectory = walk(surface, lr=lr, updates=1, start=start, batch_size=5, generator=torch.Generator().manual_seed(4))
        found = valley(trajectory, surface)
        part = surface.on_batch(trajectory.batch(0))
        gradient, full = part.value_and_grad(start)[1], surface.value_and_grad(start)[1]
        bend = float(gradient @ surface.hessian(start) @ gradient)
        gaps.append(float(found["batch_sharpness"][0]) / (bend / float(gradient @ gradient)) - 1)
        gni_gaps.append(float(found["gni"][0]) / (bend / float(gradient @ full)) - 1)
    for gap in (gaps, gni_gaps):
        assert abs(gap[0]) > 0.01
        assert gap[0] / gap[1] == pytest.approx(2, abs=0.35)
        assert gap[1] / gap[2] == pytest.approx(2, abs=0.2)


def test_double_well_hump_is_a_barrier():
    surface = DoubleWell(barrier=0.37, width=1.6, walls=[3.0])
    start, end = surface.well(-1) + vector(0.0, 0.2), surface.well(1) + vector(0.0, 0.2)
    found = valley(through(start, end), surface)
    assert float(found["barrier"][0]) == pytest.approx(0.37, rel=1e-9)
    assert int(found["convex"][0]) == 0
    assert int(found["interior"][0]) == 0
    assert int(found["alpha_star_outcome"][0]) == Outcome.not_applicable
    assert np.isnan(found["height_start"].values).all()
    assert float(found["curve_argmin"][0]) in (0.0, 1.0)


@pytest.mark.parametrize(("place", "width"), [(0.5, 0.02), (0.3, 0.08), (0.72, 0.05), (0.85, 0.02)])
def test_a_narrow_bump_is_not_smoothed_away(place, width):
    def loss(x):
        return 0.3 * (x - 0.6) ** 2 + 0.5 * np.exp(-(((float(x) - place) / width) ** 2) / 2)

    found = valley(through(vector(0.0), vector(1.0)), Function(loss))
    truth = np.array([float(loss(vector(a))) for a in found["alpha"].values])
    assert np.abs(found["curve"].values[0] - truth).max() <= 1e-12
    assert float(found["barrier"][0]) == pytest.approx(truth[1:-1].max() - max(truth[0], truth[-1]), rel=1e-9)
    assert not found["curve_error"].values.any()


def test_a_small_barrier_on_a_smooth_curve_is_looked_at():
    """The interpolation would pass its tolerance, but the sign of the barrier hangs on its error."""

    def loss(x):
        return float(1.0 - 0.5 * x + 0.1 * x**2 + 3e-5 * torch.cos(9 * x)) if x > 0.05 else 1.0 - 1e-6

    function = Function(loss)
    found = valley(through(vector(0.0), vector(0.1)), function)
    truth = [loss(vector(0.1 * a)) for a in found["alpha"].values]
    assert found["curve"].values[0] == pytest.approx(truth, abs=1e-12)


@pytest.mark.parametrize("span", [(0.0, 1.0), (-0.5, 2.5)])
def test_smooth_curves_cost_few_points_and_keep_their_error(span):
    def loss(x):
        return torch.log(2 * torch.cosh(x - 0.4)) + 0.15 * torch.exp(0.4 * x)

    points = [vector(1.1), vector(-0.3), vector(0.9), vector(0.2)]
    found = valley(through(*points), Function(loss), alphas=span)
    worst = 0.0
    for t in range(3):
        truth = np.array([float(loss(points[t] + a * (points[t + 1] - points[t]))) for a in found["alpha"].values])
        gap = np.abs(found["curve"].values[t] - truth).max()
        assert gap <= max(4 * float(found["curve_error"][t]), 1e-14)  # an estimate, not a bound
        assert gap <= 1e-3 * np.ptp(truth)
        worst = max(worst, gap)
    assert worst > 1e-9  # it was an interpolation
    assert (found["curve_points"].values <= (10 if span == (0.0, 1.0) else 13)).all()
    assert len(found["alpha"]) == (11 if span == (0.0, 1.0) else 31)
    assert (found["convex"] == 1).all()


def test_cubic_r2_and_break_even_of_a_known_polynomial():
    def loss(x):
        return 1.5 + 0.4 * x + 0.9 * x**2 - 0.2 * x**3

    start, move = 0.7, -1.3
    found = valley(through(vector(start), vector(start + move)), Function(loss), alphas=(-0.5, 1.5), break_even=True)
    alphas = found["alpha"].values
    truth = loss(start + move * alphas)
    assert found["curve"].values[0] == pytest.approx(truth, rel=1e-11)
    assert float(found["cubic"][0]) == pytest.approx(-0.2 * move**3, rel=1e-8)
    bend = (0.9 - 0.6 * start) * move**2 + 1.5 * -0.2 * move**3  # a2 of the three points: c2 + 3/2 c3
    assert float(found["a2"][0]) == pytest.approx(bend, rel=1e-10)
    assert float(found["cubic_ratio"][0]) == pytest.approx(-0.2 * move**3 / bend, rel=1e-8)
    rest = truth - np.polyval(np.polyfit(alphas, truth, 2), alphas)
    assert float(found["r2"][0]) == pytest.approx(1 - rest.var() / truth.var(), rel=1e-10)
    reached = float(found["alpha_20"][0])
    fine = np.linspace(0, 10, 100001)
    exact = fine[(loss(start + move * fine) >= 1.2 * loss(start)).argmax()]
    assert exact <= reached <= exact * 1.011
    assert np.isnan(valley(through(vector(start), vector(start + move)), Function(loss))["alpha_20"].values).all()
    down = valley(through(vector(0.0), vector(1.0)), Function(lambda x: torch.exp(-x)), break_even=16)
    assert int(down["alpha_20_outcome"][0]) == Outcome.not_applicable


def test_standard_errors_equal_the_jackknife():
    generator = torch.Generator().manual_seed(9)
    spread = torch.rand(60, generator=generator, dtype=F64) + 0.5
    hessians = spread[:, None, None] * torch.diag(vector(2.0, 0.7))
    surface = NoisyQuadratic(hessians, torch.randn(60, 2, generator=generator, dtype=F64))
    trajectory = through(vector(1.4, -0.6), vector(-0.5, 0.8))
    found = valley(trajectory, surface)
    names = ["loss_start", "loss_end", "a1", "a2", "alpha_star", "height_start", "height_end", "height", "height_within"]
    left_out = []
    for i in range(60):
        kept = torch.tensor([j for j in range(60) if j != i])
        part = valley(trajectory, surface.on_batch(kept), curve=False)
        left_out.append([float(part[name][0]) for name in [*names, "height_average"]])
    jackknife = np.sqrt(59 / 60 * ((np.array(left_out) - np.mean(left_out, 0)) ** 2).sum(0))
    for name, slow in zip([*names, "height_average"], jackknife, strict=True):
        assert float(found[f"{name}_stderr"][0]) == pytest.approx(slow, rel=0.04), name


def test_projection_and_decay_on_a_quadratic():
    surface = Ravine(7.0, 0.9, angle=0.6, centre=[1.0, 2.0], offset=0.3)
    start, lr = vector(2.5, 0.7), 0.11
    trajectory = walk(surface, lr=lr, updates=2, start=start)
    found = valley(trajectory, surface, projection=2000, epsilon=1e-8, decay=12)
    point = trajectory.theta(2)
    above = surface.value(point) - 0.3
    assert float(found["height_projection"][0]) == pytest.approx(above, rel=1e-6)
    assert int(found["height_projection_outcome"][0]) == Outcome.ok
    assert float(found["height_projection_residual"][0]) <= 1e-8 * above
    away = point - surface.centre
    for i in range(12):
        away = (torch.eye(2, dtype=F64) - lr * (1 - i / 12) * surface.hessian(point)) @ away
    assert float(found["height_decay"][0]) == pytest.approx(above - 0.5 * float(away @ surface.hessian(point) @ away), rel=1e-10)
    short = valley(trajectory, surface, projection=3, epsilon=1e-8)
    assert int(short["height_projection_outcome"][0]) == Outcome.not_converged
    assert 0 < float(short["height_projection"][0]) < above
    assert int(short["height_decay_outcome"][0]) == Outcome.not_applicable


def test_heights_above_a_curved_river_agree_to_the_step():
    """Projection and decay branch differ by what the branch gains along the river, in proportion to the learning rate."""
    gaps, misses = [], []
    for lr in (0.02, 0.01, 0.005):
        surface = River(sharp=20.0, slope=0.15)
        start = surface.floor(0.3) + vector(0.0, 0.25)
        trajectory = walk(surface, lr=lr, updates=1, start=start)
        found = valley(trajectory, surface, projection=200, decay=round(0.6 / lr), epsilon=5e-3)
        height = surface.height(trajectory.theta(1))
        gaps.append(abs(float(found["height_projection"][0]) - float(found["height_decay"][0])))
        misses.append(abs(float(found["height_projection"][0]) / height - 1))
        assert int(found["height_projection_outcome"][0]) == Outcome.ok
    assert max(misses) < 0.5
    assert max(gaps) < 0.05


def test_conditions_of_the_identities():
    generator = torch.Generator().manual_seed(6)
    surface = NoisyQuadratic(torch.diag(vector(2.0, 0.5)), torch.randn(30, 2, generator=generator, dtype=F64))
    options = {"lr": 0.2, "updates": 9, "start": vector(1.0, 2.0), "batch_size": 4}
    plain = walk(surface, **options)
    found = valley(plain, surface)
    assert (found["own_batch"] == 0).all()
    assert np.isfinite(found["alpha_star_batch"]).all()
    heavy = valley(walk(surface, **options, momentum=0.9), surface)
    assert (heavy["own_batch"].values[1:] == 2).all()
    assert (heavy["eta_gni_outcome"] == Outcome.not_applicable).all()
    assert np.isfinite(heavy["alpha_star"]).all()

    def no_batch(step):
        raise NotAvailableError("none")

    assert (valley(replace(plain, read_batch=no_batch), surface)["own_batch"] == 4).all()
    assert (valley(plain, surface, own_batch=False)["own_batch"] == 1).all()
    other = plain.steps.assign(loss=plain.steps["loss"] * (1 + 1e-7))
    differing = valley(replace(plain, read_steps=lambda: other), surface)
    assert (differing["own_batch"] == 5).all()
    assert (differing["eta_batch_sharpness_outcome"] == Outcome.not_applicable).all()
    assert np.isfinite(differing["eta_gni"]).all()
    annealed = valley(walk(surface, **(options | {"lrs": [0.2] * 4 + [0.1] * 5})), surface)
    assert np.isnan(annealed["gni"]).all()
    assert np.isfinite(annealed["eta_batch_sharpness"]).all()


def test_losses_that_are_not_finite_are_not_applicable():
    surface = DoubleWell(1.0, 1.0)
    found = valley(walk(surface, lr=3.0, updates=8, start=[4.0]), surface, projection=True, decay=True, break_even=True)
    assert np.isfinite(found["a1"].values[0])
    assert int(found["a1_outcome"].values[0]) == Outcome.ok
    assert np.isnan(found["a1"].values[-1])
    assert int(found["a1_outcome"].values[-1]) == Outcome.not_applicable
    assert int(found["height_projection_outcome"].values[0]) == Outcome.not_applicable


def test_the_parabola_costs_two_passes_an_update():
    function = Function(lambda x: (x - 0.3) ** 2 + 0.1 * torch.sin(x))
    trajectory = through(*[vector(0.4 + (-0.9) ** t) for t in range(61)])
    found = valley(trajectory, function, curve=False)
    assert function.calls == 121 == int(found["evaluations"][0])
    assert found.sizes["step_curve"] == 0
    function.calls = 0
    few = valley(trajectory, function, curve=7)
    assert few["step_curve"].values.tolist() == list(range(7))
    assert function.calls == int(few["evaluations"][0]) <= 121 + 7 * 3  # 2 more nodes and a further alpha
    assert few["alpha_star"].values.tolist() == found["alpha_star"].values.tolist()
    exact = valley(trajectory, function, tolerance=0)
    assert (exact["curve_error"] == 0).all()
    assert (exact["curve_points"] == 11).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"window": 0}, "window: expected an integer >= 1"),
        ({"curve": "burst"}, "curve: expected an integer >= 0, True or False, got 'burst'"),
        ({"curve": -1}, "curve: expected an integer >= 0"),
        ({"alphas": [0.0, 1.0, 1.0]}, "alphas: expected at least 3 ascending"),
        ({"alphas": (1.0, 0.0)}, "alphas: expected at least 3 ascending"),
        ({"tolerance": -1.0}, "tolerance, epsilon: expected >= 0"),
        ({"epsilon": 1.0}, "tolerance, epsilon"),
        ({"projection": 2.5}, "projection: expected an integer"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    surface = Quadratic([[1.0]])
    with pytest.raises(ArgumentError, match=message):
        valley(through(vector(1.0), vector(0.5)), surface, **options)


def test_a_surface_is_needed():
    with pytest.raises(ArgumentError, match="surface: the valley is measured on a loss surface"):
        valley(through(vector(1.0), vector(0.5)), None)


def noise(*shape, seed, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def cross_entropy(model, batch):
    return torch.nn.functional.cross_entropy(model(batch[0]), batch[1])


def recorded(dtype, *, lr=0.1, momentum=0.0, updates=8):
    """A small smooth network trained under the recorder, batches kept; its surface and the batches beside it."""
    x, y = noise(64, 5, seed=3, dtype=dtype), torch.randint(3, (64,), generator=torch.Generator().manual_seed(4))
    model = torch.nn.Sequential(torch.nn.Linear(5, 7, dtype=dtype), torch.nn.Tanh(), torch.nn.Linear(7, 3, dtype=dtype))
    with torch.no_grad():
        for number, parameter in enumerate(model.parameters()):
            parameter.copy_(0.6 * noise(*parameter.shape, seed=10 + number, dtype=dtype))
    surface = LossSurface(model, cross_entropy, (x, y))
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=momentum)
    generator, batches = torch.Generator().manual_seed(7), []
    with Recorder(None, model, optimizer, loss=cross_entropy, snapshots=every(1), batches="bursts", store="memory") as recorder:
        for _ in range(updates):
            rows = torch.randint(64, (9,), generator=generator)
            batches.append((x[rows], y[rows]))
            optimizer.zero_grad()
            recorder.loss(model, batches[-1]).backward()
            optimizer.step()
    return recorder.store.trajectory(), surface, model, batches


def exact_sharpness(model, layout, theta, batch):
    """g'Hg / |g|^2 of the batch loss, by a Hessian product."""

    def loss(point):
        logits = torch.func.functional_call(model, layout.unpack(point), (batch[0],))
        return torch.nn.functional.cross_entropy(logits, batch[1])

    gradient = torch.autograd.functional.jacobian(loss, theta)
    product = torch.autograd.functional.hvp(loss, theta, gradient)[1]
    return float(gradient @ product / (gradient @ gradient))


def test_batch_sharpness_of_a_recorded_network_equals_hessian_products_to_the_step():
    gaps = []
    for lr in (0.08, 0.04, 0.02):
        trajectory, surface, model, batches = recorded(F64, lr=lr)
        found = valley(trajectory, surface, curve=False)
        assert (found["own_batch"] == 0).all()
        layout = trajectory.header.layout
        exact = [exact_sharpness(model, layout, trajectory.theta(t), batch) for t, batch in enumerate(batches)]
        secant = -2 * found["a2_batch"].values / found["a1_batch"].values / lr
        assert float(found["eta_batch_sharpness"][0]) == pytest.approx(lr * secant.mean(), rel=1e-12)
        gaps.append(secant[0] / exact[0] - 1)  # the first update: one point and one batch for each lr
        assert float(found["eta_batch_sharpness"][0]) == pytest.approx(lr * np.mean(exact), rel=0.15)
        assert float(found["batch_sharpness"][0]) == pytest.approx(np.mean(exact), rel=2 * lr)
    assert abs(gaps[0]) > 1e-4
    assert gaps[0] / gaps[1] == pytest.approx(2, abs=0.2)
    assert gaps[1] / gaps[2] == pytest.approx(2, abs=0.1)


def test_own_batches_recorded_in_float32():
    trajectory, surface, _, _ = recorded(torch.float32)
    plain = valley(trajectory, surface, curve=False)
    assert (plain["own_batch"] == 0).all()
    assert (plain["a2_batch_outcome"] == Outcome.ok).all()
    assert int(plain["eta_batch_sharpness_outcome"][0]) == Outcome.ok
    precise = valley(recorded(F64)[0], recorded(F64)[1], curve=False)
    assert np.isfinite(precise["eta_batch_sharpness"]).all()
    trajectory, surface, _, _ = recorded(torch.float32, momentum=0.9)
    heavy = valley(trajectory, surface, curve=False)
    assert (heavy["own_batch"].values[1:] == 2).all()
    assert (heavy["a2_batch_outcome"].values[1:] == Outcome.not_applicable).all()
    assert int(heavy["eta_gni_outcome"][0]) == Outcome.not_applicable


def test_running_statistics_are_interpolated_along_the_update():
    """Slow route: BatchNorm written out, with the statistics (1 - alpha) b_0 + alpha b_1."""
    x, y = noise(40, 4, seed=1), torch.randint(3, (40,), generator=torch.Generator().manual_seed(2))
    linear, head = torch.nn.Linear(4, 6, dtype=F64), torch.nn.Linear(6, 3, dtype=F64)
    model = torch.nn.Sequential(linear, torch.nn.BatchNorm1d(6, dtype=F64), torch.nn.Tanh(), head)
    surface = LossSurface(model, cross_entropy, (x, y), batchnorm="eval")
    layout, statistics = surface.layout, Layout.of(dict(model.named_buffers()))
    points = [noise(layout.size, seed=20 + t) * 0.7 for t in range(3)]
    kept = [
        {
            "1.running_mean": 0.5 * noise(6, seed=30 + t),
            "1.running_var": 0.4 + noise(6, seed=40 + t) ** 2,
            "1.num_batches_tracked": torch.tensor(5 + t),
        }
        for t in range(3)
    ]
    trajectory = Trajectory(
        Header(layout, statistics, {}),
        lambda: steps_dataset(np.zeros(0, np.int64), {}),
        np.arange(3),
        lambda step: Snapshot(step, points[step].clone(), statistics.pack(kept[step])),
    )

    def slow(t, alpha):
        part = layout.unpack((1 - alpha) * points[t] + alpha * points[t + 1])
        mean, var = ((1 - alpha) * kept[t][f"1.running_{n}"] + alpha * kept[t + 1][f"1.running_{n}"] for n in ("mean", "var"))
        hidden = (x @ part["0.weight"].T + part["0.bias"] - mean) / torch.sqrt(var + 1e-5)
        logits = torch.tanh(hidden * part["1.weight"] + part["1.bias"]) @ part["3.weight"].T + part["3.bias"]
        return -float(torch.log_softmax(logits, 1)[torch.arange(40), y].mean())

    found = valley(trajectory, surface, tolerance=0)
    for t in range(2):
        truth = [slow(t, a) for a in found["alpha"].values]
        assert found["curve"].values[t] == pytest.approx(truth, rel=1e-10)
        assert float(found["a2"][t]) == pytest.approx(2 * truth[0] - 4 * truth[5] + 2 * truth[10], rel=1e-8)
        assert float(found["loss_end"][t]) == pytest.approx(truth[10], rel=1e-10)


def test_kinks_of_a_relu_network_stay_within_the_tolerance():
    """The error estimate covers the error, and fits that fail turn into evaluations."""
    x, y = noise(400, 6, seed=5), torch.randint(3, (400,), generator=torch.Generator().manual_seed(6))
    model = torch.nn.Sequential(torch.nn.Linear(6, 20, dtype=F64), torch.nn.ReLU(), torch.nn.Linear(20, 3, dtype=F64))
    surface = LossSurface(model, lambda m, b: torch.nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"), (x, y))
    for lr, few in ((0.5, True), (2.0, False)):
        points = [noise(surface.layout.size, seed=8) * 0.6]
        for _ in range(12):
            points.append(points[-1] - lr * surface.value_and_grad(points[-1])[1])
        trajectory = replace(through(*points), header=Header(surface.layout, Layout((), (), ()), {}))
        found, exact = (valley(trajectory, surface, tolerance=t) for t in (1e-3, 0))
        gaps = np.abs(found["curve"].values - exact["curve"].values).max(1)
        assert (gaps <= 1e-3 * np.ptp(exact["curve"].values, axis=1)).all()
        assert bool((found["curve_error"].values > 0).mean() > 0.5) == few
        if few:
            assert 0 < gaps.max() <= 1.5 * found["curve_error"].values[gaps.argmax()]
        else:
            assert found["curve_points"].values.mean() <= 12  # two extra nodes at each failed fit, which become rare
