"""The one-slot objective: the predicted time until all requests are answered.

Shape legend: B networks, M devices.
"""

from __future__ import annotations

import torch
from torch import Tensor

from uara.network import Decision, NetworkState
from uara.prediction import Physics, predict


def request_weight(state: NetworkState) -> Tensor:
    """Count the requests that a device's current one stands for, (B, M); 0 without a request.

    Requests that wait behind one at its device wait as long as it does.
    """
    return torch.where(state.has_request, 1 + state.waiting_requests, 0.0)


def total_remaining_s(state: NetworkState, decision: Decision, physics: Physics) -> Tensor:
    """Sum the predicted remaining seconds over all requests, waiting ones included, (B,).

    What the requests have waited so far is the same under every decision, so a decision that is
    least in this sum is least in the predicted mean end-to-end latency.
    """
    remaining_s = predict(state, decision, physics, "request").remaining_s
    weight = request_weight(state)
    return torch.where(weight > 0, remaining_s * weight, 0.0).sum(1)
