"""The sections on the curvature: the largest eigenvalues of one run, and of several runs together."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import xarray as xr

from sgdscope import figures
from sgdscope.contracts import Evidence
from sgdscope.errors import Outcome
from sgdscope.report.page import figure, fold, missing, number, with_error
from sgdscope.report.points import Array, along, last, point_table, told
from sgdscope.report.reading import Page

UNIT = "loss/θ²"
NO_POINT = "{} was measured at no point: there are no two consecutive snapshots."


def curvature_section(page: Page) -> str:
    """What the curvature of one run shows; nothing where it was not measured."""
    data = page.evidence.measured.get("curvature")
    if data is None or "eigenvalue" not in data:
        return ""
    key, title = f"{page.key}-curvature", "Curvature"
    if data.sizes.get("step", 0) == 0:
        return fold(key, title, [missing(NO_POINT.format("The curvature"))], said="measured at no point.")
    first, *rest = curvature_words(data)
    parts = [f"<p>{' '.join(rest)}</p>" if rest else "", _table(data)]
    caption = (
        "Top: the largest eigenvalues of the Hessian on the evaluation set, bars their residuals, and the eigenvalue at which "
        "the recorded method becomes unstable on a parabola. Bottom: the loss."
    )
    parts.append(figure(lambda: figures.spectrum_walk(data, page.evidence.steps), caption))
    if "density" in data and np.isfinite(data["density"].values).any():
        caption = "How the eigenvalues are spread, smoothed by 1 % of their range; most of them lie near zero."
        parts.append(figure(lambda: figures.spectral_density(data), caption))
    return fold(key, title, parts, said=first)


def curvature_words(data: xr.Dataset) -> list[str]:
    """The largest eigenvalue at the last point, against the edge, and how it came there; then the rest of the spectrum."""
    top = along(data, "sharpness")
    converged = along(data, "sharpness_outcome") if "sharpness_outcome" in data else np.zeros(len(top))
    poor = converged == int(Outcome.not_converged)
    known = np.where(poor, np.nan, top)
    words = []
    if (index := last(known)) is None:
        words.append("No largest eigenvalue of the Hessian converged at any measured point.")
    else:
        here = " ".join([_largest(data, known, index), *_crossings(data, known)])
        words += [here, *_path(data, known), *_rest(data, index)]
    if poor.any():
        words.append(
            f"At {int(poor.sum())} of {len(top)} measured points the largest eigenvalue did not converge; "
            "they are marked, and not in these words."
        )
    return words


def _largest(data: xr.Dataset, known: Array, index: int) -> str:
    residual = along(data, "eigenvalue_residual", rank=1)[index]
    bound = f" (residual {number(residual)})" if np.isfinite(residual) else ""
    said = f"At update {_step(data, index)} the largest eigenvalue of the Hessian is {number(known[index])} {UNIT}{bound}"
    return f"{said}{edge_words(data, index)}."


def edge_words(data: xr.Dataset, index: int) -> str:
    """Where a point lies relative to the edge of the method, as a clause; empty where no edge is known."""
    edge, limit = along(data, "edge")[index], figures.edge_threshold(data)[index]
    if not np.isfinite(edge):
        return ""
    side = "above" if edge > 1 else "below"
    if np.isfinite(limit):
        return f", {number(edge)} times the {number(limit)} at which the method becomes unstable: {side} the edge"
    return f"; preconditioned as the method does, it is {number(edge)} times its threshold: {side} the edge"


def _crossings(data: xr.Dataset, known: Array) -> list[str]:
    """How many points lie above the edge: single points of a noisy walk say little."""
    edge = along(data, "edge")[np.isfinite(known)]
    edge = edge[np.isfinite(edge)]
    if len(edge) < 2:
        return []
    return [
        f"{int((edge > 1).sum())} of {len(edge)} points lie above the edge, their median is {number(np.median(edge))} times it."
    ]


def _path(data: xr.Dataset, known: Array) -> list[str]:
    """From the first point over the peak."""
    points = np.flatnonzero(np.isfinite(known))
    if len(points) < 2:
        return []
    first, peak = int(points[0]), int(np.nanargmax(known))
    begun = f"{number(known[first])} at update {_step(data, first)}"
    if peak == points[-1]:
        return [f"This is the largest of {len(points)} measured points; the first was {begun}."]
    if peak == first:
        return [f"The first of {len(points)} measured points was the largest, {begun}."]
    largest = f"{number(known[peak])} at update {_step(data, peak)}"
    return [f"Of {len(points)} measured points the first was {begun}, the largest {largest}."]


def _rest(data: xr.Dataset, index: int) -> list[str]:
    """The lowest eigenvalue, trace and effective rank, where they were measured."""
    lowest, trace, rank = (along(data, name)[index] for name in ("lowest_eigenvalue", "trace", "effective_rank"))
    words = []
    if np.isfinite(lowest):
        words.append(f"The smallest eigenvalue is {number(lowest)} {UNIT}.")
    if np.isfinite(trace):
        much = f", of an effective rank of {number(rank)}" if np.isfinite(rank) else ""
        words.append(f"The trace is {told(data, 'trace', index)} {UNIT}{much}.")
    return words


def _step(data: xr.Dataset, index: int) -> int:
    return int(data["step"].values[index])


COLUMNS = {
    "loss": "L",
    "sharpness": "λ<sub>1</sub>",
    "conditioning": "λ<sub>1</sub>/λ<sub>K</sub>",
    "half_eta_sharpness": "ηλ<sub>1</sub>/2",
    "edge": "λ<sub>1</sub>/edge",
    "lowest_eigenvalue": "λ<sub>min</sub>",
    "trace": "trace",
    "frobenius": "|H|<sub>F</sub>",
    "effective_rank": "effective rank",
    "invariant_sharpness": "λ<sub>1</sub> of |θ|H|θ|",
    "half_overlap": "overlap of halves",
    "basis_overlap": "overlap with last",
    "log_volume": "½ log det H",
}


def _table(data: xr.Dataset) -> str:
    columns = {label: (along(data, name), along(data, f"{name}_stderr")) for name, label in COLUMNS.items()}
    halves, edges = (along(data, name) for name in ("half_eta_sharpness", "edge"))
    if np.allclose(halves, edges, rtol=1e-6, atol=0, equal_nan=True):  # plain descent: one number
        del columns[COLUMNS["half_eta_sharpness"]]
    columns[COLUMNS["sharpness"]] = (along(data, "sharpness"), np.full(data.sizes["step"], np.nan))
    note = f'<p class="soft">λ<sub>i</sub>, trace and |H|<sub>F</sub> are in {UNIT}.</p>'
    return point_table(data, columns) + note


def curvature_across(pages: Sequence[Page]) -> str:
    """The curvature of several runs together; nothing where fewer than two runs have one."""
    evidence = [page.evidence for page in pages if "curvature" in page.evidence.measured]
    if len(evidence) < 2:
        return ""
    arms = " Colours are the factors γ of the step along the sharpest directions (Nudged-SGD); 1 is plain SGD."
    caption = "The largest eigenvalue over the updates, and the training loss at the same points."
    parts = ["<h3>Largest eigenvalue</h3>", *_ends(evidence)]
    parts.append(figure(lambda: figures.sharpness_paths(evidence), caption + (arms if figures.nudged(evidence) else "")))
    if sum(np.isfinite(figures.accuracy_of(item)) for item in evidence) > 1:
        caption = "One marker a run. Whether sharpness goes with accuracy is judged over settings and seeds (claims S14, S15)."
        parts.append(figure(lambda: figures.sharpness_against_accuracy(evidence), caption))
    return "".join(parts)


def _ends(evidence: Sequence[Evidence]) -> list[str]:
    """Mean of the last largest eigenvalue of each gamma, in words, where runs differ in it."""
    ends: dict[float, list[float]] = {}
    for item in evidence:
        values, gamma = along(item.measured["curvature"], "sharpness"), figures.gamma_of(item)
        if gamma is not None and (index := last(values)) is not None:
            ends.setdefault(gamma, []).append(float(values[index]))
    if len(ends) < 2:
        return []
    said = []
    for gamma, own in sorted(ends.items()):
        error = float(np.std(own, ddof=1) / np.sqrt(len(own))) if len(own) > 1 else float("nan")
        runs = f"{len(own)} runs" if len(own) > 1 else "1 run"
        said.append(f"{with_error(float(np.mean(own)), error)} with γ = {gamma:g} ({runs})")
    return [f"<p>At the last measured point the largest eigenvalue is {', '.join(said)}.</p>"]
