"""The claims X1 to X4 and X12 on the gradient noise, of "A Diffusion Theory For Deep Learning Dynamics" (Xie et al. 2021).

Thresholds were written before any run. Of the paper no body could be read: "close to proportional" and "heavy" have no numbers
there, so those here are this project's, said on their line. Labels are the true ones: C = H asks for a well-specified model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import log, nan
from typing import Any

import numpy as np

from sgdscope.contracts import Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence.gradient_noise import ENDS, SEEDS, at_end, batches_and_steps, made, power, seen
from sgdscope.evidence.parts import Part, joint
from sgdscope.evidence.sharpness import path, place
from sgdscope.evidence.windows import mean_finite

PAPER = "Xie, Sato and Sugiyama 2021 (2002.03495)"
QUANTITIES: Mapping[str, Mapping[str, Any]] = {"noise": {"k": 10, "examples": 2048, "fisher": True}}
CLOSE = 0.9  # X1: correlation that counts as close to proportional; chosen here
WEAKER = 0.7  # X3: at random initialisation; chosen here
NEAR = 10.0  # X1: near a minimum |g|^2 is below a tenth of Tr C, so that C is nearly the second moment; chosen here
POWER = 0.1  # X2: the power of the batch size is -1 within this; chosen here
EXCESS = 0.5  # X4: excess kurtosis of a batch of 256 that counts as Gaussian; chosen here
HEAVY = 4.0  # X4: Hill's index of 5 % tails: 5.3 for a Gaussian; below 4 the fourth moment is infinite
CONFINED = 0.5  # X12: most of the variance of the updates lies in 10 directions; chosen here
FOLLOWS = 0.5  # X12: var_i goes with lambda_i to the power 1 within this; chosen here


def _place(runs: Sequence[Evidence]) -> dict[str, float | str]:
    return place([path(run, "trace", "noise") for run in runs])


def _told(runs: Sequence[Evidence], *names: str) -> dict[str, Any]:
    """Means at the start and at the end."""
    return {name: {"start": mean_finite(_all(runs, name, 0)), "end": mean_finite(_all(runs, name))} for name in names}


def _all(runs: Sequence[Evidence], name: str, where: int = -1) -> list[float]:
    return [at_end(run, name, where) for run in runs]


@claim(
    "X1",
    sentence="Near a minimum the covariance of the gradient noise is nearly proportional to the Hessian.",
    source=Source(PAPER, "abstract of one version; figures 1 and 2 [recalled]"),
    scope="sweep",
    statistic="Pearson's correlation of e_i'C e_j with e_i'H e_j over the 10 top eigenvectors of H, at the end of training",
    threshold=f"> {CLOSE}",
    quantities=QUANTITIES,
    experiments=ENDS,
    controls=Controls(
        made, lambda seed: made(seed, end=0.6), lambda seed: made(seed, seeds=2), lambda seed: made(seed, scale=3.0),
    ),
)  # fmt: skip
def covariance_is_hessian(runs: Sequence[Evidence]) -> Verdict:
    """Judge X1. The slope, 1 for a well-specified likelihood only, and the Fisher matrices are told beside."""
    scales = _all(runs, "noise_scale")
    near = [run for run, scale in zip(runs, scales, strict=True) if not scale < NEAR]
    if runs and not near:
        reason = f"no run is near a minimum: |g|^2 is above a tenth of Tr C (noise scale {mean_finite(scales):.3g} examples)"
        return Verdict("X1", "not in regime", nan, (nan, nan), len(runs), CLOSE, reason, _place(runs))
    names = ("slope", "diagonal_correlation", "off_diagonal", "matrix_cosine", "trace_ratio", "noise_scale")
    fisher = ("fisher_slope", "fisher_correlation", "empirical_fisher_slope", "empirical_fisher_correlation")
    part = Part("correlation of C with H", _all(near, "correlation"), CLOSE, least=3)
    lead = f"slope of C over H {mean_finite(_all(near, 'slope')):.3g}; "
    return joint("X1", [part], place=_place(near), lead=lead, details=_told(near, "correlation", *names, *fisher))


@claim(
    "X2",
    sentence="The covariance of the gradient of a batch goes with the inverse of the batch size.",
    source=Source(PAPER, "abstract of one version"),
    scope="sweep",
    statistic="slope of log Tr C_B, by (N - 1) / (N - B) for drawing without replacement, over log B, from gradients of batches",
    threshold=f"-1 within {POWER}, by two one-sided tests",
    quantities=QUANTITIES,
    experiments=ENDS,
    controls=Controls(made, lambda seed: made(seed, batch=-0.7), lambda seed: made(seed, seeds=2)),
    observe=batches_and_steps,
)
def inverse_to_batch_size(runs: Sequence[Evidence]) -> Verdict:
    """Judge X2: an identity for independent examples, so that it fails where a batch couples them, as BatchNorm does."""
    slopes, plain = [], []
    for run in runs:
        sizes, traces = np.atleast_1d(seen(run, "batch_size")), np.atleast_1d(seen(run, "trace"))
        n = float(seen(run, "examples"))
        slopes.append(power(sizes, traces * (n - 1) / (n - sizes)))
        plain.append(power(sizes, traces))
    parts = [
        Part("power of B, from below", slopes, -1 - POWER, least=SEEDS),
        Part("power of B, from above", slopes, -1 + POWER, above=False, least=SEEDS),
    ]
    return joint("X2", parts, place=_place(runs), details={"power_without_the_factor": mean_finite(plain)})


@claim(
    "X3",
    sentence="The covariance follows the Hessian at random initialisation too, but less closely than after training.",
    source=Source(PAPER, "figure 2b [recalled]"),
    scope="sweep",
    statistic="the correlation of X1 at theta_0; that at the end minus it, paired over seeds",
    threshold=f"> {WEAKER}; > 0",
    quantities=QUANTITIES,
    experiments=ENDS,
    controls=Controls(made, lambda seed: made(seed, start=0.3), lambda seed: made(seed, seeds=2)),
)
def at_initialisation_too(runs: Sequence[Evidence]) -> Verdict:
    """Judge X3."""
    starts, ends = _all(runs, "correlation", 0), _all(runs, "correlation")
    parts = [
        Part("correlation at the start", starts, WEAKER, least=SEEDS),
        Part("end minus start", [b - a for a, b in zip(starts, ends, strict=True)], 0.0, least=SEEDS),
    ]
    return joint("X3", parts, place=_place(runs), details=_told(runs, "correlation", "slope", "off_diagonal"))


@claim(
    "X4",
    sentence="The gradient noise is Gaussian over batches, the more so the larger they are, and heavy-tailed over parameters.",
    source=Source(PAPER, "figure 1 [recalled]"),
    scope="sweep",
    statistic="median excess kurtosis over batches along the 10 top eigenvectors of C: at the largest batch size, and the log of "
    "its fall from the smallest; Hill's index of one batch's noise over the parameters",
    threshold=f"< {EXCESS}; > 0; < {HEAVY:g}",
    quantities=QUANTITIES,
    experiments=ENDS,
    controls=Controls(made, lambda seed: made(seed, tail=7.0), lambda seed: made(seed, seeds=2)),
    observe=batches_and_steps,
)
def gaussian_over_batches(runs: Sequence[Evidence]) -> Verdict:
    """Judge X4: the two readings apart."""
    excess = [np.atleast_1d(seen(run, "kurtosis")) - 3 for run in runs]
    falls = [log(e[0] / e[-1]) if len(e) > 1 and min(e[0], e[-1]) > 0 else nan for e in excess]
    parts = [
        Part("excess kurtosis over batches", [float(e[-1]) for e in excess], EXCESS, above=False, least=SEEDS),
        Part("log of its fall", falls, 0.0, least=SEEDS),
        Part("Hill's index over parameters", [float(seen(run, "parameter_tail_index")) for run in runs], HEAVY, above=False),
    ]
    details = {"parameter_kurtosis": mean_finite([float(seen(run, "parameter_kurtosis")) for run in runs])}
    return joint("X4", parts, place=_place(runs), details=details)


@claim(
    "X12",
    sentence="The diffusion of SGD is confined to the top eigenvectors of the Hessian, along each as large as its eigenvalue.",
    source=Source(PAPER, "text [recalled]"),
    scope="sweep",
    statistic="share of the variance of the updates of a window within the 10 top eigenvectors of H; slope of the log of the "
    "variance over that of the eigenvalue",
    threshold=f"> {CONFINED}; 1 within {FOLLOWS}, by two one-sided tests",
    quantities=QUANTITIES,
    experiments=ENDS,
    controls=Controls(made, lambda seed: made(seed, share=0.1), lambda seed: made(seed, seeds=2)),
    observe=batches_and_steps,
)
def confined_to_the_top(runs: Sequence[Evidence]) -> Verdict:
    """Judge X12: the updates minus their mean over the last window, at whose first point H is taken."""
    powers = [power(np.atleast_1d(seen(run, "eigenvalue")), np.atleast_1d(seen(run, "variance"))) for run in runs]
    parts = [
        Part("share in the top 10", [float(seen(run, "share")) for run in runs], CONFINED, least=SEEDS),
        Part("power of the eigenvalue, from below", powers, 1 - FOLLOWS, least=SEEDS),
        Part("power of the eigenvalue, from above", powers, 1 + FOLLOWS, above=False, least=SEEDS),
    ]
    details = {"share_by_chance": mean_finite([10 / float(seen(run, "parameters")) for run in runs])}
    return joint("X12", parts, place=_place(runs), details=details)
