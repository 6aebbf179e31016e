"""The curvature of several runs together: their paths, and where they end against the held-out accuracy."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go
from plotly.subplots import make_subplots

from sgdscope.contracts import Evidence
from sgdscope.errors import NotAvailableError
from sgdscope.evidence.endpoints import last_accuracy
from sgdscope.evidence.sharpness import path
from sgdscope.figures.look import PALETTE, SYMBOLS, dress, log_axis, name_of
from sgdscope.figures.series import user_series

ENDS = "%{text}<br>λ<sub>1</sub> %{x:.4g}, accuracy %{y:.2%}<extra></extra>"


def gamma_of(item: Evidence) -> float | None:
    """The factor of the steps along the sharpest directions: as set in the run or its first phase; 1 for plain SGD.

    Args:
        item: the run.

    Returns:
        gamma; None where the walker is neither sgd nor nudged.
    """
    experiment = item.settings.get("experiment")
    phases = experiment.get("phases") if isinstance(experiment, Mapping) else None
    told = {**(phases[0] if phases else {}), **item.settings}
    if str(told.get("walker", "sgd")).lower() == "nudged":
        return float(told.get("gamma", 0.1))
    return 1.0 if str(told.get("walker", "sgd")).lower() == "sgd" else None


def nudged(evidence: Sequence[Evidence]) -> bool:
    """Whether the runs differ in gamma."""
    return len({gamma_of(item) for item in evidence} - {None}) > 1


def sharpness_paths(evidence: Sequence[Evidence]) -> go.Figure:
    """Draw lambda_1 over the updates for each run, and the training loss at the same points below.

    Where the runs differ in gamma of Nudged-SGD, colours are gammas, else runs.

    Args:
        evidence: the runs.

    Returns:
        The figure; two traces a run.

    Raises:
        NotAvailableError: lambda_1 was measured in no run.
    """
    found = [(item, path(item)) for item in evidence]
    found = [(item, way) for item, way in found if len(way.steps)]
    if not found:
        raise NotAvailableError("the curvature was measured in no run: sgdscope measure RUN curvature gives it")
    labels = [_label(item, nudged(evidence)) for item, _ in found]
    looks = {label: place % len(PALETTE) for place, label in enumerate(dict.fromkeys(labels))}
    figure = make_subplots(rows=2, cols=1, shared_xaxes=True, vertical_spacing=0.05, row_heights=[0.6, 0.4])
    for place, ((item, way), label) in enumerate(zip(found, labels, strict=True)):
        mark = {"size": 6, "symbol": SYMBOLS[looks[label]]}
        style = {"line": {"color": PALETTE[looks[label]], "width": 1.6}, "marker": mark, "legendgroup": label, "name": label}
        text = html.escape(name_of(item))
        for row, values in enumerate((way.values, way.losses), start=1):
            hover = f"{text}, update %{{x}}: %{{y:.4g}}<extra></extra>"
            new = row == 1 and label not in labels[:place]
            trace = go.Scatter(x=way.steps, y=values, mode="lines+markers", showlegend=new, hovertemplate=hover, **style)
            figure.add_trace(trace, row=row, col=1)
    dress(figure, height=520)
    figure.update_yaxes(title_text="λ<sub>1</sub> (loss/θ²)", rangemode="tozero", row=1, col=1)
    figure.update_yaxes(title_text="training loss", row=2, col=1)
    figure.update_xaxes(title_text="update t", row=2, col=1)
    return figure


def _label(item: Evidence, by_gamma: bool) -> str:
    gamma = gamma_of(item) if by_gamma else None
    return html.escape(name_of(item)) if gamma is None else f"γ = {gamma:g}" + (" (plain SGD)" if gamma == 1 else "")


def sharpness_against_accuracy(evidence: Sequence[Evidence]) -> go.Figure:
    """Draw the held-out accuracy at the end against lambda_1 at its last measured point, one marker a run.

    The accuracy is that which the checks observe, else the last value of a series ``test_accuracy`` that the user logged.

    Args:
        evidence: the runs.

    Returns:
        The figure; one trace for each gamma, or run.

    Raises:
        NotAvailableError: fewer than two runs have both.
    """
    rows: dict[str, list[tuple[float, float, str]]] = {}
    for item in evidence:
        way, right = path(item), accuracy_of(item)
        if len(way.steps) and np.isfinite(right):
            told = (float(way.values[-1]), right, html.escape(name_of(item)))
            rows.setdefault(_label(item, nudged(evidence)), []).append(told)
    if sum(len(own) for own in rows.values()) < 2:
        raise NotAvailableError("fewer than two runs have both a measured curvature and a held-out accuracy")
    figure = go.Figure()
    for place, (label, own) in enumerate(rows.items()):
        x, y, text = zip(*own, strict=True)
        mark = {"size": 9, "color": PALETTE[place % len(PALETTE)]}
        figure.add_trace(go.Scatter(x=x, y=y, text=text, mode="markers", name=label, marker=mark, hovertemplate=ENDS))
    dress(figure, height=400)
    figure.update_xaxes(title_text="λ<sub>1</sub> at the last measured point (loss/θ²)", **log_axis(figure, "x"))
    figure.update_yaxes(title_text="held-out accuracy at the end", tickformat=".1%")
    return figure


def accuracy_of(item: Evidence) -> float:
    """The held-out accuracy at the end of a run; NaN if none is at hand."""
    observed = last_accuracy(item)
    if np.isfinite(observed) or "test_accuracy" not in user_series(item.steps):
        return observed
    logged = np.asarray(item.steps["test_accuracy"].values, float)
    return float(logged[np.isfinite(logged)][-1]) if np.isfinite(logged).any() else float("nan")
