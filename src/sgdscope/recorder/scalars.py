"""The cheap scalars of every update: a few passes over theta and the gradient, kept on the device and drained in blocks."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sgdscope.errors import RecorderError
from sgdscope.vector import Layout

ROWS = 64  # a block
CHUNK = 131072  # elements that are worked on at a time: four such vectors fit the cache of one core (2 MB)
UPDATE, GRADIENT_UPDATE, RESIDUAL, DISTANCE, GRADIENT, CONSECUTIVE, LOSS, FOUND_INF = range(8)
COLUMNS = 8


@dataclass
class _Piece:
    """A range of theta in one parameter group: a part of one large parameter, or several small ones."""

    where: slice
    group: int
    params: list[int]
    inside: slice | None  # of the flattened large parameter; None for small ones, whose gradients are always copied


@dataclass
class _Held:
    """The gradient of a large parameter, held without a copy as long as the loop makes a fresh tensor every update."""

    tensor: Tensor
    version: int
    flat: Tensor = field(repr=False)

    def intact(self) -> bool:
        return self.tensor._version == self.version


@dataclass
class _Point:
    """A copy of theta, with a view of each parameter; one that was given away is not written to again."""

    theta: Tensor
    views: list[Tensor]
    given: bool = False


@dataclass(frozen=True)
class _Gradient:
    """The gradient of one update: copies, references to those of large parameters, and which parameters had none."""

    copies: Tensor
    held: list[_Held | None]
    empty: list[bool]

    @classmethod
    def zero(cls, copies: Tensor, count: int) -> _Gradient:
        return cls(copies, [None] * count, [True] * count)

    def of(self, piece: _Piece) -> Tensor | None:
        """The gradient of a piece; None where it is zero."""
        if piece.inside is None:
            return self.copies[piece.where]
        index = piece.params[0]
        if (reference := self.held[index]) is not None:
            return reference.flat[piece.inside]
        return None if self.empty[index] else self.copies[piece.where]

    def overwritten(self) -> list[int]:
        """The parameters whose gradient was held and is no longer what it was."""
        return [index for index, one in enumerate(self.held) if one is not None and not one.intact()]


@dataclass(frozen=True)
class _Pass:
    """One pass over the pieces: what it reads, and the rows that it fills in."""

    theta: Tensor
    past: Tensor
    now: _Gradient
    before: _Gradient
    finish: int | None
    opened: int | None
    gradient: int | None
    lrs: Sequence[float]
    residual: bool


def works_beside(device: torch.device, size: int) -> bool:
    """Whether the passes run in a thread of their own: on the CPU, if a core is left and theta has more than one chunk.

    Args:
        device: of theta.
        size: P.

    Returns:
        False where the passes run in the loop.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return device.type == "cpu" and size > CHUNK and torch.get_num_threads() < cores


