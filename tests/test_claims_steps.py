"""The judges S6-S11 on steps made by hand, and what they read from a real measurement."""

import numpy as np
import pytest
import torch

from sgdscope.contracts import claims
from sgdscope.evidence.sharp_runs import ARMS, BRANCHES, arm_of
from sgdscope.evidence.sharpness import made
from sgdscope.evidence.steps import stage, stepped
from sgdscope.evidence.windows import gather
from sgdscope.experiment import Experiment
from sgdscope.landscapes import Quadratic, walk

T = (0, 5, 10, 19, 20, 40, 60, 80, 100, 120, 150, 199)  # of 200 updates: the first four are the earliest phase
LATE = np.asarray(T) >= 20
WOBBLE = (0.9, 1.0, 1.1, 1.05, 0.95)


def run(seed=0, *, lr=0.2, losses=None, **values):
    """Evidence of 200 updates measured at T; lr lambda_1 / 2 = 1 unless told otherwise."""
    losses = np.full(len(T), 2.0) if losses is None else losses
    return stepped({"lr": lr, "seed": seed, "updates": 200}, T, losses, **values)


def runs(effects=None, *, wobble=WOBBLE, **values):
    """Five runs, the effects of which are the given ones times the wobble of the run."""
    return [
        run(s, effect={key: w * np.asarray(numbers) for key, numbers in (effects or {}).items()}, **values)
        for s, w in enumerate(wobble)
    ]


def judged(name, found):
    return claims[name].judge(list(found))


def late(value, before=-0.5):
    return np.where(LATE, value, before)


# --- S6 -------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "answer"), [(0.03, "supported"), (-0.03, "contradicted")])
def test_s6_is_the_mean_after_the_earliest_phase(value, answer):
    found = judged("S6", runs({("e1", 1.0): late(value), ("random", 1.0): late(0.001)}))
    assert (found.verdict, found.n) == (answer, 5)
    assert found.statistic == pytest.approx(value)  # with the first points it would be -0.147 or so
    assert found.details["early"]["e1 x 1"] == pytest.approx(-0.5)
    assert found.details["late"]["random x 1"] == pytest.approx(0.001)
    assert found.regime["eta_sharpness"] == pytest.approx(2.0)


def test_s6_weighs_runs_alike_and_is_unsure_about_both_signs():
    found = judged("S6", runs({("e1", 1.0): late(0.03)}, wobble=(1, -1, 2, -1.5, 0.5)))
    assert (found.verdict, found.statistic) == ("undecided", pytest.approx(0.03 * 0.2))


def test_one_run_is_judged_by_its_points():
    alternating = late(0.03) + 0.01 * (-1.0) ** np.arange(len(T))
    found = judged("S6", [run(effect={("e1", 1.0): alternating})])
    assert (found.verdict, found.n, found.statistic) == ("supported", 8, pytest.approx(0.03))
    few = run(effect={("e1", 1.0): alternating}, losses=np.where(np.asarray(T) < 199, 2.0, 0.09))
    assert judged("S6", [few]).verdict == "undecided"  # seven points


def test_points_that_do_not_count():
    values = late(0.03)
    values[-1] = -9.0
    lost = np.where(np.asarray(T) < 199, 2.0, 0.09)  # below 5 % of the first loss
    assert judged("S6", runs({("e1", 1.0): values}, losses=lost)).statistic == pytest.approx(0.03)
    kept = np.where(np.asarray(T) < 199, 2.0, 0.11)
    assert judged("S6", runs({("e1", 1.0): values}, losses=kept)).statistic == pytest.approx((7 * 0.03 - 9) / 8)
    unconverged = runs({("e1", 1.0): values})
    for one in unconverged:
        one.measured["sharpest"]["eigenvalue_outcome"].values[-1, 0] = 1
    assert judged("S6", unconverged).statistic == pytest.approx(0.03)
    absent = runs({("e1", 1.0): values})
    for one in absent:
        outcome = np.zeros((len(T), 9, 7), np.int8)
        outcome[-1] = 2
        one.measured["sharpest"]["effect_outcome"] = (("step", "arm", "alpha"), outcome)
    assert judged("S6", absent).statistic == pytest.approx(0.03)


