"""Run an Experiment into a run directory, go on with one that was killed, sweep over many."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import joblib
import torch
from torch import nn

from sgdscope.contracts import StoreEntry
from sgdscope.datasets import Dataset
from sgdscope.errors import ArgumentError, NotAvailableError, StoreError
from sgdscope.experiment.description import Bursts, Ensemble, Every, Experiment
from sgdscope.experiment.loop import LOSSES, Loop, Loss, build_model, carries, load_data
from sgdscope.experiment.replaying import HASH_COLUMNS, KEY_FRAMES, Replayer, fingerprint, split_hash
from sgdscope.quantities.averages import Averages
from sgdscope.recorder import Recorder, bursts, every, logarithmic
from sgdscope.records import Record, Snapshot, StepBlock, Trajectory
from sgdscope.stores.zarr import ZarrStore
from sgdscope.surface import LossSurface

Progress = Callable[[str, float], None]
SUM = "averages_sum"  # of the block in progress, in a key frame
SUBSET = 8192  # examples of the evaluation set: a fixed subset of 2048-8192 is the protocol proposed for the walk


def schedule(experiment: Experiment) -> Callable[[int], bool]:
    """The updates whose points are offered to the quantities.

    Args:
        experiment: the description.

    Returns:
        One of the recorder's schedules.
    """
    chosen = experiment.record.snapshots
    if isinstance(chosen, Every):
        return every(chosen.n)
    if isinstance(chosen, Bursts):
        return bursts(chosen.length, at=chosen.at)
    return logarithmic(chosen.per_decade)


def points(experiment: Experiment, reached: int, *, complete: bool) -> list[int]:
    """The points that the schedule of an experiment names.

    Args:
        experiment: the description.
        reached: updates that were recorded.
        complete: whether the run has its last point.

    Returns:
        Ascending: both ends of every named update, the first and the last point.
    """
    named = schedule(experiment)
    both = {end for t in range(reached) if named(t) for end in (t, t + 1)}
    kept = {0, *both, *([reached] if complete else [])}
    return sorted(step for step in kept if step < reached + complete)


def settings(experiment: Experiment, loop: Loop) -> dict[str, Any]:
    """What a run says of itself: the whole description, its main numbers, and what its bits depend on."""
    first = experiment.phases[0]
    return {
        "experiment": experiment.described(),
        "name": experiment.name,
        "dataset": experiment.data.dataset,
        "label_noise": experiment.data.label_noise,
        "network": experiment.model.name,
        "walker": first.walker,
        "lr": first.lr,
        "momentum": first.momentum or 0.0,
        "batch_size": loop.orders[0].batch_size(0),
        "seed": experiment.seed,
        "examples": loop.examples,
        "updates": loop.total,
        "phase_ends": [*accumulate(loop.lengths)],
        "fingerprint": fingerprint(experiment, loop.data.fingerprint),
    }


# --- one run ---------------------------------------------------------------------------------------------------------------


def run(experiment: Experiment, out: str | Path, *, data_dir: str | Path | None = None, progress: Progress | None = None) -> Path:
    """Walk an experiment and record it; go on with a run that was killed, leave a finished one as it is.

    The finished trajectory of a run that was killed and gone on with equals the uninterrupted one bit for bit. The global
    generators and the number of threads are set for the run's duration and left as they were.

    Args:
        experiment: the description, without a grid.
        out: the run directory.
        data_dir: folder of the real data files.
        progress: called after every update with a sentence and the share that is done.

    Returns:
        The run directory.

    Raises:
        ArgumentError: the description does not fit the data, or has a grid.
        StoreError: the directory holds another experiment's run, or cannot be written.
    """
    path = Path(out)
    if experiment.grid:
        raise ArgumentError("grid: expected one experiment, got a grid; use sweep(experiment.expand(), out)")
    if isinstance(experiment.ensemble, Ensemble):
        raise ArgumentError("ensemble: expected one walk, got several members; use run_ensemble(experiment, out)")
    stored = _stored(path, experiment)
    loop = Loop(experiment, data_dir)
    if stored is not None and len(stored.steps["step"]) == loop.total and loop.total in stored.snapshot_steps:
        return path
    if experiment.start is not None:
        branch(loop, experiment, data_dir)
    resumed = None if stored is None else _last_key_frame(path, stored)
    if resumed:
        loop.restore(resumed, *ZarrStore.read_record(path, KEY_FRAMES, resumed))
    with loop.random.installed(experiment.threads), closing(recorded(loop, path, resumed)) as walk:
        for done in walk:
            if progress is not None:
                progress(f"update {done} of {loop.total}", done / loop.total)
    return path


def _stored(path: Path, experiment: Experiment) -> Trajectory | None:
    """The run that lies at a path, if it is one of this experiment."""
    if not (path / "run.json").is_file():
        return None
    stored = ZarrStore.read(path)
    described = stored.settings.get("experiment")
    if described != experiment.described():
        what = "a run that no experiment made" if described is None else "the run of another experiment"
        different = _difference(described or {}, experiment.described())
        raise StoreError(f"{path} holds {what}{different}; choose another directory, or remove it")
    return stored


def _difference(there: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    keys = [key for key in sorted({*there, *here}) if there.get(key) != here.get(key)]
    return f" ({', '.join(keys)} differ)" if there else ""


def _last_key_frame(path: Path, stored: Trajectory) -> int:
    """The last key frame whose own update is acknowledged; 0, the start, if there is none."""
    rows = len(stored.steps["step"])
    return max((step for step in ZarrStore.record_steps(path, KEY_FRAMES) if step < rows), default=0)


def branch(loop: Loop, experiment: Experiment, data_dir: str | Path | None) -> None:
    """Put a loop where another run was: model, buffers, generator state, and the walker's state if it is the same walker.

    Args:
        loop: freshly built.
        experiment: its description, with a start.
        data_dir: folder of the real data files.

    Raises:
        ArgumentError: the other run has another model, or no such step.
    """
    start = experiment.start
    if start is None:
        return
    stored = ZarrStore.read(start.run)
    described = stored.settings.get("experiment")
    if described is None:
        raise ArgumentError(f"start.run: expected a run made from an experiment, got {start.run}, which was recorded by hand")
    if stored.header.layout != loop.layout or stored.header.buffer_layout != loop.buffer_layout:
        raise ArgumentError(f"start.run: the network of {start.run} has other parameters than '{experiment.model.name}'")
    other = Replayer(stored, Experiment(**described), data_dir)
    try:
        frame = other.key_frame(start.step)
    except NotAvailableError as error:
        raise ArgumentError(f"start.step: {error}") from error
    loop.take(frame.arrays, frame.meta, walker=carries(other.phase_at(start.step), experiment.phases[0]))


def recorded(loop: Loop, path: Path, resumed: int | None = None) -> Generator[int]:
    """Walk from where a loop stands to the end, recorded; inside `random.installed`.

    Args:
        loop: stands at the start, or at the key frame of `resumed`.
        path: of the run directory.
        resumed: the key frame from which a killed run goes on; None for a new run.

    Yields:
        The number of updates done, after each.
    """
    experiment = loop.experiment
    named = FirstAndLast() if experiment.record.mode == "replay" else schedule(experiment)
    frames: dict[int, Record] = {}  # taken before the forward pass; the recorder asks when the optimizer steps
    averages = None if experiment.record.averages is None else Averages(blocks=experiment.record.averages)
    continued = StoreEntry(_Continued, frozenset({"persistent"}))
    recorder = Recorder(
        path,
        loop.model,
        loop.optimizer,
        loss=loop.loss,
        snapshots=named,
        live=[] if averages is None else [averages],
        resume="error" if resumed is None else "append",
        start_step=resumed,
        budget=_bytes(loop, named),
        settings=settings(experiment, loop),
        store=continued if resumed else "zarr",
        keyframes=lambda step: _with_sum(frames.pop(step, None), averages),
    )
    if resumed and averages is not None:
        _take_sum(averages, *ZarrStore.read_record(path, KEY_FRAMES, resumed))
    with recorder:
        for step in range(loop.step, loop.total):
            if step % experiment.record.keyframes == 0 and step != (resumed or None):
                frames[step] = loop.key_frame()
            batch = loop.prepare()
            recorder.log(**dict(zip(HASH_COLUMNS, split_hash(loop.theta_hash()), strict=True)), **loop.whereabouts())
            loop.optimizer.zero_grad()
            torch.autograd.backward(recorder.loss(loop.model, batch))
            loop.optimizer.step()
            loop.step = step + 1
            yield loop.step


def _with_sum(frame: Record | None, averages: Averages | None) -> Record | None:
    """A key frame with the block of averages in progress, so that a run that was killed goes on with its sum."""
    record = None if frame is None or averages is None else averages.unfinished()
    if frame is None or record is None:
        return frame
    return replace(frame, arrays={**frame.arrays, SUM: record.arrays["sum"]}, meta={**frame.meta, SUM: dict(record.meta)})


def _take_sum(averages: Averages, arrays: Mapping[str, Any], meta: Mapping[str, Any]) -> None:
    """Take up the block in progress from a key frame."""
    if SUM in arrays:
        averages.take({"sum": arrays[SUM]}, meta[SUM])


class FirstAndLast:
    """The schedule of replayed runs: it names no update, so that only the first and the last point are kept."""

    def __call__(self, step: int) -> bool:  # ruff: ignore[unused-method-argument] - a schedule
        """No update is named."""
        return False

    def __str__(self) -> str:
        """The schedule in words."""
        return "the first and the last point; the others are rebuilt from key frames"

    def expected(self, total: int | None) -> int:  # ruff: ignore[unused-method-argument] - a schedule
        """Two points, whatever the number of updates."""
        return 2


def _bytes(loop: Loop, named: Callable[[int], bool]) -> int:
    """More bytes than the snapshots and key frames of a run can take."""
    vector = 8 * (loop.layout.size + loop.buffer_layout.size) + 65536
    frame = loop.frame_vectors + (loop.experiment.record.averages is not None)
    kept = 2 + sum(2 for step in range(loop.total) if named(step))
    return vector * (kept + frame * (loop.total // loop.experiment.record.keyframes + 1))


class _Continued(ZarrStore):
    """The store of a resumed run: row and point of the first update are there already, complete, and are kept.

    The recorder knows neither the gradient before its first update (the cosine of the row) nor that the point at which it
    attached was no point of the schedule.
    """

    def __init__(self, path: str | Path, *, start_step: int | None = None, **options: Any) -> None:
        self._kept = start_step or 0
        super().__init__(path, start_step=self._kept + 1, **options)

    def write_steps(self, block: StepBlock) -> None:
        """Keep the rows after the one that is there already."""
        new = block.steps > self._kept
        super().write_steps(StepBlock(block.steps[new], {name: values[new] for name, values in block.columns.items()}))

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Keep the points after the one that is there already."""
        if snapshot.step > self._kept:
            super().write_snapshot(snapshot)

    def write_record(self, record: Record) -> None:
        """Keep the records after those that are there already."""
        if record.step > self._kept:
            super().write_record(record)


