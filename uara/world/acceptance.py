"""How a request's acceptance varies: not at all, by draft position, between two states, by traces.

Shape legend: B networks, M devices, R requests of a device in an episode, J blocks of an answer.

What varies along an answer belongs to its text, so it is keyed by the request and by the number of
tokens so far: every controller meets the same acceptance, however fast it gets there.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.errors import UserError
from uara.world.streams import Purpose, uniform

TRACE_FORMAT_VERSION = 1
LOWEST, HIGHEST = 0.02, 0.98  # bounds of rates that are drawn


class ConstantAcceptance(BaseModel):
    """One rate for the whole answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["constant"] = Field("constant", description="one rate per request")


class PositionalAcceptance(BaseModel):
    """A rate for each position of a draft: later tokens are accepted less often."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["positional"] = Field("positional", description="by position in the draft")
    factors: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (1.0, 0.97, 0.94, 0.91, 0.88, 0.85, 0.82, 0.79),
        min_length=1,
        description="rate of draft token k over the request's rate; the last holds from there on",
    )


class MarkovAcceptance(BaseModel):
    """Easy and hard stretches of text: a chain of two states along the answer."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["markov"] = Field("markov", description="two states along the answer")
    gap: float = Field(0.3, ge=0, le=1, description="rate in easy text minus that in hard text")
    easy_share: float = Field(0.6, gt=0, lt=1, description="share of blocks that are easy")
    persistence: float = Field(
        0.7, ge=0, lt=1, description="probability that a block is like the last one by itself"
    )
    block_tokens: int = Field(16, gt=0, description="tokens of a block")


