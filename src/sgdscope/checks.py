"""From claims to verdicts: the experiments that the claims ask for, run and measured once each, and judged."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import joblib
import torch
import xxhash
from torch import Tensor, nn

from sgdscope.contracts import ClaimEntry, Evidence, Verdict, claims
from sgdscope.datasets import Dataset, load
from sgdscope.errors import ArgumentError, SgdscopeError, unknown
from sgdscope.evidence.protocols import fitted, transfer
from sgdscope.evidence.released import series
from sgdscope.evidence.waiting_tables import on_table, tabled
from sgdscope.evidence.windows import gather
from sgdscope.experiment import Experiment, load_toml, parts, run, surface_of
from sgdscope.files import plain
from sgdscope.ranges import whole
from sgdscope.recorder import Recorder, bursts
from sgdscope.records import Surface, Trajectory
from sgdscope.runs import open_trajectory
from sgdscope.stores.memory import MemoryStore
from sgdscope.surface import LossSurface

COMPAT = ("xing2018",)
RELEASED_BATCH = 100  # examples a batch of the released evaluation
CONTROLS = ("positive", "negative", "starved", "foreign")
Progress = Callable[[str, float], None]
Made = Callable[[int], tuple[nn.Module, Callable[[nn.Module, Any], Tensor], Any]]


class ChecksFailedError(SgdscopeError):
    """Experiments of some claims could not run; the other claims were judged.

    Args:
        failures: claim -> what went wrong.
        verdicts: of the other claims.
    """

    def __init__(self, failures: Mapping[str, str], verdicts: Sequence[Verdict]) -> None:
        self.failures, self.verdicts = dict(failures), list(verdicts)
        judged = f"; judged all the same: {', '.join(v.claim for v in verdicts)}" if verdicts else ""
        lines = "\n".join(f"{claim}: {why}" for claim, why in failures.items())
        super().__init__(f"{len(failures)} claim(s) could not be checked{judged}\n{lines}")


def chosen(names: Sequence[str] | None, *, paper: str | None = None, scope: str | None = None) -> list[str]:
    """Choose claims.

    Args:
        names: their ids, taken as they are; all if None or empty.
        paper: only those of this paper, a file of `claims/`; not used with names.
        scope: only those that ``"run"`` or ``"sweep"`` can answer; not used with names.

    Returns:
        Ids, those of a paper together and by their number, or as given.

    Raises:
        UnknownNameError: an unknown claim or paper.
    """
    if names:
        return [claims[name].id for name in names]
    papers = list(dict.fromkeys(entry.paper for entry in claims.values()))
    if paper is not None and paper not in papers:
        error = unknown("paper", paper, papers)
        raise error
    wanted = [e for e in claims.values() if paper in (None, e.paper) and scope in (None, e.scope)]
    return sorted((e.id for e in wanted), key=lambda name: (papers.index(claims[name].paper), *counted(name)))


def counted(name: str) -> tuple[str, int]:
    """The letters and the number of an id, by which they are sorted.

    Args:
        name: such as W10.

    Returns:
        Such as ("W", 10), which comes after ("W", 2).
    """
    digits = "".join(c for c in name if c.isdigit())
    return name.rstrip("0123456789"), int(digits or 0)


def check(
    claims: str | Sequence[str],
    *,
    run: str | Path | Trajectory | None = None,
    surface: Surface | None = None,
    experiment: str | Path | Experiment | Made | None = None,
    preset: str = "quick",
    seed: int = 0,
    controls: bool = False,
    engine: str = "loky",
    jobs: int | None = None,
    dataset: str | None = None,
    data_dir: str | Path | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
    compat: str | None = None,
) -> list[Verdict]:
    """Test claims: on one recorded run, on one's own experiment, or on the claims' own experiments.

    Args:
        claims: ids such as ``["W1", "W3"]``.
        run: a recorded run, opened or not; only claims of scope ``"run"`` can be asked of it.
        surface: the loss surface of that run; not needed for a run made from an experiment.
        experiment: a TOML file or an `Experiment` whose data, model, learning rate, batch size and length take the place
            of the preset's (the claim's other learning rates and batch sizes keep their ratio to it); or a function
            ``seed -> (model, loss, data)``, trained in this process by plain SGD with the preset's own numbers. Data is
            a `Dataset` or a tuple of tensors with a common leading dimension; the loss takes (model, tuple of tensors).
        preset: quick, standard or paper.
        seed: from which the seeds of the experiments are made.
        controls: also judge the controls; the answers are put into ``details["controls"]``.
        engine: backend of joblib.
        jobs: how many experiments at a time; None for one a core.
        dataset: name or CSV file in place of the preset's data; label noise stays. On small data all batch sizes are halved
            until the largest of the claims' (4 x the preset's) is at most half of the examples. In claims on escapes it is the
            table of their networks, alone, with the noise found by bisection (`evidence.waiting_tables`); they need a network.
        data_dir: folder of the real data files.
        out: folder for the runs, which a later check goes on from; a temporary one if None.
        progress: called with a sentence and the share that is done.
        compat: ``"xing2018"`` also measures each run exactly as the authors' released code does (see
            `evidence.released`): in batches of 100 with batch statistics; a given `surface` is taken as it is. The series
            go into ``details["xing2018"]``, one entry a run; the verdicts do not use them.

    Returns:
        One verdict a claim, in the order in which they were asked.

    Raises:
        ArgumentError: arguments that do not fit each other, or a sweep asked of a single run.
        ChecksFailedError: experiments could not run; raised when all others are judged, with their verdicts.
        UnknownNameError: an unknown claim.

    Cost: each distinct experiment is run and measured once, whatever the number of claims that share it.
    """
    wanted = [_entry(name) for name in ([claims] if isinstance(claims, str) else claims)]
    _check_arguments(wanted, run, surface, experiment, preset, seed, jobs)
    if compat not in {None, *COMPAT}:
        error = unknown("compat", str(compat), COMPAT)
        raise error
    say = progress or (lambda _sentence, _share: None)
    if run is not None:
        one = _of_run(run, surface, wanted, data_dir, compat)
        found: dict[str, list[Evidence] | str] = {entry.id: [one] for entry in wanted}
    else:
        plan = _plan(wanted, experiment, preset, seed, dataset, data_dir)
        with _folder(out) as folder:
            made = experiment if callable(experiment) and not isinstance(experiment, Experiment) else None
            tasks = [_Task(description, folder, made, data_dir, ids, compat) for description, ids in plan.values()]
            found = _collect(wanted, plan, _evidence(tasks, engine, jobs, say))
    verdicts = [_judged(entry, runs) for entry in wanted if not isinstance(runs := found[entry.id], str)]
    if failures := {name: why for name, why in found.items() if isinstance(why, str)}:
        raise ChecksFailedError(failures, verdicts)
    if controls:
        verdicts = [_with_controls(verdict, seed) for verdict in verdicts]
    return verdicts


def control_verdicts(claims: Sequence[str], seed: int = 0) -> list[tuple[str, str, Verdict]]:
    """Judge runs on which the answer is known by construction.

    Args:
        claims: ids.
        seed: of the controls.

    Returns:
        (claim, control, verdict); should be supported, contradicted, undecided and not in regime for the controls
        positive, negative, starved and foreign.
    """
    entries = [_entry(name) for name in claims]
    made = [(entry, kind, getattr(entry.controls, kind)) for entry in entries for kind in CONTROLS]
    return [(entry.id, kind, entry.judge(runs(seed))) for entry, kind, runs in made if runs is not None]


def to_json(verdicts: Sequence[Verdict], controls: Sequence[tuple[str, str, Verdict]] = ()) -> dict[str, Any]:
    """Verdicts and controls as JSON types; numbers that JSON has not (NaN, infinity) are None.

    Args:
        verdicts: of claims.
        controls: from `control_verdicts`.

    Returns:
        ``{"verdicts": [{"claim": ..., "verdict": ..., ...}], "controls": [{"claim": ..., "control": ..., "verdict": ...}]}``.
    """
    told = [{"sentence": _entry(v.claim).sentence, "paper": _entry(v.claim).paper} | asdict(v) for v in verdicts]
    known = [{"claim": c, "control": kind, "verdict": v.verdict, "reason": v.reason} for c, kind, v in controls]
    return {"verdicts": plain(told), "controls": plain(known)}


def _entry(name: str) -> ClaimEntry:
    return claims[name]


def _judged(entry: ClaimEntry, runs: Sequence[Evidence]) -> Verdict:
    """The verdict, with the series of other protocols that were asked for."""
    verdict = entry.judge(runs)
    beside = {name: [run.extra[name] for run in runs] for name in COMPAT if runs and all(name in run.extra for run in runs)}
    return replace(verdict, details=dict(verdict.details) | beside)


def _with_controls(verdict: Verdict, seed: int) -> Verdict:
    known = {kind: v.verdict for _, kind, v in control_verdicts([verdict.claim], seed)}
    return replace(verdict, details=dict(verdict.details) | {"controls": known})


def _check_arguments(
    wanted: Sequence[ClaimEntry], run: Any, surface: Any, experiment: Any, preset: str, seed: int, jobs: int | None
) -> None:
    if run is not None and experiment is not None:
        raise ArgumentError("run, experiment: expected one of them, got both; leave one out")
    if surface is not None and run is None:
        raise ArgumentError("surface: it belongs to a recorded run; pass run= too, or leave it out")
    sweeps = [entry.id for entry in wanted if entry.scope == "sweep"]
    if run is not None and sweeps:
        raise ArgumentError(
            f"claims: {', '.join(sweeps)} compare runs of several settings or seeds, and one run was given; "
            "pass experiment= (a TOML file, an Experiment, or a function seed -> (model, loss, data)) in place of run="
        )
    own = [entry.id for entry in wanted if entry.study is not None]
    if experiment is not None and own:
        raise ArgumentError(f"experiment: {', '.join(own)} walk in another way than an experiment does; leave experiment= out")
    whole("seed", seed, 0)
    if jobs is not None and jobs < 1:
        raise ArgumentError(f"jobs: expected at least 1, got {jobs}")
    for entry in wanted:
        if preset not in entry.experiments:
            raise ArgumentError(f"preset: {entry.id} has {', '.join(entry.experiments)}; got '{preset}'")


# --- one recorded run ------------------------------------------------------------------------------------------------


def _of_run(
    run: str | Path | Trajectory,
    surface: Surface | None,
    wanted: Sequence[ClaimEntry],
    data_dir: str | Path | None,
    compat: str | None,
) -> Evidence:
    trajectory = run if isinstance(run, Trajectory) else open_trajectory(run, data_dir=data_dir)
    released = surface
    if surface is None:
        described = trajectory.settings.get("experiment")
        if described is None:
            raise ArgumentError("surface: the run was recorded by hand, so its loss is not known; pass surface=LossSurface(...)")
        surface = surface_of(Experiment(**described), data_dir)
        released = _released(*parts(Experiment(**described), data_dir)) if compat else None
    return _with_series(
        gather(trajectory, surface, _quantities(wanted), observe=_observers(wanted), data_dir=data_dir),
        trajectory,
        released,
        compat,
    )


def _released(model: nn.Module, loss: Callable[[nn.Module, Any], Tensor], data: Any) -> Surface:
    """The loss as the released code evaluates it: batches of 100 in a fixed order, BatchNorm on each batch's statistics."""
    cut = zip(*(torch.split(t, RELEASED_BATCH) for t in _tensors(data)), strict=True)
    return LossSurface(model, loss, list(cut), batchnorm="batch")


