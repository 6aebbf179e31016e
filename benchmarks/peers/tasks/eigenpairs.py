"""The 1 and 10 largest eigenpairs to a relative residual of 1e-3, set-up included; and the memory that the 10 take."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.peers.reference import exact_work, residual
from benchmarks.peers.session import Answer, Entrant, Session, middle
from benchmarks.peers.works import FOLDER, MAIN, Point

TOLERANCE = 1e-3
TUNED = {1: (6, 8, 10), 10: (15, 20, 25)}  # ARPACK's basis; its defaults are 20 and 21
KINDS = {1: "top-1", 10: "top-10"}


def _entrants(k: int, net: str) -> dict[str, Entrant]:
    options = {"k": k, "tolerance": TOLERANCE}
    found = {"ours": Entrant("ours", options), "curvlinops+eigsh": Entrant("curvlinops", options)}
    found |= {f"curvlinops+eigsh ncv {n}": Entrant("curvlinops", options | {"ncv": n}) for n in TUNED[k]}
    if net == "mlp":
        found |= {
            "hessian-eigenthings": Entrant("eigenthings", options),
            "PyHessian": Entrant("pyhessian", {"k": k}),
            "PyHessian, stop 1e-7": Entrant("pyhessian", {"k": k, "stop": 1e-7, "limit": 1000}),
        }
    return found


def _check(session: Session, point: Point, entrants: dict[str, Entrant], found: dict[str, list[Answer]]) -> dict[str, str]:
    """What float64 products say about the pairs of one more run: label -> note."""
    notes: dict[str, str] = {}
    work, ours, path = exact_work(point), None, FOLDER / "pairs.pt"
    labels = [label for label in found if point.net == "mlp" or " ncv " not in label]
    for label in labels:
        if "error" in session.ask("eigenpairs", point, entrants[label], seed=0, save=str(path)):
            continue
        pairs = torch.load(path, weights_only=True)
        worst, quotients = residual(work, pairs["values"], pairs["vectors"])
        ours = quotients if label == "ours" else ours
        apart = "" if ours is None else f", values apart {float((quotients - ours).abs().max() / ours[0]):.0e}"
        notes[label] = f"{'MISSES, ' if worst > 1.05 * TOLERANCE else ''}residual {worst:.0e}{apart}"
    return notes


def _count(answers: list[Answer]) -> str:
    counts = [answer["products"] for answer in answers if answer["products"] is not None]
    return f"{sum(counts) / len(counts):.1f} products" if counts else "products not counted"


def _compare(session: Session, point: Point, k: int) -> None:
    entrants = _entrants(k, point.net)
    found = session.rounds("eigenpairs", point, entrants)
    if "ours" not in found:
        return
    notes, ours = _check(session, point, entrants, found), middle(found["ours"])
    own = f"{_count(found['ours'])}, {notes.get('ours', '')}"
    tuned = [label for label in found if " ncv " in label]
    best = min(tuned, key=lambda label: middle(found[label]), default=None)
    for label, answers in found.items():
        if label != "ours" and (label not in tuned or label == best):
            name = label.split(" ncv ")[0] + (", best ncv" if label == best else "")
            against = f"{label}: {_count(answers)} {notes.get(label, '')}"
            session.row("eigenpairs", point, f"{KINDS[k]}, time / {name}", ours / middle(answers), f"ours: {own}; {against}")


def run(session: Session) -> None:
    """Every network, stage and seed.

    Args:
        session: tools and points.
    """
    for net in MAIN:
        if net in session.nets:
            for point in session.points(net):
                for k in KINDS:
                    _compare(session, point, k)


def memory(session: Session) -> None:
    """Peak memory over what was in use after imports and data, a fresh process each, on the CNN.

    Args:
        session: tools and points.
    """
    options: dict[str, Any] = {"k": 10, "tolerance": TOLERANCE, "seed": 0}
    for point in session.points("cnn", stages=("mid",), seeds=(1,)) if "cnn" in session.nets else []:
        peaks = {}
        for tool in ("ours", "curvlinops"):
            if session.has(tool):
                with session.fresh(tool) as worker:
                    found = worker.ask("eigenpairs", point, session.chunk(point), options)
                peaks[tool] = found.get("peak")
        if all(peaks.get(tool) for tool in ("ours", "curvlinops")):
            session.row("memory", point, "top-10, peak memory / curvlinops+eigsh", peaks["ours"] / peaks["curvlinops"])
