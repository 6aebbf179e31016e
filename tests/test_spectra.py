"""Extreme eigenpairs against dense matrices."""

import pytest
import torch

from sgdscope.errors import ArgumentError, Outcome
from sgdscope.spectra import eigenpairs, lanczos, overlap, rayleigh_ritz
from sgdscope.spectra.krylov import Krylov
from sgdscope.spectra.products import clear

F32, F64 = torch.float32, torch.float64


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def rotation(size, seed=3):
    return torch.linalg.qr(torch.randn(size, size, dtype=F64, generator=generator(seed)))[0]


def dense(values, seed=3):
    values = torch.as_tensor(values, dtype=F64)
    turn = rotation(len(values), seed)
    matrix = turn @ torch.diag(values) @ turn.T
    return (matrix + matrix.T) / 2


class Counted:
    """A dense matrix as a matvec that counts for itself."""

    def __init__(self, matrix, dtype=F64):
        self.matrix, self.count = matrix.to(dtype), 0

    def __call__(self, v):
        self.count += 1
        return self.matrix @ v


def bulk(seed=1, size=70):
    return 0.3 * torch.randn(size, dtype=F64, generator=generator(seed))


SPECTRA = {
    "negative dominant": torch.cat([bulk(), torch.tensor([-9.0, 2.0, 1.7, -1.3, 4.1], dtype=F64)]),
    "plus and minus": torch.cat([bulk(), torch.tensor([5.0, -5.0, 3.0, -3.0, 2.0, -2.0], dtype=F64)]),
    "rank deficient": torch.cat([torch.zeros(60, dtype=F64), torch.tensor([3.0, 2.5, -2.0, 0.7, 1.1, -0.4], dtype=F64)]),
    "all negative": -0.5 - torch.linspace(0, 1, 30, dtype=F64) ** 2,
    "tiny": 1e-8 * torch.cat([bulk(), torch.tensor([6.0, 4.0, -7.0, 3.0], dtype=F64)]),
    "huge": 1e6 * torch.cat([bulk(), torch.tensor([6.0, 4.0, -7.0, 3.0], dtype=F64)]),
}


def truth(values, k, which):
    ascending = values.sort().values
    if which == "top":
        return ascending.flip(0)[:k]
    if which == "bottom":
        return ascending[:k].flip(0)
    if which == "both":
        return torch.cat([ascending.flip(0)[:k], ascending[:k].flip(0)])
    return values[values.abs().sort(descending=True, stable=True).indices][:k]


def residuals(matrix, found):
    vectors = found.vectors.double()
    return torch.linalg.vector_norm(matrix @ vectors - vectors * found.values, dim=0)


@pytest.mark.parametrize("dtype", [F64, F32], ids=["float64", "float32"])
@pytest.mark.parametrize("which", ["top", "bottom", "both", "magnitude"])
@pytest.mark.parametrize("name", SPECTRA)
def test_pairs_agree_with_the_dense_solution(name, which, dtype):
    values = SPECTRA[name]
    matrix, expected, norm = dense(values), truth(values, 3, which), float(values.abs().max())
    tolerance, rounding = (1e-8, 1e-14) if dtype == F64 else (1e-3, 1e-6)
    matvec = Counted(matrix, dtype)
    found = eigenpairs(matvec, len(values), 3, which=which, tolerance=tolerance, dtype=dtype, generator=generator(5))
    assert found.outcome == Outcome.ok
    assert found.products == matvec.count <= len(values)
    assert found.vectors.shape == (len(values), len(expected))
    assert found.vectors.dtype == dtype
    got = found.values if which != "magnitude" else found.values.abs()
    want = expected if which != "magnitude" else expected.abs()
    torch.testing.assert_close(got, want, rtol=0, atol=max(tolerance, rounding) * norm)
    true = residuals(matrix, found)
    limits = tolerance * torch.clamp(found.values.abs(), min=0.01 * norm)
    assert bool((found.residuals <= limits).all())
    torch.testing.assert_close(true, found.residuals, rtol=0.05, atol=10 * rounding * norm)
    inner = found.vectors.double().T @ found.vectors.double()
    torch.testing.assert_close(inner, torch.eye(len(expected), dtype=F64), rtol=0, atol=3 * rounding + 1e-13)


