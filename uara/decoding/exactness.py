"""Whether a run gave the target model's own output, token for token, with a rule for near ties."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from uara.decoding.kv import Feed, Floats, SequenceModel
from uara.decoding.randomness import Draws
from uara.decoding.records import RequestRecord
from uara.decoding.rules import LATTICE, Sampling, warp
from uara.decoding.scenario import Request

NEAR_TIE_GAP = 1e-4  # top-2 logit gap below which float32 batches may order two tokens otherwise

# From logits and position of a token, and the token that came: whether it is the target's own, and
# if not, whether the two best are too close to tell.
_Judge = Callable[[Floats, int, int], "_Judgement"]


@dataclass(frozen=True)
class _Judgement:
    is_own: bool
    is_near_tie: bool = False


@dataclass(frozen=True)
class ExactCheck:
    """How many requests are equal to the end, differ first at a near tie, or differ otherwise."""

    equal: int
    near_ties: int
    unexplained: tuple[int, ...]  # request numbers
    output: str = "greedy"

    def sentence(self) -> str:
        """Say in one line how many outputs are those of the target alone."""
        return (
            f"{self.output} output against the target alone: {self.equal} equal, {self.near_ties} "
            f"differ first at a near tie, {len(self.unexplained)} unexplained"
        )


def check_greedy_exact(
    target: SequenceModel, requests: Sequence[Request], records: Sequence[RequestRecord]
) -> ExactCheck:
    """Compare each answer with the target decoding alone, one request at a time.

    Behind a difference the texts are not the same any more, so only the first one is judged: it is
    explained if the two largest logits there are closer than 1e-4.
    """
    return _check(target, requests, records, lambda request: _judge_greedy)


def check_coupled_exact(
    target: SequenceModel,
    requests: Sequence[Request],
    records: Sequence[RequestRecord],
    sampling: Sampling,
    session_seed: Callable[[int], int],
) -> ExactCheck:
    """Compare each sampled answer of rule GUMBEL with the target sampling alone by the same seed.

    A difference is explained if the two best of the race, log p + noise, are closer than what
    logits off by 1e-4 and probabilities off by one unit of a row make of it.

    Args:
        target: model of the servers.
        requests: of the run.
        records: what it left.
        sampling: of the run.
        session_seed: gives a session's seed, as in the run.
    """

    def judge_of(request: Request) -> _Judge:
        draws = Draws(session_seed(request.sid))
        gap = NEAR_TIE_GAP / (sampling.temperature or 1.0)

        def judge(logits: Floats, position: int, token: int) -> _Judgement:
            noise = draws.noise(position, len(logits))
            return _judge_race(warp(logits, sampling), noise, token, gap)

        return judge

    return replace(_check(target, requests, records, judge_of), output="coupled")


def _check(
    target: SequenceModel,
    requests: Sequence[Request],
    records: Sequence[RequestRecord],
    judge_of: Callable[[Request], _Judge],
) -> ExactCheck:
    by_sid = {request.sid: request for request in requests}
    equal, near_ties, unexplained = 0, 0, []
    for record in records:
        request = by_sid[record.sid]
        found = _first_difference(target, request.text, record.tokens, judge_of(request))
        if found is None:
            equal += 1
        elif found.is_near_tie:
            near_ties += 1
        else:
            unexplained.append(record.sid)
    return ExactCheck(equal, near_ties, tuple(unexplained))


def _first_difference(
    target: SequenceModel, text: Sequence[int], answer: Sequence[int], judge: _Judge
) -> _Judgement | None:
    """Judge the first token that is not the target's own; None if all are."""
    cache = target.new_cache()
    feed = list(text)
    for index, token in enumerate(answer):
        logits = target.forward([Feed(cache, feed, len(feed) - 1)])[0][-1]
        judgement = judge(logits, len(text) + index, token)
        if not judgement.is_own:
            return judgement
        feed = [token]
    return None


def _judge_greedy(logits: Floats, position: int, token: int) -> _Judgement:
    if int(np.argmax(logits)) == token:
        return _Judgement(is_own=True)
    second, first = np.partition(logits, -2)[-2:]
    return _Judgement(is_own=False, is_near_tie=bool(first - second < NEAR_TIE_GAP))


def _judge_race(row: Floats, noise: Floats, token: int, gap: float) -> _Judgement:
    runners = np.flatnonzero(row)
    scores = np.log(row[runners]) - np.log(noise[runners])
    order = np.argsort(scores)
    if int(runners[order[-1]]) == token:
        return _Judgement(is_own=True)
    if len(runners) < 2:
        return _Judgement(is_own=False)
    second, first = order[-2:]
    units = 1 / row[runners[first]] + 1 / row[runners[second]]
    distance = float(scores[first] - scores[second])
    return _Judgement(is_own=False, is_near_tie=bool(distance < gap + units / LATTICE))
