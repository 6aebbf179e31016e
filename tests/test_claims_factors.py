"""The judges of T1-T5, T9, T13 and W15 on evidence made by hand, and what they read, against exact numbers."""

import json
from dataclasses import replace
from itertools import pairwise
from math import exp, inf, log, sqrt

import numpy as np
import pytest
import torch
import xarray as xr
from scipy import stats

from sgdscope import landscapes
from sgdscope.claims.three_factors.grid import converged
from sgdscope.contracts import Evidence, claims
from sgdscope.evidence import breakdown, interpolation, spans
from sgdscope.evidence.endpoints import at_equal_epochs, of_epochs
from sgdscope.evidence.rescaling import rescaled
from sgdscope.evidence.sharpness import made, path
from sgdscope.experiment import Experiment

LRS, BATCHES = (0.05, 0.1, 0.2), (16, 32, 64)
WOBBLE = np.array([0.97, 1.02, 1.0, 0.99, 1.03])
SD = np.std(np.log(WOBBLE), ddof=1)


def judged(name, runs):
    return claims[name].judge(list(runs))


def walk(lr, batch, seed, *, norm=10.0, right=0.9, losses=None, examples=None, top=3.0, updates=None):
    """Ten measured points of a run that sees 576 examples."""
    steps = (np.arange(10) * (64 // batch) if updates is None else np.linspace(0, updates, 10).astype(int)).tolist()
    losses = 1.0 + 1.3 * np.exp(-np.arange(10.0)) if losses is None else losses
    extra = {} if right is None else {"accuracy": {"step": steps, "test": np.broadcast_to(right, 10).tolist()}}
    told = {"lr": lr, "batch_size": batch, "seed": seed} | ({} if examples is None else {"examples": examples})
    found = made(told, steps, np.full(10, top), losses, **extra)
    data = found.measured["curvature"].assign(frobenius=("step", np.full(10, norm)), trace=("step", np.full(10, 4 * norm)))
    return replace(found, measured={"curvature": data})


# --- T1-T3 -----------------------------------------------------------------------------------------------------------------


def grid(of, seeds=3):
    return [walk(lr, batch, s, **of(lr, batch, s)) for lr in LRS for batch in BATCHES for s in range(seeds)]


def mixed(lr, batch, s):
    """Norms that follow the power of the ratio but for one swap of the extreme settings in seed 1."""
    swapped = {(0.2, 16): 30.0, (0.05, 64): 3.0}
    norm = 10 * (lr / batch / 0.003125) ** -0.5 * (1 + 0.01 * LRS.index(lr))
    return {"norm": swapped.get((lr, batch), norm) if s == 1 else norm, "right": 0.8 + 0.01 * log(lr / batch) / log(2)}


def test_t1_is_the_mean_rank_correlation_of_the_seeds():
    runs = grid(mixed)
    found = judged("T1", runs)
    rhos = []
    for s in range(3):
        own = [(r.settings["lr"] / r.settings["batch_size"], r.measured["curvature"]["frobenius"].values[-1])
               for r in runs if r.settings["seed"] == s]  # fmt: skip
        rhos.append(stats.spearmanr(*np.array(own).T).statistic)
    assert found.statistic == pytest.approx(np.mean(rhos), rel=1e-9)
    assert rhos[1] > -0.5
    assert found.verdict == "undecided"
    assert judged("T2", runs).statistic == pytest.approx(1.0)
    assert judged("T2", runs).verdict == "supported"
    assert judged("T3", runs).verdict == "undecided"


def test_t1_t2_fail_the_other_way():
    up = grid(lambda lr, batch, s: {"norm": 10 * (lr / batch), "right": 0.5 - 0.5 * lr / batch})
    assert [judged(name, up).verdict for name in ("T1", "T2", "T3")] == ["contradicted"] * 3
    assert judged("T1", up).statistic == pytest.approx(1.0)


def test_runs_that_have_not_converged_are_left_out():
    def of(lr, batch, s):
        ratio = lr / batch
        slow = {"losses": np.linspace(2.3, 1.0, 10), "norm": 1e-3} if (lr, batch) in {(0.05, 64), (0.05, 32)} else {}
        return {"norm": 1 / ratio} | slow

    found = judged("T1", grid(of))
    assert found.verdict == "supported"  # with them the two lowest ratios would have the least norms
    assert found.statistic == pytest.approx(-1.0)
    assert found.details["converged"] == 21
    straight = judged("T1", grid(lambda *at: {"losses": np.linspace(2.3, 1.0, 10)}))
    assert straight.verdict == "undecided"


def test_a_tenth_of_the_fall_may_lie_in_the_last_quarter():
    def last(share):
        return converged(path(walk(0.1, 16, 0, losses=np.array([2.3, *[1.3 + share] * 8, 1.3]))))

    assert last(0.09)
    assert not last(0.12)
    assert not converged(path(walk(0.1, 16, 0, losses=np.full(10, 2.3))))


def test_vanished_losses_are_out_of_regime_and_few_seeds_undecided():
    gone = grid(lambda *at: {"losses": 0.01 + 2.3 * np.exp(-np.arange(10.0))})
    assert judged("T1", gone).verdict == "not in regime"
    assert judged("T1", grid(mixed, seeds=2)).verdict == "undecided"
    assert judged("T2", grid(lambda *at: {"right": None})).verdict == "not in regime"


# --- T4, T5: the study -----------------------------------------------------------------------------------------------------

TINY = {"data": {"dataset": "wine"}, "model": {"name": "mlp", "hidden": [6]}, "loss": "cross_entropy"}


def tiny(seed, lr, batch, updates):
    phases = [{"walker": "sgd", "lr": lr, "batch_size": batch, "updates": updates}]
    snapshots = {"kind": "bursts", "length": 1, "at": sorted({0, updates // 2, updates - 1})}
    record = {"snapshots": snapshots, "mode": "snapshots"}
    return TINY | {"name": f"tiny-{lr}-{batch}", "seed": seed, "phases": phases, "record": record}


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    arms = {"a": tiny(3, 0.2, 16, 40), "b": tiny(3, 0.02, 16, 40)}
    told = {"name": "lines", "seed": 3, "arms": arms, "pairs": [["a", "b"]], "stop": "last"}
    return folder, told, interpolation.study(told, folder, None)


def test_the_study_is_the_line_between_the_last_points(studied):
    from sgdscope.experiment import surface_of
    from sgdscope.runs import open_trajectory

    folder, told, found = studied
    surface = surface_of(Experiment(**told["arms"]["a"]))
    a, b = (open_trajectory(folder / name).theta(40).double() for name in "ab")
    line, arms = found.extra["slices"]["a|b"], found.extra["arms"]
    for alpha in (-1.0, 0.0, 0.3, 2.0):
        expected = surface.value((1 - alpha) * a + alpha * b)
        assert line["loss"][line["alpha"].index(alpha)] == pytest.approx(expected, rel=1e-5)
    assert line["distance"] == pytest.approx(float((a - b).norm()), rel=1e-6)
    assert arms["a"]["loss"] == pytest.approx(surface.value(a), rel=1e-6)
    assert arms["b"]["initial"] == pytest.approx(surface.value(surface.theta()), rel=1e-6)
    unit = (b - a) / (b - a).norm()
    exact = float(unit @ surface.hvp(a, unit).double())
    assert abs(line["curvature"][0] - exact) <= line["bound"][0] + 0.05 * abs(exact)
    h = torch.stack([surface.hvp(b, e) for e in torch.eye(len(b), dtype=torch.float64)])
    assert arms["b"]["trace"] == pytest.approx(float(h.trace()), abs=4 * arms["b"]["trace_stderr"] + 1e-4)
    assert arms["b"]["sharpness"] == pytest.approx(float(torch.linalg.eigvalsh(h.double())[-1]), rel=1e-2)
    assert (arms["a"]["lr"], arms["a"]["batch_size"], arms["a"]["step"]) == (0.2, 16, 40)
    json.dumps(found.extra)


def test_the_study_is_read_back_and_stops_at_the_best(studied, tmp_path):
    folder, told, found = studied
    assert interpolation.study(told, folder, None).extra == found.extra
    best = interpolation.study(told | {"stop": "best"}, tmp_path, None).extra["arms"]
    for name in ("a", "b"):
        assert best[name]["accuracy"] >= found.extra["arms"][name]["accuracy"]
        assert best[name]["step"] <= 40


def test_slices_are_read_in_either_order():
    def extra(curvature, bound):
        return {"slices": {"a|b": {"curvature": curvature, "bound": bound}}}

    assert interpolation.bent(extra([2.0, 5.0], [0.1, 0.1]), "a", "b") == pytest.approx(log(2.5))
    assert interpolation.bent(extra([2.0, 5.0], [0.1, 0.1]), "b", "a") == pytest.approx(-log(2.5))
    assert np.isnan(interpolation.bent(extra([2.0, 5.0], [2.1, 0.1]), "a", "b"))
    assert np.isnan(interpolation.bent(extra([-2.0, 5.0], [0.1, 0.1]), "a", "b"))


def lines(arms, pairs, seeds=5, wobble=WOBBLE, loss=0.8):
    """Studies without scatter: `arms` name -> (lr, batch, curvature, loss factor)."""
    runs = []
    for s in range(seeds):
        told = {
            name: {"lr": lr, "batch_size": b, "sharpness": 2 * c, "trace": 9 * c * wobble[s]}
            | {"loss": loss * f * wobble[s], "initial": 2.3}
            for name, (lr, b, c, f) in arms.items()
        }
        slices = {
            f"{a}|{b}": {
                "curvature": [arms[a][2] * wobble[s], arms[b][2]],
                "bound": [0.01, 0.01],
                "barrier": 0.1,
                "distance": 2.0,
            }
            for a, b in pairs
        }
        runs.append(Evidence({"seed": s}, xr.Dataset(), {}, {"arms": told, "slices": slices}))
    return runs


def noises(batch=3.0, rate=2.5, **told):
    arms = {"high": (0.3, 32, 2.0, 1.0), "large batch": (0.3, 256, 2.0 * batch, 1.0), "small lr": (0.03, 32, 2.0 * rate, 1.0)}
    return lines(arms, [("high", "large batch"), ("high", "small lr"), ("large batch", "small lr")], **told)


def test_t4_is_three_ratios():
    found = judged("T4", noises())
    assert found.verdict == "supported"
    shift = exp(-np.mean(np.log(WOBBLE)))
    parts = {text: told["mean"] for text, told in found.details["parts"].items()}
    assert parts["curvature at large batch over that at high"] == pytest.approx(3.0 * shift)
    assert parts["curvature at small lr over that at high"] == pytest.approx(2.5 * shift)
    assert parts["curvature at small lr over that at large batch, from below"] == pytest.approx(2.5 / 3 * shift)
    assert found.n == 5


@pytest.mark.parametrize(("change", "verdict"), [
    ({"batch": 0.8}, "contradicted"), ({"rate": 0.8}, "contradicted"), ({"batch": 3.0, "rate": 1.8}, "contradicted"),
    ({"batch": 3.0, "rate": 2.15}, "supported"), ({"batch": 2.0, "rate": 3.2}, "contradicted"),
    ({"batch": 2.0, "rate": 2.8}, "supported"),
    ({"seeds": 4}, "undecided"), ({"batch": 1.001}, "contradicted"), ({"loss": 0.1}, "not in regime"),
])  # fmt: skip
def test_t4_fails_where_a_ratio_does(change, verdict):
    assert judged("T4", noises(**change)).verdict == verdict


def test_t4_counts_no_slice_that_is_not_resolved():
    runs = noises()
    runs[0].extra["slices"]["high|small lr"]["bound"] = [9.0, 9.0]
    assert judged("T4", runs).verdict == "undecided"


def scales(four=1.0, loss=1.0, alone=2.0, **told):
    arms = {"quarter": (0.0125, 4, 2.0, 1.0), "one": (0.05, 16, 2.0, 1.0)}
    arms |= {"four": (0.2, 64, 2.0 * four, loss), "alone": (0.2, 16, 2.0 * alone, 1.0)}
    return lines(arms, [("quarter", "one"), ("quarter", "four"), ("one", "four")], **told)


def test_t5_is_in_units_of_two_deviations_of_the_seeds():
    found = judged("T5", scales(four=1.02, loss=0.99))
    assert found.verdict == "supported"
    parts = {text: told["mean"] for text, told in found.details["parts"].items()}
    assert parts["trace, four against one, from above"] == pytest.approx(log(1.02) / (2 * SD))
    assert parts["loss, four against quarter, from below"] == pytest.approx(log(0.99) / (2 * SD))


@pytest.mark.parametrize(("change", "verdict"), [
    ({"four": exp(1.01 * 2 * SD)}, "contradicted"), ({"four": exp(0.99 * 2 * SD)}, "supported"),
    ({"loss": exp(-1.01 * 2 * SD)}, "contradicted"), ({"loss": exp(-0.99 * 2 * SD)}, "supported"),
    ({"alone": 1.0}, "undecided"), ({"seeds": 4}, "undecided"), ({"loss": 0.1}, "not in regime"),
])  # fmt: skip
def test_t5_holds_within_a_margin_where_lr_alone_differs(change, verdict):
    assert judged("T5", scales(**change)).verdict == verdict


def test_t5_applies_below_the_edge():
    def at(c):
        runs = scales()
        for run in runs:
            run.extra["arms"]["one"]["sharpness"] = c
        return judged("T5", runs).verdict

    assert at(9.9) == "supported"
    assert at(10.1) == "not in regime"  # 0.2 x 10.1 > 2


# --- T9 --------------------------------------------------------------------------------------------------------------------


def test_breaking_is_on_a_straight_line_in_log_beta():
    curve = {1: 0.9, 2: 0.9, 4: 0.86, 8: 0.8}
    assert breakdown.breaking(curve, 0.88) == pytest.approx(2 * sqrt(2))
    assert breakdown.breaking(curve, 0.81) == pytest.approx(4 * 2 ** (5 / 6))
    assert breakdown.breaking(curve, 0.7) == inf
    assert breakdown.breaking(curve, 0.95) == 1
    assert breakdown.breaking({1: 0.9, 2: 0.8, 4: 0.95}, 0.85) == pytest.approx(sqrt(2))


BASE = 0.85 + 0.01 * np.array([-1, 0, 1, 0, 0])
LEVEL = 0.85 - 2 * np.std(BASE, ddof=1)


def ladder(stars, seeds=5, betas=(1, 2, 4, 8, 16, 32)):
    """Runs whose accuracy falls through the level exactly at a factor: N -> seed -> beta*."""
    runs = []
    for n, star in stars.items():
        for s in range(seeds):
            for beta in betas:
                right = BASE[s] if beta == 1 else LEVEL - 0.04 * log(beta / star[s]) / log(2)
                at = {"examples": n, "top": 4.0, "updates": 20 * n // beta}
                runs.append(walk(0.05 * beta, 8 * beta, s, right=right, **at))
    return runs


def test_t9_is_the_power_of_the_size():
    stars = {400: [3.0] * 5, 800: [6.0] * 5, 1600: [12.0] * 5}
    found = judged("T9", ladder(stars))
    assert found.verdict == "supported"
    assert found.statistic == pytest.approx(1.0, rel=1e-6)
    told = found.details["training_sets"]["800"]
    assert told["level"] == pytest.approx(LEVEL)
    assert told["of_each_seed"] == pytest.approx([6.0] * 5)
    assert told["beta_star"] == pytest.approx(6.0)
    assert told["predictors"]["lr lambda_1"] == pytest.approx(0.2)
    assert told["predictors"]["batch / examples"] == pytest.approx(0.01)
    assert told["predictors"]["updates an epoch"] == pytest.approx(100)
    assert found.details["fits"]["batch / examples"]["power"] == pytest.approx(-1.0)
    assert "lr lambda_1" not in found.details["fits"]  # it does not vary
    assert judged("T9", ladder({400: [12.0] * 5, 800: [6.0] * 5, 1600: [3.0] * 5})).verdict == "contradicted"
    flat = ladder({400: [3, 6, 3, 6, 4], 800: [4, 4, 6, 3, 5], 1600: [6, 3, 4, 4, 4]})
    assert judged("T9", flat).verdict == "undecided"


def test_t9_where_no_factor_breaks():
    never = 1e6
    largest = judged("T9", ladder({400: [3.0] * 5, 800: [6.0] * 5, 1600: [never] * 5}))
    assert largest.verdict == "supported"
    expected = np.polyfit(np.log([400, 800, 1600]), np.log([3, 6, 32]), 1)[0]  # the largest factor stands for it
    assert largest.statistic == pytest.approx(expected)
    middle = judged("T9", ladder({400: [3.0] * 5, 800: [never] * 5, 1600: [12.0] * 5}))
    assert middle.verdict == "undecided"
    assert middle.details["training_sets"]["400"]["beta_star"] == pytest.approx(3.0)
    some = judged("T9", ladder({400: [3.0] * 5, 800: [6.0, 6.0, 6.0, never, never], 1600: [12.0] * 5}))
    assert (some.verdict, some.n) == ("supported", 3)
    assert judged("T9", ladder({400: [3.0] * 5, 800: [6.0] * 5})).verdict == "undecided"
    assert judged("T9", ladder({400: [3.0] * 5, 800: [6.0] * 5, 1600: [12.0] * 5}, seeds=2)).verdict == "undecided"


def test_the_noise_scale_is_that_of_the_examples():
    generator = torch.Generator().manual_seed(4)
    pulls = torch.randn(40, 3, dtype=torch.float64, generator=generator) + torch.tensor([1.5, -0.7, 0.4], dtype=torch.float64)
    surface = landscapes.Noisy(landscapes.Quadratic(torch.diag(torch.tensor([3.0, 1.0, 0.5], dtype=torch.float64))), pulls)
    start = torch.tensor([1.2, -0.8, 2.0], dtype=torch.float64)
    trajectory = landscapes.walk(surface, lr=0.01, updates=4, start=start, batch_size=8)
    found = breakdown.observed(trajectory, surface)["noise_scale"]
    g = surface.per_example_grads(trajectory.theta(2))
    dots = g @ g.T
    signal = float((dots.sum() - dots.trace()) / (40 * 39))
    assert (found["step"], found["examples"]) == (2, 40)
    assert found["value"] == pytest.approx(float(g.var(0, unbiased=True).sum()) / signal, rel=1e-9)


# --- T13 -------------------------------------------------------------------------------------------------------------------


def rules(linear, root, *, seeds=5, top=3.0, right=0.85):
    """Norms times exp(linear j) and exp(root j) at beta = 2^j; curves and accuracies are the base's."""
    runs = []
    for s in range(seeds):
        for j, beta in enumerate((1, 2, 4)):
            for lr, slope in {(0.1 * beta, linear), (0.1 * sqrt(beta), root if j else linear)}:
                losses = (1.0 + 1.3 * np.exp(-np.arange(10.0))) * WOBBLE[s]
                accuracy = right + 0.01 * (s - 2)
                runs.append(walk(lr, 16 * beta, s, norm=10 * WOBBLE[s] * exp(slope * j), losses=losses, right=accuracy, top=top))
    return runs


def test_t13_is_the_ratio_of_the_dispersions():
    found = judged("T13", rules(0.1, -0.4))
    assert found.verdict == "supported"
    assert found.statistic == pytest.approx(0.25)  # sd of (0, 1, 2) times the slope, and nothing else differs
    assert found.details["dispersions"]["norm at the end"]["root"] == pytest.approx(0.4 / SD)
    assert found.details["dispersions"]["early curve"]["linear"] == pytest.approx(0, abs=1e-12)
    assert judged("T13", rules(0.4, 0.1)).verdict == "contradicted"
    assert judged("T13", rules(0.1, 0.4, seeds=4)).verdict == "undecided"
    assert (
        judged("T13", [r for r in rules(0.1, 0.4) if r.settings["lr"] * 160 == r.settings["batch_size"]]).verdict == "undecided"
    )


def test_t13_applies_below_the_limit():
    assert judged("T13", rules(0.1, 0.4, top=4.9)).verdict == "supported"
    assert judged("T13", rules(0.1, 0.4, top=5.1)).verdict == "not in regime"  # 4 x 0.1 x 5.1 > 2

    def worse(run):  # at beta = 4 of the linear rule
        told = run.extra["accuracy"]["test"]
        far = run.settings["batch_size"] == 64 and abs(run.settings["lr"] - 0.4) < 1e-9
        return replace(run, extra={"accuracy": run.extra["accuracy"] | {"test": [a - 0.2 * far for a in told]}})

    assert judged("T13", [worse(run) for run in rules(0.1, 0.4)]).verdict == "not in regime"


def test_rooted_settings_have_the_epochs_of_the_base():
    found = rescaled(rules(0.1, 0.4))
    assert found.factors == {2.0: (0.2, 32), 4.0: (0.4, 64)}
    assert breakdown.rooted(found) == {2.0: (0.1 * sqrt(2), 32), 4.0: (0.2, 64)}


# --- W15 -------------------------------------------------------------------------------------------------------------------


def test_spans_of_a_quadratic_are_exact():
    curvature = torch.tensor([2.0, 0.3], dtype=torch.float64)
    surface = landscapes.Quadratic(torch.diag(curvature))
    start, lr, size = torch.tensor([1.3, -0.7], dtype=torch.float64), 0.2, 3
    trajectory = landscapes.walk(surface, lr=lr, updates=spans.SPANS * size, start=start)
    found = spans.spans(trajectory, surface)["spans"]
    shrink = 1 - lr * curvature
    points = [start * shrink**t for t in range(0, spans.SPANS * size + 1, size)]
    moves = [b - a for a, b in pairwise(points)]
    assert found["updates"] == size
    assert found["first"] == list(range(0, spans.SPANS * size, size))
    floors = [-float((curvature * a) @ d) / float((curvature * d) @ d) for a, d in zip(points, moves, strict=False)]
    assert found["floor"] == pytest.approx(floors, rel=1e-6)
    assert found["loss"] == pytest.approx([0.5 * float((curvature * a) @ a) for a in points[:-1]], rel=1e-9)
    turns = [float(a @ b / (a.norm() * b.norm())) for a, b in pairwise(moves)]
    assert np.isnan(found["cosine"][0])
    assert found["cosine"][1:] == pytest.approx(turns, rel=1e-9)


def test_excess_is_the_distance_beyond_that_of_seeds():
    base = [np.array([0.0, 1, 2, 3]), np.array([0.5, 1.5, 2.5, 3.5]), np.array([-1.0, 1, 2, 9])]
    other = [x + 1.7 for x in base]
    pairs = [(i, j) for i in range(3) for j in range(3) if i != j]
    far = np.mean([stats.ks_2samp(base[i], other[j]).statistic for i, j in pairs])
    near = np.mean([stats.ks_2samp(base[i], base[j]).statistic for i, j in pairs])
    assert spans.excess(base, other) == pytest.approx(far - near)
    assert far - near > 0.2
    assert spans.excess(base, base) == 0
    told = spans.pseudovalues({"x": base}, {"x": other})["x"]
    assert told[0] == pytest.approx(3 * (far - near) - 2 * spans.excess(base[1:], other[1:]))


def walks(small=0.0, large=1.5, seeds=5, loss=0.9, seed=7):
    random = np.random.default_rng(seed)
    settings = [(0.0375, 8, 0.0), (0.15, 32, small), (0.3, 64, 0.0), (1.2, 256, large)]
    return [spans.drawn({"lr": a, "batch_size": b, "seed": s}, random, d, loss) for s in range(seeds) for a, b, d in settings]


@pytest.mark.parametrize(("change", "verdict"), [
    ({}, "supported"), ({"small": 1.5}, "contradicted"), ({"large": 0.0}, "contradicted"), ({"seeds": 4}, "undecided"),
    ({"loss": 0.02}, "not in regime"),
])  # fmt: skip
def test_w15_asks_for_both(change, verdict):
    assert judged("W15", walks(**change)).verdict == verdict


def test_w15_needs_one_ratio():
    other = [replace(r, settings=dict(r.settings) | {"batch_size": 128}) if r.settings["lr"] > 1 else r for r in walks()]
    assert judged("W15", other).verdict == "undecided"
    assert judged("W15", [r for r in walks() if r.settings["lr"] < 1]).verdict == "undecided"


def test_w15_bursts_begin_at_equal_times_and_have_equal_spans():
    runs = [d for d in claims["W15"].experiments["quick"](0) if d["seed"] == 0]
    times = {}
    for d in runs:
        phase, record = d["phases"][0], d["record"]["snapshots"]
        times[phase["batch_size"]] = [round(t * phase["batch_size"] / 1437, 1) for t in record["at"]]
        assert max(record["at"]) + record["length"] <= phase["updates"]
        assert min(np.diff(record["at"])) > record["length"]
    assert set(times) == {8, 32, 64, 256}
    assert times[8] == pytest.approx(times[32], abs=0.1)
    assert times[64] == pytest.approx(times[256], abs=0.1)
    lengths = {d["phases"][0]["batch_size"]: d["record"]["snapshots"]["length"] * d["phases"][0]["lr"] for d in runs}
    assert lengths[8] == pytest.approx(lengths[32])
    assert lengths[64] == pytest.approx(lengths[256])


# --- runs of a share of the data -------------------------------------------------------------------------------------------


def test_runs_of_a_share_see_as_many_epochs():
    whole, half = (of_epochs("quick", 3, 0.5, 0.25, share=share) for share in (1.0, 0.5))
    assert whole == at_equal_epochs([(0.5, 0.25, 0, {})])["quick"](0)[0] | {"seed": 3, "name": whole["name"]}
    assert half["data"] == whole["data"] | {"train": 718}
    assert half["phases"][0]["updates"] == round(20 * 718 / 16)
    assert of_epochs("quick", 3, 0.5, 0.25, longer=2)["phases"][0]["updates"] == round(40 * 1437 / 16)
