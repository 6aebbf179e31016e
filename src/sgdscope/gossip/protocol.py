"""The rules of the single random walk service: what a node knows of the walk, and when it restarts or ends one.

Nothing here knows of a clock, a network or a model; the simulation and the real processes both go by these rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from sgdscope.errors import ArgumentError

LIMIT = 11.0  # cycles without news after which a walk counts as lost; configuration of the released code


class Summary(NamedTuple):
    """What is known of the walk.

    Attributes:
        step: updates that it had made.
        seen: when it was seen at that step.
        walk: which of the walks it was, a number for each start and restart.
        hops: over how many nodes the news has come.
    """

    step: int
    seen: float
    walk: int
    hops: int


def newer(mine: Summary, theirs: Summary, now: float, limit: float) -> Summary:
    """Merge two summaries: the one with the higher step, unless its age has reached the limit and the other's has not.

    Equal steps of equal freshness: the one seen later. So a walk that was restarted from an older model takes the place of
    a lost one that had come further.

    Args:
        mine: what this node knows.
        theirs: what it is told.
        now: the time.
        limit: age from which a walk counts as lost.

    Returns:
        Mine, or theirs with one more hop.
    """
    my_fresh, their_fresh = now - mine.seen < limit, now - theirs.seen < limit
    if their_fresh == my_fresh:
        better = theirs.step > mine.step or (theirs.step == mine.step and theirs.seen > mine.seen)
    else:
        better = their_fresh
    return Summary(theirs.step, theirs.seen, theirs.walk, theirs.hops + 1) if better else mine


def goes_on(step: int, known: Summary, now: float, limit: float, *, restarted: bool = False) -> bool:
    """Whether a walk that has arrived and made its update goes on; otherwise it is a duplicate, and ends.

    Args:
        step: that it has reached with the update at this node.
        known: what the node knows.
        now: the time.
        limit: age from which a walk counts as lost.
        restarted: it comes straight from the node that restarted it.

    Returns:
        True if it is further than what is known, or what is known is too old, or it was just restarted.
    """
    return restarted or step > known.step or now - known.seen >= limit


@dataclass
class Patience:
    """When a node stops waiting for news, and how far behind it may be to restart the walk itself.

    Each trigger lets it wait `limit` longer for the next one and lets models restart that are one step further behind;
    fresh news put both back.

    Attributes:
        limit: age of the news at the first trigger, > 0, in the unit of the time.
        wait: age at the next trigger.
        depth: a node restarts if its stored model is fewer than so many steps behind the best known one.
    """

    limit: float
    wait: float
    depth: int = 1

    @classmethod
    def of(cls, limit: float) -> Patience:
        """Start waiting.

        Args:
            limit: > 0.

        Returns:
            As after fresh news.

        Raises:
            ArgumentError: out of range.
        """
        if not limit > 0:
            raise ArgumentError(f"limit: expected a number of cycles > 0, got {limit!r}")
        return cls(limit, limit)

    def restarts(self, known: Summary, stored: int | None, now: float) -> bool:
        """Look at the clock once a cycle.

        Args:
            known: what the node knows.
            stored: step of the model that the walk left here; None if it never came.
            now: the time.

        Returns:
            Whether the node restarts the walk from its stored model.
        """
        age = now - known.seen
        if age < self.limit:
            self.wait, self.depth = self.limit, 1
            return False
        if age < self.wait:
            return False
        close = stored is not None and known.step - stored < self.depth
        self.wait += self.limit
        self.depth += 1
        return close
