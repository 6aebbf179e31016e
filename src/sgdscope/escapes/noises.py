"""What pushes walkers out of a valley: batches, white noise, noise of the size of |H|, or of a given covariance."""

# ruff: file-ignore[unused-method-argument] -- every noise is told the learning rate, also one that needs none
from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt
from typing import Protocol

import torch
from torch import Tensor

from sgdscope.errors import ArgumentError, Outcome
from sgdscope.escapes.potentials import F64, Potential, above, count
from sgdscope.spectra import eigenpairs


class Noise(Protocol):
    """How a walker's gradient is made."""

    def gradient(self, potential: Potential, thetas: Tensor, lr: float, generator: torch.Generator) -> Tensor:
        """The noisy gradient of each row, [W, d]."""


def _normal(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(like.shape, generator=generator, dtype=F64)


@dataclass(frozen=True)
class Minibatch:
    """The gradient over B examples, drawn afresh and with replacement by each walker.

    Attributes:
        batch_size: B, at least 1.
    """

    batch_size: int

    def __post_init__(self) -> None:
        """The batch size is checked."""
        count("batch_size", self.batch_size)

    def gradient(self, potential: Potential, thetas: Tensor, lr: float, generator: torch.Generator) -> Tensor:
        """The gradient over own batches, [W, d]."""
        return potential.minibatch(thetas, self.batch_size, generator)


@dataclass(frozen=True)
class White:
    """SGLD: the full gradient, and noise of the same size in each direction: d theta = -lr grad L + sqrt(2 D lr) z.

    Attributes:
        diffusion: D, the temperature, > 0.
    """

    diffusion: float

    def __post_init__(self) -> None:
        """The temperature is checked."""
        above("diffusion", self.diffusion)

    def gradient(self, potential: Potential, thetas: Tensor, lr: float, generator: torch.Generator) -> Tensor:
        """The full gradient + sqrt(2 D / lr) z, [W, d]."""
        return potential.gradient(thetas).add_(_normal(thetas, generator), alpha=sqrt(2.0 * self.diffusion / lr))


@dataclass(frozen=True)
class Shaped:
    """The full gradient and Gaussian noise of covariance |H| / B along each axis: D(theta) = lr |H(theta)| / (2 B), as Ito.

    |H| is piecewise constant between the inflections: then the path parameter s of Theorem 2 is exact. With `smooth` it is
    |H(theta)| + smooth, which vanishes with `smooth` at the inflection, and the exponent diverges logarithmically. With
    `of_loss` it is multiplied by 2 L(theta), the multiplicative noise of a mean square error.

    Attributes:
        batch_size: B > 0; need not be whole, since no examples are drawn.
        smooth: >= 0; None for piecewise constant.
        of_loss: whether the covariance is 2 L |H| / B.

    Source: diffusion_langevin_distributed, Theorem 2, S2, S3; Mori et al. 2022 (2105.09557) for `of_loss`.
    """

    batch_size: float
    smooth: float | None = None
    of_loss: bool = False

    def __post_init__(self) -> None:
        """The numbers are checked."""
        above("batch_size", self.batch_size)
        if self.smooth is not None:
            above("smooth", self.smooth, -1e-300)

    def gradient(self, potential: Potential, thetas: Tensor, lr: float, generator: torch.Generator) -> Tensor:
        """The full gradient + sqrt(|H| / B) z, [W, d]."""
        covariance = potential.curvature(thetas, self.smooth) / self.batch_size
        if self.of_loss:
            covariance = covariance * 2.0 * potential.value(thetas).clamp(min=0.0)[:, None]
        return torch.addcmul(potential.gradient(thetas), covariance.sqrt_(), _normal(thetas, generator))


@dataclass(frozen=True)
class Prescribed:
    """The full gradient and Gaussian noise of a constant covariance F F' / B.

    Attributes:
        factor: F, [d, m].
        batch_size: B > 0.
    """

    factor: Tensor
    batch_size: float = 1.0

    def __post_init__(self) -> None:
        """The factor is checked."""
        above("batch_size", self.batch_size)
        if self.factor.ndim != 2 or not torch.isfinite(self.factor).all():
            raise ArgumentError(f"factor: expected a finite matrix [d, m], got shape {tuple(self.factor.shape)}")

    def gradient(self, potential: Potential, thetas: Tensor, lr: float, generator: torch.Generator) -> Tensor:
        """The full gradient + F z / sqrt(B), [W, d]."""
        draws = torch.randn(len(thetas), self.factor.shape[1], generator=generator, dtype=F64)
        return potential.gradient(thetas) + draws @ self.factor.to(F64).T / sqrt(self.batch_size)

    def isotropic(self) -> Prescribed:
        """Noise of the same trace and no preferred direction, so that the part of the shape is seen."""
        d = self.factor.shape[0]
        return Prescribed(torch.eye(d, dtype=F64) * float(self.factor.norm()) / sqrt(d), self.batch_size)


def hessian_noise(
    matvec: Callable[[Tensor], Tensor],
    size: int,
    *,
    rank: int,
    batch_size: float,
    generator: torch.Generator,
    tolerance: float = 1e-4,
) -> Prescribed:
    """Noise of covariance |H| / B on the top eigenvectors of a Hessian: what SGD has near a minimum, without its examples.

    F = V sqrt(|Lambda|), V the eigenvectors of the `rank` algebraically largest eigenvalues.

    Args:
        matvec: Hessian products v [P] -> H v [P], such as `network.hvp` or `surface.linearized(theta).hvp`.
        size: P.
        rank: m, at most P.
        batch_size: B > 0.
        generator: draws the start of the iteration.
        tolerance: of the eigenpairs' residuals, relative.

    Returns:
        The noise.

    Raises:
        ArgumentError: an eigenpair did not converge.

    Cost: some `rank` to 10 `rank` Hessian products.
    """
    found = eigenpairs(matvec, size, count("rank", rank), tolerance=tolerance, generator=generator, dtype=F64)
    if found.outcome is not Outcome.ok:
        raise ArgumentError(f"rank: not all of {rank} eigenpairs converged to {tolerance:g} ({found.reason}); ask for fewer")
    return Prescribed(found.vectors.to(F64) * found.values.abs().sqrt(), batch_size)
