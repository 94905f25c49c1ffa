"""The actor, which scores (device, server) pairs with shared weights, and the pooling critic.

Shape legend: B networks, M devices, E servers, H hidden width, F features.

One set of weights serves any M and E, and relabelling devices or servers relabels the outputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict, Field
from torch import Tensor, nn
from torch.nn import functional as F

from agents.heads import Beta, Categorical
from envs.action import Action, Head
from envs.observation import Observation, ObservationSchema, View, schema
from uara.errors import UserError

_ACTIVATIONS: dict[str, tuple[Callable[[Tensor], Tensor], float]] = {
    "relu": (F.relu, math.sqrt(2)),
    "tanh": (torch.tanh, 5 / 3),
}
_INITIAL_POWER = (12.0, -4.0)  # softplus^-1 of the concentrations: Beta(13, 1.02), mean 0.93
_INITIAL_BANDWIDTH = (3.0, 3.0)  # Beta(4, 4): an equal split, exp(+-1) apart at one deviation
_LENGTH_BIAS = 2.0  # logit of the initial draft length over its far neighbours


NEWS_SCALE = 0.25  # of sums over the devices of a server, which are of the order of four
_GAIN = [feature.name for feature in schema().pair].index("gain_db")


class NetworkConfig(BaseModel):
    """Widths and initial preferences of actor and critic."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    hidden: int = Field(64, gt=0, description="width of both layers of the actor and the critic")
    activation: Literal["relu", "tanh"] = Field("relu", description="after each LayerNorm")
    coordination: Literal["none", "proposal", "sequence"] = Field(
        "none",
        description="what a device knows of the others' choices of this slot, against stampedes; "
        "none: nothing; proposal: all propose servers, hear the proposals, then choose; sequence: "
        "they choose one after the other in random order and hear the choices made so far. The "
        "latter two need observation.view: network and a learned association",
    )
    initial_stay_logit: float = Field(
        5.0,
        description="added to the logit of the server that serves the request now, then learned; "
        "exploration must not change servers every slot, since a change costs a prefill",
    )
    initial_draft_length: int = Field(
        4, ge=0, description="draft length that the untrained head prefers"
    )


def activation_of(config: NetworkConfig) -> tuple[Callable[[Tensor], Tensor], float]:
    """Look up the activation and the gain of the initial weights before it."""
    return _ACTIVATIONS[config.activation]


@dataclass(frozen=True)
class FeatureSizes:
    """How many features an observation has, and where a pair says that its server serves now."""

    device: int
    pair: int
    server: int
    serving_column: int

    @classmethod
    def of(cls, schema: ObservationSchema) -> FeatureSizes:
        """Read the sizes off an observation schema."""
        names = [feature.name for feature in schema.pair]
        return cls(
            len(schema.device), len(schema.pair), len(schema.server), names.index("is_serving")
        )


@dataclass(frozen=True)
class ActionSample:
    """A drawn action with its joint log-probability."""

    action: Action
    log_prob: Tensor  # (B, M) sum over the learned heads
    rank: Tensor | None = None  # (B, M) long, turn of each device where they choose in sequence


@dataclass(frozen=True)
class CandidateLaws:
    """Laws of the heads given each server that a device may choose.

    C candidates: the E servers where the server is learned, else one, the pair that rules choose.
    A head that is not learned is None.
    """

    server: Categorical | None  # over (B, M, E)
    bandwidth: Beta | None  # (B, M, C)
    power: Beta | None  # (B, M, C)
    draft_length: Categorical | None  # over (B, M, C, L)

    def of(self, head: Head) -> Categorical | Beta:
        """Return the law of a learned head."""
        law: Categorical | Beta | None = getattr(self, head)
        assert law is not None, f"head '{head}' is not learned"
        return law


def make_linear(inputs: int, outputs: int, gain: float) -> nn.Linear:
    """Make a linear layer with orthogonal weights and no bias at the start."""
    layer = nn.Linear(inputs, outputs)
    nn.init.orthogonal_(layer.weight, gain)
    nn.init.zeros_(layer.bias)
    return layer


def rule_presence(observation: Observation, serving_column: int) -> Tensor:
    """Weigh the servers that a rule may choose, (B, M, E): the serving one, else those in reach."""
    serving = observation.pair[..., serving_column] > 0.5
    allowed = torch.where(serving.any(-1, keepdim=True), serving, observation.mask)
    weight = allowed.to(observation.pair.dtype)
    return weight / weight.sum(-1, keepdim=True)


