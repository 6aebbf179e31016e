"""Walks on surfaces with known answers: the runs on which a claim must hold, must fail, or does not apply."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sgdscope import landscapes
from sgdscope.contracts import Evidence
from sgdscope.evidence.floor import floor_barriers
from sgdscope.evidence.windows import gather
from sgdscope.records import Surface, Trajectory

LIGHT: Mapping[str, Mapping[str, Any]] = {"valley": {"curve": False, "own_batch": False}}
SHAPE: Mapping[str, Mapping[str, Any]] = {"valley": {"own_batch": False}}


class Walls(landscapes.Landscape):
    """L = sum_i [s_i (sqrt(1 + x_i^2) - 1) + A_i (1 - cos(k x_i))]: walls that soften, ripples of height 2 A_i.

    Exact: descent with eta s = 2 c > 2 (A = 0) ends in the cycle x = +-sqrt(c^2 - 1), where the cosine is -1.

    Args:
        sharp: s [P], >= 0.
        ripples: A [P], >= 0.
        wave: k.
        start: [P]; the origin if None.
    """

    def __init__(self, sharp: Sequence[float], ripples: Sequence[float], wave: float = 1.0, *, start: Any = None) -> None:
        self.sharp, self.ripples = torch.tensor(sharp, dtype=torch.float64), torch.tensor(ripples, dtype=torch.float64)
        self.wave = float(wave)
        origin = torch.zeros(len(self.sharp), dtype=torch.float64) if start is None else start
        super().__init__(origin, {"sharp": self.sharp, "ripples": self.ripples, "wave": self.wave})

    def value_and_grad(self, theta: Tensor, buffers: Any = None) -> tuple[float, Tensor]:  # ruff: ignore[unused-method-argument] - the protocol has them
        """The loss and its gradient."""
        x = self._point(theta)
        root, turn = (1 + x * x).sqrt(), self.wave * x
        value = self.sharp @ (root - 1) + self.ripples @ (1 - turn.cos())
        return float(value), self.sharp * x / root + self.ripples * self.wave * turn.sin()

    def hessian(self, theta: Tensor) -> Tensor:
        """The exact Hessian, diagonal."""
        x = self._point(theta)
        return torch.diag(self.sharp * (1 + x * x) ** -1.5 + self.ripples * self.wave**2 * (self.wave * x).cos())


def bowl(seed: int, *, sharp: Any = 1.0, noise: float = 1.0, size: int = 20, away: float = 0.3) -> landscapes.NoisyQuadratic:
    """A quadratic with gradient noise; with eta x sharp = 1 the floor is inside of almost each update and the cosine is -1/2."""
    matrix = torch.diag(torch.as_tensor(sharp, dtype=torch.float64).expand(size))
    start, drawn = torch.full((size,), away, dtype=torch.float64), torch.Generator().manual_seed(seed)
    cov = noise**2 * torch.eye(size, dtype=torch.float64)
    return landscapes.NoisyQuadratic.with_noise(matrix, cov, examples=256, generator=drawn, start=start)


def noisy(surface: landscapes.Landscape, seed: int, noise: Any) -> landscapes.Noisy:
    """256 examples that pull with a standard deviation of `noise` in each coordinate."""
    pulls = torch.randn(256, surface.size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return landscapes.Noisy(surface, pulls * torch.as_tensor(noise, dtype=torch.float64))


def bouncing(seed: int, updates: int = 120, **told: Any) -> list[Evidence]:
    """SGD in the bowl at eta x sharp = 1."""
    return [control(bowl(seed), SHAPE, seed=seed, lr=1.0, updates=updates, batch_size=8, **told)]


def descending(seed: int) -> list[Evidence]:
    """Far from the floor with little noise and small steps: the loss falls along each whole update."""
    return [control(bowl(seed, noise=0.1, away=5.0), SHAPE, seed=seed, lr=0.005, updates=120, batch_size=8)]


def rippled(seed: int, **told: Any) -> list[Evidence]:
    """Updates several ripples long: no parabola, and a crest inside of most."""
    surface = noisy(Walls([0.01, 0.01], [1.0, 1.0], 2 * np.pi), seed, 30.0)
    return [control(surface, SHAPE, seed=seed, lr=0.1, updates=120, batch_size=1, **told)]


def vanished(seed: int) -> list[Evidence]:
    """Descent that reached a floor with loss 0 in a few updates."""
    start = torch.tensor([1.0 + seed, 2.0], dtype=torch.float64)
    return [control(landscapes.Ravine(2.0, 1.0, start=start), SHAPE, seed=seed, lr=0.5, updates=60)]


def creeping(seed: int) -> list[Evidence]:
    """Full-batch descent far below the edge."""
    return [control(landscapes.Ravine(2.0, 1.0, start=torch.tensor([1.0 + seed, 2.0])), SHAPE, seed=seed, lr=0.005, updates=120)]


def sweep(seed: int, lrs: Sequence[float], batches: Sequence[int], seeds: int, surface: Callable[..., Any]) -> list[Evidence]:
    """A grid of walks; surface(seed, lr, batch_size) gives each its landscape."""
    grid = [(lr, batch, 100 * seed + s) for lr in lrs for batch in batches for s in range(seeds)]
    return [control(surface(s, lr, b), LIGHT, seed=s, lr=lr, updates=60, batch_size=b) for lr, b, s in grid]


def both_vanished(seed: int) -> list[Evidence]:
    """Sweep whose loss has vanished in each run."""
    grid = [(lr, b, s) for lr in (0.4, 0.5, 0.6) for b in (4, 16, 64) for s in range(5)]
    runs = [vanished(seed + s)[0] for s in range(5)]
    return [dataclasses.replace(runs[s], settings={"lr": lr, "batch_size": b, "seed": s}) for lr, b, s in grid]


def control(
    surface: landscapes.Landscape,
    quantities: Mapping[str, Mapping[str, Any]],
    *,
    seed: int,
    lr: float,
    updates: int,
    batch_size: int | None = None,
    start: torch.Tensor | None = None,
    lrs: Sequence[float] | None = None,
    observe: Callable[[Trajectory, Surface, Any], Mapping[str, Any]] | None = None,
    label: float | None = None,
) -> Evidence:
    """Walk on a surface with a known answer, and measure it.

    Args:
        surface: the landscape.
        quantities: name -> options.
        seed: of the batches.
        lr: learning rate.
        updates: their number.
        batch_size: None for the full batch.
        start: the first point; the surface's own if None.
        lrs: the learning rate of each update, in place of `lr`.
        observe: the claim's own observation.
        label: batch size to be written into the settings, where it differs from the true one.

    Returns:
        The evidence, with lr, batch_size and seed in its settings.
    """
    generator = torch.Generator().manual_seed(seed)
    begin = surface.theta() if start is None else start
    walk = landscapes.walk(surface, lr=lr, updates=updates, start=begin, batch_size=batch_size, generator=generator, lrs=lrs)
    told: Any = "full" if batch_size is None else batch_size
    settings = {"lr": lr, "batch_size": told if label is None else label, "seed": seed}
    return gather(walk, surface, quantities, settings=settings, observe={"own": observe} if observe else None)


def dropping(seed: int, noisier: float = 1.0, seeds: int = 5) -> list[Evidence]:
    """Twins, one with the learning rate cut by ten after 60 updates, its gradient noise multiplied by `noisier`."""
    found = []
    for s in range(100 * seed, 100 * seed + seeds):
        for noise, late in ((1.0, 0.5), (noisier, 0.05)):
            rates = [0.5] * 60 + [late] * 60
            found.append(control(bowl(s, noise=noise), LIGHT, seed=s, lr=0.5, updates=120, batch_size=8, lrs=rates))
    return found


def corner(seed: int, surface: Callable[..., Any], seeds: int = 5) -> list[Evidence]:
    """The three runs of W7 a seed: large and small batch at one learning rate, and the partner of equal ratio."""
    found = []
    for s in range(100 * seed, 100 * seed + seeds):
        for lr, batch in ((1.0, 8), (1.0, 32), (0.25, 8)):
            found.append(control(surface(s), LIGHT, seed=s, lr=lr, updates=60, batch_size=batch))
    return found


def soft(seed: int) -> landscapes.Noisy:
    """At eta = 1 the walls throw the walk to and fro without noise; noise hides it."""
    return noisy(Walls([4.0] * 6, [0.0] * 6, start=torch.full((6,), 1.7, dtype=torch.float64)), seed, 6.0)


def spreading(seed: int, seeds: int = 3) -> list[Evidence]:
    """Diffusion in flat directions: the distance grows with the learning rate and falls with the batch size."""
    sharp = torch.cat([torch.ones(10), torch.full((40,), 1e-3)])
    return sweep(seed, (0.25, 0.5, 1.0), (4, 16, 64), seeds, lambda s, _lr, _b: bowl(s, sharp=sharp, size=50))


def spreading_backwards(seed: int) -> list[Evidence]:
    """The same with noise that grows with the batch and falls with the learning rate."""
    sharp = torch.cat([torch.ones(10), torch.full((40,), 1e-3)])
    return sweep(seed, (0.25, 0.5, 1.0), (4, 16, 64), 3, lambda s, lr, b: bowl(s, sharp=sharp, size=50, noise=b / lr**2))


def edge_and_noise(seed: int, *, confined: bool = False, seeds: int = 5) -> list[Evidence]:
    """Full-batch descent in the cycle of soft walls, and SGD that diffuses along a flat floor or (confined) cannot."""
    start = torch.cat([torch.full((2,), 0.9, dtype=torch.float64), torch.zeros(10, dtype=torch.float64)])
    surface = Walls([3.0] * 2 + [0.0] * 10, [0.0] * 12, start=start)
    found = []
    for s in range(100 * seed, 100 * seed + seeds):
        stirred = bowl(s, noise=0.1, away=0.0) if confined else noisy(surface, s, [0.1] * 2 + [3.0] * 10)
        found.append(control(surface, LIGHT, seed=s, lr=1.0, updates=120))
        found.append(control(stirred, LIGHT, seed=s, lr=1.0, updates=120, batch_size=8))
    return found


def rough_floor(seed: int, updates: int = 60) -> list[Evidence]:
    """A ravine in whose walls the walk cycles at height 4, over a floor with ripples 0.6 high and steps of several ripples."""
    return [_ravine(seed, 0.3, updates)]


def smooth_floor(seed: int) -> list[Evidence]:
    """The same ravine without ripples."""
    return [_ravine(seed, 0.0, 60)]


def _ravine(seed: int, ripple: float, updates: int) -> Evidence:
    start = torch.tensor([1.73, 0.0], dtype=torch.float64)
    surface = noisy(Walls([4.0, 0.01], [0.0, ripple], 4.0, start=start), seed, [0.5, 12.0])
    return control(surface, LIGHT, seed=seed, lr=1.0, updates=updates, batch_size=8, observe=floor_barriers)
