"""The spectral density with 10 probes of 80 steps: time on the MLP, error against the exact spectrum on a small one."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.peers.reference import eigenvalues, exact_work
from benchmarks.peers.session import Answer, Entrant, Session, middle

OPTIONS = {"probes": 10, "steps": 80}
WIDTHS = (0.01, 0.001)  # of the Gaussian, over the range of the spectrum
REPEATS = {"mlp": 2, "small": 6}  # 800 products each
TOOLS = {
    "ours": "ours",
    "curvlinops, no reorthogonalisation": "curvlinops",
    "PyHessian": "pyhessian",
    "hessian-eigenthings": "eigenthings",
}


def _entrants(net: str) -> dict[str, Entrant]:
    return {label: Entrant(tool, OPTIONS, REPEATS[net]) for label, tool in TOOLS.items()}


def _smooth(nodes: Tensor, weights: Tensor, grid: Tensor, width: float) -> Tensor:
    """sum_i w_i N(grid; node_i, width), the weights brought to sum 1."""
    kernel = torch.exp(-0.5 * ((grid[:, None] - nodes) / width) ** 2) / (width * (2 * torch.pi) ** 0.5)
    return kernel @ (weights / weights.sum())


def _distance(answer: Answer, exact: Tensor, width: float) -> float:
    """The integral of |estimate - exact|, in [0, 2]."""
    spread = float(exact[-1] - exact[0])
    grid = torch.linspace(float(exact[0]) - 0.1 * spread, float(exact[-1]) + 0.1 * spread, 10000, dtype=torch.float64)
    truth = _smooth(exact, torch.ones_like(exact), grid, width * spread)
    nodes, weights = (torch.tensor(answer[part], dtype=torch.float64) for part in ("nodes", "weights"))
    return float((_smooth(nodes, weights, grid, width * spread) - truth).abs().sum() * (grid[1] - grid[0]))


def run(session: Session) -> None:
    """Times on the MLP, errors on the small one; of all stages only the middle.

    Args:
        session: tools and points.
    """
    if "mlp" not in session.nets:
        return
    stages = ("mid",) if len(session.stages) > 1 else session.stages
    for point in session.points("mlp", stages=stages):
        found = session.rounds("density", point, _entrants(point.net))
        for label in [label for label in found if label != "ours" and "ours" in found]:
            session.row("density", point, f"time / {label}", middle(found["ours"]) / middle(found[label]))
    for point in session.points("small", stages=stages):
        exact, found = eigenvalues(exact_work(point)), session.rounds("density", point, _entrants(point.net))
        for width in WIDTHS:
            errors = {who: sum(_distance(a, exact, width) for a in answers) / len(answers) for who, answers in found.items()}
            for who in [who for who in errors if who != "ours" and "ours" in errors]:
                note = f"integral of |error| {errors['ours']:.2g} and {errors[who]:.2g}"
                session.row("density", point, f"error at width {width:g} / {who}", errors["ours"] / errors[who], note)
