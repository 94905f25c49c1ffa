"""Hit rates of guessed corrections against sums over every drafted and corrected token."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from experiments.pair.branches import (
    BRANCH_ROWS,
    branch_share,
    maxc_hits,
    onehot_hits,
    phone_share,
)
from uara.decoding.bernoulli import CountingCache
from uara.decoding.kv import Feed
from uara.decoding.models import SHIPPED_PAIR_FOLDER
from uara.serving.hardware import get_phone


def test_hits_of_maximal_coupling_are_those_of_every_rejected_token_and_correction() -> None:
    generator, count = np.random.default_rng(0), 2
    for _ in range(20):
        p, q = generator.dirichlet(np.full(6, 0.5), 2)
        rejection = np.maximum(p - q, 0) / np.maximum(p - q, 0).sum()
        wanted = 0.0
        for x in range(6):
            others = [y for y in np.argsort(-q) if y != x][:count]
            wanted += max(0.0, q[x] - p[x]) * rejection[others].sum()
        target, draft = torch.tensor(p), torch.tensor(q)
        found = maxc_hits(target, draft, draft.topk(count + 1).indices)
        assert float(found) == pytest.approx(wanted)


def test_hits_of_onehot_are_the_targets_next_choices_of_the_draft() -> None:
    p, q = torch.tensor([0.4, 0.3, 0.2, 0.1]), torch.tensor([0.1, 0.2, 0.3, 0.4])
    assert float(onehot_hits(p, q, q.topk(3).indices)) == pytest.approx(0.2 + 0.3)


def test_the_share_of_a_branch_is_the_slope_over_a_step_alone() -> None:
    now = 0.0

    class Lawful:
        vocab_size = 5

        def new_cache(self) -> CountingCache:
            return CountingCache()

        def forward(self, feeds: list[Feed]) -> list[np.ndarray]:
            nonlocal now
            now += 0.01 * (1 + 0.05 * (len(feeds) - 1))
            for feed in feeds:
                feed.cache.length += len(feed.tokens)
            return []

    found = branch_share(Lawful(), repeats=2, clock=lambda: now)
    assert found["share"] == pytest.approx(0.05)
    assert len(found["step_s"]) == len(BRANCH_ROWS)


def test_a_phone_pays_for_arithmetic_and_for_keys_that_are_not_shared() -> None:
    phone = get_phone("snapdragon-8-gen-3")
    shared, own = (phone_share(phone, shares_prefix=shares) for shares in (True, False))
    # 2.48e9 operations at 10e12 per second beside 17.9 ms; 512 x 32 KiB at 69 GB/s more.
    assert shared == pytest.approx(0.248e-3 / phone.draft_time_s)
    assert own - shared == pytest.approx(512 * 32768 / 69.12e9 / phone.draft_time_s, rel=1e-3)


def test_the_shipped_figures_belong_to_the_shipped_pair() -> None:
    found = json.loads((SHIPPED_PAIR_FOLDER / "branches.json").read_text())
    card = json.loads((SHIPPED_PAIR_FOLDER / "card.json").read_text())
    assert found["pair"] == card["pair"]
    for tasks in found["hit_rates"].values():
        for rates in tasks.values():
            assert rates["by_guesses"] == sorted(rates["by_guesses"]), "more guesses, more hits"
