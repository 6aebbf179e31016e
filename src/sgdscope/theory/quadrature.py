"""Panels of Gauss points over which an exponent changes little, and running integrals within them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np

from sgdscope.errors import ArgumentError
from sgdscope.theory.inputs import Array

NODES = 8  # of Gauss-Legendre a panel
CHANGE = 0.5  # of Phi over a panel, so that exp(-Phi) is a polynomial of degree 7 to 1e-12
LEAST, MOST = 200, 200_000  # panels
SAMPLES = 4001  # of |Phi'|, to lay out the panels

Function = Callable[[Array], Array]


def panels(slope: Function, points: Sequence[float], breaks: Sequence[float] = ()) -> Array:
    """Edges of panels over each of which Phi changes by at most about `CHANGE`, denser where it changes fast.

    Args:
        slope: Phi'(x), of arrays.
        points: the first and the last are the ends, those between become edges.
        breaks: further edges, those inside the ends count.

    Returns:
        Edges [panels + 1], increasing.

    Raises:
        ArgumentError: Phi changes so fast that it would take more than `MOST` panels.
    """
    low_end, high_end = min(points), max(points)
    edges = []
    for low, high in pairwise(sorted({*points, *(b for b in breaks if low_end < b < high_end)})):
        middle = (np.arange(SAMPLES) + 0.5) / SAMPLES * (high - low) + low
        steep = np.abs(slope(middle)) * (high - low) / SAMPLES
        total = float(steep.sum())
        if not total < MOST * CHANGE:
            raise ArgumentError(f"gradient: L' / D changes by {total:.3g} between {low:.6g} and {high:.6g}; move the ends nearer")
        count = max(LEAST, math.ceil(total / CHANGE))
        grown = np.concatenate([[0.0], np.cumsum(steep + max(total, 1.0) / SAMPLES)])  # half by change, half by length
        ladder = np.linspace(low, high, SAMPLES + 1)
        edges.append(np.interp(np.linspace(0, grown[-1], 2 * count + 1), grown, ladder)[:-1])
    return np.concatenate([*edges, [high_end]])


def gauss() -> tuple[Array, Array, Array]:
    """Nodes and weights of Gauss-Legendre on [-1, 1], and the matrix that integrates from -1 to each node.

    Returns:
        (nodes [n], weights [n], running [n, n]), exact for polynomials of degree 2 n - 1, and n - 1 for the running integral.
    """
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    at = np.polynomial.legendre.legvander(nodes, NODES)  # [node, degree]
    degree = np.arange(1, NODES)
    integral = np.empty((NODES, NODES))
    integral[:, 0] = nodes + 1
    integral[:, 1:] = (at[:, 2:] - at[:, :-2]) / (2 * degree + 1)
    return nodes, weights, integral @ (at[:, :NODES] * weights[:, None] * (2 * np.arange(NODES) + 1) / 2).T


def climb(slope: Function, edges: Array) -> tuple[Array, Array, Array]:
    """The nodes of all panels, their weights, and Phi at them, Phi = 0 at the first edge.

    Args:
        slope: Phi'(x), of arrays.
        edges: [panels + 1].

    Returns:
        (positions, weights, Phi), each [panels, nodes].
    """
    nodes, weights, running = gauss()
    half = np.diff(edges)[:, None] / 2
    positions = edges[:-1, None] + half * (nodes + 1)
    steep = slope(positions)
    left = np.concatenate([[0.0], np.cumsum((half * steep) @ weights)])[:-1, None]
    return positions, half * weights, left + half * (steep @ running.T)
