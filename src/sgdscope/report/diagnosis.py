"""The section of the page on advice: the sentences of `diagnose`, and the forecast of annealing as table and figure."""

from __future__ import annotations

import numpy as np
import xarray as xr

from sgdscope import figures
from sgdscope.report.page import dressed, figure, interval, missing, number, safe
from sgdscope.report.reading import Page

EXPECTED = (
    "Held against 39 really annealed runs of nine settings (docs/annealing.md) the training drop was off by 7 % in the median, "
    "16 % at the 90th percentile, and inside the interval in 95 %; the held-out drop was off by 25 to 35 %. With a reason "
    "beside it a forecast is not to be relied on."
)


def diagnosis_section(page: Page) -> str:
    """The advice on one run; nothing where it was not asked for."""
    advice, annealing = (page.evidence.measured.get(name) for name in ("diagnosis", "annealing"))
    if advice is None and annealing is None:
        return ""
    parts = [f'<h3 id="{page.key}-diagnosis">Diagnosis</h3>']
    if advice is not None and "sentence" in advice:
        parts.append(_sentences(advice))
    if annealing is not None and "annealed" in annealing:
        parts.append(_table(annealing))
        caption = (
            "Averages of the iterates over three consecutive windows of the width of the decay, the loss now, and that at the "
            f"end of a decay that begins now. Open circles: it cannot be told. {EXPECTED}"
        )
        parts.append(figure(lambda: figures.annealing_forecast(annealing), caption))
    return "".join(parts)


def _sentences(advice: xr.Dataset) -> str:
    items = ""
    for sentence, reason in zip(advice["sentence"].values, advice["reason"].values, strict=True):
        doubt = missing(f"Cannot tell: {dressed(safe(reason))}.") if str(reason) else ""
        items += f"<li>{dressed(safe(sentence))}{doubt}</li>"
    step = advice.attrs.get("step")
    return f'<p class="soft">At update {safe(step)}.</p><ul>{items}</ul>'


def _table(data: xr.Dataset) -> str:
    """One row a set of data and budget."""
    labels = ("loss now", "annealed", "90 % interval", "drop", "height", "progress", "hindcast error")
    head = "".join(f'<th class="n">{label}</th>' for label in labels)
    body = ""
    for name in data["data"].values.tolist():
        for budget in data["budget"].values.tolist():
            cell = data.sel(data=name, budget=budget)
            if not np.isfinite(cell["annealed"]):
                continue
            span = interval(*(float(cell[f"annealed_{side}"]) for side in ("low", "high")))
            values = [float(cell["loss_now"]), float(cell["annealed"])]
            rest = [float(cell[key]) for key in ("drop", "height", "progress", "hindcast_error")]
            cells = [*map(number, values), span, *map(number, rest)]
            row = "".join(f'<td class="n">{text}</td>' for text in cells)
            body += f"<tr><td>{safe(name.replace('_', '-'))}, {budget:.0%}</td>{row}</tr>"
    if not body:
        return missing("What annealing now would give cannot be told; the reasons are above.")
    return f'<div class="scroll"><table><thead><tr><th>annealing now</th>{head}</tr></thead><tbody>{body}</tbody></table></div>'
