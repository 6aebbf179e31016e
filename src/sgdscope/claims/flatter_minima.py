"""The claims F1-F5 of "Finding Flatter Minima with SGD" and "Width of Minima Reached by SGD" (Jastrzebski et al. 2018).

Thresholds were written before any run; of the papers an abstract and a sentence were read, so that all numbers are this
project's, said on their line. Runs end after equal epochs, that is at equal lr x updates where lr / batch size is equal.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isfinite, log, nan
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from sgdscope import statistics
from sgdscope.contracts import Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence import rescaling
from sgdscope.evidence.accuracy import accuracy
from sgdscope.evidence.endpoints import Part, at_equal_epochs, decisive, equivalent, kendall, last_accuracy, silent, vanished
from sgdscope.evidence.matched import COMMON, LOWEST, Table, matched, powers
from sgdscope.evidence.protocols import Chosen
from sgdscope.evidence.sharpness import Path, path, place
from sgdscope.evidence.windows import Trend, decide, weakest

FLATTER = "Jastrzebski et al. 2018, Finding Flatter Minima with SGD (ICLR workshop, r1VF9dCUG)"
WIDTH = "Jastrzebski et al. 2018, Width of Minima Reached by SGD (ICANN)"
NORMS = ("sharpness", "trace", "frobenius")
SEEDS = 3  # of an ordered trend
PAIRS = 5  # seeds over which a number is compared with a threshold
COLLAPSE = 0.25  # F3: the powers of lr and of 1 / batch size count as one if they differ by less than this share; chosen here
CELLS = 5  # F4: settings of a seed below which a rank correlation says nothing
EDGE = 2.0  # F5: beta lr lambda_1 from which on the equation in continuous time says nothing (specification, section 5.3)
QUANTITIES: Mapping[str, Mapping[str, Any]] = {"curvature": {"k": 5, "probes": 16}}

LEVELS = (0.25, 0.5, 1.0)
CORNERS: list[Chosen] = [(2 * lr, batch, s, {}) for lr in LEVELS for batch in LEVELS for s in range(PAIRS)]
STEPS = [(0.25 * beta, 0.125 * beta) for beta in (1, 2, 4, 8, 16, 32)] + [(0.5, 0.125)]  # and the lr of beta = 2 alone
GRID = at_equal_epochs(CORNERS)
DIAGONAL = at_equal_epochs([(lr, batch, s, {}) for lr, batch in STEPS for s in range(PAIRS)])


# --- F1, F2: a trend, at the end and at equal training loss ------------------------------------------------------------------


def _ends(grid: Sequence[Path], name: str) -> Table:
    """A variable at the last measured point of each run where it is known."""
    own = {(p.lr, p.batch_size, p.seed): path(p.run, name) for p in grid}
    return {key: float(p.values[-1]) for key, p in own.items() if len(p.values)}


def _usable(claim_id: str, grid: Sequence[Path], least: int) -> tuple[list[Path], Verdict | None]:
    """The runs of the seeds of which no loss has vanished, or the verdict that says why too few seeds are left."""
    examples = [rescaling.seen(p) for p in grid]
    if examples and max(examples) > (1 + rescaling.CLOSE) * min(examples):
        reason = f"the runs have seen {min(examples):g} to {max(examples):g} examples; ends after equal epochs are compared"
        return [], silent(claim_id, "undecided", 0.0, reason, grid)
    seeds, out = {p.seed for p in grid}, {p.seed for p in grid if vanished(p)}
    if len(seeds) >= least > len(seeds - out):
        reason = f"in {len(out)} of {len(seeds)} seeds the training loss of a run has vanished, and the curvature with it"
        return [], silent(claim_id, "not in regime", 0.0, reason, grid)
    return [p for p in grid if p.seed not in out], None


def _trends(claim_id: str, runs: Sequence[Evidence], by: str) -> Verdict | tuple[dict[str, Trend], list[Path]]:
    """How the flatness follows a setting, norm by norm, at the end and at the lowest training loss that the runs share."""
    found = matched(runs, NORMS, LOWEST)
    kept, early = _usable(claim_id, found.grid, SEEDS)
    if early:
        return early
    left = {p.seed for p in kept}
    if len(left) >= SEEDS > len(left & set(found.levels)):
        reason = f"in too many seeds the runs share less than {COMMON:.0%} of their range of training losses"
        return silent(claim_id, "not in regime", 0.0, reason, found.grid)
    tables = {f"{norm} at the end": _ends(found.grid, norm) for norm in NORMS}
    tables |= {f"{norm} at equal loss": dict(found.tables[norm]) for norm in NORMS}
    trends = {name: powers({k: v for k, v in t.items() if k[2] in left}, -1)[by] for name, t in tables.items()}
    known = {name: t for name, t in trends.items() if t is not None}
    if len(known) < len(trends):
        reason = f"an ordered trend needs 3 settings with {SEEDS} seeds each, of a whole grid and with numbers that converged"
        return silent(claim_id, "undecided", 0.0, reason, found.grid)
    return known, kept


def _followed(claim_id: str, runs: Sequence[Evidence], by: str, sign: int, setting: str) -> Verdict:
    """All norms at both places; the powers are told of the norm itself: `sign` times those of the flatness."""
    found = _trends(claim_id, runs, by)
    if isinstance(found, Verdict):
        return found
    trends, kept = found
    parts = [_power(name, t, sign) for name, t in trends.items()]
    verdict, least = decisive(parts, lambda p: sign * p.statistic)
    ends = {p.name: p.statistic for p in parts}
    told = ", ".join(f"{norm} {ends[f'{norm} at the end']:+.2f} ({ends[f'{norm} at equal loss']:+.2f})" for norm in NORMS)
    reason = f"powers of {setting} at the end (at equal training loss): {told}; decisive: {least.name}"
    details = {p.name: p.told for p in parts} | {"training_loss_at_the_end": _losses(kept)}
    smallest = min(t.smallest_p for t in trends.values())
    return Verdict(claim_id, verdict, least.statistic, least.interval, least.n, 0.0, reason, place(kept), smallest, details)


def _power(name: str, found: Trend, sign: int) -> Part:
    low, high = sorted(sign * end for end in found.interval)
    return Part(name, sign * found.slope, (low, high), found.answer, found.seeds)


def _losses(grid: Sequence[Path]) -> dict[str, float]:
    """Mean training loss at the end of each setting."""
    settings = sorted({(p.lr, p.batch_size) for p in grid})
    return {
        f"lr {a:g}, batch {b:g}": float(np.mean([p.losses[-1] for p in grid if (p.lr, p.batch_size) == (a, b)]))
        for a, b in settings
    }


@claim(
    "F1",
    sentence="At a fixed batch size a larger learning rate ends where the loss is flatter, also at equal training loss.",
    source=Source(FLATTER, "abstract"),
    scope="sweep",
    statistic="powers of the learning rate that lambda_1, Tr H and |H|_F follow, within seeds, at the end and at equal loss",
    threshold="< 0 for all six; the one nearest to failing is told",
    quantities=QUANTITIES,
    experiments=GRID,
    controls=Controls(
        rescaling.grid(-0.5, 0.5), rescaling.grid(0.5, 0.5), rescaling.grid(-0.5, 0.5, seeds=2),
        rescaling.grid(-0.5, 0.5, floor=0.01),
    ),
    observe=accuracy,
)  # fmt: skip
def flatter_with_lr(runs: Sequence[Evidence]) -> Verdict:
    """Judge F1: runs that have not converged alike at the end are why equal training loss is asked for too."""
    return _followed("F1", runs, "lr", -1, "lr")


@claim(
    "F2",
    sentence="At a fixed learning rate a smaller batch ends where the loss is flatter, also at equal training loss.",
    source=Source(FLATTER, "abstract"),
    scope="sweep",
    statistic="powers of the batch size that lambda_1, Tr H and |H|_F follow, within seeds, at the end and at equal loss",
    threshold="> 0 for all six; the one nearest to failing is told",
    quantities=QUANTITIES,
    experiments=GRID,
    controls=Controls(
        rescaling.grid(-0.5, 0.5), rescaling.grid(-0.5, -0.5), rescaling.grid(-0.5, 0.5, seeds=2),
        rescaling.grid(-0.5, 0.5, floor=0.01),
    ),
    observe=accuracy,
)  # fmt: skip
def flatter_with_small_batch(runs: Sequence[Evidence]) -> Verdict:
    """Judge F2; the power of the batch size is that of 1 / flatness over batch size."""
    return _followed("F2", runs, "inverse_batch", 1, "the batch size")


# --- F3: the ratio alone -----------------------------------------------------------------------------------------------------


def _fits(table: Table) -> dict[int, NDArray[np.float64]]:
    """Least squares of log value on 1, log lr and log batch size, for each seed that has the whole grid of at least 3 by 3.

    Args:
        table: (lr, batch size, seed) -> positive number.

    Returns:
        Seed -> intercept, power of lr, power of the batch size.
    """
    known = {key: log(v) for key, v in table.items() if isfinite(v) and v > 0}
    lrs, batches = ({key[i] for key in table} for i in (0, 1))
    if min(len(lrs), len(batches)) < 3:
        return {}
    cells = [(a, b) for a in lrs for b in batches]
    whole = [s for s in sorted({k[2] for k in table}) if all((a, b, s) in known for a, b in cells)]
    design = np.array([[1.0, log(a), log(b)] for a, b in cells])
    return {s: np.linalg.lstsq(design, np.array([known[a, b, s] for a, b in cells]), rcond=None)[0] for s in whole}


def ratio_alone(table: Table, seeds: Sequence[int]) -> dict[str, float]:
    """Hold the model in lr / batch size alone against the one with a power of each, with an intercept a seed.

    F = (RSS_1 - RSS_2) / (RSS_2 / (n - seeds - 2)); difference of AIC = n log(RSS_1 / RSS_2) - 2, > 0 against the ratio alone.

    Args:
        table: (lr, batch size, seed) -> positive number.
        seeds: that have the whole grid.

    Returns:
        f, p and aic_difference.
    """
    rows = [(log(a), log(b), s, log(v)) for (a, b, s), v in table.items() if s in seeds]
    x, y, own, z = (np.array(column) for column in zip(*rows, strict=True))
    centred = [np.array(v, np.float64) for v in (x, y, z)]
    for s in seeds:
        for v in centred:
            v[own == s] -= v[own == s].mean()
    x, y, z = centred
    rss = [float(np.linalg.lstsq(d, z, rcond=None)[1].sum()) for d in (np.stack([x - y], 1), np.stack([x, y], 1))]
    freedom = len(z) - len(seeds) - 2
    f = (rss[0] - rss[1]) / (rss[1] / freedom)
    return {"f": f, "p": float(stats.f.sf(f, 1, freedom)), "aic_difference": len(z) * log(rss[0] / rss[1]) - 2}


@claim(
    "F3",
    sentence="Learning rate and batch size act on the curvature of the end through their ratio alone.",
    source=Source(FLATTER, "abstract; regression of the specification"),
    scope="sweep",
    statistic="asymmetry 2 (b + c) / (c - b) of log |H|_F = a + b log lr + c log batch size, fitted within seeds",
    threshold=f"b < 0, c > 0, and the asymmetry within {COLLAPSE} of 0 by two one-sided tests",
    quantities=QUANTITIES,
    experiments=GRID,
    controls=Controls(
        rescaling.grid(-0.5, 0.5), rescaling.grid(-0.5, 0.25), rescaling.grid(-0.5, 0.5, seeds=3),
        rescaling.grid(-0.5, 0.5, floor=0.01),
    ),
    observe=accuracy,
)  # fmt: skip
def collapses(runs: Sequence[Evidence]) -> Verdict:
    """Judge F3: both powers, and their equality shown rather than not refuted; the F test and AIC are told beside.

    Args:
        runs: a grid of learning rates and batch sizes at equal epochs.

    Returns:
        The verdict.
    """
    found = matched(runs, NORMS, LOWEST)
    kept, early = _usable("F3", found.grid, PAIRS)
    if early:
        return early
    tables = {f"{norm} at the end": _ends(found.grid, norm) for norm in NORMS}
    tables |= {f"{norm} at equal loss": dict(found.tables[norm]) for norm in NORMS}
    left = {p.seed for p in kept}
    fits = {name: _fits({k: v for k, v in t.items() if k[2] in left}) for name, t in tables.items()}
    own = fits["frobenius at the end"]
    if len(own) < PAIRS:
        reason = f"{len(own)} seeds have a whole grid of at least 3 learning rates and 3 batch sizes, {PAIRS} are needed"
        return silent("F3", "undecided", 0.0, reason, found.grid)
    lr, batch, ratio = _collapse(own)
    verdict = weakest(p.answer for p in (lr, batch, ratio))
    test = ratio_alone(tables["frobenius at the end"], sorted(own))
    details: dict[str, Any] = {"lr": lr.told, "batch_size": batch.told, "ratio_alone": test}
    details["others"] = {
        name: {p.name: p.told for p in _collapse(f)} for name, f in fits.items() if len(f) >= PAIRS and f is not own
    }
    reason = (
        f"|H|_F at the end ~ lr^{lr.statistic:+.2f} batch^{batch.statistic:+.2f}, asymmetry {ratio.statistic:+.2f}; "
        f"F test of the ratio alone against both: p {test['p']:.2g}"
    )
    return Verdict(
        "F3", verdict, ratio.statistic, ratio.interval, len(own), COLLAPSE, reason, place(found.grid), 0.5 ** len(own), details
    )


def _collapse(fits: Mapping[int, NDArray[np.float64]]) -> tuple[Part, Part, Part]:
    """The powers of lr and of the batch size, and their asymmetry, each with what it says alone."""
    b, c = (np.array([fit[i] for fit in fits.values()]) for i in (1, 2))
    parts = []
    for name, values, above in (("lr", b, False), ("batch size", c, True)):
        mean, _, interval = statistics.mean_interval(values)
        parts.append(Part(name, mean, interval, decide(interval, 0.0, above=above), len(values)))
    if (c <= b).any():  # the sign of a seed is wrong, and its asymmetry unbounded
        return parts[0], parts[1], Part("asymmetry", nan, (nan, nan), "undecided", len(b))
    return parts[0], parts[1], equivalent("asymmetry", 2 * (b + c) / (c - b), COLLAPSE)


# --- F4: flatter is better ---------------------------------------------------------------------------------------------------


@claim(
    "F4",
    sentence="Over learning rates and batch sizes a flatter end generalises better, also at a given training loss.",
    source=Source(FLATTER, "abstract"),
    scope="sweep",
    statistic="Kendall's tau of |H|_F and held-out accuracy at the end, and the same given the training loss, means over seeds",
    threshold="< 0 for both; the one nearest to failing is told",
    quantities=QUANTITIES,
    experiments=GRID,
    controls=Controls(
        rescaling.grid(-0.5, 0.5), rescaling.grid(-0.5, 0.5, -0.05), rescaling.grid(-0.5, 0.5, seeds=3),
        rescaling.grid(-0.5, 0.5, known=False),
    ),
    observe=accuracy,
)  # fmt: skip
def flatter_is_better(runs: Sequence[Evidence]) -> Verdict:
    """Judge F4: rank correlations within each seed over the settings; the other norms are told beside.

    Args:
        runs: a grid of learning rates and batch sizes at equal epochs.

    Returns:
        The verdict.
    """
    table = rescaling.settings_of(runs)
    every = [p for own in table.values() for p in own.values()]
    if every and not any(isfinite(last_accuracy(p.run)) for p in every):
        return silent("F4", "not in regime", 0.0, "no held-out accuracy is known of these runs", every)
    kept, early = _usable("F4", every, PAIRS)
    if early:
        return early
    taus = {norm: [_taus(kept, s, norm) for s in sorted({p.seed for p in kept})] for norm in NORMS}
    known = {norm: np.array([pair for pair in pairs if np.isfinite(pair).all()]) for norm, pairs in taus.items()}
    if len(known["frobenius"]) < PAIRS:
        reason = (
            f"{len(known['frobenius'])} seeds have {CELLS} settings whose accuracies, losses and norms vary, {PAIRS} are needed"
        )
        return silent("F4", "undecided", 0.0, reason, every)
    told = {norm: [_mean(name, pairs.T[i]) for i, name in enumerate(("tau", "tau given the training loss"))]
            for norm, pairs in known.items() if len(pairs) >= PAIRS}  # fmt: skip
    verdict, least = decisive(told["frobenius"], lambda p: -p.statistic)
    simple, partial = told["frobenius"]
    reason = (
        f"tau of |H|_F and held-out accuracy at the end is {simple.statistic:+.2f}, given the training loss "
        f"{partial.statistic:+.2f} ({len(table)} settings)"
    )
    details = {f"{norm}, {p.name}": p.told for norm, parts in told.items() for p in parts}
    return Verdict("F4", verdict, least.statistic, least.interval, least.n, 0.0, reason, place(kept), None, details)


def _taus(every: Sequence[Path], seed: int, norm: str) -> tuple[float, float]:
    """Kendall's tau of a norm and the accuracy over the settings of a seed, and given the training loss."""
    found = [p for p in every if p.seed == seed]
    ends = [path(p.run, norm).values for p in found]
    rows = np.array([(v[-1] if len(v) else nan, last_accuracy(p.run), p.losses[-1]) for v, p in zip(ends, found, strict=True)])
    rows = rows[np.isfinite(rows).all(1)]
    if len(rows) < CELLS:
        return nan, nan
    return kendall(rows[:, 0], rows[:, 1]), kendall(rows[:, 0], rows[:, 1], rows[:, 2])


