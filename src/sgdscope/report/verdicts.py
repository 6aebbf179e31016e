"""The tables of verdicts and of controls."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from sgdscope.checks import counted
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
    groups: dict[str, list[dict[str, Any]]] = {}
    for verdict in map(fields, verdicts):
        groups.setdefault(_run_of(verdict), []).append(verdict)
    if len(groups) == 1:
        [(run, own)] = groups.items()
        return f"{title}{note}{f'<p>Run {safe(run)}.</p>' if run else ''}{_verdict_table(own)}</section>"
    tables = [
        f"<details><summary>Reasons and numbers{f' of {safe(run)}' if run else ''}</summary>{_verdict_table(own)}</details>"
        for run, own in groups.items()
    ]
    return f"{title}{note}{_matrix(groups)}{''.join(tables)}</section>"


def _run_of(verdict: Mapping[str, Any]) -> str:
    """The run that a verdict is about; empty where it does not say."""
    run = (verdict.get("details") or {}).get("run")
    return run if isinstance(run, str) else ""


def _matrix(groups: Mapping[str, Sequence[Mapping[str, Any]]]) -> str:
    """One row a claim, one column a run."""
    names = sorted({str(v["claim"]) for own in groups.values() for v in own}, key=counted)
    head = "".join(f"<th>{safe(run) or 'no run'}</th>" for run in groups)
    body = ""
    for name in names:
        found = [[v for v in own if str(v["claim"]) == name] for own in groups.values()]
        cells = "".join(f"<td>{'<br>'.join(_answer(str(v['verdict'])) for v in own) or '–'}</td>" for own in found)
        body += f'<tr><td class="wide"><strong>{safe(name)}</strong> {safe(_claim_sentence(name))}</td>{cells}</tr>'
    table = f"<table><thead><tr><th>claim</th>{head}</tr></thead><tbody>{body}</tbody></table>"
    return f'<div class="scroll">{table}</div>'


COLUMNS = {"statistic": "statistic", "interval": "interval", "threshold": "threshold", "n": "n", "smallest_p": "smallest p"}


def _verdict_table(verdicts: Sequence[Mapping[str, Any]]) -> str:
    """Verdicts with their reasons; the regime that they share is said once, columns without any number are left out."""
    kept = [key for key in COLUMNS if any(_number_of(v, key) != "–" for v in verdicts)]
    shared = _shared([v.get("regime") or {} for v in verdicts])
    head = "<th>claim and reason</th><th>verdict</th>" + "".join(f'<th class="n">{COLUMNS[key]}</th>' for key in kept)
    body = "".join(_verdict_row(verdict, kept, shared) for verdict in verdicts)
    lead = f'<p class="soft">Regime of all: {_regime(shared)}.</p>' if _regime(shared) else ""
    table = f'<table class="verdicts"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'{lead}<div class="scroll">{table}</div>'


def _shared(regimes: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What several regimes agree on, as it is written; nothing for a single one."""
    if len(regimes) < 2:
        return {}
    return {k: v for k, v in regimes[0].items() if all(_regime({k: r.get(k)}) == _regime({k: v}) for r in regimes)}


def _regime(regime: Mapping[str, Any]) -> str:
    """A regime in words; numbers that are not known are left out."""
    told = {k: safe(v) if isinstance(v, str) else number(v) for k, v in regime.items()}
    return ", ".join(f"{safe(k)} {text}" for k, text in told.items() if isinstance(regime[k], str) or text != "–")


def _number_of(verdict: Mapping[str, Any], key: str) -> str:
    """The text of one cell."""
    if key == "interval":
        return interval(*(verdict.get("interval") or (None, None))[:2])
    return number(verdict.get(key))


def _verdict_row(verdict: Mapping[str, Any], kept: Sequence[str], shared: Mapping[str, Any]) -> str:
    regime = _regime({k: v for k, v in (verdict.get("regime") or {}).items() if k not in shared})
    claim = str(verdict["claim"])
    told = [f"<strong>{safe(claim)}</strong> {safe(_claim_sentence(claim))}"]
    told += [f'<span class="soft">{_reason(str(verdict["reason"]))}</span>'] if verdict.get("reason") else []
    told += [f'<span class="soft">Regime: {regime}.</span>'] if regime else []
    numbers = "".join(f'<td class="n">{_number_of(verdict, key)}</td>' for key in kept)
    return f'<tr><td class="wide">{"<br>".join(told)}</td><td>{_answer(str(verdict["verdict"]))}</td>{numbers}</tr>'


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
