"""Weighted parallel SGD over processes: unequal speeds, a deadline, workers killed in the middle and at the end, a late one.

The processes are forked from a server that has everything imported, the store lies in this process, and what must have
happened is waited for, not slept for: a slow machine makes these tests late, not wrong.
"""

import logging
import multiprocessing
import os
import signal
import sys
import threading
import time
import traceback
from contextlib import redirect_stderr, redirect_stdout

import pytest
import torch
import torch.distributed as dist

from sgdscope.ensembles.processes import collect
from sgdscope.errors import ArgumentError, StoreError
from sgdscope.experiment import Experiment, processes, read_ensemble, run, surface_of
from sgdscope.experiment.processes import main, walk
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
SLOW = 0.3  # seconds of sleep after each update of the slow worker
PATIENCE = 120  # seconds after which something hangs


def waited(happened, what):
    end = time.monotonic() + PATIENCE
    while not happened():
        assert time.monotonic() < end, f"{what} has not happened"
        time.sleep(0.02)


@pytest.fixture(autouse=True)
def alone(monkeypatch):
    """Processes that are started find each other on loopback and are one thread each."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")
    if sys.platform == "linux":
        monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@pytest.fixture
def store():
    """The store, on a port that the system chose, so that two test runs cannot meet."""
    return dist.TCPStore("127.0.0.1", 0, None, is_master=True, wait_for_workers=False)


def environment(rank, world, port):
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "RANK": str(rank), "WORLD_SIZE": str(world)}
    return told | {"TORCHELASTIC_USE_AGENT_STORE": "True"}  # as under torchrun: rank 0 keeps no store of its own


def started(target, ranks, world, store, folder, *arguments):
    """A process a rank, whose output goes to FOLDER/rank.txt."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["sgdscope.experiment.processes"])
    found = {}
    for rank in ranks:
        told = (target, environment(rank, world, store.port), folder / f"{rank}.txt", rank, *arguments)
        found[rank] = context.Process(target=child, args=told, daemon=True)
        found[rank].start()
    return found


def child(target, told, log, rank, *arguments):
    os.environ.update(told)
    torch.set_num_threads(1)
    with log.open("w", buffering=1) as file, redirect_stdout(file), redirect_stderr(file):
        logging.basicConfig(level=logging.INFO, stream=file)
        try:
            target(rank, *arguments)
        except BaseException:
            traceback.print_exc()
            raise


def codes(children, folder):
    """Return codes; one of ours that hangs is killed by its id, and what it said is told."""
    end, found = time.monotonic() + PATIENCE, {}
    for rank, process in children.items():
        process.join(max(end - time.monotonic(), 0))
        hangs = process.is_alive()
        if hangs:
            process.kill()
            process.join()
        found[rank] = process.exitcode
        said = (folder / f"{rank}.txt").read_text() if (folder / f"{rank}.txt").is_file() else ""
        assert not hangs, f"process {rank} hangs: {said}"
        assert process.exitcode in {0, -signal.SIGKILL}, said
    return found


def walker(rank, described, out):
    """Rank 0 is fast, rank 2 slow, rank 1 far from its deadline whenever it is killed; rank 0 comes when rank 2 is there."""
    deadline, pause = [("1", "0"), ("3600", "0.01"), ("1", str(SLOW))][rank]

    def patient(*arguments, store, **options):
        if rank == 0:
            waited(lambda: store.check(["sgdscope/parallel/done/2"]), "the announcement of process 2")
        return collect(*arguments, store=store, **options)

    processes.collect = patient
    main([described, out, "--deadline", deadline, "--pause", pause, "--grace", "4"])


