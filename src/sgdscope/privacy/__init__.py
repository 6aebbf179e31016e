"""Differential privacy of single records: noise with a likelihood ratio that is bounded, and budgets that cannot be overspent."""

from sgdscope.privacy.budgets import BudgetError, PrivacyLedger
from sgdscope.privacy.mechanisms import NORMS, clipped, gamma_noise, laplace_noise, log_ratio, noise, sensitivity

__all__ = [
    "NORMS",
    "BudgetError",
    "PrivacyLedger",
    "clipped",
    "gamma_noise",
    "laplace_noise",
    "log_ratio",
    "noise",
    "sensitivity",
]
