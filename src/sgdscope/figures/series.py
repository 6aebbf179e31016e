"""Scalars over the updates."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from sgdscope.errors import NotAvailableError
from sgdscope.figures.look import MOST_POINTS, PALETTE, Array, dress, mark_nonfinite
from sgdscope.records import STEP_VARIABLES


def user_series(steps: xr.Dataset) -> list[str]:
    """The names of the series that the user logged.

    Args:
        steps: the scalars of all updates.

    Returns:
        Every variable over `step` that is not one of the recorder's own.
    """
    own = ("lr_", "theta_hash_")  # further parameter groups; what replay is held against
    names = [str(name) for name in steps.data_vars if steps[name].dims == ("step",)]
    return [name for name in names if name not in STEP_VARIABLES and not name.startswith(own)]


def scalar_series(steps: xr.Dataset, names: Sequence[str] | None = None) -> go.Figure:
    """Draw scalars over the updates, one row each, non-finite updates marked.

    More than 2000 updates are thinned to the lowest and highest of each of 1000 stretches, so that no spike is lost.

    Args:
        steps: the scalars of all updates.
        names: which; by default the loss, the learning rate, the norms of gradient and update, and the user's series.

    Returns:
        The figure; a row for each series that has a finite value.

    Raises:
        NotAvailableError: none of them has one.
    """
    wanted = ["loss", "lr", "gradient_norm", "update_norm", *user_series(steps)] if names is None else list(names)
    present = [n for n in wanted if n in steps and np.isfinite(np.asarray(steps[n].values, float)).any()]
    if not present:
        raise NotAvailableError("no scalar of any update is finite: " + (", ".join(wanted) or "no series") + " asked for")
    figure = make_subplots(rows=len(present), cols=1, shared_xaxes=True, vertical_spacing=0.12 / len(present))
    for row, name in enumerate(present, start=1):
        t, values = steps["step"].values, np.asarray(steps[name].values, float)
        known = np.isfinite(values)
        sparse = bool(known.mean() < 0.5)  # logged now and then: its points are joined
        t, values = thin(t[known], values[known]) if sparse else thin(t, values)
        colour = PALETTE[(row - 1) % len(PALETTE)]
        line = {"color": colour, "width": 1.3}
        figure.add_trace(
            go.Scatter(x=t, y=values, mode="lines+markers" if sparse else "lines", name=html.escape(name), line=line),
            row=row,
            col=1,
        )
        if name in {"lr", "gradient_norm", "update_norm"}:
            figure.update_yaxes(rangemode="tozero", row=row, col=1)
        figure.update_yaxes(title_text=_axis_title(name, steps[name].attrs.get("units")), row=row, col=1)
    mark_nonfinite(figure, steps, rows=len(present))
    dress(figure, height=110 + 130 * len(present))
    figure.update_layout(showlegend=False)
    figure.update_xaxes(title_text="update t", row=len(present), col=1)
    return figure


def _axis_title(name: str, units: object) -> str:
    words = {"loss": "batch loss", "lr": "learning rate", "gradient_norm": "gradient norm", "update_norm": "step length"}
    unit = f"<br>({html.escape(str(units))})" if units not in {None, "1", "loss"} else ""
    return words.get(name, html.escape(name.replace("_", " "))) + unit


def thin(t: Array, values: Array) -> tuple[Array, Array]:
    """At most 2000 points of a series: the lowest and the highest of each of 1000 stretches."""
    if len(t) <= MOST_POINTS:
        return t, values
    keep = []
    for stretch in np.array_split(np.arange(len(t)), MOST_POINTS // 2):
        here = values[stretch]
        finite = np.isfinite(here)
        keep += sorted({stretch[np.argmin(np.where(finite, here, np.inf))], stretch[np.argmax(np.where(finite, here, -np.inf))]})
    return t[keep], values[keep]