def test_steps_far_too_short_and_vanished_losses_are_out_of_regime():
    effects = {("e1", 1.0): late(-0.03)}
    assert judged("S6", runs(effects, lr=0.0098)).verdict == "not in regime"  # 0.0098 x 10 / 2 = 0.049
    assert judged("S6", runs(effects, lr=0.0102)).verdict == "contradicted"
    assert judged("S6", runs(effects, losses=late(0.09, 2.0))).verdict == "not in regime"
    assert judged("S6", [made({"lr": 0.1, "seed": 0}, [0, 1], [1.0, 2.0], [1.0, 1.0])]).verdict == "undecided"


# --- S7, S8, S9 -----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("half", "one", "two", "answer", "statistic"),
    [
        (-0.02, 0.05, 0.3, "supported", None),
        (-0.02, -0.01, 0.3, "supported", None),  # one step may still reduce it
        (0.01, 0.05, 0.3, "contradicted", -0.01),  # half a step is too long already
        (-0.05, -0.04, -0.02, "contradicted", -0.02),  # two steps still reduce it
        (-0.02, -0.06, 0.3, "contradicted", -0.04),  # one is better than half
        (-0.02, 0.4, 0.3, "contradicted", -0.1),  # no parabola
    ],
)
def test_s7_needs_all_its_parts(half, one, two, answer, statistic):
    effects = {("e1", 0.5): late(half), ("e1", 1.0): late(one), ("e1", 2.0): late(two)}
    found = judged("S7", runs(effects, alpha_star=np.where(np.arange(len(T)) % 4, 0.6, 1.4)))
    assert found.verdict == answer
    assert found.details["alpha_star"] == pytest.approx((6 * 0.6 + 2 * 1.4) / 8)
    assert found.details["share_crossing"] == pytest.approx(0.75)
    if statistic is not None:
        assert found.statistic == pytest.approx(statistic)


@pytest.mark.parametrize(
    ("whole", "top", "answer"),
    [(-0.04, 0.02, "supported"), (-0.04, -0.02, "contradicted"), (0.04, 0.02, "contradicted"), (0.04, -0.02, "contradicted")],
)
def test_s8_needs_both(whole, top, answer):
    found = judged("S8", runs({("full", 1.0): late(whole), ("e1", 1.0): late(top)}))
    assert found.verdict == answer
    told = {name: part["mean"] for name, part in found.details["parts"].items()}
    assert told == {"fall by the whole step": pytest.approx(-whole), "rise along e_1": pytest.approx(top)}


def sections(**changed):
    """Rises of the loss to both sides along e_1, e_3, e_5, with scatter over the runs."""
    told = {"l1": 0.02, "r1": 0.1, "l3": 0.0, "r3": 0.05, "l5": 0.001, "r5": 0.01} | changed
    names = {f"{side}{i}": (i, sign) for i in (1, 3, 5) for side, sign in (("l", -1.0), ("r", 1.0))}
    return [run(s, rise={names[k]: late(w * v, 7.0) for k, v in told.items()}) for s, w in enumerate(WOBBLE)]


@pytest.mark.parametrize(
    ("changed", "answer", "part", "mean"),
    [
        ({}, "supported", "bend of e_1 against e_3", 0.06 - 0.025),
        ({"l1": -0.01}, "contradicted", "rise where the gradient descends", -0.01),
        ({"r1": -0.01, "l1": 0.2}, "contradicted", "rise on the other side", -0.01),
        ({"r3": 0.2}, "contradicted", "bend of e_1 against e_3", 0.06 - 0.1),
        ({"r5": 0.06}, "contradicted", "bend of e_3 against e_5", 0.025 - 0.0305),
    ],
)
def test_s9_needs_all_its_parts(changed, answer, part, mean):
    found = judged("S9", sections(**changed))
    assert found.verdict == answer
    assert found.details["parts"][part]["mean"] == pytest.approx(mean)
    if answer == "contradicted":
        assert found.statistic == pytest.approx(mean)
    assert set(found.details["bend"]) == {"e1", "e3", "e5"}


