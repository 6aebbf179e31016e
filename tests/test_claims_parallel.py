"""The judges of WP1-WP5 on evidence made by hand, and the study against the closed form."""

from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

from sgdscope.claims.weighted_parallel import (
    balanced_is_plain,
    distant_replicas_have_a_barrier,
    slow_member_is_harmless,
    variance_falls,
    weighted_beats_plain,
)
from sgdscope.contracts import Evidence, claims
from sgdscope.evidence.parallel import _variances, network, quadratic, study
from sgdscope.theory import averaging_error, worker_moments

SCATTER = [-0.03, 0.01, 0.0, 0.04, -0.02]  # mean 0, standard deviation 0.0274


def run(seed, workloads=(300, 100), kind="quadratic", convex=False, own_start=False, **extra):
    settings = {"kind": kind, "seed": seed, "workloads": list(workloads), "convex": convex, "own_start": own_start}
    told = {"decay": 0.002, "initial": 2.0} | extra
    return Evidence(settings, xr.Dataset(), {}, told)


def losses(seed, weighted, plain=0.7, **told):
    return run(seed, loss={"geometric": weighted, "equal": plain, "fastest": 0.9}, **told)


def half(values):
    return stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / len(values) ** 0.5


# --- WP1 -------------------------------------------------------------------------------------------------------------------


def test_wp1_by_hand():
    found = [losses(s, 0.7 * (0.9 + x)) for s, x in enumerate(SCATTER)]
    verdict = weighted_beats_plain(found)
    assert verdict.verdict == "supported"
    assert verdict.statistic == pytest.approx(-0.1)
    assert verdict.interval == pytest.approx((-0.1 - half(SCATTER), -0.1 + half(SCATTER)))
    assert verdict.n == 5
    alone = verdict.details["relative_to_fastest_alone"]["quadratic, 0.33"][0]
    assert alone == pytest.approx(0.7 * 0.9 / 0.9 - 1)


@pytest.mark.parametrize(
    ("mean", "answer"), [(-0.04, "supported"), (-0.02, "undecided"), (0.02, "undecided"), (0.04, "contradicted")]
)
def test_wp1_threshold(mean, answer):
    assert 0.03 < half(SCATTER) < 0.035
    assert weighted_beats_plain([losses(s, 0.7 * (1 + mean + x)) for s, x in enumerate(SCATTER)]).verdict == answer


def test_wp1_must_hold_at_each_imbalance():
    good = [losses(s, 0.7 * (0.5 + x)) for s, x in enumerate(SCATTER)]
    bad = [losses(s, 0.7 * (1.2 + x), workloads=(300, 150)) for s, x in enumerate(SCATTER)]
    verdict = weighted_beats_plain(good + bad)
    assert verdict.verdict == "contradicted"
    assert verdict.statistic == pytest.approx(0.2)
    assert set(verdict.details["relative_to_plain"]) == {"quadratic, 0.33", "quadratic, 0.5"}
    assert weighted_beats_plain(good + bad[:4]).verdict == "undecided"
    balanced = [losses(s, 0.7 * 1.2, workloads=(300, 300)) for s in range(5)]
    assert weighted_beats_plain(good + balanced).verdict == "supported"


def test_wp1_is_not_asked_across_a_barrier():
    near = [losses(s, 0.7 * (0.5 + x), kind="network", barrier=0.019) for s, x in enumerate(SCATTER)]
    far = [losses(s, 0.7 * (1.5 + x), kind="network", barrier=0.021) for s, x in enumerate(SCATTER)]
    assert weighted_beats_plain(near).verdict == "supported"
    assert weighted_beats_plain(far).verdict == "not in regime"
    assert weighted_beats_plain(near + far).details["barriers_left_out"] == 5


# --- WP2 -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("largest", "answer"), [(0.0, "supported"), (3e-7, "supported"), (9.9e-7, "undecided"), (2e-5, "contradicted")]
)
def test_wp2_threshold(largest, answer):
    apart = [{"geometric": 0.0, "proportional": largest * (1 + x)} for x in SCATTER]
    found = [run(s, (200, 200), apart=a) for s, a in enumerate(apart)]
    verdict = balanced_is_plain(found)
    assert verdict.verdict == answer
    assert verdict.statistic == pytest.approx(largest)
    assert balanced_is_plain(found[:4]).verdict == "undecided"
    assert balanced_is_plain([run(0, (200, 199), apart=apart[0])]).verdict == "not in regime"


