"""Eigenvalues, traces and densities of a symmetric matrix that is known by its products only; always with residuals or errors."""

from sgdscope.spectra.densities import Density, density, overlap
from sgdscope.spectra.lanczos import eigenpairs, rayleigh_ritz
from sgdscope.spectra.products import Eigenpairs, Estimate
from sgdscope.spectra.traces import effective_rank, frobenius, trace, trace_and_frobenius
from sgdscope.spectra.tracking import track

__all__ = [
    "Density",
    "Eigenpairs",
    "Estimate",
    "density",
    "effective_rank",
    "eigenpairs",
    "frobenius",
    "overlap",
    "rayleigh_ritz",
    "trace",
    "trace_and_frobenius",
    "track",
]
