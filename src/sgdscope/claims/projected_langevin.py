"""The claims L1-L4 on "Sampling from a log-concave distribution with Projected Langevin Monte Carlo" (Bubeck, Eldan, Lehec 2018).

Thresholds were written before any run. Of the paper no body could be read: theorem and experiments are as recalled in the
specification (section 3), the square root and the linear law are derived there and were checked by transition matrices.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import isfinite, log, nan
from pathlib import Path
from typing import Any

import numpy as np

from sgdscope import statistics
from sgdscope.contracts import Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence import volumes
from sgdscope.evidence.parts import Part, equal, joint
from sgdscope.evidence.projected import Description, made, presets, study_distance, study_steps, study_surface
from sgdscope.theory.langevin import ball_mass

PAPER = "Bubeck, Eldan & Lehec 2018 (1507.02564)"
SEEDS = 5  # a number is compared with a threshold, or one sampler with another
POWER, ROOT = 0.1, 0.5  # L1: the power of lr is 1/2 within this; neighbouring laws are 0 (no limit) and 1; chosen here
WIDE = 1.0  # L1: lr / R^2 from which on a step is as long as the body
THEOREM = 7.0  # L2: the theorem's power of n for a uniform target, as recalled; it is an upper bound
VOLUMES = 1.2  # L3: factor within which two volumes count as equal; chosen here
LINEAR = 0.15  # L4: the powers of d are 1 and 0 within this; the law itself gives 0.93 and 0 here; chosen here
FULL = 0.5  # L4: mass on the surface from which on it cannot grow in proportion

Table = Mapping[tuple[Any, ...], float]


def _table(runs: Sequence[Evidence], keys: Sequence[str], name: str) -> dict[tuple[Any, ...], float]:
    """Settings -> the number that the study found; NaN where it found none."""
    found = {tuple(run.settings.get(key) for key in keys): run.extra.get(name) for run in runs}
    return {key: nan if value is None else float(value) for key, value in found.items()}


def _powers(table: Table, place: int, least: int) -> list[float]:
    """The slope of log value over log setting of each seed, the last entry of a key; NaN for a seed without all settings.

    Args:
        table: (..., seed) -> positive number.
        place: of the setting in the key.
        least: settings that are needed.

    Returns:
        One a seed.
    """
    settings, seeds = sorted({key[place] for key in table}), sorted({key[-1] for key in table})
    slopes = []
    for seed in seeds:
        own = {key[place]: log(v) for key, v in table.items() if key[-1] == seed and isfinite(v) and v > 0}
        whole = len(settings) >= least and len(own) == len(settings)
        slopes.append(statistics.slope(np.log(settings), [own[x] for x in settings])[0] if whole else nan)
    return slopes


def _means(table: Table) -> dict[str, float]:
    """Means over seeds, for the details."""
    keys = sorted({key[:-1] for key in table}, key=str)
    return {" ".join(map(str, key)): float(np.mean([v for k, v in table.items() if k[:-1] == key])) for key in keys}


def _silent(claim_id: str, answer: Any, threshold: float, reason: str, place: Mapping[str, Any]) -> Verdict:
    return Verdict(claim_id, answer, nan, (nan, nan), 0, threshold, reason, place)


def _place(runs: Sequence[Evidence]) -> dict[str, float | str]:
    """The range of every number that the studies were told, and of lr."""
    told: dict[str, float | str] = {"studies": float(len(runs))}
    for name in ("lr", "d", "chains", "time", "steps"):
        values = [float(v) for run in runs if isinstance(v := run.settings.get(name, run.extra.get(name)), int | float)]
        if values:
            told |= {f"least_{name}": min(values), f"largest_{name}": max(values)}
    return told


# --- L1 ---------------------------------------------------------------------------------------------------------------------


def _distances(lrs: Sequence[float], chains: Mapping[str, int], **more: Any) -> list[Description]:
    """On [-1, 1]; the slowest mode takes 0.8 of the diffusion's time. The Gaussian has a fifth of the atoms: more chains."""
    return [
        {"label": f"{target}-lr{lr:g}", "target": target, "lr": lr, "time": 2.5, "chains": n, **more}
        for target, n in chains.items()
        for lr in lrs
    ]


DISTANCES = presets(
    {
        "quick": _distances([0.04, 0.01, 0.0025], {"uniform": 10_000, "gaussian": 50_000}),
        "standard": _distances([0.02, 0.005, 0.00125], {"uniform": 30_000, "gaussian": 300_000}),
        "paper": _distances([0.02, 0.005, 0.00125, 0.0003], {"uniform": 100_000, "gaussian": 1_000_000}),
    },
    SEEDS,
)