# --- WP3 -------------------------------------------------------------------------------------------------------------------


def slow(seed, cost, **told):
    loss, without = {"geometric": 0.4 * (1 + cost), "equal": 3.0}, {"geometric": 0.4, "equal": 1.5}
    return run(seed, (300, 300, 0), loss=loss, loss_without=without, **told)


@pytest.mark.parametrize(("cost", "answer"), [(0.006, "supported"), (0.009, "undecided"), (0.014, "contradicted")])
def test_wp3_threshold(cost, answer):
    found = [slow(s, cost + x / 10) for s, x in enumerate(SCATTER)]
    verdict = slow_member_is_harmless(found)
    assert verdict.verdict == answer
    assert verdict.statistic == pytest.approx(cost)
    assert verdict.details["plain"]["quadratic, 0 updates"] == pytest.approx([1, 1, 1])
    assert slow_member_is_harmless(found[:4]).verdict == "undecided"


def test_wp3_leaves_out_those_that_have_not_forgotten_the_start():
    kept = [slow(s, 0.001) for s in range(5)]
    fresh = [slow(s, 0.5, kind="network", decay=0.011) for s in range(5)]
    verdict = slow_member_is_harmless(kept + fresh)
    assert verdict.verdict == "supported"
    assert "5 of 10 ensembles are left out" in verdict.reason
    assert slow_member_is_harmless(fresh).verdict == "not in regime"
    lost = [slow(s, float("nan"), kind="network", barrier=0.0) for s in range(5)]  # in the regime, and no number
    assert slow_member_is_harmless(kept + lost).verdict == "undecided"
    across = [slow(s, 0.5, kind="network", barrier=0.021) for s in range(5)]
    assert slow_member_is_harmless(kept + across).verdict == "supported"
    inside = [slow(s, 0.5, kind="network", decay=0.009) for s in range(5)]
    assert slow_member_is_harmless(kept + inside).verdict == "contradicted"


# --- WP4 -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("power", "answer"),
    [(-1.0, "supported"), (-0.93, "supported"), (-0.89, "undecided")]
    + [(-0.8, "contradicted"), (-1.2, "contradicted"), (1.0, "contradicted")],
)
def test_wp4_threshold(power, answer):
    found = [run(s, variance={str(k): 0.3 * k ** (power + x) for k in (1, 2, 4, 8)}) for s, x in enumerate(SCATTER)]
    verdict = variance_falls(found)
    assert verdict.verdict == answer
    assert verdict.statistic == pytest.approx(power)
    assert verdict.details["gain"][0] == pytest.approx(np.mean([8 ** -(power + x) for x in SCATTER]))
    assert variance_falls(found[1:]).verdict == "undecided"


def test_wp4_needs_stationarity_and_groups():
    variances = {"1": 1.0, "2": 0.5, "4": 0.25}
    assert variance_falls([run(s, variance=variances, decay=0.11) for s in range(5)]).verdict == "not in regime"
    assert variance_falls([run(s, variance=variances, decay=0.09) for s in range(5)]).verdict == "supported"  # 0.09^2 < 0.01
    assert variance_falls([run(s, variance={"1": 1.0, "2": 0.5}) for s in range(5)]).verdict == "not in regime"


# --- WP5 -------------------------------------------------------------------------------------------------------------------


def pair(seed, barrier, *, apart=True, convex=False):
    return run(
        seed, kind="network", own_start=apart, convex=convex, barrier=barrier, losses=[0.3, 0.4], loss={"equal": 0.4 + barrier}
    )


@pytest.mark.parametrize(("barrier", "answer"), [(0.04, "supported"), (0.02, "undecided"), (-0.04, "contradicted")])
def test_wp5_threshold(barrier, answer):
    found = [pair(s, barrier + x) for s, x in enumerate(SCATTER)]
    near = [pair(s, -0.2, apart=False) for s in range(5)]
    verdict = distant_replicas_have_a_barrier(found + near)
    assert verdict.verdict == answer
    assert verdict.statistic == pytest.approx(barrier)
    assert verdict.details["loss_average"] == pytest.approx(0.4 + barrier)
    assert "between replicas of one start by -0.2" in verdict.reason
    assert distant_replicas_have_a_barrier(found[:4] + near).verdict == "undecided"
    assert distant_replicas_have_a_barrier([pair(s, 0.9, convex=True) for s in range(5)]).verdict == "not in regime"


# --- the study ---------------------------------------------------------------------------------------------------------------


