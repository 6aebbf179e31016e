"""A microscope for SGD: record the walk of the parameters, measure the landscape along it, test what the papers claim."""

from __future__ import annotations

import importlib
import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from sgdscope.checks import check as check
    from sgdscope.comparison import compare as compare
    from sgdscope.comparison import interpolate as interpolate
    from sgdscope.contracts import Verdict as Verdict
    from sgdscope.diagnosis import diagnose as diagnose
    from sgdscope.ensembles.parallel import WeightedParallelSGD as WeightedParallelSGD
    from sgdscope.escapes import escape as escape
    from sgdscope.experiment import Experiment as Experiment
    from sgdscope.experiment import run as run
    from sgdscope.experiment import run_ensemble as run_ensemble
    from sgdscope.measure import live as live
    from sgdscope.measure import measure as measure
    from sgdscope.recorder import Recorder as Recorder
    from sgdscope.recorder import bursts as bursts
    from sgdscope.recorder import every as every
    from sgdscope.recorder import logarithmic as logarithmic
    from sgdscope.records import Trajectory as Trajectory
    from sgdscope.report import report as report
    from sgdscope.runs import open_trajectory as open_trajectory
    from sgdscope.surface import LossSurface as LossSurface
    from sgdscope.walkers.inertia import Adai as Adai
    from sgdscope.walkers.langevin import SGLD as SGLD
    from sgdscope.walkers.nudged import NudgedSGD as NudgedSGD
    from sgdscope.walkers.private import PrivateSGD as PrivateSGD
    from sgdscope.walkers.projected import ProjectedLangevin as ProjectedLangevin
    from sgdscope.walkers.shaped import SVAG as SVAG
    from sgdscope.walkers.shaped import ShapedNoise as ShapedNoise

__version__ = "0.1.0"

_HOME = {
    "check": "checks",
    "compare": "comparison",
    "interpolate": "comparison",
    "Verdict": "contracts",
    "diagnose": "diagnosis",
    "WeightedParallelSGD": "ensembles.parallel",
    "escape": "escapes",
    "Experiment": "experiment",
    "run": "experiment",
    "run_ensemble": "experiment",
    "live": "measure",
    "measure": "measure",
    "Recorder": "recorder",
    "bursts": "recorder",
    "every": "recorder",
    "logarithmic": "recorder",
    "Trajectory": "records",
    "report": "report",
    "open_trajectory": "runs",
    "LossSurface": "surface",
    "Adai": "walkers.inertia",
    "SGLD": "walkers.langevin",
    "NudgedSGD": "walkers.nudged",
    "PrivateSGD": "walkers.private",
    "ProjectedLangevin": "walkers.projected",
    "SVAG": "walkers.shaped",
    "ShapedNoise": "walkers.shaped",
}

__all__ = ["__version__", *_HOME]


class _Face(ModuleType):
    """The package as a module on which the public functions win over the files of the same name (`measure`, `report`)."""

    def __getattr__(self, name: str) -> Any:
        """Import a public name when it is first used, so that importing the package stays cheap."""
        if name not in _HOME:
            raise AttributeError(f"module 'sgdscope' has no attribute '{name}'")
        found = getattr(importlib.import_module(f"sgdscope.{_HOME[name]}"), name)
        setattr(self, name, found)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        """Python binds each imported file here; under a public name the public thing is bound instead."""
        if isinstance(value, ModuleType) and name in _HOME:
            value = getattr(value, name)
        super().__setattr__(name, value)

    def __dir__(self) -> list[str]:
        """The public names."""
        return sorted(__all__)


sys.modules[__name__].__class__ = _Face
