"""Models that have few laws give the rows that warping their logits would."""

from __future__ import annotations

import numpy as np
import pytest

from uara.decoding.bernoulli import BernoulliModel
from uara.decoding.kv import Feed
from uara.decoding.laws import laws_of
from uara.decoding.rules import Sampling, warp
from uara.decoding.table_model import TableModel

MODELS = {
    "table": TableModel(np.random.default_rng(0).normal(0, 1, (6, 6, 6))),
    "bernoulli": BernoulliModel((0.7, 0.3)),
}


@pytest.mark.parametrize("name", MODELS)
def test_rows_are_those_of_the_logits(name: str) -> None:
    model, tokens = MODELS[name], (1, 0, 1, 1, 0)
    for sampling in (Sampling(), Sampling(0.7, top_k=2)):
        logits_cache, rows_cache = model.new_cache(), model.new_cache()
        for begin, end, first in ((0, 2, 0), (2, 4, 1), (4, 5, 0)):
            fresh = tokens[begin:end]
            (logits,) = model.forward([Feed(logits_cache, fresh, first)])
            (rows,) = laws_of(model)([Feed(rows_cache, fresh, first)], [sampling])
            assert len(rows) == end - begin - first
            for own, wanted in zip(rows, logits, strict=True):
                np.testing.assert_array_equal(own, warp(wanted, sampling))
            assert rows_cache.length == end


def test_a_table_looks_at_the_last_two_tokens_and_at_token_0_before_the_first() -> None:
    table = MODELS["table"]
    assert isinstance(table, TableModel)
    cache = table.new_cache()
    (logits,) = table.forward([Feed(cache, (3, 5))])
    np.testing.assert_array_equal(logits, [table.logits[0, 3], table.logits[3, 5]])
    cache.roll_back(1)
    (logits,) = table.forward([Feed(cache, (2,))])
    np.testing.assert_array_equal(logits, [table.logits[3, 2]])
