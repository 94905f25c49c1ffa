"""What is logged of played slots by all learners; keys and units are in docs/metrics.md."""

from __future__ import annotations

import torch
from torch import Tensor

from envs.action import Action
from envs.batched import Step


def rollout_metrics(steps: list[Step], slot_s: float) -> dict[str, float]:
    """Summarise the slots of a rollout."""
    outcomes = [step.outcome for step in steps]
    alive_s = torch.stack([o.alive_s for o in outcomes])
    finished = torch.stack([o.finished for o in outcomes]).sum().clamp_min(1)
    e2e_s = torch.stack([o.e2e_s for o in outcomes]).sum()
    handovers = torch.stack([o.handover for o in outcomes]).sum()
    energy_j = torch.stack([o.device_energy_j for o in outcomes]).sum()
    decisions = [step.decision for step in steps]
    used = torch.stack([o.alive_s for o in outcomes]).numel()
    return {
        "rollout/reward": float(torch.stack([step.reward for step in steps]).mean()),
        "rollout/alive_requests": float(alive_s.mean() / slot_s),
        "rollout/e2e_latency_s": float(e2e_s / finished),
        "rollout/finished_requests": float(finished / used),
        "rollout/handovers": float(handovers / finished),
        "rollout/device_energy_j": float(energy_j / finished),
        "rollout/draft_length": float(
            torch.stack([d.draft_length for d in decisions]).float().mean()
        ),
        "rollout/illegal_servers": float(torch.stack([step.illegal for step in steps]).sum()),
    }


def head_histograms(action: Action, active: Tensor) -> dict[str, Tensor]:
    """Collect what devices with a request chose, by head, (N,) each; keys rollout/choice_<head>."""
    chosen = {name: value for name, value in vars(action).items() if value is not None}
    return {f"rollout/choice_{name}": value[active] for name, value in chosen.items()}
