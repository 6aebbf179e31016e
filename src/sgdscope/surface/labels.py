"""The same surface with labels that the model draws itself, for the true Fisher matrix of a classifier."""

from __future__ import annotations

import copy
from typing import Any, Self

import torch
from torch import Tensor
from torch.nn import functional

from sgdscope.errors import SurfaceError
from sgdscope.surface.data import Batches, arrays, map_tensors
from sgdscope.surface.points import Buffers, Points
from sgdscope.surface.private import PrivateModel, undisturbed

NO_LOGITS = (
    "loss: the output of the model is not known to be logits: expected the cross-entropy of what the model returns [n, classes] "
    "with one integer label an example, as in torch.nn.functional.cross_entropy(model(x), y); labels cannot be drawn"
)


def _labels(batch: Any, size: int) -> list[int]:
    """Which leaves could be the labels: integers, one an example."""
    leaves = list(arrays(batch))
    return [i for i, t in enumerate(leaves) if isinstance(t, Tensor) and t.shape == (size,) and t.dtype == torch.int64]


def _with(batch: Any, place: int, labels: Tensor) -> Any:
    leaves = list(arrays(batch))
    following = iter([labels if i == place else leaf for i, leaf in enumerate(leaves)])
    return map_tensors(lambda _: next(following), batch)  # type: ignore[arg-type,return-value]  # only tensors are replaced


def _logits(net: PrivateModel, batch: Any, size: int) -> tuple[Tensor, float]:
    """What the model returned, and the mean loss."""
    seen: list[Any] = []
    handle = net.module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    try:
        mean = float(net.call(batch, size).double().mean())
    finally:
        handle.remove()
    fine = len(seen) == 1 and isinstance(seen[0], Tensor) and seen[0].ndim == 2 and len(seen[0]) == size
    if not fine or not seen[0].is_floating_point():
        raise SurfaceError(NO_LOGITS)
    return seen[0], mean


def relabel(net: PrivateModel, batch: Any, size: int, generator: torch.Generator) -> Any:
    """Draw the label of each example from the softmax of the model's output, once the loss is proved to be its cross-entropy.

    The loss of the batch, with the labels given and with those drawn, has to equal that cross-entropy to 1e-5.

    Args:
        net: the private model, placed and in its mode.
        batch: a batch.
        size: its number of examples.
        generator: on the CPU; advanced.

    Returns:
        The batch with the drawn labels.

    Raises:
        SurfaceError: the loss is not the cross-entropy of the output with integer labels.
    """
    logits, mean = _logits(net, batch, size)
    leaves, wide = list(arrays(batch)), logits.double()
    for place in _labels(batch, size):
        given: Any = leaves[place]
        if int(given.min()) < 0 or int(given.max()) >= logits.shape[1]:
            continue
        drawn = torch.multinomial(wide.softmax(1).cpu(), 1, generator=generator)[:, 0].to(given.device)
        other = _with(batch, place, drawn)
        pairs = ((mean, given), (_logits(net, other, size)[1], drawn))
        gaps = [abs(value - float(functional.cross_entropy(wide, y))) / max(abs(value), 1e-3) for value, y in pairs]
        if max(gaps) <= 1e-5:
            return other
    raise SurfaceError(NO_LOGITS)


class SampledLabels(Points):
    """The part of `LossSurface` that draws labels."""

    _hash: str | None

    def relabelled(self, theta: Tensor, generator: torch.Generator, buffers: Buffers | None = None) -> Self:
        """The same surface with each label drawn from the model's own prediction at theta.

        The gradients of its examples at theta have the true Fisher matrix as second moment: y ~ softmax(model(x)),
        F = E_x E_y grad log p(y|x) grad log p(y|x)'.

        Args:
            theta: [P].
            generator: draws the labels; advanced.
            buffers: as in `value`.

        Returns:
            The surface; it shares the private copy.

        Raises:
            SurfaceError: the loss is not the cross-entropy of the model's output with integer labels.

        Cost: two forward passes over the data.
        """
        point, state = self._vector(theta, "theta"), self._state(buffers)
        with undisturbed(self._net.device, grad=False):
            self._place(point, state)
            parts = zip(self._batches.items, self._batches.sizes, strict=True)
            items = [relabel(self._net, item, size or 0, generator) for item, size in parts]
        other = copy.copy(self)
        other._batches, other._hash = Batches(tuple(items), self._batches.sizes, self._batches.weights), None
        return other
