"""Running estimates of one request: acceptance with a lower bound, round trip, draft step."""

from __future__ import annotations

import math
from dataclasses import dataclass

NO_PRIOR_VARIANCE = 0.25  # of one test, at most
NEWEST = 1 / 8  # weight of the newest time in a running mean, as TCP weighs round trips (RFC 6298)


@dataclass
class RunningAcceptance:
    """How likely drafts are to pass, from what has been seen of one answer.

    Attributes:
        memory_tokens: a token counts less by this factor of e after so many more; inf: all alike.
        count: tokens seen.
    """

    memory_tokens: float = math.inf
    count: int = 0
    _total: float = 0.0  # counters as they stood
    _squares: float = 0.0
    _weight: float = 0.0
    _weight_squares: float = 0.0
    _sum: float = 0.0
    _square_sum: float = 0.0

    def update(self, count: int, total: float, squares: float) -> None:
        """Take in counters that have grown since the last time.

        Args:
            count: tokens whose acceptance was seen.
            total: sum of their acceptance, each in [0, 1].
            squares: sum of its squares.
        """
        fresh = count - self.count
        keep = math.exp(-fresh / self.memory_tokens)
        self._weight = self._weight * keep + fresh
        self._weight_squares = self._weight_squares * keep**2 + fresh
        self._sum = self._sum * keep + total - self._total
        self._square_sum = self._square_sum * keep + squares - self._squares
        self.count, self._total, self._squares = count, total, squares

    def lower(self, confidence: float) -> float:
        """Bound the mean from below by so many standard errors; within [0, 1], 0 without a token.

        Forgetting leaves as many tokens as equal weights of the same spread would have.
        """
        if not self._weight:
            return 0.0
        mean = self._sum / self._weight
        spread = max(0.0, self._square_sum / self._weight - mean * mean)
        number = self._weight**2 / self._weight_squares
        # Few alike samples say little about their spread: as if one more of the widest was seen.
        variance = (number * spread + NO_PRIOR_VARIANCE) / (number + 1)
        return min(1.0, max(0.0, mean - confidence * math.sqrt(variance / number)))


@dataclass
class RunningTimes:
    """Times that a device sees, seconds; None before the first."""

    rtt_s: float | None = None
    draft_s: float | None = None

    def travel(self, one_way_s: float) -> float:
        """Take in one way of a frame, which the transport times by its acknowledgement."""
        self.rtt_s = _mean(self.rtt_s, 2 * one_way_s)
        return one_way_s

    def draft(self, step_s: float) -> None:
        """Take in a draft step."""
        self.draft_s = _mean(self.draft_s, step_s)


def _mean(mean: float | None, newest: float) -> float:
    return newest if mean is None else mean + (newest - mean) * NEWEST
