"""Tracked eigenpairs against dense solutions along a path of matrices."""

from dataclasses import replace

import pytest
import torch

from sgdscope.errors import ArgumentError, Outcome
from sgdscope.spectra import eigenpairs, rayleigh_ritz, track
from sgdscope.spectra.products import Eigenpairs

F64 = torch.float64
SIZE = 200


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rotation(seed):
    return torch.linalg.qr(torch.randn(SIZE, SIZE, dtype=F64, generator=generator(seed)))[0]


VALUES = torch.cat([torch.linspace(-0.5, 0.5, SIZE - 6, dtype=F64), torch.tensor([7.0, 5.5, 4.0, 3.0, 2.2, -3.7], dtype=F64)])
START = (rotation(1) * VALUES) @ rotation(1).T
NOISE = torch.randn(SIZE, SIZE, dtype=F64, generator=generator(2))
DIRECTION = (NOISE + NOISE.T) / (2 * SIZE) ** 0.5  # of norm about 2


class Counted:
    def __init__(self, matrix):
        self.matrix, self.count, self.seen = matrix, 0, []

    def __call__(self, v):
        self.count += 1
        self.seen.append(v / v.norm())
        return self.matrix @ v


def moved(step):
    return Counted(START + step * DIRECTION)


def residuals(matrix, found):
    return torch.linalg.vector_norm(matrix @ found.vectors - found.vectors * found.values, dim=0)


def pairs(k=5, which="top", tolerance=1e-6):
    return eigenpairs(moved(0.0), SIZE, k, which=which, tolerance=tolerance, dtype=F64)


@pytest.mark.parametrize("which", ["top", "bottom", "magnitude", "both"])
@pytest.mark.parametrize("step", [0.1, 0.001, 1e-5])
@pytest.mark.parametrize("k", [1, 2])
def test_a_path_of_matrices_is_followed(which, step, k):
    found, tolerance = pairs(k, which), 1e-3
    for i in range(1, 6):
        matvec = moved(step * i)
        found = track(matvec, found, tolerance=tolerance, generator=generator(i))
        exact = eigenpairs(moved(step * i), SIZE, k, which=which, tolerance=1e-9, dtype=F64)
        assert found.outcome == Outcome.ok
        assert found.products == matvec.count
        assert found.which == which
        assert found.values.shape == exact.values.shape
        torch.testing.assert_close(found.values, exact.values, rtol=tolerance, atol=0)
        true = residuals(matvec.matrix, found)
        limits = tolerance * torch.clamp(found.values.abs(), min=0.07)
        assert bool((true <= 1.2 * limits).all())
        if found.reason != "certified":
            torch.testing.assert_close(true, found.residuals, rtol=0.02, atol=1e-9)


def test_the_way_depends_on_the_distance_and_the_cost_on_the_way():
    before = pairs()
    cold = {step: eigenpairs(moved(step), SIZE, 5, dtype=F64).products for step in (1e-5, 1e-3, 0.1)}
    found = {step: track(moved(step), before) for step in (1e-5, 1e-3, 0.1)}
    assert [f.reason.split(";")[0] for f in found.values()] == ["certified", "refined", "lanczos"]
    assert found[1e-5].products == 1
    assert found[1e-3].products < 0.7 * cold[1e-3]
    assert found[0.1].products < cold[0.1]
    assert torch.equal(found[1e-5].values, before.values)
    assert float(found[1e-5].residuals.max()) > 0


def test_no_product_is_done_twice():
    for step in (1e-3, 0.1):
        matvec = moved(step)
        track(matvec, pairs())
        seen = torch.stack(matvec.seen)
        cosines = (seen @ seen.T - torch.eye(len(seen), dtype=F64)).abs()
        assert float(cosines.max()) < 0.9  # the test vector leans on the pairs it is made of, but repeats none


def test_one_pair_is_certified_with_its_new_value():
    before = pairs(1)
    found = track(moved(3e-4), before)
    assert found.reason == "certified"
    exact = float(torch.linalg.eigvalsh(moved(3e-4).matrix)[-1])
    assert abs(found.values.item() - exact) < 0.01 * abs(before.values.item() - exact)
    torch.testing.assert_close(residuals(moved(3e-4).matrix, found), found.residuals, rtol=0.1, atol=0)


