"""The private copy of the user's model: written by theta, read by nobody else; and the quiet in which it runs."""

from __future__ import annotations

import copy
import random
import threading
from collections import OrderedDict
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from sgdscope.errors import SurfaceError
from sgdscope.surface.data import Batches, arrays
from sgdscope.vector import Layout, inner_module, select_buffers, select_parameters

Loss = Callable[[Any, Any], Tensor]
Mode = Literal["eval", "batch", "gather"]


class _Depth(threading.local):
    """Whether this thread is inside of `undisturbed` already."""

    inside = False


_depth = _Depth()


@contextmanager
def undisturbed(device: torch.device, *, grad: bool) -> Generator[None, None, None]:
    """Run something whatever the caller's modes are, and leave every random state as it was.

    Autocast and inference mode are off inside; the random states of torch (and of the surface's CUDA device), numpy
    and python are saved and restored, once by the outermost of nested contexts.

    Args:
        device: of the surface.
        grad: whether gradients are recorded inside.

    Yields:
        Nothing.
    """
    if _depth.inside:
        with torch.set_grad_enabled(grad):
            yield
        return
    python, legacy = random.getstate(), np.random.get_state()  # ruff: ignore[numpy-legacy-random]  # the user's, saved to be restored
    devices = [device] if device.type == "cuda" else []
    casts = {kind for kind in ("cpu", device.type) if torch.is_autocast_enabled(kind)}
    try:
        with ExitStack() as stack:
            stack.enter_context(torch.inference_mode(False))
            stack.enter_context(torch.random.fork_rng(devices))
            stack.enter_context(torch.set_grad_enabled(grad))
            for kind in casts:
                stack.enter_context(torch.autocast(kind, enabled=False))
            _depth.inside = True
            yield
    finally:
        _depth.inside = False
        random.setstate(python)
        np.random.set_state(legacy)  # ruff: ignore[numpy-legacy-random]


def _kept(hook: Any) -> bool:
    """Whether a forward pre-hook is part of the model: old-style weight_norm, spectral_norm, pruning."""
    return type(hook).__module__.startswith("torch.nn.utils")


def _memo(root: nn.Module) -> dict[int, Any]:
    """Tell deepcopy what not to copy: the user's hooks, and the graph behind cached activations."""
    memo: dict[int, Any] = {}

    for module in root.modules():
        for name, value in vars(module).items():
            if name.endswith(("_hooks", "_hooks_with_kwargs", "_hooks_always_called")) and isinstance(value, dict):
                kept = {k: h for k, h in value.items() if _kept(h)} if name == "_forward_pre_hooks" else {}
                memo[id(value)] = OrderedDict((key, copy.deepcopy(hook)) for key, hook in kept.items())
            elif name not in {"_parameters", "_modules"}:
                for tensor in arrays(value):
                    if isinstance(tensor, Tensor) and not isinstance(tensor, nn.Parameter):
                        memo[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.is_leaf and tensor.requires_grad)
    return memo


def copied(model: nn.Module, loss: Loss) -> tuple[nn.Module, Loss]:
    """Copy the module that the user wrote, and the loss if it is a module, without hooks and gradients.

    Forward and backward hooks stay behind, so that a hook that counts or prints is not run by us; pre-hooks of
    ``torch.nn.utils`` (old-style ``weight_norm``, ``spectral_norm``, pruning) are part of the model and are kept. A model
    that computes its output by other hooks cannot be copied faithfully.

    Args:
        model: any module; wrappers are stripped.
        loss: callable.

    Returns:
        The copies; a loss that is no module is returned as it is.

    Raises:
        SurfaceError: the model cannot be copied.
    """
    inner = inner_module(model)
    memo = _memo(inner)
    if isinstance(loss, nn.Module):
        memo |= _memo(loss)
    try:
        module, own = copy.deepcopy((inner, loss) if isinstance(loss, nn.Module) else (inner, None), memo)
    except Exception as error:
        raise SurfaceError(
            f"model: {type(inner).__name__} cannot be copied ({type(error).__name__}: {error}); the surface works on a private "
            "copy. Remove what cannot be copied (locks, files, loaders) from its attributes, or give the class a __deepcopy__"
        ) from error
    return module, own if own is not None else loss


