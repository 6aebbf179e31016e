"""The claims N1-N5 on evidence made by hand, and what they rest on: equal losses, partial ranks, units, arms."""

from dataclasses import replace

import numpy as np
import pytest
import xarray as xr
from scipy.stats import t as student

from sgdscope.claims.smoothing import arm, drops
from sgdscope.contracts import claims
from sgdscope.errors import Outcome
from sgdscope.evidence import known, units
from sgdscope.evidence.matched import WHOLE, at_levels, common_losses, matched, with_noise
from sgdscope.evidence.partial import partial, pooled
from sgdscope.evidence.sharpness import made, path
from sgdscope.experiment import Experiment

LRS, BATCHES, SEEDS = (0.1, 0.2, 0.4), (2, 8, 32), (3, 5, 8)


def judged(name, runs):
    return claims[name].judge(list(runs))


def descent(lr):
    """Losses from 2.3 down, farther for a larger lr, at updates 0, 10, ..."""
    return 2.3 - (0.6 + lr) * (1 - 0.7 ** np.arange(12))


def run(lr, batch, seed, factor, losses=None, **columns):
    """A run whose lambda_1 is factor x exp(3 - loss), its log straight in the loss, so that it is known between points too."""
    losses = descent(lr) if losses is None else losses
    top = factor * np.exp(3 - losses)
    found = made(
        {"lr": lr, "batch_size": batch, "seed": seed}, range(0, 10 * len(losses), 10), np.stack([top, top / 3], 1), losses
    )
    data = found.measured["curvature"].assign({name: ("step", v * np.exp(3 - losses)) for name, v in columns.items()})
    return replace(found, measured={"curvature": data})


def grid(lr_power=-0.3, batch_power=0.2, seeds=SEEDS, **columns):
    """columns: name -> (power of lr, power of the batch size)."""
    wobble = {3: 1.0, 5: 1.01, 8: 0.99}
    return [
        run(lr, b, s, wobble[s] * lr**lr_power * b**batch_power, **{n: wobble[s] * lr**p * b**q for n, (p, q) in columns.items()})
        for lr in LRS for b in BATCHES for s in seeds
    ]  # fmt: skip


# --- equal training loss ------------------------------------------------------------------------------------------------


def test_common_losses_reach_from_the_highest_end_to_the_lowest_start():
    a, b = run(0.1, 2, 0, 1.0, np.linspace(2.3, 1.1, 10)), run(0.2, 2, 0, 1.0, np.linspace(2.2, 0.7, 10))
    paths = [path(r) for r in (a, b)]
    assert common_losses(paths, (0.0, 0.5, 1.0)) == pytest.approx([1.1, 1.65, 2.2])
    low = [replace(p, losses=p.losses - 1.09) for p in paths]  # the losses end at 0.01 and below
    assert common_losses(low, (0.0,)) == pytest.approx([0.05 * 2.3])  # `initial` is still that of the scalars
    near = path(run(0.1, 2, 0, 1.0, np.linspace(2.3, 2.3 - 0.22, 10)))
    assert common_losses([near, paths[0]], WHOLE) is None  # 0.22 < 10 % of 2.3
    assert common_losses([path(run(0.1, 2, 0, 1.0, np.linspace(2.3, 2.06, 10)))], WHOLE) is not None


def test_at_levels_is_the_geometric_mean_at_the_levels():
    found = path(run(0.1, 2, 0, 1.7, np.linspace(2.3, 1.1, 10)))
    assert at_levels(found, np.array([1.9, 1.3])) == pytest.approx(1.7 * np.exp((1.1 + 1.7) / 2), rel=1e-12)
    assert np.isnan(at_levels(found, np.array([1.9, 1.0])))  # never reached
    assert np.isnan(at_levels(replace(found, values=found.values - 9), np.array([1.9])))  # negative


