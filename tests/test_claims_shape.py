"""W14 on hand-made evidence with exact answers, and the description of its runs."""

from dataclasses import replace
from math import exp

import numpy as np
import pytest
from scipy import stats

from sgdscope.claims.walk_with_sgd.noise import EQUAL, PAIRS, _made, arm_of, arms, shape_matters
from sgdscope.contracts import claims
from sgdscope.errors import Outcome
from sgdscope.experiment import Experiment

WOBBLE = np.array([-0.06, 0.01, 0.09, -0.03, 0.04])  # of the logs of SGD's numbers, seed by seed
LEVEL = stats.t.ppf(0.975, 4) * WOBBLE.std(ddof=1) / 5**0.5  # half an interval of the mean log factor


def made(isotropic=(0.3, 1.6), covariance=(1.0, 1.0), seeds=5, wobble=WOBBLE, loss=0.9, beside=True):
    """SGD's numbers wobble, those of the other arms do not: log factor = log(given) - wobble."""
    given = {"sgd": (1.0, 1.0), "isotropic": isotropic, "covariance": covariance}
    given |= {"full": (0.1, 2.0), "diagonal": (0.5, 1.3)} if beside else {}
    factor = {arm: np.exp(wobble) if arm == "sgd" else np.ones(5) for arm in given}
    return [
        _made(s, arm, 0.02 * height * factor[arm][s], 5 * sharp * factor[arm][s], loss)
        for s in range(seeds)
        for arm, (height, sharp) in given.items()
    ]


def test_the_factors_and_their_intervals_are_those_by_hand():
    found = shape_matters(made())
    middle = -WOBBLE.mean()
    assert found.verdict == "supported"
    told = found.details["factors"]
    for name, factor in (
        ("isotropic height", 0.3), ("isotropic sharpness", 1.6), ("covariance height", 1.0), ("covariance sharpness", 1.0)
    ):  # fmt: skip
        expected = [factor * exp(middle + end) for end in (0.0, -LEVEL, LEVEL)]
        assert told[name][:3] == pytest.approx(expected, rel=1e-12)
        assert told[name][3] == "supported"
    assert found.statistic == pytest.approx(exp(middle), rel=1e-12)  # equality is nearest to failing
    assert found.interval == pytest.approx((exp(middle - LEVEL), exp(middle + LEVEL)), rel=1e-12)
    assert (found.n, found.smallest_p, found.threshold) == (5, 1 / 32, 1.0)
    assert found.details["means"]["isotropic"]["height"] == pytest.approx(0.006, rel=1e-12)
    assert found.details["means"]["sgd"]["step"] == pytest.approx(0.2, rel=1e-12)
    assert found.details["means"]["sgd"]["distance"] == pytest.approx(np.sqrt(np.arange(180, 240).mean() / 10), rel=1e-12)
    assert found.details["means"]["full"]["accuracy"] == pytest.approx(0.9)
    assert found.details["beside"]["diagonal height"][0] == pytest.approx(0.5 * exp(middle), rel=1e-12)
    assert shape_matters(made(beside=False)).verdict == "supported"


EDGE = exp(LEVEL + WOBBLE.mean())  # the factor whose interval just touches 1 from above


@pytest.mark.parametrize(
    ("changed", "answer", "decisive"),
    [
        ({"isotropic": (0.98 * exp(WOBBLE.mean() - LEVEL), 1.6)}, "supported", None),
        ({"isotropic": (1.02 * exp(WOBBLE.mean() - LEVEL), 1.6)}, "undecided", "isotropic height"),
        ({"isotropic": (1.02 * EDGE, 1.6)}, "contradicted", "isotropic height"),
        ({"isotropic": (0.3, 1.02 * EDGE)}, "supported", None),
        ({"isotropic": (0.3, 0.98 * EDGE)}, "undecided", "isotropic sharpness"),
        ({"isotropic": (0.3, 0.98 * exp(WOBBLE.mean() - LEVEL))}, "contradicted", "isotropic sharpness"),
        ({"covariance": (1.3, 1.0)}, "undecided", "covariance height"),
        ({"covariance": (1.02 * EQUAL * EDGE, 1.0)}, "contradicted", "covariance height"),
        ({"covariance": (1.0, 0.98 / EQUAL * exp(WOBBLE.mean() - LEVEL))}, "contradicted", "covariance sharpness"),
    ],
)
def test_just_above_and_below_each_threshold(changed, answer, decisive):
    found = shape_matters(made(**changed))
    assert found.verdict == answer, found.reason
    if decisive:
        assert f"decisive: {decisive}" in found.reason
        assert found.statistic == pytest.approx(found.details["factors"][decisive][0])


