"""The server's side of the mathematics: the target model, many sessions, and the server's draws.

One `forward` serves any mixture of work: prompts to read, tokens to decode, drafts to verify.
Between forwards a session's cache holds every committed token but the last, which is fed next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from uara.decoding.contract import Contract as Contract  # a name of verifiers as well
from uara.decoding.kv import Cache, Feed, SequenceModel
from uara.decoding.randomness import Draws
from uara.decoding.rules import Floats, Outcome, Pairs, draw_tails, top_pairs, warp


@dataclass(frozen=True)
class Work:
    """One session's part of a forward.

    Attributes:
        sid: session.
        context: committed tokens, prompt text and answer.
        tokens: drafted tokens to verify; none to decode one token.
        rows: what is known of the draft's laws.
        epoch: rejections so far.
        draw: False to read the context without drawing a token (a cache rebuilt elsewhere).
    """

    sid: int
    context: tuple[int, ...]
    tokens: tuple[int, ...] = ()
    rows: tuple[Pairs, ...] = ()
    epoch: int = 0
    draw: bool = True


@dataclass
class _Session:
    contract: Contract
    draws: Draws
    cache: Cache
    rejected_row: Floats | None = None


@dataclass
class Verifier:
    """The target model of one server."""

    model: SequenceModel
    _sessions: dict[int, _Session] = field(default_factory=dict, init=False)

    def open(self, sid: int, contract: Contract, draws: Draws) -> None:
        """Take a session in, with an empty cache."""
        assert sid not in self._sessions, f"session {sid} is open already"
        self._sessions[sid] = _Session(contract, draws, self.model.new_cache())

    def close(self, sid: int) -> None:
        """Free a session's cache; unknown sessions are none of our business."""
        self._sessions.pop(sid, None)

    def cached_tokens(self, sid: int) -> int:
        """Count the tokens whose keys and values are held."""
        return self._sessions[sid].cache.length if sid in self._sessions else 0

    def forward(self, batch: Sequence[Work]) -> list[Outcome | None]:
        """Run one ragged forward and decide each session's tokens; None for a mere reading."""
        feeds = []
        for work in batch:
            cache = self._sessions[work.sid].cache
            fresh = [*work.context[cache.length :], *work.tokens]
            feeds.append(Feed(cache, fresh, len(fresh) - len(work.tokens) - 1))
        logits = self.model.forward(feeds)
        return [self._decide(work, rows) for work, rows in zip(batch, logits, strict=True)]

    def _decide(self, work: Work, logits: Floats) -> Outcome | None:
        session = self._sessions[work.sid]
        contract, base = session.contract, len(work.context)
        rows = [warp(row, contract.sampling) for row in logits]
        if not work.draw:
            session.rejected_row = rows[-1]
            return None
        choice = session.draws.in_epoch(work.epoch)
        if not work.tokens:
            return Outcome(0, contract.draw_target(rows[-1], base, choice))
        outcome = contract.verify(rows, work.tokens, work.rows, base, choice)
        session.cache.roll_back(base + outcome.accepted)
        session.rejected_row = rows[outcome.accepted] if outcome.token is None else None
        return outcome

    def lost_residual(self, sid: int, draft_law: Floats) -> float:
        """Compute the share of the last residual that a lossy session leaves out."""
        session = self._sessions[sid]
        assert session.rejected_row is not None, f"session {sid} has no rejection to measure"
        return session.contract.lost_residual(session.rejected_row, draft_law)

    def more_tails(self, sid: int, position: int, drawn: int, epoch: int) -> Pairs:
        """Draw further tail tokens at the rejected position, after `drawn` were refused."""
        session = self._sessions[sid]
        row, contract = session.rejected_row, session.contract
        assert row is not None, f"session {sid} has no rejection to answer"
        top = top_pairs(row, contract.top_k)
        choice = session.draws.in_epoch(epoch)
        return draw_tails(row, top, contract.tail_draws, drawn, position, choice)
