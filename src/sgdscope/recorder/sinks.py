"""The live sinks of a recorder: fed in small lots, so that guarding the random states costs little an update."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgdscope.recorder.quiet import same_randomness, unseen
from sgdscope.records import Header, Iterates, Record, Sink, Snapshot, StepBlock

MOST_ITEMS = 16  # snapshots and records that wait for the sinks
MOST_BYTES = 16 * 10**6


class LiveSinks:
    """Hands on what the recorder makes; scalars first, then the points and batches that waited, each in their order.

    Args:
        sinks: of the user's.
    """

    def __init__(self, sinks: Sequence[Sink]) -> None:
        self.sinks, self._device = list(sinks), torch.device("cpu")
        self._takers = [sink for sink in self.sinks if isinstance(sink, Iterates)]
        self._waiting: list[Snapshot | Record] = []
        self._bytes = 0

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.sinks)

    @property
    def due(self) -> bool:
        """Whether so much waits that the sinks should be fed."""
        return len(self._waiting) >= MOST_ITEMS or self._bytes >= MOST_BYTES

    @contextmanager
    def _guarded(self) -> Generator[None]:
        """Sinks may take gradients; the random states are put back after them."""
        with unseen(self._device, grad=True), same_randomness(self._device):
            yield

    def begin(self, header: Header, device: torch.device) -> None:
        """Tell the sinks what is known of the run.

        Args:
            header: of the run.
            device: whose random state is kept beside that of the CPU.
        """
        self._device = device
        if self.sinks:
            with self._guarded():
                for sink in self.sinks:
                    sink.begin(header)

    def go_on(self, store: type[Any], path: Any, start: int) -> None:
        """Give the sinks that take iterates what they kept with the run that is gone on with.

        Args:
            store: class of the store.
            path: of the run.
            start: number of the next update; what was kept of later ones is dropped.
        """
        for sink in self._takers:
            steps = [step for step in store.record_steps(path, sink.kind) if step < start]
            sink.go_on(Record(sink.kind, step, *store.read_record(path, sink.kind, step)) for step in steps)

    def iterate(self, step: int, theta: Tensor) -> Iterator[Record]:
        """Show a point to the sinks that take iterates.

        Args:
            step: its number.
            theta: [P], on its device.

        Yields:
            Records to be kept.
        """
        for sink in self._takers:
            if (record := sink.write_iterate(step, theta)) is not None:
                yield record

    def last_records(self) -> list[Record]:
        """What the sinks that take iterates have not given yet."""
        return [record for sink in self._takers if (record := sink.last_record()) is not None]

    def put(self, item: Snapshot | Record) -> None:
        """Let a point or a batch wait for the next feeding."""
        if not self.sinks:
            return
        self._waiting.append(item)
        held = item.theta.nbytes + item.buffers.nbytes if isinstance(item, Snapshot) else 0
        self._bytes += held or sum(np.asarray(a).nbytes for a in getattr(item, "arrays", {}).values())

    def feed(self, block: StepBlock | None = None) -> None:
        """Hand on a block of scalars and all that waits.

        Args:
            block: of finished updates; None if there are none.
        """
        items, self._waiting, self._bytes = self._waiting, [], 0
        if not self.sinks or (block is None and not items):
            return
        with self._guarded():
            for sink in self.sinks:
                if block is not None:
                    sink.write_steps(block)
                for item in items:
                    if isinstance(item, Snapshot):
                        sink.write_snapshot(item)
                    else:
                        sink.write_record(item)

    def flush(self) -> None:
        """Let every sink make safe what it has."""
        if self.sinks:
            with self._guarded():
                for sink in self.sinks:
                    sink.flush()

    def closing(self) -> list[Callable[[], None]]:
        """One function a sink that closes it, so that an error of one leaves the others alone."""

        def of(sink: Sink) -> Callable[[], None]:
            def close() -> None:
                with self._guarded():
                    sink.close()

            return close

        return [of(sink) for sink in self.sinks]
