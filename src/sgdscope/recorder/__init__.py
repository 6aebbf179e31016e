"""Attaches to a training loop, records its walk, and leaves no trace in it."""

from sgdscope.recorder.attach import Recorder as Recorder
from sgdscope.recorder.schedules import bursts as bursts
from sgdscope.recorder.schedules import every as every
from sgdscope.recorder.schedules import logarithmic as logarithmic
