"""Projected Langevin Monte Carlo: a gradient step and white noise, kept in a convex body."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from sgdscope.bodies import NAMED, Body, around
from sgdscope.contracts import Source, walker
from sgdscope.directions import private
from sgdscope.errors import ArgumentError
from sgdscope.ranges import number, positive
from sgdscope.vector import Layout

_LOG = logging.getLogger(__name__)
_EDGES = ("project", "reflect")


@walker(
    "projected",
    source=Source("Bubeck, Eldan & Lehec 2018 (1507.02564)", "the iteration of section 1"),
    ranges={
        "lr": "> 0, twice that of a gradient step",
        "temperature": ">= 0",
        "body": f"{', '.join(NAMED)}, round the point of the first update; or a Body, in Python",
        "radius": "> 0, of a ball or half the side of a box",
        "edge": ", ".join(_EDGES),
    },
    limit=({"radius": 1e9, "temperature": 0.2}, "sgld", {"lr": 0.015, "temperature": 0.2}),
)
class ProjectedLangevin(torch.optim.Optimizer):
    """Projected Langevin Monte Carlo: samples exp(-f / T) on a convex body K, up to an error of the order of sqrt(lr).

    theta <- P_K(theta - (lr / 2) g + sqrt(lr T) xi), xi ~ N(0, I) fresh at each update, T = `temperature`, P_K the projection.

    With T = 1 and g = grad f this is the paper's iteration, its eta = lr; the gradient step is lr / 2, so that `sgld` of half
    the lr is its limit in a wide body, and with T = 0 SGD of half the lr, both bit for bit. T is in units of f: a mean loss
    over N examples has T = 1 / N for their posterior. With the gradient of a mini-batch its own noise comes on top.

    The samples on the surface of K are atoms that exp(-f / T) does not have: on a uniform target their share is about
    sqrt(lr T / 2) times the density of the surface (`theory.boundary_mass`), in one dimension all of the error. `hits` counts
    the updates that left K; take the points after the others to drop the atoms (which does not make up for what is missing
    beside the surface), or edge = "reflect", which mirrors instead of projecting: no atoms, on a box no error for a uniform
    target, and another iteration than the paper's.

    "ball" and "box" lie round the point before the first update, the checkpoint: |theta - theta_0| <= radius, or every
    |theta_i - theta_0i| <= radius. "space" is no bound. A start outside of a given Body is projected at once, and logged.

    Args:
        params: parameters or parameter groups, each with its own lr and temperature; one body for all, in their order.
        lr: eta > 0.
        temperature: T >= 0.
        body: "ball", "box", "space", or a `Body` of as many dimensions as there are parameters.
        radius: > 0, of a ball or half the side of a box; not used with others.
        edge: "project" as in the paper, or "reflect".
        generator: from which a seed for all draws is taken, once; None for seed 0. A draw depends on it and on the number of
            the update alone.

    Attributes:
        body: the Body in force; None before the first update, and in the whole space.
        moved: how far outside of a given Body the start lay; 0 inside.

    Raises:
        ArgumentError: an argument is out of its range, or the body has another dimension.

    Cost: P normal numbers an update, drawn in float64 on the CPU, and a projection of theta. Memory: the centre and a copy.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        temperature: float = 1.0,
        body: Body | Literal["ball", "box", "space"] = "ball",
        radius: float = 1.0,
        edge: Literal["project", "reflect"] = "project",
        generator: torch.Generator | None = None,
    ) -> None:
        if not isinstance(body, Body) and body not in NAMED:
            raise ArgumentError(f"body: expected one of {', '.join(NAMED)} or a Body, got {body!r}")
        if edge not in _EDGES:
            raise ArgumentError(f"edge: expected one of {', '.join(_EDGES)}, got {edge!r}")
        positive("radius", radius)
        seed = 0 if generator is None else int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        self._given = body if isinstance(body, Body) else None
        told = body if isinstance(body, str) else repr(body)
        defaults = {"lr": lr, "temperature": temperature, "body": told, "radius": float(radius), "edge": edge}
        self._whole = False
        super().__init__(params, defaults)
        self._whole = True
        self._layout = Layout.of(self._named)
        self._made: tuple[str, float] | None = None
        self.body: Body | None = self._given
        self.moved = 0.0 if self._given is None else self._enter(self._given)
        self._first.update(seed=seed, update=0, hits=0)

    @property
    def _params(self) -> list[Tensor]:
        return [p for group in self.param_groups for p in group["params"]]

    @property
    def _named(self) -> dict[str, Tensor]:
        return {str(i): p for i, p in enumerate(self._params)}

    @property
    def _first(self) -> dict[str, Any]:
        """The state of the first parameter, where seed, update and hits are kept."""
        state: dict[str, Any] = self.state[self._params[0]]
        return state

    @property
    def updates(self) -> int:
        """How many updates were made."""
        return int(self._first["update"])

    @property
    def hits(self) -> int:
        """How many of them left the body and were brought back."""
        return int(self._first["hits"])

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take a group at construction; later ones are refused, as the body has its dimension.

        Args:
            param_group: as in ``torch.optim.Optimizer``.

        Raises:
            ArgumentError: lr or temperature out of range, or too late.
        """
        if self._whole:
            raise ArgumentError("param_group: the body's dimension is fixed; give all parameters at construction")
        options = self.defaults | param_group
        positive("lr", options["lr"])
        number("temperature", options["temperature"], ">= 0", lambda x: x >= 0)
        super().add_param_group(param_group)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update.

        Args:
            closure: re-evaluates the loss; may be None.

        Returns:
            What the closure returned.
        """
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        self._settle()
        self._move()
        if self.body is not None:
            self._first["hits"] += self._keep(self.body)
        self._first["update"] += 1
        return value

    def _move(self) -> None:
        generator = private(self._first["seed"], self._first["update"])
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.add_(p.grad, alpha=-float(group["lr"]) / 2)
        for group in self.param_groups:
            scale = math.sqrt(float(group["lr"]) * float(group["temperature"]))
            for p in group["params"]:
                if scale > 0:
                    p.add_(torch.randn(p.shape, generator=generator, dtype=torch.float64).to(p), alpha=scale)

    def _settle(self) -> None:
        """Put the body where it belongs: a named one round the point of the first update, which the state keeps."""
        if self._given is not None:
            return
        name, radius = str(self.param_groups[0]["body"]), float(self.param_groups[0]["radius"])
        if name != "space" and "centre" not in self.state[self._params[0]]:
            for p in self._params:
                self.state[p]["centre"] = p.detach().clone()
        if self._made != (name, radius):
            centre = None if name == "space" else self._layout.pack({k: self.state[p]["centre"] for k, p in self._named.items()})
            self.body = None if centre is None else around(name, centre, radius)
            self._made = (name, radius)

    def _keep(self, body: Body) -> bool:
        """Bring theta back; whether it had left. Points of the body keep their bits."""
        theta = self._layout.pack(self._named)
        reflect = self.param_groups[0]["edge"] == "reflect"
        near = body.reflect(theta) if reflect else body.project(theta)
        if torch.equal(near, theta):
            return False
        self._write(near)
        return True

    def _write(self, theta: Tensor) -> None:
        for p, part in zip(self._params, self._layout.unpack(theta).values(), strict=True):
            p.copy_(part)

    @torch.no_grad()
    def _enter(self, body: Body) -> float:
        """Project a start that lies outside of a given body; how far outside it lay."""
        if body.size != self._layout.size:
            raise ArgumentError(f"body: expected one of {self._layout.size} dimensions, as many as parameters, got {body!r}")
        theta = self._layout.pack(self._named)
        near = body.project(theta)
        distance = float(torch.linalg.vector_norm(theta - near))
        if distance > 0:
            self._write(near)
            _LOG.warning("params: the start lies %.3g outside of %r and was projected", distance, body)
        return distance

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, the centre included; a given Body has to be given again at construction.

        Args:
            state_dict: not changed; that of another walker brings its lr, and the noise starts anew.

        Raises:
            ArgumentError: it was walked in another kind of body.
        """
        own, here = {key: self._first[key] for key in ("seed", "update", "hits")}, self.param_groups[0]["body"]
        groups = [{k: v for k, v in self.defaults.items() if k != "lr"} | group for group in state_dict["param_groups"]]
        came = groups[0]["body"]
        if came != here and (self._given is not None or came not in NAMED):
            raise ArgumentError(
                f"state_dict: it was walked in {came}, this walker has {here}; give the same body at construction"
            )
        super().load_state_dict({**state_dict, "param_groups": groups})
        for key, value in own.items():
            self._first.setdefault(key, value)
        self._made = None
