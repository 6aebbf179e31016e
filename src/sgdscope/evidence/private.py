"""Reading what private learners and the walk service did: errors at parameters chosen on other seeds; evidence of numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import exp, inf, log2
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sgdscope.contracts import Evidence

Array = NDArray[np.float64]
Row = tuple[str, float, int, float, float]  # kind, eps, uses, lam, error
LAMS = (0.01, 0.1, 1.0)

LEARNING: Mapping[str, dict[str, Any]] = {
    "quick": {"dataset": "breast_cancer", "eps": [0.1, 0.3, 1.0, 3.0, 10.0], "uses": [1, 2, 4, 8, 16], "lams": list(LAMS)},
    "standard": {"dataset": "banknote", "eps": [0.1, 0.3, 1.0, 3.0, 10.0], "uses": [1, 2, 4, 8, 16], "lams": list(LAMS)},
    "paper": {"dataset": "banknote", "eps": [0.1, 0.3, 1.0, 3.0, 10.0], "uses": [1, 2, 4, 8, 16, 32, 64], "lams": list(LAMS)},
}  # budgets and 0-1 error as recalled of the papers; their data sets are not known
SERVICE: Mapping[str, dict[str, Any]] = {
    "quick": {"nodes": 100, "degree": 20, "cycles": 1000.0, "limit": 11.0},
    "standard": {"nodes": 1000, "degree": 50, "cycles": 1000.0, "limit": 11.0},
    "paper": {"nodes": 10000, "degree": 50, "cycles": 1000.0, "limit": 11.0},
}  # 50-out and a limit of 11 cycles: configuration of the authors' code
LEVELS: Mapping[str, dict[str, float]] = {
    "churn": {"survive": 1.0, "online": 0.8, "session": 50.0},
    "loss": {"survive": 0.99, "online": 1.0, "session": 50.0},
    "churn and loss": {"survive": 0.99, "online": 0.8, "session": 50.0},
}
WALKED: Mapping[str, dict[str, Any]] = {
    "quick": {"dataset": "breast_cancer", "train": 100, "updates": 600, "lam": 0.1, "eps": 100.0, "uses": 6},
    "standard": {"dataset": "banknote", "train": 500, "updates": 5000, "lam": 0.1, "eps": 100.0, "uses": 10},
    "paper": {"dataset": "banknote", "train": 1000, "updates": 10000, "lam": 0.1, "eps": 10.0, "uses": 10},
}
ARMS: Mapping[str, dict[str, Any]] = {
    "none": {"degree": 20},
    "faulty": {"degree": 20, "survive": 0.97, "online": 0.8, "session": 50.0},
}
SEEDS: Mapping[str, int] = {"learning": 8, "service": 6, "walked": 10}
Makers = dict[str, Callable[[int], list[dict[str, Any]]]]


def learning_runs() -> Makers:
    """Descriptions for `gossip.learning`: a seed each, all learners at once.

    Returns:
        Preset -> seed -> descriptions.
    """

    def of(told: Mapping[str, Any]) -> Callable[[int], list[dict[str, Any]]]:
        seeds = range(SEEDS["learning"])
        return lambda seed: [{"name": f"private-{s}", "seed": 1000 * seed + s, **told} for s in seeds]

    return {preset: of(told) for preset, told in LEARNING.items()}


def service_runs() -> Makers:
    """Descriptions for `gossip.service`: each level of faults with each seed.

    Returns:
        Preset -> seed -> descriptions.
    """

    def of(told: Mapping[str, Any]) -> Callable[[int], list[dict[str, Any]]]:
        return lambda seed: [
            {"name": f"service-{level.replace(' ', '-')}-{s}", "seed": 1000 * seed + s, "level": level, **told, **faults}
            for level, faults in LEVELS.items()
            for s in range(SEEDS["service"])
        ]

    return {preset: of(told) for preset, told in SERVICE.items()}


def walked_runs() -> Makers:
    """Descriptions for `gossip.walked`: without and with faults, paired by their seeds.

    Returns:
        Preset -> seed -> descriptions.
    """

    def of(told: Mapping[str, Any]) -> Callable[[int], list[dict[str, Any]]]:
        return lambda seed: [
            {"name": f"walked-{level}-{s}", "seed": 1000 * seed + s, "level": level, **told, "service": service}
            for level, service in ARMS.items()
            for s in range(SEEDS["walked"])
        ]

    return {preset: of(told) for preset, told in WALKED.items()}


# --- reading -----------------------------------------------------------------------------------------------------------------


class Tables:
    """The held-out errors of private learners, by seed.

    Args:
        runs: evidence of `gossip.learning`; of runs with one seed the last counts.
    """

    def __init__(self, runs: Sequence[Evidence]) -> None:
        rows = {int(run.settings["seed"]): run.extra["errors"] for run in runs if run.extra.get("errors")}
        self.seeds = sorted(rows)
        self._errors: dict[tuple[str, float], dict[tuple[int, float], dict[int, float]]] = {}
        for seed, own in rows.items():
            for kind, eps, uses, lam, error in own:
                self._errors.setdefault((kind, float(eps)), {}).setdefault((int(uses), float(lam)), {})[seed] = float(error)

    def budgets(self, kind: str) -> list[float]:
        """The budgets with which a kind of learner was tried."""
        return sorted(eps for own, eps in self._errors if own == kind)

    def chosen(self, kind: str, eps: float = inf) -> Array:
        """The error of each seed at the uses and lam that are best on the mean over the other seeds.

        So "the right parameters" are those that one would have chosen without having seen the seed.

        Args:
            kind: of the learner.
            eps: its budget.

        Returns:
            [seeds]; NaN for a seed without all of the parameters, or with no other seed.
        """
        own = self._errors.get((kind, float(eps)), {})
        return np.array([self._left_out(own, seed) for seed in self.seeds], np.float64)

    def _left_out(self, own: Mapping[tuple[int, float], Mapping[int, float]], seed: int) -> float:
        others = [s for s in self.seeds if s != seed]
        if not own or not others or any(s not in by for by in own.values() for s in self.seeds):
            return float("nan")
        best = min(own, key=lambda key: (sum(own[key][s] for s in others), key))
        return own[best][seed]

    def mean(self, kind: str, eps: float = inf) -> dict[str, float]:
        """The mean error over seeds for each number of uses, each at its best lam on that mean: the shape over uses."""
        own = self._errors.get((kind, float(eps)), {})
        found: dict[str, float] = {}
        for (uses, _), by in sorted(own.items()):
            value = float(np.mean(list(by.values())))
            found[str(uses)] = min(value, found.get(str(uses), inf))
        return found


# --- evidence made of numbers ------------------------------------------------------------------------------------------------


def made(
    excess: Mapping[str, Callable[[float], float]], *, free: float = 0.04, seeds: int = 8, scatter: float = 0.01
) -> Callable[[int], list[Evidence]]:
    """Learners whose errors are known: that without noise, and an excess that grows away from 4 uses and lam 0.1.

    error = free_s + excess(eps) (1 + 0.2 |log2(uses / 4)|) + 0.005 |log10(lam / 0.1)| + scatter; scatter normal, of each learner,
    free_s another 0.01 of each seed.

    Args:
        excess: kind -> eps -> excess at its best.
        free: error without noise.
        seeds: how many.
        scatter: standard deviation.

    Returns:
        Seed -> evidence.
    """

    def runs(seed: int) -> list[Evidence]:
        found = []
        for s in range(seeds):
            random = np.random.default_rng([seed, s, 11])
            base, rows = free + 0.01 * random.standard_normal(), []
            for uses in (1, 2, 4, 8):
                for lam in LAMS:
                    near = 0.005 * abs(np.log10(lam / 0.1))
                    rows.append(("free", inf, uses, lam, base + near + scatter * random.standard_normal()))
                    for kind, of in excess.items():
                        for eps in (0.1, 1.0, 10.0):
                            far = of(eps) * (1 + 0.2 * abs(log2(uses / 4)))
                            rows.append((kind, eps, uses, lam, base + far + near + scatter * random.standard_normal()))
            found.append(Evidence({"seed": 1000 * seed + s, "lr": 1.0, "batch_size": 1}, xr.Dataset(), {}, {"errors": rows}))
        return found

    return runs


def falling(eps: float) -> float:
    """An excess that vanishes with a large budget: 0.3 exp(-1.5 sqrt(eps))."""
    return 0.3 * exp(-1.5 * eps**0.5)


def walks_made(shift: Mapping[str, float], *, seeds: int = 8, level: str = "faulty") -> Callable[[int], list[Evidence]]:
    """Walks without and with faults, whose plateaus scatter by 0.01; under faults a cycle has 0.7 times the updates.

    Args:
        shift: arm ("free", "private") -> how much higher the plateau is under faults.
        seeds: how many.
        level: name of the faulty level; ``"none"`` makes both alike.

    Returns:
        Seed -> evidence.
    """

    def runs(seed: int) -> list[Evidence]:
        found = []
        for s in range(seeds):
            random = np.random.default_rng([seed, s, 12])
            base = 0.05 + 0.02 * random.random()
            for own, by, speed in (("none", dict.fromkeys(shift, 0.0), 1.8), (level, shift, 1.8 * 0.7)):
                plateau = {arm: base + d + 0.01 * random.standard_normal() for arm, d in by.items()}
                told = {"seed": 1000 * seed + s, "level": own, "lr": 1.0, "batch_size": 1, "train": 100, "eps": 1.0}
                extra = {"plateau": plateau, "updates_a_cycle": speed * (1 + 0.02 * random.standard_normal())}
                found.append(Evidence(told, xr.Dataset(), {}, extra))
        return found

    return runs