def test_equality_needs_both_one_sided_tests():
    """The 90 % interval must lie within the margin; a difference that is only not significant does not do."""
    spread = stats.t.ppf(0.95, 4) * WOBBLE.std(ddof=1) / 5**0.5
    least = EQUAL * exp(WOBBLE.mean() - spread)
    assert shape_matters(made(covariance=(0.99 * least, 1.0))).verdict == "supported"
    assert shape_matters(made(covariance=(1.01 * least, 1.0))).verdict == "undecided"
    wild = shape_matters(made(isotropic=(0.01, 30.0), wobble=8 * WOBBLE))
    assert wild.verdict == "undecided"
    low, high = wild.details["factors"]["covariance height"][1:3]
    assert low < 1 < high


def test_too_few_seeds_unlike_batches_and_numbers_that_did_not_converge_are_undecided():
    few = made()
    few.remove(next(run for run in few if run.settings["seed"] == 2 and arm_of(run) == "isotropic"))
    found = shape_matters(few)
    assert found.verdict == "undecided"
    assert found.reason.startswith("4 seeds have SGD, isotropic and covariance-shaped noise with a whole window, 5 are needed")
    other = [
        replace(run, settings=dict(run.settings) | {"noise_batch_size": 32}) if arm_of(run) == "covariance" else run
        for run in made()
    ]
    assert "the noises are of batches of 32, 64, expected of one size" in shape_matters(other).reason
    runs = made()
    top = runs[0].measured["curvature"]
    runs[0] = replace(
        runs[0],
        measured=dict(runs[0].measured)
        | {"curvature": top.assign(sharpness_outcome=("step", np.full(2, int(Outcome.not_converged), np.int8)))},
    )
    found = shape_matters(runs)
    assert found.verdict == "undecided"
    assert "decisive: isotropic sharpness" in found.reason


def test_a_vanished_loss_is_not_in_regime():
    found = shape_matters(made(loss=0.05 * 2.3 * 0.99))
    assert (found.verdict, found.n) == ("not in regime", 25)
    assert shape_matters(made(loss=0.05 * 2.3 * 1.01)).verdict == "supported"


def test_wrong_signs_fail():
    assert shape_matters(arms(3, isotropic=(1 / 0.2, 1 / 1.8))).verdict == "contradicted"
    assert shape_matters(arms(3, isotropic=(0.2, 1 / 1.8))).verdict == "contradicted"
    assert shape_matters(arms(3, covariance=(0.2, 1.8))).verdict == "contradicted"


@pytest.mark.parametrize("preset", ["quick", "standard", "paper"])
def test_the_arms_differ_in_their_noise_alone(preset):
    described = [Experiment(**told) for told in claims["W14"].experiments[preset](2)]
    assert len(described) == 5 * PAIRS
    shared = {(e.model.model_dump_json(), e.data.model_dump_json(), e.phases[0].lr, e.phases[0].updates) for e in described}
    assert len(shared) == 1
    phases = [e.phases[0] for e in described if e.seed == 2000]
    (sgd,) = (p for p in phases if p.walker == "sgd" and p.batch_size != "full")
    assert sgd.replacement
    assert {p.batch_size for p in phases if p is not sgd} == {"full"}
    noises = {p.options["shape"]: p.options for p in phases if p.walker == "shaped"}
    assert set(noises) == {"isotropic", "diagonal", "covariance"}
    assert {o["noise_batch_size"] for o in noises.values()} == {sgd.batch_size}
    assert {o["examples"] for o in noises.values()} == {60000}
    for e in described:
        window = e.record.snapshots
        assert window.at[-1] + window.length == e.phases[0].updates
