"""Asynchronous speculation by compiled code, which does what `asynchronous.py` does in torch.

Shape legend: N requests.
"""

from __future__ import annotations

import ctypes
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from uara.native import compiler, load_library
from uara.serving.modes.parts import RoundParts

MOST_PATHS = 4

_SOURCE = Path(__file__).with_name("asynchronous.c")
_OUTPUTS = 5


@dataclass(frozen=True)
class EpochSums:
    """Means per verdict; of the shape that the parts broadcast to."""

    time_s: Tensor
    passes: Tensor
    new_tokens: Tensor
    ahead_s: Tensor  # drafted beyond the draft that is rejected
    drafts: Tensor  # sent beyond it


def knows(parts: RoundParts, paths: int) -> bool:
    """Tell whether the compiled code can be asked: whole drafts, float32 on the processor."""
    is_plain = parts.alpha.dtype == torch.float32 and parts.alpha.device.type == "cpu"
    is_plain = is_plain and parts.draft_budget is None
    return is_plain and paths <= MOST_PATHS and compiler() is not None


def epoch_sums(parts: RoundParts, scatter: Tensor) -> EpochSums:
    """Follow the drafts behind a rejection.

    Args:
        parts: of a round; `knows` must hold.
        scatter: (P, 2 x drafts + 1) factors of the sample paths.
    """
    gamma = parts.gamma.clamp_min(1)
    inputs = (
        parts.draft_s, parts.uplink_s, parts.wait_s, parts.verify_s, parts.downlink_s,
        parts.rtt_s, parts.alpha, gamma, parts.alpha**gamma,
    )  # fmt: skip
    like = sum(inputs[1:], inputs[0])  # of the shape that all have together
    table = torch.stack([part.expand_as(like) for part in inputs]).to(torch.float32)
    found = torch.empty((_OUTPUTS, *table.shape[1:]))
    scatter = scatter.to(torch.float32).contiguous()
    load_library(_SOURCE).epochs(
        *(ctypes.c_int64(size) for size in (like.numel(), len(scatter), parts.window)),
        *(ctypes.c_void_p(tensor.data_ptr()) for tensor in (scatter, table, found)),
    )
    return EpochSums(*found.unbind(0))