# --- many runs ---------------------------------------------------------------------------------------------------------------


def sweep(
    experiments: Sequence[Experiment],
    out: str | Path,
    *,
    jobs: int | None = None,
    engine: str = "loky",
    data_dir: str | Path | None = None,
) -> list[Path]:
    """Run experiments side by side, each into the directory of its name; runs that are finished are left as they are.

    Args:
        experiments: with distinct names; those with a grid are expanded.
        out: folder of the runs.
        jobs: how many at a time; None for one a core.
        engine: backend of joblib: loky, or ray and dask where they are installed.
        data_dir: folder of the real data files.

    Returns:
        The run directories, in the order of the experiments.

    Raises:
        ArgumentError: two experiments have one name, or jobs is out of range.
    """
    single = [one for experiment in experiments for one in experiment.expand()]
    names = [one.name for one in single]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ArgumentError(f"experiments: expected distinct names, got '{twice[0]}' more than once; give each its own name")
    if jobs is not None and jobs < 1:
        raise ArgumentError(f"jobs: expected at least 1, got {jobs}")
    paths = [Path(out) / name for name in names]
    tasks = [joblib.delayed(run)(one, path, data_dir=data_dir) for one, path in zip(single, paths, strict=True)]
    joblib.Parallel(n_jobs=-1 if jobs is None else jobs, backend=engine)(tasks)
    return paths


