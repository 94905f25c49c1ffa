"""Traces of acceptance: replay and models against enumeration, laws against single tokens."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import beta
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.pair import traces as tr
from experiments.pair.traces import Trace
from uara.decoding.models import Prompt
from uara.errors import UserError
from uara.world.acceptance import Traces

LENGTH = 9


def rounds_of(bits: tuple[int, ...], draft_length: int) -> int:
    """Play the rounds of one text whose tokens pass or not, one after the other."""
    position, count = 1, 0
    while position < len(bits):
        count += 1
        accepted = 0
        while accepted < min(draft_length, len(bits) - position - 1) and bits[position + accepted]:
            accepted += 1
        position += accepted + 1
    return count


def mean_rounds(chance: object, draft_length: int) -> float:
    """Average over all texts, each with its probability."""
    return sum(
        chance(bits) * rounds_of(bits, draft_length)
        for bits in itertools.product((0, 1), repeat=LENGTH)
    )


@pytest.mark.parametrize("draft_length", [1, 2, 3, 8])
def test_replay_counts_verifications_exactly(draft_length: int) -> None:
    rate = np.random.default_rng(0).uniform(size=LENGTH)

    def chance(bits: tuple[int, ...]) -> float:
        return float(np.prod(np.where(bits, rate, 1 - rate)))

    assert tr.verifications(rate, draft_length) == pytest.approx(mean_rounds(chance, draft_length))


@pytest.mark.parametrize("draft_length", [1, 2, 5, 8])
def test_two_states_count_verifications_exactly(draft_length: int) -> None:
    model = tr.TwoState(0.85, 0.4)
    share = 0.4 / (1 - 0.85 + 0.4)

    def chance(bits: tuple[int, ...]) -> float:
        total = share if bits[0] else 1 - share
        for before, after in itertools.pairwise(bits):
            passes = 0.85 if before else 0.4
            total *= passes if after else 1 - passes
        return total

    expected = (LENGTH - 1) / mean_rounds(chance, draft_length)
    assert model.tau(draft_length, LENGTH) == pytest.approx(expected)


def test_no_state_is_a_constant() -> None:
    for draft_length in (1, 4):
        two = tr.TwoState(0.7, 0.7).tau(draft_length, 40)
        assert two == pytest.approx(tr.Constant(0.7).tau(draft_length, 40))
        narrow = tr.BetaGeometric(7e6, 3e6).tau(draft_length, 40)
        assert narrow == pytest.approx(tr.Constant(0.7).tau(draft_length, 40), rel=1e-3)


def make_traces(rates: np.ndarray, task: str = "code") -> list[Trace]:
    return [Trace(f"{i}", task, rate) for i, rate in enumerate(rates)]


def test_fits_find_what_the_traces_were_made_of() -> None:
    generator = np.random.default_rng(1)
    own = generator.beta(6.0, 2.0, 4000)
    bits = (generator.random((4000, 60)) < own[:, None]).astype(float)
    found = tr.BetaGeometric.fit(make_traces(bits))
    assert (found.a, found.b) == (pytest.approx(6.0, rel=0.1), pytest.approx(2.0, rel=0.1))
    assert tr.Constant.fit(make_traces(bits)).alpha == pytest.approx(0.75, abs=0.01)
    chain = np.zeros((500, 200))
    for t in range(1, 200):
        passes = np.where(chain[:, t - 1] > 0, 0.9, 0.5)
        chain[:, t] = generator.random(500) < passes
    two = tr.TwoState.fit(make_traces(chain))
    assert (two.after_pass, two.after_fail) == (
        pytest.approx(0.9, abs=0.01),
        pytest.approx(0.5, abs=0.01),
    )


def test_the_interval_resamples_prompts_not_tokens() -> None:
    # Two kinds of texts: tokens alone would give an interval ten times too narrow.
    rates = np.repeat([[0.9], [0.5]], 20, axis=0) * np.ones((40, 101))
    mean, low, high = tr.bootstrap_mean(make_traces(rates))
    assert mean == pytest.approx(0.7)
    assert high - low == pytest.approx(2 * 1.96 * 0.2 / np.sqrt(40), rel=0.15)


def test_hazards_of_constant_texts_are_flat() -> None:
    assert tr.hazard_by_position(make_traces(np.full((3, 30), 0.6))) == pytest.approx([0.6] * 8)


class Pair:
    """Two random transformers, as far as traces look at a pair."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        shape = {"vocab_size": 12, "hidden_size": 16, "intermediate_size": 16}
        heads = {"num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
        config = LlamaConfig(**shape, **heads, initializer_range=0.5)
        self.draft, self.target = (
            LlamaForCausalLM(config).double().eval().requires_grad_(False) for _ in range(2)
        )
        self.models = (self.target, self.draft)
        self.vocab_size = 10  # the last two rows are padding
        self.context_tokens = 64

    def encode(self, text: str) -> list[int]:
        """Take each letter for a token."""
        return [ord(letter) - ord("a") for letter in text]


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_a_draft_that_follows_meets_the_acceptance_of_each_token(temperature: float) -> None:
    pair, prompt, text = Pair(), [1, 2, 3], [4, 9, 0, 7, 7]
    rate = tr.follow(pair, prompt, text, temperature)
    for index, token in enumerate(text):
        ids = torch.tensor([[*prompt, *text[:index]]])
        p, q = (m(input_ids=ids).logits[0, -1, :10] for m in (pair.target, pair.draft))
        if temperature == 0:
            expected = float(int(q.argmax()) == token)
        else:
            p, q = (torch.softmax(row / temperature, 0)[token] for row in (p, q))
            expected = float(min(1.0, q / p))
        assert rate[index] == pytest.approx(expected)


def test_traces_follow_the_texts_of_the_target() -> None:
    pair = Pair()
    pair.vocab_size = 12  # texts are drawn from all rows
    prompts = [Prompt(f"{n}", "code", "abc" * n) for n in range(1, 20)]
    found = tr.measure_traces(pair, prompts, 0.0, max_tokens=6)
    assert [trace.prompt for trace in found] == [prompt.id for prompt in prompts]
    for trace, prompt in zip(found, prompts, strict=True):
        ids, rate = pair.encode(prompt.text), []
        for _ in range(6):
            p, q = (m(input_ids=torch.tensor([ids])).logits[0, -1] for m in pair.models)
            rate.append(float(p.argmax() == q.argmax()))
            ids.append(int(p.argmax()))
        assert trace.rate.tolist() == rate
    with pytest.raises(UserError, match="exceed the pair's context"):
        tr.measure_traces(pair, prompts, 0.0, max_tokens=8)


def test_a_trace_file_is_what_worlds_read(tmp_path: Path) -> None:
    tasks = ("chat", "summarise", "code")
    found = [Trace(f"{t}{i}", t, np.full(12, 0.1 * i)) for t in tasks for i in range(1, 5)]
    path = tmp_path / "traces.json"
    path.write_text(json.dumps(tr.trace_file("pair", found, 0.7)))
    read = Traces.load(path, (*tasks, "photo"))
    assert read.block_tokens == 1
    assert read.rate[0, 2, 5] == pytest.approx(0.3)
    assert torch.equal(read.rate[3], read.rate[0])


def test_replay_beats_a_constant_where_texts_differ() -> None:
    # Every text comes twice, once in each half.
    levels = np.repeat(beta.ppf((np.arange(20) + 0.5) / 20, 2.0, 1.0), 2)
    told = tr.summary(make_traces(levels[:, None] * np.ones((40, 40))))["code"]
    errors = {name: np.abs(row).max() for name, row in told["held_out_tau_error"].items()}
    assert errors["replay"] == pytest.approx(0.0, abs=1e-12)
    assert errors["beta_geometric"] < 0.02
    assert errors["constant"] > 0.03
