"""Chains of projected Langevin against the bare torch arithmetic of the same iteration."""

import time
from collections.abc import Callable

import torch
from torch import Tensor

from sgdscope.bodies import Ball, Box
from sgdscope.chains import chains

CHAINS, STEPS, LR = 10_000, 10_000, 1e-3


def _clip(x: Tensor) -> Tensor:
    return x.clamp_(-1.0, 1.0)


def _shrink(x: Tensor) -> Tensor:
    return x.mul_((1.0 / x.norm(dim=1, keepdim=True)).clamp_(max=1.0))


def _bare(start: Tensor, project: Callable[[Tensor], Tensor], generator: torch.Generator) -> Tensor:
    x, noise = start.clone(), torch.empty_like(start)
    for _ in range(STEPS):
        x = project(x.add_(x, alpha=-LR / 2).add_(noise.normal_(generator=generator), alpha=LR**0.5))
    return x


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def rows() -> list[dict[str, object]]:
    """Measure on one thread, f = |x|^2 / 2 in 2 and in 10 dimensions.

    Returns:
        Ratios of times.
    """
    threads, found = torch.get_num_threads(), []
    torch.set_num_threads(1)
    try:
        for d in (2, 10):
            start = torch.zeros(CHAINS, d, dtype=torch.float64)
            for name, body, project in (("box", Box(-1.0, 1.0, size=d), _clip), ("ball", Ball(1.0, size=d), _shrink)):
                generator = torch.Generator().manual_seed(1)

                def ours(start: Tensor = start, body: Box | Ball = body, generator: torch.Generator = generator) -> object:
                    return chains(lambda x: x, body, lr=LR, steps=STEPS, start=start, generator=generator)

                def bare(start: Tensor = start, project: Callable[[Tensor], Tensor] = project) -> object:
                    return _bare(start, project, torch.Generator().manual_seed(1))

                setting = f"{CHAINS:,} chains x {STEPS:,} steps, d = {d}, float64, 1 thread, processor time"
                what = f"projected Langevin on a {name} / bare torch loop"
                found.append({"what": what, "ratio": _seconds(ours) / _seconds(bare), "aim": "<= 2", "setting": setting})
    finally:
        torch.set_num_threads(threads)
    return found