# --- what quantities need -----------------------------------------------------------------------------------------------------


def parts(experiment: Experiment, data_dir: str | Path | None = None) -> tuple[nn.Module, Loss, Dataset]:
    """Model, loss (one value per example) and data of an experiment, as they are before the first update.

    Args:
        experiment: the description.
        data_dir: folder of the real data files.

    Returns:
        (model, loss, data).
    """
    data = load_data(experiment, data_dir)
    return build_model(experiment, data), LOSSES[experiment.loss], data


def surface_of(
    experiment: Experiment,
    data_dir: str | Path | None = None,
    *,
    size: int | None = SUBSET,
    batchnorm: Literal["eval", "batch", "recalibrate"] = "eval",
    dtype: torch.dtype | None = None,
) -> LossSurface:
    """The loss of an experiment on its training set, or on a fixed part of a large one.

    Args:
        experiment: the description.
        data_dir: folder of the real data files.
        size: at most the first so many examples; all if None. The fingerprint says how many they are.
        batchnorm: see `LossSurface`.
        dtype: in which the surface is evaluated; the model's own if None.

    Returns:
        The surface.

    Raises:
        ArgumentError: size is not at least 2.
    """
    if size is not None and size < 2:
        raise ArgumentError(f"size: expected at least 2 examples or None for all, got {size}")
    model, loss, data = parts(experiment, data_dir)
    return LossSurface(model, loss, (data.x[:size], data.y[:size]), batchnorm=batchnorm, dtype=dtype)
