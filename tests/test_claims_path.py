"""The judges S1-S5, S17, S18 on curves made by hand, and the parts of which claims are joined."""

import numpy as np
import pytest
import xarray as xr
from scipy import stats

from sgdscope.contracts import claims
from sgdscope.evidence.parts import Part, equal, joint
from sgdscope.evidence.shapes import early, growth, reached
from sgdscope.evidence.sharp_runs import ARMS, BRANCHES, BY_BATCH, BY_LR, CUTS
from sgdscope.evidence.sharpness import made, path, paths

T = (0, 2, 5, 10, 20, 40, 60, 80, 99)
WOBBLE = (0.97, 1.0, 1.04, 0.99, 1.01)


def run(values, *, lr=0.1, batch=64, seed=0, losses=None, times=T, rates=None):
    """Evidence of a run of 100 updates with the given eigenvalues [n] or [n, k]."""
    told = made({"lr": lr, "batch_size": batch, "seed": seed}, times, values, np.linspace(2.0, 1.0, len(times)).tolist())
    if losses is not None:
        told.measured["curvature"]["loss"].values[:] = losses
    if rates is not None:
        told.steps["lr"] = ("step", np.asarray(rates, float))
    return told


def shaped(peak, at=20, first=1.0, last=None):
    """Rises in logs from `first` to `peak` at update `at`, then goes to `last`."""
    t = np.asarray(T, float)
    end = peak / 2 if last is None else last
    return np.where(t <= at, first * (peak / first) ** (t / at), peak * (end / peak) ** ((t - at) / max(99 - at, 1)))


def judged(name, runs):
    return claims[name].judge(list(runs))


# --- parts --------------------------------------------------------------------------------------------------------------------


def test_a_part_has_students_interval_over_runs_whatever_their_number_of_points():
    part = Part("x", [[1.0, 3.0, np.nan], [5.0], [3.0, 3.0, 3.0, 9.0]], 1.5)
    held = part.held()
    means = np.array([2.0, 5.0, 4.5])
    half = stats.t.ppf(0.975, 2) * means.std(ddof=1) / 3**0.5
    assert (held.mean, held.n) == (pytest.approx(means.mean()), 3)
    assert held.interval == pytest.approx((means.mean() - half, means.mean() + half))
    assert held.answer == "undecided"
    assert Part("x", [2.0, 5.0, 4.5], -0.2).held().answer == "supported"
    assert Part("x", [2.0, 5.0, 4.5], -0.2, above=False).held().answer == "contradicted"


def test_a_part_of_logarithms_tells_factors():
    held = Part("x", np.log([2.0, 8.0, 4.0]).tolist(), np.log(1.5), logs=True).held()
    assert held.mean == pytest.approx(4.0)
    assert held.threshold == pytest.approx(1.5)
    half = stats.t.ppf(0.975, 2) * np.log(2) / 3**0.5
    assert held.interval == pytest.approx((4 * np.exp(-half), 4 * np.exp(half)))


def test_equality_is_a_part_from_either_side_each_over_five_units():
    units = [1.8, 2.0, 2.2, 1.9, 2.1]  # 2 -+ 0.1963
    answers = [[p.held().answer for p in equal("x", units, 2.1, margin)] for margin in (0.31, 0.29)]
    assert answers == [["supported", "supported"], ["undecided", "supported"]]
    assert [p.held().answer for p in equal("x", units, 1.5, 0.25)] == ["supported", "contradicted"]
    assert [p.held().answer for p in equal("x", units[:4], 2.0, 9.0)] == ["undecided", "undecided"]
    assert [p.held().threshold for p in equal("x", units, np.log(3), np.log(2), logs=True)] == pytest.approx([1.5, 6.0])


def test_one_run_has_an_interval_over_its_points_only_where_asked_and_with_enough():
    points = [3.0, 1.0, 2.0, 4.0, 2.5, 3.5, 2.0, 3.0]
    assert Part("x", [points]).held().answer == "undecided"
    held = Part("x", [points], within=8).held()
    assert (held.answer, held.n) == ("supported", 8)
    assert held.interval[0] < 2.625 < held.interval[1]
    assert Part("x", [points[:7]], within=8).held().answer == "undecided"
    assert Part("x", [[np.nan], [np.nan]], within=8).held().n == 0


