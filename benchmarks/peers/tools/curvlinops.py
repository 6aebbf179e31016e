"""curvlinops: Hessian as a linear operator, scipy's ARPACK for eigenpairs, its own trace and density."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from curvlinops import HessianLinearOperator, hutchpp_trace, xtrace
from curvlinops.papyan2020traces.spectrum import fast_lanczos
from scipy.sparse.linalg import LinearOperator, eigsh

from benchmarks.peers.worker import Work, criterion, serve

TRACES: dict[str, Callable[..., Any]] = {"xtrace": xtrace, "hutch++": hutchpp_trace}


def _hessian(work: Work) -> HessianLinearOperator:
    return HessianLinearOperator(work.model, criterion, list(work.model.parameters()), work.batches())


def eigenpairs(work: Work, *, k: int, tolerance: float, seed: int, ncv: int | None = None) -> dict[str, Any]:
    """The k algebraically largest, from a random start."""
    hessian = _hessian(work).to_scipy()
    products = 0

    def multiply(vector: np.ndarray) -> np.ndarray:
        nonlocal products
        products += 1
        return hessian @ vector

    start = np.random.default_rng(seed).standard_normal(len(work.theta)).astype(np.float32)
    counted = LinearOperator(hessian.shape, matvec=multiply, dtype=hessian.dtype)
    values, vectors = eigsh(counted, k=k, which="LA", tol=tolerance, v0=start, ncv=ncv)
    return {"products": products, "pairs": (values[::-1].copy(), vectors[:, ::-1].copy())}


def trace(work: Work, *, method: str, products: int, seeds: list[int]) -> dict[str, Any]:
    """One estimate a seed."""
    hessian, values = _hessian(work), []
    for seed in seeds:
        torch.manual_seed(seed)
        values.append(float(TRACES[method](hessian, products)))
    return {"values": values, "products": products}


def density(work: Work, *, probes: int, steps: int, seed: int) -> dict[str, Any]:
    """Nodes and weights of its Lanczos quadrature, which its spectrum smooths; finding the boundaries is left out."""
    hessian, nodes, weights = _hessian(work), [], []
    torch.manual_seed(seed)
    for _ in range(probes):
        values, vectors = fast_lanczos(hessian, steps)
        nodes += values.tolist()
        weights += vectors[0].square().tolist()
    return {"nodes": nodes, "weights": weights, "products": probes * steps}


if __name__ == "__main__":
    serve({"eigenpairs": eigenpairs, "trace": trace, "density": density})
