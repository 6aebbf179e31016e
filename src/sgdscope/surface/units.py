"""How far the units of a network are saturated: its activations are watched in one pass on the private copy."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from sgdscope.errors import ArgumentError
from sgdscope.surface.data import Batches
from sgdscope.surface.private import PrivateModel

Array = NDArray[np.float64]

THRESHOLDS = (1e-5, 1e-4, 1e-3)  # of dead units, Jastrzebski et al. 2018, released code
PIECEWISE = {"relu", "relu6", "hardtanh", "hardsigmoid", "threshold", "hardshrink", "softshrink"}  # flat somewhere, exactly
SOFTMAX = {"cross_entropy", "nll_loss", "log_softmax", "softmax"}
_ONE = ("relu", "relu6", "hardtanh", "threshold", "hardshrink", "softshrink", "tanh", "tanhshrink", "softplus", "softsign")
STEEPEST: dict[str, float] = dict.fromkeys((*_ONE, "log_sigmoid", "logsigmoid", "celu"), 1.0) | {
    "sigmoid": 1 / 4,
    "expit": 1 / 4,
    "hardsigmoid": 1 / 6,
    "hardswish": 3 / 2,
    "gelu": 1.1289041451825208,  # at z = sqrt(2)
    "gelu_tanh": 1.128993068655481,  # of the approximation; the last three were maximised on a grid of 1e-5
    "silu": 1.0998393201285284,
    "mish": 1.0884981612515674,
    "selu": 1.7580993408473766,  # scale x alpha, left of 0
}


def _elu(_: Tensor, alpha: float = 1.0, **__: Any) -> float:
    return max(1.0, float(alpha))


def _leaky(_: Tensor, negative_slope: float = 0.01, **__: Any) -> float:
    return max(1.0, abs(float(negative_slope)))


def _prelu(_: Tensor, weight: Tensor) -> float:
    return max(1.0, float(weight.detach().abs().max()))


def _rrelu(_: Tensor, lower: float = 1 / 8, upper: float = 1 / 3, *__: Any, **___: Any) -> float:
    return max(1.0, abs(lower + upper) / 2)


_BY_ARGUMENTS: dict[str, Callable[..., float]] = {"elu": _elu, "leaky_relu": _leaky, "prelu": _prelu, "rrelu": _rrelu}


@dataclass(frozen=True)
class Saturation:
    """How far the units are saturated at one point; see `LossSurface.saturation`.

    A unit is one number of an activation's output of one example (a channel at one place); a layer is one call of an activation.

    Attributes:
        value: L(theta), the weight decay included.
        layers: names of the layers: that of the module that calls the function, with the function where it is no module of its
            own (``"block.relu()"``), and a number from the second call on (``"block.relu()#2"``).
        pairs: [L] (unit, example) pairs of each layer.
        saturation_layer: [L] mean of 1 - |phi'(z)| / max |phi'|.
        slope_square_layer: [L] mean of phi'(z)^2.
        inactive_layer: [L] share of pairs with phi'(z) = 0 exactly (z <= 0 of a ReLU); NaN where phi is not piecewise linear with
            a flat piece.
        units: [L] units of each layer; 0 where the first dimension of its output is not that of the batch.
        dead_layer: [L, thresholds] share of units with mean over the examples of |phi(z)| <= threshold; NaN where `units` is 0.
        thresholds: [D].
        softmax: 1 - E[sum_k p_k (1 - p_k)] / (1 - 1/classes): 0 where all classes are alike, 1 where each output is certain. It
            grows with -E[p (1 - p)] along a straight line. NaN where there is no softmax.
        softmax_curvature: E[sum_k p_k (1 - p_k)], the mean trace of diag(p) - pp', the Hessian of cross-entropy in the logits.
        reason: why there are no units; empty if there are.
        softmax_reason: why there is no softmax; empty if there is.
    """

    value: float
    layers: tuple[str, ...]
    pairs: Array
    saturation_layer: Array
    slope_square_layer: Array
    inactive_layer: Array
    units: Array
    dead_layer: Array
    thresholds: tuple[float, ...]
    softmax: float
    softmax_curvature: float
    reason: str
    softmax_reason: str

    @property
    def saturation(self) -> float:
        """Mean of 1 - |phi'| / max |phi'| over all units and examples; NaN without units."""
        return _mean(self.saturation_layer, self.pairs)

    @property
    def slope_square(self) -> float:
        """Mean of phi'^2 over all units and examples."""
        return _mean(self.slope_square_layer, self.pairs)

    @property
    def inactive(self) -> float:
        """Share of pairs with phi' = 0 over the piecewise linear layers; NaN where there are none."""
        known = np.isfinite(self.inactive_layer)
        return _mean(self.inactive_layer[known], self.pairs[known])

    @property
    def smooth(self) -> float:
        """Mean of 1 - |phi'| / max |phi'| over the layers that have no exactly flat piece; NaN where there are none."""
        smooth = np.isnan(self.inactive_layer)
        return _mean(self.saturation_layer[smooth], self.pairs[smooth])

    @property
    def dead(self) -> Array:
        """[D] share of dead units over the layers whose units are known."""
        known = self.units > 0
        return np.array([_mean(column[known], self.units[known]) for column in self.dead_layer.T])


