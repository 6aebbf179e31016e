"""The quantity noise and its covariance against sums over all examples, enumerations and cases by hand, in float64."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats
from torch import nn

from sgdscope import landscapes
from sgdscope.covariance import (
    Covariance,
    DrawnBatches,
    alignment,
    anderson_darling,
    fieller,
    hill,
    isotropic_test,
    kurtosis,
    lag_asymmetry,
    power_law,
    power_law_test,
    stream,
    unbiased_square,
)
from sgdscope.covariance.estimates import curved_scale
from sgdscope.covariance.tails import _bartlett
from sgdscope.directions import private
from sgdscope.errors import ArgumentError, NotAvailableError, Outcome, SurfaceError
from sgdscope.measure import live, measure
from sgdscope.quantities.noise import PURPOSES
from sgdscope.recorder import Recorder, every
from sgdscope.surface import LossSurface
from test_measure import feed

F64 = torch.float64
HESSIAN = torch.tensor([[2.6, 0.7, 0.0], [0.7, 1.1, 0.2], [0.0, 0.2, 0.4]], dtype=F64)
NOISE = torch.tensor([[1.3, 0.2, -0.1], [0.2, 0.5, 0.15], [-0.1, 0.15, 0.8]], dtype=F64)
N, B, LR, MOMENTUM = 40, 7, 0.13, 0.4


SIGNS = [np.outer(s, s) for s in ([1, 1, 1], [-1, 1, 1], [1, -1, 1], [1, 1, -1])]


def quadratic(n=N, noise=NOISE, hessian=HESSIAN):
    generator = torch.Generator().manual_seed(4)
    return landscapes.NoisyQuadratic.with_noise(
        hessian, noise, examples=n, generator=generator, centre=torch.tensor([0.3, -1.0, 2.0], dtype=F64)
    )


def walked(surface, updates=4, batch_size=B, **options):
    start = torch.tensor([1.5, 0.4, -0.7], dtype=F64)
    walk = landscapes.walk(surface, lr=LR, updates=updates, start=start, batch_size=batch_size, momentum=MOMENTUM, **options)
    return walk, surface


def found(pair, **options):
    return measure(*pair, ["noise"], noise=options)["noise"].to_dataset()


# --- on a quadratic whose covariance is known -------------------------------------------------------------------------------


def test_the_covariance_is_the_known_one():
    pair = walked(quadratic())
    got = found(pair, k=3, tolerance=1e-9)
    values, vectors = torch.linalg.eigh(HESSIAN)
    e, top = vectors.flip(1), values.flip(0).numpy()
    in_basis = (e.T @ NOISE @ e).numpy()
    assert float(got["trace"][0]) == pytest.approx(2.6, rel=1e-9)
    assert not float(got["trace_stderr"][0])
    assert float(got["covariance_frobenius"][0]) == pytest.approx(float(NOISE.norm()), rel=1e-9)
    np.testing.assert_allclose(got["covariance_eigenvalue"][0], torch.linalg.eigvalsh(NOISE).flip(0), rtol=1e-9)
    np.testing.assert_allclose(got["curvature_eigenvalue"][0], top, rtol=1e-9)
    np.testing.assert_allclose(np.abs(got["element"][0]), np.abs(in_basis), atol=1e-9)
    assert float(got["slope"][0]) == pytest.approx(np.diag(in_basis) @ top / (top @ top), rel=1e-9)
    both = np.concatenate([in_basis * turn for turn in SIGNS]).ravel(), np.concatenate([np.diag(top)] * 4).ravel()
    assert float(got["correlation"][0]) == pytest.approx(np.corrcoef(*both)[0, 1], rel=1e-9)  # over all signs of e_i
    assert float(got["diagonal_correlation"][0]) == pytest.approx(np.corrcoef(np.diag(in_basis), top)[0, 1], rel=1e-9)
    off = 1 - (np.diag(in_basis) ** 2).sum() / (in_basis**2).sum()
    assert float(got["off_diagonal"][0]) == pytest.approx(off, rel=1e-9)
    assert off > 0.02
    np.testing.assert_allclose(got["noise_share"][0], np.cumsum(np.diag(in_basis)) / 2.6, rtol=1e-9)
    product = float((HESSIAN @ NOISE).trace())
    assert float(got["hessian_trace"][0]) == pytest.approx(4.1, rel=1e-9)
    assert float(got["product_trace"][0]) == pytest.approx(product, rel=1e-9)
    assert float(got["matrix_cosine"][0]) == pytest.approx(product / float(HESSIAN.norm() * NOISE.norm()), rel=1e-9)
    assert float(got["trace_ratio"][0]) == pytest.approx(2.6 / 4.1, rel=1e-9)
    g = pair[1].value_and_grad(pair[0].theta(0))[1]
    assert float(got["gradient_square"][0]) == pytest.approx(float(g @ g), rel=1e-12)
    assert float(got["curved_noise_scale"][0]) == pytest.approx(product / float(g @ HESSIAN @ g), rel=1e-9)
    np.testing.assert_allclose(got["signal_share"][0], np.cumsum(((e.T @ g) ** 2).numpy()) / float(g @ g), rtol=1e-9)


def test_batches_scales_temperature_and_implicit_terms():
    pair = walked(quadratic())
    got = found(pair, k=3)
    g = float(pair[1].value_and_grad(pair[0].theta(0))[1].square().sum())
    per_batch = np.array([2.6 / B, 2.6 * (N - B) / (B * (N - 1))])
    np.testing.assert_allclose(got["batch_trace"][0], per_batch, rtol=1e-9)
    exact = [float(pair[1].gradient_covariance(pair[0].theta(0), batch_size=B, replacement=r).trace()) for r in (True, False)]
    np.testing.assert_allclose(got["batch_trace"][0], exact, rtol=1e-9)
    np.testing.assert_allclose(got["noise_to_signal"][0], per_batch / g, rtol=1e-9)
    np.testing.assert_allclose(got["signal_to_noise"][0], g / per_batch, rtol=1e-9)
    assert float(got["noise_scale"][0]) == pytest.approx(2.6 / g, rel=1e-9)
    unbiased = (N / (N - 1) * 2.6) / (g - 2.6 / (N - 1))
    assert float(got["population_noise_scale"][0]) == pytest.approx(unbiased, rel=1e-9)
    assert abs(unbiased * g / 2.6 - 1) > 0.02
    assert float(got["learning_ratio"][0]) == pytest.approx(LR / (B * 0.6), rel=1e-12)
    assert float(got["temperature"][0]) == pytest.approx(LR / 0.6 * (2.6 / 3) / (2 * B), rel=1e-9)
    np.testing.assert_allclose(got["direction_temperature"][0], LR / 0.6 / (2 * B) * np.diag(got["element"][0]), rtol=1e-9)
    assert float(got["direction_temperature"][0].mean()) == pytest.approx(float(got["temperature"][0]), rel=1e-9)
    assert float(got["regulariser_gradient"][0]) == pytest.approx(LR * g / 4, rel=1e-9)
    assert float(got["regulariser_noise"][0]) == pytest.approx(LR / 4 * per_batch[1], rel=1e-9)
    other = found(pair, batch_size=10, hessian=False)
    assert float(other["batch_trace"][0, 0]) == pytest.approx(0.26, rel=1e-9)
    assert (other["slope_outcome"] == Outcome.not_applicable).all()


def test_the_noise_term_is_the_mean_over_the_batches_of_an_epoch():
    surface = quadratic(n=6)
    theta = torch.tensor([1.5, 0.4, -0.7], dtype=F64)
    rows = surface.per_example_grads(theta)
    g, total, count = rows.mean(0), 0.0, 0
    for order in itertools.permutations(range(6)):
        halves = rows[list(order)].reshape(2, 3, 3).mean(1)
        total, count = total + float((halves - g).square().sum()) / 2, count + 1
    got = found(walked(surface, batch_size=3), hessian=False)
    assert float(got["regulariser_noise"][0]) == pytest.approx(LR / 4 * total / count, rel=1e-9)


def test_the_factor_without_replacement_is_that_of_all_batches():
    values = np.random.default_rng(2).normal(size=12)
    means = [values[list(rows)].mean() for rows in itertools.combinations(range(12), 5)]
    factor = np.var(means) / np.var(values)
    assert factor == pytest.approx(0.1272727, abs=1e-7)
    surface = quadratic(n=12)
    got = found(walked(surface, batch_size=5), hessian=False)
    assert float(got["batch_trace"][0, 1]) / 2.6 == pytest.approx(factor, rel=1e-9)


def test_some_of_the_examples_give_the_truth_within_their_errors():
    surface = quadratic(n=3000)
    pair = walked(surface)
    misses = {name: [] for name in ("trace", "slope", "correlation", "product_trace", "off_diagonal")}
    whole = found(pair, k=3, tolerance=1e-9, examples=3000)
    assert int(whole["examples"][0]) == 3000
    for seed in range(24):
        got = found(pair, k=3, tolerance=1e-9, examples=300, seed=seed)
        assert int(got["examples"][0]) == 300
        for name, list_ in misses.items():
            list_.append((float(got[name][0]) - float(whole[name][0])) / float(got[f"{name}_stderr"][0]))
    for name, z in misses.items():
        if name != "off_diagonal":  # a share of squares, biased from few examples
            assert abs(np.mean(z)) < 0.8, name  # 3.9 standard errors of 24
        assert 0.5 < np.std(z) < 1.7, name
    assert np.mean(misses["off_diagonal"]) < 3


def test_the_frobenius_norm_is_unbiased_where_the_plain_one_is_not():
    rows = torch.randn(400, 30, dtype=F64, generator=torch.Generator().manual_seed(3))
    rows -= rows.mean(0)
    truth = float((rows.T @ rows / 400).square().sum())
    estimates, plain = [], []
    for seed in range(200):
        some = rows[torch.randperm(400, generator=torch.Generator().manual_seed(seed))[:40]]
        estimates.append(Covariance(some, population=400).frobenius()[0] ** 2)
        plain.append(float((some.T @ some / 40).square().sum()))
    error = np.std(estimates) / np.sqrt(200)
    assert abs(np.mean(estimates) - truth) < 4 * error
    assert np.mean(plain) - truth > 20 * error
    whole, error = Covariance(rows, population=400).frobenius()
    assert (whole**2, error) == (pytest.approx(truth, rel=1e-12), 0.0)


def spread_rows(n, p, seed=8):
    """Gradients with heavy tails, of unequal variances and a mean that is not zero."""
    g = torch.Generator().manual_seed(seed)
    rows = torch.randn(n, p, dtype=F64, generator=g) * torch.rand(n, 1, dtype=F64, generator=g) * 2
    return rows * torch.linspace(1.5, 0.5, p, dtype=F64) + 0.6


def of_batches(rows, picks, size):
    """sqrt(B) (g_b - mean) as they are gathered from recorded batches."""
    means = torch.stack([rows[torch.as_tensor(pick)].mean(0) for pick in picks])
    return Covariance((means - means.mean(0)) * size**0.5, mean_known=False)


def test_the_square_of_few_batches_is_the_mean_over_distinct_quadruples():
    x = torch.randn(6, 3, dtype=F64, generator=torch.Generator().manual_seed(2)) + 1.7
    quads = [(x[i] - x[j]) @ (x[k] - x[m]) for i, j, k, m in itertools.permutations(range(6), 4)]
    value, parts = Covariance(x - x.mean(0), mean_known=False).square
    assert value == pytest.approx(float(np.mean(np.square(quads))) / 4, rel=1e-12)
    assert unbiased_square((x @ x.T).numpy())[0] == pytest.approx(value, rel=1e-12)  # whatever was taken off
    without = unbiased_square((x[1:] @ x[1:].T).numpy())[0]
    assert parts[0] == pytest.approx(6 * value - 5 * without, rel=1e-10)
    known = Covariance(x - 1.7, population=9)  # of a known mean: jackknife values by leaving out
    fewer = Covariance(x[1:] - 1.7, population=9)
    assert known.square[1][0] == pytest.approx(6 * known.square[0] - 5 * fewer.square[0], rel=1e-12)
    assert np.isnan(unbiased_square(np.eye(3))[0])
    assert np.isnan(unbiased_square(np.eye(4))[1]).all()


def test_the_norm_from_batches_drawn_with_replacement_is_that_of_the_covariance():
    rows, size, m = spread_rows(90, 40), 5, 8
    centred = rows - rows.mean(0)
    truth = float((centred.T @ centred / 90).square().sum())
    generator, found, plain = torch.Generator().manual_seed(1), [], []
    for _ in range(3000):
        c = of_batches(rows, torch.randint(90, (m, size), generator=generator), size)
        found.append(c.square[0])
        products = (c.deviations @ c.deviations.T).numpy()
        plain.append((m / (m - 1)) ** 2 * (np.square(products).sum() - np.square(np.diag(products)).sum()) / (m * (m - 1)))
    error = np.std(found) / np.sqrt(3000)
    assert error < 0.02 * truth
    assert abs(np.mean(found) - truth) < 4 * error
    assert np.mean(plain) - truth > 20 * error  # products of different batches about their own mean, as it was


def test_the_norm_from_batches_of_one_epoch_is_that_of_the_population():
    rows, size = spread_rows(12, 4), 2  # 6 batches an epoch
    wanted = unbiased_square((rows @ rows.T).numpy())[0]
    centred = rows - rows.mean(0)
    truth = float((centred.T @ centred / 12).square().sum())
    generator, found = torch.Generator().manual_seed(6), []
    for _ in range(4000):
        found.append(of_batches(rows, torch.randperm(12, generator=generator).reshape(6, size), size).square[0])
    error = np.std(found) / np.sqrt(4000)
    assert abs(np.mean(found) - wanted) < 4 * error
    assert abs(truth - wanted) > 8 * error


def test_the_error_of_the_norm_and_of_the_cosine_cover_in_95_of_100():
    n, m, p = 6000, 400, 4
    rows = spread_rows(n, p)
    deviations = rows - rows.mean(0)
    a = torch.diag(torch.tensor([0.3, 0.6, 1.1, 2.0], dtype=F64))  # cosine 0.41
    whole, size = Covariance(deviations, population=n), (float(a.norm()), 0.0)
    forms = ((deviations @ a) * deviations).sum(1).numpy()
    product, norm = float(forms.mean()), whole.frobenius()[0]
    truth, none = whole.cosine((product, 0.0), forms, size)
    assert (truth, none) == (pytest.approx(product / (norm * size[0]), rel=1e-12), 0.0)
    generator, z, apart, norms = torch.Generator().manual_seed(12), [], [], []
    for _ in range(1000):
        chosen = torch.randperm(n, generator=generator)[:m]
        few, own = Covariance(deviations[chosen], population=n), forms[chosen.numpy()]
        own_norm, norm_error = few.frobenius()
        value, error = few.mean(own)
        ratio, joint = few.cosine((float(value), 0.0), own, size)
        z.append((ratio - truth) / joint)
        apart.append((ratio - truth) / (float(error) / (own_norm * size[0])))  # of the numerator alone, as it was
        norms.append((own_norm - norm) / norm_error)
    covered = [float(np.mean(np.abs(v) < 1.96)) for v in (z, norms, apart)]
    assert 0.92 < covered[0] < 0.98
    assert 0.92 < covered[1] < 0.98
    assert covered[2] > 0.985


def test_errors_that_do_not_come_from_the_examples_are_added_to_the_cosine():
    rows = spread_rows(30, 4)
    c = Covariance(rows - rows.mean(0), population=30)
    forms = np.arange(30.0)
    value, error = c.cosine((3.0, 0.6), forms, (5.0, 0.25))
    assert value == pytest.approx(3.0 / (5.0 * c.frobenius()[0]))
    assert error == pytest.approx(value * np.hypot(0.2, 0.05))
    assert np.isnan(c.cosine((3.0, 0.6), forms, (0.0, 0.25))).all()


def test_a_product_trace_by_signs_is_unbiased_and_says_its_error():
    g = torch.Generator().manual_seed(3)
    rows = torch.randn(25, 12, dtype=F64, generator=g) * torch.linspace(3, 0.2, 12, dtype=F64)
    a = torch.randn(12, 12, dtype=F64, generator=g)
    a = a + a.T + 3 * torch.eye(12)
    truth = float((a @ rows.T @ rows).trace()) / 25
    c = Covariance(rows, population=25)
    z = []
    for seed in range(60):
        value, error = c.product_trace(lambda v: a @ v, pairs=2, probes=12, generator=torch.Generator().manual_seed(seed))
        z.append((value - truth) / error)
    assert abs(np.mean(z)) < 0.55  # 4 standard errors
    assert 0.7 < np.std(z) < 1.5
    value, error = c.product_trace(lambda v: a @ v, pairs=12, probes=2, generator=torch.Generator().manual_seed(1))
    assert value == pytest.approx(truth, rel=1e-12)
    assert not error


# --- products -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F64, torch.float32])
def test_products_are_those_of_the_covariance_of_all_batches(dtype):
    generator = torch.Generator().manual_seed(8)
    rows = (torch.randn(6, 4, dtype=F64, generator=generator) * torch.tensor([3.0, 1.0, 0.3, 2.0], dtype=F64) - 0.4).to(dtype)
    c, vectors = Covariance(rows - rows.mean(0), population=6), torch.randn(4, 3, dtype=F64, generator=generator)
    for batches, replacement in ((itertools.product(range(6), repeat=3), True), (itertools.combinations(range(6), 3), False)):
        means = torch.stack([rows[list(chosen)].double().mean(0) for chosen in batches])
        dense = torch.cov(means.T, correction=0)
        got = c.product(vectors, batch_size=3, replacement=replacement)
        torch.testing.assert_close(got, dense @ vectors, rtol=1e-12 if dtype == F64 else 1e-6, atol=0)
        torch.testing.assert_close(c.product(vectors[:, 1], batch_size=3, replacement=replacement), got[:, 1])
    estimated = Covariance(rows - rows.mean(0), mean_known=False).product(vectors[:, 0])
    torch.testing.assert_close(estimated, torch.cov(rows.double().T) @ vectors[:, 0], rtol=1e-6, atol=0)
    torch.testing.assert_close(
        c.product(vectors), estimated.new_tensor(5 / 6) * Covariance(c.deviations, mean_known=False).product(vectors)
    )


def test_products_over_blocks_of_rows_are_those_of_all(monkeypatch):
    rows = torch.randn(23, 5, dtype=F64, generator=torch.Generator().manual_seed(18))
    monkeypatch.setattr("sgdscope.covariance.matrix.BLOCK", 20)
    vector = torch.linspace(-0.6, 1.7, 5, dtype=F64)
    torch.testing.assert_close(Covariance(rows).product(vector), rows.T @ rows @ vector / 23, rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("vectors", "options", "message"),
    [
        (torch.ones(4), {}, r"vectors: expected \[3\] or \[3, k\], as the deviations, got shape \(4,\)"),
        (torch.ones(3, 1, 1), {}, "vectors: expected"),
        (torch.ones(3), {"batch_size": 0}, "batch_size: expected an integer >= 1, got 0"),
        (torch.ones(3), {"batch_size": 7, "replacement": False}, "batch_size: .* at most the 6 examples, got 7"),
    ],
)
def test_products_refuse_what_does_not_fit(vectors, options, message):
    with pytest.raises(ArgumentError, match=message):
        Covariance(torch.eye(3, dtype=F64).repeat(2, 1), population=6).product(vectors, **options)


# --- two batch sizes -------------------------------------------------------------------------------------------------------


def test_two_batch_sizes_by_hand():
    rows = torch.randn(9, 4, dtype=F64, generator=torch.Generator().manual_seed(5)) + 0.7
    g = rows.mean(0)
    c = Covariance(rows - g, population=9)
    drawn = DrawnBatches(c, np.kron(np.eye(3), np.full((1, 3), 1 / 3)), 3)
    small = np.mean([float(rows[i : i + 3].mean(0).square().sum()) for i in (0, 3, 6)])
    big = float(g.square().sum())
    traces, squares = drawn.two_sizes(g)
    assert squares.mean() == pytest.approx((9 * big - 3 * small) / 6, rel=1e-12)
    assert traces.mean() == pytest.approx((small - big) / (1 / 3 - 1 / 9), rel=1e-12)
    means = [rows[i : i + 3].mean(0) for i in (0, 3, 6)]
    without = float(means[1] @ means[2])  # what is left without the first batch
    assert squares[0] == pytest.approx(3 * squares.mean() - 2 * without, rel=1e-12)
    estimated = drawn.two_size_estimates(g)
    assert estimated["noise_scale"][0] == pytest.approx(traces.mean() / squares.mean(), rel=1e-12)
    assert DrawnBatches(c, drawn.weights[:2], 3).two_size_estimates(g) == {}


def test_single_examples_need_no_products_of_pairs():
    rows = torch.randn(11, 4, dtype=F64, generator=torch.Generator().manual_seed(6)) + 0.7
    g = rows.mean(0)
    c = Covariance((rows - g)[:7], population=11)
    got, all_pairs = (d.two_sizes(g) for d in (DrawnBatches.single(c), DrawnBatches(c, np.eye(7), 1)))
    np.testing.assert_allclose(got, all_pairs, rtol=1e-10)
    products = (rows[:7] @ rows[:7].T).numpy()
    assert got[1].mean() == pytest.approx((products.sum() - products.trace()) / 42, rel=1e-12)
    assert got[1][2] == pytest.approx(
        7 * got[1].mean() - 6 * np.delete(np.delete(products, 2, 0), 2, 1)[~np.eye(6, dtype=bool)].mean()
    )
    alone = Covariance(c.deviations.clone(), population=11)
    DrawnBatches.single(alone).two_size_estimates(g)
    assert "spectrum" not in vars(alone)


def _classifier():
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3)).double()
    data = torch.randn(30, 5, dtype=F64), torch.randint(3, (30,))
    return LossSurface(model, lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1]), data, weight_decay=0.05)


@pytest.mark.parametrize("surface", [_classifier(), quadratic(n=30)], ids=["network", "landscape"])
@pytest.mark.parametrize("few", [None, torch.tensor([3, 4, 9, 11, 12, 20, 29])])
def test_what_is_streamed_is_what_kept_gradients_give(surface, few):
    theta = surface.theta() + 0.4
    g = surface.value_and_grad(theta)[1]
    kept, got = Covariance(surface.per_example_grads(theta, few) - g, population=30), stream(surface, theta, g, few)
    assert got.trace() == pytest.approx(kept.trace(), rel=1e-10, abs=1e-30)
    assert (got.trace()[1] > 0) == (few is not None)
    pairs, dense = got.population_estimates(), DrawnBatches(kept, np.eye(kept.count), 1).two_size_estimates(g)
    for name, values in dense.items():
        assert pairs[name] == pytest.approx(values, rel=1e-10), name
    assert stream(surface, theta, g, torch.tensor([4, 9])).population_estimates() == {}


def test_streamed_noise_does_not_cancel_beside_a_large_gradient():
    surface = quadratic(n=30)
    theta = torch.tensor([3e6, -2e6, 4e6], dtype=F64)
    g = surface.value_and_grad(theta)[1]
    assert float(g @ g) > 1e13
    assert stream(surface, theta, g).trace()[0] == pytest.approx(2.6, rel=1e-8)  # a difference of squares is off by 1e-3
    assert stream(surface, theta * torch.inf, g) is None


def test_recorded_batches_are_the_unit_matrix_over_the_root_of_their_size():
    rows = torch.randn(9, 4, dtype=F64, generator=torch.Generator().manual_seed(16))
    c = Covariance((rows - rows.mean(0)) * 5**0.5, mean_known=False)
    got, dense = DrawnBatches.recorded(c, 5), DrawnBatches(c, np.eye(9) / 5**0.5, 5)
    np.testing.assert_allclose(got.lengths(), dense.lengths(), rtol=1e-10)
    np.testing.assert_allclose(got.vectors(8), dense.vectors(8), rtol=1e-12)
    np.testing.assert_allclose(got.vectors(8), (rows - rows.mean(0))[:8], rtol=1e-12)
    np.testing.assert_allclose(got.two_sizes(rows.mean(0)), dense.two_sizes(rows.mean(0)), rtol=1e-10)
    assert got.count == 9


def test_the_curved_scale_of_pairs_by_hand():
    rows = torch.randn(9, 3, dtype=F64, generator=torch.Generator().manual_seed(25)) + torch.tensor([0.9, -0.4, 1.7], dtype=F64)
    g = rows.mean(0)
    for m in (9, 6):
        c = Covariance((rows - g)[:m], population=9)
        forms = ((c.deviations @ HESSIAN) * c.deviations).sum(1).numpy()
        got = curved_scale(c, lambda v: HESSIAN @ v, g, forms=forms, product=(float(forms.mean()), 0.0))
        products = (rows[:m] @ HESSIAN @ rows[:m].T).numpy()
        between = products[~np.eye(m, dtype=bool)].mean()
        ratio = (np.diag(products).mean() - between) / between
        assert got["population_curved_noise_scale"] == pytest.approx(ratio, rel=1e-12)
        shifted = curved_scale(c, lambda v: HESSIAN @ v, g, forms=forms - 7.0, product=(float(forms.mean()), 0.0))
        assert shifted == pytest.approx(got, rel=1e-9)  # the mean is the one given
    none = Covariance((rows - g)[:2], population=9)
    assert curved_scale(none, lambda v: HESSIAN @ v, g, forms=forms[:2], product=(1.0, 0.0)) == {}


@pytest.mark.parametrize("probed", [0.0, 0.6])
def test_the_interval_of_the_curved_scale_covers_in_95_of_100(probed):
    m, generator = 150, torch.Generator().manual_seed(31)
    mean, root = torch.tensor([0.32, -0.5, 0.84], dtype=F64), torch.linalg.cholesky(NOISE)
    truth = float((HESSIAN @ NOISE).trace() / (mean @ HESSIAN @ mean))
    inside, alone, points = [], [], []
    for _ in range(1500):
        rows = torch.randn(m, 3, dtype=F64, generator=generator) @ root.T + mean
        g = rows.mean(0)
        c = Covariance(rows - g, population=m)
        forms = ((c.deviations @ HESSIAN) * c.deviations).sum(1).numpy()
        off = probed * float(torch.randn((), dtype=F64, generator=generator))
        got = curved_scale(c, lambda v: HESSIAN @ v, g, forms=forms, product=(float(forms.mean()) + off, probed))
        value, error, low, high = (got[f"population_curved_noise_scale{end}"] for end in ("", "_stderr", "_low", "_high"))
        inside.append(low < truth < high)
        points.append(abs(value - truth) < 1.96 * error)
        bend = float(g @ HESSIAN @ g)  # as if it were known
        alone.append(abs((forms.mean() + off) / bend - truth) < 1.96 * np.hypot(forms.std() / m**0.5, probed) / bend)
        assert np.isfinite([low, high]).all()  # an interval without ends covers everything
    assert 0.92 < np.mean(inside) < 0.98  # five standard deviations of the mean
    assert 0.90 < np.mean(points) < 0.98
    assert np.mean(alone) < 0.85


def test_the_curved_scale_is_in_the_measurement():
    surface = quadratic()
    got = found(walked(surface), k=3, tolerance=1e-9)
    theta = walked(surface)[0].theta(0)
    g = surface.value_and_grad(theta)[1]
    bias = float((HESSIAN @ NOISE).trace()) / (N - 1)
    truth = N * bias / (float(g @ HESSIAN @ g) - bias)
    name = "population_curved_noise_scale"
    assert float(got[name][0]) == pytest.approx(truth, rel=1e-9)
    assert float(got[f"{name}_low"][0]) < truth < float(got[f"{name}_high"][0])
    assert int(got[f"{name}_outcome"][0]) == Outcome.ok
    lost = found(walked(quadratic(noise=900 * NOISE)), k=3)
    assert int(lost[f"{name}_outcome"][0]) == Outcome.not_converged


def test_the_estimators_from_pairs_cover_the_truth():
    surface = quadratic(n=400)
    pair = walked(surface)
    g = surface.value_and_grad(pair[0].theta(0))[1]
    truth = 2.6 / float(g @ g)
    inside = []
    for seed in range(40):
        got = found(pair, hessian=False, examples=400, batches=30, seed=seed)
        assert int(got["two_size_noise_scale_outcome"][0]) == Outcome.ok
        inside.append(float(got["two_size_noise_scale_low"][0]) < truth < float(got["two_size_noise_scale_high"][0]))
    assert 32 <= sum(inside) <= 40  # 38 expected; below 32 once in 4000
    lost = found(walked(quadratic(n=400, noise=400 * NOISE)), hessian=False, batches=10)
    assert int(lost["two_size_noise_scale_outcome"][0]) == Outcome.not_converged
    assert not np.isfinite(float(lost["two_size_noise_scale_high"][0]))


def test_batches_of_few_examples_have_the_mean_and_covariance_of_all():
    generator, m, n = torch.Generator().manual_seed(11), 8, 40
    rows = torch.randn(n, 3, dtype=F64, generator=generator) + 0.05
    g = rows.mean(0)
    few = Covariance((rows - g)[:m], population=n)
    drawn = DrawnBatches.draw(few, count=4000, size=5, generator=generator)
    noises = torch.from_numpy(drawn.weights) @ few.deviations
    spread = (rows - g).square().sum() / n * (5 * 4000) ** -0.5
    assert float(noises.mean(0).norm()) < 3 * float(spread.sqrt()) / 5**0.5  # not the mean of the eight, which is 0.6 away
    centred = few.deviations - few.deviations.mean(0)
    own = float(centred.square().sum()) / (m - 1) * (n - 1) / n  # unbiased for Tr C
    assert float(noises.square().sum()) / 4000 * 5 == pytest.approx(own, rel=0.06)
    trace, square = (drawn.two_size_estimates(g)[name] for name in ("trace", "gradient_square"))
    assert trace[0] == pytest.approx(own, abs=4 * trace[1])
    assert square[0] == pytest.approx(float(g @ g), abs=4 * square[1])
    assert square[1] < 0.02 < float(few.deviations.mean(0).square().sum())


def test_standard_errors_are_the_scatter_of_draws_without_replacement():
    generator = torch.Generator().manual_seed(21)
    rows = torch.randn(60, 4, dtype=F64, generator=generator) * torch.rand(60, 1, dtype=F64, generator=generator) * 3
    deviations, axes = rows - rows.mean(0), torch.eye(4, dtype=F64)[:, :2]
    found = []
    for _ in range(600):
        few = Covariance(deviations[torch.randperm(60, generator=generator)[:36]], population=60)
        shares, errors = few.shares(few.project(axes))
        found.append([*few.trace(), shares[0], errors[0]])
    trace, trace_error, share, share_error = np.array(found).T
    assert trace_error.mean() == pytest.approx(trace.std(), rel=0.12)  # sqrt(1 - (m / N)^2) in place of 1 - m / N: 26 % more
    assert share_error.mean() == pytest.approx(share.std(), rel=0.12)


def test_the_wishart_matrix_of_the_bootstrap_has_its_mean_and_determinant():
    generator = np.random.default_rng(5)
    factors = [_bartlett(generator, 3, 6) for _ in range(6000)]
    assert np.mean([(f @ f.T).trace() for f in factors]) == pytest.approx(18, rel=0.02)
    assert np.mean([np.prod(np.diag(f)) ** 2 for f in factors]) == pytest.approx(6 * 5 * 4, rel=0.1)


def test_the_empirical_fisher_of_few_examples_is_theirs():
    pair = walked(quadratic())
    got = found(pair, examples=10, k=2)
    theta = pair[0].theta(0)
    chosen = torch.randperm(N, generator=private(0, PURPOSES["examples"]))[:10]
    rows = pair[1].per_example_grads(theta, chosen)
    assert float(got["empirical_fisher_trace"][0]) == pytest.approx(float(rows.square().sum()) / 10, rel=1e-9)


def test_fieller_by_hand():
    a, b = np.array([1.0, 2.0, 4.0, 3.0]), np.array([1.0, 1.5, 2.5, 1.0])
    ratio, low, high = fieller(a, b)
    assert ratio == pytest.approx(2.5 / 1.5)
    for end in (low, high):
        rest = a - end * b
        assert abs(rest.mean()) / (rest.std(ddof=1) / 2) == pytest.approx(3.182446, rel=1e-5)  # t of 3 degrees, 97.5 %
    assert low < ratio < high
    wide = np.array([-1.0, 1.5, 2.5, -2.0])  # its mean, 0.25, is not separated from zero: all r but those between two ends
    assert fieller(a, wide)[1:] == (-np.inf, np.inf)
    ratio, low, high = fieller(a, wide, positive=True)
    assert ratio == pytest.approx(10.0)
    assert high == np.inf
    rest = a - low * wide
    assert 0 < low < ratio
    assert rest.mean() / (rest.std(ddof=1) / 2) == pytest.approx(3.182446, rel=1e-5)
    assert fieller(a, -wide, positive=True)[0] == pytest.approx(-10.0)
    opposite = fieller(a, -wide, positive=True)[1]  # the same ends with the other sign: the other one is positive
    assert (a + opposite * wide).mean() / ((a + opposite * wide).std(ddof=1) / 2) == pytest.approx(3.182446, rel=1e-5)
    assert fieller(wide, wide[::-1] - 0.3, positive=True)[1:] == (0.0, np.inf)
    with pytest.raises(ArgumentError, match="expected two vectors of one length"):
        fieller(a, b[:2])


# --- spectra, tails, currents ----------------------------------------------------------------------------------------------


def gaussian_rows(spectrum, n, seed):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(n, len(spectrum), dtype=F64, generator=generator) * torch.as_tensor(spectrum, dtype=F64).sqrt()


@pytest.mark.parametrize("exponent", [0.7, 1.6])
def test_a_power_law_is_found_and_kept(exponent):
    rows = gaussian_rows(2.5 * np.arange(1.0, 61.0) ** -exponent, 1500, seed=1)
    values = Covariance(rows).spectrum[0]
    fit = power_law(values, (1, 40))
    assert fit.exponent == pytest.approx(exponent, abs=0.05)
    assert fit.prefactor == pytest.approx(2.5, rel=0.1)
    p, least = power_law_test(values, fit, examples=1500, dimensions=60, resamples=99, seed=3)
    assert p > 0.05
    assert least == pytest.approx(0.01)


@pytest.mark.parametrize(("dimensions", "n"), [(60, 1500), (200, 1500), (900, 120)])
def test_isotropic_noise_is_no_power_law(dimensions, n):
    def p_of(spectrum, seed):
        values = Covariance(gaussian_rows(spectrum, n, seed=seed)).spectrum[0]
        return isotropic_test(power_law(values, (1, 40)), examples=n, dimensions=dimensions, resamples=19, seed=3)[0]

    assert np.mean([p_of(np.full(dimensions, 0.3), seed) > 0.05 for seed in range(6)]) > 0.6
    assert p_of(0.3 * np.arange(1.0, dimensions + 1) ** -0.7, 1) == pytest.approx(0.05)


def test_a_broken_power_law_is_refused():
    broken = np.arange(1.0, 61.0) ** -0.4
    broken[15:] *= (np.arange(16.0, 61.0) / 16) ** -2.0
    values = Covariance(gaussian_rows(broken, 1500, seed=1)).spectrum[0]
    assert power_law_test(values, power_law(values, (1, 40)), examples=1500, dimensions=60, resamples=99, seed=3)[0] <= 0.02


def test_the_test_of_the_power_law_keeps_its_level():
    refused = 0
    for seed in range(40):
        values = Covariance(gaussian_rows(np.arange(1.0, 31.0) ** -1.2, 300, seed=seed)).spectrum[0]
        p, _ = power_law_test(values, power_law(values, (1, 20)), examples=300, dimensions=30, resamples=39, seed=seed)
        refused += p <= 0.1
    assert refused <= 11  # 4 expected; more once in 1500


def test_hill_kurtosis_and_anderson_darling():
    rng = np.random.default_rng(1)
    pareto = rng.pareto(2.5, 20000) + 1
    index, error = hill(pareto, 0.1)
    assert abs(index - 2.5) < 4 * error
    assert error == pytest.approx(index / np.sqrt(2000), rel=1e-12)
    assert hill(rng.normal(size=20000), 0.01)[0] > 5
    by_hand = 1 / np.mean(np.log(np.array([8.0, 4.0]) / 2.0))
    assert hill(np.array([1.0, -8.0, 2.0, 4.0, 0.5]), 0.4)[0] == pytest.approx(by_hand, rel=1e-12)
    assert np.isnan(hill(np.ones(10), 0.3)[0])
    assert kurtosis(np.array([[1.0], [2.0], [6.0]]))[0] == pytest.approx(1.5)  # of three values always 3 / 2
    assert float(kurtosis(rng.normal(size=(40000, 1)))[0]) == pytest.approx(3.0, abs=0.1)
    x = rng.exponential(size=50)
    plain = stats.anderson(x, method="interpolate").statistic
    assert float(anderson_darling(x)) == pytest.approx(plain * (1 + 0.75 / 50 + 2.25 / 2500), rel=1e-10)
    refused = (anderson_darling(rng.normal(size=(40, 4000))) > 0.752).mean()
    assert 0.03 < refused < 0.07  # 5 %
    assert np.isnan(anderson_darling(np.ones((20, 1)))[0])


def rotating(turn, seed, steps=400):
    """x' = R(turn) 0.9 x + noise: reversible for turn = 0 only."""
    rng, x, points = np.random.default_rng(seed), np.zeros(2), []
    matrix = 0.9 * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    for _ in range(steps):
        x = matrix @ x + rng.normal(size=2)
        points.append(x)
    return np.array(points) + 3.0


