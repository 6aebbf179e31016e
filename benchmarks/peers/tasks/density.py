"""The spectral density with 10 probes of 80 steps: time on the MLP, error against the exact spectrum on a small one."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers.reference import eigenvalues, exact_work
from benchmarks.peers.session import Answer, Entrant, Session, middle

OPTIONS = {"probes": 10, "steps": 80}
WIDTH = 0.01  # of the Gaussian, over the range of the spectrum
TOOLS = {
    "ours": "ours",
    "curvlinops, no reorthogonalisation": "curvlinops",
    "PyHessian": "pyhessian",
    "hessian-eigenthings": "eigenthings",
}
ENTRANTS = {label: Entrant(tool, OPTIONS) for label, tool in TOOLS.items()}


def _smooth(nodes: Tensor, weights: Tensor, grid: Tensor, width: float) -> Tensor:
    """sum_i w_i N(grid; node_i, width), the weights brought to sum 1."""
    kernel = torch.exp(-0.5 * ((grid[:, None] - nodes) / width) ** 2) / (width * (2 * torch.pi) ** 0.5)
    return kernel @ (weights / weights.sum())


def _distance(answer: Answer, exact: Tensor) -> float:
    """The integral of |estimate - exact|, in [0, 2]."""
    spread = float(exact[-1] - exact[0])
    grid = torch.linspace(float(exact[0]) - 0.1 * spread, float(exact[-1]) + 0.1 * spread, 2000, dtype=torch.float64)
    truth = _smooth(exact, torch.ones_like(exact), grid, WIDTH * spread)
    nodes, weights = (torch.tensor(answer[part], dtype=torch.float64) for part in ("nodes", "weights"))
    return float((_smooth(nodes, weights, grid, WIDTH * spread) - truth).abs().sum() * (grid[1] - grid[0]))


def run(session: Session) -> None:
    """Times on the MLP at every point, errors on the small one in mid training.

    Args:
        session: tools and points.
    """
    if "mlp" not in session.nets:
        return
    for point in session.points("mlp"):
        found = session.rounds("density", point, ENTRANTS)
        for label in [label for label in found if label != "ours" and "ours" in found]:
            session.row("density", point, f"time / {label}", middle(found["ours"]) / middle(found[label]))
    for point in session.points("small", stages=("mid",)):
        exact, found = eigenvalues(exact_work(point)), session.rounds("density", point, ENTRANTS)
        errors = {label: sum(_distance(a, exact) for a in answers) / len(answers) for label, answers in found.items()}
        for label in [label for label in errors if label != "ours" and "ours" in errors]:
            note = f"integral of |error| {errors['ours']:.2g} and {errors[label]:.2g}"
            session.row("density", point, f"error / {label}", errors["ours"] / errors[label], note)
