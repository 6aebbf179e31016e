"""The judges of X5-X11 and X13 on waiting times made by hand, and the studies that run the experiments."""

import json
from math import exp, log

import numpy as np
import pytest
import torch
import xarray as xr

from sgdscope.contracts import Evidence, claims
from sgdscope.evidence import waiting, waiting_runs
from sgdscope.evidence.waiting_odds import odds, study_occupation

ESCAPED = 400


def made(settings, log_tau, *, seeds=5, scatter=0.0, sharp=2.0, escaped=ESCAPED, **told):
    """Evidence whose log tau is exact, but for a scatter that alternates between seeds."""
    return [
        Evidence(
            dict(setting) | {"seed": s},
            xr.Dataset(),
            {},
            {"tau": exp(log_tau(setting) + scatter * (-1) ** s), "escapes": escaped, "diverged": 0, "exponential_p": 0.5}
            | {"sharpness": sharp * setting["k"]}
            | told,
        )
        for s in range(seeds)
        for setting in settings
    ]


def wells(name):
    return [s for s in getattr(waiting_runs, name) if s["potential"]["kind"] == "wells"]


def sgd(a, b=None):
    """Theorem 2 with the constant a; b in place of it where only the batch size changes."""

    def log_tau(s):
        slope = a if b is None else b
        size, lr = s["noise"]["batch_size"], s["lr"]
        return a * 1.2 / (lr * s["k"]) + slope * (size - 1.2) / (lr * s["k"]) - log(s["k"] * lr)

    return log_tau


def judged(name, runs):
    return claims[name].judge(runs)


def parts(verdict):
    return {name: told["mean"] for name, told in verdict.details["parts"].items()}


# --- exponential laws ---------------------------------------------------------------------------------------------------------


def test_slopes_are_those_that_were_written_down():
    x5 = judged("X5", made(wells("SHARPNESS"), sgd(0.3)))
    assert parts(x5) == pytest.approx({"wells shaped: slope over 1/k": 0.3 * 12, "wells shaped: Pearson's r": 1.0})
    x6 = judged("X6", made(wells("BATCH"), sgd(0.3)))
    assert parts(x6) == pytest.approx({"wells shaped: slope over B": 0.3 / 0.1, "wells shaped: Pearson's r": 1.0})
    x7 = judged("X7", made([*wells("RATE"), *(s for s in wells("BATCH") if s not in wells("RATE"))], sgd(0.3)))
    assert parts(x7)["wells shaped: slope over 1/lr"] == pytest.approx(0.3 * 1.2)
    assert x7.details["wells shaped"]["A_from_lr"] == pytest.approx(0.3)
    assert x7.details["wells shaped"]["A_from_batch_size"] == pytest.approx(0.3)
    assert [v.verdict for v in (x5, x6, x7)] == ["supported"] * 3


@pytest.mark.parametrize("name", ["X5", "X6"])
def test_which_barrier_counts_is_told_beside(name):
    def additive(s):
        return 9 * s["potential"]["barrier"] + 3

    def multiplicative(s):
        return 2.5 * log(1 + s["potential"]["barrier"] / s["potential"]["offset"]) + 3

    asked = {of_loss: [s for s in waiting_runs.BARRIERS if s["noise"]["of_loss"] is of_loss] for of_loss in (False, True)}
    lifted = made(asked[False], additive, scatter=0.02) + made(asked[True], multiplicative, scatter=0.02)
    own = made(wells({"X5": "SHARPNESS", "X6": "BATCH"}[name]), sgd(0.3))
    plain, verdict = judged(name, own), judged(name, [*lifted, *own])
    assert "barrier_or_log_barrier" not in plain.details
    assert (verdict.verdict, verdict.statistic, verdict.n) == (plain.verdict, plain.statistic, plain.n)
    told = verdict.details["barrier_or_log_barrier"]
    assert [told[kind]["winner"] for kind in ("noise |H| / B", "noise 2 L |H| / B")] == ["barrier", "log barrier"]
    assert told["noise |H| / B"]["slope_over_barrier"] == pytest.approx(9, abs=1e-6)
    assert told["noise 2 L |H| / B"]["slope_over_log_barrier"] == pytest.approx(2.5, abs=1e-6)
    assert told["noise |H| / B"]["points"] == 20
    json.dumps(told)
    few = judged(name, [*lifted[:2], *made(asked[True], multiplicative, escaped=9), *own])  # too few points, too few escapes
    assert "barrier_or_log_barrier" not in few.details


