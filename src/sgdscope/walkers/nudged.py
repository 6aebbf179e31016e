"""Nudged-SGD: any optimizer, with the part of its step along the sharpest directions rescaled."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import torch
import xxhash
from torch import Tensor, nn
from torch.optim import Optimizer

from sgdscope.contracts import Source, walker
from sgdscope.errors import ArgumentError, Outcome
from sgdscope.ranges import choice, number, positive, whole
from sgdscope.records import Surface
from sgdscope.spectra import Eigenpairs, eigenpairs, overlap, track
from sgdscope.vector import select_buffers
from sgdscope.wrapping import Wrapper, finite

Where = Literal["update", "gradient", "both", "noise"]
Variant = Literal["nudge", "bulk", "dom", "random", "adaptive", "white"]

_RANGES = {
    "base": "name of a walker that wraps none, such as sgd, adam, adamw; its own options go along",
    "lr": "> 0, that of the base",
    "examples": ">= 2, of the training data that the surface holds, or all if fewer",
    "k": "1 <= k <= P",
    "gamma": ">= 0",
    "every": ">= 1, or 'epoch', or 'once'",
    "where": ", ".join(get_args(Where)),
    "variant": ", ".join(get_args(Variant)),
    "threshold": "> 0",
    "tolerance": "> 0",
    "budget": ">= k",
    "precondition": "true or false",
    "burn_in": ">= 0",
    "steps_per_epoch": ">= 1",
}
COLD = 10  # every so many refreshes start from a random vector: a warm one cannot see an outlier that came from elsewhere


def _period(every: Any, steps_per_epoch: Any) -> int | None:
    """The refresh period in updates; None for once."""
    if every is None or every == "once":
        return None
    if every != "epoch":
        if isinstance(every, str):
            raise ArgumentError(f"every: expected a whole number >= 1, 'epoch' or 'once', got {every!r}")
        whole("every", every, 1)
        return int(every)
    if steps_per_epoch is None:
        raise ArgumentError("steps_per_epoch: expected the number of updates an epoch, as every = 'epoch' asks; got None")
    whole("steps_per_epoch", steps_per_epoch, 1)
    return int(steps_per_epoch)


@walker(
    "nudged",
    source=Source("Jastrzebski et al. 2019 (1807.05031)", "Nudged-SGD; Gur-Ari et al. 2018; Song, Ahn & Yun 2025 (Dom, Bulk)"),
    ranges=_RANGES,
    limit=({"gamma": 1.0}, "sgd", {}),
    wraps="sgd",
)
class NudgedSGD(Wrapper):
    """Any optimizer, whose step is rescaled by gamma along the k sharpest directions of the loss; Nudged-SGD round plain SGD.

    With E [P, k] the eigenvectors of the k algebraically largest eigenvalues lambda_i of the Hessian of `surface`, measured
    at theta before the update every so often, and d the update of `base` (weight decay, momentum and all):

        where = "update":    theta <- theta + d - E diag(1 - gamma_i) E' d
        where = "gradient":  g <- g - E diag(1 - gamma_i) E' g before base sees it
        where = "both":      one after the other; with momentum 0 this is gamma^2 (as in the released code)
        where = "noise":     g <- g - E diag(1 - gamma_i) E' (g - grad L), grad L the full gradient of `surface`

    and by variant:

        "nudge":     gamma_i = gamma; 1 is base bit for bit, 0 stands still along E, > 1 overshoots
        "bulk":      gamma_i = 0
        "dom":       only the part along E is kept: E E' d
        "random":    E is a random orthonormal block (QR of Gaussians), redrawn at each refresh: the control of "nudge"
        "adaptive":  gamma_i = min(1, threshold / (lr lambda_i)), 1 where lambda_i <= 0; lr the largest of the groups
        "white":     only with where = "noise": g <- grad L + |g - grad L| z / |z|, z standard normal, fresh each update

    Before the first refresh the walk is that of base. The arms of the paper's ablation: removetop is "bulk", onlytop "dom",
    topscaled "nudge", each with k = 1, every = 1; constanttop is "dom" with every = "once". "noise" and "white" are causal
    controls: the mean step is untouched, and the noise loses its part along E, or its shape at equal norm. They are that
    only if `surface` holds all training data and base's gradient is that of the same loss without regularisation.

    Round Adam or AdamW (`precondition`) the directions are those of the preconditioned Hessian: D = diag(sqrt(v_hat) + eps)
    as base used it in the update of the refresh, w_i the eigenvectors of D^(-1/2) H D^(-1/2), d <- d - D^(-1/2) W
    diag(1 - gamma_i) W' D^(1/2) d; D is kept until the next refresh. `eigenvalues` are then those of the preconditioned Hessian.

    It is an Optimizer: `param_groups` and `state` are those of base, and it takes base's place in a loop, a learning-rate
    schedule or the recorder (which sees the raw gradient and the nudged step). Closures pass through. Gradients changed for
    base are put back after the step, unlike in the released code. The model, its buffers, modes and the global random states
    are left alone. Restarting: `state_dict` holds base's state and per parameter "basis" [k, *shape] (and "root", D^(1/2)).

    Args:
        base: the optimizer to wrap; its parameters must be exactly those of the surface.
        model: whose parameters are moved; its buffers go with theta to the surface.
        surface: the loss; works on its own copy of the model.
        k: number of directions, 1 <= k <= P.
        gamma: >= 0, of the variants "nudge" and "random".
        every: updates between two refreshes, >= 1; "epoch" for `steps_per_epoch`; "once" (or None) to keep the first.
        where: what is rescaled.
        variant: how.
        threshold: > 0, of "adaptive": lr lambda up to which a direction keeps its step; 1 is Newton's step, 2 the edge.
        tolerance: of the eigenpairs, relative residual, > 0.
        budget: most Hessian products a refresh, >= k, or None for the solver's own.
        precondition: None for True round Adam and AdamW with where = "update", else False.
        burn_in: updates before the first refresh, >= 0.
        steps_per_epoch: updates an epoch, for every = "epoch".
        generator: from which a seed for all draws is taken, once; None for seed 0.

    Attributes:
        base: the wrapped optimizer.
        eigenvalues: [k] float64, descending, of the directions in force; empty before the first refresh and of random ones.
        residuals: [k] float64, |A e - lambda e|, with them.
        refreshed_at: the update, counted from 0, before which the directions were last measured; None before the first refresh.
        staleness: 1 - |E_old' E_new|_F^2 / k at the last refresh, 0 if the span did not move; NaN before the second.
        refreshes: how many there were; the first and every tenth start cold, the others from the directions in force.
        products: Hessian products so far, all refreshes together.
        outcome: of the last refresh; directions that did not converge are used nonetheless.
        reason: what became of it, in words.

    Raises:
        ArgumentError: an argument is out of its range, or base, model and surface do not fit together.

    Cost: a refresh 20 to 100 Hessian products cold, a few warm; an update two passes over P k numbers; "noise" one full
    gradient an update. Memory: E and two vectors.
    """

    def __init__(
        self,
        base: Optimizer,
        model: nn.Module,
        surface: Surface,
        *,
        k: int = 5,
        gamma: float = 0.1,
        every: int | str | None = 100,
        where: Where = "update",
        variant: Variant = "nudge",
        threshold: float = 1.0,
        tolerance: float = 1e-2,
        budget: int | None = None,
        precondition: bool | None = None,
        burn_in: int = 0,
        steps_per_epoch: int | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__(base, model, surface, generator)
        choice("where", where, get_args(Where))
        choice("variant", variant, get_args(Variant))
        if variant == "white" and where != "noise":
            raise ArgumentError(f"where: expected 'noise' with variant 'white', got {where!r}")
        whole("k", k, 1)
        whole("burn_in", burn_in, 0)
        if budget is not None:
            whole("budget", budget, k)
        number("gamma", gamma, ">= 0", lambda x: x >= 0)
        positive("threshold", threshold)
        positive("tolerance", tolerance)
        if k > self._layout.size:
            raise ArgumentError(f"k: expected at most {self._layout.size}, the number of parameters, got {k}")
        self._preconditioned = _preconditioned(precondition, base, where)
        self._k, self._gamma, self._period, self._burn_in = k, float(gamma), _period(every, steps_per_epoch), burn_in
        self._where, self._variant, self._threshold = where, variant, float(threshold)
        self._solver: dict[str, Any] = {"tolerance": float(tolerance), "budget": budget}
        self._rows: Tensor | None = None  # E' [k, P], contiguous (its layout decides the last bits), in the dtype of the products
        self._root: Tensor | None = None  # [P], D^(1/2)
        self._take({"seed": self._seed})

    @property
    def basis(self) -> Tensor | None:
        """The directions in force, [P, k], a copy; None before the first refresh."""
        return None if self._rows is None else self._rows.T.clone()

    def _told(self) -> dict[str, Any]:
        """What the walk depends on, and what happened, beside base and the directions; JSON types."""
        told: dict[str, Any] = {key: getattr(self, key) for key in ("refreshed_at", "refreshes", "products", "reason")}
        told |= {"eigenvalues": self.eigenvalues.tolist(), "residuals": self.residuals.tolist(), "outcome": int(self.outcome)}
        told["staleness"] = None if math.isnan(self.staleness) else self.staleness
        return told | {"seed": self._seed, "step": self._step}

    def _take(self, told: Mapping[str, Any]) -> None:
        """Take what `_told` gave; what is missing is as before the first update."""
        self._seed, self._step = int(told["seed"]), int(told.get("step", 0))
        self.refreshed_at, self.refreshes = told.get("refreshed_at"), int(told.get("refreshes", 0))
        self.products = int(told.get("products", 0))
        self.eigenvalues = torch.tensor(told.get("eigenvalues", []), dtype=torch.float64)
        self.residuals = torch.tensor(told.get("residuals", []), dtype=torch.float64)
        self.staleness = math.nan if (staleness := told.get("staleness")) is None else float(staleness)
        self.outcome = Outcome(told.get("outcome", Outcome.not_applicable))
        self.reason = str(told.get("reason", "the directions were not measured yet"))

    # --- the step ---------------------------------------------------------------------------------------------------------

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update of base, nudged.

        Args:
            closure: re-evaluates the loss, for optimizers that ask for it.

        Returns:
            What base returned.
        """
        due, update = self._due(), self._where in ("update", "both")
        with torch.no_grad():
            if due and not self._preconditioned:
                self._refresh(self._theta())
            wanted = self._preconditioned and due
            before = self._theta() if wanted or (update and self._active()) else None
            value = self._base_step(closure)
            if wanted and before is not None:
                self._refresh(before)
            if before is not None and self._active():
                self._write(self._removed(self._theta() - before))
        self._step += 1
        return value

    def _write(self, removed: Tensor) -> None:
        """Take a vector off the parameters."""
        for name, part in self._layout.unpack(removed).items():
            self._params[name].sub_(part.to(self._params[name]))

    def _base_step(self, closure: Callable[[], Any] | None) -> Any:
        """Base's own step, on changed gradients where they are to be; its closure runs with gradients on."""
        plain = self._where == "update" or not self._active()
        return self._plain_step(closure) if plain else self._changed_step(closure)

    def _changed(self, gradient: Tensor) -> Tensor:
        noise = gradient
        if self._where == "noise":
            noise = gradient - self._surface.value_and_grad(self._theta(), select_buffers(self._model))[1].to(gradient)
        return gradient - (self._whitened(noise) if self._variant == "white" else self._removed(noise))

    # --- what is taken off ------------------------------------------------------------------------------------------------

    def _factors(self) -> Tensor:
        """gamma_i, [k] float64."""
        if self._variant == "adaptive":
            lr = max(float(group["lr"]) for group in self.param_groups)
            known = self.eigenvalues if len(self.eigenvalues) else torch.zeros(self._k, dtype=torch.float64)
            values = known.clamp(min=torch.finfo(torch.float64).tiny)
            return (self._threshold / (lr * values)).clamp(max=1.0)
        return torch.full((self._k,), 0.0 if self._variant == "bulk" else self._gamma, dtype=torch.float64)

    def _active(self) -> bool:
        """Whether anything is changed at all; where not, no arithmetic is done, so that base's bits stay."""
        if self._variant == "white":
            return True
        return self._rows is not None and (self._variant == "dom" or bool(self._factors().ne(1.0).any()))

    def _removed(self, vector: Tensor) -> Tensor:
        """What is taken off a vector [P] (an update, a gradient, its noise)."""
        rows, root = self._rows, self._root
        if rows is None:
            return torch.zeros_like(vector)
        along: Tensor = rows @ (vector.to(rows) if root is None else root * vector.to(rows))
        if self._variant != "dom":
            along = along * (1.0 - self._factors()).to(rows)
        part: Tensor = along @ rows
        removed: Tensor = (part if root is None else part / root).to(vector)
        return vector - removed if self._variant == "dom" else removed

    def _whitened(self, noise: Tensor) -> Tensor:
        """The noise less white noise of equal norm."""
        z = torch.randn(noise.numel(), generator=self._generator("white"), dtype=torch.float64).to(noise)
        less: Tensor = noise - z * (noise.norm() / z.norm())
        return less

    def _generator(self, purpose: str) -> torch.Generator:
        """A generator that depends on the seed, the purpose and the number of the update alone."""
        text = f"{self._seed} {purpose} {self._step}"
        return torch.Generator().manual_seed(xxhash.xxh3_64_intdigest(text.encode()) >> 1)

    # --- the directions ---------------------------------------------------------------------------------------------------

    def _due(self) -> bool:
        since = self._step - self._burn_in
        if self._variant == "white" or since < 0:
            return False
        return self.refreshed_at is None or (self._period is not None and since % self._period == 0)

    def _refresh(self, theta: Tensor) -> None:
        """Measure the directions at theta, warm from those in force; where the loss is not finite they are kept."""
        root = self._measured_root() if self._preconditioned else None
        pairs = self._drawn_pairs() if self._variant == "random" else self._measured_pairs(theta, root)
        if pairs is None:
            self.outcome = Outcome.not_applicable
            self.reason = f"theta, gradient or Hessian before update {self._step} are not finite; the directions were kept"
            return
        self.staleness = math.nan if self._rows is None else 1.0 - overlap(self._rows.T, pairs.vectors)
        self._rows, self._root, self.refreshed_at = pairs.vectors.T.contiguous(), root, self._step
        self.eigenvalues, self.residuals = pairs.values, pairs.residuals
        self.refreshes, self.products = self.refreshes + 1, self.products + pairs.products
        self.outcome, self.reason = pairs.outcome, pairs.reason

    def _measured_pairs(self, theta: Tensor, root: Tensor | None) -> Eigenpairs | None:
        """The top eigenpairs at theta; None where theta, gradient or products are not finite."""
        try:
            with self._surface.linearized(finite(theta), select_buffers(self._model)) as h:
                start, told = finite(h.gradient.to(theta)), self._solver | {"generator": self._generator("directions")}

                def matvec(v: Tensor) -> Tensor:
                    return finite(h.hvp(v) if root is None else h.hvp(v / root) / root)

                if self._rows is not None and len(self.eigenvalues) and self.refreshes % COLD:
                    return track(matvec, Eigenpairs(self.eigenvalues, self._rows.T, self.residuals, 0), **told)
                start = start if root is None else start / root
                told |= {"start": start if self._rows is None and bool(start.any()) else None}
                return eigenpairs(matvec, self._layout.size, self._k, dtype=theta.dtype, device=theta.device, **told)
        except FloatingPointError:
            return None

    def _drawn_pairs(self) -> Eigenpairs:
        """A random orthonormal block, without eigenvalues."""
        shape = (self._layout.size, self._k)
        block = torch.randn(shape, generator=self._generator("random"), dtype=torch.float64)
        vectors = torch.linalg.qr(block).Q.to(next(iter(self._params.values())).device, self._layout.storage_dtype)
        none = torch.empty(0, dtype=torch.float64)
        return Eigenpairs(none, vectors, none, 0, Outcome.ok, "")

    def _measured_root(self) -> Tensor:
        """D^(1/2) [P] with D = sqrt(v_hat) + eps of base's state; 1 for parameters that base never moved."""
        roots = {id(p): torch.ones_like(p) for p in self._params.values()}
        for group in self.param_groups:
            for p in group["params"]:
                if state := self.state.get(p):
                    second = state["max_exp_avg_sq"] if group["amsgrad"] else state["exp_avg_sq"]
                    corrected = second / (1.0 - group["betas"][1] ** float(state["step"]))
                    roots[id(p)] = (corrected.sqrt() + group["eps"]).sqrt()
        return self._layout.pack({name: roots[id(p)] for name, p in self._params.items()})

    # --- the state --------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The state dict of base; beside its entries the directions, and under parameter 0 "nudged", JSON types.

        Returns:
            References to base's state, copies of the directions.
        """
        vectors = {"basis": self._rows, "root": self._root}
        return self._held({name: value for name, value in vectors.items() if value is not None}, "nudged", self._told())

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`; that of a bare base is taken too, and then there are no directions yet.

        Args:
            state_dict: not changed.

        Raises:
            ArgumentError: the directions in it do not fit this walker.
        """
        vectors, told = self._freed(state_dict, {"basis": (self._k,), "root": ()}, "nudged")
        self._rows, self._root = vectors.get("basis"), vectors.get("root")
        self._take(told or {"seed": self._seed})


def _preconditioned(asked: bool | None, base: Optimizer, where: str) -> bool:
    """Whether the directions are those of the preconditioned Hessian."""
    able = isinstance(base, torch.optim.Adam | torch.optim.AdamW)
    if asked and not (able and where == "update"):
        raise ArgumentError(f"precondition: needs Adam or AdamW and where = 'update', got {type(base).__name__} and {where!r}")
    return able and where == "update" if asked is None else bool(asked)
