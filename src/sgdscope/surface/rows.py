"""The gradients of the examples of a batch as rows: one backward pass each or by vmap, and the squares of rows."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from sgdscope.surface.data import arrays, map_tensors
from sgdscope.surface.private import PrivateModel

LANES = 64  # squares that are summed in the dtype of the rows before float64
SQUARES = 1e-20, 1e30  # sums of squares beyond which those of float32 may have left its range
WIDENED = 2**16  # numbers that are widened to float64 at a time


class _Caller(nn.Module):
    """Model and loss as one module, so that its parameters can be replaced for one call, tied ones together."""

    def __init__(self, net: PrivateModel) -> None:
        super().__init__()
        self.module, self.loss, self.call = net.module, net.loss, net.call

    def forward(self, batch: Any) -> Tensor:
        """The loss of a batch of one example."""
        return self.call(batch, 1).reshape(())


def _row(batch: Any, i: int) -> Any:
    return map_tensors(lambda tensor: tensor[i : i + 1], batch)


def squares(rows: Tensor) -> Tensor:
    """Sum the squares of each row: 64 at a time in the dtype of the rows, these sums in float64.

    A row of float32 whose sum lies outside 1e-20 to 1e30, where single squares may leave its range, is summed in float64 alone.

    Args:
        rows: [n, p], float32 or float64.

    Returns:
        [n] float64; of float32 to about 1e-8 of the sum.

    Example:
        >>> [f"{value:.6g}" for value in squares(torch.tensor([[3.0, 4.0], [1e-30, 2e-30]])).tolist()]
        ['25', '5e-60']
    """
    blocks = rows.shape[1] // LANES
    head, tail = rows[:, : blocks * LANES].reshape(len(rows), blocks, LANES), rows[:, None, blocks * LANES :]
    sums: Tensor = torch.linalg.vector_norm(head, dim=2).double().square().sum(1)
    sums += torch.linalg.vector_norm(tail, dim=2).double().square().sum(1)
    if rows.dtype != torch.float64:
        lost = (~((sums > SQUARES[0]) & (sums < SQUARES[1]))).nonzero()[:, 0]
        for few in torch.split(lost, max(1, WIDENED // max(1, rows.shape[1]))):
            sums[few] = rows[few].double().square().sum(1)
    return sums


def rows_by_loop(net: PrivateModel, batch: Any, size: int, out: Tensor | None = None) -> Tensor:
    """Differentiate the loss of each example, one backward pass each.

    Args:
        net: the private model, placed and in its mode; gradients are recorded.
        batch: a batch.
        size: its number of examples.
        out: where the rows are written, [size, P]; None for a new tensor.

    Returns:
        [size, P] in the layout's storage dtype.
    """
    rows = blank_rows(net, size).zero_() if out is None else out.zero_()
    for i in range(size):
        for where, part in zip(net.layout.slices, net.gradient(net.call(_row(batch, i), 1).reshape(())), strict=True):
            if part is not None:
                rows[i, where] = part.reshape(-1).to(rows.dtype)
    return rows


def rows_by_vmap(net: PrivateModel, batch: Any, size: int, out: Tensor | None = None) -> Tensor:
    """Differentiate the losses of all examples at once.

    Args:
        net: as in `rows_by_loop`.
        batch: a batch.
        size: its number of examples.
        out: as in `rows_by_loop`.

    Returns:
        [size, P] in the layout's storage dtype.
    """
    rows = blank_rows(net, size) if out is None else out
    for where, part in zip(net.layout.slices, parts_by_vmap(net, batch, size), strict=True):
        rows[:, where] = part
    return rows


def blank_rows(net: PrivateModel, size: int) -> Tensor:
    """Make rows that are not filled yet.

    Args:
        net: the private model.
        size: examples.

    Returns:
        [size, P] in the layout's storage dtype, on its device.
    """
    return torch.empty(size, net.layout.size, dtype=net.layout.storage_dtype, device=net.device)


def parts_by_vmap(net: PrivateModel, batch: Any, size: int) -> list[Tensor]:
    """Differentiate the losses of all examples at once, without joining the parameters' parts.

    Args:
        net: as in `rows_by_loop`.
        batch: a batch.
        size: its number of examples.

    Returns:
        [size, p] of each parameter of the layout, in its dtype.
    """
    caller = _Caller(net)
    names = {id(parameter): name for name, parameter in caller.named_parameters()}
    chosen = {names[id(p)]: p.detach() for p in net.parameters}

    def one(parameters: dict[str, Tensor], *rows: Tensor) -> Tensor:
        rest = iter(rows)
        example = map_tensors(lambda _: next(rest).unsqueeze(0), batch)
        result: Tensor = torch.func.functional_call(caller, parameters, (example,))
        return result

    leaves = [tensor for tensor in arrays(batch) if isinstance(tensor, Tensor)]
    places = (None, *(0 for _ in leaves))
    with sdpa_kernel(SDPBackend.MATH):  # those of fused attention have no batching rule
        parts = torch.vmap(torch.func.grad(one), in_dims=places, randomness="error")(chosen, *leaves)
    return [parts[name].reshape(size, -1) for name in chosen]
