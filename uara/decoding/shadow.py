"""Acceptance without speculating: the draft model follows the tokens that the server draws alone.

For a token x drawn from the target's law p, min(1, q(x) / p(x)) is on average sum min(p, q), the
acceptance that drafts of law q would have (Leviathan et al., arXiv 2211.17192). It costs a draft
step beside a forward, and the bytes of one probability.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from uara.decoding.kv import Cache, Feed, SequenceModel
from uara.decoding.protocol import RuleCode
from uara.decoding.rules import GREEDY, truncate, warp
from uara.decoding.verifier import Contract


@dataclass
class Shadow:
    """Compares the draft's law with the target's along one answer.

    Attributes:
        model: the draft.
        contract: how the draft's law is made and tested.
        text: prompt tokens that the model reads.
        count: tokens compared.
        total: sum of their acceptance.
        squares: sum of its squares.
    """

    model: SequenceModel
    contract: Contract
    text: tuple[int, ...]
    count: int = 0
    total: float = 0.0
    squares: float = 0.0
    _cache: Cache = field(init=False)

    def __post_init__(self) -> None:
        self._cache = self.model.new_cache()

    def compare(self, answer: tuple[int, ...], token: int, probability: float) -> None:
        """Take in a token that the target drew behind an answer, with that probability."""
        context = (*self.text, *answer)
        self._cache.roll_back(min(self._cache.length, len(context) - 1))
        fresh = context[self._cache.length :]
        logits = self.model.forward([Feed(self._cache, fresh, len(fresh) - 1)])[0][-1]
        is_certain = self.contract.rule is RuleCode.IDS
        row = warp(logits, GREEDY if is_certain else self.contract.sampling)
        if self.contract.rule is RuleCode.TOPK:
            row = truncate(row, self.contract.top_k)
        # A draft that is certain passes as often as the target draws the same token.
        share = float(row[token]) if is_certain else min(1.0, float(row[token]) / probability)
        self.count += 1
        self.total += share
        self.squares += share * share
