"""The device's side of the mathematics: the draft model, its cache, and the device's draws.

Positions count prompt text and answer together; the text of a prompt is all that models read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from uara.decoding.contract import Contract
from uara.decoding.kv import Cache, Feed, SequenceModel
from uara.decoding.randomness import Draws
from uara.decoding.row import Floats, Pairs
from uara.decoding.rules import Resolution, warp


class DraftToken(msgspec.Struct, frozen=True, gc=False):
    """A drafted token, what goes up with it, and how many tokens the model had to read for it."""

    token: int
    row: Pairs
    tokens_read: int


@dataclass
class Drafter:
    """One session's draft model on a device.

    Attributes:
        model: the draft.
        contract: of the session.
        draws: of the session.
    """

    model: SequenceModel
    contract: Contract
    draws: Draws
    cache: Cache = field(init=False)
    _seen: list[int] = field(default_factory=list, init=False)
    _rows: dict[int, Floats] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.cache = self.model.new_cache()

    def read(self, context: Sequence[int]) -> int:
        """Read all but the last token of a context ahead of drafting; return how many were new."""
        keep = _common_length(self._seen, context)
        self.cache.roll_back(min(keep, self.cache.length))
        new = list(context[self.cache.length : len(context) - 1])
        if new:
            self.model.forward([Feed(self.cache, new, len(new) - 1)])
        self._seen = list(context[: self.cache.length])
        return len(new)

    def draft(self, context: Sequence[int], epoch: int) -> DraftToken:
        """Draw the token that follows a context (prompt text, answer, tokens drafted so far)."""
        keep = min(_common_length(self._seen, context), self.cache.length, len(context) - 1)
        self.cache.roll_back(keep)
        new = list(context[keep:])
        logits = self.model.forward([Feed(self.cache, new, len(new) - 1)])[0][-1]
        self._seen = list(context)
        position = len(context)
        law = self.contract.draft_law(warp(logits, self.contract.draft_sampling))
        token = self.contract.draw_draft(law, position, self.draws.in_epoch(epoch))
        self._rows[position] = law
        return DraftToken(token, self.contract.sent(law, token), len(new))

    def resolve(
        self, top: Pairs, tails: Pairs, drawn: int, position: int, epoch: int
    ) -> Resolution:
        """Draw the token after a rejection from what the server sent; see `rules.resolve`."""
        choice = self.draws.in_epoch(epoch)
        return self.contract.resolve(self.law_at(position), top, tails, drawn, position, choice)

    def law_at(self, position: int) -> Floats:
        """Return the row that the drafted token at a position was drawn from, (V,)."""
        return self._rows[position]

    def forget_rows(self) -> None:
        """Drop the rows of tokens that have been decided."""
        self._rows.clear()


def _common_length(left: Sequence[int], right: Sequence[int]) -> int:
    """Count the leading tokens that two sequences share."""
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))
