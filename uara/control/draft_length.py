"""Rules for the draft length.

Shape legend: B networks, M devices, E servers, G candidate lengths.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uara.network import Decision, NetworkState
from uara.prediction import Physics, predict


def fixed(state: NetworkState, length: int) -> Tensor:
    """Draft the same number of tokens everywhere, (B, M) long."""
    return torch.full_like(state.phase, length)


def argmin(state: NetworkState, decision: Decision, physics: Physics) -> Tensor:
    """Search the length of least predicted time per token, 0 (plain server decoding) included.

    All lengths are predicted at once, each with the whole network at that length: what the lengths
    of others do to one's own pass is second order (their tokens' share of a pass).

    Args:
        state: B networks.
        decision: servers, bandwidths and powers to search at.
        physics: holds the longest length.

    Returns:
        (B, M) long.
    """
    lengths = torch.arange(physics.config.max_draft_length + 1)
    count, rows = len(lengths), torch.arange(state.num_networks)
    repeated = state.select(rows.repeat(count))
    candidates = Decision(
        server=decision.server.repeat(count, 1),
        bandwidth_hz=decision.bandwidth_hz.repeat(count, 1),
        power_w=decision.power_w.repeat(count, 1),
        draft_length=lengths.repeat_interleave(state.num_networks)[:, None].expand(
            -1, state.num_devices
        ),
    )
    tpot_s = predict(repeated, candidates, physics, "request").tpot_s
    return tpot_s.view(count, state.num_networks, state.num_devices).argmin(0)