# --- S10 ------------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cosine", "share", "answer"),
    [
        (3.3, 10.5, "supported"),
        (3.0, 10.5, "contradicted"),
        (3.3, 9.5, "contradicted"),
        (np.where(np.asarray(T) < 100, 9.0, 3.0), 20.0, "contradicted"),  # not all along
        (9.0, np.where(np.asarray(T) < 100, 9.0, 20.0), "contradicted"),
    ],
)
def test_s10_needs_cosine_and_share_in_both_halves(cosine, share, answer):
    # the wobble is 0.1 % so that the intervals are narrower than the distance to the thresholds 3.162 and 10
    ones = np.ones(len(T))
    found = judged("S10", [run(s, alignment=w * ones * cosine, share=w * ones * share) for s, w in enumerate((0.999, 1, 1.001))])
    assert found.verdict == answer
    assert found.n == 3


def test_s10_tells_multiples_of_chance():
    found = judged("S10", [run(s, alignment=np.full(len(T), 8.0 * w), share=np.full(len(T), 50.0)) for s, w in enumerate(WOBBLE)])
    mean = 8.0 * np.prod(WOBBLE) ** 0.2
    assert found.details["parts"]["|cos| over chance in the first half"]["mean"] == pytest.approx(mean)
    assert found.details["parts"]["share over chance in the second half"]["mean"] == pytest.approx(50.0)
    assert found.details["mean_cosine"] == pytest.approx(8.0 * (2 / (np.pi * 10000)) ** 0.5)
    assert found.details["share"] == pytest.approx(50 * 5 / 10000)


def test_s10_needs_room_above_chance():
    assert judged("S10", [run(size=49, share=np.full(len(T), 5.0))] * 3).verdict == "not in regime"  # 10 x 5 / 49 > 1
    assert judged("S10", [run(size=51, share=np.full(len(T), 5.0))] * 3).verdict == "contradicted"


# --- S11 ------------------------------------------------------------------------------------------------------------------------

PAPER = {"normal": 1.1, "removetop": 1.6, "topscaled0.25": 1.4, "onlytop": 0.5, "topscaled4": 0.8, "constanttop": 1.0}


def branches(ends, *, start=10.0, lr=0.1, seeds=5, losses=(2.0, 1.8)):
    told = []
    for s in range(seeds):
        for arm, options in ARMS.items():
            walker = {"walker": "nudged", "k": 1, "base": "sgd", **options} if options else {"walker": "sgd"}
            settings = {"lr": lr, "seed": s, "batch_size": 64, "experiment": {"phases": [{"walker": "sgd"}, walker]}}
            end = start * (ends[arm] + 0.01 * s * (arm != "normal"))
            told.append(made(settings, [30, 90], [start, end], losses))
    return told


@pytest.mark.parametrize(
    ("changed", "answer"),
    [
        ({}, "supported"),
        ({"removetop": 1.0}, "contradicted"),
        ({"topscaled0.25": 1.0}, "contradicted"),
        ({"onlytop": 1.2, "constanttop": 1.5}, "contradicted"),
        ({"topscaled4": 1.2}, "contradicted"),
        ({"constanttop": 0.4}, "contradicted"),
        ({"constanttop": 0.7}, "supported"),  # compared with the fresh direction, not with plain SGD
        ({"onlytop": 1.09, "constanttop": 1.5}, "undecided"),  # 1.09 .. 1.13 against 1.1
    ],
)
def test_s11_needs_all_five_signs(changed, answer):
    assert judged("S11", branches(PAPER | changed)).verdict == answer


def test_s11_is_paired_and_in_units_of_the_branching_point():
    found = judged("S11", branches(PAPER))
    told = found.details["parts"]
    assert told["removetop against normal"]["mean"] == pytest.approx(0.5 + 0.02)
    assert told["onlytop against normal"]["mean"] == pytest.approx(-0.6 + 0.02)
    assert told["constanttop against onlytop"]["mean"] == pytest.approx(0.5)
    assert found.details["relative_change"]["removetop"] == pytest.approx(0.62)
    assert (found.n, found.smallest_p) == (5, pytest.approx(1 / 32))


