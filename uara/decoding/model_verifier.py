"""A verifier with the target model in this process: many sessions, their caches and draws.

One `forward` serves any mixture of work: prompts to read, tokens to decode, drafts to verify.
Between forwards a session's cache holds every committed token but the last, which is fed next.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from uara.decoding.contract import Contract
from uara.decoding.kv import Cache, Feed, SequenceModel
from uara.decoding.laws import Laws, laws_of
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import Draws
from uara.decoding.row import Floats, Pairs, top_pairs
from uara.decoding.rules import Outcome, draw_tails
from uara.decoding.verifier import Capabilities, Work


@dataclass
class _Session:
    contract: Contract
    draws: Draws
    cache: Cache
    rejected_row: Floats | None = None


@dataclass
class ModelVerifier:
    """The target model of one server; see `uara.decoding.verifier.Verifier`.

    Attributes:
        model: the target.
        tells_probability: whether a token drawn alone comes with its probability, in `top`.
    """

    model: SequenceModel
    tells_probability: bool = False
    _laws: Laws = field(init=False)
    _sessions: dict[int, _Session] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._laws = laws_of(self.model)

    @property
    def capabilities(self) -> Capabilities:
        """All rules; batches of floats may order two nearly equal tokens otherwise."""
        return Capabilities(
            rules=frozenset(RuleCode),
            samples=True,
            returns_rows=True,
            batch_invariant=False,
            context_tokens=getattr(self.model, "context_tokens", None),
        )

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
        feeds, samplings = [], []
        for work in batch:
            session = self._sessions[work.sid]
            fresh = work.context[session.cache.length :] + work.tokens
            first = max(len(fresh) - len(work.tokens) - 1, 0)
            feeds.append(Feed(session.cache, fresh, first))
            samplings.append(session.contract.sampling)
        laws = self._laws(feeds, samplings)
        return [self._decide(work, rows) for work, rows in zip(batch, laws, strict=True)]

    def _decide(self, work: Work, rows: list[Floats]) -> Outcome | None:
        session = self._sessions[work.sid]
        contract, base = session.contract, len(work.context)
        if not work.draw:
            session.rejected_row = rows[-1]
            return None
        session.draws = choice = session.draws.in_epoch(work.epoch)
        if not work.tokens:
            return self._draw(contract, choice, base, rows[-1])
        if len(rows) == len(work.tokens):
            assert session.rejected_row is not None, "a block without context needs a kept row"
            rows.insert(0, session.rejected_row)
        outcome = contract.verify(rows, work.tokens, work.rows, base, choice, has_bonus=work.bonus)
        session.cache.roll_back(base + outcome.accepted)
        session.rejected_row = rows[outcome.accepted] if outcome.token is None else None
        return outcome

    def judge(
        self, sid: int, position: int, tokens: tuple[int, ...], rows: tuple[Pairs, ...], epoch: int
    ) -> Outcome:
        """Test one drafted token against the kept row, or draw from that row if there is none."""
        session = self._sessions[sid]
        row, contract = session.rejected_row, session.contract
        assert row is not None, f"session {sid} keeps no row to judge by"
        session.draws = choice = session.draws.in_epoch(epoch)
        if not tokens:
            return self._draw(contract, choice, position, row)
        # Nothing is drawn behind the token, so that the row there does not matter.
        return contract.verify([row, row], tokens, rows, position, choice, has_bonus=False)

    def _draw(self, contract: Contract, choice: Draws, position: int, row: Floats) -> Outcome:
        token = contract.draw_target(row, position, choice)
        if not self.tells_probability:
            return Outcome(0, token)
        return Outcome(0, token, Pairs((token,), (row.item(token),)))

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
