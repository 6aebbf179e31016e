"""Cockpit: its configurations at every update, and the plain loop beside them."""

from __future__ import annotations

import itertools
from typing import Any

import torch
from backpack import extend
from cockpit import Cockpit
from cockpit.context import CockpitCTX
from cockpit.utils.configuration import configuration
from torch import nn

from benchmarks.peers.worker import Work, criterion, serve, shuffled


def live(work: Work, *, what: str, updates: int, batch: int, lr: float, seed: int) -> dict[str, Any]:
    """Some updates of plain SGD with a configuration tracked at every update; ``"plain"``: with nothing."""
    batches = itertools.islice(shuffled(work, batch, seed), updates)
    if what == "plain":
        optimizer = torch.optim.SGD(work.model.parameters(), lr=lr)
        for x, y in batches:
            optimizer.zero_grad()
            criterion(work.model(x), y).backward()
            optimizer.step()
        return {"updates": updates}
    model, mean = extend(work.model), extend(nn.CrossEntropyLoss())
    each = nn.CrossEntropyLoss(reduction="none")
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    cockpit = Cockpit(model.parameters(), quantities=configuration(what))
    for step, (x, y) in enumerate(batches):
        optimizer.zero_grad()
        outputs = model(x)
        loss, losses = mean(outputs, y), each(outputs, y)
        info = {"batch_size": len(x), "individual_losses": losses, "loss": loss, "optimizer": optimizer}
        with cockpit(step, info=info):
            loss.backward(create_graph=cockpit.create_graph(step))
        optimizer.step()
    CockpitCTX.erase()
    return {"updates": updates}


if __name__ == "__main__":
    serve({"live": live})
