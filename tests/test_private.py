"""Noise, budgets and the walker of record-level privacy against their formulas."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from sgdscope.errors import ArgumentError
from sgdscope.experiment import Experiment, run
from sgdscope.privacy import BudgetError, PrivacyLedger, clipped, gamma_noise, laplace_noise, log_ratio, noise, sensitivity
from sgdscope.runs import open_trajectory
from sgdscope.walkers.private import PrivateSGD

INF = math.inf


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draws(make, count, size, scale, seed=3):
    return make(size, scale, generator(seed), count=count)


# --- mechanisms ---------------------------------------------------------------------------------------------------------------


def test_gamma_noise_has_its_moments_and_its_distribution():
    # d = 5, eps = 1, sensitivity 2: E|z| = 10, Var|z| = d scale^2 = 20, Var z_i = (d + 1) scale^2 = 24. With n = 20000 the
    # standard error of E|z| is 0.032 and of the variance about 0.4; a Laplace length has E|z| = 2, a normal vector another law
    z = draws(gamma_noise, 20000, 5, 2.0)
    lengths = z.norm(dim=1)
    assert float(lengths.mean()) == pytest.approx(10, abs=0.13)
    assert float(lengths.var()) == pytest.approx(20, abs=1.2)
    assert z.mean(0).abs().max() < 0.14  # 4 standard errors of sqrt(24 / n)
    assert float(z.var(0).mean()) == pytest.approx(24, abs=0.8)
    assert stats.kstest(lengths.numpy(), stats.gamma(5, scale=2.0).cdf).pvalue > 1e-3
    cosine = (z[:, 0] / lengths).numpy()  # uniform direction: (1 + cos) / 2 ~ Beta(2, 2) in five dimensions
    assert stats.kstest((1 + cosine) / 2, stats.beta(2, 2).cdf).pvalue > 1e-3


def test_laplace_noise_has_its_distribution():
    z = draws(laplace_noise, 4000, 3, 0.7).numpy()
    assert stats.kstest(z.ravel(), stats.laplace(scale=0.7).cdf).pvalue > 1e-3
    assert np.var(z) == pytest.approx(2 * 0.7**2, rel=0.1)
    assert np.abs(np.corrcoef(z.T) - np.eye(3)).max() < 0.07


@pytest.mark.parametrize(("norm", "order"), [("l2", 2), ("l1", 1)])
def test_the_likelihood_ratio_is_bounded_pointwise_and_the_bound_is_reached(norm, order):
    eps, clip, random = 0.7, 1.3, generator(5)
    scale = sensitivity(clip) / eps
    z = noise(6, scale, random, norm, count=500)
    u = torch.randn(500, 6, generator=random, dtype=torch.float64)
    u = u * (sensitivity(clip) / torch.linalg.vector_norm(u, order, dim=1, keepdim=True))  # the farthest a record can move it
    ratio = log_ratio(z, u, scale, norm)
    assert ratio.abs().max() <= eps * (1 + 1e-12)
    assert float(log_ratio(2 * u, u, scale, norm)[0]) == pytest.approx(eps, rel=1e-12)
    log_density = {"l2": lambda x: -x.norm(dim=-1) / scale, "l1": lambda x: stats.laplace(scale=scale).logpdf(x).sum(-1)}[norm]
    assert np.allclose(ratio, log_density(z) - log_density(z + u), rtol=1e-10, atol=1e-12)


def test_the_released_codes_scalar_laplace_length_breaks_the_bound():
    # its density is exp(-|z| / scale) / |z|^(d-1): close to 0 the ratio is unbounded, here 4 log 11 = 9.6 > eps
    d, eps = 5, 0.7
    scale, z = sensitivity(1.0) / eps, torch.tensor([0.1, 0, 0, 0, 0], dtype=torch.float64)
    u = torch.tensor([1.0, 0, 0, 0, 0], dtype=torch.float64)
    released = float(log_ratio(z, u, scale)) + (d - 1) * math.log(float((z + u).norm() / z.norm()))
    assert released > 9 > eps > float(log_ratio(z, u, scale))


def test_clipping_shortens_only_what_is_too_long():
    g = torch.tensor([3.0, -4.0], dtype=torch.float64)
    assert clipped(g, 5.0) is g
    assert clipped(g, 2.5).tolist() == [1.5, -2.0]
    assert clipped(g, 3.5, "l1").tolist() == [1.5, -2.0]
    assert sensitivity(1.5, 4) == pytest.approx(0.75)
    with pytest.raises(ArgumentError, match="gradient: expected finite"):
        clipped(g / 0, 1.0)


# --- budgets ------------------------------------------------------------------------------------------------------------------


def test_fixed_uses_spend_the_budget_exactly_and_the_next_is_refused():
    ledger = PrivacyLedger(0.7, uses=3)
    costs = [float(ledger.charge([2, 5])[1]) for _ in range(3)]
    assert costs == [0.7 / 3] * 3
    assert (ledger.spent(5), ledger.remaining(5), ledger.used(5)) == (0.7, 0.0, 3)
    assert (ledger.spent(4), ledger.remaining(99)) == (0.0, 0.7)
    with pytest.raises(BudgetError, match=r"record 2 has spent its privacy budget of 0.7 in 3 uses"):
        ledger.charge([4, 2])
    assert ledger.used(4) == 0  # none is charged
    assert not ledger.left([4, 2])
    assert ledger.left([4])


def test_halving_never_spends_all():
    ledger = PrivacyLedger(1.6, spending="halving")
    costs = [float(ledger.charge([0])[0]) for _ in range(30)]
    assert costs[:3] == [0.8, 0.4, 0.2]
    assert ledger.spent(0) == pytest.approx(sum(costs), rel=1e-15)
    assert 0 < ledger.remaining(0) < 2e-9
    for _ in range(970):
        ledger.charge([0])
    with pytest.raises(BudgetError, match="in 1000 uses"):
        ledger.charge([0])


def test_a_ledger_goes_on_where_it_was():
    ledger = PrivacyLedger(2.0, uses=2)
    ledger.charge([0, 3])
    again = PrivacyLedger(2.0, uses=2)
    again.load_state_dict(ledger.state_dict())
    again.charge([3])
    assert (again.used(3), again.used(0), ledger.used(3)) == (2, 1, 1)
    with pytest.raises(ArgumentError, match="state: expected that of a ledger with"):
        PrivacyLedger(2.0, uses=3).load_state_dict(ledger.state_dict())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: PrivacyLedger(0.0), "eps: expected a number > 0"),
        (lambda: PrivacyLedger(-1.0), "eps: expected a number > 0"),
        (lambda: PrivacyLedger(float("nan")), "eps: expected a number > 0"),
        (lambda: PrivacyLedger(1.0, uses=0), "uses: expected a whole number >= 1, got 0"),
        (lambda: PrivacyLedger(1.0, spending="halfing"), "spending: expected 'fixed' or 'halving'"),
        (lambda: PrivacyLedger(1.0).charge([]), "records: expected at least one"),
        (lambda: PrivacyLedger(1.0).charge([1, 1]), "records: one is named twice"),
        (lambda: PrivacyLedger(1.0).charge([-1]), "records: expected at least one number >= 0"),
        (lambda: sensitivity(0.0), "clip: expected a finite number > 0"),
        (lambda: sensitivity(1.0, 0), "batch: expected a whole number >= 1"),
        (lambda: noise(3, 1.0, generator(), "linf"), "norm: expected 'l2' .* or 'l1'"),
        (lambda: gamma_noise(3, 0.0, generator()), "scale: expected a finite number > 0"),
    ],
)
def test_wrong_use_is_refused(call, message):
    with pytest.raises(ArgumentError, match=message):
        call()


# --- the walker ---------------------------------------------------------------------------------------------------------------


def vector(values):
    return nn.Parameter(torch.tensor(values, dtype=torch.float64))


def test_the_limit_case_follows_plain_sgd_bit_for_bit_while_the_ledger_counts():
    a, b = vector([1.7, -0.3]), vector([1.7, -0.3])
    private, plain = PrivateSGD([a], 0.1, eps=INF, clip=INF, weight_decay=0.3), torch.optim.SGD([b], 0.1, weight_decay=0.3)
    for t in range(20):
        for p, optimizer in ((a, private), (b, plain)):
            p.grad = torch.sin(p.detach() * (t + 1))
            if optimizer is private:
                private.use([t % 3])
            optimizer.step()
    assert torch.equal(a, b)
    assert private.ledger.used(0) == 7


def test_an_update_is_as_the_formula_says():
    # without noise the clipped step; the noise is that of the mechanism, times lr once
    p, q = vector([2.0, 1.0, -1.0]), vector([2.0, 1.0, -1.0])
    gradient = torch.tensor([3.0, 0.0, 4.0], dtype=torch.float64)
    quiet = PrivateSGD([p], 0.25, eps=INF, clip=2.0, weight_decay=0.5)
    noisy = PrivateSGD([q], 0.25, eps=1.5, uses=3, clip=2.0, weight_decay=0.5, generator=generator(7))
    for x, optimizer in ((p, quiet), (q, noisy)):
        x.grad = gradient.clone()
        optimizer.use([4])
        optimizer.step()
        assert torch.equal(x.grad, gradient)  # the caller's
    assert p.tolist() == pytest.approx([2 - 0.25 * (1.2 + 1.0), 1 - 0.25 * 0.5, -1 - 0.25 * (1.6 - 0.5)], rel=1e-12)
    z = (p - q).detach() / 0.25  # theta_quiet - theta_noisy = lr z
    random = torch.Generator()
    from sgdscope.directions import private

    seed = int(torch.randint(2**62, (1,), generator=generator(7)))
    random = private(seed, 0)
    assert z.tolist() == pytest.approx(gamma_noise(3, 2 * 2.0 / 0.5, random).tolist(), rel=1e-9)


@pytest.mark.parametrize(("norm", "variance"), [("l2", 4 * 3.0**2), ("l1", 2 * 3.0**2)])
def test_the_noise_of_many_updates_has_the_scale_of_the_budget(norm, variance):
    # d = 3, clip 1.5, eps 2 in 2 uses: scale = 3 / 1; L2: (d + 1) scale^2, L1: 2 scale^2; 1500 updates, standard error about 5 %
    p = vector([0.0, 0.0, 0.0])
    optimizer = PrivateSGD([p], 1.0, eps=2.0, uses=2, norm=norm, clip=1.5, generator=generator(2))
    steps = []
    for t in range(1500):
        before = p.detach().clone()
        p.grad = torch.zeros(3, dtype=torch.float64)
        optimizer.use([t // 2])
        optimizer.step()
        steps.append(p.detach() - before)
    assert float(torch.stack(steps).var()) == pytest.approx(variance, rel=0.2)


def test_private_mean_estimation_is_stationary_as_the_discrete_formula_says():
    # loss h |theta - x|^2 / 2, records of variance c, a fresh one at each update: Var = lr (h^2 c + noise) / (h (2 - lr h)) with
    # noise 2 scale^2, scale = 2 clip / eps (in one dimension the gamma norm is Laplace's). Without the records' share 44 % less,
    # without the noise's 56 %, in continuous time 29 %, with lr twice on the noise 42 %; standard error below 3 %
    h, lr, c, clip, eps, chains, random = 1.25, 0.4, 0.2, 4.0, 20.0, 24, generator(1)
    walks = [(p := vector([0.0]), PrivateSGD([p], lr, eps=eps, uses=1, clip=clip, generator=generator(s))) for s in range(chains)]
    kept = []
    for t in range(320):
        x = torch.empty(chains, dtype=torch.float64).uniform_(-1, 1, generator=random) * math.sqrt(3 * c)
        for (p, optimizer), record in zip(walks, x, strict=True):
            p.grad = h * (p.detach() - record)
            optimizer.use([t])
            optimizer.step()
        if t >= 20:
            kept.append(torch.cat([p.detach() for p, _ in walks]))
    expected = lr * (h * h * c + 2 * (2 * clip / eps) ** 2) / (h * (2 - lr * h))
    assert float(torch.stack(kept).square().mean()) == pytest.approx(expected, rel=0.1)


def test_a_batch_of_bounded_records_has_the_sensitivity_of_its_mean():
    p = vector([0.0])
    optimizer = PrivateSGD([p], 1.0, eps=1.0, uses=1, bounded=True, generator=generator(3))
    moves = []
    for t in range(1500):
        before = p.item()
        p.grad = torch.zeros(1, dtype=torch.float64)
        optimizer.use(range(4 * t, 4 * t + 4))
        optimizer.step()
        moves.append(p.item() - before)
    assert np.var(moves) == pytest.approx(2 * (2 / 4) ** 2, rel=0.2)
    p.grad = torch.tensor([1.01], dtype=torch.float64)
    optimizer.use([9000, 9001])
    with pytest.raises(ArgumentError, match="bounded: the mean gradient is longer than clip = 1"):
        optimizer.step()


def test_a_spent_record_is_refused_or_leaves_theta_where_it_is():
    p = vector([1.0])
    strict, lenient = PrivateSGD([p], 0.1, uses=1), PrivateSGD([p], 0.1, uses=1, spent="skip", weight_decay=0.1)
    for optimizer in (strict, lenient):
        p.grad = torch.ones(1, dtype=torch.float64)
        optimizer.use([0])
        optimizer.step()
    with pytest.raises(BudgetError, match="record 0 has spent"):
        strict.use([0])
    before = p.detach().clone()
    lenient.use([0])
    lenient.step()
    assert torch.equal(p, before)
    with pytest.raises(ArgumentError, match=r"records: expected use\(\[number of the record\]\) before each update"):
        lenient.step()
    with pytest.raises(ArgumentError, match="records: expected one, got 2"):
        lenient.use([1, 2])


def test_the_state_carries_what_was_spent_and_refuses_another_budget():
    p = vector([1.0])
    optimizer = PrivateSGD([p], 0.1, uses=2)
    p.grad = torch.ones(1, dtype=torch.float64)
    optimizer.use([3])
    optimizer.step()
    other = PrivateSGD([vector([1.0])], 0.1, uses=2)
    other.load_state_dict(optimizer.state_dict())
    assert other.ledger.used(3) == 1
    with pytest.raises(ArgumentError, match=r"eps, spending, uses: expected 1, fixed, 3 for the whole walk, got 1, fixed, 2"):
        PrivateSGD([vector([1.0])], 0.1, uses=3).load_state_dict(optimizer.state_dict())
    with pytest.raises(ArgumentError, match="clip: expected a finite number with eps = 1"):
        PrivateSGD([vector([1.0])], 0.1, clip=INF)
    with pytest.raises(ArgumentError, match="spent: expected 'refuse' or 'skip'"):
        PrivateSGD([vector([1.0])], 0.1, spent="ignore")


def described(**phase):
    return {
        "name": "private", "seed": 3, "data": {"dataset": "wine"}, "model": {"name": "mlp", "hidden": []},
        "phases": [{"walker": "private", "lr": 0.05, "batch_size": 1, "updates": 330, "eps": 40.0} | phase],
        "record": {"mode": "replay", "keyframes": 100},
    }  # fmt: skip


def test_an_experiment_charges_each_example_and_its_run_can_be_replayed(tmp_path):
    path = run(Experiment(**described(uses=3)), tmp_path / "a")
    walk = open_trajectory(path)
    assert walk.settings["walker"] == "private"
    assert torch.isfinite(walk.theta(173)).all()  # rebuilt from a key frame and held against its hash
    with pytest.raises(BudgetError, match="has spent its privacy budget of 40 in 2 uses"):
        run(Experiment(**described(uses=2)), tmp_path / "b")  # 142 examples: the third epoch starts at update 284
    with pytest.raises(ArgumentError, match="records: expected one, got 2"):
        run(Experiment(**described(batch_size=2)), tmp_path / "c")
    skipped = open_trajectory(run(Experiment(**described(uses=2, spent="skip")), tmp_path / "d"))
    assert torch.equal(skipped.theta(284), skipped.theta(330))


def test_halving_can_be_asked_for_in_an_experiment():
    from sgdscope.experiment import Experiment

    phase = {"walker": "private", "lr": 0.1, "batch_size": 1, "updates": 3, "eps": 2.0, "spending": "halving"}
    described = Experiment(data={"dataset": "digits"}, model={"name": "mlp"}, phases=[phase])
    assert described.phases[0].options["spending"] == "halving"
