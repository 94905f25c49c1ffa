"""Futures that are possible by what is known now: later requests, rests of answers and of outages.

Shape legend: B networks, M devices, E servers, R requests of a device, N outages of a server.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from uara.world.lengths import AnswerLengths, draw_rest
from uara.world.outages import OutageConfig
from uara.world.requests import RequestTable
from uara.world.streams import Purpose, uniform


def sample_requests(
    known: RequestTable,
    fresh: RequestTable,
    keys: Tensor,
    *,
    time_s: Tensor,
    arrived: Tensor,
    finished: Tensor,
    tokens: Tensor,
    acceptance: Tensor,
    lengths: AnswerLengths,
) -> RequestTable:
    """Redraw of a request table what nobody can know yet.

    Arrivals up to now stay, with all that is past and with the prompts of running requests. The
    rest of a running answer is drawn given that it has come so far; its acceptance is what it is
    estimated to be. Of waiting requests only the arrival is known. Later ones come as in the fresh
    table from now on: arrivals have no memory, and whether a burst is on is not known.

    Args:
        known: the true table, (B, M, R).
        fresh: drawn for other keys, of the same shape.
        keys: (B,) int64 of the futures.
        time_s: (B,) now.
        arrived: (B, M) requests that have arrived.
        finished: (B, M) long, requests gone; the index of the current one.
        tokens: (B, M) committed of the current answer.
        acceptance: (B, M) estimate for the current request.
        lengths: law of the answers.
    """
    count = known.task.shape[2]
    number = torch.arange(count)
    begun = (fresh.arrival_s < time_s[:, None, None]).sum(-1)
    # Requests number `arrived`, arrived + 1, ... are the fresh table's first ones from now on.
    source = number + (begun - arrived.long())[..., None]
    is_later = number >= arrived[..., None]
    is_current = (number == finished[..., None]) & ~is_later
    is_open = number > finished[..., None]

    def redrawn(old: Tensor, new: Tensor) -> Tensor:
        return torch.where(is_open | is_later, new.gather(2, source % count), old)

    exists = source < count
    arrival = torch.where(exists, fresh.arrival_s.gather(2, source % count), math.inf)
    draw = uniform(
        keys[:, None], torch.arange(known.task.shape[1]), finished, int(Purpose.REST_OF_ANSWER)
    )
    task = known.task.gather(2, finished[..., None].clamp(max=count - 1)).squeeze(-1)
    answer = draw_rest(lengths, tokens, task, draw)
    history, block_rate = known.history_tokens, known.block_rate
    if history is not None and fresh.history_tokens is not None:
        history = redrawn(history, fresh.history_tokens)
    if block_rate is not None and fresh.block_rate is not None:
        blocks = block_rate.shape[3]
        wide = (source % count)[..., None].expand(-1, -1, -1, blocks)
        drawn = (is_open | is_later)[..., None]
        block_rate = torch.where(drawn, fresh.block_rate.gather(2, wide), block_rate)
        block_rate = torch.where(is_current[..., None], acceptance[..., None, None], block_rate)
    return replace(
        known,
        arrival_s=torch.where(is_later, arrival, known.arrival_s),
        task=redrawn(known.task, fresh.task),
        prompt_tokens=redrawn(known.prompt_tokens, fresh.prompt_tokens),
        attachment_bits=redrawn(known.attachment_bits, fresh.attachment_bits),
        output_tokens=torch.where(
            is_current, answer[..., None], redrawn(known.output_tokens, fresh.output_tokens)
        ),
        acceptance=torch.where(
            is_current, acceptance[..., None], redrawn(known.acceptance, fresh.acceptance)
        ),
        history_tokens=history,
        block_rate=block_rate,
    )


def sample_outages(
    known: tuple[Tensor, Tensor],
    fresh: tuple[Tensor, Tensor],
    keys: Tensor,
    *,
    time_s: Tensor,
    slot_s: float,
    config: OutageConfig,
) -> tuple[Tensor, Tensor]:
    """Redraw of starts and ends (B, E, N) what nobody can know yet.

    Outages that have begun or are announced stay; when they end is drawn, since the exponential
    law has no memory. Later ones come as in the fresh table.

    Args:
        known: the true starts and ends.
        fresh: drawn for other keys.
        keys: (B,) int64 of the futures.
        time_s: (B,) now.
        slot_s: length of a slot.
        config: notice and mean length.
    """
    start_s, end_s = known
    count, servers = start_s.shape[2], start_s.shape[1]
    now = time_s[:, None, None]
    seen = now + max(slot_s, config.notice_s)
    is_known = start_s <= seen
    begun = (fresh[0] <= seen).sum(-1) - is_known.sum(-1)
    source = torch.arange(count) + begun[..., None]
    exists = source < count
    draw = uniform(
        keys[:, None, None], torch.arange(servers)[:, None], torch.arange(count),
        int(Purpose.REST_OF_OUTAGE),
    )  # fmt: skip
    rest_s = -torch.log(draw) * config.duration_s
    open_end = torch.where(end_s > now, torch.maximum(start_s, now) + rest_s, end_s)
    later = [torch.where(exists, t.gather(2, source % count), math.inf) for t in fresh]
    return (
        torch.where(is_known, start_s, later[0]),
        torch.where(is_known, open_end, later[1]),
    )
