"""What a frame from outside may ask: values that the machines and the mathematics rely on.

The format of frames is checked where they are decoded. Here it is what they say: a device that
sends something else loses its session, and nothing else happens.
"""

from __future__ import annotations

import numpy as np

from uara.decoding.contract import Contract
from uara.decoding.protocol import NO_TOKEN, Draft, NeedP, Open, ProtocolError, RuleCode
from uara.decoding.session import Session

MIN_TEMPERATURE, MAX_TEMPERATURE = 1e-2, 1e2
MAX_REFUSED_TAILS = 1_000_000


def check_open(frame: Open) -> None:
    """Check the numbers of an opening.

    Raises:
        ProtocolError: naming what cannot be.
    """
    hot = frame.temperature
    if hot != 0 and not MIN_TEMPERATURE <= hot <= MAX_TEMPERATURE:
        raise ProtocolError(
            f"temperature {hot:g}; allowed: 0, or {MIN_TEMPERATURE:g} to {MAX_TEMPERATURE:g}"
        )
    if not 0 < frame.top_p <= 1:
        raise ProtocolError(f"top_p {frame.top_p:g}; allowed: above 0, up to 1")
    if frame.max_new < 1:
        raise ProtocolError("an answer of no token")
    sends_top = frame.rule in (RuleCode.TOPK, RuleCode.ID_PROB)
    if sends_top and not 1 <= frame.row_top_k <= frame.vocab_size:
        raise ProtocolError(f"{frame.row_top_k} pairs per row; allowed: 1 to {frame.vocab_size}")


def check_answer(tokens: tuple[int, ...], opening: Open) -> None:
    """Check what a request that goes on has committed.

    Raises:
        ProtocolError: if a token is outside the vocabulary or the answer has ended.
    """
    if len(tokens) >= opening.max_new or opening.eos in tokens:
        raise ProtocolError("a request whose answer has ended does not go on")
    if any(token >= opening.vocab_size for token in tokens):
        raise ProtocolError(f"a committed token is outside {opening.vocab_size} ids")


def check_draft(frame: Draft, session: Session, vocab_size: int) -> None:
    """Check a draft: no longer than the answer may grow, drawn from laws that are laws.

    Raises:
        ProtocolError: naming what cannot be.
    """
    end = session.position + session.answer.remaining
    if frame.base + len(frame.tokens) > end or frame.base > end:
        raise ProtocolError(
            f"{len(frame.tokens)} drafted tokens from {frame.base} on, but the answer ends at {end}"
        )
    if frame.correction != NO_TOKEN and frame.correction >= vocab_size:
        raise ProtocolError(f"token id {frame.correction} is outside {vocab_size} ids")
    _check_rows(frame, session.contract)


def _check_rows(frame: Draft, contract: Contract) -> None:
    for token, row in zip(frame.tokens, frame.rows, strict=False):
        if row.probability_of(token) <= 0:
            raise ProtocolError(f"token {token} was drafted with probability 0")
        if contract.rule is RuleCode.ID_PROB:
            continue
        # Probabilities are multiples of 2^-24, so that their sum is exact.
        if len(set(row.ids)) < len(row) or float(np.sum(row.probabilities)) != 1.0:
            raise ProtocolError("a row of a draft is no law: it does not sum to 1")


def check_need(frame: NeedP) -> None:
    """Check a request for tail draws.

    Raises:
        ProtocolError: if more were refused than can be.
    """
    if frame.drawn > MAX_REFUSED_TAILS:
        raise ProtocolError(f"{frame.drawn} refused tail draws; allowed: {MAX_REFUSED_TAILS}")
