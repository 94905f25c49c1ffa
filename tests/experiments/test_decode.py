"""Real runs of a task with a pair of tiny random models."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.comparison import decode_with, open_pair, rule_controller
from experiments.config import TaskConfig
from experiments.decode import DecodeSetup, PredictionLog
from experiments.evaluation import make_world
from uara.control.rules import RuleController
from uara.decoding.models import ModelPair, Prompt
from uara.errors import UserError
from uara.network import Decision, NetworkState, Phase, SlotOutcome
from uara.prediction import Physics, predict
from uara.radio.bank import ChannelBank

# ruff: noqa: D102 -- the names of test doubles say what they do

LETTERS = {chr(48 + i): i for i in range(48)}
PROMPTS = [
    Prompt(id=f"{task}{i}", task=task, text=text)
    for i, text in enumerate(("A4C2", "BEER", "0123456"))
    for task in ("chat", "code")
]


def llama(hidden: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=48, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        initializer_range=0.3,
    )  # fmt: skip
    return LlamaForCausalLM(config).double().eval().requires_grad_(False)


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.BPE(vocab=LETTERS, merges=[]))
    )
    return ModelPair(llama(8, 1), llama(16, 0), tokenizer, "random")


@pytest.fixture
def setup(task: TaskConfig, bank: ChannelBank, pair: ModelPair) -> DecodeSetup:
    return DecodeSetup.of(task, bank, pair, PROMPTS)


@dataclass
class Turning:
    """Sends everybody to the one server, then to the other, so that requests are handed over."""

    rules: RuleController
    name: str = "turning"
    observes: str = "network"

    def reset(self, mask: torch.Tensor, generator: torch.Generator) -> None:
        self.rules.reset(mask, generator)

    def decide(self, state: NetworkState) -> Decision:
        turn = int(state.time_s[0] / 1.5) % 2
        return self.rules.allocator(state, torch.full_like(state.server, turn))

    def observe(self, outcome: SlotOutcome) -> None:
        self.rules.observe(outcome)


@dataclass
class Watcher:
    """A rule that keeps what passes through it."""

    inner: RuleController | Turning
    name: str = "watcher"
    observes: str = "network"
    resets: int = 0
    seen: list[tuple[NetworkState, Decision]] = field(default_factory=list)
    outcomes: list[SlotOutcome] = field(default_factory=list)

    def reset(self, mask: torch.Tensor, generator: torch.Generator) -> None:
        self.resets += 1
        self.inner.reset(mask, generator)

    def decide(self, state: NetworkState) -> Decision:
        self.seen.append((state, self.inner.decide(state)))
        return self.seen[-1][1]

    def observe(self, outcome: SlotOutcome) -> None:
        self.outcomes.append(outcome)


def test_the_log_passes_everything_on_and_notes_the_predicted_time(
    task: TaskConfig, bank: ChannelBank
) -> None:
    physics = Physics.of(task.physics)
    watcher = Watcher(Turning(rule_controller("greedy_latency", task)))
    log = PredictionLog(watcher, physics)
    assert (log.name, log.observes) == ("watcher", "network")
    everyone = torch.ones(1, dtype=torch.bool)
    log.reset(everyone, torch.Generator())
    world = make_world(task, bank, 1)
    world.reset(everyone, torch.tensor([4]), torch.tensor([99]))
    outcomes, wanted, moved = [], [], 0
    for _ in range(task.world.horizon_slots):
        state = world.state()
        decision = log.decide(state)
        assert decision is watcher.seen[-1][1]
        tpot_s = predict(state, decision, physics).tpot_s[0]
        for device in range(3):
            moves = int(decision.server[0, device]) != int(state.server[0, device])
            is_decoding = int(state.phase[0, device]) == Phase.DECODING
            moved += is_decoding and moves
            if is_decoding and not moves:
                wanted.append((device, float(state.time_s[0]), float(tpot_s[device])))
        outcomes.append(world.step(decision))
        log.observe(outcomes[-1])
    assert len(wanted) >= 3
    assert moved >= 1
    noted = [(m, time, value) for m, own in log.predicted.items() for time, value in own]
    assert sorted(noted) == sorted(wanted)
    assert watcher.outcomes == outcomes
    assert watcher.resets == 1


def test_a_run_fills_a_row(setup: DecodeSetup, task: TaskConfig) -> None:
    row = setup.run(rule_controller("greedy_latency", task))
    records = row.result.requests
    assert (row.controller, row.observes) == ("greedy_latency", "network")
    assert [record.sid for record in records] == [0, 1, 2, 3]
    assert [len(record.tokens) for record in records] == [8] * 4
    assert [record.task for record in records] == [0, 1, 0, 1]
    summary = row.as_json()
    assert summary["tokens"] == 32
    assert summary["capped"] == 0
    for index, name in enumerate(("chat", "code")):
        own = [record for record in records if record.task == index]
        rate = sum(record.accepted for record in own) / sum(record.tested for record in own)
        assert row.acceptance_by_task[name] == pytest.approx(rate)
    assert row.measured_tpot_s == pytest.approx(sum(r.tpot_s for r in records) / 4)
    assert math.isfinite(row.predicted_tpot_s)
    assert summary["measured_over_predicted_tpot"] == pytest.approx(
        row.measured_tpot_s / row.predicted_tpot_s
    )


def test_the_same_run_twice_is_the_same(setup: DecodeSetup, task: TaskConfig) -> None:
    first, second = (setup.run(rule_controller("random", task)) for _ in range(2))
    assert first.result.requests == second.result.requests
    assert first.result.rounds == second.result.rounds


def test_every_controller_answers_the_same_requests(setup: DecodeSetup, task: TaskConfig) -> None:
    def met(rule: str) -> list[tuple[int, float, int, int]]:
        records = setup.run(rule_controller(rule, task)).result.requests
        return [(r.device, r.arrival_s, r.task, r.prompt_tokens) for r in records]

    assert met("max_compute") == met("greedy_latency")


def test_greedy_answers_are_the_targets_own(setup: DecodeSetup, task: TaskConfig) -> None:
    check = setup.check_greedy(rule_controller("least_loaded", task))
    assert check.equal + check.near_ties == 4
    assert check.unexplained == ()


def test_a_decode_world_that_is_not_there_is_refused(
    task: TaskConfig, bank: ChannelBank, pair: ModelPair
) -> None:
    wrong = task.model_copy(update={"decode": task.decode.model_copy(update={"world": 3})})
    with pytest.raises(UserError, match=r"decode\.world is 3, allowed: 0 to 2"):
        DecodeSetup.of(wrong, bank, pair, PROMPTS)


def test_a_decode_set_without_a_task_is_refused(
    task: TaskConfig, bank: ChannelBank, pair: ModelPair
) -> None:
    with pytest.raises(UserError, match="no prompts of task code; it has chat"):
        DecodeSetup.of(task, bank, pair, [p for p in PROMPTS if p.task == "chat"])


@pytest.mark.parametrize("given", [("draft", None), (None, "target")])
def test_half_a_pair_is_refused(given: tuple[str | None, str | None]) -> None:
    with pytest.raises(UserError, match="give both"):
        open_pair(*given)


def test_records_and_timelines_are_left_for_each_controller(
    task: TaskConfig, pair: ModelPair, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("experiments.comparison.open_pair", lambda draft, target: pair)
    lines = [json.dumps({"id": p.id, "task": p.task, "text": p.text}) for p in PROMPTS]
    (project / "prompts.jsonl").write_text("\n".join(lines))
    folder = project / "decoded"
    # Over within seconds: the picture begins with the first round, whenever that is.
    requests = task.world.requests.model_copy(update={"arrivals_per_s": 5.0})
    task = task.model_copy(update={"world": task.world.model_copy(update={"requests": requests})})
    rows, check = decode_with(
        task, None, ["max_sinr", "least_loaded"], folder=folder, prompts=project / "prompts.jsonl"
    )
    assert [row.controller for row in rows] == ["max_sinr", "least_loaded"]
    assert check.unexplained == ()
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        f"{name}-{kind}" for name in ("max_sinr", "least_loaded")
        for kind in ("requests.parquet", "rounds.parquet", "frames.parquet", "forwards.parquet",
                     "timeline.png")
    )  # fmt: skip
    assert pq.read_table(folder / "max_sinr-requests.parquet")["sid"].to_pylist() == [0, 1, 2, 3]


def test_modes_that_real_runs_do_not_have_are_refused(task: TaskConfig, project: Path) -> None:
    with pytest.raises(UserError, match=r"'max_sinr\+psd' sets mode psd, .*drop the mode"):
        decode_with(task, None, ["max_sinr+psd"], folder=project / "decoded")
    assert not (project / "decoded").exists()


def test_runs_without_a_controller_are_refused(task: TaskConfig, project: Path) -> None:
    with pytest.raises(UserError, match="no controller was given; name one with --controller"):
        decode_with(task, None, [], folder=project / "decoded")
    assert not (project / "decoded").exists()
