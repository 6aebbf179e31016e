"""Measurement -> plotly figure, one function a figure.

Each takes datasets that were measured or recorded, never a path, and changes nothing. What a figure needs and does not
find is a `NotAvailableError` with a sentence that says how to get it. Backgrounds are transparent and lines mid-tone, so
that a page can be light or dark; the colours are Okabe and Ito's (2008), shifted to be readable on both.
"""

from sgdscope.figures.across import distance_law, floor_position, height_against_lr
from sgdscope.figures.look import batch_of, learning_rate, name_of, nonfinite_steps, walker_of
from sgdscope.figures.series import scalar_series, user_series
from sgdscope.figures.valley import valley_walk

__all__ = [
    "batch_of",
    "distance_law",
    "floor_position",
    "height_against_lr",
    "learning_rate",
    "name_of",
    "nonfinite_steps",
    "scalar_series",
    "user_series",
    "valley_walk",
    "walker_of",
]