class PrivateModel:
    """A copy of the model whose parameters are overwritten in place by theta.

    Args:
        model: the user's; only read.
        loss: the user's; copied if it is a module.
        parameters: patterns of the names that make up theta; the others keep their values.
        dtype: of the copy; None to keep its own.
        device: of the copy; None to keep its own.

    Attributes:
        module: the copy, in eval mode except its normalisation layers where asked.
        loss: the loss to call.
        parameters: the leaf parameters in the order of theta.
        layout: of theta.
        buffer_layout: of the buffers.
        device: where it lives.
        norms: the layers that the BatchNorm mode governs, and whether each keeps running statistics.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        parameters: str | Sequence[str] | None,
        dtype: torch.dtype | None,
        device: torch.device | str | None,
    ) -> None:
        root = inner_module(model)
        select_parameters(root, parameters)
        frozen = {name for name, m in root.named_modules() if root.training and not m.training}
        self.module, self.loss = copied(model, loss)
        self.module.to(device=device, dtype=dtype)
        if self.loss is not loss and isinstance(self.loss, nn.Module):
            self.loss.to(device=device, dtype=dtype).eval()
        chosen = select_parameters(self.module, parameters)
        for parameter in self.module.parameters():
            parameter.requires_grad_(any(parameter is own for own in chosen.values()))
        self.parameters: list[Tensor] = list(chosen.values())
        self.buffers = list(select_buffers(self.module).values())
        self.layout = Layout.of(chosen)
        self.buffer_layout = Layout.of(select_buffers(self.module))
        self.device = self.parameters[0].device
        self.start = self.layout.pack(chosen)
        self.start_buffers = {name: b.detach().clone() for name, b in select_buffers(self.module).items()}
        self._unwrap_compiled()
        self.norms = [
            (m, m.track_running_stats)
            for name, m in self.module.named_modules()
            if isinstance(m, _NormBase) and name not in frozen
        ]
        self._mode: Mode | None = None
        self._point = torch.empty(self.layout.size, dtype=torch.float64, device=self.device)
        self._views = list(self.layout.unpack(self._point).values())
        self.set_mode("eval")

    def _unwrap_compiled(self) -> None:
        """Put the written module in the place of each compiled submodule; parameters and buffers are the same objects."""
        for module in list(self.module.modules()):
            for name, child in list(module.named_children()):
                if (inner := inner_module(child)) is not child:
                    setattr(module, name, inner)

    @property
    def normalised(self) -> bool:
        """Whether a layer has running statistics that the BatchNorm mode governs."""
        return bool(self.norms)

    def set_mode(self, mode: Mode) -> None:
        """Set every layer to eval, and the normalisation layers to what the mode asks.

        Args:
            mode: ``"eval"`` running statistics; ``"batch"`` the batch's own, running ones not moved; ``"gather"`` the
                batch's own, running ones updated.
        """
        if mode == self._mode:
            return
        self.module.eval()
        for norm, tracks in self.norms:
            norm.train(mode != "eval")
            norm.track_running_stats = tracks and mode != "batch"
        self._mode = mode

    def write(self, point: Tensor) -> None:
        """Overwrite the parameters in place.

        Args:
            point: [P], any floating dtype and device.
        """
        with torch.no_grad():
            self._point.copy_(point)
            torch._foreach_copy_(self.parameters, self._views)

    def write_buffers(self, buffers: Mapping[str, Tensor]) -> None:
        """Overwrite the buffers in place.

        Args:
            buffers: name -> value, checked by the caller.
        """
        with torch.no_grad():
            for name, buffer in zip(self.buffer_layout.names, self.buffers, strict=True):
                buffer.copy_(buffers[name])

    def read_buffers(self) -> dict[str, Tensor]:
        """Copy the buffers.

        Returns:
            Name -> copy.
        """
        return {name: b.detach().clone() for name, b in zip(self.buffer_layout.names, self.buffers, strict=True)}

    def start_gathering(self) -> None:
        """Forget the running statistics before a pass that estimates them anew."""
        self.set_mode("gather")
        for norm, _ in self.norms:
            norm.reset_running_stats()

    @torch.no_grad()
    def recalibrate(self, batches: Batches, total: float, group: dist.ProcessGroup | None) -> None:
        """Estimate the running statistics anew at the point at which the model stands, in one pass over the data.

        Args:
            batches: the data of this process.
            total: sum of all weights, over all processes.
            group: process group, or None.
        """
        self.start_gathering()
        so_far = 0.0
        for item, size, weight in zip(batches.items, batches.sizes, batches.weights, strict=True):
            so_far += weight
            with self.averaging(weight / so_far):
                self.call(item, size)
        if group is not None:
            for norm, _ in self.norms:
                for statistic in (norm.running_mean, norm.running_var):
                    if statistic is not None:
                        statistic.mul_(so_far / total)
                        dist.all_reduce(statistic, group=group)

    @contextmanager
    def averaging(self, share: float) -> Generator[None, None, None]:
        """Let the next batch enter the running statistics with a share, so that they become a weighted mean.

        Args:
            share: weight of the batch over the weights so far, its own included.

        Yields:
            Nothing.
        """
        momenta = [norm.momentum for norm, _ in self.norms]
        try:
            for norm, _ in self.norms:
                norm.momentum = share
            yield
        finally:
            for (norm, _), momentum in zip(self.norms, momenta, strict=True):
                norm.momentum = momentum

    def lay_out(self, memory_format: torch.memory_format) -> bool:
        """Choose how the weights of 2-D convolutions lie in memory, and with them the activations; the values stay.

        Args:
            memory_format: ``torch.channels_last`` (on a CPU 2 to 4 times as fast as plain where layers pool) or contiguous.

        Returns:
            Whether there was such a weight.
        """
        weights = [m._parameters.get("weight") for m in self.module.modules() if isinstance(m, nn.Conv2d)]
        for weight in weights:
            if weight is not None:
                weight.data = torch.empty_like(weight.data, memory_format=memory_format).copy_(weight.data)
        return bool(weights)

    def gradient(self, value: Tensor, *, graph: bool = False) -> tuple[Tensor | None, ...]:
        """Differentiate a value with respect to the parameters, leaving no ``.grad`` anywhere.

        Args:
            value: scalar.
            graph: record the graph of the gradient, so that it can be differentiated again.

        Returns:
            One gradient for each parameter; None where the value does not depend on it.

        Raises:
            SurfaceError: the value has no gradient, or the model uses reentrant checkpointing.
            RuntimeError: torch cannot differentiate the model otherwise.
        """
        if not value.requires_grad:
            raise SurfaceError("loss: it has no gradient here; does the loss use the model that it is given?")
        try:
            return torch.autograd.grad(value, self.parameters, allow_unused=True, create_graph=graph)
        except RuntimeError as error:
            if "Checkpointing is not compatible" not in str(error):
                raise
            raise SurfaceError(
                "model: it uses reentrant activation checkpointing, which cannot be differentiated without writing to .grad; "
                "pass use_reentrant=False to torch.utils.checkpoint.checkpoint"
            ) from error

    def call(self, batch: Any, size: int | None) -> Tensor:
        """Call the loss on one batch and check what it returns.

        Args:
            batch: one batch.
            size: its number of examples, None if not known.

        Returns:
            A scalar, or one loss per example.

        Raises:
            SurfaceError: the loss returned something else.
        """
        result = self.loss(self.module, batch)
        fine = isinstance(result, Tensor) and result.is_floating_point()
        fine = fine and (result.ndim == 0 or (result.ndim == 1 and (size is None or len(result) == size)))
        if not fine:
            got = (
                f"a tensor of shape {tuple(result.shape)}, {result.dtype}"
                if isinstance(result, Tensor)
                else type(result).__name__
            )
            raise SurfaceError(
                f"loss: expected a real scalar (the mean loss of the batch) or one loss per example [{size or 'B'}], got {got}; "
                "reduce it with .mean()"
            )
        return result
