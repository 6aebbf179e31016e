"""Settings for another batch size that keep the walk the same, for SGD, Adam, averages and schedules; with refusals."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sgdscope.errors import ArgumentError
from sgdscope.ranges import choice
from sgdscope.theory.inputs import above
from sgdscope.theory.scaling import sde_reasons
from sgdscope.theory.stability import stability_threshold

METHODS = ("sgd", "adam", "adamw", "rmsprop")
COUNTS = ("steps", "warmup", "milestones", "period")  # lengths in updates: divided by kappa
KNOWN: dict[str, tuple[str, ...]] = {
    "sgd": ("momentum", "nesterov", "dampening", "weight_decay"),
    "adam": ("betas", "eps", "weight_decay"),
    "adamw": ("betas", "eps", "weight_decay"),
    "rmsprop": ("alpha", "eps", "weight_decay", "momentum"),
}
SHARED = ("lr", "batch_size", "ema_decay", "batchnorm_momentum", *COUNTS)
ROUNDING = 1e-9  # of 1 - beta, so that 10 (1 - 0.9) is 1
MISMATCH = 0.01  # rounding of batches and lengths beyond which the settings are no longer the same walk


@dataclass(frozen=True)
class Rescaled:
    """Settings for a batch kappa times as large.

    Attributes:
        settings: under the same names.
        reasons: why the walk may still differ; empty where nothing is known to speak against it.
    """

    settings: dict[str, Any]
    reasons: tuple[str, ...]

    @property
    def valid(self) -> bool:
        """Nothing is known to speak against it.

        Returns:
            Whether there are no reasons.
        """
        return not self.reasons


def rescale(
    settings: Mapping[str, Any],
    kappa: float,
    *,
    method: str = "sgd",
    curvature: float | None = None,
    examples: int | None = None,
    noise_to_signal: float | None = None,
    eps_inside: bool = False,
) -> Rescaled:
    """Settings with batch kappa S that walk the same way an example, in the limit where an SDE describes both.

    * SGD, heavy ball or Nesterov: lr kappa, momentum, dampening and weight decay unchanged.
    * Adam, AdamW, RMSprop: lr sqrt(kappa); 1 - beta becomes kappa (1 - beta), for alpha too; eps / sqrt(kappa) where it is
      added to the root, as PyTorch does, eps / kappa inside the root. Weight decay: unchanged in Adam and RMSprop, where it
      is part of the gradient; times sqrt(kappa) in AdamW, where lr weight_decay theta is taken off at every update.
    * ``ema_decay`` rho becomes rho^kappa; ``batchnorm_momentum`` m (the share of the new batch) becomes 1 - (1 - m)^kappa.
    * ``steps``, ``warmup``, ``milestones``, ``period``, in updates: divided by kappa.

    Args:
        settings: ``lr`` and ``batch_size``, and any of the names above as PyTorch spells them.
        kappa: > 0; kappa S and the lengths over kappa must be whole numbers to 1 %.
        method: ``sgd``, ``adam``, ``adamw`` or ``rmsprop``.
        curvature: lambda_1, to hold the new learning rate of SGD against the threshold of stability.
        examples: N, to hold the new batch against.
        noise_to_signal: of the batch gradient at the given settings.
        eps_inside: eps is added inside the root.

    Returns:
        The settings, with what speaks against them.

    Raises:
        ArgumentError: an unknown name or method, kappa (1 - beta) >= 1, a learning rate at or beyond the threshold of
            stability, a batch of more than the data, or lengths that do not divide.

    Source: Jastrzebski et al. 2017 (1711.04623) for SGD; Malladi et al. 2022 (2205.10287) for Adam, recalled for eps and
        tested on a noisy quadratic; Busbridge et al. 2023 (2307.13813) for averages; AdamW's weight decay and BatchNorm
        derived here.

    Example:
        >>> found = rescale({"lr": 1e-3, "batch_size": 32, "betas": (0.9, 0.99), "eps": 1e-8}, 4, method="adam")
        >>> {name: value for name, value in found.settings.items() if name != "betas"}
        {'lr': 0.002, 'batch_size': 128, 'eps': 5e-09}
    """
    choice("method", method, METHODS)
    above(kappa=kappa)
    _known(settings, method)
    new = {name: _scaled(name, value, kappa) for name, value in settings.items()}
    if method == "sgd":
        new["lr"] = settings["lr"] * kappa
    else:
        new |= _adaptive(settings, kappa, method, eps_inside)
    reasons = _limits(settings, new, kappa, noise_to_signal)
    if examples is not None and new["batch_size"] > examples:
        raise ArgumentError(
            f"kappa: a batch of {new['batch_size']} exceeds the {examples} examples; take kappa <= {_most(settings, examples)}"
        )
    if method == "sgd":
        reasons += _stable(new, curvature, examples)
    elif settings.get("momentum"):
        reasons += ("RMSprop with momentum: its momentum is kept, which no source states",)
    return Rescaled(new, reasons)


def _known(settings: Mapping[str, Any], method: str) -> None:
    for name in ("lr", "batch_size"):
        if name not in settings:
            raise ArgumentError(f"settings: expected '{name}' among them, got {', '.join(settings) or 'none'}")
        above(**{name: settings[name]})
    if strange := sorted(set(settings) - {*SHARED, *KNOWN[method]}):
        raise ArgumentError(
            f"settings: no rule for {', '.join(strange)} of {method}; known are {', '.join((*SHARED, *KNOWN[method]))}"
        )


def _scaled(name: str, value: Any, kappa: float) -> Any:
    """What does not depend on the method."""
    if name == "batch_size":
        return _whole(name, value * kappa)
    if name in COUNTS:
        return [_whole(name, v / kappa) for v in value] if name == "milestones" else _whole(name, value / kappa)
    if name == "ema_decay":
        return _between(name, value) ** kappa
    if name == "batchnorm_momentum":
        return -math.expm1(kappa * math.log1p(-_between(name, value)))
    return value


def _adaptive(settings: Mapping[str, Any], kappa: float, method: str, eps_inside: bool) -> dict[str, Any]:
    new: dict[str, Any] = {"lr": settings["lr"] * math.sqrt(kappa)}
    if "betas" in settings:
        new["betas"] = tuple(_memory(f"betas[{i}]", beta, kappa) for i, beta in enumerate(settings["betas"]))
    if "alpha" in settings:
        new["alpha"] = _memory("alpha", settings["alpha"], kappa)
    if "eps" in settings:
        new["eps"] = settings["eps"] / (kappa if eps_inside else math.sqrt(kappa))
    if method == "adamw" and "weight_decay" in settings:
        new["weight_decay"] = settings["weight_decay"] * math.sqrt(kappa)
    return new


def _memory(name: str, beta: float, kappa: float) -> float:
    if not 0 <= beta < 1:
        raise ArgumentError(f"{name}: expected 0 <= {name} < 1, got {beta}")
    if beta == 0 and kappa < 1:
        raise ArgumentError(f"{name}: no memory at all ({name} = 0) cannot be scaled to a smaller batch")
    if beta > 0 and kappa * (1 - beta) >= 1 - ROUNDING:
        raise ArgumentError(
            f"kappa: expected kappa (1 - {name}) < 1, got {kappa} (1 - {beta}) = {kappa * (1 - beta):.6g}; "
            f"take kappa < {1 / (1 - beta):.6g}"
        )
    return 1 - kappa * (1 - beta) if beta > 0 else 0.0


def _limits(settings: Mapping[str, Any], new: Mapping[str, Any], kappa: float, noise_to_signal: float | None) -> tuple[str, ...]:
    reasons: tuple[str, ...] = ()
    for index, beta in enumerate(new.get("betas", ())):
        if settings["betas"][index] and 1 - beta > 0.5:
            reasons += (f"betas[{index}] = {beta:.3g}: a memory of less than two updates, no SDE describes it",)
    if noise_to_signal is not None and kappa > 0.1 * noise_to_signal:
        reasons += (f"kappa = {kappa:.3g} is not far below the ratio of noise to signal, {noise_to_signal:.3g}",)
    return reasons


def _stable(new: Mapping[str, Any], curvature: float | None, examples: int | None) -> tuple[str, ...]:
    momentum = float(new.get("momentum", 0.0))
    if curvature is None:
        return ()
    threshold, _ = stability_threshold("sgd", new["lr"], momentum=momentum, nesterov=bool(new.get("nesterov", False)))
    if curvature >= threshold:
        raise ArgumentError(
            f"kappa: the new lr {new['lr']:.6g} is at or beyond the threshold of stability of curvature {curvature:.6g}; "
            f"take a factor below {threshold / curvature:.3g} of this kappa"
        )
    return sde_reasons(lr=new["lr"], curvature=curvature, momentum=momentum, batch_size=new["batch_size"], examples=examples)


def _whole(name: str, value: float) -> int:
    whole = round(value)
    if whole < 1 or abs(whole / value - 1) > MISMATCH:
        raise ArgumentError(f"kappa: {name} becomes {value:.6g}, not a whole number to 1 %; take another kappa")
    return whole


def _between(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise ArgumentError(f"{name}: expected 0 < {name} < 1, got {value}")
    return value


def _most(settings: Mapping[str, Any], examples: int) -> str:
    return f"{examples / settings['batch_size']:.6g}"
