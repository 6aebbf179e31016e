"""The nudged walker: against dense algebra, closed forms, and base bit for bit."""

import copy
import io
import itertools
import math

import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch import nn

import test_observer as observer
from sgdscope.errors import ArgumentError, Outcome
from sgdscope.landscapes import Quadratic
from sgdscope.recorder import Recorder, every
from sgdscope.surface import LossSurface
from sgdscope.vector import Layout, select_parameters
from sgdscope.walkers.nudged import NudgedSGD

GAMMA = 0.3


def network(seed=3):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def batches(n=8):
    generator = torch.Generator().manual_seed(11)
    return [torch.randn(9, 4, generator=generator, dtype=torch.float64) * 1.7 + 0.4 for _ in range(n)]


def loss(model, x):
    out = model(x)
    return (out**2).sum(1).mean() + 1.3 * (torch.sin(out) * x[:, :3]).sum(1).mean()


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()])


def hessian(model, xs):
    """The dense Hessian of the mean loss, by autograd on a function of the flat vector."""
    layout = Layout.of(select_parameters(model))

    def value(theta):
        parts = layout.unpack(theta)
        return torch.stack([loss(lambda x: torch.func.functional_call(model, parts, (x,)), x) for x in xs]).mean()

    return torch.autograd.functional.hessian(value, flat(model))


def full_gradient(model, xs):
    return torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad(sum(loss(model, x) for x in xs) / len(xs), list(model.parameters()))]
    )


def top(matrix, k):
    values, vectors = torch.linalg.eigh(matrix)
    return values.flip(0)[:k], vectors.flip(1)[:, :k]


BASES = {
    "sgd": lambda p: torch.optim.SGD(p, lr=0.05),
    "momentum": lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.8, weight_decay=0.02),
    "adam": lambda p: torch.optim.Adam(p, lr=0.02, betas=(0.7, 0.9), eps=1e-3),
    "amsgrad": lambda p: torch.optim.AdamW(p, lr=0.02, betas=(0.7, 0.9), eps=1e-3, weight_decay=0.3, amsgrad=True),
}


def backward(model, optimizer, x):
    optimizer.zero_grad()
    value = loss(model, x)
    value.backward()
    return value


def steps(model, optimizer, xs):
    for x in xs:
        backward(model, optimizer, x)
        optimizer.step()
    return flat(model)


def nudged(model, base="sgd", surface=None, **options):
    surface = surface or LossSurface(model, loss, batches())
    options = {"k": 3, "gamma": GAMMA, "every": 1, "tolerance": 1e-12} | options
    return NudgedSGD(BASES[base](model.parameters()), model, surface, **options)


# --- against dense algebra ---------------------------------------------------------------------------------------------------


def rescaled(vector, vectors, gammas):
    return vector - vectors @ ((1 - gammas) * (vectors.T @ vector))


@pytest.mark.parametrize("base", ["sgd", "momentum"])
@pytest.mark.parametrize("every", [1, 3])
def test_the_update_of_any_base_is_rescaled_along_the_dense_eigenvectors(base, every):
    model, twin = network(), network()
    walker, plain = nudged(model, base, every=every), BASES[base](twin.parameters())
    for t, x in enumerate(batches(5)):
        if t % every == 0:
            values, vectors = top(hessian(twin, batches()), 3)
        before = flat(twin)
        backward(twin, plain, x)
        plain.step()
        expected = before + rescaled(flat(twin) - before, vectors, torch.full((3,), GAMMA, dtype=torch.float64))
        torch.nn.utils.vector_to_parameters(expected, twin.parameters())
        steps(model, walker, [x])
        torch.testing.assert_close(flat(model), expected, rtol=0, atol=1e-10)
        assert walker.refreshed_at == t - t % every
        torch.testing.assert_close(walker.eigenvalues, values, rtol=1e-7, atol=0)
    assert float((flat(model) - before).norm()) > 1e-3  # far above the tolerance


def test_gamma_one_is_base_bit_for_bit_while_the_directions_are_measured():
    for base in BASES:
        model, twin = network(), network()
        walker = nudged(model, base, gamma=1.0, every=2)
        assert torch.equal(steps(model, walker, batches()), steps(twin, BASES[base](twin.parameters()), batches()))
        assert walker.refreshed_at == 6
        assert walker.products > 6


