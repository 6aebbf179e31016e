"""Escape experiments as evidence: described in JSON, run once, read back as waiting times by setting and seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import log, nan
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
import xxhash
from torch.nn.functional import cross_entropy

from sgdscope import escapes
from sgdscope.contracts import Evidence, Verdict
from sgdscope.datasets import load
from sgdscope.models import build

ESCAPES = 10  # of a setting, below which log tau has a standard error above a third and is not used; chosen here
RELAXATIONS = 3.0  # lr lambda_1 tau below which walkers leave before they have filled the valley: no rare event; chosen here
LEAST = 3  # settings of an ordered trend (style, section 10)


# --- running -----------------------------------------------------------------------------------------------------------------


def potential_of(description: Mapping[str, Any], data_dir: Any = None) -> escapes.Potential:
    """The potential of a description, not yet rescaled.

    Args:
        description: its ``potential``: kind wells, tang or network, and the options of that; ``offset`` lifts wells.
        data_dir: folder of the real data.

    Returns:
        The potential; of a network the one that `settle` left, with the seed of the description.
    """
    options = dict(description["potential"])
    kind = options.pop("kind")
    if kind == "wells":
        offset = options.pop("offset", None)
        return escapes.Wells(**options) if offset is None else escapes.Raised(escapes.Wells(**options), offset)
    if kind == "tang":
        return escapes.Tang(**options)
    return _network(json.dumps(options, sort_keys=True), int(description["seed"]), None if data_dir is None else str(data_dir))


@lru_cache(maxsize=16)
def _network(told_options: str, seed: int, data_dir: str | None) -> escapes.Network:
    """The settled network; the settings of one seed share it, since settling takes as long as a walk."""
    options: Mapping[str, Any] = json.loads(told_options)
    data = load(options["dataset"], data_dir, train=options.get("train"), clip=options.get("clip"))
    labels = escapes.largest_against_rest(data.y)
    told = dict(options["model"])
    decay = float(options.get("decay", 0.0))
    model = build(told.pop("name"), inputs=tuple(data.x.shape[1:]), classes=2, seed=seed, **told)

    def loss(network: Any, batch: Any) -> torch.Tensor:
        value = cross_entropy(network(batch[0]), batch[1])
        return value + 0.5 * decay * sum((p * p).sum() for p in network.parameters()) if decay else value

    settled: Mapping[str, Any] = options["settle"]
    return escapes.Network(model, loss, (data.x, labels)).settle(settled["updates"], lr=settled["lr"])


def valley_of(description: Mapping[str, Any], potential: escapes.Potential) -> escapes.Valley:
    """The valley of a description at k = 1: ``{"kind": "threshold", "at": ...}`` or ``{"kind": "box", "radius": ...}``."""
    options = dict(description["valley"])
    if options.pop("kind") == "box":
        return escapes.Box(potential.start(), **options)
    return escapes.Threshold(**options)


def noise_of(description: Mapping[str, Any]) -> escapes.Noise:
    """The noise of a description: minibatch or shaped with a ``batch_size``, or white with a ``diffusion``."""
    options = dict(description["noise"])
    kinds: dict[str, Callable[..., escapes.Noise]] = {
        "minibatch": escapes.Minibatch, "shaped": escapes.Shaped, "white": escapes.White
    }  # fmt: skip
    return kinds[options.pop("kind")](**options)


def study(description: Mapping[str, Any], folder: Path, data_dir: Any) -> Evidence:
    """Run one escape experiment, or read it back where the folder holds it.

    Args:
        description: name, seed, potential, valley, noise, k, lr, walkers, max_updates, enough.
        folder: of its result, one JSON file.
        data_dir: folder of the real data.

    Returns:
        Evidence whose extra are the numbers of `Waiting.told` and the sharpness of the start.
    """
    return kept(description, folder, lambda: _waited(description, data_dir))


def _waited(description: Mapping[str, Any], data_dir: Any) -> dict[str, Any]:
    potential, k = potential_of(description, data_dir), float(description.get("k", 1.0))
    generator = generator_of(description)
    valley = valley_of(description, potential).scaled(k)
    found = escapes.escape(
        escapes.Rescaled(potential, k),
        valley,
        noise_of(description),
        lr=description["lr"],
        walkers=description["walkers"],
        max_updates=description["max_updates"],
        enough=description["enough"],
        generator=generator,
    )
    return found.told() | {"sharpness": k * potential.sharpness()}


def generator_of(description: Mapping[str, Any]) -> torch.Generator:
    """A generator seeded by the whole description but its name and the folder of its table.

    So the settings of one seed are independent, also those that are one walk in other units (k and lr under SGD).

    Args:
        description: of a run.

    Returns:
        A fresh generator.
    """
    told = {name: v for name, v in description.items() if name != "name"}
    if "dataset" in told.get("potential", {}):
        told["potential"] = dict(told["potential"]) | {"dataset": Path(told["potential"]["dataset"]).name}
    words = json.dumps(told, sort_keys=True)
    return torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(words.encode()) >> 1)


def kept(description: Mapping[str, Any], folder: Path, make: Callable[[], dict[str, Any]]) -> Evidence:
    """The evidence of a description, read from the folder if it is there, else made and written.

    Args:
        description: the settings.
        folder: of ``escape.json``.
        make: the numbers, JSON types.

    Returns:
        The evidence.
    """
    path = folder / "escape.json"
    if path.is_file():
        return Evidence(dict(description), xr.Dataset(), {}, json.loads(path.read_text()))
    extra = make()
    folder.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(extra))
    return Evidence(dict(description), xr.Dataset(), {}, extra)


# --- reading -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stay:
    """One setting and seed, as the judges see it.

    Attributes:
        kind: of the potential and its noise: what may be compared.
        seed: of the run.
        point: for the scaling laws.
        told: the numbers of the run.
        copies: independent directions d.
    """

    kind: str
    seed: int
    point: escapes.Point
    told: Mapping[str, Any]
    copies: int = 1

    @property
    def relaxations(self) -> float:
        """Lr lambda_1 tau: how many relaxation times of the valley a walker stays in it."""
        return float(np.exp(self.point.log_tau)) * self.point.lr * float(self.told["sharpness"])


def stays(runs: Sequence[Evidence]) -> list[Stay]:
    """Read escape experiments; those with fewer than `ESCAPES` escapes or with diverged walkers are left out.

    Args:
        runs: of `study`.

    Returns:
        One entry a run.
    """
    found = []
    for run in runs:
        told, s = run.extra, run.settings
        if told.get("tau") is None or told["escapes"] < ESCAPES or told["diverged"]:
            continue
        noise, analytic = s["noise"], s["potential"]["kind"] != "network"
        potential: Any = potential_of(s) if analytic else None
        point = escapes.Point(
            log(told["tau"]),
            told["escapes"] ** -0.5,
            k=float(s.get("k", 1.0)),
            batch_size=float(noise.get("batch_size", nan)),
            lr=float(s["lr"]),
            diffusion=float(noise.get("diffusion", nan)),
            barrier=potential.barrier if analytic else nan,
        )
        found.append(Stay(_kind(run), int(s["seed"]), point, told, potential.size if analytic else 1))
    return found


def swept(runs: Sequence[Evidence]) -> tuple[list[Evidence], dict[str, Any]]:
    """Part the runs of a claim from those that ask which barrier sets the waiting time, and say what these answer.

    The barriers b of lifted wells at equal curvature, so that the prefactor is the same: log tau over b and over log L(b)/L(a).

    Args:
        runs: of `study`.

    Returns:
        (the runs of the claim, kind of noise -> both slopes, chi2 and the winner of `escapes.hypotheses`, JSON types).
    """
    told: dict[bool, list[escapes.Point]] = {}
    for run in runs:
        extra, s = run.extra, run.settings
        if s.get("sweep") == "barrier" and extra.get("tau") is not None and extra["escapes"] >= ESCAPES:
            height, offset = float(s["potential"]["barrier"]), float(s["potential"]["offset"])
            ends = {"barrier": height, "log_barrier": log(1 + height / offset), "lr": float(s["lr"])}
            point = escapes.Point(log(extra["tau"]), extra["escapes"] ** -0.5, **ends)
            told.setdefault(bool(s["noise"].get("of_loss")), []).append(point)
    names = {False: "noise |H| / B", True: "noise 2 L |H| / B"}
    answers = {names[of_loss]: _compared(points) for of_loss, points in told.items() if len(points) > 2}
    return [run for run in runs if "sweep" not in run.settings], answers


def _compared(points: Sequence[escapes.Point]) -> dict[str, Any]:
    found = escapes.hypotheses(points)
    slopes = {"slope_over_barrier": found.barrier.slope, "slope_over_log_barrier": found.log_barrier.slope}
    chi2 = {"chi2_barrier": found.barrier.chi2, "chi2_log_barrier": found.log_barrier.chi2}
    return {"winner": found.winner, "difference_of_aic": found.difference, **slopes, **chi2, "points": len(points)}


def kinds(found: Sequence[Stay]) -> dict[str, dict[int, list[Stay]]]:
    """Kind -> seed -> its stays."""
    table: dict[str, dict[int, list[Stay]]] = {}
    for stay in found:
        table.setdefault(stay.kind, {}).setdefault(stay.seed, []).append(stay)
    return table


def by_seed(runs: Sequence[Evidence], least: int = LEAST) -> dict[str, dict[int, list[Stay]]]:
    """The stays of the seeds that have all settings of their kind, and at least `least` of them.

    Args:
        runs: of `study`.
        least: number of settings.

    Returns:
        Kind -> seed -> stays; a kind whose settings were described but without a whole seed is there with no seeds.
    """
    asked: dict[str, set[str]] = {}
    for run in runs:
        asked.setdefault(_kind(run), set()).add(_setting(run))
    table = kinds(stays(runs))
    whole: dict[str, dict[int, list[Stay]]] = {}
    for kind, settings in asked.items():
        rows = table.get(kind, {})
        whole[kind] = {seed: own for seed, own in rows.items() if len(own) == len(settings) >= least}
    return whole


def _kind(run: Evidence) -> str:
    potential = dict(run.settings["potential"])
    words = [Path(v).name for v in potential.values() if isinstance(v, str)] + [str(potential.get("model", {}).get("name", ""))]
    return " ".join(word for word in (*words, run.settings["noise"]["kind"]) if word)


def _setting(run: Evidence) -> str:
    return json.dumps({name: v for name, v in run.settings.items() if name not in {"name", "seed"}}, sort_keys=True)


def place(runs: Sequence[Evidence]) -> dict[str, float | str]:
    """Where escape experiments lie on the map.

    Args:
        runs: of `study`.

    Returns:
        kinds; lr_sharpness (the largest lr lambda_1), relaxations (the least lr lambda_1 tau), tau_least and tau_most, share of
        runs whose times are exponential (p >= 0.01), and escapes, the least of a run; NaN where nothing escaped. On a table of
        one's own also search: the noise that was found, and features that are constant.
    """
    found = stays(runs)
    taus = [float(np.exp(s.point.log_tau)) for s in found]
    ps = [p for s in found if (p := s.told.get("exponential_p")) is not None]
    searches = sorted({_searched(run) for run in runs if "search" in run.settings})
    sought: dict[str, float | str] = {"search": "; ".join(searches)} if searches else {}
    return sought | {
        "kinds": ", ".join(sorted({_kind(run) for run in runs})) or "none",
        "lr_sharpness": max((s.point.lr * float(s.told["sharpness"]) for s in found), default=nan),
        "relaxations": min((s.relaxations for s in found), default=nan),
        "tau_least": min(taus, default=nan),
        "tau_most": max(taus, default=nan),
        "exponential_share": float(np.mean([p >= 0.01 for p in ps])) if ps else nan,
        "escapes_least": float(min((s.told["escapes"] for s in found), default=0)),
    }


def _searched(run: Evidence) -> str:
    """What `waiting_tables.sought` found, in words."""
    told = run.settings["search"]
    constant = f", constant and without effect: {', '.join(told['constant'])}" if told.get("constant") else ""
    knob, median = f"{told['knob']} {told['found']:.3g}", f"half have left after {told['median']:g} updates"
    return f"{_kind(run)}: {knob}, at which {median}{constant}"


def early(claim: str, runs: Sequence[Evidence], threshold: float, seeds: int, least: int = LEAST) -> Verdict | None:
    """The verdict where too little is at hand, or where escapes are no rare events; None where the claim can be judged.

    Args:
        claim: its id.
        runs: of `study`.
        threshold: of the claim.
        seeds: how many are needed of each kind.
        least: settings that are needed of each kind.

    Returns:
        Undecided, not in regime, or None.
    """
    table = by_seed(runs, least)
    rushed = [s for s in stays(runs) if s.relaxations < RELAXATIONS]
    if rushed:
        reason = (
            f"in {len(rushed)} of {len(runs)} runs walkers stay for fewer than {RELAXATIONS:g} relaxations 1 / (lr lambda_1), "
            f"the least {min(s.relaxations for s in rushed):.2g}: the noise is too strong for a rate of escape"
        )
        return Verdict(claim, "not in regime", nan, (nan, nan), len(runs), threshold, reason, place(runs))
    short = {kind: len(own) for kind, own in table.items() if len(own) < seeds}
    if not table or short:
        told = ", ".join(f"{kind}: {n}" for kind, n in short.items()) or "no runs"
        reason = f"{seeds} seeds with all of at least {least} settings and {ESCAPES} escapes in each are needed; at hand {told}"
        return Verdict(claim, "undecided", nan, (nan, nan), 0, threshold, reason, place(runs))
    return None


# --- runs made of numbers ----------------------------------------------------------------------------------------------------


def drawn(
    settings: Sequence[Mapping[str, Any]],
    log_tau: Callable[[Mapping[str, Any]], float],
    *,
    seeds: int = 5,
    walkers: int = 200,
    sharp: float = 2.0,
) -> Callable[[int], list[Evidence]]:
    """Control: waiting times drawn from exponential laws whose mean is written down, rounded up to whole updates.

    Args:
        settings: descriptions without name and seed.
        log_tau: of a description.
        seeds: how many.
        walkers: of each run.
        sharp: lambda_1 at the start, at k = 1.

    Returns:
        Seed -> evidence.
    """

    def runs(seed: int) -> list[Evidence]:
        random, found = np.random.default_rng(seed), []
        for s in range(100 * seed, 100 * seed + seeds):
            for setting in settings:
                total = float(np.ceil(random.exponential(np.exp(log_tau(setting)), walkers)).sum())
                extra = {"tau": total / walkers, "escapes": walkers, "diverged": 0, "exponential_p": 0.5}
                extra["sharpness"] = sharp * float(setting.get("k", 1.0))
                found.append(Evidence(dict(setting) | {"seed": s}, xr.Dataset(), {}, extra))
        return found

    return runs