def test_the_verdict_is_that_of_the_part_that_holds_least():
    good, close, bad = (Part(name, [x, x + 0.1, x + 0.2]) for name, x in (("good", 5.0), ("close", 0.4), ("bad", -5.0)))
    unsure = Part("unsure", [-1.0, 1.0, 2.0])
    assert joint("S1", [good, close], place={}).statistic == pytest.approx(0.5)
    assert joint("S1", [good, unsure], place={}).verdict == "undecided"
    found = joint("S1", [good, bad, unsure], place={})
    assert (found.verdict, found.statistic) == ("contradicted", pytest.approx(-4.9))
    assert found.details["parts"]["good"]["answer"] == "supported"
    assert joint("S1", [good, Part("few", [1.0, 2.0])], place={}).verdict == "undecided"
    below = Part("below", [-2.0, -2.1, -1.9], -1.0, above=False)
    assert joint("S1", [good, below], place={}).statistic == pytest.approx(-2.0)  # 1 from its threshold, good 5.1
    assert joint("S1", [close, Part("far below", [-9.0, -9.1, -8.9], -1.0, above=False)], place={}).statistic == pytest.approx(
        0.5
    )
    sharp = Part("sharp", [0.3, 0.3001, 0.2999])  # nearer to 0 than the others, and farther in units of its interval
    assert joint("S1", [sharp, close], place={}).statistic == pytest.approx(0.5)


# --- S1, S2 -------------------------------------------------------------------------------------------------------------------


def test_growth_reads_each_run_where_the_others_peak():
    rows = np.array([[2.0, 3, 9, 4, 4, 4, 4, 4, 5], [1.0, 5, 4, 2, 2, 2, 2, 2, 3], [2.0, 6, 4, 2, 2, 2, 2, 2, 1]])
    up, down = growth(paths([run(r, seed=s) for s, r in enumerate(rows)]))
    # geometric means of the others: run 0 of (5, 6) at index 1; runs 1, 2 at index 2: (9 x 4), not (3 x 6), (3 x 5)
    assert np.exp(up) == pytest.approx([1.5, 4.0, 2.0])
    assert np.exp(down) == pytest.approx([5 / 3, 0.75, 0.25])
    found = judged("S1", [run(r, seed=s) for s, r in enumerate(rows)])
    assert found.details["parts"]["lambda_1 grows by a factor of"]["mean"] == pytest.approx(12 ** (1 / 3))
    assert found.details["peak_over_first"] == pytest.approx([4.5, 5.0, 3.0])


def test_s1_is_not_fooled_by_the_largest_of_noisy_values():
    supported = 0
    for trial in range(60):
        random = np.random.default_rng(trial)
        noise = [run(np.exp(0.3 * random.standard_normal(len(T))), seed=s) for s in range(5)]
        found = judged("S1", noise)
        supported += found.verdict == "supported"
        assert min(found.details["peak_over_first"]) >= 1  # whatever the noise
    assert supported <= 5  # 2.5 % each: more than 5 of 60 has p < 0.005


@pytest.mark.parametrize(
    ("values", "answer"),
    [
        (shaped(6.0), "supported"),
        (shaped(6.0, last=6.0), "supported"),  # a plateau
        (shaped(6.0, at=99), "contradicted"),  # grows to the end
        (shaped(0.2), "contradicted"),  # falls
        (shaped(6.0, at=60), "contradicted"),  # late
    ],
)
def test_s1_needs_growth_and_an_early_peak(values, answer):
    assert judged("S1", [run(w * values, seed=s) for s, w in enumerate(WOBBLE)]).verdict == answer


def test_s1_wants_three_seeds_below_the_edge():
    runs = [run(w * shaped(6.0), seed=s) for s, w in enumerate(WOBBLE)]
    assert judged("S1", runs[:2]).verdict == "undecided"
    assert judged("S1", [runs[0]] * 3).verdict == "undecided"  # one seed
    above = [run(w * shaped(6.0), seed=s, lr=2.1) for s, w in enumerate(WOBBLE)]  # 2.1 x 0.97 / 2 > 1
    assert judged("S1", above).verdict == "not in regime"
    assert judged("S1", [run(w * shaped(6.0), seed=s, lr=1.9) for s, w in enumerate(WOBBLE)]).verdict == "supported"
    short = [run(w * shaped(6.0)[:7], seed=s, times=T[:7]) for s, w in enumerate(WOBBLE)]
    assert judged("S1", short).verdict == "undecided"


