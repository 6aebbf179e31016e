"""What the recorder keeps and where it goes: schedules, budget, going on with a run, the writer, wrong use."""

import logging
import threading
import time

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sgdscope.errors import ArgumentError, RecorderError, StoreError
from sgdscope.recorder import Recorder, bursts, every, logarithmic
from sgdscope.recorder.schedules import parse_bytes, within
from sgdscope.recorder.writer import MOST_BYTES, MOST_WAITING, Writer
from sgdscope.records import Record, Snapshot, StepBlock
from sgdscope.stores.memory import MemoryStore
from sgdscope.stores.zarr import ZarrStore


def loss(model, batch):
    x, y = batch
    return F.mse_loss(model(x), y)


def network(width=7):
    return nn.Sequential(nn.Linear(5, width), nn.Tanh(), nn.Linear(width, 2)).double()


def batches(n, seed=11):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(6, 5, generator=generator).double(), torch.randn(6, 2, generator=generator).double()) for _ in range(n)]


def flat(model):
    return torch.cat([p.detach().reshape(-1) for p in model.parameters()]).clone()


def record(model, optimizer, **options):
    return Recorder(None, model, optimizer, **({"loss": loss, "store": "memory", "snapshots": every(1)} | options))


def loop(model, optimizer, recorder, data):
    points = [flat(model)]
    for batch in recorder.watch(data):
        optimizer.zero_grad()
        recorder.loss(model, batch).backward()
        optimizer.step()
        points.append(flat(model))
    return points


# --- points ----------------------------------------------------------------------------------------------------------


class Stub:
    """A sink that writes down what it gets and in which order."""

    def __init__(self):
        self.order = []

    def begin(self, header):
        self.order.append(("begin", header.layout.size))

    def write_steps(self, block):
        self.order.append(("steps", block.steps.tolist()))

    def write_snapshot(self, snapshot):
        self.order.append(("point", snapshot.step))

    def write_record(self, record):
        self.order.append((record.kind, record.step))

    def flush(self):
        self.order.append(("flush", 0))

    def close(self):
        self.order.append(("close", 0))


def walk(recorder, model, optimizer, updates):
    loop(model, optimizer, recorder, batches(updates))


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (every(1), [0, 1, 2, 3, 4, 5, 6, 7]),
        (every(3), [0, 1, 3, 4, 6, 7]),
        (bursts(2, at=[1, 4]), [0, 1, 2, 3, 4, 5, 6, 7]),
        (bursts(1, gap=3), [0, 1, 4, 5, 7]),
        (logarithmic(1), [0, 1, 2, 7]),
        (lambda step: step == 5, [0, 5, 6, 7]),
        (lambda step: False, [0, 7]),
    ],
    ids=["every", "third", "bursts", "gaps", "logarithmic", "one", "none"],
)
def test_schedules_name_updates_and_both_ends_are_kept(schedule, points):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    live = Stub()
    with record(model, optimizer, snapshots=schedule, live=[live]) as recorder:
        walk(recorder, model, optimizer, 7)
    assert recorder.store.trajectory().snapshot_steps.tolist() == points
    assert [step for kind, step in live.order if kind == "point"] == points
    sent = 0
    for kind, what in live.order[1:-1]:
        if kind == "steps":
            assert what == list(range(sent, sent + len(what)))
            sent += len(what)
        elif kind == "point":
            assert sent >= what  # the scalars up to what - 1 are there
    assert sent == 7
    assert live.order[0][0] == "begin"
    assert live.order[-1][0] == "close"


def brute_force(schedule, total):
    named = [t for t in range(total) if schedule(t)]
    return len(set(named) | {t + 1 for t in named})


@pytest.mark.parametrize("total", [1, 17, 400])
def test_expected_points_equal_counted_ones(total):
    for schedule in (
        every(1),
        every(7),
        bursts(5),
        bursts(5, gap=0),
        bursts(3, at=[0, 3, 9, 300]),
        bursts(4, gap=9, total=50),
        logarithmic(7),
    ):
        assert schedule.expected(total) == brute_force(schedule, total), str(schedule)
    assert every(2).expected(None) is None
    assert bursts(5, at=[0, 5, 100]).expected(None) == 17