class PairEmbedding(nn.Module):
    """First layer over [device, pair, server] rows, computed without repeating the rows."""

    def __init__(self, sizes: FeatureSizes, config: NetworkConfig) -> None:
        """Draw the weights."""
        super().__init__()
        self.sizes = sizes
        self.activation, gain = activation_of(config)
        self.linear = make_linear(sizes.device + sizes.pair + sizes.server, config.hidden, gain)
        self.norm = nn.LayerNorm(config.hidden)

    def forward(self, observation: Observation) -> Tensor:
        """Embed pairs, (B, M, E, H)."""
        return self.finish(self.linear_part(observation))

    def finish(self, total: Tensor) -> Tensor:
        """Normalise and activate sums (..., H) of `linear_part` and more."""
        embedded: Tensor = self.activation(self.norm(total))
        return embedded

    def linear_part(self, observation: Observation) -> Tensor:
        """Compute what goes into the normalisation, (B, M, E, H)."""
        sizes = self.sizes
        device, pair, server = torch.split(
            self.linear.weight, [sizes.device, sizes.pair, sizes.server], dim=1
        )
        # W [d; p; s] = W_d d + W_p p + W_s s, each on its own smaller tensor.
        return (
            F.linear(observation.pair, pair)
            + F.linear(observation.device, device, self.linear.bias).unsqueeze(2)
            + F.linear(observation.server, server).unsqueeze(1)
        )


