"""Named parameters <-> one flat vector theta [P]; selection by name pattern; device and dtype rules.

The order is that of ``named_parameters``; tied parameters appear once; only parameters that require a gradient
are taken. The same default serves the recorder and the loss surface, so that their vectors mean the same.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from sgdscope.errors import ArgumentError


def inner_module(model: nn.Module) -> nn.Module:
    """Strip the wrappers of ``torch.compile`` and of data parallel training.

    Args:
        model: any module.

    Returns:
        The module that the user wrote; the same object if it was not wrapped.
    """
    while True:
        if isinstance(compiled := getattr(model, "_orig_mod", None), nn.Module):
            model = compiled
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def select_parameters(model: nn.Module, patterns: str | Sequence[str] | None = None) -> dict[str, nn.Parameter]:
    """Choose the parameters that make up theta.

    Args:
        model: the module; wrappers of ``torch.compile`` are stripped.
        patterns: shell patterns of parameter names (``"*.weight"``), or None for all that require a gradient.

    Returns:
        Name -> parameter, in the order of ``named_parameters``, tied ones once.

    Raises:
        ArgumentError: nothing requires a gradient, or a pattern matches nothing.
    """
    named = {name: p for name, p in inner_module(model).named_parameters() if p.requires_grad}
    if not named:
        raise ArgumentError("model: no parameter requires a gradient; expected at least one")
    if patterns is None:
        return named
    wanted = [patterns] if isinstance(patterns, str) else list(patterns)
    for pattern in wanted:
        if not fnmatch.filter(named, pattern):
            raise ArgumentError(
                f"parameters: the pattern '{pattern}' matches none of the parameters that require a gradient; "
                f"expected shell patterns of names such as {', '.join(list(named)[:4])}"
            )
    return {name: p for name, p in named.items() if any(fnmatch.fnmatchcase(name, w) for w in wanted)}


def select_buffers(model: nn.Module) -> dict[str, Tensor]:
    """Collect the buffers of a module, such as BatchNorm's running statistics.

    Args:
        model: the module; wrappers of ``torch.compile`` are stripped.

    Returns:
        Name -> buffer, in the order of ``named_buffers``, shared ones once.
    """
    return dict(inner_module(model).named_buffers())


def storage_dtype(dtypes: Iterable[torch.dtype]) -> torch.dtype:
    """Find the dtype that holds every value of a selection exactly: the widest one, at least float32.

    Args:
        dtypes: floating point dtypes.

    Returns:
        float32 or float64.

    Raises:
        ArgumentError: a dtype is not a real floating point one.
    """
    widest = torch.float32
    for dtype in dtypes:
        if not dtype.is_floating_point:
            raise ArgumentError(f"parameters: dtype {dtype} is not supported; expected real floating point parameters")
        widest = torch.promote_types(widest, dtype)
    return widest


@dataclass(frozen=True)
class Layout:
    """How named tensors lie in one flat vector.

    Attributes:
        names: the tensors' names, in order.
        shapes: their shapes.
        dtypes: their own dtypes, as ``"float32"``.
    """

    names: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[str, ...]

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor]) -> Layout:
        """Read the layout off named tensors.

        Args:
            tensors: name -> tensor of any shape.

        Returns:
            Their layout, in the order of the mapping.
        """
        return cls(
            tuple(tensors),
            tuple(tuple(t.shape) for t in tensors.values()),
            tuple(str(t.dtype).removeprefix("torch.") for t in tensors.values()),
        )

    @cached_property
    def slices(self) -> tuple[slice, ...]:
        """Where each tensor lies in the vector."""
        ends, result = 0, []
        for shape in self.shapes:
            start, ends = ends, ends + prod(shape)
            result.append(slice(start, ends))
        return tuple(result)

    @property
    def size(self) -> int:
        """P, the length of the vector."""
        return self.slices[-1].stop if self.slices else 0

    @property
    def storage_dtype(self) -> torch.dtype:
        """The dtype in which vectors of this layout are kept exactly; float64 where integers take part."""
        own = [getattr(torch, name) for name in self.dtypes]
        return storage_dtype(own) if all(d.is_floating_point for d in own) else torch.float64

    def pack(self, tensors: Mapping[str, Tensor], dtype: torch.dtype | None = None, out: Tensor | None = None) -> Tensor:
        """Copy named tensors into one vector.

        Args:
            tensors: name -> tensor; must hold every name of the layout with its shape.
            dtype: of the result; the storage dtype if None.
            out: [P] written in place and returned, if given.

        Returns:
            theta [P], a copy that shares no memory with the tensors.

        Raises:
            ArgumentError: a name is missing or a shape differs.
        """
        self.check({name: tuple(t.shape) for name, t in tensors.items()})
        if out is None:
            device = next((t.device for t in tensors.values()), torch.device("cpu"))
            out = torch.empty(self.size, dtype=dtype or self.storage_dtype, device=device)
        with torch.no_grad():
            for name, where in zip(self.names, self.slices, strict=True):
                out[where].copy_(tensors[name].detach().reshape(-1))
        return out

    def unpack(self, theta: Tensor) -> dict[str, Tensor]:
        """Cut a vector into named tensors of the layout's shapes (views, in the dtype of the vector).

        Args:
            theta: [P].

        Returns:
            Name -> view of theta.

        Raises:
            ArgumentError: theta is not a vector of length P.
        """
        if theta.shape != (self.size,):
            raise ArgumentError(f"theta: expected shape ({self.size},), got {tuple(theta.shape)}")
        parts = zip(self.names, self.slices, self.shapes, strict=True)
        return {name: theta[where].view(shape) for name, where, shape in parts}

    def restore(self, theta: Tensor) -> dict[str, Tensor]:
        """Cut a vector into named tensors in their own shapes and dtypes (copies).

        Args:
            theta: [P].

        Returns:
            Name -> tensor.
        """
        dtypes = dict(zip(self.names, self.dtypes, strict=True))
        return {name: view.clone().to(getattr(torch, dtypes[name])) for name, view in self.unpack(theta).items()}

    def check(self, shapes: Mapping[str, tuple[int, ...]], argument: str = "parameters") -> None:
        """Hold names and shapes against this layout.

        Args:
            shapes: name -> shape of what came; further names are allowed.
            argument: what to call it in the message.

        Raises:
            ArgumentError: a name is missing or a shape differs.
        """
        for name, shape in zip(self.names, self.shapes, strict=True):
            if name not in shapes:
                raise ArgumentError(f"{argument}: '{name}' {shape} is expected and missing; got {', '.join(shapes) or 'nothing'}")
            if tuple(shapes[name]) != shape:
                raise ArgumentError(f"{argument}: '{name}' has shape {tuple(shapes[name])}, expected {shape}")

    def to_json(self) -> dict[str, Any]:
        """Describe the layout with JSON types.

        Returns:
            ``{"names": [...], "shapes": [...], "dtypes": [...]}``.
        """
        return {"names": list(self.names), "shapes": [list(s) for s in self.shapes], "dtypes": list(self.dtypes)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Layout:
        """Rebuild a layout from `to_json`.

        Args:
            data: what `to_json` returned.

        Returns:
            The layout.
        """
        return cls(tuple(data["names"]), tuple(tuple(s) for s in data["shapes"]), tuple(data["dtypes"]))


def whole_indices(indices: Any, count: int) -> Tensor:
    """Check the numbers of some of the examples.

    Args:
        indices: [n] whole numbers, at least one; a number may come twice.
        count: N.

    Returns:
        [n] int64 on the CPU.

    Raises:
        ArgumentError: a mask, fractions, or a number outside of [0, N).
    """
    named = torch.as_tensor(indices)
    if named.numel() and (named.dtype == torch.bool or named.is_floating_point() or named.is_complex()):
        raise ArgumentError(f"indices: expected whole numbers, got {named.dtype}; of a mask name mask.nonzero()[:, 0]")
    chosen = named.to(torch.int64).cpu()
    if chosen.ndim != 1 or not len(chosen) or int(chosen.min()) < 0 or int(chosen.max()) >= count:
        raise ArgumentError(f"indices: expected numbers in [0, {count}), at least one, got {chosen.tolist()}")
    return chosen
