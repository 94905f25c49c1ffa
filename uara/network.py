"""The three records that everything passes through: what is known, what is decided, what happened.

Shape legend: B networks, M devices, E servers. Data only: no function here computes physics.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from enum import IntEnum
from functools import cached_property
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor


class Phase(IntEnum):
    """What a device's current request is doing."""

    IDLE = 0
    UPLOADING = 1
    PREFILLING = 2
    DECODING = 3


@dataclass(frozen=True)
class NetworkState:
    """What is known of B networks at the start of a slot; it holds no future.

    The world fills it with what a controller may know (`acceptance` is the running estimate) or,
    for its own step, with the truth (`acceptance` is the request's own rate).
    """

    time_s: Tensor  # (B,) since the episode's start
    # links
    gain: Tensor  # (B, M, E) linear power gain, the same up and down
    reachable: Tensor  # (B, M, E) bool; at least one server per device
    # devices and their current request
    phase: Tensor  # (B, M) long, see Phase
    task: Tensor  # (B, M) long, index into the task types
    age_s: Tensor  # (B, M) since the current request arrived; 0 when idle
    waiting_requests: Tensor  # (B, M) requests queued at the device behind the current one
    prompt_tokens: Tensor  # (B, M)
    upload_bits: Tensor  # (B, M) prompt bits still to be sent
    tokens_so_far: Tensor  # (B, M) tokens of the answer already committed
    expected_remaining_tokens: Tensor  # (B, M) mean of what is left, given tokens_so_far
    acceptance: Tensor  # (B, M) accepted / tested draft tokens
    server: Tensor  # (B, M) long, server that serves the request now; -1 before the first decision
    kv_tokens: Tensor  # (B, M) context tokens whose KV cache lies at `server`
    draft_time_s: Tensor  # (B, M) per draft token
    draft_power_w: Tensor  # (B, M) drawn while drafting
    power_max_w: Tensor  # (B, M) radio transmit power limit
    position_m: Tensor  # (B, M, 2)
    # servers
    forward_fixed_s: Tensor  # (B, E) time of one forward pass whatever it carries
    forward_per_row_s: Tensor  # (B, E) per sequence in the batch
    forward_per_token_s: Tensor  # (B, E) per new token, verified or prefilled
    forward_per_context_s: Tensor  # (B, E) per cached token read
    server_power_w: Tensor  # (B, E) electrical power while computing
    uplink_bandwidth_hz: Tensor  # (B, E)
    downlink_bandwidth_hz: Tensor  # (B, E)
    downlink_power_w: Tensor  # (B, E)
    rtt_s: Tensor  # (B, E) round-trip time of the path beyond the radio, frames excluded
    kv_free_tokens: Tensor  # (B, E) free KV memory
    foreign_rows: Tensor  # (B, E) sequences in the batch that belong to no device of this network
    foreign_prefill_tokens: Tensor  # (B, E) prefill backlog of such sequences
    # None where the world has no such thing
    battery_j: Tensor | None = None  # (B, M) left in the battery; 0 when dead
    is_down: Tensor | None = None  # (B, E) bool, the server is out and has lost its KV caches
    outage_in_s: Tensor | None = None  # (B, E) to the next announced outage; 0 in it, else inf
    kv_arriving_tokens: Tensor | None = None  # (B, M) context tokens on their way to `server`
    kv_transfer_s: Tensor | None = None  # (B, E) to bring one token's KV cache to the server

    @property
    def num_networks(self) -> int:
        """B."""
        return self.gain.shape[0]

    @property
    def num_devices(self) -> int:
        """M."""
        return self.gain.shape[1]

    @property
    def num_servers(self) -> int:
        """E."""
        return self.gain.shape[2]

    @cached_property
    def has_request(self) -> Tensor:
        """Tell which devices have a current request, (B, M) bool."""
        return self.phase != int(Phase.IDLE)

    @property
    def context_tokens(self) -> Tensor:
        """Count prompt and answer so far, (B, M)."""
        return self.prompt_tokens + self.tokens_so_far

    def select(self, rows: Tensor) -> NetworkState:
        """Take networks by index, with repetition allowed; `rows` is (K,) long."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: v[rows] for k, v in values.items() if v is not None})

    def with_(self, **changes: Tensor) -> NetworkState:
        """Return a copy in which the named tensors are replaced."""
        return replace(self, **changes)


@dataclass(frozen=True)
class Decision:
    """What a controller decides for one slot; entries of devices without a request are ignored."""

    server: Tensor  # (B, M) long
    bandwidth_hz: Tensor  # (B, M) uplink; the sum over a server's devices is at most its band
    power_w: Tensor  # (B, M) in [0, power_max_w]
    draft_length: Tensor  # (B, M) long; 0 hands the request to the server for the slot
    mode: Tensor | None = None  # (B, M) long, index into serving.modes.MODES; None: the task's mode
    compute_share: Tensor | None = None  # (B, M) of a fluid server; the sum is at most 1 on each


@dataclass(frozen=True)
class SlotOutcome:
    """What one slot brought; everything is a sum over the slot unless said otherwise."""

    alive_s: Tensor  # (B,) integral over the slot of the number of requests waiting or alive
    tokens: Tensor  # (B, M) committed
    device_energy_j: Tensor  # (B, M) drafting and transmitting
    server_energy_j: Tensor  # (B, E)
    uplink_bits: Tensor  # (B, M)
    downlink_bits: Tensor  # (B, M)
    handover: Tensor  # (B, M) bool, a request changed its server and lost its KV cache
    finished: Tensor  # (B, M) bool
    e2e_s: Tensor  # (B, M) of the finished request, else 0
    ttft_s: Tensor  # (B, M) of the finished request, else 0
    finished_tokens: Tensor  # (B, M) answer length of the finished request, else 0
    finished_task: Tensor  # (B, M) long, task of the finished request, else 0
    drained: Tensor  # (B,) bool, no request is left and none will arrive
    # None where the world has no such thing
    failed: Tensor | None = None  # (B, M) requests that ended without an answer
    battery_share: Tensor | None = None  # (B, M) joules spent over joules left at the slot's start
    held_back: Tensor | None = None  # (B, M) bool, waited for KV memory or for a server that is out
    kv_freed_tokens: Tensor | None = None  # (B, E) KV memory given back
    kv_moved_tokens: Tensor | None = None  # (B, M) KV caches brought over the backhaul


@runtime_checkable
class Controller(Protocol):
    """Whatever decides: a rule, an optimiser or a trained policy; it drives worlds and real runs.

    `observes` names the set of observations used: "network" (the whole state) or "device" (own
    links, own request and what servers broadcast); only the second may be called decentralised.
    """

    @property
    def name(self) -> str:
        """Row of a table."""
        ...

    @property
    def observes(self) -> str:
        """Set of observations, "network" or "device"."""
        ...

    def reset(self, mask: Tensor, generator: torch.Generator) -> None:
        """Forget the memory of the networks in `mask` (B,) bool; draws come from `generator`."""

    def decide(self, state: NetworkState) -> Decision:
        """Decide for every device of every network."""

    def observe(self, outcome: SlotOutcome) -> None:
        """Learn from what the slot brought."""
