"""Weighted parallel SGD: several walkers of different speed, and the weighted average of where they are.

Cheng, Li & Zhang (arXiv 1708.04801; JPDC 145, 2020). Only the abstract could be read; the geometric weights are as recalled
from the body, and held against the exact mean squared error on a quadratic in the tests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from sgdscope.contracts import Source, ensemble
from sgdscope.errors import ArgumentError, unknown
from sgdscope.replicas import SCHEMES, Combination, Scheme, average, check_positive, check_rate, combined, weights

Mode = Literal["simuparallel", "local", "asynchronous"]
MODES: tuple[Mode, ...] = get_args(Mode)


@ensemble(
    "weighted_parallel",
    source=Source("Cheng, Li & Zhang 2020 (arXiv 1708.04801)", "abstract; section 3 as recalled"),
    ranges={
        "scheme": "geometric, proportional, equal, fastest or optimal",
        "mode": "simuparallel, local or asynchronous",
        "rate": "0 <= rate <= 1; left out: fitted to the losses (simuparallel)",
        "period": ">= 1, updates of the fastest member between two averagings; with mode local",
        "distance": "> 0; with scheme optimal",
        "variance": "> 0; with scheme optimal",
    },
    limit=({"scheme": "geometric", "rate": 0.3}, "sgd", {}),
)
class WeightedParallelSGD:
    """Parallel SGD on replicas of different speed, combined with weights that know how far each one came.

    simuparallel: members walk apart from one start; `combine` averages them once, theta = sum_i omega_i theta_i with `weights` of
    the updates T_i. local: as soon as a member has made `period` updates, all are averaged with the weights of the updates
    since the last averaging, and go on from there. asynchronous: a member that has made an update from the centre as it was s
    updates of others ago adds it to the centre, theta <- theta + omega(s) (replica - what it had fetched), and fetches;
    omega(s) = (1 - rate)^s (geometric), 1 / (1 + s) (proportional), 1 (equal), 1 if s = 0 else 0 (fastest). The state of the
    walkers (momentum) stays with each member; buffers of a network are not touched.

    Args:
        members: one walker a replica, of the same shapes and at the same point.
        scheme: of the weights, see `weights`.
        mode: when replicas meet.
        rate: contraction of an update; None to fit it to the losses that `step` is given, in simuparallel.
        period: updates of the fastest member between two averagings, in local.
        distance: see `weights`; for optimal.
        variance: see `weights`; for optimal.
        generator: accepted so that all ensembles are built alike; this one draws nothing.

    Attributes:
        members: as given.
        workloads: updates of each member so far.
        lost: numbers of the members that were lost.

    Raises:
        ArgumentError: an option is out of range or missing, members do not fit each other or share a parameter.

    Cost: nothing an update in simuparallel; one read of all replicas an averaging; asynchronous 3 P an update and memory for
    one more vector a member.

    Source: simuparallel the paper; local and asynchronous are the two combinations that its abstract names, built here with the
    same weights (1 / (1 + s): Zhang et al. 2016, 1511.05950).

    Example:
        >>> points = [torch.tensor([4.0], requires_grad=True) for _ in range(2)]
        >>> both = WeightedParallelSGD([torch.optim.SGD([p], lr=0.5) for p in points], rate=0.5)
        >>> for active in ([0, 1], [0], [0]):
        ...     for p in points:
        ...         p.grad = p.detach().clone()
        ...     both.step(active)
        >>> both.workloads, both.combine().theta  # (4/5) 0.5 + (1/5) 2
        ([3, 1], tensor([0.8000]))
    """

    def __init__(
        self,
        members: Sequence[torch.optim.Optimizer],
        *,
        scheme: Scheme = "geometric",
        mode: Mode = "simuparallel",
        rate: float | None = None,
        period: int | None = None,
        distance: float | None = None,
        variance: float | None = None,
        generator: torch.Generator | None = None,  # ruff: ignore[unused-method-argument] - the same for every ensemble
    ) -> None:
        self.members, self.scheme, self.mode, self.rate, self.period = list(members), scheme, mode, rate, period
        self._noise = {"distance": distance, "variance": variance}
        self._check_options()
        self.replicas = [[p for group in m.param_groups for p in group["params"]] for m in self.members]
        self._check_members()
        self.workloads = [0] * len(self.members)
        self.lost: set[int] = set()
        self._begun = [0] * len(self.members)  # workloads at the last averaging
        self._losses: list[list[float]] = [[] for _ in self.members]
        self._version = 0
        self._fetched = [0] * len(self.members)
        self._centre: list[Tensor] = []
        self._bases: list[list[Tensor]] = []
        if mode == "asynchronous":
            self._centre = [p.detach().clone() for p in self.replicas[0]]
            self._bases = [[p.detach().clone() for p in replica] for replica in self.replicas]

    def _check_options(self) -> None:
        for name, value, known in (("scheme", self.scheme, SCHEMES), ("mode", self.mode, MODES)):
            if value not in known:
                error = unknown(name, str(value), known)
                raise error
        if self.rate is not None:
            check_rate(self.rate, self.scheme)
        elif self.scheme in {"geometric", "optimal"} and self.mode != "simuparallel":
            raise ArgumentError(f"rate: the mode '{self.mode}' needs it, 0 <= rate <= 1; it is fitted in 'simuparallel' only")
        if self.scheme == "optimal":
            if self.mode == "asynchronous":
                raise ArgumentError("scheme: there are no optimal weights of stale updates; use 'geometric' or 'proportional'")
            for option, number in self._noise.items():
                check_positive(option, number)
        whole = isinstance(self.period, int) and not isinstance(self.period, bool) and self.period >= 1
        if (self.mode == "local") != whole:
            wanted = "a whole number >= 1 in mode 'local'" if self.mode == "local" else f"none in mode '{self.mode}'"
            raise ArgumentError(f"period: expected {wanted}, got {self.period!r}")

    def _check_members(self) -> None:
        if not self.members:
            raise ArgumentError("members: expected at least one walker, got none")
        seen: set[int] = set()
        for i, replica in enumerate(self.replicas):
            own = {id(p) for p in replica}
            if seen & own:
                raise ArgumentError(f"members: member {i} moves a parameter of another one; give each a replica of its own")
            seen |= own
            if [p.shape for p in replica] != [p.shape for p in self.replicas[0]]:
                raise ArgumentError(f"members: the parameters of member {i} have other shapes than those of member 0")

    def _check_start(self) -> None:
        for i, replica in enumerate(self.replicas):
            if not all(torch.equal(p, q) for p, q in zip(replica, self.replicas[0], strict=True)):
                raise ArgumentError(f"members: member {i} does not start where member 0 does; the weights are those of one start")

    def step(self, active: Sequence[int] | None = None, *, losses: Sequence[float] | None = None) -> None:
        """One update of some members, from the gradients that lie in their parameters.

        Args:
            active: numbers of the members that have finished an update; all that are left if None.
            losses: loss before the update of each of them, from which the rate can be fitted.

        Raises:
            ArgumentError: a member is not there, lost or named twice, all are lost, the losses do not fit, or the members do not
                start at one point.
        """
        chosen = [i for i in range(len(self.members)) if i not in self.lost] if active is None else list(active)
        if odd := [i for i in chosen if not 0 <= i < len(self.members) or i in self.lost]:
            raise ArgumentError(f"active: member {odd[0]} is lost or not one of 0..{len(self.members) - 1}")
        if len(self.lost) == len(self.members):
            raise ArgumentError(f"active: all {len(self.members)} members are lost, none is left that could step")
        if len({*chosen}) != len(chosen):
            raise ArgumentError(f"active: expected each member once, as its gradient is that of one update, got {chosen}")
        if losses is not None and len(losses) != len(chosen):
            raise ArgumentError(f"losses: expected one a member that steps, got {len(losses)} for {len(chosen)}")
        if not any(self.workloads):
            self._check_start()
        for n, i in enumerate(chosen):
            if losses is not None:
                self._losses[i].append(float(losses[n]))
            self.members[i].step()
            self.workloads[i] += 1
            if self.mode == "asynchronous":
                self._deliver(i)
        if self.mode == "local" and self.period is not None and max(self._since()) >= self.period:
            self.synchronise()

    def lose(self, member: int) -> None:
        """Lose a member: it steps no more and has no weight; what it added to an asynchronous centre stays.

        Args:
            member: its number.

        Raises:
            ArgumentError: there is no such member.
        """
        if not 0 <= member < len(self.members):
            raise ArgumentError(f"member: expected 0..{len(self.members) - 1}, got {member}")
        self.lost.add(member)

    def combine(self) -> Combination:
        """The weighted average of the members that are left; asynchronous: the centre, weights are shares of the updates.

        Returns:
            The combination; members stay where they are.

        Raises:
            ArgumentError: none has made an update, or, but for the asynchronous centre, all are lost.
            NotAvailableError: the rate is to be fitted and the losses show none.
        """
        if self.mode == "asynchronous":
            shares = weights(self.workloads, "proportional").tolist()
            theta = torch.cat([p.reshape(-1) for p in self._centre])
            lost = tuple(sorted(self.lost))
            return Combination(theta, tuple(shares), tuple(self.workloads), lost, self.scheme, self.rate)
        since = self._since() if self.mode == "local" else self.workloads
        met = self.mode == "local" and not any(n for i, n in enumerate(since) if i not in self.lost)
        since = [1] * len(self.members) if met else since  # just averaged: all are at one point
        left = [None if i in self.lost else replica for i, replica in enumerate(self.replicas)]
        losses = self._losses if any(self._losses) else None
        found = combined(left, since, scheme=self.scheme, rate=self.rate, losses=losses, **self._noise)
        point = next((r for r in left if r is not None), []) if met else []
        theta = average([point], torch.ones(1)) if point else found.theta  # their average would round
        return replace(found, theta=theta, workloads=tuple(self.workloads))

    def synchronise(self) -> Combination:
        """Average, and put every member that is left at the average, from where they go on.

        Returns:
            The combination.
        """
        found = self.combine()
        for i, replica in enumerate(self.replicas):
            if i not in self.lost:
                _write(replica, found.theta)
        self._begun = list(self.workloads)
        return found

    def _since(self) -> list[int]:
        return [now - then for now, then in zip(self.workloads, self._begun, strict=True)]

    def _deliver(self, i: int) -> None:
        """Add the update of a member to the centre, and let it fetch."""
        stale = self._version - self._fetched[i]
        weight = self._stale_weight(stale)
        with torch.no_grad():
            for centre, base, p in zip(self._centre, self._bases[i], self.replicas[i], strict=True):
                if stale == 0 and weight == 1:
                    centre.copy_(p)
                elif weight:
                    centre.add_(p - base, alpha=weight)
                p.copy_(centre)
                base.copy_(centre)
        self._version += 1
        self._fetched[i] = self._version

    def _stale_weight(self, stale: int) -> float:
        if self.scheme == "proportional":
            return 1 / (1 + stale)
        if self.scheme == "geometric" and self.rate is not None:
            return float((1 - self.rate) ** stale)
        return 1.0 if self.scheme == "equal" or stale == 0 else 0.0

    def state_dict(self) -> dict[str, Any]:
        """Everything the walk from here depends on, but for the parameters, which are the user's.

        Returns:
            The walkers' states, workloads, who is lost, losses, and the centre with what each member fetched.
        """
        return {
            "members": [member.state_dict() for member in self.members],
            "workloads": list(self.workloads),
            "begun": list(self._begun),
            "lost": sorted(self.lost),
            "losses": [list(own) for own in self._losses],
            "version": self._version,
            "fetched": list(self._fetched),
            "centre": [p.clone() for p in self._centre],
            "bases": [[p.clone() for p in base] for base in self._bases],
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where a state was taken; the parameters must be those of that moment.

        Args:
            state: of `state_dict`.

        Raises:
            ArgumentError: it is not the state of such an ensemble, or that of another number of members.
        """
        if missing := {"members", "workloads", "begun", "lost", "losses", "version", "fetched", "centre", "bases"} - {*state}:
            raise ArgumentError(f"state: expected what state_dict gives, {', '.join(sorted(missing))} is missing")
        if len(state["members"]) != len(self.members):
            raise ArgumentError(f"state: expected {len(self.members)} members, got {len(state['members'])}")
        for member, own in zip(self.members, state["members"], strict=True):
            member.load_state_dict(own)
        self.workloads, self._begun = list(state["workloads"]), list(state["begun"])
        self.lost, self._losses = set(state["lost"]), [list(own) for own in state["losses"]]
        self._version, self._fetched = int(state["version"]), list(state["fetched"])
        self._centre = [p.clone() for p in state["centre"]]
        self._bases = [[p.clone() for p in base] for base in state["bases"]]


def _write(replica: Sequence[Tensor], theta: Tensor) -> None:
    place = 0
    with torch.no_grad():
        for p in replica:
            p.copy_(theta[place : place + p.numel()].view_as(p))
            place += p.numel()