@pytest.mark.parametrize("base", ["adam", "amsgrad"])
@pytest.mark.parametrize("period", [1, 2])
def test_round_adam_the_directions_are_those_of_the_preconditioned_hessian(base, period):
    model, twin = network(), network()
    walker, plain = nudged(model, base, every=period), BASES[base](twin.parameters())
    for t, x in enumerate(batches(5)):
        before, matrix = flat(twin), hessian(twin, batches())
        backward(twin, plain, x)
        plain.step()
        if t % period == 0:
            key = "max_exp_avg_sq" if base == "amsgrad" else "exp_avg_sq"
            second = torch.cat([plain.state[p][key].reshape(-1) for p in twin.parameters()])
            root = torch.sqrt(torch.sqrt(second / (1 - 0.9 ** (t + 1))) + 1e-3)
            values, w = top(matrix / torch.outer(root, root), 3)
        d = flat(twin) - before
        expected = before + d - (w @ ((1 - GAMMA) * (w.T @ (root * d)))) / root
        torch.nn.utils.vector_to_parameters(expected, twin.parameters())
        steps(model, walker, [x])
        torch.testing.assert_close(flat(model), expected, rtol=0, atol=1e-8)
        torch.testing.assert_close(walker.eigenvalues, values, rtol=1e-6, atol=0)
    own, _ = top(matrix, 3)
    assert not torch.allclose(own, values, rtol=0.2)  # the preconditioner matters here


def test_without_preconditioning_adam_is_rescaled_along_the_eigenvectors_of_the_hessian():
    model, twin = network(), network()
    walker, plain = nudged(model, "adam", precondition=False), BASES["adam"](twin.parameters())
    before, (_, vectors) = flat(twin), top(hessian(twin, batches()), 3)
    d = steps(twin, plain, batches(1)) - before
    end = steps(model, walker, batches(1))
    torch.testing.assert_close(end - before, rescaled(d, vectors, GAMMA), rtol=0, atol=1e-10)


def first_step(**options):
    """theta before, the plain update, the dense eigenpairs there, and the nudged update, one step in."""
    model, twin = network(), network()
    steps(model, BASES["sgd"](model.parameters()), batches(1))
    twin.load_state_dict(model.state_dict())
    before, pairs = flat(model), top(hessian(model, batches()), 3)
    walker = nudged(model, **options)
    d = steps(twin, BASES["sgd"](twin.parameters()), batches()[2:3]) - before
    return before, d, pairs, steps(model, walker, batches()[2:3]) - before, walker, model


def test_adaptive_factors_cap_the_learning_rate_at_the_threshold():
    _, _, (values, _), _, _, _ = first_step()
    threshold = 0.05 * float((values[1] * values[2]).sqrt())
    _, d, (values, vectors), moved, _, _ = first_step(variant="adaptive", threshold=threshold)
    gammas = torch.tensor([min(1.0, threshold / (0.05 * float(value))) for value in values], dtype=torch.float64)
    assert float(gammas[0]) < 0.95 * float(gammas[1]) < 0.95
    assert gammas[2:].tolist() == [1.0]
    torch.testing.assert_close(moved, rescaled(d, vectors, gammas), rtol=0, atol=1e-10)


def test_adaptive_leaves_flat_and_negative_directions_alone():
    model, twin = point_model([0.3, -0.4, 0.5]), point_model([0.3, -0.4, 0.5])
    surface = Quadratic(torch.diag(torch.tensor([-1.0, -2.0, -3.0], dtype=torch.float64)))
    walker = NudgedSGD(torch.optim.SGD(model.parameters(), lr=0.7), model, surface, k=2, variant="adaptive", threshold=0.1)
    for point, optimizer in ((model, walker), (twin, torch.optim.SGD(twin.parameters(), lr=0.7))):
        point.theta.grad = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
        optimizer.step()
    assert walker.eigenvalues.tolist() == pytest.approx([-1.0, -2.0])
    assert torch.equal(model.theta, twin.theta)


