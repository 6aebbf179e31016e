"""Measuring at every update: a configuration against the plain step of the same process."""

from __future__ import annotations

from benchmarks.peers.session import Entrant, Session, middle

UPDATES, BATCH = {"mlp": 120, "cnn": 30}, 64
SETS = {"ours": ("scalars", "economy", "full"), "cockpit": ("economy", "full")}  # tool -> what it measures at every update


def run(session: Session) -> None:
    """The MLP and the CNN, early in training.

    Args:
        session: tools and points.
    """
    for net in [net for net in UPDATES if net in session.nets]:
        for point in session.points(net, stages=("early",), seeds=session.seeds[:1]):
            for tool, sets in SETS.items():
                options = {"updates": UPDATES[net], "batch": BATCH, "lr": 0.01}
                entrants = {f"{tool} {what}": Entrant(tool, options | {"what": what}) for what in ("plain", *sets)}
                found = session.rounds("live", point, entrants)
                plain = found.pop(f"{tool} plain", None)
                for label, answers in found.items() if plain else ():
                    session.row("live", point, f"{label} / plain step", middle(answers) / middle(plain))
