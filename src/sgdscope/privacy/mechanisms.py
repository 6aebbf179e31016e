"""Noise that makes one gradient eps-differentially private: the gamma-norm mechanism for L2, Laplace's for L1."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sgdscope.errors import ArgumentError
from sgdscope.ranges import positive, whole

NORMS: dict[str, int] = {"l2": 2, "l1": 1}


def order(norm: str) -> int:
    """The order of a norm.

    Args:
        norm: ``"l2"`` or ``"l1"``.

    Returns:
        2 or 1.

    Raises:
        ArgumentError: another norm; the box noise of the released code for Linf is no private mechanism.
    """
    if norm not in NORMS:
        raise ArgumentError(f"norm: expected 'l2' (gamma-norm noise) or 'l1' (Laplace noise), got {norm!r}")
    return NORMS[norm]


def sensitivity(clip: float, batch: int = 1) -> float:
    """How far the mean gradient of a batch can move when one of its records is replaced: 2 clip / batch.

    Args:
        clip: the largest norm of one record's gradient, > 0.
        batch: number of records, >= 1.

    Returns:
        In the norm of `clip`.

    Raises:
        ArgumentError: out of range.
    """
    return 2 * positive("clip", clip) / whole("batch", batch, 1)


def clipped(gradient: Tensor, clip: float, norm: str = "l2") -> Tensor:
    """Scale one record's gradient down to a norm of at most `clip`: g min(1, clip / |g|).

    Args:
        gradient: [d], of one record; the mean over several records must not be clipped in place of theirs.
        clip: > 0; infinity leaves the gradient as it is.
        norm: ``"l2"`` or ``"l1"``.

    Returns:
        [d]; the gradient itself where it is short enough.

    Raises:
        ArgumentError: out of range, or the gradient is not finite.
    """
    length = float(torch.linalg.vector_norm(gradient, order(norm), dtype=torch.float64))
    if not math.isfinite(length):
        raise ArgumentError("gradient: expected finite numbers, got NaN or infinity; a lower learning rate may help")
    if isinstance(clip, bool) or not isinstance(clip, int | float) or not clip > 0:
        raise ArgumentError(f"clip: expected a number > 0, got {clip!r}")
    return gradient if length <= clip else gradient * (clip / length)


def gamma_noise(size: int, scale: float, generator: torch.Generator, *, count: int | None = None) -> Tensor:
    """Noise of density proportional to exp(-|z|_2 / scale) in `size` dimensions.

    z = r u, u uniform on the sphere, r ~ Gamma(size, scale): as many exponentials as dimensions added. E|z| = size scale; each
    coordinate has mean 0 and variance (size + 1) scale^2. A scalar Laplace length in place of r, as in the released code, has
    the right ratio bound in one dimension only.

    Args:
        size: d >= 1.
        scale: sensitivity / eps, > 0.
        generator: on the CPU.
        count: of independent vectors; None for one.

    Returns:
        [d] or [count, d], float64.

    Raises:
        ArgumentError: out of range.

    Cost: 2 d draws a vector.
    Source: Song, Chaudhuri & Sarwate 2013; specification, section 4, warning (i).
    """
    whole("size", size, 1)
    shape = (size,) if count is None else (count, size)
    length = -torch.log1p(-torch.rand(shape, generator=generator, dtype=torch.float64)).sum(-1, keepdim=True)
    direction = torch.randn(shape, generator=generator, dtype=torch.float64)
    unit: Tensor = direction / torch.linalg.vector_norm(direction, dim=-1, keepdim=True)
    return unit * (positive("scale", scale) * length)


def laplace_noise(size: int, scale: float, generator: torch.Generator, *, count: int | None = None) -> Tensor:
    """Noise of density proportional to exp(-|z|_1 / scale): a Laplace number for each coordinate, variance 2 scale^2.

    Args:
        size: d >= 1.
        scale: sensitivity / eps, > 0.
        generator: on the CPU.
        count: of independent vectors; None for one.

    Returns:
        [d] or [count, d], float64.

    Raises:
        ArgumentError: out of range.

    Source: Dwork, McSherry, Nissim & Smith 2006.
    """
    whole("size", size, 1)
    shape = (size,) if count is None else (count, size)
    draws = -torch.log1p(-torch.rand((2, *shape), generator=generator, dtype=torch.float64))
    return (draws[0] - draws[1]) * positive("scale", scale)


_NOISE: dict[str, Callable[..., Tensor]] = {"l2": gamma_noise, "l1": laplace_noise}


def noise(size: int, scale: float, generator: torch.Generator, norm: str = "l2", *, count: int | None = None) -> Tensor:
    """Noise for a query of d numbers whose sensitivity is measured in a norm.

    The double-precision numbers are not hardened against attacks on their last bits (Mironov 2012).

    Args:
        size: d >= 1.
        scale: sensitivity / eps, > 0.
        generator: on the CPU.
        norm: ``"l2"`` for `gamma_noise`, ``"l1"`` for `laplace_noise`.
        count: of independent vectors; None for one.

    Returns:
        [d] or [count, d], float64.
    """
    order(norm)
    return _NOISE[norm](size, scale, generator, count=count)


def log_ratio(z: Tensor, shift: Tensor, scale: float, norm: str = "l2") -> Tensor:
    """The logarithm of the density of the noise at z over that at z + shift: (|z + shift| - |z|) / scale.

    By the triangle inequality within -+ |shift| / scale, so within -+ eps where |shift| is at most the sensitivity.

    Args:
        z: [..., d].
        shift: [d] or [..., d], by how much a record moves the query.
        scale: of the noise.
        norm: of the noise.

    Returns:
        [...].
    """
    p = order(norm)
    further: Tensor = torch.linalg.vector_norm(z + shift, p, dim=-1) - torch.linalg.vector_norm(z, p, dim=-1)
    return further / positive("scale", scale)
