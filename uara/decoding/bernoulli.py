"""A pair of language models without language: each drafted token passes with a given probability.

The draft is certain of token 0, to which the target gives probability alpha, so tests are
independent. The token after a rejection is 1, the draft's next choice, or with `hit_rate` below 1
sometimes the one that it thinks of last. For runs that measure time, not text.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from uara.decoding.kv import Cache, Feed, Floats
from uara.decoding.row import Row
from uara.decoding.rules import Sampling, warp

ABSENT_LOGIT = -1e4  # of a token that is never drawn


@dataclass
class CountingCache:
    """A cache that only counts."""

    length: int = 0

    def roll_back(self, length: int) -> None:
        """Forget all but the first `length` tokens."""
        assert length <= self.length, "a cache cannot be rolled forward"
        self.length = length

    def fork(self) -> CountingCache:
        """Count on from the same number."""
        return CountingCache(self.length)


@dataclass
class BernoulliModel:
    """Gives tokens the same probabilities everywhere; those of none are ranked by their number."""

    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        self._laws: dict[Sampling, Row] = {}
        self._row = np.array(
            [np.log(p) if p > 0 else ABSENT_LOGIT - i for i, p in enumerate(self.probabilities)]
        )

    @property
    def vocab_size(self) -> int:
        """V."""
        return len(self.probabilities)

    def new_cache(self) -> Cache:
        """Start a sequence."""
        return CountingCache()

    def laws(self, feeds: Sequence[Feed], samplings: Sequence[Sampling]) -> list[list[Floats]]:
        """Extend each cache by its tokens; return the one row that there is, over and over."""
        outputs: list[list[Floats]] = []
        for logits, sampling in zip(self.forward(feeds), samplings, strict=True):
            if sampling not in self._laws:
                self._laws[sampling] = Row.of(warp(self._row, sampling))
            outputs.append([self._laws[sampling]] * len(logits))
        return outputs

    def forward(self, feeds: Sequence[Feed]) -> list[Floats]:
        """Extend each cache by its tokens; return logits (Q_i - logits_from, V) per sequence."""
        outputs = []
        for feed in feeds:
            assert isinstance(feed.cache, CountingCache), "a cache of another model"
            feed.cache.length += len(feed.tokens)
            outputs.append(np.tile(self._row, (len(feed.tokens) - feed.logits_from, 1)))
        return outputs


def bernoulli_pair(
    alpha: float, *, guesses: int = 1, hit_rate: float = 1.0
) -> tuple[BernoulliModel, BernoulliModel]:
    """Make a draft and a target whose acceptance is `alpha` at every position.

    Args:
        alpha: probability that a drafted token passes.
        guesses: corrections that a device guesses at a position.
        hit_rate: probability that one of them is right, after a rejection.
    """
    missed = (1 - alpha) * (1 - hit_rate)
    target = (alpha, 1 - alpha - missed, *(0.0,) * (guesses - 1), missed)
    return BernoulliModel((1.0, *(0.0,) * (guesses + 1))), BernoulliModel(target)
