"""Eigenvalues, traces and densities of a symmetric matrix that is known by its products only; always with residuals or errors."""

from sgdscope.spectra.densities import Density, density, overlap
from sgdscope.spectra.lanczos import eigenpairs, rayleigh_ritz
from sgdscope.spectra.products import Eigenpairs, Estimate
from sgdscope.spectra.traces import Moments, frobenius, moments, trace
from sgdscope.spectra.tracking import track

__all__ = [
    "Density",
    "Eigenpairs",
    "Estimate",
    "Moments",
    "density",
    "eigenpairs",
    "frobenius",
    "moments",
    "overlap",
    "rayleigh_ritz",
    "trace",
    "track",
]
