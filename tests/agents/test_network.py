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
from uara.errors import UserError

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


@pytest.mark.parametrize(("devices", "servers"), [(1, 1), (2, 5), (50, 3)])
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


def _coordinated(name: str, control: ControlConfig) -> Actor:
    torch.manual_seed(0)
    network = NetworkConfig(hidden=16, coordination=name, initial_stay_logit=0.0)  # type: ignore[arg-type]
    actor = build_actor(network, control, "network", 8)
    torch.nn.init.normal_(actor.server_head.weight)  # far from indifferent
    return actor


@pytest.mark.parametrize("name", ["proposal", "sequence"])
def test_coordinated_choices_have_the_probability_they_were_drawn_with(
    every_head: ControlConfig, make_observation: MakeObservation, name: str
) -> None:
    actor, observation = _coordinated(name, every_head), make_observation(3, 5, 4)
    sample = actor.act(observation, torch.Generator().manual_seed(0))
    again, entropy = actor.evaluate(observation, sample.action, sample.rank)
    torch.testing.assert_close(again, sample.log_prob)
    assert set(entropy) == set(HEADS)
    assert (sample.rank is not None) == (name == "sequence")


def test_in_sequence_each_device_hears_those_before_it_and_none_behind(
    every_head: ControlConfig, make_observation: MakeObservation
) -> None:
    actor, observation = _coordinated("sequence", every_head), make_observation(1, 4, 3)
    observation.active[:] = True
    observation.mask[:] = True
    rank = torch.tensor([[2, 0, 3, 1]])
    servers = torch.tensor([[0, 1, 2, 0]])
    embedded = actor.embed(observation)
    heard = actor._heard(observation, embedded, servers, rank)
    for device in range(4):
        by_hand = torch.zeros(3, 16)
        for other in range(4):
            if rank[0, other] < rank[0, device]:
                by_hand[servers[0, other]] += embedded[0, other, servers[0, other]]
        torch.testing.assert_close(heard[0, device], by_hand)
    # Choosing turn by turn, most likely first, is what the parallel law calls most likely.
    chosen = actor._choose_in_turn(observation, embedded, rank, None)
    news = actor._heard(observation, embedded, chosen, rank)
    logits = actor.server_logits(observation, actor._with_news(embedded, news))
    assert torch.equal(chosen, logits.argmax(-1))


def test_coordination_does_not_depend_on_the_names_of_devices(
    every_head: ControlConfig, make_observation: MakeObservation
) -> None:
    observation = make_observation(3, 5, 4)
    devices, servers = torch.tensor([3, 0, 4, 1, 2]), torch.tensor([2, 3, 1, 0])
    for name in ("proposal", "sequence"):
        actor = _coordinated(name, every_head)
        before = actor.act(observation, None).log_prob
        after = actor.act(_permuted(observation, devices, servers), None).log_prob
        active = observation.active
        torch.testing.assert_close(
            after[active[:, devices]], before[:, devices][active[:, devices]]
        )


def test_coordination_without_the_view_of_the_network_is_refused(
    every_head: ControlConfig,
) -> None:
    network = NetworkConfig(coordination="sequence")
    with pytest.raises(UserError, match=r"set observation\.view to network"):
        build_actor(network, every_head, "device", 8)
