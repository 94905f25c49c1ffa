"""Draft lengths from running estimates, with server decoding to fall back on.

A request begins with the server decoding alone, which shows what drafts would be worth; it
speculates once a lower confidence bound of acceptance promises a gain, and stops when it does not.
Draft lengths follow the request's own acceptance and the device's round trips and draft steps as
they were measured. While the server is alone it shows on what drafts would be worth, so that no
speculation has to probe.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor

from uara.decoding.estimates import RunningAcceptance
from uara.decoding.kernel import DeviceNode, Planner, VirtualKernel
from uara.decoding.scenario import SlotPlan
from uara.errors import UserError
from uara.serving.modes import MODES, RoundParts


class FallbackConfig(BaseModel):
    """When to speculate, and how far ahead."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    min_tokens: int = Field(12, gt=0, description="tokens compared before the first speculation")
    confidence: float = Field(
        2.0, ge=0, description="standard errors that the bound lies below the mean acceptance"
    )
    memory_tokens: float = Field(
        64.0,
        gt=0,
        description="a token counts less by a factor of e after so many more",
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
        self._seen: dict[int, RunningAcceptance] = {}
        self._best: dict[tuple[float, float, float, float], int] = {}

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
        acceptance = self._acceptance(node, kernel)
        if acceptance.count < self._config.min_tokens:
            return 0 if self._config.starts_alone else planned
        server = kernel.servers[int(plan.server[index])].profile
        rtt_s = server.rtt_s if node.times.rtt_s is None else node.times.rtt_s
        alpha = acceptance.lower(self._config.confidence)
        return self._best_length(
            round(alpha, 2),
            # Rounded, so that few are worked out.
            round(rtt_s, 3),
            round(node.times.draft_s or node.profile.draft_time_s, 3),
            server.forward(1.0, 1.0, 0.0),
        )

    def _acceptance(self, node: DeviceNode, kernel: VirtualKernel) -> RunningAcceptance:
        """Bring the estimate of a device's request up to what has been tested and compared."""
        assert node.request is not None, "an estimate belongs to a request"
        sid = node.request.sid
        if sid not in self._seen:
            self._seen[sid] = RunningAcceptance(self._config.memory_tokens)
        record, shadow = kernel.recorder.requests[sid], node.shadow
        count, total, squares = record.tested, float(record.accepted), float(record.accepted)
        if shadow is not None:
            count, total = count + shadow.count, total + shadow.total
            squares += shadow.squares
        self._seen[sid].update(count, total, squares)
        return self._seen[sid]

    def _best_length(self, alpha: float, rtt_s: float, draft_s: float, forward_s: float) -> int:
        """Find the draft length of the highest predicted speed; 0 if it does not pay."""
        key = (alpha, rtt_s, draft_s, forward_s)
        if key not in self._best:
            self._best[key] = self._find_best(*key)
        return self._best[key]

    def _find_best(self, alpha: float, rtt_s: float, draft_s: float, forward_s: float) -> int:
        gain = self.gains(alpha, rtt_s, draft_s, forward_s)
        best = int(gain.argmax())
        return best + 1 if float(gain[best]) >= self._config.margin else 0

    def gains(self, alpha: float, rtt_s: float, draft_s: float, forward_s: float) -> Tensor:
        """Predict the speed over the server alone of each draft length from 1 on.

        Args:
            alpha: acceptance.
            rtt_s: round trip.
            draft_s: time of a draft step.
            forward_s: time of a forward.
        """
        gamma = torch.arange(1.0, self._config.max_draft_length + 1)
        zero = torch.zeros_like(gamma)
        parts = RoundParts(
            draft_s=gamma * draft_s,
            uplink_s=zero,
            wait_s=zero,
            verify_s=zero + forward_s,
            downlink_s=zero,
            rtt_s=zero + rtt_s,
            alpha=zero + alpha,
            gamma=gamma,
            window=self._window,
        )
        tokens = self._mode.expected_tokens(parts.alpha, gamma)
        return forward_s * tokens / self._mode.round_time_s(parts)
