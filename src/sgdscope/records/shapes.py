"""What flows through the house: Step, Snapshot, Record; the Trajectory that reads them back; Sink and Surface.

Steps. theta_t is the point before update t; update t goes theta_t -> theta_{t+1} with batch, learning rate and
gradient t. n consecutive updates have n + 1 snapshots.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import xarray as xr
from numpy.typing import NDArray
from torch import Tensor

from sgdscope.errors import ArgumentError, NotAvailableError
from sgdscope.vector import Layout

SCHEMA_VERSION = 1

SKIPPED, NONFINITE, NO_LOSS, NO_GRADIENT = 1, 2, 4, 8
FLAG_ATTRS: dict[str, object] = {
    "flag_masks": [SKIPPED, NONFINITE, NO_LOSS, NO_GRADIENT],
    "flag_meanings": "skipped nonfinite no_loss no_gradient",
}

STEP_VARIABLES: dict[str, tuple[str, str]] = {
    "loss": ("loss", "training loss of the step's own batch, as the user's loop computed it"),
    "lr": ("1", "learning rate of the first parameter group (further groups: lr_1, lr_2, ...)"),
    "batch_size": ("1", "examples in the step's batch"),
    "gradient_norm": ("loss/theta", "|g_t|, gradient as the optimizer received it (unscaled)"),
    "gradient_dot_update": ("loss", "g_t . d_t, with d_t = theta_{t+1} - theta_t"),
    "gradient_cosine": ("1", "cos(g_{t-1}, g_t)"),
    "update_norm": ("theta", "|d_t|"),
    "distance": ("theta", "|theta_t - theta_0|"),
    "descent_residual": ("1", "|d_t + lr g_t| / |d_t|, lr of each parameter's own group; where theta_t was kept"),
    "flags": ("1", "bit mask of what was unusual about the update"),
}


@dataclass(frozen=True)
class Header:
    """What is known of a run before its first update.

    Attributes:
        layout: of theta.
        buffer_layout: of the buffers; an empty layout if the model has none.
        settings: JSON types only: whatever is needed to repeat the run, and the fingerprint of the machine.
    """

    layout: Layout
    buffer_layout: Layout
    settings: Mapping[str, Any]


@dataclass(frozen=True)
class StepBlock:
    """The scalars of consecutive updates.

    Attributes:
        steps: [n] int64, strictly increasing.
        columns: name -> float64 [n]; NaN where a scalar does not exist. A column may appear late (`recorder.log`).
    """

    steps: NDArray[np.int64]
    columns: Mapping[str, NDArray[np.float64]]


def check_block(block: StepBlock, after: int) -> None:
    """Hold a block against what stores promise: steps strictly increase, and every column has one number a step.

    Args:
        block: what came.
        after: the last step that is stored; -1 if none.

    Raises:
        ArgumentError: a step does not follow the one before, or a column has another length or a reserved name.
    """
    steps = np.concatenate([[after], np.asarray(block.steps, np.int64)])
    if (wrong := np.flatnonzero(np.diff(steps) <= 0)).size:
        at = int(wrong[0])
        raise ArgumentError(f"block: step {steps[at + 1]} does not follow step {steps[at]}; steps must strictly increase")
    for name, values in block.columns.items():
        if not name or name == "step":
            raise ArgumentError(f"block: a column cannot be called '{name}'; choose another name")
        if np.shape(values) != (len(block.steps),):
            raise ArgumentError(f"block: the column '{name}' has shape {np.shape(values)}, expected ({len(block.steps)},)")


@dataclass(frozen=True)
class Snapshot:
    """The point theta_t, before update t.

    Attributes:
        step: t.
        theta: [P] in the layout's storage dtype, on the CPU.
        buffers: [Q] in the buffer layout's storage dtype, on the CPU (Q = 0 without buffers).
    """

    step: int
    theta: Tensor
    buffers: Tensor


@dataclass(frozen=True)
class Record:
    """Named arrays that belong to one step: its batch, or a key frame for replay.

    Attributes:
        kind: ``"batches"``, ``"keyframes"``, ``"averages"`` or ``"preconditioner"``.
        step: t.
        arrays: name -> array of a plain numeric dtype.
        meta: JSON types only.
    """

    kind: str
    step: int
    arrays: Mapping[str, NDArray[Any]]
    meta: Mapping[str, Any] = field(default_factory=dict)


class Sink(Protocol):
    """Something that takes what the recorder makes: a store, a live quantity.

    Calls come in this order: `begin` once; then blocks, snapshots and records, each kind with strictly increasing
    steps; `flush` at any time; `close` once. The scalars of update t may come after the snapshot t + 1.
    """

    def begin(self, header: Header) -> None:
        """Take the header; the first snapshot that follows is theta_0."""

    def write_steps(self, block: StepBlock) -> None:
        """Take the scalars of consecutive updates."""

    def write_snapshot(self, snapshot: Snapshot) -> None:
        """Take a point; its tensors are the sink's to keep."""

    def write_record(self, record: Record) -> None:
        """Take the named arrays of one step."""

    def flush(self) -> None:
        """Return when everything taken is safe."""

    def close(self) -> None:
        """Finish; idempotent."""


