"""The claims W1-W11 of "A Walk with SGD" (Xing, Arpit, Tsirigotis, Bengio 2018).

Thresholds were written before any run. Where the paper gives no number they are this project's, said on their line.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log
from typing import Any

import numpy as np
import xarray as xr

from sgdscope import statistics
from sgdscope.contracts import Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence import controls
from sgdscope.evidence.floor import floor_barriers
from sgdscope.evidence.protocols import ONE_RUN, SWEEP, Chosen, presets
from sgdscope.evidence.windows import (
    NOISE,
    UPDATES,
    Cell,
    Window,
    applicable,
    balanced,
    cells,
    decide,
    finite,
    full_batch,
    left_out,
    mean_finite,
    regime,
    trend,
    weakest,
    windows_of,
    without,
)

PAPER = "Xing et al. 2018 (arXiv 1802.08770)"
CONVEX_SHARE, PARABOLA_R2 = 0.9, 0.99  # W1: project thresholds; the paper says "roughly convex"
INTERIOR = 0.5  # W2: "for most of the training" (abstract), an update counts if 0 < alpha* < 1
OVERSHOOT = 1.0  # W2, W9: full-batch descent applies from eta x curvature = 1 on (Cohen et al. 2021 restrict the claim)
DROP = 10**0.5  # W6: "much lower" is read as half an order of magnitude, for a learning rate cut by ten
EQUAL_COSINE = 0.05  # W7: mean cosines within 0.05 count as equal
EDGE_COSINE = -0.5  # W9: the cosine of full-batch descent must lie below; exactly -1 on a quadratic at its edge
FLOOR_SHARE, RARE = 0.1, 0.1  # W10, W11: a tenth; the paper's count is recalled as at most 20 of 450 updates
PAIRS = 5  # paired seeds where two settings are compared; with five the smallest one-sided sign-test p is 1/32
QUANTITIES: Mapping[str, Mapping[str, Any]] = {"valley": {}, "motion": {}}


def _runs(found: Sequence[Window]) -> dict[str, Any]:
    """Of which runs the windows are: the intervals cover the updates of these runs, not other seeds."""
    names = ("lr", "batch_size", "seed")
    runs = {id(w.run): w.run.settings for w in found}.values()
    return {"runs": [{name: settings.get(name) for name in names} for settings in runs]}


@claim(
    "W1",
    sentence="The training loss along one update is roughly convex.",
    source=Source(PAPER, "abstract of v2-v4, Figures 1 and 2"),
    scope="run",
    statistic="share of updates whose curve has no negative second difference beyond its error; median R2 of a parabola",
    threshold=f"share >= {CONVEX_SHARE} and median R2 >= {PARABOLA_R2}",
    quantities=QUANTITIES,
    experiments=ONE_RUN,
    controls=Controls(controls.bouncing, controls.rippled, lambda seed: controls.bouncing(seed, 20), controls.vanished),
)
def convex(runs: Sequence[Evidence]) -> Verdict:
    """Judge W1: both the share of convex updates and the fit of a parabola."""
    found, early = applicable("W1", runs, CONVEX_SHARE)
    if early:
        return early
    flags, r2 = finite(found, "convex"), finite(found, "r2")
    if min(len(flags), len(r2)) < UPDATES:
        return without(
            "W1", "undecided", CONVEX_SHARE, f"{len(flags)} updates have a curve, at least {UPDATES} are needed", found
        )
    share, interval = statistics.share_interval(flags)
    fit, _, around = statistics.block_bootstrap(r2, np.median)
    verdict = weakest([decide(interval, CONVEX_SHARE), decide(around, PARABOLA_R2)])
    reason = (
        f"{share:.1%} of {len(flags)} updates are convex within their error; a parabola explains a median of {fit:.4f}"
        + left_out(runs, found)
    )
    details = {"median_r2": fit, "median_r2_interval": list(around)} | _runs(found)
    return Verdict("W1", verdict, share, interval, len(flags), CONVEX_SHARE, reason, regime(found), None, details)


@claim(
    "W2",
    sentence="For most of the training the lowest point of an update lies strictly between its two ends.",
    source=Source(PAPER, "abstract of v2-v4"),
    scope="run",
    statistic="share of updates with 0 < alpha* < 1, median over the windows of the training",
    threshold=f"> {INTERIOR} in most windows",
    quantities=QUANTITIES,
    experiments=ONE_RUN,
    controls=Controls(controls.bouncing, controls.descending, lambda seed: controls.bouncing(seed, 20), controls.creeping),
)
def floor_between(runs: Sequence[Evidence]) -> Verdict:
    """Judge W2: most windows must have an interval above one half."""
    found, early = applicable("W2", runs, INTERIOR, edge=OVERSHOOT)
    if early:
        return early
    shares = [statistics.share_interval(flags) for w in found if (flags := finite([w], "interior")).size]
    if not shares:
        return without("W2", "undecided", INTERIOR, "no update has a finite loss", found)
    share = float(np.median([s for s, _ in shares]))
    low, high = (float(np.median([i[end] for _, i in shares])) for end in (0, 1))
    clear = [decide(i, INTERIOR) for _, i in shares]
    many = {answer: clear.count(answer) for answer in ("supported", "contradicted")}
    verdict = next((a for a in many if 2 * many[a] > len(shares)), "undecided")
    if 2 * len(found) < sum(len(windows_of(run)) for run in runs):
        verdict = "undecided"  # what is left is not most of the training
    above = many["supported"]
    reason = (
        f"the floor lies inside {share:.1%} of the updates (median of {len(shares)} windows, {above} clearly above half)"
        + left_out(runs, found)
    )
    details = {"windows": [[w.first, s] for w, (s, _) in zip(found, shares, strict=False)]} | _runs(found)
    return Verdict("W2", verdict, share, (low, high), len(shares), INTERIOR, reason, regime(found), None, details)  # type: ignore[arg-type]  # a key of a literal dict


@claim(
    "W3",
    sentence="Consecutive gradients point against each other: SGD jumps from wall to wall.",
    source=Source(PAPER, "Figures 1 and 2, middle panel"),
    scope="run",
    statistic="mean cosine of consecutive mini-batch gradients",
    threshold="< 0",
    quantities=QUANTITIES,
    experiments=ONE_RUN,
    controls=Controls(controls.bouncing, controls.descending, lambda seed: controls.bouncing(seed, 20), controls.vanished),
)
def opposed(runs: Sequence[Evidence]) -> Verdict:
    """Judge W3: the sign of the mean cosine over the measured windows."""
    found, early = applicable("W3", runs, 0.0)
    if early:
        return early
    cosines = finite(found, "gradient_cosine", "steps")
    if len(cosines) < UPDATES - 1:
        return without("W3", "undecided", 0.0, f"{len(cosines)} cosines were recorded, at least {UPDATES - 1} are needed", found)
    mean, _, interval = statistics.block_bootstrap(cosines)
    share = float((cosines < 0).mean())
    reason = f"the mean cosine is {mean:.3f} over {len(cosines)} updates; {share:.1%} are negative"
    reason += left_out(runs, found)
    details = {"share_negative": share, "predicted": mean_finite([w.at("gradient_cosine_predicted", "motion") for w in found])}
    details |= _runs(found)
    return Verdict(
        "W3", decide(interval, 0.0, above=False), mean, interval, len(cosines), 0.0, reason, regime(found), None, details
    )


@claim(
    "W4",
    sentence="SGD moves at a height above the valley floor.",
    source=Source(PAPER, "abstract of v1-v4"),
    scope="run",
    statistic="mean height of the lower of the update's two walls (0 where the floor is not between them); loss",
    threshold=f"> {NOISE:g} x the noise floor of the evaluation",
    quantities=QUANTITIES,
    experiments=ONE_RUN,
    controls=Controls(controls.bouncing, controls.descending, lambda seed: controls.bouncing(seed, 20), controls.vanished),
)
def at_height(runs: Sequence[Evidence]) -> Verdict:
    """Judge W4. (h0 + h1) / 2 would count plain progress downhill as height; the lower wall does not. Both are told."""
    found, early = applicable("W4", runs, NOISE, height=False)
    if early:
        return early
    inside = np.concatenate([w.of("interior") for w in found]) == 1
    ends = np.stack([np.concatenate([w.of(name) for w in found]) for name in ("height_start", "height_end")])
    walls = np.where(inside, ends.min(0), 0.0)
    walls = walls[np.isfinite(walls)]
    floor = NOISE * max(w.noise_floor for w in found)
    mean, _, interval = statistics.block_bootstrap(walls)
    height, loss = float(np.mean([w.height for w in found])), float(np.nanmean([w.loss for w in found]))
    of = f"{height / loss:.2%} of the loss"
    reason = f"the lower wall is {mean:.3g} high (threshold {floor:.2g}); both on average {height:.3g}, {of}" + left_out(
        runs, found
    )
    details = {"mean_height": height, "height_over_loss": height / loss} | _runs(found)
    return Verdict("W4", decide(interval, floor), mean, interval, len(walls), floor, reason, regime(found), None, details)


@claim(
    "W11",
    sentence="SGD at its height rarely crosses a barrier within an update.",
    source=Source("ICLR 2019 submission B1l6e3RcF7 of the same authors", "abstract"),
    scope="run",
    statistic="share of updates whose curve rises above both ends by more than its error",
    threshold=f"< {RARE}",
    quantities=QUANTITIES,
    experiments=ONE_RUN,
    controls=Controls(controls.bouncing, controls.rippled, lambda seed: controls.bouncing(seed, 20), controls.vanished),
)
def few_barriers(runs: Sequence[Evidence]) -> Verdict:
    """Judge W11: the share of updates with a barrier on the full loss."""
    found, early = applicable("W11", runs, RARE)
    if early:
        return early
    flags = np.concatenate([w.crossed for w in found])
    if len(flags) < UPDATES:
        return without("W11", "undecided", RARE, f"{len(flags)} updates have a curve, at least {UPDATES} are needed", found)
    share, interval = statistics.share_interval(flags)
    reason = f"{int(flags.sum())} of {len(flags)} updates cross a barrier"
    reason += left_out(runs, found)
    return Verdict(
        "W11", decide(interval, RARE, above=False), share, interval, len(flags), RARE, reason, regime(found), None, _runs(found)
    )


@claim(
    "W5",
    sentence="A larger learning rate keeps SGD at a larger height.",
    source=Source(PAPER, "abstract of v4"),
    scope="sweep",
    statistic="slope of log height over log learning rate, within seeds, at equal updates and batch size; Jonckheere's test",
    threshold="> 0",
    quantities=QUANTITIES,
    experiments=SWEEP,
    controls=Controls(
        lambda seed: controls.sweep(seed, (0.1, 0.3, 1.0), (8,), 3, lambda s, _lr, _b: controls.bowl(s)),
        lambda seed: controls.sweep(seed, (0.1, 0.3, 1.0), (8,), 3, lambda s, lr, _b: controls.bowl(s, noise=lr**-1.5)),
        lambda seed: controls.sweep(seed, (0.1, 0.3, 1.0), (8,), 1, lambda s, _lr, _b: controls.bowl(s)),
        controls.both_vanished,
    ),
)
def height_follows_lr(runs: Sequence[Evidence]) -> Verdict:
    """Judge W5: the trend of the mean height of the last window."""
    kept, early = balanced("W5", runs, 3)
    if early:
        return early
    found = trend({(c.lr, c.batch_size, c.seed): c.window.height for c in kept})
    if found is None:
        reason = "an ordered trend needs 3 learning rates with 3 seeds each"
        return without("W5", "undecided", 0.0, reason, [c.window for c in kept])
    heights = {f"{lr:g}": float(np.mean([c.window.height for c in kept if c.lr == lr])) for lr in sorted({c.lr for c in kept})}
    losses = {f"{lr:g}": float(np.mean([c.window.loss for c in kept if c.lr == lr])) for lr in sorted({c.lr for c in kept})}
    told = ", ".join(f"{h:.3g} at {lr}" for lr, h in heights.items())
    reason = f"the mean height is {told}; it grows with the power {found.slope:.2f} of the learning rate (p {found.p_rising:.2g})"
    place, details = regime([c.window for c in kept]), {"heights": heights, "training_losses": losses}
    return Verdict("W5", found.answer, found.slope, found.interval, found.seeds, 0.0, reason, place, found.smallest_p, details)


DROPPED: list[Chosen] = [(1.0, 1.0, s, {"drop": d}) for s in range(PAIRS) for d in (1.0, 10.0)]


@claim(
    "W6",
    sentence="Lowering the learning rate lowers the height at once.",
    source=Source(PAPER, "schedule guideline; Figure 6"),
    scope="sweep",
    statistic="mean height after a cut of the learning rate by ten, against the twin without it, in the same window; factor",
    threshold=f"lower by more than a factor of {DROP:.2f}",
    quantities=QUANTITIES,
    experiments=presets(DROPPED),
    controls=Controls(
        controls.dropping,
        lambda seed: controls.dropping(seed, 10.0),
        lambda seed: controls.dropping(seed, seeds=2),
        lambda seed: [r for e in controls.both_vanished(seed)[:PAIRS] for r in (e, e)],
    ),
)
def drop_lowers(runs: Sequence[Evidence]) -> Verdict:
    """Judge W6: paired seeds, log of the ratio of heights."""
    kept, early = balanced("W6", runs, PAIRS)
    if early:
        return early
    twins: dict[int, dict[bool, float]] = {}
    for c in kept:
        rates = np.asarray(c.window.run.steps["lr"].values, np.float64)
        twins.setdefault(c.seed, {})[bool(rates[-1] < rates[0])] = c.window.height
    pairs = [(log(t[False]), log(t[True])) for t in twins.values() if len(t) == 2 and min(t.values()) > 0]
    if len(pairs) < PAIRS:
        reason = f"{len(pairs)} pairs of a run with and one without the cut are at hand, {PAIRS} are needed"
        return without("W6", "undecided", DROP, reason, [c.window for c in kept])
    mean, (low, high), p, smallest = statistics.paired([undropped for undropped, _ in pairs], [dropped for _, dropped in pairs])
    verdict = decide((low, high), log(DROP))
    ends = (float(np.exp(low)), float(np.exp(high)))
    reason = f"the cut lowers the height by a factor of {np.exp(mean):.3g} (sign test p {p:.2g})"
    place = regime([c.window for c in kept])
    return Verdict("W6", verdict, float(np.exp(mean)), ends, len(pairs), DROP, reason, place, smallest)


@claim(
    "W7",
    sentence="The batch size plays another role than the learning rate: it is not only their ratio that counts.",
    source=Source(PAPER, "abstract of v4, introduction"),
    scope="sweep",
    statistic="mean cosine at the largest lr: difference to the run of equal lr / batch size, and effect of the batch size",
    threshold=f"both differ from 0; equal within {EQUAL_COSINE} contradicts",
    quantities=QUANTITIES,
    experiments=SWEEP,
    controls=Controls(
        lambda seed: controls.corner(seed, controls.soft),
        lambda seed: controls.corner(seed, lambda s: controls.bowl(s, size=80)),
        lambda seed: controls.corner(seed, controls.soft, 2),
        controls.both_vanished,
    ),
)
def batch_differs(runs: Sequence[Evidence]) -> Verdict:
    """Judge W7: two paired differences of the mean cosine of the last window at the largest learning rate.

    The cosine of batches also depends on the batch size where the walks themselves are the same (law 3 of the
    specification), so that it cannot refute the stochastic differential equation; the distance at equal epochs, where that
    equation predicts equality at equal lr / batch size, and the height stand in the details, with their intervals.

    Args:
        runs: of a grid of learning rates and batch sizes.

    Returns:
        The verdict.
    """
    kept, early = balanced("W7", runs, PAIRS)
    if early:
        return early
    cosine = {(c.lr, c.batch_size, c.seed): float(finite([c.window], "gradient_cosine", "steps").mean()) for c in kept}
    top, seeds = max(c.lr for c in kept), sorted({c.seed for c in kept})
    sizes = sorted({b for lr, b, _ in cosine if lr == top and np.isfinite(b)})
    partner = next(((lr, b, size) for size in sizes[::-1] for lr, b, _ in cosine if lr < top and _same(lr / b, top / size)), None)
    if len(sizes) < 2 or partner is None:
        reason = "needs two batch sizes at the largest learning rate and a run of equal lr / batch size at a smaller one"
        return without("W7", "undecided", 0.0, reason, [c.window for c in kept])
    ratio = [cosine[top, partner[2], s] - cosine[partner[0], partner[1], s] for s in seeds]
    batch = [cosine[top, sizes[-1], s] - cosine[top, sizes[0], s] for s in seeds]
    mean, _, interval = statistics.mean_interval(ratio)
    effect, _, around = statistics.mean_interval(batch)
    equal = [statistics.tost(values, EQUAL_COSINE) for values in (ratio, batch)]
    differ = decide(interval, 0.0) != "undecided" and decide(around, 0.0) == "contradicted"
    verdict = "contradicted" if min(equal) < 0.05 or around.low > 0 else "supported" if differ else "undecided"
    reason = (
        f"equal lr / batch size, lr {top:g} against {partner[0]:g}: the cosine differs by {mean:.3f}; "
        f"batch size {sizes[-1]:g} against {sizes[0]:g} at lr {top:g}: by {effect:.3f}"
    )
    ends = {c.seed: [c, other] for c in kept if (c.lr, c.batch_size) == (top, partner[2])
            for other in kept if (other.lr, other.batch_size, other.seed) == (*partner[:2], c.seed)}  # fmt: skip
    epochs = min(c.updates * c.batch_size for pair in ends.values() for c in pair)
    gaps = [log(a.typical_distance(epochs / a.batch_size) / b.typical_distance(epochs / b.batch_size)) for a, b in ends.values()]
    heights = [log(a.window.height / b.window.height) for a, b in ends.values()]
    details = {
        "log_distance_ratio_at_equal_epochs": _told(gaps),
        "log_height_ratio": _told(heights),
        "batch_effect": effect,
        "batch_effect_interval": list(around),
        "p_equal_ratio": equal[0],
        "p_equal_batch": equal[1],
    }
    place = regime([c.window for c in kept])
    return Verdict("W7", verdict, mean, interval, len(seeds), 0.0, reason, place, 0.5 ** len(seeds), details)  # type: ignore[arg-type]  # literals


def _told(values: Sequence[float]) -> list[float]:
    """Mean and interval over seeds."""
    mean, _, interval = statistics.mean_interval(values)
    return [mean, *interval]


def _same(a: float, b: float) -> bool:
    return abs(a - b) <= 1e-6 * abs(b)


@claim(
    "W8",
    sentence="The distance from initialisation is larger for a smaller batch and for a larger learning rate.",
    source=Source(PAPER, "abstract of v4, bottom panels"),
    scope="sweep",
    statistic="slopes of log distance over log lr and over -log batch size, within seeds, at equal updates: the smaller",
    threshold="> 0 for both",
    quantities=QUANTITIES,
    experiments=SWEEP,
    controls=Controls(
        controls.spreading, controls.spreading_backwards, lambda seed: controls.spreading(seed, 2), controls.both_vanished
    ),
)
def distance_grows(runs: Sequence[Evidence]) -> Verdict:
    """Judge W8: both trends must hold; equal epochs are told beside, where a smaller batch has more updates."""
    kept, early = balanced("W8", runs, 3, height=False)
    if early:
        return early
    places = [c.window for c in kept]
    updates = min(c.updates for c in kept)
    epochs = min(c.updates * c.batch_size for c in kept)
    ends: dict[str, Callable[[Cell], float]] = {"updates": lambda _: updates, "epochs": lambda c: epochs / c.batch_size}
    tables = {name: {(c.lr, c.batch_size, c.seed): c.distance(end(c)) for c in kept} for name, end in ends.items()}
    by_lr = {name: trend(table) for name, table in tables.items()}
    by_batch = {name: trend({(1 / b, lr, s): d for (lr, b, s), d in table.items()}) for name, table in tables.items()}
    both = [found for found in (by_lr["updates"], by_batch["updates"]) if found is not None]
    if len(both) < 2:
        reason = "an ordered trend needs 3 learning rates and 3 batch sizes with 3 seeds each"
        return without("W8", "undecided", 0.0, reason, places)
    verdict = weakest(found.answer for found in both)
    least = min(both, key=lambda found: found.slope)
    reason = (
        f"at equal updates ({updates:g}) the distance grows with the power {both[0].slope:.2f} of the learning rate "
        f"and {-both[1].slope:.2f} of the batch size"
    )
    details: dict[str, Any] = {
        f"{what}_at_equal_{name}": None if found is None else [found.slope, *found.interval]
        for what, named in (("lr", by_lr), ("inverse_batch", by_batch))
        for name, found in named.items()
    }
    details["laws"] = [_law(c) for c in kept]
    return Verdict(
        "W8", verdict, least.slope, least.interval, least.seeds, 0.0, reason, regime(places), least.smallest_p, details
    )


def _law(cell: Cell) -> dict[str, float]:
    """Growth of one run: exponent c of |theta_t - theta_0|^2 ~ t^c, slope b of a + b ln t, and how well each fits."""
    found = cell.window.run.measured.get("motion", xr.Dataset())
    names = ("distance_exponent", "distance_r2", "log_slope", "log_r2")
    told = {"lr": cell.lr, "batch_size": cell.batch_size, "seed": cell.seed}
    return told | {name: float(found[name]) for name in names if name in found}


@claim(
    "W9",
    sentence="Full-batch descent at the same learning rate oscillates and stays nearer to its start than SGD.",
    source=Source(PAPER, "Figure 1 against Figure 2"),
    scope="run",
    statistic="mean cosine of the full batch; factor from its distance to that of SGD at equal updates, over paired seeds",
    threshold=f"cosine < {EDGE_COSINE} and factor > 1, where eta x GNI of the full batch is at least {OVERSHOOT:g}",
    quantities=QUANTITIES,
    experiments=presets([(4.0, b, s, {}) for b in (1.0, np.inf) for s in range(PAIRS)]),
    controls=Controls(
        controls.edge_and_noise, lambda seed: controls.edge_and_noise(seed, confined=True),
        lambda seed: controls.edge_and_noise(seed, seeds=2), controls.creeping,
    ),
)  # fmt: skip
def descent_stays(runs: Sequence[Evidence]) -> Verdict:
    """Judge W9. One run alone can only contradict: it shows the oscillation, not the other distance."""
    every = cells(runs)
    full = {c.seed: c for c in every if full_batch(c.window.run)}
    if not full:
        verdict = "undecided" if not every else "not in regime"
        return without("W9", verdict, 0.0, "no full-batch run with a whole window is at hand", [c.window for c in every])  # type: ignore[arg-type]  # literals
    at_edge = {s: c for s, c in full.items() if c.window.eta_gni >= OVERSHOOT and not (c.window.lost or c.window.flat)}
    if not at_edge:
        reason = f"full-batch descent lies below eta x GNI = {OVERSHOOT:g}, or its loss has vanished"
        return without("W9", "not in regime", 0.0, reason, [c.window for c in full.values()])
    places = [c.window for c in at_edge.values()]
    cosine, _, around = statistics.block_bootstrap(finite(places, "gradient_cosine", "steps"))
    swings = decide(around, EDGE_COSINE, above=False)
    noisy = {c.seed: c for c in every if c.seed in at_edge and not full_batch(c.window.run) and c.lr == at_edge[c.seed].lr}
    updates = min(c.updates for c in (*noisy.values(), *at_edge.values()))
    logs = [[log(of[s].typical_distance(updates)) for s in noisy] for of in (noisy, at_edge)]
    details = {"cosine": cosine, "cosine_interval": list(around), "pairs": len(noisy)}
    if len(noisy) < PAIRS:
        reason = f"the mean cosine is {cosine:.3f}; for the distance {PAIRS} paired SGD runs are needed, {len(noisy)} are at hand"
        verdict = "contradicted" if swings == "contradicted" else "undecided"
        return Verdict("W9", verdict, cosine, around, len(places), EDGE_COSINE, reason, regime(places), None, details)  # type: ignore[arg-type]  # literals
    mean, (low, high), p, smallest = statistics.paired(logs[0], logs[1])
    final = weakest([swings, decide((low, high), 0.0)])
    ends = (float(np.exp(low)), float(np.exp(high)))
    reason = (
        f"the mean cosine is {cosine:.3f}; after {updates:g} updates SGD is {np.exp(mean):.3g} times as far (sign test p {p:.2g})"
    )
    return Verdict("W9", final, float(np.exp(mean)), ends, len(noisy), 1.0, reason, regime(places), smallest, details)


@claim(
    "W10",
    sentence="The valley floor has barriers, which SGD at its height does not meet.",
    source=Source(PAPER, "abstract of v1-v4"),
    scope="sweep",
    statistic="share of segments between floor points with a barrier, and its excess over the segments between the iterates",
    threshold=f"share > {FLOOR_SHARE} and excess > 0",
    quantities=QUANTITIES,
    experiments=presets([(1.0, 0.25, s, {}) for s in range(3)]),
    controls=Controls(controls.rough_floor, controls.smooth_floor, lambda seed: controls.rough_floor(seed, 8), controls.vanished),
    observe=floor_barriers,
)
def floor_has_barriers(runs: Sequence[Evidence]) -> Verdict:
    """Judge W10; "not observed" (few barriers, with a narrow interval) contradicts it for these runs."""
    found, early = applicable("W10", runs, FLOOR_SHARE, height=False)
    seen = [run.extra["floor"] for run in runs if "floor" in run.extra]
    floor, raw = (
        np.concatenate([np.asarray(s[k]) > NOISE * s["noise_floor"] for s in seen] or [np.zeros(0)]) for k in ("floor", "raw")
    )
    if early or len(floor) < UPDATES // 2:
        reason = f"{len(floor)} segments between floor points were measured, at least {UPDATES // 2} are needed"
        return early or without("W10", "undecided", FLOOR_SHARE, reason, found)
    share, interval = statistics.share_interval(floor)
    excess, _, around = statistics.block_bootstrap(floor.astype(float) - raw)
    verdict = weakest([decide(interval, FLOOR_SHARE), decide(around, 0.0)])
    told = "not observed: " if not floor.any() else ""
    reason = (
        f"{told}{int(floor.sum())} of {len(floor)} segments along the floor have a barrier, {int(raw.sum())} between the iterates"
    )
    details = {"excess": excess, "excess_interval": list(around), "raw_share": float(raw.mean())}
    return Verdict("W10", verdict, share, interval, len(floor), FLOOR_SHARE, reason, regime(found), None, details)
