"""Studies of projected Langevin chains: distance from the target, steps to reach it, mass on the surface."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from scipy import special
from torch import Tensor

from sgdscope.bodies import Ball, Box
from sgdscope.chains import chains
from sgdscope.contracts import Evidence
from sgdscope.directions import private

Array = NDArray[np.float64]
Description = dict[str, Any]
Presets = dict[str, Callable[[int], list[Description]]]
CELLS = 20  # depths below the surface of [-1, 1] at which laws are compared, beside the surface itself
KEPT = 5  # points of a chain over its second half
CURVATURE = 4.0  # of f = 2 x^2, the table's truncated Gaussian
REFERENCE = 200_000  # direct draws of the target's |X|


def presets(settings: Mapping[str, Sequence[Mapping[str, Any]]], seeds: int) -> Presets:
    """Descriptions of studies, one a setting and seed, named by what differs.

    Args:
        settings: preset -> settings; each has a ``"label"``, unique in its preset.
        seeds: of each setting.

    Returns:
        Preset -> seed -> descriptions; two seeds share none.
    """

    def of(preset: str) -> Callable[[int], list[Description]]:
        return lambda seed: [
            {k: v for k, v in own.items() if k != "label"} | {"name": f"{own['label']}-seed{s}", "seed": s}
            for own in settings[preset]
            for s in range(seeds * seed, seeds * (seed + 1))
        ]

    return {preset: of(preset) for preset in settings}


def _evidence(description: Mapping[str, Any], **extra: Any) -> Evidence:
    return Evidence(dict(description), xr.Dataset(), {}, extra)


# --- L1: distance from the target -------------------------------------------------------------------------------------------


def _target(kind: str) -> Array:
    """Distribution function of the depth 1 - |x| under the target, at 0, 1 / CELLS, ..., 1: [CELLS + 1]."""
    inner = np.linspace(1, 0, CELLS + 1)
    if kind == "uniform":
        return 1 - inner
    return np.asarray(1 - special.erf(math.sqrt(CURVATURE / 2) * inner) / special.erf(math.sqrt(CURVATURE / 2)))


def _reached(points: Tensor, boundary: Tensor) -> Array:
    """The same of points; at 0 it is the mass of the atoms."""
    depth = ((1 - points[..., 0].abs()) * CELLS).clamp(0, CELLS - 1e-9).long() + 1
    counts = torch.bincount(torch.where(boundary, 0, depth).reshape(-1), minlength=CELLS + 1).double()
    return np.asarray(counts.cumsum(0) / counts.sum())


def crossed(halves: Sequence[Array], target: Array) -> float:
    """Kolmogorov distance of the depth below the surface, by halves, so that noise does not add to it.

    The largest |difference| of the distribution functions, at the depth that one half of the chains points out and with its
    sign, read off the other half; the mean of both ways. At most the distance in total variation, which it equals where all
    excess lies on the surface, as theory has it for projected chains.

    Args:
        halves: two distribution functions of independent chains, [n] each.
        target: that of the target, [n].

    Returns:
        The distance; negative only by chance.
    """
    a, b = (half - target for half in halves)
    i, j = int(np.abs(a).argmax()), int(np.abs(b).argmax())
    return float((np.sign(a[i]) * b[i] + np.sign(b[j]) * a[j]) / 2)


def study_distance(description: Mapping[str, Any], folder: Path, data_dir: Any = None) -> Evidence:  # ruff: ignore[unused-function-argument] - one signature for all studies
    """Walk chains on [-1, 1] from the target itself for `time` of the diffusion, and hold their law against the target's.

    Args:
        description: target (uniform or gaussian), lr, time, chains, seed; `drift`, a factor on grad f, is 1 unless told.
        folder: not used.
        data_dir: not used.

    Returns:
        Evidence with distance, atoms (the mass of both ends) and lr.
    """
    kind, lr, n = description["target"], description["lr"], description["chains"]
    generator = private(description["seed"], int(kind == "uniform"), round(1e9 * lr))
    share = torch.rand(n, 1, generator=generator, dtype=torch.float64)
    low = float(special.ndtr(-math.sqrt(CURVATURE)))
    start = 2 * share - 1 if kind == "uniform" else torch.special.ndtri(low + (1 - 2 * low) * share) / math.sqrt(CURVATURE)
    slope = CURVATURE * description.get("drift", 1.0)
    steps = max(2 * KEPT, math.ceil(description["time"] / lr))
    walked = chains(
        None if kind == "uniform" else lambda x: slope * x,
        Box(-1.0, 1.0, size=1),
        lr=lr,
        steps=steps,
        start=start,
        generator=generator,
        every=steps // (2 * KEPT),
    )
    points, boundary = walked.points[-KEPT:], walked.boundary[-KEPT:]
    halves = [_reached(points[:, rows], boundary[:, rows]) for rows in (slice(0, n // 2), slice(n // 2, n))]
    atoms = float(np.mean([half[0] for half in halves]))
    return _evidence(description, distance=crossed(halves, _target(kind)), atoms=atoms, lr=lr)


# --- L2: steps to reach the target ------------------------------------------------------------------------------------------


def _radii(kind: str, d: int, generator: torch.Generator) -> Array:
    """Draws of |X|, sorted, X uniform on [-1, 1]^d or on the unit ball."""
    if kind == "ball":
        found = torch.rand(REFERENCE, generator=generator, dtype=torch.float64) ** (1 / d)
    else:
        found = torch.linalg.vector_norm(2 * torch.rand(REFERENCE, d, generator=generator, dtype=torch.float64) - 1, dim=1)
    return np.sort(found.numpy())


def _kolmogorov(x: Array, reference: Array) -> float:
    """Largest difference between the distribution functions of x and of the reference, at the points of x."""
    own = np.sort(x)
    below = np.searchsorted(reference, own, side="left") / len(reference)
    upto = np.searchsorted(reference, own, side="right") / len(reference)
    n = len(own)
    last = np.searchsorted(own, own, side="right") / n
    first = np.searchsorted(own, own, side="left") / n
    return float(max(np.abs(last - upto).max(), np.abs(first - below).max()))


def study_steps(description: Mapping[str, Any], folder: Path, data_dir: Any = None) -> Evidence:  # ruff: ignore[unused-function-argument] - one signature for all studies
    """Walk chains from the centre of a body until the law of |X| is within a tolerance of the uniform one's.

    The distance is Kolmogorov's, looked at every twentieth of the steps made: less than the distance in total variation.

    Args:
        description: body (box or ball), d, c (lr = c / d^2), tolerance, time at which it gives up, chains, seed.
        folder: not used.
        data_dir: not used.

    Returns:
        Evidence with steps (None if it gave up), distance and atoms at the end, and lr.
    """
    kind, d, lr = description["body"], description["d"], description["c"] / description["d"] ** 2
    generator = private(description["seed"], d, int(kind == "box"), 2)
    reference, body = _radii(kind, d, generator), Box(-1.0, 1.0, size=d) if kind == "box" else Ball(1.0, size=d)
    points, made, distance, atoms = torch.zeros(description["chains"], d, dtype=torch.float64), 0, 1.0, 0.0
    while distance > description["tolerance"] and made * lr < description["time"]:
        more = max(1, made // 20)
        walked = chains(None, body, lr=lr, steps=more, start=points, generator=generator)
        points, made, atoms = walked.points[-1], made + more, walked.boundary_share
        distance = _kolmogorov(torch.linalg.vector_norm(points, dim=1).numpy(), reference)
    reached = made if distance <= description["tolerance"] else None
    return _evidence(description, steps=reached, distance=distance, atoms=atoms, lr=lr)


# --- L4: mass on the surface ------------------------------------------------------------------------------------------------


def study_surface(description: Mapping[str, Any], folder: Path, data_dir: Any = None) -> Evidence:  # ruff: ignore[unused-function-argument] - one signature for all studies
    """Walk chains on the unit ball from its uniform law, and count those on the sphere.

    Args:
        description: d, lr, time, chains, seed.
        folder: not used.
        data_dir: not used.

    Returns:
        Evidence with share, d and lr.
    """
    d, lr, n = description["d"], description["lr"], description["chains"]
    generator = private(description["seed"], d, round(1e9 * lr), 4)
    direction = torch.nn.functional.normalize(torch.randn(n, d, generator=generator, dtype=torch.float64), dim=1)
    start = direction * torch.rand(n, 1, generator=generator, dtype=torch.float64) ** (1 / d)
    steps = max(4 * KEPT, math.ceil(description["time"] / lr))
    every = steps // (4 * KEPT)
    walked = chains(None, Ball(1.0, size=d), lr=lr, steps=steps, start=start, generator=generator, every=every)
    share = float(walked.boundary[-2 * KEPT :].double().mean())
    return _evidence(description, share=share, d=d, lr=lr)


# --- evidence made of numbers -----------------------------------------------------------------------------------------------


def made(
    descriptions: Callable[[int], list[Description]],
    law: Callable[[Description, np.random.Generator], Mapping[str, Any]],
    *,
    seeds: int | None = None,
) -> Callable[[int], list[Evidence]]:
    """Evidence whose numbers follow a law that is written down, with scatter.

    Args:
        descriptions: of a preset.
        law: (description, random numbers) -> what the study would have measured.
        seeds: how many of the first seeds; all if None.

    Returns:
        Seed -> evidence.
    """

    def draw(seed: int) -> list[Evidence]:
        told, random = descriptions(seed), np.random.default_rng(seed + 1)
        kept = sorted({d["seed"] for d in told})[:seeds]
        return [_evidence(d, **law(d, random)) for d in told if d["seed"] in kept]

    return draw