def test_currents_are_those_of_the_walk():
    asymmetry, chance, p = lag_asymmetry(rotating(0.5, seed=1), block=20, flips=499, seed=2)
    assert asymmetry == pytest.approx(np.tan(0.5), abs=0.06)  # A = R 0.9 S, S isotropic: sin / cos
    assert p <= 0.002
    assert chance < 0.4 * asymmetry
    still = [lag_asymmetry(rotating(0.0, seed=s), block=20, flips=199, seed=s) for s in range(40)]
    assert sum(p <= 0.1 for _, _, p in still) <= 11
    assert 0.6 < np.mean([a for a, _, _ in still]) / np.mean([c for _, c, _ in still]) < 1.5
    assert np.isnan(lag_asymmetry(rotating(0.5, seed=1)[:5], block=20, flips=9, seed=2)[0])


def test_the_window_s_currents_are_in_the_measurement():
    pair = walked(quadratic(), updates=60)
    got = found(pair, k=3, tolerance=1e-9, currents=True)
    vectors = torch.linalg.eigh(HESSIAN)[1]
    points = torch.stack([pair[0].theta(t) for t in range(61)]) @ vectors.flip(1)
    centred = points - points.mean(0)
    lagged = (centred[1:].T @ centred[:-1]).numpy()
    expected = np.linalg.norm(lagged - lagged.T) / np.linalg.norm(lagged + lagged.T)
    assert float(got["lag_asymmetry"][0]) == pytest.approx(expected, rel=1e-7)
    assert 0 < float(got["lag_asymmetry_p"][0]) <= 1
    assert (found(pair, k=3)["lag_asymmetry_outcome"] == Outcome.not_applicable).all()


