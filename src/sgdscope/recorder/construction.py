"""What the recorder settles when it is made: optimizers and their groups, the plan of points, the settings of the run."""

from __future__ import annotations

import datetime
import json
import logging
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sgdscope import __version__
from sgdscope.contracts import StoreEntry
from sgdscope.errors import ArgumentError, StoreError
from sgdscope.recorder.schedules import Counting
from sgdscope.records import SCHEMA_VERSION, Trajectory
from sgdscope.vector import Layout

log = logging.getLogger("sgdscope")


def optimizer_list(optimizer: Optimizer | Sequence[Optimizer], named: Mapping[str, nn.Parameter]) -> list[Optimizer]:
    """Check the optimizers against the chosen parameters.

    Args:
        optimizer: one or several.
        named: the chosen parameters.

    Returns:
        A list.

    Raises:
        ArgumentError: something is no optimizer, comes twice, or none of them owns a chosen parameter.
    """
    optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
    for one in optimizers:
        if not isinstance(one, Optimizer):
            raise ArgumentError(f"optimizer: expected a torch.optim.Optimizer or a list of them, got {type(one).__name__}")
    if len({id(one) for one in optimizers}) != len(optimizers):
        raise ArgumentError("optimizer: the same optimizer is listed twice; list each once, in the order of their steps")
    owned = {id(p) for one in optimizers for group in one.param_groups for p in group["params"]}
    if not any(id(p) in owned for p in named.values()):
        raise ArgumentError(
            f"optimizer: it owns none of the chosen parameters ({', '.join(list(named)[:4])}, ...); "
            "make it from model.parameters() of the model that is recorded"
        )
    return optimizers


class Groups:
    """The parameter groups of all optimizers, numbered through.

    Args:
        optimizers: in the order of their steps.
        params: the chosen parameters.
    """

    def __init__(self, optimizers: Sequence[Optimizer], params: Sequence[nn.Parameter]) -> None:
        self._optimizers, self._params = list(optimizers), list(params)
        self.refresh()

    def refresh(self) -> None:
        """Read the groups again."""
        place = {id(p): index for index, p in enumerate(self._params)}
        self.of_param = [-1] * len(self._params)
        self._indices: dict[int, list[int]] = {}
        number = 0
        for optimizer in self._optimizers:
            mine = []
            for group in optimizer.param_groups:
                for index in (place[id(p)] for p in group["params"] if id(p) in place):
                    self.of_param[index] = number
                    mine.append(index)
                number += 1
            self._indices[id(optimizer)] = sorted(mine)
        self._count = number

    def changed(self) -> bool:
        """Whether groups were added since."""
        return sum(len(optimizer.param_groups) for optimizer in self._optimizers) != self._count

    def indices(self, optimizer: Optimizer) -> list[int]:
        """The places of an optimizer's parameters in theta."""
        return self._indices[id(optimizer)]

    def lrs(self) -> tuple[float, ...]:
        """The learning rate of each group now; NaN where it has none."""
        return tuple(float(group.get("lr", math.nan)) for optimizer in self._optimizers for group in optimizer.param_groups)


class Points:
    """Which points are kept: both ends of the named updates, as long as the budget lasts.

    Args:
        schedule: names updates; called once for each update, in order.
        size: bytes of a snapshot.
        budget: bytes.
    """

    def __init__(self, schedule: Callable[[int], bool], size: int, budget: int) -> None:
        self._schedule, self._size, self._budget = schedule, size, budget
        self._answers: dict[int, bool] = {}
        self._used = 0
        self.stopped_at: int | None = None
        count = schedule.expected(None) if isinstance(schedule, Counting) else None
        self.expected = max(2 * size, budget if count is None else min(budget, (count + 2) * size))

    def named(self, step: int) -> bool:
        """Whether the schedule names update `step`."""
        if step not in self._answers:
            self._answers[step] = bool(self._schedule(step))
            self._answers.pop(step - 3, None)
        return self._answers[step]

    def wants(self, step: int) -> bool:
        """Whether point `step` is an end of a named update and still fits; room for the last point is left."""
        wanted = self.named(step) | self._answers.get(step - 1, False)
        return wanted and self.fits(self._size, step)

    def fits(self, size: int, step: int) -> bool:
        """Whether so many bytes fit beside the last point; says once when they do not."""
        if self.stopped_at is None and self._used + size + self._size > self._budget:
            self.stopped_at = step
            log.warning("the budget of %d bytes is used up at update %d: from here on only scalars are kept", self._budget, step)
        return self.stopped_at is None

    def spend(self, size: int) -> None:
        """Count bytes that were kept."""
        self._used += size


