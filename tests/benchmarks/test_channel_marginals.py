"""Differences of quantiles are those that were put in, and banks of other worlds are refused."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.channel_marginals import PERCENT, compare, difference_interval
from uara.errors import UserError
from uara.radio.bank import BankConfig, ChannelBank


def bank(worlds: int, shift_db: float, backend: str) -> ChannelBank:
    config = BankConfig(
        num_devices=4, num_servers=2, num_slots=8, train=0, tuning=0, validation=0,
        evaluation=worlds, backend=backend,
    )  # fmt: skip
    shape = (worlds, 8, 4)
    gain_db = np.random.default_rng(1).normal(-100 + shift_db, 10, (*shape, 2))
    return ChannelBank(
        gain_db=gain_db.astype(np.float16),
        position_m=np.zeros((*shape, 2), np.float32),
        velocity_m_s=np.zeros((*shape, 2), np.float32),
        is_los=np.ones((*shape, 2), bool),
        site_position_m=np.zeros((2, 2), np.float32),
        config=config,
        sionna_version="1.2.2",
        build_s=1.0,
    )


def test_a_shift_of_all_gains_shifts_all_quantiles():
    first, second = (bank(5, x, "sionna").gain_db.astype(float) for x in (0.0, 3.0))
    low, high = difference_interval(first, second)
    assert len(low) == len(high) == len(PERCENT)
    np.testing.assert_allclose(low, 3.0, atol=0.2)
    np.testing.assert_allclose(high, 3.0, atol=0.2)


def test_the_table_has_a_row_per_quantile_and_needs_equal_worlds():
    first, second = bank(5, 0.0, "sionna"), bank(5, 3.0, "tensorflow")
    assert compare(first, second).row_count == len(PERCENT)
    with pytest.raises(UserError, match="5 and 4 worlds"):
        compare(first, bank(4, 0.0, "tensorflow"))
