"""The quantity batch against plain loops and dense Hessians in float64."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from torch import nn

from sgdscope import landscapes
from sgdscope.errors import ArgumentError, NotAvailableError, Outcome
from sgdscope.measure import live, measure
from sgdscope.recorder import Recorder, every
from sgdscope.surface import LossSurface
from test_curvature import LR, UPDATES, dense, examples, loss, make
from test_measure import feed

F64 = torch.float64


def recorded(lr=LR, clip=None, model=None, size=6):
    """A short walk by plain SGD, with its surface."""
    model, (x, y) = model or make(), examples()
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    recorder = Recorder(None, model, optimizer, loss=loss, snapshots=every(1), store="memory", batches="bursts")
    with recorder:
        for t in range(UPDATES):
            rows = torch.randperm(23, generator=torch.Generator().manual_seed(t))[:size]
            optimizer.zero_grad()
            recorder.loss(model, (x[rows], y[rows])).mean().backward()
            if clip:
                nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
    return recorder.store.trajectory(), LossSurface(model, loss, (x, y))


@pytest.fixture(scope="module")
def walked():
    return recorded()


def found(walk, **options):
    return measure(*walk, ["batch"], batch=options)["batch"].to_dataset()


def test_the_line_is_that_of_the_own_batch(walked):
    trajectory, surface = walked
    got = found(walked)
    assert got["step"].values.tolist() == list(range(UPDATES))
    for t in range(UPDATES):
        own = surface.on_batch(trajectory.batch(t))
        a, b = trajectory.theta(t), trajectory.theta(t + 1)
        start, gradient = own.value_and_grad(a)
        end, slope = own.value(b), float(gradient @ (b - a))
        bend = end - start - slope
        assert float(got["loss_end"][t]) == pytest.approx(end, rel=1e-12)
        assert float(got["slope"][t]) == pytest.approx(slope, rel=1e-9)
        assert float(got["bend"][t]) == pytest.approx(bend, rel=1e-6)
        assert float(got["alpha_star"][t]) == pytest.approx(-slope / (2 * bend), rel=1e-6)
        assert float(got["alpha_cockpit"][t]) == pytest.approx(-2 * bend / slope - 1, rel=1e-6)
    assert (got["own_batch"] == 0).all()
    assert 0.2 < float(got["alpha_star"].median()) < 50


def test_on_a_quadratic_alpha_is_that_of_its_curvature():
    generator = torch.Generator().manual_seed(5)
    surface = landscapes.NoisyQuadratic(torch.diag(torch.tensor([3.0, 0.7])), torch.randn(30, 2, generator=generator))
    walk = landscapes.walk(surface, lr=0.2, updates=15, start=torch.tensor([2.0, -1.0]), batch_size=4, generator=generator)
    got = found((walk, surface), sharpness=True, eigenvalue=True, tolerance=1e-6, probes=2)
    np.testing.assert_allclose(
        got["alpha_star"], 1 / (0.2 * got["step_sharpness"]), rtol=1e-8
    )  # identity 1: 1 / alpha* = lr g'Hg / |g|^2
    np.testing.assert_allclose(got["eigenvalue"], 3.0, rtol=1e-9)
    assert 0.7 < float(got["step_sharpness"].min()) < float(got["step_sharpness"].max()) < 3.0
    assert float(got["batch_sharpness"][0]) == pytest.approx(float(got["step_sharpness"].mean()), rel=1e-12)


def test_curvature_of_the_batches_is_that_of_dense_hessians(walked):
    trajectory, surface = walked
    got = found(walked, eigenvalue=True, tolerance=1e-6, probes=200, sharpness=True)
    for t in (0, 5):
        own, theta = surface.on_batch(trajectory.batch(t)), trajectory.theta(t)
        matrix, g = dense(own, theta), own.value_and_grad(theta)[1]
        assert float(got["eigenvalue"][t]) == pytest.approx(float(torch.linalg.eigvalsh(matrix)[-1]), rel=1e-5)
        assert float(got["step_sharpness"][t]) == pytest.approx(float(g @ matrix @ g / (g @ g)), rel=1e-5)
        assert abs(float(got["trace"][t]) - float(matrix.trace())) < 4 * float(got["trace_stderr"][t])
        assert float(got["trace_stderr"][t]) < 0.1 * float(matrix.trace())


@pytest.mark.parametrize(("name", "size"), [("batch_sharpness", 6), ("gni", 23)])
def test_products_and_the_secant_forms_differ_by_less_as_the_step_shrinks(name, size):
    """The full batch for gni: there the secant's denominator is |grad L|^2 without the scatter of the batches."""
    gaps = []
    for lr in (0.4, 0.1, 0.025):
        walk = recorded(lr, size=size)
        exact = found(walk, sharpness=True, gni=UPDATES)
        secant = measure(*walk, ["valley"], valley={"curve": False})["valley"]
        assert int(exact["batch_updates"][0]) == UPDATES
        gaps.append(abs(float(secant[name][0]) / float(exact[name][0]) - 1))
    assert gaps[1] < 0.5 * gaps[0]  # of first order in the step: a quarter expected
    assert gaps[2] < 0.5 * gaps[1]
    assert 1e-6 < gaps[2] < 0.02