def test_dom_and_bulk_add_up_to_the_update_and_bulk_stands_still_along_the_directions():
    _, d, (_, vectors), dom, _, _ = first_step(variant="dom")
    bulk = first_step(variant="bulk", gamma=7.0)[3]
    torch.testing.assert_close(dom, vectors @ (vectors.T @ d), rtol=0, atol=1e-10)
    torch.testing.assert_close(dom + bulk, d, rtol=0, atol=1e-14)
    assert float((vectors.T @ bulk).abs().max()) < 1e-10 < 1e-4 < float((vectors.T @ d).abs().max())
    assert float(bulk.norm()) > 1e-3


def test_random_directions_are_orthonormal_new_at_each_refresh_and_cost_no_product():
    model = network()
    walker = nudged(model, variant="random", every=2, generator=torch.Generator().manual_seed(4))
    blocks = []
    for x in batches(4):
        before, twin = flat(model), copy.deepcopy(model)
        d = steps(twin, BASES["sgd"](twin.parameters()), [x]) - before
        moved = steps(model, walker, [x]) - before
        e = walker.basis
        torch.testing.assert_close(moved, rescaled(d, e, GAMMA), rtol=0, atol=1e-14)
        torch.testing.assert_close(e.T @ e, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-13)
        blocks.append(e)
    assert torch.equal(blocks[0], blocks[1])
    assert walker.staleness == pytest.approx(1 - float((blocks[1].T @ blocks[2]).square().sum()) / 3, abs=1e-12)
    assert 0.5 < walker.staleness < 1.0
    assert (walker.products, len(walker.eigenvalues), walker.outcome) == (0, 0, Outcome.ok)
    third = network()
    other = nudged(third, variant="random", generator=torch.Generator().manual_seed(5))
    steps(third, other, batches(1))
    assert not torch.allclose(other.basis, blocks[0])


# --- what is rescaled --------------------------------------------------------------------------------------------------------


def test_on_the_gradient_the_momentum_buffer_is_nudged_and_the_gradient_is_put_back():
    model, twin = network(), network()
    walker, plain = nudged(model, "momentum", where="gradient"), BASES["momentum"](twin.parameters())
    for x in batches(4):
        _, vectors = top(hessian(twin, batches()), 3)
        backward(twin, plain, x)
        gradient = torch.cat([p.grad.reshape(-1) for p in twin.parameters()])
        changed = Layout.of(select_parameters(twin)).unpack(rescaled(gradient, vectors, GAMMA))
        for name, p in twin.named_parameters():
            p.grad = changed[name].clone()
        plain.step()
        backward(model, walker, x)
        own = [p.grad for p in model.parameters()]
        kept = [g.clone() for g in own]
        walker.step()
        assert all(p.grad is g and torch.equal(g, k) for p, g, k in zip(model.parameters(), own, kept, strict=True))
        torch.testing.assert_close(flat(model), flat(twin), rtol=0, atol=1e-9)


def test_on_both_the_factor_is_squared_without_momentum():
    _, d, (_, vectors), moved, _, _ = first_step(where="both")
    torch.testing.assert_close(moved, rescaled(d, vectors, GAMMA**2), rtol=0, atol=1e-10)


def test_on_the_noise_the_mean_step_is_kept():
    before, d, (_, vectors), moved, _, model = first_step(where="noise")
    torch.nn.utils.vector_to_parameters(before.clone(), model.parameters())
    mean = full_gradient(model, batches())
    noise = -d / 0.05 - mean
    assert float((vectors.T @ noise).norm()) > 0.1
    torch.testing.assert_close(moved, -0.05 * (mean + rescaled(noise, vectors, GAMMA)), rtol=0, atol=1e-10)


