"""Joules of devices and servers, from times and powers or in the form of arXiv 2511.01695.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.serving.batching import sum_by_server


class EnergyConfig(BaseModel):
    """How the joules of a device are reckoned."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    form: Literal["airtime", "paper1"] = Field(
        "airtime",
        description="airtime: power x time, drafting and transmitting; paper1: arXiv 2511.01695, "
        "joules per FLOP, and share of the band x power x slot",
    )
    joules_per_flop: float = Field(
        1e-9, ge=0, description="delta^CP of paper1 (the printed exponent has lost its sign)"
    )
    band_weight: float = Field(2.6, ge=0, description="delta^CM of paper1")


def airtime_energy_j(
    power_w: Tensor,
    airtime_s: Tensor,
    amplifier_efficiency: float,
    draft_s: Tensor,
    draft_power_w: Tensor,
) -> Tensor:
    """Compute radiated power over the amplifier's efficiency x airtime, plus drafting.

    Args:
        power_w: radiated.
        airtime_s: time in which the device transmits.
        amplifier_efficiency: radiated over electrical power.
        draft_s: time in which the device drafts.
        draft_power_w: drawn while drafting.

    Returns:
        joules, shape of the arguments.
    """
    return airtime_s * (power_w / amplifier_efficiency) + draft_s * draft_power_w


def paper1_energy_j(
    band_share: Tensor,
    power_w: Tensor,
    transmits_s: Tensor,
    drafted_tokens: Tensor,
    flop_per_token: Tensor,
    config: EnergyConfig,
) -> Tensor:
    """Compute E^CP + E^CM of arXiv 2511.01695.

    E^CP = delta^CP f. E^CM = delta^CM x y W P is printed without a time; read with the share y of
    the band and the length of the slot, it is in joules (the code published with the predecessor,
    arXiv 2404.03154, has that form): more bandwidth costs more, airtime does not matter.

    Args:
        band_share: bandwidth over the server's band.
        power_w: radiated.
        transmits_s: length of a slot in which the device transmits, else 0.
        drafted_tokens: draft tokens made.
        flop_per_token: of the draft model.
        config: both deltas.
    """
    compute_j = config.joules_per_flop * drafted_tokens * flop_per_token
    return compute_j + config.band_weight * band_share * power_w * transmits_s


def server_energy_j(
    prefill_work_s: Tensor,
    server: Tensor,
    decode_busy: Tensor,
    server_power_w: Tensor,
    slot_s: float,
) -> Tensor:
    """Compute joules of the servers, (B, E): time in decoding and prefill at full power.

    Args:
        prefill_work_s: (B, M) compute time of each device's prefill.
        server: (B, M) long.
        decode_busy: (B, E) share of time in decoding passes.
        server_power_w: (B, E).
        slot_s: length of the slot.
    """
    prefill_s = sum_by_server(prefill_work_s, server, server_power_w.shape[1])
    return (decode_busy * slot_s + prefill_s).clamp(max=slot_s) * server_power_w
