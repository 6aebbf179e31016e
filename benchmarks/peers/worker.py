"""What every tool's process does: load the work, time a task, answer in JSON lines. Needs torch and the networks alone."""

from __future__ import annotations

import gc
import json
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgdscope.models import build

Task = Callable[..., dict[str, Any]]


class ClassesSecond(nn.Module):
    """Logits [B, T, V] -> [B, V, T], so that one criterion serves all networks.

    Args:
        net: the network.
    """

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, tokens: Tensor) -> Tensor:
        """Tokens [B, T] -> [B, V, T]."""
        return self.net(tokens).movedim(-1, 1)


@dataclass(frozen=True)
class Work:
    """A network at a trained point and its data.

    Attributes:
        model: at theta, float32, in evaluation mode.
        x: inputs [N, ...].
        y: targets [N] or [N, T].
        theta: [P], in the order of ``model.parameters()``.
        chunk: how many examples a pass takes at once.
    """

    model: nn.Module
    x: Tensor
    y: Tensor
    theta: Tensor
    chunk: int

    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The data in chunks."""
        return list(zip(self.x.split(self.chunk), self.y.split(self.chunk), strict=True))


criterion = nn.CrossEntropyLoss()


def network(kind: Mapping[str, Any], seed: int) -> nn.Module:
    """Build a network from its description."""
    net = build(kind["model"], inputs=kind["inputs"], classes=kind["classes"], seed=seed, **kind["options"])
    return ClassesSecond(net) if len(kind["inputs"]) == 1 else net


def load(path: str, chunk: int) -> Work:
    """Read a point and run one chunk forward and backward, so that no tool pays for the kernels' first call."""
    kept = torch.load(path, weights_only=True)
    model, theta = network(kept, 0).eval(), kept["theta"]
    torch.nn.utils.vector_to_parameters(theta, model.parameters())
    for parameter in model.parameters():
        parameter.data = parameter.data.clone()
    work = Work(model, kept["x"], kept["y"], theta, chunk or len(kept["x"]))
    x, y = work.batches()[0]
    criterion(model(x), y).backward()
    model.zero_grad(set_to_none=True)
    return work


def shuffled(work: Work, batch: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Mini-batches without end, each pass in a new order."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        for rows in torch.randperm(len(work.x), generator=generator).split(batch):
            yield work.x[rows], work.y[rows]


def _memory(field: str) -> int:
    """Bytes of this process now (VmRSS) or at most (VmHWM, which unlike ru_maxrss does not start at the parent's size)."""
    status = Path("/proc/self/status")
    if not status.exists():
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(field))


def _saved(found: dict[str, Any], path: str | None) -> dict[str, Any]:
    """Take the pairs (values [k], vectors [P, k]) out of what was found, and save them where the driver asks."""
    pairs = found.pop("pairs", None)
    if path and pairs:
        torch.save({name: torch.as_tensor(part) for name, part in zip(("values", "vectors"), pairs, strict=True)}, path)
    return found


def answer(tasks: Mapping[str, Task], request: dict[str, Any]) -> dict[str, Any]:
    """Do one task.

    Args:
        tasks: name -> function of the work and the options.
        request: ``task``, ``work`` (a path), ``chunk``, ``options``, ``save`` (where eigenpairs go).

    Returns:
        What the task found, ``seconds`` of processor time and ``peak``, bytes over what was in use before; or ``error``.
    """
    try:
        work = load(request["work"], request.get("chunk", 0))
        gc.collect()
        base, start = _memory("VmRSS"), time.process_time()
        with sdpa_kernel(SDPBackend.MATH):  # the other kernels of attention have no second derivative
            found = tasks[request["task"]](work, **request.get("options", {}))
        used = {"seconds": time.process_time() - start, "peak": _memory("VmHWM") - base}
        return used | _saved(found, request.get("save"))
    except Exception as error:
        traceback.print_exc()
        return {"error": f"{type(error).__name__}: {error}".splitlines()[0]}


def serve(tasks: Mapping[str, Task]) -> None:
    """Answer requests, one a line, until the input ends; what a tool prints goes to stderr."""
    torch.set_num_threads(1)
    out = sys.stdout
    with redirect_stdout(sys.stderr):
        print(json.dumps({"ready": True}), file=out, flush=True)
        for line in sys.stdin:
            print(json.dumps(answer(tasks, json.loads(line))), file=out, flush=True)
