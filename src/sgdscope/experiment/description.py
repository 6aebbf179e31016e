"""Experiment: the validated description of a recorded run, from TOML or from Python."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    Tag,
    ValidationError,
    model_validator,
)
from pydantic_core import PydanticCustomError

from sgdscope.contracts import ensembles, walkers
from sgdscope.errors import ArgumentError, unknown
from sgdscope.experiment.schedules import Constant, CyclicBatch, Part, Schedule

Scalar = bool | int | float | str
Share = Annotated[float, Field(ge=0, le=1)]


class Data(Part):
    """What is learnt: a dataset by name and how much of it; `label_noise` is the share of training labels made random.

    They are drawn uniformly over all classes, or with `label_convention = "different"` over those that differ from the old label.
    `seed` is that of drawn data, `context` the window of a text, `label` the label column of a table; see `datasets.load`.
    """

    dataset: str
    train: PositiveInt | None = None
    test: PositiveInt | None = None
    label_noise: Share = 0.0
    label_convention: Literal["uniform", "different"] | None = None  # None, as in older runs: uniform
    noise_seed: int = 0
    standardise: bool = True
    seed: int | None = None
    context: PositiveInt | None = None
    label: str | None = None

    @property
    def options(self) -> dict[str, Any]:
        """What `datasets.load` is told beside the name: everything that was given."""
        return self.model_dump(exclude={"dataset"}, exclude_none=True)


class Named(Part):
    """An entry of a catalogue by name; every further key is an option of it."""

    model_config = ConfigDict(extra="allow")
    name: str

    @property
    def options(self) -> dict[str, Any]:
        """The options that were given."""
        return dict(self.model_extra or {})


class Model(Named):
    """The network by name; every further key is an option of it."""


def _refuse_foreign(options: Iterable[str], known: set[str]) -> None:
    if foreign := [key for key in options if key not in known]:
        raise PydanticCustomError("foreign_option", "unknown key", {"keys": foreign, "known": sorted(known)})


def walker_options(name: str, base: Any = None) -> set[str]:
    """The options that a walker takes, those of the walker that it wraps included.

    Args:
        name: of the walker.
        base: name of the walker that it wraps; None for its default.

    Returns:
        The names; none if there is no such walker.
    """
    if name not in walkers:
        return set()
    inside = walkers[name].wraps and (base or walkers[name].wraps)
    return {*walkers[name].ranges, *(walkers[inside].ranges if inside and inside in walkers else ())}


class Phase(Part):
    """A stretch of the walk: walker, its options, batch size, length and schedule.

    Further keys are options of the walker, as its entry in the catalogue names them, or of the walker that it wraps.
    """

    model_config = ConfigDict(extra="allow")
    walker: str = "sgd"
    lr: PositiveFloat
    batch_size: PositiveInt | Literal["full"]
    updates: PositiveInt | None = None
    epochs: PositiveFloat | None = None
    momentum: Annotated[float, Field(ge=0, lt=1)] | None = None
    nesterov: bool | None = None
    weight_decay: Annotated[float, Field(ge=0)] | None = None
    betas: list[float] | None = None
    eps: PositiveFloat | None = None
    replacement: bool = False
    schedule: Schedule = Constant()

    @model_validator(mode="after")
    def _one_length(self) -> Phase:
        if (self.updates is None) == (self.epochs is None):
            raise ValueError(f"expected either updates or epochs, got updates = {self.updates} and epochs = {self.epochs}")
        return self

    @model_validator(mode="after")
    def _known_options(self) -> Phase:
        if self.walker in walkers:
            _refuse_foreign(self.model_extra or {}, self.known)
        return self

    @property
    def known(self) -> set[str]:
        """The keys that this phase may have: its own, and the options of its walker and of the one that it wraps."""
        return {*Phase.model_fields, *(walker_options(self.walker, (self.model_extra or {}).get("base")))}

    @property
    def options(self) -> dict[str, Any]:
        """The walker's options that were given."""
        named = ("momentum", "nesterov", "weight_decay", "betas", "eps")
        return {name: value for name in named if (value := getattr(self, name)) is not None} | dict(self.model_extra or {})

    def length(self, examples: int) -> int:
        """The number of updates; an epoch has floor(N / B) of them, B the mean batch size of a cycle where it changes."""
        if self.updates is not None:
            return self.updates
        return max(1, round((self.epochs or 0.0) * self._whole_batches(examples)))

    def per_epoch(self, examples: int) -> int:
        """The number of updates of an epoch, at least 1."""
        return max(1, self._whole_batches(examples))

    def _whole_batches(self, examples: int) -> int:
        size: float = examples if self.batch_size == "full" else self.batch_size
        if isinstance(cycle := self.schedule, CyclicBatch):
            size = sum(cycle.batch_size(t) for t in range(cycle.period)) / cycle.period
        return int(examples / size)


