"""The HTML of the page: head, style, script, figures; escaping and numbers."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

import sgdscope
from sgdscope.errors import NotAvailableError
from sgdscope.report.reading import Page

ROUNDING = 1e-12  # of a value: a smaller error is none
POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


def header(heading: str) -> str:
    """Title, version and date."""
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f'<header><h1>{safe(heading)}</h1><p class="soft">sgdscope {sgdscope.__version__}, {made}</p></header>'


def contents(pages: Sequence[Page], judged: bool, *, ensembles: Sequence[str] = ()) -> str:
    """Links to the sections, in their order; ensembles by name."""
    links = [(f"ensemble-{place}", name) for place, name in enumerate(ensembles, 1)]
    links += [(page.key, page.name) for page in pages]
    links += [("across", "Height, floor and distance"), ("verdicts", "Verdicts" if judged else "Verdicts (none)")]
    links += [("settings", "Settings"), ("guide", "How to read this")]
    return "<nav><ul>" + "".join(f'<li><a href="#{key}">{safe(name)}</a></li>' for key, name in links) + "</ul></nav>"


def figure(draw: Callable[[], go.Figure], caption: str) -> str:
    """A figure with its caption, or the sentence that says why there is none."""
    try:
        figure = draw()
    except NotAvailableError as error:
        return missing(safe(str(error)))
    # "</script>" and "<!--" inside of a string would end or change the script element
    data = str(figure.to_json()).replace("<", "\\u003c")
    return (
        f'<figure><div class="plot" style="min-height:{figure.layout.height:.0f}px">'
        f'<script type="application/json">{data}</script></div><figcaption>{caption}</figcaption></figure>'
    )


def write(out: Path, heading: str, body: Sequence[str]) -> Path:
    """Put the page together and write it."""
    here = Path(__file__).parent
    style, script = ((here / name).read_text(encoding="utf-8") for name in ("page.css", "page.js"))
    text = "\n".join(
        (
            '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">',
            f"<title>{safe(heading)}</title>\n<style>{style}</style>\n</head>\n<body>",
            *body,
            "<noscript><p>The figures need JavaScript; the tables do not.</p></noscript>",
            f"<script>{get_plotlyjs()}</script>\n<script>{script}</script>\n</body>\n</html>\n",
        )
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(text, encoding="utf-8")
    return out


def missing(sentence: str) -> str:
    """A sentence on what is not there."""
    return f'<p class="missing">{sentence}</p>'


def alarm(sentence: str) -> str:
    """A sentence on what is wrong."""
    return f'<p class="alarm">{sentence}</p>'


def safe(value: object) -> str:
    """Any value as escaped text."""
    return html.escape(str(value))


def number(value: object) -> str:
    """Three significant digits, a true minus and powers of ten; a dash where there is no number."""
    if not isinstance(value, int | float | np.number) or np.isnan(value):
        return "–"
    if isinstance(value, int | np.integer) or not np.isfinite(value):
        return str(value).replace("-", "−").replace("inf", "∞")
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    text = mantissa + (f" × 10<sup>{int(exponent)}</sup>" if exponent else "")
    return text.replace("-", "−")


def with_error(value: float, error: float) -> str:
    """A number with its standard error, to two digits of the error; the number alone where the error is rounding or not known."""
    if not np.isfinite(value) or not np.isfinite(error) or error <= ROUNDING * abs(value):
        return number(value)
    digits = 1 - int(np.floor(np.log10(error)))
    if 0 <= digits <= 5:
        return f"{value:.{digits}f} ± {error:.{digits}f}".replace("-", "−")
    return f"{number(value)} ± {number(error)}"
