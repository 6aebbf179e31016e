"""Escape experiments: walkers in double wells against the bare torch loop, replicas of a network against one after the other."""

import statistics
import time

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from sgdscope.escapes import Box, Minibatch, Network, Threshold, Wells, White, escape

WALKERS, UPDATES, LR, D = 4_000, 100_000, 0.1, 0.01  # at D = 0.01 nobody leaves: all walkers walk to the end
REPLICAS, STEPS, BATCH, REPEATS = 40, 2_000, 10, 3
EXAMPLES, FEATURES = 1_372, 4  # the Banknote table's


def _bare():
    """The same walk without valley, times and flags."""
    generator = torch.Generator().manual_seed(0)
    x, scale = torch.full((WALKERS, 1), -1.0, dtype=torch.float64), (2 * D * LR) ** 0.5
    for _ in range(UPDATES):
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        x = x - LR * (x * (x * x - 1.0)) + scale * noise
    return x


def _wells():
    found = escape(Wells(), Threshold(0.5), White(D), lr=LR, walkers=WALKERS, max_updates=UPDATES)
    assert found.escapes < WALKERS / 100
    return found


def _network():
    """Logistic regression on a table of Banknote's size."""
    torch.manual_seed(0)
    x = torch.randn(EXAMPLES, FEATURES)
    y = (x[:, 0] - x[:, 1] + torch.randn(EXAMPLES) > 0).long()
    return Network(nn.Linear(FEATURES, 2), lambda model, batch: cross_entropy(model(batch[0]), batch[1]), (x, y))


def _replicas(net):
    generator, box = torch.Generator().manual_seed(0), Box(net.start(), 1e9)  # nobody leaves
    escape(net, box, Minibatch(BATCH), lr=LR, walkers=REPLICAS, max_updates=STEPS, generator=generator)


def _sequential(net):
    """A tenth of the runs, each a plain loop of drawing, backward and update."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(REPLICAS // 10):
        model = nn.Linear(FEATURES, 2, dtype=torch.float64)
        optimizer = torch.optim.SGD(model.parameters(), lr=LR)
        for _ in range(STEPS):
            chosen = torch.randint(EXAMPLES, (BATCH,), generator=generator)
            optimizer.zero_grad()
            cross_entropy(model(net.x[chosen]), net.y[chosen]).backward()
            optimizer.step()


def _seconds(work):
    start = time.process_time()
    work()
    return time.process_time() - start


def _row(what, ratio, aim, setting):
    return {"what": what, "ratio": ratio, "aim": aim, "setting": f"{setting}, float64, 1 thread, processor time"}


def rows() -> list[dict[str, object]]:
    """Measure on one thread.

    Returns:
        Ratio of times for the wells, medians of ratios of throughputs for the network.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        wells = _seconds(_wells) / _seconds(_bare)
        net = _network()
        gains = [10 * _seconds(lambda: _sequential(net)) / _seconds(lambda: _replicas(net)) for _ in range(REPEATS)]
    finally:
        torch.set_num_threads(threads)
    what = f"throughput of {REPLICAS} replicas by vmap / of plain runs one after the other"
    setting = f"logistic regression, {EXAMPLES} x {FEATURES}, batch {BATCH}, {STEPS:,} updates"
    return [
        _row("double wells / bare torch loop", wells, "<= 2", f"{WALKERS:,} walkers x {UPDATES:,} updates"),
        _row(what, statistics.median(gains), ">= 3", setting),
    ]
