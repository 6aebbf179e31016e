"""Noise of a chosen shape on the gradient of any optimizer, and SGD's own noise in smaller steps."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sgdscope.contracts import Source, walker
from sgdscope.directions import private
from sgdscope.errors import ArgumentError, Outcome
from sgdscope.ranges import choice, number, positive, whole
from sgdscope.records import Surface
from sgdscope.spectra import eigenpairs
from sgdscope.vector import select_buffers
from sgdscope.wrapping import Wrapper, finite

Shape = Literal["isotropic", "diagonal", "covariance", "hessian"]
Trace = Literal["match", "own"]

_WRAPPED = {
    "base": "name of a walker that wraps none, such as sgd; its own options go along",
    "lr": "> 0, that of the base",
    "examples": ">= 2, of the training data that the surface holds, or all if fewer",
    "noise_batch_size": ">= 1",
}
_SHAPED = _WRAPPED | {
    "shape": ", ".join(get_args(Shape)),
    "scale": ">= 0",
    "every": ">= 1",
    "k": "1 <= k <= P, of the shape hessian",
    "trace": "match, or own with the shape hessian",
    "tolerance": "> 0",
}
_NOISE, _SOLVER = 0, 1  # purposes of draws


class _Disturbed(Wrapper):
    """An optimizer that is shown another gradient than the user's; what the walkers of this file share."""

    def __init__(self, base: Optimizer, model: nn.Module, surface: Surface, generator: torch.Generator | None) -> None:
        super().__init__(base, model, surface, generator)
        self._examples = int(surface.fingerprint()["examples"])
        if self._examples < 2:
            raise ArgumentError(f"surface: expected at least 2 examples, got {self._examples}; one example makes no noise")
        none = torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.int64)
        surface.weighted_grad(surface.theta(), *none, self._buffers)  # refused now where single examples have no gradients
        self._update = 0
        self._vectors: dict[str, Tensor] = {}  # name -> [..., P], of the noise, kept from refresh to refresh

    @property
    def _buffers(self) -> Mapping[str, Tensor]:
        return select_buffers(self._model)

    # --- the step ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def _disturbed(self, theta: Tensor, gradient: Tensor) -> Tensor:
        """The gradient [P] that base is to see."""

    @property
    @abstractmethod
    def _active(self) -> bool:
        """Whether the gradient is changed at all; where not, no arithmetic is done, so that base's bits stay."""

    def _changed(self, gradient: Tensor) -> Tensor:
        return self._disturbed(self._theta(), gradient)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of base on the changed gradient.

        Args:
            closure: re-evaluates the loss, for optimizers that ask for it; all its gradients get the same noise.

        Returns:
            What base returned.
        """
        value = self._changed_step(closure) if self._active else self._plain_step(closure)
        self._update += 1
        return value

    def _generator(self, purpose: int) -> torch.Generator:
        return private(self._seed, self._update, purpose)

    # --- the state --------------------------------------------------------------------------------------------------------

    def _told(self) -> dict[str, Any]:
        """What the walk depends on beside base and the vectors; JSON types."""
        return {"seed": self._seed, "update": self._update}

    def _take(self, told: Mapping[str, Any]) -> bool:
        """Take what `_told` gave; False where the vectors that came with it are those of another noise."""
        self._seed, self._update = int(told["seed"]), int(told["update"])
        return True

    def state_dict(self) -> dict[str, Any]:
        """The state dict of base; beside its entries copies of the vectors of the noise, and under parameter 0 JSON, "noise"."""
        return self._held(self._vectors, "noise", self._told())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; that of a bare base is taken too, and then the noise starts anew.

        Args:
            state_dict: not changed.

        Raises:
            ArgumentError: the vectors in it do not fit this walker.
        """
        vectors, told = self._freed(state_dict, {"variance": (), "basis": (None,)}, "noise")
        self._vectors = vectors if told is not None and self._take(told) else {}