def test_powers_are_those_at_equal_loss():
    found = with_noise("N1", grid(), {"sharpness": -1.0})
    assert found.verdict == "supported"
    assert found.statistic == pytest.approx(0.2, rel=1e-9)  # the smaller of 0.3 and 0.2
    told = found.details["powers"]["sharpness"]
    assert told["lr"][0] == pytest.approx(-0.3, rel=1e-9)
    assert told["inverse_batch"][0] == pytest.approx(-0.2, rel=1e-9)
    at_end = found.details["at_equal_updates"]["sharpness"]["lr"][0]
    tops = [np.exp(3 - descent(lr)[-1]) for lr in LRS]
    assert at_end == pytest.approx(-0.3 + np.polyfit(np.log(LRS), np.log(tops), 1)[0], rel=1e-9)
    assert abs(at_end + 0.3) > 0.1  # the neighbouring statistic differs
    assert [level["lr"][0] for level in found.details["levels"]] == pytest.approx([-0.3] * 5, rel=1e-9)
    assert found.n == 3


@pytest.mark.parametrize(
    ("powers", "answer"),
    [((-0.3, 0.2), "supported"), ((0.3, 0.2), "contradicted"), ((-0.3, -0.2), "contradicted"), ((-0.3, 0.0), "undecided")],
)
def test_n1_needs_both_trends(powers, answer):
    runs = grid(*powers)
    if powers[1] == 0:  # a scatter over the seeds, about 0
        for r in runs:
            sign = {3: 1, 5: -1, 8: 0.1}[r.settings["seed"]]
            for name in ("sharpness", "eigenvalue"):
                r.measured["curvature"][name].values[:] *= r.settings["batch_size"] ** (0.05 * sign)
    assert judged("N1", runs).verdict == answer


def test_n1_without_a_run_of_a_seed_or_with_one_that_did_not_converge_is_undecided():
    assert judged("N1", grid()[1:]).verdict == "undecided"
    runs = grid()
    data = runs[4].measured["curvature"]
    runs[4] = replace(
        runs[4], measured={"curvature": data.assign(sharpness_outcome=("step", np.full(12, int(Outcome.not_converged))))}
    )
    found = judged("N1", runs)
    assert found.verdict == "undecided"
    assert "converged" in found.reason
    four = [run(lr, b, 9, lr**-0.3 * b**0.2) for lr in LRS for b in BATCHES]
    assert judged("N1", [*runs, *four]).verdict == "supported"  # three whole seeds are left


def test_n1_where_the_runs_share_no_loss():
    still = [run(r.settings["lr"], r.settings["batch_size"], r.settings["seed"], 1.0, 2.3 - 0.01 * np.arange(12)) for r in grid()]
    assert judged("N1", still).verdict == "not in regime"


def test_full_batches_are_left_out_of_the_grid():
    full = [run(lr, "full", s, 100.0 * lr) for lr in LRS for s in SEEDS]
    assert judged("N1", [*grid(), *full]).statistic == pytest.approx(0.2, rel=1e-9)
    assert len(matched([*grid(), *full], ["sharpness"]).grid) == 27


@pytest.mark.parametrize("wrong", ["conditioning", "outlier_ratio", "effective_rank"])
def test_n2_needs_each_measure(wrong):
    right = {"conditioning": (-0.4, 0.3), "outlier_ratio": (-0.25, 0.2), "effective_rank": (0.3, -0.5)}
    runs = [replace(r) for r in grid(**right)]
    for r in runs:  # N2 takes its paths from `conditioning`, at the same points
        assert "effective_rank" in r.measured["curvature"]
    found = judged("N2", runs)
    assert found.verdict == "supported"
    assert found.statistic == pytest.approx(0.2, rel=1e-9)
    assert found.details["powers"]["effective_rank"]["lr"][0] == pytest.approx(0.3, rel=1e-9)
    turned = right | {wrong: tuple(-p for p in right[wrong])}
    assert judged("N2", grid(**turned)).verdict == "contradicted"


# --- partial ranks --------------------------------------------------------------------------------------------------------


