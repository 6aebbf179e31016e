"""LossSurface: the loss, its gradient and its per-example values at any theta, and along a line."""

from sgdscope.surface.loss import LossSurface

__all__ = ["LossSurface"]
