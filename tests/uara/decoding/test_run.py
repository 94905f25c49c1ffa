"""Whole runs with a controller in the loop."""

# ruff: noqa: D102 -- the names of test doubles say what they do

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from uara.control.allocation import AllocationConfig
from uara.control.rules import RuleController
from uara.decoding.exactness import check_greedy_exact
from uara.decoding.kv import TransformerModel
from uara.decoding.models import ModelPair, Prompt
from uara.decoding.record_files import write_parquet
from uara.decoding.records import RoundRecord
from uara.decoding.requests import make_requests
from uara.decoding.run import DecodingConfig, DecodingResult, run_decoding
from uara.decoding.scenario import ForeignArrival, Request
from uara.decoding.state_view import GainView
from uara.errors import UserError
from uara.network import Decision, NetworkState, Phase, SlotOutcome
from uara.prediction import Physics, PhysicsConfig
from uara.serving.acceptance import AcceptanceTable, TaskAcceptance
from uara.world.config import WorldConfig

WORLD = WorldConfig(servers=("4xA100-40GB", "4xA100-40GB"), gain_filter_s=0)
PHYSICS = Physics.of(PhysicsConfig(codec="topk", top_k=4))
DEVICES = 4
RULES = {
    rule: {task.name: TaskAcceptance(0.7, 0.1) for task in WORLD.requests.tasks}
    for rule in ("greedy", "onehot", "gumbel", "maxc", "maxc_q8", "maxc_top4")
}
ACCEPTANCE = AcceptanceTable("random", 1.0, RULES)
GREEDY = DecodingConfig(temperature=0)


@pytest.fixture(scope="module")
def pair(random_draft: Any, random_target: Any) -> ModelPair:
    """The random models with a tokenizer of single letters."""
    letters = {chr(48 + i): i for i in range(48)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=letters, merges=[]))
    )
    return ModelPair(random_draft, random_target, tokenizer, "random")


def gains(level_db: float = -95.0) -> GainView:
    gain = np.full((3, DEVICES, 2), 10 ** (level_db / 10), np.float32)
    return GainView.of(gain, np.zeros((3, DEVICES, 2), np.float32), WORLD)


def some_requests(count: int = 6, *, prompt_tokens: int = 300, max_new: int = 12) -> list[Request]:
    generator = np.random.default_rng(5)
    return [
        Request(
            sid=sid,
            device=sid % DEVICES,
            arrival_s=0.3 * sid,
            text=tuple(generator.integers(0, 48, 6).tolist()),
            prompt_tokens=prompt_tokens,
            max_new=max_new,
            task=sid % 4,
        )
        for sid in range(count)
    ]


@dataclass
class Watcher:
    """A controller that passes everything on to a rule and keeps what it saw."""

    inner: RuleController
    name: str = "watcher"
    observes: str = "network"
    states: list[NetworkState] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    outcomes: list[SlotOutcome] = field(default_factory=list)

    def reset(self, mask: torch.Tensor, generator: torch.Generator) -> None:
        self.inner.reset(mask, generator)

    def decide(self, state: NetworkState) -> Decision:
        self.states.append(state)
        self.decisions.append(self.inner.decide(state))
        return self.decisions[-1]

    def observe(self, outcome: SlotOutcome) -> None:
        self.outcomes.append(outcome)


def watcher(rule: str = "greedy_latency", draft_length: int = 3) -> Watcher:
    return Watcher(RuleController(rule, AllocationConfig(draft_length=draft_length), PHYSICS))


def run(pair: ModelPair, controller: Any, requests: list[Request], **more: Any) -> DecodingResult:
    options = {"config": GREEDY, "physics": PHYSICS} | more
    return run_decoding(
        pair, requests, gains(), controller, world=WORLD, acceptance=ACCEPTANCE, **options
    )


