"""PyHessian: power iteration with deflation, Hutchinson, stochastic Lanczos quadrature; in its fastest mode, one batch."""

from __future__ import annotations

from typing import Any

import torch
from pyhessian import hessian
from torch import Tensor

from benchmarks.peers.worker import Work, criterion, serve


def _eig(matrix: Tensor, eigenvectors: bool) -> tuple[Tensor, Tensor]:
    """torch.eig, which torch has removed: eigenvalues as rows (real, imaginary)."""
    assert eigenvectors
    values, vectors = torch.linalg.eig(matrix)
    return torch.view_as_real(values), vectors.real


torch.eig = _eig


def _hessian(work: Work) -> hessian:
    return hessian(work.model, criterion, data=(work.x, work.y), cuda=False)


def eigenpairs(
    work: Work,
    *,
    k: int,
    stop: float = 1e-3,
    limit: int = 100,
    seed: int,
) -> dict[str, Any]:
    """The k largest in magnitude; `stop` is the relative change of an eigenvalue, as it knows no residual."""
    torch.manual_seed(seed)
    computation = _hessian(work)
    values, vectors = computation.eigenvalues(maxIter=limit, tol=stop, top_n=k)
    columns = torch.stack([torch.cat([part.reshape(-1) for part in vector]) for vector in vectors], 1)
    return {"products": None, "pairs": (values, columns.detach())}


def trace(work: Work, *, method: str, products: int, seeds: list[int]) -> dict[str, Any]:
    """One estimate a seed, by Hutchinson's method."""
    assert method == "hutchinson"
    computation, values = _hessian(work), []
    for seed in seeds:
        torch.manual_seed(seed)
        found = computation.trace(maxIter=products, tol=0.0)
        values.append(sum(found) / len(found))
    return {"values": values, "products": products}


def density(work: Work, *, probes: int, steps: int, seed: int) -> dict[str, Any]:
    """Nodes and weights."""
    torch.manual_seed(seed)
    nodes, weights = _hessian(work).density(iter=steps, n_v=probes)
    flat = [[float(v) for run in runs for v in run] for runs in (nodes, weights)]
    return {"nodes": flat[0], "weights": flat[1], "products": probes * steps}


if __name__ == "__main__":
    serve({"eigenpairs": eigenpairs, "trace": trace, "density": density})
