"""Shaped noise and SVAG: their moments against dense algebra and enumeration, their limits bit for bit."""

import io
import itertools
import math
from pathlib import Path

import pytest
import torch
from scipy import stats
from torch import nn

import test_observer as observer
from sgdscope.errors import ArgumentError, Outcome, SurfaceError
from sgdscope.experiment import Experiment, load_toml, run
from sgdscope.experiment.loop import Loop
from sgdscope.landscapes import NoisyQuadratic, Quadratic
from sgdscope.recorder import Recorder, every
from sgdscope.runs import open_trajectory
from sgdscope.surface import LossSurface
from sgdscope.walkers.shaped import SVAG, ShapedNoise

LR, B, N = 0.13, 5, 24
SHAPES = ("isotropic", "diagonal", "covariance", "hessian")


def network(seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)).double()


def inputs():
    return torch.randn(N, 4, generator=torch.Generator().manual_seed(11), dtype=torch.float64) * 1.7 + 0.4


def losses(model, x):
    out = model(x)
    return (out**2).sum(1) + 1.3 * (torch.sin(out) * x[:, :2]).sum(1)


def mean_loss(model, x):
    return losses(model, x).mean()


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def example_gradients(model):
    """[N, P], one backward an example."""
    rows = [torch.autograd.grad(mean_loss(model, x[None]), list(model.parameters())) for x in inputs()]
    return torch.stack([torch.cat([g.reshape(-1) for g in row]) for row in rows])


def covariance_of(rows):
    return (rows - rows.mean(0)).T @ (rows - rows.mean(0)) / len(rows)


def shaped(model, shape="covariance", cls=ShapedNoise, seed=4, base=None, **options):
    surface = LossSurface(model, losses, inputs())
    base = base or torch.optim.SGD(model.parameters(), lr=LR)
    options = ({"shape": shape, "every": 1, "k": 3} if cls is ShapedNoise else {}) | {"noise_batch_size": B} | options
    return cls(base, model, surface, generator=torch.Generator().manual_seed(seed), **options)


def walk(model, walker, updates):
    points = []
    for _ in range(updates):
        walker.zero_grad()
        mean_loss(model, inputs()).backward()
        walker.step()
        points.append(flat(model))
    return torch.stack(points)


class Point(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(values, dtype=torch.float64).clone())


def quadratic(curvatures, examples=200):
    """A rotated quadratic whose examples have a covariance that is no function of its Hessian, and a model at 0.3."""
    p = len(curvatures)
    generator = torch.Generator().manual_seed(8)
    q = torch.linalg.qr(torch.randn(p, p, dtype=torch.float64, generator=generator)).Q
    hessian = q @ torch.diag(torch.tensor(curvatures, dtype=torch.float64)) @ q.T
    root = torch.randn(p, p, dtype=torch.float64, generator=generator)
    surface = NoisyQuadratic.with_noise(
        (hessian + hessian.T) / 2, root @ root.T + torch.eye(p), examples=examples, generator=generator, centre=torch.ones(p)
    )
    return surface, Point(torch.full((p,), 0.3))


def draws(walker, theta, count):
    """Noise of many updates at one point: [count, P]."""
    found = []
    for _ in range(count):
        found.append(walker._disturbed(theta, torch.zeros_like(theta)))
        walker._update += 1
    return torch.stack(found)


# --- covariance ------------------------------------------------------------------------------------------------------------


def wanted(shape, surface, theta, k, trace="match"):
    """The covariance that the noise of a shape should have for batches of B, dense."""
    c = surface.gradient_covariance(theta)
    if shape == "covariance":
        return c / B
    if shape == "diagonal":
        return torch.diag(torch.diag(c)) / B
    if shape == "isotropic":
        return torch.eye(len(c), dtype=torch.float64) * torch.trace(c) / (B * len(c))
    values, vectors = torch.linalg.eigh(surface.hessian(theta))
    top = values.abs().argsort(descending=True)[:k]
    part = vectors[:, top] * values[top].abs() @ vectors[:, top].T
    return part * (torch.trace(c) / torch.trace(part) if trace == "match" else 1.0) / B


