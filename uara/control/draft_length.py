"""Rules for the draft length; the one that learns is in `uara.control.ucb`.

Shape legend: B networks, M devices, E servers, G candidate lengths.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from uara.control.noise_density import excess_root
from uara.network import Decision, NetworkState
from uara.prediction import Physics, predict
from uara.serving.modes import MODE_INDEX
from uara.serving.modes.sd import geometric_tokens


def fixed(state: NetworkState, length: int) -> Tensor:
    """Draft the same number of tokens everywhere, (B, M) long."""
    return torch.full_like(state.phase, length)


def argmin(state: NetworkState, decision: Decision, physics: Physics) -> Tensor:
    """Search the length of least predicted time per token, 0 (plain server decoding) included.

    Args:
        state: B networks.
        decision: servers, bandwidths and powers to search at.
        physics: holds the longest length.

    Returns:
        (B, M) long.
    """
    return tpot_by_length_s(state, decision, physics).argmin(0)


def tpot_by_length_s(state: NetworkState, decision: Decision, physics: Physics) -> Tensor:
    """Predict the time per token at every length from 0 to the longest, (G, B, M).

    All lengths are predicted at once, each with the whole network at that length: what the lengths
    of others do to one's own pass is second order (their tokens' share of a pass).

    Args:
        state: B networks.
        decision: servers, bandwidths and powers.
        physics: holds the longest length, and the mode.
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
    return tpot_s.view(count, state.num_networks, state.num_devices)


def log_threshold(state: NetworkState, decision: Decision, physics: Physics) -> Tensor:
    """Draft longer with the logarithm of the delay, and one token below a critical delay, (B, M).

    One prediction gives the fixed part F of a sequential round and the part s that each drafted
    token adds (drafting, sending, verifying); `best_length` does the rest.

    Args:
        state: B networks.
        decision: servers, bandwidths, powers, and a length to predict at, at least 1.
        physics: holds the longest length.
    """
    sequential = torch.full_like(decision.server, MODE_INDEX["sd"])
    length = decision.draft_length.clamp_min(1)
    tried = replace(decision, draft_length=length, mode=sequential)
    prediction = predict(state, tried, physics, "request")
    longest, codec = physics.config.max_draft_length, physics.codec
    bits_per_token = (codec.draft_bits(float(longest + 1)) - codec.draft_bits(1.0)) / longest
    per_token_s = (
        state.draft_time_s
        + bits_per_token / prediction.uplink_bps
        + state.forward_per_token_s.gather(1, decision.server)
    )
    fixed_s = (prediction.round_s - length * per_token_s).clamp_min(0)
    return best_length(fixed_s, per_token_s, state.acceptance, longest)


def best_length(fixed_s: Tensor, per_token_s: Tensor, acceptance: Tensor, longest: int) -> Tensor:
    """Minimise (F + g s) / (1 + a + ... + a^g) over g = 1, 2, ..., longest; (B, M) long.

    With l = -ln a the derivative is zero where w = a^-(g + 1) solves w - ln w = 1 + l (F / s - 1):
    Lambert's function again, so that g grows as ln(F / s) / l. The cost falls before and rises
    behind that point, so the best integer is one of its two neighbours. It is 1 below the critical
    delay F / s = (1 + a - a^2) / a^2, where the second token stops to pay. arXiv 2606.20591 proves
    both for any such ratio.

    Args:
        fixed_s: F, of a round, (B, M).
        per_token_s: s > 0, (B, M).
        acceptance: a, (B, M).
        longest: at most so many tokens.
    """
    alpha = acceptance.double().clamp(1e-3, 1 - 1e-6)
    decay, ratio = -alpha.log(), (fixed_s / per_token_s).double()
    growth = torch.log1p(excess_root(decay * (ratio - 1).clamp_min(0)))
    below = (growth / decay - 1).floor().clamp(1, longest)
    above = (below + 1).clamp(max=longest)
    cost = [(ratio + g) / geometric_tokens(alpha, g) for g in (below, above)]
    return torch.where(cost[1] < cost[0], above, below).long()
