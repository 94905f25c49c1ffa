"""The one place that flattens axes: every cell keeps its own number."""

from __future__ import annotations

import torch

from agents.rollout import Batch, Transition, flatten, keep_active, stack
from envs.action import Action
from envs.observation import Observation

T, B, M, E = 4, 3, 5, 2


def _tag(t: int, b: int, m: int) -> float:
    return 100.0 * t + 10.0 * b + m


def _tags(t: int) -> torch.Tensor:
    return torch.tensor([[_tag(t, b, m) for m in range(M)] for b in range(B)])


def _transition(t: int) -> Transition:
    """Make a slot in which everything of a cell carries the cell's number."""
    tags = _tags(t)
    observation = Observation(
        device=tags.unsqueeze(-1),
        pair=tags[..., None, None].expand(B, M, E, 1).clone(),
        server=tags[:, :1, None].expand(B, E, 1).clone(),
        mask=torch.ones(B, M, E, dtype=torch.bool),
        active=tags % 3 == 0,
    )
    never = torch.zeros(B, dtype=torch.bool)
    return Transition(
        observation=observation,
        action=Action(server=tags.long(), power=tags / 1000),
        log_prob=tags,
        value=tags[:, :1],
        final_value=tags[:, :1],
        reward=tags[:, :1],
        terminated=never,
        truncated=never,
    )


def _batch() -> Batch:
    rollout = stack([_transition(t) for t in range(T)])
    assert rollout.log_prob.shape == (T, B, M)
    advantage = torch.stack([_tags(t) for t in range(T)])
    return flatten(rollout, advantage, rollout.reward, rollout.value)


def test_cells_paired_with_another_network_or_slot_are_a_bug() -> None:
    batch = _batch()
    parts = list(batch.minibatches(5, torch.Generator().manual_seed(0)))
    for part in parts:
        tags = part.log_prob
        assert part.action.server is not None
        assert part.action.power is not None
        assert part.action.draft_length is None
        assert torch.equal(part.action.server.float(), tags)
        torch.testing.assert_close(part.action.power * 1000, tags)
        assert torch.equal(part.advantage, tags)
        assert torch.equal(part.observation.device.squeeze(-1), tags)
        assert torch.equal(part.observation.pair[:, :, 1, 0], tags)
        assert torch.equal(part.observation.server[:, 1, 0], tags[:, 0])
        assert torch.equal(part.target[:, 0], tags[:, 0])
        assert torch.equal(part.value[:, 0], tags[:, 0])
        # Devices of a row are the devices of one network in one slot.
        assert torch.equal(tags - tags[:, :1], torch.arange(M).expand(len(tags), M).float())
    seen = torch.cat([part.log_prob[:, 0] for part in parts]).sort().values
    expected = torch.tensor([_tag(t, b, 0) for t in range(T) for b in range(B)]).sort().values
    assert torch.equal(seen, expected)


def test_keeping_active_devices_keeps_their_rows_and_the_servers_of_their_network() -> None:
    kept = keep_active(_batch())
    tags = kept.log_prob[:, 0]
    everything = torch.cat([_tags(t).flatten() for t in range(T)])
    assert torch.equal(tags, everything[everything % 3 == 0])
    assert kept.action.server is not None
    assert torch.equal(kept.action.server[:, 0].float(), tags)
    assert torch.equal(kept.observation.pair[:, 0, 1, 0], tags)
    assert torch.equal(kept.observation.server[:, 0, 0], tags.div(10, rounding_mode="floor") * 10)
    assert kept.observation.active.all()