@walker(
    "shaped",
    source=Source("Zhu et al. 2019 (1803.00195); Wu et al. 2020 (1906.07405)", "gradient descent with noise of a shape"),
    ranges=_SHAPED,
    limit=({"scale": 0.0}, "sgd", {}),
    wraps="sgd",
)
class ShapedNoise(_Disturbed):
    """Any optimizer with Gaussian noise of a chosen shape on its gradient: a stand-in for the noise of a mini-batch.

    base sees g + xi, g the gradient that the loop gave (the full one, where nothing but xi is to be random), xi fresh at each
    update with mean 0 and, with B = `noise_batch_size`, N examples of `surface`, their gradients g_j of mean m and
    C = sum_j (g_j - m)(g_j - m)' / N, all at theta before the update, the covariance

        "isotropic":   scale Tr C / (B P) I
        "diagonal":    scale diag(C) / B
        "covariance":  scale C / B: that of B examples drawn with replacement
        "hessian":     c sum_i |lambda_i| e_i e_i', over the k eigenpairs of the Hessian of largest |lambda|, nothing outside
                       their span; c = scale Tr C / (B sum_i |lambda_i|) by trace = "match", scale / B by "own"

    so that Tr Cov(xi) = scale Tr C / B, save for "own". Batches drawn without replacement have C (N - B) / (B (N - 1)): give
    scale = (N - B) / (N - 1) to match them. "covariance" is never formed: with independent standard normal zeta_j,

        xi = sqrt(scale / (N B)) sum_j (zeta_j - mean zeta) g_j = sqrt(scale / (N B)) sum_j zeta_j (g_j - m)

    is normal with exactly that covariance, and one backward pass of the loss weighted by zeta_j - mean zeta. It is made anew
    at each theta; what the other shapes need is measured every `every` updates and kept in between.

    It takes base's place: `param_groups` and `state` are those of base, the gradients are put back after the step, and model,
    buffers, modes and global random states are left alone. Where gradients, Hessian or noise are not finite the last measured
    shape is kept, or the noise left out, and `outcome` says so: a diverging run goes on as base would.

    Args:
        base: the optimizer to wrap; its parameters must be exactly those of the surface.
        model: whose parameters are moved; its buffers go with theta to the surface.
        surface: the loss, of at least two examples; works on its own copy of the model.
        shape: of the covariance.
        noise_batch_size: B >= 1, the batch whose noise is imitated.
        scale: >= 0, on the covariance; 0 is base bit for bit.
        every: updates between two measurements, >= 1.
        k: eigenpairs of "hessian", 1 <= k <= P.
        trace: strength of "hessian".
        tolerance: of the eigenpairs, relative residual, > 0.
        generator: from which a seed for all draws is taken, once; None for seed 0.

    Attributes:
        measured_trace: Tr C at the last measurement; NaN before it, with "covariance" and with trace = "own".
        measured_at: the update, counted from 0, before which the shape was last measured; None before.
        eigenvalues: of "hessian", float64, descending.
        outcome: of the last measurement or draw, in words `reason`; eigenpairs that did not converge are used nonetheless.

    Raises:
        ArgumentError: an argument is out of its range, or base, model and surface do not fit together.
        SurfaceError: the surface has no gradients of single examples.

    Cost: "covariance" one pass over the surface's examples an update; the others P normal numbers an update and, a
    measurement, the gradients of all examples, "hessian" 20 to 100 products besides. Memory: "diagonal" 1 vector, "hessian" k.
    """

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        surface: Surface,
        *,
        shape: Shape = "covariance",
        noise_batch_size: int = 64,
        scale: float = 1.0,
        every: int = 10,
        k: int = 10,
        trace: Trace = "match",
        tolerance: float = 1e-2,
        generator: torch.Generator | None = None,
    ) -> None:
        choice("shape", shape, get_args(Shape))
        choice("trace", trace, get_args(Trace))
        if trace == "own" and shape != "hessian":
            raise ArgumentError(f"trace: expected 'match' with the shape '{shape}', got 'own', which is for 'hessian'")
        whole("noise_batch_size", noise_batch_size, 1)
        whole("every", every, 1)
        whole("k", k, 1)
        number("scale", scale, ">= 0", lambda x: x >= 0)
        positive("tolerance", tolerance)
        super().__init__(base, model, surface, generator)
        if k > self._layout.size and shape == "hessian":
            raise ArgumentError(f"k: expected at most {self._layout.size}, the number of parameters, got {k}")
        self._shape, self._scale, self._batch, self._every = shape, float(scale), noise_batch_size, every
        self._k, self._trace, self._tolerance = k, trace, float(tolerance)
        self._forget()

    def _forget(self) -> None:
        self.measured_trace = math.nan
        self.measured_at: int | None = None
        self.eigenvalues = torch.empty(0, dtype=torch.float64)
        self.outcome, self.reason = Outcome.not_applicable, "the noise was not measured yet"

    @property
    def _active(self) -> bool:
        return self._scale > 0

    def _disturbed(self, theta: Tensor, gradient: Tensor) -> Tensor:
        if self._shape == "covariance":
            self.outcome, self.reason = Outcome.ok, ""
        elif self.measured_at is None or self._update % self._every == 0:
            self._measure(theta)
        noise = self._noise(theta)
        if noise is not None and not bool(noise.isfinite().all()):
            self._say("the noise")
            noise = None
        return gradient if noise is None else gradient + noise.to(gradient)

    def _say(self, what: str) -> None:
        self.outcome, self.reason = Outcome.not_applicable, f"{what} of update {self._update} was not finite, and left out"

    def _noise(self, theta: Tensor) -> Tensor | None:
        """The noise xi [P]; None while nothing could be measured."""
        generator = self._generator(_NOISE)
        if self._shape == "covariance":
            zeta = torch.randn(self._examples, generator=generator, dtype=torch.float64)
            weights = (zeta - zeta.mean()) * math.sqrt(self._scale / (self._examples * self._batch))
            return self._surface.weighted_grad(theta, weights, None, self._buffers)
        if self.measured_at is None:
            return None
        strength = self._scale / self._batch
        if self._shape == "hessian":
            sizes = self.eigenvalues.abs()
            factor = strength * (self.measured_trace / float(sizes.sum()) if self._trace == "match" else 1.0)
            z = torch.randn(len(sizes), generator=generator, dtype=torch.float64)
            rows = self._vectors["basis"]
            return ((factor * sizes).sqrt() * z).to(rows) @ rows
        z = torch.randn(self._layout.size, generator=generator, dtype=torch.float64)
        if self._shape == "isotropic":
            return z * math.sqrt(strength * self.measured_trace / self._layout.size)
        variance = self._vectors["variance"]
        return (strength * variance).sqrt() * z.to(variance)

    def _measure(self, theta: Tensor) -> None:
        """Measure what the shape needs at theta; where it is not finite the last stays."""
        variance = self._variance(theta) if self._trace == "match" else None
        finite = variance is None or bool(variance.isfinite().all())
        if not finite or (self._shape == "hessian" and not self._measure_pairs(theta)):
            self._say("the measurement")
            return
        if variance is not None:
            self.measured_trace = float(variance.sum())
        if self._shape == "diagonal" and variance is not None:
            self._vectors = {"variance": variance}
        if self._shape != "hessian":
            self.outcome, self.reason = Outcome.ok, ""
        self.measured_at = self._update

    def _variance(self, theta: Tensor) -> Tensor:
        """diag(C) [P] float64 from deviations from the mean (Chan, Golub & LeVeque 1983); within a chunk in its own dtype."""
        mean, squares = (torch.zeros(theta.numel(), dtype=torch.float64, device=theta.device) for _ in range(2))
        seen = 0
        for chunk in self._surface.gradient_chunks(theta, None, self._buffers):
            own, n = chunk.mean(0), len(chunk)
            within, own = (chunk - own).square_().sum(0).double(), own.double()
            squares += within + (own - mean).square() * (seen * n / (seen + n))
            mean += (own - mean) * (n / (seen + n))
            seen += n
        return squares / seen

    def _measure_pairs(self, theta: Tensor) -> bool:
        """The eigenpairs of largest |lambda| at theta; False where the Hessian is not finite."""
        told: dict[str, Any] = {"which": "magnitude", "tolerance": self._tolerance, "generator": self._generator(_SOLVER)}
        try:
            with self._surface.linearized(finite(theta), self._buffers) as h:
                told |= {"dtype": theta.dtype, "device": theta.device}
                found = eigenpairs(lambda v: finite(h.hvp(v)), theta.numel(), self._k, **told)
        except FloatingPointError:
            return False
        self.eigenvalues, self.outcome, self.reason = found.values, found.outcome, found.reason
        self._vectors = {"basis": found.vectors.T.contiguous()}
        return True

    # --- the state --------------------------------------------------------------------------------------------------------

    def _told(self) -> dict[str, Any]:
        trace = None if math.isnan(self.measured_trace) else self.measured_trace
        told = {"shape": self._shape, "measured_at": self.measured_at, "measured_trace": trace, "reason": self.reason}
        return super()._told() | told | {"eigenvalues": self.eigenvalues.tolist(), "outcome": int(self.outcome)}

    def _take(self, told: Mapping[str, Any]) -> bool:
        super()._take(told)
        self._forget()
        if told.get("shape") != self._shape:
            return False
        self.measured_at = told["measured_at"]
        self.measured_trace = math.nan if told["measured_trace"] is None else float(told["measured_trace"])
        self.eigenvalues = torch.tensor(told["eigenvalues"], dtype=torch.float64)
        self.outcome, self.reason = Outcome(told["outcome"]), str(told["reason"])
        return True


