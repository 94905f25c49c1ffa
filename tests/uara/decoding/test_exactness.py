"""Output equal to that of the target alone, token for token, and the judge that says so."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    GPT2Config,
    LlamaConfig,
    PreTrainedConfig,
    Qwen3Config,
)

from uara.decoding.exactness import ExactCheck, check_coupled_exact, check_greedy_exact
from uara.decoding.kernel import KernelSettings, VirtualKernel
from uara.decoding.kv import SequenceModel, TransformerModel
from uara.decoding.models import SHIPPED_PAIR_FOLDER, load_prompts, shipped_pair
from uara.decoding.protocol import RuleCode
from uara.decoding.randomness import Draws, derive_seed
from uara.decoding.records import RequestRecord
from uara.decoding.rules import GREEDY, Sampling, warp
from uara.decoding.scenario import DeviceProfile, Request, ServerProfile
from uara.decoding.verifier import Contract
from uara.serving.hardware import ForwardTime

DEVICES, SERVERS = 3, 2
COUPLED = Contract(RuleCode.GUMBEL, Sampling(0.8, top_k=40, top_p=0.98), 4, 1)
CONTRACTS = {
    "greedy": Contract(RuleCode.IDS, GREEDY, 4, 1),
    "greedy, rows sent": Contract(RuleCode.FULL, GREEDY, 4, 1),
    "gumbel": COUPLED,
}
# What the kernel's settings say of a mode.
MODES: dict[str, Mapping[str, Any]] = {
    "sd": {},
    "psd": {"mode": "psd"},
    "async": {"mode": "async", "window": 2},
}
FAMILIES: dict[str, Callable[[], PreTrainedConfig]] = {
    "llama": lambda: LlamaConfig(
        vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
        initializer_range=0.3,
    ),
    "qwen": lambda: Qwen3Config(
        vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=2, head_dim=8,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=128,
        initializer_range=0.3,
    ),
    "gpt2": lambda: GPT2Config(
        vocab_size=48, n_embd=16, n_layer=2, n_head=2, n_positions=128, initializer_range=0.3
    ),
}  # fmt: skip


def random_pair(family: str) -> tuple[Any, Any]:
    """A random float64 target, and a draft that is it with noise on its weights."""
    models = []
    for noise in (0.1, 0.0):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(FAMILIES[family]()).double().eval()
        model.requires_grad_(False)
        for weight in model.parameters():
            weight += noise * weight.std().nan_to_num() * torch.randn_like(weight)
        models.append(model)
    return models[0], models[1]


def some_requests(count: int, vocab_size: int, max_new: int) -> list[Request]:
    generator = np.random.default_rng(3)
    return [
        Request(
            sid=sid,
            device=sid % DEVICES,
            arrival_s=float(generator.uniform(0, 1)),
            text=tuple(generator.integers(0, vocab_size, generator.integers(2, 12)).tolist()),
            prompt_tokens=int(generator.integers(20, 900)),
            max_new=max_new,
        )
        for sid in range(count)
    ]


def play(
    draft: SequenceModel,
    target: SequenceModel,
    requests: Sequence[Request],
    planner: Any,
    contract: Contract,
    mode: str,
) -> list[RequestRecord]:
    """Run requests on servers that batch them, over slow links, under changing plans."""
    settings = KernelSettings(0.2, contract, session_seed, **MODES[mode])
    servers = [
        ServerProfile(ForwardTime(0.1, 0.01, 0.001, 0.0), 10_000, rtt_s) for rtt_s in (0.01, 0.05)
    ]
    devices = [DeviceProfile(0.01 * (1 + i), 0.0005) for i in range(DEVICES)]
    kernel = VirtualKernel(draft, target, devices, servers, requests, planner, settings)
    return list(kernel.run().requests.values())


def session_seed(sid: int) -> int:
    return derive_seed(5, sid)


def own_output(
    target: SequenceModel,
    requests: Sequence[Request],
    records: Sequence[RequestRecord],
    contract: Contract,
) -> ExactCheck:
    if contract.is_coupled:
        return check_coupled_exact(target, requests, records, contract.sampling, session_seed)
    return check_greedy_exact(target, requests, records)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", CONTRACTS)
@pytest.mark.parametrize("mode", MODES)
def test_output_is_the_targets_own_whatever_batch_delay_and_handover(
    mode: str, name: str, family: str, random_plans: Any
) -> None:
    models = [TransformerModel(model) for model in random_pair(family)]
    requests, contract = some_requests(5, 48, 14), CONTRACTS[name]
    planner = random_plans(num_servers=SERVERS, max_draft_length=5, seed=2)
    records = play(models[0], models[1], requests, planner, contract, mode)
    assert own_output(models[1], requests, records, contract).equal == 5
    assert sum(record.handovers for record in records) > 3, "the plan must move sessions"
    assert 0 < np.mean([record.acceptance for record in records if record.tested]) < 1
    assert all(record.draws > len(record.tokens) for record in records)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["greedy", "gumbel"])
def test_the_shipped_pair_gives_its_targets_own_output(
    name: str, mode: str, random_plans: Any
) -> None:
    pair, contract = shipped_pair(), CONTRACTS[name]
    prompts = load_prompts(SHIPPED_PAIR_FOLDER / "prompts.jsonl")[::30][:3]
    requests = [
        Request(sid, sid, 0.1 * sid, tuple(pair.encode(prompt.text)[-48:]), 200, 20)
        for sid, prompt in enumerate(prompts)
    ]
    draft, target = (
        TransformerModel(model, pair.vocab_size) for model in (pair.draft, pair.target)
    )
    planner = random_plans(num_servers=SERVERS, max_draft_length=5, seed=4)
    records = play(draft, target, requests, planner, contract, mode)
    check = own_output(target, requests, records, contract)
    assert check.unexplained == ()
    assert check.equal + check.near_ties == 3
    assert sum(record.accepted for record in records) > 10


def test_coupled_output_is_that_of_sampling_on_the_server_alone(
    table_model: Any, random_plans: Any, fixed_plan: Any
) -> None:
    draft, target = table_model(6, 1), table_model(6, 0)
    requests = some_requests(4, 6, 20)
    drafted, alone = (
        play(draft, target, requests, planner, COUPLED, "sd")
        for planner in (
            random_plans(num_servers=SERVERS, max_draft_length=5),
            fixed_plan.of(draft_length=0, devices=DEVICES),
        )
    )
    assert sum(record.accepted for record in drafted) > 0
    assert [record.tokens for record in drafted] == [record.tokens for record in alone]


def test_a_coupled_answer_by_another_seed_is_unexplained(table_model: Any) -> None:
    model, sampling = table_model(6, 0), Sampling()
    requests = [Request(0, 0, 0.0, (0, 1), 2, 6)]
    answer, text = [], [0, 1]
    for position in range(2, 8):
        row = warp(model.logits[text[-2], text[-1]], sampling)
        # argmax of log p + Gumbel noise, the noise being minus the logarithm of the exponential.
        with np.errstate(divide="ignore"):
            scores = np.log(row) - np.log(Draws(77).noise(position, 6))
        answer.append(int(np.argmax(scores)))
        text.append(answer[-1])
    record = RequestRecord(
        sid=0, device=0, task=0, arrival_s=0.0, prompt_tokens=2, text_tokens=2, tokens=answer
    )

    def check(seed: int) -> ExactCheck:
        return check_coupled_exact(model, requests, [record], sampling, lambda sid: seed)

    assert check(77).equal == 1
    assert check(78).unexplained == (0,)
    assert check(77).sentence().startswith("coupled output against the target alone: 1 equal")


def test_only_the_first_difference_is_judged_by_its_logit_gap(table_model: Any) -> None:
    model = table_model(4, 0)
    model.logits[...] = np.array([0.0, 1.0, 5.0, 2.0])  # after anything but what follows: token 2
    model.logits[1, 2] = np.array([0.0, 3.0, 1.0, 3.0 - 5e-5])  # a near tie of 1 and 3
    model.logits[2, 2] = np.array([0.0, 3.0, 1.0, 3.0 - 5e-4])
    own = [2, 1, 2, 1]  # what the target says after (0, 1)
    answers = {
        1: own,
        2: [2, 3, 0, 0],  # differs at the near tie; what follows does not matter
        3: [2, 1, 3, 1],  # 3 instead of 2, by a gap of 3
        4: [],
    }
    requests = [Request(sid, 0, 0.0, (0, 1), 2, 4) for sid in answers]
    records = [
        RequestRecord(
            sid=sid, device=0, task=0, arrival_s=0.0, prompt_tokens=2, text_tokens=2, tokens=tokens
        )
        for sid, tokens in answers.items()
    ]
    check = check_greedy_exact(model, requests, records)
    assert (check.equal, check.near_ties, check.unexplained) == (2, 1, (3,))
    wide = [Request(5, 0, 0.0, (2, 2), 2, 1)]
    record = RequestRecord(
        sid=5, device=0, task=0, arrival_s=0.0, prompt_tokens=2, text_tokens=2, tokens=[3]
    )
    assert check_greedy_exact(model, wide, [record]).unexplained == (5,)
