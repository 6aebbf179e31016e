"""What was seen, in plain words with numbers."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import xarray as xr

from sgdscope import figures
from sgdscope.report.page import number, safe, with_error
from sgdscope.report.reading import Page
from sgdscope.report.verdicts import MARKS, AnyVerdict, fields


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
    parts = [_training(page, updates)]
    rows = window_rows(page)
    if rows:
        parts += _valley_words(rows[-1])
    else:
        parts.append("The valley along the updates was not measured, so nothing can be said of its walls and its floor.")
    bad = len(figures.nonfinite_steps(page.evidence.steps))
    if bad:
        parts.append(f"{bad} updates were not finite.")
    return " ".join(parts)


def _training(page: Page, updates: int) -> str:
    steps, settings = page.evidence.steps, page.evidence.settings
    lr, batch = figures.learning_rate(page.evidence), settings.get("batch_size")
    how = [str(settings["walker"])] if settings.get("walker") else []
    how += [f"learning rate {number(lr)}"] if np.isfinite(lr) else []
    how += [f"batch {batch}"] if batch is not None else []
    loss = np.asarray(steps["loss"].values, float) if "loss" in steps else np.zeros(0)
    known = loss[np.isfinite(loss)]
    tenth = max(1, len(known) // 10)
    fell = f", batch loss {number(known[:tenth].mean())} in the first tenth and {number(known[-tenth:].mean())} in the last"
    words = safe(", ".join(how)) + (": " if how else "")
    away = np.asarray(steps["distance"].values, float) if "distance" in steps else np.zeros(0)
    far = f"; it ended {number(away[np.isfinite(away)][-1])} from where it began" if np.isfinite(away).any() else ""
    return f"{words}{updates} updates{fell if len(known) > 1 else ''}{far}."


def _valley_words(row: Mapping[str, float]) -> list[str]:
    """The last window in words."""
    where = f"In the last window (updates {row['first']:.0f} to {row['last'] - 1:.0f})"
    share, alpha, height, cosine = (row[name] for name in ("interior", "alpha_star", "height", "cosine"))
    words = []
    if np.isfinite(share):
        bounce = "it bounces between the walls of the valley" if share > 0.5 else "most updates do not cross the floor"
        words.append(
            f"{where} the lowest point lies strictly between the two ends of {share:.0%} of the updates "
            f"(median α* {number(alpha)}): {bounce}."
        )
    if np.isfinite(height):
        words.append(f"Its mean height above the floor is {with_error(height, row['height_error'])}.")
    if np.isfinite(cosine):
        how = "point against each other" if cosine < 0 else "point the same way"
        words.append(f"Consecutive gradients {how} on average (cosine {number(cosine)}).")
    return words


WINDOW_COLUMNS = (
    ("loss", "loss"),
    ("interior", "share with 0 &lt; α* &lt; 1"),
    ("alpha_star", "median α*"),
    ("height", "mean height"),
    ("cosine", "mean cosine"),
    ("gni", "η·GNI"),
    ("batch_sharpness", "η·batch sharpness"),
)


def window_rows(page: Page) -> list[dict[str, float]]:
    """The numbers of each window; NaN where one was not measured."""
    valley, steps = page.valley, page.evidence.steps
    if valley is None or "window_first" not in valley:
        return []
    rows = []
    for index, (first, last) in enumerate(page.windows):
        row: dict[str, float] = {"first": first, "last": last}
        row["loss"] = _mean(valley, "loss_start", first, last)
        row["cosine"] = _mean(steps, "gradient_cosine", first, last)
        row["alpha_star"] = _mean(valley, "alpha_star", first, last, np.nanmedian)
        for name, variable in (
            ("interior", "interior_share"),
            ("height", "mean_height"),
            ("height_error", "mean_height_stderr"),
            ("gni", "eta_gni"),
            ("batch_sharpness", "eta_batch_sharpness"),
        ):
            row[name] = float(valley[variable].values[index]) if variable in valley else float("nan")
        rows.append(row)
    return rows


def _mean(data: xr.Dataset, name: str, first: int, last: int, reduce: Callable[..., Any] = np.nanmean) -> float:
    if name not in data or data[name].dims != ("step",):
        return float("nan")
    inside = (data["step"].values >= first) & (data["step"].values < last)
    values = np.asarray(data[name].values, float)[inside]
    return float(reduce(values)) if np.isfinite(values).any() else float("nan")