def test_points_that_did_not_converge_are_left_out():
    runs = [run(w * shaped(6.0), seed=s) for s, w in enumerate(WOBBLE)]
    for one in runs:
        one.measured["curvature"]["sharpness_outcome"] = ("step", np.array([0, 0, 0, 0, 1, 0, 0, 0, 0], np.int8))
    assert 20 not in path(runs[0]).steps
    assert judged("S1", runs).details["peak_at"] == [40] * 5


def test_s2_takes_the_smallest_rank_correlation():
    first = shaped(6.0)
    second = np.exp(np.cos(np.arange(len(T))))
    rows = [np.stack([w * first, 0.3 * second, first / 9], 1) for w in WOBBLE]
    found = judged("S2", [run(r, seed=s) for s, r in enumerate(rows)])
    assert found.statistic == pytest.approx(stats.spearmanr(first, second).statistic)
    assert found.details["parts"]["rank correlation of lambda_3"]["mean"] == pytest.approx(1.0)
    falling = [run(np.stack([w * first, 0.1 / first], 1), seed=s) for s, w in enumerate(WOBBLE)]
    assert judged("S2", falling).verdict == "contradicted"
    assert judged("S2", [run(np.stack([w * first, first / 2], 1), seed=s) for s, w in enumerate(WOBBLE)]).verdict == "supported"
    assert judged("S2", [run(w * first, seed=s) for s, w in enumerate(WOBBLE)]).verdict == "undecided"  # one eigenvalue


@pytest.mark.parametrize(("height", "answer"), [(1.24, "not in regime"), (1.27, "supported")])
def test_s2_needs_a_shape(height, answer):
    values = shaped(height, last=1.1)
    assert judged("S2", [run(np.stack([values, values / 2], 1), seed=s) for s in range(3)]).verdict == answer


# --- one setting varied ---------------------------------------------------------------------------------------------------------


def swept(shape, *, by="lr", seeds=4, factor=1.0):
    """Three settings, 0.25, 1, 4 times the middle one; shape(x) are the values."""
    wobble = WOBBLE[:seeds]
    base = {"lr": 0.1 * factor, "batch": 64}
    name = {"lr": "lr", "batch_size": "batch"}[by]
    return [run(w * shape(x), seed=s, **(base | {name: base[name] * x})) for x in (0.25, 1.0, 4.0) for s, w in enumerate(wobble)]


@pytest.mark.parametrize(("name", "by", "power"), [("S3", "lr", -0.5), ("S4", "batch_size", 0.4)])
def test_the_peak_has_the_power_that_it_was_given(name, by, power):
    found = judged(name, swept(lambda x: shaped(8.0 * x**power), by=by))
    assert (found.verdict, found.n) == ("supported", 4)
    assert found.statistic == pytest.approx(power)
    assert judged(name, swept(lambda x: shaped(8.0 * x**-power), by=by)).verdict == "contradicted"
    assert judged(name, swept(lambda x: shaped(8.0 * x**power), by=by)[:11]).verdict == "supported"  # three seeds are whole
    assert judged(name, swept(lambda x: shaped(8.0 * x**power), by=by)[1:-1]).verdict == "undecided"  # two seeds are whole
    assert judged(name, swept(lambda x: shaped(8.0 * x**power), by=by)[:8]).verdict == "undecided"  # two settings


def test_the_last_value_is_not_the_peak():
    assert judged("S3", swept(lambda x: shaped(8.0 * x**-0.5, last=1.0 * x**0.5))).statistic == pytest.approx(-0.5)


def test_the_power_at_equal_training_loss_is_told_beside():
    runs = swept(lambda x: shaped(8.0 * x**-0.5, last=1.5 * x**0.2))
    assert judged("S3", runs).details["at_equal_loss"][0] == pytest.approx(0.2)  # all losses end at 1
    runs[0].measured["curvature"]["loss"].values[:] = np.linspace(2.0, 1.5, len(T))  # now 1.5 is the lowest common loss
    values = [[p.at_loss(1.5) for p in paths(runs) if p.seed == s] for s in range(4)]
    slopes = [np.polyfit(np.log([0.25, 1, 4]), np.log(row), 1)[0] for row in values]
    assert judged("S3", runs).details["at_equal_loss"][0] == pytest.approx(np.mean(slopes))
    assert np.mean(slopes) < 0.0


