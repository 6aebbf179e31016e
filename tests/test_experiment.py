"""The description of an experiment, its schedules and the order of its data."""

import math
from copy import deepcopy

import pytest
import torch

from sgdscope.errors import ArgumentError, UnknownNameError
from sgdscope.experiment import Experiment, describe, load_toml
from sgdscope.experiment.schedules import Constant, Cyclic, CyclicBatch, Decay, Order, Step, Trapezoid, derived_seed

DESCRIBED = {
    "name": "small",
    "seed": 4,
    "data": {"dataset": "digits", "train": 300, "label_noise": 0.3},
    "model": {"name": "mlp", "hidden": [20]},
    "phases": [
        {"lr": 0.2, "batch_size": 32, "updates": 12, "schedule": {"kind": "cyclic", "low": 0.1, "high": 0.5, "period": 10}},
        {"walker": "adam", "lr": 0.01, "batch_size": "full", "epochs": 3.0, "betas": [0.8, 0.99]},
    ],
    "record": {"snapshots": {"kind": "every", "n": 2}, "mode": "snapshots", "keyframes": 5},
}


def changed(path, value):
    described = deepcopy(DESCRIBED)
    inside = described
    for key in path[:-1]:
        inside = inside[key]
    inside[path[-1]] = value
    return described


# --- schedules at values computed by hand -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        (Constant(), {0: 0.3, 7: 0.3, 99: 0.3}),
        (Cyclic(kind="cyclic", low=0.1, high=0.7, period=6), {0: 0.1, 1: 0.3, 3: 0.7, 4: 0.5, 5: 0.3, 6: 0.1, 9: 0.7}),
        (Cyclic(kind="cyclic", low=0.1, high=1.0, period=20, end=0.01), {0: 0.1, 10: 1.0, 15: 0.505, 19: 0.109, 20: 0.1}),
        (Cyclic(kind="cyclic", low=1.0, high=3.0, period=5), {0: 1.0, 1: 1.8, 2: 2.6, 3: 2.6, 4: 1.8, 5: 1.0}),
        (Step(kind="step", at=[3, 8], values=[0.05, 0.002]), {0: 0.3, 2: 0.3, 3: 0.05, 7: 0.05, 8: 0.002, 99: 0.002}),
        (
            Trapezoid(kind="trapezoid", start=0.1, end=0.02, rise=4, decay=7),
            {0: 0.1, 1: 0.15, 3: 0.25, 4: 0.3, 93: 0.3, 94: 0.26, 99: 0.06},
        ),
        (
            Trapezoid(kind="trapezoid", start=0.1, end=0.02, rise=4, hold=3, decay=7),
            {4: 0.3, 6: 0.3, 7: 0.3, 8: 0.26, 13: 0.06, 14: 0.02, 50: 0.02},
        ),
        (Trapezoid(kind="trapezoid", start=0.1, end=0.02, rise=0, hold=2, decay=0), {0: 0.3, 1: 0.3, 2: 0.02}),
        (Decay(kind="decay"), {0: 0.3, 25: 0.225, 99: 0.003}),
        (Decay(kind="decay", shape="sqrt", floor=0.1), {0: 0.3, 25: 0.2, 64: 0.14, 100: 0.1}),
        (
            Decay(kind="decay", shape="cosine", floor=0.1, length=40),
            {0: 0.3, 10: 0.2 + 0.1 * math.sqrt(0.5), 20: 0.2, 60: 0.1},
        ),
        (CyclicBatch(kind="cyclic_batch", low=8, high=64, period=6), {0: 0.3, 3: 0.3}),
    ],
)
def test_the_learning_rate_at_hand_computed_updates(schedule, expected):
    for update, lr in expected.items():
        assert schedule.lr(update, 0.3, 100) == pytest.approx(lr, rel=1e-12), update


def test_the_cyclic_batch_size():
    schedule = CyclicBatch(kind="cyclic_batch", low=8, high=65, period=6)
    assert [schedule.batch_size(t) for t in range(8)] == [8, 27, 46, 65, 46, 27, 8, 27]


# --- the order of the data ---------------------------------------------------------------------------------------------------


def test_an_epoch_is_a_permutation_and_the_next_one_another():
    order = Order(23, 5, seed=3, phase=1)
    epochs = [torch.cat([order.indices(4 * e + b) for b in range(4)]) for e in range(3)]
    for epoch in epochs:
        assert len(set(epoch.tolist())) == 20
    assert len({tuple(e.tolist()) for e in epochs}) == 3
    assert [order.epoch(t) for t in (0, 3, 4, 11)] == [0, 0, 1, 2]
    assert torch.equal(
        torch.sort(torch.cat([Order(20, 5, seed=3, phase=1).indices(b) for b in range(4)])).values, torch.arange(20)
    )