def _with_series(evidence: Evidence, trajectory: Trajectory, surface: Surface | None, compat: str | None) -> Evidence:
    if compat is None or surface is None:
        return evidence
    return replace(evidence, extra=dict(evidence.extra) | series(trajectory, surface))


def _quantities(wanted: Sequence[ClaimEntry]) -> dict[str, dict[str, Any]]:
    """What all the claims need, each quantity once; of options that differ, the larger demand."""
    needed: dict[str, dict[str, Any]] = {}
    for entry in wanted:
        for name, options in entry.quantities.items():
            own = needed.setdefault(name, {})
            for key, value in options.items():
                own[key] = max(own[key], value) if key in own else value
    return needed


def _observers(wanted: Sequence[ClaimEntry]) -> dict[str, Callable[[Trajectory, Surface, Any], Mapping[str, Any]]]:
    return {entry.id: entry.observe for entry in wanted if entry.observe is not None}


# --- experiments -----------------------------------------------------------------------------------------------------

Plan = dict[str, tuple[dict[str, Any], list[str]]]


def _plan(
    wanted: Sequence[ClaimEntry],
    experiment: Any,
    preset: str,
    seed: int,
    dataset: str | None,
    data_dir: str | Path | None = None,
) -> Plan:
    """Each distinct experiment once, with the claims that need it."""
    own = load_toml(experiment) if isinstance(experiment, str | Path) else experiment
    base = own.described() if isinstance(own, Experiment) else None
    if own is not None and base is None and not callable(own):
        raise ArgumentError(
            f"experiment: expected a TOML file, an Experiment or a function seed -> (model, loss, data), got {type(own).__name__}"
        )
    if base and any("epochs" in phase for phase in base["phases"]):
        count = len(parts(Experiment(**base), data_dir)[2].x)
        lengths = [phase.length(count) for phase in Experiment(**base).phases]
        phases = [
            {k: v for k, v in p.items() if k != "epochs"} | {"updates": n} for p, n in zip(base["phases"], lengths, strict=True)
        ]
        base = base | {"phases": phases}
    examples = len(load(dataset, data_dir).x) if dataset is not None and not base else None
    plan: Plan = {}
    for entry in wanted:
        asked_for = entry.experiments[preset](seed)
        if dataset is not None and tabled(asked_for):
            asked_for = on_table(asked_for, dataset, data_dir, preset)
        elif dataset is not None and not any(_names_data(description) for description in asked_for):
            raise ArgumentError(
                f"dataset: {entry.id} brings surfaces or data of its own, which '{dataset}' cannot replace; leave it out"
            )
        for description in asked_for:
            asked = transfer(description, base, preset) if base else description
            if dataset is not None:
                asked = _on_data(asked, dataset)
            if examples is not None and entry.study is None:
                asked = fitted(asked, examples, preset)
            told = json.dumps({k: v for k, v in asked.items() if k != "name"}, sort_keys=True)
            key = xxhash.xxh3_64_hexdigest(f"{told} {getattr(entry.study, '__qualname__', '')}".encode())
            plan.setdefault(key, (asked | {"name": f"{asked['name']}-{key[:8]}"}, []))[1].append(entry.id)
    return plan