def test_partial_equals_the_recursion_on_ranks():
    random = np.random.default_rng(4)
    z = random.standard_normal(30)
    x, y = np.exp(z + random.standard_normal(30)), (z + 0.7 * random.standard_normal(30)) ** 3
    ranks = [np.argsort(np.argsort(v)) for v in (x, y, z)]
    r = np.corrcoef(ranks)
    expected = (r[0, 1] - r[0, 2] * r[1, 2]) / np.sqrt((1 - r[0, 2] ** 2) * (1 - r[1, 2] ** 2))
    assert partial(x, y, z) == pytest.approx(expected, rel=1e-12)
    assert partial(x, y) == pytest.approx(r[0, 1], rel=1e-12)
    assert abs(partial(x, y) - partial(x, y, z)) > 0.1
    assert partial(np.log(x), y, -z) == pytest.approx(expected, rel=1e-9)  # of ranks alone
    assert np.isnan(partial(x, y, x))
    assert np.isnan(partial(x, 0 * x, z))
    assert np.isnan(partial(x[:4], y[:4], z[:4]))
    assert np.isfinite(partial([1, 2, 3, 4, 5], [2, 1, 3, 5, 4], [3, 5, 1, 2, 4]))


def test_pooled_goes_through_fishers_z():
    r = [0.2, -0.1, 0.6]
    z = np.arctanh(r)
    half = student.ppf(0.975, 2) * z.std(ddof=1) / 3**0.5
    mean, interval = pooled(r)
    assert mean == pytest.approx(np.tanh(z.mean()))
    assert interval == pytest.approx([np.tanh(z.mean() - half), np.tanh(z.mean() + half)])
    assert np.isfinite(pooled([1.0, 0.9])[0])
    assert pooled([0.3])[1] == (-np.inf, np.inf)


# --- units ------------------------------------------------------------------------------------------------------------


def seen(sharp, random, seed=0, n=9, losses=None, other=7.0):
    """A run with these changes of saturation at j = -1, and `other` at j = 1 and 2."""
    columns = {"loss": np.linspace(2.3, 1.0, n) if losses is None else losses, "eigenvalue": np.full(n, 2.0)}
    columns |= {name: np.full(n, 0.4) for name in ("saturation", "softmax_saturation", "slope_square")}
    changes = {"sharp": {-1.0: np.full(n, sharp), 1.0: np.full(n, other), 2.0: np.full(n, other)}}
    changes["random"] = {-1.0: np.full(n, random), 1.0: np.full(n, -other), 2.0: np.full(n, -other)}
    return units.made({"lr": 0.1, "batch_size": 8, "seed": seed}, columns, changes)


WOBBLE = (0.0, 1e-4, -1e-4, 2e-4, -2e-4)


@pytest.mark.parametrize(
    ("sharp", "random", "answer"),
    [(3e-3, 1e-3, "supported"), (1e-3, 3e-3, "contradicted"), (-1e-3, -3e-3, "contradicted"), (3e-3, 3e-3, "undecided")],
)
def test_n3_needs_a_rise_and_an_excess(sharp, random, answer):
    found = judged("N3", [seen(sharp + w, random, s) for s, w in enumerate(WOBBLE)])
    assert found.verdict == answer
    assert found.statistic == pytest.approx(min(sharp, sharp - random), abs=1e-9)
    assert found.details["excess"][0] == pytest.approx(sharp - random, abs=1e-12)
    assert found.details["sharp"]["1"] == pytest.approx(7.0)


def test_n3_interval_is_students_over_seeds():
    found = judged("N3", [seen(3e-3 + w, 2e-3, s) for s, w in enumerate(WOBBLE)])
    half = student.ppf(0.975, 4) * np.std(WOBBLE, ddof=1) / 5**0.5
    assert found.interval == pytest.approx([1e-3 - half, 1e-3 + half])
    assert judged("N3", [seen(3e-3 + w, 1e-3, s) for s, w in enumerate(WOBBLE[:4])]).verdict == "undecided"


