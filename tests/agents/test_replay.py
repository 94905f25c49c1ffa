"""The ring keeps every cell in its place, also where it wraps and where episodes were cut."""

from __future__ import annotations

from dataclasses import replace

import torch

from agents.replay import Replay, ReplayConfig
from envs.action import Action
from envs.batched import Step
from envs.observation import Observation
from tests.agents.toys import Toy

B, M, E = 3, 2, 2


def _observation(slot: float) -> Observation:
    """Make an observation whose every cell says slot, network and device."""
    tag = torch.tensor([[100 * slot + 10 * b + m for m in range(M)] for b in range(B)])
    return Observation(
        device=tag.unsqueeze(-1),
        pair=tag[..., None, None].expand(B, M, E, 1).clone(),
        server=tag[:, :1, None].expand(B, E, 1).clone(),
        mask=torch.ones(B, M, E, dtype=torch.bool),
        active=torch.ones(B, M, dtype=torch.bool),
    )


def _filled(slots: int, *, capacity: int, episode: int) -> Replay:
    """Play episodes in which network b begins b slots late; a cut shows slot + 0.5."""
    action = Action(server=torch.zeros(B, M, dtype=torch.long))
    first = _observation(0)
    replay = Replay(ReplayConfig(capacity=capacity), first, action, episode, torch.device("cpu"))
    replay.begin(first)

    class Fixed(Toy):
        num_devices, num_servers = M, E

        def reward(self, action: Action) -> torch.Tensor:
            return torch.zeros(B)

    blank = Fixed(B).step(action)
    for slot in range(slots):
        cut = torch.tensor([(slot - b) % episode == episode - 1 for b in range(B)])
        final = _observation(slot + 1)
        shown = torch.where(cut[:, None, None], final.device + 50, final.device)
        step: Step = replace(
            blank,
            observation=_observation(slot + 1),
            final_observation=replace(final, device=shown),
            terminated=torch.zeros(B, dtype=torch.bool),
            truncated=cut,
        )
        tags = Action(server=_observation(slot).device.squeeze(-1).long())
        replay.add(tags, tags.server + 0.0, step)  # type: ignore[operator]
    return replay


def test_cells_stay_together_around_the_wrap_and_cut_episodes_keep_their_true_end() -> None:
    replay = _filled(50, capacity=8 * B, episode=5)
    batch = replay.sample(4000, torch.Generator().manual_seed(0))
    now, after = batch.observation.device.squeeze(-1), batch.next_observation.device.squeeze(-1)
    slot, network = now[:, 0] // 100, now[:, 0] % 100 // 10
    assert torch.equal(now[:, 1], now[:, 0] + 1)
    assert batch.action.server is not None
    assert torch.equal(batch.action.server.float(), now)
    assert torch.equal(batch.reward, now)
    assert torch.equal(batch.observation.server[:, 1, 0], now[:, 0])
    is_cut = (slot - network) % 5 == 4
    assert is_cut.any()
    expected = now + 100 + 50 * is_cut.unsqueeze(1)
    assert torch.equal(after, expected)
    # The oldest of the eight slots that fit is remembered, an older one is not.
    assert slot.min() == 42
    assert slot.max() == 49
    assert torch.equal(batch.age.float(), 50 - slot)
    assert len(torch.unique(now[:, 0])) == 8 * B


def test_a_restored_buffer_draws_what_the_original_draws() -> None:
    for slots in (3, 23):  # before and after it is full
        replay = _filled(slots, capacity=8 * B, episode=5)
        other = _filled(1, capacity=8 * B, episode=5)
        other.load_state_dict(replay.state_dict())
        a, b = (r.sample(64, torch.Generator().manual_seed(1)) for r in (replay, other))
        assert torch.equal(a.observation.device, b.observation.device)
        assert torch.equal(a.next_observation.device, b.next_observation.device)
        assert torch.equal(a.reward, b.reward)
