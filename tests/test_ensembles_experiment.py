"""Experiments of several members: ordinary runs, their combination, barriers, the command line."""

import json
from contextlib import closing
from copy import deepcopy

import numpy as np
import pytest
import torch

from sgdscope.cli import main
from sgdscope.contracts import Source, WalkerEntry, ensembles
from sgdscope.errors import ArgumentError, NotAvailableError, StoreError
from sgdscope.experiment import Experiment, load_toml, parts, read_ensemble, run, run_ensemble, surface_of
from sgdscope.experiment.ensembles import members, workloads
from sgdscope.experiment.loop import Loop
from sgdscope.experiment.running import recorded
from sgdscope.replicas import combined, fit_rate, weights
from sgdscope.runs import open_trajectory

DESCRIBED = {
    "name": "few",
    "seed": 6,
    "data": {"dataset": "wine"},
    "model": {"name": "mlp", "hidden": [6]},
    "phases": [{"lr": 0.3, "batch_size": 16, "updates": 30}, {"lr": 0.1, "batch_size": 16, "updates": 10}],
    "record": {"snapshots": {"kind": "every", "n": 10}},
}
RATE = {"rate": 0.05}


def described(ensemble, **changed):
    return Experiment(**deepcopy(DESCRIBED) | {"ensemble": {"members": 3} | ensemble} | changed)


def test_members_are_ordinary_experiments():
    made = members(described({"workloads": [40, 33, 7]}))
    assert [m.updates for m in made] == [40, 33, 7]
    assert [[p.updates for p in m.experiment.phases] for m in made] == [[30, 10], [30, 3], [7]]
    assert made[0].experiment.seed == 6
    assert made[0].experiment.model_seed is None
    assert {m.experiment.model_seed for m in made[1:]} == {6}
    assert len({m.experiment.seed for m in made}) == 3
    apart = members(described({"own_start": True}))
    assert [m.experiment.model_seed for m in apart] == [None] * 3


class Elastic:
    """Members of which each goes a share of the way to their mean after its update."""

    def __init__(self, members, *, pull, generator=None):
        self.members, self.pull, self.generator = members, pull, generator
        self.replicas = [[p for group in m.param_groups for p in group["params"]] for m in members]
        self.workloads, self.lost = [0] * len(members), set()

    def step(self, active=None):
        for i in range(len(self.members)) if active is None else active:
            self.members[i].step()
            self.workloads[i] += 1
        with torch.no_grad():
            for parts in zip(*self.replicas, strict=True):
                mean = torch.stack(list(parts)).mean(0)
                for p in parts:
                    p.lerp_(mean, self.pull)

    def lose(self, member):
        self.lost.add(member)

    def combine(self):
        assert self.generator is not None
        left = [None if i in self.lost else replica for i, replica in enumerate(self.replicas)]
        return combined(left, self.workloads, scheme="equal")