def test_values_come_with_their_own_vectors():
    values = SPECTRA["negative dominant"]
    matrix = dense(values)
    found = eigenpairs(Counted(matrix), len(values), 2, which="magnitude", dtype=F64, tolerance=1e-6)
    torch.testing.assert_close(found.values, torch.tensor([-9.0, 4.1], dtype=F64), rtol=1e-9, atol=0)
    exact = torch.linalg.eigh(matrix).eigenvectors
    assert overlap(found.vectors[:, :1], exact[:, :1]) > 1 - 1e-9
    assert overlap(found.vectors[:, 1:], exact[:, -1:]) > 1 - 1e-9


@pytest.mark.parametrize("which", ["top", "bottom", "both", "magnitude"])
@pytest.mark.parametrize("keep", [10, 14])
def test_thick_restart_finds_what_the_whole_basis_finds(which, keep):
    values = torch.cat([torch.linspace(-1.0, 1.0, 150, dtype=F64), torch.tensor([1.4, 1.2, -1.3, -1.25, 1.1], dtype=F64)])
    matrix = dense(values)
    matvec = Counted(matrix)
    kept = eigenpairs(matvec, len(values), 3, which=which, tolerance=1e-6, keep=keep, dtype=F64)
    whole = eigenpairs(Counted(matrix), len(values), 3, which=which, tolerance=1e-6, dtype=F64)
    assert kept.outcome == whole.outcome == Outcome.ok
    assert kept.products == matvec.count > keep
    torch.testing.assert_close(kept.values, whole.values, rtol=0, atol=1e-9)
    torch.testing.assert_close(residuals(matrix, kept), kept.residuals, rtol=0.01, atol=1e-12)
    assert kept.products >= whole.products


def test_a_repeated_value_shows_once_without_and_fully_with_a_check():
    values = torch.cat([bulk(), torch.tensor([4.0, 4.0, 4.0, 3.0, 2.0], dtype=F64)])
    matrix = dense(values)
    once = eigenpairs(Counted(matrix), len(values), 3, tolerance=1e-6, dtype=F64)
    torch.testing.assert_close(once.values, torch.tensor([4.0, 3.0, 2.0], dtype=F64), rtol=1e-8, atol=0)
    matvec = Counted(matrix)
    all_three = eigenpairs(matvec, len(values), 3, tolerance=1e-6, dtype=F64, check=6)
    torch.testing.assert_close(all_three.values, torch.tensor([4.0, 4.0, 4.0], dtype=F64), rtol=1e-8, atol=0)
    assert all_three.products == matvec.count
    assert float(residuals(matrix, all_three).max()) <= 4.1e-6
    assert overlap(all_three.vectors, torch.linalg.eigh(matrix).eigenvectors[:, -3:]) > 1 - 1e-9


@pytest.mark.parametrize("keep", [7, 12])
def test_a_check_and_restarts_go_together(keep):
    values = torch.cat([torch.linspace(-1.0, 1.0, 80, dtype=F64), torch.tensor([1.9, 1.9, 1.5, 1.5, 1.2], dtype=F64)])
    matrix = dense(values)
    found = eigenpairs(Counted(matrix), len(values), 4, tolerance=1e-6, dtype=F64, check=15, keep=keep)
    torch.testing.assert_close(found.values, torch.tensor([1.9, 1.9, 1.5, 1.5], dtype=F64), rtol=1e-9, atol=0)
    true = residuals(matrix, found)
    assert bool((true <= 1.5 * found.residuals).all())
    assert bool((found.residuals <= 1e-6 * found.values).all())


