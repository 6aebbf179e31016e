"""The judges of S12-S16 on evidence made by hand, and what they read runs with."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from sgdscope.contracts import claims
from sgdscope.datasets import load
from sgdscope.evidence.accuracy import accuracy
from sgdscope.evidence.endpoints import EXAMPLES, area, at_equal_epochs, best, kendall, reached
from sgdscope.evidence.nudging import arms_of, group_of, runs_of
from sgdscope.evidence.protocols import described
from sgdscope.evidence.sharpness import made, path
from sgdscope.experiment import Experiment, parts, run, surface_of
from sgdscope.runs import open_trajectory

STEPS = list(range(0, 100, 10))
WOBBLE = [0.97, 1.02, 1.0, 0.99, 1.03]


def walk(seed=0, gamma=1.0, *, k=5, lr=0.1, top=30.0, losses=None, right=0.9, steps=STEPS, **told):
    """A run; `top` [n] or [n, k] eigenvalues, `right` [n] held-out accuracies or None, plain SGD if gamma is 1."""
    nudged = {"walker": "nudged", "gamma": gamma, "k": k} if gamma != 1 else {"walker": "sgd"}
    n = len(steps)
    table = np.broadcast_to(
        np.asarray(top, float).reshape(-1, 1) if np.ndim(top) < 2 else top,
        (n, max(1, np.shape(top)[-1] if np.ndim(top) > 1 else 1)),
    )
    losses = np.linspace(2.0, 1.0, n) if losses is None else losses
    extra = {} if right is None else {"accuracy": {"step": list(steps), "test": np.broadcast_to(right, n).tolist()}}
    return made({"lr": lr, "batch_size": 64, "seed": seed} | nudged | told, list(steps), table, losses, **extra)


def judged(name, runs):
    return claims[name].judge(list(runs))


def pairs(nudged, plain=lambda s: {}, gamma=0.1, seeds=5):
    return [r for s in range(seeds) for r in (walk(s, gamma, **nudged(s)), walk(s, **plain(s)))]


# --- reading ---------------------------------------------------------------------------------------------------------------


def test_the_arm_is_read_from_the_settings_or_from_the_experiment():
    assert group_of(path(walk(gamma=0.01, k=3))) == (0.01, 3, 0.1, 64.0)
    assert group_of(path(walk())) == (1.0, 0, 0.1, 64.0)
    phase = {"walker": "nudged", "gamma": 0.3, "k": 7}
    told = {"walker": "nudged", "experiment": {"phases": [phase]}}
    bare = replace(walk(), settings={"lr": 0.2, "batch_size": 16, "seed": 4} | told)
    assert group_of(path(bare)) == (0.3, 7, 0.2, 16.0)
    assert group_of(path(walk(gamma=0.1, variant="random"))) is None
    assert group_of(path(walk(walker="adam"))) is None
    assert set(arms_of([walk(), walk(gamma=0.1, variant="random")])) == {(1.0, 0, 0.1, 64.0)}


def test_area_and_time_to_a_level_are_those_of_the_broken_line():
    found = path(walk(losses=[4.0, 2.0, *[1.0] * 8]))
    # half of 90 is 45: 10 x 3 + 10 x 1.5 + 25 x 1
    assert area(found, 0.5) == pytest.approx(70 / 45)
    assert area(found, 1 / 9) == pytest.approx(3.0)
    assert reached(found, 1.25) == pytest.approx(17.5)
    assert np.isnan(reached(found, 0.9))


def test_the_best_checkpoint_is_the_first_of_the_best():
    right = [0.1, 0.5, 0.8, 0.7, 0.8, 0.6, 0.5, 0.5, 0.5, 0.5]
    assert best(path(walk(right=right))) == 2
    assert best(path(walk(right=None))) is None


def test_kendall_counts_pairs_and_takes_a_third_number_out():
    x, y, z = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 1, 3, 5, 4]), np.array([1.0, 3, 2, 5, 4])

    def tau(a, b):
        signs = [np.sign((a[i] - a[j]) * (b[i] - b[j])) for i in range(5) for j in range(i)]
        return np.sum(signs) / 10

    assert kendall(x, y) == pytest.approx(0.6)
    assert tau(x, z) == tau(y, z) == pytest.approx(0.6)
    assert kendall(x, y, z) == pytest.approx((0.6 - 0.36) / (1 - 0.36))
    assert np.isnan(kendall(x, np.ones(5)))
    assert np.isnan(kendall(x, y, x))


def test_accuracy_of_a_run_that_is_rebuilt(tmp_path):
    data = {"dataset": "digits", "train": 200, "label_noise": 0.3}
    phases, record = [{"lr": 0.5, "batch_size": 20, "updates": 12}], {"kind": "bursts", "length": 1, "at": [4, 11]}
    described = {"seed": 3, "data": data, "model": {"name": "mlp", "hidden": [8]}, "phases": phases}
    described["record"] = {"snapshots": record}
    experiment = Experiment(**described)
    trajectory = open_trajectory(run(experiment, tmp_path / "run"))
    told = accuracy(trajectory, surface_of(experiment))["accuracy"]
    model, _, data = parts(experiment)
    assert told["step"] == [0, 4, 11, 12]
    for number, step in enumerate(told["step"]):
        torch.nn.utils.vector_to_parameters(trajectory.theta(step), model.parameters())
        right = [int(model(x[None]).argmax()) == int(y) for x, y in zip(data.x_test, data.y_test, strict=True)]
        assert told["test"][number] == pytest.approx(np.mean(right))
    assert len(set(told["test"])) > 1


def test_the_training_set_of_the_quick_preset_has_the_size_that_epochs_are_counted_by():
    data = described("quick", 0, 0.1, 8)["data"]
    assert EXAMPLES["quick"] == len(load(data["dataset"]).x)


def test_arms_are_made_beside_plain_sgd_of_the_same_learning_rate():
    runs = runs_of([{"gamma": 0.1, "k": 5}])
    for preset, lr in (("quick", 0.15), ("standard", 0.15), ("paper", 0.01)):
        phases = [d["phases"][0] for d in runs[preset](0)]
        nudged = [p for p in phases if p["walker"] == "nudged"]
        assert len(nudged) == 5
        assert {p["lr"] for p in nudged} == {lr}
        shared = ("lr", "batch_size", "updates", "momentum", "weight_decay")
        assert [{k: nudged[0][k] for k in shared}] * 5 == [
            {k: p[k] for k in shared} for p in phases if p["walker"] == "sgd" and p["lr"] == lr
        ]
    assert {d["model"]["name"] for d in runs["paper"](0)} == {"resnet"}
    quick = described("quick", 3, 0.6, 64, at="path")
    assert quick in runs["quick"](0)  # shared with the claims on plain SGD


def test_runs_of_equal_epochs_see_as_many_examples():
    runs = at_equal_epochs([(0.5, 0.25, 1, {}), (2.0, 1.0, 1, {}), (1.0, 4.0, 1, {})])["quick"](2)
    seen = [d["phases"][0]["updates"] * d["phases"][0]["batch_size"] for d in runs]
    assert seen == pytest.approx([20 * 1437] * 3, rel=0.01)
    assert [d["phases"][0]["lr"] for d in runs] == pytest.approx([0.075, 0.3, 0.15])
    assert all(d["record"]["snapshots"]["at"][-1] == d["phases"][0]["updates"] - 1 for d in runs)
    assert {d["seed"] for d in runs} == {2001}


# --- S12 -------------------------------------------------------------------------------------------------------------------


def test_s12_is_the_factor_over_the_pair():
    found = judged("S12", pairs(lambda s: {"top": 2 * WOBBLE[s] * (30 + s)}, lambda s: {"top": 30.0 + s}))
    assert found.verdict == "supported"
    assert found.statistic == pytest.approx(2 * np.exp(np.log(WOBBLE).mean()), rel=1e-12)
    assert (found.n, found.smallest_p) == (5, 1 / 32)
    assert found.details["an_order_of_magnitude"] == "contradicted"
    assert judged("S12", pairs(lambda s: {"top": 330 * WOBBLE[s]})).details["an_order_of_magnitude"] == "supported"
    assert judged("S12", pairs(lambda s: {"top": 30 * WOBBLE[s]})).verdict == "undecided"
    assert judged("S12", pairs(lambda s: {"top": 15 * WOBBLE[s]})).verdict == "contradicted"


def test_s12_needs_both_places_and_both_norms():
    right = [0.5, 0.6, 0.9, *[0.7] * 7]
    at_best, at_last = ([60.0 if i == j else 20.0 for i in range(10)] for j in (2, 9))
    plain = lambda s: {"right": right}  # ruff: ignore[lambda-assignment]
    for top in (at_best, at_last):
        found = judged("S12", pairs(lambda s, top=top: {"top": np.array(top) * WOBBLE[s], "right": right}, plain))
        assert found.verdict == "contradicted"
    both = [60.0 if i in (2, 9) else 20.0 for i in range(10)]
    assert judged("S12", pairs(lambda s: {"top": np.array(both) * WOBBLE[s], "right": right}, plain)).verdict == "supported"
    # lambda_1 is larger, the norm of the five is not
    wide = lambda s: {"top": np.tile([30.0, 29.0, 28.0], (10, 1))}  # ruff: ignore[lambda-assignment]
    narrow = lambda s: {"top": np.tile([40.0, 1.0, 1.0], (10, 1)) * WOBBLE[s]}  # ruff: ignore[lambda-assignment]
    found = judged("S12", pairs(narrow, wide))
    assert found.verdict == "contradicted"
    assert found.statistic == pytest.approx((1602 / 2525) ** 0.5 * np.exp(np.log(WOBBLE).mean()), rel=1e-9)


def test_s12_without_held_out_data_takes_the_last_point_alone():
    top = np.array([20.0] * 9 + [60.0])
    found = judged("S12", pairs(lambda s: {"top": top * WOBBLE[s], "right": None}, lambda s: {"right": None}))
    assert found.verdict == "supported"
    assert found.statistic == pytest.approx(2 * np.exp(np.log(WOBBLE).mean()))


def test_s12_asks_each_gamma_and_pairs_alike_runs_only():
    sharper = pairs(lambda s: {"top": 60 * WOBBLE[s]})
    assert judged("S12", [*sharper, *(walk(s, 0.01, top=20 * WOBBLE[s]) for s in range(5))]).verdict == "contradicted"
    assert judged("S12", [*sharper, *(walk(s, 5.0, top=2 * WOBBLE[s]) for s in range(5))]).verdict == "supported"
    assert judged("S12", pairs(lambda s: {"top": 60.0}, seeds=4)).verdict == "undecided"
    assert judged("S12", pairs(lambda s: {"top": 60.0}, lambda s: {"lr": 0.2})).verdict == "undecided"
    shorter = {"steps": STEPS[:-1]}
    assert judged("S12", pairs(lambda s: {"top": 60.0} | (shorter if s == 2 else {}))).verdict == "undecided"
    gone = {"losses": np.linspace(2.0, 0.09, 10)}  # 4.5 % of the initial loss
    assert judged("S12", pairs(lambda s: {"top": 60.0} | (gone if s == 2 else {}))).verdict == "not in regime"
    kept = {"losses": np.linspace(2.0, 0.11, 10)}
    assert judged("S12", pairs(lambda s: {"top": 60.0 * WOBBLE[s]} | kept)).verdict == "supported"


def test_s12_tells_what_random_directions_do():
    runs = pairs(lambda s: {"top": 60 * WOBBLE[s]})
    assert not [name for name in judged("S12", runs).details["factors"] if "random" in name]
    other = [walk(s, 0.1, variant="random", top=np.array([90.0] * 9 + [33 * WOBBLE[s]])) for s in range(5)]
    found = judged("S12", [*runs, *other])
    assert found.verdict == "supported"
    told = found.details["factors"]["sharpness at the last point, random directions"]
    assert told[0] == pytest.approx(1.1 * np.exp(np.log(WOBBLE).mean()))
    assert [r.settings["lr"] for r in other] == [0.1] * 5


# --- S13 -------------------------------------------------------------------------------------------------------------------


def falling(rate, s=0):
    return {"losses": 2 - rate * WOBBLE[s] * np.arange(10) / 9}


def test_s13_compares_the_first_half():
    found = judged("S13", pairs(lambda s: falling(1.2), lambda s: falling(1.0)))
    rate = 1.0 * WOBBLE[0]
    assert found.verdict == "supported"
    assert found.statistic == pytest.approx((2 - 0.25 * 1.2 * rate) / (2 - 0.25 * rate), rel=1e-12)
    told = found.details["gamma 0.1, K 5"]
    assert told["updates_to_target"][0] == pytest.approx(1 / 1.2)
    assert told["best_plain_lr"] == pytest.approx(0.1)
    assert judged("S13", pairs(lambda s: falling(0.8, s), lambda s: falling(1.0, s))).verdict == "contradicted"
    late = lambda s: {"losses": np.where(np.arange(10) < 6, 2 - np.arange(10) / 9 * WOBBLE[s], 0.1)}  # ruff: ignore[lambda-assignment]
    assert judged("S13", pairs(late, lambda s: falling(1.0, s))).verdict == "undecided"  # faster only in the second half


def test_s13_tells_the_best_plain_sgd_beside():
    runs = [*pairs(lambda s: falling(1.2), lambda s: falling(1.0)), *(walk(s, lr=0.3, **falling(1.5)) for s in range(5))]
    found = judged("S13", [*runs, *(walk(s, lr=0.9, **falling(0.3)) for s in range(5))])
    told = found.details["gamma 0.1, K 5"]
    assert found.verdict == "supported"
    assert told["best_plain_lr"] == pytest.approx(0.3)
    rate = WOBBLE[0]
    assert told["against_best_plain"][0] == pytest.approx((2 - 0.3 * rate) / (2 - 0.375 * rate))
    assert told["against_best_plain_answer"] == "contradicted"


def test_s13_needs_a_plain_run_that_trains():
    assert judged("S13", pairs(lambda s: falling(0.3), lambda s: falling(0.15))).verdict == "not in regime"
    assert judged("S13", pairs(lambda s: falling(0.5), lambda s: falling(0.25))).verdict == "supported"


# --- S14 -------------------------------------------------------------------------------------------------------------------


def scores(gain, noise):
    """Best accuracies that differ by `gain` on average; the last ones differ the other way."""
    shifts = noise * (np.arange(5) - 2)
    peak = lambda top, last: {"right": [0.2, *[top] * 4, *[last] * 5]}  # ruff: ignore[lambda-assignment]
    return pairs(lambda s: peak(0.8 + gain + shifts[s], 0.7), lambda s: peak(0.8, 0.79))


@pytest.mark.parametrize(
    ("gain", "noise", "answer", "better"),
    [(-0.009, 0.0004, "supported", False), (0.01, 0.001, "supported", True), (-0.011, 0.0004, "contradicted", False),
     (-0.006, 0.01, "undecided", False), (0.0, 0.001, "supported", False)],
)  # fmt: skip
def test_s14_is_not_inferior_by_more_than_the_margin(gain, noise, answer, better):
    found = judged("S14", scores(gain, noise))
    assert found.verdict == answer
    assert found.statistic == pytest.approx(gain, abs=1e-12)
    half = 2.7764451052 * np.std(noise * (np.arange(5) - 2), ddof=1) / 5**0.5
    assert found.interval == pytest.approx((gain - half, gain + half))
    told = found.details["gamma 0.1, K 5"]
    assert told["better"] is better
    assert told["gain_at_the_end"][0] == pytest.approx(-0.09)


# --- S15 -------------------------------------------------------------------------------------------------------------------


def ordered(accuracies, seeds=5):
    """Five settings in the order of their sharpness, three of plain SGD, with these accuracies at the end."""
    settings = [(1.0, 0.3), (1.0, 0.1), (1.0, 0.03), (0.1, 0.1), (0.01, 0.1)]
    return [
        walk(s, gamma, lr=lr, top=10.0 * (i + 1) + s, right=[0.99] * 9 + [accuracies[i]])
        for i, (gamma, lr) in enumerate(settings) for s in range(seeds)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("accuracies", "tau", "answer", "within"),
    [([0.5, 0.4, 0.3, 0.6, 0.2], -0.4, "contradicted", -1), ([0.5, 0.4, 0.3, 0.6, 0.35], -0.2, "supported", -1),
     ([0.1, 0.2, 0.3, 0.4, 0.5], 1.0, "supported", 1)],
)  # fmt: skip
def test_s15_is_about_two_of_three_pairs(accuracies, tau, answer, within):
    found = judged("S15", ordered(accuracies))
    assert found.verdict == answer
    assert found.statistic == pytest.approx(tau)
    assert found.details["within_plain"][0] == pytest.approx(within)
    assert found.details["settings"] == 5


def test_s15_needs_settings_seeds_and_nudged_runs():
    whole = ordered([0.5, 0.4, 0.3, 0.6, 0.35])
    assert judged("S15", whole[5:]).verdict == "undecided"
    assert judged("S15", [r for r in whole if r.settings["seed"] > 0]).verdict == "undecided"
    plain = [replace(r, settings=r.settings | {"walker": "sgd", "lr": 0.5 + i // 5}) for i, r in enumerate(whole)]
    assert judged("S15", plain).verdict == "undecided"
    assert judged("S15", ordered([0.5] * 5)).verdict == "undecided"  # nothing to order


# --- S16 -------------------------------------------------------------------------------------------------------------------


def by_k(norm, right, gamma=0.01, seeds=5, **told):
    return [
        walk(s, gamma, k=k, top=np.array([20.0] * 9 + [30 * WOBBLE[s] * k**norm]), right=0.6 * WOBBLE[s] * k**right, **told)
        for k in (1, 4, 16) for s in range(seeds)
    ]  # fmt: skip


def test_s16_is_the_weaker_of_two_powers_of_k():
    found = judged("S16", by_k(0.4, 0.05))
    assert found.verdict == "supported"
    assert found.statistic == pytest.approx(0.05)
    assert found.details["top_frobenius"][0] == pytest.approx(0.4)
    assert found.details["last_power"] == pytest.approx(0.4)
    assert judged("S16", by_k(-0.4, 0.05)).statistic == pytest.approx(-0.4)
    assert judged("S16", by_k(-0.4, 0.05)).verdict == "contradicted"
    assert judged("S16", by_k(0.4, -0.05)).verdict == "contradicted"
    assert judged("S16", by_k(0.4, 0.001)).verdict == "undecided"  # the seeds hide the accuracy from the ranks


def test_s16_takes_the_smallest_gamma_and_three_seeds():
    assert judged("S16", [*by_k(0.4, 0.05), *by_k(-0.4, -0.05, 0.5)]).details["gamma"] == pytest.approx(0.01)
    assert judged("S16", by_k(0.4, 0.05, 5.0)).verdict == "undecided"
    assert judged("S16", by_k(0.4, 0.05, seeds=2)).verdict == "undecided"
    assert judged("S16", by_k(0.4, 0.05, losses=np.linspace(2, 0.05, 10))).verdict == "not in regime"
