"""Convolutions whose second derivative runs on the kernels of the first: torch's own goes by kernels as large as the image."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.overrides import TorchFunctionMode

RANKS: dict[Callable[..., Tensor], int] = {torch.conv1d: 1, torch.conv2d: 2, torch.conv3d: 3}
Shape = tuple[list[int], list[int], list[int], int]  # stride, padding, dilation, groups


class Convolutions(TorchFunctionMode):
    """While it is entered, plain convolutions of the model are recorded as `Convolution`; everything else is left alone."""

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Take the calls of ``torch.conv1d``, ``conv2d`` and ``conv3d`` (and so of the layers)."""
        rank = RANKS.get(func)
        if rank is None:
            return func(*args, **(kwargs or {}))
        return convolve(func, rank, *args, **(kwargs or {}))


def convolve(
    plain: Callable[..., Tensor],
    rank: int,
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Tensor:
    """A convolution with the arguments of torch's; one without batch dimension or with padding by name goes torch's way."""
    if isinstance(padding, str) or input.ndim != rank + 2:
        return plain(input, weight, bias, stride, padding, dilation, groups)
    shape: Shape = (_each(stride, rank), _each(padding, rank), _each(dilation, rank), groups)
    result: Tensor = Convolution.apply(input, weight, bias, shape)  # type: ignore[no-untyped-call]  # of torch
    return result


def _each(value: Any, rank: int) -> list[int]:
    values = [int(v) for v in value] if isinstance(value, Sequence) else [int(value)]
    return values * rank if len(values) == 1 else values


def _forward(input: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
    stride, padding, dilation, groups = shape
    return torch.convolution(input, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)


def _backward(grad: Tensor, input: Tensor, weight: Tensor, shape: Shape, wanted: Sequence[bool]) -> Sequence[Tensor | None]:
    """The gradients with respect to input, weight and bias, where wanted."""
    stride, padding, dilation, groups = shape
    parts: Sequence[Tensor | None] = torch.ops.aten.convolution_backward(
        grad, input, weight, [weight.shape[0]], stride, padding, dilation, False, [0] * len(stride), groups, list(wanted)
    )
    return parts


class Convolution(torch.autograd.Function):
    """y = W * x + b."""

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, bias: Tensor | None, shape: Shape) -> Tensor:
        """Torch's convolution."""
        ctx.save_for_backward(input, weight)
        ctx.shape = shape
        return _forward(input, weight, bias, shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        """Torch's gradients, recorded as a function of their own."""
        input, weight = ctx.saved_tensors
        return *Gradients.apply(grad, input, weight, ctx.shape, ctx.needs_input_grad[:3]), None  # type: ignore[no-untyped-call]


class Gradients(torch.autograd.Function):
    """(dx, dW, db) as a bilinear function of (dy, W) and (dy, x)."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, input: Tensor, weight: Tensor, shape: Shape, wanted: Sequence[bool]) -> Any:
        """Torch's gradients."""
        ctx.save_for_backward(grad, input, weight)
        ctx.shape = shape
        ctx.set_materialize_grads(False)
        return tuple(_backward(grad, input, weight, shape, wanted))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, to_input: Tensor | None, to_weight: Tensor | None, to_bias: Tensor | None) -> Any:
        """The gradients of (dx, dW, db): two convolutions for dy, one gradient each for x and W."""
        grad, input, weight = ctx.saved_tensors
        parts: list[Tensor | None] = [None, None, None]
        if ctx.needs_input_grad[0]:
            bias = None if to_bias is None else to_bias.view(-1, *[1] * (grad.ndim - 2)).expand_as(grad)
            through = bias if to_input is None else _forward(to_input, weight, to_bias, ctx.shape)
            moved = None if to_weight is None else _forward(input, to_weight, None, ctx.shape)
            parts[0] = moved if through is None else through if moved is None else through + moved
        if ctx.needs_input_grad[1] and to_weight is not None:
            parts[1] = _backward(grad, input, to_weight, ctx.shape, (True, False, False))[0]
        if ctx.needs_input_grad[2] and to_input is not None:
            parts[2] = _backward(grad, to_input, weight, ctx.shape, (False, True, False))[1]
        return *parts, None, None
