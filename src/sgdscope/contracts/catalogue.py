"""Source, and the catalogue that lists a folder."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TypeVar

from sgdscope.errors import unknown

T = TypeVar("T")


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
