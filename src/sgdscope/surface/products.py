"""Hessian and Gauss-Newton products at one theta: the gradient's graph is kept and differentiated once a product."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgdscope.errors import ArgumentError, SurfaceError
from sgdscope.surface.convolutions import Convolutions
from sgdscope.surface.data import Batches
from sgdscope.surface.private import PrivateModel, undisturbed

GRAPH_MEMORY = 2**30  # bytes of kept graphs on a CPU; what does not fit is computed anew at each product
CUDA_GRAPH_MEMORY = 8 * 2**30
KINKS = (nn.ReLU, nn.ReLU6, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Hardshrink)
KINKS += (nn.Softshrink, nn.Threshold, nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool2d, nn.L1Loss)  # type: ignore[assignment]


@contextmanager
def twice_differentiable(device: torch.device) -> Generator[None, None, None]:
    """Run forward passes on kernels that have a second derivative: the math kernel of attention, no cuDNN in recurrent layers.

    Args:
        device: of the model.

    Yields:
        Nothing.
    """
    with ExitStack() as stack:
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(Convolutions())
        if device.type == "cuda":
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


@dataclass
class Chunk:
    """Some examples, and their part of the gradient with its graph.

    Attributes:
        item: a batch.
        size: its number of examples.
        weight: its share of the loss, summing to 1 over all chunks.
        slots: which parameters the gradient depends on.
        gradients: of those parameters, with their graph; None where it is computed anew at each product.
    """

    item: Any
    size: int | None
    weight: float
    slots: tuple[int, ...] = ()
    gradients: tuple[Tensor, ...] | None = None


def differentiate(net: PrivateModel, item: Any, size: int | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
    """The mean loss of a batch and its gradient, with the graph of both.

    Args:
        net: the private model, placed and in its mode; gradients are recorded.
        item: a batch.
        size: its number of examples.

    Returns:
        (loss, one gradient a parameter or None).
    """
    with twice_differentiable(net.device):
        mean = net.call(item, size).double().mean()
    return mean, net.gradient(mean, graph=True)


def curved(gradients: Sequence[Tensor | None]) -> tuple[tuple[int, ...], tuple[Tensor, ...]]:
    """Those gradients that depend on the parameters: (their places, they)."""
    slots = tuple(i for i, g in enumerate(gradients) if g is not None and g.requires_grad)
    return slots, tuple(g for i, g in enumerate(gradients) if i in slots and g is not None)


def pull_back(
    net: PrivateModel, outputs: Sequence[Tensor], cotangents: Sequence[Tensor], *, keep: bool
) -> Sequence[Tensor | None]:
    """Differentiate outputs, weighted by cotangents, with respect to the parameters."""
    if not outputs:
        return [None] * len(net.parameters)
    return torch.autograd.grad(outputs, net.parameters, cotangents, retain_graph=keep, allow_unused=True)


class Linearized:
    """The Hessian of a surface at one theta, as a product with vectors.

    H v = sum_b w_b d/dtheta (g_b . v) + weight_decay v, by differentiating the kept graph of the gradient g_b of each chunk
    once more (reverse over reverse). Chunks beyond the memory budget are computed anew at each product. Sums in float64.
    It holds a private model of its own, so that the surface may be used meanwhile; `close`, or leaving the context, frees it.

    Not constructed by hand: see `LossSurface.linearized`.

    Args:
        net: a private model that stands at theta, to be used by nobody else.
        batches: the data, cut into chunks.
        total: sum of all weights, over all processes.
        decay: weight decay.
        group: process group, or None.
        room: how many examples' graphs may be kept (batches' where examples cannot be counted).
        differences: use central differences of the gradient, where there is no second derivative.
        release: called once with the private model when the linearization is closed.

    Attributes:
        value: L(theta), the weight decay included.
        gradient: [P], its gradient.
        products: Hessian and Gauss-Newton products so far.
        kept: share of the chunks whose graph is kept.
        way: ``"graph"`` or ``"differences"``.
    """

    def __init__(
        self,
        net: PrivateModel,
        batches: Batches,
        total: float,
        *,
        decay: float,
        group: dist.ProcessGroup | None,
        room: float,
        differences: bool,
        release: Callable[[PrivateModel], None],
    ) -> None:
        self._net, self._decay, self._group, self._room, self._release = net, decay, group, room, release
        self._gauss: list[GaussNewton] | None = None
        self.products, self.way = 0, "differences" if differences else "graph"
        parts = zip(batches.items, batches.sizes, batches.weights, strict=True)
        self._chunks = [Chunk(item, size, weight / total) for item, size, weight in parts]
        self._open = True
        with self._quiet():
            self._point = net.layout.pack(dict(zip(net.layout.names, net.parameters, strict=True)), torch.float64)
            self.value, self.gradient = self._linearize()

    # --- set-up -----------------------------------------------------------------------------------------------------------

    @contextmanager
    def _quiet(self) -> Generator[None, None, None]:
        with undisturbed(self._net.device, grad=True), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Using backward.. with create_graph=True", UserWarning)
            yield

    @contextmanager
    def _light(self) -> Generator[None, None, None]:
        """For products on kept graphs, which draw nothing: outside the caller's autocast and inference mode."""
        with ExitStack() as stack:
            if torch.is_inference_mode_enabled():
                stack.enter_context(torch.inference_mode(False))
            for kind in ("cpu", self._net.device.type):
                if torch.is_autocast_enabled(kind):
                    stack.enter_context(torch.autocast(kind, enabled=False))
            stack.enter_context(torch.enable_grad())
            yield

    def _linearize(self) -> tuple[float, Tensor]:
        """Value and gradient; keeps as many graphs as there is room for."""
        flat = torch.zeros(self._net.layout.size, dtype=torch.float64, device=self._net.device)
        value, room = 0.0, self._room
        for chunk in self._chunks:
            mean, gradients = differentiate(self._net, chunk.item, chunk.size)
            value += chunk.weight * float(mean.detach())
            self._add(flat, gradients, chunk.weight)
            chunk.slots, kept = curved(gradients)
            room -= chunk.size or 1
            if room >= 0 and self.way == "graph":
                chunk.gradients = kept
        value, flat = self._reduced(torch.tensor([value], dtype=torch.float64, device=flat.device)).item(), self._reduced(flat)
        value += 0.5 * self._decay * float(self._point.square().sum())
        return value, (flat + self._decay * self._point).to(self._net.layout.storage_dtype)

    def _add(self, flat: Tensor, parts: Sequence[Tensor | None], weight: float) -> None:
        for where, part in zip(self._net.layout.slices, parts, strict=True):
            if part is not None:
                flat[where].add_(part.detach().reshape(-1), alpha=weight)

    def _reduced(self, values: Tensor) -> Tensor:
        """Add up over the process group."""
        if self._group is not None:
            dist.all_reduce(values, group=self._group)
        return values

    @property
    def kept(self) -> float:
        """Share of the chunks whose graph is kept."""
        return sum(chunk.gradients is not None for chunk in self._chunks) / len(self._chunks)

    # --- products ---------------------------------------------------------------------------------------------------------

    def hvp(self, vectors: Tensor) -> Tensor:
        """Multiply the Hessian with one or several vectors, one after the other.

        Args:
            vectors: [P] or [P, k], finite.

        Returns:
            H v of the same shape, in the layout's storage dtype, on the device of the vectors.

        Raises:
            ArgumentError: the vectors have another shape or are not finite, or the linearization was closed.

        Cost: 1.5 to 2.5 gradients a vector where the graph is kept, 2.5 to 4 where not; 2 by differences.
        """
        one = self._hvp_by_differences if self.way == "differences" else self._hvp
        return self._each(vectors, one)

    def gauss_newton(self, vectors: Tensor) -> Tensor:
        """Multiply the Gauss-Newton matrix J' H_z J with one or several vectors; z is what the module returns.

        J = dz / dtheta, H_z the Hessian of the loss in z; the weight decay is included. H minus it is sum_j (dL/dz_j) d2z_j.

        Args:
            vectors: [P] or [P, k], finite.

        Returns:
            G v of the same shape, in the layout's storage dtype.

        Raises:
            ArgumentError: as in `hvp`.
            SurfaceError: it does not exist: the loss calls the module not at all or more than once, takes no tensor from it,
                lets it compute the loss, or depends on the parameters in another way too.

        Cost: about as a Hessian product; the graph of z, once, at the first call.
        """
        if self._gauss is None and self._open:
            with self._quiet():
                self._gauss = [GaussNewton(self._net, chunk) for chunk in self._chunks]
        return self._each(vectors, self._gauss_newton)

    def _each(self, vectors: Tensor, one: Callable[[Tensor, Tensor], None]) -> Tensor:
        """Apply a product to each column, with checks, decay and counting."""
        size, storage = self._net.layout.size, self._net.layout.storage_dtype
        if not self._open:
            raise ArgumentError("the linearization was closed; make another with surface.linearized(theta)")
        if not isinstance(vectors, Tensor) or vectors.ndim not in {1, 2} or len(vectors) != size:
            came = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
            raise ArgumentError(f"vectors: expected a tensor of shape ({size},) or ({size}, k), got {came}")
        columns = vectors.detach().to(self._net.device, storage).reshape(size, -1).T.contiguous()
        if not math.isfinite(float(columns.sum())) and not torch.isfinite(columns).all():
            raise ArgumentError("vectors: expected finite numbers, got NaN or infinity; look at where they come from")
        with self._light() if self.kept == 1 and self.way == "graph" else self._quiet():
            out = torch.zeros(columns.shape, dtype=torch.float64, device=columns.device)
            for flat, column in zip(out, columns, strict=True):
                one(flat, column)
                self.products += 1
        out = self._reduced(out)
        if self._decay:
            out.add_(columns, alpha=self._decay)
        return out.T.to(storage).reshape(vectors.shape).to(vectors.device)

    def _split(self, vector: Tensor) -> list[Tensor]:
        """One piece for each parameter, in its shape and dtype."""
        pieces = self._net.layout.unpack(vector).values()
        return [piece.to(p.dtype) for piece, p in zip(pieces, self._net.parameters, strict=True)]

    def _hvp(self, flat: Tensor, vector: Tensor) -> None:
        pieces = self._split(vector)
        for chunk in self._chunks:
            gradients, kept = chunk.gradients, chunk.gradients is not None
            if gradients is None:
                _, gradients = curved(differentiate(self._net, chunk.item, chunk.size)[1])
            parts = pull_back(self._net, gradients, [pieces[i] for i in chunk.slots], keep=kept)
            self._add(flat, parts, chunk.weight)

    def _hvp_by_differences(self, flat: Tensor, vector: Tensor) -> None:
        """(g(theta + h u) - g(theta - h u)) |v| / 2h with u = v / |v|, h = eps^(1/3) max(|theta|, 1), eps of the parameters."""
        length = float(vector.norm())
        if length == 0:
            return
        eps = max(torch.finfo(p.dtype).eps for p in self._net.parameters)
        step = eps ** (1 / 3) * max(float(self._point.norm()), 1.0)
        for sign in (1.0, -1.0):
            self._net.write(torch.add(self._point, vector.double(), alpha=sign * step / length))
            for chunk in self._chunks:
                with twice_differentiable(self._net.device):
                    parts = self._net.gradient(self._net.call(chunk.item, chunk.size).double().mean())
                self._add(flat, parts, sign * chunk.weight * length / (2 * step))
        self._net.write(self._point)

    def _gauss_newton(self, flat: Tensor, vector: Tensor) -> None:
        pieces = self._split(vector)
        for chunk, gauss in zip(self._chunks, self._gauss or (), strict=True):
            self._add(flat, gauss.product(pieces), chunk.weight)

    # --- life -------------------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Free the graphs; idempotent."""
        if self._open:
            self._open, self._gauss = False, None
            for chunk in self._chunks:
                chunk.gradients = None
            self._release(self._net)

    def __enter__(self) -> Linearized:
        """The linearization itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Free the graphs."""
        self.close()


