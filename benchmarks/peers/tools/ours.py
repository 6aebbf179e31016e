"""This package: the surface, its construction and proof included, and the solvers that see products alone."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

import sgdscope as ss
from benchmarks.peers.worker import Work, criterion, serve, shuffled
from sgdscope import spectra
from sgdscope.surface import LossSurface

Matvec = Callable[[Tensor], Tensor]


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return criterion(model(batch[0]), batch[1])


def _surface(work: Work) -> LossSurface:
    return LossSurface(work.model, _loss, (work.x, work.y))


@contextmanager
def _product(work: Work) -> Generator[tuple[Matvec, int, Tensor], None, None]:
    """(product with the Hessian, P, gradient)."""
    with _surface(work).linearized(work.theta) as hessian:
        yield hessian.hvp, len(work.theta), hessian.gradient


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def chunk(work: Work) -> dict[str, Any]:
    """How many examples the surface takes at once."""
    return {"chunk": _surface(work).fingerprint()["batch_size"]}


def eigenpairs(work: Work, *, k: int, tolerance: float, seed: int) -> dict[str, Any]:
    """The k algebraically largest, from the gradient."""
    with _product(work) as (matvec, size, gradient):
        found = spectra.eigenpairs(matvec, size, k, tolerance=tolerance, start=gradient, generator=_generator(seed))
    return {"products": found.products, "pairs": (found.values, found.vectors)}


def trace(work: Work, *, method: str | None, products: int, seeds: list[int], known: int = 0) -> dict[str, Any]:
    """One estimate a seed; `known` eigenpairs are computed beforehand and not counted."""
    options = {} if method is None else {"method": method}
    with _product(work) as (matvec, size, gradient):
        if known:
            options["known"] = spectra.eigenpairs(matvec, size, known, start=gradient, generator=_generator(0))
        found = [spectra.trace(matvec, size, products=products, generator=_generator(s), **options) for s in seeds]
    return {"values": [float(f.value) for f in found], "products": max(f.products for f in found)}


def density(work: Work, *, probes: int, steps: int, seed: int) -> dict[str, Any]:
    """Nodes and weights."""
    with _product(work) as (matvec, size, _):
        found = spectra.density(matvec, size, probes=probes, steps=steps, generator=_generator(seed))
    nodes, weights = (torch.as_tensor(part).double().reshape(-1) for part in (found.nodes, found.weights))
    return {"nodes": nodes.tolist(), "weights": (weights / weights.sum()).tolist(), "products": probes * steps}


def tracking(
    work: Work, *, k: int, lr: float, tolerance: float, updates: int, batch: int, every: int, seed: int
) -> dict[str, Any]:
    """The largest eigenpairs along plain SGD: products an update, tracked, and every so many updates cold.

    Returns:
        ``tracked`` and ``cold`` products; ``accepted``, updates at which at most one product was taken; ``missed``, those of
        them whose true residual is above the tolerance; ``off``, the worst relative error of an eigenvalue against the cold ones.
    """
    surface, size, generator = _surface(work), len(work.theta), _generator(seed)
    tracked: list[int] = []
    cold: list[int] = []
    accepted, missed, off, pairs = 0, 0, 0.0, None
    for update, theta in enumerate(itertools.islice(_walk(work, lr, batch, seed), updates + 1)):
        with surface.linearized(theta) as h:
            if pairs is None:
                pairs = spectra.eigenpairs(h.hvp, size, k, tolerance=tolerance, start=h.gradient, generator=generator)
                continue
            pairs = spectra.track(h.hvp, pairs, tolerance=tolerance, generator=generator)
            tracked.append(pairs.products)
            if pairs.products <= 1:
                accepted += 1
                missed += int(_residual(h.hvp, pairs) > tolerance)
            if update % every == 1 % every:
                fresh = spectra.eigenpairs(h.hvp, size, k, tolerance=tolerance, start=h.gradient, generator=generator)
                cold.append(fresh.products)
                off = max(off, float(((pairs.values - fresh.values) / fresh.values).abs().max()))
    return {"tracked": tracked, "cold": cold, "accepted": accepted, "missed": missed, "off": off}


def _residual(matvec: Matvec, pairs: Any) -> float:
    """The largest |H x - l x| / |l|, by k products of their own."""
    products = torch.stack([matvec(v) for v in pairs.vectors.T], 1).double()
    values = torch.as_tensor(pairs.values).double()
    return float(((products - pairs.vectors.double() * values).norm(dim=0) / values.abs()).max())


def _walk(work: Work, lr: float, batch: int, seed: int) -> Iterator[Tensor]:
    """The points of plain SGD from theta on."""
    optimizer = torch.optim.SGD(work.model.parameters(), lr=lr)
    for x, y in shuffled(work, batch, seed):
        yield torch.nn.utils.parameters_to_vector(work.model.parameters()).detach().clone()
        optimizer.zero_grad()
        criterion(work.model(x), y).backward()
        optimizer.step()


ECONOMY: dict[str, Any] = {}  # alpha; the recorder has update size, gradient norm and distance
FULL: dict[str, Any] = {"eigenvalue": True, "probes": 2, "parts": 2}


def live(work: Work, *, what: str, updates: int, batch: int, lr: float, seed: int) -> dict[str, Any]:
    """Some updates of plain SGD, recorded and measured at every update on the step's own batch; ``"plain"``: with nothing."""
    optimizer = torch.optim.SGD(work.model.parameters(), lr=lr)
    if what == "plain":
        for x, y in itertools.islice(shuffled(work, batch, seed), updates):
            optimizer.zero_grad()
            criterion(work.model(x), y).backward()
            optimizer.step()
        return {"updates": updates}
    sinks = [] if what == "scalars" else [ss.live("batch", _surface(work), **(FULL if what == "full" else ECONOMY))]
    options: dict[str, Any] = {"snapshots": ss.every(1), "batches": "bursts", "live": sinks} if sinks else {}
    with ss.Recorder(None, work.model, optimizer, loss=_loss, store="memory", **options) as recorder:
        for x, y in itertools.islice(shuffled(work, batch, seed), updates):
            optimizer.zero_grad()
            recorder.loss(work.model, (x, y)).backward()
            optimizer.step()
    return {"updates": updates}


if __name__ == "__main__":
    tasks = {"chunk": chunk, "eigenpairs": eigenpairs, "trace": trace, "density": density, "tracking": tracking, "live": live}
    serve(tasks)
