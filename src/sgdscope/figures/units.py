"""Units along the sharpest directions, and each update in the valley of its own batch."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from sgdscope.errors import NotAvailableError
from sgdscope.figures.look import (
    BLUE,
    GREEN,
    GREY,
    NEUTRAL,
    ORANGE,
    PALETTE,
    PURPLE,
    Array,
    bars,
    beside,
    between,
    column,
    dress,
    dress_beside,
    need,
)


def saturation_along(neurons: xr.Dataset | None) -> go.Figure:
    """Draw how the saturation of the units changes along the sharpest directions, against random ones and the gradient.

    At most three measured points, one panel each. x is in steps s_i of SGD, which reaches j < 0. Bars are 1.96 standard
    errors over the random directions.

    Args:
        neurons: the measurement.

    Returns:
        The figure; a trace for each of at most three directions, one of random directions, one of the gradient.

    Raises:
        NotAvailableError: no change was measured.
    """
    data = need(neurons, "neurons", "saturation_change")
    figure, chosen = beside(data, "saturation_change")
    values, errors = (
        np.asarray(data[name].transpose("step", "arm", "rank", "position").values, float)
        for name in ("saturation_change", "saturation_change_stderr")
    )
    arms, x = [str(arm) for arm in data["arm"].values], np.asarray(data["position"].values, float)
    drawn = [("sharp", r, f"e<sub>{r + 1}</sub>", PALETTE[r], "solid") for r in range(min(3, data.sizes["rank"]))]
    drawn += [("random", 0, "random, of the length s<sub>1</sub>", GREY, "dot")]
    drawn += [("gradient", 0, "gradient, of the length s<sub>1</sub>", GREY, "solid")]
    for col, index in enumerate(chosen, start=1):
        for arm, rank, name, colour, dash in drawn:
            order, place = np.argsort(x), (index, arms.index(arm), rank)
            if not np.isfinite(values[place]).any():
                continue
            trace = go.Scatter(
                x=x[order],
                y=values[place][order],
                error_y=bars(errors[place][order]),
                mode="lines+markers",
                name=name,
                legendgroup=name,
                showlegend=col == 1,
                line={"color": colour, "dash": dash, "width": 1.6},
                marker={"size": 4},
                hovertemplate=f"{name}: %{{y:+.4g}} at j = %{{x}}<extra></extra>",
            )
            figure.add_trace(trace, row=1, col=col)
    figure.add_hline(y=0, line={"color": NEUTRAL, "width": 1})
    figure.add_vline(x=-1, line={"color": NEUTRAL, "width": 1, "dash": "dot"})
    dress_beside(figure, height=420)
    figure.update_xaxes(title_text="j, in mean steps s<sub>i</sub> of SGD (it steps to j = −1)")
    figure.update_yaxes(title_text="change of saturation", row=1, col=1)
    return figure


def batch_walk(batch: xr.Dataset | None, steps: xr.Dataset) -> go.Figure:
    """Draw where each update lands in the valley of its own batch, and the noise scale and batch sharpness of the windows.

    Rows of what was not measured are left out. The first axis ends at -0.5 and 2.5; updates beyond are counted.

    Args:
        batch: the measurement.
        steps: the scalars of all updates, for the learning rate.

    Returns:
        The figure; one row for alpha*, one for the noise scale, one for lr x batch sharpness and lr x GNI.

    Raises:
        NotAvailableError: none of them is known.
    """
    data = need(batch, "batch", "alpha_star")
    middle = (column(data, "window_first", "window") + column(data, "window_last", "window")) / 2
    rows = [name for name in ("alpha_star", "noise_scale", "batch_sharpness") if _known(data, name)]
    if not rows:
        raise NotAvailableError(f"no number of an update on its own batch is known: {data['alpha_star'].attrs.get('reason', '')}")
    figure = make_subplots(rows=len(rows), cols=1, shared_xaxes=True, vertical_spacing=0.06)
    lr = _window_rates(data, steps)
    for row, name in enumerate(rows, start=1):
        if name == "alpha_star":
            _own_floor(figure, row, data)
            continue
        traces = [("noise_scale", "noise scale", ORANGE, np.ones(len(middle)))]
        if name == "batch_sharpness":
            traces = [("batch_sharpness", "η·batch sharpness", PURPLE, lr), ("gni", "η·GNI", GREEN, lr)]
        for key, label, colour, factor in traces:
            if not _known(data, key):
                continue
            error = bars(factor * column(data, f"{key}_stderr", "window"))
            style = {"name": label, "line": {"color": colour, "width": 1.4}, "mode": "lines+markers"}
            figure.add_trace(go.Scatter(x=middle, y=factor * column(data, key, "window"), error_y=error, **style), row=row, col=1)
        words = "noise scale<br>(examples)" if name == "noise_scale" else "η·sharpness"
        figure.update_yaxes(title_text=words, rangemode="tozero", row=row, col=1)
        if name == "batch_sharpness":
            figure.add_hline(y=2, line={"color": NEUTRAL, "width": 1, "dash": "dash"}, row=row, col=1)
    dress(figure, height=140 + 190 * len(rows))
    figure.update_xaxes(title_text="update t", row=len(rows), col=1)
    return figure


def _known(data: xr.Dataset, name: str) -> bool:
    return name in data and bool(np.isfinite(np.asarray(data[name].values, float)).any())


def _window_rates(data: xr.Dataset, steps: xr.Dataset) -> Array:
    """Mean learning rate of each window; NaN where none was recorded."""
    spans = zip(data["window_first"].values, data["window_last"].values, strict=True)
    rates = [column(between(steps, "step", int(a), int(b) - 1), "lr") for a, b in spans]
    return np.array([float(np.nanmean(rate)) if np.isfinite(rate).any() else np.nan for rate in rates])


def _own_floor(figure: go.Figure, row: int, data: xr.Dataset) -> None:
    alpha = column(data, "alpha_star")
    outside = int((np.isfinite(alpha) & ((alpha < -0.5) | (alpha > 2.5))).sum())
    beyond = f" ({outside} beyond the axis)" if outside else ""
    figure.add_trace(
        go.Scatter(
            x=data["step"].values,
            y=alpha,
            mode="markers",
            name=f"α* on the update's own batch{beyond}",
            marker={"color": BLUE, "size": 4, "opacity": 0.6},
            hovertemplate="update %{x}: α* = %{y:.3g}<extra></extra>",
        ),
        row=row,
        col=1,
    )
    figure.add_hrect(y0=0, y1=1, fillcolor="rgba(16,158,117,0.10)", line_width=0, layer="below", row=row, col=1)
    figure.update_yaxes(title_text="α* on the own batch", range=[-0.5, 2.5], row=row, col=1)
