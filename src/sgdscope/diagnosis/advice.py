"""A recorded run -> advice with evidence and error bars, or the reason why it cannot be given."""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import xarray as xr
from torch.optim import Optimizer

from sgdscope import theory
from sgdscope.diagnosis.point import Edge, Noise, edge_at, noise_at, root_scale
from sgdscope.errors import ArgumentError, DataError, NotAvailableError, Outcome, SgdscopeError
from sgdscope.experiment import Experiment, parts
from sgdscope.files import plain
from sgdscope.forecast import Method, annealing, method_of
from sgdscope.notation import interval, number, with_interval
from sgdscope.quantities.averages import Averages, Block
from sgdscope.ranges import whole
from sgdscope.recorder.construction import second_moments
from sgdscope.records import Surface, Trajectory
from sgdscope.stores.zarr import ZarrStore
from sgdscope.surface import LossSurface

Subject = Literal["learning rate", "noise", "batch size", "annealing"]
Z95 = 1.959963984540054
LOSSLESS = 0.1  # more examples than now that near-lossless scaling may cost
CANNOT = "cannot tell"


@dataclass(frozen=True)
class Advice:
    """One piece of advice.

    Attributes:
        subject: what it is about.
        answer: in a word or two, ``"cannot tell"`` where it cannot be given.
        sentence: the advice with its numbers and error bars.
        reason: why it cannot be given; empty if it is.
        numbers: the evidence, JSON types.
    """

    subject: Subject
    answer: str
    sentence: str
    reason: str = ""
    numbers: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Diagnosis:
    """What can be said of a run at one of its points.

    Attributes:
        step: T.
        advice: one for each subject, annealing once for each set of data and budget.
        annealing: the measurement behind the forecast; None where there is none.
    """

    step: int
    advice: tuple[Advice, ...]
    annealing: xr.Dataset | None = None

    @property
    def lines(self) -> list[str]:
        """The advice as sentences."""
        return [one.sentence if not one.reason else f"{one.sentence} Cannot tell: {one.reason}." for one in self.advice]

    def to_json(self) -> dict[str, Any]:
        """JSON types; numbers that do not exist are null."""
        told = [
            {"subject": a.subject, "answer": a.answer, "sentence": a.sentence, "reason": a.reason, "numbers": plain(a.numbers)}
            for a in self.advice
        ]
        return {"step": self.step, "advice": told}


