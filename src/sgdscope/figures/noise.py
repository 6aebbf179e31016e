"""The noise of the gradient along one walk: its scales beside the batch size, against the Hessian, its spectrum, the height."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from sgdscope.errors import NotAvailableError, Outcome
from sgdscope.figures.heights import NUMBER, drawn, noise_batch_size, recorded
from sgdscope.figures.look import (
    BLUE,
    GREEN,
    GREY,
    NEUTRAL,
    ORANGE,
    Z95,
    Array,
    bars,
    beside,
    column,
    dress,
    dress_beside,
    log_axis,
    need,
    shown,
)

ELEMENT = "%{text}<br>H %{x:.4g}, C %{y:.4g}<extra></extra>"
RANKED = "rank %{x}: %{y:.4g}<extra></extra>"


# --- noise scales -----------------------------------------------------------------------------------------------------------

SCALES = (
    ("noise_scale", "B<sub>simple</sub> = Tr C / |g|²", BLUE, 0.0),
    ("curved_noise_scale", "B<sub>noise</sub> = Tr(HC) / g′Hg", ORANGE, 0.006),
    ("population_noise_scale", "B<sub>simple</sub> of the population", GREEN, -0.006),
)


def noise_scales(noise: xr.Dataset | None, steps: xr.Dataset) -> go.Figure:
    """Draw the noise scales over the updates with 95 % intervals, and the batch size in use.

    A scale whose interval is not bounded is not drawn: |G|^2 is not told from zero there.

    Args:
        noise: the measurement.
        steps: the scalars of all updates.

    Returns:
        The figure, log y; one trace a scale, and one of the batch size.

    Raises:
        NotAvailableError: no noise scale is known.
    """
    data = need(noise, "noise", "noise_scale")
    figure, at = go.Figure(), np.asarray(data["step"].values, float)
    width = float(np.ptp(at)) if len(at) > 1 else 1.0
    for name, label, colour, aside in SCALES:
        values = _fine(data, name)
        if np.isfinite(values).any():
            style = {"line": {"color": colour, "width": 1.6}, "marker": {"size": 6}, "hovertemplate": NUMBER}
            spread = _interval(data, name, values)
            x = at + aside * width  # apart, so that the bars can be told
            figure.add_trace(go.Scatter(x=x, y=values, error_y=spread, mode="lines+markers", name=label, customdata=at, **style))
    if not figure.data:
        raise NotAvailableError(f"no noise scale is known at any measured point: {data['noise_scale'].attrs.get('reason', '')}")
    _batch(figure, data, steps, at)
    dress(figure, height=420)
    figure.update_xaxes(title_text="update t")
    figure.update_yaxes(title_text="examples", **log_axis(figure, "y"))
    return figure


def _fine(data: xr.Dataset, name: str) -> Array:
    """Positive values whose outcome is ok, NaN elsewhere."""
    values, outcome = column(data, name), column(data, f"{name}_outcome")
    poor = outcome == int(Outcome.not_converged)
    return np.asarray(np.where(poor | ~(values > 0), np.nan, values))


def _interval(data: xr.Dataset, name: str, values: Array) -> Mapping[str, Any]:
    """Bars from the measured interval, else from the standard error; none of them below a thousandth of the value."""
    low, high = column(data, f"{name}_low"), column(data, f"{name}_high")
    half = Z95 * column(data, f"{name}_stderr")
    low, high = np.where(np.isfinite(low), low, values - half), np.where(np.isfinite(high), high, values + half)
    down, up = values - np.maximum(low, values / 1000), high - values
    told = {"array": np.nan_to_num(up), "arrayminus": np.nan_to_num(down), "symmetric": False}
    return {"type": "data", "thickness": 1, "width": 3, **told}


def _batch(figure: go.Figure, data: xr.Dataset, steps: xr.Dataset, at: Array) -> None:
    """The batch size of the updates, as a line from the first to the last."""
    size = recorded(steps, "batch_size", at)
    size = np.where(np.isfinite(size) & (size > 0), size, noise_batch_size(data))
    if np.isfinite(size).any():
        line = {"color": NEUTRAL, "width": 1.6, "dash": "dash"}
        mode = "lines" if len(at) > 1 else "lines+markers"
        style = {"line": line, "marker": {"symbol": "line-ew-open", "size": 30}, "hovertemplate": NUMBER}
        figure.add_trace(go.Scatter(x=at, y=size, mode=mode, name="batch size in use", **style))


# --- against the Hessian ----------------------------------------------------------------------------------------------------


def noise_alignment(noise: xr.Dataset | None) -> go.Figure:
    """Draw e_i'C e_j against e_i'H e_j for the top eigenvectors of H, at three points, with the slope through the origin.

    In its own eigenvectors H is diagonal: pairs i != j lie at 0, and how far C spreads there is what the two do not share.

    Args:
        noise: the measurement, with the Hessian.

    Returns:
        The figure; a column a point.

    Raises:
        NotAvailableError: no element is known.
    """
    data = need(noise, "noise", "element", "curvature_eigenvalue")
    figure, chosen = beside(data, "element", shared=False)
    for place, index in enumerate(chosen, start=1):
        element, error = (_square(data, name)[index] for name in ("element", "element_stderr"))
        curvature = data["curvature_eigenvalue"].transpose("step", "rank").values[index]
        _pairs(figure, place, (element, error, curvature))
        slope, correlation = column(data, "slope")[index], column(data, "correlation")[index]
        _slope(figure, place, slope, float(np.nanmax(curvature)))
        _told(figure, place, f"slope {slope:.2f}<br>r = {correlation:.2f}")
    dress_beside(figure, height=420)
    figure.update_xaxes(title_text="e<sub>i</sub>′He<sub>j</sub> (loss/θ²)")
    figure.update_yaxes(title_text="e<sub>i</sub>′Ce<sub>j</sub> (loss²/θ²)", row=1, col=1)
    return figure


def _square(data: xr.Dataset, name: str) -> Array:
    if name not in data:
        return np.full(data["element"].transpose("step", "rank", "other").shape, np.nan)
    return np.asarray(data[name].transpose("step", "rank", "other").values, float)


def _pairs(figure: go.Figure, place: int, known: tuple[Array, Array, Array]) -> None:
    element, error, curvature = known
    k, first = len(curvature), place == 1
    above, below = np.triu_indices(k, 1)
    names = [f"i = {i + 1}, j = {j + 1}" for i, j in zip(above, below, strict=True)]
    mark = {"color": GREY, "size": 5, "opacity": 0.7}
    off = {"x": np.zeros(len(above)), "y": element[above, below], "text": names, "marker": mark, "name": "i ≠ j"}
    own = {"x": curvature, "y": np.diag(element), "error_y": bars(np.diag(error)), "name": "i = j"}
    own |= {"text": [f"i = j = {i + 1}" for i in range(k)], "marker": {"color": BLUE, "size": 7}}
    for group, trace in (("off", off), ("own", own)):
        style = {"mode": "markers", "hovertemplate": ELEMENT, "legendgroup": group, "showlegend": first}
        figure.add_trace(go.Scatter(**trace, **style), row=1, col=place)


def _slope(figure: go.Figure, place: int, slope: float, most: float) -> None:
    """The fitted slope, and C = H."""
    lines = (("C = H", 1.0, NEUTRAL, "dot"), ("slope of C on H", slope, ORANGE, "dash"))
    for name, rise, colour, dash in lines:
        if np.isfinite(rise):
            line = {"color": colour, "width": 1.5, "dash": dash}
            style = {"name": name, "legendgroup": name, "showlegend": place == 1, "line": line, "hoverinfo": "skip"}
            figure.add_trace(go.Scatter(x=[0, most], y=[0, rise * most], mode="lines", **style), row=1, col=place)


def _told(figure: go.Figure, place: int, text: str) -> None:
    axis = "" if place == 1 else str(place)
    where = {"x": 0.04, "y": 0.97, "xref": f"x{axis} domain", "yref": f"y{axis} domain", "xanchor": "left", "yanchor": "top"}
    figure.add_annotation(text=text, showarrow=False, align="left", **where)


# --- the spectrum -----------------------------------------------------------------------------------------------------------


def noise_spectrum(noise: xr.Dataset | None) -> go.Figure:
    """Draw the eigenvalues of C over their rank, both logarithmic, at the first and the last point, with the fitted power law.

    The law was fitted over more ranks than are drawn; of a measurement without `spectrum_prefactor` its power and p are told
    and no line is drawn. Bars are 1.96 standard errors.

    Args:
        noise: the measurement.

    Returns:
        The figure; one trace a point, and one a fitted law.

    Raises:
        NotAvailableError: no eigenvalue is known.
    """
    data = need(noise, "noise", "covariance_eigenvalue")
    chosen = shown(data, "covariance_eigenvalue", 2)
    if not chosen:
        reason = data["covariance_eigenvalue"].attrs.get("reason", "")
        raise NotAvailableError(f"no eigenvalue of the covariance is known at any measured point: {reason}")
    figure, ranks = go.Figure(), np.asarray(data["rank"].values, float)
    for index, colour in zip(chosen, (BLUE,) if len(chosen) == 1 else (GREY, BLUE), strict=True):
        values = data["covariance_eigenvalue"].transpose("step", "rank").values[index]
        error = column(data.isel(step=index), "covariance_eigenvalue_stderr", "rank")
        known = np.isfinite(values) & (values > 0)
        style = {"mode": "markers", "marker": {"color": colour, "size": 7}, "hovertemplate": RANKED}
        fit, factor = spectrum_fit(data, index), float(column(data, "spectrum_prefactor")[index])
        name = f"update {int(data['step'].values[index])}{'' if np.isfinite(factor) else _law(fit)}"
        figure.add_trace(go.Scatter(x=ranks[known], y=values[known], error_y=bars(error[known]), name=name, **style))
        if np.isfinite(factor):
            line = {"color": colour, "width": 1.3, "dash": "dash"}
            own = {"name": _law(fit).removeprefix(": "), "line": line, "hoverinfo": "skip"}
            figure.add_trace(go.Scatter(x=ranks, y=factor * ranks ** -fit[0], mode="lines", **own))
    dress(figure, height=420)
    figure.update_xaxes(title_text="rank r", **log_axis(figure, "x"))
    figure.update_yaxes(title_text="eigenvalue μ<sub>r</sub> of C (loss²/θ²)", **log_axis(figure, "y"))
    return figure


def spectrum_fit(data: xr.Dataset, index: int) -> tuple[float, float]:
    """The fitted power s of the spectrum of C at one point and the p of its test; NaN where they are not known."""
    exponent, p = (float(column(data, f"spectrum_{name}")[index]) for name in ("exponent", "p"))
    return exponent, p


def _law(fit: tuple[float, float]) -> str:
    exponent, p = fit
    if not np.isfinite(exponent):
        return ""
    return f": ~ r<sup>−{exponent:.2f}</sup>" + (f", p = {p:.2g}" if np.isfinite(p) else "")


# --- over the updates -------------------------------------------------------------------------------------------------------


def noise_walk(noise: xr.Dataset | None) -> go.Figure:
    """Draw signal to noise of a batch's gradient and the temperature over the updates.

    Args:
        noise: the measurement.

    Returns:
        The figure, two rows, log y.

    Raises:
        NotAvailableError: neither is known: the batch size was not recorded, or the learning rate.
    """
    data = need(noise, "noise", "signal_to_noise", "temperature")
    at = data["step"].values
    both = [("with replacement", drawn(data, "signal_to_noise", "with"), "with", GREY)]
    both += [("without replacement", drawn(data, "signal_to_noise", "without"), "without", BLUE)]
    heat = column(data, "temperature")
    if not any(np.isfinite(values).any() for values in (*(v for _, v, _, _ in both), heat)):
        reason = data["signal_to_noise"].attrs.get("reason", "")
        raise NotAvailableError(f"signal to noise and temperature are known at no measured point: {reason}")
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.05)
    for name, values, drawing, colour in both:
        error = bars(drawn(data, "signal_to_noise_stderr", drawing))
        if np.isfinite(values).any():
            style = {"line": {"color": colour, "width": 1.5}, "marker": {"size": 6}, "hovertemplate": NUMBER}
            figure.add_trace(go.Scatter(x=at, y=values, error_y=error, mode="lines+markers", name=name, **style), row=1, col=1)
    figure.add_hline(y=1, line={"color": NEUTRAL, "width": 1, "dash": "dash"}, row=1, col=1)
    style = {"line": {"color": ORANGE, "width": 1.5}, "marker": {"size": 6}, "hovertemplate": NUMBER}
    error = bars(column(data, "temperature_stderr"))
    trace = go.Scatter(x=at, y=heat, error_y=error, mode="lines+markers", name="temperature", **style)
    figure.add_trace(trace, row=2, col=1)
    dress(figure, height=460)
    figure.update_yaxes(title_text="|g|² / Tr C<sub>B</sub>", row=1, col=1, **_ticks(*(v for _, v, _, _ in both), np.ones(1)))
    figure.update_yaxes(title_text="temperature (loss)", row=2, col=1, **_ticks(heat))
    figure.update_xaxes(title_text="update t", row=2, col=1)
    return figure


def _ticks(*values: Array) -> Mapping[str, Any]:
    """A logarithmic axis of one row."""
    return log_axis(go.Figure([go.Scatter(y=one) for one in values]), "y")


def lag_currents(noise: xr.Dataset | None) -> go.Figure:
    """Draw the asymmetry of the lag-1 covariance of each window against what signs drawn by chance give.

    Args:
        noise: the measurement, with `currents`.

    Returns:
        The figure; one trace of the windows, one of chance.

    Raises:
        NotAvailableError: it was not measured.
    """
    data = need(noise, "noise", "lag_asymmetry")
    values, chance, p = (column(data, f"lag_asymmetry{end}", "window") for end in ("", "_chance", "_p"))
    if not np.isfinite(values).any():
        raise NotAvailableError(
            f"the asymmetry of the lag-1 covariance is not known: {data['lag_asymmetry'].attrs.get('reason', '')}"
        )
    where = (data["window_first"].values + data["window_last"].values) / 2
    text = [f"p = {one:.2g}" if np.isfinite(one) else "p not known" for one in p]
    figure = go.Figure()
    hover = "window around update %{x}: %{y:.3g}, %{text}<extra></extra>"
    style = {"mode": "markers+text", "textposition": "top center", "marker": {"color": BLUE, "size": 8}, "hovertemplate": hover}
    figure.add_trace(go.Scatter(x=where, y=values, text=text, name="walk", **style))
    line = {"color": GREY, "width": 1.4, "dash": "dash"}
    style = {"mode": "lines+markers", "line": line, "marker": {"size": 5}, "hovertemplate": NUMBER}
    figure.add_trace(go.Scatter(x=where, y=chance, name="mean of signs drawn by chance", **style))
    dress(figure, height=360)
    top = 1.15 * float(np.nanmax([*values, *chance]))
    figure.update_yaxes(title_text="|A − A′| / |A + A′|", range=[0, top])
    figure.update_xaxes(title_text="update t")
    return figure
