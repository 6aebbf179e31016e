"""Live measuring equals measuring afterwards, and options and surfaces are checked before anything is computed."""

import numpy as np
import pytest
import torch
import xarray as xr

from sgdscope.errors import ArgumentError, UnknownNameError
from sgdscope.landscapes import NoisyQuadratic, walk
from sgdscope.measure import live, measure
from sgdscope.records import Record, StepBlock, pack_batch


@pytest.fixture(scope="module")
def recorded():
    generator = torch.Generator().manual_seed(3)
    hessian = torch.diag(torch.tensor([3.0, 1.2, 0.3], dtype=torch.float64))
    centres = torch.randn(40, 3, generator=generator, dtype=torch.float64) + 2.5
    surface = NoisyQuadratic(hessian, centres)
    points = [*range(8), *range(20, 33), 40]
    start = torch.tensor([4.0, -1.5, 0.7], dtype=torch.float64)
    return walk(surface, lr=0.37, updates=40, start=start, batch_size=4, generator=generator, snapshots=points), surface


def feed(sink, trajectory):
    """What a recorder does: rows up to t - 1 before the snapshot t."""
    sink.begin(trajectory.header)
    steps, sent = trajectory.steps, 0
    for point in trajectory.snapshot_steps:
        block = steps.isel(step=slice(sent, int(point)))
        sent = int(point)
        if block.sizes["step"]:
            columns = {str(n): v.values.astype(float) for n, v in block.data_vars.items()}
            sink.write_steps(StepBlock(block["step"].values, columns))
        sink.write_snapshot(trajectory.read_snapshot(int(point)))
        if sent < steps.sizes["step"]:
            arrays, spec = pack_batch(trajectory.batch(sent))
            sink.write_record(Record("batches", sent, arrays, {"spec": spec}))
    sink.close()


@pytest.mark.parametrize("name", ["valley", "motion", "curvature", "sharpest", "neurons", "batch"])
@pytest.mark.parametrize("window", [5, 60])
def test_live_equals_offline(recorded, name, window):
    trajectory, surface = recorded
    offline = measure(trajectory, surface, name, window=window)[name].to_dataset()
    sink = live(name, surface, window=window)
    feed(sink, trajectory)
    every_update = name in {"valley", "motion", "batch"}
    assert offline.sizes["step"] == (19 if every_update else 5 if window == 5 else 2)
    assert offline.sizes["window"] == (5 if window == 5 else 2)
    measured = sink.measured
    assert set(measured.variables) == set(offline.variables)
    for variable in offline.variables:
        xr.testing.assert_equal(measured[variable].drop_attrs(), offline[variable].drop_attrs())
    assert sum(np.isfinite(offline[v].values).any() for v in offline.data_vars if offline[v].dtype.kind == "f") > 4


def test_live_measuring_keeps_the_ends_of_windows_that_no_variable_spans(recorded):
    trajectory, surface = recorded
    offline = measure(trajectory, surface, "neurons", window=5, k=1)["neurons"].to_dataset()
    assert not any("window" in offline[v].dims for v in offline.data_vars)
    sink = live("neurons", surface, window=5, k=1)
    feed(sink, trajectory)
    assert sink.measured["window_first"].values.tolist() == offline["window_first"].values.tolist() == [0, 5, 20, 25, 30]
    assert set(sink.measured.coords) == set(offline.coords)


def test_unknown_names_and_options_are_refused(recorded):
    trajectory, surface = recorded
    with pytest.raises(UnknownNameError, match="did you mean 'valley'"):
        measure(trajectory, surface, ["valey"])
    with pytest.raises(ArgumentError, match="'windw'; did you mean 'window'"):
        measure(trajectory, surface, ["valley"], windw=5)
    with pytest.raises(ArgumentError, match="surface: quantity 'valley' needs a loss surface"):
        measure(trajectory, None, ["valley"])
    with pytest.raises(ArgumentError, match="surface: quantity 'valley' needs a loss surface"):
        live("valley", None)


def test_a_surface_of_another_model_is_refused(recorded):
    from sgdscope.surface import LossSurface

    model = torch.nn.Linear(2, 1)
    x = torch.randn(6, 2, generator=torch.Generator().manual_seed(0))
    surface = LossSurface(model, lambda m, b: (m(b[0]) - b[1]).square().mean(), (x, x.sum(1, keepdim=True)))
    with pytest.raises(ArgumentError, match="its model does not fit the trajectory"):
        measure(recorded[0], surface, "valley")


def test_a_kept_measurement_is_reused_only_if_nothing_differs(recorded, tmp_path):
    from dataclasses import replace

    from sgdscope.stores.zarr import ZarrStore

    trajectory, surface = recorded
    store = ZarrStore(tmp_path / "run")
    store.begin(trajectory.header)
    store.close()
    calls = []

    class Counting:
        def along(self, *arguments):
            calls.append(arguments)
            return surface.along(*arguments)

        def __getattr__(self, name):
            return getattr(surface, name)

    stored = replace(trajectory, path=tmp_path / "run")
    first = measure(stored, Counting(), "valley", reuse=True)["valley"].to_dataset()
    assert len(calls) >= 19
    calls.clear()
    again = measure(stored, Counting(), "valley", reuse=True)["valley"].to_dataset()
    assert calls == []
    xr.testing.assert_identical(first.load(), again.load())
    for changed in (
        lambda: measure(stored, Counting(), "valley"),
        lambda: measure(stored, Counting(), "valley", reuse=True, window=5),
        lambda: measure(stored.between(20, 40), Counting(), "valley", reuse=True),
    ):
        calls.clear()
        changed()
        assert calls


def test_what_was_measured_live_is_kept_with_the_run(tmp_path):
    import sgdscope as ss

    generator = torch.Generator().manual_seed(2)
    x = torch.randn(50, 3, generator=generator)
    y = (x.square().sum(1) > 2).long()
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Tanh(), torch.nn.Linear(5, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.7)

    def loss(m, batch):
        return torch.nn.functional.cross_entropy(m(batch[0]), batch[1], reduction="none")

    surface = ss.LossSurface(model, loss, (x, y))
    sink = ss.live("valley", surface)
    with ss.Recorder(tmp_path / "run", model, optimizer, loss=loss, snapshots=ss.every(1), live=[sink]) as recorder:
        for t in range(9):
            optimizer.zero_grad()
            recorder.loss(model, (x[t : t + 20], y[t : t + 20])).mean().backward()
            optimizer.step()
    stored = ss.open_trajectory(tmp_path / "run")
    kept = xr.open_datatree(tmp_path / "run" / "measurements" / "valley", engine="zarr").to_dataset().load()
    offline = measure(stored, surface, "valley")["valley"].to_dataset()
    assert kept.sizes["step"] == 9
    for name in offline.data_vars:
        np.testing.assert_array_equal(kept[name].values, offline[name].values)