def test_loosely_found_pairs_do_not_look_like_asymmetry():
    values = torch.cat([torch.linspace(-1.0, 1.0, 80, dtype=F64), torch.tensor([1.9, 1.9, 1.5, 1.5, 1.2], dtype=F64)])
    found = eigenpairs(Counted(dense(values)), len(values), 4, tolerance=0.05, dtype=F64, check=15, keep=7)
    torch.testing.assert_close(found.values, torch.tensor([1.9, 1.9, 1.5, 1.5], dtype=F64), rtol=0.02, atol=0)


def test_vectors_are_cleared_to_rounding():
    rows = rotation(50)[:6]
    nearly = rows.T @ torch.arange(1.0, 7.0, dtype=F64) + 1e-9 * rotation(50)[20]
    rest = clear(nearly, rows)
    assert float((rows @ rest).abs().max()) < 1e-20
    torch.testing.assert_close(rest, 1e-9 * rotation(50)[20], rtol=0, atol=1e-14)


def test_a_check_that_finds_nothing_costs_its_products_and_changes_nothing():
    values = SPECTRA["negative dominant"]
    plain = eigenpairs(Counted(dense(values)), len(values), 2, dtype=F64)
    checked = eigenpairs(Counted(dense(values)), len(values), 2, dtype=F64, check=7)
    assert checked.products == plain.products + 7
    torch.testing.assert_close(checked.values, plain.values, rtol=1e-6, atol=0)


def test_repeats_are_found_where_the_krylov_space_breaks_down():
    values = torch.tensor([3.0, 3.0, 1.5, 1.5, 1.5, -2.0, -2.0], dtype=F64)
    first = eigenpairs(Counted(dense(values)), 7, 3, dtype=F64)
    torch.testing.assert_close(first.values, torch.tensor([3.0, 1.5, -2.0], dtype=F64), rtol=0, atol=1e-10)
    assert first.products == 3
    found = eigenpairs(Counted(dense(values)), 7, 5, dtype=F64, check=2)
    torch.testing.assert_close(found.values, truth(values, 5, "top"), rtol=0, atol=1e-10)
    assert found.outcome == Outcome.ok


@pytest.mark.parametrize("dtype", [F64, F32])
def test_smallest_cases(dtype):
    one = eigenpairs(lambda v: -2.5 * v, 1, 1, dtype=dtype)
    assert one.values.tolist() == [-2.5]
    assert one.products == 1
    assert one.outcome == Outcome.ok
    zero = eigenpairs(torch.zeros_like, 9, 2, dtype=dtype)
    assert zero.values.tolist() == [0.0, 0.0]
    assert zero.outcome == Outcome.ok
    torch.testing.assert_close(zero.vectors.T @ zero.vectors, torch.eye(2, dtype=dtype))
    values = [4.0, -3.0, 0.5]
    every = eigenpairs(Counted(dense(values), dtype), 3, 7, dtype=dtype)
    torch.testing.assert_close(every.values, torch.tensor([4.0, 0.5, -3.0], dtype=F64), rtol=0, atol=1e-5)
    assert every.outcome == Outcome.ok
    assert "all 3 pairs of the matrix; 7 were asked for" in every.reason
    both = eigenpairs(Counted(dense(values), dtype), 3, 2, which="both", dtype=dtype)
    torch.testing.assert_close(both.values, torch.tensor([4.0, 0.5, -3.0], dtype=F64), rtol=0, atol=1e-5)


def test_a_budget_too_small_is_said_and_what_there_is_comes_back():
    values = SPECTRA["negative dominant"]
    found = eigenpairs(Counted(dense(values)), len(values), 4, tolerance=1e-9, budget=9, dtype=F64)
    assert found.products == 9
    assert len(found.values) == 4
    assert found.outcome == Outcome.not_converged
    assert "the budget ended" in found.reason
    assert "residuals miss the tolerance" in found.reason
    torch.testing.assert_close(residuals(dense(values), found), found.residuals, rtol=1e-6, atol=1e-12)
    fewer = eigenpairs(Counted(dense(values)), len(values), 4, budget=3, dtype=F64)
    assert len(fewer.values) == 3
    assert "only 3 of 4 pairs" in fewer.reason
    assert fewer.outcome == Outcome.not_converged


