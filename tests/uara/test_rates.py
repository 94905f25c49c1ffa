"""Rates on a shared band and by tables: who disturbs whom, and for how long."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from tests.uara.decisions import decide, physics_of, random_decision
from uara.network import Decision, NetworkState, Phase
from uara.prediction import downlink_rate_bps, predict, uplink_rate_bps

MakeState = Callable[..., NetworkState]

REUSE = {"link": {"interference": "reuse1"}}


def two_cells(make_state: MakeState, **changes: object) -> NetworkState:
    """Let one device decode in a cell and another one in the next, each heard in both."""
    given = {
        "phase": Phase.DECODING, "upload_bits": 0, "prompt_tokens": 100, "kv_tokens": 100,
        "tokens_so_far": 0, "server": [[0, 1]], "acceptance": 0.7, "power_max_w": 0.2,
        "gain": [[[1e-10, 3e-11], [3e-11, 1e-10]]], "rtt_s": 0.01, "draft_time_s": 0.02,
        "uplink_bandwidth_hz": 1e6, "downlink_bandwidth_hz": 1e6,
    }  # fmt: skip
    return make_state(1, 2, 2, **{**given, **changes})


def apart(state: NetworkState, length: int = 4) -> Decision:
    return replace(decide(state, length), server=torch.tensor([[0, 1]]))


def test_who_is_alone_in_a_shared_band_is_not_disturbed(make_state: MakeState) -> None:
    state = two_cells(make_state, phase=[[Phase.DECODING, Phase.IDLE]])
    shared, own = (predict(state, apart(state), physics_of(**x)) for x in (REUSE, {}))
    assert shared.uplink_bps[0, 0] == own.uplink_bps[0, 0]
    assert shared.downlink_bps[0, 0] == own.downlink_bps[0, 0]


def test_who_uploads_disturbs_all_the_time_by_hand(make_state: MakeState) -> None:
    phase = [[Phase.DECODING, Phase.UPLOADING]]
    state = two_cells(make_state, phase=phase, upload_bits=[[0, 1e6]])
    plan = predict(state, apart(state), physics_of(**REUSE))
    noise = 10 ** ((-174 + 5 - 30) / 10) + 3e-11 * 0.2 / 1e6
    rate = 1e6 * min(5.55, math.log2(1 + 1e-10 * 0.2 / (noise * 1e6) / 10**0.3))
    assert plan.uplink_bps[0, 0].item() == pytest.approx(rate, rel=1e-4)


def test_who_decodes_disturbs_while_drafts_are_sent(make_state: MakeState) -> None:
    state = two_cells(make_state)
    physics = physics_of(**REUSE)
    plan = predict(state, apart(state), physics)
    noise = 10 ** ((-174 + 5 - 30) / 10)
    share = plan.draft_uplink_s[0, 1].item() / plan.round_s[0, 1].item()
    heard = 3e-11 * 0.2 * share / 1e6
    rate = 1e6 * min(5.55, math.log2(1 + 1e-10 * 0.2 / ((noise + heard) * 1e6) / 10**0.3))
    assert 0 < share < 0.3
    assert plan.uplink_bps[0, 0].item() == pytest.approx(rate, rel=0.02)
    quiet = predict(state, apart(state, 0), physics)
    assert quiet.uplink_bps[0, 0] == predict(state, apart(state, 0), physics_of()).uplink_bps[0, 0]


@pytest.mark.parametrize("mode", ["sd", "psd", "async"])
@pytest.mark.parametrize("interference", ["orthogonal", "reuse1"])
def test_rates_asked_for_alone_are_those_of_the_prediction(
    make_state: MakeState, mode: str, interference: str
) -> None:
    link = {"interference": interference, "adaptation": "mcs"}
    physics = physics_of(mode=mode, link=link)
    state = make_state(4, 6, 3, seed=3)
    decision = replace(random_decision(state, physics, 3), mode=None)
    plan = predict(state, decision, physics)
    assert torch.equal(plan.uplink_bps, uplink_rate_bps(state, decision, physics))
    assert torch.equal(plan.downlink_bps, downlink_rate_bps(state, decision, physics))


@pytest.mark.parametrize("interference", ["orthogonal", "reuse1"])
def test_a_link_that_the_tables_do_not_reach_is_slow_but_not_endless(
    make_state: MakeState, interference: str
) -> None:
    physics = physics_of(link={"interference": interference, "adaptation": "mcs"})
    state = two_cells(make_state, gain=[[[1e-17, 1e-17], [1e-10, 1e-10]]])
    plan = predict(state, apart(state), physics)
    assert plan.uplink_bps[0].tolist()[0] == 1
    assert plan.uplink_bps[0, 1] > 1e5
    assert torch.isfinite(plan.remaining_s).all()
