"""What loss annealing now would give: laws of extrapolation, and the forecast of a recorded run."""

from sgdscope.forecast.laws import LAWS, Decay, Prediction, decay, extrapolate, predict

__all__ = ["LAWS", "Decay", "Prediction", "decay", "extrapolate", "predict"]