def test_a_tolerance_below_rounding_ends_and_says_so():
    values = SPECTRA["negative dominant"]
    found = eigenpairs(Counted(dense(values), F32), len(values), 2, tolerance=1e-12)
    assert found.outcome == Outcome.not_converged
    assert "use float64" in found.reason


def test_a_good_start_saves_products_and_does_not_hide_the_rest():
    values = torch.cat([torch.linspace(-1.0, 1.0, 300, dtype=F64), torch.tensor([1.6, 1.3], dtype=F64)])
    matrix = dense(values)
    vectors = torch.linalg.eigh(matrix).eigenvectors
    cold = eigenpairs(Counted(matrix), len(values), 1, dtype=F64)
    start = 100 * vectors[:, -1] + vectors @ torch.linspace(0, 1, len(values), dtype=F64)
    warm = eigenpairs(Counted(matrix), len(values), 1, dtype=F64, start=start)
    assert warm.products <= 0.7 * cold.products
    exact = eigenpairs(Counted(matrix), len(values), 1, dtype=F64, start=vectors[:, -1] + 0.01 * vectors[:, -2])
    assert exact.products <= 0.5 * cold.products  # the random part that is mixed in is small
    hidden = eigenpairs(Counted(matrix), len(values), 1, dtype=F64, start=vectors[:, -2], tolerance=1e-4)
    assert hidden.values.item() == pytest.approx(1.6, rel=1e-6)


def test_by_default_the_basis_is_bounded_in_bytes(monkeypatch):
    values = torch.cat([torch.linspace(-1.0, 1.0, 400, dtype=F64), torch.tensor([1.1, 1.05], dtype=F64)])
    held_rows = []
    step = Krylov.step
    monkeypatch.setattr(Krylov, "step", lambda self, *given: (step(self, *given), held_rows.append(len(self._rows)))[0])
    whole = eigenpairs(lambda v: values * v, 402, 1, tolerance=1e-6, dtype=F64)
    assert max(held_rows) > 33
    held_rows.clear()
    monkeypatch.setattr(lanczos, "MEMORY", 20 * 402 * 8)
    kept = eigenpairs(lambda v: values * v, 402, 1, tolerance=1e-6, dtype=F64)
    assert max(held_rows) == 21  # 20 and the next one
    torch.testing.assert_close(kept.values, whole.values, rtol=1e-9, atol=0)


@pytest.mark.parametrize("share", [0.002, 0.01, 1.0])
def test_a_matrix_that_is_not_symmetric_is_refused(share):
    values = torch.linspace(-1.0, 2.0, 60, dtype=F64)
    noise = torch.randn(60, 60, dtype=F64, generator=generator(9))
    noise = noise - noise.T
    skew = share * 2.0 / float(torch.linalg.matrix_norm(noise, 2)) * noise
    with pytest.raises(ArgumentError, match=r"matvec: expected a symmetric matrix, got .* asymmetric by \d"):
        eigenpairs(Counted(dense(values) + skew, F32), 60, 6)
    assert eigenpairs(Counted(dense(values) + 1e-5 * skew, F32), 60, 6).outcome == Outcome.ok
    with pytest.raises(ArgumentError, match="matvec: expected a symmetric matrix"):
        rayleigh_ritz(Counted(dense(values) + 5 * skew), rotation(60)[:, :20])


