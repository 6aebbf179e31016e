"""Private learners on a walk over records, and the walk service under faults: what the claims H1-H5 are judged on.

One linear model w with the logistic loss log(1 + exp(-y w.x)) + lam |w|^2 / 2, records normalised to |x| = 1 so that the gradient
of a record is at most 1 and its sensitivity 2; learning rate 1 / (1 + lam t). Held out: the rest of the data set, split anew by
each seed; scaling constants of the features are taken to be public.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, log2
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor, nn

from sgdscope.contracts import Evidence
from sgdscope.datasets import load
from sgdscope.directions import private
from sgdscope.errors import ArgumentError
from sgdscope.experiment.gossip import walk_service
from sgdscope.gossip import Faults, random_out, simulate
from sgdscope.privacy import noise, sensitivity
from sgdscope.privacy.mechanisms import order
from sgdscope.recorder import every
from sgdscope.runs import open_trajectory

Array = NDArray[np.float64]
BLOCK = 256  # visits for which noise is drawn at a time


# --- records -----------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Records:
    """Records of two classes and the examples that are held out.

    Attributes:
        x: [N, d], each of norm 1, a constant feature included.
        y: [N], -1 or 1.
        x_test: [M, d].
        y_test: [M].
    """

    x: Array
    y: Array
    x_test: Array
    y_test: Array

    def error(self, w: Array) -> Array:
        """The share of held-out examples on the wrong side, of each w [..., d]."""
        return np.asarray((self.y_test * (w @ self.x_test.T) <= 0).mean(-1), np.float64)


def records(dataset: str, seed: int, *, train: int | None = None, norm: str = "l2", data_dir: Any = None) -> Records:
    """Split a data set of two classes anew, scale its features, add a constant one and give each record norm 1.

    Args:
        dataset: its name; of more than two classes the first half is -1.
        seed: of the split.
        train: records; 80 % if None.
        norm: in which they have norm 1.
        data_dir: folder of the data files.

    Returns:
        The records; what is not among them is held out.

    Raises:
        ArgumentError: fewer examples than asked for.
    """
    data = load(dataset, data_dir)
    x = torch.cat([data.x, data.x_test]).flatten(1).double().numpy()
    y = np.where(torch.cat([data.y, data.y_test]).numpy() * 2 < data.classes, -1.0, 1.0)
    n = round(0.8 * len(x)) if train is None else train
    if not 2 <= n < len(x):
        raise ArgumentError(f"train: expected 2..{len(x) - 1} of the {len(x)} examples of '{dataset}', got {n}")
    places = np.random.default_rng([seed, 1]).permutation(len(x))
    spread = x[places[:n]].std(0)
    x = (x - x[places[:n]].mean(0)) / np.where(spread > 0, spread, 1.0)
    x = np.concatenate([x, np.ones((len(x), 1))], 1)[places]
    x /= np.linalg.norm(x, order(norm), axis=1, keepdims=True)
    return Records(x[:n], y[places[:n]], x[n:], y[places[n:]])


# --- learners that visit the records in passes ------------------------------------------------------------------------------


@dataclass(frozen=True)
class Learner:
    """A private learner.

    Attributes:
        design: ``"gradient"`` (noise on each gradient) or ``"input"`` (noise on the record, once).
        eps: budget of a record; infinity for no noise.
        uses: passes over the records; with ``"fixed"`` also what the budget is divided by.
        lam: strength of the regularisation.
        schedule: ``"fixed"`` or ``"halving"``, of the design ``"gradient"``.
        norm: ``"l2"`` or ``"l1"``.
    """

    design: str
    eps: float
    uses: int
    lam: float
    schedule: str = "fixed"
    norm: str = "l2"

    @property
    def kind(self) -> str:
        """Design, norm and schedule in a word: fixed, halving, l1, input or free (without noise)."""
        if self.eps == inf:
            return "free"
        if self.design == "input":
            return "input"
        return "l1" if self.norm == "l1" else self.schedule

    def scale(self, use: int) -> float:
        """The scale of the noise on the gradient at a use, from 1; 0 for none."""
        if self.eps == inf or self.design == "input":
            return 0.0
        share = self.eps / self.uses if self.schedule == "fixed" else self.eps * 2.0**-use
        return sensitivity(1.0) / share


def learn(found: Records, learners: Sequence[Learner], seed: int) -> Array:
    """Let several learners visit all records in the same order, in passes shuffled anew, each for its own number of passes.

    w <- w - lr_t (-y sigma(-y w.x) x + z + lam w), lr_t = 1 / (1 + lam t), t = 0, 1, ...; z gamma-norm or Laplace noise of the
    scale of the use. The same unit noise serves all learners of a norm: what differs between them is not the draw.

    Args:
        found: the records, normalised in the norm of the learners.
        learners: all of one norm.
        seed: of order and noise.

    Returns:
        [learners, d].

    Raises:
        ArgumentError: the learners are of different norms.

    Cost: passes x records updates of a matrix [learners, d].
    """
    norms = {one.norm for one in learners}
    if len(norms) != 1:
        raise ArgumentError(f"learners: expected one norm, got {sorted(norms)}")
    (norm,), (n, d) = norms, found.x.shape
    w = np.zeros((len(learners), d))
    lam, uses = np.array([one.lam for one in learners]), np.array([one.uses for one in learners])
    signed = _inputs(found, learners, norm, seed)
    which = np.array([sorted({one.eps for one in learners if one.design == "input"} | {0.0}).index(
        one.eps if one.design == "input" else 0.0) for one in learners])  # fmt: skip
    random, order_of = private(seed, 2, order(norm)), np.random.default_rng([seed, 3])
    for p in range(int(uses.max())):
        on = np.flatnonzero(uses > p)
        scale, places = np.array([learners[i].scale(p + 1) for i in on.tolist()])[:, None], order_of.permutation(n)
        own, decay, source = w[on], lam[on], which[on]
        for first in range(0, n, BLOCK):
            block = places[first : first + BLOCK]
            z = noise(d, 1.0, random, norm, count=len(block)).numpy()
            for j, i in enumerate(block.tolist()):
                lr = (1 / (1 + decay * (p * n + first + j)))[:, None]
                x = signed[source, i]
                slope = 1 / (1 + np.exp(np.minimum((own * x).sum(1), 500.0)))[:, None]
                own = own - lr * (scale * z[j] - slope * x + decay[:, None] * own)
        w[on] = own
    return w


def _inputs(found: Records, learners: Sequence[Learner], norm: str, seed: int) -> Array:
    """The products y x as they are, and with the noise of each budget of the design "input".

    The loss knows a record by y x alone, which any other record moves by at most 2: so label and features are both private.

    Returns:
        [1 + budgets, N, d].
    """
    signed, random = found.y[:, None] * found.x, private(seed, 4, order(norm))
    budgets = sorted({one.eps for one in learners if one.design == "input"})
    unit = noise(signed.shape[1], 1.0, random, norm, count=len(signed)).numpy()
    return np.stack([signed, *(signed + sensitivity(1.0) / eps * unit for eps in budgets)])


# --- studies -----------------------------------------------------------------------------------------------------------------


def _evidence(description: Mapping[str, Any], extra: Mapping[str, Any]) -> Evidence:
    return Evidence(dict(description), xr.Dataset(), {}, extra)


def learners_of(told: Mapping[str, Any]) -> list[Learner]:
    """All learners of a study: without noise, fixed uses, halving, Laplace noise and noisy inputs, at each strength lam.

    Args:
        told: its description, with eps, uses and lams.

    Returns:
        The learners.
    """
    found = []
    for lam in told["lams"]:
        for uses in told["uses"]:
            found.append(Learner("gradient", inf, uses, lam))
            for eps in told["eps"]:
                found += [Learner("gradient", eps, uses, lam, s) for s in ("fixed", "halving")]
                found += [Learner("input", eps, uses, lam), Learner("gradient", eps, uses, lam, norm="l1")]
    return found


def learning(description: Mapping[str, Any], folder: Path, data_dir: Any) -> Evidence:  # ruff: ignore[unused-function-argument]
    """The held-out error of private learners of all designs on one split, order and noise.

    Args:
        description: name, seed, dataset, eps, uses, lams; train if not 80 %.
        folder: not used.
        data_dir: folder of the data files.

    Returns:
        Evidence; ``extra["errors"]`` has a row (kind, eps, uses, lam, error) for each learner, eps infinite for kind "free".
    """
    told, rows = description, []
    for norm in ("l2", "l1"):
        learners = [one for one in learners_of(told) if one.norm == norm]
        found = records(told["dataset"], told["seed"], train=told.get("train"), norm=norm, data_dir=data_dir)
        errors = found.error(learn(found, learners, told["seed"])).tolist()
        rows += [(one.kind, one.eps, one.uses, one.lam, e) for one, e in zip(learners, errors, strict=True)]
    return _evidence(told, {"errors": rows, "records": len(found.x)})


def service(description: Mapping[str, Any], folder: Path, data_dir: Any) -> Evidence:  # ruff: ignore[unused-function-argument]
    """How many walks the service keeps alive, how long recovery takes and duplicates live, at one level of faults.

    Args:
        description: name, seed, nodes, degree, cycles, limit, survive, online, session; restart and terminate if not true.
        folder: not used.
        data_dir: not used.

    Returns:
        Evidence; ``extra``: mean_live after 10 limits, recoveries and duplicates (lengths, cycles), updates, bound (limit +
        log2 nodes: about the cycles that push-pull gossip takes to reach all).
    """
    told = description
    graph = random_out(told["nodes"], told["degree"], private(told["seed"], 1))
    faults = Faults(survive=told["survive"], online=told["online"], session=told["session"])
    rules = {name: told.get(name, True) for name in ("restart", "terminate")}
    trace = simulate(graph, private(told["seed"], 2), cycles=told["cycles"], faults=faults, limit=told["limit"], **rules)
    extra = {
        "mean_live": trace.mean_live(min(10 * told["limit"], 0.5 * told["cycles"])),
        "recoveries": trace.spells(least=0, most=0),
        "duplicates": trace.spells(least=2),
        "updates": int(trace.step.max()),
        "bound": told["limit"] + log2(told["nodes"]),
        "counts": dict(trace.counts),
    }
    return _evidence(told, extra)


class _Margin(nn.Module):
    """w.x, without an intercept of its own, starting at 0."""

    def __init__(self, size: int, lam: float) -> None:
        super().__init__()
        self.w, self.lam = nn.Parameter(torch.zeros(size, dtype=torch.float64)), lam

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.w


def _loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.softplus(-batch[1] * model(batch[0])).mean()


def walked(description: Mapping[str, Any], folder: Path, data_dir: Any) -> Evidence:
    """Learn on the walk of the service, without noise and with a budget, recorded; errors along the way.

    Args:
        description: name, seed, dataset, train, updates, lam, eps, uses, service (options of the ensemble "gossip").
        folder: for the runs, one an arm.
        data_dir: folder of the data files.

    Returns:
        Evidence; ``extra``: error at the end of each arm ("free", "private"), mean over the last quarter of the walk, as
        plateau; updates a cycle.
    """
    told, seed = description, int(description["seed"])
    found = records(told["dataset"], seed, train=told["train"], data_dir=data_dir)
    x, y = torch.from_numpy(found.x), torch.from_numpy(found.y)
    lam, budget = told["lam"], {"eps": told["eps"], "uses": told["uses"], "spent": "skip"}
    plateau, speed = {}, 0.0
    for arm, options in (("free", {"eps": inf, "clip": inf}), ("private", budget)):
        asked: dict[str, Any] = {"walker": "private", "options": options | {"weight_decay": lam}, "service": told["service"]}
        path = folder / arm
        model = _Margin(x.shape[1], lam)
        if not (path / "run.json").is_file():
            walk_service(
                path, model, _loss, (x, y), lr=lambda t: 1 / (1 + lam * t), updates=told["updates"], seed=seed,
                snapshots=every(max(1, told["updates"] // 40)), settings={"name": f"{told['name']}-{arm}"}, **asked,
            )  # fmt: skip
        run = open_trajectory(path)
        last = [s for s in run.snapshot_steps if s >= 0.75 * told["updates"]]
        plateau[arm] = float(np.mean([found.error(run.theta(int(s)).numpy()) for s in last]))
        speed = told["updates"] / max(1.0, float(run.steps["cycle"].values[-1]))
    return _evidence(told, {"plateau": plateau, "updates_a_cycle": speed})
