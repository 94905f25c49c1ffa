"""The law of draft and verify, by algebra and by enumeration of every possibility."""

# ruff: noqa: D101, D102 -- the names of test doubles say what they do

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from uara.decoding import rules
from uara.decoding.randomness import Purpose
from uara.decoding.rules import (
    EMPTY_PAIRS,
    LATTICE,
    Pairs,
    Sampling,
    SplitRule,
    resolve,
    to_lattice,
    top_pairs,
    truncate,
    verify,
    warp,
)

Floats = NDArray[np.float64]
Prefix = tuple[int, ...]


class Enumeration:
    """A source of choices that follows a given path and notes the branches beside it."""

    def __init__(self, path: tuple[int, ...]) -> None:
        self.path, self.step, self.probability = path, 0, 1.0
        self.taken: list[int] = []
        self.branches: list[tuple[int, ...]] = []

    def choose(self, weights: Floats) -> int:
        options = [int(i) for i in np.flatnonzero(weights)]
        if self.step < len(self.path):
            chosen = self.path[self.step]
        else:
            chosen = options[0]
            self.branches += [(*self.taken, other) for other in options[1:]]
        self.step += 1
        self.taken.append(chosen)
        self.probability *= float(weights[chosen] / weights.sum())
        return chosen

    def flip(self, purpose: Purpose, position: int, probability: float, index: int = 0) -> bool:
        return self.choose(np.array([1 - probability, probability])) == 1

    def pick(self, purpose: Purpose, position: int, weights: Floats, index: int = 0) -> int:
        return self.choose(weights)


class ReusedUniform(Enumeration):
    """Tests two neighbouring positions with one and the same uniform."""

    bounds: tuple[float, float] = (0.0, 1.0)

    def flip(self, purpose: Purpose, position: int, probability: float, index: int = 0) -> bool:
        if purpose is not Purpose.ACCEPT:
            return super().flip(purpose, position, probability)
        low, high = self.bounds if position % 2 else (0.0, 1.0)
        share = min(max((probability - low) / (high - low), 0.0), 1.0)
        passes = super().flip(purpose, position, share)
        self.bounds = (low, min(high, probability)) if passes else (max(low, probability), high)
        return passes


def exact_law(
    experiment: Callable[[Enumeration], Prefix], source: type[Enumeration] = Enumeration
) -> dict[Prefix, float]:
    law: dict[Prefix, float] = defaultdict(float)
    pending: list[tuple[int, ...]] = [()]
    while pending:
        choices = source(pending.pop())
        law[experiment(choices)] += choices.probability
        pending += choices.branches
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    return law


def random_rows(vocab_size: int, depth: int, seed: int) -> dict[Prefix, Floats]:
    """A law of the next token for every prefix, some with zeros."""
    generator = np.random.default_rng(seed)
    rows = {}
    for length in range(depth + 1):
        for prefix in itertools.product(range(vocab_size), repeat=length):
            weights = generator.gamma(0.6, 1.0, vocab_size) * (generator.random(vocab_size) > 0.15)
            rows[prefix] = to_lattice(weights + 1e-3 * (weights.sum() == 0))
    return rows


