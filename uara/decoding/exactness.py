"""Whether a greedy run gave the target model's own output, with a rule for near ties."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uara.decoding.kv import Feed, SequenceModel
from uara.decoding.records import RequestRecord
from uara.decoding.scenario import Request

NEAR_TIE_GAP = 1e-4  # top-2 logit gap below which float32 batches may order two tokens otherwise


@dataclass(frozen=True)
class GreedyCheck:
    """How many requests are equal to the end, differ first at a near tie, or differ otherwise."""

    equal: int
    near_ties: int
    unexplained: tuple[int, ...]  # request numbers

    def sentence(self) -> str:
        """Say in one line how many outputs are those of the target alone."""
        return (
            f"greedy output against the target alone: {self.equal} equal, {self.near_ties} differ "
            f"first at a near tie, {len(self.unexplained)} unexplained"
        )


def check_greedy_exact(
    target: SequenceModel, requests: Sequence[Request], records: Sequence[RequestRecord]
) -> GreedyCheck:
    """Compare each answer with the target decoding alone, one request at a time.

    Behind a difference the texts are not the same any more, so only the first one is judged: it is
    explained if the two largest logits there are closer than 1e-4.
    """
    by_sid = {request.sid: request for request in requests}
    equal, near_ties, unexplained = 0, 0, []
    for record in records:
        gap = _first_gap(target, by_sid[record.sid].text, record.tokens)
        if gap is None:
            equal += 1
        elif gap < NEAR_TIE_GAP:
            near_ties += 1
        else:
            unexplained.append(record.sid)
    return GreedyCheck(equal, near_ties, tuple(unexplained))


def _first_gap(target: SequenceModel, text: Sequence[int], answer: Sequence[int]) -> float | None:
    """Return the top-2 logit gap at the first token that is not the most likely; None if none."""
    cache = target.new_cache()
    feed = list(text)
    for token in answer:
        logits = target.forward([Feed(cache, feed, len(feed) - 1)])[0][-1]
        if int(np.argmax(logits)) != token:
            second, first = np.partition(logits, -2)[-2:]
            return float(first - second)
        feed = [token]
    return None
