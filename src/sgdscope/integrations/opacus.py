"""Model-level differentially private SGD by opacus: clipped per-example gradients, Gaussian noise, Poisson batches."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sgdscope.errors import ArgumentError, NotAvailableError
from sgdscope.ranges import positive


@dataclass(frozen=True)
class PrivateTraining:
    """What takes the place of model, optimizer and loader in a training loop.

    Attributes:
        model: gives gradients by example; call it in place of the model, whose parameters it shares.
        optimizer: clips and adds noise before it steps; call it in place of the optimizer.
        inner: the optimizer that was given: attach the recorder to it, and it sees the gradients that are used.
        loader: Poisson batches, each example in each of them with probability `sample_rate`; a batch may be empty.
        sample_rate: batch size / examples.
        noise_multiplier: standard deviation of the noise over the clipping bound.
    """

    model: nn.Module
    optimizer: Any
    inner: torch.optim.Optimizer
    loader: Any
    sample_rate: float
    noise_multiplier: float

    def history(self, steps: int) -> list[tuple[float, float, int]]:
        """What an accountant asks for.

        Args:
            steps: updates made.

        Returns:
            (noise multiplier, sample rate, steps), one row.
        """
        return [(self.noise_multiplier, self.sample_rate, steps)]


def _opacus() -> Any:
    try:
        return importlib.import_module("opacus")
    except ModuleNotFoundError as error:
        if error.name != "opacus":
            raise
        raise NotAvailableError("opacus is not installed; pip install 'sgdscope[dp]'") from error


def dp_sgd(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    data: Sequence[Tensor],
    *,
    batch_size: int,
    noise_multiplier: float,
    clip: float,
    generator: torch.Generator,
) -> PrivateTraining:
    """Make a training loop (eps, delta)-differentially private for each example.

    An update with the examples drawn, each with probability q = batch_size / N:
    g = (sum_i clip(g_i) + noise_multiplier clip xi) / batch_size, xi ~ N(0, I), clip(g_i) = g_i min(1, clip / |g_i|_2).

    Args:
        model: without BatchNorm, which mixes examples; wrapped, not copied.
        optimizer: of its parameters.
        data: tensors with a common leading dimension N.
        batch_size: expected size of a batch, 1..N.
        noise_multiplier: sigma > 0.
        clip: > 0, largest norm of an example's gradient.
        generator: of batches and noise, on the device of the model.

    Returns:
        The parts of the loop. What it spends: `integrations.accounting.epsilon` of `history(steps)`.

    Raises:
        ArgumentError: an argument is out of range.
        NotAvailableError: opacus is not installed.

    Source: Abadi et al. 2016 (1607.00133), Algorithm 1; opacus (2109.12298).
    """
    for name, value in (("noise_multiplier", noise_multiplier), ("clip", clip)):
        positive(name, value)
    examples = len(data[0]) if data else 0
    if any(len(t) != examples for t in data) or not 1 <= batch_size <= examples:
        sizes = [len(t) for t in data]
        raise ArgumentError(f"batch_size: expected 1..N for tensors of N examples each, got {batch_size} of {sizes}")
    opacus = _opacus()
    dataset = torch.utils.data.TensorDataset(*data)
    loader: Any = torch.utils.data.DataLoader(dataset, batch_size=batch_size, generator=generator)
    wrapped, private, batches = opacus.PrivacyEngine(accountant="rdp").make_private(
        module=model, optimizer=optimizer, data_loader=loader, noise_multiplier=float(noise_multiplier),
        max_grad_norm=float(clip), noise_generator=generator,
    )  # fmt: skip
    return PrivateTraining(wrapped, private, optimizer, batches, batch_size / examples, float(noise_multiplier))