class Round:
    """One round of drafting and verification, continued by the target up to a fixed length."""

    def __init__(self, vocab_size: int, gamma: int, codec: str, seed: int) -> None:
        self.gamma, self.codec, self.vocab_size = gamma, codec, vocab_size
        self.target = random_rows(vocab_size, gamma + 1, seed)
        self.draft = random_rows(vocab_size, gamma + 1, seed + 1)
        self.top_k = 2

    # What a mutant overrides.
    def drafted(self, row: Floats, choices: Enumeration, position: int) -> int:
        return choices.pick(Purpose.DRAFT, position, row)

    def reported(self, row: Floats) -> Floats:
        return row

    def keeps(self, row: Floats, token: int) -> bool:
        return True

    def after(self, tokens: Prefix, accepted: int, correction: int) -> Prefix:
        return (*tokens[:accepted], correction)

    def law_of_draft(self, prefix: Prefix) -> Floats:
        row = self.draft[prefix]
        if self.codec == "topk":
            return truncate(row, self.top_k)
        if self.codec == "ids":
            return np.eye(self.vocab_size)[int(np.argmax(row))]
        return row

    def known(self, row: Floats, token: int) -> Pairs:
        if self.codec == "id_prob":
            return Pairs(np.array([token]), row[[token]])
        if self.codec == "topk":
            return top_pairs(row, self.top_k)
        return Pairs(np.arange(self.vocab_size), row)

    def __call__(self, choices: Enumeration) -> Prefix:
        tokens: Prefix = ()
        known = []
        for position in range(self.gamma):
            row = self.law_of_draft(tokens)
            token = self.drafted(row, choices, position)
            if not self.keeps(row, token):
                break
            known.append(self.known(self.reported(row), token))
            tokens = (*tokens, token)
        rows = [self.target[tokens[:i]] for i in range(len(tokens) + 1)]
        split = SplitRule(self.top_k, 2) if self.codec == "id_prob" else None
        sent = [] if self.codec == "ids" else known
        outcome = verify(rows, tokens, sent, split, 0, choices)
        token = outcome.token
        if token is None:
            row = self.law_of_draft(tokens[: outcome.accepted])
            token = self.resolved(outcome, row, rows[outcome.accepted], choices)
        done = self.after(tokens, outcome.accepted, token)
        while len(done) < self.gamma + 1:
            done = (*done, choices.pick(Purpose.TARGET, len(done), self.target[done]))
        return done

    def resolved(
        self, outcome: rules.Outcome, draft: Floats, target: Floats, choices: Enumeration
    ) -> int:
        result = resolve(draft, outcome.top, outcome.tails, 0, outcome.accepted, choices)
        if result.token is not None:
            return result.token
        more = rules.draw_tails(target, outcome.top, 1, result.drawn, outcome.accepted, choices)
        result = resolve(draft, outcome.top, more, result.drawn, outcome.accepted, choices)
        if result.token is not None:
            return result.token
        # A tail draw is awaited: it is kept by the tail's share, or all begins anew.
        whole = np.maximum(target - draft, 0)
        tail_target, tail_residual = target.copy(), whole.copy()
        tail_target[outcome.top.ids] = tail_residual[outcome.top.ids] = 0
        if choices.choose(np.array([tail_residual.sum(), (tail_target - tail_residual).sum()])):
            return choices.choose(whole)
        return choices.choose(tail_residual)

    def deviation(self, source: type[Enumeration] = Enumeration) -> float:
        law = exact_law(self, source)
        worst = 0.0
        for tokens in itertools.product(range(self.vocab_size), repeat=self.gamma + 1):
            wanted = 1.0
            for i, token in enumerate(tokens):
                wanted *= float(self.target[tokens[:i]][token])
            worst = max(worst, abs(law.get(tokens, 0.0) - wanted))
        return worst


@pytest.mark.parametrize("codec", ["ids", "id_prob", "topk", "full"])
@pytest.mark.parametrize(("vocab_size", "gamma"), [(3, 1), (4, 1), (4, 2), (3, 3)])
def test_tokens_of_a_round_have_exactly_the_target_law(
    codec: str, vocab_size: int, gamma: int
) -> None:
    assert Round(vocab_size, gamma, codec, seed=vocab_size * 10 + gamma).deviation() < 1e-12


def test_an_empty_draft_is_plain_decoding() -> None:
    assert Round(3, 0, "full", seed=5).deviation() < 1e-12


class DropsLowConfidence(Round):
    def keeps(self, row: Floats, token: int) -> bool:
        return bool(row[token] > 0.2)


class KeepsTailAfterCorrection(Round):
    def after(self, tokens: Prefix, accepted: int, correction: int) -> Prefix:
        return (*tokens[:accepted], correction, *tokens[accepted + 1 :])


class DraftsUntruncated(Round):
    def law_of_draft(self, prefix: Prefix) -> Floats:
        return self.draft[prefix]

    def reported(self, row: Floats) -> Floats:
        return truncate(row, self.top_k)


class DraftsArgmaxReportsSoft(Round):
    def drafted(self, row: Floats, choices: Enumeration, position: int) -> int:
        return int(np.argmax(row))


def invert_ratio(target: float, draft: float) -> float:
    return min(1.0, draft / target) if target else 0.0


def residual_of_truncated_target(target: Floats, draft: Floats) -> Floats:
    row = np.maximum(truncate(target, 2) - draft, 0)
    return row if row.any() else target


def is_caught(deviation: Callable[[], float]) -> bool:
    """A mutant is caught by a refusal or by a law that is wrong by far more than rounding."""
    try:
        return deviation() > 1e-4
    except ValueError:
        return True


