"""The judges of L1-L4 on evidence made by hand, the studies in small, and volumes against known ones."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
import xarray as xr

from sgdscope.bodies import Ball, Box
from sgdscope.contracts import Evidence, claims
from sgdscope.evidence import volumes
from sgdscope.evidence.projected import crossed, study_distance, study_steps, study_surface
from sgdscope.theory.langevin import ball_mass, interval_atom, interval_law

SEEDS = range(5)
WOBBLE = np.array([-0.02, 0.01, 0.0, 0.02, -0.01])


def told(extra, **settings):
    return Evidence(settings, xr.Dataset(), {}, extra)


def distances(power, *, gaussian=None, seeds=SEEDS, lrs=(0.02, 0.005, 0.00125)):
    """Distances that follow a power of lr exactly, another with each seed, on average `power`."""
    powers = {"uniform": power, "gaussian": power if gaussian is None else gaussian}
    return [
        told({"distance": 0.7 * lr ** (p + WOBBLE[s]), "atoms": 0.1}, target=target, lr=lr, seed=s)
        for target, p in powers.items()
        for lr in lrs
        for s in seeds
    ]


@pytest.mark.parametrize(
    ("power", "answer"),
    [(0.5, "supported"), (0.425, "supported"), (0.575, "supported"), (0.375, "contradicted"), (0.625, "contradicted"),
     (0.4, "undecided"), (0.0, "contradicted"), (1.0, "contradicted"), (-0.5, "contradicted")],
)  # fmt: skip
def test_l1_is_the_root_of_the_step(power, answer):
    verdict = claims["L1"].judge(distances(power))
    assert verdict.verdict == answer
    assert verdict.statistic == pytest.approx(power, abs=1e-12)
    half = 2.7764451 * WOBBLE.std(ddof=1) / 5**0.5
    assert verdict.interval == pytest.approx((power - half, power + half), abs=1e-6)
    assert verdict.n == 5


def test_l1_asks_both_targets_all_seeds_and_short_steps():
    judge = claims["L1"].judge
    assert judge(distances(0.5, gaussian=0.8)).statistic == pytest.approx(0.8)
    assert judge(distances(0.5, gaussian=0.8)).verdict == "contradicted"
    assert judge(distances(0.5, seeds=range(4))).verdict == "undecided"
    assert judge(distances(0.5)[1:]).verdict == "undecided"  # a seed without one of its settings
    assert judge(distances(0.5, lrs=(0.02, 0.005))).verdict == "undecided"
    assert judge(distances(0.5, lrs=(1.0, 4.0, 9.0))).verdict == "not in regime"
    lost = distances(0.5)
    lost[0] = told({"distance": -0.001, "atoms": 0.1}, **lost[0].settings)  # noise has swallowed it
    assert judge(lost).verdict == "undecided"


def steps(law, *, seeds=SEEDS, dims=(2, 4, 8, 16)):
    return [
        told(
            {"steps": law(body, d) * math.exp(WOBBLE[s]), "atoms": 0.08, "lr": 0.02 / d**2}, body=body, d=d, seed=s, tolerance=0.1
        )
        for body in ("box", "ball")
        for d in dims
        for s in seeds
    ]


@pytest.mark.parametrize(
    ("law", "answer"),
    [(lambda body, d: 9 * d**2.0, "supported"), (lambda body, d: 9 * d**6.9, "supported"),
     (lambda body, d: 9 * d**7.1, "contradicted"), (lambda body, d: 9 * d ** (2.0 if body == "box" else 8.0), "contradicted"),
     (lambda body, d: 9 * math.exp(d), "contradicted")],
)  # fmt: skip
def test_l2_is_a_power_below_seven(law, answer):
    verdict = claims["L2"].judge(steps(law))
    assert verdict.verdict == answer
    exact = [math.log(law(body, 16) / law(body, 8)) / math.log(2) for body in ("box", "ball")]
    assert verdict.statistic == pytest.approx(max(exact), abs=1e-9)


def test_l2_misses():
    runs = steps(lambda body, d: 9 * d**2.0)
    assert claims["L2"].judge([run for run in runs if run.settings["seed"] != 3]).verdict == "undecided"
    gave_up = [told({"steps": None, "atoms": 0.05}, **run.settings) if run.settings["d"] == 16 else run for run in runs]
    assert claims["L2"].judge(gave_up).verdict == "undecided"  # slow, but not for the atoms
    stuck = [told({"steps": None, "atoms": 0.3}, **run.settings) for run in runs]
    assert claims["L2"].judge(stuck).verdict == "not in regime"
    stuck[0] = told({"steps": None, "atoms": 0.05}, **stuck[0].settings)  # the atoms are no excuse for this one
    assert claims["L2"].judge(stuck).verdict == "undecided"


def found(ratio, *, seeds=SEEDS, reference=0.0, others=None):
    kinds = [("box", 5), ("box_and_ball", 5), ("box", 10)]
    ratios = dict.fromkeys(kinds, ratio) | (others or {})
    errors = {
        "hit_and_run": lambda kind, s: reference,
        "langevin": lambda kind, s: reference + math.log(ratios[kind]) + WOBBLE[s],
    }
    return [
        told(
            {"log_volume": 3.0 + error(kind, s), "known": 3.0, "seconds": 2.0, "stderr": 0.02},
            sampler=name, body=kind[0], d=kind[1], seed=s,
        )
        for name, error in errors.items()
        for kind in kinds
        for s in seeds
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("ratio", "answer"),
    [
        (1.0, "supported"),
        (1.16, "supported"),
        (1.24, "contradicted"),
        (0.86, "supported"),
        (0.81, "contradicted"),
        (1.2, "undecided"),
    ],
)
def test_l3_is_equality_within_a_factor(ratio, answer):
    verdict = claims["L3"].judge(found(ratio))
    assert verdict.verdict == answer
    assert verdict.statistic == pytest.approx(ratio)
    half = 2.7764451 * WOBBLE.std(ddof=1) / 5**0.5
    assert verdict.interval == pytest.approx((ratio * math.exp(-half), ratio * math.exp(half)), rel=1e-6)


def test_l3_asks_every_body_and_a_reference_that_is_right():
    one = claims["L3"].judge(found(1.0, others={("box", 10): 1.5}))
    assert (one.verdict, one.statistic) == ("contradicted", pytest.approx(1.5))
    assert claims["L3"].judge(found(1.0, seeds=range(4))).verdict == "undecided"
    assert claims["L3"].judge(found(1.0, reference=0.15)).verdict == "supported"
    assert claims["L3"].judge(found(1.0, reference=0.25)).verdict == "not in regime"
    assert claims["L3"].judge(found(1.0, reference=-0.25)).verdict == "not in regime"
    assert claims["L3"].judge(found(1.0)[:15]).verdict == "undecided"  # hit-and-run alone


def shares(fixed, scaled, *, seeds=SEEDS, dims=(2, 4, 8), first=0.03):
    return [
        told({"share": first * (d / 2) ** (power + WOBBLE[s])}, arm=arm, d=d, seed=s, lr=1e-3)
        for arm, power in (("fixed", fixed), ("scaled", scaled))
        for d in dims
        for s in seeds
    ]


@pytest.mark.parametrize(
    ("fixed", "scaled", "answer", "statistic"),
    [(1.0, 0.0, "supported", None), (0.88, 0.0, "supported", 0.88), (0.82, 0.0, "contradicted", 0.82),
     (1.18, 0.0, "contradicted", 1.18), (0.0, 0.0, "contradicted", 0.0), (-1.0, 0.0, "contradicted", -1.0),
     (1.0, 0.12, "supported", 0.12), (1.0, 0.18, "contradicted", 0.18), (1.0, -0.5, "contradicted", -0.5),
     (1.0, 0.15, "undecided", 0.15)],
)  # fmt: skip
def test_l4_is_linear_and_constant(fixed, scaled, answer, statistic):
    verdict = claims["L4"].judge(shares(fixed, scaled))
    assert verdict.verdict == answer
    assert statistic is None or verdict.statistic == pytest.approx(statistic)


def test_l4_needs_seeds_and_room():
    assert claims["L4"].judge(shares(1.0, 0.0, seeds=range(4))).verdict == "undecided"
    assert claims["L4"].judge(shares(1.0, 0.0, dims=(2, 4))).verdict == "undecided"
    assert claims["L4"].judge(shares(0.1, 0.0, first=0.6)).verdict == "not in regime"


# --- the studies --------------------------------------------------------------------------------------------------------------


def test_crossed_halves_are_a_distance_without_the_noise():
    target = np.linspace(0, 1, 5)
    shifted = np.array([0.1, 0.325, 0.55, 0.775, 1.0])  # a tenth of the mass on the surface
    assert crossed([shifted, shifted], target) == pytest.approx(0.1)
    narrow = target**2
    assert crossed([narrow, narrow], target) == pytest.approx(0.25)  # too little near the surface counts as well
    noise = np.random.default_rng(3).normal(0, 0.01, (2000, 2, 5))
    noise[..., -1] = 0
    plain = np.mean([np.abs(a).max() for a, _ in noise])
    assert abs(np.mean([crossed([target + a, target + b], target) for a, b in noise])) < 0.05 * plain


@pytest.mark.parametrize("target", ["uniform", "gaussian"])
def test_the_distance_is_that_of_the_exact_law(target, tmp_path):
    lr, own = 0.02, {"target": target, "time": 2.0, "chains": 30_000, "seed": 2}
    exact = interval_law(np.zeros_like if target == "uniform" else lambda x: 4 * x, 1.0, lr=lr)
    found_here = study_distance(own | {"lr": lr}, tmp_path).extra
    assert found_here["atoms"] == pytest.approx(sum(exact.atoms), rel=0.06)  # 3 to 4 standard errors
    assert found_here["distance"] == pytest.approx(exact.distance, rel=0.06)
    if target == "uniform":
        assert exact.distance == pytest.approx(interval_atom(1.0, lr=lr).value, rel=0.001)
        return
    wrong = study_distance(own | {"lr": lr, "drift": 2.0}, tmp_path).extra
    assert wrong["distance"] > 0.05  # twice the drift samples exp(-2 f)


def test_steps_are_those_of_the_diffusion(tmp_path):
    # on [-1, 1] from 0 the first mode of the law of |X| is (2 / pi) sin(pi r) exp(-pi^2 t / 2), at most
    own = {"tolerance": 0.1, "time": 5.0, "chains": 4000, "seed": 1}
    one = study_steps(own | {"body": "box", "d": 1, "c": 2e-4}, tmp_path).extra
    assert one["steps"] * one["lr"] == pytest.approx(2 / math.pi**2 * math.log(20 / math.pi), rel=0.09)  # looked at every 5 %
    assert one["distance"] <= 0.1
    own["c"] = 0.02
    hopeless = study_steps(own | {"body": "ball", "d": 2, "c": 4.0, "time": 40.0}, tmp_path).extra
    assert hopeless["steps"] is None
    assert hopeless["atoms"] > 0.4


def test_the_mass_on_the_sphere(tmp_path):
    got = study_surface({"d": 3, "lr": 0.004, "time": 0.6, "chains": 8000, "seed": 1}, tmp_path).extra["share"]
    assert got == pytest.approx(0.1245, rel=0.03)
    assert got == pytest.approx(ball_mass(3, lr=0.004).value, rel=0.07)


@pytest.mark.parametrize(
    ("study", "own", "number"),
    [
        (study_distance, {"target": "uniform", "lr": 0.04, "time": 0.5, "chains": 400}, "distance"),
        (study_distance, {"target": "gaussian", "lr": 0.04, "time": 0.5, "chains": 400}, "atoms"),
        (study_steps, {"body": "ball", "d": 2, "c": 0.02, "tolerance": 0.2, "time": 5.0, "chains": 300}, "distance"),
        (study_surface, {"d": 3, "lr": 0.01, "time": 0.3, "chains": 300}, "share"),
    ],
)
def test_each_seed_walks_its_own_chains_and_the_same_ones_again(study, own, number, tmp_path):
    found = [study(own | {"seed": s}, tmp_path).extra[number] for s in (3, 4, 5, 3)]
    assert found[0] == found[3]
    assert len(set(found)) == 3


# --- volumes ------------------------------------------------------------------------------------------------------------------


def test_known_volumes():
    assert volumes.known("box", 7) == pytest.approx(7 * math.log(2))
    assert math.exp(volumes.known("box_and_ball", 3)) == pytest.approx(4 / 3 * math.pi * 0.75**1.5, rel=1e-6)  # the ball
    assert math.exp(volumes.known("box_and_ball", 4)) == pytest.approx(math.pi**2 / 2, rel=1e-6)
    points = 2 * torch.rand(400_000, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) - 1
    share = float(volumes.body_of("box_and_ball", 7).contains(points).double().mean())
    assert math.exp(volumes.known("box_and_ball", 7) - 7 * math.log(2)) == pytest.approx(share, abs=4 * math.sqrt(share / 4e5))


@pytest.mark.parametrize(("kind", "d"), [("box", 4), ("box_and_ball", 5)])
def test_annealing_with_hit_and_run_finds_them(kind, d):
    body = volumes.body_of(kind, d)
    walk = volumes.hit_and_run(body, steps=2 * d * d)
    found_here = volumes.annealed(body, walk, start=3000, generator=torch.Generator().manual_seed(6))
    assert found_here.stderr < 0.04
    assert found_here.log_volume == pytest.approx(volumes.known(kind, d), abs=4 * found_here.stderr)


@pytest.mark.parametrize("body", [Ball(1.5, centre=2.0, size=3), Box([1.0, -2.0, 0.0], [3.0, 1.0, 0.5])])
def test_annealing_with_short_reflected_steps_finds_other_bodies(body):
    exact = 4 / 3 * math.pi * 1.5**3 if isinstance(body, Ball) else 3.0
    walk = volumes.hit_and_run(body, steps=30)
    found_here = volumes.annealed(body, walk, start=4000, generator=torch.Generator().manual_seed(2))
    assert math.exp(found_here.log_volume) == pytest.approx(exact, rel=4 * found_here.stderr)
    reflected = volumes.langevin(body, steps=400, step=0.2, edge="reflect")
    found_here = volumes.annealed(body, reflected, start=3000, generator=torch.Generator().manual_seed(2))
    assert math.exp(found_here.log_volume) == pytest.approx(exact, rel=4 * found_here.stderr + 0.03)


@pytest.mark.parametrize("size", [0.02, 1.0, 30.0])
def test_the_volume_of_a_body_grows_with_its_size_alone(size):
    body = Ball(size, centre=3.0, size=3)
    assert len(volumes.schedule(body)) == len(volumes.schedule(Ball(1.0, size=3)))
    found_here = volumes.annealed(
        body, volumes.hit_and_run(body, steps=24), start=2000, generator=torch.Generator().manual_seed(9)
    )
    assert math.exp(found_here.log_volume) / size**3 == pytest.approx(4 / 3 * math.pi, rel=4 * found_here.stderr)


def test_phases_go_on_where_the_last_one_ended_with_the_step_of_the_paper(monkeypatch):
    body, starts, told = volumes.body_of("box", 5), [], []
    chains = volumes.chains
    monkeypatch.setattr(volumes, "chains", lambda slope, own, **options: told.append(options) or chains(slope, own, **options))
    inner = volumes.langevin(body, steps=16, step=0.5)

    def walk(points, s, generator):
        samples = inner(points, s, generator)
        starts.append((points, samples[-1], s))
        return samples

    volumes.annealed(body, walk, start=20, generator=torch.Generator().manual_seed(4))
    assert [options["lr"] for options in told] == pytest.approx([0.5 * s / 25 for s in volumes.schedule(body)])
    assert len(starts) > 5
    assert all(torch.equal(after[0], before[1]) for before, after in pairwise(starts))


def test_hit_and_run_samples_a_truncated_gaussian():
    s, body = 0.25, Box([-1.0], [1.0])
    start = torch.zeros(40_000, 1, dtype=torch.float64)
    x = volumes.hit_and_run(body, steps=8)(start, s, torch.Generator().manual_seed(1))[-1]
    assert float(x.var()) == pytest.approx(0.19344, rel=4 * math.sqrt(2 / 40_000))


def test_a_study_of_volumes_tells_its_numbers(tmp_path):
    own = {"body": "box", "d": 3, "sampler": "langevin", "chains": 200, "steps": 8, "seed": 4}
    got = volumes.study(own, tmp_path)
    assert set(got.extra) == {"log_volume", "stderr", "phases", "seconds", "known"}
    assert got.extra["phases"] == len(volumes.schedule(volumes.body_of("box", 3)))
    assert volumes.study(own, tmp_path).extra["log_volume"] == got.extra["log_volume"]
    assert volumes.study(own | {"seed": 5}, tmp_path).extra["log_volume"] != got.extra["log_volume"]
