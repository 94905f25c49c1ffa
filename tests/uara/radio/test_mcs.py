"""Link adaptation by tables: its bounds and order, and Sionna's own choice of MCS."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from uara.radio.mcs import (
    BLER_TARGET,
    DIRECTIONS,
    TABLE_PATH,
    Direction,
    effective_sinr_db,
    mcs_efficiency,
    mcs_table,
    subband_efficiency,
)

SWEEP_DB = torch.arange(-200, 500, dtype=torch.float64) / 10 + 0.037
SWEEP = 10 ** (SWEEP_DB / 10)

both_directions = pytest.mark.parametrize("direction", DIRECTIONS)


def test_rates_of_schemes_are_those_of_the_standard() -> None:
    # 3GPP TS 38.214 Table 5.1.3.1-1: MCS 3 QPSK 251, 10 16-QAM 340, 28 64-QAM 948 (of 1024).
    downlink = mcs_table("downlink").efficiency
    assert downlink[[3, 10, 28]].tolist() == pytest.approx(
        [2 * 251 / 1024, 4 * 340 / 1024, 6 * 948 / 1024]
    )
    # Table 6.1.4.1-1: MCS 17 64-QAM 466, 27 64-QAM 948.
    uplink = mcs_table("uplink").efficiency
    assert uplink[[3, 17, 27]].tolist() == pytest.approx(
        [2 * 251 / 1024, 6 * 466 / 1024, 6 * 948 / 1024]
    )


@both_directions
def test_schemes_of_one_rate_need_one_sinr_in_both_directions(direction: Direction) -> None:
    # The two channels carry the same codes, so equal rates must meet the target within 0.4 dB.
    other = DIRECTIONS[1 - DIRECTIONS.index(direction)]
    thresholds = []
    for name in (direction, other):
        table = mcs_table(name)
        first = (table.bler <= BLER_TARGET).double().argmax(1)
        rates = [round(rate, 3) for rate in table.efficiency.tolist()]
        thresholds.append(dict(zip(rates, table.sinr_db[first].tolist(), strict=True)))
    common = set(thresholds[0]) & set(thresholds[1]) - {0.0}
    assert len(common) >= 20
    for rate in common:
        assert thresholds[0][rate] == pytest.approx(thresholds[1][rate], abs=0.4), rate


@both_directions
def test_efficiency_never_falls_with_the_sinr(direction: Direction) -> None:
    assert (mcs_efficiency(SWEEP, direction).diff() >= 0).all()


@both_directions
def test_efficiency_stays_within_the_bound_of_shannon(direction: Direction) -> None:
    bound = torch.log2(1 + SWEEP)
    share = mcs_efficiency(SWEEP, direction) / bound
    assert (share < 0.9).all()
    # And the best codes in use do not fall far behind it, where there are schemes for the SINR.
    served = (SWEEP_DB > -2) & (SWEEP_DB < 18)
    assert (share[served] > 0.5).all()


@both_directions
def test_nothing_arrives_below_the_lowest_scheme(direction: Direction) -> None:
    table = mcs_table(direction)
    lowest = (table.bler <= BLER_TARGET).any(0).nonzero()[0, 0]
    threshold = 10 ** (float(table.sinr_db[lowest]) / 10)
    below, above = mcs_efficiency(torch.tensor([0.999, 1.001]) * threshold, direction)
    assert below == 0
    assert above >= 0.9 * 2 * 251 / 1024
    assert mcs_efficiency(torch.zeros(3), direction).tolist() == [0, 0, 0]


@both_directions
def test_strong_links_use_the_largest_scheme(direction: Direction) -> None:
    best = float(mcs_efficiency(torch.tensor(1e9), direction))
    assert 0.97 * 6 * 948 / 1024 < best <= 6 * 948 / 1024
    assert float(mcs_efficiency(torch.tensor(math.inf), direction)) == best


@both_directions
def test_errors_of_no_scheme_grow_with_the_sinr(direction: Direction) -> None:
    assert (mcs_table(direction).bler.diff(dim=1) <= 0).all()


@both_directions
def test_look_up_is_the_table_between_its_points(direction: Direction) -> None:
    table = mcs_table(direction)
    right = (table.best > 0).nonzero()[1, 0]  # the lowest MCS has no half
    middle_db = (table.sinr_db[right:] + table.sinr_db[right - 1 : -1]) / 2
    middle = (table.best[right:] + table.best[right - 1 : -1]) / 2
    found = mcs_efficiency(10 ** ((middle_db + 1e-6) / 10), direction)
    torch.testing.assert_close(found, middle)


def test_shape_and_precision_are_kept() -> None:
    sinr = torch.rand(2, 3, 4)
    assert mcs_efficiency(sinr, "uplink").shape == sinr.shape
    assert mcs_efficiency(sinr, "uplink").dtype == torch.float32
    turned = mcs_efficiency(sinr.double().transpose(0, 2), "uplink")
    assert turned.shape == (4, 3, 2)
    assert turned.dtype == torch.float64
    torch.testing.assert_close(turned.transpose(0, 2).float(), mcs_efficiency(sinr, "uplink"))


def test_flat_channel_has_its_own_sinr() -> None:
    sinr_db = torch.tensor([-20.0, 0.0, 13.7, 60.0])
    flat = (10 ** (sinr_db / 10)).unsqueeze(-1).expand(4, 8)
    for mcs in (3, 15, 27):
        found = effective_sinr_db(flat, torch.tensor(mcs))
        torch.testing.assert_close(found, sinr_db, atol=1e-5, rtol=0)


def test_effective_sinr_of_two_subbands_by_hand() -> None:
    # beta of MCS 10 is 3.97: -3.97 ln((exp(-1 / 3.97) + exp(-10 / 3.97)) / 2)
    by_hand = -3.97 * math.log((math.exp(-1 / 3.97) + math.exp(-10 / 3.97)) / 2)
    found = effective_sinr_db(torch.tensor([1.0, 10.0]), torch.tensor(10))
    assert float(found) == pytest.approx(10 * math.log10(by_hand), rel=1e-5)


def test_effective_sinr_lies_between_the_weakest_subband_and_the_mean() -> None:
    sinr = 10 ** (4 * torch.rand(50, 6, generator=torch.Generator().manual_seed(0)))
    effective = 10 ** (effective_sinr_db(sinr.unsqueeze(1), torch.arange(3, 28)) / 10)
    assert (effective >= sinr.amin(-1, keepdim=True) * (1 - 1e-5)).all()
    assert (effective <= sinr.mean(-1, keepdim=True) * (1 + 1e-5)).all()
    assert (effective.diff(dim=1) > 0).any()  # it depends on the MCS


@both_directions
def test_subbands_that_are_alike_carry_what_one_carries(direction: Direction) -> None:
    table = mcs_table(direction)
    on_grid = 10 ** ((table.sinr_db + 0.003) / 10)
    over_subbands = subband_efficiency(on_grid.unsqueeze(-1).expand(-1, 4), direction)
    torch.testing.assert_close(over_subbands, table.best)
    torch.testing.assert_close(mcs_efficiency(on_grid, direction)[:-1], table.best[:-1])


@both_directions
def test_a_weaker_subband_never_helps(direction: Direction) -> None:
    sinr = 10 ** (3 * torch.rand(200, 4, generator=torch.Generator().manual_seed(1)) - 0.5)
    weaker = sinr.clone()
    weaker[:, 0] /= 3
    assert (subband_efficiency(weaker, direction) <= subband_efficiency(sinr, direction)).all()


@pytest.mark.slow
@pytest.mark.parametrize(("direction", "category"), [("uplink", 0), ("downlink", 1)])
def test_sionna_adapts_alike(direction: Direction, category: int) -> None:
    from sionna.sys import InnerLoopLinkAdaptation, PHYAbstraction

    block_bits = mcs_table(direction).code_block_bits
    phy = PHYAbstraction(cbs_interp_min_max_delta=(block_bits, block_bits + 1, 1))
    adapt = InnerLoopLinkAdaptation(phy, bler_target=BLER_TARGET)
    sinr_db = torch.tensor([-2.0, 0.0, 3.0, 5.5, 8.5, 11.0, 14.0, 17.0, 19.0, 20.0, 25.0])
    sinr = 10 ** (sinr_db / 10)
    # 300 resource elements hold one code block at every MCS, so block and transport block are one.
    elements = torch.full(sinr.shape, 300, dtype=torch.int32)
    how = {"mcs_table_index": 1, "mcs_category": category}
    how["transform_precoding"] = direction == "uplink"
    mcs = adapt(sinr_eff=sinr, num_allocated_re=elements, **how)
    *_, error_rate, _ = phy(mcs, sinr_eff=sinr, num_allocated_re=elements, **how)
    table = mcs_table(direction)
    theirs = table.efficiency[mcs.long()].float() * (1 - error_rate)
    ours = mcs_efficiency(sinr * 1.0001, direction)
    # Where their choice has only just come into reach, the scheme below carries a little more.
    assert (ours >= theirs * 0.999).all()
    assert (ours <= theirs * 1.11).all()
    assert (ours / theirs - 1).abs().median() < 0.001


@pytest.mark.slow
def test_sionna_maps_subbands_alike() -> None:
    from sionna.sys import EESM

    sinr = 10 ** (2 * torch.rand(7, 6, generator=torch.Generator().manual_seed(2)) - 0.3)
    mcs = torch.tensor([3, 7, 11, 15, 19, 23, 27])
    theirs = EESM()(sinr[:, None, :, None, None], mcs[:, None].int(), mcs_table_index=1)
    ours = effective_sinr_db(sinr, mcs)
    torch.testing.assert_close(ours, 10 * theirs[:, 0].log10(), atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_the_shipped_table_is_what_baking_gives() -> None:
    from uara.radio.bake_mcs import bake

    baked = bake()
    with np.load(TABLE_PATH, allow_pickle=False) as shipped:
        assert sorted(shipped.files) == sorted(baked)
        for name in ("efficiency", "bler", "eesm_beta"):
            np.testing.assert_allclose(shipped[name], baked[name], rtol=1e-6)
