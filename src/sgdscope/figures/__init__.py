"""Measurement -> plotly figure, one function a figure.

Each takes datasets that were measured or recorded, never a path, and changes nothing. What a figure needs and does not
find is a `NotAvailableError` with a sentence that says how to get it. Backgrounds are transparent and lines mid-tone, so
that a page can be light or dark; the colours are Okabe and Ito's (2008), shifted to be readable on both.
"""

from sgdscope.figures.across import distance_law, floor_position, height_against_lr
from sgdscope.figures.curvature import alignment, edge_threshold, spectral_density, spectrum_walk
from sgdscope.figures.escape import dwell_times, escape_rates, survival, waiting_times
from sgdscope.figures.forecast import annealing_forecast, predicted_against_real
from sgdscope.figures.heights import Heights, height_by_noise, noise_batch_size, predicted_heights
from sgdscope.figures.look import batch_of, learning_rate, name_of, nonfinite_steps, walker_of
from sgdscope.figures.noise import lag_currents, noise_alignment, noise_scales, noise_spectrum, noise_walk, spectrum_fit
from sgdscope.figures.nudged import accuracy_of, gamma_of, nudged, sharpness_against_accuracy, sharpness_paths
from sgdscope.figures.series import scalar_series, user_series
from sgdscope.figures.steps import cross_sections, step_effect
from sgdscope.figures.units import batch_walk, saturation_along
from sgdscope.figures.valley import valley_walk

__all__ = [
    "Heights",
    "accuracy_of",
    "alignment",
    "annealing_forecast",
    "batch_of",
    "batch_walk",
    "cross_sections",
    "distance_law",
    "dwell_times",
    "edge_threshold",
    "escape_rates",
    "floor_position",
    "gamma_of",
    "height_against_lr",
    "height_by_noise",
    "lag_currents",
    "learning_rate",
    "name_of",
    "noise_alignment",
    "noise_batch_size",
    "noise_scales",
    "noise_spectrum",
    "noise_walk",
    "nonfinite_steps",
    "nudged",
    "predicted_against_real",
    "predicted_heights",
    "saturation_along",
    "scalar_series",
    "sharpness_against_accuracy",
    "sharpness_paths",
    "spectral_density",
    "spectrum_fit",
    "spectrum_walk",
    "step_effect",
    "survival",
    "user_series",
    "valley_walk",
    "waiting_times",
    "walker_of",
]
