"""What annealing now would give: averages, laws and interval of one run; predicted against real drops of many."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from sgdscope.errors import NotAvailableError
from sgdscope.figures.look import BLUE, GREY, NEUTRAL, ORANGE, PALETTE, dress, dress_beside, need


def annealing_forecast(data: xr.Dataset | None) -> go.Figure:
    """The losses at three averages, the loss now, and the forecast with its 90 % interval; one panel a set of data and budget.

    Args:
        data: the measurement "annealing".

    Returns:
        The figure.

    Raises:
        NotAvailableError: it was not measured, or nothing could be told.
    """
    data = need(data, "annealing", "window_loss", "annealed", "law_loss")
    told = [
        (d, b)
        for d in data["data"].values.tolist()
        for b in data["budget"].values.tolist()
        if np.isfinite(data["annealed"].sel(data=d, budget=b))
    ]
    if not told:
        raise NotAvailableError("no forecast of annealing could be made for this run; the reasons are in the text")
    titles = [f"{d.replace('_', '-')}, {b:.0%} of the updates" for d, b in told]
    columns = min(2, len(told))
    rows = -(-len(told) // columns)
    figure = make_subplots(rows=rows, cols=columns, subplot_titles=titles, horizontal_spacing=0.1, vertical_spacing=0.25 / rows)
    for number, (d, b) in enumerate(told):
        _panel(figure, data.sel(data=d, budget=b), number == 0, row=number // columns + 1, col=number % columns + 1)
    dress_beside(figure, 90 + 240 * rows)
    for col in range(1, columns + 1):
        figure.update_xaxes(title_text="update", row=rows, col=col)
    figure.update_yaxes(title_text="loss", col=1)
    return figure


def _panel(figure: go.Figure, cell: xr.Dataset, first: bool, **place: int) -> None:
    step, width = int(cell.attrs["step"]), float(cell["width"])
    centres = step - (cell["age"].values + 0.5) * width
    end, value = step + width, float(cell["annealed"])
    below, above = value - float(cell["annealed_low"]), float(cell["annealed_high"]) - value
    bars = {"type": "data", "symmetric": False, "array": [above], "arrayminus": [below], "width": 6}
    doubted = bool(str(cell["reason"].values))
    shared: dict[str, Any] = {"showlegend": first, "mode": "markers"}
    traces: list[dict[str, Any]] = [
        {"x": centres, "y": cell["window_loss"].values, "name": "average of the iterates", "marker": {"color": BLUE, "size": 9}},
        {"x": [step], "y": [float(cell["loss_now"])], "name": "now", "marker": {"color": NEUTRAL, "size": 9, "symbol": "square"}},
        {"x": [end] * 4, "y": cell["law_loss"].values, "name": "by one law", "marker": {"color": GREY, "size": 6, "symbol": "x"}},
        {
            "x": [end],
            "y": [value],
            "name": "annealed, 90 %",
            "error_y": bars,
            "marker": {"color": ORANGE, "size": 10, "symbol": "circle-open" if doubted else "circle"},
        },
    ]
    for trace in traces:
        figure.add_trace(go.Scatter(**shared, **trace, legendgroup=trace["name"]), **place)


def predicted_against_real(rows: Sequence[Mapping[str, Any]]) -> go.Figure:
    """Predicted over real drops of the loss, with 90 % intervals; the line is where they agree.

    Args:
        rows: each with ``setting``, ``real``, ``predicted``, ``half_width``; drops, in units of the loss.

    Returns:
        The figure, both axes logarithmic; rows whose real or predicted drop is not positive are left out.

    Raises:
        NotAvailableError: no row is left.
    """
    kept = [row for row in rows if row["real"] > 0 and row["predicted"] > 0]
    if not kept:
        raise NotAvailableError("no row has a positive drop, real and predicted; run the benchmark of annealing first")
    figure = go.Figure()
    for number, setting in enumerate(dict.fromkeys(row["setting"] for row in kept)):
        own = [row for row in kept if row["setting"] == setting]
        predicted, half = (np.array([row[name] for row in own]) for name in ("predicted", "half_width"))
        error = {
            "type": "data",
            "symmetric": False,
            "array": half,
            "arrayminus": np.minimum(half, 0.9 * predicted),  # a logarithmic axis has no zero
            "thickness": 1,
            "width": 2,
        }
        marker = {"color": PALETTE[number % len(PALETTE)], "symbol": number // len(PALETTE), "size": 7}
        x = [row["real"] for row in own]
        figure.add_trace(go.Scatter(x=x, y=predicted, error_y=error, name=setting, mode="markers", marker=marker))
    ends = [min(row["real"] for row in kept), max(row["real"] for row in kept)]
    line = {"color": NEUTRAL, "dash": "dot"}
    figure.add_trace(go.Scatter(x=ends, y=ends, mode="lines", name="predicted = real", line=line))
    dress(figure, 520)
    figure.update_xaxes(type="log", dtick=1, title_text="real drop of the loss")
    figure.update_yaxes(type="log", dtick=1, title_text="predicted drop")
    return figure