def diagnose(
    trajectory: Trajectory,
    surface: Surface,
    *,
    held_out: Surface | None = None,
    averages: Averages | Sequence[Block] | None = None,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    budgets: Sequence[float] = (0.1, 0.2),
    shape: str | Callable[[float], float] = "linear",
    floor: float = 0.0,
    quiet_steps: bool | None = None,
    k: int = 5,
    seed: int = 0,
) -> Diagnosis:
    """Give advice on a run at its last recorded point, with evidence and error bars.

    * Learning rate: lambda_1 of the (for Adam preconditioned) Hessian over the threshold of stability of the method, and how
      many of the k largest eigenvalues lie above it. Below or above the edge if the 95 % interval (over parts of the examples)
      says so.
    * Noise: at second order an update raises the loss by lr^2 / 2 (g' H g + Tr(HC) / B). Noise-dominated where the second part is
      the larger one, B < B_noise = Tr(HC) / g' H g, with a 95 % interval over random signs. Beside it `height_by_noise`,
      lr / (1 - momentum) Tr C / (4 B), where a quadratic in equilibrium would stand: an independent alarm for the height.
    * Batch size: an update's worth of progress costs 1 + B / B_crit times the examples of the smallest batch; near-lossless is
      the largest batch that costs at most 10 % more than now, B' = 1.1 B + 0.1 B_crit; B_crit the curved scale, else the
      simple one. The learning rate that goes with it by `theory.rescale`, at most what the edge allows for the largest
      eigenvalue.
    * Annealing now: `forecast.annealing`, train and held-out, height and progress apart.

    For Adam and its family H, C and g are those in the coordinates of D^(-1/2) theta; with BatchNorm they are those of training
    mode. Works live too: with the trajectory
    of the recorder's store and the `Averages` that is attached.

    Args:
        trajectory: the run.
        surface: on training data.
        held_out: on held-out data; None leaves them out.
        averages: see `forecast.annealing`.
        optimizer: live, where the run is not closed yet: gives the second moments of Adam and its family.
        budgets: of the decay, see `forecast.annealing`.
        shape: of the decay.
        floor: share of the learning rate that is left in the end.
        quiet_steps: make the 32 quiet steps for the held-out loss; None makes them where `held_out` is given.
        k: eigenvalues.
        seed: of all draws.

    Returns:
        The diagnosis; kept with a run that lies in a directory as the measurements ``"annealing"`` and ``"diagnosis"``.

    Raises:
        ArgumentError: an option is out of range, or the run has no point.

    Cost: some 60 Hessian products, 16 gradients, and what `forecast.annealing` costs.
    Source: Cohen et al. 2021 (2103.00065) and 2022 (2207.14484) for the edge; McCandlish et al. 2018 (1812.06162), sections
        2.2-2.3, for the scales and the price of a batch; this project, `docs/annealing.md`.
    """
    whole("k", k, 1)
    trajectory = _with_moments(trajectory, optimizer)
    quiet = held_out is not None if quiet_steps is None else quiet_steps
    told = annealing(
        trajectory,
        surface,
        held_out=held_out,
        averages=averages,
        budgets=budgets,
        shape=shape,
        floor=floor,
        quiet_steps=quiet,
        seed=seed,
    )
    step = int(told.attrs["step"])
    with torch.random.fork_rng(devices=[]):
        edge, noise, advice = _at_the_point(trajectory, surface, step, k, seed)
    method = method_of(trajectory, step)
    examples = surface.fingerprint().get("examples")
    found = (*advice, batch_advice(method, noise, edge, examples), *annealing_advice(told))
    diagnosis = Diagnosis(step, found, told)
    if trajectory.path is not None:
        ZarrStore.write_measurement(trajectory.path, "annealing", told)
        ZarrStore.write_measurement(trajectory.path, "diagnosis", _dataset(diagnosis))
    return diagnosis


def _with_moments(trajectory: Trajectory, optimizer: Optimizer | Sequence[Optimizer] | None) -> Trajectory:
    """The trajectory with the second moments that an optimizer holds now, at every step."""
    if optimizer is None:
        return trajectory
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    params = [p for one in optimizers for group in one.param_groups for p in group["params"] if p.requires_grad]
    scale = second_moments(optimizers, params)
    if scale is None:
        return trajectory
    if len(scale) != trajectory.header.layout.size:
        raise ArgumentError(
            f"optimizer: it moves {len(scale)} numbers, the run has {trajectory.header.layout.size}; pass all of them"
        )
    return replace(trajectory, read_preconditioner=lambda _: scale)


def _at_the_point(
    trajectory: Trajectory, surface: Surface, step: int, k: int, seed: int
) -> tuple[Edge | None, Noise | None, tuple[Advice, ...]]:
    """Edge and noise at theta_T with their advice; what cannot be measured says why."""
    method, buffers = method_of(trajectory, step), trajectory.buffers(step) or None
    theta = trajectory.theta(step)
    edge, noise = None, None
    try:
        if not method.lr > 0:
            raise NotAvailableError("the learning rate was not recorded")
        root = root_scale(trajectory, method, step, theta)
        edge = edge_at(surface, theta, method, root, buffers=buffers, k=k, seed=seed)
        first = edge_advice(edge, method)
    except SgdscopeError as error:
        first, root = _cannot("learning rate", str(error)), torch.zeros(0)
    try:
        if not len(root):
            raise NotAvailableError(first.reason)
        noise = noise_at(surface, theta, method, root, buffers=buffers, seed=seed)
        second = noise_advice(noise, method)
    except (SgdscopeError, DataError) as error:
        second = _cannot("noise", str(error))
    return edge, noise, (first, second)


def _within(value: float, error: float) -> str:
    """A number with its 95 % interval; the number alone where its error is not known."""
    return with_interval(value, value - Z95 * error, value + Z95 * error)


def _cannot(subject: Subject, reason: str, **numbers: Any) -> Advice:
    return Advice(subject, CANNOT, f"{subject.capitalize()}:", reason.rstrip("."), numbers)


# --- the pieces ---------------------------------------------------------------------------------------------------------------