def test_s11_missing_arms_and_regime():
    runs_ = branches(PAPER)
    without = [r for r in runs_ if not (arm_of(r) == "topscaled4" and r.settings["seed"] == 3)]
    assert judged("S11", without).verdict == "undecided"
    assert judged("S11", branches(PAPER, seeds=4)).verdict == "undecided"
    assert judged("S11", branches(PAPER, lr=0.0098)).verdict == "not in regime"
    assert judged("S11", branches(PAPER, lr=0.0102)).verdict == "supported"
    assert judged("S11", branches(PAPER, losses=(2.0, 0.09))).verdict == "not in regime"


def test_arms_are_told_apart_by_what_they_do():
    described = BRANCHES["quick"](0)[: len(ARMS)]
    told = [made({"lr": 1.0, "experiment": Experiment(**d).described()}, [0], [1.0], [1.0]) for d in described]
    assert [arm_of(one) for one in told] == list(ARMS)
    assert [d["phases"][1].get("variant", "nudge") for d in described] == ["nudge", "dom", "dom", "bulk", "nudge", "nudge"]
    assert [d["phases"][1].get("every") for d in described] == [None, 1, "once", 1, 1, 1]
    assert arm_of(made({"lr": 1.0}, [0], [1.0], [1.0])) is None
    other = {"phases": [{"walker": "sgd"}, {"walker": "nudged", "k": 5, "variant": "bulk", "every": 1}]}
    assert arm_of(made({"lr": 1.0, "experiment": other}, [0], [1.0], [1.0])) is None
    cut = [d["record"]["snapshots"]["at"] for d in described]
    assert cut == [[30, 90]] * 6
    assert {d["phases"][0]["updates"] for d in described} == {30}
    assert {d["phases"][1]["updates"] for d in described} == {61}


# --- a real measurement -----------------------------------------------------------------------------------------------------


def measured(lr, updates=40):
    """Full-batch descent on a rotated quadratic with lambda = 4, 2.5, 1, 0.4, 0.02, 0.01, away from its floor."""
    values = torch.tensor([4.0, 2.5, 1.0, 0.4, 0.02, 0.01], dtype=torch.float64)
    rotation = torch.linalg.qr(torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3)))[0]
    centre = torch.tensor([3.0, -2.0, 0.5, 1.0, 4.0, -1.0], dtype=torch.float64)
    surface = Quadratic(rotation @ torch.diag(values) @ rotation.T, centre)
    start = centre + rotation @ torch.tensor([0.3, -0.7, 1.5, 2.0, 10.0, -15.0], dtype=torch.float64)
    taken = walk(surface, lr=lr, updates=updates, start=start)
    options = {"k": 5, "window": 4, "batch_size": 1, "critical": False}
    return (
        gather(taken, surface, {"sharpest": options}, settings={"lr": lr, "seed": 0, "batch_size": "full"}),
        taken,
        surface,
        rotation,
    )


@pytest.mark.parametrize(("lr", "s6", "s8"), [(0.47, "contradicted", "contradicted"), (0.503, "supported", "supported")])
def test_the_claims_read_the_quantity(lr, s6, s8):
    evidence, taken, surface, rotation = measured(lr)
    late_points = stage(evidence, 0.1)
    steps = evidence.measured["sharpest"]["step"].values[late_points.kept]
    assert steps.tolist() == list(range(4, 40, 4))
    expected = []
    for t in steps:
        theta = taken.theta(int(t))
        c = float(rotation[:, 0] @ (surface.hessian(theta) @ (theta - surface.centre)))
        expected.append((-lr * c**2 + 0.5 * 4.0 * lr**2 * c**2) / surface.value(theta))
    assert late_points.effect("e1") == pytest.approx(expected, rel=1e-6, abs=1e-12)
    assert late_points.half_eta_sharpness == pytest.approx(np.full(9, lr * 2.0), rel=1e-4)
    assert judged("S6", [evidence]).verdict == s6
    assert judged("S8", [evidence]).verdict == s8


def test_evidence_made_of_numbers_names_what_the_quantity_measures():
    real, hand = measured(0.3, 4)[0].measured["sharpest"], run().measured["sharpest"]
    for name, values in hand.data_vars.items():
        assert values.dims == real[name].dims, name
    for axis in ("arm", "rank", "cross", "alpha"):
        assert hand[axis].values.tolist() == real[axis].values.tolist()
    assert {-1.0, 0.0, 1.0} <= set(real["position"].values.tolist())
