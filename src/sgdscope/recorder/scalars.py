"""The cheap scalars of every update: a few passes over theta and the gradient, kept on the device and drained in blocks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sgdscope.vector import Layout

ROWS = 64  # a block
CHUNK = 65536  # elements that are worked on at a time: four such vectors fit the cache of one core (2 MB)
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


class Scalars:
    """Squares and products of the vectors of consecutive updates.

    With d_t = theta_{t+1} - theta_t and e_t = theta_t - theta_0, a row of the table holds, summed over theta in chunks
    (within a chunk in the dtype of the snapshots, over the chunks in float64),
    d_t.d_t, g_t.d_t, (d_t + lr g_t).(d_t + lr g_t), e_t.e_t, g_t.g_t, g_{t-1}.g_t, the loss and `found_inf`.

    Cost of an update: each of theta_{t+1}, theta_t, theta_0, g_t and g_{t+1} is read once and one copy of theta is
    written; no synchronisation with the device. Memory: 3 vectors, and 2 more where gradients are copied.

    Args:
        params: that make up theta, in order.
        layout: of theta.
        groups: for each parameter the number of its parameter group, -1 if no optimizer has it.
    """

    def __init__(self, params: Sequence[nn.Parameter], layout: Layout, groups: Sequence[int]) -> None:
        self.params, self.layout = list(params), layout
        self.device, self.dtype = params[0].device, layout.storage_dtype
        size, self._chunk = layout.size, CHUNK if self.device.type == "cpu" else max(CHUNK, layout.size)
        self.theta, self._past = self._vector(size), self._vector(size)
        self.origin = self._vector(size)
        self._now, self._before = self._vector(size), self._vector(size)
        self._held: list[_Held | None] = [None] * len(params)
        self._held_before: list[_Held | None] = [None] * len(params)
        self._empty, self._empty_before = [True] * len(params), [True] * len(params)
        self._fresh: list[bool | None] = [None] * len(params)  # None: not known yet; False: for good
        self._seen: list[tuple[Tensor, int] | None] = [None] * len(params)
        self._lost = False
        wide = torch.float32 if self.device.type == "mps" else torch.float64
        self.table = torch.full((ROWS + 1, COLUMNS), float("nan"), dtype=wide, device=self.device)
        self.regroup(groups)

    def _vector(self, size: int) -> Tensor:
        return torch.empty(size, dtype=self.dtype, device=self.device)

    def regroup(self, groups: Sequence[int]) -> None:
        """Cut theta into pieces that lie in one parameter group.

        Args:
            groups: for each parameter its number.
        """
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
        self.theta, self._past = self._past, self.theta
        views = self.layout.unpack(self.theta).values()
        for view, parameter in zip(views, self.params, strict=True):
            view.copy_(parameter.detach())

    def start_gradient(self) -> None:
        """Make the gradient that was taken the gradient before; the new one is zero until it is taken."""
        self._now, self._before = self._before, self._now
        self._held_before, self._held = self._held, [None] * len(self.params)
        self._empty_before, self._empty = self._empty, [True] * len(self.params)

    def take_gradient(self, indices: Sequence[int], scale: Tensor | None = None) -> None:
        """Hold the gradients of some parameters as they are now; None counts as zero.

        Args:
            indices: of the parameters.
            scale: the gradients are divided by it.
        """
        for index in indices:
            grad = self.params[index].grad
            where = self.layout.slices[index]
            self._held[index], self._empty[index] = None, grad is None
            if grad is None:
                if not self._large[index]:
                    self._now[where].zero_()
                continue
            if self._large[index] and scale is None and self._is_fresh(index, grad):
                self._held[index] = _Held(grad, grad._version, grad.detach().view(-1))
                continue
            view = self._now[where]
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

    def measure(self, *, finish: int | None, opened: int | None, lrs: Sequence[float], gradient: int | None) -> None:
        """Fill in what can be known now, in one pass over the pieces.

        Args:
            finish: row of the update that led to `theta`, or None.
            opened: row of the update that starts at `theta`, or None.
            lrs: learning rate of each group when that update was made.
            gradient: row whose gradient was taken, or None.
        """
        self._partial.zero_()
        self._lost = any(h is not None and not h.intact() for h in self._held_before)
        for number, piece in enumerate(self._pieces):
            cells = [row[number] for row in self._cells]
            before = self._piece_of(piece, self._before, self._held_before, self._empty_before)
            if finish is not None:
                self._finish(piece, cells, before, lrs)
            if opened is not None:
                work = self._work[: piece.where.stop - piece.where.start]
                torch.sub(self.theta[piece.where], self.origin[piece.where], out=work)
                torch.dot(work, work, out=cells[DISTANCE])
            if gradient is not None:
                now = self._piece_of(piece, self._now, self._held, self._empty)
                if now is not None:
                    torch.dot(now, now, out=cells[GRADIENT])
                    if before is not None:
                        torch.dot(now, before, out=cells[CONSECUTIVE])
        total = self._partial.sum(1, dtype=self.table.dtype)
        for row, columns in ((finish, slice(0, 3)), (opened, slice(3, 4)), (gradient, slice(4, 6))):
            if row is not None:
                self.table[row, columns] = total[columns]
        if self._lost:
            self._forget(finish, gradient)

    def _finish(self, piece: _Piece, cells: list[Tensor], before: Tensor | None, lrs: Sequence[float]) -> None:
        work = self._work[: piece.where.stop - piece.where.start]
        torch.sub(self.theta[piece.where], self._past[piece.where], out=work)
        torch.dot(work, work, out=cells[UPDATE])
        if before is not None:
            torch.dot(work, before, out=cells[GRADIENT_UPDATE])
            if piece.group >= 0:
                work.add_(before, alpha=lrs[piece.group])
        torch.dot(work, work, out=cells[RESIDUAL])

    def _piece_of(self, piece: _Piece, copies: Tensor, held: list[_Held | None], empty: list[bool]) -> Tensor | None:
        if piece.inside is None:
            return copies[piece.where]
        index = piece.params[0]
        if (reference := held[index]) is not None:
            return reference.flat[piece.inside]
        return None if empty[index] else copies[piece.where]

    def _forget(self, finish: int | None, gradient: int | None) -> None:
        """A held gradient was overwritten in place: what needed it is NaN, and from now on it is copied."""
        for index, held in enumerate(self._held_before):
            if held is not None and not held.intact():
                self._fresh[index] = False
        if finish is not None:
            self.table[finish, GRADIENT_UPDATE : RESIDUAL + 1] = float("nan")
        if gradient is not None:
            self.table[gradient, CONSECUTIVE] = float("nan")

    def has_gradient(self) -> bool:
        """Whether any parameter had a gradient when it was taken."""
        return not all(self._empty)

    def drain(self, rows: int) -> NDArray[np.float64]:
        """Bring complete rows to the CPU and forget them.

        Args:
            rows: how many.

        Returns:
            [rows, columns], a copy.
        """
        block = self.table[:rows].to("cpu", torch.float64, copy=True).numpy()
        self.table[: ROWS + 1 - rows] = self.table[rows:].clone()
        self.table[ROWS + 1 - rows :] = float("nan")
        return block
