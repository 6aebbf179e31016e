"""Experiment: a validated description -> a recorded run, in phases, from a start or from a step of another run; sweeps."""

from sgdscope.experiment.description import Experiment, describe, load_toml

__all__ = ["Experiment", "describe", "load_toml"]
