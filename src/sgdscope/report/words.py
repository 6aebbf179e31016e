"""What was seen, in plain words with numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from sgdscope import figures
from sgdscope.report.curvature import curvature_words
from sgdscope.report.noise import noise_words
from sgdscope.report.page import number, safe, with_error, with_interval
from sgdscope.report.reading import Page
from sgdscope.report.verdicts import MARKS, AnyVerdict, fields
from sgdscope.report.visits import visit_words


def seen(pages: Sequence[Page], verdicts: Sequence[AnyVerdict]) -> str:
    """The box at the top of the page: one item a run, one on the claims."""
    items = [f"<strong>{safe(page.name)}</strong>: {_sentence(page)}" for page in pages]
    counts = {answer: sum(fields(v)["verdict"] == answer for v in verdicts) for answer in MARKS}
    if verdicts:
        told = ", ".join(f"{count} {answer}" for answer, count in counts.items() if count)
        items.append(f'Of {len(verdicts)} claims checked: {told} (<a href="#verdicts">the table</a>).')
    listed = "".join(f"<li>{item}</li>" for item in items)
    return f'<section class="seen" id="seen"><h2>What was seen</h2><ul>{listed}</ul></section>'


def _sentence(page: Page) -> str:
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
    steps, batch = page.evidence.steps, figures.batch_of(page.evidence)
    parts = (safe(figures.walker_of(page.evidence)), _rates(page), f"batch {safe(batch)}" if batch else "")
    how = [part for part in parts if part]
    loss = np.asarray(steps["loss"].values, float) if "loss" in steps else np.zeros(0)
    known = loss[np.isfinite(loss)]
    tenth = max(1, len(known) // 10)
    fell = ""
    if len(known) > 1:
        early, late = number(known[:tenth].mean()), number(known[-tenth:].mean())
        fell = f", batch loss {early} in the first tenth and {late} in the last"
    words = ", ".join(how) + (": " if how else "")
    away = np.asarray(steps["distance"].values, float) if "distance" in steps else np.zeros(0)
    far = f"; the last update began {number(away[np.isfinite(away)][-1])} from the start" if np.isfinite(away).any() else ""
    return f"{words}{updates} updates{fell}{far}."


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
    for first, last in page.windows:
        row: dict[str, float] = {"first": first, "last": last}
        row["loss"] = _mean(valley, "loss_start", first, last)
        row["cosine"] = _mean(steps, "gradient_cosine", first, last)
        row["alpha_star"] = _mean(valley, "alpha_star", first, last, np.nanmedian)
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
