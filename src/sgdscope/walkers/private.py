"""Differentially private SGD, record by record: clipped gradients, noise by each record's budget, a ledger that refuses."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from sgdscope.contracts import Source, walker
from sgdscope.directions import private
from sgdscope.errors import ArgumentError
from sgdscope.privacy import PrivacyLedger, clipped, noise, sensitivity
from sgdscope.privacy.mechanisms import order

_RANGES = {
    "lr": "> 0",
    "eps": "> 0, the privacy budget of a record; infinity for none",
    "uses": "a whole number >= 1",
    "spending": "fixed or halving",
    "norm": "l2 or l1",
    "clip": "> 0; infinity only with eps = infinity",
    "bounded": "true or false",
    "spent": "refuse or skip",
    "weight_decay": ">= 0",
}


def _check(name: str, value: Any, expected: str, inside: Callable[[float], bool], *, finite: bool = True) -> None:
    number = isinstance(value, int | float) and not isinstance(value, bool) and not math.isnan(value)
    if not (number and inside(value) and (math.isfinite(value) or not finite)):
        raise ArgumentError(f"{name}: expected a {'finite ' if finite else ''}number {expected}, got {value!r}")


@walker(
    "private",
    source=Source("Hegedus & Jelasity 2016 (PDP, JoWUA 7(2)); Song, Chaudhuri & Sarwate 2013", "record-level budgets"),
    ranges=_RANGES,
    limit=({"eps": math.inf, "clip": math.inf}, "sgd", {}),
)
class PrivateSGD(torch.optim.Optimizer):
    """SGD under which each record keeps a privacy budget: what it tells the walk is eps-differentially private.

    One update with the gradient g of the records named by `use`, B of them:

        theta <- theta - lr (clip(g) + z + weight_decay theta),  z ~ exp(-|z| / scale),  scale = 2 clip / (B eps_i)

    clip(g) = g min(1, clip / |g|); eps_i is what the ledger charges this use (the least of a batch). With norm "l2" |z| is
    Gamma(P, scale) and its direction uniform; with "l1" each coordinate is a Laplace number. The learning rate multiplies the
    noise once. Weight decay is public and stands outside of clipping. Replacing a record by any other changes the density of
    the whole walk by at most e^eps, whatever is done with theta afterwards: pure differential privacy, delta = 0.

    Of a batch of several records only the mean gradient is at hand, and clipping that would bound nobody's share: such
    batches are refused unless `bounded` says that each record's own gradient is at most `clip` by construction (a
    logistic loss on |x| <= 1 has 1). What the recorder keeps of such a walk (gradients, losses) is the experimenter's, not
    private: publish theta only. Optimizer hooks see the gradient as it came.

    Args:
        params: parameters or parameter groups, each with its own lr and weight_decay.
        lr: learning rate, > 0.
        eps: budget of a record over all its uses, > 0; infinity for no noise.
        uses: T >= 1 of the spending "fixed".
        spending: "fixed": T uses of eps / T each; "halving": eps 2^-i for the i-th use, without end.
        norm: "l2" or "l1", of clipping and noise.
        clip: largest norm of a record's gradient, > 0; infinity only with eps = infinity, and then SGD bit for bit.
        bounded: the caller answers for the bound, so that the mean over several records is taken.
        spent: what a record that has spent its budget brings about: "refuse" raises `BudgetError` in `use`; "skip" leaves
            theta where it is for this update.
        weight_decay: >= 0.
        generator: from which a seed for all draws is taken, once; None for seed 0. A draw depends on it and on the number of
            the update alone.

    Raises:
        ArgumentError: an argument is out of its range.

    Cost: 2 P draws in float64 on the CPU an update, and a number a record.
    Source: the released code (specification, section 4) is not followed in its scalar Laplace length for L2, the second
    factor lr on the noise, its data-dependent sensitivity and its Linf noise: those are not eps-differentially private.
    """

    def __init__(
        self,
        params: Any,
        lr: float,
        *,
        eps: float = 1.0,
        uses: int = 10,
        spending: Literal["fixed", "halving"] = "fixed",
        norm: str = "l2",
        clip: float = 1.0,
        bounded: bool = False,
        spent: str = "refuse",
        weight_decay: float = 0.0,
        generator: torch.Generator | None = None,
    ) -> None:
        _check("lr", lr, "> 0", lambda x: x > 0)
        _check("weight_decay", weight_decay, ">= 0", lambda x: x >= 0)
        told = {"eps": eps, "uses": uses, "spending": spending, "norm": norm, "clip": clip, "bounded": bounded, "spent": spent}
        self.ledger = PrivacyLedger(eps, spending=spending, uses=uses)
        _check_bound(told)
        seed = 0 if generator is None else int(torch.randint(2**62, (1,), generator=generator, device=generator.device))
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay} | told)
        self._named: list[int] | None = None
        self._first.update(seed=seed, update=0)

    @property
    def _first(self) -> dict[str, Any]:
        """The state of the first parameter, where the seed and the number of the update are kept."""
        state: dict[str, Any] = self.state[self.param_groups[0]["params"][0]]
        return state

    @property
    def _told(self) -> dict[str, Any]:
        """The options as they stand in the first group; those of the budget stay what they were at construction."""
        told, own = self.param_groups[0], self.ledger
        if (told["eps"], told["spending"], told["uses"]) != (own.eps, own.spending, own.uses):
            raise ArgumentError(
                f"eps, spending, uses: expected {own.eps:g}, {own.spending}, {own.uses} for the whole walk, got {told['eps']:g}, "
                f"{told['spending']}, {told['uses']}; a budget that is changed on the way is none"
            )
        _check_bound(told)
        return told

    def use(self, records: Iterable[int]) -> None:
        """Name the records of which the next gradient is; they are charged when it is used.

        Args:
            records: their numbers, each >= 0 and once.

        Raises:
            ArgumentError: several records without `bounded`, or numbers that name none.
            BudgetError: a record has spent its budget, and `spent` is "refuse".
        """
        ids, told = [int(r) for r in records], self._told
        if len(ids) > 1 and not told["bounded"] and math.isfinite(told["clip"]):
            raise ArgumentError(
                f"records: expected one, got {len(ids)}: the mean of their gradients cannot be clipped record by record; "
                "take batches of one, or say bounded=True where each gradient is at most clip by construction"
            )
        if told["spent"] == "refuse":
            self.ledger.admit(ids)
        self._named = ids

    def state_dict(self) -> dict[str, Any]:
        """The state of the walk, with how often each record was used.

        Returns:
            As of any optimizer.
        """
        self._first["used"] = self.ledger.state_dict()["used"]
        return super().state_dict()

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from `state_dict`, with what was spent there.

        Args:
            state_dict: not changed; that of plain SGD is taken too, and then nothing is spent yet.
        """
        own = {key: self._first[key] for key in ("seed", "update")} | {"used": []}
        super().load_state_dict({**state_dict, "param_groups": [self.defaults | g for g in state_dict["param_groups"]]})
        for key, value in own.items():
            self._first.setdefault(key, value)
        self._told  # ruff: ignore[useless-expression] - refuses the state of another budget
        self.ledger.load_state_dict(self.ledger.state_dict() | {"used": self._first["used"]})
        self._named = None

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One update.

        Args:
            closure: re-evaluates the loss; may be None.

        Returns:
            What the closure returned.

        Raises:
            ArgumentError: no record was named by `use` since the last update, or the gradient is not finite.
        """
        value = None
        if closure is not None:
            with torch.enable_grad():
                value = closure()
        if self._named is None and math.isfinite(self.ledger.eps):
            raise ArgumentError("records: expected use([number of the record]) before each update, so that its budget is charged")
        with torch.no_grad():
            if self._named is None or self.ledger.left(self._named):
                self._update(self._named)
        self._named = None
        self._first["update"] += 1
        return value

    def _update(self, records: list[int] | None) -> None:
        """Charge the records and move."""
        told = self._told
        moved = [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]
        gradients: list[Tensor] = [p.grad for _, p in moved]
        eps = math.inf if records is None else float(self.ledger.charge(records).min())
        if moved and math.isfinite(told["clip"]):
            gradients = self._mechanism(gradients, eps, len(records or [0]))
        for (group, p), g in zip(moved, gradients, strict=True):
            decayed = g if group["weight_decay"] == 0 else g.add(p, alpha=group["weight_decay"])
            p.add_(decayed, alpha=-float(group["lr"]))

    def _mechanism(self, gradients: list[Tensor], eps: float, batch: int) -> list[Tensor]:
        """Clip the gradient of one record, or hold that of several against its bound, and add the noise."""
        clip, norm = float(self._told["clip"]), self._told["norm"]
        flat = torch.cat([g.reshape(-1).to("cpu", torch.float64) for g in gradients])
        short = clipped(flat, clip, norm)
        if batch > 1 and not torch.allclose(short, flat, rtol=1e-6, atol=0.0):
            raise ArgumentError(f"bounded: the mean gradient is longer than clip = {clip:g}, so that a record's was; raise clip")
        if math.isfinite(eps):
            generator = private(self._first["seed"], self._first["update"])
            short = short + noise(len(flat), sensitivity(clip, batch) / eps, generator, norm)
        parts = torch.split(short, [g.numel() for g in gradients])
        return [part.reshape(g.shape).to(g) for part, g in zip(parts, gradients, strict=True)]


def _check_bound(told: Mapping[str, Any]) -> None:
    """Hold the options that say what is clipped against their ranges."""
    order(told["norm"])
    clip, eps = told["clip"], told["eps"]
    _check("clip", clip, "> 0", lambda x: x > 0, finite=False)
    if math.isinf(clip) and not math.isinf(eps):
        raise ArgumentError(f"clip: expected a finite number with eps = {eps:g}, got infinity: nothing bounds a record's share")
    if told["spent"] not in {"refuse", "skip"}:
        raise ArgumentError(f"spent: expected 'refuse' or 'skip', got {told['spent']!r}")
    if not isinstance(told["bounded"], bool):
        raise ArgumentError(f"bounded: expected true or false, got {told['bounded']!r}")
