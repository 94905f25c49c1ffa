"""Problems of a few slots whose optimum is known, in the form that learners play.

Shape legend: B networks, M devices, E servers.
"""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from envs.action import WEIGHT_SPAN, Action, ControlConfig
from envs.batched import Step
from envs.observation import Observation, schema
from uara.network import Decision, SlotOutcome
from uara.prediction import Physics, PhysicsConfig

SERVING = [feature.name for feature in schema().pair].index("is_serving")
SERVERS_ONLY = ControlConfig(draft_length=4)
BAND_ONLY = ControlConfig(association="max_sinr", bandwidth="learned", draft_length=4)


class Toy:
    """Episodes of `last_slot` slots that all networks begin and end together."""

    num_devices, num_servers = 1, 2
    last_slot = 1
    control = SERVERS_ONLY
    ends_truncated = False

    def __init__(self, num_networks: int = 32) -> None:
        self.num_networks = num_networks
        self.auto_reset = True
        self.slot = 0
        self.memory = torch.zeros(num_networks)
        physics = Physics.of(PhysicsConfig(max_draft_length=8))
        self.world = SimpleNamespace(
            physics=physics,
            num_devices=self.num_devices,
            num_servers=self.num_servers,
            config=SimpleNamespace(slot_s=0.5),
        )
        self.reward_config = SimpleNamespace(energy_weight=1.0, battery_weight=0.0)
        self.normaliser_s = 1.0
        size = (num_networks, self.num_devices)
        self.state = SimpleNamespace(
            has_request=torch.ones(size, dtype=torch.bool), waiting_requests=torch.zeros(size)
        )

    def reset(self, mask: Tensor | None = None, *, seed: int | None = None) -> Observation:
        """Begin the episode anew."""
        self.slot = 0
        self.memory = torch.zeros(self.num_networks)
        return self.observation()

    def step(self, action: Action) -> Step:
        """Play one slot."""
        reward = self.reward(action)
        self.slot += 1
        final = self.observation()
        over = torch.full((self.num_networks,), self.slot >= self.last_slot)
        never = torch.zeros_like(over)
        ended = bool(over.all())
        return Step(
            observation=self.reset() if ended else final,
            final_observation=final,
            reward=reward,
            terminated=never if self.ends_truncated else over,
            truncated=over if self.ends_truncated else never,
            outcome=self._outcome(over),
            decision=self._decision(),
            illegal=torch.zeros_like(self.state.has_request),
        )

    def state_dict(self) -> dict[str, Any]:
        """Return what the next slot depends on."""
        return {"slot": self.slot, "memory": self.memory.clone()}

    def load_state_dict(self, state: dict[str, Any]) -> Observation:
        """Go back to a saved state."""
        self.slot, self.memory = int(state["slot"]), state["memory"].clone()
        return self.observation()

    def observation(self) -> Observation:
        """Observe every network."""
        device = torch.zeros(self.num_networks, self.num_devices, len(schema().device))
        pair = torch.zeros(*device.shape[:2], self.num_servers, len(schema().pair))
        server = torch.zeros(self.num_networks, self.num_servers, len(schema().server))
        self.show(device, pair, server)
        return Observation(
            device=device,
            pair=pair,
            server=server,
            mask=torch.ones(pair.shape[:3], dtype=torch.bool),
            active=self.state.has_request.clone(),
        )

    def show(self, device: Tensor, pair: Tensor, server: Tensor) -> None:
        """Write what is observed into rows of zeros."""

    def reward(self, action: Action) -> Tensor:
        """Pay for a slot, (B,)."""
        raise NotImplementedError

    def play(self, act: Any) -> float:
        """Play one episode and return the mean undiscounted return."""
        observation, total = self.reset(), torch.zeros(self.num_networks)
        for _ in range(self.last_slot):
            step = self.step(act(observation))
            total, observation = total + step.reward, step.observation
        return float(total.mean())

    def _decision(self) -> Decision:
        zeros = torch.zeros(self.num_networks, self.num_devices)
        return Decision(zeros.long(), zeros, zeros, zeros.long())

    def _outcome(self, over: Tensor) -> SlotOutcome:
        devices = torch.zeros(self.num_networks, self.num_devices)
        servers = torch.zeros(self.num_networks, self.num_servers)
        return SlotOutcome(
            alive_s=torch.full((self.num_networks,), 0.5),
            tokens=devices,
            device_energy_j=devices,
            server_energy_j=servers,
            uplink_bits=devices,
            downlink_bits=devices,
            handover=devices.bool(),
            finished=over.unsqueeze(1).expand(devices.shape).clone(),
            e2e_s=devices,
            ttft_s=devices,
            finished_tokens=devices,
            finished_task=devices.long(),
            drained=over,
        )


