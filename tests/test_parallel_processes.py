"""Weighted parallel SGD over processes: unequal speeds, a deadline, a worker killed in the middle, one killed at the end."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest
import torch

from sgdscope.ensembles.processes import collect
from sgdscope.errors import ArgumentError, StoreError
from sgdscope.experiment import Experiment, read_ensemble, surface_of
from sgdscope.experiment.processes import walk
from sgdscope.replicas import weights
from sgdscope.runs import open_trajectory

TOML = """
name = "real"
data = { dataset = "wine" }
model = { name = "mlp", hidden = [6] }
[[phases]]
lr = 0.1
batch_size = 16
updates = 100000
[record]
snapshots = { kind = "bursts", length = 1, at = [0] }
[ensemble]
members = 3
rate = 0.01
"""


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def environment(rank, world, port):
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    return os.environ | told | {"OMP_NUM_THREADS": "1"}


def start(command, rank, world, port):
    return subprocess.Popen(
        [sys.executable, *command],
        env=environment(rank, world, port),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def ended(processes, seconds=60):
    """Return codes and what was said; a process of ours that hangs is killed by its id and told."""
    end, found = time.monotonic() + seconds, []
    for p in processes:
        try:
            out, _ = p.communicate(timeout=max(end - time.monotonic(), 1))
        except subprocess.TimeoutExpired:
            p.kill()
            out, _ = p.communicate()
            out = f"hung\n{out}"
        found.append((p.returncode, out))
    return found


def test_processes_of_different_speed_with_one_killed_in_the_middle(tmp_path):
    (tmp_path / "e.toml").write_text(TOML)
    out, port = tmp_path / "out", free_port()
    base = ["-m", "sgdscope.experiment.processes", str(tmp_path / "e.toml"), str(out), "--grace", "5"]
    told = [("2", "0.01"), ("60", "0.01"), ("2", "0.1")]  # the second one is in the middle of its walk whenever it is killed
    commands = [[*base, "--deadline", deadline, "--pause", pause] for deadline, pause in told]
    processes = [start(command, r, 3, port) for r, command in enumerate(commands)]
    waited = time.monotonic() + 40
    while not (out / "member-1" / "run.json").is_file() and time.monotonic() < waited:
        time.sleep(0.05)
    time.sleep(0.5)
    os.kill(processes[1].pid, signal.SIGKILL)
    codes = ended(processes)
    assert [code for code, _ in codes] == [0, -signal.SIGKILL, 0], codes
    told = read_ensemble(out)
    assert "lost: 1, the result is the weighted average of the others" in told["sentence"]
    runs = {r: open_trajectory(out / f"member-{r}") for r in (0, 2)}
    updates = [len(runs[r].steps["step"]) for r in (0, 2)]
    assert [m["updates"] for m in told["members"]] == [updates[0], 0, updates[1]]
    assert updates[1] < 0.6 * updates[0]  # the one that sleeps ten times as long
    omega = weights(updates, rate=0.01).tolist()
    assert [told["members"][r]["weight"] for r in (0, 2)] == pytest.approx(omega)
    assert told["members"][1]["weight"] == 0
    ends = [runs[r].theta(n).double() for r, n in zip((0, 2), updates, strict=True)]
    average = open_trajectory(out / "average").theta(0).double()
    torch.testing.assert_close(average, sum(w * e for w, e in zip(omega, ends, strict=True)), rtol=1e-5, atol=1e-6)
    surface = surface_of(Experiment(**{k: v for k, v in told["experiment"].items() if k != "ensemble"}))
    assert told["loss_average"] == pytest.approx(surface.value(average), rel=1e-5)
    starts = [runs[r].theta(0) for r in (0, 2)]
    assert torch.equal(*starts)


WORKER = """
import os, signal, sys, time
import torch
import torch.distributed as dist
from sgdscope.ensembles import processes
store, rank, world = next(dist.rendezvous("env://"))
if rank == 1:  # announces itself and dies before its turn
    processes.dist.ProcessGroupGloo = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if rank == 3:  # comes after the grace
    time.sleep(30)
theta = [torch.full((3,), 2.0 + rank), torch.full((2, 2), 10.0 * rank)]
losses = [0.4 + 3 * 0.9 ** (2 * t) for t in range(40 - 10 * rank)]
found = processes.collect(theta, len(losses), store=store, rank=rank, world=world, grace=4.0, losses=losses)
if found is not None:
    print(found.weights, found.workloads, found.lost, found.rate, found.theta.tolist(), sep="|")
    time.sleep(1)  # it holds the store
"""


def test_a_process_that_dies_while_it_sends_or_comes_too_late_is_left_out(tmp_path):
    (tmp_path / "worker.py").write_text(WORKER)
    port = free_port()
    processes = [start([str(tmp_path / "worker.py")], r, 4, port) for r in range(4)]
    (code, said), *others = ended([processes[0]], 60)
    processes[3].kill()
    ended(processes[1:])
    assert (code, others) == (0, []), said
    omega, workloads, lost, rate, theta = (eval(part) for part in said.strip().splitlines()[-1].split("|"))
    expected = 1 / (1 + 0.9**20)
    assert rate == pytest.approx(0.1, rel=1e-3)
    assert lost == (1, 3)
    assert workloads == (40, 30, 20, 0)
    assert omega == pytest.approx((expected, 0, 1 - expected, 0), rel=1e-3)
    assert theta == pytest.approx([2 + 2 * omega[2]] * 3 + [20 * omega[2]] * 4, rel=1e-6)


def test_one_process_alone_is_its_own_average(monkeypatch):
    store = torch.distributed.HashStore()
    theta = torch.tensor([1.5, -2.0])
    found = collect([theta], 7, store=store, rank=0, world=1, rate=0.1)
    assert torch.equal(found.theta, theta)
    assert found.weights == (1.0,)


def test_wrong_use(tmp_path, monkeypatch):
    described = {
        "data": {"dataset": "wine"},
        "model": {"name": "logistic"},
        "phases": [{"lr": 0.1, "batch_size": 8, "updates": 9}],
    }
    with pytest.raises(ArgumentError, match="deadline, grace, pause: expected > 0"):
        walk(Experiment(**described), tmp_path, deadline=0)
    port = str(free_port())
    for name, value in environment(0, 1, port).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ArgumentError, match=r"ensemble\.members: expected 1, one a process, got none"):
        walk(Experiment(**described), tmp_path, deadline=1)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    local = described | {"ensemble": {"members": 1, "mode": "local", "period": 2, "rate": 0.1}}
    with pytest.raises(ArgumentError, match=r"ensemble\.mode: expected 'simuparallel' over processes, got 'local'"):
        walk(Experiment(**local), tmp_path, deadline=1)
    monkeypatch.setenv("MASTER_PORT", str(free_port()))
    (tmp_path / "member-0").mkdir()
    with pytest.raises(StoreError, match="a walk by the clock cannot go on"):
        walk(Experiment(**described | {"ensemble": {"members": 1}}), tmp_path, deadline=1)
