"""The judges of T6, T7, T10, T11, T12 and W17 on evidence made by hand, and the studies behind them against exact answers."""

from dataclasses import replace
from math import exp, log, sqrt

import numpy as np
import pytest
import torch
import xarray as xr

from sgdscope import escapes
from sgdscope.claims.walk_with_sgd.schedules import SHAPES, _described, shape, shape_of
from sgdscope.claims.walk_with_sgd.schedules import SIZES as SHAPED
from sgdscope.contracts import Evidence, claims
from sgdscope.evidence.basins import Basins, Bowl, exact_odds, minimum_of, study_basins, study_minimum
from sgdscope.evidence.schedule_exchange import (
    CLEAN,
    SIZES,
    Arm,
    alternation,
    arm_of,
    arms,
    compared,
    exchanged,
    fall,
    farthest,
    made_run,
    staged,
    tables_of,
)
from sgdscope.experiment import Experiment

SIZE = SIZES["quick"]
WOBBLE = 0.01 * np.array([-1.2, 0.4, 0.9, -0.5, 1.1, 0.2, -0.9, 0.0])
STAGES = arms(SIZE)
POINTS = 12


def run_of(name, seed, test, *, sharpness=None, loss=None):
    stages = STAGES[name] if isinstance(name, str) else name
    described = staged(SIZE, str(name), seed, stages, every=2)
    n = len(described["record"]["snapshots"]["at"])
    told = {"test": np.broadcast_to(test, n), "sharpness": np.full(n, 8.0) if sharpness is None else sharpness}
    told["loss"] = np.full(n, 1.3) if loss is None else loss
    return made_run(described, SIZE.examples, told)


def judged(name, runs):
    return claims[name].judge(list(runs))


# --- stages ----------------------------------------------------------------------------------------------------------------