def _names_data(description: Mapping[str, Any]) -> bool:
    return "data" in description or "dataset" in description or "data" in description.get("experiment", {})


def _on_data(description: dict[str, Any], dataset: str) -> dict[str, Any]:
    """The description on another data set: of an experiment, of an ensemble of experiments, or of a study that names one."""
    if "data" in description:
        kept = {k: v for k, v in description["data"].items() if k not in {"dataset", "train", "test"}}
        return description | {"data": kept | {"dataset": dataset}}
    if "experiment" in description:
        return description | {"experiment": _on_data(description["experiment"], dataset)}
    return description | {"dataset": dataset} if "dataset" in description else description


@dataclass(frozen=True)
class _Task:
    """One experiment to be run and measured, for these claims."""

    description: dict[str, Any]
    folder: Path
    made: Made | None
    data_dir: str | Path | None
    ids: list[str]
    compat: str | None = None

    def __call__(self) -> Evidence | str:
        """The evidence, or what went wrong; the other experiments go on."""
        try:
            return self._evidence()
        except Exception as error:  # whatever a user's model or loss raises is told with the claims that needed it
            return f"{self.description['name']}: {type(error).__name__}: {error}"

    def _evidence(self) -> Evidence:
        entries = [_entry(name) for name in self.ids]
        if (study := entries[0].study) is not None:
            return study(self.description, self.folder / self.description["name"], self.data_dir)
        if self.made is not None:
            trajectory, surface, own = _trained(self.made, self.description)
        else:
            described = Experiment(**self.description)
            path = run(described, self.folder / described.name, data_dir=self.data_dir)
            trajectory = open_trajectory(path, data_dir=self.data_dir)
            surface, own = surface_of(described, self.data_dir), None
        found = gather(trajectory, surface, _quantities(entries), observe=_observers(entries), data_dir=self.data_dir)
        if self.compat is None:
            return found
        model, loss, data = own or parts(Experiment(**self.description), self.data_dir)
        return _with_series(found, trajectory, _released(model, loss, data), self.compat)


