"""Plans who uploads over how much bandwidth, in which batch, and with how long a draft.

Shape legend: D drops, K tasks, C candidates (draft lengths, or whole plans), M batches.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from uara.control.plan import uplink
from uara.control.plan.batching import Batching, pack, prefix_batches, wave_batches
from uara.control.plan.config import HetEdgeConfig
from uara.control.plan.front import batch_totals, front_cuts, lower_bound_s
from uara.control.plan.model_cost import ServingCost
from uara.control.plan.pipeline import Schedule, run_in_series, run_pipeline
from uara.control.plan.tasks import Tasks

Array = NDArray[np.float64]
Integers = NDArray[np.int64]
Upload = Literal["uniform", "equal_finish", "batch_by_batch"]


@dataclass(frozen=True)
class Choice:
    """How the tasks of one drop are served, as arrays."""

    order: Integers  # (K,) tasks in the order of service
    tasks: Integers  # (M,) in each batch
    input_tokens: Array  # (M,) to which prompts are padded
    wave: Integers  # (M,)
    draft_length: Integers  # (M,)
    release_s: Array  # (M,) when all prompts of the batch are there
    completion_s: Array  # (M,)
    upload: Upload
    is_pipelined: bool

    @property
    def total_s(self) -> float:
        """When the last batch is complete."""
        return float(self.completion_s.max())


@dataclass(frozen=True)
class Batch:
    """Tasks that are served together."""

    tasks: tuple[int, ...]
    input_tokens: int  # to which prompts are padded
    draft_length: int
    rounds: int
    wave: int  # batches of one wave are in memory together
    cache_bytes: float  # of the draft model, answers at full length
    release_s: float  # when all its prompts are there
    completion_s: float  # predicted


@dataclass(frozen=True)
class Plan:
    """What is to be done with the tasks of one drop, and when it will be done."""

    batches: tuple[Batch, ...]  # in the order of service
    bandwidth_hz: tuple[float, ...]  # per task, while it uploads
    upload_start_s: tuple[float, ...]
    upload_end_s: tuple[float, ...]
    upload: Upload
    weight_bytes: float  # of the draft model
    is_pipelined: bool

    @property
    def completion_s(self) -> float:
        """When the last batch is complete."""
        return max(batch.completion_s for batch in self.batches)


def make_plan(config: HetEdgeConfig, tasks: Tasks) -> Plan:
    """Plan the tasks of the first drop.

    Args:
        config: network, models and readings.
        tasks: drops, of which the first is planned.
    """
    alone = tasks.drop(0)
    return as_plan(config, alone, choose(config, alone)[0])


def choose(
    config: HetEdgeConfig, tasks: Tasks, draft_length: Integers | None = None
) -> list[Choice]:
    """Choose batches, draft lengths and uploads for every drop.

    Every draft length is tried, its batches by the dynamic programme, and played through the
    pipeline; the least completion wins. The front then looks for better batches.

    Args:
        config: network, models and readings.
        tasks: D drops.
        draft_length: (C,) to try; 1 to the config's longest by default.
    """
    lengths = draft_length
    if lengths is None:
        lengths = np.arange(1, config.draft_length_max + 1, dtype=np.int64)
    order = np.argsort(tasks.input_tokens, axis=-1, kind="stable")
    prompts = np.take_along_axis(tasks.input_tokens, order, -1)
    find = wave_batches if config.memory_rule == "in_flight" else prefix_batches
    batching = find(config.cost, prompts, lengths, config.cache_bytes, config.round_samples)
    chosen = serve(config, tasks, order, batching, lengths[:, None], upload=config.upload)
    if config.search == "prefix" and not config.draft_length_per_batch:
        return chosen
    return _improve(config, tasks, order, chosen, lengths)


def serve(
    config: HetEdgeConfig,
    tasks: Tasks,
    order: Integers,
    batching: Batching,
    draft_length: Integers,
    *,
    upload: Upload,
    is_pipelined: bool = True,
) -> list[Choice]:
    """Play candidates through the pipeline and keep each drop's best.

    Args:
        config: network, models and readings.
        tasks: D drops.
        order: (D, K) tasks in the order of service.
        batching: (D, C, M) of candidates.
        draft_length: (C, M) or broadcastable.
        upload: how prompts come; batch by batch falls back to equal finish where that ends sooner.
        is_pipelined: whether stages of different batches overlap.
    """
    kinds: tuple[Upload, ...] = (upload,)
    if upload == "batch_by_batch":
        kinds = ("equal_finish", "batch_by_batch")
    lengths = np.broadcast_to(draft_length, batching.tasks.shape)
    played = []
    for kind in kinds:
        release_s = _release_s(config, tasks, order, batching, kind)
        schedule = make_schedule(config.cost, batching, lengths, release_s)
        completion_s = run_pipeline(schedule) if is_pipelined else run_in_series(schedule)
        played.append((kind, release_s, completion_s))
    totals = np.stack([np.nanmax(completion_s, -1) for _, _, completion_s in played])  # (U, D, C)
    choices = []
    for d in range(tasks.num_drops):
        u, c = np.unravel_index(totals[:, d].argmin(), totals[:, d].shape)
        kind, release_s, completion_s = played[u]
        kept = batching.tasks[d, c] > 0
        choices.append(
            Choice(
                order=order[d],
                tasks=batching.tasks[d, c, kept],
                input_tokens=batching.input_tokens[d, c, kept],
                wave=batching.wave[d, c, kept],
                draft_length=lengths[d, c, kept],
                release_s=release_s[d, c, kept],
                completion_s=completion_s[d, c, kept],
                upload=kind,
                is_pipelined=is_pipelined,
            )
        )
    return choices


def make_schedule(
    cost: ServingCost, batching: Batching, draft_length: Integers, release_s: Array
) -> Schedule:
    """Time the stages of batches, (..., M); a wave begins after the rounds of those before it."""
    is_there = batching.tasks > 0
    rounds = np.where(is_there, cost.rounds(draft_length), 0.0)
    first_round = np.zeros_like(rounds)
    for number in range(int(batching.wave.max())):
        longest = np.where(batching.wave == number, rounds, 0.0).max(-1, keepdims=True)
        first_round += np.where(batching.wave > number, longest, 0.0)
    at = (batching.tasks, batching.input_tokens, draft_length)
    draft, verify = cost.draft_stage(*at), cost.verify_stage(*at)
    return Schedule(draft, verify, rounds, release_s, first_round)


def upload_times(
    config: HetEdgeConfig, tasks: Tasks, upload: Upload, groups: list[Integers]
) -> tuple[Array, Array, Array]:
    """Compute bandwidth, start and end of each upload of one drop, (K,) each.

    Args:
        config: band and noise.
        tasks: one drop.
        upload: rule; uploads of a group share the band, groups follow each other.
        groups: tasks of each batch in the order of service.
    """
    bits, efficiency, snr_hz = (
        values[0] for values in (tasks.bits(config), tasks.efficiency(config), tasks.snr_hz(config))
    )
    together = [np.concatenate(groups)] if upload != "batch_by_batch" else groups
    bandwidth_hz, start_s, end_s = np.zeros((3, len(bits)))
    now_s = 0.0
    for group in together:
        own = (bits[group], efficiency[group], snr_hz[group])
        bandwidth_hz[group], duration_s = _share(config, *own, is_uniform=upload == "uniform")
        start_s[group], end_s[group] = now_s, now_s + duration_s
        now_s += float(duration_s.max())
    return bandwidth_hz, start_s, end_s


def as_plan(config: HetEdgeConfig, tasks: Tasks, choice: Choice) -> Plan:
    """Write a choice out: tasks by number, bandwidths, uploads.

    Args:
        config: network, models and readings.
        tasks: the drop that was planned.
        choice: its plan.
    """
    cost = config.cost
    groups = np.split(choice.order, np.cumsum(choice.tasks)[:-1])
    bandwidth_hz, start_s, end_s = upload_times(config, tasks, choice.upload, groups)
    rounds = cost.rounds(choice.draft_length)
    cache_bytes = cost.batch_bytes(choice.tasks, choice.input_tokens)
    batches = tuple(
        Batch(
            tasks=tuple(int(k) for k in group),
            input_tokens=int(choice.input_tokens[m]),
            draft_length=int(choice.draft_length[m]),
            rounds=int(rounds[m]),
            wave=int(choice.wave[m]),
            cache_bytes=float(cache_bytes[m]),
            release_s=float(choice.release_s[m]),
            completion_s=float(choice.completion_s[m]),
        )
        for m, group in enumerate(groups)
    )
    return Plan(
        batches=batches,
        bandwidth_hz=tuple(map(float, bandwidth_hz)),
        upload_start_s=tuple(map(float, start_s)),
        upload_end_s=tuple(map(float, end_s)),
        upload=choice.upload,
        weight_bytes=cost.draft.weight_bytes,
        is_pipelined=choice.is_pipelined,
    )


def _improve(
    config: HetEdgeConfig,
    tasks: Tasks,
    order: Integers,
    chosen: list[Choice],
    lengths: Integers,
) -> list[Choice]:
    """Look for better plans on the fronts of the periodic objective; the plans at hand compete."""
    prompts = np.take_along_axis(tasks.input_tokens, order, -1)
    rivals = [
        [_as_candidate(choice), *_front_candidates(config, own, choice, lengths)]
        for choice, own in zip(chosen, prompts, strict=True)
    ]
    most = max(map(len, rivals))
    # Drops have as many candidates as the one with the most: the plan at hand once more.
    full = [own + own[:1] * (most - len(own)) for own in rivals]
    packed = pack(
        prompts, [[c.tasks for c in own] for own in full], [[c.wave for c in own] for own in full]
    )
    draft_length = np.ones(packed.tasks.shape, np.int64)
    for d, own in enumerate(full):
        for c, candidate in enumerate(own):
            draft_length[d, c, : len(candidate.draft_length)] = candidate.draft_length
    return serve(config, tasks, order, packed, draft_length, upload=config.upload)


@dataclass(frozen=True)
class _Candidate:
    """Batches by their sizes, waves and draft lengths."""

    tasks: list[int]
    wave: list[int]
    draft_length: list[int]


def _as_candidate(choice: Choice) -> _Candidate:
    return _Candidate(choice.tasks.tolist(), choice.wave.tolist(), choice.draft_length.tolist())


def _front_candidates(
    config: HetEdgeConfig, prompts: Array, choice: Choice, lengths: Integers
) -> list[_Candidate]:
    """List the best of one drop's fronts, of one length at a time and of mixed lengths."""
    if choice.wave.max() > 0:
        return []  # a front has no waves: where the prefixes needed several, their plan stays
    cost, work_s = config.cost, choice.total_s - choice.release_s.min()
    sets = [lengths[c : c + 1] for c in range(len(lengths))] if config.search != "prefix" else []
    if config.draft_length_per_batch:
        sets.append(lengths)
    found = []
    for own in sets:
        totals = batch_totals(cost, prompts, own, config.cache_bytes)
        # The periodic objective leaves the filling of the pipeline out, so it is below the total.
        if lower_bound_s(totals) > work_s:
            continue
        for cut in front_cuts(totals, work_s):
            fits = _held(cost, prompts, cut.tasks) <= config.cache_bytes
            if fits or config.memory_rule == "per_batch":
                drafts = own[cut.choice].tolist()
                found.append(_Candidate(cut.tasks, [0] * len(cut.tasks), drafts))
    return found