def test_n3_leaves_out_vanished_losses_and_directions_that_did_not_converge():
    runs = [seen(3e-3 + w, 1e-3, s, losses=np.r_[np.linspace(2.3, 1, 6), np.full(3, 0.1)]) for s, w in enumerate(WOBBLE)]
    for r in runs:
        r.measured["neurons"]["saturation_change"].values[6:] = -5.0  # after the loss fell below 5 % of 2.3
    assert judged("N3", runs).verdict == "supported"
    gone = [replace(r, steps=r.steps.assign(loss=r.steps["loss"] * 0 + 60.0)) for r in runs]
    assert judged("N3", gone).verdict == "not in regime"
    data = runs[2].measured["neurons"]
    bad = data["saturation_change"].copy(data=np.full(data["saturation_change"].shape, int(Outcome.not_converged)))
    runs[2] = replace(runs[2], measured={"neurons": data.assign(saturation_change_outcome=bad)})
    assert judged("N3", runs).verdict == "undecided"


def carried(seed, by_units, by_softmax, n=300, together=0.0):
    """log lambda_1 moves with the saturation of units and softmax, and with the loss; the two may go together."""
    random = np.random.default_rng(seed)
    rises, sure, falls = 0.01 * random.standard_normal((3, n))
    rises += together * sure
    logs = 10 * (by_units * rises + by_softmax * sure) + 3 * falls + 0.1 * random.standard_normal(n)
    columns = {"loss": 2.0 + np.cumsum(falls), "saturation": 0.5 + np.cumsum(rises), "slope_square": 0.5 - np.cumsum(rises)}
    columns |= {"softmax_saturation": 0.3 + np.cumsum(sure), "eigenvalue": np.exp(np.cumsum(logs))}
    return units.made({"lr": 0.1, "batch_size": 8, "seed": seed}, columns | {"gauss_newton_top": 0.8 * columns["eigenvalue"]}, {})


@pytest.mark.parametrize(
    ("by", "answer"),
    [((-1, 0), "supported"), ((-1, -1), "supported"), ((1, 0), "contradicted"), ((0, -1), "contradicted"), ((0, 0), "undecided")],
)
def test_n4_tells_units_from_softmax(by, answer):
    runs = [carried(s, *by) for s in range(5)]
    found = judged("N4", runs)
    assert found.verdict == answer, found.reason
    first = units.increments(runs[0])
    assert len(first.loss) == 299
    assert first.outer == pytest.approx(0.8)
    own = [partial(d.sharpness, d.units, d.loss) for d in map(units.increments, runs)]
    assert found.details["units"][0] == pytest.approx(pooled(own)[0])
    assert found.details["squared_slope"][0] == pytest.approx(-found.details["units"][0])
    if answer == "supported":
        assert found.statistic < -0.3
        assert judged("N4", runs[:4]).verdict == "undecided"


def test_n4_fails_where_units_only_go_along_with_the_softmax():
    found = judged("N4", [carried(s, 0, -1, together=1.0) for s in range(5)])
    assert found.details["units"][2] < -0.2  # the whole interval: by themselves the units seem to carry it
    assert found.verdict == "contradicted"
    assert found.statistic == pytest.approx(found.details["units_beyond_softmax"][0])


# --- arms ---------------------------------------------------------------------------------------------------------------

NOISE = {"white": {"variant": "white"}, "projected": {"variant": "nudge"}}


