"""The shapes that make and keep walks: store, walker, ensemble."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

import xarray as xr

from sgdscope.contracts.catalogue import Catalogue, Source
from sgdscope.records import Sink, Trajectory

T = TypeVar("T")
Limit = tuple[Mapping[str, Any], str, Mapping[str, Any]]


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
    limit: Limit | None = None
    wraps: str | None = None


walkers: Catalogue[WalkerEntry] = Catalogue("walker", "walkers")
ensembles: Catalogue[WalkerEntry] = Catalogue("ensemble", "ensembles")


def walker(
    name: str,
    *,
    source: Source,
    ranges: Mapping[str, str],
    limit: Limit | None = None,
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


class Ensemble(Protocol):
    """Several walks that belong together.

    Constructed as ``Ensemble(members, generator=..., **options)`` from one walker a member, each of which moves parameters of
    its own. It draws from its generator only; of one member alone it is the plain walker, bit for bit.
    """

    members: Sequence[Any]

    def step(self, active: Sequence[int] | None = None) -> None:
        """One update of the members named (all if None), each by the `step` of its walker, and what it makes them exchange."""

    def lose(self, member: int) -> None:
        """Lose a member: from here on it has no weight."""

    def combine(self) -> Any:
        """What the members have to say together, a `replicas.Combination`; its `theta` [P] is the point."""

    def state_dict(self) -> dict[str, Any]:
        """Everything the walk from here depends on; `load_state_dict` takes it back."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken."""


def ensemble(name: str, *, source: Source, ranges: Mapping[str, str], limit: Limit | None = None) -> Callable[[type[T]], type[T]]:
    """Register an ensemble.

    Args:
        name: under which it is found.
        source: where the iteration is written.
        ranges: parameter -> the range in words.
        limit: (parameters, plain walker, its parameters): with these parameters one member alone equals that walker.

    Returns:
        The decorator; the class stays as it is.
    """

    def decorate(cls: type[T]) -> type[T]:
        ensembles.add(name, WalkerEntry(cls, source, ranges, limit))
        return cls

    return decorate
