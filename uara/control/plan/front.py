"""Cuts tasks into batches by the exact front of the periodic objective, also with mixed lengths.

Shape legend: K tasks in order of service, C draft lengths to choose from, P partial plans.

In the long run a round of all batches takes max(sum T_draft, sum T_verify, max(T_draft +
T_verify)). Summed over the rounds these are three numbers per plan, and a partial plan that is
worse in all three than another one of the same tasks can be forgotten. What is left is kept small
by bounds: for any weight a, a sum T_draft + (1 - a) sum T_verify of the remaining tasks has a least
value, found by a backward programme, and the maximum of both sums is never below it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uara.control.plan.model_cost import ServingCost

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Flags = NDArray[np.bool_]

WEIGHTS = np.linspace(0.0, 1.0, 17)
FRONT_LIMIT = 512  # partial plans kept per prefix; of more, those with the least bounds
_TIE = 1e-9  # relative, by which a plan may miss the bound


@dataclass(frozen=True)
class BatchTotals:
    """Work of the batch of tasks i .. j, summed over its rounds."""

    draft_s: Array  # (K, K, C), infinite where j < i or memory does not suffice
    verify_s: Array  # (K, K, C)


@dataclass(frozen=True)
class Cut:
    """One plan of the front."""

    tasks: list[int]  # in each batch
    choice: list[int]  # index of each batch's draft length
    objective_s: float  # periodic, summed over rounds


def batch_totals(
    cost: ServingCost, input_tokens: Array, draft_length: Integers, cache_bytes: float
) -> BatchTotals:
    """Sum the stages of all batches of consecutive tasks.

    Args:
        cost: models and machines.
        input_tokens: (K,), ascending.
        draft_length: (C,).
        cache_bytes: memory for a batch's cache.
    """
    number = np.arange(len(input_tokens))
    count = number - number[:, None] + 1  # (K, K) of i .. j
    held = np.maximum(count, 1)
    fits = (count >= 1) & (cost.batch_bytes(held, input_tokens) <= cache_bytes)
    rounds = cost.rounds(draft_length)
    at = (held[..., None], input_tokens[:, None], draft_length)
    draft_s = cost.draft_stage(*at).total(rounds)
    verify_s = cost.verify_stage(*at).total(rounds)
    blocked = ~fits[..., None]
    return BatchTotals(np.where(blocked, np.inf, draft_s), np.where(blocked, np.inf, verify_s))


def lower_bound_s(totals: BatchTotals) -> float:
    """Bound the periodic objective of all plans from below."""
    return float(_remaining(totals)[:, 0].max())


def front_cuts(totals: BatchTotals, upper_s: float, most: int = 8) -> list[Cut]:
    """Find the plans of least periodic objective that is not above `upper_s`.

    Exact for that objective as long as no prefix has more than `FRONT_LIMIT` plans on its front.

    Args:
        totals: work of all batches.
        upper_s: objective of a plan at hand; what cannot be below it is forgotten at once.
        most: plans to return.

    Returns:
        Best first; none if all are above.
    """
    upper_s *= 1 + _TIE
    tasks = len(totals.draft_s)
    remaining = _remaining(totals)
    pool = _Pool.at_start()
    for last in range(tasks):
        pool.extend(totals, remaining[:, last + 1], last, upper_s)
    finals = np.flatnonzero(pool.served == tasks)
    objective = np.maximum(np.maximum(pool.draft_s, pool.verify_s), pool.alone_s)[finals]
    order = np.argsort(objective, kind="stable")[:most]
    return [pool.trace(int(finals[o]), float(objective[o])) for o in order]


def _remaining(totals: BatchTotals) -> Array:
    """Bound the weighted work of tasks i .. K - 1 from below, (weights, K + 1)."""
    tasks = len(totals.draft_s)
    weight = WEIGHTS[:, None, None]
    bound = np.zeros((len(WEIGHTS), tasks + 1))
    for i in range(tasks - 1, -1, -1):
        fits = np.isfinite(totals.draft_s[i, :, 0])
        draft_s, verify_s = totals.draft_s[i, fits], totals.verify_s[i, fits]
        work = (weight * draft_s + (1 - weight) * verify_s).min(-1)
        bound[:, i] = (work + bound[:, 1:][:, fits]).min(-1)
    return bound


@dataclass
class _Pool:
    """Partial plans, in the order in which they were found."""

    served: Integers  # (P,) tasks
    draft_s: Array  # (P,)
    verify_s: Array  # (P,)
    alone_s: Array  # (P,) the longest batch
    before: Integers  # (P,) plan that it extends
    choice: Integers  # (P,) of its last batch

    @classmethod
    def at_start(cls) -> _Pool:
        none, zero = np.zeros(1, np.int64), np.zeros(1)
        return cls(none, zero, zero, zero, none, none)

    def extend(self, totals: BatchTotals, rest_s: Array, last: int, upper_s: float) -> None:
        """Add all plans whose last batch ends with task `last`, as far as they are on the front."""
        own_draft = totals.draft_s[self.served, last]  # (P, C)
        own_verify = totals.verify_s[self.served, last]
        draft_s = self.draft_s[:, None] + own_draft
        verify_s = self.verify_s[:, None] + own_verify
        alone_s = np.maximum(self.alone_s[:, None], own_draft + own_verify)
        largest = np.maximum(np.maximum(draft_s, verify_s), alone_s)
        kept = np.flatnonzero((np.isfinite(largest) & (largest <= upper_s)).ravel())
        before, choice = np.divmod(kept, own_draft.shape[1])
        three = np.stack([column.ravel()[kept] for column in (draft_s, verify_s, alone_s)])
        bound = (WEIGHTS[:, None] * three[0] + (1 - WEIGHTS[:, None]) * three[1]) + rest_s[:, None]
        least = np.maximum(bound.max(0), three[2]) if len(kept) else np.zeros(0)
        order = np.flatnonzero(least <= upper_s)
        order = order[np.argsort(least[order], kind="stable")][:FRONT_LIMIT]
        order = order[_undominated(three[:, order])]
        self.served = np.append(self.served, np.full(len(order), last + 1))
        self.draft_s = np.append(self.draft_s, three[0, order])
        self.verify_s = np.append(self.verify_s, three[1, order])
        self.alone_s = np.append(self.alone_s, three[2, order])
        self.before = np.append(self.before, before[order])
        self.choice = np.append(self.choice, choice[order])

    def trace(self, plan: int, objective_s: float) -> Cut:
        """Walk back from a plan to its batches."""
        tasks, choice = [], []
        while self.served[plan] > 0:
            before = int(self.before[plan])
            tasks.append(int(self.served[plan] - self.served[before]))
            choice.append(int(self.choice[plan]))
            plan = before
        return Cut(tasks[::-1], choice[::-1], objective_s)


def _undominated(three: Array) -> Flags:
    """Tell which columns of (3, P) no other one matches in all rows; of equals, the first."""
    no_worse = (three[:, :, None] <= three[:, None, :]).all(0)  # i against j
    better = (three[:, :, None] < three[:, None, :]).any(0)
    number = np.arange(three.shape[1])
    earlier = number[:, None] < number
    dominates = no_worse & (better | earlier)
    return np.asarray(~dominates.any(0))