@pytest.mark.parametrize(("shape", "trace"), [(s, "match") for s in SHAPES] + [("hessian", "own")])
def test_the_noise_has_mean_zero_and_the_covariance_of_its_shape(shape, trace):
    """6000 draws: each entry of the covariance within 5 of its standard errors sqrt((c_ii c_jj + c_ij^2) / n)."""
    surface, model = quadratic([6.0, -3.0, 1.5, 0.4], examples=40)
    base = torch.optim.SGD(model.parameters(), lr=LR)
    generator = torch.Generator().manual_seed(6)
    told = {"k": 2, "every": 10**6, "noise_batch_size": B, "trace": trace, "tolerance": 1e-9}
    walker = ShapedNoise(base, model, surface, shape=shape, generator=generator, **told)
    expected = wanted(shape, surface, model.theta.detach(), 2, trace)
    found = draws(walker, model.theta.detach(), 6000)
    n, sizes = len(found), torch.diag(expected)
    error = ((torch.outer(sizes, sizes) + expected**2) / n).sqrt()
    assert ((torch.cov(found.T) - expected).abs() <= 5 * error + 1e-12).all()
    assert (found.mean(0).abs() <= 5 * (sizes / n).sqrt() + 1e-9).all()
    assert float(found.var(0).sum()) == pytest.approx(float(torch.trace(expected)), rel=0.06)
    for other in SHAPES:
        away = (wanted(other, surface, model.theta.detach(), 2) - expected).abs()
        assert (other == shape and trace == "match") or (away > 10 * error).any()  # the draws tell the shapes apart
    main = torch.linalg.eigh(expected).eigenvectors[:, -1]
    assert stats.kstest((found @ main / (main @ expected @ main).sqrt()).numpy(), "norm").pvalue > 0.01


def test_covariance_shaped_noise_is_the_weighted_sum_of_centred_gradients_exactly():
    """The map from zeta to xi is read off unit vectors: M M' is C / B to rounding, and a constant zeta gives nothing."""
    model = network()
    walker = shaped(model, scale=0.6)
    rows, columns = example_gradients(model), []
    for j in range(N + 1):
        zeta = torch.ones(N, dtype=torch.float64) if j == N else torch.eye(N, dtype=torch.float64)[j]
        weights = (zeta - zeta.mean()) * math.sqrt(0.6 / (N * B))
        columns.append(walker._surface.weighted_grad(flat(model), weights, None, {}))
    matrix = torch.stack(columns[:N], 1)
    torch.testing.assert_close(matrix @ matrix.T, 0.6 * covariance_of(rows) / B, rtol=1e-9, atol=1e-13)
    assert float(columns[N].abs().max()) < 1e-13
    noise = walker._noise(flat(model))
    zeta = torch.randn(N, generator=walker._generator(0), dtype=torch.float64)
    torch.testing.assert_close(noise, matrix @ zeta, rtol=1e-9, atol=1e-12)


def test_the_variance_of_a_network_is_that_of_its_gradients_one_by_one():
    model = network()
    rows = example_gradients(model)
    walker = shaped(model, "diagonal")
    torch.testing.assert_close(walker._variance(flat(model)), covariance_of(rows).diag(), rtol=1e-10, atol=1e-15)
    walk(model, walker, 1)
    assert walker.measured_trace == pytest.approx(float(covariance_of(rows).trace()), rel=1e-10)
    chunks = [rows[:7], rows[7:8], rows[8:]]
    walker._surface.gradient_chunks = lambda *_: iter([c + 1e6 for c in chunks])  # a mean far above the deviations
    torch.testing.assert_close(walker._variance(flat(model)), covariance_of(rows).diag(), rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_noise_is_added_to_the_gradient_that_base_sees(shape):
    model, twin = network(), network()
    walker, other = shaped(model, shape), shaped(twin, shape)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(mean_loss(twin, inputs()), list(twin.parameters()))])
    noise = other._disturbed(flat(twin), torch.zeros_like(gradient))
    torch.testing.assert_close(walk(model, walker, 1)[0], flat(twin) - LR * (gradient + noise), rtol=1e-13, atol=1e-15)
    assert float(noise.norm()) > 0.1