class Congestion(Toy):
    """Three devices prefer one server, which is slower the more of them it serves."""

    num_devices = 3
    cost = torch.tensor([[1.0, 2.5], [1.2, 1.4], [1.0, 3.0]])

    def show(self, device: Tensor, pair: Tensor, server: Tensor) -> None:
        """Write what is observed."""
        pair[..., 0] = self.cost

    def price(self, server: Tensor) -> Tensor:
        """Add up cost times crowd for servers (B, M) long, (B,)."""
        crowd = torch.nn.functional.one_hot(server, 2).sum(1)
        own = self.cost.expand(len(server), -1, -1).gather(2, server.unsqueeze(-1)).squeeze(-1)
        return (own * crowd.gather(1, server)).sum(1)

    def reward(self, action: Action) -> Tensor:
        """Pay for a slot, (B,)."""
        assert action.server is not None
        return -self.price(action.server) / 10

    @classmethod
    def optimum(cls) -> float:
        """Return the best return of an episode."""
        every = torch.tensor(list(itertools.product(range(2), repeat=3)))
        return float(-cls().price(every).min() / 10)


class Stampede(Toy):
    """Two devices that look alike and two servers: best is one each, whoever goes where."""

    num_devices = 2

    def show(self, device: Tensor, pair: Tensor, server: Tensor) -> None:
        """Write what is observed: the same of everybody."""
        device[..., 0] = 1.0

    def reward(self, action: Action) -> Tensor:
        """Pay for a slot, (B,)."""
        assert action.server is not None
        return -(action.server[:, 0] == action.server[:, 1]).float()


class TwoSlots(Toy):
    """Server 0 pays 1 at once; server 1 pays nothing now and 3 in the second slot."""

    last_slot = 2

    def show(self, device: Tensor, pair: Tensor, server: Tensor) -> None:
        """Write what is observed."""
        pair[:, :, 1, 0] = 1.0
        device[..., 0] = float(self.slot)
        device[..., 1] = self.memory.unsqueeze(1)

    def reward(self, action: Action) -> Tensor:
        """Pay for a slot, (B,)."""
        assert action.server is not None
        if self.slot == 0:
            self.memory = action.server[:, 0].float()
            return 1 - self.memory
        return 3 * self.memory


class Split(Toy):
    """Two uploads of 1 and 9 share a band; least total time gives them 1 : 3 (16, not 20)."""

    num_devices, num_servers = 2, 1
    control = BAND_ONLY
    load = torch.tensor([1.0, 9.0])

    def show(self, device: Tensor, pair: Tensor, server: Tensor) -> None:
        """Write what is observed."""
        device[..., 0] = self.load.log()

    def reward(self, action: Action) -> Tensor:
        """Pay for a slot, (B,)."""
        assert action.bandwidth is not None
        share = torch.softmax(WEIGHT_SPAN * 2 * action.bandwidth, dim=1)
        return 2 - (self.load / share).sum(1) / 10

    @classmethod
    def optimum(cls) -> float:
        """Return the best return of an episode."""
        return 2 - float(cls.load.sqrt().sum().square()) / 10


class Constant(Toy):
    """Pays 1 in every slot of episodes that are cut, not ended, after four."""

    last_slot = 4
    ends_truncated = True

    def reward(self, action: Action) -> Tensor:
        """Pay for a slot, (B,)."""
        return torch.ones(self.num_networks)
