"""The tables of verdicts and of controls."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sgdscope.contracts import Verdict, claims
from sgdscope.report.page import dressed, interval, missing, number, safe

AnyVerdict = Verdict | Mapping[str, Any]
MARKS = {"supported": "✓", "contradicted": "✗", "undecided": "?", "not in regime": "–"}


def fields(verdict: AnyVerdict) -> dict[str, Any]:
    """A verdict as a mapping, whichever way it came."""
    own = asdict(verdict) if isinstance(verdict, Verdict) else dict(verdict)
    return {"claim": "?", "verdict": "undecided", **own}


def verdict_section(verdicts: Sequence[AnyVerdict]) -> str:
    """The table of verdicts, or how to get one."""
    title = '<section id="verdicts"><h2>Verdicts</h2>'
    if not verdicts:
        hint = "No claim was checked. <code>sgdscope check --run RUN</code> judges those that one recorded run can answer."
        return f"{title}{missing(hint)}</section>"
    note = (
        '<p class="soft">Intervals are 95 % and not corrected for the number of claims: among twenty of them, one misses by '
        "chance. Thresholds were fixed before the runs. Not reproduced here does not mean that the paper is wrong.</p>"
    )
    heads = ("claim, reason and regime", "verdict", "statistic", "interval", "threshold", "n", "smallest p")
    numeric = {"statistic", "interval", "threshold", "n", "smallest p"}
    head = "".join(f'<th class="n">{name}</th>' if name in numeric else f"<th>{name}</th>" for name in heads)
    body = "".join(_verdict_row(fields(verdict)) for verdict in verdicts)
    table = f'<div class="scroll"><table class="verdicts"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    return f"{title}{note}{table}</section>"


def _verdict_row(verdict: Mapping[str, Any]) -> str:
    low, high = (verdict.get("interval") or (None, None))[:2]
    regime = ", ".join(
        f"{safe(k)} {safe(v) if isinstance(v, str) else number(v)}"
        for k, v in (verdict.get("regime") or {}).items()
        if isinstance(v, str) or number(v) != "–"
    )
    claim = str(verdict["claim"])
    told = [f"<strong>{safe(claim)}</strong> {safe(_claim_sentence(claim))}"]
    run = (verdict.get("details") or {}).get("run")
    told += [f'<span class="soft">Run {safe(run)}.</span>'] if isinstance(run, str) else []
    told += [f'<span class="soft">{_reason(str(verdict["reason"]))}</span>'] if verdict.get("reason") else []
    told += [f'<span class="soft">Regime: {regime}.</span>'] if regime else []
    cells = [
        f'<td class="wide">{"<br>".join(told)}</td>',
        f"<td>{_answer(str(verdict['verdict']))}</td>",
        f'<td class="n">{number(verdict.get("statistic"))}</td>',
        f'<td class="n">{interval(low, high)}</td>',
        f'<td class="n">{number(verdict.get("threshold"))}</td>',
        f'<td class="n">{number(verdict.get("n"))}</td>',
        f'<td class="n">{number(verdict.get("smallest_p"))}</td>',
    ]
    return f"<tr>{''.join(cells)}</tr>"


def _reason(text: str) -> str:
    """A reason as a sentence: true minus signs, powers of ten, lambda_1 and e_1 as they are written elsewhere on the page."""
    word = text.split(" ", 1)[0]
    begun = text[:1].upper() + text[1:] if word.isalpha() and word.isascii() else text
    text = dressed(safe(begun + ("" if begun[-1:] in ".!?" else ".")))
    return re.sub(r"\b(?:(lambda)|(e))_(\d+|i|K)\b", lambda m: f"{'λ' if m[1] else 'e'}<sub>{m[3]}</sub>", text)


def _claim_sentence(name: str) -> str:
    return claims[name].sentence if name in claims else ""


def _answer(answer: str) -> str:
    kind = answer.replace(" ", "-") if answer in MARKS else "undecided"
    return f'<span class="answer {kind}">{MARKS.get(answer, "?")} {safe(answer)}</span>'


def control_section(controls: Sequence[Mapping[str, Any]]) -> str:
    """The table of controls: one row a claim, one column a control."""
    if not controls:
        hint = "Controls were not run. <code>sgdscope check --controls</code> judges landscapes on which the answer is known."
        return f'<section id="controls"><h2>Controls</h2>{missing(hint)}</section>'
    names = list(dict.fromkeys(str(c.get("control", "?")) for c in controls))
    table: dict[str, dict[str, str]] = {}
    for control in controls:
        table.setdefault(str(control.get("claim", "?")), {})[str(control.get("control", "?"))] = str(control.get("verdict", "?"))
    head = "".join(f"<th>{safe(name)}</th>" for name in names)
    body = ""
    for name, row in table.items():
        cells = "".join(f"<td>{_answer(row[n]) if n in row else '–'}</td>" for n in names)
        body += f"<tr><td><strong>{safe(name)}</strong></td>{cells}</tr>"
    note = (
        '<p class="soft">Landscapes on which the answer is known: a claim should be supported on the positive control, '
        "contradicted on the negative one, undecided when starved of data, and not in regime where it does not apply.</p>"
    )
    return (
        f'<section id="controls"><h2>Controls</h2>{note}<div class="scroll"><table><thead><tr><th>claim</th>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div></section>"
    )
