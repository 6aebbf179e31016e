"""LossSurface: value, gradient and per-example losses at any theta; the loss along a line."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor, nn

from sgdscope.errors import ArgumentError
from sgdscope.records import Line
from sgdscope.surface.construction import LARGEST_BATCH, STATISTICS_BATCH, BatchNorm, batch_size, check_arguments
from sgdscope.surface.data import Batches, Weight, at_least_two, collect, count, cut, leading
from sgdscope.surface.examples import Way, decide, losses_of
from sgdscope.surface.gradients import ExampleGradients, Parting
from sgdscope.surface.labels import SampledLabels
from sgdscope.surface.points import Buffers
from sgdscope.surface.private import Loss, PrivateModel, undisturbed
from sgdscope.surface.products import Linearized
from sgdscope.surface.proof import SEED, generic_point, lay_out, prove
from sgdscope.surface.twins import Twins
from sgdscope.surface.units import THRESHOLDS, Saturation, saturation_of

PROOF_EXAMPLES = 8  # few, so that few kinks of ReLUs lie within a step of the differences, and the proof is cheap


class LossSurface(ExampleGradients, SampledLabels):
    """The mean loss of a data set as a function of theta, on a private copy of the model.

    L(theta) = sum_b w_b l_b(theta) / sum_b w_b + (weight_decay / 2) |theta|^2, where l_b is the loss of batch b in the
    fixed order (the mean of a 1-D loss) and w_b its weight; sums in float64. The user's model, its gradients, modes, hooks and
    all random states are left as they are. Dropout is off. On a CPU 2-D convolutions run channels last where the model
    allows it. A loss that is NaN or infinite is returned as such, not raised.

    At construction it proves itself (`proof.prove`) on up to 8 examples. Memory: a copy of the model and one of the data.

    Args:
        model: any module; wrappers of ``torch.compile`` and data parallel are stripped. User hooks are not copied.
        loss: ``loss(model, batch)``: the mean loss of one batch, or one loss per example [B].
        data: a map-style Dataset, a tensor, a tuple or dict of tensors (cut into batches), a DataLoader or a list of batches
            (taken as they are, once). A tuple of tensors is a data set, a list is a list of batches.
        parameters: shell patterns of the names that make up theta; the others keep the values they have now.
        batchnorm: ``"eval"``: running statistics from `buffers`, or those of the model now; ``"batch"``: each batch's own
            statistics, running ones not used; ``"recalibrate"``: running statistics estimated anew at each theta in a first
            pass (weighted mean over the batches of their means and unbiased variances), then used; the gradient
            holds them fixed. Layers that are frozen in eval mode inside a model in training mode stay in eval mode.
        dtype: converts the copy and floating point data, such as ``torch.float64``; None keeps them.
        device: where to evaluate; None for the device of the model.
        weight: batch -> positive number, such as its number of tokens; None for its number of examples.
        weight_decay: >= 0, of the chosen parameters; part of value, gradient, lines and each example's loss.
        memory: bytes of activations that a batch cut from tensors or a Dataset may hold; None for 16 MiB (1 GiB on
            CUDA), with at most 256 examples where BatchNorm's statistics depend on it.
        group: a process group: each process passes its own part of the data and all call together; None for this process alone.

    Attributes:
        layout: names and shapes of theta.

    Raises:
        ArgumentError: an argument is out of range or of no known kind.
        DataError: the data are empty, of one example, or inconsistent.
        SurfaceError: the model cannot be copied, or the loss failed its proof.

    Example:
        >>> model = nn.Linear(3, 1)
        >>> x, y = torch.randn(50, 3), torch.randn(50, 1)
        >>> surface = LossSurface(model, lambda model, batch: ((model(batch[0]) - batch[1]) ** 2).mean(), (x, y))
        >>> abs(surface.value(surface.theta()) - ((model(x) - y) ** 2).mean().item()) < 1e-6
        True
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        data: Any,
        *,
        parameters: str | Sequence[str] | None = None,
        batchnorm: BatchNorm = "eval",
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        weight: Weight | None = None,
        weight_decay: float = 0.0,
        memory: int | None = None,
        group: dist.ProcessGroup | None = None,
    ) -> None:
        check_arguments(model, loss, batchnorm, dtype, weight_decay, memory)
        examples = count(data)
        self._batchnorm = batchnorm
        self._dtype, self._decay, self._group = dtype, float(weight_decay), group
        self._way: Way | None = None
        self._hash = None
        self._name = getattr(loss, "__name__", type(loss).__name__)
        own = next(model.parameters(), None)
        home = torch.device(device) if device is not None else own.device if own is not None else torch.device("cpu")
        with undisturbed(home, grad=True):
            self._net = PrivateModel(model, loss, parameters, dtype, device)
            self.layout = self._net.layout
            items: Iterable[Any] = collect(data) if examples is None else cut(data, self._size(data, examples, memory))
            self._batches = Batches.of((self._adopt(item) for item in items), weight)
            self._total = float(self._sum(np.array([self._batches.weights.sum()]))[0])
            self._examples = self._count()
            at_least_two(self._examples)
            first = self._batches.items[0] if examples is None else self._adopt(cut(data, PROOF_EXAMPLES)[0])
            self._proof = prove(self._net, first, leading(first), self._mode)
            self._twins = Twins(self._net, first, cut=examples is not None and weight is None)
            self._parting = Parting(self._net, first)
            self._format = lay_out(self._net, first, leading(first), self._mode)

    # --- construction ---------------------------------------------------------------------------------------------------

    def _size(self, data: Any, examples: int, memory: int | None) -> int:
        if self._batchnorm == "batch" and memory is None:
            return STATISTICS_BATCH
        probe = self._adopt(cut(data, 32)[0])
        largest = STATISTICS_BATCH if self._batchnorm == "batch" else LARGEST_BATCH
        return min(largest, batch_size(self._net, probe, min(32, examples), memory, self._mode))

    def _sweep(self, point: Tensor, buffers: Buffers, way: Way) -> tuple[float, NDArray[np.float64]]:
        """The value at a point and the losses [M] of the units: examples, or batches where the way is ``"batches"``."""
        self._place(point, buffers)
        parts = [losses_of(self._net, b, n, way) for b, n in zip(self._batches.items, self._batches.sizes, strict=True)]
        means = torch.stack([part.mean() for part in parts]).cpu().numpy()
        penalty = self._penalty(point)
        value = float(self._sum(np.array([means @ self._batches.weights]))[0]) / self._total + penalty
        return value, np.concatenate(self._gather(torch.cat(parts).cpu().numpy())) + penalty

    def _unit_weights(self, way: Way) -> NDArray[np.float64]:
        """The weight of each unit, summing to 1."""
        sizes = np.ones(len(self._batches.sizes), int) if way == "batches" else np.array(self._batches.sizes)
        own = np.repeat(self._batches.weights / sizes, sizes)
        return np.concatenate(self._gather(own)) / self._total

    def undisturbed(self) -> AbstractContextManager[None]:
        """Save the caller's random states once for many evaluations; each then costs 0.1 ms less."""
        return undisturbed(self._net.device, grad=True)

    # --- what is measured ---------------------------------------------------------------------------------------------------

    def theta(self) -> Tensor:
        """The chosen parameters of the model at construction, [P], a copy in their widest dtype."""
        return self._net.start.clone()

    def value(self, theta: Tensor, buffers: Buffers | None = None) -> float:
        """Evaluate L(theta), as in the class docstring; cost: one pass over the data (two with ``"recalibrate"``).

        Args:
            theta: [P].
            buffers: name -> buffer, as `Trajectory.buffers` gives them; None or empty for those of the model at construction.

        Returns:
            The mean loss; NaN or infinite where it is.
        """
        point, state = self._vector(theta, "theta"), self._state(buffers)
        with undisturbed(self._net.device, grad=False):
            return self._sweep(point, state, "loss" if self._way == "loss" else "batches")[0]

    def value_and_grad(self, theta: Tensor, buffers: Buffers | None = None) -> tuple[float, Tensor]:
        """Evaluate L(theta) and its gradient, accumulated over batches in float64.

        Args:
            theta: [P].
            buffers: as in `value`.

        Returns:
            The mean loss, and the gradient [P] in the layout's storage dtype on the device of theta; zero for unused parameters.

        Raises:
            SurfaceError: the loss has no gradient here.
        """
        point, state = self._vector(theta, "theta"), self._state(buffers)
        total = 0.0
        with undisturbed(self._net.device, grad=True):
            gradient = torch.zeros(self.layout.size, dtype=torch.float64, device=self._net.device)
            self._place(point, state)
            for item, size, weight in zip(self._batches.items, self._batches.sizes, self._batches.weights, strict=True):
                mean = self._net.call(item, size).double().mean()
                for where, part in zip(self.layout.slices, self._net.gradient(mean), strict=True):
                    if part is not None:
                        gradient[where].add_(part.reshape(-1), alpha=weight)
                total += weight * float(mean.detach())
            if self._group is not None:
                dist.all_reduce(gradient, group=self._group)
        rounded = point.to(self.layout.storage_dtype).double()
        gradient = gradient / self._total + self._decay * rounded
        value = float(self._sum(np.array([total]))[0]) / self._total + self._penalty(point)
        return value, gradient.to(theta.device, self.layout.storage_dtype)

    def linearized(
        self, theta: Tensor, buffers: Buffers | None = None, *, memory: int | None = None, chunk: int | None = None
    ) -> Linearized:
        """Keep the gradient's graph at theta, for many Hessian products there.

        Use as ``with surface.linearized(theta) as h: h.hvp(v)``. Attention runs under the math kernel; ``torch.compile``d
        models by their inner module; BatchNorm as the surface says. Where torch has no second derivative, products are central
        differences of the gradient (`Linearized.way`), in float64 or for models without kinks only. At the first call the
        surface proves its products: H v against differences of gradients on a few examples in float64, parameter by
        parameter, to 0.5 %.

        Args:
            theta: [P].
            buffers: as in `value`.
            memory: bytes of graphs that may be kept; None for 1 GiB (8 GiB on CUDA). Chunks beyond it are computed anew at
                each product, at about twice the cost.
            chunk: examples a chunk, where data were given whole and do not mix; None for those of the surface's batches.

        Returns:
            The linearization, with `value`, `gradient`, `hvp` and `gauss_newton`; to be closed.

        Raises:
            ArgumentError: an argument is out of range.
            SurfaceError: the products failed their proof, or there are none and differences would say little.

        Cost: 2 gradients; a copy of the model.
        """
        if memory is not None and memory < 1:
            raise ArgumentError(f"memory: expected a positive number of bytes, got {memory}")
        point, state = self._vector(theta, "theta"), self._state(buffers)
        batches = self._batches if chunk is None else self._twins.recut(self._batches, chunk, self._batchnorm == "batch")
        with undisturbed(self._net.device, grad=True):
            twin = copy.copy(self)
            twin._net = self._twins.take()
            twin._place(point, state)
            return self._twins.linearize(
                twin._net, batches, self._total, decay=self._decay, group=self._group, memory=memory, mode=self._mode
            )

    def hvp(self, theta: Tensor, vectors: Tensor, buffers: Buffers | None = None) -> Tensor:
        """Multiply the Hessian at theta with one or several vectors; for many at one theta use `linearized`.

        Args:
            theta: [P].
            vectors: [P] or [P, k], finite.
            buffers: as in `value`.

        Returns:
            H v of the same shape, in the layout's storage dtype, the weight decay included.
        """
        with self.linearized(theta, buffers) as h:
            return h.hvp(vectors)

    def saturation(
        self, theta: Tensor, buffers: Buffers | None = None, *, thresholds: Sequence[float] = THRESHOLDS
    ) -> Saturation:
        """Look how far the units are saturated: 1 - |phi'(z)| / max |phi'|, layer by layer and over all, and the softmax.

        Args:
            theta: [P].
            buffers: as in `value`.
            thresholds: of dead units, on the mean |phi(z)|.

        Returns:
            What one pass saw: activations as modules or as functions, each call once; those of recurrent layers are not seen.
        """
        point, state = self._vector(theta, "theta"), self._state(buffers)
        with undisturbed(self._net.device, grad=False):
            self._place(point, state)
            found = saturation_of(self._net, self._batches, thresholds, self._sum, self._total)
        return replace(found, value=found.value + self._penalty(point))

    @property
    def per_example(self) -> Way:
        """How the loss of each example is had: ``"loss"`` (it is 1-D), ``"vmap"``, ``"loop"``, or not at all: ``"batches"``."""
        if self._way is None:
            with undisturbed(self._net.device, grad=False):
                self._place(generic_point(self._net, 0.1, torch.Generator().manual_seed(SEED)), self._net.start_buffers)
                way = decide(self._net, self._batches, mixes=self._batchnorm == "batch" and self._net.normalised)
            self._way = way if len(set(self._gather(way))) == 1 else "batches"
        return self._way

    def losses(self, theta: Tensor, buffers: Buffers | None = None) -> Tensor:
        """Evaluate the loss of each example, in the order of the data; weighted by the weights of `along` their mean is L(theta).

        Where the loss cannot be parted into examples (`per_example` is ``"batches"``) these are the means of the batches.

        Args:
            theta: [P].
            buffers: as in `value`.

        Returns:
            [N] float64 on the CPU, or [batches].
        """
        point, state, way = self._vector(theta, "theta"), self._state(buffers), self.per_example
        with undisturbed(self._net.device, grad=False):
            return torch.from_numpy(self._sweep(point, state, way)[1])

    def along(
        self,
        theta: Tensor,
        direction: Tensor,
        alphas: Sequence[float],
        buffers: tuple[Buffers, Buffers] | None = None,
    ) -> Line:
        """Evaluate phi(alpha) = L(theta + alpha direction), the sum taken in float64 and rounded to the parameters' dtype.

        Buffers are (1 - a) b_0 + a b_1 with a = alpha clipped to [0, 1]; integer ones come from the nearer end.
        Where examples would have to be evaluated one by one, the samples are the means of the batches.

        Args:
            theta: [P].
            direction: [P]; in float64 phi(1) of a step is bit-equal to phi(0) of the next.
            alphas: [A], finite, at least one.
            buffers: those at alpha = 0 and at alpha = 1; None for those of the model at construction.

        Returns:
            The line; cost: A passes over the data (2 A with ``"recalibrate"``).

        Raises:
            ArgumentError: a vector has another shape, or the alphas are empty or not finite.
        """
        start, step = self._vector(theta, "theta"), self._vector(direction, "direction")
        grid = np.asarray(alphas, np.float64)
        if grid.ndim != 1 or not grid.size or not np.isfinite(grid).all():
            raise ArgumentError(f"alphas: expected at least one finite number, in one dimension, got {alphas!r}")
        pair = None if buffers is None else (self._state(buffers[0]), self._state(buffers[1]))
        way: Way = self.per_example if self.per_example in {"loss", "vmap"} else "batches"
        with undisturbed(self._net.device, grad=False):
            found = [self._sweep(torch.add(start, step, alpha=float(a)), self._between(pair, float(a)), way) for a in grid]
        return Line(
            alphas=grid,
            values=np.array([value for value, _ in found]),
            samples=np.stack([samples for _, samples in found]),
            weights=self._unit_weights(way),
            unit="batch" if way == "batches" else "example",
            evaluations=len(grid) * (2 if self._batchnorm == "recalibrate" and self._net.normalised else 1),
        )

    def on_batch(self, batch: Any) -> LossSurface:
        """The same surface on one batch in training mode: BatchNorm on the batch's own statistics, dropout off, no weights.

        It shares the private copy and is cheap; one example is enough.

        Args:
            batch: as the loss takes it.

        Returns:
            The surface; its value is the training loss of that batch (plus the weight decay).
        """
        other = copy.copy(self)
        way = self.per_example
        other._batches = Batches.of((self._adopt(batch),), lambda _: 1.0)
        other._batchnorm, other._group, other._total, other._hash = "batch", None, 1.0, None
        other._examples = other._batches.examples
        parted = way == "loss" or (other._examples is not None and not self._net.normalised)
        other._way = way if parted else "batches"
        return other

    def rows(self, indices: Sequence[int] | Tensor) -> Any:
        """Take examples out of the data as one batch, for `on_batch`; such as a mini-batch drawn at random.

        Args:
            indices: of examples, at least one, each in [0, N).

        Returns:
            The batch, copied.

        Raises:
            DataError: the data came in batches that cannot be taken apart.
            ArgumentError: an index is out of range.
        """
        return self._subset(indices, at_most=self._examples or 1).items[0]

    def subset(self, indices: Sequence[int] | Tensor) -> LossSurface:
        """The same surface on some of the examples, in the same BatchNorm mode; it shares the private copy and is cheap.

        Args:
            indices: of examples, at least two, each in [0, N).

        Returns:
            The surface; its value is the mean loss of those examples.

        Raises:
            DataError: the data came in batches that cannot be taken apart.
            ArgumentError: an index is out of range.
        """
        other = copy.copy(self)
        other._batches = self._subset(indices, at_most=max(size or 1 for size in self._batches.sizes))
        other._total, other._hash, other._group = float(other._batches.weights.sum()), None, None
        other._examples = other._batches.examples
        at_least_two(other._examples)
        return other

    def fingerprint(self) -> dict[str, Any]:
        """Describe what is measured on.

        Returns:
            JSON types: ``examples`` (None where they cannot be counted), ``batches``, ``batch_size`` (the largest), ``data``
            (xxh3 of all tensors), ``batchnorm`` ("none" without such layers), ``dtype``, ``weight_decay``, ``per_example``,
            ``parameters`` (P),
            ``loss`` (its name), ``proof`` (in which precision the gradient was proved at construction),
            ``memory_format`` (of 2-D convolutions).
        """
        if self._hash is None:
            self._hash = "-".join(self._gather(self._batches.hash()))
        return {
            "examples": self._examples,
            "batches": sum(self._gather(len(self._batches.items))),
            "batch_size": max((size for size in self._batches.sizes if size is not None), default=None),
            "data": self._hash,
            "batchnorm": self._batchnorm if self._net.normalised else "none",
            "dtype": "+".join(sorted(set(self.layout.dtypes))),
            "weight_decay": self._decay,
            "per_example": self.per_example,
            "parameters": self.layout.size,
            "loss": self._name,
            "proof": self._proof,
            "memory_format": self._format,
        }
