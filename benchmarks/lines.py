"""The loss along one step of SGD, against the plain loop that loads each point and goes over the same batches."""

import itertools
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from numpy.polynomial import chebyshev
from sklearn.datasets import load_digits
from torch import Tensor, nn

from sgdscope.surface import LossSurface

ALPHAS = np.linspace(0, 1, 11)
NODES = 0.5 - 0.5 * np.cos(np.pi * np.arange(5) / 4)
REPEATS = 3


def _mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))


def _cnn() -> nn.Module:
    blocks = [nn.Unflatten(1, (1, 8, 8)), nn.Upsample(scale_factor=4)]
    for a, b in ((1, 32), (32, 64)):
        blocks += [nn.Conv2d(a, b, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
    return nn.Sequential(*blocks, nn.Flatten(), nn.Linear(4096, 10))


def _losses(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1], reduction="none")


def _mean(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return _losses(model, batch).mean()


def _segment(model: nn.Module, x: Tensor, y: Tensor, lr: float) -> tuple[Tensor, Tensor]:
    """One step of SGD after 60 others: its start and its direction."""
    flat = torch.nn.utils.parameters_to_vector
    generator, points = torch.Generator().manual_seed(1), []
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    for _ in range(60):
        points = [*points[-1:], flat(model.parameters()).detach().clone()]
        rows = torch.randint(len(x), (64,), generator=generator)
        optimizer.zero_grad()
        _mean(model, (x[rows], y[rows])).backward()
        optimizer.step()
    return points[0], points[1].double() - points[0].double()


def _plain(model: nn.Module, batches: list[tuple[Tensor, Tensor]], theta: Tensor, direction: Tensor) -> list[float]:
    """What one writes without this package, batches weighted by their size."""
    found = []
    with torch.no_grad():
        for alpha in ALPHAS:
            torch.nn.utils.vector_to_parameters((theta + alpha * direction).float(), model.parameters())
            found.append(sum(_mean(model, b).item() * len(b[0]) for b in batches) / sum(len(b[0]) for b in batches))
    return found


def _seconds(*runs: Callable[[], object]) -> list[float]:
    """The median processor time of each run (one thread), repetitions interleaved, after one to warm up."""
    times: list[list[float]] = [[] for _ in runs]
    for repeat, (run, own) in itertools.product(range(REPEATS + 1), list(zip(runs, times, strict=True))):
        start = time.process_time()
        run()
        if repeat:
            own.append(time.process_time() - start)
    return [statistics.median(own) for own in times]


def _error(surface: LossSurface, theta: Tensor, direction: Tensor) -> float:
    """The largest error of the polynomial through 5 points at 11 alphas, over the range of the loss."""
    truth = surface.along(theta, direction, ALPHAS).values
    nodes = surface.along(theta, direction, NODES).values
    coefficients = np.linalg.solve(chebyshev.chebvander(2 * NODES - 1, 4), nodes)
    return float(np.abs(chebyshev.chebval(2 * ALPHAS - 1, coefficients) - truth).max() / np.ptp(truth))


def _rows(name: str, model: nn.Module, examples: int, lr: float, aim: str) -> list[dict[str, object]]:
    images, labels = load_digits(return_X_y=True)
    x, y = torch.tensor(images[:examples] / 8 - 1, dtype=torch.float32), torch.tensor(labels[:examples])
    theta, direction = _segment(model, x, y, lr)
    each, mean = (LossSurface(model, loss, (x, y)) for loss in (_losses, _mean))
    size = each.fingerprint()["batch_size"]
    same, whole, habit = ([*zip(x.split(n), y.split(n), strict=True)] for n in (size, examples, 64))
    for surface in (each, mean):
        np.testing.assert_allclose(surface.along(theta, direction, ALPHAS).values, _plain(model, whole, theta, direction), 1e-4)
    times = _seconds(
        lambda: _plain(model, same, theta, direction),
        lambda: _plain(model, whole, theta, direction),
        lambda: _plain(model, habit, theta, direction),
        lambda: each.along(theta, direction, ALPHAS),
        lambda: mean.along(theta, direction, ALPHAS),
        lambda: each.along(theta, direction, NODES),
        lambda: each.along(theta, direction, NODES[1:]),
        lambda: each.along(theta, direction, [0.5, 1.0]),
    )
    plain, all_at_once, loader, eleven, parted, five, four, parabola = times
    setting = f"{name}, N={examples}, batch {size}, 1 thread, processor time"
    far = _error(each, theta, 200 * direction)
    table = [
        ("along, 11 alphas, 1-D loss / plain loop of 11", eleven / plain, "-", setting),
        ("along, 11 alphas, mean loss (vmap) / plain loop of 11", parted / plain, "-", setting),
        ("along, 11 alphas / plain loop of 11, one batch", eleven / all_at_once, "-", setting),
        ("along, 11 alphas / plain loop of 11, batch 64", eleven / loader, "-", setting),
        ("curve: 5 Chebyshev points / plain loop of 11", five / plain, aim, setting),
        ("curve, first point known: 4 evaluations / plain loop of 11", four / plain, aim, setting),
        ("curve: error of 5 points / range of the loss", _error(each, theta, direction), "<= 0.001", f"{setting}, lr {lr}"),
        (
            "curve: the same over 200 times the step",
            far,
            "-",
            f"{setting}, lr {lr}",
        ),
        ("parabola, first point known / plain evaluation", parabola / plain * 11, "<= 2.2", setting),
    ]
    return [{"what": what, "ratio": ratio, "aim": goal, "setting": where} for what, ratio, goal, where in table]


def rows() -> list[dict[str, object]]:
    """Measure on one thread: the digits MLP and a CNN on the same images at 32 x 32.

    Returns:
        Ratios of times, and the errors of the 5-point curve.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.random.fork_rng():
            torch.manual_seed(0)
            return [
                *_rows("MLP 64-100-100-10", _mlp(), 1797, 0.6, "<= 0.4"),
                *_rows("CNN 32-64", _cnn(), 256, 0.1, "<= 0.3"),
            ]
    finally:
        torch.set_num_threads(threads)