def test_lifted_wells_differ_in_barrier_and_log_barrier_at_equal_curvature():
    for s in waiting_runs.BARRIERS:
        b, k, found = s["potential"]["barrier"], s["k"], waiting.potential_of(s)
        assert k * found.sharpness() == pytest.approx(2.0)
        ends = found.value(torch.tensor([[-1.0], [0.0]], dtype=torch.float64)).tolist()
        assert ends[1] - ends[0] == pytest.approx(b)
        assert min(abs(log(ends[1] / ends[0]) - q) for q in (1.0, 1.5)) < 1e-9


def test_falling_lines_contradict():
    falling = {"X5": ("SHARPNESS", lambda s: 8 - 2 / s["k"]), "X6": ("BATCH", lambda s: 9 - 2 * s["noise"]["batch_size"])}
    for name, (settings, law) in falling.items():
        assert judged(name, made(wells(settings), law)).verdict == "contradicted"


def test_a_bent_line_fails_by_its_correlation():
    bent = {1.0: 9.0, 1.15: 7.0, 1.35: 7.0, 1.6: 8.2}  # rises with 1/k on the whole, r = 0.5 or so
    verdict = judged("X5", made(wells("SHARPNESS"), lambda s: bent[s["k"]]))
    assert verdict.verdict == "contradicted"
    assert 0 < verdict.statistic < 0.95
    assert [n[-1] for n, t in verdict.details["parts"].items() if t["answer"] == "contradicted"] == ["r"]  # Pearson's


@pytest.mark.parametrize(
    ("ratio", "answer"), [(1.2, "supported"), (0.84, "supported"), (1.3, "contradicted"), (0.77, "contradicted")]
)
def test_the_constant_must_be_one_within_a_quarter(ratio, answer):
    settings = [*wells("RATE"), *(s for s in wells("BATCH") if s not in wells("RATE"))]
    verdict = judged("X7", made(settings, sgd(0.4, 0.4 * ratio)))
    assert verdict.verdict == answer
    assert parts(verdict)["wells shaped: A from B over A from 1/lr, from below"] == pytest.approx(ratio, rel=1e-6)


@pytest.mark.parametrize(
    ("factor", "answer"), [(1.24, "supported"), (1 / 1.24, "supported"), (1.26, "contradicted"), (1 / 1.26, "contradicted")]
)
def test_equal_times_at_equal_ratio(factor, answer):
    lrs = [s["lr"] for s in wells("RATIO")]
    moved = {lr: log(factor) * i / 2 for i, lr in enumerate(sorted(lrs))}
    verdict = judged("X8", made(wells("RATIO"), lambda s: 6 - log(s["lr"]) + moved[s["lr"]]))
    assert verdict.verdict == answer
    assert verdict.statistic == pytest.approx(factor)
    told = verdict.details["lr_tau"]["wells shaped"]
    assert told["lr 0.0125"] == pytest.approx(exp(6))
    assert told["lr 0.05"] == pytest.approx(factor * exp(6))


def test_a_scatter_of_the_seeds_leaves_it_open():
    settings = wells("RATIO")
    noisy = made(settings, lambda s: 6 - log(s["lr"]))
    scattered = [
        Evidence(r.settings, r.steps, {}, dict(r.extra) | {"tau": r.extra["tau"] * (3.0 if i % 5 == 0 else 1.0)})
        for i, r in enumerate(noisy)
    ]
    assert judged("X8", scattered).verdict == "undecided"


# --- white noise --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("power", "answer"), [(-0.81, "supported"), (-1.19, "supported"), (-0.79, "contradicted"), (-1.21, "contradicted")]
)
def test_power_of_k(power, answer):
    verdict = judged("X9", made(wells("WHITE_SHARPNESS"), lambda s: 5 - log(s["lr"]) + power * log(s["k"])))
    assert verdict.verdict == answer
    assert verdict.statistic == pytest.approx(power)


