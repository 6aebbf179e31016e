"""The claims W12, W13 and W16 of "A Walk with SGD" (Xing et al. 2018): flatter regions, generalisation, alignment.

Thresholds were written before any run. W13 is contested (Jastrzebski et al. 2019, Dinh et al. 2017, Andriushchenko et al. 2023,
Granziol: sharper points that generalise as well); it is reported, not assumed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

import numpy as np

from sgdscope.contracts import Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence import known
from sgdscope.evidence.accuracy import accuracy
from sgdscope.evidence.alignment import alignment
from sgdscope.evidence.matched import LOWEST, SEEDS, with_noise
from sgdscope.evidence.partial import partial, pooled
from sgdscope.evidence.protocols import PATH_SWEEP, presets
from sgdscope.evidence.sharpness import Path, path, paths, place
from sgdscope.evidence.windows import LOSS_SHARE, decide, initial_loss, trend, weakest

PAPER = "Xing et al. 2018 (arXiv 1802.08770)"
FLAT: Mapping[str, float] = {"sharpness": -1.0, "trace": -1.0, "invariant_sharpness": -1.0}
QUANTITIES: Mapping[str, Mapping[str, Any]] = {"curvature": {"k": 5, "probes": 20, "invariant": True}}
CELLS = 6  # W13: settings a seed, below which a partial rank correlation says nothing


@claim(
    "W12",
    sentence="A larger learning rate and a smaller batch lead to flatter regions at equal training loss: lower lambda_1, trace "
    "and reparametrisation-invariant sharpness.",
    source=Source(PAPER, "abstract of v1-v4"),
    scope="sweep",
    statistic="slopes of the logs of the three, falling, over log lr and over -log batch size, within seeds, at the lowest "
    "training loss that the runs share: the least",
    threshold="> 0 for all six",
    quantities=QUANTITIES,
    experiments=PATH_SWEEP,
    controls=Controls(
        known.grid, lambda seed: known.grid(seed, batch=-0.4), lambda seed: known.grid(seed, seeds=2),
        lambda seed: known.grid(seed, speed=0.01),
    ),
)  # fmt: skip
def flatter_regions(runs: Sequence[Evidence]) -> Verdict:
    """Judge W12: six trends; the rank correlation of lambda_1 with the distance from initialisation is told beside."""
    return with_noise("W12", runs, FLAT, LOWEST)


def _ends(found: Sequence[Path]) -> dict[str, np.ndarray[Any, np.dtype[np.float64]]]:
    """Numbers at the ends of runs, NaN where one was not measured."""
    columns: dict[str, list[float]] = {"loss": [], "accuracy": []}
    for p in found:
        columns["loss"].append(float(p.losses[-1]))
        columns["accuracy"].append(float(p.run.extra["accuracy"]["test"][-1]))
        for name in FLAT:
            values = path(p.run, name).values
            columns.setdefault(name, []).append(float(values[-1]) if len(values) else nan)
    return {name: np.array(values) for name, values in columns.items()}


@claim(
    "W13",
    sentence="Flatter points generalise better: over the grid of learning rates and batch sizes, held-out accuracy falls with "
    "lambda_1 at a given training loss.",
    source=Source(PAPER, "abstract of v4; contested"),
    scope="sweep",
    statistic="partial rank correlation of held-out accuracy with lambda_1, given the training loss, over the grid at the end of "
    "training; mean over seeds",
    threshold="< 0",
    quantities=QUANTITIES,
    experiments=PATH_SWEEP,
    controls=Controls(
        known.generalising, lambda seed: known.generalising(seed, gain=1.0), lambda seed: known.generalising(seed, seeds=2),
        known.grid,
    ),
    observe=accuracy,
)  # fmt: skip
def flatter_generalises(runs: Sequence[Evidence]) -> Verdict:
    """Judge W13; without the control for the loss, and for trace and invariant sharpness, it is told beside."""
    every = paths(runs)
    found = [p for p in every if (p.run.extra.get("accuracy") or {}).get("test")]
    regime = place(found or every)
    if every and not found:
        reason = "no held-out examples are known"
        return Verdict("W13", "not in regime", nan, (nan, nan), len(every), 0.0, reason, regime)
    ends = {seed: _ends([p for p in found if p.seed == seed]) for seed in sorted({p.seed for p in found})}
    told: dict[str, list[float]] = {name: [] for name in (*FLAT, "uncontrolled")}
    for own in (e for e in ends.values() if len(e["loss"]) >= CELLS):
        for name in FLAT:
            good = np.isfinite(own[name])
            told[name].append(partial(own[name][good], own["accuracy"][good], own["loss"][good]))
        told["uncontrolled"].append(partial(own["sharpness"], own["accuracy"]))
    kept = {name: [r for r in values if np.isfinite(r)] for name, values in told.items()}
    if len(kept["sharpness"]) < SEEDS:
        reason = f"{len(kept['sharpness'])} seeds have {CELLS} settings with different accuracies, {SEEDS} are needed"
        return Verdict("W13", "undecided", nan, (nan, nan), len(found), 0.0, reason, regime)
    pools = {name: pooled(values) for name, values in kept.items() if values}
    mean, interval = pools["sharpness"]
    accuracies = np.concatenate([own["accuracy"] for own in ends.values()])
    reason = (
        f"given the training loss, held-out accuracy ({accuracies.min():.3f} to {accuracies.max():.3f}) and lambda_1 have a rank "
        f"correlation of {mean:+.2f} over {len(ends[min(ends)]['loss'])} settings a seed; not given it "
        f"{pools['uncontrolled'][0]:+.2f}"
    )
    details: dict[str, Any] = {name: [m, *around] for name, (m, around) in pools.items()}
    details["by_seed"] = kept["sharpness"]
    answer, n = decide(interval, 0.0, above=False), len(kept["sharpness"])
    return Verdict("W13", answer, mean, interval, n, 0.0, reason, regime, 0.5**n, details)


def _alive(run: Evidence) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """At which points the training loss has not vanished."""
    losses = np.array(run.extra["alignment"]["loss"])
    return np.asarray(losses >= LOSS_SHARE * (initial if np.isfinite(initial := initial_loss(run)) else losses[0]))


def _shares(run: Evidence) -> dict[int, np.ndarray[Any, np.dtype[np.float64]]]:
    """Batch size -> [k] share of the gradient in the first k directions, mean over points whose loss has not vanished."""
    seen = run.extra["alignment"]
    share = np.array(seen["share"])
    kept = _alive(run) & np.isfinite(share).all((1, 2))
    return {int(b): share[kept, i].mean(0) for i, b in enumerate(seen["batch_size"])} if kept.any() else {}


@claim(
    "W16",
    sentence="The gradient of a larger batch is more aligned with the sharpest directions, at the same point of the walk.",
    source=Source("ICLR 2019 submission B1l6e3RcF7 of the same authors", "abstract"),
    scope="sweep",
    statistic="slope of log chi_k over log batch size within seeds, chi_k the mean share of the squared gradient within "
    "e_1..e_k, for k = 1 and k = 10; Jonckheere's test; the smaller",
    threshold="> 0 for both",
    quantities={"curvature": {"k": 5}},
    experiments=presets([(1.0, 1.0, s, {"at": "spread"}) for s in range(5)]),
    controls=Controls(
        known.aligned, lambda seed: known.aligned(seed, power=-0.2), lambda seed: known.aligned(seed, seeds=2),
        lambda seed: known.aligned(seed, loss=0.05),
    ),
    observe=alignment,
)  # fmt: skip
def larger_batch_aligned(runs: Sequence[Evidence]) -> Verdict:
    """Judge W16. That large batches stay near their start is W8 and W9; here is the alignment that should cause it."""
    seen = [run for run in runs if (run.extra.get("alignment") or {}).get("step")]
    regime = place([path(run) for run in seen or runs])
    tables = {int(run.settings.get("seed", 0)): shares for run in seen if (shares := _shares(run))}
    if len(seen) >= SEEDS and not any(_alive(run).any() for run in seen):
        reason = "the training loss has vanished at each measured point"
        return Verdict("W16", "not in regime", nan, (nan, nan), len(seen), 0.0, reason, regime)
    width = min((len(s) for shares in tables.values() for s in shares.values()), default=1)
    ranks = {
        k: trend({(b, 0.0, seed): float(s[k - 1]) for seed, own in tables.items() for b, s in own.items()}) for k in (1, width)
    }
    parts = [found for found in ranks.values() if found is not None]
    if len(parts) < len(ranks) or len(seen) < SEEDS:
        reason = f"an ordered trend needs 3 batch sizes with {SEEDS} seeds each, {len(tables)} seeds are at hand"
        return Verdict("W16", "undecided", nan, (nan, nan), len(seen), 0.0, reason, regime)
    least = min(parts, key=lambda found: found.slope)
    sizes = sorted({b for own in tables.values() for b in own})
    means = {b: np.mean([own[b] for own in tables.values() if b in own], axis=0) for b in sizes}
    told = "; ".join(f"k = {k}: " + ", ".join(f"{means[b][k - 1]:.3g} at {b}" for b in sizes) for k in ranks)
    reason = f"the share of the gradient within the sharpest directions by batch size is {told}"
    details: dict[str, Any] = {"powers": {str(k): [f.slope, *f.interval] for k, f in ranks.items() if f is not None}}
    details |= {"shares": {str(b): means[b].tolist() for b in sizes}, "full": _full(seen)}
    answer = weakest(found.answer for found in parts)
    return Verdict("W16", answer, least.slope, least.interval, least.seeds, 0.0, reason, regime, least.smallest_p, details)


def _full(runs: Sequence[Evidence]) -> list[float]:
    """Share of the full gradient within the first k directions, mean over runs and points."""
    found = [np.array(run.extra["alignment"]["full"]) for run in runs]
    return np.asarray(np.nanmean(np.concatenate(found), axis=0)).tolist() if found else []