def test_the_study_of_a_quadratic_meets_the_closed_form():
    # relative standard errors of mean squares of 2000 repetitions: at most sqrt(2 / 2000) = 3.2 %; 4 of them allowed
    workloads = [150, 150, 60, 20]
    told = study(quadratic(7, workloads, 2000, distance=3.0, variance=0.6), Path(), None).extra
    bias, spread = worker_moments(workloads, contraction=0.98, start=3.0, variance=0.6)
    geometric = 0.98 ** (150.0 - np.array(workloads))
    for scheme, raw in {"geometric": geometric, "proportional": np.array(workloads), "equal": np.ones(4)}.items():
        omega = raw / raw.sum()
        assert told["weights"][scheme] == pytest.approx(omega.tolist(), rel=1e-12)
        assert told["loss"][scheme] == pytest.approx(averaging_error(omega, bias, spread), rel=0.13)
    fastest = averaging_error([1, 0, 0, 0], bias, spread)
    assert told["loss"]["fastest"] == pytest.approx(fastest, rel=0.13)
    omega = geometric[:3] / geometric[:3].sum()
    assert told["loss_without"]["geometric"] == pytest.approx(averaging_error(omega, bias[:3], spread[:3]), rel=0.13)
    assert told["variance"]["1"] == pytest.approx(spread[0], rel=0.13)
    assert told["variance"]["2"] == pytest.approx((spread[1] + spread[2]) / 4, rel=0.13)
    assert told["decay"] == pytest.approx(0.98**150)


def test_the_noise_of_a_quadratic_has_the_stated_variance_at_any_rate():
    # c = 0.4: the variance would be 1.86 times as large with 2 + rate; 4 relative standard errors of 5 members x 3000 repetitions
    told = study(quadratic(3, [60] * 5, 3000, lr=0.5, curvature=1.2, variance=0.6, distance=2.0), Path(), None).extra
    assert told["variance"]["1"] == pytest.approx(0.6, rel=4 * (2 / 3000) ** 0.5)
    assert told["variance"]["2"] == pytest.approx(0.3, rel=4 * (2 / 3000) ** 0.5)
    assert told["decay"] == pytest.approx(0.4**60)


def test_groups_of_members_share_none():
    ends = [x * torch.tensor([1.0, -1.0], dtype=torch.float64) for x in (1, 2, 4, 8, 16, 32, 64)]
    assert _variances(ends) == {"1": 2.0, "2": 2 * 3.0**2, "4": 2 * 30.0**2}  # of 1; of 2 and 4; of 8 to 64


def test_the_study_of_networks(tmp_path):
    described = network("quick", 3, [1, 0.25], convex=True)
    described["experiment"]["data"] = {"dataset": "wine"}
    found = study(described, tmp_path / "a", None)
    told = found.extra
    assert told["barrier"] < 0.001
    assert told["loss"]["fastest"] == pytest.approx(told["losses"][0], rel=1e-6)
    assert told["loss_without"]["equal"] == pytest.approx(told["losses"][0], rel=1e-6)
    assert told["losses"][0] < told["loss"]["equal"] < told["losses"][1] < told["initial"]
    assert told["apart"]["equal"] == 0
    assert told["decay"] == pytest.approx((1 - told["rate"]) ** 200)  # of the fastest
    slow_weight = (1 - told["rate"]) ** 150
    assert told["weights"]["geometric"][1] == pytest.approx(slow_weight / (1 + slow_weight), rel=1e-9)


def test_averages_of_networks_with_batchnorm_have_their_own_statistics(tmp_path):
    described = network("quick", 3, [1, 0.25], convex=False)
    described["experiment"] |= {"data": {"dataset": "wine"}, "model": {"name": "mlp", "hidden": [8], "batchnorm": True}}
    told = study(described, tmp_path / "a", None).extra
    assert told["loss"]["fastest"] == pytest.approx(told["losses"][0], rel=0.1)  # 1.8 times as large with those of the start
    assert told["loss"]["equal"] < 0.2 * told["initial"]


def test_the_claims_share_no_study_across_seeds_and_name_their_scope():
    for name in ("WP1", "WP2", "WP3", "WP4", "WP5"):
        entry = claims[name]
        assert entry.study is study
        assert len({d["seed"] for d in entry.experiments["quick"](0)}) == 5
    ratios = {min(d["workloads"]) / max(d["workloads"]) for d in claims["WP1"].experiments["quick"](0)}
    assert {1.0, 0.5} < ratios