@pytest.mark.parametrize("shape", ["diagonal", "isotropic"])
def test_the_stationary_variance_is_that_of_the_shape_at_a_finite_learning_rate(shape):
    """600 coordinates, 15 points with a correlation of 0.04: 9000 values, one standard error of 1.5 %."""
    size, h, rate = 600, 2.0, 0.6
    generator = torch.Generator().manual_seed(1)
    centres = torch.randn(7, size, generator=generator, dtype=torch.float64) * torch.linspace(0.4, 2.0, size) + 0.5
    surface = NoisyQuadratic(h * torch.eye(size), centres)
    model = Point(surface.minimum)
    base = torch.optim.SGD(model.parameters(), lr=rate)
    walker = ShapedNoise(base, model, surface, shape=shape, every=10**6, noise_batch_size=B, generator=generator)
    c = h**2 * centres.var(0, correction=0)
    c = c if shape == "diagonal" else torch.full_like(c, float(c.mean()))
    expected, kept = rate * c / (B * h * (2 - rate * h)), []
    for t in range(32):
        model.theta.grad = surface.value_and_grad(model.theta.detach())[1]
        walker.step()
        kept += [(model.theta.detach() - surface.minimum) ** 2 / expected] if t >= 3 and t % 2 else []
    found = torch.stack(kept)
    assert float(found.mean()) == pytest.approx(1.0, rel=0.055)  # with n - 1 for n the variance would be 7 / 6, a flow's 0.4
    for half in (found[:, : size // 2], found[:, size // 2 :]):  # where the variances are small and large
        assert float(half.mean()) == pytest.approx(1.0, rel=0.08)


def test_the_shape_is_measured_when_due_and_the_covariance_always_afresh():
    model = network()
    walker = shaped(model, "diagonal", every=3)
    traces = []
    for _ in range(5):
        walk(model, walker, 1)
        traces.append((walker.measured_at, walker.measured_trace))
    assert [at for at, _ in traces] == [0, 0, 0, 3, 3]
    assert len({trace for _, trace in traces}) == 2
    fresh = shaped(network())
    walk(network(), fresh, 1)
    assert fresh.measured_at is None
    assert math.isnan(fresh.measured_trace)
    assert fresh.outcome is Outcome.ok


# --- SVAG --------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("substeps", [2, 5])
def test_the_amplified_gradient_has_the_mean_and_l_times_the_covariance_by_enumeration(substeps):
    """All 3^2 times 3^2 pairs of batches of two of three examples, with replacement."""
    centres = torch.tensor([[0.3, -1.0], [2.0, 0.4], [-0.7, 1.9]], dtype=torch.float64)
    surface = NoisyQuadratic(torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double(), centres)
    model = Point([0.6, -0.2])
    theta = model.theta.detach().clone()
    walker = SVAG(torch.optim.SGD(model.parameters(), lr=LR), model, surface, substeps=substeps, noise_batch_size=2)
    batches = [torch.tensor(pair) for pair in itertools.product(range(3), repeat=2)]
    moves = []
    for first, second in itertools.product(batches, batches):
        walker._indices = lambda second=second: second
        with torch.no_grad():
            model.theta.copy_(theta)
        model.theta.grad = surface.on_batch(first).value_and_grad(theta)[1]
        walker.step()
        moves.append(model.theta.detach() - theta)
    found = torch.stack(moves)
    mean = surface.value_and_grad(theta)[1]
    torch.testing.assert_close(found.mean(0), -LR / substeps * mean, rtol=1e-12, atol=1e-14)
    expected = substeps * surface.gradient_covariance(theta, batch_size=2) * (LR / substeps) ** 2
    torch.testing.assert_close(covariance_of(found), expected, rtol=1e-12, atol=1e-14)


def test_the_second_batch_is_uniform_with_replacement_and_new_each_update():
    model = network()
    walker = shaped(model, cls=SVAG, substeps=3, noise_batch_size=12)
    drawn = []
    for _ in range(200):
        drawn.append(walker._indices())
        walker._update += 1
    counts = torch.bincount(torch.cat(drawn), minlength=N)
    assert stats.chisquare(counts.numpy()).pvalue > 0.01
    assert len({tuple(d.tolist()) for d in drawn}) == 200
    assert any(len(set(d.tolist())) < 12 for d in drawn)


def test_svag_divides_the_learning_rate_of_the_update_and_shows_it_whole():
    model, twin = network(), network()
    walker = shaped(model, cls=SVAG, substeps=4)
    assert walker.weights[0] + walker.weights[1] == pytest.approx(1, rel=1e-15)
    assert walker.weights[0] ** 2 + walker.weights[1] ** 2 == pytest.approx(4, rel=1e-15)
    second = walker._surface.weighted_grad(flat(model), torch.full((B,), 1 / B, dtype=torch.float64), walker._indices(), {})
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(mean_loss(twin, inputs()), list(twin.parameters()))])
    expected = flat(model) - LR / 4 * (walker.weights[0] * gradient + walker.weights[1] * second)
    torch.testing.assert_close(walk(model, walker, 1)[0], expected, rtol=1e-12, atol=1e-14)
    assert walker.param_groups[0]["lr"] == LR
    assert walker.weights[1] < 0


