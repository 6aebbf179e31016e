"""What the recorder sees of the batches: the loss it was asked for, the batches that it let through."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Seen:
    """One batch on its way into an update.

    Attributes:
        size: examples; NaN where the batch has no leading dimension.
        loss: of the batch, 0-dimensional, or None.
        batch: the batch itself, where it is kept.
        witness: the gradient of the smallest parameter when the batch came, None if it had none.
    """

    size: float
    loss: Tensor | None
    batch: Any
    witness: Tensor | None


class Pending:
    """The batches since the last update, several under gradient accumulation.

    A batch whose gradient was thrown away (a step that a GradScaler skipped) is dropped when the loop sets gradients
    to None: the gradient object that holds the earlier batches is then no longer the one that the optimizer gets.

    Args:
        params: the parameters; the gradient of the smallest one serves as the witness.
    """

    def __init__(self, params: Sequence[nn.Parameter]) -> None:
        self._smallest = min(params, key=lambda p: p.numel())
        self.losses: list[Seen] = []
        self.batches: list[Seen] = []
        self._frozen = False

    def add(self, batch: Any, loss: Tensor | None, keep: bool = False) -> None:
        """Take note of a batch.

        Args:
            batch: as the loop sees it.
            loss: as the user's function returned it; None if only the batch went by.
            keep: whether the batch itself is kept.
        """
        if self._frozen:
            return
        value = None
        if loss is not None:
            value = loss.detach().to(torch.float32) if loss.dtype in (torch.float16, torch.bfloat16) else loss.detach()
            value = value.mean() if value.dim() else value.clone()
        seen = Seen(leading_dimension(batch), value, batch if keep else None, self._smallest.grad)
        (self.batches if loss is None else self.losses).append(seen)

    def settle(self) -> None:
        """Drop the batches whose gradient is not part of the one at hand."""
        self.losses, self.batches = self._alive(self.losses), self._alive(self.batches)

    def _alive(self, seen: list[Seen]) -> list[Seen]:
        grad = self._smallest.grad
        breaks = [number for number, one in enumerate(seen) if one.witness is not grad]
        return seen[breaks[-1] :] if breaks else seen

    def freeze(self, value: Any) -> None:
        """Take nothing more until the update is made: a closure is evaluated again at other points.

        Args:
            value: what the closure returned; serves as the loss if none was asked for.
        """
        if not self.losses and isinstance(value, Tensor):
            self.add(None, value)
        self._frozen = True

    def clear(self) -> None:
        """The update has been made."""
        self.losses, self.batches, self._frozen = [], [], False

    def loss(self) -> Tensor | None:
        """The mean of the losses, weighted by the sizes of their batches (equally if a size is unknown)."""
        values = [one.loss for one in self.losses if one.loss is not None]
        if len(values) < 2:
            return values[0] if values else None
        sizes = [one.size for one in self.losses]
        if any(math.isnan(size) for size in sizes):
            sizes = [1.0] * len(sizes)
        weighted = [value.double() * (size / sum(sizes)) for value, size in zip(values, sizes, strict=True)]
        return torch.stack(weighted).sum()

    def size(self) -> float:
        """Examples of the update: of the losses, or of the batches that went by where no loss was asked for."""
        for seen in (self.losses, self.batches):
            if seen and not math.isnan(total := sum(one.size for one in seen)):
                return total
        return math.nan

    def kept(self) -> Any:
        """The batch of the update; a list of them under gradient accumulation; None if none was kept."""
        found = [one.batch for one in self.batches or self.losses if one.batch is not None]
        return found[0] if len(found) == 1 else found or None


def leading_dimension(batch: Any) -> float:
    """Count the examples of a batch.

    Args:
        batch: tensors in nested tuples, lists, dicts and dataclasses.

    Returns:
        The first dimension of the first tensor or array that has one; NaN if there is none.

    Example:
        >>> leading_dimension({"y": 3, "x": [torch.zeros(5, 2)]})
        5.0
    """
    shape = getattr(batch, "shape", None)
    if shape is not None:
        return float(shape[0]) if len(shape) else math.nan
    if isinstance(batch, Mapping):
        parts: Iterable[Any] = batch.values()
    elif isinstance(batch, list | tuple):
        parts = batch
    elif dataclasses.is_dataclass(batch):
        parts = [getattr(batch, one.name) for one in dataclasses.fields(batch)]
    else:
        return math.nan
    return next((size for size in map(leading_dimension, parts) if not math.isnan(size)), math.nan)


class Watched:
    """A loader whose batches go by the recorder: the same objects, one at a time, when the loop asks for them.

    Args:
        loader: any iterable.
        look: is shown each batch before the loop gets it.
    """

    def __init__(self, loader: Iterable[Any], look: Callable[[Any], None]) -> None:
        self._loader, self._look = loader, look

    def __iter__(self) -> Iterator[Any]:
        """The loader's own batches."""
        for batch in self._loader:
            self._look(batch)
            yield batch

    def __getattr__(self, name: str) -> Any:
        """Whatever else the loader has."""
        if name in ("_loader", "_look"):
            raise AttributeError(name)
        return getattr(self._loader, name)


class SizedWatched(Watched):
    """The same for a loader that knows its length."""

    def __len__(self) -> int:
        """Batches, as the loader says."""
        return len(self._loader)  # type: ignore[arg-type]  # made only for loaders with a length