def test_a_further_ensemble_of_the_catalogue_is_run(tmp_path, monkeypatch):
    entry = WalkerEntry(Elastic, Source("elastic averaging"), {"pull": "0 <= pull <= 1"}, ({"pull": 0.4}, "sgd", {}))
    monkeypatch.setattr(ensembles, "_entries", dict(ensembles) | {"elastic": entry})
    elastic = {pull: {"name": "elastic", "pull": pull} for pull in (0.0, 0.4)}
    ends = {}
    for name, told in (("apart", {"scheme": "equal"}), ("free", elastic[0.0]), ("held", elastic[0.4])):
        out = run_ensemble(described({"workloads": [40, 20, 10]} | told), tmp_path / name)
        ends[name] = open_trajectory(out / "average").theta(0)
        lasts = [open_trajectory(out / f"member-{i}").theta(n) for i, n in enumerate((40, 20, 10))]
        assert read_ensemble(out)["members"][2]["updates"] == 10
        if name != "held":  # there, two members go on to be pulled after their last update
            torch.testing.assert_close(ends[name], torch.stack(lasts).mean(0), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(ends["free"], ends["apart"], rtol=1e-5, atol=1e-6)
    assert (ends["held"] - ends["free"]).norm() > 1e-2 * ends["free"].norm()
    with pytest.raises(ArgumentError, match=r"ensemble\.pul: unknown key; did you mean 'pull'"):
        described({"name": "elastic", "pul": 0.4})


def test_simulated_stragglers_are_drawn_from_the_seed():
    told = {"speeds": [1.3, 0.8, 0.35], "deadline": 25.0}
    assert workloads(described(told), 40) == [32, 20, 8]
    drawn = [workloads(described(told | {"scatter": 0.2}, seed=seed), 400) for seed in (6, 6, 7)]
    assert drawn[0] == drawn[1] != drawn[2]


def test_one_member_is_the_plain_run_bit_for_bit(tmp_path):
    plain = open_trajectory(run(Experiment(**DESCRIBED), tmp_path / "plain"))
    out = run_ensemble(described({"members": 1}), tmp_path / "one")
    assert torch.equal(open_trajectory(out / "average").theta(0), plain.theta(40))
    assert torch.equal(open_trajectory(out / "member-0").theta(17), plain.theta(17))


def test_the_average_is_that_of_the_recorded_members(tmp_path):
    experiment = described({"workloads": [40, 25, 0]} | RATE)
    out = run_ensemble(experiment, tmp_path / "few")
    told = read_ensemble(out)
    first, second = (open_trajectory(out / f"member-{i}") for i in (0, 1))
    assert torch.equal(first.theta(0), second.theta(0))
    assert not torch.equal(first.theta(1), second.theta(1))
    start, ends = first.theta(0), [first.theta(40), second.theta(25)]
    omega = weights([40, 25, 0], rate=0.05)
    expected = sum(w * x.double() for w, x in zip(omega.tolist(), [*ends, start], strict=True))
    average = open_trajectory(out / "average").theta(0)
    torch.testing.assert_close(average.double(), expected, rtol=1e-6, atol=1e-7)
    surface = surface_of(Experiment(**DESCRIBED))
    assert [m["weight"] for m in told["members"]] == pytest.approx(omega.tolist())
    assert told["loss_average"] == pytest.approx(surface.value(average), rel=1e-6)
    assert told["loss_equal"] == pytest.approx(surface.value((ends[0] + ends[1] + start) / 3), rel=1e-5)
    assert told["members"][2]["loss"] == pytest.approx(surface.value(start), rel=1e-6)
    line = [surface.value(torch.lerp(*ends, a)) for a in np.linspace(0, 1, 21).tolist()]
    assert told["segments"][0]["losses"] == pytest.approx(line, rel=1e-5)
    assert told["segments"][0]["barrier"] == pytest.approx(max(line[1:-1]) - max(line[0], line[-1]), abs=1e-6)
    assert not (out / "member-2").exists()


def test_the_rate_comes_from_the_recorded_losses(tmp_path):
    base = {"phases": [{"lr": 0.2, "batch_size": 16, "updates": 60}]}
    out = run_ensemble(described({"workloads": [60, 60, 20]}, **base), tmp_path / "fit")
    curves = [open_trajectory(out / f"member-{i}").steps["loss"].values for i in range(3)]
    told = read_ensemble(out)
    assert told["rate_fitted"]
    assert told["rate"] == pytest.approx(fit_rate(curves).rate, rel=1e-9)
    assert told["rate_stderr"] > 0
    before = (out / "member-0" / "run.json").stat().st_mtime_ns
    run_ensemble(described({"workloads": [60, 60, 20], "scheme": "proportional"}, **base), out)
    assert (out / "member-0" / "run.json").stat().st_mtime_ns == before  # another scheme costs no walk
    assert [m["weight"] for m in read_ensemble(out)["members"]] == pytest.approx([3 / 7, 3 / 7, 1 / 7])


def test_a_rate_that_cannot_be_fitted_leaves_the_members(tmp_path):
    slow = {"phases": [{"lr": 1e-7, "batch_size": 16, "updates": 20}]}
    with pytest.raises(NotAvailableError, match="no contraction can be fitted"):
        run_ensemble(described({"workloads": [20, 9, 9]}, **slow), tmp_path / "slow")
    assert len(open_trajectory(tmp_path / "slow" / "member-2").steps["step"]) == 9


def test_a_lost_member_is_recorded_without_weight(tmp_path):
    out = run_ensemble(described({"lost": [1]} | RATE), tmp_path / "lost")
    told = read_ensemble(out)
    assert [m["weight"] for m in told["members"]] == [0.5, 0, 0.5]
    assert "lost: 1, the result is the weighted average of the others" in told["sentence"]
    ends = [open_trajectory(out / f"member-{i}").theta(40) for i in (0, 2)]
    torch.testing.assert_close(open_trajectory(out / "average").theta(0), (ends[0] + ends[1]) / 2)
    assert [(s["from"], s["to"]) for s in told["segments"]] == [(0, 2)]


@pytest.mark.parametrize("options", [{"mode": "local", "period": 5}, {"mode": "asynchronous"}])
def test_members_that_meet_are_recorded_by_their_points(options, tmp_path):
    out = run_ensemble(described({"workloads": [40, 20, 10]} | options | RATE), tmp_path / "met")
    runs = [open_trajectory(out / f"member-{i}") for i in range(3)]
    assert [len(r.steps["step"]) for r in runs] == [40, 20, 10]
    ends = [r.theta(len(r.steps["step"])) for r in runs]
    if options["mode"] == "local":
        assert torch.equal(ends[0], ends[1])  # the last update of the fastest ends a period
    assert torch.equal(open_trajectory(out / "average").theta(0), ends[2])  # the last one to deliver has fetched the centre
    alone = open_trajectory(run(members(described({"workloads": [40, 20, 10]}))[2].experiment, tmp_path / "alone"))
    assert not torch.equal(alone.theta(10), ends[2])


def test_replicas_far_apart_have_a_barrier_between_them_and_near_ones_none(tmp_path):
    base = {
        "data": {"dataset": "digits", "train": 500},
        "model": {"name": "mlp", "hidden": [20, 20]},
        "phases": [{"lr": 0.3, "batch_size": 25, "updates": 300}],
    }
    near = read_ensemble(run_ensemble(described({"members": 2, "scheme": "equal"}, **base), tmp_path / "near"))
    far = {"members": 2, "scheme": "equal", "own_start": True}
    far = read_ensemble(run_ensemble(described(far, **base), tmp_path / "far"))
    assert near["barrier"] < 0.01
    assert near["loss_average"] < max(m["loss"] for m in near["members"])
    assert far["barrier"] > 0.5
    assert far["loss_average"] > 5 * max(m["loss"] for m in far["members"])


def test_batchnorm_statistics_are_averaged_with_the_weights(tmp_path):
    base = {"data": {"dataset": "digits", "train": 200}, "model": {"name": "mlp", "hidden": [8], "batchnorm": True}}
    base |= {"phases": [{"lr": 0.05, "batch_size": 20, "updates": 8}]}
    out, experiment = tmp_path / "norm", Experiment(**DESCRIBED | base)
    run_ensemble(described({"workloads": [8, 8, 4]} | RATE, **base), out)
    buffers = [open_trajectory(out / f"member-{i}").buffers(n) for i, n in enumerate((8, 8, 4))]
    mixed = open_trajectory(out / "average").buffers(0)
    surface, ends = surface_of(experiment), [open_trajectory(out / f"member-{i}").theta(8) for i in (0, 1)]
    midway = [surface.value(torch.lerp(*ends, a), {k: torch.lerp(buffers[0][k].double(), buffers[1][k].double(), a).to(v.dtype)
              for k, v in mixed.items()}) for a in (0.25, 0.5)]  # fmt: skip
    assert [read_ensemble(out)["segments"][0]["losses"][i] for i in (5, 10)] == pytest.approx(midway, rel=1e-5)
    omega = weights([8, 8, 4], rate=0.05).tolist()
    assert mixed
    for name, value in mixed.items():
        if value.is_floating_point():
            expected = sum(w * own[name].double() for w, own in zip(omega, buffers, strict=True))
            torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-6)


