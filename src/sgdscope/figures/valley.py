"""The three aligned panels of the paper, for one window of updates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import xarray as xr
from plotly.subplots import make_subplots

from sgdscope.errors import NotAvailableError
from sgdscope.figures.look import (
    BLUE,
    GREEN,
    NEUTRAL,
    ORANGE,
    PURPLE,
    Array,
    between,
    column,
    dress,
    mark_nonfinite,
    need,
)


def valley_walk(measured: Mapping[str, xr.Dataset], steps: xr.Dataset, window: tuple[int, int]) -> go.Figure:
    """Draw the three aligned panels of one window: loss along the path, cosine of gradients, distance from the start.

    Panel 1 shows phi_t(alpha) = L(theta_t + alpha d_t) at x = t + alpha for alpha in [0, 1]: the measured curve of the
    update, or, where none was measured, its parabola L(theta_t) + a1 alpha + a2 alpha^2. The iterates are marked. The
    floor joins the lowest point of each update as it is drawn (inside, the vertex of the parabola through the lowest point
    of the curve and its neighbours), and is marked where that lies strictly between the ends.
    Panel 2 shows cos(g_{t-1}, g_t), panel 3 |theta_t - theta_0|, both at x = t.

    Args:
        measured: group -> dataset; ``"valley"`` is needed, ``"motion"`` adds the predicted cosine.
        steps: the scalars of all updates.
        window: (first point, last point).

    Returns:
        The figure, three rows with one x axis.

    Raises:
        NotAvailableError: the valley was not measured in this window.

    Source:
        Xing et al. 2018, figures 1 and 2.
    """
    first, last = window
    valley = between(need(measured.get("valley"), "valley", "loss_start", "alpha_star"), "step", first, last - 1)
    if valley.sizes.get("step", 0) == 0:
        raise NotAvailableError(f"the valley was not measured in updates {first} to {last - 1}")
    segments = _segments(valley)
    figure = make_subplots(rows=3, cols=1, shared_xaxes=True, vertical_spacing=0.04, row_heights=[0.5, 0.25, 0.25])
    for trace in [*_paths(segments), _floor(valley, segments), _iterates(valley)]:
        figure.add_trace(trace, row=1, col=1)
    inside = between(steps, "step", first, last)
    _panel(figure, 2, inside, "gradient_cosine", ("cos(g<sub>t−1</sub>, g<sub>t</sub>)", PURPLE))
    _panel(figure, 3, inside, "distance", ("|θ<sub>t</sub> − θ<sub>0</sub>|", BLUE))
    figure.add_hline(y=0, line={"color": NEUTRAL, "width": 1}, row=2, col=1)
    _predicted_cosine(figure, measured.get("motion"), window)
    mark_nonfinite(figure, inside, rows=1)
    dress(figure, height=760)
    figure.update_yaxes(title_text="loss", row=1, col=1)
    figure.update_yaxes(title_text="cosine of consecutive<br>gradients", row=2, col=1)
    figure.update_yaxes(title_text="distance from start<br>(units of θ)", row=3, col=1)
    figure.update_xaxes(range=[first - 0.5, last + 0.5])
    figure.update_xaxes(title_text="update t, with the fraction α along each step", row=3, col=1)
    return figure


@dataclass(frozen=True)
class _Segment:
    """The loss along one update as it is drawn, for alpha in [0, 1]; `measured` or the parabola."""

    step: int
    alphas: Array
    values: Array
    measured: bool

    def floor(self) -> tuple[float, float]:
        """Alpha and loss of the lowest point; inside, the vertex of the parabola through the lowest node and its neighbours."""
        if not np.isfinite(self.values).any():
            return np.nan, np.nan
        lowest = int(np.nanargmin(self.values))
        if lowest in {0, len(self.values) - 1}:
            return float(self.alphas[lowest]), float(self.values[lowest])
        (a, b, c), (u, v, w) = self.alphas[lowest - 1 : lowest + 2], self.values[lowest - 1 : lowest + 2]
        left, right = (v - u) / (b - a), (w - v) / (c - b)
        bend = (right - left) / (c - a)
        if not bend > 0:
            return float(b), float(v)
        vertex = (a + b) / 2 - left / (2 * bend)
        return float(vertex), float(v - bend * (vertex - b) ** 2)


def _segments(valley: xr.Dataset) -> list[_Segment]:
    curves, grid = _curves(valley), np.linspace(0.0, 1.0, 11)
    start, a1, a2 = (column(valley, name) for name in ("loss_start", "a1", "a2"))
    end, segments = _loss_end(valley), []
    for index, step in enumerate(valley["step"].values):
        alphas, values = grid, start[index] + a1[index] * grid + a2[index] * grid**2
        if measured := int(step) in curves:
            nodes, losses = curves[int(step)]
            inside = (nodes > 0) & (nodes < 1) & np.isfinite(losses)
            alphas = np.concatenate([[0.0], nodes[inside], [1.0]])
            values = np.concatenate([[start[index]], losses[inside], [end[index]]])
        segments.append(_Segment(int(step), alphas, values, measured))
    return segments


def _paths(segments: Sequence[_Segment]) -> list[go.Scatter]:
    """The interpolated loss: measured curves, and parabolas where there are none; gaps where neither is known."""
    traces: dict[bool, tuple[list[float], list[float]]] = {True: ([], []), False: ([], [])}
    for segment in segments:
        xs, ys = traces[segment.measured]
        if xs and xs[-1] != segment.step:
            xs.append(float(segment.step))
            ys.append(np.nan)
        xs += (segment.step + segment.alphas).tolist()
        ys += segment.values.tolist()
    names = {True: "loss along the step (measured)", False: "loss along the step (parabola through three points)"}
    return [
        go.Scatter(x=np.array(xs), y=np.array(ys), mode="lines", name=names[measured], line={"color": BLUE, "width": 1.6})
        for measured, (xs, ys) in traces.items()
        if xs
    ]


def _curves(valley: xr.Dataset) -> dict[int, tuple[Array, Array]]:
    if "curve" not in valley or "alpha" not in valley["curve"].dims:
        return {}
    alphas = np.asarray(valley["alpha"].values, float)
    curve = valley["curve"].transpose("step_curve", "alpha").values
    return {int(s): (alphas, row) for s, row in zip(valley["step_curve"].values, curve, strict=True) if np.isfinite(row).any()}


def _loss_end(valley: xr.Dataset) -> Array:
    """phi(1) of each update: measured, else the parabola's."""
    modelled = column(valley, "loss_start") + column(valley, "a1") + column(valley, "a2")
    return np.where(np.isfinite(column(valley, "loss_end")), column(valley, "loss_end"), modelled)


