"""Requests: arrivals, task types, lengths, acceptance; drawn per episode from keyed streams.

Shape legend: B networks, M devices, R requests of a device in an episode, T slots, J blocks of an
answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from torch import Tensor

from uara.world.acceptance import (
    HIGHEST,
    LOWEST,
    AcceptanceProcess,
    ConstantAcceptance,
    MarkovAcceptance,
    Traces,
    draw_states,
    replay_traces,
)
from uara.world.arrivals import BurstConfig, to_bursty_times
from uara.world.conversations import ConversationConfig, draw_history
from uara.world.lengths import AnswerLengths, draw_lengths
from uara.world.streams import Purpose, uniform
from uara.world.tasks import DEFAULT_TASKS, TaskType
from uara.young_fields import dump_without_defaults

__all__ = ["AnswerLengths", "RequestConfig", "RequestTable", "TaskType", "draw_requests"]


class RequestConfig(BaseModel):
    """Arrivals and task mix."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arrivals_per_s: float = Field(0.04, gt=0, description="mean rate of each device")
    tasks: tuple[TaskType, ...] = Field(DEFAULT_TASKS, min_length=1, description="task mix")
    acceptance_spread: float = Field(
        1.0, ge=0, description="multiple of the measured spread of acceptance between prompts"
    )
    bursts: BurstConfig | None = Field(None, description="bursty arrivals; null: Poisson")
    conversations: ConversationConfig | None = Field(
        None, description="requests of several turns; null: each stands alone"
    )
    acceptance: AcceptanceProcess = Field(
        ConstantAcceptance(), description="how acceptance varies within a request"
    )
    acceptance_drift: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="how far the mean acceptance has moved by the horizon, up or down by episode; "
        "controllers are not told",
    )
    output_drift: float = Field(
        0.0,
        ge=0,
        description="logarithm of the factor by which answers have grown or shrunk by the horizon, "
        "by episode; controllers are not told",
    )

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        names = ("bursts", "conversations", "acceptance", "acceptance_drift", "output_drift")
        return dump_without_defaults(self, dump, names)

    def max_requests(self, horizon_s: float) -> int:
        """Bound the requests of a device in an episode: six standard deviations above the mean."""
        peak = 1.0 if self.bursts is None else self.bursts.relative_rates[0]
        mean = self.arrivals_per_s * peak * horizon_s
        return math.ceil(mean + 6 * math.sqrt(mean)) + 2

    @property
    def max_context_tokens(self) -> int:
        """Longest prompt with its answer that can come."""
        alone = max(task.prompt_tokens_max + task.output_tokens_max for task in self.tasks)
        if self.conversations is None:
            return alone
        answer = max(task.output_tokens_max for task in self.tasks)
        return max(alone, self.conversations.max_context_tokens + answer)


