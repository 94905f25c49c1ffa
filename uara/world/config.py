"""Who is in a network, with which budgets, and the constants that follow.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.radio.link import dbm_to_w
from uara.serving.hardware import get_phone, get_rack
from uara.world.requests import RequestConfig


class WorldConfig(BaseModel):
    """Who is there, with which budgets, and what they ask for."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    servers: tuple[str, ...] = Field(
        ("4xA100-40GB", "4xL40S", "4xRTXA6000"), min_length=1, description="rack of each server"
    )
    devices: tuple[str, ...] = Field(
        ("snapdragon-8-gen-3", "snapdragon-8-gen-1", "snapdragon-865"),
        min_length=1,
        description="phones; device i is the (i mod n)-th",
    )
    bandwidth_hz: float = Field(
        2e6, gt=0, description="uplink spectrum of all servers together, split equally (orthogonal)"
    )
    downlink_bandwidth_hz: float = Field(
        10e6, gt=0, description="downlink spectrum of all servers together, split equally"
    )
    power_max_dbm: float = Field(23.0, description="device transmit power (power class 3)")
    server_power_dbm: float = Field(33.0, description="base station transmit power (small cell)")
    rtt_s: float = Field(0.02, ge=0, description="path beyond the radio, both ways")
    reach_gain_db: float = Field(
        -140.0, description="a server is out of reach below this path gain; the strongest never is"
    )
    slot_s: float = Field(0.5, gt=0, description="time between decisions")
    horizon_slots: int = Field(120, gt=0, description="slots in which requests arrive")
    drain_slots: int = Field(240, ge=0, description="most slots after the horizon in evaluation")
    csi_delay_slots: int = Field(0, ge=0, description="age of the gains that controllers see")
    gain_filter_s: float = Field(
        2.0, ge=0, description="time constant of the filter on the gains that controllers see"
    )
    acceptance_prior_tokens: float = Field(
        20.0, gt=0, description="weight of the task's mean in the running acceptance estimate"
    )
    requests: RequestConfig = Field(RequestConfig(), description="arrivals and task mix")


def reachable(gain: Tensor, limit_db: float) -> Tensor:
    """Find the servers within reach, (B, M, E) bool like the gain; the strongest always is."""
    return (gain >= 10 ** (limit_db / 10)) | (gain >= gain.amax(-1, keepdim=True))


def network_constants(
    config: WorldConfig, num_networks: int, num_devices: int
) -> dict[str, Tensor]:
    """Expand phones, racks and budgets to the constant fields of a `NetworkState`.

    Returns:
        tensors (B, M) and (B, E) by field name, and `kv_capacity_tokens` (B, E).

    Raises:
        UserError: if a phone or rack is unknown.
    """
    phones = [get_phone(config.devices[i % len(config.devices)]) for i in range(num_devices)]
    racks = [get_rack(name) for name in config.servers]
    e = len(racks)

    def rows(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).expand(num_networks, -1).contiguous()

    return {
        "draft_time_s": rows([phone.draft_time_s for phone in phones]),
        "draft_power_w": rows([phone.draft_power_w for phone in phones]),
        "power_max_w": rows([dbm_to_w(config.power_max_dbm)] * num_devices),
        "forward_fixed_s": rows([rack.forward.fixed_s for rack in racks]),
        "forward_per_row_s": rows([rack.forward.per_row_s for rack in racks]),
        "forward_per_token_s": rows([rack.forward.per_token_s for rack in racks]),
        "forward_per_context_s": rows([rack.forward.per_context_s for rack in racks]),
        "server_power_w": rows([rack.power_w for rack in racks]),
        "kv_capacity_tokens": rows([float(rack.kv_capacity_tokens) for rack in racks]),
        "uplink_bandwidth_hz": rows([config.bandwidth_hz / e] * e),
        "downlink_bandwidth_hz": rows([config.downlink_bandwidth_hz / e] * e),
        "downlink_power_w": rows([dbm_to_w(config.server_power_dbm)] * e),
        "rtt_s": rows([config.rtt_s] * e),
        "foreign_rows": rows([0.0] * e),
        "foreign_prefill_tokens": rows([0.0] * e),
    }
