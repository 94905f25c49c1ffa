"""What both ends of a session agreed on: its rule, what goes up with a draft, and who draws what.

Shape legend: V tokens of the vocabulary. A row is a law over it, (V,); see `uara.decoding.rules`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import Choice, Draws, Purpose
from uara.decoding.row import EMPTY_PAIRS, Floats, Pairs, top_pairs
from uara.decoding.rules import (
    GREEDY,
    Outcome,
    Resolution,
    Sampling,
    SplitRule,
    draw_target,
    lost_residual,
    resolve,
    round_up,
    truncate,
    verify,
)


@dataclass(frozen=True)
class Contract:
    """What both ends agreed on for one session.

    Attributes:
        rule: what goes up with a draft, and how it is tested: `ids` by GREEDY at temperature 0 and
            by ONEHOT above, `gumbel` by shared noise, the others by maximal coupling.
        sampling: of the target, and of the draft except under `ids`.
        top_k: pairs of a row on the wire.
        tail_draws: target draws that go with a rejection under `id_prob`.
        probability_bits: of the draft's probabilities under `id_prob`: 32, or 16 or 8 rounded up.
        is_lossy: under `id_prob`, whether the residual outside the Top-K is left out; the output
            is then not the target's.
    """

    rule: RuleCode
    sampling: Sampling
    top_k: int
    tail_draws: int
    probability_bits: int = 32
    is_lossy: bool = False

    def __post_init__(self) -> None:
        is_plain = self.probability_bits == 32 and not self.is_lossy
        assert is_plain or self.rule is RuleCode.ID_PROB, "only `id_prob` is rounded or lossy"

    @cached_property
    def split(self) -> SplitRule | None:
        """Whether, and with how much of the row, the device draws after a rejection."""
        if self.rule is not RuleCode.ID_PROB:
            return None
        return SplitRule(self.top_k, 0 if self.is_lossy else self.tail_draws)

    @cached_property
    def is_coupled(self) -> bool:
        """Whether drafts and target draw by the same noise."""
        return self.rule is RuleCode.GUMBEL

    @cached_property
    def draft_sampling(self) -> Sampling:
        """How the draft's logits become a row."""
        return GREEDY if self.rule is RuleCode.IDS else self.sampling

    def draft_law(self, row: Floats) -> Floats:
        """Return the row that a token is drawn from: under `topk` the draft's own, cut."""
        return truncate(row, self.top_k) if self.rule is RuleCode.TOPK else row

    def draw_draft(self, law: Floats, position: int, choice: Choice) -> int:
        """Draw a drafted token."""
        draw = choice.race if self.is_coupled else choice.pick
        return draw(Purpose.DRAFT, position, law)

    def guess(
        self, logits: Floats, law: Floats, token: int, position: int, choice: Draws, count: int
    ) -> tuple[int, ...]:
        """Name the tokens that are likeliest to come in place of a drafted one.

        The target is taken to be as the draft is: under GUMBEL the next ones to win the draft's own
        race, else those of the largest logits.

        Args:
            logits: of the draft at the position, (V,).
            law: that the token was drawn from, (V,).
            token: drafted.
            position: of the token.
            choice: with the noise that both ends share.
            count: tokens to name, at most.
        """
        if not count:
            return ()
        scores = logits
        if self.is_coupled:
            with np.errstate(divide="ignore"):
                scores = np.log(law) - np.log(choice.noise(position, len(law)))
        count = min(count, len(law) - 1)
        best = np.argpartition(-scores, count)[: count + 1]
        ranked = best[np.argsort(-scores[best], kind="stable")].tolist()
        return tuple(other for other in ranked if other != token)[:count]

    def sent(self, law: Floats, token: int) -> Pairs:
        """Return what goes up of the row that a token was drawn from."""
        match self.rule:
            case RuleCode.ID_PROB:
                return Pairs((token,), (self._sent_probability(law, token),))
            case RuleCode.TOPK:
                return top_pairs(law, self.top_k)
            case RuleCode.FULL:
                return Pairs(range(len(law)), law)
            case RuleCode.IDS | RuleCode.GUMBEL:
                return EMPTY_PAIRS

    def _sent_probability(self, law: Floats, token: int) -> float:
        if self.probability_bits == 32:
            return law.item(token)
        return float(round_up(law[[token]], self.probability_bits)[0])

    def verify(
        self,
        rows: Sequence[Floats],
        tokens: Sequence[int],
        sent: Sequence[Pairs],
        base: int,
        choice: Choice,
        *,
        has_bonus: bool = True,
    ) -> Outcome:
        """Test drafted tokens; see `rules.verify`."""
        return verify(
            rows,
            tokens,
            sent,
            self.split,
            base,
            choice,
            is_coupled=self.is_coupled,
            has_bonus=has_bonus,
        )

    def draw_target(self, row: Floats, position: int, choice: Choice) -> int:
        """Draw the target's own token at a position."""
        return draw_target(row, position, choice, is_coupled=self.is_coupled)

    def resolve(
        self, law: Floats, top: Pairs, tails: Pairs, first: int, position: int, choice: Choice
    ) -> Resolution:
        """Draw the token after a rejection on the device; see `rules.resolve`."""
        return resolve(
            law,
            top,
            tails,
            first,
            position,
            choice,
            sent=round_up(law, self.probability_bits),
            is_lossy=self.is_lossy,
        )

    def lost_residual(self, target: Floats, law: Floats) -> float:
        """Compute the share of a residual that a lossy session leaves out; 0 in others."""
        if not self.is_lossy:
            return 0.0
        return lost_residual(target, law, round_up(law, self.probability_bits), self.top_k)
