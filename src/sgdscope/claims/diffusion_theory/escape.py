"""The claims X5 to X11 and X13 on times of escape, of "A Diffusion Theory For Deep Learning Dynamics" (Xie et al. 2021).

Thresholds were written before any run. Of the paper no body could be read: the laws are those of the specification (sections
1.2 to 1.4), margins are this project's, said on their line. A setting is judged by its waiting times over its walkers, and
the seeds are the independent units. X5 to X10 ask wells, the Styblinski-Tang function and, in ``quick``, logistic regression on
one bundled table; with ``dataset`` that table's place is taken, and the networks on it are asked alone. Every kind must hold.

Two of the laws are one walk in other units: theta' = sqrt(k) theta turns SGD on L_k with learning rate lr into SGD on L with
k lr, batch noise included, and white noise of one D likewise. So X5 and X7 ask one question of SGD, and X9 holds up to the
errors of a finite learning rate; they are run with independent noise all the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import log, nan
from typing import Any

import numpy as np

from sgdscope import escapes
from sgdscope.contracts import Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence import waiting_runs as chosen
from sgdscope.evidence.parts import Part, equal, joint
from sgdscope.evidence.waiting import Stay, by_seed, drawn, early, place, study, swept
from sgdscope.evidence.waiting_odds import drawn_odds, early_odds, odds, place_odds, study_occupation

PAPER = "Xie, Sato and Sugiyama 2021 (2002.03495)"
TREND, PAIRS = 3, 5  # seeds of an ordered trend, and of two settings compared (style, section 10)
STRAIGHT = 0.95  # specification, claims X5 and X6: r > 0.95; the paper reports > 0.99 [M]
SAME = 1.25  # factor within which two times, or two estimates of one constant, count as equal; chosen here
POLYNOMIAL = 0.2  # X9: the power of k is -1 within this; S10 measured -0.88 with ten percent errors; chosen here
HEIGHT = 0.15  # X10: slope over barrier is 1 within this: S1 gives 0.96 at D = 0.07 to 0.1; chosen here
ADDED = 0.1  # X13: the power of n is -1 within this: a rate that adds up half as fast is 0.5 away; chosen here
FLAT = (
    0.25  # X11: log odds of white noise move by less than this over the range of 1 / D, and lie as near to 1/2 log r; chosen here
)

Fits = dict[int, escapes.Fit]


def _fits(table: Mapping[str, Mapping[int, Sequence[Stay]]], law: str) -> dict[str, Fits]:
    """Kind -> seed -> line through its settings."""
    return {
        kind: {s: escapes.scaling([stay.point for stay in own], law) for s, own in seeds.items()} for kind, seeds in table.items()
    }


def _straight(kind: str, fits: Fits, over: str) -> list[Part]:
    """The slope is positive and the points lie on a line."""
    return [
        Part(f"{kind}: slope over {over}", [f.slope for f in fits.values()], 0.0, least=TREND),
        Part(f"{kind}: Pearson's r", [f.r for f in fits.values()], STRAIGHT, least=TREND),
    ]


def _chi2(fits: Fits) -> dict[str, float]:
    """Over all seeds: chi2 and its degrees of freedom, which it equals where law and errors hold."""
    return {"chi2": sum(f.chi2 for f in fits.values()), "freedom": sum(f.n - 2 for f in fits.values())}


def _trend(claim_id: str, runs: Sequence[Evidence], law: str, over: str) -> Verdict:
    """A law of one setting that is a rising straight line; which barrier sets the waiting time is told beside."""
    runs, barriers = swept(runs)
    if (verdict := early(claim_id, runs, 0.0, TREND)) is not None:
        return verdict
    fits = _fits(by_seed(runs), law)
    parts = [part for kind, own in fits.items() for part in _straight(kind, own, over)]
    details: dict[str, Any] = {kind: _chi2(own) for kind, own in fits.items()}
    if barriers:
        details["barrier_or_log_barrier"] = barriers
    if law == "sharpness":
        powers = _fits(by_seed(runs), "polynomial")
        details["power_of_k"] = {
            kind: {"power": float(np.mean([f.slope for f in own.values()]))} | _chi2(own) for kind, own in powers.items()
        }
    return joint(claim_id, parts, place=place(runs), details=details)


# --- controls: waiting times drawn from a law ---------------------------------------------------------------------------------

Law = Callable[[Mapping[str, Any]], float]


def _exponential(s: Mapping[str, Any]) -> float:
    """Theorem 2: 0.4 B / (lr k) - log k - log lr + a constant."""
    return 0.4 * float(s["noise"]["batch_size"] / (s["lr"] * s["k"])) - log(s["k"]) - log(s["lr"])


def _arrhenius(s: Mapping[str, Any], height: float = 0.25) -> float:
    """Theorem 1: dL / D - log k - log lr - log d + a constant."""
    return float(height / s["noise"]["diffusion"]) - log(s["k"]) - log(s["lr"] * s["potential"].get("d", 1)) + 1.0


def _wells(settings: Sequence[chosen.Setting]) -> list[chosen.Setting]:
    """Those on double wells, whose constants are those of the laws above."""
    return [s for s in settings if s["potential"]["kind"] == "wells"]


def _controls(settings: Sequence[chosen.Setting], holds: Law, fails: Law, seeds: int) -> Controls:
    """Waiting times of a law, of another one, of too few seeds, and of walkers that leave before they have filled the valley."""
    wells = _wells(settings)
    return Controls(
        drawn(wells, holds, walkers=1500),
        drawn(wells, fails, walkers=1500),
        drawn(wells, holds, seeds=seeds - 1, walkers=1500),
        drawn(wells, holds, walkers=1500, sharp=1e-3),
    )


# --- X5 to X8: SGD ------------------------------------------------------------------------------------------------------------


@claim(
    "X5",
    sentence="Under SGD the log of the waiting time, log k moved to its side, grows linearly with 1/k: "
    "sharp valleys are left exponentially faster.",
    source=Source(PAPER, "Theorem 2, Figures 3 and 4 [recalled]"),
    scope="sweep",
    statistic="slope of log tau + log k over 1/k and its Pearson correlation, weighted by the escapes, within seeds",
    threshold=f"slope > 0 and r > {STRAIGHT}; the part nearest to failing is told",
    quantities={},
    experiments=chosen.presets(chosen.SHARPNESS + chosen.BARRIERS, chosen.NETWORK_SHARPNESS),
    controls=_controls(chosen.SHARPNESS, _exponential, lambda s: 6 + log(s["k"]), TREND),
    study=study,
)
def exponential_in_sharpness(runs: Sequence[Evidence]) -> Verdict:
    """Judge X5; a power law in k, and difference against log ratio of the losses, are fitted beside and told in the details."""
    return _trend("X5", runs, "sharpness", "1/k")


@claim(
    "X6",
    sentence="Under SGD the log of the waiting time grows linearly with the batch size.",
    source=Source(PAPER, "Theorem 2, Figures 3 and 4 [recalled]"),
    scope="sweep",
    statistic="slope of log tau over B and its Pearson correlation, weighted by the escapes, within seeds",
    threshold=f"slope > 0 and r > {STRAIGHT}; the part nearest to failing is told",
    quantities={},
    experiments=chosen.presets(chosen.BATCH + chosen.BARRIERS, chosen.NETWORK_BATCH),
    controls=_controls(chosen.BATCH, _exponential, lambda s: 7 - 2 * log(s["noise"]["batch_size"]), TREND),
    study=study,
)
def exponential_in_batch_size(runs: Sequence[Evidence]) -> Verdict:
    """Judge X6; difference against log ratio of the losses as the barrier is told in the details."""
    return _trend("X6", runs, "batch_size", "B")


@claim(
    "X7",
    sentence="Under SGD the log of the waiting time, log lr moved to its side, grows linearly with 1/lr, "
    "with the constant that it has in B.",
    source=Source(PAPER, "Theorem 2, Figures 3 and 4 [recalled]"),
    scope="sweep",
    statistic="slope of log tau + log lr over 1/lr, its Pearson correlation, and (slope over B) lr / ((slope over 1/lr) / B)",
    threshold=f"slope > 0, r > {STRAIGHT} and the ratio within a factor {SAME}; the part nearest to failing is told",
    quantities={},
    experiments=chosen.presets(
        [*chosen.RATE, *(s for s in chosen.BATCH if s not in chosen.RATE)], chosen.NETWORK_RATE + chosen.NETWORK_BATCH
    ),
    controls=_controls(
        [*chosen.RATE, *(s for s in chosen.BATCH if s not in chosen.RATE)],
        _exponential,
        lambda s: 0.05 * s["noise"]["batch_size"] / s["lr"] + 3 * s["noise"]["batch_size"] - log(s["lr"]),
        PAIRS,
    ),
    study=study,
)
def exponential_in_rate(runs: Sequence[Evidence]) -> Verdict:
    """Judge X7: the slopes over 1/lr and over B are two measurements of A = 2 dL (s / H_a + (1 - s) / |H_b|).

    Args:
        runs: learning rates at one batch size, and batch sizes at one learning rate.

    Returns:
        The verdict.
    """
    if (verdict := early("X7", runs, 0.0, PAIRS)) is not None:
        return verdict
    parts, details = [], {}
    for kind, seeds in by_seed(runs).items():
        halves = {s: _two_sweeps(own) for s, own in seeds.items()}
        rates = {s: escapes.scaling(a, "lr") for s, (a, _) in halves.items()}
        batches = {s: escapes.scaling(b, "batch_size") for s, (_, b) in halves.items()}
        by_rate = {s: rates[s].slope / halves[s][0][0].batch_size for s in seeds}
        by_batch = {s: batches[s].slope * halves[s][1][0].lr for s in seeds}
        shared = [log(by_batch[s] / by_rate[s]) if min(by_batch[s], by_rate[s]) > 0 else nan for s in seeds]
        parts += _straight(kind, rates, "1/lr")
        parts += equal(f"{kind}: A from B over A from 1/lr", shared, 0.0, log(SAME), logs=True)
        means = {"A_from_lr": list(by_rate.values()), "A_from_batch_size": list(by_batch.values())}
        details[kind] = {name: float(np.mean(v)) for name, v in means.items()} | _chi2(rates)
    return joint("X7", parts, place=place(runs), details=details)


def _two_sweeps(own: Sequence[Stay]) -> tuple[list[escapes.Point], list[escapes.Point]]:
    """The points at the batch size that has most learning rates, and those at the learning rate that has most batch sizes."""
    points = [s.point for s in own]
    rates = {b: len({p.lr for p in points if p.batch_size == b}) for b in sorted({p.batch_size for p in points})}
    batches = {lr: len({p.batch_size for p in points if p.lr == lr}) for lr in sorted({p.lr for p in points})}
    batch, lr = max(rates, key=rates.__getitem__), max(batches, key=batches.__getitem__)
    return [p for p in points if p.batch_size == batch], [p for p in points if p.lr == lr]


@claim(
    "X8",
    sentence="Under SGD only the ratio of batch size and learning rate sets the waiting time lr tau in continuous time.",
    source=Source(PAPER, "Theorem 2; abstract: the ratio of batch size and learning rate"),
    scope="sweep",
    statistic="lr tau at the largest over lr tau at the smallest learning rate of equal B / lr, paired over seeds",
    threshold=f"within a factor {SAME}, by two one-sided tests; the part nearest to failing is told",
    quantities={},
    experiments=chosen.presets(chosen.RATIO, chosen.NETWORK_RATIO),
    controls=_controls(chosen.RATIO, _exponential, lambda s: _exponential(s) + 0.5 * log(s["lr"]), PAIRS),
    study=study,
)
def ratio_alone(runs: Sequence[Evidence]) -> Verdict:
    """Judge X8 on settings of one B / lr; the times at each learning rate are told."""
    if (verdict := early("X8", runs, log(SAME), PAIRS, least=2)) is not None:
        return verdict
    parts, details = [], {}
    for kind, seeds in by_seed(runs, 2).items():
        times = {s: sorted((p.lr, p.log_tau + log(p.lr)) for p in (stay.point for stay in own)) for s, own in seeds.items()}
        parts += equal(f"{kind}: ratio of lr tau", [v[-1][1] - v[0][1] for v in times.values()], 0.0, log(SAME), logs=True)
        rates = [lr for lr, _ in next(iter(times.values()))]
        details[kind] = {f"lr {lr:g}": float(np.exp(np.mean([v[i][1] for v in times.values()]))) for i, lr in enumerate(rates)}
    return joint("X8", parts, place=place(runs), details={"lr_tau": details})


# --- X9, X10: white noise -----------------------------------------------------------------------------------------------------


@claim(
    "X9",
    sentence="Under white noise the rate of escape grows in proportion to the curvature k, no faster than a polynomial.",
    source=Source(PAPER, "Theorem 1, Figure 5 [recalled]"),
    scope="sweep",
    statistic="power of k that lr tau follows, weighted by the escapes, within seeds",
    threshold=f"-1 within {POLYNOMIAL}, by two one-sided tests; the part nearest to failing is told",
    quantities={},
    experiments=chosen.presets(chosen.WHITE_SHARPNESS, chosen.NETWORK_WHITE_SHARPNESS),
    controls=_controls(chosen.WHITE_SHARPNESS, _arrhenius, lambda s: _arrhenius(s) + 3 / s["k"], PAIRS),
    study=study,
)
def polynomial_in_sharpness(runs: Sequence[Evidence]) -> Verdict:
    """Judge X9."""
    if (verdict := early("X9", runs, -1.0, PAIRS)) is not None:
        return verdict
    fits = _fits(by_seed(runs), "polynomial")
    parts = [p for k, own in fits.items() for p in equal(f"{k}: power of k", [f.slope for f in own.values()], -1.0, POLYNOMIAL)]
    return joint("X9", parts, place=place(runs), details={kind: _chi2(own) for kind, own in fits.items()})


@claim(
    "X10",
    sentence="Under white noise the log of the waiting time grows linearly with 1/D, and its slope is the barrier.",
    source=Source(PAPER, "Theorem 1, Figure 5 [recalled]"),
    scope="sweep",
    statistic="slope of log tau over 1/D, over the barrier where that is known, and Pearson's r, within seeds",
    threshold=f"slope > 0, r > {STRAIGHT}, slope over barrier 1 within {HEIGHT}; the part nearest to failing is told",
    quantities={},
    experiments=chosen.presets(chosen.TEMPERATURE, chosen.NETWORK_TEMPERATURE),
    controls=_controls(chosen.TEMPERATURE, _arrhenius, lambda s: _arrhenius(s, 0.5) - 2, PAIRS),
    study=study,
)
def arrhenius(runs: Sequence[Evidence]) -> Verdict:
    """Judge X10; of a network's box the barrier is not known, and slope and correlation are asked for alone."""
    if (verdict := early("X10", runs, 0.0, PAIRS)) is not None:
        return verdict
    table = by_seed(runs)
    parts, fits = [], _fits(table, "temperature")
    for kind, own in fits.items():
        barrier = next(iter(table[kind].values()))[0].point.barrier
        parts += _straight(kind, own, "1/D")
        if barrier == barrier:
            parts += equal(f"{kind}: slope over barrier", [f.slope / barrier for f in own.values()], 1.0, HEIGHT)
    return joint("X10", parts, place=place(runs), details={kind: _chi2(own) for kind, own in fits.items()})