def test_the_losses_of_members_count_by_their_weights(tmp_path):
    told = read_ensemble(run_ensemble(described({"workloads": [40, 20, 5]} | RATE), tmp_path / "few"))
    by_hand = sum(m["weight"] * m["loss"] for m in told["members"])
    assert told["loss_members"] == pytest.approx(by_hand)
    assert told["loss_members"] != pytest.approx(sum(m["loss"] for m in told["members"]) / 3, rel=0.01)
    assert told["barrier"] == max(s["barrier"] for s in told["segments"])


@pytest.mark.parametrize("options", [{"mode": "asynchronous"}, {"mode": "local", "period": 7}])
def test_a_member_that_is_lost_where_they_meet(options, tmp_path):
    base = {"data": {"dataset": "digits", "train": 200}, "model": {"name": "mlp", "hidden": [8], "batchnorm": True}}
    base |= {"phases": [{"lr": 0.05, "batch_size": 20, "updates": 8}]}
    out = run_ensemble(described({"workloads": [8, 8, 4], "lost": [1]} | options | RATE, **base), tmp_path / "lost")
    told = read_ensemble(out)
    left = [told["members"][i] for i in (0, 2)]
    share = [m["weight"] / sum(m["weight"] for m in left) for m in left]
    assert told["loss_members"] == pytest.approx(sum(w * m["loss"] for w, m in zip(share, left, strict=True)))
    average, *own = (open_trajectory(out / name).buffers(n) for name, n in (("average", 0), ("member-0", 8), ("member-2", 4)))
    for name, value in average.items():
        if value.is_floating_point():  # the weights of those that are left add up to 1
            torch.testing.assert_close(value, share[0] * own[0][name] + share[1] * own[1][name], rtol=1e-5, atol=1e-6)
    said = "what they had added stays" if "period" not in options else "the result is the weighted average of the others"
    assert told["sentence"].endswith(said)