@pytest.mark.parametrize(
    ("late", "power", "answer"),
    [
        (0.25, -0.5, "supported"),  # the true peak at the smallest learning rate is higher still
        (0.25, 0.5, "not in regime"),  # it might be higher than the others
        (4.0, -0.5, "not in regime"),
        (1.0, -0.5, "not in regime"),
        (None, 0.5, "contradicted"),
    ],
)
def test_a_peak_at_the_end_of_a_run_counts_only_where_it_cannot_mislead(late, power, answer):
    found = judged("S3", swept(lambda x: shaped(8.0 * x**power, at=99 if x == late else 20)))
    assert found.verdict == answer
    assert ("may not be one" in found.reason) == (late is not None)


def test_a_late_peak_of_the_largest_batch_counts():
    assert judged("S4", swept(lambda x: shaped(8.0 * x**0.4, at=99 if x == 4 else 20), by="batch_size")).verdict == "supported"
    found = judged("S4", swept(lambda x: shaped(8.0 * x**0.4, at=99 if x < 1 else 20), by="batch_size"))
    assert found.verdict == "not in regime"


@pytest.mark.parametrize(("calm", "answer"), [(1.2, "not in regime"), (1.3, "contradicted")])
def test_without_sharpening_there_is_no_peak(calm, answer):
    assert judged("S3", swept(lambda x: shaped(calm if x < 1 else 3.0 * x**0.5))).verdict == answer


@pytest.mark.parametrize(("factor", "answer"), [(0.062, "not in regime"), (0.065, "supported")])
def test_far_below_the_edge_nothing_is_limited(factor, answer):
    # the largest lr lambda_peak / 2 is that of x = 4: 0.4 x 4 / 2 = 0.8
    assert judged("S3", swept(lambda x: shaped(8.0 * x**-0.5), factor=factor)).verdict == answer


def test_s5_counts_updates_to_nine_tenths_of_the_peak():
    values = [1.0, 2.0, 3.0, 8.9, 9.1, 10.0, 9.0, 5.0, 4.0]
    assert reached(path(run(values))) == 20
    at = {0.25: 60, 1.0: 20, 4.0: 5}

    def peak(update):
        near = np.where(np.asarray(T) == update, 4.7, 4.0)  # nine tenths of the peak, which comes at the next point
        return np.where(np.asarray(T) < update, 1.0, np.where(np.roll(T, 1) == update, 5.0, near))

    found = judged("S5", swept(lambda x: peak(at[x])))
    slope = np.polyfit(np.log([0.25, 1, 4]), np.log([61, 21, 6]), 1)[0]
    assert (found.verdict, found.statistic) == ("supported", pytest.approx(slope))
    assert judged("S5", swept(lambda x: peak(at[1 / x]))).verdict == "contradicted"


def test_s18_is_the_mean_over_time_of_the_first_tenth():
    one = path(run([1.0, 3.0, 7.0, 2.0, 9.0, 9.0, 9.0, 9.0, 9.0]))
    assert early(one) == pytest.approx((2 * 2.0 + 3 * 5.0 + 5 * 4.5) / 10)
    sparse = path(run(np.ones(8), times=(0, 8, 20, 30, 40, 50, 60, 99)))
    assert np.isnan(early(sparse))
    found = judged("S18", swept(lambda x: np.where(np.asarray(T) <= 10, 3.0 * x**-0.6, 5.0)))
    assert (found.verdict, found.statistic) == ("supported", pytest.approx(-0.6))
    assert judged("S18", swept(lambda x: np.where(np.asarray(T) <= 10, 3.0 * x**0.6, 5.0 * x**-2))).verdict == "contradicted"


# --- S17 ------------------------------------------------------------------------------------------------------------------------


