"""Descent: SGD with momentum, Adam and AdamW as walkers. Full-batch gradient descent is SGD on batch_size = "full"."""

from __future__ import annotations

import math
from typing import Any

import torch

from sgdscope.contracts import Source, walker
from sgdscope.errors import ArgumentError

_SGD_RANGES = {"lr": "> 0", "momentum": "0 <= momentum < 1", "weight_decay": ">= 0", "nesterov": "only with momentum > 0"}
_ADAM_RANGES = {"lr": "> 0", "betas": "each 0 <= beta < 1", "eps": "> 0", "weight_decay": ">= 0"}


def _check(name: str, value: float, expected: str, inside: bool) -> None:
    if not (inside and math.isfinite(value)):
        raise ArgumentError(f"{name}: expected a finite number {expected}, got {value!r}")


@walker("sgd", source=Source("Robbins & Monro 1951; Polyak 1964; Sutskever et al. 2013"), ranges=_SGD_RANGES)
class SGD(torch.optim.SGD):
    """Stochastic gradient descent, with heavy-ball or Nesterov momentum and L2 weight decay.

    g = grad + weight_decay theta; v <- momentum v + g (v = g at the first update); theta <- theta - lr v, or with Nesterov
    theta <- theta - lr (g + momentum v). With momentum 0 and weight_decay 0 this is theta <- theta - lr grad, the plain walk.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, > 0.
        momentum: 0 <= momentum < 1.
        weight_decay: >= 0.
        nesterov: needs momentum > 0.
        generator: accepted so that all walkers are built alike; this one draws nothing.

    Raises:
        ArgumentError: an argument is out of its range.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        generator: torch.Generator | None = None,  # ruff: ignore[unused-method-argument] - the same for every walker
    ) -> None:
        _check("lr", lr, "> 0", lr > 0)
        _check("momentum", momentum, "with 0 <= momentum < 1", 0 <= momentum < 1)
        _check("weight_decay", weight_decay, ">= 0", weight_decay >= 0)
        if nesterov and momentum == 0:
            raise ArgumentError("nesterov: needs momentum > 0, got momentum 0; give a momentum such as 0.9 or leave nesterov out")
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay, nesterov=nesterov)


def _check_adam(lr: float, betas: tuple[float, float], eps: float, weight_decay: float) -> None:
    _check("lr", lr, "> 0", lr > 0)
    if len(betas) != 2:
        raise ArgumentError(f"betas: expected two numbers, got {betas!r}")
    for i, beta in enumerate(betas):
        _check(f"betas[{i}]", beta, "with 0 <= beta < 1", 0 <= beta < 1)
    _check("eps", eps, "> 0", eps > 0)
    _check("weight_decay", weight_decay, ">= 0", weight_decay >= 0)


@walker("adam", source=Source("Kingma & Ba 2015 (1412.6980)", "Algorithm 1"), ranges=_ADAM_RANGES)
class Adam(torch.optim.Adam):
    """Adam; weight decay is added to the gradient.

    g = grad + weight_decay theta; m <- beta1 m + (1 - beta1) g; v <- beta2 v + (1 - beta2) g^2;
    theta <- theta - lr (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps), t = 1, 2, ...

    Args:
        params: parameters or parameter groups.
        lr: learning rate, > 0.
        betas: (beta1, beta2), each 0 <= beta < 1.
        eps: > 0.
        weight_decay: >= 0.
        generator: accepted so that all walkers are built alike; this one draws nothing.

    Raises:
        ArgumentError: an argument is out of its range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        generator: torch.Generator | None = None,  # ruff: ignore[unused-method-argument] - the same for every walker
    ) -> None:
        _check_adam(lr, betas, eps, weight_decay)
        super().__init__(params, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay)


@walker(
    "adamw",
    source=Source("Loshchilov & Hutter 2019 (1711.05101)", "Algorithm 2"),
    ranges=_ADAM_RANGES,
    limit=({"weight_decay": 0.0}, "adam", {"weight_decay": 0.0}),
)
class AdamW(torch.optim.AdamW):
    """Adam with decoupled weight decay: theta <- theta - lr weight_decay theta before Adam's update on the bare gradient.

    Args:
        params: parameters or parameter groups.
        lr: learning rate, > 0.
        betas: (beta1, beta2), each 0 <= beta < 1.
        eps: > 0.
        weight_decay: >= 0.
        generator: accepted so that all walkers are built alike; this one draws nothing.

    Raises:
        ArgumentError: an argument is out of its range.
    """

    def __init__(
        self,
        params: Any,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        generator: torch.Generator | None = None,  # ruff: ignore[unused-method-argument] - the same for every walker
    ) -> None:
        _check_adam(lr, betas, eps, weight_decay)
        super().__init__(params, lr=lr, betas=(betas[0], betas[1]), eps=eps, weight_decay=weight_decay)