def test_white_noise_has_the_norm_of_the_noise_and_no_direction():
    model = network()
    lr, generator = 1e-9, torch.Generator().manual_seed(2)  # so small that theta stands still
    surface = LossSurface(model, loss, batches())
    base = torch.optim.SGD(model.parameters(), lr=lr)
    walker = NudgedSGD(base, model, surface, where="noise", variant="white", generator=generator)
    mean = full_gradient(model, batches())
    backward(model, walker, batches()[3])
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    given = []
    original = walker.base.step
    walker.base.step = lambda: (given.append(torch.cat([p.grad.reshape(-1) for p in model.parameters()])), original())
    for _ in range(400):
        walker.step()
    seen = torch.stack(given) - mean
    norm = float((gradient - mean).norm())
    torch.testing.assert_close(seen.norm(dim=1), torch.full((400,), norm, dtype=torch.float64), rtol=1e-4, atol=0)
    unit = seen / norm
    # 43 coordinates: |mean| of 400 unit vectors is 1/20 (sd 0.0054), their second moment has norm sqrt(1/43 + 1/400) = 0.16
    assert 0.03 < float(unit.mean(0).norm()) < 0.07  # chance of failing below 1e-3; the seed is fixed
    assert float((unit.T @ unit / 400).norm()) == pytest.approx(math.sqrt(1 / 43 + 1 / 400), rel=0.05)
    assert walker.refreshed_at is None


# --- a quadratic whose noise is its Hessian: oracles 1 and 3 -----------------------------------------------------------------


class Point(nn.Module):
    def __init__(self, values):
        super().__init__()
        self.theta = nn.Parameter(torch.as_tensor(values, dtype=torch.float64).clone())


def point_model(values):
    return Point(values)


def rotation(n):
    return torch.linalg.qr(torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(8))).Q


def quadratic_walker(values, rate=0.1, **options):
    q = rotation(len(values))
    matrix = q @ torch.diag(torch.tensor(values, dtype=torch.float64)) @ q.T
    matrix = (matrix + matrix.T) / 2
    model = point_model(torch.zeros(len(values)))
    base = torch.optim.SGD(model.parameters(), lr=rate)
    return NudgedSGD(base, model, Quadratic(matrix), **({"tolerance": 1e-10} | options)), model, matrix, q


def moved(walker, model, start, gradient):
    with torch.no_grad():
        model.theta.copy_(start)
    model.theta.grad = gradient.clone()
    walker.step()
    return model.theta.detach().clone()


def test_the_stationary_variance_is_that_of_the_reduced_learning_rate():
    """The walk is theta <- A theta + B xi; A and B are read off the walker, and S = A S A' + B C B' / 4 solved exactly."""
    values = [8.0, 3.0, 1.0, 0.5, 0.2, 0.1]
    walker, model, matrix, q = quadratic_walker(values, k=2, gamma=0.1)
    eye, zero = torch.eye(6, dtype=torch.float64), torch.zeros(6, dtype=torch.float64)
    a = torch.stack([moved(walker, model, e, matrix @ e) for e in eye], 1)
    b = torch.stack([moved(walker, model, zero, e) for e in eye], 1)
    covariance = q.T @ torch.from_numpy(solve_discrete_lyapunov(a.numpy(), (b @ matrix @ b.T / 4).numpy())) @ q
    rates = [0.01, 0.01, 0.1, 0.1, 0.1, 0.1]
    expected = [rate / 4 / (2 - rate * value) for rate, value in zip(rates, values, strict=True)]  # C_ii = lambda_i
    assert expected[0] == pytest.approx(0.00130, abs=5e-6)
    torch.testing.assert_close(covariance, torch.diag(torch.tensor(expected, dtype=torch.float64)), rtol=0, atol=1e-9)


def test_a_long_walk_has_the_predicted_variance():
    """20 directions near 8 nudged, 20 near 0.5 not; batches of 4, 4000 updates.

    Correlation per update 1 - gamma eta lambda = 0.92 and 0.95: 6600 and 4100 independent values, 1.7 % and 2.2 % standard
    error of the mean ratio; 8 % is 3.6 standard errors or more: chance of failing 5e-4, and the seed is fixed.
    """
    values = torch.cat([torch.linspace(8.4, 7.6, 20), torch.linspace(0.6, 0.4, 20)]).double()
    walker, model, matrix, q = quadratic_walker(values.tolist(), k=20, gamma=0.1, every=500)
    generator = torch.Generator().manual_seed(6)
    root = q @ torch.diag(values.sqrt())
    noise = torch.randn(4300, 40, generator=generator, dtype=torch.float64) @ root.T / 2
    walked = []
    for xi in noise:
        model.theta.grad = matrix @ model.theta.detach() + xi
        walker.step()
        walked.append(model.theta.detach().clone())
    variances = (torch.stack(walked[300:]) @ q).square().mean(0)
    rates = torch.cat([torch.full((20,), 0.01), torch.full((20,), 0.1)]).double()
    ratio = variances / (rates / 4 / (2 - rates * values))
    assert float(ratio[:20].mean()) == pytest.approx(1, abs=0.08)
    assert float(ratio[20:].mean()) == pytest.approx(1, abs=0.08)
    assert walker.staleness < 1e-12