class TraceAcceptance(BaseModel):
    """Measured rates along answers, replayed."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    kind: Literal["trace"] = Field("trace", description="replay of measured rates")
    path: str = Field(description="JSON file of traces per task; see docs/model.md")


AcceptanceProcess = Annotated[
    ConstantAcceptance | PositionalAcceptance | MarkovAcceptance | TraceAcceptance,
    Field(discriminator="kind"),
]


@dataclass(frozen=True)
class Traces:
    """Rates along measured answers, of all tasks side by side."""

    rate: Tensor  # (number of tasks, N, J), padded
    count: Tensor  # (number of tasks,) long, traces of a task
    length: Tensor  # (number of tasks, N) long, blocks of a trace
    block_tokens: int

    @classmethod
    def load(cls, path: Path, tasks: tuple[str, ...]) -> Traces:
        """Read traces: {"format_version", "block_tokens", "traces": {task: [[rate, ...], ...]}}.

        Raises:
            UserError: if the file is missing or damaged, lacks a task, or has a rate outside 0..1.
        """
        if not path.is_file():
            raise UserError(f"acceptance traces {path} do not exist; name a file of traces")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
            version, block_tokens = raw["format_version"], int(raw["block_tokens"])
            table = {
                task: [[float(r) for r in row] for row in rows]
                for task, rows in raw["traces"].items()
            }
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise UserError(
                f"{path} holds no acceptance traces ({error!r}); make it anew"
            ) from error
        if version != TRACE_FORMAT_VERSION or block_tokens < 1:
            raise UserError(
                f"{path} has format version {version} and block_tokens {block_tokens}; allowed: "
                f"version {TRACE_FORMAT_VERSION} and at least 1 token"
            )
        for task in tasks:
            rows = table.get(task, [])
            if not rows or not all(rows):
                raise UserError(
                    f"{path} has no acceptance traces of task '{task}'; it has "
                    f"{', '.join(table) or 'none'}: add them or rename the task"
                )
            wrong = [rate for row in rows for rate in row if not 0 <= rate <= 1]
            if wrong:
                raise UserError(
                    f"{path} has a rate of {wrong[0]} in task '{task}'; allowed: 0 to 1"
                )
        chosen = [table[task] for task in tasks]
        most, longest = max(map(len, chosen)), max(len(row) for rows in chosen for row in rows)
        rate = torch.zeros(len(tasks), most, longest)
        length = torch.ones(len(tasks), most, dtype=torch.long)
        for index, rows in enumerate(chosen):
            for number, row in enumerate(rows):
                rate[index, number, : len(row)] = torch.tensor(row)
                length[index, number] = len(row)
        return cls(rate, torch.tensor([len(rows) for rows in chosen]), length, block_tokens)


def draw_states(
    keys: tuple[Tensor, ...], mean: Tensor, num_blocks: int, config: MarkovAcceptance
) -> Tensor:
    """Draw the rate of each block of an answer; its mean over blocks is the request's rate.

    Where the gap would lead out of the bounds it shrinks, and the mean stays.

    Args:
        keys: of the stream; they broadcast to (B, M, R).
        mean: (B, M, R) the request's rate.
        num_blocks: J.
        config: gap and persistence.

    Returns:
        (B, M, R, J) float32.
    """
    block = torch.arange(num_blocks)
    draw = uniform(*(key.unsqueeze(-1) for key in keys), block, int(Purpose.ACCEPTANCE_STATE))
    keeps = draw < config.persistence
    fresh = (draw - config.persistence) / (1 - config.persistence) < config.easy_share
    is_easy = torch.zeros_like(keeps)
    is_easy[..., 0] = draw[..., 0] < config.easy_share
    for j in range(1, num_blocks):
        is_easy[..., j] = torch.where(keeps[..., j], is_easy[..., j - 1], fresh[..., j])
    up, down = 1 - config.easy_share, config.easy_share
    gap = torch.full_like(mean, config.gap).minimum((HIGHEST - mean).clamp_min(0) / up)
    gap = gap.minimum((mean - LOWEST).clamp_min(0) / down)
    return (mean.unsqueeze(-1) + gap.unsqueeze(-1) * torch.where(is_easy, up, -down)).float()


def replay_traces(
    keys: tuple[Tensor, ...], task: Tensor, num_blocks: int, traces: Traces
) -> Tensor:
    """Give each request one trace of its task; a trace that is too short begins anew.

    Args:
        keys: of the stream; they broadcast to (B, M, R).
        task: (B, M, R) long.
        num_blocks: J.
        traces: of all tasks.

    Returns:
        (B, M, R, J) float32.
    """
    number = (uniform(*keys, int(Purpose.TRACE)) * traces.count[task]).long()
    block = torch.arange(num_blocks) % traces.length[task, number].unsqueeze(-1)
    return traces.rate[task.unsqueeze(-1), number.unsqueeze(-1), block]


@dataclass(frozen=True)
class AcceptanceRates:
    """The acceptance of a slot, (B, M) each; both are the same where positions are alike."""

    equivalent: Tensor  # the constant rate that commits as many tokens per round
    per_tested: Tensor  # accepted over tested draft tokens


def positional_rates(rate: Tensor, length: Tensor, factors: tuple[float, ...]) -> AcceptanceRates:
    """Reduce rates by position to one constant rate for a draft length.

    With a_k = rate x factor_k the tokens accepted per round are A = sum over k <= length of
    a_1 ... a_k, the tokens tested T = sum of a_1 ... a_(k-1). The equivalent constant rate a solves
    a + a^2 + ... + a^length = A, so tokens per round of sequential speculation are exact.

    Args:
        rate: (B, M), the request's.
        length: (B, M) long, draft length; 0 gives the rate of the first position.
        factors: of the positions; the last holds from there on.
    """
    longest = max(int(length.max()), 1)
    padded = (*factors, *[factors[-1]] * longest)[:longest]
    at = torch.arange(1, longest + 1)
    survives = (rate.unsqueeze(-1) * torch.tensor(padded)).clamp(0, 1).cumprod(-1)
    inside = (at <= length.clamp_min(1).unsqueeze(-1)).to(rate.dtype)
    accepted = (survives * inside).sum(-1)
    before = torch.cat((torch.ones_like(survives[..., :1]), survives[..., :-1]), -1)
    tested = (before * inside).sum(-1)
    low, high = torch.zeros_like(rate), torch.ones_like(rate)
    for _ in range(math.ceil(math.log2(1e7))):
        middle = 0.5 * (low + high)
        is_small = ((middle.unsqueeze(-1) ** at) * inside).sum(-1) < accepted
        low, high = torch.where(is_small, middle, low), torch.where(is_small, high, middle)
    return AcceptanceRates(0.5 * (low + high), accepted / tested.clamp_min(1e-6))
