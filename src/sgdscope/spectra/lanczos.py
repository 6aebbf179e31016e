"""Extreme eigenpairs by Lanczos with full reorthogonalisation, a test at every step and thick restarts."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.linalg import eigh_tridiagonal
from torch import Tensor

from sgdscope.errors import ArgumentError, Outcome
from sgdscope.spectra.krylov import Krylov
from sgdscope.spectra.products import Array, Eigenpairs, Matvec, Products, normal, positive, private, refuse_asymmetry

WHICH = ("top", "bottom", "both", "magnitude")
MIXED = 0.01  # share of random direction in a given start: a start without a component along an eigenvector never finds it
SMALL = 0.01  # of the largest |Ritz value|: below it a residual is held against this, not against the value itself
FLOOR = 4.0  # eps times the largest |Ritz value|: what rounding leaves of a residual
MEMORY = 2**30  # bytes of basis held when `keep` is None
EVERY = 100  # basis vectors above which not every step is tested


DENSE = 32  # rows up to which a dense solver beats a tridiagonal one, whose checks cost 0.1 ms a call


@dataclass(frozen=True)
class Goal:
    """What is wanted of the spectrum.

    Attributes:
        which: the end.
        wanted: number of pairs.
        tolerance: of a residual, relative to max(|value|, 0.01 largest |Ritz value|).
    """

    which: str
    wanted: int
    tolerance: float

    def order(self, values: Array) -> NDArray[np.intp]:
        """Order Ritz values by how much they are wanted.

        Args:
            values: [m] ascending.

        Returns:
            [m] indices.
        """
        m = len(values)
        if self.which == "bottom":
            return np.arange(m)
        if self.which == "magnitude":
            return np.argsort(-np.abs(values), kind="stable")
        falling = np.arange(m)[::-1]
        return falling if self.which == "top" else np.ravel(np.column_stack([falling, np.arange(m)]))[:m]

    def scale(self, values: Array, norm: float) -> Array:
        """What the residuals are held against.

        Args:
            values: [k].
            norm: largest |Ritz value|.

        Returns:
            [k].
        """
        return np.maximum(np.abs(values), SMALL * norm)


@dataclass(frozen=True)
class Ritz:
    """Wanted Ritz pairs of a Krylov space.

    Attributes:
        values: [k].
        rotation: [m, k], columns of the small eigenvectors.
        residuals: [k], never below what rounding leaves.
        limits: [k], the residual allowed.
        floor: what rounding leaves.
    """

    values: Array
    rotation: Array
    residuals: Array
    limits: Array
    floor: float

    @property
    def converged(self) -> bool:
        """Each residual is within its limit, or as small as rounding lets it be."""
        return bool((self.residuals <= np.maximum(self.limits, self.floor)).all())


def _columns(krylov: Krylov, indices: NDArray[np.intp]) -> tuple[Array, Array]:
    """Small eigenpairs at ascending indices of a tridiagonal T, run by run."""
    diagonal, below = krylov.diagonals()
    runs = np.split(indices, np.flatnonzero(np.diff(indices) != 1) + 1)
    found = [eigh_tridiagonal(diagonal, below, select="i", select_range=(int(run[0]), int(run[-1]))) for run in runs]
    return np.concatenate([w for w, _ in found]), np.concatenate([s for _, s in found], axis=1)


def _ritz(krylov: Krylov, goal: Goal, *, whole: bool = False) -> Ritz | None:
    """The wanted pairs; None as soon as the least wanted of them is seen not to meet its limit (unless `whole`)."""
    long = krylov.tridiagonal and krylov.length > DENSE
    if long:
        everything: Array = eigh_tridiagonal(*krylov.diagonals(), eigvals_only=True).astype(np.float64)
    else:
        everything, rotations = np.linalg.eigh(krylov.matrix())
    norm = float(np.abs(everything).max())
    floor = FLOOR * krylov.products.eps * norm
    order = goal.order(everything)[: goal.wanted]
    last, ordered = order[-1:], np.sort(order)
    for indices in (last, ordered) if long and not whole else (ordered,):
        values, rotation = _columns(krylov, indices) if long else (everything[indices], rotations[:, indices])
        limits = goal.tolerance * goal.scale(values, norm)
        ritz = Ritz(values, rotation, np.maximum(krylov.residuals(rotation), floor), limits, floor)
        if not whole and not ritz.converged:
            return None
    return ritz


def _converge(krylov: Krylov, goal: Goal, budget: int, least: int) -> bool:
    """Step until the wanted pairs meet their limits, for `least` products at least; False when the budget ends first."""
    while krylov.length < krylov.products.size:
        if krylov.products.count >= budget:
            return False
        if krylov.length == krylov.keep:
            values, rotations = np.linalg.eigh(krylov.matrix())
            kept = min(goal.wanted + (krylov.keep - goal.wanted) // 2, krylov.keep - 1)
            krylov.restart(values, rotations, goal.order(values)[:kept])
        krylov.step()
        due = krylov.products.count >= least and krylov.length % (1 + krylov.length // EVERY) == 0
        if due and krylov.length >= goal.wanted and _ritz(krylov, goal) is not None:
            return True
    return True


def _search(krylov: Krylov, goal: Goal, budget: int, check: int) -> str:
    """Converge, then look with fresh random vectors for what was missed, until nothing is; return what was cut short."""
    before, least = None, 0
    while _converge(krylov, goal, budget, least):
        if not check or krylov.length == krylov.products.size:
            return ""
        ritz = _ritz(krylov, goal, whole=True)
        assert ritz is not None
        if before is not None and bool((np.abs(ritz.values - before) <= ritz.limits).all()):
            return ""
        before, least = ritz.values, krylov.products.count + check
        krylov.lock(ritz.values, ritz.rotation)
    return "the budget ended" if before is None else "the budget ended during the check for missed pairs"


def _result(krylov: Krylov, goal: Goal, notes: list[str]) -> Eigenpairs:
    """Ritz vectors and the words that go with them."""
    ritz = _ritz(krylov, goal, whole=True)
    assert ritz is not None
    short = goal.wanted - len(ritz.values)
    missed = int((ritz.residuals > ritz.limits).sum())
    if short:
        notes.append(f"only {len(ritz.values)} of {goal.wanted} pairs were reached")
    if missed:
        worst = float((ritz.residuals / ritz.limits).max()) * goal.tolerance
        cause = f"; {krylov.products.dtype} rounding allows no less, use float64" if ritz.converged else ""
        notes.append(f"{missed} of {len(ritz.values)} residuals miss the tolerance (worst {worst:.1e} relative){cause}")
    order = np.argsort(-np.abs(ritz.values) if goal.which == "magnitude" else -ritz.values, kind="stable")
    return Eigenpairs(
        values=torch.from_numpy(ritz.values[order].copy()),
        vectors=krylov.vectors(ritz.rotation[:, order]),
        residuals=torch.from_numpy(ritz.residuals[order].copy()),
        products=krylov.products.count,
        outcome=Outcome.not_converged if short or missed else Outcome.ok,
        reason="; ".join(notes) or "converged",
        which=goal.which,
    )


def _start(products: Products, start: Tensor | None, generator: torch.Generator) -> Tensor:
    """A random direction, or the given one with a random part mixed in."""
    fresh = normal(products, generator)
    fresh /= torch.linalg.vector_norm(fresh)
    if start is None:
        return fresh
    if not isinstance(start, Tensor) or start.shape != (products.size,):
        got = tuple(start.shape) if isinstance(start, Tensor) else type(start).__name__
        raise ArgumentError(f"start: expected a tensor of shape [{products.size}], got {got}")
    given = start.detach().to(products.home, products.dtype)
    norm = float(torch.linalg.vector_norm(given))
    if not (math.isfinite(norm) and norm > 0):
        raise ArgumentError(f"start: expected finite values that are not all zero, got norm {norm}; None takes a random one")
    return fresh.mul_(MIXED).add_(given, alpha=1 / norm)


def held(size: int, wanted: int, keep: int | None, dtype: torch.dtype) -> int:
    """Basis vectors held at most."""
    least = min(wanted + 2, size)
    if keep is None:
        return min(size, max(MEMORY // (size * dtype.itemsize), 2 * wanted + 10))
    positive("keep", keep)
    if keep < least:
        raise ArgumentError(f"keep: expected at least {least} basis vectors for {wanted} pairs, got {keep}")
    return min(keep, size)


def krylov_of(products: Products, goal: Goal, keep: int | None, generator: torch.Generator) -> Krylov:
    """Make an empty Krylov space for a goal.

    Args:
        products: the matrix.
        goal: what is wanted.
        keep: as in `eigenpairs`.
        generator: for fresh vectors.

    Returns:
        The space, still without a start.
    """
    return Krylov(products, held(products.size, goal.wanted, keep, products.dtype), generator)


def run(krylov: Krylov, goal: Goal, budget: int | None, *, check: int = 0, note: str = "") -> Eigenpairs:
    """Run a started Krylov space to its goal.

    Args:
        krylov: the space.
        goal: what is wanted.
        budget: products at most, those already spent included; None for 500 + 50 a pair.
        check: as in `eigenpairs`.
        note: goes before the reason.

    Returns:
        The pairs.
    """
    notes = [note] if note else []
    cut = _search(krylov, goal, 500 + 50 * goal.wanted if budget is None else budget, check)
    return _result(krylov, goal, notes + [cut] * bool(cut))


def goal_of(which: str, k: int, size: int, tolerance: float) -> Goal:
    """Check what is wanted.

    Args:
        which: the end.
        k: number of pairs.
        size: P.
        tolerance: of the residuals.

    Returns:
        The goal, of at most P pairs.

    Raises:
        ArgumentError: an argument is out of range.
    """
    if which not in WHICH:
        raise ArgumentError(f"which: expected one of {', '.join(WHICH)}, got {which!r}")
    positive("k", k)
    positive("tolerance", tolerance, whole=False)
    return Goal(which, min(2 * k if which == "both" else k, size), tolerance)


def eigenpairs(
    matvec: Matvec,
    size: int,
    k: int = 1,
    *,
    which: str = "top",
    tolerance: float = 1e-3,
    start: Tensor | None = None,
    budget: int | None = None,
    keep: int | None = None,
    check: int = 0,
    offload: bool = False,
    generator: torch.Generator | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Eigenpairs:
    """Find extreme eigenpairs of a symmetric matrix from its products alone.

    Lanczos: A V = V T + beta v e_m' with orthonormal V (reorthogonalised twice at every step); T s = l s gives the pair
    (l, V s) with residual |beta s_m|, which costs no product and is tested at every step (above m = 100 every 1 + m / 100 steps).
    Done when for each wanted pair |beta s_m| <= tolerance max(|l|, 0.01 largest |Ritz value|). Residuals are reported not
    below 4 eps largest |Ritz value|, what rounding leaves. A breakdown (beta ~ 0) ends with the pairs found, or goes on from
    a fresh random vector orthogonal to them if more are wanted.

    Small residuals prove that these are eigenpairs, not that none was missed: from one start a repeated eigenvalue shows once,
    and an outlier nearly orthogonal to a given start may not show. `check` looks for both. The smallest eigenvalues in
    magnitude are not offered: they lie inside the spectrum, where products alone converge hopelessly slowly and where a network's
    Hessian has thousands of them near zero.

    Args:
        matvec: v [P] -> A v [P], symmetric.
        size: P.
        k: pairs wanted; all P where there are no more, and the reason says so.
        which: "top" algebraically largest, "bottom" smallest, "both" k from each end, "magnitude" largest |value|.
        tolerance: relative residual, > 0.
        start: [P] a good first direction, such as a gradient; 1 % of a random one is mixed in. None for a random one.
        budget: products at most; None for 500 + 50 a pair.
        keep: basis vectors held at most (>= pairs + 2); thick restart (Krylov-Schur) on reaching it with the wanted Ritz
            vectors and half of the others. None for 1 GiB, or 2 k + 10 vectors if that is more.
        check: products of further Lanczos from a random vector orthogonal to the converged pairs, again after every find;
            0 for none.
        offload: the basis stays on the CPU while the products run on `device`.
        generator: None for a private one of a fixed seed.
        dtype: of basis and products, float32 or float64; the small matrix is float64 always.
        device: of the products.

    Returns:
        Pairs in descending order, fewer than k if the budget ends before k products; not_converged if a residual misses.

    Raises:
        ArgumentError: an argument is out of range, a product is not finite, or the projected matrix is asymmetric by more
            than 1e-3 of the largest |A v| (the upper part comes free with the reorthogonalisation).

    Cost: 10 pairs of a network's Hessian took 20-50 products, 80 before any training; memory (products + 1) P (at most keep + 1),
    up to three times that for a moment where the basis grows, 8 m P flops a step.

    Source: Lanczos (1950); thick restart after Wu and Simon (2000), SIAM J. Matrix Anal. Appl. 22, 602.

    Example:
        >>> diagonal = torch.tensor([3.0, -7.0, 1.0, 0.5])
        >>> found = eigenpairs(lambda v: diagonal * v, 4, 1)
        >>> round(found.values.item(), 4), found.outcome.name
        (3.0, 'ok')
    """
    goal = goal_of(which, k, size if isinstance(size, int) else 1, tolerance)
    if budget is not None:
        positive("budget", budget)
    if check:
        positive("check", check)
    products = Products(matvec, size, dtype=dtype, device=device, home="cpu" if offload else None)
    generator = private(generator)
    krylov = krylov_of(products, goal, keep, generator)
    krylov.begin(_start(products, start, generator))
    asked = 2 * k if which == "both" else k
    note = f"all {size} pairs of the matrix; {asked} were asked for" if asked > size else ""
    return run(krylov, goal, budget, check=check, note=note)


def rayleigh_ritz(matvec: Matvec, basis: Tensor, *, which: str = "top") -> Eigenpairs:
    """Find the best pairs within the span of a basis: eigenpairs of Q'AQ, Q = orth(basis), and their true residuals.

    Args:
        matvec: v [P] -> A v [P], symmetric.
        basis: [P, k] of full rank, float32 or float64; its dtype and device are those of the products.
        which: carried over to the result, for `track`.

    Returns:
        k pairs, descending; the outcome is always ok, the residuals say how good they are. Cost: k products.

    Raises:
        ArgumentError: the basis is no full-rank matrix of finite numbers, or the projected matrix is not symmetric.
    """
    if basis.ndim != 2 or not 1 <= basis.shape[1] <= basis.shape[0] or not bool(torch.isfinite(basis).all()):
        raise ArgumentError(f"basis: expected finite numbers of shape [P, k], 1 <= k <= P, got shape {tuple(basis.shape)}")
    products = Products(matvec, basis.shape[0], dtype=basis.dtype, device=basis.device)
    q, r = torch.linalg.qr(basis.detach())
    diagonal = r.diagonal().abs()
    if float(diagonal.min()) <= 10 * products.eps * float(diagonal.max()):
        raise ArgumentError("basis: expected linearly independent columns; drop those that depend on others")
    images = products.on(q.T.contiguous())
    projected = (images @ q).double().cpu().numpy()
    refuse_asymmetry(float(np.linalg.norm(projected - projected.T)) / math.sqrt(2), float(np.linalg.norm(projected, 2)))
    values, rotation = np.linalg.eigh((projected + projected.T) / 2)
    values, rotation = values[::-1].copy(), rotation[:, ::-1].copy()
    turn = torch.from_numpy(rotation).to(q)
    vectors = q @ turn
    rest = images.T @ turn - vectors * torch.from_numpy(values).to(q)
    residuals = torch.linalg.vector_norm(rest, dim=0).double().cpu()
    reason = f"within a given span of {len(values)} dimensions"
    return Eigenpairs(torch.from_numpy(values), vectors, residuals, products.count, reason=reason, which=which)
