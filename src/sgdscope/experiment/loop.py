"""The training loop of an Experiment as a machine that can stand at any update: advance, keep its state, put it back.

Everything the machine draws comes from its own random state, which stands in the global generators only while it works.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import torch
import xxhash
from numpy.typing import NDArray
from torch import Tensor, nn

from sgdscope import datasets, models
from sgdscope.contracts import walkers
from sgdscope.ensembles.gossip import charge_lost
from sgdscope.errors import ArgumentError, ReplayError
from sgdscope.experiment.description import Experiment, Phase, Service
from sgdscope.experiment.gossip import Visits, line_of, most_spent
from sgdscope.experiment.randomness import RandomState
from sgdscope.experiment.schedules import CyclicBatch, Order, derived_seed
from sgdscope.experiment.states import pack_state, place, unpack_state
from sgdscope.records import Record, Snapshot, cpu_vector
from sgdscope.surface import LossSurface
from sgdscope.vector import Layout, select_buffers, select_parameters

Loss = Callable[[nn.Module, Any], Tensor]
SURFACE = 2560  # examples of the surface of a walker that measures one; as in the released code of Nudged-SGD


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """The cross entropy of each example; of sequences the mean over their positions.

    Args:
        model: gives logits [B, classes] or [B, T, classes].
        batch: x, and y [B] or [B, T].

    Returns:
        [B].
    """
    x, y = batch
    logits = model(x)
    losses = nn.functional.cross_entropy(logits.flatten(0, -2), y.flatten(), reduction="none")
    return losses if y.ndim == 1 else losses.view(y.shape).mean(1)


LOSSES: dict[str, Loss] = {"cross_entropy": cross_entropy}


class Phased(torch.optim.Optimizer):
    """One optimizer to the outside, the walker of the present phase inside; the recorder attaches once for all phases."""

    def __init__(self, inside: torch.optim.Optimizer) -> None:
        super().__init__(inside.param_groups, {})
        self.change(inside)

    def change(self, inside: torch.optim.Optimizer) -> None:
        """Hand over to another walker, which starts without state."""
        self.inside = inside
        self.param_groups = inside.param_groups
        self.state = inside.state

    def step(self, closure: Any = None) -> Any:
        """One update of the present walker."""
        return self.inside.step(closure)


class Loop:
    """Model, data, walker and random state of an Experiment, standing before update `step`.

    Args:
        experiment: the description.
        data_dir: folder of the real data files.

    Raises:
        ArgumentError: the description does not fit the data: a batch larger than the data, unknown names.
    """

    def __init__(self, experiment: Experiment, data_dir: Any = None) -> None:
        self.experiment, self.step = experiment, 0
        self.device = torch.device(experiment.device)
        if self.device.type == "cuda" and not torch.cuda.is_available():
            raise ArgumentError(f"device: expected 'cpu', the only device here, got '{experiment.device}'")
        self.data = load_data(experiment, data_dir)
        self.examples = len(self.data.x)
        self.x, self.y = self.data.x.to(self.device), self.data.y.to(self.device)
        self.lengths = [phase.length(self.examples) for phase in experiment.phases]
        described = experiment.ensemble if isinstance(experiment.ensemble, Service) else None
        self.line = line_of(described, self.examples, self.total, experiment.seed) if described else None
        self.orders = [self._order(i) for i in range(len(self.lengths))]
        self.model = build_model(experiment, self.data).to(self.device).train()
        self.parameters = select_parameters(self.model)
        self.layout = Layout.of(self.parameters)
        self.buffer_layout = Layout.of(select_buffers(self.model))
        self.random = RandomState(experiment.seed, self.device)
        self._phase = 0
        self._surfaces: dict[int, LossSurface] = {}
        self._walker = self._build_walker(0)
        several = len({phase.walker for phase in experiment.phases}) > 1 or (len(self.lengths) > 1 and self._wraps(0))
        self.optimizer: torch.optim.Optimizer = Phased(self._walker) if several else self._walker

    # --- what happens at an update: pure functions of its number --------------------------------------------------------

    @property
    def total(self) -> int:
        """The number of updates of all phases."""
        return sum(self.lengths)

    def _order(self, number: int) -> Order:
        phase, length = self.experiment.phases[number], self.lengths[number]
        if self.line is not None:
            return Visits(self.line, sum(self.lengths[:number]))
        sizes: int | list[int] = self.examples if phase.batch_size == "full" else phase.batch_size
        if isinstance(cycle := phase.schedule, CyclicBatch):
            sizes = [cycle.batch_size(t) for t in range(length)]
        largest = sizes if isinstance(sizes, int) else max(sizes)
        if largest > self.examples:
            raise ArgumentError(
                f"phases[{number}].batch_size: expected 1..{self.examples}, the examples of '{self.experiment.data.dataset}', "
                f"got {largest}; give a smaller one, or 'full' for all"
            )
        return Order(self.examples, sizes, seed=self.experiment.seed, phase=number, replacement=phase.replacement)

    def place(self, step: int) -> tuple[int, int]:
        """(phase, update within it) of an update."""
        for number, length in enumerate(self.lengths):
            if step < length:
                return number, step
            step -= length
        return len(self.lengths) - 1, self.lengths[-1] + step

    def batch(self, step: int) -> tuple[Tensor, Tensor]:
        """The batch of an update: x, y."""
        number, update = self.place(step)
        if self.experiment.phases[number].batch_size == "full" and self.orders[number].batch_size(update) == self.examples:
            return self.x, self.y
        indices = self.orders[number].indices(update).to(self.device)
        return self.x[indices], self.y[indices]

    def lr(self, step: int) -> float:
        """The learning rate of an update."""
        number, update = self.place(step)
        phase = self.experiment.phases[number]
        return phase.schedule.lr(update, phase.lr, self.lengths[number])

    # --- the walk ---------------------------------------------------------------------------------------------------------

    def loss(self, model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
        """The mean loss of a batch."""
        return LOSSES[self.experiment.loss](model, batch).mean()

    def _wraps(self, number: int) -> bool:
        """Whether the walker of a phase wraps another one."""
        return walkers[self.experiment.phases[number].walker].wraps is not None

    def _build_walker(self, number: int) -> torch.optim.Optimizer:
        phase, seed = self.experiment.phases[number], self.experiment.seed
        if self._wraps(number):
            return wrap_walker(phase, number, self, seed)
        return build_walker(phase, number, list(self.parameters.values()), seed)

    def surface(self, size: int) -> LossSurface:
        """The loss on the first so many training examples, all if there are fewer; BatchNorm on its running statistics.

        Args:
            size: number of examples.

        Returns:
            The surface; made once.
        """
        if size not in self._surfaces:
            with self.random.borrowed():
                data = self.x[:size], self.y[:size]
                self._surfaces[size] = LossSurface(self.model, LOSSES[self.experiment.loss], data)
        return self._surfaces[size]

    def _enter(self, number: int) -> None:
        """Go over to a phase: the same walker keeps its state, another one starts without."""
        before, phase = self.experiment.phases[self._phase], self.experiment.phases[number]
        fresh = self._build_walker(number)
        if phase.walker == before.walker and not self._wraps(number):
            for group, new in zip(self._walker.param_groups, fresh.param_groups, strict=True):
                group.update({key: value for key, value in new.items() if key != "params"})
        else:
            if carries(before, phase):
                groups = fresh.state_dict()["param_groups"]
                fresh.load_state_dict({"state": self._walker.state_dict()["state"], "param_groups": groups})
            self._walker = fresh
            if isinstance(self.optimizer, Phased):
                self.optimizer.change(fresh)
        self._phase = number

    @property
    def frame_vectors(self) -> int:
        """The most vectors as long as theta in a key frame: theta, three of AMSGrad, a walker's own k directions and a scale."""
        held = [0]
        for phase in self.experiment.phases:
            k = phase.options.get("k", (walkers[phase.walker].cls.__init__.__kwdefaults__ or {}).get("k"))
            held.append(1 + k if isinstance(k, int) else 0)
        return 4 + max(held)

    def prepare(self) -> tuple[Tensor, Tensor]:
        """Make ready for the update at hand: its phase, its learning rate.

        Returns:
            Its batch.
        """
        number, _ = self.place(self.step)
        for phase in range(self._phase + 1, number + 1):
            self._enter(phase)
        for group in self._walker.param_groups:
            group["lr"] = self.lr(self.step)
        if (use := getattr(self._walker, "use", None)) is not None:  # it accounts for the examples that it sees
            if self.line is not None:
                charge_lost(self._walker, self.line, self.step)
            use(self._records())
        return self.batch(self.step)

    def _records(self) -> list[int]:
        """The numbers of the examples of the update at hand."""
        number, update = self.place(self.step)
        records: list[int] = self.orders[number].indices(update).tolist()
        return records

    def whereabouts(self) -> dict[str, float]:
        """What a walk says at the update at hand: its visit, the most privacy a record spends, updates brought back so far."""
        told = {} if self.line is None else asdict(self.line.visit(self.step))
        ledger = getattr(self._walker, "ledger", None)
        if ledger is not None and ledger.limit is not None:
            told["privacy_spent"] = most_spent(ledger, self._records())
        if (hits := getattr(self._walker, "hits", None)) is not None:
            told["hits"] = float(hits)
        return told

    def advance(self) -> None:
        """One update, unrecorded; inside `random.installed`."""
        batch = self.prepare()
        self.optimizer.zero_grad()
        torch.autograd.backward(self.loss(self.model, batch))
        self.optimizer.step()
        self.step += 1

    # --- the state ---------------------------------------------------------------------------------------------------------

    def theta_hash(self) -> int:
        """xxh3-64 of theta in its storage dtype."""
        digest, storage = xxhash.xxh3_64(), self.layout.storage_dtype
        for parameter in self.parameters.values():
            digest.update(parameter.detach().to("cpu", storage).contiguous().numpy().data)
        return digest.intdigest()

    def snapshot(self) -> Snapshot:
        """The point at which the loop stands; a copy."""
        buffers = self.buffer_layout.pack(select_buffers(self.model))
        return Snapshot(self.step, cpu_vector(self.layout.pack(self.parameters)), cpu_vector(buffers))

    def snapshot_in_update(self) -> Snapshot:
        """The point as a recorder keeps it: the buffers are those after the forward pass of the update that starts here.

        Inside `random.installed`. The loop stands where it stood; the cost is a forward pass, if there are buffers.

        Returns:
            Copies.
        """
        if not self.buffer_layout.size or self.step >= self.total:
            return self.snapshot()
        buffers = {name: buffer.clone() for name, buffer in select_buffers(self.model).items()}
        with self.random.borrowed():
            self.loss(self.model, self.batch(self.step))
        point = self.snapshot()
        with torch.no_grad():
            for name, buffer in select_buffers(self.model).items():
                buffer.copy_(buffers[name])
        return point

    def key_frame(self) -> Record:
        """Everything the walk from here depends on, as arrays and JSON; inside `random.installed`.

        Returns:
            A record of kind ``"keyframes"``.
        """
        point = self.snapshot()
        arrays: dict[str, NDArray[Any]] = {"theta": point.theta.numpy()}
        if len(point.buffers):
            arrays["buffers"] = point.buffers.numpy()
        arrays["random"], meta = self.random.capture()
        state, entries, plain = pack_state(self._walker.state_dict())
        groups = [{k: v for k, v in group.items() if k != "params"} for group in self._walker.param_groups]
        return Record(
            "keyframes",
            self.step,
            arrays | state,
            {"random": meta, "state": entries, "plain": plain, "groups": groups, "phase": self._phase},
        )

    def restore(self, step: int, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any]) -> None:
        """Stand where a key frame of this experiment was taken.

        Args:
            step: of the key frame.
            arrays: of the record.
            meta: of the record.

        Raises:
            ReplayError: the key frame does not fit the experiment.
        """
        try:
            self._phase, self.step = int(meta["phase"]), step
            self._walker = self._build_walker(self._phase)
            if isinstance(self.optimizer, Phased):
                self.optimizer.change(self._walker)
            else:
                self.optimizer = self._walker
            self.take(arrays, meta)
        except (KeyError, IndexError, TypeError, ValueError, RuntimeError) as error:
            raise ReplayError(f"the key frame at step {step} does not fit its experiment: {error}") from error

    def take(self, arrays: Mapping[str, NDArray[Any]], meta: Mapping[str, Any], *, walker: bool = True) -> None:
        """Take theta, buffers, random state and, unless told not to, the walker's state from a key frame.

        Args:
            arrays: of the record.
            meta: of the record.
            walker: take the optimizer's state too.
        """
        place(self.layout, self.parameters, arrays["theta"])
        if self.buffer_layout.size:
            place(self.buffer_layout, select_buffers(self.model), arrays["buffers"])
        self.random.put_back(arrays["random"], meta["random"])
        if walker:
            state = unpack_state(arrays, meta["state"], meta["plain"])
            groups = [
                group | {"params": own["params"]}
                for group, own in zip(meta["groups"], self._walker.state_dict()["param_groups"], strict=True)
            ]
            self._walker.load_state_dict({"state": state, "param_groups": groups})
            if isinstance(self.optimizer, Phased):
                self.optimizer.change(self._walker)