@walker(
    "svag",
    source=Source("Li, Malladi & Arora 2021 (2102.12470)", "stochastic variance amplified gradient"),
    ranges=_WRAPPED | {"substeps": ">= 1, the paper's l"},
    limit=({"substeps": 1}, "sgd", {}),
    wraps="sgd",
)
class SVAG(_Disturbed):
    """Stochastic variance amplified gradient: SGD in smaller steps of larger noise, which tends to its SDE.

    With l = `substeps` and g_1, g_2 the gradients of two independent batches of B examples, base sees, at lr / l,

        g = (1 + r) / 2 g_1 + (1 - r) / 2 g_2,  r = sqrt(2 l - 1)

    of mean grad L and covariance ((1 + r)^2 + (1 - r)^2) / 4 C / B = l C / B.

    So l updates have the drift lr grad L and the noise lr^2 C / B of one update of SGD, and l -> infinity is the SDE of which
    SGD is said to be the Euler scheme: what changes with l at equal lr x updates / l is no limit of continuous time.
    g_1 is the gradient that the loop gave, on B examples; g_2 is drawn here, with replacement, from the examples of `surface`, at
    theta before the update. The covariance is exact where the loop draws with replacement from the same examples; without,
    g_1 has C (N - B) / (B (N - 1)). The learning rate is divided here: give that of SGD, and l times its updates. It stands
    undivided in `param_groups` and so in the scalars of a recorder. A momentum of base is not rescaled. It takes base's place as
    `ShapedNoise` does. Where g_2 is not finite, neither is the next theta.

    Args:
        base: the optimizer to wrap; its parameters must be exactly those of the surface.
        model: whose parameters are moved; its buffers go with theta to the surface.
        surface: the loss, of at least two examples; works on its own copy of the model.
        substeps: l, a whole number >= 1; 1 is base bit for bit.
        noise_batch_size: B >= 1; must be the batch size of the loop.
        generator: from which a seed for all draws is taken, once; None for seed 0.

    Attributes:
        weights: of g_1 and g_2; their sum is 1, that of their squares l.

    Raises:
        ArgumentError: an argument is out of its range, or base, model and surface do not fit together.
        SurfaceError: the surface has no gradients of single examples.

    Cost: one more backward pass over B examples an update.
    """

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        surface: Surface,
        *,
        substeps: int = 2,
        noise_batch_size: int = 64,
        generator: torch.Generator | None = None,
    ) -> None:
        whole("substeps", substeps, 1)
        whole("noise_batch_size", noise_batch_size, 1)
        super().__init__(base, model, surface, generator)
        self._substeps, self._batch = substeps, noise_batch_size
        root = math.sqrt(2.0 * substeps - 1.0)
        self.weights = (1.0 + root) / 2.0, (1.0 - root) / 2.0

    @property
    def _active(self) -> bool:
        return self._substeps > 1

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of base, at a learning rate divided by l and on the amplified gradient."""
        if not self._active:
            return super().step(closure)
        rates = [group["lr"] for group in self.param_groups]
        try:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate / self._substeps
            return super().step(closure)
        finally:
            for group, rate in zip(self.param_groups, rates, strict=True):
                group["lr"] = rate

    def _indices(self) -> Tensor:
        return torch.randint(self._examples, (self._batch,), generator=self._generator(_NOISE))

    def _disturbed(self, theta: Tensor, gradient: Tensor) -> Tensor:
        mean = torch.full((self._batch,), 1.0 / self._batch, dtype=torch.float64)
        second = self._surface.weighted_grad(theta, mean, self._indices(), self._buffers)
        return self.weights[0] * gradient + self.weights[1] * second.to(gradient)
