"""A walk of gradient descent, with or without noise, on a landscape; kept in memory, exact in float64."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.errors import ArgumentError, NotAvailableError
from sgdscope.landscapes.surfaces import Landscape
from sgdscope.records import NONFINITE, SCHEMA_VERSION, Header, Snapshot, Trajectory, steps_dataset
from sgdscope.vector import Layout


def _batches(n: int, batch_size: int, generator: torch.Generator, replacement: bool) -> Iterator[Tensor]:
    """Endless index batches [B]: fresh draws, or a permutation for each epoch without its last, incomplete batch."""
    while True:
        if replacement:
            yield torch.randint(n, (batch_size,), generator=generator)
        else:
            order = torch.randperm(n, generator=generator)
            yield from order[: n - n % batch_size].view(-1, batch_size)


def _check(surface: Landscape, batch_size: int | None, replacement: bool, momentum: float, updates: int) -> None:
    if updates < 1:
        raise ArgumentError(f"updates: expected at least 1, got {updates}")
    if not 0.0 <= momentum < 1.0:
        raise ArgumentError(f"momentum: expected 0 <= momentum < 1, got {momentum}")
    if batch_size is None:
        return
    if not surface.stochastic:
        raise ArgumentError(f"batch_size: {type(surface).__name__} has no examples to draw; expected None, got {batch_size}")
    if batch_size < 1 or (not replacement and batch_size > surface.examples):
        raise ArgumentError(f"batch_size: expected 1 to {surface.examples} examples, got {batch_size}")


def _rates(lr: float, lrs: Sequence[float] | None, updates: int) -> NDArray[np.float64]:
    rates = np.full(updates, lr, np.float64) if lrs is None else np.array(lrs, np.float64)
    if rates.shape != (updates,):
        raise ArgumentError(f"lrs: expected one learning rate for each of {updates} updates, got shape {rates.shape}")
    if not (np.isfinite(rates).all() and (rates >= 0).all()) or (lrs is None and lr <= 0):
        raise ArgumentError(
            f"{'lr' if lrs is None else 'lrs'}: expected finite learning rates > 0, got {lr if lrs is None else lrs}"
        )
    return rates


def _scalars(
    thetas: Tensor, gradients: Tensor, losses: NDArray[np.float64], rates: NDArray[np.float64], batch_size: int
) -> dict[str, NDArray[np.float64]]:
    """The columns of `records.STEP_VARIABLES` from the points [T + 1, P] and the gradients [T, P]."""
    moves = thetas.diff(dim=0)
    norms, lengths = gradients.norm(dim=1), moves.norm(dim=1)
    cosine = torch.full_like(norms, torch.nan)
    cosine[1:] = (gradients[:-1] * gradients[1:]).sum(1) / (norms[:-1] * norms[1:])
    rest = (moves + torch.from_numpy(rates)[:, None] * gradients).norm(dim=1)
    finite = torch.isfinite(gradients).all(1).numpy() & np.isfinite(losses)
    return {
        "loss": losses,
        "lr": rates,
        "batch_size": np.full(len(rates), float(batch_size)),
        "gradient_norm": norms.numpy(),
        "gradient_dot_update": (gradients * moves).sum(1).numpy(),
        "gradient_cosine": cosine.numpy(),
        "update_norm": lengths.numpy(),
        "distance": (thetas[:-1] - thetas[0]).norm(dim=1).numpy(),
        "descent_residual": (rest / lengths).numpy(),
        "flags": np.where(finite, 0.0, float(NONFINITE)),
    }


def walk(
    surface: Landscape,
    *,
    lr: float,
    updates: int,
    start: Any,
    batch_size: int | None = None,
    momentum: float = 0.0,
    generator: torch.Generator | None = None,
    lrs: Sequence[float] | None = None,
    replacement: bool = True,
    settings: Mapping[str, Any] | None = None,
    snapshots: Iterable[int] | None = None,
) -> Trajectory:
    """Walk on a landscape and keep everything.

    b_t = momentum b_{t-1} + g_t with b_{-1} = 0, theta_{t+1} = theta_t - lr_t b_t; g_t is the gradient of the mean loss
    of batch t (of all examples without a batch size). These are the updates of `torch.optim.SGD` without dampening. The
    scalars are those of `records.STEP_VARIABLES`, from the points as they were kept; the first gradient cosine is NaN.

    Args:
        surface: where to walk.
        lr: learning rate > 0; not used where `lrs` is given.
        updates: how many, at least 1.
        start: theta_0 [P].
        batch_size: B; None for gradient descent on all examples.
        momentum: 0 <= momentum < 1.
        generator: draws the batches and is advanced; a fresh one with seed 0 if None.
        lrs: the learning rate of each update, [updates], each >= 0.
        replacement: True draws each batch afresh, with replacement; False cuts a new permutation for each epoch into
            batches and leaves out a last, incomplete one.
        settings: JSON types, added to those of the walk.
        snapshots: the points that can be read, out of 0..updates; every point if None.

    Returns:
        The walk. Batches are index tensors [B]. It stays readable after a divergence; such updates are flagged.

    Raises:
        ArgumentError: an argument is out of range or does not fit the surface.

    Cost: one gradient an update; memory 2 (updates + 1) P float64.
    """
    _check(surface, batch_size, replacement, momentum, updates)
    rates = _rates(lr, lrs, updates)
    generator = torch.Generator().manual_seed(0) if generator is None else generator
    seed = generator.initial_seed()
    thetas = torch.empty(updates + 1, surface.size, dtype=torch.float64)
    point = torch.as_tensor(start, dtype=torch.float64)
    if point.shape != (surface.size,):
        raise ArgumentError(f"start: expected shape ({surface.size},), got {tuple(point.shape)}")
    thetas[0] = point
    gradients, losses = torch.empty(updates, surface.size, dtype=torch.float64), np.empty(updates)
    drawn: list[Tensor] = []
    velocity = torch.zeros(surface.size, dtype=torch.float64)
    batches = None if batch_size is None else _batches(surface.examples, batch_size, generator, replacement)
    for t, rate in enumerate(rates.tolist()):
        if batches is None:
            losses[t], gradients[t] = surface.value_and_grad(thetas[t])
        else:
            drawn.append(next(batches))
            losses[t], gradients[t] = surface.on_batch(drawn[-1]).value_and_grad(thetas[t])
        velocity = momentum * velocity + gradients[t] if momentum else gradients[t]
        thetas[t + 1] = thetas[t] - rate * velocity
    size = batch_size or surface.examples
    described = {
        "schema_version": SCHEMA_VERSION,
        "surface": surface.fingerprint(),
        "walker": "sgd",
        "lr": float(rates[0]),
        "batch_size": size,
        "momentum": momentum,
        "replacement": replacement,
        "seed": seed,
        "updates": updates,
        "examples": surface.examples,
    }
    columns = _scalars(thetas, gradients, losses, rates, size)
    return _trajectory(thetas, columns, drawn, described | dict(settings or {}), snapshots)


def _trajectory(
    thetas: Tensor,
    columns: Mapping[str, NDArray[np.float64]],
    drawn: Sequence[Tensor],
    settings: Mapping[str, Any],
    snapshots: Iterable[int] | None,
) -> Trajectory:
    updates = len(thetas) - 1
    kept = np.arange(updates + 1) if snapshots is None else np.unique(np.array(list(snapshots), np.int64))
    if kept.size and (kept[0] < 0 or kept[-1] > updates):
        raise ArgumentError(f"snapshots: expected points 0 to {updates}, got {kept[0]} to {kept[-1]}")
    known = set(kept.tolist())
    empty = torch.empty(0, dtype=torch.float32)

    def read_snapshot(step: int) -> Snapshot:
        if step not in known:
            raise NotAvailableError(f"the point before update {step} was not kept; {len(known)} of {updates + 1} points were")
        return Snapshot(step, thetas[step].clone(), empty.clone())

    def read_batch(step: int) -> Tensor:
        if not 0 <= step < updates:
            raise NotAvailableError(f"there is no update {step}; the walk has updates 0 to {updates - 1}")
        return drawn[step].clone() if drawn else torch.arange(int(columns["batch_size"][step]))

    header = Header(Layout(("theta",), ((thetas.shape[1],),), ("float64",)), Layout((), (), ()), settings)
    steps = np.arange(updates, dtype=np.int64)
    return Trajectory(header, lambda: steps_dataset(steps, columns), kept.astype(np.int64), read_snapshot, read_batch)