def test_processes_of_different_speed_with_one_killed_in_the_middle(tmp_path, store):
    (tmp_path / "e.toml").write_text(TOML)
    out = tmp_path / "out"
    children = started(walker, range(3), 3, store, tmp_path, str(tmp_path / "e.toml"), str(out))
    waited((out / "member-1" / "run.json").is_file, "the walk of process 1")
    children[1].kill()
    assert codes(children, tmp_path) == {0: 0, 1: -signal.SIGKILL, 2: 0}
    told = read_ensemble(out)
    assert "lost: 1, the result is the weighted average of the others" in told["sentence"]
    runs = {r: open_trajectory(out / f"member-{r}") for r in (0, 2)}
    updates = [len(runs[r].steps["step"]) for r in (0, 2)]
    assert [m["updates"] for m in told["members"]] == [updates[0], 0, updates[1]]
    assert 1 <= updates[1] <= 1 / SLOW + 1  # however fast the machine
    assert updates[0] > updates[1]
    omega = weights(updates, rate=0.01).tolist()
    assert [told["members"][r]["weight"] for r in (0, 2)] == pytest.approx(omega)
    assert (told["members"][1]["weight"], told["members"][1]["loss"]) == (0, None)
    ends = [runs[r].theta(n).double() for r, n in zip((0, 2), updates, strict=True)]
    average = open_trajectory(out / "average").theta(0).double()
    torch.testing.assert_close(average, sum(w * e for w, e in zip(omega, ends, strict=True)), rtol=1e-5, atol=1e-6)
    surface = surface_of(Experiment(**{k: v for k, v in told["experiment"].items() if k != "ensemble"}))
    assert told["loss_average"] == pytest.approx(surface.value(average), rel=1e-5)
    starts = [runs[r].theta(0) for r in (0, 2)]
    assert torch.equal(*starts)


def sender(rank):
    store, _, world = next(dist.rendezvous("env://"))
    if rank == 1:  # announces itself and dies before its turn
        dist.ProcessGroupGloo = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    if rank == 3:  # comes when all is over
        waited(lambda: store.check(["over"]), "the end of process 0")
    if rank == 0:
        waited(lambda: store.check([f"sgdscope/parallel/done/{r}" for r in (1, 2, 4)]), "the announcements")
    theta = [torch.full((3,), 2.0 + rank), torch.full((2, 2) if rank < 4 else (2, 1), 10.0 * rank)]
    losses = [0.4 + 3 * 0.9 ** (2 * t) for t in range(40 - 10 * rank)]
    found = collect(theta, len(losses), store=store, rank=rank, world=world, grace=3.0, losses=losses)
    if found is not None:
        store.set("over", "yes")
        print(found.weights, found.workloads, found.lost, found.rate, found.theta.tolist(), sep="|")


def test_a_process_that_dies_while_it_sends_comes_too_late_or_does_not_fit_is_left_out(tmp_path, store):
    children = started(sender, range(5), 5, store, tmp_path)
    assert codes(children, tmp_path) == {0: 0, 1: -signal.SIGKILL, 2: 0, 3: 0, 4: 0}
    said = {r: (tmp_path / f"{r}.txt").read_text() for r in range(5)}
    omega, workloads, lost, rate, theta = (eval(part) for part in said[0].strip().splitlines()[-1].split("|"))
    expected = 1 / (1 + 0.9**20)
    assert rate == pytest.approx(0.1, rel=1e-3)
    assert lost == (1, 3, 4)
    assert workloads == (40, 30, 20, 0, 0)
    assert omega == pytest.approx((expected, 0, 1 - expected, 0, 0), rel=1e-3)
    assert theta == pytest.approx([2 + 2 * omega[2]] * 3 + [20 * omega[2]] * 4, rel=1e-6)
    assert "process 1 is lost while it sends" in said[0]
    assert "process 4 is left out: its replica has 5 numbers of torch.float32, that of process 0 has 7 numbers" in said[0]
    assert "process 3 came too late" in said[3]


def test_one_process_alone_is_its_own_average():
    store = dist.HashStore()
    theta = torch.tensor([1.5, -2.0])
    found = collect([theta], 7, store=store, rank=0, world=1, rate=0.1)
    assert torch.equal(found.theta, theta)
    assert found.weights == (1.0,)


def test_one_process_alone_is_an_ensemble(tmp_path, monkeypatch, store):
    (tmp_path / "e.toml").write_text(TOML.replace("members = 3", "members = 1").replace("100000", "25"))
    for name, value in environment(0, 1, store.port).items():
        monkeypatch.setenv(name, value)
    main([str(tmp_path / "e.toml"), str(tmp_path / "out"), "--deadline", "600"])
    told = read_ensemble(tmp_path / "out")
    assert [m["updates"] for m in told["members"]] == [25]  # those of the phases, long before the deadline
    end = open_trajectory(tmp_path / "out" / "member-0").theta(25)
    assert torch.equal(open_trajectory(tmp_path / "out" / "average").theta(0), end)


