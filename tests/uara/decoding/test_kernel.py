"""The virtual clock by hand, and token-for-token equality under any plan."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from uara.decoding.kernel import KernelSettings, VirtualKernel
from uara.decoding.kv import SequenceModel, TransformerModel
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import derive_seed
from uara.decoding.records import Recorder
from uara.decoding.rules import GREEDY, Sampling
from uara.decoding.scenario import (
    DeviceProfile,
    ForeignArrival,
    Request,
    ServerProfile,
    SlotPlan,
)
from uara.decoding.verifier import Contract
from uara.serving.hardware import ForwardTime
from uara.serving.payload import make_codec

GREEDY_CONTRACT = Contract(RuleCode.IDS, GREEDY, 4, 1)
FORWARD = ForwardTime(fixed_s=0.1, per_row_s=0.01, per_token_s=0.001, per_context_s=0.0)


def play(
    draft: SequenceModel,
    target: SequenceModel,
    requests: Sequence[Request],
    planner: Any,
    *,
    contract: Contract = GREEDY_CONTRACT,
    devices: int = 1,
    servers: int = 1,
    rtt_s: float = 0.0,
    kv_capacity_tokens: int = 10_000,
    foreign: Sequence[ForeignArrival] = (),
    slot_s: float = 0.5,
    read_token_s: float = 0.0,
) -> Recorder:
    settings = KernelSettings(slot_s, contract, lambda sid: derive_seed(7, sid))
    return VirtualKernel(
        draft,
        target,
        [DeviceProfile(0.02, read_token_s)] * devices,
        [ServerProfile(FORWARD, kv_capacity_tokens, rtt_s)] * servers,
        requests,
        planner,
        settings,
        foreign,
    ).run()


def request(sid: int = 0, *, prompt_tokens: int = 4, max_new: int = 9, **more: Any) -> Request:
    values = {"device": 0, "arrival_s": 0.0, "text": (1, 2, 3)} | more
    return Request(sid=sid, prompt_tokens=prompt_tokens, max_new=max_new, **values)


def test_without_network_time_is_that_of_local_speculative_decoding(
    table_model: Any, fixed_plan: Any
) -> None:
    model = table_model(5, 0)
    record = play(model, model, [request()], fixed_plan.of(draft_length=3)).requests[0]
    # Draft and target agree, so each round commits 3 + 1 tokens; 1 token comes with the prefill.
    prefill_s = 0.1 + 0.01 + 4 * 0.001
    round_s = 3 * 0.02 + 0.1 + 0.01 + 4 * 0.001
    assert record.ttft_s == pytest.approx(prefill_s)
    assert record.e2e_s == pytest.approx(prefill_s + 2 * round_s)
    assert len(record.tokens) == 9
    assert record.tpot_s == pytest.approx(2 * round_s / 8)
    assert record.acceptance == 1
    assert record.tokens_per_verification == 4


def test_draft_length_zero_is_server_decoding(table_model: Any, fixed_plan: Any) -> None:
    model = table_model(5, 0)
    recorder = play(model, model, [request()], fixed_plan.of(draft_length=0), rtt_s=0.08)
    record = recorder.requests[0]
    # Tokens stream down while the server goes on: the round trip is paid once, not per token.
    assert record.e2e_s == pytest.approx(0.08 + 0.114 + 8 * 0.111)
    assert [r.work for r in recorder.rounds] == ["prefill"] + ["decode"] * 8
    assert record.verifications == 0


def test_frames_take_the_time_of_their_bits(table_model: Any, fixed_plan: Any) -> None:
    model, rate_bps = table_model(5, 0), 1e5
    plan = fixed_plan.of(draft_length=3, rate_bps=rate_bps)
    recorder = play(
        model, model, [request(prompt_tokens=500, attachment_bits=3e4)], plan, rtt_s=0.04
    )
    codec = make_codec("ids", vocab_size=5, top_k=4)
    upload_s = (codec.prompt_bits(500) + 3e4) / rate_bps
    first_s = upload_s + 0.04 + 0.61 + codec.token_bits() / rate_bps
    assert recorder.requests[0].ttft_s == pytest.approx(first_s)
    round_ = recorder.rounds[1]
    assert round_.draft_start_s == pytest.approx(first_s)
    assert round_.draft_end_s - round_.draft_start_s == pytest.approx(0.06)
    up_s, down_s = codec.draft_bits(3) / rate_bps, codec.verdict_bits(3, 1.0) / rate_bps
    assert round_.uplink_end_s - round_.draft_end_s == pytest.approx(up_s + 0.02)
    assert round_.verify_start_s == pytest.approx(round_.uplink_end_s)
    assert round_.downlink_end_s - round_.verify_end_s == pytest.approx(down_s + 0.02)
    assert round_.uplink_bytes == codec.draft_bits(3) / 8


def test_prompts_are_read_in_chunks_that_others_ride_along(
    table_model: Any, fixed_plan: Any
) -> None:
    model = table_model(5, 0)
    requests = [request(0, max_new=4), request(1, device=1, prompt_tokens=1300, max_new=1)]
    plan = fixed_plan.of(draft_length=0, devices=2)
    records = play(model, model, requests, plan, devices=2).requests
    # The first prompt is read alone; then 512, 512 and 276 tokens ride with one decoded token.
    passes = [0.11 + 0.004, 0.12 + 0.513, 0.12 + 0.513, 0.12 + 0.277]
    assert records[1].e2e_s == pytest.approx(sum(passes))
    assert records[0].e2e_s == pytest.approx(sum(passes))
    assert records[0].ttft_s == pytest.approx(passes[0])


def test_a_prompt_waits_until_its_cache_fits(table_model: Any, fixed_plan: Any) -> None:
    model = table_model(5, 0)
    requests = [request(0, max_new=6), request(1, device=1, max_new=6)]
    plan = fixed_plan.of(draft_length=0, devices=2)
    records = play(model, model, requests, plan, devices=2, kv_capacity_tokens=19).requests
    assert records[1].first_token_s == pytest.approx(records[0].end_s + 0.114)
    # It waits for memory from the first forward that could have taken it along.
    assert records[0].memory_wait_s == 0
    assert records[1].memory_wait_s == pytest.approx(records[0].end_s - 0.114)


def test_a_prompt_is_read_chunk_by_chunk_and_gives_the_same_answer(
    random_draft: Any, random_target: Any, fixed_plan: Any
) -> None:
    text = tuple(np.random.default_rng(5).integers(0, 48, 90).tolist())
    own = [request(0, text=text[:6], max_new=30), request(1, text=text, prompt_tokens=130)]
    answers, fed = [], []
    for chunk in (512, 25):
        model = TransformerModel(random_target)
        read: list[list[int]] = []

        def forward(feeds: Any, model: Any = model, read: Any = read) -> Any:
            read.append([len(feed.tokens) for feed in feeds])
            return TransformerModel.forward(model, feeds)

        model.forward = forward  # type: ignore[method-assign]
        settings = KernelSettings(0.5, GREEDY_CONTRACT, lambda sid: sid, prefill_chunk_tokens=chunk)
        kernel = VirtualKernel(
            TransformerModel(random_draft), model, [DeviceProfile(0.02)] * 2,
            [ServerProfile(FORWARD, 9999)], [own[0], replace(own[1], device=1)],
            fixed_plan.of(draft_length=0, devices=2), settings,
        )  # fmt: skip
        records = kernel.run().requests
        answers.append([records[sid].tokens for sid in (0, 1)])
        fed.append(read)
    assert answers[0] == answers[1]
    # 40 tokens are priced only; of the 90 the first chunk of 25 behind them holds 10.
    assert max(max(read) for read in fed[0]) == 90
    assert max(max(read) for read in fed[1]) == 25
    assert [10 in read for read in fed[1]].count(True) == 1


def test_foreign_rows_and_prompts_slow_a_server_down(table_model: Any, fixed_plan: Any) -> None:
    model = table_model(5, 0)
    load = [ForeignArrival(0.0, 0, rows=10, prefill_tokens=508)]
    record = play(
        model, model, [request(max_new=3)], fixed_plan.of(draft_length=0), foreign=load
    ).requests[0]
    # The foreign prompt is being read when ours arrives; then ten foreign rows go with each pass.
    alone_s = 0.1 + 11 * 0.01 + (508 + 10) * 0.001
    with_ours = [0.1 + 11 * 0.01 + (count + 10) * 0.001 for count in (4, 1, 1)]
    assert record.e2e_s == pytest.approx(alone_s + sum(with_ours))


def test_a_handover_reads_the_context_anew_and_keeps_the_tokens(
    table_model: Any, fixed_plan: Any
) -> None:
    model = table_model(5, 0)
    stay = play(model, model, [request(prompt_tokens=400)], fixed_plan.of(draft_length=0))
    moved = play(
        model,
        model,
        [request(prompt_tokens=400)],
        fixed_plan.of(draft_length=0, servers=(0, 0, 1)),
        servers=2,
    )
    here, there = stay.requests[0], moved.requests[0]
    assert there.tokens == here.tokens
    assert (here.handovers, there.handovers) == (0, 1)
    # Before 1.0 s: 0.51 s of prefill and 4 passes; the pass that runs at 1.0 s ends at 1.065 s with
    # the sixth token, and the next one, on the other server, reads 406 tokens instead of 1.
    assert there.e2e_s - here.e2e_s == pytest.approx(405 * 0.001)
    assert [r.server for r in moved.rounds] == [0] * 6 + [1] * 3


def test_a_device_reads_its_prompt_while_it_is_sent(table_model: Any, fixed_plan: Any) -> None:
    model = table_model(5, 0)
    plan = fixed_plan.of(draft_length=2)
    recorder = play(model, model, [request(prompt_tokens=301)], plan, read_token_s=0.01)
    # 300 tokens at 10 ms are longer than the server's 0.411 s, so drafting starts at 3 s.
    assert recorder.rounds[1].draft_start_s == pytest.approx(3.0)


def alone(model: Any, text: Sequence[int], count: int) -> list[int]:
    ids = list(text)
    for _ in range(count):
        with torch.inference_mode():
            logits = model(input_ids=torch.tensor([ids])).logits[0, -1]
        ids.append(int(logits.argmax()))
    return ids[len(text) :]


def scattered_requests(count: int, devices: int, max_new: int) -> list[Request]:
    generator = np.random.default_rng(3)
    return [
        Request(
            sid=sid,
            device=sid % devices,
            arrival_s=float(generator.uniform(0, 2)),
            text=tuple(generator.integers(0, 48, generator.integers(2, 12)).tolist()),
            prompt_tokens=int(generator.integers(20, 900)),
            max_new=max_new,
        )
        for sid in range(count)
    ]


@pytest.mark.parametrize("code", [RuleCode.IDS, RuleCode.ID_PROB])
def test_greedy_output_is_the_targets_own_whatever_the_plan(
    random_draft: Any, random_target: Any, random_plans: Any, code: RuleCode
) -> None:
    requests = scattered_requests(6, 3, 16)
    recorder = play(
        TransformerModel(random_draft),
        TransformerModel(random_target),
        requests,
        random_plans(num_servers=2, max_draft_length=5, seed=int(code)),
        contract=Contract(code, GREEDY, 4, 1),
        devices=3,
        servers=2,
        rtt_s=0.03,
        slot_s=0.2,
        read_token_s=0.0005,
    )
    for own in requests:
        assert recorder.requests[own.sid].tokens == alone(random_target, own.text, 16)
    records = recorder.requests.values()
    assert sum(record.handovers for record in records) > 5, "the plan must move sessions"
    assert 0.2 < np.mean([r.acceptance for r in records if r.tested]) < 1


def test_an_answer_ends_at_its_end_token(
    random_draft: Any, random_target: Any, fixed_plan: Any
) -> None:
    text = (5, 9, 2)
    whole = alone(random_target, text, 20)
    eos = whole[6]
    own = Request(0, 0, 0.0, text, 3, 20, eos=eos)
    for length in (0, 1, 4):
        recorder = play(
            TransformerModel(random_draft),
            TransformerModel(random_target),
            [own],
            fixed_plan.of(draft_length=length),
        )
        assert recorder.requests[0].tokens == whole[: whole.index(eos) + 1]


def test_the_same_run_gives_the_same_records(table_model: Any, random_plans: Any) -> None:
    contract = Contract(RuleCode.ID_PROB, Sampling(), 2, 1)

    def once() -> Recorder:
        plans = random_plans(num_servers=2, max_draft_length=4)
        return play(
            table_model(5, 1),
            table_model(5, 0),
            [request(sid, device=sid, max_new=20) for sid in range(3)],
            plans,
            contract=contract,
            devices=3,
            servers=2,
        )

    first, second = once(), once()
    assert first.requests == second.requests
    assert first.rounds == second.rounds


def test_a_device_with_another_tokenizer_is_refused(table_model: Any, fixed_plan: Any) -> None:
    model = table_model(5, 0)
    planner = fixed_plan.of(draft_length=2)
    settings = KernelSettings(0.5, GREEDY_CONTRACT, lambda sid: sid)
    kernel = VirtualKernel(
        model, model, [DeviceProfile(0.02)], [ServerProfile(FORWARD, 999)], [request()], planner,
        settings,
    )  # fmt: skip
    kernel.servers[0].state = kernel.servers[0].state.__class__(
        0, 5, tokenizer_hash=1, tail_draws=1, batcher=kernel.servers[0].state.batcher
    )
    record = kernel.run().requests[0]
    assert record.refusal == "draft and target have different tokenizers"
    assert record.tokens == []


def test_zero_rate_waits_for_the_next_plan(table_model: Any, fixed_plan: Any) -> None:
    model = table_model(5, 0)
    silent = SlotPlan(np.array([0]), np.array([0]), np.zeros(1), np.zeros(1))
    planner = fixed_plan.of(draft_length=0)
    planner.plans.insert(0, silent)
    record = play(model, model, [request(max_new=1)], planner).requests[0]
    assert record.e2e_s == pytest.approx(0.5 + 0.114)