def _walked(lrs: Sequence[float], target: str, *, seeds: int = SEEDS, **more: Any) -> Callable[[int], list[Evidence]]:
    """Real chains, few and short enough for a control."""
    own = presets({"quick": _distances(lrs, {target: 4000}, **more)}, SEEDS)["quick"]
    return lambda seed: [study_distance(d, Path()) for d in own(seed) if d["seed"] < SEEDS * seed + seeds]


@claim(
    "L1",
    sentence="Projected Langevin samples exp(-f) on the body: its distance from it goes to zero as the root of the step.",
    source=Source(PAPER, "Theorem 1 [recalled]; the root is the specification's"),
    scope="sweep",
    statistic="power of lr that the Kolmogorov distance of the depth below the surface follows, within seeds, on two targets",
    threshold=f"{ROOT} within {POWER}, by two one-sided tests, for both; the one nearest to failing is told",
    quantities={},
    experiments=DISTANCES,
    controls=Controls(
        _walked([0.04, 0.01, 0.0025], "uniform"),
        _walked([0.04, 0.01, 0.0025], "gaussian", drift=2.0),
        _walked([0.04, 0.01, 0.0025], "uniform", seeds=SEEDS - 1),
        _walked([2.0, 4.0, 8.0], "uniform"),
    ),
    study=study_distance,
)  # fmt: skip
def samples_the_target(runs: Sequence[Evidence]) -> Verdict:
    """Judge L1; the mass of the atoms is told beside, which on the uniform target is all of the distance.

    Args:
        runs: of `study_distance`.

    Returns:
        The verdict.
    """
    place, table = _place(runs), _table(runs, ("target", "lr", "seed"), "distance")
    if not table:
        return _silent("L1", "undecided", ROOT, "no chains were walked", place)
    if min(key[1] for key in table) >= WIDE:
        return _silent("L1", "not in regime", ROOT, "every step is as long as the body", place)
    parts: list[Part] = []
    for target in sorted({key[0] for key in table}):
        own = {key: v for key, v in table.items() if key[0] == target}
        parts += equal(f"{target}: power of lr", _powers(own, 1, 3), ROOT, POWER)
    details = {"distance": _means(table), "atoms": _means(_table(runs, ("target", "lr", "seed"), "atoms"))}
    return joint("L1", parts, place=place, details=details)


# --- L2 ---------------------------------------------------------------------------------------------------------------------


def _mixings(dims: Sequence[int], chains: int) -> list[Description]:
    """From the centre of [-1, 1]^d and of the unit ball, lr = 0.02 / d^2."""
    return [
        {"label": f"{body}-d{d}", "body": body, "d": d, "c": 0.02, "tolerance": 0.1, "time": 5.0, "chains": chains}
        for body in ("box", "ball")
        for d in dims
    ]


MIXINGS = presets(
    {
        "quick": _mixings([2, 4, 8, 12], 1000),
        "standard": _mixings([2, 4, 8, 16, 32], 2000),
        "paper": _mixings([4, 8, 16, 32, 64], 4000),
    },
    SEEDS,
)


def _grown(law: Callable[[int], float]) -> Callable[[Description, np.random.Generator], Mapping[str, Any]]:
    return lambda told, random: {"steps": law(told["d"]) * float(np.exp(random.normal(0, 0.05))), "atoms": 0.08, "lr": told["c"]}


