"""Surfaces with known answers, in float64, and a walk on them in memory.

They satisfy `records.Surface`, so that every quantity can be tried where its true value is known. Each also gives its
exact Hessian. A stochastic surface has N examples; its batches are int64 tensors of example indices [B].
"""

from sgdscope.landscapes.noisy import Moved as Moved
from sgdscope.landscapes.noisy import Noisy as Noisy
from sgdscope.landscapes.noisy import NoisyQuadratic as NoisyQuadratic
from sgdscope.landscapes.surfaces import DoubleWell as DoubleWell
from sgdscope.landscapes.surfaces import Landscape as Landscape
from sgdscope.landscapes.surfaces import Quadratic as Quadratic
from sgdscope.landscapes.surfaces import Ravine as Ravine
from sgdscope.landscapes.surfaces import River as River
from sgdscope.landscapes.surfaces import StyblinskiTang as StyblinskiTang
from sgdscope.landscapes.walks import walk as walk
