"""What several runs show together: height, floor position, distance law."""

from __future__ import annotations

import html
from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from sgdscope import notation
from sgdscope.contracts import Evidence
from sgdscope.errors import NotAvailableError
from sgdscope.figures.look import (
    MOST_POINTS,
    NEUTRAL,
    PALETTE,
    SYMBOLS,
    Z95,
    Array,
    column,
    dress,
    group,
    learning_rate,
    log_axis,
    name_of,
    number,
)


def height_against_lr(evidence: Sequence[Evidence]) -> go.Figure:
    """Draw the mean height above the floor against the learning rate, log-log, one point a window of each run.

    The height of an update is the mean of L(theta_t) and L(theta_{t+1}) above the minimum of its parabola over [0, 1].
    The bar is 1.96 standard errors. Points of one learning rate are set apart by 3 % a window; the last window is filled.
    Heights that are not above three times the rounding of the loss are left out and counted above the figure.

    Args:
        evidence: the runs.

    Returns:
        The figure; one trace for each batch size and walker.

    Raises:
        NotAvailableError: no run has such a height and a learning rate.
    """
    groups: dict[str, list[tuple[float, float, float, str, bool]]] = {}
    left_out = 0
    for item in evidence:
        rows = _heights(item)
        left_out += sum(not row[1] > 0 for row in rows)
        groups.setdefault(group(item), []).extend(row for row in rows if row[1] > 0 and row[0] > 0)
    groups = {name: rows for name, rows in groups.items() if rows}
    if not groups:
        raise NotAvailableError(
            "no run has a mean height above the floor together with a learning rate: measure the quantity 'valley' first"
        )
    figure = go.Figure()
    for index, (name, rows) in enumerate(groups.items()):
        lr, height, error, text, latest = (np.array(each) for each in zip(*rows, strict=True))
        colour, symbol = PALETTE[index % len(PALETTE)], SYMBOLS[index % len(SYMBOLS)]
        figure.add_trace(
            go.Scatter(
                x=lr,
                y=height,
                error_y={"type": "data", "array": error, "thickness": 1.2, "width": 3, "color": colour},
                mode="markers",
                name=html.escape(name),
                text=text,
                marker={"size": 9, "color": colour, "symbol": np.where(latest, symbol, f"{symbol}-open")},
                hovertemplate="%{text}<extra></extra>",
            )
        )
    dress(figure, height=440)
    figure.update_xaxes(title_text="learning rate η", **log_axis(figure, "x"))
    figure.update_yaxes(title_text="mean height above the floor (loss)", **log_axis(figure, "y"), exponentformat="power")
    if left_out:
        told = f"not shown: {left_out} windows whose height is not above rounding"
        note = {"xref": "paper", "yref": "paper", "xanchor": "right", "yanchor": "bottom", "showarrow": False}
        figure.add_annotation(text=told, x=1, y=1, **note)
    return figure


def _heights(item: Evidence) -> list[tuple[float, float, float, str, bool]]:
    """(learning rate, mean height, half width of its interval, label, last window) of each window."""
    valley = item.measured.get("valley")
    if valley is None or "mean_height" not in valley or "window_first" not in valley:
        return []
    heights = column(valley, "mean_height", "window")
    heights[heights <= 3 * np.nan_to_num(column(valley, "noise_floor", "window"))] = np.nan
    errors = np.nan_to_num(Z95 * column(valley, "mean_height_stderr", "window"))
    spans = list(zip(valley["window_first"].values, valley["window_last"].values, strict=True))
    rows = []
    for index, (first, last) in enumerate(spans):
        lr = learning_rate(item, (int(first), int(last)))
        label = f"{html.escape(name_of(item))}, updates {int(first)}–{int(last) - 1}"
        shifted = lr * 1.03 ** (index - len(spans) + 1)
        height, half = float(heights[index]), float(errors[index])
        told = f"{label}<br>lr {notation.number(lr)}, height {notation.with_interval(height, height - half, height + half)}"
        rows.append((shifted, height, half, told, index == len(spans) - 1))
    return rows


