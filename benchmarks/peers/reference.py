"""The independent route: Hessian products in float64 by plain double backward, the dense Hessian, the exact trace."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.peers.worker import Work, criterion, load
from benchmarks.peers.works import Point


def exact_work(point: Point, chunk: int = 125) -> Work:
    """A point in float64."""
    work = load(str(point.path), chunk)
    x = work.x.double() if work.x.is_floating_point() else work.x
    return Work(work.model.double(), x, work.y, work.theta.double(), chunk)


def _gradients(work: Work) -> Iterator[tuple[float, Tensor]]:
    """(share of the examples, gradient with its graph) of each chunk."""
    for x, y in work.batches():
        parts = torch.autograd.grad(criterion(work.model(x), y), list(work.model.parameters()), create_graph=True)
        yield len(x) / len(work.x), torch.cat([part.reshape(-1) for part in parts])


def products(work: Work, vectors: Tensor) -> Tensor:
    """H V, [P, k] float64."""
    out = torch.zeros(vectors.shape, dtype=torch.float64)
    with sdpa_kernel(SDPBackend.MATH):
        for share, gradient in _gradients(work):
            for column, vector in enumerate(vectors.double().T):
                parts = torch.autograd.grad(gradient, list(work.model.parameters()), vector, retain_graph=True)
                out[:, column] += share * torch.cat([part.reshape(-1) for part in parts])
    return out


def residual(work: Work, values: Tensor, vectors: Tensor) -> tuple[float, Tensor]:
    """(largest |H v - l v| / |l| over the pairs, Rayleigh quotients [k] descending); each v is brought to length 1."""
    unit = vectors.double() / vectors.double().norm(dim=0)
    moved = products(work, unit)
    worst = float(((moved - unit * values.double()).norm(dim=0) / values.double().abs()).max())
    return worst, (unit * moved).sum(0).sort(descending=True).values


def eigenvalues(work: Work) -> Tensor:
    """All of them, [P] float64 ascending, from the dense Hessian; for a few thousand parameters."""
    size = len(work.theta)
    return torch.linalg.eigvalsh(products(work, torch.eye(size, dtype=torch.float64)))


def exact_trace(work: Work) -> float:
    """Tr H of a network that is piecewise linear in each single parameter (ReLU, max-pooling; no norm layer, no attention).

    Such a network has d2z / dtheta_i^2 = 0, so that the diagonals of the Hessian and of the Gauss-Newton matrix are equal:
    Tr H = (1/N) sum_n sum_c p_c(x_n) |grad of the loss of x_n with label c|^2.
    """
    parameters = dict(work.model.named_parameters())
    names: Sequence[str] = list(parameters)

    def loss(point: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
        return criterion(functional_call(work.model, point, (x[None],)), label[None])

    total, per_example = 0.0, vmap(grad(loss), in_dims=(None, 0, 0))
    for x in work.x.split(50):
        with torch.no_grad():
            share = work.model(x).softmax(1)
        for label in range(share.shape[1]):
            gradients = per_example({n: parameters[n].detach() for n in names}, x, torch.full((len(x),), label))
            squares = sum(g.reshape(len(x), -1).square().sum(1) for g in gradients.values())
            total += float(squares @ share[:, label])
    return total / len(work.x)
