"""Accuracy on training and held-out examples along a run that an experiment made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sgdscope.experiment import Experiment, parts
from sgdscope.records import Surface, Trajectory
from sgdscope.vector import Layout, select_buffers, select_parameters

BATCH = 512


@torch.no_grad()
def judged(model: nn.Module, x: Tensor, y: Tensor) -> tuple[float, float]:
    """The share of examples whose largest output is that of the label, and the mean cross entropy.

    Args:
        model: gives logits [N, ..., classes]; put into eval mode here.
        x: inputs.
        y: labels [N, ...].

    Returns:
        (accuracy in [0, 1], loss).
    """
    model.eval()
    right, loss = 0.0, 0.0
    for inputs, labels in zip(torch.split(x, BATCH), torch.split(y, BATCH), strict=True):
        logits = model(inputs).flatten(0, -2)
        right += float((logits.argmax(-1) == labels.flatten()).sum())
        loss += float(nn.functional.cross_entropy(logits, labels.flatten(), reduction="sum"))
    return right / y.numel(), loss / y.numel()


def standing(trajectory: Trajectory, step: int, model: nn.Module) -> nn.Module:
    """Put a model where a run stood.

    Args:
        trajectory: the walk.
        step: t.
        model: written in place.

    Returns:
        The model.
    """
    theta, buffers = trajectory.theta(step), trajectory.buffers(step)  # may train a stretch again, which needs gradients
    return placed(model, trajectory.header.layout, theta, buffers)


@torch.no_grad()
def placed(model: nn.Module, layout: Layout, theta: Tensor, buffers: Mapping[str, Tensor]) -> nn.Module:
    """Put a model at a point.

    Args:
        model: written in place.
        layout: of theta.
        theta: [P].
        buffers: name -> values.

    Returns:
        The model.
    """
    for name, value in layout.restore(theta).items():
        select_parameters(model)[name].copy_(value)
    for name, value in buffers.items():
        select_buffers(model)[name].copy_(value)
    return model


def accuracy(trajectory: Trajectory, surface: Surface, data_dir: Any = None) -> Mapping[str, Any]:  # ruff: ignore[unused-function-argument] - one signature for all observations
    """Measure accuracy and held-out loss at the first point of each stretch of snapshots and at the last point.

    Args:
        trajectory: a run of an experiment; for others there are no held-out data, and the result is empty.
        surface: not used.
        data_dir: folder of the real data files.

    Returns:
        ``{"accuracy": {"step": [...], "train": [...], "test": [...], "test_loss": [...]}}``; "train" with the labels as trained.
    """
    described = trajectory.settings.get("experiment")
    if described is None:
        return {}
    model, _, data = parts(Experiment(**described), data_dir)
    points = trajectory.snapshot_steps.tolist()
    chosen = [p for i, p in enumerate(points) if i == 0 or p != points[i - 1] + 1 or i + 1 == len(points)]
    told: dict[str, list[float]] = {"step": chosen, "train": [], "test": [], "test_loss": []}
    for step in chosen:
        standing(trajectory, step, model)
        right, loss = judged(model, data.x_test, data.y_test)
        told["train"].append(judged(model, data.x, data.y)[0])
        told["test"].append(right)
        told["test_loss"].append(loss)
    return {"accuracy": told}
