"""Ragged batches over rolled-back caches give what single sequences give."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM

from tests.uara.decoding.test_exactness import FAMILIES, random_pair
from uara.decoding.kv import Feed, TransformerModel
from uara.errors import UserError


def whole(model: Any, tokens: list[int]) -> np.ndarray:
    with torch.inference_mode():
        return model(input_ids=torch.tensor([tokens])).logits[0].numpy()


@pytest.mark.parametrize("family", FAMILIES)
def test_ragged_batches_equal_single_runs(family: str) -> None:
    target = random_pair(family)[1]
    model = TransformerModel(target)
    generator = np.random.default_rng(0)
    texts: list[list[int]] = [[] for _ in range(4)]
    caches = [model.new_cache() for _ in texts]
    for _ in range(6):
        feeds, wanted = [], []
        for text, cache in zip(texts, caches, strict=True):
            keep = int(generator.integers(0, len(text) + 1))
            del text[keep:]
            cache.roll_back(keep)
            fresh = generator.integers(0, 48, generator.integers(1, 7)).tolist()
            text += fresh
            first = int(generator.integers(0, len(fresh)))
            feeds.append(Feed(cache, fresh, first))
            wanted.append(whole(target, text)[keep + first :])
        for got, expected in zip(model.forward(feeds), wanted, strict=True):
            np.testing.assert_allclose(got, expected, atol=1e-12, rtol=0)
        assert [cache.length for cache in caches] == [len(text) for text in texts]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_read_in_chunks_beside_others_gives_the_logits_of_one_reading(
    family: str,
) -> None:
    target = random_pair(family)[1]
    model, generator = TransformerModel(target), np.random.default_rng(1)
    text, other = (generator.integers(0, 48, 60).tolist() for _ in range(2))
    cache, beside = model.new_cache(), model.new_cache()
    read, rows = 0, []
    for turn, size in enumerate((17, 1, 30, 12)):
        feeds = [
            Feed(cache, text[read : read + size]),
            Feed(beside, other[3 * turn : 3 * turn + 3]),
        ]
        rows.append(model.forward(feeds)[0])
        read += size
    np.testing.assert_allclose(np.concatenate(rows), whole(target, text), atol=1e-12, rtol=0)


def test_sessions_join_and_leave_a_batch(random_target: Any) -> None:
    model = TransformerModel(random_target)
    first, second = model.new_cache(), model.new_cache()
    model.forward([Feed(first, [1, 2, 3])])
    _, joined = model.forward([Feed(first, [4]), Feed(second, [7, 8])])
    (alone,) = model.forward([Feed(second, [9])])
    np.testing.assert_allclose(joined, whole(random_target, [7, 8]), atol=1e-12)
    np.testing.assert_allclose(alone[-1], whole(random_target, [7, 8, 9])[-1], atol=1e-12)


def test_rolling_forward_is_a_defect(random_target: Any) -> None:
    model = TransformerModel(random_target)
    cache = model.new_cache()
    model.forward([Feed(cache, [1, 2, 3])])
    with pytest.raises(AssertionError, match="cannot roll 3 tokens back to 4"):
        cache.roll_back(4)


def test_padding_rows_of_the_vocabulary_are_cut(random_target: Any) -> None:
    model = TransformerModel(random_target, vocab_size=40)
    (logits,) = model.forward([Feed(model.new_cache(), [1, 2])])
    assert logits.shape == (2, 40)


def test_models_with_sliding_windows_are_refused() -> None:
    config = MistralConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, sliding_window=4,
    )  # fmt: skip
    with pytest.raises(UserError, match="full attention only"):
        TransformerModel(MistralForCausalLM(config))
    named = SimpleNamespace(layer_types=["full_attention", "sliding_attention"])
    with pytest.raises(UserError, match="sliding_attention layers"):
        TransformerModel(SimpleNamespace(config=named))