def _alone(task: _Task) -> Evidence | str:
    """In a worker of a pool: the processes share the cores, so each takes one thread."""
    torch.set_num_threads(1)
    return task()


def _evidence(tasks: Sequence[_Task], engine: str, jobs: int | None, say: Progress) -> Iterator[Evidence | str]:
    here = jobs == 1 or len(tasks) == 1 or any(task.made is not None for task in tasks)
    if here:
        results: Any = (task() for task in tasks)
    else:
        generated = "generator" if engine == "loky" else "list"
        pool = joblib.Parallel(n_jobs=-1 if jobs is None else jobs, backend=engine, return_as=generated)
        results = pool(joblib.delayed(_alone)(task) for task in tasks)
    for number, result in enumerate(results, 1):
        say(f"{number} of {len(tasks)} experiments", number / len(tasks))
        yield result


def _collect(wanted: Sequence[ClaimEntry], plan: Plan, results: Iterator[Evidence | str]) -> dict[str, list[Evidence] | str]:
    by_key = dict(zip(plan, results, strict=True))
    found: dict[str, list[Evidence] | str] = {}
    for entry in wanted:
        own = [by_key[key] for key, (_, ids) in plan.items() if entry.id in ids]
        failed = [result for result in own if isinstance(result, str)]
        found[entry.id] = failed[0] if failed else [result for result in own if isinstance(result, Evidence)]
    return found


