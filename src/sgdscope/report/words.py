"""What was seen, in plain words with numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from sgdscope import figures, notation
from sgdscope.contracts import Evidence
from sgdscope.report.curvature import curvature_words
from sgdscope.report.directions import batch_words, neurons_words, sharpest_words
from sgdscope.report.noise import escape_words, noise_words, regime
from sgdscope.report.page import number, plain, safe, with_error, with_interval
from sgdscope.report.points import along, last, told
from sgdscope.report.reading import Page, read
from sgdscope.report.verdicts import MARKS, AnyVerdict, fields
from sgdscope.report.visits import visit_words


def seen(pages: Sequence[Page], verdicts: Sequence[AnyVerdict]) -> str:
    """The box at the top of the page: a single run in words or one row for each of several, and one sentence on the claims."""
    alone = f"<p><strong>{safe(pages[0].name)}</strong>: {sentence(pages[0])}</p>"
    items = [_overview(pages) if len(pages) > 1 else alone]
    counts = {answer: sum(fields(v)["verdict"] == answer for v in verdicts) for answer in MARKS}
    if verdicts:
        told = ", ".join(f"{count} {answer}" for answer, count in counts.items() if count)
        items.append(f'<p>Of {len(verdicts)} claims checked: {told} (<a href="#verdicts">the table</a>).</p>')
    return f'<section class="seen" id="seen"><h2>What was seen</h2>{"".join(items)}</section>'


NUMBERS = ("batch loss", "floor inside", "height", "cosine", "λ<sub>1</sub>/edge", "noise scale")
OVERVIEW = (
    "Batch loss: mean of the first and of the last tenth. Of the last window: floor inside, the updates whose lowest point lies "
    "strictly between their two ends; height above it; cosine of consecutive gradients; the median of λ<sub>1</sub>/edge. Noise "
    "scale: batch at which noise and signal of the gradient are equal, at the last measured point."
)


def _overview(pages: Sequence[Page]) -> str:
    """One row a run: how it was trained, what it does, and its numbers; columns that no run has are left out."""
    rows = [_row(page) for page in pages]
    kept = [name for name in NUMBERS if any(row.get(name) for row in rows)]
    head = "<th>run</th><th>walk</th><th>what it does</th>" + "".join(f'<th class="n">{name}</th>' for name in kept)
    body = ""
    for page, row in zip(pages, rows, strict=True):
        cells = "".join(f'<td class="n">{row.get(name) or notation.NOTHING}</td>' for name in kept)
        lead = f'<th scope="row"><a href="#{page.key}">{safe(page.name)}</a></th><td>{row["walk"]}</td><td>{row["does"]}</td>'
        body += f"<tr>{lead}{cells}</tr>"
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div><p class="soft">{OVERVIEW}</p>'


def _row(page: Page) -> dict[str, str]:
    """The cells of one run, as HTML; those that are not known are empty or missing."""
    updates = page.evidence.steps.sizes.get("step", 0)
    cells = {"walk": ", ".join([*_how(page), f"{updates:,} updates"]), "does": "–"}
    early, late = _tenths(page)
    cells["batch loss"] = f"{number(early)} → {number(late)}" if np.isfinite(early) else ""
    doing, rows = [], window_rows(page)
    if rows:
        cells |= _window_cells(rows[-1])
        doing.append(_side(rows[-1], "interior", 0.5, ("keeps to one wall", "bounces between the walls")))
    curvature, noise = (page.evidence.measured.get(name) for name in ("curvature", "noise"))
    if curvature is not None and np.isfinite(edge := _edge(curvature, rows[-1]["first"] if rows else 0)):
        cells["λ<sub>1</sub>/edge"] = number(edge)
        doing.append("above the edge" if edge > 1 else "below the edge")
    if noise is not None and (index := last(along(noise, "noise_scale"))) is not None:
        cells["noise scale"] = told(noise, "noise_scale", index)
        whole = np.isinf(figures.noise_batch_size(noise, finite=True)[index])
        doing.append("without gradient noise" if whole else regime(noise, index))
    return cells | {"does": ", ".join(filter(None, doing)) or "–"}


def _edge(data: xr.Dataset, first: float) -> float:
    """Median of the largest eigenvalue over the edge from an update on, else the last one; NaN where none is known."""
    edge = along(data, "edge")
    late = edge[(data["step"].values >= first) & np.isfinite(edge)] if len(edge) else edge
    index = last(edge)
    return float(np.median(late)) if len(late) else float("nan") if index is None else float(edge[index])


def _window_cells(row: Mapping[str, float]) -> dict[str, str]:
    cosine = with_interval(row["cosine"], row["cosine_low"], row["cosine_high"]) if np.isfinite(row["cosine"]) else ""
    height = with_error(row["height"], row["height_error"]) if np.isfinite(row["height"]) else ""
    return {"floor inside": f"{row['interior']:.0%}" if np.isfinite(row["interior"]) else "", "height": height, "cosine": cosine}


def sentence(page: Page) -> str:
    """One run in plain words: how it was trained, where the floor lies, how high it walks, how far it came."""
    updates = page.evidence.steps.sizes.get("step", 0)
    if updates == 0:
        return "no update is on record; what is missing is said below."
    parts = [_training(page, updates), *visit_words(page)]
    rows = window_rows(page)
    if rows:
        parts += _valley_words(rows[-1])
    else:
        parts.append("The valley along the updates was not measured, so nothing can be said of its walls and its floor.")
    parts += _first(page, "curvature", curvature_words) + _first(page, "noise", noise_words)
    bad = len(figures.nonfinite_steps(page.evidence.steps))
    if bad:
        parts.append(f"{bad} updates were not finite.")
    return " ".join(parts)


def _first(page: Page, name: str, words: Callable[[xr.Dataset], list[str]]) -> list[str]:
    """The first sentence on a quantity, where it was measured."""
    data = page.evidence.measured.get(name)
    return words(data)[:1] if data is not None and data.sizes.get("step", 0) else []


def _training(page: Page, updates: int) -> str:
    steps, how = page.evidence.steps, _how(page)
    early, late = _tenths(page)
    fell = f", batch loss {number(early)} in the first tenth and {number(late)} in the last" if np.isfinite(early) else ""
    words = ", ".join(how) + (": " if how else "")
    away = np.asarray(steps["distance"].values, float) if "distance" in steps else np.zeros(0)
    far = f"; the last update began {number(away[np.isfinite(away)][-1])} from the start" if np.isfinite(away).any() else ""
    return f"{words}{updates} updates{fell}{far}."


def _how(page: Page) -> list[str]:
    """Walker, learning rate and batch, as far as they are known."""
    batch = figures.batch_of(page.evidence)
    parts = (safe(figures.walker_of(page.evidence)), _rates(page), f"batch {safe(batch)}" if batch else "")
    return [part for part in parts if part]


def _tenths(page: Page) -> tuple[float, float]:
    """Mean loss of the batches in the first and in the last tenth of the updates; NaN where it is not known."""
    steps = page.evidence.steps
    loss = np.asarray(steps["loss"].values, float) if "loss" in steps else np.zeros(0)
    known = loss[np.isfinite(loss)]
    tenth = max(1, len(known) // 10)
    return (float(known[:tenth].mean()), float(known[-tenth:].mean())) if len(known) > 1 else (float("nan"), float("nan"))


def _rates(page: Page) -> str:
    """The learning rate, or from where to where it went."""
    steps = page.evidence.steps
    recorded = np.asarray(steps["lr"].values, float) if "lr" in steps else np.zeros(0)
    recorded = recorded[np.isfinite(recorded)]
    if len(recorded) and recorded.min() < recorded.max():
        return f"learning rates {number(float(recorded.min()))} to {number(float(recorded.max()))}"
    lr = figures.learning_rate(page.evidence)
    return f"learning rate {number(lr)}" if np.isfinite(lr) else ""


def _valley_words(row: Mapping[str, float]) -> list[str]:
    """The last window in words; where an interval leaves two answers open, so does the sentence."""
    where = f"In the last window (updates {row['first']:.0f} to {row['last'] - 1:.0f})"
    words = []
    if np.isfinite(row["interior"]):
        side = _side(row, "interior", 0.5, ("most updates do not cross the floor", "it bounces between the walls of the valley"))
        words.append(
            f"{where} the lowest point lies strictly between the two ends of {row['interior']:.0%} of the updates "
            f"(median α* {number(row['alpha_star'])}): {side or 'whether most updates cross the floor cannot be told'}."
        )
    if np.isfinite(row["height"]):
        words.append(f"Its mean height above the floor is {with_error(row['height'], row['height_error'])}.")
    if np.isfinite(row["cosine"]):
        side = _side(row, "cosine", 0.0, ("point against each other on average", "point the same way on average"))
        cosine = with_interval(row["cosine"], row["cosine_low"], row["cosine_high"])
        words.append(f"Consecutive gradients {side or 'show no clear sign'} (cosine {cosine}).")
    return words


def _side(row: Mapping[str, float], name: str, threshold: float, words: tuple[str, str]) -> str:
    """The first words below the threshold, the second above, none where the interval contains it."""
    low, high = (row[f"{name}_{end}"] if np.isfinite(row[f"{name}_{end}"]) else row[name] for end in ("low", "high"))
    return words[1] if low > threshold else words[0] if high <= threshold else ""


WINDOW_COLUMNS = (
    ("loss", "loss"),
    ("interior", "share with 0 &lt; α* &lt; 1"),
    ("alpha_star", "median α*"),
    ("height", "mean height"),
    ("cosine", "mean cosine"),
    ("gni", "η·GNI"),
    ("batch_sharpness", "η·batch sharpness"),
)


WINDOW_VALUES = {
    "interior": ("valley", "interior_share"),
    "interior_low": ("valley", "interior_share_low"),
    "interior_high": ("valley", "interior_share_high"),
    "height": ("valley", "mean_height"),
    "height_error": ("valley", "mean_height_stderr"),
    "gni": ("valley", "eta_gni"),
    "gni_error": ("valley", "eta_gni_stderr"),
    "batch_sharpness": ("valley", "eta_batch_sharpness"),
    "batch_sharpness_error": ("valley", "eta_batch_sharpness_stderr"),
    "cosine_low": ("motion", "gradient_cosine_low"),
    "cosine_high": ("motion", "gradient_cosine_high"),
    "cosine_error": ("motion", "gradient_cosine_stderr"),
}


def window_rows(page: Page) -> list[dict[str, float]]:
    """The numbers of each window; NaN where one was not measured."""
    valley, steps = page.valley, page.evidence.steps
    if valley is None or "window_first" not in valley:
        return []
    rows = []
    for first, after in page.windows:
        row: dict[str, float] = {"first": first, "last": after}
        row["loss"] = _mean(valley, "loss_start", first, after)
        row["cosine"] = _mean(steps, "gradient_cosine", first, after)
        row["alpha_star"] = _mean(valley, "alpha_star", first, after, np.nanmedian)
        row |= {name: _of_window(page, *where, first) for name, where in WINDOW_VALUES.items()}
        rows.append(row)
    return rows


def _of_window(page: Page, quantity: str, name: str, first: int) -> float:
    data = page.evidence.measured.get(quantity)
    if data is None or name not in data or "window_first" not in data:
        return float("nan")
    hit = np.flatnonzero(np.asarray(data["window_first"].values) == first)
    return float(data[name].values[hit[0]]) if len(hit) else float("nan")


def _mean(data: xr.Dataset, name: str, first: int, last: int, reduce: Callable[..., Any] = np.nanmean) -> float:
    if name not in data or data[name].dims != ("step",):
        return float("nan")
    inside = (data["step"].values >= first) & (data["step"].values < last)
    values = np.asarray(data[name].values, float)[inside]
    return float(reduce(values)) if np.isfinite(values).any() else float("nan")


FIRST: Mapping[str, Callable[[xr.Dataset], list[str]]] = {
    "curvature": curvature_words,
    "noise": noise_words,
    "sharpest": sharpest_words,
    "neurons": neurons_words,
    "escape": escape_words,
}


def findings(item: Evidence) -> dict[str, str]:
    """What each quantity of a run found, as one line of plain text.

    Args:
        item: the run with its measurements.

    Returns:
        One line for each measured quantity, in their order.
    """
    page = read(item)
    rows = window_rows(page)
    lines: dict[str, str] = {}
    for name, data in item.measured.items():
        words = [f"{len(data.data_vars)} variables."]
        if not any(data.sizes.get(dim, 0) for dim in ("step", "window")):
            words = ["measured at no point: there are no two consecutive snapshots."]
        elif name in FIRST:
            words = FIRST[name](data)[:1]
        elif name == "batch":
            words = batch_words(data, figures.batch_of(item))[:1] or words
        elif name == "motion" and np.isfinite(cosine := _last_window(data, "gradient_cosine")).all():
            words = [f"Cosine of consecutive gradients in the last window {notation.with_interval(*cosine)}."]
        elif name == "valley" and rows:
            words = _valley_words({**rows[-1], "cosine": float("nan")}) or words
        lines[name] = plain(" ".join(words))
    return lines


def _last_window(data: xr.Dataset, name: str) -> list[float]:
    """A number of the last window with the ends of its interval; NaN where there is none."""
    return [
        float(values[-1]) if len(values := along(data, f"{name}{end}", "window")) else float("nan")
        for end in ("", "_low", "_high")
    ]
