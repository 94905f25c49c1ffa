"""Figures of an episode that need its requests one by one: tails, goodput, fairness, costs.

Shape legend: B networks played at once, M devices, T slots.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uara.network import SlotOutcome

# Beside the metrics of every table; of finished requests unless said otherwise.
DETAILS = {
    "e2e_p95_s": "s",
    "ttft_p95_s": "s",
    "tpot_p95_s": "s",
    "goodput_per_s": "requests per second that end within the deadline",
    "fairness": "Jain's index of the devices' tokens per second of service",
    "kbyte_per_token": "kB, up and down",
    "device_j_per_token": "J",
    "server_j_per_token": "J",
    "failed_requests": "share of all",
}


def tpot_s(outcome: SlotOutcome) -> Tensor:
    """Compute the time per token after the first of each finished request, (B, M); else 0."""
    after_first = (outcome.finished_tokens - 1).clamp_min(1)
    return torch.where(outcome.finished, (outcome.e2e_s - outcome.ttft_s) / after_first, 0.0)


def jain_index(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute (sum x)^2 / (n sum x^2) along the last axis; nan is left out, 1 is perfectly fair.

    Jain, Chiu and Hawe 1984: 1 / n where one has everything.
    """
    known = np.isfinite(values)
    x = np.where(known, values, 0.0)
    squares = known.sum(-1) * (x**2).sum(-1)
    with np.errstate(invalid="ignore"):
        index: NDArray[np.float64] = x.sum(-1) ** 2 / squares
    return index


@dataclass
class RequestLog:
    """Keeps what the requests of B episodes brought."""

    finished: list[Tensor] = field(default_factory=list)  # (B, M) bool of each slot
    times_s: dict[str, list[Tensor]] = field(default_factory=dict)
    totals: dict[str, Tensor] = field(default_factory=dict)

    def add(self, outcome: SlotOutcome) -> None:
        """Note what a slot brought."""
        self.finished.append(outcome.finished)
        times = {"e2e": outcome.e2e_s, "ttft": outcome.ttft_s, "tpot": tpot_s(outcome)}
        for name, seconds in times.items():
            self.times_s.setdefault(name, []).append(seconds)
        amounts = {
            "bits": (outcome.uplink_bits + outcome.downlink_bits).sum(1),
            "device_j": outcome.device_energy_j.sum(1),
            "server_j": outcome.server_energy_j.sum(1),
            "tokens": outcome.tokens.sum(1),
            "failed": torch.zeros(()) if outcome.failed is None else outcome.failed.sum(1),
            "device_tokens": outcome.finished_tokens,
        }
        for name, amount in amounts.items():
            self.totals[name] = self.totals.get(name, torch.zeros(())) + amount.double()

    def metrics(
        self, arrived: Tensor, horizon_s: float, deadline_s: float
    ) -> dict[str, NDArray[np.float64]]:
        """Compute the figures of each episode, (B,) by the names of DETAILS.

        Args:
            arrived: (B,) requests in all.
            horizon_s: time in which requests arrive.
            deadline_s: what counts as goodput is answered within it.
        """
        finished = torch.stack(self.finished).flatten(2)
        stacked = {name: torch.stack(rows).double() for name, rows in self.times_s.items()}
        total = {name: values.numpy() for name, values in self.totals.items()}
        in_time = (finished & (stacked["e2e"] <= deadline_s)).sum((0, 2))
        served_s = stacked["e2e"].sum(0).numpy()
        with np.errstate(divide="ignore", invalid="ignore"):
            return {
                **{f"{name}_p95_s": _tail(values, finished) for name, values in stacked.items()},
                "goodput_per_s": in_time.double().numpy() / horizon_s,
                "fairness": jain_index(total["device_tokens"] / served_s),
                "kbyte_per_token": total["bits"] / 8e3 / total["tokens"],
                "device_j_per_token": total["device_j"] / total["tokens"],
                "server_j_per_token": total["server_j"] / total["tokens"],
                "failed_requests": total["failed"] / arrived.numpy(),
            }


def _tail(values: Tensor, finished: Tensor) -> NDArray[np.float64]:
    """Compute the 95th percentile over an episode's finished requests, (B,); nan without any."""
    rows = torch.where(finished, values, torch.nan).movedim(1, 0).flatten(1)
    return rows.nanquantile(0.95, dim=1).numpy()
