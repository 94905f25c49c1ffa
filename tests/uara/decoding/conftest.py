"""Small models and plans that the decoding tests share."""

# ruff: noqa: D102 -- the names of test doubles say what they do

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from uara.decoding.kernel import VirtualKernel
from uara.decoding.kv import Feed, Floats
from uara.decoding.scenario import SlotPlan

# Models this small lose more to thread hand-over than they gain.
torch.set_num_threads(1)


@dataclass
class TableCache:
    """A context that is simply remembered."""

    tokens: list[int] = field(default_factory=list)

    @property
    def length(self) -> int:
        return len(self.tokens)

    def roll_back(self, length: int) -> None:
        assert length <= len(self.tokens)
        del self.tokens[length:]

    def fork(self) -> TableCache:
        return TableCache(list(self.tokens))


@dataclass
class TableModel:
    """A language model that is a table: the law depends on the last two tokens."""

    logits: Floats  # (V, V, V): one before last, last, next
    fed: list[int] = field(default_factory=list)

    @property
    def vocab_size(self) -> int:
        return int(self.logits.shape[-1])

    def new_cache(self) -> TableCache:
        return TableCache()

    def forward(self, feeds: Sequence[Feed]) -> list[Floats]:
        outputs = []
        for feed in feeds:
            assert isinstance(feed.cache, TableCache)
            start = feed.cache.length
            feed.cache.tokens.extend(feed.tokens)
            self.fed.append(len(feed.tokens))
            context = [0, *feed.cache.tokens]
            rows = [self.logits[context[i], context[i + 1]] for i in range(start, len(context) - 1)]
            outputs.append(np.array(rows)[feed.logits_from :])
        return outputs


@pytest.fixture
def table_model() -> Callable[[int, int], TableModel]:
    """Make a table model of V tokens from a seed."""

    def make(vocab_size: int, seed: int) -> TableModel:
        return TableModel(np.random.default_rng(seed).normal(0, 1, (vocab_size,) * 3))

    return make


def _llama(hidden: int, layers: int, seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=48,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=128,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).double().eval().requires_grad_(False)


@pytest.fixture(scope="session")
def random_target() -> LlamaForCausalLM:
    """A random float64 transformer of two layers."""
    return _llama(16, 2, 0)


@pytest.fixture(scope="session")
def random_draft(random_target: LlamaForCausalLM) -> LlamaForCausalLM:
    """The target with noise on its weights, so that it often agrees with it."""
    draft = _llama(16, 2, 0)
    generator = torch.Generator().manual_seed(1)
    for weight in draft.parameters():
        noise = torch.randn(weight.shape, generator=generator, dtype=weight.dtype)
        weight += 0.1 * weight.std().nan_to_num() * noise
    return draft


@dataclass
class RandomPlans:
    """Servers, draft lengths and rates that change at random in every slot."""

    num_servers: int
    max_draft_length: int
    seed: int = 0

    def plan(self, now: float, kernel: VirtualKernel) -> SlotPlan:
        generator = np.random.default_rng([self.seed, kernel.slot])
        count = len(kernel.devices)
        return SlotPlan(
            server=generator.integers(0, self.num_servers, count),
            draft_length=generator.integers(0, self.max_draft_length + 1, count),
            uplink_bps=generator.uniform(1e4, 1e6, count),
            downlink_bps=generator.uniform(1e4, 1e6, count),
        )


@pytest.fixture
def random_plans() -> type[RandomPlans]:
    """The class of random plans."""
    return RandomPlans


@dataclass
class FixedPlan:
    """The same plan in every slot, or one per slot from a list whose last stays."""

    plans: list[SlotPlan]

    @classmethod
    def of(
        cls,
        *,
        draft_length: int,
        servers: Sequence[int] = (0,),
        rate_bps: float = np.inf,
        devices: int = 1,
    ) -> FixedPlan:
        return cls(
            [
                SlotPlan(
                    np.full(devices, server),
                    np.full(devices, draft_length),
                    np.full(devices, float(rate_bps)),
                    np.full(devices, float(rate_bps)),
                )
                for server in servers
            ]
        )

    def plan(self, now: float, kernel: VirtualKernel) -> SlotPlan:
        return self.plans[min(kernel.slot, len(self.plans) - 1)]


@pytest.fixture
def fixed_plan() -> type[FixedPlan]:
    """The class of fixed plans."""
    return FixedPlan
