"""The forecast of annealing: laws against curves that obey them, averages against frozen updates and closed forms."""

import math

import numpy as np
import pytest

from sgdscope.errors import ArgumentError
from sgdscope.forecast import LAWS, Decay, decay, extrapolate, predict

T, N = 3700.0, 370.0
CENTRES = [T - 2.5 * N, T - 1.5 * N, T - 0.5 * N]
CURVES = {
    "linear": lambda t: 2.3 - 1.7e-4 * t,
    "exponential": lambda t: 2.3 * math.exp(-t / 1900),
    "log_time": lambda t: 2.3 - 0.19 * math.log(t),
    "power": lambda t: 2.3 * t**-0.37,
}


@pytest.mark.parametrize("shape", ["linear", "sqrt", "cosine"])
@pytest.mark.parametrize("law", LAWS)
def test_a_curve_that_obeys_a_law_is_continued_exactly_and_its_law_chosen(law, shape):
    curve, fall = CURVES[law], decay(shape)
    told = predict([curve(t) for t in CENTRES], 2.5, step=T, width=N, decay=fall)
    truth = curve(T + {"linear": 0.5, "sqrt": 1 / 3, "cosine": 0.5}[shape] * N)
    assert told.laws[LAWS.index(law)] == pytest.approx(truth, rel=1e-4)  # the midpoint rule of the square root
    assert int(told.weights.argmax()) == LAWS.index(law)
    others = np.delete(told.laws, LAWS.index(law))
    assert abs(told.annealed - truth) < 0.25 * np.abs(others - truth).max()
    assert told.height == pytest.approx(2.5 - curve(CENTRES[2]))
    assert told.height + told.progress == pytest.approx(told.drop)
    assert told.annealed == pytest.approx(2.5 - told.drop)


def test_the_formulas_for_linear_decay_are_the_published_ones():
    c, a, b = 1.9, 1.5, 1.27
    told = predict([c, a, b], 1.6, step=T, width=N)
    t = dict(zip("cab", CENTRES, strict=True))
    target = T + N / 2
    laws = [
        2 * b - a,
        b * b / a,
        b + (b - a) * math.log(target / t["b"]) / math.log(t["b"] / t["a"]),
        b * (target / t["b"]) ** (math.log(b / a) / math.log(t["b"] / t["a"])),
    ]
    back = [
        2 * a - c,
        a * a / c,
        a + (a - c) * math.log(t["b"] / t["a"]) / math.log(t["a"] / t["c"]),
        a * (t["b"] / t["a"]) ** (math.log(a / c) / math.log(t["a"] / t["c"])),
    ]
    weights = [1 / ((e - b) ** 2 + (0.001 * b) ** 2) for e in back]
    assert told.laws == pytest.approx(laws, rel=1e-12)
    assert told.weights == pytest.approx(np.array(weights) / sum(weights), rel=1e-9)
    assert told.annealed == pytest.approx(np.dot(laws, weights) / sum(weights), rel=1e-12)
    assert told.hindcast == pytest.approx(np.dot(back, weights) / sum(weights), rel=1e-12)


def test_a_decay_that_ends_above_zero_keeps_its_share_of_the_height():
    losses = [CURVES["linear"](t) for t in CENTRES]
    told = predict(losses, 2.5, step=T, width=N, decay=decay("hold", floor=0.3))
    known = predict(losses, 2.5, step=T, width=N, decay=Decay(0.3, 0.0))
    assert told.annealed == pytest.approx(known.annealed + 0.3 * (2.5 - losses[2]))
    assert decay("cosine", floor=0.2) == Decay(pytest.approx(0.6), pytest.approx(0.2))
    assert decay(lambda f: (1 - f) ** 2, floor=0.1).area == pytest.approx(0.1 + 0.9 / 3, rel=1e-6)


def test_many_curves_at_once_and_losses_below_zero():
    rows = np.array([[1.9, 1.5, 1.27], [0.3, -0.1, -0.4]])
    told = predict(rows, np.array([1.6, 0.2]), step=T, width=N)
    alone = [predict(row, now, step=T, width=N) for row, now in zip(rows, (1.6, 0.2), strict=True)]
    assert told.annealed == pytest.approx([float(one.annealed) for one in alone], rel=1e-12)
    assert told.half_width == pytest.approx([float(one.half_width) for one in alone], rel=1e-12)
    assert (told.weights[1] > 0).tolist() == [True, False, True, False]
    assert np.isnan(predict([np.nan, 1.0, 0.9], 1.1, step=T, width=N).annealed)


def test_a_curve_that_jumps_is_told_by_the_hindcast_and_widens_the_interval():
    smooth, jumpy = (predict([c, 1.5, 1.27], 1.6, step=T, width=N) for c in (1.77, 1.5))
    assert abs(jumpy.hindcast - 1.27) > 10 * abs(smooth.hindcast - 1.27)
    assert jumpy.half_width > 2 * smooth.half_width


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: predict([1.0, 2.0], 1.0, step=T, width=N), r"losses: expected three .* got shape \(2,\)"),
        (lambda: predict([3.0, 2.0, 1.0], 1.0, step=T, width=T / 2), "width: expected 1 to step / 3 = 1233 steps, got 1850"),
        (lambda: decay("steep"), "shape: expected one of linear, sqrt, cosine, hold or a function .* got 'steep'"),
        (lambda: decay(lambda f: 2 * f), "shape: expected values from 0 to 1, got 0.000244 to 2"),
        (lambda: decay(floor=1.0), "floor: expected the share .* 0 <= floor < 1, got 1.0"),
        (lambda: extrapolate(1.0, 0.9, times=(5.0, 4.0), target=6.0), "times, target: expected t_A < t_B <= t"),
    ],
)
def test_wrong_use_is_refused(wrong, message):
    with pytest.raises(ArgumentError, match=message):
        wrong()
