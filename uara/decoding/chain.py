"""Verification where drafts go on behind a block: nothing is drawn after one that passes whole."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from uara.decoding.randomness import Draws, Purpose
from uara.decoding.rules import Floats, Outcome, Pairs, SplitRule, verify


@dataclass(frozen=True)
class _WithoutBonus(Draws):
    """Draws that leave the token behind an accepted draft alone: the next draft is tested there."""

    def pick(
        self, purpose: Purpose, position: int, weights: NDArray[np.float64], index: int = 0
    ) -> int:
        """Pick an index, unless it would be a bonus."""
        return 0 if purpose is Purpose.TARGET else super().pick(purpose, position, weights, index)


def verify_chain(
    target_rows: Sequence[Floats],
    tokens: Sequence[int],
    draft_rows: Sequence[Pairs],
    split: SplitRule | None,
    base: int,
    draws: Draws,
) -> Outcome:
    """Test drafted tokens one after the other, without a bonus token.

    Args:
        target_rows: the target's rows at the drafted positions, and one more that is not used.
        tokens: drafted tokens.
        draft_rows: what is known of the laws they were drawn from.
        split: None if the token after a rejection is drawn here.
        base: position of the first drafted token.
        draws: of the epoch.

    Returns:
        as `rules.verify`, but no token if all pass.
    """
    choice = _WithoutBonus(draws.seed, draws.epoch, draws.ledger)
    outcome = verify(target_rows, tokens, draft_rows, split, base, choice)
    return replace(outcome, token=None) if outcome.accepted == len(tokens) else outcome
