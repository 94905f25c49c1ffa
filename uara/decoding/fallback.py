"""Draft lengths from running estimates, with server decoding to fall back on.

A request begins with the server decoding alone, which shows what drafts would be worth; it
speculates once a lower confidence bound of acceptance promises a gain, and stops when it does not.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field

from uara.decoding.kernel import DeviceNode, Planner, VirtualKernel
from uara.decoding.scenario import SlotPlan
from uara.errors import UserError
from uara.serving.modes import MODES, RoundParts

NO_PRIOR_VARIANCE = 0.25  # of one test, at most


class FallbackConfig(BaseModel):
    """When to speculate, and how far ahead."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_tokens: int = Field(12, gt=0, description="tokens compared before the first speculation")
    confidence: float = Field(
        2.0, ge=0, description="standard errors that the bound lies below the mean acceptance"
    )
    margin: float = Field(
        1.05, gt=0, description="predicted gain over server decoding that is asked for"
    )
    max_draft_length: int = Field(8, gt=0, description="longest draft considered")
    starts_alone: bool = Field(
        True,
        description="let the server begin; else the plan's draft length holds until enough "
        "tokens were tested",
    )


class Fallback:
    """A planner that keeps everything of another's plan but the draft lengths."""

    def __init__(
        self, inner: Planner, config: FallbackConfig, mode: str = "async", window: int = 1
    ) -> None:
        """Wrap a planner.

        Args:
            inner: plans servers, rates and modes.
            config: when to speculate.
            mode: whose formula predicts the gain.
            window: of `async`.

        Raises:
            UserError: if the mode does not verify drafts.
        """
        if not (MODES[mode].drafts and MODES[mode].uses_server):
            raise UserError(
                f"a fall-back in mode '{mode}' has nothing to choose; allowed: sd, psd, async"
            )
        self._inner = inner
        self._config = config
        self._mode = MODES[mode]
        self._window = window

    def plan(self, now: float, kernel: VirtualKernel) -> SlotPlan:
        """Return the other's plan with draft lengths of the estimates."""
        plan = self._inner.plan(now, kernel)
        lengths = [self._length(i, plan, kernel) for i in range(len(kernel.devices))]
        return replace(plan, draft_length=np.array(lengths, np.int64))

    def _length(self, index: int, plan: SlotPlan, kernel: VirtualKernel) -> int:
        node = kernel.devices[index]
        planned = int(plan.draft_length[index])
        if node.request is None:
            return planned
        record = kernel.recorder.requests[node.request.sid]
        alpha, count = lower_acceptance(
            node, record.accepted, record.tested, self._config.confidence
        )
        if count < self._config.min_tokens:
            return 0 if self._config.starts_alone else planned
        return self._best_length(alpha, index, plan, kernel)

    def _best_length(self, alpha: float, index: int, plan: SlotPlan, kernel: VirtualKernel) -> int:
        """Find the draft length of the highest predicted speed; 0 if it does not pay."""
        server = kernel.servers[int(plan.server[index])].profile
        gamma = torch.arange(1.0, self._config.max_draft_length + 1)
        zero = torch.zeros_like(gamma)
        forward_s = server.forward(1.0, 1.0, 0.0)
        parts = RoundParts(
            draft_s=gamma * kernel.devices[index].profile.draft_time_s,
            uplink_s=zero,
            wait_s=zero,
            verify_s=zero + forward_s,
            downlink_s=zero,
            rtt_s=zero + server.rtt_s,
            alpha=zero + alpha,
            gamma=gamma,
            window=self._window,
        )
        tokens = self._mode.expected_tokens(parts.alpha, gamma)
        gain = forward_s * tokens / self._mode.round_time_s(parts)
        best = int(gain.argmax())
        return best + 1 if float(gain[best]) >= self._config.margin else 0


def lower_acceptance(
    node: DeviceNode, accepted: int, tested: int, confidence: float
) -> tuple[float, int]:
    """Bound a request's acceptance from below.

    Args:
        node: with what its draft model would have passed.
        accepted: draft tokens that passed.
        tested: draft tokens that were tested.
        confidence: standard errors below the mean.

    Returns:
        the bound within [0, 1], and on how many tokens it rests.
    """
    shadow = node.shadow
    count = tested + (shadow.count if shadow is not None else 0)
    if count == 0:
        return 0.0, 0
    total = accepted + (shadow.total if shadow is not None else 0.0)
    squares = accepted + (shadow.squares if shadow is not None else 0.0)
    mean = total / count
    # Few alike samples say little about their spread: as if one more of the widest had been seen.
    variance = (max(0.0, squares - count * mean * mean) + NO_PRIOR_VARIANCE) / (count + 1)
    return min(1.0, max(0.0, mean - confidence * math.sqrt(variance / count))), count