def _mean(values: Array, weights: Array) -> float:
    return float(values @ weights / weights.sum()) if len(values) else float("nan")


def _outputs_and_slopes(func: Any, z: Tensor, rest: tuple[Any, ...], kwargs: Any) -> tuple[Tensor, Tensor]:
    """phi(z) and phi'(z) of a function that works number by number."""
    with torch.enable_grad():
        leaf = z.detach().clone().requires_grad_()
        outputs = func(leaf.clone(), *rest, **kwargs)  # it may work in place
        return outputs.detach(), torch.autograd.grad(outputs.sum(), leaf)[0]


@dataclass
class _Layer:
    """Sums over the examples so far, of one call of an activation; `heights` is None where units cannot be told apart."""

    piecewise: bool
    pairs: float = 0.0
    sums: Array = field(default_factory=lambda: np.zeros(3))
    examples: float = 0.0
    heights: Tensor | None = None

    def add(self, slopes: Tensor, outputs: Tensor, steepest: float, size: int | None) -> None:
        """Add one batch."""
        steep = slopes.abs().sum(dtype=torch.float64) / steepest
        flat = slopes.numel() - steep, slopes.square().sum(dtype=torch.float64), slopes.numel() - slopes.count_nonzero()
        self.sums += np.array([float(total) for total in flat])
        known = size is not None and outputs.ndim > 1 and len(outputs) == size and (self.heights is not None or self.pairs == 0)
        heights = outputs.abs().sum(0, dtype=torch.float64).reshape(-1) if known else None
        if heights is None or (self.heights is not None and len(self.heights) != len(heights)):
            self.heights = None
        else:
            self.heights = heights if self.heights is None else self.heights + heights
        self.pairs += slopes.numel()
        self.examples += len(slopes)


class Watch(TorchFunctionMode):
    """While it is entered, each call of an activation inside a module is noted, and the softmax of the loss; nothing is changed.

    Modules and functions called in ``forward`` are both seen, each call once.

    Args:
        module: the root; its submodules carry hooks that name where a call comes from, see `named`.
        heights: whether the mean |phi(z)| of each unit is wanted.
    """

    def __init__(self, module: nn.Module, *, heights: bool) -> None:
        super().__init__()
        self.layers: dict[str, _Layer] = {}
        self.softmax = np.zeros(3)  # rows, sum of traces, sum of normalised ones
        self._module, self._heights = module, heights
        self._stack: list[str] = []

    def begin(self, size: int | None) -> None:
        """Begin a batch.

        Args:
            size: its number of examples.
        """
        self._size, self._calls = size, dict[str, int]()
        self._stack.clear()
        self.sought = True

    @contextmanager
    def named(self) -> Generator[None, None, None]:
        """Let the modules say when they run.

        Yields:
            Nothing.
        """
        with ExitStack() as stack:
            for name, module in self._module.named_modules():
                enter = module.register_forward_pre_hook(lambda _m, _a, name=name: self._stack.append(name))
                stack.callback(enter.remove)
                stack.callback(module.register_forward_hook(self._leave).remove)
            yield

    def _leave(self, *_: Any) -> None:
        self._stack.pop()

    def __torch_function__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        """Look at the arguments, then do what was asked for; what torch calls within is not looked at again."""
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        z = args[0] if args else kwargs.get("input")
        if isinstance(z, Tensor) and z.is_floating_point() and z.numel():
            if self._stack and (name in STEEPEST or name in _BY_ARGUMENTS):
                self._note(name, func, z, (*args[1:],), kwargs)
            elif name in SOFTMAX and self.sought and (not self._stack or name in {"cross_entropy", "nll_loss"}):
                self._certainty(z)
        return func(*args, **kwargs)

    def _note(self, name: str, func: Any, z: Tensor, rest: tuple[Any, ...], kwargs: Any) -> None:
        """Add the slopes and outputs of one call to its layer."""
        place = self._place(name)
        own = {key: value for key, value in kwargs.items() if key != "input"}
        if name in _BY_ARGUMENTS:
            steepest = _BY_ARGUMENTS[name](z, *rest, **own)
        else:
            steepest = STEEPEST["gelu_tanh" if own.get("approximate") == "tanh" else name]
        outputs, slopes = (z.clamp(min=0), (z > 0).to(z.dtype)) if name == "relu" else _outputs_and_slopes(func, z, rest, own)
        layer = self.layers.setdefault(place, _Layer(name in PIECEWISE))
        layer.add(slopes, outputs, steepest, self._size if self._heights else None)

    def _place(self, name: str) -> str:
        """Where a call comes from; the second one from the same place within a pass gets a number."""
        module = self._module.get_submodule(self._stack[-1])
        own = type(module).__module__.startswith("torch.nn.modules.activation")
        place = self._stack[-1] if own and self._stack[-1] else f"{self._stack[-1]}.{name}()".lstrip(".")
        self._calls[place] = self._calls.get(place, 0) + 1
        return place if self._calls[place] == 1 else f"{place}#{self._calls[place]}"

    def _certainty(self, logits: Tensor) -> None:
        """Add p (1 - p) of a batch of logits [rows, classes] (or of log-probabilities, which have the same softmax)."""
        if logits.ndim == 2 and logits.shape[1] > 1:
            self.sought = False
            p = torch.softmax(logits.detach().double(), 1)
            trace = (p * (1 - p)).sum(1)
            limit = 1 - 1 / logits.shape[1]
            self.softmax += np.array([len(p), float(trace.sum()), float(trace.sum()) / limit])


