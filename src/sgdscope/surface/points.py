"""Where a surface stands: its private model, its data, and the points and buffers that it is given, checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.errors import ArgumentError, DataError
from sgdscope.surface.construction import BatchNorm
from sgdscope.surface.data import Batches, map_tensors
from sgdscope.surface.private import Mode, PrivateModel
from sgdscope.surface.twins import Twins
from sgdscope.vector import Layout, whole_indices

Buffers = Mapping[str, Tensor]


class Points:
    """What every measurement on a `LossSurface` starts from; not constructed by hand.

    Attributes:
        layout: names and shapes of theta.
    """

    layout: Layout
    _net: PrivateModel
    _twins: Twins
    _batches: Batches
    _batchnorm: BatchNorm
    _dtype: torch.dtype | None
    _decay: float
    _group: dist.ProcessGroup | None
    _total: float
    _examples: int | None

    @property
    def _mode(self) -> Mode:
        return "batch" if self._batchnorm == "batch" else "eval"

    def _adopt(self, batch: Any) -> Any:
        """Copy a batch to the surface's device and, floating point parts, to its dtype."""

        def move(tensor: Tensor) -> Tensor:
            dtype = self._dtype if self._dtype is not None and tensor.is_floating_point() else tensor.dtype
            return tensor.detach().to(self._net.device, dtype, copy=True)

        return map_tensors(move, batch)

    def _sum(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add up over the process group."""
        if self._group is None:
            return values
        total = torch.from_numpy(values).to(self._net.device)
        dist.all_reduce(total, group=self._group)
        return np.asarray(total.cpu())

    def _gather(self, value: Any) -> list[Any]:
        """The value of every process, in their order."""
        if self._group is None:
            return [value]
        values: list[Any] = [None] * dist.get_world_size(self._group)
        dist.all_gather_object(values, value, group=self._group)
        return values

    def _count(self) -> int | None:
        counts = self._gather(self._batches.examples)
        return sum(counts) if None not in counts else None

    def _vector(self, values: Tensor, argument: str) -> Tensor:
        """A vector of the user's, checked, in float64 on the surface's device."""
        if not isinstance(values, Tensor) or not values.is_floating_point():
            kind = values.dtype if isinstance(values, Tensor) else type(values).__name__
            raise ArgumentError(f"{argument}: expected a floating point tensor of shape ({self.layout.size},), got {kind}")
        if values.shape != (self.layout.size,):
            raise ArgumentError(
                f"{argument}: expected shape ({self.layout.size},), {len(self.layout.names)} parameters in one vector, "
                f"got {tuple(values.shape)}"
            )
        return values.detach().to(self._net.device, torch.float64)

    def _state(self, buffers: Buffers | None) -> Buffers:
        """The buffers of a point, checked; those of the model at construction where none are given."""
        if not buffers:
            return self._net.start_buffers
        self._net.buffer_layout.check({name: tuple(b.shape) for name, b in buffers.items()}, "buffers")
        return buffers

    def _place(self, point: Tensor, buffers: Buffers) -> None:
        """Put the private model at a point, in its mode."""
        self._net.write(point)
        self._net.write_buffers(buffers)
        if self._batchnorm == "recalibrate" and self._net.normalised:
            self._net.recalibrate(self._batches, self._total, self._group)
        self._net.set_mode(self._mode)

    def _penalty(self, point: Tensor) -> float:
        """(weight_decay / 2) |theta|^2, theta rounded as the parameters are."""
        if self._decay == 0:
            return 0.0
        return 0.5 * self._decay * float(point.to(self.layout.storage_dtype).double().square().sum())

    def _between(self, pair: tuple[Buffers, Buffers] | None, alpha: float) -> Buffers:
        """The buffers at alpha on the segment."""
        if pair is None:
            return self._net.start_buffers
        share = min(max(alpha, 0.0), 1.0)
        return {
            name: torch.lerp(pair[0][name].double(), pair[1][name].double(), share)
            if pair[0][name].is_floating_point()
            else pair[int(share >= 0.5)][name]
            for name in self._net.buffer_layout.names
        }

    def _subset(self, indices: Sequence[int] | Tensor, at_most: int) -> Batches:
        if self._examples is None or self._group is not None or not self._twins.cut:
            raise DataError("data: they were given in batches; pass a Dataset or tensors, so that single examples can be taken")
        return self._batches.recut(at_most, whole_indices(indices, self._examples))