def test_the_default_schedule_fits_its_budget():
    for budget, size in ((10**6, 4000), (2 * 10**9, 4 * 10**6), (5000, 1000)):
        schedule = within(budget, size)
        assert schedule.at[0] == 0
        assert list(schedule.at) == sorted(set(schedule.at))
        assert (schedule.expected(None) + 2) * size <= budget
        assert schedule.length == 60 or schedule.expected(None) < 61
    assert len(within(10**12, 4000).at) == 64


def test_the_budget_ends_snapshots_and_nothing_else(caplog):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    size = 8 * sum(p.numel() for p in model.parameters())
    with caplog.at_level(logging.WARNING, "sgdscope"), record(model, optimizer, budget=5 * size) as recorder:
        walk(recorder, model, optimizer, 9)
    trajectory = recorder.store.trajectory()
    assert trajectory.snapshot_steps.tolist() == [0, 1, 2, 3, 9]
    assert recorder.stopped_at == 4
    assert trajectory.steps.sizes["step"] == 9
    assert recorder.expected_bytes == 5 * size
    assert sum("is used up at update 4" in message for message in caplog.messages) == 1


def test_batches_and_key_frames_of_named_updates():
    model, data = network(), batches(6)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def frame(step):
        return Record("keyframes", step, {"theta": flat(model).numpy()}) if step % 2 == 0 else None

    with record(model, optimizer, snapshots=bursts(2, at=[1, 4]), batches="bursts", keyframes=frame) as recorder:
        points = loop(model, optimizer, recorder, data)
    store = recorder.store
    assert MemoryStore.record_steps(store, "batches") == [1, 2, 4, 5]
    assert torch.equal(store.trajectory().batch(4)[1], data[4][1])
    assert MemoryStore.record_steps(store, "keyframes") == [0, 2, 4]
    np.testing.assert_array_equal(MemoryStore.read_record(store, "keyframes", 4)[0]["theta"], points[4].numpy())


def test_settings_tell_how_the_run_was_made():
    model = network()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02, betas=(0.8, 0.95))
    record(model, optimizer, settings={"seed": 5, "model": "mine"}).close()
    recorder = record(model, optimizer, settings={"seed": 5, "model": "mine"})
    recorder.close()
    settings = recorder.store.trajectory().settings
    assert settings["optimizers"][0]["class"] == "AdamW"
    assert settings["optimizers"][0]["betas"] == [0.8, 0.95]
    assert (settings["seed"], settings["model"], settings["snapshots"]) == (5, "mine", "every update")
    assert settings["threads"] == torch.get_num_threads()


# --- going on with a run ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("start_step", [None, 3])
def test_append_goes_on_with_numbers_and_distances(tmp_path, start_step):
    data = batches(8)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "run", model, optimizer, loss=loss, snapshots=every(1)) as recorder:
        first = loop(model, optimizer, recorder, data[:5])
    at = 5 if start_step is None else start_step
    torch.nn.utils.vector_to_parameters(first[at], model.parameters())
    options = {"loss": loss, "snapshots": every(1), "resume": "append", "start_step": start_step}
    with Recorder(tmp_path / "run", model, optimizer, **options) as recorder:
        assert recorder.step == at
        second = loop(model, optimizer, recorder, data[at:])
    trajectory = ZarrStore.read(tmp_path / "run")
    assert trajectory.steps["step"].values.tolist() == list(range(8))
    assert trajectory.snapshot_steps.tolist() == list(range(9))
    points = first[:at] + second
    for step, point in enumerate(points):
        assert torch.equal(trajectory.theta(step), point)
    distance = [float((point - points[0]).norm()) for point in points[:-1]]
    np.testing.assert_allclose(trajectory.steps["distance"].values, distance, rtol=1e-9)


def test_append_to_nothing_starts_a_run_and_another_model_is_refused(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "run", model, optimizer, loss=loss, resume="append") as recorder:
        walk(recorder, model, optimizer, 2)
    with pytest.raises(StoreError, match="run"):
        Recorder(tmp_path / "run", model, optimizer, loss=loss)
    other = network(width=8)
    with pytest.raises((StoreError, ArgumentError), match=r"0\.weight|shape|layout"):
        Recorder(tmp_path / "run", other, torch.optim.SGD(other.parameters(), lr=0.1), loss=loss, resume="append")
    assert ZarrStore.read(tmp_path / "run").steps.sizes["step"] == 2