def find_run(kind: type[Any], path: Any, resume: str, start_step: int | None) -> tuple[Trajectory | None, int]:
    """Look for the run to go on with.

    Args:
        kind: class of the store.
        path: of the run.
        resume: ``"error"`` or ``"append"``.
        start_step: number of the first update, or None.

    Returns:
        The run, or None for a new one, and the number of its next update.
    """
    run: Trajectory | None = None
    if resume == "append" and path is not None and not (isinstance(path, str | Path) and not Path(path).exists()):
        try:
            run = kind.read(path)
        except StoreError as error:
            log.warning("%s: no run to go on with was read (%s)", path, error)
    if start_step is not None or run is None:
        return run, start_step or 0
    steps = run.steps["step"].values
    if len(steps):
        return run, int(steps[-1]) + 1
    return run, int(run.snapshot_steps[0]) if len(run.snapshot_steps) else 0


def stands_at(run: Trajectory, step: int, layout: Layout, theta: Tensor) -> bool:
    """Whether a run that goes on stands where its record says; an update must not join two points that no step joined.

    Args:
        run: the record.
        step: number of the next update.
        layout: of the model's parameters; another one than the record's is left to the store to refuse.
        theta: [P], the model's parameters.

    Returns:
        True if the record has the point and it is this one, False if it does not have it.

    Raises:
        ArgumentError: the record has another point at this step.
    """
    if step not in run.snapshot_steps or run.header.layout != layout:
        return False
    if torch.equal(run.theta(step), theta.to("cpu", run.theta(step).dtype)):
        return True
    raise ArgumentError(
        f"start_step: the model does not stand at update {step} of the recorded run, where recording would go on; "
        "pass start_step= the number of updates that the model has made (recorded updates from there on are dropped)"
    )


def describe(
    model: nn.Module, optimizers: Sequence[Optimizer], schedule: str, settings: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Collect what is needed to repeat the run.

    Args:
        model: the inner module.
        optimizers: all of them.
        schedule: in words.
        settings: of the caller; its keys win.

    Returns:
        JSON types.

    Raises:
        ArgumentError: the caller's settings are not JSON.
    """
    try:
        given = json.loads(json.dumps(dict(settings or {})))
    except (TypeError, ValueError) as error:
        raise ArgumentError(f"settings: expected JSON types (dict, list, str, number, bool, None): {error}") from error
    return {
        "schema_version": SCHEMA_VERSION,
        "sgdscope": __version__,
        "torch": str(torch.__version__),
        "threads": torch.get_num_threads(),
        "device": str(next(model.parameters()).device),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "optimizers": [_of_optimizer(optimizer) for optimizer in optimizers],
        "snapshots": schedule,
        "model": type(model).__name__,
        "closed": None,
        **given,
    }


def _of_optimizer(optimizer: Optimizer) -> dict[str, Any]:
    groups = [{key: _plain(value) for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    further = {"groups": groups} if len(groups) > 1 else {}
    return {"class": type(optimizer).__name__, **groups[0], **further}


def _plain(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return value if isinstance(value, str | int | float | bool | None) else str(value)


def second_moments(optimizers: Sequence[Optimizer], params: Sequence[Tensor]) -> Tensor | None:
    """What Adam and its family divide an update by: D = sqrt(v / (1 - beta2^t)) + eps, as the state stands now.

    Args:
        optimizers: in the order of their steps.
        params: that make up theta.

    Returns:
        D [P], float64 on the CPU, the largest v of AMSGrad; None if the state of a parameter holds no second moments.
    """
    scales: dict[int, Tensor] = {}
    for group, state in ((group, optimizer.state) for optimizer in optimizers for group in optimizer.param_groups):
        for parameter in group["params"]:
            own = state.get(parameter, {})
            moments = own.get("max_exp_avg_sq", own.get("exp_avg_sq"))
            if moments is None or "betas" not in group or "step" not in own:
                continue
            unbiased = moments.detach().to("cpu", torch.float64) / (1 - group["betas"][1] ** float(own["step"]))
            scales[id(parameter)] = (unbiased.sqrt() + group["eps"]).reshape(-1)
    if not all(id(parameter) in scales for parameter in params):
        return None
    return torch.cat([scales[id(parameter)] for parameter in params])


def check_disk(path: Any, store: StoreEntry, expected: int) -> None:
    """Hold the bytes expected against the free disk space.

    Args:
        path: of the run; None keeps nothing on disk.
        store: of the run.
        expected: bytes.

    Raises:
        ArgumentError: they do not fit.
    """
    if not isinstance(path, str | Path) or "persistent" not in store.capabilities:
        return
    place = Path(path).absolute()
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if expected > free:
        raise ArgumentError(
            f"budget: the snapshots may take {expected / 1e9:.3g} GB and {place} has {free / 1e9:.3g} GB left; "
            "pass a smaller budget=, fewer snapshots, or a path on another disk"
        )


def keep_measured(store: type[Any], path: Any, live: Sequence[Any]) -> None:
    """Keep with the run what live sinks measured; a sink that measures has a `name` and `measured`.

    Args:
        store: class of the store.
        path: of the run; nothing is kept without one.
        live: the sinks, closed.
    """
    for sink in live if isinstance(path, str | Path) else ():
        if hasattr(sink, "measured") and hasattr(sink, "name"):
            store.write_measurement(path, sink.name, sink.measured)