class Every(Part):
    """Keep the points of every n-th update."""

    kind: Literal["every"]
    n: PositiveInt = 1


class Bursts(Part):
    """Keep all points of windows of `length` updates, starting at the updates `at`."""

    kind: Literal["bursts"]
    length: PositiveInt = 60
    at: Annotated[list[NonNegativeInt], Field(min_length=1)] | None = None


class Logarithmic(Part):
    """Keep points at logarithmically spaced updates."""

    kind: Literal["logarithmic"]
    per_decade: PositiveInt = 10


class Recording(Part):
    """Which points are offered to the quantities, and whether they are stored or rebuilt (`mode`).

    With `averages` every iterate is summed too, in at most so many blocks (an even number of at least 12; 64 serves every
    forecast of annealing).
    """

    snapshots: Annotated[Every | Bursts | Logarithmic, Field(discriminator="kind")] = Bursts(kind="bursts")
    mode: Literal["replay", "snapshots"] = "replay"
    keyframes: PositiveInt = 100
    averages: Annotated[int, Field(ge=12, multiple_of=2)] | None = None


class Ensemble(Named):
    """Several walks in place of one: how many members, how many updates each makes, and how they are combined.

    The updates are `workloads`, or those that `speeds` (updates a unit of time, with `scatter` and stragglers, see
    `replicas.finished`) have finished at the `deadline`, or all of the phases. `lost` names members that are killed after their
    last update: their walks are recorded and have no weight in the combination; where members meet on the way they took part
    in that. Members start at one point and see the data in orders of their own; with `own_start` each starts at the first
    values of its own seed. Further keys are options of the ensemble, as its catalogue entry names them.
    """

    name: str = "weighted_parallel"
    members: PositiveInt
    workloads: list[NonNegativeInt] | None = None
    speeds: list[Annotated[float, Field(ge=0)]] | None = None
    deadline: PositiveFloat | None = None
    scatter: Annotated[float, Field(ge=0)] = 0.0
    straggling: Share = 0.0
    slowdown: Annotated[float, Field(ge=1)] = 10.0
    lost: list[NonNegativeInt] = Field(default_factory=list)
    own_start: bool = False

    @model_validator(mode="after")
    def _fits(self) -> Ensemble:
        if self.workloads is not None and self.speeds is not None:
            raise ValueError("expected workloads, or speeds and a deadline; got both")
        if (self.speeds is None) != (self.deadline is None):
            raise ValueError(f"expected speeds and a deadline together, got speeds = {self.speeds}, deadline = {self.deadline}")
        for name, values in (("workloads", self.workloads), ("speeds", self.speeds)):
            if values is not None and len(values) != self.members:
                raise ValueError(f"expected {name} of {self.members} members, got {len(values)}")
        if odd := [i for i in self.lost if i >= self.members]:
            raise ValueError(f"expected lost members of 0..{self.members - 1}, got {odd[0]}")
        return self

    @model_validator(mode="after")
    def _known_options(self) -> Ensemble:
        _refuse_foreign(self.options, {*Ensemble.model_fields, *(ensembles[self.name].ranges if self.name in ensembles else ())})
        return self


class Service(Named):
    """One walk over nodes in place of batches: node i holds training example i, and a model goes from node to node.

    Its updates are those of the phases, each with the one example of the node. `seed` is that of the graph and of the service;
    left out, it follows from the experiment's. Further keys are options of the ensemble, as its catalogue entry names them.
    """

    seed: NonNegativeInt | None = None
    members: ClassVar[int] = 1

    @model_validator(mode="after")
    def _known_options(self) -> Service:
        follow = {"nodes", "updates"}  # from data and phases
        _refuse_foreign(self.options, {"name", "seed", *ensembles[self.name].ranges} - follow)
        return self


def _shape(table: Any) -> str:
    """Which of the two tables an ensemble is described by: that of a walk that visits nodes, or that of several members."""
    name = table.get("name") if isinstance(table, Mapping) else getattr(table, "name", None)
    return "service" if name in ensembles and hasattr(ensembles[str(name)].cls, "visits") else "members"


class Start(Part):
    """A step of another recorded run from which this one starts, with its optimizer and generator state."""

    run: str
    step: NonNegativeInt


