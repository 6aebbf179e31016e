"""A run that was killed goes on so that nobody can tell."""

import os
import random
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch

from sgdscope.experiment import Experiment, run
from sgdscope.runs import open_trajectory
from sgdscope.stores.zarr import ZarrStore

CHILD = """
import json, sys, time
from sgdscope.experiment import Experiment, run
def slowly(sentence, share):
    print(sentence.split()[1], flush=True)
    time.sleep(float(sys.argv[3]))
run(Experiment(**json.loads(sys.argv[1])), sys.argv[2], progress=slowly)
"""


def experiment(mode, updates=160):
    return Experiment(
        seed=7,
        data={"dataset": "digits", "train": 200},
        model={"name": "mlp", "hidden": [12], "batchnorm": True, "dropout": 0.2},
        phases=[
            {"lr": 0.1, "momentum": 0.9, "batch_size": 16, "updates": 70},
            {"walker": "adam", "lr": 0.01, "batch_size": 32, "updates": updates - 70},
        ],
        record={"snapshots": {"kind": "bursts", "length": 9, "at": [4, 55, 100]}, "mode": mode, "keyframes": 20},
    )


def killed_at(described, path, updates):
    """Start the run in another process and kill it once it has done so many updates."""
    command = [sys.executable, "-c", CHILD, described.model_dump_json(exclude_none=True), str(path), "0.002"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        for line in child.stdout:
            if int(line) >= updates:
                os.kill(child.pid, signal.SIGKILL)
                break
    assert child.returncode == -signal.SIGKILL


def compare(path, reference):
    got, expected = open_trajectory(path), open_trajectory(reference)
    assert set(got.steps) == set(expected.steps)
    assert len(got.steps["step"]) == 160
    for name in expected.steps:
        np.testing.assert_array_equal(got.steps[name].values, expected.steps[name].values, err_msg=name)
    assert got.snapshot_steps.tolist() == expected.snapshot_steps.tolist()
    for step in (*expected.snapshot_steps.tolist(), 160):
        assert torch.equal(got.theta(step), expected.theta(step)), step
        assert all(torch.equal(v, expected.buffers(step)[k]) for k, v in got.buffers(step).items())
    assert ZarrStore.record_steps(path, "keyframes") == ZarrStore.record_steps(reference, "keyframes")


@pytest.fixture(scope="module", params=["replay", "snapshots"])
def reference(request, tmp_path_factory):
    return request.param, run(experiment(request.param), tmp_path_factory.mktemp("whole") / "run")


def test_a_killed_run_goes_on_bit_for_bit(reference, tmp_path):
    mode, whole = reference
    moments = {"replay": (3, 90), "snapshots": (131,)}[mode]
    for moment in moments:
        killed_at(experiment(mode), tmp_path / f"{moment}", moment)
        kept = ZarrStore.read(tmp_path / f"{moment}")
        assert len(kept.steps["step"]) < 160
        run(experiment(mode), tmp_path / f"{moment}")
        compare(tmp_path / f"{moment}", whole)


class Stopped(Exception):
    pass


@pytest.mark.parametrize("moment", [1, 20, 21, 69, 70, 71, 159])
def test_a_run_that_was_interrupted_anywhere_goes_on_bit_for_bit(reference, tmp_path, moment):
    mode, whole = reference

    def stop(sentence, share):
        if sentence == f"update {moment} of 160":
            assert share == moment / 160
            raise Stopped("here")

    with pytest.raises(Stopped, match="here"):
        run(experiment(mode), tmp_path / "run", progress=stop)
    run(experiment(mode), tmp_path / "run")
    compare(tmp_path / "run", whole)


def test_a_run_can_be_interrupted_again_and_again(reference, tmp_path):
    mode, whole = reference
    moments = random.Random(3).sample(range(2, 158), 4)
    for moment in sorted(moments):

        def stop(sentence, share, moment=moment):
            if sentence == f"update {moment} of 160":
                raise Stopped("here")

        with pytest.raises(Stopped, match="here"):
            run(experiment(mode), tmp_path / "run", progress=stop)
    run(experiment(mode), tmp_path / "run")
    compare(tmp_path / "run", whole)


@pytest.mark.soak
def test_many_kills(reference, tmp_path):
    mode, whole = reference
    chosen = random.Random(11)
    for number in range(25):
        killed_at(experiment(mode), tmp_path / f"{number}", chosen.randrange(1, 160))
        run(experiment(mode), tmp_path / f"{number}")
        compare(tmp_path / f"{number}", whole)