@pytest.mark.parametrize(("largest", "stable"), [(199.0, True), (201.0, False)])
def test_nudged_directions_are_stable_up_to_two_over_gamma_eta(largest, stable):
    walker, model, matrix, q = quadratic_walker([largest, 3.0, 0.7], k=1, gamma=0.1)
    with torch.no_grad():
        model.theta.copy_(q @ torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64))
    for _ in range(300):
        model.theta.grad = matrix @ model.theta.detach()
        walker.step()
    along = abs(float(q[:, 0] @ model.theta.detach()))
    assert along == pytest.approx((0.99 if stable else 1.01) ** 300, rel=1e-6)


# --- what happened, and when -------------------------------------------------------------------------------------------------


def refreshes(n=9, **options):
    model = network()
    walker, seen = nudged(model, **options), []
    for x in (batches() * 2)[:n]:
        steps(model, walker, [x])
        seen.append(walker.refreshed_at)
    return seen, walker


def test_when_the_directions_are_measured():
    assert refreshes(every=4)[0] == [0, 0, 0, 0, 4, 4, 4, 4, 8]
    assert refreshes(every=3, burn_in=2)[0] == [None, None, 2, 2, 2, 5, 5, 5, 8]
    assert refreshes(every="epoch", steps_per_epoch=5)[0] == [0] * 5 + [5] * 4
    assert refreshes(every="once", burn_in=1)[0] == refreshes(every=None, burn_in=1)[0] == [None] + [1] * 8


def test_before_the_first_refresh_it_is_base():
    model, twin = network(), network()
    assert torch.equal(
        steps(model, nudged(model, burn_in=4), batches(4)), steps(twin, BASES["sgd"](twin.parameters()), batches(4))
    )
    assert not torch.equal(
        steps(model, nudged(model, burn_in=4), batches(5)), steps(twin, BASES["sgd"](twin.parameters()), batches(5))
    )


def test_it_says_what_happened():
    _, walker = refreshes(1)
    assert math.isnan(walker.staleness)
    cold = walker.products
    model = network()
    walker = nudged(model, tolerance=1e-2, every=1)
    assert (walker.outcome, walker.basis, len(walker.eigenvalues)) == (Outcome.not_applicable, None, 0)
    for number, x in enumerate(batches() + batches()[:3]):
        old, before = walker.basis, walker.products
        _, dense = top(hessian(model, batches()), 3)
        steps(model, walker, [x])
        assert 0 < walker.products - before <= cold + 5
        assert float((dense.T @ walker.basis).square().sum()) == pytest.approx(3, abs=0.03)
        if number:
            overlapping = float((old.T @ walker.basis).square().sum()) / 3
            assert walker.staleness == pytest.approx(1 - overlapping, abs=1e-6)
    assert walker.refreshes == 11
    assert walker.outcome is Outcome.ok
    assert float(walker.residuals.max()) <= 1e-2 * float(walker.eigenvalues[0])


def test_refreshes_start_warm_and_every_tenth_cold():
    walker, model, _, _ = quadratic_walker([8.0, 3.0, 1.0, 0.5, 0.2, 0.1], k=2, every=1, tolerance=1e-6)
    spent = [0]
    for _ in range(12):
        model.theta.grad = torch.ones(6, dtype=torch.float64)
        walker.step()
        spent.append(walker.products)
    cost = [after - before for before, after in itertools.pairwise(spent)]
    assert min(cost[0], cost[10]) > 2
    assert cost[1:10] + cost[11:] == [1] * 10  # the Hessian does not move: one product certifies the pairs


