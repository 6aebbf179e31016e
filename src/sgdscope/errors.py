"""Exceptions for wrong use, and the outcomes a measurement can have.

Wrong use raises; a measurement that did not work out returns an `Outcome`. The two are never mixed.
Each exception also inherits the built-in one that a caller would expect.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class SgdscopeError(Exception):
    """Anything that this package raises on purpose."""


class ArgumentError(SgdscopeError, ValueError):
    """An argument is out of range, of the wrong shape or does not fit another one."""


class DataError(SgdscopeError, ValueError):
    """Data that cannot be used: empty, truncated, foreign or inconsistent."""


class UnknownNameError(SgdscopeError, LookupError):
    """A name that no catalogue knows."""


class SurfaceError(SgdscopeError, RuntimeError):
    """A loss surface that failed its own proof; the message names the module or the argument."""


class RecorderError(SgdscopeError, RuntimeError):
    """The recorder cannot go on: its writer failed or the loop does what it cannot follow."""


class StoreError(SgdscopeError, OSError):
    """A run directory cannot be created, written or read."""


class CorruptRunError(StoreError):
    """A committed record does not read back; the message names run, step and file."""


class ReplayError(SgdscopeError, RuntimeError):
    """A replayed run did not reproduce what was recorded, or cannot be replayed here."""


class NotAvailableError(SgdscopeError, LookupError):
    """Something was asked of a run that it did not record."""


class Outcome(IntEnum):
    """What became of a measured value; stored beside it as int8 with CF flag attributes."""

    ok = 0
    not_converged = 1
    not_applicable = 2

    @property
    def sentence(self) -> str:
        """The outcome in words.

        Returns:
            One sentence.
        """
        return _SENTENCES[self]


_SENTENCES = {
    Outcome.ok: "The value was measured.",
    Outcome.not_converged: "The budget ended before the residual met its tolerance; the value is kept with its error.",
    Outcome.not_applicable: "The quantity does not exist here; the attribute 'reason' says why.",
}

OUTCOME_ATTRS: dict[str, object] = {
    "flag_values": [int(outcome) for outcome in Outcome],
    "flag_meanings": " ".join(outcome.name for outcome in Outcome),
}


def unknown(kind: str, name: str, known: Iterable[str]) -> UnknownNameError:
    """Build the error for a name that is not in a catalogue, with the nearest name.

    Args:
        kind: what was looked up, such as ``"quantity"``.
        name: the name that came.
        known: every name that would have been accepted.

    Returns:
        The exception, to be raised by the caller.

    Example:
        >>> str(unknown("quantity", "valey", ["valley", "motion"]))
        "no quantity is called 'valey'; did you mean 'valley'? Known: motion, valley"
    """
    names = sorted(known)
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.4)
    hint = f"; did you mean '{nearest[0]}'?" if nearest else ";"
    return UnknownNameError(f"no {kind} is called '{name}'{hint} Known: {', '.join(names) or 'none'}")
