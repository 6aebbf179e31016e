"""The claim W14 of "A Walk with SGD" (Xing et al. 2018): isotropic noise does not replace mini-batch noise.

Thresholds were written before any run. The released control passed a variance as a standard deviation, estimated from nine
chunks, of the largest parameter for all: far more noise than that of SGD. Here all noises have the trace of SGD's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import exp, isfinite, log, nan
from typing import Any

import numpy as np
import xarray as xr

from sgdscope import statistics
from sgdscope.contracts import Answer, Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence.accuracy import accuracy
from sgdscope.evidence.endpoints import Part, decisive, last_accuracy
from sgdscope.evidence.protocols import SIZES, described
from sgdscope.evidence.sharpness import made, path, place
from sgdscope.evidence.windows import Window, decide, full_batch, windows_of

PAPER = "Xing et al. 2018 (arXiv 1802.08770)"
PAIRS = 5  # paired seeds
EQUAL = 1.25  # height and lambda_1 within this factor count as equal; chosen here
SHAPES = ("isotropic", "diagonal", "covariance")
NEEDED = ("sgd", "isotropic", "covariance")  # full-batch descent and diagonal noise are told beside
QUANTITIES: Mapping[str, Mapping[str, Any]] = {
    "valley": {"curve": False, "own_batch": False},
    "curvature": {"k": 5, "points": 2},
}
WHOLE = 60000  # the noise is that of all training examples
SHORT: Mapping[str, dict[str, Any]] = {
    "quick": {},
    "standard": {"updates": 1200, "at": [1140], "data": {"train": 6000}},
    "paper": {"updates": 900, "at": [450], "model": {"batchnorm": False}},
}  # full-batch updates: two epochs' worth in the paper's size, as many as its descent had; without BatchNorm, with which no
# example has a gradient of its own
EVERY = {"quick": 10, "standard": 50, "paper": 50}  # updates between two measurements of the trace


def _run(preset: str, seed: int, arm: str) -> dict[str, Any]:
    """One arm: SGD with replacement, full-batch descent, or that with noise of a shape."""
    size, short = SIZES[preset], SHORT[preset]
    more: dict[str, Any] = {key: short[key] for key in ("data", "model") if key in short} | {"weight_decay": 0.0}
    if arm in SHAPES:
        noise = {"walker": "shaped", "shape": arm, "noise_batch_size": size["batch_size"]}
        more |= noise | {"every": EVERY[preset], "examples": WHOLE}
    elif arm == "sgd":
        more |= {"replacement": True}
    told = described(preset, seed, size["lr"], size["batch_size"] if arm == "sgd" else "full", **more)
    record = {"snapshots": told["record"]["snapshots"] | ({"at": short["at"]} if "at" in short else {})}
    record |= {"mode": "snapshots"} if preset == "quick" else {}  # 61 small points cost less than walking again
    phases = [phase | {"updates": short.get("updates", phase["updates"])} for phase in told["phases"]]
    return told | {"phases": phases, "record": record}


def _runs(preset: str) -> Callable[[int], list[dict[str, Any]]]:
    arms = ("sgd", "full", *SHAPES)
    return lambda seed: [_run(preset, 1000 * seed + s, arm) for arm in arms for s in range(PAIRS)]


# --- what a run says ---------------------------------------------------------------------------------------------------------


def arm_of(run: Evidence) -> str | None:
    """Which arm a run belongs to.

    Args:
        run: the evidence; walker and shape stand in its settings or in the first phase of its experiment.

    Returns:
        "sgd", "full" or the shape of its noise; None for another walker.
    """
    told = _told(run)
    if told.get("walker") == "shaped":
        return str(told.get("shape", "covariance"))
    return None if told.get("walker", "sgd") != "sgd" else "full" if full_batch(run) else "sgd"


def _told(run: Evidence) -> dict[str, Any]:
    phases = (run.settings.get("experiment") or {}).get("phases") or [{}]
    return {**phases[0], **run.settings}


def _batch(run: Evidence) -> float:
    """The batch size whose noise a run has."""
    told = _told(run)
    return float(told.get("noise_batch_size", nan) if told.get("walker") == "shaped" else told.get("batch_size", nan))


def _numbers(run: Evidence, late: Window) -> dict[str, float]:
    """The numbers of the last window: height, lambda_1 at its end, and what is told beside."""
    top = path(run)

    def mean(name: str) -> float:
        values = late.of(name, "steps")
        return float(np.sqrt(np.nanmean(values**2))) if np.isfinite(values).any() else nan

    return {
        "height": late.height,
        "sharpness": float(top.values[-1]) if len(top.values) else nan,
        "loss": late.loss,
        "distance": mean("distance"),
        "step": mean("update_norm"),
        "accuracy": last_accuracy(run),
    }


def _by_seed(runs: Sequence[Evidence]) -> dict[int, dict[str, Evidence]]:
    """Seed -> arm -> the run that has a whole window."""
    found: dict[int, dict[str, Evidence]] = {}
    for run in runs:
        arm = arm_of(run)
        if arm is not None and windows_of(run):
            found.setdefault(int(run.settings.get("seed", 0)), {})[arm] = run
    return found


# --- the claim ---------------------------------------------------------------------------------------------------------------


Numbers = Mapping[str, Sequence[Mapping[str, float]]]  # arm -> seeds -> numbers


def _factor(numbers: Numbers, arm: str, name: str, *, above: bool | None) -> Part:
    """Factor over SGD in paired seeds; `above` is what the claim says of it, None for equality within `EQUAL`."""
    pairs = np.array([(own[name], sgd[name]) for own, sgd in zip(numbers[arm], numbers["sgd"], strict=True)], np.float64)
    pairs = np.log(pairs[np.isfinite(pairs).all(1) & (pairs > 0).all(1)])
    title = f"{arm} {name}"
    if len(pairs) < PAIRS:
        return Part(title, nan, (nan, nan), "undecided", len(pairs))
    mean, (low, high), _, _ = statistics.paired(*pairs.T)
    answer: Answer
    if above is not None:
        answer = decide((low, high), 0.0, above=above)
    elif statistics.tost(pairs[:, 0] - pairs[:, 1], log(EQUAL)) < 0.05:
        answer = "supported"
    else:
        answer = "contradicted" if low > log(EQUAL) or high < -log(EQUAL) else "undecided"
    return Part(title, exp(mean), (exp(low), exp(high)), answer, len(pairs))


def _distance(part: Part) -> float:
    """How far a part lies on the side that the claim says, in logs; unknown parts decide."""
    if not isfinite(part.statistic):
        return -np.inf
    size = log(part.statistic)
    return {"isotropic height": -size, "isotropic sharpness": size}.get(part.name, log(EQUAL) - abs(size))


@claim(
    "W14",
    sentence="Isotropic noise of the same total strength does not replace mini-batch noise: its walk keeps a lower height and "
    "ends sharper, while Gaussian noise with the covariance of the mini-batch does as SGD.",
    source=Source(PAPER, "abstract of v1; E5 of the authors' code"),
    scope="sweep",
    statistic="factors over SGD in paired seeds of full-batch descent with noise: mean height of the last window and lambda_1 at "
    "its end, isotropic and covariance-shaped; the decisive one",
    threshold="isotropic: height < 1 and lambda_1 > 1; covariance-shaped: both within 1 / "
    f"{EQUAL}..{EQUAL} by two one-sided tests",
    quantities=QUANTITIES,
    experiments={preset: _runs(preset) for preset in SIZES},
    controls=Controls(
        lambda seed: arms(seed), lambda seed: arms(seed, isotropic=(1.5, 0.6)), lambda seed: arms(seed, seeds=3),
        lambda seed: arms(seed, loss=0.01),
    ),
    observe=accuracy,
)  # fmt: skip
def shape_matters(runs: Sequence[Evidence]) -> Verdict:
    """Judge W14. The trace is matched where each walk is; mean step, loss, distance and accuracy of each arm are told beside."""
    by_seed = {seed: own for seed, own in _by_seed(runs).items() if set(NEEDED) <= set(own)}
    every = [run for own in by_seed.values() for run in own.values()]
    sizes = {_batch(own[arm]) for own in by_seed.values() for arm in NEEDED}
    if len(by_seed) < PAIRS or len(sizes) > 1:
        why = f"{len(by_seed)} seeds have SGD, isotropic and covariance-shaped noise with a whole window, {PAIRS} are needed"
        if len(by_seed) >= PAIRS:
            why = f"SGD and the noises are of batches of {', '.join(f'{size:g}' for size in sorted(sizes))}, expected of one size"
        return _silent("undecided", why, every)
    late = {seed: {arm: windows_of(run)[-1] for arm, run in own.items()} for seed, own in by_seed.items()}
    kept = {seed: own for seed, own in late.items() if not (own["sgd"].lost or own["sgd"].flat)}
    if len(kept) < PAIRS:
        reason = f"in {len(late) - len(kept)} seeds SGD's training loss has vanished, or its height below the noise floor"
        return _silent("not in regime", reason, every)
    numbers = {a: [_numbers(own[a].run, own[a]) for own in kept.values() if a in own] for a in ("sgd", "full", *SHAPES)}
    parts = [
        _factor(numbers, "isotropic", "height", above=False), _factor(numbers, "isotropic", "sharpness", above=True),
        _factor(numbers, "covariance", "height", above=None), _factor(numbers, "covariance", "sharpness", above=None),
    ]  # fmt: skip
    verdict, least = decisive(parts, _distance)
    told = {p.name: [*p.told, p.answer] for p in parts}
    means = {arm: {name: float(np.mean([n[name] for n in own])) for name in own[0]} for arm, own in numbers.items() if own}
    words = "; ".join(f"{p.name} x {p.statistic:.3g}" for p in parts)
    reason = f"over SGD {words}; decisive: {least.name}; mean steps {_steps(means)}"
    details: dict[str, Any] = {"factors": told, "means": means, "beside": _beside(numbers)}
    where = place([path(run) for run in every])
    return Verdict("W14", verdict, least.statistic, least.interval, len(kept), 1.0, reason, where, 0.5 ** len(kept), details)


def _silent(verdict: Answer, reason: str, runs: Sequence[Evidence]) -> Verdict:
    return Verdict("W14", verdict, nan, (nan, nan), len(runs), 1.0, reason, place([path(run) for run in runs]))


def _steps(means: Mapping[str, Mapping[str, float]]) -> str:
    return ", ".join(f"{own['step']:.3g} ({arm})" for arm, own in means.items())


def _beside(numbers: Numbers) -> dict[str, list[float]]:
    """The factors over SGD of all arms and numbers, those that the claim holds against nothing among them."""
    whole = [arm for arm, own in numbers.items() if arm != "sgd" and len(own) == len(numbers["sgd"])]
    names = ("height", "sharpness", "loss", "distance", "step", "accuracy")
    return {f"{arm} {name}": _factor(numbers, arm, name, above=True).told for arm in whole for name in names}


# --- runs made of numbers ----------------------------------------------------------------------------------------------------


def arms(
    seed: int,
    *,
    isotropic: tuple[float, float] = (0.2, 1.8),
    covariance: tuple[float, float] = (1.0, 1.0),
    seeds: int = PAIRS,
    loss: float = 0.9,
    scatter: float = 0.06,
) -> list[Evidence]:
    """Runs of the five arms of known height and lambda_1: 0.02 and 5 for SGD, times factors, times log-normal scatter.

    Args:
        seed: of the scatter.
        isotropic: factors of height and lambda_1 over SGD.
        covariance: likewise.
        seeds: how many.
        loss: training loss of the last window, of 2.3 at the start.
        scatter: standard deviation of the logs of each run; twice that is common to the runs of a seed.

    Returns:
        The runs.
    """
    factors = {"sgd": (1.0, 1.0), "full": (0.1, 2.0), "isotropic": isotropic, "diagonal": (0.5, 1.3), "covariance": covariance}
    found = []
    for s in range(100 * seed, 100 * seed + seeds):
        random = np.random.default_rng(s)
        common = 2 * scatter * random.standard_normal(2)
        for arm, (height, sharp) in factors.items():
            high, top = np.exp(common + scatter * random.standard_normal(2)) * (0.02 * height, 5 * sharp)
            found.append(_made(s, arm, float(high), float(top), loss))
    return found


def _made(seed: int, arm: str, height: float, sharp: float, loss: float) -> Evidence:
    noise = {"walker": "shaped", "shape": arm, "noise_batch_size": 64} if arm in SHAPES else {"walker": "sgd"}
    settings = {"lr": 0.15, "batch_size": 64 if arm == "sgd" else "full", "seed": seed} | noise
    run = made(settings, [180, 239], [0.9 * sharp, sharp], [loss, loss], accuracy={"step": [0, 239], "test": [0.1, 0.9]})
    steps = np.arange(240)
    scalars = {
        "loss": np.linspace(2.3, loss, 240),
        "distance": np.sqrt(steps / 10.0),
        "update_norm": np.full(240, 0.05 if arm == "full" else 0.2),
    }
    window = {"window_first": 180, "window_last": 240, "mean_height": height, "noise_floor": 1e-6}
    columns = {name: ("window", np.array([value])) for name, value in window.items()}
    valley = xr.Dataset(columns | {"loss_start": ("step", np.full(60, loss))}, {"step": steps[180:]})
    told = xr.Dataset({name: ("step", values) for name, values in scalars.items()}, {"step": steps})
    return replace(run, steps=told, measured=dict(run.measured) | {"valley": valley})
