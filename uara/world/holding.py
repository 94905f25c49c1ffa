"""Requests that are held back in a slot: their server is out, or has no KV memory for them.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from uara.network import Decision, NetworkState, Phase
from uara.prediction import Physics, effective_mode, uplink_rate_bps
from uara.serving.batching import sum_by_server
from uara.serving.modes import MODE_INDEX
from uara.world.memory import Admission, Claims, admit
from uara.world.progress import Progress


@dataclass(frozen=True)
class Holding:
    """Who is served in a slot, (B, M) each."""

    state: NetworkState  # the truth, in which requests held back load no server
    sends: Tensor  # 1 or 0: the uplink works
    is_served: Tensor  # 1 or 0: may be prefilled and decoded
    held_back: Tensor  # bool: waits for a server or for memory, not for its own upload
    unread: Tensor  # bool: neither prefilled nor decoded
    loses_cache: Tensor  # bool: moved to where it has to wait
    admission: Admission | None
    queued_slot: Tensor | None  # since when the request waits for memory; inf: it does not


def hold_back(
    state: NetworkState,
    decision: Decision,
    physics: Physics,
    progress: Progress,
    claim_tokens: Tensor,
    capacity_tokens: Tensor,
    slot_s: float,
) -> Holding:
    """Find the requests that wait in this slot.

    A server that is out neither receives nor computes. A server whose memory is full receives
    prompts but does not read them; memory is asked for in the slot in which the upload ends. A
    request that has to wait loses what was cached of it.

    Args:
        state: the truth.
        decision: of the slot.
        physics: for modes and rates.
        progress: with residents and queue, where memory is reserved.
        claim_tokens: (B, M) what a request may grow to.
        capacity_tokens: (B, E).
        slot_s: length of the slot.
    """
    active = state.has_request
    is_local = effective_mode(state, decision, physics) == MODE_INDEX["device_only"]
    stopped = torch.zeros_like(active)
    if state.is_down is not None:
        stopped = active & ~is_local & state.is_down.gather(1, decision.server)
    unread = torch.zeros_like(active)
    waits = unread
    admission, queued_slot = None, None
    if progress.is_resident is not None and progress.queued_slot is not None:
        server = torch.where(is_local, state.server.clamp_min(0), decision.server)
        stays = state.server == server
        resident = progress.is_resident & stays
        bits = uplink_rate_bps(state, decision, physics) * slot_s
        asks = (state.upload_bits <= bits) | (stays & (state.kv_tokens > 0))
        wants = active & ~stopped & (resident | (asks & ~is_local))
        slot = progress.slot[:, None].to(progress.queued_slot.dtype)
        was_queued = torch.isfinite(progress.queued_slot) & stays
        since = torch.where(was_queued, progress.queued_slot, slot)
        admission = admit(_claims(progress, claim_tokens, server, wants, resident, since),
                          capacity_tokens)  # fmt: skip
        unread = active & ~stopped & ~is_local & ~admission.admitted
        waits = wants & ~admission.admitted
        queued_slot = torch.where(waits, since, torch.inf)
    held = stopped | unread
    arriving = state.kv_arriving_tokens
    quiet = state.with_(
        phase=torch.where(stopped, int(Phase.IDLE), state.phase),
        # What is still being sent is in no queue and in no batch.
        upload_bits=torch.where(unread, state.upload_bits.clamp_min(1), state.upload_bits),
        kv_tokens=torch.where(held, 0.0, state.kv_tokens),
        **({} if arriving is None else {"kv_arriving_tokens": torch.where(held, 0.0, arriving)}),
    )
    return Holding(
        state=quiet,
        sends=(~stopped).to(state.gain.dtype),
        is_served=(~held).to(state.gain.dtype),
        held_back=stopped | waits,
        unread=held,
        loses_cache=held & (decision.server != state.server) & (state.kv_tokens > 0),
        admission=admission,
        queued_slot=queued_slot,
    )


def _claims(
    progress: Progress,
    claim_tokens: Tensor,
    server: Tensor,
    wants: Tensor,
    resident: Tensor,
    since: Tensor,
) -> Claims:
    """Gather what asks for memory; without conversations there are no idle caches."""
    cached = progress.cache_tokens
    nothing = torch.zeros_like(claim_tokens)
    return Claims(
        tokens=claim_tokens,
        server=server,
        wants=wants,
        is_resident=resident,
        since=since,
        cache_tokens=nothing if cached is None else cached,
        cache_server=torch.zeros_like(server)
        if progress.cache_server is None
        else progress.cache_server,
        cache_since=nothing if progress.cache_slot is None else progress.cache_slot,
    )


def held_tokens(progress: Progress, claim_tokens: Callable[[], Tensor], servers: int) -> Tensor:
    """Count the KV memory in use, (B, E) tokens: caches, and with admission what is reserved.

    Args:
        progress: of the requests.
        claim_tokens: gives what the requests may grow to, (B, M); asked for with admission only.
        servers: E.
    """
    tokens = progress.kv_tokens
    if progress.is_resident is not None:
        tokens = torch.where(progress.is_resident, claim_tokens(), tokens)
    # Progress of a device without a request is zero and its server -1.
    held = sum_by_server(tokens, progress.server.clamp_min(0), servers)
    if progress.cache_tokens is not None and progress.cache_server is not None:
        at = progress.cache_server.clamp_min(0)
        held = held + sum_by_server(progress.cache_tokens, at, servers)
    return held


def carry_memory(
    progress: Progress,
    kv_tokens: Tensor,
    server: Tensor,
    goes_on: Tensor,
    by_itself: Tensor,
    is_finished: Tensor,
    holding: Holding | None,
) -> Tensor | None:
    """Carry reservations and caches over a slot; the progress still holds those of its start.

    Args:
        progress: changed in place, but for `kv_tokens` and `server`.
        kv_tokens: (B, M) at the end of the slot.
        server: (B, M) long, at the end of the slot.
        goes_on: (B, M) bool, the request goes on.
        by_itself: (B, M) bool, decoded without a server.
        is_finished: (B, M) bool.
        holding: of the slot.

    Returns:
        memory that servers got back, (B, E) tokens; None without admission.
    """
    freed, caches = None, progress.cache_tokens
    admission = None if holding is None else holding.admission
    if holding is not None and admission is not None:
        moved = (server != progress.server) | holding.unread
        left = progress.kv_tokens * (progress.active & ~by_itself & moved)
        ends = progress.active & ~goes_on
        if caches is not None:
            ends = ends & ~is_finished
        servers = holding.state.num_servers
        freed = sum_by_server(left, progress.server.clamp_min(0), servers)
        freed = freed + sum_by_server(kv_tokens * ends, server.clamp_min(0), servers)
        progress.is_resident = admission.admitted & goes_on
        progress.queued_slot = holding.queued_slot
        if caches is not None and progress.cache_server is not None:
            at = progress.cache_server.clamp_min(0)
            freed = freed + sum_by_server(caches * ~admission.kept, at, servers)
            progress.cache_tokens = caches * admission.kept
    if caches is not None:
        progress.leave_cache(is_finished, kv_tokens, server)
    return freed
