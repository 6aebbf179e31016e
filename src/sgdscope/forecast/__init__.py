"""What loss annealing now would give: laws of extrapolation, and the forecast of a recorded run."""

from sgdscope.forecast.annealing import annealing
from sgdscope.forecast.laws import LAWS, Decay, Prediction, decay, extrapolate, predict
from sgdscope.forecast.projection import Method, method_of

__all__ = ["LAWS", "Decay", "Method", "Prediction", "annealing", "decay", "extrapolate", "method_of", "predict"]
