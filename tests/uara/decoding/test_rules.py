"""The law of draft and verify, by algebra and by enumeration of every possibility."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from benchmarks.exactness_mutants import MUTANTS
from benchmarks.exactness_trials import (
    CASES,
    Enumeration,
    Tables,
    Trial,
    exact_law,
    joint_race,
    total_variation,
)
from uara.decoding import rules
from uara.decoding.contract import Contract
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import Draws
from uara.decoding.row import EMPTY_PAIRS, Pairs, top_pairs
from uara.decoding.rules import (
    LATTICE,
    Sampling,
    lost_residual,
    residual,
    round_up,
    to_lattice,
    verify,
    warp,
)

Floats = NDArray[np.float64]
ROUNDED = ("maxc / id_prob, 16 bits", "maxc / id_prob, 8 bits")


def deviation(contract: Contract, vocab_size: int, lengths: tuple[int, ...]) -> float:
    tables = Tables.draw(vocab_size, seed=vocab_size, concentration=0.8)
    trial = Trial(contract, tables, tokens=lengths[0] + 1, lengths=lengths)
    law = exact_law(trial)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    return total_variation(law, trial.target_law())


@pytest.mark.parametrize("name", [name for name in CASES if name not in ROUNDED])
@pytest.mark.parametrize(("vocab_size", "length"), [(4, 1), (3, 2)])
def test_tokens_of_a_round_have_exactly_the_target_law(
    name: str, vocab_size: int, length: int
) -> None:
    assert deviation(CASES[name], vocab_size, (length, 0)) < 1e-12


@pytest.mark.parametrize("name", ROUNDED)
def test_probabilities_rounded_up_keep_the_law_exactly(name: str) -> None:
    assert deviation(CASES[name], 4, (1, 0)) < 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", CASES)
def test_tokens_of_a_long_round_have_exactly_the_target_law(name: str) -> None:
    is_split = name.startswith("maxc / id_prob")
    assert deviation(CASES[name], 3, (2, 0) if is_split else (3, 0)) < 1e-12


def test_rounds_one_after_another_keep_the_law() -> None:
    assert deviation(CASES["maxc / topk"], 3, (1, 1)) < 1e-12
    assert deviation(CASES["onehot / ids"], 3, (2, 1, 1)) < 1e-12


def test_an_empty_draft_is_plain_decoding() -> None:
    assert deviation(CASES["maxc / full"], 3, (0,)) < 1e-12


@pytest.mark.parametrize("name", [name for name, mutant in MUTANTS.items() if mutant.choices])
def test_enumeration_sees_a_defect(name: str) -> None:
    lengths = (1, 0) if "rounded" in name else (2, 0)
    assert MUTANTS[name].distance(Tables.draw(3), lengths) > 3e-3, name


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
        verify([row, row], [0], [Pairs((1,), (1.0,))], None, 0, Enumeration(()))


def test_nothing_outside_the_top_k_gives_empty_tails() -> None:
    row = np.array([0.75, 0.25, 0.0])
    tails = rules.draw_tails(row, top_pairs(row, 2), 3, 0, 0, Enumeration(()))
    assert tails.probabilities == (0, 0, 0)
    assert len(EMPTY_PAIRS) == 0


laws = st.lists(st.floats(0, 1e3), min_size=5, max_size=5).filter(lambda w: sum(w) > 1e-2)


@given(laws, laws, st.sampled_from([32, 16, 8]))
@settings(max_examples=200)
def test_any_rounding_up_adds_up_to_the_target(
    left: list[float], right: list[float], bits: int
) -> None:
    target, draft = to_lattice(np.array(left)), to_lattice(np.array(right))
    sent = round_up(draft, bits)
    passed = np.array(
        [
            q * rules.accept_probability(p, r) if q else 0.0
            for p, q, r in zip(target, draft, sent, strict=True)
        ]
    )
    rest = residual(target, draft, sent)
    assert (rest >= 0).all()
    # What passes and what is left are the target, token by token.
    np.testing.assert_allclose(passed + rest, target, atol=1e-15)


@given(laws)
def test_rounding_up_is_no_less_and_next_to_it(values: list[float]) -> None:
    row = to_lattice(np.array(values))
    for bits, relative in ((16, 2**-10), (8, 2**-2)):
        sent = round_up(row, bits)
        least = 2.0 ** (-24 if bits == 16 else -16)
        assert (sent >= row).all()
        assert (sent <= row * (1 + relative) + least * (row > 0)).all()
        assert (sent[row == 0] == 0).all()
    assert round_up(row, 32) is row


def test_a_cut_residual_is_off_by_the_mass_outside_the_top_k() -> None:
    target, draft = np.array([0.4, 0.3, 0.2, 0.1]), np.array([0.7, 0.1, 0.05, 0.15])
    # Residual (0, .2, .15, 0): the Top-2 (tokens 0 and 1) holds .2 of .35.
    assert lost_residual(target, draft, draft, 2) == pytest.approx(0.15 / 0.35)
    assert lost_residual(target, draft, draft, 3) == pytest.approx(0.0)
    contract = Contract(RuleCode.ID_PROB, Sampling(), 2, 1, is_lossy=True)
    logits = np.broadcast_to(np.log(target), (4, 4, 4)), np.broadcast_to(np.log(draft), (4, 4, 4))
    trial = Trial(contract, Tables(*logits), tokens=1, lengths=(1,))
    off = total_variation(exact_law(trial), trial.target_law())
    # Given a rejection, times the probability of one: .15 in all.
    assert off == pytest.approx(0.15, abs=1e-6)


def test_a_lossy_residual_without_any_mass_falls_back_to_the_top_k() -> None:
    target, draft = np.array([0.5, 0.3, 0.2]), np.array([0.6, 0.4, 0.0])
    contract = Contract(RuleCode.ID_PROB, Sampling(), 2, 1, is_lossy=True)
    result = contract.resolve(draft, top_pairs(target, 2), EMPTY_PAIRS, 0, 0, Draws(1))
    assert result.token in (0, 1)
    assert lost_residual(target, draft, draft, 2) == pytest.approx(1.0)


@given(laws, laws)
@settings(max_examples=60, deadline=None)
def test_two_races_under_one_noise_have_the_laws_they_are_of(
    left: list[float], right: list[float]
) -> None:
    first, second = to_lattice(np.array(left)), to_lattice(np.array(right))
    joint = joint_race(first, second)
    np.testing.assert_allclose(joint.sum(1), first, atol=1e-9)
    np.testing.assert_allclose(joint.sum(0), second, atol=1e-9)


def test_races_agree_as_often_as_integrated() -> None:
    first, second = to_lattice(np.array([5.0, 3, 1, 1])), to_lattice(np.array([1.0, 4, 4, 1]))
    drawn = np.zeros((4, 4))
    for seed in range(4000):
        draws = Draws(seed)
        i = draws.race(rules.Purpose.DRAFT, 3, first)
        drawn[i, draws.race(rules.Purpose.TARGET, 3, second)] += 1 / 4000
    assert np.abs(drawn - joint_race(first, second)).max() < 0.03


def test_coupled_output_does_not_depend_on_the_draft() -> None:
    contract = CASES["gumbel / ids"]
    tables = Tables.draw()
    other = Tables(tables.target, Tables.draw(seed=9).draft)
    for seed in range(60):
        plain = Trial(contract, tables, tokens=9, lengths=(0,))(Draws(seed))
        for drafted, lengths in ((tables, (3, 1)), (other, (1, 4))):
            assert Trial(contract, drafted, tokens=9, lengths=lengths)(Draws(seed)) == plain