# --- X11: which valley is chosen ----------------------------------------------------------------------------------------------


@claim(
    "X11",
    sentence="Of two equally deep valleys SGD chooses the flat one by odds exponential in B / lr, "
    "white noise by odds that do not depend on D.",
    source=Source(PAPER, "abstract: exponentially and polynomially"),
    scope="sweep",
    statistic="slope of the log odds over B / lr under SGD; log odds - 1/2 log r, and their change over the range of 1/D, "
    "under white noise",
    threshold=f"slope > 0; both numbers of white noise 0 within {FLAT}; the part nearest to failing is told",
    quantities={},
    experiments=chosen.presets(chosen.OCCUPATION),
    controls=Controls(
        drawn_odds(chosen.OCCUPATION),
        drawn_odds(chosen.OCCUPATION, white=0.2),
        drawn_odds(chosen.OCCUPATION, seeds=PAIRS - 1),
        drawn_odds(chosen.OCCUPATION, crossings=1e5),
    ),
    study=study_occupation,
)
def flat_is_chosen(runs: Sequence[Evidence]) -> Verdict:
    """Judge X11 on walks that pass between a flat valley and one r times as sharp often enough to have forgotten their start.

    Args:
        runs: at least three values of B / lr and of D.

    Returns:
        The verdict.
    """
    if (verdict := early_odds("X11", runs, PAIRS)) is not None:
        return verdict
    shaped, white, ratio = odds(runs)
    slopes = {s: escapes.line(own.x, own.log_odds, own.stderr) for s, own in shaped.items()}
    flat = {s: escapes.line(own.x, own.log_odds, own.stderr) for s, own in white.items()}
    moved = [flat[s].slope * float(np.ptp(own.x)) for s, own in white.items()]
    level = [float(np.mean(own.log_odds)) - 0.5 * log(ratio) for own in white.values()]
    parts = [Part("SGD: slope of log odds over B / lr", [f.slope for f in slopes.values()], 0.0, least=PAIRS)]
    parts += equal("white noise: log odds less 1/2 log r", level, 0.0, FLAT)
    parts += equal("white noise: change of log odds over 1/D", moved, 0.0, FLAT)
    last = [float(own.log_odds[np.argmax(own.x)]) for own in shaped.values()]
    details = {"ratio": ratio, "sgd": _chi2(slopes), "white": _chi2(flat), "sgd_log_odds_at_most_B_over_lr": float(np.mean(last))}
    return joint("X11", parts, place=place_odds(runs), details=details)


