"""Surfaces with N examples whose gradient covariance is known, and surfaces moved to other coordinates, in float64."""

# ruff: file-ignore[unused-method-argument] -- the signatures are those of the protocol `records.Surface`
from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from sgdscope.errors import ArgumentError
from sgdscope.landscapes.surfaces import Buffers, Landscape, symmetric, vector
from sgdscope.ranges import positive


class NoisyQuadratic(Landscape):
    """A quadratic with N examples: l_i(theta) = offset + 1/2 (theta - c_i)' H_i (theta - c_i), L = mean_i l_i.

    Exact: with one H for all, the gradient of example i is H (theta - c_i), its covariance over the examples is
    C = H Cov(c) H at every theta (Cov with 1/N), the minimum is the mean of c. With own H_i the minimum solves
    mean(H_i) theta = mean(H_i c_i) and the covariance depends on theta. A batch of B examples has covariance C / B with
    replacement and C / B (N - B) / (N - 1) without. Stochastic gradient descent with fresh batches, one H:
    (I(x)I - (I - eta H)(x)(I - eta H)) vec S = eta^2 vec(C / B) gives the stationary covariance S of theta.

    Args:
        hessian: H [P, P], or one for each example [N, P, P].
        centres: c [N, P].
        offset: added to every loss.
        start: [P], what `theta` returns; the minimum plus 1 if None.
    """

    def __init__(self, hessian: Any, centres: Any, *, offset: float = 0.0, start: Any = None) -> None:
        self.centres = torch.as_tensor(centres, dtype=torch.float64).detach().clone()
        if self.centres.ndim != 2 or self.centres.shape[0] < 2:
            raise ArgumentError(f"centres: expected [N, P] with N >= 2, got shape {tuple(self.centres.shape)}")
        n, size = self.centres.shape
        self.matrices = symmetric(hessian, "hessian", size)
        if self.matrices.ndim == 3 and self.matrices.shape[0] != n:
            raise ArgumentError(f"hessian: expected one matrix or {n}, one for each centre; got {self.matrices.shape[0]}")
        self.offset = float(offset)
        origin = self.minimum + 1.0 if start is None else vector(start, "start", size)
        constants = {"hessian": self.matrices, "centres": self.centres, "offset": self.offset}
        super().__init__(origin, constants, examples=n)

    @classmethod
    def with_noise(
        cls, hessian: Any, noise: Any, *, examples: int, generator: torch.Generator, centre: Any = None, start: Any = None
    ) -> NoisyQuadratic:
        """Make examples whose gradients have a wanted covariance, exactly and not only in expectation.

        Args:
            hessian: H [P, P], invertible.
            noise: C [P, P], the covariance (1/N) of the examples' gradients, positive definite.
            examples: N > P.
            generator: draws the centres, which are then whitened: mean `centre`, Cov(c) = H^-1 C H^-1.
            centre: the minimum [P]; zero if None.
            start: [P], what `theta` returns; the minimum plus 1 if None.

        Returns:
            The surface.

        Raises:
            ArgumentError: N is not above P, or a matrix has the wrong shape or is not positive definite.
        """
        matrix, wanted = symmetric(hessian, "hessian"), symmetric(noise, "noise")
        size = matrix.shape[0]
        if examples <= size:
            raise ArgumentError(f"examples: expected more than P = {size}, got {examples}")
        root, failed = torch.linalg.cholesky_ex(wanted)
        if wanted.shape != (size, size) or int(failed) != 0:
            raise ArgumentError(f"noise: expected a positive definite matrix of shape ({size}, {size})")
        middle = torch.zeros(size, dtype=torch.float64) if centre is None else vector(centre, "centre", size)
        raw = torch.randn(examples, size, dtype=torch.float64, generator=generator)
        raw = raw - raw.mean(0)
        white = torch.linalg.solve_triangular(torch.linalg.cholesky(raw.T @ raw / examples), raw.T, upper=False)
        return cls(matrix, middle + torch.linalg.solve(matrix, root @ white).T, start=start)

    @property
    def stochastic(self) -> bool:
        """Always."""
        return True

    @property
    def minimum(self) -> Tensor:
        """The stationary point of the mean loss, [P]."""
        if self.matrices.ndim == 2:
            return self.centres.mean(0)
        pull = torch.einsum("npq,nq->p", self.matrices, self.centres) / len(self.centres)
        place: Tensor = torch.linalg.solve(self.matrices.mean(0), pull)
        return place

    def _pulls(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Losses [N] and gradients [N, P] of the examples."""
        away = self._point(theta) - self.centres
        pulls: Tensor = away @ self.matrices if self.matrices.ndim == 2 else torch.einsum("npq,nq->np", self.matrices, away)
        return self.offset + 0.5 * (away * pulls).sum(1), pulls

    def value_and_grad(self, theta: Tensor, buffers: Buffers = None) -> tuple[float, Tensor]:
        """The mean loss and its gradient."""
        losses, gradients = self._pulls(theta)
        return float(losses.mean()), gradients.mean(0)

    def losses(self, theta: Tensor, buffers: Buffers = None) -> Tensor:
        """The loss of each example, [N]."""
        return self._pulls(theta)[0]

    def _gradients(self, theta: Tensor) -> Tensor:
        return self._pulls(theta)[1]

    def hessian(self, theta: Tensor) -> Tensor:
        """The mean Hessian, a copy."""
        return self.matrices.clone() if self.matrices.ndim == 2 else self.matrices.mean(0)

    def gradient_covariance(self, theta: Tensor, *, batch_size: int = 1, replacement: bool = True) -> Tensor:
        """Compute the exact covariance of a batch's gradient at theta.

        C / B with replacement, C / B (N - B) / (N - 1) without, C = mean_i (g_i - g)(g_i - g)'.

        Args:
            theta: [P].
            batch_size: B.
            replacement: how the batch is drawn.

        Returns:
            [P, P].
        """
        gradients = self._pulls(theta)[1]
        gradients = gradients - gradients.mean(0)
        factor = 1.0 if replacement else (self.examples - batch_size) / (self.examples - 1)
        return gradients.T @ gradients * (factor / (self.examples * batch_size))

    def on_batch(self, batch: Any) -> NoisyQuadratic:
        """The mean loss over the named examples; an example named twice counts twice."""
        indices = torch.as_tensor(batch)
        part = copy.copy(self)
        part.centres, part.examples = self.centres[indices], len(indices)
        if self.matrices.ndim == 3:
            part.matrices = self.matrices[indices]
        part._constants = {"whole": self._constants, "batch": indices}
        return part


class Noisy(Landscape):
    """Any surface with N examples that pull differently: l_i(theta) = L(theta) + n_i . (theta - theta_ref), mean n_i = 0.

    Exact: the mean loss, gradient and Hessian are those of the surface; the examples' gradients have the covariance
    mean_i n_i n_i' at every theta.

    Args:
        surface: a landscape without noise.
        pulls: n [N, P]; its mean is taken off.
    """

    def __init__(self, surface: Landscape, pulls: Any) -> None:
        if surface.stochastic:
            raise ArgumentError(f"surface: expected one without noise, got {type(surface).__name__}")
        rows = torch.as_tensor(pulls, dtype=torch.float64).detach()
        if rows.ndim != 2 or rows.shape[0] < 2 or rows.shape[1] != surface.size:
            raise ArgumentError(f"pulls: expected [N, {surface.size}] with N >= 2, got shape {tuple(rows.shape)}")
        self.surface, self.pulls = surface, rows - rows.mean(0)
        super().__init__(surface.theta(), {"surface": surface.fingerprint(), "pulls": self.pulls}, examples=len(rows))

    @property
    def stochastic(self) -> bool:
        """Always."""
        return True

    def value_and_grad(self, theta: Tensor, buffers: Buffers = None) -> tuple[float, Tensor]:
        """The mean loss and its gradient."""
        value, gradient = self.surface.value_and_grad(theta)
        pull = self.pulls.mean(0)
        return value + float(pull @ (self._point(theta) - self._start)), gradient + pull

    def losses(self, theta: Tensor, buffers: Buffers = None) -> Tensor:
        """The loss of each example, [N]."""
        return self.surface.value(theta) + self.pulls @ (self._point(theta) - self._start)

    def _gradients(self, theta: Tensor) -> Tensor:
        return self.surface.value_and_grad(theta)[1] + self.pulls

    def hessian(self, theta: Tensor) -> Tensor:
        """That of the surface."""
        return self.surface.hessian(theta)

    def on_batch(self, batch: Any) -> Noisy:
        """The mean loss over the named examples; an example named twice counts twice."""
        indices = torch.as_tensor(batch)
        part = copy.copy(self)
        part.pulls, part.examples = self.pulls[indices], len(indices)
        part._constants = {"whole": self._constants, "batch": indices}
        return part


class Moved(Landscape):
    """A surface in other coordinates and units: L'(theta) = scale L(R' (theta - shift)).

    Exact: gradient scale R g, Hessian scale R H R', both at R' (theta - shift); the examples' losses likewise.

    Args:
        surface: any landscape.
        rotation: R [P, P], orthogonal; the identity if None.
        shift: [P]; zero if None.
        scale: c > 0, of the loss.
    """

    def __init__(self, surface: Landscape, *, rotation: Any = None, shift: Any = None, scale: float = 1.0) -> None:
        size = surface.size
        eye = torch.eye(size, dtype=torch.float64)
        self.rotation = eye if rotation is None else torch.as_tensor(rotation, dtype=torch.float64).detach().clone()
        if self.rotation.shape != eye.shape or not torch.allclose(self.rotation @ self.rotation.T, eye, rtol=0.0, atol=1e-12):
            raise ArgumentError(f"rotation: expected an orthogonal matrix of shape ({size}, {size})")
        self.shift = torch.zeros(size, dtype=torch.float64) if shift is None else vector(shift, "shift", size)
        self.surface, self.scale = surface, positive("scale", scale)
        constants = {"surface": surface.fingerprint(), "rotation": self.rotation, "shift": self.shift, "scale": self.scale}
        super().__init__(self.rotation @ surface.theta() + self.shift, constants, examples=surface.examples)

    @property
    def stochastic(self) -> bool:
        """As the surface."""
        return self.surface.stochastic

    def inside(self, theta: Tensor) -> Tensor:
        """The same point in the coordinates of the surface, R' (theta - shift)."""
        return self.rotation.T @ (self._point(theta) - self.shift)

    def value_and_grad(self, theta: Tensor, buffers: Buffers = None) -> tuple[float, Tensor]:
        """The mean loss and its gradient."""
        value, gradient = self.surface.value_and_grad(self.inside(theta))
        return self.scale * value, self.scale * (self.rotation @ gradient)

    def losses(self, theta: Tensor, buffers: Buffers = None) -> Tensor:
        """The loss of each example, [N]."""
        return self.scale * self.surface.losses(self.inside(theta))

    def _gradients(self, theta: Tensor) -> Tensor:
        return self.scale * (self.surface._gradients(self.inside(theta)) @ self.rotation.T)

    def hessian(self, theta: Tensor) -> Tensor:
        """The exact Hessian of the mean loss, [P, P]."""
        return self.scale * (self.rotation @ self.surface.hessian(self.inside(theta)) @ self.rotation.T)

    def on_batch(self, batch: Any) -> Moved:
        """The mean loss over the named examples."""
        part = copy.copy(self)
        part.surface = self.surface.on_batch(batch)
        part.examples = part.surface.examples
        part._constants = {"whole": self._constants, "batch": part.surface.fingerprint()}
        return part
