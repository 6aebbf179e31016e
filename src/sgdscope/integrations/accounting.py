"""What Gaussian noise on Poisson batches has spent, by the accountants of dp-accounting and, as a second opinion, of opacus."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from typing import Any

from sgdscope.errors import ArgumentError, NotAvailableError, unknown

ACCOUNTANTS = ("rdp", "pld", "opacus-rdp", "opacus-prv")
_RDP_ORDERS = [1 + x / 10.0 for x in range(1, 100)] + list(range(12, 64))  # those that opacus searches


def _module(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name != name.split(".", maxsplit=1)[0]:
            raise
        raise NotAvailableError(f"{error.name} is not installed; pip install 'sgdscope[dp]'") from error


def epsilon(history: Sequence[tuple[float, float, int]], delta: float, accountant: str = "pld") -> float:
    """The eps that a training run has spent at a delta, an upper bound.

    Args:
        history: rows (noise multiplier > 0, sample rate in (0, 1], steps >= 1), as `PrivateTraining.history` gives.
        delta: in (0, 1); below 1 / N for N examples, or releasing one at random would count as private.
        accountant: ``"pld"`` (privacy loss distribution, the tightest) or ``"rdp"`` of dp-accounting; ``"opacus-rdp"`` or
            ``"opacus-prv"`` of opacus.

    Returns:
        eps.

    Raises:
        ArgumentError: out of range.
        UnknownNameError: no such accountant.
        NotAvailableError: its package is not installed.

    Source: Mironov 2017 (1702.07476); Koskela et al. 2020; Gopi et al. 2021 (2106.02848).
    """
    if not 0 < delta < 1:
        raise ArgumentError(f"delta: expected a probability 0 < delta < 1, got {delta!r}")
    if accountant not in ACCOUNTANTS:
        error = unknown("accountant", accountant, ACCOUNTANTS)
        raise error
    for sigma, rate, steps in history:
        if not (sigma > 0 and 0 < rate <= 1 and steps >= 1):
            row = (sigma, rate, steps)
            raise ArgumentError(f"history: expected noise multiplier > 0, 0 < sample rate <= 1 and steps >= 1, got {row}")
    if not history:
        raise ArgumentError("history: expected at least one row (noise multiplier, sample rate, steps), got none")
    if accountant.startswith("opacus"):
        kind = {"opacus-rdp": "RDPAccountant", "opacus-prv": "PRVAccountant"}[accountant]
        judge = getattr(_module("opacus.accountants"), kind)()
        judge.history = [tuple(row) for row in history]
        return float(judge.get_epsilon(delta=delta))
    dp = _module("dp_accounting")
    if accountant == "pld":
        judge = _module("dp_accounting.pld.pld_privacy_accountant").PLDAccountant()
    else:
        judge = _module("dp_accounting.rdp.rdp_privacy_accountant").RdpAccountant(_RDP_ORDERS)
    for sigma, rate, steps in history:
        judge.compose(dp.PoissonSampledDpEvent(rate, dp.GaussianDpEvent(sigma)), steps)
    return float(judge.get_epsilon(delta))
