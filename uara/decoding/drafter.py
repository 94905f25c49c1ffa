"""The device's side of the mathematics: the draft model, its caches, and the device's draws.

Positions count prompt text and answer together; the text of a prompt is all that models read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from uara.decoding.branches import BranchToken, Stem
from uara.decoding.contract import Contract
from uara.decoding.kv import Cache, Feed, SequenceModel
from uara.decoding.laws import Laws, laws_of
from uara.decoding.randomness import Draws, Purpose
from uara.decoding.row import Floats, Pairs
from uara.decoding.rules import Resolution, warp


class DraftToken(msgspec.Struct, frozen=True, gc=False):
    """A drafted token, and what else its step has brought.

    Attributes:
        token: drawn.
        row: what goes up with it.
        tokens_read: how many tokens the model had to read for it.
        guesses: other tokens in its place, likeliest first.
        grown: tokens behind branches.
        branch_tokens_read: how many tokens the model had to read for those.
    """

    token: int
    row: Pairs
    tokens_read: int
    guesses: tuple[int, ...] = ()
    grown: tuple[BranchToken, ...] = ()
    branch_tokens_read: int = 0


@dataclass
class _Branch:
    """A branch's cache, the tokens that are in it, and the laws drawn from by position."""

    cache: Cache
    seen: tuple[int, ...]
    laws: dict[int, Floats] = field(default_factory=dict)


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
    _laws: Laws = field(init=False)
    _seen: tuple[int, ...] = field(default=(), init=False)
    _rows: dict[int, Floats] = field(default_factory=dict, init=False)
    _branches: dict[tuple[int, int], _Branch] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.cache = self.model.new_cache()
        self._laws = laws_of(self.model)

    def read(self, context: tuple[int, ...]) -> int:
        """Read all but the last token of a context ahead of drafting; return how many were new."""
        keep = _common_length(self._seen, context)
        self.cache.roll_back(min(keep, self.cache.length))
        new = context[self.cache.length : len(context) - 1]
        if new:
            self.model.forward([Feed(self.cache, new, len(new) - 1)])
        self._seen = context[: self.cache.length]
        return len(new)

    def draft(
        self,
        context: tuple[int, ...],
        epoch: int,
        branches: Sequence[Stem] = (),
        guesses: int = 0,
        committed: int = 0,
    ) -> DraftToken:
        """Draw the token that follows a context, and those behind branches, in one forward.

        Args:
            context: prompt text, answer and tokens drafted so far.
            epoch: of the session.
            branches: that grow by a token.
            guesses: how many other tokens to name in place of each that is drawn.
            committed: tokens of the context that stand; branches in their place are forgotten.
        """
        position, contract, cache = len(context), self.contract, self.cache
        keep = min(_common_length(self._seen, context), cache.length, position - 1)
        if keep < cache.length:
            cache.roll_back(keep)
        feed = Feed(cache, context[keep:], position - keep - 1)
        self._seen = context
        self.draws = self.draws.in_epoch(epoch)
        if guesses:
            return self._draft_all(context, feed, branches, guesses, committed)
        (row,) = self._laws([feed], [contract.draft_sampling])[0]
        self._rows[position] = law = contract.draft_law(row)
        token = contract.draw_draft(law, position, self.draws)
        return DraftToken(token, contract.sent(law, token), position - keep)

    def _draft_all(
        self,
        context: tuple[int, ...],
        feed: Feed,
        branches: Sequence[Stem],
        guesses: int,
        committed: int,
    ) -> DraftToken:
        """Draw as `draft` does where corrections are guessed, which takes the logits as well."""
        for key in [key for key in self._branches if key[0] < committed]:
            del self._branches[key]
        feeds = [feed, *(self._branch_feed(stem, context) for stem in branches)]
        logits = [rows[-1] for rows in self.model.forward(feeds)]
        position, draws = len(context), self.draws
        law, token = self._draw(logits[0], position, draws)
        self._rows[position] = law
        ahead = draws.ahead()
        grown = tuple(
            self._grow(stem, row, ahead, guesses)
            for stem, row in zip(branches, logits[1:], strict=True)
        )
        return DraftToken(
            token,
            self.contract.sent(law, token),
            len(feed.tokens),
            self.contract.guess(logits[0], law, token, position, draws, guesses),
            grown,
            sum(len(feed.tokens) for feed in feeds[1:]),
        )

    def _draw(self, logits: Floats, position: int, draws: Draws) -> tuple[Floats, int]:
        law = self.contract.draft_law(warp(logits, self.contract.draft_sampling))
        return law, self.contract.draw_draft(law, position, draws)

    def _branch_feed(self, stem: Stem, context: tuple[int, ...]) -> Feed:
        """Prepare a branch's part of a forward; a new one starts from the main chain's cache."""
        key = (stem.position, stem.correction)
        branch = self._branches.get(key)
        if branch is None:
            branch = self._branches[key] = _Branch(self.cache.fork(), ())
            branch.cache.roll_back(min(branch.cache.length, stem.position))
        branch.seen = (*context[: stem.position], stem.correction, *stem.tokens)
        new = branch.seen[branch.cache.length :]
        return Feed(branch.cache, new, len(new) - 1)

    def _grow(self, stem: Stem, logits: Floats, ahead: Draws, guesses: int) -> BranchToken:
        branch = self._branches[stem.position, stem.correction]
        law, token = self._draw(logits, stem.end, ahead)
        branch.laws[stem.end] = law
        others = self.contract.guess(logits, law, token, stem.end, ahead, guesses)
        row = self.contract.sent(law, token)
        return BranchToken(stem.position, stem.correction, token, row, others)

    def correct(self, position: int, token: int, epoch: int) -> None:
        """Take up the branch behind a correction, if it has begun, and forget all others.

        Args:
            position: of the correction.
            token: what it is.
            epoch: that the rejection has ended.
        """
        branch = self._branches.get((position, token))
        self._branches.clear()
        if branch is None:
            return
        self.cache = branch.cache
        self._seen = branch.seen
        self._rows |= branch.laws
        draws = self.draws.in_epoch(epoch + 1)
        for drawn_at in branch.laws:
            draws.enter(Purpose.DRAFT, drawn_at)

    def resolve(
        self, top: Pairs, tails: Pairs, drawn: int, position: int, epoch: int
    ) -> Resolution:
        """Draw the token after a rejection from what the server sent; see `rules.resolve`."""
        self.draws = self.draws.in_epoch(epoch)
        law = self.law_at(position)
        return self.contract.resolve(law, top, tails, drawn, position, self.draws)

    def law_at(self, position: int) -> Floats:
        """Return the row that the drafted token at a position was drawn from, (V,)."""
        return self._rows[position]

    def forget_rows(self) -> None:
        """Drop the rows of tokens that have been decided."""
        self._rows.clear()


def _common_length(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """Count the leading tokens that two sequences share."""
    if right[: len(left)] == left:
        return len(left)
    for i, (a, b) in enumerate(zip(left, right, strict=False)):
        if a != b:
            return i
    return min(len(left), len(right))