@claim(
    "L2",
    sentence="With steps of the order of 1 / n^2 the number of steps to reach a uniform target grows no faster than n^7.",
    source=Source(PAPER, "Theorem 1 [recalled]"),
    scope="sweep",
    statistic="power of n that the steps follow until |X| is within 0.1 of the target (Kolmogorov), on a box and a ball",
    threshold=f"< {THEOREM:g} over all n, and between the two largest (no exponential passes); the worst part is told",
    quantities={},
    experiments=MIXINGS,
    controls=Controls(
        made(MIXINGS["quick"], _grown(lambda d: 30 * d**2.3)),
        made(MIXINGS["quick"], _grown(lambda d: 3 * d**7.5)),
        made(MIXINGS["quick"], _grown(lambda d: 30 * d**2.3), seeds=SEEDS - 1),
        made(MIXINGS["quick"], lambda told, random: {"steps": None, "atoms": 0.6 + 0.01 * random.normal(), "lr": told["c"]}),
    ),
    study=study_steps,
)  # fmt: skip
def polynomial(runs: Sequence[Evidence]) -> Verdict:
    """Judge L2; where the atoms alone exceed the tolerance no number of steps is enough, and the claim says nothing.

    Args:
        runs: of `study_steps`.

    Returns:
        The verdict.
    """
    place, table = _place(runs), _table(runs, ("body", "d", "seed"), "steps")
    if not table:
        return _silent("L2", "undecided", THEOREM, "no chains were walked", place)
    missed = [run for run in runs if run.extra.get("steps") is None]
    if missed and all(run.extra["atoms"] > run.settings["tolerance"] for run in missed) and len(missed) > len(runs) / 2:
        reason = f"in {len(missed)} of {len(runs)} the atoms alone exceed the tolerance: lr is too large at any number of steps"
        return _silent("L2", "not in regime", THEOREM, reason, place)
    parts: list[Part] = []
    for body in sorted({key[0] for key in table}):
        own = {key: v for key, v in table.items() if key[0] == body}
        largest = sorted({key[1] for key in own})[-2:]
        ends = {key: v for key, v in own.items() if key[1] in largest}
        parts.append(Part(f"{body}: power of n", _powers(own, 1, 3), THEOREM, above=False, least=SEEDS))
        parts.append(Part(f"{body}: power between n = {largest}", _ratios(ends), THEOREM, above=False, least=SEEDS))
    return joint("L2", parts, place=place, details={"steps": _means(table)})


def _ratios(ends: Table) -> list[float]:
    """The power between two settings of each seed."""
    found = []
    for seed in sorted({key[-1] for key in ends}):
        own = sorted((key[1], v) for key, v in ends.items() if key[-1] == seed and v > 0)
        found.append(log(own[1][1] / own[0][1]) / log(own[1][0] / own[0][0]) if len(own) == 2 else nan)
    return found


# --- L3 ---------------------------------------------------------------------------------------------------------------------


def _volumes(dims: Mapping[int, int]) -> list[Description]:
    """Both bodies with all samplers; steps a phase in units of d^2, in 8 of which |x|^2 relaxes 8 times; hit-and-run takes 2."""
    return [
        {
            "label": f"{body}-d{d}-{sampler}", "body": body, "d": d, "sampler": sampler, "chains": chains,
            "steps": 2.0 if sampler == "hit_and_run" else 8.0,
        }
        for body in ("box", "box_and_ball")
        for d, chains in dims.items()
        for sampler in ("langevin", "reflected", "hit_and_run")
    ]  # fmt: skip


FOUND = presets(
    {
        "quick": _volumes({4: 1000, 8: 400}),
        "standard": _volumes({10: 2000, 20: 1000}),
        "paper": _volumes(dict.fromkeys(range(10, 101, 10), 1000)),
    },
    SEEDS,
)


def _off(langevin: float, hit_and_run: float = 0.0) -> Callable[[Description, np.random.Generator], Mapping[str, Any]]:
    """Log volumes off the truth by so much, with a scatter of 3 %."""

    def law(told: Description, random: np.random.Generator) -> Mapping[str, Any]:
        truth = volumes.known(told["body"], told["d"]) if told["body"] == "box" else told["d"] * 0.5
        bias = hit_and_run if told["sampler"] == "hit_and_run" else langevin
        return {"log_volume": truth + bias + random.normal(0, 0.03), "stderr": 0.03, "known": truth, "seconds": 1.0, "phases": 9}

    return law


@claim(
    "L3",
    sentence="With the paper's step the volumes of Box and of Box and Ball come out as with hit-and-run.",
    source=Source(PAPER, "experiments, step 1 / (beta n^2) [recalled]"),
    scope="sweep",
    statistic="mean over seeds of the ratio of the volumes by projected Langevin and by hit-and-run, for each body and dimension",
    threshold=f"1 within a factor {VOLUMES}, by two one-sided tests, for all; the one nearest to failing is told",
    quantities={},
    experiments=FOUND,
    controls=Controls(
        made(FOUND["quick"], _off(0.02)),
        made(FOUND["quick"], _off(0.4)),
        made(FOUND["quick"], _off(0.02), seeds=SEEDS - 1),
        made(FOUND["quick"], _off(0.02, -0.5)),
    ),
    study=volumes.study,
)  # fmt: skip
def same_volumes(runs: Sequence[Evidence]) -> Verdict:
    """Judge L3; both bodies have known volumes, and the errors of all samplers are told, the reflected chain's among them.

    Args:
        runs: of `volumes.study`.

    Returns:
        The verdict.
    """
    place = _place(runs)
    errors = {
        (*(run.settings[key] for key in ("sampler", "body", "d", "seed")),): run.extra["log_volume"] - run.extra["known"]
        for run in runs
    }
    twins = {key: ("hit_and_run", *key[1:]) for key in errors if key[0] == "langevin"}
    pairs = {key[1:]: errors[key] - errors[twin] for key, twin in twins.items() if twin in errors}
    if not pairs:
        return _silent("L3", "undecided", 1.0, "no volume was found by both samplers", place)
    told = _means(errors)
    off = {name: v for name, v in told.items() if name.startswith("hit_and_run") and abs(v) > log(VOLUMES)}
    if off:
        return _silent("L3", "not in regime", 1.0, f"hit-and-run itself misses the known volumes: {off}; it has not mixed", place)
    parts: list[Part] = []
    for body, d in sorted({key[:2] for key in pairs}):
        units = [v for key, v in sorted(pairs.items()) if key[:2] == (body, d)]
        parts += equal(f"{body}, d = {d}: ratio of volumes", units, 0.0, log(VOLUMES), logs=True)
    seconds = _means(_table(runs, ("sampler", "body", "d", "seed"), "seconds"))
    details = {"log_error": told, "seconds": seconds, "stderr": _means(_table(runs, ("sampler", "body", "d", "seed"), "stderr"))}
    return joint("L3", parts, place=place, details=details)


