"""The front against every plan of few tasks, lengths mixed."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from uara.control.plan.front import batch_totals, front_cuts, lower_bound_s
from uara.control.plan.model_cost import ServingCost

RandomCost = Callable[[np.random.Generator], ServingCost]


def least_by_trying(
    cost: ServingCost, prompts: list[float], lengths: list[int], room: float
) -> float:
    """Try all cuts and all lengths of all batches."""
    best = np.inf
    tasks = len(prompts)
    for marks in itertools.product((False, True), repeat=tasks - 1):
        cuts = np.diff([0, *np.flatnonzero(marks) + 1, tasks])
        tops = [prompts[end - 1] for end in np.cumsum(cuts)]
        if (cost.batch_bytes(cuts, np.array(tops)) > room).any():
            continue
        for mixed in itertools.product(lengths, repeat=len(cuts)):
            rounds = cost.rounds(np.array(mixed))
            draft = cost.draft_stage(cuts, np.array(tops), np.array(mixed)).total(rounds)
            verify = cost.verify_stage(cuts, np.array(tops), np.array(mixed)).total(rounds)
            best = min(best, max(draft.sum(), verify.sum(), (draft + verify).max()))
    return float(best)


@pytest.mark.parametrize("lengths", [[3], [1, 4]], ids=["one length", "mixed"])
def test_the_front_holds_the_best_plan(random_cost: RandomCost, lengths: list[int]) -> None:
    rng = np.random.default_rng(0)
    for _ in range(8):
        cost = random_cost(rng)
        prompts = np.sort(rng.integers(1, 513, 6)).astype(float)
        room = float(cost.batch_bytes(4, 512))
        totals = batch_totals(cost, prompts, np.array(lengths), room)
        found = front_cuts(totals, np.inf)
        expected = least_by_trying(cost, prompts.tolist(), lengths, room)
        assert found[0].objective_s == pytest.approx(expected, rel=1e-12)
        assert lower_bound_s(totals) <= expected * (1 + 1e-12)
        assert sum(found[0].tasks) == len(prompts)
        # A bound that the best plan just meets does not lose it.
        again = front_cuts(totals, found[0].objective_s)
        assert again[0].objective_s == pytest.approx(expected, rel=1e-12)
        assert not front_cuts(totals, 0.99 * lower_bound_s(totals))