def test_a_controlled_run_is_exact_and_accounted_for(pair: ModelPair) -> None:
    requests, controller = some_requests(), watcher()
    result = run(pair, controller, requests)
    check = check_greedy_exact(TransformerModel(pair.target), requests, result.requests)
    assert (check.equal, check.near_ties, check.unexplained) == (6, 0, ())
    for record in result.requests:
        assert record.arrival_s <= record.start_s < record.first_token_s < record.end_s
        own = [r for r in result.rounds if r.sid == record.sid]
        assert sum(r.accepted + 1 for r in own) == 12
        verified = [r for r in own if r.work == "verify"]
        assert record.prompt_bytes == PHYSICS.codec.prompt_bits(300) / 8
        assert record.uplink_bytes == record.prompt_bytes + sum(r.uplink_bytes for r in verified)
        assert record.downlink_bytes == sum(r.downlink_bytes for r in own)
        assert record.verifications == len(verified) > 0
        for r in verified:
            times = (
                r.draft_start_s, r.draft_end_s, r.uplink_end_s, r.verify_start_s,
                r.verify_end_s, r.downlink_end_s,
            )  # fmt: skip
            assert times == tuple(sorted(times))
    summary = result.summary()
    assert summary["tokens"] == 72
    assert summary["e2e_s"] == pytest.approx(np.mean([r.e2e_s for r in result.requests]))
    # Little's law: what the slots integrate is the sum of all times in the system.
    ended = sum(float(outcome.alive_s) for outcome in controller.outcomes)
    last_slot = len(controller.outcomes) * WORLD.slot_s
    inside = sum(min(r.finish_s, last_slot) - r.arrival_s for r in result.requests)
    assert ended == pytest.approx(inside, rel=1e-5)


def test_the_state_is_read_off_the_runtime(pair: ModelPair) -> None:
    controller = watcher("max_sinr")
    result = run(pair, controller, some_requests(1, prompt_tokens=2000))
    states = controller.states
    phases = [int(state.phase[0, 0]) for state in states]
    assert phases[0] == Phase.UPLOADING
    assert Phase.PREFILLING in phases
    assert phases[-1] == Phase.DECODING
    assert phases == sorted(phases)
    assert float(states[0].upload_bits[0, 0]) == PHYSICS.codec.prompt_bits(2000)
    assert float(states[0].acceptance[0, 0]) == pytest.approx(0.7)
    assert all((state.phase[0, 1:] == Phase.IDLE).all() for state in states)
    last = states[-1]
    assert float(last.kv_tokens[0, 0]) == 2000 + float(last.tokens_so_far[0, 0])
    assert float(last.tokens_so_far[0, 0]) > 0
    moved = [float(s.kv_free_tokens.min()) for s in states]
    assert moved == sorted(moved, reverse=True)
    assert float(last.acceptance[0, 0]) != pytest.approx(0.7)
    assert sum(float(o.tokens.sum()) for o in controller.outcomes) <= len(result.requests[0].tokens)


def test_foreign_requests_on_a_server_change_the_next_decision(pair: ModelPair) -> None:
    def first_choices(server: int) -> list[int]:
        controller = watcher("greedy_latency")
        # The load comes before the only request is admitted, at 0.5 s.
        load = [ForeignArrival(0.1, server, rows=40, prefill_tokens=8000)]
        late = [replace(some_requests(1)[0], arrival_s=0.2)]
        run(pair, controller, late, foreign=load)
        seen = controller.states[1]
        assert float(seen.foreign_rows[0, server]) == 40
        assert float(seen.foreign_rows[0, 1 - server]) == 0
        assert 0 < float(seen.foreign_prefill_tokens[0, server]) < 8000
        return [int(decision.server[0, 0]) for decision in controller.decisions[1:]]

    assert set(first_choices(0)) == {1}
    assert set(first_choices(1)) == {0}


def test_sampled_answers_do_not_depend_on_server_load(pair: ModelPair) -> None:
    # Draws are keyed by request and position; with no drafting the plan cannot change a token.
    config = DecodingConfig(temperature=1.0)
    alone = run(pair, watcher(draft_length=0), some_requests(3), config=config)
    load = [ForeignArrival(0.0, 0, rows=30)]
    loaded = run(pair, watcher(draft_length=0), some_requests(3), config=config, foreign=load)
    assert [r.tokens for r in alone.requests] == [r.tokens for r in loaded.requests]
    assert alone.summary()["e2e_s"] < loaded.summary()["e2e_s"]


