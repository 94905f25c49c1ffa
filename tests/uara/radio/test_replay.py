"""The walk along a bank and the filter on it, against their definitions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from uara.radio.replay import filtered_gain, walk

SLOT_S, FILTER_S = 0.5, 2.0


@pytest.fixture(scope="module")
def gain() -> NDArray[np.float32]:
    """Gains (W, T, M, E) of two worlds that jump by tens of decibels from slot to slot."""
    level_db = np.random.default_rng(3).uniform(-130, -80, (2, 9, 3, 2))
    return (10 ** (level_db / 10)).astype(np.float32)


def test_walk_goes_forth_and_back() -> None:
    assert walk(4).tolist() == [0, 1, 2, 3, 2, 1]


@pytest.mark.parametrize("num_slots", [1, 2, 3, 128])
def test_walk_never_jumps_however_often_it_repeats(num_slots: int) -> None:
    steps = np.abs(np.diff(np.tile(walk(num_slots), 3)))
    assert set(steps.tolist()) <= {0 if num_slots == 1 else 1}
    assert set(walk(num_slots).tolist()) == set(range(num_slots))


def test_filter_is_the_recursion_in_decibels(gain: NDArray[np.float32]) -> None:
    filtered = filtered_gain(gain, SLOT_S, FILTER_S)
    weight = 1 - math.exp(-SLOT_S / FILTER_S)
    forth_and_back = [*range(9), *range(7, 0, -1)]
    for world, device, server in np.ndindex(2, 3, 2):
        level_db = 0.0
        for step, slot in enumerate(forth_and_back):
            measured_db = 10 * math.log10(gain[world, slot, device, server])
            level_db = (1 - weight) * level_db + weight * measured_db if step else measured_db
            found_db = 10 * math.log10(filtered[world, step, device, server])
            assert found_db == pytest.approx(level_db, abs=1e-3)


def test_no_filter_gives_the_raw_gains(gain: NDArray[np.float32]) -> None:
    raw = filtered_gain(gain, SLOT_S, 0.0)
    assert torch.equal(raw[:, :9], torch.from_numpy(gain))
    assert torch.equal(raw[:, 9:], torch.from_numpy(gain[:, 7:0:-1].copy()))


def test_filter_leaves_constant_gains_alone() -> None:
    constant = np.full((1, 5, 1, 1), 1e-11, np.float32)
    torch.testing.assert_close(
        filtered_gain(constant, SLOT_S, FILTER_S), torch.full((1, 8, 1, 1), 1e-11)
    )


def test_filter_never_looks_ahead(gain: NDArray[np.float32]) -> None:
    later = gain.copy()
    later[:, 5:] *= 100
    before = filtered_gain(gain, SLOT_S, FILTER_S)
    after = filtered_gain(later, SLOT_S, FILTER_S)
    assert torch.equal(before[:, :5], after[:, :5])
    assert (after[:, 5:9] > before[:, 5:9]).all()
