"""Waiting times: the stays of one walk in valleys, and the scaling laws of many walkers' times of escape with their fits."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from math import isfinite

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from sgdscope import escapes
from sgdscope.contracts import Evidence
from sgdscope.errors import ArgumentError, NotAvailableError, unknown
from sgdscope.escapes.fits import Law
from sgdscope.evidence.waiting import stays as read_stays
from sgdscope.figures.look import (
    BLUE,
    GREY,
    ORANGE,
    PALETTE,
    Z95,
    Array,
    column,
    dress,
    log_axis,
    need,
)
from sgdscope.notation import with_interval
from sgdscope.quantities.escape import stays

TIME = "%{text}<br>%{x:.4g}: %{y:.4g}<extra></extra>"
OVER = {
    "sharpness": ("1/k, k the factor on the curvature", "log τ + log k + log η"),
    "batch_size": ("batch size B", "log τ + log k + log η"),
    "lr": ("1/η", "log τ + log k + log η"),
    "temperature": ("1/D", "log τ + log k + log η"),
    "polynomial": ("log k", "log τ + log η"),
    "barrier": ("barrier L(b) − L(a)", "log τ + log k + log η"),
    "log_barrier": ("log L(b)/L(a)", "log τ + log k + log η"),
}


# --- the quantity -----------------------------------------------------------------------------------------------------------


def escape_rates(escape: xr.Dataset | None) -> go.Figure:
    """Draw the rate at which the walk leaves valleys in each window, with its 95 % interval.

    A window that nothing left has an interval from 0 and no point: its upper end is drawn as a triangle.

    Args:
        escape: the measurement.

    Returns:
        The figure; one trace of rates, one of upper ends.

    Raises:
        NotAvailableError: no window has an update that began in a valley.
    """
    data = need(escape, "escape", "escape_rate", "escape_rate_low", "escape_rate_high", "window_first", "window_last")
    rate, low, high = (column(data, f"escape_rate{end}", "window") for end in ("", "_low", "_high"))
    if not np.isfinite(high).any():
        raise NotAvailableError(f"no rate of escape is known: {data['escape_rate'].attrs.get('reason', '')}")
    first, last = (data[f"window_{end}"].values.astype(float) for end in ("first", "last"))
    x, width = (first + last) / 2, {"type": "data", "array": (last - first) / 2, "thickness": 1, "width": 0, "color": GREY}
    left = rate > 0
    figure = go.Figure()
    counts = [f"{a:.0f} escapes in {n:.0f} updates" for a, n in zip(*_counts(data), strict=True)]
    text = np.array(counts, dtype=object)
    for known, y, name, symbol in ((left, rate, "rate", "circle"), (~left & np.isfinite(high), high, "at most", "triangle-down")):
        if known.any():
            error = {"type": "data", "array": (high - rate)[known], "arrayminus": (rate - low)[known], "symmetric": False}
            bars = {"error_y": error | {"thickness": 1, "width": 3}} if name == "rate" else {}
            style = {"mode": "markers", "marker": {"color": BLUE, "size": 8, "symbol": symbol}, "hovertemplate": TIME}
            own = {"x": x[known], "y": y[known], "error_x": width | {"array": width["array"][known]}, "text": text[known]}
            figure.add_trace(go.Scatter(name=name, **own, **bars, **style))
    dress(figure, height=380)
    figure.update_xaxes(title_text="update t")
    figure.update_yaxes(title_text="escapes an update", rangemode="tozero")
    return figure


def _counts(data: xr.Dataset) -> tuple[Array, Array]:
    return column(data, "escapes", "window"), column(data, "at_risk", "window")


def dwell_times(escape: xr.Dataset | None) -> go.Figure:
    """Draw the share of stays that last longer than t over all windows, with equal odds of leaving at each update.

    Kaplan and Meier's estimate: at each length at which d of n stays end, S falls by 1 - d / n; a stay that the end of its
    window cut off (a cross) leaves n without lowering S. Equal odds are (1 - rate)^t,
    rate = escapes / updates at risk. A share of zero lies on the lower end of the axis.

    Args:
        escape: the measurement.

    Returns:
        The figure, log y; the estimate, the cut stays, equal odds.

    Raises:
        NotAvailableError: no stay has ended.

    Source: Kaplan & Meier 1958; Epstein & Sobel 1953.
    """
    data = need(escape, "escape", "inside", "left", "window_first", "window_last")
    lengths, cut = _stays(data)
    if not (~cut).any():
        raise NotAvailableError("no stay has ended in any window; a smaller box or longer windows may show one")
    at, share = survival(lengths, cut)
    figure, rate = go.Figure(), float((~cut).sum() / lengths.sum())
    line = {"color": BLUE, "width": 1.8, "shape": "hv"}
    hover = "longer than %{x} updates: %{y:.2%}<extra></extra>"
    lowest = float(share[share > 0].min()) / 3 if (share > 0).any() else 0.3  # where the axis ends, for a share of zero
    level, longest = np.concatenate([[1.0], share]), float(lengths.max())
    x, y = np.array([0.0, *at, longest]), np.maximum([*level, level[-1]], lowest)
    figure.add_trace(go.Scatter(x=x, y=y, mode="lines", name="stays", line=line, hovertemplate=hover))
    if cut.any():
        seen = level[np.searchsorted(at, lengths[cut], side="right")]
        mark = {"symbol": "cross-thin-open", "size": 8, "color": ORANGE}
        name = f"cut off by the end of a window ({int(cut.sum())} of {len(cut)})"
        figure.add_trace(
            go.Scatter(x=lengths[cut], y=np.maximum(seen, lowest), mode="markers", name=name, marker=mark, hovertemplate=hover)
        )
    if rate < 1:
        grid = np.linspace(0.0, longest, 100)
        name, line = f"equal odds at each update, mean {1 / rate:.3g}", {"color": GREY, "width": 1.4, "dash": "dash"}
        style = {"mode": "lines", "name": name, "line": line, "hoverinfo": "skip"}
        figure.add_trace(go.Scatter(x=grid, y=np.maximum((1 - rate) ** grid, lowest), **style))
    axis = log_axis(figure, "y")
    dress(figure, height=400)
    figure.update_xaxes(title_text="length t of a stay (updates)", rangemode="tozero")
    figure.update_yaxes(title_text="share longer than t", range=[np.log10(lowest), 0.05], **axis)
    return figure


def _stays(data: xr.Dataset) -> tuple[Array, Array]:
    """Lengths of the stays of all windows, and whether the end of their window cut them off."""
    at, inside, left = data["step"].values, column(data, "inside"), column(data, "left")
    lengths, cut = [np.zeros(0)], [np.zeros(0, bool)]
    for first, last in zip(data["window_first"].values, data["window_last"].values, strict=True):
        own = (at >= first) & (at < last)
        found = stays(np.nan_to_num(inside[own]), np.nan_to_num(left[own]))
        lengths.append(found[0])
        cut.append(found[1])
    return np.concatenate(lengths), np.concatenate(cut)


def survival(lengths: Array, censored: Array) -> tuple[Array, Array]:
    """The share of stays that last longer than each length at which one ended, by Kaplan and Meier.

    Args:
        lengths: [n], updates.
        censored: [n], whether the observation ended first; such a stay counts as at risk at its own length.

    Returns:
        The lengths at which stays ended, ascending, and the shares.

    Example:
        >>> at, share = survival(np.array([2.0, 3.0, 3.0, 5.0]), np.array([False, True, False, False]))
        >>> at.tolist(), share.round(4).tolist()
        ([2.0, 3.0, 5.0], [0.75, 0.5, 0.0])
    """
    at = np.unique(lengths[~censored])
    risk = np.array([(lengths >= t).sum() for t in at], float)
    ended = np.array([((lengths == t) & ~censored).sum() for t in at], float)
    return at, np.cumprod(1 - ended / risk)


# --- experiments ------------------------------------------------------------------------------------------------------------


def waiting_times(evidence: Sequence[Evidence], law: str) -> go.Figure:
    """Draw log tau, the theory's prefactors moved to its side, against what the law says it is linear in, with the fits.

    One colour a kind of potential and noise; one marker a setting and seed, with 1.96 standard errors; one line a kind,
    weighted by the escapes. A line is drawn where at least two settings differ. Runs with fewer than ten escapes, or with
    walkers that diverged, are left out, and it is said how many.

    Args:
        evidence: of escape experiments (`evidence.waiting.study`).
        law: one of `escapes.LAWS`: sharpness, batch_size, lr, temperature, polynomial, barrier, log_barrier.

    Returns:
        The figure; two traces a kind.

    Raises:
        UnknownNameError: no such law.
        NotAvailableError: no run has enough escapes and the setting that the law is about.
    """
    if law not in escapes.LAWS:
        error = unknown("law", law, escapes.LAWS)
        raise error
    chosen = escapes.LAWS[law]
    found: dict[str, list[tuple[escapes.Point, str]]] = {}
    studies = [item for item in evidence if "escapes" in item.extra]
    for stay in read_stays(studies):
        if _known(stay.point, chosen):
            words = f"{stay.kind}, seed {stay.seed}, {stay.told['escapes']} escapes"
            found.setdefault(stay.kind, []).append((stay.point, html.escape(words)))
    if not found:
        raise NotAvailableError(f"none of {len(studies)} escape experiments has the setting of the law '{law}' and ten escapes")
    figure = go.Figure()
    for place, (kind, own) in enumerate(found.items()):
        _times(figure, (kind, own), chosen, PALETTE[place % len(PALETTE)])
    dress(figure, height=420)
    used = sum(len(own) for own in found.values())
    if used < len(studies):
        text = f"{len(studies) - used} of {len(studies)} runs left out"
        figure.add_annotation(
            text=text, x=1, y=0, xref="x domain", yref="y domain", xanchor="right", yanchor="bottom", showarrow=False
        )
    over, up = OVER[law]
    figure.update_xaxes(title_text=over)
    figure.update_yaxes(title_text=up)
    return figure


def _known(point: escapes.Point, law: Law) -> bool:
    try:
        return isfinite(law.x(point)) and isfinite(law.y(point))
    except (ValueError, ZeroDivisionError):
        return False


def _times(figure: go.Figure, named: tuple[str, list[tuple[escapes.Point, str]]], law: Law, colour: str) -> None:
    kind, own = named
    points, words = [point for point, _ in own], [text for _, text in own]
    x, y = (np.array([f(point) for point in points]) for f in (law.x, law.y))
    errors = np.array([point.stderr for point in points])
    spread: Mapping[str, object] = {"type": "data", "array": Z95 * errors, "thickness": 1, "width": 3}
    style = {"mode": "markers", "marker": {"color": colour, "size": 7}, "legendgroup": kind, "hovertemplate": TIME}
    figure.add_trace(go.Scatter(x=x, y=y, error_y=spread, name=html.escape(kind), text=words, **style))
    try:
        fit = escapes.line(x, y, errors)
    except ArgumentError:  # one setting
        return
    ends = np.array([x.min(), x.max()])
    name = f"slope {with_interval(fit.slope, fit.interval.low, fit.interval.high)}, r = {fit.r:.3f}"
    line = {"color": colour, "width": 1.5, "dash": "dash"}
    line_of = {"mode": "lines", "line": line, "legendgroup": kind, "hoverinfo": "skip", "name": name}
    figure.add_trace(go.Scatter(x=ends, y=fit.intercept + fit.slope * ends, **line_of))
