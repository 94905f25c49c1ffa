"""Joules from times and powers, and in the form of the first paper, by hand."""

from __future__ import annotations

import pytest
import torch

from uara.serving.energy import EnergyConfig, airtime_energy_j, paper1_energy_j, server_energy_j


def row(*values: float) -> torch.Tensor:
    return torch.tensor([values])


def test_transmitting_costs_the_amplifier_and_drafting_the_processor() -> None:
    # 0.2 W radiated at 40 % for 3 s is 1.5 J; 4 W for half a second is 2 J.
    joules = airtime_energy_j(row(0.2, 0.2), row(3.0, 0.0), 0.4, row(0.0, 0.5), row(4.0, 4.0))
    assert joules.tolist() == [pytest.approx([1.5, 2.0])]


def test_first_paper_counts_flops_and_the_share_of_the_band() -> None:
    config = EnergyConfig(form="paper1", joules_per_flop=1e-9, band_weight=2.6)
    # 100 tokens of 274 MFLOP; a quarter of the band at 0.2 W over a slot of 0.5 s
    joules = paper1_energy_j(
        row(0.25, 0.25), row(0.2, 0.2), row(0.5, 0.0), row(100.0, 0.0), row(274e6, 274e6), config
    )
    assert joules.tolist() == [pytest.approx([27.4 + 2.6 * 0.25 * 0.2 * 0.5, 0.0])]


def test_server_computes_no_longer_than_the_slot() -> None:
    server = torch.tensor([[0, 0, 1]])
    joules = server_energy_j(row(0.1, 0.2, 0.9), server, row(0.2, 0.8), row(100.0, 10.0), 0.5)
    # 0.1 s of decoding and 0.3 s of prefill; the other one is busy all the time
    assert joules.tolist() == [pytest.approx([100 * 0.4, 10 * 0.5])]