def test_gaussianity_follows_from_the_batches_drawn():
    generator = torch.Generator().manual_seed(1)
    centres = torch.zeros(200, 3, dtype=F64)
    centres[:20] = 6 * torch.randn(20, 3, dtype=F64, generator=generator)  # few examples pull
    surface = landscapes.NoisyQuadratic(HESSIAN, centres)
    pair = walked(surface)
    few, many = (found(pair, batch_size=b, batches=1500, hessian=False, k=3) for b in (1, 64))
    rows = surface.per_example_grads(pair[0].theta(0))
    first = (rows - rows.mean(0)) @ torch.linalg.eigh((rows - rows.mean(0)).T @ (rows - rows.mean(0)))[1][:, -1]
    truth = float((first**4).mean() / (first**2).mean() ** 2)
    assert truth > 8
    assert float(few["batch_kurtosis"][0, 0]) == pytest.approx(truth, rel=0.2)
    assert float(many["batch_kurtosis"][0, 0]) == pytest.approx(3 + (truth - 3) / 64, abs=0.6)
    assert float(few["batch_anderson"][0, 0]) > 50
    assert float(many["batch_anderson"][0, 0]) < 0.1 * float(few["batch_anderson"][0, 0])


# --- networks: Fisher matrices, batches, live ------------------------------------------------------------------------------


