"""Refusing arguments that are out of range."""

import re

import numpy as np
import pytest

from sgdscope.errors import ArgumentError
from sgdscope.ranges import choice, number, positive, whole


@pytest.mark.parametrize("value", [7, np.int32(7), np.uint8(7)])
def test_whole_numbers_come_back_as_python_has_them(value):
    assert whole("k", value, 7) == 7
    assert type(whole("k", value, 7)) is int


@pytest.mark.parametrize("value", [6, True, 7.0, "7", None, np.bool_(True)])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(ArgumentError, match=re.escape(f"k: expected a whole number >= 7, got {value!r}")):
        whole("k", value, 7)
    with pytest.raises(ArgumentError, match="k: expected a whole number >= 0"):
        whole("k", False, 0)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.5, 3.5, True, "1", None])
def test_what_is_no_number_of_the_range_is_refused(value):
    with pytest.raises(ArgumentError, match=re.escape(f"share: expected a finite number with 0 <= share < 3, got {value!r}")):
        number("share", value, "with 0 <= share < 3", lambda x: 0 <= x < 3)
    found = number("share", np.float32(2.5), "with 0 <= share < 3", lambda x: 0 <= x < 3)
    assert (type(found), found.hex()) == (float, (2.5).hex())


def test_positive_numbers_lie_above_zero():
    assert positive("lr", 5e-324) > 0
    with pytest.raises(ArgumentError, match="lr: expected a finite number > 0, got 0"):
        positive("lr", 0)


def test_a_choice_is_one_of_the_words():
    assert choice("mode", "cold", ("track", "cold")) == "cold"
    with pytest.raises(ArgumentError, match="mode: expected one of track, cold, got 'warm'"):
        choice("mode", "warm", ("track", "cold"))
