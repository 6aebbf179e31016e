"""The sections of the page: one a run, what runs show together, settings, how to read it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from sgdscope import figures
from sgdscope.report.curvature import curvature_across, curvature_section
from sgdscope.report.diagnosis import diagnosis_section
from sgdscope.report.directions import batch_section, neurons_section, sharpest_section
from sgdscope.report.noise import NOISE_GUIDE, escape_section, noise_section
from sgdscope.report.page import alarm, figure, fold, missing, safe, with_error
from sgdscope.report.reading import Page
from sgdscope.report.words import WINDOW_COLUMNS, sentence, window_rows

MOST_WINDOWS = 6
MOST_COLUMNS = 4


def run_section(page: Page, *, alone: bool = False) -> str:
    """What one run shows: windows, panels, scalars, and what is missing; in words too, unless it is alone on the page."""
    parts = [
        f'<section id="{page.key}"><h2>{safe(page.name)}</h2>',
        "" if alone else f"<p>{sentence(page)}</p>",
        *_problems(page),
    ]
    parts.append(diagnosis_section(page))
    rows = window_rows(page)
    if rows:
        parts.append(_window_table(rows))
    chosen, left_out = choose(page.windows)
    if left_out:
        parts.append(
            f'<p class="soft">The run has {len(page.windows)} windows; the first, the middle and the last are drawn, '
            f"{left_out} are not. All are in the table.</p>"
        )
    parts += [_walk(page, window, shown=window == chosen[-1]) for window in reversed(chosen) if page.valley is not None]
    looked = (curvature_section, noise_section, sharpest_section, neurons_section, batch_section, escape_section)
    parts += [part(page) for part in looked]
    drawn = figure(lambda: figures.scalar_series(page.evidence.steps), "As the loop computed them, batch by batch.")
    parts.append(fold(f"{page.key}-scalars", "Scalars of all updates", [drawn], said="Loss, learning rate, gradient and step."))
    return "".join(parts) + "</section>"


def _walk(page: Page, window: tuple[int, int], *, shown: bool) -> str:
    """The walk in one window: shown, or to be opened."""
    first, last = window
    title, key = f"Updates {first} to {last - 1}", f"{page.key}-{first}"
    caption = (
        "Top: the loss along the path from iterate to iterate, on the evaluation set; the dotted line joins the lowest points. "
        "Middle: cosine of the gradients of an update and the one before. Bottom: distance from the start. One axis for all."
    )
    drawn = figure(lambda: figures.valley_walk(page.evidence.measured, page.evidence.steps, window), caption)
    return f'<h3 id="{key}">{title}</h3>{drawn}' if shown else fold(key, title, [drawn], said="The walk over the valley floor.")


def choose(spans: Sequence[tuple[int, int]]) -> tuple[list[tuple[int, int]], int]:
    """All windows, or the first, the middle and the last of more than six."""
    if len(spans) <= MOST_WINDOWS:
        return list(spans), 0
    return [spans[0], spans[len(spans) // 2], spans[-1]], len(spans) - 3


def _problems(page: Page) -> list[str]:
    """What is missing, and which command gives it."""
    told = [alarm(safe(problem)) for problem in page.problems]
    steps, run = page.evidence.steps, safe(page.source)
    if steps.sizes.get("step", 0) == 0:
        told.append(
            missing(
                "No update is on record. <code>sgdscope run EXPERIMENT.toml --out RUN</code> makes a run or finishes one that "
                "was stopped; in a loop of your own, <code>with sgdscope.Recorder(...)</code> keeps the first updates after 1 s."
            )
        )
    elif not page.windows:
        told.append(
            missing(
                "There are no two consecutive snapshots, so the valley along an update cannot be measured. Record with "
                "<code>Recorder(..., snapshots=sgdscope.bursts())</code>, or with "
                '<code>[record] snapshots = {kind = "bursts", length = 60}</code> in the TOML.'
            )
        )
    elif page.valley is None or "motion" not in page.evidence.measured:
        absent = [name for name in ("valley", "motion") if name not in page.evidence.measured]
        command = f"sgdscope measure {run} {' '.join(absent)}"
        told.append(
            missing(
                f"Not measured: {' and '.join(absent)}. <code>{command}</code> measures them (with "
                "<code>--surface pkg.mod:function</code> for a loop of your own)."
            )
        )
    bad = figures.nonfinite_steps(steps)
    if len(bad):
        shown = ", ".join(str(step) for step in bad[:8]) + (" ..." if len(bad) > 8 else "")
        told.append(alarm(f"{len(bad)} updates have a loss, gradient or parameters that are not finite: {shown}."))
    if "loss" in steps and steps.sizes["step"] and not np.isfinite(steps["loss"].values).any():
        told.append(
            missing(
                "No update has a finite loss: either it diverged from the first update, or the loop did not call "
                "<code>recorder.loss(model, batch)</code>."
            )
        )
    return told


def _window_table(rows: Sequence[Mapping[str, float]]) -> str:
    head = "".join(f'<th class="n">{label}</th>' for _, label in WINDOW_COLUMNS)
    body = ""
    for row in rows:
        cells = "".join(f'<td class="n">{_cell(name, row)}</td>' for name, _ in WINDOW_COLUMNS)
        body += f"<tr><td>{row['first']:.0f} to {row['last'] - 1:.0f}</td>{cells}</tr>"
    return f'<div class="scroll"><table><thead><tr><th>updates</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(name: str, row: Mapping[str, float]) -> str:
    return with_error(row[name], row.get(f"{name}_error", float("nan")))


def across(pages: Sequence[Page]) -> str:
    """The figures that several runs share."""
    evidence = [page.evidence for page in pages]
    return "".join(
        (
            '<section id="across"><h2>Height, floor and distance</h2><h3>Height against learning rate</h3>',
            figure(
                lambda: figures.height_against_lr(evidence),
                "One point for each window of each run, the last window filled; bars are 1.96 standard errors within the window. "
                "One run is an anecdote: whether the learning rate causes the height is judged over seeds (claim W5).",
            ),
            "<h3>Floor position</h3>",
            figure(
                lambda: figures.floor_position(evidence),
                "Where the lowest point lies along each update. ½ is where a walk whose mean loss no longer changes must end up, "
                "whatever the curvature; the green band is the step itself.",
            ),
            "<h3>Distance law</h3>",
            figure(
                lambda: figures.distance_law(evidence),
                "Distance from the start, with the fitted power law (dashed) and logarithm (dotted).",
            ),
            curvature_across(pages),
            "</section>",
        )
    )


def settings_section(pages: Sequence[Page]) -> str:
    """Every setting, one column a run."""
    parts = ['<section id="settings"><h2>Settings</h2>']
    flat = [_all_settings(page) for page in pages]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    differing = [key for key in keys if len({one.get(key) for one in flat}) > 1]
    if differing:
        parts += ["<p>In these the runs differ.</p>", *_settings_tables(pages, flat, differing)]
    alike = [key for key in keys if key not in differing]
    many = "the runs" if len(pages) > 1 else "the run"
    title = f"{'The other ' if differing else 'All '}{len(alike)} settings, with which {many} can be repeated"
    parts.append(f"<details><summary>{title}</summary>{''.join(_settings_tables(pages, flat, alike))}</details>")
    for page in pages:
        if isinstance(experiment := page.evidence.settings.get("experiment"), Mapping):
            text = safe(json.dumps(experiment, indent=2, ensure_ascii=False, default=str))
            parts.append(f"<details><summary>{safe(page.name)}: the experiment as JSON</summary><pre>{text}</pre></details>")
    return "".join(parts) + "</section>"


def _settings_tables(pages: Sequence[Page], flat: Sequence[Mapping[str, str]], keys: Sequence[str]) -> list[str]:
    """One table for every four runs; one column where all of them agree."""
    tables = []
    agreed = all(len({one.get(key) for one in flat}) == 1 for key in keys)
    shown = [0] if agreed else range(len(pages))
    for start in range(0, len(shown), MOST_COLUMNS):
        chosen = shown[start : start + MOST_COLUMNS]
        head = "<th>value</th>" if agreed else "".join(f"<th>{safe(pages[i].name)}</th>" for i in chosen)
        body = ""
        for key in keys:
            cells = "".join(f'<td class="value">{safe(flat[i].get(key, "–"))}</td>' for i in chosen)
            body += f"<tr><th>{safe(key)}</th>{cells}</tr>"
        table = f"<table><thead><tr><th>setting</th>{head}</tr></thead><tbody>{body}</tbody></table>"
        tables.append(f'<div class="scroll">{table}</div>')
    return tables


def _all_settings(page: Page) -> dict[str, str]:
    """Settings of the run, and the options and surface of each measurement, as dotted names and texts."""
    nested: dict[str, Any] = {"run": page.source, **page.evidence.settings}
    attrs = [data.attrs for data in page.evidence.measured.values()]
    common = {key: value for key, value in attrs[0].items() if all(a.get(key) == value for a in attrs)} if attrs else {}
    nested["measured"] = {key: _decoded(value) for key, value in common.items()}
    for name, data in page.evidence.measured.items():
        nested[f"measured {name}"] = {key: _decoded(value) for key, value in data.attrs.items() if key not in common}
    return dict(_flat({key: value for key, value in nested.items() if value not in ({}, [])}))


def _decoded(value: Any) -> Any:
    try:
        return json.loads(value) if isinstance(value, str) and value[:1] in "{[" else value
    except ValueError:
        return value


def _flat(nested: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, str]]:
    for key, value in nested.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and any(isinstance(item, Mapping) for item in value):
            yield from _flat({str(index): item for index, item in enumerate(value)}, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)


GUIDE = (
    (
        "Update t, θ<sub>t</sub>, d<sub>t</sub>",
        "θ<sub>t</sub> is the point before update t, d<sub>t</sub> = θ<sub>t+1</sub> − θ<sub>t</sub> the update as it really "
        "was, with momentum, clipping and weight decay.",
    ),
    (
        "Loss along the step, φ<sub>t</sub>(α)",
        "L(θ<sub>t</sub> + α d<sub>t</sub>) on a fixed evaluation set: α = 0 is the point before, α = 1 the point after. "
        "A parabola φ(0) + a₁α + a₂α² is laid through it.",
    ),
    (
        "Floor position α*",
        "−a₁/(2a₂), where the parabola is lowest. Between 0 and 1 the update crossed the floor and climbed the other wall; "
        "above 1 it stopped before the floor.",
    ),
    (
        "Height",
        "How far the iterates lie above the floor of their own step: the mean of φ(0) and φ(1) minus the lowest φ(α) of "
        "0 ≤ α ≤ 1, in units of the loss. It is a height along one direction, a lower bound for "
        "the height above the floor of the whole valley.",
    ),
    ("Interior share", "The share of updates with a₂ &gt; 0 and 0 &lt; α* &lt; 1."),
    (
        "η·GNI and η·batch sharpness",
        "−2⟨a₂⟩/⟨a₁⟩ on the evaluation set, which is 2 wherever the mean loss no longer changes, at the edge or not; and the "
        "mean of 1/α* on the step's own batch, for which 2 is the edge of stability. Both hold for plain SGD only; elsewhere "
        "they are not given.",
    ),
    (
        "What α* near ½ does not show",
        "Wherever the mean loss no longer changes, α* is near ½ and η·GNI near 2, whatever the curvature. By itself a floor in "
        "between is evidence of a stationary oscillation, which noise alone can keep up; it is no evidence of an edge of "
        "stability. For that, η·batch sharpness has to be near 2 as well.",
    ),
    (
        "Cosine of consecutive gradients",
        "Of the batch gradients of updates t − 1 and t. Below 0, the second undoes part of the first: from wall to wall. "
        "At stationarity its mean is near −|∇L|²/E|g|²: −1 for full batches at the edge, just below 0 for small ones.",
    ),
    (
        "Distance law",
        "|θ<sub>t</sub> − θ<sub>0</sub>|² ~ t<sup>c</sup>: c = 1 is diffusion, 2 a straight walk, less than 1 something "
        "slower; a logarithm is what a random walk in a rough landscape gives (Hoffer et al. 2017).",
    ),
)

CURVATURE_GUIDE = (
    (
        "λ<sub>i</sub>, e<sub>i</sub>",
        "The algebraically largest eigenvalues of the Hessian of the loss on the evaluation set and their directions, by "
        "Lanczos; the residual |He − λe| bounds how far each is from an eigenvalue.",
    ),
    (
        "Edge",
        "Above it, descent on a parabola of this curvature diverges: 2/η for plain SGD, 2(1 + β)/η with momentum β, of the "
        "preconditioned Hessian for Adam. It is the edge of full batches; mini-batches keep λ<sub>1</sub> below it, the more so "
        "the smaller they are.",
    ),
    (
        "Mean step s<sub>i</sub>",
        "The mean over mini-batches of η|⟨g<sub>b</sub>, e<sub>i</sub>⟩|: how far a step of plain SGD moves along e<sub>i</sub>. "
        "The sign of e<sub>i</sub> is that of rising loss, so SGD moves to −1.",
    ),
    (
        "Share χ<sub>k</sub>",
        "The share of the squared length of a vector within the k sharpest directions; k/P for a random one of P numbers.",
    ),
    (
        "Saturation",
        "1 − |φ′| / max |φ′| of the activation φ, mean over units and examples: the share that is inactive for a ReLU.",
    ),
)


def guide() -> str:
    """Definitions, and what the numbers do not show."""
    known = GUIDE + CURVATURE_GUIDE + NOISE_GUIDE
    entries = "".join(f"<dt>{term}</dt><dd>{text}</dd>" for term, text in known)
    source = (
        "Xing, Arpit, Tsirigotis, Bengio: A Walk with SGD, arXiv 1802.08770 (2018). Jastrzębski, Kenton, Ballas, Fischer, "
        "Bengio, Storkey: On the Relation Between the Sharpest Directions of DNN Loss and the SGD Step Length, arXiv 1807.05031."
    )
    listed = f"<details><summary>{len(known)} terms of this page, and what they do not show</summary><dl>{entries}</dl></details>"
    return f'<section id="guide"><h2>How to read this</h2>{listed}<footer class="soft">{source}</footer></section>'
