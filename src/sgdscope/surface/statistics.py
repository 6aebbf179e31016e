"""The running statistics of normalisation layers, estimated anew at a point: what an average of iterates needs."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from sgdscope.surface.loss import LossSurface
from sgdscope.surface.private import undisturbed


def recalibrated(surface: LossSurface, theta: Tensor, buffers: Mapping[str, Tensor] | None = None) -> dict[str, Tensor]:
    """Estimate the running statistics of BatchNorm at a point, on the data of a surface.

    The weighted mean over the surface's batches of their means and unbiased variances; other buffers stay as given. The result
    is handed on to a surface on other data, so that held-out data do not take part in it.

    Args:
        surface: on the training data; in any BatchNorm mode.
        theta: [P].
        buffers: of the point; None for those of the model at construction.

    Returns:
        Name -> buffer, copies; as given if no layer has running statistics.

    Raises:
        ArgumentError: theta or the buffers have other shapes.

    Cost: one pass over the data without gradients; none if no layer has running statistics.
    """
    point, state, net = surface._vector(theta, "theta"), surface._state(buffers), surface._net
    if not net.normalised:
        return {name: buffer.detach().clone() for name, buffer in state.items()}
    with undisturbed(net.device, grad=False):
        net.write(point)
        net.write_buffers(state)
        net.recalibrate(surface._batches, surface._total, surface._group)
        found = net.read_buffers()
        net.set_mode(surface._mode)
    return found


def normalised(surface: object) -> bool:
    """Whether the loss in training mode is another one than with running statistics: a layer of BatchNorm takes part."""
    return isinstance(surface, LossSurface) and surface._net.normalised
