"""One self-contained HTML page from recorded runs; a page of verdicts from checks.

The page asks nothing of the network: plotly's script, the style and every number are in it, and its content security
policy forbids the rest. Whatever came from a run (names, settings, series, messages) is escaped.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sgdscope.contracts import Evidence
from sgdscope.errors import ArgumentError
from sgdscope.report.ensembles import ensemble_section, unfold
from sgdscope.report.page import contents, header, write
from sgdscope.report.reading import Run, name_apart, read
from sgdscope.report.sections import across, guide, run_section, settings_section
from sgdscope.report.verdicts import AnyVerdict, control_section, verdict_section
from sgdscope.report.words import seen

__all__ = ["page_of_verdicts", "report"]


def report(
    run: Run | Sequence[Run],
    out: str | Path = "report.html",
    *,
    verdicts: Sequence[AnyVerdict] = (),
    title: str | None = None,
) -> Path:
    """Write one self-contained HTML page about one or several runs.

    Args:
        run: a run directory, the folder of an ensemble (its members are shown, and what they say together) or measured runs in
            memory (`Evidence`), or several of them.
        out: the page; an existing file is replaced.
        verdicts: of claims, as `Verdict` or as the objects of ``sgdscope check --json``.
        title: of the page.

    Returns:
        Where the page lies.

    Raises:
        ArgumentError: no run was given, or a path does not exist. A run that is empty, half written or damaged is no
            error: the page says what is missing and which command gives it.

    Cost: reads the scalars and the measurements, no snapshot; the page has 5 MB and the figures on top.
    """
    runs, ensembles = unfold([run] if isinstance(run, str | Path | Evidence) else list(run))
    if not runs:
        raise ArgumentError("run: expected a run directory or a list of them, got an empty list")
    pages = name_apart([read(item) for item in runs])
    heading = title or ("The walk with SGD" if len(pages) > 1 else f"The walk with SGD: {pages[0].name}")
    body = [
        header(heading),
        seen(pages, verdicts),
        contents(pages, bool(verdicts), ensembles=[name for name, _ in ensembles]),
        verdict_section(verdicts) if verdicts else "",
        *(ensemble_section(name, told, place=place) for place, (name, told) in enumerate(ensembles, 1)),
        *(run_section(page, alone=len(pages) == 1) for page in pages),
        across(pages),
        verdict_section(verdicts) if not verdicts else "",
        settings_section(pages),
        guide(),
    ]
    return write(Path(out), heading, body)


def page_of_verdicts(verdicts: Sequence[AnyVerdict], controls: Sequence[Mapping[str, Any]], out: str | Path) -> Path:
    """Write one self-contained HTML page with the outcome of checks.

    Args:
        verdicts: of claims, as `Verdict` or as the objects of ``sgdscope check --json``.
        controls: objects with ``claim``, ``control`` and ``verdict``, as of ``sgdscope check --controls --json``.
        out: the page; an existing file is replaced.

    Returns:
        Where the page lies.
    """
    heading = "Claims, checked"
    return write(Path(out), heading, [header(heading), verdict_section(verdicts), control_section(controls)])
