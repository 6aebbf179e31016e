"""The gradient of each example: by vmap where the model allows it, else one by one, and weighted sums of them in one backward."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgdscope.errors import ArgumentError, SurfaceError
from sgdscope.surface.data import Batches, leading, map_tensors
from sgdscope.surface.examples import Way, decide, losses_of
from sgdscope.surface.points import Buffers, Points
from sgdscope.surface.private import PrivateModel, undisturbed
from sgdscope.surface.proof import SEED, generic_point
from sgdscope.surface.rows import blank_rows, parts_by_vmap, rows_by_loop, rows_by_vmap, squares
from sgdscope.vector import whole_indices

GradientWay = Literal["vmap", "loop"]
T = TypeVar("T")
Work = Callable[[GradientWay, Any, int], T]  # how rows are had, a batch, its size
ROW_MEMORY, CUDA_ROW_MEMORY = 2**30, 8 * 2**30  # bytes of rows that are returned whole
CHUNK_MEMORY, CUDA_CHUNK_MEMORY = 2**26, 2**30  # bytes at work on a chunk
COPIES = 3  # of a chunk's rows at one time: parameter by parameter, joined, and the one before in the caller's hands
PROBE = 8  # examples of the proof
HEAP = 2**25  # bytes of one parameter's part: glibc gives larger blocks back, and their pages are made anew at each chunk


class Parting:
    """How a batch is parted into examples, proved once on a few of them; shared by a surface and those made from it.

    1. The mean of the gradients of single examples, one backward each, is the gradient of the batch.
    2. The gradients by vmap are those of single examples; where they differ, or cannot be had, `rows` is ``"loop"``.
    3. The gradient of a weighted sum of the losses is the weighted sum of the gradients; else `losses` is ``"loop"``.

    All to 2000 times the rounding of the parameters' dtype, at a generic point.

    Args:
        net: the private model.
        first: a small batch.
    """

    def __init__(self, net: PrivateModel, first: Any) -> None:
        self._net, self._first = net, first
        self._ways: tuple[GradientWay, Way] | None = None

    def ways(self) -> tuple[GradientWay, Way]:
        """How rows and how the losses for a weighted sum are had; moves the private model at the first call.

        Returns:
            (``"vmap"`` or ``"loop"``, the way of the losses).

        Raises:
            SurfaceError: the gradient of a batch is not the mean of those of its examples.
        """
        if self._ways is None:
            self._ways = self._prove()
        return self._ways

    def _prove(self) -> tuple[GradientWay, Way]:
        net, few = self._net, map_tensors(lambda t: t[:PROBE], self._first)
        size = leading(few) or 0
        net.set_mode("eval")
        net.write(generic_point(net, 0.1, torch.Generator().manual_seed(SEED)))
        net.write_buffers(net.start_buffers)
        rows = rows_by_loop(net, few, size)
        even = torch.full((size,), 1 / size, dtype=torch.float64, device=net.device)
        if not self._agrees(weighted(net, few, size, even, None), even, rows):
            raise SurfaceError(
                "loss: the gradient of a batch is not the mean of the gradients of its examples, so single examples have none of "
                "their own (a mean over unequal numbers of tokens, or examples that influence each other); return one loss per "
                "example, or take gradients of whole batches: surface.on_batch(batch).value_and_grad(theta)"
            )
        with torch.no_grad(), sdpa_kernel(SDPBackend.MATH):
            way = decide(net, Batches.of((few,), None), mixes=False)
        uneven = torch.linspace(-0.7, 1.9, size, dtype=torch.float64, device=net.device)
        fine = way != "batches" and self._works(lambda: self._agrees(weighted(net, few, size, uneven, way), uneven, rows))
        return ("vmap" if self._works(lambda: self._same(few, size, rows)) else "loop"), (way if fine else "loop")

    def _agrees(self, got: Tensor, weights: Tensor, rows: Tensor) -> bool:
        """Whether a weighted gradient is the weighted sum of rows, to rounding."""
        scale = float((weights.abs() @ rows.double().abs()).norm())
        return float((got - weights @ rows.double()).norm()) <= self._rounding * scale

    def _same(self, few: Any, size: int, rows: Tensor) -> bool:
        gap = (rows_by_vmap(self._net, few, size) - rows).norm(dim=1)
        return bool((gap <= self._rounding * rows.norm(dim=1).max()).all())

    @property
    def _rounding(self) -> float:
        return min(2000 * max(torch.finfo(p.dtype).eps for p in self._net.parameters), 1e-2)

    @staticmethod
    def _works(check: Callable[[], bool]) -> bool:
        """False too where any operation of the user's model has no rule for vmap, or torch would loop with a warning."""
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                return check()
        except Exception:  # an operation of the user's model may lack a batching rule, or refuse a single example
            return False


