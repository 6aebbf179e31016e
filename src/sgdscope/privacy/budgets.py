"""Budgets: how much privacy each record has spent, and the refusal of the use that would spend more than it has."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from sgdscope.errors import ArgumentError, SgdscopeError
from sgdscope.ranges import whole

Spending = Literal["fixed", "halving"]
SPENDINGS = ("fixed", "halving")
HALVINGS = 1000  # uses after which eps 2^-i leaves the range of double precision


class BudgetError(SgdscopeError, RuntimeError):
    """A record has no privacy left for the use that was asked of it."""


class PrivacyLedger:
    """How often each record was used, what that has cost it, and whether it may be used again.

    Each record has the same budget eps for all its uses together. Pure eps-differential privacy of one record adds up over
    its uses (sequential composition); uses of other records cost it nothing. What a use costs:

        fixed:    eps / uses for each of the first `uses` uses; the next one is refused.
        halving:  eps 2^-i for the i-th use, i = 1, 2, ...: after k uses eps (1 - 2^-k) is spent, and none is refused until
                  the cost leaves the range of double precision (use 1001).

    The cost depends on the number of uses alone, never on the data: the released code's adaptive sensitivity does not.

    Args:
        eps: budget of a record, > 0; infinity asks for no privacy, and nothing is ever refused.
        spending: ``"fixed"`` or ``"halving"``.
        uses: T >= 1, of the spending ``"fixed"``.

    Raises:
        ArgumentError: out of range.

    Source: Hegedus & Jelasity 2016, as in the authors' code (specification, section 4); Dwork et al. 2006 for the sum.

    Example:
        >>> ledger = PrivacyLedger(0.6, uses=2)
        >>> ledger.charge([4]).tolist(), ledger.charge([4]).tolist(), ledger.remaining(4)
        ([0.3], [0.3], 0.0)
    """

    def __init__(self, eps: float, *, spending: Spending = "fixed", uses: int = 10) -> None:
        if isinstance(eps, bool) or not isinstance(eps, int | float) or not eps > 0:
            raise ArgumentError(f"eps: expected a number > 0, the privacy budget of a record, got {eps!r}")
        if spending not in SPENDINGS:
            raise ArgumentError(f"spending: expected 'fixed' or 'halving', got {spending!r}")
        whole("uses", uses, 1)
        self.eps, self.spending, self.uses = float(eps), spending, uses
        self._counts: NDArray[np.int64] = np.zeros(0, np.int64)

    @property
    def limit(self) -> int | None:
        """Uses that a record has; None if it has no limit."""
        if math.isinf(self.eps):
            return None
        return self.uses if self.spending == "fixed" else HALVINGS

    def _records(self, records: Iterable[int]) -> NDArray[np.int64]:
        ids = np.asarray([int(r) for r in records], np.int64)
        if not len(ids) or (ids < 0).any():
            raise ArgumentError(f"records: expected at least one number >= 0, got {ids.tolist()[:5]}")
        if len(np.unique(ids)) < len(ids):
            raise ArgumentError("records: one is named twice; it would weigh twice in the mean, and its sensitivity be double")
        if (most := int(ids.max()) + 1) > len(self._counts):
            self._counts = np.concatenate([self._counts, np.zeros(most - len(self._counts), np.int64)])
        return ids

    def used(self, record: int) -> int:
        """How often a record was used."""
        return int(self._counts[record]) if 0 <= record < len(self._counts) else 0

    def spent(self, record: int) -> float:
        """The privacy that a record has spent; never above eps."""
        return self._cost_of_first(self.used(record))

    def remaining(self, record: int) -> float:
        """The privacy that a record has left."""
        return self.eps - self.spent(record) if math.isfinite(self.eps) else math.inf

    def _cost_of_first(self, count: int) -> float:
        if count == 0 or math.isinf(self.eps):
            return math.inf if count else 0.0
        return self.eps * (count / self.uses) if self.spending == "fixed" else self.eps * (1 - 2.0**-count)

    def left(self, records: Iterable[int]) -> bool:
        """Whether each of some records may be used once more.

        Args:
            records: their numbers.

        Returns:
            False if one of them has spent its budget.
        """
        ids, limit = self._records(records), self.limit
        return limit is None or bool((self._counts[ids] < limit).all())

    def admit(self, records: Iterable[int]) -> NDArray[np.int64]:
        """Refuse records that have nothing left; nothing is charged.

        Args:
            records: their numbers, each once.

        Returns:
            [n], the numbers.

        Raises:
            ArgumentError: no record, a negative number, or one named twice.
            BudgetError: one has spent its budget.
        """
        ids, limit = self._records(records), self.limit
        if limit is not None and (spent := ids[self._counts[ids] >= limit]).size:
            raise BudgetError(
                f"record {spent[0]} has spent its privacy budget of {self.eps:g} in {self.used(int(spent[0]))} uses; "
                "leave it out, or start with a larger budget or more uses of less each"
            )
        return ids

    def charge(self, records: Iterable[int]) -> NDArray[np.float64]:
        """Enter one use of each of some records.

        Args:
            records: their numbers, each once.

        Returns:
            [n], the eps of this use of each; infinity where no privacy is asked for.

        Raises:
            ArgumentError: no record, a negative number, or one named twice.
            BudgetError: one has spent its budget; then none is charged.
        """
        ids = self.admit(records)
        limit, before = self.limit, self._counts[ids]
        self._counts[ids] += 1
        if self.spending == "fixed" or limit is None:
            return np.full(len(ids), self.eps / self.uses if limit is not None else math.inf)
        return np.asarray(self.eps * 2.0 ** -(before + 1.0), np.float64)

    def state_dict(self) -> dict[str, Any]:
        """Budget, spending and how often each record was used, as JSON types."""
        return {"eps": self.eps, "spending": self.spending, "uses": self.uses, "used": self._counts.tolist()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from `state_dict`.

        Args:
            state: not changed.

        Raises:
            ArgumentError: it is of a ledger with another budget or spending: what was spent there is not what it would be here.
        """
        mine, other = ((s["eps"], s["spending"], s["uses"]) for s in (self.state_dict(), state))
        if mine != other:
            raise ArgumentError(f"state: expected that of a ledger with (eps, spending, uses) = {mine}, got {other}")
        self._counts = np.asarray(state["used"], np.int64).reshape(-1).copy()
