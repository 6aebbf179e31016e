"""Many short walks between two basins, and around one frozen minimum, as evidence: run once, read back, or drawn from a law."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import ceil, log, nan, sqrt
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import cross_entropy

from sgdscope import escapes, theory
from sgdscope.contracts import Evidence
from sgdscope.datasets import load
from sgdscope.evidence.waiting import generator_of, kept
from sgdscope.models import build
from sgdscope.surface import LossSurface

Array = NDArray[np.float64]
F64 = torch.float64
LEAST = theory.gibbs.CROSSINGS  # crossings of all walkers together, below which odds are not used
FORGOTTEN = 3.0  # standard errors by which walks that began in either basin may differ
BURN, MEASURE = 60.0, 60.0  # lr x updates before and while the loss around a minimum is taken
EVERY = 10  # updates between two looks at the loss


# --- two basins --------------------------------------------------------------------------------------------------------------


class Basins(escapes.Potential):
    """Two quadratic basins joined by a soft minimum: L = -tau log(exp(-L_A / tau) + exp(-L_B / tau)).

    L_i = loss_i + 1/2 sum_j h_ij (x_j -+ e_1 apart / 2)_j^2, A to the left. Between them, on the ridge, the losses are equal.

    Args:
        loss: (L_A, L_B).
        curvature: (h_A, h_B), each a number or [q].
        apart: distance of the minima along the first axis.
        tau: width of the ridge, > 0.

    Source: sharpest directions, section 0, oracle 4.
    """

    def __init__(self, loss: Sequence[float], curvature: Sequence[Any], *, apart: float = 1.0, tau: float = 0.01) -> None:
        self.loss, self.tau = tuple(float(v) for v in loss), escapes.potentials.above("tau", tau)
        self.curvatures = [torch.as_tensor(h, dtype=F64).reshape(-1) for h in curvature]
        side = torch.zeros_like(self.curvatures[0])
        side[0] = apart / 2
        self.centres = [-side, side]
        super().__init__(-side)

    def losses(self, thetas: Tensor) -> tuple[Tensor, Tensor]:
        """L_A and L_B of each row, [W] each."""
        a, b = (
            level + 0.5 * ((thetas - c) ** 2 * h).sum(-1)
            for level, c, h in zip(self.loss, self.centres, self.curvatures, strict=True)
        )
        return a, b

    def value(self, thetas: Tensor) -> Tensor:
        """The loss of each row, [W]."""
        a, b = self.losses(thetas)
        return -self.tau * torch.logaddexp(-a / self.tau, -b / self.tau)

    def gradient(self, thetas: Tensor) -> Tensor:
        """The gradient of each row, [W, q]."""
        a, b = self.losses(thetas)
        left = torch.sigmoid((b - a) / self.tau)[:, None]
        pull_a, pull_b = (h * (thetas - c) for h, c in zip(self.curvatures, self.centres, strict=True))
        return torch.lerp(pull_b, pull_a, left)

    def sharpness(self) -> float:
        """The largest curvature of both basins."""
        return max(float(h.max()) for h in self.curvatures)

    def both(self) -> tuple[theory.Basin, theory.Basin]:
        """The minima as the theory takes them."""
        a, b = (theory.Basin(level, h.numpy()) for level, h in zip(self.loss, self.curvatures, strict=True))
        return a, b


def study_basins(description: Mapping[str, Any], folder: Path, data_dir: Any) -> Evidence:
    """Let walkers move between two basins under white noise, or read the result back.

    Args:
        description: name, seed, ``basins`` (options of `Basins`), ``temperature`` n, lr, walkers, updates.
        folder: of its result.
        data_dir: not used.

    Returns:
        Evidence whose extra are log_odds A : B in the second half, crossings (all walkers), apart, gibbs, exact, sharpness.
    """
    del data_dir
    return kept(description, folder, lambda: _between(description))


def _between(description: Mapping[str, Any]) -> dict[str, Any]:
    potential, n, lr = Basins(**description["basins"]), float(description["temperature"]), float(description["lr"])
    shares, crossings = _shares(potential, n, lr, description)
    found = escapes.occupied(shares, crossings / len(shares))
    told = {"log_odds": found.log_odds, "apart": found.apart, "crossings": crossings}
    told |= {"gibbs": theory.log_odds(*potential.both(), temperatures=n).value, "sharpness": potential.sharpness()}
    told |= {"threshold": theory.noise_threshold(*potential.both()).value, "exact": exact_odds(potential, n, lr)}
    return {name: v if np.isfinite(v) else None for name, v in told.items()}


def _shares(potential: Basins, n: float, lr: float, description: Mapping[str, Any]) -> tuple[Array, float]:
    """The share of its time that each walker spends on A's side in the second half, and complete crossings of all."""
    walkers, updates = int(description["walkers"]), int(description["updates"])
    generator, kick = generator_of(description), sqrt(2 * n * lr)
    thetas = torch.cat([c.repeat(walkers // 2, 1) for c in potential.centres])
    left, crossings = torch.zeros(len(thetas), dtype=F64), torch.zeros((), dtype=F64)
    bound = float(potential.centres[1][0]) / 2
    seen = torch.sign(thetas[:, 0])
    for t in range(updates):
        noise = torch.randn(thetas.shape, generator=generator, dtype=F64)
        thetas = thetas - lr * potential.gradient(thetas) + kick * noise
        if t < updates // 2:
            continue
        a, b = potential.losses(thetas)
        left += a < b
        x = thetas[:, 0]
        now = torch.where(x.abs() > bound, torch.sign(x), seen)  # trembling on the ridge is no crossing
        crossings += (now != seen).sum()
        seen = now
    return np.asarray((left / (updates - updates // 2)).numpy()), float(crossings)


def exact_odds(potential: Basins, n: float, lr: float) -> float:
    """The log odds of SGD with Gaussian noise at this learning rate, by `theory.chain_law`; NaN in more than one dimension.

    Args:
        potential: the basins.
        n: temperature.
        lr: learning rate.

    Returns:
        log of mass A over mass B.
    """
    if potential.size > 1:
        return nan
    reach = [8 * sqrt(2 * n / (h * (2 - lr * h))) + 2 * sqrt(2 * n * lr) for h in (float(v) for v in potential.curvatures)]
    ends = (float(potential.centres[0]) - reach[0], float(potential.centres[1]) + max(reach[1], 2 * sqrt(2 * n * lr)))
    pull = lambda x: potential.gradient(torch.as_tensor(x, dtype=F64)[:, None])[:, 0].numpy()  # ruff: ignore[lambda-assignment]
    ridge = _ridge(potential)
    share = theory.chain_law(pull, 2 * n / lr, ends, lr=lr, breaks=[ridge]).mass(ridge)
    return log(share / (1 - share))


def _ridge(potential: Basins) -> float:
    """Where the losses of both basins are equal, between the minima."""
    low, high = (float(c) for c in potential.centres)
    for _ in range(60):
        middle = (low + high) / 2
        a, b = potential.losses(torch.tensor([[middle]], dtype=F64))
        low, high = (middle, high) if bool(a < b) else (low, middle)
    return (low + high) / 2


# --- one frozen minimum ------------------------------------------------------------------------------------------------------


class Bowl(escapes.Potential):
    """L = 1/2 x' H x over examples that pull to centres of covariance H^-1, so that the noise covariance C is H exactly.

    Args:
        curvature: eigenvalues of H [d], > 0; H is diagonal.
        examples: N, at least d + 1.
        seed: of the centres.
    """

    def __init__(self, curvature: Sequence[float], *, examples: int = 256, seed: int = 0) -> None:
        self.eigenvalues = torch.tensor(list(curvature), dtype=F64)
        draws = torch.randn(examples, len(self.eigenvalues), generator=torch.Generator().manual_seed(seed), dtype=F64)
        draws -= draws.mean(0)
        white = draws @ torch.linalg.inv(torch.linalg.cholesky(draws.T @ draws / examples)).T
        self.centres = white / self.eigenvalues.sqrt()
        super().__init__(torch.zeros_like(self.eigenvalues))

    def value(self, thetas: Tensor) -> Tensor:
        """The mean loss of each row, without its constant, [W]."""
        return 0.5 * (thetas**2 * self.eigenvalues).sum(-1)

    def gradient(self, thetas: Tensor) -> Tensor:
        """H x of each row, [W, d]."""
        return thetas * self.eigenvalues

    def minibatch(self, thetas: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
        """The gradient of each row over its own B examples, drawn with replacement, [W, d]."""
        chosen = torch.randint(len(self.centres), (len(thetas), batch_size), generator=generator)
        return self.gradient(thetas - self.centres[chosen].mean(1))

    def matrices(self) -> tuple[Array, Array]:
        """H and C at the minimum."""
        pulls = self.centres * self.eigenvalues
        return torch.diag(self.eigenvalues).numpy(), (pulls.T @ pulls / len(pulls)).numpy()


def study_minimum(description: Mapping[str, Any], folder: Path, data_dir: Any) -> Evidence:
    """Walk around a minimum at constant learning rates and batch sizes, or read the result back.

    Args:
        description: name, seed, ``minimum`` (kind "bowl" or "network" and its options), ``grid`` of [lr, batch size], walkers.
        folder: of its result.
        data_dir: folder of the real data.

    Returns:
        Evidence whose extra are trace_h, trace_c, sharpness, slope_at_minimum and ``walks``: lr, batch_size, excess (mean loss
        above the minimum) and exact (that of the quadratic) of each.
    """
    return kept(description, folder, lambda: _around(description, data_dir))


def _around(description: Mapping[str, Any], data_dir: Any) -> dict[str, Any]:
    potential, hessian, noise = minimum_of(description, data_dir)
    generator = generator_of(description)
    walks: list[dict[str, Any]] = []
    for lr, batch in description["grid"]:
        excess = _excess(potential, (lr, batch), int(description["walkers"]), generator)
        told = {"excess": excess, "exact": _predicted(hessian, noise, lr, batch)}
        numbers = {name: v if np.isfinite(v) else None for name, v in told.items()}
        walks.append({"lr": float(lr), "batch_size": int(batch), **numbers})
    found = {"trace_h": float(np.trace(hessian)), "trace_c": float(np.trace(noise)), "walks": walks}
    slope = float(potential.gradient(potential.start()[None]).norm())
    return found | {"sharpness": float(np.linalg.eigvalsh(hessian)[-1]), "slope_at_minimum": slope}


def _excess(potential: escapes.Potential, setting: tuple[float, int], walkers: int, generator: torch.Generator) -> float:
    """Mean loss above the start of walkers that began there, over `MEASURE` / lr updates after `BURN` / lr."""
    (lr, batch), start = setting, potential.start()
    thetas, floor = start.repeat(walkers, 1), float(potential.value(start[None])[0])
    burn, total, losses = ceil(BURN / lr), ceil((BURN + MEASURE) / lr), []
    for t in range(total):
        if t >= burn and t % EVERY == 0:
            losses.append(float(potential.value(thetas).mean()))
        thetas = thetas - lr * potential.minibatch(thetas, batch, generator)
    return float(np.mean(losses)) - floor


def _predicted(hessian: Array, noise: Array, lr: float, batch: int) -> float:
    """Excess at this lr on the quadratic, within the directions whose curvature is above 1e-9 of the largest."""
    values, vectors = np.linalg.eigh(hessian)
    kept_ones = vectors[:, values > 1e-9 * values[-1]]
    inside = [kept_ones.T @ m @ kept_ones for m in (hessian, noise)]
    if lr * values[-1] >= 2:
        return nan
    return theory.stationary_covariance(
        (inside[0] + inside[0].T) / 2, (inside[1] + inside[1].T) / 2, lr=lr, batch_size=batch
    ).excess


def minimum_of(description: Mapping[str, Any], data_dir: Any = None) -> tuple[escapes.Potential, Array, Array]:
    """The potential of a description with its start in the minimum, the Hessian and the noise covariance of one example there.

    Args:
        description: its ``minimum``; a network has dataset (options of `datasets.load`), model, decay and settle.
        data_dir: folder of the real data.

    Returns:
        (potential, H [P, P], C [P, P]); a network's H and C are dense: P of a few hundred.
    """
    options = dict(description["minimum"])
    if options.pop("kind") == "bowl":
        bowl = Bowl(**options)
        return bowl, *bowl.matrices()
    told, model_told = dict(options["data"]), dict(options["model"])
    data = load(told.pop("dataset"), data_dir, **told)
    decay, name = float(options.get("decay", 0.0)), model_told.pop("name")
    model = build(
        name, inputs=tuple(data.x.shape[1:]), classes=data.classes, seed=int(description["seed"]), **model_told
    ).double()

    def loss(network: Any, batch: Any) -> Tensor:
        value = cross_entropy(network(batch[0]), batch[1], reduction="none")
        return value + 0.5 * decay * sum((p * p).sum() for p in network.parameters()) if decay else value

    network = escapes.Network(model, loss, (data.x, data.y)).settle(options["settle"]["updates"], lr=options["settle"]["lr"])
    surface = LossSurface(model, loss, (data.x.double(), data.y))
    theta = network.start()
    with surface.linearized(theta) as at:
        hessian = at.hvp(torch.eye(len(theta), dtype=F64))
    gradients = surface.per_example_grads(theta)
    gradients = gradients - gradients.mean(0)
    return network, ((hessian + hessian.T) / 2).numpy(), (gradients.T @ gradients / len(gradients)).numpy()


# --- walks made of numbers ---------------------------------------------------------------------------------------------------


def drawn(
    settings: Sequence[Mapping[str, Any]],
    numbers: Callable[[Mapping[str, Any], np.random.Generator], dict[str, Any]],
    *,
    seeds: int = 5,
) -> Callable[[int], list[Evidence]]:
    """Control: what studies would have measured, written down.

    Args:
        settings: descriptions without name and seed.
        numbers: of a description, with their scatter.
        seeds: how many.

    Returns:
        Seed -> evidence.
    """

    def runs(seed: int) -> list[Evidence]:
        random = np.random.default_rng(seed)
        numbered = range(100 * seed, 100 * seed + seeds)
        return [Evidence(dict(s) | {"seed": i}, xr.Dataset(), {}, numbers(s, random)) for i in numbered for s in settings]

    return runs
