"""The 1 and 10 largest eigenpairs to a relative residual of 1e-3, set-up included; and the memory that the 10 take."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.peers.reference import exact_work, residual
from benchmarks.peers.session import Answer, Entrant, Session, middle, pairs_of
from benchmarks.peers.works import MAIN, Point

TOLERANCE = 1e-3
TUNED = {1: (6, 8, 10), 10: (15, 20, 25)}  # ARPACK's basis; its defaults are 20 and 21
SLOW = 3  # repeats where one takes ten times as long as ours
KINDS = {1: "top-1", 10: "top-10"}


def _entrants(k: int, net: str) -> dict[str, Entrant]:
    options = {"k": k, "tolerance": TOLERANCE}
    sizes = TUNED[k] if net == "mlp" else TUNED[k][::2]
    found = {"ours": Entrant("ours", options), "curvlinops+eigsh": Entrant("curvlinops", options)}
    found |= {f"curvlinops+eigsh ncv {n}": Entrant("curvlinops", options | {"ncv": n}) for n in sizes}
    if net == "mlp":
        found |= {
            "hessian-eigenthings": Entrant("eigenthings", options),
            "PyHessian": Entrant("pyhessian", {"k": k}),
            "PyHessian, stop 1e-7": Entrant("pyhessian", {"k": k, "stop": 1e-7, "limit": 1000}, SLOW),
        }
    return found


def _check(point: Point, labels: list[str]) -> dict[str, tuple[bool, str]]:
    """What float64 products say about the last pairs: label -> (the residual is met, note)."""
    notes: dict[str, tuple[bool, str]] = {}
    work, ours = exact_work(point), None
    for label in labels:
        pairs = torch.load(pairs_of(label), weights_only=True)
        worst, quotients = residual(work, pairs["values"], pairs["vectors"])
        ours = quotients if label == "ours" else ours
        apart = "" if ours is None else f", values apart {float((quotients - ours).abs().max() / ours[0]):.0e}"
        notes[label] = worst < 1.05 * TOLERANCE, f"residual {worst:.0e}{apart}"
    return notes


def _count(answers: list[Answer]) -> str:
    counts = [answer["products"] for answer in answers if answer["products"] is not None]
    return f"{sum(counts) / len(counts):.1f} products" if counts else "products not counted"


def _compare(session: Session, point: Point, k: int) -> None:
    found = session.rounds("eigenpairs", point, _entrants(k, point.net))
    if "ours" not in found:
        return
    tuned = [label for label in found if " ncv " in label]
    best = min(tuned, key=lambda label: middle(found[label]), default=None)
    labels = [label for label in found if label not in tuned or label == best]
    checked = labels if point.net == "mlp" else [label for label in labels if label != best and point.seed == session.seeds[0]]
    notes = dict.fromkeys(labels, (True, "residual not checked")) | _check(point, checked)
    for label in labels[1:]:
        name = label.split(" ncv ")[0] + (", best ncv" if label == best else "")
        who = f"{KINDS[k]}, time / {name}" + ("" if notes[label][0] else " (misses the residual)")
        sides = (f"{side}: {_count(found[side])}, {notes[side][1]}" for side in ("ours", label))
        session.row("eigenpairs", point, who, middle(found["ours"]) / middle(found[label]), "; ".join(sides))


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
