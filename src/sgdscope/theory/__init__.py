"""Closed forms of the theory of SGD, each with its source, convention and range of validity."""

from sgdscope.theory.stability import stability_threshold

__all__ = ["stability_threshold"]
