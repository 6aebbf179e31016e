"""A network's loss for many walkers at once, and the minimum from which they start."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from sgdscope.errors import ArgumentError, DataError, SurfaceError
from sgdscope.escapes.potentials import F64, Potential, above, count
from sgdscope.spectra import eigenpairs
from sgdscope.vector import Layout

Loss = Callable[[Any, Any], Tensor]
FAR = -1e6, 0.0, 1e6  # labels on a line, beyond any output
_ONE_CLASS = "data: all {} labels are of class {}; the loss of one class has no minimum to escape from"
CELLS = 2**24  # numbers of inputs of replicas times examples that go through the network at a time: 128 MB


class _LossModule(nn.Module):
    """The mean loss as the forward of a module, so that its parameters can be swapped."""

    def __init__(self, model: nn.Module, loss: Loss) -> None:
        super().__init__()
        self.model, self.loss = model, loss

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """The mean loss of a batch."""
        return self.loss(self.model, (x, y)).mean()


class Network(Potential):
    """A network as a potential: every walker is a replica of it, all replicas evaluated together by vmap.

    A private copy in float64 and in evaluation mode, the caller's model is not touched. Batches are drawn with replacement,
    each walker its own.

    Args:
        model: a network whose forward vmap can follow (dense and convolutional ones, no recurrent ones).
        loss: (model, (x, y)) -> mean loss, or one loss an example.
        data: (x [N, ...], y [N, ...]).

    Raises:
        ArgumentError: the data do not fit each other, or the model has no parameters.
        DataError: class labels of one class only (floats of 0 or 1 under a cross-entropy too), or inputs that are not finite.
        SurfaceError: vmap does not follow the model; the message says what to do.
    """

    def __init__(self, model: nn.Module, loss: Loss, data: tuple[Tensor, Tensor]) -> None:
        self.x, self.y = _examples(data)
        own = copy.deepcopy(model).to(F64).eval()
        self._net = _LossModule(own, loss)
        named = {name: p.detach() for name, p in self._net.named_parameters() if p.requires_grad}
        if not named:
            raise ArgumentError("model: it has no parameters that require a gradient")
        self.layout = Layout.of(named)
        super().__init__(self.layout.pack(named, F64))
        self._values, self._gradients = (vmap(f, (0, None, None), randomness="error") for f in (self._loss, grad(self._loss)))
        self._batches = vmap(grad(self._loss), (0, 0, 0), randomness="error")
        self._prove()
        self._refuse_one_class()

    def _loss(self, theta: Tensor, x: Tensor, y: Tensor) -> Tensor:
        value: Tensor = functional_call(self._net, self.layout.unpack(theta), (x, y))
        return value

    def _prove(self) -> None:
        """Two replicas give the loss and, by differences, the gradient of the module itself."""
        theta = self.start()
        x, y = self.x[:8], self.y[:8]
        try:
            with torch.no_grad():
                plain = float(self._net(x, y))
            value = float(self._values(theta[None], x, y)[0])
            gradient = self._gradients(theta[None], x, y)[0]
        except (RuntimeError, ValueError) as error:
            raise SurfaceError(
                f"model: vmap over replicas fails ({error}); use a model without in-place or data-dependent steps"
            ) from error
        step = 1e-6 * torch.nn.functional.normalize(gradient, dim=0)
        ends = self._values(torch.stack([theta + step, theta - step]), x, y)
        slope = float(ends[0] - ends[1]) / 2e-6
        norm = float(gradient.norm())
        if abs(value - plain) > 1e-9 * max(1.0, abs(plain)) or abs(slope - norm) > 1e-4 * max(norm, 1e-3):
            raise SurfaceError(f"model: replicas give loss {value:g} and slope {slope:g}, the module {plain:g} and {norm:g}")

    def _refuse_one_class(self) -> None:
        """Refuse labels 0 or 1 that are all alike, where the loss is a cross-entropy: linear in them, or of no others."""
        y, theta = self.y, self.start()
        if not y.is_floating_point() or not bool(((y == y[0]) & ((y == 0) | (y == 1))).all()):
            return
        try:
            low, middle, high = (float(self._loss(theta, self.x, torch.full_like(y, label))) for label in FAR)
        except RuntimeError:  # no label beyond [0, 1] is taken, as by binary_cross_entropy
            low, middle, high = FAR
        if low != high and abs(low - 2 * middle + high) <= 1e-9 * abs(high - low):
            raise DataError(_ONE_CLASS.format(len(y), [int(v) for v in y[0].reshape(-1)] if y[0].numel() > 1 else int(y[0])))

    @property
    def examples(self) -> int:
        """N."""
        return len(self.x)

    def _rows(self) -> int:
        """Replicas that go through the network at a time with all examples."""
        return max(1, CELLS // max(1, self.x.numel()))

    def value(self, thetas: Tensor) -> Tensor:
        """The mean loss over all examples of each replica, [W]."""
        with torch.no_grad():
            return torch.cat([self._values(part, self.x, self.y) for part in torch.split(thetas, self._rows())])

    def gradient(self, thetas: Tensor) -> Tensor:
        """Its gradient, [W, P]."""
        return torch.cat([self._gradients(part, self.x, self.y) for part in torch.split(thetas, self._rows())])

    def minibatch(self, thetas: Tensor, batch_size: int, generator: torch.Generator) -> Tensor:
        """The gradient of each replica over its own B examples, drawn with replacement, [W, P]."""
        chosen = torch.randint(self.examples, (len(thetas), batch_size), generator=generator)
        gradients: Tensor = self._batches(thetas, self.x[chosen], self.y[chosen])
        return gradients

    def hvp(self, vector: Tensor) -> Tensor:
        """The Hessian of the mean loss at the start times a vector [P]."""

        def slope(theta: Tensor) -> Tensor:
            return torch.dot(grad(self._loss)(theta, self.x, self.y), vector.to(F64))

        product: Tensor = grad(slope)(self._start)
        return product

    def sharpness(self) -> float:
        """The largest eigenvalue of the Hessian at the start, by Lanczos to 1e-3."""
        return float(eigenpairs(self.hvp, self.size, dtype=F64).values[0])

    def at(self, theta: Tensor) -> Network:
        """The same network with another start, [P]."""
        moved = copy.copy(self)
        moved._start = theta.detach().to(F64).clone()
        return moved

    def settle(self, updates: int, *, lr: float) -> Network:
        """Descend by full-batch heavy ball (momentum 0.9): walkers start in a minimum, or as near as that many updates come.

        Args:
            updates: how many, at least 1.
            lr: learning rate > 0.

        Returns:
            The network with its start where the descent ended.

        Raises:
            ArgumentError: an argument is out of range, or the descent diverges.

        Cost: a gradient over all examples an update.
        """
        theta, velocity = self.start()[None], torch.zeros(1, self.size, dtype=F64)
        above("lr", lr)
        for _ in range(count("updates", updates)):
            velocity = 0.9 * velocity + self.gradient(theta)
            theta = theta - lr * velocity
        if not torch.isfinite(theta).all():
            raise ArgumentError(f"lr: the descent to a minimum diverged at lr = {lr:g}; lower it")
        return self.at(theta[0])


def _examples(data: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    x, y = data
    if len(x) != len(y) or len(x) < 2:
        raise ArgumentError(f"data: expected inputs and labels of one length, at least 2, got {len(x)} and {len(y)}")
    x = x.detach().to(F64)
    if not torch.isfinite(x).all():
        raise DataError("data: inputs are NaN or infinite; drop or repair those examples")
    if not y.is_floating_point():
        if bool((y == y.reshape(-1)[0]).all()):
            only = int(y.reshape(-1)[0])
            raise DataError(_ONE_CLASS.format(len(y), only))
        return x, y.detach().clone()
    return x, y.detach().to(F64)


def largest_against_rest(y: Tensor) -> Tensor:
    """Group classes into two: the most frequent one (1) against all others (0).

    Args:
        y: labels, int64 [N].

    Returns:
        int64 [N]; two classes are returned as they are, but for their names.
    """
    largest = int(torch.mode(y).values)
    return (y == largest).long()
