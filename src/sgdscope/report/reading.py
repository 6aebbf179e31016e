"""Runs as the page sees them; what cannot be read becomes a sentence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xarray as xr

from sgdscope import figures
from sgdscope.contracts import Evidence, stores
from sgdscope.errors import ArgumentError, SgdscopeError
from sgdscope.records import windows
from sgdscope.runs import open_trajectory

Run = str | Path | Evidence
UNREADABLE = (SgdscopeError, OSError, ValueError, KeyError)


@dataclass(frozen=True)
class Page:
    """One run as the page sees it.

    Attributes:
        name: as it is shown.
        key: anchor in the page.
        source: what to write for RUN in a command.
        evidence: settings, scalars and measurements; empty where they could not be read.
        windows: (first point, last point) of each window that was measured, or recorded.
        problems: what could not be read, in sentences.
    """

    name: str
    key: str
    source: str
    evidence: Evidence
    windows: tuple[tuple[int, int], ...]
    problems: tuple[str, ...] = ()

    @property
    def valley(self) -> xr.Dataset | None:
        """The measurement of the valley."""
        return self.evidence.measured.get("valley")


def read(run: Run) -> Page:
    """Read one run; only a path that does not exist is an error."""
    if isinstance(run, Evidence):
        name = figures.name_of(run)
        return Page(name, "", "RUN", run, _measured_windows(run.measured))
    path = Path(run)
    if not path.exists():
        raise ArgumentError(f"run: expected a run directory, got '{path}', which does not exist; sgdscope run makes one")
    settings, steps, points, problems = _read_walk(path)
    measured, trouble = _read_measurements(path)
    name = path.name or str(path.resolve())
    evidence = Evidence(settings, steps, measured, {"name": name})
    spans = _measured_windows(measured) or tuple(windows(points))
    return Page(name, "", str(path), evidence, spans, (*problems, *trouble))


def _read_walk(path: Path) -> tuple[Mapping[str, Any], xr.Dataset, Any, tuple[str, ...]]:
    """Settings, scalars, snapshot steps and problems; what can be read is read even where replay cannot be had."""
    settings, steps, points = dict[str, Any](), xr.Dataset(coords={"step": np.zeros(0, np.int64)}), np.zeros(0, np.int64)
    problems: dict[str, None] = {}
    for opened in (open_trajectory, stores["zarr"].cls.read):
        try:
            trajectory = opened(path)
            settings, points = dict(trajectory.settings), trajectory.snapshot_steps
            steps = trajectory.steps.load()
            break
        except UNREADABLE as error:
            problems[f"The run cannot be read: {error}"] = None
    return settings, steps, points, tuple(problems)


def _read_measurements(path: Path) -> tuple[dict[str, xr.Dataset], tuple[str, ...]]:
    try:
        tree = stores["zarr"].cls.measurements(path)
    except UNREADABLE as error:
        return {}, (f"The measurements cannot be read: {error}",)
    return {str(name): group.to_dataset() for name, group in tree.children.items()}, ()


def _measured_windows(measured: Mapping[str, xr.Dataset]) -> tuple[tuple[int, int], ...]:
    for name in ("valley", "motion", *sorted(measured)):
        data = measured.get(name)
        if data is not None and "window_first" in data and data.sizes.get("window", 0):
            return tuple((int(a), int(b)) for a, b in zip(data["window_first"].values, data["window_last"].values, strict=True))
    return ()


def name_apart(pages: Sequence[Page]) -> list[Page]:
    """Give every page an anchor, and runs of one name their paths or numbers."""
    named: list[Page] = []
    for index, page in enumerate(pages, start=1):
        twins = [other for other in pages if other.name == page.name]
        apart = len({twin.source for twin in twins}) == len(twins)
        name = page.name if len(twins) == 1 else page.source if apart else f"{page.name} ({index})"
        evidence = Evidence(
            page.evidence.settings, page.evidence.steps, page.evidence.measured, {**page.evidence.extra, "name": name}
        )
        named.append(Page(name, f"run-{index}", page.source, evidence, page.windows, page.problems))
    return named
