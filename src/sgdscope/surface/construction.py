"""What a surface is built from: arguments in range, and batches of a size that fits the memory."""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from sgdscope.errors import ArgumentError
from sgdscope.surface.data import leading
from sgdscope.surface.private import Mode, PrivateModel

BatchNorm = Literal["eval", "batch", "recalibrate"]
CPU_MEMORY = 16 * 2**20  # bytes of activations a batch: on one core 64 examples of a small CNN and 1024 of an MLP were fastest
CUDA_MEMORY = 2**30
LARGEST_BATCH = 4096
STATISTICS_BATCH = 256  # where the batch size changes the value (BatchNorm on batch statistics)


def batch_size(net: PrivateModel, probe: Any, examples: int, memory: int | None, mode: Mode) -> int:
    """How many examples a batch takes: the activations that autograd would keep, held against the memory.

    Args:
        net: the private model.
        probe: a few examples.
        examples: how many they are.
        memory: bytes; None for the default of the device.
        mode: of the normalisation layers.

    Returns:
        A power of two.
    """
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    net.set_mode(mode)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net.call(probe, leading(probe))
    fixed = {t.untyped_storage().data_ptr() for t in (*net.module.parameters(), *net.buffers)}
    one = sum(size for place, size in kept.items() if place not in fixed) / examples
    limit = memory or (CUDA_MEMORY if net.device.type == "cuda" else CPU_MEMORY)
    size: int = 2 ** max(0, math.floor(math.log2(max(limit / max(one, 1.0), 1.0))))
    return size


def check_arguments(
    model: Any, loss: Any, batchnorm: str, dtype: torch.dtype | None, weight_decay: float, memory: int | None
) -> None:
    """Refuse what cannot be meant, before anything is copied.

    Args:
        model: as in `LossSurface`, like the others.
        loss: a callable.
        batchnorm: a mode.
        dtype: floating point, or None.
        weight_decay: >= 0.
        memory: >= 1, or None.

    Raises:
        ArgumentError: an argument is out of range or of no known kind.
    """
    if not isinstance(model, nn.Module):
        raise ArgumentError(f"model: expected a torch.nn.Module, got {type(model).__name__}")
    if not callable(loss):
        raise ArgumentError(f"loss: expected a callable loss(model, batch), got {type(loss).__name__}")
    if batchnorm not in get_args(BatchNorm):
        raise ArgumentError(f"batchnorm: expected one of {', '.join(get_args(BatchNorm))}, got {batchnorm!r}")
    if dtype is not None and not dtype.is_floating_point:
        raise ArgumentError(f"dtype: expected a real floating point dtype such as torch.float64, got {dtype}")
    if not (math.isfinite(weight_decay) and weight_decay >= 0):
        raise ArgumentError(f"weight_decay: expected a finite number >= 0, got {weight_decay}")
    if memory is not None and memory < 1:
        raise ArgumentError(f"memory: expected a positive number of bytes, got {memory}")