@pytest.mark.parametrize(
    ("name", "mutant", "codec"),
    [
        ("low_confidence_token_dropped", DropsLowConfidence, "full"),
        ("tail_kept_after_correction", KeepsTailAfterCorrection, "full"),
        ("draft_untruncated_but_tested_truncated", DraftsUntruncated, "topk"),
        ("argmax_draft_tested_soft", DraftsArgmaxReportsSoft, "full"),
    ],
)
def test_enumeration_catches_a_wrong_device(name: str, mutant: type[Round], codec: str) -> None:
    assert Round(4, 2, codec, seed=42).deviation() < 1e-12
    assert is_caught(mutant(4, 2, codec, seed=42).deviation), name


@pytest.mark.parametrize(
    ("name", "function", "replacement"),
    [
        ("ratio_inverted", "accept_probability", invert_ratio),
        ("residual_from_truncated_target", "residual", residual_of_truncated_target),
    ],
)
def test_enumeration_catches_a_wrong_server(
    monkeypatch: pytest.MonkeyPatch, name: str, function: str, replacement: Callable[..., object]
) -> None:
    monkeypatch.setattr(rules, function, replacement)
    assert is_caught(Round(4, 2, "full", seed=42).deviation), name


def test_enumeration_catches_a_uniform_that_is_reused() -> None:
    assert Round(4, 2, "full", seed=42).deviation(ReusedUniform) > 1e-3


weights = st.lists(st.floats(0, 1e6), min_size=2, max_size=12).filter(lambda w: sum(w) > 1e-3)


@given(weights)
def test_rows_are_float32_exact_and_sum_to_one(values: list[float]) -> None:
    row = to_lattice(np.array(values))
    assert all(Fraction(float(x)) * LATTICE % 1 == 0 for x in row)
    assert sum(Fraction(float(x)) for x in row) == 1
    assert np.array_equal(row.astype(np.float32).astype(np.float64), row)
    assert np.abs(row - np.array(values) / sum(values)).max() <= 1.0001 / LATTICE


@given(weights, weights)
@settings(max_examples=200)
def test_accepting_and_the_residual_add_up_to_the_target(
    left: list[float], right: list[float]
) -> None:
    size = min(len(left), len(right))
    target, draft = np.array(left[:size]), np.array(right[:size])
    if not target.sum() or not draft.sum():
        return
    target, draft = to_lattice(target), to_lattice(draft)
    accepted = np.array(
        [
            q * rules.accept_probability(p, q) if q else 0.0
            for p, q in zip(target, draft, strict=True)
        ]
    )
    rest = rules.residual(target, draft)
    rejected = 1 - accepted.sum()
    law = accepted + (rejected * rest / rest.sum() if rest.any() else 0)
    np.testing.assert_allclose(law, target, atol=1e-12)


def test_warping_keeps_the_softmax_to_lattice_precision() -> None:
    logits = np.random.default_rng(0).normal(0, 3, 500)
    wanted = np.exp(logits / 0.7) / np.exp(logits / 0.7).sum()
    assert np.abs(warp(logits, Sampling(0.7)) - wanted).max() < 2**-24


def test_top_k_then_top_p_keep_the_head_of_the_law() -> None:
    row = np.array([0.05, 0.5, 0.15, 0.2, 0.1])
    logits = np.log(row)
    assert np.flatnonzero(warp(logits, Sampling(top_k=2))).tolist() == [1, 3]
    assert np.flatnonzero(warp(logits, Sampling(top_p=0.69))).tolist() == [1, 3]
    assert np.flatnonzero(warp(logits, Sampling(top_p=0.71))).tolist() == [1, 2, 3]
    assert warp(logits, Sampling(temperature=0)).tolist() == [0, 1, 0, 0, 0]


def test_a_token_of_probability_zero_is_refused() -> None:
    row = np.array([0.5, 0.5])
    with pytest.raises(ValueError, match="token 0 was drafted with probability 0"):
        verify([row, row], [0], [Pairs(np.array([1]), np.ones(1))], None, 0, Enumeration(()))


def test_nothing_outside_the_top_k_gives_empty_tails() -> None:
    row = np.array([0.75, 0.25, 0.0])
    tails = rules.draw_tails(row, top_pairs(row, 2), 3, 0, 0, Enumeration(()))
    assert tails.probabilities.tolist() == [0, 0, 0]
    assert len(EMPTY_PAIRS) == 0
