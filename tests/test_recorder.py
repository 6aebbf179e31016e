"""The recorder: its scalars against a slow route, every kind of loop, its schedules, budget, writer and errors."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from recorder_loops import DOUBLE, Slow, batches, compare, flat, gradient, loss, network, plain_loop, record
from sgdscope.errors import ArgumentError
from sgdscope.recorder import Recorder
from sgdscope.recorder.watching import leading_dimension
from sgdscope.records import NO_GRADIENT, NO_LOSS, NONFINITE, SKIPPED
from sgdscope.stores.zarr import ZarrStore

# --- the scalars -----------------------------------------------------------------------------------------------------

OPTIMIZERS = {
    "sgd": (lambda p: torch.optim.SGD(p, lr=0.13), 0.13),
    "momentum": (lambda p: torch.optim.SGD(p, lr=0.07, momentum=0.8, nesterov=True, weight_decay=0.01), 0.07),
    "adamw": (lambda p: torch.optim.AdamW(p, lr=0.02), 0.02),
    "adamw fused": (lambda p: torch.optim.AdamW(p, lr=0.02, fused=True), 0.02),
}


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_scalars_equal_their_definitions(name, set_to_none):
    make, lr = OPTIMIZERS[name]
    model = network()
    optimizer = make(model.parameters())
    with record(model, optimizer) as recorder:
        slow = plain_loop(model, optimizer, recorder, batches(9), set_to_none)
    trajectory = recorder.store.trajectory()
    compare(trajectory.steps, slow, lr)
    assert (trajectory.steps["batch_size"] == 6).all()
    assert (trajectory.steps["lr"] == lr).all()
    assert (trajectory.steps["flags"] == 0).all()
    assert trajectory.snapshot_steps.tolist() == list(range(10))
    for step, point in enumerate(slow.points):
        assert torch.equal(trajectory.theta(step), point)
    small = trajectory.steps["descent_residual"].values < 1e-12
    assert small.all() if name == "sgd" else not small.any()


def test_float32_scalars_and_more_rows_than_a_block():
    model = network(torch.float32)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with record(model, optimizer, snapshots=lambda step: False, keyframes=lambda step: None) as recorder:
        slow = plain_loop(model, optimizer, recorder, batches(150, dtype=torch.float32))
        recorder.flush()
        assert recorder.stored_steps == 149
        assert recorder.step == 150
    compare(recorder.store.trajectory().steps, slow, 0.05, rtol=2e-5, residual_atol=1e-5)
    assert recorder.stored_steps == 150


def test_several_groups_have_their_own_learning_rates():
    model = network()
    groups = [{"params": [model[0].weight, model[2].weight], "lr": 0.11}, {"params": [model[0].bias, model[2].bias], "lr": 0.03}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    with record(model, optimizer) as recorder:
        plain_loop(model, optimizer, recorder, batches(5), between=scheduler.step)
    steps = recorder.store.trajectory().steps
    np.testing.assert_allclose(steps["lr"].values, 0.11 * 0.9 ** np.arange(5))
    np.testing.assert_allclose(steps["lr_1"].values, 0.03 * 0.9 ** np.arange(5))
    assert (steps["descent_residual"].values < 1e-12).all()


def test_parameters_chosen_by_pattern():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model, optimizer, parameters="*.weight") as recorder:
        plain_loop(model, optimizer, recorder, batches(3))
    trajectory = recorder.store.trajectory()
    assert trajectory.header.layout.names == ("0.weight", "2.weight")
    assert torch.equal(
        trajectory.theta(3), torch.cat([model[0].weight.detach().reshape(-1), model[2].weight.detach().reshape(-1)])
    )


def test_changes_between_steps_belong_to_the_update_before():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)

    def clip():
        for p in model.parameters():
            p.data.clamp_(-0.2, 0.2)

    with record(model, optimizer) as recorder:
        slow = plain_loop(model, optimizer, recorder, batches(6), between=clip)
    compare(recorder.store.trajectory().steps, slow, 0.2)
    assert (recorder.store.trajectory().steps["descent_residual"].values > 1e-3).any()


def test_buffers_are_kept_with_the_point():
    model = nn.Sequential(nn.Linear(5, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model, optimizer) as recorder:
        plain_loop(model, optimizer, recorder, batches(4, dtype=torch.float32))
    buffers = recorder.store.trajectory().buffers(4)
    assert int(buffers["1.num_batches_tracked"]) == 4
    assert torch.equal(buffers["1.running_mean"], model[1].running_mean)
    assert torch.equal(recorder.store.trajectory().buffers(0)["1.running_mean"], torch.zeros(4))


# --- kinds of loops --------------------------------------------------------------------------------------------------


def test_lbfgs_takes_loss_and_gradient_at_the_first_evaluation():
    model, data = network(), batches(1)[0]
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    slow, seen = Slow(model), []
    with record(model, optimizer) as recorder:
        for form in range(4):
            seen.clear()

            def closure(form=form):
                optimizer.zero_grad()
                value = recorder.loss(model, data) if form % 2 else loss(model, data)
                value.backward()
                if not seen:
                    slow.before(value)
                seen.append(value.item())
                return value

            returned = optimizer.step(closure) if form < 2 else optimizer.step(closure=closure)
            assert returned.item() == pytest.approx(seen[0], rel=0)
            slow.after()
            assert len(seen) > 1
    steps = recorder.store.trajectory().steps
    compare(steps, slow, 0.5)
    np.testing.assert_array_equal(steps["batch_size"].values, [math.nan, 6, math.nan, 6])


def test_accumulation_gives_the_weighted_loss_and_the_whole_batch():
    model, data = network(), batches(8, size=[3, 5] * 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with record(model, optimizer, batches="bursts") as recorder:
        for number, batch in enumerate(recorder.watch(data)):
            value = recorder.loss(model, batch)
            (value * (len(batch[0]) / 8)).backward()
            expected.append(value.item())
            value.detach().zero_()  # the user's own tensor, which the recorder does not share
            if number % 2:
                optimizer.step()
                optimizer.zero_grad()
    trajectory = recorder.store.trajectory()
    weighted = [(3 * a + 5 * b) / 8 for a, b in zip(expected[::2], expected[1::2], strict=True)]
    np.testing.assert_allclose(trajectory.steps["loss"].values, weighted, rtol=1e-12)
    assert (trajectory.steps["batch_size"] == 8).all()
    assert [len(x) for x, _ in trajectory.batch(2)] == [3, 5]
    assert torch.equal(trajectory.batch(2)[1][0], data[5][0])


def test_per_example_losses_evaluation_and_no_loss():
    model, data = network(), batches(3)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    expected = []
    with record(model, optimizer, loss=lambda m, b: F.mse_loss(m(b[0]), b[1], reduction="none").mean(1)) as recorder:
        for number, batch in enumerate(data):
            optimizer.zero_grad()
            with torch.no_grad():
                recorder.loss(model, data[0])  # an evaluation
            per_example = recorder.loss(model, batch) if number < 2 else recorder._loss(model, batch)
            assert per_example.shape == (6,)
            per_example.mean().backward()
            expected.append(per_example.mean().item())
            optimizer.step()
    steps = recorder.store.trajectory().steps
    np.testing.assert_allclose(steps["loss"].values, [*expected[:2], math.nan], rtol=1e-12)
    assert steps["flags"].values.tolist() == [0, 0, NO_LOSS]
    assert math.isnan(steps["batch_size"].values[2])


@pytest.mark.parametrize("fused", [False, True])
def test_grad_scaler_gradients_are_unscaled_and_skipped_steps_marked(fused):
    model, data = network(torch.float32), batches(6, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=512.0, growth_interval=1000)
    norms, losses = [], []
    with record(model, optimizer) as recorder:
        for number, batch in enumerate(data):
            optimizer.zero_grad()
            value = recorder.loss(model, batch)
            scale = scaler.get_scale()
            scaler.scale(value * (math.inf if number == 2 else 1.0)).backward()
            norms.append(float(gradient(model).double().norm()) / scale)
            losses.append(value.item())
            scaler.step(optimizer)
            scaler.update()
    steps = recorder.store.trajectory().steps
    if fused:
        assert steps["flags"].values.tolist() == [0, 0, SKIPPED, 0, 0, 0]
        assert steps["update_norm"].values[2] == 0
    else:  # a skipped step calls no hook
        assert steps["flags"].values.tolist() == [0] * 5
        del norms[2], losses[2]
    finite = np.isfinite(norms)
    np.testing.assert_allclose(steps["gradient_norm"].values[finite], np.array(norms)[finite], rtol=1e-5)
    np.testing.assert_allclose(steps["loss"].values, losses, rtol=1e-6)


def test_several_optimizers_make_one_update():
    model = network()
    first, second = torch.optim.SGD(model[0].parameters(), lr=0.2), torch.optim.SGD(model[2].parameters(), lr=0.05)
    slow = Slow(model)
    with record(model, [first, second]) as recorder:
        for batch in batches(4):
            first.zero_grad(), second.zero_grad()
            value = recorder.loss(model, batch)
            value.backward()
            slow.before(value)
            first.step()
            second.step()
            slow.after()
    steps = recorder.store.trajectory().steps
    assert steps.sizes["step"] == 4
    compare(steps, slow, torch.tensor([0.2] * 42 + [0.05] * 16, dtype=DOUBLE), residual_atol=1e-7)
    np.testing.assert_array_equal(steps["lr_1"].values, 0.05)
    assert (steps["descent_residual"].values < 1e-12).all()


def test_compiled_model_and_unusual_modes():
    model = network(torch.float32)
    compiled = torch.compile(model, backend="eager")
    optimizer = torch.optim.SGD(compiled.parameters(), lr=0.1)
    with torch.inference_mode():
        recorder = record(compiled, optimizer)
    with recorder, torch.autocast("cpu", dtype=torch.bfloat16):
        for batch in batches(3, dtype=torch.float32):
            optimizer.zero_grad()
            recorder.loss(compiled, batch).backward()
            with torch.no_grad():
                optimizer.step()
    trajectory = recorder.store.trajectory()
    assert trajectory.header.layout.names == ("0.weight", "0.bias", "2.weight", "2.bias")
    assert torch.equal(trajectory.theta(3), flat(model))
    assert (trajectory.steps["descent_residual"].values < 1e-5).all()


def test_bfloat16_parameters_and_sparse_gradients():
    model = nn.Sequential(nn.Embedding(9, 4, sparse=True), nn.Flatten(), nn.Linear(8, 2).to(torch.float32))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model, optimizer, loss=lambda m, b: m(b).pow(2).mean()) as recorder:
        for _ in range(2):
            optimizer.zero_grad()
            recorder.loss(model, torch.tensor([[1, 2], [3, 1]])).backward()
            optimizer.step()
    assert (recorder.store.trajectory().steps["descent_residual"].values < 1e-5).all()
    model = network(torch.bfloat16)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model, optimizer) as recorder:
        plain_loop(model, optimizer, recorder, batches(2, dtype=torch.bfloat16))
    assert torch.equal(recorder.store.trajectory().theta(2), flat(model).float())


def test_no_gradient_and_nonfinite_updates_are_marked_and_recording_goes_on():
    model, data = network(), batches(5)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model, optimizer) as recorder:
        for number, batch in enumerate(data):
            optimizer.zero_grad()
            value = recorder.loss(model, batch)
            if number == 3:
                value = value * math.nan
            if number != 1:
                value.backward()
            optimizer.step()
    steps = recorder.store.trajectory().steps
    assert steps["flags"].values.tolist() == [0, NO_GRADIENT, 0, NONFINITE, NONFINITE]
    assert np.isnan(steps["gradient_norm"].values).tolist() == [False, True, False, True, True]
    assert np.isnan(steps["gradient_cosine"].values).tolist() == [True, True, True, True, True]
    assert recorder.store.trajectory().theta(5).isnan().any()


def test_a_loop_that_raises_keeps_everything_and_its_exception(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = Recorder(tmp_path / "run", model, optimizer, loss=loss)

    def interrupted():
        with recorder:
            plain_loop(model, optimizer, recorder, batches(3))
            raise ZeroDivisionError("mine")

    with pytest.raises(ZeroDivisionError, match="mine"):
        interrupted()
    recorder.close()
    trajectory = ZarrStore.read(tmp_path / "run")
    assert trajectory.steps["step"].values.tolist() == [0, 1, 2]
    assert torch.equal(trajectory.theta(3), flat(model))
    optimizer.step()
    assert recorder.stored_steps == 3


def test_an_update_that_raises_halfway_has_no_row():
    model, data = network(), batches(1)[0]
    optimizer = torch.optim.LBFGS(model.parameters(), lr=0.5, max_iter=4)
    recorder, calls = record(model, optimizer), []

    def closure():
        calls.append(1)
        if len(calls) > 6:
            raise ValueError("in the middle")
        optimizer.zero_grad()
        value = recorder.loss(model, data)
        value.backward()
        return value

    optimizer.step(closure)
    point = flat(model)
    with pytest.raises(ValueError, match="in the middle"):
        optimizer.step(closure)
    recorder.close()
    trajectory = recorder.store.trajectory()
    assert trajectory.steps["step"].values.tolist() == [0]
    assert torch.equal(trajectory.theta(1), point)


def test_log_and_watch():
    model, data = (
        network(),
        torch.utils.data.DataLoader(list(zip(torch.randn(12, 5), torch.randn(12, 2), strict=True)), batch_size=4),
    )
    model.float()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with record(model, optimizer) as recorder:
        watched = recorder.watch(data)
        assert len(watched) == 3
        assert watched.batch_size == 4
        with pytest.raises(AttributeError, match="nothing_like_it"):
            _ = watched.nothing_like_it
        objects = [object(), object()]
        assert [a is b for a, b in zip(recorder.watch(objects), objects, strict=True)] == [True, True]
        ahead = iter(recorder.watch(iter_and_count := CountingIterable()))
        next(ahead)
        assert iter_and_count.given == 1
        recorder._pending.clear()
        assert not hasattr(recorder.watch(iter([])), "__len__")
        for number, batch in enumerate(watched):
            optimizer.zero_grad()
            loss(model, batch).backward()
            recorder.log(accuracy=torch.tensor(0.5 + number), **({"late": 7} if number == 2 else {}))
            optimizer.step()
        with pytest.raises(ArgumentError, match="log: 'update_norm' is a column of the recorder"):
            recorder.log(update_norm=3.0)
        with pytest.raises(ArgumentError, match=r"log: 'x' has shape \(2,\), expected a single number"):
            recorder.log(x=torch.zeros(2))
        with pytest.raises(ArgumentError, match="log: 'x' is 'high', expected a number"):
            recorder.log(x="high")
    steps = recorder.store.trajectory().steps
    assert steps["accuracy"].values.tolist() == [0.5, 1.5, 2.5]
    np.testing.assert_array_equal(steps["late"].values, [math.nan, math.nan, 7])
    assert (steps["batch_size"] == 4).all()


class CountingIterable:
    given = 0

    def __iter__(self):
        while True:
            self.given += 1
            yield self.given


def test_leading_dimension_of_odd_batches():
    assert leading_dimension({"n": 3, "x": (torch.zeros(()), torch.zeros(4, 2))}) == 4
    assert leading_dimension(np.zeros((5, 1))) == 5
    assert math.isnan(leading_dimension("text"))