@runtime_checkable
class Iterates(Protocol):
    """A live sink that also takes every point to which an update led, not only those that are kept.

    Its calls happen in every update: they draw no random numbers, take no gradients, and leave theta alone.

    Attributes:
        kind: of the records that it gives, to be kept with the run beside its budget of snapshots.
    """

    kind: str

    def write_iterate(self, step: int, theta: Tensor) -> Record | None:
        """Take theta_step [P], on its device; it is overwritten later. A record that is given back is kept."""

    def last_record(self) -> Record | None:
        """What is not in a record yet, when the recorder closes."""

    def go_on(self, records: Iterable[Record]) -> None:
        """Take up the records of a run that is gone on with, ascending, before the first point."""


@dataclass(frozen=True)
class Line:
    """The loss along theta + alpha direction.

    Attributes:
        alphas: [A] float64.
        values: [A] float64, the mean loss.
        samples: [A, M] float64, the loss of each example or batch (`unit`); None where only the mean is at hand.
        weights: [M] float64, summing to 1: values = samples @ weights.
        unit: ``"example"``, ``"batch"`` or ``"none"``.
        evaluations: passes over the data that it cost.
    """

    alphas: NDArray[np.float64]
    values: NDArray[np.float64]
    samples: NDArray[np.float64] | None = None
    weights: NDArray[np.float64] | None = None
    unit: str = "none"
    evaluations: int = 0


class Linearization(Protocol):
    """The Hessian of a surface at one theta, as a product; made by `Surface.linearized`, which holds the cost of setting up.

    Attributes:
        value: L(theta).
        gradient: [P].
        products: products so far.
    """

    value: float
    gradient: Tensor
    products: int

    def hvp(self, vectors: Tensor) -> Tensor:
        """The Hessian times vectors [P] or [P, k]."""

    def gauss_newton(self, vectors: Tensor) -> Tensor:
        """The Gauss-Newton matrix times vectors; raises `SurfaceError` where there is none."""

    def close(self) -> None:
        """Free what was kept; idempotent."""

    def __enter__(self) -> Linearization:
        """Itself."""

    def __exit__(self, *error: Any) -> None:
        """Close."""


