"""Who can send to whom: undirected graphs of nodes, and how fast a random walk forgets where it started on them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from scipy.sparse import csgraph

from sgdscope.errors import ArgumentError
from sgdscope.ranges import whole


@dataclass(frozen=True)
class Graph:
    """An undirected, connected graph without loops.

    Attributes:
        neighbours: one array a node, ascending.

    Raises:
        ArgumentError: it is not connected, not symmetric, or names nodes that are not there.
    """

    neighbours: tuple[NDArray[np.int64], ...]

    def __post_init__(self) -> None:
        whole("nodes", len(self), 2)
        matrix = self.adjacency()
        if abs(matrix - matrix.T).nnz:
            raise ArgumentError("neighbours: expected an undirected graph, and one node has a neighbour that has not it")
        parts, label = csgraph.connected_components(matrix, directed=False)
        if parts > 1:
            far = int(np.argmax(label != label[0]))
            raise ArgumentError(
                f"graph: expected a connected one, got {parts} parts (no path from node 0 to node {far}); "
                "give each node more neighbours, or take the largest part alone"
            )

    def __len__(self) -> int:
        """The number of nodes."""
        return len(self.neighbours)

    @property
    def degrees(self) -> NDArray[np.int64]:
        """How many neighbours each node has."""
        return np.array([len(own) for own in self.neighbours])

    def adjacency(self) -> sparse.csr_array:
        """The matrix with a one for each pair of neighbours."""
        ends = np.concatenate([[0], np.cumsum(self.degrees)])
        columns = np.concatenate(self.neighbours) if ends[-1] else np.zeros(0, np.int64)
        if len(columns) and not (columns.min() >= 0 and columns.max() < len(self)):
            raise ArgumentError(f"neighbours: expected nodes 0..{len(self) - 1}, got {columns.min()} to {columns.max()}")
        return sparse.csr_array((np.ones(len(columns)), columns, ends), shape=(len(self), len(self)))

    def transition(self) -> NDArray[np.float64]:
        """P of the uniform random walk: P_ij = 1 / degree_i for neighbours; dense."""
        return np.asarray(self.adjacency().toarray() / self.degrees[:, None], np.float64)

    def stationary(self) -> NDArray[np.float64]:
        """How often a long walk is at each node: degree_i / sum of degrees, 1 / n on a regular graph."""
        return np.asarray(self.degrees / self.degrees.sum(), np.float64)

    def spectral_gap(self) -> float:
        """How fast a walk forgets where it started: its place approaches the stationary one like (1 - gap)^t.

        Returns:
            1 - max |lambda| over the eigenvalues of P but the first.

        Cost: a dense eigenvalue problem of the number of nodes.
        """
        root = np.sqrt(self.degrees)
        values = np.linalg.eigvalsh(self.transition() * root[:, None] / root[None, :])
        return float(1 - np.abs(values[:-1]).max())


def from_edges(nodes: int, edges: Iterable[tuple[int, int]]) -> Graph:
    """Make a graph from pairs of nodes.

    Args:
        nodes: how many, >= 2.
        edges: pairs of different nodes, in either order.

    Returns:
        The graph.

    Raises:
        ArgumentError: it is not connected, or an edge leads nowhere.
    """
    sets: list[set[int]] = [set() for _ in range(whole("nodes", nodes, 2))]
    for a, b in edges:
        if not (0 <= a < nodes and 0 <= b < nodes) or a == b:
            raise ArgumentError(f"edges: expected pairs of different nodes 0..{nodes - 1}, got ({a}, {b})")
        sets[a].add(b)
        sets[b].add(a)
    return Graph(tuple(np.array(sorted(own), np.int64) for own in sets))


def ring(nodes: int, degree: int = 2) -> Graph:
    """Place the nodes on a ring, each a neighbour of the nearest degree / 2 on both sides: every node sees the same.

    Args:
        nodes: n > degree.
        degree: d >= 2, even.

    Returns:
        The graph; the eigenvalues of P are (2 / d) sum_m cos(2 pi j m / n), m = 1..d / 2, j = 0..n - 1.

    Raises:
        ArgumentError: out of range.
    """
    if whole("degree", degree, 2) % 2 or degree >= whole("nodes", nodes, 3):
        raise ArgumentError(f"degree: expected an even number below the {nodes} nodes, got {degree}")
    steps = np.r_[1 : degree // 2 + 1]
    return Graph(tuple(np.unique((i + np.concatenate([steps, -steps])) % nodes) for i in range(nodes)))


def random_out(nodes: int, degree: int, generator: torch.Generator) -> Graph:
    """Wire each node to `degree` others drawn at random; who is wired to can send back.

    Args:
        nodes: n > degree.
        degree: k >= 1 drawn by each node; it has between k and n - 1 neighbours, 2 k on average.
        generator: on the CPU.

    Returns:
        The graph.

    Raises:
        ArgumentError: out of range, or the draw is not connected.

    Source: the overlay of the released code, WireKOut with k = 50.
    """
    if whole("degree", degree, 1) >= whole("nodes", nodes, 2):
        raise ArgumentError(f"degree: expected a number below the {nodes} nodes, got {degree}")
    targets = np.empty((nodes, degree), np.int64)
    for i in range(nodes):
        drawn: set[int] = set()
        while len(drawn) < degree:  # 1 + the others, shifted round the ring so that nobody draws itself
            drawn |= set(torch.randint(1, nodes, (degree - len(drawn),), generator=generator).tolist())
        targets[i] = (i + np.array(sorted(drawn))) % nodes
    pairs = sparse.coo_array((np.ones(nodes * degree), (np.repeat(np.arange(nodes), degree), targets.ravel())), (nodes, nodes))
    both = sparse.csr_array(pairs + pairs.T)
    both.sort_indices()
    return Graph(tuple(np.asarray(own, np.int64) for own in np.split(both.indices, both.indptr[1:-1])))