class Actor(nn.Module):
    """Policy of one device, shared by all: a head per learned decision on pair embeddings.

    With view "network" a pair also hears the mean embedding of the other devices' pairs with the
    same server; with view "device" nothing of other devices enters but through server rows.
    """

    def __init__(
        self,
        sizes: FeatureSizes,
        config: NetworkConfig,
        heads: tuple[Head, ...],
        view: View,
        max_draft_length: int,
    ) -> None:
        """Draw the weights of the trunk and of the learned heads."""
        super().__init__()
        self.heads = heads
        self.view = view
        self.serving_column = sizes.serving_column
        width = config.hidden
        self.activation, gain = activation_of(config)
        self.embedding = PairEmbedding(sizes, config)
        self.others = make_linear(width, width, 1.0) if view == "network" else None
        self.layer = make_linear(width, width, gain)
        self.norm = nn.LayerNorm(width)
        self.coordination = config.coordination
        if config.coordination != "none":
            if view != "network" or "server" not in heads:
                raise UserError(
                    f"network.coordination is {config.coordination}, which tells devices of each "
                    "other's servers; set observation.view to network and association to learned, "
                    "or coordination to none"
                )
            self.news_layer = make_linear(width, width, 1.0)
            self.second_layer = make_linear(width, width, gain)
            self.second_norm = nn.LayerNorm(width)
        if "server" in heads:
            self.server_head = make_linear(width, 1, 0.01)
            self.stay_logit = nn.Parameter(torch.tensor(config.initial_stay_logit))
        if "bandwidth" in heads:
            self.bandwidth_head = _with_bias(make_linear(width, 2, 0.01), _INITIAL_BANDWIDTH)
        if "power" in heads:
            self.power_head = _with_bias(make_linear(width, 2, 0.01), _INITIAL_POWER)
        if "draft_length" in heads:
            # A preference that falls off with the distance, so that neighbours are tried first.
            distance = [abs(n - config.initial_draft_length) for n in range(max_draft_length + 1)]
            bias = tuple(_LENGTH_BIAS * math.exp(-d / 2) for d in distance)
            self.draft_length_head = _with_bias(make_linear(width, len(bias), 0.01), bias)

    def embed(self, observation: Observation) -> Tensor:
        """Embed each (device, server) pair, (B, M, E, H)."""
        first: Tensor = self.embedding(observation)
        if self.others is not None:
            present = observation.active[..., None, None].to(first.dtype)
            shown = first * present
            count = (present.sum(1, keepdim=True) - present).clamp_min(1)
            first = first + self.others((shown.sum(1, keepdim=True) - shown) / count)
        embedded: Tensor = self.activation(self.norm(self.layer(first)))
        if self.coordination != "proposal":
            return embedded
        logits = self.server_logits(observation, embedded)
        proposal = Categorical.of(logits, observation.mask).log_prob_all.exp()
        placed = _placed(proposal, embedded, observation)
        return self._with_news(embedded, placed.sum(1, keepdim=True) - placed)

    def _with_news(self, embedded: Tensor, news: Tensor) -> Tensor:
        """Embed pairs anew with what is known of the others on each server, both (..., E, H)."""
        total = embedded + self.news_layer(NEWS_SCALE * news)
        again: Tensor = self.activation(self.second_norm(self.second_layer(total)))
        return again

    def server_logits(self, observation: Observation, embedded: Tensor) -> Tensor:
        """Score the servers, (B, M, E), not masked."""
        serving = observation.pair[..., self.serving_column]
        scores: Tensor = self.server_head(embedded).squeeze(-1) + self.stay_logit * serving
        return scores

    def act(self, observation: Observation, generator: torch.Generator | None) -> ActionSample:
        """Choose for every device.

        Args:
            observation: B networks.
            generator: draws the action; None for the most likely choice and the mean of a share.
        """
        chosen: dict[str, Tensor] = {}
        embedded = self.embed(observation)
        rank = None
        if self.coordination == "sequence":
            rank = _turns(observation, generator)
            chosen["server"] = self._choose_in_turn(observation, embedded, rank, generator)

        def pick(head: Head, law: Categorical | Beta) -> Tensor:
            if head not in chosen:
                chosen[head] = law.mode() if generator is None else law.sample(generator)
            return chosen[head]

        log_prob, _ = self._visit(observation, embedded, rank, pick, chosen.get("server"))
        return ActionSample(Action(**chosen), log_prob, rank)

    def evaluate(
        self, observation: Observation, action: Action, rank: Tensor | None = None
    ) -> tuple[Tensor, dict[Head, Tensor]]:
        """Compute the joint log-probability (B, M) of an action and the entropy of each head.

        Args:
            observation: B networks.
            action: of all devices.
            rank: (B, M) turns in which the servers were chosen, where in sequence.
        """

        def pick(head: Head, law: Categorical | Beta) -> Tensor:
            value: Tensor = getattr(action, head)
            return value

        return self._visit(observation, self.embed(observation), rank, pick, action.server)

    def candidate_laws(self, observation: Observation) -> CandidateLaws:
        """Give the laws of all heads, of the later ones for each server that may be chosen."""
        embedded = self.embed(observation)
        server = None
        rows = embedded
        if "server" in self.heads:
            server = Categorical.of(self.server_logits(observation, embedded), observation.mask)
        else:
            rows = self._expected_pair(observation, embedded).unsqueeze(2)
        heads = self.heads
        return CandidateLaws(
            server=server,
            bandwidth=Beta.of(self.bandwidth_head(rows)) if "bandwidth" in heads else None,
            power=Beta.of(self.power_head(rows)) if "power" in heads else None,
            draft_length=(
                Categorical.of(self.draft_length_head(rows)) if "draft_length" in heads else None
            ),
        )

    def _visit(
        self,
        observation: Observation,
        embedded: Tensor,
        rank: Tensor | None,
        pick: Callable[[Head, Categorical | Beta], Tensor],
        servers: Tensor | None,
    ) -> tuple[Tensor, dict[Head, Tensor]]:
        """Walk the heads: servers first, then what is conditioned on the chosen server."""
        if self.coordination == "sequence":
            assert rank is not None, "choices in sequence have turns"
            assert servers is not None
            embedded = self._with_news(embedded, self._heard(observation, embedded, servers, rank))
        log_probs: list[Tensor] = []
        entropy: dict[Head, Tensor] = {}

        def visit(head: Head, law: Categorical | Beta) -> Tensor:
            value = pick(head, law)
            log_probs.append(law.log_prob(value))
            entropy[head] = law.entropy()
            return value

        if "server" in self.heads:
            logits = self.server_logits(observation, embedded)
            server = visit("server", Categorical.of(logits, observation.mask))
            index = server[..., None, None].expand(*server.shape, 1, embedded.shape[-1])
            chosen = embedded.gather(2, index).squeeze(2)
        else:
            chosen = self._expected_pair(observation, embedded)
        if "bandwidth" in self.heads:
            visit("bandwidth", Beta.of(self.bandwidth_head(chosen)))
        if "power" in self.heads:
            visit("power", Beta.of(self.power_head(chosen)))
        if "draft_length" in self.heads:
            visit("draft_length", Categorical.of(self.draft_length_head(chosen)))
        return torch.stack(log_probs).sum(0), entropy

    def _heard(
        self, observation: Observation, embedded: Tensor, servers: Tensor, rank: Tensor
    ) -> Tensor:
        """Add up the pairs that were chosen before each device's turn, (B, M, E, H)."""
        presence = F.one_hot(servers, embedded.shape[2]).to(embedded.dtype)
        placed = _placed(presence, embedded, observation)
        before = (rank.unsqueeze(1) < rank.unsqueeze(2)).to(embedded.dtype)  # (B, m, n)
        return torch.bmm(before, placed.flatten(2)).view_as(embedded)

    def _choose_in_turn(
        self,
        observation: Observation,
        embedded: Tensor,
        rank: Tensor,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Choose servers (B, M) one device per network after the other; those without one, 0."""
        servers = torch.zeros_like(rank)
        rows = torch.arange(len(rank), device=rank.device)
        news = torch.zeros_like(embedded[:, 0])
        order = rank.argsort(1)
        serving = observation.pair[..., self.serving_column]
        for turn in range(int(observation.active.sum(1).max())):
            device = order[:, turn]
            own = embedded[rows, device]
            logits = self.server_head(self._with_news(own, news)).squeeze(-1)
            logits = logits + self.stay_logit * serving[rows, device]
            law = Categorical.of(logits, observation.mask[rows, device])
            choice = law.mode() if generator is None else law.sample(generator)
            servers[rows, device] = choice
            shown = observation.active[rows, device].unsqueeze(-1).to(own.dtype)
            news[rows, choice] += own[rows, choice] * shown
        return servers

    def _expected_pair(self, observation: Observation, embedded: Tensor) -> Tensor:
        """Average the pairs that a rule may choose, (B, M, H)."""
        weight = rule_presence(observation, self.serving_column)
        return (embedded * weight.unsqueeze(-1)).sum(2)


class Critic(nn.Module):
    """Centralised value: pools device embeddings and server rows, whatever M and E.

    Kind "network" gives one value per network, "device" one per device from its own embedding and
    the pools, "own" one per device from its own embedding and the servers, nothing of others.
    """

    def __init__(
        self, sizes: FeatureSizes, config: NetworkConfig, kind: Literal["network", "device", "own"]
    ) -> None:
        """Draw the weights."""
        super().__init__()
        self.kind = kind
        self.serving_column = sizes.serving_column
        width = config.hidden
        self.activation, gain = activation_of(config)
        self.embedding = PairEmbedding(sizes, config)
        self.device_layer = make_linear(2 * width, width, gain)
        self.device_norm = nn.LayerNorm(width)
        self.server_layer = make_linear(sizes.server, width, gain)
        self.server_norm = nn.LayerNorm(width)
        pooled = {"network": 4, "device": 5, "own": 3}[kind] * width
        self.hidden_layer = make_linear(pooled, width, gain)
        self.hidden_norm = nn.LayerNorm(width)
        self.value_head = make_linear(width, 1, 1.0)

    def forward(self, observation: Observation) -> Tensor:
        """Predict normalised values, (B, 1) or (B, M)."""
        pairs = self.embedding(observation)
        serving = observation.pair[..., self.serving_column].unsqueeze(-1)
        rows = torch.cat((pairs.mean(2), (pairs * serving).sum(2)), dim=-1)
        device = self.activation(self.device_norm(self.device_layer(rows)))
        server = self.activation(self.server_norm(self.server_layer(observation.server)))
        pools = torch.cat((server.mean(1), server.max(1).values), dim=-1).unsqueeze(1)
        if self.kind != "own":
            # Devices without a request add nothing to the mean, which thereby counts requests.
            shown = device * observation.active.unsqueeze(-1).to(device.dtype)
            others = torch.cat((shown.mean(1), shown.max(1).values), dim=-1).unsqueeze(1)
            pools = torch.cat((others, pools), dim=-1)
        if self.kind != "network":
            pools = torch.cat((device, pools.expand(-1, device.shape[1], -1)), dim=-1)
        hidden = self.activation(self.hidden_norm(self.hidden_layer(pools)))
        value: Tensor = self.value_head(hidden).squeeze(-1)
        return value


def _with_bias(layer: nn.Linear, bias: tuple[float, ...]) -> nn.Linear:
    """Set the bias of a head, which is its preference before it has learned."""
    with torch.no_grad():
        layer.bias.copy_(torch.tensor(bias))
    return layer


def _placed(presence: Tensor, embedded: Tensor, observation: Observation) -> Tensor:
    """Weigh pairs by how far their device is on the server, (B, M, E, H); idle ones count 0."""
    active = observation.active.unsqueeze(-1).to(presence.dtype)
    return (presence * active).unsqueeze(-1) * embedded


def _turns(observation: Observation, generator: torch.Generator | None) -> Tensor:
    """Draw the turn of each device, (B, M) long, those without a request last.

    Without a generator those with the strongest link come first.
    """
    if generator is None:
        gain = observation.pair[..., _GAIN].masked_fill(~observation.mask, -torch.inf)
        key = -gain.amax(-1)
    else:
        key = torch.rand(
            observation.active.shape, generator=generator, device=observation.active.device
        )
    key = key.masked_fill(~observation.active, torch.inf)
    return key.argsort(dim=1, stable=True).argsort(dim=1)