def test_products_that_are_not_finite_are_named():
    def breaks(v):
        breaks.count += 1
        return torch.full_like(v, float("nan")) if breaks.count == 4 else torch.linspace(1, 2, 30) * v

    breaks.count = 0
    with pytest.raises(ArgumentError, match="matvec: product 4 holds NaN or infinity"):
        eigenpairs(breaks, 30, 3)
    with pytest.raises(ArgumentError, match=r"matvec: expected a tensor of shape \[30\], got \(29,\) at product 1"):
        eigenpairs(lambda v: v[:-1], 30, 3)


WRONG = {
    "k": {"k": 0},
    "budget": {"budget": 0},
    "tolerance": {"tolerance": 0.0},
    "tolerance:": {"tolerance": float("nan")},
    "which": {"which": "largest"},
    "keep": {"k": 3, "keep": 4},
    "check": {"check": -1},
    "dtype": {"dtype": torch.float16},
    "start": {"start": torch.zeros(20)},
    "start: expected finite": {"start": torch.full((20,), torch.inf)},
    "start: expected a tensor of shape": {"start": torch.ones(19)},
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_arguments_are_named(name):
    with pytest.raises(ArgumentError, match=f"^{name}"):
        eigenpairs(lambda v: v, 20, WRONG[name].get("k", 1), **{k: v for k, v in WRONG[name].items() if k != "k"})
    for size in (0, 2.0):
        with pytest.raises(ArgumentError, match=r"^size"):
            eigenpairs(lambda v: v, size, 1)


def test_nothing_of_the_caller_is_touched():
    kept = []

    def remembers(v):
        kept.append((v, v.clone()))
        v.mul_(torch.linspace(1, 3, 25))  # a matvec that works in place
        return v

    start, before = torch.ones(25), torch.get_rng_state()
    first = eigenpairs(remembers, 25, 2, start=start)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(start, torch.ones(25))
    assert all(torch.equal(v, copy * torch.linspace(1, 3, 25)) for v, copy in kept)
    torch.testing.assert_close(first.values[0].item(), 3.0, rtol=1e-5, atol=0)
    again = eigenpairs(remembers, 25, 2, start=start)
    assert torch.equal(first.vectors, again.vectors)
    offloaded = eigenpairs(remembers, 25, 2, start=start, offload=True)
    assert torch.equal(first.vectors, offloaded.vectors)


def test_rayleigh_ritz_is_exact_within_its_span():
    values = SPECTRA["plus and minus"]
    matrix = dense(values)
    _, vectors = torch.linalg.eigh(matrix)
    mixed = vectors[:, -4:] @ rotation(4, 8) + 0.01 * vectors[:, :4]
    matvec = Counted(matrix)
    found = rayleigh_ritz(matvec, 3.0 * mixed)
    q = torch.linalg.qr(mixed)[0]
    torch.testing.assert_close(found.values, torch.linalg.eigvalsh(q.T @ matrix @ q).flip(0), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(residuals(matrix, found), found.residuals, rtol=1e-9, atol=1e-12)
    assert found.products == matvec.count == 4
    assert float(found.residuals.min()) > 0.01
    with pytest.raises(ArgumentError, match="basis: expected linearly independent"):
        rayleigh_ritz(matvec, torch.cat([mixed, mixed[:, :1]], 1))
    with pytest.raises(ArgumentError, match="basis: expected finite numbers"):
        rayleigh_ritz(matvec, mixed[:, 0])


def test_overlap_against_principal_angles():
    a, b = rotation(30)[:, :3], rotation(30, 4)[:, :5]
    cosines = torch.linalg.svdvals(a.T @ b)
    assert overlap(2.0 * a, b @ rotation(5, 6)) == pytest.approx(float((cosines**2).mean()), rel=1e-10)
    assert 0.02 < overlap(a, b) < 0.6
    assert overlap(a, rotation(30)[:, 2:9]) == pytest.approx(1 / 3, abs=1e-12)
    assert overlap(a, rotation(30)[:, 3:9]) == pytest.approx(0.0, abs=1e-12)
    with pytest.raises(ArgumentError, match="a, b: expected the same P"):
        overlap(a, b[:20])