def test_a_run_that_does_not_end_is_stopped_and_says_so(pair: ModelPair) -> None:
    requests = some_requests(2)
    requests[1] = replace(requests[1], attachment_bits=1e12)
    result = run(pair, watcher(), requests, config=DecodingConfig(temperature=0, drain_slots=20))
    done, capped = result.requests
    assert (done.is_capped, capped.is_capped) == (False, True)
    assert capped.e2e_s == pytest.approx(21 * WORLD.slot_s - 0.3)  # it arrives in the first slot
    assert result.summary()["capped"] == 1


SAMPLED = DecodingConfig(temperature=1.0, check_draws=True)


@pytest.mark.parametrize(
    "options",
    [
        {"codec": "ids"},
        {"codec": "ids", "ids_rule": "onehot"},
        {"codec": "ids", "ids_rule": "gumbel"},
        {"codec": "id_prob"},
        {"codec": "id_prob", "probability_bits": 16},
        {"codec": "id_prob", "probability_bits": 8},
        {"codec": "full"},
    ],
)
def test_every_codec_and_rule_runs(pair: ModelPair, options: dict[str, Any]) -> None:
    physics = Physics.of(PhysicsConfig(top_k=4, **options))
    result = run(pair, watcher(), some_requests(2), physics=physics, config=SAMPLED)
    assert all(len(record.tokens) == 12 for record in result.requests)
    assert all(record.draws >= 12 for record in result.requests)
    summary = result.summary()
    assert 0 < summary["acceptance"] <= 1
    assert "lost_residual_per_rejection" not in summary


def test_rules_of_ids_sample_unless_they_are_greedy(pair: ModelPair) -> None:
    tokens = {}
    for rule in ("greedy", "onehot", "gumbel"):
        physics = Physics.of(PhysicsConfig(codec="ids", ids_rule=rule))
        runs = (
            run(
                pair,
                watcher(),
                some_requests(2),
                physics=physics,
                config=DecodingConfig(temperature=1.0, seed=seed),
            )
            for seed in (0, 1)
        )
        tokens[rule] = [[record.tokens for record in result.requests] for result in runs]
    assert tokens["greedy"][0] == tokens["greedy"][1]
    assert tokens["onehot"][0] != tokens["onehot"][1]
    assert tokens["gumbel"][0] != tokens["gumbel"][1]


@pytest.mark.parametrize("mode", ["sd", "psd", "async"])
def test_a_lossy_run_states_how_far_it_is_from_the_target(pair: ModelPair, mode: str) -> None:
    def lossy(top_k: int, sample_top_k: int) -> DecodingResult:
        physics = Physics.of(PhysicsConfig(codec="id_prob", top_k=top_k, lossy=True, mode=mode))
        config = DecodingConfig(temperature=1.0, sample_top_k=sample_top_k)
        return run(pair, watcher(), some_requests(4), physics=physics, config=config)

    result = lossy(2, 0)
    summary = result.summary()
    lost = [share for record in result.requests for share in record.lost_residuals]
    assert len(lost) == sum(record.tested - record.accepted for record in result.requests) > 0
    assert all(0 <= share <= 1 for share in lost)
    assert summary["lost_residual_per_rejection"] == pytest.approx(np.mean(lost))
    assert summary["total_variation_per_token"] == pytest.approx(sum(lost) / 48)
    assert summary["total_variation_per_token"] > 0
    # Where the Top-K holds the whole support, nothing is lost.
    assert lossy(5, 5).summary()["total_variation_per_token"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("mode", ["server_ar", "psd", "async"])
def test_every_lossless_mode_gives_the_targets_own_answers(pair: ModelPair, mode: str) -> None:
    physics = Physics.of(PhysicsConfig(codec="topk", top_k=4, mode=mode, window=2))
    requests, controller = some_requests(), watcher()
    result = run(pair, controller, requests, physics=physics)
    check = check_greedy_exact(TransformerModel(pair.target), requests, result.requests)
    assert (check.equal, check.near_ties, check.unexplained) == (6, 0, ())
    drafted = sum(record.tested for record in result.requests)
    assert (drafted == 0) is (mode == "server_ar")
    for record in (r for r in result.rounds if r.work == "verify"):
        times = (record.draft_start_s, record.draft_end_s, record.uplink_end_s)
        assert times == tuple(sorted(times))
        assert record.uplink_end_s <= record.verify_end_s <= record.downlink_end_s
        assert 0 <= record.accepted <= record.draft_length


def test_a_device_alone_gives_the_drafts_own_answers_without_a_server(pair: ModelPair) -> None:
    physics = Physics.of(PhysicsConfig(codec="topk", top_k=4, mode="device_only"))
    requests, controller = some_requests(max_new=40), watcher()
    result = run(pair, controller, requests, physics=physics)
    alone = check_greedy_exact(TransformerModel(pair.draft), requests, result.requests)
    assert (alone.equal, alone.unexplained) == (6, ())
    assert all(r.uplink_bytes == r.downlink_bytes == 0 for r in result.requests)
    assert sum(result.server_busy) == 0
    phases = torch.cat([state.phase for state in controller.states])
    assert set(phases.flatten().tolist()) == {Phase.IDLE, Phase.UPLOADING, Phase.DECODING}


Change = Callable[[Request], Request]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda r: replace(r, device=9), "request 0 is of device 9; allowed: 0 to 3"),
        (lambda r: replace(r, text=()), "0 text tokens"),
        (lambda r: replace(r, prompt_tokens=3), "no more text than prompt"),
        (lambda r: replace(r, max_new=123), "6 [+] 123 tokens of context"),
        (lambda r: replace(r, prompt_tokens=10**6), "KV memory for 1000012 tokens"),
    ],
)
def test_a_request_that_cannot_be_served_is_named(
    pair: ModelPair, change: Change, text: str
) -> None:
    with pytest.raises(UserError, match=text):
        run(pair, watcher(), [change(some_requests(1)[0])])


