"""The running system as a controller sees it, and a controller's decision as the kernel's plan.

Shape legend: B = 1 network, M devices, E servers, T slots of the gains.

The state is read off the runtime: live requests, tokens so far, queues, caches, acceptance counted
so far. It holds no future: neither the answer's length nor the outcome of any draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from uara.decoding.kernel import DeviceNode, ServerNode, VirtualKernel
from uara.decoding.local_device import LocalState
from uara.decoding.outcome import OutcomeMeter
from uara.decoding.scenario import DeviceProfile, ServerProfile, SlotPlan
from uara.decoding.session import Session, Stage
from uara.network import Controller, Decision, NetworkState, Phase
from uara.prediction import Physics, downlink_rate_bps, effective_mode, uplink_rate_bps
from uara.radio.replay import filtered_gain, walk
from uara.serving.hardware import get_phone, get_rack
from uara.serving.modes import MODE_INDEX
from uara.world.config import WorldConfig, kv_capacities, network_constants, reachable
from uara.world.requests import AnswerLengths


@dataclass(frozen=True)
class GainView:
    """One world of a channel bank, walked along as the simulated world does.

    Attributes:
        gain: (T, M, E) linear, what the links have.
        known: (P, M, E) linear, filtered: what controllers see; P slots of a walk and back.
        position_m: (T, M, 2).
    """

    gain: Tensor
    known: Tensor
    position_m: Tensor

    @classmethod
    def of(
        cls,
        gain: NDArray[np.float32],
        position_m: NDArray[np.float32],
        world: WorldConfig,
    ) -> GainView:
        """Take one world of a bank.

        Args:
            gain: (T, M, E) linear.
            position_m: (T, M, 2).
            world: slot length and filter.
        """
        known = filtered_gain(gain[None], world.slot_s, world.gain_filter_s)[0]
        return cls(torch.from_numpy(gain), known, torch.from_numpy(position_m))

    def slot(self, index: int) -> int:
        """Map a slot to the bank: past its end the tracks are walked back."""
        steps = walk(self.gain.shape[0])
        return int(steps[index % len(steps)])


def device_profiles(
    world: WorldConfig, num_devices: int, read_token_s: float
) -> list[DeviceProfile]:
    """Take the times of the phones that a world names."""
    names = [world.devices[i % len(world.devices)] for i in range(num_devices)]
    return [DeviceProfile(get_phone(name).draft_time_s, read_token_s) for name in names]


def server_profiles(world: WorldConfig) -> list[ServerProfile]:
    """Take times of the racks that a world names, and their memory unless the world gives it."""
    racks = [get_rack(name) for name in world.servers]
    return [
        ServerProfile(rack.forward, tokens, world.rtt_s)
        for rack, tokens in zip(racks, kv_capacities(world), strict=True)
    ]


class ControllerPlanner:
    """Asks a controller at each slot boundary."""

    def __init__(
        self,
        controller: Controller,
        gains: GainView,
        world: WorldConfig,
        physics: Physics,
        acceptance_mean: Tensor,
        generator: torch.Generator,
    ) -> None:
        """Reset the controller for one network.

        Args:
            controller: decides.
            gains: one world of a bank.
            world: machines, budgets, tasks.
            physics: link model and codec.
            acceptance_mean: (number of tasks,) what the running estimate starts from.
            generator: for the controller's own draws.
        """
        self._controller = controller
        self._gains = gains
        self._world = world
        self._physics = physics
        self._acceptance_mean = acceptance_mean
        self._lengths = AnswerLengths.of(world.requests)
        self._meter = OutcomeMeter(world, physics.config.amplifier_efficiency)
        constants = network_constants(world, 1, gains.gain.shape[1], physics.config.link)
        # Load and free memory are read off the servers instead.
        measured = ("kv_capacity_tokens", "foreign_rows", "foreign_prefill_tokens")
        self._constants = {k: v for k, v in constants.items() if k not in measured}
        self.decisions: list[Decision] = []
        controller.reset(torch.ones(1, dtype=torch.bool), generator)

    def plan(self, now: float, kernel: VirtualKernel) -> SlotPlan:
        """Tell the controller what the last slot brought, and ask for the next."""
        if self.decisions:
            self._controller.observe(self._meter.read(now, kernel, self.decisions[-1]))
        state = self.state(now, kernel)
        decision = self._controller.decide(state)
        self.decisions.append(decision)
        true_gain = self._gains.gain[self._gains.slot(kernel.slot)][None]
        return to_plan(state.with_(gain=true_gain), decision, self._physics)

    def state(self, now: float, kernel: VirtualKernel) -> NetworkState:
        """Describe the running system, B = 1."""
        seen = max(0, kernel.slot - self._world.csi_delay_slots)
        gain = self._gains.known[seen % len(self._gains.known)][None]
        rows = [self._device_row(node, now, kernel) for node in kernel.devices]
        columns = {name: torch.tensor([[row[name] for row in rows]]) for name in rows[0]}
        servers = [_server_row(node) for node in kernel.servers]
        loads = {name: torch.tensor([[row[name] for row in servers]]) for name in servers[0]}
        floats = {name: value.float() for name, value in columns.items()}
        task = columns["task"].long()
        remaining = self._lengths.expected_remaining_tokens(floats["tokens_so_far"], task)
        prior = self._world.acceptance_prior_tokens
        acceptance = (prior * self._acceptance_mean[task] + floats["accepted"]) / (
            prior + floats["tested"]
        )
        kept = ("age_s", "waiting_requests", "prompt_tokens", "upload_bits", "tokens_so_far")
        return NetworkState(
            time_s=torch.tensor([now]),
            gain=gain,
            reachable=reachable(gain, self._world.reach_gain_db),
            phase=columns["phase"].long(),
            task=task,
            expected_remaining_tokens=remaining,
            acceptance=acceptance,
            server=columns["server"].long(),
            kv_tokens=floats["kv_tokens"],
            position_m=self._gains.position_m[self._gains.slot(kernel.slot)][None],
            **{name: floats[name] for name in kept},
            **{name: value.float() for name, value in loads.items()},
            **self._constants,
        )

    def _device_row(self, node: DeviceNode, now: float, kernel: VirtualKernel) -> dict[str, float]:
        request = node.request
        row = dict.fromkeys(_DEVICE_COLUMNS, 0.0)
        row |= {"phase": int(Phase.IDLE), "server": -1, "waiting_requests": len(node.waiting)}
        if request is None:
            return row
        record = kernel.recorder.requests[request.sid]
        row |= {
            "task": request.task,
            "age_s": now - request.arrival_s,
            "prompt_tokens": request.prompt_tokens,
            "tokens_so_far": len(record.tokens),
            "accepted": record.accepted,
            "tested": record.tested,
        }
        if isinstance(node.state, LocalState) and node.state.sid == request.sid:
            return row | {"phase": int(Phase.DECODING)}
        owner = kernel.owner.get(request.sid)
        if owner is None:
            is_sending = node.state.sid == request.sid
            row["phase"] = int(Phase.UPLOADING)
            row["upload_bits"] = (
                node.uplink.bits_left(now)
                if is_sending
                else self._physics.codec.prompt_bits(request.prompt_tokens)
                + request.attachment_bits
            )
            if is_sending and kernel.plan is not None:
                row["server"] = int(kernel.plan.server[request.device])
            return row
        server = kernel.servers[owner]
        session = server.state.sessions.get(request.sid)
        row["server"] = owner
        row["kv_tokens"] = _kv_tokens(server, session)
        is_reading = session is None or session.stage is Stage.PREFILL
        row["phase"] = int(Phase.PREFILLING if is_reading else Phase.DECODING)
        return row


_DEVICE_COLUMNS = (
    "phase",
    "server",
    "waiting_requests",
    "task",
    "age_s",
    "prompt_tokens",
    "upload_bits",
    "tokens_so_far",
    "accepted",
    "tested",
    "kv_tokens",
)


def _kv_tokens(server: ServerNode, session: Session | None) -> int:
    """Count the context tokens whose cache a server holds; the last one counts as cached."""
    if session is None:
        return 0
    if session.stage is not Stage.PREFILL:
        return session.priced_tokens
    tickets = server.state.batcher.tickets
    return next((t.tokens_read for t in tickets if t.sid == session.sid), session.priced_tokens)


def _server_row(node: ServerNode) -> dict[str, float]:
    batcher = node.state.batcher
    held = sum(_kv_tokens(node, session) for session in node.state.sessions.values())
    return {
        "kv_free_tokens": node.profile.kv_capacity_tokens - held,
        "foreign_rows": batcher.foreign_rows,
        "foreign_prefill_tokens": batcher.foreign_prefill_tokens,
    }


def to_plan(state: NetworkState, decision: Decision, physics: Physics) -> SlotPlan:
    """Turn a decision into rates, modes and draft lengths, under the gains of `state` (B = 1)."""
    mode = effective_mode(state, decision, physics)
    is_ar = mode == MODE_INDEX["server_ar"]
    length = torch.where(is_ar, torch.zeros_like(decision.draft_length), decision.draft_length)

    def row(values: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
        return values[0].double().numpy()

    return SlotPlan(
        server=decision.server[0].numpy(),
        draft_length=length[0].numpy(),
        uplink_bps=row(uplink_rate_bps(state, decision, physics)),
        downlink_bps=row(downlink_rate_bps(state, decision, physics)),
        mode=mode[0].numpy(),
    )