# --- limits, state, replay --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("cls", "options"), [(ShapedNoise, {"scale": 0.0}), (SVAG, {"substeps": 1})])
def test_the_limit_is_base_with_momentum_bit_for_bit_and_measures_nothing(cls, options, monkeypatch):
    model, twin = network(), network()
    momentum = {"lr": LR, "momentum": 0.8, "weight_decay": 0.02}
    walker = shaped(model, cls=cls, base=torch.optim.SGD(model.parameters(), **momentum), **options)
    monkeypatch.setattr(walker._surface, "weighted_grad", None)
    monkeypatch.setattr(walker._surface, "gradient_chunks", None)
    assert torch.equal(walk(model, walker, 5), walk(twin, torch.optim.SGD(twin.parameters(), **momentum), 5))


CASES = [(shape, ShapedNoise, {"every": 3}) for shape in SHAPES] + [("", SVAG, {"substeps": 3})]
BASES = {
    "momentum": lambda p: torch.optim.SGD(p, lr=0.03, momentum=0.8),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.03),
}


@pytest.mark.parametrize(("shape", "cls", "options"), CASES, ids=[c[0] or "svag" for c in CASES])
@pytest.mark.parametrize("base", BASES)
def test_a_walk_resumes_bit_for_bit_from_a_file(shape, cls, options, base):
    def build(model, seed):
        return shaped(model, shape, cls, seed, BASES[base](model.parameters()), **options)

    whole = network()
    expected = walk(whole, build(whole, 4), 8)[-1]
    model = network()
    walker = build(model, 4)
    walk(model, walker, 4)
    file = io.BytesIO()
    torch.save(walker.state_dict(), file)
    file.seek(0)
    resumed = network(seed=1)
    resumed.load_state_dict(model.state_dict())
    fresh = build(resumed, 99)
    walk(network(), fresh, 1)
    fresh.load_state_dict(torch.load(file))
    assert torch.equal(walk(resumed, fresh, 4)[-1], expected)
    assert not torch.equal(walk(network(), build(network(), 99), 8)[-1], expected)


def test_the_state_of_a_bare_base_and_of_another_shape_is_taken_and_the_noise_measured_anew():
    model = network()
    plain = torch.optim.SGD(model.parameters(), lr=0.07, momentum=0.8)
    walk(model, plain, 2)
    walker = shaped(model, "diagonal", base=torch.optim.SGD(model.parameters(), lr=LR, momentum=0.8))
    walker.load_state_dict(plain.state_dict())
    assert walker.param_groups[0]["lr"] == plain.param_groups[0]["lr"] != LR
    assert torch.equal(walker.state[model[0].weight]["momentum_buffer"], plain.state[model[0].weight]["momentum_buffer"])
    walk(model, walker, 2)
    other = shaped(model, "isotropic", base=torch.optim.SGD(model.parameters(), lr=LR, momentum=0.8))
    other.load_state_dict(walker.state_dict())
    assert (other._seed, other._update, other.measured_at) == (walker._seed, 2, None)
    state = walker.state_dict()
    state["state"][1]["variance"] = torch.ones(2, dtype=torch.float64)
    with pytest.raises(ArgumentError, match=r"state_dict: expected the variance of '0\.bias' as \(3,\), got \(2,\)"):
        walker.load_state_dict(state)