def _mean(name: str, values: Sequence[float]) -> Part:
    mean, _, interval = statistics.mean_interval(values)
    return Part(name, mean, interval, decide(interval, 0.0, above=False), len(values))


# --- F5: rescaling -----------------------------------------------------------------------------------------------------------


@claim(
    "F5",
    sentence="Multiplying learning rate and batch size by the same factor leaves dynamics and end as they are, up to a limit.",
    source=Source(WIDTH, "a sentence of the chapter, its Figure 5"),
    scope="sweep",
    statistic="differences of training curve, |H|_F and held-out accuracy at equal epochs, least factor against none, over "
    f"{rescaling.MARGIN:g} standard deviations of the seeds: the largest",
    threshold="within -1..1 by two one-sided tests in each, where the learning rate alone makes a difference",
    quantities=QUANTITIES,
    experiments=DIAGONAL,
    controls=Controls(
        rescaling.diagonal(), rescaling.diagonal(broken=2.0), rescaling.diagonal(seeds=3), rescaling.diagonal(sharp=30.0)
    ),
    observe=accuracy,
)
def rescales(runs: Sequence[Evidence]) -> Verdict:
    """Judge F5 at the least factor; the limit is told: the first factor at which something differs for sure.

    Equality proves nothing where the margins are wide: the learning rate alone, by the same factor, must be seen to differ.

    Args:
        runs: of (beta lr, beta batch size) at equal epochs, and of the least beta's lr at the least batch size.

    Returns:
        The verdict.
    """
    found = rescaling.rescaled(runs)
    every = [p for own in found.table.values() for p in own.values()] if found else []
    if found is None or not found.factors or len(found.seeds) < PAIRS:
        reason = f"runs of equal lr / batch size and equal epochs are needed, {PAIRS} seeds of each"
        return silent("F5", "undecided", 1.0, reason, every)
    beta, first = next(iter(found.factors.items()))
    pace = beta * float(place(list(found.table[found.base].values()))["eta_sharpness"])
    if pace >= EDGE:
        reason = (
            f"beta lr lambda_1 is {pace:.2f} at beta {beta:g}: beyond the edge there is no limit of continuous time to keep to"
        )
        return silent("F5", "not in regime", 1.0, reason, every)
    parts = found.compared(first)
    if len(found.table[first]) < PAIRS or not parts:
        return silent(
            "F5", "undecided", 1.0, f"{len(found.table[first])} seeds at beta {beta:g} are at hand, {PAIRS} are needed", every
        )
    verdict, least = decisive(parts, lambda p: -abs(p.statistic))
    alone = "undecided" if found.alone is None else found.answer(found.alone)
    if verdict == "supported" and alone != "contradicted":
        verdict = "undecided"
    answers = {b: found.answer(s) for b, s in found.factors.items()}
    limit = next((b for b, answer in answers.items() if answer == "contradicted"), None)
    reason = (
        f"at beta {beta:g} the largest difference is {least.statistic:+.2f} margins ({least.name}); "
        f"{'no factor differs for sure' if limit is None else f'the first factor that differs for sure is {limit:g}'}; "
        f"lr alone {'differs' if alone == 'contradicted' else 'is not shown to differ'}"
    )
    details = _betas(found) | {"limit": limit, "eta_sharpness_at_base": pace / beta, "factor_at_edge": EDGE * beta / pace}
    return Verdict("F5", verdict, least.statistic, least.interval, least.n, 1.0, reason, place(every), 0.5**least.n, details)


def _betas(found: rescaling.Rescaled) -> dict[str, Any]:
    """All differences, in margins, of each factor and of the learning rate alone."""
    settings = {f"beta {b:g}": s for b, s in found.factors.items()} | ({"lr alone": found.alone} if found.alone else {})
    return {name: {p.name: [*p.told, p.answer] for p in found.compared(s)} for name, s in settings.items()}