class Scalars:
    """Squares and products of the vectors of consecutive updates.

    With d_t = theta_{t+1} - theta_t and e_t = theta_t - theta_0, a row of the table holds, summed over theta in chunks
    (within a chunk in the dtype of the snapshots, over the chunks in float64),
    d_t.d_t, g_t.d_t, (d_t + lr g_t).(d_t + lr g_t), e_t.e_t, g_t.g_t, g_{t-1}.g_t, the loss and `found_inf`.

    The loop copies theta and holds the gradient. The pass over them runs in a thread of its own, if a core is left for
    it (`works_beside`); it may be one update late, and its numbers are the same to the last bit. A gradient that was
    held and has changed when its pass is concluded, at a fixed place of the loop, leaves NaN.

    Cost of an update: each of theta_{t+1}, theta_t, theta_0, g_t and g_{t+1} is read once and one copy of theta is
    written; no synchronisation with the device. Memory: 3 vectors, and 2 more where gradients are copied; one more of
    each where the passes run beside the loop.

    Args:
        params: that make up theta, in order.
        layout: of theta.
        groups: for each parameter the number of its parameter group, -1 if no optimizer has it.
    """

    def __init__(self, params: Sequence[nn.Parameter], layout: Layout, groups: Sequence[int]) -> None:
        self.params, self.layout = list(params), layout
        self.device, self.dtype = params[0].device, layout.storage_dtype
        size, self._chunk = layout.size, CHUNK if self.device.type == "cpu" else max(CHUNK, layout.size)
        beside = works_beside(self.device, size)
        self._thread = ThreadPoolExecutor(1, "sgdscope-scalars") if beside else None
        self._running: deque[tuple[_Pass, Future[None]]] = deque()
        self._points = deque(self._point() for _ in range(2 + beside))  # the newest first
        self._gradients = deque(_Gradient.zero(self._vector(size), len(params)) for _ in range(2 + beside))
        self.origin = self._vector(size)
        self._fresh: list[bool | None] = [None] * len(params)  # None: not known yet; False: for good
        self._seen: list[tuple[Tensor, int] | None] = [None] * len(params)
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        self.table = torch.full((ROWS + 1, COLUMNS), float("nan"), dtype=wide, device=self.device)
        self.regroup(groups)

    def _vector(self, size: int) -> Tensor:
        return torch.empty(size, dtype=self.dtype, device=self.device)

    def _point(self) -> _Point:
        theta = self._vector(self.layout.size)
        return _Point(theta, list(self.layout.unpack(theta).values()))

    @property
    def theta(self) -> Tensor:
        """The point that was read last; not to be kept."""
        return self._points[0].theta

    def give_theta(self) -> Tensor:
        """The point that was read last, to keep and not to write to; a new vector takes its place later."""
        self._points[0].given = True
        return self._points[0].theta

    def regroup(self, groups: Sequence[int]) -> None:
        """Cut theta into pieces that lie in one parameter group.

        Args:
            groups: for each parameter its number.
        """
        self._wait()
        self._pieces: list[_Piece] = []
        self._large = [False] * len(self.params)
        for index, (where, group) in enumerate(zip(self.layout.slices, groups, strict=True)):
            size = where.stop - where.start
            last = self._pieces[-1] if self._pieces else None
            if size > self._chunk:
                self._large[index] = True
                for start in range(0, size, self._chunk):
                    stop = min(start + self._chunk, size)
                    self._pieces.append(
                        _Piece(slice(where.start + start, where.start + stop), group, [index], slice(start, stop))
                    )
            elif last and last.inside is None and last.group == group and where.stop - last.where.start <= self._chunk:
                last.where = slice(last.where.start, where.stop)
                last.params.append(index)
            else:
                self._pieces.append(_Piece(where, group, [index], None))
        longest = max((p.where.stop - p.where.start for p in self._pieces), default=0)
        self._work = self._vector(longest)
        self._partial = torch.zeros(6, len(self._pieces), dtype=self.dtype, device=self.device)
        self._cells = [list(row) for row in self._partial]

    def read_point(self) -> None:
        """Copy the parameters into `theta`; what it held becomes the point before."""
        self._wait(late=1)
        oldest = self._points.pop()
        self._points.appendleft(self._point() if oldest.given else oldest)
        for view, parameter in zip(self._points[0].views, self.params, strict=True):
            view.copy_(parameter.detach())

    def start_gradient(self) -> None:
        """Make the gradient that was taken the gradient before; the new one is zero until it is taken."""
        self._wait(late=1)
        self._gradients.appendleft(_Gradient.zero(self._gradients.pop().copies, len(self.params)))

    def take_gradient(self, indices: Sequence[int], scale: Tensor | None = None) -> None:
        """Hold the gradients of some parameters as they are now; None counts as zero.

        Args:
            indices: of the parameters.
            scale: the gradients are divided by it.
        """
        now = self._gradients[0]
        for index in indices:
            grad = self.params[index].grad
            where = self.layout.slices[index]
            now.held[index], now.empty[index] = None, grad is None
            if grad is None:
                if not self._large[index]:
                    now.copies[where].zero_()
                continue
            if self._large[index] and scale is None and self._is_fresh(index, grad):
                now.held[index] = _Held(grad, grad._version, grad.detach().view(-1))
                continue
            view = now.copies[where]
            view.copy_((grad.detach().to_dense() if grad.is_sparse else grad.detach()).reshape(-1))
            if scale is not None:
                view.div_(scale.to(view.device))

    def _is_fresh(self, index: int, grad: Tensor) -> bool:
        """Whether the loop makes a new, untouched gradient every update; decided on the first two updates."""
        fits = not grad.is_sparse and grad.dtype == self.dtype and grad.device == self.device and grad.is_contiguous()
        if self._fresh[index] is None and fits:
            seen, self._seen[index] = self._seen[index], (grad, grad._version)
            if seen is not None:
                self._fresh[index] = seen[0] is not grad and seen[0]._version == seen[1]
                self._seen[index] = None
        return fits and bool(self._fresh[index])

    def measure(
        self, *, finish: int | None, opened: int | None, lrs: Sequence[float], gradient: int | None, residual: bool = True
    ) -> None:
        """Fill in what can be known now, in one pass over the pieces.

        Args:
            finish: row of the update that led to `theta`, or None.
            opened: row of the update that starts at `theta`, or None.
            lrs: learning rate of each group when that update was made.
            gradient: row whose gradient was taken, or None.
            residual: whether the row to finish gets (d + lr g).(d + lr g); NaN if not.

        Raises:
            RecorderError: an earlier pass failed.
        """
        points, gradients = [point.theta for point in self._points], self._gradients
        one = _Pass(points[0], points[1], gradients[0], gradients[1], finish, opened, gradient, lrs, residual)
        if self._thread is None:
            self._run(one)
            self._conclude(one)
        else:
            self._running.append((one, self._thread.submit(self._run, one)))

    @torch.no_grad()
    def _run(self, one: _Pass) -> None:
        self._partial.zero_()
        for number, piece in enumerate(self._pieces):
            cells = [row[number] for row in self._cells]
            before = one.before.of(piece)
            if one.finish is not None:
                self._finish(piece, cells, before, one)
            if one.opened is not None:
                work = self._work[: piece.where.stop - piece.where.start]
                torch.sub(one.theta[piece.where], self.origin[piece.where], out=work)
                torch.dot(work, work, out=cells[DISTANCE])
            if one.gradient is not None and (now := one.now.of(piece)) is not None:
                torch.dot(now, now, out=cells[GRADIENT])
                if before is not None:
                    torch.dot(now, before, out=cells[CONSECUTIVE])
        total = self._partial.sum(1, dtype=self.table.dtype)
        last = RESIDUAL + one.residual
        for row, columns in ((one.finish, slice(0, last)), (one.opened, slice(3, 4)), (one.gradient, slice(4, 6))):
            if row is not None:
                self.table[row, columns] = total[columns]

    def _finish(self, piece: _Piece, cells: list[Tensor], before: Tensor | None, one: _Pass) -> None:
        work = self._work[: piece.where.stop - piece.where.start]
        torch.sub(one.theta[piece.where], one.past[piece.where], out=work)
        torch.dot(work, work, out=cells[UPDATE])
        if before is not None:
            torch.dot(work, before, out=cells[GRADIENT_UPDATE])
        if not one.residual:
            return
        if before is not None and piece.group >= 0:
            work.add_(before, alpha=one.lrs[piece.group])
        torch.dot(work, work, out=cells[RESIDUAL])

    def _wait(self, late: int = 0) -> None:
        """Wait for all passes but so many, and conclude them.

        Args:
            late: how many may go on.

        Raises:
            RecorderError: a pass failed; the cause is its own exception.
        """
        while len(self._running) > late:
            one, future = self._running[0]
            if (error := future.exception()) is not None:
                raise RecorderError(f"scalars: their pass failed, the run is stopped: {error}") from error
            self._conclude(one)
            self._running.popleft()

    def _conclude(self, one: _Pass) -> None:
        """A held gradient was overwritten in place: what needed it is NaN, and from now on it is copied."""
        before, now = one.before.overwritten(), one.now.overwritten()
        for index in (*before, *now):
            self._fresh[index] = False
        if before and one.finish is not None:
            self.table[one.finish, GRADIENT_UPDATE : RESIDUAL + 1] = float("nan")
        if one.gradient is not None and (before or now):
            self.table[one.gradient, GRADIENT if now else CONSECUTIVE : CONSECUTIVE + 1] = float("nan")

    def has_gradient(self) -> bool:
        """Whether any parameter had a gradient when it was taken."""
        return not all(self._gradients[0].empty)

    def drain(self, rows: int) -> NDArray[np.float64]:
        """Bring complete rows to the CPU and forget them.

        Args:
            rows: how many.

        Returns:
            [rows, columns], a copy.

        Raises:
            RecorderError: a pass failed.
        """
        self._wait()
        block = self.table[:rows].to("cpu", torch.float64, copy=True).numpy()
        self.table[: ROWS + 1 - rows] = self.table[rows:].clone()
        self.table[ROWS + 1 - rows :] = float("nan")
        return block

    def close(self) -> None:
        """End the thread."""
        if self._thread is not None:
            self._thread.shutdown()
