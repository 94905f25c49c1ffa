"""Our loop and transformers' assisted generation give the same greedy answers."""

from __future__ import annotations

import pytest
import torch

from benchmarks.assisted_generation import assisted, race, shipped_texts
from uara.decoding.models import shipped_pair


def test_both_loops_give_the_same_answer() -> None:
    torch.set_num_threads(1)
    pair = shipped_pair()
    (row,) = race(pair, shipped_texts(pair, 1, length=32), count=12, gamma=3)
    assert row.ours == row.theirs
    assert 0 < len(row.ours) <= 12
    assert min(row.own_s, row.their_s) > 0


@pytest.mark.slow
def test_both_loops_give_the_same_answers_in_double_precision() -> None:
    pair = shipped_pair(dtype=torch.float64)
    texts = shipped_texts(pair, 4, length=64)
    for row in race(pair, texts, count=32, gamma=4):
        assert row.ours == row.theirs
    # What both loops should say: greedy decoding of the target alone.
    text = texts[0]
    ids = torch.tensor([text])
    with torch.inference_mode():
        alone = pair.target.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=32, do_sample=False,
            eos_token_id=pair.end_token_id, pad_token_id=pair.end_token_id,
        )  # fmt: skip
    assert tuple(alone[0, len(text) :].tolist()) == assisted(pair, text, count=32, gamma=4)
