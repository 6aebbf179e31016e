"""Refuse arguments that are out of range, at once and by name."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from numbers import Integral, Real
from typing import Any

from sgdscope.errors import ArgumentError


def whole(name: str, value: Any, least: int) -> int:
    """A whole number of a least size.

    Args:
        name: of the argument, for the message.
        value: what came; Python's and NumPy's integers count, booleans and floats do not.
        least: smallest number allowed.

    Returns:
        The number.

    Raises:
        ArgumentError: no whole number, or below `least`.
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ArgumentError(f"{name}: expected a whole number >= {least}, got {value!r}")
    return int(value)


def number(name: str, value: Any, expected: str, inside: Callable[[float], bool]) -> float:
    """A finite number in a range.

    Args:
        name: of the argument, for the message.
        value: what came; booleans do not count.
        expected: the range in words, such as ``">= 0"``.
        inside: whether a number lies in it.

    Returns:
        The number.

    Raises:
        ArgumentError: no finite number, or outside.
    """
    if isinstance(value, bool) or not isinstance(value, Real) or not (math.isfinite(value) and inside(float(value))):
        raise ArgumentError(f"{name}: expected a finite number {expected}, got {value!r}")
    return float(value)


def positive(name: str, value: Any) -> float:
    """A finite number above zero.

    Args:
        name: of the argument, for the message.
        value: what came.

    Returns:
        The number.

    Raises:
        ArgumentError: it is not.
    """
    return number(name, value, "> 0", lambda x: x > 0)


def choice(name: str, value: Any, known: Collection[str]) -> str:
    """One of a few words.

    Args:
        name: of the argument, for the message.
        value: what came.
        known: the words allowed.

    Returns:
        The word.

    Raises:
        ArgumentError: another word.
    """
    if value not in known:
        raise ArgumentError(f"{name}: expected one of {', '.join(known)}, got {value!r}")
    return str(value)
