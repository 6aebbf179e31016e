"""What the recorder costs the loop: scalars every update, and a snapshot of every update with the background writer."""

import resource
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from sgdscope.recorder import Recorder, every

BATCH, REPEATS, UPDATES = 128, 11, 10


def rows() -> list[dict[str, object]]:
    """Time a plain loop and a recorded one in turns.

    The snapshots are timed with a `flush` after every ten updates, so that the disk's own speed is in the ratio.
    """
    result: list[dict[str, object]] = []
    threads = torch.get_num_threads()
    try:
        for number in (1, 2):
            torch.set_num_threads(number)
            result.append(_scalars(f"MLP 784-800-450-10, SGD, batch {BATCH}, {number} thread(s)"))
            result += _snapshots(f"the same, zarr, flushed every {UPDATES} updates, {number} thread(s)")
    finally:
        torch.set_num_threads(threads)
    return result


def _scalars(setting: str) -> dict[str, object]:
    model, optimizer = _model()
    with Recorder(None, model, optimizer, loss=_loss, snapshots=lambda step: step < 0, store="memory") as recorder:
        ratio = _compare(model, optimizer, recorder.loss, lambda: None)
    return {"what": "scalars every update / plain step", "ratio": ratio, "aim": "<= 1.15", "setting": setting}


def _snapshots(setting: str) -> list[dict[str, object]]:
    folder = Path(tempfile.mkdtemp(prefix="sgdscope-bench-"))
    try:
        model, optimizer = _model()
        vector = 4 * sum(p.numel() for p in model.parameters())
        before = _peak()
        with Recorder(folder / "run", model, optimizer, loss=_loss, snapshots=every(1), budget="4 GB") as recorder:
            ratio = _compare(model, optimizer, recorder.loss, recorder.flush)
        extra = (_peak() - before) / vector
    finally:
        shutil.rmtree(folder)
    return [
        {"what": "snapshot every update / plain step", "ratio": ratio, "aim": "<= 1.5", "setting": setting},
        {"what": "further peak memory / theta", "ratio": extra, "aim": "<= 6 + 256 MB / theta", "setting": setting},
    ]


def _model() -> tuple[nn.Module, torch.optim.Optimizer]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        layers = [nn.Linear(784, 800), nn.ReLU(), nn.Linear(800, 450), nn.ReLU(), nn.Linear(450, 10)]
        model = nn.Sequential(*layers)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def _compare(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[..., Tensor], after: Callable[[], None]) -> float:
    """Median over repetitions of recorded / plain, the two next to each other in time."""
    plain, plain_optimizer = _model()
    generator = torch.Generator().manual_seed(1)
    batch = torch.randn(BATCH, 784, generator=generator), torch.randint(10, (BATCH,), generator=generator)
    ratios = []
    for repeat in range(REPEATS + 1):
        seconds = _loop(plain, plain_optimizer, _loss, batch)
        start = time.perf_counter()
        _loop(model, optimizer, loss, batch)
        after()
        recorded = time.perf_counter() - start
        if repeat:
            ratios.append(recorded / seconds)
    return statistics.median(ratios)


def _loop(model: nn.Module, optimizer: torch.optim.Optimizer, loss: Callable[..., Tensor], batch: tuple[Tensor, Tensor]) -> float:
    start = time.perf_counter()
    for _ in range(UPDATES):
        optimizer.zero_grad()
        loss(model, batch).backward()
        optimizer.step()
    return time.perf_counter() - start


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
