"""The curvature beyond which descent diverges, for the optimizer that is used."""

from __future__ import annotations

import math

from sgdscope.errors import ArgumentError

MOMENTS = ("adam", "adamw", "amsgrad", "nadam", "radam", "rmsprop", "adagrad")


def stability_threshold(
    method: str, lr: float, *, momentum: float = 0.0, nesterov: bool = False, beta1: float = 0.9
) -> tuple[float, str]:
    """The curvature beyond which full-batch descent on a quadratic diverges, for the method that is used.

    * SGD with heavy ball mu (v <- mu v + g, theta <- theta - lr v): 2 (1 + mu) / lr; 2 / lr without momentum.
    * Nesterov: 2 (1 + mu) / (lr (1 + 2 mu)).
    * Adam and its family, where the preconditioner D changes slowly: (2 + 2 beta1) / ((1 - beta1) lr), of the preconditioned
      Hessian D^(-1/2) H D^(-1/2), D = sqrt(v) + eps, not of H. RMSprop and Adagrad: beta1 = 0, 2 / lr.

    Of one quadratic in one direction; decoupled weight decay and mini-batch noise are left out (noise lowers it).

    Args:
        method: ``"sgd"`` or the name of a method that divides by the root of a second moment, in any case.
        lr: learning rate, > 0.
        momentum: 0 <= mu < 1.
        nesterov: Nesterov's form.
        beta1: of Adam, 0 <= beta1 < 1.

    Returns:
        (threshold, ``"hessian"`` or ``"preconditioned"``: of which matrix), in units of loss/theta^2 for the Hessian.

    Raises:
        ArgumentError: a number is out of range, or the method is not known.

    Source: Cohen et al. 2021 (2103.00065), section 2 and appendix B; Cohen et al. 2022 (2207.14484), section 3.

    Example:
        >>> round(stability_threshold("sgd", 0.1, momentum=0.9)[0], 9), round(stability_threshold("adam", 0.1)[0], 9)
        (38.0, 380.0)
    """
    for name, value, inside in (("lr", lr, lr > 0), ("momentum", momentum, 0 <= momentum < 1), ("beta1", beta1, 0 <= beta1 < 1)):
        if not (inside and math.isfinite(value)):
            raise ArgumentError(
                f"{name}: expected {'a finite number > 0' if name == 'lr' else '0 <= ' + name + ' < 1'}, got {value}"
            )
    kind = method.lower()
    if kind == "sgd":
        return 2 * (1 + momentum) / (lr * (1 + 2 * momentum if nesterov else 1)), "hessian"
    if kind in MOMENTS:
        beta = 0.0 if kind in {"rmsprop", "adagrad"} else beta1
        return (2 + 2 * beta) / ((1 - beta) * lr), "preconditioned"
    raise ArgumentError(f"method: no threshold of stability is known for '{method}'; expected sgd, {', '.join(MOMENTS)}")
