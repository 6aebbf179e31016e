"""What is measured at one point for advice: the edge of stability and the scales of the noise, in the metric of the run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from sgdscope import spectra, theory
from sgdscope.directions import private
from sgdscope.errors import DataError, Outcome, SurfaceError
from sgdscope.forecast import Method
from sgdscope.records import Linearization, Surface, Trajectory
from sgdscope.surface.statistics import normalised

Array = NDArray[np.float64]
WHOLE = 2048  # examples of the one batch on which a network with BatchNorm is measured in training mode
PARTS = 8  # of the examples, for the error of the largest eigenvalue
PROBES = 16  # random signs for each of the noise's traces


@dataclass(frozen=True)
class Edge:
    """How near the edge of stability a point is.

    Attributes:
        ratio: lambda_1 / threshold of the method; 1 at the edge.
        stderr: of it, over parts of the examples; NaN where they cannot be taken apart.
        above: how many of the k eigenvalues lie above the threshold.
        k: how many were looked for.
        sharpness: lambda_1 of the (preconditioned) Hessian.
        threshold: of the method.
        matrix: ``"hessian"`` or ``"preconditioned"``.
        converged: whether the residuals met the tolerance.
        residual: of lambda_1.
    """

    ratio: float
    stderr: float
    above: int
    k: int
    sharpness: float
    threshold: float
    matrix: str
    converged: bool
    residual: float


@dataclass(frozen=True)
class Noise:
    """Scales of the gradient noise, in examples, each with its standard error over the probes.

    Attributes:
        simple: Tr(D^-1 C) / (g' D^-1 g).
        simple_stderr: of it.
        curved: Tr(D^-1 H D^-1 C) / (g' D^-1 H D^-1 g): noise against mean step at second order; NaN if that is not positive.
        curved_stderr: of it.
        trace: Tr(D^-1 C), of one example.
    """

    simple: float
    simple_stderr: float
    curved: float
    curved_stderr: float
    trace: float


def root_scale(trajectory: Trajectory, method: Method, step: int, like: Tensor) -> Tensor:
    """D^(-1/2) of the recorded method: ones, or one over the root of Adam's sqrt(v) + eps.

    Args:
        trajectory: the run.
        method: how it made its updates.
        step: T.
        like: gives dtype and device.

    Returns:
        [P].

    Raises:
        NotAvailableError: the second moments were not recorded.
    """
    return trajectory.preconditioner(step).to(like).rsqrt() if method.adaptive else torch.ones_like(like)


def as_trained(surface: Surface) -> Surface:
    """The loss that the updates saw: with BatchNorm, one batch of at most 2048 examples in training mode.

    With running statistics a bias before BatchNorm has a gradient that training never has, and so a second moment of about 0.

    Args:
        surface: on training data.

    Returns:
        The surface itself without BatchNorm.
    """
    if not normalised(surface):
        return surface
    examples = int(surface.fingerprint().get("examples") or 0)
    return surface.on_batch(surface.rows(list(range(min(examples, WHOLE)))))


def edge_at(
    surface: Surface, theta: Tensor, method: Method, root: Tensor, *, buffers: Mapping[str, Tensor] | None, k: int, seed: int
) -> Edge:
    """Hold the largest eigenvalues of D^(-1/2) H D^(-1/2) against the threshold of the method.

    stderr: that of e_1' H_b e_1 over 8 parts b of the examples, e_1 held fixed, divided by the threshold.

    Args:
        surface: on training data.
        theta: [P].
        method: of the run.
        root: D^(-1/2), [P].
        buffers: of the point.
        k: eigenpairs.
        seed: of the start vector.

    Returns:
        The edge.

    Raises:
        ArgumentError: the method has no known threshold.
        SurfaceError: no eigenvalue was found.

    Cost: Lanczos, 20 to 60 Hessian products, and two more for the error.
    """
    threshold, matrix = theory.stability_threshold(
        method.name, method.lr, momentum=method.momentum, nesterov=method.nesterov, beta1=method.beta1
    )
    with as_trained(surface).linearized(theta, buffers) as h:
        found = _pairs(h, root, k, seed)
    if not len(found.values):
        raise SurfaceError("curvature: no eigenvalue was found at this point; is the loss finite there?")
    top, direction = float(found.values[0]), root * found.vectors[:, 0].to(root)
    return Edge(
        ratio=top / threshold,
        stderr=_spread(surface, theta, direction, buffers) / threshold,
        above=int((found.values > threshold).sum()),
        k=len(found.values),
        sharpness=top,
        threshold=threshold,
        matrix=matrix,
        converged=found.outcome == Outcome.ok,
        residual=float(found.residuals[0]),
    )


def _pairs(h: Linearization, root: Tensor, k: int, seed: int) -> spectra.Eigenpairs:
    start = root * h.gradient.to(root)
    return spectra.eigenpairs(
        lambda v: root * h.hvp(root * v),
        len(root),
        min(k, len(root)),
        start=start,
        generator=private(seed, 2),
        dtype=root.dtype,
        device=root.device,
    )


def _spread(surface: Surface, theta: Tensor, direction: Tensor, buffers: Mapping[str, Tensor] | None) -> float:
    examples = int(surface.fingerprint().get("examples") or 0)
    if examples < 2 * PARTS:
        return float("nan")
    values = []
    try:
        for part in range(PARTS):
            rows = list(range(part, examples, PARTS))
            image = (surface.on_batch(surface.rows(rows)) if normalised(surface) else surface.subset(rows)).hvp(
                theta, direction, buffers
            )
            values.append(float(direction.double() @ image.double()))
    except DataError:
        return float("nan")
    return float(np.std(values, ddof=1) / np.sqrt(PARTS))


def noise_at(
    surface: Surface, theta: Tensor, method: Method, root: Tensor, *, buffers: Mapping[str, Tensor] | None, seed: int
) -> Noise:
    """Measure the scales of the gradient noise from random signs.

    z = sum_i (s_i - mean s) g_i / sqrt(N) with random signs s has E z z' = C, the covariance (1/N) of the examples' gradients, so
    z' D^-1 z and z' D^-1 H D^-1 z are unbiased for Tr(D^-1 C) and Tr(D^-1 H D^-1 C). With BatchNorm no example has a gradient of
    its own: there z = sqrt(B m / (m - 1)) (g_b - mean g_b) over m = 16 batches in training mode.

    Args:
        surface: on training data, with single examples.
        theta: [P].
        method: of the run; its batch size counts with BatchNorm.
        root: D^(-1/2), [P].
        buffers: of the point.
        seed: of the signs or batches.

    Returns:
        The scales; of the data as they are.

    Raises:
        SurfaceError: the surface has no gradients of single examples.
        DataError: the data were given in batches.

    Cost: 16 gradients and 17 Hessian products; no gradient of a single example is formed.
    Source: McCandlish et al. 2018 (1812.06162), section 2 (both scales); the estimator by random signs is derived here.
    """
    examples = int(surface.fingerprint().get("examples") or 0)
    if examples < 2:
        raise DataError("data: they have no single examples; pass a Dataset or tensors")
    inverse, generator = root.double() ** 2, private(seed, 3)
    make = _batch_deviations if normalised(surface) else _signed_sums
    deviations = make(surface, (theta, buffers), examples, (method.batch_size, generator))
    with as_trained(surface).linearized(theta, buffers) as h:
        traces = np.array([_forms(h, inverse, z.double()) for z in deviations])
        slope, bend = _forms(h, inverse, h.gradient.double())
    (plain, curved), errors = traces.mean(0), traces.std(0, ddof=1) / np.sqrt(PROBES)
    bent = bend > 0
    return Noise(
        simple=plain / slope if slope > 0 else float("inf"),
        simple_stderr=errors[0] / slope if slope > 0 else float("nan"),
        curved=curved / bend if bent else float("nan"),
        curved_stderr=errors[1] / bend if bent else float("nan"),
        trace=plain,
    )


def _signed_sums(surface: Surface, at: Any, examples: int, drawn: tuple[float, torch.Generator]) -> list[Tensor]:
    """Sums of the examples' gradients with random signs."""
    sums = []
    for _ in range(PROBES):
        signs = torch.randint(2, (examples,), generator=drawn[1]).double() * 2 - 1
        sums.append(surface.weighted_grad(at[0], (signs - signs.mean()) / examples**0.5, buffers=at[1]))
    return sums


def _batch_deviations(surface: Surface, at: Any, examples: int, drawn: tuple[float, torch.Generator]) -> list[Tensor]:
    """Gradients of batches in training mode, less their mean."""
    size = int(drawn[0]) if drawn[0] >= 2 else 2
    rows = [torch.randint(examples, (size,), generator=drawn[1]) for _ in range(PROBES)]
    gradients = torch.stack([surface.on_batch(surface.rows(r)).value_and_grad(*at)[1] for r in rows]).double()
    return list((gradients - gradients.mean(0)) * (size * PROBES / (PROBES - 1)) ** 0.5)


def _forms(h: Linearization, inverse: Tensor, vector: Tensor) -> tuple[float, float]:
    """(v' D^-1 v, v' D^-1 H D^-1 v)."""
    scaled = inverse * vector.to(inverse.device)
    image: Any = h.hvp(scaled.to(h.gradient)).double()
    return float(vector.to(scaled) @ scaled), float(scaled @ image.to(scaled))