def test_the_certificate_estimates_the_residuals():
    before, matrix = pairs(), moved(3e-4).matrix
    true = float((residuals(matrix, before) / before.values).square().sum().sqrt())
    assert 1e-4 < true < 4e-4
    estimates = []
    for seed in range(40):
        found = track(Counted(matrix), before, generator=generator(seed))
        assert found.reason == "certified"
        estimates.append(float((found.residuals / found.values)[0]))
    assert float(torch.tensor(estimates).std()) > 0.02 * true  # the signs are drawn
    squares = torch.tensor(estimates).square()
    assert float(squares.mean()) == pytest.approx(true**2, rel=0.25)  # its standard error is about 5 %
    assert 0.4 * true < min(estimates) < max(estimates) < 2 * true


def test_values_near_zero_do_no_harm():
    values = torch.cat([-2.0 - torch.linspace(0, 1, 40, dtype=F64), torch.tensor([3.0, 1e-9, -1e-12], dtype=F64)])
    before = eigenpairs(lambda v: values * v, 43, 3, tolerance=1e-6, dtype=F64)
    found = track(lambda v: (values + 0.01) * v, before)
    torch.testing.assert_close(found.values, torch.tensor([3.01, 0.01, 0.01], dtype=F64), rtol=1e-3, atol=0)
    for dtype in (torch.float32, F64):
        zero = eigenpairs(torch.zeros_like, 9, 2, dtype=dtype)
        assert track(torch.zeros_like, zero).values.tolist() == [0.0, 0.0]
        assert track(torch.zeros_like, eigenpairs(torch.zeros_like, 9, 1, dtype=dtype)).values.tolist() == [0.0]


def test_an_outlier_from_elsewhere_is_found_when_lanczos_runs():
    before = pairs(2)
    newcomer = rotation(1)[:, 10]
    matvec = Counted(START + 0.2 * DIRECTION + 9.0 * torch.outer(newcomer, newcomer))
    found = track(matvec, before, tolerance=1e-4)
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(matvec.matrix).flip(0)[:2], rtol=1e-6, atol=0)


def test_an_outlier_without_any_coupling_is_reached_through_the_random_share():
    before = pairs(2)
    matrix = torch.zeros(SIZE + 1, SIZE + 1, dtype=F64)
    matrix[:SIZE, :SIZE], matrix[SIZE, SIZE] = START + 0.2 * DIRECTION, 12.0
    padded = replace(before, vectors=torch.cat([before.vectors, torch.zeros(1, 2, dtype=F64)]))
    starts = [torch.Generator().manual_seed(seed) for seed in range(20)]
    found = [track(Counted(matrix), padded, tolerance=1e-4, generator=start).values[0].item() for start in starts]
    assert sum(abs(value - 12.0) < 1e-3 for value in found) >= 15  # 37 of 40 seeds; at a tolerance of 1e-3 half of them


def test_budgets_and_wrong_arguments_are_said():
    before = pairs()
    short = track(moved(0.1), before, budget=4)
    assert short.products == 4
    assert short.outcome == Outcome.not_converged
    assert short.reason.startswith("lanczos; the budget ended")
    for match, previous, options in (
        ("previous: expected pairs", Eigenpairs(torch.ones(0), torch.ones(SIZE, 0), torch.ones(0), 0), {}),
        ("previous: expected pairs", replace(before, which="largest"), {}),
        ("known: expected orthonormal", replace(before, vectors=2 * before.vectors), {}),
        ("tolerance: expected", before, {"tolerance": 0.0}),
        ("budget: expected", before, {"budget": 0}),
    ):
        with pytest.raises(ArgumentError, match=match):
            track(moved(0.1), previous, **options)
    with pytest.raises(ArgumentError, match="matvec: product 1 holds NaN"):
        track(lambda v: v * float("nan"), before)


def test_pairs_of_a_basis_can_be_followed():
    basis = rayleigh_ritz(moved(0.0), pairs(3).vectors @ torch.linalg.qr(NOISE[:3, :3])[0])
    found = track(moved(0.05), basis)
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(moved(0.05).matrix).flip(0)[:3], rtol=1e-5, atol=0)
