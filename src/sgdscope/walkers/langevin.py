"""Langevin dynamics: gradient descent with white noise whose strength is a temperature."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sgdscope.contracts import Source, walker
from sgdscope.directions import private
from sgdscope.ranges import number, positive


@walker(
    "sgld",
    source=Source("Welling & Teh 2011; Xie, Sato & Sugiyama 2021 (2002.03495)", "SGLD, Theorem 1"),
    ranges={"lr": "> 0", "temperature": ">= 0", "weight_decay": ">= 0"},
    limit=({"temperature": 0.0}, "sgd", {}),
)
class SGLD(torch.optim.SGD):
    """Stochastic gradient Langevin dynamics: a gradient step and white noise of a given temperature.

    theta <- theta - lr (g + weight_decay theta) + sqrt(2 lr T) xi, xi ~ N(0, I) fresh at each update, T = `temperature`.

    With g the full gradient this is the Euler scheme of d theta = -grad L dt + sqrt(2 D) dW at dt = lr, with D = T: for
    lr -> 0 it samples exp(-L / T), and the escape over a barrier dL takes exp(dL / T). So T is in units of the loss, and
    T = 1 / N samples the posterior of N examples of which L is the mean negative log likelihood. Mini-batch noise of
    covariance C / B has D = lr C / (2 B): the T of the same total strength is lr Tr C / (2 B P), lr / (2 B) where C = I.
    At a finite lr the variance in a quadratic of curvature h is 2 T / (h (2 - lr h)), above T / h. With mini-batches their
    own noise comes on top. Where the gradient is sparse or missing, the noise is there all the same.

    Args:
        params: parameters or parameter groups; each group has its own lr, temperature and weight_decay.
        lr: learning rate, > 0.
        temperature: T >= 0, loss; 0 is SGD bit for bit.
        weight_decay: >= 0, added to the gradient.
        generator: from which a seed for all draws is taken, once; None for seed 0. A draw depends on it and on the number of
            the update alone, so that `state_dict` holds two whole numbers for it.

    Raises:
        ArgumentError: an argument is out of its range.

    Cost: P normal numbers an update, drawn in float64 on the CPU.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        temperature: float = 1e-4,
        weight_decay: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        positive("lr", lr)
        number("temperature", temperature, ">= 0", lambda x: x >= 0)
        number("weight_decay", weight_decay, ">= 0", lambda x: x >= 0)
        seed = 0 if generator is None else int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        super().__init__(params, lr=lr, weight_decay=weight_decay)
        self.defaults["temperature"] = float(temperature)
        for group in self.param_groups:
            number("temperature", group.setdefault("temperature", float(temperature)), ">= 0", lambda x: x >= 0)
        self._first.update(seed=seed, update=0)

    @property
    def _first(self) -> dict[str, Any]:
        """The state of the first parameter, where the seed and the number of the update are kept."""
        state: dict[str, Any] = self.state[self.param_groups[0]["params"][0]]
        return state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; without a temperature of its own a group has the one given at construction.

        Args:
            param_group: as in ``torch.optim.Optimizer``.

        Raises:
            ArgumentError: its learning rate or temperature is out of range.
        """
        positive("lr", param_group.get("lr", self.defaults["lr"]))
        number("temperature", param_group.get("temperature", 0.0), ">= 0", lambda x: x >= 0)
        super().add_param_group(param_group)

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; that of plain SGD is taken too, and then the noise starts anew.

        Args:
            state_dict: not changed.
        """
        own = {key: self._first[key] for key in ("seed", "update")}
        groups = [{"temperature": self.defaults["temperature"]} | group for group in state_dict["param_groups"]]
        super().load_state_dict({**state_dict, "param_groups": groups})
        for key, value in own.items():
            self._first.setdefault(key, value)

    def step(self, closure: Any = None) -> Any:
        """One update.

        Args:
            closure: re-evaluates the loss; may be None.

        Returns:
            What the closure returned.
        """
        value = self._descent().step(closure)
        generator = private(self._first["seed"], self._first["update"])
        with torch.no_grad():
            for group in self.param_groups:
                scale = math.sqrt(2.0 * float(group["lr"]) * float(group["temperature"]))
                for p in group["params"]:
                    if scale > 0:
                        p.add_(_normal(p, generator), alpha=scale)
        self._first["update"] += 1
        return value

    def _descent(self) -> torch.optim.SGD:
        """Plain SGD on the same groups and state: torch would call the hooks of this walker again inside of ``super().step``."""
        if "_plain" not in self.__dict__:  # not kept by pickle
            self._plain = torch.optim.SGD([torch.zeros(1)], lr=1.0)
        self._plain.param_groups, self._plain.state = self.param_groups, self.state
        return self._plain


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=torch.float64).to(like)
