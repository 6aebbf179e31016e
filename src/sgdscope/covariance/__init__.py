"""The covariance of gradients from those of examples, how its spectrum falls, how heavy tails are, and currents of a walk."""

from sgdscope.covariance.alignment import alignment
from sgdscope.covariance.batches import DrawnBatches
from sgdscope.covariance.currents import lag_asymmetry
from sgdscope.covariance.matrix import Covariance, fieller, unbiased_square
from sgdscope.covariance.streaming import StreamedSample, stream
from sgdscope.covariance.tails import (
    ANDERSON_5,
    PowerLaw,
    anderson_darling,
    hill,
    isotropic_test,
    kurtosis,
    power_law,
    power_law_test,
    ranks_within,
)

__all__ = [
    "ANDERSON_5",
    "Covariance",
    "DrawnBatches",
    "PowerLaw",
    "StreamedSample",
    "alignment",
    "anderson_darling",
    "fieller",
    "hill",
    "isotropic_test",
    "kurtosis",
    "lag_asymmetry",
    "power_law",
    "power_law_test",
    "ranks_within",
    "stream",
    "unbiased_square",
]
