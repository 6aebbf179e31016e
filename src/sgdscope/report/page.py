"""The HTML of the page: head, style, script, figures; escaping and numbers."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

import sgdscope
from sgdscope import notation
from sgdscope.errors import NotAvailableError
from sgdscope.report.reading import Page

POLICY = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'"


def header(heading: str) -> str:
    """Title, version and date, and how errors are written."""
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    note = f"{notation.NOTE}, unless another level is said; bars in figures are 95 %."
    return f'<header><h1>{safe(heading)}</h1><p class="soft">sgdscope {sgdscope.__version__}, {made}. {note}</p></header>'


def contents(pages: Sequence[Page], judged: bool, *, ensembles: Sequence[str] = ()) -> str:
    """Links to the sections, in their order; ensembles by name."""
    links = [("verdicts", "Verdicts")] if judged else []
    links += [(f"ensemble-{place}", name) for place, name in enumerate(ensembles, 1)]
    links += [(page.key, page.name) for page in pages]
    links += [("across", "Height, floor and distance")] + ([] if judged else [("verdicts", "Verdicts (none)")])
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
        f'<figure><div class="plot" role="img" aria-label="{safe(_first_sentence(caption))}" '
        f'style="min-height:{figure.layout.height:.0f}px">'
        f'<script type="application/json">{data}</script></div><figcaption>{caption}</figcaption></figure>'
    )


def _first_sentence(caption: str) -> str:
    """The first sentence of a caption, without its elements."""
    return plain(caption).split(". ", 1)[0].rstrip(".")


def plain(text: str) -> str:
    """HTML as plain text: indices behind an underscore, powers behind a caret."""
    text = text.replace("<sub>", "_").replace("<sup>", "^")
    return html.unescape(re.sub(r"<[^>]*>", "", text))


def fold(key: str, title: str, parts: Sequence[str], *, said: str = "") -> str:
    """A part of a section that opens where it is asked for: closed, it is its title and a sentence on what it says.

    Args:
        key: anchor in the page.
        title: HTML.
        parts: what it holds, HTML.
        said: HTML, beside the title.

    Returns:
        HTML; read without JavaScript, found by the browser's search and printed open.
    """
    beside = f'<span class="said">{said}</span>' if said else ""
    return f'<details class="part" id="{key}"><summary><h3>{title}</h3>{beside}</summary>{"".join(parts)}</details>'


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


def dressed(text: str) -> str:
    """A text (escaped before) with true minus signs and powers of ten: ``-1.2e-5`` becomes −1.2 × 10 to the −5."""
    text = re.sub(r"(?<=[\d)\]])e([+-]?)0*(\d+)\b", lambda m: f" × 10<sup>{m[1].strip('+')}{m[2]}</sup>", text)
    text = re.sub(r"(?<![\w.\])-])-(?=\d|inf\b)", "−", text).replace("<sup>-", "<sup>−")
    return re.sub(r"(?<=[\[ −])inf\b", "∞", text)


def number(value: object) -> str:
    """A number as `notation.number` writes it; a dash where there is none."""
    return dressed(f" {notation.number(value)}")[1:] if isinstance(value, int | float | np.number) else notation.NOTHING


def with_error(value: float, error: float) -> str:
    """A number with its standard error; the number alone where the error is rounding or not known."""
    return dressed(notation.with_error(value, error))


def interval(low: object, high: object) -> str:
    """An interval in brackets; a dash where neither end is known."""
    ends = [float(end) if isinstance(end, int | float | np.number) else np.nan for end in (low, high)]
    return notation.NOTHING if np.isnan(ends).all() else dressed(notation.interval(*ends))


def with_interval(value: float, low: float, high: float) -> str:
    """A number with its interval in brackets."""
    return dressed(notation.with_interval(value, low, high))
