"""An Experiment of several members: each an ordinary recorded run, their combination, and the barriers between them."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import torch
from torch import Tensor

from sgdscope.contracts import ensembles
from sgdscope.ensembles.parallel import WeightedParallelSGD
from sgdscope.errors import ArgumentError, StoreError
from sgdscope.experiment.description import Ensemble, Experiment, Service
from sgdscope.experiment.loop import Loop
from sgdscope.experiment.running import Progress, branch, recorded, run, surface_of
from sgdscope.experiment.schedules import Constant, derived_seed
from sgdscope.files import plain
from sgdscope.records import Header, Snapshot, Surface
from sgdscope.replicas import Combination, combined, finished
from sgdscope.stores.zarr import ZarrStore

ALPHAS: list[float] = np.linspace(0, 1, 21).tolist()
FILE = "ensemble.json"


@dataclass(frozen=True)
class Member:
    """One member of an ensemble.

    Attributes:
        experiment: its own description, that of an ordinary run.
        updates: that it makes; a member without any is not recorded, it stays at its start.
        name: of its run directory.
    """

    experiment: Experiment
    updates: int
    name: str


def workloads(experiment: Experiment, total: int) -> list[int]:
    """The updates of each member.

    Args:
        experiment: with an ensemble.
        total: updates of the phases.

    Returns:
        One number a member; what is drawn comes from the experiment's seed.

    Raises:
        ArgumentError: a member is asked for more updates than the phases have, or none makes an update.
    """
    told = _ensemble(experiment)
    counts = [total] * told.members if told.workloads is None else list(told.workloads)
    if told.speeds is not None and told.deadline is not None:
        counts = finished(
            told.speeds,
            told.deadline,
            scatter=told.scatter,
            straggling=told.straggling,
            slowdown=told.slowdown,
            generator=torch.Generator().manual_seed(derived_seed(experiment.seed, "workloads")),
        )
    if max(counts) > total:
        raise ArgumentError(f"ensemble.workloads: expected at most {total}, the updates of the phases, got {max(counts)}")
    if not any(counts):
        raise ArgumentError("ensemble.workloads: they sum to zero, so no worker has made an update; give a later deadline")
    return counts


def members(experiment: Experiment, data_dir: str | Path | None = None) -> list[Member]:
    """The members of an ensemble as ordinary experiments: one start, data orders of their own, lengths of their own.

    Member 0 has the seed of the experiment, so that one member alone is the plain run, bit for bit.

    Args:
        experiment: with an ensemble.
        data_dir: folder of the real data files.

    Returns:
        The members.

    Raises:
        ArgumentError: see `workloads`; a phase that is cut short has a schedule that depends on its length.
    """
    told = _ensemble(experiment)
    alone = {key: value for key, value in experiment.described().items() if key != "ensemble"}
    lengths = Loop(Experiment(**alone), data_dir).lengths
    found, meets = [], _meets(told)
    for i, updates in enumerate(workloads(experiment, sum(lengths))):
        own = experiment.seed if i == 0 else derived_seed(experiment.seed, "member", i) % 2**31
        phases = _cut(experiment, lengths, max(updates, 1)) if updates < sum(lengths) else alone["phases"]
        described = alone | {"name": f"{experiment.name}-member{i}", "seed": own, "phases": phases}
        first = experiment.seed if experiment.model_seed is None else experiment.model_seed
        if not told.own_start and first != own:
            described["model_seed"] = first
        if meets and not updates:
            raise ArgumentError(f"ensemble.workloads: members that meet make at least one update each, member {i} makes none")
        if meets:
            described["record"] = alone["record"] | {"mode": "snapshots"}  # the members meet: none can be replayed alone
        found.append(Member(Experiment(**described), updates, f"member-{i}"))
    return found


def _ensemble(experiment: Experiment) -> Ensemble:
    told = experiment.ensemble
    if told is None:
        raise ArgumentError("ensemble: expected an experiment with a table [ensemble], got one without; use run")
    if not (isinstance(told, Ensemble) and hasattr(ensembles[told.name].cls, "combine")):
        raise ArgumentError(f"ensemble.name: expected an ensemble of walkers, such as 'weighted_parallel', got '{told.name}'")
    return told


def _meets(told: Ensemble) -> bool:
    """Whether members walk together; only those of the plain parallel walk are known to meet at the end alone."""
    plain_walk = issubclass(ensembles[told.name].cls, WeightedParallelSGD)
    return not plain_walk or told.options.get("mode", "simuparallel") != "simuparallel"


def _cut(experiment: Experiment, lengths: Sequence[int], updates: int) -> list[dict[str, Any]]:
    phases, left = [], updates
    for number, (phase, length) in enumerate(zip(experiment.phases, lengths, strict=True)):
        if left <= 0:
            break
        if left < length and not isinstance(phase.schedule, Constant):
            raise ArgumentError(f"phases[{number}].schedule: it depends on the length, which members cut short; leave it out")
        described = phase.model_dump(mode="json", exclude_none=True)
        described.pop("epochs", None)
        phases.append(described | {"updates": min(left, length)})
        left -= length
    return phases


# --- the runs ------------------------------------------------------------------------------------------------------------


def run_ensemble(
    experiment: Experiment,
    out: str | Path,
    *,
    data_dir: str | Path | None = None,
    jobs: int | None = 1,
    engine: str = "loky",
    progress: Progress | None = None,
) -> Path:
    """Walk and record each member, combine them, and say whether a barrier lies between them.

    OUT/member-0, ... are ordinary runs; OUT/average is a run of the one point of the combination; OUT/ensemble.json tells
    workloads, weights, rate, who is lost, the losses of the members, of the average and of the equal average, and the loss along
    the segments between the members. In mode simuparallel a member that is finished is left as it is, so that another scheme
    costs no walk, and a killed one goes on; in the other modes the members meet, walk in one process and are stored by their
    points, not replayed; an update that ends with an averaging is recorded with it. A walk over nodes is one ordinary run, OUT.

    Args:
        experiment: with an ensemble, without a grid.
        out: folder of the ensemble.
        data_dir: folder of the real data files.
        jobs: members at a time, in mode simuparallel; None for one a core.
        engine: backend of joblib.
        progress: called with a sentence and the share that is done.

    Returns:
        The folder.

    Raises:
        ArgumentError: the description does not fit, or all members are lost.
        NotAvailableError: the rate is to be fitted and the losses show none; the members are recorded all the same.
        StoreError: the folder holds runs of another experiment.

    Cost: the walks; the evaluations of 21 points on each segment from one member to the next.
    """
    if isinstance(experiment.ensemble, Service):
        return run(experiment, out, data_dir=data_dir, progress=progress)
    path, told = Path(out), _ensemble(experiment)
    if experiment.grid:
        raise ArgumentError("grid: expected one experiment, got a grid; use run_ensemble for each of experiment.expand()")
    made = members(experiment, data_dir)
    _try_options(told)
    walking = [m for m in made if m.updates]
    if not _meets(told):
        _apart(walking, path, data_dir, jobs, engine, progress)
        combination = _combined(told, made, [_end(m, path, data_dir) for m in made], path)
    else:
        combination = _together(experiment, made, path, data_dir, progress)
    tell(experiment, made, combination, path, data_dir=data_dir)
    return path


def _try_options(told: Ensemble) -> None:
    """Wrong options are told before anything walks."""
    walkers = [torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0) for _ in range(told.members)]
    try:
        ensembles[told.name].cls(walkers, **told.options)
    except ArgumentError as error:
        raise ArgumentError(f"ensemble.{error}") from error
    if len(set(told.lost)) == told.members:
        raise ArgumentError(f"ensemble.lost: all {told.members} workers are lost, there is nothing to average")


def _apart(
    made: Sequence[Member], path: Path, data_dir: str | Path | None, jobs: int | None, engine: str, progress: Progress | None
) -> None:
    say = progress or (lambda _sentence, _share: None)
    if jobs == 1:
        for n, m in enumerate(made):
            run(m.experiment, path / m.name, data_dir=data_dir)
            say(f"member {n + 1} of {len(made)}", (n + 1) / len(made))
        return
    tasks = [joblib.delayed(run)(m.experiment, path / m.name, data_dir=data_dir) for m in made]
    joblib.Parallel(n_jobs=-1 if jobs is None else jobs, backend=engine)(tasks)


def _end(member: Member, path: Path, data_dir: str | Path | None) -> Snapshot:
    """The last point of a member; its start if it made no update."""
    if not member.updates:
        return start_of(member, data_dir).snapshot()
    stored = ZarrStore.read(path / member.name)
    return stored.read_snapshot(int(stored.snapshot_steps[-1]))


def _combined(told: Ensemble, made: Sequence[Member], replicas: Sequence[Snapshot], path: Path) -> Combination:
    options = {key: value for key, value in told.options.items() if key not in {"mode", "period"}}
    curves = [ZarrStore.read(path / m.name).steps["loss"].values if m.updates else np.zeros(0) for m in made]
    left = [None if i in told.lost else [replica.theta] for i, replica in enumerate(replicas)]
    return combined(left, [m.updates for m in made], losses=curves, **options)


def _together(
    experiment: Experiment, made: Sequence[Member], path: Path, data_dir: str | Path | None, progress: Progress | None
) -> Combination:
    """Walk members that meet, in one process: at tick t the members whose share of t is a new update make it."""
    told = _ensemble(experiment)
    _clear(made, path)
    loops = [start_of(m, data_dir) for m in made]
    walkers = [_Silent(loop) for loop in loops]
    generator = torch.Generator().manual_seed(derived_seed(experiment.seed, "ensemble"))
    ensemble = ensembles[told.name].cls(walkers, **told.options, generator=generator)
    fastest = max(m.updates for m in made)
    with ExitStack() as stack:
        walks = [stack.enter_context(closing(recorded(loop, path / m.name))) for loop, m in zip(loops, made, strict=True)]
        for walker, walk in zip(walkers, walks, strict=True):
            walker.walk = walk
        for tick in range(fastest):
            ensemble.step([i for i, m in enumerate(made) if m.updates * (tick + 1) // fastest > m.updates * tick // fastest])
            if progress is not None:
                progress(f"update {tick + 1} of {fastest}", (tick + 1) / fastest)
        for i in told.lost:
            ensemble.lose(i)
        found: Combination = ensemble.combine()
    return found


def _clear(made: Sequence[Member], path: Path) -> None:
    """Remove earlier runs of members that meet, which are not gone on with; those of another experiment are refused, all kept."""
    for m in made:
        described = ZarrStore.read(path / m.name).settings.get("experiment") if (path / m.name / "run.json").is_file() else None
        if (path / m.name).exists() and described != m.experiment.described():
            raise StoreError(f"{path / m.name} is no run of this member; choose another directory, or remove it")
    for m in made:
        if (path / m.name).exists():
            shutil.rmtree(path / m.name)


def start_of(member: Member, data_dir: str | Path | None) -> Loop:
    """A member's loop where it starts, another run's step included.

    Args:
        member: of an ensemble.
        data_dir: folder of the real data files.

    Returns:
        The loop, at update 0.

    Raises:
        ArgumentError: the description does not fit the data or the other run.
    """
    loop = Loop(member.experiment, data_dir)
    branch(loop, member.experiment, data_dir)
    return loop


class _Silent(torch.optim.Optimizer):
    """A loop as a walker: a step is a whole recorded update, batch and gradient included."""

    def __init__(self, loop: Loop) -> None:
        super().__init__(list(loop.parameters.values()), {})
        self.loop = loop
        self.walk: Iterator[int] = iter(())

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # ruff: ignore[unused-method-argument] - torch's
        """One recorded update."""
        with self.loop.random.installed(self.loop.experiment.threads):
            next(self.walk)


# --- what is told ----------------------------------------------------------------------------------------------------------


def barrier(surface: Surface, start: Snapshot, end: Snapshot, *, header: Header | None = None) -> dict[str, Any]:
    """The loss along the segment between two points: does averaging climb over something?

    barrier = max over 0 < alpha < 1 of L(alpha) - max(L(0), L(1)) on 21 points; > 0 where a point between lies above both ends.

    Args:
        surface: the loss.
        start: at alpha = 0.
        end: at alpha = 1.
        header: of the runs, with the layout of the buffers, which are interpolated; None where there are none.

    Returns:
        ``barrier`` and ``losses`` [21], in units of the loss.

    Cost: 21 evaluations.
    """
    buffers = None
    if header is not None and header.buffer_layout.size:
        buffers = (header.buffer_layout.restore(start.buffers), header.buffer_layout.restore(end.buffers))
    direction = end.theta.double() - start.theta.double()
    losses = np.asarray(surface.along(start.theta, direction, ALPHAS, buffers).values, np.float64)
    return {"barrier": float(losses[1:-1].max() - max(losses[0], losses[-1])), "losses": losses.tolist()}


def tell(
    experiment: Experiment,
    made: Sequence[Member],
    found: Combination,
    path: Path,
    *,
    data_dir: str | Path | None = None,
) -> None:
    """Write OUT/average and OUT/ensemble.json from the recorded members and their combination.

    Args:
        experiment: with an ensemble.
        made: its members, with the updates that they made; their runs lie in the folder, but for the lost ones.
        found: the combination.
        path: OUT.
        data_dir: folder of the real data files.
    """
    single = Experiment(**{key: value for key, value in experiment.described().items() if key != "ensemble"})
    surface = surface_of(single, data_dir)
    left = [i for i in range(len(made)) if i not in found.lost]
    header = ZarrStore.read(path / next(made[i].name for i in left if made[i].updates)).header
    ends = {i: _end(m, path, data_dir) for i, m in enumerate(made) if i in left or m.updates}
    whole = math.fsum(found.weights[i] for i in left)  # less than 1 where an asynchronous centre holds updates of lost ones
    shares = {i: found.weights[i] / whole for i in left}
    average = Snapshot(0, found.theta, _buffers(header, [(shares[i], ends[i]) for i in left]))
    theta = combined([[ends[i].theta] for i in left], [1] * len(left), scheme="equal").theta
    equal = Snapshot(0, theta, _buffers(header, [(1 / len(left), ends[i]) for i in left]))
    between = [{"from": a, "to": b} | barrier(surface, ends[a], ends[b], header=header) for a, b in pairwise(left)]
    losses = {i: _value(surface, header, end) for i, end in ends.items()}
    described: dict[str, Any] = {
        "experiment": experiment.described(),
        "members": [
            {"run": m.name, "seed": m.experiment.seed, "updates": m.updates, "weight": w, "lost": i in found.lost}
            | {"loss": losses.get(i)}
            for i, (m, w) in enumerate(zip(made, found.weights, strict=True))
        ],
        "scheme": found.scheme,
        "rate": found.rate,
        "rate_stderr": found.fitted.stderr if found.fitted is not None else None,
        "rate_fitted": found.fitted is not None,
        "sentence": found.sentence,
        "loss_average": _value(surface, header, average),
        "loss_equal": _value(surface, header, equal),
        "loss_members": math.fsum(shares[i] * losses[i] for i in left),
        "barrier": max((segment["barrier"] for segment in between), default=None),
        "segments": between,
        "alphas": ALPHAS,
        "surface": surface.fingerprint(),
    }
    _write_average(path / "average", header, average, {"name": f"{experiment.name}-average", "sentence": found.sentence})
    (path / f"{FILE}.partial").write_text(json.dumps(plain(described), indent=1, allow_nan=False), encoding="utf-8")
    (path / f"{FILE}.partial").replace(path / FILE)


def _value(surface: Surface, header: Header, point: Snapshot) -> float:
    buffers = header.buffer_layout.restore(point.buffers) if header.buffer_layout.size else None
    return float(surface.value(point.theta, buffers))


def _buffers(header: Header, weighted: Sequence[tuple[float, Snapshot]]) -> Tensor:
    """Buffers averaged with the weights of theta; those that are no floats are of the heaviest replica."""
    layout = header.buffer_layout
    if not layout.size:
        return weighted[0][1].buffers.clone()
    each = [(w, layout.restore(end.buffers)) for w, end in weighted]
    mixed = {}
    for name, value in max(each, key=lambda one: one[0])[1].items():
        parts = [w * own[name].double() for w, own in each]
        mixed[name] = torch.stack(parts).sum(0).to(value.dtype) if value.is_floating_point() else value
    return layout.pack(mixed)


def _write_average(path: Path, header: Header, point: Snapshot, settings: Mapping[str, Any]) -> None:
    if (path / "run.json").is_file():
        shutil.rmtree(path)
    store = ZarrStore(path)
    store.begin(Header(header.layout, header.buffer_layout, dict(settings)))
    store.write_snapshot(Snapshot(0, point.theta.to(header.layout.storage_dtype), point.buffers))
    store.close()


def read_ensemble(path: str | Path) -> dict[str, Any] | None:
    """What OUT/ensemble.json tells.

    Args:
        path: a folder.

    Returns:
        Its contents; None if the folder holds no ensemble.

    Raises:
        ArgumentError: the file is not what `run_ensemble` writes.
    """
    file = Path(path) / FILE
    if not file.is_file():
        return None
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        names = [str(member["run"]) for member in told["members"]]
    except (ValueError, KeyError, TypeError) as error:
        raise ArgumentError(f"{file}: expected what sgdscope run writes for an ensemble, got something else: {error}") from error
    if odd := [name for name in names if not name.startswith("member-") or not name.removeprefix("member-").isdigit()]:
        raise ArgumentError(f"{file}: expected runs of the names member-0, member-1, ..., got '{odd[0]}'")
    return dict(told)
