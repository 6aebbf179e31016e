"""The search for a strength of the noise, on medians written down and on a well whose waiting time is known."""

from math import exp, inf, log, sqrt

import pytest
import torch

from sgdscope.errors import ArgumentError
from sgdscope.escapes import Threshold, Wells, White, bisect, escape, median_wait
from sgdscope.theory.passage import mean_passage_time

PAST = Threshold(1.0)
AIM = sqrt(100 * 2000)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def test_a_median_is_that_of_the_walkers():
    asked = {"lr": 0.1, "walkers": 10}
    whole = escape(Wells(), PAST, White(0.12), generator=seeded(3), **asked).times
    found = median_wait(Wells(), PAST, White(0.12), max_updates=10**5, generator=seeded(3), **asked)
    assert found == sorted(whole)[4] != sorted(whole)[5]
    assert median_wait(Wells(), PAST, White(0.12), max_updates=int(found) - 1, generator=seeded(3), **asked) == inf
    assert median_wait(Wells(), PAST, White(500.0), generator=seeded(3), **asked) < 1  # thrown to where descent diverges


def test_a_median_is_log_two_of_the_exact_time():
    exact = mean_passage_time(lambda x: x**3 - x, 0.12, -1.0, 1.0, wall=-4.0).value / 0.05
    found = median_wait(Wells(), PAST, White(0.12), lr=0.05, walkers=600, max_updates=20_000, generator=seeded(5))
    assert found == pytest.approx(log(2) * exact, rel=0.15)  # 3 standard errors of a median of 600; the mean is 44 % away


@pytest.mark.parametrize("first", [0.003, 0.9, 400.0])
def test_bisection_ends_near_the_value_that_was_written_down(first):
    asked = []

    def median(value):
        asked.append(value)
        return AIM * exp(6 * (0.3 - value) / 0.3) if value < 2 else 0.0  # at 0.3 the aim; above 2 walkers diverge

    found = bisect(median, first, name="lr")
    assert abs(log(found.median / AIM)) <= log(1.5)
    assert abs(found.value - 0.3) <= 0.3 * log(1.5) / 6 + 1e-12
    assert found.value == asked[-1]
    assert found.trials == len(asked) <= 16


def test_the_nearest_within_is_taken_where_trials_run_out():
    found = bisect(lambda v: 1500.0 if v < 1 else 60.0, 0.5, name="lr", trials=5)  # a step: the aim is never met
    assert (found.median, found.trials) == (1500.0, 5)
    assert 0 < found.value < 1


def test_nothing_beyond_the_most_is_tried():
    tried = []

    def median(value):
        tried.append(value)
        return inf

    with pytest.raises(ArgumentError, match=r"lr: at none of 5 values.*after 100 to 2000 updates.*5: inf; change the valley"):
        bisect(median, 0.5, name="lr", most=5.0)
    assert tried == [0.5, 1.0, 2.0, 4.0, 5.0]
    assert bisect(lambda v: 1900.0, 0.5, name="lr", most=0.5).median > 1800
    with pytest.raises(ArgumentError, match="D: at none of 4 values"):
        bisect(lambda v: 0.0, 1.0, name="D", trials=4)
    with pytest.raises(ArgumentError, match="first: expected a finite number > 0"):
        bisect(median, 0.0, name="lr")
    with pytest.raises(ArgumentError, match="within: expected a finite number between 0 and 50"):
        bisect(median, 1.0, name="lr", within=(60.0, 50.0))
