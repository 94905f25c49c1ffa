"""Conversations of several turns: the next prompt contains what was said before.

Shape legend: B networks, M devices, R requests of a device in an episode.

A device's requests arrive as they do without conversations, whatever a controller decides; each is
with some probability the next turn of the one before it. Its prompt then holds the earlier turns,
whose texts the servers pass on among themselves; the device sends the new part only. The KV cache
of the earlier turns stays at the server that served the last one.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.world.streams import Purpose, uniform


class ConversationConfig(BaseModel):
    """How requests follow each other."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    continues: float = Field(
        0.6, ge=0, lt=1, description="probability that a request is the next turn of the last one"
    )
    max_context_tokens: int = Field(
        16_000, gt=0, description="a turn that would be longer begins a new conversation"
    )


def draw_history(
    keys: tuple[Tensor, ...],
    new_tokens: Tensor,
    output_tokens: Tensor,
    config: ConversationConfig,
) -> Tensor:
    """Count the tokens of earlier turns in each prompt.

    Args:
        keys: of the stream; they broadcast to (B, M, R).
        new_tokens: (B, M, R) what the turn itself adds to the prompt.
        output_tokens: (B, M, R).
        config: probability and longest context.

    Returns:
        (B, M, R) float32; 0 where a conversation begins.
    """
    continues = uniform(*keys, int(Purpose.CONTINUATION)) < config.continues
    history = torch.zeros_like(new_tokens)
    for turn in range(1, new_tokens.shape[2]):
        before = turn - 1
        said = history[..., before] + new_tokens[..., before] + output_tokens[..., before]
        fits = said + new_tokens[..., turn] <= config.max_context_tokens
        history[..., turn] = torch.where(continues[..., turn] & fits, said, 0.0)
    return history
