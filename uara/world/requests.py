"""Requests: task types, arrivals, lengths, acceptance; drawn per episode from keyed streams.

Shape legend: B networks, M devices, R requests of a device in an episode, T slots.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import IntEnum

import torch
from pydantic import BaseModel, ConfigDict, Field, model_validator
from torch import Tensor

from uara.world.streams import uniform


class TaskType(BaseModel):
    """One kind of request; lengths are a minimum plus an exponential part, cut at a maximum."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str = Field(description="key of the acceptance table")
    weight: float = Field(gt=0, description="relative frequency")
    prompt_tokens_min: int = Field(gt=0, description="shortest prompt")
    prompt_tokens_mean: float = Field(gt=0, description="mean prompt before the cut")
    prompt_tokens_max: int = Field(gt=0, description="longest prompt")
    output_tokens_min: int = Field(gt=0, description="shortest answer")
    output_tokens_mean: float = Field(gt=0, description="mean answer before the cut")
    output_tokens_max: int = Field(gt=0, description="longest answer")
    attachment_bits: float = Field(0.0, ge=0, description="photo sent with the prompt")

    @model_validator(mode="after")
    def _check_order(self) -> TaskType:
        for what in ("prompt_tokens", "output_tokens"):
            low, mean, high = (getattr(self, f"{what}_{end}") for end in ("min", "mean", "max"))
            if not low <= mean <= high:
                raise ValueError(
                    f"{what} of task '{self.name}': min {low}, mean {mean}, max {high}; "
                    "they must rise in this order"
                )
        return self


DEFAULT_TASKS = (
    TaskType(
        name="chat", weight=0.25,
        prompt_tokens_min=200, prompt_tokens_mean=1000, prompt_tokens_max=4000,
        output_tokens_min=32, output_tokens_mean=96, output_tokens_max=256,
    ),
    TaskType(
        name="summarise", weight=0.2,
        prompt_tokens_min=1000, prompt_tokens_mean=2500, prompt_tokens_max=6000,
        output_tokens_min=32, output_tokens_mean=64, output_tokens_max=160,
    ),
    TaskType(
        name="code", weight=0.25,
        prompt_tokens_min=300, prompt_tokens_mean=1500, prompt_tokens_max=5000,
        output_tokens_min=32, output_tokens_mean=96, output_tokens_max=256,
    ),
    TaskType(
        name="photo", weight=0.3,
        prompt_tokens_min=1200, prompt_tokens_mean=2000, prompt_tokens_max=4000,
        output_tokens_min=24, output_tokens_mean=64, output_tokens_max=160,
        attachment_bits=8e6,
    ),
)  # fmt: skip


