"""A thread that hands what was recorded to a sink, so that the loop does not wait for the disk."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable

import numpy as np

from sgdscope.errors import RecorderError
from sgdscope.records import Record, Sink, Snapshot, StepBlock

MOST_WAITING = 64  # snapshots and records
MOST_BYTES = 256 * 10**6
PATIENCE = 3600.0  # seconds without any progress of the sink until the loop is stopped


class Writer:
    """Calls one sink from a thread of its own, in the order in which things were put.

    The queue is bounded: 64 snapshots and records, or 256 MB of them (one that is larger alone still passes). `put`
    waits while it is full, so a slow sink slows the loop and nothing is dropped. An error of the sink stops the
    writing: what comes later is discarded and `check` raises.

    Args:
        sink: is called from the thread only, once the thread runs.
        name: of the sink in messages.
        inline: call the sink at once and without a thread, for one that keeps things in memory.
    """

    def __init__(self, sink: Sink, name: str, *, inline: bool = False) -> None:
        self._sink, self._name = sink, name
        self._jobs: deque[tuple[Callable[[], None], int]] = deque()
        self._waiting = self._bytes = 0
        self._idle, self._stop = True, False
        self._change = threading.Condition()
        self._error: BaseException | None = None
        self.waited = 0  # how often the loop waited for the sink
        self._thread = None if inline else threading.Thread(target=self._run, name="sgdscope-writer", daemon=True)
        if self._thread is not None:
            self._thread.start()

    def put(self, item: StepBlock | Snapshot | Record) -> None:
        """Queue something; waits while the queue is full.

        Args:
            item: goes to the method of the sink that takes it.

        Raises:
            RecorderError: the sink failed.
        """
        if isinstance(item, StepBlock):
            self._append(lambda: self._sink.write_steps(item), 0)
        elif isinstance(item, Snapshot):
            size = item.theta.nbytes + item.buffers.nbytes
            self._append(lambda: self._sink.write_snapshot(item), size)
        else:
            self._append(lambda: self._sink.write_record(item), sum(np.asarray(a).nbytes for a in item.arrays.values()))

    def _append(self, job: Callable[[], None], size: int) -> None:
        if self._thread is None:
            self.check()
            self._do(job)
            self.check()
            return
        with self._change:
            if size and not self._room(size):
                self.waited += 1
                if not self._change.wait_for(lambda: self._error is not None or self._room(size), PATIENCE):
                    raise RecorderError(f"{self._name}: nothing was written for {PATIENCE:.0f} s; the recording is stopped")
            self.check()
            self._jobs.append((job, size))
            self._waiting += size > 0
            self._bytes += size
            self._change.notify_all()

    def _room(self, size: int) -> bool:
        return self._waiting == 0 or (self._waiting < MOST_WAITING and self._bytes + size <= MOST_BYTES)

    def check(self) -> None:
        """Raise what the sink raised.

        Raises:
            RecorderError: the sink failed; the cause is its own exception.
        """
        if self._error is not None:
            raise RecorderError(
                f"{self._name}: writing failed, the run is stopped; what was acknowledged before is kept: {self._error}"
            ) from self._error

    def flush(self) -> None:
        """Wait until everything put so far is safe in the sink.

        Raises:
            RecorderError: the sink failed.
        """
        self._append(self._sink.flush, 0)
        if self._thread is not None:
            self._wait()
        self.check()

    def close(self) -> None:
        """Write what waits, close the sink and end the thread.

        Raises:
            RecorderError: the sink failed.
        """
        with self._change:
            self._stop = True
            self._change.notify_all()
        if self._thread is not None:
            self._thread.join()
        try:
            self._sink.close()
        except Exception as error:
            self._error = self._error or error
        self.check()

    def _do(self, job: Callable[[], None]) -> None:
        try:
            if self._error is None:
                job()
        except BaseException as error:
            self._error = error

    def _wait(self) -> None:
        with self._change:
            self._change.wait_for(lambda: self._error is not None or (self._idle and not self._jobs))

    def _run(self) -> None:
        while True:
            with self._change:
                self._idle = True
                self._change.notify_all()
                self._change.wait_for(lambda: bool(self._jobs) or self._stop)
                if not self._jobs:
                    return
                job, size = self._jobs.popleft()
                self._idle = False
            self._do(job)
            del job
            with self._change:
                self._waiting -= size > 0
                self._bytes -= size
                self._change.notify_all()