@pytest.mark.parametrize("cls", [ShapedNoise, SVAG])
def test_a_closure_passes_through_and_gradients_are_put_back(cls):
    model, twin = network(), network()
    walker, other = shaped(model, cls=cls), shaped(twin, cls=cls)

    def closure():
        walker.zero_grad()
        loss = mean_loss(model, inputs())
        loss.backward()
        kept.append([p.grad for p in model.parameters()])
        return loss

    kept = []
    values = [walker.step(closure).item() for _ in range(3)]
    assert torch.equal(flat(model), walk(twin, other, 3)[-1])
    assert values[0] == pytest.approx(mean_loss(network(), inputs()).item())
    assert all(p.grad is g for p, g in zip(model.parameters(), kept[-1], strict=True))


PHASE = {"lr": 0.1, "batch_size": "full", "updates": 11, "walker": "shaped", "noise_batch_size": 16, "every": 4}
RUNS = {shape: [PHASE | {"shape": shape, "momentum": 0.5, "k": 3}] for shape in SHAPES} | {
    "svag": [PHASE | {"walker": "svag", "batch_size": 16, "substeps": 3, "replacement": True}],
    "after sgd": [
        {"walker": "sgd", "lr": 0.1, "batch_size": 16, "momentum": 0.9, "updates": 4},
        PHASE | {"shape": "diagonal", "momentum": 0.9, "updates": 4},
        PHASE | {"shape": "isotropic", "momentum": 0.9, "updates": 3},
    ],
}  # fmt: skip


@pytest.mark.parametrize("case", RUNS)
def test_a_recorded_run_is_rebuilt_bit_for_bit(case, tmp_path):
    phases = [{k: v for k, v in phase.items() if phase["walker"] != "svag" or k != "every"} for phase in RUNS[case]]
    told = {"name": "x", "seed": 5, "data": {"dataset": "digits", "train": 80}, "model": {"name": "mlp", "hidden": [7]}}
    record = {"snapshots": {"kind": "every", "n": 1}, "keyframes": 5}
    replayed, stored = (
        open_trajectory(run(Experiment(**told, phases=phases, record=record | {"mode": mode}), tmp_path / mode))
        for mode in ("replay", "snapshots")
    )
    assert stored.snapshot_steps.tolist() == list(range(12))
    assert len({stored.theta(step).numpy().tobytes() for step in range(12)}) == 12
    for step in (9, 3, 11, 6, 0):
        assert torch.equal(replayed.theta(step), stored.theta(step)), step


@pytest.mark.parametrize(("cls", "lr"), [(ShapedNoise, LR), (SVAG, LR / 2)])
def test_the_recorder_sees_the_raw_gradient_and_the_noisy_step(cls, lr):
    model, twin = network(), network()
    walker, other = shaped(model, cls=cls), shaped(twin, cls=cls)
    gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(mean_loss(twin, inputs()), list(twin.parameters()))])
    seen = other._disturbed(flat(twin), gradient)
    with Recorder(None, model, walker, snapshots=every(1), store="memory") as recorder:
        walk(model, walker, 1)
    trajectory = recorder.store.trajectory()
    assert float(trajectory.steps["gradient_norm"][0]) == pytest.approx(float(gradient.norm()), rel=1e-6)
    assert float(trajectory.steps["update_norm"][0]) == pytest.approx(lr * float(seen.norm()), rel=1e-6)
    assert float(seen.norm()) != pytest.approx(float(gradient.norm()), rel=0.01)
    assert torch.equal(trajectory.theta(1), flat(model))


def test_the_example_is_a_sweep_over_the_shapes():
    found = load_toml(Path(__file__).parents[1] / "examples" / "digits_noise.toml").expand()
    assert [one.phases[0].options["shape"] for one in found[::3]] == ["isotropic", "diagonal", "covariance", "hessian"]
    loop = Loop(found[-1])
    assert isinstance(loop.optimizer, ShapedNoise)
    assert loop.surface(2560).fingerprint()["examples"] == 1437


@pytest.mark.parametrize(("cls", "options"), [(ShapedNoise, {"scale": 0.0}), (SVAG, {"substeps": 1})])
def test_it_leaves_no_trace_beside_the_update(cls, options, monkeypatch):
    """At its limit the walk equals base: parameters, buffers, modes, gradients, all random states."""
    model, optimizer, *_ = observer.train(observer.MODELS[0], "sgd", recorded=False)
    plain = observer.state(model, optimizer)

    def wrapped(parameters):
        each = LossSurface(built[-1], lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], reduction="none"), observer.data())
        return cls(inside(parameters), built[-1], each, **options)

    def build():
        built.append(observer.MODELS[0]())
        return built[-1]

    built, inside = [], observer.OPTIMIZERS["sgd"]
    monkeypatch.setitem(observer.OPTIMIZERS, "sgd", wrapped)
    model, walker, *_ = observer.train(build, "sgd", recorded=False)
    watched = observer.state(model, walker.base)
    assert plain.keys() == watched.keys()
    assert not [key for key in plain if not observer.same(plain[key], watched[key])]