class RequestConfig(BaseModel):
    """Arrivals and task mix."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    arrivals_per_s: float = Field(0.04, gt=0, description="Poisson rate of each device")
    tasks: tuple[TaskType, ...] = Field(DEFAULT_TASKS, min_length=1, description="task mix")
    acceptance_spread: float = Field(
        1.0, ge=0, description="multiple of the measured spread of acceptance between prompts"
    )

    def max_requests(self, horizon_s: float) -> int:
        """Bound the requests of a device in an episode: six standard deviations above the mean."""
        mean = self.arrivals_per_s * horizon_s
        return math.ceil(mean + 6 * math.sqrt(mean)) + 2


class _Purpose(IntEnum):
    """What a draw is for; the last key of its stream."""

    ARRIVAL = 1
    TASK = 2
    PROMPT = 3
    OUTPUT = 4
    ACCEPTANCE = 5


@dataclass(frozen=True)
class RequestTable:
    """All requests of B episodes, (B, M, R); the world walks along R."""

    arrival_s: Tensor  # inf after the last request
    task: Tensor  # long
    prompt_tokens: Tensor
    attachment_bits: Tensor
    output_tokens: Tensor
    acceptance: Tensor  # the request's own rate, constant over its answer

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
) -> RequestTable:
    """Draw the requests of episodes; the same episode key always gives the same table.

    Args:
        episode: (B,) int64 keys.
        num_devices: M.
        horizon_s: no request arrives later.
        config: rates and task mix.
        acceptance_mean: (number of tasks,).
        acceptance_std: (number of tasks,) between requests.

    Returns:
        float32 tables; arrivals are exact in float64 before the cast to slots.
    """
    requests = torch.arange(config.max_requests(horizon_s))
    keys = (episode[:, None, None], torch.arange(num_devices)[:, None], requests)

    gaps = -torch.log(uniform(*keys, int(_Purpose.ARRIVAL))) / config.arrivals_per_s
    arrival = gaps.cumsum(-1)
    arrival = torch.where(arrival < horizon_s, arrival, math.inf)
    weights = torch.tensor([task.weight for task in config.tasks], dtype=torch.float64)
    cdf = (weights / weights.sum()).cumsum(0)
    task = torch.searchsorted(cdf[:-1].contiguous(), uniform(*keys, int(_Purpose.TASK)))
    mean, std = acceptance_mean[task], acceptance_std[task] * config.acceptance_spread
    # Uniform with the measured mean and spread, kept inside (0, 1) without moving the mean.
    half_width = (std * math.sqrt(3)).minimum(0.98 - mean).minimum(mean - 0.02).clamp_min(0)
    swing = 2 * uniform(*keys, int(_Purpose.ACCEPTANCE)) - 1
    attachment = torch.tensor([t.attachment_bits for t in config.tasks])[task]
    return RequestTable(
        arrival_s=arrival,
        task=task,
        prompt_tokens=_draw_length(keys, _Purpose.PROMPT, task, config, "prompt_tokens"),
        attachment_bits=attachment.float(),
        output_tokens=_draw_length(keys, _Purpose.OUTPUT, task, config, "output_tokens"),
        acceptance=(mean + half_width * swing).float(),
    )


def _draw_length(
    keys: tuple[Tensor, ...], purpose: _Purpose, task: Tensor, config: RequestConfig, what: str
) -> Tensor:
    """Draw whole token counts: minimum + exponential, cut at the maximum."""
    low, mean, high = (
        torch.tensor([float(getattr(t, f"{what}_{end}")) for t in config.tasks])[task]
        for end in ("min", "mean", "max")
    )
    tail = -torch.log(uniform(*keys, int(purpose))) * (mean - low)
    return (low + tail).round().clamp(max=high).float()


@dataclass(frozen=True)
class AnswerLengths:
    """The law of answer lengths per task, (number of tasks,): all a controller knows of them."""

    low: Tensor
    mean: Tensor
    high: Tensor

    @classmethod
    def of(cls, config: RequestConfig) -> AnswerLengths:
        """Collect the law from a task mix."""
        low, mean, high = (
            torch.tensor([float(getattr(task, f"output_tokens_{end}")) for task in config.tasks])
            for end in ("min", "mean", "max")
        )
        return cls(low, mean, high)

    def expected_remaining_tokens(self, tokens_so_far: Tensor, task: Tensor) -> Tensor:
        """Compute the mean number of tokens still to come, given that the answer is not finished.

        With L = min + X, X exponential of mean m cut at h = max - min, y tokens past the minimum:
        E[L - t | L > t] = min - t + m (1 - exp(-h / m)) before the minimum and
        m (1 - exp(-(h - y) / m)) after it (the exponential has no memory).

        Args:
            tokens_so_far: any shape.
            task: long, same shape.
        """
        low, high = self.low[task], self.high[task]
        scale = (self.mean[task] - low).clamp_min(1e-6)
        past = (tokens_so_far - low).clamp_min(0)
        tail = scale * (1 - torch.exp(-(high - low - past).clamp_min(0) / scale))
        return ((low - tokens_so_far).clamp_min(0) + tail).clamp_min(1.0)
