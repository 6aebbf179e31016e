"""Convex bodies that a walk can be kept in: box, ball, simplex, polytope, and what several have in common."""

from sgdscope.bodies.base import Body
from sgdscope.bodies.polytopes import Intersection, Polytope
from sgdscope.bodies.simple import NAMED, Ball, Box, BoxBall, Simplex, around

__all__ = ["NAMED", "Ball", "Body", "Box", "BoxBall", "Intersection", "Polytope", "Simplex", "around"]