class Experiment(Part):
    """The description of a recorded run.

    Built from keywords or `load_toml`; unknown keys, wrong types and values out of range raise `ArgumentError` with the key path.

    Attributes:
        name: of the experiment; names the run directories of a sweep.
        seed: of the network's first values, the order of the data and everything the network draws.
        model_seed: of the network's first values alone, where they are to be those of another seed; None for `seed`.
        threads: of torch, set for the run's duration; the bits of a run depend on it.
        device: where the run happens, ``"cpu"`` or a cuda device.
        data: the dataset.
        model: the network.
        loss: name of the loss.
        phases: walked one after the other.
        record: what is kept.
        start: the step of another run to start from, or None.
        ensemble: several members in place of one walk, or one walk over nodes with an example each, or None; see
            `ensembles.run_ensemble`.
        grid: name -> values; a sweep over all combinations, see `expand`.
    """

    name: str = "run"
    seed: NonNegativeInt = 0
    model_seed: NonNegativeInt | None = None
    threads: PositiveInt = 1
    device: Annotated[str, Field(pattern=r"^(cpu|cuda(:\d+)?)$")] = "cpu"
    data: Data
    model: Model
    loss: Literal["cross_entropy"] = "cross_entropy"
    phases: Annotated[list[Phase], Field(min_length=1)]
    record: Recording = Recording()
    start: Start | None = None
    ensemble: (
        Annotated[Annotated[Ensemble, Tag("members")] | Annotated[Service, Tag("service")], Discriminator(_shape)] | None
    ) = None
    grid: dict[str, Annotated[list[Scalar], Field(min_length=1)]] = Field(default_factory=dict)

    def __init__(self, **described: Any) -> None:
        try:
            super().__init__(**described)
        except ValidationError as error:
            raise ArgumentError(_explain(error)) from None
        if not re.fullmatch(r"[\w.+-]+", self.name) or set(self.name) == {"."}:
            raise ArgumentError(f"name: expected letters, digits, '.', '_', '+' or '-', got {self.name!r}")
        if isinstance(self.ensemble, Service):
            _check_visits(self.phases)

    @classmethod
    def model_validate(cls, obj: Any, **options: Any) -> Self:  # ruff: ignore[unused-class-method-argument] - pydantic's
        """Validate a dictionary as the constructor does, with its errors."""
        return obj if isinstance(obj, cls) else cls(**obj)

    def described(self) -> dict[str, Any]:
        """The description in JSON types; `Experiment(**described)` gives it back.

        Returns:
            A dictionary without the keys that were left out.
        """
        return self.model_dump(mode="json", exclude_none=True)

    def expand(self) -> list[Experiment]:
        """One experiment for each combination of the grid, named such as ``lr0.2-batch16-seed3``.

        A key of a phase (`lr`, `batch_size`, `momentum`, ...) is set in every phase, an option of a walker (`gamma`, ...) in the
        phases of walkers that take it, one of the data (`label_noise`, ...) in the data; `seed` and `threads` at the top;
        ``model.width`` is the network's option `width`.

        Returns:
            The experiments without a grid; this one alone if it has none.

        Raises:
            ArgumentError: a value does not fit its key.
            UnknownNameError: a key of the grid names nothing.
        """
        if not self.grid:
            return [self]
        result = []
        for values in itertools.product(*self.grid.values()):
            chosen = dict(zip(self.grid, values, strict=True))
            described = self.described() | {"grid": {}}
            for key, value in chosen.items():
                _set(described, key, value)
            described["name"] = "-".join(f"{_SHORT.get(key, key.removeprefix('model.'))}{value}" for key, value in chosen.items())
            result.append(Experiment(**described))
        return result


def _check_visits(phases: Sequence[Phase]) -> None:
    """A node holds one example: refuse batches."""
    for number, phase in enumerate(phases):
        if isinstance(phase.schedule, CyclicBatch):
            raise ArgumentError(
                f"phases[{number}].schedule: expected one of the learning rate: a node holds one example, no batch"
            )
        if phase.batch_size != 1:
            raise ArgumentError(f"phases[{number}].batch_size: expected 1, the example of a node, got {phase.batch_size!r}")
        if phase.replacement:
            raise ArgumentError(f"phases[{number}].replacement: expected none: the walk says at which node it is; leave it out")


_SHORT = {"batch_size": "batch"}


def _set(described: dict[str, Any], key: str, value: Scalar) -> None:
    """Put a value of the grid where its key belongs."""
    if key in ("seed", "threads"):
        described[key] = value
    elif key in Phase.model_fields:
        described["phases"] = [phase | {key: value} for phase in described["phases"]]
    elif any(taking := [key in walker_options(phase["walker"], phase.get("base")) for phase in described["phases"]]):
        pairs = zip(described["phases"], taking, strict=True)
        described["phases"] = [phase | {key: value} if takes else phase for phase, takes in pairs]
    elif key in Data.model_fields:
        described["data"] = described["data"] | {key: value}
    elif key.startswith("model."):
        described["model"] = described["model"] | {key.removeprefix("model."): value}
    else:
        raise unknown("key of the grid", key, [*Phase.model_fields, *Data.model_fields, "seed", "threads", "model.<option>"])


