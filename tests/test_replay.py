"""A run of which only key frames are kept gives every point back bit for bit."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from sgdscope.errors import ArgumentError, CorruptRunError, NotAvailableError, ReplayError, StoreError, UnknownNameError
from sgdscope.experiment import Experiment, Replayer, load_toml, parts, run, surface_of, sweep
from sgdscope.experiment.loop import Loop
from sgdscope.runs import open_trajectory
from sgdscope.stores.zarr import ZarrStore

EXAMPLES = Path(__file__).parents[1] / "examples"
MLP = {"name": "mlp", "hidden": [16, 12]}
SPECIAL = {"name": "mlp", "hidden": [16, 12], "batchnorm": True, "dropout": 0.3}
PLAIN = {"lr": 0.2, "batch_size": 16, "updates": 23}


def experiment(phases=(PLAIN,), model=MLP, mode="replay", **more):
    record = {"snapshots": {"kind": "bursts", "length": 6, "at": [2, 9]}, "mode": mode, "keyframes": 5}
    data = {"dataset": "digits", "train": 150, "label_noise": 0.3}
    return Experiment(**({"name": "x", "seed": 5, "data": data, "model": model, "phases": list(phases), "record": record} | more))


def every(phases, model, **more):
    record = {"snapshots": {"kind": "every", "n": 1}, "mode": "snapshots", "keyframes": 5}
    return experiment(phases, model, record=record, **more)


NUDGED = {"walker": "nudged", "k": 2, "gamma": 0.2, "every": 3, "examples": 60}
CASES = {
    "sgd": ([PLAIN], MLP),
    "momentum": ([PLAIN | {"momentum": 0.9, "nesterov": True, "weight_decay": 0.01}], MLP),
    "adam": ([PLAIN | {"walker": "adam", "lr": 0.01}], MLP),
    "nudged": ([PLAIN | NUDGED | {"momentum": 0.5}], SPECIAL),
    "nudged adam": ([PLAIN | NUDGED | {"base": "adam", "lr": 0.01, "every": "epoch", "variant": "adaptive"}], MLP),
    "nudged noise": ([PLAIN | NUDGED | {"where": "noise", "variant": "white", "examples": 150}], MLP),
    "into nudged": (
        [PLAIN | {"momentum": 0.9, "updates": 8}, PLAIN | NUDGED | {"momentum": 0.9, "updates": 7}]
        + [PLAIN | NUDGED | {"momentum": 0.9, "updates": 8, "gamma": 3.0, "variant": "random"}],
        MLP,
    ),
    "dropout and BatchNorm": ([PLAIN | {"momentum": 0.5}], SPECIAL),
    "cyclic": ([PLAIN | {"schedule": {"kind": "cyclic", "low": 0.05, "high": 0.5, "period": 7}}], SPECIAL),
    "cyclic batch": ([PLAIN | {"schedule": {"kind": "cyclic_batch", "low": 8, "high": 40, "period": 6}}], MLP),
    "replacement": ([PLAIN | {"replacement": True}], MLP),
    "full batch": ([PLAIN | {"batch_size": "full"}], MLP),
    "phases": (
        [
            PLAIN | {"momentum": 0.9, "updates": 8},
            PLAIN | {"momentum": 0.9, "updates": 8, "lr": 0.02},
            PLAIN | {"walker": "adamw", "updates": 7, "lr": 0.01},
        ],
        SPECIAL,
    ),
}


@pytest.fixture(scope="module")
def plain_run(tmp_path_factory):
    return run(experiment(), tmp_path_factory.mktemp("plain") / "run")


def same_scalars(one, other):
    assert set(one) == set(other)
    for name in one:
        np.testing.assert_array_equal(one[name].values, other[name].values, err_msg=name)
    assert len(one["step"]) > 0


@pytest.mark.parametrize("case", CASES)
def test_every_point_is_rebuilt_bit_for_bit(case, tmp_path):
    phases, model = CASES[case]
    replayed = open_trajectory(run(experiment(phases, model), tmp_path / "replay"))
    stored = open_trajectory(run(every(phases, model), tmp_path / "snapshots"))
    assert stored.snapshot_steps.tolist() == list(range(24))
    assert replayed.snapshot_steps.tolist() == [0, *range(2, 9), *range(9, 16), 23]
    for step in (7, 3, *range(24), 11):
        assert torch.equal(replayed.theta(step), stored.theta(step)), step
        buffers = replayed.buffers(step)
        assert set(buffers) == set(stored.buffers(step))
        assert all(torch.equal(value, buffers[name]) for name, value in stored.buffers(step).items())
    assert len({stored.theta(step).numpy().tobytes() for step in range(24)}) == 24
    assert bool(replayed.buffers(3)) == (model is SPECIAL)
    same_scalars(replayed.steps, stored.steps)


def test_the_batches_are_those_of_the_loop(plain_run, tmp_path):
    trajectory = open_trajectory(plain_run)
    surface = surface_of(experiment())
    assert len(parts(experiment())[2].x) == 150
    for step in (0, 4, 17, 22):
        x, y = trajectory.batch(step)
        assert (len(x), len(y)) == (16, 16)
        on_batch = surface.on_batch((x, y)).value(trajectory.theta(step))
        assert on_batch == pytest.approx(float(trajectory.steps["loss"].sel(step=step)), rel=1e-5)
    with pytest.raises(NotAvailableError, match=r"there is no update 23; the experiment has the updates 0\.\.22"):
        trajectory.batch(23)


def test_a_burst_is_replayed_once(plain_run):
    replayer = Replayer(ZarrStore.read(plain_run), experiment())
    for step in range(9, 16):
        replayer.snapshot(step)
    assert replayer.updates == 8  # 5 to 9 and 10 to 14; 10 and 15 are key frames
    replayer.snapshot(7)
    assert replayer.updates == 8 + 2


def test_other_threads_and_other_random_states_give_the_same_bits_and_nothing_is_disturbed(plain_run):
    expected = [open_trajectory(plain_run).theta(step) for step in (8, 13)]
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        torch.manual_seed(99)
        random.seed(3)
        states = torch.get_rng_state(), random.getstate()
        again = open_trajectory(plain_run)
        assert all(torch.equal(again.theta(step), value) for step, value in zip((8, 13), expected, strict=True))
        assert torch.get_num_threads() == 2
        assert torch.equal(states[0], torch.get_rng_state())
        assert states[1] == random.getstate()
    finally:
        torch.set_num_threads(before)


def test_a_run_leaves_the_global_states_as_they_were(tmp_path):
    before, threads = torch.get_rng_state(), torch.get_num_threads()
    run(experiment(model=SPECIAL, threads=2), tmp_path / "run")
    assert torch.equal(before, torch.get_rng_state())
    assert torch.get_num_threads() == threads


def changed_settings(path, change):
    described = json.loads((path / "run.json").read_text())
    change(described["settings"])
    (path / "run.json").write_text(json.dumps(described))


@pytest.fixture
def own_run(tmp_path):
    return run(experiment(), tmp_path / "own")


@pytest.mark.parametrize(
    ("part", "value", "remedy"),
    [
        ("torch", "2.1.0", "install that version of torch"),
        ("threads", 7, "give the experiment that number of threads"),
        ("cpu_capability", "AVX9", "ATEN_CPU_CAPABILITY"),
        ("device", "cuda", "replay on that device"),
        ("data", "beef", "point data_dir"),
    ],
)
def test_another_machine_is_named_part_by_part(own_run, part, value, remedy):
    changed_settings(own_run, lambda settings: settings["fingerprint"].update({part: value}))
    trajectory = open_trajectory(own_run)
    assert len(trajectory.steps["step"]) == 23
    trajectory.theta(23)
    with pytest.raises(ReplayError, match=f"{part} was '?{value}'? and is .*{remedy}"):
        trajectory.theta(7)


def test_what_is_rebuilt_wrongly_is_an_error_that_names_the_step(own_run):
    changed_settings(own_run, lambda settings: settings["experiment"]["phases"][0].update(lr=0.2000001))
    with pytest.raises(ReplayError, match=r"theta of step 7 was rebuilt with hash .* recorded was"):
        open_trajectory(own_run).theta(7)
    assert torch.isfinite(open_trajectory(own_run).theta(5)).all()  # a key frame itself is right


def test_points_beyond_the_run_and_broken_descriptions_are_refused(own_run):
    with pytest.raises(NotAvailableError, match=r"step 24 was not recorded; the run has 23 updates"):
        open_trajectory(own_run).theta(24)
    changed_settings(own_run, lambda settings: settings["experiment"].update(phases=3))
    with pytest.raises(CorruptRunError, match=r"no valid experiment: .*phases: "):
        open_trajectory(own_run)


def test_a_finished_run_is_left_as_it_is_and_another_experiment_is_refused(own_run):
    before = {p: p.stat().st_mtime_ns for p in own_run.rglob("*") if p.is_file()}
    assert run(experiment(), own_run) == own_run
    assert {p: p.stat().st_mtime_ns for p in own_run.rglob("*") if p.is_file()} == before
    with pytest.raises(StoreError, match=r"holds the run of another experiment \(seed differ\); choose another directory"):
        run(experiment(seed=6), own_run)


# --- branching ---------------------------------------------------------------------------------------------------------------


def test_a_branch_with_the_same_walker_goes_on_as_the_run_itself(tmp_path):
    phases = [PLAIN | {"momentum": 0.9, "updates": 10}, PLAIN | {"momentum": 0.9, "updates": 9, "batch_size": "full"}]
    whole = open_trajectory(run(experiment(phases, SPECIAL), tmp_path / "whole"))
    start = {"run": str(tmp_path / "whole"), "step": 13}
    rest = [PLAIN | {"momentum": 0.9, "updates": 6, "batch_size": "full"}]
    branch = open_trajectory(run(experiment(rest, SPECIAL, start=start), tmp_path / "branch"))
    for step in range(7):
        assert torch.equal(branch.theta(step), whole.theta(13 + step)), step
    other = [PLAIN | {"walker": "adam", "lr": 0.01, "updates": 6, "batch_size": "full"}]
    arm = open_trajectory(run(experiment(other, SPECIAL, start=start), tmp_path / "arm"))
    assert torch.equal(arm.theta(0), whole.theta(13))
    assert not torch.equal(arm.theta(1), whole.theta(14))
    assert torch.equal(open_trajectory(tmp_path / "arm").theta(4), arm.theta(4))


def arm(start, **options):
    phase = PLAIN | NUDGED | {"momentum": 0.9, "updates": 6, "batch_size": "full"} | options
    return experiment([phase], SPECIAL, start=start)


def test_arms_from_one_start_go_on_with_the_momentum_and_gamma_one_is_the_run_itself(tmp_path):
    phases = [PLAIN | {"momentum": 0.9, "updates": 10}, PLAIN | {"momentum": 0.9, "updates": 9, "batch_size": "full"}]
    whole = open_trajectory(run(experiment(phases, SPECIAL), tmp_path / "whole"))
    start = {"run": str(tmp_path / "whole"), "step": 13}
    control = open_trajectory(run(arm(start, gamma=1.0), tmp_path / "control"))
    nudged = open_trajectory(run(arm(start, gamma=0.0), tmp_path / "nudged"))
    for step in range(7):
        assert torch.equal(control.theta(step), whole.theta(13 + step)), step
    assert not torch.equal(nudged.theta(1), whole.theta(14))
    further = {"run": str(tmp_path / "nudged"), "step": 4}
    rest = open_trajectory(run(arm(further, gamma=0.0, updates=2), tmp_path / "rest"))
    assert torch.equal(rest.theta(2), nudged.theta(6))  # the directions of step 3 and the count of updates went along
    other = open_trajectory(run(arm(further, gamma=0.0, updates=2, k=3), tmp_path / "other"))
    assert torch.equal(other.theta(0), nudged.theta(4))


@pytest.mark.parametrize("moment", [4, 10, 13, 21])
@pytest.mark.parametrize("case", ["nudged", "nudged adam", "into nudged"])
def test_a_nudged_run_that_was_stopped_between_refreshes_goes_on_bit_for_bit(tmp_path, case, moment):
    def stop(sentence, share):
        if sentence == f"update {moment} of 23":
            raise KeyboardInterrupt("here")

    phases, model = CASES[case]
    whole = open_trajectory(run(experiment(phases, model), tmp_path / "whole"))
    with pytest.raises(KeyboardInterrupt, match="here"):
        run(experiment(phases, model), tmp_path / "run", progress=stop)
    assert len(ZarrStore.read(tmp_path / "run").steps["step"]) < 23
    again = open_trajectory(run(experiment(phases, model), tmp_path / "run"))
    same_scalars(again.steps, whole.steps)
    assert all(torch.equal(again.theta(step), whole.theta(step)) for step in (moment, 23))


def test_a_key_frame_holds_the_directions_and_its_bytes_are_allowed_for(tmp_path):
    phases, model = CASES["nudged"]
    path = run(experiment(phases, model), tmp_path / "run")
    arrays, meta = ZarrStore.read_record(path, "keyframes", 10)
    layout = Loop(experiment(phases, model)).layout
    rows = np.concatenate(
        [arrays["state_basis_float32"][2 * where.start : 2 * where.stop].reshape(2, -1) for where in layout.slices],
        axis=1,
    )
    np.testing.assert_allclose(rows @ rows.T, np.eye(2), atol=1e-5)
    told = next(value for index, key, value in meta["plain"] if key == "nudged")
    assert (told["step"], told["refreshed_at"], len(told["eigenvalues"])) == (10, 9, 2)
    assert Loop(experiment(phases, model)).frame_vectors == 4 + 3
    assert Loop(experiment()).frame_vectors == 4
    default = [PLAIN | NUDGED]
    default[0].pop("k")
    assert Loop(experiment(default)).frame_vectors == 4 + 6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base": "nudged"}, r"phases\[0\].base: expected a walker that wraps none, such as 'sgd', got 'nudged'"),
        ({"base": 3}, r"phases\[0\].base: expected a walker that wraps none, such as 'sgd', got 3"),
        ({"examples": 1}, r"phases\[0\].examples: expected a whole number >= 2, got 1"),
        ({"k": 0}, r"phases\[0\].k: expected a whole number >= 1, got 0"),
        ({"betas": [0.9, 0.9]}, r"phases\[0\].betas: the walker 'nudged' has no such option; it takes base, budget"),
        ({"base": "adam", "betas": [0.9, 1.0]}, r"phases\[0\].betas\[1\]: expected"),
    ],
)
def test_options_of_a_wrapping_walker_are_checked(options, message):
    with pytest.raises(ArgumentError, match=message):
        Loop(experiment([PLAIN | NUDGED | options]))


def test_a_base_that_is_no_walker_is_named():
    with pytest.raises(UnknownNameError, match="no walker is called 'sgdd'; did you mean 'sgd'"):
        Loop(experiment([PLAIN | NUDGED | {"base": "sgdd"}]))


def test_a_drop_of_the_learning_rate_keeps_the_momentum(tmp_path):
    phases = [PLAIN | {"momentum": 0.9, "updates": 6, "batch_size": "full"}]
    phases.append(phases[0] | {"lr": 0.02})
    trajectory = open_trajectory(run(experiment(phases), tmp_path / "run"))
    before = trajectory.theta(6) - trajectory.theta(5)
    after = trajectory.theta(7) - trajectory.theta(6)
    _, gradient = surface_of(experiment()).value_and_grad(trajectory.theta(6))
    torch.testing.assert_close(after, 0.1 * 0.9 * before - 0.02 * gradient.to(before.dtype), rtol=1e-3, atol=1e-6)
    assert trajectory.steps["lr"].values.tolist() == [0.2] * 6 + [0.02] * 6


def test_a_new_phase_hands_over_to_its_own_walker(tmp_path):
    phases = [PLAIN | {"updates": 4}, PLAIN | {"walker": "adam", "lr": 0.01, "updates": 4}]
    trajectory = open_trajectory(run(experiment(phases), tmp_path / "run"))
    moves = [(trajectory.theta(t + 1) - trajectory.theta(t)).abs() for t in (3, 4)]
    assert float(moves[1].max()) == pytest.approx(0.01, rel=1e-3)  # the first step of Adam is lr in each coordinate
    assert float(moves[1].median()) > 0.9 * 0.01
    assert float(moves[0].median()) < 0.5 * float(moves[0].max())


@pytest.mark.parametrize("bit", [0, 31, 32, 63])
def test_every_bit_of_the_hash_counts(plain_run, monkeypatch, bit):
    right = Replayer._hash
    monkeypatch.setattr(Replayer, "_hash", lambda self, step: right(self, step) ^ (1 << bit))
    with pytest.raises(ReplayError, match="theta of step 7 was rebuilt with hash"):
        open_trajectory(plain_run).theta(7)


def test_a_start_that_does_not_fit_is_refused(plain_run, tmp_path):
    with pytest.raises(ArgumentError, match=r"start\.step: .*step 40 was not recorded"):
        run(experiment(start={"run": str(plain_run), "step": 40}), tmp_path / "a")
    with pytest.raises(ArgumentError, match=r"start\.run: the network of .* has other parameters"):
        run(experiment(model=SPECIAL, start={"run": str(plain_run), "step": 4}), tmp_path / "b")
    assert not (tmp_path / "a").exists()


# --- sweeps and examples -----------------------------------------------------------------------------------------------------


def test_a_grid_runs_and_resumes_at_the_first_missing_run(tmp_path):
    grid = experiment(grid={"lr": [0.05, 0.2], "seed": [1, 2]})
    done = run(grid.expand()[0], tmp_path / "lr0.05-seed1")
    before = (done / "run.json").stat().st_mtime_ns
    paths = sweep([grid], tmp_path, jobs=2)
    assert [p.name for p in paths] == ["lr0.05-seed1", "lr0.05-seed2", "lr0.2-seed1", "lr0.2-seed2"]
    assert (done / "run.json").stat().st_mtime_ns == before
    here = open_trajectory(run(grid.expand()[3], tmp_path / "here"))
    there = open_trajectory(paths[3])
    assert torch.equal(here.theta(12), there.theta(12))
    assert len({float(open_trajectory(p).theta(23).norm()) for p in paths}) == 4
    with pytest.raises(ArgumentError, match="expected distinct names, got 'x' more than once"):
        sweep([experiment(), experiment()], tmp_path)
    with pytest.raises(ArgumentError, match="jobs: expected at least 1, got 0"):
        sweep([grid], tmp_path, jobs=0)
    with pytest.raises(ArgumentError, match="grid: expected one experiment"):
        run(grid, tmp_path / "grid")


def test_batches_larger_than_the_data_are_refused(tmp_path):
    with pytest.raises(ArgumentError, match=r"phases\[0\].batch_size: expected 1..150, .* got 151"):
        run(experiment([PLAIN | {"batch_size": 151}]), tmp_path / "a")
    with pytest.raises(ArgumentError, match=r"phases\[0\].betas: the walker 'sgd' has no such option"):
        run(experiment([PLAIN | {"betas": [0.9, 0.9]}]), tmp_path / "b")
    with pytest.raises(ArgumentError, match=r"model\.widths: the model 'mlp' has no such option; it takes hidden"):
        run(experiment(model={"name": "mlp", "widths": [3]}), tmp_path / "c")
    with pytest.raises(ArgumentError, match="size: expected at least 2 examples or None for all, got 1"):
        surface_of(experiment(), size=1)
    assert surface_of(experiment(), size=70).fingerprint()["examples"] == 70
    assert surface_of(experiment(), size=151).fingerprint()["examples"] == 150


def test_the_examples_are_valid():
    assert [e.name for e in load_toml(EXAMPLES / "digits_mlp.toml").expand()][:2] == ["lr0.05-seed0", "lr0.05-seed1"]
    model, _, _ = parts(load_toml(EXAMPLES / "digits_mlp.toml").expand()[0])
    assert sum(p.numel() for p in model.parameters()) == 64 * 100 + 100 + 100 * 100 + 100 + 100 * 10 + 10
    nudged = load_toml(EXAMPLES / "digits_nudged.toml").expand()
    assert [one.name for one in nudged][:3] == ["gamma0.1-seed0", "gamma0.1-seed1", "gamma0.1-seed2"]
    assert [one.phases[0].options["gamma"] for one in nudged[::3]] == [0.1, 1.0]
    Loop(nudged[0])
    assert load_toml(EXAMPLES / "mnist_mlp.toml").model.options == {"hidden": [500, 350], "batchnorm": True}


@pytest.mark.data
def test_the_mnist_example_runs_on_the_real_files(data_dir, tmp_path):
    described = load_toml(EXAMPLES / "mnist_mlp.toml").described()
    described["phases"] = [{key: value for key, value in described["phases"][0].items() if key != "epochs"} | {"updates": 12}]
    described["record"] |= {"keyframes": 4, "snapshots": {"kind": "every", "n": 1}}
    one = Experiment(**described)
    trajectory = open_trajectory(run(one, tmp_path / "run", data_dir=data_dir), data_dir=data_dir)
    assert one.phases[0].batch_size == 100
    model, _, data = parts(one, data_dir)
    assert len(data.x) == 60000
    assert [tuple(m.weight.shape) for m in model.modules() if isinstance(m, torch.nn.Linear)] == [
        (500, 784),
        (350, 500),
        (10, 350),
    ]
    assert trajectory.snapshot_steps.tolist() == list(range(13))
    assert len({trajectory.theta(step).numpy().tobytes() for step in range(13)}) == 13
    assert float(trajectory.steps["loss"][-1]) < 0.7 * float(trajectory.steps["loss"][0])
