"""What changes from slot to slot: the progress of each device's current request.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor

from uara.serving.batching import sum_by_server


@dataclass
class Progress:
    """One row per network; tensors of features that are off are None."""

    slot: Tensor  # (B,) long
    finished: Tensor  # (B, M) long, requests gone so far (answered or failed); the current's index
    arrived: Tensor  # (B, M) requests that have arrived
    active: Tensor  # (B, M) bool, a request is being served
    upload_bits: Tensor  # (B, M)
    kv_tokens: Tensor  # (B, M)
    tokens: Tensor  # (B, M) committed of the current answer
    server: Tensor  # (B, M) long
    accepted: Tensor  # (B, M) draft tokens of the current request
    tested: Tensor  # (B, M)
    ttft_s: Tensor  # (B, M) of the current request; inf until its first token
    # batteries
    battery_j: Tensor | None = None  # (B, M)
    # KV memory with admission
    is_resident: Tensor | None = None  # (B, M) bool, memory of `server` is reserved
    queued_slot: Tensor | None = None  # (B, M) slot in which it came to `server`; inf: not waiting
    # KV transfer
    kv_arriving_tokens: Tensor | None = None  # (B, M) on their way to `server`
    # conversations: the cache that the last turn left behind
    cache_tokens: Tensor | None = None  # (B, M)
    cache_server: Tensor | None = None  # (B, M) long
    cache_slot: Tensor | None = None  # (B, M) slot in which it was last used

    @classmethod
    def empty(
        cls,
        num_networks: int,
        num_devices: int,
        *,
        batteries: bool,
        admission: bool,
        transfer: bool,
        conversations: bool,
    ) -> Progress:
        """Make the progress of networks in which nothing has happened."""
        shape = (num_networks, num_devices)
        return cls(
            slot=torch.zeros(num_networks, dtype=torch.long),
            finished=torch.zeros(shape, dtype=torch.long),
            arrived=torch.zeros(shape),
            active=torch.zeros(shape, dtype=torch.bool),
            upload_bits=torch.zeros(shape),
            kv_tokens=torch.zeros(shape),
            tokens=torch.zeros(shape),
            server=torch.full(shape, -1),
            accepted=torch.zeros(shape),
            tested=torch.zeros(shape),
            ttft_s=torch.full(shape, torch.inf),
            battery_j=torch.zeros(shape) if batteries else None,
            is_resident=torch.zeros(shape, dtype=torch.bool) if admission else None,
            queued_slot=torch.full(shape, torch.inf) if admission else None,
            kv_arriving_tokens=torch.zeros(shape) if transfer else None,
            cache_tokens=torch.zeros(shape) if conversations else None,
            cache_server=torch.full(shape, -1) if conversations else None,
            cache_slot=torch.zeros(shape) if conversations else None,
        )

    def clear(self, rows: Tensor) -> None:
        """Start anew in the networks `rows` (K,) long."""
        for name, values in self.tensors().items():
            # A copy: states handed out earlier share these tensors.
            fresh = values.clone()
            fresh[rows] = _EMPTY.get(name, 0)
            setattr(self, name, fresh)

    def tensors(self) -> dict[str, Tensor]:
        """Collect what there is, by name."""
        found = {f.name: getattr(self, f.name) for f in fields(self)}
        return {name: values for name, values in found.items() if values is not None}

    def drain(self, spent_j: Tensor) -> Tensor:
        """Take joules from the batteries; requests of devices that are dead end unanswered, (B, M).

        Args:
            spent_j: (B, M).
        """
        assert self.battery_j is not None, "no batteries"
        self.battery_j = self.battery_j - spent_j
        failed = (self.arrived - self.finished) * (self.battery_j <= 0)
        self.finished = self.finished + failed.long()
        return failed

    def leave_cache(self, is_finished: Tensor, kv_tokens: Tensor, server: Tensor) -> None:
        """Leave what finished requests (B, M) bool hold at their servers, for the next turn."""
        assert self.cache_tokens is not None, "no conversations"
        assert self.cache_server is not None, "no conversations"
        assert self.cache_slot is not None, "no conversations"
        self.cache_tokens = torch.where(is_finished, kv_tokens, self.cache_tokens)
        self.cache_server = torch.where(is_finished, server, self.cache_server)
        slot = self.slot[:, None].to(self.cache_slot.dtype)
        self.cache_slot = torch.where(is_finished, slot, self.cache_slot)

    def take_cache(self, starts: Tensor, history_tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Give requests that start what the turn before left; a new conversation drops it.

        Args:
            starts: (B, M) bool.
            history_tokens: (B, M) of earlier turns in the new prompt.

        Returns:
            tokens dropped (B, M), and the servers (B, M) where they were.
        """
        assert self.cache_tokens is not None, "no conversations"
        assert self.cache_server is not None, "no conversations"
        found = starts & (self.cache_server >= 0)
        used = torch.minimum(self.cache_tokens, history_tokens) * found
        dropped = self.cache_tokens * starts - used
        server = self.cache_server
        self.kv_tokens = torch.where(starts, used, self.kv_tokens)
        self.server = torch.where(used > 0, server, self.server)
        self.cache_tokens = self.cache_tokens.masked_fill(starts, 0)
        self.cache_server = server.masked_fill(starts, -1)
        return dropped, server

    def lose_caches(self, is_down: Tensor) -> Tensor:
        """Empty the servers that are out, (B, E) bool; return what they held, (B, E) tokens."""
        servers = is_down.shape[1]
        hit = is_down.gather(1, self.server.clamp_min(0)) & (self.server >= 0)
        lost = sum_by_server(self.kv_tokens * hit, self.server.clamp_min(0), servers)
        self.kv_tokens = self.kv_tokens.masked_fill(hit, 0)
        if self.kv_arriving_tokens is not None:
            self.kv_arriving_tokens = self.kv_arriving_tokens.masked_fill(hit, 0)
        if self.is_resident is not None:
            self.is_resident = self.is_resident & ~hit
        if self.cache_tokens is not None and self.cache_server is not None:
            at = self.cache_server.clamp_min(0)
            hit = is_down.gather(1, at) & (self.cache_server >= 0)
            lost = lost + sum_by_server(self.cache_tokens * hit, at, servers)
            self.cache_tokens = self.cache_tokens.masked_fill(hit, 0)
            self.cache_server = self.cache_server.masked_fill(hit, -1)
        return lost


_EMPTY = {"server": -1, "ttft_s": torch.inf, "queued_slot": torch.inf, "cache_server": -1}