def _held(cost: ServingCost, prompts: Array, cut: list[int]) -> float:
    """Add the caches of all batches up."""
    ends = np.cumsum(cut)
    return float(cost.batch_bytes(cut, prompts[ends - 1]).sum())


def _release_s(
    config: HetEdgeConfig, tasks: Tasks, order: Integers, batching: Batching, upload: Upload
) -> Array:
    """Compute when all prompts of each batch are there, (D, C, M)."""
    shape = batching.tasks.shape
    if upload != "batch_by_batch":
        own = (tasks.bits(config), tasks.efficiency(config), tasks.snr_hz(config))
        _, duration_s = _share(config, *own, is_uniform=upload == "uniform")
        return np.broadcast_to(duration_s.max(-1)[:, None, None], shape)
    ends = np.cumsum(batching.tasks, -1)
    if config.noise == "power":
        asked = np.take_along_axis(tasks.bits(config) / tasks.efficiency(config), order, -1)
        sent_s = np.cumsum(asked, -1) / config.bandwidth_hz
        flat = np.take_along_axis(sent_s, ends.reshape(len(order), -1) - 1, -1)
        return flat.reshape(shape)
    release_s = np.zeros(shape)
    for d, c in np.ndindex(shape[:2]):
        alone = tasks.drop(d)
        cuts = ends[d, c, batching.tasks[d, c] > 0]
        groups = np.split(order[d], cuts[:-1])
        _, _, end_s = upload_times(config, alone, upload, groups)
        release_s[d, c, : len(groups)] = [end_s[group].max() for group in groups]
    return release_s


def _share(
    config: HetEdgeConfig, bits: Array, efficiency: Array, snr_hz: Array, *, is_uniform: bool
) -> tuple[Array, Array]:
    """Split the band among tasks and time their uploads, (..., K) each."""
    band_hz = config.bandwidth_hz
    if config.noise == "density":
        split = uplink.equal_finish_at_density(bits, snr_hz, band_hz)
        bandwidth_hz = uplink.uniform(bits, band_hz) if is_uniform else split
        return bandwidth_hz, uplink.upload_s(bits, bandwidth_hz, snr_hz=snr_hz)
    split = uplink.equal_finish(bits, efficiency, band_hz)
    bandwidth_hz = uplink.uniform(bits, band_hz) if is_uniform else split
    return bandwidth_hz, uplink.upload_s(bits, bandwidth_hz, efficiency=efficiency)
