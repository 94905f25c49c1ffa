"""The event judge obeys the laws that can be worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import pytest

from tests.reference.event_judge import DeviceFigures, Setting, judge
from tests.reference.judge_device import DeviceSpec, Mode
from tests.reference.judge_engine import ServerSpec

SPECULATIVE: tuple[Mode, ...] = ("sd", "psd", "async")
SERVER = ServerSpec(fixed_s=0.1, per_row_s=0.002, per_token_s=0.001, per_context_s=1e-6)
# Every term counts: links, delays, frames. A draft of 3 takes 0.06 s and 0.02 s on the radio.
LINKED = DeviceSpec(
    draft_length=3,
    alpha=1.0,
    draft_token_s=0.02,
    uplink_bps=1e4,
    downlink_bps=2e4,
    rtt_s=0.03,
    prompt_tokens=100,
    output_tokens=21,
    prompt_bits=5000.0,
    draft_bits=lambda gamma: 50.0 + 50.0 * gamma,
    accept_bits=100.0,
    reject_bits=400.0,
    token_bits=60.0,
)
# The time of one pass and no more: no frames, no prompt to speak of, answers long.
BARE = DeviceSpec(draft_length=4, draft_token_s=0.02, prompt_tokens=1, output_tokens=1000)
PASS_S = ServerSpec(fixed_s=0.08)


def figures_of(device: DeviceSpec, server: ServerSpec = PASS_S, **setting: Any) -> DeviceFigures:
    """Judge one device alone, by default with fixed times."""
    given: dict[str, Any] = {"requests": 4, "warmup": 0.25, "jitter": 0.0, **setting}
    return judge(Setting((device,), (server,), **given)).devices[0]


def busy_setting(mode: Mode, **changes: Any) -> Setting:
    """Six unequal devices on two servers, with links slow enough for frames to queue."""
    device = replace(LINKED, mode=mode, alpha=0.7, window=3, early_first=True, first_bits=70.0)
    device = replace(device, output_tokens=(5, 30), prompt_tokens=(20, 200), **changes)
    devices = tuple(
        replace(device, server=i % 2, draft_token_s=0.01 + 0.01 * i, uplink_bps=4e3 + 2e3 * i)
        for i in range(6)
    )
    server = replace(SERVER, chunk_tokens=128)
    return Setting(devices, (server, replace(server, foreign_rows=2.0)), requests=60)


# One device, fixed times: the closed forms of a request


def test_a_sequential_request_is_the_sum_of_its_parts() -> None:
    rounds = 5  # 20 tokens behind the first, 4 a round
    cached = [100 + 4 * k for k in range(rounds)]
    prefill_s = 0.1 + 0.002 + 0.1
    first_s = 0.5 + 0.015 + prefill_s + 0.003 + 0.015
    verify_s = [0.1 + 0.002 + 0.004 + 1e-6 * c for c in cached]
    cycles_s = [0.06 + 0.02 + 0.015 + v + 0.005 + 0.015 for v in verify_s]
    seen = figures_of(LINKED, SERVER)
    assert seen.ttft_s == pytest.approx(first_s)
    assert seen.e2e_s == pytest.approx(first_s + sum(cycles_s))
    assert seen.tpot_s == pytest.approx(sum(cycles_s) / 20)
    assert seen.round_s == pytest.approx(sum(cycles_s) / rounds)
    assert seen.verify_s == pytest.approx((sum(verify_s)) / rounds)
    assert seen.bits_up / seen.requests == pytest.approx(5000 + rounds * 200)
    assert seen.bits_down / seen.requests == pytest.approx(60 + rounds * 100)
    assert seen.wait_s == pytest.approx(0.0)


def test_a_long_prompt_goes_through_in_chunks_that_read_those_before() -> None:
    server = replace(SERVER, chunk_tokens=256)
    device = DeviceSpec(mode="server_ar", prompt_tokens=1000, output_tokens=1)
    passes_s = 4 * (0.1 + 0.002) + 1000 * 0.001 + (256 + 512 + 768) * 1e-6
    assert figures_of(device, server).e2e_s == pytest.approx(passes_s)


def test_prompts_share_a_chunk_in_the_order_of_their_arrival() -> None:
    server = ServerSpec(fixed_s=0.1, chunk_tokens=400)
    device = DeviceSpec(mode="server_ar", prompt_tokens=300, output_tokens=1)
    devices = (device, replace(device, prompt_bits=0.1, uplink_bps=1.0))
    # Both start at once; the second prompt meets a pass under way, and its 300 tokens fit the next.
    setting = Setting(devices, (server,), requests=2, jitter=0.0, warmup=0.0, stagger_s=0.0)
    first, second = judge(replace(setting, drain=True)).devices
    assert first.prefill_s == pytest.approx(0.1)
    assert second.prefill_s == pytest.approx(0.1)
    together = judge(replace(setting, devices=(device, device), drain=True)).devices
    # 400 of 600 tokens go in the first pass: one prompt and a third of the other.
    assert [seen.prefill_s for seen in together] == pytest.approx([0.1, 0.2])


def test_a_streamed_answer_is_as_slow_as_the_slower_of_pass_and_downlink() -> None:
    device = DeviceSpec(mode="server_ar", token_bits=100.0, prompt_tokens=1, output_tokens=50)
    assert figures_of(replace(device, downlink_bps=1e4)).tpot_s == pytest.approx(0.08)
    assert figures_of(replace(device, downlink_bps=1e3)).tpot_s == pytest.approx(0.1)


def test_a_device_alone_needs_its_own_time_only() -> None:
    device = replace(LINKED, mode="device_only", device_prefill_token_s=0.003)
    seen = figures_of(device, SERVER)
    assert seen.e2e_s == pytest.approx(0.3 + 21 * 0.02)
    assert seen.ttft_s == pytest.approx(0.3 + 0.02)
    assert seen.bits_up == seen.bits_down == 0


def test_the_word_to_begin_costs_a_round_where_the_prefill_gives_no_token() -> None:
    device = replace(BARE, alpha=1.0, rtt_s=0.04, output_tokens=5, first_token="round")
    assert figures_of(device).ttft_s == pytest.approx(0.02 + 0.08 + 0.02 + 0.2)


# Acceptance


@pytest.mark.parametrize(("alpha", "tokens"), [(0.0, 1), (1.0, 5), ((1.0, 1.0, 0.0), 3)])
def test_tokens_of_a_sequential_round_are_certain_where_acceptance_is(
    alpha: float | tuple[float, ...], tokens: int
) -> None:
    assert figures_of(replace(BARE, alpha=alpha)).tokens_per_round == pytest.approx(tokens)


def test_tokens_of_a_round_follow_their_geometric_laws() -> None:
    alpha, gamma = 0.8, 4
    device = replace(BARE, alpha=alpha, output_tokens=3000)
    sequential = figures_of(device, requests=12)
    parallel = figures_of(replace(device, mode="psd"), requests=12)
    run = alpha / (1 - alpha**gamma)
    assert sequential.tokens_per_round == pytest.approx(
        (1 - alpha ** (gamma + 1)) / (1 - alpha), rel=0.02
    )
    assert parallel.tokens_per_round == pytest.approx(1 / ((1 - alpha) * (1 + run)), rel=0.02)
    assert sequential.acceptance == pytest.approx(alpha, abs=0.01)


@pytest.mark.parametrize("mode", SPECULATIVE)
def test_no_draft_means_plain_decoding_at_the_server(mode: Mode) -> None:
    plain = replace(LINKED, mode="server_ar", draft_length=0)
    seen = figures_of(replace(plain, mode=mode), SERVER, jitter=0.2)
    assert repr(seen) == repr(figures_of(plain, SERVER, jitter=0.2))


def test_speculation_at_one_place_costs_drafting_alone() -> None:
    seen = figures_of(replace(BARE, alpha=0.0), ServerSpec(fixed_s=0.0))
    assert seen.tpot_s == pytest.approx(4 * 0.02)


# The parallel modes


@pytest.mark.parametrize(("rtt_s", "step_s"), [(0.01, 0.06 + 0.02), (0.2, 0.2 + 0.108 + 0.005)])
def test_a_parallel_step_is_the_longer_of_drafting_and_verifying(
    rtt_s: float, step_s: float
) -> None:
    server = ServerSpec(fixed_s=0.05 if rtt_s < 0.1 else 0.108)
    seen = figures_of(replace(LINKED, mode="psd", rtt_s=rtt_s, output_tokens=100), server)
    assert seen.round_s == pytest.approx(step_s)


def test_a_pipeline_loses_a_fill_after_each_rejection() -> None:
    alpha, gamma = 0.8, 4
    # Drafting lasts longer than a verdict takes: each step lasts gamma draft tokens.
    device = replace(BARE, mode="psd", psd_form="pipeline", alpha=alpha, rtt_s=0.01)
    seen = figures_of(replace(device, output_tokens=3000), ServerSpec(fixed_s=0.06), requests=12)
    steps = 1 + 1 / (1 - alpha**gamma)
    assert seen.token_s == pytest.approx((1 - alpha) * steps * gamma * 0.02, rel=0.02)


@pytest.mark.parametrize(("window", "block_s"), [(1, 0.24), (2, 0.12), (3, 0.08)])
def test_a_window_of_accepted_blocks_hides_the_delay(window: int, block_s: float) -> None:
    device = replace(BARE, mode="async", alpha=1.0, rtt_s=0.2, window=window)
    device = replace(device, output_tokens=4000)
    seen = figures_of(device, ServerSpec(fixed_s=0.04))
    assert seen.token_s == pytest.approx(block_s / 4, rel=0.01)


def test_a_slow_uplink_sets_the_pace_of_accepted_blocks() -> None:
    device = replace(BARE, mode="async", alpha=1.0, window=20, draft_bits=lambda n: 500.0 * n)
    seen = figures_of(replace(device, uplink_bps=1e4, output_tokens=4000), ServerSpec(fixed_s=0.04))
    assert seen.token_s == pytest.approx(0.05, rel=0.01)


@pytest.mark.parametrize(
    ("changes", "token_s"),
    [
        # The whole block, its way up, the test against the row that is there, the way down.
        ({"interruptible": True}, 4 * 0.02 + 0.05),
        # The first token alone; the block is drafted on meanwhile.
        ({"interruptible": True, "early_first": True}, 0.02 + 0.05),
        # The interrupt meets the fourth token half done.
        ({"early_first": True}, 0.02 + 0.06),
        # The correction goes into the block's pass.
        ({"interruptible": True, "eager_row": False}, 4 * 0.02 + 0.05 + 0.06),
    ],
)
def test_a_rejected_first_token_costs_its_way_there_and_back(
    changes: dict[str, Any], token_s: float
) -> None:
    device = replace(BARE, mode="async", alpha=0.0, rtt_s=0.05, output_tokens=200, **changes)
    assert figures_of(device, ServerSpec(fixed_s=0.06)).token_s == pytest.approx(token_s, rel=0.01)


@pytest.mark.parametrize("alpha", [0.5, 0.7, 0.9])
@pytest.mark.parametrize("rtt_s", [0.02, 0.1])
def test_streaming_stays_above_the_bound_of_one_chain(alpha: float, rtt_s: float) -> None:
    device = replace(BARE, mode="async", draft_length=1, alpha=alpha, rtt_s=rtt_s, window=50)
    seen = figures_of(replace(device, interruptible=True), jitter=0.1, requests=6)
    gap_s = alpha * (rtt_s + 0.06) + (1 - alpha) * max(rtt_s, 0.06)
    assert seen.token_s > (0.02 + (1 - alpha) * gap_s) * 0.97


# Draft 24.4 ms, RTT 47.5 ms: tokens per second of a simulation that was written elsewhere, with
# links of its own and the same reading (correction at the server, first token ahead).
@pytest.mark.parametrize(
    ("alpha", "pass_s", "length", "window", "tokens_per_s"),
    [
        (0.821, 0.072, 4, 1, 19.98),
        (0.720, 0.072, 4, 1, 16.83),
        (0.877, 0.1456, 7, 1, 17.92),
        (0.911, 0.1456, 7, 1, 20.71),
        (0.821, 0.072, 3, 2, 21.61),
        (0.911, 0.1456, 6, 2, 21.70),
    ],
)
def test_asynchronous_speeds_agree_with_another_simulation(
    alpha: float, pass_s: float, length: int, window: int, tokens_per_s: float
) -> None:
    device = replace(BARE, mode="async", draft_token_s=0.0244, rtt_s=0.0475, early_first=True)
    device = replace(device, alpha=alpha, draft_length=length, window=window, output_tokens=3000)
    seen = figures_of(device, ServerSpec(fixed_s=pass_s), jitter=0.1, requests=6)
    assert 1 / seen.token_s == pytest.approx(tokens_per_s, rel=0.035)


def test_a_block_is_cut_behind_the_first_token_past_its_budget() -> None:
    device = replace(BARE, mode="async", alpha=1.0, draft_length=20, rtt_s=0.015, window=20)
    for budget_s, tokens in [(0.001, 1), (0.03, 2), (0.095, 5), (9.0, 20)]:
        seen = figures_of(replace(device, draft_budget=budget_s, output_tokens=4000))
        assert seen.tokens_per_round == pytest.approx(tokens, rel=0.01)


def test_a_full_window_lets_a_block_grow_past_its_budget() -> None:
    # A verdict takes 0.08 + 0.115 s: the tenth token is the first that may go up.
    device = replace(BARE, mode="async", alpha=1.0, draft_length=20, rtt_s=0.115, draft_budget=0.01)
    assert figures_of(device).tokens_per_round == pytest.approx(10, rel=0.03)


def test_a_budget_of_a_verdict_sends_what_a_verdict_time_allows() -> None:
    device = replace(BARE, mode="async", alpha=1.0, draft_length=20, rtt_s=0.015)
    device = replace(device, draft_budget="verdict", output_tokens=2000)
    # A verdict takes 0.08 + 0.015 s; the fifth token is the first after it.
    assert figures_of(device).tokens_per_round == pytest.approx(5, rel=0.01)
    slow = replace(device, alpha=0.7)
    assert figures_of(slow).token_s < 0.8 * figures_of(replace(slow, draft_budget=None)).token_s


def test_an_endless_budget_changes_nothing() -> None:
    device = replace(LINKED, mode="async", alpha=0.8, early_first=True)
    cut, whole = (
        judge(Setting((replace(device, draft_budget=budget),), (SERVER,), requests=20))
        for budget in (math.inf, None)
    )
    assert cut == whole


# Many devices


def test_all_who_wait_share_one_pass() -> None:
    devices = (DeviceSpec(mode="server_ar", prompt_tokens=1, output_tokens=4000),) * 5
    server = ServerSpec(fixed_s=0.1, per_row_s=0.01, per_token_s=0.002, foreign_rows=3.0)
    setting = Setting(devices, (server,), requests=5, jitter=0.0, warmup=0.0, drain=True)
    seen = judge(setting)
    assert seen.devices[0].tpot_s == pytest.approx(0.1 + 8 * 0.012, rel=0.01)
    assert seen.devices[0].batch_rows == pytest.approx(8, rel=0.01)


def test_who_comes_at_any_time_waits_for_half_a_pass_of_others() -> None:
    device = replace(BARE, draft_token_s=0.3, alpha=0.0, output_tokens=500)
    server = ServerSpec(fixed_s=0.1, foreign_rows=1.0)
    seen = figures_of(device, server, jitter=0.2, requests=8)
    residual_s = 0.1 * (1 + 0.2**2 / 3) / 2
    assert seen.wait_s == pytest.approx(residual_s, rel=0.03)


def test_waiting_at_the_device_is_the_queue_of_poisson_arrivals_and_fixed_service() -> None:
    device = DeviceSpec(mode="device_only", draft_token_s=0.1, output_tokens=10)
    seen = figures_of(replace(device, arrivals_per_s=0.6), requests=20_000)
    load = 0.6 * 1.0
    assert seen.queue_s == pytest.approx(load / (2 * (1 - load)), rel=0.06)
    assert seen.e2e_s == pytest.approx(1 + seen.queue_s)


def test_equal_devices_fare_equally() -> None:
    device = replace(LINKED, alpha=0.7)
    left, right = judge(Setting((device, device), (SERVER,), requests=400)).devices
    error_s = math.hypot(left.e2e_error_s, right.e2e_error_s)
    assert abs(left.e2e_s - right.e2e_s) < 4 * error_s
    assert error_s < 0.03 * left.e2e_s


# Books


@pytest.mark.parametrize(
    ("mode", "changes"),
    [
        ("server_ar", {}),
        ("device_only", {}),
        ("sd", {}),
        ("psd", {}),
        ("psd", {"psd_form": "pipeline"}),
        ("async", {}),
        ("async", {"eager_row": False, "early_first": False, "interruptible": True}),
        ("async", {"draft_budget": "verdict", "first_token": "round"}),
        ("async", {"draft_budget": 0.03, "window": 2, "early_first": True}),
    ],
)
def test_every_token_and_every_second_is_accounted_for(mode: Mode, changes: dict[str, Any]) -> None:
    setting = replace(busy_setting(mode, **changes), warmup=0.0, jitter=0.0, drain=True)
    seen = judge(setting)
    assert sum(device.requests for device in seen.devices) == setting.requests
    for device in seen.devices:
        assert device.drafted == device.accepted + device.rejected + device.discarded
        # Little's law: requests alive = arrivals per second times the life of each.
        assert device.alive == pytest.approx(device.requests_per_s * device.e2e_s)
        seeds = device.requests if changes.get("first_token") != "round" else 0
        seeds = 0 if mode == "device_only" else seeds
        made = seeds + device.tokens_per_round * device.rounds * device.requests
        assert made == pytest.approx(device.tokens + device.surplus)
        assert device.bits_up >= 0
    for server in seen.servers:
        fixed_share = server.passes * SERVER.fixed_s / seen.span_s
        assert server.busy_share == pytest.approx(fixed_share + server.offered_load)


def test_poisson_arrivals_obey_littles_law() -> None:
    setting = busy_setting("sd", arrivals_per_s=0.05)
    for device in judge(replace(setting, warmup=0.0, drain=True)).devices:
        assert device.alive == pytest.approx(device.requests_per_s * device.e2e_s)


@pytest.mark.parametrize("mode", SPECULATIVE)
def test_a_seed_makes_the_same_run_again_and_another_seed_another(mode: Mode) -> None:
    setting = busy_setting(mode)
    again = repr(judge(setting))
    assert repr(judge(setting)) == again
    assert repr(judge(replace(setting, seed=1))) != again
