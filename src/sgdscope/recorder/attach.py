"""The recorder: hooks on the optimizers, the rows of the updates, the points of the schedule."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sgdscope.contracts import Store, StoreEntry, stores
from sgdscope.errors import ArgumentError, RecorderError
from sgdscope.recorder.construction import (
    Groups,
    Points,
    check_disk,
    describe,
    find_run,
    keep_measured,
    optimizer_list,
    second_moments,
    stands_at,
)
from sgdscope.recorder.quiet import unseen
from sgdscope.recorder.rows import Row, block_of
from sgdscope.recorder.scalars import FOUND_INF, LOSS, ROWS, Scalars
from sgdscope.recorder.schedules import in_words, parse_bytes, within
from sgdscope.recorder.sinks import LiveSinks
from sgdscope.recorder.watching import Pending, SizedWatched, Watched
from sgdscope.recorder.writer import Writer
from sgdscope.records import STEP_VARIABLES, Header, Record, Sink, Snapshot, StepBlock, cpu_vector, join_blocks, pack_batch
from sgdscope.vector import Layout, inner_module, select_buffers, select_parameters

BLOCK_SECONDS = 1.0
log = logging.getLogger("sgdscope")
Loss = Callable[[nn.Module, Any], Tensor]


class Recorder:
    """Records the walk of an optimizer: the scalars of every update, the points of a schedule.

    The constructor attaches, `close` detaches; use it as a context manager. Update t goes theta_t -> theta_{t+1};
    whatever the loop does to the parameters between two steps (projection, clipping of weights) belongs to the update
    before. theta_0 is the point at which the recorder attached; the last point is kept at `close`. Buffers are kept as
    they are when a point is read: when the optimizer's step starts, after the forward pass. With several optimizers an
    update ends with the step of the last one. Under torch.distributed only rank 0 records.

    Cost: a copy of theta an update in the loop and a few passes beside it (see `Scalars`); a snapshot is that copy, written
    by a thread. Memory: 4 to 8 x P, and at most 256 MB of waiting snapshots. `descent_residual` is NaN for updates whose
    first end is not kept, unless there are key frames.

    Args:
        path: of the run directory; None with ``store="memory"``.
        model: wrappers of ``torch.compile`` and of data parallel training are stripped.
        optimizer: one, or a list in the order in which they step.
        loss: ``(model, batch) -> loss``, for `Recorder.loss`.
        snapshots: a schedule (`every`, `bursts`, `logarithmic`, any callable of the update's number); both ends of a
            named update are kept. None: bursts that fit the budget.
        parameters: shell patterns of the parameters that make up theta; None for all that require a gradient.
        batches: ``"bursts"`` also keeps the batches of the named updates (of `watch`, else of `loss`); under gradient
            accumulation a list of them.
        live: sinks that are called in the loop with what goes to the store; those that are `Iterates` see every point too.
        resume: ``"append"`` goes on with the run at `path`, if there is one, and drops its rows from `start_step` on.
        start_step: number of the first update; None for 0, or for the update after the last row that was kept.
        budget: bytes for snapshots, batches and key frames; when it is used up only scalars go on.
        settings: JSON types, kept with the run.
        store: name of the store, or an entry of one's own.
        keyframes: asked before every update for a record to be kept.

    Raises:
        ArgumentError: an argument is out of range, or they do not fit each other.
        StoreError: the path holds another run or cannot be written.
    """

    def __init__(
        self,
        path: str | Path | Any | None,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        loss: Loss | None = None,
        snapshots: Callable[[int], bool] | None = None,
        parameters: str | Sequence[str] | None = None,
        batches: Literal["none", "bursts"] = "none",
        live: Sequence[Sink] = (),
        resume: Literal["error", "append"] = "error",
        start_step: int | None = None,
        budget: str | int | float = "2 GB",
        settings: Mapping[str, Any] | None = None,
        store: str | StoreEntry = "zarr",
        keyframes: Callable[[int], Record | None] | None = None,
    ) -> None:
        entry = stores[store] if isinstance(store, str) else store
        _check_arguments(path, loss, snapshots, batches, resume, start_step, entry, keyframes)
        named = select_parameters(model, parameters)
        self._optimizers = optimizer_list(optimizer, named)
        self._loss, self._keyframes, self._live = loss, keyframes, LiveSinks(live)
        self._keep_batches = batches == "bursts"
        self._active, self._closed, self._open = _is_recording_rank(), False, False
        self._hooks: list[Any] = []
        self.store: Store | None = None
        if not self._active:
            return
        self._model = inner_module(model)
        self._params = list(named.values())
        self._fixed = [] if parameters is not None else [p for p in self._model.parameters() if not p.requires_grad]
        layout, self._buffer_layout = Layout.of(named), Layout.of(select_buffers(model))
        size = layout.size * layout.storage_dtype.itemsize + self._buffer_layout.size * self._buffer_layout.storage_dtype.itemsize
        allowed = parse_bytes(budget)
        schedule = snapshots or within(allowed, size)
        self._points = Points(schedule, size, allowed)
        self.expected_bytes = self._points.expected
        described = describe(self._model, self._optimizers, in_words(schedule), settings)
        described |= {"budget_bytes": allowed, "expected_bytes": self.expected_bytes}
        self._header = Header(layout, self._buffer_layout, json.loads(json.dumps(described)))
        check_disk(path, entry, self.expected_bytes)
        log.info("snapshots: %s; at most %.3g GB expected", in_words(schedule), self.expected_bytes / 1e9)
        with unseen(self._params[0].device):
            self._attach(path, entry, resume, start_step)

    def _attach(self, path: Any, entry: StoreEntry, resume: str, start_step: int | None) -> None:
        self._path, kind = path, entry.cls
        run, start = find_run(kind, path, resume, start_step)
        self._groups = Groups(self._optimizers, self._params)
        self._scalars = Scalars(self._params, self._header.layout, self._groups.of_param)
        self._scalars.read_point()
        known = run is None or stands_at(run, start, self._header.layout, self._scalars.theta)
        self._pending = Pending(self._params)
        self._step = self._start = start
        self._rows: list[Row] = []  # those of the table: finished ones, then at most one that is not
        self._finished = 0
        self._before = math.nan
        self._drained = self._sent = time.monotonic()
        self._unsent: list[StepBlock] = []
        self._logged: dict[str, float | Tensor] = {}
        self._last_point = start  # kept below unless it is unknown whether the record's last step led here
        self._found_inf: Tensor | None = None
        self._live.begin(self._header, self._params[0].device)
        if run is not None:
            self._live.go_on(kind, path, start)
        self.store = kind(path, resume=resume, start_step=start if run is not None else start_step)
        self.store.begin(self._header)
        self._writer = Writer(self.store, f"the {kind.__name__}", inline="persistent" not in entry.capabilities)
        first = self._scalars.theta
        if run is not None and len(run.snapshot_steps) and int(run.snapshot_steps[0]) < start:
            first = run.theta(int(run.snapshot_steps[0]))
        self._scalars.origin.copy_(first)
        if known:
            self._keep_point(start)
        for optimizer in self._optimizers:
            self._hooks.append(optimizer.register_step_pre_hook(self._before_step))
            self._hooks.append(optimizer.register_step_post_hook(self._after_step))

    # --- what the loop calls -----------------------------------------------------------------------------------------

    def loss(self, model: nn.Module, batch: Any) -> Tensor:
        """Call the user's loss, unchanged, and keep its value for the row of the update that it leads to.

        The row holds the mean over all calls since the last update, weighted by batch size; of a loss per example its
        mean. Calls without gradients (evaluation) are not counted; with a closure only its first evaluation is.

        Args:
            model: passed on.
            batch: passed on; its leading dimension counts the examples.

        Returns:
            Whatever the user's function returned, the same object.

        Raises:
            ArgumentError: the recorder was made without a loss, or it returned something that is not a tensor.
        """
        if self._loss is None:
            raise ArgumentError("loss: the recorder was made without one; pass loss=(model, batch) -> loss to Recorder")
        value = self._loss(model, batch)
        if not isinstance(value, Tensor):
            raise ArgumentError(f"loss: expected a tensor (the mean, or one loss per example), got {type(value).__name__}")
        if self._attached and torch.is_grad_enabled():
            with unseen(self._scalars.device):
                self._pending.add(batch, value, self._keeps_batch())
        return value

    def watch(self, loader: Iterable[Any]) -> Watched:
        """Let the recorder see the batches of a loader: their sizes and, with ``batches="bursts"``, themselves.

        Args:
            loader: any iterable.

        Returns:
            An iterable over the very same batches, never ahead of the loop, with the loader's length and attributes.
        """
        return (SizedWatched if hasattr(loader, "__len__") else Watched)(loader, self._look)

    def log(self, **values: float | Tensor) -> None:
        """Keep numbers in the row of the update in progress, the next to end.

        Args:
            **values: numbers or tensors of one element; a name becomes a column.

        Raises:
            ArgumentError: a name is one of the recorder's own, or a value is no number.
        """
        for name, value in values.items():
            if name in STEP_VARIABLES or name == "step" or name.startswith("lr_"):
                raise ArgumentError(f"log: '{name}' is a column of the recorder itself; choose another name")
            if isinstance(value, Tensor):
                if value.numel() != 1:
                    raise ArgumentError(f"log: '{name}' has shape {tuple(value.shape)}, expected a single number")
                value = value.detach().clone().reshape(())
            elif not isinstance(value, int | float):
                try:
                    value = float(value)
                except (TypeError, ValueError) as error:
                    raise ArgumentError(f"log: '{name}' is {value!r}, expected a number") from error
            if self._attached:
                self._logged[name] = value

    def flush(self) -> None:
        """Wait until everything recorded is safe: all updates but the last, whose end the next step or `close` finds.

        Raises:
            RecorderError: the writer failed.
        """
        if self._attached:
            self._drain()
            self._send()
            self._writer.flush()
            self._live.flush()

    @property
    def stored_steps(self) -> int:
        """How many updates are acknowledged: they survive a kill."""
        return self.store.stored_steps if self.store is not None else 0

    @property
    def step(self) -> int:
        """The number of the update in progress, the next to end."""
        return self._step

    @property
    def stopped_at(self) -> int | None:
        """The point from which on the budget allowed no more snapshots; None if it held."""
        return self._points.stopped_at if self._active else None

    def close(self) -> None:
        """Detach, complete the last row, keep the last point, close store and live sinks; idempotent.

        An update that raised halfway has no row; the point before it is the last one.

        Raises:
            RecorderError: the writer or a live sink failed; everything else has been closed.
        """
        if not self._attached:
            return
        self._closed = True
        for hook in self._hooks:
            hook.remove()
        errors: list[Exception] = []
        sinks: list[Callable[[], None]] = [
            *self._live.closing(),
            lambda: keep_measured(type(self.store), self._path, self._live.sinks),
        ]
        for action in (self._complete, self._scalars.close, self._writer.close, *sinks):
            try:
                action()
            except Exception as error:
                errors.append(error)
        for extra in errors[1:]:
            if extra.__cause__ is not errors[0].__cause__ or extra.__cause__ is None:
                errors[0].add_note(f"and then: {extra}")
        if errors:
            raise errors[0]

    def __enter__(self) -> Self:
        """The recorder itself; it attached when it was made."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close; an exception of the loop goes through, and one of closing is added to it as a note."""
        try:
            self.close()
        except Exception as ours:
            if error is None:
                raise
            error.add_note(f"closing the recorder failed too: {ours}")

    # --- the updates -------------------------------------------------------------------------------------------------

    @property
    def _attached(self) -> bool:
        return self._active and not self._closed

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._check()
        closure = kwargs.get("closure", args[1] if len(args) > 1 else None)
        at_once = closure is None and len(self._optimizers) == 1  # the gradient can be measured in the pass over the point
        with unseen(self._scalars.device):
            opens = not self._open
            if opens:
                self._begin_update(at_once)
            if closure is None:
                self._take(optimizer)
            if opens:
                self._measure_point()
        if closure is None:
            return None
        wrapped = self._first_evaluation(optimizer, closure)
        return (args, kwargs | {"closure": wrapped}) if "closure" in kwargs else ((args[0], wrapped, *args[2:]), kwargs)

    def _check(self) -> None:
        self._writer.check()
        if not all(p.requires_grad for p in self._params) or any(p.requires_grad for p in self._fixed):
            raise RecorderError(
                f"requires_grad of a parameter changed before update {self._step}, and theta was chosen at the start; "
                "close this recorder and make another, or choose theta with parameters="
            )

    def _begin_update(self, at_once: bool) -> None:
        self._open, self._at_once = True, at_once
        if self._groups.changed():
            self._groups.refresh()
            self._scalars.regroup(self._groups.of_param)
        if self._rows or self._step > self._start:
            self._read_iterate()
        self._rows.append(Row(self._step, self._groups.lrs()))
        self._scalars.start_gradient()
        self._found_inf = None

    def _read_iterate(self) -> None:
        """Read the point to which an update led."""
        self._scalars.read_point()
        for record in self._live.iterate(self._step, self._scalars.theta):
            self._writer.put(record)

    def _take(self, optimizer: Optimizer) -> None:
        """The gradients that an optimizer is about to use, as they are at theta_t."""
        scale, found = getattr(optimizer, "grad_scale", None), getattr(optimizer, "found_inf", None)
        self._scalars.take_gradient(self._groups.indices(optimizer), scale if isinstance(scale, Tensor) else None)
        if isinstance(found, Tensor):
            self._found_inf = found if self._found_inf is None else torch.maximum(found, self._found_inf)
        self._pending.settle()

    def _measure_point(self) -> None:
        opened = len(self._rows) - 1
        before = opened - 1 if opened else None
        lrs = self._rows[before].lrs if before is not None else ()
        gradient = opened if self._at_once else None
        self._scalars.measure(finish=before, opened=opened, lrs=lrs, gradient=gradient, residual=self._needs_residual())
        self._finished = opened
        wanted = self._points.wants(self._step) and self._step != self._last_point
        late = time.monotonic() - self._drained >= BLOCK_SECONDS
        if opened >= ROWS or late or self._live.due:
            self._drain()
        if wanted:
            self._keep_point(self._step)
        if self._keyframes is not None and (record := self._keyframes(self._step)) is not None:
            self._keep(record)

    def _needs_residual(self) -> bool:
        """Whether the update that led here may be measured: its first end was kept, or can be rebuilt from key frames."""
        return self._keyframes is not None or self._last_point == self._step - 1

    def _first_evaluation(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Callable[[], Any]:
        """The user's closure; its first evaluation is at theta_t and gives loss and gradient."""
        seen = False

        def evaluate() -> Any:
            nonlocal seen
            value = closure()
            if not seen and self._attached:
                seen = True
                with unseen(self._scalars.device):
                    self._take(optimizer)
                    self._pending.freeze(value)
            return value

        return evaluate

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:  # ruff: ignore[unused-method-argument]  (signature of torch)
        if optimizer is not self._optimizers[-1] or not self._open:
            return
        with unseen(self._scalars.device):
            number, row = len(self._rows) - 1, self._rows[-1]
            if not self._at_once:
                self._scalars.measure(finish=None, opened=None, lrs=(), gradient=number)
            row.has_gradient = self._scalars.has_gradient()
            row.batch_size = self._pending.size()
            if (loss := self._pending.loss()) is not None:
                row.has_loss = True
                self._scalars.table[number, LOSS] = loss
            if self._found_inf is not None:
                self._scalars.table[number, FOUND_INF] = self._found_inf
            if self._keeps_batch() and (batch := self._pending.kept()) is not None:
                arrays, spec = pack_batch(batch)
                self._keep(Record("batches", self._step, arrays, {"spec": spec}))
        row.logged, self._logged = self._logged, {}
        self._pending.clear()
        self._open = False
        self._step += 1

    def _look(self, batch: Any) -> None:
        if self._attached:
            self._pending.add(batch, None, self._keeps_batch())

    def _keeps_batch(self) -> bool:
        return self._keep_batches and self._points.named(self._step)

    # --- what goes out -----------------------------------------------------------------------------------------------

    def _drain(self) -> None:
        """Turn the finished rows of the table into a block; live sinks get it now, the store in larger ones."""
        count, self._finished = self._finished, 0
        self._drained = time.monotonic()
        block = None
        if count:
            block, self._before = block_of(self._rows[:count], self._scalars.drain(count), self._before)
            del self._rows[:count]
            self._unsent.append(block)
        self._live.feed(block)
        if sum(len(block.steps) for block in self._unsent) >= ROWS or self._drained - self._sent >= BLOCK_SECONDS:
            self._send()

    def _send(self) -> None:
        self._sent = time.monotonic()
        if self._unsent:
            block, self._unsent = join_blocks(self._unsent), []
            self._writer.put(block)

    def _keep_point(self, step: int) -> None:
        buffers = self._buffer_layout.pack(select_buffers(self._model)) if self._buffer_layout.names else torch.empty(0)
        shared = not self._live and self._scalars.device.type == "cpu"  # live sinks may do with their vector what they like
        theta = self._scalars.give_theta() if shared else cpu_vector(self._scalars.theta)
        snapshot = Snapshot(step, theta, cpu_vector(buffers))
        self._last_point = step
        self._points.spend(snapshot.theta.nbytes + snapshot.buffers.nbytes)
        self._writer.put(snapshot)
        self._live.put(snapshot)

    def _keep(self, record: Record) -> None:
        size = sum(array.nbytes for array in record.arrays.values())
        if not self._points.fits(size, self._step):
            return
        self._points.spend(size)
        self._writer.put(record)
        self._live.put(record)

    def _complete(self) -> None:
        """The last row and the last point; an update that raised halfway is left out."""
        with unseen(self._scalars.device):
            if self._open:
                del self._rows[-1:]
            elif self._rows:
                self._read_iterate()
                self._scalars.start_gradient()
                last = len(self._rows) - 1
                lrs, residual = self._rows[last].lrs, self._needs_residual()
                self._scalars.measure(finish=last, opened=None, lrs=lrs, gradient=None, residual=residual)
            self._finished = len(self._rows)
            self._drain()
            self._send()
            if self._step != self._last_point:
                self._keep_point(self._step)
            for record in self._live.last_records():
                self._writer.put(record)
            if self._step > self._start and (scale := second_moments(self._optimizers, self._params)) is not None:
                self._writer.put(Record("preconditioner", self._step, {"scale": scale.to(torch.float32).numpy()}))
            self._live.feed()


def _is_recording_rank() -> bool:
    distributed = torch.distributed
    return not (distributed.is_available() and distributed.is_initialized() and distributed.get_rank() != 0)


def _check_arguments(
    path: Any, loss: Any, snapshots: Any, batches: str, resume: str, start_step: int | None, store: StoreEntry, keyframes: Any
) -> None:
    for name, value in (("loss", loss), ("snapshots", snapshots), ("keyframes", keyframes)):
        if value is not None and not callable(value):
            raise ArgumentError(f"{name}: expected a callable or None, got {value!r}")
    if batches not in ("none", "bursts"):
        raise ArgumentError(f"batches: expected 'none' or 'bursts', got {batches!r}")
    if resume not in ("error", "append"):
        raise ArgumentError(f"resume: expected 'error' or 'append', got {resume!r}")
    if start_step is not None and (isinstance(start_step, bool) or not isinstance(start_step, int) or start_step < 0):
        raise ArgumentError(f"start_step: expected an integer of at least 0 or None, got {start_step!r}")
    if path is None and "persistent" in store.capabilities:
        raise ArgumentError(f"path: {store.cls.__name__} needs a directory, got None; pass a path, or store='memory'")
