"""An optimizer round another one that shows it other gradients; what the walkers that wrap another have in common."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sgdscope.errors import ArgumentError
from sgdscope.records import Surface
from sgdscope.vector import Layout, inner_module, select_parameters


def finite(vector: Tensor) -> Tensor:
    """The vector itself; `FloatingPointError` where it holds NaN or infinity."""
    if not bool(vector.isfinite().all()):
        raise FloatingPointError
    return vector


def _names(base: Optimizer, model: nn.Module, layout: Layout) -> list[str]:
    """The name of each parameter of the base, in the order of its groups; they must be those of the surface."""
    known = {id(p): name for name, p in inner_module(model).named_parameters()}
    names = []
    for number, group in enumerate(base.param_groups):
        for place, parameter in enumerate(group["params"]):
            name = known.get(id(parameter))
            if name is None:
                shape = tuple(parameter.shape)
                raise ArgumentError(f"base: parameter {place} {shape} of group {number} is none of the model's; build base on it")
            if name not in layout.names:
                why = "frozen, or left out by parameters=, when the surface was made"
                raise ArgumentError(f"base: it holds '{name}', which is not in the surface's theta ({why}); leave it out of base")
            names.append(name)
    if missing := [name for name in layout.names if name not in names]:
        raise ArgumentError(
            f"base: '{missing[0]}' is in the surface's theta and base does not move it; add it to base, or make the surface "
            "of the moved parameters alone (parameters=)"
        )
    return names


class Wrapper(Optimizer):
    """Takes the place of an optimizer: its `param_groups` and `state` are those of `base`; closures pass through.

    Args:
        base: the optimizer to wrap; its parameters must be exactly those of the surface.
        model: whose parameters are moved.
        surface: the loss as a function of theta.
        generator: from which a seed for all draws is taken, once; None for seed 0.

    Raises:
        ArgumentError: base, model and surface do not fit together.
    """

    def __init__(self, base: Optimizer, model: nn.Module, surface: Surface, generator: torch.Generator | None) -> None:
        if not isinstance(base, Optimizer):
            raise ArgumentError(f"base: expected a torch.optim.Optimizer, got {type(base).__name__}")
        self._layout: Layout = getattr(surface, "layout", None) or Layout.of(select_parameters(model))
        if (size := surface.theta().numel()) != self._layout.size:
            raise ArgumentError(f"surface: expected one of {self._layout.size} parameters, got {size}")
        own = dict(inner_module(model).named_parameters())
        self._layout.check({name: tuple(p.shape) for name, p in own.items()}, "model")
        self._index = {name: number for number, name in enumerate(_names(base, model, self._layout))}
        self._params = {name: own[name] for name in self._layout.names}
        self._model, self._surface = model, surface
        self._seed = 0 if generator is None else int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        super().__init__(base.param_groups, {})
        self.base = base
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state, self.defaults = self.base.param_groups, self.base.state, self.base.defaults

    def _theta(self) -> Tensor:
        return self._layout.pack(self._params)

    # --- the step ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def _changed(self, gradient: Tensor) -> Tensor:
        """The gradient [P] that base is to see."""

    def _plain_step(self, closure: Callable[[], Any] | None) -> Any:
        """Base's own step."""
        with torch.set_grad_enabled(closure is not None):
            return self.base.step() if closure is None else self.base.step(closure)

    def _changed_step(self, closure: Callable[[], Any] | None) -> Any:
        """Base's step on changed gradients; the user's are put back after it."""
        kept: list[Tensor | None] = []

        def put_back() -> None:
            for p, g in zip(self._params.values(), list(kept), strict=False):
                p.grad = g
            kept.clear()

        def evaluate() -> Any:
            put_back()
            with torch.enable_grad():
                value = closure() if closure is not None else None
            kept[:] = [p.grad for p in self._params.values()]
            self._change_gradients()
            return value

        try:
            if closure is not None:
                return self.base.step(evaluate)
            evaluate()
            return self.base.step()
        finally:
            put_back()

    @torch.no_grad()
    def _change_gradients(self) -> None:
        """Give base other gradient tensors; those of the user are not written to."""
        own = {name: p.grad if p.grad is not None else torch.zeros_like(p) for name, p in self._params.items()}
        gradient = self._layout.pack(own)
        changed = self._layout.unpack(self._changed(gradient).to(gradient))
        for name, p in self._params.items():
            if p.grad is not None:
                p.grad = changed[name].to(p.grad)

    # --- the state --------------------------------------------------------------------------------------------------------

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Clear the gradients, as base does."""
        self.base.zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Refuse with an `ArgumentError`: the parameters are those of the surface."""
        if hasattr(self, "base"):
            raise ArgumentError("param_group: theta is fixed by the surface; make a new surface, base and walker instead")
        super().add_param_group(param_group)

    def _held(self, vectors: Mapping[str, Tensor], key: str, told: dict[str, Any]) -> dict[str, Any]:
        """The state dict of base; beside its entries copies of vectors [..., P], and under parameter 0 JSON types as `key`."""
        held: dict[str, Any] = self.base.state_dict()
        state = {index: dict(values) for index, values in held["state"].items()}
        for name, where, shape in zip(self._layout.names, self._layout.slices, self._layout.shapes, strict=True):
            for vector, value in vectors.items():
                part = value[..., where].reshape(*value.shape[:-1], *shape).clone()
                state.setdefault(self._index[name], {})[vector] = part
        state.setdefault(0, {})[key] = told
        return held | {"state": state}

    def _freed(
        self, state_dict: Mapping[str, Any], vectors: Mapping[str, tuple[int | None, ...]], key: str
    ) -> tuple[dict[str, Tensor], Any]:
        """Give base its part of what `_held` gave.

        Args:
            state_dict: not changed; that of a bare base is taken too.
            vectors: name -> its shape before P, None for any length.
            key: of the JSON types.

        Returns:
            (the vectors [..., P] that are in it, the JSON types or None).
        """
        state = {index: dict(values) for index, values in state_dict["state"].items()}
        added = {name: {i: v.pop(name) for i, v in state.items() if name in v} for name in (*vectors, key)}
        joined = {name: self._joined(name, added[name], lead) for name, lead in vectors.items() if added[name]}
        inside = {i: v for i, v in state.items() if v or not any(i in parts for parts in added.values())}
        self.base.load_state_dict({**state_dict, "state": inside})
        self._share()
        return joined, added[key].get(0)

    def _joined(self, key: str, parts: Mapping[int, Tensor], lead: tuple[int | None, ...]) -> Tensor:
        """Put the parts [*lead, *shape] of the parameters together: [*lead, P]."""
        joined, n = [], len(lead)
        for name, shape in zip(self._layout.names, self._layout.shapes, strict=True):
            part = parts.get(self._index[name])
            came = None if part is None else tuple(part.shape)
            known = tuple(came[i] if own is None and came else own for i, own in enumerate(lead))
            if part is None or came != (*known, *shape):
                raise ArgumentError(
                    f"state_dict: expected the {key} of '{name}' as {(*known, *shape)}, got {came}; keep the walker's options"
                )
            joined.append(part.reshape(*part.shape[:n], -1))
        return torch.cat(joined, -1).to(next(iter(self._params.values())).device)