def test_the_order_depends_on_seed_and_phase_alone():
    reference = Order(50, 8, seed=3, phase=0).indices(17)
    torch.manual_seed(5)
    before = torch.get_rng_state()
    again = Order(50, 8, seed=3, phase=0)
    again.indices(40)
    assert torch.equal(again.indices(17), reference)
    assert torch.equal(before, torch.get_rng_state())
    assert not torch.equal(Order(50, 8, seed=4, phase=0).indices(17), reference)
    assert not torch.equal(Order(50, 8, seed=3, phase=1).indices(17), reference)
    again.indices(17)[:] = 0
    assert torch.equal(again.indices(17), reference)  # a copy


def test_with_replacement_draws_are_independent_and_uniform():
    order = Order(10, 7, seed=3, phase=0, replacement=True)
    draws = torch.stack([order.indices(t) for t in range(1000)])
    counts = torch.bincount(draws.flatten(), minlength=10).double()
    assert ((counts - 700) ** 2 / 700).sum() < 33  # chi-square with 9 degrees of freedom: p = 1e-4, the seed is fixed
    assert any(len(set(row.tolist())) < 7 for row in draws)


def test_changing_batch_sizes_never_cross_an_epoch():
    sizes = [CyclicBatch(kind="cyclic_batch", low=4, high=16, period=6).batch_size(t) for t in range(40)]
    order = Order(37, sizes, seed=3, phase=0)
    epochs: dict[int, list[int]] = {}
    for update, size in enumerate(sizes):
        indices = order.indices(update)
        assert len(indices) == size == order.batch_size(update)
        epochs.setdefault(order.epoch(update), []).extend(indices.tolist())
    assert len(epochs) > 8
    assert all(len(seen) == len(set(seen)) for seen in epochs.values())
    constant = Order(37, [5] * 40, seed=3, phase=0)
    assert all(torch.equal(constant.indices(t), Order(37, 5, seed=3, phase=0).indices(t)) for t in range(40))


def test_an_epoch_of_listed_sizes_is_used_to_its_end():
    listed, constant = Order(20, [5] * 9, seed=3, phase=0), Order(20, 5, seed=3, phase=0)
    assert [listed.epoch(t) for t in range(9)] == [0, 0, 0, 0, 1, 1, 1, 1, 2]
    assert all(torch.equal(listed.indices(t), constant.indices(t)) for t in range(9))


def test_draws_with_replacement_depend_on_seed_phase_and_update():
    draws = [Order(99, 7, seed=s, phase=p, replacement=True).indices(t).tolist() for s in (3, 4) for p in (0, 1) for t in (0, 5)]
    assert len({tuple(d) for d in draws}) == 8


def test_a_full_batch_is_all_examples_in_their_order():
    assert torch.equal(Order(9, 9, seed=3, phase=0).indices(4), torch.arange(9))


def test_the_seed_of_a_purpose_is_the_same_everywhere():
    assert derived_seed(3, "order", 0, 1) == 4298422244528437792
    assert len({derived_seed(s, p, n) for s in range(9) for p in "ab" for n in range(9)}) == 162


# --- the description -----------------------------------------------------------------------------------------------------------


def test_a_description_goes_to_json_and_back():
    experiment = Experiment(**DESCRIBED)
    assert Experiment(**experiment.described()) == experiment
    assert describe(DESCRIBED) == experiment
    assert Experiment.model_validate(DESCRIBED) == experiment
    assert describe(experiment) is experiment
    assert experiment.model.options == {"hidden": [20]}
    assert experiment.phases[1].options == {"betas": [0.8, 0.99]}


