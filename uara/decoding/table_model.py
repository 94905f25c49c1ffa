"""A language model that is a table, to time and to test the runtime without a network.

Shape legend: V tokens of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from uara.decoding.kv import Cache, Feed
from uara.decoding.row import Floats, Row
from uara.decoding.rules import Sampling, warp


@dataclass
class ContextCache:
    """A context that is simply remembered."""

    tokens: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        """Tokens remembered."""
        return len(self.tokens)

    def roll_back(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        del self.tokens[length:]

    def fork(self) -> ContextCache:
        """Remember the same and go another way."""
        return ContextCache(list(self.tokens))


@dataclass
class TableModel:
    """Gives the next token a law that depends on the last two; before the first, token 0 stands.

    Attributes:
        logits: (V, V, V): one before last, last, next.
    """

    logits: Floats
    _rows: dict[Sampling, dict[tuple[int, int], Row]] = field(default_factory=dict, init=False)

    @property
    def vocab_size(self) -> int:
        """V."""
        return int(self.logits.shape[-1])

    def new_cache(self) -> Cache:
        """Start a sequence."""
        return ContextCache()

    def forward(self, feeds: Sequence[Feed]) -> list[Floats]:
        """Extend each context; return logits (Q_i - logits_from, V) per sequence."""
        return [np.array([self.logits[pair] for pair in _extend(feed)]) for feed in feeds]

    def laws(self, feeds: Sequence[Feed], samplings: Sequence[Sampling]) -> list[list[Floats]]:
        """Extend each context; return rows, which are made once."""
        outputs: list[list[Floats]] = []
        for feed, sampling in zip(feeds, samplings, strict=True):
            rows = self._rows.setdefault(sampling, {})
            pairs = _extend(feed)
            for pair in pairs:
                if pair not in rows:
                    rows[pair] = Row.of(warp(self.logits[pair], sampling))
            outputs.append([rows[pair] for pair in pairs])
        return outputs


def _extend(feed: Feed) -> list[tuple[int, int]]:
    """Extend a context; return the last two tokens before each place that is asked for."""
    assert isinstance(feed.cache, ContextCache), "a table needs its own caches"
    tokens = feed.cache.tokens
    start = len(tokens) + feed.logits_from
    tokens.extend(feed.tokens)
    seen = tokens[start - 1 :] if start else [0, *tokens]
    return list(pairwise(seen))
