"""Decisions and physics that several tests of predictions ask about."""

from __future__ import annotations

import torch

from uara.network import Decision, NetworkState
from uara.prediction import Physics, PhysicsConfig
from uara.serving.modes import MODE_INDEX

UP_HZ = 1e6


def decide(
    state: NetworkState, length: int, *, mode: str | None = None, bandwidth_hz: float = UP_HZ
) -> Decision:
    """Send everybody to the first server."""
    like = torch.zeros_like(state.server)
    return Decision(
        server=like,
        bandwidth_hz=torch.full_like(state.age_s, bandwidth_hz),
        power_w=state.power_max_w,
        draft_length=torch.full_like(like, length),
        mode=None if mode is None else torch.full_like(like, MODE_INDEX[mode]),
    )


def physics_of(**changes: object) -> Physics:
    return Physics.of(PhysicsConfig.model_validate(changes))


def random_decision(state: NetworkState, physics: Physics, seed: int) -> Decision:
    draw = torch.Generator().manual_seed(seed)
    shape = state.server.shape

    def below(top: int) -> torch.Tensor:
        return torch.randint(top, shape, generator=draw)

    return Decision(
        server=below(state.num_servers),
        bandwidth_hz=1e5 * torch.rand(shape, generator=draw),
        power_w=state.power_max_w * torch.rand(shape, generator=draw),
        draft_length=below(physics.config.max_draft_length + 1),
        mode=below(len(MODE_INDEX)),
    )