HINTS = {"record.averages": ", the number of blocks in which iterates are summed (64 serves every forecast of annealing)"}


def _explain(error: ValidationError) -> str:
    """The errors of pydantic as lines of key path, what was expected, what came."""
    lines = []
    for item in error.errors(include_url=False):
        path = _key_path(item["loc"])
        if item["type"] == "extra_forbidden":
            known = _known_keys(item["loc"])
            lines.append(f"{path}: unknown key; {str(unknown('key', str(item['loc'][-1]), known)).partition('; ')[2]}")
        elif item["type"] == "foreign_option":
            told = item["ctx"]
            lines += [
                f"{path}.{k}: unknown key; {str(unknown('key', k, told['known'])).partition('; ')[2]}" for k in told["keys"]
            ]
        elif item["type"] == "missing":
            lines.append(f"{path}: required, and missing")
        elif item["type"] == "value_error":
            lines.append(f"{path}: {item['msg'].removeprefix('Value error, ')}")
        else:
            came = item["input"]
            expected = item["msg"].replace("Input should be", "expected") + HINTS.get(path, "")
            lines.append(f"{path}: {expected}; got {came!r} ({type(came).__name__})")
    return "the experiment's description is not valid: " + "\n".join(lines)


_TAGS = {"constant", "cyclic", "step", "trapezoid", "decay", "cyclic_batch", "every", "bursts", "logarithmic"}


def _keys(loc: tuple[int | str, ...]) -> list[int | str]:
    """The path without the tags that pydantic puts behind a choice of tables or of types."""
    kept = []
    for i, part in enumerate(loc):
        behind = loc[i - 1] if i else ""
        tag = (
            (part in _TAGS and behind in ("schedule", "snapshots")) or behind == "batch_size" or (behind == "ensemble" and i == 1)
        )
        if not tag and not (loc[0] == "grid" and i == 3):
            kept.append(part)
    return kept


def _key_path(loc: tuple[int | str, ...]) -> str:
    """phases[0].lr from ("phases", 0, "lr")."""
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in _keys(loc))
    return text.removeprefix(".") or "description"


def _known_keys(loc: tuple[int | str, ...]) -> list[str]:
    """The keys that the table at the end of a path knows."""
    tables: dict[str, type[BaseModel]] = {
        "data": Data,
        "phases": Phase,
        "record": Recording,
        "start": Start,
    }
    inside = [part for part in loc[:-1] if isinstance(part, str)]
    if not inside:
        return list(Experiment.model_fields)
    if inside[-1] in _TAGS:
        return list(_BY_TAG[inside[-1]].model_fields)
    return list(tables[inside[-1]].model_fields) if inside[-1] in tables else []


def _tagged() -> dict[str, type[BaseModel]]:
    """Tag -> table, for the schedules and for the snapshots."""
    unions = [Phase.model_fields["schedule"].annotation, Recording.model_fields["snapshots"].annotation]
    members = [member for union in unions for member in getattr(union, "__args__", ())]
    return {member.model_fields["kind"].annotation.__args__[0]: member for member in members}


_BY_TAG = _tagged()


def describe(description: Experiment | Mapping[str, Any]) -> Experiment:
    """Take an experiment as it is, or validate its description.

    Args:
        description: an Experiment or the dictionary of one.

    Returns:
        The experiment.

    Raises:
        ArgumentError: the description is not valid; the message has the key path.
    """
    return description if isinstance(description, Experiment) else Experiment(**description)


def load_toml(path: str | Path) -> Experiment:
    """Read an experiment from a TOML file; a relative `start.run` is taken from the file's folder.

    Args:
        path: of the file.

    Returns:
        The experiment.

    Raises:
        ArgumentError: the file cannot be read, is not TOML (with the line) or describes no experiment (with the key path).
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        described = tomllib.loads(text)
    except OSError as error:
        raise ArgumentError(f"{path}: the experiment's file cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ArgumentError(f"{path}: expected a TOML file in UTF-8, got other bytes at position {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        where = str(error).replace("at end of document", f"at the end of the document, line {len(text.splitlines())}")
        raise ArgumentError(f"{path}: not valid TOML: {where}") from error
    start = described.get("start")
    if isinstance(start, dict) and isinstance(start.get("run"), str):
        start["run"] = str((path.parent / start["run"]).resolve())
    try:
        return Experiment(**described)
    except ArgumentError as error:
        raise ArgumentError(f"{path}: {error}") from None
