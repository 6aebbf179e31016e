"""The judges of H1-H5 on hand-made evidence, and the learners and studies behind them against slow routes."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from sgdscope import statistics
from sgdscope.claims.private_gossip import close_to_free, fixed_beats_halving, gradients_beat_inputs, one_walk, same_plateau
from sgdscope.contracts import Evidence
from sgdscope.errors import ArgumentError
from sgdscope.evidence.gossip import Learner, Records, learn, learning, records, service, walked
from sgdscope.evidence.private import Tables
from sgdscope.walkers.private import PrivateSGD

INF = math.inf
BUDGETS = (0.1, 1.0, 10.0)


def table(excess, seeds=5, free=0.04, scatter=(0.0, 0.004, -0.004, 0.002, -0.002)):
    """Errors of learners with 2 uses at lam 0.1; excess: kind -> error above `free` at each budget."""
    found = []
    for s in range(seeds):
        rows = [("free", INF, 2, 0.1, free)]
        rows += [
            (kind, eps, 2, 0.1, free + e + scatter[s])
            for kind, own in excess.items()
            for eps, e in zip(BUDGETS, own, strict=True)
        ]
        found.append(Evidence({"seed": s}, xr.Dataset(), {}, {"errors": rows}))
    return found


def test_parameters_are_chosen_on_the_other_seeds():
    rows = {
        0: [("fixed", 1.0, 1, 0.1, 0.10), ("fixed", 1.0, 4, 0.1, 0.30)],
        1: [("fixed", 1.0, 1, 0.1, 0.40), ("fixed", 1.0, 4, 0.1, 0.20)],
        2: [("fixed", 1.0, 1, 0.1, 0.15), ("fixed", 1.0, 4, 0.1, 0.25)],
    }
    found = Tables([Evidence({"seed": s}, xr.Dataset(), {}, {"errors": r}) for s, r in rows.items()])
    # seed 0: others 0.275 and 0.225 -> 4 uses, 0.30; seed 1: 0.125 and 0.275 -> 1 use, 0.40; seed 2: 0.25 and 0.25 -> the first
    assert found.chosen("fixed", 1.0).tolist() == [0.30, 0.40, 0.15]
    assert found.mean("fixed", 1.0) == {"1": pytest.approx(0.65 / 3), "4": pytest.approx(0.25)}
    assert np.isnan(found.chosen("halving", 1.0)).all()


def test_h1_asks_for_a_small_gap_that_falls_with_the_budget():
    good = close_to_free(table({"fixed": (0.3, 0.1, 0.01)}))
    assert good.verdict == "supported"
    assert good.details["gap"][0] == pytest.approx(0.01, abs=1e-12)
    assert good.details["slope"][0] == pytest.approx(-0.145, abs=1e-12)  # of 0.3, 0.1, 0.01 over -1, 0, 1
    assert close_to_free(table({"fixed": (0.3, 0.2, 0.05)})).verdict == "contradicted"
    edge = close_to_free(table({"fixed": (0.3, 0.1, 0.0295)}))
    assert (edge.verdict, edge.threshold) == ("undecided", 0.03)
    assert close_to_free(table({"fixed": (0.01, 0.02, 0.025)})).verdict == "contradicted"  # rises
    assert close_to_free(table({"fixed": (0.3, 0.1, 0.01)}, seeds=4)).verdict == "undecided"
    assert close_to_free(table({"fixed": (0.1, 0.05, 0.01)}, free=0.41)).verdict == "not in regime"


@pytest.mark.parametrize(("judge", "kind"), [(fixed_beats_halving, "halving"), (gradients_beat_inputs, "input")])
def test_h2_and_h3_compare_means_over_the_budgets(judge, kind):
    scatter = {"fixed": (0.2, 0.1, 0.02)}
    worse = judge(table(scatter | {kind: (0.26, 0.11, 0.05)}))
    assert worse.statistic == pytest.approx((0.06 + 0.01 + 0.03) / 3, abs=1e-12)
    assert worse.verdict == "supported"
    assert judge(table(scatter | {kind: (0.14, 0.09, 0.01)})).verdict == "contradicted"
    assert worse.smallest_p == pytest.approx(0.5**5)
    assert judge(table(scatter)).verdict == "undecided"  # none of that kind
    noisy = [
        Evidence(
            run.settings, run.steps, {}, {"errors": [(k, e, u, l, x + (k == kind) * d) for k, e, u, l, x in run.extra["errors"]]}
        )
        for run, d in zip(table(scatter | {kind: (0.2, 0.1, 0.02)}), (0.1, -0.1, 0.05, -0.03, 0.01), strict=True)
    ]
    found = judge(noisy)
    mean, _, interval = statistics.mean_interval([0.1, -0.1, 0.05, -0.03, 0.01])
    assert found.verdict == "undecided"
    assert found.statistic == pytest.approx(mean)
    assert found.interval == pytest.approx(interval)


def served(mean, recoveries=(12.0, 14.0), duplicates=(2.0,), seeds=5, **settings):
    told = {"survive": 0.99, "online": 0.8, "limit": 11.0, "level": "both"} | settings
    jitter = (0.01, -0.01, 0.02, -0.02, 0.0)
    return [
        Evidence({**told, "seed": s}, xr.Dataset(), {}, {
            "mean_live": mean + jitter[s], "recoveries": [r + jitter[s] for r in recoveries],
            "duplicates": [d + jitter[s] for d in duplicates], "bound": 18.0,
        })
        for s in range(seeds)
    ]  # fmt: skip


def test_h4_holds_each_number_against_its_bound():
    good = one_walk(served(1.1))
    assert good.verdict == "supported"
    assert good.details["walks - 1 under both"][0] == pytest.approx(0.1)
    assert good.details["recovery - bound under both"][0] == pytest.approx(-5)
    assert good.details["duplicates - bound under both"][0] == pytest.approx(-9)
    assert good.statistic == pytest.approx(-5)  # 5 / 11 of a limit is left; of the margin of the walks 0.6
    assert one_walk(served(1.3)).verdict == "contradicted"
    assert one_walk(served(0.7)).verdict == "contradicted"
    assert one_walk(served(1.24)).verdict == "undecided"
    assert one_walk(served(1.0, recoveries=(19.0, 18.0))).verdict == "contradicted"
    assert one_walk(served(1.0, duplicates=(11.5,))).verdict == "contradicted"
    assert one_walk(served(1.0, recoveries=(), duplicates=())).verdict == "supported"
    assert one_walk(served(1.0) + served(1.3, level="worse")).verdict == "contradicted"
    assert one_walk(served(1.0, seeds=4)).verdict == "undecided"
    assert one_walk(served(1.0, survive=1.0, online=1.0)).verdict == "not in regime"


def pair(free, private, speed, seeds=5, scatter=(0.002, -0.002, 0.001, -0.001, 0.0)):
    found = []
    for s in range(seeds):
        for level, f, p, v in (
            ("none", 0.05, 0.07, 1.8),
            ("faulty", 0.05 + free + scatter[s], 0.07 + private + scatter[s], speed),
        ):
            told = {"seed": s, "level": level, "train": 100, "eps": 10.0}
            extra = {"plateau": {"free": f, "private": p}, "updates_a_cycle": v * (1 + scatter[s])}
            found.append(Evidence(told, xr.Dataset(), {}, extra))
    return found


def test_h5_asks_for_equal_plateaus_and_a_slower_walk():
    good = same_plateau(pair(0.01, -0.02, 1.2))
    assert good.verdict == "supported"
    assert good.details["private"][0] == pytest.approx(-0.02)
    assert good.statistic == pytest.approx(-0.02)  # a third of the margin is left; log(1.2 / 1.8) = -0.41 is farther
    assert good.details["slower"][0] == pytest.approx(math.log(1.2 / 1.8))
    assert same_plateau(pair(0.035, 0.0, 1.2)).verdict == "contradicted"
    assert same_plateau(pair(0.0, -0.035, 1.2)).verdict == "contradicted"  # better is not the same either
    assert same_plateau(pair(0.029, 0.0, 1.2)).verdict == "undecided"
    assert same_plateau(pair(0.0, 0.0, 2.0)).verdict == "contradicted"
    assert same_plateau(pair(0.0, 0.0, 1.2, seeds=4)).verdict == "undecided"
    assert same_plateau(pair(0.0, 0.0, 1.2)[:-1]).verdict == "undecided"  # a pair is broken


# --- behind them --------------------------------------------------------------------------------------------------------------


def small(norm="l2", seed=3):
    return records("breast_cancer", seed, train=40, norm=norm)


def test_records_have_norm_one_and_are_split_by_the_seed():
    a, b = small(), small("l1", 4)
    assert a.x.shape == (40, 31)
    assert a.x_test.shape == (529, 31)
    assert np.allclose(np.linalg.norm(a.x, axis=1), 1)
    assert np.allclose(np.abs(b.x).sum(1), 1)
    assert set(a.y) == {-1.0, 1.0}
    assert not np.array_equal(a.y, b.y)
    w = np.stack([np.zeros(31), np.eye(31)[0]])
    wrong = np.mean(np.sign(a.x_test[:, 0]) != a.y_test)
    assert a.error(w).tolist() == [1.0, pytest.approx(wrong)]  # w = 0 tells no side
    with pytest.raises(ArgumentError, match=r"train: expected 2\.\.568"):
        records("breast_cancer", 0, train=569)


def test_learners_without_noise_walk_as_the_walker_does():
    found = small()
    got = learn(found, [Learner("gradient", INF, 2, 0.3), Learner("gradient", INF, 1, 0.05)], seed=7)
    order = np.random.default_rng([7, 3])
    places = np.concatenate([order.permutation(40), order.permutation(40)])
    for row, lam, count in ((0, 0.3, 80), (1, 0.05, 40)):
        w = torch.nn.Parameter(torch.zeros(31, dtype=torch.float64))
        walker = PrivateSGD([w], 1.0, eps=INF, clip=INF, weight_decay=lam)
        x, y = torch.from_numpy(found.x), torch.from_numpy(found.y)
        for t, i in enumerate(places[:count]):
            walker.param_groups[0]["lr"] = 1 / (1 + lam * t)
            w.grad = None
            torch.nn.functional.softplus(-y[i] * (x[i] @ w)).backward()
            walker.step()
        assert got[row].tolist() == pytest.approx(w.tolist(), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("norm", "variance"), [("l2", 32), ("l1", 2)])
def test_learners_get_the_noise_of_their_budget(norm, variance):
    # records of 0: after one pass w is the sum of the noise times lr / (1 + lam t), all t; two uses
    # of eps / 2, or one of eps / 2 and one of eps / 4
    zero = Records(np.zeros((300, 31)), np.ones(300), np.zeros((1, 31)), np.ones(1))
    lam, eps = 0.0, 0.5
    learners = [Learner("gradient", eps, 2, lam, norm=norm), Learner("gradient", eps, 2, lam, "halving", norm)]
    w = np.stack([learn(zero, learners, seed) for seed in range(12)])
    scales = [(2 / (eps / 2), 2 / (eps / 2)), (2 / (eps / 2), 2 / (eps / 4))]
    for row, own in enumerate(scales):
        expected = 300 * variance * sum(s**2 for s in own)
        assert w[:, row].var() == pytest.approx(expected, rel=0.2)  # 372 numbers: standard error 0.075


def test_noisy_inputs_are_drawn_once_and_of_both_label_and_features():
    found = small()
    same = learn(found, [Learner("input", INF, 3, 0.1), Learner("gradient", INF, 3, 0.1), Learner("input", 1e9, 3, 0.1)], seed=2)
    assert np.array_equal(same[0], same[1])
    assert np.allclose(same[2], same[0], rtol=1e-4, atol=1e-5)
    noisy = learn(found, [Learner("input", 5.0, 3, 0.1), Learner("input", 5.0, 3, 0.1), Learner("input", 50.0, 3, 0.1)], seed=2)
    assert np.array_equal(noisy[0], noisy[1])
    assert np.linalg.norm(noisy[0] - same[0]) > 3 * np.linalg.norm(noisy[2] - same[0]) > 0
    with pytest.raises(ArgumentError, match="learners: expected one norm"):
        learn(found, [Learner("input", 5.0, 3, 0.1), Learner("input", 5.0, 3, 0.1, norm="l1")], seed=2)


def test_the_studies_tell_what_the_judges_read(tmp_path):
    told = {"name": "l", "seed": 3, "dataset": "breast_cancer", "train": 30, "eps": [1.0, 10.0], "uses": [1, 2], "lams": [0.1]}
    found = Tables([learning(told, Path(), None)])
    assert found.budgets("free") == [INF]
    assert all(found.budgets(kind) == [1.0, 10.0] for kind in ("fixed", "halving", "input", "l1"))
    faults = {"nodes": 20, "degree": 5, "cycles": 300.0, "limit": 8.0, "survive": 0.95, "online": 1.0, "session": 50.0}
    kept = service({"name": "s", "seed": 1, **faults}, Path(), None).extra
    assert kept["bound"] == pytest.approx(8 + math.log2(20))
    assert len(kept["recoveries"]) > 5
    walk = {"name": "w", "seed": 1, "dataset": "breast_cancer", "train": 20, "updates": 60, "lam": 0.1, "eps": 50.0, "uses": 3}
    one = walked(walk | {"service": {"degree": 6}}, tmp_path / "runs", None)
    assert 0 < one.extra["plateau"]["free"] < 0.5
    assert one.extra["updates_a_cycle"] == pytest.approx(1 / 0.55, rel=0.2)
    again = walked(walk | {"service": {"degree": 6}}, tmp_path / "runs", None)
    assert again.extra == one.extra
    assert (tmp_path / "runs" / "private" / "run.json").is_file()
