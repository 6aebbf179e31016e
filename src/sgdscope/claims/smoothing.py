"""The claims N1-N5 of "SGD Smooths the Sharpest Directions" (Jastrzebski et al., ICLR 2018 workshop).

Of the paper only the abstract is known here: the noise controls spectral norm and conditioning of the Hessian, and neurons are
thought to saturate along the largest curvature directions. Statistics and thresholds are this project's, from before any run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import nan
from typing import Any

import numpy as np

from sgdscope import statistics
from sgdscope.contracts import Controls, Evidence, Source, Verdict, claim
from sgdscope.evidence import known
from sgdscope.evidence.matched import WHOLE, at_levels, common_losses, with_noise
from sgdscope.evidence.partial import partial, pooled
from sgdscope.evidence.protocols import PATH_SWEEP, SIZES, described, path_of
from sgdscope.evidence.sharp_runs import BASE
from sgdscope.evidence.sharpness import Path, path, paths, place
from sgdscope.evidence.units import STEP, alive, increments, moved, named
from sgdscope.evidence.windows import decide, full_batch, mean_finite, weakest

PAPER = "Jastrzebski et al. 2018 (OpenReview BJ04JEJvG)"
CONDITIONING: Mapping[str, float] = {"conditioning": -1.0, "outlier_ratio": -1.0, "effective_rank": 1.0}
CURVATURE: Mapping[str, Mapping[str, Any]] = {"curvature": {"k": 5, "probes": 20}}
UNITS: Mapping[str, Mapping[str, Any]] = {"neurons": {"k": 1}}
PAIRS = 5  # seeds where two settings are compared; with five the smallest one-sided sign-test p is 1/32
NONE = 0.2  # N4: a partial correlation within -+0.2 counts as none
ARMS = {"identity": "a linear network", "white": "white noise of equal norm", "projected": "noise without e_1..e_5"}


def _papers(seed: int) -> list[dict[str, Any]]:
    """SimpleCNN on CIFAR-10 over learning rates and batch sizes that the same authors' code has, 200 epochs each."""
    found = []
    for s in range(1000 * seed, 1000 * seed + PAIRS):
        for lr in (0.01, 0.05, 0.1):
            for batch in (32, 128, 1024):
                told = described("paper", s, lr, batch, at="path", weight_decay=0.0) | {"model": {"name": "simplecnn"}}
                updates = 200 * (45000 // batch)
                told["phases"][0]["updates"], told["record"]["snapshots"]["at"] = updates, path_of(updates)
                found.append(told | {"name": f"paper-simplecnn-lr{lr:g}-batch{batch}-seed{s}"})
    return found


NOISY = PATH_SWEEP | {"paper": _papers}


@claim(
    "N1",
    sentence="More noise, by a larger learning rate or a smaller batch, means a lower lambda_1 along the path, "
    "at equal training loss.",
    source=Source(PAPER, "abstract"),
    scope="sweep",
    statistic="slopes of log lambda_1, falling, over log lr and over -log batch size, within seeds, mean over 5 levels of "
    "training loss that the runs share: the smaller",
    threshold="> 0 for both",
    quantities=CURVATURE,
    experiments=NOISY,
    controls=Controls(
        known.grid, lambda seed: known.grid(seed, lr=-0.4), lambda seed: known.grid(seed, seeds=2),
        lambda seed: known.grid(seed, speed=0.01),
    ),
)  # fmt: skip
def noise_lowers(runs: Sequence[Evidence]) -> Verdict:
    """Judge N1: both trends; those at equal updates, and at each level of the loss alone, are told beside."""
    return with_noise("N1", runs, {"sharpness": -1.0})


@claim(
    "N2",
    sentence="More noise means a better conditioned Hessian at equal training loss: a lower lambda_1 / lambda_5, a lower "
    "lambda_1 over the mean eigenvalue, and a higher effective rank.",
    source=Source(PAPER, "abstract; the paper's own definition of conditioning is not known, so that each of three must follow"),
    scope="sweep",
    statistic="slopes of the logs of the three over log lr and over -log batch size, as in N1: the least",
    threshold="> 0 for all six",
    quantities=CURVATURE,
    experiments=NOISY,
    controls=Controls(
        known.grid, lambda seed: known.grid(seed, batch=-0.4), lambda seed: known.grid(seed, seeds=2),
        lambda seed: known.grid(seed, speed=0.01),
    ),
)  # fmt: skip
def noise_conditions(runs: Sequence[Evidence]) -> Verdict:
    """Judge N2: six trends."""
    return with_noise("N2", runs, CONDITIONING)


def _without(claim_id: str, answer: Any, reason: str, runs: Sequence[Evidence], group: str = "neurons") -> Verdict:
    """A verdict that rests on no statistic."""
    return Verdict(claim_id, answer, nan, (nan, nan), len(runs), 0.0, reason, _regime(runs, group))


def _regime(runs: Sequence[Evidence], group: str = "neurons") -> dict[str, float | str]:
    return place([path(run, "eigenvalue", group) for run in runs])


def _with_units(claim_id: str, runs: Sequence[Evidence]) -> Verdict | None:
    """The verdict where there is nothing to look at."""
    looked = [run for run in runs if run.measured.get("neurons") is not None and len(named(run, "loss"))]
    if not looked:
        return _without(claim_id, "undecided", "the units of no run were looked at", runs)
    if not any(np.isfinite(named(run, "saturation")).any() for run in looked):
        return _without(claim_id, "not in regime", "the networks have no activations that can saturate", looked)
    if not any(alive(run).any() for run in looked):
        return _without(claim_id, "not in regime", "the training loss has vanished at each measured point", looked)
    return None


@claim(
    "N3",
    sentence="Where a step of SGD goes along the sharpest direction, the units are more saturated, and more so than along random "
    "directions of the same length.",
    source=Source(PAPER, "abstract, the hypothesis"),
    scope="sweep",
    statistic="change of the mean saturation of the units at theta - s_1 e_1, mean over points of the path; its excess over that "
    "along random directions; the smaller, over seeds",
    threshold="> 0 for both",
    quantities=UNITS,
    experiments=BASE,
    controls=Controls(
        known.saturating, lambda seed: known.saturating(seed, sharp=-1.0), lambda seed: known.saturating(seed, seeds=3),
        lambda seed: known.saturating(seed, units=False),
    ),
)  # fmt: skip
def saturate_along_sharp(runs: Sequence[Evidence]) -> Verdict:
    """Judge N3. e_1 points up the gradient, so that SGD goes to its minus side; other lengths and sides are told beside."""
    early = _with_units("N3", runs)
    if early:
        return early
    pairs = [(moved(run), moved(run, arm="random")) for run in runs]
    kept = np.array([pair for pair in pairs if np.isfinite(pair).all()]).reshape(-1, 2)
    if len(kept) < PAIRS:
        return _without("N3", "undecided", f"{len(kept)} runs have directions that converged, {PAIRS} are needed", runs)
    parts = {"change": kept[:, 0], "excess": kept[:, 0] - kept[:, 1]}
    found = {name: statistics.mean_interval(values) for name, values in parts.items()}
    answer = weakest(decide(interval, 0.0) for _, _, interval in found.values())
    least = min(found.values(), key=lambda own: own[0])
    positions = sorted({float(j) for run in runs for j in run.measured["neurons"]["position"].values if j})
    arms = ("sharp", "random", "gradient")
    details: dict[str, Any] = {name: [mean, *interval] for name, (mean, _, interval) in found.items()}
    for arm in arms:
        details[arm] = {f"{j:g}": mean_finite([moved(run, j, arm) for run in runs]) for j in positions}
    details["softmax"] = {f"{j:g}": mean_finite([moved(run, j, name="softmax_change") for run in runs]) for j in positions}
    details["downhill"] = mean_finite([mean_finite(named(run, "downhill", rank=1).tolist()) for run in runs])
    saturation = mean_finite([mean_finite(named(run, "saturation").tolist()) for run in runs])
    reason = (
        f"one step along e_1 changes the saturation, {saturation:.2f}, by {found['change'][0]:+.2g}; that is "
        f"{found['excess'][0]:+.2g} more than along random directions; the other side of e_1 changes it by "
        f"{mean_finite([moved(run, -STEP) for run in runs]):+.2g} ({len(kept)} seeds)"
    )
    return Verdict("N3", answer, least[0], least[2], len(kept), 0.0, reason, _regime(runs), 0.5 ** len(kept), details)


@claim(
    "N4",
    sentence="Where the units saturate, lambda_1 falls, at a given change of the training loss, and not only because the softmax "
    "saturates.",
    source=Source(PAPER, "abstract, the hypothesis"),
    scope="sweep",
    statistic="partial rank correlation of changes of log lambda_1 and of the units' saturation along a path, given those of the "
    "loss, and given those of loss and softmax saturation; mean over seeds, the larger of the two",
    threshold=f"< 0 for both; within -+{NONE} given the softmax, with a softmax that correlates, contradicts",
    quantities=UNITS,
    experiments=BASE,
    controls=Controls(
        known.mediated, lambda seed: known.mediated(seed, units=0.3), lambda seed: known.mediated(seed, seeds=3),
        lambda seed: known.saturating(seed, units=False),
    ),
)  # fmt: skip
def saturation_explains(runs: Sequence[Evidence]) -> Verdict:
    """Judge N4: the units by themselves and beyond the softmax; the softmax apart, and the Gauss-Newton part, are told beside."""
    early = _with_units("N4", runs)
    if early:
        return early
    seen = [increments(run) for run in runs]
    given = {
        "units": [partial(d.sharpness, d.units, d.loss) for d in seen],
        "units_beyond_softmax": [partial(d.sharpness, d.units, d.loss, d.softmax) for d in seen],
        "units_beyond_time": [partial(d.sharpness, d.units, d.loss, np.arange(len(d.loss))) for d in seen],
        "softmax": [partial(d.sharpness, d.softmax, d.loss) for d in seen],
        "softmax_beyond_units": [partial(d.sharpness, d.softmax, d.loss, d.units) for d in seen],
        "squared_slope": [partial(d.sharpness, d.slopes, d.loss) for d in seen],
        "gauss_newton_and_units": [partial(d.split, d.units, d.loss) if np.isfinite(d.split).all() else nan for d in seen],
    }
    kept = {name: [r for r in values if np.isfinite(r)] for name, values in given.items()}
    count = min(len(kept[name]) for name in ("units", "units_beyond_softmax", "softmax"))
    if count < PAIRS:
        return _without("N4", "undecided", f"{count} paths have enough points that differ, {PAIRS} are needed", runs)
    found = {name: pooled(values) for name, values in kept.items() if values}
    parts = [found["units"], found["units_beyond_softmax"]]
    answer = weakest(decide(interval, 0.0, above=False) for _, interval in parts)
    low, high = found["units_beyond_softmax"][1]
    if answer == "undecided" and low > -NONE and high < NONE and decide(found["softmax"][1], 0.0, above=False) == "supported":
        answer = "contradicted"
    most = max(parts, key=lambda own: own[0])
    reason = (
        f"given the change of the loss, lambda_1 and the units' saturation correlate by {found['units'][0]:+.2f}, given the "
        f"softmax too by {found['units_beyond_softmax'][0]:+.2f}; lambda_1 and the softmax by {found['softmax'][0]:+.2f} "
        f"({count} seeds)"
    )
    details: dict[str, Any] = {name: [mean, *interval] for name, (mean, interval) in found.items()}
    details["gauss_newton_over_sharpness"] = mean_finite([d.outer for d in seen])
    return Verdict("N4", answer, most[0], most[1], count, 0.0, reason, _regime(runs), 0.5**count, details)


# --- causal controls -------------------------------------------------------------------------------------------------


NETWORK: Mapping[str, Mapping[str, Any]] = {
    "quick": {}, "standard": {}, "paper": {"name": "mlp", "hidden": [500, 350], "batchnorm": False}
}  # fmt: skip  # dense networks, whose activation can be chosen, without BatchNorm: the full gradient is that of the batches
EXAMPLES = 60000  # all training data: the noise is that of the batch against the full gradient


def _causal(preset: str) -> Any:
    """Runs with the noise of a quarter of the preset's batch and with none, and with the noise or the units changed."""

    def runs(seed: int) -> list[dict[str, Any]]:
        size = SIZES[preset]
        lr, batch = size["lr"], max(1, round(size["batch_size"] / 4))
        noise = {"walker": "nudged", "base": "sgd", "where": "noise", "examples": EXAMPLES}
        changed: list[dict[str, Any]] = [
            noise | {"variant": "white", "k": 1, "every": "once"},
            noise | {"variant": "nudge", "gamma": 0.0, "k": 5, "every": 10},
        ]
        found = []
        for s in range(1000 * seed, 1000 * seed + PAIRS):
            for activation in ("relu", "identity", "leaky_relu"):
                model = dict(NETWORK[preset]) | ({} if activation == "relu" else {"activation": activation})
                more: dict[str, Any] = {"model": model} if model else {}
                for own in (batch, "full"):
                    found.append(described(preset, s, lr, own, at="path", **more, weight_decay=0.0))
            plain: dict[str, Any] = {"model": dict(NETWORK[preset])} if NETWORK[preset] else {}
            found += [described(preset, s, lr, batch, at="path", **plain, weight_decay=0.0, **own) for own in changed]
        return found

    return runs


def arm(run: Evidence) -> str:
    """Which of the runs of N5 this is, from its description: its activation and its noise, such as ``"identity-full"``.

    Args:
        run: the evidence.

    Returns:
        "white" and "projected" for changed noise, else the activation, with "-full" for the full batch.
    """
    told = run.settings.get("experiment") or {}
    phase = (told.get("phases") or [{}])[0]
    activation = str((told.get("model") or {}).get("activation", "relu"))
    if phase.get("walker") == "nudged":
        return "white" if phase.get("variant") == "white" else "projected"
    return f"{activation}-full" if full_batch(run) else activation


def drops(found: Sequence[Path]) -> dict[str, float]:
    """How far noise lowers lambda_1 in the runs of one seed: log lambda_1 without noise minus with it, at equal training loss.

    Args:
        found: the paths of one seed.

    Returns:
        Arm -> mean log ratio over the losses that the runs of one network share; only arms that can be compared.
    """
    own = {arm(p.run): p for p in found}
    told: dict[str, float] = {}
    for network, arms in (("relu", ("relu", "white", "projected")), ("identity", ("identity",)), ("leaky_relu", ("leaky_relu",))):
        quiet, noisy = own.get(f"{network}-full"), [own[name] for name in arms if name in own]
        levels = common_losses([quiet, *noisy], WHOLE) if quiet is not None and noisy else None
        if quiet is not None and levels is not None:
            told |= {arm(p.run): float(np.log(at_levels(quiet, levels) / at_levels(p, levels))) for p in noisy}
    return {name: value for name, value in told.items() if np.isfinite(value)}


@claim(
    "N5",
    sentence="The noise along the sharpest directions, through units that saturate, lowers lambda_1: it is lowered less in a "
    "linear network, by white noise of the same norm, and by noise without its part along e_1..e_5.",
    source=Source(PAPER, "abstract, the hypothesis turned into three interventions"),
    scope="sweep",
    statistic="log of lambda_1 of full-batch descent over that of SGD at equal training loss, minus the same in each of three "
    "arms, over paired seeds: the least",
    threshold="> 0 for all three, where SGD lowers lambda_1",
    quantities=CURVATURE,
    experiments={preset: _causal(preset) for preset in SIZES},
    controls=Controls(
        known.causal, lambda seed: known.causal(seed, projected=2.4), lambda seed: known.causal(seed, seeds=3),
        lambda seed: known.causal(seed, relu=-1.2),
    ),
)  # fmt: skip
def noise_is_the_cause(runs: Sequence[Evidence]) -> Verdict:
    """Judge N5: paired differences of the drop; leaky ReLU (slope 0.01, nearly as flat as ReLU) is told beside."""
    found = paths(runs)
    by_seed = {seed: drops([p for p in found if p.seed == seed]) for seed in sorted({p.seed for p in found})}
    whole = {seed: own for seed, own in by_seed.items() if {"relu", *ARMS} <= set(own)}
    if len(whole) < PAIRS:
        reason = f"{len(whole)} seeds have all arms with a training loss in common, {PAIRS} are needed"
        return _without("N5", "undecided", reason, runs, "curvature")
    dropped = np.array([own["relu"] for own in whole.values()])
    mean, _, interval = statistics.mean_interval(dropped)
    applies = decide(interval, 0.0)
    told = f"SGD's lambda_1 is that of full-batch descent divided by {np.exp(mean):.3g} at equal training loss"
    if applies != "supported":
        answer = "not in regime" if applies == "contradicted" else "undecided"
        return _without("N5", answer, f"{told}: no drop to explain", runs, "curvature")
    pairs = {name: statistics.paired(dropped, [own[name] for own in whole.values()]) for name in ARMS}
    answer = weakest(decide(pair[1], 0.0) for pair in pairs.values())
    least = min(pairs.values(), key=lambda pair: pair[0])
    means = {name: float(np.mean([own[name] for own in whole.values()])) for name in ("relu", *ARMS)}
    leaky = [own["leaky_relu"] for own in whole.values() if "leaky_relu" in own]
    reason = f"{told}; by {', '.join(f'{np.exp(means[name]):.3g} with {words}' for name, words in ARMS.items())}; "
    reason += f"{means['projected'] / means['relu']:.0%} of the drop is left without the noise along e_1..e_5"
    details: dict[str, Any] = {"log_drops": means | {"leaky_relu": float(np.mean(leaky)) if leaky else nan}}
    details["differences"] = {name: [pair[0], *pair[1]] for name, pair in pairs.items()}
    details["drop_interval"] = list(interval)
    place_of = _regime([p.run for p in found], "curvature")
    return Verdict("N5", answer, least[0], least[1], len(whole), 0.0, reason, place_of, least[3], details)
