"""The loss along the segments between the members of an ensemble."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import plotly.graph_objects as go

from sgdscope.errors import NotAvailableError
from sgdscope.figures.look import PALETTE, dress


def segments(told: Mapping[str, Any]) -> go.Figure:
    """Draw the loss from each member to the next one; a barrier is a hump above both ends.

    Args:
        told: what ``ensemble.json`` holds: ``segments``, each with ``from``, ``to`` and ``losses``, and ``alphas``.

    Returns:
        The figure, one line a segment.

    Raises:
        NotAvailableError: there are no two members.
    """
    found = told.get("segments") or []
    if not found:
        raise NotAvailableError("a segment needs two members that were not lost")
    figure = go.Figure()
    for index, segment in enumerate(found):
        name, line = f"member {segment['from']} to {segment['to']}", {"color": PALETTE[index % len(PALETTE)], "width": 1.5}
        figure.add_trace(go.Scatter(x=told["alphas"], y=segment["losses"], mode="lines", name=name, line=line))
    dress(figure, height=340)
    figure.update_xaxes(title_text="way from one member to the next")
    figure.update_yaxes(title_text="training loss")
    return figure
