"""Advice on a recorded run, with evidence and error bars: learning rate, noise, batch size, annealing now."""

from sgdscope.diagnosis.advice import Advice, Diagnosis, diagnose, surfaces

__all__ = ["Advice", "Diagnosis", "diagnose", "surfaces"]
