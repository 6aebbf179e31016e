"""Large, quiet steps from the last point: the second estimator of the loss after a decay, for held-out data."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgdscope.directions import private
from sgdscope.errors import NotAvailableError
from sgdscope.records import Surface, Trajectory
from sgdscope.theory.stability import MOMENTS

STEPS, LARGER = 32, 8  # spec, "Recommended estimator" (ii): 32 steps of batch 8 x BS at half the effective learning rate


@dataclass(frozen=True)
class Method:
    """How a run made its updates at one of its steps.

    Attributes:
        name: of the optimizer, in lower case.
        lr: learning rate of the update.
        momentum: of heavy ball; beta1 of Adam is not counted.
        beta1: of Adam's family.
        nesterov: whether momentum is Nesterov's.
        weight_decay: as given to the optimizer.
        batch_size: examples; NaN if unknown.
    """

    name: str
    lr: float
    momentum: float
    beta1: float
    nesterov: bool
    weight_decay: float
    batch_size: float

    @property
    def adaptive(self) -> bool:
        """Whether updates are divided by the root of second moments."""
        return self.name in MOMENTS

    @property
    def effective_lr(self) -> float:
        """What a constant gradient is multiplied by in the long run: lr / (1 - momentum)."""
        return self.lr / (1 - self.momentum)


def method_of(trajectory: Trajectory, step: int) -> Method:
    """Read from a run how it made the update before a step.

    Args:
        trajectory: the run.
        step: T; the learning rate and the batch size are those of the last update before it.

    Returns:
        The method; NaN where a number was not recorded, sgd where no optimizer was.
    """
    settings, steps = trajectory.settings, trajectory.steps
    told: Mapping[str, Any] = (settings.get("optimizers") or [{}])[0]

    def last(name: str) -> float:
        values = steps[name].values[steps["step"].values < step] if name in steps and steps.sizes.get("step") else np.zeros(0)
        return float(values[-1]) if len(values) else float("nan")

    sizes = steps["batch_size"].values[steps["step"].values < step] if "batch_size" in steps else np.zeros(0)
    sizes = sizes[np.isfinite(sizes)]
    return Method(
        name=str(settings.get("walker") or told.get("class") or "sgd").lower(),
        lr=last("lr"),
        momentum=float(told.get("momentum") or settings.get("momentum") or 0.0),
        beta1=float((told.get("betas") or [told.get("beta1", 0.9)])[0]),
        nesterov=bool(told.get("nesterov")),
        weight_decay=float(told.get("weight_decay") or 0.0),
        batch_size=float(np.median(sizes)) if len(sizes) else float("nan"),
    )


def quiet_point(
    trajectory: Trajectory, surface: Surface, step: int, *, buffers: Mapping[str, Tensor] | None = None, seed: int = 0
) -> Tensor:
    """Where 32 large, quiet steps from theta_T lead.

    theta <- theta - (lr_eff / 2) g / D, g the gradient of 8 x BS examples drawn without replacement (all of them if there are
    fewer), lr_eff = lr / (1 - momentum), D = 1 or Adam's sqrt(v) + eps at T, held fixed; no momentum. Decoupled weight decay
    as in AdamW.

    Args:
        trajectory: the run.
        surface: on the training data, with single examples.
        step: T.
        buffers: at theta_T.
        seed: of the examples drawn.

    Returns:
        [P], in the dtype of the snapshots.

    Raises:
        NotAvailableError: learning rate, batch size or Adam's second moments were not recorded.
        DataError: the surface has no single examples.

    Cost: 32 gradients of 8 x BS examples: 256 training steps.
    Source: this project, `docs/annealing.md`: the quiet steps.
    """
    method = method_of(trajectory, step)
    if not (method.lr > 0 and method.batch_size >= 1):
        raise NotAvailableError("the learning rate or the batch size of the last update was not recorded")
    theta = trajectory.theta(step)
    scale = 1 / trajectory.preconditioner(step).to(theta) if method.adaptive else torch.ones_like(theta)
    examples = int(surface.fingerprint().get("examples") or 0)
    size, rate, generator = int(LARGER * method.batch_size), method.effective_lr / 2, private(seed, step, 1)
    decay = rate * method.weight_decay if method.name == "adamw" else 0.0
    for _ in range(STEPS):
        rows = torch.randperm(examples, generator=generator)[:size] if size < examples else torch.arange(examples)
        gradient = surface.on_batch(surface.rows(rows)).value_and_grad(theta, buffers)[1].to(theta)
        if method.weight_decay and method.name != "adamw":
            gradient = gradient + method.weight_decay * theta
        theta = theta - rate * scale * gradient - decay * theta
    return theta