def test_members_that_meet_are_not_replayed(tmp_path):
    out = run_ensemble(described({"workloads": [40, 20, 10], "mode": "asynchronous"} | RATE), tmp_path / "met")
    with pytest.raises(NotAvailableError):
        open_trajectory(out / "member-0").theta(7)  # no snapshot, and a replay would not know of the others


@pytest.mark.parametrize("options", [{}, {"mode": "local", "period": 3}])
def test_members_start_at_a_step_of_another_run(options, tmp_path):
    first = run(Experiment(**DESCRIBED), tmp_path / "first")
    start = open_trajectory(first).theta(40)
    told = {"start": {"run": str(first), "step": 40}}
    counts = {"workloads": [40, 25, 0]} if not options else {"workloads": [40, 25, 9]}
    out = run_ensemble(described(counts | options | RATE, **told), tmp_path / "on")
    assert torch.equal(open_trajectory(out / "member-0").theta(0), start)
    assert torch.equal(open_trajectory(out / "member-1").theta(0), start)
    if not options:
        at_start = surface_of(Experiment(**DESCRIBED)).value(start)
        assert read_ensemble(out)["members"][2]["loss"] == pytest.approx(at_start, rel=1e-6)


def test_runs_of_another_experiment_are_kept(tmp_path):
    first = run_ensemble(described({"workloads": [40, 25, 9]} | RATE), tmp_path / "out")
    kept = [open_trajectory(first / f"member-{i}").theta(9) for i in range(3)]
    with pytest.raises(StoreError, match="member-0 is no run of this member; choose another directory, or remove it"):
        run_ensemble(described({"mode": "local", "period": 3} | RATE), tmp_path / "out")
    assert all(torch.equal(open_trajectory(first / f"member-{i}").theta(9), theta) for i, theta in enumerate(kept))
    met = described({"workloads": [12, 8, 4], "mode": "local", "period": 3} | RATE)
    ends = [open_trajectory(run_ensemble(met, tmp_path / "met") / "average").theta(0) for _ in range(2)]  # walked again
    assert torch.equal(*ends)


def test_a_member_that_has_diverged_is_named_and_kept(tmp_path):
    wild = {"phases": [{"lr": 1e30, "batch_size": 16, "updates": 12}]}
    with pytest.raises(ArgumentError, match="replicas: worker 0 has parameters that are not finite"):
        run_ensemble(described({"workloads": [12, 12, 12]} | RATE, **wild), tmp_path / "wild")
    assert (tmp_path / "wild" / "member-2" / "run.json").is_file()


