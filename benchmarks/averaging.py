"""The weighted average of replicas, against reading their numbers once."""

import itertools
import time

import torch
from torch import Tensor

from sgdscope.replicas import average, weights

REPEATS = 40
SHAPES = [(784, 1000), (1000,), (1000, 200), (200,), (200, 80), (80,)]  # 1.0 million


def _read(replicas: list[list[Tensor]]) -> float:
    return sum(float(t.sum()) for replica in replicas for t in replica)


def rows() -> list[dict[str, object]]:
    """Measure on one thread, out of the cache: 64 MB are written between any two repetitions.

    Returns:
        Ratios of the least times of interleaved repetitions, since others use the machine too.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        generator = torch.Generator().manual_seed(0)
        replicas = [[torch.randn(shape, generator=generator) for shape in SHAPES] for _ in range(8)]
        omega = weights([300, 300, 200, 100, 50, 300, 20, 10], rate=0.01)
        flush, times = torch.zeros(16 << 20), {"read": [1.0], "average": [1.0]}
        for _, (name, run) in itertools.product(
            range(REPEATS), (("read", lambda: _read(replicas)), ("average", lambda: average(replicas, omega)))
        ):
            flush.add_(1)
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    finally:
        torch.set_num_threads(threads)
    size = sum(t.numel() for t in replicas[0])
    setting = f"8 replicas of {size / 1e6:.2f} million float32, 1 thread, out of the cache, least of {REPEATS}"
    return [
        {"what": "weighted average / one read of the replicas", "ratio": min(times["average"]) / min(times["read"])}
        | {"aim": "<= 1.5", "setting": setting}
    ]
