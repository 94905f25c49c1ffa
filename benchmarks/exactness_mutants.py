"""Known defects of draft and verify: each must be seen by the tests that the rules pass.

Shape legend: V tokens of the vocabulary; a row is a law, (V,).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from benchmarks.exactness_trials import (
    CASES,
    LOSSY,
    TEXT,
    Enumeration,
    Fit,
    Tables,
    Tokens,
    Trial,
    exact_law,
    fit,
    sample,
    total_variation,
)
from uara.decoding import contract as contracts
from uara.decoding import rules
from uara.decoding.contract import Contract
from uara.decoding.randomness import Choice, Draws, Purpose
from uara.decoding.row import Floats, Pairs
from uara.decoding.rules import Outcome, truncate

CONFIDENCE = 0.2


class DraftsUntruncated(Trial):
    """Draws from the whole row and reports its Top-K."""

    def draft_law(self, done: Tokens) -> Floats:
        """Leave the row whole."""
        before, last = (*TEXT, *done)[-2:]
        return np.asarray(self._rows[1][before, last])

    def reported(self, law: Floats) -> Floats:
        """Cut it afterwards."""
        return truncate(law, self.contract.top_k)


class DraftsTruncated(Trial):
    """Draws from the Top-K and reports the whole row."""

    def drafted(self, law: Floats, position: int, choice: Choice) -> int:
        """Cut the row for the draw."""
        return super().drafted(truncate(law, self.contract.top_k), position, choice)


class DraftsArgmax(Trial):
    """Drafts the most likely token and reports the soft row."""

    def drafted(self, law: Floats, position: int, choice: Choice) -> int:
        """Take the most likely token."""
        return int(np.argmax(law))


class DropsLowConfidence(Trial):
    """Throws a drawn token away when the draft was not sure of it."""

    def keeps(self, law: Floats, token: int) -> bool:
        """Look at the token that was drawn."""
        return bool(law[token] > CONFIDENCE)


class KeepsTail(Trial):
    """Leaves the drafts behind the corrected token standing."""

    def committed(
        self, tokens: Tokens, accepted: int, token: int, rows: Sequence[Floats], choice: Choice
    ) -> Tokens:
        """Replace one token only."""
        return (*tokens[:accepted], token, *tokens[accepted + 1 :])


class UsesRowsBehindRejection(Trial):
    """Draws one more token from the row that was computed behind the rejected one."""

    def committed(
        self, tokens: Tokens, accepted: int, token: int, rows: Sequence[Floats], choice: Choice
    ) -> Tokens:
        """Use a row of another context."""
        if accepted == len(tokens):
            return (*tokens, token)
        # Keys of the true position belong to later rounds.
        stale = choice.pick(Purpose.RESIDUAL, 10**6 + accepted, rows[accepted + 1])
        return (*tokens[:accepted], token, stale)


class RedrawsAfterMismatch(Trial):
    """Draws a fresh token of the target where the coupled ones differ."""

    def verified(
        self,
        rows: Sequence[Floats],
        tokens: Tokens,
        sent: Sequence[Pairs],
        base: int,
        choice: Choice,
    ) -> Outcome:
        """Forget the target's own token."""
        outcome = super().verified(rows, tokens, sent, base, choice)
        if outcome.accepted == len(tokens):
            return outcome
        row = rows[outcome.accepted]
        fresh = choice.pick(Purpose.RESIDUAL, base + outcome.accepted, row)
        return Outcome(outcome.accepted, fresh)


@dataclass(frozen=True)
class OneUniform(Draws):
    """Tests two neighbouring positions with one and the same number."""

    def uniform(self, purpose: Purpose, position: int, index: int = 0) -> float:
        """Halve positions."""
        shared = position // 2 if purpose is Purpose.ACCEPT else position
        return super().uniform(purpose, shared, index)


