"""Rules for the serving mode of each device.

Shape legend: B networks, M devices, E servers, G draft lengths.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from uara.control.draft_length import tpot_by_length_s
from uara.network import Decision, NetworkState
from uara.prediction import Physics, effective_mode
from uara.serving.modes import CANDIDATES, MODE_INDEX, MODES

BEST = "best_mode"
FIXED_MODES = tuple(name for name in MODES if name != "auto")


def in_mode(physics: Physics, name: str) -> Physics:
    """Let everybody be served by one mode, or by the best of the lossless ones with `best_mode`."""
    mode = "auto" if name == BEST else name
    return replace(physics, config=physics.config.model_copy(update={"mode": mode}))


def best_mode(state: NetworkState, decision: Decision, physics: Physics) -> Tensor:
    """Find the lossless mode of least predicted time per token at the decided length, (B, M) long.

    Args:
        state: B networks.
        decision: servers, bandwidths, powers and draft lengths.
        physics: link, codec, batching.
    """
    undecided = replace(decision, mode=None)
    return effective_mode(state, undecided, in_mode(physics, BEST), "request")


def best_mode_and_length(
    state: NetworkState, decision: Decision, physics: Physics
) -> tuple[Tensor, Tensor]:
    """Find lossless mode and length of least predicted time per token together, (B, M) long each.

    Every pair is predicted with the whole network in it: what the choices of others do to one's own
    pass is second order. Length 0 is plain server decoding in every mode.

    Args:
        state: B networks.
        decision: servers, bandwidths and powers.
        physics: link, codec, batching, and the longest length.
    """
    drafting = [mode.name for mode in CANDIDATES if mode.drafts]
    tpot_s = torch.stack(
        [tpot_by_length_s(state, decision, in_mode(physics, name)) for name in drafting]
    )  # (modes, G, B, M)
    best = tpot_s.flatten(0, 1).argmin(0)
    lengths = physics.config.max_draft_length + 1
    length = best % lengths
    index = torch.tensor([MODE_INDEX[name] for name in drafting], device=length.device)
    mode = index[best // lengths]
    return torch.where(length > 0, mode, MODE_INDEX["server_ar"]), length
