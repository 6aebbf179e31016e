"""Kill -9 at random moments: what was acknowledged reads back, nothing is half, and the run goes on.

The killing is done by this file run as a script, which imports once and forks a writer for each kill.
"""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import xarray as xr

from sgdscope import files
from sgdscope.records import Header, Record, Snapshot, StepBlock
from sgdscope.stores.zarr import ZarrStore
from sgdscope.vector import Layout

SIZE = 20_000
HEADER = Header(Layout.of({"w": torch.zeros(SIZE)}), Layout.of({"m": torch.zeros(7)}), {"seed": 1})


def theta(step: int) -> torch.Tensor:
    return torch.arange(SIZE, dtype=torch.float32) * 1e-3 + step


def write(path: Path, start: int | None, seed: int, said: int) -> None:
    """Write until killed; each acknowledged thing is told through the pipe only after the call returned."""
    draw = random.Random(seed)
    store = ZarrStore(path, resume="append", start_step=start)
    store.begin(HEADER)
    step = start or 0
    os.write(said, f"begin {step}\n".encode())
    while True:
        steps = np.arange(step, step + draw.choice([1, 64, 300, 1100]), dtype=np.int64)
        columns = {"loss": steps * 0.5, "lr": steps * 0.25} | ({"late": steps * 3.0} if draw.random() < 0.5 else {})
        for at in steps[: draw.choice([1, 3])]:
            store.write_snapshot(Snapshot(int(at), theta(int(at)), torch.full((7,), float(at))))
            os.write(said, f"snapshot {at}\n".encode())
        store.write_record(Record("keyframes", step, {"x": np.full(500, step), "y": np.full(3, -step)}, {"at": step}))
        os.write(said, f"record {step}\n".encode())
        store.write_steps(StepBlock(steps, columns))
        step = int(steps[-1]) + 1
        os.write(said, f"steps {step}\n".encode())
        if draw.random() < 0.3:
            ZarrStore.write_measurement(path, "valley", xr.Dataset({"x": ("step", np.full(300, step)), "y": step}))
            os.write(said, f"measured {step}\n".encode())
        if draw.random() < 0.1:
            store.close()
            store = ZarrStore(path, resume="append")
            store.begin(HEADER)


def check(path: Path, said: list[list[str]]) -> int:
    """Hold the run against what was acknowledged; returns how many updates there are."""
    told = {what: [int(step) for kind, step in said if kind == what] for what in ("snapshot", "record", "steps", "measured")}
    trajectory = ZarrStore.read(path)
    steps = trajectory.steps
    count = steps.sizes["step"]
    np.testing.assert_array_equal(steps.step, np.arange(count))
    assert count >= max(told["steps"], default=0), (count, told["steps"][-1:])
    for name, factor in (("loss", 0.5), ("lr", 0.25)):
        if count:
            np.testing.assert_array_equal(steps[name], steps.step * factor)
    if "late" in steps:
        there = ~np.isnan(steps.late.values)
        np.testing.assert_array_equal(steps.late[there], steps.step[there] * 3.0)
    assert set(told["snapshot"]) <= set(trajectory.snapshot_steps.tolist())
    for step in trajectory.snapshot_steps[-40:]:
        assert torch.equal(trajectory.theta(step), theta(step))
        assert trajectory.buffers(step)["m"].tolist() == [float(step)] * 7
    recorded = ZarrStore.record_steps(path, "keyframes")
    assert set(told["record"]) <= set(recorded)
    for step in recorded[-20:]:
        arrays, meta = ZarrStore.read_record(path, "keyframes", step)
        assert (arrays["x"] == step).all()
        assert (arrays["y"] == -step).all()
        assert meta == {"at": step}
    tree = ZarrStore.measurements(path)
    if told["measured"]:
        kept = tree["valley"]
        assert (kept.x == kept.y).all()
        assert int(kept.y) >= told["measured"][-1]
    return count


def kill_often(path: Path, kills: int, seed: int) -> None:
    draw = random.Random(seed)
    start, total, sizes, early = 0, 0, [], 0
    files.ELEMENTS = 8192  # a snapshot is three chunks
    for number in range(kills):
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            os.close(reading)
            try:
                write(path, start, seed + number, writing)
            finally:
                os._exit(1)
        os.close(writing)
        heard, wanted = b"", draw.choice([0, 0, 1, 2, 5, 20, 60])  # acknowledged things to wait for, whatever the load
        while heard.count(b"\n") < wanted and (more := os.read(reading, 4096)):
            heard += more
        time.sleep(draw.choice([0.0005, 0.005, 0.05]) * draw.random())
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the writer failed by itself"
        with os.fdopen(reading, "rb") as pipe:
            said = [line.split() for line in (heard + pipe.read()).decode().splitlines()]
        if not (path / "run.json").exists():
            assert not said
            early += 1
            continue
        count = check(path, said)
        assert count >= (start or 0), "rows from before this writer are gone"
        sizes.append(count)
        total += len(said)
        start = draw.choice([None, count, max(0, count - 500), count // 2])
        start = count if start is None else start
    print(f"{kills} kills, {early} before the run began, {total} acknowledged, at most {max(sizes, default=0)} updates")
    assert kills < 4 or total >= kills


def run_kills(path: Path, kills: int, seed: int) -> None:
    command = [sys.executable, __file__, str(path / "run"), str(kills), str(seed)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{kills} kills" in done.stdout


def test_a_killed_writer_loses_nothing_acknowledged(tmp_path):
    run_kills(tmp_path, 4, 1)


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(2, 6))
def test_a_hundred_killed_writers(tmp_path, seed):
    run_kills(tmp_path, 25, 1000 * seed)


if __name__ == "__main__":
    torch.set_num_threads(1)
    kill_often(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
