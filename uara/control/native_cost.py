"""Costs of placements by compiled code, for the physics and closed forms that are used most.

Shape legend: B networks, M devices, E servers.

What does not depend on who else is on a server is tabulated here; the rest is `server_cost.c`.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import pad

from uara.control.allocation import Allocator
from uara.native import load_library, pointers
from uara.network import NetworkState
from uara.prediction import Physics
from uara.radio.link import spectral_efficiency
from uara.rates import MIN_RATE_BPS
from uara.serving.modes import MODES
from uara.serving.modes.sd import geometric_tokens

TIE = 1e-6  # of the network's total: a smaller gain is rounding and moves nobody

_SOURCE = Path(__file__).with_name("server_cost.c")
_SCRATCH_COLUMNS = 22
_SETS = 8
_LANES = 16


class _Constants(ctypes.Structure):
    """The struct `Constants` of the C file."""

    _fields_ = (
        ("efficiency_max", ctypes.c_float),
        ("rate_min", ctypes.c_float),
        ("chunk_tokens", ctypes.c_float),
        ("is_equal", ctypes.c_float),
        ("iterations", ctypes.c_float),
        ("tie", ctypes.c_float),
    )


def knows(state: NetworkState, allocator: Allocator) -> bool:
    """Tell whether the compiled code computes this physics and this allocation."""
    physics, rules = allocator.physics.config, allocator.config
    return (
        physics.mode in ("sd", "server_ar")
        and physics.service == "batched"
        and physics.link.interference == "orthogonal"
        and physics.link.adaptation == "shannon"
        and rules.bandwidth in ("equal", "square_root")
        and rules.power == "full"
        and not allocator.sets_mode
        and state.gain.dtype == torch.float32
        and state.gain.device.type == "cpu"
    )


@dataclass(frozen=True)
class NativeCost:
    """Prices placements as `PredictedCost` does; see `ServerCost` for what the methods mean."""

    library: ctypes.CDLL
    constants: _Constants
    weight: Tensor  # (B, M)
    num_servers: int
    tables: tuple[Tensor, ...]  # the struct `Tables` of the C file

    @classmethod
    def of(cls, state: NetworkState, allocator: Allocator) -> NativeCost:
        """Tabulate what does not depend on a server's other devices.

        Args:
            state: what is known.
            allocator: `knows` must hold.

        Raises:
            UserError: if there is no C compiler.
        """
        assert knows(state, allocator), "the compiled code lacks these physics: use PredictedCost"
        decision = allocator.quick(state, state.server.clamp_min(0))
        assert decision.mode is None, "rules for the mode are not compiled"
        physics, devices = allocator.physics.config, state.num_devices
        weight = (1 + state.waiting_requests) * state.has_request
        length = decision.draft_length.to(state.gain.dtype)
        device_table, new_tokens = _device_columns(state, allocator.physics, length, weight)
        pairs = _pair_columns(state, allocator.physics, decision.power_w, device_table, new_tokens)
        servers = state.num_servers
        width = (devices + 1 + _LANES - 1) // _LANES * _LANES
        return cls(
            library=load_library(_SOURCE),
            constants=_Constants(
                efficiency_max=physics.link.spectral_efficiency_max,
                rate_min=MIN_RATE_BPS,
                chunk_tokens=physics.batching.prefill_chunk_tokens,
                is_equal=float(allocator.config.bandwidth == "equal"),
                iterations=physics.batching.iterations,
                tie=TIE,
            ),
            weight=weight,
            num_servers=servers,
            tables=(
                pad(pairs, (0, 1)),
                pad(device_table, (0, 1)),
                _server_columns(state),
                state.has_request.contiguous(),
                torch.zeros(_SETS, _SCRATCH_COLUMNS, width),
                torch.zeros(servers, devices, dtype=torch.int32),
                torch.zeros(width, dtype=torch.int32),
                torch.zeros(servers, dtype=torch.long),
                torch.zeros(servers),
                torch.zeros(devices, dtype=torch.long),
            ),
        )

    def remaining_s(self, server: Tensor, placed: Tensor) -> Tensor:
        """See `ServerCost.remaining_s`."""
        seconds = torch.zeros_like(self.weight)
        self._call(self.library.remaining, server.contiguous(), placed.contiguous(), seconds)
        return seconds

    def join_s(self, server: Tensor, placed: Tensor, device: Tensor) -> tuple[Tensor, Tensor]:
        """See `ServerCost.join_s`."""
        others_s, own_s = torch.zeros(2, len(device), self.num_servers).unbind(0)
        self._call(
            self.library.join, server.contiguous(), _copy(placed), device.contiguous(),
            others_s, own_s,
        )  # fmt: skip
        return others_s, own_s

    def relocate(
        self,
        server: Tensor,
        placed: Tensor,
        order: Tensor,
        allowed: Tensor,
        *,
        harm_weight: float = 1.0,
        margin_s: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """See `ServerCost.relocate`."""
        found = _copy(server)
        self._call(
            self.library.relocate, ctypes.c_int64(order.shape[1]), found, _copy(placed),
            order.contiguous(), allowed.contiguous(), ctypes.c_float(harm_weight),
            ctypes.c_float(margin_s),
        )  # fmt: skip
        return found, found != server

    def swap(self, server: Tensor, order: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
        """See `ServerCost.swap`."""
        found = _copy(server)
        self._call(self.library.swap, found, order.contiguous(), allowed.contiguous())
        return found, found != server

    def _call(self, function: Callable[..., object], *arguments: object) -> None:
        sizes = (*self.weight.shape, self.num_servers)
        function(
            pointers(self.tables),
            ctypes.byref(self.constants),
            *(ctypes.c_int64(size) for size in sizes),
            *(ctypes.c_void_p(a.data_ptr()) if isinstance(a, Tensor) else a for a in arguments),
        )


def _copy(tensor: Tensor) -> Tensor:
    """Copy to contiguous memory of its own."""
    return tensor.clone(memory_format=torch.contiguous_format)


def _device_columns(
    state: NetworkState, physics: Physics, length: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor]:
    """Tabulate the devices (columns, B, M), and the new tokens that each brings to a pass."""
    codec, alpha = physics.codec, state.acceptance
    drafted = torch.where(length > 0, codec.draft_bits(length), 0.0)
    # The square-root rule reckons with drafts also where the server decodes alone.
    rounds = state.expected_remaining_tokens / geometric_tokens(alpha, length)
    is_alone = length <= 0 if physics.config.mode == "sd" else torch.ones_like(length).bool()
    alone, mode = MODES["server_ar"], MODES["sd"]
    gamma = length.masked_fill(is_alone, 0.0)

    def of_mode(in_alone: Tensor, in_mode: Tensor) -> Tensor:
        return torch.where(is_alone, in_alone, in_mode)

    tokens = of_mode(alone.expected_tokens(alpha, gamma), mode.expected_tokens(alpha, gamma))
    verdict_bits = of_mode(
        alone.verdict_bits(codec, alpha, gamma), mode.verdict_bits(codec, alpha, gamma)
    )
    columns = (
        state.upload_bits,
        drafted.masked_fill(is_alone, 0.0),
        state.upload_bits + rounds * drafted,
        verdict_bits,
        gamma * state.draft_time_s,
        state.expected_remaining_tokens / tokens.clamp_min(1e-6),
        weight,
        torch.ones_like(weight),
    )
    return torch.stack(columns), of_mode(
        alone.new_tokens(alpha, gamma), mode.new_tokens(alpha, gamma)
    )


def _pair_columns(
    state: NetworkState,
    physics: Physics,
    power_w: Tensor,
    device_table: Tensor,
    new_tokens: Tensor,
) -> Tensor:
    """Tabulate each device on each server, (columns, B, E, M)."""
    link = physics.config.link
    gain = state.gain.transpose(1, 2)
    gap = 10 ** (link.snr_gap_db / 10)
    snr_hz = gain * (power_w / (link.uplink_noise_w_per_hz * gap)).unsqueeze(1)
    # A share of the band has that share of the power: the density, and so the SNR, is the same.
    band_hz = state.downlink_bandwidth_hz.clamp_min(1e-3).unsqueeze(2)
    density = state.downlink_power_w.unsqueeze(2) / (link.downlink_noise_w_per_hz * band_hz)
    downlink_bps = band_hz * spectral_efficiency(gain * density, link, "downlink")
    own_s = (
        state.forward_per_row_s.unsqueeze(2)
        + new_tokens.unsqueeze(1) * state.forward_per_token_s.unsqueeze(2)
        + state.context_tokens.unsqueeze(1) * state.forward_per_context_s.unsqueeze(2)
    )
    moved = (state.server.unsqueeze(1) != torch.arange(state.num_servers)[:, None]).float()
    cached, later_s = state.kv_tokens.unsqueeze(1) * (1 - moved), torch.zeros_like(gain)
    if state.kv_arriving_tokens is not None:
        assert state.kv_transfer_s is not None, "a world that moves KV caches knows how long"
        cached = (state.kv_tokens + state.kv_arriving_tokens).unsqueeze(1)
        moving = state.kv_arriving_tokens.unsqueeze(1) + moved * state.kv_tokens.unsqueeze(1)
        later_s = moving * state.kv_transfer_s.unsqueeze(2)
    need = (state.context_tokens.unsqueeze(1) - cached).clamp_min(0)
    downlink_s = device_table[3].unsqueeze(1) / downlink_bps.clamp_min(1e-30)
    return torch.stack((snr_hz, downlink_s, own_s, need.expand_as(gain), later_s))


def _server_columns(state: NetworkState) -> Tensor:
    """Tabulate the servers, (columns, B, E)."""
    row_s = state.forward_per_row_s + state.forward_per_token_s
    return torch.stack(
        (
            state.uplink_bandwidth_hz,
            state.forward_fixed_s,
            state.forward_fixed_s + state.foreign_rows * row_s,
            (state.foreign_rows <= 0).float(),
            state.forward_per_token_s,
            state.rtt_s,
            state.foreign_prefill_tokens,
        )
    )