def edge_advice(edge: Edge, method: Method) -> Advice:
    """Say on which side of the edge of stability the learning rate lies.

    Args:
        edge: as measured.
        method: of the run.

    Returns:
        below, above or at the edge; cannot tell where the eigenvalue did not converge.
    """
    half = Z95 * edge.stderr if math.isfinite(edge.stderr) else 0.0
    numbers = {
        "ratio": edge.ratio,
        "stderr": edge.stderr,
        "directions_above": edge.above,
        "directions": edge.k,
        "sharpness": edge.sharpness,
        "threshold": edge.threshold,
        "lr": method.lr,
        "lr_at_the_edge": method.lr / edge.ratio if edge.ratio > 0 else math.inf,
    }
    if not edge.converged:
        return _cannot("learning rate", f"the largest eigenvalue did not converge (residual {edge.residual:.2g})", **numbers)
    answer = "below the edge" if edge.ratio + half < 1 else "above the edge" if edge.ratio - half > 1 else "at the edge"
    many = f"{edge.above} of the {edge.k} largest eigenvalues lie above it"
    if edge.above == edge.k:
        many = f"at least {edge.k} eigenvalues lie above it"
    of = "preconditioned curvature" if edge.matrix == "preconditioned" else "curvature"
    text = (
        f"Learning rate {number(method.lr)} is {answer}: the largest {of} is {_within(edge.ratio, edge.stderr)} times the "
        f"threshold of {method.name}, {many}."
    )
    return Advice("learning rate", answer, text, "", numbers)


def noise_advice(noise: Noise, method: Method) -> Advice:
    """Say whether noise or curvature along the mean step makes the second-order rise of the loss.

    Args:
        noise: as measured.
        method: of the run.

    Returns:
        noise-dominated, curvature-dominated or neither.
    """
    batch = method.batch_size
    scale, error = noise.curved, noise.curved_stderr
    numbers = {
        "batch_size": batch,
        "noise_scale": noise.simple,
        "noise_scale_stderr": noise.simple_stderr,
        "curved_noise_scale": scale,
        "curved_noise_scale_stderr": error,
        "height_by_noise": method.effective_lr * noise.trace / (4 * batch),
    }
    if not batch >= 1:
        return _cannot("noise", "the batch size was not recorded", **numbers)
    if not math.isfinite(scale):
        return _cannot("noise", "the curvature along the mean gradient is not positive", **numbers)
    low, high = scale - Z95 * error, scale + Z95 * error
    answer = "noise-dominated" if low > batch else "curvature-dominated" if high < batch else "neither dominates"
    text = (
        f"Updates are {answer}: noise and mean step raise the loss equally at a batch of {_within(scale, error)} "
        f"examples (B_noise), the run has {batch:g}; the simple scale is {_within(noise.simple, noise.simple_stderr)}."
    )
    return Advice("noise", answer, text, "", numbers | {"share_of_noise": scale / (scale + batch)})


def batch_advice(method: Method, noise: Noise | None, edge: Edge | None, examples: int | None = None) -> Advice:
    """Say up to which batch size scaling is near-lossless, and which learning rate goes with it.

    Args:
        method: of the run.
        noise: as measured; None where it was not.
        edge: as measured; None where it was not.
        examples: N, beyond which no batch goes; None where it is not known.

    Returns:
        The batch size, with the learning rate by the rule of the method, at most that at the edge.
    """
    if noise is None or not method.batch_size >= 1:
        return _cannot("batch size", "the noise of the gradient is not known (see noise)")
    curved = math.isfinite(noise.curved) and noise.curved > 0
    critical, error = (noise.curved, noise.curved_stderr) if curved else (noise.simple, noise.simple_stderr)
    if not math.isfinite(critical):
        return _cannot("batch size", "the gradient of the whole data is zero, and every batch is noise")
    now = round(method.batch_size)
    most_examples = max(now, examples or sys.maxsize)

    def lossless(scale: float) -> int:
        return min(max(now, int((1 + LOSSLESS) * now + LOSSLESS * max(0.0, scale))), most_examples)

    best, low, high = (lossless(critical + side * Z95 * error) for side in (0, -1, 1))
    numbers = {"critical_batch_size": critical, "critical_stderr": error, "batch_size": best, "low": low, "high": high}
    rate, rule = _rate_for(method, best / now)
    limit = ""
    if edge is not None and edge.matrix == "hessian" and edge.ratio > 0 and rate > (most := method.lr / edge.ratio):
        limit = f", held at the edge: by the rule it were {number(rate)}"
        rate, numbers["lr_at_the_edge"] = max(most, method.lr), most
    whole = ", and is the whole data set" if best == examples else ""
    text = (
        f"Batch size: up to {best} {interval(low, high)} costs at most {LOSSLESS:.0%} more examples than {now} does{whole} "
        f"(critical batch {_within(critical, error)}, {'Hessian-weighted' if curved else 'simple'}); "
        f"the learning rate that goes with it is {number(rate)} ({rule}{limit})."
    )
    return Advice("batch size", f"up to {best}", text, "", numbers | {"lr": rate})


