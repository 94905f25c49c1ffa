"""The dynamic programme against every way to cut nine tasks, and memory."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest

from uara.control.plan.batching import (
    Array,
    Batching,
    Integers,
    pack,
    prefix_batches,
    sampled_rounds,
    wave_batches,
)
from uara.control.plan.config import HetEdgeConfig
from uara.control.plan.model_cost import ServingCost
from uara.control.plan.pipeline import run_pipeline
from uara.control.plan.planner import choose, make_schedule
from uara.control.plan.tasks import Tasks, draw_tasks

RandomCost = Callable[[np.random.Generator], ServingCost]
TASKS = 9
EVERY = [
    np.diff([0, *np.flatnonzero(marks) + 1, TASKS]).tolist()
    for marks in itertools.product((False, True), repeat=TASKS - 1)
]


def sorted_prompts(rng: np.random.Generator, drops: int) -> Array:
    return np.sort(rng.integers(1, 513, (drops, TASKS)), -1).astype(float)


def test_nine_tasks_are_cut_nearly_as_well_as_can_be(small: Callable[..., HetEdgeConfig]) -> None:
    rng = np.random.default_rng(0)
    prefix: list[float] = []
    both: list[float] = []
    for _ in range(20):
        draft, verify = (("68m", "7b"), ("1.1b", "7b"), ("1.1b", "13b"))[rng.integers(3)]
        config = small(
            draft=draft,
            verify=verify,
            acceptance=rng.uniform(0.5, 0.9),
            output_tokens_max=rng.integers(24, 64),
            memory_bytes=16e9,
        )
        room = float(config.cost.batch_bytes(rng.integers(3, 10), 512))
        config = config.model_copy(update={"memory_bytes": room + config.cost.draft.weight_bytes})
        tasks, length = draw_tasks(config, 25), np.array([rng.integers(1, 6)])
        best = least_completion_s(config, tasks, length)
        for search, gaps in (("prefix", prefix), ("both", both)):
            chosen = choose(config.model_copy(update={"search": search}), tasks, length)
            gaps += [c.total_s / b - 1 for c, b in zip(chosen, best, strict=True)]
    assert len(both) == 500
    assert min(prefix + both) > -1e-12
    assert np.mean(prefix) < 0.003
    assert np.mean(both) < 0.0003
    assert max(both) < 0.03


def least_completion_s(config: HetEdgeConfig, tasks: Tasks, length: Integers) -> Array:
    """Play every cut of the sorted tasks that fits in memory, (D,)."""
    prompts = np.sort(tasks.input_tokens, -1)
    sizes = np.array([cut + [0] * (TASKS - len(cut)) for cut in EVERY])  # (cuts, M)
    longest = prompts[:, np.cumsum(sizes, -1) - 1] * (sizes > 0)
    every = Batching(np.broadcast_to(sizes, longest.shape), longest, np.zeros_like(sizes))
    upload_s = (tasks.bits(config) / tasks.efficiency(config)).sum(-1) / config.bandwidth_hz
    release_s = np.broadcast_to(upload_s[:, None, None], every.tasks.shape)
    lengths = np.broadcast_to(length, every.tasks.shape)
    ends = run_pipeline(make_schedule(config.cost, every, lengths, release_s))
    held = config.cost.batch_bytes(every.tasks, every.input_tokens).max(-1)
    return np.asarray(np.where(held <= config.cache_bytes, np.nanmax(ends, -1), np.inf).min(-1))


def test_memory_holds_for_every_batch(random_cost: RandomCost) -> None:
    rng = np.random.default_rng(1)
    cost, prompts = random_cost(rng), sorted_prompts(rng, 20)
    room = float(cost.batch_bytes(3, 512))
    found = prefix_batches(cost, prompts, np.array([1, 4]), room, 8)
    assert (cost.batch_bytes(found.tasks, found.input_tokens) <= room).all()
    assert (found.tasks.sum(-1) == TASKS).all()
    assert found.tasks.max() > 3  # short prompts leave room for more of them


def test_memory_holds_for_all_batches_of_a_wave(random_cost: RandomCost) -> None:
    rng = np.random.default_rng(2)
    cost, prompts = random_cost(rng), sorted_prompts(rng, 6)
    room = float(cost.batch_bytes(4, 512))
    found = wave_batches(cost, prompts, np.array([1, 4]), room, 8)
    held = cost.batch_bytes(found.tasks, found.input_tokens)
    assert found.wave.max() > 0
    for wave in range(int(found.wave.max()) + 1):
        assert (np.where(found.wave == wave, held, 0.0).sum(-1) <= room).all()
    assert (found.tasks.sum(-1) == TASKS).all()


def test_one_wave_is_enough_where_all_fit(random_cost: RandomCost) -> None:
    rng = np.random.default_rng(3)
    cost, prompts = random_cost(rng), sorted_prompts(rng, 2)
    plain = prefix_batches(cost, prompts, np.array([3]), 1e12, 8)
    waves = wave_batches(cost, prompts, np.array([3]), 1e12, 8)
    assert np.array_equal(plain.tasks, waves.tasks)
    assert waves.wave.max() == 0


def test_sampled_rounds_stand_for_all() -> None:
    rounds = np.array([1.0, 2.0, 5.0, 700.0])
    numbers, weights = sampled_rounds(rounds, 6)
    assert weights.sum(-1) == pytest.approx(rounds)
    # Exact for what is linear from round 2 on.
    linear = np.where(numbers == 1, 50.0, 3.0 + 0.5 * numbers)
    expected = [50 + sum(3 + 0.5 * n for n in range(2, int(r) + 1)) for r in rounds]
    assert (linear * weights).sum(-1) == pytest.approx(expected)
    assert numbers[3, -1] == 700


def test_batches_are_padded_to_their_longest_prompt() -> None:
    packed = pack(np.array([[3.0, 9.0, 4.0, 5.0]]), [[[2, 2], [4]]], [[[0, 0], [0]]])
    assert packed.input_tokens.tolist() == [[[9.0, 5.0], [9.0, 0.0]]]
    assert packed.tasks.tolist() == [[[2, 2], [4, 0]]]
