"""Best step, widths and first rise of curves whose answers are known; the valley's own curves are tested with it."""

import numpy as np
import pytest

from sgdscope.curves import first_rise, vertex, widths

ALPHAS = (0.25, 0.33, 0.5, 1.0, 2.0)
POSITIONS = np.array([-16.0, -8, -4, -2, -1, -0.5, -0.25, 0, 0.25, 0.5, 1, 2, 4, 8, 16])


def test_the_best_step_of_parabolas_is_exact_and_its_error_is_that_of_the_ratio():
    rng = np.random.default_rng(3)
    slopes, bends = -1.7 + 0.2 * rng.standard_normal(400), 0.9 + 0.1 * rng.standard_normal(400)
    grid = np.array(ALPHAS)[:, None]
    alpha, error = vertex(ALPHAS, slopes * grid + bends * grid**2, 1e-12)
    assert alpha == pytest.approx(-slopes.mean() / (2 * bends.mean()), rel=1e-12)
    influence = -(slopes + 2 * alpha * bends) / (2 * bends.mean())  # of one curve on the ratio of means
    assert error == pytest.approx(influence.std(ddof=1) / np.sqrt(400), rel=5e-3)


def test_the_fit_is_that_of_least_squares_with_the_origin_among_the_points():
    curve = np.array([-0.3, -0.2, -0.5, -0.1, 1.3])
    bend, slope, _ = np.polyfit([0, *ALPHAS], [0, *curve], 2)
    assert vertex(ALPHAS, curve[:, None], 1e-12)[0] == pytest.approx(-slope / (2 * bend), rel=1e-12)
    assert np.isnan(vertex(ALPHAS, curve[:, None], 1e-12)[1])  # one curve has no scatter


@pytest.mark.parametrize("bend", [-0.4, 0.0, 1e-9])
def test_no_best_step_without_a_bend_above_rounding(bend):
    grid = np.array(ALPHAS)[:, None]
    assert np.isnan(vertex(ALPHAS, -grid + bend * grid**2 * np.ones(3), 1e-8)).all()


def test_widths_of_parabolas_are_exact_on_both_sides():
    for centre, height in ((0.37, 5.0), (-1.4, 3.0), (0.0, 0.3)):
        curve = 2.3 * (POSITIONS - centre) ** 2
        base = 2.3 * centre**2
        left, right, least = widths(POSITIONS, curve, base + height)
        half = np.sqrt((base + height) / 2.3)
        assert left == pytest.approx(half - centre, rel=1e-12)
        assert right == pytest.approx(half + centre, rel=1e-12)
        assert least == pytest.approx(half - abs(centre), rel=1e-12)


def test_the_width_is_the_first_crossing_outward():
    curve = np.interp(POSITIONS, [-16, -2, -1, 0, 2, 4, 8, 16], [9, 9, 0, 1, 5, 1, 1, 7])
    left, right, least = widths(POSITIONS, curve, 4.0)
    assert 1 < left < 2
    assert 1 < right < 2
    assert least == min(left, right)


def test_a_side_that_is_not_reached_is_not_a_number_and_the_other_is_the_smaller():
    slope = np.maximum(POSITIONS, 0.0)
    assert np.isnan(widths(POSITIONS, slope, 3.0)[0])
    assert widths(POSITIONS, slope, 3.0)[1:] == pytest.approx((3.0, 3.0), rel=1e-12)
    left, right, least = widths(POSITIONS[5:], slope[5:], 3.0)  # to the left only half a step was looked at
    assert np.isnan([left, least]).all()
    assert right == pytest.approx(3.0, rel=1e-12)
    assert np.isnan(widths(POSITIONS, slope * 0 + 1, 2.0)).all()
    assert np.isnan(widths(POSITIONS, np.where(POSITIONS > 1, np.inf, 0.0), 2.0)).all()


@pytest.mark.parametrize("start", [1e-6, 0.4, 3.0, 1e5])
def test_the_first_rise_of_a_parabola(start):
    calls = []

    def loss(x):
        calls.append(x)
        return 1.3 - 2.1 * x + 0.7 * x * x

    found = first_rise(loss, start)
    assert found == pytest.approx(3.0, rel=6e-3)
    assert not calls[0]
    assert len(calls) < 2 + 45  # doubling from afar, then 7 halvings


def test_a_loss_that_never_rises_or_rises_at_once_is_said():
    assert np.isnan(first_rise(lambda x: -x, 1.0))
    assert np.isnan(first_rise(lambda x: x, 1.0))
    assert first_rise(lambda x: np.nan if x > 7 else -x, 1.0) == pytest.approx(7.0, rel=6e-3)
