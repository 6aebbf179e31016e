"""Escape experiments: how long walkers stay in a valley, over curvature, batch size, learning rate and temperature."""

from sgdscope.escapes.fits import LAWS, Fit, Hypotheses, Point, hypotheses, line, scaling
from sgdscope.escapes.networks import Network, largest_against_rest
from sgdscope.escapes.noises import Minibatch, Noise, Prescribed, Shaped, White, hessian_noise
from sgdscope.escapes.potentials import Potential, Raised, Rescaled, Tang, Trough, Wells
from sgdscope.escapes.run import Occupation, Waiting, escape, occupation, occupied
from sgdscope.escapes.search import Found, bisect, median_wait
from sgdscope.escapes.valleys import Box, LossLevel, Threshold, Valley

__all__ = [
    "LAWS",
    "Box",
    "Fit",
    "Found",
    "Hypotheses",
    "LossLevel",
    "Minibatch",
    "Network",
    "Noise",
    "Occupation",
    "Point",
    "Potential",
    "Prescribed",
    "Raised",
    "Rescaled",
    "Shaped",
    "Tang",
    "Threshold",
    "Trough",
    "Valley",
    "Waiting",
    "Wells",
    "White",
    "bisect",
    "escape",
    "hessian_noise",
    "hypotheses",
    "largest_against_rest",
    "line",
    "median_wait",
    "occupation",
    "occupied",
    "scaling",
]
