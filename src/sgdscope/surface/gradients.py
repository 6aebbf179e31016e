"""The gradient of each example: by vmap where the model allows it, else one by one, and weighted sums of them in one backward."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgdscope.errors import ArgumentError, SurfaceError
from sgdscope.surface.data import Batches, arrays, leading, map_tensors
from sgdscope.surface.examples import Way, decide, losses_of
from sgdscope.surface.points import Buffers, Points
from sgdscope.surface.private import PrivateModel, undisturbed
from sgdscope.surface.proof import SEED, generic_point
from sgdscope.vector import whole_indices

GradientWay = Literal["vmap", "loop"]
T = TypeVar("T")
Work = Callable[[GradientWay, Any, int], T]  # how rows are had, a batch, its size
ROW_MEMORY, CUDA_ROW_MEMORY = 2**30, 8 * 2**30  # bytes of rows that are returned whole
CHUNK_MEMORY, CUDA_CHUNK_MEMORY = 2**26, 2**30  # bytes at work on a chunk
COPIES = 3  # of a chunk's rows at one time: parameter by parameter, joined, and the one before in the caller's hands
PROBE = 8  # examples of the proof
LANES = 64  # squares that are summed in the dtype of the rows before float64
SQUARES = 1e-20, 1e30  # sums of squares beyond which those of float32 may have left its range
WIDENED = 2**16  # numbers that are widened to float64 at a time


class _Caller(nn.Module):
    """Model and loss as one module, so that its parameters can be replaced for one call, tied ones together."""

    def __init__(self, net: PrivateModel) -> None:
        super().__init__()
        self.module, self.loss, self.call = net.module, net.loss, net.call

    def forward(self, batch: Any) -> Tensor:
        """The loss of a batch of one example."""
        return self.call(batch, 1).reshape(())


def _row(batch: Any, i: int) -> Any:
    return map_tensors(lambda tensor: tensor[i : i + 1], batch)


def squares(rows: Tensor) -> Tensor:
    """Sum the squares of each row: 64 at a time in the dtype of the rows, these sums in float64.

    A row of float32 whose sum lies outside 1e-20 to 1e30, where single squares may leave its range, is summed in float64 alone.

    Args:
        rows: [n, p], float32 or float64.

    Returns:
        [n] float64; of float32 to about 1e-8 of the sum.

    Example:
        >>> [f"{value:.6g}" for value in squares(torch.tensor([[3.0, 4.0], [1e-30, 2e-30]])).tolist()]
        ['25', '5e-60']
    """
    blocks = rows.shape[1] // LANES
    head, tail = rows[:, : blocks * LANES].reshape(len(rows), blocks, LANES), rows[:, None, blocks * LANES :]
    sums: Tensor = torch.linalg.vector_norm(head, dim=2).double().square().sum(1)
    sums += torch.linalg.vector_norm(tail, dim=2).double().square().sum(1)
    if rows.dtype != torch.float64:
        lost = (~((sums > SQUARES[0]) & (sums < SQUARES[1]))).nonzero()[:, 0]
        for few in torch.split(lost, max(1, WIDENED // max(1, rows.shape[1]))):
            sums[few] = rows[few].double().square().sum(1)
    return sums


def rows_by_loop(net: PrivateModel, batch: Any, size: int, out: Tensor | None = None) -> Tensor:
    """Differentiate the loss of each example, one backward pass each.

    Args:
        net: the private model, placed and in its mode; gradients are recorded.
        batch: a batch.
        size: its number of examples.
        out: where the rows are written, [size, P]; None for a new tensor.

    Returns:
        [size, P] in the layout's storage dtype.
    """
    rows = _blank(net, size).zero_() if out is None else out.zero_()
    for i in range(size):
        for where, part in zip(net.layout.slices, net.gradient(net.call(_row(batch, i), 1).reshape(())), strict=True):
            if part is not None:
                rows[i, where] = part.reshape(-1).to(rows.dtype)
    return rows


def rows_by_vmap(net: PrivateModel, batch: Any, size: int, out: Tensor | None = None) -> Tensor:
    """Differentiate the losses of all examples at once.

    Args:
        net: as in `rows_by_loop`.
        batch: a batch.
        size: its number of examples.
        out: as in `rows_by_loop`.

    Returns:
        [size, P] in the layout's storage dtype.
    """
    rows = _blank(net, size) if out is None else out
    for where, part in zip(net.layout.slices, parts_by_vmap(net, batch, size), strict=True):
        rows[:, where] = part
    return rows


def _blank(net: PrivateModel, size: int) -> Tensor:
    return torch.empty(size, net.layout.size, dtype=net.layout.storage_dtype, device=net.device)


def parts_by_vmap(net: PrivateModel, batch: Any, size: int) -> list[Tensor]:
    """Differentiate the losses of all examples at once, without joining the parameters' parts.

    Args:
        net: as in `rows_by_loop`.
        batch: a batch.
        size: its number of examples.

    Returns:
        [size, p] of each parameter of the layout, in its dtype.
    """
    caller = _Caller(net)
    names = {id(parameter): name for name, parameter in caller.named_parameters()}
    chosen = {names[id(p)]: p.detach() for p in net.parameters}

    def one(parameters: dict[str, Tensor], *rows: Tensor) -> Tensor:
        rest = iter(rows)
        example = map_tensors(lambda _: next(rest).unsqueeze(0), batch)
        result: Tensor = torch.func.functional_call(caller, parameters, (example,))
        return result

    leaves = [tensor for tensor in arrays(batch) if isinstance(tensor, Tensor)]
    places = (None, *(0 for _ in leaves))
    with sdpa_kernel(SDPBackend.MATH):  # those of fused attention have no batching rule
        parts = torch.vmap(torch.func.grad(one), in_dims=places, randomness="error")(chosen, *leaves)
    return [parts[name].reshape(size, -1) for name in chosen]


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
        out = _blank(self._net, rows)
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
        room = self._room(memory, CHUNK_MEMORY, CUDA_CHUNK_MEMORY)
        most = room // (copies * self.layout.size * self.layout.storage_dtype.itemsize)
        return torch.split(self._chosen(indices), max(1, min(most, self._largest)))

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
