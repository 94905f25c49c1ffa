"""An answer as it grows: both ends commit tokens by the same rule and so stop at the same token."""

from __future__ import annotations

from collections.abc import Iterable

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
        return len(self.tokens) >= self.max_new or (
            bool(self.tokens) and self.tokens[-1] == self.eos
        )

    @property
    def remaining(self) -> int:
        """How many tokens may still follow."""
        return 0 if self.is_finished else self.max_new - len(self.tokens)

    def extend(self, tokens: Iterable[int]) -> Answer:
        """Commit tokens up to the end; what lies behind it is dropped."""
        kept = list(self.tokens)
        if not self.is_finished:
            for token in tokens:
                kept.append(token)
                if len(kept) >= self.max_new or token == self.eos:
                    break
        return (
            self if len(kept) == len(self.tokens) else Answer(tuple(kept), self.max_new, self.eos)
        )
