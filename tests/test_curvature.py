"""The quantity curvature against dense Hessians in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from sgdscope import landscapes, theory
from sgdscope.errors import ArgumentError, Outcome
from sgdscope.experiment import Experiment, run, surface_of
from sgdscope.measure import live, measure
from sgdscope.recorder import Recorder, every
from sgdscope.runs import open_trajectory
from sgdscope.stores.memory import MemoryStore
from sgdscope.surface import LossSurface
from test_measure import feed

F64 = torch.float64
UPDATES, LR, MOMENTUM = 9, 0.21, 0.6


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def make(seed=3, hidden=7):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 3)).double()


def examples(n=23):
    generator = torch.Generator().manual_seed(8)
    return 1.4 * torch.randn(n, 4, generator=generator, dtype=F64) + 0.3, torch.randint(0, 3, (n,), generator=generator)


@pytest.fixture(scope="module")
def recorded():
    """A short walk of a small network, recorded at each update, and its surface."""
    model, (x, y) = make(), examples()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    recorder = Recorder(None, model, optimizer, loss=loss, snapshots=every(1), store="memory", batches="bursts")
    with recorder:
        for t in range(UPDATES):
            rows = torch.randperm(23, generator=torch.Generator().manual_seed(t))[:6]
            optimizer.zero_grad()
            recorder.loss(model, (x[rows], y[rows])).mean().backward()
            optimizer.step()
    assert isinstance(recorder.store, MemoryStore)
    return recorder.store.trajectory(), LossSurface(model, loss, (x, y))


def dense(surface, theta):
    """By central differences of gradients."""
    columns, step = [], 1e-6
    for i in range(len(theta)):
        e = torch.zeros_like(theta)
        e[i] = step
        columns.append((surface.value_and_grad(theta + e)[1] - surface.value_and_grad(theta - e)[1]) / (2 * step))
    matrix = torch.stack(columns, 1)
    return (matrix + matrix.T) / 2


def found(recorded, **options):
    return measure(*recorded, ["curvature"], curvature=options)["curvature"].to_dataset()


def test_eigenvalues_and_vectors_are_those_of_the_dense_hessian(recorded):
    trajectory, surface = recorded
    got = found(recorded, points=4, k=5, tolerance=1e-6, bottom=True, vectors=True)
    assert got["step"].values.tolist() == [0, 3, 6, 9]
    for row, step in enumerate([0, 3, 6, 9]):
        matrix = dense(surface, trajectory.theta(step))
        values, vectors = torch.linalg.eigh(matrix)
        top = values.flip(0)[:5]
        np.testing.assert_allclose(got["eigenvalue"][row], top, rtol=2e-6)
        assert float(values[0]) < -0.01
        assert float(got["lowest_eigenvalue"][row]) == pytest.approx(float(values[0]), rel=1e-6)
        assert float(got["sharpness"][row]) == pytest.approx(float(top[0]), rel=1e-6)
        assert float(got["spectral_norm"][row]) == pytest.approx(float(values.abs().max()), rel=1e-6)
        assert float(got["conditioning"][row]) == pytest.approx(float(top[0] / top[4]), rel=1e-5)
        assert float(got["negative_ratio"][row]) == pytest.approx(float(-values[0] / top[0]), rel=1e-5)
        assert float(got["top_frobenius"][row]) == pytest.approx(float(top.square().sum().sqrt()), rel=1e-5)
        e = torch.from_numpy(got["eigenvector"].values[row]).double()
        overlaps = (e @ vectors.flip(1)[:, :5]).abs()
        np.testing.assert_allclose(overlaps, np.eye(5), atol=1e-4)
        shares = [float(e[2, :35].square().sum()), float(e[2, 35:].square().sum())]  # 4 x 7 + 7 parameters in the first layer
        np.testing.assert_allclose(got["layer_share"][row, 2], shares, atol=1e-6)
        assert 0.05 < shares[0] < 0.95
        gap = (matrix @ e.T - e.T * torch.from_numpy(got["eigenvalue"].values[row])).norm(dim=0)
        assert (gap <= 2e-6 * top).all()
    assert (got["eigenvalue_outcome"] == Outcome.ok).all()
    assert got["layer"].values.tolist() == ["0", "2"]


def test_trace_frobenius_and_what_follows(recorded):
    trajectory, surface = recorded
    got = found(recorded, k=4, tolerance=1e-8, probes=400, layers=True)
    matrix = dense(surface, trajectory.theta(0))
    p, trace, norm = len(matrix), float(matrix.trace()), float(matrix.norm())
    for name, true in (("trace", trace), ("frobenius", norm)):
        value, error = float(got[name][0]), float(got[f"{name}_stderr"][0])
        assert abs(value - true) < 4 * error  # fails by chance once in 16,000
        assert error < 0.05 * true
    first, second = float(matrix[:35, :35].trace()), float(matrix[35:, 35:].trace())
    assert first / second > 1.2 or second / first > 1.2
    np.testing.assert_allclose(got["layer_trace"][0], [first, second], atol=5 * float(got["layer_trace_stderr"].max()))
    assert float(got["layer_trace_stderr"].max()) < 0.05 * trace
    blocks = [float(torch.linalg.eigvalsh(block)[-1]) for block in (matrix[:35, :35], matrix[35:, 35:])]
    np.testing.assert_allclose(got["layer_sharpness"][0], blocks, rtol=1e-6)
    top = float(torch.linalg.eigvalsh(matrix)[-1])
    assert float(got["outlier_ratio"][0]) == pytest.approx(top * p / float(got["trace"][0]), rel=1e-6)
    assert float(got["outlier_ratio_stderr"][0] / got["outlier_ratio"][0]) == pytest.approx(
        float(got["trace_stderr"][0] / got["trace"][0]), rel=1e-6
    )
    rank, error = float(got["effective_rank"][0]), float(got["effective_rank_stderr"][0])
    assert rank == pytest.approx((float(got["trace"][0]) / float(got["frobenius"][0])) ** 2, rel=1e-6)
    assert abs(rank - (trace / norm) ** 2) < 4 * error
    assert error < 0.05 * rank


def test_errors_of_what_random_vectors_give_are_their_scatter(recorded):
    """Over 40 seeds, whose scatter is known to 11 %: an error twice too large or too small fails."""
    measured = [found(recorded, k=2, probes=12, points=1, seed=s) for s in range(40)]
    for name in ("trace", "frobenius", "effective_rank", "outlier_ratio"):
        values = np.array([float(m[name][0]) for m in measured])
        errors = np.array([float(m[f"{name}_stderr"][0]) for m in measured])
        assert 0.65 < np.sqrt((errors**2).mean()) / values.std(ddof=1) < 1.5, name


def test_the_edge_knows_the_method(recorded):
    trajectory, _ = recorded
    got = found(recorded, k=3, tolerance=1e-6)
    top = float(got["sharpness"][0])
    assert float(got["half_eta_sharpness"][0]) == pytest.approx(LR * top / 2, rel=1e-9)
    assert float(got["edge"][0]) == pytest.approx(LR * top / (2 * (1 + MOMENTUM)), rel=1e-9)
    optimizer = dict(trajectory.settings["optimizers"][0])
    nesterov = replace(trajectory, header=replace(trajectory.header, settings={"optimizers": [optimizer | {"nesterov": True}]}))
    other = found((nesterov, recorded[1]), k=3, tolerance=1e-6)
    assert float(other["edge"][0]) == pytest.approx(LR * top * (1 + 2 * MOMENTUM) / (2 * (1 + MOMENTUM)), rel=1e-9)
    adam = replace(
        trajectory, header=replace(trajectory.header, settings={"optimizers": [{"class": "Adam", "betas": [0.9, 0.999]}]})
    )
    unknown = found((adam, recorded[1]), k=3)
    assert (unknown["edge_outcome"] == Outcome.not_applicable).all()
    assert np.isfinite(unknown["half_eta_sharpness"]).all()


@pytest.mark.parametrize(
    ("method", "options", "expected"),
    [
        ("sgd", {}, 2 / 0.3),
        ("SGD", {"momentum": 0.7}, 3.4 / 0.3),
        ("sgd", {"momentum": 0.7, "nesterov": True}, 3.4 / (0.3 * 2.4)),
        ("adamw", {"beta1": 0.8}, 3.6 / (0.2 * 0.3)),
        ("rmsprop", {"beta1": 0.8}, 2 / 0.3),
    ],
)
def test_thresholds_separate_convergence_from_divergence(method, options, expected):
    limit, _ = theory.stability_threshold(method, 0.3, **options)
    assert limit == pytest.approx(expected, rel=1e-12)
    beta = options.get("beta1", 0.9)
    for factor, grows in ((0.98, False), (1.02, True)):  # of the bare iteration on a quadratic, D = 1 for Adam
        x, v, mu = 1.0, 0.0, options.get("momentum", 0.0)
        for _ in range(3000):
            g = factor * limit * x
            if method.lower() == "sgd":
                v = mu * v + g
                x -= 0.3 * (g + mu * v if options.get("nesterov") else v)
            else:
                rate = 0.0 if method == "rmsprop" else beta
                v = rate * v + (1 - rate) * g
                x -= 0.3 * v
            if abs(x) > 1e6:
                break
        assert (abs(x) > 1e3) is grows


def test_thresholds_refuse_what_they_do_not_know():
    with pytest.raises(ArgumentError, match="method: no threshold of stability is known for 'lbfgs'"):
        theory.stability_threshold("lbfgs", 0.1)
    with pytest.raises(ArgumentError, match="lr: expected a finite number > 0, got 0"):
        theory.stability_threshold("sgd", 0)
    with pytest.raises(ArgumentError, match="momentum: expected 0 <= momentum < 1, got 1"):
        theory.stability_threshold("sgd", 0.1, momentum=1)


def described(**phase):
    phases = [{"walker": "sgd", "lr": 0.2, "batch_size": 32, "updates": 12} | phase]
    model = {"name": "mlp", "hidden": [6], "activation": "tanh"}
    data = {"dataset": "wine"}
    record = {"snapshots": {"kind": "every", "n": 1}, "keyframes": 4}
    return {"name": "r", "seed": 2, "data": data, "model": model, "phases": phases, "record": record}


def test_adam_is_measured_in_its_own_metric(tmp_path):
    """Against a hand-written Adam on the recorded batches, and a dense preconditioned Hessian."""
    experiment = Experiment(**described(walker="adam", lr=0.01, betas=[0.8, 0.97], eps=1e-4))
    trajectory = open_trajectory(run(experiment, tmp_path / "r"))
    surface = surface_of(experiment, dtype=F64)
    got = measure(trajectory, surface, ["curvature"], curvature={"points": 3, "k": 2, "tolerance": 1e-5})["curvature"]
    assert got["step"].values.tolist() == [0, 6, 12]
    assert got["edge_outcome"].values.tolist() == [Outcome.not_applicable, Outcome.ok, Outcome.ok]
    second = torch.zeros(surface.layout.size, dtype=F64)
    for t in range(6):
        batch = trajectory.batch(t)
        gradient = surface.on_batch(batch).value_and_grad(trajectory.theta(t).double())[1]
        second = 0.97 * second + 0.03 * gradient**2
    d = (second / (1 - 0.97**6)).sqrt() + 1e-4
    torch.testing.assert_close(trajectory.preconditioner(6), d, rtol=1e-4, atol=1e-9)
    root = d.rsqrt()
    matrix = root[:, None] * dense(surface, trajectory.theta(6).double()) * root
    top = float(torch.linalg.eigvalsh(matrix)[-1])
    assert float(got["preconditioned_sharpness"][1]) == pytest.approx(top, rel=1e-3)
    assert float(got["edge"][1]) == pytest.approx(top * 0.2 * 0.01 / 3.6, rel=1e-3)
    assert abs(top / float(got["sharpness"][1]) - 1) > 0.5


def test_each_phase_is_held_against_the_edge_of_its_own_method(tmp_path):
    more = [{"walker": "sgd", "lr": 0.1, "momentum": 0.7, "nesterov": True}, {"walker": "adam", "lr": 0.01, "betas": [0.8, 0.9]}]
    told = described(updates=4) | {"record": {"snapshots": {"kind": "every", "n": 1}, "keyframes": 2}}
    told["phases"] += [phase | {"batch_size": 32, "updates": 4} for phase in more]
    experiment = Experiment(**told)
    trajectory = open_trajectory(run(experiment, tmp_path / "r"))
    surface = surface_of(experiment, dtype=F64)
    got = found((trajectory, surface), points=7, k=2, tolerance=1e-5)
    assert got["step"].values.tolist() == [0, 2, 4, 6, 8, 10, 12]
    top, edge = got["sharpness"].values, got["edge"].values
    np.testing.assert_allclose(edge[:4], top[:4] / [2 / 0.2, 2 / 0.2, 3.4 / (0.1 * 2.4), 3.4 / (0.1 * 2.4)], rtol=1e-9)
    assert int(got["edge_outcome"][4]) == Outcome.not_applicable  # Adam has no second moments before its first update
    root = trajectory.preconditioner(10).rsqrt()
    own = torch.linalg.eigvalsh(root[:, None] * dense(surface, trajectory.theta(10).double()) * root)[-1]
    assert float(got["edge"][5]) == pytest.approx(float(own) * 0.2 * 0.01 / 3.6, rel=1e-3)
    settings = {k: v for k, v in trajectory.settings.items() if k != "phase_ends"}
    untold = replace(trajectory, header=replace(trajectory.header, settings=settings))
    assert (found((untold, surface), k=2)["edge_outcome"] == Outcome.not_applicable).all()


def test_a_phase_in_epochs_ends_where_it_ended(tmp_path):
    told = described(updates=None, epochs=1.0)
    told["phases"].append({"walker": "sgd", "lr": 0.1, "momentum": 0.7, "batch_size": 32, "updates": 3})
    experiment = Experiment(**told)
    trajectory = open_trajectory(run(experiment, tmp_path / "r"))
    first = trajectory.settings["examples"] // 32
    assert first > 2
    got = found((trajectory, surface_of(experiment, dtype=F64)), points=first + 4, k=2, tolerance=1e-5)
    np.testing.assert_allclose((got["edge"] / got["sharpness"])[: first + 1], [0.2 / 2] * first + [0.1 / 3.4], rtol=1e-9)


def test_adam_before_batchnorm_is_held_against_its_edge_in_training_mode_alone(tmp_path):
    """A bias before BatchNorm has no second moment; on fixed statistics it alone would make the preconditioned sharpness."""
    settings = described(walker="adam", lr=0.01) | {"model": {"name": "mlp", "hidden": [6], "batchnorm": True}}
    experiment = Experiment(**settings)
    trajectory = open_trajectory(run(experiment, tmp_path / "r"))
    options = {"points": 2, "k": 1, "tolerance": 1e-4}
    for mode, outcome in (("eval", Outcome.not_applicable), ("recalibrate", Outcome.not_applicable), ("batch", Outcome.ok)):
        got = measure(trajectory, surface_of(experiment, dtype=F64, batchnorm=mode), "curvature", **options)["curvature"]
        assert int(got["edge_outcome"][-1]) == outcome
        assert int(got["eigenvalue_outcome"][-1, 0]) == Outcome.ok
    assert 0.001 < float(got["edge"][-1]) < 3


def test_reparametrisation_changes_the_plain_form_and_not_the_invariant_one():
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)).double()
    surface = LossSurface(model, loss, examples())
    theta = surface.theta()
    scaled = theta.clone()
    scaled[:30] *= 3.0  # 4 x 6 + 6
    scaled[30:48] /= 3.0  # 3 x 6
    assert surface.value(scaled) == pytest.approx(surface.value(theta), rel=1e-12)
    got = []
    for point in (theta, scaled):
        pair = landscapes.walk(landscapes.Quadratic(torch.eye(len(theta))), lr=1e-9, updates=1, start=point)
        pair = replace(pair, header=replace(pair.header, layout=surface.layout))
        got.append(found((pair, surface), invariant=True, probes=300, k=2, tolerance=1e-6))
    a, b = (float(g["invariant_sharpness"][0]) for g in got)
    assert b == pytest.approx(a, rel=1e-4)
    matrix = theta.abs()[:, None] * dense(surface, theta) * theta.abs()
    assert a == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-4)
    assert abs(float(got[1]["sharpness"][0]) / float(got[0]["sharpness"][0]) - 1) > 0.5
    for g in got:
        assert abs(float(g["invariant_trace"][0]) - float(matrix.trace())) < 4 * float(g["invariant_trace_stderr"][0])
        assert float(g["invariant_trace_stderr"][0]) < 0.2 * float(matrix.trace())


def test_halves_of_the_data(recorded):
    trajectory, _ = recorded
    got = found(recorded, k=3, tolerance=1e-8, halves=True)
    (x, y), bases = examples(), []
    for begin in (0, 1):
        part = LossSurface(make(), loss, (x[begin::2], y[begin::2]))
        bases.append(torch.linalg.eigh(dense(part, trajectory.theta(0)))[1][:, -3:])
    expected = float((bases[0].T @ bases[1]).square().sum() / 3)
    assert float(got["half_overlap"][0]) == pytest.approx(expected, abs=1e-5)
    assert 0.1 < expected < 0.95
    given = LossSurface(make(), loss, [examples()])
    assert (found((trajectory, given), k=3, halves=True)["half_overlap_outcome"] == Outcome.not_applicable).all()


def test_the_density_and_the_volume(recorded):
    trajectory, surface = recorded
    got = found(recorded, k=4, tolerance=1e-8, density=40, steps=59, damping=0.05)
    values = torch.linalg.eigvalsh(dense(surface, trajectory.theta(0))).numpy()
    grid, density = got["density_at"].values[0], got["density"].values[0]
    assert grid[0] == pytest.approx(values[0], rel=1e-5)
    assert grid[-1] == pytest.approx(values[-1], rel=1e-5)
    assert 0.8 < np.trapezoid(density, grid) < 1.001  # half of the bells at the ends lie outside
    width = 0.01 * (grid[-1] - grid[0])
    exact = np.exp(-0.5 * ((grid[:, None] - values) / width) ** 2).sum(1) / (len(values) * width * np.sqrt(2 * np.pi))
    assert np.abs(density - exact).mean() < 0.12 * exact.mean()
    damping = 0.05 * values[-1]
    assert float(got["damping"][0]) == pytest.approx(damping, rel=1e-6)
    above = values[values > damping]
    assert abs(float(got["log_volume"][0]) - 0.5 * np.log(above / damping).sum()) < 4 * float(got["log_volume_stderr"][0]) + 0.02
    assert float(got["directions_above"][0]) == pytest.approx(len(above), abs=2)


class Cusp(nn.Module):
    """|x|^1.5: a gradient of zero and no second derivative at zero."""

    def forward(self, x):
        return x.abs().pow(1.5)


@pytest.mark.parametrize("name", ["curvature", "sharpest", "neurons"])
def test_a_hessian_that_is_not_finite_is_an_outcome(name):
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(4, 5), Cusp(), nn.Linear(5, 3)).double()
    nn.init.zeros_(model[0].weight)
    nn.init.zeros_(model[0].bias)
    surface = LossSurface(model, loss, examples())
    walk = landscapes.walk(landscapes.Quadratic(torch.eye(43)), lr=0.1, updates=2, start=surface.theta())
    walk = replace(walk, header=replace(walk.header, layout=surface.layout))
    got = measure(walk, surface, name, k=2)[name]
    assert float(got["loss"][0]) == pytest.approx(surface.value(surface.theta()))
    assert float(got["gradient_norm"][0]) > 0
    assert got["eigenvalue_outcome"].values.tolist() == [[Outcome.not_applicable] * 2]


def test_small_values_beside_a_large_negative_one_have_the_outcome_of_the_solver():
    turn = torch.linalg.qr(torch.randn(85, 85, generator=torch.Generator().manual_seed(3), dtype=F64))[0]
    values = torch.cat([torch.linspace(-0.05, 0.05, 80, dtype=F64), torch.tensor([-9.0, -8.0, 0.3, 0.2, 0.09], dtype=F64)])
    matrix = turn @ torch.diag(values) @ turn.T
    surface = landscapes.Quadratic((matrix + matrix.T) / 2)
    walk = landscapes.walk(surface, lr=0.01, updates=1, start=torch.ones(85))
    got = found((walk, surface), k=5, bottom=True)
    residual = float(got["eigenvalue_residual"][0, 4])
    assert 1e-3 * float(got["eigenvalue"][0, 4]) < residual < 1e-3 * 0.01 * 9
    assert got["eigenvalue_outcome"].values.tolist() == [[Outcome.ok] * 5]
    assert float(got["spectral_norm"][0]) == pytest.approx(9.0, rel=1e-6)  # not that of the largest value


def test_directions_beyond_the_edge_are_counted_and_a_turned_basis_is_seen():
    surface = landscapes.River(lambda x: 0.3 * x * x, sharp=8.0, slope=3.0)
    walk = landscapes.walk(surface, lr=0.05, updates=9, start=[1.1, 2.0])
    got = found((walk, surface), points=2, k=1)
    ends = [torch.linalg.eigh(surface.hessian(walk.theta(t)))[1][:, 1] for t in (0, 9)]
    turned = float(ends[0] @ ends[1]) ** 2
    assert 0.1 < turned < 0.999
    assert float(got["basis_overlap"][1]) == pytest.approx(turned, rel=1e-6)
    bowl = landscapes.Quadratic(torch.diag(torch.tensor([4.0, 2.6, 2.4, 1.0], dtype=F64)))
    count = found((landscapes.walk(bowl, lr=0.8, updates=1, start=torch.ones(4)), bowl), k=4)["edge_directions"]
    assert count.values.tolist() == [2.0]  # 2 / lr = 2.5


def test_tracking_gives_the_pairs_of_a_cold_start_and_ritz_says_how_good_it_is(recorded):
    options = {"points": 10, "k": 3, "tolerance": 1e-4}
    cold, warm, ritz = (found(recorded, mode=mode, **options) for mode in ("cold", "track", "ritz"))
    np.testing.assert_allclose(warm["eigenvalue"], cold["eigenvalue"], rtol=1e-3)
    assert (warm["eigenvalue_outcome"] == Outcome.ok).all()
    assert float(warm["products"].sum()) < float(cold["products"].sum())
    assert ritz["products"].values[1:].tolist() == [3.0] * 9
    assert (ritz["eigenvalue_outcome"].values[1:] == Outcome.not_converged).any()
    gap = np.abs(ritz["eigenvalue"] - cold["eigenvalue"]).values
    assert (gap <= ritz["eigenvalue_residual"].values + 1e-6).all()
    assert gap[1:, 0].max() > 1e-6
    restarted = found(recorded, mode="track", cold=2, **options)
    np.testing.assert_array_equal(restarted["products"].values[::2], cold["products"].values[::2])


def test_the_sharpening_rate_is_the_slope_of_the_sharpness():
    surface = landscapes.DoubleWell(1.0, 1.0, walls=[2.0])
    walk = landscapes.walk(surface, lr=0.05, updates=12, start=[0.1, 1.0])
    got = measure(walk, surface, ["curvature"], curvature={"points": 13, "k": 1})["curvature"]
    tops = [float(torch.linalg.eigvalsh(surface.hessian(walk.theta(t)))[-1]) for t in range(13)]
    np.testing.assert_allclose(got["sharpness"], tops, rtol=1e-9)
    assert float(got["sharpening_rate"][0]) == pytest.approx(np.polyfit(range(13), tops, 1)[0], rel=1e-6)
    assert (found((walk, surface), points=2, k=1)["sharpening_rate_outcome"] == Outcome.not_applicable).all()


@pytest.mark.parametrize("window", [4, 60])
def test_live_equals_offline(recorded, window):
    trajectory, surface = recorded
    options = {"window": window, "points": 2, "k": 2, "probes": 4}
    offline = measure(trajectory, surface, ["curvature"], curvature=options)["curvature"].to_dataset()
    sink = live("curvature", surface, **options)
    feed(sink, trajectory)
    assert offline.sizes["step"] == (6 if window == 4 else 2)
    measured = sink.measured
    for variable in offline.variables:
        xr.testing.assert_equal(measured[variable].drop_attrs(), offline[variable].drop_attrs())


def test_more_pairs_than_parameters_and_a_small_budget_are_said(recorded):
    surface = landscapes.Quadratic(torch.diag(torch.tensor([3.0, -1.5])))
    walk = landscapes.walk(surface, lr=0.1, updates=3, start=torch.tensor([1.0, 2.0]))
    got = found((walk, surface), k=4, probes=2, density=2)
    np.testing.assert_allclose(got["eigenvalue"][0], [3.0, -1.5, np.nan, np.nan])
    assert got["eigenvalue_outcome"].values[0].tolist() == [0, 0, Outcome.not_applicable, Outcome.not_applicable]
    assert float(got["trace"][0]) == pytest.approx(1.5)
    assert float(got["frobenius"][0]) == pytest.approx(np.sqrt(11.25))
    assert (got["conditioning_outcome"] == Outcome.not_applicable).all()
    short = found(recorded, k=5, budget=3)
    assert short["products"].values.tolist() == [3.0]
    assert (short["eigenvalue_outcome"] == Outcome.not_converged).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k: expected a whole number >= 1, got 0"),
        ({"mode": "warm"}, "mode: expected one of track, cold, ritz, got 'warm'"),
        ({"probes": 1}, "probes: expected 0, or at least 2 for a standard error"),
        ({"tolerance": 0.0}, "tolerance: expected a finite number > 0"),
        ({"points": 1.5}, "points: expected a whole number >= 1"),
        ({"k": "3"}, "k: expected a whole number >= 1, got '3'"),
    ],
)
def test_options_out_of_range_are_refused(recorded, options, message):
    with pytest.raises(ArgumentError, match=message):
        found(recorded, **options)
    with pytest.raises(ArgumentError, match="surface: quantity 'curvature' needs a loss surface"):
        measure(recorded[0], None, ["curvature"])
