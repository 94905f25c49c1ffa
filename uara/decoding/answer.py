"""An answer as it grows: both ends commit tokens by the same rule and so stop at the same token."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from uara.decoding.protocol import NO_TOKEN


class Answer(msgspec.Struct, frozen=True, gc=False):
    """Committed tokens and where they end.

    Attributes:
        tokens: committed so far.
        max_new: the answer is finished at this many tokens.
        eos: token after which it is finished, or `NO_TOKEN`.
    """

    tokens: tuple[int, ...]
    max_new: int
    eos: int = NO_TOKEN

    @property
    def is_finished(self) -> bool:
        """Whether no token may follow."""
        tokens = self.tokens
        return len(tokens) >= self.max_new or (tokens[-1] == self.eos if tokens else False)

    @property
    def remaining(self) -> int:
        """How many tokens may still follow."""
        tokens = self.tokens
        ends = tokens[-1] == self.eos if tokens else False
        return 0 if ends else max(0, self.max_new - len(tokens))

    def extend(self, tokens: Sequence[int]) -> Answer:
        """Commit tokens up to the end; what lies behind it is dropped."""
        if self.is_finished:
            return self
        kept = tuple(tokens[: self.max_new - len(self.tokens)])
        if self.eos in kept:
            kept = kept[: kept.index(self.eos) + 1]
        return Answer(self.tokens + kept, self.max_new, self.eos) if kept else self