@pytest.mark.parametrize(
    ("slope", "answer"), [(0.25 * 0.86, "supported"), (0.25 * 0.84, "contradicted"), (0.25 * 1.16, "contradicted")]
)
def test_the_slope_is_the_barrier(slope, answer):
    verdict = judged("X10", made(wells("TEMPERATURE"), lambda s: slope / s["noise"]["diffusion"] + 3))
    assert verdict.verdict == answer
    assert parts(verdict)["wells white: slope over barrier, from below"] == pytest.approx(slope / 0.25)


def test_tang_is_held_against_its_own_barrier():
    tang = [s for s in waiting_runs.TEMPERATURE if s["potential"]["kind"] == "tang"]
    verdict = judged("X10", made(tang, lambda s: 39.36178 / s["noise"]["diffusion"] + 3))
    assert parts(verdict)["tang white: slope over barrier, from above"] == pytest.approx(1.0, abs=1e-6)


@pytest.mark.parametrize(
    ("power", "answer"), [(-0.91, "supported"), (-1.09, "supported"), (-0.89, "contradicted"), (-0.5, "contradicted")]
)
def test_rates_add(power, answer):
    verdict = judged("X13", made(waiting_runs.PARALLEL, lambda s: 9 + power * log(s["potential"]["d"])))
    assert verdict.verdict == answer
    assert verdict.details["tau_1 / tau_4"] == pytest.approx(4**-power)


# --- odds ---------------------------------------------------------------------------------------------------------------------


def divided(shaped=0.2, white=0.0, level=0.0, *, seeds=5, crossings=20.0, mixed=True):
    runs = []
    for s in range(seeds):
        for setting in waiting_runs.OCCUPATION:
            noise, lr = setting["noise"], setting["lr"]
            x = 1 / noise["diffusion"] if noise["kind"] == "white" else noise["batch_size"] / lr
            value = 0.5 * log(2) + level + white * (x - 9) if noise["kind"] == "white" else shaped * x
            told = {"log_odds": value, "stderr": 0.05, "crossings": crossings, "apart": 0.1, "mixed": mixed, "sharpness": 2.0}
            runs.append(Evidence(setting | {"seed": s}, xr.Dataset(), {}, told))
    return runs


def test_odds_by_hand():
    shaped, white, ratio = odds(divided(shaped=0.3))
    assert ratio == pytest.approx(2)
    assert shaped[0].x.tolist() == pytest.approx([6, 8, 10])
    assert shaped[2].log_odds.tolist() == pytest.approx([1.8, 2.4, 3.0])
    assert white[1].x.tolist() == pytest.approx([1 / 0.14, 1 / 0.11, 1 / 0.09])
    verdict = judged("X11", divided(shaped=0.3))
    assert verdict.verdict == "supported"
    assert parts(verdict)["SGD: slope of log odds over B / lr"] == pytest.approx(0.3)


@pytest.mark.parametrize(
    ("changes", "answer"),
    [({"shaped": -0.1}, "contradicted"), ({"level": 0.24}, "supported"), ({"level": 0.26}, "contradicted"),
     ({"white": 0.06}, "supported"), ({"white": 0.07}, "contradicted"), ({"mixed": False}, "undecided"),
     ({"seeds": 4}, "undecided"), ({"crossings": 1e5}, "not in regime")],
)  # fmt: skip
def test_each_part_of_the_odds_counts(changes, answer):
    # the range of 1 / D is 3.97: a slope of 0.063 moves the log odds by 0.25
    assert judged("X11", divided(**changes)).verdict == answer


# --- what cannot be judged ----------------------------------------------------------------------------------------------------


def test_missing_settings_and_seeds_are_undecided():
    runs = made(wells("SHARPNESS"), sgd(0.3))
    assert judged("X5", [r for r in runs if r.settings["seed"] < 3]).verdict == "supported"
    assert judged("X5", [r for r in runs if r.settings["seed"] < 2]).verdict == "undecided"
    censored = [
        r
        if r.settings["k"] < 1.6 or r.settings["seed"] > 2
        else Evidence(r.settings, r.steps, {}, dict(r.extra) | {"escapes": 9})
        for r in runs
    ]
    assert judged("X5", censored).verdict == "undecided"  # two whole seeds are left
    assert judged("X5", [r for r in runs if r.settings["k"] < 1.3]).verdict == "undecided"  # two settings
    diverged = made(wells("SHARPNESS"), sgd(0.3), diverged=1)
    assert judged("X5", diverged).verdict == "undecided"
    never = made(wells("SHARPNESS"), sgd(0.3))
    assert judged("X5", [Evidence(r.settings, r.steps, {}, dict(r.extra) | {"tau": None}) for r in never]).verdict == "undecided"


