"""What the figures share: the look, and reading of what was measured and recorded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from numpy.typing import NDArray
from plotly.subplots import make_subplots

from sgdscope.contracts import Evidence
from sgdscope.errors import NotAvailableError
from sgdscope.records import NONFINITE

Array = NDArray[Any]
PALETTE = ("#2f86c5", "#d9600f", "#109e75", "#c46fa0", "#d99a00", "#56b4e9", "#8a8a8a")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "x", "star", "cross")  # beside the colours, for those who see none
LIGHT, GREY = PALETTE[5:]
BLUE, ORANGE, GREEN, PURPLE = PALETTE[:4]
ALARM = "#e0303a"
NEUTRAL = "rgba(128,128,128,0.75)"
GRID = "rgba(128,128,128,0.22)"
MOST_POINTS = 2000
MOST_MARKS = 60
Z95 = 1.959963984540054  # two-sided 95 % of the normal distribution


def nonfinite_steps(steps: xr.Dataset) -> Array:
    """The updates whose loss, gradient or parameters were not finite.

    Args:
        steps: the scalars of all updates.

    Returns:
        Step numbers, ascending; from the flags, else from an infinite loss.
    """
    bad = np.zeros(steps.sizes.get("step", 0), bool)
    if "flags" in steps:
        bad |= (steps["flags"].values.astype(np.int64) & NONFINITE) > 0
    if "loss" in steps:
        bad |= np.isinf(steps["loss"].values)
    return np.asarray(steps["step"].values[bad], np.int64) if len(bad) else np.zeros(0, np.int64)


def learning_rate(item: Evidence, window: tuple[int, int] | None = None) -> float:
    """The learning rate of a run, or of one window of it.

    Args:
        item: the run.
        window: (first point, last point); None for the whole run.

    Returns:
        The mean of what was recorded, else what the settings say, else NaN.
    """
    steps = item.steps if window is None else between(item.steps, "step", window[0], window[1] - 1)
    values = np.asarray(steps["lr"].values, float) if "lr" in steps else np.zeros(0)
    values = values[np.isfinite(values)]
    if len(values):
        return float(values.mean())
    given = item.settings.get("lr")
    return float(given) if isinstance(given, int | float) else float("nan")


def name_of(item: Evidence) -> str:
    """The name of a run: `extra["name"]`, else the experiment's, else learning rate and batch size."""
    experiment = item.settings.get("experiment")
    named = experiment.get("name") if isinstance(experiment, Mapping) else None
    return str(item.extra.get("name") or named or f"lr {learning_rate(item):.3g}, {group(item)}")


def group(item: Evidence) -> str:
    """Walker and batch size of a run, in words."""
    return f"{walker_of(item) or 'run'}, batch {batch_of(item) or 'not recorded'}"


def walker_of(item: Evidence) -> str:
    """The walker of a run, or the class of its first optimizer; empty if neither is known."""
    optimizers = item.settings.get("optimizers")
    first = optimizers[0] if isinstance(optimizers, list | tuple) and optimizers else {}
    return str(item.settings.get("walker") or (first.get("class") if isinstance(first, Mapping) else None) or "")


def batch_of(item: Evidence) -> str:
    """The batch size of a run: what the settings say, else the median of what was recorded; empty if neither is known."""
    batch = item.settings.get("batch_size")
    if batch is None and "batch_size" in item.steps:
        recorded = np.asarray(item.steps["batch_size"].values, float)
        recorded = recorded[np.isfinite(recorded)]
        batch = f"{np.median(recorded):.0f}" if len(recorded) else None
    return "" if batch is None else str(batch)


def need(data: xr.Dataset | None, quantity: str, *names: str) -> xr.Dataset:
    """The dataset, if it is there and holds these variables; else an error that says how to get them."""
    if data is None:
        raise NotAvailableError(f"the quantity '{quantity}' was not measured; sgdscope measure RUN {quantity} gives it")
    missing = [name for name in names if name not in data]
    if missing:
        raise NotAvailableError(f"the measurement '{quantity}' holds no {', '.join(missing)}; measure it again")
    return data


def column(data: xr.Dataset, name: str, dim: str = "step") -> Array:
    """A variable as float64, NaN where it does not exist."""
    if name not in data:
        return np.full(data.sizes.get(dim, 0), np.nan)
    return np.array(data[name].values, float)


def number(data: xr.Dataset | None, name: str) -> float:
    """A variable without dimensions, NaN where it does not exist."""
    return float(data[name].values) if data is not None and name in data and data[name].ndim == 0 else float("nan")


def between(data: xr.Dataset, dim: str, first: int, last: int) -> xr.Dataset:
    """The updates first..last, both included; curves too."""
    for name in (dim, f"{dim}_curve"):
        if name in data.coords:
            data = data.isel({name: np.flatnonzero((data[name].values >= first) & (data[name].values <= last))})
    return data


