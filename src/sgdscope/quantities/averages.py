"""Running sums of every iterate of a run, in blocks: the average of the last N iterates for any N, from few vectors."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.errors import ArgumentError, NotAvailableError
from sgdscope.records import Header, Record, Snapshot, StepBlock

KIND = "averages"
FLUSH = 16  # iterates summed in their own precision before they go to float64, whose addition costs 15 times as much on a CPU


@dataclass(frozen=True)
class Block:
    """The mean of consecutive iterates theta_first..theta_last.

    Attributes:
        first: number of the first iterate.
        last: number of the last one.
        count: how many of them were seen; fewer than last - first + 1 where a run was gone on with after a gap.
        mean: [P] of those that were seen, on the CPU.
    """

    first: int
    last: int
    count: int
    mean: Tensor


def merged(one: Block, other: Block) -> Block:
    """Join two neighbouring blocks.

    Args:
        one: the earlier one.
        other: the later one.

    Returns:
        One block; its mean in the dtype of theirs.
    """
    total = one.count + other.count
    mean = (one.mean.double() * one.count + other.mean.double() * other.count) / total
    return Block(one.first, other.last, total, mean.to(one.mean.dtype))


def average(blocks: Sequence[Block], after: float, last: float) -> tuple[Tensor, float]:
    """The average of the iterates in (after, last], from blocks.

    sum_b s_b c_b m_b / sum_b s_b c_b, m_b and c_b mean and count of block b, s_b the share of its range (first - 1, last]
    that lies inside. Exact where both ends are ends of blocks; a block that is cut gives its share of its own mean.

    Args:
        blocks: ascending, not overlapping.
        after: steps, the iterate before the window.
        last: steps, the last iterate of the window, > after.

    Returns:
        The average [P] in float64, and the share of the window's iterates that were seen, 0..1.

    Raises:
        ArgumentError: the window is empty.
        NotAvailableError: no iterate in it was seen.

    Example:
        >>> blocks = [Block(1, 2, 2, torch.tensor([1.5])), Block(3, 4, 2, torch.tensor([3.5]))]
        >>> average(blocks, 1.0, 4.0)[0].tolist(), average(blocks, 0.0, 8.0)[1]
        ([2.8333333333333335], 0.5)
    """
    if not after < last:
        raise ArgumentError(f"after, last: expected a window with after < last, got ({after}, {last}]")
    total, weight = torch.zeros(0, dtype=torch.float64), 0.0
    for block in blocks:
        inside = min(last, block.last) - max(after, block.first - 1)
        if inside <= 0:
            continue
        mass = block.count * inside / (block.last - block.first + 1)
        part = block.mean.double() * mass
        total = total.add_(part) if weight else part
        weight += mass
    if not weight:
        raise NotAvailableError(
            f"no iterate of the steps {after + 1:.0f} to {last:.0f} was summed; attach Averages from the start"
        )
    return total / weight, min(1.0, weight / (last - after))


def blocks_of(records: Iterable[Record], most: int) -> list[Block]:
    """Read the blocks of a run from its records, merged to at most so many as they were when the run wrote the last one.

    Args:
        records: of kind ``"averages"``, ascending.
        most: blocks that are held.

    Returns:
        Ascending blocks; the last one may be a part of one.
    """
    averages = Averages(blocks=most)
    averages.go_on(records)
    return averages.blocks


class Averages:
    """A live sink that sums every iterate; ``Recorder(..., live=[Averages()])``.

    theta_1, theta_2, ... (those that updates lead to; not the point at which the recorder attached) are summed in blocks of
    `width` steps. When there are `blocks` of them, neighbours are merged and the width doubles, so that the whole run is
    always covered by blocks/2 to blocks of equal width: at most 2 T / blocks steps each. Finished blocks go to the store as
    records of kind ``"averages"`` and are read back when a run is gone on with; `close` keeps the unfinished one.

    Cost of an update: theta is read once and added to one vector in its own precision; every 16th time that vector is added
    to another one in float64, on the device of theta. Memory: `blocks` x P in the storage dtype on the CPU, and 12 P bytes
    on the device (16 P for float64). Disk: blocks + blocks/2 log2(T / (blocks width)) vectors.

    Args:
        blocks: the most that are held, even, at least 12.
        width: steps of a block at the start, at least 1.

    Raises:
        ArgumentError: an argument is out of range.

    Source: this project, `docs/annealing.md` (a ring of sums over blocks).
    """

    kind = KIND

    def __init__(self, *, blocks: int = 64, width: int = 8) -> None:
        for name, value, fits in (("blocks", blocks, blocks >= 12 and blocks % 2 == 0), ("width", width, width >= 1)):
            if isinstance(value, bool) or not isinstance(value, int) or not fits:
                words = "an even number of at least 12" if name == "blocks" else "an integer of at least 1"
                raise ArgumentError(f"{name}: expected {words}, got {value!r}")
        self._most, self._width = blocks, width
        self._blocks: list[Block] = []
        self._sum: Tensor | None = None
        self._inner: Tensor | None = None
        self._inside, self._added = 0, False
        self._first, self._last, self._count = -1, -1, 0

    @property
    def blocks(self) -> list[Block]:
        """The blocks so far, ascending, the unfinished one last; the means of finished ones are not copied."""
        open_block = [Block(self._first, self._last, self._count, self._mean())] if self._count else []
        return [*self._blocks, *open_block]

    # --- a sink of iterates ------------------------------------------------------------------------------------------

    def begin(self, header: Header) -> None:
        """Nothing has to be known beforehand."""

    def write_steps(self, block: StepBlock) -> None:
        """Scalars are not summed."""

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Snapshots come as iterates too."""

    def write_record(self, record: Record) -> None:
        """Records are not summed."""

    def flush(self) -> None:
        """Nothing waits."""

    def close(self) -> None:
        """Keep what there is; idempotent."""

    def write_iterate(self, step: int, theta: Tensor) -> Record | None:
        """Add theta_step.

        Args:
            step: t >= 1, ascending.
            theta: [P], read and not kept.

        Returns:
            The block that it finishes, as a record; None if it does not.
        """
        if not self._count:
            self._first = step
        elif step >= self._first + self._width:  # after a gap that reaches over the block's end
            record = self._finish()
            self._first = step
            self._add(step, theta)
            return record
        self._add(step, theta)
        return self._finish() if step == self._first + self._width - 1 else None

    def _add(self, step: int, theta: Tensor) -> None:
        if self._sum is None or self._inner is None:
            wide = torch.float32 if theta.device.type == "mps" else torch.float64
            self._sum, self._inner = torch.zeros_like(theta, dtype=wide), torch.zeros_like(theta)
        elif self._sum.device != theta.device:  # taken up from a record
            self._sum, self._inner = self._sum.to(theta.device), self._inner.to(theta.device)
        self._added = True
        if self._inside:
            self._inner.add_(theta)
        else:
            self._inner.copy_(theta)
        self._last, self._count, self._inside = step, self._count + 1, self._inside + 1
        if self._inside == FLUSH:
            self._settle()

    def _settle(self) -> None:
        if self._inside and self._sum is not None and self._inner is not None:
            self._sum.add_(self._inner)
            self._inside = 0

    def _mean(self) -> Tensor:
        self._settle()
        if self._sum is None or self._inner is None:
            return torch.zeros(0)
        return (self._sum / self._count).to("cpu", self._inner.dtype)

    def _finish(self) -> Record:
        block = Block(self._first, self._last, self._count, self._mean())
        record = Record(KIND, block.last - 1, {"mean": block.mean.numpy()}, self._meta())
        if self._sum is not None:
            self._sum.zero_()
        self._count = 0
        self._hold(block)
        return record

    def _meta(self) -> dict[str, Any]:
        return {"first": self._first, "last": self._last, "count": self._count, "blocks": self._most, "width": self._width}

    def _hold(self, block: Block) -> None:
        self._blocks.append(block)
        if len(self._blocks) == self._most:
            pairs = zip(self._blocks[::2], self._blocks[1::2], strict=True)
            self._blocks = [merged(one, other) for one, other in pairs]
            self._width *= 2

    # --- going on ----------------------------------------------------------------------------------------------------

    def last_record(self) -> Record | None:
        """The block in progress as a record, None if no iterate came since it was kept last."""
        record = self.unfinished() if self._added else None
        self._added = False
        return record

    def unfinished(self) -> Record | None:
        """The block in progress as a record, its sum in float64; None if there is none."""
        self._settle()
        if not self._count or self._sum is None:
            return None
        dtype = str(self._inner.dtype).removeprefix("torch.") if self._inner is not None else "float32"
        return Record(KIND, self._last - 1, {"sum": self._sum.cpu().numpy().copy()}, self._meta() | {"dtype": dtype})

    def go_on(self, records: Iterable[Record]) -> None:
        """Take up the blocks of a run that is gone on with, as it left them.

        Args:
            records: what `write_iterate` and `unfinished` gave, ascending; a block in progress gives way to a later record
                with the same first iterate.

        Raises:
            ArgumentError: the run was summed with other `blocks` or another `width`.
        """
        for record in records:
            meta = record.meta
            if meta["blocks"] != self._most:
                raise ArgumentError(f"blocks: the run that is gone on with has {meta['blocks']}, got {self._most}; give the same")
            if self._count and meta["first"] != self._first:
                self._finish()
            self._count = 0
            if "sum" in record.arrays:
                self.take(record.arrays, meta)
            else:
                self._width = int(meta["width"])
                mean = torch.from_numpy(np.array(record.arrays["mean"]))
                self._hold(Block(int(meta["first"]), int(meta["last"]), int(meta["count"]), mean))

    def take(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Take up a block in progress.

        Args:
            arrays: with its sum.
            meta: of its record.
        """
        self._sum = torch.from_numpy(np.array(arrays["sum"]))
        self._inner = torch.zeros(len(self._sum), dtype=getattr(torch, str(meta["dtype"])))
        self._first, self._last, self._count = int(meta["first"]), int(meta["last"]), int(meta["count"])
        self._width, self._inside = int(meta["width"]), 0
