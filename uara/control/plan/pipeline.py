"""The pipeline of two stages: one node drafts a batch while the other verifies another batch.

Shape legend: ... any leading axes (drops, draft lengths), M batches in the order of service.

Batches take turns. With C the ends of stages, round n of batch m follows

    C_draft(n, m) = max(C_draft(before), C_verify(n - 1, m)) + T_draft(n, m)
    C_verify(n, m) = max(C_verify(before), C_draft(n, m)) + T_verify(n, m)

where `before` is the last one served: a draft needs a free node and its own last verdict.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uara.control.plan.model_cost import StageTimes

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Schedule:
    """What is to be served, in what order."""

    draft: StageTimes  # (..., M) each
    verify: StageTimes
    rounds: Array  # (..., M); 0 marks a place without a batch
    release_s: Array  # (..., M) before which a batch cannot be drafted
    first_round: Array  # (..., M) 0, or the rounds of the waves before its own


def run_pipeline(schedule: Schedule) -> Array:
    """Compute when the last verdict on each batch is there, (..., M); NaN where there is none."""
    clock = _Clock.at_start(schedule)
    for number in range(1, _last_round(schedule) + 1):
        clock.play(schedule, number)
    return np.where(schedule.rounds > 0, clock.verdict_s, np.nan)


def run_in_series(schedule: Schedule) -> Array:
    """Compute the same without a pipeline: one batch after the other, its stages in turn, (..., M).

    A batch is served to its end before the next one begins; where nothing overlaps, any other order
    of the same stages ends at the same time.
    """
    work_s = schedule.draft.total(schedule.rounds) + schedule.verify.total(schedule.rounds)
    work_s = np.where(schedule.rounds > 0, work_s, 0.0)
    done_s = np.cumsum(work_s, -1)
    waited_s = np.maximum.accumulate(schedule.release_s - (done_s - work_s), -1)
    return np.where(schedule.rounds > 0, done_s + waited_s, np.nan)


def steady_period_s(draft_s: Array, verify_s: Array) -> Array:
    """Compute how long a round of all batches takes in the long run, for constant stages, (...,).

    Either node's work, or one batch's way through both: max(sum T_d, sum T_v, max(T_d + T_v)).

    Args:
        draft_s: (..., M).
        verify_s: (..., M).
    """
    alone = (draft_s + verify_s).max(-1)
    return np.asarray(np.maximum(np.maximum(draft_s.sum(-1), verify_s.sum(-1)), alone))


def _last_round(schedule: Schedule) -> int:
    return int((schedule.first_round + schedule.rounds).max())


@dataclass
class _Clock:
    """When nodes are free and verdicts there."""

    drafter_free_s: Array  # (...,)
    verifier_free_s: Array  # (...,)
    verdict_s: Array  # (..., M) of the last round served

    @classmethod
    def at_start(cls, schedule: Schedule) -> _Clock:
        shape = np.broadcast_shapes(schedule.rounds.shape, schedule.draft.first_s.shape)
        return cls(np.zeros(shape[:-1]), np.zeros(shape[:-1]), np.zeros(shape))

    def play(self, schedule: Schedule, number: int) -> None:
        """Serve one round of all batches that take part in it.

        Turns in a row are a sum with a running maximum: with P the sum of times so far,
        C(m) = P(m) + max(C(0), max over k <= m of ready(k) - P(k - 1)).
        """
        own = number - schedule.first_round
        takes_part = (own >= 1) & (own <= schedule.rounds)
        # A wave starts when the one before has left the memory: at the last verdict so far.
        gate_s = np.where(schedule.first_round > 0, self.verifier_free_s[..., None], 0.0)
        release_s = np.maximum(schedule.release_s, gate_s)
        ready_s = np.where(own == 1, release_s, self.verdict_s)
        drafted_s = _in_turn(self.drafter_free_s, ready_s, schedule.draft.at(own), takes_part)
        verified_s = _in_turn(self.verifier_free_s, drafted_s, schedule.verify.at(own), takes_part)
        self.drafter_free_s, self.verifier_free_s = drafted_s[..., -1], verified_s[..., -1]
        self.verdict_s = np.where(takes_part, verified_s, self.verdict_s)


def _in_turn(free_s: Array, ready_s: Array, work_s: Array, takes_part: NDArray[np.bool_]) -> Array:
    """Serve batches one after the other from the time the node is free: ends, (..., M)."""
    work_s = np.where(takes_part, work_s, 0.0)
    done_s = np.cumsum(work_s, -1)
    slack_s = np.where(takes_part, ready_s - (done_s - work_s), -np.inf)
    begun_s = np.maximum(np.maximum.accumulate(slack_s, -1), free_s[..., None])
    return np.asarray(done_s + begun_s)
