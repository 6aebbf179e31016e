"""The walk service over real processes on loopback, one of which dies in the middle."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from sgdscope.errors import ArgumentError
from sgdscope.gossip.processes import serve

NODE = """
import json, os, sys, time
import torch, torch.distributed as dist
from sgdscope.gossip.processes import serve
torch.set_num_threads(1)
dist.init_process_group("gloo")
rank, began = dist.get_rank(), None
cycles, dies = float(sys.argv[2]), int(sys.argv[3])

def update(theta, step):
    global began
    began = began or time.monotonic()
    if rank == dies and step > 12:
        os._exit(0)                                   # with the walk in its hands
    return theta - 0.3 * (theta - torch.tensor([float(rank), 1.0]))

survive = float(sys.argv[4]) if len(sys.argv) > 4 else 1.0
limit = 8.0 if dies >= 0 or survive < 1 else 1000.0
done = serve(update, torch.zeros(2), cycles=cycles, cycle=0.025, limit=limit, survive=survive)
told = {"visits": done.visits, "known": list(done.known), "theta": done.theta and [done.theta[0], done.theta[1].tolist()],
        "restarts": done.restarts, "ended": done.ended, "gone": done.gone}
with open(sys.argv[1] + f"/{rank}.json", "w") as file:
    json.dump(told, file)
os._exit(0)                                           # the group may be broken: one of it is dead
"""
PLACE = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "USE_LIBUV": "0"}


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def served(folder, count, *arguments):
    """Return codes and errors of so many nodes."""
    script = folder / "node.py"
    script.write_text(NODE)
    shared = os.environ | PLACE | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(count)}
    command = [sys.executable, str(script), str(folder), *arguments]
    processes = [subprocess.Popen(command, env=shared | {"RANK": str(r)}, stderr=subprocess.PIPE) for r in range(count)]
    errors = [p.communicate(timeout=90)[1].decode() for p in processes]
    return [p.returncode for p in processes], errors


def test_the_walk_outlives_the_process_that_held_it(tmp_path):
    began = time.monotonic()
    codes, errors = served(tmp_path, 4, "120", "2")
    assert codes == [0] * 4, errors
    told = {r: json.loads(Path(tmp_path / f"{r}.json").read_text()) for r in (0, 1, 3)}
    assert not (tmp_path / "2.json").exists()
    assert all(2 in one["gone"] for one in told.values())  # and, at the end, those that finished before this one
    visits = sorted((*v, r) for r, one in told.items() for v in one["visits"])
    steps = [v[1] for v in visits]
    assert sum(one["restarts"] for one in told.values()) >= 1
    before = [v for v in visits if v[2] == 0]
    after = [v for v in visits if v[2] > 0]
    assert after[0][0] - before[-1][0] > 7.9  # the limit
    assert max(steps) > 60
    assert max(one["known"][0] for one in told.values()) == max(steps)
    # with the first dead and no message lost, the walk that goes on has each step once, and its model is that of its visits
    rank = max(told, key=lambda r: told[r]["theta"][0])
    reached, theta = told[rank]["theta"]
    last = {step: (walk, r) for _, step, walk, r in visits}
    assert sorted(last)[-40:] == list(range(reached - 39, reached + 1))
    by_hand = np.zeros(2)
    for step in range(reached - 39, reached + 1):
        by_hand = by_hand - 0.3 * (by_hand - np.array([float(last[step][1]), 1.0]))
    assert theta == pytest.approx(by_hand.tolist(), abs=2e-6)  # 0.7^40 of where it was 40 steps before
    assert time.monotonic() - began < 60


def test_started_by_torchrun(tmp_path):
    script = tmp_path / "node.py"
    script.write_text(NODE)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "1", "--nproc_per_node", "3"]
    torchrun += ["--master_addr", "127.0.0.1", "--master_port", str(free_port())]
    done = subprocess.run(
        [*torchrun, str(script), str(tmp_path), "40", "-1"], env=os.environ | PLACE, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr.decode()
    told = [json.loads((tmp_path / f"{r}.json").read_text()) for r in range(3)]
    visits = sorted((step, walk, r) for r, one in enumerate(told) for _, step, walk in one["visits"])
    reached = max(one["theta"][0] for one in told)
    assert reached > 20
    assert [v[0] for v in visits if v[1] == 0] == list(range(1, reached + 1))  # nothing was lost: one walk, each step once
    assert len({r for *_, r in visits}) == 3
    assert sum(one["restarts"] + one["ended"] for one in told) == 0
    by_hand = np.zeros(2)
    for *_, r in visits:
        by_hand += 0.3 * (np.array([float(r), 1.0]) - by_hand)
    last = next(one["theta"][1] for one in told if one["theta"][0] == reached)
    assert last == pytest.approx(by_hand.tolist(), abs=1e-6)  # the nodes' records are float32


def test_walks_in_lost_messages_are_restarted(tmp_path):
    codes, errors = served(tmp_path, 3, "120", "-1", "0.85")
    assert codes == [0] * 3, errors
    told = [json.loads((tmp_path / f"{r}.json").read_text()) for r in range(3)]
    visits = sorted(tuple(v) for one in told for v in one["visits"])
    assert sum(one["restarts"] for one in told) >= 3
    assert len({walk for *_, walk in visits}) >= 3
    assert max(step for _, step, _ in visits) > max(step for _, step, walk in visits if walk == 0)  # it went on from there


def test_the_last_process_says_that_all_others_are_dead(tmp_path):
    codes, errors = served(tmp_path, 2, "4000", "1")
    assert codes[1] == 0
    assert codes[0] != 0
    assert "WorkersError: all other 1 processes are gone; the walk stood at step 1" in errors[0]


def test_alone_it_is_refused():
    with pytest.raises(ArgumentError, match="group: expected at least two processes"):
        serve(lambda theta, step: theta, torch.zeros(1), cycles=3)