def test_walkers_that_rush_out_are_not_in_regime():
    # lr lambda_1 tau = 3: just inside and just outside
    for sharp, answer in ((3.1, "supported"), (2.9, "not in regime")):
        runs = made(wells("BATCH"), lambda s: 4 * s["noise"]["batch_size"], sharp=sharp / 0.1 / exp(4 * 0.75))
        assert judged("X6", runs).verdict == answer


def test_one_kind_that_fails_is_enough():
    runs = made(waiting_runs.RATIO, lambda s: 6 - log(s["lr"]) + (log(s["lr"]) if s["potential"]["kind"] == "tang" else 0))
    verdict = judged("X8", runs)
    assert verdict.verdict == "contradicted"
    assert verdict.statistic == pytest.approx(3.0)


# --- studies ------------------------------------------------------------------------------------------------------------------


def test_a_study_is_run_once(tmp_path):
    description = waiting_runs.described(
        "quick", 4, waiting_runs.setting(waiting_runs.WELLS, waiting_runs.white(0.2), 0.1, 1.3, walkers=40)
    )
    first = waiting.study(description, tmp_path / description["name"], None)
    assert first.extra["escapes"] == 36
    assert first.extra["sharpness"] == pytest.approx(2.6)
    again = waiting.study(description, tmp_path / description["name"], None)
    assert again.extra == first.extra
    other = waiting.study(description | {"seed": 5}, tmp_path / "other", None)
    assert other.extra["tau"] != first.extra["tau"]
    (stay,) = waiting.stays([first])
    assert (stay.kind, stay.point.k, stay.point.diffusion, stay.point.barrier) == ("wells white", 1.3, 0.2, 0.25)


def test_a_network_is_studied(tmp_path):
    network = {"kind": "network", "dataset": "breast_cancer", "clip": 5.0, "model": {"name": "logistic"}, "decay": 0.05}
    base = {"potential": network | {"settle": {"updates": 200, "lr": 0.1}}, "valley": {"kind": "box", "radius": 0.2}}
    asked = waiting_runs.setting(base, waiting_runs.minibatch(1), 0.2, 1.5, walkers=10, enough=1.0, max_updates=2000)
    found = waiting.study(asked | {"seed": 1}, tmp_path, None)
    assert found.extra["escapes"] == 10
    assert waiting.stays([found])[0].kind == "network breast_cancer logistic minibatch"


def test_an_occupation_is_studied(tmp_path):
    setting = waiting_runs.OCCUPATION[-1] | {"noise": waiting_runs.white(0.2), "updates": 1500}
    description = waiting_runs.described("quick", 0, setting)
    found = study_occupation(description, tmp_path, None)
    assert found.extra["mixed"]
    assert found.extra["log_odds"] == pytest.approx(0.5 * log(2), abs=0.2)
    assert "max_updates" not in description


def test_claims_share_runs_and_seeds_do_not_share_noise():
    names = {c: {d["name"] for d in claims[c].experiments["quick"](0)} for c in ("X5", "X6", "X7", "X10")}
    assert len(names["X5"] & names["X7"]) == 15  # the base of each potential
    barriers = {d["name"] for d in claims["X5"].experiments["quick"](0) if d.get("sweep") == "barrier"}
    assert len(barriers) == 5 * len(waiting_runs.BARRIERS)
    assert barriers < names["X6"]
    assert names["X6"] - barriers < names["X7"]
    one, two = (claims["X5"].experiments["quick"](0)[i] for i in (0, 1))
    assert waiting.generator_of(one).initial_seed() != waiting.generator_of(two).initial_seed()
    assert waiting.generator_of(one).initial_seed() == waiting.generator_of(dict(one) | {"name": "x"}).initial_seed()
    json.dumps(claims["X8"].experiments["paper"](0))
    assert np.isfinite([d["lr"] for d in claims["X7"].experiments["standard"](2)]).all()