# --- L4 ---------------------------------------------------------------------------------------------------------------------


def _surfaces(dims: Sequence[int], lr: float, chains: int) -> list[Description]:
    """On the unit ball: lr fixed, and lr ~ 1 / d^2 from the same lr in the lowest dimension on."""
    arms = {"fixed": 0, "scaled": 2}
    return [
        {"label": f"{arm}-d{d}", "arm": arm, "d": d, "lr": lr * (dims[0] / d) ** power, "time": 0.6, "chains": chains}
        for arm, power in arms.items()
        for d in dims
    ]


SURFACES = presets(
    {
        "quick": _surfaces([2, 4, 8], 1e-3, 1500),
        "standard": _surfaces([2, 4, 8], 2.5e-4, 10_000),
        "paper": _surfaces([2, 4, 8, 16], 1e-4, 20_000),
    },
    SEEDS,
)


def _counted(power: float = 1.0, more: float = 0.0) -> Callable[[Description, np.random.Generator], Mapping[str, Any]]:
    """Shares of 20 000 points that follow the law on a ball, d to the power."""

    def law(told: Description, random: np.random.Generator) -> Mapping[str, Any]:
        dims = max(1, round(2 * (told["d"] / 2) ** power))
        share = min(0.95, ball_mass(dims, lr=told["lr"]).value + more)
        return {"share": float(random.binomial(20_000, share)) / 20_000, "d": told["d"], "lr": told["lr"]}

    return law


@claim(
    "L4",
    sentence="Higher dimensions need smaller steps: the mass on the surface grows with n, and stays where lr falls as 1 / n^2.",
    source=Source("derived in the specification, section 3; the step of " + PAPER),
    scope="sweep",
    statistic="powers of n that the mass on the unit sphere follows, within seeds, at a fixed lr and at lr ~ 1 / n^2",
    threshold=f"1 and 0, each within {LINEAR} by two one-sided tests; the one nearest to failing is told",
    quantities={},
    experiments=SURFACES,
    controls=Controls(
        made(SURFACES["quick"], _counted()),
        made(SURFACES["quick"], _counted(0.5)),
        made(SURFACES["quick"], _counted(), seeds=SEEDS - 1),
        made(SURFACES["quick"], _counted(more=0.6)),
    ),
    study=study_surface,
)  # fmt: skip
def smaller_steps(runs: Sequence[Evidence]) -> Verdict:
    """Judge L4; the closed form d sqrt(lr / 2) / (1 + 0.58 d sqrt(lr)) is told beside.

    Args:
        runs: of `study_surface`.

    Returns:
        The verdict.
    """
    place, table = _place(runs), _table(runs, ("arm", "d", "seed"), "share")
    if not table:
        return _silent("L4", "undecided", 1.0, "no chains were walked", place)
    if np.mean(list(table.values())) > FULL:
        return _silent("L4", "not in regime", 1.0, f"more than {FULL:.0%} of the mass lies on the surface already", place)
    parts: list[Part] = []
    for arm, middle in (("fixed", 1.0), ("scaled", 0.0)):
        own = {key: v for key, v in table.items() if key[0] == arm}
        parts += equal(f"lr {arm}: power of n", _powers(own, 1, 3), middle, LINEAR)
    law = {
        f"{run.settings['arm']} {run.settings['d']}": ball_mass(run.settings["d"], lr=run.settings["lr"]).value for run in runs
    }
    return joint("L4", parts, place=place, details={"share": _means(table), "law": law})