# --- what goes wrong -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", SHAPES)
def test_a_diverging_run_goes_on_and_says_so(shape):
    model = network()
    walker = shaped(model, shape)
    walk(model, walker, 2)
    kept = walker.measured_trace
    with torch.no_grad():
        model[0].weight.fill_(math.nan)
    walk(model, walker, 1)
    assert walker.outcome is Outcome.not_applicable
    assert "of update 2 was not finite, and left out" in walker.reason
    assert walker.measured_trace == kept or math.isnan(kept)


def test_where_products_overflow_the_last_directions_stay(monkeypatch):
    model = network()
    walker = shaped(model, "hessian")
    walk(model, walker, 1)
    kept = walker.eigenvalues.clone()
    monkeypatch.setattr("sgdscope.surface.products.Linearized.hvp", lambda self, v: v * math.inf)
    walk(model, walker, 1)
    assert walker.outcome is Outcome.not_applicable
    assert torch.equal(walker.eigenvalues, kept)
    assert torch.isfinite(flat(model)).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "round"}, "shape: expected one of isotropic, diagonal, covariance, hessian, got 'round'"),
        ({"trace": "own"}, "trace: expected 'match' with the shape 'covariance', got 'own', which is for 'hessian'"),
        ({"trace": 2.0}, "trace: expected one of match, own, got 2.0"),
        ({"scale": -0.5}, "scale: expected a finite number >= 0, got -0.5"),
        ({"scale": math.nan}, "scale: expected a finite number >= 0, got nan"),
        ({"noise_batch_size": 0}, "noise_batch_size: expected a whole number >= 1, got 0"),
        ({"every": 1.5}, "every: expected a whole number >= 1, got 1.5"),
        ({"shape": "hessian", "k": 99}, "k: expected at most 23, the number of parameters, got 99"),
        ({"tolerance": 0.0}, "tolerance: expected a finite number > 0, got 0.0"),
        ({"cls": SVAG, "substeps": 0}, "substeps: expected a whole number >= 1, got 0"),
        ({"cls": SVAG, "substeps": 2.5}, "substeps: expected a whole number >= 1, got 2.5"),
        ({"cls": SVAG, "noise_batch_size": True}, "noise_batch_size: expected a whole number >= 1, got True"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        shaped(network(), **options)


def test_base_model_and_surface_must_fit_together():
    model, other = network(), network()
    surface = LossSurface(model, losses, inputs())
    parameters = list(model.parameters())

    def build(chosen, surface=surface, model=model):
        return ShapedNoise(torch.optim.SGD(chosen, lr=0.1), model, surface)

    build(parameters[::-1])
    with pytest.raises(ArgumentError, match=r"base: parameter 0 \(3, 4\) of group 0 is none of the model's"):
        build(other.parameters())
    with pytest.raises(ArgumentError, match=r"base: '2\.bias' is in the surface's theta and base does not move it"):
        build(parameters[:-1])
    with pytest.raises(ArgumentError, match=r"base: expected a torch\.optim\.Optimizer, got list"):
        ShapedNoise(parameters, model, surface)
    with pytest.raises(ArgumentError, match="surface: expected one of 23 parameters, got 3"):
        build(parameters, Quadratic(torch.eye(3)))
    point = Point([1.0, 2.0])
    with pytest.raises(ArgumentError, match="surface: expected at least 2 examples, got 1"):
        build(point.parameters(), Quadratic(torch.eye(2)), point)
    whole = LossSurface(model, mean_loss, [inputs()[:9], inputs()[9:]])
    with pytest.raises(SurfaceError, match="example"):
        build(parameters, whole)
    with pytest.raises(ArgumentError, match="param_group: theta is fixed by the surface"):
        build(parameters).add_param_group({"params": [nn.Parameter(torch.ones(1))]})
