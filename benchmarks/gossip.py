"""What the walk service costs: 10,000 nodes over 100 cycles, in seconds and GiB."""

import resource
import time

import torch

from sgdscope.gossip import Faults, random_out, simulate

NODES, DEGREE, CYCLES = 10_000, 50, 100
SETTING = f"{NODES} nodes, {DEGREE}-out, {CYCLES} cycles, loss 5 %, 80 % online, one core"


def rows():
    """Rows for the table of benchmarks; the numbers are absolute, not ratios.

    Returns:
        Seconds with the wiring of the graph, and the largest resident memory of the process.
    """
    torch.set_num_threads(1)
    start = time.perf_counter()
    graph = random_out(NODES, DEGREE, torch.Generator().manual_seed(1))
    simulate(graph, torch.Generator().manual_seed(2), cycles=CYCLES, faults=Faults(survive=0.95, online=0.8))
    seconds = time.perf_counter() - start
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    return [
        {"what": "walk service, seconds", "ratio": seconds, "aim": "<= 60 s", "setting": SETTING},
        {"what": "walk service, GiB resident", "ratio": memory, "aim": "<= 1 GiB", "setting": SETTING},
    ]
