"""Adaptive inertia: the learning rate is the same for all parameters, their momentum is not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sgdscope.contracts import Source, walker
from sgdscope.errors import ArgumentError
from sgdscope.ranges import number, positive

_RANGES = {
    "lr": "> 0",
    "betas": "beta0 >= 0, 0 <= beta2 < 1",
    "eps": "0 < eps <= 1",
    "weight_decay": ">= 0",
    "decoupled": "true or false",
}


@walker(
    "adai",
    source=Source("Xie et al. 2022 (2006.15815)", "Algorithms 2 and 3, as in the authors' adai_optim/adai.py"),
    ranges=_RANGES,
    limit=({"eps": 1.0}, "sgd", {}),
)
class Adai(torch.optim.Optimizer):
    """Adaptive inertia: momentum that is small where the gradient is large, at one learning rate.

    With t = 1, 2, ... the number of the update of a parameter, all products elementwise:

        v <- beta2 v + (1 - beta2) g^2;  v_hat = v / (1 - beta2^t);  v_bar = mean of v_hat over all elements of all parameters
        beta1 = clip(1 - beta0 v_hat / v_bar, 0, 1 - eps);  prod <- prod beta1
        m <- beta1 m + (1 - beta1) g;  theta <- theta - lr m / (1 - prod)

    Weight decay w acts on the gradient, g = grad + w theta, or decoupled (AdaiW), theta <- (1 - lr w) theta before the
    update. m is a weighted mean of gradients, not their sum: lr is that of SGD without momentum. eps = 1 forces
    beta1 = 0: plain SGD, bit for bit. Two departures from the authors' code: the user's gradient is not written to by weight
    decay, and where all gradients so far were zero (v_bar = 0, there 0 / 0) beta1 is 1 - eps and theta stays.
    Parameters without a gradient are left out, of v_bar too.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, > 0.
        betas: (beta0, beta2), beta0 >= 0, 0 <= beta2 < 1.
        eps: the least 1 - beta1, 0 < eps <= 1.
        weight_decay: w >= 0.
        decoupled: how w acts.
        generator: accepted so that all walkers are built alike; this one draws nothing.

    Raises:
        ArgumentError: an argument is out of its range.

    Cost: three vectors of state: exp_avg (m), exp_avg_sq (v), beta1_prod (prod).
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        betas: tuple[float, float] = (0.1, 0.99),
        eps: float = 1e-3,
        weight_decay: float = 0.0,
        decoupled: bool = False,
        generator: torch.Generator | None = None,  # ruff: ignore[unused-method-argument] - the same for every walker
    ) -> None:
        positive("lr", lr)
        if not isinstance(betas, tuple | list) or len(betas) != 2:
            raise ArgumentError(f"betas: expected two numbers, beta0 and beta2, got {betas!r}")
        number("betas[0]", betas[0], ">= 0", lambda x: x >= 0)
        number("betas[1]", betas[1], "with 0 <= beta2 < 1", lambda x: 0 <= x < 1)
        number("eps", eps, "with 0 < eps <= 1", lambda x: 0 < x <= 1)
        number("weight_decay", weight_decay, ">= 0", lambda x: x >= 0)
        if not isinstance(decoupled, bool):
            raise ArgumentError(f"decoupled: expected true or false, got {decoupled!r}")
        told = {"lr": lr, "betas": (betas[0], betas[1]), "eps": eps, "weight_decay": weight_decay, "decoupled": decoupled}
        super().__init__(params, told)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add parameters; what a group does not say is as given at construction.

        Args:
            param_group: as in ``torch.optim.Optimizer``.

        Raises:
            ArgumentError: its learning rate or weight decay is out of range.
        """
        positive("lr", param_group.get("lr", self.defaults["lr"]))
        number("weight_decay", param_group.get("weight_decay", 0.0), ">= 0", lambda x: x >= 0)
        super().add_param_group(param_group)

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
        with torch.no_grad():
            moved = [(group, p, self._second_moment(group, p)) for group in self.param_groups for p in self._with_grad(group)]
            count = sum(p.numel() for _, p, _ in moved)
            total = torch.stack([v_hat.sum(dtype=torch.float64).cpu() for _, _, v_hat in moved]).sum() if moved else 0.0
            for group, p, v_hat in moved:
                self._move(group, p, v_hat, float(total) / count)
        return value

    @staticmethod
    def _with_grad(group: dict[str, Any]) -> list[Tensor]:
        return [p for p in group["params"] if p.grad is not None]

    @staticmethod
    def _gradient(group: dict[str, Any], p: Tensor) -> Tensor:
        assert p.grad is not None
        plain = group["decoupled"] or group["weight_decay"] == 0
        return p.grad if plain else p.grad.add(p, alpha=group["weight_decay"])

    def _second_moment(self, group: dict[str, Any], p: Tensor) -> Tensor:
        """Take the gradient into v; gives v_hat."""
        state = self.state[p]
        if not state:
            state.update(step=0, exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p), beta1_prod=torch.ones_like(p))
        state["step"] += 1
        beta2, g = group["betas"][1], self._gradient(group, p)
        state["exp_avg_sq"].mul_(beta2).addcmul_(g, g, value=1.0 - beta2)
        v_hat: Tensor = state["exp_avg_sq"] / (1.0 - beta2 ** state["step"])
        return v_hat

    def _move(self, group: dict[str, Any], p: Tensor, v_hat: Tensor, v_bar: float) -> None:
        """Average the gradient with the inertia of each element, and move."""
        state, g, most = self.state[p], self._gradient(group, p), 1.0 - group["eps"]
        ratio = v_hat / v_bar if v_bar != 0 else torch.zeros_like(v_hat)
        beta1 = (1.0 - group["betas"][0] * ratio).clamp(0.0, most)
        if group["decoupled"] and group["weight_decay"] != 0:
            p.mul_(1.0 - float(group["lr"]) * group["weight_decay"])
        state["beta1_prod"].mul_(beta1)
        state["exp_avg"].mul_(beta1).addcmul_(1.0 - beta1, g)
        p.add_(state["exp_avg"] / (1.0 - state["beta1_prod"]), alpha=-float(group["lr"]))  # as SGD moves, for its last bits
