"""What the valley costs: the parabola in forward evaluations, the curve against a plain loop of 11 evaluations."""

import statistics
import time

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import cross_entropy

from sgdscope.quantities.valley import valley
from sgdscope.records import Header, Snapshot, Trajectory, steps_dataset
from sgdscope.surface import LossSurface
from sgdscope.vector import Layout, select_parameters

THREADS, UPDATES, BURN, REPEATS = 1, 60, 100, 5  # one window of the default length


def _data():
    x, y = load_digits(return_X_y=True)
    x = torch.tensor((x[:1500] - x.mean()) / x.std(), dtype=torch.float32)
    labels = torch.tensor(y[:1500])
    generator = torch.Generator().manual_seed(0)
    noisy = torch.rand(1500, generator=generator) < 0.3
    labels[noisy] = torch.randint(10, (int(noisy.sum()),), generator=generator)
    return x, labels


def _mlp():
    return nn.Sequential(nn.Linear(64, 100), nn.ReLU(), nn.Linear(100, 100), nn.ReLU(), nn.Linear(100, 10))


def _cnn():
    return nn.Sequential(
        nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def _loss(model, batch):
    return cross_entropy(model(batch[0]), batch[1], reduction="none")


def _trajectory(layout, points):
    header, steps = Header(layout, Layout((), (), ()), {}), np.arange(len(points) - 1)
    kept = np.arange(len(points))
    return Trajectory(header, lambda: steps_dataset(steps, {}), kept, lambda s: Snapshot(s, points[s].clone(), torch.zeros(0)))


def _walk(model, data, lr):
    """Burn in with plain SGD, then keep the points of UPDATES updates."""
    x, y = data
    layout, points = Layout.of(select_parameters(model)), []
    optimizer, generator = torch.optim.SGD(model.parameters(), lr=lr), torch.Generator().manual_seed(1)
    for t in range(BURN + UPDATES + 1):
        if t >= BURN:
            points.append(layout.pack(select_parameters(model)))
        index = torch.randint(len(x), (64,), generator=generator)
        optimizer.zero_grad()
        cross_entropy(model(x[index]), y[index]).backward()
        optimizer.step()
    return _trajectory(layout, points)


def _plain_loop(model, data, trajectory):
    """The loop that one writes without a tool: 11 points of every update, each a forward pass over the set."""
    layout, parameters = trajectory.header.layout, select_parameters(model)
    with torch.no_grad():
        for t in range(UPDATES):
            start, end = trajectory.theta(t), trajectory.theta(t + 1)
            for alpha in np.linspace(0, 1, 11):
                for name, values in layout.unpack(start + float(alpha) * (end - start)).items():
                    parameters[name].copy_(values)
                float(cross_entropy(model(data[0]), data[1]))


def _seconds(*functions):
    """Median processor time (one thread) of each, repetitions interleaved."""
    taken = [[] for _ in functions]
    for _ in range(REPEATS):
        for function, times in zip(functions, taken, strict=True):
            begin = time.process_time()
            function()
            times.append(time.process_time() - begin)
    return [statistics.median(t) for t in taken]


def _measure(name, model, data, lr):
    trajectory = _walk(model, data, lr)
    surface = LossSurface(model, _loss, data)
    theta = trajectory.theta(0)

    def forwards():
        for _ in range(UPDATES):
            surface.value(theta)

    one, parabola, curve, loop = _seconds(
        forwards,
        lambda: valley(trajectory, surface, curve=False, own_batch=False),
        lambda: valley(trajectory, surface, own_batch=False),
        lambda: _plain_loop(model, data, trajectory),
    )
    quick, exact = (valley(trajectory, surface, own_batch=False, tolerance=t) for t in (1e-3, 0))
    spread = np.ptp(exact["curve"].values, axis=1)
    error = np.abs(quick["curve"].values - exact["curve"].values).max(1) / spread
    passes = float(quick["evaluations"].sum()) / UPDATES
    setting = f"{name}, lr {lr}, batch 64, 1500 digits, {THREADS} thread"
    failed = float((quick["curve_error"] == 0).mean())
    resolved = 8 * torch.finfo(torch.float32).eps * exact["loss_start"].values <= 1e-3 * spread  # else rounding is larger
    found = (
        f"{passes:.2f} passes an update, {failed:.0%} evaluated everywhere (kinks), error / range median {np.median(error):.1e} "
        f"max {error[resolved].max():.1e} ({error.max():.1e} with the {(~resolved).sum()} updates below rounding / 0.001)"
    )
    return [
        {"what": "parabola / forward of the set", "ratio": parabola / one, "aim": "<= 2.2", "setting": setting},
        {
            "what": "curve, 11 points / plain loop",
            "ratio": curve / loop,
            "aim": "<= 0.3" if name == "CNN" else "<= 0.4",
            "setting": f"{setting}; {found}",
        },
    ]


def _barrier(data):
    """From a trained MLP to the same function with its hidden units permuted."""
    model = _mlp()
    trajectory = _walk(model, data, 0.2)
    layout, theta = trajectory.header.layout, trajectory.theta(UPDATES)
    parts = {name: values.clone() for name, values in layout.unpack(theta).items()}
    order = torch.randperm(100, generator=torch.Generator().manual_seed(2))
    for name in ("0.weight", "0.bias"):
        parts[name] = parts[name][order]
    parts["2.weight"] = parts["2.weight"][:, order]
    segment = _trajectory(layout, [theta, layout.pack(parts)])
    surface = LossSurface(model, _loss, data)
    quick, exact = (valley(segment, surface, tolerance=t) for t in (1e-3, 0))
    highs = float(quick["barrier"][0]), float(exact["barrier"][0])
    return {
        "what": "points at a barrier / 11 (the fallback)",
        "ratio": float(quick["curve_points"][0]) / 11,
        "aim": "barrier kept",
        "setting": f"MLP to its permuted self: barrier {highs[0]:.6f}, evaluated everywhere {highs[1]:.6f}",
    }


def rows():
    """Measure.

    Returns:
        Rows of the table.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(THREADS)
    try:
        torch.manual_seed(0)
        data = _data()
        table = []
        for name, make, lr in (("MLP 64-100-100-10", _mlp, 0.05), ("MLP 64-100-100-10", _mlp, 0.6), ("CNN", _cnn, 0.1)):
            table += _measure(name, make(), data, lr)
        return [*table, _barrier(data)]
    finally:
        torch.set_num_threads(before)