def _floor(valley: xr.Dataset, segments: Sequence[_Segment]) -> go.Scatter:
    """The lowest point of each update as it is drawn; at an end where it is not strictly between."""
    alpha, lowest = np.array([segment.floor() for segment in segments]).T
    inside = (alpha > 0) & (alpha < 1)
    return go.Scatter(
        x=valley["step"].values + alpha,
        y=lowest,
        mode="lines+markers",
        name="valley floor (lowest point of each step, marked where inside)",
        line={"color": ORANGE, "width": 1.2, "dash": "dot"},
        marker={"color": ORANGE, "size": 6, "symbol": "triangle-up", "opacity": inside.astype(float)},
        customdata=np.stack([column(valley, "alpha_star"), column(valley, "height")], axis=-1),
        hovertemplate="floor %{y:.4g}; α* %{customdata[0]:.3g}, height %{customdata[1]:.3g} by the parabola<extra></extra>",
    )


def _iterates(valley: xr.Dataset) -> go.Scatter:
    steps = valley["step"].values
    return go.Scatter(
        x=np.append(steps, steps[-1] + 1),
        y=np.append(column(valley, "loss_start"), _loss_end(valley)[-1]),
        mode="markers",
        name="iterates θ<sub>t</sub>",
        marker={"color": BLUE, "size": 6.5, "line": {"color": "rgba(255,255,255,0.8)", "width": 0.8}},
        hovertemplate="update %{x}: loss %{y:.5g}<extra></extra>",
    )


def _panel(figure: go.Figure, row: int, steps: xr.Dataset, name: str, style: tuple[str, str]) -> None:
    label, colour = style
    if name not in steps or not np.isfinite(steps[name].values).any():
        text = f"not recorded: {name}"
        figure.add_annotation(text=text, x=0.5, y=0.5, xref="x domain", yref="y domain", showarrow=False, row=row, col=1)
        return
    figure.add_trace(
        go.Scatter(
            x=steps["step"].values,
            y=steps[name].values,
            mode="lines+markers",
            name=label,
            showlegend=False,
            line={"color": colour, "width": 1.3},
            marker={"size": 4.5},
            hovertemplate="update %{x}: %{y:.4g}<extra></extra>",
        ),
        row=row,
        col=1,
    )


def _predicted_cosine(figure: go.Figure, motion: xr.Dataset | None, window: tuple[int, int]) -> None:
    if motion is None or "gradient_cosine_predicted" not in motion or "window_first" not in motion:
        return
    hit = np.flatnonzero(np.asarray(motion["window_first"].values) == window[0])
    predicted = float(motion["gradient_cosine_predicted"].values[hit[0]]) if len(hit) else np.nan
    if -1 <= predicted <= 1:  # far from stationary the law predicts what no cosine can be
        trace = go.Scatter(
            x=[window[0], window[1]],
            y=[predicted, predicted],
            mode="lines",
            name=f"mean cosine if stationary, −|∇L|²/E|g|² = {predicted:.2g}".replace("-", "−"),
            line={"color": GREEN, "width": 1.5, "dash": "dash"},
        )
        figure.add_trace(trace, row=2, col=1)