def saturation_of(
    net: PrivateModel, batches: Batches, thresholds: Sequence[float], add: Callable[[Array], Array], total: float
) -> Saturation:
    """Watch one pass over the data.

    Args:
        net: the private model, placed and in its mode.
        batches: the data.
        thresholds: of dead units, each >= 0; none spares the pass the means of each unit.
        add: sums an array over the process group.
        total: sum of all weights, over all processes.

    Returns:
        What was seen; the value is without weight decay.

    Raises:
        ArgumentError: a threshold is negative or not finite.
    """
    if any(isinstance(t, bool) or not 0 <= t < float("inf") for t in thresholds):
        raise ArgumentError(f"thresholds: expected finite numbers >= 0, got {thresholds!r}")
    watch, value, missed = Watch(net.module, heights=bool(thresholds)), 0.0, 0.0
    with watch.named(), watch:
        for item, size, weight in zip(batches.items, batches.sizes, batches.weights, strict=True):
            watch.begin(size)
            value += weight * float(net.call(item, size).double().mean())
            missed += float(watch.sought)
    sums = add(np.array([value / total, missed, *watch.softmax]))
    return _gathered(watch, sums, tuple(map(float, thresholds)), add)


def _gathered(watch: Watch, sums: Array, thresholds: tuple[float, ...], add: Callable[[Array], Array]) -> Saturation:
    """Means of the sums over all processes."""
    layers = list(watch.layers.values())
    pairs = add(np.array([layer.pairs for layer in layers]))
    means = add(np.array([layer.sums for layer in layers]).reshape(-1, 3)) / pairs[:, None]
    dead, units = np.full((len(layers), len(thresholds)), np.nan), np.zeros(len(layers))
    for row, layer in enumerate(layers):
        known = add(np.array([float(layer.heights is not None), 1.0]))
        if layer.heights is not None and known[0] == known[1]:
            heights = add(layer.heights.cpu().numpy()) / float(add(np.array([layer.examples]))[0])
            dead[row], units[row] = [(heights <= t).mean() for t in thresholds], len(heights)
    found = sums[1] == 0 and sums[2] > 0
    return Saturation(
        value=float(sums[0]),
        layers=tuple(watch.layers),
        pairs=pairs,
        saturation_layer=means[:, 0],
        slope_square_layer=means[:, 1],
        inactive_layer=np.where([layer.piecewise for layer in layers], means[:, 2], np.nan),
        units=units,
        dead_layer=dead,
        thresholds=thresholds,
        softmax=float(1 - sums[4] / sums[2]) if found else float("nan"),
        softmax_curvature=float(sums[3] / sums[2]) if found else float("nan"),
        reason="" if layers else "the model calls no activation that is known (those of recurrent layers are not seen)",
        softmax_reason="" if found else "the loss takes no softmax of outputs [rows, classes]",
    )