def cut(before, after, twin, *, seeds=5, lr=0.1, losses=None):
    """Pairs with a cut at update 40: lambda_1 is `before` at t = 20 and 40, `after` and `twin` at 80 and 99, 100 elsewhere."""
    rates = np.where(np.asarray(T) >= 40, lr / 10, lr)
    told = []
    for s in range(seeds):
        for end, rate in ((twin, np.full(len(T), lr)), (after, rates)):
            values = WOBBLE[s] * np.where(np.isin(T, (20, 40)), before, np.where(np.asarray(T) < 70, 100.0, end))
            told.append(run(values, lr=lr, seed=s, rates=rate, losses=losses if rate[-1] < lr else None))
    return told


@pytest.mark.parametrize(
    ("after", "twin", "answer", "statistic"),
    [(12.0, 7.0, "supported", 2.0), (12.0, 20.0, "contradicted", 0.6), (5.0, 2.0, "contradicted", 5 / 6)],
)
def test_s17_compares_with_before_and_with_the_twin(after, twin, answer, statistic):
    runs = cut(6.0, after, twin)
    for one, w in zip(runs[1::2], (1.01, 0.99, 1.0, 1.02, 0.98), strict=True):
        one.measured["curvature"]["sharpness"].values[-2:] *= w
    found = judged("S17", runs)
    assert found.verdict == answer
    expected = {"supported": min(after / 6, after / twin), "contradicted": statistic}[answer]
    assert found.statistic == pytest.approx(expected, rel=0.01)
    assert found.smallest_p == pytest.approx(1 / 32)


def test_s17_regime_and_missing_twins():
    assert judged("S17", cut(6.0, 12.0, 7.0)[:-1]).verdict == "undecided"
    assert judged("S17", cut(6.0, 12.0, 7.0, lr=0.016)).verdict == "not in regime"  # 0.016 x 6 / 2 = 0.048
    assert judged("S17", cut(6.0, 12.0, 7.0, lr=0.018)).verdict == "supported"
    lost = [2.0, 2, 2, 2, 2, 2, 1, 1, 0.09]
    assert judged("S17", cut(6.0, 12.0, 7.0, losses=lost)).verdict == "not in regime"


# --- the runs -------------------------------------------------------------------------------------------------------------------


def test_the_runs_of_the_paper():
    grid = BY_LR["paper"](0)
    assert {p["lr"] for d in grid for p in d["phases"]} == {0.001, 0.01, 0.1}
    assert all(d["model"] == {"name": "simplecnn"} and d["phases"][0]["weight_decay"] == 0 for d in grid)
    assert {d["phases"][0]["updates"] for d in grid} == {200 * 351}
    assert {p["batch_size"] for d in BY_BATCH["paper"](0) for p in d["phases"]} == {32, 128, 1024}
    twin, other = CUTS["paper"](0)[:2]
    assert [(p["lr"], p["updates"]) for p in other["phases"]] == [(0.1, 40 * 351), (0.01, 160 * 351)]
    assert twin["phases"][0]["updates"] == 200 * 351
    arms = BRANCHES["paper"](0)[: len(ARMS)]
    assert {d["phases"][0]["updates"] for d in arms} == {5 * 351}
    assert {tuple(d["record"]["snapshots"]["at"]) for d in arms} == {(1755, 2755)}
    assert all(d["phases"][1]["updates"] == 1001 for d in arms)


def test_claims_share_their_runs():
    told = {name: claims[name].experiments["quick"](0) for name in ("S1", "S3", "S4", "S6", "S17")}
    distinct = {str({k: v for k, v in d.items() if k != "name"}) for runs in told.values() for d in runs}
    assert [len(runs) for runs in told.values()] == [5, 15, 15, 5, 10]
    assert len(distinct) == 30  # 5 at the centre, 20 arms of the cross, 5 cuts


def test_evidence_made_of_numbers_names_what_the_quantity_measures():
    from sgdscope.landscapes import Quadratic, walk
    from sgdscope.measure import measure

    surface = Quadratic(np.diag([3.0, 2.0, 1.0, 0.5, 0.2, 0.1]))
    measured = measure(walk(surface, lr=0.1, updates=3, start=surface.theta() + 1.0), surface, ["curvature"], curvature={"k": 5})
    real = measured["curvature"].to_dataset()
    for name, values in run(np.ones((9, 5))).measured["curvature"].data_vars.items():
        assert isinstance(values, xr.DataArray)
        assert values.dims == real[name].dims, name
