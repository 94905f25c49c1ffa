"""Plans: replayed, within memory and band, and never worse than what they replace."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest

from uara.control.plan.baselines import BASELINES, greedy_cuts
from uara.control.plan.config import HetEdgeConfig
from uara.control.plan.planner import as_plan, choose, make_plan
from uara.control.plan.replay import replay
from uara.control.plan.tasks import Tasks

Make = Callable[..., HetEdgeConfig]
Draw = Callable[..., Tasks]

VARIANTS: list[dict[str, object]] = [
    {},
    {"search": "both"},
    {"draft_length_per_batch": True},
    {"upload": "batch_by_batch", "bits_per_token": 1e4},
    {"upload": "batch_by_batch", "bits_per_token": 1e4, "noise": "density"},
    {"memory_rule": "in_flight"},
    {"memory_rule": "in_flight", "upload": "batch_by_batch", "bits_per_token": 1e4},
]


@pytest.mark.parametrize("given", VARIANTS, ids=str)
def test_a_plan_comes_true(small: Make, drops: Draw, given: dict[str, object]) -> None:
    config = small(**given)
    plan = make_plan(config, drops(config))
    seen = replay(plan, config)
    predicted = [batch.completion_s for batch in plan.batches]
    assert seen.completion_s == pytest.approx(predicted, rel=1e-9)
    assert seen.peak_bandwidth_hz <= config.bandwidth_hz * (1 + 1e-9)
    assert sorted(k for batch in plan.batches for k in batch.tasks) == list(range(config.users))


@pytest.mark.parametrize("given", VARIANTS, ids=str)
def test_each_node_does_one_thing_at_a_time_in_order(
    small: Make, drops: Draw, given: dict[str, object]
) -> None:
    config = small(**given)
    plan = make_plan(config, drops(config))
    spans = replay(plan, config).spans
    for node in ("draft", "verify"):
        own = sorted((s for s in spans if s.node == node), key=lambda s: s.start_s)
        assert all(a.end_s <= b.start_s for a, b in itertools.pairwise(own))
    for number, batch in enumerate(plan.batches):
        own = [span for span in spans if span.batch == number]
        assert [span.node for span in own] == ["uplink", *["draft", "verify"] * batch.rounds]
        assert all(a.end_s <= b.start_s + 1e-12 for a, b in itertools.pairwise(own))
        assert max(plan.upload_end_s[k] for k in batch.tasks) <= own[1].start_s + 1e-12


def test_memory_is_kept_by_each_batch_or_by_all_in_flight(small: Make, drops: Draw) -> None:
    theirs, ours = small(), small(memory_rule="in_flight")
    tasks = drops(theirs)
    for drop in range(tasks.num_drops):
        plan = make_plan(theirs, tasks.drop(drop))
        assert max(b.cache_bytes for b in plan.batches) + plan.weight_bytes <= theirs.memory_bytes
        assert replay(plan, theirs).peak_memory_bytes > theirs.memory_bytes
        waves = make_plan(ours, tasks.drop(drop))
        assert replay(waves, ours).peak_memory_bytes <= ours.memory_bytes


@pytest.mark.parametrize("noise", ["power", "density"])
@pytest.mark.parametrize("bits_per_token", [16.0, 3e3, 3e4])
def test_uploading_batch_by_batch_is_never_worse(
    small: Make, drops: Draw, noise: str, bits_per_token: float
) -> None:
    config = small(noise=noise, bits_per_token=bits_per_token)
    early = config.model_copy(update={"upload": "batch_by_batch"})
    tasks = drops(config, 4)
    for waits, starts in zip(choose(config, tasks), choose(early, tasks), strict=True):
        assert starts.total_s <= waits.total_s * (1 + 1e-12)
        if bits_per_token > 1e4 and noise == "power":
            assert starts.total_s < waits.total_s


def test_more_freedom_is_never_worse(small: Make, drops: Draw) -> None:
    config = small()
    tasks = drops(config, 10)
    prefix, both, mixed = (
        np.array([c.total_s for c in choose(config.model_copy(update=given), tasks)])
        for given in ({}, {"search": "both"}, {"draft_length_per_batch": True, "search": "both"})
    )
    assert (both <= prefix * (1 + 1e-12)).all()
    assert (mixed <= both * (1 + 1e-12)).all()


@pytest.mark.parametrize("given", VARIANTS[:6], ids=str)
def test_renaming_tasks_renames_the_plan(
    small: Make, drops: Draw, given: dict[str, object]
) -> None:
    config = small(**given)
    tasks = drops(config, 1)
    assert len(np.unique(tasks.input_tokens)) == config.users
    new = np.random.default_rng(0).permutation(config.users)
    renamed = make_plan(config, Tasks(tasks.gain[:, new], tasks.input_tokens[:, new]))
    plan = make_plan(config, tasks)
    back = [tuple(int(new[k]) for k in batch.tasks) for batch in renamed.batches]
    assert back == [batch.tasks for batch in plan.batches]
    assert np.array(plan.bandwidth_hz)[new] == pytest.approx(renamed.bandwidth_hz)


def test_every_drop_is_planned_as_if_alone(small: Make, drops: Draw) -> None:
    config = small(memory_rule="in_flight", upload="batch_by_batch", search="both")
    tasks = drops(config, 4)
    for drop, choice in enumerate(choose(config, tasks)):
        alone = tasks.drop(drop)
        assert dataclasses.asdict(as_plan(config, alone, choice)) == dataclasses.asdict(
            make_plan(config, alone)
        )


def test_no_baseline_is_better_where_the_plan_could_copy_it(small: Make, drops: Draw) -> None:
    config = small(search="both")
    tasks = drops(config, 4)
    chosen = choose(config, tasks)
    own = np.array([choice.total_s for choice in chosen])
    for name in ("uniform_bandwidth", "series_of_the_plan", "no_batching", "max_sorted",
                 "heuristic", "fixed_length"):  # fmt: skip
        assert (BASELINES[name](config, tasks, chosen) >= own * 0.98).all(), name
    series, same = (
        BASELINES[n](config, tasks, chosen) for n in ("no_pipeline", "series_of_the_plan")
    )
    assert (series <= same * (1 + 1e-12)).all()


def test_plain_decoding_pays_for_every_token(small: Make, drops: Draw) -> None:
    config = small(fading="none")
    tasks = drops(config, 2)
    chosen = choose(config, tasks)
    upload_s = [choice.release_s[0] for choice in chosen]
    longest = tasks.input_tokens.max(-1)
    once = BASELINES["decoding_at_once"](config, tasks, chosen)
    assert once == pytest.approx(config.cost.plain_decoding_s(9, longest) + upload_s)
    batched = BASELINES["decoding_in_batches"](config, tasks, chosen)
    assert (batched > once).all()


def test_greedy_batches_close_when_full_or_of_another_class(small: Make) -> None:
    config = small()
    prompts = np.array([5.0, 100.0, 129.0, 300.0, 310.0, 320.0, 321.0])
    room = float(config.cost.batch_bytes(3, 321))
    assert greedy_cuts(config.cost, prompts, room, 99, 128) == [2, 1, 3, 1]
    assert greedy_cuts(config.cost, prompts, room, 2, np.inf) == [2, 2, 2, 1]
    assert sum(greedy_cuts(config.cost, prompts, room, 99, np.inf)) == 7
