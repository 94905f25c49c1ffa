"""The latency of a decision, reckoned by hand for one device, and its invariants for many."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import fields, replace
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.uara.decisions import UP_HZ, decide, physics_of, random_decision
from uara.network import Decision, NetworkState, Phase
from uara.prediction import (
    Physics,
    PhysicsConfig,
    Prediction,
    predict,
)
from uara.serving.modes import MODE_INDEX, MODES

MakeState = Callable[..., NetworkState]
HORIZONS: tuple[Literal["slot", "request"], ...] = ("slot", "request")
BOTH_HORIZONS = pytest.mark.parametrize("horizon", HORIZONS)

FORWARD_S, TOKEN_S, CONTEXT_S, DRAFT_S, RTT_S = 0.145, 0.28e-3, 0.2e-6, 0.02, 0.03
GAIN, POWER_W, DOWN_HZ = 1e-11, 0.2, 4e6


@pytest.fixture(scope="module")
def lonely(make_state: MakeState) -> NetworkState:
    """One device that has 1 Mbit of its prompt to send, and one server."""
    return make_state(
        phase=Phase.UPLOADING, upload_bits=1e6, prompt_tokens=2000, tokens_so_far=0,
        expected_remaining_tokens=80, acceptance=0.7, server=-1, kv_tokens=0, gain=GAIN,
        draft_time_s=DRAFT_S, power_max_w=POWER_W, uplink_bandwidth_hz=UP_HZ,
        downlink_bandwidth_hz=DOWN_HZ, downlink_power_w=2.0, rtt_s=RTT_S,
        forward_fixed_s=FORWARD_S, forward_per_row_s=0.0, forward_per_token_s=TOKEN_S,
        forward_per_context_s=CONTEXT_S, reachable=True,
    )  # fmt: skip


def shannon_bps(power_w: float, bandwidth_hz: float, noise_figure_db: float) -> float:
    noise_w = 10 ** ((-174 + noise_figure_db - 30) / 10) * bandwidth_hz
    snr = GAIN * power_w / noise_w / 10**0.3
    return bandwidth_hz * min(5.55, math.log2(1 + snr))


@BOTH_HORIZONS
def test_round_of_speculation_by_hand(
    lonely: NetworkState, physics: Physics, horizon: Literal["slot", "request"]
) -> None:
    gamma = 4
    plan = predict(lonely, decide(lonely, gamma), physics, horizon)
    # Top-32 rows of a vocabulary of two-byte ids: 2 + 32 * (2 + 4) bytes a token; see the frames.
    draft_bits = 8 * ((20 + 2) + (gamma * 2 + 2) + (gamma * 32 * 6 + 3) + 6 + 40)
    verdict_bits = 8 * ((31 + 2) + 2 + 6 + 40)
    uplink_bps = shannon_bps(POWER_W, UP_HZ, 5)
    draft_uplink_s = draft_bits / uplink_bps
    downlink_s = verdict_bits / shannon_bps(2.0, DOWN_HZ, 9)
    verify_s = FORWARD_S + (gamma + 1) * TOKEN_S + 2000 * CONTEXT_S
    round_s = gamma * DRAFT_S + draft_uplink_s + verify_s + downlink_s + RTT_S
    tokens = sum(0.7**k for k in range(gamma + 1))
    assert plan.uplink_bps.item() == pytest.approx(uplink_bps, rel=1e-4)
    assert plan.upload_s.item() == pytest.approx(1e6 / uplink_bps, rel=1e-4)
    assert plan.draft_uplink_s.item() == pytest.approx(draft_uplink_s, rel=1e-4)
    assert plan.wait_s.item() == 0
    assert plan.verify_s.item() == pytest.approx(verify_s, rel=1e-4)
    assert plan.downlink_s.item() == pytest.approx(downlink_s, rel=1e-4)
    assert plan.round_s.item() == pytest.approx(round_s, rel=1e-4)
    assert plan.tokens_per_round.item() == pytest.approx(tokens, rel=1e-4)
    assert plan.tpot_s.item() == pytest.approx(round_s / tokens, rel=1e-4)


@BOTH_HORIZONS
@pytest.mark.parametrize("decision", [(0, None), (3, "server_ar")])
def test_plain_decoding_by_hand(
    lonely: NetworkState,
    physics: Physics,
    horizon: Literal["slot", "request"],
    decision: tuple[int, str | None],
) -> None:
    plan = predict(lonely, decide(lonely, decision[0], mode=decision[1]), physics, horizon)
    # One pass with one new token after the other; streaming the tokens costs nothing.
    verify_s = FORWARD_S + TOKEN_S + 2000 * CONTEXT_S
    assert plan.tpot_s.item() == pytest.approx(verify_s, rel=1e-5)
    assert plan.draft_bits.item() == 0


def test_prefill_of_a_device_alone_takes_the_time_of_its_tokens(
    lonely: NetworkState, physics: Physics
) -> None:
    plan = predict(lonely, decide(lonely, 4), physics)
    assert plan.prefill_tokens.item() == 2000
    assert plan.prefill_s.item() == pytest.approx(2000 * TOKEN_S, rel=1e-5)


@BOTH_HORIZONS
def test_remaining_time_is_the_sum_of_its_parts(
    make_state: MakeState, physics: Physics, horizon: Literal["slot", "request"]
) -> None:
    state = make_state(20, 5, 3, seed=2)
    plan = predict(state, decide(state, 4, bandwidth_hz=1e5), physics, horizon)
    parts = plan.upload_s + plan.prefill_s + plan.interference_s
    decoding_s = state.expected_remaining_tokens * plan.tpot_s
    torch.testing.assert_close(plan.remaining_s, parts + decoding_s)
    assert (plan.interference_s > 0).any() == (horizon == "request")


def test_handover_charges_the_whole_context(make_state: MakeState, physics: Physics) -> None:
    state = make_state(
        1, 1, 2, phase=Phase.DECODING, prompt_tokens=1000, tokens_so_far=50, kv_tokens=1050,
        upload_bits=0, server=[[1]], forward_fixed_s=FORWARD_S, forward_per_token_s=TOKEN_S,
    )  # fmt: skip
    stay = decide(state, 4)
    stay = Decision(state.server, stay.bandwidth_hz, stay.power_w, stay.draft_length)
    plan = predict(state, stay, physics)
    assert (plan.handover.item(), plan.prefill_tokens.item(), plan.prefill_s.item()) == (
        False,
        0,
        0,
    )
    plan = predict(state, decide(state, 4), physics)
    assert (plan.handover.item(), plan.prefill_tokens.item()) == (True, 1050)
    assert plan.prefill_s.item() == pytest.approx(1050 * TOKEN_S, rel=1e-5)


def test_first_choice_of_a_server_is_no_handover(lonely: NetworkState, physics: Physics) -> None:
    assert not predict(lonely, decide(lonely, 4), physics).handover.any()


@BOTH_HORIZONS
def test_device_alone_ignores_servers_and_radio(
    make_state: MakeState, physics: Physics, horizon: Literal["slot", "request"]
) -> None:
    state = make_state(20, 4, 3, seed=4)
    slow = state.with_(forward_fixed_s=9 * state.forward_fixed_s, gain=0.01 * state.gain)
    for view in (state, slow):
        plan = predict(view, decide(view, 4, mode="device_only"), physics, horizon)
        torch.testing.assert_close(plan.tpot_s, state.draft_time_s)
        torch.testing.assert_close(
            plan.remaining_s, state.expected_remaining_tokens * state.draft_time_s
        )
        assert not plan.handover.any()
        assert (plan.server_busy == 0).all()


def test_device_that_decodes_alone_does_not_load_the_server(
    make_state: MakeState, physics: Physics
) -> None:
    state = make_state(1, 2, 1, phase=Phase.DECODING, prompt_tokens=500, tokens_so_far=0,
                       kv_tokens=500, server=0, upload_bits=0)  # fmt: skip
    mixed = decide(state, 4, mode="sd")
    assert mixed.mode is not None
    mixed.mode[0, 1] = MODE_INDEX["device_only"]
    idle = state.with_(phase=torch.tensor([[Phase.DECODING, Phase.IDLE]]))
    beside_local, alone = (predict(view, mixed, physics, "request") for view in (state, idle))
    assert beside_local.verify_s[0, 0].item() == pytest.approx(alone.verify_s[0, 0].item())
    assert beside_local.wait_s[0, 0].item() == 0


def test_perfect_network_leaves_the_time_of_drafting_and_verifying(
    lonely: NetworkState,
) -> None:
    link = PhysicsConfig().link.model_copy(update={"spectral_efficiency_max": 1e9})
    perfect = Physics.of(PhysicsConfig(link=link))
    here = lonely.with_(
        gain=torch.full_like(lonely.gain, 1e30),
        rtt_s=torch.zeros_like(lonely.rtt_s),
        uplink_bandwidth_hz=torch.full_like(lonely.rtt_s, 1e12),
        downlink_bandwidth_hz=torch.full_like(lonely.rtt_s, 1e12),
    )
    plan = predict(here, decide(here, 5, bandwidth_hz=1e12), perfect)
    local_s = 5 * DRAFT_S + FORWARD_S + 6 * TOKEN_S + 2000 * CONTEXT_S
    assert plan.round_s.item() == pytest.approx(local_s, rel=1e-5)
    assert plan.upload_s.item() < 1e-6


def test_prefill_of_others_takes_turns_and_slows_decoding(
    make_state: MakeState, physics: Physics
) -> None:
    common = {"prompt_tokens": 1000, "tokens_so_far": 0, "upload_bits": 0, "server": 0,
              "foreign_prefill_tokens": 0, "expected_remaining_tokens": 50}  # fmt: skip
    one = make_state(1, 1, 1, phase=Phase.PREFILLING, kv_tokens=0, **common)
    two = make_state(1, 2, 1, phase=Phase.PREFILLING, kv_tokens=0, **common)
    alone, shared = (predict(state, decide(state, 4), physics) for state in (one, two))
    torch.testing.assert_close(shared.prefill_s, 2 * alone.prefill_s.expand(1, 2))

    decoding = make_state(1, 1, 1, phase=Phase.DECODING, kv_tokens=1000, **common)
    crowded = decoding.with_(foreign_prefill_tokens=torch.full((1, 1), 5000.0))
    calm, slowed = (predict(state, decide(state, 4), physics) for state in (decoding, crowded))
    chunk_s = 512 * decoding.forward_per_token_s
    torch.testing.assert_close(slowed.verify_s, calm.verify_s + chunk_s)


def test_prefilled_request_is_not_slowed_by_its_own_prefill(
    make_state: MakeState, physics: Physics
) -> None:
    common = {"prompt_tokens": 1000, "tokens_so_far": 0, "upload_bits": 0, "server": 0}
    before = make_state(1, 1, 1, phase=Phase.PREFILLING, kv_tokens=600, **common)
    after = make_state(1, 1, 1, phase=Phase.DECODING, kv_tokens=1000, **common)
    plans = [predict(state, decide(state, 4), physics) for state in (before, after)]
    torch.testing.assert_close(plans[0].tpot_s, plans[1].tpot_s)


# Alone the sum of a sequential round can only shrink; where phases of passes matter, a device that
# comes back earlier may now and then wait longer for a pass of others.
@pytest.mark.parametrize(
    ("mode", "devices", "slack"),
    [
        ("sd", 1, 1e-3),
        ("server_ar", 4, 1e-3),
        ("sd", 4, 0.02),
        ("psd", 1, 5e-3),
        ("async", 1, 5e-3),
    ],
)
@settings(max_examples=15)
@given(
    seed=st.integers(0, 10_000),
    factor=st.floats(1.05, 20),
    name=st.sampled_from(["bandwidth_hz", "power_w"]),
    horizon=st.sampled_from(HORIZONS),
)
def test_more_bandwidth_or_power_never_slows_its_owner(
    make_state: MakeState,
    mode: str,
    devices: int,
    slack: float,
    seed: int,
    factor: float,
    name: str,
    horizon: Literal["slot", "request"],
) -> None:
    state = make_state(4, devices, 2, seed=seed)
    physics = physics_of(mode=mode, window=2)
    decision = replace(random_decision(state, physics, seed), mode=None)
    little = {"bandwidth_hz": 2e4, "power_w": 0.02}[name]
    first = torch.arange(devices) == 0
    poor, rich = (
        replace(decision, **{name: torch.where(first, value, getattr(decision, name))})
        for value in (little, factor * little)
    )
    slow, fast = (predict(state, d, physics, horizon).remaining_s[:, 0] for d in (poor, rich))
    assert (fast <= slow * (1 + slack) + 1e-5).all()


@settings(max_examples=20)
@given(st.integers(0, 10_000), st.permutations(range(5)), st.sampled_from(HORIZONS))
def test_devices_may_be_numbered_at_will(
    make_state: MakeState,
    relabel: Callable[[NetworkState, torch.Tensor], NetworkState],
    physics: Physics,
    seed: int,
    order: list[int],
    horizon: Literal["slot", "request"],
) -> None:
    index = torch.tensor(order)
    state = make_state(3, 5, 3, seed=seed)
    decision = random_decision(state, physics, seed)
    moved = Decision(
        *(getattr(decision, name)[:, index] for name in
          ("server", "bandwidth_hz", "power_w", "draft_length", "mode"))
    )  # fmt: skip
    here = predict(state, decision, physics, horizon)
    there = predict(relabel(state, index), moved, physics, horizon)
    for field in fields(Prediction):
        old, new = getattr(here, field.name), getattr(there, field.name)
        old = old if field.name == "server_busy" else old[:, index]
        torch.testing.assert_close(new, old, rtol=2e-4, atol=1e-5, msg=field.name)


@settings(max_examples=30)
@given(
    st.integers(0, 10_000),
    st.sampled_from([0.0, 1.0, 1e8]),
    st.sampled_from([0.0, 1e-30, 1e-15, 1.0]),
    st.sampled_from(HORIZONS),
)
def test_nothing_is_infinite_or_undefined(
    make_state: MakeState,
    physics: Physics,
    seed: int,
    bandwidth_hz: float,
    gain: float,
    horizon: Literal["slot", "request"],
) -> None:
    state = make_state(2, 4, 3, seed=seed)
    if gain > 0 or seed % 2:
        state = state.with_(gain=torch.full_like(state.gain, gain))
    random = random_decision(state, physics, seed)
    hertz = torch.full_like(random.bandwidth_hz, bandwidth_hz)
    decision = Decision(random.server, hertz, random.power_w, random.draft_length, random.mode)
    plan = predict(state, decision, physics, horizon)
    for field in fields(Prediction):
        assert torch.isfinite(getattr(plan, field.name)).all(), field.name
    assert (plan.tpot_s > 0).all()


LOSSLESS = ("sd", "server_ar", "psd", "async", "auto")


@pytest.mark.parametrize("mode", LOSSLESS)
def test_no_draft_is_plain_server_decoding_whatever_the_task_says(
    make_state: MakeState, mode: str
) -> None:
    state = make_state(6, 4, 2, seed=8)
    plans = [predict(state, decide(state, 0), physics_of(mode=m)) for m in (mode, "server_ar")]
    for field in fields(Prediction):
        assert torch.equal(*(getattr(plan, field.name) for plan in plans)), field.name


@pytest.mark.parametrize("mode", LOSSLESS)
def test_nothing_accepted_gives_one_token_a_round(make_state: MakeState, mode: str) -> None:
    state = make_state(6, 4, 2, seed=9, acceptance=0.0)
    plan = predict(state, decide(state, 3), physics_of(mode=mode))
    torch.testing.assert_close(plan.tokens_per_round, torch.ones(6, 4))


@pytest.mark.parametrize(
    ("mode", "tpot_s"),
    [
        ("sd", (5 * DRAFT_S + FORWARD_S + 6 * TOKEN_S) / 6),
        ("psd", (FORWARD_S + 5 * TOKEN_S) / 5),
        ("async", (FORWARD_S + 5 * TOKEN_S) / 5),
    ],
)
def test_perfect_network_leaves_local_speculation_in_every_mode(
    lonely: NetworkState, mode: str, tpot_s: float
) -> None:
    physics = physics_of(mode=mode, link={"spectral_efficiency_max": 1e9})
    here = lonely.with_(
        acceptance=torch.ones_like(lonely.acceptance),
        gain=torch.full_like(lonely.gain, 1e30),
        rtt_s=torch.zeros_like(lonely.rtt_s),
        forward_per_context_s=torch.zeros_like(lonely.rtt_s),
        downlink_bandwidth_hz=torch.full_like(lonely.rtt_s, 1e12),
    )
    plan = predict(here, decide(here, 5, bandwidth_hz=1e12), physics)
    assert plan.tpot_s.item() == pytest.approx(tpot_s, rel=0.02)


def test_auto_serves_each_device_by_the_mode_that_is_fastest_for_it(make_state: MakeState) -> None:
    state = make_state(20, 4, 3, seed=5, phase=Phase.DECODING, upload_bits=0)
    state = state.with_(rtt_s=torch.linspace(0, 0.2, 60).view(20, 3))
    decision = decide(state, 4)
    auto = predict(state, decision, physics_of(mode="auto"), "request")
    names = LOSSLESS[:-1]
    tpot_s = torch.stack(
        [predict(state, decision, physics_of(mode=m), "request").tpot_s for m in names]
    )
    best = torch.tensor([MODE_INDEX[name] for name in names])[tpot_s.argmin(0)]
    assert torch.equal(auto.mode, best)
    assert len(best.unique()) > 1


def test_modes_that_nobody_uses_are_not_worked_out(
    make_state: MakeState, physics: Physics, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in set(MODES) - {"sd", "server_ar"}:
        monkeypatch.setitem(MODES, name, None)
    state = make_state(2, 3, 2)
    predict(state, decide(state, 3), physics)
    predict(state, decide(state, 3, mode="sd"), physics)


def test_a_window_of_one_leaves_the_stored_hashes_alone() -> None:
    assert "window" not in PhysicsConfig().model_dump()
    assert PhysicsConfig(window=2).model_dump()["window"] == 2
    rule = PhysicsConfig(codec="ids", ids_rule="gumbel")
    assert rule.model_dump().keys() - PhysicsConfig().model_dump().keys() == {"ids_rule"}
    assert not PhysicsConfig().model_dump().keys() & {"probability_bits", "lossy"}


# What passes are given, and what is accepted


@pytest.mark.parametrize(
    ("mode", "length", "accepted", "given"),
    [
        ("sd", 1, 0.5, 2),
        ("sd", 3, 0.5 + 0.25 + 0.125, 4),
        ("server_ar", 3, 0, 1),
        ("device_only", 3, 0, 0),
        # A block of one is judged beforehand: one token per pass, accepted half of the time.
        ("psd", 1, 0.5, 1),
        ("async", 1, 0.5, 1),
        ("async", 3, 0.5 + 0.25 + 0.125, None),
    ],
)
def test_a_round_accepts_and_feeds_what_its_mode_does(
    make_state: MakeState, mode: str, length: int, accepted: float, given: float | None
) -> None:
    state = make_state(1, 1, 1, phase=Phase.DECODING, upload_bits=0, prompt_tokens=100,
                       kv_tokens=100, tokens_so_far=0, server=0, acceptance=0.5)  # fmt: skip
    plan = predict(state, decide(state, length), physics_of(mode=mode))
    assert plan.accepted_per_round.item() == pytest.approx(accepted, rel=1e-5)
    if given is not None:
        assert plan.new_tokens.item() == pytest.approx(given, rel=1e-3)


def test_void_drafts_ride_on_passes(make_state: MakeState) -> None:
    state = make_state(1, 1, 1, phase=Phase.DECODING, upload_bits=0, prompt_tokens=100,
                       kv_tokens=100, tokens_so_far=0, server=0, acceptance=0.5,
                       draft_time_s=1e-3, gain=1e-8)  # fmt: skip
    once, ahead = (
        predict(state, decide(state, 4), physics_of(mode="async", window=window)).new_tokens.item()
        for window in (1, 4)
    )
    assert ahead > once + 0.5
