"""Numbers in words: a value, a value with its standard error, an interval.

One notation everywhere: ``a ± b`` is a value with its standard error, ``[a, b]`` an interval, of 95 % where no other level is
said. Value and error end at the same digit and share one power of ten. Thousands have commas, but not within brackets. The
texts are plain (``-``, ``e-5``); a page dresses them up.
"""

from __future__ import annotations

from math import floor, isfinite, isnan, log10
from typing import SupportsFloat, SupportsIndex

Number = SupportsFloat | SupportsIndex
NOTHING = "–"  # in place of a number that is not known
ROUNDING = 1e-12  # of a value: a smaller error is none
DIGITS = 3  # of a value without an error
LONGEST = 7  # digits from the first of a value to the last of its error; beyond, the two stand each for itself
SMALLEST, LARGEST = -4, 6  # decades that are written without a power of ten: from 1e-4 to below 1e6
NOTE = "a ± b: standard error; [a, b]: 95 % interval"


def number(value: Number, *, digits: int = DIGITS) -> str:
    """Write a number with three significant digits, whole numbers in full.

    Args:
        value: the number; whole where its type is.
        digits: significant ones, >= 1.

    Returns:
        Such as ``0.0123``, ``2,350``, ``1.2e-5``, ``inf``; a dash for NaN.

    Example:
        >>> number(2349.0), number(1.2e-05), number(17210), number(-0.5)
        ('2,350', '1.2e-5', '17,210', '-0.5')
    """
    plain = float(value)
    if isnan(plain):
        return NOTHING
    if not isfinite(plain):
        return "-inf" if plain < 0 else "inf"
    if isinstance(value, SupportsIndex):
        return f"{int(value):,}"
    if plain == 0:
        return "0"
    text, _, power = f"{plain:.{digits - 1}e}".partition("e")
    decade = int(power)
    if SMALLEST <= decade < LARGEST:
        return _trimmed([f"{round(plain, digits - 1 - decade):,.{max(0, digits - 1 - decade)}f}"])[0]
    return f"{_trimmed([text])[0]}e{decade}"


def with_error(value: Number, error: Number) -> str:
    """Write a value with its standard error, to two digits of the error.

    Args:
        value: the number.
        error: its standard error, >= 0.

    Returns:
        ``a ± b``, or ``(a ± b)e-5``; the value alone where the error is rounding, infinite or not known.

    Example:
        >>> with_error(2351.0, 388.0), with_error(1.2e-05, 3e-06), with_error(0.5, float("nan"))
        ('2,350 ± 390', '(1.20 ± 0.30)e-5', '0.5')
    """
    mean, spread = float(value), float(error)
    if not isfinite(mean) or not isfinite(spread) or spread <= ROUNDING * abs(mean):
        return number(value)
    if _too_long([mean, spread], spread):
        return f"{number(value)} ± {number(spread, digits=2)}"
    (first, second), power = _together([mean, spread], spread, ",")
    return f"({first} ± {second}){power}" if power else f"{first} ± {second}"


def interval(low: Number, high: Number) -> str:
    """Write an interval, to two digits of half its width.

    Args:
        low: its lower end.
        high: its upper end.

    Returns:
        ``[a, b]``, or ``[a, b]e-5``; each end as it is where one is infinite or not known.

    Example:
        >>> interval(109.2, 132.8), interval(0.97, 1.0), interval(3e-6, float("inf"))
        ('[109, 133]', '[0.97, 1.00]', '[3e-6, inf]')
    """
    ends = [float(low), float(high)]
    half = (ends[1] - ends[0]) / 2
    if not isfinite(half) or half <= 0 or _too_long(ends, half):
        return f"[{', '.join(number(end, digits=LONGEST if isfinite(half) else DIGITS).replace(',', '') for end in ends)}]"
    texts, power = _together(ends, half)
    return f"[{', '.join(_trimmed(texts, least=2))}]{power}"


def with_interval(value: Number, low: Number, high: Number) -> str:
    """Write a value with its interval, all to two digits of half the width.

    Args:
        value: the number.
        low: the lower end.
        high: the upper end.

    Returns:
        ``v [a, b]``, or ``(v [a, b])e-5``; the value alone where no end is known.

    Example:
        >>> with_interval(121.4, 109.2, 132.8), with_interval(1.2e-05, 1e-05, 1.4e-05)
        ('121 [109, 133]', '(1.20 [1.00, 1.40])e-5')
    """
    ends = [float(low), float(high)]
    half = (ends[1] - ends[0]) / 2
    if isnan(ends[0]) and isnan(ends[1]):
        return number(value)
    if not isfinite(half) or not isfinite(float(value)) or half <= 0 or _too_long([float(value), *ends], half):
        return f"{number(value)} {interval(low, high)}"
    (middle, *rest), power = _together([float(value), *ends], half)
    text = f"{middle} [{', '.join(rest)}]"
    return f"({text}){power}" if power else text


def _too_long(values: list[float], spread: float) -> bool:
    """Whether numbers that end at the second digit of the spread have more digits than anyone reads."""
    return max(_decade(v, 1) for v in values if v != 0) - (_decade(spread, 2) - 1) >= LONGEST


def _together(values: list[float], spread: float, grouped: str = "") -> tuple[list[str], str]:
    """Numbers that end at the second digit of the spread, and the power of ten that they share (empty where there is none)."""
    last = _decade(spread, 2) - 1
    highest = max(_decade(v, 1) for v in values if v != 0)
    shared = 0 if SMALLEST <= highest < LARGEST else highest
    scaled = [round(v, -last) / 10.0**shared + 0.0 for v in values]
    return [f"{v:{grouped}.{max(0, shared - last)}f}" for v in scaled], f"e{shared}" if shared else ""


def _decade(value: float, digits: int) -> int:
    """The power of ten of the first digit, after rounding to so many."""
    power: int = floor(log10(abs(value)))
    return power + int(round(abs(value) / 10.0 ** (power - digits + 1)) >= 10**digits)


def _trimmed(texts: list[str], least: int = 0) -> list[str]:
    """Numbers without the zeros in which all of them end, down to so many decimals."""
    while all("." in t and t.endswith("0") and len(t.rpartition(".")[2]) > least for t in texts):
        texts = [t[:-1] for t in texts]
    return [t.removesuffix(".") for t in texts]
