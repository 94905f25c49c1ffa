"""What a machine is: the time of a forward pass, a server with the target, a phone with the draft.

Every machine belongs to one way of running it: its time per forward pass, prefill rate and KV
memory are of the same hardware, model and software. Decoding is bound by memory: a forward pass
reads all weights once.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from torch import Tensor

Number = TypeVar("Number", float, Tensor)

# KV cache of Llama-2-70B: 80 layers x 8 heads x 128 x 2 (K, V) x 2 B = 327,680 B per token.
KV_BYTES_PER_TOKEN = 80 * 8 * 128 * 2 * 2
# 5,000 mAh at 3.88 V, the battery of Galaxy S20, S22, S23 and S24 Ultra, which have the chips of
# `PHONES` (Samsung data sheets).
BATTERY_WH = 19.4
DRAFT_FLOP_PER_TOKEN = 2 * 1.24e9  # two per weight of Llama-3.2-1B
JOULES_PER_WH = 3600.0


@dataclass(frozen=True)
class ForwardTime:
    """Time of one batched forward pass: fixed + rows + new tokens + cached tokens, each linear."""

    fixed_s: float
    per_row_s: float
    per_token_s: float
    per_context_s: float

    def __call__(self, rows: Number, new_tokens: Number, context_tokens: Number) -> Number:
        """Compute seconds of a forward over `rows` sequences with `new_tokens` tokens in total.

        Args:
            rows: sequences in the batch.
            new_tokens: tokens fed in, summed over the batch (verified, decoded or prefilled).
            context_tokens: cached tokens read, summed over the batch.
        """
        return (
            self.fixed_s
            + self.per_row_s * rows
            + self.per_token_s * new_tokens
            + self.per_context_s * context_tokens
        )


@dataclass(frozen=True)
class Rack:
    """A server that holds the target model."""

    name: str
    forward: ForwardTime
    kv_capacity_tokens: int
    power_w: float
    source: str
    kv_bytes_per_token: float = KV_BYTES_PER_TOKEN


@dataclass(frozen=True)
class Phone:
    """A device that holds the draft model."""

    name: str
    draft_time_s: float
    draft_power_w: float
    source: str
    battery_wh: float = BATTERY_WH
    draft_flop_per_token: float = DRAFT_FLOP_PER_TOKEN

    @property
    def battery_j(self) -> float:
        """Joules of a full battery."""
        return self.battery_wh * JOULES_PER_WH
