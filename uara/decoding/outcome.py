"""What a slot of a real run brought, in the form that controllers learn from.

Shape legend: B = 1 network, M devices, E servers.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from uara.decoding.kernel import VirtualKernel
from uara.decoding.records import RequestRecord
from uara.network import Decision, SlotOutcome
from uara.serving.hardware import get_phone, get_rack
from uara.world.config import WorldConfig


@dataclass
class OutcomeMeter:
    """Reads the counters of a run and takes differences between slots."""

    world: WorldConfig
    amplifier_efficiency: float
    _last_s: float = 0.0
    _last: dict[str, Tensor] = field(default_factory=dict)

    def read(self, now: float, kernel: VirtualKernel, decision: Decision) -> SlotOutcome:
        """Return the outcome of the slot that ends now, under the decision that held in it."""
        records = list(kernel.recorder.requests.values())
        rise = self._rise(kernel, records)
        finished = self._finished(now, kernel, records)
        devices = [get_phone(self._phone(i)) for i in range(len(kernel.devices))]
        draft_power_w = torch.tensor([[phone.draft_power_w for phone in devices]])
        radio_w = decision.power_w / self.amplifier_efficiency
        server_w = torch.tensor([[get_rack(name).power_w for name in self.world.servers]])
        outcome = SlotOutcome(
            alive_s=torch.tensor([_alive_s(records, self._last_s, now)]),
            tokens=rise["tokens"],
            device_energy_j=rise["draft_s"] * draft_power_w + rise["uplink_s"] * radio_w,
            server_energy_j=rise["server_s"] * server_w,
            uplink_bits=rise["uplink_bytes"] * 8,
            downlink_bits=rise["downlink_bytes"] * 8,
            handover=rise["handovers"] > 0,
            finished=_row([record is not None for record in finished]) > 0,
            e2e_s=_row([record.e2e_s if record else 0.0 for record in finished]),
            ttft_s=_row([record.ttft_s if record else 0.0 for record in finished]),
            finished_tokens=_row([len(record.tokens) if record else 0 for record in finished]),
            finished_task=_row([record.task if record else 0 for record in finished]).long(),
            drained=torch.zeros(1, dtype=torch.bool),
        )
        self._last_s = now
        return outcome

    def _phone(self, index: int) -> str:
        return self.world.devices[index % len(self.world.devices)]

    def _rise(self, kernel: VirtualKernel, records: list[RequestRecord]) -> dict[str, Tensor]:
        """Subtract the counters at the slot's start from those at its end."""
        by_device: list[list[RequestRecord]] = [[] for _ in kernel.devices]
        for record in records:
            by_device[record.device].append(record)
        names = ("uplink_bytes", "downlink_bytes", "handovers")
        total = {
            name: _row([sum(getattr(r, name) for r in own) for own in by_device]) for name in names
        }
        total["tokens"] = _row([sum(len(r.tokens) for r in own) for own in by_device])
        total["draft_s"] = _row([node.draft_s for node in kernel.devices])
        total["uplink_s"] = _row([node.uplink.busy_s for node in kernel.devices])
        total["server_s"] = _row([node.busy_s for node in kernel.servers])
        rise = {name: value - self._last.get(name, 0.0) for name, value in total.items()}
        self._last = total
        return rise

    def _finished(
        self, now: float, kernel: VirtualKernel, records: list[RequestRecord]
    ) -> list[RequestRecord | None]:
        """Find each device's request that ended in the slot; a next one begins with a slot."""
        found: list[RequestRecord | None] = [None] * len(kernel.devices)
        for record in records:
            if self._last_s < record.finish_s <= now:
                found[record.device] = record
        return found


def _alive_s(records: list[RequestRecord], start_s: float, end_s: float) -> float:
    """Integrate the number of requests that have arrived and not ended over a slot."""
    return sum(
        max(0.0, min(record.finish_s, end_s) - max(record.arrival_s, start_s)) for record in records
    )


def _row(values: list[float] | list[int] | list[bool]) -> Tensor:
    return torch.tensor([values], dtype=torch.float32)
