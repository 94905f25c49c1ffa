"""What the planner is held against, each with its rule, since the paper names most of them only.

Shape legend: D drops, K tasks, C draft lengths, M batches.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from uara.control.plan.batching import pack
from uara.control.plan.config import HetEdgeConfig
from uara.control.plan.front import batch_totals
from uara.control.plan.model_cost import ServingCost
from uara.control.plan.planner import Choice, choose, serve
from uara.control.plan.tasks import Tasks

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Baseline = Callable[[HetEdgeConfig, Tasks, list[Choice]], Array]


def greedy_cuts(
    cost: ServingCost, input_tokens: Array, cache_bytes: float, most_tasks: int, bucket: float
) -> list[int]:
    """Fill batches task by task.

    Args:
        cost: for the memory.
        input_tokens: (K,) in the order of service.
        cache_bytes: memory for a batch's cache.
        most_tasks: at which a batch is full.
        bucket: width of the classes of input lengths that are not mixed.

    Returns:
        Tasks of each batch.
    """
    cuts = [0]
    longest, family = 0.0, -1
    for prompt in input_tokens:
        grown = max(longest, float(prompt))
        own = int((prompt - 1) // bucket)
        fits = float(cost.batch_bytes(cuts[-1] + 1, grown)) <= cache_bytes
        if cuts[-1] and (not fits or cuts[-1] == most_tasks or own != family):
            cuts.append(0)
            grown = float(prompt)
        cuts[-1] += 1
        longest, family = grown, own
    return cuts


def _served_greedily(
    config: HetEdgeConfig,
    tasks: Tasks,
    *,
    is_sorted: bool,
    most_tasks: int | None = None,
    bucket: float = np.inf,
) -> Array:
    """Serve greedy batches with each drop's best draft length, (D,) seconds."""
    order = np.broadcast_to(np.arange(config.users), tasks.input_tokens.shape)
    if is_sorted:
        order = np.argsort(tasks.input_tokens, axis=-1, kind="stable")
    prompts = np.take_along_axis(tasks.input_tokens, order, -1)
    most = most_tasks or config.users
    cost, lengths = config.cost, _lengths(config)
    cuts = [greedy_cuts(cost, row, config.cache_bytes, most, bucket) for row in prompts]
    waves = [_greedy_waves(config, *pair) for pair in zip(prompts, cuts, strict=True)]
    packed = pack(
        prompts, [[cut] * len(lengths) for cut in cuts], [[w] * len(lengths) for w in waves]
    )
    chosen = serve(config, tasks, order, packed, lengths[:, None], upload=config.upload)
    return _totals(chosen)


def _greedy_waves(config: HetEdgeConfig, input_tokens: Array, cuts: list[int]) -> list[int]:
    """Number waves: a batch that does not fit beside those of its wave begins the next one."""
    if config.memory_rule == "per_batch":
        return [0] * len(cuts)
    padded = np.maximum.reduceat(input_tokens, np.cumsum([0, *cuts[:-1]]))
    waves, held, wave = [], 0.0, 0
    for own in config.cost.batch_bytes(cuts, padded):
        if held + own > config.cache_bytes:
            held, wave = 0.0, wave + 1
        held += float(own)
        waves.append(wave)
    return waves


def _lengths(config: HetEdgeConfig) -> Integers:
    return np.arange(1, config.draft_length_max + 1, dtype=np.int64)


def _totals(chosen: list[Choice]) -> Array:
    return np.array([choice.total_s for choice in chosen])


def uniform_bandwidth(config: HetEdgeConfig, tasks: Tasks, chosen: list[Choice]) -> Array:
    """Keep the plan, but split the band evenly and wait for the last upload."""
    return _replayed(config, tasks, chosen, is_pipelined=True, is_uniform=True)


def series_of_the_plan(config: HetEdgeConfig, tasks: Tasks, chosen: list[Choice]) -> Array:
    """Keep the plan, but never draft and verify at once."""
    return _replayed(config, tasks, chosen, is_pipelined=False, is_uniform=False)


def _replayed(
    config: HetEdgeConfig,
    tasks: Tasks,
    chosen: list[Choice],
    *,
    is_pipelined: bool,
    is_uniform: bool,
) -> Array:
    totals = []
    for d, choice in enumerate(chosen):
        alone = tasks.drop(d)
        prompts = alone.input_tokens[:, choice.order]
        packed = pack(prompts, [[choice.tasks.tolist()]], [[choice.wave.tolist()]])
        served = serve(
            config, alone, choice.order[None], packed, choice.draft_length,
            upload="uniform" if is_uniform else choice.upload, is_pipelined=is_pipelined,
        )  # fmt: skip
        totals.append(served[0].total_s)
    return np.array(totals)


