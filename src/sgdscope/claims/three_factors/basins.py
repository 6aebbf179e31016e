"""The claims T11 and T12 of "Three Factors Influencing Minima in SGD": which basin is preferred, and how high SGD stands in one.

Thresholds were written before any run. Both laws are limits of small learning rates; what the learning rate that was used
does beyond them is told beside each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, log, nan
from typing import Any

import numpy as np

from sgdscope import statistics
from sgdscope.contracts import Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence.basins import FORGOTTEN, LEAST, drawn, study_basins, study_minimum
from sgdscope.evidence.parts import Part, joint

PAPER = "Jastrzebski et al. 2017 (1711.04623)"
PAIRS = 5  # seeds over which a number is compared with a threshold
SPARE = 6  # seeds of T11: one may fail a test of mixing by chance
SETTINGS = 3  # of an ordered trend
SAME = 1.25  # factor within which odds, temperatures and losses count as equal to the theory's; chosen here
POWER = 0.1  # T12: the power of lr / S is 1 within this; chosen here
SMALL = 0.25  # lr lambda_1 up to which the laws of small learning rates are judged: they are off by 14 % there; chosen here

Setting = dict[str, Any]
Presets = Mapping[str, Callable[[int], list[dict[str, Any]]]]


def _presets(quick: Sequence[Setting], standard: Sequence[Setting], paper: Sequence[Setting], *, seeds: int = PAIRS) -> Presets:
    """Each setting with each seed, named by its place."""

    def of(name: str, settings: Sequence[Setting]) -> Callable[[int], list[dict[str, Any]]]:
        def runs(seed: int) -> list[dict[str, Any]]:
            numbers = range(1000 * seed, 1000 * seed + seeds)
            return [s | {"name": f"{name}-{i}-seed{n}", "seed": n} for n in numbers for i, s in enumerate(settings)]

        return runs

    return {name: of(name, s) for name, s in (("quick", quick), ("standard", standard), ("paper", paper))}


def _within(text: str, logs: Sequence[float]) -> list[Part]:
    """A factor of 1 within `SAME`: two one-sided tests at 2.5 %."""
    return [
        Part(f"{text}, from below", logs, -log(SAME), least=PAIRS, logs=True),
        Part(f"{text}, from above", logs, log(SAME), above=False, least=PAIRS, logs=True),
    ]


def _step(run: Evidence) -> float:
    return float(run.settings["lr"]) * float(run.extra["sharpness"])


def _silent(claim_id: str, runs: Sequence[Evidence], reason: str, regime: Mapping[str, float | str], *, foreign: bool) -> Verdict:
    return Verdict(claim_id, "not in regime" if foreign else "undecided", nan, (nan, nan), len(runs), 0.0, reason, regime)


# --- T11: which basin --------------------------------------------------------------------------------------------------------

ORACLE = {"loss": [0.05, 0.0], "curvature": [4.0, 36.0]}  # n* = 0.046, where nothing passes a pass of 1.1: only told, at n = 0.25
RAISED = {"loss": [0.3, 0.0], "curvature": [4.0, 36.0]}  # the same basins, A higher: n* = 0.273, where walks pass
PLANE = {"loss": [0.4, 0.0], "curvature": [[4.0, 1.0], [16.0, 2.0]]}  # two dimensions: n* = 0.385


def _between(basins: Setting, n: float, lr: float, updates: int, walkers: int = 600) -> Setting:
    return {"basins": basins, "temperature": n, "lr": lr, "updates": updates, "walkers": walkers}


BETWEEN = [_between(RAISED, n, 0.002, t) for n, t in ((0.22, 80000), (0.3, 30000), (0.4, 20000), (0.55, 15000))]
DISCRETE = [_between(ORACLE, 0.25, lr, round(60 / lr)) for lr in (0.01, 0.05)]
IN_PLANE = [_between(PLANE, n, 0.005, 40000, 2000) for n in (0.25, 0.33, 0.45, 0.6)]
LONGER = [_between(RAISED, n, 0.0005, 400000, 2000) for n in (0.22, 0.3, 0.4, 0.55)]


def _place_between(runs: Sequence[Evidence]) -> dict[str, float | str]:
    return {
        "lr_sharpness": max((_step(r) for r in runs), default=nan),
        "temperature_least": min((float(r.settings["temperature"]) for r in runs), default=nan),
        "crossings_least": min((float(r.extra["crossings"]) for r in runs), default=nan),
    }


def _mixed(run: Evidence) -> bool:
    told = run.extra
    known = told["log_odds"] is not None and told["apart"] is not None
    return bool(known and told["crossings"] >= LEAST and abs(told["apart"]) < FORGOTTEN)


def _by_seed(runs: Sequence[Evidence]) -> tuple[list[float], dict[int, dict[float, Mapping[str, Any]]]]:
    """The temperatures, and the numbers of the seeds that have mixed at all of them."""
    temperatures = sorted({float(r.settings["temperature"]) for r in runs})
    table: dict[int, dict[float, Mapping[str, Any]]] = {}
    for run in runs:
        if _mixed(run):
            table.setdefault(int(run.settings["seed"]), {})[float(run.settings["temperature"])] = run.extra
    return temperatures, {s: own for s, own in table.items() if len(own) == len(temperatures)}


def _line(own: Mapping[float, Mapping[str, Any]]) -> tuple[float, float]:
    """Slope of the log odds over 1 / n, and the temperature at which they are 0; NaN where they never are."""
    n = np.array(sorted(own))
    y = np.array([own[t]["log_odds"] for t in n.tolist()])
    slope = statistics.slope(1 / n, y)[0]
    level = float(y.mean() - slope * (1 / n).mean())
    return slope, -slope / level if level * slope < 0 else nan


def _kinds(runs: Sequence[Evidence]) -> dict[str, list[Evidence]]:
    table: dict[str, list[Evidence]] = {}
    for run in runs:
        table.setdefault(str(run.settings["basins"]), []).append(run)
    return table


def _told(runs: Sequence[Evidence]) -> dict[str, Any]:
    """Odds by learning rate and temperature: measured, by the law of Gibbs, and exact at that learning rate."""
    table: dict[str, list[list[float]]] = {}
    for run in runs:
        numbers = [nan if (v := run.extra[k]) is None else float(v) for k in ("log_odds", "gibbs", "exact", "crossings")]
        gap = run.settings["basins"]["loss"][0] - run.settings["basins"]["loss"][1]
        table.setdefault(f"gap {gap:g}, lr {run.settings['lr']:g}, n {run.settings['temperature']:g}", []).append(numbers)
    means = {key: np.mean(rows, 0) for key, rows in table.items()}
    return {
        key: {"odds": float(np.exp(m[0])), "gibbs": float(np.exp(m[1])), "exact": float(np.exp(m[2])), "crossings": float(m[3])}
        for key, m in means.items()
    }


def _odds_made(*, entropy: float = 1.0, lr: float = 0.002) -> Callable[[Mapping[str, Any], np.random.Generator], dict[str, Any]]:
    """Log odds entropy x 1/2 log(h_B / h_A) - gap / n, with scatter of 0.05."""

    def numbers(s: Mapping[str, Any], random: np.random.Generator) -> dict[str, Any]:
        gap, n = s["basins"]["loss"][0], s["temperature"]
        gibbs = log(3) - gap / n
        measured = entropy * log(3) - gap / n + float(random.normal(0, 0.05))
        told = {"log_odds": measured, "gibbs": gibbs, "exact": gibbs + 0.05, "threshold": gap / log(3)}
        return told | {"crossings": 900.0, "apart": 0.4, "sharpness": 36.0 * lr / s["lr"]}

    return numbers


@claim(
    "T11",
    sentence="Under isotropic noise SGD prefers the flatter of two basins, though it is higher, above the noise level n* of "
    "equation 4, and the deeper one below, with the odds of equation 3.",
    source=Source(PAPER, "Theorem 2, equations 3 and 4"),
    scope="sweep",
    statistic="log odds flat : deep - those of equation 3 at each noise level; their slope over 1 / n; the level at which they "
    "are even over n*; the part nearest to failing is told",
    threshold=f"odds and level within a factor {SAME} by two one-sided tests, slope < 0",
    quantities={},
    experiments=_presets([*BETWEEN, *DISCRETE], [*BETWEEN, *DISCRETE, *IN_PLANE], [*LONGER, *DISCRETE, *IN_PLANE], seeds=SPARE),
    controls=Controls(
        drawn(BETWEEN, _odds_made()), drawn(BETWEEN, _odds_made(entropy=0.0)), drawn(BETWEEN, _odds_made(), seeds=4),
        drawn(BETWEEN, _odds_made(lr=0.1)),
    ),
    study=study_basins,
)  # fmt: skip
def basin_preference(runs: Sequence[Evidence]) -> Verdict:
    """Judge T11 where lr h is small; walks at larger learning rates are told with the odds that are exact for them.

    Args:
        runs: of `study_basins`.

    Returns:
        The verdict.
    """
    regime, small = _place_between(runs), [r for r in runs if _step(r) <= SMALL]
    if runs and not small:
        reason = f"lr lambda_1 is {min(_step(r) for r in runs):.2g} or more, beyond the law of small learning rates ({SMALL})"
        return _silent("T11", runs, reason, regime, foreign=True)
    parts: list[Part] = []
    for kind in _kinds(small).values():
        temperatures, table = _by_seed(kind)
        if len(temperatures) < SETTINGS or len(table) < PAIRS:
            reason = f"{PAIRS} seeds that mixed at each of {SETTINGS} noise levels are needed, {len(table)} are at hand"
            return _silent("T11", runs, reason, regime, foreign=False)
        lines = [_line(own) for own in table.values()]
        threshold = float(next(iter(table.values()))[temperatures[0]]["threshold"])
        for n in temperatures:
            parts += _within(
                f"odds over equation 3 at n = {n:g}", [own[n]["log_odds"] - own[n]["gibbs"] for own in table.values()]
            )
        parts.append(Part("slope over 1 / n", [slope for slope, _ in lines], 0.0, above=False, least=PAIRS))
        parts += _within(
            f"even odds at n over n* = {threshold:.3g}", [log(even / threshold) if even > 0 else nan for _, even in lines]
        )
    if not parts:
        return _silent("T11", runs, "no walks are at hand", regime, foreign=False)
    return joint("T11", parts, place=regime, details={"odds": _told(runs)})


# --- T12: how high in a basin ------------------------------------------------------------------------------------------------


def _around(minimum: Setting, rates: Sequence[float], batches: Sequence[int], walkers: int = 20) -> Setting:
    return {"minimum": minimum, "grid": [[lr, b] for lr in rates for b in batches], "walkers": walkers}


def _network(data: Setting, model: Setting, decay: float = 0.0, lr: float = 0.5) -> Setting:
    return {"kind": "network", "data": data, "model": model, "decay": decay, "settle": {"updates": 1500, "lr": lr}}


CANCER = {"dataset": "breast_cancer", "label_noise": 0.3}
LOGISTIC, SMALL_MLP = {"name": "logistic"}, {"name": "mlp", "hidden": [4], "activation": "tanh"}
BOWL = _around({"kind": "bowl", "curvature": [1.0, 0.5, 0.2, 0.1]}, (0.1, 0.2), (4, 16))  # C = H: the claim's own assumption
QUICK = [
    BOWL,
    _around(_network({"dataset": "noisy_linear"}, LOGISTIC, lr=2.0), (0.1, 0.2), (4, 16)),
    _around(_network(CANCER, LOGISTIC), (0.05, 0.1), (4, 16)),
    _around(_network(CANCER, SMALL_MLP, 0.01, 0.2), (0.025, 0.05), (4, 16)),
]
STANDARD = [
    *QUICK,
    _around(_network({"dataset": "banknote", "label_noise": 0.3}, LOGISTIC), (0.05, 0.1), (4, 16)),
    _around(_network({"dataset": "avila", "clip": 5.0}, SMALL_MLP, 0.01, 0.2), (0.025, 0.05), (4, 16)),
]
MLP = {"name": "mlp", "hidden": [16], "activation": "tanh"}
LARGE = [
    BOWL,
    _around(_network({"dataset": "avila", "clip": 5.0, "label_noise": 0.3}, MLP, 0.01, 0.2), (0.01, 0.02), (8, 32), 50),
]


def _kind(run: Evidence) -> str:
    told = run.settings["minimum"]
    return "bowl with C = H" if told["kind"] == "bowl" else f"{told['model']['name']} on {told['data']['dataset']}"


def _walks(runs: Sequence[Evidence], *, small: bool = True) -> dict[int, list[dict[str, Any]]]:
    """Seed -> its walks with the traces of their minimum; only those at a small learning rate, if asked for."""
    table: dict[int, list[dict[str, Any]]] = {}
    for run in runs:
        shared = {name: run.extra[name] for name in ("trace_h", "trace_c", "sharpness")}
        for walk in run.extra["walks"]:
            told = shared | walk | {"step": walk["lr"] * shared["sharpness"], "ratio": walk["lr"] / walk["batch_size"]}
            if told["step"] <= SMALL or not small:
                table.setdefault(int(run.settings["seed"]), []).append(told)
    return table


def _place_around(runs: Sequence[Evidence]) -> dict[str, float | str]:
    return {
        "kinds": ", ".join(sorted({_kind(r) for r in runs})) or "none",
        "lr_sharpness": max((w["step"] for own in _walks(runs, small=False).values() for w in own), default=nan),
        "slope_at_minimum": max((float(r.extra["slope_at_minimum"]) for r in runs), default=nan),
    }


def _whole(table: Mapping[int, Sequence[dict[str, Any]]]) -> dict[int, list[dict[str, Any]]]:
    """The seeds that have every setting of their kind, with an excess that is positive."""
    asked = max((len(own) for own in table.values()), default=0)
    kept = {s: [w for w in own if w["excess"] is not None and w["excess"] > 0] for s, own in table.items()}
    return {s: own for s, own in kept.items() if len(own) == asked}


def _factor(own: Sequence[Mapping[str, Any]], name: str) -> float:
    """Mean log of the excess over (lr / 4S) times a trace, or over the exact value."""
    told = [w["exact"] if name == "exact" else w["ratio"] / 4 * w[name] for w in own]
    known = [log(w["excess"] / t) for w, t in zip(own, told, strict=True) if t is not None and t > 0]
    return float(np.mean(known)) if known else nan


def _power(own: Sequence[Mapping[str, Any]]) -> float:
    return statistics.slope([log(w["ratio"]) for w in own], [log(w["excess"]) for w in own])[0]


def _excess_made(*, power: float = 1.0, trace_c: float = 4.0, sharp: float = 1.0) -> Callable[..., dict[str, Any]]:
    """Excess (1/4) (lr / S)^power Tr C at Tr H = 4, with scatter of 3 %."""

    def numbers(s: Mapping[str, Any], random: np.random.Generator) -> dict[str, Any]:
        walks = []
        for rate, batch in s["grid"]:
            expected = rate / batch / 4 * trace_c
            excess = (rate / batch) ** (power - 1) * expected * float(np.exp(random.normal(0, 0.03)))
            walks.append({"lr": rate, "batch_size": batch, "excess": excess, "exact": expected})
        return {"trace_h": 4.0, "trace_c": trace_c, "sharpness": sharp, "slope_at_minimum": 1e-9, "walks": walks}

    return numbers


@claim(
    "T12",
    sentence="Around a frozen minimum SGD settles at an excess loss of (lr / 4 S) Tr H: in proportion to lr / S, by the width of "
    "the minimum, as if the noise covariance were the Hessian.",
    source=Source(PAPER, "version 3, as reviewed; specification section 4.1b"),
    scope="sweep",
    statistic="power of lr / S that the excess loss follows, and the excess over (lr / 4 S) Tr H, a geometric mean over "
    "settings; of each minimum; the part nearest to failing is told",
    threshold=f"power 1 within {POWER}, factor 1 within {SAME}, by two one-sided tests",
    quantities={},
    experiments=_presets(QUICK, STANDARD, LARGE),
    controls=Controls(
        drawn(QUICK, _excess_made()), drawn(QUICK, _excess_made(trace_c=8.0)), drawn(QUICK, _excess_made(), seeds=4),
        drawn(QUICK, _excess_made(sharp=30.0)),
    ),
    study=study_minimum,
)  # fmt: skip
def loss_over_width(runs: Sequence[Evidence]) -> Verdict:
    """Judge T12; the factors by Tr C, which hold for any Hessian, and by the exact value at this learning rate are told.

    Args:
        runs: of `study_minimum`.

    Returns:
        The verdict.
    """
    regime = _place_around(runs)
    if runs and not _walks(runs):
        reason = f"each lr lambda_1 is beyond the law of small learning rates, {SMALL}"
        return _silent("T12", runs, reason, regime, foreign=True)
    parts, details = [], {}
    for kind in dict.fromkeys(_kind(r) for r in runs):
        own = _whole(_walks([r for r in runs if _kind(r) == kind]))
        ratios = {w["ratio"] for walks in own.values() for w in walks}
        if len(own) < PAIRS or len(ratios) < SETTINGS:
            reason = (
                f"{kind}: {PAIRS} seeds with an excess at each of {SETTINGS} ratios lr / S are needed, {len(own)} are at hand"
            )
            return _silent("T12", runs, reason, regime, foreign=False)
        powers = [_power(v) for v in own.values()]
        parts.append(Part(f"{kind}: power of lr / S, from below", powers, 1 - POWER, least=PAIRS))
        parts.append(Part(f"{kind}: power of lr / S, from above", powers, 1 + POWER, above=False, least=PAIRS))
        parts += _within(f"{kind}: excess over (lr / 4S) Tr H", [_factor(v, "trace_h") for v in own.values()])
        details[kind] = _summary(own)
    if not parts:
        return _silent("T12", runs, "no walks are at hand", regime, foreign=False)
    lead = "; ".join(f"{kind}: excess / (lr / 4S) Tr C = {d['over_trace_c'][0]:.3g}" for kind, d in details.items()) + "; "
    return joint("T12", parts, place=regime, lead=lead, details=details)


def _summary(own: Mapping[int, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """Factors with their intervals, and what decides between the traces."""
    told: dict[str, Any] = {}
    for name, word in (("trace_h", "over_trace_h"), ("trace_c", "over_trace_c"), ("exact", "over_exact")):
        logs = [v for walks in own.values() if isfinite(v := _factor(walks, name))]
        mean, _, interval = statistics.mean_interval(logs) if logs else (nan, nan, statistics.UNBOUNDED)
        told[word] = [float(np.exp(v)) for v in (mean, *interval)]
    each = [w for walks in own.values() for w in walks]
    told["trace_ratio"] = float(np.mean([w["trace_c"] / w["trace_h"] for w in each]))
    told["lr_sharpness"] = max(w["step"] for w in each)
    return told
