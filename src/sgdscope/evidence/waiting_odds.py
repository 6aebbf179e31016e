"""How walkers are divided between a flat and a sharp valley, as evidence: run, read back, and drawn from known odds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import log, nan
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sgdscope import escapes
from sgdscope.contracts import Evidence, Verdict
from sgdscope.evidence.waiting import LEAST, RELAXATIONS, generator_of, kept, noise_of, potential_of


def study_occupation(description: Mapping[str, Any], folder: Path, data_dir: Any) -> Evidence:
    """Run one occupation of the two wells of an uneven double well, or read it back.

    Args:
        description: as of `waiting.study`, with ``updates`` in place of max_updates and enough.
        folder: of its result.
        data_dir: not used.

    Returns:
        Evidence whose extra are the numbers of `Occupation` and the sharpness of the flat valley.
    """
    del data_dir
    return kept(description, folder, lambda: _occupied(description))


def _occupied(description: Mapping[str, Any]) -> dict[str, Any]:
    potential = potential_of(description)
    found = escapes.occupation(
        potential,
        escapes.Threshold(0.0),
        noise_of(description),
        lr=description["lr"],
        starts=(potential.start(), -potential.start() / description["potential"]["stretch"]),
        walkers=description["walkers"],
        updates=description["updates"],
        generator=generator_of(description),
    )
    numbers = {"log_odds": found.log_odds, "stderr": found.stderr, "crossings": found.crossings, "apart": found.apart}
    told = {name: value if np.isfinite(value) else None for name, value in numbers.items()}
    return told | {"mixed": found.mixed, "sharpness": potential.sharpness()}


@dataclass(frozen=True)
class Odds:
    """The log odds flat : sharp of one seed over settings: x is B / lr or 1 / D, ascending.

    Attributes:
        x: [n].
        log_odds: [n].
        stderr: [n].
    """

    x: NDArray[np.float64]
    log_odds: NDArray[np.float64]
    stderr: NDArray[np.float64]


def _setting(run: Evidence) -> tuple[str, float]:
    noise = run.settings["noise"]
    if noise["kind"] == "white":
        return "white", 1 / float(noise["diffusion"])
    return "shaped", float(noise["batch_size"]) / float(run.settings["lr"])


def odds(runs: Sequence[Evidence]) -> tuple[dict[int, Odds], dict[int, Odds], float]:
    """The odds of the seeds that have all settings of a kind of noise, mixed, and at least three.

    Args:
        runs: of `study_occupation`.

    Returns:
        seed -> odds under |H|-shaped noise, the same under white noise, and the ratio r of the two curvatures.
    """
    found: dict[str, dict[int, Odds]] = {}
    for kind in ("shaped", "white"):
        own = [run for run in runs if _setting(run)[0] == kind]
        settings = sorted({_setting(run)[1] for run in own})
        table = {
            (int(run.settings["seed"]), _setting(run)[1]): (run.extra["log_odds"], run.extra["stderr"])
            for run in own
            if run.extra["mixed"] and run.extra["log_odds"] is not None
        }
        seeds = sorted({seed for seed, _ in table})
        whole = [s for s in seeds if len(settings) >= LEAST and all((s, x) in table for x in settings)]
        found[kind] = {s: Odds(np.array(settings), *np.array([table[s, x] for x in settings]).T) for s in whole}
    stretch = float(runs[0].settings["potential"]["stretch"]) if runs else nan
    return found["shaped"], found["white"], stretch**2


def _stays(runs: Sequence[Evidence]) -> list[float]:
    """Lr lambda_1 x updates between two passages, of each run."""
    found = []
    for run in runs:
        counted = run.settings["updates"] - run.settings["updates"] // 2
        found.append(run.settings["lr"] * run.extra["sharpness"] * counted / max(float(run.extra["crossings"]), 1e-12))
    return found


def place_odds(runs: Sequence[Evidence]) -> dict[str, float | str]:
    """Where the walks lie on the map.

    Args:
        runs: of `study_occupation`.

    Returns:
        relaxations between two passages and passages of a walker, the least of all runs; share of the walks that have mixed.
    """
    return {
        "relaxations": min(_stays(runs), default=nan),
        "crossings_least": min((float(run.extra["crossings"]) for run in runs), default=nan),
        "mixed_share": float(np.mean([run.extra["mixed"] for run in runs])) if runs else nan,
    }


def early_odds(claim: str, runs: Sequence[Evidence], seeds: int) -> Verdict | None:
    """The verdict where too little is at hand, or where walkers pass so often that they stay in no valley.

    Args:
        claim: its id.
        runs: of `study_occupation`.
        seeds: how many are needed.

    Returns:
        Undecided, not in regime, or None.
    """
    if any(stay < RELAXATIONS for stay in _stays(runs)):
        reason = (
            f"walkers pass every {min(_stays(runs)):.2g} relaxations 1 / (lr lambda_1): the noise is too strong for two valleys"
        )
        return Verdict(claim, "not in regime", nan, (nan, nan), len(runs), 0.0, reason, place_odds(runs))
    shaped, white, _ = odds(runs)
    if min(len(shaped), len(white)) < seeds:
        reason = f"{seeds} seeds with {LEAST} mixed settings of each noise are needed; at hand {len(shaped)} and {len(white)}"
        return Verdict(claim, "undecided", nan, (nan, nan), min(len(shaped), len(white)), 0.0, reason, place_odds(runs))
    return None


def drawn_odds(
    settings: Sequence[Mapping[str, Any]],
    *,
    white: float = 0.0,
    seeds: int = 5,
    crossings: float = 20.0,
) -> Callable[[int], list[Evidence]]:
    """Control: log odds that are written down, with scatter of 0.05 between seeds.

    They are 1/2 log r at B / lr or 1 / D = 7, and rise by 0.2 a unit of B / lr under |H|-shaped noise.

    Args:
        settings: descriptions without name and seed.
        white: their slope over 1 / D under white noise.
        seeds: how many.
        crossings: passages of a walker.

    Returns:
        Seed -> evidence.
    """

    def runs(seed: int) -> list[Evidence]:
        random, found = np.random.default_rng(seed), []
        for s in range(100 * seed, 100 * seed + seeds):
            for setting in settings:
                run = Evidence(dict(setting) | {"seed": s}, xr.Dataset(), {})
                kind, x = _setting(run)
                level = log(float(setting["potential"]["stretch"]))
                value = level + (white if kind == "white" else 0.2) * (x - 7) + float(random.normal(0, 0.05))
                extra = {"log_odds": value, "stderr": 0.05, "crossings": crossings, "apart": 0.3, "mixed": True}
                found.append(Evidence(run.settings, xr.Dataset(), {}, extra | {"sharpness": 2.0}))
        return found

    return runs