@pytest.mark.parametrize(
    ("ensemble", "message"),
    [
        ({"workloads": [3, 4]}, "ensemble: expected workloads of 3 members, got 2"),
        ({"workloads": [0, 0, 0]}, "ensemble.workloads: they sum to zero"),
        ({"workloads": [41, 3, 3]}, r"ensemble.workloads: expected at most 40, the updates of the phases, got 41"),
        ({"workloads": [3, 3, 3], "speeds": [1, 1, 1], "deadline": 3}, "ensemble: expected workloads, or speeds and a deadline"),
        ({"speeds": [1, 1, 1]}, "ensemble: expected speeds and a deadline together"),
        ({"lost": [3]}, r"ensemble: expected lost members of 0\.\.2, got 3"),
        ({"lost": [0, 1, 2]}, "ensemble.lost: all 3 workers are lost"),
        ({"rate": 2.0}, r"ensemble.rate: expected 0 <= rate <= 1, got 2\.0"),
        ({"shceme": "equal"}, "ensemble.shceme: unknown key; did you mean 'scheme'"),
        ({"workloads": [9, 9, 0], "mode": "asynchronous", "rate": 0.1}, "member 2 makes none"),
        ({"name": "sgd"}, "no ensemble is called 'sgd'"),
    ],
)
def test_wrong_use(ensemble, message, tmp_path):
    with pytest.raises((ArgumentError, LookupError), match=message):
        run_ensemble(described(ensemble), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_run_and_run_ensemble_are_told_apart(tmp_path):
    with pytest.raises(ArgumentError, match="ensemble: expected one walk, got several members; use run_ensemble"):
        run(described({}), tmp_path / "a")
    with pytest.raises(ArgumentError, match=r"ensemble: expected an experiment with a table \[ensemble\]"):
        run_ensemble(Experiment(**DESCRIBED), tmp_path / "a")
    cyclic = {"kind": "cyclic", "low": 0.1, "high": 0.5, "period": 10}
    phases = [{"lr": 0.2, "batch_size": 16, "updates": 12, "schedule": cyclic | {"end": 0.01}}]
    with pytest.raises(ArgumentError, match=r"phases\[0\].schedule: it depends on the length"):
        run_ensemble(described({"workloads": [12, 12, 5]}, phases=phases), tmp_path / "a")


def test_ensemble_json_is_data(tmp_path):
    (tmp_path / "ensemble.json").write_text(json.dumps({"members": [{"run": "../../etc"}]}))
    with pytest.raises(ArgumentError, match=r"expected runs of the names member-0, member-1, \.\.\., got '\.\./\.\./etc'"):
        read_ensemble(tmp_path)
    (tmp_path / "ensemble.json").write_text("[]")
    with pytest.raises(ArgumentError, match="something else"):
        read_ensemble(tmp_path)
    assert read_ensemble(tmp_path / "nowhere") is None


def test_toml(tmp_path):
    text = """
    name = "t"
    data = { dataset = "wine" }
    model = { name = "mlp", hidden = [4] }
    [[phases]]
    lr = 0.2
    batch_size = 8
    updates = 12
    [ensemble]
    members = 2
    speeds = [2.0, 0.5]
    deadline = 6.0
    scheme = "proportional"
    """
    (tmp_path / "t.toml").write_text(text)
    experiment = load_toml(tmp_path / "t.toml")
    assert Experiment(**experiment.described()).described() == experiment.described()
    told = read_ensemble(run_ensemble(experiment, tmp_path / "t"))
    assert [m["updates"] for m in told["members"]] == [12, 3]


# --- one walk over nodes ----------------------------------------------------------------------------------------------------

NODES = 20
ROUGH = {"degree": 4, "survive": 0.8, "online": 0.8, "session": 12.0}
PRIVATE = {"walker": "private", "eps": 90.0, "uses": 3, "spent": "skip", "lr": 0.01, "batch_size": 1, "updates": 70}


def visiting(service, *, phases=None, **changed):
    plain = [{"lr": 0.3, "batch_size": 1, "updates": 25}, {"lr": 0.1, "batch_size": 1, "updates": 15}]
    record = {"snapshots": {"kind": "every", "n": 10}, "keyframes": 16}
    base = {"data": {"dataset": "wine", "train": NODES}, "phases": phases or plain, "record": record}
    return Experiment(**deepcopy(DESCRIBED) | base | {"ensemble": {"name": "gossip"} | service} | changed)


def test_a_walk_over_nodes_is_an_ordinary_run_and_the_walk_by_hand(tmp_path):
    experiment = visiting(ROUGH)
    path = run_ensemble(experiment, tmp_path / "walk")
    assert read_ensemble(path) is None
    steps = open_trajectory(path).steps
    assert steps["hop"].values.tolist() == list(range(40))
    assert steps["walk"].values[-1] > 0  # restarted
    assert (np.diff(steps["cycle"].values) > 0).all()
    assert (steps["use"].values >= 1).all()
    assert len(np.unique(steps["node"].values)) > NODES / 2
    model, loss, data = parts(experiment)
    for t, node in enumerate(steps["node"].values.astype(int).tolist()):
        one = loss(model, (data.x[node : node + 1], data.y[node : node + 1])).mean()
        with torch.no_grad():
            for p, g in zip(model.parameters(), torch.autograd.grad(one, list(model.parameters())), strict=True):
                p -= (0.3 if t < 25 else 0.1) * g
    by_hand = torch.cat([p.detach().reshape(-1) for p in model.parameters()])
    torch.testing.assert_close(open_trajectory(path).theta(40), by_hand, rtol=1e-5, atol=1e-6)
    x, y = open_trajectory(path).batch(33)
    node = int(steps["node"].values[33])
    assert torch.equal(x, data.x[node : node + 1])
    assert torch.equal(y, data.y[node : node + 1])


def test_on_a_ring_the_walk_goes_to_the_next_node(tmp_path):
    steps = open_trajectory(run(visiting({"graph": "ring", "degree": 2, "delay": [0.3, 0.4]}), tmp_path / "ring")).steps
    assert set((np.diff(steps["node"].values) % NODES).tolist()) == {1.0, NODES - 1.0}
    times = np.diff(steps["cycle"].values)
    assert times.min() >= 0.3 - 1e-12
    assert times.max() <= 0.4 + 1e-12


def test_the_seed_of_the_service_is_that_of_the_experiment_unless_given():
    def nodes(service, seed):
        line = Loop(visiting(service, seed=seed)).line
        return [line.visit(t).node for t in range(40)]

    assert nodes({"seed": 4} | ROUGH, 1) == nodes({"seed": 4} | ROUGH, 2) != nodes({"seed": 5} | ROUGH, 1)
    assert nodes(ROUGH, 1) == nodes(ROUGH, 1) != nodes(ROUGH, 2)


def test_the_records_of_lost_visits_are_charged_and_the_most_is_told(tmp_path):
    experiment = visiting(ROUGH, phases=[PRIVATE | {"eps": 900.0, "uses": 300, "updates": 60}])
    loop = Loop(experiment)
    with loop.random.installed(1):
        for _ in range(60):
            loop.advance()
    trace = loop.line.trace
    until = int(trace.lineage()[-1]) + 1
    assert until > 60  # some were lost
    counted = np.bincount(trace.node[:until], minlength=NODES)
    assert [loop.optimizer.ledger.used(i) for i in range(NODES)] == counted.tolist()
    spent = open_trajectory(run(experiment, tmp_path / "run")).steps["privacy_spent"].values
    most = [np.bincount(trace.node[: v + 1]).max() for v in trace.lineage()]
    np.testing.assert_allclose(spent, 3.0 * np.array(most), rtol=1e-12)


def test_a_killed_walk_over_nodes_goes_on_bit_for_bit(tmp_path):
    experiment = visiting(ROUGH, phases=[PRIVATE])
    whole = open_trajectory(run(experiment, tmp_path / "whole"))
    loop = Loop(experiment)
    with loop.random.installed(1), closing(recorded(loop, tmp_path / "killed")) as walk:
        for done in walk:
            if done == 41:
                break
    killed = open_trajectory(run(experiment, tmp_path / "killed"))
    assert torch.equal(whole.theta(70), killed.theta(70))
    assert torch.equal(whole.theta(37), killed.theta(37))
    for name in ("loss", "node", "hop", "walk", "cycle", "use", "privacy_spent"):
        np.testing.assert_array_equal(whole.steps[name].values, killed.steps[name].values)
    still = whole.steps["update_norm"].values == 0
    assert 0 < still.sum() < 35  # budgets of three uses were spent on the way
    np.testing.assert_array_equal(still, whole.steps["use"].values > 3)
    record = {"snapshots": {"kind": "every", "n": 10}, "mode": "snapshots"}
    kept = open_trajectory(run(visiting(ROUGH, phases=[PRIVATE], record=record), tmp_path / "kept"))
    assert torch.equal(whole.theta(51), kept.theta(51))


def command(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["sgdscope", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_the_commands_take_a_walk_over_nodes_without_a_surface(tmp_path, monkeypatch, capsys):
    text = """
    name = "nodes"
    data = { dataset = "wine", train = 20 }
    model = { name = "mlp", hidden = [4] }
    [[phases]]
    walker = "private"
    eps = 60.0
    uses = 2
    spent = "skip"
    lr = 0.01
    batch_size = 1
    updates = 60
    [ensemble]
    name = "gossip"
    degree = 4
    survive = 0.8
    [record]
    snapshots = { kind = "bursts", length = 6, at = [0] }
    """
    (tmp_path / "nodes.toml").write_text(text)
    out = tmp_path / "run"
    assert command(monkeypatch, "run", tmp_path / "nodes.toml", "--out", out) == 0
    assert command(monkeypatch, "measure", out, "motion", "--json") == 0
    assert command(monkeypatch, "report", out, "-o", tmp_path / "page.html") == 0
    capsys.readouterr()
    page, steps = (tmp_path / "page.html").read_text(), open_trajectory(out).steps
    node, restarts = int(steps["node"].values[-1]), np.count_nonzero(np.diff(steps["walk"].values))
    assert restarts > 1
    assert f"One walk over 20 nodes with a training record each: hop 59, the last, was at node {node} in cycle" in page
    assert f"after {restarts} restarts, and no record had more than {int(steps['use'].values.max())} uses" in page
    still = int((steps["update_norm"].values == 0).sum())
    assert f"No record has spent more than 60 of its privacy budget of 60; {still} updates moved nothing" in page


BATCH = {"lr": 0.1, "batch_size": 16, "updates": 5}


@pytest.mark.parametrize(
    ("service", "phases", "message"),
    [
        ({}, [BATCH], r"phases\[0\].batch_size: expected 1, the example of a node, got 16"),
        ({}, [BATCH | {"batch_size": "full"}], r"phases\[0\].batch_size: expected 1, the example of a node, got 'full'"),
        ({}, [BATCH | {"batch_size": 1, "replacement": True}], r"phases\[0\].replacement: expected none"),
        (
            {},
            [BATCH | {"batch_size": 1, "schedule": {"kind": "cyclic_batch", "low": 1, "high": 4, "period": 4}}],
            r"phases\[0\].schedule: expected one of the learning rate",
        ),
        ({"members": 3}, None, "ensemble.members: unknown key"),
        ({"workloads": [3]}, None, "ensemble.workloads: unknown key"),
        ({"nodes": 5}, None, "ensemble.nodes: unknown key"),
        ({"updates": 5}, None, "ensemble.updates: unknown key"),
        ({"degre": 5}, None, "ensemble.degre: unknown key; did you mean 'degree'"),
        ({"seed": -1}, None, "ensemble.seed: expected greater than or equal to 0; got -1"),
        ({"degree": NODES}, None, "ensemble.degree: expected a number below the 20 nodes, got 20"),
        ({"degree": 2.5}, None, r"ensemble.degree: expected a whole number >= 1, got 2\.5"),
        ({"graph": "rnig"}, None, "ensemble.graph: expected 'random' or 'ring', got 'rnig'"),
        ({"graph": "ring", "degree": 3}, None, "ensemble.degree: expected an even number below the 20 nodes, got 3"),
        ({"survive": 0.0}, None, "ensemble.survive: expected a probability 0 < survive <= 1"),
        ({"survive": "often"}, None, "ensemble.survive: expected a number, got 'often'"),
        ({"online": 1.2}, None, r"ensemble.online: expected a probability 0 < online <= 1, got 1\.2"),
        ({"session": -3}, None, "ensemble.session: expected a mean time online > 0"),
        ({"limit": 0}, None, "ensemble.limit: expected a number of cycles > 0, got 0"),
        ({"delay": 0.5}, None, r"ensemble.delay: expected two numbers, .* got 0\.5"),
        ({"delay": [0.5, 0.2]}, None, "ensemble.delay: expected two times 0 < least <= largest"),
    ],
)
def test_wrong_use_of_a_walk_over_nodes(service, phases, message, tmp_path):
    with pytest.raises(ArgumentError, match=message):
        run_ensemble(visiting(service, phases=phases), tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_the_description_of_a_walk_over_nodes_comes_back_from_json():
    experiment = visiting({"seed": 3, "delay": [0.2, 0.7]})
    assert Experiment(**json.loads(json.dumps(experiment.described()))) == experiment
    with pytest.raises(ArgumentError, match=r"ensemble\.name: expected an ensemble of walkers"):
        members(experiment)
