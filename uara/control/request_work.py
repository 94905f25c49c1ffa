"""What is left of each request: bits to send, time on the server, and all other time.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from uara.network import Decision, NetworkState
from uara.prediction import Physics, Prediction, predict


@dataclass(frozen=True)
class RequestWork:
    """What each request asks for until it is finished, (B, M) each; 0 without a request."""

    bits: Tensor  # uplink: the rest of the prompt, and the drafts of the rounds still expected
    rounds: Tensor  # still expected
    tokens: Tensor  # of the answer, still expected
    other_s: Tensor  # all time but the uplink's
    elsewhere_s: Tensor  # neither on the uplink nor on the server
    compute_s: Tensor  # passes and prefill, if the server had nothing else to do
    prediction: Prediction  # that this was read off


def request_work(state: NetworkState, decision: Decision, physics: Physics) -> RequestWork:
    """Read the remaining work of requests off the prediction of a decision.

    Where a mode sends while it drafts, the rest of a round is what sending does not hide.

    Args:
        state: B networks.
        decision: to predict at; what bandwidth does to waits is second order.
        physics: link, codec, mode.
    """
    prediction, server = predict(state, decision, physics, "request"), decision.server
    has, is_local = state.has_request, prediction.is_device_only
    rounds = torch.where(has, state.expected_remaining_tokens / prediction.tokens_per_round, 0.0)
    prompt_bits = torch.where(has & ~is_local, state.upload_bits, 0.0)
    rest_s = (prediction.round_s - prediction.draft_uplink_s).clamp_min(0)
    away_s = (rest_s - prediction.wait_s - prediction.verify_s).clamp_min(0)
    before_s = torch.where(has, prediction.prefill_s + prediction.interference_s, 0.0)
    per_token_s = state.forward_per_token_s.gather(1, server)
    pass_s = (
        state.forward_fixed_s.gather(1, server)
        + state.forward_per_row_s.gather(1, server)
        + state.context_tokens * state.forward_per_context_s.gather(1, server)
        + prediction.new_tokens * per_token_s
    )
    compute_s = rounds * pass_s + prediction.prefill_tokens * per_token_s
    return RequestWork(
        bits=prompt_bits + rounds * prediction.draft_bits,
        rounds=rounds,
        tokens=torch.where(has, state.expected_remaining_tokens, 0.0),
        other_s=before_s + rounds * rest_s,
        elsewhere_s=rounds * away_s,
        compute_s=torch.where(has & ~is_local, compute_s, 0.0),
        prediction=prediction,
    )
