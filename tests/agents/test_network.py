"""Actor and critic: symmetric, of any size, and local where they say so."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import pytest
import torch

from agents.network import Actor, Critic, FeatureSizes, NetworkConfig
from agents.policy import build_actor
from envs.action import Action, ControlConfig
from envs.observation import Observation, View, schema

MakeObservation = Callable[..., Observation]
HEADS = ("server", "bandwidth", "power", "draft_length")


@pytest.fixture(params=["device", "network"])
def actor(request: pytest.FixtureRequest, every_head: ControlConfig) -> Actor:
    torch.manual_seed(3)
    actor = build_actor(NetworkConfig(hidden=16), every_head, request.param, 8)
    for layer in (actor.server_head, actor.bandwidth_head, actor.power_head):
        # Heads that start at nearly nothing would hide what they depend on.
        torch.nn.init.normal_(layer.weight)
    return actor


def _permuted(
    observation: Observation, devices: torch.Tensor, servers: torch.Tensor
) -> Observation:
    return Observation(
        device=observation.device[:, devices],
        pair=observation.pair[:, devices][:, :, servers],
        server=observation.server[:, servers],
        mask=observation.mask[:, devices][:, :, servers],
        active=observation.active[:, devices],
    )


def test_relabelling_devices_and_servers_relabels_the_actions(
    actor: Actor, make_observation: MakeObservation
) -> None:
    observation = make_observation(3, 5, 4)
    devices, servers = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 3, 1, 0])
    before = actor.act(observation, None).action
    after = actor.act(_permuted(observation, devices, servers), None).action
    assert before.server is not None
    assert after.server is not None
    assert torch.equal(servers[after.server], before.server[:, devices])
    for head in ("bandwidth", "power", "draft_length"):
        torch.testing.assert_close(getattr(after, head), getattr(before, head)[:, devices])


@pytest.mark.parametrize("kind", ["network", "device"])
def test_the_value_does_not_depend_on_the_order_of_devices_and_servers(
    kind: str, make_observation: MakeObservation
) -> None:
    critic = Critic(FeatureSizes.of(schema()), NetworkConfig(hidden=16), kind)  # type: ignore[arg-type]
    observation = make_observation(3, 5, 4)
    devices, servers = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 3, 1, 0])
    before, after = critic(observation), critic(_permuted(observation, devices, servers))
    torch.testing.assert_close(after, before if kind == "network" else before[:, devices])


@pytest.mark.parametrize(("devices", "servers"), [(1, 1), (2, 5), (40, 3)])
def test_the_same_weights_serve_any_number_of_devices_and_servers(
    actor: Actor, make_observation: MakeObservation, devices: int, servers: int
) -> None:
    observation = make_observation(2, devices, servers)
    action = actor.act(observation, torch.Generator().manual_seed(0)).action
    assert action.server is not None
    assert observation.mask.gather(2, action.server.unsqueeze(-1)).all()
    for head in HEADS:
        assert getattr(action, head).shape == (2, devices)
    critic = Critic(FeatureSizes.of(schema()), NetworkConfig(hidden=16), "network")
    assert critic(observation).shape == (2, 1)


def test_only_the_network_view_hears_of_other_devices(
    every_head: ControlConfig, make_observation: MakeObservation
) -> None:
    observation = make_observation(2, 4, 3)
    observation.active[:] = True
    pair = observation.pair.clone()
    pair[:, 3] += 1
    changed = dataclasses.replace(observation, pair=pair)

    def heard(view: View) -> bool:
        torch.manual_seed(0)
        actor = build_actor(NetworkConfig(hidden=16), every_head, view, 8)
        return not torch.equal(actor.embed(observation)[:, 0], actor.embed(changed)[:, 0])

    assert not heard("device")
    assert heard("network")


def test_the_joint_log_probability_is_the_sum_over_the_heads(
    every_head: ControlConfig, make_observation: MakeObservation
) -> None:
    observation = make_observation(2, 3, 3)
    actor = build_actor(NetworkConfig(hidden=16), every_head, "device", 8)
    sample = actor.act(observation, torch.Generator().manual_seed(0))
    joint = torch.zeros(2, 3)
    for head in HEADS:
        joint = joint + _log_prob_alone(actor, head, observation, sample.action)
    torch.testing.assert_close(sample.log_prob, joint)
    torch.testing.assert_close(actor.evaluate(observation, sample.action)[0], joint)


def _log_prob_alone(
    actor: Actor, head: str, observation: Observation, action: Action
) -> torch.Tensor:
    """Compute the log-probability of one head with torch's own distributions."""
    embedded = actor.embed(observation)
    assert action.server is not None
    if head == "server":
        logits = actor.server_logits(observation, embedded)
        logits = logits.masked_fill(~observation.mask, -torch.inf)
        return torch.distributions.Categorical(logits=logits).log_prob(action.server)
    chosen = embedded[torch.arange(2)[:, None], torch.arange(3), action.server]
    raw = getattr(actor, f"{head}_head")(chosen)
    if head == "draft_length":
        return torch.distributions.Categorical(logits=raw).log_prob(action.draft_length)
    alpha, beta = (1 + torch.nn.functional.softplus(raw)).unbind(-1)
    return torch.distributions.Beta(alpha, beta).log_prob(getattr(action, head))


def test_an_untrained_policy_stays_where_it_is_served_at_near_full_power_and_four_tokens(
    every_head: ControlConfig, make_observation: MakeObservation
) -> None:
    observation = make_observation(50, 4, 3)
    observation.mask[:] = True
    action = build_actor(NetworkConfig(), every_head, "device", 8).act(observation, None).action
    serving = observation.pair[..., FeatureSizes.of(schema()).serving_column].argmax(-1)
    assert action.server is not None
    assert action.power is not None
    assert action.bandwidth is not None
    assert torch.equal(action.server, serving)
    assert (action.power > 0.9).all()
    torch.testing.assert_close(action.bandwidth, torch.full((50, 4), 0.5), atol=0.05, rtol=0)
    assert (action.draft_length == 4).all()
