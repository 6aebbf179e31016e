"""Experiment: a validated description -> a recorded run, in phases, from a start or from a step of another run; sweeps."""

from sgdscope.experiment.description import Experiment, describe, load_toml
from sgdscope.experiment.ensembles import read_ensemble, run_ensemble
from sgdscope.experiment.replaying import Replayer
from sgdscope.experiment.running import parts, points, run, surface_of, sweep

__all__ = [
    "Experiment",
    "Replayer",
    "describe",
    "load_toml",
    "parts",
    "points",
    "read_ensemble",
    "run",
    "run_ensemble",
    "surface_of",
    "sweep",
]
