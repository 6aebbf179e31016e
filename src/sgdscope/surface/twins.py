"""Private models for linearizations, and what was learnt once about the products of a surface."""

from __future__ import annotations

import copy
from typing import Any

import torch.distributed as dist

from sgdscope.errors import ArgumentError
from sgdscope.surface.data import Batches, leading, map_tensors
from sgdscope.surface.private import Mode, PrivateModel
from sgdscope.surface.products import CUDA_GRAPH_MEMORY, GRAPH_MEMORY, Linearized, graph_bytes
from sgdscope.surface.proof import prove_products

PROBE = 8  # examples on which the bytes of a graph are counted


class Twins:
    """Copies of a private model, one for each linearization that is open; a returned one is used again.

    Args:
        net: the private model of the surface.
        first: a small batch, for the proof and for counting bytes.
        cut: whether batches were cut by the surface, so that they may be cut otherwise.
    """

    def __init__(self, net: PrivateModel, first: Any, *, cut: bool) -> None:
        self._net, self._first, self.cut = net, first, cut
        self._spare: list[PrivateModel] = []
        self._way: str | None = None
        self._bytes: float | None = None
        self.proof = "not yet"

    def take(self) -> PrivateModel:
        """A private model that nobody else uses."""
        return self._spare.pop() if self._spare else copy.deepcopy(self._net)

    def recut(self, batches: Batches, size: int, mixes: bool) -> Batches:
        """Cut the data into other chunks.

        Args:
            batches: as the surface cut them.
            size: examples a chunk.
            mixes: whether the examples of a batch influence each other.

        Returns:
            The chunks, in the same order of examples.

        Raises:
            ArgumentError: the batches were given, or their examples mix, or size is below 1.
        """
        if size < 1 or not self.cut or (mixes and self._net.normalised):
            why = "at least 1" if size < 1 else "None: the batches were given as they are, or mix their examples"
            raise ArgumentError(f"chunk: expected {why}, got {size}")
        return batches.recut(size)

    def linearize(
        self,
        net: PrivateModel,
        batches: Batches,
        total: float,
        *,
        decay: float,
        group: dist.ProcessGroup | None,
        memory: int | None,
        mode: Mode,
    ) -> Linearized:
        """Linearize at the point at which a twin stands.

        Args:
            net: from `take`, placed.
            batches: the chunks.
            total: sum of all weights.
            decay: weight decay.
            group: process group, or None.
            memory: bytes of graphs that may be kept; None for the default.
            mode: of the normalisation layers.

        Returns:
            The linearization.
        """
        if self._way is None:
            self._way, self.proof = prove_products(self._net, self._first, leading(self._first), mode)
        if self._bytes is None and self._way == "graph":
            size = leading(self._first)
            few = self._first if size is None else map_tensors(lambda t: t[:PROBE], self._first)
            self._bytes = graph_bytes(net, few, leading(few)) / (leading(few) or 1)
        limit = memory or (CUDA_GRAPH_MEMORY if net.device.type == "cuda" else GRAPH_MEMORY)
        return Linearized(
            net,
            batches,
            total,
            decay=decay,
            group=group,
            room=limit / max(self._bytes or 1.0, 1.0),
            differences=self._way == "differences",
            release=self._spare.append,
        )