def test_the_directions_are_measured_at_the_buffers_of_the_moment():
    with torch.random.fork_rng():
        torch.manual_seed(2)
        model = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    walker = nudged(model, surface=LossSurface(model, loss, batches()), gamma=1.0, k=1)
    with torch.no_grad():
        model[1].running_var.mul_(0.2)
        model[1].running_mean.add_(0.3)
    fresh = LossSurface(model, loss, batches())
    expected = float(torch.linalg.eigvalsh(fresh.hvp(flat(model), torch.eye(43 + 10, dtype=torch.float64)))[-1])
    kept = [b.clone() for b in model.buffers()]
    walker.step()
    assert float(walker.eigenvalues) == pytest.approx(expected, rel=1e-6)
    assert all(torch.equal(b, k) for b, k in zip(model.buffers(), kept, strict=True))


def test_a_budget_too_small_is_said_and_the_walk_goes_on():
    model = network()
    walker = nudged(model, budget=3, tolerance=1e-12)
    steps(model, walker, batches(1))
    assert (walker.outcome, walker.products) == (Outcome.not_converged, 3)
    assert float(walker.residuals.max()) > 1e-6
    assert "budget" in walker.reason


def test_where_the_loss_is_not_finite_the_directions_are_kept():
    model = network()
    walker = nudged(model)
    steps(model, walker, batches(1))
    kept = walker.basis
    with torch.no_grad():
        model[0].weight[0, 0] = math.inf
    walker.step()
    assert walker.outcome is Outcome.not_applicable
    assert "before update 1 are not finite" in walker.reason
    assert torch.equal(walker.basis, kept)


# --- it is an optimizer ------------------------------------------------------------------------------------------------------

OPTIONS = {
    "sgd": {},
    "momentum": {"where": "both", "variant": "adaptive", "threshold": 0.1},
    "adam": {"every": 3},
    "amsgrad": {"precondition": False, "variant": "random"},
}


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("moment", [1, 4, 6])
def test_a_walk_resumes_bit_for_bit_from_a_file_with_its_directions(base, moment):
    options = {"every": 4, "tolerance": 1e-3, "generator": torch.Generator().manual_seed(3)} | OPTIONS[base]
    whole, model = network(), network()
    expected = steps(whole, walker := nudged(whole, base, **options), batches())
    first = nudged(model, base, **(options | {"generator": torch.Generator().manual_seed(3)}))
    steps(model, first, batches()[:moment])
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), "walker": first.state_dict()}, file)
    file.seek(0)
    held = torch.load(file, weights_only=True)
    assert held["walker"]["state"][1]["basis"].shape == (3, 5)
    other = network(seed=9)
    other.load_state_dict(held["model"])
    second = nudged(other, base, **(options | {"generator": torch.Generator().manual_seed(77)}))
    untouched = copy.deepcopy(held["walker"])
    second.load_state_dict(held["walker"])
    assert observer.same(untouched, held["walker"])
    assert torch.equal(second.basis, first.basis)
    assert second.param_groups is second.base.param_groups
    assert torch.equal(steps(other, second, batches()[moment:]), expected)
    assert (second.products, second.refreshed_at) == (walker.products, walker.refreshed_at)
    assert observer.same(second.state_dict(), walker.state_dict())


def test_the_state_of_a_bare_base_is_taken_and_foreign_directions_are_refused():
    model, twin = network(), network()
    plain = BASES["momentum"](twin.parameters())
    steps(twin, plain, batches(3))
    walker = nudged(model, "momentum", gamma=1.0)
    walker.load_state_dict(copy.deepcopy(plain.state_dict()))
    model.load_state_dict(twin.state_dict())
    assert torch.equal(steps(model, walker, batches(2)), steps(twin, plain, batches(2)))
    with pytest.raises(ArgumentError, match=r"expected the basis of '0.weight' as \(2, 5, 4\), got \(3, 5, 4\); keep"):
        nudged(network(), "momentum", k=2).load_state_dict(walker.state_dict())