class Surface(Protocol):
    """A loss as a function of theta. `LossSurface` and the landscapes satisfy it.

    `buffers` is what `Trajectory.buffers` returned (a pair of them in `along`: at alpha = 0 and at alpha = 1), or None.
    """

    def theta(self) -> Tensor:
        """The point at which the surface was made, [P], a copy."""

    def value(self, theta: Tensor, buffers: Mapping[str, Tensor] | None = None) -> float:
        """The mean loss at theta."""

    def value_and_grad(self, theta: Tensor, buffers: Mapping[str, Tensor] | None = None) -> tuple[float, Tensor]:
        """The mean loss and its gradient [P]."""

    def losses(self, theta: Tensor, buffers: Mapping[str, Tensor] | None = None) -> Tensor:
        """The loss of each example [N], float64 (of each batch where no per-example losses exist)."""

    def per_example_grads(
        self,
        theta: Tensor,
        indices: Sequence[int] | Tensor | None = None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The gradient of each example, or of those named in their order, [n, P]."""

    def gradient_chunks(
        self,
        theta: Tensor,
        indices: Sequence[int] | Tensor | None = None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Iterator[Tensor]:
        """The same rows in order, a chunk [c, P] at a time."""

    def weighted_grad(
        self,
        theta: Tensor,
        weights: Tensor,
        indices: Sequence[int] | Tensor | None = None,
        buffers: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """sum_j w_j grad l_j(theta) [P] over the examples, or those named, with weights [n]."""

    def along(
        self,
        theta: Tensor,
        direction: Tensor,
        alphas: Sequence[float],
        buffers: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] | None = None,
    ) -> Line:
        """The loss at theta + alpha direction for each alpha."""

    def hvp(self, theta: Tensor, vectors: Tensor, buffers: Mapping[str, Tensor] | None = None) -> Tensor:
        """The Hessian at theta times vectors [P] or [P, k]."""

    def linearized(self, theta: Tensor, buffers: Mapping[str, Tensor] | None = None) -> Linearization:
        """The Hessian at theta, for many products."""

    def on_batch(self, batch: Any) -> Surface:
        """The same surface on one training batch, in training mode (BatchNorm on the batch's own statistics)."""

    def rows(self, indices: Sequence[int] | Tensor) -> Any:
        """Some of the examples as a batch for `on_batch`; raises `DataError` where there are no single examples."""

    def subset(self, indices: Sequence[int] | Tensor) -> Surface:
        """The same surface on some of the examples; raises `DataError` where there are no single examples."""

    def fingerprint(self) -> dict[str, Any]:
        """JSON types: what was measured on (N, hash of the data, BatchNorm mode, dtype)."""


def _no_batch(step: int) -> Any:
    raise NotAvailableError(f"the batch of step {step} was not recorded; record with batches='bursts', or by sgdscope run")


def _no_moments(step: int) -> Any:
    raise NotAvailableError(
        f"the optimizer's second moments at step {step} were not recorded; runs made by sgdscope run have them"
    )


@dataclass(frozen=True)
class Trajectory:
    """A recorded walk, read-only and lazy.

    Attributes:
        header: names, shapes and settings.
        read_steps: returns the scalars of all updates.
        snapshot_steps: [n] int64, ascending: the points that were asked for. A replayed run can give others too.
        read_snapshot: returns the snapshot of a step; raises `NotAvailableError`.
        read_batch: returns the batch of a step as the loop saw it.
        path: the run directory, None in memory.
        read_preconditioner: returns what Adam and its family divide an update by.
    """

    header: Header
    read_steps: Callable[[], xr.Dataset]
    snapshot_steps: NDArray[np.int64]
    read_snapshot: Callable[[int], Snapshot]
    read_batch: Callable[[int], Any] = _no_batch
    path: Path | None = None
    read_preconditioner: Callable[[int], Tensor] = _no_moments

    def __repr__(self) -> str:
        """Where the walk lies, how many numbers it moves and which points it has; nothing is read but the header."""
        points = self.snapshot_steps
        span = f"{len(points)} points of updates {points[0]} to {points[-1]}" if len(points) else "no point"
        told = {
            key: self.settings[key]
            for key in ("walker", "lr", "batch_size")
            if isinstance(self.settings.get(key), str | int | float)
        }
        how = "".join(f", {key} {value}" for key, value in told.items())
        return (
            f"Trajectory({str(self.path) if self.path else 'in memory'!r}: {self.header.layout.size:,} parameters, {span}{how})"
        )

    @property
    def settings(self) -> Mapping[str, Any]:
        """Whatever is needed to repeat the run."""
        return self.header.settings

    @property
    def steps(self) -> xr.Dataset:
        """The scalars of all updates: one variable each of `STEP_VARIABLES` and of the user's own series, over `step`."""
        return self.read_steps()

    def theta(self, step: int) -> Tensor:
        """Read the point before update `step`.

        Args:
            step: t.

        Returns:
            theta_t [P], a copy, in the widest dtype of the parameters.

        Raises:
            NotAvailableError: the point was not recorded.
        """
        return self.read_snapshot(int(step)).theta.clone()

    def buffers(self, step: int) -> dict[str, Tensor]:
        """Read the buffers before update `step`.

        Args:
            step: t.

        Returns:
            Name -> buffer in its own shape and dtype; empty if the model has none.
        """
        return self.header.buffer_layout.restore(self.read_snapshot(int(step)).buffers)

    def batch(self, step: int) -> Any:
        """Read the batch of update `step`, in the structure in which the loop saw it.

        Args:
            step: t.

        Returns:
            Tensors in the nested tuples, lists and dicts of the loop.

        Raises:
            NotAvailableError: batches were not recorded.
        """
        return self.read_batch(int(step))

    def preconditioner(self, step: int) -> Tensor:
        """Read D = sqrt(v / (1 - beta2^t)) + eps, by which Adam and its family divide, as it stands before update `step`.

        Args:
            step: t >= 1.

        Returns:
            D [P], float64, a copy.

        Raises:
            NotAvailableError: the optimizer has none, or its state was not recorded.
        """
        return self.read_preconditioner(int(step)).double()

    def between(self, first: int, last: int) -> Trajectory:
        """Restrict the walk to the snapshots first..last, both included; the scalars stay whole.

        Args:
            first: first point.
            last: last point.

        Returns:
            A trajectory that shares everything else.
        """
        inside = (self.snapshot_steps >= first) & (self.snapshot_steps <= last)
        return replace(self, snapshot_steps=self.snapshot_steps[inside])


def steps_dataset(steps: NDArray[np.int64], columns: Mapping[str, NDArray[Any]]) -> xr.Dataset:
    """Dress columns of scalars as a dataset with units and flag attributes.

    Args:
        steps: [n].
        columns: name -> [n].

    Returns:
        Dataset over `step`; unknown names are the user's own series.
    """
    variables = {}
    for name, values in columns.items():
        base = "lr" if name.startswith("lr_") else name
        units, long_name = STEP_VARIABLES.get(base, ("1", f"{name}, logged by the user"))
        attrs: dict[str, object] = {"units": units, "long_name": long_name}
        if name == "flags":
            attrs |= FLAG_ATTRS
            values = np.nan_to_num(values).astype(np.int8)
        variables[name] = xr.Variable(("step",), values, attrs)
    return xr.Dataset(variables, coords={"step": ("step", np.asarray(steps, np.int64), {"units": "1", "long_name": "update t"})})


def join_blocks(blocks: Sequence[StepBlock]) -> StepBlock:
    """Join consecutive blocks; a column that one of them lacks is NaN there.

    Args:
        blocks: at least one.

    Returns:
        One block.
    """
    if len(blocks) == 1:
        return blocks[0]
    names = dict.fromkeys(name for block in blocks for name in block.columns)
    columns = {
        name: np.concatenate([block.columns.get(name, np.full(len(block.steps), np.nan)) for block in blocks]) for name in names
    }
    return StepBlock(np.concatenate([block.steps for block in blocks]), columns)


def windows(snapshot_steps: NDArray[np.int64], length: int = 60) -> list[tuple[int, int]]:
    """Cut the recorded points into windows of consecutive updates, the unit in which quantities are measured.

    A run of consecutive snapshots a, a+1, ..., b (b - a updates) is cut from its start into windows of `length`
    updates; the rest forms a last, shorter one. Neighbouring windows share a point, no update is in two.

    Args:
        snapshot_steps: ascending.
        length: updates a window, at least 1.

    Returns:
        (first point, last point) of each window with at least one update.

    Example:
        >>> windows(np.array([0, 1, 2, 3, 9, 20, 21]), length=2)
        [(0, 2), (2, 3), (20, 21)]
    """
    points = np.asarray(snapshot_steps, np.int64)
    result = []
    for burst in np.split(points, np.flatnonzero(np.diff(points) != 1) + 1):
        result += [(int(a), int(min(a + length, burst[-1]))) for a in burst[:-1:length]]
    return result
