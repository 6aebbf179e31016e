"""Numbers in words: read back they are the numbers; value and error end at one digit and share one power of ten."""

import math
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sgdscope.notation import interval, number, with_error, with_interval
from sgdscope.report.page import dressed

MAGNITUDES = st.floats(1e-9, 1e9).flatmap(lambda v: st.sampled_from([v, -v]))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (2349.0, "2,350"),
        (123456.0, "123,000"),
        (1234567.0, "1.23e6"),
        (17210, "17,210"),
        (np.int64(-5000), "-5,000"),
        (0.00012349, "0.000123"),
        (0.00009999, "0.0001"),  # rounded up over the decade that is written with a power of ten
        (1.2e-05, "1.2e-5"),
        (-0.5, "-0.5"),
        (99.96, "100"),
        (0.0, "0"),
        (math.nan, "–"),
        (-math.inf, "-inf"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


@pytest.mark.parametrize(
    ("value", "error", "text"),
    [
        (2351.0, 388.0, "2,350 ± 390"),
        (1.2e-05, 3e-06, "(1.20 ± 0.30)e-5"),
        (2.35e7, 3.9e6, "(2.35 ± 0.39)e7"),
        (0.0376, 0.00212, "0.0376 ± 0.0021"),
        (-3.3, 0.0996, "-3.30 ± 0.10"),  # the error gains a digit in rounding
        (0.0, 0.21, "0.00 ± 0.21"),
        (-2e-07, 1.3e-3, "0.0000 ± 0.0013"),  # no minus zero
        (0.5, 1e-9, "0.5 ± 1e-9"),  # nobody reads ten digits
        (0.5, 1e-14, "0.5"),
        (0.5, math.nan, "0.5"),
        (math.nan, 0.5, "–"),
    ],
)
def test_a_value_and_its_error_end_at_one_digit(value, error, text):
    assert with_error(value, error) == text


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (109.2, 132.8, "[109, 133]"),
        (1580.0, 3131.0, "[1580, 3130]"),  # no commas beside the comma
        (0.97, 1.0, "[0.97, 1.00]"),
        (-0.3111, -0.1222, "[-0.311, -0.122]"),
        (6e-6, 1.8e-5, "[0.60, 1.80]e-5"),
        (1.0, 1.0, "[1, 1]"),
        (3e-6, math.inf, "[3e-6, inf]"),
        (math.nan, math.nan, "[–, –]"),
    ],
)
def test_intervals(low, high, text):
    assert interval(low, high) == text


def test_a_value_and_its_interval_end_at_one_digit():
    assert with_interval(121.4, 109.2, 132.8) == "121 [109, 133]"
    assert with_interval(1.2e-5, 6e-6, 1.8e-5) == "(1.20 [0.60, 1.80])e-5"
    assert with_interval(0.5, math.nan, math.nan) == "0.5"
    assert with_interval(12.34, 7.0, math.inf) == "12.3 [7, inf]"


def read(text, power):
    return float(text.replace(",", "")) * 10.0 ** int(power or 0)


@given(MAGNITUDES, st.floats(1e-6, 1e3))
def test_what_is_written_is_the_value_within_a_tenth_of_its_error(value, relative):
    error = abs(value) * relative
    text = with_error(value, error)
    told = re.fullmatch(r"\((\S+) ± (\S+)\)e(-?\d+)|(\S+) ± (\S+)", text)
    first, second, power = told[1] or told[4], told[2] or told[5], told[3]
    if "e" in second or len(first.partition(".")[2]) != len(second.partition(".")[2]):  # too many digits: each for itself
        assert relative < 1e-4
        return
    assert read(first, power) == pytest.approx(value, abs=error / 10, rel=1e-12)
    assert read(second, power) == pytest.approx(error, rel=0.051)


def test_a_page_writes_true_minus_signs_and_powers_of_ten():
    assert dressed("(-1.20 ± 0.30)e-5") == "(−1.20 ± 0.30) × 10<sup>−5</sup>"
    assert dressed("[-0.60, 1.80]e-5 and 1.2e06") == "[−0.60, 1.80] × 10<sup>−5</sup> and 1.2 × 10<sup>6</sup>"
    assert dressed("mean [-inf, inf]") == "mean [−∞, ∞]"
    assert dressed("run-1-curvature, 2-3, lr0.6-seed0") == "run-1-curvature, 2-3, lr0.6-seed0"  # names are no numbers