def no_pipeline(config: HetEdgeConfig, tasks: Tasks, chosen: list[Choice]) -> Array:
    """Plan for stages that never overlap: batches of least total work, best draft length."""
    lengths = _lengths(config)
    totals = []
    for d in range(tasks.num_drops):
        alone = tasks.drop(d)
        order = np.argsort(alone.input_tokens, axis=-1, kind="stable")
        prompts = alone.input_tokens[0, order[0]]
        work = batch_totals(config.cost, prompts, lengths, config.cache_bytes)
        cuts = _least_work(work.draft_s + work.verify_s)
        packed = pack(prompts[None], [cuts], [[[0] * len(cut) for cut in cuts]])
        served = serve(
            config, alone, order, packed, lengths[:, None], upload=config.upload, is_pipelined=False
        )
        totals.append(served[0].total_s)
    return np.array(totals)


def _least_work(work_s: Array) -> list[list[int]]:
    """Cut tasks into batches of least total work, exact since the work adds up.

    Args:
        work_s: (K, K, C) of batches from task to task.

    Returns:
        Batch sizes per draft length.
    """
    tasks, _, lengths = work_s.shape
    least = np.zeros((tasks + 1, lengths))
    begin = np.zeros((tasks + 1, lengths), np.int64)
    for end in range(1, tasks + 1):
        totals = least[:end] + work_s[:end, end - 1]
        begin[end], least[end] = totals.argmin(0), totals.min(0)
    cuts: list[list[int]] = []
    for c in range(lengths):
        end, own = tasks, []
        while end > 0:
            own.append(int(end - begin[end, c]))
            end = int(begin[end, c])
        cuts.append(own[::-1])
    return cuts


def no_batching(config: HetEdgeConfig, tasks: Tasks, chosen: list[Choice]) -> Array:
    """Serve every task in a batch of its own."""
    return _served_greedily(config, tasks, is_sorted=True, most_tasks=1)


def static_batching(config: HetEdgeConfig, tasks: Tasks, chosen: list[Choice]) -> Array:
    """Fill batches of one size in the order of arrival."""
    return _served_greedily(config, tasks, is_sorted=False, most_tasks=config.static_batch_tasks)


def max_batching(config: HetEdgeConfig, tasks: Tasks, chosen: list[Choice]) -> Array:
    """Fill batches to the memory limit in the order of arrival."""
    return _served_greedily(config, tasks, is_sorted=False)


def max_batching_sorted(config: HetEdgeConfig, tasks: Tasks, chosen: list[Choice]) -> Array:
    """Fill batches to the memory limit, shortest prompts first."""
    return _served_greedily(config, tasks, is_sorted=True)


def heuristic_batching(config: HetEdgeConfig, tasks: Tasks, chosen: list[Choice]) -> Array:
    """Batch prompts of one class of lengths, as many as fit in memory."""
    return _served_greedily(config, tasks, is_sorted=True, bucket=config.bucket_tokens)


def fixed_length(config: HetEdgeConfig, tasks: Tasks, chosen: list[Choice]) -> Array:
    """Plan as we do, but with one given draft length."""
    return _totals(choose(config, tasks, np.array([config.fixed_draft_length])))


def decoding_in_batches(config: HetEdgeConfig, tasks: Tasks, chosen: list[Choice]) -> Array:
    """Let the verify model decode the plan's own batches alone, one after the other."""
    totals = []
    for choice in chosen:
        work_s = config.cost.plain_decoding_s(choice.tasks, choice.input_tokens)
        done_s = 0.0
        for release_s, own_s in zip(choice.release_s, work_s, strict=True):
            done_s = max(done_s, float(release_s)) + float(own_s)
        totals.append(done_s)
    return np.array(totals)


def decoding_at_once(config: HetEdgeConfig, tasks: Tasks, chosen: list[Choice]) -> Array:
    """Let the verify model decode all tasks in one batch, whatever memory that takes."""
    longest = tasks.input_tokens.max(-1)
    release_s = np.array([choice.release_s.max() for choice in chosen])
    return np.asarray(release_s + config.cost.plain_decoding_s(config.users, longest))


BASELINES: dict[str, Baseline] = {
    "uniform_bandwidth": uniform_bandwidth,
    "no_pipeline": no_pipeline,
    "series_of_the_plan": series_of_the_plan,
    "no_batching": no_batching,
    "static": static_batching,
    "max": max_batching,
    "max_sorted": max_batching_sorted,
    "heuristic": heuristic_batching,
    "fixed_length": fixed_length,
    "decoding_in_batches": decoding_in_batches,
    "decoding_at_once": decoding_at_once,
}
