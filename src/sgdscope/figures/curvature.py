"""The curvature along one walk: the largest eigenvalues against the edge, the density of all, alignment with the sharpest."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from sgdscope.errors import NotAvailableError, Outcome
from sgdscope.figures.look import (
    ALARM,
    BLUE,
    GREEN,
    GREY,
    NEUTRAL,
    ORANGE,
    PALETTE,
    PURPLE,
    SYMBOLS,
    Array,
    bars,
    column,
    dress,
    mark_nonfinite,
    need,
    shown,
)
from sgdscope.figures.series import thin

FAR = 3.0  # a threshold further above the largest eigenvalue than this is named, not drawn
EIGENVALUE = "λ = %{x:.4g}<extra></extra>"
LOWEST = 1e-8  # of the density's peak: the axis ends there


def edge_threshold(curvature: xr.Dataset) -> Array:
    """The eigenvalue at which the recorded method becomes unstable, at each measured point.

    Args:
        curvature: a measurement.

    Returns:
        [step] lambda_1 / edge, in units of lambda; NaN where there is no edge, or it is one of a preconditioned Hessian.
    """
    edge = column(curvature, "edge")
    edge[(edge == 0) | np.isfinite(column(curvature, "preconditioned_sharpness"))] = np.nan
    return np.asarray(column(curvature, "sharpness") / edge)


def spectrum_walk(curvature: xr.Dataset | None, steps: xr.Dataset) -> go.Figure:
    """Draw the K largest eigenvalues over the updates, the threshold of the method, and the loss below.

    Bars are the residuals |H e - lambda e|; what did not converge is marked. The threshold is lambda_1 / edge; where it lies
    more than three times above every eigenvalue it is named rather than drawn. For a preconditioned method the edge has a row
    of its own: the largest preconditioned eigenvalue over its threshold.

    Args:
        curvature: the measurement.
        steps: the scalars of all updates.

    Returns:
        The figure; one trace an eigenvalue.

    Raises:
        NotAvailableError: no eigenvalue was measured.
    """
    data = need(curvature, "curvature", "eigenvalue")
    values = np.asarray(data["eigenvalue"].transpose("step", "rank").values, float)
    if not np.isfinite(values).any():
        raise NotAvailableError(
            "no eigenvalue is known at any measured point: " + str(data["eigenvalue"].attrs.get("reason", ""))
        )
    matrix_edge = np.isfinite(column(data, "preconditioned_sharpness")).any()
    heights = [0.5, 0.2, 0.3] if matrix_edge else [0.65, 0.35]
    rows = len(heights)
    figure = make_subplots(rows=rows, cols=1, shared_xaxes=True, vertical_spacing=0.05, row_heights=heights)
    _eigenvalues(figure, data, values)
    if matrix_edge:
        _line(figure, 2, data, "edge", ("edge", PURPLE))
        figure.add_hline(y=1, line={"color": NEUTRAL, "width": 1, "dash": "dash"}, row=2, col=1)
        figure.update_yaxes(title_text="share of the edge<br>(preconditioned)", rangemode="tozero", row=2, col=1)
    _loss(figure, rows, data, steps)
    mark_nonfinite(figure, steps, rows=1)
    dress(figure, height=620 if matrix_edge else 540)
    figure.update_yaxes(title_text="largest eigenvalues λ<sub>i</sub><br>(loss/θ²)", row=1, col=1)
    figure.update_xaxes(title_text="update t", row=rows, col=1)
    return figure


def _eigenvalues(figure: go.Figure, data: xr.Dataset, values: Array) -> None:
    at = data["step"].values
    residuals, outcome = (
        np.asarray(data[name].transpose("step", "rank").values, float) if name in data else np.zeros(values.shape)
        for name in ("eigenvalue_residual", "eigenvalue_outcome")
    )
    for place, rank in reversed(list(enumerate(data["rank"].values))):
        colour = PALETTE[0] if place == 0 else GREY
        figure.add_trace(
            go.Scatter(
                x=at,
                y=values[:, place],
                error_y={"type": "data", "array": residuals[:, place], "thickness": 1, "width": 2, "color": colour},
                mode="lines+markers",
                name=f"λ<sub>{rank}</sub>",
                line={"color": colour, "width": 2 if place == 0 else 0.9},
                marker={"size": 5 if place == 0 else 3},
                opacity=1 if place == 0 else 0.9 - 0.5 * place / len(data["rank"]),
                hovertemplate=f"update %{{x}}: λ<sub>{rank}</sub> = %{{y:.4g}}<extra></extra>",
            ),
            row=1,
            col=1,
        )
    open_ended = (outcome == int(Outcome.not_converged)) & np.isfinite(values)
    if open_ended.any():
        where = np.nonzero(open_ended)
        mark = {"color": ALARM, "symbol": "x-thin-open", "size": 8}
        name = "not converged"
        figure.add_trace(go.Scatter(x=at[where[0]], y=values[where], mode="markers", name=name, marker=mark), row=1, col=1)
    _threshold(figure, at, edge_threshold(data), values)
    figure.update_layout(legend={"traceorder": "reversed"})


def _threshold(figure: go.Figure, at: Array, limits: Array, values: Array) -> None:
    known, top = np.isfinite(limits) & (limits > 0), float(np.nanmax(values))
    near = known & (limits <= FAR * top)
    if near.any():
        line = {"color": ORANGE, "width": 1.6, "dash": "dash"}
        y, name = np.where(near, limits, np.nan), "threshold of the method"
        figure.add_trace(go.Scatter(x=at, y=y, mode="lines+markers", name=name, line=line, marker={"size": 4}), row=1, col=1)
    if (known & ~near).any():
        low, high = limits[known & ~near].min(), limits[known & ~near].max()
        span = f"{low:.3g}" if f"{low:.3g}" == f"{high:.3g}" else f"{low:.3g} to {high:.3g}"
        text = f"threshold of the method above the axis: {span}"
        place = {"x": 0.99, "y": 0.98, "xref": "x domain", "yref": "y domain", "xanchor": "right", "yanchor": "top"}
        figure.add_annotation(text=text, showarrow=False, font_color=ORANGE, **place)


def _loss(figure: go.Figure, row: int, data: xr.Dataset, steps: xr.Dataset) -> None:
    if "loss" in steps and np.isfinite(np.asarray(steps["loss"].values, float)).any():
        x, y = thin(steps["step"].values, np.asarray(steps["loss"].values, float))
        line = {"color": GREY, "width": 0.8}
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines", name="batch loss", line=line, opacity=0.6), row=row, col=1)
    _line(figure, row, data, "loss", ("L(θ<sub>t</sub>)", GREEN))
    figure.update_yaxes(title_text="loss", row=row, col=1)


def _line(figure: go.Figure, row: int, data: xr.Dataset, name: str, style: tuple[str, str]) -> None:
    label, colour = style
    line, values = {"color": colour, "width": 1.4}, column(data, name)
    trace = go.Scatter(x=data["step"].values, y=values, mode="lines+markers", name=label, line=line, marker={"size": 5})
    figure.add_trace(trace, row=row, col=1)


def spectral_density(curvature: xr.Dataset | None) -> go.Figure:
    """Draw the density of all eigenvalues, log y, at the first and the last point where it was measured.

    The K largest eigenvalues of the last point are ticks below it, the damping of its log-volume a line.

    Args:
        curvature: the measurement, with `density`.

    Returns:
        The figure; one trace a point, one of ticks.

    Raises:
        NotAvailableError: no density was measured.
    """
    data = need(curvature, "curvature", "density", "density_at", "eigenvalue")
    chosen = shown(data, "density", 2) if data.sizes.get("bin", 0) else []
    if not chosen:
        raise NotAvailableError("the spectral density was not measured: sgdscope.measure(..., 'curvature', density=10) gives it")
    figure, peak = go.Figure(), 0.0
    for index, colour in zip(chosen, (BLUE,) if len(chosen) == 1 else (GREY, BLUE), strict=True):
        x, y = (np.asarray(data[name].transpose("step", "bin").values[index], float) for name in ("density_at", "density"))
        peak, y = max(peak, float(np.nanmax(y))), np.where(y > 0, y, np.nan)
        name = f"update {int(data['step'].values[index])}"
        figure.add_trace(go.Scatter(x=x, y=y, mode="lines", name=name, line={"color": colour, "width": 1.6}))
    ticks = np.asarray(data["eigenvalue"].transpose("step", "rank").values[chosen[-1]], float)
    mark = {"symbol": "line-ns-open", "size": 14, "color": ORANGE, "line": {"width": 2}}
    told = f"λ<sub>1</sub> … λ<sub>{len(ticks)}</sub> at the last of them"
    y = np.full(len(ticks), peak * LOWEST * 4)
    figure.add_trace(go.Scatter(x=ticks, y=y, mode="markers", name=told, marker=mark, hovertemplate=EIGENVALUE))
    damping = column(data, "damping")[chosen[-1]]
    if np.isfinite(damping):
        note = {"text": "damping", "yanchor": "top"}
        figure.add_vline(x=damping, line={"color": GREEN, "width": 1.2, "dash": "dot"}, annotation=note)
    dress(figure, height=420)
    figure.update_xaxes(title_text="eigenvalue (loss/θ²)")
    span = [np.log10(peak * LOWEST), np.log10(peak * 3)]
    figure.update_yaxes(title_text="density (θ²/loss)", type="log", range=span, exponentformat="power", dtick=2)
    return figure


SHARE = "update %{x}: %{y:.3g}<extra></extra>"
SHARES = (
    ("gradient_share", "full gradient", BLUE),
    ("batch_share", "batch gradients", ORANGE),
    ("update_share", "update", GREEN),
    ("noise_share", "gradient noise", PURPLE),
)


def alignment(sharpest: xr.Dataset | None) -> go.Figure:
    """Draw which share of the squared length of gradients and updates lies in the sharpest directions, against chance.

    The share in the first i directions for i = K (solid) and i = 1 (dotted); chance is i / P. Bars are 1.96 standard errors
    over the mini-batches.

    Args:
        sharpest: the measurement.

    Returns:
        The figure, log y; two traces a vector, and two of chance.

    Raises:
        NotAvailableError: no share is known.
    """
    data = need(sharpest, "sharpest", "gradient_share", "share_chance")
    k, at = data.sizes["rank"], data["step"].values
    ranks = {k: "solid"} | ({1: "dot"} if k > 1 else {})
    figure = go.Figure()
    for (name, label, colour), symbol in zip(SHARES, SYMBOLS, strict=False):
        for rank, dash in ranks.items():
            share, error = _of_rank(data, name, rank), bars(_of_rank(data, f"{name}_stderr", rank))
            if np.isfinite(share).any():
                told = f"{label} in e<sub>1</sub>" + (f"…e<sub>{rank}</sub>" if rank > 1 else "")
                mark = {"size": 6, "symbol": symbol}
                style = {"name": told, "line": {"color": colour, "width": 1.5, "dash": dash}, "marker": mark}
                figure.add_trace(go.Scatter(x=at, y=share, error_y=error, mode="lines+markers", hovertemplate=SHARE, **style))
    if not figure.data:
        raise NotAvailableError("no share of a gradient or update in the sharpest directions is known at any measured point")
    for rank, dash in ranks.items():
        own = "dash" if dash == "solid" else dash
        chance, line = np.full(len(at), data["share_chance"].values[rank - 1]), {"color": GREY, "width": 1.5, "dash": own}
        style = {"name": f"chance, {rank} / P", "line": line, "marker": {"size": 1}, "hovertemplate": SHARE}
        figure.add_trace(go.Scatter(x=at, y=chance, mode="lines+markers", **style))
    dress(figure, height=440)
    figure.update_layout(legend={"entrywidthmode": "fraction", "entrywidth": 0.24})
    figure.update_xaxes(title_text="update t")
    figure.update_yaxes(title_text="share of the squared length", type="log", exponentformat="power", dtick=1)
    return figure


def _of_rank(data: xr.Dataset, name: str, rank: int) -> Array:
    if name not in data:
        return np.full(data.sizes["step"], np.nan)
    return np.asarray(data[name].transpose("step", "rank").values[:, rank - 1], float)
