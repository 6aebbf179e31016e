"""Every example that needs no data files runs, is measured and is reported, its lengths cut down."""

from pathlib import Path

import pytest

from sgdscope.experiment import Experiment, load_toml, read_ensemble, run, run_ensemble, surface_of
from sgdscope.measure import measure
from sgdscope.report import report
from sgdscope.runs import open_trajectory

EXAMPLES = Path(__file__).parents[1] / "examples"
BUNDLED = {"digits", "breast_cancer", "wine"}
UPDATES = 12
CUT = {"examples": 64, "every": 4}  # of walkers that measure on the way


def bundled():
    found = {path.stem: load_toml(path) for path in sorted(EXAMPLES.glob("*.toml"))}
    return {name: example for name, example in found.items() if example.data.dataset in BUNDLED}


def short(example):
    """The first of its grid with few updates of each phase, whose points are all kept."""
    described = example.expand()[0].described()
    for phase in described["phases"]:
        phase.pop("epochs", None)
        phase |= {"updates": UPDATES} | {key: value for key, value in CUT.items() if key in phase}
    described["record"]["snapshots"] = {"kind": "every", "n": 1}
    if "workloads" in (table := described.get("ensemble", {})):
        most = max(table["workloads"])
        table["workloads"] = [max(1, UPDATES * n // most) for n in table["workloads"]]
        table["rate"] = 0.05  # so few updates tell none
    return Experiment(**described)


def test_there_are_examples():
    assert {"digits_mlp", "digits_private", "digits_parallel", "digits_gossip"} <= set(bundled())


@pytest.mark.parametrize("name", sorted(bundled()))
def test_an_example_runs_is_measured_and_reported(name, tmp_path):
    experiment = short(bundled()[name])
    out = run_ensemble(experiment, tmp_path / name) if experiment.ensemble else run(experiment, tmp_path / name)
    told = read_ensemble(out)
    for path in [out] if told is None else [out / member["run"] for member in told["members"]]:
        walk = open_trajectory(path)
        assert len(walk.steps["step"]) == (UPDATES * len(experiment.phases) if told is None else len(walk.snapshot_steps) - 1)
        measured = measure(walk, surface_of(experiment), ["valley", "motion"])
        assert measured["valley"].sizes["step"] == len(walk.steps["step"])
    page = report(out, tmp_path / "page.html").read_text()
    assert "The valley along the updates was not measured" not in page
