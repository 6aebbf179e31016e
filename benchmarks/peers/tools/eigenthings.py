"""hessian-eigenthings: Lanczos of a length given beforehand, Hutch++, spectral density."""

from __future__ import annotations

from typing import Any

import torch
from hessian_eigenthings import HessianOperator, lanczos, lanczos_tridiagonal, supervised_loss
from hessian_eigenthings import trace as estimate
from torch import Tensor

from benchmarks.peers.worker import Work, criterion, serve


class _Counted(HessianOperator):
    products = 0

    def matvec(self, v: Tensor) -> Tensor:
        self.products += 1
        return super().matvec(v)


def _hessian(work: Work) -> _Counted:
    return _Counted(work.model, [(work.x, work.y)], supervised_loss(criterion))  # unequal batches would weigh the same


def eigenpairs(work: Work, *, k: int, tolerance: float, seed: int) -> dict[str, Any]:
    """The k algebraically largest; without a stopping rule, so its length doubles from 3 k (15 at least) until all converge."""
    hessian, length = _hessian(work), max(3 * k, 15)
    while True:
        found = lanczos(hessian, k=k, max_iter=length, tol=tolerance, which="LA", seed=seed, reorthogonalize=True)
        if found.converged.all() or length > 400:
            break
        length *= 2
    return {"products": hessian.products, "pairs": (found.eigenvalues, found.eigenvectors.T)}


def trace(work: Work, *, method: str, products: int, seeds: list[int]) -> dict[str, Any]:
    """One estimate a seed."""
    hessian = _hessian(work)
    values = [float(estimate(hessian, num_matvecs=products, method=method, seed=seed).estimate) for seed in seeds]
    return {"values": values, "products": products}


def density(work: Work, *, probes: int, steps: int, seed: int) -> dict[str, Any]:
    """Nodes and weights of its Lanczos runs, reorthogonalised as its spectral density does by default."""
    hessian, nodes, weights = _hessian(work), [], []
    for number in range(probes):
        generator = torch.Generator().manual_seed(1000 * seed + number)
        start = torch.randint(0, 2, (hessian.size,), generator=generator).float() * 2 - 1
        found = lanczos_tridiagonal(hessian, start, steps)
        matrix = found.alphas.diag() + found.betas.diag(1) + found.betas.diag(-1)
        values, vectors = torch.linalg.eigh(matrix)
        nodes += values.tolist()
        weights += vectors[0].square().tolist()
    return {"nodes": nodes, "weights": weights, "products": hessian.products}


if __name__ == "__main__":
    serve({"eigenpairs": eigenpairs, "trace": trace, "density": density})
