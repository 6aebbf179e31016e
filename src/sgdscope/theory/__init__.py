"""Closed forms of the theory of SGD, each with its source, convention and range of validity."""

from sgdscope.theory.least_squares import Moments as Moments
from sgdscope.theory.least_squares import least_squares_moments as least_squares_moments
from sgdscope.theory.prediction import Prediction as Prediction
from sgdscope.theory.prediction import Time as Time
from sgdscope.theory.stability import stability_threshold as stability_threshold
from sgdscope.theory.stationary import ExcessLoss as ExcessLoss
from sgdscope.theory.stationary import Stationary as Stationary
from sgdscope.theory.stationary import continuous_covariance as continuous_covariance
from sgdscope.theory.stationary import excess_loss as excess_loss
from sgdscope.theory.stationary import replacement_factor as replacement_factor
from sgdscope.theory.stationary import stationary_covariance as stationary_covariance
from sgdscope.theory.stationary import stationary_variance as stationary_variance
from sgdscope.theory.stationary import transient_variance as transient_variance