@contextmanager
def _folder(out: str | Path | None) -> Generator[Path]:
    """The folder of the runs: the given one, made if need be, or a temporary one that is removed."""
    if out is not None:
        Path(out).mkdir(parents=True, exist_ok=True)
        yield Path(out)
        return
    with tempfile.TemporaryDirectory(prefix="sgdscope-") as temporary:
        yield Path(temporary)


# --- a user's model --------------------------------------------------------------------------------------------------


def _tensors(data: Any) -> tuple[Tensor, ...]:
    parts = (data.x, data.y) if isinstance(data, Dataset) else data
    if not isinstance(parts, tuple | list) or not parts or not all(isinstance(p, Tensor) for p in parts):
        raise ArgumentError(f"experiment: its data should be a Dataset or a tuple of tensors, got {type(data).__name__}")
    if len({len(p) for p in parts}) != 1 or len(parts[0]) < 2:
        raise ArgumentError(f"experiment: its tensors should share a leading dimension, got {[tuple(p.shape) for p in parts]}")
    return tuple(parts)


def _trained(made: Made, description: Mapping[str, Any]) -> tuple[Trajectory, Surface, tuple[Any, Any, Any]]:
    """Train a user's model by plain SGD as described, recorded in memory; torch's generator starts at the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(description["seed"]))
        return _train(made, description)


def _train(made: Made, description: Mapping[str, Any]) -> tuple[Trajectory, Surface, tuple[Any, Any, Any]]:
    model, loss, data = made(int(description["seed"]))
    tensors, phases, record = _tensors(data), description["phases"], description["record"]["snapshots"]
    examples, size = len(tensors[0]), phases[0]["batch_size"]
    batch = examples if size == "full" else min(int(size), examples)
    optimizer = torch.optim.SGD(model.parameters(), lr=phases[0]["lr"], weight_decay=phases[0].get("weight_decay", 0.0))
    told = {"lr": phases[0]["lr"], "batch_size": batch, "seed": description["seed"], "examples": examples, "walker": "sgd"}
    generator = torch.Generator().manual_seed(int(description["seed"]))
    schedule = bursts(record["length"], at=record["at"])
    recorder = Recorder(
        None, model, optimizer, loss=loss, snapshots=schedule, batches="bursts", settings=told, store="memory", budget="8 GB"
    )
    order, place = torch.randperm(examples, generator=generator), 0
    model.train()
    with recorder:
        for phase in phases:
            optimizer.param_groups[0]["lr"] = phase["lr"]
            for _ in range(phase["updates"]):
                if place + batch > examples:
                    order, place = torch.randperm(examples, generator=generator), 0
                chosen_rows = order[place : place + batch]
                place += batch
                optimizer.zero_grad()
                value = recorder.loss(model, tuple(t[chosen_rows] for t in tensors))
                torch.autograd.backward(value.mean())
                optimizer.step()
    store = recorder.store
    if not isinstance(store, MemoryStore):
        raise ArgumentError("experiment: expected the recorder to keep the run in memory; run the check on rank 0 only")
    return store.trajectory(), LossSurface(model, loss, tensors), (model, loss, tensors)
