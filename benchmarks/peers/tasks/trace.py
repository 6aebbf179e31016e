"""How many products the trace takes to 5 % (root mean square over 16 seeds, against the exact trace)."""

from __future__ import annotations

import math

from benchmarks.peers.reference import exact_trace, exact_work
from benchmarks.peers.session import Entrant, Session
from benchmarks.peers.works import Point

BUDGETS = (6, 12, 18, 24, 30, 36, 48, 60, 90, 120, 180)  # XTrace wants an even number, Hutch++ a multiple of 3
SEEDS = list(range(16))
TARGET = 0.05
ENTRANTS = {
    "ours": Entrant("ours", {"method": None}),
    "ours, top-10 known": Entrant("ours", {"method": None, "known": 10}),
    "curvlinops XTrace": Entrant("curvlinops", {"method": "xtrace"}),
    "curvlinops Hutch++": Entrant("curvlinops", {"method": "hutch++"}),
    "PyHessian": Entrant("pyhessian", {"method": "hutchinson"}),
}


def _errors(session: Session, point: Point, entrant: Entrant, exact: float) -> dict[int, float]:
    """Budget -> relative error, until the target is met."""
    found: dict[int, float] = {}
    for budget in BUDGETS:
        answer = session.ask("trace", point, entrant, products=budget, seeds=SEEDS)
        if "error" in answer:
            break
        assert len(set(answer["values"])) == len(SEEDS), "the seeds drew the same probes"
        found[answer["products"]] = math.sqrt(sum((v / exact - 1) ** 2 for v in answer["values"]) / len(SEEDS))
        if found[answer["products"]] <= TARGET:
            break
    return found


def _needed(errors: dict[int, float]) -> float | None:
    """Products at the target, from the two budgets around it: log error is taken as linear in log budget."""
    last = [(math.log(n), math.log(e / TARGET)) for n, e in errors.items()][-2:]
    if not last or last[-1][1] > 0:
        return None
    if len(last) == 1:
        return math.exp(last[0][0])
    (a, above), (b, below) = last
    return math.exp(a + (b - a) * above / (above - below))


def _rows(session: Session, point: Point) -> None:
    exact = exact_trace(exact_work(point))
    errors = {
        label: _errors(session, point, entrant, exact)
        for label, entrant in ENTRANTS.items()
        if session.has(entrant.tool) and (point.net == "mlp" or label != "PyHessian")
    }
    shown = {label: ", ".join(f"{n}: {100 * e:.1f} %" for n, e in found.items()) for label, found in errors.items()}
    needed = {label: count for label, found in errors.items() if (count := _needed(found)) is not None}
    for own in [own for own in ("ours", "ours, top-10 known") if own in needed]:
        for label in [label for label in needed if not label.startswith("ours")]:
            ratio, note = needed[own] / needed[label], f"ours: {shown[own]}; {label}: {shown[label]}"
            session.row("trace", point, f"{own}: products to 5 % / {label}", ratio, note)


def run(session: Session) -> None:
    """The networks whose exact trace has a formula: the MLP at every point, the CNN in mid training.

    Args:
        session: tools and points.
    """
    for net, stages, seeds in (("mlp", None, None), ("cnn", ("mid",), (1,))):
        for point in session.points(net, stages=stages, seeds=seeds) if net in session.nets else []:
            _rows(session, point)