def weighted(net: PrivateModel, batch: Any, size: int, weights: Tensor, way: Way | None) -> Tensor:
    """Differentiate a weighted sum of the losses of examples, in one backward pass.

    Args:
        net: as in `rows_by_loop`.
        batch: a batch.
        size: its number of examples.
        weights: [size] float64.
        way: how the loss of each example is had; None where all weights are equal: the mean of the batch does.

    Returns:
        [P] float64.
    """
    with sdpa_kernel(SDPBackend.MATH) if way == "vmap" else nullcontext():
        value = losses_of(net, batch, size, way) @ weights if way else net.call(batch, size).double().mean() * weights.sum()
    total = torch.zeros(net.layout.size, dtype=torch.float64, device=net.device)
    for where, part in zip(net.layout.slices, net.gradient(value), strict=True):
        if part is not None:
            total[where] = part.reshape(-1).to(total.dtype)
    return total


class ExampleGradients(Points):
    """The part of `LossSurface` that parts gradients into those of examples."""

    _parting: Parting

    @property
    def example_gradients(self) -> GradientWay:
        """How the gradient of each example is had: ``"vmap"``, or ``"loop"``: one backward pass each; proved at first use."""
        self._check_single()
        with undisturbed(self._net.device, grad=True):
            return self._parting.ways()[0]

    def per_example_grads(
        self,
        theta: Tensor,
        indices: Sequence[int] | Tensor | None = None,
        buffers: Buffers | None = None,
        *,
        memory: int | None = None,
    ) -> Tensor:
        """Evaluate the gradient of the loss of each example, the weight decay included: their mean is that of L.

        Args:
            theta: [P].
            indices: of examples, in the wanted order, each in [0, N); None for all, in the order of the data.
            buffers: as in `value`.
            memory: bytes that the rows may take; None for 1 GiB (8 GiB on CUDA).

        Returns:
            [n, P] in the layout's storage dtype, on the device of theta.

        Raises:
            ArgumentError: the rows do not fit the memory, or an index is out of range.
            SurfaceError: there are no single examples: BatchNorm is in batch mode, or the data came in batches.

        Cost: one pass by vmap (about 2 gradients), or one backward pass an example; memory n P numbers.
        """
        self._check_single()
        rows, room = len(self._chosen(indices)), self._room(memory, ROW_MEMORY, CUDA_ROW_MEMORY)
        needed = rows * self.layout.size * self.layout.storage_dtype.itemsize
        if needed > room:
            raise ArgumentError(
                f"indices: {rows} gradients of {self.layout.size} parameters take {needed / 2**20:.0f} MiB, expected at most "
                f"{room / 2**20:.0f}; name fewer examples, pass memory=, or go through surface.gradient_chunks"
            )
        out = blank_rows(self._net, rows)
        for _ in self._chunks(theta, indices, buffers, memory=memory, out=out):
            pass
        return out.to(theta.device)

    def gradient_chunks(
        self,
        theta: Tensor,
        indices: Sequence[int] | Tensor | None = None,
        buffers: Buffers | None = None,
        *,
        memory: int | None = None,
    ) -> Iterator[Tensor]:
        """Evaluate the gradients of the examples a chunk at a time, where all of them together would not fit.

        The surface may be used between the chunks.

        Args:
            theta: [P].
            indices: as in `per_example_grads`.
            buffers: as in `value`.
            memory: bytes at work on a chunk; None for 64 MiB (1 GiB on CUDA). A chunk has at least one example.

        Returns:
            The rows of `per_example_grads`, [c, P] each, in order.

        Raises:
            ArgumentError: an index is out of range.
            SurfaceError: there are no single examples.
        """
        return (rows.to(theta.device) for rows in self._chunks(theta, indices, buffers, memory=memory))

    def gradient_norms(
        self,
        theta: Tensor,
        centre: Tensor,
        indices: Sequence[int] | Tensor | None = None,
        buffers: Buffers | None = None,
        *,
        along: Tensor | None = None,
        memory: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Evaluate |g_i - c|^2 and (g_i - c) . v_j of the gradient of each example, without keeping or joining the gradients.

        The centre is taken off before squaring, so that nothing cancels; sums as in `squares`.

        Args:
            theta: [P].
            centre: c [P], such as the gradient of L.
            indices: as in `per_example_grads`.
            buffers: as in `value`.
            along: V [P, k]; None for no directions.
            memory: as in `gradient_chunks`.

        Returns:
            (squares [n], products [n, k]), float64, on the device of theta.

        Raises:
            ArgumentError: an index is out of range, or the centre or the directions do not fit the parameters.
            SurfaceError: there are no single examples.

        Cost: one pass by vmap, or one backward pass an example; memory that of a chunk.
        """
        self._check_single()
        place: dict[str, Any] = {"device": self._net.device, "dtype": self.layout.storage_dtype}
        size, axes = self.layout.size, torch.zeros(len(theta), 0) if along is None else along
        if centre.shape != (size,) or axes.ndim != 2 or len(axes) != size:
            raise ArgumentError(
                f"centre, along: expected [{size}] and [{size}, k], as the parameters, got shapes {tuple(centre.shape)} and "
                f"{tuple(axes.shape)}"
            )
        pull = self._vector(centre, "centre").to(**place) - self._decay * self._vector(theta, "theta").to(**place)
        axes = axes.to(**place)

        def reduced(way: GradientWay, batch: Any, count: int) -> Tensor:
            found = torch.zeros(count, 1 + axes.shape[1], dtype=torch.float64, device=self._net.device)
            if way == "loop":
                pieces: Iterable[tuple[slice, Tensor]] = [(slice(0, size), rows_by_loop(self._net, batch, count))]
            else:
                pieces = zip(self.layout.slices, parts_by_vmap(self._net, batch, count), strict=True)
            for where, part in pieces:
                deviations = part.to(**place).sub_(pull[where])
                found[:, 0] += squares(deviations)
                found[:, 1:] += deviations @ axes[where]
            return found

        found = torch.cat(list(self._visit(theta, self._cuts(indices, memory, 1), buffers, reduced))).to(theta.device)
        return found[:, 0], found[:, 1:]

    def _chunks(
        self,
        theta: Tensor,
        indices: Sequence[int] | Tensor | None,
        buffers: Buffers | None,
        *,
        memory: int | None,
        out: Tensor | None = None,
    ) -> Iterator[Tensor]:
        """The rows a chunk at a time on the device of the model, in `out` where it is given."""
        pull = self._decay * self._vector(theta, "theta").to(self.layout.storage_dtype)
        places: Iterator[Tensor] = iter(())

        def rows(way: GradientWay, batch: Any, size: int) -> Tensor:
            made = (rows_by_vmap if way == "vmap" else rows_by_loop)(self._net, batch, size, next(places, None))
            return made.add_(pull) if self._decay else made

        cuts = self._cuts(indices, memory, 1 if out is not None else COPIES)
        if out is not None:
            places = iter(torch.split(out, [len(cut) for cut in cuts]))
        return self._visit(theta, cuts, buffers, rows)

    def _cuts(self, indices: Sequence[int] | Tensor | None, memory: int | None, copies: int) -> Sequence[Tensor]:
        """The chosen examples in chunks of which so many copies of the rows fit."""
        self._check_single()
        item, room = self.layout.storage_dtype.itemsize, self._room(memory, CHUNK_MEMORY, CUDA_CHUNK_MEMORY)
        most, chosen = min(room // (copies * self.layout.size * item), self._largest), self._chosen(indices)
        if self._net.device.type == "cpu":
            most = min(most, HEAP // (item * max(where.stop - where.start for where in self.layout.slices)))
        chunks = math.ceil(len(chosen) / max(1, most))
        return torch.split(chosen, max(1, math.ceil(len(chosen) / max(1, chunks))))

    def _visit(self, theta: Tensor, cuts: Sequence[Tensor], buffers: Buffers | None, work: Work[T]) -> Iterator[T]:
        """Let work differentiate each chunk at the point; the surface may be used between them."""
        point, state = self._vector(theta, "theta"), self._state(buffers)

        def each() -> Iterator[T]:
            settled: Buffers | None = None
            for cut in cuts:
                with undisturbed(self._net.device, grad=True):
                    way = self._parting.ways()[0]
                    settled = self._settle(point, state, settled)
                    found = [work(way, self._batches.taken(cut), len(cut))]
                yield found.pop()  # outside, and not kept

        return each()

    def weighted_grad(
        self,
        theta: Tensor,
        weights: Tensor,
        indices: Sequence[int] | Tensor | None = None,
        buffers: Buffers | None = None,
    ) -> Tensor:
        """Evaluate sum_j w_j grad l_j(theta) over the named examples, without making the gradient of each.

        Args:
            theta: [P].
            weights: w [n], finite, of any sign; 1/n each gives the gradient of a batch.
            indices: of examples [n], one may come twice; None for all N.
            buffers: as in `value`.

        Returns:
            [P] in the layout's storage dtype, on the device of theta, sum_j w_j weight_decay theta included; sums in float64.

        Raises:
            ArgumentError: an index is out of range, or the weights do not fit the examples or are not finite.
            SurfaceError: there are no single examples.

        Cost: one forward and one backward pass over the named examples (one backward pass an example where `per_example` is
        ``"loop"`` and the weights differ).
        """
        self._check_single()
        point, state, chosen = self._vector(theta, "theta"), self._state(buffers), self._chosen(indices)
        values = torch.as_tensor(weights).detach().to(self._net.device, torch.float64)
        if values.shape != chosen.shape or not bool(torch.isfinite(values).all()):
            raise ArgumentError(
                f"weights: expected {len(chosen)} finite numbers, one for each example, got shape {tuple(values.shape)}"
            )
        with undisturbed(self._net.device, grad=True):
            _, way = self._parting.ways()
            even = bool((values == values[0]).all())
            self._settle(point, state, None)
            total = self._decay * float(values.sum()) * point.to(self.layout.storage_dtype).double()
            for cut, part in zip(torch.split(chosen, self._largest), torch.split(values, self._largest), strict=True):
                total += weighted(self._net, self._batches.taken(cut), len(cut), part, None if even else way)
        return total.to(theta.device, self.layout.storage_dtype)

    # --- what is needed -----------------------------------------------------------------------------------------------------

    def _check_single(self) -> None:
        """Refuse where no example has a gradient of its own."""
        if self._batchnorm == "batch" and self._net.normalised:
            raise SurfaceError(
                "batchnorm: in batch mode the examples of a batch influence each other, so that none has a gradient of its own; "
                "make the surface with batchnorm='eval' or 'recalibrate', or take gradients of whole batches: "
                "surface.on_batch(batch).value_and_grad(theta)"
            )
        if self._examples is None or self._group is not None or not self._twins.cut:
            raise SurfaceError(
                "data: they were given in batches (or with weight= or group=), so that single examples cannot be taken; pass a "
                "Dataset or tensors, or take gradients of whole batches: surface.on_batch(batch).value_and_grad(theta)"
            )

    def _chosen(self, indices: Sequence[int] | Tensor | None) -> Tensor:
        if indices is None:
            return torch.arange(self._examples or 0)
        return whole_indices(indices, self._examples or 0)

    def _room(self, memory: int | None, usual: int, cuda: int) -> int:
        if memory is not None and memory < 1:
            raise ArgumentError(f"memory: expected a positive number of bytes, got {memory}")
        return memory or (cuda if self._net.device.type == "cuda" else usual)

    @property
    def _largest(self) -> int:
        """Examples whose activations fit."""
        return max(size or 1 for size in self._batches.sizes)

    def _settle(self, point: Tensor, state: Buffers, settled: Buffers | None) -> Buffers:
        """Put the private model at the point; buffers that were recalibrated there are kept for the next chunks."""
        if settled is None:
            self._place(point, state)
            return self._net.read_buffers()
        self._net.write(point)
        self._net.write_buffers(settled)
        self._net.set_mode(self._mode)
        return settled
