"""Cuts tasks, sorted by input length, into batches: the dynamic programme over prefixes, and waves.

Shape legend: D drops, K tasks in order of service, L draft lengths, J first tasks of a last batch,
Q rounds looked at, M batches.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from uara.control.plan.model_cost import ServingCost

Array = NDArray[np.float64]
Integers = NDArray[np.int64]


@dataclass(frozen=True)
class Batching:
    """Batches of consecutive tasks in the order of service; places without a batch have no task."""

    tasks: Integers  # (..., M)
    input_tokens: Array  # (..., M) length of the longest prompt, to which the others are padded
    wave: Integers  # (..., M) batches of one wave are in memory together


@dataclass(frozen=True)
class _Prefixes:
    """What the dynamic programme knows of the first i tasks, i = 0 .. K."""

    value: Array  # (K + 1, D, L) least sum over rounds, infinite where memory does not suffice
    batch_tasks: Integers  # (K + 1, D, L) in the last batch


def prefix_batches(
    cost: ServingCost,
    input_tokens: Array,
    draft_length: Integers,
    cache_bytes: float,
    round_samples: int,
) -> Batching:
    """Cut tasks into batches by the dynamic programme of arXiv 2510.11331.

    For each number of first tasks it keeps, per round n, when both nodes end, counted as if every
    round began with both of them free:

        S_n(i) = S_n(j - 1) + T_draft(n, j..i)
        V_n(i) = max(V_n(j - 1), S_n(i)) + T_verify(n, j..i)

    and of all last batches j..i whose cache fits the one with the least sum of V_n over rounds. As
    one pair of vectors is kept for a prefix, it is a heuristic.

    Args:
        cost: models and machines.
        input_tokens: (D, K), ascending.
        draft_length: (L,).
        cache_bytes: memory for a batch's cache.
        round_samples: rounds at which stages are looked at, the first among them; sums over the
            others are trapezoids. At least the number of rounds: every round.

    Returns:
        (D, L, M).
    """
    known = _prefixes(cost, input_tokens, draft_length, cache_bytes, round_samples, shared=False)
    drops, tasks = input_tokens.shape
    cuts = [
        [_cuts_back(known.batch_tasks[:, d, c], tasks) for c in range(len(draft_length))]
        for d in range(drops)
    ]
    return pack(input_tokens, cuts, [[[0] * len(cut) for cut in row] for row in cuts])


def wave_batches(
    cost: ServingCost,
    input_tokens: Array,
    draft_length: Integers,
    cache_bytes: float,
    round_samples: int,
) -> Batching:
    """Cut tasks into waves whose batches fit in memory together, and waves into batches.

    While batches take turns, the caches of all that are unfinished lie in the draft node's memory;
    a wave enters when the one before has left. The programme over prefixes is run from every task
    on, with the memory of the batches so far carried along, and a second one chains the waves.

    Args:
        cost: models and machines.
        input_tokens: (D, K), ascending.
        draft_length: (L,).
        cache_bytes: memory for all caches in flight.
        round_samples: see `prefix_batches`.

    Returns:
        (D, L, M).
    """
    tasks = input_tokens.shape[1]
    if float(cost.batch_bytes(tasks, input_tokens.max())) <= cache_bytes:
        return prefix_batches(cost, input_tokens, draft_length, cache_bytes, round_samples)
    widest = min(tasks, int(cache_bytes / float(cost.batch_bytes(1, input_tokens.min()))))
    reach = np.minimum(np.arange(tasks)[:, None] + np.arange(widest), tasks - 1)
    cuts: list[list[list[int]]] = []
    waves: list[list[list[int]]] = []
    for prompts in input_tokens:
        known = _prefixes(
            cost, prompts[reach], draft_length, cache_bytes, round_samples, shared=True
        )
        chains = [_chain(known, c, tasks) for c in range(len(draft_length))]
        cuts.append([[size for wave in chain for size in wave] for chain in chains])
        waves.append([[w for w, wave in enumerate(chain) for _ in wave] for chain in chains])
    return pack(input_tokens, cuts, waves)


def pack(
    input_tokens: Array, cuts: list[list[list[int]]], waves: list[list[list[int]]]
) -> Batching:
    """Put lists of batch sizes per drop and draft length into arrays.

    Args:
        input_tokens: (D, K) in the order of service, sorted or not.
        cuts: tasks of each batch.
        waves: wave of each batch.
    """
    most = max(len(cut) for row in cuts for cut in row)
    shape = (len(cuts), len(cuts[0]), most)
    tasks, wave = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    padded = np.zeros(shape)
    for d, (row, row_waves) in enumerate(zip(cuts, waves, strict=True)):
        for c, (cut, numbers) in enumerate(zip(row, row_waves, strict=True)):
            starts = np.cumsum([0, *cut[:-1]])
            tasks[d, c, : len(cut)] = cut
            wave[d, c, : len(cut)] = numbers
            padded[d, c, : len(cut)] = np.maximum.reduceat(input_tokens[d], starts)
    return Batching(tasks, padded, wave)


def sampled_rounds(rounds: Array, samples: int) -> tuple[Array, Array]:
    """Choose rounds to look at, and how many rounds each stands for.

    Args:
        rounds: (L,) in all.
        samples: Q at most.

    Returns:
        (L, Q) round numbers and (L, Q) weights; the weights of a row add up to its rounds.
    """
    chosen, weights = [], []
    for total in rounds.astype(int):
        count = min(samples - 1, total - 1)
        later = np.unique(np.linspace(2, total, count).round()) if count > 0 else np.zeros(0)
        nodes = np.concatenate([np.ones(1), later])
        weight = np.ones(len(nodes))
        if len(nodes) > 1:
            every = np.arange(2, total + 1, dtype=np.float64)
            hats = np.eye(len(nodes) - 1)
            weight[1:] = [np.interp(every, nodes[1:], hat).sum() for hat in hats]
        chosen.append(nodes)
        weights.append(weight)
    most = max(map(len, chosen))
    padded = [np.pad(nodes, (0, most - len(nodes)), constant_values=1.0) for nodes in chosen]
    return np.stack(padded), np.stack([np.pad(w, (0, most - len(w))) for w in weights])


def _prefixes(
    cost: ServingCost,
    input_tokens: Array,
    draft_length: Integers,
    cache_bytes: float,
    round_samples: int,
    *,
    shared: bool,
) -> _Prefixes:
    """Run the programme over prefixes; `shared`: all batches of a prefix share the memory."""
    drops, tasks = input_tokens.shape
    lengths = len(draft_length)
    rounds, weight = sampled_rounds(cost.rounds(draft_length), round_samples)
    size = (tasks + 1, drops, lengths)
    drafted_s, verified_s = np.zeros((2, *size, rounds.shape[1]))
    used_bytes = np.zeros(size)
    value = np.full(size, np.inf)
    value[0] = 0.0
    batch_tasks = np.zeros(size, np.int64)
    smallest = float(cost.batch_bytes(1, input_tokens.min()))
    widest = max(1, int(cache_bytes / smallest))
    for i in range(1, tasks + 1):
        first = max(0, i - widest)
        counts = np.arange(i - first, 0, -1)[:, None, None]  # (J, 1, 1)
        prompt = input_tokens[None, :, i - 1, None]
        draft = cost.draft_stage(counts, prompt, draft_length)
        verify = cost.verify_stage(counts, prompt, draft_length)
        needed = cost.batch_bytes(counts, prompt) + (used_bytes[first:i] if shared else 0.0)
        drafts = drafted_s[first:i] + _at(draft.first_s, draft.second_s, draft.growth_s, rounds)
        ends = np.maximum(verified_s[first:i], drafts)
        ends += _at(verify.first_s, verify.second_s, verify.growth_s, rounds)
        total = np.einsum("jdlq,lq->jdl", ends, weight)
        fits = (needed <= cache_bytes) & np.isfinite(value[first:i])
        total = np.where(fits, total, np.inf)
        best = total.argmin(0)[None]  # (1, D, L)
        value[i] = np.take_along_axis(total, best, 0)[0]
        batch_tasks[i] = i - first - best[0]
        drafted_s[i] = np.take_along_axis(drafts, best[..., None], 0)[0]
        verified_s[i] = np.take_along_axis(ends, best[..., None], 0)[0]
        needed = np.broadcast_to(needed, total.shape)
        used_bytes[i] = np.take_along_axis(needed, best, 0)[0]
    return _Prefixes(value, batch_tasks)


def _at(first_s: Array, second_s: Array, growth_s: Array, rounds: Array) -> Array:
    """Time stages (J, D, L) at rounds (L, Q), the first of which is round 1."""
    times = second_s[..., None] + growth_s[..., None] * (rounds - 2)
    times[..., 0] = first_s
    return times


def _cuts_back(batch_tasks: Integers, tasks: int) -> list[int]:
    """Read the batches of the first `tasks` tasks from the last batch of each prefix."""
    cuts = []
    while tasks > 0:
        cuts.append(int(batch_tasks[tasks]))
        tasks -= cuts[-1]
    return cuts[::-1]


def _chain(known: _Prefixes, choice: int, tasks: int) -> list[list[int]]:
    """Chain waves from task to task at least total; `known` has one drop per first task.

    Returns:
        Batch sizes of each wave.
    """
    table = known.value[:, :, choice]  # (tasks of the wave, first task)
    widest = len(table) - 1
    least = np.full(tasks + 1, np.inf)
    least[0] = 0.0
    begin = np.zeros(tasks + 1, np.int64)
    for end in range(1, tasks + 1):
        starts = np.arange(max(0, end - widest), end)
        totals = least[starts] + table[end - starts, starts]
        begin[end] = starts[totals.argmin()]
        least[end] = totals.min()
    chain = []
    while tasks > 0:
        start = int(begin[tasks])
        chain.append(_cuts_back(known.batch_tasks[:, start, choice], tasks - start))
        tasks = start
    return chain[::-1]