class GaussNewton:
    """The graph of the module's output on one chunk, for products with J' H_z J.

    Args:
        net: the private model, placed and in its mode; gradients are recorded.
        chunk: the examples.

    Raises:
        SurfaceError: there is no Gauss-Newton matrix.
    """

    def __init__(self, net: PrivateModel, chunk: Chunk) -> None:
        self._net = net
        seen: list[Any] = []
        handle = net.module.register_forward_hook(lambda _module, _inputs, output: seen.append(output))
        try:
            with twice_differentiable(net.device):
                mean = net.call(chunk.item, chunk.size).double().mean()
        finally:
            handle.remove()
        self._output = _only_output(seen)
        slope = torch.autograd.grad(mean, self._output, create_graph=True, allow_unused=True)[0]
        if slope is None:
            raise SurfaceError("Gauss-Newton: the loss does not depend on what the module returns")
        self._slope = slope
        self._dual = torch.zeros_like(self._output, requires_grad=True)
        jacobian = torch.autograd.grad(self._output, net.parameters, self._dual, create_graph=True, allow_unused=True)
        self._slots, self._jacobian = curved(jacobian)
        self._check(mean)

    def _check(self, mean: Tensor) -> None:
        """The loss must depend on the parameters through the output alone."""
        whole = torch.autograd.grad(mean, self._net.parameters, retain_graph=True, allow_unused=True)
        through = pull_back(self._net, [self._output], [self._slope.detach()], keep=True)
        for name, a, b in zip(self._net.layout.names, whole, through, strict=True):
            rounding = 1e3 * torch.finfo(self._output.dtype).eps * float(0.0 if a is None else a.abs().max())
            if a is not None and not (b is not None and torch.allclose(a, b, rtol=1e-3, atol=rounding)):
                raise SurfaceError(
                    f"Gauss-Newton: the loss depends on '{name}' in another way than through what the module returns "
                    "(a penalty of its own?); give the penalty as weight_decay, or use Hessian products"
                )

    def product(self, pieces: Sequence[Tensor]) -> Sequence[Tensor | None]:
        """J' H_z J v on this chunk.

        Args:
            pieces: v, one tensor a parameter.

        Returns:
            One tensor a parameter, or None.
        """
        nothing = [None] * len(self._net.parameters)
        if not self._jacobian or not self._slope.requires_grad:
            return nothing
        moved = torch.autograd.grad(self._jacobian, self._dual, [pieces[i] for i in self._slots], retain_graph=True)[0]
        bent = torch.autograd.grad(self._slope, self._output, moved, retain_graph=True, allow_unused=True)[0]
        return nothing if bent is None else pull_back(self._net, [self._output], [bent], keep=True)


