"""The shape of a claim: evidence, verdict, controls and the declaration."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import xarray as xr

from sgdscope.contracts.catalogue import Catalogue, Source
from sgdscope.records import Surface, Trajectory

Scope = Literal["run", "sweep"]
Answer = Literal["supported", "contradicted", "undecided", "not in regime"]


@dataclass(frozen=True)
class Evidence:
    """One measured run, as a claim sees it.

    Attributes:
        settings: of the run: seed, learning rate, batch size, ...
        steps: the scalars of its updates.
        measured: one group a quantity.
        extra: what the claim's own experiment measured beside the quantities.
    """

    settings: Mapping[str, Any]
    steps: xr.Dataset
    measured: Mapping[str, xr.Dataset]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
        claim: its id.
        verdict: supported, contradicted, undecided or not in regime.
        statistic: the number that was held against the threshold.
        interval: its 95 % interval.
        n: over how many independent units.
        threshold: fixed beforehand.
        reason: in one sentence, with the numbers.
        regime: where on the map these runs lie (learning rate x curvature, training loss, ...).
        smallest_p: the smallest p that these data could attain; None where no test is done.
        details: further numbers, JSON types.
    """

    claim: str
    verdict: Answer
    statistic: float
    interval: tuple[float, float]
    n: int
    threshold: float
    reason: str
    regime: Mapping[str, float | str] = field(default_factory=dict)
    smallest_p: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Controls:
    """Runs on which the answer is known by construction.

    Attributes:
        positive: seed -> evidence on which the claim holds.
        negative: seed -> evidence on which it cannot hold.
        starved: seed -> evidence too small to decide.
        foreign: seed -> evidence to which the claim does not apply; None where there is no such regime.
    """

    positive: Callable[[int], list[Evidence]]
    negative: Callable[[int], list[Evidence]]
    starved: Callable[[int], list[Evidence]]
    foreign: Callable[[int], list[Evidence]] | None = None


@dataclass(frozen=True)
class ClaimEntry:
    """A registered claim.

    Attributes:
        judge: measured runs -> verdict.
        id: such as ``"W1"``.
        sentence: could be false.
        paper: name of the file (or folder) in `claims/`.
        source: where the paper says it.
        scope: ``"run"`` if one recorded run can answer, else ``"sweep"``.
        statistic: in words.
        threshold: in words.
        quantities: what must be measured, name -> options.
        experiments: preset -> seed -> descriptions of the runs (validated by `Experiment`).
        controls: runs with known answers.
        observe: (trajectory, surface, data folder) -> what the claim measures beside the quantities; None for most.
        study: (description, folder for its runs, data folder) -> evidence, where an experiment of the claim is no walk of one
            network by an `Experiment` (escapes, chains, ensembles); its descriptions have a name and a seed. None for most.
    """

    judge: Callable[[Sequence[Evidence]], Verdict]
    id: str
    sentence: str
    paper: str
    source: Source
    scope: Scope
    statistic: str
    threshold: str
    quantities: Mapping[str, Mapping[str, Any]]
    experiments: Mapping[str, Callable[[int], list[dict[str, Any]]]]
    controls: Controls
    observe: Callable[[Trajectory, Surface, Any], Mapping[str, Any]] | None = None
    study: Callable[[Mapping[str, Any], Path, Any], Evidence] | None = None


claims: Catalogue[ClaimEntry] = Catalogue("claim", "claims")


def claim(
    id: str, **declared: Any
) -> Callable[[Callable[[Sequence[Evidence]], Verdict]], Callable[[Sequence[Evidence]], Verdict]]:
    """Register a claim.

    Args:
        id: such as ``"W1"``.
        **declared: the further attributes of `ClaimEntry`, `judge` and `paper` excepted.

    Returns:
        The decorator; the function stays as it is.
    """

    def decorate(judge: Callable[[Sequence[Evidence]], Verdict]) -> Callable[[Sequence[Evidence]], Verdict]:
        parts = judge.__module__.split(".")
        paper = parts[parts.index("claims") + 1] if "claims" in parts else parts[-1]
        claims.add(id, ClaimEntry(judge=judge, id=id, paper=paper, **declared))
        return judge

    return decorate
