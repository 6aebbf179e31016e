"""The 10 largest along consecutive updates: products an update, tracked against solved anew; ours alone does this."""

from __future__ import annotations

from statistics import mean

from benchmarks.peers.session import Entrant, Session

UPDATES = {"mlp": 100, "cnn": 100, "gpt": 100}
COLD = {"mlp": 1, "cnn": 10, "gpt": 10}  # how often it is solved anew beside
RATES = {"mlp": (0.2, 0.02, 0.002), "cnn": (0.05, 0.005, 0.0005), "gpt": (0.1, 0.01, 0.001)}
TOLERANCES = (1e-2, 1e-3)
K, BATCH = 10, {"mlp": 64, "cnn": 50, "gpt": 32}


def run(session: Session, updates: int | None = None) -> None:
    """Three learning rates, two tolerances, each point that was asked for.

    Args:
        session: tools and points.
        updates: of each burst; None for 100.
    """
    for net in [net for net in UPDATES if net in session.nets]:
        for point in session.points(net):
            for lr in RATES[net]:
                for tolerance in TOLERANCES:
                    options = {"k": K, "lr": lr, "batch": BATCH[net], "updates": updates or UPDATES[net], "every": COLD[net]}
                    found = session.ask("tracking", point, Entrant("ours", options), tolerance=tolerance, seed=0)
                    if "error" not in found:
                        tracked, cold = mean(found["tracked"]), mean(found["cold"])
                        note = (
                            f"{tracked:.1f} and {cold:.1f} products; {len(found['tracked'])} updates, {found['accepted']} "
                            f"certified, {found['missed']} of them missed; values off by {found['off']:.0e} at most"
                        )
                        session.row("tracking", point, f"products, lr {lr:g}, to {tolerance:g} / cold", tracked / cold, note)