def _only_output(seen: list[Any]) -> Tensor:
    """The tensor that the module returned, once."""
    if len(seen) != 1:
        times = "not called" if not seen else f"called {len(seen)} times"
        raise SurfaceError(f"Gauss-Newton: the module is {times} by the loss; expected one call model(...), use Hessian products")
    output = seen[0]
    if not isinstance(output, Tensor) or not output.is_floating_point() or output.ndim == 0 or not output.requires_grad:
        came = f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
        raise SurfaceError(
            f"Gauss-Newton: the module returns {came}; expected one tensor of outputs (a module that computes its own loss has "
            "no outputs to separate from it); use Hessian products"
        )
    return output


def graph_bytes(net: PrivateModel, item: Any, size: int | None) -> int:
    """Count the bytes that autograd keeps for the gradient of a batch and its graph, parameters and buffers left out.

    Args:
        net: the private model, placed and in its mode; gradients are recorded.
        item: a batch.
        size: its number of examples.

    Returns:
        The bytes.
    """
    fixed = {t.untyped_storage().data_ptr() for t in (*net.module.parameters(), *net.buffers)}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in fixed:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        differentiate(net, item, size)
    return sum(kept.values())


def kinked(net: PrivateModel) -> str | None:
    """The first module whose output has kinks, so that differences of gradients say little in float32.

    Args:
        net: the private model.

    Returns:
        Its name and class; None if all modules are smooth (functions called in ``forward`` are not seen).
    """
    return next((f"'{name}' ({type(m).__name__})" for name, m in net.module.named_modules() if isinstance(m, KINKS)), None)
