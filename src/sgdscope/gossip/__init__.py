"""One model that walks over nodes with a record each: who reaches whom, and the rules that keep one walk alive, simulated."""

from sgdscope.gossip.graphs import Graph, from_edges, random_out, ring
from sgdscope.gossip.protocol import LIMIT, Patience, Summary, goes_on, newer
from sgdscope.gossip.simulation import Faults, simulate
from sgdscope.gossip.traces import Life, Trace

__all__ = [
    "LIMIT",
    "Faults",
    "Graph",
    "Life",
    "Patience",
    "Summary",
    "Trace",
    "from_edges",
    "goes_on",
    "newer",
    "random_out",
    "ring",
    "simulate",
]
