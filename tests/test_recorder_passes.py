"""The recorder's passes over theta, in the loop and beside it: large parameters, held gradients, residuals, errors."""

import numpy as np
import pytest
import torch
from torch import nn

from recorder_loops import batches, compare, network, plain_loop, record
from sgdscope.errors import RecorderError
from sgdscope.recorder import scalars


def overwritten(model):
    """After the fourth update the gradients are changed in place, so they can no longer be held without a copy."""
    model.calls = getattr(model, "calls", 0) + 1
    if model.calls == 4:
        for p in model.parameters():
            p.grad.mul_(2.0)


@pytest.fixture(params=["in the loop", "beside it"])
def beside(request, monkeypatch):
    """Both places in which the passes run, whatever the machine; a chunk is small, so that parameters are cut."""
    monkeypatch.setattr(scalars, "works_beside", lambda device, size: request.param == "beside it")
    monkeypatch.setattr(scalars, "CHUNK", 4096)
    return request.param == "beside it"


def wide_network():
    torch.manual_seed(4)
    return nn.Sequential(nn.Linear(5, 2000), nn.Tanh(), nn.Linear(2000, 2)).double()


@pytest.mark.parametrize("set_to_none", [True, False])
def test_scalars_of_a_parameter_larger_than_a_chunk(set_to_none, beside):
    model = wide_network()
    assert model[0].weight.numel() > 2 * scalars.CHUNK
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    with record(model, optimizer, keyframes=lambda step: None, snapshots=lambda step: False) as recorder:
        slow = plain_loop(model, optimizer, recorder, batches(6), set_to_none)
    assert recorder._scalars._fresh[0] is set_to_none
    compare(recorder.store.trajectory().steps, slow, 0.01)
    assert recorder.store.trajectory().snapshot_steps.tolist() == [0, 6]


def test_a_held_gradient_that_is_overwritten_leaves_a_gap_and_no_wrong_number(beside):
    model = wide_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    with record(model, optimizer) as recorder:
        slow = plain_loop(model, optimizer, recorder, batches(7), between=lambda: overwritten(model))
    steps, expected = recorder.store.trajectory().steps, slow.columns(0.01)
    missing = {"gradient_dot_update": [3], "gradient_cosine": [0, 4], "descent_residual": [3], "gradient_norm": []}
    if beside:  # the pass over the gradient's own update may have read it too late
        missing |= {"gradient_cosine": [0, 3, 4], "gradient_norm": [3]}
    for name, lost in missing.items():
        assert np.flatnonzero(np.isnan(steps[name].values)).tolist() == lost, name
        there = np.setdiff1d(np.arange(7), lost)
        np.testing.assert_allclose(steps[name].values[there], expected[name][there], rtol=1e-9, atol=1e-12)


def run_wide(where, monkeypatch, optimizers, set_to_none, updates=90):
    """The rows of one run of the wide network, all of its scalars, in float32."""
    monkeypatch.setattr(scalars, "works_beside", lambda device, size: where == "beside it")
    monkeypatch.setattr(scalars, "CHUNK", 4096)
    model = wide_network().float()
    layers = [[*model.parameters()]] if optimizers == 1 else [model[0].parameters(), model[2].parameters()]
    made = [torch.optim.SGD(layer, lr=0.0005, momentum=0.9) for layer in layers]
    with record(model, made, snapshots=lambda step: step % 3 > 0) as recorder:
        for number, batch in enumerate(batches(updates, dtype=torch.float32)):
            for one in made:
                one.zero_grad(set_to_none=set_to_none)
            recorder.loss(model, batch).backward()
            for one in made:
                one.step()
            if number == 40:
                made[-1].add_param_group({"params": [torch.zeros(1)]})  # the pieces are cut anew
    return recorder.store.trajectory()


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("optimizers", [1, 2])
def test_passes_beside_the_loop_give_the_same_bits(monkeypatch, optimizers, set_to_none):
    here, there = (run_wide(where, monkeypatch, optimizers, set_to_none) for where in ("in the loop", "beside it"))
    assert set(here.steps) == set(there.steps)
    for name in here.steps:
        np.testing.assert_array_equal(there.steps[name].values, here.steps[name].values, err_msg=name)
    assert np.isfinite(here.steps["gradient_dot_update"].values).sum() > 80
    for step in here.snapshot_steps.tolist():
        assert torch.equal(there.theta(step), here.theta(step))


def test_the_residual_is_known_where_an_update_starts_at_a_kept_point(beside):
    model = wide_network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.5)
    with record(model, optimizer, snapshots=lambda step: step in (3, 4)) as recorder:
        slow = plain_loop(model, optimizer, recorder, batches(8))
    trajectory, expected = recorder.store.trajectory(), slow.columns(0.01)["descent_residual"]
    assert trajectory.snapshot_steps.tolist() == [0, 3, 4, 5, 8]
    residual = trajectory.steps["descent_residual"].values
    np.testing.assert_allclose(residual[[0, 3, 4, 5]], expected[[0, 3, 4, 5]], rtol=1e-9, atol=1e-12)
    assert np.isnan(residual[[1, 2, 6, 7]]).all()


def test_a_pass_that_fails_stops_the_run_with_its_cause(monkeypatch):
    monkeypatch.setattr(scalars, "works_beside", lambda device, size: True)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    recorder = record(model, optimizer)

    def fail(one):
        raise MemoryError("nothing left")

    monkeypatch.setattr(recorder._scalars, "_run", fail)
    with pytest.raises(RecorderError, match="scalars: their pass failed, the run is stopped: nothing left") as caught:
        plain_loop(model, optimizer, recorder, batches(4))
    assert isinstance(caught.value.__cause__, MemoryError)
    assert recorder.step <= 2
    with pytest.raises(RecorderError, match="nothing left"):
        recorder.close()
    assert recorder._writer._thread is None  # nothing waits for memory
    assert not any(thread.is_alive() for thread in recorder._scalars._thread._threads)


def test_the_passes_run_beside_the_loop_where_a_core_is_left(monkeypatch):
    cpu, large = torch.device("cpu"), 2 * scalars.CHUNK
    monkeypatch.setattr(scalars.os, "sched_getaffinity", lambda process: {0, 1, 2}, raising=False)
    for threads, size, expected in ((2, large, True), (3, large, False), (4, large, False), (2, scalars.CHUNK, False)):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        assert scalars.works_beside(cpu, size) is expected
    assert not scalars.works_beside(torch.device("meta"), large)
    monkeypatch.delattr(scalars.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(scalars.os, "cpu_count", lambda: 5)
    assert scalars.works_beside(cpu, large)
