"""What every quantity of the catalogue obeys."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr

from sgdscope.contracts import Source, columns, declare, ends, quantities
from sgdscope.errors import OUTCOME_ATTRS, Outcome
from sgdscope.landscapes import DoubleWell, NoisyQuadratic, walk

F64 = torch.float64
NAMES = ["valley", "motion", *(n for n in quantities if n not in {"valley", "motion"})]
THOROUGH = {
    "valley": {"projection": True, "decay": True, "break_even": True},
    "curvature": {"bottom": True, "probes": 4, "invariant": True, "layers": True, "halves": True, "density": 2},
    "noise": {"k": 3, "points": 2, "examples": 30, "resamples": 9, "currents": True, "block": 3},
    "batch": {"eigenvalue": True, "tolerance": 1e-6, "probes": 2, "parts": 2, "sharpness": True, "gni": 3},
}


class ScaledHessian:
    """c x a linearization."""

    def __init__(self, inner, factor):
        self.inner, self.factor = inner, factor
        self.value, self.gradient = factor * inner.value, factor * inner.gradient

    @property
    def products(self):
        return self.inner.products

    def hvp(self, vectors):
        return self.factor * self.inner.hvp(vectors)

    def gauss_newton(self, vectors):
        return self.factor * self.inner.gauss_newton(vectors)

    def close(self):
        self.inner.close()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.close()


class Scaled:
    """c x another surface."""

    def __init__(self, surface, factor):
        self.surface, self.factor = surface, factor

    def theta(self):
        return self.surface.theta()

    def value(self, theta, buffers=None):
        return self.factor * self.surface.value(theta)

    def value_and_grad(self, theta, buffers=None):
        value, gradient = self.surface.value_and_grad(theta)
        return self.factor * value, self.factor * gradient

    def losses(self, theta, buffers=None):
        return self.factor * self.surface.losses(theta)

    def hvp(self, theta, vectors, buffers=None):
        return self.factor * self.surface.hvp(theta, vectors)

    def linearized(self, theta, buffers=None):
        return ScaledHessian(self.surface.linearized(theta), self.factor)

    def rows(self, indices):
        return self.surface.rows(indices)

    def subset(self, indices):
        return Scaled(self.surface.subset(indices), self.factor)

    def per_example_grads(self, theta, indices=None, buffers=None):
        return self.factor * self.surface.per_example_grads(theta, indices)

    def gradient_chunks(self, theta, indices=None, buffers=None):
        return (self.factor * rows for rows in self.surface.gradient_chunks(theta, indices))

    def weighted_grad(self, theta, weights, indices=None, buffers=None):
        return self.factor * self.surface.weighted_grad(theta, weights, indices)

    def along(self, theta, direction, alphas, buffers=None):
        line = self.surface.along(theta, direction, alphas)
        return replace(line, values=self.factor * line.values, samples=self.factor * line.samples)

    def on_batch(self, batch):
        return Scaled(self.surface.on_batch(batch), self.factor)

    def fingerprint(self):
        return self.surface.fingerprint()


@pytest.fixture(scope="module")
def noisy():
    generator = torch.Generator().manual_seed(4)
    hessian = torch.tensor([[2.6, 0.7, 0.0], [0.7, 1.1, 0.2], [0.0, 0.2, 0.4]], dtype=F64)
    surface = NoisyQuadratic(hessian, torch.randn(40, 3, generator=generator, dtype=F64) + 1.5, offset=0.3)
    start = torch.tensor([3.0, -1.0, 0.5], dtype=F64)
    return walk(surface, lr=0.31, updates=26, start=start, batch_size=4, generator=generator), surface


def scaled_walk(trajectory, factor):
    """The same walk on c x loss with lr / c."""
    steps = trajectory.steps
    power = {"loss": 1, "gradient_norm": 1, "gradient_dot_update": 1, "lr": -1}
    steps = steps.assign({name: steps[name] * factor**k for name, k in power.items()})
    return replace(trajectory, read_steps=lambda: steps)


def measured(name, trajectory, surface, **options):
    return quantities[name].measure(trajectory, surface, **(THOROUGH.get(name, {}) | options))


def test_the_catalogue_holds_the_first_two():
    assert set(NAMES) >= {"valley", "motion"}
    assert len(NAMES) == len(set(NAMES))


@pytest.mark.parametrize("name", NAMES)
def test_each_variable_says_what_it_is(name, noisy):
    entry = quantities[name]
    found = measured(name, *noisy)
    assert set(entry.scales) <= set(found.data_vars)
    assert entry.needs <= {"surface", "snapshots", "scalars"}
    assert entry.sources
    assert all(isinstance(s, Source) for s in entry.sources)
    assert "Source" in (entry.measure.__doc__ or "") or "Cost:" in (entry.measure.__doc__ or "")
    assert found.data_vars
    for variable in found.data_vars:
        attrs = found[variable].attrs
        assert attrs["units"], variable
        assert attrs["long_name"], variable
        assert attrs["source"], variable
        assert attrs["error"] in {"exact", "stderr", "bound"}, variable
        if attrs["error"] == "stderr":
            assert found[f"{variable}_stderr"].dims == found[variable].dims
        outcome = f"{variable}_outcome"
        if outcome in found:
            assert found[outcome].dtype == np.int8
            assert found[outcome].attrs["flag_values"] == OUTCOME_ATTRS["flag_values"]
            assert attrs["reason"]
            finite = np.isfinite(found[variable].values)
            assert (finite | (found[outcome].values != Outcome.ok)).all(), variable
        elif str(variable) in entry.scales and f"{variable}_low" not in found:
            base = str(variable).removesuffix("_low").removesuffix("_high").removesuffix("_residual")
            said = found[f"{base}_outcome"].values != Outcome.ok if f"{base}_outcome" in found else False
            assert (np.isfinite(found[variable].values) | said).all(), variable


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("factor", [8.0, 0.3])
def test_loss_times_c_scales_as_declared(name, factor, noisy):
    trajectory, surface = noisy
    plain = measured(name, trajectory, surface)
    other = measured(name, scaled_walk(trajectory, factor), Scaled(surface, factor))
    compared = 0
    for variable, power in quantities[name].scales.items():
        one, two = plain[variable].values.astype(float) * factor**power, other[variable].values
        rounding = max(1e-7 * np.abs(one[np.isfinite(one)]).max(initial=0), 1e-11)  # a quadratic has cubic terms of rounding only
        np.testing.assert_allclose(two, one, rtol=1e-7, atol=rounding, err_msg=f"{name} {variable}")
        compared += int(np.isfinite(one).any())
    assert compared > 1 / 3 * len(quantities[name].scales)  # the others have no known value on this walk


@pytest.mark.parametrize("name", NAMES)
def test_without_two_consecutive_snapshots_the_dimensions_are_empty(name, noisy):
    trajectory, surface = noisy
    whole = measured(name, trajectory, surface)
    for kept in ([], [3], [0, 2, 9]):
        found = measured(name, replace(trajectory, snapshot_steps=np.array(kept, np.int64)), surface)
        assert found.sizes["window"] == 0
        assert found.sizes["step"] == 0
        assert set(found.variables) == set(whole.variables)
        for variable in found.variables:
            assert found[variable].dims == whole[variable].dims, variable
            if not {"step", "window", "step_curve"} & set(found[variable].dims):
                xr.testing.assert_equal(found[variable].drop_attrs(), whole[variable].drop_attrs())


@pytest.mark.parametrize("name", NAMES)
def test_a_run_without_any_update_is_measured(name, noisy):
    trajectory, surface = noisy
    bare = replace(trajectory, snapshot_steps=np.zeros(0, np.int64), read_steps=lambda: trajectory.steps.isel(step=slice(0)))
    found = measured(name, bare, surface)
    assert found.sizes["window"] == 0


@pytest.mark.parametrize("name", NAMES)
def test_windows_put_together_are_the_whole(name, noisy):
    trajectory, surface = noisy
    whole = measured(name, trajectory, surface, window=10)
    parts = [measured(name, trajectory.between(a, b), surface, window=10) for a, b in ((0, 10), (10, 20), (20, 26))]
    dims = {"step", "window", "step_curve"}
    checked = 0
    for variable in whole.data_vars:
        for dim in dims & set(whole[variable].dims):
            joined = np.concatenate([p[variable].values for p in parts], axis=whole[variable].dims.index(dim))
            np.testing.assert_array_equal(joined, whole[variable].values, err_msg=str(variable))
            checked += int(joined.size > 0)
    assert checked > 1 / 2 * len(whole.data_vars)


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_users_moves(name, noisy):
    trajectory, surface = noisy
    kept = [trajectory.read_snapshot(s) for s in range(27)]
    copies = [k.theta.clone() for k in kept]
    shared = replace(trajectory, read_snapshot=lambda step: kept[step])
    theta, steps, mark = surface.theta(), trajectory.steps.copy(deep=True), surface.fingerprint()
    torch.manual_seed(1)
    before = torch.get_rng_state()
    measured(name, shared, surface)
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(k.theta, c) for k, c in zip(kept, copies, strict=True))
    assert torch.equal(surface.theta(), theta)
    assert surface.fingerprint() == mark
    assert trajectory.steps.identical(steps)


@pytest.mark.parametrize("name", NAMES)
def test_what_does_not_converge_or_exist_is_said(name):
    surface = DoubleWell(1.0, 1.0, walls=[2.0])
    trajectory = walk(surface, lr=3.0, updates=8, start=[4.0, 1.0])
    found = measured(name, trajectory, surface)
    unsaid = []
    for variable in found.data_vars:
        outcome = f"{variable}_outcome"
        if outcome in found:
            ok = found[outcome].values == Outcome.ok
            unsaid += [variable] * int((ok & ~np.isfinite(found[variable].values)).sum())
    assert not unsaid
    said = [v for v in found.data_vars if str(v).endswith("_outcome")]
    assert not said or any((found[v] != Outcome.ok).any() for v in said)


def test_an_exhausted_budget_is_said(noisy):
    found = measured("valley", *noisy, projection=1, epsilon=1e-9)
    assert (found["height_projection_outcome"] == Outcome.not_converged).all()
    assert np.isfinite(found["height_projection"]).all()


def test_columns_join_rows_and_say_what_is_not_there():
    table = "a; step rank; loss; stderr; s; r; a\nflag; step; 1; exact; s; r; flag\nrate; window; 1; exact; s; ; rate"
    declared = declare(table, sources={"s": "source"}, reasons={"r": "reason"}, flags={"flag": "no yes"})
    ok, late, absent = (int(o) for o in (Outcome.ok, Outcome.not_converged, Outcome.not_applicable))
    rows = [
        {"a": [2.5, np.nan], "a_stderr": 0.5, "flag": True},
        {"a": 3.5, "a_outcome": [ok, late]},
        {"flag": False, "flag_outcome": late},
    ]
    found = columns(declared, rows, spanned=[{"rate": 7.5}], sizes={"rank": 2})
    np.testing.assert_array_equal(found["a"], [[2.5, np.nan], [3.5, 3.5], [np.nan, np.nan]])
    np.testing.assert_array_equal(found["a_stderr"], [[0.5, 0.5], [np.nan, np.nan], [np.nan, np.nan]])
    assert found["a_outcome"].tolist() == [[ok, absent], [ok, late], [absent, absent]]
    assert found["flag"].tolist() == [1, 0, 0]
    assert found["flag_outcome"].tolist() == [ok, absent, late]
    assert found["rate"].tolist() == [7.5]
    assert "rate_outcome" not in found
    empty = columns(declared, [], sizes={"rank": 2})
    assert {name: part.shape for name, part in empty.items()}["a_outcome"] == (0, 2)


def test_ends_of_windows():
    told = ends([(3, 9), (20, 26)])
    assert {name: (dim, values.tolist()) for name, (dim, values, _) in told.items()} == {
        "window_first": ("window", [3, 20]),
        "window_last": ("window", [9, 26]),
    }
    assert ends([])["window_last"][1].shape == (0,)