def floor_position(evidence: Sequence[Evidence]) -> go.Figure:
    """Draw the distribution of alpha*, the place of the minimum along each update, one box a run.

    The box spans the quartiles, the whiskers at most 1.5 times as far. The axis ends at -0.5 and 2.5; updates beyond
    are counted beside the run. 0 is theta_t, 1 is theta_{t+1}; at 1/2 both walls are equally high and the mean loss
    does not change.

    Args:
        evidence: the runs.

    Returns:
        The figure; one trace a run.

    Raises:
        NotAvailableError: alpha* was measured in no run.
    """
    figure = go.Figure()
    for index, item in enumerate(evidence):
        valley = item.measured.get("valley")
        alpha = np.zeros(0) if valley is None else column(valley, "alpha_star")
        alpha = alpha[np.isfinite(alpha)]
        if not len(alpha):
            continue
        outside = float(np.mean((alpha < -0.5) | (alpha > 2.5)))
        label = html.escape(name_of(item)) + (f"<br>({outside:.0%} beyond the axis)" if outside > 0 else "")
        colour = PALETTE[index % len(PALETTE)]
        figure.add_trace(
            go.Box(
                x=alpha,
                name=label,
                orientation="h",
                boxpoints="all" if len(alpha) <= MOST_POINTS else False,
                jitter=0.6,
                pointpos=0,
                marker={"color": colour, "size": 3, "opacity": 0.35},
                line={"color": colour, "width": 1.6},
                fillcolor="rgba(128,128,128,0.10)",
                showlegend=False,
                hoverinfo="x",
            )
        )
    if not figure.data:
        raise NotAvailableError("the floor position α* was measured in no run: measure the quantity 'valley' first")
    figure.add_vrect(x0=0, x1=1, fillcolor="rgba(16,158,117,0.10)", line_width=0, layer="below")
    for x, text, dash in ((0, "θ<sub>t</sub>", "solid"), (0.5, "½ stationary", "dash"), (1, "θ<sub>t+1</sub>", "solid")):
        line = {"color": NEUTRAL, "width": 1.2, "dash": dash}
        figure.add_vline(x=x, line=line, annotation={"text": text, "yanchor": "bottom", "yshift": 3}, annotation_position="top")
    dress(figure, height=150 + 80 * len(figure.data))
    figure.update_xaxes(title_text="floor position α* along the step (1 = the step's own length)", range=[-0.5, 2.5])
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure


def distance_law(evidence: Sequence[Evidence]) -> go.Figure:
    """Draw |theta_t - theta_0| against t, log-log, with the fitted power law and logarithm.

    The power law is |theta_t - theta_0| = exp(b) t^(c/2) with the measured exponent c of the squared distance, the
    logarithm is s log t + b with the measured slope s; in both, b is the mean of what the slope leaves over the
    updates that are drawn.

    Args:
        evidence: the runs.

    Returns:
        The figure; for each run its distance (solid), power law (dashed) and logarithm (dotted).

    Raises:
        NotAvailableError: no run has a distance at two updates or more.
    """
    figure = go.Figure()
    for index, item in enumerate(evidence):
        t, distance = _distances(item)
        if len(t) < 2:
            continue
        name = html.escape(name_of(item))
        _law(figure, (t, distance), name, (PALETTE[index % len(PALETTE)], "solid"))
        figure.data[-1].update(
            mode="lines+markers", marker={"symbol": SYMBOLS[index % len(SYMBOLS)], "size": 7, "maxdisplayed": 12}
        )
        for label, fitted, dash in _fits(item, t, distance):
            _law(figure, (t, fitted), f"{name}: {label}", (PALETTE[index % len(PALETTE)], dash))
    if not figure.data:
        raise NotAvailableError("no run has a distance from the start at two updates or more")
    dress(figure, height=480)
    figure.update_layout(legend={"entrywidthmode": "fraction", "entrywidth": 0.32})  # one run a row
    figure.update_xaxes(title_text="updates since the start, t", **log_axis(figure, "x"))
    drawn = np.log10(np.concatenate([_distances(item)[1] for item in evidence]))
    figure.update_yaxes(range=[drawn.min() - 0.15, drawn.max() + 0.15])  # a logarithm goes to minus infinity on this axis
    figure.update_yaxes(title_text="|θ<sub>t</sub> − θ<sub>0</sub>| (units of θ)", **log_axis(figure, "y"))
    return figure


def _distances(item: Evidence) -> tuple[Array, Array]:
    """Time since the start and distance, thinned evenly in log t."""
    if "distance" not in item.steps or item.steps.sizes.get("step", 0) == 0:
        return np.zeros(0), np.zeros(0)
    t = item.steps["step"].values - item.steps["step"].values[0]
    distance = np.asarray(item.steps["distance"].values, float)
    keep = np.flatnonzero((t > 0) & np.isfinite(distance) & (distance > 0))
    if len(keep) > MOST_POINTS // 4:
        wanted = np.geomspace(t[keep[0]], t[keep[-1]], MOST_POINTS // 4)
        keep = keep[np.unique(np.searchsorted(t[keep], wanted).clip(max=len(keep) - 1))]
    return t[keep], distance[keep]


def _fits(item: Evidence, t: Array, distance: Array) -> list[tuple[str, Array, str]]:
    motion = item.measured.get("motion")
    exponent, slope, r2 = (number(motion, name) for name in ("distance_exponent", "log_slope", "log_r2"))
    fits = []
    if np.isfinite(exponent):
        offset = np.mean(np.log(distance) - exponent / 2 * np.log(t))
        fits.append((f"t<sup>{exponent / 2:.2f}</sup>", np.exp(offset) * t ** (exponent / 2), "dash"))
    if np.isfinite(slope):
        line = slope * np.log(t) + np.mean(distance - slope * np.log(t))
        quality = f", R² {r2:.2f}" if np.isfinite(r2) else ""
        fits.append((f"{slope:.2g} log t{quality}", np.where(line > 0, line, np.nan), "dot"))
    return fits


def _law(figure: go.Figure, points: tuple[Array, Array], name: str, style: tuple[str, str]) -> None:
    colour, dash = style
    solid = dash == "solid"
    line = {"color": colour, "dash": dash, "width": 2.4 if solid else 1.4}
    figure.add_trace(go.Scatter(x=points[0], y=points[1], mode="lines", name=name, line=line, opacity=1 if solid else 0.8))