@dataclass(frozen=True)
class RequestTable:
    """All requests of B episodes, (B, M, R); the world walks along R."""

    arrival_s: Tensor  # inf after the last request
    task: Tensor  # long
    prompt_tokens: Tensor  # earlier turns of the conversation included
    attachment_bits: Tensor
    output_tokens: Tensor
    acceptance: Tensor  # the request's own mean rate
    history_tokens: Tensor | None = None  # of earlier turns; None: no conversations
    block_rate: Tensor | None = None  # (B, M, R, J) acceptance along the answer; None: constant

    def tensors(self) -> dict[str, Tensor]:
        """Collect what there is, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: values for name, values in found.items() if values is not None}

    def current(self, number: Tensor, active: Tensor) -> dict[str, Tensor]:
        """Look up one request of each device, (B, M) each by name; zeros where there is none.

        Args:
            number: (B, M) long, which request.
            active: (B, M) bool.
        """
        length = self.task.shape[2]
        first = torch.arange(active.numel()).view(active.shape) * length
        index = first + number.clamp(max=length - 1)
        found = {
            name: values.take(index) * active
            for name, values in self.tensors().items()
            if name not in ("arrival_s", "block_rate")
        }
        # The table ends with infinity, which a product would turn into nan.
        arrival_s = self.arrival_s.take(index).float()
        found["arrival_s"] = arrival_s.masked_fill(~active, 0)
        return found

    def rate_in_block(self, number: Tensor, block: Tensor) -> Tensor:
        """Look up the acceptance of a block of one request of each device, (B, M) all."""
        assert self.block_rate is not None, "acceptance is constant"
        _, _, length, blocks = self.block_rate.shape
        at = number.clamp(max=length - 1)[..., None, None].expand(-1, -1, 1, blocks)
        along = self.block_rate.gather(2, at).squeeze(2)
        return along.gather(2, block.clamp(max=blocks - 1).unsqueeze(-1)).squeeze(-1)

    def count_by_slot(self, num_slots: int, slot_s: float) -> tuple[Tensor, Tensor]:
        """Count arrivals per slot and add up the time that is left of their slot.

        Returns:
            arrivals (B, M, T) and waiting seconds inside the slot of arrival (B, T).
        """
        slot = (self.arrival_s / slot_s).floor().clamp(max=num_slots)
        index = slot.long()
        ones = torch.isfinite(self.arrival_s).to(torch.float32)
        shape = (*self.arrival_s.shape[:2], num_slots + 1)
        count = torch.zeros(shape).scatter_add_(2, index, ones)
        rest = torch.where(ones > 0, (slot + 1) * slot_s - self.arrival_s, 0.0).to(torch.float32)
        waiting = torch.zeros(shape[0], num_slots + 1)
        waiting.scatter_add_(1, index.flatten(1), rest.flatten(1))
        return count[..., :num_slots], waiting[:, :num_slots]


def draw_requests(
    episode: Tensor,
    num_devices: int,
    horizon_s: float,
    config: RequestConfig,
    acceptance_mean: Tensor,
    acceptance_std: Tensor,
    traces: Traces | None = None,
) -> RequestTable:
    """Draw the requests of episodes; the same episode key always gives the same table.

    Args:
        episode: (B,) int64 keys.
        num_devices: M.
        horizon_s: no request arrives later.
        config: rates and task mix.
        acceptance_mean: (number of tasks,).
        acceptance_std: (number of tasks,) between requests.
        traces: rates along answers, where they are replayed.

    Returns:
        float32 tables; arrivals are exact in float64 before the cast to slots.
    """
    requests = torch.arange(config.max_requests(horizon_s))
    keys = (episode[:, None, None], torch.arange(num_devices)[:, None], requests)

    gaps = -torch.log(uniform(*keys, int(Purpose.ARRIVAL))) / config.arrivals_per_s
    arrival = gaps.cumsum(-1)
    if config.bursts is not None:
        arrival = to_bursty_times(arrival, episode, horizon_s, config.bursts)
    arrival = torch.where(arrival < horizon_s, arrival, math.inf)
    weights = torch.tensor([task.weight for task in config.tasks], dtype=torch.float64)
    cdf = (weights / weights.sum()).cumsum(0)
    task = torch.searchsorted(cdf[:-1].contiguous(), uniform(*keys, int(Purpose.TASK)))
    mean, std = acceptance_mean[task], acceptance_std[task] * config.acceptance_spread
    passed = arrival.clamp(max=horizon_s) / horizon_s
    if config.acceptance_drift > 0:
        shift = config.acceptance_drift * passed * _drift_sign(episode, 0)
        mean = (mean + shift.float()).clamp(LOWEST, HIGHEST)
    half_width = half_widths(mean, std)
    swing = 2 * uniform(*keys, int(Purpose.ACCEPTANCE)) - 1
    attachment = torch.tensor([t.attachment_bits for t in config.tasks])[task]
    prompt = draw_lengths(keys, Purpose.PROMPT, task, config.tasks, "prompt_tokens")
    growth = None
    if config.output_drift > 0:
        growth = torch.exp(config.output_drift * passed * _drift_sign(episode, 1))
    output = draw_lengths(keys, Purpose.OUTPUT, task, config.tasks, "output_tokens", growth)
    history = None
    if config.conversations is not None:
        history = draw_history(keys, prompt, output, config.conversations)
        prompt = prompt + history
    acceptance = (mean + half_width * swing).float()
    return RequestTable(
        arrival_s=arrival,
        task=task,
        prompt_tokens=prompt,
        attachment_bits=attachment.float(),
        output_tokens=output,
        acceptance=acceptance,
        history_tokens=history,
        block_rate=_draw_block_rates(keys, task, acceptance, config, traces),
    )


def half_widths(mean: Tensor, std: Tensor) -> Tensor:
    """Find the half width of a uniform law with this spread, kept inside (0, 1) around its mean."""
    return (std * math.sqrt(3)).minimum(0.98 - mean).minimum(mean - 0.02).clamp_min(0)


def _drift_sign(episode: Tensor, what: int) -> Tensor:
    """Draw whether an episode drifts up or down, (B, 1, 1) of 1 or -1."""
    up = uniform(episode, what, int(Purpose.DRIFT)) < 0.5
    return torch.where(up, 1.0, -1.0)[:, None, None]


def block_tokens(config: RequestConfig, traces: Traces | None) -> int:
    """Tell how many tokens of an answer share one rate; 0 where it is one for all."""
    process = config.acceptance
    if isinstance(process, MarkovAcceptance):
        return process.block_tokens
    return 0 if traces is None else traces.block_tokens


def _draw_block_rates(
    keys: tuple[Tensor, ...],
    task: Tensor,
    acceptance: Tensor,
    config: RequestConfig,
    traces: Traces | None,
) -> Tensor | None:
    """Draw the rates along answers, (B, M, R, J); None where they are constant."""
    process, tokens = config.acceptance, block_tokens(config, traces)
    if tokens == 0:
        return None
    blocks = math.ceil(max(t.output_tokens_max for t in config.tasks) / tokens)
    if isinstance(process, MarkovAcceptance):
        return draw_states(keys, acceptance, blocks, process)
    assert traces is not None, "a replay needs its traces"
    return replay_traces(keys, task, blocks, traces)