def test_epochs_become_updates():
    phases = Experiment(**DESCRIBED).phases
    assert phases[0].length(300) == 12
    assert phases[1].length(300) == 3
    half = Experiment(**changed(("phases", 1), {"lr": 0.1, "batch_size": 32, "epochs": 2.5})).phases[1]
    assert half.length(300) == round(2.5 * 9)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("sed",), 3, "sed: unknown key; did you mean 'seed'"),
        (("data", "datset"), "x", "data.datset: unknown key; did you mean 'dataset'"),
        (("phases", 0, "momentun"), 0.9, r"phases\[0\].momentun: unknown key; did you mean 'momentum'"),
        (("phases", 0, "gamma"), 0.1, r"phases\[0\].gamma: unknown key; "),
        (("phases", 0), {"walker": "nudged", "lr": 0.1, "batch_size": 9, "updates": 2, "gama": 0.1}, "gama: .*mean 'gamma'"),
        (
            ("phases", 0),
            {"walker": "nudged", "lr": 0.1, "batch_size": 9, "updates": 2, "vriant": "dom", "thresold": 2},
            r"(?s)phases\[0\].vriant: unknown key; did you mean 'variant'.*phases\[0\].thresold: .* 'threshold'",
        ),
        (("phases", 0, "schedule", "hig"), 0.9, r"phases\[0\].schedule.hig: unknown key; did you mean 'high'"),
        (("phases", 0, "schedule", "kind"), "cyclc", r"phases\[0\].schedule: .*'cyclic', 'step'"),
        (
            ("phases", 0, "schedule", "period"),
            1,
            r"phases\[0\].schedule.period: expected greater than or equal to 2; got 1 \(int\)",
        ),
        (("phases", 0, "lr"), "0.2", r"phases\[0\].lr: expected a valid number; got '0.2' \(str\)"),
        (("phases", 0, "lr"), -0.1, r"phases\[0\].lr: expected greater than 0; got -0.1 \(float\)"),
        (("phases", 1, "lr"), math.nan, r"phases\[1\].lr: expected"),
        (("phases", 0, "batch_size"), 0, r"phases\[0\].batch_size: expected greater than 0; got 0 \(int\)"),
        (("phases", 0, "batch_size"), "all", r"phases\[0\].batch_size: expected 'full'; got 'all' \(str\)"),
        (("phases", 0, "updates"), 0, r"phases\[0\].updates: expected greater than 0; got 0 \(int\)"),
        (("phases", 0, "epochs"), 1.0, r"phases\[0\]: expected either updates or epochs, got updates = 12"),
        (("phases", 0, "schedule"), {"kind": "step", "at": [3, 2], "values": [0.1, 0.2]}, "expected 'at' to increase"),
        (
            ("phases", 0, "schedule"),
            {"kind": "step", "at": [3], "values": [0.1, 0.2]},
            r"expected as many values .* \(1\), got 2",
        ),
        (("phases",), [], "phases: "),
        (("data", "label_noise"), 1.5, r"data.label_noise: expected less than or equal to 1; got 1.5 \(float\)"),
        (("record", "snapshots"), {"kind": "every", "n": 0}, "record.snapshots.n: expected greater than 0"),
        (("threads",), True, r"threads: expected a valid integer; got True \(bool\)"),
        (("name",), "../x", "name: expected letters"),
        (("grid",), {"lr": 3}, r"grid.lr: expected a valid list; got 3 \(int\)"),
        (("start",), {"run": "x"}, "start.step: required, and missing"),
    ],
)
def test_wrong_descriptions_name_the_key(path, value, message):
    with pytest.raises(ArgumentError, match=message):
        Experiment(**changed(path, value))
    with pytest.raises(ArgumentError, match=message):
        Experiment.model_validate(changed(path, value))


def test_a_grid_expands_to_named_experiments():
    grid = {"lr": [0.05, 0.2], "batch_size": [16, "full"], "seed": [3], "model.hidden": [7], "label_noise": [0.1]}
    experiments = Experiment(**changed(("grid",), grid)).expand()
    assert [e.name for e in experiments] == [
        f"lr{lr}-batch{size}-seed3-hidden7-label_noise0.1" for lr in (0.05, 0.2) for size in (16, "full")
    ]
    last = experiments[-1]
    assert [(p.lr, p.batch_size) for p in last.phases] == [(0.2, "full")] * 2
    assert (last.seed, last.model.options, last.data.label_noise, last.grid) == (3, {"hidden": 7}, 0.1, {})
    assert Experiment(**DESCRIBED).expand() == [Experiment(**DESCRIBED)]
    described = changed(("grid",), {"gamma": [0.1, 1.0]})
    described["phases"].append({"walker": "nudged", "lr": 0.1, "batch_size": 9, "updates": 2, "k": 2})
    nudged = Experiment(**described).expand()
    assert [(e.name, e.phases[2].options) for e in nudged] == [(f"gamma{g}", {"gamma": g, "k": 2}) for g in (0.1, 1.0)]
    assert nudged[0].phases[:2] == Experiment(**DESCRIBED).phases
    assert Experiment(**nudged[1].described()) == nudged[1]
    with pytest.raises(UnknownNameError, match="no key of the grid is called 'lrr'; did you mean 'lr'"):
        Experiment(**changed(("grid",), {"lrr": [1.0]})).expand()


def test_toml_files_are_read_and_their_errors_located(tmp_path):
    path = tmp_path / "e.toml"
    text = 'name = "x"\n[data]\ndataset = "digits"\n[model]\nname = "mlp"\n[[phases]]\nlr = 0.1\nbatch_size = 9\nupdates = 3\n'
    path.write_text(text + '[start]\nrun = "other"\nstep = 5\n')
    experiment = load_toml(path)
    assert experiment.start.run == str(tmp_path / "other")
    assert experiment.phases[0].lr == pytest.approx(0.1)
    path.write_text(text.replace("lr = 0.1", "lr = = 0.1"))
    with pytest.raises(ArgumentError, match=r"e.toml: not valid TOML: .*line 7"):
        load_toml(path)
    path.write_text(text + "[grid")
    with pytest.raises(ArgumentError, match=r"not valid TOML: .*line 10"):
        load_toml(path)
    path.write_text(text.replace("lr =", "learning_rate ="))
    with pytest.raises(ArgumentError, match=r"e.toml: .*phases\[0\].lr: required, and missing"):
        load_toml(path)
    with pytest.raises(ArgumentError, match=r"missing\.toml: the experiment's file cannot be read: No such file"):
        load_toml(tmp_path / "missing.toml")


def test_nothing_of_a_description_can_be_changed_behind_its_back():
    described = deepcopy(DESCRIBED)
    experiment = Experiment(**described)
    described["phases"][0]["lr"] = 9.0
    assert experiment.phases[0].lr == pytest.approx(0.2)