def arms(relu=0.5, identity=0.1, white=0.2, projected=0.05, leaky=0.4, seeds=range(5), without=()):
    """lambda_1 at equal loss is that of full-batch descent times exp(-drop); each arm descends at its own speed."""
    wobble = (0.0, 0.02, -0.02, 0.01, -0.01)
    found = []
    for s in seeds:
        for n, (name, drop) in enumerate(
            {
                "relu-full": 0.0,
                "identity-full": 0.0,
                "leaky_relu-full": 0.0,
                "relu": relu + wobble[s],
                "identity": identity,
            }.items()
        ):
            found.append((s, name, drop, n))
        found += [(s, "leaky_relu", leaky, 5), (s, "white", white, 6), (s, "projected", projected, 7)]
    runs = []
    for s, name, drop, n in found:
        if name in without:
            continue
        one = run(
            0.1, "full" if name.endswith("-full") else 16, s, np.exp(-drop), 2.3 - (1.2 + 0.05 * n) * (1 - 0.6 ** np.arange(12))
        )
        phase = {"walker": "nudged", "where": "noise"} | NOISE[name] if name in NOISE else {"walker": "sgd"}
        activation = {} if name in NOISE or name.startswith("relu") else {"activation": name.removesuffix("-full")}
        told = {"model": {"name": "mlp"} | activation, "phases": [phase]}
        runs.append(replace(one, settings=dict(one.settings) | {"experiment": told}))
    return runs


def test_drops_are_log_ratios_at_equal_loss():
    found = drops([path(r) for r in arms(seeds=[0])])
    assert found == pytest.approx({"relu": 0.5, "identity": 0.1, "white": 0.2, "projected": 0.05, "leaky_relu": 0.4}, abs=1e-9)
    assert "relu" not in drops([path(r) for r in arms(seeds=[0], without={"relu-full"})])


def test_n5_takes_the_least_difference():
    found = judged("N5", arms())
    assert (found.verdict, found.n) == ("supported", 5)
    assert found.statistic == pytest.approx(0.5 - 0.2, abs=1e-9)
    assert found.details["log_drops"]["leaky_relu"] == pytest.approx(0.4, abs=1e-9)
    assert "10% of the drop is left" in found.reason  # 0.05 of 0.5
    assert found.details["differences"]["projected"][0] == pytest.approx(0.45, abs=1e-9)


@pytest.mark.parametrize(
    ("changed", "answer"),
    [({"identity": 0.8}, "contradicted"), ({"white": 0.8}, "contradicted"), ({"projected": 0.8}, "contradicted"),
     ({"projected": 0.5}, "undecided"), ({"leaky": 0.8}, "supported"), ({"relu": -0.3}, "not in regime"),
     ({"relu": 0.0}, "undecided"),
     ({"without": {"identity"}}, "undecided"), ({"without": {"white"}}, "undecided"), ({"without": {"leaky_relu"}}, "supported")],
)  # fmt: skip
def test_n5_needs_all_three_arms(changed, answer):
    assert judged("N5", arms(**changed)).verdict == answer


@pytest.mark.parametrize("preset", ["quick", "standard", "paper"])
def test_n5_describes_each_arm_of_each_seed_once(preset):
    told = [Experiment(**d).described() for d in claims["N5"].experiments[preset](2)]
    settings = [{"experiment": d, "batch_size": d["phases"][0]["batch_size"], "seed": d["seed"]} for d in told]
    found = [(s["seed"], arm(replace(known.grid(0, seeds=1)[0], settings=s, steps=xr.Dataset()))) for s in settings]
    names = {"relu", "identity", "leaky_relu", "relu-full", "identity-full", "leaky_relu-full", "white", "projected"}
    assert {name for _, name in found} == names
    assert len(found) == len(set(found)) == 40
    assert all(d["phases"][0]["weight_decay"] == 0 and d["model"]["name"] == "mlp" for d in told)


def test_the_papers_grid_has_each_setting_once():
    told = claims["N1"].experiments["paper"](2)
    settings = {(d["phases"][0]["lr"], d["phases"][0]["batch_size"], d["seed"]) for d in told}
    assert len(settings) == len(told) == 45
    assert {d["phases"][0]["updates"] * d["phases"][0]["batch_size"] // 45000 for d in told} == {195, 199}  # whole batches alone
    assert {(d["model"]["name"], d["phases"][0]["weight_decay"], d["phases"][0]["momentum"]) for d in told} == {
        ("simplecnn", 0, 0)
    }
    for preset in ("quick", "standard"):
        assert claims["N1"].experiments[preset](2) == claims["W12"].experiments[preset](2)