def shown(data: xr.Dataset, name: str, most: int = 3) -> list[int]:
    """Positions along `step` where a variable has a finite value: all of them, or as many spread from the first to the last."""
    finite = np.isfinite(np.asarray(data[name].transpose("step", ...).values, float))
    known = np.flatnonzero(finite.reshape(len(finite), -1).any(axis=1))
    if len(known) <= most:
        return [int(index) for index in known]
    return [int(known[place]) for place in np.linspace(0, len(known) - 1, most).round().astype(int)]


def beside(data: xr.Dataset, name: str, *, shared: bool = True) -> tuple[go.Figure, list[int]]:
    """Panels side by side, one for each of at most three measured points at which a variable is known.

    Args:
        data: over `step`.
        name: the variable.
        shared: one y axis for all panels.

    Returns:
        The figure, and the positions along `step`, one a column.

    Raises:
        NotAvailableError: it is known at no point.
    """
    chosen = shown(data, name)
    if not chosen:
        raise NotAvailableError(f"{name.replace('_', ' ')} is known at no measured point: {data[name].attrs.get('reason', '')}")
    names = [f"update {int(data['step'].values[index])}" for index in chosen]
    room = 0.03 if shared else 0.07
    return make_subplots(rows=1, cols=len(chosen), shared_yaxes=shared, subplot_titles=names, horizontal_spacing=room), chosen


def dress_beside(figure: go.Figure, height: int) -> None:
    """The shared look for panels side by side: room for their titles below the legend."""
    dress(figure, height)
    figure.update_layout(legend={"y": 1.1}, margin={"t": 60})
    figure.update_annotations(font_size=12.5)


def bars(errors: Array) -> dict[str, Any]:
    """Error bars of 1.96 standard errors; none where no error is known."""
    return {"type": "data", "array": Z95 * np.nan_to_num(np.asarray(errors, float)), "thickness": 1, "width": 3}


def mark_nonfinite(figure: go.Figure, steps: xr.Dataset, rows: int) -> None:
    """A line through each update that was not finite (the first 60 of them), with one legend in words."""
    bad = nonfinite_steps(steps)
    for step in bad[:MOST_MARKS]:
        for row in range(1, rows + 1):
            figure.add_vline(x=int(step), line={"color": ALARM, "width": 1, "dash": "dot"}, row=row, col=1)
    if len(bad):
        more = f", first {MOST_MARKS} marked" if len(bad) > MOST_MARKS else ""
        text = f"{len(bad)} updates not finite{more}"
        figure.add_annotation(
            text=text, x=1, y=1, xref="paper", yref="paper", xanchor="right", yanchor="bottom", showarrow=False, font_color=ALARM
        )


def log_axis(figure: go.Figure, axis: str) -> dict[str, Any]:
    """A logarithmic axis with ticks at 1, 2 and 5 where the data span less than two decades, else at powers of ten."""
    found = np.concatenate([np.asarray(trace[axis], float) for trace in figure.data])
    found = found[np.isfinite(found) & (found > 0)]
    if not len(found) or found.max() / found.min() >= 100:
        return {"type": "log", "dtick": max(1, round(np.log10(found.max() / found.min()) / 6)) if len(found) else 1}
    decades = np.arange(np.floor(np.log10(found.min())) - 1, np.ceil(np.log10(found.max())) + 1)
    ticks = [mantissa * 10.0**decade for decade in decades for mantissa in (1, 2, 5)]
    return {"type": "log", "tickvals": ticks, "ticktext": [_tick(tick) for tick in ticks]}


def _tick(value: float) -> str:
    """A number of one digit; powers of ten from 100 000 on and below 0.0001."""
    mantissa, _, exponent = f"{value:g}".partition("e")
    return mantissa + (f" × 10<sup>{int(exponent)}</sup>".replace("-", "−") if exponent else "")


def dress(figure: go.Figure, height: int) -> None:
    """The look that all figures share."""
    figure.update_layout(
        template="none",
        height=height,
        paper_bgcolor="rgba(0,0,0,0)",
        plot_bgcolor="rgba(0,0,0,0)",
        font={"size": 12, "color": "#777777"},
        title={"font": {"size": 13}, "x": 0.5},
        margin={"l": 80, "r": 20, "t": 20, "b": 55},
        legend={"orientation": "h", "yanchor": "bottom", "y": 1.01, "xanchor": "left", "x": 0, "bgcolor": "rgba(0,0,0,0)"},
        hovermode="closest",
    )
    axis = {"gridcolor": GRID, "zeroline": False, "showline": True, "linecolor": NEUTRAL, "ticks": "outside", "ticklen": 4}
    figure.update_xaxes(**axis, tickcolor=NEUTRAL, automargin=True, title_font_size=13, title_standoff=8)
    figure.update_yaxes(**axis, tickcolor=NEUTRAL, automargin=True, title_font_size=12.5, title_standoff=8)