# --- the writer ------------------------------------------------------------------------------------------------------


class Gate(Stub):
    def __init__(self):
        super().__init__()
        self.opened = threading.Event()

    def write_snapshot(self, snapshot):
        self.opened.wait(10)
        super().write_snapshot(snapshot)


def point(step, size=1000):
    return Snapshot(step, torch.zeros(size), torch.zeros(0))


@pytest.mark.parametrize(("size", "most"), [(10, MOST_WAITING), (20 * 10**6, MOST_BYTES // (80 * 10**6))])
def test_a_full_queue_waits_and_drops_nothing(size, most):
    gate = Gate()
    writer = Writer(gate, "gate")
    shared = torch.zeros(size)
    put = []

    def fill():
        for step in range(most + 3):
            writer.put(Snapshot(step, shared, torch.zeros(0)))
            put.append(step)

    thread = threading.Thread(target=fill)
    thread.start()
    deadline = time.monotonic() + 5
    while writer.waited == 0 and time.monotonic() < deadline:
        time.sleep(0.005)
    time.sleep(0.02)
    assert len(put) == most
    gate.opened.set()
    thread.join()
    writer.flush()
    writer.close()
    assert [step for kind, step in gate.order if kind == "point"] == list(range(most + 3))
    assert gate.order[-2:] == [("flush", 0), ("close", 0)]


def test_an_error_of_the_writer_stops_the_run_with_its_cause(monkeypatch):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    recorder = record(model, optimizer)

    def full(snapshot):
        raise OSError(28, "No space left on device")

    walk(recorder, model, optimizer, 2)
    recorder.flush()
    monkeypatch.setattr(recorder.store, "write_snapshot", full)

    def go_on():
        for _ in range(100):
            walk(recorder, model, optimizer, 1)
            time.sleep(0.01)

    with pytest.raises(RecorderError, match=r"writing failed, the run is stopped.*No space left") as caught:
        go_on()
    assert isinstance(caught.value.__cause__, OSError)
    with pytest.raises(RecorderError, match="No space left"):
        recorder.close()
    recorder.close()
    assert recorder.store.trajectory().snapshot_steps.tolist()[:2] == [0, 1]
    optimizer.step()  # detached
    recorder = record(model, optimizer)

    def interrupted():
        with recorder:
            walk(recorder, model, optimizer, 1)
            recorder.flush()
            monkeypatch.setattr(recorder.store, "write_snapshot", full)  # from here on only close() writes
            raise KeyError("theirs")

    with pytest.raises(KeyError, match="theirs") as caught:
        interrupted()
    assert "No space left" in caught.value.__notes__[0]


def test_a_live_sink_that_fails_stops_the_run_and_the_store_is_closed(tmp_path):
    class Broken(Stub):
        def write_snapshot(self, snapshot):
            if snapshot.step == 2:
                raise ValueError("cannot measure")

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        pytest.raises(ValueError, match="cannot measure"),
        Recorder(tmp_path / "run", model, optimizer, loss=loss, snapshots=every(1), live=[Broken()]) as recorder,
    ):
        walk(recorder, model, optimizer, 50)
    kept = ZarrStore.read(tmp_path / "run").snapshot_steps.tolist()
    assert kept == list(range(len(kept)))
    assert 3 <= len(kept) <= 20  # sinks are fed after at most 16 points


# --- wrong use -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"budget": "2 parsecs"}, "budget: expected a positive number of bytes such as '2 GB', got '2 parsecs'"),
        ({"budget": -3}, "budget: expected a positive number"),
        ({"snapshots": 5}, "snapshots: expected a callable or None, got 5"),
        ({"loss": "cross"}, "loss: expected a callable or None, got 'cross'"),
        ({"batches": "all"}, "batches: expected 'none' or 'bursts', got 'all'"),
        ({"resume": "yes"}, "resume: expected 'error' or 'append', got 'yes'"),
        ({"start_step": -1}, "start_step: expected an integer of at least 0 or None, got -1"),
        ({"parameters": "conv*"}, "the pattern 'conv\\*' matches none"),
        ({"settings": {"f": print}}, "settings: expected JSON types"),
        ({"store": "zarr"}, "path: ZarrStore needs a directory, got None"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    model = network()
    with pytest.raises(ArgumentError, match=message):
        record(model, torch.optim.SGD(model.parameters(), lr=0.1), **options)


def test_wrong_models_and_optimizers(tmp_path):
    model, other = network(), network()
    with pytest.raises(ArgumentError, match="optimizer: it owns none of the chosen parameters"):
        record(model, torch.optim.SGD(other.parameters(), lr=0.1))
    with pytest.raises(ArgumentError, match=r"optimizer: expected a torch\.optim\.Optimizer or a list of them, got Linear"):
        record(model, [nn.Linear(2, 2)])
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with pytest.raises(ArgumentError, match="listed twice"):
        record(model, [optimizer, optimizer])
    with pytest.raises(ArgumentError, match="budget: the snapshots may take 1e"):
        Recorder(tmp_path / "run", model, optimizer, budget="1000000 TB", snapshots=every(1))
    assert not (tmp_path / "run").exists()
    model.requires_grad_(False)
    with pytest.raises(ArgumentError, match="no parameter requires a gradient"):
        record(model, optimizer)
    for wrong, message in (
        (lambda: every(0), "n: expected"),
        (lambda: bursts(2, at=[1], gap=2), "either at= or gap="),
        (lambda: bursts(2, at=[]), "at: expected"),
        (lambda: logarithmic(-1), "per_decade: expected"),
    ):
        with pytest.raises(ArgumentError, match=message):
            wrong()


def test_a_changed_requires_grad_is_an_error_at_the_next_step():
    model = network()
    model[2].bias.requires_grad_(False)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for parameter, value in ((model[0].weight, False), (model[2].bias, True)):
        recorder = record(model, optimizer)
        walk(recorder, model, optimizer, 1)
        parameter.requires_grad_(value)
        with pytest.raises(RecorderError, match="requires_grad of a parameter changed before update 1"):
            walk(recorder, model, optimizer, 1)
        parameter.requires_grad_(not value)
        recorder.close()


def test_loss_must_be_a_callable_that_gives_a_tensor():
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with (
        record(model, optimizer, loss=None) as recorder,
        pytest.raises(ArgumentError, match="loss: the recorder was made without"),
    ):
        recorder.loss(model, batches(1)[0])
    with (
        record(model, optimizer, loss=lambda m, b: 3.0) as recorder,
        pytest.raises(ArgumentError, match="loss: expected a tensor"),
    ):
        recorder.loss(model, batches(1)[0])


def test_other_ranks_record_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 1)
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "run", model, optimizer, loss=loss) as recorder:
        walk(recorder, model, optimizer, 2)
        recorder.log(x=1.0)
        recorder.flush()
    assert not (tmp_path / "run").exists()
    assert recorder.stored_steps == 0


def test_bytes_are_read_in_words():
    assert parse_bytes("2 GB") == 2 * 10**9
    assert parse_bytes("1.5MiB") == 3 * 2**19
    assert parse_bytes(1e6) == 10**6


def test_a_block_can_be_put_while_the_queue_is_full():
    gate = Gate()
    writer = Writer(gate, "gate")
    for step in range(MOST_WAITING):
        writer.put(point(step))
    writer.put(StepBlock(np.array([0]), {"loss": np.array([1.0])}))
    gate.opened.set()
    writer.close()
    assert ("steps", [0]) in gate.order


def test_going_on_never_joins_points_that_no_step_joined(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Recorder(tmp_path / "run", model, optimizer, loss=loss, snapshots=every(1)) as recorder:
        points = loop(model, optimizer, recorder, batches(6))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.5)
    with pytest.raises(ArgumentError, match="start_step: the model does not stand at update 6 of the recorded run"):
        Recorder(tmp_path / "run", model, optimizer, loss=loss, snapshots=every(1), resume="append")
    assert torch.equal(ZarrStore.read(tmp_path / "run").theta(6), points[6])
    with Recorder(tmp_path / "run", model, optimizer, loss=loss, snapshots=every(1), resume="append", start_step=9) as recorder:
        loop(model, optimizer, recorder, batches(2))
    stored = ZarrStore.read(tmp_path / "run")
    assert stored.snapshot_steps.tolist() == [0, 1, 2, 3, 4, 5, 6, 10, 11]
    assert stored.steps["step"].values.tolist() == [0, 1, 2, 3, 4, 5, 9, 10]
