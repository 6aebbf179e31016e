"""What loss annealing now would give: the forecast of a recorded run, with its interval, or the reason why it cannot be told."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.contracts import declare, measurement
from sgdscope.errors import ArgumentError, DataError, NotAvailableError, Outcome
from sgdscope.forecast.laws import LAWS, Decay, decay, predict
from sgdscope.forecast.projection import quiet_point
from sgdscope.forecast.windows import Losses, constant_since, kept_blocks, losses_at, rebuilt_blocks, window_means
from sgdscope.quantities.averages import Averages, Block
from sgdscope.records import Surface, Trajectory

Array = NDArray[np.float64]
Row = dict[str, Any]

LEAST_WIDTH = 100  # steps: shorter windows than the slow oscillations; guess of the specification
UNSUMMED = "the iterates were not summed: Recorder(..., live=[live('averages')]), or [record] averages = 64 in the TOML"
LEAST_SEEN = 0.95  # of a window's iterates
MOST_HINDCAST = 0.2  # error of the hindcast over the predicted drop; guess of the specification
LEAST_ERRORS = 2.0  # drop over its standard error, on held-out data; guess of the specification

_SOURCES = {
    "forecast": "annealing_forecast.md, Recommended estimator: three windows, four laws, soft hindcast",
    "surface": "value of the surface; statistics of BatchNorm estimated anew on the training data",
    "interval": "1.645 sqrt(spread of the laws^2 + hindcast error^2 + (0.12 drop)^2 (+ stderr over the examples^2, held out))",
    "quiet": "annealing_forecast.md, Recommended estimator (ii): 32 steps of batch 8 x BS at lr_eff / 2",
    "count": "counted",
}
_REASONS = {"told": "see the variable `reason`", "quiet": "not asked for, or the run does not have what it needs"}
_TABLE = """
loss_now; data; loss; stderr; surface; ; L(theta_T)
window_loss; data budget age; loss; stderr; surface; told; L at the average of N iterates that ended `age` N steps ago
annealed; data budget; loss; stderr; forecast; told; loss at the end of a decay over the budget that begins now
annealed_low; data budget; loss; bound; interval; told; lower end of the 90 % interval of annealed
annealed_high; data budget; loss; bound; interval; told; upper end of the 90 % interval of annealed
drop; data budget; loss; stderr; forecast; told; loss_now - annealed
height; data budget; loss; stderr; forecast; told; loss_now - loss at the last average: what settling onto the floor gives
progress; data budget; loss; bound; forecast; told; drop - height: what the walk along the floor gives meanwhile
by_windows; data budget; loss; bound; forecast; told; annealed by the windows alone
law_loss; data budget law; loss; bound; forecast; told; annealed by one law
law_weight; data budget law; 1; exact; forecast; told; weight of a law, from its hindcast
hindcast_error; data budget; loss; exact; forecast; told; |loss at the last average - what the two before it predict for it|
quiet_loss; data; loss; stderr; quiet; quiet; loss after 32 large, quiet steps from theta_T
width; budget; 1; exact; count; ; N, updates of the decay and of each window
seen; budget; 1; exact; count; told; smallest share of a window's iterates that were summed
"""
_VARIABLES = declare(_TABLE, sources=_SOURCES, reasons=_REASONS)
DATA = ("train", "held_out")


@dataclass(frozen=True)
class _Budget:
    """One budget: its width, its averages, and why it cannot be told (empty if it can)."""

    width: int
    points: list[Tensor]
    seen: float
    reason: str


def annealing(
    trajectory: Trajectory,
    surface: Surface,
    *,
    held_out: Surface | None = None,
    budgets: Sequence[float] = (0.05, 0.1, 0.2),
    shape: str | Callable[[float], float] = "linear",
    floor: float = 0.0,
    at: int | None = None,
    averages: Averages | Sequence[Block] | None = None,
    quiet_steps: bool = False,
    seed: int = 0,
) -> xr.Dataset:
    """Forecast the loss at the end of a decay of the learning rate that begins now, without making it.

    Three consecutive windows of N = budget x T iterates are averaged, the loss is evaluated at the averages and at theta_T, and
    continued by four laws, weighted by how well each predicts the last average from the two before (`laws.predict`).
    On held-out data, with `quiet_steps`, annealed is the mean of that and of the loss after 32 large, quiet steps
    (`projection.quiet_point`).

    The value comes with a 90 % interval, or with the outcome not_converged (the value is kept and not to be trusted) or
    not_applicable and a `reason`: N < 100 updates, fewer than 3N updates since the learning rate changed, iterates not summed,
    hindcast error above 20 % of the drop, a held-out drop below two standard errors.

    Args:
        trajectory: the run.
        surface: on training data.
        held_out: on held-out data; None leaves them out.
        budgets: updates of the decay over updates so far, each in (0, 1/3].
        shape: of the decay, see `laws.decay`.
        floor: share of the learning rate that is left in the end.
        at: T, a recorded point; None for the last one.
        averages: sums of the iterates; None for those kept with the run, or rebuilt where every point can be.
        quiet_steps: also make the 32 quiet steps, on single examples of `surface`.
        seed: of the examples drawn for them.

    Returns:
        Measurement over `data` (train, held_out), `budget`, `law` and `age`; `reason` holds sentences, empty where it is told.

    Raises:
        ArgumentError: an option is out of range, or the run has no point.

    Cost: 1 + 3 x budgets evaluations of each surface; quiet steps 256 training steps. Without sums a replayed run makes its last
    3N updates again.
    Source: this project, `docs/annealing.md`.
    """
    step, shares = _checked(trajectory, budgets, at)
    fall = decay(shape, floor=floor)
    blocks = averages.blocks if isinstance(averages, Averages) else averages
    plans = _plans(trajectory, step, shares, blocks)
    surfaces = [surface] if held_out is None else [surface, held_out]
    theta, buffers = trajectory.theta(step), trajectory.buffers(step) or None
    quiet = _quiet(trajectory, surface, step, seed) if quiet_steps else None
    points = [theta, *([] if quiet is None else [quiet]), *(point for plan in plans for point in plan.points)]
    found = losses_at(surfaces, ((point, buffers) for point in points))
    rows = [_row(losses, plans, (step, fall), quiet is not None, held_out=k > 0) for k, losses in enumerate(found)]
    return _dressed(rows, plans, shares, step).assign_attrs(step=step, area=fall.area, end=fall.end)


def _checked(trajectory: Trajectory, budgets: Sequence[float], at: int | None) -> tuple[int, list[float]]:
    if not len(trajectory.snapshot_steps):
        raise ArgumentError("trajectory: it has no point; record with a schedule of snapshots")
    shares = [float(budget) for budget in budgets]
    if not shares or not all(0 < share <= 1 / 3 for share in shares):
        raise ArgumentError(f"budgets: expected shares of the updates so far, each in (0, 1/3], got {list(budgets)}")
    step = int(trajectory.snapshot_steps[-1]) if at is None else at
    if at is not None and at not in trajectory.snapshot_steps:
        raise ArgumentError(f"at: expected a recorded point, got {at}; snapshot_steps names them")
    return step, shares


def _plans(trajectory: Trajectory, step: int, shares: Sequence[float], blocks: Sequence[Block] | None) -> list[_Budget]:
    """The averages of each budget, or why there are none; steps count from the first row of the run."""
    table = trajectory.steps
    rows = table["step"].values if "step" in table.coords else np.zeros(0, np.int64)
    begin = int(rows[0]) if len(rows) else 0
    widths = [round(share * (step - begin)) for share in shares]
    since = constant_since(table, step) if len(rows) else None
    reasons = [_unfit(width, step, since) for width in widths]
    usable = [width for width, reason in zip(widths, reasons, strict=True) if not reason]
    missing = ""
    if usable and blocks is None:
        try:
            blocks = kept_blocks(trajectory) or rebuilt_blocks(trajectory, step - 3 * max(usable), step)
        except NotAvailableError as error:
            missing = f"{UNSUMMED} ({error})"
    plans = []
    for width, reason in zip(widths, reasons, strict=True):
        plans.append(
            _Budget(width, [], 0.0, reason or missing) if reason or missing else _averaged(trajectory, step, width, blocks)
        )
    return plans


def _unfit(width: int, step: int, since: int | None) -> str:
    if width < LEAST_WIDTH:
        return f"the budget is {width} updates; windows of fewer than {LEAST_WIDTH} are shorter than the slow oscillations"
    if since is None:
        return "the learning rate was not recorded"
    if step - since < 3 * width:
        return f"only {step - since} updates were made since the learning rate changed, expected at least 3 N = {3 * width}"
    return ""


def _averaged(trajectory: Trajectory, step: int, width: int, blocks: Sequence[Block] | None) -> _Budget:
    try:
        points, seen = window_means(blocks or [], step, width, trajectory.theta(step))
    except NotAvailableError as error:
        return _Budget(width, [], 0.0, str(error))
    if seen < LEAST_SEEN:
        return _Budget(width, [], seen, f"of one window only {seen:.0%} of the iterates were summed, expected {LEAST_SEEN:.0%}")
    return _Budget(width, points, seen, "")


def _quiet(trajectory: Trajectory, surface: Surface, step: int, seed: int) -> Tensor | None:
    try:
        return quiet_point(trajectory, surface, step, buffers=trajectory.buffers(step) or None, seed=seed)
    except (NotAvailableError, DataError):
        return None


# --- numbers ----------------------------------------------------------------------------------------------------------


def _row(losses: Losses, plans: Sequence[_Budget], at: tuple[int, Decay], quiet: bool, *, held_out: bool) -> Row:
    """All numbers on one set of data; the points: theta_T, the quiet one if any, three for each plan that has them."""
    nan = float("nan")
    place, cells = 1 + quiet, []
    for plan in plans:
        if not plan.points:
            cells.append({"reason": plan.reason})
            continue
        chosen = losses.take([place, place + 1, place + 2, 0, *([1] if quiet and held_out else [])])
        cells.append(_cell(chosen, plan.width, at, held_out=held_out))
        place += 3
    unit = np.zeros(len(losses.values))
    unit[0] = 1.0
    row: Row = {"cells": cells, "loss_now": losses.values[0], "loss_now_stderr": losses.stderr(unit)}
    second = np.roll(unit, 1)
    return row | {
        "quiet_loss": losses.values[1] if quiet else nan,
        "quiet_loss_stderr": losses.stderr(second) if quiet else nan,
    }


def _cell(losses: Losses, width: int, at: tuple[int, Decay], *, held_out: bool) -> Row:
    """One budget on one set of data: losses at C, A, B, theta_T and, where asked for, the quiet point."""
    step, fall = at

    def annealed(values: Array) -> Array:
        told = predict(values[..., :3], values[..., 3], step=step, width=width, decay=fall).annealed
        return told if values.shape[-1] == 4 else (told + values[..., 4]) / 2

    values = losses.values
    told = predict(values[:3], values[3], step=step, width=width, decay=fall)
    last = float(annealed(values))
    slopes = _slopes(annealed, values)
    now, floor = np.eye(len(values))[3], np.eye(len(values))[2]
    error = losses.stderr(slopes)
    half = float(np.hypot(told.half_width, 1.6448536269514722 * np.nan_to_num(error) if held_out else 0.0))
    cell: Row = {
        "annealed": last,
        "annealed_stderr": error,
        "annealed_low": last - half,
        "annealed_high": last + half,
        "drop": values[3] - last,
        "drop_stderr": losses.stderr(now - slopes),
        "height": float(told.height),
        "height_stderr": losses.stderr(now - floor),
        "progress": values[3] - last - float(told.height),
        "by_windows": float(told.annealed),
        "law_loss": told.laws,
        "law_weight": told.weights,
        "hindcast_error": abs(float(told.hindcast) - values[2]),
        "window_loss": values[2::-1],
        "window_loss_stderr": [losses.stderr(np.eye(len(values))[k]) for k in (2, 1, 0)],
    }
    return cell | {"reason": _doubt(cell, held_out)}


def _slopes(function: Callable[[Array], Array], values: Array) -> Array:
    """Central differences, one for each loss."""
    steps = 1e-5 * np.maximum(np.abs(values), 1e-8)
    sides = [function(values + sign * np.diag(steps)) for sign in (1, -1)]
    slopes: Array = (sides[0] - sides[1]) / (2 * steps)
    return slopes


def _doubt(cell: Mapping[str, Any], held_out: bool) -> str:
    drop, error = cell["drop"], cell["hindcast_error"]
    if not np.isfinite(drop):
        return "a loss is not finite, or no law of extrapolation exists for these losses"
    if error > MOST_HINDCAST * abs(drop):
        share = f"{error / abs(drop):.0%}" if drop else "more"
        return f"the two windows before predict the last one with an error of {share} of the drop, more than {MOST_HINDCAST:.0%}"
    if held_out and np.isfinite(cell["drop_stderr"]) and abs(drop) < LEAST_ERRORS * cell["drop_stderr"]:
        return f"the drop {drop:.3g} is below two of its standard errors over the held-out examples ({cell['drop_stderr']:.3g})"
    return ""


# --- the measurement --------------------------------------------------------------------------------------------------


def _dressed(rows: Sequence[Row], plans: Sequence[_Budget], shares: Sequence[float], step: int) -> xr.Dataset:
    sizes = {"data": len(rows), "budget": len(plans), "law": len(LAWS), "age": 3}
    values: Row = {"width": [float(plan.width) for plan in plans], "seen": [plan.seen for plan in plans]}
    values["seen_outcome"] = [int(Outcome.ok if plan.seen else Outcome.not_applicable) for plan in plans]
    for name, v in _VARIABLES.items():
        if "data" not in v.dims:
            continue
        shape = tuple(sizes[d] for d in v.dims[2:])
        for key in (name, f"{name}_stderr") if v.error == "stderr" else (name,):
            if "budget" in v.dims:
                cells = [[np.asarray(c.get(key, np.full(shape, np.nan)), float) for c in row["cells"]] for row in rows]
                values[key] = np.array(cells).reshape(len(rows), len(plans), *shape)
            else:
                values[key] = np.array([row[key] for row in rows])
        if v.reason:
            values[f"{name}_outcome"] = _outcomes(values[name], rows)
    coords: dict[str, tuple[str, Any, str]] = {
        "data": ("data", np.array(DATA[: len(rows)], dtype=np.str_), "which examples"),
        "budget": ("budget", np.array(shares), "updates of the decay over updates so far"),
        "law": ("law", np.array(LAWS, dtype=np.str_), "law of extrapolation"),
        "age": ("age", np.arange(3), "windows between the average and theta_T"),
    }
    reasons = np.array([[cell["reason"] for cell in row["cells"]] for row in rows], dtype=np.str_)
    about = {
        "units": "1",
        "long_name": f"why annealing at update {step} cannot be told",
        "source": _SOURCES["forecast"],
        "error": "exact",
    }
    return measurement(_VARIABLES, values, coords).assign(reason=(("data", "budget"), reasons, about))


def _outcomes(values: Array, rows: Sequence[Row]) -> NDArray[np.int8]:
    """not_applicable where there is no number, not_converged where there is a reason not to trust it."""
    plain = np.where(np.isfinite(values), int(Outcome.ok), int(Outcome.not_applicable))
    if values.ndim > 1:
        doubted = np.array([[bool(cell["reason"]) for cell in row["cells"]] for row in rows])
        doubted = doubted.reshape(doubted.shape + (1,) * (values.ndim - 2))
        plain = np.where((plain == int(Outcome.ok)) & doubted, int(Outcome.not_converged), plain)
    return plain.astype(np.int8)
