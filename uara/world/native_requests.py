"""Requests of episodes drawn by compiled code, for the mixes that it knows.

Shape legend: B networks, M devices, R requests of a device in an episode, K tasks.

The torch form hashes every place of the table; `native_requests.c` stops at the last arrival.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from uara.native import load_library, pointers
from uara.world.acceptance import ConstantAcceptance
from uara.world.requests import RequestConfig, RequestTable, half_widths

_SOURCE = Path(__file__).with_name("native_requests.c")


class _Constants(ctypes.Structure):
    """The struct `Constants` of the C file."""

    _fields_ = tuple((name, ctypes.c_double) for name in ("rate", "horizon_s", "never"))


def knows_requests(config: RequestConfig) -> bool:
    """Tell whether compiled code can draw these requests: no optional feature is on."""
    return (
        config.bursts is None
        and config.conversations is None
        and isinstance(config.acceptance, ConstantAcceptance)
        and config.acceptance_drift == 0
        and config.output_drift == 0
        and all(task.length_law == "exponential" for task in config.tasks)
    )


@dataclass(frozen=True)
class NativeRequests:
    """Draws requests under one configuration; the tables are those of `draw_requests`."""

    library: ctypes.CDLL
    constants: _Constants
    tasks: tuple[Tensor, ...]  # (K,) in the order of the C file
    num_devices: int
    num_requests: int

    @classmethod
    def of(
        cls,
        config: RequestConfig,
        num_devices: int,
        horizon_s: float,
        acceptance_mean: Tensor,
        acceptance_std: Tensor,
    ) -> NativeRequests | None:
        """Compile for a task mix; None where compiled code does not know it.

        Args:
            config: rates and task mix.
            num_devices: M.
            horizon_s: no request arrives later.
            acceptance_mean: (K,).
            acceptance_std: (K,) between requests.

        Raises:
            UserError: if there is no C compiler.
        """
        if not knows_requests(config):
            return None
        weights = torch.tensor([task.weight for task in config.tasks], dtype=torch.float64)
        ends = [f"{what}_tokens_{end}" for what in ("prompt", "output") for end in _ENDS]
        return cls(
            library=load_library(_SOURCE),
            constants=_Constants(config.arrivals_per_s, horizon_s, math.inf),
            tasks=(
                (weights / weights.sum()).cumsum(0),
                acceptance_mean.float(),
                half_widths(acceptance_mean, acceptance_std * config.acceptance_spread).float(),
                *(
                    torch.tensor([float(getattr(task, name)) for task in config.tasks])
                    for name in ("attachment_bits", *ends)
                ),
            ),
            num_devices=num_devices,
            num_requests=config.max_requests(horizon_s),
        )

    def __call__(self, episode: Tensor) -> RequestTable:
        """Draw the requests of episode keys (B,) int64; past the last arrival all is zero."""
        shape = (len(episode), self.num_devices, self.num_requests)
        table = RequestTable(
            arrival_s=torch.empty(shape, dtype=torch.float64),
            task=torch.empty(shape, dtype=torch.long),
            prompt_tokens=torch.empty(shape),
            attachment_bits=torch.empty(shape),
            output_tokens=torch.empty(shape),
            acceptance=torch.empty(shape),
        )
        keys = episode.contiguous()
        self.library.draw_requests(
            ctypes.c_void_p(keys.data_ptr()),
            ctypes.byref(self.constants),
            pointers(self.tasks),
            *(ctypes.c_int64(size) for size in (*shape, len(self.tasks[0]))),
            pointers(tuple(table.tensors().values())),
        )
        return table


_ENDS = ("min", "mean", "max")
