"""What a step of SGD does along the sharpest directions: loss after it, cross-sections of the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from sgdscope.figures.look import (
    GREY,
    LIGHT,
    NEUTRAL,
    PALETTE,
    SYMBOLS,
    Array,
    bars,
    beside,
    column,
    dress_beside,
    log_axis,
    need,
)

DIRECTIONS = 5  # single directions that are drawn
OTHERS = {
    "random": ("random direction", GREY, "dot"),
    "dominant": ("part in the K directions", LIGHT, "solid"),
    "bulk": ("part outside", LIGHT, "dash"),
    "full": ("full step", GREY, "solid"),
}


def step_effect(sharpest: xr.Dataset | None) -> go.Figure:
    """Draw the loss after a step of alpha lr along single directions, one panel a point: L(theta - alpha lr v) / L(theta) - 1.

    At most three measured points: the first, the middle and the last. Bars are 1.96 standard errors over the mini-batches;
    triangles on the zero line are alpha*, the step that would have been best. Each panel has its own axis,
    which ends where no step of alpha <= 1 is cut.

    Args:
        sharpest: the measurement, with effects.

    Returns:
        The figure; the parts within and outside of the K directions are there, hidden until chosen in the legend.

    Raises:
        NotAvailableError: no effect was measured.
    """
    data = need(sharpest, "sharpest", "effect", "alpha_star")
    figure, chosen = beside(data, "effect", shared=False)
    effect = data["effect"].transpose("step", "arm", "alpha")
    alphas = np.asarray(data["alpha"].values, float)
    for col, index in enumerate(chosen, start=1):
        for place, arm in enumerate(str(name) for name in data["arm"].values):
            if arm in OTHERS or place < DIRECTIONS:
                figure.add_traces(_arm(data, (index, place), arm, col == 1), rows=1, cols=col)
    figure.add_hline(y=0, line={"color": NEUTRAL, "width": 1})
    dress_beside(figure, height=430)
    ticks = [0.0, *(a for a in alphas if a >= 0.5)]  # the smaller ones would lie on each other
    figure.update_xaxes(title_text="α (1 = the step of SGD)", tickvals=ticks)
    for col, index in enumerate(chosen, start=1):
        figure.update_yaxes(range=_effect_range(effect.values[index], alphas), tickformat="~%", row=1, col=col)
    figure.update_yaxes(title_text="change of the loss by the step", row=1, col=1)
    return figure


def _effect_range(effects: Array, alphas: Array) -> list[float]:
    """From the lowest effect to the highest of a step that is no longer than SGD's, with some room."""
    near = effects[:, alphas <= 1]
    low, high = min(0.0, float(np.nanmin(effects))), max(0.0, float(np.nanmax(near)) if np.isfinite(near).any() else 0.0)
    room = max(high - low, 1e-12)
    return [low - 0.15 * room, high + 0.25 * room]


def _arm(data: xr.Dataset, at: tuple[int, int], arm: str, legend: bool) -> list[go.Scatter]:
    """The effects along one arm at one point, and its alpha* where it lies on the axis."""
    effects, alphas = (data[name].transpose("step", "arm", ...).values[at] for name in ("effect", "alpha_star"))
    x = np.append(0.0, np.asarray(data["alpha"].values, float))
    label, colour, dash = OTHERS.get(arm) or (f"e<sub>{arm[1:]}</sub>", PALETTE[at[1]], "solid")
    symbol = "circle" if arm in OTHERS else SYMBOLS[at[1]]
    hidden: Any = "legendonly" if arm in {"dominant", "bulk"} else True
    hover = f"{label}: %{{y:+.3%}} at α = %{{x:.3g}}<extra></extra>"
    told = {"name": label, "legendgroup": arm, "visible": hidden, "hovertemplate": hover}
    error = data["effect_stderr"].transpose("step", "arm", ...).values[at] if "effect_stderr" in data else 0 * effects
    line = {"color": colour, "dash": dash, "width": 2.4 if arm == "full" else 1.4}
    style = {"mode": "lines+markers", "line": line, "marker": {"size": 5, "symbol": symbol}, "showlegend": legend}
    drawn = [go.Scatter(x=x, y=np.append(0.0, effects), error_y=bars(np.append(0.0, error)), **style, **told)]
    if 0 <= alphas <= x.max():
        told["hovertemplate"] = f"{label}: α* = %{{x:.3g}}<extra></extra>"
        mark = {"color": colour, "symbol": "triangle-up", "size": 9}
        drawn.append(go.Scatter(x=[float(alphas)], y=[0.0], mode="markers", showlegend=False, marker=mark, **told))
    return drawn


def cross_sections(sharpest: xr.Dataset | None) -> go.Figure:
    """Draw the loss along single directions in units of one SGD step, L(theta + k s_i e_i), with its widths.

    At most three measured points, one panel each. Circles are the ends of the widths: the first crossings of each level.

    Args:
        sharpest: the measurement, with sections.

    Returns:
        The figure, log y where all losses are positive; one trace a direction, one of the widths.

    Raises:
        NotAvailableError: no cross-section was measured.
    """
    data = need(sharpest, "sharpest", "section")
    figure, chosen = beside(data, "section")
    sections = np.asarray(data["section"].transpose("step", "cross", "position").values, float)
    positions = np.asarray(data["position"].values, float)
    for col, index in enumerate(chosen, start=1):
        for place, rank in enumerate(data["cross"].values):
            if not np.isfinite(sections[index, place]).any():
                continue
            colour, name = PALETTE[(int(rank) - 1) % len(PALETTE)], f"e<sub>{rank}</sub>"
            curves = [(positions, sections[index, place], name), (*_ends(data, index, place), f"widths along {name}")]
            styles: tuple[dict[str, Any], ...] = (
                {"mode": "lines"},
                {"mode": "markers", "marker": {"symbol": "circle-open", "size": 7}},
            )
            for (x, y, label), style in zip(curves, styles, strict=True):
                told = {"name": label, "legendgroup": name, "showlegend": col == 1 and label == name, "marker_color": colour}
                hover = f"{label}: loss %{{y:.4g}} at k = %{{x:.3g}}<extra></extra>"
                figure.add_trace(go.Scatter(x=x, y=y, line_color=colour, hovertemplate=hover, **style, **told), row=1, col=col)
    figure.add_vline(x=-1, line={"color": NEUTRAL, "width": 1, "dash": "dot"})
    dress_beside(figure, height=430)
    figure.update_xaxes(title_text="k, in mean steps s<sub>i</sub> of SGD (it steps to k = −1)")
    drawn = sections[chosen]
    if np.nanmin(drawn) > 0:
        figure.update_yaxes(**log_axis(figure, "y"))
    figure.update_yaxes(title_text="loss", row=1, col=1)
    return figure


def _ends(data: xr.Dataset, index: int, place: int) -> tuple[Array, Array]:
    """Where the loss first comes to each level, left and right of the point: k and loss."""
    if "width" not in data:
        return np.zeros(0), np.zeros(0)
    widths = data["width"].isel(step=index, cross=place).transpose("level", "side")
    names = [str(side) for side in data["side"].values]
    heights = np.asarray(data["level"].values, float) * column(data, "subset_loss" if "subset_loss" in data else "loss")[index]
    left, right = (np.asarray(widths.values[:, names.index(side)], float) for side in ("left", "right"))
    k, y = np.concatenate([-left, right]), np.concatenate([heights, heights])
    return k[np.isfinite(k)], y[np.isfinite(k)]
