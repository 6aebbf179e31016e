"""Projections against quadratic programmes and against what defines them; depth, chords, reflection, and bodies that are none."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from sgdscope.bodies import Ball, Body, Box, BoxBall, Intersection, Polytope, Simplex, around
from sgdscope.bodies.polytopes import FEW, _least_distance
from sgdscope.errors import ArgumentError, SgdscopeError

LOW, HIGH = [-1.3, 0.2, -2.0], [0.4, 1.9, 0.7]
CENTRE = [-0.4, 1.1, -0.9]


def draws(seed, *shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def random_polytope(seed, d=3, m=9):
    """Random half-spaces round a point away from 0, and the faces of a box so that it is bounded."""
    normals, at = draws(seed, m, d), draws(seed + 50, d)
    a = torch.cat([normals, torch.eye(d, dtype=torch.float64), -torch.eye(d, dtype=torch.float64)])
    return Polytope(a, a @ at + torch.cat([0.4 + draws(seed + 99, m).abs(), torch.full((2 * d,), 2.0, dtype=torch.float64)]))


def flat(body):
    """Whether it lies in the plane of the simplex."""
    return isinstance(body, Simplex) or (isinstance(body, Intersection) and flat(body.bodies[0]))


def half_spaces(body):
    """The body as functions that are >= 0 inside, for SLSQP."""
    if isinstance(body, Box):
        return [lambda x: x - body.low.numpy(), lambda x: body.high.numpy() - x]
    if isinstance(body, Ball):
        return [lambda x: body.radius**2 - ((x - body.centre.numpy()) ** 2).sum()]
    if isinstance(body, BoxBall):
        return half_spaces(body.box) + half_spaces(body.ball)
    if isinstance(body, Intersection):
        return [f for part in body.bodies for f in half_spaces(part)]
    if isinstance(body, Polytope):
        return [lambda x: body.b.numpy() - body.a.numpy() @ x]
    return [lambda x: x]


BODIES = {
    "box": Box(LOW, HIGH),
    "ball": Ball(1.7, centre=CENTRE),
    "box and ball": BoxBall(Box(LOW, HIGH), Ball(1.05, centre=CENTRE)),
    "simplex": Simplex(3, total=1.6),
    "polytope": random_polytope(3),
    "narrow polytope": Polytope([[1, 0.02, 0], [-1, 0.02, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], [0.3, 0.3, 1.0, 0.5, 0.5]),
    "simplex and box": Intersection([Simplex(3, total=1.6), Box([0.1, -1.0, -1.0], [0.9, 0.5, 1.2])]),
    "polytope and ball": Intersection([random_polytope(7), Ball(1.2, centre=random_polytope(7).centre + 0.7)]),
}  # fmt: skip
every_body = pytest.mark.parametrize("name", BODIES)
WITNESSES = {name: body.project(body.centre + draws(5, 60, 3)) for name, body in BODIES.items()}
coordinates = st.lists(st.floats(-6, 6), min_size=3, max_size=3)


def by_slsqp(body, point):
    rules = [{"type": "ineq", "fun": f} for f in half_spaces(body)]
    if flat(body):
        rules.append({"type": "eq", "fun": lambda x: x.sum() - 1.6})
    found = minimize(
        lambda x: ((x - point) ** 2).sum(), body.centre.numpy(), jac=lambda x: 2 * (x - point), constraints=rules, method="SLSQP",
        options={"ftol": 1e-15, "maxiter": 500},
    )  # fmt: skip
    return found.x


@every_body
def test_projection_is_that_of_a_quadratic_programme(name):
    body, points = BODIES[name], BODIES[name].centre + 3 * draws(11, 12, 3)
    expected = np.stack([by_slsqp(body, p.numpy()) for p in points])
    assert np.allclose(body.project(points).numpy(), expected, atol=2e-6)
    assert float(torch.linalg.vector_norm(points - body.project(points), dim=1).min()) > 0.01 or flat(body)


@every_body
@given(y=coordinates, z=coordinates)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_projection_is_idempotent_non_expansive_and_optimal(name, y, z):
    body = BODIES[name]
    pair = torch.tensor([y, z], dtype=torch.float64)
    near = body.project(pair)
    assert bool(body.contains(near).all())
    assert torch.allclose(body.project(near), near, atol=1e-9)
    assert float((near[0] - near[1]).norm()) <= float((pair[0] - pair[1]).norm()) + 1e-9
    # (y - P y, x - P y) <= 0 for every x of the body: what defines P
    assert float(((pair[0] - near[0]) * (WITNESSES[name] - near[0])).sum(1).max()) <= 1e-7


@every_body
def test_points_inside_come_back_bit_for_bit_and_shapes_are_kept(name):
    body = BODIES[name]
    inside = body.centre + 0.3 * body.inner * torch.nn.functional.normalize(draws(4, 2, 5, 3), dim=-1)
    if flat(body):
        inside = torch.tensor([[0.7, 0.4, 0.5], [0.2, 0.3, 1.1]], dtype=torch.float64)
    kept = inside.clone()
    assert torch.equal(body.project(inside), inside)
    assert torch.equal(body.reflect(inside), inside)
    outside = draws(6, 2, 4, 3) * 5
    assert torch.allclose(body.project(outside)[1, 2], body.project(outside[1, 2]), atol=1e-12)
    assert torch.equal(inside, kept)  # the caller's own
    assert body.project(outside.float()).dtype == torch.float32


@every_body
def test_depth_boundary_and_radii(name):
    body = BODIES[name]
    assert float(body.depth(body.centre)) == pytest.approx(body.inner, rel=1e-7)
    far = body.project(body.centre + 40 * draws(8, 30, 3))
    assert bool(body.boundary(far).all())
    assert not bool(body.boundary(body.centre))
    assert float((far - body.centre).norm(dim=1).max()) <= body.radius * (1 + 1e-9)
    away = body.centre + 1.3 * body.radius * torch.nn.functional.normalize(draws(9, 30, 3), dim=-1)
    assert not bool(body.contains(away).any())
    assert (body.depth(away) <= 0).all()
    assert (body.depth(away) >= -torch.linalg.vector_norm(away - body.project(away), dim=1) - 1e-9).all()


@pytest.mark.parametrize("name", [name for name, body in BODIES.items() if not flat(body)])
def test_depth_is_the_largest_ball(name):
    body = BODIES[name]
    point = body.project(body.centre + 0.5 * body.inner * draws(2, 3))
    depth, around_it = float(body.depth(point)), torch.nn.functional.normalize(draws(3, 4000, 3), dim=-1)
    assert depth > 0
    assert bool(body.contains(point + 0.999 * depth * around_it).all())
    assert not bool(body.contains(point + 1.02 * depth * around_it).all())


@every_body
def test_chords_end_on_the_surface(name):
    body = BODIES[name]
    points, directions = body.project(body.centre + 0.2 * draws(1, 20, 3)), draws(2, 20, 3)
    if flat(body):
        assert torch.equal(body.chord(points, directions)[1], torch.zeros(20, dtype=torch.float64))  # they leave the plane
        directions -= directions.mean(1, keepdim=True)
    low, high = body.chord(points, directions)
    assert (low <= 1e-12).all()
    assert (high >= -1e-12).all()
    for end in (low, high):
        assert bool(body.boundary(points + end[:, None] * directions, 1e-8).all())
    assert float((high - low).median()) > 0.1


def test_the_methods_agree_with_each_other():
    points = 3 * draws(21, 199, 3)
    box, ball = Box(LOW, HIGH), Ball(1.05, centre=CENTRE)
    exact = BoxBall(box, ball).project(points)
    assert torch.allclose(Intersection([box, ball]).project(points), exact, atol=1e-9)
    assert torch.allclose(Intersection([ball, box]).project(points), exact, atol=1e-9)
    thrice = Intersection([box, ball, Box(LOW, [9.0, 9.0, 9.0])]).project(points)  # by Dykstra's method
    assert torch.allclose(thrice, exact, atol=1e-6)
    eye = torch.eye(3, dtype=torch.float64)
    as_rows = Polytope(torch.cat([eye, -eye]) * 2.5, 2.5 * torch.cat([box.high, -box.low]))
    assert torch.allclose(as_rows.project(points), box.project(points), atol=1e-12)
    body = BODIES["polytope"]
    outside = points[~body.contains(points)]
    assert FEW < len(outside) < 200
    sweeps = body.project(outside).numpy()
    assert np.allclose(np.stack([body.project(p).numpy() for p in outside]), sweeps, atol=1e-10)
    one_by_one = np.stack([_least_distance(p.numpy(), body.a.numpy(), body.b.numpy()) for p in outside])
    assert np.allclose(body.project(outside).numpy(), one_by_one, atol=1e-10)


def test_many_points_that_half_spaces_alone_do_not_bring_home():
    body = BODIES["narrow polytope"]
    points = body.centre + 3 * draws(31, 300, 3)
    one_by_one = torch.stack([body.project(p) for p in points])  # by the active-set method alone
    assert torch.allclose(body.project(points), one_by_one, atol=1e-10)


def test_a_ball_costs_few_projections_on_the_other_body(monkeypatch):
    body, asked = BODIES["polytope and ball"], []
    inner = body.bodies[0]._nearest
    monkeypatch.setattr(body.bodies[0], "_nearest", lambda points: asked.append(len(points)) or inner(points))
    near = body.project(body.centre + 3 * draws(12, 200, 3))
    assert bool(body.contains(near).all())
    assert len(asked) < 25  # the slowest of 200 points; 53 by bisection
    assert sum(asked) < 2500


@pytest.mark.parametrize("size", [1e-8, 1e9])
def test_what_counts_as_the_surface_is_in_proportion_to_the_body(size):
    body = Ball(size, centre=[0.3 * size, 0.0, -size])
    far, near = body.project(body.centre + 9 * size * draws(3, 50, 3)), body.centre + torch.tensor([0.0, size * (1 - 1e-6), 0.0])
    assert bool(body.boundary(far).all())
    assert not bool(body.boundary(near))


def test_known_projections():
    assert Simplex(3).project(torch.tensor([0.9, 0.5, -2.0], dtype=torch.float64)).tolist() == pytest.approx([0.7, 0.3, 0.0])
    assert Ball(2.0, centre=[1.0, 0.0]).project(torch.tensor([4.0, 4.0])).tolist() == pytest.approx([2.2, 1.6])
    corner = BoxBall(Box(-1.0, 1.0, size=2), Ball(1.25, size=2)).project(torch.tensor([9.0, 2.0], dtype=torch.float64))
    assert corner.tolist() == pytest.approx([1.0, 0.75])  # one coordinate on its face, the other on the sphere
    wide = BoxBall(Box(-1.0, 1.0, size=2), Ball(3.0, size=2))
    assert wide.project(torch.tensor([9.0, 0.3], dtype=torch.float64)).tolist() == [1.0, 0.3]
    assert wide.radius == pytest.approx(2**0.5)


def test_reflection():
    box = Box([-1.0, 2.0], [0.5, 4.0])
    folded = box.reflect(torch.tensor([[0.7, 1.5], [-6.8, 13.0], [0.1, 2.2]], dtype=torch.float64))
    assert torch.allclose(folded, torch.tensor([[0.3, 2.5], [-0.8, 3.0], [0.1, 2.2]], dtype=torch.float64))
    ball = Ball(2.0, centre=[1.0, 0.0])
    assert ball.reflect(torch.tensor([1.0, 2.5])).tolist() == pytest.approx([1.0, 1.5])
    assert bool(ball.contains(ball.reflect(torch.tensor([1.0, 90.0]))))
    uniform = torch.rand(200_000, 1, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 2 - 1
    moved = Box(-1.0, 1.0, size=1).reflect(uniform + 0.9 * draws(2, 200_000, 1))
    assert float((moved**2).mean()) == pytest.approx(1 / 3, abs=4 * 0.298 / 200_000**0.5)  # 4 standard errors: 6e-5 by chance
    clipped = Box(-1.0, 1.0, size=1).project(uniform + 0.9 * draws(2, 200_000, 1))
    assert float((clipped**2).mean()) > 0.5


def test_bodies_round_a_checkpoint():
    at = torch.tensor([3.0, -2.0])
    assert around("ball", at, 0.5).project(torch.tensor([3.0, 1.0])).tolist() == [3.0, -1.5]
    assert around("box", at, 0.5).project(torch.tensor([9.0, 1.0])).tolist() == [3.5, -1.5]
    assert around("space", at, None) is None
    assert around("box", at, 0.5).low.dtype == torch.float32
    with pytest.raises(ArgumentError, match="body: expected one of ball, box, space or a Body, got 'cube'"):
        around("cube", at, 0.5)
    with pytest.raises(ArgumentError, match="radius: expected a finite number > 0"):
        around("ball", at, None)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Box([0.0, 1.0], [1.0, 1.0]), "expected low < high in every coordinate, .* in coordinate 1: it is empty"),
        (lambda: Box(0.0, float("inf"), size=2), "high: expected finite numbers, as a body is bounded; 2 are not"),
        (lambda: Box(0.0, 1.0), "low: a single number needs size="),
        (lambda: Ball(0.0, size=2), "radius: expected a finite number > 0, got 0.0"),
        (lambda: Ball(float("inf"), size=2), "radius: expected a finite number > 0"),
        (lambda: Simplex(1), "size: expected a whole number >= 2"),
        (lambda: Polytope([[1.0], [-1.0]], [-2.0, 1.0]), "the polytope is empty"),
        (lambda: Polytope([[1.0, 0.0], [-1.0, 0.0]], [1.0, 1.0]), "the polytope is unbounded: nothing bounds coordinate 1"),
        (lambda: Polytope([[1.0, 0.0]], [1.0]), "the polytope is unbounded"),
        (lambda: Polytope([[1.0], [-1.0]], [1.0, -1.0]), "the polytope has no inner points"),
        (lambda: Polytope([[1.0], [0.0]], [1.0, 1.0]), "a: row 1 is zero"),
        (lambda: Polytope([[1.0], [-1.0]], [1.0]), r"b: expected \[2\], got shape \(1,\)"),
        (lambda: BoxBall(Box(0.0, 1.0, size=2), Ball(1.0, size=2)), "ball: expected its centre inside the box"),
        (lambda: Intersection([Box(0.0, 1.0, size=2)]), "bodies: expected at least two of one dimension"),
        (lambda: Intersection([Box(0.0, 1.0, size=2), Ball(1.0, centre=4.0, size=2)]), "bodies: they have no common point"),
        (lambda: Intersection([Box(0.0, 1.0, size=2), Box(2.0, 3.0, size=2)], sweeps=9), "bodies: they have no common point"),
        (lambda: Intersection([Ball(1.0, size=2), "box"]), "bodies: expected at least two of one dimension, got .* 'box'"),
        (lambda: BoxBall(Ball(1.0, size=2), Box(0.0, 1.0, size=2)), "box, ball: expected a Box and a Ball, got Ball"),
        (lambda: Box("wide", 1.0, size=2), "low: expected numbers, got 'wide'"),
        (lambda: Box(0.0, 1.0, size=0), r"low: expected \[d\], got shape \(0,\)"),
        (lambda: Box([0.0, 0.0], [1.0, 1.0, 1.0]), r"high: expected \[2\], got shape \(3,\)"),
        (lambda: Polytope([[1.0, 2.0], [1.0]], [1.0, 1.0]), "a: expected numbers, got"),
        (lambda: Ball(1.0, size=2).project([3.0, 4.0]), r"points: expected a tensor of floats \[\.\.\., 2\], got list"),
        (lambda: Ball(1.0, size=2).depth(torch.tensor([3, 4])), r"points: expected a tensor of floats .* got torch\.int64"),
        (lambda: Ball(1.0, size=3).project(torch.zeros(4, 2)), r"points: expected \[..., 3\], the dimension of Ball"),
    ],
)  # fmt: skip
def test_bodies_that_are_none_are_refused(make, message):
    with pytest.raises(ArgumentError, match=message):
        make()


@pytest.mark.parametrize("name", [name for name in BODIES if name != "box"])  # a box has a nearest point to infinite ones
def test_points_that_are_not_finite_have_no_projection(name):
    points = draws(1, 5, 3)
    points[2, 1] = torch.nan
    finite = BODIES[name].project(points).isfinite().all(1)
    assert finite.tolist() == [True, True, False, True, True]


def test_an_intersection_off_all_centres_has_an_inner_point():
    body = Intersection([Box([0.0, 0.0], [2.0, 1.0]), Ball(1.2, centre=[3.0, 0.0])])
    assert body.inner > 0.01
    assert float(body.depth(body.centre)) == pytest.approx(body.inner)


def test_a_projection_that_is_not_reached_is_said():
    body = Intersection([Box(LOW, HIGH), Ball(1.05, centre=CENTRE), Box(LOW, [9.0, 9.0, 9.0])], sweeps=1)
    with pytest.raises(SgdscopeError, match="is not reached after 1 sweeps: the last step"):
        body.project(5 * draws(2, 40, 3))


def test_every_body_is_one():
    assert all(isinstance(body, Body) and body.size == 3 for body in BODIES.values())