def test_interaction_is_that_of_dense_products(walked):
    trajectory, surface = walked
    got = found(walked, gni=3)
    above = below = 0.0
    for t in (0, 4, 8):
        theta = trajectory.theta(t)
        g = surface.on_batch(trajectory.batch(t)).value_and_grad(theta)[1]
        above += float(g @ dense(surface, theta) @ g)
        below += float(surface.value_and_grad(theta)[1].square().sum())
    assert float(got["gni"][0]) == pytest.approx(above / below, rel=1e-5)
    assert abs(above / below - 1) > 0.1


def test_the_noise_scale_is_unbiased():
    """Means over many batches against the exact covariance of the examples' gradients; 5 standard errors."""
    generator = torch.Generator().manual_seed(2)
    centres = torch.randn(400, 3, generator=generator, dtype=F64) * torch.tensor([1.0, 2.0, 0.3], dtype=F64) + 1.0
    surface = landscapes.NoisyQuadratic(torch.diag(torch.tensor([1.5, 0.8, 2.5])), centres)
    start = torch.tensor([0.2, -0.7, 1.6], dtype=F64)
    walk = landscapes.walk(surface, lr=1e-9, updates=600, start=start, batch_size=8, generator=generator)
    got = found((walk, surface), window=600, parts=4)
    gradients = surface.per_example_grads(start)
    trace, square = float(gradients.var(0, unbiased=False).sum()), float(gradients.mean(0).square().sum())
    for name, true in (("noise_trace", trace), ("gradient_square", square)):
        values = got[name].values
        assert abs(values.mean() - true) < 5 * values.std() / np.sqrt(len(values))
        assert values.std() / np.sqrt(len(values)) < 0.1 * true
    assert float(got["noise_scale"][0]) == pytest.approx(got["noise_trace"].values.mean() / got["gradient_square"].values.mean())
    assert abs(float(got["noise_scale"][0]) - trace / square) < 5 * float(got["noise_scale_stderr"][0])
    assert (found((walk.between(0, 5), surface), parts=9)["noise_trace_outcome"] == Outcome.not_applicable).all()


@pytest.mark.parametrize(("options", "flag"), [({"clip": 0.05}, 4), ({"model": None, "dropout": True}, 3)])
def test_what_is_not_the_own_batch_is_said(options, flag):
    if options.pop("dropout", False):
        torch.manual_seed(7)
        options["model"] = nn.Sequential(nn.Linear(4, 7), nn.Dropout(0.5), nn.Tanh(), nn.Linear(7, 3)).double()
    got = found(recorded(**options), eigenvalue=True)
    assert (got["own_batch"] == flag).all()
    assert (got["alpha_star_outcome"] == Outcome.not_applicable).all()
    assert np.isfinite(got["eigenvalue"]).all()


def test_without_batches_nothing_is_measured(walked):
    trajectory, surface = walked

    def none(step):
        raise NotAvailableError("not recorded")

    got = found((replace(trajectory, read_batch=none), surface), eigenvalue=True, parts=2, gni=2)
    assert (got["own_batch"] == 1).all()
    assert (got["noise_scale_outcome"] == Outcome.not_applicable).all()
    assert not np.isfinite(got["eigenvalue"]).any()


@pytest.mark.parametrize("window", [4, 60])
def test_live_equals_offline(walked, window):
    trajectory, surface = walked
    options = {"window": window, "eigenvalue": True, "probes": 2, "parts": 3, "gni": 2}
    offline = measure(trajectory, surface, ["batch"], batch=options)["batch"].to_dataset()
    sink = live("batch", surface, **options)
    feed(sink, trajectory)
    measured = sink.measured
    assert offline.sizes["step"] == UPDATES
    for variable in offline.variables:
        xr.testing.assert_equal(measured[variable].drop_attrs(), offline[variable].drop_attrs())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"probes": 1}, "probes: expected 0, or at least 2, got 1"),
        ({"parts": 1}, "parts: expected 0, or at least 2, got 1"),
        ({"gni": -1}, "gni: expected an integer >= 0"),
        ({"tolerance": 0}, "tolerance: expected a finite number > 0"),
        ({"window": 0}, "window: expected an integer >= 1"),
    ],
)
def test_options_out_of_range_are_refused(walked, options, message):
    with pytest.raises(ArgumentError, match=message):
        found(walked, **options)


def test_another_seed_draws_other_probes(walked):
    one, two = (found(walked, probes=2, seed=seed)["trace"].values for seed in (0, 1))
    assert (one != two).all()