def carries(before: Phase, phase: Phase) -> bool:
    """Whether a walker goes on with the state of the one before it: the same walker, or one that is now wrapped.

    Args:
        before: the phase that ends.
        phase: the one that starts.

    Returns:
        False where the new walker starts without state.
    """
    wraps = walkers[phase.walker].wraps
    if phase.walker != before.walker:
        return wraps is not None and phase.options.get("base", wraps) == before.walker
    return wraps is None or all(before.options.get(key) == phase.options.get(key) for key in ("base", "k"))


def load_data(experiment: Experiment, data_dir: Any = None) -> datasets.Dataset:
    """Load the data of an experiment."""
    return datasets.load(experiment.data.dataset, data_dir, **experiment.data.options)


def build_model(experiment: Experiment, data: datasets.Dataset) -> nn.Module:
    """Build the network of an experiment, with the first values of its seed."""
    try:
        return models.build(
            experiment.model.name,
            inputs=tuple(data.x.shape[1:]),
            classes=data.classes,
            seed=derived_seed(experiment.seed if experiment.model_seed is None else experiment.model_seed, "model"),
            **experiment.model.options,
        )
    except ArgumentError as error:
        raise ArgumentError(f"model.{error}") from error


def build_walker(phase: Phase, number: int, parameters: list[nn.Parameter], seed: int) -> torch.optim.Optimizer:
    """Build the walker of a phase.

    Args:
        phase: its description.
        number: of the phase.
        parameters: that it moves.
        seed: of the experiment.

    Returns:
        The optimizer.

    Raises:
        ArgumentError: the walker does not take one of the options, or not its value.
    """
    entry, generator = walkers[phase.walker], torch.Generator().manual_seed(derived_seed(seed, "walker", number))
    _refuse_foreign(phase, number, entry.ranges)
    with _named(number):
        walker: torch.optim.Optimizer = entry.cls(parameters, lr=phase.lr, generator=generator, **phase.options)
        return walker


