"""Acceptance without speculating: the draft model follows the tokens that the server draws alone.

For a token x drawn from the target's law p, min(1, q(x) / p(x)) is on average sum min(p, q), the
acceptance that drafts of law q would have (Leviathan et al., arXiv 2211.17192). Coupled drafts are
drawn by the noise that drew x, and pass if they are x. It costs a draft step beside a forward, and
the bytes of one probability.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from uara.decoding.contract import Contract
from uara.decoding.kv import Cache, Feed, SequenceModel
from uara.decoding.randomness import Draws
from uara.decoding.row import Floats
from uara.decoding.rules import round_up, warp


@dataclass
class Shadow:
    """Compares the draft's law with the target's along one answer.

    Attributes:
        model: the draft.
        contract: how the draft's law is made and tested.
        text: prompt tokens that the model reads.
        draws: of the session; nothing is decided by them here, only its noise is looked at.
        count: tokens compared.
        total: sum of their acceptance.
        squares: sum of its squares.
    """

    model: SequenceModel
    contract: Contract
    text: tuple[int, ...]
    draws: Draws
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
        law = self.contract.draft_law(warp(logits, self.contract.draft_sampling))
        share = self._share(law, len(context), token, probability)
        self.count += 1
        self.total += share
        self.squares += share * share

    def _share(self, law: Floats, position: int, token: int, probability: float) -> float:
        """Compute a term whose mean over the target's tokens is the acceptance of drafts."""
        if self.contract.is_coupled:
            return float(self.contract.draw_draft(law, position, self.draws) == token)
        if not law[token]:
            return 0.0
        # A drafted x passes with min(1, p / q^), which is weighed by q / p here.
        sent = round_up(law[[token]], self.contract.probability_bits)
        return float(law[token] / max(probability, sent[0]))
