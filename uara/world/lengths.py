"""Lengths of prompts and answers: the laws that they are drawn from, and what controllers know.

Shape legend: B networks, M devices, R requests of a device in an episode.

A length is a minimum plus a part X >= 0, cut at a maximum; a task's `length_law` is the law of X.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from uara.world.streams import Purpose, uniform
from uara.world.tasks import LengthLaw, TaskType

if TYPE_CHECKING:
    from uara.world.requests import RequestConfig

_TINY = 1e-6
_LAWS: dict[LengthLaw, int] = {"exponential": 0, "lognormal": 1, "fixed": 2}


def normal_cdf(value: Tensor) -> Tensor:
    """Compute the distribution function of the standard normal law."""
    return 0.5 * (1 + torch.erf(value / math.sqrt(2)))


def draw_lengths(
    keys: tuple[Tensor, ...],
    purpose: Purpose,
    task: Tensor,
    tasks: tuple[TaskType, ...],
    what: Literal["prompt_tokens", "output_tokens"],
    scale: Tensor | None = None,
) -> Tensor:
    """Draw whole token counts: minimum + the law's part, cut at the maximum.

    Args:
        keys: of the stream; they broadcast to (B, M, R).
        purpose: of the draw.
        task: (B, M, R) long.
        tasks: their laws.
        what: which length.
        scale: (B, M, R) factor of the part above the minimum; None: 1.

    Returns:
        (B, M, R) float32.
    """
    low, mean, high = (
        torch.tensor([float(getattr(t, f"{what}_{end}")) for t in tasks])[task]
        for end in ("min", "mean", "max")
    )
    draw = uniform(*keys, int(purpose))
    tail = -torch.log(draw) * (mean - low)
    if not _all_exponential(tasks):
        law = torch.tensor([_LAWS[t.length_law] for t in tasks])[task]
        sigma = torch.tensor([t.length_sigma for t in tasks], dtype=torch.float64)[task]
        # exp(mu + sigma^2 / 2) is the mean of a lognormal law.
        unit = torch.exp(sigma * torch.special.ndtri(draw) - 0.5 * sigma**2)
        tail = torch.where(law == _LAWS["lognormal"], unit * (mean - low), tail)
        tail = torch.where(law == _LAWS["fixed"], (mean - low).double(), tail)
    if scale is not None:
        tail = tail * scale
    return (low + tail).round().clamp(max=high).float()


def _all_exponential(tasks: tuple[TaskType, ...]) -> bool:
    return all(task.length_law == "exponential" for task in tasks)


@dataclass(frozen=True)
class AnswerLengths:
    """The law of answer lengths per task, (number of tasks,): all a controller knows of them."""

    low: Tensor
    mean: Tensor
    high: Tensor
    law: Tensor | None = None  # None: all exponential
    sigma: Tensor | None = None

    @classmethod
    def of(cls, config: RequestConfig) -> AnswerLengths:
        """Collect the law from a task mix."""
        low, mean, high = (
            torch.tensor([float(getattr(task, f"output_tokens_{end}")) for task in config.tasks])
            for end in ("min", "mean", "max")
        )
        if _all_exponential(config.tasks):
            return cls(low, mean, high)
        law = torch.tensor([_LAWS[task.length_law] for task in config.tasks])
        return cls(low, mean, high, law, torch.tensor([t.length_sigma for t in config.tasks]))

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
        scale = (self.mean[task] - low).clamp_min(_TINY)
        past = (tokens_so_far - low).clamp_min(0)
        tail = scale * (1 - torch.exp(-(high - low - past).clamp_min(0) / scale))
        if self.law is not None and self.sigma is not None:
            law = self.law[task]
            lognormal = _lognormal_tail(past, high - low, scale, self.sigma[task])
            tail = torch.where(law == _LAWS["lognormal"], lognormal, tail)
            tail = torch.where(law == _LAWS["fixed"], (scale - past).clamp_min(0), tail)
        return ((low - tokens_so_far).clamp_min(0) + tail).clamp_min(1.0)


def _lognormal_tail(past: Tensor, cut: Tensor, mean: Tensor, sigma: Tensor) -> Tensor:
    """Compute E[min(X, cut) - past | X > past] of a lognormal X.

    It is (E min(X, cut) - E min(X, past)) / P(X > past), with
    E min(X, c) = m F((ln c - mu) / s - s) + c (1 - F((ln c - mu) / s)), F the normal law.
    """
    past, cut, mean, sigma = (value.double() for value in (past, cut, mean, sigma))
    mu = mean.log() - 0.5 * sigma**2

    def deviation(value: Tensor) -> Tensor:
        return (value.clamp_min(1e-12).log() - mu) / sigma

    def capped_mean(value: Tensor) -> Tensor:
        z = deviation(value)
        return mean * normal_cdf(z - sigma) + value * normal_cdf(-z)

    survives = normal_cdf(-deviation(past)).clamp_min(1e-12)
    left = (capped_mean(cut) - capped_mean(past)) / survives
    # Far out in the tail the difference of two equal numbers says nothing.
    return torch.minimum(left.clamp_min(0), (cut - past).clamp_min(0)).float()


def draw_rest(lengths: AnswerLengths, tokens_so_far: Tensor, task: Tensor, draw: Tensor) -> Tensor:
    """Draw lengths of answers that have come so far, by the inverse of the law beyond that point.

    Args:
        lengths: the law.
        tokens_so_far: any shape.
        task: long, same shape.
        draw: uniform in (0, 1), float64, same shape.

    Returns:
        whole tokens, more than there are, float32.
    """
    low, high = lengths.low[task].double(), lengths.high[task].double()
    scale = (lengths.mean[task] - lengths.low[task]).double()
    past = (tokens_so_far - low).clamp_min(0)
    tail = past - torch.log(draw) * scale
    if lengths.law is not None and lengths.sigma is not None:
        law, sigma = lengths.law[task], lengths.sigma[task].double()
        mu = scale.clamp_min(_TINY).log() - 0.5 * sigma**2
        passed = normal_cdf((past.clamp_min(1e-12).log() - mu) / sigma)
        at = (passed + (1 - passed) * draw).clamp(1e-12, 1 - 1e-12)
        lognormal = torch.exp(mu + sigma * torch.special.ndtri(at))
        tail = torch.where(law == _LAWS["lognormal"], lognormal, tail)
        tail = torch.where(law == _LAWS["fixed"], scale, tail)
    whole = (low + tail).round().minimum(high)
    return whole.maximum(tokens_so_far.double().floor() + 1).float()