@dataclass(frozen=True)
class OneNoise(Draws):
    """Races at two neighbouring positions under one and the same noise."""

    def noise(self, position: int, count: int) -> NDArray[np.float64]:
        """Halve positions."""
        return super().noise(position // 2, count)


@dataclass(frozen=True)
class KeepsEveryTail(Draws):
    """Takes the first draw from the target's tail, whatever the draft's law."""

    def flip(self, purpose: Purpose, position: int, probability: float, index: int = 0) -> bool:
        """Thin nothing."""
        passes = super().flip(purpose, position, probability, index)
        return passes or purpose is Purpose.THIN


class ReusedUniform(Enumeration):
    """Enumerates `OneUniform`: what is known of a number narrows its second use."""

    _bounds = (0.0, 1.0)

    def flip(self, purpose: Purpose, position: int, probability: float, index: int = 0) -> bool:
        """Flip given the bounds that the neighbour's flip has left."""
        if purpose is not Purpose.ACCEPT:
            return super().flip(purpose, position, probability)
        low, high = self._bounds if position % 2 else (0.0, 1.0)
        share = min(max((probability - low) / (high - low), 0.0), 1.0)
        passes = super().flip(purpose, position, share)
        self._bounds = (low, min(high, probability)) if passes else (max(low, probability), high)
        return passes


class KeptTails(Enumeration):
    """Enumerates `KeepsEveryTail`."""

    def flip(self, purpose: Purpose, position: int, probability: float, index: int = 0) -> bool:
        """Thin nothing."""
        return purpose is Purpose.THIN or super().flip(purpose, position, probability, index)


def _invert_ratio(target: float, draft: float) -> float:
    return min(1.0, draft / target) if target else 0.0


def _residual_of_top_2(target: Floats, draft: Floats, sent: Floats | None = None) -> Floats:
    row = np.maximum(truncate(target, 2) - draft, 0)
    return row if row.any() else target


def _residual_is_target(target: Floats, draft: Floats, sent: Floats | None = None) -> Floats:
    return target


def _ordinary_residual_of_token(target: float, draft: float, sent: float) -> float:
    return max(target - draft, 0.0)


def _round_to_nearest(probabilities: Floats, bits: int) -> Floats:
    exponent = np.floor(np.log2(np.maximum(probabilities, 1e-30)))
    step = 2.0 ** (exponent - 2)  # 8 bits leave two behind the leading one
    return np.round(probabilities / step) * step


Patches = Mapping[tuple[object, str], Callable[..., object]]


@dataclass(frozen=True)
class Mutant:
    """A defect, and what it is built into.

    Attributes:
        contract: rule and codec that have it.
        trial: a defect of an end.
        draws: a defect of the random numbers.
        choices: the same for an enumeration; None where it cannot be enumerated.
        patches: a defect of a function.
    """

    contract: Contract
    trial: type[Trial] = Trial
    draws: Callable[[int], Choice] = Draws
    choices: type[Enumeration] | None = Enumeration
    patches: Patches = field(default_factory=dict)

    def distance(self, tables: Tables, lengths: Sequence[int]) -> float:
        """Compute its total variation from the target's law exactly; inf if it is refused."""
        assert self.choices is not None, "this defect cannot be enumerated"
        with self._built_in():
            trial = self.trial(self.contract, tables, tokens=lengths[0] + 1, lengths=lengths)
            try:
                return total_variation(exact_law(trial, self.choices), trial.target_law())
            except ValueError:
                return np.inf

    def fit(self, tables: Tables, draws: int) -> Fit:
        """Sample it; a refusal counts as seen."""
        with self._built_in():
            trial = self.trial(self.contract, tables)
            try:
                return fit(sample(trial, draws, source=self.draws), trial.target_law())
            except ValueError:
                return Fit(draws, np.inf, 0.0, 1.0)

    def _built_in(self) -> ExitStack:
        stack = ExitStack()
        for (module, name), function in self.patches.items():
            stack.enter_context(patch.object(module, name, function))
        return stack


FULL, IDS = CASES["maxc / full"], CASES["onehot / ids"]
TOPK, GUMBEL = CASES["maxc / topk"], CASES["gumbel / ids"]
SPLIT, SPLIT_8 = CASES["maxc / id_prob"], CASES["maxc / id_prob, 8 bits"]

MUTANTS: dict[str, Mutant] = {
    "ratio inverted": Mutant(FULL, patches={(rules, "accept_probability"): _invert_ratio}),
    "residual of the target's top 2": Mutant(
        FULL, patches={(rules, "residual"): _residual_of_top_2}
    ),
    "draft whole, test truncated": Mutant(TOPK, DraftsUntruncated),
    "draft truncated, test whole": Mutant(FULL, DraftsTruncated),
    "argmax draft, soft test": Mutant(FULL, DraftsArgmax),
    "low-confidence token dropped": Mutant(FULL, DropsLowConfidence),
    "tail kept after a correction": Mutant(FULL, KeepsTail),
    "row behind a rejection used": Mutant(FULL, UsesRowsBehindRejection),
    "uniform reused by a neighbour": Mutant(FULL, draws=OneUniform, choices=ReusedUniform),
    "rounded to nearest, ordinary residual": Mutant(
        SPLIT_8,
        patches={
            (contracts, "round_up"): _round_to_nearest,
            (rules, "round_up"): _round_to_nearest,
            (rules, "residual_of_token"): _ordinary_residual_of_token,
        },
    ),
    "rounded up, ordinary residual": Mutant(
        SPLIT_8, patches={(rules, "residual_of_token"): _ordinary_residual_of_token}
    ),
    "tail draw always kept": Mutant(SPLIT, draws=KeepsEveryTail, choices=KeptTails),
    "onehot: mismatch drawn from the whole row": Mutant(
        IDS, patches={(rules, "residual"): _residual_is_target}
    ),
    "gumbel: mismatch drawn afresh": Mutant(GUMBEL, RedrawsAfterMismatch),
    "gumbel: noise shared by neighbours": Mutant(GUMBEL, draws=OneNoise, choices=None),
    "residual cut to the Top-K (lossy)": Mutant(LOSSY),
}