@pytest.mark.parametrize("where", ["update", "gradient"])
def test_a_closure_passes_through(where):
    def close(model, optimizer):
        calls = []

        def closure():
            calls.append(torch.is_grad_enabled())
            return backward(model, optimizer, batches()[0])

        for _ in range(3):
            value = optimizer.step(closure)
        return calls, value, flat(model)

    model, twin, third = network(), network(), network()
    lbfgs = {"lr": 0.3, "max_iter": 4}
    expected = close(twin, torch.optim.LBFGS(twin.parameters(), **lbfgs))
    surface = LossSurface(model, loss, batches())
    got = close(model, NudgedSGD(torch.optim.LBFGS(model.parameters(), **lbfgs), model, surface, gamma=1.0, where=where))
    assert got[0] == expected[0]
    assert len(got[0]) > 6
    assert torch.equal(got[1], expected[1])
    assert torch.equal(got[2], expected[2])
    walker = NudgedSGD(torch.optim.LBFGS(third.parameters(), **lbfgs), third, surface, k=3, variant="bulk", every=1, where=where)
    before = flat(third)
    changed = close(third, walker)[2]
    assert not torch.allclose(changed, expected[2])
    assert all(p.grad is not None for p in third.parameters())
    once = NudgedSGD(torch.optim.LBFGS(model.parameters(), **lbfgs), model, surface, k=3, variant="bulk", where=where)
    torch.nn.utils.vector_to_parameters(before, model.parameters())
    start = flat(model)
    once.step(lambda: backward(model, once, batches()[0]))
    assert float((once.basis.T @ (flat(model) - start)).norm()) < 1e-10 < 1e-3 < float((flat(model) - start).norm())


def test_schedules_hooks_and_groups_are_those_of_base():
    model = network()
    turned = [{"params": [p], "lr": 0.01 * (1 + i)} for i, p in enumerate(reversed(list(model.parameters())))]
    base = torch.optim.SGD(turned, lr=1.0)
    walker = NudgedSGD(base, model, LossSurface(model, loss, batches()), k=2, tolerance=1e-12)
    schedule = torch.optim.lr_scheduler.ExponentialLR(walker, 0.5)
    calls = []
    walker.register_step_post_hook(lambda *_: calls.append("outer"))
    base.register_step_post_hook(lambda *_: calls.append("base"))
    before, twin = flat(model), network()
    steps(model, walker, batches(1))
    schedule.step()
    assert calls == ["base", "outer"]
    assert [group["lr"] for group in base.param_groups] == pytest.approx([0.005, 0.01, 0.015, 0.02])
    _, vectors = top(hessian(twin, batches()), 2)
    plain = torch.optim.SGD([{"params": [p], "lr": 0.01 * (4 - i)} for i, p in enumerate(twin.parameters())], lr=1.0)
    d = steps(twin, plain, batches(1)) - before
    torch.testing.assert_close(flat(model) - before, rescaled(d, vectors, 0.1), rtol=0, atol=1e-10)
    assert float((flat(model) - before - d).norm()) > 1e-3
    held = walker.state_dict()["state"]
    assert [tuple(held[i]["basis"].shape) for i in range(4)] == [(2, 3), (2, 3, 5), (2, 5), (2, 5, 4)]
    walker.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    with pytest.raises(ArgumentError, match="param_group: theta is fixed by the surface"):
        walker.add_param_group({"params": [torch.zeros(2, requires_grad=True)]})


def test_the_recorder_sees_the_raw_gradient_and_the_nudged_step():
    model = network()
    walker = nudged(model, where="gradient", gamma=0.0)
    with Recorder(None, model, walker, snapshots=every(1), store="memory") as recorder:
        start = flat(model)
        steps(model, walker, batches(1))
    trajectory = recorder.store.trajectory()
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    assert float(trajectory.steps["gradient_norm"][0]) == pytest.approx(float(gradient.norm()), rel=1e-6)
    assert torch.equal(trajectory.theta(1), flat(model))
    torch.testing.assert_close(flat(model) - start, -0.05 * rescaled(gradient, walker.basis, 0.0), rtol=0, atol=1e-12)
    assert float((walker.basis.T @ gradient).norm()) > 0.1