def test_a_process_starts_at_a_step_of_another_run(tmp_path, monkeypatch, store):
    described = {
        "data": {"dataset": "wine"},
        "model": {"name": "logistic"},
        "phases": [{"lr": 0.1, "batch_size": 8, "updates": 9}],
    }
    first = run(Experiment(**described), tmp_path / "first")
    for name, value in environment(0, 1, store.port).items():
        monkeypatch.setenv(name, value)
    on = described | {"start": {"run": str(first), "step": 9}, "ensemble": {"members": 1}}
    walk(Experiment(**on), tmp_path / "on", deadline=600)
    start, end = (open_trajectory(path).theta(step) for path, step in ((tmp_path / "on" / "member-0", 0), (first, 9)))
    assert torch.equal(start, end)


def test_a_process_that_never_comes_is_not_waited_for_without_end(monkeypatch, caplog):
    monkeypatch.setattr(processes, "MEETING", 0.1)
    with caplog.at_level(logging.WARNING):
        processes._meet(dist.HashStore(), 3)
    assert "1 of 3 processes are there after 0.1 seconds: they walk without the others" in caplog.text


def test_processes_wait_for_each_other():
    store, order = dist.HashStore(), []

    def come():
        processes._meet(store, 2)
        order.append("met")

    first = threading.Thread(target=come)
    first.start()
    waited(lambda: store.add("sgdscope/here", 0) == 1, "the first one")
    assert not order
    processes._meet(store, 2)
    first.join(PATIENCE)
    assert order == ["met"]


def test_a_replica_that_has_diverged_is_left_out(store, caplog):
    ends = [torch.tensor([1.0, 3.0]), torch.tensor([2.0, float("nan")])]
    found = []

    def send(rank):
        own = dist.TCPStore("127.0.0.1", store.port, None, is_master=False, wait_for_workers=False)
        found.append(collect([ends[rank]], 9, store=own, rank=rank, world=2, grace=30.0, rate=0.1))

    threads = [threading.Thread(target=send, args=(rank,)) for rank in range(2)]
    with caplog.at_level(logging.WARNING):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
    combination = next(one for one in found if one is not None)
    assert (combination.theta.tolist(), combination.lost) == ([1.0, 3.0], (1,))
    assert "process 1 is left out: its replica is not finite" in caplog.text


@pytest.mark.parametrize(("rank", "grace"), [(2, 1.0), (-1, 1.0), (0, 0.0)])
def test_collect_refuses(rank, grace):
    with pytest.raises(ArgumentError, match=f"rank, grace: expected 0 <= rank < world = 2 .*, got {rank} and {grace}"):
        collect([torch.ones(2)], 3, store=dist.HashStore(), rank=rank, world=2, grace=grace, rate=0.1)


def test_wrong_use(tmp_path, monkeypatch, store):
    described = {
        "data": {"dataset": "wine"},
        "model": {"name": "logistic"},
        "phases": [{"lr": 0.1, "batch_size": 8, "updates": 9}],
    }
    with pytest.raises(ArgumentError, match="deadline, grace, pause: expected > 0"):
        walk(Experiment(**described), tmp_path, deadline=0)
    for name, value in environment(0, 1, store.port).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ArgumentError, match=r"ensemble\.members: expected 1, one a process, got none"):
        walk(Experiment(**described), tmp_path, deadline=1)
    local = described | {"ensemble": {"members": 1, "mode": "local", "period": 2, "rate": 0.1}}
    with pytest.raises(ArgumentError, match=r"ensemble\.mode: expected 'simuparallel' over processes, got 'local'"):
        walk(Experiment(**local), tmp_path, deadline=1)
    (tmp_path / "member-0").mkdir()
    with pytest.raises(StoreError, match="a walk by the clock cannot go on"):
        walk(Experiment(**described | {"ensemble": {"members": 1}}), tmp_path, deadline=1)
