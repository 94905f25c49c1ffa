"""Who is in a network, with which budgets, and the constants that follow.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from typing import Annotated, Any

import torch
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    model_serializer,
)
from torch import Tensor

from uara.errors import UserError
from uara.radio.link import LinkConfig, dbm_to_w
from uara.serving.energy import EnergyConfig
from uara.serving.hardware import get_phone, get_rack
from uara.world.batteries import BatteryConfig
from uara.world.memory import MemoryConfig
from uara.world.outages import OutageConfig
from uara.world.requests import RequestConfig
from uara.young_fields import dump_without_defaults

Factor = Annotated[float, Field(gt=0)]


class BelievedConfig(BaseModel):
    """The machines that controllers plan with, where those of the world differ."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    servers: tuple[str, ...] | None = Field(None, description="racks; null: the true ones")
    devices: tuple[str, ...] | None = Field(None, description="phones; null: the true ones")
    forward_factor: tuple[Factor, ...] = Field(
        (1.0,), min_length=1, description="believed over true forward time; of server i mod n"
    )
    draft_factor: tuple[Factor, ...] = Field(
        (1.0,), min_length=1, description="believed over true drafting time; of device i mod n"
    )


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
    memory: MemoryConfig = Field(MemoryConfig(), description="KV memory and handover")
    energy: EnergyConfig = Field(EnergyConfig(), description="how joules of devices are reckoned")
    batteries: BatteryConfig | None = Field(None, description="batteries; null: never empty")
    outages: OutageConfig | None = Field(None, description="server outages; null: none")
    believed: BelievedConfig | None = Field(
        None, description="machines that controllers plan with; null: the true ones"
    )

    @model_serializer(mode="wrap")
    def _leave_out_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        names = ("memory", "energy", "batteries", "outages", "believed")
        return dump_without_defaults(self, dump, names)


def reachable(gain: Tensor, limit_db: float) -> Tensor:
    """Find the servers within reach, (B, M, E) bool like the gain; the strongest always is."""
    return (gain >= 10 ** (limit_db / 10)) | (gain >= gain.amax(-1, keepdim=True))


def kv_capacities(config: WorldConfig) -> tuple[int, ...]:
    """Take the KV memory of each server in tokens: the world's own, or that of its racks.

    Raises:
        UserError: if a rack is unknown, or there is not one memory per server.
    """
    racks = [get_rack(name) for name in config.servers]
    capacity = config.memory.capacity_tokens or tuple(rack.kv_capacity_tokens for rack in racks)
    if len(capacity) != len(racks):
        raise UserError(
            f"memory.capacity_tokens has {len(capacity)} entries but there are {len(racks)} "
            "servers; give one per server or null"
        )
    return capacity


def network_constants(
    config: WorldConfig, num_networks: int, num_devices: int, link: LinkConfig
) -> dict[str, Tensor]:
    """Expand phones, racks and budgets to the constant fields of a `NetworkState`.

    Under `orthogonal` each server has an equal part of the band, under `reuse1` all of it.

    Returns:
        tensors (B, M) and (B, E) by field name, and `kv_capacity_tokens` (B, E).

    Raises:
        UserError: if a phone or rack is unknown, or the KV memories do not match the servers.
    """
    phones = [get_phone(config.devices[i % len(config.devices)]) for i in range(num_devices)]
    racks = [get_rack(name) for name in config.servers]
    e = len(racks)
    parts = e if link.interference == "orthogonal" else 1
    memory, capacity = config.memory, kv_capacities(config)

    def rows(values: list[float]) -> Tensor:
        return torch.tensor(values, dtype=torch.float32).expand(num_networks, -1).contiguous()

    constants = {
        "draft_time_s": rows([phone.draft_time_s for phone in phones]),
        "draft_power_w": rows([phone.draft_power_w for phone in phones]),
        "power_max_w": rows([dbm_to_w(config.power_max_dbm)] * num_devices),
        "forward_fixed_s": rows([rack.forward.fixed_s for rack in racks]),
        "forward_per_row_s": rows([rack.forward.per_row_s for rack in racks]),
        "forward_per_token_s": rows([rack.forward.per_token_s for rack in racks]),
        "forward_per_context_s": rows([rack.forward.per_context_s for rack in racks]),
        "server_power_w": rows([rack.power_w for rack in racks]),
        "kv_capacity_tokens": rows([float(tokens) for tokens in capacity]),
        "uplink_bandwidth_hz": rows([config.bandwidth_hz / parts] * e),
        "downlink_bandwidth_hz": rows([config.downlink_bandwidth_hz / parts] * e),
        "downlink_power_w": rows([dbm_to_w(config.server_power_dbm)] * e),
        "rtt_s": rows([config.rtt_s] * e),
        "foreign_rows": rows([0.0] * e),
        "foreign_prefill_tokens": rows([0.0] * e),
    }
    if memory.handover == "transfer":
        seconds = [8 * rack.kv_bytes_per_token / memory.backhaul_bps for rack in racks]
        constants["kv_transfer_s"] = rows(seconds)
    return constants


FORWARD_TIMES = (
    "forward_fixed_s",
    "forward_per_row_s",
    "forward_per_token_s",
    "forward_per_context_s",
)
MACHINE_TIMES = ("draft_time_s", *FORWARD_TIMES)  # what controllers may believe wrongly


def believed_constants(
    config: WorldConfig, num_networks: int, num_devices: int, link: LinkConfig
) -> dict[str, Tensor]:
    """Expand what controllers take the machines to be; budgets and memory are the true ones.

    Raises:
        UserError: if a believed machine is unknown or there is another number of servers.
    """
    constants = network_constants(config, num_networks, num_devices, link)
    believed = config.believed
    if believed is None:
        return constants
    servers, devices = believed.servers or config.servers, believed.devices or config.devices
    if len(servers) != len(config.servers):
        raise UserError(
            f"believed.servers names {len(servers)} racks but there are {len(config.servers)} "
            "servers; name one per server or give null"
        )
    # The believed racks need not have the memory or backhaul of the true ones.
    other = config.model_copy(update={"servers": servers, "devices": devices})
    guess = network_constants(other, num_networks, num_devices, link)
    forward, draft = believed.forward_factor, believed.draft_factor
    for name in FORWARD_TIMES:
        factor = torch.tensor([forward[j % len(forward)] for j in range(len(servers))])
        constants[name] = guess[name] * factor
    factor = torch.tensor([draft[i % len(draft)] for i in range(num_devices)])
    constants["draft_time_s"] = guess["draft_time_s"] * factor
    return constants


def phone_constants(config: WorldConfig, num_networks: int, num_devices: int) -> dict[str, Tensor]:
    """Expand the phones' batteries and draft models, (B, M) by name.

    Raises:
        UserError: if a phone is unknown.
    """
    phones = [get_phone(config.devices[i % len(config.devices)]) for i in range(num_devices)]
    return {
        name: torch.tensor([getattr(phone, name) for phone in phones], dtype=torch.float32)
        .expand(num_networks, -1)
        .contiguous()
        for name in ("battery_j", "draft_flop_per_token")
    }


def check_memory(config: WorldConfig, capacity_tokens: Tensor) -> None:
    """Check that every request can be admitted everywhere.

    Raises:
        UserError: if a server's memory (B, E) could never take the longest request.
    """
    longest, least = config.requests.max_context_tokens, float(capacity_tokens.min())
    if config.memory.admission and longest > least:
        raise UserError(
            f"a request may need {longest} tokens of KV memory but a server has {least:.0f}; "
            "shorten prompts, answers or conversations, or raise memory.capacity_tokens"
        )
