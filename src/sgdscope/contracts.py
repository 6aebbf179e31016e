"""The five shapes (store, walker, ensemble, quantity, claim), Source, and the catalogues.

Each shape is registered by a decorator and found by listing the folder; the decorated thing stays an ordinary
importable function or class. Adding one is adding a file: nothing here is edited.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import numpy as np
import xarray as xr
from numpy.typing import NDArray

from sgdscope.errors import OUTCOME_ATTRS, unknown
from sgdscope.records import Sink, Surface, Trajectory

T = TypeVar("T")
Scope = Literal["run", "sweep"]
Answer = Literal["supported", "contradicted", "undecided", "not in regime"]


@dataclass(frozen=True)
class Source:
    """Where a formula or a sentence comes from.

    Attributes:
        paper: authors and year, or the arXiv number.
        where: section, equation or figure.
    """

    paper: str
    where: str = ""

    def __str__(self) -> str:
        """The citation on one line."""
        return f"{self.paper}, {self.where}" if self.where else self.paper


class Catalogue(Mapping[str, T]):
    """The registered entries of one folder; filled on first use by importing each of its files.

    Args:
        kind: what an entry is called in messages.
        folder: subpackage of sgdscope that is listed.
    """

    def __init__(self, kind: str, folder: str) -> None:
        self.kind, self.folder = kind, folder
        self._entries: dict[str, T] = {}
        self._listed = False

    def add(self, name: str, entry: T) -> None:
        """Register an entry.

        Args:
            name: unique in the folder.
            entry: what is found under it.

        Raises:
            ValueError: the name is taken by something else.
        """
        if name in self._entries:
            raise ValueError(f"two entries of {self.folder} are called '{name}'")
        self._entries[name] = entry

    def _list(self) -> dict[str, T]:
        if not self._listed:
            self._listed = True
            package = importlib.import_module(f"sgdscope.{self.folder}")
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{package.__name__}.{module.name}")
        return self._entries

    def __getitem__(self, name: str) -> T:
        """The entry of that name; an unknown one is an error with the nearest name."""
        entries = self._list()
        if name not in entries:
            error = unknown(self.kind, name, entries)
            raise error
        return entries[name]

    def __contains__(self, name: object) -> bool:
        """Whether the name is known; unlike indexing it does not raise."""
        return name in self._list()

    def __iter__(self) -> Iterator[str]:
        """The names, in the order of the files and of their definitions."""
        return iter(self._list())

    def __len__(self) -> int:
        """How many there are."""
        return len(self._list())


# --- store -----------------------------------------------------------------------------------------------------------


class Store(Sink, Protocol):
    """An append-only log of one run: a sink that can be read back.

    Constructed as ``Store(path, resume="error", start_step=None, fsync=False)``; nothing is touched before `begin`.
    A reader sees whole records or none; steps strictly increase; reads are copies; reopening gives the same.
    """

    @property
    def stored_steps(self) -> int:
        """How many updates are acknowledged: they survive a kill."""

    @classmethod
    def read(cls, path: str | Path) -> Trajectory:
        """Open a run for reading."""

    @classmethod
    def read_record(cls, path: str | Path, kind: str, step: int) -> tuple[dict[str, Any], dict[str, Any]]:
        """The arrays and the meta of a record; raises `NotAvailableError`."""

    @classmethod
    def record_steps(cls, path: str | Path, kind: str) -> list[int]:
        """The steps that have a whole record of this kind, ascending."""

    @classmethod
    def write_measurement(cls, path: str | Path, name: str, measured: xr.Dataset) -> None:
        """Keep a measurement with its run; measured again = replaced, and never half."""

    @classmethod
    def measurements(cls, path: str | Path) -> xr.DataTree:
        """All kept measurements, one group a quantity, loaded."""


@dataclass(frozen=True)
class StoreEntry:
    """A registered store: its class and what it can do."""

    cls: type[Any]
    capabilities: frozenset[str]


stores: Catalogue[StoreEntry] = Catalogue("store", "stores")


def store(name: str, *, capabilities: Sequence[str] = ()) -> Callable[[type[T]], type[T]]:
    """Register a store.

    Args:
        name: under which it is found.
        capabilities: such as ``"persistent"``.

    Returns:
        The decorator; the class stays as it is.
    """

    def decorate(cls: type[T]) -> type[T]:
        stores.add(name, StoreEntry(cls, frozenset(capabilities)))
        return cls

    return decorate


# --- walker and ensemble ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class WalkerEntry:
    """A registered walker (or ensemble): its class, source, parameter ranges and limit case.

    Attributes:
        cls: a ``torch.optim.Optimizer``, or an ensemble of them.
        source: where the iteration is written.
        ranges: parameter -> the range in words, such as ``"lr": "> 0"``.
        limit: (parameters, simpler walker, its parameters): the limit case that must agree bit for bit; None for the simplest.
        wraps: the walker that it wraps unless the option `base` names another; then it is built as ``cls(base, model, surface,
            generator=..., **options)`` and the options that are not in `ranges` are those of the base. None if it wraps none.
    """

    cls: type[Any]
    source: Source
    ranges: Mapping[str, str]
    limit: tuple[Mapping[str, Any], str, Mapping[str, Any]] | None = None
    wraps: str | None = None


walkers: Catalogue[WalkerEntry] = Catalogue("walker", "walkers")
ensembles: Catalogue[WalkerEntry] = Catalogue("ensemble", "ensembles")


def walker(
    name: str,
    *,
    source: Source,
    ranges: Mapping[str, str],
    limit: tuple[Mapping[str, Any], str, Mapping[str, Any]] | None = None,
    wraps: str | None = None,
) -> Callable[[type[T]], type[T]]:
    """Register a walker.

    Args:
        name: under which an Experiment finds it.
        source: where the iteration is written.
        ranges: parameter -> the range in words.
        limit: the limit case, see `WalkerEntry`.
        wraps: the walker that it wraps, see `WalkerEntry`.

    Returns:
        The decorator; the class stays as it is.
    """

    def decorate(cls: type[T]) -> type[T]:
        walkers.add(name, WalkerEntry(cls, source, ranges, limit, wraps))
        return cls

    return decorate


# --- quantity --------------------------------------------------------------------------------------------------------


class Quantity(Protocol):
    """A map from a walk and a surface to a measurement.

    It is measured window by window (`records.windows`): variables over `step` or `window` are computed from the
    snapshots of the trajectory alone, variables over neither from its scalars alone; a trajectory without two
    consecutive snapshots gives empty dimensions. So a run measured live equals the run measured afterwards.
    """

    def __call__(self, trajectory: Trajectory, surface: Surface | None, **options: Any) -> xr.Dataset:
        """Measure."""


@dataclass(frozen=True)
class QuantityEntry:
    """A registered quantity.

    Attributes:
        measure: the function.
        needs: any of ``"surface"``, ``"snapshots"``, ``"scalars"``.
        sources: the papers.
        scales: variable -> power of c with which it grows when the loss is multiplied by c.
    """

    measure: Quantity
    needs: frozenset[str]
    sources: tuple[Source, ...]
    scales: Mapping[str, float]


quantities: Catalogue[QuantityEntry] = Catalogue("quantity", "quantities")


def quantity(
    name: str, *, needs: Sequence[str], sources: Sequence[Source], scales: Mapping[str, float]
) -> Callable[[Callable[..., xr.Dataset]], Callable[..., xr.Dataset]]:
    """Register a quantity.

    Args:
        name: under which it is found; also the name of its group.
        needs: any of ``"surface"``, ``"snapshots"``, ``"scalars"``.
        sources: the papers.
        scales: variable -> power of c with which it grows when the loss is multiplied by c.

    Returns:
        The decorator; the function stays as it is.
    """

    def decorate(function: Callable[..., xr.Dataset]) -> Callable[..., xr.Dataset]:
        quantities.add(name, QuantityEntry(function, frozenset(needs), tuple(sources), dict(scales)))
        return function

    return decorate


@dataclass(frozen=True)
class Variable:
    """What a quantity declares of one variable of its measurement.

    Attributes:
        dims: named dimensions.
        units: such as ``"loss"``, ``"theta"``, ``"1"``.
        long_name: what it is, in words.
        source: paper and equation, or how it is computed.
        error: ``"exact"`` (up to rounding), ``"stderr"`` (then `<name>_stderr` goes with it) or ``"bound"``.
        reason: when the outcome can be other than ok, why (then `<name>_outcome` goes with it); empty if it cannot.
        flags: meanings of the values 0, 1, ... of an int8 variable; empty for numbers.
    """

    dims: tuple[str, ...]
    units: str
    long_name: str
    source: str
    error: Literal["exact", "stderr", "bound"] = "exact"
    reason: str = ""
    flags: str = ""


def declare(
    table: str, *, sources: Mapping[str, str], reasons: Mapping[str, str], flags: Mapping[str, str] | None = None
) -> dict[str, Variable]:
    """Read the variables of a quantity from a table.

    Args:
        table: a line each, ``name; dims; units; error; source; reason; long name``; dims are separated by blanks.
        sources: key in the table -> source.
        reasons: key in the table -> reason; an empty key means that the outcome is always ok.
        flags: name of an int8 variable -> meanings of its values.

    Returns:
        Name -> what is declared of it.
    """
    declared = {}
    for line in table.strip().splitlines():
        name, dims, units, error, source, reason, text = line.split("; ", 6)
        kind: Any = error
        why, meanings = reasons[reason] if reason else "", (flags or {}).get(name, "")
        declared[name] = Variable(tuple(dims.split()), units, text, sources[source], kind, why, meanings)
    return declared


def measurement(
    declared: Mapping[str, Variable], values: Mapping[str, Any], coords: Mapping[str, tuple[str, Any, str]]
) -> xr.Dataset:
    """Dress arrays as a measurement: units, names, sources, errors and outcomes as declared.

    Args:
        declared: name -> what is declared of it.
        values: name -> array of the declared dims; also `<name>_stderr` and `<name>_outcome` where declared.
        coords: name -> (dimension, values, long name), all in units of 1.

    Returns:
        The dataset.
    """
    variables: dict[str, xr.Variable] = {}
    for name, v in declared.items():
        attrs: dict[str, Any] = {"units": v.units, "long_name": v.long_name, "source": v.source, "error": v.error}
        if v.flags:
            attrs |= {"flag_values": list(range(len(v.flags.split()))), "flag_meanings": v.flags}
        if v.reason:
            attrs["reason"] = v.reason
        variables[name] = xr.Variable(v.dims, np.asarray(values[name], np.int8 if v.flags else np.float64), attrs)
        base = {"units": v.units, "source": v.source, "error": "bound"}
        if v.error == "stderr":
            named = base | {"long_name": f"standard error of: {v.long_name}"}
            variables[f"{name}_stderr"] = xr.Variable(v.dims, np.asarray(values[f"{name}_stderr"], np.float64), named)
        if v.reason:
            named = {"units": "1", "long_name": f"outcome of: {v.long_name}", "source": v.source, "error": "exact"}
            outcome = np.asarray(values[f"{name}_outcome"], np.int8)
            variables[f"{name}_outcome"] = xr.Variable(v.dims, outcome, named | {"reason": v.reason} | OUTCOME_ATTRS)
    axes = {name: (dim, np.asarray(v), {"units": "1", "long_name": text}) for name, (dim, v, text) in coords.items()}
    return xr.Dataset(variables, coords=axes)


def scalars(steps: xr.Dataset, name: str, first: int, last: int) -> NDArray[np.float64]:
    """Cut one column of scalars to the updates first..last - 1.

    Args:
        steps: `Trajectory.steps`.
        name: of the column.
        first: first update.
        last: one past the last update.

    Returns:
        [last - first]; NaN where the update or the column was not recorded.
    """
    column = np.full(last - first, np.nan)
    if name in steps:
        recorded = steps["step"].values
        inside = (recorded >= first) & (recorded < last)
        column[recorded[inside] - first] = steps[name].values[inside]
    return column


# --- claim -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Evidence:
    """One measured run, as a claim sees it.

    Attributes:
        settings: of the run: seed, learning rate, batch size, ...
        steps: the scalars of its updates.
        measured: one group a quantity.
        extra: what the claim's own experiment measured beside the quantities.
    """

    settings: Mapping[str, Any]
    steps: xr.Dataset
    measured: Mapping[str, xr.Dataset]
    extra: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """What became of a claim.

    Attributes:
        claim: its id.
        verdict: supported, contradicted, undecided or not in regime.
        statistic: the number that was held against the threshold.
        interval: its 95 % interval.
        n: over how many independent units.
        threshold: fixed beforehand.
        reason: in one sentence, with the numbers.
        regime: where on the map these runs lie (learning rate x curvature, training loss, ...).
        smallest_p: the smallest p that these data could attain; None where no test is done.
        details: further numbers, JSON types.
    """

    claim: str
    verdict: Answer
    statistic: float
    interval: tuple[float, float]
    n: int
    threshold: float
    reason: str
    regime: Mapping[str, float | str] = field(default_factory=dict)
    smallest_p: float | None = None
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Controls:
    """Runs on which the answer is known by construction.

    Attributes:
        positive: seed -> evidence on which the claim holds.
        negative: seed -> evidence on which it cannot hold.
        starved: seed -> evidence too small to decide.
        foreign: seed -> evidence to which the claim does not apply; None where there is no such regime.
    """

    positive: Callable[[int], list[Evidence]]
    negative: Callable[[int], list[Evidence]]
    starved: Callable[[int], list[Evidence]]
    foreign: Callable[[int], list[Evidence]] | None = None


@dataclass(frozen=True)
class ClaimEntry:
    """A registered claim.

    Attributes:
        judge: measured runs -> verdict.
        id: such as ``"W1"``.
        sentence: could be false.
        paper: name of the file (or folder) in `claims/`.
        source: where the paper says it.
        scope: ``"run"`` if one recorded run can answer, else ``"sweep"``.
        statistic: in words.
        threshold: in words.
        quantities: what must be measured, name -> options.
        experiments: preset -> seed -> descriptions of the runs (validated by `Experiment`).
        controls: runs with known answers.
        observe: (trajectory, surface, data folder) -> what the claim measures beside the quantities; None for most.
        study: (description, folder for its runs, data folder) -> evidence, where an experiment of the claim is no walk of one
            network by an `Experiment` (escapes, chains, ensembles); its descriptions have a name and a seed. None for most.
    """

    judge: Callable[[Sequence[Evidence]], Verdict]
    id: str
    sentence: str
    paper: str
    source: Source
    scope: Scope
    statistic: str
    threshold: str
    quantities: Mapping[str, Mapping[str, Any]]
    experiments: Mapping[str, Callable[[int], list[dict[str, Any]]]]
    controls: Controls
    observe: Callable[[Trajectory, Surface, Any], Mapping[str, Any]] | None = None
    study: Callable[[Mapping[str, Any], Path, Any], Evidence] | None = None


claims: Catalogue[ClaimEntry] = Catalogue("claim", "claims")


def claim(
    id: str, **declared: Any
) -> Callable[[Callable[[Sequence[Evidence]], Verdict]], Callable[[Sequence[Evidence]], Verdict]]:
    """Register a claim.

    Args:
        id: such as ``"W1"``.
        **declared: the further attributes of `ClaimEntry`, `judge` and `paper` excepted.

    Returns:
        The decorator; the function stays as it is.
    """

    def decorate(judge: Callable[[Sequence[Evidence]], Verdict]) -> Callable[[Sequence[Evidence]], Verdict]:
        parts = judge.__module__.split(".")
        paper = parts[parts.index("claims") + 1] if "claims" in parts else parts[-1]
        claims.add(id, ClaimEntry(judge=judge, id=id, paper=paper, **declared))
        return judge

    return decorate