def test_runs_without_requests_or_with_twins_are_refused(pair: ModelPair) -> None:
    with pytest.raises(UserError, match="no request was given"):
        run(pair, watcher(), [])
    with pytest.raises(UserError, match="same number"):
        run(pair, watcher(), some_requests(1) * 2)


def test_a_world_that_real_runs_do_not_have_is_refused(pair: ModelPair) -> None:
    fluid = Physics.of(PhysicsConfig(codec="topk", top_k=4, service="fluid"))
    with pytest.raises(UserError, match=r"physics\.service is 'fluid'"):
        run(pair, watcher(), some_requests(1), physics=fluid)


def test_prompts_become_requests_of_all_tasks_in_turn(pair: ModelPair) -> None:
    prompts = [Prompt(f"{t}-{i}", t, "012") for t in ("chat", "summarise", "code") for i in (0, 1)]
    options = {"num_devices": DEVICES, "count": 8, "output_tokens": 5, "seed": 1}
    requests = make_requests(pair, prompts, WORLD, **options)
    assert [r.task for r in requests] == [0, 1, 2, 3] * 2
    assert requests == make_requests(pair, prompts, WORLD, **options)
    for own in requests:
        task = WORLD.requests.tasks[own.task]
        assert own.text == (0, 1, 2)
        assert task.prompt_tokens_min <= own.prompt_tokens <= task.prompt_tokens_max
        assert own.attachment_bits == task.attachment_bits
    with pytest.raises(UserError, match="no prompts of task code, summarise"):
        make_requests(pair, prompts[:2], WORLD, **options)


def test_records_are_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "rounds.parquet"
    write_parquet(path, [RoundRecord(sid=1, device=2, accepted=3), RoundRecord(sid=4, device=5)])
    rows = pq.read_table(path).to_pylist()
    assert [row["sid"] for row in rows] == [1, 4]
    assert rows[0]["accepted"] == 3
    assert [entry.name for entry in tmp_path.iterdir()] == ["rounds.parquet"]


def test_every_figure_of_a_run_is_explained_among_the_metrics() -> None:
    page = (Path(__file__).parents[3] / "docs" / "metrics.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z0-9_]+)`", page))
    figures = DecodingResult([], [], "none", "none", [], 0.0).summary()
    assert {name.replace("_p95_s", "_s") for name in figures} <= named