def cross_entropy(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def logistic(n, seed=1):
    """Labels drawn from the model itself."""
    g = torch.Generator().manual_seed(seed)
    model = nn.Linear(4, 3).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(0.8 * torch.randn(p.shape, generator=g, dtype=F64))
    x = torch.randn(n, 4, generator=g, dtype=F64)
    y = torch.multinomial(model(x).detach().softmax(1), 1, generator=g)[:, 0]
    return model, (x, y)


def standing(surface, batch_size=8):
    """A walk that stays where the surface was made."""
    walk = landscapes.walk(
        landscapes.Quadratic(torch.eye(surface.layout.size)), lr=1e-12, updates=1, start=surface.theta().double()
    )
    steps = walk.steps.assign(batch_size=walk.steps["batch_size"] * 0 + batch_size)
    return replace(walk, header=replace(walk.header, layout=surface.layout), read_steps=lambda: steps), surface


def test_at_the_true_parameters_the_covariance_is_the_hessian():
    model, data = logistic(20000)
    got = found(standing(LossSurface(model, cross_entropy, data)), k=8, examples=3000, tolerance=1e-6, fisher=True)
    for name in ("slope", "empirical_fisher_slope", "fisher_slope"):
        assert abs(float(got[name][0]) - 1) < 4 * float(got[f"{name}_stderr"][0])
        assert float(got[f"{name}_stderr"][0]) < 0.03
    for name in ("correlation", "empirical_fisher_correlation", "fisher_correlation"):
        assert float(got[name][0]) > 0.99


def test_least_squares_give_the_variance_of_the_noise():
    g = torch.Generator().manual_seed(2)
    x, model = (
        torch.randn(20000, 4, generator=g, dtype=F64) * torch.tensor([2.0, 1.4, 1.0, 0.6]),
        nn.Linear(4, 1, bias=False).double(),
    )
    y = model(x).detach() + 0.7 * torch.randn(20000, 1, generator=g, dtype=F64)
    surface = LossSurface(model, lambda m, b: 0.5 * (m(b[0]) - b[1]).square().mean(), (x, y))
    got = found(standing(surface), k=4, examples=3000, tolerance=1e-6, fisher=True)
    assert abs(float(got["slope"][0]) - 0.49) < 4 * float(got["slope_stderr"][0])
    assert float(got["slope_stderr"][0]) < 0.03
    assert float(got["correlation"][0]) > 0.99
    assert (got["fisher_trace_outcome"] == Outcome.not_applicable).all()


def network():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()


def examples(n=23):
    g = torch.Generator().manual_seed(8)
    return 1.4 * torch.randn(n, 4, generator=g, dtype=F64) + 0.3, torch.randint(0, 3, (n,), generator=g)


def test_the_fisher_matrix_is_the_mean_over_labels():
    """Many draws against the sum over all labels, and the identity with the Gauss-Newton matrix."""
    model, (x, y) = network(), examples()
    surface = LossSurface(model, cross_entropy, (x, y), weight_decay=0.05)
    theta = surface.theta()
    p = model(x).detach().softmax(1)
    plain = LossSurface(model, cross_entropy, (x, y))
    trace = 0.0
    for label in range(3):
        rows = LossSurface(model, cross_entropy, (x, torch.full_like(y, label))).per_example_grads(theta)
        trace += float((p[:, label] * rows.square().sum(1)).mean())
    with plain.linearized(theta) as h:
        assert float(h.gauss_newton(torch.eye(len(theta), dtype=F64)).trace()) == pytest.approx(trace, rel=1e-9)
    got = [found(standing(surface), fisher=True, k=2, seed=s) for s in range(60)]
    values = np.array([float(d["fisher_trace"][0]) for d in got])
    assert abs(values.mean() - trace) < 4 * values.std() / np.sqrt(60)
    assert values.std() / np.sqrt(60) < 0.1 * trace
    rows = plain.per_example_grads(theta)
    assert float(got[0]["empirical_fisher_trace"][0]) == pytest.approx(float(rows.square().sum(1).mean()), rel=1e-9)
    assert float(got[0]["trace"][0]) == pytest.approx(float((rows - rows.mean(0)).square().sum(1).mean()), rel=1e-9)
    assert abs(float(got[0]["empirical_fisher_trace"][0]) / trace - 1) > 0.02
    assert (found(standing(surface), k=2)["fisher_trace_outcome"] == Outcome.not_applicable).all()


def test_labels_are_drawn_only_where_the_output_is_logits():
    model, (x, y) = network(), examples()
    g = torch.Generator().manual_seed(1)
    drawn = LossSurface(model, cross_entropy, (x, y)).relabelled(LossSurface(model, cross_entropy, (x, y)).theta(), g)
    assert drawn.fingerprint()["data"] != LossSurface(model, cross_entropy, (x, y)).fingerprint()["data"]
    smooth = lambda m, b: nn.functional.cross_entropy(m(b[0]), b[1], label_smoothing=0.1)  # ruff: ignore[lambda-assignment]
    squares = lambda m, b: (m(b[0]).softmax(1) - nn.functional.one_hot(b[1], 3)).square().sum(1).mean()  # ruff: ignore[lambda-assignment]
    for loss in (smooth, squares):
        surface = LossSurface(model, loss, (x, y))
        with pytest.raises(SurfaceError, match="the output of the model is not known to be logits"):
            surface.relabelled(surface.theta(), g)


@pytest.fixture(scope="module")
def recorded():
    """A short walk of a small network, recorded at each update with its batches."""
    model, (x, y) = network(), examples()
    optimizer = torch.optim.SGD(model.parameters(), lr=LR, momentum=MOMENTUM)
    recorder = Recorder(None, model, optimizer, loss=cross_entropy, snapshots=every(1), store="memory", batches="bursts")
    with recorder:
        for t in range(12):
            rows = torch.randperm(23, generator=torch.Generator().manual_seed(t))[:6]
            optimizer.zero_grad()
            recorder.loss(model, (x[rows], y[rows])).backward()
            optimizer.step()
    return recorder.store.trajectory(), model, (x, y)


@pytest.mark.parametrize("window", [5, 60])
def test_live_equals_offline(recorded, window):
    trajectory, model, data = recorded
    surface = LossSurface(model, cross_entropy, data)
    options = {
        "window": window,
        "points": 2,
        "k": 3,
        "fisher": True,
        "resamples": 9,
        "ranks": (1, 6),
        "currents": True,
        "examples": 15,
    }
    offline = measure(trajectory, surface, ["noise"], noise=options)["noise"].to_dataset()
    sink = live("noise", surface, **options)
    feed(sink, trajectory)
    assert offline.sizes["step"] == (6 if window == 5 else 2)
    assert np.isfinite(offline["spectrum_p"]).all()
    assert (offline["spectrum_prefactor"] > 0).all()
    measured = sink.measured
    for variable in offline.variables:
        xr.testing.assert_equal(measured[variable].drop_attrs(), offline[variable].drop_attrs())


def test_the_ratio_of_learning_rate_and_batch_size_is_that_of_sgd_alone():
    walk, surface = walked(quadratic())
    plain = {"class": "SGD", "momentum": 0.4, "dampening": 0.25}
    for told, ratio in ((plain, LR * 0.75 / (B * 0.6)), ({"class": "AdamW", "betas": [0.9, 0.99]}, np.nan)):
        header = replace(walk.header, settings={"optimizers": [told]})
        got = found((replace(walk, header=header), surface), hessian=False)
        for name in ("learning_ratio", "temperature", "regulariser_gradient", "regulariser_noise"):
            assert int(got[f"{name}_outcome"][0]) == (Outcome.ok if ratio > 0 else Outcome.not_applicable), name
        assert float(got["learning_ratio"][0]) == pytest.approx(ratio, nan_ok=True)
        assert float(got["batch_trace"][0, 0]) > 0


def test_recorded_batches_stand_in_where_no_example_has_a_gradient_of_its_own(recorded):
    trajectory, model, data = recorded
    surface = LossSurface(model, cross_entropy, [data])
    got = measure(trajectory, surface, ["noise"], noise={"k": 3})["noise"]
    theta = trajectory.theta(0)
    rows = torch.stack([surface.on_batch(trajectory.batch(t)).value_and_grad(theta)[1] for t in range(12)])
    assert int(got["examples"][0]) == 12
    assert int(got["batchwise"][0]) == 1
    square = unbiased_square((rows @ rows.T).numpy() * 6)[0]
    assert float(got["covariance_frobenius"][0]) == pytest.approx(square**0.5, rel=1e-8)
    assert 0.05 < float(got["covariance_frobenius_stderr"][0]) / square**0.5 < 1
    scatter = (rows - rows.mean(0)).square().sum(1).sum() / 11
    assert float(got["trace"][0]) == pytest.approx(6 * float(scatter), rel=1e-9)
    assert float(got["trace_stderr"][0]) > 0.05 * float(got["trace"][0])
    cross = (float(rows.sum(0).square().sum()) - float(rows.square().sum())) / (12 * 11)
    assert float(got["two_size_gradient_square"][0]) == pytest.approx(cross, rel=1e-6)
    assert float(got["two_size_trace"][0]) == pytest.approx(6 * float(scatter), rel=1e-6)
    for name in ("empirical_fisher_trace", "fisher_trace", "population_noise_scale"):
        assert (got[f"{name}_outcome"] == Outcome.not_applicable).all()
    unrecorded = replace(
        trajectory, read_batch=landscapes.walk(landscapes.DoubleWell(), lr=0.1, updates=1, start=[0.5]).read_batch
    )
    unrecorded = replace(unrecorded, read_batch=_none)
    bare = measure(unrecorded, surface, ["noise"])["noise"]
    assert (bare["trace_outcome"] == Outcome.not_applicable).all()
    assert int(bare["examples"][0]) == 0


def _none(step):
    raise NotAvailableError(f"no batch of step {step}")


def test_the_covariance_of_a_network_is_the_sum_over_its_examples(recorded):
    trajectory, model, data = recorded
    surface = LossSurface(model, cross_entropy, data)
    got = measure(trajectory, surface, ["noise"], noise={"k": 4, "tolerance": 1e-7, "points": 2})["noise"]
    assert got["step"].values.tolist() == [0, 12]
    for row, step in enumerate((0, 12)):
        theta = trajectory.theta(step)
        rows = surface.per_example_grads(theta)
        c = (rows - rows.mean(0)).T @ (rows - rows.mean(0)) / 23
        h = surface.hvp(theta, torch.eye(len(theta), dtype=F64))
        e = torch.linalg.eigh(h)[1].flip(1)[:, :4]
        np.testing.assert_allclose(np.abs(got["element"][row]), (e.T @ c @ e).abs(), rtol=1e-4, atol=1e-7)
        assert float(got["trace"][row]) == pytest.approx(float(c.trace()), rel=1e-9)
        assert float(got["batch_trace"][row, 1]) == pytest.approx(float(c.trace()) * 17 / (6 * 22), rel=1e-9)
        product = float((h @ c).trace())
        assert abs(float(got["product_trace"][row]) - product) < 4 * float(got["product_trace_stderr"][row]) + 1e-9
        assert float(got["product_trace_stderr"][row]) < 0.2 * product
        np.testing.assert_allclose(got["covariance_eigenvalue"][row], torch.linalg.eigvalsh(c).flip(0)[:4], rtol=1e-7)


def test_alignment_of_matrices_without_spread_is_not_a_number():
    assert np.isnan(alignment(np.zeros((3, 3)), np.array([3.0, 2.0, 1.0]))[[1, 2, 3]]).all()
    assert np.isnan(alignment(np.eye(2), np.array([2.0, 2.0]))[2])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"k": 0}, "k: expected an integer >= 1, got 0"),
        ({"examples": 1}, "examples: expected an integer >= 2, got 1"),
        ({"batches": 1}, "batches: expected an integer >= 2"),
        ({"batch_size": 0}, "batch_size: expected an integer >= 1"),
        ({"tolerance": 0.0}, "tolerance: expected a finite number > 0"),
        ({"tail": 1.0}, r"tail: expected a share in \(0, 1\)"),
        ({"ranks": (3, 5)}, r"ranks: expected first and last of at least four ranks, got \(3, 5\)"),
        ({"ranks": 50}, "ranks: expected first and last of at least four ranks, got 50"),
        ({"k": "3"}, "k: expected an integer >= 1, got '3'"),
        ({"tail": "x"}, r"tail: expected a share in \(0, 1\)"),
        ({"hessian": "no"}, "hessian: expected true or false, got 'no'"),
        ({"probes": 1}, "probes: expected an integer >= 2"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    with pytest.raises(ArgumentError, match=message):
        found(walked(quadratic()), **options)


def test_two_examples_are_needed():
    with pytest.raises(ArgumentError, match=r"deviations: expected \[m, P\] with m >= 2 examples, got shape \(1, 3\)"):
        Covariance(torch.ones(1, 3))
    with pytest.raises(ArgumentError, match="population: expected at least the 4 examples at hand, got 3"):
        Covariance(torch.ones(4, 3), population=3)
    alone = landscapes.Quadratic(HESSIAN)
    got = found((landscapes.walk(alone, lr=0.1, updates=3, start=torch.ones(3)), alone))
    assert (got["trace_outcome"] == Outcome.not_applicable).all()
    assert np.isfinite(got["regulariser_gradient"]).all()