# --- X13: rates add -----------------------------------------------------------------------------------------------------------


@claim(
    "X13",
    sentence="Rates of escape add up over saddles: n equal ways out take 1/n of the time.",
    source=Source(PAPER, "Rule 1 [recalled]"),
    scope="sweep",
    statistic="power of the number n of independent directions that tau follows, weighted by the escapes, within seeds",
    threshold=f"-1 within {ADDED}, by two one-sided tests",
    quantities={},
    experiments=chosen.presets(chosen.PARALLEL),
    controls=_controls(chosen.PARALLEL, _arrhenius, lambda s: _arrhenius(s) + 0.5 * log(s["potential"].get("d", 1)), PAIRS),
    study=study,
)
def rates_add(runs: Sequence[Evidence]) -> Verdict:
    """Judge X13; tau_1 / tau_n is told for each n."""
    if (verdict := early("X13", runs, -1.0, PAIRS)) is not None:
        return verdict
    table = next(iter(by_seed(runs).values()))
    fits = {
        s: escapes.line(
            [log(stay.copies) for stay in own], [stay.point.log_tau for stay in own], [stay.point.stderr for stay in own]
        )
        for s, own in table.items()
    }
    parts = equal("power of n", [f.slope for f in fits.values()], -1.0, ADDED)
    taus = {n: np.mean([stay.point.log_tau for own in table.values() for stay in own if stay.copies == n])
            for n in sorted({stay.copies for own in table.values() for stay in own})}  # fmt: skip
    details = {f"tau_1 / tau_{n}": float(np.exp(taus[min(taus)] - mean)) for n, mean in taus.items()}
    return joint("X13", parts, place=place(runs), details=details | _chi2(fits))
