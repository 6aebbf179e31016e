"""The loss of each example: from the loss itself, by vmap, or one by one."""

from __future__ import annotations

import warnings
from typing import Any, Literal

import torch
from torch import Tensor

from sgdscope.surface.data import Batches, arrays, map_tensors
from sgdscope.surface.private import PrivateModel

Way = Literal["loss", "vmap", "loop", "batches"]
LOOP_LIMIT = 4096  # examples: above it, one forward pass an example costs more than standard errors are worth


def losses_of(net: PrivateModel, batch: Any, size: int | None, way: Way) -> Tensor:
    """Evaluate one batch at the point at which the model stands.

    Args:
        net: the private model.
        batch: one batch.
        size: its number of examples.
        way: how to part the batch into examples; ``"batches"`` does not.

    Returns:
        float64, [B] losses of examples, or [1] the mean of the batch.
    """
    if way == "vmap":
        return _by_vmap(net, batch).double()
    if way == "loop":
        return torch.stack([net.call(_row(batch, i), 1).reshape(()) for i in range(size or 0)]).double()
    result = net.call(batch, size).double()
    return result if result.ndim == 1 and way == "loss" else result.mean().reshape(1)


def _row(batch: Any, i: int) -> Any:
    return map_tensors(lambda tensor: tensor[i : i + 1], batch)


def _by_vmap(net: PrivateModel, batch: Any) -> Tensor:
    def one(*rows: Tensor) -> Tensor:
        rest = iter(rows)
        return net.call(map_tensors(lambda _: next(rest).unsqueeze(0), batch), 1).reshape(())

    leaves = [tensor for tensor in arrays(batch) if isinstance(tensor, Tensor)]
    result: Tensor = torch.vmap(one, randomness="error")(*leaves)
    return result


def decide(net: PrivateModel, batches: Batches, *, mixes: bool) -> Way:
    """Find the cheapest way to the loss of each example that reproduces the mean of every batch, to rounding.

    The model stands at a generic point. vmap is refused where torch would fall back to a loop with a warning.
    Cost: one plain pass over the data and one of each way that is tried.

    Args:
        net: the private model, placed and in its mode.
        batches: the data.
        mixes: whether the examples of a batch influence each other (BatchNorm on batch statistics).

    Returns:
        ``"loss"`` (1-D loss), ``"vmap"``, ``"loop"`` (at most 4096 examples) or ``"batches"`` (means only).
    """
    plain = [net.call(item, size) for item, size in zip(batches.items, batches.sizes, strict=True)]
    if all(result.ndim == 1 for result in plain):
        return "loss"
    examples = batches.examples
    if mixes or examples is None:
        return "batches"
    ways: list[Way] = ["vmap", "loop"] if examples <= LOOP_LIMIT else ["vmap"]
    return next((way for way in ways if _reproduces(net, batches, plain, way)), "batches")


def _reproduces(net: PrivateModel, batches: Batches, plain: list[Tensor], way: Way) -> bool:
    """Whether the means of the parted losses equal the losses of the batches to rounding."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            for item, size, whole in zip(batches.items, batches.sizes, plain, strict=True):
                losses = losses_of(net, item, size, way)
                rounding = min(2000 * torch.finfo(whole.dtype).eps, 1e-2)
                scale = float(losses.abs().mean())
                if not abs(float(losses.mean()) - float(whole.double().mean())) <= rounding * scale:
                    return False
    except Exception:  # any operation of the user's model may lack a batching rule, or refuse a single example
        return False
    return True