def _rate_for(method: Method, factor: float) -> tuple[float, str]:
    """The learning rate for a batch that is `factor` times as large, and the rule in words."""
    kind = method.name if method.name in {"adam", "adamw", "rmsprop"} else "adam" if method.adaptive else "sgd"
    scaled = theory.rescale({"lr": method.lr, "batch_size": 10**6}, factor, method=kind)
    return float(scaled.settings["lr"]), "times the root of the factor" if method.adaptive else "times the factor"


def annealing_advice(told: xr.Dataset) -> list[Advice]:
    """Say what annealing now would give.

    Args:
        told: of `forecast.annealing`.

    Returns:
        One for each set of data and budget.
    """
    advice = []
    for data in told["data"].values.tolist():
        for budget in told["budget"].values.tolist():
            cell = told.sel(data=data, budget=budget)
            advice.append(_annealing(cell, data.replace("_", "-"), float(budget)))
    return advice


def _annealing(cell: xr.Dataset, data: str, budget: float) -> Advice:
    names = ("loss_now", "annealed", "annealed_low", "annealed_high", "drop", "height", "progress", "hindcast_error")
    numbers: dict[str, Any] = {name: float(cell[name]) for name in names}
    numbers |= {"data": data, "budget": budget, "updates": int(cell["width"])}
    numbers["laws"] = dict(zip(cell["law"].values.tolist(), cell["law_loss"].values.tolist(), strict=True))
    where = f"Annealing now over {numbers['updates']} updates ({budget:.0%}), {data} loss"
    reason = str(cell["reason"].values)
    if int(cell["annealed_outcome"]) == int(Outcome.not_applicable):
        return Advice("annealing", CANNOT, f"{where} {number(numbers['loss_now'], digits=4)}:", reason, numbers)
    end = with_interval(*(numbers[name] for name in ("annealed", "annealed_low", "annealed_high")))
    drop, height, progress = (number(numbers[name]) for name in ("drop", "height", "progress"))
    text = (
        f"{where} {number(numbers['loss_now'], digits=4)} -> {end} (90 %): drop {drop}, height {height} and progress {progress}."
    )
    answer = CANNOT if reason else "falls" if numbers["drop"] > 0 else "does not fall"
    return Advice("annealing", answer, text, reason, numbers)


EXAMPLES = 8192  # of each set: a fixed subset of 2048-8192 is the protocol proposed for the walk


def surfaces(experiment: Experiment, data_dir: str | Path | None = None) -> tuple[LossSurface, LossSurface]:
    """The loss of an experiment on its training and on its held-out data, or on a fixed part of a large set.

    Args:
        experiment: the description.
        data_dir: folder of the real data files.

    Returns:
        (train, held-out), of the first 8192 examples each.
    """
    model, loss, data = parts(experiment, data_dir)
    pairs = ((data.x, data.y), (data.x_test, data.y_test))
    train, held_out = (LossSurface(model, loss, (x[:EXAMPLES], y[:EXAMPLES])) for x, y in pairs)
    return train, held_out


def _dataset(diagnosis: Diagnosis) -> xr.Dataset:
    """The sentences as a measurement, to be kept and shown."""
    columns = {
        name: np.array([getattr(a, name) for a in diagnosis.advice], dtype=np.str_)
        for name in ("subject", "answer", "sentence", "reason")
    }
    about = {"units": "1", "error": "exact", "source": "sgdscope diagnose"}
    variables = {name: ("advice", values, about | {"long_name": f"{name} of the advice"}) for name, values in columns.items()}
    return xr.Dataset(variables, attrs={"step": diagnosis.step})
