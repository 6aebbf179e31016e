"""What it costs to record an experiment so that every point can be rebuilt: against the plain step, and in bytes."""

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import torch

from sgdscope.experiment import Experiment
from sgdscope.experiment.loop import Loop
from sgdscope.experiment.running import FirstAndLast, recorded
from sgdscope.recorder import Recorder

UPDATES, CHUNK, BATCH = 600, 50, 128


def _experiment(walker: str) -> Experiment:
    return Experiment(
        data={"dataset": "digits"},
        model={"name": "mlp", "hidden": [960, 960]},
        phases=[{"walker": walker, "lr": 0.01, "batch_size": BATCH, "updates": UPDATES}],
        record={"mode": "replay", "keyframes": 100},
    )


def _plain(loop: Loop) -> Iterator[int]:
    while loop.step < loop.total:
        loop.advance()
        yield loop.step


def _scalars_only(loop: Loop, path: Path) -> Iterator[int]:
    with Recorder(path, loop.model, loop.optimizer, loss=loop.loss, snapshots=FirstAndLast()) as recorder:
        while loop.step < loop.total:
            batch = loop.prepare()
            loop.optimizer.zero_grad()
            torch.autograd.backward(recorder.loss(loop.model, batch))
            loop.optimizer.step()
            loop.step += 1
            yield loop.step


def _measure(walker: str, folder: Path) -> tuple[dict[str, list[float]], float, int]:
    """Seconds of each chunk of updates of the three loops, interleaved; bytes of the run over those of all points; P."""
    loops = [Loop(_experiment(walker)) for _ in range(3)]
    walks = {
        "plain": _plain(loops[0]),
        "recorder": _scalars_only(loops[1], folder / f"{walker}-scalars"),
        "replay": recorded(loops[2], folder / f"{walker}-replay"),
    }
    seconds: dict[str, list[float]] = {name: [] for name in walks}
    for number in range(UPDATES // CHUNK):
        for name in sorted(walks, key=lambda name: hash((number, name))):
            start = time.perf_counter()
            list(itertools.islice(walks[name], CHUNK))
            seconds[name].append((time.perf_counter() - start) / CHUNK)
    for walk in walks.values():
        list(walk)
    size = loops[0].layout.size
    kept = sum(path.stat().st_size for path in (folder / f"{walker}-replay").rglob("*") if path.is_file())
    return seconds, kept / (4 * size * (UPDATES + 1)), size


def rows() -> list[dict[str, object]]:
    """Measure SGD and Adam on the MLP with a million parameters; ratios of neighbouring chunks, their median.

    Returns:
        For each walker: recording against the plain step, the part that replay adds to the recorder, and the bytes.
    """
    before, result = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        with tempfile.TemporaryDirectory() as folder:
            for walker, aim in (("sgd", 0.02), ("adam", 0.04)):
                seconds, share, size = _measure(walker, Path(folder))
                plain = seconds["plain"]
                step = f"plain step {1e3 * statistics.median(plain):.1f} ms"
                setting = f"{walker}, MLP 64-960-960-10 ({size:,}), batch {BATCH}, 1 thread, {step}"

                def ratio(one: str, other: str, seconds: dict[str, list[float]] = seconds) -> float:
                    return statistics.median(a / b for a, b in zip(seconds[one], seconds[other], strict=True))

                rows_of = [
                    ("recording with replay / plain step", ratio("replay", "plain"), "<= 1.05"),
                    ("recorder alone / plain step", ratio("recorder", "plain"), "<= 1.15"),
                    ("recording with replay / recorder alone", ratio("replay", "recorder"), ""),
                    ("bytes / a snapshot every update", share, f"<= {aim}"),
                ]
                result += [{"what": what, "ratio": value, "aim": aim_, "setting": setting} for what, value, aim_ in rows_of]
    finally:
        torch.set_num_threads(before)
    return result