@pytest.mark.parametrize("optimizer_name", ["sgd", "adamw_fused", "lbfgs"])
@pytest.mark.parametrize("model_class", observer.MODELS)
def test_measuring_leaves_no_trace(model_class, optimizer_name, monkeypatch):
    """gamma = 1 with a refresh before every update equals base: parameters, buffers, modes, gradients, all random states."""
    model, optimizer, points, *_ = observer.train(model_class, optimizer_name, recorded=False)
    plain = observer.state(model, optimizer)

    def wrapped(parameters):
        base = inside(parameters)
        surface = LossSurface(built[-1], observer.loss, [observer.data()[:20]])
        return NudgedSGD(base, built[-1], surface, gamma=1.0, every=1, k=2, tolerance=0.1)

    def build():
        built.append(model_class())
        return built[-1]

    built, inside = [], observer.OPTIMIZERS[optimizer_name]
    monkeypatch.setitem(observer.OPTIMIZERS, optimizer_name, wrapped)
    model, walker, nudged_points, *_ = observer.train(build, optimizer_name, recorded=False)
    watched = observer.state(model, walker.base)
    assert plain.keys() == watched.keys()
    assert not [key for key in plain if not observer.same(plain[key], watched[key])]
    assert observer.same(points, nudged_points)
    assert walker.refreshed_at == observer.UPDATES - 1
    assert walker.products > observer.UPDATES


# --- wrong use ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k: expected a whole number >= 1, got 0"),
        ({"k": 2.0}, "k: expected a whole number >= 1, got 2.0"),
        ({"k": 44}, "k: expected at most 43, the number of parameters, got 44"),
        ({"gamma": -0.1}, "gamma: expected a finite number >= 0, got -0.1"),
        ({"gamma": math.nan}, "gamma: expected a finite number >= 0, got nan"),
        ({"gamma": "0.1"}, "gamma: expected a finite number >= 0, got '0.1'"),
        ({"every": 0}, "every: expected a whole number >= 1, got 0"),
        ({"every": "week"}, "every: expected a whole number >= 1, 'epoch' or 'once', got 'week'"),
        ({"every": "epoch"}, "steps_per_epoch: expected the number of updates an epoch"),
        ({"every": "epoch", "steps_per_epoch": 0}, "steps_per_epoch: expected a whole number >= 1, got 0"),
        ({"where": "velocity"}, "where: expected one of update, gradient, both, noise, got 'velocity'"),
        ({"variant": "alex"}, "variant: expected one of nudge, bulk, dom, random, adaptive, white, got 'alex'"),
        ({"variant": "white"}, "where: expected 'noise' with variant 'white', got 'update'"),
        ({"threshold": 0.0}, "threshold: expected a finite number > 0, got 0.0"),
        ({"tolerance": 0.0}, "tolerance: expected a finite number > 0, got 0.0"),
        ({"budget": 2}, "budget: expected a whole number >= 3, got 2"),
        ({"burn_in": -1}, "burn_in: expected a whole number >= 0, got -1"),
        ({"precondition": True}, "precondition: needs Adam or AdamW and where = 'update', got SGD and 'update'"),
        ({"base": "adam", "precondition": True, "where": "both"}, "precondition: needs Adam or AdamW and where"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        nudged(network(), **options)


def test_base_model_and_surface_must_fit_together():
    model, other = network(), network()
    surface = LossSurface(model, loss, batches())
    parameters = list(model.parameters())

    def build(chosen, model=model, surface=surface):
        return NudgedSGD(torch.optim.SGD(chosen, lr=0.1), model, surface, k=1)

    build(parameters[::-1])
    with pytest.raises(ArgumentError, match=r"base: parameter 0 \(5, 4\) of group 0 is none of the model's"):
        build(other.parameters())
    with pytest.raises(ArgumentError, match=r"base: '2\.bias' is in the surface's theta and base does not move it"):
        build(parameters[:-1])
    part = LossSurface(model, loss, batches(), parameters=["0.*"])
    build(parameters[:2], surface=part)
    with pytest.raises(ArgumentError, match=r"base: it holds '2\.weight', which is not in the surface's theta \(frozen"):
        build(parameters, surface=part)
    with pytest.raises(ArgumentError, match=r"base: expected a torch\.optim\.Optimizer, got list"):
        NudgedSGD(parameters, model, surface)
    with pytest.raises(ArgumentError, match="surface: expected one of 43 parameters, got 3"):
        build(parameters, surface=Quadratic(torch.eye(3)))
