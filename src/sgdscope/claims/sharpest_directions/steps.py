"""The claims S6-S11: the step of SGD against the sharpest directions (Jastrzebski et al. 2019).

Thresholds were written before any run. Where the paper gives no number they are this project's, said on their line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sgdscope.contracts import Answer, Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence.parts import RUNS, WITHIN, Part, joint
from sgdscope.evidence.shapes import seeds_of
from sgdscope.evidence.sharp_runs import ARMS, BASE, BRANCHES, arm_of
from sgdscope.evidence.sharpness import POINTS, Path, made, path
from sgdscope.evidence.sharpness import place as place_paths
from sgdscope.evidence.steps import EARLY, FAR, GROUP, Stage, average, place, stage, stepped
from sgdscope.evidence.windows import LOSS_SHARE

Array = NDArray[np.float64]
PAPER = "Jastrzebski et al. 2019 (arXiv 1807.05031)"
FAR_ABOVE = 10**0.5  # S10: half an order of magnitude in the cosine, hence an order in its square, the share
PAIRS = 5  # S11: paired seeds where two settings are compared
QUANTITIES: Mapping[str, Mapping[str, Any]] = {"sharpest": {"k": 5, "points": 4}}  # one run has at least 2 windows: 8 points


# --- S6 - S9: after the earliest phase ------------------------------------------------------------------------------------------


def _late(claim_id: str, runs: Sequence[Evidence]) -> tuple[list[Stage], Verdict | None]:
    """The points after the earliest phase of the runs to which a claim applies, or the verdict that says why there are none."""
    measured = [run for run in runs if GROUP in run.measured and run.measured[GROUP]["step"].size]
    found = [stage(run, EARLY) for run in measured]
    near = [s for s in found if s.kept.any() and np.nanmedian(s.half_eta_sharpness) >= FAR]
    points = sum(int(s.kept.sum()) for s in near)
    answer: Answer = "undecided"
    if not any(run.measured[GROUP]["step"].size >= POINTS for run in measured):
        reason = f"no run with {POINTS} measured points is at hand"
    elif not near:
        answer = "not in regime"
        reason = (
            f"after the first {EARLY:.0%} of the updates the training loss is below {LOSS_SHARE:.0%} of its initial value or "
            f"lr lambda_1 / 2 below {FAR:g}, in each of {len(found)} runs"
        )
    elif len(near) < RUNS and points < POINTS:
        reason = f"{points} points of {len(near)} runs are at hand, {RUNS} runs or {POINTS} points are needed"
    else:
        return near, None
    return [], Verdict(claim_id, answer, nan, (nan, nan), points, 0.0, reason, place(found))


def _part(text: str, found: Sequence[Stage], value: Callable[[Stage], Array]) -> Part:
    return Part(text, [value(s) for s in found], 0.0, within=POINTS)


def _mean(found: Sequence[Stage], value: Callable[[Stage], Array]) -> float:
    return average([value(s) for s in found])


def _told(found: Sequence[Stage]) -> dict[str, Any]:
    """Mean effects over the points, before and after the end of the earliest phase, and where the parabola is lowest."""
    stages = {"early": [stage(s.run, 0.0, EARLY) for s in found], "late": list(found)}
    told: dict[str, Any] = {when: _effects(some) for when, some in stages.items()}
    told["alpha_star"] = _mean(found, lambda s: s.of("alpha_star", arm="e1"))
    told["share_crossing"] = _mean(found, lambda s: np.where(np.isfinite(a := s.of("alpha_star", arm="e1")), a < 1, nan))
    return told | {"half_eta_sharpness": _mean(found, lambda s: s.half_eta_sharpness)}


def _effects(some: Sequence[Stage]) -> dict[str, float]:
    """The mean effect of some arms, each under a name such as "e1 x 0.5"."""
    arms = (("e1", 0.5), ("e1", 1.0), ("e1", 2.0), ("e5", 1.0), ("random", 1.0), ("bulk", 1.0), ("full", 1.0))
    table = {f"{arm} x {alpha:g}": [s.effect(arm, alpha) for s in some] for arm, alpha in arms}
    return {name: average(values) for name, values in table.items()}


def _run(seed: int, effects: Mapping[tuple[str, float], float], *, points: int = 20, lr: float = 0.2, **told: Any) -> Evidence:
    """A run of 200 updates whose effects scatter round the given means from its tenth part on, and are negative before."""
    random = np.random.default_rng(seed)
    steps = np.linspace(0, 199, points).round().astype(int)
    late, scatter = steps >= 20, 0.02 * random.standard_normal(points) + 0.005 * random.standard_normal()
    given = {key: np.where(late, mean, -0.05) + scatter * abs(key[1]) for key, mean in effects.items()}
    rises = {key: mean * np.exp(0.2 * random.standard_normal(points)) for key, mean in told.pop("rise", {}).items()}
    ratios = {
        name: told.pop(name) * np.exp(0.2 * random.standard_normal(points)) for name in ("alignment", "share") if name in told
    }
    losses = told.pop("losses", 2.3 * np.exp(-steps / 150))
    settings = {"lr": lr, "seed": seed, "updates": 200, "batch_size": 64}
    return stepped(settings, steps.tolist(), losses, effect=given, rise=rises, **ratios, **told)


def _runs(seed: int, effects: Mapping[tuple[str, float], float], count: int = 5, **told: Any) -> list[Evidence]:
    return [_run(s, effects, **told) for s in seeds_of(seed, count)]


def _controls(good: Mapping[tuple[str, float], float], bad: Mapping[tuple[str, float], float]) -> Controls:
    """Runs with known effects; one run with few points; runs whose step is far too short."""
    return Controls(
        lambda seed: _runs(seed, good),
        lambda seed: _runs(seed, bad),
        lambda seed: _runs(seed, good, 1, points=6),
        lambda seed: _runs(seed, bad, lr=1e-3),
    )


@claim(
    "S6",
    sentence="After the earliest phase the step of SGD does not reduce the loss along the sharpest direction.",
    source=Source(PAPER, "abstract; released step analysis (E5, E6)"),
    scope="run",
    statistic="mean relative change of the loss by the mini-batch step's part along e_1, after the first tenth of the updates",
    threshold="> 0",
    quantities=QUANTITIES,
    experiments=BASE,
    controls=_controls({("e1", 1.0): 0.02, ("random", 1.0): 0.0}, {("e1", 1.0): -0.02, ("random", 1.0): 0.0}),
)
def does_not_reduce(runs: Sequence[Evidence]) -> Verdict:
    """Judge S6: the mean over seeds, or over the points of one run. A random direction, in the details, gives about zero.

    Args:
        runs: with the quantity sharpest along the whole run.

    Returns:
        The verdict; how it was before is told in the details.
    """
    found, early = _late("S6", runs)
    if early:
        return early
    parts = [_part("relative change of the loss along e_1", found, lambda s: s.effect("e1"))]
    details = _told(found)
    before = details["early"]["e1 x 1"]
    lead = f"in the first {EARLY:.0%} of the updates it is {before:.3g}; " if np.isfinite(before) else ""
    lead += f"along a random direction {details['late']['random x 1']:.2g}; then "
    return joint("S6", parts, place=place(found), lead=lead, details=details)


@claim(
    "S7",
    sentence="Along the sharpest direction half a step of SGD reduces the loss and two steps raise it: it crosses the minimum.",
    source=Source(PAPER, "released step analysis, alpha in {0.5, 1, 2}; the signs are recalled"),
    scope="run",
    statistic="effects D(alpha) of alpha steps along e_1: D(2) - D(1), D(1) - D(1/2), -D(1/2), D(2): the one that holds least",
    threshold="all > 0",
    quantities=QUANTITIES,
    experiments=BASE,
    controls=_controls(
        {("e1", 0.5): -0.03, ("e1", 1.0): 0.03, ("e1", 2.0): 0.2}, {("e1", 0.5): -0.03, ("e1", 1.0): -0.06, ("e1", 2.0): -0.1}
    ),
)
def shorter_is_better(runs: Sequence[Evidence]) -> Verdict:
    """Judge S7: four parts, paired over the same mini-batches at each point; alpha* < 1 is told in the details."""
    found, early = _late("S7", runs)
    if early:
        return early
    parts = [
        _part("two steps against one", found, lambda s: s.effect("e1", 2.0) - s.effect("e1")),
        _part("one step against half", found, lambda s: s.effect("e1") - s.effect("e1", 0.5)),
        _part("fall by half a step", found, lambda s: -s.effect("e1", 0.5)),
        _part("rise by two steps", found, lambda s: s.effect("e1", 2.0)),
    ]
    details = _told(found)
    lead = f"the mean of alpha* is {details['alpha_star']:.3g}, below 1 at {details['share_crossing']:.0%} of the points; "
    return joint("S7", parts, place=place(found), lead=lead, details=details)


@claim(
    "S8",
    sentence="The whole step of SGD reduces the loss while its part along the sharpest direction does not.",
    source=Source(PAPER, "released step analysis, arm without a direction"),
    scope="run",
    statistic="fall of the loss by the whole step, rise by its part along e_1: the one that holds least",
    threshold="both > 0",
    quantities=QUANTITIES,
    experiments=BASE,
    controls=_controls({("e1", 1.0): 0.02, ("full", 1.0): -0.03}, {("e1", 1.0): 0.02, ("full", 1.0): 0.03}),
)
def others_reduce(runs: Sequence[Evidence]) -> Verdict:
    """Judge S8: both parts must hold on the mean."""
    found, early = _late("S8", runs)
    if early:
        return early
    parts = [
        _part("fall by the whole step", found, lambda s: -s.effect("full")),
        _part("rise along e_1", found, lambda s: s.effect("e1")),
    ]
    return joint("S8", parts, place=place(found), details=_told(found))


BOWL = {(1, -1.0): 0.02, (1, 1.0): 0.1, (3, -1.0): 0.01, (3, 1.0): 0.03, (5, -1.0): 0.002, (5, 1.0): 0.01}
SLOPE = BOWL | {(1, -1.0): -0.05}


@claim(
    "S9",
    sentence="On the scale of a step the loss is a bowl along the sharpest direction, flatter along the 3rd and the 5th.",
    source=Source(PAPER, "released cross-sections along e_1, e_3, e_5; the shape is recalled"),
    scope="run",
    statistic=(
        "relative rise of the loss one mean step s_1 to either side along e_1; excess of the quadratic coefficient (in steps "
        "s_i) of e_1 over e_3, and of e_3 over e_5: the one that holds least"
    ),
    threshold="all > 0",
    quantities=QUANTITIES,
    experiments=BASE,
    controls=Controls(
        lambda seed: _runs(seed, {}, rise=BOWL),
        lambda seed: _runs(seed, {}, rise=SLOPE),
        lambda seed: _runs(seed, {}, 1, points=6, rise=BOWL),
        lambda seed: _runs(seed, {}, lr=1e-3, rise=BOWL),
    ),
)
def bowl_shaped(runs: Sequence[Evidence]) -> Verdict:
    """Judge S9. Minus is the side to which the gradient descends: the loss rises there only if the step crosses the minimum."""
    found, early = _late("S9", runs)
    if early:
        return early

    def rise(s: Stage, rank: int, side: float) -> Array:
        return s.of("section", cross=rank, position=side) / s.of("subset_loss") - 1

    def bend(s: Stage, rank: int) -> Array:
        return (rise(s, rank, -1.0) + rise(s, rank, 1.0)) / 2

    parts = [
        _part("rise where the gradient descends", found, lambda s: rise(s, 1, -1.0)),
        _part("rise on the other side", found, lambda s: rise(s, 1, 1.0)),
        _part("bend of e_1 against e_3", found, lambda s: bend(s, 1) - bend(s, 3)),
        _part("bend of e_3 against e_5", found, lambda s: bend(s, 3) - bend(s, 5)),
    ]
    details = {"bend": {f"e{i}": average([bend(s, i) for s in found]) for i in (1, 3, 5)}}
    return joint("S9", parts, place=place(found), details=details)


# --- S10 --------------------------------------------------------------------------------------------------------------------


@claim(
    "S10",
    sentence="All along the training mini-batch gradients are aligned with the sharpest directions far above chance.",
    source=Source(PAPER, "released alignment experiment (E7); Gur-Ari et al. 2018 (1812.04754)"),
    scope="run",
    statistic=(
        "mean |cos| with e_1..e_5 over that of a random direction, and the share of the gradient within them over K / P, in the "
        "first and in the second half of the training: the one that holds least"
    ),
    threshold=f"> {FAR_ABOVE:.2f} and > {FAR_ABOVE**2:.0f}",
    quantities=QUANTITIES,
    experiments=BASE,
    controls=Controls(
        lambda seed: _runs(seed, {}, alignment=15.0, share=200.0),
        lambda seed: _runs(seed, {}, alignment=1.1, share=1.2),
        lambda seed: _runs(seed, {}, 1, points=6, alignment=15.0, share=200.0),
        lambda seed: _runs(seed, {}, alignment=3.0, share=8.0, size=20),
    ),
)
def aligned(runs: Sequence[Evidence]) -> Verdict:
    """Judge S10. Chance is that of a direction uniform among all P; parameters that never get a gradient (dead inputs) lower it.

    Out of regime where K / P is so large that the share cannot be that far above it. A vanished training loss is left out.

    Args:
        runs: with the quantity sharpest along the whole run.

    Returns:
        The verdict.
    """
    threshold = FAR_ABOVE
    measured = [run for run in runs if GROUP in run.measured and run.measured[GROUP]["step"].size]
    halves = {name: [stage(run, *ends) for run in measured] for name, ends in {"first": (0, 0.5), "second": (0.5, 1)}.items()}
    every = [s for found in halves.values() for s in found]
    chance = [float(run.measured[GROUP]["share_chance"].values[-1]) for run in measured]
    if chance and min(chance) * FAR_ABOVE**2 >= 1:
        reason = f"K / P = {min(chance):.2g}: no share is {FAR_ABOVE**2:.0f} times as large"
        return Verdict("S10", "not in regime", nan, (nan, nan), len(measured), threshold, reason, place(every))
    if not any(run.measured[GROUP]["step"].size >= POINTS for run in measured):
        reason = f"no run with {POINTS} measured points is at hand"
        return Verdict("S10", "undecided", nan, (nan, nan), len(measured), threshold, reason, place(every))

    def cosine(s: Stage) -> Array:
        return np.log(s.of("mean_alignment") / float(s.data["alignment_chance"]))

    def share(s: Stage) -> Array:
        last = int(s.data["rank"].values[-1])
        return np.log(s.of("batch_share", rank=last) / float(s.data["share_chance"].values[-1]))

    parts = []
    for name, found in halves.items():
        told: dict[str, Any] = {"logs": True, "within": WITHIN}
        parts.append(Part(f"|cos| over chance in the {name} half", [cosine(s) for s in found], log(FAR_ABOVE), **told))
        parts.append(Part(f"share over chance in the {name} half", [share(s) for s in found], 2 * log(FAR_ABOVE), **told))
    details = {"mean_cosine": _mean(every, lambda s: s.of("mean_alignment")), "chance": chance}
    details["share"] = _mean(every, lambda s: s.of("batch_share", rank=int(s.data["rank"].values[-1])))
    return joint("S10", parts, place=place(every), details=details)


# --- S11 --------------------------------------------------------------------------------------------------------------------

SIGNS = {
    ("removetop", "normal"): 1,
    ("topscaled0.25", "normal"): 1,
    ("onlytop", "normal"): -1,
    ("topscaled4", "normal"): -1,
    ("constanttop", "onlytop"): 1,
}  # the table's: a stale e_1 loses the effect of onlytop


def _branches(seed: int, ends: Mapping[str, float], count: int = 5, lr: float = 0.1) -> list[Evidence]:
    """The arms of E8 from a point with lambda_1 = 10, each to its own lambda_1, with lognormal scatter."""
    told = []
    for s in seeds_of(seed, count):
        random = np.random.default_rng(s)
        start = 10 * np.exp(0.1 * random.standard_normal())
        for arm, options in ARMS.items():
            walker = {"walker": "nudged", "k": 1, **options} if options else {"walker": "sgd"}
            settings = {"lr": lr, "batch_size": 64, "seed": s, "experiment": {"phases": [{"walker": "sgd"}, walker]}}
            end = start * ends.get(arm, 1.0) * np.exp(0.05 * random.standard_normal())
            told.append(made(settings, [30, 90], [start, end], [2.0, 1.8]))
    return told


PAPERS_SIGNS = {"removetop": 1.5, "onlytop": 0.5, "topscaled0.25": 1.3, "topscaled4": 0.7}


@claim(
    "S11",
    sentence=(
        "Removing or shrinking the part of the step along the sharpest direction raises lambda_1, following only it or "
        "stretching it lowers lambda_1, and a stale direction has not that effect."
    ),
    source=Source(PAPER, "released ablation (E8); the outcome is recalled"),
    scope="sweep",
    statistic=(
        "difference of lambda_1 after the same number of updates from one point, in units of lambda_1 there: each arm against "
        "plain SGD, and the stale direction against the fresh one: the one that holds least"
    ),
    threshold=f"signs of the table, over {PAIRS} paired seeds",
    quantities={"curvature": {"k": 5}},
    experiments=BRANCHES,
    controls=Controls(
        lambda seed: _branches(seed, PAPERS_SIGNS),
        lambda seed: _branches(seed, {arm: 1 / x for arm, x in PAPERS_SIGNS.items()}),
        lambda seed: _branches(seed, PAPERS_SIGNS, 3),
        lambda seed: _branches(seed, PAPERS_SIGNS, lr=1e-3),
    ),
)
def top_part_lowers(runs: Sequence[Evidence]) -> Verdict:
    """Judge S11: five paired comparisons, all of which must have the sign of the table; each is told in the details.

    Out of regime: seeds at whose branching point lr lambda_1 / 2 is below `FAR`, or whose training loss has vanished.

    Args:
        runs: the arms of E8 of each seed.

    Returns:
        The verdict.
    """
    arms: dict[int, dict[str, Path]] = {}
    for run in runs:
        one, arm = path(run), arm_of(run)
        if arm is not None and len(one.steps) >= 2:
            arms.setdefault(one.seed, {})[arm] = one
    whole = {seed: found for seed, found in arms.items() if "normal" in found}
    kept = {seed: found for seed, found in whole.items() if _near(found["normal"])}
    regime = place_paths([found["normal"] for found in whole.values()])
    if len(kept) < PAIRS <= len(whole):
        reason = f"in {len(whole) - len(kept)} of {len(whole)} seeds lr lambda_1 / 2 is below {FAR:g} at the branching point, "
        return Verdict("S11", "not in regime", nan, (nan, nan), len(whole), 0.0, reason + "or the loss has vanished", regime)
    if len(kept) < PAIRS:
        reason = f"{len(kept)} seeds with a branch of plain SGD are at hand, {PAIRS} are needed"
        return Verdict("S11", "undecided", nan, (nan, nan), len(kept), 0.0, reason, regime)
    parts = []
    for (arm, other), sign in SIGNS.items():
        pairs = [(found[arm], found[other]) for found in kept.values() if arm in found and other in found]
        values = [float((a.values[-1] - b.values[-1]) / b.values[0]) for a, b in pairs]
        parts.append(Part(f"{arm} against {other}", values, above=sign > 0, least=PAIRS))
    change = {arm: [float(f[arm].values[-1] / f[arm].values[0] - 1) for f in kept.values() if arm in f] for arm in ARMS}
    details = {"relative_change": {arm: float(np.mean(values)) if values else nan for arm, values in change.items()}}
    details["training_loss"] = {
        arm: float(np.mean([f[arm].losses[-1] for f in kept.values() if arm in f] or [nan])) for arm in ARMS
    }
    return joint("S11", parts, place=regime, details=details, smallest_p=0.5 ** len(kept))


def _near(normal: Path) -> bool:
    """Whether the branching point lies in the regime of the claim."""
    return normal.lr * normal.values[0] / 2 >= FAR and not normal.losses[-1] < LOSS_SHARE * normal.initial
