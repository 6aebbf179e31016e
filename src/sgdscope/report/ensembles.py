"""The page of an ensemble: its members as runs, what they say together, and the barriers between them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sgdscope.experiment import read_ensemble
from sgdscope.figures.segments import segments
from sgdscope.report.page import alarm, figure, number, safe
from sgdscope.report.reading import Run

BARRIER = 0.01  # of the worst member's loss: below it nothing lies between two members


def unfold(runs: Sequence[Run]) -> tuple[list[Run], list[tuple[str, Mapping[str, Any]]]]:
    """Put the members of an ensemble, and the runs of a sweep, in the place of their folder.

    Args:
        runs: run directories, folders of ensembles, or measured runs.

    Returns:
        (runs, (name, what ``ensemble.json`` tells) of each folder).
    """
    found: list[Run] = []
    ensembles: list[tuple[str, Mapping[str, Any]]] = []
    for run in runs:
        told = read_ensemble(run) if isinstance(run, str | Path) else None
        if told is None and isinstance(run, str | Path) and not (Path(run) / "run.json").exists():
            inside = sorted(path.parent for path in Path(run).glob("*/run.json"))  # the folder of a sweep
            found += inside or [run]
            continue
        if told is None or not isinstance(run, str | Path):
            found.append(run)
            continue
        found += [Path(run) / m["run"] for m in told["members"] if (Path(run) / m["run"]).is_dir()]
        ensembles.append((Path(run).name or str(run), told))
    return found, ensembles


def ensemble_section(name: str, told: Mapping[str, Any], *, place: int = 1) -> str:
    """What the members say together.

    Args:
        name: of the folder.
        told: what its ``ensemble.json`` holds.
        place: which of the page's ensembles it is, from 1; links find it by that.

    Returns:
        HTML; a sentence in place of what the file lacks.
    """
    head = f'<section class="ensemble" id="ensemble-{place}"><h2>{safe(name)}: members and their average</h2>'
    try:
        words, rows = _words(told), "".join(_row(m) for m in told["members"])
    except (KeyError, TypeError, ValueError) as error:
        return head + alarm(safe(f"ensemble.json of {name} is not whole: {error!r}")) + "</section>"
    titles = "".join(f'<th class="n">{title}</th>' for title in ("updates", "weight", "training loss"))
    table = f'<div class="scroll"><table><thead><tr><th>member</th>{titles}</tr></thead><tbody>{rows}</tbody></table></div>'
    caption = "Training loss on the straight way from each member to the next. A hump above both ends is a barrier."
    return head + "".join(f"<p>{word}</p>" for word in words) + table + figure(lambda: segments(told), caption) + "</section>"


def _words(told: Mapping[str, Any]) -> list[str]:
    said = str(told["sentence"])
    words = [f"The average has {safe(said)}."]
    losses = [m["loss"] for m in told["members"] if m["loss"] is not None and not m["lost"]]
    best, worst = min(losses), max(losses)
    words.append(
        f"Its training loss is {number(told['loss_average'])}; that of the plain average {number(told['loss_equal'])}, "
        f"of the members {number(best)} to {number(worst)}."
    )
    barrier = told["barrier"]
    if barrier is None:
        return words
    if barrier > BARRIER * worst:
        words.append(
            f"A barrier lies between members: on the way from one to the next the loss rises by up to {number(barrier)} above "
            "the worse of the two, so that their average says little about them."
        )
    else:
        words.append("No barrier lies between one member and the next: the loss does not rise above the worse of the two.")
    return words


def _row(member: Mapping[str, Any]) -> str:
    name = safe(member["run"]) + (" (lost)" if member["lost"] else "")
    cells = "".join(f'<td class="n">{number(member[key])}</td>' for key in ("updates", "weight", "loss"))
    return f"<tr><td>{name}</td>{cells}</tr>"
