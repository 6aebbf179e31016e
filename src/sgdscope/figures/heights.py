"""The height at which gradient noise keeps the loss above its floor: predicted by three forms, beside the measured one."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import plotly.graph_objects as go
import xarray as xr

from sgdscope import theory
from sgdscope.errors import ArgumentError, NotAvailableError
from sgdscope.figures.look import BLUE, GREEN, LIGHT, ORANGE, PALETTE, PURPLE, Array, bars, column, dress, log_axis, need

ROUNDING = 1e-9  # of 1 - momentum, which comes from quotients of what was measured
NUMBER = "update %{x}: %{y:.4g}<extra></extra>"


def drawn(data: xr.Dataset, name: str, drawing: str) -> Array:
    """A variable over `step` for batches drawn one way.

    Args:
        data: a measurement of the noise.
        name: over `step` and `drawing`.
        drawing: ``with`` or ``without`` replacement.

    Returns:
        [step]; NaN where there is none.
    """
    if name not in data or drawing not in data["drawing"].values:
        return np.full(data.sizes["step"], np.nan)
    return np.array(data[name].sel(drawing=drawing).values, float)


def noise_batch_size(data: xr.Dataset, *, finite: bool = False) -> Array:
    """The batch size that the measurement used.

    B = Tr C / Tr C_B of batches with replacement; of finite data drawn without replacement the batch with replacement that is
    as noisy, B (N - 1) / (N - B), infinite for a batch of all examples.

    Args:
        data: a measurement of the noise.
        finite: correct for drawing without replacement, where N is known.

    Returns:
        [step], examples; NaN where it is not known.
    """
    trace, plain, less = column(data, "trace"), drawn(data, "batch_trace", "with"), drawn(data, "batch_trace", "without")
    with np.errstate(divide="ignore", invalid="ignore"):
        size, apart = trace / plain, trace / less
    return np.asarray(np.where(np.isnan(apart), size, apart) if finite else size)


def recorded(steps: xr.Dataset, name: str, at: Array) -> Array:
    """A scalar of the updates at some of them, or at the last recorded one before; NaN where none was recorded."""
    values = np.asarray(steps[name].values, float) if name in steps else np.zeros(0)
    if not len(values):
        return np.full(len(at), np.nan)
    places = np.searchsorted(steps["step"].values, at, side="right") - 1
    return np.asarray(np.where(places >= 0, values[np.maximum(places, 0)], np.nan))


@dataclass(frozen=True)
class Heights:
    """The height at which noise keeps the loss above its floor, predicted at each measured point; NaN where it is not known.

    Attributes:
        step: [step], the points.
        exact: [step], loss; Tr(H Sigma) / 2 of the law at this learning rate, in the K directions of H with positive curvature,
            and `sde` in the rest; NaN at or above the edge of stability.
        sde: [step], loss; lr Tr C / (4 B (1 - momentum)).
        three_factors: [step], loss; lr Tr H / (4 B (1 - momentum)).
        along: [step], loss; lr^2 (Tr(HC) / B + g'H g) / 8, a quarter of the second-order term along the update: the least mean
            height along an update of plain SGD; NaN with momentum.
        sharpness: [step], lr lambda_1.
    """

    step: Array
    exact: Array
    sde: Array
    three_factors: Array
    along: Array
    sharpness: Array


def predicted_heights(noise: xr.Dataset | None, steps: xr.Dataset) -> Heights:
    """Predict the height from the measured covariance and Hessian, by all three forms, and the height along one update.

    B is that of the measurement, for batches without replacement where N is known; learning rate and momentum as recorded,
    the momentum from the measured lr / (B (1 - momentum)).

    Args:
        noise: the measurement, with the Hessian.
        steps: the scalars of all updates.

    Returns:
        The heights.

    Raises:
        NotAvailableError: the noise was not measured.

    Source: `theory.excess_loss`; sharpest directions, section 4.1b. The height along an update: phi(alpha) = phi(0) + a_1 alpha
        + a_2 alpha^2 lies (phi(0) + phi(1)) / 2 - min phi = a_2 ((alpha* - 1/2)^2 + 1/4) above its floor, a_2 = d'H d / 2.
    """
    data = need(noise, "noise", "trace")
    at = np.asarray(data["step"].values)
    lr, size = recorded(steps, "lr", at), noise_batch_size(data, finite=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        left = lr / (noise_batch_size(data) * column(data, "learning_ratio"))  # 1 - momentum
        scale = lr / (4 * size * left)
        bend = column(data, "product_trace") / column(data, "curved_noise_scale")  # g'H g
        along = np.where(np.abs(left - 1) < ROUNDING, lr**2 * (column(data, "product_trace") / size + bend) / 8, np.nan)
    sde, sharpness, exact = scale * column(data, "trace"), lr * _top(data), np.full(len(at), np.nan)
    for place in range(len(at)):
        exact[place] = _exact(data, place, lr[place], size[place], left[place])
    return Heights(at, exact, sde, scale * column(data, "hessian_trace"), along, sharpness)


def _top(data: xr.Dataset) -> Array:
    if "curvature_eigenvalue" not in data:
        return np.full(data.sizes["step"], np.nan)
    return np.array(data["curvature_eigenvalue"].transpose("step", "rank").values[:, 0], float)


def _exact(data: xr.Dataset, place: int, lr: float, size: float, left: float) -> float:
    """The exact height in the measured directions, and the limit of small learning rates in the others."""
    if "curvature_eigenvalue" not in data or "element" not in data or not np.isfinite([lr, left]).all() or not size > 0:
        return math.nan
    curvature = data["curvature_eigenvalue"].transpose("step", "rank").values[place]
    element = data["element"].transpose("step", "rank", "other").values[place]
    held = np.isfinite(curvature) & (curvature > 0) & np.isfinite(np.diag(element))
    if not held.any():
        return math.nan
    inside = element[np.ix_(held, held)] / size
    rest = lr * (float(column(data, "trace")[place]) / size - float(np.trace(inside))) / (4 * left)
    momentum = max(0.0, 1 - left) if abs(left - 1) > ROUNDING else 0.0
    try:
        found = theory.excess_loss(np.diag(curvature[held]), (inside + inside.T) / 2, lr=lr, momentum=momentum)
    except ArgumentError:  # at or beyond the edge there is no stationary law
        return math.nan
    return found.exact + max(rest, 0.0)


FORMS = (
    ("exact", "E[L] − L*, exact", BLUE, "solid", "circle"),
    ("sde", "E[L] − L*, small lr: by Tr C", LIGHT, "dash", "square"),
    ("three_factors", "E[L] − L*, by Tr H", PURPLE, "dot", "diamond"),
    ("along", "along an update, at least", GREEN, "solid", "triangle-up"),
)
MEASURED = (
    ("mean_height", "measured along the updates", ORANGE, "circle"),
    ("height_projection", "measured above the floor", PALETTE[4], "star"),
    ("height_decay", "measured by decay", PALETTE[6], "star-open"),
)


def height_by_noise(noise: xr.Dataset | None, valley: xr.Dataset | None, steps: xr.Dataset) -> go.Figure:
    """Draw the predicted height of the loss above its floor beside the measured one.

    Args:
        noise: the measurement, with the Hessian.
        valley: the measurement of the valley.
        steps: the scalars of all updates.

    Returns:
        The figure, log y; lines are predictions at the measured points, markers what was measured in windows (their width).

    Raises:
        NotAvailableError: one of the two was not measured, or there is no noise.
    """
    held = need(valley, "valley", "mean_height", "window_first", "window_last")
    heights = predicted_heights(noise, steps)
    figure = go.Figure()
    for name, label, colour, dash, symbol in FORMS:
        values = np.asarray(getattr(heights, name))
        if (values > 0).any():
            text = [f"lr λ<sub>1</sub> = {one:.3g}" for one in heights.sharpness]
            style = {"line": {"color": colour, "width": 1.6, "dash": dash}, "marker": {"size": 7, "symbol": symbol}, "text": text}
            hover = "update %{x}: %{y:.4g}, %{text}<extra></extra>"
            y = np.where(values > 0, values, np.nan)
            figure.add_trace(go.Scatter(x=heights.step, y=y, mode="lines+markers", name=label, hovertemplate=hover, **style))
    if not any(trace.name in {label for _, label, *_ in FORMS[:3]} for trace in figure.data):
        words = "no height by noise is known: the batch holds all examples, or learning rate or batch size were not recorded"
        raise NotAvailableError(words)
    for name, label, colour, symbol in MEASURED:
        _heights(figure, held, name, (label, colour, symbol))
    dress(figure, height=440)
    figure.update_xaxes(title_text="update t")
    figure.update_yaxes(title_text="height above the floor (loss)", **log_axis(figure, "y"))
    return figure


def _heights(figure: go.Figure, held: xr.Dataset, name: str, style: tuple[str, str, str]) -> None:
    values = column(held, name, "window")
    if not (values > 0).any():
        return
    label, colour, symbol = style
    first, last = (held[f"window_{end}"].values.astype(float) for end in ("first", "last"))
    width = {"type": "data", "array": (last - first) / 2, "thickness": 1.2, "width": 0, "color": colour}
    error = bars(column(held, f"{name}_stderr", "window"))
    mark, y = {"color": colour, "size": 8, "symbol": symbol}, np.where(values > 0, values, np.nan)
    told = {"x": (first + last) / 2, "error_x": width, "error_y": error, "hovertemplate": NUMBER}
    figure.add_trace(go.Scatter(y=y, mode="markers", name=label, marker=mark, **told))
