"""The networks, their data and the points at which they are measured: trained once, kept in `.work`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.peers.worker import Work, criterion, network, shuffled
from sgdscope.datasets import load

FOLDER = Path(__file__).parent / ".work"
STAGES = ("early", "mid", "late")
SEEDS = (1, 2, 3)
LIMIT = 4000  # updates; each net needs a few hundred


@dataclass(frozen=True)
class Net:
    """A network and how it is trained.

    Attributes:
        dataset: its name.
        examples: of the training part, the head; None for training and test part together.
        model: its name.
        options: of the model.
        optimizer: ``"SGD"`` or ``"Adam"``.
        lr: learning rate.
        batch: examples an update.
        losses: over all examples, at which early, mid and late are taken: the first point at or below.
        repeats: of timed tasks.
    """

    dataset: str
    examples: int | None
    model: str
    options: dict[str, Any] = field(default_factory=dict)
    optimizer: str = "SGD"
    lr: float = 0.1
    batch: int = 64
    losses: tuple[float, float, float] = (0.16, 0.03, 0.004)
    repeats: int = 2


# The GPT ends near 0.065: nothing tells the first characters of windows of 32.
NETS = {
    "mlp": Net("digits", None, "mlp", {"hidden": [100, 100]}, repeats=8),
    "cnn": Net("cifar10", 1000, "simplecnn", {"width": 16, "dense": 70}, lr=0.05, batch=50, losses=(2.2, 0.74, 0.003)),
    "gpt": Net("tinyshakespeare", 128, "gpt", {"width": 128, "layers": 4}, "Adam", 1e-3, 32, (1.1, 0.2, 0.075), 1),
    "resnet": Net("cifar10", 250, "resnet", {"depth": 20, "batchnorm": False}, "Adam", 1e-3, 50, (2.24, 0.22, 0.068), 1),
    "small": Net("digits", None, "mlp", {"hidden": [20, 20]}, repeats=8),
}
MAIN = ("mlp", "cnn", "gpt", "resnet")  # `small` is for exact spectra


@dataclass(frozen=True)
class Point:
    """A trained point.

    Attributes:
        net: its name.
        stage: early, mid or late.
        seed: of first values and batches.
        path: of the file that workers load.
    """

    net: str
    stage: str
    seed: int
    path: Path


def _data(net: Net, data_dir: Path | None) -> tuple[Tensor, Tensor, int]:
    found = load(net.dataset, data_dir, train=net.examples, context=32)
    if net.examples is None:
        return torch.cat([found.x, found.x_test]), torch.cat([found.y, found.y_test]), found.classes
    return found.x, found.y, found.classes


def _walk(net: Net, kind: dict[str, Any], seed: int) -> Iterator[Work]:
    """The network after every few updates, in evaluation mode."""
    model = network(kind, seed).train()
    optimizer = getattr(torch.optim, net.optimizer)(model.parameters(), lr=net.lr)
    work = Work(model, kind["x"], kind["y"], torch.empty(0), len(kind["x"]))
    for update, (x, y) in zip(range(LIMIT), shuffled(work, net.batch, seed), strict=False):
        if update % 5 == 0:
            yield work
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()


def _train(name: str, data_dir: Path | None, seed: int) -> None:
    """Train one network and save its three points."""
    net = NETS[name]
    x, y, classes = _data(net, data_dir)
    kind = {"model": net.model, "options": net.options, "inputs": list(x.shape[1:]), "classes": classes, "x": x, "y": y}
    wanted = dict(zip(STAGES, net.losses, strict=True))
    for work in _walk(net, kind, seed):
        with torch.no_grad():
            loss = float(criterion(work.model(x), y))
        while wanted and loss <= next(iter(wanted.values())):
            stage = next(iter(wanted))
            theta = torch.nn.utils.parameters_to_vector(work.model.parameters()).detach().clone()
            torch.save({**kind, "theta": theta, "loss": loss}, _path(name, stage, seed))
            del wanted[stage]
        if not wanted:
            return
    raise RuntimeError(f"{name}, seed {seed}: the loss never fell to {wanted}")


def _path(name: str, stage: str, seed: int) -> Path:
    return FOLDER / f"{name}-{stage}-{seed}.pt"


def points(name: str, data_dir: Path | None, *, stages: tuple[str, ...] = STAGES, seeds: tuple[int, ...] = SEEDS) -> list[Point]:
    """The points of a network, trained where they are not there yet, on one thread.

    Args:
        name: of the network.
        data_dir: where the data files are.
        stages: those wanted.
        seeds: those wanted.

    Returns:
        One point a stage and seed; none where the data are not given.
    """
    FOLDER.mkdir(exist_ok=True)
    if data_dir is None and NETS[name].dataset != "digits":
        print(f"{name}: left out, its data are not bundled; give their folder with --data-dir")
        return []
    for seed in seeds:
        if not all(_path(name, stage, seed).exists() for stage in STAGES):
            print(f"{name}: training, seed {seed}", flush=True)
            _train(name, data_dir, seed)
    return [Point(name, stage, seed, _path(name, stage, seed)) for stage in stages for seed in seeds]