def wrap_walker(phase: Phase, number: int, loop: Loop, seed: int) -> torch.optim.Optimizer:
    """Build the walker of a phase that wraps another one.

    Args:
        phase: its description; `base` names the inner walker, `examples` the size of the surface, other options go where they
            are known.
        number: of the phase.
        loop: with the model that it moves, and the surface.
        seed: of the experiment.

    Returns:
        The optimizer.

    Raises:
        ArgumentError: neither walker takes one of the options, or not its value.
        UnknownNameError: no walker is called as `base` says.
    """
    entry, options = walkers[phase.walker], dict(phase.options)
    name, size = options.pop("base", entry.wraps), options.pop("examples", SURFACE)
    if not isinstance(name, str) or walkers[name].wraps is not None:
        raise ArgumentError(f"phases[{number}].base: expected a walker that wraps none, such as '{entry.wraps}', got {name!r}")
    if isinstance(size, bool) or not isinstance(size, int) or size < 2:
        raise ArgumentError(f"phases[{number}].examples: expected a whole number >= 2, got {size!r}")
    _refuse_foreign(phase, number, {**entry.ranges, **walkers[name].ranges})
    own = {key: value for key, value in options.items() if key in entry.ranges}
    if "steps_per_epoch" in entry.ranges:
        own = {"steps_per_epoch": phase.per_epoch(loop.examples)} | own
    generator = torch.Generator().manual_seed(derived_seed(seed, "wrapper", number))
    with _named(number):
        base = walkers[name].cls(
            list(loop.parameters.values()),
            lr=phase.lr,
            generator=torch.Generator().manual_seed(derived_seed(seed, "walker", number)),
            **{key: value for key, value in options.items() if key not in entry.ranges},
        )
        walker: torch.optim.Optimizer = entry.cls(base, loop.model, loop.surface(size), generator=generator, **own)
        return walker


def _refuse_foreign(phase: Phase, number: int, known: Mapping[str, str]) -> None:
    if foreign := sorted(set(phase.options) - set(known)):
        takes = ", ".join(sorted(known))
        raise ArgumentError(f"phases[{number}].{foreign[0]}: the walker '{phase.walker}' has no such option; it takes {takes}")


@contextmanager
def _named(number: int) -> Generator[None]:
    """Put the path of a phase before the argument that an error names."""
    try:
        yield
    except ArgumentError as error:
        raise ArgumentError(f"phases[{number}].{error}") from error
