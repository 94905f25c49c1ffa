"""Rows that remember say what forgetful arrays say."""

from __future__ import annotations

import numpy as np
import pytest

from uara.decoding.randomness import Draws, Purpose
from uara.decoding.row import MAX_LISTED, Pairs, Row, outside, stairs, top_pairs
from uara.decoding.rules import to_lattice, truncate


def some_law(size: int, seed: int = 0) -> np.ndarray:
    return to_lattice(np.random.default_rng(seed).dirichlet(np.full(size, 0.3)))


@pytest.mark.parametrize("size", [5, 300, MAX_LISTED + 1])
def test_draws_from_a_row_are_those_from_the_bare_array(size: int) -> None:
    law = some_law(size)
    row = Row.of(law.copy())
    for seed in range(30):
        # By definition: the first index whose cumulated weight is above the number.
        number = Draws(seed).uniform(Purpose.DRAFT, 4)
        wanted = int(np.argmax(np.cumsum(law) > number))
        assert Draws(seed).pick(Purpose.DRAFT, 4, row) == wanted
        assert Draws(seed).pick(Purpose.DRAFT, 4, law) == wanted
    assert stairs(row) is stairs(row)


def test_what_a_row_remembers_depends_on_the_question() -> None:
    law = some_law(20)
    row = Row.of(law.copy())
    for count in (2, 5, 2):
        assert top_pairs(row, count) == top_pairs(law, count)
        np.testing.assert_array_equal(truncate(row, count), truncate(law, count))
        rest = outside(row, count)
        assert rest is not None
        assert float(rest.sum()) == 1 - sum(top_pairs(law, count).probabilities)
    assert top_pairs(row, 5) is top_pairs(row, 5)
    assert outside(row, 20) is None


def test_a_row_is_locked_and_what_is_made_of_it_remembers_nothing() -> None:
    row = Row.of(some_law(6))
    top_pairs(row, 2)
    with pytest.raises(ValueError, match="read-only"):
        row[0] = 1.0
    double = row * 2
    assert top_pairs(double, 2).probabilities[0] == 2 * row.max()
    assert stairs(double).total == 2.0


def test_pairs_find_a_token_in_a_list_and_in_a_whole_row() -> None:
    law = some_law(4)
    whole, listed = Pairs(range(4), law), Pairs((2, 0), (law.item(2), law.item(0)))
    assert whole.probability_of(2) == listed.probability_of(2) == law[2]
    assert (whole.probability_of(4), listed.probability_of(1)) == (0.0, 0.0)
