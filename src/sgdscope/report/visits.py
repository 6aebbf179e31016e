"""Walks over nodes, private walks and walks in a body in words: where the walk came, and what it cost the records."""

from __future__ import annotations

from typing import Any

import numpy as np

from sgdscope.report.page import number
from sgdscope.report.reading import Page


def visit_words(page: Page) -> list[str]:
    """A sentence on the visits of a walk over nodes, on the privacy that its records have spent, on the edge of a body.

    Args:
        page: one run.

    Returns:
        HTML; nothing for a run whose steps tell none of it.
    """
    return [*_visits(page), *_privacy(page), *_brought_back(page)]


def _visits(page: Page) -> list[str]:
    told = [_finite(page, name) for name in ("node", "hop", "cycle", "walk", "use")]
    if not all(len(values) for values in told):
        return []
    node, hop, cycle, walk, use = told
    nodes = page.evidence.settings.get("examples")
    over = f"{number(nodes)} nodes" if nodes else "nodes"
    restarts = int(np.count_nonzero(np.diff(walk)))
    return [
        f"One walk over {over} with a training record each: hop {hop[-1]:.0f}, the last, was at node {node[-1]:.0f} in cycle "
        f"{number(float(cycle[-1]))}; it stood at {_count(len(np.unique(node)), 'node')}, after "
        f"{_count(restarts, 'restart')}, and no record had more than {_count(int(use.max()), 'use')}, "
        "lost visits counted."
    ]


def _privacy(page: Page) -> list[str]:
    spent = _finite(page, "privacy_spent")
    if not len(spent):
        return []
    budget = _budget(page)
    of = f" of its privacy budget of {number(budget)}" if budget else " of privacy"
    still = int(np.count_nonzero(_finite(page, "update_norm") == 0))
    skipped = f"; {_count(still, 'update')} moved nothing, where a record had nothing left" if still else ""
    return [f"No record has spent more than {number(float(spent.max()))}{of}{skipped}."]


def _brought_back(page: Page) -> list[str]:
    """How often a projected walk left its body: those points lie on the boundary, an atom that the continuous law lacks."""
    hits = _finite(page, "hits")
    if len(hits) < 2:
        return []
    found, updates = int(hits[-1] - hits[0]), len(hits) - 1
    return [
        f"{number(found)} of {_count(updates, 'projected update')} left the body and were brought back: "
        f"{number(100 * found / updates)} % of the points lie on its boundary, where the walk without steps has none."
    ]


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}" if n == 1 else f"{n} {noun}s"


def _budget(page: Page) -> float | None:
    """Eps of the private walker, if it is the first."""
    optimizers: Any = page.evidence.settings.get("optimizers")
    first = optimizers[0] if isinstance(optimizers, list | tuple) and optimizers else None
    private = isinstance(first, dict) and "uses" in first and isinstance(first.get("eps"), int | float)
    return float(first["eps"]) if private and first is not None else None


def _finite(page: Page, name: str) -> np.ndarray[Any, np.dtype[np.float64]]:
    """The finite values of a series of the updates; none if it was not recorded."""
    steps = page.evidence.steps
    values = np.asarray(steps[name].values, np.float64) if name in steps else np.zeros(0)
    return values[np.isfinite(values)]