def test_arms_have_one_ratio_at_all_times():
    for preset, size in [*SIZES.items(), *CLEAN.items()]:
        for word, stage in zip(("short", "long"), size.stages, strict=True):
            lr, batch = (arms(size)[f"{kind}-{word}"] for kind in ("lr", "batch"))
            assert [e for *_, e in lr] == [e for *_, e in batch] == [stage] * (size.epochs // stage)
            ratio = [a / b for a, b, _ in lr]
            assert ratio == pytest.approx([a / b for a, b, _ in batch], rel=0.01)
            assert ratio[0] == pytest.approx(5 * ratio[1])  # high first
            assert all(size.examples % b == 0 for _, b, _ in (*lr, *batch)), preset
    low, large, high = (STAGES[name][0] for name in ("low", "low-large", "high"))
    assert (low, large, high) == ((0.06, 32, 24), (0.3, 160, 24), (0.3, 32, 24))


def test_runs_are_measured_at_equal_epochs():
    for name in STAGES:
        noisy, clean = exchanged((name,), 1)["quick"](3)
        assert (noisy["data"]["label_noise"], clean["data"].get("label_noise")) == (0.3, None)
        for description, examples in ((noisy, 1280), (clean, 320)):
            experiment = Experiment(**description)
            updates = [p.updates for p in experiment.phases]
            per_epoch = [examples // p.batch_size for p in experiment.phases]
            seen = np.repeat([p.batch_size for p in experiment.phases], updates).cumsum()
            at = description["record"]["snapshots"]["at"]
            assert seen[at].tolist() == [2 * examples * (i + 1) for i in range(POINTS)]
            assert all(u % e == 0 for u, e in zip(updates, per_epoch, strict=True))
        assert [p.updates for p in Experiment(**noisy).phases] == [p.updates for p in Experiment(**clean).phases]
    assert len(exchanged(("low",), 1)["paper"](0)) == 1  # the paper's labels are clean
    shared = {d["name"] for n in (("lr-short", "low"), ("low", "high")) for d in exchanged(n, 2)["quick"](0)}
    assert len(shared) == 12


def test_the_staircase_is_read_back():
    arm = arm_of(run_of("batch-long", 0, 0.8))
    assert (arm.moves, arm.lr, arm.batch_size, arm.epochs) == ("batch", (0.3,) * 4, (32.0, 160.0, 32.0, 160.0), (6.0,) * 4)
    assert str(arm) == "lr 0.3, batch 32..160, stages of 6"
    assert arm.mismatch(arm_of(run_of("lr-long", 0, 0.8))) == pytest.approx(0, abs=1e-12)
    assert arm.mismatch(arm_of(run_of("lr-short", 0, 0.8))) == pytest.approx(4)
    uneven = Arm((0.3, 0.066) * 2, (32.0,) * 4, (6.0,) * 4)
    assert arm.mismatch(uneven) == pytest.approx(0.1)
    assert arm.mismatch(Arm((0.3, 0.06), (32.0,) * 2, (6.0,) * 2)) == np.inf  # half as long
    scheduled = run_of("low", 0, 0.8)
    phase = scheduled.settings["experiment"]["phases"][0] | {"schedule": {"kind": "decay"}}
    assert arm_of(replace(scheduled, settings=scheduled.settings | {"experiment": {"phases": [phase]}})) is None


def test_differences_are_in_standard_deviations_of_one_accuracy_over_seeds():
    rise = np.linspace(0.5, 0.8, POINTS)
    a = {s: run_of("lr-short", s, rise + w) for s, w in enumerate(WOBBLE)}
    b = {s: run_of("batch-short", s, rise + w + 0.004 * (np.arange(POINTS) >= 6)) for s, w in enumerate(WOBBLE[::-1])}
    first, second, end = compared(a, b)
    sd = WOBBLE.std(ddof=1)
    assert [p.statistic for p in (first, second, end)] == pytest.approx([0, -0.004 / sd, -0.004 / sd], abs=1e-12)
    apart = (WOBBLE - WOBBLE[::-1]) / sd
    half = 2.3646 * apart.std(ddof=1) / sqrt(8)  # t of 7 at 97.5 %
    assert first.interval == pytest.approx((-half, half), rel=1e-3)
    assert farthest(a, b) == pytest.approx(0.004)
    assert compared(a, {s: run_of("low", s, 0.8) for s in [0]}) == []


# --- T6, T7 ----------------------------------------------------------------------------------------------------------------


def exchange(batch=0.0, noise=0.05, *, cyclic=0.03, large=0.0, seeds=8, rough=0.15):
    """Accuracies with the scatter of the seeds, alike in all arms but for a share `rough` of it."""
    shifts = {"lr-short": cyclic, "batch-short": cyclic + batch, "low": 0.0, "low-large": large, "high": -noise}
    runs = []
    for i, (name, shift) in enumerate(shifts.items()):
        own = WOBBLE + rough * np.roll(WOBBLE, i + 1)
        runs += [run_of(name, s, 0.8 + shift + own[s]) for s in range(seeds)]
    return runs


def test_t6_asks_for_equality_of_all_pieces():
    assert judged("T6", exchange()).verdict == "supported"
    assert judged("T6", exchange(batch=0.02)).verdict == "contradicted"  # two standard deviations
    assert judged("T6", exchange(batch=-0.02)).verdict == "contradicted"
    assert judged("T6", exchange(batch=0.0085)).verdict == "undecided"
    assert judged("T6", exchange(rough=8.0, noise=0.5)).verdict == "undecided"  # not different, and not shown to be equal
    assert judged("T6", exchange(seeds=4)).verdict == "undecided"


def test_t6_proves_nothing_where_another_ratio_makes_no_difference():
    found = judged("T6", exchange(noise=0.0))
    assert found.verdict == "undecided"
    assert "nothing was exchanged" in found.reason
    assert judged("T6", [r for r in exchange() if arm_of(r).lr != (0.3,)]).verdict == "undecided"  # without the constant


def test_t6_wants_one_ratio():
    off = [(lr * (1.05 if i % 2 else 1), b, e) for i, (lr, b, e) in enumerate(STAGES["batch-short"])]
    moved = [run_of(off, s, 0.83) if arm_of(r).moves == "batch" else r for r in exchange() for s in [r.settings["seed"]]]
    assert judged("T6", moved).verdict == "undecided"
    unknown = [replace(r, extra={"accuracy": {"step": [], "test": []}}) for r in exchange()]
    assert judged("T6", unknown).verdict == "not in regime"


def test_t7_asks_for_equal_constants_and_a_gain_of_the_waves():
    found = judged("T7", exchange())
    assert found.verdict == "supported"
    gain = found.details["parts"]["labels as they are: cyclic - constant: accuracy at the end"]
    rough = 0.15 * (np.roll(WOBBLE, 1) + np.roll(WOBBLE, 2) - np.roll(WOBBLE, 3) - np.roll(WOBBLE, 4)) / 2
    assert gain[0] == pytest.approx(0.03 + rough.mean())
    assert found.threshold == pytest.approx(1)
    worse = judged("T7", exchange(cyclic=-0.03))
    assert (worse.verdict, worse.threshold) == ("contradicted", 0.0)
    assert worse.statistic == pytest.approx(-0.03 + rough.mean())
    assert judged("T7", exchange(large=0.02)).verdict == "contradicted"
    assert judged("T7", exchange(cyclic=0.0)).verdict == "undecided"


# --- groups ----------------------------------------------------------------------------------------------------------------


def labelled(runs, share):
    return [replace(r, settings=r.settings | {"label_noise": share}) for r in runs]


def test_each_group_of_labels_must_hold():
    for name, wrong in (("T6", {"batch": 0.02}), ("T7", {"cyclic": -0.03})):
        assert judged(name, exchange() + labelled(exchange(), 0.3)).verdict == "supported"
        for bad_one in (exchange() + labelled(exchange(**wrong), 0.3), exchange(**wrong) + labelled(exchange(), 0.3)):
            assert judged(name, bad_one).verdict == "contradicted"
        blunt = judged(name, exchange() + labelled(exchange(noise=0.0), 0.3))
        assert (blunt.verdict, "0.3 of the labels drawn anew: nothing was exchanged" in blunt.reason) == ("undecided", True)
        assert judged(name, exchange() + labelled(exchange(seeds=4), 0.3)).verdict == "undecided"
    told = judged("T7", exchange(cyclic=-0.03) + labelled(exchange(), 0.3))
    assert "decisive: labels as they are: cyclic - constant" in told.reason
    assert len(told.details["parts"]) == 8  # three pieces of the constants and a gain, of each group


def test_runs_of_one_share_and_other_lengths_are_groups_of_their_own():
    half = [replace(r, settings=r.settings | {"examples": 2 * SIZE.examples}) for r in exchange()]
    assert list(tables_of(exchange() + half)) == ["labels as they are, 12 epochs", "labels as they are, 24 epochs"]
    assert list(tables_of(labelled(exchange(), 0.3) + exchange())) == ["labels as they are", "0.3 of the labels drawn anew"]
    assert {len(t) for t in tables_of(exchange() + half).values()} == {5}


def test_t10_leaves_phases_of_a_vanished_loss_out_but_not_their_accuracies():
    def vanished(**more):
        return labelled(noisy(waves(trend=-0.45, **more)), 0.0)  # ends at exp(0.5 - 11 0.45) of 2.3: 0.5 %

    assert judged("T10", labelled(noisy(waves()), 0.3) + labelled(noisy(waves()), 0.0)).verdict == "supported"
    gone = judged("T10", labelled(noisy(waves()), 0.3) + vanished())
    assert gone.verdict == "not in regime"
    assert gone.details["labels as they are"]["log_sharpness_over_loss"]["lr 0.06..0.3, batch 32, stages of 2"] == pytest.approx(
        -0.5, abs=0.02
    )
    assert judged("T10", labelled(noisy(waves()), 0.3) + vanished(sharp=0.3)).verdict == "not in regime"
    assert judged("T10", labelled(noisy(waves()), 0.3) + vanished(long=-0.02)).verdict == "contradicted"
    assert judged("T10", labelled(noisy(waves(sharp=0.3)), 0.3) + vanished()).verdict == "contradicted"


def test_the_fall_of_the_loss_is_of_the_curvature_or_of_the_batches():
    run = run_of("low", 0, 0.8, loss=np.linspace(2.0, 0.7, POINTS))
    assert fall(run) == pytest.approx((2.3, 0.7))
    steps = xr.Dataset({"loss": ("step", np.linspace(2.5, 0.1, 25))}, {"step": np.arange(25)})
    assert fall(replace(run, measured={}, steps=steps)) == pytest.approx((2.5, 0.15))  # the last two of 25
    assert np.isnan(fall(replace(run, measured={}, steps=xr.Dataset()))).all()
    broken = run_of("low", 0, 0.8, loss=np.append(np.linspace(2.0, 0.7, POINTS - 1), np.inf))
    assert np.isnan(fall(broken)[1])


# --- T10 -------------------------------------------------------------------------------------------------------------------


def wave(seed, *, sharp=-0.3, high=0.2, trend=-0.1, long=0.02, name="lr-long"):
    n = POINTS
    stages = STAGES[name]
    ratio = np.repeat([a / b for a, b, _ in stages], [e // 2 for *_, e in stages])
    up = ratio > 0.004
    t = np.arange(n)
    test = 0.8 + WOBBLE[seed] + (long if name.endswith("long") else 0.0)
    return run_of(name, seed, test, sharpness=np.exp(1 + sharp * up + 0.05 * t), loss=np.exp(0.5 + high * up + trend * t))


def waves(**told):
    return [wave(s, name=name, **told) for name in ("lr-short", "batch-short", "lr-long", "batch-long") for s in range(8)]


@pytest.mark.parametrize("name", ["lr-short", "lr-long", "batch-long"])
def test_alternation_is_free_of_the_trend(name):
    run = wave(0, name=name)
    assert alternation(run, "sharpness") == pytest.approx(-0.3)
    assert alternation(run, "loss") == pytest.approx(0.2)
    assert np.isnan(alternation(run_of("low", 0, 0.8), "loss"))


def test_t10_asks_for_both_phases_and_for_longer_stages():
    assert judged("T10", [replace(r) for r in noisy(waves())]).verdict == "supported"
    for wrong in ({"sharp": 0.3}, {"high": -0.2}, {"long": -0.02}):
        assert judged("T10", noisy(waves(**wrong))).verdict == "contradicted"
    assert judged("T10", noisy(waves(long=0.0))).verdict == "undecided"
    assert judged("T10", noisy(waves())[:16]).verdict == "undecided"  # short stages alone
    told = judged("T10", noisy(waves())).details["parts"]
    assert len(told) == 10  # two of each of four schedules, and long - short of two


def noisy(runs):
    """A little scatter, so that no interval has length 0."""
    random = np.random.default_rng(0)

    def with_scatter(run):
        curve = np.array(run.extra["accuracy"]["test"]) + 0.002 * random.normal(size=POINTS)
        data = run.measured["curvature"]
        data = data.assign({v: data[v] * np.exp(0.02 * random.normal(size=POINTS)) for v in ("sharpness", "loss")})
        accuracy = run.extra["accuracy"] | {"test": curve.tolist()}
        return replace(run, extra={"accuracy": accuracy}, measured={"curvature": data})

    return [with_scatter(run) for run in runs]


# --- W17 -------------------------------------------------------------------------------------------------------------------


def test_shapes_are_those_of_the_figure():
    trapezoid, cyclic, step = (np.array(shape(name, 40)) for name in SHAPES)
    assert trapezoid[[0, 9, 10, 29, 34, 39]] == pytest.approx([0.19, 1, 1, 1, 0.505, 0.01])
    assert cyclic[[4, 9, 14, 19, 20, 29, 39]] == pytest.approx([0.55, 1, 0.505, 0.01, 0.19, 1, 0.01])
    assert step[[0, 9, 10, 19, 20, 24, 28, 32, 39]] == pytest.approx([0.5, 0.5, 0.25, 0.25, 0.05, 0.025, 0.012, 0.006, 0.006])
    for name in SHAPES:
        run = made_run(_described(SHAPED["quick"], name, "x", 0), 1408, {"test": [0.9], "sharpness": [1.0], "loss": [1.0]})
        assert shape_of(run) == name


def ends(accuracies, seeds=6, every=slice(None)):
    runs = []
    for name, value in accuracies.items():
        for s in range(seeds):
            described = _described(SHAPED["quick"], name, "x", s)
            described["phases"] = described["phases"][every]
            told = {"test": [value + WOBBLE[s] + 0.1 * WOBBLE[-1 - s]], "sharpness": [4.0], "loss": [1.0]}
            runs.append(made_run(described, 1408, told))
    return runs


def test_w17_wants_the_trapezoid_above_both():
    found = judged("W17", ends({"trapezoid": 0.86, "cyclic": 0.85, "step": 0.84}))
    assert (found.verdict, found.n, found.threshold) == ("supported", 6, 0.0)
    assert found.statistic == pytest.approx(0.01)
    assert found.details["label_noise 0"]["cyclic_minus_step"][0] == pytest.approx(0.01)
    for better in ("cyclic", "step"):
        assert judged("W17", ends({"trapezoid": 0.85, "cyclic": 0.84, "step": 0.84} | {better: 0.86})).verdict == "contradicted"
    told = {"trapezoid": 0.86, "cyclic": 0.85, "step": 0.84}
    worse = [replace(r, settings=r.settings | {"label_noise": 0.3}) for r in ends(told | {"step": 0.88})]
    both = judged("W17", ends(told) + worse)
    assert (both.verdict, both.statistic) == ("contradicted", pytest.approx(-0.02))
    assert both.details["label_noise 0"]["accuracy"]["step"] < both.details["label_noise 0.3"]["accuracy"]["step"]
    assert judged("W17", ends(told) + worse[:12]).verdict == "undecided"
    assert judged("W17", ends(told, seeds=4)).verdict == "undecided"
    assert judged("W17", [r for r in ends(told) if shape_of(r) != "step"]).verdict == "undecided"
    shorter = ends(told)[:12] + ends({"step": 0.84}, every=slice(0, 36))
    assert judged("W17", shorter).verdict == "undecided"


# --- T11 -------------------------------------------------------------------------------------------------------------------

OPTIONS = {"loss": [0.3, 0.0], "curvature": [[4.0, 3.0], [36.0, 0.5]], "apart": 1.4, "tau": 0.02}


def test_basins_have_the_gradient_of_their_soft_minimum():
    basins = Basins(**OPTIONS)
    random = torch.Generator().manual_seed(1)
    points = torch.randn(40, 2, generator=random, dtype=torch.float64)
    step = 1e-6 * torch.eye(2, dtype=torch.float64)
    numeric = torch.stack([(basins.value(points + e) - basins.value(points - e)) / 2e-6 for e in step], 1)
    assert torch.allclose(basins.gradient(points), numeric, rtol=1e-5, atol=1e-6)
    a, b = (0.3 + 2 * (0.5 + 0.7) ** 2 + 1.5 * 0.09), (18 * (0.5 - 0.7) ** 2 + 0.25 * 0.09)
    point = torch.tensor([[0.5, 0.3]], dtype=torch.float64)
    assert float(basins.value(point)) == pytest.approx(-0.02 * log(exp(-a / 0.02) + exp(-b / 0.02)))
    assert basins.sharpness() == 36


def test_odds_of_one_dimension_are_those_of_the_chain_of_oracle_4():
    oracle = Basins([0.05, 0.0], [4.0, 36.0])
    assert [exp(exact_odds(oracle, 0.25, lr)) for lr in (0.002, 0.01)] == pytest.approx([2.593, 3.82], rel=2e-3)
    assert exp(exact_odds(oracle, 0.25, 0.05)) == pytest.approx(73.9, rel=0.02)  # the ridge is narrower than an update


def test_walks_have_the_odds_that_are_exact_at_their_learning_rate(tmp_path):
    described = {"name": "a", "seed": 3, "basins": {"loss": [0.3, 0.0], "curvature": [4.0, 36.0]}, "temperature": 0.5}
    found = study_basins(described | {"lr": 0.02, "walkers": 400, "updates": 4000}, tmp_path, None).extra
    assert found["exact"] - found["gibbs"] > 0.3  # lr h = 0.72
    assert found["log_odds"] == pytest.approx(found["exact"], abs=0.12)  # about 4 standard errors
    assert abs(found["apart"]) < 3
    assert found["crossings"] > 1000
    assert found["threshold"] == pytest.approx(0.3 / log(3))
    assert study_basins(described | {"lr": 0.02}, tmp_path, None).extra == found  # read back


def chosen(*, gap=0.3, shift=0.0, entropy=1.0, lr=0.002, seeds=5, apart=0.5, crossings=500.0):
    runs, ns = [], (0.22, 0.3, 0.4, 0.55)
    for s in range(seeds):
        for n in ns:
            odds = entropy * log(3) - gap / n + shift + 2 * WOBBLE[s]
            extra = {"log_odds": odds, "gibbs": log(3) - 0.3 / n, "exact": None, "threshold": 0.3 / log(3), "apart": apart}
            settings = {"seed": s, "temperature": n, "lr": lr, "basins": {"loss": [0.3, 0.0], "curvature": [4.0, 36.0]}}
            runs.append(Evidence(settings, xr.Dataset(), {}, extra | {"crossings": crossings, "sharpness": 36.0}))
    return runs


def test_t11_asks_for_odds_level_and_slope():
    found = judged("T11", chosen())
    assert found.verdict == "supported"
    parts = found.details["parts"]
    level = np.mean([log(0.3 / (log(3) + 2 * w) / (0.3 / log(3))) for w in WOBBLE[:5]])
    assert parts["even odds at n over n* = 0.273, from below"]["mean"] == pytest.approx(exp(level))
    assert parts["slope over 1 / n"]["mean"] == pytest.approx(-0.3)
    assert parts["odds over equation 3 at n = 0.4, from above"]["mean"] == pytest.approx(exp(2 * WOBBLE[:5].mean()))
    assert judged("T11", chosen(shift=0.25)).verdict == "contradicted"  # a factor 1.28
    assert judged("T11", chosen(entropy=0.0)).verdict == "contradicted"
    assert judged("T11", chosen(gap=-0.3)).verdict == "contradicted"


def test_t11_is_silent_without_mixing_and_beyond_small_learning_rates():
    for few in ({"seeds": 4}, {"apart": 4.0}, {"crossings": 20.0}):
        assert judged("T11", chosen(**few)).verdict == "undecided"
    assert judged("T11", chosen(lr=0.01)).verdict == "not in regime"  # lr h = 0.36
    both = judged("T11", chosen() + chosen(lr=0.01, shift=1.0))  # told, not judged
    assert both.verdict == "supported"
    assert both.details["odds"]["gap 0.3, lr 0.01, n 0.4"]["odds"] == pytest.approx(
        np.exp(np.mean([log(3) - 0.75 + 1 + 2 * w for w in WOBBLE[:5]]))
    )


# --- T12 -------------------------------------------------------------------------------------------------------------------


def test_a_bowl_has_the_noise_of_its_hessian():
    bowl = Bowl([3.0, 0.5, 0.1], examples=40, seed=5)
    hessian, noise = bowl.matrices()
    assert noise == pytest.approx(hessian, abs=1e-12)
    draws = bowl.minibatch(torch.ones(20000, 3, dtype=torch.float64), 5, torch.Generator().manual_seed(0))
    assert np.diag(np.cov(draws.numpy().T)) * 5 == pytest.approx([3.0, 0.5, 0.1], rel=0.05)  # 5 standard errors


def test_walks_around_a_bowl_have_the_exact_excess(tmp_path):
    described = {"name": "a", "seed": 1, "minimum": {"kind": "bowl", "curvature": [4.0, 1.0, 0.3]}, "grid": [[0.3, 2]]}
    told = study_minimum(described | {"walkers": 100}, tmp_path, None).extra
    found = told | told["walks"][0]
    expected = sum(0.3 * c / (2 * 2 * (2 - 0.3 * c)) for c in (4.0, 1.0, 0.3))  # 1/2 sum lr c / (S (2 - lr lambda)), c = lambda
    assert found["exact"] == pytest.approx(expected)
    assert found["excess"] == pytest.approx(expected, rel=0.06)
    assert (found["trace_h"], found["trace_c"]) == pytest.approx((5.3, 5.3))
    assert abs(found["excess"] / (0.3 / 8 * 5.3) - 1) > 0.5  # the limit of small learning rates is far off


def test_a_networks_minimum_has_the_hessian_and_covariance_of_logistic_regression():
    minimum = {"kind": "network", "data": {"dataset": "noisy_linear", "train": 200}, "model": {"name": "logistic"}, "decay": 0.1}
    potential, hessian, noise = minimum_of({"seed": 0, "minimum": minimum | {"settle": {"updates": 300, "lr": 0.5}}})
    assert isinstance(potential, escapes.Network)
    theta = potential.start()
    assert float(potential.gradient(theta[None]).norm()) < 1e-6
    weights = potential.layout.unpack(theta)
    w = np.c_[weights["model.1.weight"].numpy(), weights["model.1.bias"].numpy()] if "model.1.weight" in weights else None
    if w is None:
        names = sorted(weights)
        w = np.c_[weights[names[1]].numpy(), weights[names[0]].numpy()]
    x = np.c_[potential.x.numpy(), np.ones(200)]
    p = np.exp(x @ w.T) / np.exp(x @ w.T).sum(1, keepdims=True)
    y = np.eye(2)[potential.y.numpy()]
    trace_h = sum((p[:, k] * (1 - p[:, k]) * (x**2).sum(1)).mean() for k in range(2)) + 0.1 * w.size
    pulls = ((p - y)[:, :, None] * x[:, None, :]).reshape(200, -1)
    assert np.trace(hessian) == pytest.approx(trace_h)
    assert np.trace(noise) == pytest.approx(((pulls - pulls.mean(0)) ** 2).sum(1).mean())


def settled(*, power=1.0, trace_c=3.0, factor=1.0, sharp=1.0, seeds=5, kind="bowl"):
    runs = []
    for s in range(seeds):
        walks = []
        for lr, batch in ((0.1, 4), (0.2, 4), (0.1, 16), (0.2, 16)):
            excess = factor * 0.75 * (lr / batch) ** power * np.exp(2 * WOBBLE[s])
            walks.append({"lr": lr, "batch_size": batch, "excess": excess, "exact": 0.75 * lr / batch})
        extra = {"trace_h": 3.0, "trace_c": trace_c, "sharpness": sharp, "slope_at_minimum": 0.0, "walks": walks}
        runs.append(Evidence({"seed": s, "minimum": {"kind": kind}}, xr.Dataset(), {}, extra))
    return runs


def test_t12_asks_for_the_power_and_for_the_trace_of_the_hessian():
    found = judged("T12", settled(factor=1.1, trace_c=6.0))
    assert found.verdict == "supported"
    mean = exp(2 * WOBBLE[:5].mean())
    told = found.details["bowl with C = H"]
    assert told["over_trace_h"][0] == pytest.approx(1.1 * mean)
    assert told["over_trace_c"][0] == pytest.approx(0.55 * mean)
    assert told["trace_ratio"] == pytest.approx(2)
    assert judged("T12", settled(factor=1.3)).verdict == "contradicted"
    assert judged("T12", settled(factor=0.75)).verdict == "contradicted"
    assert judged("T12", settled(power=1.2, factor=(0.035) ** -0.2)).verdict == "contradicted"
    assert judged("T12", settled(seeds=4)).verdict == "undecided"
    assert judged("T12", settled(sharp=3.0)).verdict == "not in regime"  # lr lambda_1 = 0.3 and more
    half = judged("T12", settled(sharp=2.0))  # lr = 0.2 is out: two ratios are left
    assert half.verdict == "undecided"
