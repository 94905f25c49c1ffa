"""What is left of each request after its slot.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uara.network import Decision
from uara.prediction import Prediction
from uara.world.acceptance import AcceptanceRates
from uara.world.batteries import Drain
from uara.world.holding import Holding, carry_memory
from uara.world.progress import Progress
from uara.world.slot import Played


def carry_work(
    now: Progress,
    prompt_tokens: Tensor,
    decision: Decision,
    plan: Prediction,
    played: Played,
    rates: AcceptanceRates,
    holding: Holding | None,
    drained: Drain | None,
) -> tuple[Tensor, Tensor | None]:
    """Carry the slot's work into the progress; requests that end leave nothing behind in it.

    Args:
        now: changed in place, but for its slot, arrivals and activity.
        prompt_tokens: (B, M) of the requests.
        decision: of the slot.
        plan: what was predicted for it.
        played: what came of it.
        rates: acceptance of the slot.
        holding: who was held back.
        drained: what the batteries lost.

    Returns:
        which requests go on (B, M) bool, and KV memory that servers got back (B, E), where it is
        counted.
    """
    tokens = played.tokens
    is_sent = played.time_up >= played.upload_s
    upload_bits = (now.upload_bits - played.time_up * plan.uplink_bps).clamp_min(0)
    upload_bits = upload_bits.masked_fill(is_sent, 0)
    is_prefilled = played.prefill_tokens >= plan.prefill_tokens * (1 - 1e-6)
    context = prompt_tokens + (now.tokens + tokens)
    kv_start = prompt_tokens + now.tokens - plan.prefill_tokens
    kv = torch.where(is_prefilled & (upload_bits <= 0), context, kv_start + played.prefill_tokens)
    accepted = tokens / plan.tokens_per_round * plan.accepted_per_round
    tested = accepted / rates.per_tested.clamp_min(1e-6)

    # What a device decodes by itself leaves prompt, cache and server alone.
    by_itself = plan.is_device_only
    goes_on = now.active & ~played.is_finished
    if drained is not None:
        goes_on = goes_on & ~drained.dies
    keep = goes_on.to(tokens.dtype)
    if played.kv_moving_tokens is not None and played.kv_moved_tokens is not None:
        arriving = played.kv_moving_tokens - played.kv_moved_tokens
        kv = kv - arriving
        before = now.kv_arriving_tokens
        assert before is not None, "KV caches are moved but not accounted for"
        now.kv_arriving_tokens = torch.where(by_itself, before, arriving) * keep
    kv = torch.where(by_itself, now.kv_tokens, kv)
    server = torch.where(by_itself, now.server, decision.server)
    freed = carry_memory(now, kv, server, goes_on, by_itself, played.is_finished, holding)
    now.upload_bits = torch.where(by_itself, now.upload_bits, upload_bits) * keep
    now.kv_tokens = kv * keep
    now.tokens = (now.tokens + tokens) * keep
    now.server = server.masked_fill(~goes_on, -1)
    now.accepted = (now.accepted + accepted) * keep
    now.tested = (now.tested + tested) * keep
    now.ttft_s = played.ttft_s.masked_fill(~goes_on, torch.inf)
    return goes_on, freed
